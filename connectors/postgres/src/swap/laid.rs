//! What a switch within tables will do, as the catalog had it when it was prepared.

use crossfade_event::{TableName, swap::SwapTable};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Everything that changes places.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Laid {
    /// The tables.
    pub tables: Vec<LaidTable>,
}

/// One table of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaidTable {
    /// What changes places.
    pub swap: SwapTable,
    /// The columns' types, by their names before the switch.
    pub types: BTreeMap<String, String>,
    /// Defaults that the new columns take over, by their names after the switch.
    pub defaults: BTreeMap<String, String>,
    /// Indexes of the new columns.
    pub indexes: Vec<LaidIndex>,
    /// Checks of old columns, which the new ones get at the clean-up.
    pub checks: Vec<LaidCheck>,
    /// The primary key, where it changes.
    pub primary: Option<LaidKey>,
    /// References of this table whose columns change places.
    pub foreign: Vec<LaidForeign>,
}

/// An index of the new columns that does what one of the old ones does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaidIndex {
    /// The old one; `None` for that of a key that had no column before.
    pub old: Option<String>,
    /// Its own name until the clean-up.
    pub new: String,
    /// Whether it is unique.
    pub unique: bool,
    /// Whether the old one is a constraint's.
    pub constraint: bool,
    /// `USING …`, by the names before the switch.
    pub using: String,
}

/// A check of an old column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaidCheck {
    /// Its name, before and after.
    pub name: String,
    /// The new one's name until the old one goes.
    pub new: String,
    /// `CHECK …`, by the names after the switch.
    pub definition: String,
}

/// A primary key that moves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaidKey {
    /// The constraint's name, before and after.
    pub name: String,
    /// The unique index that becomes the new key.
    pub index: String,
    /// The unique index that the old key keeps.
    pub legacy_index: String,
    /// The old key's columns, by their names before the switch.
    pub columns: Vec<String>,
}

/// A reference that moves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaidForeign {
    /// Its name, before and after.
    pub name: String,
    /// The new one's name until the old one goes.
    pub new: String,
    /// `FOREIGN KEY …`, by the names before the switch; empty for one that there was not.
    pub old_definition: String,
    /// The same of the new one, by the names after it.
    pub new_definition: String,
    /// Whether the old one is known to hold.
    pub valid: bool,
}

impl LaidForeign {
    /// Whether only the new columns have it, by one name from the beginning.
    pub(super) fn is_added(&self) -> bool {
        self.old_definition.is_empty()
    }
}

impl LaidTable {
    /// Its name.
    pub fn name(&self) -> &TableName {
        &self.swap.table
    }

    /// The columns that take no NULL from the switch on, by their names then.
    pub(super) fn not_null(&self) -> impl Iterator<Item = &str> {
        let pairs = self.swap.pairs.iter().filter(|pair| pair.not_null).map(|pair| pair.name.as_str());
        pairs.chain(self.swap.added.iter().filter(|added| added.not_null).map(|added| added.name.as_str()))
    }
}

/// PostgreSQL cuts names at 63 bytes; what tells two apart stands at the end and must not be what is cut.
pub(super) fn named(name: &str, suffix: &str) -> String {
    let room = 63usize.saturating_sub(suffix.len());
    let end = (0..=name.len().min(room)).rev().find(|end| name.is_char_boundary(*end)).unwrap_or(0);
    format!("{}{suffix}", name.get(..end).unwrap_or_default())
}
