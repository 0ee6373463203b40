//! The way to the locks of a freeze, whatever it keeps from the tables.
//!
//! Waiting for the locks holds everybody up too, for they queue behind us. So one try is short, the next a little longer, and
//! between two tries everybody has as much time as the try took.

use super::{gate, listed};
use crate::client::{ServerError, Session, failure};
use crossfade_connector::{Failure, switch::Locked};
use crossfade_event::TableName;
use std::time::{Duration, Instant};

/// How long the first try at the locks lasts.
const FIRST_TRY: Duration = Duration::from_millis(100);

/// What a freeze does, for the sentence that says what went wrong.
pub(super) const HOLDING_UP: &str = "holding up the writers";

/// Whom the locks keep waiting.
#[derive(Debug, Clone, Copy)]
pub(crate) enum LockMode {
    /// Writers: `SHARE ROW EXCLUSIVE`.
    Writers,
    /// Everybody: `ACCESS EXCLUSIVE`.
    Everybody,
}

/// Why there are no locks; no transaction is open then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotLocked {
    /// There was no more time.
    #[error("the locks were not granted within the deadline, in {tries} tries")]
    InVain {
        /// So often it was tried.
        tries: u32,
    },
    /// Anything else.
    #[error(transparent)]
    Failed(#[from] Failure),
}

impl From<NotLocked> for Failure {
    fn from(why: NotLocked) -> Self {
        match why {
            NotLocked::Failed(failure) => failure,
            in_vain @ NotLocked::InVain { .. } => Self::retry(HOLDING_UP, in_vain),
        }
    }
}

/// Begins a transaction by `begin`, and locks the gate and the tables in it until a moment at most; one try takes no longer than
/// the time beside it.
pub(crate) async fn lock_tables(
    session: &Session,
    begin: &str,
    migration: &str,
    tables: &[TableName],
    mode: LockMode,
    (ends, lock_timeout): (Instant, Duration),
) -> Result<Locked, NotLocked> {
    let (gate, list) = (gate(migration), listed(tables)?);
    let version = version(session).await?;
    let mode = match mode {
        LockMode::Writers => "SHARE ROW EXCLUSIVE",
        LockMode::Everybody => "ACCESS EXCLUSIVE",
    };
    let mut patience = FIRST_TRY.min(lock_timeout);
    let mut tries = 0;
    loop {
        let left = ends.saturating_duration_since(Instant::now());
        if left <= patience {
            return Err(NotLocked::InVain { tries });
        }
        tries += 1;
        let since = Instant::now();
        // The try itself is counted against the rest, as if it took as long as it may. With the locks comes the time for what is
        // done under them: a question of its own would be asked under the try's.
        let sql = format!(
            "{begin}; {lease} SET LOCAL lock_timeout = {one}; SET LOCAL statement_timeout = {one}; \
             SELECT pg_catalog.pg_advisory_xact_lock({gate}); LOCK TABLE {list} IN {mode} MODE; \
             SET LOCAL statement_timeout = {rest}; SET LOCAL lock_timeout = {rest}",
            lease = lease(version, left - patience),
            one = patience.as_millis().max(1),
            rest = (left - patience).as_millis().max(1),
        );
        match session.batch_execute(&sql).await {
            Ok(()) => return Ok(Locked { since, tries, ends }),
            Err(error) if is_a_wait(&error) => {
                session.batch_execute("ROLLBACK").await.map_err(|error| failure(HOLDING_UP, error))?;
                tokio::time::sleep(patience).await;
                patience = (patience * 2).min(lock_timeout);
            }
            Err(error) => {
                if let Err(error) = session.batch_execute("ROLLBACK").await {
                    tracing::debug!(%error, "the session has ended");
                }
                return Err(failure(HOLDING_UP, error).into());
            }
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
