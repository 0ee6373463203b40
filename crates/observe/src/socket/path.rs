//! A Unix socket's path has at most 107 bytes; a work folder's may be longer. Then the folder is opened, and the
//! socket named through the descriptor.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

const PATH_BYTES_MAX: usize = 107;

/// A path that fits, and what must stay open while it is used.
pub(super) struct Fitting {
    pub(super) path: PathBuf,
    _folder: Option<File>,
}

impl Fitting {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        if path.as_os_str().as_bytes().len() <= PATH_BYTES_MAX {
            return Ok(Self { path: path.into(), _folder: None });
        }
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a socket's path needs a folder and a name"));
        };
        let folder = File::open(folder)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
        Ok(Self { path, _folder: Some(folder) })
    }
}
