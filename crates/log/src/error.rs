//! What can go wrong with a log.

use crossfade_event::Cut;
use std::path::PathBuf;

/// A log's failure; each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Bytes that were written are not what they were.
    #[error("{file} is damaged at byte {at}: {what}. Restore the file from a copy, or start again from the source: `crossfade rollback --wipe`, then `crossfade run`", file = file.display())]
    Corrupt {
        /// Which file.
        file: PathBuf,
        /// Where.
        at: u64,
        /// What is wrong.
        what: String,
    },
    /// Written by a newer Crossfade.
    #[error("{file} has format {found}, this program reads up to {known}. Use the newer crossfade that wrote it", file = file.display())]
    TooNew {
        /// Which file.
        file: PathBuf,
        /// Its format.
        found: u32,
        /// The newest we know.
        known: u32,
    },
    /// Another process writes here.
    #[error("the log in {dir} is in use by process {pid}. Stop that one, or talk to it with `crossfade status`", dir = dir.display())]
    Locked {
        /// Which folder.
        dir: PathBuf,
        /// The owner, zero when it cannot be read.
        pid: u32,
    },
    /// The entries asked for are gone.
    #[error("the log begins at {start}; {asked} has been trimmed away")]
    Trimmed {
        /// What was asked for.
        asked: Cut,
        /// What there is.
        start: Cut,
    },
    /// A place that the log has not reached: it is not the log that was read before, or it lost its end.
    #[error(
        "the log ends at {end}; {asked} lies beyond it, so this is not the log that was read before. Put the right log back, or start again from the source: `crossfade rollback --wipe`, then `crossfade run`"
    )]
    Beyond {
        /// What was asked for.
        asked: Cut,
        /// Where the log ends.
        end: Cut,
    },
    /// It was opened for reading.
    #[error("the log in {dir} is open for reading only", dir = dir.display())]
    ReadOnly {
        /// Which folder.
        dir: PathBuf,
    },
    /// An option that is not built.
    #[error("the embedded log cannot do this yet: {0}")]
    NotBuilt(String),
    /// A write or fsync failed; nothing more is written until the log is opened anew.
    #[error(
        "the log takes no more writes until restart: {why}. Make room or mend the disk, then start crossfade again"
    )]
    Poisoned {
        /// The first failure.
        why: String,
    },
    /// Reading, opening or making a file failed.
    #[error("{doing} {file}", file = file.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// With which file.
        file: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// What the log was is gone for good: it was deleted and made anew, or lost its end, or entries that were still
    /// needed have expired.
    #[error("{what}. {remedy}")]
    Lost {
        /// What was lost.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// The log is there and cannot be used as it is.
    #[error("{what}. {remedy}")]
    Refused {
        /// Why not.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// Another process has taken over the writing.
    #[error(
        "{log} is now written by {by}; this process has been shut out and has written nothing since. Let one of the two run"
    )]
    Fenced {
        /// Which log.
        log: String,
        /// Who writes it.
        by: String,
    },
    /// The server that holds the log does not answer, or says no.
    #[error("{doing}")]
    Server {
        /// What was being done, with what.
        doing: String,
        /// What came of it.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
        /// Whether it may work when tried again.
        passing: bool,
    },
    /// The server that holds the log does not allow it to this user.
    #[error("{doing}: the brokers do not allow it to this user ({said}). {remedy}")]
    Denied {
        /// What was being done, with what.
        doing: String,
        /// The server's own words.
        said: String,
        /// Which rights to grant.
        remedy: String,
    },
    /// The batch breaks the contract (an unknown schema, a mix of lanes).
    #[error("a batch that breaks the log's contract: {0}")]
    Contract(String),
}
