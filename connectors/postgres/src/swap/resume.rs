//! What a migration goes on by after its columns have gone back: a publication and a slot that begin where both columns of
//! every row were level. They are made before anybody waits, moved up while everybody does, and noted in the very commit that
//! gives the old columns their names back.

use super::{Laid, SwapEnd, born, finish::names};
use crate::{
    client::{drop_publication, failure},
    quote_ident, quote_literal, quote_table,
};
use crossfade_connector::Failure;
use crossfade_event::Position;
use std::time::Duration;

/// So long the server may take to make a slot: it waits for every transaction that is open anywhere on it.
const PATIENCE: Duration = Duration::from_secs(10);

fn name_of(migration: &str) -> String {
    format!("crossfade_{}", migration.replace('-', "_"))
}

impl SwapEnd {
    /// Why a migration cannot go on after a failback from this; `None` where it can.
    pub fn cannot_go_on(laid: &Laid) -> Option<String> {
        born::unrecorded(laid)
    }

    /// Makes publication and slot; what an earlier try has left is made anew.
    ///
    /// # Errors
    /// When they cannot be made in time. A failback is possible all the same; the migration begins anew after it then.
    pub async fn prepare_resume(&mut self, laid: &Laid) -> Result<(), Failure> {
        self.drop_resume().await?;
        let name = name_of(&self.migration);
        let doing = format!("making the slot {name}");
        let tables: Vec<String> = names(laid)
            .iter()
            .map(|table| quote_table(table).map(|name| format!("ONLY {}", name.as_str())))
            .collect::<Result<_, _>>()?;
        let make = format!("CREATE PUBLICATION {} FOR TABLE {}", quote_ident(&name)?, tables.join(", "));
        let session = self.session().await?;
        session.batch_execute(&make).await.map_err(|error| failure(format!("making the publication {name}"), error))?;
        let wait = format!("SET statement_timeout = {}", PATIENCE.as_millis());
        session.batch_execute(&wait).await.map_err(|error| failure(doing.clone(), error))?;
        let sql = "SELECT FROM pg_catalog.pg_create_logical_replication_slot($1, 'pgoutput')";
        let made = session.query(sql, &[&name]).await;
        session.batch_execute("RESET statement_timeout").await.map_err(|error| failure(doing.clone(), error))?;
        made.map(drop).map_err(|error| failure(doing, error))
    }

    /// Moves the slot up to what was committed until now. Nobody writes the tables meanwhile.
    ///
    /// # Errors
    /// When the slot has gone.
    pub async fn resume_from_here(&mut self) -> Result<(), Failure> {
        let name = name_of(&self.migration);
        let doing = format!("moving the slot {name} up");
        let session = self.session().await?;
        // Commits that did not wait for the disk are on it once this one is.
        let level = "BEGIN; SET LOCAL synchronous_commit = on; \
             SELECT pg_catalog.pg_logical_emit_message(true, 'crossfade', 'level'); COMMIT";
        session.batch_execute(level).await.map_err(|error| failure(doing.clone(), error))?;
        let sql = "SELECT FROM pg_catalog.pg_replication_slot_advance($1, pg_catalog.pg_current_wal_flush_lsn())";
        session.query_one(sql, &[&name]).await.map(drop).map_err(|error| failure(doing, error))
    }

    /// Takes both away: nothing will be read by them.
    ///
    /// # Errors
    /// When somebody reads from the slot.
    pub async fn drop_resume(&mut self) -> Result<(), Failure> {
        let name = name_of(&self.migration);
        let sql = "SELECT pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots \
             WHERE slot_name = $1 AND database = pg_catalog.current_database()";
        let dropped = self.session().await?.execute(sql, &[&name]).await;
        dropped.map_err(|error| failure(format!("dropping the slot {name}"), error))?;
        drop_publication(self.session().await?, &name).await
    }

    /// Where the stream goes on after a failback; `None` where there was none since the last switch, or nothing goes on.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    pub async fn resumes(&mut self) -> Result<Option<Position>, Failure> {
        let doing = "reading crossfade.swaps";
        let migration = self.migration.clone();
        let session = self.session().await?;
        let there = "SELECT EXISTS (SELECT FROM pg_catalog.pg_attribute \
             WHERE attrelid = pg_catalog.to_regclass('crossfade.swaps') AND attname = 'resumes')";
        let there = session.query_one(there, &[]).await.map_err(|error| failure(doing, error))?;
        if !there.get::<_, bool>(0) {
            return Ok(None);
        }
        let sql = "SELECT resumes FROM crossfade.swaps WHERE migration = $1";
        let row = session.query_opt(sql, &[&migration]).await.map_err(|error| failure(doing, error))?;
        let Some(text) = row.and_then(|row| row.get::<_, Option<String>>(0)) else { return Ok(None) };
        let damaged = |error: serde_json::Error| {
            let advice = "Somebody else has written the row: put it back from a copy of the database";
            Failure::lost(doing, error, advice)
        };
        serde_json::from_str(&text).map(Some).map_err(damaged)
    }
}

/// Notes where the stream goes on, in the commit of a failback.
pub(super) fn note_sql(migration: &str, place: Option<&Position>) -> Result<String, Failure> {
    let Some(place) = place else { return Ok(String::new()) };
    let doing = "noting where the stream goes on";
    let text = serde_json::to_string(place).map_err(|error| Failure::halt(doing, error, "Report this"))?;
    Ok(format!(
        "UPDATE crossfade.swaps SET resumes = {} WHERE migration = {}; ",
        quote_literal(&text),
        quote_literal(migration)
    ))
}
