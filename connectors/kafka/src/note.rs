//! How a note stands in a compacted topic of ours: as JSON in `{"format": 1, "says": …}`.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The version that is written, and the only one that is read.
pub(crate) const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Envelope<S> {
    format: u32,
    says: S,
}

/// Why a record is no note, or none that can be read.
#[derive(Debug)]
pub(crate) enum Wrong {
    Foreign,
    TooNew(u32),
}

pub(crate) fn to_bytes(says: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Envelope { format: FORMAT, says })
}

pub(crate) fn parse<S: DeserializeOwned>(value: &[u8]) -> Result<S, Wrong> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let version: Version = serde_json::from_slice(value).map_err(|_| Wrong::Foreign)?;
    if version.format != FORMAT {
        return Err(Wrong::TooNew(version.format));
    }
    serde_json::from_slice(value).map(|envelope: Envelope<S>| envelope.says).map_err(|_| Wrong::Foreign)
}
