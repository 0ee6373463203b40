//! The mapping table: which old key became which new one.

use super::{Context, PlanError, PlannedTable, Writing, table_id};
use crate::{rules::WriteKind, types};
use crossfade_event::{
    Column, ColumnType, Identity, SchemaVersion, TableName, TableSchema,
    catalog::{ColumnDef, Dialect, KeyDef, TableDef},
};
use std::sync::Arc;

/// Where the rows of the mapping go.
#[derive(Debug, Clone)]
pub(crate) struct MappingOut {
    pub(crate) schema: Arc<TableSchema>,
    /// The output that is the table's own new key.
    pub(crate) out: usize,
    /// Where the old key is loaded, if the new one is not made of it: the row takes another row's key.
    pub(crate) old: Option<Vec<usize>>,
}

/// The mapping table as planned.
#[derive(Debug, Clone)]
pub(crate) struct Mapping {
    pub(crate) table: PlannedTable,
}

/// `None` when no key becomes a new one. `migrated_at` is filled by the sink, for transforms know no clock: it stands
/// in the definition with a default, and not among the columns that rows carry.
pub(super) fn plan(context: &Context<'_>) -> Result<Option<Mapping>, PlanError> {
    if context.domains.is_empty() {
        return Ok(None);
    }
    let dialect = context.options.dialect;
    let name = name(context);
    if context.names.values().any(|taken| *taken == name) {
        return Err(PlanError::Clash(format!(
            "the mapping table would be called {name}, as another table of the target is; \
             give it another name with `mapping` in [rekey]"
        )));
    }
    let uuids = context.domains.makers().all(|maker| maker.makes_uuid());
    let text = column_type("text", dialect);
    let new_id = if uuids && dialect == Dialect::Postgres { column_type("uuid", dialect) } else { text.clone() };
    let column = |name: &str, type_: &ColumnType, key: Option<u16>| Column {
        name: Arc::from(name),
        type_: type_.clone(),
        key,
        nullable: false,
        native_id: 0,
        default: None,
    };
    let carried =
        vec![column("table_name", &text, Some(0)), column("old_id", &text, Some(1)), column("new_id", &new_id, None)];
    let (time, now) = match dialect {
        Dialect::Postgres => (column_type("timestamptz", dialect), "now()"),
        Dialect::Sqlite => (text, "(strftime('%Y-%m-%dT%H:%M:%fZ','now'))"),
    };
    let mut columns: Vec<ColumnDef> = carried.iter().map(|column| plain(column.clone(), None)).collect();
    columns.push(plain(column("migrated_at", &time, None), Some(now.to_owned())));
    let schema = Arc::new(TableSchema {
        id: table_id(&name),
        version: SchemaVersion(1),
        name: name.clone(),
        columns: carried,
        identity: Identity::Key,
        native_id: 0,
    });
    let key = |suffix: &str, columns: &[&str]| {
        KeyDef::plain(format!("{}_{suffix}", name.name), columns.iter().map(ToString::to_string).collect())
    };
    let def = TableDef {
        // Two old keys that became one new key would be a collision: the target itself refuses it. The new key stands
        // first, for support staff look rows up by it.
        uniques: vec![key("new_id_key", &["new_id", "table_name"])],
        ..TableDef::plain(name.clone(), Identity::Key, columns, Some(key("pkey", &["table_name", "old_id"])))
    };
    Ok(Some(Mapping { table: PlannedTable { schema, def, write: Writing::InsertOnce, source: None } }))
}

fn plain(column: Column, default: Option<String>) -> ColumnDef {
    ColumnDef { default, ..ColumnDef::plain(column) }
}

fn column_type(name: &str, dialect: Dialect) -> ColumnType {
    types::TypeSpec::postgres(name).map_or_else(|| types::sqlite_column("TEXT"), |spec| spec.column(dialect))
}

/// It stands where the tables stand.
fn name(context: &Context<'_>) -> TableName {
    let wanted = context.rules.rekey.as_ref().map_or("uuid_migration_mapping", |rekey| rekey.mapping.as_str());
    if let Some((schema, name)) = wanted.split_once('.') {
        return TableName::new(schema, name);
    }
    let schema: Arc<str> = match (context.options.dialect, &context.options.schema) {
        (Dialect::Sqlite, _) => Arc::from("main"),
        (Dialect::Postgres, Some(schema)) if context.options.write != WriteKind::ShadowColumns => {
            Arc::from(schema.as_str())
        }
        (Dialect::Postgres, _) => {
            context.names.values().next().map_or_else(|| Arc::from("public"), |name| name.schema.clone())
        }
    };
    TableName { schema, name: Arc::from(wanted) }
}
