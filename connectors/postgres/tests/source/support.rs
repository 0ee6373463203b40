//! A log in memory, and a replica that is computed from it the way deliver does: first a backfill's rows, then the
//! stream from the backfill's beginning. Rows are compared with the source byte by byte, through `COPY (FORMAT binary)`.

use crossfade_connector::{Failure, Resume, SnapshotState, Source, TableSnapshot};
use crossfade_event::{
    Batch, Cell, Change, ChunkId, Event, Frontier, Identity, Op, Position, Row, Rows, Stamped, TableId, TableSchema,
    Visibility,
};
use crossfade_postgres::{Config, PostgresSource, SourceConfig};
use crossfade_testkit::postgres::{Database, Postgres, Version};
use futures::TryStreamExt;
use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Fixture {
    pub(crate) database: Database,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) server: &'static Postgres,
}

impl Fixture {
    pub(crate) async fn new(version: Version, name: &str, sql: &str) -> Option<Self> {
        let server = Postgres::shared(version)?;
        let database = server.create_database(name).await;
        database.execute(sql).await;
        Some(Self { database, folder: tempfile::tempdir().unwrap(), server })
    }

    pub(crate) fn config(&self, tables: &[&str]) -> SourceConfig {
        let url = Config::parse(&self.database.url).unwrap();
        // Slots are the server's, not the database's: the migration is named after the database.
        let name = self.database.name.replace('_', "-");
        let tables = tables.iter().map(|table| (*table).to_owned()).collect();
        SourceConfig::new(url, name, tables, self.folder.path().join("spool"))
    }

    pub(crate) fn source(&self) -> PostgresSource {
        PostgresSource::new(self.config(&["app.*"])).unwrap()
    }

    /// A source that has copied everything, and what it gave.
    pub(crate) async fn copied(&self) -> (PostgresSource, Log) {
        let (mut source, mut log) = (self.source(), Log::default());
        open(&mut source, &mut log).await;
        ingest_all(self, &mut source, &mut log).await;
        (source, log)
    }

    pub(crate) async fn here(&self) -> u64 {
        let text = self.database.value("SELECT pg_current_wal_lsn() - '0/0'").await.unwrap();
        text.parse().unwrap()
    }
}

/// What ingest would have written.
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) events: Vec<Stamped>,
    head: Vec<Stamped>,
    pub(crate) position: Option<Position>,
    pub(crate) batches: usize,
    pub(crate) parts: usize,
}

impl Log {
    pub(crate) fn append(&mut self, batch: Batch) {
        self.batches += 1;
        self.parts += usize::from(!batch.whole);
        let snapshot = batch.events.iter().any(|stamped| stamped.event.is_snapshot());
        assert!(!snapshot || self.head.is_empty(), "rows of a backfill between the parts of a transaction");
        assert!(batch.whole || batch.upto.is_none());
        self.head.extend(batch.events);
        if batch.whole {
            self.events.append(&mut self.head);
        }
        if let Some(upto) = batch.upto {
            assert!(self.position.is_none_or(|before| before <= upto), "the position moved back");
            self.position = Some(upto);
        }
    }

    /// What a restart finds: an unfinished head is gone.
    pub(crate) fn resume(&mut self) -> Resume {
        self.head.clear();
        let mut resume = Resume { position: self.position, ..Resume::default() };
        let mut schemas: BTreeMap<TableId, Arc<TableSchema>> = BTreeMap::new();
        let mut state = SnapshotState::default();
        for stamped in &self.events {
            match &stamped.event {
                Event::SchemaSeen(schema) => {
                    schemas.insert(schema.id, schema.clone());
                }
                Event::BackfillBegan(backfill) => {
                    state = SnapshotState {
                        generation: backfill.generation,
                        ended: false,
                        visible: backfill.visible.clone(),
                        tables: backfill.tables.iter().map(|table| (*table, TableSnapshot::default())).collect(),
                    }
                }
                Event::BackfillEnded { .. } => state.ended = true,
                Event::SnapshotBegan { table, chunks } => {
                    *of(&mut state, *table) = TableSnapshot { chunks: chunks.clone(), ..TableSnapshot::default() }
                }
                Event::ChunkEnded { table, chunk, .. } => {
                    of(&mut state, *table).done.insert(*chunk);
                }
                Event::SnapshotEnded { table, .. } => of(&mut state, *table).ended = true,
                _ => {}
            }
        }
        resume.schemas = schemas.into_values().collect();
        resume.snapshot = state;
        resume
    }

    pub(crate) fn count(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.events.iter().filter(|stamped| wanted(&stamped.event)).count()
    }

    pub(crate) fn has_ended(&self) -> bool {
        let begun = self.count(|event| matches!(event, Event::BackfillBegan(_)));
        begun > 0 && begun == self.count(|event| matches!(event, Event::BackfillEnded { .. }))
    }

    pub(crate) fn changes(&self) -> Vec<Change> {
        self.events
            .iter()
            .filter_map(|stamped| match &stamped.event {
                Event::Changed(change) => Some(change.clone()),
                _ => None,
            })
            .collect()
    }

    pub(crate) fn schema(&self, name: &str) -> Arc<TableSchema> {
        let seen = self.events.iter().rev().find_map(|stamped| match &stamped.event {
            Event::SchemaSeen(schema) if schema.name.to_string() == name => Some(schema.clone()),
            _ => None,
        });
        seen.unwrap_or_else(|| panic!("no schema of {name}"))
    }
}

fn of(state: &mut SnapshotState, table: TableId) -> &mut TableSnapshot {
    &mut state.tables.iter_mut().find(|(id, _)| *id == table).unwrap().1
}

/// Opens, waiting while the last session's slot is still in use.
pub(crate) async fn open(source: &mut PostgresSource, log: &mut Log) {
    let resume = log.resume();
    tokio::time::timeout(PATIENCE, async {
        while let Err(failure) = source.open(resume.clone()).await {
            assert!(failure.is_transient(), "{failure}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the source did not open in time");
}

pub(crate) async fn try_open(source: &mut PostgresSource, log: &mut Log) -> Result<(), Failure> {
    source.open(log.resume()).await
}

/// Takes so many batches.
pub(crate) async fn take(source: &mut PostgresSource, log: &mut Log, batches: usize) {
    for _ in 0..batches {
        if !take_within(source, log, Duration::from_secs(2)).await {
            return;
        }
    }
}

/// Takes a batch if one comes by then.
pub(crate) async fn take_within(source: &mut PostgresSource, log: &mut Log, time: Duration) -> bool {
    let Ok(batch) = tokio::time::timeout(time, source.next()).await else { return false };
    keep(source, log, batch.unwrap_or_else(|failure| panic!("{failure}")).unwrap()).await;
    true
}

/// Takes what comes until something is so in the log or in the database.
pub(crate) async fn take_until(
    source: &mut PostgresSource,
    log: &mut Log,
    why: &str,
    mut wanted: impl AsyncFnMut(&Log) -> bool,
) {
    let began = std::time::Instant::now();
    while !wanted(log).await {
        assert!(began.elapsed() < PATIENCE, "in vain: {why}");
        take_within(source, log, Duration::from_millis(20)).await;
    }
}

async fn keep(source: &mut PostgresSource, log: &mut Log, batch: Batch) {
    let mut frontier = Frontier::at(log.position);
    let ticket = frontier.begin(batch.upto);
    log.append(batch);
    if let Some(durable) = frontier.finish(ticket) {
        source.confirm(durable).await.unwrap();
    }
}

/// Ingests until the backfill is in and the stream has passed `target`.
pub(crate) async fn ingest(source: &mut PostgresSource, log: &mut Log, target: u64) {
    let all = async {
        while !log.has_ended() || log.position.is_none_or(|position| position.commit < target) {
            let batch = source.next().await.unwrap_or_else(|failure| panic!("{failure}")).unwrap();
            keep(source, log, batch).await;
        }
    };
    if tokio::time::timeout(PATIENCE, all).await.is_err() {
        panic!("not ingested in time: ended {}, at {:?}, target {target:X}", log.has_ended(), log.position);
    }
}

/// The tables as the log says they are: rows by key, or counted where there is no key.
#[derive(Default)]
pub(crate) struct Replica {
    schemas: BTreeMap<TableId, Arc<TableSchema>>,
    keyed: BTreeMap<TableId, BTreeMap<Vec<u8>, Row>>,
    counted: BTreeMap<TableId, BTreeMap<Vec<u8>, i64>>,
    visible: BTreeMap<TableId, Visibility>,
    /// What columns are filled with when they are added.
    defaults: BTreeMap<String, Option<Vec<u8>>>,
}

impl Replica {
    pub(crate) async fn compute(log: &Log, database: &Database) -> Self {
        let mut replica = Self { defaults: defaults(log, database).await, ..Self::default() };
        let chunks = ended_chunks(log);
        let mut xid = 0;
        for (index, stamped) in log.events.iter().enumerate() {
            match &stamped.event {
                Event::SchemaSeen(schema) => replica.reshape(schema),
                Event::BackfillBegan(backfill) => replica.load(&log.events[index..], backfill.generation, &chunks),
                Event::Began(transaction) => xid = transaction.xid,
                Event::Changed(change) => replica.apply(change, xid),
                Event::Truncated(truncate) => {
                    for table in &truncate.tables {
                        if replica.visible.get(table).is_none_or(|visible| !visible.sees(xid)) {
                            replica.keyed.remove(table);
                            replica.counted.remove(table);
                        }
                    }
                }
                _ => {}
            }
        }
        replica
    }

    fn load(&mut self, events: &[Stamped], generation: u32, chunks: &HashSet<(TableId, ChunkId)>) {
        let Event::BackfillBegan(backfill) = &events[0].event else { unreachable!() };
        for table in &backfill.tables {
            self.keyed.remove(table);
            self.counted.remove(table);
        }
        for stamped in events {
            match &stamped.event {
                Event::Rows(block) => {
                    assert!(block.check().unwrap());
                    let schema = self.schema_of(block.table, block.schema, events);
                    for row in Rows::new(block.rows.clone()) {
                        let row = self.fit(&row.unwrap(), &schema, block.table);
                        match schema.identity {
                            Identity::Key => {
                                let key = self.schemas[&block.table].key_of(&row).unwrap();
                                self.keyed.entry(block.table).or_default().insert(key.as_bytes().to_vec(), row);
                            }
                            _ if chunks.contains(&(block.table, block.chunk)) => {
                                *self
                                    .counted
                                    .entry(block.table)
                                    .or_default()
                                    .entry(row.as_bytes().to_vec())
                                    .or_default() += 1;
                            }
                            // A chunk that broke off: it was read again under another number.
                            _ => {}
                        }
                    }
                }
                Event::SnapshotEnded { table, visible: Some(visible) } => {
                    self.visible.insert(*table, visible.clone());
                }
                Event::BackfillEnded { generation: ended } if *ended == generation => break,
                _ => {}
            }
        }
    }

    fn schema_of(
        &self,
        table: TableId,
        version: crossfade_event::SchemaVersion,
        events: &[Stamped],
    ) -> Arc<TableSchema> {
        let known = self.schemas.get(&table).filter(|schema| schema.version == version).cloned();
        known.unwrap_or_else(|| {
            events
                .iter()
                .find_map(|stamped| match &stamped.event {
                    Event::SchemaSeen(schema) if schema.id == table && schema.version == version => {
                        Some(schema.clone())
                    }
                    _ => None,
                })
                .unwrap()
        })
    }

    /// A row of another version in the columns of the version known now.
    fn fit(&self, row: &Row, from: &TableSchema, table: TableId) -> Row {
        let to = &self.schemas[&table];
        if from.version == to.version {
            return row.clone();
        }
        let cells: Vec<Cell<'_>> = row.cells().collect();
        to.columns
            .iter()
            .map(|column| match from.columns.iter().position(|old| old.native_id == column.native_id) {
                Some(index) => cells[index],
                None => match column.default.as_ref().and_then(|default| self.defaults[&**default].as_deref()) {
                    Some(bytes) => Cell::Bytes(bytes),
                    None => Cell::Null,
                },
            })
            .collect()
    }

    fn reshape(&mut self, schema: &Arc<TableSchema>) {
        let Some(old) = self.schemas.insert(schema.id, schema.clone()) else { return };
        let keyed = self.keyed.remove(&schema.id).unwrap_or_default();
        let refitted: BTreeMap<_, _> = keyed
            .into_values()
            .map(|row| self.fit(&row, &old, schema.id))
            .map(|row| (schema.key_of(&row).unwrap().as_bytes().to_vec(), row))
            .collect();
        self.keyed.insert(schema.id, refitted);
    }

    fn apply(&mut self, change: &Change, xid: u64) {
        let schema = self.schemas[&change.table].clone();
        assert_eq!(change.schema, schema.version, "a change under a schema that is not the latest");
        if schema.identity == Identity::Key {
            let rows = self.keyed.entry(change.table).or_default();
            let key = |row: &Row| schema.key_of(row).unwrap().as_bytes().to_vec();
            let before = change.old.as_ref().map(key).or_else(|| change.new.as_ref().map(key)).unwrap();
            let old = rows.remove(&before);
            if let Some(new) = &change.new {
                let filled: Row = new
                    .cells()
                    .enumerate()
                    .map(|(index, cell)| match (cell, &old) {
                        (Cell::Unchanged, Some(old)) => old.cell(index).unwrap(),
                        (Cell::Unchanged, None) => panic!("an unchanged value of a row that is not there"),
                        (cell, _) => cell,
                    })
                    .collect();
                rows.insert(key(&filled), filled);
            }
            return;
        }
        if self.visible.get(&change.table).is_some_and(|visible| visible.sees(xid)) {
            return;
        }
        let rows = self.counted.entry(change.table).or_default();
        if let (Op::Update | Op::Delete, Some(old)) = (change.op, &change.old) {
            *rows.get_mut(&old.as_bytes().to_vec()).expect("an old row that was there") -= 1;
        }
        if let Some(new) = &change.new {
            assert!(!new.has_unchanged());
            *rows.entry(new.as_bytes().to_vec()).or_default() += 1;
        }
        rows.retain(|_, count| *count > 0);
    }

    /// All rows of a table, sorted.
    pub(crate) fn rows(&self, table: &str) -> Vec<Vec<u8>> {
        let schema = self.schemas.values().find(|schema| schema.name.to_string() == table);
        let id = schema.unwrap_or_else(|| panic!("{table} is not captured")).id;
        let keyed = self.keyed.get(&id).into_iter().flat_map(BTreeMap::values).map(|row| row.as_bytes().to_vec());
        let counted = self.counted.get(&id).into_iter().flatten();
        let counted = counted.flat_map(|(row, count)| vec![row.clone(); usize::try_from(*count).unwrap()]);
        let mut rows: Vec<_> = keyed.chain(counted).collect();
        rows.sort();
        rows
    }

    /// Compares every captured table with the source.
    pub(crate) async fn assert_equals(&self, database: &Database) {
        for schema in self.schemas.values() {
            let name = schema.name.to_string();
            let there = source_rows(database, schema).await;
            let here = self.rows(&name);
            let lost = there.iter().filter(|row| here.binary_search(row).is_err()).count();
            let ghosts = here.iter().filter(|row| there.binary_search(row).is_err()).count();
            assert!(
                here == there,
                "{name}: {} rows here, {} there, {lost} lost or different, {ghosts} ghosts",
                here.len(),
                there.len()
            );
        }
    }
}

/// Chunks that are wholly in the log.
fn ended_chunks(log: &Log) -> HashSet<(TableId, ChunkId)> {
    log.events
        .iter()
        .filter_map(|stamped| match &stamped.event {
            Event::ChunkEnded { table, chunk, .. } => Some((*table, *chunk)),
            _ => None,
        })
        .collect()
}

async fn defaults(log: &Log, database: &Database) -> BTreeMap<String, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    for stamped in &log.events {
        let Event::SchemaSeen(schema) = &stamped.event else { continue };
        for default in schema.columns.iter().filter_map(|column| column.default.as_deref()) {
            let row = copy(database, &format!("SELECT {default}")).await.remove(0);
            let row = Row::parse(row.into()).unwrap();
            let value = match row.cell(0).unwrap() {
                Cell::Bytes(bytes) => Some(bytes.to_vec()),
                _ => None,
            };
            found.insert(default.to_owned(), value);
        }
    }
    found
}

async fn source_rows(database: &Database, schema: &TableSchema) -> Vec<Vec<u8>> {
    let quote = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let columns: Vec<String> = schema
        .columns
        .iter()
        .map(|column| match column.type_.format {
            crossfade_event::Format::PgText => {
                let name = quote(&column.name);
                format!("CASE WHEN {name} IS DISTINCT FROM NULL THEN format('%s', {name}) END")
            }
            _ => quote(&column.name),
        })
        .collect();
    let table = format!("{}.{}", quote(&schema.name.schema), quote(&schema.name.name));
    let kind = database.value(&format!("SELECT relkind FROM pg_class WHERE oid = {}", schema.native_id)).await;
    let only = if kind.as_deref() == Some("p") { "" } else { "ONLY " };
    copy(database, &format!("SELECT {} FROM {only}{table}", columns.join(", "))).await
}

/// The rows of a query as `COPY (FORMAT binary)` writes them, sorted.
async fn copy(database: &Database, query: &str) -> Vec<Vec<u8>> {
    let client = database.connect().await;
    client
        .batch_execute(
            "SET extra_float_digits = 1; SET bytea_output = hex; SET lc_monetary = 'C'; SET timezone = 'UTC'",
        )
        .await
        .unwrap();
    let sql = format!("COPY ({query}) TO STDOUT (FORMAT binary)");
    let stream = client.copy_out(sql.as_str()).await.unwrap_or_else(|error| panic!("{error:?} in {sql}"));
    let bytes = stream.try_fold(Vec::new(), |mut all, piece| async move {
        all.extend_from_slice(&piece);
        Ok(all)
    });
    let bytes = bytes.await.unwrap();
    // Between the header and the trailer stand the rows.
    let rows = bytes::Bytes::from(bytes[19..bytes.len() - 2].to_vec());
    let mut rows: Vec<Vec<u8>> = Rows::new(rows).map(|row| row.unwrap().as_bytes().to_vec()).collect();
    rows.sort();
    rows
}

/// From an empty log to the source's end of now, in one go; then everything is compared.
pub(crate) async fn ingest_all(fixture: &Fixture, source: &mut PostgresSource, log: &mut Log) -> Replica {
    let target = fixture.here().await;
    ingest(source, log, target).await;
    let replica = Replica::compute(log, &fixture.database).await;
    replica.assert_equals(&fixture.database).await;
    replica
}

/// Whether no transaction is kept in a spool folder, only notes.
pub(crate) fn keeps_no_transaction(folder: &Path) -> bool {
    std::fs::read_dir(folder)
        .unwrap()
        .all(|entry| ["making-slot", "heaps"].map(Into::into).contains(&entry.unwrap().file_name()))
}
