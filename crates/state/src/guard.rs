//! What the store under us does not promise: power-loss durability, and noticing that acknowledged commits are gone.
//!
//! After a torn or flipped byte the store cuts everything from there on and opens without a word. A small file beside
//! it, `crossfade.commits`, holds the number of the last acknowledged commit and is written *after* the commit is
//! durable, so the store is never behind it: unless it lost something. It needs no fsync of its own but one, before
//! the very first commit: a folder whose guard says that nothing was ever committed may be made anew by itself.

use crate::StateError;
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

const NAME: &str = "crossfade.commits";
const MAGIC: [u8; 4] = *b"CFsg";
const FORMAT: u8 = 1;
const LENGTH: usize = 24;

/// The guard file of one store.
#[derive(Debug)]
pub(crate) struct Guard {
    dir: PathBuf,
    file: File,
    says: Says,
}

/// What a guard file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Says {
    /// Whether a commit was ever tried.
    pub(crate) began: bool,
    /// The checksum of the store's own configuration file, which it only warns about.
    pub(crate) conf: u32,
    /// The last acknowledged commit.
    pub(crate) commits: u64,
}

impl Guard {
    /// Reads a folder's guard, or makes one in a folder that has no store yet.
    pub(crate) fn open(dir: &Path) -> Result<Self, StateError> {
        let path = dir.join(NAME);
        let damaged = |what: &str| StateError::Damaged { dir: dir.into(), what: what.to_owned() };
        let has_store = dir.join("db").exists();
        if !path.exists() {
            if has_store {
                return Err(damaged("the file crossfade.commits is missing"));
            }
            let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
            let file = file.map_err(|cause| StateError::io("making", &path, cause))?;
            let guard = Self { dir: dir.into(), file, says: Says::default() };
            guard.write(true)?;
            sync_dir(dir)?;
            return Ok(guard);
        }
        let bytes = fs::read(&path).map_err(|cause| StateError::io("reading", &path, cause))?;
        let says = match decode(&bytes) {
            Ok(says) => says,
            Err(Unreadable::TooNew(found)) => {
                let what = NAME.to_owned();
                return Err(StateError::TooNew { dir: dir.into(), what, found, known: FORMAT.into() });
            }
            // Killed while it was being made: nothing was committed, for the store itself is not there yet.
            Err(Unreadable::Damaged) if !has_store && bytes.len() < LENGTH => Says::default(),
            Err(Unreadable::Damaged) => return Err(damaged("the file crossfade.commits cannot be read")),
        };
        if says.began && !has_store {
            return Err(damaged("its file db is missing"));
        }
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.map_err(|cause| StateError::io("opening", &path, cause))?;
        Ok(Self { dir: dir.into(), file, says })
    }

    pub(crate) fn says(&self) -> Says {
        self.says
    }

    /// The store is open, its configuration written: from now on a change of that file is damage.
    pub(crate) fn pin_conf(&mut self) -> Result<(), StateError> {
        let path = self.dir.join("conf");
        let conf = fs::read(&path).map_err(|cause| StateError::io("reading", &path, cause))?;
        let conf = crc32c::crc32c(&conf);
        if self.says.conf == 0 {
            self.says.conf = conf;
            return self.write(true);
        }
        if self.says.conf == conf { Ok(()) } else { Err(self.damaged("its file conf was changed")) }
    }

    /// Compares with what the store itself says.
    pub(crate) fn check(&self, commits: u64) -> Result<(), StateError> {
        if commits < self.says.commits {
            let lost = self.says.commits - commits;
            return Err(self.damaged(&format!("the last {lost} of {} commits are missing", self.says.commits)));
        }
        Ok(())
    }

    /// Called before every commit; only the first one writes.
    pub(crate) fn begin(&mut self) -> Result<(), StateError> {
        if self.says.began {
            return Ok(());
        }
        self.says.began = true;
        self.write(true)
    }

    /// A commit is durable.
    pub(crate) fn committed(&mut self, commits: u64) -> Result<(), StateError> {
        self.says.commits = commits;
        self.write(false)
    }

    /// A whole store was written at once, by a compaction.
    pub(crate) fn settle(&mut self, commits: u64) -> Result<(), StateError> {
        self.says.began = true;
        self.says.commits = commits;
        self.write(true)
    }

    fn write(&self, sync: bool) -> Result<(), StateError> {
        let written = self.file.write_all_at(&encode(self.says), 0);
        written
            .and_then(|()| if sync { self.file.sync_data() } else { Ok(()) })
            .map_err(|cause| StateError::io("writing", self.dir.join(NAME), cause))
    }

    fn damaged(&self, what: &str) -> StateError {
        StateError::Damaged { dir: self.dir.clone(), what: what.to_owned() }
    }
}

fn encode(says: Says) -> [u8; LENGTH] {
    let mut bytes = Vec::with_capacity(LENGTH);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[FORMAT, u8::from(says.began), 0, 0]);
    bytes.extend_from_slice(&says.conf.to_be_bytes());
    bytes.extend_from_slice(&says.commits.to_be_bytes());
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_be_bytes());
    bytes.try_into().unwrap_or([0; LENGTH])
}

enum Unreadable {
    Damaged,
    TooNew(u32),
}

fn decode(bytes: &[u8]) -> Result<Says, Unreadable> {
    let bytes: &[u8; LENGTH] = bytes.try_into().map_err(|_| Unreadable::Damaged)?;
    let [m0, m1, m2, m3, format, began, _, _, rest @ ..] = bytes;
    let [f0, f1, f2, f3, n0, n1, n2, n3, n4, n5, n6, n7, c0, c1, c2, c3] = *rest;
    if [*m0, *m1, *m2, *m3] != MAGIC {
        return Err(Unreadable::Damaged);
    }
    if *format > FORMAT {
        return Err(Unreadable::TooNew((*format).into()));
    }
    let (covered, _) = bytes.split_at(LENGTH - 4);
    if crc32c::crc32c(covered) != u32::from_be_bytes([c0, c1, c2, c3]) {
        return Err(Unreadable::Damaged);
    }
    Ok(Says {
        began: *began != 0,
        conf: u32::from_be_bytes([f0, f1, f2, f3]),
        commits: u64::from_be_bytes([n0, n1, n2, n3, n4, n5, n6, n7]),
    })
}

/// Removes snapshots that the store was killed while writing: it would take the newest of them for a finished one,
/// and never open again.
pub(crate) fn sweep_unfinished_snapshots(dir: &Path) -> Result<(), StateError> {
    for entry in fs::read_dir(dir).map_err(|cause| StateError::io("reading", dir, cause))? {
        let path = entry.map_err(|cause| StateError::io("reading", dir, cause))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            tracing::warn!(file = %path.display(), "removing a snapshot of the state that was never finished");
            fs::remove_file(&path).map_err(|cause| StateError::io("removing", &path, cause))?;
        }
    }
    Ok(())
}

/// Makes the names in a folder durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), StateError> {
    let synced: io::Result<()> = File::open(dir).and_then(|folder| folder.sync_all());
    synced.map_err(|cause| StateError::io("syncing", dir, cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_says_what_it_was_told_and_any_flipped_bit_is_seen() {
        let says = Says { began: true, conf: 7, commits: 1 << 40 };
        let bytes = encode(says);
        assert!(decode(&bytes).is_ok_and(|read| read == says));
        for bit in 0..LENGTH * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_guard_that_is_ahead_of_its_store_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let mut guard = Guard::open(dir.path()).unwrap();
        guard.begin().unwrap();
        guard.committed(5).unwrap();
        assert!(guard.check(5).is_ok() && guard.check(6).is_ok());
        assert!(guard.check(3).unwrap_err().to_string().contains("the last 2 of 5 commits are missing"));
    }
}
