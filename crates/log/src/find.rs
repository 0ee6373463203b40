//! From what a person names to a place in the log.

use crate::{EventLog, Lane, LogError, LogReader};
use crossfade_event::{Cut, Event, Offset, Position, Sequence};

/// What is looked for: always the beginning of a source transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// The first that begins at or after this sequence.
    Sequence(Sequence),
    /// The first that is not wholly at or before this position: `…/end` is the end of one transaction, and finds the
    /// next.
    Position(Position),
    /// The first whose commit time is at or after this one, in microseconds since 1970.
    Time(i64),
}

impl Seek {
    fn is_met(self, sequence: Sequence, position: Position, commit_time_us: i64) -> bool {
        match self {
            Self::Sequence(wanted) => sequence >= wanted,
            Self::Position(wanted) => position.end_of_commit() > wanted,
            Self::Time(wanted) => commit_time_us >= wanted,
        }
    }
}

/// The place right before the first transaction that meets `seek`, from `from` on; `None` when there is none yet. Reads
/// the log up to there, so call it where blocking is allowed; the embedded log knows a shorter way,
/// [`crate::embedded::Embedded::find`].
///
/// # Errors
/// As reading.
pub fn find<L: EventLog>(log: &L, from: &Cut, seek: Seek) -> Result<Option<Cut>, LogError> {
    let mut reader = log.read(from, Lane::Stream)?;
    let mut cut = from.clone();
    while let Some(entries) = reader.try_next()? {
        for entry in entries.entries {
            if let Event::Began(transaction) = &entry.event
                && seek.is_met(entry.sequence, entry.position, transaction.commit_time_us)
            {
                return Ok(Some(cut));
            }
            cut.set_next(entry.partition, Offset(entry.offset.0 + 1));
        }
        cut = entries.next;
    }
    Ok(None)
}
