//! The two calls that may fail for good, behind a seam, so that tests can make them fail.

use std::{fs::File, io, os::unix::fs::FileExt};

/// How bytes reach the disk.
pub trait Disk: Send + Sync + std::fmt::Debug + 'static {
    /// Writes all bytes at a place.
    ///
    /// # Errors
    /// When some were not written; how many is unknown.
    fn write(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()>;

    /// Makes a file's contents durable.
    ///
    /// # Errors
    /// When they are not; what is on disk is then unknown, and a second call would not tell.
    fn sync(&self, file: &File) -> io::Result<()>;
}

/// The operating system's own.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsDisk;

impl Disk for OsDisk {
    fn write(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        file.write_all_at(bytes, at)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }
}
