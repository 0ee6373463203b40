//! Transform workers against deliver alone: whatever they have made, and under whatever shapes, the sink is handed the same.

use crate::{PATIENT, column};
use bytes::Bytes;
use crossfade_connector::{Applied, Delivery, Failure, Guard, Progress, Sink, Target, TargetTable, Write};
use crossfade_event::{
    Backfill, Batch, Cell, Change, ChunkId, ChunkPlan, Cut, Event, Identity, Key, Op, Position, Row, RowBlock,
    SchemaVersion, Sequence, SourceId, Stamped, TableId, TableName, TableSchema, Transaction, Truncate, Version,
    catalog::{Catalog, Dialect},
};
use crossfade_log::{Entries, EventLog, Lane, LogError, LogReader, Tail, memory::Memory};
use crossfade_pipeline::{
    DeliverOptions, Delivered, Ending, Maker, Routes, Watch, deliver, evolve_catalog, stop_channel, valve,
};
use crossfade_transform::PlanOptions;
use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

const ITEMS: TableId = TableId(1);
const ZONES: TableId = TableId(2);
const PLAIN: TableId = TableId(3);

/// `name(id primary key, a, b …)`
fn schema(id: TableId, version: u32, name: &str, columns: &[&str]) -> Arc<TableSchema> {
    Arc::new(TableSchema {
        id,
        version: SchemaVersion(version),
        name: TableName::new("public", name),
        columns: columns
            .iter()
            .enumerate()
            .map(|(at, name)| column(name, at as u32 + 1, (at == 0).then_some(0)))
            .collect(),
        identity: Identity::Key,
        native_id: 100 + id.0,
    })
}

fn items(version: u32) -> Arc<TableSchema> {
    let columns = ["id", "word", "figure", "more", "most"];
    schema(ITEMS, version, "items", &columns[..version as usize + 2])
}

/// Looks up a name among the items.
fn zones() -> Arc<TableSchema> {
    schema(ZONES, 1, "zones", &["id", "item"])
}

fn plain() -> Arc<TableSchema> {
    schema(PLAIN, 1, "plain", &["id", "word"])
}

fn routes() -> Routes {
    let mut catalog = Catalog {
        dialect: Dialect::Postgres,
        tables: Vec::new(),
        types: Vec::new(),
        sequences: Vec::new(),
        extensions: Vec::new(),
    };
    for schema in [items(1), zones(), plain()] {
        evolve_catalog(&mut catalog, &schema);
    }
    let rules = serde_json::json!({ "table": [
        { "from": "public.items", "steps": [
            { "mask": "word", "with": "stars" }, { "filter": "id <> '3'" }, { "cast": "figure", "to": "integer" },
        ] },
        { "from": "public.zones", "steps": [
            { "lookup": "public.items", "on": { "id": "item" }, "take": { "item_word": "word" } },
        ] },
    ]});
    let rules = Arc::new(serde_json::from_value(rules).unwrap());
    Routes::new(catalog, rules, Arc::new(PlanOptions::default()), "simulation", 1, false).unwrap()
}

fn row(cells: &[&str]) -> Row {
    cells.iter().map(|cell| Cell::Bytes(cell.as_bytes())).collect()
}

/// A log that grows by transactions.
struct Growing {
    log: Memory,
    commit: u64,
}

impl Growing {
    fn stamped(&mut self, events: Vec<Event>) -> Vec<Stamped> {
        self.commit += 1;
        let position = Position { source: SourceId(7), timeline: 1, commit: self.commit, ordinal: u32::MAX };
        events.into_iter().map(|event| Stamped { position, event }).collect()
    }

    async fn append(&mut self, events: Vec<Event>, is_stream: bool) {
        let events = self.stamped(events);
        let upto = events.last().filter(|_| is_stream).map(|last| last.position);
        self.log.append(Batch { events, upto, whole: true }).await.unwrap();
    }

    async fn transaction(&mut self, changes: Vec<Event>) {
        let began = Event::Began(Transaction { xid: self.commit, commit_time_us: 0 });
        let events = [began].into_iter().chain(changes).chain([Event::Committed]).collect();
        self.append(events, true).await;
    }

    /// Inserts, updates and deletes in all tables, the items in this shape.
    async fn changes(&mut self, version: u32, from: u32) {
        let item = |id: u32, word: &str, figure: &str| {
            let id = id.to_string();
            row(&[&id, word, figure, "more", "most"][..version as usize + 2])
        };
        let change = |table, version, op, old, new| {
            Event::Changed(Change { table, schema: SchemaVersion(version), op, old, new })
        };
        let mut events = Vec::new();
        for id in from..from + 12 {
            let figure = if id % 5 == 0 { "none" } else { "17" };
            events.push(change(ITEMS, version, Op::Insert, None, Some(item(id, "word", figure))));
            let text = id.to_string();
            events.push(change(ZONES, 1, Op::Insert, None, Some(row(&[&text, &text]))));
            events.push(change(PLAIN, 1, Op::Insert, None, Some(row(&[&text, "as it is"]))));
        }
        self.transaction(events).await;
        let moved =
            change(ITEMS, version, Op::Update, Some(item(from, "word", "17")), Some(item(from + 500, "w", "4")));
        let gone = change(ITEMS, version, Op::Delete, Some(item(from + 1, "word", "17")), None);
        self.transaction(vec![moved, gone]).await;
    }

    async fn seen(&mut self, schema: Arc<TableSchema>) {
        self.append(vec![Event::SchemaSeen(schema)], true).await;
    }

    /// A copy, with changes and a new shape on the way.
    async fn backfill(&mut self, generation: u32, before: u32, after: u32) {
        let tables = vec![ITEMS];
        self.append(vec![Event::BackfillBegan(Backfill { generation, tables, visible: None })], true).await;
        self.changes(before, generation * 1_000).await;
        self.append(vec![self.rows(before, "first")], false).await;
        self.seen(items(after)).await;
        self.changes(after, generation * 1_000 + 100).await;
        self.append(vec![self.rows(after, "second")], false).await;
        let chunks = vec![ChunkPlan { id: ChunkId(0), range: "all".into() }];
        let ends = vec![
            Event::SnapshotBegan { table: ITEMS, chunks },
            Event::ChunkEnded { table: ITEMS, chunk: ChunkId(0), rows: 0 },
            Event::SnapshotEnded { table: ITEMS, visible: None },
            Event::BackfillEnded { generation },
        ];
        self.append(ends, false).await;
        self.changes(after, generation * 1_000 + 200).await;
    }

    fn rows(&self, version: u32, word: &str) -> Event {
        let mut rows = Vec::new();
        for id in 0..9u32 {
            let id = (id + self.commit as u32 * 10_000).to_string();
            rows.extend_from_slice(row(&[&id, word, "3", "more", "most"][..version as usize + 2]).as_bytes());
        }
        let block =
            RowBlock { table: ITEMS, schema: SchemaVersion(version), chunk: ChunkId(0), count: 9, rows: rows.into() };
        Event::Rows(block)
    }
}

/// The log, with what workers have made of it: one for each partition, which sees its own rows and what belongs to none.
#[derive(Clone)]
struct WithWorkers {
    log: Memory,
    routes: Routes,
}

struct MadeReader<R> {
    reader: R,
    made: HashMap<Sequence, Bytes>,
}

impl EventLog for WithWorkers {
    type Reader = MadeReader<<Memory as EventLog>::Reader>;

    fn partitions(&self) -> u32 {
        self.log.partitions()
    }

    fn append(&self, batch: Batch) -> impl Future<Output = Result<Cut, LogError>> + Send + 'static {
        self.log.append(batch)
    }

    fn abandon(&self) -> impl Future<Output = Result<(), LogError>> + Send + 'static {
        self.log.abandon()
    }

    fn read(&self, from: &Cut, lane: Lane) -> Result<Self::Reader, LogError> {
        Ok(MadeReader { reader: self.log.read(from, lane)?, made: HashMap::new() })
    }

    fn read_made(&self, from: &Cut, lane: Lane) -> Result<Self::Reader, LogError> {
        let mut made = HashMap::new();
        for partition in 0..self.log.partitions() {
            let mut maker = Maker::new(self.log.clone(), self.routes.clone(), &[]).unwrap();
            let mut reader = self.log.read(&self.log.start(), Lane::All)?;
            while let Some(entries) = reader.try_next()? {
                for (at, entry) in entries.entries.into_iter().enumerate() {
                    let is_of_rows = matches!(entry.event, Event::Changed(_) | Event::Rows(_));
                    if is_of_rows && entry.partition.0 != partition {
                        continue;
                    }
                    // Whoever takes a partition over goes on with the shapes that were noted.
                    if at % 3 == 0 {
                        let followed = maker.followed();
                        maker = Maker::new(self.log.clone(), self.routes.clone(), &followed).unwrap();
                    }
                    if let Some(bytes) = maker.take(&entry).unwrap() {
                        made.insert(entry.sequence, bytes);
                    }
                }
            }
        }
        Ok(MadeReader { reader: self.log.read(from, lane)?, made })
    }

    fn tail(&self) -> Tail {
        self.log.tail()
    }

    fn start(&self) -> Cut {
        self.log.start()
    }

    fn schema(&self, table: TableId, version: SchemaVersion) -> Option<Arc<TableSchema>> {
        self.log.schema(table, version)
    }

    fn latest_schemas(&self) -> Vec<Arc<TableSchema>> {
        self.log.latest_schemas()
    }

    fn hold(&self, consumer: &str, cut: &Cut) -> Result<(), LogError> {
        self.log.hold(consumer, cut)
    }

    fn release(&self, consumer: &str) -> Result<(), LogError> {
        self.log.release(consumer)
    }

    fn trim(&self, below: &Cut, force: bool) -> Result<Cut, LogError> {
        self.log.trim(below, force)
    }
}

impl<R: LogReader> LogReader for MadeReader<R> {
    async fn next(&mut self) -> Result<Entries, LogError> {
        self.reader.next().await
    }

    fn try_next(&mut self) -> Result<Option<Entries>, LogError> {
        self.reader.try_next()
    }

    fn made(&mut self, sequence: Sequence) -> Option<Bytes> {
        self.made.remove(&sequence)
    }
}

/// Notes what it is handed, in order.
#[derive(Default)]
struct Notes {
    handed: Vec<(Version, String, Vec<Bytes>)>,
    progress: Option<Progress>,
}

struct NotingSink(Arc<Mutex<Notes>>);

fn images(change: &Change) -> Vec<Bytes> {
    [&change.old, &change.new].into_iter().flatten().map(|row| row.as_bytes().clone()).collect()
}

impl Sink for NotingSink {
    async fn prepare(&mut self, _target: &Target) -> Result<(), Failure> {
        Ok(())
    }

    async fn alter(&mut self, _before: &TargetTable, _after: &TargetTable) -> Result<(), Failure> {
        Ok(())
    }

    async fn progress(&mut self) -> Result<Option<Progress>, Failure> {
        Ok(self.0.lock().unwrap().progress.clone())
    }

    async fn apply(&mut self, delivery: Delivery, _guard: Guard) -> Result<Applied, Failure> {
        let mut notes = self.0.lock().unwrap();
        for write in &delivery.writes {
            notes.handed.push(match write {
                Write::Rows { table, at, rows, .. } => (*at, format!("rows of {table:?}"), vec![rows.clone()]),
                Write::Change { at, change } => {
                    let what = format!("{:?} of {:?} version {:?}", change.op, change.table, change.schema);
                    (*at, what, images(change))
                }
                Write::Truncate { at, tables } => (*at, format!("truncate {tables:?}"), Vec::new()),
                Write::Reject(rejection) => {
                    let what = format!(
                        "rejected of {:?}: {} {:?}",
                        rejection.table,
                        rejection.reason,
                        rejection.key.is_some()
                    );
                    (rejection.at, what, images(&rejection.change))
                }
                Write::Began { .. } | Write::Boundary => continue,
            });
        }
        notes.progress = Some(delivery.upto);
        Ok(Applied::default())
    }

    async fn finish_load(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    async fn read_row(&mut self, _table: TableId, _key: &Key) -> Result<Option<Row>, Failure> {
        Ok(None)
    }
}

#[derive(Default)]
struct Made(AtomicU64, AtomicU64);

impl Watch for Made {
    fn delivered(&self, what: &Delivered) {
        self.0.fetch_add(what.made, Ordering::Relaxed);
        self.1.fetch_add(what.read, Ordering::Relaxed);
    }
}

/// Delivers what is in the log now, as a process that was just started.
async fn catch_up<L: EventLog>(log: &L, notes: &Arc<Mutex<Notes>>, watch: &Made) {
    let (_stopper, stop) = stop_channel();
    let (_handle, mut valve) = valve();
    let options = DeliverOptions {
        made: true,
        // A batch of its own for each: how rows of several blocks are put together is the same then.
        batch_bytes_max: 1,
        load_bytes_max: 1,
        until: Some(log.tail().cut),
        patience: PATIENT,
        ..DeliverOptions::new(None)
    };
    let mut sink = NotingSink(notes.clone());
    let ending = deliver(log, &routes(), &mut sink, &options, watch, &mut valve, stop).await.unwrap();
    assert_eq!(ending, Ending::Reached);
}

#[tokio::test(start_paused = true)]
async fn deliver_hands_on_the_same_with_workers_and_without() {
    let mut growing = Growing { log: Memory::with(8, true), commit: 1 };
    for schema in [items(1), zones(), plain()] {
        growing.seen(schema).await;
    }
    let (alone, helped) = (Arc::<Mutex<Notes>>::default(), Arc::<Mutex<Notes>>::default());
    let watch = Made::default();
    for (generation, before, after) in [(1, 1, 2), (2, 2, 3)] {
        growing.backfill(generation, before, after).await;
        let truncate = Event::Truncated(Truncate { tables: vec![PLAIN], restart_identity: false });
        growing.transaction(vec![truncate]).await;
        growing.changes(after, generation * 1_000 + 300).await;
        catch_up(&growing.log, &alone, &Made::default()).await;
        catch_up(&WithWorkers { log: growing.log.clone(), routes: routes() }, &helped, &watch).await;
        let (alone, helped) = (alone.lock().unwrap(), helped.lock().unwrap());
        assert_eq!(alone.handed.len(), helped.handed.len());
        for (alone, helped) in alone.handed.iter().zip(&helped.handed) {
            assert_eq!(alone, helped);
        }
        assert_eq!(alone.progress, helped.progress);
    }
    let count = |word: &str| alone.lock().unwrap().handed.iter().filter(|(_, what, _)| what.contains(word)).count();
    assert!(count("rejected") > 5 && count("truncate") > 1 && count("rows of") > 3, "not all kinds have come");
    let by_table: BTreeMap<bool, u64> = BTreeMap::from([(true, watch.0.into_inner()), (false, watch.1.into_inner())]);
    assert!(by_table[&true] * 4 > by_table[&false], "hardly anything came from the workers: {by_table:?}");
}
