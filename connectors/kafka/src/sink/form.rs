//! From a value in PostgreSQL's text form to JSON as Debezium's PostgreSQL connector writes it: the way back of
//! [`super::super::source`]'s `value`. Exact, or a fault: what a form cannot hold is never written as something else.

use super::nested;
use crate::source::{
    types,
    wire::{Handling, Unit, Wire},
};
use bigdecimal::num_bigint::BigInt;
use crossfade_event::{Cell, Column, ColumnType, Format, Interval, Logical, TimeTz, Value, codec};
use std::{borrow::Cow, fmt::Write as _};

/// Days between 1970-01-01 and 2000-01-01.
const EPOCH_DAYS: i64 = 10_957;
const DAY_US: i64 = 86_400_000_000;

/// A value that cannot be written; never holds it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// The form has no word for such a value.
    #[error("{0}")]
    Unsayable(&'static str),
    /// The bytes are no value of the column's type.
    #[error("it is no value of type {0}")]
    NotOfType(String),
}

/// How one column is written.
#[derive(Debug, Clone)]
pub(crate) struct Form {
    pub(crate) wire: Wire,
    type_: ColumnType,
    /// The length to which a `character(n)` is filled up: a cast to text takes its spaces away.
    padded: Option<usize>,
}

impl Form {
    pub(crate) fn of(column: &Column, handling: Handling) -> Self {
        let name = &*column.type_.name;
        let is_padded = matches!(types::base(name).as_str(), "character" | "char" | "bpchar");
        let padded = types::arguments(name).first().and_then(|length| usize::try_from(*length).ok());
        Self {
            wire: Wire::of_type(name, handling),
            type_: column.type_.clone(),
            padded: padded.filter(|_| is_padded && types::element(name).is_none()),
        }
    }

    /// Appends a cell's value.
    pub(crate) fn write(&self, bytes: &[u8], out: &mut String) -> Result<(), Fault> {
        let wrong = || Fault::NotOfType(self.type_.name.to_string());
        let text: Cow<'_, str> = match self.type_.format {
            Format::PgText => Cow::Borrowed(std::str::from_utf8(bytes).map_err(|_| wrong())?),
            Format::PgBinary | Format::Tagged => {
                Cow::Owned(codec::to_text(&codec::decode(&self.type_, bytes).map_err(|_| wrong())?))
            }
        };
        let text = match self.padded {
            Some(length) if text.chars().count() < length => {
                let missing = length - text.chars().count();
                Cow::Owned(format!("{text}{}", " ".repeat(missing)))
            }
            _ => text,
        };
        let before = out.len();
        write(&self.wire, &self.type_.name, &text, out).inspect_err(|_| out.truncate(before))
    }

    /// Appends the word for a value that an update left alone; false where the form has none.
    pub(crate) fn write_unchanged(&self, placeholder: &str, out: &mut String) -> bool {
        match &self.wire {
            Wire::Text => string(placeholder, out),
            Wire::Base64 => base64_string(placeholder.as_bytes(), out),
            Wire::Hstore => {
                let mut inside = String::new();
                inside.push('{');
                string(placeholder, &mut inside);
                inside.push(':');
                string(placeholder, &mut inside);
                inside.push('}');
                string(&inside, out);
            }
            Wire::Array(inside) if **inside == Wire::Text => {
                out.push('[');
                string(placeholder, out);
                out.push(']');
            }
            _ => return false,
        }
        true
    }

    /// Appends what a cell says, `null` included; false for a cell that says nothing.
    pub(crate) fn write_cell(&self, cell: Cell<'_>, out: &mut String) -> Result<bool, Fault> {
        match cell {
            Cell::Null => out.push_str("null"),
            Cell::Bytes(bytes) => self.write(bytes, out)?,
            Cell::Absent | Cell::Unchanged => return Ok(false),
        }
        Ok(true)
    }

    /// What Debezium's own JDBC sink connector cannot write of it.
    pub(crate) fn lost_by_jdbc(&self) -> Option<&'static str> {
        lost_by_jdbc(&self.wire, &self.type_.name)
    }

    /// Which of the type's values the form has no word for; `None` where it has one for each.
    pub(crate) fn unsayable(&self) -> Option<&'static str> {
        unsayable(&self.wire, &self.type_.name)
    }
}

/// What Debezium's own JDBC sink connector cannot write of a column into one of the same type in PostgreSQL; seen with its
/// version 3.6.
fn lost_by_jdbc(wire: &Wire, type_: &str) -> Option<&'static str> {
    Some(match wire {
        Wire::Float32 | Wire::Float64 => "NaN and the infinities become 0",
        Wire::Bool if types::base(type_) == "bit" => "a bit(1) is told as a boolean, and PostgreSQL takes none for it",
        Wire::Bits { .. } if types::base(type_) != "bit" => "a bit varying is filled up with zeros to whole bytes",
        Wire::Point | Wire::Geometry => "it wants PostGIS for it",
        Wire::Hstore => "an hstore is told as JSON, and PostgreSQL takes none for it",
        Wire::Array(inside) => match **inside {
            Wire::Int | Wire::Text | Wire::Bool => return None,
            Wire::Float32 | Wire::Float64 => "NaN and the infinities among its elements become 0",
            _ => "it fails at arrays but of whole numbers, floats, booleans and texts",
        },
        _ => return None,
    })
}

fn unsayable(wire: &Wire, type_: &str) -> Option<&'static str> {
    Some(match wire {
        Wire::Array(inside) => {
            return Some(match unsayable(inside, types::element(type_).unwrap_or_default()) {
                None => "arrays of several dimensions and lower bounds other than 1 have no form here",
                Some(_) => {
                    "arrays of several dimensions, lower bounds other than 1, and elements that have no form by themselves have none here"
                }
            });
        }
        Wire::Decimal { .. } | Wire::VariableDecimal if types::base(type_) == "money" => {
            "amounts that are not written as with lc_monetary = C have no form here"
        }
        Wire::Decimal { .. } | Wire::VariableDecimal => {
            "NaN and the infinities have no form here; decimal = \"string\" has one"
        }
        Wire::Days => "infinity has no form here",
        Wire::Timestamp(_) => "infinity has no form here, and neither has a moment after the year 294246",
        Wire::Time(_) | Wire::ZonedTime => "24:00 has no form here",
        Wire::AnyInterval | Wire::IsoInterval => "infinity has no form here",
        Wire::Bits { .. } if types::base(type_) != "bit" => "zeros in front have no form here",
        Wire::Geometry => "it has no form here",
        _ => return None,
    })
}

fn write(wire: &Wire, type_: &str, text: &str, out: &mut String) -> Result<(), Fault> {
    let wrong = || Fault::NotOfType(type_.to_owned());
    let value = |meaning: Logical| codec::from_text(meaning, text).ok_or_else(wrong);
    match wire {
        Wire::Bool => match text {
            "t" | "true" | "1" => out.push_str("true"),
            "f" | "false" | "0" => out.push_str("false"),
            _ => return Err(wrong()),
        },
        Wire::Int => {
            text.parse::<i64>().map_err(|_| wrong())?;
            out.push_str(text);
        }
        Wire::Float32 | Wire::Float64 => float(text, out).ok_or_else(wrong)?,
        Wire::Text => string(text, out),
        Wire::Base64 => match value(Logical::Bytes)? {
            Value::Bytes(bytes) => base64_string(&bytes, out),
            _ => return Err(wrong()),
        },
        Wire::Decimal { scale } => {
            let plain = if types::base(type_) == "money" { money(text)? } else { Cow::Borrowed(text) };
            let (unscaled, found) = unscaled(&plain)?;
            let missing = usize::try_from(*scale).ok().and_then(|scale| scale.checked_sub(found)).ok_or_else(wrong)?;
            base64_string(&twos_complement(&unscaled, missing).ok_or_else(wrong)?, out);
        }
        Wire::VariableDecimal => {
            let (unscaled, scale) = unscaled(text)?;
            let _ = write!(out, "{{\"scale\":{scale},\"value\":");
            base64_string(&twos_complement(&unscaled, 0).ok_or_else(wrong)?, out);
            out.push('}');
        }
        Wire::DecimalText => string(text, out),
        Wire::Days => match value(Logical::Date)? {
            Value::Date(i32::MAX | i32::MIN) => return Err(Fault::Unsayable("infinity has no form as a date here")),
            Value::Date(days) => number(i64::from(days) + EPOCH_DAYS, out),
            _ => return Err(wrong()),
        },
        Wire::Time(unit) => match value(Logical::Time)? {
            Value::Time(DAY_US) => return Err(Fault::Unsayable("24:00 has no form as a time of day here")),
            Value::Time(time) => number(in_unit(time, *unit)?, out),
            _ => return Err(wrong()),
        },
        Wire::Timestamp(unit) => match value(Logical::Timestamp)? {
            Value::Timestamp(i64::MAX | i64::MIN) => {
                return Err(Fault::Unsayable("infinity has no form as a timestamp here"));
            }
            Value::Timestamp(since) => {
                let micros = since.checked_add(EPOCH_DAYS * DAY_US).filter(|micros| *micros != i64::MAX);
                let micros = micros.ok_or(Fault::Unsayable("the moment is later than the form can say"))?;
                number(in_unit(micros, *unit)?, out);
            }
            _ => return Err(wrong()),
        },
        Wire::ZonedTime => match value(Logical::TimeTz)? {
            Value::TimeTz(time) => zoned_time(time, out)?,
            _ => return Err(wrong()),
        },
        Wire::ZonedTimestamp => match value(Logical::TimestampTz)? {
            Value::TimestampTz(i64::MAX) => string("infinity", out),
            Value::TimestampTz(i64::MIN) => string("-infinity", out),
            Value::TimestampTz(since) => zoned_timestamp(since, out),
            _ => return Err(wrong()),
        },
        Wire::AnyInterval | Wire::IsoInterval => match value(Logical::Interval)? {
            Value::Interval(interval) => iso_interval(interval, out)?,
            _ => return Err(wrong()),
        },
        Wire::Bits { length } => bits(text, *length, types::base(type_) == "bit", out).ok_or_else(wrong)??,
        Wire::Point => point(text, out).ok_or_else(wrong)?,
        Wire::Hstore => {
            let json = nested::hstore(text).ok_or_else(wrong)?;
            string(&json, out);
        }
        Wire::Array(inside) => array(inside, types::element(type_).unwrap_or_default(), text, out)?,
        Wire::Geometry => return Err(Fault::Unsayable("PostGIS's types have no form here")),
        // Forms that are only read: no column is given one.
        Wire::Base64UrlSafe
        | Wire::Hex
        | Wire::DecimalDouble
        | Wire::IsoDate
        | Wire::IsoTime
        | Wire::IsoTimestamp
        | Wire::Duration(_) => return Err(Fault::Unsayable("the column has no form here")),
    }
    Ok(())
}

fn number(value: i64, out: &mut String) {
    // Writing into a text never fails.
    let _ = write!(out, "{value}");
}

/// A JSON text.
pub(crate) fn string(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if u32::from(c) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// PostgreSQL's shortest exact spelling is a JSON number but for the three that are none.
fn float(text: &str, out: &mut String) -> Option<()> {
    match text {
        "NaN" | "Infinity" | "-Infinity" => string(text, out),
        // A reader that takes it for a whole number would lose the sign.
        "-0" => out.push_str("-0.0"),
        text => {
            let value: f64 = text.parse().ok()?;
            if !value.is_finite() || !text.starts_with(|c: char| c == '-' || c.is_ascii_digit()) {
                return None;
            }
            out.push_str(text);
        }
    }
    Some(())
}

/// base64 as a JSON text.
pub(crate) fn base64_string(bytes: &[u8], out: &mut String) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let letter = |six: u32| ALPHABET.get((six & 63) as usize).copied().map_or('=', char::from);
    out.push('"');
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| chunk.get(at).copied().map_or(0, u32::from);
        let held = byte(0) << 16 | byte(1) << 8 | byte(2);
        out.push(letter(held >> 18));
        out.push(letter(held >> 12));
        out.push(if chunk.len() > 1 { letter(held >> 6) } else { '=' });
        out.push(if chunk.len() > 2 { letter(held) } else { '=' });
    }
    out.push('"');
}

/// The digits without the point, and how many stood behind it.
fn unscaled(text: &str) -> Result<(Cow<'_, str>, usize), Fault> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(Fault::Unsayable("NaN and the infinities have no form as a decimal here"));
    }
    Ok(match text.split_once('.') {
        None => (Cow::Borrowed(text), 0),
        Some((whole, fraction)) => (Cow::Owned(format!("{whole}{fraction}")), fraction.len()),
    })
}

/// The highest byte first, as few as hold the number; `zeros` are appended to its digits.
fn twos_complement(digits: &str, zeros: usize) -> Option<Vec<u8>> {
    if digits.len() + zeros <= 18 {
        let scaled = digits.parse::<i64>().ok()?.checked_mul(10i64.checked_pow(u32::try_from(zeros).ok()?)?)?;
        let bytes = scaled.to_be_bytes();
        let sign = if scaled < 0 { 0xff } else { 0 };
        let is_spare = |at: usize| {
            let next = bytes.get(at + 1).copied().unwrap_or_default();
            bytes.get(at) == Some(&sign) && (next & 0x80) == (sign & 0x80)
        };
        let first = (0..7).find(|at| !is_spare(*at)).unwrap_or(7);
        return bytes.get(first..).map(<[u8]>::to_vec);
    }
    let digits = format!("{digits}{}", "0".repeat(zeros));
    Some(BigInt::parse_bytes(digits.as_bytes(), 10)?.to_signed_bytes_be())
}

/// `-$1,234.50` as `-1234.50`; what another `lc_monetary` writes is not read.
fn money(text: &str) -> Result<Cow<'_, str>, Fault> {
    const FAULT: Fault = Fault::Unsayable("only amounts as lc_monetary = C writes them have a form here");
    let (sign, rest) = text.strip_prefix('-').map_or(("", text), |rest| ("-", rest));
    let digits = rest.strip_prefix('$').ok_or(FAULT)?.replace(',', "");
    let is_amount = digits.split_once('.').is_some_and(|(whole, cents)| {
        cents.len() == 2 && !whole.is_empty() && whole.bytes().chain(cents.bytes()).all(|byte| byte.is_ascii_digit())
    });
    if is_amount { Ok(Cow::Owned(format!("{sign}{digits}"))) } else { Err(FAULT) }
}

fn in_unit(micros: i64, unit: Unit) -> Result<i64, Fault> {
    match unit {
        Unit::Micro => Ok(micros),
        Unit::Milli if micros % 1_000 == 0 => Ok(micros / 1_000),
        Unit::Milli => Err(Fault::Unsayable("it is finer than the column's milliseconds")),
        Unit::Nano => micros.checked_mul(1_000).ok_or(Fault::Unsayable("the moment is later than the form can say")),
    }
}

/// `hh:mm:ss[.fraction]`
fn clock(micros: i64, out: &mut String) {
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    let _ = write!(out, "{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60);
    if fraction > 0 {
        let digits = format!("{fraction:06}");
        let _ = write!(out, ".{}", digits.trim_end_matches('0'));
    }
}

fn zoned_time(time: TimeTz, out: &mut String) -> Result<(), Fault> {
    if time.microseconds >= DAY_US {
        return Err(Fault::Unsayable("24:00 has no form as a time of day here"));
    }
    out.push('"');
    clock(time.microseconds, out);
    match time.seconds_west {
        0 => out.push('Z'),
        west => {
            let (sign, seconds) = if west > 0 { ('-', west) } else { ('+', -west) };
            let _ = write!(out, "{sign}{:02}:{:02}", seconds / 3_600, seconds / 60 % 60);
            if seconds % 60 > 0 {
                let _ = write!(out, ":{:02}", seconds % 60);
            }
        }
    }
    out.push('"');
    Ok(())
}

fn zoned_timestamp(since: i64, out: &mut String) {
    let (year, month, day) = codec::civil_from_days(since.div_euclid(DAY_US));
    out.push('"');
    match year {
        0..=9_999 => {
            let _ = write!(out, "{year:04}");
        }
        later if later > 0 => {
            let _ = write!(out, "+{later}");
        }
        before => {
            let _ = write!(out, "-{:04}", -before);
        }
    }
    let _ = write!(out, "-{month:02}-{day:02}T");
    clock(since.rem_euclid(DAY_US), out);
    out.push_str("Z\"");
}

/// `P1Y2M3DT4H5M6.7S`, each part with a sign of its own.
fn iso_interval(interval: Interval, out: &mut String) -> Result<(), Fault> {
    let Interval { months, days, microseconds } = interval;
    let extremes = [(i32::MAX, i32::MAX, i64::MAX), (i32::MIN, i32::MIN, i64::MIN)];
    if extremes.contains(&(months, days, microseconds)) {
        return Err(Fault::Unsayable("infinity has no form as an interval here"));
    }
    let _ = write!(out, "\"P{}Y{}M{days}DT", months / 12, months % 12);
    let left = microseconds.unsigned_abs();
    let sign = if microseconds < 0 { "-" } else { "" };
    let signed = |value: u64| if value == 0 { "0".to_owned() } else { format!("{sign}{value}") };
    let (hours, minutes, rest) = (left / 3_600_000_000, left / 60_000_000 % 60, left % 60_000_000);
    let _ = write!(out, "{}H{}M", signed(hours), signed(minutes));
    let (seconds, fraction) = (rest / 1_000_000, rest % 1_000_000);
    match fraction {
        0 => out.push_str(&signed(seconds)),
        fraction => {
            let digits = format!("{fraction:06}");
            let _ = write!(out, "{sign}{seconds}.{}", digits.trim_end_matches('0'));
        }
    }
    out.push_str("S\"");
    Ok(())
}

/// The lowest bit first, eight a byte; PostgreSQL writes the highest first. Where the length is not said, a value is
/// told from others only by its highest bit that is set.
fn bits(text: &str, length: usize, is_fixed: bool, out: &mut String) -> Option<Result<(), Fault>> {
    if text.is_empty() || !text.bytes().all(|bit| matches!(bit, b'0' | b'1')) {
        return if text.is_empty() && !is_fixed { Some(Err(ZEROS)) } else { None };
    }
    if !is_fixed && text != "0" && !text.starts_with('1') {
        return Some(Err(ZEROS));
    }
    if is_fixed && text.len() != length {
        return None;
    }
    let mut bytes = vec![0u8; text.len().div_ceil(8)];
    for (at, bit) in text.bytes().rev().enumerate() {
        if let Some(byte) = bytes.get_mut(at / 8) {
            *byte |= (bit - b'0') << (at % 8);
        }
    }
    base64_string(&bytes, out);
    Some(Ok(()))
}

const ZEROS: Fault = Fault::Unsayable("bits with zeros in front have no form as a bit varying here");

/// `(x,y)`, with its well-known bytes beside, as Debezium writes it.
fn point(text: &str, out: &mut String) -> Option<()> {
    let (x, y) = text.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
    out.push_str("{\"x\":");
    float(x, out)?;
    out.push_str(",\"y\":");
    float(y, out)?;
    let mut bytes = vec![1, 1, 0, 0, 0];
    for place in [x, y] {
        bytes.extend_from_slice(&place.parse::<f64>().ok()?.to_le_bytes());
    }
    out.push_str(",\"wkb\":");
    base64_string(&bytes, out);
    out.push_str(",\"srid\":null}");
    Some(())
}

fn array(inside: &Wire, element: &str, text: &str, out: &mut String) -> Result<(), Fault> {
    let items = nested::array(text, element)?;
    out.push('[');
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        match item {
            None => out.push_str("null"),
            Some(item) => write(inside, element, item, out)?,
        }
    }
    out.push(']');
    Ok(())
}

#[cfg(test)]
mod tests;
