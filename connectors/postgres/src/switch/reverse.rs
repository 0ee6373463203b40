//! What the way back needs, made on the new side before the point of no return: a publication of the new tables and a slot, so
//! that no write of the new side is missed. Reading it is somebody else's work.

use super::{SwitchEnd, listed};
use crate::{
    client::{drop_publication, failure},
    quote_ident, quote_table,
};
use crossfade_connector::{
    Failure,
    switch::{Born, Reverse},
};
use crossfade_event::TableName;

/// The name of slot and publication.
pub(super) fn name_of(migration: &str) -> String {
    format!("crossfade_{}_reverse", migration.replace('-', "_"))
}

impl SwitchEnd {
    /// Makes slot and publication. One of an earlier try is made anew: what it holds was before a switch.
    ///
    /// A table without a key gets `REPLICA IDENTITY FULL`, for a published table without any takes no updates.
    ///
    /// # Errors
    /// `Refused` where the role may not.
    pub async fn prepare_reverse(&mut self, tables: &[TableName]) -> Result<(), Failure> {
        self.drop_reverse().await?;
        let name = name_of(&self.migration);
        let doing = format!("making the publication {name}");
        let quoted: Vec<String> = tables
            .iter()
            .map(|table| quote_table(table).map(|name| name.as_str().to_owned()))
            .collect::<Result<_, _>>()?;
        let sql = "SELECT c.oid::pg_catalog.regclass::text FROM pg_catalog.pg_class c \
             WHERE c.oid = ANY ($1::text[]::pg_catalog.regclass[]) AND c.relreplident = 'd' AND c.relkind = 'r' \
               AND NOT EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)";
        let session = self.session().await?;
        let rows = session.query(sql, &[&quoted]).await.map_err(|error| failure(doing.clone(), error))?;
        let full: String =
            rows.iter().map(|row| format!("ALTER TABLE {} REPLICA IDENTITY FULL; ", row.get::<_, &str>(0))).collect();
        self.execute(
            &doing,
            &format!("{full}CREATE PUBLICATION {} FOR TABLE {}", quote_ident(&name)?, listed(tables)?),
        )
        .await?;
        let sql = "SELECT FROM pg_catalog.pg_create_logical_replication_slot($1, 'pgoutput')";
        let made = self.session().await?.query(sql, &[&name]).await;
        made.map_err(|error| failure(format!("making the slot {name}"), error)).map(drop)
    }

    /// Moves the slot up to the new side's present end of WAL. Nobody writes there now: the sink has come to its end.
    ///
    /// # Errors
    /// When the slot has gone.
    pub async fn reverse_from_here(&mut self) -> Result<Reverse, Failure> {
        let name = name_of(&self.migration);
        let sql = "SELECT (end_lsn OPERATOR(pg_catalog.-) '0/0'::pg_catalog.pg_lsn)::pg_catalog.int8 \
             FROM pg_catalog.pg_replication_slot_advance($1, pg_catalog.pg_current_wal_flush_lsn())";
        let row = self.session().await?.query_one(sql, &[&name]).await;
        let row = row.map_err(|error| failure(format!("moving the slot {name} up"), error))?;
        Ok(Reverse { from: row.get::<_, i64>(0) as u64, name })
    }

    /// Takes both away: nothing will be read by them.
    ///
    /// # Errors
    /// When somebody reads from the slot.
    pub async fn drop_reverse(&mut self) -> Result<(), Failure> {
        let name = name_of(&self.migration);
        let sql = "SELECT pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots \
             WHERE slot_name = $1 AND database = pg_catalog.current_database()";
        let dropped = self.session().await?.execute(sql, &[&name]).await;
        dropped.map_err(|error| failure(format!("dropping the slot {name}"), error))?;
        drop_publication(self.session().await?, &name).await
    }

    /// Whether this side keeps pairs of old and new keys of the migration's way back: asked of the old side.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn has_pairs(&mut self) -> Result<bool, Failure> {
        let doing = "looking for keys of an earlier way back";
        let migration = self.migration.clone();
        let session = self.session().await?;
        let there = "SELECT pg_catalog.to_regclass('crossfade.reverse_keys') IS NOT NULL";
        let there = session.query_one(there, &[]).await.map_err(|error| failure(doing, error))?;
        if !there.get::<_, bool>(0) {
            return Ok(false);
        }
        let sql = "SELECT EXISTS (SELECT FROM crossfade.reverse_keys WHERE migration = $1)";
        session.query_one(sql, &[&migration]).await.map(|row| row.get(0)).map_err(|error| failure(doing, error))
    }

    /// Some of the pairs of rows that were born on the new side, which have their old keys from this side's sequences, in the
    /// order of table and old key: asked of the old side. None where nothing was born.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn born(&mut self, after: Option<&Born>, limit: u32) -> Result<Vec<Born>, Failure> {
        let doing = "reading the keys of rows that were born on the new side";
        let migration = self.migration.clone();
        let session = self.session().await?;
        let there = "SELECT pg_catalog.to_regclass('crossfade.reverse_keys') IS NOT NULL";
        let there = session.query_one(there, &[]).await.map_err(|error| failure(doing, error))?;
        if !there.get::<_, bool>(0) {
            return Ok(Vec::new());
        }
        let (table, old) = after.map(|born| (born.table.as_str(), born.old)).unzip();
        let sql = "SELECT table_name, old_id, new_id FROM crossfade.reverse_keys WHERE migration = $1 AND born \
             AND ($2::text IS NULL OR ROW(table_name COLLATE \"C\", old_id) > ROW($2 COLLATE \"C\", $3::int8)) \
             ORDER BY table_name COLLATE \"C\", old_id LIMIT $4";
        let rows = session.query(sql, &[&migration, &table, &old, &i64::from(limit)]).await;
        let rows = rows.map_err(|error| failure(doing, error))?;
        Ok(rows.iter().map(|row| Born { table: row.get(0), old: row.get(1), new: row.get(2) }).collect())
    }
}
