//! Live writers while tables are copied, and ends at any moment.

use crate::support::*;
use crossfade_connector::Source;
use crossfade_event::{Event, Op};
use crossfade_postgres::PostgresSource;
use crossfade_testkit::{postgres::Version, seeded};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tokio::task::JoinHandle;

const TABLES: &str = "CREATE SCHEMA app;
    CREATE TABLE app.parent (id int PRIMARY KEY, note text, big text, n int DEFAULT 0);
    ALTER TABLE app.parent SET (autovacuum_enabled = off);
    CREATE TABLE app.full_keyless (a int, b text); ALTER TABLE app.full_keyless REPLICA IDENTITY FULL;
    CREATE TABLE app.insert_only (a int, b text);
    CREATE TABLE app.by_index (a int NOT NULL, b text NOT NULL, c int);
    CREATE UNIQUE INDEX by_index_b ON app.by_index (b); ALTER TABLE app.by_index REPLICA IDENTITY USING INDEX by_index_b;
    CREATE TABLE app.full_keyed (id int PRIMARY KEY, big text, n int);
    ALTER TABLE app.full_keyed REPLICA IDENTITY FULL;
    ALTER TABLE app.parent ALTER big SET STORAGE EXTERNAL; ALTER TABLE app.full_keyed ALTER big SET STORAGE EXTERNAL;
    INSERT INTO app.parent SELECT n, 'note ' || n, repeat(md5(n::text), 80), 0 FROM generate_series(1, 3000) n;
    INSERT INTO app.full_keyed SELECT n, repeat(md5(n::text), 80), 0 FROM generate_series(1, 1000) n;
    INSERT INTO app.full_keyless SELECT n % 50, 'dup ' || n % 50 FROM generate_series(1, 3000) n;
    INSERT INTO app.insert_only SELECT n, 'row' FROM generate_series(1, 3000) n;
    INSERT INTO app.by_index SELECT n, 'key ' || n, n FROM generate_series(1, 2000) n;";

struct Writers {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<u64>>,
}

impl Writers {
    async fn start(fixture: &Fixture, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for number in 0..3 {
            let (client, stop) = (fixture.database.connect().await, stop.clone());
            let mut rng = StdRng::seed_from_u64(seed ^ (number + 1));
            tasks.push(tokio::spawn(async move {
                let mut done = 0;
                while !stop.load(Ordering::Relaxed) {
                    let sql = transaction(&mut rng);
                    // Conflicts between writers (a key taken, a deadlock) roll back, as they do in life.
                    if client.batch_execute(&sql).await.is_err() {
                        client.batch_execute("ROLLBACK").await.unwrap();
                    } else {
                        done += 1;
                    }
                }
                done
            }));
        }
        Self { stop, tasks }
    }

    async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let mut done = 0;
        for task in self.tasks {
            done += task.await.unwrap();
        }
        done
    }
}

fn transaction(rng: &mut StdRng) -> String {
    let mut sql = String::from("BEGIN;");
    for _ in 0..rng.random_range(1..6) {
        let id = rng.random_range(1..3500);
        let other = rng.random_range(1..6000);
        sql.push_str(&match rng.random_range(0..14) {
            0 => format!("INSERT INTO app.parent VALUES ({other}, 'new', repeat(md5('{other}'), 90), 1) ON CONFLICT DO NOTHING;"),
            1 | 2 => format!("UPDATE app.parent SET n = n + 1 WHERE id = {id};"),
            3 => format!("UPDATE app.parent SET id = {other} WHERE id = {id} AND NOT EXISTS (SELECT FROM app.parent WHERE id = {other});"),
            4 => format!("DELETE FROM app.parent WHERE id = {id};"),
            5 => format!("UPDATE app.parent SET big = repeat(md5('{other}'), 70) WHERE id = {id};"),
            6 => format!("INSERT INTO app.full_keyless VALUES ({0}, 'dup {0}'), ({0}, 'dup {0}');", id % 60),
            7 => format!("DELETE FROM app.full_keyless WHERE ctid = (SELECT ctid FROM app.full_keyless WHERE a = {} LIMIT 1);", id % 60),
            8 => format!("UPDATE app.full_keyless SET b = 'changed' WHERE ctid = (SELECT ctid FROM app.full_keyless WHERE a = {} LIMIT 1);", id % 60),
            9 => format!("INSERT INTO app.insert_only VALUES ({other}, 'later');"),
            10 => format!("UPDATE app.by_index SET b = 'key ' || {other} WHERE b = 'key {id}' AND NOT EXISTS (SELECT FROM app.by_index WHERE b = 'key {other}');"),
            11 => format!("SAVEPOINT s; UPDATE app.parent SET note = 'lost' WHERE id < {id} % 100; ROLLBACK TO s;"),
            12 => format!("UPDATE app.full_keyed SET n = n + 1 WHERE id = {};", id % 1000),
            _ => format!("UPDATE app.full_keyed SET id = {other} WHERE id = {id} AND NOT EXISTS (SELECT FROM app.full_keyed WHERE id = {other});"),
        });
    }
    sql.push_str("COMMIT;");
    sql
}

fn source(fixture: &Fixture, chunk_rows: u64) -> PostgresSource {
    let mut config = fixture.config(&["app.*"]);
    config.snapshot.chunk_rows = chunk_rows;
    PostgresSource::new(config).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_and_stream_meet_exactly_under_writers() {
    for version in Version::ALL {
        let Some(fixture) = Fixture::new(version, "under_writers", TABLES).await else { return };
        let seed = seeded::seed("copy and stream under writers");
        let writers = Writers::start(&fixture, seed).await;
        let mut log = Log::default();
        let mut source = source(&fixture, 100);
        open(&mut source, &mut log).await;
        while !log.has_ended() {
            take(&mut source, &mut log, 10).await;
        }
        take(&mut source, &mut log, 20).await;
        assert!(writers.stop().await > 50);
        ingest_all(&fixture, &mut source, &mut log).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_cut_off_again_and_again_ends_exact() {
    let Some(fixture) = Fixture::new(Version::V15, "cut_off_copy", TABLES).await else { return };
    let seed = seeded::seed("a copy that is cut off");
    let mut rng = StdRng::seed_from_u64(seed);
    let writers = Writers::start(&fixture, seed).await;
    let mut log = Log::default();
    for _ in 0..12 {
        let mut source = source(&fixture, 60);
        open(&mut source, &mut log).await;
        take(&mut source, &mut log, rng.random_range(0..40)).await;
    }
    writers.stop().await;
    let mut source = source(&fixture, 60);
    open(&mut source, &mut log).await;
    ingest_all(&fixture, &mut source, &mut log).await;
    let chunks = log.count(|event| matches!(event, Event::ChunkEnded { .. }));
    assert!(chunks > 20, "{chunks} chunks");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_moves_past_the_chunks_keeps_its_unchanged_values() {
    let Some(fixture) = Fixture::new(Version::V15, "moving", TABLES).await else { return };
    let mut log = Log::default();
    let mut source = source(&fixture, 100);
    open(&mut source, &mut log).await;
    // The slot is there, and no chunk is read until somebody takes the first batch away.
    fixture.database.execute("UPDATE app.parent SET n = n + 1; DELETE FROM app.parent WHERE id % 7 = 0").await;
    ingest_all(&fixture, &mut source, &mut log).await;
    let updates = log.changes().into_iter().filter(|change| change.op == Op::Update);
    assert!(updates.into_iter().all(|change| !change.new.unwrap().has_unchanged()));
    // Once the backfill is in, unchanged stays unchanged: the rows are there.
    fixture.database.execute("UPDATE app.parent SET n = n + 1 WHERE id < 10").await;
    ingest_all(&fixture, &mut source, &mut log).await;
    assert!(log.changes().into_iter().any(|change| change.new.is_some_and(|new| new.has_unchanged())));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_rewritten_while_it_is_copied_is_copied_from_its_beginning() {
    let Some(fixture) = Fixture::new(Version::V15, "clustered", TABLES).await else { return };
    let mut log = Log::default();
    let mut source = source(&fixture, 50);
    open(&mut source, &mut log).await;
    take(&mut source, &mut log, 4).await;
    let database = fixture.database.clone();
    // It waits for the chunks that are being read, and they for whoever takes their rows.
    let rewriting = tokio::spawn(async move {
        database
            .execute("DELETE FROM app.parent WHERE id % 2 = 0; UPDATE app.parent SET n = -id; CLUSTER app.parent USING parent_pkey")
            .await;
        database.execute("VACUUM FULL app.by_index").await;
    });
    while !rewriting.is_finished() {
        take(&mut source, &mut log, 1).await;
    }
    rewriting.await.unwrap();
    ingest_all(&fixture, &mut source, &mut log).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_but_is_not_durable_is_never_confirmed() {
    let Some(fixture) = Fixture::new(Version::V15, "not_durable", TABLES).await else { return };
    let mut log = Log::default();
    let mut source = source(&fixture, 1000);
    open(&mut source, &mut log).await;
    ingest_all(&fixture, &mut source, &mut log).await;
    let durable = log.position.unwrap().commit;
    // What concerns us is handed over and stays in flight; what others write comes as keep-alives.
    fixture.database.execute("CREATE TABLE public.noise (a int); UPDATE app.parent SET n = n + 1").await;
    fixture.database.execute("INSERT INTO public.noise SELECT generate_series(1, 100000)").await;
    let target = fixture.here().await;
    let told = "SELECT write_lsn - '0/0' FROM pg_stat_replication JOIN pg_replication_slots ON active_pid = pid \
                WHERE slot_name = 'SLOT'"
        .replace("SLOT", &fixture.config(&["app.*"]).object_name());
    let mut received = 0;
    while received < target {
        // Taken, and never confirmed.
        let _ = tokio::time::timeout(std::time::Duration::from_millis(50), source.next()).await;
        received = fixture.database.value(&told).await.map_or(0, |lsn| lsn.parse().unwrap());
    }
    let slot = fixture.config(&["app.*"]).object_name();
    let confirmed = format!("SELECT confirmed_flush_lsn - '0/0' FROM pg_replication_slots WHERE slot_name = '{slot}'");
    let confirmed: u64 = fixture.database.value(&confirmed).await.unwrap().parse().unwrap();
    assert!(confirmed <= durable, "{confirmed:X} was confirmed, and only {durable:X} is durable");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_source_moves_its_slot_over_what_others_write() {
    let Some(fixture) = Fixture::new(Version::V15, "idle", TABLES).await else { return };
    fixture.database.execute("CREATE TABLE public.noise (a int)").await;
    let mut log = Log::default();
    let mut source = source(&fixture, 1000);
    open(&mut source, &mut log).await;
    ingest_all(&fixture, &mut source, &mut log).await;
    fixture.database.execute("INSERT INTO public.noise SELECT generate_series(1, 100000)").await;
    let target = fixture.here().await;
    ingest(&mut source, &mut log, target).await;
    assert!(log.count(|event| matches!(event, Event::Resolved)) > 0);
    let slot = fixture.config(&["app.*"]).object_name();
    let confirmed =
        format!("SELECT confirmed_flush_lsn - '0/0' >= {target} FROM pg_replication_slots WHERE slot_name = '{slot}'");
    while fixture.database.value(&confirmed).await.as_deref() != Some("t") {
        take(&mut source, &mut log, 1).await;
    }
    assert_eq!(source.health().await.unwrap().status.as_deref(), Some("reserved"));
}
