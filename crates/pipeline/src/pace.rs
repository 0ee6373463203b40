//! When ingest lets those who read the log keep up.
//!
//! Far ahead of them nothing is won, and much is lost: what they come to late must be read from disk rather than taken
//! from memory, and on a machine whose processors are all busy the two ends of the journey take them from each other,
//! first the one and then the other being the only one at work. So an ingest that is ahead of a reader that is near
//! goes the slower the further ahead it is, down to a floor, until the reader has come nearer or has fallen behind for
//! good. It never waits for anybody: the source's log does not grow because a target is slow or gone.

use std::time::Duration;
use tokio::time::Instant;

/// So far ahead is far.
const AHEAD_BYTES: u64 = 2 << 20;
/// What ingest takes in when it is just so far ahead: 30 MB/s. Twice as far ahead it is a quarter of that.
const BYTES_PER_MS: u64 = 30_000;
/// It never goes slower than by this factor: a reader that cannot follow even that is left behind.
const SLOWEST: f64 = 3.0;
/// A shorter pause is none.
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// No pause is longer, however large the batch was.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// The pauses of one ingest.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    until: Option<Instant>,
}

impl Pace {
    /// A batch of so many bytes of changes was read, and a near reader has not come to so many bytes of the log yet.
    pub(crate) fn took(&mut self, bytes: u64, unread_bytes: u64) {
        let ahead = unread_bytes as f64 / AHEAD_BYTES as f64;
        let slower = (ahead * ahead).min(SLOWEST);
        let pause = Duration::from_secs_f64(bytes as f64 * slower / (BYTES_PER_MS as f64 * 1e3)).min(PAUSE_MAX);
        self.until = (ahead > 1.0 && pause >= PAUSE_MIN).then(|| Instant::now() + pause);
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
    async fn only_ahead_of_a_near_reader_it_pauses_the_longer_the_further_and_never_for_long() {
        let mut pace = Pace::default();
        pace.took(400_000, AHEAD_BYTES);
        assert!(!pace.pauses(), "near");
        pace.took(BYTES_PER_MS / 2, AHEAD_BYTES + 1);
        assert!(!pace.pauses(), "a trickle");

        let ms = Duration::from_millis;
        for (bytes, unread, pause) in [
            (300_000, AHEAD_BYTES + 1, ms(10)),
            (300_000, AHEAD_BYTES * 3 / 2, Duration::from_micros(22_500)),
            (300_000, AHEAD_BYTES * 30, ms(30)),
            (1 << 30, AHEAD_BYTES + 1, PAUSE_MAX),
        ] {
            pace.took(bytes, unread);
            assert!(pace.pauses(), "far ahead");
            let began = Instant::now();
            pace.over().await;
            // The clock of timers has milliseconds.
            assert!(began.elapsed().abs_diff(pause) <= ms(1), "{:?} for {pause:?}", began.elapsed());
            assert!(!pace.pauses());
        }
    }
}
