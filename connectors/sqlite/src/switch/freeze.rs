//! The freeze: one transaction that has the file's lock, so no other writer is in, and none gets in.
//!
//! Everything that was committed before it is there to be read by others, so the stream comes to its end while the lock is
//! held. Waiting for the lock holds nobody up: SQLite keeps no queue. So it is tried for until half of the deadline has gone.

use super::{
    Asked, SwitchEnd, authority, connect, fence,
    lock::{Held, Keep, hold},
};
use crate::client::{failure, shown};
use crossfade_connector::{
    Failure,
    switch::{Given, Locked},
};
use crossfade_event::{Side, TableName};
use rusqlite::{Connection, ErrorCode};
use std::time::{Duration, Instant};

const DOING: &str = "holding up the writers";

/// A freeze that holds.
pub struct Freeze {
    held: Held,
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
    /// Holds up all writers of the file, until `ends` at most.
    ///
    /// # Errors
    /// `Retry` when the lock could not be had in time; nobody is held up then.
    pub async fn freeze(&mut self, tables: &[TableName], ends: Instant) -> Result<Freeze, Failure> {
        let config = self.config.clone();
        let path = shown(&config.path);
        // Readers stay: the stream comes to its end by one.
        let until = Instant::now() + ends.saturating_duration_since(Instant::now()) / 2;
        let held = hold(DOING, Keep::WritersOut, move || connect(&config), until, ends).await?;
        let Some(held) = held else {
            let why = format!(
                "the lock of {path} was not to be had within half of the deadline: somebody writes without an end"
            );
            return Err(Failure::retry(DOING, why));
        };
        let (migration, here, tables, locked) = (self.migration.clone(), self.here, tables.to_vec(), held.locked);
        Ok(Freeze { held, migration, here, tables, locked })
    }
}

impl Freeze {
    /// The point of no return: the row, the fence and the end of the lock, in one commit. `epoch` is what the row must say.
    pub async fn give(self, epoch: u64) -> Given {
        let Self { held, migration, here, tables, locked } = self;
        let asked = Asked { migration, here };
        let given = held.end(move |connection| give(connection, &asked, &tables, epoch, locked.left())).await;
        given.unwrap_or_else(|| Given::Refused(Failure::retry(GIVING, "the deadline has passed")))
    }

    /// Lets the writers go on.
    pub async fn release(self) {
        // Where the thread has ended, so has the freeze.
        self.held
            .end(|connection| {
                if let Err(error) = connection.execute_batch("ROLLBACK") {
                    tracing::debug!(%error, "the freeze had ended already");
                }
            })
            .await
            .unwrap_or_default();
    }
}

const GIVING: &str = "giving the authority to the other side";

fn give(connection: &Connection, asked: &Asked, tables: &[TableName], epoch: u64, left: Duration) -> Given {
    let refused = |error| Given::Refused(failure(GIVING, error));
    // Where the journal is no WAL, a commit waits for readers.
    let ready = connection
        .busy_timeout(left)
        .and_then(|()| authority::give(connection, asked, epoch))
        .and_then(|given| connection.execute_batch(&fence::up(&asked.migration, asked.here, tables)).map(|()| given));
    match ready {
        Err(error) => return refused(error),
        Ok(false) => {
            return Given::Refused(Failure::retry(GIVING, "the authority was taken back, or moved, meanwhile"));
        }
        Ok(true) => {}
    }
    match connection.execute_batch("COMMIT") {
        Ok(()) => Given::Done,
        // Nothing of it was written: it can still be taken back.
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => refused(error),
        // What was written when the disk failed is for the next reader of the file to say.
        Err(error) => Given::Unknown(failure(GIVING, error)),
    }
}
