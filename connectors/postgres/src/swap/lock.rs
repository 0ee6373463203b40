//! The freeze of a switch within tables: `ACCESS EXCLUSIVE` from the beginning, on the session that will do everything.
//!
//! Names change in the end, and that takes the strongest lock. Taken only then it would wait for readers, and a writer that
//! has read before it writes would wait for us: a deadlock. So readers wait, too, for as long as the freeze lasts.

use crate::{
    client::Session,
    switch::{LockMode, Locked, lock_tables},
};
use crossfade_connector::Failure;
use crossfade_event::TableName;
use std::time::{Duration, Instant};

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
    Ok(lock_tables(session, begin, migration, tables, LockMode::Everybody, (ends, lock_timeout)).await?)
}
