//! What workers have made, read beside the log by whoever delivers.
//!
//! `<prefix>.transformed` has, for each change and each block of rows in a partition of the topic of changes, one record in
//! the partition of the same number, in the same order: its value is the head of the record that it was made of, the log's
//! own number (`u64`, little-endian) and behind them what was made, which only whoever delivers understands. Behind each
//! transaction of a worker there is a **note** (key `note`): up to which round all was made, and where the worker goes on.
//!
//! What was made is only ever another form of what the log has. Where it is missing (the broker has dropped it, or the
//! worker began later), whoever delivers makes it himself; only what a worker has still to come to is waited for.

use super::{
    place::of_that_time,
    reader::{Woken, queue_of},
    served::Served,
    shared::{Shared, lock},
};
use crate::{
    client::{Listener, LogConsumer, Purpose, assignment, bounds, is_denied, is_passing, reading, scan},
    codec::{HEAD, Head},
    note::{self, Wrong, parse},
};
use bytes::Bytes;
use crossfade_event::{Offset, Partition, SchemaVersion, Sequence, TableId};
use crossfade_log::LogError;
use rdkafka::{
    Message,
    consumer::{Consumer, base_consumer::PartitionQueue},
    message::BorrowedMessage,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    sync::Arc,
    time::Duration,
};

/// The key of a note.
pub(super) const NOTE: &[u8] = b"note";

/// How long the log's number is that stands behind the head.
const ID: usize = 8;

/// How far before the end a note is looked for first: only the broker's own records stand behind the last one.
const LOOK_BACK: u64 = 16;

/// What a worker notes behind what it made: all up to this round is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// The log's own number.
    pub(super) log: u64,
    pub(super) round: u64,
    /// The timestamp of the round's records.
    pub(super) at_ms: i64,
    /// Where the worker goes on in its partition of the topic of changes.
    pub(super) own: Offset,
    /// And in the first one, which has what belongs to no row.
    pub(super) first: Offset,
    /// The shapes followed up to there.
    pub(super) followed: Vec<(TableId, SchemaVersion)>,
}

impl Note {
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, LogError> {
        note::to_bytes(self)
            .map_err(|error| LogError::Contract(format!("the note of a worker cannot be written: {error}")))
    }

    /// The last one of a partition.
    pub(super) fn last(consumer: &LogConsumer, log: &Shared, partition: Partition) -> Result<Option<Self>, LogError> {
        let topic = &log.names.transformed;
        let (low, end) = bounds(consumer, topic, partition.0)?;
        let (mut back, mut last) = (LOOK_BACK, None);
        loop {
            let from = end.saturating_sub(back).max(low);
            let range: Range<u64> = from..end;
            scan(consumer, topic, &[(partition.0 as i32, range)], |message| {
                if let Record::Note(note) = record(log, message)? {
                    last = Some(note);
                }
                Ok(false)
            })?;
            if last.is_some() || from == low {
                return Ok(last);
            }
            back = back.saturating_mul(16);
        }
    }
}

/// The value of a record of what was made.
pub(super) fn value(head: &Head, log: u64, made: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(HEAD + ID + made.len());
    value.extend_from_slice(&head.to_bytes());
    value.extend_from_slice(&log.to_le_bytes());
    value.extend_from_slice(made);
    value
}

/// A record of the topic.
enum Record {
    Made(Head, Bytes),
    Note(Note),
}

impl Record {
    /// Everything before it has been made, or never will be.
    fn place(&self) -> (u64, u32) {
        match self {
            Self::Made(head, _) => (head.round, head.place),
            Self::Note(note) => (note.round, u32::MAX),
        }
    }
}

fn record(log: &Shared, message: &BorrowedMessage<'_>) -> Result<Record, LogError> {
    let value = message.payload().unwrap_or_default();
    let (name, place) = (&log.names.transformed, message.offset());
    let partition = message.partition();
    let foreign = |what: &str| LogError::Refused {
        what: format!("the topic {name} holds a record (partition {partition}, offset {place}) {what}"),
        remedy: "Name another topic_prefix, and let nobody else write to the topics".to_owned(),
    };
    const NOT_OURS: &str = "that Crossfade did not write";
    let (id, record) = if message.key() == Some(NOTE) {
        let note: Note = parse(value).map_err(|wrong| match wrong {
            Wrong::TooNew(found) => LogError::TooNew { file: name.into(), found, known: note::FORMAT },
            Wrong::Foreign => foreign(NOT_OURS),
        })?;
        (note.log, Record::Note(note))
    } else {
        let head = Head::parse(value).map_err(|_| foreign(NOT_OURS))?;
        let id = value.get(HEAD..).and_then(<[u8]>::first_chunk::<ID>).ok_or_else(|| foreign(NOT_OURS))?;
        let made = value.get(HEAD + ID..).unwrap_or_default();
        (u64::from_le_bytes(*id), Record::Made(head, Bytes::copy_from_slice(made)))
    };
    if id != log.id {
        return Err(foreign("that was made of another log"));
    }
    Ok(record)
}

/// A change, or rows, of which it is sought what was made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sought {
    pub(super) partition: Partition,
    pub(super) head: Head,
}

/// Reads the topic beside the reader of the log.
pub(super) struct Made {
    consumer: Arc<Served>,
    parts: Vec<Part>,
}

struct Part {
    queue: PartitionQueue<Listener>,
    /// The next record, where it belongs to what comes later.
    ahead: Option<Record>,
    /// What was found of the round sought, by the place in it; nothing where none ever comes.
    round: u64,
    found: BTreeMap<u32, Option<Bytes>>,
}

impl Made {
    /// From the first records of that time on: what was made bears the timestamp of what it was made of.
    /// Of all partitions, or of one.
    pub(super) fn begin(
        log: &Shared,
        at_ms: i64,
        woken: &Arc<Woken>,
        only: Option<Partition>,
    ) -> Result<Self, LogError> {
        let topic = &log.names.transformed;
        let failed = |error| reading(topic, error);
        let mut places = BTreeMap::new();
        {
            let asking = lock(&log.asking);
            // First the ends: what is not there at its time yet comes behind them.
            let is_read = |partition: &u32| only.is_none_or(|only| only.0 == *partition);
            for partition in (0..log.partitions()).filter(is_read) {
                places.insert(partition as i32, bounds(&asking, topic, partition)?.1);
            }
            let partitions: Vec<i32> = places.keys().copied().collect();
            places.extend(of_that_time(&asking, topic, partitions.into_iter(), at_ms)?);
        }
        let consumer = log.served(log.clients.consumer(&log.names.readers, false, Some(Purpose::Made))?);
        let mut parts = Vec::new();
        for partition in 0..log.partitions() {
            let queue = queue_of(&consumer, topic, partition, woken)?;
            parts.push(Part { queue, ahead: None, round: 0, found: BTreeMap::new() });
        }
        consumer.assign(&assignment(topic, places).map_err(failed)?).map_err(failed)?;
        Ok(Self { consumer, parts })
    }

    /// Whether all of this, which is of one round, was made or never will be; nothing where it must be read anew.
    pub(super) fn has(&mut self, log: &Shared, sought: &[Sought]) -> Result<Option<bool>, LogError> {
        let mut heard = self.consumer.serve();
        match heard.error() {
            Some(error) if is_denied(&error) => {
                return Err(reading(&log.names.transformed, error));
            }
            // The broker has dropped what was to be read next.
            Some(_) => return Ok(None),
            None if heard.is_astray() => return Ok(None),
            None => {}
        }
        let mut all = true;
        for Sought { partition, head } in sought {
            let Some(part) = self.parts.get_mut(partition.0 as usize) else { continue };
            if part.round != head.round {
                part.round = head.round;
                part.found.clear();
            }
            match part.seek(log, head)? {
                Some(found) => all &= found,
                None => return Ok(None),
            }
        }
        Ok(Some(all))
    }

    /// What was made of this.
    pub(super) fn take(&mut self, sought: &[Sought]) -> HashMap<Sequence, Bytes> {
        let mut made = HashMap::with_capacity(sought.len());
        for Sought { partition, head } in sought {
            let found = self.parts.get_mut(partition.0 as usize).and_then(|part| part.found.remove(&head.place));
            if let Some(bytes) = found.flatten() {
                made.insert(head.sequence(), bytes);
            }
        }
        made
    }
}

impl Part {
    /// Whether what was made of one record is there, or never will be. What is sought comes in the order of the log.
    /// Nothing where it must be read anew: the broker has dropped what was to be read next.
    fn seek(&mut self, log: &Shared, head: &Head) -> Result<Option<bool>, LogError> {
        while !self.found.contains_key(&head.place) {
            let next = match self.ahead.take() {
                Some(next) => next,
                None => match self.queue.poll(Duration::ZERO) {
                    Some(Ok(message)) => record(log, &message)?,
                    Some(Err(error)) if is_denied(&error) => {
                        return Err(reading(&log.names.transformed, error));
                    }
                    Some(Err(error)) if !is_passing(&error) => return Ok(None),
                    Some(Err(_)) | None => return Ok(Some(false)),
                },
            };
            match next.place().cmp(&(head.round, head.place)) {
                std::cmp::Ordering::Less => {}
                std::cmp::Ordering::Equal => {
                    let made = match next {
                        Record::Made(_, made) => Some(made),
                        Record::Note(_) => None,
                    };
                    self.found.insert(head.place, made);
                }
                std::cmp::Ordering::Greater => {
                    self.ahead = Some(next);
                    self.found.insert(head.place, None);
                }
            }
        }
        Ok(Some(true))
    }
}
