//! The switch of authority to another server, by the process that runs the stream to it: a *cutover* by the one that runs the
//! migration, a *failback* by the one that runs its way back. One protocol, with the roles swapped:
//!
//! ```text
//!  guards ─▶ journal: judged ─▶ way on prepared ─▶ journal: intent (epoch n+1, deadline)
//!   ┌─ writers held up, by the server's own clock ──────────────────────────────────────┐
//!   │ locks ─▶ journal: frozen ─▶ barrier through the stream ─▶ the sink has passed it     │
//!   │ ─▶ what has changed since the clean pass is compared; nobody else has written there  │
//!   │ ─▶ other side's disk, sequences, ready to be opened ─▶ journal: drained              │
//!   │ ─▶ row n ─▶ n+1 AND the fence ─────────────────────────── point of no return         │
//!   │ ─▶ other side's row, and its fence out of action                                     │
//!   └─ writers go on there ─────────────────────────────────────────────────────────────┘
//!  journal: switched over ─▶ route command ─▶ journal: routed
//! ```
//! Between two schemas of one database the last two are one commit, for the freeze's transaction is there already.
//!
//! Anything that fails before the point of no return is taken back: the writers go on, and the row's epoch is raised, so that a
//! last word still on its way to the server finds nothing to do. Whoever finds an intent without an end asks the row of the side
//! that had the authority ([`settle()`]), and opens the other side if it says so.

mod look;
mod moving;
mod settle;
mod unheard;
mod way;

pub(crate) use look::said;
pub(crate) use settle::{Settled, complete, forget, install, let_go, settle, unwatch};

use super::{control::Shared, swap};
use crate::{
    commands::folder,
    error::CliError,
    registry,
    spec::{DEADLINE_MAX, DEADLINE_MIN, Span, Spec, SwitchSpec},
};
use crossfade_control::{By, Command, Direction, Guarded, Journal, Phase};
use crossfade_event::Side;
use crossfade_log::embedded::Embedded;
use look::Looked;
use serde::Serialize;
use std::{sync::Arc, time::Duration};
use tokio::sync::{mpsc, oneshot};
use way::Way;

/// What somebody asks for.
pub(super) struct Wanted {
    pub(super) direction: Direction,
    pub(super) who: String,
    pub(super) dry_run: bool,
    pub(super) deadline: Option<Span>,
    pub(super) answer: oneshot::Sender<Result<Outcome, CliError>>,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    /// Whether the side that was asked for has the authority now.
    pub(crate) switched: bool,
    /// The side that has the authority.
    #[serde(serialize_with = "as_word")]
    pub(crate) authority: Side,
    /// The authority's epoch.
    pub(crate) epoch: u64,
    /// What the guards said.
    pub(crate) guards: Vec<Guarded>,
    /// What the writers felt of it; absent without a switch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pause: Option<Pause>,
    /// Whether everybody has been told; else the same command again tells them.
    pub(crate) routed: bool,
    /// Why not, where not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) not_routed: Option<String>,
    /// Of a dry run within tables: what would be run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) sql: Vec<String>,
}

fn as_word<S: serde::Serializer>(side: &Side, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(side)
}

/// How long the writers were held up, step by step, in microseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Pause {
    /// From the beginning of the try that got the locks to the commit that let the writers go on.
    pub(crate) total_us: u64,
    /// Until the locks were there.
    pub(crate) locks_us: u64,
    /// Until everything was in the sink.
    pub(crate) drain_us: u64,
    /// Until what had changed since the last comparison was compared.
    pub(crate) verify_us: u64,
    /// How many rows that were.
    pub(crate) rows_verified: u64,
    /// Sequences, the other side's disk, what keeps its writes, and making it ready to be opened.
    pub(crate) prepare_us: u64,
    /// The last commits: the one with the fence, and the one that opens the other side.
    pub(crate) commit_us: u64,
    /// How many tries at the locks it took.
    pub(crate) tries: u32,
}

/// Switches when asked to, for as long as a run lasts.
pub(super) struct Switching {
    shared: Arc<Shared>,
    asked: mpsc::Receiver<Wanted>,
}

impl Switching {
    pub(super) fn new(shared: Arc<Shared>, asked: mpsc::Receiver<Wanted>) -> Self {
        Self { shared, asked }
    }

    /// Ends with the run. A switch under way is dropped then: its freeze ends with its session, and the next start asks the row.
    pub(super) async fn run(mut self) {
        let mut closed = self.shared.closed();
        let work = async {
            self.take_away_what_was_left().await;
            while let Some(wanted) = self.asked.recv().await {
                let (outcome, over) = self.switch(&wanted).await;
                // Whoever asked may have gone away: the journal has it.
                let _ = wanted.answer.send(outcome);
                if over {
                    self.shared.stop_now();
                }
            }
        };
        tokio::select! {
            () = work => {}
            () = closed.wait() => {}
        }
    }

    /// What came of it, and whether the stream of this run has done its part.
    async fn switch(&self, wanted: &Wanted) -> (Result<Outcome, CliError>, bool) {
        let shared = &*self.shared;
        if crate::wiring::writes_beside(&shared.spec) {
            let outcome = swap::cutover(&self.shared, wanted).await;
            return (outcome, shared.journal.migration().phase.is_over());
        }
        match (&shared.spec.reverse, wanted.direction) {
            (None, Direction::Cutover) => {
                let whole = Whole { spec: &shared.spec, journal: &shared.journal };
                let outcome = switch(shared, &whole, wanted).await;
                (outcome, shared.journal.migration().phase.is_over())
            }
            (Some(reverse), Direction::Failback) => match taken(&reverse.spec).await {
                Err(error) => (Err(error), false),
                Ok((_owned, journal)) => {
                    let whole = Whole { spec: &reverse.spec, journal: &journal };
                    let outcome = switch(shared, &whole, wanted).await;
                    let migration = journal.migration();
                    (outcome, !migration.phase.is_over() && !migration.phase.is_switching())
                }
            },
            (None, Direction::Failback) => (Err(nothing_to_take_back(&shared.spec)), false),
            (Some(_), Direction::Cutover) => (Err(CliError::refused("the new side has the authority already")), false),
        }
    }

    /// A process that ended before its intent was written may have left a slot on the new side, which holds WAL.
    async fn take_away_what_was_left(&self) {
        let migration = self.shared.journal.migration();
        let is_back = self.shared.spec.reverse.is_some();
        if is_back || migration.judgement.is_none() || !migration.phase.is_following() {
            return;
        }
        if let Ok((_, mut new)) = registry::switch_ends(&self.shared.spec) {
            super::reverse::give_up(&self.shared.spec, &mut new).await;
        }
    }
}

/// How long another command may look into the folder before it is said to be taken.
const FOLDER_PATIENCE: Duration = Duration::from_secs(5);

/// The folder of a migration whose way back runs here: whoever asks for its status has it for a moment.
async fn taken(spec: &Spec) -> Result<(crossfade_state::WorkFolder, Journal<Embedded>), CliError> {
    let look = async {
        loop {
            match folder::taken(spec) {
                Err(error) if error.exit == crate::error::Exit::Locked => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                taken => return taken,
            }
        }
    };
    let owned = match tokio::time::timeout(FOLDER_PATIENCE, look).await {
        Ok(taken) => taken?,
        Err(_) => folder::taken(spec)?,
    };
    let journal = folder::journal(&owned)?;
    Ok((owned, journal))
}

/// The migration that is switched: its spec and its journal, whichever way its stream runs.
struct Whole<'w> {
    spec: &'w Spec,
    journal: &'w Journal<Embedded>,
}

async fn switch(stream: &Shared, whole: &Whole<'_>, wanted: &Wanted) -> Result<Outcome, CliError> {
    let Whole { spec, journal } = *whole;
    let switch = spec.switch.as_ref().ok_or_else(|| no_section(spec))?;
    let deadline = deadline_of(switch, wanted.deadline)?;
    let by = By { who: wanted.who.clone(), ..stream.now() };
    let (mut old, mut new) = registry::switch_ends(spec)?;
    settle(&mut old, &mut new, journal, &by).await?;
    if wanted.direction == Direction::Cutover {
        super::reads::hear_before(spec, journal, &by).await?;
    }
    let migration = journal.migration();
    if migration.authority.side == wanted.direction.to() {
        return Ok(complete(spec, &mut old, &mut new, journal, &by).await);
    }
    if wanted.direction == Direction::Cutover && migration.phase < Phase::Shadowing {
        let phase = migration.phase;
        return Err(CliError::refused(format!("a cutover is not possible while the migration is {phase}"))
            .hint("let it catch up: `crossfade wait --caught-up`"));
    }
    let within_one = old.identity().await? == new.identity().await?;
    if within_one && matches!(old, registry::AnySwitchEnd::Sqlite(_)) {
        return Err(registry::one_file().into());
    }
    let mut way = Way::new(stream, whole, wanted.direction, old, new, within_one)?;
    if !wanted.dry_run {
        way.from.install(migration.authority.epoch).await?;
        way.to.install(migration.authority.epoch).await?;
    }
    let limits = switch.limits(deadline);
    let Looked { facts, authority_epoch } = look::look(&mut way, &limits, wanted.dry_run).await?;
    let guards = crossfade_control::guards(&migration, wanted.direction, &facts, &limits, by.at_us);
    let outcome = Outcome {
        switched: false,
        authority: wanted.direction.from(),
        epoch: authority_epoch.unwrap_or(migration.authority.epoch),
        guards,
        pause: None,
        routed: false,
        not_routed: None,
        sql: Vec::new(),
    };
    if wanted.dry_run {
        return Ok(outcome);
    }
    let judge = Command::Judge { before: wanted.direction, facts, limits, at_us: by.at_us };
    journal.command(judge, &by).await?;
    if outcome.guards.iter().any(|guard| !guard.holds) {
        return Ok(outcome);
    }
    let pause = moving::switch_over(&mut way, switch, deadline, outcome.epoch, &by).await?;
    let (old, new) = way.sides();
    let told = complete(spec, old, new, journal, &by).await;
    Ok(Outcome { guards: outcome.guards, pause: Some(pause), ..told })
}

pub(crate) fn no_section(spec: &Spec) -> CliError {
    CliError::misconfigured(format!("{} has no [switch]: nobody has said that it may be switched", spec.file.display()))
        .hint("write [switch] into it; every key has a default, and the guide says what each is for")
}

/// A failback where there was no cutover.
pub(crate) fn nothing_to_take_back(spec: &Spec) -> CliError {
    CliError::refused(format!("{} has not switched: the old side has the authority", spec.name))
        .hint("there is nothing to take back; `crossfade rollback` takes back what the migration wrote")
}

pub(super) fn deadline_of(switch: &SwitchSpec, asked: Option<Span>) -> Result<Span, CliError> {
    let deadline = asked.unwrap_or(switch.deadline);
    if deadline.0 < DEADLINE_MIN || deadline.0 > DEADLINE_MAX {
        return Err(CliError::misconfigured("--deadline must be from 500ms to 60s: so long writers may be held up"));
    }
    Ok(deadline)
}
