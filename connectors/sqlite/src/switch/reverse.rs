//! What the way back needs, made on the new side before the point of no return: triggers that record what is written to the new
//! tables, so that no write is missed. Reading that record is somebody else's work.

use super::{SwitchEnd, authority::alone};
use crate::{
    OldRows,
    client::{exists, failure},
    inspect::shape::TableShape,
    source::install::{Install, obstacle},
};
use crossfade_connector::{
    Failure,
    switch::{Born, Reverse},
};
use crossfade_event::TableName;
use rusqlite::params;

/// The pairs of old and new keys, on the old side.
pub(crate) const KEYS: &str = "_crossfade_reverse_keys";
/// Of which migrations the mapping has been brought over whole.
pub(crate) const MAPPING: &str = "_crossfade_reverse_mapping";

/// The migration that a way back is.
pub(super) fn name_of(migration: &str) -> String {
    format!("{migration}-reverse")
}

impl SwitchEnd {
    /// Makes the triggers and the table that they write to. What an earlier try left is replaced.
    ///
    /// # Errors
    /// `Refused` where a table cannot be recorded.
    pub async fn prepare_reverse(&mut self, tables: &[TableName], old_rows: OldRows) -> Result<(), Failure> {
        let tables = tables.to_vec();
        self.with(move |connection, asked| {
            let doing = |table: &TableName| format!("preparing to record {table}");
            let mut shapes = Vec::with_capacity(tables.len());
            for table in &tables {
                let read = TableShape::read(connection, &table.name).map_err(|error| failure(doing(table), error))?;
                let shape = read.ok_or_else(|| {
                    Failure::refused(doing(table), "it is not there any more", "put it back, or begin anew")
                })?;
                let found = obstacle(connection, &shape).map_err(|error| failure(doing(table), error))?;
                if let Some((problem, remedy)) = found {
                    return Err(Failure::refused(doing(table), problem, remedy));
                }
                shapes.push(shape);
            }
            Install::new(&name_of(&asked.migration), old_rows).begin(connection, shapes, 1).map(drop)
        })
        .await
    }

    /// Where the record stands now: what the sink has written is before it. Nobody else writes.
    ///
    /// # Errors
    /// When the record has gone.
    pub async fn reverse_from_here(&mut self) -> Result<Reverse, Failure> {
        self.with(|connection, asked| {
            let name = name_of(&asked.migration);
            let install = Install::new(&name, OldRows::Key);
            let from =
                alone(connection, "beginning the record of the new side", |transaction| install.anchor(transaction))?;
            Ok(Reverse { name: install.names.changes(), from: from as u64 })
        })
        .await
    }

    /// Takes the record and its triggers away: nothing will be read from it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn drop_reverse(&mut self) -> Result<(), Failure> {
        if !self.config.path.is_file() {
            return Ok(());
        }
        self.with(|connection, asked| {
            let install = Install::new(&name_of(&asked.migration), OldRows::Key);
            let there = exists(connection, "table", &install.names.changes());
            match there.map_err(|error| failure("looking for the record of the new side", error))? {
                true => install.uninstall(connection),
                false => Ok(()),
            }
        })
        .await
    }

    /// Whether this side keeps pairs of old and new keys of the migration's way back: asked of the old side.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn has_pairs(&mut self) -> Result<bool, Failure> {
        if !self.config.path.is_file() {
            return Ok(false);
        }
        self.with(|connection, asked| {
            let read = || -> rusqlite::Result<bool> {
                let sql = format!("SELECT EXISTS (SELECT 1 FROM {KEYS} WHERE migration = ?1)");
                Ok(exists(connection, "table", KEYS)?
                    && connection.query_row(&sql, [&asked.migration], |row| row.get(0))?)
            };
            read().map_err(|error| failure("looking for keys of an earlier way back", error))
        })
        .await
    }

    /// Some of the pairs of rows that were born on the new side, in the order of table and old key: asked of the old side. None
    /// where nothing was born.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn born(&mut self, after: Option<&Born>, limit: u32) -> Result<Vec<Born>, Failure> {
        let after = after.cloned();
        self.with(move |connection, asked| {
            let read = || -> rusqlite::Result<Vec<Born>> {
                if !exists(connection, "table", KEYS)? {
                    return Ok(Vec::new());
                }
                let (table, old) = after.as_ref().map(|born| (born.table.as_str(), born.old)).unzip();
                let sql = format!(
                    "SELECT table_name, old_id, new_id FROM {KEYS} WHERE migration = ?1 AND born \
                     AND (?2 IS NULL OR (table_name, old_id) > (?2, ?3)) ORDER BY table_name, old_id LIMIT ?4"
                );
                let mut statement = connection.prepare(&sql)?;
                let rows = statement.query_map(params![asked.migration, table, old, limit], |row| {
                    Ok(Born { table: row.get(0)?, old: row.get(1)?, new: row.get(2)? })
                })?;
                rows.collect()
            };
            read().map_err(|error| failure("reading the keys of rows that were born on the new side", error))
        })
        .await
    }
}
