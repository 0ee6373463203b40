//! The loops against a model: a source with a history that moves under its own backfill, a sink that fails before and
//! after its commits, and restarts at every turn. Whatever happens, the sink ends with what the source has.
//!
//! Each case prints its seed; `CROSSFADE_SEED=n cargo test -p crossfade-pipeline --test simulation` runs that one.

#![cfg(test)]

mod lookups;
mod sink;
mod source;
mod workers;

use crossfade_event::{
    Cell, Column, ColumnType, Format, Identity, Key, Logical, Row, SchemaVersion, TableId, TableName, TableSchema,
    catalog::{Catalog, Dialect},
};
use crossfade_log::{EventLog, memory::Memory};
use crossfade_pipeline::{
    DeliverOptions, Ending, IngestOptions, Patience, Routes, Silent, deliver, evolve_catalog, heal, ingest,
    stop_channel, valve,
};
use crossfade_transform::{PlanOptions, Rules};
use rand::{Rng, SeedableRng, rngs::StdRng};
use sink::{Faults, ModelSink};
use source::{History, ModelSource};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// A patience that outlasts any number of scripted faults.
const PATIENT: Patience = Patience { first: Duration::from_secs(600), later: None };

fn column(name: &str, number: u32, key: Option<u16>) -> Column {
    let type_ = ColumnType { name: "text".into(), native_id: 25, logical: Logical::Text, format: Format::PgText };
    Column { name: name.into(), type_, key, nullable: key.is_none(), native_id: number, default: None }
}

/// `items(id text primary key, small text, large text)`
fn schema() -> Arc<TableSchema> {
    Arc::new(TableSchema {
        id: TableId(1),
        version: SchemaVersion(1),
        name: TableName::new("public", "items"),
        columns: vec![column("id", 1, Some(0)), column("small", 2, None), column("large", 3, None)],
        identity: Identity::Key,
        native_id: 100,
    })
}

fn key(id: u32) -> Key {
    let text = id.to_string();
    Key::from([Cell::Bytes(text.as_bytes())].into_iter().collect::<Row>())
}

fn routes() -> Routes {
    let mut catalog = Catalog {
        dialect: Dialect::Postgres,
        tables: Vec::new(),
        types: Vec::new(),
        sequences: Vec::new(),
        extensions: Vec::new(),
    };
    evolve_catalog(&mut catalog, &schema());
    Routes::new(catalog, Arc::new(Rules::default()), Arc::new(PlanOptions::default()), "simulation", 1, false).unwrap()
}

/// Every other case has a log of several partitions with gaps in its offsets, as one on Kafka is.
fn log(seed: u64) -> Memory {
    if seed.is_multiple_of(2) { Memory::new() } else { Memory::with(8, true) }
}

/// One whole case: a random history, random faults, and the end compared.
async fn case(seed: u64) {
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let history = Arc::new(History::random(&mut random, 60, 12));
    let log = log(seed);
    let durable = sink::Durable::default();
    let mut rounds = 0;
    loop {
        rounds += 1;
        assert!(rounds < 500, "seed {seed}: no progress");
        // A run that is cut short, as a killed process is: nothing but the log and the sink's own word survives.
        let budget = random.random_range(1..40);
        let source_faults = if rounds > 300 { 0 } else { random.random_range(0..3) };
        let mut source = ModelSource::new(history.clone(), schema(), random.random(), budget, source_faults);
        let (_stopper, stop) = stop_channel();
        let options = IngestOptions { in_flight_bytes_max: 4_096, patience: PATIENT, ..IngestOptions::default() };
        ingest(&mut source, &log, options, &Silent, stop).await.unwrap();
        let faults = if rounds > 300 { Faults::default() } else { Faults::random(&mut random) };
        let mut sink = ModelSink::new(durable.clone(), schema(), faults);
        let reached = run_deliver(&log, &mut sink, random.random_range(100..2_000)).await;
        if source.is_finished() && reached == Some(Ending::Reached) {
            break;
        }
    }
    assert_eq!(durable.rows(), history.state(history.len()), "seed {seed}");
}

/// Delivers what is in the log now; `None` when the backfill is not wholly in the log, so that it cannot be reached.
async fn run_deliver(log: &Memory, sink: &mut ModelSink, batch_bytes: usize) -> Option<Ending> {
    let (_stopper, stop) = stop_channel();
    let (_handle, mut valve) = valve();
    let options = DeliverOptions {
        batch_bytes_max: batch_bytes,
        load_bytes_max: batch_bytes,
        until: Some(log.tail().cut),
        patience: PATIENT,
        ..DeliverOptions::new(Some("simulation"))
    };
    // A sink that waits at the tail of an unfinished backfill is cut short, as by a kill.
    let routes = routes();
    let running = deliver(log, &routes, sink, &options, &Silent, &mut valve, stop);
    tokio::time::timeout(Duration::from_millis(2_000), running).await.ok().map(Result::unwrap)
}

#[tokio::test(start_paused = true)]
async fn the_sink_ends_with_what_the_source_has_whatever_fails() {
    let seeds: Vec<u64> = match std::env::var("CROSSFADE_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..200).collect(),
    };
    for seed in seeds {
        case(seed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_read_while_there_is_no_room_for_the_log_and_all_of_it_once_there_is() {
    let mut random = StdRng::seed_from_u64(7);
    let history = Arc::new(History::random(&mut random, 60, 12));
    let log = log(0);
    let mut source = ModelSource::new(history.clone(), schema(), 7, u32::MAX, 0);
    let (_stopper, stop) = stop_channel();
    let (room, reading) = valve();
    room.close("the disk is full");
    let empty = log.tail();
    let options = IngestOptions { valve: reading, patience: PATIENT, ..IngestOptions::default() };
    let ingesting = ingest(&mut source, &log, options, &Silent, stop);
    let looking = async {
        // The clock stands still until nothing else can go on.
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        assert_eq!(log.tail(), empty, "something was read although there is no room");
        room.open();
    };
    let (ended, ()) = tokio::join!(ingesting, looking);
    ended.unwrap();
    let durable = sink::Durable::default();
    let mut sink = ModelSink::new(durable.clone(), schema(), Faults::default());
    assert_eq!(run_deliver(&log, &mut sink, 1_000).await, Some(Ending::Reached));
    assert_eq!(durable.rows(), history.state(history.len()));
}

#[tokio::test(start_paused = true)]
async fn a_healing_replay_mends_what_was_damaged_in_its_range_and_nothing_else() {
    for seed in 1_000..1_100 {
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let history = Arc::new(History::random(&mut random, 80, 10));
        let log = log(seed);
        let durable = sink::Durable::default();
        let mut source = ModelSource::new(history.clone(), schema(), random.random(), u32::MAX, 0);
        let (stopper, stop) = stop_channel();
        ingest(&mut source, &log, IngestOptions::default(), &Silent, stop).await.unwrap();
        stopper.stop();
        let mut sink = ModelSink::new(durable.clone(), schema(), Faults::default());
        assert_eq!(run_deliver(&log, &mut sink, 1_000).await, Some(Ending::Reached));
        // A place in the middle of the stream, at a transaction's end.
        let places = source::transaction_ends(&log);
        let from = places[random.random_range(0..places.len())].clone();
        let touched = source::keys_after(&log, &from);
        let healthy = durable.rows();
        durable.damage_all();
        heal(&log, &routes(), &mut sink, &from, random.random_range(200..100_000)).await.unwrap();
        let damaged: BTreeMap<Key, Row> = sink::damaged(&healthy);
        for id in 0..100 {
            let key = key(id);
            let expected = if touched.contains(&key) { healthy.get(&key) } else { damaged.get(&key) };
            let found = durable.rows();
            let partial = source::only_partial_after(&log, &from, &key);
            if !partial {
                assert_eq!(found.get(&key), expected, "seed {seed}, key {id}");
            }
        }
    }
}
