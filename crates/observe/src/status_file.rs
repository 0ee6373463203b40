//! The status as a file: always whole, for it is written beside and moved into place; and a history of short lines.

use crate::Status;
use serde::Serialize;
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

const EVERY: Duration = Duration::from_secs(1);
const HISTORY_EVERY: Duration = Duration::from_secs(30);
const HISTORY_BYTES_MAX: u64 = 8 << 20;

/// Writes a migration's status file and its history.
#[derive(Debug)]
pub struct StatusFile {
    path: PathBuf,
    history: PathBuf,
    written: Option<Duration>,
    noted: Option<Duration>,
    last: Option<(String, crate::Standing)>,
}

#[derive(Serialize)]
struct Line<'a> {
    at: &'a str,
    phase: &'a str,
    standing: crate::Standing,
    read: u64,
    applied: u64,
    filtered: u64,
    quarantined: u64,
    pending: i64,
    lag_ms: Option<u64>,
    applied_per_s: f64,
}

impl StatusFile {
    /// A writer for these two files.
    pub fn new(path: impl Into<PathBuf>, history: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), history: history.into(), written: None, noted: None, last: None }
    }

    /// Writes if a second has gone by since the last time (of a monotonic clock), or the phase is another one.
    /// Returns whether it wrote.
    ///
    /// # Errors
    /// When a file cannot be written. The migration does not depend on it.
    pub fn write_if_due(&mut self, at: Duration, status: &Status) -> io::Result<bool> {
        let moved =
            self.last.as_ref().is_none_or(|(phase, standing)| *phase != status.phase || *standing != status.standing);
        let due = |then: Option<Duration>, every| then.is_none_or(|then| at.saturating_sub(then) >= every);
        if !moved && !due(self.written, EVERY) {
            return Ok(false);
        }
        if moved || due(self.noted, HISTORY_EVERY) {
            self.note(status)?;
            self.noted = Some(at);
        }
        self.write(status)?;
        self.written = Some(at);
        self.last = Some((status.phase.clone(), status.standing));
        Ok(true)
    }

    /// Writes now: the last word of a process that ends.
    ///
    /// # Errors
    /// As [`StatusFile::write_if_due`].
    pub fn write(&self, status: &Status) -> io::Result<()> {
        let mut beside = self.path.clone().into_os_string();
        beside.push(".new");
        let text = serde_json::to_vec_pretty(status).map_err(io::Error::other)?;
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(&text)?;
        file.write_all(b"\n")?;
        drop(file);
        fs::rename(&beside, &self.path)
    }

    /// What a status file says; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read, or is not one.
    pub fn read(path: &Path) -> io::Result<Option<Status>> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(cause),
        };
        serde_json::from_slice(&text).map(Some).map_err(|cause| io::Error::new(io::ErrorKind::InvalidData, cause))
    }

    fn note(&self, status: &Status) -> io::Result<()> {
        if fs::metadata(&self.history).is_ok_and(|meta| meta.len() > HISTORY_BYTES_MAX) {
            let mut older = self.history.clone().into_os_string();
            older.push(".1");
            fs::rename(&self.history, older)?;
        }
        let line = Line {
            at: &status.at,
            phase: &status.phase,
            standing: status.standing,
            read: status.conservation.read,
            applied: status.conservation.applied,
            filtered: status.conservation.filtered,
            quarantined: status.conservation.quarantined,
            pending: status.conservation.pending,
            lag_ms: status.lag.ms,
            applied_per_s: status.rates.applied_per_s,
        };
        let mut text = serde_json::to_vec(&line).map_err(io::Error::other)?;
        text.push(b'\n');
        OpenOptions::new().append(true).create(true).mode(0o600).open(&self.history)?.write_all(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Rates, Totals};
    use crossfade_control::Migration;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn status(name: &str) -> Status {
        Status::new(name, 0, &Migration::default(), &Totals::default(), Rates::default())
    }

    #[test]
    fn a_reader_never_sees_half_a_status() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("status.json");
        let file = StatusFile::new(&path, home.path().join("history"));
        assert_eq!(StatusFile::read(&path).unwrap(), None);
        file.write(&status("a")).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..2_000 {
                    file.write(&status(&"x".repeat(n * 7 % 5_000))).unwrap();
                }
                stop.store(true, Ordering::Relaxed);
            });
            let mut reads = 0;
            while !stop.load(Ordering::Relaxed) {
                assert!(StatusFile::read(&path).unwrap().is_some());
                reads += 1;
            }
            assert!(reads > 0);
        });
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn it_is_written_every_second_and_at_every_change_of_phase() {
        let home = tempfile::tempdir().unwrap();
        let history = home.path().join("history");
        let mut file = StatusFile::new(home.path().join("status.json"), &history);
        let at = Duration::from_millis;
        let mut now = status("a");
        assert!(file.write_if_due(at(0), &now).unwrap());
        assert!(!file.write_if_due(at(999), &now).unwrap());
        assert!(file.write_if_due(at(1_000), &now).unwrap());
        now.phase = "backfilling".into();
        assert!(file.write_if_due(at(1_001), &now).unwrap());
        assert!(file.write_if_due(at(31_001), &now).unwrap());
        let lines = fs::read_to_string(&history).unwrap();
        assert_eq!(lines.lines().count(), 3, "{lines}");
        assert!(lines.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
    }

    #[test]
    fn a_damaged_status_is_an_error_and_not_absent() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("status.json");
        fs::write(&path, "{").unwrap();
        assert_eq!(StatusFile::read(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
