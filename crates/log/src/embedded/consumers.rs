//! How far the named consumers have come: a small file, replaced as a whole.
//!
//! The file `consumers` is one line `crossfade-consumers 1 CRC`, with the CRC-32C of the rest in hexadecimal, then one
//! JSON object from name to offset. It is written when a consumer comes, goes or steps back, and now and then in
//! between: an older value only keeps more.

use super::{corrupt, io_error, sync_dir};
use crate::LogError;
use crossfade_event::Offset;
use std::{
    collections::BTreeMap,
    fs::File,
    io::Write,
    path::{Path, PathBuf},
};

const FORMAT: u32 = 1;

/// The consumers, and what the file says of them.
#[derive(Debug, Default)]
pub(super) struct Consumers {
    now: BTreeMap<String, Offset>,
    written: BTreeMap<String, Offset>,
    /// Whether there ever was one: the file is there.
    ever: bool,
}

impl Consumers {
    pub(super) fn load(dir: &Path) -> Result<Self, LogError> {
        let path = path(dir);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(io_error("reading", &path)(error)),
        };
        let (head, body) = text.split_once('\n').unwrap_or((&text, ""));
        let mut words = head.split(' ');
        if words.next() != Some("crossfade-consumers") {
            return Err(corrupt(&path, 0, "the file is no list of consumers"));
        }
        match words.next().and_then(|word| word.parse::<u32>().ok()) {
            Some(FORMAT) => {}
            Some(found) if found > FORMAT => return Err(LogError::TooNew { file: path, found, known: FORMAT }),
            _ => return Err(corrupt(&path, 20, "the file has no format")),
        }
        let crc = words.next().and_then(|word| u32::from_str_radix(word, 16).ok());
        let now: Option<BTreeMap<String, Offset>> = serde_json::from_str(body).ok();
        match now {
            Some(now) if crc == Some(crc32c::crc32c(body.as_bytes())) => {
                Ok(Self { written: now.clone(), now, ever: true })
            }
            _ => Err(corrupt(&path, head.len() as u64 + 1, "the list does not match its checksum")),
        }
    }

    /// The consumer that is furthest behind.
    pub(super) fn slowest(&self) -> Option<Offset> {
        self.now.values().min().copied()
    }

    /// Whether there ever was a consumer. Before the first one has come, nobody can say what is still needed.
    pub(super) fn ever(&self) -> bool {
        self.ever
    }

    /// The consumer that is furthest ahead.
    pub(super) fn furthest(&self) -> Option<(&str, Offset)> {
        self.now.iter().max_by_key(|(_, offset)| **offset).map(|(name, offset)| (name.as_str(), *offset))
    }

    pub(super) fn all(&self) -> &BTreeMap<String, Offset> {
        &self.now
    }

    /// Notes a consumer's place; written at once when the file would keep too little.
    pub(super) fn hold(&mut self, dir: &Path, name: &str, at: Offset) -> Result<(), LogError> {
        self.now.insert(name.to_owned(), at);
        let kept = self.written.get(name).is_some_and(|written| *written <= at);
        if kept { Ok(()) } else { self.save(dir) }
    }

    pub(super) fn release(&mut self, dir: &Path, name: &str) -> Result<(), LogError> {
        if self.now.remove(name).is_some() { self.save(dir) } else { Ok(()) }
    }

    /// Writes the file if it is not what it should be.
    pub(super) fn save(&mut self, dir: &Path) -> Result<(), LogError> {
        if self.now == self.written {
            return Ok(());
        }
        let path = path(dir);
        let temporary = path.with_extension("tmp");
        let body = serde_json::to_string(&self.now)
            .map_err(|error| io_error("writing", &path)(std::io::Error::other(error)))?;
        let head = format!("crossfade-consumers {FORMAT} {:08x}\n", crc32c::crc32c(body.as_bytes()));
        let mut file = File::create(&temporary).map_err(io_error("making", &temporary))?;
        file.write_all((head + &body).as_bytes()).map_err(io_error("writing", &temporary))?;
        file.sync_all().map_err(io_error("syncing", &temporary))?;
        std::fs::rename(&temporary, &path).map_err(io_error("renaming", &temporary))?;
        sync_dir(dir)?;
        self.written.clone_from(&self.now);
        self.ever = true;
        Ok(())
    }
}

pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join("consumers")
}
