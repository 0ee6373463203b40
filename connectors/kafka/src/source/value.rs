//! From a value as Debezium wrote it to PostgreSQL's text form of it. Exact, or an error: nothing is guessed.

use super::{
    types,
    wire::{Unit, Wire},
};
use bigdecimal::num_bigint::{BigInt, Sign};
use crossfade_event::{Interval, Logical, Numeric, TimeTz, Value, codec};
use serde_json::Value as Json;

/// What a cell says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Read {
    Null,
    Unchanged,
    Text(String),
}

/// What stands where an update left a large value alone.
#[derive(Debug, Clone)]
pub(crate) struct Placeholder {
    text: String,
    uuid: Option<&'static str>,
}

/// What connectors write unless told otherwise.
pub(crate) const PLACEHOLDER: &str = "__debezium_unavailable_value";

/// The UUID that Java makes of the bytes of [`PLACEHOLDER`].
const PLACEHOLDER_UUID: &str = "b68a35a7-17ad-35b3-af2a-ae46edb4545a";

/// Days between 1970-01-01 and 2000-01-01.
const EPOCH_DAYS: i64 = 10_957;
const DAY_US: i64 = 86_400_000_000;

impl Placeholder {
    pub(crate) fn new(text: &str) -> Self {
        Self { text: text.to_owned(), uuid: (text == PLACEHOLDER).then_some(PLACEHOLDER_UUID) }
    }

    /// Whether the value is no value, but the word for "as it was".
    fn is(&self, wire: &Wire, json: &Json) -> bool {
        match (wire, json) {
            (Wire::Text, Json::String(text)) => *text == self.text,
            (Wire::Base64 | Wire::Base64UrlSafe, Json::String(text)) => {
                base64(text).is_some_and(|bytes| bytes == self.text.as_bytes())
            }
            (Wire::Hex, Json::String(text)) => hex(text).is_some_and(|bytes| bytes == self.text.as_bytes()),
            (Wire::Hstore, Json::String(text)) if *text == self.text => true,
            (Wire::Hstore, _) => pairs(json).is_some_and(
                |pairs| matches!(pairs.as_slice(), [(key, Some(value))] if *key == self.text && *value == self.text),
            ),
            (Wire::Array(inside), Json::Array(items)) => match (&**inside, items.as_slice()) {
                (Wire::Text, [Json::String(one)]) => *one == self.text || Some(one.as_str()) == self.uuid,
                (Wire::Int | Wire::Days, items) if items.len() == self.text.len() => {
                    items.iter().zip(self.text.bytes()).all(|(item, byte)| item.as_i64() == Some(i64::from(byte)))
                }
                (inside, [one]) => self.is(inside, one),
                _ => false,
            },
            _ => false,
        }
    }
}

/// A value that cannot be read; never holds it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("it is a {found} where the column's type needs {wanted}")]
    Kind { found: &'static str, wanted: &'static str },
    #[error("it is no value of type {0}")]
    NotOfType(String),
}

/// Reads one value of a column of this type.
pub(crate) fn read(
    wire: &Wire,
    type_: &str,
    meaning: Logical,
    json: &Json,
    placeholder: &Placeholder,
) -> Result<Read, Fault> {
    if json.is_null() {
        return Ok(Read::Null);
    }
    if placeholder.is(wire, json) {
        return Ok(Read::Unchanged);
    }
    let text = text(wire, type_, json)?;
    // What PostgreSQL itself would not have written is none of its values.
    let known = meaning == Logical::Opaque || codec::from_text(meaning, &text).is_some();
    if known && !text.contains('\0') { Ok(Read::Text(text)) } else { Err(Fault::NotOfType(type_.to_owned())) }
}

fn text(wire: &Wire, type_: &str, json: &Json) -> Result<String, Fault> {
    let wrong = || Fault::NotOfType(type_.to_owned());
    Ok(match wire {
        Wire::Bool => match (json, types::base(type_).as_str()) {
            (Json::Bool(value), "bit" | "bit varying" | "varbit") => if *value { "1" } else { "0" }.to_owned(),
            (Json::Bool(value), _) => codec::to_text(&Value::Bool(*value)),
            (other, _) => return Err(kind(other, "true or false")),
        },
        Wire::Int => int(json)?.to_string(),
        Wire::Float32 => {
            let text = number(json)?;
            codec::to_text(&Value::Float32(text.parse().map_err(|_| wrong())?))
        }
        Wire::Float64 => {
            let value: f64 = number(json)?.parse().map_err(|_| wrong())?;
            codec::to_text(&Value::Float64(value))
        }
        Wire::Text => string(json)?.to_owned(),
        Wire::Base64 | Wire::Base64UrlSafe => codec::to_text(&Value::Bytes(base64(string(json)?).ok_or_else(wrong)?)),
        Wire::Hex => codec::to_text(&Value::Bytes(hex(string(json)?).ok_or_else(wrong)?)),
        Wire::Decimal { scale } => decimal(&base64(string(json)?).ok_or_else(wrong)?, *scale).ok_or_else(wrong)?,
        Wire::VariableDecimal => {
            let scale = json.get("scale").and_then(Json::as_i64).ok_or_else(|| kind(json, "a scale and a value"))?;
            let value = json.get("value").ok_or_else(|| kind(json, "a scale and a value"))?;
            decimal(&base64(string(value)?).ok_or_else(wrong)?, scale).ok_or_else(wrong)?
        }
        Wire::DecimalText | Wire::DecimalDouble => {
            let said = if *wire == Wire::DecimalText { string(json)?.to_owned() } else { number(json)? };
            codec::to_text(&Value::Numeric(Numeric::parse(&said).ok_or_else(wrong)?))
        }
        Wire::Days => date(int(json)?).ok_or_else(wrong)?,
        Wire::Time(unit) => codec::to_text(&Value::Time(
            micros(int(json)?, *unit).filter(|time| (0..=DAY_US).contains(time)).ok_or_else(wrong)?,
        )),
        Wire::Timestamp(unit) => codec::to_text(&Value::Timestamp(moment(int(json)?, *unit).ok_or_else(wrong)?)),
        Wire::ZonedTime => zoned_time(string(json)?).ok_or_else(wrong)?,
        Wire::ZonedTimestamp => zoned_timestamp(string(json)?).ok_or_else(wrong)?,
        Wire::IsoDate => iso_date(string(json)?).ok_or_else(wrong)?,
        Wire::IsoTime => {
            let (time, _) = iso_time(string(json)?).ok_or_else(wrong)?;
            codec::to_text(&Value::Time(time))
        }
        Wire::IsoTimestamp => codec::to_text(&Value::Timestamp(iso_moment(string(json)?).ok_or_else(wrong)?)),
        Wire::Duration(unit) => duration(int(json)?, *unit).ok_or_else(wrong)?,
        Wire::IsoInterval => iso_interval(string(json)?).ok_or_else(wrong)?,
        Wire::AnyInterval if json.is_string() => iso_interval(string(json)?).ok_or_else(wrong)?,
        Wire::AnyInterval => duration(int(json)?, Unit::Micro).ok_or_else(wrong)?,
        Wire::Bits { length } => bits(&base64(string(json)?).ok_or_else(wrong)?, *length, type_).ok_or_else(wrong)?,
        Wire::Point => {
            let place = |axis: &str| {
                let place = json.get(axis).ok_or_else(|| kind(json, "an x and a y"))?;
                Ok(codec::to_text(&Value::Float64(number(place)?.parse().map_err(|_| wrong())?)))
            };
            format!("({},{})", place("x")?, place("y")?)
        }
        Wire::Geometry => {
            let bytes = json.get("wkb").ok_or_else(|| kind(json, "well-known bytes"))?;
            let bytes = base64(string(bytes)?).ok_or_else(wrong)?;
            bytes.iter().map(|byte| format!("{byte:02X}")).collect()
        }
        Wire::Hstore => hstore(pairs(json).ok_or_else(wrong)?),
        Wire::Array(inside) => array(inside, types::element(type_).unwrap_or_default(), json)?,
    })
}

fn kind(found: &Json, wanted: &'static str) -> Fault {
    let found = match found {
        Json::Null => "null",
        Json::Bool(_) => "truth value",
        Json::Number(_) => "number",
        Json::String(_) => "text",
        Json::Array(_) => "list",
        Json::Object(_) => "object",
    };
    Fault::Kind { found, wanted }
}

fn string(json: &Json) -> Result<&str, Fault> {
    json.as_str().ok_or_else(|| kind(json, "a text"))
}

fn int(json: &Json) -> Result<i64, Fault> {
    json.as_i64().ok_or_else(|| kind(json, "a whole number"))
}

/// A number in its own digits; NaN and the infinities come as texts.
fn number(json: &Json) -> Result<String, Fault> {
    match json {
        Json::Number(number) => Ok(number.to_string()),
        Json::String(text) if matches!(text.as_str(), "NaN" | "Infinity" | "-Infinity") => Ok(text.clone()),
        other => Err(kind(other, "a number")),
    }
}

/// Two's complement, the highest byte first.
fn decimal(bytes: &[u8], scale: i64) -> Option<String> {
    let (sign, digits) = BigInt::from_signed_bytes_be(bytes).into_parts();
    let numeric = Numeric::from_digits(sign == Sign::Minus, &digits.to_str_radix(10), scale)?;
    Some(codec::to_text(&Value::Numeric(numeric)))
}

/// Days since 1970 that stand for the infinities: in the stream PostgreSQL's own numbers, run over; in snapshots and arrays
/// what is left of the driver's. None of them is a day that PostgreSQL has.
const INFINITE_DAYS: [(i64, i32); 4] =
    [(-2_147_472_692, i32::MAX), (-622_191_234, i32::MAX), (-2_147_472_691, i32::MIN), (-625_821_272, i32::MIN)];

/// The first day that PostgreSQL has, in days since 2000, and the one after the last.
const DAYS: std::ops::Range<i64> = -2_451_545..2_145_031_949;

fn date(days: i64) -> Option<String> {
    let infinite = INFINITE_DAYS.iter().find(|(said, _)| *said == days).map(|(_, infinite)| *infinite);
    let day = || i32::try_from(Some(days - EPOCH_DAYS).filter(|day| DAYS.contains(day))?).ok();
    Some(codec::to_text(&Value::Date(infinite.or_else(day)?)))
}

fn micros(count: i64, unit: Unit) -> Option<i64> {
    i64::try_from(wide_micros(count, unit)?).ok()
}

fn wide_micros(count: i64, unit: Unit) -> Option<i128> {
    let count = i128::from(count);
    match unit {
        Unit::Milli => Some(count * 1_000),
        Unit::Micro => Some(count),
        // PostgreSQL has nothing finer than microseconds.
        Unit::Nano => (count % 1_000 == 0).then_some(count / 1_000),
    }
}

/// Microseconds since 1970 that stand for the infinities: the driver's own numbers for them.
const INFINITE_MICROS: [(i128, i64); 2] =
    [(9_223_372_036_825_200_000, i64::MAX), (-9_223_372_036_832_400_000, i64::MIN)];

/// The first moment that PostgreSQL has, in microseconds since 2000, and the one after the last.
const MOMENTS: std::ops::Range<i128> = -211_813_488_000_000_000..9_223_371_331_200_000_000;

/// Since 2000.
fn moment(count: i64, unit: Unit) -> Option<i64> {
    let micros = wide_micros(count, unit)?;
    if let Some((_, infinite)) = INFINITE_MICROS.iter().find(|(said, _)| *said == micros) {
        return Some(*infinite);
    }
    // A later moment than the connector can write comes as the last one that it can.
    let is_capped = unit == Unit::Micro && count == i64::MAX;
    let since = micros - i128::from(EPOCH_DAYS * DAY_US);
    i64::try_from(Some(since).filter(|since| MOMENTS.contains(since) && !is_capped)?).ok()
}

fn duration(count: i64, unit: Unit) -> Option<String> {
    let microseconds = micros(count, unit)?;
    Some(codec::to_text(&Value::Interval(Interval { months: 0, days: 0, microseconds })))
}

/// `hh:mm[:ss[.fraction]]` and what follows it.
fn iso_time(text: &str) -> Option<(i64, &str)> {
    let end = text.find(['Z', '+', '-']).unwrap_or(text.len());
    let (clock, zone) = text.split_at_checked(end)?;
    let mut parts = clock.split(':');
    let (hours, minutes, seconds) = (parts.next()?, parts.next()?, parts.next().unwrap_or("00"));
    if parts.next().is_some() {
        return None;
    }
    let (whole, fraction) = seconds.split_once('.').unwrap_or((seconds, ""));
    let fraction = fraction.trim_end_matches('0');
    let two = |text: &str| {
        (text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse::<i64>().ok())?
    };
    if fraction.len() > 6 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let fraction: i64 = format!("{fraction:0<6}").parse().ok()?;
    let (hours, minutes, seconds) = (two(hours)?, two(minutes)?, two(whole)?);
    let time = ((hours * 60 + minutes) * 60 + seconds) * 1_000_000 + fraction;
    (minutes < 60 && seconds < 60 && (0..=DAY_US).contains(&time)).then_some((time, zone))
}

/// Seconds east of UTC.
fn zone(text: &str) -> Option<i32> {
    if text == "Z" {
        return Some(0);
    }
    let sign = match text.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let mut seconds = 0;
    let mut unit = 3_600;
    for part in text.get(1..)?.split(':') {
        seconds += part.parse::<i32>().ok().filter(|_| part.len() == 2 && unit > 0)? * unit;
        unit /= 60;
    }
    Some(sign * seconds)
}

fn zoned_time(text: &str) -> Option<String> {
    let (microseconds, rest) = iso_time(text)?;
    Some(codec::to_text(&Value::TimeTz(TimeTz { microseconds, seconds_west: -zone(rest)? })))
}

/// Days since 2000 of `[+-]yyyy-mm-dd`; the year zero is 1 BC.
fn iso_days(text: &str) -> Option<i64> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => (-1, text.get(1..)?),
        b'+' => (1, text.get(1..)?),
        _ => (1, text),
    };
    let mut parts = digits.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    codec::days_from_civil(sign * year.parse::<i64>().ok()?, month.parse().ok()?, day.parse().ok()?)
}

fn iso_date(text: &str) -> Option<String> {
    let days = match text {
        "infinity" => i32::MAX,
        "-infinity" => i32::MIN,
        text => i32::try_from(iso_days(text.strip_suffix('Z').unwrap_or(text))?).ok()?,
    };
    Some(codec::to_text(&Value::Date(days)))
}

/// What becomes of `-infinity` in an array of moments; PostgreSQL has no such moment.
const ARRAY_INFINITY: &str = "+292269055-12-02T23:00:00.000000Z";

/// Microseconds since 2000, the offset reckoned in.
fn iso_moment(text: &str) -> Option<i64> {
    match text {
        "infinity" => return Some(i64::MAX),
        "-infinity" | ARRAY_INFINITY => return Some(i64::MIN),
        _ => {}
    }
    let (date, time) = text.split_once('T')?;
    let (time, rest) = iso_time(time)?;
    let east = if rest.is_empty() { 0 } else { zone(rest)? };
    iso_days(date)?.checked_mul(DAY_US)?.checked_add(time)?.checked_sub(i64::from(east) * 1_000_000)
}

fn zoned_timestamp(text: &str) -> Option<String> {
    Some(codec::to_text(&Value::TimestampTz(iso_moment(text)?)))
}

/// `P1Y2M3DT4H5M6.7S`, each part with a sign of its own.
fn iso_interval(text: &str) -> Option<String> {
    let (date, time) = text.strip_prefix('P')?.split_once('T').unwrap_or((text.get(1..)?, ""));
    let mut interval = Interval { months: 0, days: 0, microseconds: 0 };
    for (unit, count) in parts(date)? {
        let count: i32 = count.parse().ok()?;
        match unit {
            'Y' => interval.months = interval.months.checked_add(count.checked_mul(12)?)?,
            'M' => interval.months = interval.months.checked_add(count)?,
            'D' => interval.days = interval.days.checked_add(count)?,
            _ => return None,
        }
    }
    for (unit, count) in parts(time)? {
        let seconds = match unit {
            'H' => count.parse::<i64>().ok()?.checked_mul(3_600_000_000)?,
            'M' => count.parse::<i64>().ok()?.checked_mul(60_000_000)?,
            'S' => seconds(count)?,
            _ => return None,
        };
        interval.microseconds = interval.microseconds.checked_add(seconds)?;
    }
    Some(codec::to_text(&Value::Interval(interval)))
}

/// Numbers, each with the letter behind it.
fn parts(text: &str) -> Option<Vec<(char, &str)>> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(end) = rest.find(|c: char| c.is_ascii_alphabetic()) {
        let (count, tail) = rest.split_at_checked(end)?;
        found.push((tail.chars().next()?, count));
        rest = tail.get(1..)?;
    }
    rest.is_empty().then_some(found)
}

/// Seconds with a fraction, as microseconds.
fn seconds(text: &str) -> Option<i64> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let fraction = fraction.trim_end_matches('0');
    if fraction.len() > 6 {
        return None;
    }
    let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let total = whole.checked_mul(1_000_000)?.checked_add(format!("{fraction:0<6}").parse().ok()?)?;
    Some(if negative { -total } else { total })
}

/// The lowest byte first, in it the lowest bit; PostgreSQL writes the highest bit first. Where the length is not known, so
/// many as there are.
fn bits(bytes: &[u8], length: usize, type_: &str) -> Option<String> {
    let bit = |at: usize| bytes.get(at / 8).is_some_and(|byte| byte >> (at % 8) & 1 == 1);
    let used = (0..bytes.len() * 8).rev().find(|at| bit(*at)).map_or(0, |at| at + 1);
    let is_fixed = types::base(type_) == "bit";
    if is_fixed && used > length {
        return None;
    }
    let count = if is_fixed { length } else { used.max(1) };
    Some((0..count).rev().map(|at| if bit(at) { '1' } else { '0' }).collect())
}

type Pairs = Vec<(String, Option<String>)>;

/// An object's keys and values; the object may stand in a text.
fn pairs(json: &Json) -> Option<Pairs> {
    let inside;
    let object = match json {
        Json::Object(object) => object,
        Json::String(text) => {
            inside = serde_json::from_str::<Json>(text).ok()?;
            inside.as_object()?
        }
        _ => return None,
    };
    let pair = |(key, value): (&String, &Json)| match value {
        Json::Null => Some((key.clone(), None)),
        Json::String(value) => Some((key.clone(), Some(value.clone()))),
        _ => None,
    };
    object.iter().map(pair).collect()
}

/// As `hstore` prints itself: the shortest keys first.
fn hstore(mut pairs: Pairs) -> String {
    pairs.sort_by(|(one, _), (other, _)| (one.len(), one.as_bytes()).cmp(&(other.len(), other.as_bytes())));
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let pair = |(key, value): &(String, Option<String>)| {
        format!("{}=>{}", quoted(key), value.as_deref().map_or_else(|| "NULL".to_owned(), quoted))
    };
    pairs.iter().map(pair).collect::<Vec<_>>().join(", ")
}

/// As `array_out` prints it.
fn array(inside: &Wire, element: &str, json: &Json) -> Result<String, Fault> {
    let Json::Array(items) = json else { return Err(kind(json, "a list")) };
    let mut out = String::from("{");
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        if item.is_null() {
            out.push_str("NULL");
            continue;
        }
        let meaning = types::logical(element);
        let item = text(inside, element, item)?;
        if meaning != Logical::Opaque && codec::from_text(meaning, &item).is_none() {
            return Err(Fault::NotOfType(element.to_owned()));
        }
        push_element(&item, &mut out);
    }
    out.push('}');
    Ok(out)
}

fn push_element(item: &str, out: &mut String) {
    let special = |c: char| matches!(c, '"' | '\\' | '{' | '}' | ',' | ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c');
    if !item.is_empty() && !item.eq_ignore_ascii_case("null") && !item.contains(special) {
        out.push_str(item);
        return;
    }
    out.push('"');
    for c in item.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
}

/// base64, with either alphabet, with or without its padding.
pub(crate) fn base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=');
    let mut out = Vec::with_capacity(text.len() * 3 / 4);
    let (mut held, mut count) = (0u32, 0u32);
    for byte in text.bytes() {
        let six = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        held = held << 6 | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((held >> count & 0xff) as u8);
        }
    }
    // What is left over is no byte, and must be nothing.
    (count < 6 && held & ((1 << count) - 1) == 0).then_some(out)
}

fn hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

#[cfg(test)]
mod tests;
