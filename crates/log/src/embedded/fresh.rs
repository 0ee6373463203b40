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

/// Who is further behind than this, or was not heard of for so long, is not near.
const NEAR_BYTES: u64 = 64 << 20;
const NEAR: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
struct Kept {
    batches: VecDeque<Handed>,
    bytes: u64,
    /// Where the batches of the last [`NEAR_BYTES`] begin.
    marks: VecDeque<Mark>,
    /// How much was appended.
    appended: u64,
    /// When a near reader asked, and how much had been appended before its place.
    asked: Option<(Instant, u64)>,
    /// When a near consumer said how far it has come, and how much had been appended before that.
    held: Option<(Instant, u64)>,
}

/// Where a batch begins, and how much was appended before it.
#[derive(Debug, Clone, Copy)]
struct Mark {
    spot: Spot,
    base: Offset,
    before: u64,
}

impl Kept {
    fn pop(&mut self) -> Option<Handed> {
        let oldest = self.batches.pop_front()?;
        self.bytes -= oldest.bytes;
        Some(oldest)
    }

    fn push(&mut self, batch: Handed) {
        self.marks.push_back(Mark { spot: batch.from, base: batch.base, before: self.appended });
        self.appended += batch.bytes;
        self.bytes += batch.bytes;
        self.batches.push_back(batch);
        while self.marks.front().is_some_and(|mark| self.appended - mark.before > NEAR_BYTES) {
            self.marks.pop_front();
        }
    }

    /// A reader is at `from`; `end` is where the log ends for it.
    fn asks(&mut self, from: Spot, end: Spot) {
        let before = if from >= end { Some(self.appended) } else { self.before(|mark| mark.spot <= from) };
        if let Some(before) = before {
            self.asked = Some((Instant::now(), before));
        }
    }

    /// A consumer has come to `at`; `end` is where the log ends for it.
    fn holds(&mut self, at: Offset, end: Offset) {
        let before = if at >= end { Some(self.appended) } else { self.before(|mark| mark.base <= at) };
        if let Some(before) = before {
            self.held = Some((Instant::now(), before));
        }
    }

    /// How much was appended since a place, where whoever is there is near.
    fn since(&self, heard: Option<(Instant, u64)>) -> Option<u64> {
        let (_, before) = heard.filter(|(at, _)| at.elapsed() < NEAR)?;
        Some(self.appended - before).filter(|bytes| *bytes <= NEAR_BYTES)
    }

    /// How much was appended before the last batch that begins before a place.
    fn before(&self, begins_before: impl Fn(&Mark) -> bool) -> Option<u64> {
        let at = self.marks.partition_point(begins_before).checked_sub(1)?;
        self.marks.get(at).map(|mark| mark.before)
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

    /// A named consumer has come to `at`, and `end` is the log's.
    pub(super) fn holds(&self, at: Offset, end: Offset) {
        held(&self.0).holds(at, end);
    }

    /// How far a near reader is behind, what it has read and not held yet included; nothing where there is none.
    pub(super) fn behind_bytes(&self) -> Option<u64> {
        let kept = held(&self.0);
        kept.since(kept.asked).max(kept.since(kept.held))
    }

    /// How far a near reader has to read.
    pub(super) fn unread_bytes(&self) -> Option<u64> {
        let kept = held(&self.0);
        kept.since(kept.asked)
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
        while let Some(mark) = kept.marks.back().copied().filter(|mark| mark.spot >= end) {
            kept.appended = mark.before;
            kept.marks.pop_back();
        }
        kept.asked = kept.asked.filter(|(_, before)| *before <= kept.appended);
        kept.held = kept.held.filter(|(_, before)| *before <= kept.appended);
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
