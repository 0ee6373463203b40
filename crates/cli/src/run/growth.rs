//! What a source's new tables add to a plan; pure.

use crate::error::CliError;
use crossfade_event::{
    TableName, TableSchema,
    catalog::{Catalog, RelationKind, TableDef},
};
use crossfade_transform::Plan;
use std::sync::Arc;

/// The plan's catalog with the tables that came since, and which those are.
#[derive(Debug)]
pub(super) struct Growth {
    /// Everything together. What was planned before stays as it was.
    pub(super) catalog: Catalog,
    /// Tables with rows that the log knows nothing of.
    pub(super) uncaptured: Vec<TableName>,
    /// Those that the plan knew nothing of.
    pub(super) planned: Vec<TableName>,
}

/// Compares what is planned and what is captured with what the source has now.
pub(super) fn grow(planned: &Catalog, found: Catalog, captured: &[Arc<TableSchema>]) -> Result<Growth, CliError> {
    let is_captured = |table: &TableDef| {
        captured.iter().any(|schema| match (schema.native_id, table.native_id) {
            (0, _) | (_, 0) => schema.name == table.name,
            (one, other) => one == other,
        })
    };
    let is_planned = |table: &TableDef| planned.tables.iter().any(|known| known.name == table.name);
    let mut growth = Growth { catalog: planned.clone(), uncaptured: Vec::new(), planned: Vec::new() };
    for table in found.tables {
        let has_rows = !matches!(table.kind, RelationKind::Partitioned { .. });
        if has_rows && is_captured(&table) {
            continue;
        }
        if let Some(obstacle) = &table.obstacle {
            return Err(CliError::refused(obstacle.clone()));
        }
        if has_rows {
            growth.uncaptured.push(table.name.clone());
        }
        if !is_planned(&table) {
            growth.planned.push(table.name.clone());
            growth.catalog.tables.push(table);
        }
    }
    growth.catalog.tables.sort_by(|one, other| one.name.cmp(&other.name));
    let known: Vec<_> = growth.catalog.types.iter().map(|type_| type_.name.clone()).collect();
    growth.catalog.types.extend(found.types.into_iter().filter(|type_| !known.contains(&type_.name)));
    let known: Vec<_> = growth.catalog.sequences.iter().map(|sequence| sequence.name.clone()).collect();
    growth.catalog.sequences.extend(found.sequences.into_iter().filter(|sequence| !known.contains(&sequence.name)));
    growth.catalog.extensions.extend(found.extensions);
    growth.catalog.extensions.sort();
    growth.catalog.extensions.dedup();
    Ok(growth)
}

impl Growth {
    /// Refuses what would change a table that is being moved already: its rows are written in its present shape.
    pub(super) fn check(&self, before: &Plan, after: &Plan) -> Result<(), CliError> {
        let new = self.planned.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        for old in before.tables() {
            let same = after.tables().iter().find(|table| table.schema.id == old.schema.id);
            let same = same.is_some_and(|table| {
                table.schema.columns == old.schema.columns
                    && table.schema.identity == old.schema.identity
                    && table.write == old.write
            });
            if !same {
                return Err(CliError::refused(format!(
                    "taking in {new} would give {} another shape, for it refers to a table that was not there",
                    old.schema.name
                ))
                .hint("move the new tables by a migration of their own, or begin anew: `crossfade rollback --wipe`"));
            }
        }
        if before.text_columns().is_empty()
            && let Some((table, column)) = after.text_columns().first()
        {
            return Err(CliError::refused(format!(
                "the column {column} of {table} travels in its text form only, and the stream was begun without it"
            ))
            .hint("stop the run, set text = true in [source], run again, and then resume --add"));
        }
        Ok(())
    }
}
