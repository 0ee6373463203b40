//! Whether anybody else writes the target: a trigger on each of its tables that notes foreign transactions.
//!
//! It fires for each statement, for everybody and whatever `session_replication_role` is, but for sessions that name the
//! migration in `crossfade.pass`: ours. Its condition is all that our own statements pay for it. A note is written by the
//! foreign transaction itself, so it is there exactly when the write is. A *mark* is a snapshot of the target, taken when the
//! triggers were there: a note that the mark does not see is of a transaction that ended after it, however early it began.
//!
//! Not noticed: the workers of a subscription (they fire no such trigger), whoever takes the trigger away and puts it back,
//! and a rewrite of the whole table by DDL that leaves its columns as they were. Passes over both sides find what these do.
//! Once this side has the authority its writers are no foreigners, and nothing is noted.

use super::SwitchEnd;
use crate::{
    client::{Session, failure},
    quote_ident, quote_literal, quote_table,
};
use crossfade_connector::Failure;
use crossfade_event::TableName;
use serde::{Deserialize, Serialize};

const MAKE: &str = "
CREATE TABLE IF NOT EXISTS crossfade.foreign_writes (
  migration text NOT NULL, relation text NOT NULL, xid pg_catalog.xid8 NOT NULL, who text NOT NULL,
  at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(), PRIMARY KEY (xid, migration, relation));
COMMENT ON TABLE crossfade.foreign_writes IS 'transactions that wrote the target of a migration beside it';
CREATE OR REPLACE FUNCTION crossfade.foreign_write() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $crossfade$
BEGIN
  IF EXISTS (SELECT FROM crossfade.authority a WHERE a.migration = TG_ARGV[0] AND a.side = 'new') THEN
    RETURN NULL;
  END IF;
  INSERT INTO crossfade.foreign_writes (migration, relation, xid, who)
    VALUES (TG_ARGV[0], pg_catalog.format('%I.%I', TG_TABLE_SCHEMA, TG_TABLE_NAME), pg_catalog.pg_current_xact_id(),
      session_user) ON CONFLICT DO NOTHING;
  RETURN NULL;
END $crossfade$";

/// The mark, as it is kept.
#[derive(Debug, Serialize, Deserialize)]
struct WatchMark {
    snapshot: String,
    shape: String,
}

/// The trigger's name: each migration has its own.
pub(super) fn name_of(migration: &str) -> String {
    format!("crossfade_watch_{}", migration.replace('-', "_"))
}

impl SwitchEnd {
    /// Watches these tables from now on, and returns a mark for [`SwitchEnd::written_since`]. Notes that an earlier mark sees
    /// already are let go.
    ///
    /// # Errors
    /// `Retry` where a table's lock is not granted in time, `Refused` where the role does not own a table.
    pub async fn watch(&mut self, tables: &[TableName], before: Option<&str>) -> Result<String, Failure> {
        let doing = "watching the target for other writers";
        let (trigger, name) = (name_of(&self.migration), self.literal());
        let (tables, migration) = (self.family(tables).await?, self.migration.clone());
        let session = self.session().await?;
        let made = "SELECT pg_catalog.to_regclass('crossfade.foreign_writes') IS NOT NULL";
        let made = session.query_one(made, &[]).await.map_err(|error| failure(doing, error))?;
        if !made.get::<_, bool>(0) {
            let sql = format!(
                "BEGIN; SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('crossfade schema', 0)); {MAKE}; COMMIT"
            );
            run(session, doing, &sql).await?;
        }
        for table in &tables {
            let quoted = quote_table(table)?;
            let there = "SELECT EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE tgname = $1 AND tgenabled = 'A' \
                         AND tgrelid = $2::text::pg_catalog.regclass)";
            let there = session.query_one(there, &[&trigger, &quoted.as_str()]).await;
            if there.map_err(|error| failure(doing, error))?.get(0) {
                continue;
            }
            let named = quote_ident(&trigger)?;
            let sql = format!(
                "BEGIN; SET LOCAL lock_timeout = '700ms'; DROP TRIGGER IF EXISTS {named} ON {quoted}; \
                 CREATE TRIGGER {named} AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {quoted} FOR EACH STATEMENT \
                 WHEN (pg_catalog.current_setting('crossfade.pass', true) IS DISTINCT FROM {name}) \
                 EXECUTE FUNCTION crossfade.foreign_write({name}); \
                 ALTER TABLE ONLY {quoted} ENABLE ALWAYS TRIGGER {named}; COMMIT"
            );
            run(session, doing, &sql).await?;
        }
        if let Some(before) = before.map(parse).transpose()? {
            let sql = "DELETE FROM crossfade.foreign_writes WHERE migration = $1 \
                       AND pg_catalog.pg_visible_in_snapshot(xid, $2::text::pg_catalog.pg_snapshot)";
            let deleted = session.execute(sql, &[&migration, &before.snapshot]).await;
            deleted.map_err(|error| failure(doing, error))?;
        }
        let shape = shape_of(session, &tables, &trigger, doing).await?;
        let row = session.query_one("SELECT pg_catalog.pg_current_snapshot()::text", &[]).await;
        let snapshot = row.map_err(|error| failure(doing, error))?.get(0);
        serde_json::to_string(&WatchMark { snapshot, shape }).map_err(|error| Failure::reconnect(doing, error))
    }

    /// Who has written these tables since the mark, or changed their shape, in words; `None` where nobody has.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn written_since(&mut self, tables: &[TableName], mark: &str) -> Result<Option<String>, Failure> {
        let doing = "asking who else has written the target";
        let mark = parse(mark)?;
        let trigger = name_of(&self.migration);
        let tables = self.family(tables).await?;
        let migration = self.migration.clone();
        let session = self.session().await?;
        if shape_of(session, &tables, &trigger, doing).await? != mark.shape {
            return Ok(Some("a table of the target has another shape, or its watch was taken away".to_owned()));
        }
        let sql = "SELECT relation, who FROM crossfade.foreign_writes WHERE migration = $1 \
                   AND NOT pg_catalog.pg_visible_in_snapshot(xid, $2::text::pg_catalog.pg_snapshot) ORDER BY at LIMIT 1";
        let row = session.query_opt(sql, &[&migration, &mark.snapshot]).await;
        let row = row.map_err(|error| failure(doing, error))?;
        Ok(row.map(|row| {
            let (table, who): (String, String) = (row.get(0), row.get(1));
            format!("somebody else (role {who}) has written {table} in the target")
        }))
    }

    /// Takes the watch away.
    ///
    /// # Errors
    /// When a table cannot be locked in time.
    pub async fn unwatch(&mut self) -> Result<(), Failure> {
        let sql = self.unwatch_sql();
        self.execute("taking the watch over the target away", &sql).await
    }

    /// The statements that take the watch away with everything of it, where nothing else of the migration is left here.
    pub(super) fn unwatch_sql(&self) -> String {
        let trigger = quote_literal(&name_of(&self.migration));
        let trigger = trigger.trim_start();
        format!(
            "DO $crossfade$ DECLARE t record; BEGIN \
             FOR t IN SELECT tgrelid::pg_catalog.regclass AS name FROM pg_catalog.pg_trigger \
               WHERE tgname = {trigger} AND NOT tgisinternal \
             LOOP EXECUTE pg_catalog.format('DROP TRIGGER %I ON %s', {trigger}, t.name); END LOOP; \
             IF pg_catalog.to_regclass('crossfade.foreign_writes') IS NOT NULL THEN \
               DELETE FROM crossfade.foreign_writes WHERE migration = {}; END IF; END $crossfade$",
            self.literal()
        )
    }
}

/// What goes with the last migration's row.
pub(super) const DROP: &str =
    "DROP TABLE IF EXISTS crossfade.foreign_writes; DROP FUNCTION IF EXISTS crossfade.foreign_write();";

fn parse(mark: &str) -> Result<WatchMark, Failure> {
    let advice = "Verify both sides again: `crossfade verify`";
    serde_json::from_str(mark).map_err(|error| Failure::halt("reading the mark of a comparison", error, advice))
}

/// A hash of the tables' columns, and of whether each is watched.
async fn shape_of(session: &Session, tables: &[TableName], trigger: &str, doing: &str) -> Result<String, Failure> {
    let names: Vec<String> =
        tables.iter().map(|table| quote_table(table).map(|name| name.as_str().to_owned())).collect::<Result<_, _>>()?;
    let sql = "SELECT pg_catalog.md5(COALESCE(pg_catalog.string_agg(pg_catalog.concat_ws(' ', c.oid, \
           (SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', a.attnum, a.attname, a.atttypid, a.atttypmod), ',' \
              ORDER BY a.attnum) FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), \
           (SELECT pg_catalog.concat_ws(' ', t.oid, t.tgenabled) FROM pg_catalog.pg_trigger t \
              WHERE t.tgrelid = c.oid AND t.tgname = $2)), ';' ORDER BY c.oid), '')) \
         FROM pg_catalog.pg_class c WHERE c.oid = ANY (SELECT pg_catalog.to_regclass(n)::pg_catalog.oid \
           FROM pg_catalog.unnest($1::text[]) n)";
    let row = session.query_one(sql, &[&names, &trigger]).await.map_err(|error| failure(doing, error))?;
    Ok(row.get(0))
}

async fn run(session: &Session, doing: &str, sql: &str) -> Result<(), Failure> {
    let Err(error) = session.batch_execute(sql).await else { return Ok(()) };
    super::authority::roll_back(session).await;
    if super::lock::is_a_wait(&error) {
        return Err(Failure::retry(doing, "a table's lock was not granted in time"));
    }
    Err(failure(doing, error))
}
