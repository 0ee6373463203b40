//! What may be asked, what may follow, and why not.

use crate::{End, Phase, RollbackKind};
use crossfade_event::{Cut, Position};
use serde::{Deserialize, Serialize};

/// What is asked, by a person, a gate or the pipeline. Those of the pipeline are facts in the form of a request: they
/// hold under a pause too. A command whose aim is reached already changes nothing and is no error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// Preflight said yes to this spec. After a wipe it begins anew.
    Plan {
        /// The hash of what may not change while it runs.
        spec_hash: String,
        /// Which secret the derived keys come from.
        secret_id: String,
    },
    /// The target's objects are there.
    Expand,
    /// The source keeps its history for us.
    StartCapture,
    /// A backfill begins.
    StartBackfill {
        /// Its number.
        generation: u32,
    },
    /// All of a backfill's rows are in the sink.
    BackfillDone {
        /// Its number.
        generation: u32,
    },
    /// The sink has passed the source's position as it was a moment ago.
    CaughtUp,
    /// The writers of the old side have been stopped, both sides are equal, and the way back begins here: the new side is the
    /// writer.
    SwitchByHand,
    /// Stop for now.
    Pause {
        /// Who: `operator`, `gate error_rate`.
        by: String,
        /// Why; may be empty.
        reason: String,
    },
    /// Go on after a pause or a failure.
    Resume,
    /// Take in new tables that match the spec, now or with the next run.
    AddTables,
    /// What became of that wish.
    TablesAdded {
        /// Those whose copy has begun, by the log's word.
        tables: Vec<String>,
        /// Why none could be taken in, with what to do; the wish is over then.
        refused: Option<String>,
    },
    /// Something did not get better by itself.
    Fail {
        /// What, with what to do; never a row's value or a secret.
        reason: String,
    },
    /// Identity changed or history is missing.
    Lose {
        /// What.
        reason: String,
        /// How to go on.
        remedy: String,
    },
    /// The source was opened, is the pinned one, and has everything after our position: what was lost is found.
    Found,
    /// Take back from the undo records.
    Undo,
    /// Drop what we made.
    Wipe,
    /// The rollback has ended.
    RollbackDone,
    /// Give a place a name.
    NameCheckpoint {
        /// The name.
        name: String,
        /// Its place in the log.
        cut: Cut,
        /// Its place in the source's history.
        position: Option<Position>,
        /// When, in microseconds since 1970.
        at_us: i64,
    },
    /// Forget a name.
    DropCheckpoint {
        /// The name.
        name: String,
    },
    /// This is what an end says of itself.
    Pin {
        /// Which end.
        end: End,
        /// In its own words.
        identity: String,
    },
    /// Refuse every worker of before.
    RaiseEpoch,
    /// Refuse every worker of before, by a number that somebody else gave: a log that several processes work on.
    TakeEpoch {
        /// The number; one that is not higher changes nothing.
        epoch: u64,
    },
    /// For the audit trail: a replay, a retry, changes discarded from quarantine. Never a row's value or a secret.
    Note {
        /// What was done.
        what: String,
    },
    /// Not built yet.
    Cutover,
    /// Not built yet.
    Failback,
    /// Not built yet.
    DualRead,
    /// Not built yet.
    Cleanup,
}

impl Command {
    /// Its name, as a person would say it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Plan { .. } => "plan",
            Self::Expand => "expand",
            Self::StartCapture => "start capture",
            Self::StartBackfill { .. } => "start backfill",
            Self::BackfillDone { .. } => "backfill done",
            Self::CaughtUp => "caught up",
            Self::SwitchByHand => "switch by hand",
            Self::Pause { .. } => "pause",
            Self::Resume => "resume",
            Self::AddTables => "resume --add",
            Self::TablesAdded { .. } => "tables added",
            Self::Fail { .. } => "fail",
            Self::Lose { .. } => "lose",
            Self::Found => "found",
            Self::Undo => "rollback --undo",
            Self::Wipe => "rollback --wipe",
            Self::RollbackDone => "rollback done",
            Self::NameCheckpoint { .. } => "checkpoint",
            Self::DropCheckpoint { .. } => "drop checkpoint",
            Self::Pin { .. } => "pin",
            Self::RaiseEpoch => "raise epoch",
            Self::TakeEpoch { .. } => "take epoch",
            Self::Note { .. } => "note",
            Self::Cutover => "cutover",
            Self::Failback => "failback",
            Self::DualRead => "dual reads",
            Self::Cleanup => "cleanup",
        }
    }
}

/// What was decided: the past tense of a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// All that was known is void: a new life begins.
    BegunAnew,
    /// Old workers are refused from here on.
    EpochRaised {
        /// The new one.
        epoch: u64,
    },
    /// The spec holds.
    Planned {
        /// Its hash.
        spec_hash: String,
        /// Its secret's id.
        secret_id: String,
    },
    /// The migration is in another phase.
    Entered {
        /// Which.
        phase: Phase,
    },
    /// A backfill was begun.
    BackfillStarted {
        /// Its number.
        generation: u32,
    },
    /// It is paused.
    Paused {
        /// Who.
        by: String,
        /// Why.
        reason: String,
    },
    /// It has failed.
    Failed {
        /// Why.
        reason: String,
    },
    /// It is lost.
    Lost {
        /// Why.
        reason: String,
        /// The remedy.
        remedy: String,
    },
    /// It goes on.
    Resumed,
    /// New tables are wanted.
    TablesWanted,
    /// They are taken in, or will not be.
    TablesAdded {
        /// Those whose copy has begun.
        tables: Vec<String>,
        /// Why none could be.
        refused: Option<String>,
    },
    /// A rollback has begun.
    RollbackBegan {
        /// Which kind.
        kind: RollbackKind,
    },
    /// A place has a name.
    CheckpointNamed {
        /// The name.
        name: String,
        /// The place.
        checkpoint: crate::Checkpoint,
    },
    /// A name is forgotten.
    CheckpointDropped {
        /// The name.
        name: String,
    },
    /// An end is known.
    Pinned {
        /// Which.
        end: End,
        /// What it said.
        identity: String,
    },
    /// Something was done that changes no state.
    Noted {
        /// What.
        what: String,
    },
}

/// Why not, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It does not come now.
    #[error("`{command}` is not possible while the migration is {phase}: {instead}")]
    WrongPhase {
        /// What was asked.
        command: &'static str,
        /// Where it stands.
        phase: Phase,
        /// What to do.
        instead: &'static str,
    },
    /// It is stopped.
    #[error("`{command}` is not possible: the migration is {overlay}. {instead}")]
    Stopped {
        /// What was asked.
        command: &'static str,
        /// By what.
        overlay: String,
        /// What to do.
        instead: String,
    },
    /// What it was planned with has changed.
    #[error(
        "the {what} differs from the one that this migration was planned with. Take the old one, or begin anew: `crossfade rollback --wipe`, then `crossfade run`"
    )]
    SpecChanged {
        /// `spec` or `secret`.
        what: &'static str,
    },
    /// Another database answers.
    #[error(
        "the {end} is not the one that this migration began with: it was `{pinned}` and is now `{found}`. Correct its url, or begin anew: `crossfade rollback --wipe`, then `crossfade run`"
    )]
    IdentityChanged {
        /// Which end.
        end: End,
        /// What it said first.
        pinned: String,
        /// What it says now.
        found: String,
    },
    /// The name is taken.
    #[error("there is a checkpoint `{name}` already; choose another name")]
    CheckpointExists {
        /// Which.
        name: String,
    },
    /// There is no such name.
    #[error("there is no checkpoint `{name}`{known}")]
    NoCheckpoint {
        /// Which.
        name: String,
        /// Those that there are, as ` (there are a, b)`.
        known: String,
    },
    /// Not a name.
    #[error("`{name}` cannot name a checkpoint: take 1 to 63 of a-z, 0-9, `-`, `_` and `.`, a letter or digit first")]
    BadName {
        /// Which.
        name: String,
    },
    /// A later version will have it.
    #[error("`{what}` is not built yet in this version of crossfade")]
    NotBuilt {
        /// What.
        what: &'static str,
    },
}
