//! Lookups against a model that knows what every lookup must have found: rows of one table take the name of another
//! table's row, by a key that is not its identity. Rows of the looked-up table change, swap codes, vanish and move, come
//! without their unchanged values, and are copied again by a second backfill; deliver is begun anew at every turn.

mod kept;
mod model;

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
use kept::{Kept, Misses, TablesSink};
use model::{Model, Texts};
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
