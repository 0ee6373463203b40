//! The catalog that a migration was planned with, followed through the schemas that travel in the log. A schema tells of
//! columns; what the catalog says in names and words beside them (keys, references, checks, indexes) goes with these.

use crossfade_event::{
    Column, Identity, TableSchema,
    catalog::{Catalog, ColumnDef, KeyDef, TableDef},
};
use crossfade_transform::Became;

/// Brings a catalog to what `schema` says of its table: columns renamed (told by their number), dropped, added,
/// retyped; a table that it does not know is added with what the schema tells.
pub fn evolve_catalog(catalog: &mut Catalog, schema: &TableSchema) {
    let found = catalog
        .tables
        .iter()
        .position(|table| table.name == schema.name || (schema.native_id != 0 && table.native_id == schema.native_id));
    let dialect = catalog.dialect;
    let Some(table) = found.and_then(|index| catalog.tables.get_mut(index)) else {
        catalog.tables.push(table_from(schema));
        return;
    };
    let name_now = |def: &ColumnDef| {
        let now = schema.columns.iter().find(|column| column.is_same(&def.column));
        // Schemas do not speak of columns that the database computes.
        let own = || def.generated.is_some().then(|| def.column.name.to_string());
        (def.column.name.to_string(), now.map(|column| column.name.to_string()).or_else(own))
    };
    let became = Became::new(dialect, table.columns.iter().map(name_now).collect());
    let same_names = became.is_nothing();
    follow_columns(table, schema, same_names);
    if same_names {
        return;
    }
    for left in became.follow(table) {
        tracing::warn!(table = %table.name, "a column got another name or went, and this is not followed: {left}");
    }
    if table.primary_key.as_mut().is_some_and(|key| !became.rename(&mut key.columns)) {
        table.primary_key = None;
    }
    table.uniques.retain_mut(|key| became.rename(&mut key.columns));
    table.foreign_keys.retain_mut(|key| became.rename(&mut key.columns));
    let name = table.name.clone();
    for other in &mut catalog.tables {
        other.foreign_keys.retain_mut(|key| key.references != name || became.rename(&mut key.referenced_columns));
    }
}

fn follow_columns(table: &mut TableDef, schema: &TableSchema, same_names: bool) {
    let follow = |column: &Column| match table.columns.iter().find(|def| column.is_same(&def.column)) {
        Some(def) => {
            let Column { name, type_, default, .. } = column.clone();
            let followed = Column { name, type_, default, ..def.column.clone() };
            // Rows carry it: whatever computed it does so no more.
            ColumnDef { column: followed, generated: None, ..def.clone() }
        }
        None => from_schema(Column { key: None, nullable: true, ..column.clone() }),
    };
    let mut columns: Vec<ColumnDef> = schema.columns.iter().map(follow).collect();
    let computed =
        |def: &&ColumnDef| def.generated.is_some() && !schema.columns.iter().any(|one| one.is_same(&def.column));
    columns.extend(table.columns.iter().filter(computed).cloned());
    if columns.len() == table.columns.len() && same_names {
        // Same columns: keep the catalog's own order, so that nothing changes where nothing did.
        columns.sort_by_key(|def| table.columns.iter().position(|old| old.column.name == def.column.name));
    }
    table.columns = columns;
}

/// A column of which only a schema tells, with the constant that it came with.
fn from_schema(column: Column) -> ColumnDef {
    ColumnDef { default: column.default.as_ref().map(ToString::to_string), ..ColumnDef::plain(column) }
}

fn table_from(schema: &TableSchema) -> TableDef {
    let key: Vec<String> = schema
        .key_columns()
        .into_iter()
        .filter_map(|index| schema.columns.get(index))
        .map(|column| column.name.to_string())
        .collect();
    let has_key = schema.identity == Identity::Key && !key.is_empty();
    let primary_key = has_key.then(|| KeyDef::plain(format!("{}_pkey", schema.name.name), key));
    let columns = schema.columns.iter().cloned().map(from_schema).collect();
    TableDef {
        native_id: schema.native_id,
        ..TableDef::plain(schema.name.clone(), schema.identity, columns, primary_key)
    }
}
