//! What a switch of authority says and sees, whichever kind of database its two sides are.

use crate::{Failure, Refusal};
use crossfade_event::Side;
use std::time::{Duration, Instant};

/// What the row of the authority says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Who has the authority.
    pub side: Side,
    /// Raised by every switch, and by every one that was taken back.
    pub epoch: u64,
}

/// What came of giving the authority away.
#[derive(Debug)]
pub enum Given {
    /// It is done.
    Done,
    /// It is not done: the database has said so.
    Refused(Failure),
    /// Nobody knows: the row must be asked.
    Unknown(Failure),
}

/// Locks that hold the writers up.
#[derive(Debug, Clone, Copy)]
pub struct Locked {
    /// When writers began to wait: the beginning of the try that got the locks.
    pub since: Instant,
    /// How many tries it took.
    pub tries: u32,
    /// When the freeze ends by itself, unless the work is done by then.
    pub ends: Instant,
}

impl Locked {
    /// How long they hold still.
    pub fn left(&self) -> Duration {
        self.ends.saturating_duration_since(Instant::now())
    }
}

/// What was seen at the side whose writers would be held up.
#[derive(Debug, Clone, Default)]
pub struct Look {
    /// What is missing.
    pub missing: Vec<Refusal>,
    /// The oldest transaction that writes the tables.
    pub writing: Option<Writing>,
    /// How long the server waits before it looks for a deadlock, in milliseconds; without limit where none can be.
    pub deadlock_timeout_ms: u64,
}

/// A transaction that writes.
#[derive(Debug, Clone)]
pub struct Writing {
    /// Since when, in milliseconds.
    pub age_ms: u64,
    /// Who it is, as far as that can be known.
    pub who: String,
}

/// Where the stream of the new side's writes begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reverse {
    /// What keeps those writes on the new side.
    pub name: String,
    /// Everything that it gives was committed after this place in the new side's history, and so after the sink's last
    /// write there.
    pub from: u64,
}

/// The keys of a row that was born on the new side.
#[derive(Clone, PartialEq, Eq)]
pub struct Born {
    /// Its table on the old side.
    pub table: String,
    /// The key that was drawn for it there.
    pub old: i64,
    /// The key that it has on the new side, as text.
    pub new: String,
}

impl std::fmt::Debug for Born {
    /// Without the keys, which are values of the row.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Born").field("table", &self.table).finish_non_exhaustive()
    }
}
