//! The migration's own folder, for commands that look into it.

use crate::{error::CliError, spec::Spec};
use crossfade_control::{By, Journal, Migration};
use crossfade_log::{
    LogError,
    embedded::{Embedded, Options},
};
use crossfade_state::{StateError, WorkFolder};
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// The folder, which must be there.
pub(crate) fn existing(spec: &Spec) -> Result<PathBuf, CliError> {
    let folder = spec.folder();
    if folder.is_dir() {
        return Ok(folder);
    }
    Err(CliError::misconfigured(format!("the migration {} has no folder yet: {}", spec.name, folder.display()))
        .hint(format!("`crossfade run {}` makes it", spec.file.display())))
}

/// What the migration's processes have in common, which must be there.
pub(crate) fn base(spec: &Spec) -> Result<PathBuf, CliError> {
    existing(&spec.as_part(None))
}

/// The folder, which must be there, taken by this process.
pub(crate) fn taken(spec: &Spec) -> Result<WorkFolder, CliError> {
    Ok(WorkFolder::lock(existing(spec)?)?)
}

/// The process that owns the folder now, if one does.
pub(crate) fn owner(spec: &Spec) -> Result<Option<u32>, StateError> {
    WorkFolder::owner(spec.folder())
}

/// The name under which deliver's place is kept, in the log and in the state.
pub(crate) const DELIVER: &str = "deliver";

/// The name under which the state keeps how far ingest has come.
pub(crate) const INGEST: &str = "ingest";

/// How large a segment of the journal grows: it is small, and kept whole.
const JOURNAL_SEGMENT_BYTES: u64 = 4 * 1024 * 1024;

/// How long the process that had the folder before may take to close its journal.
const CLOSES_WITHIN: Duration = Duration::from_secs(10);

/// The journal of a folder that this process owns. One that ends gives the folder up before its journal is closed: that is waited
/// for.
pub(crate) fn journal(folder: &WorkFolder) -> Result<Journal<Embedded>, CliError> {
    let begun = Instant::now();
    loop {
        let options = Options { segment_bytes: JOURNAL_SEGMENT_BYTES, ..Options::default() };
        match Embedded::open(WorkFolder::journal_path(folder.dir()), options) {
            Err(LogError::Locked { .. }) if begun.elapsed() < CLOSES_WITHIN => {
                std::thread::sleep(Duration::from_millis(10));
            }
            opened => return Ok(Journal::open(opened?, None)?),
        }
    }
}

/// Where the migration stands by the journal of a folder that another process owns, as far as that has written it.
pub(crate) fn read_journal(folder: &Path) -> Result<Migration, CliError> {
    let log = Embedded::open_read_only(WorkFolder::journal_path(folder))?;
    Ok(Journal::open(log, None)?.migration())
}

/// A person at the command line, now.
pub(crate) fn by_hand() -> By {
    let who = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_else(|_| "operator".to_owned());
    By { who, at_us: jiff::Timestamp::now().as_microsecond() }
}
