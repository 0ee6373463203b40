//! What a gate takes back by itself, before a switch: the journal says so first, the loops end, and then the same is done as by
//! `crossfade rollback`. A process that dies meanwhile leaves it to the next `crossfade run`, which does nothing else.
//!
//! ```text
//!  gate falls ─▶ journal: rolling back, by which gate ─▶ loops end ─▶ [undo ─▶] wipe ─▶ wiped ─▶ a person: resume ─▶ run
//! ```
//! Nothing begins anew before a person has said `resume`: a supervisor that starts `run` again and again would else copy the
//! same rows into the same trouble.

use super::{rollback::Held, supervise::Signals};
use crate::{
    commands::folder,
    error::{CliError, Exit},
    output,
    spec::Spec,
    wiring,
};
use crossfade_connector::UndoReport;
use crossfade_control::{By, Command, Fall, Gates, Migration, Phase, RollbackKind};
use crossfade_state::WorkFolder;
use std::time::{Duration, Instant};

/// How long an end may be busy: the slot's reader was this process a moment ago.
const PATIENCE: Duration = Duration::from_secs(15);
const TRY_AGAIN: Duration = Duration::from_millis(200);

/// The gates as they are judged: on the way back, after a switch, none takes anything back; nor after a failback.
pub(super) fn gates_of(spec: &Spec, migration: &Migration) -> Gates {
    if migration.was_switched {
        warn_after_switch(spec);
    }
    match &spec.reverse {
        None if !migration.was_switched => spec.gates,
        _ => spec.gates.of_way_back(),
    }
}

/// How a gate begins: where somebody else's rows may have been overwritten, they are put back first.
pub(super) fn kind_of(spec: &Spec) -> RollbackKind {
    if wiring::into_existing(spec) { RollbackKind::Undo } else { RollbackKind::Wipe }
}

/// What gates cannot do by roles: several processes would have to end for a rollback, some of them elsewhere.
pub(super) fn refuse_by_roles(spec: &Spec) -> Result<(), CliError> {
    if spec.gates.latency.is_some() {
        return Err(CliError::misconfigured(
            "the gate latency is not built for a migration by roles: who reads the source is not who can pause the sink",
        )
        .hint("take it out of [gates], or run all of the migration in one process"));
    }
    match spec.gates.rolling_back().first() {
        None => Ok(()),
        Some(gate) => Err(CliError::misconfigured(format!(
            "then = \"rollback\" of the gate {gate} is not built for a migration by roles: all of its processes would have to end"
        ))
        .hint("write \"pause\"; once all are stopped, `crossfade rollback` takes back what was written")),
    }
}

/// After a switch the spec still says it, and it is not done.
pub(super) fn warn_after_switch(spec: &Spec) {
    for gate in spec.gates.rolling_back() {
        tracing::warn!(
            gate,
            "after a switch no gate rolls back: this one pauses; `crossfade failback` takes the applications back"
        );
    }
}

/// How a run ends in which a gate has fallen.
pub(super) fn begun(spec: &Spec, fall: &Fall) -> CliError {
    CliError::refused(format!("the migration {} is being {fall}", spec.name))
        .hint(format!("`crossfade run {}` completes that", spec.file.display()))
}

/// Whether a gate has taken the migration back, or was about to, and nobody has answered that. It must not be running.
pub(super) fn has_fallen(spec: &Spec) -> Result<bool, CliError> {
    let Ok(dir) = folder::existing(spec) else { return Ok(false) };
    if !WorkFolder::journal_path(&dir).is_dir() {
        return Ok(false);
    }
    let owned = folder::taken(spec)?;
    Ok(folder::journal(&owned)?.migration().fallen.is_some())
}

/// Takes back what is left to take back, and says what a person can do then: always an error, for nothing runs.
pub(super) async fn carry_on(spec: &Spec) -> Result<(), CliError> {
    let mut signals = Signals::listen()?;
    tokio::select! {
        told = to_the_end(spec) => told,
        _ = signals.next() => Err(CliError::failed(format!("stopped while {} was rolled back", spec.name))
            .hint(format!("`crossfade run {}` goes on with that", spec.file.display()))),
    }
}

async fn to_the_end(spec: &Spec) -> Result<(), CliError> {
    let held = Held::of(spec)?;
    let Some(fall) = held.journal.migration().fallen else { return Ok(()) };
    let by = By { who: fall.by(), ..folder::by_hand() };
    match back(spec, &held, &by).await {
        Ok(report) => Err(told(spec, &fall, &report)?),
        Err(error) => {
            let reason = error.message.clone();
            if let Phase::RollingBack(_) = held.journal.migration().phase
                && let Err(unwritten) = held.journal.command(Command::Fail { reason }, &by).await
            {
                tracing::warn!("the journal could not take how the rollback ended: {unwritten}");
            }
            let hint = format!("`crossfade run {}` goes on with the rollback", spec.file.display());
            Err(match error.hint.clone() {
                Some(first) => error.hint(format!("{first}; then {hint}")),
                None => error.hint(hint),
            })
        }
    }
}

/// Undo, where it began so, and then the wipe; rows that were left alone are put before a person first, for a wipe drops what
/// is known of them.
async fn back(spec: &Spec, held: &Held, by: &By) -> Result<UndoReport, CliError> {
    let mut report = UndoReport::default();
    if let Phase::RollingBack(RollbackKind::Undo) | Phase::Undone = held.journal.migration().phase {
        report = patiently(spec, held, RollbackKind::Undo, by).await?;
        if !report.left_alone.is_empty() {
            return Ok(report);
        }
    }
    if held.journal.migration().phase != Phase::Wiped {
        report.dropped = patiently(spec, held, RollbackKind::Wipe, by).await?.dropped;
    }
    Ok(report)
}

async fn patiently(spec: &Spec, held: &Held, kind: RollbackKind, by: &By) -> Result<UndoReport, CliError> {
    let begun = Instant::now();
    loop {
        match held.take_back(spec, kind, by).await {
            Err(error) if error.passing && begun.elapsed() < PATIENCE => {
                tracing::info!("the rollback waits: {error}");
                tokio::time::sleep(TRY_AGAIN).await;
            }
            taken => return Ok(taken?.unwrap_or_default()),
        }
    }
}

/// What has become of it, for a person.
fn told(spec: &Spec, fall: &Fall, report: &UndoReport) -> Result<CliError, CliError> {
    let (name, file) = (&spec.name, spec.file.display());
    if report.left_alone.is_empty() {
        return Ok(CliError::refused(format!("the migration {name} was {fall}; the target is as it was before"))
            .hint(format!("mend the cause, then `crossfade resume {file}`; `crossfade run {file}` begins anew")));
    }
    for (table, key) in &report.left_alone {
        output::line(format!("left alone, for somebody else changed it since: {table} key {key}"))?;
    }
    let count = report.left_alone.len();
    Ok(CliError::new(Exit::Differences, format!("the migration {name} was {fall}; {count} rows were left alone")).hint(
        format!(
            "mend them, and `crossfade run {file}` looks again; or `crossfade rollback {file} --wipe` drops what is left of it. Then `crossfade resume {file}`; `crossfade run {file}` begins anew"
        ),
    ))
}
