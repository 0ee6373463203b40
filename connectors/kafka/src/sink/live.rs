//! What there is while we are the one who writes, and how one record gets out.

use super::{
    notes::{Birth, Owner, Says, Standing},
    told::Under,
    writer::Broken,
};
use crate::{
    client::{LogProducer, flush, reason, send, writing},
    source::topics::failure,
};
use crossfade_connector::Failure;
use crossfade_event::TableId;
use rdkafka::{
    message::OwnedHeaders,
    producer::{BaseRecord, Producer},
};
use std::{collections::HashMap, time::Duration};

/// The largest record that is sent.
pub(super) const MESSAGE_BYTES_MAX: u64 = 64 << 20;

/// How long one step of a transaction may take before it is held to have failed.
pub(super) const STEP: Duration = Duration::from_secs(50);

/// Numbers of partitions are below this.
const PARTITIONS_MAX: usize = 1 << 12;

/// What there is while we are the one who writes.
pub(super) struct Live {
    pub(super) producer: LogProducer,
    /// For notes outside of transactions.
    pub(super) plain: LogProducer,
    pub(super) birth: Birth,
    pub(super) owner: Option<Owner>,
    pub(super) standing: Option<Standing>,
    /// Keys behind which later changes wait.
    pub(super) held: HashMap<(TableId, Vec<u8>), String>,
    pub(super) next_held: i64,
    pub(super) open: bool,
    /// The source transaction under way.
    pub(super) transaction: Option<Under>,
    /// Topics by the number that their records bear.
    pub(super) numbers: Vec<String>,
    pub(super) now_us: i64,
}

/// A record on its way.
pub(super) struct Sent<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: u32,
    pub(super) key: Option<&'a [u8]>,
    pub(super) value: Option<&'a [u8]>,
    pub(super) headers: Option<OwnedHeaders>,
}

impl Live {
    pub(super) fn begin(&mut self) -> Result<(), Broken> {
        if !self.open {
            self.producer.context().reset();
            self.producer
                .begin_transaction()
                .map_err(|error| Broken::Kafka("beginning a transaction".to_owned(), error))?;
            self.open = true;
        }
        Ok(())
    }

    /// Sends a record in the open transaction.
    pub(super) fn send(&mut self, sent: Sent<'_>) -> Result<(), Broken> {
        self.begin()?;
        let Sent { topic, partition, key, value, headers } = sent;
        let number = match self.numbers.iter().position(|name| name == topic) {
            Some(number) => number,
            None => {
                self.numbers.push(topic.to_owned());
                self.numbers.len() - 1
            }
        };
        let number = 1 + number * PARTITIONS_MAX + partition as usize;
        let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(topic, number).partition(partition as i32);
        record.key = key;
        record.payload = value;
        record.headers = headers;
        send(&self.producer, record, STEP)
            .map_err(|error| Broken::Kafka(format!("writing to {topic}"), reason(&self.producer, error)))
    }

    /// After the last record of each partition.
    pub(super) fn reaches(&self) -> Result<Vec<(String, u32, u64)>, Broken> {
        let offsets = self.producer.context().offsets();
        let offsets = offsets
            .map_err(|error| Broken::Kafka("writing to the sink's topics".to_owned(), reason(&self.producer, error)))?;
        let reach = |(number, offset): (usize, u64)| {
            let topic = self.numbers.get((number - 1) / PARTITIONS_MAX).cloned().unwrap_or_default();
            (topic, ((number - 1) % PARTITIONS_MAX) as u32, offset + 1)
        };
        Ok(offsets.into_iter().map(reach).collect())
    }

    /// Everything that was sent has been taken.
    pub(super) fn settle(&self) -> Result<(), Broken> {
        flush(&self.producer, STEP).map_err(|error| Broken::Kafka("writing to the sink's topics".to_owned(), error))
    }

    /// Notes something at once, outside of any transaction.
    pub(super) fn note_now(&self, own: &str, says: &Says) -> Result<(), Failure> {
        let failed = |error| failure(writing(own, reason(&self.plain, error)));
        let (key, value) = (says.key(), says.to_bytes()?);
        self.plain.context().reset();
        let record = BaseRecord::<str, [u8], usize>::with_opaque_to(own, 0).partition(0).key(&key).payload(&value);
        self.plain.send(record).map_err(|(error, _)| failed(error))?;
        flush(&self.plain, STEP).map_err(failed)?;
        self.plain.context().offsets().map(drop).map_err(failed)
    }
}
