//! Where a migration stands by its folder alone: nobody runs it, or whoever does has no control socket that answers yet.

use super::folder;
use crate::{error::CliError, spec::Spec};
use crossfade_control::Migration;
use crossfade_observe::{Rates, Status, StatusFile, Totals};
use crossfade_state::{StateError, WorkFolder};

/// What the folder says.
pub(super) fn status(spec: &Spec) -> Result<Status, CliError> {
    let folder = folder::existing(spec)?;
    let owned = match WorkFolder::lock(&folder) {
        Err(error) if !error.is_locked() => return Err(error.into()),
        owned => owned,
    };
    if !WorkFolder::journal_path(&folder).is_dir() {
        owned?;
        return Err(CliError::misconfigured(format!("the migration {} has not begun yet", spec.name))
            .hint(format!("`crossfade run {}` begins it", spec.file.display())));
    }
    let migration = match &owned {
        Ok(owned) => folder::journal(owned)?.migration(),
        // Somebody owns the folder and does not answer (it is starting, waits for another process, mends, or the way back
        // fails back): what is written is what there is.
        Err(_) => folder::read_journal(&folder)?,
    };
    let path = WorkFolder::status_path(&folder);
    let last = StatusFile::read(&path).map_err(|error| CliError::io(format!("reading {}", path.display()), &error))?;
    Ok(of(spec, &migration, last, owner(spec, &owned)?))
}

/// The process that owns the folder, where this one could not have it.
fn owner(spec: &Spec, owned: &Result<WorkFolder, StateError>) -> Result<Option<u32>, StateError> {
    match owned {
        Ok(_) => Ok(None),
        Err(_) => folder::owner(spec),
    }
}

/// The journal knows phase, pauses and checkpoints better than the last file; the file knows the figures. What a process says
/// of itself, such as what it waits for, holds while it is the one that owns the folder.
fn of(spec: &Spec, migration: &Migration, last: Option<Status>, owner: Option<u32>) -> Status {
    let now = folder::by_hand().at_us;
    let mut fresh = Status::new(spec.name.as_str(), now, migration, &Totals::default(), Rates::default());
    fresh.role = spec.part.map(|part| part.name().to_owned());
    let status = match last {
        None => fresh,
        Some(last) => {
            let is_owners = owner.is_some() && last.pid == owner;
            Status {
                phase: fresh.phase,
                standing: fresh.standing,
                reason: fresh.reason,
                remedy: fresh.remedy,
                epoch: fresh.epoch,
                checkpoints: fresh.checkpoints,
                switch: fresh.switch,
                ..if is_owners { last } else { last.not_running() }
            }
        }
    };
    match owner {
        Some(pid) => status.run_by(pid),
        None => status,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossfade_observe::{Retrying, Standing};

    #[test]
    fn what_a_process_waits_for_is_told_while_it_lives_and_not_after() {
        let home = tempfile::tempdir().unwrap();
        let path = |name: &str| home.path().join(name);
        let text = format!(
            "name = \"shop\"\ndir = \"{}\"\n[source]\nkind = \"sqlite\"\npath = \"{}\"\ntables = [\"main.*\"]\n[sink]\n\
             kind = \"sqlite\"\npath = \"{}\"\n",
            path("data").display(),
            path("from.db").display(),
            path("to.db").display()
        );
        std::fs::write(path("shop.toml"), text).unwrap();
        let spec = Spec::load(&path("shop.toml")).unwrap();
        let owned = WorkFolder::lock(spec.folder()).unwrap();
        drop(folder::journal(&owned).unwrap());
        let dir = owned.dir().to_owned();
        let says = |pid: u32| {
            let now = folder::by_hand().at_us;
            let mut said = Status::new("shop", now, &Migration::default(), &Totals::default(), Rates::default());
            said.retrying =
                Some(Retrying { side: "log".to_owned(), failure: "nobody is there".to_owned(), times: 0, wait_ms: 0 });
            let file = StatusFile::new(WorkFolder::status_path(&dir), WorkFolder::history_path(&dir));
            file.write(&said.run_by(pid)).unwrap();
        };
        let own = std::process::id();

        says(own);
        let told = status(&spec).unwrap();
        assert_eq!((told.pid, told.standing), (Some(own), Standing::Running));
        assert_eq!(told.retrying.map(|retrying| retrying.failure).as_deref(), Some("nobody is there"));

        // The word of whoever had the folder before is not that of the one that has it now.
        says(own + 1);
        let told = status(&spec).unwrap();
        assert_eq!((told.pid, told.standing, told.retrying), (Some(own), Standing::Running, None));

        says(own);
        drop(owned);
        let told = status(&spec).unwrap();
        assert_eq!((told.pid, told.standing, told.retrying), (None, Standing::Stopped, None));
    }
}
