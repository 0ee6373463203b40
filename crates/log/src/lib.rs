//! The event log: what cuts the journey in two. Ingest appends, deliver reads; they share nothing else.
//!
//! One contract, [`EventLog`], partitioned from the first day; providers are [`embedded`] (segment files in a folder)
//! and [`memory`] (for tests; it can have eight partitions and gaps). One suite in `crossfade-testkit` proves them all.
//!
//! What this crate deliberately does not do: it knows no source and no sink, and it decodes no row.

mod contract;
pub mod embedded;
mod error;
mod find;
pub mod memory;
pub mod provider;
pub mod record;
mod route;
mod schemas;

pub use error::LogError;
pub use find::{Seek, find};
pub use route::is_before_move;

use bytes::Bytes;
use crossfade_event::{Batch, Cut, Event, Offset, Partition, Position, SchemaVersion, Sequence, TableId, TableSchema};
use std::{future::Future, sync::Arc};

/// One event in the log, and its place there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Which partition.
    pub partition: Partition,
    /// Where in the partition.
    pub offset: Offset,
    /// Where in the order of the whole log, over all partitions.
    pub sequence: Sequence,
    /// Where in the source's history.
    pub position: Position,
    /// What happened.
    pub event: Event,
}

/// Which events a reader is given. `SchemaSeen`, `BackfillBegan` and `BackfillEnded` come in every lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Everything.
    All,
    /// Only what [`Event::is_snapshot`] is true for.
    Snapshot,
    /// Only the stream.
    Stream,
}

/// Some entries, in order, and the place after them.
#[derive(Debug, Clone)]
pub struct Entries {
    /// In order within each partition; merged on the marks where there are several partitions, so that source
    /// transactions come whole and in commit order. May be empty (a frame of another lane was passed over).
    pub entries: Vec<Entry>,
    /// Read from here to go on.
    pub next: Cut,
    /// False inside a source transaction that spans several appends: the rest follows at once, it is in the log.
    pub whole: bool,
}

/// The end of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tail {
    /// The place after the last durable entry.
    pub cut: Cut,
    /// The highest `Batch::upto` that is durable: where ingest resumes.
    pub position: Option<Position>,
}

/// A durable, ordered, partitioned log. Cheap to clone; all clones are one log.
///
/// **Order**: appends land in the order of the calls, and sequences rise with them over all partitions; within a partition
/// offsets rise and may have gaps; an update that changes its key is a delete and an insert where the two keys' partitions
/// differ. What becomes visible at once, a *round*, is merged by sequence. A `BackfillBegan` stands in front of all that
/// the other partitions have of its round, so that the cut behind it is the same for readers of every lane.
/// **Durability**: an append is visible to readers, and its future resolves, only after it is on disk.
/// **Wholeness**: a batch lands whole or not at all; batches up to the next one with `Batch::whole` are visible
/// together, and a head left unfinished by a crash is gone after reopening.
/// **After a failed write or fsync** every append fails until the log is opened anew.
pub trait EventLog: Clone + Send + Sync + 'static {
    /// Reads entries.
    type Reader: LogReader;

    /// How many partitions; fixed for the log's life.
    fn partitions(&self) -> u32;

    /// Takes the batch at once (order of calls = order in the log); the future resolves to the cut after it once it
    /// is durable. Group commit: many may be in flight. Dropping the future does not take the batch back. The caller
    /// bounds the bytes in flight.
    fn append(&self, batch: Batch) -> impl Future<Output = Result<Cut, LogError>> + Send + 'static;

    /// Drops an unfinished head (parts of a transaction whose last part never came): the source was reopened and will
    /// send the whole again. Ordered with the appends before and after it; nothing to do where there is none.
    fn abandon(&self) -> impl Future<Output = Result<(), LogError>> + Send + 'static;

    /// A reader from a cut on.
    ///
    /// # Errors
    /// [`LogError::Trimmed`] when the cut lies before the first entry kept, [`LogError::Beyond`] when it lies behind
    /// the last one: then it is not the log that was read before.
    fn read(&self, from: &Cut, lane: Lane) -> Result<Self::Reader, LogError>;

    /// The same for whoever looks on from the side: what is kept in memory for those who carry the stream is left to them, and
    /// nobody paces himself by this reader.
    ///
    /// # Errors
    /// As [`EventLog::read`].
    fn read_aside(&self, from: &Cut, lane: Lane) -> Result<Self::Reader, LogError> {
        self.read(from, lane)
    }

    /// The same, and with each change and block of rows what a worker has made of it ([`LogReader::made`]), where workers
    /// transform beside the log: what they have not come to yet is waited for.
    ///
    /// # Errors
    /// As [`EventLog::read`].
    fn read_made(&self, from: &Cut, lane: Lane) -> Result<Self::Reader, LogError> {
        self.read(from, lane)
    }

    /// The end.
    fn tail(&self) -> Tail;

    /// The first place that can still be read.
    fn start(&self) -> Cut;

    /// One schema; they are kept for the log's life, whatever is trimmed.
    fn schema(&self, table: TableId, version: SchemaVersion) -> Option<Arc<TableSchema>>;

    /// The latest schema of every table, sorted by table.
    fn latest_schemas(&self) -> Vec<Arc<TableSchema>>;

    /// A place before the last batch that moved the tail's position, as near to the end as the log knows one.
    fn near_end(&self) -> Cut {
        self.start()
    }

    /// About how many bytes of the latest appends a reader that is near the tail has not come to yet; where it holds a
    /// place, what it has read and not held yet as well. Nothing where no reader is near, and in a log that does not
    /// know.
    fn behind_bytes(&self) -> Option<u64> {
        None
    }

    /// The same without what it has read: a copy's rows are held only when all of them are in.
    fn unread_bytes(&self) -> Option<u64> {
        None
    }

    /// Notes how far a named consumer has come. Retention never passes the slowest one unless forced. Survives a
    /// restart, perhaps with an older value.
    ///
    /// # Errors
    /// When it cannot be written.
    fn hold(&self, consumer: &str, cut: &Cut) -> Result<(), LogError>;

    /// Forgets a consumer.
    ///
    /// # Errors
    /// When it cannot be written.
    fn release(&self, consumer: &str) -> Result<(), LogError>;

    /// Drops whole segments below `below`; stops at the slowest consumer unless `force`. Returns the new start.
    ///
    /// # Errors
    /// When a file cannot be removed.
    fn trim(&self, below: &Cut, force: bool) -> Result<Cut, LogError>;
}

/// Reads entries, then follows the tail.
pub trait LogReader: Send {
    /// The next entries; waits at the tail. Safe to cancel.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] with file and offset; never skips.
    fn next(&mut self) -> impl Future<Output = Result<Entries, LogError>> + Send;

    /// The next entries if there are any now; `None` at the tail.
    ///
    /// # Errors
    /// As [`LogReader::next`].
    fn try_next(&mut self) -> Result<Option<Entries>, LogError>;

    /// What a worker has made of one of the entries given last; given once. Nothing where none has, or where it is gone:
    /// then it is made again.
    fn made(&mut self, sequence: Sequence) -> Option<Bytes> {
        let _ = sequence;
        None
    }

    /// True when nothing was given although the log has more: workers have not made it yet.
    fn waits(&self) -> bool {
        false
    }
}
