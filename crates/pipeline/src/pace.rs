//! When ingest lets those who read the log keep up.
//!
//! Far ahead of them nothing is won, and much is lost: what they come to late must be read from disk rather than taken
//! from memory, and on a machine whose processors are all busy the two ends of the journey take them from each other,
//! first the one and then the other being the only one at work. So an ingest that is far ahead pauses after each batch,
//! but only as long as the batch took: it never goes at less than half its own speed, and the source's log does not
//! grow because a target is slow or gone.

use std::time::Duration;
use tokio::time::Instant;

/// So far ahead is far.
const AHEAD_BYTES: u64 = 1 << 20;
/// No pause is longer.
const PAUSE_MAX: Duration = Duration::from_millis(10);

/// The pauses of one ingest.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Since when it reads.
    since: Instant,
    until: Option<Instant>,
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self { since: Instant::now(), until: None }
    }

    /// A batch was read, and nobody has come to so many bytes of the log yet.
    pub(crate) fn took(&mut self, unread_bytes: u64) {
        let now = Instant::now();
        let took = now.saturating_duration_since(self.since);
        self.since = now;
        self.until = (unread_bytes > AHEAD_BYTES).then(|| now + took.min(PAUSE_MAX));
    }

    /// Whether nothing is to be read now.
    pub(crate) fn pauses(&self) -> bool {
        self.until.is_some()
    }

    /// Waits for the end of the pause. Safe to cancel.
    pub(crate) async fn over(&mut self) {
        if let Some(until) = self.until {
            tokio::time::sleep_until(until).await;
            self.since = Instant::now();
            self.until = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn far_ahead_it_pauses_as_long_as_the_batch_took_and_never_longer_than_a_moment() {
        let mut pace = Pace::new();
        tokio::time::advance(Duration::from_millis(4)).await;
        pace.took(AHEAD_BYTES);
        assert!(!pace.pauses(), "near");

        tokio::time::advance(Duration::from_millis(4)).await;
        pace.took(AHEAD_BYTES + 1);
        assert!(pace.pauses(), "far ahead");
        let began = Instant::now();
        pace.over().await;
        assert_eq!(began.elapsed(), Duration::from_millis(4));
        assert!(!pace.pauses());

        // A source that was silent for long has not earned a long pause.
        tokio::time::advance(Duration::from_secs(60)).await;
        pace.took(u64::MAX);
        let began = Instant::now();
        pace.over().await;
        assert_eq!(began.elapsed(), PAUSE_MAX);
    }
}
