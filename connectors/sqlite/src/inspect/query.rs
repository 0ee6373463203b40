//! Questions of somebody else's: statements that only read, asked as they are written, on a connection of their own that
//! can only read.

use crate::{
    Config,
    client::{Access, failure, open},
    codec::put_cell,
};
use bytes::Bytes;
use crossfade_connector::{Asked, Failure};
use crossfade_event::{Column, ColumnType, Format, Logical, Row, Value, codec};
use rusqlite::{Connection, types::Value as Stored};
use std::time::Instant;

const DOING: &str = "asking a query";

/// A connection for questions.
pub(super) fn connect(config: &Config) -> Result<Connection, Failure> {
    let connection = open(config, Access::Existing)?;
    connection.pragma_update(None, "query_only", true).map_err(|error| failure(DOING, error))?;
    Ok(connection)
}

pub(super) fn ask(
    connection: &Connection,
    sql: &str,
    params: &[Option<Value>],
    bytes_max: usize,
) -> Result<Asked, Failure> {
    let mut statement = connection.prepare_cached(sql).map_err(|error| failure("preparing a query", error))?;
    if !statement.readonly() {
        let told = "it is no statement that only reads";
        return Err(Failure::misconfigured(DOING, told, "Write a SELECT"));
    }
    if statement.parameter_count() != params.len() {
        let told = format!("it has {} parameters, and {} are given", statement.parameter_count(), params.len());
        return Err(Failure::misconfigured(DOING, told, "Give as many values as the query has parameters"));
    }
    let columns: Vec<Column> = statement.columns().map(|column| of(&column)).collect();
    let (mut rows, mut bytes) = (Vec::new(), 0);
    let began = Instant::now();
    for index in 1..=params.len() {
        // SQLite numbers `$2` by where it first stands; what it says is which value is meant.
        let place = match statement.parameter_name(index) {
            Some(name) => {
                name.trim_start_matches(['$', '?', ':', '@']).parse().ok().and_then(|n: usize| n.checked_sub(1))
            }
            None => Some(index - 1),
        };
        let Some(value) = place.and_then(|place| params.get(place)) else {
            let told = "it has a parameter that is none of its values";
            return Err(Failure::misconfigured(DOING, told, "Name its parameters $1, $2 and so on"));
        };
        statement.raw_bind_parameter(index, stored(value.as_ref())).map_err(|error| failure(DOING, error))?;
    }
    let mut answer = statement.raw_query();
    while let Some(row) = answer.next().map_err(|error| failure(DOING, error))? {
        let mut cells = (columns.len() as u16).to_be_bytes().to_vec();
        for index in 0..columns.len() {
            put_cell(&mut cells, row.get_ref(index).map_err(|error| failure(DOING, error))?);
        }
        bytes += cells.len();
        if bytes > bytes_max {
            let told = format!("its answer is larger than {bytes_max} bytes");
            return Err(Failure::misconfigured(DOING, told, "Ask for fewer rows, or for a sum of them"));
        }
        let row = Row::parse(Bytes::from(cells))
            .map_err(|error| Failure::halt(DOING, error, "this is a mistake of Crossfade's; please report it"))?;
        rows.push(row);
    }
    Ok(Asked { columns, rows, took: began.elapsed() })
}

fn of(column: &rusqlite::Column<'_>) -> Column {
    Column {
        name: column.name().into(),
        type_: ColumnType {
            name: column.decl_type().unwrap_or_default().into(),
            native_id: 0,
            logical: Logical::Dynamic,
            format: Format::Tagged,
        },
        key: None,
        nullable: true,
        native_id: 0,
        default: None,
    }
}

/// A parameter in the storage class that its column most likely has; affinity sees to the rest.
fn stored(value: Option<&Value>) -> Stored {
    match value {
        None => Stored::Null,
        Some(Value::Int(number)) => Stored::Integer(*number),
        Some(Value::Bool(truth)) => Stored::Integer(i64::from(*truth)),
        Some(Value::Float32(number)) => Stored::Real(f64::from(*number)),
        Some(Value::Float64(number)) => Stored::Real(*number),
        Some(Value::Bytes(bytes)) => Stored::Blob(bytes.clone()),
        Some(other) => Stored::Text(codec::to_text(other)),
    }
}
