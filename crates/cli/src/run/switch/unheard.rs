//! Changes of shape that the stream has heard nothing of. PostgreSQL tells a table's shape with the next row of it, and a row that
//! is written is carried in its old shape by whoever has not looked yet: a column that came right before a switch would be
//! missing after it.

use crate::{
    error::CliError,
    run::{control::Shared, plan_file::PlanFile},
};
use crossfade_event::{
    TableSchema,
    catalog::{Catalog, RelationKind, TableDef},
};
use std::sync::Arc;

/// Refuses where a table of the side that is written has another shape than the stream's last one.
///
/// # Errors
/// Names the first such table and what of it is not known. Asked again, it holds once the stream has heard of it.
pub(super) fn refuse(stream: &Shared, now: &Catalog) -> Result<(), CliError> {
    let planned = PlanFile::read(&stream.spec.base())?.map(|plan| plan.catalog);
    let schemas = stream.source_schemas();
    let with_rows = now.tables.iter().filter(|table| !matches!(table.kind, RelationKind::Partitioned { .. }));
    for table in with_rows {
        let Some(known) = known(&schemas, table) else { continue };
        if let Some(what) = unheard(known, table, planned.as_ref().and_then(|plan| plan.table(&table.name))) {
            return Err(CliError::refused(format!(
                "{} was altered, and the stream has heard nothing of it yet: {what}",
                table.name
            ))
            .hint("change one row of it (an UPDATE that leaves it as it is will do), then `crossfade verify`, and ask again"));
        }
    }
    Ok(())
}

fn known<'s>(schemas: &'s [Arc<TableSchema>], table: &TableDef) -> Option<&'s TableSchema> {
    let by_number = schemas.iter().find(|schema| schema.native_id != 0 && Some(schema.native_id) == number_of(table));
    by_number.or_else(|| schemas.iter().find(|schema| schema.name == table.name)).map(Arc::as_ref)
}

fn number_of(table: &TableDef) -> Option<u32> {
    (table.native_id != 0).then_some(table.native_id)
}

/// What of a table's columns the stream does not know. A type that is told in other words by stream and catalog is known where
/// the catalog says of it what it said when the migration was planned.
fn unheard(known: &TableSchema, now: &TableDef, planned: Option<&TableDef>) -> Option<String> {
    let carried = || now.columns.iter().filter(|column| column.generated.is_none());
    for column in carried() {
        let column = &column.column;
        let Some(heard) = known.columns.iter().find(|heard| heard.name == column.name) else {
            return Some(format!("its column {:?} is new", column.name));
        };
        let as_planned = planned.is_some_and(|table| {
            table.columns.iter().any(|before| before.column.name == column.name && before.column.type_ == column.type_)
        });
        if heard.type_ != column.type_ && !as_planned {
            return Some(format!("its column {:?} has another type", column.name));
        }
    }
    let gone = known.columns.iter().find(|heard| !carried().any(|column| column.column.name == heard.name));
    gone.map(|heard| format!("its column {:?} is gone or has another name", heard.name))
}
