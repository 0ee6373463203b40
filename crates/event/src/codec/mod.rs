//! From a cell's bytes to a [`Value`] and back, for every [`Format`]; and from a value to its text and back.
//!
//! *PostgreSQL's binary form* is what a type's `send` function gives. *PostgreSQL's text form* is what its output
//! function gives under fixed settings (`DateStyle = ISO`, `IntervalStyle = postgres`, `TimeZone = UTC`,
//! `extra_float_digits = 1`, `bytea_output = hex`). *Tagged* is one tag byte and a payload:
//!
//! | tag | payload |
//! |---|---|
//! | 1 | a 64-bit integer, big-endian |
//! | 2 | the bits of a 64-bit float, big-endian |
//! | 3 | text, UTF-8 |
//! | 4 | a blob |
//! | 5 | text whose bytes are not UTF-8 |
//!
//! NULL is no value in any of them: it is a [`crate::Cell`]. Every encoding here is exact or an error; what decodes
//! from bytes encodes to the same bytes (but for a numeric whose binary form has superfluous leading zeros).
//! A binary value of a type that has no word in [`Logical`] is never guessed: [`CodecError::NeedsText`].

mod binary;
mod datetime;
mod float;
mod interval;
mod numeric;
mod tagged;
mod text;

pub use datetime::{civil_from_days, days_from_civil};

use crate::{ColumnType, Format, Logical, Value};
use bytes::BytesMut;

/// Why bytes are not a value, or a value has no exact encoding. Never holds the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// A binary value of a type that only its own database can read.
    #[error("the binary form of type {type_} is known to its own database only; read the column in its text form")]
    NeedsText {
        /// The type.
        type_: String,
    },
    /// Bytes that are not this type's.
    #[error("the bytes are not a value of type {type_}")]
    Malformed {
        /// The type.
        type_: String,
    },
    /// A value of another kind.
    #[error("a {found} value does not go into type {type_} as it is; cast it")]
    Mismatch {
        /// The value's kind.
        found: &'static str,
        /// The type.
        type_: String,
    },
    /// A value of the right kind that the type is too small for.
    #[error("the {found} value does not fit type {type_}")]
    OutOfRange {
        /// The value's kind.
        found: &'static str,
        /// The type.
        type_: String,
    },
    /// A text with the character NUL, which PostgreSQL refuses.
    #[error("the text holds the character NUL, which type {type_} cannot hold")]
    Nul {
        /// The type.
        type_: String,
    },
}

/// What the leaves say; the type's name is added once, here.
enum Fault {
    NeedsText,
    Malformed,
    Mismatch,
    OutOfRange,
    Nul,
}

impl Fault {
    fn of(self, type_: &ColumnType, found: &'static str) -> CodecError {
        let type_ = type_.name.to_string();
        match self {
            Self::NeedsText => CodecError::NeedsText { type_ },
            Self::Malformed => CodecError::Malformed { type_ },
            Self::Mismatch => CodecError::Mismatch { found, type_ },
            Self::OutOfRange => CodecError::OutOfRange { found, type_ },
            Self::Nul => CodecError::Nul { type_ },
        }
    }
}

/// The value that a cell's bytes stand for.
///
/// # Errors
/// When the bytes are not of this type, or only the database itself can read them.
pub fn decode(type_: &ColumnType, bytes: &[u8]) -> Result<Value, CodecError> {
    match type_.format {
        Format::PgBinary => binary::decode(type_.logical, bytes),
        Format::PgText => std::str::from_utf8(bytes)
            .map_err(|_| Fault::Malformed)
            .and_then(|text| text::parse(type_.logical, text).ok_or(Fault::Malformed)),
        Format::Tagged => tagged::decode(bytes).ok_or(Fault::Malformed),
    }
    .map_err(|fault| fault.of(type_, ""))
}

/// Appends the bytes of `value` in the type's format.
///
/// # Errors
/// When the value is of another kind or does not fit exactly; nothing is appended then.
pub fn encode(type_: &ColumnType, value: &Value, out: &mut BytesMut) -> Result<(), CodecError> {
    let before = out.len();
    match type_.format {
        Format::PgBinary => binary::encode(type_.logical, value, out),
        Format::PgText => text::encode(type_.logical, value, out),
        Format::Tagged => tagged::encode(value, out),
    }
    .map_err(|fault| {
        out.truncate(before);
        fault.of(type_, value.kind())
    })
}

/// Whether [`decode`] and [`encode`] know the binary form of this kind; all others travel as text.
pub fn has_binary(logical: Logical) -> bool {
    !matches!(logical, Logical::Opaque | Logical::Dynamic)
}

/// The text form, as PostgreSQL's output function writes it. Text that is not UTF-8 is written like raw bytes.
pub fn to_text(value: &Value) -> String {
    text::print(value)
}

/// The value that a text form of PostgreSQL's output functions stands for; `None` when it is none. Input that only
/// PostgreSQL's input functions would take (`1e3` for a numeric, `yes` for a bool) is refused here.
pub fn from_text(logical: Logical, text: &str) -> Option<Value> {
    text::parse(logical, text)
}

/// Whether the value is one of those that a type of this kind has.
fn fits(logical: Logical, value: &Value) -> Result<(), Fault> {
    let in_range = match (logical, value) {
        (Logical::Int16, Value::Int(int)) => i16::try_from(*int).is_ok(),
        (Logical::Int32, Value::Int(int)) => i32::try_from(*int).is_ok(),
        (Logical::Numeric, Value::Numeric(numeric)) => numeric.is_canonical(),
        (Logical::Text, Value::Text(text))
        | (Logical::Json, Value::Json(text))
        | (Logical::Jsonb, Value::Jsonb(text))
        | (Logical::Opaque, Value::Other(text)) => {
            return if text.contains('\0') { Err(Fault::Nul) } else { Ok(()) };
        }
        (Logical::Time, Value::Time(time)) => datetime::is_time(*time),
        (Logical::TimeTz, Value::TimeTz(time)) => datetime::is_time(time.microseconds),
        (Logical::Bool, Value::Bool(_))
        | (Logical::Int64, Value::Int(_))
        | (Logical::Float32, Value::Float32(_))
        | (Logical::Float64, Value::Float64(_))
        | (Logical::Bytes, Value::Bytes(_))
        | (Logical::Date, Value::Date(_))
        | (Logical::Timestamp, Value::Timestamp(_))
        | (Logical::TimestampTz, Value::TimestampTz(_))
        | (Logical::Interval, Value::Interval(_))
        | (Logical::Uuid, Value::Uuid(_)) => true,
        _ => return Err(Fault::Mismatch),
    };
    if in_range { Ok(()) } else { Err(Fault::OutOfRange) }
}

#[cfg(test)]
mod tests;
