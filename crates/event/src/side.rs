//! The two sides of a migration, of which one has the authority: its writers count.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// One side of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The one that the applications wrote before: the source.
    #[default]
    Old,
    /// The one that the migration made: the sink.
    New,
}

impl Side {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Old => Self::New,
            Self::New => Self::Old,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Old => "old",
            Self::New => "new",
        })
    }
}

/// A word that names no side.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` names no side; known are old and new")]
pub struct ParseSideError(String);

impl FromStr for Side {
    type Err = ParseSideError;

    fn from_str(text: &str) -> Result<Self, ParseSideError> {
        match text {
            "old" => Ok(Self::Old),
            "new" => Ok(Self::New),
            other => Err(ParseSideError(other.to_owned())),
        }
    }
}
