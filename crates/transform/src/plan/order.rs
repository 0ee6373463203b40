//! Parents before children.

use super::PlannedTable;
use crossfade_event::{TableName, catalog::RelationKind};

/// Orders tables so that what a table refers to (or is a partition of) comes before it. Within a cycle of references,
/// which are added after the load, names decide.
pub(super) fn parents_first(mut left: Vec<PlannedTable>) -> Vec<PlannedTable> {
    let mut ordered: Vec<PlannedTable> = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let waits = |table: &PlannedTable| {
            needs(table).any(|name| name != &table.schema.name && left.iter().any(|other| &other.schema.name == name))
        };
        let next = left.iter().position(|table| !waits(table)).or_else(|| {
            // A cycle: break it where fewest parents are missing; partitions never break.
            (0..left.len()).min_by_key(|index| left.get(*index).map_or(usize::MAX, |table| missing(table, &left)))
        });
        ordered.push(left.remove(next.unwrap_or(0)));
    }
    ordered
}

fn missing(table: &PlannedTable, left: &[PlannedTable]) -> usize {
    let partition = if matches!(table.def.kind, RelationKind::Partition { .. }) { 1_000 } else { 0 };
    partition + needs(table).filter(|name| left.iter().any(|other| &other.schema.name == *name)).count()
}

fn needs(table: &PlannedTable) -> impl Iterator<Item = &TableName> {
    let parent = match &table.def.kind {
        RelationKind::Partition { parent, .. } => Some(parent),
        _ => None,
    };
    table.def.foreign_keys.iter().map(|key| &key.references).chain(parent)
}
