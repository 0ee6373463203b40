//! The switch within one table: new columns take the names of the old ones, which stay beside them and are kept exact, so
//! that going back loses nothing.
//!
//! ```text
//!  before, nobody waits          in one commit, everybody waits              after, nobody waits
//!  indexes of the new columns    authority · names · defaults ·              checks and references proven,
//!  CONCURRENTLY, what will be    checks and references NOT VALID ·           NOT NULL by them, primary key
//!  done is written down          a trigger that keeps the old columns        by the index that is there
//! ```
//! What is done is read from the catalog once ([`Laid`]), kept in `crossfade.swaps`, and followed from there: what comes
//! after the switch, and the way back, do not depend on what the catalog or the spec says by then.
//!
//! What is here decides nothing: the order of the steps, the journal and the deadline are the caller's.

mod back;
mod clean;
mod finish;
mod laid;
mod lock;
mod prepare;
mod sql;
mod store;
mod survey;
mod trigger;
mod views;

pub use back::FrozenBack;
pub use laid::{Laid, LaidCheck, LaidForeign, LaidIndex, LaidKey, LaidTable};
pub(crate) use lock::lock_all;
pub use store::SwapStage;
pub use views::View;
pub(crate) use views::flip_sql;

use crate::{
    Config,
    client::{Session, connect, failure},
};
use crossfade_connector::Failure;

/// The database in which columns change places. Connects when it is first asked.
pub struct SwapEnd {
    config: Config,
    migration: String,
    session: Option<Session>,
}

impl std::fmt::Debug for SwapEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SwapEnd").field("config", &self.config).finish_non_exhaustive()
    }
}

impl SwapEnd {
    /// The database that `config` names.
    pub fn new(config: Config, migration: &str) -> Self {
        Self { config, migration: migration.to_owned(), session: None }
    }

    /// A session in which every name that the catalog prints is whole.
    async fn session(&mut self) -> Result<&mut Session, Failure> {
        if self.session.as_ref().is_some_and(|session| session.is_closed()) {
            self.session = None;
        }
        let session = match self.session.take() {
            Some(session) => session,
            None => open(&self.config, "crossfade switch").await?,
        };
        Ok(self.session.insert(session))
    }

    async fn execute(&mut self, doing: &str, sql: &str) -> Result<(), Failure> {
        self.session().await?.batch_execute(sql).await.map_err(|error| failure(doing, error))
    }
}

async fn open(config: &Config, name: &str) -> Result<Session, Failure> {
    let session = connect(config, name).await?;
    session
        .batch_execute("SET search_path = pg_catalog; SET client_min_messages = warning")
        .await
        .map_err(|error| failure("setting up a session", error))?;
    Ok(session)
}
