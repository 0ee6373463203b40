//! When to read the replication stream at once, and when to let it fill first.
//!
//! The server sends every change on its own. A reader that is faster than that is woken for each of them, and most of
//! the machine's time goes into waking it. While changes come thick and fast, the reader therefore lets them gather in
//! the socket for a moment; a stream that trickles is read as it comes.

use std::time::Duration;

/// How long a fast stream is left to gather.
pub(super) const PAUSE: Duration = Duration::from_millis(2);
/// Data that came within this time came at once: two small transactions a millisecond leave longer gaps.
const AT_ONCE: Duration = Duration::from_micros(150);
/// So many reads without a gap make a fast stream. A small transaction is three messages.
const READS_TO_BE_FAST: u32 = 16;
/// A pause that gathered less was not worth it.
const GATHERED_BYTES_MIN: usize = 8 * 1024;

/// How fast the stream has been lately.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Reads in a row that hardly waited.
    reads: u32,
}

impl Pace {
    /// Whether to let the stream gather before the next read.
    pub(super) fn is_fast(&self) -> bool {
        self.reads >= READS_TO_BE_FAST
    }

    /// A read that waited for so long.
    pub(super) fn waited(&mut self, wait: Duration) {
        self.reads = if wait <= AT_ONCE { self.reads.saturating_add(1) } else { 0 };
    }

    /// Whether so many bytes were worth a read of their own.
    pub(super) fn is_much(&self, bytes: usize) -> bool {
        bytes >= GATHERED_BYTES_MIN
    }

    /// A read after a pause gave so much.
    pub(super) fn gathered(&mut self, bytes: usize) {
        if !self.is_much(bytes) {
            self.reads = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_without_gaps_is_fast_until_a_gap_comes() {
        let mut pace = Pace::default();
        for _ in 0..READS_TO_BE_FAST {
            assert!(!pace.is_fast());
            pace.waited(Duration::from_micros(20));
        }
        assert!(pace.is_fast());
        pace.waited(Duration::from_micros(400));
        assert!(!pace.is_fast());
    }

    #[test]
    fn a_pause_that_gathers_little_is_the_last() {
        let mut pace = Pace { reads: READS_TO_BE_FAST };
        pace.gathered(GATHERED_BYTES_MIN);
        assert!(pace.is_fast());
        pace.gathered(300);
        assert!(!pace.is_fast());
    }
}
