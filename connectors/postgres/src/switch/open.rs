//! Opening the side that gets the authority: its fence is put out of action and its row says so, in one transaction. That is made
//! before the point of no return and waits for it, so that only a `COMMIT` lies between the two sides.
//!
//! ```text
//!  side that gives                          side that gets
//!  (everything is over there)               BEGIN, gate, fence out of action, row ── not committed
//!  row, fence, COMMIT ◀── no return
//!                                           COMMIT ── the writers go on here
//! ```
//! Between the two commits both sides are closed: a writer that comes here waits at the gate or at the tables' locks, and
//! goes on with the second commit. Where that does not come, for we or the network have died, the server ends the
//! transaction by the deadline, and whoever asks the row next opens this side ([`SwitchEnd::follow`]).
//!
//! Where both sides are in one database it is one commit: the freeze's own transaction puts the other side's fence out of action
//! ([`Freeze::open_the_other_side`](super::Freeze::open_the_other_side)).
//!
//! A fence that is out of action is a disabled trigger, for dropping one would wait for readers, too.

use super::{SwitchEnd, Written, authority, fence, lock};
use crate::client::{Session, connect, failure};
use crossfade_connector::Failure;
use crossfade_event::TableName;
use std::time::Instant;

/// A side that one commit opens.
pub struct Opening {
    session: Session,
}

impl std::fmt::Debug for Opening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Opening")
    }
}

impl SwitchEnd {
    /// Makes this side ready to be opened, until `ends` at most: its writers are still refused.
    ///
    /// # Errors
    /// `Retry` where somebody holds a fenced table's lock for too long.
    pub async fn ready_to_open(&mut self, written: Written, ends: Instant) -> Result<Opening, Failure> {
        let doing = "making the other side ready to be opened";
        let session = connect(&self.config, "crossfade opening").await?;
        let version = lock::version(&session).await?;
        let left = ends.saturating_duration_since(Instant::now());
        // Whoever has asked here, and has not ended yet, is told nothing new: the gate is no condition.
        let sql = format!(
            "BEGIN; {lease} SET LOCAL lock_timeout = {left}; SET LOCAL statement_timeout = {left}; {durable}; \
             SELECT pg_catalog.pg_try_advisory_xact_lock({gate}); {open}",
            lease = lock::lease(version, left),
            left = left.as_millis().max(1),
            durable = authority::DURABLE,
            gate = authority::gate(&self.migration),
            open = self.open_sql(written),
        );
        session.batch_execute(&sql).await.map_err(|error| match lock::is_a_wait(&error) {
            true => Failure::retry(doing, "a table's lock was not granted within the deadline"),
            false => failure(doing, error),
        })?;
        Ok(Opening { session })
    }

    /// The row follows, and where it names this side, the fence is put out of action.
    pub(super) fn open_sql(&self, written: Written) -> String {
        let Written { side, epoch } = written;
        format!(
            "{}; {}; {}",
            authority::follow_sql(&self.migration, written),
            fence::out_of_action(&self.migration, self.here, epoch),
            authority::notify(&self.migration, side, epoch)
        )
    }

    /// The tables here that have a fence, whether it is in action or not, but for these and what they are written through.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn fenced_but(&mut self, tables: &[TableName]) -> Result<Vec<TableName>, Failure> {
        let others = self.family(tables).await?;
        let trigger = fence::name_of(&self.migration);
        let sql = "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_trigger t \
             JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE t.tgname = $1 AND NOT t.tgisinternal ORDER BY 1, 2";
        let rows = self.session().await?.query(sql, &[&trigger]).await;
        let rows = rows.map_err(|error| failure("looking for the fence", error))?;
        let fenced = rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)));
        Ok(fenced.filter(|table| !others.contains(table)).collect())
    }
}

impl Opening {
    /// Opens it. After the point of no return only.
    ///
    /// # Errors
    /// When it cannot be told whether it is open; [`SwitchEnd::follow`] opens it then.
    pub async fn open(self) -> Result<(), Failure> {
        let opened = self.session.batch_execute("COMMIT").await;
        opened.map_err(|error| failure("opening the other side", error))
    }

    /// Leaves it closed.
    pub async fn leave(self) {
        if let Err(error) = self.session.batch_execute("ROLLBACK").await {
            tracing::debug!(%error, "it had ended already");
        }
    }
}
