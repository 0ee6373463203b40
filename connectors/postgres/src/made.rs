//! What a migration made for itself, where its source and its target are one database: a pattern such as `public.*`
//! would take its mapping table, or the new tables themselves, for tables of the application.

use crate::client::failure;
use crossfade_connector::Failure;
use crossfade_event::TableName;
use std::collections::HashSet;
use tokio_postgres::Client;

/// Whether there is a list of what was made, and we may read it. Who may not read it has made nothing here.
const IS_THERE: &str = "\
SELECT COALESCE(pg_catalog.has_table_privilege(c.oid, 'SELECT')
  AND pg_catalog.has_schema_privilege(n.oid, 'USAGE'), false)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'crossfade' AND c.relname = 'objects' AND c.relkind = 'r'";

/// The tables that this migration made in this database.
pub(crate) async fn tables(client: &Client, migration: &str) -> Result<HashSet<TableName>, Failure> {
    let cannot = |error| failure("reading what this migration made", error);
    let is_there = client.query_opt(IS_THERE, &[]).await.map_err(cannot)?;
    if !is_there.is_some_and(|row| row.get(0)) {
        return Ok(HashSet::new());
    }
    let sql =
        "SELECT DISTINCT schema, name FROM crossfade.objects WHERE migration = $1 AND kind IN ('table', 'mapping')";
    let rows = client.query(sql, &[&migration]).await.map_err(cannot)?;
    let name = |row: tokio_postgres::Row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
    Ok(rows.into_iter().map(name).collect())
}
