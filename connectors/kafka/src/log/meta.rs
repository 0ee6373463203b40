//! The compacted topic: what a log must never forget, whatever is dropped from the other one. Version 1.
//!
//! | key | value, as JSON in `{"format": 1, "says": …}` |
//! |---|---|
//! | `log` | how it was made: its own number, the id of the topic of entries, how many partitions |
//! | `writer` | who writes now |
//! | `tail` | the last whole round, the cut after it, the source's position, abandoned rounds |
//! | `start` | the cut below which entries were dropped on demand |
//! | `schema/<table>/<version>` | a schema |
//! | `hold/<name>` | how far a consumer has come; nothing when it was released |
//! | `head` | what whoever writes says of the migration, in its own words, for those that deliver elsewhere |
//! | `deliver` | who delivers now, where that is a process of its own |
//! | `lead` | who has the lead of several that deliver |
//! | `share/<partition>` | who applies a partition of a stream that is shared, and how far; nothing where nobody does |
//! | `process/<id>` | a process that works on the migration, as it says itself; nothing when it has ended |
//!
//! `tail` and the schemas are written in the same transaction as the entries that they belong to, so the two topics
//! cannot disagree. The position is in the marks too; the one here is for a topic whose entries have all expired.

use super::{
    processes::{self, Process},
    topics::Names,
};
use crate::{
    client::{LogConsumer, bounds, scan},
    note::{self, FORMAT, Wrong, parse},
};
use crossfade_event::{Cut, Offset, Position, TableSchema};
use crossfade_log::LogError;
use rdkafka::{Message, message::BorrowedMessage};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};

/// What one record says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Says {
    Log(Birth),
    Writer(Writer),
    Tail(LastRound),
    Start(Cut),
    Schema(Arc<TableSchema>),
    Hold(Cut),
    Head(String),
    Deliver(Writer),
    Lead(Writer),
    Share(Applies),
    Process(Process),
}

/// Who applies a partition of a stream that several deliver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Applies {
    /// For people.
    pub(super) who: String,
    pub(super) pid: u32,
    /// The first offset that is not in the sink.
    pub(super) next: Offset,
    /// When it said so, in milliseconds since 1970.
    pub(super) at_ms: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Birth {
    pub(super) id: u64,
    pub(super) changes: String,
    pub(super) partitions: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Writer {
    /// Drawn when it opened the log.
    pub(super) id: u64,
    /// For people.
    pub(super) who: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LastRound {
    /// Zero for none.
    pub(super) round: u64,
    pub(super) cut: Cut,
    pub(super) position: Option<Position>,
    /// The timestamp of its records, in milliseconds since 1970.
    pub(super) at_ms: i64,
    /// Rounds that hold an unfinished head, from the first to the last of each; the oldest first.
    pub(super) abandoned: Vec<(u64, u64)>,
}

/// Everything that the topic says.
#[derive(Debug, Default)]
pub(super) struct Meta {
    pub(super) birth: Option<Birth>,
    pub(super) writer: Option<Writer>,
    pub(super) tail: Option<LastRound>,
    pub(super) start: Option<Cut>,
    pub(super) schemas: Vec<Arc<TableSchema>>,
    pub(super) holds: BTreeMap<String, Cut>,
    pub(super) head: Option<String>,
    pub(super) lead: Option<Writer>,
    pub(super) shares: BTreeMap<u32, Applies>,
    pub(super) processes: BTreeMap<u64, Process>,
}

pub(super) fn share_key(partition: u32) -> String {
    format!("{SHARE}{partition}")
}

/// The partition whose note it is.
pub(super) fn share_of(key: &str) -> Option<u32> {
    key.strip_prefix(SHARE)?.parse().ok()
}

const SHARE: &str = "share/";

pub(super) fn hold_key(consumer: &str) -> String {
    format!("hold/{consumer}")
}

impl Says {
    pub(super) fn key(&self) -> String {
        match self {
            Self::Log(_) => "log".to_owned(),
            Self::Writer(_) => "writer".to_owned(),
            Self::Tail(_) => "tail".to_owned(),
            Self::Start(_) => "start".to_owned(),
            Self::Schema(schema) => format!("schema/{}/{}", schema.id.0, schema.version.0),
            Self::Hold(_) => "hold/".to_owned(),
            Self::Head(_) => "head".to_owned(),
            Self::Deliver(_) => "deliver".to_owned(),
            Self::Lead(_) => "lead".to_owned(),
            Self::Share(_) => SHARE.to_owned(),
            Self::Process(process) => processes::key(process.id),
        }
    }

    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, LogError> {
        note::to_bytes(self)
            .map_err(|error| LogError::Contract(format!("a note of the log cannot be written: {error}")))
    }
}

/// The notes by their keys, as far as the topic has been read.
#[derive(Debug, Default)]
pub(super) struct Notes {
    by_key: BTreeMap<String, (i64, Option<Vec<u8>>)>,
    /// After the last note.
    next: u64,
    /// Where the topic ended when it was read last: the broker's own records have offsets too.
    read_to: u64,
}

impl Notes {
    /// The offset after the last note that was taken.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Takes a note.
    pub(super) fn take(&mut self, message: &BorrowedMessage<'_>) {
        let key = String::from_utf8_lossy(message.key().unwrap_or_default()).into_owned();
        self.by_key.insert(key, (message.offset(), message.payload().map(<[u8]>::to_vec)));
        self.next = message.offset().unsigned_abs() + 1;
    }

    /// Whether all notes below `end` have been read.
    pub(super) fn covers(&self, end: u64) -> bool {
        self.read_to >= end
    }
}

/// Reads the whole topic.
pub(super) fn read(consumer: &LogConsumer, names: &Names) -> Result<Meta, LogError> {
    read_on(consumer, names, &mut Notes::default())
}

/// Reads what has come since `notes`.
pub(super) fn read_on(consumer: &LogConsumer, names: &Names, notes: &mut Notes) -> Result<Meta, LogError> {
    let (low, end) = bounds(consumer, &names.meta, 0)?;
    scan(consumer, &names.meta, &[(0, low.max(notes.next)..end)], |message| {
        notes.take(message);
        Ok(false)
    })?;
    notes.read_to = end;
    let mut meta = Meta::default();
    for (key, (offset, value)) in &notes.by_key {
        let (offset, Some(value)) = (*offset, value) else { continue };
        let says = parse(value).map_err(|what| refused(names, offset, what))?;
        if let (Says::Hold(cut), Some(name)) = (&says, key.strip_prefix("hold/")) {
            meta.holds.insert(name.to_owned(), cut.clone());
            continue;
        }
        match says {
            Says::Log(birth) => meta.birth = Some(birth),
            Says::Writer(writer) => meta.writer = Some(writer),
            Says::Tail(tail) => meta.tail = Some(tail),
            Says::Start(cut) => meta.start = Some(cut),
            Says::Schema(schema) => meta.schemas.push(schema),
            Says::Head(head) => meta.head = Some(head),
            Says::Process(process) => {
                meta.processes.insert(process.id, process);
            }
            // Its place in the topic says what matters.
            Says::Deliver(_) => {}
            Says::Lead(lead) => meta.lead = Some(lead),
            Says::Share(applies) => {
                let partition = share_of(key).ok_or_else(|| refused(names, offset, Wrong::Foreign))?;
                meta.shares.insert(partition, applies);
            }
            Says::Hold(_) => return Err(refused(names, offset, Wrong::Foreign)),
        }
    }
    Ok(meta)
}

/// What one record says, and of what; nothing where it takes something back.
pub(super) fn note(names: &Names, message: &BorrowedMessage<'_>) -> Result<(String, Option<Says>), LogError> {
    let key = String::from_utf8_lossy(message.key().unwrap_or_default()).into_owned();
    let says = message.payload().map(|value| parse(value).map_err(|what| refused(names, message.offset(), what)));
    Ok((key, says.transpose()?))
}

fn refused(names: &Names, offset: i64, wrong: Wrong) -> LogError {
    match wrong {
        Wrong::TooNew(found) => LogError::TooNew { file: names.meta.clone().into(), found, known: FORMAT },
        Wrong::Foreign => LogError::Refused {
            what: format!("the topic {} holds a record at offset {offset} that Crossfade did not write", names.meta),
            remedy: "Name another topic_prefix".to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossfade_event::SourceId;

    /// What version 1 wrote. It must be read for ever.
    const GOLDEN: &str = include_str!("../../tests/formats/meta-1.jsonl");

    fn every_kind() -> Vec<Says> {
        let cut = Cut(vec![Offset(7), Offset(0)]);
        let position = Position { source: SourceId(u64::MAX), timeline: 2, commit: 1 << 60, ordinal: u32::MAX };
        vec![
            Says::Log(Birth { id: 9, changes: "rGnX3WYrQ2u6mXgqO1c3Pw".to_owned(), partitions: 2 }),
            Says::Writer(Writer { id: 3, who: "process 1 on host".to_owned() }),
            Says::Tail(LastRound {
                round: 12,
                cut: cut.clone(),
                position: Some(position),
                at_ms: 1_700_000_000_000,
                abandoned: vec![(3, 5)],
            }),
            Says::Start(cut.clone()),
            Says::Schema(crossfade_testkit::log_suite::schema(1, 2)),
            Says::Hold(cut),
            Says::Head("{\"migration\":\"shop\"}".to_owned()),
            Says::Deliver(Writer { id: 4, who: "process 2 on host".to_owned() }),
            Says::Lead(Writer { id: 5, who: "process 2 on host".to_owned() }),
            Says::Share(Applies {
                who: "process 2 on host".to_owned(),
                pid: 2,
                next: Offset(7),
                at_ms: 1_700_000_000_000,
            }),
            Says::Process(Process {
                id: 5,
                who: "process 3 on host".to_owned(),
                role: "transform".to_owned(),
                at_ms: 1_700_000_000_000,
                partitions: BTreeMap::from([(1, 7)]),
                behind: 7,
                waiting: Some("brokers".to_owned()),
            }),
        ]
    }

    #[test]
    fn notes_of_version_1_are_read_and_written_as_ever() {
        let lines: Vec<&str> = GOLDEN.lines().collect();
        let written: Vec<String> =
            every_kind().iter().map(|says| String::from_utf8(says.to_bytes().unwrap()).unwrap()).collect();
        assert_eq!(written, lines);
        let read: Vec<Says> = lines.iter().filter_map(|line| parse(line.as_bytes()).ok()).collect();
        assert_eq!(read, every_kind());
    }

    #[test]
    fn a_newer_or_foreign_note_is_refused() {
        assert!(matches!(parse::<Says>(b"{\"format\":2,\"says\":{\"more\":1}}"), Err(Wrong::TooNew(2))));
        assert!(matches!(parse::<Says>(b"hello"), Err(Wrong::Foreign)));
        assert!(matches!(parse::<Says>(b"{\"format\":1,\"says\":{\"more\":1}}"), Err(Wrong::Foreign)));
    }
}
