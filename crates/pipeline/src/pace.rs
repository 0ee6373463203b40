//! When ingest lets those who read the log keep up.
//!
//! Far ahead of them nothing is won, and much is lost: what they come to late must be read from disk rather than taken
//! from memory, and on a machine whose processors are all busy the two ends of the journey take them from each other,
//! first the one and then the other being the only one at work. So an ingest that is ahead of a reader that is near
//! goes at a measured pace, until the reader has come nearer or has fallen behind for good. It never waits for anybody:
//! the source's log does not grow because a target is slow or gone.

use std::time::Duration;
use tokio::time::Instant;

/// So far ahead is far.
const AHEAD_BYTES: u64 = 2 << 20;
/// What ingest takes in while it is far ahead: 40 MB/s.
const BYTES_PER_MS: u64 = 40_000;
/// No pause is longer, however large the batch was.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// The pauses of one ingest.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    until: Option<Instant>,
}

impl Pace {
    /// A batch of so many bytes was read, and a near reader has not come to so many bytes of the log yet.
    pub(crate) fn took(&mut self, bytes: u64, unread_bytes: u64) {
        let pause = Duration::from_millis(bytes / BYTES_PER_MS).min(PAUSE_MAX);
        self.until = (unread_bytes > AHEAD_BYTES && !pause.is_zero()).then(|| Instant::now() + pause);
    }

    /// Whether nothing is to be read now.
    pub(crate) fn pauses(&self) -> bool {
        self.until.is_some()
    }

    /// Waits for the end of the pause. Safe to cancel.
    pub(crate) async fn over(&mut self) {
        if let Some(until) = self.until {
            tokio::time::sleep_until(until).await;
            self.until = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_far_ahead_of_a_near_reader_it_pauses_by_what_it_took_in_and_never_for_long() {
        let mut pace = Pace::default();
        pace.took(400_000, AHEAD_BYTES);
        assert!(!pace.pauses(), "near");
        pace.took(BYTES_PER_MS - 1, AHEAD_BYTES + 1);
        assert!(!pace.pauses(), "a trickle");

        for (bytes, pause) in [(400_000, Duration::from_millis(10)), (1 << 30, PAUSE_MAX)] {
            pace.took(bytes, AHEAD_BYTES + 1);
            assert!(pace.pauses(), "far ahead");
            let began = Instant::now();
            pace.over().await;
            assert_eq!(began.elapsed(), pause);
            assert!(!pace.pauses());
        }
    }
}
