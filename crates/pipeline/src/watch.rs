//! What the loops tell whoever watches: counters, progress, retries. Watching never slows or fails a loop.

use crossfade_connector::{Failure, Progress, SourceHealth, Stage};
use crossfade_event::{Cut, Durable, TableId};
use std::{collections::BTreeMap, time::Duration};

/// What the log has heard of one table's copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copying {
    /// It begins, or begins again, in so many chunks.
    Began(u64),
    /// One of its chunks is wholly in the log.
    ChunkEnded,
    /// All of it is.
    Ended,
}

/// What the log has heard of a backfill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backfilling {
    /// It has begun.
    Began(u32),
    /// Everything of it is in the log.
    Ended(u32),
}

/// An append became durable.
#[derive(Debug, Clone)]
pub struct Ingested {
    /// The log's end now.
    pub cut: Cut,
    /// Confirmed to the source, if the frontier moved.
    pub durable: Option<Durable>,
    /// Changes and rows that can now be delivered. Parts of a transaction count once its last part is in.
    pub events: u64,
    /// Rows of a backfill in the batch, by source table.
    pub rows: BTreeMap<TableId, u64>,
    /// What the batch says of copies, in order.
    pub copying: Vec<(TableId, Copying)>,
    /// What it says of backfills, in order, by their numbers.
    pub backfills: Vec<Backfilling>,
    /// Bytes of the batch.
    pub bytes: u64,
}

/// A delivery was committed.
#[derive(Debug, Clone)]
pub struct Delivered {
    /// Where the sink stands.
    pub progress: Progress,
    /// Source changes and rows that this delivery read from the log.
    pub read: u64,
    /// Those of them that are in the sink.
    pub applied: u64,
    /// Source changes that the spec's filters left out, or that a snapshot had seen already.
    pub filtered: u64,
    /// Put into quarantine: rejected or held.
    pub quarantined: u64,
    /// Lookups that found no row; what they would have filled was left as it was.
    pub misses: u64,
    /// Changes and rows among those read that workers had transformed already.
    pub made: u64,
    /// Rows and changes by source table.
    pub tables: BTreeMap<TableId, u64>,
    /// The commit time of the last source transaction in it, microseconds since 1970.
    pub commit_time_us: Option<i64>,
}

/// Watches the loops.
pub trait Watch: Send + Sync {
    /// An append became durable.
    fn ingested(&self, _what: &Ingested) {}
    /// A delivery was committed.
    fn delivered(&self, _what: &Delivered) {}
    /// Some of a partition that this process has was committed; its progress is that partition's.
    fn shared(&self, _what: &Delivered) {}
    /// Where the sink stands, by the word of another process that has the lead.
    fn elsewhere(&self, _progress: &Progress) {}
    /// A stage began.
    fn stage(&self, _stage: Stage) {}
    /// Deliver has applied everything that is in the log now.
    fn at_tail(&self, _progress: &Progress) {}
    /// What the source says of its own health, asked from time to time.
    fn health(&self, _health: &SourceHealth) {}
    /// The source was opened: it is the one that the log belongs to, and has everything after the log's end.
    fn opened(&self) {}
    /// A transient failure: the loop waits and tries again.
    fn retrying(&self, _side: &'static str, _failure: &Failure, _wait: Duration) {}
    /// The loop works again after [`Watch::retrying`].
    fn recovered(&self, _side: &'static str) {}
}

/// Watches nothing.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl Watch for Silent {}
