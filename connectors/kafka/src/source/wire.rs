//! How Debezium writes a column: from the schema in the record, or, where records carry none, from the column's type and
//! what the connector was told.

use super::{connect::Schema, types};
use crossfade_event::Logical;

/// How the connector was told to write what a record without a schema does not say. Its own defaults are ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Handling {
    /// `decimal.handling.mode`
    pub decimal: DecimalMode,
    /// `time.precision.mode`
    pub time: TimePrecision,
    /// `binary.handling.mode`
    pub binary: BinaryMode,
}

/// `decimal.handling.mode`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DecimalMode {
    /// Bytes, with the scale.
    #[default]
    Precise,
    /// Floats: digits are lost.
    Double,
    /// Texts.
    String,
}

/// `time.precision.mode`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TimePrecision {
    /// Milliseconds where the column has no finer ones, else microseconds.
    #[default]
    Adaptive,
    /// The same, but for times of day, which are always in microseconds.
    AdaptiveTimeMicroseconds,
    /// Kafka Connect's own types: milliseconds.
    Connect,
    /// ISO 8601.
    IsoString,
    /// Microseconds everywhere.
    Microseconds,
    /// Nanoseconds everywhere.
    Nanoseconds,
}

/// `binary.handling.mode`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BinaryMode {
    /// Bytes, which JSON writes as base64.
    #[default]
    Bytes,
    /// The same as a text.
    Base64,
    /// base64 with `-` and `_`.
    Base64UrlSafe,
    /// Hexadecimal digits.
    Hex,
}

/// A unit of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Milli,
    Micro,
    Nano,
}

/// How a column's values are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wire {
    Bool,
    Int,
    Float32,
    Float64,
    /// As PostgreSQL writes it, or a text.
    Text,
    Base64,
    Base64UrlSafe,
    Hex,
    Decimal {
        scale: i64,
    },
    VariableDecimal,
    DecimalText,
    DecimalDouble,
    Days,
    Time(Unit),
    Timestamp(Unit),
    ZonedTime,
    ZonedTimestamp,
    IsoDate,
    IsoTime,
    IsoTimestamp,
    Duration(Unit),
    IsoInterval,
    /// A number of microseconds, or ISO 8601: the two cannot be taken for one another.
    AnyInterval,
    Bits {
        length: usize,
    },
    Point,
    Geometry,
    /// An object, or a text that holds one: keys and values.
    Hstore,
    Array(Box<Wire>),
}

/// A type that Debezium writes in a way that is not read here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unread(pub(crate) String);

impl Wire {
    /// What a schema says of a column whose type is known, or not.
    pub(crate) fn of_schema(schema: &Schema, type_: Option<&str>, handling: Handling) -> Result<Self, Unread> {
        let meaning = type_.map_or(Logical::Text, types::logical);
        let base = type_.map(types::base).unwrap_or_default();
        let is_decimal = meaning == Logical::Numeric || base == "money";
        let Some(name) = schema.name.as_deref() else {
            return Ok(match schema.kind.as_str() {
                "boolean" => Self::Bool,
                "int8" | "int16" | "int32" | "int64" => Self::Int,
                "float" => Self::Float32,
                "double" if is_decimal => Self::DecimalDouble,
                "double" => Self::Float64,
                "string" if is_decimal => Self::DecimalText,
                "string" if meaning == Logical::Bytes => match handling.binary {
                    BinaryMode::Bytes => {
                        return Err(Unread(
                            "its bytes come as a text, and whether base64 or hexadecimal is not said: name the connector's binary.handling.mode"
                                .to_owned(),
                        ));
                    }
                    mode => Self::of_bytes(mode),
                },
                "string" => Self::Text,
                "bytes" => Self::Base64,
                "map" => Self::Hstore,
                "array" => {
                    let items = schema.items.as_deref().ok_or_else(|| Unread("its array has no items".to_owned()))?;
                    let inside = Self::of_schema(items, type_.and_then(types::element), handling)?;
                    Self::Array(Box::new(inside))
                }
                other => return Err(Unread(format!("Debezium writes it as a {other}, which is not read here"))),
            });
        };
        let plain = name.rsplit('.').next().unwrap_or_default();
        let connect = name.starts_with("org.apache.kafka.connect.data.");
        Ok(match (connect, plain) {
            (true, "Decimal") => Self::Decimal {
                scale: schema.number("scale").ok_or_else(|| Unread("its decimal has no scale".into()))?,
            },
            (false, "VariableScaleDecimal") => Self::VariableDecimal,
            (_, "Date") => Self::Days,
            (_, "Time") => Self::Time(Unit::Milli),
            (false, "MicroTime") => Self::Time(Unit::Micro),
            (false, "NanoTime") => Self::Time(Unit::Nano),
            (_, "Timestamp") => Self::Timestamp(Unit::Milli),
            (false, "MicroTimestamp") => Self::Timestamp(Unit::Micro),
            (false, "NanoTimestamp") => Self::Timestamp(Unit::Nano),
            (false, "ZonedTime") => Self::ZonedTime,
            (false, "ZonedTimestamp") => Self::ZonedTimestamp,
            (false, "IsoDate") => Self::IsoDate,
            (false, "IsoTime") => Self::IsoTime,
            (false, "IsoTimestamp") => Self::IsoTimestamp,
            (false, "MicroDuration") => Self::Duration(Unit::Micro),
            (false, "NanoDuration") => Self::Duration(Unit::Nano),
            (false, "Interval") => Self::IsoInterval,
            (false, "Json") if base == "hstore" => Self::Hstore,
            (false, "Json" | "Uuid" | "Xml" | "Enum" | "Ltree" | "Tsvector") => Self::Text,
            (false, "Bits") => {
                let said = schema.number("length").and_then(|length| usize::try_from(length).ok());
                Self::Bits { length: bits(type_).or(said).ok_or_else(|| Unread("its bits have no length".into()))? }
            }
            (false, "Point") => Self::Point,
            (false, "Geometry" | "Geography")
                if type_.is_none() || matches!(base.as_str(), "geometry" | "geography") =>
            {
                Self::Geometry
            }
            _ => return Err(Unread(format!("Debezium writes it as {name}, which is not read here"))),
        })
    }

    /// What a column's type says, where the record says nothing.
    pub(crate) fn of_type(type_: &str, handling: Handling) -> Self {
        if let Some(element) = types::element(type_) {
            return Self::Array(Box::new(Self::of_type(element, handling)));
        }
        let arguments = types::arguments(type_);
        let fine = arguments.first().is_none_or(|digits| *digits > 3);
        match types::logical(type_) {
            Logical::Bool => Self::Bool,
            Logical::Int16 | Logical::Int32 | Logical::Int64 => Self::Int,
            Logical::Float32 => Self::Float32,
            Logical::Float64 => Self::Float64,
            Logical::Numeric => match (handling.decimal, arguments.is_empty()) {
                (DecimalMode::Precise, true) => Self::VariableDecimal,
                (DecimalMode::Precise, false) => Self::Decimal { scale: arguments.get(1).copied().unwrap_or(0) },
                (DecimalMode::Double, _) => Self::DecimalDouble,
                (DecimalMode::String, _) => Self::DecimalText,
            },
            Logical::Bytes => Self::of_bytes(handling.binary),
            Logical::Date if handling.time == TimePrecision::IsoString => Self::IsoDate,
            Logical::Date => Self::Days,
            Logical::Time => match handling.time {
                TimePrecision::Adaptive if !fine => Self::Time(Unit::Milli),
                TimePrecision::Connect => Self::Time(Unit::Milli),
                TimePrecision::IsoString => Self::IsoTime,
                TimePrecision::Nanoseconds => Self::Time(Unit::Nano),
                _ => Self::Time(Unit::Micro),
            },
            Logical::Timestamp => match handling.time {
                TimePrecision::Adaptive | TimePrecision::AdaptiveTimeMicroseconds if !fine => {
                    Self::Timestamp(Unit::Milli)
                }
                TimePrecision::Connect => Self::Timestamp(Unit::Milli),
                TimePrecision::IsoString => Self::IsoTimestamp,
                TimePrecision::Nanoseconds => Self::Timestamp(Unit::Nano),
                _ => Self::Timestamp(Unit::Micro),
            },
            Logical::TimeTz => Self::ZonedTime,
            Logical::TimestampTz => Self::ZonedTimestamp,
            Logical::Interval => Self::AnyInterval,
            Logical::Text | Logical::Uuid | Logical::Json | Logical::Jsonb | Logical::Dynamic => Self::Text,
            Logical::Opaque => match types::base(type_).as_str() {
                "bit" | "bit varying" | "varbit" => match bits(Some(type_)) {
                    Some(1) => Self::Bool,
                    length => Self::Bits { length: length.unwrap_or(0) },
                },
                "money" => match handling.decimal {
                    DecimalMode::Precise => Self::Decimal { scale: 2 },
                    DecimalMode::Double => Self::DecimalDouble,
                    DecimalMode::String => Self::DecimalText,
                },
                "oid" => Self::Int,
                "point" => Self::Point,
                "hstore" => Self::Hstore,
                "geometry" | "geography" => Self::Geometry,
                _ => Self::Text,
            },
        }
    }

    fn of_bytes(mode: BinaryMode) -> Self {
        match mode {
            BinaryMode::Bytes | BinaryMode::Base64 => Self::Base64,
            BinaryMode::Base64UrlSafe => Self::Base64UrlSafe,
            BinaryMode::Hex => Self::Hex,
        }
    }
}

/// How many bits a `bit(n)` has; nothing for other types, a bare `bit varying` among them.
fn bits(type_: Option<&str>) -> Option<usize> {
    let type_ = type_?;
    match types::base(type_).as_str() {
        "bit" => Some(types::arguments(type_).first().and_then(|length| usize::try_from(*length).ok()).unwrap_or(1)),
        "bit varying" | "varbit" => types::arguments(type_).first().and_then(|length| usize::try_from(*length).ok()),
        _ => None,
    }
}

/// The type that a schema stands for where nobody says more. Types of users and extensions become what carries their
/// text; what cannot be told apart takes the type that holds both.
pub(crate) fn type_of(schema: &Schema) -> Result<String, Unread> {
    let wire = Wire::of_schema(schema, None, Handling::default())?;
    let name = schema.name.as_deref().and_then(|name| name.rsplit('.').next()).unwrap_or_default();
    Ok(match (&wire, schema.kind.as_str(), name) {
        (Wire::Bool, ..) => "boolean".into(),
        (Wire::Int, "int8" | "int16", _) => "smallint".into(),
        (Wire::Int, "int32", _) => "integer".into(),
        (Wire::Int, ..) => "bigint".into(),
        (Wire::Float32, ..) => "real".into(),
        (Wire::Float64 | Wire::DecimalDouble, ..) => "double precision".into(),
        (Wire::Base64 | Wire::Base64UrlSafe | Wire::Hex, ..) => "bytea".into(),
        (Wire::Decimal { scale }, ..) => match schema.number("connect.decimal.precision") {
            Some(precision) => format!("numeric({precision},{scale})"),
            None => "numeric".into(),
        },
        (Wire::VariableDecimal | Wire::DecimalText, ..) => "numeric".into(),
        (Wire::Days | Wire::IsoDate, ..) => "date".into(),
        (Wire::Time(_) | Wire::IsoTime, ..) => "time without time zone".into(),
        (Wire::Timestamp(_) | Wire::IsoTimestamp, ..) => "timestamp without time zone".into(),
        (Wire::ZonedTime, ..) => "time with time zone".into(),
        (Wire::ZonedTimestamp, ..) => "timestamp with time zone".into(),
        (Wire::Duration(_) | Wire::IsoInterval | Wire::AnyInterval, ..) => "interval".into(),
        (Wire::Bits { .. }, ..) => "bit varying".into(),
        (Wire::Point, ..) => "point".into(),
        (Wire::Geometry, _, "Geography") => "geography".into(),
        (Wire::Geometry, ..) => "geometry".into(),
        (Wire::Hstore, ..) => "hstore".into(),
        (Wire::Text, _, "Uuid") => "uuid".into(),
        (Wire::Text, _, "Json") => "json".into(),
        (Wire::Text, _, "Xml") => "xml".into(),
        (Wire::Text, _, "Tsvector") => "tsvector".into(),
        (Wire::Text, ..) => "text".into(),
        (Wire::Array(_), ..) => {
            let items = schema.items.as_deref().ok_or_else(|| Unread("its array has no items".to_owned()))?;
            format!("{}[]", type_of(items)?)
        }
    })
}

/// What Debezium has lost of such a column's values before anybody reads them; empty where it tells all.
pub(crate) fn losses(wire: &Wire, type_: &str) -> Vec<&'static str> {
    let meaning = types::logical(type_);
    let mut found = Vec::new();
    match wire {
        Wire::Array(inside) => {
            found.push(
                "an array of several dimensions comes as an array of NULLs, and lower bounds other than 1 are gone",
            );
            if !told_when_unchanged(inside, types::element(type_).unwrap_or_default()) {
                found.push("a large value that an update leaves alone comes as NULL");
            }
            if matches!(**inside, Wire::Days | Wire::Timestamp(_) | Wire::ZonedTimestamp) {
                found.push("days and moments before 15 October 1582 are shifted, and those before Christ come as ones after");
            } else {
                found.extend(losses(inside, types::element(type_).unwrap_or_default()));
            }
        }
        Wire::Days => found.push(
            "in Debezium's snapshot a date before Christ comes as one after, and one of 5 to 14 October 1582 as another day",
        ),
        Wire::Decimal { .. } if meaning == Logical::Numeric => found.push("NaN comes as NULL"),
        Wire::VariableDecimal => {
            found.push("NaN and the infinities come as NULL, and zeros at the end of the fraction are gone");
            found.push("a large value that an update leaves alone comes as NULL");
        }
        Wire::DecimalDouble => found.push("it comes as a float: digits are lost, and NaN and the infinities may be"),
        Wire::DecimalText if meaning == Logical::Numeric => {
            found.push("a large value that an update leaves alone comes as NULL");
        }
        Wire::ZonedTime => found.push("24:00 comes as 00:00, and every offset as UTC"),
        Wire::IsoTime | Wire::IsoTimestamp | Wire::IsoDate => {
            found.push("values that ISO 8601 has no word for are changed")
        }
        Wire::Time(Unit::Milli) | Wire::Timestamp(Unit::Milli) if has_microseconds(type_) => {
            found.push("it comes in milliseconds: what is finer is cut off");
        }
        Wire::Duration(_) | Wire::AnyInterval => {
            found.push("an interval comes as one number of microseconds, its days and months reckoned in");
        }
        Wire::Bits { .. } if types::base(type_) != "bit" => found.push("how many bits a value had is not said"),
        _ => {}
    }
    found
}

/// Whether an array of these says that it is unchanged, rather than nothing.
fn told_when_unchanged(inside: &Wire, element: &str) -> bool {
    let meaning = types::logical(element);
    match inside {
        Wire::Text => matches!(meaning, Logical::Text | Logical::Json | Logical::Jsonb | Logical::Uuid),
        Wire::Int => matches!(meaning, Logical::Int32 | Logical::Int64),
        Wire::Base64 | Wire::Base64UrlSafe | Wire::Hex | Wire::Days => true,
        _ => false,
    }
}

fn has_microseconds(type_: &str) -> bool {
    types::arguments(type_).first().is_none_or(|digits| *digits > 3)
}
