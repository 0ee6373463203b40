//! The switch of authority to another server, by the process that runs the migration.
//!
//! ```text
//!  guards ─▶ journal: judged ─▶ way back prepared ─▶ journal: intent (epoch n+1, deadline)
//!   ┌─ writers held up, by the server's own clock ──────────────────────────────────────┐
//!   │ locks ─▶ journal: frozen ─▶ barrier through the stream ─▶ the sink has passed it     │
//!   │ ─▶ new side's disk, sequences, slot ─▶ journal: drained ─▶ row n ─▶ n+1 AND the fence │
//!   └─────────────────────────────────────────────────────────── point of no return ────┘
//!  journal: switched over ─▶ new side's row ─▶ route command ─▶ journal: routed
//! ```
//! Anything that fails before the point of no return is taken back: the writers go on, and the row's epoch is raised, so that a
//! last word still on its way to the server finds nothing to do. Whoever finds an intent without an end asks the row
//! ([`settle()`]).

mod look;
mod settle;

pub(crate) use look::said;
pub(crate) use settle::{Settled, complete, forget, install, settle};

use super::{
    control::Shared,
    plan_file::{PlanFile, secret_of},
    reverse,
    session::routes,
    swap,
};
use crate::{
    error::{CliError, Exit},
    registry,
    spec::{DEADLINE_MAX, DEADLINE_MIN, Span, SwitchSpec},
    wiring,
};
use crossfade_connector::{Inspect, Stage, Target};
use crossfade_control::{By, Command, Direction, Guarded, Phase};
use crossfade_event::{Position, Side, TableName};
use crossfade_postgres::switch::{Freeze, Given, Reverse, SwitchEnd};
use look::Looked;
use serde::Serialize;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot};

/// What somebody asks for.
pub(super) struct Wanted {
    pub(super) who: String,
    pub(super) dry_run: bool,
    pub(super) deadline: Option<Span>,
    pub(super) answer: oneshot::Sender<Result<Outcome, CliError>>,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    /// Whether the new side has the authority now.
    pub(crate) switched: bool,
    /// The authority's epoch.
    pub(crate) epoch: u64,
    /// What the guards said.
    pub(crate) guards: Vec<Guarded>,
    /// What the writers felt of it; absent without a switch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pause: Option<Pause>,
    /// Whether everybody has been told; else `crossfade cutover` again tells them.
    pub(crate) routed: bool,
    /// Why not, where not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) not_routed: Option<String>,
    /// Who has the authority now, where it has moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) side: Option<Side>,
    /// Of a dry run within tables: what would be run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) sql: Vec<String>,
}

/// How long the writers were held up, step by step, in microseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Pause {
    /// From the beginning of the try that got the locks to the commit that gave the authority away.
    pub(crate) total_us: u64,
    /// Until the locks were there.
    pub(crate) locks_us: u64,
    /// Until everything was in the sink.
    pub(crate) drain_us: u64,
    /// Sequences, the new side's disk, its slot.
    pub(crate) prepare_us: u64,
    /// The last commit, with the fence.
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
                let outcome = match wiring::writes_beside(&self.shared.spec) {
                    true => swap::cutover(&self.shared, &wanted).await,
                    false => cutover(&self.shared, &wanted).await,
                };
                let over = self.shared.journal.migration().phase.is_over();
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
}

impl Switching {
    /// A process that ended before its intent was written may have left a slot on the new side, which holds WAL.
    async fn take_away_what_was_left(&self) {
        let migration = self.shared.journal.migration();
        if migration.judgement.is_none() || !migration.phase.is_following() {
            return;
        }
        if let Ok((_, mut new)) = registry::switch_ends(&self.shared.spec) {
            reverse::give_up(&self.shared.spec, &mut new).await;
        }
    }
}

/// What a switch works with.
struct Ends {
    old: SwitchEnd,
    new: SwitchEnd,
    source: registry::AnyInspect,
    /// The tables that are frozen and fenced.
    tables: Vec<TableName>,
    target: Target,
}

async fn cutover(shared: &Shared, wanted: &Wanted) -> Result<Outcome, CliError> {
    let spec = &shared.spec;
    let switch = spec.switch.as_ref().ok_or_else(|| no_section(spec))?;
    let deadline = deadline_of(switch, wanted.deadline)?;
    let by = By { who: wanted.who.clone(), ..shared.now() };
    let (mut old, mut new) = registry::switch_ends(spec)?;
    settle(&mut old, &shared.journal, &by).await?;
    if shared.journal.migration().phase.is_over() {
        return Ok(complete(spec, &mut new, &shared.journal, &by).await);
    }
    if shared.journal.migration().phase < Phase::Shadowing {
        let phase = shared.journal.migration().phase;
        return Err(CliError::refused(format!("a cutover is not possible while the migration is {phase}"))
            .hint("let it catch up: `crossfade wait --caught-up`"));
    }
    let (tables, target) = (shared.source_tables(), planned_target(shared)?);
    let mut ends = Ends { old, new, source: wiring::source_inspect(spec)?, tables, target };
    if !wanted.dry_run {
        let epoch = shared.journal.migration().authority.epoch;
        ends.old.install(epoch).await?;
        ends.new.install(epoch).await?;
    }
    let limits = switch.limits(deadline);
    let looked = look::look(shared, &mut ends, &limits, wanted.dry_run).await?;
    let migration = shared.journal.migration();
    let guards = crossfade_control::guards(&migration, Direction::Cutover, &looked.facts, &limits, by.at_us);
    let mut outcome = Outcome {
        switched: false,
        epoch: looked.authority_epoch.unwrap_or(migration.authority.epoch),
        guards,
        pause: None,
        routed: false,
        not_routed: None,
        side: None,
        sql: Vec::new(),
    };
    if wanted.dry_run {
        return Ok(outcome);
    }
    let Looked { facts, .. } = looked;
    let judge = Command::Judge { before: Direction::Cutover, facts, limits, at_us: by.at_us };
    shared.journal.command(judge, &by).await?;
    if outcome.guards.iter().any(|guard| !guard.holds) {
        return Ok(outcome);
    }
    let pause = switch_over(shared, &mut ends, switch, deadline, outcome.epoch, &by).await?;
    let told = complete(spec, &mut ends.new, &shared.journal, &by).await;
    outcome = Outcome { guards: outcome.guards, pause: Some(pause), ..told };
    Ok(outcome)
}

pub(crate) fn no_section(spec: &crate::spec::Spec) -> CliError {
    CliError::misconfigured(format!("{} has no [switch]: nobody has said that it may be switched", spec.file.display()))
        .hint("write [switch] into it; every key has a default, and the guide says what each is for")
}

pub(super) fn deadline_of(switch: &SwitchSpec, asked: Option<Span>) -> Result<Span, CliError> {
    let deadline = asked.unwrap_or(switch.deadline);
    if deadline.0 < DEADLINE_MIN || deadline.0 > DEADLINE_MAX {
        return Err(CliError::misconfigured("--deadline must be from 500ms to 60s: so long writers may be held up"));
    }
    Ok(deadline)
}

/// The target as the plan file has it now: tables may have come since the run began.
fn planned_target(shared: &Shared) -> Result<Target, CliError> {
    let spec = &shared.spec;
    let plan = PlanFile::read(&spec.base())?.ok_or_else(|| CliError::failed("the plan has gone"))?;
    let epoch = shared.journal.migration().epoch;
    Ok(routes(spec, &plan, secret_of(&spec.base())?, epoch)?.target().clone())
}

/// From the intent to the point of no return. What fails before it is taken back.
async fn switch_over(
    shared: &Shared,
    ends: &mut Ends,
    switch: &SwitchSpec,
    deadline: Span,
    epoch: u64,
    by: &By,
) -> Result<Pause, CliError> {
    reverse::prepare(&shared.spec, &mut ends.new, &ends.target).await?;
    let intent = Command::Cutover {
        epoch,
        deadline_ms: u64::try_from(deadline.0.as_millis()).unwrap_or(u64::MAX),
        at_us: by.at_us,
    };
    let intended = shared.journal.command(intent, by).await;
    let moved = match intended {
        Ok(_) => frozen(shared, ends, switch, deadline, epoch, by).await,
        Err(refused) => Err(refused.into()),
    };
    let error = match moved {
        Ok(pause) => return Ok(pause),
        Err(error) => error,
    };
    // What became of it is for the row to say.
    match settle(&mut ends.old, &shared.journal, by).await {
        Ok(Settled::Moved) => Ok(Pause::default()),
        Ok(Settled::TakenBack | Settled::Nothing) => {
            reverse::give_up(&shared.spec, &mut ends.new).await;
            Err(CliError {
                message: format!("the switch was taken back, and the old side goes on: {}", error.message),
                ..error
            })
        }
        Err(unknown) => Err(CliError::new(
            unknown.exit,
            format!("{}; and whether the switch has happened cannot be asked: {}", error.message, unknown.message),
        )
        .hint(
            "no writer is held up longer than the deadline; `crossfade cutover` again completes it or takes it back",
        )),
    }
}

/// Everything that is done while the writers wait.
async fn frozen(
    shared: &Shared,
    ends: &mut Ends,
    switch: &SwitchSpec,
    deadline: Span,
    epoch: u64,
    by: &By,
) -> Result<Pause, CliError> {
    let next = epoch + 1;
    let freeze = ends.old.freeze(&ends.tables, Instant::now() + deadline.0, switch.lock_timeout.0).await?;
    let mut pause = Pause { locks_us: micros(freeze.since.elapsed()), tries: freeze.tries, ..Pause::default() };
    let step = Instant::now();
    let prepared = tokio::time::timeout(freeze.left(), async {
        shared.journal.command(Command::Frozen { epoch: next }, by).await?;
        let position = drained(shared, ends).await?;
        pause.drain_us = micros(step.elapsed());
        let step = Instant::now();
        let reverse = ready(shared, ends).await?;
        tracing::info!(slot = %reverse.name, from = reverse.from, "the way back begins here");
        shared.journal.command(Command::Drained { epoch: next, position }, by).await?;
        pause.prepare_us = micros(step.elapsed());
        Ok::<_, CliError>(())
    });
    match prepared.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            freeze.release().await;
            return Err(error);
        }
        Err(_) => {
            freeze.release().await;
            return Err(CliError::failed("not everything was on the new side within the deadline")
                .hint("let it catch up first, or allow a longer --deadline"));
        }
    }
    give(shared, freeze, epoch, by, pause).await
}

/// The sink has everything that was written before the freeze. Returns up to where.
async fn drained(shared: &Shared, ends: &mut Ends) -> Result<Option<Position>, CliError> {
    let quarantined = shared.quarantined();
    let wanted = ends.source.barrier().await?;
    shared.wait_for(wanted, Stage::Streaming).await?;
    if shared.quarantined() != quarantined {
        return Err(CliError::failed(
            "a change went into quarantine while the writers waited: the new side would lack it",
        )
        .hint("`crossfade quarantine ls` names it"));
    }
    Ok(wanted)
}

/// The new side can take the writers.
async fn ready(shared: &Shared, ends: &mut Ends) -> Result<Reverse, CliError> {
    carry_sequences(shared, ends).await?;
    ends.new.settle().await?;
    reverse::begin_here(&shared.spec, &mut ends.new).await
}

/// Sequences of the new side go on past those of the old one.
async fn carry_sequences(shared: &Shared, ends: &mut Ends) -> Result<(), CliError> {
    let spec = &shared.spec;
    let plan = PlanFile::read(&spec.base())?.ok_or_else(|| CliError::failed("the plan has gone"))?;
    if plan.catalog.sequences.is_empty() {
        return Ok(());
    }
    let catalog = ends.old.with_last_values(plan.catalog.clone()).await?;
    let epoch = shared.journal.migration().epoch;
    let now = routes(spec, &plan.with_catalog(catalog), secret_of(&spec.base())?, epoch)?;
    Ok(ends.new.carry_sequences(now.target()).await?)
}

/// The point of no return.
async fn give(shared: &Shared, freeze: Freeze, epoch: u64, by: &By, mut pause: Pause) -> Result<Pause, CliError> {
    let (since, step) = (freeze.since, Instant::now());
    let given = freeze.give(epoch).await;
    pause.commit_us = micros(step.elapsed());
    pause.total_us = micros(since.elapsed());
    match given {
        Given::Done => {
            shared.journal.command(Command::SwitchedOver { epoch: epoch + 1 }, by).await?;
            Ok(pause)
        }
        Given::Refused(failure) => Err(failure.into()),
        Given::Unknown(failure) => Err(CliError { exit: Exit::Failed, ..failure.into() }),
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
