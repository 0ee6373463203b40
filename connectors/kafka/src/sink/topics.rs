//! The topics of a sink: what they are called, made and checked; and told from those of others.

use super::{
    SinkConfig,
    notes::{Birth, Made},
};
use crate::{
    client::{Clients, LogConsumer, PATIENCE, bounds, scan},
    ids,
    source::topics::{failure, topic_of},
};
use crossfade_connector::Failure;
use crossfade_event::{Identity, TableName, TableSchema};
use rdkafka::admin::{NewTopic, TopicReplication};
use std::{
    thread,
    time::{Duration, Instant},
};

/// The largest record that a topic made here takes; no row may be larger.
const MESSAGE_BYTES_MAX: u64 = 64 << 20;

/// A segment of the sink's own topic: only closed ones are compacted, and all of it is read at every start.
const OWN_SEGMENT_BYTES: u64 = 8 << 20;

/// How many partitions a table's topic gets unless said.
const PARTITIONS: u32 = 4;

/// The sink's own topic.
pub(super) fn own(prefix: &str) -> String {
    format!("{prefix}.crossfade")
}

/// The topic of transactions' marks.
pub(super) fn transactions(prefix: &str) -> String {
    format!("{prefix}.transaction")
}

/// A table's topic.
pub(super) fn of_table(prefix: &str, table: &TableName) -> String {
    topic_of(prefix, table)
}

/// What a topic is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    Own,
    Transactions,
    /// Of a table with a key.
    Rows,
    /// Of a table without: they have an order only where there is one partition.
    InOrder,
}

impl For {
    /// What the topic of such a table is for.
    pub(super) fn table(schema: &TableSchema) -> Self {
        if schema.identity == Identity::Key { Self::Rows } else { Self::InOrder }
    }
}

/// The settings with which a topic is made.
pub(super) fn settings(config: &SinkConfig, purpose: For, copies: i32) -> (u32, Vec<(&'static str, String)>) {
    let in_sync = config.min_insync_replicas.map_or(if copies >= 3 { 2 } else { 1 }, i32::from);
    let partitions = if purpose == For::Rows { config.partitions.unwrap_or(PARTITIONS) } else { 1 };
    let mut all = vec![
        ("min.insync.replicas", in_sync.to_string()),
        ("unclean.leader.election.enable", "false".to_owned()),
        ("message.timestamp.type", "CreateTime".to_owned()),
        ("max.message.bytes", MESSAGE_BYTES_MAX.to_string()),
    ];
    if purpose == For::Own || (purpose == For::Rows && config.compact) {
        all.push(("cleanup.policy", "compact".to_owned()));
    } else {
        all.push(("cleanup.policy", "delete".to_owned()));
        let time = config.retention.time.map_or_else(|| "-1".to_owned(), |time| time.as_millis().to_string());
        let bytes = config.retention.bytes.map(|bytes| (bytes / u64::from(partitions)).to_string());
        all.push(("retention.ms", time));
        all.push(("retention.bytes", bytes.unwrap_or_else(|| "-1".to_owned())));
    }
    if purpose == For::Own {
        all.push(("min.cleanable.dirty.ratio", "0.1".to_owned()));
        all.push(("segment.bytes", OWN_SEGMENT_BYTES.to_string()));
    }
    (partitions, all)
}

/// How many copies a topic gets.
pub(super) fn copies(clients: &Clients, config: &SinkConfig) -> Result<i32, Failure> {
    let brokers = clients.broker_count().map_err(failure)?;
    match config.replication {
        Some(copies) if usize::from(copies) > brokers => Err(Failure::refused(
            "making the sink's topics",
            format!("{} has {brokers} brokers, too few for {copies} copies", clients.brokers()),
            format!("Write `replication = {brokers}` at most in [sink], or add brokers"),
        )),
        Some(copies) => Ok(i32::from(copies)),
        None => Ok(brokers.clamp(1, 3) as i32),
    }
}

/// Makes a topic and waits until it is known.
pub(super) fn make(clients: &Clients, config: &SinkConfig, name: &str, purpose: For) -> Result<ids::Topic, Failure> {
    let copies = copies(clients, config)?;
    let (partitions, settings) = settings(config, purpose, copies);
    let topic = NewTopic::new(name, partitions as i32, TopicReplication::Fixed(copies));
    let topic = settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value));
    clients.create(&topic).map_err(failure)?;
    let began = Instant::now();
    loop {
        if let Some(topic) = find(clients, name)? {
            return Ok(topic);
        }
        if began.elapsed() > PATIENCE {
            return Err(Failure::reconnect(format!("making the topic {name}"), "it does not appear"));
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// A topic as it is now.
pub(super) fn find(clients: &Clients, name: &str) -> Result<Option<ids::Topic>, Failure> {
    clients.describe_one(name, "Write").map_err(failure)
}

/// The same of one that was made here, or taken.
pub(super) fn find_known(clients: &Clients, name: &str) -> Result<Option<ids::Topic>, Failure> {
    Ok(clients.describe_known(&[name], "Write").map_err(failure)?.pop().flatten())
}

/// A topic of that name that the sink did not make: refused where it holds records.
pub(super) fn adopt(consumer: &LogConsumer, name: &str, there: &ids::Topic) -> Result<Made, Failure> {
    for partition in 0..there.partitions {
        let (low, high) = bounds(consumer, name, partition).map_err(failure)?;
        // What was begun and never committed is nobody's.
        let mut found = false;
        scan(consumer, name, &[(partition as i32, low..high)], |_| {
            found = true;
            Ok(true)
        })
        .map_err(failure)?;
        if found {
            return Err(Failure::refused(
                format!("preparing the topic {name}"),
                "it holds records that are not ours",
                "Name another topic_prefix in [sink], or delete the topic",
            ));
        }
    }
    Ok(Made { id: Some(there.id.clone()), partitions: there.partitions, was_there: true })
}

/// Checks that a topic is still the one that was noted.
pub(super) fn same(name: &str, noted: &Made, there: Option<&ids::Topic>) -> Result<(), Failure> {
    const ADVICE: &str = "Put the right topic back, or start again: `crossfade rollback --wipe`, then `crossfade run`";
    let doing = || format!("looking at the topic {name}");
    match (there, &noted.id) {
        (None, _) => Err(Failure::lost(doing(), "it has been deleted", ADVICE)),
        (Some(there), Some(id)) if there.id != *id => {
            let what = format!("it was deleted and made anew: its id was {id}, and is {} now", there.id);
            Err(Failure::lost(doing(), what, ADVICE))
        }
        (Some(there), _) if there.partitions != noted.partitions => {
            let (was, now) = (noted.partitions, there.partitions);
            let what = format!(
                "it had {was} partitions, and has {now} now: keys would change their partition and lose their order"
            );
            Err(Failure::halt(doing(), what, ADVICE))
        }
        _ => Ok(()),
    }
}

/// Deletes what the sink made, and its own topic last. Returns the names.
pub(super) fn wipe(clients: &Clients, birth: &Birth, own: &str) -> Result<Vec<String>, Failure> {
    let mut dropped = Vec::new();
    for (name, made) in &birth.topics {
        // One that was made and that a single broker has not heard of yet must not stay.
        let there = if made.id.is_some() { find_known(clients, name)? } else { find(clients, name)? };
        match there {
            Some(there) if !made.was_there && made.id.as_ref().is_none_or(|id| *id == there.id) => {
                clients.delete(name).map_err(failure)?;
                dropped.push(name.clone());
            }
            Some(_) => tracing::warn!(topic = %name, "the topic is not one that was made here; it is left alone"),
            None => {}
        }
    }
    clients.delete(own).map_err(failure)?;
    dropped.push(own.to_owned());
    let began = Instant::now();
    for name in &dropped {
        // All brokers hear of it a moment later.
        while find(clients, name)?.is_some() {
            if began.elapsed() > PATIENCE {
                return Err(Failure::reconnect(format!("deleting the topic {name}"), "it is still there"));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(dropped)
}
