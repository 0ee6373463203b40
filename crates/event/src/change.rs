//! What happened: one row's before and after, and the marks around it.

use crate::{Key, Position, Row, RowError, Rows, SchemaVersion, TableId, TableSchema};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What was done to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    /// The row came into being; there is a new image.
    Insert,
    /// The row changed; there is a new image, perhaps with unchanged cells, and an old one if the key changed or the
    /// source keeps whole old rows.
    Update,
    /// The row ceased; there is an old image, at least the key.
    Delete,
}

/// One row's before and after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Which table.
    pub table: TableId,
    /// Under which of its schemas both images are written.
    pub schema: SchemaVersion,
    /// What was done.
    pub op: Op,
    /// The image before, as far as the source sends it: cells it does not send are absent.
    pub old: Option<Row>,
    /// The image after.
    pub new: Option<Row>,
}

impl Change {
    /// The key under which the row is found after the change (before it, for a delete).
    pub fn key(&self, schema: &TableSchema) -> Option<Key> {
        self.new.as_ref().or(self.old.as_ref()).and_then(|row| schema.key_of(row))
    }

    /// The key before the change, where it is known and differs from [`Change::key`].
    pub fn replaced_key(&self, schema: &TableSchema) -> Option<Key> {
        match (&self.old, &self.new) {
            (Some(old), Some(new)) => {
                let before = schema.key_of(old)?;
                (schema.key_of(new).as_ref() != Some(&before)).then_some(before)
            }
            _ => None,
        }
    }

    /// About how many bytes it holds.
    pub fn size_bytes(&self) -> usize {
        let of = |row: &Option<Row>| row.as_ref().map_or(0, |row| row.as_bytes().len());
        of(&self.old) + of(&self.new) + 16
    }
}

/// The number of a chunk within one table's backfill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChunkId(pub u32);

/// One piece of a table that is copied by itself; `range` is in the source's own words (a ctid range, a key range).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkPlan {
    /// Its number.
    pub id: ChunkId,
    /// What it covers, for the source to read again after a restart.
    pub range: Arc<str>,
}

/// Which transactions a snapshot of the source could see: all below `xmin`, none from `xmax` on, and between them all
/// that are not in `in_progress` (PostgreSQL's `pg_snapshot`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Visibility {
    /// The lowest transaction still running.
    pub xmin: u64,
    /// One past the highest finished transaction.
    pub xmax: u64,
    /// Those between the two that were still running, sorted.
    pub in_progress: Vec<u64>,
}

impl Visibility {
    /// Whether a committed transaction was visible.
    pub fn sees(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && self.in_progress.binary_search(&xid).is_err())
    }
}

/// A backfill: a set of tables copied as a whole, bracketed in the log by its beginning and its end. Deliver first
/// applies all of a backfill's rows, then goes back to its beginning and applies the changes since; every change
/// since then is in the log, so any row that moved, vanished or changed its key meanwhile ends right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backfill {
    /// Counts from one in a log.
    pub generation: u32,
    /// The tables.
    pub tables: Vec<TableId>,
    /// What was visible at the point from which the stream has everything, where the source knows it.
    pub visible: Option<Visibility>,
}

/// Rows of a snapshot: a block of concatenated [`Row`]s.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowBlock {
    /// Which table.
    pub table: TableId,
    /// Under which of its schemas.
    pub schema: SchemaVersion,
    /// Which chunk they belong to.
    pub chunk: ChunkId,
    /// How many rows.
    pub count: u32,
    /// The rows, one after another.
    pub rows: Bytes,
}

impl RowBlock {
    /// The rows, one by one.
    pub fn iter(&self) -> Rows {
        Rows::new(self.rows.clone())
    }

    /// Checks that the block holds exactly the rows that it says.
    ///
    /// # Errors
    /// The first row that is damaged.
    pub fn check(&self) -> Result<bool, RowError> {
        let mut count = 0u32;
        for row in self.iter() {
            row?;
            count += 1;
        }
        Ok(count == self.count)
    }
}

/// The head of a source transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    /// The source's number for it, widened to 64 bits; zero where the source has none.
    pub xid: u64,
    /// When it was committed, in microseconds since 1970-01-01 UTC by the source's clock. For people and for
    /// `--from time:`, never for order.
    pub commit_time_us: i64,
}

/// A mark sent through the stream: a barrier, a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Whose mark.
    pub prefix: Arc<str>,
    /// What it says.
    pub content: Bytes,
}

/// Tables emptied by one statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Truncate {
    /// Which tables.
    pub tables: Vec<TableId>,
    /// Whether sequences were restarted.
    pub restart_identity: bool,
}

/// Everything that a log can say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// From here on, rows of this table may be written under this schema. Comes before the first such row.
    SchemaSeen(Arc<TableSchema>),
    /// A backfill begins here.
    BackfillBegan(Backfill),
    /// One table's copy begins, cut into these chunks.
    SnapshotBegan {
        /// Which table.
        table: TableId,
        /// Its chunks.
        chunks: Vec<ChunkPlan>,
    },
    /// Rows of a snapshot.
    Rows(RowBlock),
    /// A chunk is wholly in the log; it need not be read again.
    ChunkEnded {
        /// Which table.
        table: TableId,
        /// Which chunk.
        chunk: ChunkId,
        /// How many rows it had.
        rows: u64,
    },
    /// All of a table's chunks are in the log.
    SnapshotEnded {
        /// Which table.
        table: TableId,
        /// What its one chunk could see. Only for tables without a key: the changes that it saw are left out of the
        /// stream, for they cannot be applied twice.
        visible: Option<Visibility>,
    },
    /// All of a backfill's tables are in the log.
    BackfillEnded {
        /// Which backfill.
        generation: u32,
    },
    /// A source transaction begins.
    Began(Transaction),
    /// One row changed.
    Changed(Change),
    /// Tables were emptied.
    Truncated(Truncate),
    /// A mark in the stream.
    Marked(Mark),
    /// The source transaction ends; its stamp is where the next one begins.
    Committed,
    /// Everything up to the stamp is in the log (idle sources move too).
    Resolved,
}

impl Event {
    /// True for what a backfill's rows are made of; all else belongs to the stream.
    pub fn is_snapshot(&self) -> bool {
        matches!(
            self,
            Self::SnapshotBegan { .. } | Self::Rows(_) | Self::ChunkEnded { .. } | Self::SnapshotEnded { .. }
        )
    }

    /// About how many bytes it holds.
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Changed(change) => change.size_bytes(),
            Self::Rows(block) => block.rows.len() + 32,
            Self::Marked(mark) => mark.content.len() + mark.prefix.len() + 16,
            Self::SchemaSeen(schema) => 64 + schema.columns.len() * 64,
            Self::SnapshotBegan { chunks, .. } => 16 + chunks.len() * 32,
            _ => 32,
        }
    }
}

/// An event and its place in the source's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamped {
    /// Where in the source's history.
    pub position: Position,
    /// What happened.
    pub event: Event,
}

/// What a source hands over at once, in commit order. A batch holds either events of a backfill or of the stream,
/// never both (`SchemaSeen` may stand in either).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The events.
    pub events: Vec<Stamped>,
    /// Everything of the stream up to here has now been handed over; `None` for a backfill's rows and for a part of
    /// a transaction that goes on.
    pub upto: Option<Position>,
    /// False when a source transaction goes on in the next batch. Readers of the log see none of its parts until the
    /// last one is in.
    pub whole: bool,
}

impl Batch {
    /// About how many bytes it holds.
    pub fn size_bytes(&self) -> usize {
        self.events.iter().map(|stamped| stamped.event.size_bytes() + 24).sum()
    }
}
