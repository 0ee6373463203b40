//! What is done before and after a switch within tables, while nobody waits: by the command that asks for it.

use super::{Looked, look};
use crate::{
    commands::folder,
    error::CliError,
    registry,
    run::{session::settled, switch::Outcome},
    spec::Spec,
    wiring,
};
use crossfade_control::{Migration, Phase};
use crossfade_event::Side;
use crossfade_postgres::swap::SwapStage;
use std::time::Duration;

/// How often a run that ends is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// So long a run may take to its end.
const RUN_ENDS: Duration = Duration::from_secs(60);

/// Makes the indexes that the new columns need. Where something stands against the switch it makes none: the guards say it.
pub(crate) async fn prepare(spec: &Spec) -> Result<(), CliError> {
    folder::existing(spec)?;
    let mut end = registry::swap_end(spec)?;
    if matches!(end.stored().await?, Some((stage, _)) if stage != SwapStage::Prepared) {
        return Ok(());
    }
    let Looked { laid, missing } = look(spec, &mut end).await?;
    if missing.is_empty() {
        end.prepare(&laid).await?;
    }
    Ok(())
}

/// Waits for the end of the run that has switched, and completes what it has begun.
pub(crate) async fn after(spec: &Spec) -> Result<Option<Outcome>, CliError> {
    let ended = tokio::time::timeout(RUN_ENDS, async {
        while folder::owner(spec)?.is_some() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok::<_, CliError>(())
    });
    match ended.await {
        Ok(ended) => ended?,
        Err(_) => return Err(CliError::failed("the new columns have the names; the run that switched does not end")),
    }
    settled(spec).await
}

/// Proves and completes on the side that has the authority what its switch has put off; nothing reads the slot any more.
pub(crate) async fn finish(spec: &Spec, side: Side) -> Result<(), CliError> {
    let mut end = registry::swap_end(spec)?;
    match side {
        Side::New => {
            wiring::release_source(spec, &spec.base()).await?;
            end.finish().await?;
        }
        Side::Old => end.prove_old().await?,
    }
    Ok(())
}

/// Takes the note of a switch away, before a wipe.
pub(crate) async fn forget(spec: &Spec) -> Result<(), CliError> {
    Ok(registry::swap_end(spec)?.forget().await?)
}

/// What whoever would run a migration is told whose columns have changed places.
pub(crate) fn nothing_to_run(spec: &Spec) -> CliError {
    CliError::refused(format!(
        "{} has switched: both columns are kept by the database itself, and there is nothing to run",
        spec.name
    ))
    .hint("`crossfade failback` goes back, `crossfade cleanup` drops the old columns")
}

/// After the way back the new columns hold keys that the plan would not make: it begins anew, or not at all.
pub(crate) async fn refuse_returned(spec: &Spec, migration: &Migration) -> Result<(), CliError> {
    let may_be = wiring::writes_beside(spec) && migration.authority.epoch > 0 && migration.authority.side == Side::Old;
    if !may_be || spec.switch.is_none() || !(Phase::Shadowing..=Phase::Ready).contains(&migration.phase) {
        return Ok(());
    }
    match registry::swap_end(spec)?.stored().await? {
        Some((SwapStage::Returned, _)) => Err(CliError::refused(format!(
            "{} went back to its old columns: rows that were born meanwhile have new keys that the plan would not make",
            spec.name
        ))
        .hint(format!(
            "crossfade rollback {} --wipe drops the new columns; after that it can begin anew",
            spec.file.display()
        ))),
        _ => Ok(()),
    }
}
