//! Merges the partitions on their marks.

use super::{Shared, Slot, State};
use crate::{Entries, Entry, Lane, LogError, LogReader, record};
use crossfade_event::{Cut, Offset, Partition};
use std::sync::Arc;
use tokio::sync::watch;

/// Reads the log in memory: all that became visible at once, in the order in which it was appended.
#[derive(Debug)]
pub struct MemoryReader {
    log: Arc<Shared>,
    rounds: watch::Receiver<u64>,
    next: Cut,
    lane: Lane,
}

impl MemoryReader {
    pub(super) fn new(log: Arc<Shared>, from: Cut, lane: Lane) -> Self {
        let rounds = log.rounds.subscribe();
        Self { log, rounds, next: from, lane }
    }

    fn collect(&mut self) -> Result<Option<Entries>, LogError> {
        self.rounds.borrow_and_update();
        let log = self.log.clone();
        let state = log.state();
        let start = state.start();
        if !self.next.covers(&start) {
            return Err(LogError::Trimmed { asked: self.next.clone(), start });
        }
        let Some(round) = self.round(&state) else { return Ok(None) };
        let (mut found, mut whole): (Vec<Entry>, bool) = (Vec::new(), true);
        for (index, partition) in state.partitions.iter().enumerate() {
            let partition_id = Partition(index as u32);
            let from = self.next.next(partition_id);
            let first = partition.slots.partition_point(|(offset, _)| *offset < from);
            let mut here = Vec::new();
            for (offset, slot) in partition.slots.range(first..) {
                match slot {
                    Slot::Event(sequence, stamped) => here.push(Entry {
                        partition: partition_id,
                        offset: *offset,
                        sequence: *sequence,
                        position: stamped.position,
                        event: stamped.event.clone(),
                    }),
                    Slot::Mark(mark, ends) if *mark == round => {
                        whole &= *ends;
                        self.next.set_next(partition_id, Offset(offset.0 + 1));
                        found.append(&mut here);
                        break;
                    }
                    // This partition is ahead: it was read up to a later mark.
                    Slot::Mark(..) => break,
                }
            }
        }
        found.sort_by_key(|entry| entry.sequence);
        let wanted = record::wanted(self.lane);
        found.retain(|entry| record::kind_of(&entry.event).lane_flag() & wanted != 0);
        Ok(Some(Entries { entries: found, next: self.next.clone(), whole }))
    }

    /// The first round that some partition has not been read to the end of.
    fn round(&self, state: &State) -> Option<u64> {
        let mark_of = |(index, partition): (usize, &super::PartitionState)| {
            let from = self.next.next(Partition(index as u32));
            let first = partition.slots.partition_point(|(offset, _)| *offset < from);
            partition.slots.range(first..).find_map(|(_, slot)| match slot {
                Slot::Mark(round, _) => Some(*round),
                Slot::Event(..) => None,
            })
        };
        state.partitions.iter().enumerate().filter_map(mark_of).min()
    }
}

impl LogReader for MemoryReader {
    async fn next(&mut self) -> Result<Entries, LogError> {
        loop {
            tokio::task::consume_budget().await;
            if let Some(entries) = self.collect()? {
                return Ok(entries);
            }
            if self.rounds.changed().await.is_err() {
                return Err(LogError::Poisoned { why: "the log was closed".to_owned() });
            }
        }
    }

    fn try_next(&mut self) -> Result<Option<Entries>, LogError> {
        self.collect()
    }
}
