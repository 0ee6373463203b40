//! `crossfade.swaps`: what a switch within tables does, from its preparation to the clean-up. Written in the transactions
//! that do it, so that it is never behind and never ahead.

use super::{Laid, SwapEnd};
use crate::{client::failure, quote_literal};
use crossfade_connector::Failure;

/// How far the columns are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SwapStage {
    /// Indexes are made; nothing has changed places.
    Prepared,
    /// The new columns have the names.
    Switched,
    /// And the keys and references are theirs, too.
    Finished,
    /// The old columns have the names again.
    Returned,
}

impl SwapStage {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Prepared => "prepared",
            Self::Switched => "switched",
            Self::Finished => "finished",
            Self::Returned => "returned",
        }
    }

    fn of(word: &str) -> Option<Self> {
        [Self::Prepared, Self::Switched, Self::Finished, Self::Returned].into_iter().find(|stage| stage.word() == word)
    }
}

const MAKE: &str = "CREATE TABLE IF NOT EXISTS crossfade.swaps (
  migration text NOT NULL PRIMARY KEY, stage text NOT NULL, laid text NOT NULL,
  since timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp())";

/// Moves the stage, in the transaction that does the work; raises where it is not where it should be.
pub(super) fn move_sql(migration: &str, from: &[SwapStage], to: SwapStage) -> String {
    let name = quote_literal(migration);
    let from: Vec<String> = from.iter().map(|stage| format!("'{}'", stage.word())).collect();
    format!(
        "DO $crossfade$ BEGIN UPDATE crossfade.swaps SET stage = '{to}', since = pg_catalog.clock_timestamp() \
         WHERE migration = {name} AND stage IN ({from}); \
         IF NOT FOUND THEN RAISE EXCEPTION USING ERRCODE = '40001', \
           MESSAGE = 'the columns are not where they were when this was prepared'; END IF; END $crossfade$",
        to = to.word(),
        from = from.join(", "),
    )
}

impl SwapEnd {
    /// Notes what will be done. Once something has changed places, what was noted stays.
    pub(super) async fn note(&mut self, laid: &Laid) -> Result<(), Failure> {
        let doing = "noting what the switch will do";
        let text = serde_json::to_string(laid).map_err(|error| Failure::halt(doing, error, "Report this"))?;
        let sql = format!(
            "BEGIN; SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('crossfade schema', 0)); \
             CREATE SCHEMA IF NOT EXISTS crossfade; {MAKE}; \
             INSERT INTO crossfade.swaps AS s (migration, stage, laid) VALUES ({}, 'prepared', {}) \
             ON CONFLICT (migration) DO UPDATE SET laid = excluded.laid WHERE s.stage = 'prepared'; COMMIT",
            quote_literal(&self.migration),
            quote_literal(&text)
        );
        let session = self.session().await?;
        let done = session.batch_execute(&sql).await;
        if done.is_err()
            && let Err(error) = session.batch_execute("ROLLBACK").await
        {
            tracing::debug!(%error, "the session has ended");
        }
        done.map_err(|error| failure(doing, error))
    }

    /// What was noted, and how far it is; `None` before a switch was prepared.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    pub async fn stored(&mut self) -> Result<Option<(SwapStage, Laid)>, Failure> {
        let doing = "reading crossfade.swaps";
        let migration = self.migration.clone();
        let session = self.session().await?;
        let there = "SELECT pg_catalog.to_regclass('crossfade.swaps') IS NOT NULL";
        let there = session.query_one(there, &[]).await.map_err(|error| failure(doing, error))?;
        if !there.get::<_, bool>(0) {
            return Ok(None);
        }
        let sql = "SELECT stage, laid FROM crossfade.swaps WHERE migration = $1";
        let row = session.query_opt(sql, &[&migration]).await.map_err(|error| failure(doing, error))?;
        row.map(|row| {
            let damaged = |cause: String| {
                Failure::lost(
                    doing,
                    cause,
                    "Somebody else has written the row: put it back from a copy of the database",
                )
            };
            let stage =
                SwapStage::of(row.get(0)).ok_or_else(|| damaged("the stage is none that is known".to_owned()))?;
            let laid = serde_json::from_str(row.get(1)).map_err(|error| damaged(error.to_string()))?;
            Ok((stage, laid))
        })
        .transpose()
    }

    /// Takes the note away, the table with the last one, and the fences of views, which would hold on to what is made for them.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn forget(&mut self) -> Result<(), Failure> {
        let fences = format!(
            "DO $crossfade$ DECLARE t record; BEGIN \
             FOR t IN SELECT g.tgname, g.tgrelid::pg_catalog.regclass AS name FROM pg_catalog.pg_trigger g \
               JOIN pg_catalog.pg_class c ON c.oid = g.tgrelid \
               WHERE g.tgname = {} AND c.relkind = 'v' AND NOT g.tgisinternal \
             LOOP EXECUTE pg_catalog.format('DROP TRIGGER %I ON %s', t.tgname, t.name); END LOOP; END $crossfade$",
            quote_literal(&super::views::fence_of(&self.migration))
        );
        self.execute("taking the fences of the views down", &fences).await?;
        let sql = format!(
            "DO $crossfade$ BEGIN IF pg_catalog.to_regclass('crossfade.swaps') IS NULL THEN RETURN; END IF; \
             DELETE FROM crossfade.swaps WHERE migration = {}; \
             IF NOT EXISTS (SELECT FROM crossfade.swaps) THEN DROP TABLE crossfade.swaps; END IF; END $crossfade$",
            quote_literal(&self.migration)
        );
        self.execute("removing crossfade.swaps", &sql).await
    }
}
