//! Conditions that must hold while a migration runs. Judged from figures and times that are passed in; never a clock.

mod baseline;
mod judge;
#[cfg(test)]
mod tests;
mod window;

pub use baseline::{Baseline, Count, Slowness};
pub use judge::{Fall, Inputs, Measures, Verdict, evaluate, fall, pause_reason};
pub use window::{Pace, Sample, Window, Windows};

use crate::{Increase, Percent, Span};
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
    /// By how much the source may answer slower than before the migration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
    /// How many changes may be in quarantine because another row has their new key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collisions: Option<Collisions>,
}

impl Gates {
    /// The gates by which a migration takes itself back.
    pub fn rolling_back(&self) -> Vec<&'static str> {
        let thens = [
            ("error_rate", Some(self.error_rate.then)),
            ("lag", self.lag.map(|gate| gate.then)),
            ("throughput", self.throughput.map(|gate| gate.then)),
            ("disk", self.disk.map(|gate| gate.then)),
            ("memory", self.memory.map(|gate| gate.then)),
            ("latency", self.latency.map(|gate| gate.then)),
            ("collisions", self.collisions.map(|gate| gate.then)),
        ];
        thens.into_iter().filter(|(_, then)| *then == Some(Then::Rollback)).map(|(gate, _)| gate).collect()
    }

    /// The same for the stream back, after a switch: what the new side holds is not ours to take back, so a gate that would
    /// roll back pauses.
    #[must_use]
    pub fn of_way_back(mut self) -> Self {
        let Self { error_rate, lag, throughput, disk, memory, latency, collisions } = &mut self;
        let thens = [
            Some(&mut error_rate.then),
            lag.as_mut().map(|gate| &mut gate.then),
            throughput.as_mut().map(|gate| &mut gate.then),
            disk.as_mut().map(|gate| &mut gate.then),
            memory.as_mut().map(|gate| &mut gate.then),
            latency.as_mut().map(|gate| &mut gate.then),
            collisions.as_mut().map(|gate| &mut gate.then),
        ];
        for then in thens.into_iter().flatten().filter(|then| **then == Then::Rollback) {
            *then = Then::Pause;
        }
        self
    }
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

/// The gate on the source's latency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Latency {
    /// The highest increase over the baseline that passes.
    pub max: Increase,
    /// What happens beyond it.
    #[serde(default = "Then::warn")]
    pub then: Then,
}

/// The gate on collisions: changes that the target refused for a key, or another unique value, that another row has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Collisions {
    /// How many may be in quarantine, but for those that a person has answered by `resume`.
    pub max: u64,
    /// What happens beyond it.
    #[serde(default = "Then::pause")]
    pub then: Then,
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
    /// The migration takes back what it has written, as `crossfade rollback` does, and begins anew once a person says
    /// `resume`. After a switch it pauses.
    Rollback,
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
            "rollback" => Ok(Self::Rollback),
            other => Err(D::Error::custom(format!("`{other}` is not \"warn\", \"pause\" or \"rollback\""))),
        }
    }
}
