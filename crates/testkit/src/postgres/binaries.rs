//! Where the servers' programs come from.

use super::Version;
use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

pub(crate) const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// The folder with `initdb` and `postgres` of that version, fetched once where it is not Debian's.
///
/// # Errors
/// A sentence that says what is missing and how to get it.
pub(super) fn find(version: Version) -> Result<PathBuf, String> {
    let major = version.major();
    let debian = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
    if debian.join("postgres").exists() {
        return Ok(debian);
    }
    if version == Version::V15 {
        return Err(format!("{} holds no server; install the package postgresql-15", debian.display()));
    }
    let cache = cache_folder();
    let unpacked = cache.join(major.to_string()).join("bin");
    if unpacked.join("postgres").exists() {
        return Ok(unpacked);
    }
    let fetched = Command::new(Path::new(REPOSITORY).join("ci/postgres-binaries"))
        .arg(major.to_string())
        .arg(&cache)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("ci/postgres-binaries cannot be run: {error}"))?;
    if fetched.status.success() {
        Ok(unpacked)
    } else {
        Err(String::from_utf8_lossy(&fetched.stderr).trim().to_owned())
    }
}

/// `$CROSSFADE_TEST_CACHE`; otherwise the repository's `target/test-cache`, unless the server's own user could not reach
/// it there (a clone in root's home).
pub(crate) fn cache_folder() -> PathBuf {
    if let Some(folder) = env::var_os("CROSSFADE_TEST_CACHE") {
        return folder.into();
    }
    let repository = fs::canonicalize(REPOSITORY).unwrap_or_else(|_| REPOSITORY.into());
    let open_to_all = |folder: &Path| fs::metadata(folder).is_ok_and(|found| found.permissions().mode() & 0o001 != 0);
    if repository.ancestors().all(open_to_all) {
        repository.join("target/test-cache")
    } else {
        "/var/tmp/crossfade-test-cache".into()
    }
}
