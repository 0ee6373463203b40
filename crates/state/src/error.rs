//! What can go wrong with the state; each says what to do.

use std::{io, path::PathBuf};

/// A state store's failure.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Bytes that were written are not what they were.
    #[error("the state in {dir} is damaged: {what}. It can be made again from the log and the sink, nothing is lost: `crossfade state rebuild`", dir = dir.display())]
    Damaged {
        /// Which folder.
        dir: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Written by a newer Crossfade.
    #[error("{what} in {dir} has version {found}, this program reads up to {known}. Use the newer crossfade that wrote it", dir = dir.display())]
    TooNew {
        /// Which folder.
        dir: PathBuf,
        /// Which object.
        what: String,
        /// Its version.
        found: u32,
        /// The newest we know.
        known: u32,
    },
    /// Another process owns the work folder.
    #[error("the work folder {dir} belongs to the running process {pid}. Stop that one, or ask it with `crossfade status`", dir = dir.display())]
    Locked {
        /// Which folder.
        dir: PathBuf,
        /// The owner; zero when it cannot be read.
        pid: u32,
    },
    /// A write or fsync failed; nothing more is written until the store is opened anew.
    #[error("the state in {dir} takes no more writes until restart: {why}. Make room or mend the disk, then start crossfade again", dir = dir.display())]
    Poisoned {
        /// Which folder.
        dir: PathBuf,
        /// The first failure.
        why: String,
    },
    /// A key or value that is larger than the store takes. Nothing was written.
    #[error("{what} has {bytes} bytes, the state takes at most {limit}")]
    TooLarge {
        /// Which object.
        what: String,
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A file or folder could not be made, read or moved.
    #[error("{doing} {file}: {cause}", file = file.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// With which file.
        file: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

impl StateError {
    /// True when `crossfade state rebuild` is the remedy.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. })
    }

    /// True when another process owns the folder (exit code 75).
    pub fn is_locked(&self) -> bool {
        matches!(self, Self::Locked { .. })
    }

    pub(crate) fn io(doing: &'static str, file: impl Into<PathBuf>, cause: io::Error) -> Self {
        Self::Io { doing, file: file.into(), cause }
    }
}
