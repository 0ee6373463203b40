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

/// A reader that has taken nothing for so long is not near.
const NEAR: Duration = Duration::from_millis(250);

#[derive(Debug, Default)]
struct Kept {
    batches: VecDeque<Handed>,
    bytes: u64,
    /// When one was given to a reader.
    given_at: Option<Instant>,
}

impl Kept {
    fn pop(&mut self) -> Option<Handed> {
        let oldest = self.batches.pop_front()?;
        self.bytes -= oldest.bytes;
        Some(oldest)
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
            kept.bytes += batch.bytes;
            kept.batches.push_back(batch);
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
        // What the reader has gone past it will not come back to.
        while kept.batches.front().is_some_and(|oldest| oldest.from < from) {
            kept.pop();
        }
        let end = Spot { segment: end.segment, at: end.at };
        match kept.batches.front() {
            Some(oldest) if oldest.from == from && oldest.to <= end => {
                if fits(oldest) {
                    kept.given_at = Some(Instant::now());
                    kept.pop().map_or(Given::Nothing, Given::Batch)
                } else {
                    Given::Later
                }
            }
            _ => Given::Nothing,
        }
    }

    /// How much waits here for a reader that is near; nothing where there is none.
    pub(super) fn waiting_bytes(&self) -> u64 {
        let kept = held(&self.0);
        if kept.given_at.is_some_and(|at| at.elapsed() < NEAR) { kept.bytes } else { 0 }
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
