//! The shape of a table at one moment, and the types of its columns.

use crate::{Cell, Key, Row, RowBuilder};
use serde::{Deserialize, Serialize};
use std::{fmt, sync::Arc};

/// A table's name in its own system: schema (or database, or keyspace) and name. SQLite's schema is `main`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TableName {
    /// The schema, database or keyspace.
    pub schema: Arc<str>,
    /// The table.
    pub name: Arc<str>,
}

impl TableName {
    /// A name from its two parts.
    pub fn new(schema: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { schema: schema.into(), name: name.into() }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// A table's number in one log; given by the source when it first sees the table, and kept for the log's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TableId(pub u32);

/// Which of a table's schemas a row was written under; counts from one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SchemaVersion(pub u32);

/// How the bytes of a column's cells are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// PostgreSQL's binary form (what a type's `send` function gives).
    PgBinary,
    /// PostgreSQL's text form under our fixed settings (ISO dates, `intervalstyle = postgres`, UTC,
    /// `extra_float_digits = 1`, `bytea_output = hex`), UTF-8.
    PgText,
    /// One tag byte and a payload, for systems whose values carry their own type (SQLite); see [`crate::codec`].
    Tagged,
}

/// What a column holds, across systems. What has no word here is `Opaque`: carried exactly, by its native type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Logical {
    /// true or false
    Bool,
    /// 16-bit integer
    Int16,
    /// 32-bit integer
    Int32,
    /// 64-bit integer
    Int64,
    /// IEEE 754 single
    Float32,
    /// IEEE 754 double
    Float64,
    /// Exact decimal of any scale, NaN and infinities
    Numeric,
    /// Text of any kind (text, varchar, char, citext, name)
    Text,
    /// Raw bytes
    Bytes,
    /// A day, BC and infinity included
    Date,
    /// Time of day, 24:00 included
    Time,
    /// Time of day with an offset
    TimeTz,
    /// Date and time without a zone
    Timestamp,
    /// A moment
    TimestampTz,
    /// Months, days, microseconds
    Interval,
    /// UUID
    Uuid,
    /// JSON exactly as written
    Json,
    /// JSON as PostgreSQL's `jsonb` normalises it
    Jsonb,
    /// Each value carries its own type (SQLite)
    Dynamic,
    /// Anything else, known by its native type
    Opaque,
}

/// A column's type: the source's own words, what it means to us, and how its bytes are written.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ColumnType {
    /// As the source spells it, modifiers included: `numeric(5,2)`, `character varying(20)[]`, `INTEGER`.
    pub name: Arc<str>,
    /// The source's number for it (PostgreSQL: the type's oid), or zero.
    pub native_id: u32,
    /// What it means across systems.
    pub logical: Logical,
    /// How the cells are written.
    pub format: Format,
}

/// One column.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: Arc<str>,
    /// Its type.
    pub type_: ColumnType,
    /// Its place in the key that identifies a row, from zero; `None` outside the key.
    pub key: Option<u16>,
    /// Whether NULL is allowed.
    pub nullable: bool,
    /// The source's stable number for the column (PostgreSQL: `attnum`), by which a rename is told from drop and add.
    pub native_id: u32,
    /// The default's expression in the source's dialect: what the rows read in it that were there when the column was
    /// added. Every later version of the schema says it as well. `None` for none, and for one that is not constant.
    pub default: Option<Arc<str>>,
}

impl Column {
    /// Whether both are the same column of one table, whatever it is called: by the source's number for it, or by name
    /// where one of them has none.
    pub fn is_same(&self, other: &Column) -> bool {
        match (self.native_id, other.native_id) {
            (0, _) | (_, 0) => self.name == other.name,
            (one, another) => one == another,
        }
    }
}

/// How a row of a table is found again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Identity {
    /// By the columns marked as key: no two rows share them.
    Key,
    /// By all columns; duplicates are possible, so one matching row is as good as another.
    FullRow,
    /// Not at all: rows can only be inserted.
    InsertOnly,
}

/// A table's shape; travels with the events it describes. Immutable once written to a log.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TableSchema {
    /// The table's number in this log.
    pub id: TableId,
    /// Which of its schemas.
    pub version: SchemaVersion,
    /// Its name in the source.
    pub name: TableName,
    /// Its columns, in the order of the cells.
    pub columns: Vec<Column>,
    /// How a row is found again.
    pub identity: Identity,
    /// The source's number for the table (PostgreSQL: the relation's oid), or zero.
    pub native_id: u32,
}

impl TableSchema {
    /// The indexes of the key's columns, in the key's order; empty without a key.
    pub fn key_columns(&self) -> Vec<usize> {
        let mut found: Vec<(u16, usize)> =
            self.columns.iter().enumerate().filter_map(|(index, column)| Some((column.key?, index))).collect();
        found.sort_unstable();
        found.into_iter().map(|(_, index)| index).collect()
    }

    /// The index of a column by name.
    pub fn column_index(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| &*column.name == name)
    }

    /// The key of `row`: the key's cells (all cells where the whole row identifies), each with its length, so that no
    /// two keys are written alike. `None` when a needed cell is absent or unchanged, or the table is insert-only.
    pub fn key_of(&self, row: &Row) -> Option<Key> {
        match self.identity {
            Identity::Key => self.key_in_order(row),
            Identity::FullRow => {
                key_from(row.as_bytes().len(), self.columns.len(), row.cells().take(self.columns.len()).map(Some))
            }
            Identity::InsertOnly => None,
        }
    }

    /// One walk where the key's columns stand in the key's order, which is nearly always.
    fn key_in_order(&self, row: &Row) -> Option<Key> {
        let places = self.columns.iter().filter_map(|column| column.key);
        let count = places.clone().count();
        if places.is_sorted() {
            let cells =
                self.columns.iter().zip(row.cells()).filter_map(|(column, cell)| column.key.map(|_| Some(cell)));
            return key_from(32, count, cells);
        }
        let cells: Vec<Cell<'_>> = row.cells().collect();
        key_from(32, count, self.key_columns().into_iter().map(|index| cells.get(index).copied()))
    }
}

/// `None` when one of the `count` cells is missing.
fn key_from<'a>(bytes: usize, count: usize, cells: impl Iterator<Item = Option<Cell<'a>>>) -> Option<Key> {
    let mut key = RowBuilder::with_capacity(count, bytes);
    let mut pushed = 0;
    for cell in cells {
        match cell? {
            Cell::Absent | Cell::Unchanged => return None,
            cell => key.push(cell),
        }
        pushed += 1;
    }
    (pushed == count).then(|| Key::from(key.finish()))
}
