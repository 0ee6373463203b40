//! The switch within one table: new columns take the names of the old ones. By the process that runs the migration, which
//! owns the sink: in place nobody else can write what is still on its way.
//!
//! ```text
//!  crossfade cutover: indexes, nobody waits ([`prepare`]) ─▶ guards ─▶ journal: judged, intent (epoch n+1, deadline)
//!   ┌─ everybody waits, by the server's own clock, all of it one transaction of the sink's session ────────┐
//!   │ locks ─▶ journal: frozen ─▶ barrier through the stream ─▶ the sink has passed it ─▶ journal: drained │
//!   │ ─▶ row n ─▶ n+1, the names, the triggers                                                             │
//!   └──────────────────────────────────────────────────────────────────── point of no return ─────────────┘
//!  journal: switched over ─▶ the run ends ─▶ what was put off is proven ([`finish`]) ─▶ route command ─▶ journal: routed
//! ```
//! What was drained is committed with the switch, or not at all: taken back, it is in the log still and comes again.

mod back;
mod drain;
mod finish;

pub(crate) use back::failback;
pub(super) use drain::{SwapJob, switch_over};
pub(crate) use finish::{after, finish, forget, nothing_to_run, prepare, refuse_returned};

use super::{
    control::Shared,
    ends::SinkJob,
    switch::{Outcome, Pause, Settled, Wanted, deadline_of, said, settle},
};
use crate::{
    error::CliError,
    registry::{self, AnySink, AnySwitchEnd},
    run::plan_file::secret_of,
    spec::Spec,
    wiring,
};
use crossfade_connector::{Inspect, Quarantine, QuarantineFilter, Stage};
use crossfade_control::{By, Command, Direction, Facts, Limits, OldestWriter, Phase};
use crossfade_event::{Side, TableName};
use crossfade_postgres::swap::{Laid, SwapEnd};
use crossfade_transform::{Swap, swap};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// What a switch within tables costs whatever there is to carry, and for each table.
const FIXED_MS: u64 = 30;
const TABLE_MS: u64 = 4;

/// What changes places, by the source as it is now.
async fn planned(spec: &Spec) -> Result<Swap, CliError> {
    let catalog = wiring::source_inspect(spec)?.catalog(spec.source.tables()).await?;
    let options = wiring::plan_options(spec, secret_of(&spec.base())?);
    Ok(swap(&catalog, &spec.rules, &options)?)
}

/// What will be done, and what stands against it.
struct Looked {
    laid: Laid,
    missing: Vec<String>,
}

async fn look(spec: &Spec, end: &mut SwapEnd) -> Result<Looked, CliError> {
    let swap = planned(spec).await?;
    let mut missing: Vec<String> = swap
        .refusals
        .iter()
        .map(|refusal| {
            let column = refusal.column.as_ref().map(|column| format!(".{column}")).unwrap_or_default();
            format!("{}{column} {}", refusal.table, refusal.why)
        })
        .collect();
    let (laid, refusals) = end.survey(&swap.tables).await?;
    missing.extend(refusals.iter().map(said));
    Ok(Looked { laid, missing })
}

fn names(laid: &Laid) -> Vec<TableName> {
    laid.tables.iter().map(|table| table.name().clone()).collect()
}

/// Switches, or says why not.
pub(super) async fn cutover(shared: &Arc<Shared>, wanted: &Wanted) -> Result<Outcome, CliError> {
    let spec = &shared.spec;
    let section = spec.switch.as_ref().ok_or_else(|| super::switch::no_section(spec))?;
    let deadline = deadline_of(section, wanted.deadline)?;
    let by = By { who: wanted.who.clone(), ..shared.now() };
    let (mut old, mut new) = registry::switch_ends(spec)?;
    settle(&mut old, &mut new, &shared.journal, &by).await?;
    super::reads::hear_before(spec, &shared.journal, &by).await?;
    let migration = shared.journal.migration();
    if migration.phase.is_over() {
        return Ok(switched(migration.authority.epoch, Pause::default()));
    }
    if migration.phase < Phase::Shadowing {
        return Err(CliError::refused(format!("a cutover is not possible while the migration is {}", migration.phase))
            .hint("let it catch up: `crossfade wait --caught-up`"));
    }
    let mut end = registry::swap_end(spec)?;
    let Looked { laid, mut missing } = look(spec, &mut end).await?;
    if !wanted.dry_run {
        old.install(migration.authority.epoch).await?;
        let unprepared = end.unprepared(&laid).await?;
        missing.extend(
            unprepared.iter().map(|index| format!("the index {index} is not there (`crossfade cutover` makes it)")),
        );
    }
    let limits = section.limits(deadline);
    let facts = facts(shared, &mut old, &laid, &limits, missing).await?;
    let epoch = old.authority().await?.map_or(migration.authority.epoch, |written| written.epoch);
    let guards = crossfade_control::guards(&migration, Direction::Cutover, &facts, &limits, by.at_us);
    let outcome = Outcome {
        switched: false,
        epoch,
        guards,
        pause: None,
        routed: false,
        not_routed: None,
        authority: Side::Old,
        sql: Vec::new(),
    };
    if wanted.dry_run {
        let mut sql = SwapEnd::prepare_sql(&laid)?;
        sql.push(end.switch_sql(&laid)?);
        return Ok(Outcome { sql, ..outcome });
    }
    let judge = Command::Judge { before: Direction::Cutover, facts, limits, at_us: by.at_us };
    shared.journal.command(judge, &by).await?;
    if outcome.guards.iter().any(|guard| !guard.holds) {
        return Ok(outcome);
    }
    let intent = Command::Cutover { epoch, deadline_ms: millis(deadline.0), at_us: by.at_us };
    shared.journal.command(intent, &by).await?;
    let job = SwapJob {
        shared: shared.clone(),
        by: by.clone(),
        tables: end.with_views(names(&laid)).await?,
        sql: end.switch_sql(&laid)?,
        deadline: deadline.0,
        lock_timeout: section.lock_timeout.0,
        epoch,
    };
    let pause = moved(shared, (&mut old, &mut new), job, &by).await?;
    Ok(Outcome { guards: outcome.guards, ..switched(epoch + 1, pause) })
}

/// Who asked completes it once the run has ended: what is proven then takes longer than an answer may.
fn switched(epoch: u64, pause: Pause) -> Outcome {
    Outcome {
        switched: true,
        epoch,
        guards: Vec::new(),
        pause: Some(pause),
        routed: false,
        not_routed: None,
        authority: Side::New,
        sql: Vec::new(),
    }
}

/// Has the sink's owner do it; what fails before the point of no return is taken back.
async fn moved(
    shared: &Shared,
    (old, new): (&mut AnySwitchEnd, &mut AnySwitchEnd),
    job: SwapJob,
    by: &By,
) -> Result<Pause, CliError> {
    let (answer, answered) = oneshot::channel();
    let gone = || CliError::failed("the run is ending");
    let done = match shared.jobs.send(SinkJob::Swap(Box::new(job), answer)).await {
        Ok(()) => answered.await.map_err(|_| gone()).and_then(|done| done),
        Err(_) => Err(gone()),
    };
    let error = match done {
        Ok(pause) => return Ok(pause),
        Err(error) => error,
    };
    // What became of it is for the row to say.
    match settle(old, new, &shared.journal, by).await {
        Ok(Settled::Moved) => Ok(Pause::default()),
        Ok(Settled::TakenBack | Settled::Nothing) => {
            let message = format!("the switch was taken back, and the old columns go on: {}", error.message);
            Err(CliError { message, ..error })
        }
        Err(unknown) => Err(CliError::new(
            unknown.exit,
            format!("{}; and whether the switch has happened cannot be asked: {}", error.message, unknown.message),
        )
        .hint("nobody is held up longer than the deadline; `crossfade cutover` again completes it or takes it back")),
    }
}

async fn facts(
    shared: &Shared,
    old: &mut AnySwitchEnd,
    laid: &Laid,
    limits: &Limits,
    mut missing: Vec<String>,
) -> Result<Facts, CliError> {
    let spec = &shared.spec;
    let mut source = wiring::source_inspect(spec)?;
    source.barrier().await?;
    let begun = Instant::now();
    let mark = source.barrier().await?;
    let patience = Duration::from_millis(limits.deadline_ms);
    let mark_ms = match tokio::time::timeout(patience, shared.wait_for(mark, Stage::Streaming)).await {
        Ok(reached) => reached.map(|_| Some(millis(begun.elapsed()).max(1)))?,
        Err(_) => None,
    };
    let tables = names(laid);
    let seen = old.look(&tables).await?;
    missing.extend(seen.missing.iter().map(said));
    let quarantined = AnySink::for_looking(spec)?.list(&QuarantineFilter::default()).await?.len() as u64;
    Ok(Facts {
        mark_ms,
        quarantined,
        oldest_writer: seen.writing.map(|one| OldestWriter { age_ms: one.age_ms, who: one.who }),
        predicted_pause_ms: mark_ms.map(|ms| 2 * ms + FIXED_MS + TABLE_MS * tables.len() as u64),
        gates: shared.failing_gates(),
        missing,
        way_back: None,
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
