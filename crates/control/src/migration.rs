//! Where a migration stands: the fold of its journal.

use crate::{Approval, Authority, Baseline, CleanPass, Fall, Intent, Judgement, ReadJudgement, Voided};
use crossfade_event::{Cut, Position};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

/// How far a migration has come. Set by decisions only; survives a restart, for the journal does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// There is a spec, nothing more.
    #[default]
    Draft,
    /// Preflight said yes.
    Planned,
    /// The target's objects are there.
    Expanded,
    /// The source keeps its history for us; the stream is being read.
    Capturing,
    /// Tables are being copied.
    Backfilling,
    /// The copy is in; the stream since its beginning is being applied.
    CatchingUp,
    /// The sink follows the source.
    Shadowing,
    /// Both sides were compared, and agreed.
    Verified,
    /// A share of the reads is answered by both sides and compared.
    DualReading,
    /// Every guard of a switch lets pass.
    Ready,
    /// A switch is meant: its intent stands in the journal, and nothing is held up yet, or writers are being asked to end.
    Freezing,
    /// No writer is left; what they wrote is on its way.
    Draining,
    /// Everything is on the other side; the one write that gives it the authority comes next.
    Switching,
    /// The new side has the authority.
    Switched,
    /// It has, and the old side follows it.
    Soaking,
    /// What is no longer needed is being taken away.
    Contracting,
    /// Nothing of it is left to do.
    Done,
    /// What we wrote is being taken back; may be killed and run again.
    RollingBack(RollbackKind),
    /// What we overwrote or deleted is back.
    Undone,
    /// What we made is gone.
    Wiped,
}

impl Phase {
    /// Every phase, in order.
    pub const ALL: [Self; 21] = [
        Self::Draft,
        Self::Planned,
        Self::Expanded,
        Self::Capturing,
        Self::Backfilling,
        Self::CatchingUp,
        Self::Shadowing,
        Self::Verified,
        Self::DualReading,
        Self::Ready,
        Self::Freezing,
        Self::Draining,
        Self::Switching,
        Self::Switched,
        Self::Soaking,
        Self::Contracting,
        Self::Done,
        Self::RollingBack(RollbackKind::Undo),
        Self::RollingBack(RollbackKind::Wipe),
        Self::Undone,
        Self::Wiped,
    ];

    /// Something may be running that can be paused.
    pub fn is_active(self) -> bool {
        (self >= Self::Expanded && self <= Self::Ready) || self.is_over()
    }

    /// There is a log of the source's changes.
    pub fn has_log(self) -> bool {
        self >= Self::Capturing && self <= Self::Soaking
    }

    /// The sink follows the source, and no switch is under way.
    pub fn is_following(self) -> bool {
        self >= Self::Shadowing && self <= Self::Ready
    }

    /// A switch is under way, and whether it has happened only the row of `crossfade.authority` says.
    pub fn is_switching(self) -> bool {
        self >= Self::Freezing && self <= Self::Switching
    }

    /// What was written has been taken back, all of it or what could be.
    pub fn is_back(self) -> bool {
        matches!(self, Self::Undone | Self::Wiped)
    }

    /// The new side has the authority, and the way back is open.
    pub fn is_over(self) -> bool {
        self == Self::Switched || self == Self::Soaking
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Draft => "draft",
            Self::Planned => "planned",
            Self::Expanded => "expanded",
            Self::Capturing => "capturing",
            Self::Backfilling => "backfilling",
            Self::CatchingUp => "catching up",
            Self::Shadowing => "shadowing",
            Self::Verified => "verified",
            Self::DualReading => "dual reading",
            Self::Ready => "ready",
            Self::Freezing => "freezing",
            Self::Draining => "draining",
            Self::Switching => "switching",
            Self::Switched => "switched",
            Self::Soaking => "soaking",
            Self::Contracting => "contracting",
            Self::Done => "done",
            Self::RollingBack(RollbackKind::Undo) => "undoing",
            Self::RollingBack(RollbackKind::Wipe) => "wiping",
            Self::Undone => "undone",
            Self::Wiped => "wiped",
        })
    }
}

/// How a rollback takes back what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RollbackKind {
    /// From the undo records; only what we wrote.
    Undo,
    /// Drops what we made.
    Wipe,
}

/// What lies over a phase and keeps it from going on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overlay {
    /// By a person or a gate; `resume` goes on.
    Paused {
        /// Who: `operator`, `gate error_rate`.
        by: String,
        /// Why.
        reason: String,
    },
    /// Something did not get better by itself; the next `run` tries again.
    Failed {
        /// What, with what to do.
        reason: String,
    },
    /// Identity changed or history is missing; never goes away by itself.
    Lost {
        /// What.
        reason: String,
        /// How to go on without losing anything.
        remedy: String,
    },
}

impl Overlay {
    /// A pause that no person has asked for.
    pub fn is_by_gate(&self) -> bool {
        matches!(self, Self::Paused { by, .. } if by.starts_with("gate "))
    }
}

impl fmt::Display for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paused { by, reason } if reason.is_empty() => write!(f, "paused by {by}"),
            Self::Paused { by, reason } => write!(f, "paused by {by}: {reason}"),
            Self::Failed { reason } => write!(f, "failed: {reason}"),
            Self::Lost { reason, .. } => write!(f, "lost: {reason}"),
        }
    }
}

/// An end whose identity is pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// Where changes come from.
    Source,
    /// Where they go.
    Sink,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Sink => "sink",
        })
    }
}

/// A named place.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Its place in the log.
    pub cut: Cut,
    /// Its place in the source's history.
    pub position: Option<Position>,
    /// When it was named, in microseconds since 1970 by the clock of whoever named it; for people.
    pub at_us: i64,
}

/// Everything that the journal says of one migration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Migration {
    /// How far it has come.
    pub phase: Phase,
    /// What keeps it from going on.
    pub overlay: Option<Overlay>,
    /// The fence: raised whenever an old worker must be refused.
    pub epoch: u64,
    /// The hash of the spec it was planned with; empty before.
    pub spec_hash: String,
    /// Which secret its derived keys come from (a hash, never the secret itself); empty before.
    pub secret_id: String,
    /// The backfill under way or done last; zero before the first.
    pub generation: u32,
    /// What each end said of itself.
    pub pins: BTreeMap<End, String>,
    /// Named places.
    pub checkpoints: BTreeMap<String, Checkpoint>,
    /// New tables of the source are wanted, and not yet being copied.
    #[serde(default)]
    pub adding: bool,
    /// Who may write, as far as the journal has heard.
    #[serde(default)]
    pub authority: Authority,
    /// The proof that both sides agreed, while it holds.
    #[serde(default)]
    pub clean_pass: Option<CleanPass>,
    /// Why the last proof holds no more; until there is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub voided: Option<Voided>,
    /// The share of the reads that both sides answer, in millionths.
    #[serde(default)]
    pub dual_millionths: u32,
    /// What the guards said when a larger share was asked for last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reads_judgement: Option<ReadJudgement>,
    /// Why dual reads have ended by themselves, until somebody sets their share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stepped_down: Option<String>,
    /// Who has agreed to the next switch.
    #[serde(default)]
    pub approvals: Vec<Approval>,
    /// What the guards said last.
    #[serde(default)]
    pub judgement: Option<Judgement>,
    /// The switch under way.
    #[serde(default)]
    pub intent: Option<Intent>,
    /// The gate that took it back, until a person has answered that: only while it is rolled back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallen: Option<Fall>,
    /// The new side has had the authority in this life: what it holds is not the migration's alone to take back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub was_switched: bool,
    /// How fast the source answered before tables were copied, where a gate asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Baseline>,
}

impl Migration {
    /// Phase and overlay in a few words.
    pub fn summary(&self) -> String {
        match (&self.overlay, &self.fallen) {
            (Some(overlay), _) => format!("{}, {overlay}", self.phase),
            (None, Some(fall)) => format!("{}, {fall}", self.phase),
            (None, None) => self.phase.to_string(),
        }
    }
}
