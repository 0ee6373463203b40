//! Lookups against a model that knows what every lookup must have found: rows of one table take the name of another
//! table's row, by a key that is not its identity. Rows of the looked-up table change, swap codes, vanish and move, come
//! without their unchanged values, and are copied again by a second backfill; deliver is begun anew at every turn.

use crate::PATIENT;
use crossfade_connector::{Applied, Delivery, Failure, Guard, Progress, Sink, Target, TargetTable, Write};
use crossfade_event::{
    Backfill, Batch, Cell, Change, ChunkId, ChunkPlan, Cut, Event, Identity, Key, Op, Position, Row, RowBlock, Rows,
    SchemaVersion, SourceId, Stamped, TableId, TableName, TableSchema, Transaction, Truncate,
    catalog::{Catalog, Dialect, KeyDef},
};
use crossfade_log::{EventLog, memory::Memory};
use crossfade_pipeline::{
    DeliverOptions, Delivered, Ending, Folds, Routes, Scratch, Watch, deliver, evolve_catalog, heal, stop_channel,
    valve,
};
use crossfade_transform::PlanOptions;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

const ITEMS: TableId = TableId(1);
const ZONES: TableId = TableId(2);

fn schema(id: TableId, name: &str, columns: [&str; 3]) -> Arc<TableSchema> {
    Arc::new(TableSchema {
        id,
        version: SchemaVersion(1),
        name: TableName::new("public", name),
        columns: columns
            .into_iter()
            .enumerate()
            .map(|(at, name)| crate::column(name, at as u32 + 1, (at == 0).then_some(0)))
            .collect(),
        identity: Identity::Key,
        native_id: 100 + id.0,
    })
}

/// `items(id primary key, zone, note)`
fn items() -> Arc<TableSchema> {
    schema(ITEMS, "items", ["id", "zone", "note"])
}

/// `zones(id primary key, code unique, name)`
fn zones() -> Arc<TableSchema> {
    schema(ZONES, "zones", ["id", "code", "name"])
}

/// Zones without a primary key: their rows are their own identity.
fn keyless_zones() -> Arc<TableSchema> {
    let mut schema = (*zones()).clone();
    schema.identity = Identity::FullRow;
    schema.columns.iter_mut().for_each(|column| column.key = None);
    Arc::new(schema)
}

/// `on` is the column by which zones are found.
fn routes(on: &str, scratch: Scratch) -> Routes {
    routes_over(on, scratch, &zones())
}

fn routes_over(on: &str, scratch: Scratch, zones: &Arc<TableSchema>) -> Routes {
    let mut catalog = Catalog {
        dialect: Dialect::Postgres,
        tables: Vec::new(),
        types: Vec::new(),
        sequences: Vec::new(),
        extensions: Vec::new(),
    };
    evolve_catalog(&mut catalog, &items());
    evolve_catalog(&mut catalog, zones);
    catalog.tables[1].uniques.push(KeyDef {
        name: "zones_code_key".to_owned(),
        columns: vec!["code".to_owned()],
        deferrable: true,
        nulls_not_distinct: false,
    });
    let rules = serde_json::json!({ "table": [{
        "from": "public.items",
        "steps": [{ "lookup": "public.zones", "on": { on: "zone" }, "take": { "zone_name": "name" } }],
    }]});
    let rules = Arc::new(serde_json::from_value(rules).unwrap());
    let routes = Routes::new(catalog, rules, Arc::new(PlanOptions::default()), "simulation", 1, false).unwrap();
    routes.with_scratch(scratch)
}

type Texts = Vec<Option<String>>;

fn row(cells: &[Option<&str>]) -> Row {
    cells.iter().map(|cell| cell.map_or(Cell::Null, |text| Cell::Bytes(text.as_bytes()))).collect()
}

fn texts(row: &Row) -> Texts {
    row.cells()
        .map(|cell| match cell {
            Cell::Bytes(bytes) => Some(String::from_utf8(bytes.to_vec()).unwrap()),
            Cell::Null => None,
            other => panic!("{other:?} in a row that should be whole"),
        })
        .collect()
}

/// The source as it is, what the target must hold, and the log that says it.
struct Model {
    random: StdRng,
    log: Memory,
    zones_schema: Arc<TableSchema>,
    /// By id: code and name.
    zones: BTreeMap<String, (String, String)>,
    /// By id: zone and note.
    items: BTreeMap<String, (String, String)>,
    /// By id: zone, note, and the name that was looked up when the row last changed.
    wanted: BTreeMap<String, (String, String, Option<String>)>,
    /// Items that were touched since each transaction's end.
    touched: Vec<(Cut, BTreeSet<String>)>,
    by_id: bool,
    misses: u64,
    commit: u64,
    generation: u32,
}

impl Model {
    fn new(seed: u64, by_id: bool) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            log: crate::log(seed / 2),
            zones_schema: zones(),
            zones: BTreeMap::new(),
            items: BTreeMap::new(),
            wanted: BTreeMap::new(),
            touched: Vec::new(),
            by_id,
            misses: 0,
            commit: 1,
            generation: 0,
        }
    }

    fn position(&self, ordinal: u32) -> Position {
        Position { source: SourceId(7), timeline: 1, commit: self.commit, ordinal }
    }

    async fn append(&mut self, events: Vec<Event>, of_backfill: bool) {
        let at = self.position(u32::MAX);
        let events = events.into_iter().map(|event| Stamped { position: at, event }).collect();
        self.log.append(Batch { events, upto: (!of_backfill).then_some(at), whole: true }).await.unwrap();
    }

    fn found(&mut self, zone: &str) -> Option<String> {
        let found = if self.by_id {
            self.zones.get(zone).map(|(_, name)| name.clone())
        } else {
            self.zones.values().find(|(code, _)| code == zone).map(|(_, name)| name.clone())
        };
        self.misses += u64::from(found.is_none());
        found
    }

    /// Copies these tables as they are now.
    async fn backfill(&mut self, tables: &[TableId]) {
        self.generation += 1;
        let backfill = Backfill { generation: self.generation, tables: tables.to_vec(), visible: None };
        // Now and then behind a transaction that comes with it in one batch.
        let mut head = if self.generation > 1 && self.random.random() { self.changes_of_one() } else { Vec::new() };
        if self.generation == 1 {
            head.extend([Event::SchemaSeen(items()), Event::SchemaSeen(self.zones_schema.clone())]);
        }
        head.push(Event::BackfillBegan(backfill));
        self.append(head, false).await;
        for table in tables {
            let rows: Vec<Row> = if *table == ITEMS {
                self.items.iter().map(|(id, (zone, note))| row(&[Some(id), Some(zone), Some(note)])).collect()
            } else {
                self.zones.iter().map(|(id, (code, name))| row(&[Some(id), Some(code), Some(name)])).collect()
            };
            let chunks = vec![ChunkPlan { id: ChunkId(0), range: "all".into() }];
            let block = RowBlock {
                table: *table,
                schema: SchemaVersion(1),
                chunk: ChunkId(0),
                count: rows.len() as u32,
                rows: rows.iter().flat_map(|row| row.as_bytes().to_vec()).collect::<Vec<u8>>().into(),
            };
            let mut events = vec![Event::SnapshotBegan { table: *table, chunks }];
            if !rows.is_empty() {
                events.push(Event::Rows(block));
            }
            events.push(Event::ChunkEnded { table: *table, chunk: ChunkId(0), rows: rows.len() as u64 });
            events.push(Event::SnapshotEnded { table: *table, visible: None });
            self.append(events, true).await;
        }
        self.append(vec![Event::BackfillEnded { generation: self.generation }], true).await;
        if tables.contains(&ITEMS) {
            self.touch(self.wanted.keys().cloned().collect());
            self.wanted.clear();
            for (id, (zone, note)) in self.items.clone() {
                let name = self.found(&zone);
                self.wanted.insert(id, (zone, note, name));
            }
            self.touch(self.wanted.keys().cloned().collect());
        }
    }

    fn touch(&mut self, ids: Vec<String>) {
        for (_, touched) in &mut self.touched {
            touched.extend(ids.iter().cloned());
        }
    }

    /// One transaction of the source.
    async fn transaction(&mut self) {
        let events = self.changes_of_one();
        self.append(events, false).await;
        self.touched.push((self.log.tail().cut, BTreeSet::new()));
    }

    fn changes_of_one(&mut self) -> Vec<Event> {
        self.commit += 1;
        let mut events = vec![Event::Began(Transaction { xid: self.commit, commit_time_us: self.commit as i64 })];
        for _ in 0..self.random.random_range(1..5) {
            match self.random.random_range(0..30) {
                0 => {
                    self.zones.clear();
                    events.push(Event::Truncated(Truncate { tables: vec![ZONES], restart_identity: false }));
                }
                1..12 => self.zone_changes(&mut events),
                _ => self.item_changes(&mut events),
            }
        }
        events.push(Event::Committed);
        events
    }

    fn change(table: TableId, op: Op, old: Option<Row>, new: Option<Row>) -> Event {
        Event::Changed(Change { table, schema: SchemaVersion(1), op, old, new })
    }

    fn item_changes(&mut self, events: &mut Vec<Event>) {
        let id = self.random.random_range(0..8u32).to_string();
        let old = row(&[Some(&id)]).cells().chain([Cell::Absent, Cell::Absent]).collect::<Row>();
        self.touch(vec![id.clone()]);
        if self.items.contains_key(&id) && self.random.random_range(0..4) == 0 {
            self.items.remove(&id);
            self.wanted.remove(&id);
            events.push(Self::change(ITEMS, Op::Delete, Some(old), None));
            return;
        }
        let (zone, note) = (self.code(), self.random.random_range(0..1_000u32).to_string());
        let new = row(&[Some(&id), Some(&zone), Some(&note)]);
        let name = self.found(&zone);
        let op = if self.items.contains_key(&id) { Op::Update } else { Op::Insert };
        self.items.insert(id.clone(), (zone.clone(), note.clone()));
        self.wanted.insert(id, (zone, note, name));
        events.push(Self::change(ITEMS, op, None, Some(new)));
    }

    fn code(&mut self) -> String {
        let kind = if self.by_id { "z" } else { "c" };
        format!("{kind}{}", self.random.random_range(0..6u32))
    }

    fn zone_changes(&mut self, events: &mut Vec<Event>) {
        let id = format!("z{}", self.random.random_range(0..6u32));
        let name = format!("name {}", self.random.random_range(0..1_000u32));
        let free: Vec<String> = (0..6u32)
            .map(|code| format!("c{code}"))
            .filter(|code| self.zones.values().all(|(taken, _)| taken != code))
            .collect();
        let Some((code, before)) = self.zones.get(&id).cloned() else {
            let Some(code) = free.first().cloned() else { return };
            events.push(Self::change(ZONES, Op::Insert, None, Some(row(&[Some(&id), Some(&code), Some(&name)]))));
            self.zones.insert(id, (code, name));
            return;
        };
        let whole = self.random.random::<bool>().then(|| row(&[Some(&id), Some(&code), Some(&before)]));
        let key: Row = row(&[Some(&id)]).cells().chain([Cell::Absent, Cell::Absent]).collect();
        match self.random.random_range(0..5) {
            // Its end; the old image is the key, or all of it.
            0 => {
                self.zones.remove(&id);
                events.push(Self::change(ZONES, Op::Delete, Some(whole.unwrap_or(key)), None));
            }
            // Another name.
            1 => {
                let new = row(&[Some(&id), Some(&code), Some(&name)]);
                self.zones.insert(id, (code, name));
                events.push(Self::change(ZONES, Op::Update, whole, Some(new)));
            }
            // Another code, the name not sent.
            2 if !free.is_empty() => {
                let code = free[self.random.random_range(0..free.len())].clone();
                let new = row(&[Some(&id), Some(&code)]).cells().chain([Cell::Unchanged]).collect();
                self.zones.insert(id, (code, before));
                events.push(Self::change(ZONES, Op::Update, whole, Some(new)));
            }
            // Another id, the name not sent.
            3 => {
                let other = format!("z{}", self.random.random_range(0..6u32));
                if self.zones.contains_key(&other) {
                    return;
                }
                let new = row(&[Some(&other), Some(&code)]).cells().chain([Cell::Unchanged]).collect();
                self.zones.remove(&id);
                self.zones.insert(other, (code, before));
                events.push(Self::change(ZONES, Op::Update, Some(whole.unwrap_or(key)), Some(new)));
            }
            // Two zones swap their codes.
            _ => {
                let Some((other, (code_of_other, name_of_other))) =
                    self.zones.iter().find(|(other, _)| **other != id).map(|(id, zone)| (id.clone(), zone.clone()))
                else {
                    return;
                };
                for (id, code) in [(&id, &code_of_other), (&other, &code)] {
                    let new = row(&[Some(id), Some(code)]).cells().chain([Cell::Unchanged]).collect();
                    events.push(Self::change(ZONES, Op::Update, None, Some(new)));
                }
                self.zones.insert(id, (code_of_other, before));
                self.zones.insert(other, (code, name_of_other));
            }
        }
    }

    fn wanted_texts(&self) -> BTreeMap<String, Texts> {
        let whole = |(id, (zone, note, name)): (&String, &(String, String, Option<String>))| {
            (id.clone(), vec![Some(id.clone()), Some(zone.clone()), Some(note.clone()), name.clone()])
        };
        self.wanted.iter().map(whole).collect()
    }
}

/// What survives a kill.
#[derive(Debug, Default)]
struct Kept {
    rows: BTreeMap<(TableId, Key), Row>,
    progress: Option<Progress>,
}

/// A sink of any number of tables, in memory.
struct TablesSink {
    kept: Arc<Mutex<Kept>>,
    schemas: BTreeMap<TableId, Arc<TableSchema>>,
    open: Option<BTreeMap<(TableId, Key), Row>>,
}

impl TablesSink {
    fn new(kept: &Arc<Mutex<Kept>>) -> Self {
        Self { kept: kept.clone(), schemas: BTreeMap::new(), open: None }
    }

    fn write(&self, rows: &mut BTreeMap<(TableId, Key), Row>, change: &Change) {
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
                Write::Boundary => {}
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
struct Misses(AtomicU64);

impl Watch for Misses {
    fn delivered(&self, what: &Delivered) {
        self.0.fetch_add(what.misses, Ordering::Relaxed);
    }
}

/// Delivers what is in the log now, as a process that was just started.
async fn catch_up(model: &Model, routes: &Routes, kept: &Arc<Mutex<Kept>>, folds: &Folds, watch: &Misses) {
    let (_stopper, stop) = stop_channel();
    let (_handle, mut valve) = valve();
    let options = DeliverOptions {
        batch_bytes_max: 700,
        load_bytes_max: 300,
        until: Some(model.log.tail().cut),
        patience: PATIENT,
        folds: folds.clone(),
        ..DeliverOptions::new(Some("simulation"))
    };
    let mut sink = TablesSink::new(kept);
    let ending = deliver(&model.log, routes, &mut sink, &options, watch, &mut valve, stop).await.unwrap();
    assert_eq!(ending, Ending::Reached);
}

/// The target's items, by id.
fn found(routes: &Routes, kept: &Arc<Mutex<Kept>>) -> BTreeMap<String, Texts> {
    let items = routes.target().tables.iter().find(|table| &*table.schema.name.name == "items").unwrap();
    let order: Vec<usize> =
        ["id", "zone", "note", "zone_name"].map(|name| items.schema.column_index(name).unwrap()).to_vec();
    let kept = kept.lock().unwrap();
    let rows = kept.rows.iter().filter(|((table, _), _)| *table == items.schema.id);
    rows.map(|(_, row)| {
        let texts = texts(row);
        let texts: Texts = order.iter().map(|at| texts[*at].clone()).collect();
        (texts[0].clone().unwrap(), texts)
    })
    .collect()
}

/// A few transactions, then now and then another backfill; the sink is caught up, from the beginning of a process, at
/// every turn or only at the end.
async fn grow(model: &mut Model, mut at_every_turn: impl AsyncFnMut(&Model)) {
    for _ in 0..model.random.random_range(0..12) {
        model.zone_changes(&mut Vec::new());
        model.item_changes(&mut Vec::new());
    }
    (model.misses, model.wanted) = (0, BTreeMap::new());
    model.backfill(&[ITEMS, ZONES]).await;
    at_every_turn(model).await;
    for _ in 0..model.random.random_range(1..5) {
        for _ in 0..model.random.random_range(1..8) {
            model.transaction().await;
        }
        at_every_turn(model).await;
        let again: &[TableId] = match model.random.random_range(0..4) {
            0 => &[ITEMS],
            1 => &[ZONES],
            2 => &[ZONES, ITEMS],
            _ => continue,
        };
        model.backfill(again).await;
        at_every_turn(model).await;
    }
}

fn scratch(home: &tempfile::TempDir, seed: u64) -> Scratch {
    // Every other case keeps its rows on disk.
    Scratch { dir: home.path().into(), memory_bytes_max: if seed.is_multiple_of(2) { 1 << 20 } else { 300 } }
}

#[tokio::test(start_paused = true)]
async fn lookups_are_right_at_every_event_through_restarts_and_later_backfills() {
    let home = tempfile::tempdir().unwrap();
    for seed in 0..120 {
        println!("seed {seed}");
        let by_id = seed % 3 == 0;
        let mut model = Model::new(seed, by_id);
        let routes = routes(if by_id { "id" } else { "code" }, scratch(&home, seed));
        let (kept, folds, watch) = (Arc::default(), Folds::default(), Misses::default());
        grow(&mut model, async |model| {
            catch_up(model, &routes, &kept, &folds, &watch).await;
            assert_eq!(found(&routes, &kept), model.wanted_texts(), "seed {seed}");
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_table_without_a_key_is_looked_up_while_it_is_loaded_and_after_it_is_copied_again() {
    let home = tempfile::tempdir().unwrap();
    for seed in 0..20 {
        let mut model = Model { zones_schema: keyless_zones(), ..Model::new(seed, false) };
        let routes = routes_over("code", scratch(&home, seed), &model.zones_schema);
        let (kept, folds, watch) = (Arc::default(), Folds::default(), Misses::default());
        for zone in 0..6 {
            model.zones.insert(format!("z{zone}"), (format!("c{zone}"), format!("name {zone}")));
        }
        for tables in [&[ZONES, ITEMS], &[ITEMS, ZONES], &[ZONES, ITEMS]] {
            (0..5).for_each(|_| model.item_changes(&mut Vec::new()));
            // What was copied away is not found any more; what was copied anew is.
            let gone = format!("z{}", model.random.random_range(0..6u32));
            model.zones.remove(&gone);
            model.backfill(tables).await;
            model.commit += 1;
            let mut events = vec![Event::Began(Transaction { xid: model.commit, commit_time_us: 1 })];
            model.item_changes(&mut events);
            events.push(Event::Committed);
            model.append(events, false).await;
            catch_up(&model, &routes, &kept, &folds, &watch).await;
            assert_eq!(found(&routes, &kept), model.wanted_texts(), "seed {seed}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn lookups_that_find_no_row_are_counted() {
    let home = tempfile::tempdir().unwrap();
    let mut some = 0;
    for seed in 500..540 {
        println!("seed {seed}");
        let mut model = Model::new(seed, false);
        let routes = routes("code", scratch(&home, seed));
        grow(&mut model, async |_| {}).await;
        let (kept, watch) = (Arc::default(), Misses::default());
        catch_up(&model, &routes, &kept, &Folds::default(), &watch).await;
        assert_eq!(found(&routes, &kept), model.wanted_texts(), "seed {seed}");
        assert_eq!(watch.0.load(Ordering::Relaxed), model.misses, "seed {seed}");
        some += model.misses;
    }
    assert!(some > 0, "nothing was ever missed");
}

#[tokio::test(start_paused = true)]
async fn a_healing_replay_looks_up_what_the_first_run_looked_up() {
    let home = tempfile::tempdir().unwrap();
    let mut across_a_backfill = 0;
    for seed in 1_000..1_150 {
        println!("seed {seed}");
        let by_id = seed % 3 == 0;
        let mut model = Model::new(seed, by_id);
        let routes = routes(if by_id { "id" } else { "code" }, scratch(&home, seed));
        grow(&mut model, async |_| {}).await;
        let kept: Arc<Mutex<Kept>> = Arc::default();
        catch_up(&model, &routes, &kept, &Folds::default(), &Misses::default()).await;
        if model.touched.is_empty() {
            continue;
        }
        let at = model.random.random_range(0..model.touched.len());
        let (from, touched) = model.touched[at].clone();
        let generation = kept.lock().unwrap().progress.as_ref().unwrap().generation;
        across_a_backfill +=
            u32::from(generation > 1 && !from.covers(&kept.lock().unwrap().progress.as_ref().unwrap().stream_from));
        let items = routes.target().tables.iter().find(|table| &*table.schema.name.name == "items").unwrap();
        let wanted = model.wanted_texts();
        for ((table, _), row) in &mut kept.lock().unwrap().rows {
            if *table == items.schema.id {
                let id = row.cell(0).unwrap();
                let damaged = Cell::Bytes(b"damaged");
                *row = [id, damaged, damaged, damaged].into_iter().collect();
            }
        }
        let budget = model.random.random_range(100..100_000);
        heal(&model.log, &routes, &mut TablesSink::new(&kept), &from, budget).await.unwrap();
        for (id, texts) in found(&routes, &kept) {
            if touched.contains(&id) {
                assert_eq!(Some(&texts), wanted.get(&id), "seed {seed}, item {id}");
            } else {
                assert_eq!(texts[1].as_deref(), Some("damaged"), "seed {seed}, item {id} was not touched");
            }
        }
        assert_eq!(found(&routes, &kept).len(), wanted.len(), "seed {seed}");
    }
    assert!(across_a_backfill > 5, "hardly a stretch held a later backfill");
}
