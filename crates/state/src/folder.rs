//! One process owns a work folder. Everything of one migration lives in it, under names that are said here once.

use crate::{StateError, guard::sync_dir};
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

const LOCK_TRIES: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// A migration's folder, owned by this process until dropped (or until it ends in any way).
#[derive(Debug)]
pub struct WorkFolder {
    dir: PathBuf,
    _lock: File,
}

impl WorkFolder {
    /// Makes the folder if need be, and takes it.
    ///
    /// # Errors
    /// [`StateError::Locked`] with the owner's process id: exit code 75.
    pub fn lock(dir: impl AsRef<Path>) -> Result<Self, StateError> {
        let dir = dir.as_ref();
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|cause| StateError::io("making", dir, cause))?;
        let path = Self::lock_path(dir);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = file.map_err(|cause| StateError::io("opening", &path, cause))?;
        // Somebody who only asks who owns the folder holds the lock for an instant: try a few times.
        for attempt in 1.. {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if attempt < LOCK_TRIES => thread::sleep(LOCK_PAUSE),
                Err(TryLockError::WouldBlock) => {
                    return Err(StateError::Locked { dir: dir.into(), pid: read_pid(&path).unwrap_or(0) });
                }
                Err(TryLockError::Error(cause)) => return Err(StateError::io("locking", &path, cause)),
            }
        }
        let noted =
            file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
        noted.map_err(|cause| StateError::io("writing", &path, cause))?;
        Ok(Self { dir: dir.into(), _lock: file })
    }

    /// The process that owns the folder now; `None` when nobody does, zero when it cannot be read.
    ///
    /// # Errors
    /// When the lock file cannot be opened.
    pub fn owner(dir: impl AsRef<Path>) -> Result<Option<u32>, StateError> {
        let path = Self::lock_path(dir.as_ref());
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(StateError::io("opening", &path, cause)),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => Ok(Some(read_pid(&path).unwrap_or(0))),
            Err(TryLockError::Error(cause)) => Err(StateError::io("locking", &path, cause)),
        }
    }

    /// The folder itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the lock file of a work folder is.
    pub fn lock_path(dir: &Path) -> PathBuf {
        dir.join("lock")
    }

    /// Where its event log is.
    pub fn log_path(dir: &Path) -> PathBuf {
        dir.join("log")
    }

    /// Where its journal is.
    pub fn journal_path(dir: &Path) -> PathBuf {
        dir.join("journal")
    }

    /// Where its state is.
    pub fn state_path(dir: &Path) -> PathBuf {
        dir.join("state")
    }

    /// Where its control socket is, while it runs.
    pub fn socket_path(dir: &Path) -> PathBuf {
        dir.join("control.sock")
    }

    /// Where its status file is.
    pub fn status_path(dir: &Path) -> PathBuf {
        dir.join("status.json")
    }

    /// Where its earlier statuses are, one a line.
    pub fn history_path(dir: &Path) -> PathBuf {
        dir.join("status-history.jsonl")
    }
}

fn read_pid(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Moves a damaged state folder out of the way, to `<name>.damaged-<n>` beside it; returns where it went.
///
/// # Errors
/// When it cannot be moved.
pub fn quarantine_aside(dir: impl AsRef<Path>) -> Result<PathBuf, StateError> {
    let dir = dir.as_ref();
    let target = |n: u32| {
        let mut name = dir.as_os_str().to_owned();
        name.push(format!(".damaged-{n}"));
        PathBuf::from(name)
    };
    let free = (1..).map(target).find(|path| !path.exists()).unwrap_or_else(|| target(0));
    fs::rename(dir, &free).map_err(|cause| StateError::io("moving", dir, cause))?;
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        sync_dir(parent)?;
    }
    Ok(free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_work_folder_has_one_owner_and_says_who() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("orders");
        assert_eq!(WorkFolder::owner(&dir).unwrap(), None);
        let owned = WorkFolder::lock(&dir).unwrap();
        assert_eq!(WorkFolder::owner(&dir).unwrap(), Some(std::process::id()));
        let refused = WorkFolder::lock(&dir).unwrap_err();
        assert!(refused.is_locked());
        assert!(refused.to_string().contains(&format!("process {}", std::process::id())), "{refused}");
        drop(owned);
        assert_eq!(WorkFolder::owner(&dir).unwrap(), None);
        assert!(WorkFolder::lock(&dir).is_ok());
    }

    #[test]
    fn damaged_folders_are_kept_side_by_side() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("state");
        for n in 1..=2 {
            fs::create_dir(&dir).unwrap();
            assert_eq!(quarantine_aside(&dir).unwrap(), home.path().join(format!("state.damaged-{n}")));
        }
        assert!(quarantine_aside(&dir).is_err(), "nothing is there to move");
    }
}
