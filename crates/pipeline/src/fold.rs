//! What the log says about backfills, folded. Ingest resumes from it, deliver learns from it which changes the copies of
//! tables without a key have seen already, and lookups learn where their rows are.
//!
//! The fold is read on from where it was, and shared by everyone who works on a log ([`Folds`]); with the part of it
//! that the state keeps, a start reads only what came after.

mod kept;

use crate::PipelineError;
use crossfade_connector::{SnapshotState, TableSnapshot};
use crossfade_event::{Backfill, ChunkId, Cut, Event, Offset, Position, TableId, Visibility};
use crossfade_log::{Entries, Entry, EventLog, Lane, LogError, LogReader};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// A backfill, and where it began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begun {
    /// What it copies.
    pub backfill: Backfill,
    /// The source position from which the stream has everything that the backfill may lack.
    pub position: Position,
    /// The place after the entry with which it began: where its rows are read from, and the stream after them.
    pub from: Cut,
}

/// What the log's snapshot records say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SnapshotFold {
    /// The last backfill, as the source wants to know it.
    pub state: SnapshotState,
    /// All backfills, in order.
    pub backfills: Vec<Begun>,
    /// How many rows each finished chunk of the last backfill has.
    pub chunk_rows: BTreeMap<(TableId, ChunkId), u64>,
    /// What the copies of tables without a key could see: changes of those transactions are in the copy already.
    pub visible: BTreeMap<TableId, Visibility>,
    /// The place after the last entry folded.
    pub folded: Cut,
}

impl SnapshotFold {
    /// Takes one entry in.
    pub fn absorb(&mut self, entry: &Entry) {
        self.folded.set_next(entry.partition, Offset(entry.offset.0 + 1));
        match &entry.event {
            Event::BackfillBegan(backfill) => {
                self.backfills.push(Begun {
                    backfill: backfill.clone(),
                    position: entry.position,
                    from: self.folded.clone(),
                });
                self.chunk_rows.clear();
                self.state = SnapshotState {
                    generation: backfill.generation,
                    ended: false,
                    visible: backfill.visible.clone(),
                    tables: backfill.tables.iter().map(|table| (*table, TableSnapshot::default())).collect(),
                };
            }
            Event::SnapshotBegan { table, chunks } => {
                if let Some(snapshot) = self.table(*table) {
                    // Begun again (the table was rewritten, or has no key): what was copied before counts no more.
                    *snapshot = TableSnapshot { chunks: chunks.clone(), ..TableSnapshot::default() };
                    self.chunk_rows.retain(|(of, _), _| of != table);
                }
            }
            Event::ChunkEnded { table, chunk, rows } => {
                if let Some(snapshot) = self.table(*table) {
                    snapshot.done.insert(*chunk);
                    self.chunk_rows.insert((*table, *chunk), *rows);
                }
            }
            Event::SnapshotEnded { table, visible } => {
                if let Some(snapshot) = self.table(*table) {
                    snapshot.ended = true;
                }
                match visible {
                    Some(visible) => self.visible.insert(*table, visible.clone()),
                    None => self.visible.remove(table),
                };
            }
            Event::BackfillEnded { generation } if *generation == self.state.generation => self.state.ended = true,
            _ => {}
        }
    }

    fn table(&mut self, table: TableId) -> Option<&mut TableSnapshot> {
        self.state.tables.iter_mut().find(|(id, _)| *id == table).map(|(_, snapshot)| snapshot)
    }

    /// Folds what came since.
    fn read_on<L: EventLog>(&mut self, log: &L) -> Result<(), LogError> {
        let mut reader = log.read(&self.folded, Lane::Snapshot)?;
        while let Some(entries) = reader.try_next()? {
            for entry in &entries.entries {
                self.absorb(entry);
            }
            self.folded = entries.next;
        }
        Ok(())
    }
}

/// Folds everything that is in the log now, from its beginning.
///
/// # Errors
/// When the log cannot be read.
pub fn fold_snapshots<L: EventLog>(log: &L) -> Result<SnapshotFold, PipelineError> {
    let mut fold = SnapshotFold { folded: log.start(), ..SnapshotFold::default() };
    fold.read_on(log)?;
    Ok(fold)
}

/// The fold of one log, read on by whoever needs it. Cheap to clone; all clones share it.
#[derive(Debug, Clone, Default)]
pub struct Folds(Arc<Mutex<Option<SnapshotFold>>>);

impl Folds {
    /// Begins with a fold that was kept; whoever gives it answers for it that it is of the same log.
    pub fn starting_with(fold: SnapshotFold) -> Self {
        Self(Arc::new(Mutex::new(Some(fold))))
    }

    /// The fold of everything that is in the log now.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn refreshed<L: EventLog>(&self, log: &L) -> Result<SnapshotFold, PipelineError> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fold) = held.as_mut() {
            match fold.read_on(log) {
                Ok(()) => return Ok(fold.clone()),
                // Kept from a time when the log was longer, or so old that the log has been trimmed past it.
                Err(LogError::Beyond { .. } | LogError::Trimmed { .. }) => *held = None,
                Err(other) => return Err(other.into()),
            }
        }
        let fold = fold_snapshots(log)?;
        Ok(held.insert(fold).clone())
    }

    /// Whoever reads the snapshot lane anyway tells what it read from `from` on: a fold that stands there need not read
    /// it again. Never waits; a fold that stands elsewhere, or is in use, stays as it is.
    pub fn follow(&self, from: &Cut, entries: &Entries) {
        let Ok(mut held) = self.0.try_lock() else { return };
        let Some(fold) = held.as_mut() else { return };
        // Over several partitions the order would be another one than its own reading has.
        let ([from], [folded], [next]) = (&*from.0, &*fold.folded.0, &*entries.next.0) else { return };
        if (from..=next).contains(&folded) {
            let (folded, next) = (*folded, entries.next.clone());
            for entry in entries.entries.iter().filter(|entry| entry.offset >= folded) {
                fold.absorb(entry);
            }
            fold.folded = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossfade_event::{Batch, ChunkId, ChunkPlan, SourceId, Stamped};
    use crossfade_log::memory::Memory;

    fn position(commit: u64) -> Position {
        Position { source: SourceId(7), timeline: 1, commit, ordinal: u32::MAX }
    }

    async fn append(log: &Memory, commit: u64, event: Event) {
        let upto = (!event.is_snapshot()).then(|| position(commit));
        let events = vec![Stamped { position: position(commit), event }];
        log.append(Batch { events, upto, whole: true }).await.unwrap();
    }

    fn began(generation: u32) -> Event {
        Event::BackfillBegan(Backfill { generation, tables: vec![TableId(1)], visible: None })
    }

    #[tokio::test]
    async fn a_fold_that_follows_a_reader_is_the_fold_from_the_beginning() {
        let log = Memory::new();
        let told = Folds::starting_with(fold_snapshots(&log).unwrap());
        let mut reader = log.read(&log.start(), Lane::Snapshot).unwrap();
        let mut from = log.start();
        for (commit, step) in
            [began(1), Event::Resolved, Event::BackfillEnded { generation: 1 }, began(2)].into_iter().enumerate()
        {
            append(&log, commit as u64 + 1, step).await;
            if commit == 1 {
                // It has read a part of what it is told next.
                told.refreshed(&log).unwrap();
                continue;
            }
            while let Some(entries) = reader.try_next().unwrap() {
                told.follow(&from, &entries);
                // Told twice, it has moved on.
                told.follow(&from, &entries);
                from = entries.next;
            }
            let held = told.0.lock().unwrap().clone().unwrap();
            assert_eq!(held, fold_snapshots(&log).unwrap(), "after step {commit}");
        }
    }

    #[tokio::test]
    async fn a_fold_that_is_read_on_is_the_fold_from_the_beginning() {
        let log = Memory::new();
        let folds = Folds::default();
        let chunks = vec![ChunkPlan { id: ChunkId(0), range: "all".into() }];
        let steps = [
            began(1),
            Event::SnapshotBegan { table: TableId(1), chunks },
            Event::ChunkEnded { table: TableId(1), chunk: ChunkId(0), rows: 0 },
            Event::Resolved,
            Event::SnapshotEnded { table: TableId(1), visible: Some(Visibility::default()) },
            Event::BackfillEnded { generation: 1 },
            began(2),
        ];
        for (commit, step) in steps.into_iter().enumerate() {
            append(&log, commit as u64 + 1, step).await;
            assert_eq!(folds.refreshed(&log).unwrap(), fold_snapshots(&log).unwrap(), "after step {commit}");
        }
        let fold = folds.refreshed(&log).unwrap();
        assert_eq!(fold.backfills.iter().map(|begun| begun.backfill.generation).collect::<Vec<_>>(), [1, 2]);
        assert_eq!((fold.state.generation, fold.state.ended), (2, false));
        assert_eq!(fold.backfills.last().map(|begun| begun.position), Some(position(7)));
        // Kept from a log that was longer than this one.
        let shorter = Memory::new();
        append(&shorter, 1, began(1)).await;
        let again = Folds::starting_with(fold).refreshed(&shorter).unwrap();
        assert_eq!(again, fold_snapshots(&shorter).unwrap());
    }
}
