//! How fast, how long still, how far behind. Times are passed in, so tests can move them.

use crate::Totals;
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, time::Duration};

/// How far back a rate looks: long enough to be calm, short enough to follow.
const WINDOW: Duration = Duration::from_secs(10);

/// A rate over the last ten seconds, from totals that only rise.
#[derive(Debug, Clone, Default)]
pub struct Rate(VecDeque<(Duration, u64)>);

impl Rate {
    /// Notes a total, and says how many a second there were lately. A total that fell begins anew.
    pub fn push(&mut self, at: Duration, total: u64) -> f64 {
        if self.0.back().is_some_and(|(then, last)| *last > total || *then > at) {
            self.0.clear();
        }
        while self.0.get(1).is_some_and(|(then, _)| at.saturating_sub(*then) >= WINDOW) {
            self.0.pop_front();
        }
        self.0.push_back((at, total));
        let (first_at, first) = self.0.front().copied().unwrap_or((at, total));
        let span = at.saturating_sub(first_at).as_secs_f64();
        if span > 0.0 { (total - first) as f64 / span } else { 0.0 }
    }
}

/// Rates that are shown.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Rates {
    /// Rows of copies that go into the log.
    pub copied_rows_per_s: f64,
    /// Rows of copies that go into the sink.
    pub loaded_rows_per_s: f64,
    /// Changes and rows that are applied to the sink.
    pub applied_per_s: f64,
    /// Bytes that go into the log.
    pub log_bytes_per_s: f64,
}

/// All rates.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    copied: Rate,
    loaded: Rate,
    applied: Rate,
    bytes: Rate,
}

impl Meter {
    /// Nothing noted yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes the counters at a time of a monotonic clock.
    pub fn push(&mut self, at: Duration, totals: &Totals) -> Rates {
        let sum = |of: fn(&crate::TableTotals) -> u64| totals.tables.iter().map(of).sum::<u64>();
        Rates {
            copied_rows_per_s: rounded(self.copied.push(at, sum(|table| table.rows_copied))),
            loaded_rows_per_s: rounded(self.loaded.push(at, sum(|table| table.rows_loaded))),
            applied_per_s: rounded(self.applied.push(at, totals.conservation.applied)),
            log_bytes_per_s: rounded(self.bytes.push(at, totals.bytes)),
        }
    }
}

fn rounded(rate: f64) -> f64 {
    (rate * 10.0).round() / 10.0
}

/// How many seconds still; `None` while that cannot be said (nothing moves, or the total is not known).
pub fn eta_s(done: u64, total: u64, per_s: f64) -> Option<u64> {
    if total == 0 || per_s <= 0.0 || !per_s.is_finite() {
        return None;
    }
    Some((total.saturating_sub(done) as f64 / per_s).ceil() as u64)
}

/// How far the sink is behind the source, in milliseconds: nothing while nothing is pending, else the age of the last
/// transaction that is in, but no more than the time since nothing was pending (`since_caught_up`, where that is known): a
/// source that was idle for an hour is not an hour ahead by its next transaction. The first two times are wall clocks, the
/// source's and ours; a clock ahead of ours counts as now.
pub fn lag_ms(
    pending: i64,
    last_commit_us: Option<i64>,
    now_us: i64,
    since_caught_up: Option<Duration>,
) -> Option<u64> {
    if pending <= 0 {
        return Some(0);
    }
    let age = last_commit_us.map(|commit| u64::try_from(now_us.saturating_sub(commit) / 1_000).unwrap_or(0))?;
    let most = since_caught_up.map_or(u64::MAX, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    Some(age.min(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_rate_is_that_of_the_last_ten_seconds() {
        let mut rate = Rate::default();
        assert_eq!(rate.push(s(0), 0), 0.0);
        assert_eq!(rate.push(s(1), 100), 100.0);
        assert_eq!(rate.push(s(10), 1_000), 100.0);
        for second in 11..=30 {
            rate.push(s(second), 1_000);
        }
        assert_eq!(rate.push(s(31), 1_000), 0.0, "what was fast long ago is not fast now");
        assert_eq!(rate.push(s(32), 5), 0.0, "a total that fell begins anew");
        assert_eq!(rate.push(s(33), 15), 10.0);
        assert_eq!(rate.push(s(33), 15), 10.0);
    }

    #[test]
    fn the_time_left_is_rounded_up_and_not_invented() {
        assert_eq!(eta_s(0, 1_000, 300.0), Some(4));
        assert_eq!(eta_s(1_000, 1_000, 300.0), Some(0));
        assert_eq!(eta_s(2_000, 1_000, 300.0), Some(0), "an estimate may have been too low");
        assert_eq!(eta_s(0, 1_000, 0.0), None);
        assert_eq!(eta_s(0, 0, 10.0), None);
        assert_eq!(eta_s(0, 10, f64::INFINITY), None);
    }

    #[test]
    fn lag_is_nothing_when_nothing_is_pending() {
        assert_eq!(lag_ms(0, Some(1), 9_000_000, None), Some(0));
        assert_eq!(lag_ms(5, Some(1_000_000), 9_000_000, None), Some(8_000));
        assert_eq!(lag_ms(5, Some(1_000_000), 9_000_000, Some(s(1))), Some(1_000), "it was idle before");
        assert_eq!(lag_ms(5, Some(1_000_000), 9_000_000, Some(s(60))), Some(8_000));
        assert_eq!(lag_ms(5, Some(9_500_000), 9_000_000, None), Some(0));
        assert_eq!(lag_ms(5, None, 9_000_000, Some(s(1))), None);
    }

    #[test]
    fn a_meter_sums_the_tables() {
        let counters = crate::Counters::new();
        let mut meter = Meter::new();
        meter.push(s(0), &counters.totals());
        let name = crossfade_event::TableName::new("main", "t");
        counters.ingested(100, 5_000, [(&name, 100)]);
        let rates = meter.push(s(2), &counters.totals());
        assert_eq!((rates.copied_rows_per_s, rates.log_bytes_per_s, rates.applied_per_s), (50.0, 2_500.0, 0.0));
    }
}
