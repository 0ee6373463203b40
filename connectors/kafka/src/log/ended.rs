//! Whether a transaction is over for its readers, too.
//!
//! A broker says that a transaction is committed once its coordinator has noted it. The marks of its end go into the
//! partitions a moment later, and only then can anybody read it. A broker that is killed in between writes them when it
//! comes back; but one that was alone (all its partitions are without a leader until it is let in again) may take them for
//! those of deleted topics and leave them out: seen with 4.3.1 ("Couldn't find leader endpoint"). Such a partition holds a
//! transaction that nobody ends. All that follows stays unread, and whatever the same producer ends next decides what
//! becomes of it.
//!
//! So an append counts only once it can be read ([`Ended::reaches`]); and what nobody ends is ended before anything else is
//! written ([`Ended::end_hanging`]), the way that the rest of it was ended ([`super::torn`]).

use super::{
    topics::Names,
    torn::{Group, Readable},
};
use crate::client::{Clients, LogConsumer, LogProducer, Right, bounds, flush, needing, reaches};
use crate::codec::{Head, What};
use crossfade_log::LogError;
use rdkafka::{
    error::KafkaError,
    producer::{BaseRecord, Producer},
};
use std::{
    collections::BTreeMap,
    ops::Range,
    thread,
    time::{Duration, Instant},
};

/// How long the marks of an end may be on their way.
const UNDER_WAY: Duration = Duration::from_secs(1);

/// How long they may take once a transaction is ended here.
const LIMIT: Duration = Duration::from_secs(20);

/// Asks where partitions end.
pub(super) struct Ended {
    /// With what is not committed.
    all: LogConsumer,
    /// Without.
    stable: LogConsumer,
}

/// A partition with a transaction that nobody ends, and where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hanging {
    topic: String,
    partition: u32,
    from: u64,
    /// Behind what is there.
    end: u64,
}

impl Ended {
    pub(super) fn new(clients: &Clients, names: &Names) -> Result<Self, LogError> {
        Ok(Self { all: clients.uncommitted(&names.readers)?, stable: clients.asking(&names.readers)? })
    }

    /// Waits until everything below these ends of a topic's partitions can be read; false when it takes longer than `limit`.
    pub(super) fn reaches(&self, topic: &str, wanted: &BTreeMap<u32, u64>, limit: Duration) -> Result<bool, LogError> {
        reaches(&self.stable, topic, wanted, limit)
    }

    /// Ends what nobody ends in the log's topics: as the rest of it was ended. Call it right after `producer` has begun: then
    /// nothing of it is on its way.
    ///
    /// # Errors
    /// [`LogError::Refused`] when it is not ours.
    pub(super) fn end_hanging(&self, producer: &LogProducer, names: &Names, partitions: u32) -> Result<(), LogError> {
        let all: Vec<(&str, u32)> =
            (0..partitions).map(|partition| (&*names.changes, partition)).chain([(&*names.meta, 0)]).collect();
        let hanging = self.hanging_for(&all, UNDER_WAY)?;
        if hanging.is_empty() {
            return Ok(());
        }
        let group = self.group(names, &hanging)?;
        match group.was_committed(Readable::read(&self.stable, names, partitions)?) {
            true => self.commit(producer, names, &hanging, &group)?,
            false => Self::abort(producer, &hanging)?,
        }
        self.until_none_hangs(&all)
    }

    /// Aborts what nobody ends in some partitions, each of which is a transaction of its own. Call it right after `producer`
    /// has begun.
    ///
    /// # Errors
    /// As [`Ended::end_hanging`].
    pub(super) fn abort_hanging_in(&self, producer: &LogProducer, all: &[(&str, u32)]) -> Result<(), LogError> {
        let hanging = self.hanging_for(all, UNDER_WAY)?;
        if hanging.is_empty() {
            return Ok(());
        }
        Self::abort(producer, &hanging)?;
        self.until_none_hangs(all)
    }

    /// What hangs, as far as it can be told.
    fn group(&self, names: &Names, hanging: &[Hanging]) -> Result<Group, LogError> {
        let mut group = Group::default();
        let of = |topic: &str| hanging.iter().filter(move |hanging| hanging.topic == *topic).collect::<Vec<_>>();
        let range = |hanging: &&Hanging| (hanging.partition as i32, hanging.from..hanging.end);
        let entries: Vec<(i32, Range<u64>)> = of(&names.changes).iter().map(range).collect();
        group.read_entries(&self.all, names, &entries)?;
        for notes in of(&names.meta) {
            group.read_notes(&self.all, names, notes.from..notes.end)?;
        }
        Ok(group)
    }

    /// A record brings a partition into a transaction, whose end then ends what hangs there.
    fn commit(
        &self,
        producer: &LogProducer,
        names: &Names,
        hanging: &[Hanging],
        group: &Group,
    ) -> Result<(), LogError> {
        let Some(first) = hanging.first() else { return Ok(()) };
        tracing::warn!(
            topic = %first.topic, partition = first.partition, offset = first.from,
            "the broker has committed a transaction in a part of its partitions only; it is committed in the others now"
        );
        let rights = rights(hanging);
        let failed = ending(&rights, &first.topic);
        let seam = Head { round: group.first.unwrap_or(0), place: 0, what: What::Seam }.to_bytes();
        producer.begin_transaction().map_err(&failed)?;
        for Hanging { topic, partition, .. } in hanging {
            let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(topic, 0).partition(*partition as i32);
            if let Some(at_ms) = group.at_ms {
                record = record.timestamp(at_ms);
            }
            record = match &group.tail {
                // The same note once more: only the last one of a key counts.
                Some((_, key, value)) if *topic == names.meta => record.key(key).payload(value),
                // Nothing that was noted hangs beside what others have noted since.
                None if *topic == names.meta => continue,
                _ => record.payload(&seam[..]),
            };
            producer.send(record).map_err(|(error, _)| failed(error))?;
        }
        flush(producer, LIMIT).map_err(&failed)?;
        producer.commit_transaction(LIMIT).map_err(&failed)
    }

    fn abort(producer: &LogProducer, hanging: &[Hanging]) -> Result<(), LogError> {
        let Some(first) = hanging.first() else { return Ok(()) };
        tracing::warn!(
            topic = %first.topic, partition = first.partition, offset = first.from,
            "the broker has left a transaction without an end; it is aborted now, and what was in it is written again"
        );
        let rights = rights(hanging);
        let failed = ending(&rights, &first.topic);
        producer.begin_transaction().map_err(&failed)?;
        for Hanging { topic, partition, .. } in hanging {
            // Nobody ever reads it: it only brings the partition into the transaction.
            let record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(topic, 0).partition(*partition as i32);
            producer.send(record.payload(b"")).map_err(|(error, _)| failed(error))?;
        }
        flush(producer, LIMIT).map_err(&failed)?;
        producer.abort_transaction(LIMIT).map_err(&failed)
    }

    fn until_none_hangs(&self, all: &[(&str, u32)]) -> Result<(), LogError> {
        match self.hanging_for(all, LIMIT)?.first() {
            None => Ok(()),
            Some(Hanging { topic, partition, from, .. }) => Err(LogError::Refused {
                what: format!(
                    "a transaction in partition {partition} of the topic {topic} is ended by nobody, and it is not ours"
                ),
                remedy: format!(
                    "Abort it: kafka-transactions --bootstrap-server HOST:PORT abort --topic {topic} --partition {partition} --start-offset {from}; and let nobody else write to the topic"
                ),
            }),
        }
    }

    /// Partitions in which something is open for as long as `limit`.
    fn hanging_for(&self, all: &[(&str, u32)], limit: Duration) -> Result<Vec<Hanging>, LogError> {
        let began = Instant::now();
        loop {
            let hanging = self.hanging(all)?;
            if hanging.is_empty() || began.elapsed() > limit {
                return Ok(hanging);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn hanging(&self, all: &[(&str, u32)]) -> Result<Vec<Hanging>, LogError> {
        let mut hanging = Vec::new();
        for &(topic, partition) in all {
            // First the end, which may move on: what can be read then reaches it unless something is open.
            let (_, end) = bounds(&self.all, topic, partition)?;
            let (_, from) = bounds(&self.stable, topic, partition)?;
            if from < end {
                hanging.push(Hanging { topic: topic.to_owned(), partition, from, end });
            }
        }
        Ok(hanging)
    }
}

fn rights(hanging: &[Hanging]) -> Vec<Right<'_>> {
    hanging.iter().map(|hanging| Right::Topic("Write", &hanging.topic)).collect()
}

/// What failed, for whoever reads it.
fn ending<'a>(rights: &'a [Right<'a>], topic: &'a str) -> impl Fn(KafkaError) -> LogError + 'a {
    move |error| needing(rights, format!("ending a transaction in {topic}"), error)
}
