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
/// Of a copy's rows so many may be unread: they are still in memory for the reader.
const COPY_AHEAD_BYTES: u64 = 12 << 20;
/// The slowest pace, 10 MB/s: a reader that cannot follow even that is left behind.
const BYTES_PER_MS_MIN: u64 = 10_000;
/// The slowest pace of a copy, 40 MB/s: its sessions hold back the source's housekeeping.
const COPY_BYTES_PER_MS_MIN: u64 = 40_000;
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
    /// What was read last.
    kind: Kind,
}

/// What a batch consists of.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) enum Kind {
    /// The stream.
    #[default]
    Changes,
    /// Rows of a copy.
    Copy,
}

impl Kind {
    /// So far ahead is far enough.
    fn enough_bytes(self) -> u64 {
        match self {
            Self::Changes => AHEAD_BYTES,
            Self::Copy => COPY_AHEAD_BYTES,
        }
    }

    /// The slowest pace.
    fn bytes_per_ms_min(self) -> u64 {
        match self {
            Self::Changes => BYTES_PER_MS_MIN,
            Self::Copy => COPY_BYTES_PER_MS_MIN,
        }
    }
}

impl Pace {
    /// A batch of so many bytes was read, and ingest is so many bytes of the log ahead of a near reader.
    pub(crate) fn took(&mut self, kind: Kind, bytes: u64, ahead_bytes: u64) {
        let pause = Duration::from_secs_f64(bytes as f64 / (kind.bytes_per_ms_min() as f64 * 1e3)).min(PAUSE_MAX);
        self.kind = kind;
        self.until = (ahead_bytes > kind.enough_bytes() && pause >= PAUSE_MIN).then(|| Instant::now() + pause);
    }

    /// Whether nothing is to be read now.
    pub(crate) fn pauses(&self) -> bool {
        self.until.is_some()
    }

    /// Waits for the end of the pause; `ahead_bytes` tells how far ahead ingest is by now. Safe to cancel.
    pub(crate) async fn over(&mut self, ahead_bytes: impl Fn(Kind) -> u64) {
        while let Some(until) = self.until {
            if ahead_bytes(self.kind) <= self.kind.enough_bytes() || until <= Instant::now() {
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
        pace.took(Kind::Changes, 400_000, AHEAD_BYTES);
        assert!(!pace.pauses(), "near");
        pace.took(Kind::Changes, BYTES_PER_MS_MIN / 2, FAR);
        assert!(!pace.pauses(), "a trickle");

        pace.took(Kind::Copy, 400_000, COPY_AHEAD_BYTES);
        assert!(!pace.pauses(), "near, for a copy");

        let far = COPY_AHEAD_BYTES + 1;
        for (kind, bytes, pause) in [
            (Kind::Changes, 300_000, Duration::from_millis(30)),
            (Kind::Copy, 400_000, Duration::from_millis(10)),
            (Kind::Changes, 1 << 30, PAUSE_MAX),
        ] {
            pace.took(kind, bytes, far);
            assert!(pace.pauses(), "far ahead");
            let began = Instant::now();
            pace.over(|_| far).await;
            // The clock of timers has milliseconds.
            assert!(began.elapsed().abs_diff(pause) <= Duration::from_millis(1), "{:?} for {pause:?}", began.elapsed());
            assert!(!pace.pauses());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_pause_ends_when_the_reader_has_come_nearer() {
        let mut pace = Pace::default();
        pace.took(Kind::Changes, 1 << 20, FAR);
        let (began, looks) = (Instant::now(), Cell::new(0));
        pace.over(|_| {
            looks.set(looks.get() + 1);
            if looks.get() < 4 { FAR } else { AHEAD_BYTES }
        })
        .await;
        assert!(!pace.pauses());
        assert!(began.elapsed() < 4 * LOOK_EVERY, "{:?}", began.elapsed());
    }
}
