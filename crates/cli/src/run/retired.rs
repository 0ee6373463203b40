//! A way back that has done its part: after a failback its slot, its place on the old side and its log are nobody's any more, and
//! the migration goes on as before its cutover. Its journal is kept beside, for the audit.

use super::{adopted, back, plan_file::write_whole};
use crate::{
    commands::folder,
    error::{CliError, Exit},
    registry,
    spec::{REVERSE_FOLDER, Spec},
};
use crossfade_connector::Verdict;
use crossfade_control::{By, Command, Journal};
use crossfade_event::{Cut, Side};
use crossfade_log::embedded::Embedded;
use crossfade_state::WorkFolder;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// How long the process of a way back may take to end, and its server to notice.
const PATIENCE: Duration = Duration::from_secs(15);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Before a migration goes on whose old side has the authority again: what is left of its way back goes, and the keys of rows
/// that were born on the new side are taken over. What it cannot go on with is refused by name.
pub(super) async fn after_failback(spec: &Spec, journal: &Journal<Embedded>, by: &By) -> Result<(), CliError> {
    retire(spec).await?;
    if !is_one_aside(&spec.base()) {
        return Ok(());
    }
    match adopted::take_over(spec, journal.migration().authority.epoch).await {
        Ok(0) => Ok(()),
        Ok(pairs) => {
            tracing::info!(pairs, "rows that were born on the new side keep their new keys");
            Ok(())
        }
        Err(error) => {
            if error.exit == Exit::Refused {
                journal.command(Command::Fail { reason: error.message.clone() }, by).await?;
            }
            Err(error)
        }
    }
}

/// The same as far as it is possible, by whoever has seen a failback to its end. The next start does what is left.
pub(crate) async fn tidy(spec: &Spec) {
    let is_back = || -> Result<bool, CliError> {
        let owned = folder::taken(spec)?;
        let migration = folder::journal(&owned)?.migration();
        Ok(migration.authority.side == Side::Old && !migration.phase.is_switching())
    };
    match is_back() {
        Ok(true) => {}
        Ok(false) | Err(_) => return,
    }
    if let Err(error) = retire(spec).await {
        tracing::warn!("what the way back has left is taken away by the next run: {}", error.message);
    }
}

/// Takes away what a way back needs to go on. Only where the old side has the authority. A repeat changes nothing.
pub(super) async fn retire(spec: &Spec) -> Result<(), CliError> {
    let base = spec.base();
    if !back::has_run(&base) {
        return Ok(());
    }
    let folder = base.join(REVERSE_FOLDER);
    let Some(owned) = taken(&folder).await? else { return Ok(()) };
    if !back::has_run(&base) {
        // Whoever had it has put it aside just now: what was locked is there, or a folder that the lock has made and nobody needs.
        if folder.is_dir() {
            let emptied = fs::remove_file(WorkFolder::lock_path(&folder)).and_then(|()| fs::remove_dir(&folder));
            emptied.map_err(|error| CliError::io(format!("removing {}", folder.display()), &error))?;
        }
        return Ok(());
    }
    let (_, mut new) = registry::switch_ends(spec)?;
    let mut tries = PATIENCE.as_millis() / LOOK_AGAIN.as_millis();
    while let Err(failure) = new.drop_reverse().await {
        // The server has not noticed yet that its reader has gone.
        if tries == 0 || !matches!(failure.verdict, Verdict::Retry { .. }) {
            return Err(failure.into());
        }
        tries -= 1;
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    registry::left_by_way_back(spec)?.retire_back(spec.name.as_str()).await?;
    for gone in [WorkFolder::log_path(&folder), WorkFolder::state_path(&folder), folder.join("spool")] {
        match fs::remove_dir_all(&gone) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(CliError::io(format!("removing {}", gone.display()), &error));
            }
            _ => {}
        }
    }
    let kept = free_name(&base);
    fs::rename(&folder, &kept).map_err(|error| CliError::io(format!("putting {} aside", folder.display()), &error))?;
    drop(owned);
    Ok(())
}

/// The folder of the way back; `None` once somebody else has put it aside.
async fn taken(folder: &Path) -> Result<Option<WorkFolder>, CliError> {
    let mut tries = PATIENCE.as_millis() / LOOK_AGAIN.as_millis();
    while folder.is_dir() {
        match WorkFolder::lock(folder).map_err(CliError::from) {
            Err(error) if error.exit == Exit::Locked && tries > 0 => tries -= 1,
            taken => return taken.map(Some),
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(None)
}

/// Where a way back is put that is over.
fn free_name(base: &Path) -> PathBuf {
    (1..).map(|number| aside(base, number)).find(|path| !path.exists()).unwrap_or_else(|| base.join(REVERSE_FOLDER))
}

/// The first one is there as soon as there was a failback.
fn aside(base: &Path, number: u32) -> PathBuf {
    base.join(format!("{REVERSE_FOLDER}-{number}"))
}

/// Whether a way back has been gone to its end.
pub(super) fn is_one_aside(base: &Path) -> bool {
    aside(base, 1).is_dir()
}

/// Where the migration's log goes on after a failback.
#[derive(Serialize, Deserialize)]
struct Resumed {
    cut: Cut,
}

fn resumed_path(folder: &Path) -> PathBuf {
    folder.join("resumed.json")
}

/// The last way back that is over.
fn last_aside(base: &Path) -> Option<PathBuf> {
    (1..).map(|number| aside(base, number)).take_while(|path| path.is_dir()).last()
}

/// Before anything is read after a failback: notes where the log ends. What was written on the new side is not in it.
pub(super) fn note_resumed(base: &Path, end: Cut) -> Result<(), CliError> {
    let Some(path) = last_aside(base).map(|folder| resumed_path(&folder)).filter(|path| !path.exists()) else {
        return Ok(());
    };
    write_resumed(&path, end)
}

fn write_resumed(path: &Path, cut: Cut) -> Result<(), CliError> {
    let text = serde_json::to_vec(&Resumed { cut })
        .map_err(|error| CliError::failed(format!("noting where the log goes on: {error}")))?;
    write_whole(path, &text)
}

/// Refuses a replay that would go over a failback: of rows that were written on the new side meanwhile the log has older values.
pub(super) fn refuse_over_failback(spec: &Spec, from: &Cut) -> Result<(), CliError> {
    let Some(path) = last_aside(&spec.base()).map(|folder| resumed_path(&folder)) else { return Ok(()) };
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(CliError::refused(format!("{} was failed back, and its log has not gone on since", spec.name))
                .hint(format!("crossfade run {}", spec.file.display())));
        }
        Err(error) => return Err(CliError::io(format!("reading {}", path.display()), &error)),
    };
    let resumed: Resumed = serde_json::from_slice(&text).map_err(|error| {
        CliError::new(Exit::Lost, format!("{} is damaged: {error}", path.display()))
            .hint("restore the file from a copy; without it nobody knows from where the log has everything")
    })?;
    if from.covers(&resumed.cut) {
        return Ok(());
    }
    let place = &resumed.cut;
    Err(CliError::refused(format!(
        "the log of {} does not have what was written on the new side between its last cutover and its failback: a replay from before offset {place} would put older values back",
        spec.name
    ))
    .hint(format!(
        "say a later place; `crossfade verify {} --repair` writes rows that differ as the source has them now",
        spec.file.display()
    )))
}

/// Everything of a way back goes, the pairs of keys too: before a wipe.
pub(super) async fn forget(spec: &Spec) -> Result<(), CliError> {
    let base = spec.base();
    if !back::has_run(&base) && !is_one_aside(&base) && !back::has_pairs(spec).await? {
        return Ok(());
    }
    retire(spec).await?;
    adopted::forget(&base)?;
    // A log that is begun anew has everything.
    for folder in (1..).map(|number| aside(&base, number)).take_while(|path| path.is_dir()) {
        write_resumed(&resumed_path(&folder), Cut::default())?;
    }
    Ok(registry::left_by_way_back(spec)?.forget_back(spec.name.as_str()).await?)
}
