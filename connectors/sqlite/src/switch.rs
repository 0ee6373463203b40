//! One side of a switch: who has the authority, the freeze, the fence, and what the way back needs.
//!
//! ```text
//!  old file                                                   new file
//!  BEGIN IMMEDIATE ── no other writer is in, and none gets in (the sink has everything)
//!  │  a thread of its own ends it at the deadline;            a commit that is on the disk, counters, an anchor
//!  │  with the process its lock goes                          BEGIN IMMEDIATE, row, fence away ── not committed
//!  UPDATE _crossfade_authority … WHERE side AND epoch  ◀── the point of no return
//!  CREATE TRIGGER … RAISE(ABORT) ON every table
//!  COMMIT ── lock and fence change places in one commit       COMMIT ── the writers go on here
//! ```
//! A file has one writer at a time, so its one lock is the gate, the freeze and the proof at once: whoever asks
//! `crossfade_side` after `BEGIN IMMEDIATE` is told what holds until its own commit. Readers are never held up while the journal
//! is a WAL; otherwise for as long as a commit takes.
//!
//! What is here decides nothing: the order of the steps, the journal and the deadline are the caller's.

mod authority;
mod fence;
mod freeze;
mod lock;
mod look;
mod open;
mod reverse;
mod sequences;

pub(crate) use authority::{VIEW, has_pass, pass};
pub use freeze::Freeze;
pub use open::Opening;
pub(crate) use reverse::{KEYS, MAPPING};

use crate::{
    Config,
    client::{Access, open, shown},
    source::blocking,
};
use crossfade_connector::Failure;
use crossfade_event::Side;
use rusqlite::Connection;

/// One side of a switch. Opens its file when it is first asked.
pub struct SwitchEnd {
    config: Config,
    migration: String,
    here: Side,
    connection: Option<Connection>,
}

impl std::fmt::Debug for SwitchEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SwitchEnd").field("path", &self.config.path).field("here", &self.here).finish_non_exhaustive()
    }
}

impl SwitchEnd {
    /// The side that `config` names.
    pub fn new(config: Config, migration: &str, here: Side) -> Self {
        Self { config, migration: migration.to_owned(), here, connection: None }
    }

    /// Runs a job on the side's connection, on a thread that may block. A connection on which it failed is not used again.
    async fn with<T: Send + 'static>(
        &mut self,
        job: impl FnOnce(&mut Connection, &Asked) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let (kept, config) = (self.connection.take(), self.config.clone());
        let asked = Asked { migration: self.migration.clone(), here: self.here };
        let (connection, done) = blocking(move || {
            let mut connection = match kept {
                Some(connection) => connection,
                None => connect(&config)?,
            };
            let done = job(&mut connection, &asked)?;
            Ok((connection, done))
        })
        .await?;
        self.connection = Some(connection);
        Ok(done)
    }

    /// Which file this is, by whatever name or link it is reached.
    ///
    /// # Errors
    /// `Retry` where it is not there yet.
    pub async fn identity(&mut self) -> Result<String, Failure> {
        let path = self.config.path.clone();
        blocking(move || {
            let path =
                path.canonicalize().map_err(|error| Failure::retry(format!("opening {}", shown(&path)), error))?;
            let (device, number) = crate::source::file_number(&path);
            Ok(if (device, number) == (0, 0) { shown(&path) } else { format!("{device}/{number}") })
        })
        .await
    }
}

/// Whose side is asked, for a job that runs elsewhere.
struct Asked {
    migration: String,
    here: Side,
}

/// A connection whose commits are on the disk when they return. A file that is not there yet is waited for: the sink makes it.
fn connect(config: &Config) -> Result<Connection, Failure> {
    if !config.path.is_file() {
        let doing = format!("opening {}", shown(&config.path));
        return Err(Failure::retry(doing, "there is no such file yet"));
    }
    let connection = open(config, Access::Existing)?;
    let set = connection.pragma_update(None, "synchronous", "EXTRA");
    set.map_err(|error| crate::client::failure(format!("opening {}", shown(&config.path)), error))?;
    Ok(connection)
}
