//! One form for values that are the same by the rules.

use crate::Precision;
use crossfade_event::{Logical, Numeric, Value, codec};

/// A value in its one form. Ordered, so that rows can be sorted; the order means nothing else.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Normal {
    Null,
    Bytes(Vec<u8>),
    Text(String),
    /// A decimal without needless zeros, or `NaN`, `Infinity`, `-Infinity`.
    Number(String),
    /// Microseconds since 2000-01-01 UTC; the extremes are the infinities.
    Moment(i64),
    Truth(bool),
}

impl Normal {
    /// By its text form; raw bytes as they are.
    pub(crate) fn plain(value: &Value) -> Self {
        match value {
            Value::Bytes(bytes) | Value::RawText(bytes) => Self::Bytes(bytes.clone()),
            Value::Text(text) => Self::Text(text.clone()),
            other => Self::Text(codec::to_text(other)),
        }
    }

    /// As a number, if it is one, rounded to so many digits behind the point.
    pub(crate) fn number(value: &Value, digits: Option<u32>) -> Option<Self> {
        let text = match value {
            Value::Int(number) => number.to_string(),
            // The shortest text that reads back as the same float; never with an exponent.
            Value::Float32(number) if number.is_finite() => number.to_string(),
            Value::Float64(number) if number.is_finite() => number.to_string(),
            Value::Numeric(Numeric::Finite(text)) | Value::Text(text) | Value::Other(text) => text.trim().to_owned(),
            Value::Numeric(_) | Value::Float32(_) | Value::Float64(_) => {
                return Some(Self::Number(codec::to_text(value)));
            }
            _ => return None,
        };
        decimal(&text, digits).map(Self::Number)
    }

    /// As a moment, if it is one.
    pub(crate) fn moment(value: &Value, precision: Precision) -> Option<Self> {
        let us = match value {
            Value::Timestamp(us) | Value::TimestampTz(us) => *us,
            Value::Text(text) | Value::Other(text) => written_moment(text.trim())?,
            _ => return None,
        };
        let unit = match precision {
            Precision::Micros => 1,
            Precision::Millis => 1_000,
            Precision::Seconds => 1_000_000,
        };
        let is_infinite = us == i64::MIN || us == i64::MAX;
        Some(Self::Moment(if is_infinite { us } else { us - us.rem_euclid(unit) }))
    }

    /// As true or false, if it is one of them.
    pub(crate) fn truth(value: &Value) -> Option<Self> {
        Some(Self::Truth(match value {
            Value::Bool(truth) => *truth,
            Value::Int(0) => false,
            Value::Int(1) => true,
            Value::Text(text) | Value::Other(text) => match text.trim().to_ascii_lowercase().as_str() {
                "t" | "true" | "1" => true,
                "f" | "false" | "0" => false,
                _ => return None,
            },
            _ => return None,
        }))
    }
}

/// A moment as people and programs write it: with a blank or a `T`, with `Z`, an offset, or neither.
fn written_moment(text: &str) -> Option<i64> {
    let text = text.replacen(['T', 't'], " ", 1);
    let text = match text.strip_suffix(['Z', 'z']) {
        Some(rest) => format!("{rest}+00"),
        None => text,
    };
    let read = |text: &str| codec::from_text(Logical::TimestampTz, text);
    match read(&text).or_else(|| read(&format!("{text}+00")))? {
        Value::TimestampTz(us) => Some(us),
        _ => None,
    }
}

/// `[-+]digits[.digits]` in its one form.
fn decimal(text: &str, digits: Option<u32>) -> Option<String> {
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, part) = rest.split_once('.').unwrap_or((rest, ""));
    let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && part.is_empty()) || !all_digits(whole) || !all_digits(part) {
        return None;
    }
    let (whole, part) = match digits {
        Some(digits) if part.len() > digits as usize => rounded(whole, part, digits as usize),
        _ => (whole.to_owned(), part.to_owned()),
    };
    let (whole, part) = (whole.trim_start_matches('0'), part.trim_end_matches('0'));
    let whole = if whole.is_empty() { "0" } else { whole };
    let sign = if negative && !(whole == "0" && part.is_empty()) { "-" } else { "" };
    Some(if part.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{part}") })
}

/// Half away from zero, as PostgreSQL's `round` of a numeric.
fn rounded(whole: &str, part: &str, digits: usize) -> (String, String) {
    let up = part.as_bytes().get(digits).is_some_and(|digit| *digit >= b'5');
    let mut kept: Vec<u8> = whole.bytes().chain(part.bytes().take(digits)).collect();
    let mut carry = up;
    for digit in kept.iter_mut().rev() {
        if !carry {
            break;
        }
        carry = *digit == b'9';
        *digit = if carry { b'0' } else { *digit + 1 };
    }
    if carry {
        kept.insert(0, b'1');
    }
    let point = kept.len() - digits;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (whole, part) = kept.split_at(point);
    (text(whole), text(part))
}
