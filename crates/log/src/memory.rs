//! The log in memory, for tests: the whole contract but for surviving the process.
//!
//! With several partitions it is what a log on Kafka is. A change goes to the partition of its key's hash, a block of
//! rows is divided by the keys of its rows, all else goes to partition 0. Behind everything that becomes visible at
//! once stands a **mark** in every partition; the reader merges the partitions mark by mark, each round in the order
//! in which its events were appended, so that source transactions come whole and in commit order. Marks take an offset
//! and are no entries; with `gaps` further offsets are left out, as a broker's own records do.

mod reader;

pub use reader::MemoryReader;

use crate::{EventLog, Lane, LogError, Tail, contract::check_lanes, route, schemas::Schemas};
use crossfade_event::{
    Batch, Cut, Event, Offset, Partition, Position, Row, SchemaVersion, Sequence, Stamped, TableId, TableSchema,
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;

/// A log in memory. All clones are one log.
#[derive(Debug, Clone)]
pub struct Memory(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Counts the marks.
    rounds: watch::Sender<u64>,
}

/// One offset of a partition.
#[derive(Debug, Clone)]
enum Slot {
    /// An event, and its place in the order of all.
    Event(Sequence, Stamped),
    /// Everything of this round is in; and whether no transaction is left open.
    Mark(u64, bool),
}

#[derive(Debug, Default)]
struct PartitionState {
    slots: VecDeque<(Offset, Slot)>,
    start: Offset,
    next: Offset,
}

#[derive(Debug)]
struct State {
    partitions: Vec<PartitionState>,
    gaps: bool,
    rounds: u64,
    next_sequence: u64,
    /// The head that is not whole yet, with the schemas that it brought.
    head: Vec<Stamped>,
    /// Where its parts end.
    head_parts: Vec<usize>,
    head_schemas: Vec<(TableId, SchemaVersion)>,
    inside: bool,
    upto: Option<Position>,
    schemas: Schemas,
    consumers: BTreeMap<String, Cut>,
    poison: Option<String>,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    /// A log of one partition without gaps.
    pub fn new() -> Self {
        Self::with(1, false)
    }

    /// A log of so many partitions (at least one), with or without gaps between the offsets.
    pub fn with(partitions: u32, gaps: bool) -> Self {
        let state = State {
            partitions: (0..partitions.max(1)).map(|_| PartitionState::default()).collect(),
            gaps,
            rounds: 0,
            next_sequence: 0,
            head: Vec::new(),
            head_parts: Vec::new(),
            head_schemas: Vec::new(),
            inside: false,
            upto: None,
            schemas: Schemas::default(),
            consumers: BTreeMap::new(),
            poison: None,
        };
        Self(Arc::new(Shared { state: Mutex::new(state), rounds: watch::Sender::new(0) }))
    }

    /// The named consumers and their places.
    pub fn consumers(&self) -> Vec<(String, Cut)> {
        self.0.state().consumers.iter().map(|(name, cut)| (name.clone(), cut.clone())).collect()
    }

    fn take(&self, batch: Batch) -> Result<Cut, LogError> {
        let mut state = self.0.state();
        if let Some(why) = &state.poison {
            return Err(LogError::Poisoned { why: why.clone() });
        }
        // Later batches must not land behind one that was refused.
        let taken = state.take(batch);
        if let Err(error) = &taken {
            state.poison = Some(error.to_string());
        }
        let cut = taken?;
        self.0.rounds.send_replace(state.rounds);
        Ok(cut)
    }
}

impl Shared {
    // Every change of the state is made by code that does not panic.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, batch: Batch) -> Result<Cut, LogError> {
        check_lanes(&batch, self.inside)?;
        for stamped in &batch.events {
            if let Event::SchemaSeen(schema) = &stamped.event
                && self.schemas.insert(schema)?
            {
                self.head_schemas.push((schema.id, schema.version));
            }
            route::check(&stamped.event, &self.schemas)?;
        }
        self.head.extend(batch.events);
        self.head_parts.push(self.head.len());
        self.inside = !batch.whole && (self.inside || !self.head.is_empty());
        if batch.whole {
            self.upto = self.upto.max(batch.upto);
            self.land()?;
        }
        Ok(self.end())
    }

    /// Gives offsets to everything since the last mark, and marks it in every partition.
    fn land(&mut self) -> Result<(), LogError> {
        self.head_schemas.clear();
        let (head, parts) = (std::mem::take(&mut self.head), std::mem::take(&mut self.head_parts));
        if head.is_empty() {
            return Ok(());
        }
        let count = self.partitions.len() as u32;
        let mut elsewhere = false;
        for (index, stamped) in head.into_iter().enumerate() {
            // Each part of a transaction is a round, as large ones are divided elsewhere.
            if index > 0 && parts.contains(&index) {
                self.mark(false);
                elsewhere = false;
            }
            // What the other partitions have of a round stands behind a backfill's beginning, never before it.
            if elsewhere && matches!(stamped.event, Event::BackfillBegan(_)) {
                self.mark(true);
                elsewhere = false;
            }
            for (partition, event) in divide(stamped.event, &self.schemas, count)? {
                let sequence = Sequence(self.next_sequence);
                self.next_sequence += 1;
                elsewhere |= partition != Partition(0);
                self.put(partition, Slot::Event(sequence, Stamped { position: stamped.position, event }));
            }
        }
        self.mark(true);
        Ok(())
    }

    /// Ends the round in every partition.
    fn mark(&mut self, whole: bool) {
        let round = self.rounds;
        self.rounds += 1;
        (0..self.partitions.len() as u32)
            .for_each(|partition| self.put(Partition(partition), Slot::Mark(round, whole)));
    }

    fn put(&mut self, partition: Partition, slot: Slot) {
        let gap = if self.gaps { 1 + (self.rounds + u64::from(partition.0)) % 3 } else { 0 };
        if let Some(state) = self.partitions.get_mut(partition.0 as usize) {
            let offset = Offset(state.next.0 + gap);
            state.slots.push_back((offset, slot));
            state.next = Offset(offset.0 + 1);
        }
    }

    fn end(&self) -> Cut {
        Cut(self.partitions.iter().map(|partition| partition.next).collect())
    }

    fn start(&self) -> Cut {
        Cut(self.partitions.iter().map(|partition| partition.start).collect())
    }

    fn abandon(&mut self) {
        self.head.clear();
        self.head_parts.clear();
        self.inside = false;
        for (table, version) in self.head_schemas.drain(..) {
            self.schemas.remove(table, version);
        }
    }

    /// Checks that a place lies in the log.
    fn check(&self, cut: &Cut) -> Result<(), LogError> {
        let (start, end) = (self.start(), self.end());
        if cut.0.len() > self.partitions.len() {
            let (asked, there) = (cut.0.len(), self.partitions.len());
            return Err(LogError::Contract(format!("a cut of {asked} partitions for a log of {there}")));
        }
        if !cut.covers(&start) {
            return Err(LogError::Trimmed { asked: cut.clone(), start });
        }
        if !end.covers(cut) {
            return Err(LogError::Beyond { asked: cut.clone(), end });
        }
        Ok(())
    }

    /// Drops whole rounds below `below`.
    fn trim(&mut self, below: &Cut, force: bool) -> Cut {
        let mut limit = below.clone();
        for held in self.consumers.values().filter(|_| !force) {
            for (partition, at) in limit.0.iter_mut().enumerate() {
                *at = (*at).min(held.next(Partition(partition as u32)));
            }
        }
        while self.first_round_ends_below(&limit) {
            for partition in &mut self.partitions {
                while let Some((offset, slot)) = partition.slots.pop_front() {
                    partition.start = Offset(offset.0 + 1);
                    if matches!(slot, Slot::Mark(..)) {
                        break;
                    }
                }
            }
        }
        self.start()
    }

    fn first_round_ends_below(&self, limit: &Cut) -> bool {
        self.partitions.iter().enumerate().all(|(index, partition)| {
            let mut marks = partition.slots.iter().filter(|(_, slot)| matches!(slot, Slot::Mark(..)));
            marks.next().is_some_and(|(offset, _)| *offset < limit.next(Partition(index as u32)))
        })
    }
}

fn divide(event: Event, schemas: &Schemas, partitions: u32) -> Result<Vec<(Partition, Event)>, LogError> {
    let place = |row: &Row, schema: &TableSchema| {
        let hash = schema.key_of(row).map_or(u64::from(schema.id.0), |key| key.hash64());
        Partition((hash % u64::from(partitions)) as u32)
    };
    // With one partition there is nothing to divide.
    if partitions == 1 { Ok(vec![(Partition(0), event)]) } else { route::divide(event, schemas, place) }
}

impl EventLog for Memory {
    type Reader = MemoryReader;

    fn partitions(&self) -> u32 {
        self.0.state().partitions.len() as u32
    }

    fn append(&self, batch: Batch) -> impl Future<Output = Result<Cut, LogError>> + Send + 'static {
        std::future::ready(self.take(batch))
    }

    fn abandon(&self) -> impl Future<Output = Result<(), LogError>> + Send + 'static {
        self.0.state().abandon();
        std::future::ready(Ok(()))
    }

    fn read(&self, from: &Cut, lane: Lane) -> Result<MemoryReader, LogError> {
        self.0.state().check(from)?;
        Ok(MemoryReader::new(self.0.clone(), from.clone(), lane))
    }

    fn tail(&self) -> Tail {
        let state = self.0.state();
        Tail { cut: state.end(), position: state.upto }
    }

    fn start(&self) -> Cut {
        self.0.state().start()
    }

    fn schema(&self, table: TableId, version: SchemaVersion) -> Option<Arc<TableSchema>> {
        self.0.state().schemas.get(table, version)
    }

    fn latest_schemas(&self) -> Vec<Arc<TableSchema>> {
        self.0.state().schemas.latest()
    }

    fn hold(&self, consumer: &str, cut: &Cut) -> Result<(), LogError> {
        let mut state = self.0.state();
        let end = state.end();
        if !end.covers(cut) {
            return Err(LogError::Beyond { asked: cut.clone(), end });
        }
        state.consumers.insert(consumer.to_owned(), cut.clone());
        Ok(())
    }

    fn release(&self, consumer: &str) -> Result<(), LogError> {
        self.0.state().consumers.remove(consumer);
        Ok(())
    }

    fn trim(&self, below: &Cut, force: bool) -> Result<Cut, LogError> {
        Ok(self.0.state().trim(below, force))
    }
}
