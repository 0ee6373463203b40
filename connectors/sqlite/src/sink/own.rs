//! The tables in which the sink keeps its own word: positions, quarantine, undo records, and what it made.

use crossfade_connector::Progress;
use rusqlite::{Connection, OptionalExtension};

/// All of them start with `_crossfade`, so no pattern ever matches them.
pub(super) const TABLES: [&str; 4] =
    ["_crossfade_positions", "_crossfade_quarantine", "_crossfade_undo", "_crossfade_objects"];

/// The statements that make them.
pub(super) const MAKE: [&str; 4] = [
    "CREATE TABLE IF NOT EXISTS _crossfade_positions ( \
     migration TEXT PRIMARY KEY, epoch INTEGER NOT NULL, progress TEXT, source_position TEXT, written_at TEXT)",
    "CREATE TABLE IF NOT EXISTS _crossfade_quarantine ( \
     id INTEGER PRIMARY KEY AUTOINCREMENT, migration TEXT NOT NULL, log_offset INTEGER NOT NULL, \
     ordinal INTEGER NOT NULL, tbl INTEGER NOT NULL, table_name TEXT NOT NULL, key BLOB, key_hash TEXT NOT NULL, \
     kind TEXT NOT NULL, refused INTEGER NOT NULL, reason TEXT NOT NULL, op TEXT NOT NULL, source_tbl INTEGER NOT NULL, \
     schema_version INTEGER NOT NULL, old BLOB, new BLOB, at TEXT NOT NULL, layout TEXT)",
    "CREATE TABLE IF NOT EXISTS _crossfade_undo ( \
     migration TEXT NOT NULL, table_name TEXT NOT NULL, key BLOB NOT NULL, before BLOB, wrote BLOB, columns TEXT, \
     PRIMARY KEY (migration, table_name, key)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS _crossfade_objects ( \
     migration TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, detail TEXT NOT NULL, \
     PRIMARY KEY (migration, kind, name)) WITHOUT ROWID",
];

/// Makes them.
pub(super) fn make(connection: &Connection) -> rusqlite::Result<()> {
    MAKE.iter().try_for_each(|statement| connection.execute_batch(statement))?;
    // A file of an earlier release.
    for (table, column) in [("_crossfade_quarantine", "layout"), ("_crossfade_undo", "columns")] {
        let known = connection
            .prepare_cached("SELECT 1 FROM pragma_table_info(?1) WHERE name = ?2")?
            .exists([table, column])?;
        if !known {
            connection.execute_batch(&format!("ALTER TABLE {table} ADD COLUMN {column} TEXT"))?;
        }
    }
    Ok(())
}

/// Whether they are there.
pub(super) fn are_there(connection: &Connection) -> rusqlite::Result<bool> {
    crate::client::exists(connection, "table", "_crossfade_positions")
}

/// The epoch on record.
pub(super) fn epoch(connection: &Connection, migration: &str) -> rusqlite::Result<Option<u64>> {
    connection
        .prepare_cached("SELECT epoch FROM _crossfade_positions WHERE migration = ?1")?
        .query_row([migration], |row| row.get::<_, i64>(0).map(|epoch| epoch as u64))
        .optional()
}

/// Raises the epoch on record, or puts it there first.
pub(super) fn set_epoch(connection: &Connection, migration: &str, epoch: u64) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO _crossfade_positions (migration, epoch) VALUES (?1, ?2)
             ON CONFLICT (migration) DO UPDATE SET epoch = excluded.epoch",
        )?
        .execute((migration, epoch as i64))
        .map(|_| ())
}

/// The progress on record.
pub(super) fn progress(connection: &Connection, migration: &str) -> rusqlite::Result<Option<Progress>> {
    let text: Option<Option<String>> = connection
        .prepare_cached("SELECT progress FROM _crossfade_positions WHERE migration = ?1")?
        .query_row([migration], |row| row.get(0))
        .optional()?;
    text.flatten()
        .map(|text| {
            serde_json::from_str(&text).map_err(|error| {
                rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, error.into())
            })
        })
        .transpose()
}

/// Records the progress, if the epoch on record is still ours. False when another one has taken over.
pub(super) fn set_progress(
    connection: &Connection,
    migration: &str,
    epoch: u64,
    progress: &Progress,
) -> rusqlite::Result<bool> {
    let text =
        serde_json::to_string(progress).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    let changed = connection
        .prepare_cached(
            "UPDATE _crossfade_positions SET progress = ?3, source_position = ?4,
             written_at = strftime('%Y-%m-%dT%H:%M:%fZ') WHERE migration = ?1 AND epoch = ?2",
        )?
        .execute((migration, epoch as i64, text, progress.position.map(|position| position.to_string())))?;
    Ok(changed == 1)
}

/// Notes an object that the migration made or writes to.
pub(super) fn note(
    connection: &Connection,
    migration: &str,
    kind: &str,
    name: &str,
    detail: &str,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO _crossfade_objects VALUES (?1, ?2, ?3, ?4)")?
        .execute((migration, kind, name, detail))
        .map(|_| ())
}

/// The name of the note of a kind that says this; it is made where there is none.
pub(super) fn note_once(
    connection: &Connection,
    migration: &str,
    kind: &str,
    of: &str,
    detail: &str,
) -> rusqlite::Result<String> {
    let known = connection
        .prepare_cached("SELECT name FROM _crossfade_objects WHERE migration = ?1 AND kind = ?2 AND detail = ?3")?
        .query_row((migration, kind, detail), |row| row.get(0))
        .optional()?;
    if let Some(known) = known {
        return Ok(known);
    }
    let count: i64 = connection
        .prepare_cached("SELECT count(*) FROM _crossfade_objects WHERE migration = ?1 AND kind = ?2")?
        .query_row((migration, kind), |row| row.get(0))?;
    let name = format!("{of} {}", count + 1);
    note(connection, migration, kind, &name, detail)?;
    Ok(name)
}

/// Takes such a note away.
pub(super) fn forget(connection: &Connection, migration: &str, kind: &str, name: &str) -> rusqlite::Result<()> {
    connection
        .prepare_cached("DELETE FROM _crossfade_objects WHERE migration = ?1 AND kind = ?2 AND name = ?3")?
        .execute((migration, kind, name))
        .map(|_| ())
}

/// The objects of a kind: name and detail.
pub(super) fn noted(connection: &Connection, migration: &str, kind: &str) -> rusqlite::Result<Vec<(String, String)>> {
    let mut statement = connection.prepare_cached(
        "SELECT name, detail FROM _crossfade_objects WHERE migration = ?1 AND kind = ?2 ORDER BY name",
    )?;
    statement.query_map((migration, kind), |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}
