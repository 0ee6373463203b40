//! One write after the other, in source order, inside the open transaction.
//!
//! A row that SQLite refuses costs the transaction nothing: the statement undoes itself, the change goes to
//! quarantine, and later changes of its key wait behind it. One refusal is not final at once: where a unique value is
//! still taken by another row, a later change of the same source transaction may free it (two rows swap their
//! values), so such a change is tried again at the transaction's end, and then with all rows in question out of the
//! way.

use super::{
    change::{delete, insert_once, write_columns, write_insert_only, write_keyed, write_whole},
    quarantine::Refused,
    table::Table,
    undo,
    writer::Writer,
};
use crate::{
    client::{failure, is_rejection},
    codec::{Bound, CellError, bound},
};
use crossfade_connector::{Applied, Failure, Rejection, Write, WriteMode};
use crossfade_event::{Cell, Change, Identity, Key, Op, Row, Rows, Sequence, TableId, Version};
use rusqlite::{Connection, ErrorCode};
use std::collections::HashSet;

/// Why a write did not happen.
#[derive(Debug)]
pub(super) enum Fault {
    /// The row's own fault. `unique`: another row has a value that must be unique.
    Row { reason: String, unique: bool },
    /// Anything else: the transaction cannot go on.
    Stop(Failure),
}

impl From<CellError> for Fault {
    fn from(error: CellError) -> Self {
        Self::Row { reason: error.to_string(), unique: false }
    }
}

impl Fault {
    pub(super) fn of(error: rusqlite::Error, doing: &str) -> Self {
        if !is_rejection(&error) {
            return Self::Stop(failure(doing, error));
        }
        Self::Row { reason: error.to_string(), unique: is_unique(&error) }
    }
}

/// Whether another row has a value that must be unique.
fn is_unique(error: &rusqlite::Error) -> bool {
    const UNIQUE: i32 = 2067;
    const PRIMARY: i32 = 1555;
    const ROWID: i32 = 2579;
    error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation)
        && matches!(error.sqlite_extended_error_code(), Some(UNIQUE | PRIMARY | ROWID))
}

/// The change among those that wait which cannot be written, and why.
struct Blamed {
    place: usize,
    reason: String,
    unique: bool,
}

/// Runs a statement with these values.
pub(super) fn run<'a>(
    connection: &Connection,
    sql: &str,
    values: impl IntoIterator<Item = Bound<'a>>,
) -> rusqlite::Result<usize> {
    let mut statement = connection.prepare_cached(sql)?;
    for (index, value) in values.into_iter().enumerate() {
        statement.raw_bind_parameter(index + 1, value)?;
    }
    statement.raw_execute()
}

impl Writer {
    pub(super) fn write(&mut self, write: Write, applied: &mut Applied) -> Result<(), Failure> {
        match write {
            Write::Rows { table, at, count, rows } => self.rows(table, at, count, &rows, applied),
            Write::Change { at, change } => self.change(at, change, applied),
            Write::Truncate { at, tables } => self.truncate(at, &tables, applied),
            Write::Reject(rejection) => self.reject(rejection, Refused::Transform, applied),
            Write::Began { .. } => Ok(()),
            Write::Boundary => self.settle_deferred(applied),
        }
    }

    fn rows(
        &mut self,
        id: TableId,
        at: Version,
        count: u32,
        rows: &bytes::Bytes,
        applied: &mut Applied,
    ) -> Result<(), Failure> {
        let table = self.table(id)?.clone();
        let plain = table.ours && !matches!(table.target.mode, WriteMode::Columns { .. });
        if !plain || self.held.contains_key(&id) {
            return self.rows_one_by_one(&table, at, rows, applied);
        }
        let mut refused = Vec::new();
        let written = insert_block(self.connection()?, &table, rows, &mut refused)?;
        if written != count {
            return Err(damaged(&table, "a block of rows holds another number of rows than it says"));
        }
        applied.applied += u64::from(count) - refused.len() as u64;
        for (index, row, reason, unique) in refused {
            let at = Version { sequence: at.sequence, ordinal: at.ordinal + index };
            let rejection = rejection(&table, at, inserted(&table, row), reason);
            self.reject(rejection, Refused::by_row(unique), applied)?;
        }
        Ok(())
    }

    fn rows_one_by_one(
        &mut self,
        table: &Table,
        at: Version,
        rows: &bytes::Bytes,
        applied: &mut Applied,
    ) -> Result<(), Failure> {
        for (index, row) in Rows::new(rows.clone()).enumerate() {
            let row = row.map_err(|error| damaged(table, error))?;
            let at = Version { sequence: at.sequence, ordinal: at.ordinal + index as u32 };
            self.change(at, inserted(table, row), applied)?;
        }
        Ok(())
    }

    pub(super) fn change(&mut self, at: Version, change: Change, applied: &mut Applied) -> Result<(), Failure> {
        if !self.held.is_empty()
            && let Some((kind, reason)) = self.holds(&change)?
        {
            return self.hold(at, change, kind, &reason, applied);
        }
        if !self.deferred.is_empty() && self.is_deferred(&change)? {
            self.deferred.push((at, change));
            return Ok(());
        }
        match self.write_change(&change) {
            Ok(()) => applied.applied += 1,
            Err(Fault::Stop(failure)) => return Err(failure),
            Err(Fault::Row { unique: true, .. }) => self.deferred.push((at, change)),
            Err(Fault::Row { reason, unique: false }) => {
                let rejection = rejection(self.table(change.table)?, at, change, reason);
                self.reject(rejection, Refused::by_row(false), applied)?;
            }
        }
        Ok(())
    }

    /// Writes one change, wholly or not at all.
    pub(super) fn write_change(&self, change: &Change) -> Result<(), Fault> {
        let table = self.table(change.table).map_err(Fault::Stop)?;
        let connection = self.connection().map_err(Fault::Stop)?;
        // One statement undoes itself; a change of the key takes two.
        if change.old.is_none() || change.new.is_none() {
            return self.write_parts(connection, table, change);
        }
        let mark =
            |sql: &str| connection.execute_batch(sql).map_err(|error| Fault::Stop(failure("writing a change", error)));
        mark("SAVEPOINT crossfade_change")?;
        let written = self.write_parts(connection, table, change);
        if matches!(written, Err(Fault::Row { .. })) {
            mark("ROLLBACK TO crossfade_change")?;
        }
        mark("RELEASE crossfade_change")?;
        written
    }

    fn write_parts(&self, connection: &Connection, table: &Table, change: &Change) -> Result<(), Fault> {
        let keep = undo::Keep::new(connection, &self.migration, table);
        match &table.target.mode {
            WriteMode::InsertOnce => insert_once(&keep, table, change),
            WriteMode::Columns { columns } => write_columns(&keep, table, columns, change),
            // The plan gives no table here the mode of records in both key versions: it would be one as any other.
            WriteMode::Table | WriteMode::Dual { .. } => match table.schema.identity {
                Identity::Key => write_keyed(&keep, table, change),
                Identity::FullRow => write_whole(connection, table, change),
                Identity::InsertOnly => write_insert_only(connection, table, change),
            },
        }
    }

    fn truncate(&mut self, at: Version, tables: &[TableId], applied: &mut Applied) -> Result<(), Failure> {
        self.settle_deferred(applied)?;
        for id in tables {
            let table = self.table(*id)?.clone();
            let doing = format!("emptying {}", table.name());
            match table.target.mode {
                WriteMode::Columns { .. } | WriteMode::InsertOnce | WriteMode::Dual { .. } => continue,
                WriteMode::Table if table.ours => {
                    run(self.connection()?, &table.sql.truncate, []).map_err(|error| failure(&doing, error))?;
                }
                WriteMode::Table => undo::truncate(self.connection()?, &self.migration, &table)?,
            }
            // What is held of this table comes before the emptying: a delete behind it keeps that order for a retry.
            let keys: Vec<Key> = self.held.get(id).into_iter().flatten().cloned().collect();
            for (ordinal, key) in keys.into_iter().enumerate() {
                let old = key_image(&table, &key);
                let change =
                    Change { table: *id, schema: table.schema.version, op: Op::Delete, old: Some(old), new: None };
                let at = Version { sequence: at.sequence, ordinal: at.ordinal + ordinal as u32 };
                self.hold(at, change, "held", "the table was emptied", applied)?;
            }
        }
        Ok(())
    }

    fn is_deferred(&self, change: &Change) -> Result<bool, Failure> {
        let keys = keys_of(self.table(change.table)?, change);
        for (_, waiting) in self.deferred.iter().filter(|(_, waiting)| waiting.table == change.table) {
            if keys_of(self.table(waiting.table)?, waiting).iter().any(|key| keys.contains(key)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The end of a source transaction: what waited for a unique value is tried again.
    pub(super) fn settle_deferred(&mut self, applied: &mut Applied) -> Result<(), Failure> {
        while !self.deferred.is_empty() {
            let waiting = std::mem::take(&mut self.deferred);
            let before = waiting.len();
            let left = self.try_in_order(waiting, applied)?;
            if left.len() < before {
                self.deferred = left;
                continue;
            }
            let Some(blamed) = self.try_together(&left, applied)? else { return Ok(()) };
            let mut rest = left;
            let (at, change) = rest.remove(blamed.place);
            let rejection = rejection(self.table(change.table)?, at, change, blamed.reason);
            self.reject(rejection, Refused::by_row(blamed.unique), applied)?;
            for (at, change) in rest {
                match self.holds(&change)? {
                    Some((kind, reason)) => self.hold(at, change, kind, &reason, applied)?,
                    None => self.deferred.push((at, change)),
                }
            }
        }
        Ok(())
    }

    /// Tries each once, in order; a change waits where an earlier one of its key does. Returns what still waits.
    fn try_in_order(
        &mut self,
        waiting: Vec<(Version, Change)>,
        applied: &mut Applied,
    ) -> Result<Vec<(Version, Change)>, Failure> {
        let mut left: Vec<(Version, Change)> = Vec::new();
        let mut blocked: HashSet<(TableId, Key)> = HashSet::new();
        for (at, change) in waiting {
            let keys = keys_of(self.table(change.table)?, &change);
            let is_blocked = keys.iter().any(|key| blocked.contains(&(change.table, key.clone())));
            let fault = if is_blocked { None } else { Some(self.write_change(&change)) };
            match fault {
                Some(Ok(())) => {
                    applied.applied += 1;
                    continue;
                }
                Some(Err(Fault::Stop(failure))) => return Err(failure),
                Some(Err(Fault::Row { reason, unique: false })) => {
                    let rejection = rejection(self.table(change.table)?, at, change, reason);
                    self.reject(rejection, Refused::by_row(false), applied)?;
                    continue;
                }
                Some(Err(Fault::Row { unique: true, .. })) | None => {}
            }
            blocked.extend(keys.into_iter().map(|key| (change.table, key)));
            left.push((at, change));
        }
        Ok(left)
    }

    /// Takes all rows in question out of the way and writes them in order. All or none: returns the place of the
    /// change that cannot be written, and why.
    fn try_together(
        &mut self,
        waiting: &[(Version, Change)],
        applied: &mut Applied,
    ) -> Result<Option<Blamed>, Failure> {
        let doing = "exchanging unique values";
        let mark = |sql: &str| self.connection()?.execute_batch(sql).map_err(|error| failure(doing, error));
        mark("SAVEPOINT crossfade_exchange")?;
        let blamed = self.exchange(waiting)?;
        match blamed {
            None => {
                mark("RELEASE crossfade_exchange")?;
                applied.applied += waiting.len() as u64;
                Ok(None)
            }
            Some(blamed) => {
                mark("ROLLBACK TO crossfade_exchange; RELEASE crossfade_exchange")?;
                Ok(Some(blamed))
            }
        }
    }

    fn exchange(&self, waiting: &[(Version, Change)]) -> Result<Option<Blamed>, Failure> {
        for (place, (_, change)) in waiting.iter().enumerate() {
            let table = self.table(change.table)?;
            let whole = !change.new.as_ref().is_some_and(Row::has_unchanged);
            if !whole || table.target.mode != WriteMode::Table {
                let reason =
                    "another row has a value that must be unique, and this change carries only a part of its row";
                return Ok(Some(Blamed { place, reason: reason.to_owned(), unique: true }));
            }
            let keep = undo::Keep::new(self.connection()?, &self.migration, table);
            for key in keys_of(table, change) {
                match delete(&keep, table, &key) {
                    Ok(()) => {}
                    Err(Fault::Stop(failure)) => return Err(failure),
                    Err(Fault::Row { reason, unique }) => return Ok(Some(Blamed { place, reason, unique })),
                }
            }
        }
        for (place, (_, change)) in waiting.iter().enumerate() {
            match self.write_change(change) {
                Ok(()) => {}
                Err(Fault::Stop(failure)) => return Err(failure),
                Err(Fault::Row { reason, unique }) => return Ok(Some(Blamed { place, reason, unique })),
            }
        }
        Ok(None)
    }
}

/// Inserts a block in one go. Returns how many rows it held; refused ones are put aside with their number.
fn insert_block(
    connection: &Connection,
    table: &Table,
    rows: &bytes::Bytes,
    refused: &mut Vec<(u32, Row, String, bool)>,
) -> Result<u32, Failure> {
    let doing = || format!("loading {}", table.name());
    let columns = &table.schema.columns;
    let mut statement = connection.prepare_cached(&table.sql.insert).map_err(|error| failure(doing(), error))?;
    let mut count = 0;
    for row in Rows::new(rows.clone()) {
        let row = row.map_err(|error| damaged(table, error))?;
        if row.len() != columns.len() {
            return Err(damaged(table, "a row has another number of cells than the table has columns"));
        }
        let mut fault = None;
        for (index, (column, cell)) in columns.iter().zip(row.cells()).enumerate() {
            let value = match cell {
                Cell::Bytes(bytes) => bound(&column.type_, &column.name, bytes),
                Cell::Null if column.key.is_some() => {
                    Err(CellError::new(&column.name, "NULL in the key: it identifies no row"))
                }
                Cell::Null => Ok(Bound::NULL),
                Cell::Unchanged | Cell::Absent => Err(CellError::new(&column.name, "no value in a row of a backfill")),
            };
            match value {
                Ok(value) => statement.raw_bind_parameter(index + 1, value).map_err(|error| failure(doing(), error))?,
                Err(error) => fault = Some((error.to_string(), false)),
            }
        }
        if fault.is_none() {
            match statement.raw_execute() {
                Ok(_) => {}
                Err(error) if is_rejection(&error) => fault = Some((error.to_string(), is_unique(&error))),
                Err(error) => return Err(failure(doing(), error)),
            }
        }
        if let Some((reason, unique)) = fault {
            refused.push((count, row, reason, unique));
        }
        count += 1;
    }
    Ok(count)
}

fn damaged(table: &Table, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
    Failure::halt(
        format!("loading {}", table.name()),
        error,
        "the log holds what cannot be a row: run `crossfade log verify`",
    )
}

fn inserted(table: &Table, row: Row) -> Change {
    Change { table: table.id(), schema: table.schema.version, op: Op::Insert, old: None, new: Some(row) }
}

pub(super) fn rejection(table: &Table, at: Version, change: Change, reason: String) -> Rejection {
    Rejection { at, table: table.id(), key: change.key(&table.schema), change, reason }
}

/// The keys that a change speaks of: the one it leads to, and the one it leaves.
pub(super) fn keys_of(table: &Table, change: &Change) -> Vec<Key> {
    if table.schema.identity != Identity::Key {
        return Vec::new();
    }
    change.key(&table.schema).into_iter().chain(change.replaced_key(&table.schema)).collect()
}

/// An old image that holds the key alone.
fn key_image(table: &Table, key: &Key) -> Row {
    let places = table.schema.key_columns();
    let cells: Vec<Cell<'_>> = key.cells().collect();
    (0..table.schema.columns.len())
        .map(|index| {
            let place = places.iter().position(|place| *place == index);
            place.and_then(|place| cells.get(place).copied()).unwrap_or(Cell::Absent)
        })
        .collect()
}

/// The version of an entry with one output.
pub(super) fn version(sequence: u64, ordinal: u32) -> Version {
    Version { sequence: Sequence(sequence), ordinal }
}
