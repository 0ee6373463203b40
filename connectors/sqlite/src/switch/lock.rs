//! A transaction that has a file's lock, on a thread of its own: a lease that ends by itself.
//!
//! SQLite sets no limit to how long somebody may write, so the thread does: it waits for work until the deadline, and takes the
//! transaction back then, whatever the rest of the program does. The lock goes with the process, so a kill ends it at
//! once. What nothing ends is a process that is stopped but not killed (`SIGSTOP`, a machine that sleeps): for so long the file's
//! writers wait, or fail by their own `busy_timeout`.

use crate::{client::failure, source::blocking};
use crossfade_connector::{Failure, switch::Locked};
use rusqlite::{Connection, ErrorCode};
use std::{
    sync::mpsc,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// How long to wait before the lock is tried again. Nobody is held up by a try.
const AGAIN_AFTER: Duration = Duration::from_millis(1);

/// Who is kept out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// Writers. Where the journal is no WAL, the commit waits for readers, and they keep it from being made.
    WritersOut,
    /// Where the journal is no WAL, readers too: so nobody keeps the commit from being made.
    EverybodyOut,
}

impl Keep {
    fn begin(self) -> &'static str {
        match self {
            Self::WritersOut => "BEGIN IMMEDIATE",
            Self::EverybodyOut => "BEGIN EXCLUSIVE",
        }
    }
}

type Job = Box<dyn FnOnce(&Connection) -> bool + Send>;

/// A transaction that is open on its thread. Dropping it takes the transaction back.
pub(super) struct Held {
    jobs: mpsc::Sender<Job>,
    pub(super) locked: Locked,
}

/// Begins a transaction that has the lock, until `ends` at most; tries for it until `until`. `None` where it was not to be had.
pub(super) async fn hold(
    doing: &'static str,
    keep: Keep,
    connect: impl FnOnce() -> Result<Connection, Failure> + Send + 'static,
    until: Instant,
    ends: Instant,
) -> Result<Option<Held>, Failure> {
    blocking(move || {
        let connection = connect()?;
        connection.busy_timeout(Duration::ZERO).map_err(|error| failure(doing, error))?;
        let mut tries = 0;
        let since = loop {
            tries += 1;
            let since = Instant::now();
            match connection.execute_batch(keep.begin()) {
                Ok(()) => break since,
                Err(error) if error.sqlite_error_code() != Some(ErrorCode::DatabaseBusy) => {
                    return Err(failure(doing, error));
                }
                Err(_) if Instant::now() >= until => return Ok(None),
                Err(_) => std::thread::sleep(AGAIN_AFTER),
            }
        };
        Held::begin(doing, connection, Locked { since, tries, ends }).map(Some)
    })
    .await
}

impl Held {
    fn begin(doing: &'static str, connection: Connection, locked: Locked) -> Result<Self, Failure> {
        let (jobs, waiting) = mpsc::channel::<Job>();
        let work = move || {
            while let Ok(job) = waiting.recv_timeout(locked.left()) {
                if locked.left().is_zero() || job(&connection) {
                    break;
                }
            }
            if !connection.is_autocommit()
                && let Err(error) = connection.execute_batch("ROLLBACK")
            {
                tracing::debug!(%error, "closing the file takes the transaction back");
            }
        };
        let spawned = std::thread::Builder::new().name("sqlite-switch".to_owned()).spawn(work);
        spawned.map_err(|error| Failure::retry(doing, error))?;
        Ok(Self { jobs, locked })
    }

    /// Does the last of the transaction's work. `None` where the deadline had come before it began.
    pub(super) async fn end<T: Send + 'static>(self, job: impl FnOnce(&Connection) -> T + Send + 'static) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            // Whoever asked may have gone: the row says what became of it.
            let _ = answer.send(job(connection));
            true
        });
        self.jobs.send(job).ok()?;
        answered.await.ok()
    }

    /// The same for work after which it is still held.
    pub(super) async fn also<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> T + Send + 'static,
    ) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |connection| answer.send(job(connection)).is_err());
        self.jobs.send(job).ok()?;
        answered.await.ok()
    }
}
