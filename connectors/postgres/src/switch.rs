//! One side of a switch: who has the authority, the freeze, the fence, and what the way back needs.
//!
//! ```text
//!  old side                                                   new side
//!  BEGIN, gate, LOCK TABLE … ── no writer is left             (the sink passes the barrier)
//!  │  the server ends the session by itself                   a durable commit, sequences, slot moved up
//!  │  at the deadline, whatever becomes of us
//!  UPDATE crossfade.authority … WHERE side AND epoch  ◀── the point of no return
//!  CREATE TRIGGER crossfade_fence_… ON every table
//!  COMMIT ── lock and fence change places in one commit       its row follows, its own fence goes (`open`)
//! ```
//! The row, the fence and the lock are one transaction's: there is no moment in which neither lock nor fence stands, and
//! none in which the row says `new` and a write of the old side could still be accepted.
//!
//! What is here decides nothing: the order of the steps, the journal and the deadline are the caller's.

mod authority;
mod fence;
mod freeze;
mod lock;
mod look;
mod open;
mod reads;
mod reverse;
mod sequences;
mod since;
mod watch;

pub(crate) use authority::{DURABLE, gate, give_sql};
pub(crate) use fence::FUNCTION as FENCE;
pub use freeze::Freeze;
pub(crate) use freeze::is_an_error;
pub(crate) use lock::{LockMode, lock_tables, version};
pub use open::Opening;
pub use reads::{Share, ShareSet, SteppedDown};

use crate::{
    Config,
    client::{Session, connect, failure},
    quote_literal, quote_table,
};
use crossfade_connector::Failure;
pub(crate) use crossfade_connector::switch::{Given, Locked, Written};
use crossfade_event::{Side, TableName};

/// One side of a switch. Connects when it is first asked.
pub struct SwitchEnd {
    config: Config,
    migration: String,
    here: Side,
    session: Option<Session>,
}

impl std::fmt::Debug for SwitchEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SwitchEnd").field("config", &self.config).field("here", &self.here).finish_non_exhaustive()
    }
}

impl SwitchEnd {
    /// The side that `config` names.
    pub fn new(config: Config, migration: &str, here: Side) -> Self {
        Self { config, migration: migration.to_owned(), here, session: None }
    }

    /// The migration's name as a text in SQL.
    fn literal(&self) -> String {
        quote_literal(&self.migration).trim_start().to_owned()
    }

    async fn session(&mut self) -> Result<&mut Session, Failure> {
        if self.session.as_ref().is_some_and(|session| session.is_closed()) {
            self.session = None;
        }
        let session = match self.session.take() {
            Some(session) => session,
            None => connect(&self.config, "crossfade switch").await?,
        };
        Ok(self.session.insert(session))
    }

    async fn execute(&mut self, doing: &str, sql: &str) -> Result<(), Failure> {
        self.session().await?.batch_execute(sql).await.map_err(|error| failure(doing, error))
    }

    /// Which server and which database this is.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn identity(&mut self) -> Result<String, Failure> {
        let sql = "SELECT system_identifier::text || '/' || (SELECT oid FROM pg_catalog.pg_database \
                   WHERE datname = pg_catalog.current_database())::text FROM pg_catalog.pg_control_system()";
        let row = self.session().await?.query_one(sql, &[]).await;
        Ok(row.map_err(|error| failure("reading the server's identity", error))?.get(0))
    }

    /// The tables and what they are written through: partitions and children, roots and parents.
    async fn family(&mut self, tables: &[TableName]) -> Result<Vec<TableName>, Failure> {
        let names: Vec<String> = tables
            .iter()
            .map(|table| quote_table(table).map(|name| name.as_str().to_owned()))
            .collect::<Result<_, _>>()?;
        let sql = "WITH RECURSIVE wanted AS (SELECT pg_catalog.unnest($1::text[])::pg_catalog.regclass::pg_catalog.oid AS oid), \
             up AS (SELECT oid FROM wanted UNION SELECT i.inhparent FROM up JOIN pg_catalog.pg_inherits i ON i.inhrelid = up.oid), \
             down AS (SELECT oid FROM wanted UNION SELECT i.inhrelid FROM down JOIN pg_catalog.pg_inherits i ON i.inhparent = down.oid) \
             SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.oid IN (SELECT oid FROM up UNION SELECT oid FROM down) AND c.relkind IN ('r', 'p') ORDER BY 1, 2";
        let rows = self.session().await?.query(sql, &[&names]).await;
        let rows = rows.map_err(|error| failure("looking for the tables of the switch", error))?;
        Ok(rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect())
    }
}

/// The names as a list in SQL, each by itself.
fn listed(tables: &[TableName]) -> Result<String, Failure> {
    let names: Vec<String> =
        tables.iter().map(|table| quote_table(table).map(|name| format!("ONLY {name}"))).collect::<Result<_, _>>()?;
    Ok(names.join(", "))
}
