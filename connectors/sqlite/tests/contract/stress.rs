//! Random writers, random restarts: both ends equal. The seed is printed; `SEED` runs one again.

use crate::fixture::SourceFile;
use crossfade_connector::Source;
use crossfade_testkit::source_suite::{Model, SourceFixture, assert_same};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use rusqlite::Connection;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

pub(crate) const TABLES: [&str; 6] = ["plain", "keyed", "wide", "norow", "heap", "unique_only"];

pub(crate) const SCHEMA: &str = "
    CREATE TABLE plain (id INTEGER PRIMARY KEY, a, b TEXT);
    CREATE TABLE keyed (id TEXT PRIMARY KEY NOT NULL COLLATE NOCASE, u INTEGER UNIQUE, v);
    CREATE TABLE wide (x INTEGER NOT NULL, y TEXT NOT NULL, z REAL, u TEXT UNIQUE, PRIMARY KEY (y, x));
    CREATE TABLE norow (k BLOB NOT NULL PRIMARY KEY, u TEXT UNIQUE COLLATE NOCASE, v NUMERIC) WITHOUT ROWID;
    CREATE TABLE heap (a TEXT, b INTEGER);
    CREATE TABLE unique_only (n INTEGER NOT NULL UNIQUE, v TEXT);
    CREATE UNIQUE INDEX plain_ab ON plain (lower(b)) WHERE a > 50;";

/// A statement of any kind, for any table. Some fail on a constraint: that is a part of it.
fn statement(rng: &mut StdRng) -> String {
    let (n, m, u): (i64, i64, i64) = (rng.random_range(0..60), rng.random_range(0..60), rng.random_range(0..40));
    let or = ["", "", "OR REPLACE", "OR IGNORE", "OR FAIL", "OR ABORT"].choose(rng).unwrap();
    let word = ["a", "A", "b", "B", "ab", "AB", "\u{fc}", ""].choose(rng).unwrap();
    match rng.random_range(0..22) {
        0 => format!("INSERT {or} INTO plain VALUES ({n}, {u}, '{word}{m}')"),
        1 => format!("UPDATE {or} plain SET a = {u}, b = '{word}{m}' WHERE id = {n}"),
        2 => format!("UPDATE {or} plain SET id = {m} WHERE id = {n}"),
        3 => format!("DELETE FROM plain WHERE id = {n}"),
        4 => format!("INSERT {or} INTO keyed VALUES ('{word}{n}', {u}, {m}.5)"),
        5 => format!("UPDATE {or} keyed SET u = {u}, v = x'00{m:02}' WHERE id = '{word}{n}'"),
        6 => format!("UPDATE {or} keyed SET id = '{word}{m}' WHERE u = {u}"),
        7 => format!("DELETE FROM keyed WHERE u = {u}"),
        8 => format!("INSERT {or} INTO wide VALUES ({n}, '{word}', {m}, '{word}{u}')"),
        9 => format!("UPDATE {or} wide SET x = {m}, u = '{word}{u}' WHERE x = {n}"),
        10 => format!("DELETE FROM wide WHERE x = {n}"),
        11 => format!(
            "INSERT {or} INTO norow VALUES ({}, '{word}{u}', {m})",
            ["1", "1.0", "x'31'", "'1'"].choose(rng).unwrap()
        ),
        12 => format!("INSERT {or} INTO norow VALUES ({n}, '{word}{u}', {m})"),
        13 => format!("UPDATE {or} norow SET k = {m}.0 WHERE k = {n}"),
        14 => format!("DELETE FROM norow WHERE v = {m}"),
        15 => format!("INSERT INTO heap VALUES ('{word}', {})", n % 5),
        16 => format!("UPDATE heap SET b = {} WHERE a = '{word}' AND b = {}", m % 5, n % 5),
        17 => format!("DELETE FROM heap WHERE rowid = (SELECT rowid FROM heap WHERE b = {} LIMIT 1)", n % 5),
        18 => format!("INSERT {or} INTO unique_only(rowid, n, v) VALUES ({u}, {n}, '{word}')"),
        19 => format!("UPDATE {or} unique_only SET n = {m} WHERE n = {n}"),
        20 => format!("DELETE FROM unique_only WHERE n = {n}"),
        _ => format!(
            "INSERT INTO keyed VALUES ('{word}{n}', {u}, 0) ON CONFLICT (id) DO UPDATE SET v = {m}, u = excluded.u"
        ),
    }
}

pub(crate) fn write(path: &std::path::Path, seed: u64, stop: &AtomicBool, rounds: usize) -> usize {
    let connection = Connection::open(path).unwrap();
    connection.busy_timeout(Duration::from_secs(20)).unwrap();
    connection.execute_batch("PRAGMA synchronous = OFF").unwrap();
    let mut rng = StdRng::seed_from_u64(seed);
    connection.pragma_update(None, "recursive_triggers", rng.random_bool(0.5)).unwrap();
    let mut done = 0;
    while done < rounds && !stop.load(Ordering::Relaxed) {
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        for _ in 0..rng.random_range(1..8) {
            let nested = rng.random_bool(0.2);
            if nested {
                connection.execute_batch("SAVEPOINT s").unwrap();
            }
            // A refused statement is as good as any: what it leaves must be recorded as it is.
            let _ = connection.execute_batch(&statement(&mut rng));
            if nested {
                let end = if rng.random_bool(0.5) { "ROLLBACK TO s; RELEASE s" } else { "RELEASE s" };
                connection.execute_batch(end).unwrap();
            }
        }
        let end = if rng.random_bool(0.1) { "ROLLBACK" } else { "COMMIT" };
        connection.execute_batch(end).unwrap();
        done += 1;
    }
    done
}

async fn follow(journal: &str, seed: u64, rounds: usize) {
    println!("SEED={seed} ({journal})");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut file = SourceFile::new(journal);
    file.options.chunk_rows = 7;
    file.run(SCHEMA);
    write(&file.path(), seed, &AtomicBool::new(false), 300);
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (1..=3)
        .map(|n| {
            let (path, stop) = (file.path(), stop.clone());
            std::thread::spawn(move || write(&path, seed + n, &stop, rounds))
        })
        .collect();
    let mut model = Model::default();
    let mut source = file.source(&TABLES);
    source.open(model.resume()).await.unwrap();
    while writers.iter().any(|writer| !writer.is_finished()) {
        if let Ok(batch) = tokio::time::timeout(Duration::from_millis(20), source.next()).await {
            model.take(batch.unwrap().unwrap());
        }
        if rng.random_bool(0.05) {
            let mut frontier = crossfade_event::Frontier::default();
            let ticket = frontier.begin(model.position());
            if let Some(durable) = frontier.finish(ticket) {
                source.confirm(durable).await.unwrap();
            }
        }
        if rng.random_bool(0.02) {
            drop(source);
            model.crash();
            source = file.source(&TABLES);
            source.open(model.resume()).await.unwrap();
        }
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.join().unwrap();
    }
    let end: i64 = file.writer.query_row("SELECT max(seq) FROM _crossfade_changes_test", [], |row| row.get(0)).unwrap();
    let begun = Instant::now();
    while !model.backfill_ended() || model.position().unwrap().commit < end as u64 {
        assert!(begun.elapsed() < Duration::from_secs(30), "the stream does not come to its end");
        if let Ok(batch) = tokio::time::timeout(Duration::from_millis(200), source.next()).await {
            model.take(batch.unwrap().unwrap());
        }
    }
    for table in TABLES {
        assert_same(table, &model.rows(table), &file.read(table));
    }
}

pub(crate) fn seed() -> u64 {
    std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| rand::rng().random())
}

#[tokio::test(flavor = "multi_thread")]
async fn random_writers_and_restarts_end_equal_in_wal_mode() {
    let seed = seed();
    for round in 0..4 {
        follow("wal", seed.wrapping_add(round * 1000), 400).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_writers_and_restarts_end_equal_with_a_rollback_journal() {
    follow("delete", seed(), 300).await;
}
