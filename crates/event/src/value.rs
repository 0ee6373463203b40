//! Decoded values, lossless: what a transform, a verifier or another system's sink sees of a cell.

use std::fmt;

/// Months, days and microseconds, kept apart as PostgreSQL does; the three extremes mean infinity there (17+).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Interval {
    /// Whole months.
    pub months: i32,
    /// Whole days.
    pub days: i32,
    /// Microseconds.
    pub microseconds: i64,
}

/// A time of day with its own offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TimeTz {
    /// Microseconds since midnight; 86,400,000,000 is 24:00.
    pub microseconds: i64,
    /// Seconds *west* of UTC, as PostgreSQL counts them.
    pub seconds_west: i32,
}

/// An exact decimal. `Finite` keeps the digits and the scale as written: 1.0 and 1.00 are two numerics.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Numeric {
    /// Not a number.
    NaN,
    /// Positive infinity.
    Infinity,
    /// Negative infinity.
    NegInfinity,
    /// `[-]digits[.digits]` as PostgreSQL's output function writes it: no exponent, no leading zeros but one before
    /// the point, trailing zeros kept.
    Finite(String),
}

/// One decoded value. NULL, unchanged and absent are not values: they are [`crate::Cell`]s.
#[derive(Clone, PartialEq)]
pub enum Value {
    /// true or false
    Bool(bool),
    /// An integer of 16, 32 or 64 bits
    Int(i64),
    /// IEEE 754 single; NaN payloads and the sign of zero are kept
    Float32(f32),
    /// IEEE 754 double
    Float64(f64),
    /// Exact decimal
    Numeric(Numeric),
    /// Text
    Text(String),
    /// Text whose bytes are not UTF-8 (SQLite keeps what it was given)
    RawText(Vec<u8>),
    /// Raw bytes
    Bytes(Vec<u8>),
    /// Days since 2000-01-01; the extremes of `i32` are ±infinity
    Date(i32),
    /// Microseconds since midnight; 86,400,000,000 is 24:00
    Time(i64),
    /// Time of day with an offset
    TimeTz(TimeTz),
    /// Microseconds since 2000-01-01; the extremes of `i64` are ±infinity
    Timestamp(i64),
    /// Microseconds since 2000-01-01 UTC; the extremes of `i64` are ±infinity
    TimestampTz(i64),
    /// Months, days, microseconds
    Interval(Interval),
    /// UUID
    Uuid([u8; 16]),
    /// JSON text exactly as written
    Json(String),
    /// JSON text as `jsonb` prints it
    Jsonb(String),
    /// Anything else, by its text form
    Other(String),
}

impl Value {
    /// The word for its kind, fit for errors: never the value itself.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float32(_) => "float32",
            Self::Float64(_) => "float64",
            Self::Numeric(_) => "numeric",
            Self::Text(_) => "text",
            Self::RawText(_) => "text that is not UTF-8",
            Self::Bytes(_) => "bytes",
            Self::Date(_) => "date",
            Self::Time(_) => "time",
            Self::TimeTz(_) => "timetz",
            Self::Timestamp(_) => "timestamp",
            Self::TimestampTz(_) => "timestamptz",
            Self::Interval(_) => "interval",
            Self::Uuid(_) => "uuid",
            Self::Json(_) => "json",
            Self::Jsonb(_) => "jsonb",
            Self::Other(_) => "other",
        }
    }
}

impl fmt::Debug for Value {
    // Values never reach logs: only their kind does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())
    }
}
