//! From a value of one type to a value of another. What a cast cannot do is refused with a reason that names types,
//! never values. Where a cast loses something by its nature (a numeric rounded to its scale, a timestamp cut to a
//! day) it does what PostgreSQL does, and the plan says so.

use crate::types::{Modifier, TypeSpec};
use crossfade_event::{ColumnType, Format, Logical, Numeric, Value, codec};
use serde::de::IgnoredAny;

const DAY_US: i64 = 86_400_000_000;

/// Casts a value as a spec asks for it.
///
/// # Errors
/// The reason, without the value.
pub(crate) fn cast(value: Value, to: &TypeSpec) -> Result<Value, String> {
    let kind = value.kind();
    let refuse = || format!("a {kind} value cannot become {}", to.name);
    let cast = to_logical(value, to.logical).ok_or_else(refuse)?;
    modify(cast, to.modifier).ok_or_else(|| format!("a {kind} value does not fit {}", to.name))
}

/// Takes a value over to a column that nobody asked to cast: exactly, or not at all.
///
/// # Errors
/// The reason, without the value.
pub(crate) fn carry(value: Value, to: &ColumnType) -> Result<Value, String> {
    let kind = value.kind();
    let carried = if to.format == Format::Tagged { to_tagged(value) } else { exactly(value, to.logical) };
    carried.ok_or_else(|| format!("a {kind} value does not fit {} exactly; a cast may help", to.name))
}

/// A PostgreSQL value as SQLite keeps it.
fn to_tagged(value: Value) -> Option<Value> {
    Some(match value {
        Value::Bool(bool) => Value::Int(bool.into()),
        Value::Float32(float) => to_tagged(Value::Float64(float.into()))?,
        // SQLite stores NULL for NaN, and 0.0 for -0.0.
        Value::Float64(float) if float.is_nan() || (float == 0.0 && float.is_sign_negative()) => return None,
        value @ (Value::Int(_) | Value::Float64(_) | Value::Text(_) | Value::Bytes(_) | Value::RawText(_)) => value,
        other => Value::Text(codec::to_text(&other)),
    })
}

/// A value of SQLite (or of a type of the same kind) in a column of `logical`.
fn exactly(value: Value, logical: Logical) -> Option<Value> {
    Some(match (logical, value) {
        (Logical::Bool, Value::Int(int @ (0 | 1))) => Value::Bool(int == 1),
        (Logical::Float64, Value::Int(int)) if exact_f64(int) => Value::Float64(int as f64),
        (Logical::Float32, Value::Float64(float)) if f64::from(float as f32) == float => Value::Float32(float as f32),
        (Logical::Numeric, value @ (Value::Int(_) | Value::Float64(_) | Value::Text(_))) => numeric(value)?,
        (Logical::Opaque, Value::Text(text)) => Value::Other(text),
        (Logical::Text, Value::Other(text)) => Value::Text(text),
        (logical, Value::Text(text)) if logical != Logical::Text && logical != Logical::Bytes => parse(&text, logical)?,
        (logical, value) if fits(logical, &value) => value,
        _ => return None,
    })
}

/// Whether the value is already one of this kind.
fn fits(logical: Logical, value: &Value) -> bool {
    match (logical, value) {
        (Logical::Int16, Value::Int(int)) => i16::try_from(*int).is_ok(),
        (Logical::Int32, Value::Int(int)) => i32::try_from(*int).is_ok(),
        _ => matches!(
            (logical, value),
            (Logical::Bool, Value::Bool(_))
                | (Logical::Int64, Value::Int(_))
                | (Logical::Float32, Value::Float32(_))
                | (Logical::Float64, Value::Float64(_))
                | (Logical::Numeric, Value::Numeric(_))
                | (Logical::Text, Value::Text(_))
                | (Logical::Bytes, Value::Bytes(_))
                | (Logical::Date, Value::Date(_))
                | (Logical::Time, Value::Time(_))
                | (Logical::TimeTz, Value::TimeTz(_))
                | (Logical::Timestamp, Value::Timestamp(_))
                | (Logical::TimestampTz, Value::TimestampTz(_))
                | (Logical::Interval, Value::Interval(_))
                | (Logical::Uuid, Value::Uuid(_))
                | (Logical::Json, Value::Json(_))
                | (Logical::Jsonb, Value::Jsonb(_))
                | (Logical::Opaque, Value::Other(_))
        ),
    }
}

fn exact_f64(int: i64) -> bool {
    (int as f64) as i128 == i128::from(int)
}

/// The cast proper, without the modifier.
fn to_logical(value: Value, logical: Logical) -> Option<Value> {
    // A dynamic column takes every value as it is.
    if logical == Logical::Dynamic || fits(logical, &value) {
        return Some(value);
    }
    match (logical, value) {
        (Logical::Text, Value::Bool(bool)) => Some(Value::Text(bool.to_string())),
        (_, Value::RawText(_)) => None,
        (Logical::Text, value) => Some(Value::Text(codec::to_text(&value))),
        (Logical::Opaque, value) => Some(Value::Other(codec::to_text(&value))),
        (logical, Value::Text(text) | Value::Other(text)) => parse(&text, logical),
        (Logical::Bool, Value::Int(int @ (0 | 1))) => Some(Value::Bool(int == 1)),
        (Logical::Int16 | Logical::Int32 | Logical::Int64, value) => whole(value).filter(|whole| fits(logical, whole)),
        (Logical::Numeric, value) => numeric(value),
        (Logical::Float64, value) => float(&value).map(Value::Float64),
        (Logical::Float32, value) => single(&value).map(Value::Float32),
        (logical, value) => time_like(logical, &value),
    }
}

/// An integer from what has no fraction.
fn whole(value: Value) -> Option<Value> {
    match value {
        Value::Int(_) => Some(value),
        Value::Bool(bool) => Some(Value::Int(bool.into())),
        value => {
            let Value::Numeric(Numeric::Finite(text)) = numeric(value)? else { return None };
            let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
            if fraction.bytes().any(|byte| byte != b'0') {
                return None;
            }
            // "-0.0" is never written: a numeric zero has no sign.
            whole.parse().ok().map(Value::Int)
        }
    }
}

/// An exact decimal; a float by its shortest digits.
fn numeric(value: Value) -> Option<Value> {
    let text = match value {
        Value::Numeric(_) => return Some(value),
        Value::Int(int) => int.to_string(),
        value @ (Value::Float32(_) | Value::Float64(_)) => codec::to_text(&value),
        Value::Text(text) => text,
        _ => return None,
    };
    Numeric::parse(&text).map(Value::Numeric)
}

fn float(value: &Value) -> Option<f64> {
    match value {
        Value::Int(int) => exact_f64(*int).then_some(*int as f64),
        Value::Float32(single) => Some(f64::from(*single)),
        Value::Numeric(_) => {
            let text = codec::to_text(value);
            let float: f64 = text.parse().ok()?;
            (float.is_finite() || matches!(text.as_str(), "NaN" | "Infinity" | "-Infinity")).then_some(float)
        }
        _ => None,
    }
}

/// Rounded to the nearest single; what would become infinite is refused.
fn single(value: &Value) -> Option<f32> {
    let double = if let Value::Float64(double) = value { *double } else { float(value)? };
    let single = double as f32;
    (single.is_finite() || !double.is_finite()).then_some(single)
}

fn time_like(logical: Logical, value: &Value) -> Option<Value> {
    Some(match (logical, value) {
        (Logical::Timestamp, Value::TimestampTz(at)) => Value::Timestamp(*at),
        (Logical::TimestampTz, Value::Timestamp(at)) => Value::TimestampTz(*at),
        (Logical::Timestamp, Value::Date(days)) => Value::Timestamp(midnight(*days)?),
        (Logical::TimestampTz, Value::Date(days)) => Value::TimestampTz(midnight(*days)?),
        (Logical::Date, Value::Timestamp(at) | Value::TimestampTz(at)) => Value::Date(day(*at)?),
        (Logical::Time, Value::Timestamp(at)) if *at != i64::MAX && *at != i64::MIN => {
            Value::Time(at.rem_euclid(DAY_US))
        }
        (Logical::Json, Value::Jsonb(text)) => Value::Json(text.clone()),
        (Logical::Jsonb, Value::Json(text)) => Value::Jsonb(text.clone()),
        (Logical::Uuid, Value::Bytes(bytes)) => Value::Uuid(bytes.as_slice().try_into().ok()?),
        (Logical::Bytes, Value::Uuid(bytes)) => Value::Bytes(bytes.to_vec()),
        _ => return None,
    })
}

fn midnight(days: i32) -> Option<i64> {
    match days {
        i32::MAX => Some(i64::MAX),
        i32::MIN => Some(i64::MIN),
        days => i64::from(days).checked_mul(DAY_US),
    }
}

fn day(at: i64) -> Option<i32> {
    match at {
        i64::MAX => Some(i32::MAX),
        i64::MIN => Some(i32::MIN),
        at => i32::try_from(at.div_euclid(DAY_US)).ok(),
    }
}

/// What a text stands for, in the spellings that PostgreSQL's input functions take and that leave no doubt.
pub(crate) fn parse(text: &str, logical: Logical) -> Option<Value> {
    let trimmed = text.trim();
    if let Some(value) = match logical {
        Logical::Text => Some(Value::Text(text.to_owned())),
        Logical::Opaque => Some(Value::Other(text.to_owned())),
        Logical::Bool => word_bool(trimmed).map(Value::Bool),
        Logical::Int16 | Logical::Int32 | Logical::Int64 => {
            trimmed.strip_prefix('+').unwrap_or(trimmed).parse().ok().map(Value::Int).filter(|v| fits(logical, v))
        }
        Logical::Numeric => Numeric::parse(text).map(Value::Numeric),
        Logical::Float64 => decimal(trimmed).map(Value::Float64),
        Logical::Float32 => decimal(trimmed).and_then(|double| single(&Value::Float64(double))).map(Value::Float32),
        Logical::Uuid => uuid(trimmed).map(Value::Uuid),
        Logical::Json if is_json(text) => Some(Value::Json(text.to_owned())),
        Logical::Jsonb if is_json(text) => Some(Value::Jsonb(text.to_owned())),
        _ => None,
    } {
        return Some(value);
    }
    let spelled = match logical {
        Logical::Timestamp | Logical::TimestampTz => moment(trimmed, logical == Logical::TimestampTz),
        Logical::Time => with_seconds(trimmed),
        Logical::Date | Logical::TimeTz | Logical::Interval | Logical::Bytes => trimmed.to_owned(),
        _ => return None,
    };
    codec::from_text(logical, &spelled)
}

/// Whether a text is one JSON document.
pub(crate) fn is_json(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}

fn word_bool(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "t" | "true" | "y" | "yes" | "on" | "1" => Some(true),
        "f" | "false" | "n" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// A float, spelled as numbers are; not what only Rust reads.
fn decimal(text: &str) -> Option<f64> {
    match Numeric::parse(text) {
        Some(Numeric::NaN) => Some(f64::NAN),
        Some(Numeric::Infinity) => Some(f64::INFINITY),
        Some(Numeric::NegInfinity) => Some(f64::NEG_INFINITY),
        Some(Numeric::Finite(_)) | None => {
            let plain = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E'));
            plain.then(|| text.parse::<f64>().ok())?.filter(|float| float.is_finite())
        }
    }
}

/// With or without hyphens and braces.
fn uuid(text: &str) -> Option<[u8; 16]> {
    let inside = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or(text);
    uuid::Uuid::try_parse(inside).ok().filter(|_| !inside.starts_with("urn")).map(uuid::Uuid::into_bytes)
}

/// `2024-01-02T03:04:05Z`, `2024-01-02 03:04` and `2024-01-02` in the one spelling that the codec reads.
fn moment(text: &str, zoned: bool) -> String {
    let (text, era) = text.strip_suffix(" BC").map_or((text, ""), |text| (text, " BC"));
    if text.ends_with("infinity") {
        return text.to_owned();
    }
    let Some((date, time)) = text.split_once([' ', 'T', 't']) else {
        return format!("{text} 00:00:00{}{era}", if zoned { "+00" } else { "" });
    };
    let time = time.trim();
    let (time, zone) = match time.strip_suffix(['Z', 'z']) {
        Some(time) => (time, Some("+00".to_owned())),
        None => match time.rfind(['+', '-']).and_then(|at| time.split_at_checked(at)) {
            Some((time, zone)) => (time, Some(spelled_zone(zone))),
            None => (time, None),
        },
    };
    match (zoned, zone) {
        // A moment without a zone is in UTC, as all our sessions are.
        (true, zone) => format!("{date} {}{}{era}", with_seconds(time.trim()), zone.as_deref().unwrap_or("+00")),
        (false, None) => format!("{date} {}{era}", with_seconds(time)),
        // A zone that would be dropped is a loss: PostgreSQL ignores it, we refuse it.
        (false, Some(_)) => String::new(),
    }
}

/// `+0530` as `+05:30`.
fn spelled_zone(zone: &str) -> String {
    match zone.split_at_checked(3) {
        Some((hours, minutes)) if minutes.len() == 2 && !minutes.contains(':') => format!("{hours}:{minutes}"),
        _ => zone.to_owned(),
    }
}

fn with_seconds(time: &str) -> String {
    if time.matches(':').count() == 1 { format!("{time}:00") } else { time.to_owned() }
}

/// Applies what stands in the type's parentheses.
fn modify(value: Value, modifier: Modifier) -> Option<Value> {
    match (modifier, value) {
        (Modifier::Numeric { precision, scale }, Value::Numeric(numeric)) => {
            rounded(numeric, precision, scale).map(Value::Numeric)
        }
        (Modifier::Length { characters, pads }, Value::Text(text)) => {
            let used = text.chars().count();
            // SQL drops surplus blanks, and nothing else.
            let text = if used > characters {
                let (kept, surplus) =
                    text.split_at(text.char_indices().nth(characters).map_or(text.len(), |(at, _)| at));
                if surplus.bytes().any(|byte| byte != b' ') {
                    return None;
                }
                kept.to_owned()
            } else {
                text
            };
            let missing = characters - text.chars().count().min(characters);
            Some(Value::Text(if pads { text + &" ".repeat(missing) } else { text }))
        }
        (Modifier::Fraction(digits), value) => cut_fraction(value, digits),
        (_, value) => Some(value),
    }
}

/// Rounded half away from zero to `scale` digits, refused when more than `precision` digits are needed.
fn rounded(numeric: Numeric, precision: u32, scale: i32) -> Option<Numeric> {
    let text = match numeric {
        Numeric::NaN => return Some(Numeric::NaN),
        Numeric::Infinity | Numeric::NegInfinity => return None,
        Numeric::Finite(text) => text,
    };
    let (negative, rest) = text.strip_prefix('-').map_or((false, text.as_str()), |rest| (true, rest));
    let (whole, fraction) = rest.split_once('.').unwrap_or((rest, ""));
    let mut digits = format!("{whole}{fraction}").into_bytes();
    let drop = i64::try_from(fraction.len()).ok()? - i64::from(scale);
    if drop > 0 {
        let drop = usize::try_from(drop).ok()?;
        let mut padded = vec![b'0'; (drop + 1).saturating_sub(digits.len())];
        padded.append(&mut digits);
        digits = padded;
        let cut = digits.split_off(digits.len() - drop);
        if cut.first().is_some_and(|digit| *digit >= b'5') {
            increment(&mut digits);
        }
    } else {
        digits.resize(digits.len() + usize::try_from(-drop).ok()?, b'0');
    }
    let digits = String::from_utf8(digits).ok()?;
    let significant = digits.trim_start_matches('0').len();
    if significant > precision as usize {
        return None;
    }
    let rounded = Numeric::from_digits(negative, &digits, i64::from(scale))?;
    Some(rounded)
}

fn increment(digits: &mut Vec<u8>) {
    for digit in digits.iter_mut().rev() {
        if *digit < b'9' {
            *digit += 1;
            return;
        }
        *digit = b'0';
    }
    digits.insert(0, b'1');
}

/// Rounds microseconds to fewer digits, half away from zero as PostgreSQL does.
fn cut_fraction(value: Value, digits: u32) -> Option<Value> {
    let unit = 10i64.pow(6 - digits.min(6));
    let round = |at: i64| -> Option<i64> {
        if at == i64::MAX || at == i64::MIN || unit == 1 {
            return Some(at);
        }
        let half = if at < 0 { -unit / 2 } else { unit / 2 };
        Some(at.checked_add(half)? / unit * unit)
    };
    Some(match value {
        Value::Time(at) => Value::Time(round(at)?),
        Value::TimeTz(mut time) => {
            time.microseconds = round(time.microseconds)?;
            Value::TimeTz(time)
        }
        Value::Timestamp(at) => Value::Timestamp(round(at)?),
        Value::TimestampTz(at) => Value::TimestampTz(round(at)?),
        Value::Interval(mut interval) => {
            interval.microseconds = round(interval.microseconds)?;
            Value::Interval(interval)
        }
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    fn to(value: Value, name: &str) -> Option<String> {
        cast(value, &TypeSpec::postgres(name).unwrap()).ok().map(|value| codec::to_text(&value))
    }

    #[test]
    fn texts_become_what_they_spell() {
        for (from, name, expected) in [
            (" 42 ", "integer", Some("42")),
            ("4.2", "integer", None),
            ("99999", "smallint", None),
            ("1e3", "numeric", Some("1000")),
            ("1.005", "numeric(5,2)", Some("1.01")),
            ("-1.005", "numeric(5,2)", Some("-1.01")),
            ("999.995", "numeric(5,2)", None),
            ("999.994", "numeric(5,2)", Some("999.99")),
            ("0.004", "numeric(5,2)", Some("0.00")),
            ("155", "numeric(3,-1)", Some("160")),
            ("NaN", "numeric(5,2)", Some("NaN")),
            ("2024-02-30", "date", None),
            ("2024-02-29", "date", Some("2024-02-29")),
            ("2024-02-29T12:30Z", "timestamptz", Some("2024-02-29 12:30:00+00")),
            ("2024-02-29 12:30:00+0530", "timestamptz", Some("2024-02-29 07:00:00+00")),
            ("2024-02-29T12:30:01.5", "timestamp", Some("2024-02-29 12:30:01.5")),
            ("2024-02-29T12:30Z", "timestamp", None),
            ("2024-02-29", "timestamptz", Some("2024-02-29 00:00:00+00")),
            ("YES", "boolean", Some("t")),
            ("maybe", "boolean", None),
            ("{A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11}", "uuid", Some("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")),
            ("a0eebc99", "uuid", None),
            ("{\"a\": 1}", "jsonb", Some("{\"a\": 1}")),
            ("{a}", "json", None),
            ("abcdef", "varchar(3)", None),
            ("abc   ", "varchar(3)", Some("abc")),
            ("ab", "char(4)", Some("ab  ")),
            ("1.5", "double precision", Some("1.5")),
            ("0x10", "double precision", None),
            ("1e400", "double precision", None),
        ] {
            assert_eq!(to(text(from), name).as_deref(), expected, "{from} to {name}");
        }
    }

    #[test]
    fn numbers_keep_their_value_or_are_refused() {
        assert_eq!(to(Value::Int(40_000), "smallint"), None);
        assert_eq!(to(Value::Int(7), "bigint").as_deref(), Some("7"));
        assert_eq!(to(Value::Float64(2.0), "integer").as_deref(), Some("2"));
        assert_eq!(to(Value::Float64(2.5), "integer"), None);
        assert_eq!(to(Value::Float64(0.1), "numeric").as_deref(), Some("0.1"));
        assert_eq!(to(Value::Float64(f64::NAN), "integer"), None);
        assert_eq!(to(Value::Int(i64::MAX), "double precision"), None);
        assert_eq!(to(Value::Float64(1e300), "real"), None);
        assert_eq!(to(Value::Bool(true), "text").as_deref(), Some("true"));
        assert_eq!(to(Value::Int(2), "boolean"), None);
    }

    #[test]
    fn what_sqlite_cannot_hold_is_refused() {
        let real = crate::types::sqlite_column("REAL");
        assert!(carry(Value::Float64(f64::NAN), &real).is_err());
        assert!(carry(Value::Float64(-0.0), &real).is_err());
        assert_eq!(carry(Value::Bool(true), &real), Ok(Value::Int(1)));
    }

    #[test]
    fn a_sqlite_value_goes_into_a_column_of_another_type_exactly_or_not_at_all() {
        let column = |name: &str| TypeSpec::postgres(name).unwrap().postgres_column();
        assert_eq!(carry(Value::Int(5), &column("bigint")), Ok(Value::Int(5)));
        assert!(carry(text("five"), &column("bigint")).is_err());
        assert!(carry(Value::Int(5), &column("text")).is_err());
        assert!(carry(text("abc"), &column("bytea")).is_err());
        assert_eq!(carry(text("2024-01-01"), &column("date")), Ok(Value::Date(8766)));
        let reason = carry(text("secret"), &column("date")).unwrap_err();
        assert!(!reason.contains("secret"));
    }
}
