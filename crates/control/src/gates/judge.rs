//! What the gates say of what was measured.

use super::{Collisions, ErrorRate, Gates, Lag, Latency, Share, Then, Throughput, Window};
use crate::{Increase, Percent, Span};
use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};

/// Fewer changes than this in a window say nothing about a rate.
const SAMPLE_MIN: u64 = 1_000;

/// What the gates are judged by. What is not known says nothing: its gate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Measures {
    /// The last minute.
    pub window: Window,
    /// How far the sink is behind; `None` while that says nothing (a backfill, a pause).
    pub lag: Option<Duration>,
    /// Rows of copies a second into the sink, over the gate's own span; `None` unless tables were copied all that time.
    pub rows_per_s: Option<u64>,
    /// How full the file system of the work folder is.
    pub disk: Option<Percent>,
    /// How much of the machine's memory (or of the limit set for this process) is in use.
    pub memory: Option<Percent>,
    /// By how much the source has been slower over the last minute than its baseline; `None` until enough was seen.
    pub slower: Option<Increase>,
    /// Collisions that are in quarantine, but for those that a person has answered; `None` until they were counted.
    pub collisions: Option<u64>,
}

/// The figures behind a verdict, as the journal keeps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Inputs {
    /// Changes of the last minute that went into the sink.
    pub applied: u64,
    /// Changes of the last minute that went into quarantine.
    pub quarantined: u64,
    /// How far the sink was behind.
    pub lag_ms: Option<u64>,
    /// Rows of copies a second into the sink.
    pub rows_per_s: Option<u64>,
    /// How full the disk was.
    pub disk: Option<Percent>,
    /// How much of the memory was in use.
    pub memory: Option<Percent>,
    /// By how much the source was slower than its baseline.
    pub slower: Option<Increase>,
    /// Collisions that were in quarantine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collisions: Option<u64>,
}

impl From<&Measures> for Inputs {
    fn from(measures: &Measures) -> Self {
        Self {
            applied: measures.window.applied,
            quarantined: measures.window.quarantined,
            lag_ms: measures.lag.map(|lag| u64::try_from(lag.as_millis()).unwrap_or(u64::MAX)),
            rows_per_s: measures.rows_per_s,
            disk: measures.disk,
            memory: measures.memory,
            slower: measures.slower,
            collisions: measures.collisions,
        }
    }
}

/// A gate that fell, and by which the migration takes itself back.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fall {
    /// What the gate said.
    pub verdict: Verdict,
    /// What it was judged by.
    pub inputs: Inputs,
}

impl Fall {
    /// Who did it, for the journal: `gate error_rate`.
    pub fn by(&self) -> String {
        format!("gate {}", self.verdict.gate)
    }
}

impl fmt::Display for Fall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rolled back by {}: {}", self.by(), self.verdict.says())
    }
}

/// What a gate says.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Verdict {
    /// Its name in the spec.
    pub gate: String,
    /// Whether it holds.
    pub holds: bool,
    /// What was measured; `-` where that says nothing yet.
    pub measured: String,
    /// Its limit.
    pub max: String,
    /// What happens beyond it: `warn`, `pause` or `rollback`.
    pub then: String,
}

impl Verdict {
    fn of(gate: &str, holds: bool, measured: String, max: String, then: Then) -> Self {
        let then = match then {
            Then::Warn => "warn",
            Then::Pause => "pause",
            Then::Rollback => "rollback",
        };
        Self { gate: gate.to_owned(), holds, measured, max, then: then.to_owned() }
    }

    fn of_share(gate: &str, measured: Option<Percent>, Share { max, then }: Share) -> Self {
        let holds = measured.is_none_or(|share| share <= max);
        Self::of(gate, holds, measured.map_or("-".to_owned(), |share| share.to_string()), max.to_string(), then)
    }

    /// Whether the migration must pause now.
    pub fn pauses(&self) -> bool {
        !self.holds && self.then == "pause"
    }

    /// Whether the migration must take back what it has written.
    pub fn rolls_back(&self) -> bool {
        !self.holds && self.then == "rollback"
    }

    /// What is wrong, as a sentence that names the limit.
    pub fn says(&self) -> String {
        let what = match self.gate.as_str() {
            "error_rate" => " of the last minute's changes went into quarantine, the limit is",
            "throughput" => " into the sink, the floor is",
            "disk" => " of the disk under the work folder is full, the limit is",
            "memory" => " of the memory is in use, the limit is",
            "collisions" => " in quarantine that nobody has answered by `resume`, the limit is",
            "latency" => " is what the source takes over its latency before the migration, the limit is",
            _ => " behind the source, the limit is",
        };
        format!("{}{what} {}", self.measured, self.max)
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
    if let Some(Throughput { min, over, then }) = gates.throughput {
        let holds = measures.rows_per_s.is_none_or(|rows| rows >= min);
        let shown = measures.rows_per_s.map_or("-".to_owned(), |rows| format!("{rows} rows/s"));
        verdicts.push(Verdict::of("throughput", holds, shown, format!("{min} rows/s over {over}"), then));
    }
    verdicts.extend(gates.disk.map(|gate| Verdict::of_share("disk", measures.disk, gate)));
    verdicts.extend(gates.memory.map(|gate| Verdict::of_share("memory", measures.memory, gate)));
    if let Some(Latency { max, then }) = gates.latency {
        let holds = measures.slower.is_none_or(|slower| slower <= max);
        let shown = measures.slower.map_or("-".to_owned(), |slower| slower.to_string());
        verdicts.push(Verdict::of("latency", holds, shown, max.to_string(), then));
    }
    if let Some(Collisions { max, then }) = gates.collisions {
        let holds = measures.collisions.is_none_or(|count| count <= max);
        let shown = match measures.collisions {
            None => "-".to_owned(),
            Some(1) => "1 collision".to_owned(),
            Some(count) => format!("{count} collisions"),
        };
        verdicts.push(Verdict::of("collisions", holds, shown, max.to_string(), then));
    }
    verdicts
}

/// Who pauses and why, for [`crate::Command::Pause`]; `None` when nothing does.
pub fn pause_reason(verdicts: &[Verdict]) -> Option<(String, String)> {
    let first = verdicts.iter().find(|verdict| verdict.pauses())?;
    Some((format!("gate {}", first.gate), first.says()))
}

/// The gate by which the migration takes itself back, for [`crate::Command::FallBack`]; `None` when none says so.
pub fn fall(verdicts: &[Verdict], measures: &Measures) -> Option<Fall> {
    let first = verdicts.iter().find(|verdict| verdict.rolls_back())?;
    Some(Fall { verdict: first.clone(), inputs: measures.into() })
}
