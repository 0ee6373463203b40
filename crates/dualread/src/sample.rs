//! Which reads are compared: a share of all tenants and keys, by hash, so that a key is always among them or never.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, str::FromStr};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Hundredths of a percent in the whole.
const WHOLE: u16 = 10_000;

/// What a read is about: a tenant and a key of its. Only a hash of both is kept; it is the same on every machine and for
/// ever (XXH3, 64 bits, of the key under a seed that is the hash of the tenant).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Subject(u64);

impl Subject {
    /// A key of a tenant. Where there are no tenants, any constant will do.
    pub fn new(tenant: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Self {
        Self(xxh3_64_with_seed(key.as_ref(), xxh3_64(tenant.as_ref())))
    }
}

impl fmt::Debug for Subject {
    // A key never reaches logs, only its hash does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "subject#{:016x}", self.0)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A share in hundredths of a percent, from none to all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Percent(u16);

/// A text that is no share.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no share; write a number from 0 to 100 with at most two decimals and a percent sign: 5%, 0.25%")]
pub struct PercentError(String);

impl Percent {
    /// Nothing is compared.
    pub const NONE: Self = Self(0);
    /// Everything is.
    pub const ALL: Self = Self(WHOLE);

    /// So many hundredths of a percent; `None` above the whole.
    pub fn hundredths(hundredths: u16) -> Option<Self> {
        (hundredths <= WHOLE).then_some(Self(hundredths))
    }

    /// The share as a number: 5 for 5 %.
    pub fn value(self) -> f64 {
        f64::from(self.0) / 100.0
    }

    /// The share as a part of one: 0.05 for 5 %.
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / f64::from(WHOLE)
    }

    /// Whether the subject is in this share. Of two shares the larger one has every subject of the smaller one.
    pub fn takes(self, subject: Subject) -> bool {
        (u128::from(subject.0) * u128::from(WHOLE)) >> 64 < u128::from(self.0)
    }
}

impl FromStr for Percent {
    type Err = PercentError;

    fn from_str(text: &str) -> Result<Self, PercentError> {
        let refuse = || PercentError(text.to_owned());
        let number = text.trim().strip_suffix('%').unwrap_or(text.trim()).trim_end();
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || part.len() > 2 || !digits(whole) || !digits(part) {
            return Err(refuse());
        }
        let whole: u16 = whole.parse().map_err(|_| refuse())?;
        let part: u16 = format!("{part:0<2}").parse().map_err(|_| refuse())?;
        let hundredths = whole.checked_mul(100).and_then(|whole| whole.checked_add(part)).ok_or_else(refuse)?;
        Self::hundredths(hundredths).ok_or_else(refuse)
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0 / 100, self.0 % 100) {
            (whole, 0) => write!(f, "{whole}%"),
            (whole, part) if part % 10 == 0 => write!(f, "{whole}.{}%", part / 10),
            (whole, part) => write!(f, "{whole}.{part:02}%"),
        }
    }
}

impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn share() -> impl Strategy<Value = Percent> {
        (0..=WHOLE).prop_map(Percent)
    }

    proptest! {
        #[test]
        fn raising_the_share_only_adds(tenant: Vec<u8>, key: Vec<u8>, one in share(), other in share()) {
            let subject = Subject::new(&tenant, &key);
            let (less, more) = (one.min(other), one.max(other));
            prop_assert!(!less.takes(subject) || more.takes(subject));
            prop_assert_eq!(more.takes(subject), more.takes(Subject::new(&tenant, &key)));
            prop_assert!(Percent::ALL.takes(subject) && !Percent::NONE.takes(subject));
        }

        #[test]
        fn a_share_is_read_as_it_is_written(share in share()) {
            prop_assert_eq!(share.to_string().parse::<Percent>().unwrap(), share);
        }
    }

    #[test]
    fn a_share_takes_about_so_many() {
        for (share, least, most) in [("5%", 4_700, 5_300), ("0.5%", 400, 600), ("50%", 49_200, 50_800)] {
            let share: Percent = share.parse().unwrap();
            let taken = (0..100_000u32).filter(|key| share.takes(Subject::new("acme", key.to_be_bytes()))).count();
            assert!((least..=most).contains(&taken), "{share} took {taken} of 100,000");
        }
    }

    #[test]
    fn the_hash_is_the_same_for_ever_and_keeps_tenant_and_key_apart() {
        assert_eq!(Subject::new("acme", "42").to_string(), VECTOR);
        assert_ne!(Subject::new("ab", "c"), Subject::new("a", "bc"));
    }

    const VECTOR: &str = "9fcf1a48b80f9a03";

    #[test]
    fn what_is_no_share_is_refused() {
        for wrong in ["", "%", "-1%", "101%", "100.01%", "1.234%", "five", "1e1"] {
            assert!(wrong.parse::<Percent>().is_err(), "{wrong}");
        }
        assert_eq!("5".parse(), Ok(Percent(500)));
        assert_eq!("0.25%".parse(), Ok(Percent(25)));
    }
}
