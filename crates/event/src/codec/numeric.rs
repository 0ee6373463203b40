//! PostgreSQL's numeric: digits to the base 10,000, a weight, a sign and a display scale.

use crate::Numeric;
use bytes::{BufMut, BytesMut};

const POSITIVE: u16 = 0x0000;
const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;
const INFINITY: u16 = 0xD000;
const NEG_INFINITY: u16 = 0xF000;
/// PostgreSQL sends a bit of its own bookkeeping as the scale of the infinities; nobody reads it.
const INFINITY_SCALE: u16 = 0x20;
const SCALE_MAX: usize = 16_383;
const WHOLE_DIGITS_MAX: usize = 131_072;

impl Numeric {
    /// Reads what PostgreSQL's input function takes (spaces around, a sign, an exponent, `nan`, `inf`) and keeps the
    /// scale as written. `None` for anything else, and for what is beyond PostgreSQL's limits.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
        let (negative, rest) = match text.as_bytes().first()? {
            b'-' => (true, text.get(1..)?),
            b'+' => (false, text.get(1..)?),
            _ => (false, text),
        };
        if rest.eq_ignore_ascii_case("nan") {
            return (rest.len() == text.len()).then_some(Self::NaN);
        }
        if rest.eq_ignore_ascii_case("inf") || rest.eq_ignore_ascii_case("infinity") {
            return Some(if negative { Self::NegInfinity } else { Self::Infinity });
        }
        let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, signed(exponent)?),
            None => (rest, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        if whole.len() + fraction.len() == 0 || !all_digits(whole) || !all_digits(fraction) {
            return None;
        }
        Self::from_digits(negative, &format!("{whole}{fraction}"), i64::try_from(fraction.len()).ok()? - exponent)
    }

    /// The number `digits × 10^-scale`; a negative scale appends zeros.
    pub fn from_digits(negative: bool, digits: &str, scale: i64) -> Option<Self> {
        if !all_digits(digits) || scale > SCALE_MAX as i64 || scale < -(WHOLE_DIGITS_MAX as i64) {
            return None;
        }
        let mut digits = digits.to_owned();
        if scale < 0 && digits.bytes().any(|byte| byte != b'0') {
            digits.push_str(&"0".repeat(scale.unsigned_abs() as usize));
        }
        let scale = usize::try_from(scale).unwrap_or(0);
        if digits.len() <= scale {
            digits.insert_str(0, &"0".repeat(scale + 1 - digits.len()));
        }
        let (whole, fraction) = digits.split_at(digits.len() - scale);
        let whole = match whole.trim_start_matches('0') {
            "" => "0",
            whole => whole,
        };
        if whole.len() > WHOLE_DIGITS_MAX {
            return None;
        }
        let zero = whole == "0" && fraction.bytes().all(|byte| byte == b'0');
        let sign = if negative && !zero { "-" } else { "" };
        let point = if scale > 0 { "." } else { "" };
        Some(Self::Finite(format!("{sign}{whole}{point}{fraction}")))
    }

    /// Whether a finite one is written as PostgreSQL writes it, and within its limits.
    pub fn is_canonical(&self) -> bool {
        let Self::Finite(text) = self else { return true };
        let Some((negative, whole, fraction)) = split(text) else { return false };
        let zero = whole == "0" && fraction.is_none_or(|digits| digits.bytes().all(|byte| byte == b'0'));
        (whole == "0" || !whole.starts_with('0'))
            && !(zero && negative)
            && whole.len() <= WHOLE_DIGITS_MAX
            && fraction.is_none_or(|digits| digits.len() <= SCALE_MAX)
    }
}

fn signed(text: &str) -> Option<i64> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    (!digits.is_empty() && digits.len() <= 9 && all_digits(digits)).then(|| text.parse().ok())?
}

fn all_digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Sign, whole digits, fraction digits; `None` when it is not `[-]digits[.digits]`.
fn split(text: &str) -> Option<(bool, &str, Option<&str>)> {
    let (negative, rest) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = match rest.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (rest, None),
    };
    let plain = |digits: &str| !digits.is_empty() && all_digits(digits);
    (plain(whole) && fraction.is_none_or(plain)).then_some((negative, whole, fraction))
}

/// What PostgreSQL's output function prints, and nothing else.
pub(super) fn parse(text: &str) -> Option<Numeric> {
    let numeric = match text {
        "NaN" => Numeric::NaN,
        "Infinity" => Numeric::Infinity,
        "-Infinity" => Numeric::NegInfinity,
        text => Numeric::Finite(text.to_owned()),
    };
    numeric.is_canonical().then_some(numeric)
}

pub(super) fn print(numeric: &Numeric) -> &str {
    match numeric {
        Numeric::NaN => "NaN",
        Numeric::Infinity => "Infinity",
        Numeric::NegInfinity => "-Infinity",
        Numeric::Finite(text) => text,
    }
}

pub(super) fn decode(bytes: &[u8]) -> Option<Numeric> {
    let (head, digits) = bytes.split_first_chunk::<8>()?;
    let [n0, n1, w0, w1, s0, s1, d0, d1] = *head;
    let (count, scale) = (u16::from_be_bytes([n0, n1]), u16::from_be_bytes([d0, d1]));
    let weight = i64::from(i16::from_be_bytes([w0, w1]));
    if digits.len() != usize::from(count) * 2 {
        return None;
    }
    let negative = match u16::from_be_bytes([s0, s1]) {
        POSITIVE => false,
        NEGATIVE => true,
        NAN if count == 0 => return Some(Numeric::NaN),
        INFINITY if count == 0 => return Some(Numeric::Infinity),
        NEG_INFINITY if count == 0 => return Some(Numeric::NegInfinity),
        _ => return None,
    };
    let mut text = String::with_capacity(digits.len() * 2 + usize::from(scale));
    for pair in digits.chunks_exact(2) {
        let digit = u16::from_be_bytes(pair.try_into().ok()?);
        if digit > 9_999 {
            return None;
        }
        text.push_str(&format!("{digit:04}"));
    }
    if text.bytes().all(|byte| byte == b'0') {
        return (usize::from(scale) <= SCALE_MAX).then(|| zero(scale));
    }
    finite(negative, &text, weight, usize::from(scale))
}

fn zero(scale: u16) -> Numeric {
    let fraction = "0".repeat(usize::from(scale));
    Numeric::Finite(if scale == 0 { "0".to_owned() } else { format!("0.{fraction}") })
}

/// The digits stand for `text × 10000^weight`, the point after the first group. Digits past the scale must be zeros.
fn finite(negative: bool, text: &str, weight: i64, scale: usize) -> Option<Numeric> {
    let length = i64::try_from(text.len()).ok()?;
    let surplus = length - (weight + 1) * 4 - i64::try_from(scale).ok()?;
    let mut digits = text.to_owned();
    if surplus > 0 {
        let keep = text.len().saturating_sub(usize::try_from(surplus).ok()?);
        if text.get(keep..)?.bytes().any(|byte| byte != b'0') {
            return None;
        }
        digits.truncate(keep);
    } else {
        digits.push_str(&"0".repeat(usize::try_from(-surplus).ok()?));
    }
    if digits.is_empty() {
        return None;
    }
    Numeric::from_digits(negative, &digits, i64::try_from(scale).ok()?)
}

pub(super) fn encode(numeric: &Numeric, out: &mut BytesMut) -> Option<()> {
    let special = |sign: u16, out: &mut BytesMut| {
        out.put_u32(0);
        out.put_u16(sign);
        out.put_u16(if sign == NAN { 0 } else { INFINITY_SCALE });
        Some(())
    };
    let text = match numeric {
        Numeric::NaN => return special(NAN, out),
        Numeric::Infinity => return special(INFINITY, out),
        Numeric::NegInfinity => return special(NEG_INFINITY, out),
        Numeric::Finite(text) => text,
    };
    let (negative, whole, fraction) = split(text)?;
    let fraction = fraction.unwrap_or("");
    let mut padded = String::with_capacity(text.len() + 8);
    padded.push_str(&"0".repeat((4 - whole.len() % 4) % 4));
    padded.push_str(whole);
    let groups_whole = padded.len() / 4;
    padded.push_str(fraction);
    padded.push_str(&"0".repeat((4 - padded.len() % 4) % 4));
    let digits: Vec<u16> =
        padded.as_bytes().chunks(4).map(|four| four.iter().fold(0, |n, b| n * 10 + u16::from(b - b'0'))).collect();
    let leading = digits.iter().take_while(|digit| **digit == 0).count();
    let used = digits.len() - digits.iter().rev().take_while(|digit| **digit == 0).count();
    let kept = digits.get(leading..used).unwrap_or_default();
    let weight = if kept.is_empty() { 0 } else { groups_whole as i64 - 1 - leading as i64 };
    out.put_u16(u16::try_from(kept.len()).ok()?);
    out.put_i16(i16::try_from(weight).ok()?);
    out.put_u16(if negative { NEGATIVE } else { POSITIVE });
    out.put_u16(u16::try_from(fraction.len()).ok()?);
    for digit in kept {
        out.put_u16(*digit);
    }
    Some(())
}
