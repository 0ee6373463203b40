//! Shares and spans as a person writes them: `1%`, `30s`.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

/// A text that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {wanted}")]
pub struct ParseUnitError {
    text: String,
    wanted: &'static str,
}

/// A share between 0 % and 100 %, exact to a millionth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Percent {
    millionths: u32,
}

impl Percent {
    /// So many millionths; anything above the whole is the whole.
    pub fn from_millionths(millionths: u32) -> Self {
        Self { millionths: millionths.min(1_000_000) }
    }

    /// What share `part` is of `whole`, rounded up; nothing of nothing is 0 %.
    pub fn of(part: u64, whole: u64) -> Self {
        let share = (u128::from(part.min(whole)) * 1_000_000).div_ceil(u128::from(whole.max(1)));
        Self::from_millionths(u32::try_from(share).unwrap_or(u32::MAX))
    }

    /// As a fraction of one.
    pub fn fraction(self) -> f64 {
        f64::from(self.millionths) / 1e6
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.millionths / 10_000, self.millionths % 10_000);
        if rest == 0 {
            return write!(f, "{whole}%");
        }
        write!(f, "{whole}.{}%", format!("{rest:04}").trim_end_matches('0'))
    }
}

impl FromStr for Percent {
    type Err = ParseUnitError;

    fn from_str(text: &str) -> Result<Self, ParseUnitError> {
        let refuse = || ParseUnitError { text: text.to_owned(), wanted: "a share; write it like \"1%\" or \"0.5%\"" };
        let number = text.strip_suffix('%').ok_or_else(refuse)?;
        let (whole, rest) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(rest) || rest.len() > 4 {
            return Err(refuse());
        }
        let whole: u32 = whole.parse().map_err(|_| refuse())?;
        let rest: u32 = format!("{rest:0<4}").parse().map_err(|_| refuse())?;
        let millionths = whole.checked_mul(10_000).and_then(|whole| whole.checked_add(rest)).ok_or_else(refuse)?;
        if millionths > 1_000_000 { Err(refuse()) } else { Ok(Self { millionths }) }
    }
}

/// By how much something has grown, or shrunk: `+50%`. A limit is written with its `+`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Increase {
    millionths: i64,
}

/// Beyond a hundredfold the figure says no more.
const INCREASE_MAX: i64 = 100_000_000;

impl Increase {
    /// From `before` to `now`, in whatever unit, rounded down to a hundredth of a per cent; `None` where nothing was before.
    pub fn of(before: u64, now: u64) -> Option<Self> {
        if before == 0 {
            return None;
        }
        let (before, now) = (i128::from(before), i128::from(now));
        let steps = ((now - before) * 10_000).div_euclid(before) * 100;
        Some(Self { millionths: i64::try_from(steps.min(i128::from(INCREASE_MAX))).unwrap_or(INCREASE_MAX) })
    }
}

impl fmt::Display for Increase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.millionths < 0 { '-' } else { '+' };
        let (whole, rest) = (self.millionths.abs() / 10_000, self.millionths.abs() % 10_000);
        if rest == 0 {
            return write!(f, "{sign}{whole}%");
        }
        write!(f, "{sign}{whole}.{}%", format!("{rest:04}").trim_end_matches('0'))
    }
}

impl FromStr for Increase {
    type Err = ParseUnitError;

    fn from_str(text: &str) -> Result<Self, ParseUnitError> {
        let wanted = "by how much something may grow; write it like \"+50%\", at most \"+10000%\"";
        let refuse = || ParseUnitError { text: text.to_owned(), wanted };
        let number = text.strip_prefix('+').and_then(|text| text.strip_suffix('%')).ok_or_else(refuse)?;
        let (whole, rest) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(rest) || rest.len() > 4 {
            return Err(refuse());
        }
        let whole: i64 = whole.parse().map_err(|_| refuse())?;
        let rest: i64 = format!("{rest:0<4}").parse().map_err(|_| refuse())?;
        let millionths = whole.checked_mul(10_000).and_then(|whole| whole.checked_add(rest)).ok_or_else(refuse)?;
        if millionths > INCREASE_MAX { Err(refuse()) } else { Ok(Self { millionths }) }
    }
}

/// A span of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        let fitting = UNITS.iter().rev().find(|(_, unit)| ms >= *unit && ms % unit == 0);
        match fitting {
            Some((name, unit)) => write!(f, "{}{name}", ms / unit),
            None => write!(f, "{ms}ms"),
        }
    }
}

impl FromStr for Span {
    type Err = ParseUnitError;

    fn from_str(text: &str) -> Result<Self, ParseUnitError> {
        let wanted = "a span of time; write it like \"500ms\", \"30s\", \"5m\", \"2h\" or \"7d\"";
        let refuse = || ParseUnitError { text: text.to_owned(), wanted };
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, name) = text.split_at(digits);
        let (_, unit) = UNITS.iter().find(|(known, _)| *known == name).ok_or_else(refuse)?;
        let number: u64 = number.parse().map_err(|_| refuse())?;
        number.checked_mul(*unit).map(|ms| Self(Duration::from_millis(ms))).ok_or_else(refuse)
    }
}

macro_rules! as_text {
    ($type:ident, $pattern:literal, $about:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "description": $about })
            }
        }
    };
}

as_text!(Percent, r"^[0-9]{1,3}(\.[0-9]{1,4})?%$", "A share, like \"1%\" or \"0.5%\".");
as_text!(Increase, r"^\+[0-9]{1,5}(\.[0-9]{1,4})?%$", "By how much something may grow, like \"+50%\".");
as_text!(Span, r"^[0-9]+(ms|s|m|h|d)$", "A span of time, like \"500ms\", \"30s\", \"5m\", \"2h\" or \"7d\".");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn shares_are_read_as_people_write_them() {
        for (text, millionths) in [("1%", 10_000), ("0.5%", 5_000), ("100%", 1_000_000), ("0%", 0), ("0.0001%", 1)] {
            assert_eq!(text.parse(), Ok(Percent { millionths }), "{text}");
            assert_eq!(Percent { millionths }.to_string(), text);
        }
        for text in ["1", "1 %", "%", "-1%", "101%", "1.%", ".5%", "1.00001%", "1e1%", "+1%", "99999999999%"] {
            let refused = text.parse::<Percent>().unwrap_err().to_string();
            assert!(refused.contains(text) && refused.contains("\"1%\""), "{refused}");
        }
    }

    #[test]
    fn a_share_is_never_rounded_down_to_what_is_allowed() {
        assert!(Percent::of(10_001, 1_000_000) > "1%".parse().unwrap());
        assert_eq!(Percent::of(1, 100), "1%".parse().unwrap());
        assert_eq!(Percent::of(0, 0).to_string(), "0%");
        assert_eq!(Percent::of(u64::MAX, u64::MAX).to_string(), "100%");
    }

    #[test]
    fn spans_are_read_as_people_write_them() {
        for (text, ms) in [("500ms", 500), ("30s", 30_000), ("5m", 300_000), ("2h", 7_200_000), ("7d", 604_800_000)] {
            assert_eq!(text.parse(), Ok(Span(Duration::from_millis(ms))), "{text}");
            assert_eq!(Span(Duration::from_millis(ms)).to_string(), text);
        }
        for text in ["30", "s", "1.5s", "-1s", "30 s", "30S", "99999999999999999999s", "1w", "9999999999999999d"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn growth_is_read_with_its_sign_and_measured_in_both_directions() {
        for (text, millionths) in [("+50%", 500_000), ("+0%", 0), ("+0.5%", 5_000), ("+10000%", 100_000_000)] {
            assert_eq!(text.parse(), Ok(Increase { millionths }), "{text}");
            assert_eq!(Increase { millionths }.to_string(), text);
        }
        for text in ["50%", "1", "+", "+%", "-5%", "+10001%", "+1.%", "+.5%", "+1e1%", "++1%", "+99999999999999999999%"]
        {
            let refused = text.parse::<Increase>().unwrap_err().to_string();
            assert!(refused.contains(text) && refused.contains("\"+50%\""), "{refused}");
        }
        let of = |before, now| Increase::of(before, now).map(|grown| grown.to_string());
        assert_eq!(of(200, 300).as_deref(), Some("+50%"));
        assert_eq!(of(300, 200).as_deref(), Some("-33.34%"));
        assert_eq!(of(1, u64::MAX).as_deref(), Some("+10000%"));
        assert_eq!(of(0, 5), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(millionths in 0u32..=1_000_000, ms in 0u64..10_000_000_000) {
            let (share, span) = (Percent { millionths }, Span(Duration::from_millis(ms)));
            prop_assert_eq!(share.to_string().parse(), Ok(share));
            prop_assert_eq!(span.to_string().parse(), Ok(span));
        }
    }
}
