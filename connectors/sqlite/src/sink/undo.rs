//! Undo records: what a row was before we first wrote it, in a table that somebody else made.
//!
//! The first write of a key saves the whole row as it was (or that there was none); every write notes what the
//! columns we write have been left as. So undo puts back exactly what we changed, and sees where somebody else has
//! changed it since. Both are in the same transaction as the write itself.

use super::{apply::Fault, own, table::Table};
use crate::{
    client::{failure, of_table, quoted},
    codec::{Bound, bound_key, put_cell},
};
use crossfade_connector::Failure;
use crossfade_event::Key;
use rusqlite::Connection;

/// The kind of the notes that say which columns a saved row has.
const COLUMNS: &str = "columns";

/// Saves what is about to be overwritten, where that is somebody else's.
pub(super) struct Keep<'a> {
    connection: &'a Connection,
    migration: &'a str,
    table: &'a Table,
}

impl<'a> Keep<'a> {
    pub(super) fn new(connection: &'a Connection, migration: &'a str, table: &'a Table) -> Self {
        Self { connection, migration, table }
    }

    /// Does `write`, which concerns this key.
    pub(super) fn around(
        &self,
        key: &Key,
        write: impl FnOnce(&Connection) -> rusqlite::Result<usize>,
    ) -> Result<(), Fault> {
        self.around_both(key, key, write)
    }

    /// Does `write`, which takes a row from one key to another.
    pub(super) fn around_both(
        &self,
        from: &Key,
        to: &Key,
        write: impl FnOnce(&Connection) -> rusqlite::Result<usize>,
    ) -> Result<(), Fault> {
        let doing = "writing a change";
        if self.table.ours {
            return write(self.connection).map(|_| ()).map_err(|error| Fault::of(error, doing));
        }
        let keys = if from == to { vec![from] } else { vec![from, to] };
        for key in &keys {
            self.save(key)?;
        }
        let written = write(self.connection).map_err(|error| Fault::of(error, doing))?;
        for key in &keys {
            self.note(key, written > 0)?;
        }
        Ok(())
    }

    fn save(&self, key: &Key) -> Result<(), Fault> {
        let stop = |error| Fault::Stop(failure("saving what is about to be overwritten", error));
        let known = self
            .connection
            .prepare_cached("SELECT 1 FROM _crossfade_undo WHERE migration = ?1 AND table_name = ?2 AND key = ?3")
            .and_then(|mut statement| statement.exists((self.migration, self.table.name(), key.as_bytes().as_ref())))
            .map_err(stop)?;
        if known {
            return Ok(());
        }
        let before = self.read("*", key)?;
        let columns = match before {
            Some(_) => Some(self.columns().map_err(stop)?),
            None => None,
        };
        self.connection
            .prepare_cached(
                "INSERT INTO _crossfade_undo (migration, table_name, key, before, wrote, columns)
                 VALUES (?1, ?2, ?3, ?4, NULL, ?5)",
            )
            .and_then(|mut statement| {
                statement.execute((self.migration, self.table.name(), key.as_bytes().as_ref(), before, columns))
            })
            .map(|_| ())
            .map_err(stop)
    }

    /// The note of the columns that the table has now: its owner may change them before the row is put back.
    fn columns(&self) -> rusqlite::Result<String> {
        let columns = all_columns(self.connection, self.table.name())?;
        let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
        let text =
            serde_json::to_string(&names).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
        own::note_once(self.connection, self.migration, COLUMNS, self.table.name(), &text)
    }

    fn note(&self, key: &Key, written: bool) -> Result<(), Fault> {
        let stop = |error| Fault::Stop(failure("noting what was written", error));
        let values = (self.migration, self.table.name(), key.as_bytes().as_ref());
        if !written {
            // Nothing of ours is there (a row that we only would have updated, or deleted): forget an unused record.
            return self
                .connection
                .prepare_cached(
                    "DELETE FROM _crossfade_undo WHERE migration = ?1 AND table_name = ?2 AND key = ?3
                     AND wrote IS NULL AND before IS NULL",
                )
                .and_then(|mut statement| statement.execute(values))
                .map(|_| ())
                .map_err(stop);
        }
        let wrote = self.read(&written_columns(self.table), key)?;
        self.connection
            .prepare_cached(
                "UPDATE _crossfade_undo SET wrote = ?4 WHERE migration = ?1 AND table_name = ?2 AND key = ?3",
            )
            .and_then(|mut statement| statement.execute((values.0, values.1, values.2, wrote)))
            .map(|_| ())
            .map_err(stop)
    }

    fn read(&self, columns: &str, key: &Key) -> Result<Option<Vec<u8>>, Fault> {
        let sql = format!("SELECT {columns} FROM {} WHERE {}", quoted(self.table.name()), key_condition(self.table));
        let values = bound_key(&self.table.schema, key)?;
        image(self.connection, &sql, values)
            .map_err(|error| Fault::of(error, "reading what is about to be overwritten"))
    }
}

pub(super) fn written_columns(table: &Table) -> String {
    let columns = table.written().into_iter().filter_map(|index| table.schema.columns.get(index));
    columns.map(|column| of_table(table.name(), &column.name)).collect::<Vec<_>>().join(", ")
}

pub(super) fn key_condition(table: &Table) -> String {
    let columns = table.key.iter().filter_map(|index| table.schema.columns.get(*index)).enumerate();
    columns
        .map(|(n, column)| format!("{} = ?{}", of_table(table.name(), &column.name), n + 1))
        .collect::<Vec<_>>()
        .join(" AND ")
}

/// The one row that a statement finds, as bytes in the layout of [`crossfade_event::Row`].
pub(super) fn image<'a>(
    connection: &Connection,
    sql: &str,
    values: impl IntoIterator<Item = Bound<'a>>,
) -> rusqlite::Result<Option<Vec<u8>>> {
    let mut statement = connection.prepare_cached(sql)?;
    for (index, value) in values.into_iter().enumerate() {
        statement.raw_bind_parameter(index + 1, value)?;
    }
    let count = statement.column_count();
    let mut rows = statement.raw_query();
    let Some(row) = rows.next()? else { return Ok(None) };
    let mut out = Vec::with_capacity(64);
    out.extend_from_slice(&(count as u16).to_be_bytes());
    for index in 0..count {
        put_cell(&mut out, row.get_ref(index)?);
    }
    Ok(Some(out))
}

/// Empties a table that somebody else made: row by row, each saved first.
pub(super) fn truncate(connection: &Connection, migration: &str, table: &Table) -> Result<(), Failure> {
    let doing = format!("emptying {}", table.name());
    let keep = Keep::new(connection, migration, table);
    let key = table.key.iter().filter_map(|index| table.schema.columns.get(*index));
    let names = key.map(|column| of_table(table.name(), &column.name)).collect::<Vec<_>>().join(", ");
    let sql = format!("SELECT {names} FROM {} LIMIT 1000", quoted(table.name()));
    loop {
        let keys = keys(connection, table, &sql).map_err(|error| failure(&doing, error))?;
        if keys.is_empty() {
            return Ok(());
        }
        for key in keys {
            super::change::delete(&keep, table, &key).map_err(|fault| match fault {
                Fault::Stop(failure) => failure,
                Fault::Row { reason, .. } => {
                    Failure::halt(&doing, reason, "delete that row by hand, or leave the table out")
                }
            })?;
        }
    }
}

fn keys(connection: &Connection, table: &Table, sql: &str) -> rusqlite::Result<Vec<Key>> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let mut builder = crossfade_event::RowBuilder::with_capacity(table.key.len(), 32);
        for (place, index) in table.key.iter().enumerate() {
            if let Some(column) = table.schema.columns.get(*index) {
                crate::codec::push_read(&mut builder, &column.type_, row.get_ref(place)?)
                    .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
            }
        }
        found.push(Key::from(builder.finish()));
    }
    Ok(found)
}

/// One undo record.
pub(super) struct Record {
    pub(super) key: Vec<u8>,
    pub(super) before: Option<Vec<u8>>,
    pub(super) wrote: Option<Vec<u8>>,
    /// The names of the columns in `before`; `None` in records of an earlier release, which has the present ones.
    pub(super) columns: Option<Vec<String>>,
}

/// Some records of a table.
pub(super) fn records(
    connection: &Connection,
    migration: &str,
    table: &str,
    limit: u32,
    after: &[u8],
) -> rusqlite::Result<Vec<Record>> {
    let mut statement = connection.prepare_cached(
        "SELECT u.key, u.before, u.wrote, o.detail FROM _crossfade_undo u
         LEFT JOIN _crossfade_objects o ON o.migration = u.migration AND o.kind = ?5 AND o.name = u.columns
         WHERE u.migration = ?1 AND u.table_name = ?2 AND u.key > ?3 ORDER BY u.key LIMIT ?4",
    )?;
    let names = |text: String| {
        serde_json::from_str(&text)
            .map_err(|error| rusqlite::Error::FromSqlConversionFailure(3, rusqlite::types::Type::Text, error.into()))
    };
    statement
        .query_map((migration, table, after, limit, COLUMNS), |row| {
            let columns = row.get::<_, Option<String>>(3)?.map(names).transpose()?;
            Ok(Record { key: row.get(0)?, before: row.get(1)?, wrote: row.get(2)?, columns })
        })?
        .collect()
}

/// The columns of a table as `SELECT *` names them.
pub(super) fn all_columns(connection: &Connection, table: &str) -> rusqlite::Result<Vec<(String, bool)>> {
    let mut statement =
        connection.prepare("SELECT name, hidden >= 2 FROM pragma_table_xinfo(?1) WHERE hidden <> 1 ORDER BY cid")?;
    statement.query_map([table], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// Takes a record away.
pub(super) fn forget(connection: &Connection, migration: &str, table: &str, key: &[u8]) -> rusqlite::Result<()> {
    connection
        .prepare_cached("DELETE FROM _crossfade_undo WHERE migration = ?1 AND table_name = ?2 AND key = ?3")?
        .execute((migration, table, key))
        .map(|_| ())
}
