//! Taking in new tables while the source runs: the source is opened anew, and its first batch begins their copy.
//!
//! Their triggers are made before the copy begins, so that every change since is recorded. What was made for tables that
//! the log never heard of (the process ended in between) is taken away again at the next opening.

use super::install::{Captured, Install};
use crossfade_connector::Failure;
use crossfade_event::{TableName, TableSchema};
use rusqlite::Connection;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Notify, oneshot};

type Reply = oneshot::Sender<Result<Vec<TableName>, Failure>>;

/// Takes new tables in while the source runs; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct TableAdder(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    wish: Mutex<Option<Wish>>,
    changed: Notify,
}

/// The tables that somebody wants.
#[derive(Debug)]
pub(super) struct Wish {
    pub(super) only: Vec<TableName>,
    pub(super) reply: Reply,
}

impl TableAdder {
    /// Takes in tables of these names that match the patterns and are not captured. Waits for a running backfill to
    /// end first. Returns the names of those whose copy begins; its beginning is on its way to the log then.
    ///
    /// # Errors
    /// `Refused` for a table that cannot be captured; `Reconnect` when the source is not open any more.
    pub async fn add_tables(&self, only: Vec<TableName>) -> Result<Vec<TableName>, Failure> {
        let (reply, answer) = oneshot::channel();
        self.put(Wish { only, reply });
        self.0.changed.notify_one();
        answer.await.map_err(|_| Failure::reconnect("taking in new tables", "the source is not open"))?
    }

    pub(super) fn put(&self, wish: Wish) {
        *self.0.wish.lock().unwrap_or_else(PoisonError::into_inner) = Some(wish);
    }

    pub(super) fn take(&self) -> Option<Wish> {
        self.0.wish.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Resolves while somebody wants tables. Safe to cancel.
    pub(super) async fn wanted(&self) {
        while self.0.wish.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            self.0.changed.notified().await;
        }
    }
}

/// The source is opened anew for new tables.
pub(super) fn again() -> Failure {
    Failure::reconnect("taking in new tables", "the source is opened again for them")
}

/// Makes triggers and layouts for tables that match, are named, and are not known to the log.
pub(super) fn extend(
    connection: &mut Connection,
    install: &Install,
    patterns: &[String],
    only: &[TableName],
    known: &[Arc<TableSchema>],
) -> Result<Vec<Captured>, Failure> {
    let mut tables = super::install::matching(connection, patterns)?;
    tables.retain(|table| {
        let name = TableName::new("main", &*table.name);
        only.contains(&name) && !known.iter().any(|schema| schema.name.name == name.name)
    });
    if tables.is_empty() {
        return Ok(Vec::new());
    }
    let first = known.iter().map(|schema| schema.id.0).max().unwrap_or(0) + 1;
    install.extend(connection, tables, first)
}
