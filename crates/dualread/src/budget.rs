//! What may go wrong before dual reads step down by themselves: a rate of mismatches, and a latency. Pure.

use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, fmt, time::Duration};

/// How much slower the side without the authority may be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LatencyBudget {
    /// The part by which its p95 may be above the other side's: 0.1 for 10 %.
    pub over: f64,
    /// What is below this is not held against it, whatever the part.
    pub slack: Duration,
}

/// Past these, nothing is compared any more until somebody says so.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Budgets {
    /// The part of the judged reads that may mismatch: 0.001 for one in a thousand.
    pub mismatches: f64,
    /// The last so many reads count.
    pub window: usize,
    /// Fewer than so many say nothing yet.
    pub least: usize,
    /// How slow it may be; `None` for any.
    pub latency: Option<LatencyBudget>,
}

impl Default for Budgets {
    fn default() -> Self {
        Self { mismatches: 0.001, window: 1_000, least: 100, latency: None }
    }
}

/// Which budget is spent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// Too many mismatches.
    Mismatches {
        /// So many.
        mismatched: usize,
        /// Of the last so many.
        judged: usize,
    },
    /// The other side is too slow.
    Latency {
        /// The p95 of the side with the authority.
        control_ms: f64,
        /// The p95 of the other one.
        candidate_ms: f64,
    },
}

impl Why {
    /// The budget's name and two figures, as [`crate::STEP_DOWN`] takes them: how many mismatched, of how many; or the p95 of
    /// the side with the authority and of the other one, in milliseconds.
    #[must_use]
    pub fn figures(&self) -> (&'static str, f64, f64) {
        match *self {
            Self::Mismatches { mismatched, judged } => ("mismatches", mismatched as f64, judged as f64),
            Self::Latency { control_ms, candidate_ms } => ("latency", control_ms, candidate_ms),
        }
    }

    /// From such figures; `None` where there is no such budget.
    #[must_use]
    pub fn of_figures(budget: &str, one: f64, other: f64) -> Option<Self> {
        // Whoever may call the function may say any figure: what is no count is none.
        let count = |figure: f64| figure.max(0.0) as usize;
        match budget {
            "mismatches" => Some(Self::Mismatches { mismatched: count(one), judged: count(other) }),
            "latency" => Some(Self::Latency { control_ms: one, candidate_ms: other }),
            _ => None,
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mismatches { mismatched, judged } => {
                write!(f, "{mismatched} of the last {judged} reads that were judged mismatch")
            }
            Self::Latency { control_ms, candidate_ms } => write!(
                f,
                "the side without the authority takes {candidate_ms:.3} ms at p95, the other one {control_ms:.3} ms"
            ),
        }
    }
}

/// The last reads, as far as they are held against the budgets.
#[derive(Debug)]
pub(crate) struct Spent {
    budgets: Budgets,
    judged: VecDeque<bool>,
    mismatched: usize,
    took: VecDeque<(f64, f64)>,
    /// Latencies since the quantiles were last looked at: that sorts the window.
    unlooked: usize,
}

impl Spent {
    pub(crate) fn new(budgets: Budgets) -> Self {
        Self { budgets, judged: VecDeque::new(), mismatched: 0, took: VecDeque::new(), unlooked: 0 }
    }

    /// Begins anew.
    pub(crate) fn forget(&mut self) {
        *self = Self::new(self.budgets);
    }

    fn window(&self) -> usize {
        self.budgets.window.max(1)
    }

    /// Enough reads for a verdict; of a window that is smaller than that, all.
    fn least(&self) -> usize {
        self.budgets.least.clamp(1, self.window())
    }

    /// A read was judged.
    pub(crate) fn judged(&mut self, mismatched: bool) -> Option<Why> {
        if self.judged.len() == self.window() && self.judged.pop_front() == Some(true) {
            self.mismatched -= 1;
        }
        self.judged.push_back(mismatched);
        self.mismatched += usize::from(mismatched);
        let judged = self.judged.len();
        let past = self.mismatched as f64 > self.budgets.mismatches * judged as f64;
        (judged >= self.least() && past).then_some(Why::Mismatches { mismatched: self.mismatched, judged })
    }

    /// Both sides have answered.
    pub(crate) fn took(&mut self, control: Duration, candidate: Duration) -> Option<Why> {
        let budget = self.budgets.latency?;
        if self.took.len() == self.window() {
            self.took.pop_front();
        }
        self.took.push_back((control.as_secs_f64() * 1e3, candidate.as_secs_f64() * 1e3));
        self.unlooked += 1;
        if self.took.len() < self.least() || self.unlooked < (self.least() / 8).max(1) {
            return None;
        }
        self.unlooked = 0;
        let p95 = |of: fn(&(f64, f64)) -> f64| crate::Latency::of(self.took.iter().map(of).collect()).p95_ms;
        let (control_ms, candidate_ms) = (p95(|took| took.0), p95(|took| took.1));
        budget.is_missed(control_ms, candidate_ms).then_some(Why::Latency { control_ms, candidate_ms })
    }
}

impl LatencyBudget {
    /// Whether so slow is too slow.
    pub fn is_missed(&self, control_ms: f64, candidate_ms: f64) -> bool {
        let slack_ms = self.slack.as_secs_f64() * 1e3;
        candidate_ms > control_ms * (1.0 + self.over.max(0.0)) && candidate_ms - control_ms > slack_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn mismatches_are_counted_over_the_window_and_over_nothing_else(
            verdicts in proptest::collection::vec(any::<bool>(), 1..400), window in 1usize..60, least in 1usize..60, part in 0.0..0.6
        ) {
            let mut spent = Spent::new(Budgets { mismatches: part, window, least, latency: None });
            for (index, verdict) in verdicts.iter().enumerate() {
                let found = spent.judged(*verdict);
                let last = &verdicts[(index + 1).saturating_sub(window)..=index];
                let wrong = last.iter().filter(|wrong| **wrong).count();
                let past = last.len() >= least.min(window) && wrong as f64 > part * last.len() as f64;
                prop_assert_eq!(found, past.then_some(Why::Mismatches { mismatched: wrong, judged: last.len() }));
            }
        }
    }

    #[test]
    fn one_mismatch_among_few_reads_says_nothing_yet() {
        let mut spent = Spent::new(Budgets::default());
        assert_eq!(spent.judged(true), None);
        assert!((0..98).all(|_| spent.judged(false).is_none()));
        assert_eq!(spent.judged(false), Some(Why::Mismatches { mismatched: 1, judged: 100 }));
    }

    #[test]
    fn a_slow_side_spends_the_budget_and_one_within_it_does_not() {
        let budget = LatencyBudget { over: 0.1, slack: Duration::from_millis(1) };
        let budgets = Budgets { window: 100, least: 50, latency: Some(budget), ..Budgets::default() };
        let after = |control: u64, candidate: u64| {
            let mut spent = Spent::new(budgets);
            (0..100).find_map(|_| spent.took(Duration::from_millis(control), Duration::from_millis(candidate)))
        };
        assert_eq!(after(100, 109), None);
        assert_eq!(after(100, 111), Some(Why::Latency { control_ms: 100.0, candidate_ms: 111.0 }));
        assert_eq!(after(1, 2), None, "a millisecond is within the slack");
    }
}
