//! Reading the mapping table: old key → new key.

use super::{PostgresSink, link::Link};
use crate::client::{failure, quote_table};
use crossfade_connector::{Failure, MappingEntry, StoredMapping};
use crossfade_event::TableName;

const COLUMNS: &str = "table_name::text, old_id::text, new_id::text, \
     to_char(migrated_at::timestamptz AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";

/// The mapping tables that the migration made.
async fn tables(link: &mut Link, migration: &str) -> Result<Vec<TableName>, Failure> {
    if !super::store::exists(link).await? {
        return Ok(Vec::new());
    }
    let sql = "SELECT schema, name FROM crossfade.objects WHERE migration = $1 AND kind = 'mapping' ORDER BY 1, 2";
    let rows = link.query("looking for the mapping table", sql, &[&migration]).await?;
    Ok(rows.iter().map(|row| TableName::new(row.get::<_, &str>(0), row.get::<_, &str>(1))).collect())
}

fn entry(row: &tokio_postgres::Row) -> MappingEntry {
    MappingEntry {
        table_name: row.get(0),
        old_id: row.get(1),
        new_id: row.get(2),
        migrated_at: row.get::<_, Option<String>>(3).unwrap_or_default(),
    }
}

/// One question over all mapping tables.
async fn union(link: &mut Link, migration: &str, filter: &str) -> Result<Option<String>, Failure> {
    let parts = tables(link, migration)
        .await?
        .iter()
        .map(|name| Ok(format!("SELECT {COLUMNS} FROM {} WHERE {filter}", quote_table(name)?)))
        .collect::<Result<Vec<_>, Failure>>()?;
    Ok((!parts.is_empty()).then(|| parts.join(" UNION ALL ")))
}

impl StoredMapping for PostgresSink {
    async fn mapping_page(
        &mut self,
        table: Option<&str>,
        after: Option<&MappingEntry>,
        limit: u32,
    ) -> Result<Vec<MappingEntry>, Failure> {
        let doing = "reading the mapping table";
        let migration = self.config.migration.clone();
        let link = self.link().await?;
        let filter = "($1::text IS NULL OR table_name::text = $1) AND ($2::text IS NULL OR \
             ROW(table_name::text COLLATE \"C\", old_id::text COLLATE \"C\") > ROW($2, $3::text))";
        let Some(union) = union(link, &migration, filter).await? else { return Ok(Vec::new()) };
        let sql = format!("SELECT * FROM ({union}) m (a, b, c, d) ORDER BY a COLLATE \"C\", b COLLATE \"C\" LIMIT $4");
        let (after_table, after_id) = after.map(|entry| (&entry.table_name, &entry.old_id)).unzip();
        let statement = link.statement(&sql).await.map_err(|error| failure(doing, error))?;
        let rows = link
            .session
            .query(&statement, &[&table, &after_table, &after_id, &i64::from(limit)])
            .await
            .map_err(|error| failure(doing, error))?;
        Ok(rows.iter().map(entry).collect())
    }

    async fn mapping_lookup(&mut self, id: &str) -> Result<Vec<MappingEntry>, Failure> {
        let migration = self.config.migration.clone();
        let link = self.link().await?;
        let Some(sql) = union(link, &migration, "old_id::text = $1 OR new_id::text = $1").await? else {
            return Ok(Vec::new());
        };
        Ok(link.query("looking into the mapping table", &sql, &[&id]).await?.iter().map(entry).collect())
    }
}
