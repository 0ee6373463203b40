//! What verification found, for people and for programs.

use crate::{
    Options,
    drill::Suspect,
    side::{Digests, Expected},
};
use crossfade_event::{Key, Row, TableId, TableSchema};
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The source position at which both sides were compared.
    pub position: Option<String>,
    /// Rows that differ, in all tables.
    pub differences: u64,
    /// Source rows that the transforms refuse: they are in quarantine, not in the target.
    pub refused_rows: u64,
    /// Table by table.
    pub tables: Vec<TableReport>,
}

pub(crate) fn report(
    expected: &Expected<'_>,
    digests: &Digests,
    real: BTreeMap<(TableId, Key), Suspect>,
    options: &Options,
) -> Report {
    let mut by_table: BTreeMap<TableId, Vec<Difference>> = BTreeMap::new();
    for ((table, key), suspect) in real {
        if let Some(side) = expected.targets.get(&table) {
            by_table.entry(table).or_default().push(difference(&side.schema, &key, &suspect));
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
        tables,
    }
}

fn difference(schema: &TableSchema, key: &Key, suspect: &Suspect) -> Difference {
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
    Difference { kind, key_hash: format!("{:016x}", key.hash64()), columns }
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
