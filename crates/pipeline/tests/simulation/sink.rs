//! A sink in memory that fails as servers do: before the commit, or after it without saying so.

use crossfade_connector::{Applied, Delivery, Failure, Guard, Progress, Sink, Stage, Target, TargetTable, Write};
use crossfade_event::{Cell, Change, Key, Row, Rows, TableId, TableSchema, Version};
use rand::{Rng, rngs::StdRng};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

/// What survives a kill.
#[derive(Debug, Clone, Default)]
pub(crate) struct Durable(Arc<Mutex<Kept>>);

#[derive(Debug, Clone, Default)]
struct Kept {
    rows: BTreeMap<Key, Row>,
    progress: Option<Progress>,
    /// What was ever handed over, by version: whoever applied it or not.
    versions: BTreeMap<Version, String>,
}

impl Durable {
    /// A version is one write's for ever: no other has it, and the same write has it when it is handed over again.
    fn note(&self, at: Version, what: String) {
        let mut kept = self.0.lock().unwrap();
        let known = kept.versions.entry(at).or_insert_with(|| what.clone());
        assert_eq!(*known, what, "two writes have the version {at:?}");
    }

    /// What the sink has by its own word is not handed over again.
    fn assert_new(&self, delivery: &Delivery) {
        let kept = self.0.lock().unwrap();
        let same = |progress: &&Progress| progress.stage == Stage::Streaming && progress.stage == delivery.upto.stage;
        let Some(upto) = kept.progress.as_ref().filter(same).and_then(|progress| progress.sequence) else { return };
        for write in &delivery.writes {
            if let Write::Change { at, .. } = write {
                assert!(at.sequence >= upto, "{at:?} comes again, and the sink has everything up to {upto}");
            }
        }
    }

    fn note_all(&self, writes: &[Write]) {
        let mut last = None;
        for write in writes {
            match write {
                Write::Rows { at, rows, .. } => {
                    for (number, row) in Rows::new(rows.clone()).enumerate() {
                        let at = Version { ordinal: at.ordinal + number as u32, ..*at };
                        self.note(at, format!("{:?}", row.unwrap()));
                    }
                }
                Write::Change { at, change } => {
                    assert!(last.replace(*at).is_none_or(|last| last < *at), "versions are not in the order of writes");
                    self.note(*at, format!("{change:?}"));
                }
                Write::Truncate { .. } | Write::Reject(_) | Write::Began { .. } | Write::Boundary => {}
            }
        }
    }

    pub(crate) fn rows(&self) -> BTreeMap<Key, Row> {
        self.0.lock().unwrap().rows.clone()
    }

    /// Damages every row.
    pub(crate) fn damage_all(&self) {
        let mut kept = self.0.lock().unwrap();
        kept.rows = damaged(&kept.rows);
    }
}

/// The rows, damaged as [`Durable::damage_all`] does it.
pub(crate) fn damaged(rows: &BTreeMap<Key, Row>) -> BTreeMap<Key, Row> {
    rows.iter()
        .map(|(key, row)| {
            let id = row.cell(0).unwrap();
            (key.clone(), [id, Cell::Bytes(b"damaged"), Cell::Bytes(b"damaged")].into_iter().collect())
        })
        .collect()
}

/// How many calls from now on fail, and how.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    before_commit: u32,
    after_commit: u32,
}

impl Faults {
    pub(crate) fn random(random: &mut StdRng) -> Self {
        Self { before_commit: random.random_range(0..3), after_commit: random.random_range(0..3) }
    }
}

pub(crate) struct ModelSink {
    durable: Durable,
    schema: Arc<TableSchema>,
    faults: Faults,
    open: Option<BTreeMap<Key, Row>>,
}

impl ModelSink {
    pub(crate) fn new(durable: Durable, schema: Arc<TableSchema>, faults: Faults) -> Self {
        Self { durable, schema, faults, open: None }
    }

    fn change(&self, rows: &mut BTreeMap<Key, Row>, change: &Change) {
        let old = change.old.as_ref().and_then(|old| self.schema.key_of(old));
        let key = change.new.as_ref().and_then(|new| self.schema.key_of(new));
        let before = old.as_ref().or(key.as_ref()).and_then(|key| rows.get(key)).cloned();
        if let Some(old) = old {
            rows.remove(&old);
        }
        if let (Some(key), Some(new)) = (key, &change.new) {
            let row: Row = match before {
                Some(before) => {
                    let before: Vec<Cell<'_>> = before.cells().collect();
                    new.cells()
                        .enumerate()
                        .map(|(i, cell)| if cell == Cell::Unchanged { before[i] } else { cell })
                        .collect()
                }
                None => {
                    assert!(!new.has_unchanged(), "a partial image of a row that is not there");
                    new.clone()
                }
            };
            rows.insert(key, row);
        }
    }
}

impl Sink for ModelSink {
    async fn prepare(&mut self, _target: &Target) -> Result<(), Failure> {
        self.open = None;
        Ok(())
    }

    async fn alter(&mut self, _before: &TargetTable, _after: &TargetTable) -> Result<(), Failure> {
        Ok(())
    }

    async fn progress(&mut self) -> Result<Option<Progress>, Failure> {
        self.open = None;
        Ok(self.durable.0.lock().unwrap().progress.clone())
    }

    async fn apply(&mut self, delivery: Delivery, guard: Guard) -> Result<Applied, Failure> {
        let mut rows = self.open.take().unwrap_or_else(|| self.durable.rows());
        let mut applied = Applied::default();
        if guard == Guard::Forward {
            self.durable.note_all(&delivery.writes);
            self.durable.assert_new(&delivery);
        }
        for write in &delivery.writes {
            match write {
                Write::Rows { rows: block, .. } => {
                    for row in Rows::new(block.clone()) {
                        let row = row.unwrap();
                        rows.entry(self.schema.key_of(&row).unwrap()).or_insert(row);
                        applied.applied += 1;
                    }
                }
                Write::Change { change, .. } => {
                    self.change(&mut rows, change);
                    applied.applied += 1;
                }
                Write::Truncate { .. } => rows.clear(),
                Write::Reject(_) => applied.held += 1,
                Write::Began { .. } | Write::Boundary => {}
            }
        }
        if self.faults.before_commit > 0 {
            self.faults.before_commit -= 1;
            return Err(Failure::retry("applying", "a scripted deadlock"));
        }
        if !delivery.commits {
            self.open = Some(rows);
            return Ok(applied);
        }
        {
            let mut kept = self.durable.0.lock().unwrap();
            kept.rows = rows;
            if guard == Guard::Forward {
                kept.progress = Some(delivery.upto);
            }
        }
        if self.faults.after_commit > 0 {
            self.faults.after_commit -= 1;
            return Err(Failure::reconnect("committing", "the connection went away after the commit"));
        }
        Ok(applied)
    }

    async fn finish_load(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    async fn read_row(&mut self, _table: TableId, key: &Key) -> Result<Option<Row>, Failure> {
        Ok(self.durable.rows().get(key).cloned())
    }
}
