//! From one file to another, without the pipeline between: random writers, a real source and a real sink.

use crate::{
    fixture::{SinkFile, rows},
    source::Followed,
    stress::{SCHEMA, TABLES, seed, write},
};
use crossfade_connector::{Delivery, Guard, Inspect, Progress, Sink, Stage, Target, TargetTable, Write, WriteMode};
use crossfade_event::{
    Cut, Event, Offset, SchemaVersion, Sequence, TableSchema, Version,
    catalog::{ColumnDef, TableDef},
};
use crossfade_sqlite::{SqliteInspect, SqliteSink};
use crossfade_testkit::{
    sink_suite::SinkFixture,
    source_suite::{SourceFixture, assert_same},
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use std::sync::{Arc, atomic::AtomicBool};

fn target_table(schema: &Arc<TableSchema>, def: &TableDef) -> TargetTable {
    let columns = schema.columns.iter().map(|column| {
        let known = def.columns.iter().find(|known| known.column.native_id == column.native_id);
        let made =
            || ColumnDef { default: column.default.as_deref().map(str::to_owned), ..ColumnDef::plain(column.clone()) };
        ColumnDef { column: column.clone(), ..known.cloned().unwrap_or_else(made) }
    });
    if schema.version == SchemaVersion(1) {
        return TargetTable { schema: schema.clone(), def: def.clone(), mode: WriteMode::Table };
    }
    let generated = def.columns.iter().filter(|column| column.generated.is_some()).cloned();
    let def = TableDef { columns: columns.chain(generated).collect(), ..def.clone() };
    TargetTable { schema: schema.clone(), def, mode: WriteMode::Table }
}

/// Writes what a model has taken.
pub(crate) struct Delivered {
    pub(crate) file: SinkFile,
    sink: SqliteSink,
    tables: Vec<TargetTable>,
    done: usize,
}

impl Delivered {
    pub(crate) async fn new(it: &Followed, names: &[&str]) -> Self {
        let file = SinkFile::new();
        let patterns: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let catalog = SqliteInspect::new(it.file.config(), "").catalog(&patterns).await.unwrap();
        let tables = catalog.tables.iter().map(|def| target_table(&it.model.schema(&def.name.name), def)).collect();
        let mut delivered = Self { sink: file.sink("m"), file, tables, done: 0 };
        delivered.restart().await;
        delivered.follow(it).await;
        delivered.sink.finish_load().await.unwrap();
        delivered
    }

    async fn restart(&mut self) {
        self.sink = self.file.sink("m");
        let (tables, support) = (self.tables.clone(), self.file.support());
        let target = Target { migration: "m".into(), epoch: 1, tables, support, into_existing: false };
        self.sink.prepare(&target).await.unwrap();
    }

    async fn deliver(&mut self, writes: Vec<Write>) {
        let upto = Progress {
            cut: Cut::single(Offset(self.done as u64)),
            stage: Stage::Streaming,
            generation: 1,
            stream_from: Cut::single(Offset(0)),
            sequence: None,
            position: None,
            schemas: Vec::new(),
        };
        let applied = self.sink.apply(Delivery { writes, upto, commits: true }, Guard::Forward).await.unwrap();
        let why = applied.rejected.first().map(|one| &one.reason);
        assert_eq!((applied.rejected.len(), applied.held), (0, 0), "{why:?}");
    }

    pub(crate) async fn follow(&mut self, it: &Followed) {
        let mut writes = Vec::new();
        for stamped in &it.model.events()[self.done..] {
            self.done += 1;
            let at = Version { sequence: Sequence(self.done as u64), ordinal: 0 };
            match &stamped.event {
                Event::Rows(block) => {
                    writes.push(Write::Rows { table: block.table, at, count: block.count, rows: block.rows.clone() });
                }
                Event::Changed(change) => writes.push(Write::Change { at, change: change.clone() }),
                Event::Committed => writes.push(Write::Boundary),
                Event::SchemaSeen(schema) => {
                    let place = self.tables.iter().position(|table| table.schema.id == schema.id).unwrap();
                    if schema.version > self.tables[place].schema.version {
                        self.deliver(std::mem::take(&mut writes)).await;
                        let after = target_table(schema, &self.tables[place].def);
                        self.sink.alter(&self.tables[place], &after).await.unwrap();
                        self.tables[place] = after;
                    }
                }
                _ => {}
            }
        }
        self.deliver(writes).await;
    }

    pub(crate) fn assert_same(&self, it: &Followed) {
        for table in &self.tables {
            let name = &*table.schema.name.name;
            assert_same(name, &rows(&self.file.connection(), name), &it.file.read(name));
        }
    }
}

fn statement(rng: &mut StdRng, columns: &[String]) -> String {
    let n = rng.random_range(0..30);
    let mut one = || format!("\"{}\"", columns.choose(rng).unwrap());
    let (a, b) = (one(), one());
    match rng.random_range(0..9) {
        0..=2 => format!("INSERT OR REPLACE INTO t (id, {a}) VALUES ('{n}', 'i{n}')"),
        3..=5 => format!("UPDATE t SET {a} = coalesce({a}, '') || 'u' WHERE id = '{n}'"),
        6 => format!("UPDATE t SET {a} = {b}, {b} = {a} WHERE id > '{n}' AND {a} <> {b}"),
        7 => format!("DELETE FROM t WHERE id = '{n}'"),
        _ => format!("UPDATE OR IGNORE t SET id = '{n}' WHERE id = '{}'", n + 1),
    }
}

/// Gives columns names that others had a moment before, in one transaction.
fn shuffle(rng: &mut StdRng, columns: &mut Vec<String>, version: usize) -> String {
    let mut sql = String::from("BEGIN;");
    for (at, name) in columns.iter().enumerate() {
        sql.push_str(&format!("ALTER TABLE t RENAME COLUMN \"{name}\" TO \"aside{at}\";"));
    }
    let turn = rng.random_range(0..columns.len());
    columns.rotate_left(turn);
    if rng.random_bool(0.3) {
        let upper = columns[0].to_uppercase();
        columns[0] = if upper == columns[0] { columns[0].to_lowercase() } else { upper };
    }
    for (at, name) in columns.iter().enumerate() {
        sql.push_str(&format!("ALTER TABLE t RENAME COLUMN \"aside{at}\" TO \"{name}\";"));
    }
    if columns.len() < 6 && rng.random_bool(0.3) {
        columns.push(format!("more {version}"));
        sql.push_str(&format!("ALTER TABLE t ADD COLUMN \"more {version}\" TEXT DEFAULT 'd{version}';"));
    }
    sql + "COMMIT"
}

async fn shuffled(key: &str, seed: u64) {
    println!("SEED={seed} ({key})");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut columns: Vec<String> = ["a", "from", "c d"].map(str::to_owned).into();
    let mut it = Followed::new(
        &format!("CREATE TABLE t ({key}, a TEXT, \"from\" TEXT, \"c d\" TEXT); INSERT INTO t VALUES ('1', 'x', 'y', 'z'), ('2', 'p', 'q', 'r')"),
        &["t"],
    )
    .await;
    let mut delivered = Delivered::new(&it, &["t"]).await;
    for version in 0..25 {
        for _ in 0..rng.random_range(0..12) {
            it.file.run(&statement(&mut rng, &columns));
        }
        // Without a key, what changed between the change of the table and its notice cannot be made good: it is a stop.
        if key == "id TEXT" {
            it.catch_up().await;
        }
        let runs = rng.random_bool(0.5);
        if !runs {
            drop(std::mem::replace(&mut it.source, it.file.source(&["t"])));
        }
        it.file.run(&shuffle(&mut rng, &mut columns, version));
        for _ in 0..if key == "id TEXT" { 0 } else { rng.random_range(0..5) } {
            it.file.run(&statement(&mut rng, &columns));
        }
        if !runs {
            it.reopen(&["t"]).await.unwrap();
            delivered.restart().await;
        }
        let wanted = |it: &Followed| {
            let schema = it.model.schema("t");
            schema.columns[1..].iter().map(|column| column.name.to_string()).eq(columns.iter().cloned())
        };
        while !wanted(&it) {
            it.next().await;
        }
        it.catch_up().await;
        delivered.follow(&it).await;
        delivered.assert_same(&it);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_are_shuffled_under_writers_end_equal_in_the_target() {
    let seed = seed();
    for key in ["id TEXT PRIMARY KEY", "id INTEGER PRIMARY KEY", "id TEXT"] {
        shuffled(key, seed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_writers_do_comes_out_equal_in_the_target_with_nothing_refused() {
    let seed = seed();
    println!("SEED={seed}");
    for round in 0..4 {
        let seed = seed.wrapping_add(round * 1000);
        let file = crate::fixture::SourceFile::new("wal");
        file.run(SCHEMA);
        let quiet = AtomicBool::new(false);
        write(&file.path(), seed, &quiet, 50);
        let mut it = Followed::of(file, &TABLES).await;
        let mut delivered = Delivered::new(&it, &TABLES).await;
        for part in 1..12 {
            write(&it.file.path(), seed.wrapping_add(part), &quiet, 25);
            it.catch_up().await;
            delivered.follow(&it).await;
            delivered.assert_same(&it);
        }
    }
}
