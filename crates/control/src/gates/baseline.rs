//! How fast a source answered before a migration, and how much slower it is now. Pure; times are of a monotonic clock.
//!
//! Where the server keeps statistics of its statements, those that took most of its time before are compared with themselves,
//! each weighed by how often it ran lately: another mix of statements is not taken for another speed. Else one question of
//! our own is.

use crate::Increase;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

/// How far back is looked.
const WINDOW: Duration = Duration::from_secs(60);

/// Fewer statements of the application than this say nothing.
const STATEMENTS_MIN: u64 = 50;

/// Fewer questions of ours than this say nothing.
const PROBES_MIN: usize = 5;

/// A question of ours is not judged for less than this: it takes fractions of a millisecond, and so do others' passing needs.
const PROBE_SLACK_US: u64 = 1_000;

/// How often a statement has run, and how long that took in all, since the server's statistics began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Count {
    /// How often.
    pub calls: u64,
    /// In microseconds.
    pub total_us: u64,
}

/// What the source's latency was; drawn before tables are copied, and kept in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Baseline {
    /// By the server's own statistics: the statements that took most of its time, by the numbers that it gives them.
    Statements(BTreeMap<i64, Count>),
    /// By a question of ours: the median of its answers, in microseconds.
    Probe(u64),
}

impl Baseline {
    /// By what it is measured, in a word.
    pub fn by(&self) -> &'static str {
        match self {
            Self::Statements(_) => "the statements of the application",
            Self::Probe(_) => "a question of our own",
        }
    }
}

/// The last minute, against a baseline.
#[derive(Debug, Clone, Default)]
pub struct Slowness {
    counts: VecDeque<(Duration, BTreeMap<i64, Count>)>,
    probes: VecDeque<(Duration, u64)>,
}

impl Slowness {
    /// Notes the server's statistics as they are now. Figures that fell were set back, and begin anew.
    pub fn counted(&mut self, at: Duration, counts: BTreeMap<i64, Count>) {
        let fell = |last: &BTreeMap<i64, Count>| {
            last.iter()
                .any(|(id, old)| counts.get(id).is_none_or(|new| new.calls < old.calls || new.total_us < old.total_us))
        };
        if self.counts.back().is_some_and(|(_, last)| fell(last)) {
            self.counts.clear();
        }
        while self.counts.get(1).is_some_and(|(then, _)| at.saturating_sub(*then) >= WINDOW) {
            self.counts.pop_front();
        }
        self.counts.push_back((at, counts));
    }

    /// Notes how long the question of ours took.
    pub fn probed(&mut self, at: Duration, took_us: u64) {
        while self.probes.front().is_some_and(|(then, _)| at.saturating_sub(*then) >= WINDOW) {
            self.probes.pop_front();
        }
        self.probes.push_back((at, took_us));
    }

    /// By how much slower it has been; `None` until enough was seen.
    pub fn over(&self, baseline: &Baseline) -> Option<Increase> {
        match baseline {
            Baseline::Statements(before) => self.statements_over(before),
            Baseline::Probe(before_us) => {
                let now_us = median(self.probes.iter().map(|(_, took)| *took).collect())?;
                if self.probes.len() < PROBES_MIN {
                    return None;
                }
                let slack = if now_us > *before_us { PROBE_SLACK_US.min(now_us - before_us) } else { 0 };
                Increase::of((*before_us).max(1), now_us - slack)
            }
        }
    }

    fn statements_over(&self, before: &BTreeMap<i64, Count>) -> Option<Increase> {
        let (first, last) = (&self.counts.front()?.1, &self.counts.back()?.1);
        let (mut ran, mut expected_us, mut took_us) = (0u64, 0u128, 0u64);
        for (id, base) in before.iter().filter(|(_, base)| base.calls > 0) {
            let (Some(old), Some(new)) = (first.get(id), last.get(id)) else { continue };
            let calls = new.calls.saturating_sub(old.calls);
            ran = ran.saturating_add(calls);
            took_us = took_us.saturating_add(new.total_us.saturating_sub(old.total_us));
            expected_us += u128::from(calls) * u128::from(base.total_us) / u128::from(base.calls);
        }
        let expected_us = u64::try_from(expected_us).ok()?;
        if ran < STATEMENTS_MIN { None } else { Increase::of(expected_us, took_us) }
    }

    /// Forgets everything: after a resume it is judged anew.
    pub fn clear(&mut self) {
        self.counts.clear();
        self.probes.clear();
    }
}

/// The middle one; `None` of none.
fn median(mut all: Vec<u64>) -> Option<u64> {
    all.sort_unstable();
    all.get(all.len() / 2).copied()
}

impl Baseline {
    /// What a question of ours takes, by some answers; `None` without any.
    pub fn of_probes(took_us: Vec<u64>) -> Option<Self> {
        median(took_us).map(Self::Probe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn counts(of: &[(i64, u64, u64)]) -> BTreeMap<i64, Count> {
        of.iter().map(|(id, calls, total_us)| (*id, Count { calls: *calls, total_us: *total_us })).collect()
    }

    fn said(slowness: &Slowness, baseline: &Baseline) -> Option<String> {
        slowness.over(baseline).map(|slower| slower.to_string())
    }

    #[test]
    fn statements_are_compared_with_themselves_whatever_the_mix() {
        let before = Baseline::Statements(counts(&[(1, 100, 100_000), (2, 100, 10_000_000)]));
        let mut slowness = Slowness::default();
        slowness.counted(at(0), counts(&[(1, 1_000, 1_000_000), (2, 100, 10_000_000), (3, 5, 5)]));
        assert_eq!(said(&slowness, &before), None);
        // A hundred of the slow statement more is no other speed.
        slowness.counted(at(10), counts(&[(1, 1_000, 1_000_000), (2, 200, 20_000_000), (3, 5, 5)]));
        assert_eq!(said(&slowness, &before).as_deref(), Some("+0%"));
        slowness.counted(at(20), counts(&[(1, 1_000, 1_000_000), (2, 300, 40_000_000), (3, 900, 900_000_000)]));
        assert_eq!(said(&slowness, &before).as_deref(), Some("+50%"), "a statement that is new has no baseline");
        slowness.counted(at(81), counts(&[(1, 1_000, 1_000_000), (2, 400, 50_000_000), (3, 900, 900_000_000)]));
        assert_eq!(said(&slowness, &before).as_deref(), Some("+0%"), "a minute");
        // Somebody has set the statistics back.
        slowness.counted(at(82), counts(&[(1, 0, 0), (2, 49, 0), (3, 0, 0)]));
        slowness.counted(at(83), counts(&[(1, 0, 0), (2, 98, 4_900_000_000), (3, 0, 0)]));
        assert_eq!(said(&slowness, &before), None, "too few");
        slowness.clear();
        assert_eq!(said(&slowness, &before), None);
    }

    #[test]
    fn a_question_of_ours_is_judged_by_its_median_beyond_a_millisecond() {
        let before = Baseline::of_probes(vec![900, 100, 1_000_000, 1_000, 2_000]).unwrap();
        assert_eq!(before, Baseline::Probe(1_000));
        let mut slowness = Slowness::default();
        for second in 0..4 {
            slowness.probed(at(second), 10_000);
            assert_eq!(said(&slowness, &before), None);
        }
        slowness.probed(at(4), 10_000);
        assert_eq!(said(&slowness, &before).as_deref(), Some("+800%"));
        (5..70).for_each(|second| slowness.probed(at(second), 1_900));
        assert_eq!(said(&slowness, &before).as_deref(), Some("+0%"));
        (70..140).for_each(|second| slowness.probed(at(second), 500));
        assert_eq!(said(&slowness, &before).as_deref(), Some("-50%"));
    }
}
