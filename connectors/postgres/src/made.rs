//! What a migration made for itself, where its source and its target are one database: a pattern such as `public.*`
//! would take its mapping table, or the new tables themselves, for tables of the application, and the columns that it
//! made beside the old ones for theirs.

use crate::client::failure;
use crossfade_connector::Failure;
use crossfade_event::{TableName, catalog::TableDef};
use std::collections::HashSet;
use tokio_postgres::Client;

/// Whether there is a list of what was made, and we may read it. Who may not read it has made nothing here.
const IS_THERE: &str = "\
SELECT COALESCE(pg_catalog.has_table_privilege(c.oid, 'SELECT')
  AND pg_catalog.has_schema_privilege(n.oid, 'USAGE'), false)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'crossfade' AND c.relname = 'objects' AND c.relkind = 'r'";

/// Tables and columns.
#[derive(Debug, Default)]
pub(crate) struct Made {
    pub(crate) tables: HashSet<TableName>,
    /// In tables of others.
    columns: HashSet<(TableName, String)>,
}

impl Made {
    /// Takes the columns out of a table, and what stands over them.
    pub(crate) fn leave_out(&self, table: &mut TableDef) {
        let name = table.name.clone();
        let is_made = |column: &String| self.columns.contains(&(name.clone(), column.clone()));
        if !table.columns.iter().any(|def| is_made(&def.column.name.to_string())) {
            return;
        }
        table.columns.retain(|def| !is_made(&def.column.name.to_string()));
        table.uniques.retain(|key| !key.columns.iter().any(is_made));
        table.foreign_keys.retain(|key| !key.columns.iter().any(is_made));
        table.indexes.retain(|index| !index.columns.iter().any(is_made));
    }
}

/// What this migration made in this database.
pub(crate) async fn read(client: &Client, migration: &str) -> Result<Made, Failure> {
    let cannot = |error| failure("reading what this migration made", error);
    let is_there = client.query_opt(IS_THERE, &[]).await.map_err(cannot)?;
    if !is_there.is_some_and(|row| row.get(0)) {
        return Ok(Made::default());
    }
    let sql = "SELECT kind, schema, name, part FROM crossfade.objects \
               WHERE migration = $1 AND kind IN ('table', 'mapping', 'column')";
    let mut made = Made::default();
    for row in client.query(sql, &[&migration]).await.map_err(cannot)? {
        let name = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
        if row.get::<_, &str>(0) == "column" {
            made.columns.insert((name, row.get(3)));
        } else {
            made.tables.insert(name);
        }
    }
    Ok(made)
}
