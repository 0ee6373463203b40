//! What comes after a load: indexes, references, counters.

use super::{own, table, table::Table, writer::Writer};
use crate::{
    client::{exists, failure, is_rejection, literal},
    codec::{bound_key, push_read},
    inspect::ddl,
};
use crossfade_connector::{Failure, Progress, Stage};
use crossfade_event::{Cut, Key, Row, RowBuilder, TableId};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// What is noted of work that waits for the stream.
const PENDING: &str = "pending";
/// How long an index that cannot be made yet is left alone.
const PENDING_PAUSE: Duration = Duration::from_secs(1);
const PENDING_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Work that waits for the stream to pass a place in the log.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Waits {
    /// The statement; empty for the check of references.
    sql: String,
    table: String,
    /// `None` waits for nothing.
    after: Option<Cut>,
}

impl Writer {
    /// Makes the indexes that were held back, checks the references and sets the counters. Repeating it changes nothing.
    ///
    /// Rows of a backfill were read at different moments, so two of them can share a value that is unique at every
    /// single moment, until the stream has passed the place where the backfill ended. Unique indexes and the check of
    /// references wait for that place ([`Writer::make_pending`]).
    pub(super) fn finish_load(&mut self) -> Result<(), Failure> {
        let progress = self.progress()?;
        let after = progress.filter(|progress| progress.stage == Stage::Loading).map(|progress| progress.cut);
        let tables: Vec<Table> = self.order.iter().filter_map(|id| self.tables.get(id)).cloned().collect();
        for table in tables.iter().filter(|table| table.ours) {
            let doing = format!("making the indexes of {}", table.name());
            self.in_transaction(&doing, |writer| writer.make_indexes(table, after.as_ref()))?;
        }
        self.in_transaction("setting the counters", Self::set_counters)?;
        self.load_pending()?;
        if after.is_none() {
            self.make_pending(None)?;
        }
        Ok(())
    }

    fn make_indexes(&mut self, table: &Table, after: Option<&Cut>) -> Result<(), Failure> {
        let dialect = self.support.dialect;
        let connection = self.connection()?;
        let doing = || format!("making the indexes of {}", table.name());
        for index in table::indexes(&table.target, dialect) {
            let waiting = |(name, waits): &(String, String)| {
                name.eq_ignore_ascii_case(&index.name)
                    && serde_json::from_str::<Waits>(waits).is_ok_and(|waits| waits.table != table.name())
            };
            let taken = own::noted(connection, &self.migration, PENDING)
                .map(|pending| pending.iter().any(waiting))
                .and_then(|waits| Ok(waits || taken_elsewhere(connection, &index.name, table.name())?))
                .map_err(|error| failure(doing(), error))?;
            let name = if taken { index.other_name(table.name()) } else { index.name.clone() };
            let sql = index.sql(&name, table.name());
            if index.unique {
                let there = exists(connection, "index", &name).map_err(|error| failure(doing(), error))?;
                if !there {
                    let waits = Waits { sql, table: table.name().to_owned(), after: after.cloned() };
                    note_pending(connection, &self.migration, &name, &waits)
                        .map_err(|error| failure(doing(), error))?;
                }
                continue;
            }
            connection
                .execute_batch(&sql)
                .and_then(|()| own::note(connection, &self.migration, "index", &name, table.name()))
                .map_err(|error| failure(doing(), error))?;
        }
        if !table.target.def.foreign_keys.is_empty() {
            let waits = Waits { sql: String::new(), table: table.name().to_owned(), after: after.cloned() };
            let name = format!("references of {}", table.name());
            note_pending(connection, &self.migration, &name, &waits).map_err(|error| failure(doing(), error))?;
        }
        Ok(())
    }

    /// Reads what waits for the stream.
    pub(super) fn load_pending(&mut self) -> Result<(), Failure> {
        let doing = |error| failure("reading which indexes are still to be made", error);
        self.pending = own::noted(self.connection()?, &self.migration, PENDING)
            .map_err(doing)?
            .into_iter()
            .filter_map(|(name, detail)| Some((name, serde_json::from_str(&detail).ok()?)))
            .collect();
        self.pending_at = Instant::now();
        self.pending_pause = PENDING_PAUSE;
        Ok(())
    }

    /// What waits for a table's columns follows them: under their new names, and no more where one of them is gone.
    pub(super) fn pending_follows(
        &mut self,
        table: &str,
        dropped: &[&str],
        renamed: &[(&str, &str)],
    ) -> Result<(), Failure> {
        let doing = |error| failure("following a change of the schema", error);
        let connection = self.connection()?;
        for (name, detail) in own::noted(connection, &self.migration, PENDING).map_err(doing)? {
            let Ok(mut waits) = serde_json::from_str::<Waits>(&detail) else { continue };
            if waits.table != table || waits.sql.is_empty() {
                continue;
            }
            if dropped.iter().any(|column| ddl::names_column(&waits.sql, column)) {
                own::forget(connection, &self.migration, PENDING, &name).map_err(doing)?;
            } else {
                waits.sql = ddl::with_columns_renamed(&waits.sql, renamed);
                note_pending(connection, &self.migration, &name, &waits).map_err(doing)?;
            }
        }
        self.load_pending()
    }

    /// Makes what waited, as far as the stream has come (`None`: all of it). What cannot be made yet, for values are
    /// still doubled, is tried again later and seldom: it costs a pass over the table.
    pub(super) fn make_pending(&mut self, progress: Option<&Progress>) -> Result<(), Failure> {
        if self.pending.is_empty() || Instant::now() < self.pending_at {
            return Ok(());
        }
        for (name, waits) in self.pending.clone() {
            let reached = match (progress, &waits.after) {
                (None, _) | (_, None) => true,
                (Some(progress), Some(after)) => progress.stage == Stage::Streaming && progress.cut.covers(after),
            };
            if !reached {
                continue;
            }
            match self.in_transaction("making an index", |writer| writer.make_one(&name, &waits)) {
                Ok(true) => {
                    self.pending.retain(|(pending, _)| *pending != name);
                    continue;
                }
                Ok(false) => {
                    tracing::warn!(
                        index = name,
                        table = waits.table,
                        "values that must be unique are not; the index is tried again later"
                    );
                }
                Err(failure) if failure.is_transient() => tracing::debug!(index = name, "the index waits for a lock"),
                Err(failure) => return Err(failure),
            }
            self.pending_at = Instant::now() + self.pending_pause;
            self.pending_pause = (self.pending_pause * 2).min(PENDING_PAUSE_MAX);
        }
        Ok(())
    }

    fn make_one(&mut self, name: &str, waits: &Waits) -> Result<bool, Failure> {
        let doing = |error| failure(format!("making {name}"), error);
        let connection = self.connection()?;
        if waits.sql.is_empty() {
            let dangling = dangling(connection, &waits.table).map_err(doing)?;
            if dangling > 0 {
                tracing::warn!(table = waits.table, rows = dangling, "rows refer to rows that are not there");
            }
        } else {
            match connection.execute_batch(&waits.sql) {
                Ok(()) => own::note(connection, &self.migration, "index", name, &waits.table).map_err(doing)?,
                Err(error) if is_rejection(&error) => return Ok(false),
                Err(error) => return Err(doing(error)),
            }
        }
        own::forget(connection, &self.migration, PENDING, name).map_err(doing)?;
        Ok(true)
    }

    fn set_counters(&mut self) -> Result<(), Failure> {
        let connection = self.connection()?;
        let doing = |error| failure("setting the counters", error);
        if !exists(connection, "table", "sqlite_sequence").map_err(doing)? {
            return Ok(());
        }
        for table in self.tables.values().filter(|table| table.ours) {
            for statement in table::counters(&table.target, &self.support) {
                connection.execute_batch(&statement).map_err(doing)?;
            }
        }
        Ok(())
    }

    /// The row that the target holds under a key.
    pub(super) fn read_row(&mut self, id: TableId, key: &Key) -> Result<Option<Row>, Failure> {
        let table = self.table(id)?;
        let doing = || format!("reading a row of {}", table.name());
        let halt = |error| Failure::halt(doing(), error, "the row in the target is not what was written there");
        let values = bound_key(&table.schema, key).map_err(halt)?;
        let connection = self.connection()?;
        let mut statement = connection.prepare_cached(&table.sql.select).map_err(|error| failure(doing(), error))?;
        for (index, value) in values.into_iter().enumerate() {
            statement.raw_bind_parameter(index + 1, value).map_err(|error| failure(doing(), error))?;
        }
        let mut rows = statement.raw_query();
        let Some(row) = rows.next().map_err(|error| failure(doing(), error))? else { return Ok(None) };
        let mut built = RowBuilder::with_capacity(table.schema.columns.len(), 128);
        for (index, column) in table.schema.columns.iter().enumerate() {
            let value = row.get_ref(index).map_err(|error| failure(doing(), error))?;
            push_read(&mut built, &column.type_, value).map_err(halt)?;
        }
        Ok(Some(built.finish()))
    }
}

fn note_pending(connection: &Connection, migration: &str, name: &str, waits: &Waits) -> rusqlite::Result<()> {
    let detail = serde_json::to_string(waits).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    own::note(connection, migration, PENDING, name, &detail)
}

/// How many rows refer to rows that are not there.
fn dangling(connection: &Connection, table: &str) -> rusqlite::Result<u64> {
    let sql = format!("SELECT count(*) FROM pragma_foreign_key_check({})", literal(table));
    match connection.query_row(&sql, [], |row| row.get::<_, i64>(0)) {
        Ok(count) => Ok(count as u64),
        // References to a table without the unique index that they need cannot be checked; SQLite says so on use.
        Err(error) if error.to_string().contains("foreign key mismatch") => Ok(0),
        Err(error) => Err(error),
    }
}

/// Whether an index of this name belongs to another table: in SQLite all indexes of a file share their names.
fn taken_elsewhere(connection: &Connection, name: &str, table: &str) -> rusqlite::Result<bool> {
    connection
        .prepare_cached(
            "SELECT 1 FROM main.sqlite_schema WHERE name = ?1 COLLATE NOCASE AND tbl_name <> ?2 COLLATE NOCASE",
        )?
        .exists((name, table))
}
