//! What the spec says about transforming: `[keys.*]`, `[rekey]` and `[[table]]`. Read as it stands, refused where it
//! is not understood; what the words mean for the tables at hand is worked out by [`crate::plan`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub(crate) use crate::step::Normalise;
use crate::step::Step;

/// Everything the spec says about transforming.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// How new keys are made; named, so that tables and references share it.
    pub keys: BTreeMap<String, KeyRule>,
    /// Which tables get new keys.
    pub rekey: Option<Rekey>,
    /// Rules for single tables.
    pub table: Vec<TableRule>,
}

/// How new keys are made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyRule {
    /// The way.
    pub make: KeyMaker,
    /// The namespace of a `uuid-v5` or `uuid-v8-sha256` (a UUID): two migrations with the same one make the same keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The column that a `uuid-v7` takes its time from; it must never change in a row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// How the parts of a `canonical-sha256` key are normalised, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub normalise: Vec<Normalise>,
    /// The version of a `canonical-sha256` key: part of what is hashed, and of nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
}

/// A way to make keys. All are pure: the same old key gives the same new one, for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum KeyMaker {
    /// Random to everyone without the migration's secret: HMAC-SHA-256 of the old key.
    #[serde(rename = "uuid-v4")]
    UuidV4,
    /// SHA-1 of a namespace and the old key.
    #[serde(rename = "uuid-v5")]
    UuidV5,
    /// The time of a column of the row, then HMAC-SHA-256 of the old key.
    #[serde(rename = "uuid-v7")]
    UuidV7,
    /// SHA-256 of a namespace and the old key.
    #[serde(rename = "uuid-v8-sha256")]
    UuidV8Sha256,
    /// `sha256:` and 64 hexadecimal digits: SHA-256 of the normalised old key.
    #[serde(rename = "canonical-sha256")]
    CanonicalSha256,
}

/// Which tables get new keys: every integer key of the tables, and every reference to one, found in the catalog.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rekey {
    /// Patterns of source tables: `public.*`, `!public.settings`. Later ones win.
    pub tables: Vec<String>,
    /// The name of the `[keys.*]` rule.
    #[serde(default = "default_key")]
    pub with: String,
    /// The name of the mapping table in the target.
    #[serde(default = "default_mapping")]
    pub mapping: String,
    /// References that the catalog does not know: `"public.audit.actor_id" = "public.users"`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub references: BTreeMap<String, String>,
}

fn default_key() -> String {
    "default".to_owned()
}

fn default_mapping() -> String {
    "uuid_migration_mapping".to_owned()
}

/// Rules for one source table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TableRule {
    /// The source's table: `public.users`, or `users` where only one schema has it.
    pub from: String,
    /// Its name in the target: a table, or `schema.table`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// How it is written; the sink's `write` unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write: Option<WriteKind>,
    /// For `shadow-columns`: which new column stands beside each re-keyed or changed one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shadow: BTreeMap<String, String>,
    /// The `[keys.*]` rule for this table's key, whatever its type; it wins over `[rekey]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// A new column that takes the place of a composite primary key, made from it; the old one stays unique.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub surrogate: Option<String>,
    /// What is done to each row, in this order. New keys are made last, from the source's own values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
    /// Whether a change of a looked-up row rewrites the rows that took from it. Not built yet: only `false`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub refresh: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// How a table is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WriteKind {
    /// A table of its own in the target.
    #[default]
    ShadowTables,
    /// New columns beside the old ones, in the same table.
    ShadowColumns,
    /// Records that tell each change in both key versions; only for sinks whose rows are records.
    DualRecords,
}
