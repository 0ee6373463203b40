//! Where both sides are in the history of the side that has the authority.

use crate::Side;
use crossfade_connector::Failure;
use crossfade_event::{ParsePositionError, Position, SourceId};
use std::{future::Future, pin::Pin};

/// Tells how far the other side has come. Asked only where two answers differ.
pub trait Places: Send + Sync + 'static {
    /// The end of the history of the side that has the authority, now: everything that an answer knew which was given
    /// before the call lies before it, and the other side will reach it even when nobody writes.
    ///
    /// # Errors
    /// When it cannot be asked.
    fn end(&self, authority: Side) -> impl Future<Output = Result<Position, Failure>> + Send;

    /// How far the other side has come in that history; `None` where it does not know yet.
    ///
    /// # Errors
    /// When it cannot be asked.
    fn reached(&self, authority: Side) -> impl Future<Output = Result<Option<Position>, Failure>> + Send;
}

/// No position can be asked for. Differences are then not judged at all: they are counted as `no-place`.
#[derive(Debug, Clone, Copy)]
pub struct NoPlaces;

impl Places for NoPlaces {
    async fn end(&self, _authority: Side) -> Result<Position, Failure> {
        Err(Failure::misconfigured(
            "asking where the history ends",
            "this application has said no places",
            "give an implementation of `Places`",
        ))
    }

    async fn reached(&self, _authority: Side) -> Result<Option<Position>, Failure> {
        Ok(None)
    }
}

/// Asks a PostgreSQL that has the authority for the end of its history, as one text that [`place`] reads. It writes a mark
/// into the WAL (any role may), so that the place is reached even when nobody writes.
pub const POSTGRES_END: &str = "SELECT pg_catalog.concat(\
     ('x' || pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8))::pg_catalog.bit(32)::pg_catalog.int4, \
     '/', pg_catalog.upper(pg_catalog.to_hex((pg_catalog.pg_logical_emit_message(true, 'crossfade', 'barrier') - '0/0')::pg_catalog.int8)), \
     '/end')";

/// Asks a PostgreSQL that a migration writes to how far it has come, as one text that [`place`] reads, or NULL; `$1` is the
/// migration's name. The role needs `SELECT` on `crossfade.positions` and `USAGE` on its schema.
pub const POSTGRES_REACHED: &str =
    "SELECT source_position FROM crossfade.positions WHERE migration = $1 AND worker = 0";

/// The same of a SQLite file that a migration writes to; `?1` is the migration's name.
pub const SQLITE_REACHED: &str = "SELECT source_position FROM _crossfade_positions WHERE migration = ?1";

/// A place as these queries write it. Only places of one history may be compared, which is for whoever asks to see to.
///
/// # Errors
/// When the text is no place.
pub fn place(text: &str) -> Result<Position, ParsePositionError> {
    Position::parse(SourceId(0), text)
}

type Asked<'a, T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send + 'a>>;

/// [`Places`] of any kind.
pub(crate) trait AnyPlaces: Send + Sync + 'static {
    fn end_of(&self, authority: Side) -> Asked<'_, Position>;
    fn reached_by_other(&self, authority: Side) -> Asked<'_, Option<Position>>;
}

impl<P: Places> AnyPlaces for P {
    fn end_of(&self, authority: Side) -> Asked<'_, Position> {
        Box::pin(self.end(authority))
    }

    fn reached_by_other(&self, authority: Side) -> Asked<'_, Option<Position>> {
        Box::pin(self.reached(authority))
    }
}
