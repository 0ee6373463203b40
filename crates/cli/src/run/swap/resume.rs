//! A migration that goes forward again after its columns have gone back.
//!
//! ```text
//!  failback, while everybody waits            the next run
//!  both columns of each row are level ─┐      keys of born rows ─▶ mapping, adopted-keys.json
//!  slot moved up to here, place noted ─┘      log begun anew at that place, with nothing copied ─▶ follows as before
//! ```
//! What was written under the new names is in both columns already and in no log; so the log begins where both were level.
//! Everything here may be killed and run again.

use crate::{
    error::{CliError, Exit},
    event_log::AnyLog,
    registry,
    run::{adopted, plan_file::write_whole},
    spec::Spec,
    wiring,
};
use crossfade_control::{By, Command, Journal, Phase};
use crossfade_event::{Position, Side};
use crossfade_log::embedded::Embedded;
use crossfade_postgres::swap::{Laid, SwapEnd, SwapStage};
use crossfade_state::WorkFolder;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
};

const FORMAT: u32 = 1;

/// Where the log has begun anew; beside the plan.
#[derive(Debug, Serialize, Deserialize)]
struct Begun {
    format: u32,
    place: Position,
}

fn path_of(base: &Path) -> PathBuf {
    base.join("resumed-at.json")
}

fn read(base: &Path) -> Result<Option<Begun>, CliError> {
    let path = path_of(base);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(CliError::io(format!("reading {}", path.display()), &error)),
    };
    let damaged = |what: String| {
        CliError::new(Exit::Lost, format!("{} is damaged: {what}", path.display()))
            .hint("restore the file from a copy; without it nobody knows where the log begins")
    };
    let begun: Begun = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    match begun.format {
        FORMAT => Ok(Some(begun)),
        other => Err(damaged(format!("it has format {other}, this program knows {FORMAT}"))),
    }
}

/// Where a source begins whose log is empty: at the place where both columns were level, if they have ever gone back.
pub(crate) fn begins_at(spec: &Spec) -> Result<Option<Position>, CliError> {
    match wiring::writes_beside(spec) {
        true => Ok(read(&spec.base())?.map(|begun| begun.place)),
        false => Ok(None),
    }
}

/// Forgets it: the next migration of that name copies.
pub(super) fn forget(base: &Path) -> Result<(), CliError> {
    match fs::remove_file(path_of(base)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(CliError::io("removing the note of where the log begins", &error))
        }
        _ => Ok(()),
    }
}

/// Why the migration will not go on after a failback; `None` where it will.
pub(super) fn cannot_go_on(spec: &Spec, laid: &Laid) -> Result<Option<String>, CliError> {
    if let Some(why) = SwapEnd::cannot_go_on(laid) {
        return Ok(Some(why));
    }
    let Some(planned) = wiring::plan_from_folder(spec)? else { return Ok(Some("its plan is gone".to_owned())) };
    Ok(planned.plan.reads_other_rows().then(|| {
        "its rules look rows of other tables up, and what was written to those meanwhile is in no log".to_owned()
    }))
}

/// Before anything is read of a migration whose columns have gone back: makes it ready to go on, or refuses with the reason.
pub(crate) async fn go_on(
    spec: &Spec,
    folder: &WorkFolder,
    journal: &Journal<Embedded>,
    by: &By,
) -> Result<(), CliError> {
    let migration = journal.migration();
    let may_be = wiring::writes_beside(spec) && migration.authority.epoch > 0 && migration.authority.side == Side::Old;
    if !may_be || spec.switch.is_none() || !(Phase::Shadowing..=Phase::Ready).contains(&migration.phase) {
        return Ok(());
    }
    let mut end = registry::swap_end(spec)?;
    let Some((stage @ (SwapStage::Returned | SwapStage::Prepared), _)) = end.stored().await? else { return Ok(()) };
    let Some(place) = end.resumes().await? else {
        return match stage {
            SwapStage::Returned => Err(refused(spec)),
            _ => Ok(()),
        };
    };
    let pairs = adopted::take_over_within(spec, &mut end, migration.authority.epoch).await?;
    if read(&spec.base())?.is_some_and(|begun| begun.place == place) {
        return Ok(());
    }
    // Places of the former log mean nothing in the new one.
    for name in migration.checkpoints.keys() {
        journal.command(Command::DropCheckpoint { name: name.clone() }, by).await?;
    }
    AnyLog::forget(spec).await?;
    for gone in [WorkFolder::state_path(folder.dir()), folder.dir().join("spool")] {
        match fs::remove_dir_all(&gone) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(CliError::io(format!("removing {}", gone.display()), &error));
            }
            _ => {}
        }
    }
    registry::written_side(spec)?.forget_place().await?;
    let text = serde_json::to_vec(&Begun { format: FORMAT, place })
        .map_err(|error| CliError::failed(format!("noting where the log begins: {error}")))?;
    write_whole(&path_of(&spec.base()), &text)?;
    tracing::info!(pairs, "the migration goes on; rows that were born under the new columns keep their keys");
    Ok(())
}

fn refused(spec: &Spec) -> CliError {
    CliError::refused(format!(
        "{} went back to its old columns, and cannot go on from there: the failback said why",
        spec.name
    ))
    .hint(format!(
        "crossfade rollback {} --wipe drops the new columns; after that it can begin anew",
        spec.file.display()
    ))
}

/// Refuses to build another sink from a log that begins after a failback: nothing was copied into it.
pub(crate) fn refuse_into(spec: &Spec) -> Result<(), CliError> {
    match begins_at(spec)? {
        None => Ok(()),
        Some(_) => Err(CliError::refused(format!(
            "the log of {} begins after a failback, and has no copy that another sink could be built from",
            spec.name
        ))
        .hint("begin another migration from the source instead")),
    }
}
