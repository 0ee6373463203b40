//! A sink that keeps its tables in memory, with how far it has come.

use super::*;

/// What survives a kill.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) rows: BTreeMap<(TableId, Key), Row>,
    pub(super) progress: Option<Progress>,
}

/// A sink of any number of tables, in memory.
pub(super) struct TablesSink {
    pub(super) kept: Arc<Mutex<Kept>>,
    pub(super) schemas: BTreeMap<TableId, Arc<TableSchema>>,
    pub(super) open: Option<BTreeMap<(TableId, Key), Row>>,
}

impl TablesSink {
    pub(super) fn new(kept: &Arc<Mutex<Kept>>) -> Self {
        Self { kept: kept.clone(), schemas: BTreeMap::new(), open: None }
    }

    pub(super) fn write(&self, rows: &mut BTreeMap<(TableId, Key), Row>, change: &Change) {
        let (table, schema) = (change.table, &self.schemas[&change.table]);
        let old = change.old.as_ref().and_then(|old| schema.key_of(old));
        let new = change.new.as_ref().and_then(|new| schema.key_of(new));
        let before = old.as_ref().or(new.as_ref()).and_then(|key| rows.get(&(table, key.clone()))).cloned();
        if let Some(old) = old {
            rows.remove(&(table, old));
        }
        if let (Some(key), Some(row)) = (new, &change.new) {
            let before: Option<Vec<Cell<'_>>> = before.as_ref().map(|before| before.cells().collect());
            let whole = row
                .cells()
                .enumerate()
                .map(|(at, cell)| match cell {
                    Cell::Unchanged => before.as_ref().expect("a partial image of a row that is not there")[at],
                    cell => cell,
                })
                .collect();
            rows.insert((table, key), whole);
        }
    }
}

impl Sink for TablesSink {
    async fn prepare(&mut self, target: &Target) -> Result<(), Failure> {
        self.open = None;
        self.schemas = target.tables.iter().map(|table| (table.schema.id, table.schema.clone())).collect();
        Ok(())
    }

    async fn alter(&mut self, _before: &TargetTable, _after: &TargetTable) -> Result<(), Failure> {
        Ok(())
    }

    async fn progress(&mut self) -> Result<Option<Progress>, Failure> {
        self.open = None;
        Ok(self.kept.lock().unwrap().progress.clone())
    }

    async fn apply(&mut self, delivery: Delivery, guard: Guard) -> Result<Applied, Failure> {
        let mut rows = self.open.take().unwrap_or_else(|| self.kept.lock().unwrap().rows.clone());
        for write in &delivery.writes {
            match write {
                Write::Rows { table, rows: block, .. } => {
                    for row in Rows::new(block.clone()).map(Result::unwrap) {
                        rows.insert((*table, self.schemas[table].key_of(&row).unwrap()), row);
                    }
                }
                Write::Change { change, .. } => self.write(&mut rows, change),
                Write::Truncate { tables, .. } => rows.retain(|(table, _), _| !tables.contains(table)),
                Write::Reject(rejection) => panic!("refused: {}", rejection.reason),
                Write::Began { .. } | Write::Boundary => {}
            }
        }
        if !delivery.commits {
            self.open = Some(rows);
            return Ok(Applied::default());
        }
        let mut kept = self.kept.lock().unwrap();
        kept.rows = rows;
        if guard == Guard::Forward {
            kept.progress = Some(delivery.upto);
        }
        Ok(Applied::default())
    }

    async fn finish_load(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    async fn read_row(&mut self, table: TableId, key: &Key) -> Result<Option<Row>, Failure> {
        Ok(self.kept.lock().unwrap().rows.get(&(table, key.clone())).cloned())
    }
}

#[derive(Default)]
pub(super) struct Misses(pub(super) AtomicU64);

impl Watch for Misses {
    fn delivered(&self, what: &Delivered) {
        self.0.fetch_add(what.misses, Ordering::Relaxed);
    }
}
