//! Counters and latencies, for whoever watches.

use crate::{Flag, Histogram, Latency, Outcome, Side, Unjudged};
use serde::Serialize;
use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering},
};

macro_rules! counts {
    ($($(#[doc = $doc:literal])+ $name:ident,)*) => {
        /// What became of the reads.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
        pub struct Counts {
            $($(#[doc = $doc])+ pub $name: u64,)*
        }

        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)*
        }

        impl Counters {
            fn read(&self) -> Counts {
                Counts { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }

        impl Counts {
            /// By name.
            fn each(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }
        }
    };
}

counts! {
    /// All calls.
    reads,
    /// Calls of which both sides were asked.
    sampled,
    /// Calls in the share that were not compared, for as many as may be were being compared.
    skipped_busy,
    /// Calls in the share that were not compared, for the breaker was open.
    skipped_open,
    /// Both answers were the same.
    matched,
    /// They differed, and the other side's was right once it was past the position of the first answer.
    explained_by_lag,
    /// They differed, and went on to when no lag could explain it.
    mismatched,
    /// The side without the authority failed.
    candidate_failed,
    /// It did not answer in time.
    candidate_timed_out,
    /// The side with the authority failed, the other one answered.
    control_failed,
    /// Both failed.
    both_failed,
    /// Differed, and the other side did not come past the position in time.
    unjudged_behind,
    /// Differed, and the answer changed again and again while it was looked at.
    unjudged_moving,
    /// Differed, and no position could be asked for.
    unjudged_no_place,
    /// Differed, and one side failed when it was asked again, or the authority changed.
    unjudged_interrupted,
}

/// What is measured.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) counters: Counters,
    old: Histogram,
    new: Histogram,
}

pub(crate) fn up(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Metrics {
    pub(crate) fn latency_of(&self, side: Side) -> &Histogram {
        match side {
            Side::Old => &self.old,
            Side::New => &self.new,
        }
    }

    pub(crate) fn count(&self, outcome: &Outcome) {
        let counters = &self.counters;
        up(match outcome {
            Outcome::Match => &counters.matched,
            Outcome::Lag => &counters.explained_by_lag,
            Outcome::Mismatch(_) => &counters.mismatched,
            Outcome::CandidateFailed => &counters.candidate_failed,
            Outcome::CandidateTimedOut => &counters.candidate_timed_out,
            Outcome::ControlFailed => &counters.control_failed,
            Outcome::BothFailed => &counters.both_failed,
            Outcome::Unjudged(Unjudged::Behind) => &counters.unjudged_behind,
            Outcome::Unjudged(Unjudged::Moving) => &counters.unjudged_moving,
            Outcome::Unjudged(Unjudged::NoPlace) => &counters.unjudged_no_place,
            Outcome::Unjudged(Unjudged::Interrupted) => &counters.unjudged_interrupted,
        });
    }

    pub(crate) fn snapshot(&self, flag: Flag, stepped_down: Option<String>, breaker: &'static str) -> Snapshot {
        Snapshot {
            flag,
            stepped_down,
            breaker,
            counts: self.counters.read(),
            old: self.old.latency(),
            new: self.new.latency(),
        }
    }
}

/// All that is measured, at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Snapshot {
    /// Who has the authority, and how much should be compared.
    pub flag: Flag,
    /// Why nothing is compared in spite of that.
    pub stepped_down: Option<String>,
    /// `closed`, `open` or `half-open`.
    pub breaker: &'static str,
    /// What became of the reads.
    pub counts: Counts,
    /// How long the old side took, of sampled calls.
    pub old: Latency,
    /// How long the new side took, of sampled calls.
    pub new: Latency,
}

impl Snapshot {
    /// The text that Prometheus reads, with `migration` as a label.
    pub fn prometheus(&self, migration: &str) -> String {
        let migration = migration.replace(['\\', '"', '\n'], "_");
        let mut text = String::from("# TYPE crossfade_dual_reads_total counter\n");
        for (what, count) in self.counts.each() {
            let _ = writeln!(text, "crossfade_dual_reads_total{{migration=\"{migration}\",what=\"{what}\"}} {count}");
        }
        text.push_str("# TYPE crossfade_dual_read_seconds summary\n");
        for (side, latency) in [("old", &self.old), ("new", &self.new)] {
            let labels = format!("migration=\"{migration}\",side=\"{side}\"");
            for (quantile, ms) in [("0.5", latency.p50_ms), ("0.95", latency.p95_ms), ("0.99", latency.p99_ms)] {
                let seconds = ms / 1e3;
                let _ = writeln!(text, "crossfade_dual_read_seconds{{{labels},quantile=\"{quantile}\"}} {seconds}");
            }
            let _ = writeln!(text, "crossfade_dual_read_seconds_count{{{labels}}} {}", latency.count);
        }
        let gauges = [
            ("share", self.flag.percent.fraction()),
            ("epoch", self.flag.epoch as f64),
            ("stepped_down", f64::from(u8::from(self.stepped_down.is_some()))),
            ("breaker_open", f64::from(u8::from(self.breaker == "open"))),
        ];
        for (name, value) in gauges {
            let _ = writeln!(text, "# TYPE crossfade_dual_reads_{name} gauge");
            let _ = writeln!(text, "crossfade_dual_reads_{name}{{migration=\"{migration}\"}} {value}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_outcome_has_a_counter_and_a_line() {
        let metrics = Metrics::default();
        metrics.count(&Outcome::Lag);
        metrics.count(&Outcome::Unjudged(Unjudged::Behind));
        metrics.latency_of(Side::New).record(Duration::from_millis(10));
        let text = metrics.snapshot(Flag::START, None, "closed").prometheus("shop");
        for line in [
            "crossfade_dual_reads_total{migration=\"shop\",what=\"explained_by_lag\"} 1",
            "crossfade_dual_reads_total{migration=\"shop\",what=\"unjudged_behind\"} 1",
            "crossfade_dual_reads_total{migration=\"shop\",what=\"mismatched\"} 0",
            "crossfade_dual_read_seconds_count{migration=\"shop\",side=\"new\"} 1",
            "crossfade_dual_reads_stepped_down{migration=\"shop\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nin\n{text}");
        }
    }
}
