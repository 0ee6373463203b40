//! What is kept, and under which keys. Kinds and types are numbers on disk: never change one, never use one again.

use crate::{Key, KeyReader, KeyWriter, Prefix, Record};
use crossfade_event::{Backfill, ChunkId, ChunkPlan, Cut, Position, TableId, TableName, Visibility};
use serde::{Deserialize, Serialize};

macro_rules! kinds {
    ($($kind:literal $name:literal $key:ident => $value:ident;)*) => {$(
        impl Record for $value {
            const TYPE: u8 = $kind;
            const VERSION: u16 = 1;
        }
        impl Key for $key {
            type Value = $value;
            const KIND: u8 = $kind;
            const NAME: &'static str = $name;
            fn write(&self, out: &mut KeyWriter) {
                self.fields(out);
            }
            fn read(fields: &mut KeyReader<'_>) -> Option<Self> {
                Self::from_fields(fields)
            }
        }
    )*};
}

kinds! {
    1 "cursor" CursorKey => Cursor;
    2 "ingest-fold" IngestFoldKey => IngestFold;
    3 "table-fold" TableFoldKey => TableFold;
    4 "chunk" ChunkKey => ChunkDone;
    5 "checkpoint" CheckpointKey => Checkpoint;
    6 "journal-fold" JournalFoldKey => JournalFold;
    7 "quarantine" QuarantineKey => QuarantineRecord;
    8 "digest" DigestKey => Digest;
    9 "identity" IdentityKey => IdentityPin;
    10 "setting" SettingKey => Setting;
    11 "epoch" EpochKey => Epoch;
    12 "commits" CommitsKey => Commits;
    13 "fold-marks" FoldMarksKey => FoldMarks;
}

macro_rules! named_keys {
    ($($(#[$doc:meta])* $key:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $key(pub String);
        impl $key {
            /// The key for this name.
            pub fn new(name: impl Into<String>) -> Self {
                Self(name.into())
            }
            fn fields(&self, out: &mut KeyWriter) {
                out.text(&self.0);
            }
            fn from_fields(fields: &mut KeyReader<'_>) -> Option<Self> {
                fields.text().map(Self)
            }
        }
    )*};
}

named_keys! {
    /// A consumer's name.
    CursorKey;
    /// A checkpoint's name.
    CheckpointKey;
    /// What is pinned: `source`, `sink`, `log`.
    IdentityKey;
    /// A setting's name: `spec-hash`, `secret-id`.
    SettingKey;
}

macro_rules! single_keys {
    ($($(#[$doc:meta])* $vis:vis $key:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        $vis struct $key;
        impl $key {
            fn fields(&self, _: &mut KeyWriter) {}
            fn from_fields(_: &mut KeyReader<'_>) -> Option<Self> {
                Some(Self)
            }
        }
    )*};
}

single_keys! {
    /// The one fold of the log that ingest resumes from.
    pub IngestFoldKey;
    /// What belongs to the one fold of the log beside its last backfill.
    pub FoldMarksKey;
    /// The one fold of the journal.
    pub JournalFoldKey;
    /// The one epoch of this folder.
    pub EpochKey;
    /// How many commits the store has seen; written by the store itself.
    pub(crate) CommitsKey;
}

/// How far a named consumer has come. A cache of the sink's own word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Its place in the log.
    pub cut: Cut,
    /// The source position up to which it is exact.
    pub position: Option<Position>,
}

/// The log, folded up to a cut, as far as ingest needs it: with it a restart reads only what came after.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngestFold {
    /// Up to where the log is folded.
    pub upto: Cut,
    /// The backfill's number; zero before the first one.
    pub generation: u32,
    /// Whether it has ended.
    pub ended: bool,
    /// What was visible at its beginning.
    pub visible: Option<Visibility>,
    /// Its tables; each has a [`TableFold`] once its chunks are planned.
    pub tables: Vec<TableId>,
}

/// What belongs to [`IngestFold`] beside its last backfill; written with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoldMarks {
    /// The log's own number: the fold is of no other one.
    pub log: u64,
    /// All backfills, in order.
    pub backfills: Vec<MarkedBackfill>,
    /// What the copies of tables without a key could see.
    pub visible: Vec<(TableId, Visibility)>,
}

/// A backfill, and where it began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkedBackfill {
    /// What it copies.
    pub backfill: Backfill,
    /// Where in the source's history.
    pub position: Position,
    /// The place in the log after the entry with which it began.
    pub from: Cut,
}

/// One table of one backfill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableFoldKey {
    /// Which backfill.
    pub generation: u32,
    /// Which table.
    pub table: TableId,
}

impl TableFoldKey {
    fn fields(&self, out: &mut KeyWriter) {
        out.u32(self.generation).u32(self.table.0);
    }

    fn from_fields(fields: &mut KeyReader<'_>) -> Option<Self> {
        Some(Self { generation: fields.u32()?, table: TableId(fields.u32()?) })
    }

    /// All tables of a backfill.
    pub fn of_generation(generation: u32) -> Prefix<Self> {
        Prefix::starting(|out| {
            out.u32(generation);
        })
    }
}

/// A table's chunks as planned. Which of them are done stands under [`ChunkKey`], so that one finished chunk writes
/// one small value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableFold {
    /// The plan.
    pub chunks: Vec<ChunkPlan>,
    /// Whether `SnapshotEnded` is in the log.
    pub ended: bool,
}

/// One finished chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChunkKey {
    /// Which backfill.
    pub generation: u32,
    /// Which table.
    pub table: TableId,
    /// Which chunk.
    pub chunk: ChunkId,
}

impl ChunkKey {
    fn fields(&self, out: &mut KeyWriter) {
        out.u32(self.generation).u32(self.table.0).u32(self.chunk.0);
    }

    fn from_fields(fields: &mut KeyReader<'_>) -> Option<Self> {
        Some(Self { generation: fields.u32()?, table: TableId(fields.u32()?), chunk: ChunkId(fields.u32()?) })
    }

    /// All finished chunks of a backfill.
    pub fn of_generation(generation: u32) -> Prefix<Self> {
        Prefix::starting(|out| {
            out.u32(generation);
        })
    }

    /// All finished chunks of one table.
    pub fn of_table(generation: u32, table: TableId) -> Prefix<Self> {
        Prefix::starting(|out| {
            out.u32(generation).u32(table.0);
        })
    }
}

/// A chunk that is wholly in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkDone {
    /// How many rows it had.
    pub rows: u64,
}

/// A named place. The journal has it too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Its place in the log.
    pub cut: Cut,
    /// Its place in the source's history.
    pub position: Option<Position>,
    /// When it was named, in microseconds since 1970 by our clock; for people.
    pub at_us: i64,
}

/// The journal, folded up to a cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalFold {
    /// Up to where the journal is folded.
    pub upto: Cut,
    /// The fold, in the journal's own form (JSON).
    pub fold: Vec<u8>,
}

/// A change in quarantine, by its number in the sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct QuarantineKey(pub i64);

impl QuarantineKey {
    fn fields(&self, out: &mut KeyWriter) {
        out.i64(self.0);
    }

    fn from_fields(fields: &mut KeyReader<'_>) -> Option<Self> {
        fields.i64().map(Self)
    }
}

/// What the index says of a change in quarantine. The change itself is in the sink; here are no values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantineRecord {
    /// The entry's sequence in the log.
    pub offset: u64,
    /// The output's ordinal within the entry.
    pub ordinal: u32,
    /// The target's table.
    pub table: TableName,
    /// The hash of the row's key.
    pub key_hash: String,
    /// `rejected`, `held` or `child`.
    pub kind: String,
    /// Why, without values.
    pub reason: String,
    /// When, by the sink's clock, ISO 8601.
    pub at: String,
}

/// One bucket of one table's digest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DigestKey {
    /// Which side: `source` or `sink`.
    pub side: String,
    /// Which table.
    pub table: TableName,
    /// Which bucket.
    pub bucket: u32,
}

impl DigestKey {
    fn fields(&self, out: &mut KeyWriter) {
        out.text(&self.side).text(&self.table.schema).text(&self.table.name).u32(self.bucket);
    }

    fn from_fields(fields: &mut KeyReader<'_>) -> Option<Self> {
        let side = fields.text()?;
        let table = TableName::new(fields.text()?, fields.text()?);
        Some(Self { side, table, bucket: fields.u32()? })
    }

    /// All buckets of one side of a table.
    pub fn of_table(side: &str, table: &TableName) -> Prefix<Self> {
        Prefix::starting(|out| {
            out.text(side).text(&table.schema).text(&table.name);
        })
    }
}

/// A bucket's digest at a place in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// The place it speaks of.
    pub at: Cut,
    /// How many rows.
    pub rows: u64,
    /// The sum of the keyed row hashes, modulo 2^128.
    pub sum: u128,
}

/// What an end said of itself when it was first seen; anything else later is `Lost`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityPin {
    /// In its own words: system identifier, database, slot.
    pub identity: String,
    /// When, in microseconds since 1970 by our clock; for people.
    pub at_us: i64,
}

/// A setting; never a secret itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting(pub String);

/// The fence that every switch of authority raises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Epoch(pub u64);

/// How many commits the store has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Commits(pub(crate) u64);
