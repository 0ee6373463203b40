//! Reading the mapping table, old key → new key; and putting the pairs of rows into it that were born on the new side.

use super::{PostgresSink, link::Link};
use crate::client::{failure, quote_ident, quote_table};
use crossfade_connector::{Failure, MappingEntry, StoredMapping};
use crossfade_event::TableName;
use tokio_postgres::error::SqlState;

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

impl PostgresSink {
    /// Puts pairs into the mapping that others made: of rows that were born here while this side was the writer. From then on
    /// the mapping has them as if the migration had made them. Durable on return; a repeat changes nothing.
    ///
    /// # Errors
    /// `Halt` where the mapping has another new key for one of the old ones, or gives one of the new keys to another row.
    pub async fn adopt(&mut self, entries: &[MappingEntry]) -> Result<(), Failure> {
        let doing = "putting the keys of rows that were born on the new side into the mapping";
        let advice = "Somebody has written the mapping table by hand: look for the key with `crossfade mapping lookup`, and put it right";
        let migration = self.config.migration.clone();
        let usual = if self.config.synchronous_commit { "on" } else { "off" };
        let link = self.link().await?;
        let column = |value: fn(&MappingEntry) -> &str| entries.iter().map(value).collect::<Vec<&str>>();
        let (of, old, new) =
            (column(|entry| &entry.table_name), column(|entry| &entry.old_id), column(|entry| &entry.new_id));
        link.execute(doing, "SET synchronous_commit = on").await?;
        for table in tables(link, &migration).await? {
            let name = quote_table(&table)?;
            let sql = "SELECT pg_catalog.format_type(atttypid, atttypmod) FROM pg_catalog.pg_attribute \
                 WHERE attrelid = $1::text::pg_catalog.regclass AND attname = 'new_id'";
            let Some(type_) =
                link.query(doing, sql, &[&name.as_str()]).await?.first().map(|row| row.get::<_, String>(0))
            else {
                continue;
            };
            let pairs =
                format!("(SELECT t, o, n::{type_} AS n FROM unnest($1::text[], $2::text[], $3::text[]) u (t, o, n)) p");
            let sql = format!(
                "INSERT INTO {name} (table_name, old_id, new_id) SELECT t, o, n FROM {pairs} \
                 ON CONFLICT (table_name, old_id) DO NOTHING"
            );
            let put = link.session.execute(&sql, &[&of, &old, &new]).await;
            put.map_err(|error| match error.code() {
                Some(&SqlState::UNIQUE_VIOLATION) => {
                    Failure::halt(doing, "one of the new keys belongs to another old key there", advice)
                }
                _ => failure(doing, error),
            })?;
            let sql = format!(
                "SELECT count(*) FROM {name} m JOIN {pairs} ON m.table_name = p.t AND m.old_id = p.o AND m.new_id = p.n"
            );
            let found: i64 = link.query(doing, &sql, &[&of, &old, &new]).await?.first().map_or(0, |row| row.get(0));
            if found != entries.len() as i64 {
                return Err(Failure::halt(doing, "one of the old keys has another new key there", advice));
            }
        }
        link.execute(doing, &format!("SET synchronous_commit = {usual}")).await
    }
}

impl PostgresSink {
    /// Whether a table of ours has rows whose new key, in `column`, the mapping does not know as one of the source's table
    /// `of`. False where there is no mapping.
    ///
    /// # Errors
    /// When the target cannot be asked.
    pub async fn has_unmapped(&mut self, table: &TableName, column: &str, of: &str) -> Result<bool, Failure> {
        let doing = format!("looking for rows of {table} that the mapping does not know");
        let migration = self.config.migration.clone();
        let link = self.link().await?;
        let mut found = false;
        for mapping in tables(link, &migration).await? {
            let sql = format!(
                "SELECT EXISTS (SELECT FROM {} t WHERE NOT EXISTS (SELECT FROM {} m WHERE m.table_name = $1 \
                 AND m.new_id::text = t.{}::text))",
                quote_table(table)?,
                quote_table(&mapping)?,
                quote_ident(column)?
            );
            found |= link.query(&doing, &sql, &[&of]).await?.first().is_some_and(|row| row.get(0));
        }
        Ok(found)
    }
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
