//! The side that gets the authority: made ready before the point of no return, and opened by one `COMMIT` right after it.
//!
//! Between the two commits both files are locked: a writer that comes to either waits, and is told by the row when it has the
//! lock. Where the second commit does not come, for we have died, the row here says what it said, and the fence here stands, if
//! there is one; whoever asks the row next opens this side ([`SwitchEnd::follow`]).

use super::{
    Asked, SwitchEnd, authority, connect,
    lock::{Held, Keep, hold},
};
use crate::client::{failure, shown};
use crossfade_connector::{Failure, switch::Written};
use std::time::Instant;

const DOING: &str = "making the other side ready to be opened";

/// A side that one commit opens.
pub struct Opening {
    held: Held,
}

impl std::fmt::Debug for Opening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Opening")
    }
}

impl SwitchEnd {
    /// Makes this side ready to be opened, until `ends` at most: its writers wait from here on, or are still refused.
    ///
    /// # Errors
    /// `Retry` where somebody else writes the file for too long; or reads it, where its journal is no WAL: a reader would keep the
    /// commit from being made when the other side has been given away already.
    pub async fn ready_to_open(&mut self, written: Written, ends: Instant) -> Result<Opening, Failure> {
        let (config, path) = (self.config.clone(), shown(&self.config.path));
        let held = hold(DOING, Keep::EverybodyOut, move || connect(&config), ends, ends).await?;
        let held = held.ok_or_else(|| {
            Failure::retry(DOING, format!("somebody else writes {path} (or reads it, where its journal is no WAL), and did not end within the deadline"))
        })?;
        let asked = Asked { migration: self.migration.clone(), here: self.here };
        let followed = held.also(move |connection| authority::follow(connection, &asked, written)).await;
        match followed {
            Some(Ok(())) => Ok(Opening { held }),
            Some(Err(error)) => Err(failure(DOING, error)),
            None => Err(Failure::retry(DOING, "the deadline has passed")),
        }
    }
}

impl Opening {
    /// Opens it. After the point of no return only.
    ///
    /// # Errors
    /// When it is not open, or that cannot be told; [`SwitchEnd::follow`] opens it then.
    pub async fn open(self) -> Result<(), Failure> {
        let doing = "opening the other side";
        match self.held.end(|connection| connection.execute_batch("COMMIT")).await {
            Some(opened) => opened.map_err(|error| failure(doing, error)),
            None => Err(Failure::retry(doing, "the deadline has passed")),
        }
    }

    /// Leaves it as it was.
    pub async fn leave(self) {
        drop(self);
    }
}
