//! Which columns the images of a quarantined change have: tables go on changing while it waits, and values must come
//! into the columns that they were meant for.

use super::{alter::Columns, own, writer::Writer};
use crate::{client::failure, codec::push_read};
use crossfade_connector::Failure;
use crossfade_event::{Cell, Change, Column, Op, Row, RowBuilder, TableId, TableSchema};
use rusqlite::Connection;
use std::{collections::HashMap, sync::Arc};

const LAYOUT: &str = "layout";

impl Writer {
    /// Notes the layout that a table has now, and returns the note's name.
    pub(super) fn note_layout(&mut self, id: TableId) -> Result<String, Failure> {
        if let Some(name) = self.layouts.get(&id) {
            return Ok(name.clone());
        }
        let schema = &*self.table(id)?.schema;
        let noted = || -> rusqlite::Result<String> {
            let connection = self.connection().map_err(of_another)?;
            let text = serde_json::to_string(schema).map_err(of_another)?;
            own::note_once(connection, &self.migration, LAYOUT, &schema.name.name, &text)
        };
        let name = noted().map_err(|error| failure("noting the layout of a quarantined change", error))?;
        self.layouts.insert(id, name.clone());
        Ok(name)
    }
}

fn of_another(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(error.into())
}

/// All layouts on record, by the names of their notes.
pub(super) fn noted(connection: &Connection, migration: &str) -> rusqlite::Result<HashMap<String, Arc<TableSchema>>> {
    let notes = own::noted(connection, migration, LAYOUT)?.into_iter();
    notes.map(|(name, text)| Ok((name, serde_json::from_str(&text).map_err(of_another)?))).collect()
}

/// A change as the table is laid out now. A column that came since has what its default gave to the rows that were there.
pub(super) fn changed(
    connection: &Connection,
    change: &Change,
    from: &TableSchema,
    to: &TableSchema,
) -> Result<Change, Failure> {
    let columns = Columns { before: &from.columns, after: &to.columns };
    let arranged = |row: &Row, missing: &dyn Fn(&Column) -> Result<Row, Failure>| -> Result<Row, Failure> {
        let cells: Vec<Cell<'_>> = row.cells().collect();
        let mut out = RowBuilder::with_capacity(to.columns.len(), row.as_bytes().len() + 16);
        for column in &to.columns {
            match columns.was(column).and_then(|place| cells.get(place)) {
                Some(cell) => out.push(*cell),
                None => out.push(missing(column)?.cells().next().unwrap_or(Cell::Null)),
            }
        }
        Ok(out.finish())
    };
    let one = |cell: Cell<'static>| Ok([cell].into_iter().collect::<Row>());
    let came_since = |column: &Column| match change.op {
        Op::Insert => given_by_default(connection, column),
        _ => one(Cell::Unchanged),
    };
    Ok(Change {
        schema: to.version,
        old: change.old.as_ref().map(|row| arranged(row, &|_| one(Cell::Absent))).transpose()?,
        new: change.new.as_ref().map(|row| arranged(row, &came_since)).transpose()?,
        ..*change
    })
}

fn given_by_default(connection: &Connection, column: &Column) -> Result<Row, Failure> {
    let words = column.default.as_deref().unwrap_or("NULL");
    connection
        .query_row(&format!("SELECT {words}"), [], |row| {
            let mut cell = RowBuilder::with_capacity(1, 16);
            push_read(&mut cell, &column.type_, row.get_ref(0)?).map_err(of_another)?;
            Ok(cell.finish())
        })
        .map_err(|error| failure(format!("reading the default of {}", column.name), error))
}
