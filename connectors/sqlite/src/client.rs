//! A connection to a file, and what its errors mean for us.

use crate::Config;
use crossfade_connector::{Failure, Verdict};
use rusqlite::{Connection, ErrorCode, OpenFlags, config::DbConfig};
use std::path::Path;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// The file must exist.
    Existing,
    /// The file is made if it does not exist.
    Create,
}

/// Opens a connection with our settings: they concern this connection only, never the file.
pub(crate) fn open(config: &Config, access: Access) -> Result<Connection, Failure> {
    let path = &config.path;
    let doing = || format!("opening {}", path.display());
    if access == Access::Existing && !path.is_file() {
        return Err(Failure::misconfigured(doing(), "there is no such file", "check `path`"));
    }
    if has_wal_race(rusqlite::version_number()) {
        let problem =
            format!("SQLite {} is linked in, which may lose a commit when it resets its WAL", rusqlite::version());
        return Err(Failure::halt(doing(), problem, "build with SQLite 3.51.3 or later (the bundled one is)"));
    }
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    if access == Access::Create {
        flags |= OpenFlags::SQLITE_OPEN_CREATE;
    }
    let connection = Connection::open_with_flags(path, flags).map_err(|error| failure(doing(), error))?;
    settle(&connection, config).map_err(|error| failure(doing(), error))?;
    Ok(connection)
}

/// Versions 3.7.0 to 3.51.2 may lose a commit when the WAL is reset (<https://sqlite.org/wal.html#walresetbug>).
fn has_wal_race(version: i32) -> bool {
    (3_007_000..3_051_003).contains(&version)
}

fn settle(connection: &Connection, config: &Config) -> rusqlite::Result<()> {
    connection.busy_timeout(config.busy_timeout)?;
    connection.set_prepared_statement_cache_capacity(512);
    // Otherwise a column that was renamed meanwhile reads as its own name.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DDL, false)?;
    connection.pragma_update(None, "foreign_keys", false)?;
    // Our own reads and writes must see every row as it is, whatever triggers the file has.
    connection.pragma_update(None, "recursive_triggers", false)?;
    connection.pragma_update(None, "cache_size", -i64::from(config.cache_mib) * 1024)?;
    let journal = journal_mode(connection)?;
    // Safe in WAL mode: a power cut loses whole transactions at the end, never a part, and the position is in them.
    let synchronous = if journal == "wal" { "NORMAL" } else { "FULL" };
    connection.pragma_update(None, "synchronous", synchronous)
}

/// `wal`, `delete`, `truncate`, `persist`, `memory` or `off`.
pub(crate) fn journal_mode(connection: &Connection) -> rusqlite::Result<String> {
    connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))
}

/// An identifier as it stands in SQL.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A column as it stands in SQL where it is read. With its table it can mean nothing else: a bare name in double quotes
/// that is no column is taken for a text.
pub(crate) fn of_table(table: &str, column: &str) -> String {
    format!("{}.{}", quoted(table), quoted(column))
}

/// A text as it stands in SQL.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Names joined for SQL.
pub(crate) fn list<I: IntoIterator<Item = S>, S: AsRef<str>>(names: I) -> String {
    names.into_iter().map(|name| quoted(name.as_ref())).collect::<Vec<_>>().join(", ")
}

/// Whether an object with this name exists.
pub(crate) fn exists(connection: &Connection, type_: &str, name: &str) -> rusqlite::Result<bool> {
    let mut statement =
        connection.prepare_cached("SELECT 1 FROM main.sqlite_schema WHERE type = ?1 AND name = ?2 COLLATE NOCASE")?;
    statement.exists([type_, name])
}

/// True for an error that is the row's own fault.
pub(crate) fn is_rejection(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch | ErrorCode::TooBig)
    )
}

/// What to do about an error of SQLite. Messages of SQLite name tables and columns, never values.
pub(crate) fn failure(doing: impl Into<String>, error: rusqlite::Error) -> Failure {
    let doing = doing.into();
    let advice = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::SchemaChanged) => {
            return Failure::retry(doing, error);
        }
        // Both pass by themselves once somebody frees space or makes the file writable again.
        Some(ErrorCode::DiskFull | ErrorCode::ReadOnly) => {
            return Failure::new(Verdict::Retry { after: Some(std::time::Duration::from_secs(1)) }, doing, error);
        }
        Some(ErrorCode::SystemIoFailure | ErrorCode::FileLockingProtocolFailed | ErrorCode::OperationInterrupted) => {
            return Failure::reconnect(doing, error);
        }
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::AuthorizationForStatementDenied) => {
            return Failure::misconfigured(
                doing,
                error,
                "check that the file and its folder exist and may be read and written",
            );
        }
        Some(ErrorCode::NotADatabase) => {
            return Failure::misconfigured(
                doing,
                error,
                "check `path`: the file is not a SQLite database, or it is encrypted",
            );
        }
        Some(ErrorCode::DatabaseCorrupt) => {
            "the file is damaged: run `PRAGMA integrity_check`, and restore it from a backup if that reports errors"
        }
        _ => "see the message of SQLite",
    };
    Failure::halt(doing, error, advice)
}

/// True for objects that are SQLite's or ours, which no pattern ever matches.
pub(crate) fn is_internal(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    lower.starts_with("sqlite_") || lower.starts_with("_crossfade")
}

/// A file's path for messages.
pub(crate) fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_stay_one_identifier() {
        assert_eq!(quoted("a\"; DROP TABLE x; --"), "\"a\"\"; DROP TABLE x; --\"");
        assert_eq!(literal("o'clock"), "'o''clock'");
    }

    #[test]
    fn the_library_is_one_without_the_race_at_the_reset_of_the_wal() {
        assert!(!has_wal_race(rusqlite::version_number()), "{}", rusqlite::version());
        assert!(has_wal_race(3_007_000) && has_wal_race(3_051_002) && !has_wal_race(3_051_003));
    }

    #[test]
    fn a_missing_file_is_the_specs_fault_and_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::new(folder.path().join("none.db"));
        let failure = open(&config, Access::Existing).unwrap_err();
        assert!(matches!(failure.verdict, Verdict::Misconfigured { .. }), "{failure}");
        assert!(!config.path.exists());
    }
}
