//! What is on record in the file: its identity, how far the record reaches, and the layouts that tables had.

use super::Install;
use crate::{client::quoted, inspect::ddl, source::triggers::Names};
use crossfade_event::{SourceId, TableSchema};
use rusqlite::{Connection, OptionalExtension};
use std::sync::Arc;

/// A layout that begins at a place in the stream.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) since: i64,
    pub(crate) schema: Arc<TableSchema>,
}

impl Install {
    /// The file's identity, if it has one.
    pub(crate) fn identity(connection: &Connection) -> rusqlite::Result<Option<SourceId>> {
        if !crate::client::exists(connection, "table", Names::META)? {
            return Ok(None);
        }
        let text: Option<String> = connection
            .query_row("SELECT value FROM _crossfade_meta WHERE key = 'identity'", [], |row| row.get(0))
            .optional()?;
        Ok(text.map(|text| SourceId::of(&text)))
    }

    /// The lowest and the highest sequence number on record; `None` when the change table is missing or empty.
    pub(crate) fn span(&self, connection: &Connection) -> rusqlite::Result<Option<(i64, i64)>> {
        let changes = self.names.changes();
        if !crate::client::exists(connection, "table", &changes)? {
            return Ok(None);
        }
        let sql = format!("SELECT (SELECT min(seq) FROM {0}), (SELECT max(seq) FROM {0})", quoted(&changes));
        connection.query_row(&sql, [], |row| Ok(row.get::<_, Option<i64>>(0)?.zip(row.get::<_, Option<i64>>(1)?)))
    }

    /// Places at which a transaction must end, as they are on record.
    pub(crate) fn bounds_on_record(&self, connection: &Connection) -> rusqlite::Result<Vec<i64>> {
        let mut statement = connection.prepare(&format!("SELECT seq FROM {}", quoted(&self.names.bounds())))?;
        statement.query_map([], |row| row.get(0))?.collect()
    }

    /// Puts such a place on record.
    pub(crate) fn record_bound(&self, connection: &Connection, bound: i64) -> rusqlite::Result<()> {
        let sql = format!("INSERT OR IGNORE INTO {} VALUES (?1)", quoted(&self.names.bounds()));
        connection.execute(&sql, [bound]).map(|_| ())
    }

    /// Layouts that begin after a place, in order.
    pub(crate) fn layouts_after(&self, connection: &Connection, after: i64) -> rusqlite::Result<Vec<Layout>> {
        let sql =
            format!("SELECT since, layout FROM {} WHERE since > ?1 ORDER BY since, tbl", quoted(&self.names.layouts()));
        let mut statement = connection.prepare_cached(&sql)?;
        let rows = statement.query_map([after], |row| {
            let (since, text): (i64, String) = (row.get(0)?, row.get(1)?);
            let schema = serde_json::from_str(&text).map_err(|error| {
                rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, error.into())
            })?;
            Ok(Layout { since, schema: Arc::new(schema) })
        })?;
        rows.collect()
    }

    /// The latest layout of every table.
    pub(crate) fn layouts(&self, connection: &Connection) -> rusqlite::Result<Vec<Layout>> {
        let mut latest: Vec<Layout> = Vec::new();
        for layout in self.layouts_after(connection, -1)? {
            match latest.iter_mut().find(|known| known.schema.id == layout.schema.id) {
                Some(known) => *known = layout,
                None => latest.push(layout),
            }
        }
        Ok(latest)
    }

    /// What records the new rows of a table: which table it is on, and its text. `None` where it is missing.
    pub(super) fn recorder(&self, connection: &Connection, number: u32) -> rusqlite::Result<Option<(String, String)>> {
        connection
            .prepare_cached("SELECT tbl_name, sql FROM main.sqlite_schema WHERE type = 'trigger' AND name = ?1")?
            .query_row([self.names.trigger(number, "ai")], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()
    }

    /// The names that columns of a table have in the open snapshot, whatever they were called in `schema`; `None` where
    /// nothing records the table any more.
    ///
    /// A column is known by its place in the record: SQLite renames columns in triggers as well, so the trigger says
    /// which column goes there by now.
    pub(crate) fn names_now(
        &self,
        connection: &Connection,
        schema: &TableSchema,
    ) -> rusqlite::Result<Option<Vec<String>>> {
        let layouts = self.layouts(connection)?;
        let Some(layout) = layouts.into_iter().find(|layout| layout.schema.id == schema.id) else { return Ok(None) };
        let Some((_, sql)) = self.recorder(connection, schema.id.0)? else { return Ok(None) };
        let recorded = ddl::recorded_columns(&sql).unwrap_or_default();
        let place = |number: u32| layout.schema.columns.iter().position(|known| known.native_id == number);
        let names = schema.columns.iter().map(|column| recorded.get(place(column.native_id)?).cloned());
        Ok(names.collect())
    }
}
