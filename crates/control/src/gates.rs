//! Conditions that must hold while a migration runs. Judged from figures and times that are passed in; never a clock.

mod judge;
#[cfg(test)]
mod tests;
mod window;

pub use judge::{Measures, Verdict, evaluate, pause_reason};
pub use window::{Pace, Sample, Window, Windows};

use crate::{Percent, Span};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use std::time::Duration;

/// The gates of a spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Gates {
    /// The share of changes that may go into quarantine, over the last minute, judged from 1,000 changes on.
    pub error_rate: ErrorRate,
    /// How far the sink may be behind the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag: Option<Lag>,
    /// How many rows a second must go into the sink while tables are copied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throughput: Option<Throughput>,
    /// How full the file system may be on which the work folder is, the log in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<Share>,
    /// How much of the machine's memory may be in use, or of the limit that is set for this process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Share>,
}

impl Gates {
    /// Gates that later versions will have: refused by name until then.
    pub const NOT_BUILT: [&str; 1] = ["latency"];
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

/// The gate on the speed of copying.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Throughput {
    /// The lowest mean that passes, in rows a second.
    pub min: u64,
    /// Over how long; a copy that is shorter is not judged.
    #[serde(default = "Throughput::over", rename = "for")]
    pub over: Span,
    /// What happens below it.
    #[serde(default = "Then::warn")]
    pub then: Then,
}

impl Throughput {
    fn over() -> Span {
        Span(Duration::from_secs(300))
    }
}

/// A gate on how much of something is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// The highest share that passes.
    pub max: Percent,
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
