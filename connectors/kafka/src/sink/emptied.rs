//! Emptying a table: a delete and a tombstone for each key that its topic has. Records of several partitions have no order
//! among them, and compaction knows keys alone; so one record that says "all of it" would not do.

use super::writer::{Broken, Writer, not_prepared};
use crate::{
    client::{LogConsumer, bounds, scan},
    source::topics::failure,
};
use crossfade_connector::{Applied, WriteMode};
use crossfade_event::{TableId, Version};
use rdkafka::Message;
use std::collections::BTreeSet;

impl Writer {
    pub(super) fn truncate(&mut self, at: Version, id: TableId, applied: &mut Applied) -> Result<(), Broken> {
        let table = self.table(id)?.clone();
        if table.mode == WriteMode::InsertOnce {
            return Ok(());
        }
        let manner = self.manner.clone();
        let transactions = self.config.transactions.then(|| self.config.topic_prefix.clone());
        if table.schema.key_columns().is_empty() {
            let live = self.live.as_mut().ok_or_else(not_prepared)?;
            for topic in &table.topics {
                live.write_emptied(topic, at, &manner)?;
            }
            return self.hold_emptied(at, id, applied);
        }
        self.live.as_ref().ok_or_else(not_prepared)?.settle()?;
        for topic in &table.topics {
            for partition in 0..topic.partitions {
                for key in self.keys_there(&topic.topic, partition)? {
                    let live = self.live.as_mut().ok_or_else(not_prepared)?;
                    live.write_gone(topic, &key, at, &manner, transactions.as_ref())?;
                }
            }
        }
        self.hold_emptied(at, id, applied)
    }

    /// The keys that a partition has now, those of the open transaction included. What an earlier transaction had begun
    /// and was aborted may add a key that is not there: a delete of it changes nothing.
    fn keys_there(&mut self, topic: &str, partition: u32) -> Result<BTreeSet<Vec<u8>>, Broken> {
        let asking = self.asking()?;
        let mut keys = BTreeSet::new();
        let all = asking.clients.uncommitted(super::GROUP).map_err(failure)?;
        for consumer in [&asking.stable, &all] {
            keys.extend(last_keys(consumer, topic, partition)?);
        }
        Ok(keys)
    }
}

/// The keys whose last record is none of a deletion.
fn last_keys(consumer: &LogConsumer, topic: &str, partition: u32) -> Result<BTreeSet<Vec<u8>>, Broken> {
    let (low, high) = bounds(consumer, topic, partition).map_err(failure)?;
    let mut keys = BTreeSet::new();
    scan(consumer, topic, &[(partition as i32, low..high)], |message| {
        let Some(key) = message.key() else { return Ok(false) };
        match message.payload() {
            Some(_) => keys.insert(key.to_vec()),
            None => keys.remove(key),
        };
        Ok(false)
    })
    .map_err(failure)?;
    Ok(keys)
}
