//! Where changes go.

use crate::Failure;
use bytes::Bytes;
use crossfade_event::{
    Change, Cut, Key, Position, Row, SchemaVersion, Sequence, TableId, TableName, TableSchema, Transaction, Version,
    catalog::{Catalog, TableDef},
};
use serde::{Deserialize, Serialize};
use std::{future::Future, sync::Arc};

/// How a table is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteMode {
    /// A table of its own in the target.
    Table,
    /// Columns beside the old ones, in a table that exists and has its own writers: only `columns` are written, rows
    /// are never inserted or deleted by us. The rest of the schema is the row's key.
    Columns {
        /// Indexes (in the target's schema) of the columns we write.
        columns: Vec<usize>,
    },
    /// A mapping table: rows are inserted unless their key is there already.
    InsertOnce,
    /// Records that tell a row in two key versions. The schema's first columns, called `v1.NAME`, are the row as the
    /// source has it; those from `second` on, called `v2.NAME`, are the row as the plan makes it. The schema's key is both
    /// keys, one after the other. Only for sinks whose rows are records.
    Dual {
        /// Where the second version's columns begin.
        second: usize,
    },
}

/// One table of the target.
#[derive(Debug, Clone)]
pub struct TargetTable {
    /// Its shape. `schema.id` is the number by which a [`Write`] names it; `schema.identity` says how rows are found.
    /// Generated columns are left out.
    pub schema: Arc<TableSchema>,
    /// How to make it, in the sink's own dialect where types are concerned.
    pub def: TableDef,
    /// How it is written.
    pub mode: WriteMode,
}

/// Everything a sink must make and know before rows come.
#[derive(Debug, Clone)]
pub struct Target {
    /// The migration's name.
    pub migration: String,
    /// The fence: a sink refuses a lower epoch than the one it has on record.
    pub epoch: u64,
    /// The tables, parents before children where the references allow it.
    pub tables: Vec<TargetTable>,
    /// Types, sequences and extensions that must exist first; its `tables` are empty.
    pub support: Catalog,
    /// Whether tables with rows of somebody else's may be written (with undo records); refused otherwise.
    pub into_existing: bool,
}

/// The statements by which a sink makes a target from nothing, in the order in which it runs them. What is there already
/// it leaves as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TargetSql {
    /// The sink's own tables, then types, sequences, tables and columns: [`Sink::prepare`].
    pub before_load: Vec<String>,
    /// Keys, indexes, references, and what sequences go on from: [`Sink::finish_load`].
    pub after_load: Vec<String>,
}

/// Says what [`Sink::prepare`] and [`Sink::finish_load`] will run, without running it and without a connection.
pub trait Ddl {
    /// The statements for a target of which nothing is there yet; they are the very ones that the sink runs.
    ///
    /// # Errors
    /// `Misconfigured` for a name that cannot stand in SQL.
    fn ddl(&self, target: &Target) -> Result<TargetSql, Failure>;
}

/// Where a delivery stands: before, in, or after a backfill's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// A backfill's rows are being applied; the stream waits.
    Loading,
    /// The stream is being applied.
    Streaming,
}

/// How far a sink has come; kept in the sink, in the same transaction as the rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The place in the log up to which everything is in the sink (of a backfill's rows while loading).
    pub cut: Cut,
    /// What the cut speaks of.
    pub stage: Stage,
    /// The backfill that is being loaded, or was loaded last.
    pub generation: u32,
    /// Where the stream goes on once the backfill is loaded.
    pub stream_from: Cut,
    /// While streaming: all of the stream that is numbered lower is in. `None` right after a load, and in what was written
    /// when logs had one partition.
    #[serde(default)]
    pub sequence: Option<Sequence>,
    /// The source position up to which the sink is exact; `None` before the first backfill is in.
    pub position: Option<Position>,
    /// Which schema of each source table the target's shape follows (table number, schema version), sorted.
    pub schemas: Vec<(TableId, SchemaVersion)>,
}

/// One thing to write. Rows and changes are in the target's shape already.
#[derive(Debug, Clone)]
pub enum Write {
    /// Rows of a backfill, one after another as in [`crossfade_event::Rows`]. Keys may come twice (a row that moved
    /// while it was copied): one of the two is enough, the stream sets it right.
    Rows {
        /// Which of the target's tables.
        table: TableId,
        /// The version of the first row; the others follow by ordinal.
        at: Version,
        /// How many.
        count: u32,
        /// The rows.
        rows: Bytes,
    },
    /// One change, in source order. An update of a row that is not there writes it, if the image is whole.
    Change {
        /// Its version.
        at: Version,
        /// The change; `change.table` is the target's table.
        change: Change,
    },
    /// The tables were emptied at this point.
    Truncate {
        /// Its version.
        at: Version,
        /// Which of the target's tables.
        tables: Vec<TableId>,
    },
    /// The transforms refused this change: it goes straight to quarantine, and its key is held.
    Reject(Rejection),
    /// A source transaction begins here; told only to a sink that asks for it ([`Sink::wants_transactions`]).
    Began {
        /// Where in the source's history.
        position: Position,
        /// Which one, and when it was committed.
        transaction: Transaction,
    },
    /// A source transaction ends here; what follows belongs to the next one.
    Boundary,
}

/// A change that cannot be applied.
#[derive(Debug, Clone)]
pub struct Rejection {
    /// Which entry.
    pub at: Version,
    /// The target's table.
    pub table: TableId,
    /// The row's key in the target, where it has one.
    pub key: Option<Key>,
    /// The change as it would have been written, or as it came where the transforms refused it.
    pub change: Change,
    /// Why, without values.
    pub reason: String,
}

/// Some of what is to be applied in one sink transaction. A source transaction larger than memory comes in several
/// deliveries: only the last one `commits`.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// In source order.
    pub writes: Vec<Write>,
    /// Where the sink stands once this is committed.
    pub upto: Progress,
    /// Commit now, with the progress, the rejections and the undo records in the same transaction.
    pub commits: bool,
}

/// What became of a delivery.
#[derive(Debug, Clone, Default)]
pub struct Applied {
    /// Changes and rows that are in.
    pub applied: u64,
    /// Refused for good, and on record in the sink.
    pub rejected: Vec<Rejection>,
    /// Not tried, for an earlier change of their key (or their parent) is in quarantine; on record in the sink.
    pub held: u64,
}

/// How a delivery treats what the sink already has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// The normal case: the sink's position says what is new.
    Forward,
    /// A healing replay: final images are written whatever the sink holds, its position stays.
    Heal,
}

/// Writes to a foreign system. One writer at a time: `Target::epoch` fences the others, to whom `prepare` and `apply`
/// answer `Refused`.
///
/// **Durability**: `apply` with `commits` returns once the rows and the progress are in, in one transaction (the
/// commit may be asynchronous on the server: then both are lost together, and the log has them still).
/// **Repetition** changes nothing: after any failure the caller reads `progress` and goes on from there.
pub trait Sink: Send {
    /// Connects, and makes everything of `target` that does not exist: additive, idempotent. Holds back secondary
    /// indexes and foreign keys until [`Sink::finish_load`].
    ///
    /// # Errors
    /// `Refused` when a target table holds rows that are not ours; nothing has been changed then.
    fn prepare(&mut self, target: &Target) -> impl Future<Output = Result<(), Failure>> + Send;

    /// A table's shape changed in the source: follow it (columns added with their constant default, dropped, renamed;
    /// told apart by `Column::native_id`). Idempotent. Part of the open sink transaction where the system allows it.
    ///
    /// # Errors
    /// `Halt` for a change that cannot be followed.
    fn alter(&mut self, before: &TargetTable, after: &TargetTable) -> impl Future<Output = Result<(), Failure>> + Send;

    /// How far it has come, by its own word.
    ///
    /// # Errors
    /// See [`Failure`].
    fn progress(&mut self) -> impl Future<Output = Result<Option<Progress>, Failure>> + Send;

    /// Applies in order. Dropped without `commits`, or cancelled: nothing of the open transaction stays.
    ///
    /// # Errors
    /// See [`Failure`]; nothing of the open transaction has been applied then. A change that cannot be applied is no
    /// failure: it is `Applied::rejected`.
    fn apply(&mut self, delivery: Delivery, guard: Guard) -> impl Future<Output = Result<Applied, Failure>> + Send;

    /// A backfill is in: makes the indexes, the foreign keys (`NOT VALID`, then validated), and sets the sequences.
    /// Idempotent.
    ///
    /// # Errors
    /// See [`Failure`].
    fn finish_load(&mut self) -> impl Future<Output = Result<(), Failure>> + Send;

    /// The image that the sink holds under `key`, in the target's shape. For resolving partial images and for tests.
    ///
    /// # Errors
    /// See [`Failure`].
    fn read_row(&mut self, table: TableId, key: &Key) -> impl Future<Output = Result<Option<Row>, Failure>> + Send;

    /// Whether it wants to be told of each source transaction as it begins ([`Write::Began`]).
    fn wants_transactions(&self) -> bool {
        false
    }
}

/// The kind of a change in quarantine that the target refused because another row has its key, or another value that must be
/// unique there: two rows of the source have become one.
pub const COLLISION: &str = "collision";

/// A change on record in quarantine.
#[derive(Debug, Clone, Serialize)]
pub struct QuarantinedChange {
    /// Its number in the quarantine, in the order of arrival.
    pub id: i64,
    /// The entry's sequence in the log.
    pub sequence: u64,
    /// The output's ordinal within the entry.
    pub ordinal: u32,
    /// The target's table.
    pub table: TableName,
    /// The hash of the key: names a row without showing it.
    pub key_hash: String,
    /// `rejected` (it failed itself), [`COLLISION`] (it did, for another row has its key), `held` (an earlier one of its key
    /// did) or `child` (its parent did).
    pub kind: String,
    /// Why.
    pub reason: String,
    /// When it was put there, by the sink's clock, ISO 8601.
    pub at: String,
}

/// Which quarantined changes.
#[derive(Debug, Clone, Default)]
pub struct QuarantineFilter {
    /// Only this table.
    pub table: Option<TableName>,
    /// Only these numbers (with all changes of their keys, for retry and discard).
    pub ids: Vec<i64>,
}

/// What retry or discard did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct QuarantineOutcome {
    /// Changes that are now applied.
    pub applied: u64,
    /// Changes that were dropped for good.
    pub discarded: u64,
    /// Changes that are still there.
    pub remaining: u64,
}

/// Looks into and empties a sink's quarantine. Works on a prepared sink.
pub trait Quarantine: Send {
    /// What is there, oldest first.
    ///
    /// # Errors
    /// See [`Failure`].
    fn list(
        &mut self,
        filter: &QuarantineFilter,
    ) -> impl Future<Output = Result<Vec<QuarantinedChange>, Failure>> + Send;

    /// How many of them are collisions ([`COLLISION`]), as far as that is committed.
    ///
    /// # Errors
    /// See [`Failure`].
    fn collisions(&mut self) -> impl Future<Output = Result<u64, Failure>> + Send;

    /// One change with its table's schema and images; for `quarantine show`, which prints values only when asked to.
    ///
    /// # Errors
    /// See [`Failure`].
    fn show(&mut self, id: i64) -> impl Future<Output = Result<Option<(QuarantinedChange, Change)>, Failure>> + Send;

    /// Applies each key's held changes in order; a key whose first change fails again stays.
    ///
    /// # Errors
    /// See [`Failure`].
    fn retry(&mut self, filter: &QuarantineFilter) -> impl Future<Output = Result<QuarantineOutcome, Failure>> + Send;

    /// Drops them; the keys are free again.
    ///
    /// # Errors
    /// See [`Failure`].
    fn discard(&mut self, filter: &QuarantineFilter)
    -> impl Future<Output = Result<QuarantineOutcome, Failure>> + Send;
}

/// One old key and its new one, as the mapping table has them (text forms).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MappingEntry {
    /// The source's table.
    pub table_name: String,
    /// The old key; composite ones as a row form `(1,2)`.
    pub old_id: String,
    /// The new key.
    pub new_id: String,
    /// When, ISO 8601.
    pub migrated_at: String,
}

/// Reads the mapping table.
pub trait StoredMapping: Send {
    /// Entries in the order of (table, old key), a page after `after`, at most `limit`.
    ///
    /// # Errors
    /// See [`Failure`].
    fn mapping_page(
        &mut self,
        table: Option<&str>,
        after: Option<&MappingEntry>,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<MappingEntry>, Failure>> + Send;

    /// Entries whose old or new key is `id`.
    ///
    /// # Errors
    /// See [`Failure`].
    fn mapping_lookup(&mut self, id: &str) -> impl Future<Output = Result<Vec<MappingEntry>, Failure>> + Send;
}

/// What undo or wipe did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct UndoReport {
    /// Rows put back to what they were.
    pub restored: u64,
    /// Rows of ours that were removed.
    pub removed: u64,
    /// Rows left alone, for somebody else changed them since: table and key hash.
    pub left_alone: Vec<(TableName, String)>,
    /// Objects (tables, columns, types) that were dropped.
    pub dropped: Vec<String>,
}

/// Takes back what a migration wrote. Both can be killed and run again.
pub trait Rollback: Send {
    /// Puts back what we overwrote or deleted, from the undo records; leaves alone what somebody else changed since.
    ///
    /// # Errors
    /// See [`Failure`].
    fn undo(&mut self, target: &Target) -> impl Future<Output = Result<UndoReport, Failure>> + Send;

    /// Drops what we made.
    ///
    /// # Errors
    /// See [`Failure`].
    fn wipe(&mut self, target: &Target) -> impl Future<Output = Result<UndoReport, Failure>> + Send;
}
