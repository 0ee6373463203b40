//! How fast the PostgreSQL sink applies, alone: synthetic deliveries against a real server with `fsync` on.
//!
//! `cargo run --release -p crossfade-postgres --example apply_bench [URL]` prints rows and changes a second, CPU seconds
//! per million changes of this process and of the server, and the latency of small transactions. Without a URL it
//! starts a server of its own.

use bytes::BytesMut;
use crossfade_connector::{Delivery, Failure, Guard, Progress, Sink, Stage, Target, TargetTable, Write, WriteMode};
use crossfade_event::{
    Cell, Change, Column, ColumnType, Cut, Format, Identity, Logical, Offset, Op, Position, Row, SchemaVersion,
    Sequence, SourceId, TableId, TableName, TableSchema, Version,
    catalog::{Catalog, ColumnDef, Dialect, KeyDef, TableDef},
};
use crossfade_postgres::{Config, PostgresSink, SinkConfig};
use crossfade_testkit::postgres::{Postgres, Settings, Version as ServerVersion};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

const ROWS: i64 = 1_000_000;
const CHANGES: usize = 500_000;
const DELIVERY_BYTES: usize = 4 << 20;

fn column(name: &str, type_: &str, native_id: u32, logical: Logical, key: Option<u16>) -> Column {
    Column {
        name: name.into(),
        type_: ColumnType { name: type_.into(), native_id, logical, format: Format::PgBinary },
        key,
        nullable: key.is_none(),
        native_id: 0,
        default: None,
    }
}

fn table() -> TargetTable {
    let columns = vec![
        column("id", "bigint", 20, Logical::Int64, Some(0)),
        column("owner", "integer", 23, Logical::Int32, None),
        column("amount", "bigint", 20, Logical::Int64, None),
        column("made", "timestamp with time zone", 1184, Logical::TimestampTz, None),
        column("note", "text", 25, Logical::Text, None),
    ];
    let name = TableName::new("bench", "orders");
    let def = |column: &Column| ColumnDef::plain(column.clone());
    TargetTable {
        def: TableDef::plain(
            name.clone(),
            Identity::Key,
            columns.iter().map(def).collect(),
            Some(KeyDef::plain("orders_pkey", vec!["id".to_owned()])),
        ),
        schema: Arc::new(TableSchema {
            id: TableId(1),
            version: SchemaVersion(1),
            name,
            columns,
            identity: Identity::Key,
            native_id: 0,
        }),
        mode: WriteMode::Table,
    }
}

fn row(id: i64, salt: i64) -> Row {
    let note = format!("{salt:0>120}");
    [
        Cell::Bytes(&id.to_be_bytes()),
        Cell::Bytes(&((id % 1000) as i32).to_be_bytes()),
        Cell::Bytes(&salt.to_be_bytes()),
        Cell::Bytes(&(salt * 1000).to_be_bytes()),
        Cell::Bytes(note.as_bytes()),
    ]
    .into_iter()
    .collect()
}

fn key_only(id: i64) -> Row {
    [Cell::Bytes(&id.to_be_bytes()), Cell::Absent, Cell::Absent, Cell::Absent, Cell::Absent].into_iter().collect()
}

fn change(op: Op, old: Option<Row>, new: Option<Row>) -> Change {
    Change { table: TableId(1), schema: SchemaVersion(1), op, old, new }
}

/// The mix of the comparison with `CREATE SUBSCRIPTION`: of each hundred, 50 inserts, 40 updates, 10 deletes.
struct Mix {
    next: i64,
    oldest: i64,
    state: u64,
    number: usize,
}

impl Mix {
    fn change(&mut self) -> Change {
        let kind = self.number % 10;
        self.number += 1;
        match kind {
            0 | 2 | 4 | 6 | 8 => {
                self.next += 1;
                change(Op::Insert, None, Some(row(self.next, self.next)))
            }
            9 => {
                self.oldest += 1;
                change(Op::Delete, Some(key_only(self.oldest)), None)
            }
            _ => {
                self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let span = (self.next - self.oldest) as u64;
                let id = self.oldest + 1 + ((self.state >> 33) % span) as i64;
                change(Op::Update, None, Some(row(id, self.number as i64)))
            }
        }
    }
}

struct Bench {
    sink: PostgresSink,
    offset: u64,
}

impl Bench {
    fn upto(&mut self, stage: Stage) -> Progress {
        self.offset += 1;
        Progress {
            cut: Cut::single(Offset(self.offset)),
            stage,
            generation: 1,
            stream_from: Cut::single(Offset(0)),
            sequence: None,
            position: Some(Position { source: SourceId(1), timeline: 1, commit: self.offset, ordinal: u32::MAX }),
            schemas: vec![(TableId(1), SchemaVersion(1))],
        }
    }

    async fn apply(&mut self, stage: Stage, writes: Vec<Write>) -> Result<(), Failure> {
        let upto = self.upto(stage);
        let applied = self.sink.apply(Delivery { writes, upto, commits: true }, Guard::Forward).await?;
        assert!(applied.rejected.is_empty(), "a change was rejected");
        Ok(())
    }
}

/// CPU seconds of this process, or of the server's processes.
fn cpu(pids: &[u32]) -> f64 {
    let ticks = |pid: &u32| -> Option<u64> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = text.rsplit(')').next()?.split_whitespace().collect();
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    };
    pids.iter().filter_map(ticks).sum::<u64>() as f64 / 100.0
}

fn report(what: &str, count: f64, unit: &str, took: Duration, own: f64, server: f64) {
    println!(
        "{what:<34} {:>10.0} {unit}/s   cpu s per million: own {:.1}, server {:.1}",
        count / took.as_secs_f64(),
        own * 1e6 / count,
        server * 1e6 / count
    );
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = match std::env::args().nth(1) {
        Some(_) => None,
        None => Postgres::start(ServerVersion::V15, Settings::new().fsync().set("shared_buffers", "512MB")),
    };
    let url = match (&server, std::env::args().nth(1)) {
        (_, Some(url)) => url,
        (Some(server), None) => server.create_database("bench").await.url,
        (None, None) => return Err("no server and no URL".into()),
    };
    let pids = || server.as_ref().map(Postgres::pids).unwrap_or_default();
    let own = [std::process::id()];
    let mut bench = Bench { sink: PostgresSink::new(SinkConfig::new(Config::parse(&url)?, "bench")), offset: 0 };
    let target = Target {
        migration: "bench".to_owned(),
        epoch: 1,
        tables: vec![table()],
        support: Catalog {
            dialect: Dialect::Postgres,
            tables: Vec::new(),
            types: Vec::new(),
            sequences: Vec::new(),
            extensions: Vec::new(),
        },
        into_existing: false,
    };
    bench.sink.prepare(&target).await?;

    let mut blocks = Vec::new();
    let mut block = BytesMut::new();
    let mut count = 0u32;
    for id in 1..=ROWS {
        block.extend_from_slice(row(id, id).as_bytes());
        count += 1;
        if block.len() > 256 << 10 || id == ROWS {
            let at = Version { sequence: Sequence(id as u64), ordinal: 0 };
            blocks.push(Write::Rows { table: TableId(1), at, count, rows: block.split().freeze() });
            count = 0;
        }
    }
    let (started, own_before, server_before) = (Instant::now(), cpu(&own), cpu(&pids()));
    let mut blocks = blocks.into_iter().peekable();
    while blocks.peek().is_some() {
        let writes = blocks.by_ref().take(32).collect();
        bench.apply(Stage::Loading, writes).await?;
    }
    report("load", ROWS as f64, "rows", started.elapsed(), cpu(&own) - own_before, cpu(&pids()) - server_before);
    let started = Instant::now();
    bench.sink.finish_load().await?;
    println!("{:<34} {:>10.2} s", "primary key and statistics", started.elapsed().as_secs_f64());

    let mut mix = Mix { next: ROWS, oldest: 0, state: 7, number: 0 };
    for batch_bytes in [DELIVERY_BYTES, DELIVERY_BYTES / 8, DELIVERY_BYTES / 64] {
        let mut deliveries = Vec::new();
        let (mut writes, mut bytes) = (Vec::new(), 0);
        for number in 0..CHANGES {
            let change = mix.change();
            bytes += change.size_bytes();
            writes.push(Write::Change { at: Version { sequence: Sequence(number as u64), ordinal: 0 }, change });
            if number % 100 == 99 {
                writes.push(Write::Boundary);
                if bytes > batch_bytes {
                    deliveries.push(std::mem::take(&mut writes));
                    bytes = 0;
                }
            }
        }
        deliveries.push(writes);
        let many = deliveries.len();
        let (started, own_before, server_before) = (Instant::now(), cpu(&own), cpu(&pids()));
        for writes in deliveries {
            bench.apply(Stage::Streaming, writes).await?;
        }
        let took = started.elapsed();
        let what = format!("mix in {many} deliveries");
        report(&what, CHANGES as f64, "changes", took, cpu(&own) - own_before, cpu(&pids()) - server_before);
    }

    let mut took = Vec::new();
    let (own_before, server_before, started) = (cpu(&own), cpu(&pids()), Instant::now());
    for number in 0..5000i64 {
        let change = change(Op::Update, None, Some(row(900_000 + number, number)));
        let at = Version { sequence: Sequence(number as u64), ordinal: 0 };
        let begun = Instant::now();
        bench.apply(Stage::Streaming, vec![Write::Change { at, change }, Write::Boundary]).await?;
        took.push(begun.elapsed());
    }
    let all = started.elapsed();
    took.sort();
    let at = |part: f64| took.get((took.len() as f64 * part) as usize).copied().unwrap_or_default();
    println!("{:<34} p50 {:?}  p99 {:?}  max {:?}", "one change a delivery", at(0.5), at(0.99), at(0.9999));
    report(
        "one change a delivery",
        took.len() as f64,
        "changes",
        all,
        cpu(&own) - own_before,
        cpu(&pids()) - server_before,
    );
    Ok(())
}
