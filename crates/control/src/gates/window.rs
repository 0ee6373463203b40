//! Counters over a span of time. Times are of a monotonic clock, from any beginning.

use std::{collections::VecDeque, time::Duration};

/// How far back the error rate looks.
const WINDOW: Duration = Duration::from_secs(60);

/// The counters at one moment, as far as gates need them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sample {
    /// Changes that are in the sink.
    pub applied: u64,
    /// Changes that went into quarantine, held ones included.
    pub quarantined: u64,
}

/// What happened between two samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Window {
    /// Changes that went into the sink.
    pub applied: u64,
    /// Changes that went into quarantine.
    pub quarantined: u64,
}

/// Samples of the last minute.
#[derive(Debug, Clone, Default)]
pub struct Windows(VecDeque<(Duration, Sample)>);

impl Windows {
    /// No samples yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes the counters and returns the window that ends here. Counters that fell begin anew (a restart).
    pub fn push(&mut self, at: Duration, sample: Sample) -> Window {
        let fell = |last: &(Duration, Sample)| {
            last.1.applied > sample.applied || last.1.quarantined > sample.quarantined || last.0 > at
        };
        if self.0.back().is_some_and(fell) {
            self.0.clear();
        }
        // The newest sample that is at least a window old stays: the window is never shorter than a minute.
        while self.0.get(1).is_some_and(|(then, _)| at.saturating_sub(*then) >= WINDOW) {
            self.0.pop_front();
        }
        self.0.push_back((at, sample));
        let first = self.0.front().map_or(sample, |(_, first)| *first);
        Window { applied: sample.applied - first.applied, quarantined: sample.quarantined - first.quarantined }
    }

    /// Forgets everything: after a resume, what led to the pause does not pause again.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// Rows of copies that went into the sink, for the floor under the throughput.
#[derive(Debug, Clone, Default)]
pub struct Pace(VecDeque<(Duration, u64)>);

impl Pace {
    /// Nothing noted yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes how many rows are in the sink, `None` while nothing is copied (or copying is paused), and returns the mean of
    /// rows a second over the last `over`; `None` until copying has lasted that long.
    pub fn push(&mut self, at: Duration, rows: Option<u64>, over: Duration) -> Option<u64> {
        let Some(rows) = rows else {
            self.0.clear();
            return None;
        };
        if self.0.back().is_some_and(|last| last.1 > rows || last.0 > at) {
            self.0.clear();
        }
        while self.0.get(1).is_some_and(|(then, _)| at.saturating_sub(*then) >= over) {
            self.0.pop_front();
        }
        self.0.push_back((at, rows));
        let (since, first) = self.0.front()?;
        let lasted = at.saturating_sub(*since);
        let per_s = u128::from(rows - first) * 1_000_000 / lasted.as_micros().max(1);
        (lasted >= over && !lasted.is_zero()).then(|| u64::try_from(per_s).unwrap_or(u64::MAX))
    }

    /// Forgets everything: after a resume the floor is judged anew.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}
