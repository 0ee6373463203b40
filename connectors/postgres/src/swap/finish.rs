//! After the switch: what holds is proven without keeping anybody from writing, and then the keys and references become
//! those of the new columns. May be killed and run again.

use super::{Laid, LaidTable, SwapEnd, SwapStage, lock::lock_all, sql};
use crate::{client::failure, quote_ident, quote_table};
use crossfade_connector::Failure;
use crossfade_event::TableName;
use std::time::{Duration, Instant};

/// So long one try at a lock lasts.
const LOCK: Duration = Duration::from_millis(400);
/// And all of them together.
const PATIENCE: Duration = Duration::from_secs(60);

impl SwapEnd {
    /// Proves and completes what the switch has begun.
    ///
    /// # Errors
    /// `Halt` where rows do not hold what they should; the switch stands, and can be taken back.
    pub async fn finish(&mut self) -> Result<(), Failure> {
        let Some((stage, laid)) = self.stored().await? else { return Ok(()) };
        if stage != SwapStage::Switched {
            return Ok(());
        }
        for table in &laid.tables {
            for column in table.not_null() {
                self.prove_not_null(table, column).await?;
            }
            for foreign in &table.foreign {
                if foreign.valid {
                    self.validate(table.name(), &foreign.new).await?;
                }
            }
            if let Some(key) = &table.primary {
                let columns: Vec<String> = key
                    .columns
                    .iter()
                    .map(|column| quote_ident(&table.swap.now_called(column)).map(|name| name.as_str().to_owned()))
                    .collect::<Result<_, _>>()?;
                let (name, quoted) = (quote_ident(&key.legacy_index)?, quote_table(table.name())?);
                let sql = format!("CREATE UNIQUE INDEX CONCURRENTLY {name} ON {quoted} ({})", columns.join(", "));
                self.index(table.name(), &key.legacy_index, &sql).await?;
            }
        }
        let names: Vec<TableName> = laid.tables.iter().map(|table| table.name().clone()).collect();
        let sql = sql::finish(&self.migration, &laid)?;
        self.in_one("moving keys and references", &names, &sql).await
    }

    /// Runs catalog changes in one transaction that holds all the tables' locks.
    pub(super) async fn in_one(&mut self, doing: &str, tables: &[TableName], sql: &str) -> Result<(), Failure> {
        let migration = self.migration.clone();
        let session = self.session().await?;
        lock_all(session, "BEGIN", &migration, tables, Instant::now() + PATIENCE, LOCK).await?;
        match session.batch_execute(&format!("{sql} COMMIT")).await {
            Ok(()) => Ok(()),
            Err(error) => {
                if let Err(error) = session.batch_execute("ROLLBACK").await {
                    tracing::debug!(%error, "the session has ended");
                }
                Err(failure(doing, error))
            }
        }
    }

    /// The check is proven while everybody writes; then the server takes it for `NOT NULL` and reads no row.
    async fn prove_not_null(&mut self, table: &LaidTable, column: &str) -> Result<(), Failure> {
        let check = sql::check_of(column);
        let name = table.name();
        let there = "SELECT EXISTS (SELECT FROM pg_constraint WHERE conrelid = ($1::text)::regclass AND conname = $2)";
        let quoted = quote_table(name)?;
        let there = self.session().await?.query_one(there, &[&quoted.as_str(), &check]).await;
        if !there.map_err(|error| failure("looking for a check", error))?.get::<_, bool>(0) {
            return Ok(());
        }
        self.validate(name, &check).await?;
        let sql = format!(
            "ALTER TABLE {quoted} ALTER COLUMN {} SET NOT NULL; ALTER TABLE {quoted} DROP CONSTRAINT {};",
            quote_ident(column)?,
            quote_ident(&check)?
        );
        self.in_one(&format!("setting {column} of {name} to NOT NULL"), std::slice::from_ref(name), &sql).await
    }

    pub(super) async fn validate(&mut self, table: &TableName, constraint: &str) -> Result<(), Failure> {
        let doing = format!("proving {constraint} of {table}");
        let sql = format!("ALTER TABLE {} VALIDATE CONSTRAINT {}", quote_table(table)?, quote_ident(constraint)?);
        let proven = self.session().await?.batch_execute(&sql).await;
        proven.map_err(|error| match error.code().is_some_and(|code| code.code().starts_with("23")) {
            true => Failure::halt(
                doing,
                "rows do not hold it",
                "Find and mend them, then `crossfade cutover` again; or go back with `crossfade failback`",
            ),
            false => failure(doing, error),
        })
    }
}

/// The tables of it.
pub(super) fn names(laid: &Laid) -> Vec<TableName> {
    laid.tables.iter().map(|table| table.name().clone()).collect()
}
