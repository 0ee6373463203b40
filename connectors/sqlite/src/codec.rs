//! SQLite's values as cells and back. Each value carries its own type, so a cell is a tag byte and a payload
//! ([`crossfade_event::Format::Tagged`], the table of tags stands in [`crossfade_event::codec`]); nothing is ever
//! converted on the way. Cells in PostgreSQL's formats come in too: those are decoded, and written in the storage
//! class that holds them exactly.

use crossfade_event::{Cell, ColumnType, Format, Key, Row, RowBuilder, TableSchema, Value, codec};
use rusqlite::{
    ToSql,
    types::{ToSqlOutput, Value as Stored, ValueRef},
};

const INTEGER: u8 = 1;
const REAL: u8 = 2;
const TEXT: u8 = 3;
const BLOB: u8 = 4;
const BROKEN_TEXT: u8 = 5;

/// Bytes that are not a value, or a value that SQLite has no storage class for. Never holds the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {problem}")]
pub(crate) struct CellError {
    column: String,
    problem: String,
}

impl CellError {
    pub(crate) fn new(column: &str, problem: impl ToString) -> Self {
        Self { column: column.to_owned(), problem: problem.to_string() }
    }
}

/// Adds a value as a cell: its length, then tag and payload, as in [`Row`].
pub(crate) fn put_cell(out: &mut Vec<u8>, value: ValueRef<'_>) {
    match value {
        ValueRef::Null => out.extend_from_slice(&(-1i32).to_be_bytes()),
        ValueRef::Integer(value) => put_tagged(out, INTEGER, &value.to_be_bytes()),
        ValueRef::Real(value) => put_tagged(out, REAL, &value.to_bits().to_be_bytes()),
        ValueRef::Text(bytes) if std::str::from_utf8(bytes).is_ok() => put_tagged(out, TEXT, bytes),
        ValueRef::Text(bytes) => put_tagged(out, BROKEN_TEXT, bytes),
        ValueRef::Blob(bytes) => put_tagged(out, BLOB, bytes),
    }
}

/// Adds a cell that is not part of the image.
pub(crate) fn put_absent(out: &mut Vec<u8>) {
    out.extend_from_slice(&(-3i32).to_be_bytes());
}

fn put_tagged(out: &mut Vec<u8>, tag: u8, payload: &[u8]) {
    // SQLite's own limit for a value is below 2^31 - 1 bytes.
    out.extend_from_slice(&((payload.len() + 1) as i32).to_be_bytes());
    out.push(tag);
    out.extend_from_slice(payload);
}

/// The bytes of an integer's cell.
pub(crate) fn integer_cell(value: i64) -> [u8; 9] {
    let mut cell = [INTEGER; 9];
    for (to, from) in cell.iter_mut().skip(1).zip(value.to_be_bytes()) {
        *to = from;
    }
    cell
}

/// What is bound to a statement: borrowed from the row where its bytes are SQLite's own already.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Bound<'a> {
    Ref(ValueRef<'a>),
    Owned(Stored),
}

impl ToSql for Bound<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Self::Ref(value) => ToSqlOutput::Borrowed(*value),
            Self::Owned(value) => ToSqlOutput::Borrowed(ValueRef::from(value)),
        })
    }
}

impl Bound<'_> {
    pub(crate) const NULL: Bound<'static> = Bound::Ref(ValueRef::Null);
}

/// The value of a cell that is there.
pub(crate) fn bound<'a>(type_: &ColumnType, column: &str, bytes: &'a [u8]) -> Result<Bound<'a>, CellError> {
    match type_.format {
        Format::Tagged => tagged(bytes).map(Bound::Ref).ok_or_else(|| CellError::new(column, "the bytes are no value")),
        Format::PgBinary | Format::PgText => {
            let value = codec::decode(type_, bytes).map_err(|error| CellError::new(column, error))?;
            stored(value).map(Bound::Owned).map_err(|problem| CellError::new(column, problem))
        }
    }
}

/// The value that tag and payload stand for.
pub(crate) fn tagged(bytes: &[u8]) -> Option<ValueRef<'_>> {
    let (tag, payload) = bytes.split_first()?;
    Some(match *tag {
        INTEGER => ValueRef::Integer(i64::from_be_bytes(payload.try_into().ok()?)),
        REAL => ValueRef::Real(f64::from_bits(u64::from_be_bytes(payload.try_into().ok()?))),
        TEXT | BROKEN_TEXT => ValueRef::Text(payload),
        BLOB => ValueRef::Blob(payload),
        _ => return None,
    })
}

/// The storage class that holds a value exactly. What SQLite has no class for goes in as the text that PostgreSQL
/// prints for it; a NaN is refused, for SQLite would store NULL instead.
fn stored(value: Value) -> Result<Stored, &'static str> {
    Ok(match value {
        Value::Bool(value) => Stored::Integer(i64::from(value)),
        Value::Int(value) => Stored::Integer(value),
        Value::Float32(value) if value.is_nan() => return Err("SQLite has no NaN; it would store NULL"),
        Value::Float32(value) => Stored::Real(f64::from(value)),
        Value::Float64(value) if value.is_nan() => return Err("SQLite has no NaN; it would store NULL"),
        Value::Float64(value) => Stored::Real(value),
        Value::Text(text) | Value::Json(text) | Value::Jsonb(text) | Value::Other(text) => Stored::Text(text),
        Value::Bytes(bytes) => Stored::Blob(bytes),
        value => Stored::Text(codec::to_text(&value)),
    })
}

/// The cells of a row with their columns, ready to be bound; `None` for cells that are unchanged or absent.
pub(crate) fn bound_row<'a>(schema: &TableSchema, row: &'a Row) -> Result<Vec<Option<Bound<'a>>>, CellError> {
    if row.len() != schema.columns.len() {
        return Err(CellError::new("all", format!("{} cells for {} columns", row.len(), schema.columns.len())));
    }
    schema
        .columns
        .iter()
        .zip(row.cells())
        .map(|(column, cell)| match cell {
            Cell::Null => Ok(Some(Bound::NULL)),
            Cell::Absent | Cell::Unchanged => Ok(None),
            Cell::Bytes(bytes) => bound(&column.type_, &column.name, bytes).map(Some),
        })
        .collect()
}

/// The cells of a key, ready to be bound. A NULL identifies no row.
pub(crate) fn bound_key<'a>(schema: &TableSchema, key: &'a Key) -> Result<Vec<Bound<'a>>, CellError> {
    let columns: Vec<usize> = schema.key_columns();
    columns
        .iter()
        .zip(key.cells())
        .filter_map(|(index, cell)| Some((schema.columns.get(*index)?, cell)))
        .map(|(column, cell)| match cell {
            Cell::Bytes(bytes) => bound(&column.type_, &column.name, bytes),
            _ => Err(CellError::new(&column.name, "NULL in the key: it identifies no row")),
        })
        .collect()
}

/// A value read from the target as a cell in the format of its column. Exact for [`Format::Tagged`]; for the others
/// the value is read back as what [`bound`] made of it.
pub(crate) fn push_read(row: &mut RowBuilder, type_: &ColumnType, value: ValueRef<'_>) -> Result<(), CellError> {
    if value == ValueRef::Null {
        row.push(Cell::Null);
        return Ok(());
    }
    if type_.format == Format::Tagged {
        let mut cell = Vec::with_capacity(16);
        put_cell(&mut cell, value);
        row.push(Cell::Bytes(cell.get(4..).unwrap_or_default()));
        return Ok(());
    }
    let refuse = || CellError::new(&type_.name, "the value in the target is not of this type");
    let read = match value {
        ValueRef::Null => return Ok(()),
        ValueRef::Integer(value) => codec::from_text(type_.logical, &value.to_string())
            .or((type_.logical == crossfade_event::Logical::Bool).then_some(Value::Bool(value != 0))),
        ValueRef::Real(value) => Some(match type_.logical {
            crossfade_event::Logical::Float32 => Value::Float32(value as f32),
            _ => Value::Float64(value),
        }),
        ValueRef::Text(bytes) => std::str::from_utf8(bytes).ok().and_then(|text| codec::from_text(type_.logical, text)),
        ValueRef::Blob(bytes) => Some(Value::Bytes(bytes.to_vec())),
    };
    let mut cell = bytes::BytesMut::new();
    codec::encode(type_, &read.ok_or_else(refuse)?, &mut cell).map_err(|error| CellError::new(&type_.name, error))?;
    row.push(Cell::Bytes(&cell));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_comes_back_as_it_was() {
        let values = [
            ValueRef::Integer(i64::MIN),
            ValueRef::Real(-0.0),
            ValueRef::Real(f64::INFINITY),
            ValueRef::Text(b""),
            ValueRef::Text(b"a\0b"),
            ValueRef::Text(b"\xff\xfe"),
            ValueRef::Blob(b""),
            ValueRef::Blob(b"\0"),
        ];
        for value in values {
            let mut cell = Vec::new();
            put_cell(&mut cell, value);
            let back = tagged(&cell[4..]).unwrap();
            match (value, back) {
                (ValueRef::Real(a), ValueRef::Real(b)) => assert_eq!(a.to_bits(), b.to_bits()),
                (a, b) => assert_eq!(a, b),
            }
        }
    }

    #[test]
    fn our_tags_are_those_of_the_vocabulary() {
        let type_ = ColumnType {
            name: "".into(),
            native_id: 0,
            logical: crossfade_event::Logical::Dynamic,
            format: Format::Tagged,
        };
        let mut cell = Vec::new();
        put_cell(&mut cell, ValueRef::Integer(-7));
        assert!(codec::decode(&type_, &cell[4..]).unwrap() == Value::Int(-7));
        cell.clear();
        put_cell(&mut cell, ValueRef::Text("ü".as_bytes()));
        assert!(codec::decode(&type_, &cell[4..]).unwrap() == Value::Text("ü".to_owned()));
    }
}
