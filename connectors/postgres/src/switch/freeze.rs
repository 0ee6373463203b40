//! The freeze: a lease that ends by itself.
//!
//! One transaction holds the gate and `SHARE ROW EXCLUSIVE` on every table: writers wait, readers go on. That the locks
//! are granted is the proof that no writer's transaction is open on the tables. The server itself ends the session once
//! it has been idle until the deadline (`idle_in_transaction_session_timeout`, from 17 also `transaction_timeout`), so
//! the lease also ends when we, the machine or the network die.

use super::{
    SwitchEnd, authority, fence,
    lock::{self, HOLDING_UP, LockMode, NotLocked, lock_tables},
};
use crate::client::{Session, connect, failure};
use crossfade_connector::{
    Failure,
    switch::{Given, Locked},
};
use crossfade_event::{Side, TableName};
use std::time::{Duration, Instant};

/// A freeze that holds.
pub struct Freeze {
    session: Session,
    migration: String,
    here: Side,
    tables: Vec<TableName>,
    /// Since when, after how many tries, and until when.
    pub locked: Locked,
}

impl std::fmt::Debug for Freeze {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Freeze").field("locked", &self.locked).finish_non_exhaustive()
    }
}

impl SwitchEnd {
    /// Holds up all writers of the tables, until `ends` at most. Tries again, with pauses, while there is time.
    ///
    /// # Errors
    /// `Retry` when the locks could not be had in time; nobody is held up then.
    pub async fn freeze(
        &mut self,
        tables: &[TableName],
        ends: Instant,
        lock_timeout: Duration,
    ) -> Result<Freeze, Failure> {
        let tables = self.family(tables).await?;
        let session = connect(&self.config, "crossfade freeze").await?;
        match lock_tables(&session, "BEGIN", &self.migration, &tables, LockMode::Writers, (ends, lock_timeout)).await {
            Ok(locked) => Ok(Freeze { session, migration: self.migration.clone(), here: self.here, tables, locked }),
            Err(NotLocked::Failed(failure)) => Err(failure),
            Err(in_vain @ NotLocked::InVain { .. }) => {
                let who = self.in_the_way(&tables).await;
                Err(Failure::retry(HOLDING_UP, format!("{in_vain}: {who}")))
            }
        }
    }

    /// Who is in the way, for the sentence that says so.
    async fn in_the_way(&mut self, tables: &[TableName]) -> String {
        match self.oldest_writer(tables).await {
            Ok(Some(writing)) => format!("{}, for {} ms", writing.who, writing.age_ms),
            _ => "many short transactions, one after another".to_owned(),
        }
    }
}

impl Freeze {
    /// Where both sides are in one database: the other side's fence is put out of action here, in the transaction that gives
    /// the authority away. Until that commits nobody may write there. Waits for maintenance that holds a table, until the deadline.
    ///
    /// # Errors
    /// `Retry` where a table's lock was not granted in time; the freeze is over then.
    pub async fn open_the_other_side(&self) -> Result<(), Failure> {
        let doing = "making the other side ready to be opened";
        let left = self.locked.left();
        if left.is_zero() {
            return Err(Failure::retry(doing, "the deadline has passed"));
        }
        let version = lock::version(&self.session).await?;
        let sql = format!(
            // A statement begins the server's idle time anew: it ends when it would have.
            "{lease} SET LOCAL lock_timeout = {left_ms}; SET LOCAL statement_timeout = {left_ms}; {}",
            fence::others_out_of_action(&self.migration, &self.tables)?,
            lease = lock::lease(version, left),
            left_ms = left.as_millis().max(1),
        );
        self.session.batch_execute(&sql).await.map_err(|error| match lock::is_a_wait(&error) {
            true => Failure::retry(doing, "a table's lock was not granted within the deadline"),
            false => failure(doing, error),
        })
    }

    /// That it holds still, and so has held until now: what was seen since it was granted was seen while nobody wrote.
    ///
    /// # Errors
    /// When it does not, or that cannot be told.
    pub async fn holds(&self) -> Result<(), Failure> {
        let doing = "asking whether the writers are still held up";
        let left = self.locked.left();
        if left.is_zero() {
            return Err(Failure::retry(doing, "the deadline has passed"));
        }
        let version = lock::version(&self.session).await?;
        // A statement begins the server's idle time anew: it ends when it would have.
        let sql = format!("{} SELECT 1", lock::lease(version, left));
        self.session.batch_execute(&sql).await.map_err(|error| failure(doing, error))
    }

    /// The point of no return: the row, the fence and the end of the lock, in one commit. `epoch` is what the row must say.
    pub async fn give(self, epoch: u64) -> Given {
        let doing = "giving the authority to the other side";
        let left = self.locked.left();
        if left.is_zero() {
            return Given::Refused(Failure::retry(doing, "the deadline has passed"));
        }
        let fence = match fence::up(&self.migration, &self.tables) {
            Ok(fence) => fence,
            Err(failure) => return Given::Refused(failure),
        };
        let sql = format!(
            "SET LOCAL statement_timeout = {left}; SET LOCAL lock_timeout = {left}; {}; {}; {fence} {} COMMIT",
            authority::DURABLE,
            authority::give_sql(&self.migration, self.here, epoch),
            // The views of this side are behind its tables' fence.
            crate::swap::flip_sql(&self.migration, self.here.other(), false),
            left = left.as_millis().max(1),
        );
        match self.session.batch_execute(&sql).await {
            Ok(()) => Given::Done,
            // Only an error in one of the statements is a no. A session that was ended may have committed before.
            Err(error) if is_an_error(&error) => Given::Refused(failure(doing, error)),
            Err(error) => Given::Unknown(failure(doing, error)),
        }
    }

    /// Lets the writers go on.
    pub async fn release(self) {
        // Where the session has ended, so has the freeze.
        if let Err(error) = self.session.batch_execute("ROLLBACK").await {
            tracing::debug!(%error, "the freeze had ended already");
        }
    }
}

pub(crate) fn is_an_error(error: &tokio_postgres::Error) -> bool {
    use tokio_postgres::error::Severity;
    error.as_db_error().is_some_and(|error| error.parsed_severity() == Some(Severity::Error))
}
