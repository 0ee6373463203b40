//! What the gates say of what was measured.

use super::{ErrorRate, Gates, Lag, Share, Then, Throughput, Window};
use crate::{Percent, Span};
use serde::{Deserialize, Serialize};
use std::time::Duration;

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

    fn of_share(gate: &str, measured: Option<Percent>, Share { max, then }: Share) -> Self {
        let holds = measured.is_none_or(|share| share <= max);
        Self::of(gate, holds, measured.map_or("-".to_owned(), |share| share.to_string()), max.to_string(), then)
    }

    /// Whether the migration must pause now.
    pub fn pauses(&self) -> bool {
        !self.holds && self.then == "pause"
    }

    /// What is wrong, as a sentence that names the limit.
    pub fn says(&self) -> String {
        let what = match self.gate.as_str() {
            "error_rate" => " of the last minute's changes went into quarantine, the limit is",
            "throughput" => " into the sink, the floor is",
            "disk" => " of the disk under the work folder is full, the limit is",
            "memory" => " of the memory is in use, the limit is",
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
    verdicts
}

/// Who pauses and why, for [`crate::Command::Pause`]; `None` when nothing does.
pub fn pause_reason(verdicts: &[Verdict]) -> Option<(String, String)> {
    let first = verdicts.iter().find(|verdict| verdict.pauses())?;
    Some((format!("gate {}", first.gate), first.says()))
}
