//! The freeze of a switch within tables: `ACCESS EXCLUSIVE` from the beginning, on the session that will do everything.
//!
//! Names change in the end, and that takes the strongest lock. Taken only then it would wait for readers, and a writer that
//! has read before it writes would wait for us: a deadlock. So readers wait, too, for as long as the freeze lasts. Tries are
//! short, and between two of them everybody has as much time as the try took.

use crate::{
    client::{ServerError, Session, failure},
    quote_table, switch,
};
use crossfade_connector::Failure;
use crossfade_event::TableName;
use std::time::{Duration, Instant};

/// How long the first try at the locks lasts.
const FIRST_TRY: Duration = Duration::from_millis(100);

/// Locks that hold.
#[derive(Debug, Clone, Copy)]
pub struct Locked {
    /// When writers began to wait: the beginning of the try that got the locks.
    pub since: Instant,
    /// How many tries it took.
    pub tries: u32,
    /// When the server ends the session, unless the work is done by then.
    pub ends: Instant,
}

impl Locked {
    /// How long they hold still.
    pub fn left(&self) -> Duration {
        self.ends.saturating_duration_since(Instant::now())
    }
}

/// Begins a transaction by `begin`, and locks the tables in it until `ends` at most.
///
/// # Errors
/// `Retry` when the locks could not be had in time; no transaction is open then.
pub(crate) async fn lock_all(
    session: &Session,
    begin: &str,
    migration: &str,
    tables: &[TableName],
    ends: Instant,
    lock_timeout: Duration,
) -> Result<Locked, Failure> {
    let doing = "holding up the writers";
    let names: Vec<String> =
        tables.iter().map(|table| quote_table(table).map(|name| format!("ONLY {name}"))).collect::<Result<_, _>>()?;
    let (gate, list) = (switch::gate(migration), names.join(", "));
    let version = switch::version(session).await?;
    let mut patience = FIRST_TRY.min(lock_timeout);
    let mut tries = 0;
    loop {
        let left = ends.saturating_duration_since(Instant::now());
        if left <= patience {
            let told = format!("the locks were not granted within the deadline, in {tries} tries");
            return Err(Failure::retry(doing, told));
        }
        tries += 1;
        let since = Instant::now();
        // The try itself is counted against the rest, as if it took as long as it may.
        let (left, one) = ((left - patience).as_millis().max(1), patience.as_millis().max(1));
        let whole = if version >= 170_000 { format!("SET LOCAL transaction_timeout = {left};") } else { String::new() };
        // With the locks comes the time for what is done under them: a question of its own would be asked under the try's.
        let sql = format!(
            "{begin}; SET LOCAL idle_in_transaction_session_timeout = {left}; {whole} SET LOCAL lock_timeout = {one}; \
             SET LOCAL statement_timeout = {one}; SELECT pg_catalog.pg_advisory_xact_lock({gate}); \
             LOCK TABLE {list} IN ACCESS EXCLUSIVE MODE; \
             SET LOCAL statement_timeout = {left}; SET LOCAL lock_timeout = {left}"
        );
        match session.batch_execute(&sql).await {
            Ok(()) => return Ok(Locked { since, tries, ends }),
            Err(error) if is_a_wait(&error) => {
                session.batch_execute("ROLLBACK").await.map_err(|error| failure(doing, error))?;
                tokio::time::sleep(patience).await;
                patience = (patience * 2).min(lock_timeout);
            }
            Err(error) => {
                if let Err(error) = session.batch_execute("ROLLBACK").await {
                    tracing::debug!(%error, "the session has ended");
                }
                return Err(failure(doing, error));
            }
        }
    }
}

/// A lock or statement timeout, or a deadlock that was solved at our cost.
fn is_a_wait(error: &tokio_postgres::Error) -> bool {
    ServerError::of(error).is_some_and(|error| matches!(error.code.as_str(), "55P03" | "57014" | "40P01"))
}
