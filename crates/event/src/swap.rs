//! What changes places in a table whose new columns stand beside its old ones, when the authority moves.

use crate::TableName;
use serde::{Deserialize, Serialize};

/// What stands before the old columns' names once the new ones have taken theirs.
pub const LEGACY: &str = "legacy_";

/// One table, as it is before the switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwapTable {
    /// Its name.
    pub table: TableName,
    /// Columns of which there is an old one and a new one.
    pub pairs: Vec<SwapPair>,
    /// New columns that take no old one's place.
    pub added: Vec<Added>,
    /// Old columns that have no place in the new shape.
    #[serde(default)]
    pub dropped: Vec<String>,
    /// The new primary key, by the names that its columns have after the switch; empty where it stays.
    pub key: Vec<String>,
}

impl SwapTable {
    /// The new column that is the primary key by itself, where no old one was it.
    pub fn surrogate(&self) -> Option<&Added> {
        self.added.iter().find(|added| self.key == [added.name.as_str()])
    }

    /// What an old column is called after the switch.
    pub fn now_called(&self, old: &str) -> String {
        match self.pairs.iter().any(|pair| pair.old == old) || self.dropped.iter().any(|name| name == old) {
            true => format!("{LEGACY}{old}"),
            false => old.to_owned(),
        }
    }
}

/// An old column and the one that takes its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwapPair {
    /// What the old one is called before the switch.
    pub old: String,
    /// What the new one is called before it.
    pub shadow: String,
    /// What the new one is called after it.
    pub name: String,
    /// Whether the new one takes no NULL.
    pub not_null: bool,
    /// How the old one is kept exact after the switch.
    pub kept: Kept,
}

impl SwapPair {
    /// What the old column is called after the switch.
    pub fn legacy(&self) -> String {
        format!("{LEGACY}{}", self.old)
    }
}

/// How an old column is filled in rows that are written after the switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kept {
    /// It is the row's own key: its sequence gives it, as before.
    Drawn {
        /// Whether the new key is a UUID, which the server can draw by itself.
        uuid: bool,
    },
    /// It refers to a row, whose old key is found by the new one.
    Found {
        /// The table that it refers to.
        table: TableName,
        /// That table's old key column, by its name before the switch.
        key: String,
    },
    /// It takes the new column's value wherever that is written.
    Copied,
}

/// A new column that takes no old one's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Added {
    /// Its name.
    pub name: String,
    /// Whether it takes no NULL from the switch on.
    pub not_null: bool,
    /// Whether new rows get a UUID in it.
    pub uuid: bool,
    /// What it refers to, in place of several old columns.
    #[serde(default)]
    pub refers: Option<Refers>,
}

/// A reference by a surrogate, beside the old columns that it stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refers {
    /// The reference that goes by the old columns.
    pub like: String,
    /// The other table.
    pub table: TableName,
    /// Its surrogate.
    pub key: String,
    /// What follows the words of the reference, such as what happens when the other row goes.
    pub suffix: String,
}
