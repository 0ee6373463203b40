//! What a spec says of a SQLite file.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};

/// A SQLite file, as source or as sink.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The file. A source must exist; a sink's file is made if it does not.
    pub path: PathBuf,
    /// How long a lock of another process is waited for before the call fails and is retried: `500ms`, `5s`, `1m`.
    #[serde(default = "default_busy_timeout", with = "duration")]
    #[schemars(with = "String")]
    pub busy_timeout: Duration,
    /// Page cache of the connection that writes, in MiB. Those that only read in order take 8 at most.
    #[serde(default = "default_cache_mib")]
    pub cache_mib: u32,
}

impl Config {
    /// A file with the usual limits.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), busy_timeout: default_busy_timeout(), cache_mib: default_cache_mib() }
    }
}

/// Reading in order gains nothing from a larger cache.
const READER_CACHE_MIB: u32 = 8;

impl Config {
    /// The same file, for connections that read it in order.
    pub(crate) fn for_reading(self) -> Self {
        Self { cache_mib: self.cache_mib.min(READER_CACHE_MIB), ..self }
    }
}

/// How much of a row's former self the source records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OldRows {
    /// The key: enough to apply every change. Tables without a key always record whole rows.
    #[default]
    Key,
    /// The whole row, for transforms that need it (a new key made from another column of a deleted row).
    Full,
}

/// How a source copies and records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SourceOptions {
    /// How many chunks are copied at once.
    pub workers: usize,
    /// About how many rows a chunk has.
    pub chunk_rows: u64,
    /// How much of a row's former self is recorded.
    pub old_rows: OldRows,
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self { workers: 2, chunk_rows: 250_000, old_rows: OldRows::Key }
    }
}

fn default_busy_timeout() -> Duration {
    Duration::from_secs(5)
}

fn default_cache_mib() -> u32 {
    64
}

/// Durations as people write them.
mod duration {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::time::Duration;

    pub(super) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{}ms", value.as_millis()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).ok_or_else(|| {
            D::Error::custom(format!(
                "`{text}` is no duration up to a day; write a number and ms, s, m or h: 500ms, 5s"
            ))
        })
    }

    pub(super) fn parse(text: &str) -> Option<Duration> {
        let digits = text.find(|c: char| !c.is_ascii_digit())?;
        let (number, unit) = text.split_at(digits);
        let unit_ms: u64 = match unit.trim() {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        let ms = number.parse::<u64>().ok()?.checked_mul(unit_ms)?;
        (ms <= 86_400_000).then(|| Duration::from_millis(ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        assert_eq!(duration::parse("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(duration::parse("2m"), Some(Duration::from_secs(120)));
        assert_eq!(duration::parse("5"), None);
        assert_eq!(duration::parse("99999h"), None);
    }

    #[test]
    fn the_sample_in_the_folder_is_read() {
        let config: Config = toml::from_str(include_str!("../config.toml")).unwrap();
        assert_eq!(config, Config::new("./shop.db"));
    }
}
