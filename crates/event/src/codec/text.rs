//! PostgreSQL's text forms.

use super::{Fault, datetime, fits, float, interval, numeric};
use crate::{Logical, Value};
use bytes::{BufMut, BytesMut};

pub(super) fn parse(logical: Logical, text: &str) -> Option<Value> {
    Some(match logical {
        Logical::Bool => Value::Bool(match text {
            "t" => true,
            "f" => false,
            _ => return None,
        }),
        Logical::Int16 => Value::Int(int(text)?).in_range(i16::MIN.into(), i16::MAX.into())?,
        Logical::Int32 => Value::Int(int(text)?).in_range(i32::MIN.into(), i32::MAX.into())?,
        Logical::Int64 => Value::Int(int(text)?),
        Logical::Float32 => Value::Float32(float::is_printed(text).then(|| text.parse().ok())??),
        Logical::Float64 => Value::Float64(float::is_printed(text).then(|| text.parse().ok())??),
        Logical::Numeric => Value::Numeric(numeric::parse(text)?),
        Logical::Text => Value::Text(text.to_owned()),
        Logical::Bytes => Value::Bytes(hex(text.strip_prefix("\\x")?)?),
        Logical::Date => Value::Date(datetime::parse_date(text)?),
        Logical::Time => Value::Time(datetime::parse_time(text)?),
        Logical::TimeTz => Value::TimeTz(datetime::parse_timetz(text)?),
        Logical::Timestamp => Value::Timestamp(datetime::parse_timestamp(text, false)?),
        Logical::TimestampTz => Value::TimestampTz(datetime::parse_timestamp(text, true)?),
        Logical::Interval => Value::Interval(interval::parse(text)?),
        Logical::Uuid => Value::Uuid(uuid(text)?),
        Logical::Json => Value::Json(text.to_owned()),
        Logical::Jsonb => Value::Jsonb(text.to_owned()),
        Logical::Opaque => Value::Other(text.to_owned()),
        Logical::Dynamic => return None,
    })
}

pub(super) fn encode(logical: Logical, value: &Value, out: &mut BytesMut) -> Result<(), Fault> {
    fits(logical, value)?;
    match value {
        // No copy for what is text already.
        Value::Text(text) | Value::Json(text) | Value::Jsonb(text) | Value::Other(text) => {
            out.put_slice(text.as_bytes());
        }
        value => out.put_slice(print(value).as_bytes()),
    }
    Ok(())
}

pub(super) fn print(value: &Value) -> String {
    match value {
        Value::Bool(true) => "t".to_owned(),
        Value::Bool(false) => "f".to_owned(),
        Value::Int(int) => int.to_string(),
        Value::Float32(float) => float::print_f32(*float),
        Value::Float64(float) => float::print_f64(*float),
        Value::Numeric(numeric) => numeric::print(numeric).to_owned(),
        Value::Text(text) | Value::Json(text) | Value::Jsonb(text) | Value::Other(text) => text.clone(),
        Value::RawText(bytes) | Value::Bytes(bytes) => print_hex(bytes),
        Value::Date(days) => datetime::print_date(*days),
        Value::Time(time) => datetime::print_time(*time),
        Value::TimeTz(time) => datetime::print_timetz(*time),
        Value::Timestamp(at) => datetime::print_timestamp(*at, ""),
        Value::TimestampTz(at) => datetime::print_timestamp(*at, "+00"),
        Value::Interval(interval) => interval::print(*interval),
        Value::Uuid(uuid) => print_uuid(uuid),
    }
}

impl Value {
    fn in_range(self, lowest: i64, highest: i64) -> Option<Self> {
        matches!(self, Self::Int(int) if (lowest..=highest).contains(&int)).then_some(self)
    }
}

/// No plus sign, no leading zeros, no minus zero: what PostgreSQL prints.
fn int(text: &str) -> Option<i64> {
    let value: i64 = text.parse().ok()?;
    let digits = text.strip_prefix('-').unwrap_or(text);
    let canonical = digits.starts_with(|c: char| c.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    (canonical && text != "-0").then_some(value)
}

fn nibble(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let mut pairs = text.as_bytes().chunks_exact(2);
    let bytes = pairs
        .by_ref()
        .map(|pair| match pair {
            [high, low] => Some(nibble(*high)? << 4 | nibble(*low)?),
            _ => None,
        })
        .collect();
    if pairs.remainder().is_empty() { bytes } else { None }
}

fn hex_digits(bytes: &[u8], out: &mut String) {
    for byte in bytes {
        out.extend([byte >> 4, byte & 15].map(|n| char::from_digit(n.into(), 16).unwrap_or('0')));
    }
}

fn print_hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 + bytes.len() * 2);
    text.push_str("\\x");
    hex_digits(bytes, &mut text);
    text
}

fn print_uuid(uuid: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in uuid.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        hex_digits(&[*byte], &mut text);
    }
    text
}

fn uuid(text: &str) -> Option<[u8; 16]> {
    let bytes = text.as_bytes();
    let dashes = [8, 13, 18, 23].iter().all(|at| bytes.get(*at) == Some(&b'-'));
    if bytes.len() != 36 || !dashes {
        return None;
    }
    hex(&text.split('-').collect::<String>())?.try_into().ok()
}
