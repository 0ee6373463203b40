//! The freeze: a lease that ends by itself.
//!
//! One transaction holds the gate and `SHARE ROW EXCLUSIVE` on every table: writers wait, readers go on. That the locks
//! are granted is the proof that no writer's transaction is open on the tables. The server itself ends the session once
//! it has been idle until the deadline (`idle_in_transaction_session_timeout`, from 17 also `transaction_timeout`), so
//! the lease also ends when we, the machine or the network die.
//!
//! Waiting for the locks holds writers up too, for they queue behind us. So one try is short, the next a little longer, and
//! between two tries writers have as much time as the try took.

use super::{SwitchEnd, authority, fence, listed};
use crate::client::{ServerError, Session, connect, failure};
use crossfade_connector::Failure;
use crossfade_event::{Side, TableName};
use std::time::{Duration, Instant};

/// How long the first try at the locks lasts.
const FIRST_TRY: Duration = Duration::from_millis(100);

/// A freeze that holds.
pub struct Freeze {
    session: Session,
    migration: String,
    here: Side,
    tables: Vec<TableName>,
    ends: Instant,
    /// When writers began to wait: the beginning of the try that got the locks.
    pub since: Instant,
    /// How many tries it took.
    pub tries: u32,
}

impl std::fmt::Debug for Freeze {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Freeze").field("tries", &self.tries).finish_non_exhaustive()
    }
}

/// What came of giving the authority away.
#[derive(Debug)]
pub enum Given {
    /// It is done.
    Done,
    /// It is not done: the server has said so.
    Refused(Failure),
    /// Nobody knows: the row must be asked.
    Unknown(Failure),
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
        let version = version(&session).await?;
        let (gate, list) = (authority::gate(&self.migration), listed(&tables)?);
        let mut patience = FIRST_TRY.min(lock_timeout);
        let mut tries = 0;
        loop {
            let left = ends.saturating_duration_since(Instant::now());
            if left <= patience {
                return Err(Failure::retry(
                    "holding up the writers",
                    format!(
                        "the locks were not granted within the deadline, in {tries} tries: {}",
                        self.in_the_way(&tables).await
                    ),
                ));
            }
            tries += 1;
            let since = Instant::now();
            let sql = format!(
                "BEGIN; {lease} SET LOCAL lock_timeout = {one}; SET LOCAL statement_timeout = {one}; \
                 SELECT pg_catalog.pg_advisory_xact_lock({gate}); LOCK TABLE {list} IN SHARE ROW EXCLUSIVE MODE; \
                 SET LOCAL statement_timeout = {rest}; SET LOCAL lock_timeout = {rest}",
                // The try itself is counted against the rest, as if it took as long as it may.
                lease = lease(version, left - patience),
                one = patience.as_millis().max(1),
                rest = (left - patience).as_millis().max(1),
            );
            match session.batch_execute(&sql).await {
                Ok(()) => {
                    let (migration, here) = (self.migration.clone(), self.here);
                    return Ok(Freeze { session, migration, here, tables, ends, since, tries });
                }
                Err(error) if is_a_wait(&error) => {
                    session
                        .batch_execute("ROLLBACK")
                        .await
                        .map_err(|error| failure("holding up the writers", error))?;
                    tokio::time::sleep(patience).await;
                    patience = (patience * 2).min(lock_timeout);
                }
                Err(error) => return Err(failure("holding up the writers", error)),
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

/// Has the server end the transaction by itself.
pub(super) fn lease(version: i32, left: Duration) -> String {
    let left = left.as_millis().max(1);
    let whole = if version >= 170_000 { format!(" SET LOCAL transaction_timeout = {left};") } else { String::new() };
    format!("SET LOCAL idle_in_transaction_session_timeout = {left};{whole}")
}

/// A lock or statement timeout, or a deadlock that was solved at our cost.
pub(super) fn is_a_wait(error: &tokio_postgres::Error) -> bool {
    ServerError::of(error).is_some_and(|error| matches!(error.code.as_str(), "55P03" | "57014" | "40P01"))
}

pub(crate) async fn version(session: &Session) -> Result<i32, Failure> {
    let sql = "SELECT pg_catalog.current_setting('server_version_num')::pg_catalog.int4";
    Ok(session.query_one(sql, &[]).await.map_err(|error| failure("asking for the server's version", error))?.get(0))
}

impl Freeze {
    /// When it ends at the latest.
    pub fn ends(&self) -> Instant {
        self.ends
    }

    /// How long it holds still.
    pub fn left(&self) -> Duration {
        self.ends.saturating_duration_since(Instant::now())
    }

    /// Where both sides are in one database: the other side's fence is put out of action here, in the transaction that gives
    /// the authority away. Until that commits nobody may write there. Waits for maintenance that holds a table, until the deadline.
    ///
    /// # Errors
    /// `Retry` where a table's lock was not granted in time; the freeze is over then.
    pub async fn open_the_other_side(&mut self) -> Result<(), Failure> {
        let doing = "making the other side ready to be opened";
        let left = self.left();
        if left.is_zero() {
            return Err(Failure::retry(doing, "the deadline has passed"));
        }
        let version = version(&self.session).await?;
        let sql = format!(
            // A statement begins the server's idle time anew: it ends when it would have.
            "{lease} SET LOCAL lock_timeout = {left_ms}; SET LOCAL statement_timeout = {left_ms}; {}",
            fence::others_out_of_action(&self.migration, &self.tables)?,
            lease = lease(version, left),
            left_ms = left.as_millis().max(1),
        );
        self.session.batch_execute(&sql).await.map_err(|error| match is_a_wait(&error) {
            true => Failure::retry(doing, "a table's lock was not granted within the deadline"),
            false => failure(doing, error),
        })
    }

    /// The point of no return: the row, the fence and the end of the lock, in one commit. `epoch` is what the row must say.
    pub async fn give(self, epoch: u64) -> Given {
        let doing = "giving the authority to the other side";
        let left = self.left();
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
