//! Where changes come from.

use crate::Failure;
use crossfade_event::{Batch, ChunkId, ChunkPlan, Durable, Mark, Position, TableId, TableSchema, Visibility};
use std::{collections::BTreeSet, future::Future, sync::Arc};

/// How far one table's copy has come, folded from the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableSnapshot {
    /// The chunks as planned; empty until `SnapshotBegan` is in the log.
    pub chunks: Vec<ChunkPlan>,
    /// Those that are wholly in the log.
    pub done: BTreeSet<ChunkId>,
    /// Whether `SnapshotEnded` is in the log.
    pub ended: bool,
}

/// The backfill that is under way, or the last one; folded from the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SnapshotState {
    /// Its number; zero before the first one.
    pub generation: u32,
    /// Whether `BackfillEnded` is in the log.
    pub ended: bool,
    /// What was visible at its beginning.
    pub visible: Option<Visibility>,
    /// Its tables.
    pub tables: Vec<(TableId, TableSnapshot)>,
}

/// Where to go on: all of it is read from the log, there is no second bookkeeping.
#[derive(Debug, Clone, Default)]
pub struct Resume {
    /// The last position that is durably in the log; `None` for an empty log.
    pub position: Option<Position>,
    /// The latest schema of every table in the log.
    pub schemas: Vec<Arc<TableSchema>>,
    /// The backfill under way.
    pub snapshot: SnapshotState,
    /// The source's last mark in the log, where it wants one back ([`Source::marks`]).
    pub mark: Option<Mark>,
}

/// What a source says of its own health; shown by `status`.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct SourceHealth {
    /// Bytes of the source's log that it keeps for us (PostgreSQL: WAL behind the slot).
    pub retained_bytes: Option<u64>,
    /// In the source's own words (PostgreSQL: the slot's `wal_status`).
    pub status: Option<String>,
    /// The source's current end of history.
    pub current: Option<Position>,
    /// Tables that match the spec's patterns but are not captured; `resume --add` takes them in.
    pub uncaptured_tables: Vec<String>,
}

/// Reads a foreign system's rows and changes. One at a time per migration.
///
/// **Order**: changes come in commit order; a transaction larger than a batch comes in parts (`Batch::whole` false)
/// with nothing of another transaction in between. Rows of a backfill may come between any two transactions.
/// **Completeness**: after a restart the source resumes just after `Resume::position`; a transaction of which the log
/// holds only a part comes again as a whole. Chunks not in `SnapshotState::done` are read again.
pub trait Source: Send {
    /// Connects, checks that the source is still the same one, and begins where `resume` says. With an empty log it
    /// begins with a backfill: the first batch holds `SchemaSeen` for every table and `BackfillBegan`.
    ///
    /// # Errors
    /// `Lost` when the history after `resume.position` cannot be had or is another's.
    fn open(&mut self, resume: Resume) -> impl Future<Output = Result<(), Failure>> + Send;

    /// The next batch. Waits while there is none; `None` only when the source has a natural end. Safe to cancel: a
    /// batch that was not returned comes again.
    ///
    /// # Errors
    /// See [`Failure`]; after a transient one, [`Source::open`] is called again.
    fn next(&mut self) -> impl Future<Output = Result<Option<Batch>, Failure>> + Send;

    /// Everything up to `durable` is in our log: the source may forget it. Returns at once; the word travels on the
    /// source's own task.
    ///
    /// # Errors
    /// When that task has ended.
    fn confirm(&mut self, durable: Durable) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Asks the source how it is.
    ///
    /// # Errors
    /// When it cannot be asked.
    fn health(&mut self) -> impl Future<Output = Result<SourceHealth, Failure>> + Send;

    /// The prefix of marks of which the source wants the last one back when it is opened again. Each batch that ends a
    /// transaction must hold one then, at its end: what is not at the log's end is not looked for.
    fn marks(&self) -> Option<&'static str> {
        None
    }
}
