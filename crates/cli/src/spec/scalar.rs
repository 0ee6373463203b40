//! The small values of a spec: names, times, sizes, secrets. Parsing gives a value that cannot be wrong.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, de};
use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

/// Reads a value from its text form.
macro_rules! from_text {
    ($type:ty) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

/// A migration's or checkpoint's name: `[a-z][a-z0-9-]{0,40}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name(String);

impl Name {
    /// The name.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The name under which the way back of this migration stands on servers.
    pub(crate) fn reversed(&self) -> Self {
        Self(format!("{}-reverse", self.0))
    }

    /// The nearest valid name to any text; `migration` where nothing of it can be used.
    pub(crate) fn nearest(text: &str) -> Self {
        let mut name = String::new();
        for c in text.to_lowercase().chars() {
            match c {
                'a'..='z' => name.push(c),
                '0'..='9' if !name.is_empty() => name.push(c),
                _ if !name.is_empty() && !name.ends_with('-') => name.push('-'),
                _ => {}
            }
        }
        name.truncate(41);
        let name = name.trim_end_matches('-');
        Self(if name.is_empty() { "migration" } else { name }.to_owned())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let first = text.starts_with(|c: char| c.is_ascii_lowercase());
        let rest = text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if first && rest && text.len() <= 41 {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "{text:?} is not a name: lower-case letters, digits and `-`, beginning with a letter, at most 41; for example {:?}",
            Self::nearest(text).0
        ))
    }
}

from_text!(Name);

impl JsonSchema for Name {
    fn schema_name() -> Cow<'static, str> {
        "Name".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[a-z][a-z0-9-]{0,40}$" })
    }
}

/// A length of time: `250ms`, `30s`, `5m`, `12h`, `7d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse =
            || format!("{text:?} is not a length of time; write a whole number and ms, s, m, h or d, for example 30s");
        let (number, unit) = split_unit(text).ok_or_else(refuse)?;
        let millis = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(refuse()),
        };
        number.checked_mul(millis).map(Duration::from_millis).map(Self).ok_or_else(refuse)
    }
}

from_text!(Span);

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string", "pattern": "^[0-9]+ ?(ms|s|m|h|d)$",
            "description": "A length of time: a whole number and ms, s, m, h or d",
        })
    }
}

/// A number of bytes: `64MiB`, `50GiB`, `500MB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || {
            format!(
                "{text:?} is not a size; write a whole number and B, KiB, MiB, GiB, TiB (or kB, MB, GB, TB), for example 50GiB"
            )
        };
        let (number, unit) = split_unit(text).ok_or_else(refuse)?;
        let factor: u64 = match unit {
            "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            "kB" => 1000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            _ => return Err(refuse()),
        };
        number.checked_mul(factor).map(Self).ok_or_else(refuse)
    }
}

from_text!(Size);

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string", "pattern": "^[0-9]+ ?(B|KiB|MiB|GiB|TiB|kB|MB|GB|TB)$",
            "description": "A number of bytes: a whole number and its unit",
        })
    }
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(at)?;
    Some((number.parse().ok()?, unit.trim_start()))
}

/// A value that is never printed.
#[derive(Clone)]
pub(crate) struct Secret(SecretString);

impl Secret {
    /// The value itself: for connecting, never for printing.
    pub(crate) fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(SecretString::from(String::deserialize(deserializer)?)))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl JsonSchema for Secret {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "Passwords come only as ${NAME} from the environment, or with file:PATH from a file that only its owner can read",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_servers_and_folders_can_bear() {
        for good in ["a", "cycle-reports", "a1", &"a".repeat(41)] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", "1a", "A", "a_b", "a b", "-a", &"a".repeat(42), "ä"] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
        assert_eq!(Name::nearest("My Shop_2").as_str(), "my-shop-2");
        assert_eq!(Name::nearest("__").as_str(), "migration");
    }

    #[test]
    fn times_and_sizes_have_units() {
        assert_eq!("7d".parse(), Ok(Span(Duration::from_secs(7 * 86_400))));
        assert_eq!("250ms".parse(), Ok(Span(Duration::from_millis(250))));
        assert_eq!("50GiB".parse(), Ok(Size(50 << 30)));
        assert_eq!("500 MB".parse(), Ok(Size(500_000_000)));
        for wrong in ["", "7", "d", "7 weeks", "-1s", "99999999999999999d"] {
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
        assert!("5".parse::<Size>().is_err());
    }

    #[test]
    fn a_secret_is_never_printed() {
        let secret = Secret(SecretString::from("hunter2".to_owned()));
        assert_eq!(format!("{secret:?}"), "***");
        assert_eq!(secret.expose(), "hunter2");
    }
}
