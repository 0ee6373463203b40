//! When ingest lets those who read the log keep up.
//!
//! Far ahead of them nothing is won, and much is lost: what they come to late must be read from disk rather than taken
//! from memory, and on a machine whose processors are all busy the two ends of the journey take them from each other,
//! first the one and then the other being the only one at work. So an ingest that is ahead of a near reader pauses after
//! each batch until the reader has come nearer, or until the batch has taken as long as it would at the slowest pace: it
//! never waits for anybody, and the source's log does not grow because a target is slow or gone.

use std::time::Duration;
use tokio::time::Instant;

/// So far ahead is far enough: the sink works on one hand-over, and another one is ready.
const AHEAD_BYTES: u64 = 5 << 20;
/// The slowest pace, 10 MB/s: a reader that cannot follow even that is left behind.
const BYTES_PER_MS_MIN: u64 = 10_000;
/// A shorter pause is none.
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// No pause is longer, however large the batch was.
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// How often it is looked how far the reader has come.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// The pauses of one ingest.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    until: Option<Instant>,
}

impl Pace {
    /// A batch of so many bytes of changes was read, and ingest is so many bytes of the log ahead of a near reader.
    pub(crate) fn took(&mut self, bytes: u64, ahead_bytes: u64) {
        let pause = Duration::from_secs_f64(bytes as f64 / (BYTES_PER_MS_MIN as f64 * 1e3)).min(PAUSE_MAX);
        self.until = (ahead_bytes > AHEAD_BYTES && pause >= PAUSE_MIN).then(|| Instant::now() + pause);
    }

    /// Whether nothing is to be read now.
    pub(crate) fn pauses(&self) -> bool {
        self.until.is_some()
    }

    /// Waits for the end of the pause; `ahead_bytes` tells how far ahead ingest is by now. Safe to cancel.
    pub(crate) async fn over(&mut self, ahead_bytes: impl Fn() -> u64) {
        while let Some(until) = self.until {
            if ahead_bytes() <= AHEAD_BYTES || until <= Instant::now() {
                self.until = None;
                return;
            }
            tokio::time::sleep_until(until.min(Instant::now() + LOOK_EVERY)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const FAR: u64 = AHEAD_BYTES + 1;

    #[tokio::test(start_paused = true)]
    async fn ahead_of_a_near_reader_it_pauses_but_never_for_long() {
        let mut pace = Pace::default();
        pace.took(400_000, AHEAD_BYTES);
        assert!(!pace.pauses(), "near");
        pace.took(BYTES_PER_MS_MIN / 2, FAR);
        assert!(!pace.pauses(), "a trickle");

        for (bytes, pause) in [(300_000, Duration::from_millis(30)), (1 << 30, PAUSE_MAX)] {
            pace.took(bytes, FAR);
            assert!(pace.pauses(), "far ahead");
            let began = Instant::now();
            pace.over(|| FAR).await;
            // The clock of timers has milliseconds.
            assert!(began.elapsed().abs_diff(pause) <= Duration::from_millis(1), "{:?} for {pause:?}", began.elapsed());
            assert!(!pace.pauses());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_pause_ends_when_the_reader_has_come_nearer() {
        let mut pace = Pace::default();
        pace.took(1 << 20, FAR);
        let (began, looks) = (Instant::now(), Cell::new(0));
        pace.over(|| {
            looks.set(looks.get() + 1);
            if looks.get() < 4 { FAR } else { AHEAD_BYTES }
        })
        .await;
        assert!(!pace.pauses());
        assert!(began.elapsed() < 4 * LOOK_EVERY, "{:?}", began.elapsed());
    }
}
