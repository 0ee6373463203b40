//! What was appended last, still in memory: a reader that has come this far takes it from here rather than reading,
//! checking and decoding again what was encoded a moment ago.
//!
//! Nothing is kept here before it is durable, and nothing is given beyond the published end. Each batch is given once,
//! to the first reader that comes to its place; any other reads the file. So is what was let go because nobody came.

use super::{End, shared::held};
use crossfade_event::{Offset, Stamped};
use std::{
    collections::VecDeque,
    sync::Mutex,
    time::{Duration, Instant},
};

/// So many bytes of frames are kept for readers that are a little behind.
const KEPT_BYTES: u64 = 16 << 20;

/// A place in the log's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Spot {
    /// The segment's base.
    pub(super) segment: Offset,
    /// Where in its file.
    pub(super) at: u64,
}

/// One batch, as it was appended.
#[derive(Debug)]
pub(super) struct Handed {
    /// Where its first frame begins.
    pub(super) from: Spot,
    /// Where its last one ends; perhaps in a later segment.
    pub(super) to: Spot,
    /// The offset of its first event.
    pub(super) base: Offset,
    /// The offset after its last one.
    pub(super) next: Offset,
    /// The lanes of its events, see [`crate::record::flags`].
    pub(super) flags: u16,
    /// Whether it ends its source transactions.
    pub(super) whole: bool,
    /// Its frames' length.
    pub(super) bytes: u64,
    pub(super) events: Vec<Stamped>,
}

/// A reader that is further behind than this, or has not asked for so long, is not near.
const NEAR_BYTES: u64 = 64 << 20;
const NEAR: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
struct Kept {
    batches: VecDeque<Handed>,
    bytes: u64,
    /// Where the batches of the last [`NEAR_BYTES`] begin, and how much was appended before each.
    marks: VecDeque<(Spot, u64)>,
    /// How much was appended.
    appended: u64,
    /// When a near reader asked, and how much had been appended before its place.
    asked: Option<(Instant, u64)>,
}

impl Kept {
    fn pop(&mut self) -> Option<Handed> {
        let oldest = self.batches.pop_front()?;
        self.bytes -= oldest.bytes;
        Some(oldest)
    }

    fn push(&mut self, batch: Handed) {
        self.marks.push_back((batch.from, self.appended));
        self.appended += batch.bytes;
        self.bytes += batch.bytes;
        self.batches.push_back(batch);
        while self.marks.front().is_some_and(|(_, before)| self.appended - before > NEAR_BYTES) {
            self.marks.pop_front();
        }
    }

    /// A reader is at `from`; `end` is where the log ends for it.
    fn asks(&mut self, from: Spot, end: Spot) {
        let before = match self.marks.partition_point(|(spot, _)| *spot <= from).checked_sub(1) {
            _ if from >= end => Some(self.appended),
            Some(at) => self.marks.get(at).map(|(_, before)| *before),
            None => None,
        };
        if let Some(before) = before {
            self.asked = Some((Instant::now(), before));
        }
    }
}

/// The latest batches, oldest first.
#[derive(Debug, Default)]
pub(super) struct Fresh(Mutex<Kept>);

impl Fresh {
    /// Keeps batches that have become durable, in order; lets go of the oldest that are too many.
    pub(super) fn keep(&self, batches: &mut Vec<Handed>) {
        let mut let_go = Vec::new();
        let mut kept = held(&self.0);
        for batch in batches.drain(..) {
            kept.push(batch);
        }
        while kept.bytes > KEPT_BYTES
            && let Some(oldest) = kept.pop()
        {
            let_go.push(oldest);
        }
        // Freeing many events takes a while: not while a reader waits.
        drop(kept);
        drop(let_go);
    }

    /// Gives the batch that begins at `from`, if it is here, lies below the end, and `fits`.
    pub(super) fn take(&self, from: Spot, end: &End, fits: impl FnOnce(&Handed) -> bool) -> Given {
        let mut kept = held(&self.0);
        let end = Spot { segment: end.segment, at: end.at };
        kept.asks(from, end);
        // What the reader has gone past it will not come back to.
        while kept.batches.front().is_some_and(|oldest| oldest.from < from) {
            kept.pop();
        }
        match kept.batches.front() {
            Some(oldest) if oldest.from == from && oldest.to <= end => {
                if fits(oldest) {
                    kept.pop().map_or(Given::Nothing, Given::Batch)
                } else {
                    Given::Later
                }
            }
            _ => Given::Nothing,
        }
    }

    /// How far a near reader is behind; nothing where there is none.
    pub(super) fn unread_bytes(&self) -> u64 {
        let kept = held(&self.0);
        let near = kept.asked.filter(|(at, _)| at.elapsed() < NEAR);
        near.map(|(_, before)| kept.appended - before).filter(|bytes| *bytes <= NEAR_BYTES).unwrap_or(0)
    }

    /// Nobody reads.
    pub(super) fn forget(&self) {
        *held(&self.0) = Kept::default();
    }

    /// Forgets what lies beyond the end: the unfinished head that was abandoned.
    pub(super) fn cut(&self, end: &End) {
        let end = Spot { segment: end.segment, at: end.at };
        let mut kept = held(&self.0);
        while kept.batches.back().is_some_and(|latest| latest.to > end) {
            if let Some(latest) = kept.batches.pop_back() {
                kept.bytes -= latest.bytes;
            }
        }
        while let Some((_, before)) = kept.marks.back().copied().filter(|(spot, _)| *spot >= end) {
            kept.appended = before;
            kept.marks.pop_back();
        }
        kept.asked = kept.asked.filter(|(_, before)| *before <= kept.appended);
    }
}

/// What a reader is given.
#[derive(Debug)]
pub(super) enum Given {
    Batch(Handed),
    /// It is here, but did not fit.
    Later,
    /// It is to be read from the file.
    Nothing,
}
