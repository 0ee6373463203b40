//! The register of schemas: a small file of its own, for schemas outlive the segments that they came in.
//!
//! The file `schemas` begins with `CFLOGSCH` and a `u32` format; then one entry after another: `u32` length of the
//! JSON, `u32` CRC-32C of the offset and the JSON, `u64` offset of the record that brought it, the schema as JSON. An
//! entry is synced before the frame that brings it is written; an entry whose frame never became whole is cut off when
//! the log is opened, for its source will send it again.

use super::{corrupt, disk::Disk, io_error, segment::read_u32};
use crate::{LogError, record::FORMAT, schemas::Schemas};
use crossfade_event::{Offset, TableSchema};
use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

const MAGIC: [u8; 8] = *b"CFLOGSCH";
const HEADER: usize = 12;
const ENTRY: usize = 16;

/// The file, as far as it is sound.
#[derive(Debug)]
pub(super) struct Register {
    pub(super) schemas: Schemas,
    /// Where the next entry goes.
    pub(super) at: u64,
}

pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join("schemas")
}

/// Reads the register; entries from `end` on do not count, for their frames are not in the log.
pub(super) fn load(dir: &Path, end: Offset) -> Result<Register, LogError> {
    let path = path(dir);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(io_error("reading", &path)(error)),
    };
    let mut register = Register { schemas: Schemas::default(), at: 0 };
    if bytes.len() < HEADER {
        // The file's making was cut off; whether it should hold something is seen from the segments.
        return Ok(register);
    }
    if !bytes.starts_with(&MAGIC) {
        return Err(corrupt(&path, 0, "the file is no register of schemas"));
    }
    let found = read_u32(&bytes, 8);
    if found > FORMAT {
        return Err(LogError::TooNew { file: path, found, known: FORMAT });
    }
    register.at = HEADER as u64;
    while let Some(rest) = bytes.get(register.at as usize..).filter(|rest| !rest.is_empty()) {
        match entry(rest) {
            Some((offset, _, _)) if offset >= end => break,
            Some((_, schema, length)) => {
                let added = register.schemas.insert(&schema);
                added.map_err(|error| corrupt(&path, register.at, error.to_string()))?;
                register.at += length as u64;
            }
            None if followed(rest, end) => return Err(corrupt(&path, register.at, "a schema is damaged")),
            None => break,
        }
    }
    Ok(register)
}

/// The entry at the front: its offset, its schema, its length.
fn entry(bytes: &[u8]) -> Option<(Offset, Arc<TableSchema>, usize)> {
    let length = ENTRY + read_u32(bytes, 0) as usize;
    let covered = bytes.get(8..length)?;
    if read_u32(bytes, 4) != crc32c::crc32c(covered) {
        return None;
    }
    let (offset, json) = covered.split_first_chunk::<8>()?;
    Some((Offset(u64::from_le_bytes(*offset)), serde_json::from_slice(json).ok()?, length))
}

/// Whether a sound entry of the log follows a damaged one: then it was no torn end.
fn followed(bytes: &[u8], end: Offset) -> bool {
    (1..bytes.len()).any(|at| bytes.get(at..).and_then(entry).is_some_and(|(offset, _, _)| offset < end))
}

/// The bytes of an entry, with the file's header where the file is still empty.
pub(super) fn to_bytes(schema: &TableSchema, offset: Offset, at: u64) -> Result<Vec<u8>, LogError> {
    let json = serde_json::to_vec(schema)
        .map_err(|error| LogError::Contract(format!("the schema of {} cannot be written: {error}", schema.name)))?;
    let mut bytes = Vec::with_capacity(HEADER + ENTRY + json.len());
    if at == 0 {
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
    }
    let crc = crc32c::crc32c_append(crc32c::crc32c(&offset.0.to_le_bytes()), &json);
    bytes.extend_from_slice(&(json.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(&offset.0.to_le_bytes());
    bytes.extend_from_slice(&json);
    Ok(bytes)
}

/// The register's file, open for adding.
#[derive(Debug)]
pub(super) struct RegisterFile {
    pub(super) file: File,
    pub(super) at: u64,
    pub(super) path: PathBuf,
}

impl RegisterFile {
    /// Adds entries and makes them durable.
    pub(super) fn add(&mut self, bytes: &[u8], disk: &dyn Disk, sync: bool) -> Result<(), LogError> {
        disk.write(&self.file, bytes, self.at).map_err(io_error("writing", &self.path))?;
        if sync {
            disk.sync(&self.file).map_err(io_error("syncing", &self.path))?;
        }
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Takes the last entries back.
    pub(super) fn cut(&mut self, at: u64) -> Result<(), LogError> {
        self.file.set_len(at).and_then(|()| self.file.sync_all()).map_err(io_error("cutting", &self.path))?;
        self.at = at;
        Ok(())
    }
}
