//! A log and a target in memory, as plain as can be: what a source's batches come to.

use crossfade_connector::{Resume, SnapshotState, TableSnapshot};
use crossfade_event::{
    Batch, Cell, Change, Event, Identity, Key, Op, Position, Row, SchemaVersion, Stamped, TableId, TableSchema,
    Transaction, Visibility, codec,
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// A row as text, NULL as `None`.
pub type TextRow = Vec<Option<String>>;

/// Keeps batches as a log does: parts of a transaction count once the last one is in.
#[derive(Debug, Default)]
pub struct Model {
    events: Vec<Stamped>,
    head: Vec<Batch>,
    position: Option<Position>,
    schemas: BTreeMap<(TableId, SchemaVersion), Arc<TableSchema>>,
}

impl Model {
    /// Appends a batch.
    pub fn take(&mut self, batch: Batch) {
        let of_backfill = batch.events.iter().any(|stamped| stamped.event.is_snapshot());
        assert!(!(of_backfill && self.backfill_ended()), "rows of a backfill come after its end");
        let whole = batch.whole;
        self.head.push(batch);
        if !whole {
            return;
        }
        for batch in std::mem::take(&mut self.head) {
            self.position = self.position.max(batch.upto);
            for stamped in &batch.events {
                if let Event::SchemaSeen(schema) = &stamped.event {
                    self.schemas.insert((schema.id, schema.version), schema.clone());
                }
            }
            self.events.extend(batch.events);
        }
    }

    /// A crash: parts of an unfinished transaction are gone.
    pub fn crash(&mut self) {
        self.head.clear();
    }

    /// All events that count.
    pub fn events(&self) -> &[Stamped] {
        &self.events
    }

    /// The changes, in order, with the transaction that each belongs to.
    pub fn changes(&self) -> Vec<(Transaction, Change)> {
        let mut transaction = None;
        let mut found = Vec::new();
        for stamped in &self.events {
            match &stamped.event {
                Event::Began(began) => transaction = Some(*began),
                Event::Committed => transaction = None,
                Event::Changed(change) => {
                    found.push((transaction.expect("a change stands inside a transaction"), change.clone()))
                }
                _ => {}
            }
        }
        found
    }

    /// The latest schema of a table.
    pub fn schema(&self, name: &str) -> Arc<TableSchema> {
        let found =
            self.schemas.values().filter(|schema| &*schema.name.name == name).max_by_key(|schema| schema.version);
        found.cloned().unwrap_or_else(|| panic!("no schema of {name} was seen"))
    }

    /// The last position in the log.
    pub fn position(&self) -> Option<Position> {
        self.position
    }

    /// Whether the last backfill is in.
    pub fn backfill_ended(&self) -> bool {
        let state = self.snapshot();
        state.generation > 0 && state.ended
    }

    /// Where a source goes on.
    pub fn resume(&self) -> Resume {
        let mut latest: BTreeMap<TableId, Arc<TableSchema>> = BTreeMap::new();
        for ((id, _), schema) in &self.schemas {
            latest.insert(*id, schema.clone());
        }
        Resume {
            position: self.position,
            schemas: latest.into_values().collect(),
            snapshot: self.snapshot(),
            mark: None,
        }
    }

    fn snapshot(&self) -> SnapshotState {
        let mut state = SnapshotState::default();
        let mut tables: BTreeMap<TableId, TableSnapshot> = BTreeMap::new();
        for stamped in &self.events {
            match &stamped.event {
                Event::BackfillBegan(backfill) => {
                    tables = backfill.tables.iter().map(|id| (*id, TableSnapshot::default())).collect();
                    state = SnapshotState {
                        generation: backfill.generation,
                        visible: backfill.visible.clone(),
                        ..SnapshotState::default()
                    };
                }
                Event::SnapshotBegan { table, chunks } => {
                    *tables.entry(*table).or_default() =
                        TableSnapshot { chunks: chunks.clone(), ..TableSnapshot::default() };
                }
                Event::ChunkEnded { table, chunk, .. } => {
                    tables.entry(*table).or_default().done.insert(*chunk);
                }
                Event::SnapshotEnded { table, .. } => tables.entry(*table).or_default().ended = true,
                Event::BackfillEnded { .. } => state.ended = true,
                _ => {}
            }
        }
        state.tables = tables.into_iter().collect();
        state
    }

    /// What a target holds of a table once everything is applied: sorted, columns in the order of the latest schema.
    pub fn rows(&self, name: &str) -> Vec<TextRow> {
        let schema = self.schema(name);
        let mut table = Table::default();
        let mut visible: Option<Visibility> = None;
        let begun =
            self.events.iter().rposition(|stamped| matches!(stamped.event, Event::BackfillBegan(_))).unwrap_or(0);
        for stamped in &self.events[begun..] {
            match &stamped.event {
                // Without a key a second copy cannot be told from the first.
                Event::SnapshotBegan { table: id, .. } if *id == schema.id && schema.identity != Identity::Key => {
                    table = Table::default();
                }
                Event::Rows(block) if block.table == schema.id => {
                    assert_eq!(block.check(), Ok(true), "a block holds the rows that it says");
                    let under = &self.schemas[&(block.table, block.schema)];
                    for row in block.iter() {
                        let row = row.expect("a row of a block");
                        table.insert(under, under.key_of(&row), &row);
                    }
                }
                Event::SnapshotEnded { table: id, visible: seen } if *id == schema.id => visible.clone_from(seen),
                _ => {}
            }
        }
        for (transaction, change) in self.changes() {
            let seen = visible.as_ref().is_some_and(|visible| visible.sees(transaction.xid));
            if change.table == schema.id && !seen {
                table.apply(&self.schemas[&(change.table, change.schema)], &change);
            }
        }
        table.text(&schema)
    }
}

/// A table: by its key where it has one, else a heap.
#[derive(Debug, Default)]
struct Table {
    keyed: HashMap<Key, (Arc<TableSchema>, Row)>,
    heap: Vec<(Arc<TableSchema>, Row)>,
}

impl Table {
    fn insert(&mut self, schema: &Arc<TableSchema>, key: Option<Key>, row: &Row) {
        match (schema.identity, key) {
            (Identity::Key, Some(key)) => {
                let before = self.keyed.get(&key).map(|(_, row)| row.clone());
                self.keyed.insert(key, (schema.clone(), merged(before.as_ref(), row)));
            }
            (Identity::Key, None) => panic!("an image without its key"),
            _ => self.heap.push((schema.clone(), row.clone())),
        }
    }

    fn apply(&mut self, schema: &Arc<TableSchema>, change: &Change) {
        if schema.identity != Identity::Key {
            if let Some(old) = &change.old
                && let Some(place) = self.heap.iter().position(|(_, row)| row == old)
            {
                self.heap.remove(place);
            }
            if let Some(new) = &change.new {
                self.heap.push((schema.clone(), new.clone()));
            }
            return;
        }
        let before = change.replaced_key(schema).and_then(|key| self.keyed.remove(&key));
        match (&change.new, change.op) {
            (Some(new), Op::Insert | Op::Update) => {
                let new = before.map_or_else(|| new.clone(), |(_, before)| merged(Some(&before), new));
                self.insert(schema, schema.key_of(&new), &new);
            }
            _ => {
                let key = change.key(schema).expect("a delete carries its key");
                self.keyed.remove(&key);
            }
        }
    }

    fn text(&self, latest: &TableSchema) -> Vec<TextRow> {
        let mut rows: Vec<TextRow> =
            self.keyed.values().chain(&self.heap).map(|(schema, row)| text_row(schema, row, latest)).collect();
        rows.sort();
        rows
    }
}

fn merged(before: Option<&Row>, after: &Row) -> Row {
    let before: Vec<Cell<'_>> = before.map(|row| row.cells().collect()).unwrap_or_default();
    after
        .cells()
        .enumerate()
        .map(|(index, cell)| if cell == Cell::Unchanged { before.get(index).copied().unwrap_or(cell) } else { cell })
        .collect()
}

/// A row as text, in the order of the latest schema's columns; a column that the row does not know has its default.
pub fn text_row(schema: &TableSchema, row: &Row, latest: &TableSchema) -> TextRow {
    let cells: Vec<Cell<'_>> = row.cells().collect();
    latest
        .columns
        .iter()
        .map(|column| {
            let place = schema.columns.iter().position(|known| known.native_id == column.native_id);
            let Some(place) = place else {
                return column.default.as_ref().map(|text| text.trim_matches('\'').to_owned());
            };
            match cells[place] {
                Cell::Null => None,
                Cell::Bytes(bytes) => {
                    let value = codec::decode(&schema.columns[place].type_, bytes).expect("a cell that can be read");
                    Some(codec::to_text(&value))
                }
                other => panic!("{other:?} in a row of {}", schema.name),
            }
        })
        .collect()
}
