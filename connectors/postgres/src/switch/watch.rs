//! Whether anybody else writes the target: a trigger on each of its tables that notes foreign transactions.
//!
//! It fires for each statement, for everybody and whatever `session_replication_role` is, but for sessions that name the
//! migration in `crossfade.pass`: ours. Its condition is all that our own statements pay for it. A note is written by the
//! foreign transaction itself, so it is there exactly when the write is. A *mark* is a snapshot of the target, taken when the
//! triggers were there: a note that the mark does not see is of a transaction that ended after it, however early it began.
//!
//! Notes do not pile up: one is let go once a later one was written by a transaction that saw it committed. Whatever mark does
//! not see the first was taken before that, so it does not see the second either.
//!
//! Not noticed: the workers of a subscription (they fire no such trigger), and whoever says that he is we. Passes over both
//! sides find what these do. Whoever takes the trigger away, or has the table rewritten, is noticed by its shape.
//! Once this side has the authority its writers are no foreigners, and nothing is noted.

use super::{SwitchEnd, authority::DURABLE};
use crate::{
    client::{ServerError, Session, failure},
    quote_ident, quote_table,
};
use crossfade_connector::{Failure, Verdict};
use crossfade_event::TableName;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The function reads our own tables alone, with our rights: whoever writes needs none here. Where somebody has dropped them
/// by hand, no application's statement fails for it; whoever asks then says so.
const MAKE: &str = "
CREATE TABLE IF NOT EXISTS crossfade.foreign_writes (
  migration text NOT NULL, relation text NOT NULL, xid pg_catalog.xid8 NOT NULL, who text NOT NULL,
  seen pg_catalog.pg_snapshot NOT NULL DEFAULT pg_catalog.pg_current_snapshot(),
  at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(), PRIMARY KEY (xid, migration, relation));
COMMENT ON TABLE crossfade.foreign_writes IS 'transactions that wrote the target of a migration beside it';
CREATE OR REPLACE FUNCTION crossfade.foreign_write() RETURNS trigger
  LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $crossfade$
BEGIN
  IF pg_catalog.to_regclass('crossfade.foreign_writes') IS NULL OR pg_catalog.to_regclass('crossfade.authority') IS NULL THEN
    RETURN NULL;
  END IF;
  IF EXISTS (SELECT FROM crossfade.authority a WHERE a.migration = TG_ARGV[0] AND a.side = 'new') THEN
    RETURN NULL;
  END IF;
  INSERT INTO crossfade.foreign_writes (migration, relation, xid, who)
    VALUES (TG_ARGV[0], pg_catalog.format('%I.%I', TG_TABLE_SCHEMA, TG_TABLE_NAME), pg_catalog.pg_current_xact_id(),
      session_user) ON CONFLICT DO NOTHING;
  RETURN NULL;
END $crossfade$;
REVOKE ALL ON FUNCTION crossfade.foreign_write() FROM PUBLIC";

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
        if !is_made(session, doing).await? {
            let sql = format!(
                "BEGIN; SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('crossfade schema', 0)); {MAKE}; COMMIT"
            );
            run(session, doing, &sql).await?;
        }
        for table in &tables {
            let quoted = quote_table(table)?;
            let there = "SELECT tgenabled::text FROM pg_catalog.pg_trigger WHERE tgname = $1 \
                         AND tgrelid = $2::text::pg_catalog.regclass";
            let there = session.query_opt(there, &[&trigger, &quoted.as_str()]).await;
            let there = there.map_err(|error| failure(doing, error))?.map(|row| row.get::<_, String>(0));
            let named = quote_ident(&trigger)?;
            // What is not there is not dropped: that would keep readers waiting too.
            let drop = match there.as_deref() {
                Some("A") => continue,
                Some(_) => format!("DROP TRIGGER {named} ON {quoted}; "),
                None => String::new(),
            };
            let sql = format!(
                "{drop}CREATE TRIGGER {named} AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {quoted} FOR EACH STATEMENT \
                 WHEN (pg_catalog.current_setting('crossfade.pass', true) IS DISTINCT FROM {name}) \
                 EXECUTE FUNCTION crossfade.foreign_write({name}); \
                 ALTER TABLE ONLY {quoted} ENABLE ALWAYS TRIGGER {named}"
            );
            patiently(session, doing, &sql).await?;
        }
        if let Some(before) = before.map(parse).transpose()? {
            let sql = "DELETE FROM crossfade.foreign_writes WHERE migration = $1 \
                       AND pg_catalog.pg_visible_in_snapshot(xid, $2::text::pg_catalog.pg_snapshot)";
            let deleted = session.execute(sql, &[&migration, &before.snapshot]).await;
            deleted.map_err(|error| failure(doing, error))?;
        }
        tidy(session, &migration, doing).await?;
        let shape = shape_of(session, &tables, &trigger, doing).await?;
        let snapshot = snapshot(session, doing).await?;
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
            return Ok(Some(
                "a table of the target was rewritten or has another shape, or its watch was taken away".to_owned(),
            ));
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

    /// Lets notes go that say no more than later ones, where there are any.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn tidy_watch(&mut self) -> Result<(), Failure> {
        let doing = "letting old notes of other writers go";
        let migration = self.migration.clone();
        let session = self.session().await?;
        if is_made(session, doing).await? { tidy(session, &migration, doing).await } else { Ok(()) }
    }

    /// Takes the watch away, table by table: whoever waits for a table waits no longer than one try.
    ///
    /// # Errors
    /// When a table cannot be locked in so many tries.
    pub async fn unwatch(&mut self) -> Result<(), Failure> {
        let doing = "taking the watch over the target away";
        let (trigger, migration) = (name_of(&self.migration), self.migration.clone());
        let session = self.session().await?;
        let sql = "SELECT tgrelid::pg_catalog.regclass::text FROM pg_catalog.pg_trigger WHERE tgname = $1 AND NOT tgisinternal \
                   AND tgfoid = pg_catalog.to_regproc('crossfade.foreign_write') ORDER BY tgrelid";
        let rows = session.query(sql, &[&trigger]).await.map_err(|error| failure(doing, error))?;
        for table in rows.iter().map(|row| row.get::<_, String>(0)) {
            let sql = format!("DROP TRIGGER IF EXISTS {} ON {table}", quote_ident(&trigger)?);
            patiently(session, doing, &sql).await?;
        }
        if is_made(session, doing).await? {
            let sql = "DELETE FROM crossfade.foreign_writes WHERE migration = $1";
            session.execute(sql, &[&migration]).await.map_err(|error| failure(doing, error))?;
        }
        Ok(())
    }
}

/// One try at a table's lock, and as long everybody else may have the table.
const ONE_TRY: Duration = Duration::from_millis(150);

/// So often.
const TRIES_MAX: u32 = 40;

/// Changes a table's triggers, in a transaction of its own. Others wait behind us for one try and no longer.
async fn patiently(session: &Session, doing: &str, sql: &str) -> Result<(), Failure> {
    let sql = format!("BEGIN; SET LOCAL lock_timeout = '{}ms'; {sql}; COMMIT", ONE_TRY.as_millis());
    let mut tries = 1;
    loop {
        match run(session, doing, &sql).await {
            Err(waits) if tries < TRIES_MAX && matches!(waits.verdict, Verdict::Retry { .. }) => tries += 1,
            done => return done,
        }
        tokio::time::sleep(ONE_TRY).await;
    }
}

async fn is_made(session: &Session, doing: &str) -> Result<bool, Failure> {
    let sql = "SELECT pg_catalog.to_regclass('crossfade.foreign_writes') IS NOT NULL";
    Ok(session.query_one(sql, &[]).await.map_err(|error| failure(doing, error))?.get(0))
}

async fn tidy(session: &Session, migration: &str, doing: &str) -> Result<(), Failure> {
    let sql = "DELETE FROM crossfade.foreign_writes w WHERE w.migration = $1 AND pg_catalog.pg_visible_in_snapshot(w.xid, \
               (SELECT n.seen FROM crossfade.foreign_writes n WHERE n.migration = $1 ORDER BY n.xid DESC LIMIT 1))";
    session.execute(sql, &[&migration]).await.map(drop).map_err(|error| failure(doing, error))
}

/// Which transactions have ended by now. On the disk before it is used: after a crash the server would give numbers that were
/// lost with it to others, and the mark would take these for seen.
async fn snapshot(session: &Session, doing: &str) -> Result<String, Failure> {
    let begin = format!("BEGIN; {DURABLE}; SELECT pg_catalog.pg_current_xact_id()");
    let taken = async {
        session.batch_execute(&begin).await?;
        let row = session.query_one("SELECT pg_catalog.pg_current_snapshot()::text", &[]).await?;
        session.batch_execute("COMMIT").await?;
        Ok(row.get(0))
    };
    match taken.await {
        Ok(snapshot) => Ok(snapshot),
        Err(error) => {
            super::authority::roll_back(session).await;
            Err(failure(doing, error))
        }
    }
}

/// What goes with the last migration's row.
pub(super) const DROP: &str =
    "DROP TABLE IF EXISTS crossfade.foreign_writes; DROP FUNCTION IF EXISTS crossfade.foreign_write();";

fn parse(mark: &str) -> Result<WatchMark, Failure> {
    let advice = "Verify both sides again: `crossfade verify`";
    serde_json::from_str(mark).map_err(|error| Failure::halt("reading the mark of a comparison", error, advice))
}

/// A hash of the tables' columns and files, of whether each is watched, and of where the notes are. A file is another one
/// after a rewrite: what it did to the rows is not known.
async fn shape_of(session: &Session, tables: &[TableName], trigger: &str, doing: &str) -> Result<String, Failure> {
    let names: Vec<String> =
        tables.iter().map(|table| quote_table(table).map(|name| name.as_str().to_owned())).collect::<Result<_, _>>()?;
    let sql = "SELECT pg_catalog.hashtextextended(COALESCE(pg_catalog.string_agg(pg_catalog.concat_ws(' ', c.oid, pg_catalog.pg_relation_filenode(c.oid), \
           (SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', a.attnum, a.attname, a.atttypid, a.atttypmod), ',' \
              ORDER BY a.attnum) FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), \
           (SELECT pg_catalog.concat_ws(' ', t.oid, t.tgenabled) FROM pg_catalog.pg_trigger t \
              WHERE t.tgrelid = c.oid AND t.tgname = $2)), ';' ORDER BY c.oid), '') \
           || COALESCE(pg_catalog.to_regclass('crossfade.foreign_writes')::pg_catalog.oid::text, ''), 0)::text \
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
    if ServerError::of(&error).is_some_and(|error| error.code == "42501") {
        let advice = "ALTER TABLE … OWNER TO the role, for each table of the target; or GRANT the owner's role TO it";
        return Err(Failure::refused(doing, error, advice));
    }
    Err(failure(doing, error))
}
