//! Conditions that must hold while a migration runs. Judged from figures and times that are passed in; never a clock.

use crate::{Percent, Span};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use std::{collections::VecDeque, time::Duration};

/// Fewer changes than this in a window say nothing about a rate.
const SAMPLE_MIN: u64 = 1_000;

/// How far back the error rate looks.
const WINDOW: Duration = Duration::from_secs(60);

/// The gates of a spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Gates {
    /// The share of changes that may go into quarantine, over the last minute, judged from 1,000 changes on.
    pub error_rate: ErrorRate,
    /// How far the sink may be behind the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag: Option<Lag>,
}

impl Gates {
    /// Gates that later versions will have: refused by name until then.
    pub const NOT_BUILT: [&str; 4] = ["throughput", "disk", "memory", "latency"];
}

/// The gate on quarantined changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ErrorRate {
    /// The highest share that passes.
    pub max: Percent,
    /// What happens beyond it.
    #[serde(default = "Then::pause")]
    pub then: Then,
}

impl Default for ErrorRate {
    fn default() -> Self {
        Self { max: Percent::from_millionths(10_000), then: Then::Pause }
    }
}

/// The gate on lag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Lag {
    /// The longest that passes.
    pub max: Span,
    /// What happens beyond it.
    #[serde(default = "Then::warn")]
    pub then: Then,
}

/// What happens beyond a gate's limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Then {
    /// It is said, and everything goes on.
    Warn,
    /// The migration is paused until `resume`.
    Pause,
}

impl Then {
    fn pause() -> Self {
        Self::Pause
    }

    fn warn() -> Self {
        Self::Warn
    }
}

impl<'de> Deserialize<'de> for Then {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "warn" => Ok(Self::Warn),
            "pause" => Ok(Self::Pause),
            "rollback" => Err(D::Error::custom("`rollback` is not built yet for gates; write \"warn\" or \"pause\"")),
            other => Err(D::Error::custom(format!("`{other}` is not \"warn\" or \"pause\""))),
        }
    }
}

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

/// Samples of the last minute. Times are of a monotonic clock, from any beginning.
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

/// What the gates are judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Measures {
    /// The last minute.
    pub window: Window,
    /// How far the sink is behind; `None` while that says nothing (a backfill, a pause).
    pub lag: Option<Duration>,
}

/// What a gate says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Its name in the spec.
    pub gate: String,
    /// Whether it holds.
    pub holds: bool,
    /// What was measured; `-` where that says nothing yet.
    pub measured: String,
    /// Its limit.
    pub max: String,
    /// What happens beyond it: `warn` or `pause`.
    pub then: String,
}

impl Verdict {
    fn of(gate: &str, holds: bool, measured: String, max: String, then: Then) -> Self {
        let then = match then {
            Then::Warn => "warn",
            Then::Pause => "pause",
        };
        Self { gate: gate.to_owned(), holds, measured, max, then: then.to_owned() }
    }

    /// Whether the migration must pause now.
    pub fn pauses(&self) -> bool {
        !self.holds && self.then == "pause"
    }
}

/// Judges every gate of the spec.
pub fn evaluate(gates: &Gates, measures: &Measures) -> Vec<Verdict> {
    let Window { applied, quarantined } = measures.window;
    let tried = applied.saturating_add(quarantined);
    let rate = Percent::of(quarantined, tried);
    let enough = tried >= SAMPLE_MIN;
    let ErrorRate { max, then } = gates.error_rate;
    let shown = if enough { rate.to_string() } else { "-".to_owned() };
    let mut verdicts = vec![Verdict::of("error_rate", !enough || rate <= max, shown, max.to_string(), then)];
    if let Some(Lag { max, then }) = gates.lag {
        let holds = measures.lag.is_none_or(|lag| lag <= max.0);
        let shown = measures.lag.map_or("-".to_owned(), |lag| Span(lag).to_string());
        verdicts.push(Verdict::of("lag", holds, shown, max.to_string(), then));
    }
    verdicts
}

/// Who pauses and why, for [`crate::Command::Pause`]; `None` when nothing does.
pub fn pause_reason(verdicts: &[Verdict]) -> Option<(String, String)> {
    let first = verdicts.iter().find(|verdict| verdict.pauses())?;
    let what = if first.gate == "error_rate" {
        " of the last minute's changes went into quarantine"
    } else {
        " behind the source"
    };
    Some((format!("gate {}", first.gate), format!("{}{what}, the limit is {}", first.measured, first.max)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(gates: &str, applied: u64, quarantined: u64, lag_ms: Option<u64>) -> Vec<(String, bool, bool)> {
        let gates: Gates = toml::from_str(gates).unwrap();
        let lag = lag_ms.map(Duration::from_millis);
        let verdicts = evaluate(&gates, &Measures { window: Window { applied, quarantined }, lag });
        verdicts.iter().map(|verdict| (verdict.gate.clone(), verdict.holds, verdict.pauses())).collect()
    }

    #[test]
    fn without_a_word_one_percent_of_errors_pauses() {
        let one = |holds, pauses| vec![("error_rate".to_owned(), holds, pauses)];
        assert_eq!(judged("", 9_900, 100, Some(1 << 40)), one(true, false));
        assert_eq!(judged("", 9_899, 101, None), one(false, true));
        assert_eq!(judged("error_rate = { max = \"50%\", then = \"warn\" }", 1, 5_000, None), one(false, false));
        assert_eq!(judged("error_rate = { max = \"0%\" }", 1_000_000, 1, None), one(false, true));
    }

    #[test]
    fn a_handful_of_changes_is_no_rate() {
        assert_eq!(judged("", 0, 999, None)[0], ("error_rate".to_owned(), true, false));
        assert_eq!(judged("", 0, 1_000, None)[0], ("error_rate".to_owned(), false, true));
    }

    #[test]
    fn lag_warns_unless_told_to_pause_and_unknown_lag_holds() {
        let lag = |spec: &str, ms| judged(spec, 0, 0, ms)[1].clone();
        let (warn, pause) = ("lag = { max = \"30s\" }", "lag = { max = \"30s\", then = \"pause\" }");
        assert_eq!(lag(warn, Some(30_000)), ("lag".to_owned(), true, false));
        assert_eq!(lag(warn, Some(30_001)), ("lag".to_owned(), false, false));
        assert_eq!(lag(pause, Some(30_001)), ("lag".to_owned(), false, true));
        assert_eq!(lag(pause, None), ("lag".to_owned(), true, false));
    }

    #[test]
    fn a_pause_says_who_and_why() {
        let gates: Gates = toml::from_str("lag = { max = \"2s\", then = \"pause\" }").unwrap();
        let window = Window { applied: 950, quarantined: 50 };
        let both = evaluate(&gates, &Measures { window, lag: Some(Duration::from_secs(3)) });
        let (by, reason) = pause_reason(&both).unwrap();
        assert_eq!(
            (by.as_str(), reason.as_str()),
            ("gate error_rate", "5% of the last minute's changes went into quarantine, the limit is 1%")
        );
        let late = evaluate(&gates, &Measures { window: Window::default(), lag: Some(Duration::from_secs(3)) });
        assert_eq!(pause_reason(&late).unwrap().1, "3s behind the source, the limit is 2s");
        assert_eq!(pause_reason(&evaluate(&gates, &Measures::default())), None);
    }

    #[test]
    fn what_is_not_built_or_misspelt_is_refused_by_name() {
        for (spec, word) in [
            ("disk = { max = \"90%\" }", "disk"),
            ("throughput = { min = 1 }", "throughput"),
            ("error_rate = { max = \"1%\", then = \"rollback\" }", "`rollback` is not built yet"),
            ("error_rate = { max = \"1%\", then = \"stop\" }", "stop"),
            ("error_rate = { max = \"one\" }", "one"),
            ("error_rate = { max = \"1%\", over = \"5m\" }", "over"),
            ("lag = { then = \"warn\" }", "max"),
        ] {
            let refused = toml::from_str::<Gates>(spec).unwrap_err().to_string();
            assert!(refused.contains(word), "{spec}: {refused}");
        }
    }

    #[test]
    fn a_window_is_the_last_minute_and_a_restart_begins_anew() {
        let mut windows = Windows::new();
        let sample = |applied, quarantined| Sample { applied, quarantined };
        let at = Duration::from_secs;
        assert_eq!(windows.push(at(0), sample(100, 0)), Window::default());
        assert_eq!(windows.push(at(30), sample(200, 10)), Window { applied: 100, quarantined: 10 });
        assert_eq!(windows.push(at(90), sample(300, 10)), Window { applied: 100, quarantined: 0 });
        assert_eq!(windows.push(at(400), sample(400, 11)), Window { applied: 100, quarantined: 1 });
        assert_eq!(windows.push(at(401), sample(5, 0)), Window::default());
        windows.clear();
        assert_eq!(windows.push(at(402), sample(50, 40)), Window::default());
    }
}
