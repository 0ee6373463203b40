//! What a query answered: named columns, and rows of decoded values.

use crossfade_connector::Asked;
use crossfade_event::{Cell, Numeric, Value, codec};
use std::{fmt, sync::Arc};

/// One value of an answer, or NULL.
#[derive(Clone, PartialEq)]
pub struct Field(pub Option<Value>);

impl fmt::Debug for Field {
    // Values never reach logs: only their kind does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_ref().map_or("null", Value::kind))
    }
}

/// What a query answered.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Answer {
    /// The columns' names.
    pub columns: Vec<Arc<str>>,
    /// The rows; each has a field for every column.
    pub rows: Vec<Vec<Field>>,
}

/// An answer that cannot be compared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the column {column} is of type {type_}, whose values cannot be compared. Cast it in the query, for example to text"
)]
pub struct AnswerError {
    column: String,
    type_: String,
}

impl Answer {
    /// An answer without rows.
    pub fn of<const N: usize>(columns: [&str; N]) -> Self {
        Self { columns: columns.map(Arc::from).to_vec(), rows: Vec::new() }
    }

    /// The same with one more row, of as many fields as there are columns.
    #[must_use]
    pub fn row<const N: usize>(mut self, fields: [Field; N]) -> Self {
        self.rows.push(fields.to_vec());
        self
    }

    /// Decodes what a connector answered.
    ///
    /// # Errors
    /// When a column is of a type that only its own database can read.
    pub fn decode(asked: &Asked) -> Result<Self, AnswerError> {
        let mut rows = Vec::with_capacity(asked.rows.len());
        for row in &asked.rows {
            let mut fields = Vec::with_capacity(asked.columns.len());
            for (column, cell) in asked.columns.iter().zip(row.cells()) {
                fields.push(match cell {
                    Cell::Bytes(bytes) => {
                        let value = codec::decode(&column.type_, bytes).map_err(|_| AnswerError {
                            column: column.name.to_string(),
                            type_: column.type_.name.to_string(),
                        })?;
                        Field(Some(value))
                    }
                    Cell::Null | Cell::Unchanged | Cell::Absent => Field(None),
                });
            }
            rows.push(fields);
        }
        Ok(Self { columns: asked.columns.iter().map(|column| column.name.clone()).collect(), rows })
    }
}

macro_rules! fields {
    ($($type:ty => |$value:ident| $made:expr),* $(,)?) => {
        $(impl From<$type> for Field {
            fn from($value: $type) -> Self {
                Self(Some($made))
            }
        })*
    };
}

fields! {
    bool => |value| Value::Bool(value),
    i16 => |value| Value::Int(value.into()),
    i32 => |value| Value::Int(value.into()),
    u32 => |value| Value::Int(value.into()),
    i64 => |value| Value::Int(value),
    u64 => |value| Value::Numeric(Numeric::Finite(value.to_string())),
    f32 => |value| Value::Float32(value),
    f64 => |value| Value::Float64(value),
    &str => |value| Value::Text(value.to_owned()),
    String => |value| Value::Text(value),
    &[u8] => |value| Value::Bytes(value.to_vec()),
    Vec<u8> => |value| Value::Bytes(value),
    Value => |value| value,
}

impl<T: Into<Field>> From<Option<T>> for Field {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self(None), Into::into)
    }
}
