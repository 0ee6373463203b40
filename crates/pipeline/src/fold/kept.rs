//! The fold as the state keeps it: a cache of the log, good for one log only. Where it is missing, of another log, or
//! older than the log, the rest is read from the log; where it is newer, all of it ([`super::Folds`]).

use super::{Begun, SnapshotFold};
use crossfade_connector::{SnapshotState, TableSnapshot};
use crossfade_event::{ChunkId, TableId};
use crossfade_state::{
    Changes, ChunkDone, ChunkKey, FoldMarks, FoldMarksKey, IngestFold, IngestFoldKey, MarkedBackfill, Prefix,
    StateError, StateStore, TableFold, TableFoldKey,
};

impl SnapshotFold {
    /// What the state must write to hold this fold of the log with that number, if it holds `before` now.
    pub fn changes(&self, log: u64, before: Option<&Self>) -> Changes {
        if before == Some(self) {
            return Changes::new();
        }
        let generation = self.state.generation;
        let same = before.filter(|before| before.state.generation == generation);
        let ingest = IngestFold {
            upto: self.folded.clone(),
            generation,
            ended: self.state.ended,
            visible: self.state.visible.clone(),
            tables: self.state.tables.iter().map(|(table, _)| *table).collect(),
        };
        let mut changes = Changes::new();
        if same.is_none() {
            // Whatever the store holds is of another backfill, or not known to be right.
            changes = changes.remove_all(Prefix::<TableFoldKey>::all()).remove_all(Prefix::<ChunkKey>::all());
        }
        changes = changes.put(&IngestFoldKey, &ingest);
        if before.is_none_or(|before| before.backfills != self.backfills || before.visible != self.visible) {
            changes = changes.put(&FoldMarksKey, &self.marks(log));
        }
        for (table, snapshot) in &self.state.tables {
            let table = *table;
            let known = same.and_then(|before| before.state.tables.iter().find(|(id, _)| *id == table));
            let known = known.map(|(_, known)| known);
            // Begun again: what was done before counts no more.
            let again =
                known.is_some_and(|known| known.chunks != snapshot.chunks || !known.done.is_subset(&snapshot.done));
            if again {
                changes = changes.remove_all(ChunkKey::of_table(generation, table));
            }
            if known.is_none_or(|known| known.chunks != snapshot.chunks || known.ended != snapshot.ended) {
                let kept = TableFold { chunks: snapshot.chunks.clone(), ended: snapshot.ended };
                changes = changes.put(&TableFoldKey { generation, table }, &kept);
            }
            for chunk in &snapshot.done {
                let rows = self.chunk_rows.get(&(table, *chunk)).copied().unwrap_or_default();
                let known_rows = same.and_then(|before| before.chunk_rows.get(&(table, *chunk)).copied());
                if !again && known_rows == Some(rows) {
                    continue;
                }
                changes = changes.put(&ChunkKey { generation, table, chunk: *chunk }, &ChunkDone { rows });
            }
        }
        changes
    }

    fn marks(&self, log: u64) -> FoldMarks {
        let backfills = self.backfills.iter().map(|begun| MarkedBackfill {
            backfill: begun.backfill.clone(),
            position: begun.position,
            from: begun.from.clone(),
        });
        FoldMarks {
            log,
            backfills: backfills.collect(),
            visible: self.visible.iter().map(|(table, visible)| (*table, visible.clone())).collect(),
        }
    }

    /// The fold that a state holds of the log with that number; `None` when it holds none, or another log's.
    ///
    /// # Errors
    /// When a value cannot be read.
    pub fn kept<S: StateStore>(store: &S, log: u64) -> Result<Option<Self>, StateError> {
        let (Some(ingest), Some(marks)) = (store.get(&IngestFoldKey)?, store.get(&FoldMarksKey)?) else {
            return Ok(None);
        };
        if marks.log != log {
            return Ok(None);
        }
        let IngestFold { upto, generation, ended, visible, tables } = ingest;
        let mut fold = Self {
            state: SnapshotState { generation, ended, visible, tables: Vec::with_capacity(tables.len()) },
            visible: marks.visible.into_iter().collect(),
            folded: upto,
            ..Self::default()
        };
        fold.backfills = marks
            .backfills
            .into_iter()
            .map(|MarkedBackfill { backfill, position, from }| Begun { backfill, position, from })
            .collect();
        for table in tables {
            fold.state.tables.push((table, fold_of_table(store, generation, table, &mut fold.chunk_rows)?));
        }
        Ok(Some(fold))
    }
}

fn fold_of_table<S: StateStore>(
    store: &S,
    generation: u32,
    table: TableId,
    chunk_rows: &mut std::collections::BTreeMap<(TableId, ChunkId), u64>,
) -> Result<TableSnapshot, StateError> {
    let kept = store.get(&TableFoldKey { generation, table })?.unwrap_or_default();
    let mut snapshot = TableSnapshot { chunks: kept.chunks, ended: kept.ended, ..TableSnapshot::default() };
    for (key, done) in store.scan(&ChunkKey::of_table(generation, table))? {
        snapshot.done.insert(key.chunk);
        chunk_rows.insert((table, key.chunk), done.rows);
    }
    Ok(snapshot)
}

#[cfg(test)]
mod tests {
    use super::super::{Folds, fold_snapshots};
    use super::*;
    use crossfade_event::{Backfill, Batch, ChunkPlan, Event, Position, SourceId, Stamped, Visibility};
    use crossfade_log::{EventLog, memory::Memory};
    use crossfade_state::MemoryStore;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    async fn append(log: &Memory, commit: u64, event: Event) {
        let position = Position { source: SourceId(7), timeline: 1, commit, ordinal: u32::MAX };
        let upto = (!event.is_snapshot()).then_some(position);
        log.append(Batch { events: vec![Stamped { position, event }], upto, whole: true }).await.unwrap();
    }

    /// Whatever a backfill may say next.
    fn event(random: &mut StdRng, generation: &mut u32) -> Event {
        let table = TableId(random.random_range(1..4));
        let chunk = ChunkId(random.random_range(0..5));
        match random.random_range(0..20) {
            0 => {
                *generation += 1;
                let tables = (1..=random.random_range(1..4)).map(TableId).collect();
                Event::BackfillBegan(Backfill { generation: *generation, tables, visible: None })
            }
            1..4 => {
                let plan = |id| ChunkPlan { id: ChunkId(id), range: format!("{id} of {generation}").into() };
                Event::SnapshotBegan { table, chunks: (0..random.random_range(1..5)).map(plan).collect() }
            }
            4..10 => Event::ChunkEnded { table, chunk, rows: random.random_range(0..1_000) },
            10 => Event::SnapshotEnded { table, visible: None },
            11 => {
                let visible = Visibility { xmin: random.random_range(1..9), ..Visibility::default() };
                Event::SnapshotEnded { table, visible: Some(visible) }
            }
            12 => Event::BackfillEnded { generation: *generation },
            _ => Event::Resolved,
        }
    }

    #[tokio::test]
    async fn a_start_from_the_state_knows_what_a_start_from_the_log_knows() {
        for seed in 0..40 {
            println!("seed {seed}");
            let mut random = StdRng::seed_from_u64(seed);
            let (log, store) = (Memory::new(), MemoryStore::new());
            let mut written: Option<SnapshotFold> = None;
            let mut generation = 1;
            append(&log, 1, Event::BackfillBegan(Backfill { generation, tables: vec![TableId(1)], visible: None }))
                .await;
            for commit in 2..120 {
                let next = event(&mut random, &mut generation);
                append(&log, commit, next).await;
                if random.random_range(0..4) == 0 {
                    let fold = fold_snapshots(&log).unwrap();
                    store.commit(fold.changes(9, written.as_ref())).await.unwrap();
                    assert_eq!(SnapshotFold::kept(&store, 9).unwrap().as_ref(), Some(&fold), "seed {seed}");
                    // A process that was just started does not know what the store holds.
                    written = random.random::<bool>().then_some(fold);
                }
                // The state is as old as its last commit; what came since is read from the log.
                let folds = SnapshotFold::kept(&store, 9).unwrap().map(Folds::starting_with).unwrap_or_default();
                assert_eq!(folds.refreshed(&log).unwrap(), fold_snapshots(&log).unwrap(), "seed {seed}");
            }
            assert_eq!(SnapshotFold::kept(&store, 8).unwrap(), None, "another log's");
        }
    }
}
