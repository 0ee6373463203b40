//! The ids of the topics, kept in a file beside the rest of the migration.

use super::topics::{Names, Standing, recreated};
use crate::ids;
use crossfade_log::LogError;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

/// Which topics the log was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pin {
    /// The format of the file.
    format: u32,
    /// The log's own number.
    pub(super) log: u64,
    pub(super) changes: String,
    pub(super) meta: String,
    /// The topic of what workers make, where there are workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) transformed: Option<String>,
}

const FORMAT: u32 = 1;

impl Pin {
    pub(super) fn new(log: u64, standing: &Standing) -> Self {
        let transformed = standing.transformed.as_ref().map(|topic| topic.id.clone());
        let (changes, meta) = (standing.changes.id.clone(), standing.meta.id.clone());
        Self { format: FORMAT, log, changes, meta, transformed }
    }

    /// The same, as whoever does not know yet whether there are workers sees it.
    pub(super) fn without_workers(&self) -> Self {
        Self { transformed: None, ..self.clone() }
    }

    /// What the file says; `None` where there is none.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, LogError> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(LogError::Io { doing: "reading", file: path.to_owned(), cause }),
        };
        let pin: Self = serde_json::from_slice(&text).map_err(|error| LogError::Corrupt {
            file: path.to_owned(),
            at: error.column() as u64,
            what: "it does not say which topics the log is made of".to_owned(),
        })?;
        match pin.format {
            FORMAT => Ok(Some(pin)),
            found => Err(LogError::TooNew { file: path.to_owned(), found, known: FORMAT }),
        }
    }

    /// Writes the file, durable and whole.
    pub(super) fn write(&self, path: &Path) -> Result<(), LogError> {
        let failed = |doing| move |cause| LogError::Io { doing, file: path.to_owned(), cause };
        let text = serde_json::to_vec(self).map_err(io::Error::other).map_err(failed("writing"))?;
        // Several processes of one migration may note the same at once.
        let beside = path.with_extension(format!("new-{}", std::process::id()));
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed("making the folder of"))?;
        }
        File::create(&beside)
            .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()))
            .map_err(failed("writing"))?;
        fs::rename(&beside, path).map_err(failed("writing"))?;
        if let Some(folder) = path.parent() {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("syncing"))?;
        }
        Ok(())
    }

    /// Forgets them.
    pub(super) fn remove(path: &Path) -> Result<(), LogError> {
        match fs::remove_file(path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                Err(LogError::Io { doing: "removing", file: path.to_owned(), cause })
            }
            _ => Ok(()),
        }
    }

    /// Checks that the topics are the ones pinned.
    pub(super) fn check(&self, names: &Names, changes: &ids::Topic, meta: &ids::Topic) -> Result<(), LogError> {
        for (name, was, now) in [(&names.changes, &self.changes, changes), (&names.meta, &self.meta, meta)] {
            if *was != now.id {
                return Err(recreated(name, was, &now.id));
            }
        }
        Ok(())
    }
}
