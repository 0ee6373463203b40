//! `crossfade.authority`: which side the writers of a migration belong to. One row for each unit, in both databases; the
//! one that counts is that of the side which has the authority.
//!
//! Applications read it, best through `crossfade.side('migration')` as the first statement of a transaction: it waits
//! out a freeze and then names the side, so that whoever asks it meets no error at all.

use super::SwitchEnd;
use crate::{
    client::{ServerError, Session, failure},
    quote_literal,
};
use crossfade_connector::{Failure, switch::Written};
use crossfade_event::Side;

/// The one unit of this version.
const UNIT: &str = "all";

/// The channel on which a change of authority is told.
const CHANNEL: &str = "crossfade_authority";

const MAKE: &str = "
CREATE TABLE IF NOT EXISTS crossfade.authority (
  migration text NOT NULL, unit text NOT NULL, here text NOT NULL CHECK (here IN ('old', 'new')),
  side text NOT NULL CHECK (side IN ('old', 'new')), epoch bigint NOT NULL,
  since timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(), PRIMARY KEY (migration, unit));
COMMENT ON TABLE crossfade.authority IS 'which side the writers of a migration belong to; here: which side this database is';
CREATE OR REPLACE FUNCTION crossfade.side(migration text, unit text DEFAULT 'all') RETURNS text
  LANGUAGE plpgsql VOLATILE AS $crossfade$
BEGIN
  PERFORM pg_catalog.pg_advisory_xact_lock_shared(
    pg_catalog.hashtextextended(pg_catalog.concat('crossfade switch ', $1, ' ', $2), 0));
  RETURN (SELECT a.side FROM crossfade.authority a
          WHERE a.migration OPERATOR(pg_catalog.=) $1 AND a.unit OPERATOR(pg_catalog.=) $2);
END $crossfade$;
GRANT USAGE ON SCHEMA crossfade TO PUBLIC;
GRANT SELECT ON crossfade.authority TO PUBLIC;
GRANT EXECUTE ON FUNCTION crossfade.side(text, text) TO PUBLIC;
";

/// The gate's number, as SQL: writers hold it shared (through `crossfade.side`), the freeze holds it alone.
pub(crate) fn gate(migration: &str) -> String {
    let name = quote_literal(&format!("crossfade switch {migration} {UNIT}"));
    format!("pg_catalog.hashtextextended({}, 0)", name.trim_start())
}

/// The one conditional write, and the word to whoever listens; raises where it does not apply.
pub(crate) fn give_sql(migration: &str, from: Side, epoch: u64) -> String {
    let name = quote_literal(migration).trim_start().to_owned();
    let (to, next) = (from.other(), epoch + 1);
    format!(
        "DO $crossfade$ BEGIN UPDATE crossfade.authority SET side = '{to}', epoch = {next}, \
           since = pg_catalog.clock_timestamp() \
           WHERE migration = {name} AND unit = '{UNIT}' AND side = '{from}' AND epoch = {epoch}; \
         IF NOT FOUND THEN RAISE EXCEPTION USING ERRCODE = '40001', \
           MESSAGE = 'the authority was taken back, or moved, meanwhile'; END IF; END $crossfade$; {}",
        notify(migration, to, next)
    )
}

/// The row as the other side has it, never back to a lower epoch.
pub(super) fn follow_sql(migration: &str, written: Written) -> String {
    let Written { side, epoch } = written;
    let name = quote_literal(migration).trim_start().to_owned();
    format!(
        "UPDATE crossfade.authority SET side = '{side}', epoch = {epoch}, since = pg_catalog.clock_timestamp() \
         WHERE migration = {name} AND unit = '{UNIT}' AND epoch < {epoch}"
    )
}

/// Whether the row says exactly this, as a condition.
pub(super) fn says(migration: &str, side: Side, epoch: u64) -> String {
    let name = quote_literal(migration).trim_start().to_owned();
    format!(
        "EXISTS (SELECT FROM crossfade.authority WHERE migration = {name} AND unit = '{UNIT}' AND side = '{side}' \
         AND epoch = {epoch})"
    )
}

pub(super) fn notify(migration: &str, side: Side, epoch: u64) -> String {
    let told = format!("{{\"migration\":\"{migration}\",\"unit\":\"{UNIT}\",\"side\":\"{side}\",\"epoch\":{epoch}}}");
    format!("SELECT pg_catalog.pg_notify('{CHANNEL}', {})", quote_literal(&told).trim_start())
}

/// Commits that a word given to others depends on must survive a crash of the server.
pub(crate) const DURABLE: &str = "SELECT pg_catalog.set_config('synchronous_commit', 'on', true) \
     WHERE pg_catalog.current_setting('synchronous_commit') IN ('off', 'local')";

impl SwitchEnd {
    /// Makes the table, its functions and the migration's row, as far as they are not there. The row says that the old side
    /// has the authority, by `epoch`.
    ///
    /// # Errors
    /// `Refused` where the role may not, with the GRANT.
    pub async fn install(&mut self, epoch: u64) -> Result<(), Failure> {
        let doing = "making crossfade.authority";
        let (here, name) = (self.here, self.literal());
        if self.authority().await?.is_some() {
            return Ok(());
        }
        let insert = format!(
            "INSERT INTO crossfade.authority (migration, unit, here, side, epoch) \
             VALUES ({name}, '{UNIT}', '{here}', 'old', {epoch}) ON CONFLICT DO NOTHING"
        );
        let sql = format!(
            "BEGIN; SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('crossfade schema', 0)); \
             CREATE SCHEMA IF NOT EXISTS crossfade; {MAKE} {}; {insert}; COMMIT",
            super::fence::FUNCTION
        );
        let session = self.session().await?;
        let Err(error) = session.batch_execute(&sql).await else { return Ok(()) };
        roll_back(session).await;
        if ServerError::of(&error).is_some_and(|error| error.code == "42501") {
            let advice = "GRANT CREATE ON DATABASE … TO the role, or make the schema for it: \
                          CREATE SCHEMA crossfade AUTHORIZATION the_role";
            return Err(Failure::refused(doing, "the role may not", advice));
        }
        Err(failure(doing, error))
    }

    /// What the row says; `None` where there is none.
    ///
    /// # Errors
    /// When the database cannot be asked, or the row is damaged.
    pub async fn authority(&mut self) -> Result<Option<Written>, Failure> {
        let doing = "reading crossfade.authority";
        let migration = self.migration.clone();
        let session = self.session().await?;
        let there = "SELECT pg_catalog.to_regclass('crossfade.authority') IS NOT NULL";
        let there = session.query_one(there, &[]).await.map_err(|error| failure(doing, error))?;
        if !there.get::<_, bool>(0) {
            return Ok(None);
        }
        let sql = format!("SELECT side, epoch FROM crossfade.authority WHERE migration = $1 AND unit = '{UNIT}'");
        let row = session.query_opt(&sql, &[&migration]).await.map_err(|error| failure(doing, error))?;
        row.map(|row| {
            let damaged = |cause: String| {
                Failure::lost(doing, cause, "Somebody else has written the row: put it back as `crossfade status` says")
            };
            let side = row.get::<_, &str>(0).parse().map_err(|error| damaged(format!("{error}")))?;
            let epoch = u64::try_from(row.get::<_, i64>(1)).map_err(|error| damaged(error.to_string()))?;
            Ok(Written { side, epoch })
        })
        .transpose()
    }

    /// Makes a switch from `epoch` impossible, if it has not happened: raises the epoch that it would have had to find. Waits
    /// for one that is being written at this moment. Returns what the row says then.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn take_back(&mut self, epoch: u64) -> Result<Option<Written>, Failure> {
        let (name, here) = (self.literal(), self.here);
        let sql = format!(
            "BEGIN; {DURABLE}; UPDATE crossfade.authority SET epoch = epoch + 1 \
             WHERE migration = {name} AND unit = '{UNIT}' AND side = '{here}' AND epoch = {epoch}; COMMIT"
        );
        let doing = "taking the switch back";
        let session = self.session().await?;
        if let Err(error) = session.batch_execute(&sql).await {
            roll_back(session).await;
            return Err(failure(doing, error));
        }
        self.authority().await
    }

    /// Writes what the other side's row says into this one's, and tells whoever listens. Never back to a lower epoch. Where it
    /// names this side, its writers are let in: the fence is put out of action.
    ///
    /// # Errors
    /// When it cannot be written, or a fenced table is locked for too long.
    pub async fn follow(&mut self, written: Written) -> Result<(), Failure> {
        let sql = format!("BEGIN; SET LOCAL lock_timeout = '5s'; {DURABLE}; {}; COMMIT", self.open_sql(written));
        let doing = "telling the other side who has the authority";
        let session = self.session().await?;
        match session.batch_execute(&sql).await {
            Ok(()) => Ok(()),
            Err(error) => {
                roll_back(session).await;
                Err(failure(doing, error))
            }
        }
    }

    /// Commits something, so that every commit before it is on this server's disk too.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn settle(&mut self) -> Result<(), Failure> {
        let name = self.literal();
        let sql =
            format!("BEGIN; {DURABLE}; UPDATE crossfade.authority SET epoch = epoch WHERE migration = {name}; COMMIT");
        self.execute("waiting for the new side's disk", &sql).await
    }

    /// Takes the migration's row away, and with the last one everything that was made for it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn forget(&mut self) -> Result<(), Failure> {
        if self.authority().await?.is_none() {
            return Ok(());
        }
        let name = self.literal();
        let sql = format!(
            "DO $crossfade$ BEGIN DELETE FROM crossfade.authority WHERE migration = {name}; \
             IF pg_catalog.to_regclass('crossfade.read_shares') IS NOT NULL THEN \
               DELETE FROM crossfade.read_shares WHERE migration = {name}; END IF; \
             IF NOT EXISTS (SELECT FROM crossfade.authority) THEN {} \
               DROP TABLE crossfade.authority; DROP FUNCTION IF EXISTS crossfade.side(text, text); \
               DROP FUNCTION IF EXISTS crossfade.fence(); {} \
             END IF; \
             IF NOT EXISTS (SELECT FROM pg_catalog.pg_class WHERE relnamespace = 'crossfade'::pg_catalog.regnamespace) \
               AND NOT EXISTS (SELECT FROM pg_catalog.pg_proc WHERE pronamespace = 'crossfade'::pg_catalog.regnamespace) \
             THEN DROP SCHEMA crossfade; END IF; END $crossfade$",
            super::reads::DROP,
            super::watch::DROP
        );
        self.execute("removing crossfade.authority", &sql).await
    }
}

/// Ends a transaction that failed. A session that is gone has ended it already.
pub(super) async fn roll_back(session: &Session) {
    if let Err(error) = session.batch_execute("ROLLBACK").await {
        tracing::debug!(%error, "the session has ended");
    }
}
