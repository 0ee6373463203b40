//! What may be asked, what may follow, and why not.

use crate::{
    Approval, Baseline, CleanPass, Direction, End, Facts, Fall, Intent, Judgement, Limits, Phase, ReadFacts,
    ReadJudgement, RollbackKind,
};
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
    /// A gate has fallen that takes the migration back.
    FallBack {
        /// How what was written is taken back.
        kind: RollbackKind,
        /// Which gate, and what it saw.
        fall: Fall,
    },
    /// The rollback has ended.
    RollbackDone,
    /// This is how fast the source answers before tables are copied.
    TakeBaseline {
        /// What was measured.
        baseline: Baseline,
    },
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
    /// Both sides were compared.
    Verified {
        /// The position in the source up to which the comparison speaks, as text.
        position: Option<String>,
        /// How many rows of the target were compared.
        rows: u64,
        /// How many rows differ, or were refused by the transforms.
        differences: u64,
        /// When, in microseconds since 1970.
        at_us: i64,
        /// Where the sink stood in the log when it was begun.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<Cut>,
        /// By what the target tells whether anybody else has written it since.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mark: Option<String>,
    },
    /// What was proven holds no more.
    Void {
        /// Why: a repair, another shape, a foreign write.
        why: String,
    },
    /// Compare no more than so large a share of the reads; none ends it. More is asked for by [`Command::CompareReads`].
    DualRead {
        /// In millionths.
        millionths: u32,
    },
    /// Compare a larger share of the reads, if the guards let pass: what was seen for them to judge.
    CompareReads {
        /// The share, in millionths.
        millionths: u32,
        /// What was seen.
        facts: ReadFacts,
        /// So long counts a clean pass.
        verified_within_ms: u64,
        /// When, in microseconds since 1970.
        at_us: i64,
    },
    /// An application's dual reads have ended by themselves, past a budget.
    StepDown {
        /// Which budget, and what it saw: counts and times only.
        why: String,
    },
    /// Somebody agrees to the next switch.
    Approve {
        /// Who and why and when.
        approval: Approval,
    },
    /// What was seen before a switch; the guards judge it.
    Judge {
        /// Before which step.
        before: Direction,
        /// What was seen.
        facts: Facts,
        /// What the spec allows.
        limits: Limits,
        /// When, in microseconds since 1970.
        at_us: i64,
    },
    /// Give the new side the authority.
    Cutover {
        /// The epoch of the authority as it stands.
        epoch: u64,
        /// Writers are held up for at most so long.
        deadline_ms: u64,
        /// When, in microseconds since 1970.
        at_us: i64,
    },
    /// Give it back to the old side.
    Failback {
        /// The epoch of the authority as it stands.
        epoch: u64,
        /// Writers are held up for at most so long.
        deadline_ms: u64,
        /// When, in microseconds since 1970.
        at_us: i64,
    },
    /// The freeze holds, and with it the proof that no writer is left.
    Frozen {
        /// The epoch of the intent.
        epoch: u64,
    },
    /// Everything that was written is on the other side.
    Drained {
        /// The epoch of the intent.
        epoch: u64,
        /// Up to where, in the history of the side that was written.
        position: Option<Position>,
    },
    /// The row of `crossfade.authority` says that the switch has happened.
    SwitchedOver {
        /// The epoch in that row.
        epoch: u64,
    },
    /// The row of `crossfade.authority` says that it has not and, by its raised epoch, that it will not.
    TakenBack {
        /// The epoch in that row.
        epoch: u64,
        /// Why.
        why: String,
    },
    /// Everybody has been told who has the authority.
    Routed {
        /// The epoch that they were told.
        epoch: u64,
    },
    /// The side without the authority has everything of the one that has it.
    Soak,
    /// Take away what is no longer needed.
    Cleanup,
    /// That is done.
    CleanupDone,
}

impl Command {
    /// The oldest format of the journal that knows it: 2 for everything about a switch, 3 for gates that roll back, and
    /// baselines, 4 for shares of reads that guards have judged, 5 for proofs that are carried into the freeze.
    pub fn format(&self) -> u32 {
        match self {
            // A proof that is to be carried into the freeze: an older program would switch without carrying it.
            Self::Verified { from, mark, .. } if from.is_some() || mark.is_some() => 5,
            Self::Verified { .. }
            | Self::Void { .. }
            | Self::DualRead { .. }
            | Self::Approve { .. }
            | Self::Judge { .. }
            | Self::Cutover { .. }
            | Self::Failback { .. }
            | Self::Frozen { .. }
            | Self::Drained { .. }
            | Self::SwitchedOver { .. }
            | Self::TakenBack { .. }
            | Self::Routed { .. }
            | Self::Soak
            | Self::Cleanup
            | Self::CleanupDone => 2,
            Self::FallBack { .. } | Self::TakeBaseline { .. } => 3,
            Self::CompareReads { .. } | Self::StepDown { .. } => 4,
            _ => 1,
        }
    }

    /// Its name, as a person would say it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Plan { .. } => "plan",
            Self::Expand => "expand",
            Self::StartCapture => "start capture",
            Self::StartBackfill { .. } => "start backfill",
            Self::BackfillDone { .. } => "backfill done",
            Self::CaughtUp => "caught up",
            Self::Pause { .. } => "pause",
            Self::Resume => "resume",
            Self::AddTables => "resume --add",
            Self::TablesAdded { .. } => "tables added",
            Self::Fail { .. } => "fail",
            Self::Lose { .. } => "lose",
            Self::Found => "found",
            Self::Undo => "rollback --undo",
            Self::Wipe => "rollback --wipe",
            Self::FallBack { .. } => "gate's rollback",
            Self::RollbackDone => "rollback done",
            Self::TakeBaseline { .. } => "take baseline",
            Self::NameCheckpoint { .. } => "checkpoint",
            Self::DropCheckpoint { .. } => "drop checkpoint",
            Self::Pin { .. } => "pin",
            Self::RaiseEpoch => "raise epoch",
            Self::TakeEpoch { .. } => "take epoch",
            Self::Note { .. } => "note",
            Self::Verified { .. } => "verified",
            Self::Void { .. } => "void",
            Self::DualRead { .. } => "dual reads",
            Self::CompareReads { .. } => "compare reads",
            Self::StepDown { .. } => "step down",
            Self::Approve { .. } => "approve",
            Self::Judge { .. } => "judge",
            Self::Cutover { .. } => "cutover",
            Self::Failback { .. } => "failback",
            Self::Frozen { .. } => "frozen",
            Self::Drained { .. } => "drained",
            Self::SwitchedOver { .. } => "switched over",
            Self::TakenBack { .. } => "taken back",
            Self::Routed { .. } => "routed",
            Self::Soak => "soak",
            Self::Cleanup => "cleanup",
            Self::CleanupDone => "cleanup done",
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
    /// It was a gate's doing.
    GateFell {
        /// Which gate, and what it saw.
        fall: Fall,
    },
    /// A person has seen that a gate took the migration back, and lets it begin anew.
    FallAnswered,
    /// The source's latency is known.
    BaselineTaken {
        /// What it was.
        baseline: Baseline,
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
    /// Both sides agree.
    PassedClean {
        /// The proof.
        pass: CleanPass,
    },
    /// The proof holds no more.
    PassVoided {
        /// Why.
        why: String,
    },
    /// So large a share of the reads is answered by both sides.
    DualReadSet {
        /// In millionths.
        millionths: u32,
    },
    /// The guards have judged whether a larger share of the reads may be compared.
    ReadsJudged {
        /// What they said.
        judgement: ReadJudgement,
    },
    /// Dual reads have ended by themselves.
    ReadsSteppedDown {
        /// Why.
        why: String,
    },
    /// Somebody has agreed.
    Approved {
        /// Who and why and when.
        approval: Approval,
    },
    /// The guards have judged.
    Judged {
        /// What they said.
        judgement: Judgement,
    },
    /// A switch is meant.
    SwitchIntended {
        /// Which way, by which epoch, until when.
        intent: Intent,
    },
    /// The side that the switch went to has the authority.
    AuthorityMoved {
        /// Which way.
        direction: Direction,
        /// Its epoch.
        epoch: u64,
    },
    /// The switch did not happen, and will not.
    SwitchTakenBack {
        /// The authority's epoch.
        epoch: u64,
        /// Why.
        why: String,
    },
    /// Everybody has been told.
    RoutingFlipped {
        /// Which epoch.
        epoch: u64,
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
    /// A gate has taken it back, and no person has answered that yet.
    #[error(
        "`{command}` is not possible: the migration was {fall}. Mend the cause, then `crossfade resume`, and `crossfade run` begins anew"
    )]
    Fallen {
        /// What was asked.
        command: &'static str,
        /// Which gate, and why.
        fall: String,
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
    /// A guard does not let pass.
    #[error("`{step}` is refused: {guards}")]
    Guarded {
        /// Which step.
        step: Direction,
        /// Those that do not hold: what was seen, what is wanted, what would allow it.
        guards: String,
    },
    /// A larger share of the reads is compared only where the guards let pass.
    #[error("`{command}` is refused: its guards have not been asked; `crossfade dual-reads` asks them")]
    ReadsUnjudged {
        /// What was asked.
        command: &'static str,
    },
    /// What is told speaks of another switch.
    #[error("`{command}` speaks of epoch {told}, and the authority of this migration is at {known}{instead}")]
    AnotherEpoch {
        /// What was told.
        command: &'static str,
        /// The epoch that it names.
        told: u64,
        /// The one that the journal knows.
        known: u64,
        /// What to do.
        instead: &'static str,
    },
    /// Not a share.
    #[error("a share of {millionths} millionths is more than the whole: name at most 100 %")]
    BadShare {
        /// What was asked for.
        millionths: u32,
    },
}
