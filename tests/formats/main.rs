//! Bytes that a released version wrote must open for ever, and today's version must still write those of its own
//! format. The files stand in `golden/<version>`.
//!
//! A change that makes these tests fail changes a format. If that is meant: leave the old files, give the format the
//! next number, teach the reader both, and run the tests once with `CROSSFADE_WRITE_GOLDEN=1`, which writes the files
//! of the current format that are missing (it never overwrites one).
#![cfg(test)]

mod log;

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A checked-in file or folder.
fn golden(version: &str, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(version).join(name)
}

/// Compares bytes with a checked-in file, naming the first difference; writes the file where that is asked for and
/// there is none.
fn same_as_golden(file: &Path, bytes: &[u8]) {
    if !file.exists() && std::env::var_os("CROSSFADE_WRITE_GOLDEN").is_some() {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, bytes).unwrap();
    }
    let expected = fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let differs = expected.iter().zip(bytes).position(|(a, b)| a != b);
    let at = differs.or((expected.len() != bytes.len()).then(|| expected.len().min(bytes.len())));
    assert_eq!(at, None, "{} is no longer written like that, from this byte on", file.display());
}

/// The files of a folder by name, but for the lock, which holds a process id.
fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name != "lock");
    names.sort();
    names
}
