//! Taking back what the migration wrote. Each step is a transaction of its own that leaves less to do, so both can be
//! killed and run again.

use super::{
    own,
    table::Table,
    undo::{self, Record},
    writer::Writer,
};
use crate::{
    client::{failure, is_rejection, list, of_table, quoted},
    codec::{Bound, bound_key, tagged},
};
use bytes::Bytes;
use crossfade_connector::{Failure, Target, UndoReport};
use crossfade_event::{Cell, Key, Row, TableName};
use rusqlite::Connection;

/// Records put back in one transaction.
const RECORDS: u32 = 1000;

impl Writer {
    /// Puts back what was overwritten or deleted in tables that the migration did not make.
    pub(super) fn undo(&mut self, target: &Target) -> Result<UndoReport, Failure> {
        let mut report = UndoReport::default();
        self.open_for_rollback()?;
        for wanted in target.tables.iter().rev() {
            let table = Table::new(wanted.clone(), false);
            let known = own::noted(self.connection()?, &self.migration, "existing")
                .map_err(|error| failure("reading what was written", error))?;
            if !known.iter().any(|(name, _)| name.eq_ignore_ascii_case(table.name())) {
                continue;
            }
            let mut after = Vec::new();
            loop {
                let more = self
                    .in_transaction("putting rows back", |writer| writer.undo_some(&table, &mut after, &mut report))?;
                if !more {
                    break;
                }
            }
        }
        Ok(report)
    }

    fn open_for_rollback(&mut self) -> Result<(), Failure> {
        self.abandon();
        let path = crate::client::shown(&self.config.path);
        let doing = || format!("taking back what was written to {path}");
        let connection = self
            .look()?
            .ok_or_else(|| Failure::misconfigured(doing(), "there is no such file", "check `path` of the sink"))?;
        own::make(connection).map_err(|error| failure(doing(), error))
    }

    fn undo_some(&self, table: &Table, after: &mut Vec<u8>, report: &mut UndoReport) -> Result<bool, Failure> {
        let connection = self.connection()?;
        let doing = || format!("putting back rows of {}", table.name());
        let records = undo::records(connection, &self.migration, table.name(), RECORDS, after)
            .map_err(|error| failure(doing(), error))?;
        let columns = undo::all_columns(connection, table.name()).map_err(|error| failure(doing(), error))?;
        for record in &records {
            after.clone_from(&record.key);
            let key = parsed(&record.key, table)?;
            match restore(connection, table, &columns, &Key::from(key), record)
                .map_err(|error| failure(doing(), error))?
            {
                Restored::Back => report.restored += 1,
                Restored::Removed => report.removed += 1,
                Restored::Same => {}
                Restored::LeftAlone(hash) => {
                    // Left alone for good: somebody else's change is not ours to judge a second time.
                    report.left_alone.push((TableName::new("main", table.name()), hash));
                    continue;
                }
            }
            undo::forget(connection, &self.migration, table.name(), &record.key)
                .map_err(|error| failure(doing(), error))?;
        }
        Ok(!records.is_empty())
    }

    /// Drops what the migration made: tables, indexes, and its own records.
    pub(super) fn wipe(&mut self, target: &Target) -> Result<UndoReport, Failure> {
        let mut report = UndoReport::default();
        self.abandon();
        if self.look()?.is_none() {
            return Ok(report);
        }
        self.open_for_rollback()?;
        let _ = target;
        let made = own::noted(self.connection()?, &self.migration, "table")
            .map_err(|error| failure("reading what was made", error))?;
        for (name, _) in made {
            self.in_transaction(&format!("dropping {name}"), |writer| {
                let connection = writer.connection()?;
                connection
                    .execute_batch(&format!("DROP TABLE IF EXISTS {}", quoted(&name)))
                    .and_then(|()| own::forget(connection, &writer.migration, "table", &name))
                    .map_err(|error| failure(format!("dropping {name}"), error))
            })?;
            report.dropped.push(name);
        }
        self.in_transaction("dropping the sink's own records", |writer| {
            drop_own(writer.connection()?, &writer.migration)
                .map_err(|error| failure("dropping the sink's own records", error))
        })
        .or_else(|error| {
            if self.connection.is_some() && own_is_gone(self.connection.as_ref()) { Ok(()) } else { Err(error) }
        })?;
        self.tables.clear();
        self.order.clear();
        Ok(report)
    }
}

fn own_is_gone(connection: Option<&Connection>) -> bool {
    connection.is_some_and(|connection| own::are_there(connection).is_ok_and(|there| !there))
}

/// Removes this migration's rows from our tables, and the tables once no migration has any.
pub(super) fn drop_own(connection: &Connection, migration: &str) -> rusqlite::Result<()> {
    for table in own::TABLES {
        connection.execute(&format!("DELETE FROM {table} WHERE migration = ?1"), [migration])?;
    }
    let left: bool =
        connection.query_row("SELECT EXISTS (SELECT 1 FROM _crossfade_positions)", [], |row| row.get(0))?;
    if !left {
        for table in own::TABLES {
            connection.execute_batch(&format!("DROP TABLE {table}"))?;
        }
    }
    Ok(())
}

fn parsed(bytes: &[u8], table: &Table) -> Result<Row, Failure> {
    Row::parse(Bytes::copy_from_slice(bytes)).map_err(|error| {
        Failure::halt(
            format!("reading undo records of {}", table.name()),
            error,
            "the record is damaged; restore the target from a backup",
        )
    })
}

enum Restored {
    Back,
    Removed,
    /// Nothing of ours was there.
    Same,
    LeftAlone(String),
}

fn restore(
    connection: &Connection,
    table: &Table,
    columns: &[(String, bool)],
    key: &Key,
    record: &Record,
) -> rusqlite::Result<Restored> {
    let unusable = |error: crate::codec::CellError| rusqlite::Error::ToSqlConversionFailure(error.into());
    let key_values = || bound_key(&table.schema, key).map_err(unusable);
    let written = undo::written_columns(table);
    let sql = format!("SELECT {written} FROM {} WHERE {}", quoted(table.name()), undo::key_condition(table));
    let now = undo::image(connection, &sql, key_values()?)?;
    if now != record.wrote {
        let untouched = now.is_none() && record.before.is_none();
        return Ok(if untouched { Restored::Same } else { Restored::LeftAlone(format!("{:016x}", key.hash64())) });
    }
    let before = match &record.before {
        Some(before) => Some(
            Row::parse(Bytes::copy_from_slice(before))
                .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?,
        ),
        None => None,
    };
    let saved = before.as_ref().map(|before| saved(columns, record, before));
    let outcome = match (saved, &now) {
        (None, None) => return Ok(Restored::Same),
        (None, Some(_)) => {
            let sql = format!("DELETE FROM {} WHERE {}", quoted(table.name()), undo::key_condition(table));
            super::apply::run(connection, &sql, key_values()?).map(|_| Restored::Removed)
        }
        (Some((saved, _)), Some(_)) => update_back(connection, table, saved, key_values()?).map(|()| Restored::Back),
        // Its owner has dropped a column since in which the row had something.
        (Some((_, false)), None) => return Ok(Restored::LeftAlone(format!("{:016x}", key.hash64()))),
        (Some((saved, true)), None) => insert_back(connection, table, saved).map(|()| Restored::Back),
    };
    match outcome {
        // A row that somebody else wrote since stands in its way.
        Err(error) if is_rejection(&error) => Ok(Restored::LeftAlone(format!("{:016x}", key.hash64()))),
        outcome => outcome,
    }
}

/// A saved row: the columns that can be written with their values, and whether all that had one are still there.
fn saved<'a>(columns: &'a [(String, bool)], record: &'a Record, before: &'a Row) -> (Vec<(&'a str, Bound<'a>)>, bool) {
    let present: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
    let names = record.columns.as_ref().map_or(present, |names| names.iter().map(String::as_str).collect());
    let mut found = Vec::with_capacity(names.len());
    let mut whole = before.len() <= names.len();
    for (name, cell) in names.iter().zip(before.cells()) {
        let value = match cell {
            Cell::Bytes(bytes) => tagged(bytes).map_or(Bound::NULL, Bound::Ref),
            _ => Bound::NULL,
        };
        match columns.iter().find(|(have, _)| have.eq_ignore_ascii_case(name)) {
            Some((_, true)) => {}
            Some((have, false)) => found.push((have.as_str(), value)),
            None => whole &= value == Bound::NULL,
        }
    }
    (found, whole)
}

fn update_back(
    connection: &Connection,
    table: &Table,
    saved: Vec<(&str, Bound<'_>)>,
    key: Vec<Bound<'_>>,
) -> rusqlite::Result<()> {
    let written: Vec<&str> = table
        .written()
        .into_iter()
        .filter_map(|index| table.schema.columns.get(index))
        .map(|column| &*column.name)
        .collect();
    let values: Vec<(&str, Bound<'_>)> =
        saved.into_iter().filter(|(name, _)| written.iter().any(|w| w.eq_ignore_ascii_case(name))).collect();
    let count = values.len();
    let set: Vec<String> =
        values.iter().enumerate().map(|(n, (name, _))| format!("{} = ?{}", quoted(name), n + 1)).collect();
    let keys: Vec<String> = table
        .key
        .iter()
        .filter_map(|index| table.schema.columns.get(*index))
        .enumerate()
        .map(|(n, column)| format!("{} = ?{}", of_table(table.name(), &column.name), count + n + 1))
        .collect();
    let sql = format!("UPDATE {} SET {} WHERE {}", quoted(table.name()), set.join(", "), keys.join(" AND "));
    super::apply::run(connection, &sql, values.into_iter().map(|(_, value)| value).chain(key)).map(|_| ())
}

fn insert_back(connection: &Connection, table: &Table, values: Vec<(&str, Bound<'_>)>) -> rusqlite::Result<()> {
    let marks: Vec<String> = (1..=values.len()).map(|n| format!("?{n}")).collect();
    let names = list(values.iter().map(|(name, _)| name));
    let sql = format!("INSERT INTO {} ({names}) VALUES ({})", quoted(table.name()), marks.join(", "));
    super::apply::run(connection, &sql, values.into_iter().map(|(_, value)| value)).map(|_| ())
}
