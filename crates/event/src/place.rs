//! Places: in the source's history ([`Position`]) and in our log ([`Offset`], [`Cut`]).

use serde::{Deserialize, Serialize};
use std::fmt;

/// Which source a position belongs to: a stable hash of what the source says of itself (for PostgreSQL the system
/// identifier and the database; for SQLite an identifier kept in the file). Positions of two sources never compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SourceId(pub u64);

impl SourceId {
    /// The id for a source that describes itself by `identity`.
    pub fn of(identity: &str) -> Self {
        Self(xxhash_rust::xxh3::xxh3_64(identity.as_bytes()))
    }
}

/// A place in the source's history, totally ordered within one source: many changes share one commit, and the
/// ordinal tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// Whose history.
    pub source: SourceId,
    /// The timeline (PostgreSQL); zero where the source has none.
    pub timeline: u32,
    /// The commit: for PostgreSQL the LSN of the end of the commit record; for SQLite the sequence number of the
    /// transaction's last change.
    pub commit: u64,
    /// The place inside the transaction, from zero; a transaction's end has the highest.
    pub ordinal: u32,
}

impl Position {
    /// The first position of a source: before everything.
    pub fn origin(source: SourceId) -> Self {
        Self { source, timeline: 0, commit: 0, ordinal: 0 }
    }

    /// The same commit, past its last change.
    #[must_use]
    pub fn end_of_commit(self) -> Self {
        Self { ordinal: u32::MAX, ..self }
    }

    /// Reads what [`fmt::Display`] writes, for the given source.
    ///
    /// # Errors
    /// When the text is not `timeline/commit-in-hex/ordinal`; the ordinal may be left out.
    pub fn parse(source: SourceId, text: &str) -> Result<Self, ParsePositionError> {
        let refuse = || ParsePositionError(text.to_owned());
        let mut parts = text.split('/');
        let timeline = parts.next().and_then(|part| part.parse().ok()).ok_or_else(refuse)?;
        let commit = parts.next().and_then(|part| u64::from_str_radix(part, 16).ok()).ok_or_else(refuse)?;
        let ordinal = match parts.next() {
            None | Some("end") => u32::MAX,
            Some(part) => part.parse().map_err(|_| refuse())?,
        };
        match parts.next() {
            None => Ok(Self { source, timeline, commit, ordinal }),
            Some(_) => Err(refuse()),
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:X}/", self.timeline, self.commit)?;
        if self.ordinal == u32::MAX { f.write_str("end") } else { write!(f, "{}", self.ordinal) }
    }
}

/// A text that is not a position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a position; write timeline/commit/ordinal as `crossfade status` prints it, for example 1/16B3748/end"
)]
pub struct ParsePositionError(String);

/// A place in one partition of our log; ordered, may have gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Offset(pub u64);

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A partition of our log. The embedded log has one unless told otherwise; Kafka has many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Partition(pub u32);

/// A global place in the log: for every partition, the offset of the first entry *not yet* included.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Cut(pub Vec<Offset>);

impl Cut {
    /// The beginning of a log with so many partitions.
    pub fn start(partitions: u32) -> Self {
        Self(vec![Offset(0); partitions as usize])
    }

    /// The cut of a log with one partition.
    pub fn single(next: Offset) -> Self {
        Self(vec![next])
    }

    /// The first offset of `partition` that is not included; zero for a partition the cut does not know.
    pub fn next(&self, partition: Partition) -> Offset {
        self.0.get(partition.0 as usize).copied().unwrap_or_default()
    }

    /// Moves one partition's place; grows the cut where it does not know the partition yet.
    pub fn set_next(&mut self, partition: Partition, next: Offset) {
        let index = partition.0 as usize;
        if index >= self.0.len() {
            self.0.resize(index + 1, Offset(0));
        }
        if let Some(slot) = self.0.get_mut(index) {
            *slot = next;
        }
    }

    /// True when this cut includes everything that `other` includes.
    pub fn covers(&self, other: &Self) -> bool {
        (0..self.0.len().max(other.0.len()) as u32).all(|p| self.next(Partition(p)) >= other.next(Partition(p)))
    }

    /// The sum of all offsets: for lag and progress figures, never for order.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|offset| offset.0).sum()
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, offset) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{offset}")?;
        }
        Ok(())
    }
}

/// An entry's number in the order of the whole log, over all its partitions: it rises from entry to entry, may have gaps,
/// and is the same whenever the log is read again. In the embedded log it is the offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Sequence(pub u64);

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which entry a write comes from, and which of its outputs it is (a block of rows has one ordinal per row and
/// output). Ordered as the source was, so that an idempotent sink can compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Version {
    /// The entry.
    pub sequence: Sequence,
    /// The output's ordinal within the entry.
    pub ordinal: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_ordered_without_a_sign_and_within_one_commit() {
        let at = |timeline, commit, ordinal| Position { source: SourceId(1), timeline, commit, ordinal };
        let rising = [
            Position::origin(SourceId(1)),
            at(1, 0x7fff_ffff_ffff_ffff, 0),
            at(1, 0x8000_0000_0000_0000, 0),
            at(1, 0x8000_0000_0000_0000, 1),
            at(1, 0x8000_0000_0000_0000, 0x8000_0000),
            at(1, 0x8000_0000_0000_0000, 0).end_of_commit(),
            at(1, u64::MAX, 0),
            at(2, 0, 0),
        ];
        assert!(rising.is_sorted_by(|earlier, later| earlier < later));
    }
}
