//! What becomes of a transaction that the broker has ended in some of its partitions only.
//!
//! Every group of rounds leaves a mark in each partition, and a whole one its end in the topic of notes, all in one
//! transaction. So where some part of a group can be read, the coordinator had said *committed*, and what still hangs of it
//! must be committed too: readers may have seen the rest, and the source may have been told that it is safe. Where no part
//! can be read, nobody has seen anything of it: it is aborted, and whoever wrote it writes it again.

use super::{
    meta::{LastRound, Says},
    tail,
    topics::Names,
};
use crate::{
    client::{LogConsumer, scan},
    codec::{Head, What},
    note,
};
use crossfade_log::LogError;
use rdkafka::Message;
use std::ops::Range;

/// What is known of a group that hangs somewhere.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Group {
    /// The first of its rounds that hangs in a partition of entries.
    pub(super) first: Option<u64>,
    /// The end of the log that hangs in the topic of notes, and the record itself: key and value.
    pub(super) tail: Option<(LastRound, Vec<u8>, Vec<u8>)>,
    /// The timestamp of its records, in milliseconds since 1970.
    pub(super) at_ms: Option<i64>,
}

/// What can be read of the log beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Readable {
    /// The last round of any partition.
    pub(super) round: u64,
    /// The last round that was noted as whole.
    pub(super) noted: u64,
}

impl Group {
    /// Whether some part of it was committed.
    pub(super) fn was_committed(&self, readable: Readable) -> bool {
        match (self.first, &self.tail) {
            (Some(first), _) => readable.round.max(readable.noted) >= first,
            // Its entries are all in, and only their end is not noted.
            (None, Some((tail, ..))) => tail.round > readable.noted && readable.round >= tail.round,
            (None, None) => false,
        }
    }

    /// Reads what hangs in partitions of entries, with a consumer that reads what is not committed.
    pub(super) fn read_entries(
        &mut self,
        all: &LogConsumer,
        names: &Names,
        ranges: &[(i32, Range<u64>)],
    ) -> Result<(), LogError> {
        scan(all, &names.changes, ranges, |message| {
            // What an attempt to abort has left there has no head.
            if let Ok(head) = Head::parse(message.payload().unwrap_or_default())
                && head.what != What::Seam
            {
                self.first = Some(self.first.map_or(head.round, |first| first.min(head.round)));
                self.at_ms = message.timestamp().to_millis().or(self.at_ms);
            }
            Ok(false)
        })
    }

    /// The same for the topic of notes.
    pub(super) fn read_notes(&mut self, all: &LogConsumer, names: &Names, range: Range<u64>) -> Result<(), LogError> {
        scan(all, &names.meta, &[(0, range)], |message| {
            let (key, value) = (message.key().unwrap_or_default(), message.payload().unwrap_or_default());
            if let Ok(Says::Tail(tail)) = note::parse::<Says>(value) {
                self.tail = Some((tail, key.to_vec(), value.to_vec()));
                self.at_ms = message.timestamp().to_millis().or(self.at_ms);
            }
            Ok(false)
        })
    }
}

impl Readable {
    /// Looks, with a consumer that reads what is committed.
    pub(super) fn read(stable: &LogConsumer, names: &Names, partitions: u32) -> Result<Self, LogError> {
        let ends = tail::ends(stable, names, partitions)?;
        let noted = super::meta::read(stable, names)?.tail;
        Ok(Self {
            round: ends.last.iter().flatten().map(|last| last.round).max().unwrap_or(0),
            noted: noted.map_or(0, |noted| noted.round),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossfade_event::Cut;

    fn group(first: Option<u64>, tail: Option<u64>) -> Group {
        let end = |round| LastRound { round, cut: Cut::start(2), position: None, at_ms: 0, abandoned: Vec::new() };
        Group { first, tail: tail.map(|round| (end(round), Vec::new(), Vec::new())), at_ms: None }
    }

    fn readable(round: u64, noted: u64) -> Readable {
        Readable { round, noted }
    }

    #[test]
    fn what_can_be_read_in_part_is_committed_and_what_nobody_can_read_is_not() {
        let cases = [
            ("a partition hangs, another has the round", group(Some(7), None), readable(7, 7), true),
            ("all hang, and the end is noted", group(Some(7), None), readable(6, 8), true),
            ("some entries and the end hang", group(Some(7), Some(8)), readable(8, 6), true),
            ("the end alone hangs", group(None, Some(8)), readable(8, 6), true),
            ("of a head, which moves no end", group(Some(7), None), readable(8, 6), true),
            ("everything hangs", group(Some(7), Some(8)), readable(6, 6), false),
            ("everything of a head hangs", group(Some(7), None), readable(6, 5), false),
            ("notes without entries hang", group(None, Some(6)), readable(6, 6), false),
            ("nothing of ours hangs", group(None, None), readable(6, 6), false),
        ];
        for (case, group, readable, committed) in cases {
            assert_eq!(group.was_committed(readable), committed, "{case}");
        }
    }
}
