//! The sink's own topic, one partition, compacted: how far the sink has come, who writes, which topics it has made, and what
//! is in quarantine. Version 1.
//!
//! | key | value, as JSON in `{"format": 1, "says": …}` |
//! |---|---|
//! | `sink` | whose it is, and the topics, each with its id |
//! | `writer` | who writes now, and under which epoch |
//! | `progress` | how far the sink has come, and up to where that transaction has written |
//! | `held/<number>` | a change in quarantine; nothing when it has left |
//!
//! `progress` and what goes into quarantine are written in the same transaction as the records of the batch.

use crate::{
    client::{Clients, LogConsumer, bounds, scan},
    note::{self, FORMAT, Wrong, parse},
};
use crossfade_connector::{Failure, Progress};
use crossfade_event::TableSchema;
use crossfade_log::LogError;
use rdkafka::Message;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What one record says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Says {
    Sink(Birth),
    Writer(Owner),
    Progress(Standing),
    Held(Box<Held>),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Birth {
    pub(super) migration: String,
    /// In which form records are written.
    pub(super) form: String,
    pub(super) topics: BTreeMap<String, Made>,
}

/// A topic of the sink.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Made {
    /// The cluster's own id for it; none while it is about to be made.
    pub(super) id: Option<String>,
    pub(super) partitions: u32,
    /// Whether it was there before the sink: then a wipe leaves it.
    pub(super) was_there: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owner {
    /// Drawn when it began to write.
    pub(super) id: u64,
    pub(super) epoch: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Standing {
    pub(super) progress: Progress,
    /// The offset after the last record of that transaction, by topic and partition.
    pub(super) reaches: Vec<(String, u32, u64)>,
}

/// A change in quarantine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Held {
    pub(super) id: i64,
    /// The target's table, as it was then; the change's images are written under it unless the transforms refused it.
    pub(super) table: TableSchema,
    /// Every key that it touches, as its cells' bytes.
    pub(super) keys: Vec<Vec<u8>>,
    /// The transforms refused it: it can only be discarded.
    pub(super) refused: bool,
    pub(super) sequence: u64,
    pub(super) ordinal: u32,
    pub(super) op: crossfade_event::Op,
    pub(super) of_table: u32,
    pub(super) version: u32,
    pub(super) old: Option<Vec<u8>>,
    pub(super) new: Option<Vec<u8>>,
    pub(super) kind: String,
    pub(super) reason: String,
    pub(super) at: String,
}

/// Everything that the topic says.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) birth: Option<Birth>,
    pub(super) owner: Option<Owner>,
    pub(super) standing: Option<Standing>,
    pub(super) held: BTreeMap<i64, Held>,
}

impl Says {
    pub(super) fn key(&self) -> String {
        match self {
            Self::Sink(_) => "sink".to_owned(),
            Self::Writer(_) => "writer".to_owned(),
            Self::Progress(_) => "progress".to_owned(),
            Self::Held(held) => held_key(held.id),
        }
    }

    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, Failure> {
        note::to_bytes(self).map_err(|error| Failure::halt("noting how far the sink has come", error, "Report this"))
    }
}

pub(super) fn held_key(id: i64) -> String {
    format!("held/{id:019}")
}

/// Reads the whole topic: what is committed.
pub(super) fn read(clients: &Clients, consumer: &LogConsumer, topic: &str) -> Result<Notes, Failure> {
    let (low, high) = bounds(consumer, topic, 0).map_err(crate::source::topics::failure)?;
    let mut by_key: BTreeMap<Vec<u8>, (i64, Option<Vec<u8>>)> = BTreeMap::new();
    scan(consumer, topic, &[(0, low..high)], |message| {
        let key = message.key().unwrap_or_default().to_vec();
        by_key.insert(key, (message.offset(), message.payload().map(<[u8]>::to_vec)));
        Ok(false)
    })
    .map_err(crate::source::topics::failure)?;
    let mut notes = Notes::default();
    for (offset, value) in by_key.into_values() {
        let Some(value) = value else { continue };
        match parse(&value).map_err(|wrong| refused(clients, topic, offset, &wrong))? {
            Says::Sink(birth) => notes.birth = Some(birth),
            Says::Writer(owner) => notes.owner = Some(owner),
            Says::Progress(standing) => notes.standing = Some(standing),
            Says::Held(held) => drop(notes.held.insert(held.id, *held)),
        }
    }
    Ok(notes)
}

fn refused(clients: &Clients, topic: &str, offset: i64, wrong: &Wrong) -> Failure {
    let doing = format!("reading the topic {topic} on {}", clients.brokers());
    match wrong {
        Wrong::TooNew(found) => Failure::refused(
            doing,
            LogError::TooNew { file: topic.into(), found: *found, known: FORMAT },
            "Use the newer crossfade that wrote it",
        ),
        Wrong::Foreign => Failure::refused(
            doing,
            format!("it holds a record at offset {offset} that Crossfade did not write"),
            "Name another topic_prefix in [sink]",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossfade_connector::Stage;
    use crossfade_event::{Cut, Identity, Offset, Op, SchemaVersion, TableId, TableName};

    /// What version 1 wrote. It must be read for ever.
    const GOLDEN: &str = include_str!("../../tests/formats/sink-1.jsonl");

    fn every_kind() -> Vec<Says> {
        let table = TableSchema {
            id: TableId(3),
            version: SchemaVersion(1),
            name: TableName::new("public", "orders"),
            columns: Vec::new(),
            identity: Identity::Key,
            native_id: 0,
        };
        let made = Made { id: Some("rGnX3WYrQ2u6mXgqO1c3Pw".to_owned()), partitions: 4, was_there: false };
        let progress = Progress {
            cut: Cut(vec![Offset(7)]),
            stage: Stage::Streaming,
            generation: 1,
            stream_from: Cut(vec![Offset(2)]),
            sequence: None,
            position: None,
            schemas: Vec::new(),
        };
        vec![
            Says::Sink(Birth {
                migration: "shop".to_owned(),
                form: "debezium-json".to_owned(),
                topics: [("shop.public.orders".to_owned(), made)].into(),
            }),
            Says::Writer(Owner { id: 9, epoch: 2 }),
            Says::Progress(Standing { progress, reaches: vec![("shop.public.orders".to_owned(), 1, 12)] }),
            Says::Held(Box::new(Held {
                id: 1,
                table,
                keys: vec![vec![0, 1]],
                refused: false,
                sequence: 7,
                ordinal: 0,
                op: Op::Insert,
                of_table: 3,
                version: 1,
                old: None,
                new: Some(vec![0, 0]),
                kind: "rejected".to_owned(),
                reason: "n: NaN".to_owned(),
                at: "2026-01-01T00:00:00Z".to_owned(),
            })),
        ]
    }

    #[test]
    fn notes_of_version_1_are_read_and_written_as_ever() {
        let written: Vec<String> =
            every_kind().iter().map(|says| String::from_utf8(says.to_bytes().unwrap()).unwrap()).collect();
        assert_eq!(written, GOLDEN.lines().collect::<Vec<_>>());
        let read: Vec<Says> = GOLDEN.lines().map(|line| parse(line.as_bytes()).unwrap()).collect();
        assert_eq!(read, every_kind());
    }

    #[test]
    fn a_newer_or_foreign_note_is_refused() {
        assert!(matches!(parse::<Says>(b"{\"format\":2,\"says\":{\"more\":1}}"), Err(Wrong::TooNew(2))));
        assert!(matches!(parse::<Says>(b"hello"), Err(Wrong::Foreign)));
    }
}
