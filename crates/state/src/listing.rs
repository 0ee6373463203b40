//! What is in a store, for `crossfade state ls`. No row values are in the state, so all of it may be shown.

use crate::{
    CheckpointKey, ChunkKey, CursorKey, DigestKey, EpochKey, FoldMarksKey, IdentityKey, IngestFoldKey, JournalFoldKey,
    Key, Prefix, QuarantineKey, SettingKey, StateError, StateStore, TableFoldKey,
};
use serde::Serialize;
use std::fmt::Debug;

/// One entry of a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Its kind.
    pub kind: &'static str,
    /// Its key.
    pub key: String,
    /// Its value; a long one is cut.
    pub value: String,
}

const SHOWN_CHARS_MAX: usize = 400;

/// Everything in a store, kind by kind.
///
/// # Errors
/// The first entry that cannot be read.
pub fn listing<S: StateStore>(store: &S) -> Result<Vec<Listed>, StateError> {
    let mut all = Vec::new();
    list::<S, CursorKey>(store, &mut all)?;
    list::<S, IngestFoldKey>(store, &mut all)?;
    list::<S, FoldMarksKey>(store, &mut all)?;
    list::<S, TableFoldKey>(store, &mut all)?;
    list::<S, ChunkKey>(store, &mut all)?;
    list::<S, CheckpointKey>(store, &mut all)?;
    list::<S, JournalFoldKey>(store, &mut all)?;
    list::<S, QuarantineKey>(store, &mut all)?;
    list::<S, DigestKey>(store, &mut all)?;
    list::<S, IdentityKey>(store, &mut all)?;
    list::<S, SettingKey>(store, &mut all)?;
    list::<S, EpochKey>(store, &mut all)?;
    Ok(all)
}

fn list<S: StateStore, K: Key + Debug>(store: &S, all: &mut Vec<Listed>) -> Result<(), StateError> {
    for (key, value) in store.scan(&Prefix::<K>::all())? {
        let value = format!("{value:?}");
        let shown = match value.char_indices().nth(SHOWN_CHARS_MAX) {
            Some((at, _)) => format!("{}…", value.get(..at).unwrap_or_default()),
            None => value,
        };
        all.push(Listed { kind: K::NAME, key: format!("{key:?}"), value: shown });
    }
    Ok(())
}
