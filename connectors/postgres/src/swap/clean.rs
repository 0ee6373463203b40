//! The clean-up within tables: the old columns go, and what they were called after becomes the new ones'. From here on there
//! is no way back.

use super::{Laid, LaidKey, LaidTable, SwapEnd, SwapStage, finish::names, lock::lock_all, trigger};
use crate::{client::failure, quote_ident, quote_literal, quote_table};
use crossfade_connector::Failure;
use crossfade_event::{TableName, swap::Kept};
use futures::{StreamExt, pin_mut};
use std::{
    io::Write,
    time::{Duration, Instant},
};

/// So long one try at a lock lasts, and all of them together.
const LOCK: Duration = Duration::from_millis(400);
const PATIENCE: Duration = Duration::from_secs(60);

impl SwapEnd {
    /// What the clean-up runs.
    ///
    /// # Errors
    /// For a name that cannot stand in SQL.
    pub fn clean_sql(&self, laid: &Laid) -> Result<String, Failure> {
        let mut sql = drop_views_sql(&self.migration);
        for (number, table) in laid.tables.iter().enumerate() {
            sql.push_str(&trigger::down(&self.migration, laid, number)?);
            sql.push_str(&columns(table)?);
            sql.push_str(&takes_names(table)?);
        }
        Ok(sql)
    }

    /// Gives the new columns the checks of the old ones, proves them while everybody writes, and tries the rest without
    /// keeping anything of it. May be run again.
    ///
    /// # Errors
    /// `Refused` for whatever would keep an old column from going, by name.
    pub async fn rehearse_clean(&mut self, laid: &Laid) -> Result<(), Failure> {
        for table in &laid.tables {
            for check in &table.checks {
                self.check(table.name(), &check.new, &check.definition).await?;
            }
        }
        let sql = self.clean_sql(laid)?;
        let migration = self.migration.clone();
        let tables = self.with_views(names(laid)).await?;
        let session = self.session().await?;
        lock_all(session, "BEGIN", &migration, &tables, Instant::now() + PATIENCE, LOCK).await?;
        let tried = session.batch_execute(&sql).await;
        session.batch_execute("ROLLBACK").await.map_err(|error| failure("trying the clean-up", error))?;
        tried.map_err(|error| refused_or(error, "trying the clean-up"))
    }

    /// Drops the old columns. Everything in one commit, and only once.
    ///
    /// # Errors
    /// When it cannot be done; nothing has been dropped then.
    pub async fn clean(&mut self) -> Result<(), Failure> {
        let Some((SwapStage::Finished, laid)) = self.stored().await? else { return Ok(()) };
        let sql = format!(
            "{} DELETE FROM crossfade.swaps WHERE migration = {};",
            self.clean_sql(&laid)?,
            quote_literal(&self.migration)
        );
        let tables = self.with_views(names(&laid)).await?;
        self.in_one("dropping the old columns", &tables, &sql).await
    }

    async fn check(&mut self, table: &TableName, name: &str, definition: &str) -> Result<(), Failure> {
        let quoted = quote_table(table)?;
        let there = "SELECT EXISTS (SELECT FROM pg_constraint WHERE conrelid = ($1::text)::regclass AND conname = $2)";
        let there = self.session().await?.query_one(there, &[&quoted.as_str(), &name]).await;
        if !there.map_err(|error| failure("looking for a check", error))?.get::<_, bool>(0) {
            let bare = definition.trim_end().trim_end_matches("NOT VALID").trim_end();
            let sql = format!("ALTER TABLE {quoted} ADD CONSTRAINT {} {bare} NOT VALID;", quote_ident(name)?);
            self.in_one(&format!("making the check {name} of {table}"), std::slice::from_ref(table), &sql).await?;
        }
        self.validate(table, name).await
    }

    /// Drops a table of the migration's own.
    ///
    /// # Errors
    /// When something depends on it.
    pub async fn drop_table(&mut self, table: &TableName) -> Result<(), Failure> {
        self.execute(&format!("dropping {table}"), &format!("DROP TABLE IF EXISTS {}", quote_table(table)?)).await
    }

    /// Writes a whole table as comma-separated values, with its columns' names.
    ///
    /// # Errors
    /// When it cannot be read, or the file not be written.
    pub async fn export_table(&mut self, table: &TableName, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
        self.copy(&format!("COPY {} TO STDOUT (FORMAT csv, HEADER)", quote_table(table)?), out).await
    }

    /// Writes each old key with its new one, a line for a row as comma-separated values: table, old, new.
    ///
    /// # Errors
    /// When a table cannot be read, or the file not be written.
    pub async fn export_keys(&mut self, laid: &Laid, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
        for table in &laid.tables {
            let Some(sql) = keys_of(table)? else { continue };
            self.copy(&sql, out).await?;
        }
        Ok(())
    }

    async fn copy(&mut self, sql: &str, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
        let doing = "writing the last export";
        let session = self.session().await?;
        let rows = session.copy_out(sql).await.map_err(|error| failure(doing, error))?;
        pin_mut!(rows);
        while let Some(piece) = rows.next().await {
            let piece = piece.map_err(|error| failure(doing, error))?;
            out.write_all(&piece).map_err(|error| Failure::halt(doing, error, "Make room for the export"))?;
        }
        Ok(())
    }
}

/// The views of the old shape, and their schemas where nothing else is in them.
fn drop_views_sql(migration: &str) -> String {
    let name = quote_literal(migration);
    format!(
        "DO $crossfade$ DECLARE v record; BEGIN \
         IF pg_catalog.to_regclass('crossfade.objects') IS NULL THEN RETURN; END IF; \
         FOR v IN SELECT schema, name FROM crossfade.objects WHERE migration = {name} AND kind = 'view' AND part = 'old' \
         LOOP EXECUTE pg_catalog.format('DROP VIEW IF EXISTS %I.%I', v.schema, v.name); END LOOP; \
         FOR v IN SELECT o.schema FROM crossfade.objects o WHERE o.migration = {name} AND o.kind = 'schema' \
           AND EXISTS (SELECT FROM crossfade.objects w WHERE w.migration = o.migration AND w.kind = 'view' AND w.part = 'old' \
                       AND w.schema = o.schema) \
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.relnamespace = pg_catalog.to_regnamespace(pg_catalog.quote_ident(o.schema))) \
         LOOP EXECUTE pg_catalog.format('DROP SCHEMA IF EXISTS %I', v.schema); END LOOP; END $crossfade$; "
    )
}

/// Something of somebody else's depends on what would go.
fn refused_or(error: tokio_postgres::Error, doing: &str) -> Failure {
    match error.as_db_error().filter(|error| error.code().code() == "2BP01") {
        Some(told) => {
            let detail = told.detail().map(|detail| format!(": {}", detail.replace('\n', "; "))).unwrap_or_default();
            let advice = "Drop or change what depends on the old columns, then ask again";
            Failure::refused(doing, format!("{}{detail}", told.message()), advice)
        }
        None => failure(doing, error),
    }
}

fn columns(table: &LaidTable) -> Result<String, Failure> {
    let quoted = quote_table(table.name())?;
    let mut sql = String::new();
    for pair in &table.swap.pairs {
        let (name, legacy) = (quote_ident(&pair.name)?, quote_ident(&pair.legacy())?);
        if pair.kept == Kept::Copied {
            // The sequence that fed the old column feeds the new one, and stays.
            sql.push_str(&format!(
                "DO $crossfade$ DECLARE s text := pg_catalog.pg_get_serial_sequence({}, {}); BEGIN \
                 IF s IS NOT NULL THEN EXECUTE 'ALTER SEQUENCE ' || s || {}; END IF; END $crossfade$; ",
                quote_literal(quoted.as_str()),
                quote_literal(&pair.legacy()),
                quote_literal(&format!(" OWNED BY {quoted}.{name}"))
            ));
        }
        sql.push_str(&format!("ALTER TABLE {quoted} DROP COLUMN {legacy}; "));
    }
    for column in &table.swap.dropped {
        sql.push_str(&format!("ALTER TABLE {quoted} DROP COLUMN {}; ", quote_ident(&table.swap.now_called(column))?));
    }
    Ok(sql)
}

/// Indexes, unique constraints and checks get the names of those that went with the old columns.
fn takes_names(table: &LaidTable) -> Result<String, Failure> {
    let quoted = quote_table(table.name())?;
    let mut sql = String::new();
    for index in &table.indexes {
        let is_key =
            |old: &String| table.primary.as_ref().is_some_and(|key| key.name == *old || key.index == index.new);
        let Some(old) = index.old.as_ref().filter(|old| !is_key(old)) else { continue };
        let (old, new) = (quote_ident(old)?, TableName::new(table.name().schema.clone(), index.new.as_str()));
        sql.push_str(&match index.constraint {
            true => {
                let new = quote_ident(&index.new)?;
                format!("ALTER TABLE {quoted} ADD CONSTRAINT {old} UNIQUE USING INDEX {new}; ")
            }
            false => format!("ALTER INDEX {} RENAME TO {old}; ", quote_table(&new)?),
        });
    }
    for check in &table.checks {
        let (new, old) = (quote_ident(&check.new)?, quote_ident(&check.name)?);
        sql.push_str(&format!("ALTER TABLE {quoted} RENAME CONSTRAINT {new} TO {old}; "));
    }
    Ok(sql)
}

fn keys_of(table: &LaidTable) -> Result<Option<String>, Failure> {
    let quoted = quote_table(table.name())?;
    let told = quote_literal(&table.name().to_string());
    let drawn = table.swap.pairs.iter().find(|pair| matches!(pair.kept, Kept::Drawn { .. }));
    let takes = |key: &LaidKey| key.columns.iter().all(|column| table.swap.dropped.contains(column));
    let now = |key: &LaidKey| -> Result<Vec<String>, Failure> {
        key.columns.iter().map(|old| Ok(quote_ident(&table.swap.now_called(old))?.to_string())).collect()
    };
    let (old, new) = match (drawn, &table.primary, table.swap.key.as_slice()) {
        (_, Some(key), [new]) if takes(key) || table.swap.surrogate().is_some() => match now(key)?.as_slice() {
            [only] => (only.clone(), quote_ident(new)?),
            several => (format!("ROW({})", several.join(", ")), quote_ident(new)?),
        },
        (Some(pair), ..) => (quote_ident(&pair.legacy())?.to_string(), quote_ident(&pair.name)?),
        _ => return Ok(None),
    };
    Ok(Some(format!("COPY (SELECT {told}, {old}::text, {new}::text FROM {quoted}) TO STDOUT (FORMAT csv)")))
}
