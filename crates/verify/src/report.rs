//! What verification found, for people and for programs.

use crate::{
    Check, Options,
    drill::Suspect,
    judge::Judged,
    side::{Digests, Expected},
};
use crossfade_event::{Cell, Identity, Key, Row, TableId, TableSchema, codec};
use serde::Serialize;
use std::collections::BTreeMap;

/// How two rows differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DifferenceKind {
    /// The target lacks the row.
    Missing,
    /// The target has a row that it should not have.
    Extra,
    /// Both have it, with other values.
    Different,
}

/// One row that differs; named by the hash of its key, for values are not shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// How.
    pub kind: DifferenceKind,
    /// The hash of the row's key in the target, hexadecimal.
    pub key_hash: String,
    /// The key itself, as text, where it was asked for: the values of the key's columns, in the key's order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<Vec<Option<String>>>,
    /// The columns whose values differ.
    pub columns: Vec<String>,
}

/// One table of the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableReport {
    /// Its name.
    pub table: String,
    /// Rows that it should hold.
    pub expected_rows: u64,
    /// Rows that it holds.
    pub target_rows: u64,
    /// Rows that differ.
    pub differences: u64,
    /// Some of them.
    pub samples: Vec<Difference>,
}

/// The whole verification.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The source position at which both sides were compared.
    pub position: Option<String>,
    /// Rows that differ, in all tables.
    pub differences: u64,
    /// Source rows that the transforms refuse: they are in quarantine, not in the target.
    pub refused_rows: u64,
    /// Rows that changed whenever they were looked at, so that nothing can be said of them.
    pub unjudged_rows: u64,
    /// Buckets in which both sides differ and whose rows were not looked at, for enough differences were found already.
    #[serde(skip_serializing_if = "is_none")]
    pub open_buckets: u64,
    /// Table by table.
    pub tables: Vec<TableReport>,
    /// What the target was asked about itself.
    pub checks: Vec<Check>,
}

fn is_none(count: &u64) -> bool {
    *count == 0
}

impl Report {
    /// Everything that stands against both sides being the same: rows, references, new keys, and buckets left open.
    pub fn wrong(&self) -> u64 {
        self.differences + self.refused_rows + self.broken() + self.open_buckets
    }

    /// Rows that refer to nothing, and new keys that were given twice.
    pub fn broken(&self) -> u64 {
        self.checks.iter().map(|check| check.broken).sum()
    }
}

pub(crate) fn report(
    expected: &Expected<'_>,
    digests: &Digests,
    judged: &Judged,
    open_buckets: u64,
    checks: Vec<Check>,
    options: &Options,
) -> Report {
    let mut by_table: BTreeMap<TableId, Vec<Difference>> = BTreeMap::new();
    for ((table, key), suspect) in &judged.real {
        if let Some(side) = expected.targets.get(table) {
            by_table.entry(*table).or_default().push(difference(&side.schema, key, suspect, options.show_keys));
        }
    }
    let tables: Vec<TableReport> = expected
        .targets
        .iter()
        .map(|(table, side)| {
            let found = by_table.remove(table).unwrap_or_default();
            let rows = |side: &BTreeMap<TableId, crate::Buckets>| side.get(table).map_or(0, crate::Buckets::rows);
            TableReport {
                table: side.schema.name.to_string(),
                expected_rows: rows(&digests.source),
                target_rows: rows(&digests.target),
                differences: found.len() as u64,
                samples: found.into_iter().take(options.samples).collect(),
            }
        })
        .collect();
    Report {
        position: digests.position.map(|position| position.to_string()),
        differences: tables.iter().map(|table| table.differences).sum(),
        refused_rows: digests.refused,
        unjudged_rows: judged.unjudged,
        open_buckets,
        tables,
        checks,
    }
}

pub(crate) fn difference(schema: &TableSchema, key: &Key, suspect: &Suspect, show_keys: bool) -> Difference {
    let kind = match (suspect.expected.len(), suspect.found.len()) {
        (_, 0) => DifferenceKind::Missing,
        (0, _) => DifferenceKind::Extra,
        (one, two) if one > two => DifferenceKind::Missing,
        (one, two) if one < two => DifferenceKind::Extra,
        _ => DifferenceKind::Different,
    };
    let columns = match (suspect.expected.first(), suspect.found.first()) {
        (Some(one), Some(two)) => differing_columns(schema, one, two),
        _ => Vec::new(),
    };
    // Without a key of its own a row is known by all of it, and that is not shown.
    let is_key = schema.identity == Identity::Key;
    let shown = (show_keys && is_key).then(|| shown(schema, key));
    Difference { kind, key_hash: format!("{:016x}", key.hash64()), key: shown, columns }
}

/// A key's values as text; of a type that only its database can read, the kind.
fn shown(schema: &TableSchema, key: &Key) -> Vec<Option<String>> {
    let columns = schema.key_columns();
    let text = |(column, cell): (&usize, Cell<'_>)| {
        let type_ = &schema.columns.get(*column)?.type_;
        match cell {
            Cell::Bytes(bytes) => Some(match codec::decode(type_, bytes) {
                Ok(value) => codec::to_text(&value),
                Err(_) => format!("({})", type_.name),
            }),
            Cell::Null | Cell::Unchanged | Cell::Absent => None,
        }
    };
    columns.iter().zip(key.cells()).map(text).collect()
}

fn differing_columns(schema: &TableSchema, one: &Row, two: &Row) -> Vec<String> {
    schema
        .columns
        .iter()
        .zip(one.cells().zip(two.cells()))
        .filter(|(_, (one, two))| one != two)
        .map(|(column, _)| column.name.to_string())
        .collect()
}
