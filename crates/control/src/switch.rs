//! What the journal knows of a switch: who has the authority, what was proven, who agreed, and what is under way.
//!
//! The word that counts is not here: it is a row of `crossfade.authority` in the side that has the authority, changed
//! by one conditional write. What stands here follows it, and after a crash is set right by it.

use crossfade_event::{Cut, Side};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Who may write, as far as the journal has heard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Authority {
    /// The side that has it.
    pub side: Side,
    /// Raised by every switch, and by every one that was taken back; a writer with a lower one is refused.
    pub epoch: u64,
    /// The switch is done, and not everybody has been told yet.
    #[serde(default)]
    pub to_route: bool,
}

/// Which way a switch goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// To the new side.
    Cutover,
    /// Back to the old one.
    Failback,
}

impl Direction {
    /// The side that has the authority until then.
    pub fn from(self) -> Side {
        self.to().other()
    }

    /// The side that has it from then on.
    pub fn to(self) -> Side {
        match self {
            Self::Cutover => Side::New,
            Self::Failback => Side::Old,
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cutover => "cutover",
            Self::Failback => "failback",
        })
    }
}

/// A switch under way: what was meant, before anything was held up for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Intent {
    /// Which way.
    pub direction: Direction,
    /// The epoch that it will raise the authority to.
    pub epoch: u64,
    /// Writers are held up for at most so long.
    pub deadline_ms: u64,
    /// When it began, in microseconds since 1970; for people.
    pub at_us: i64,
}

/// The proof that both sides agreed. Void as soon as anything was repaired, the shape changed, or a difference was found.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CleanPass {
    /// The position in the source up to which the comparison speaks, as text.
    pub position: Option<String>,
    /// How many rows of the target were compared.
    pub rows: u64,
    /// When it was done, in microseconds since 1970.
    pub at_us: i64,
    /// The place in the log from which on changes are not covered by it: where the sink stood when it was begun. Not known of
    /// one that an earlier version wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Cut>,
    /// By what the target tells whether anybody else has written it since; the connector's own words. Absent where it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<String>,
}

/// Why the last proof holds no more.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Voided {
    /// Why, in words.
    pub why: String,
}

/// Somebody's word that a switch may be made.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Approval {
    /// Who.
    pub who: String,
    /// Why.
    pub why: String,
    /// When, in microseconds since 1970.
    pub at_us: i64,
}

/// The one who has written the longest without an end, in a transaction that a switch would have to wait for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OldestWriter {
    /// Since when, in milliseconds.
    pub age_ms: u64,
    /// Who: the server process, its application, the table.
    pub who: String,
}

/// What was seen before a switch, for the guards to judge.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Facts {
    /// How long a mark took from the source into the sink; `None` when it did not arrive in time.
    pub mark_ms: Option<u64>,
    /// Changes in quarantine.
    pub quarantined: u64,
    /// The oldest transaction that writes the unit's tables.
    pub oldest_writer: Option<OldestWriter>,
    /// How long writers will be held up, as it looks.
    pub predicted_pause_ms: Option<u64>,
    /// Gates that do not hold, in their own words.
    pub gates: Vec<String>,
    /// Rights and settings that are missing at either end, each with its remedy.
    pub missing: Vec<String>,
    /// What is known of both sides over the way back; before a failback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub way_back: Option<WayBack>,
}

/// What a comparison over the way back says.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WayBack {
    /// Its rows can be compared.
    Comparable {
        /// When both sides last agreed, in microseconds since 1970; `None` where none of it counts.
        passed_at_us: Option<i64>,
    },
    /// They cannot.
    Incomparable {
        /// Why not.
        why: String,
    },
}

/// What the spec allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Limits {
    /// Writers are held up for at most so long.
    pub deadline_ms: u64,
    /// One try at the locks lasts at most so long.
    pub lock_timeout_ms: u64,
    /// A clean pass counts for so long.
    pub verified_within_ms: u64,
    /// So many people must have agreed.
    pub approvals: u32,
}

/// A guard's verdict, with what it was judged by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Guarded {
    /// The guard's name.
    pub guard: String,
    /// Whether it lets pass.
    pub holds: bool,
    /// What was seen.
    pub seen: String,
    /// What is asked for.
    pub wanted: String,
    /// What would allow it; empty where it holds.
    pub remedy: String,
}

/// What the guards said last.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Judgement {
    /// Before which step.
    pub before: Direction,
    /// Guard by guard.
    pub guards: Vec<Guarded>,
    /// When, in microseconds since 1970.
    pub at_us: i64,
}

impl Judgement {
    /// Whether every guard lets pass.
    pub fn passes(&self) -> bool {
        self.guards.iter().all(|guard| guard.holds)
    }
}
