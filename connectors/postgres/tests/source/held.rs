//! Rules that only count when two things happen at once: the test holds one of them where it is (a transaction that
//! does not end, a process of the server that stands still) and sees that the source waits.

use crate::support::*;
use crossfade_event::Event;
use crossfade_postgres::{Partitions, PostgresSource};
use crossfade_testkit::postgres::{Postgres, Settings, Version};
use std::time::Duration;
use tokio_postgres::Client;

async fn fixture(version: Version, settings: Settings, sql: &str) -> Option<Fixture> {
    // Ended with the test's process, as the shared ones are.
    let server: &'static Postgres = Box::leak(Box::new(Postgres::start(version, settings)?));
    let database = server.create_database("held").await;
    database.execute(sql).await;
    Some(Fixture { database, folder: tempfile::tempdir().unwrap(), server })
}

/// Whether a query has an answer that is not NULL.
async fn holds(observer: &Client, sql: &str) -> bool {
    let rows = observer.simple_query(sql).await.unwrap_or_else(|error| panic!("{error:?} in {sql}"));
    rows.iter().any(|row| matches!(row, tokio_postgres::SimpleQueryMessage::Row(row) if row.get(0).is_some()))
}

async fn wait_for(observer: &Client, sql: &str) {
    let all = async {
        while !holds(observer, sql).await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.unwrap_or_else(|_| panic!("in vain: {sql}"));
}

/// A reader of chunks that has looked, found its snapshot too old, and waits.
const TOO_OLD: &str = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() \
    AND application_name LIKE 'crossfade %' AND state = 'idle' AND query = 'ROLLBACK'";

fn copies(log: &Log) -> usize {
    log.count(|event| matches!(event, Event::SnapshotEnded { .. }))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_added_table_is_not_copied_while_a_transaction_from_before_its_publication_is_open() {
    let sql = "CREATE SCHEMA app; CREATE TABLE app.t (id int PRIMARY KEY); INSERT INTO app.t VALUES (1);
        CREATE TABLE public.seen (n int)";
    for version in Version::ALL {
        let Some(fixture) = Fixture::new(version, "added_open", sql).await else { return };
        let (mut source, mut log) = fixture.copied().await;
        fixture
            .database
            .execute("CREATE TABLE app.later (id int PRIMARY KEY, a text); INSERT INTO app.later VALUES (1, 'old')")
            .await;
        // One has written to the table already, one only elsewhere, one nowhere.
        let observer = fixture.database.connect().await;
        let (wrote, began, idle) =
            (fixture.database.connect().await, fixture.database.connect().await, fixture.database.connect().await);
        wrote.batch_execute("BEGIN; INSERT INTO app.later VALUES (10, 'before')").await.unwrap();
        began.batch_execute("BEGIN; INSERT INTO public.seen VALUES (1)").await.unwrap();
        idle.batch_execute("BEGIN; SELECT count(*) FROM app.later").await.unwrap();
        let adder = source.adder();
        let adding = tokio::spawn(async move { adder.add_tables(None).await });
        let begun = async |log: &Log| log.count(|event| matches!(event, Event::BackfillBegan(_))) == 2;
        take_until(&mut source, &mut log, "the copy begins", begun).await;
        assert_eq!(adding.await.unwrap().unwrap().len(), 1);
        for (place, session) in [&wrote, &began, &idle].into_iter().enumerate() {
            let insert = format!("INSERT INTO app.later VALUES ({}, 'after'); ", 20 + place);
            session.batch_execute(&insert).await.unwrap();
        }
        idle.batch_execute("COMMIT").await.unwrap();
        let waits = async |log: &Log| copies(log) > 1 || holds(&observer, TOO_OLD).await;
        take_until(&mut source, &mut log, "the copy waits", waits).await;
        let early = copies(&log) > 1;
        wrote.batch_execute("COMMIT").await.unwrap();
        began.batch_execute("COMMIT").await.unwrap();
        let replica = ingest_all(&fixture, &mut source, &mut log).await;
        assert_eq!(replica.rows("app.later").len(), 5, "{version}");
        assert!(!early, "{version}: the table was copied while transactions from before were open");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_waits_until_it_sees_what_the_slot_takes_for_committed() {
    // With a standby that never answers, a commit is in the WAL and not to be seen for as long as the test likes.
    let settings = Settings::new().set("synchronous_standby_names", "nobody").set("synchronous_commit", "local");
    let sql = "CREATE SCHEMA app; CREATE TABLE app.t (id int PRIMARY KEY, a text); INSERT INTO app.t VALUES (1, 'x')";
    for version in Version::ALL {
        let Some(fixture) = fixture(version, settings.clone(), sql).await else { return };
        let observer = fixture.database.connect().await;
        let (first, second) = (fixture.database.connect().await, fixture.database.connect().await);
        first.batch_execute("BEGIN; SELECT txid_current()").await.unwrap();
        let mut source = fixture.source();
        let opening = tokio::spawn(async move {
            let mut log = Log::default();
            open(&mut source, &mut log).await;
            (source, log)
        });
        // The slot waits for whoever runs, twice: its snapshot has every commit from the second time on.
        let waits_for = |xid: &str| {
            format!(
                "SELECT 1 FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.transactionid = '{xid}'::xid \
                 AND NOT l.granted AND a.query LIKE 'CREATE_REPLICATION_SLOT%'"
            )
        };
        let xid = async |session: &Client| -> String {
            let row = session.query_one("SELECT (txid_current() % 4294967296)::text", &[]).await.unwrap();
            row.get(0)
        };
        let (one, two) = {
            let one = xid(&first).await;
            wait_for(&observer, &waits_for(&one)).await;
            second.batch_execute("BEGIN").await.unwrap();
            (first, xid(&second).await)
        };
        one.batch_execute("COMMIT").await.unwrap();
        wait_for(&observer, &waits_for(&two)).await;
        let hidden = fixture.database.connect().await;
        let hanging = tokio::spawn(async move {
            hidden.batch_execute("SET synchronous_commit = on; INSERT INTO app.t VALUES (2, 'hidden')").await
        });
        let hangs = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND datname = current_database()";
        wait_for(&observer, hangs).await;
        second.batch_execute("COMMIT").await.unwrap();
        let (mut source, mut log) = opening.await.unwrap();
        assert!(holds(&observer, hangs).await);

        let waits = async |log: &Log| copies(log) > 0 || holds(&observer, TOO_OLD).await;
        take_until(&mut source, &mut log, "the chunk waits", waits).await;
        let early = copies(&log) > 0;
        let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        observer.batch_execute(cancel).await.unwrap();
        hanging.await.unwrap().unwrap();
        let replica = ingest_all(&fixture, &mut source, &mut log).await;
        assert_eq!(replica.rows("app.t").len(), 2, "{version}");
        assert!(!early, "{version}: a chunk was read that does not see what the slot passes over");
        assert!(log.changes().is_empty(), "the row came by the copy alone, or nothing is tested");
    }
}

/// Processes of the server that stand still until this is dropped.
struct Still(Vec<String>);

impl Still {
    async fn new(observer: &Client, which: &str) -> Self {
        let rows = observer.query(&format!("SELECT pid::text FROM pg_stat_activity WHERE {which}"), &[]).await.unwrap();
        let still = Self(rows.iter().map(|row| row.get(0)).collect());
        assert!(!still.0.is_empty(), "no process where {which}");
        still.signal("-STOP");
        still
    }

    fn signal(&self, signal: &str) {
        let sent = std::process::Command::new("kill").arg(signal).args(&self.0).status().unwrap();
        assert!(sent.success());
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        self.signal("-CONT");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_brings_its_own_stream_to_the_end_of_a_copy_where_nobody_else_writes() {
    let settings = Settings::new().set("autovacuum", "off").set("checkpoint_timeout", "1h");
    let sql = "CREATE SCHEMA app; CREATE TABLE app.bulk (id int PRIMARY KEY, pad text);
        INSERT INTO app.bulk SELECT n, repeat('x', 1000) FROM generate_series(1, 6000) n;
        CREATE TABLE app.last (id int PRIMARY KEY); INSERT INTO app.last VALUES (1)";
    for version in Version::ALL {
        let Some(fixture) = fixture(version, settings.clone(), sql).await else { return };
        let mut config = fixture.config(&["app.*"]);
        config.heartbeat = Duration::ZERO;
        // One worker, and nobody takes its rows: it is in the first table until then.
        config.snapshot.workers = 1;
        let mut source = PostgresSource::new(config).unwrap();
        let mut log = Log::default();
        open(&mut source, &mut log).await;
        // What is written from now on is flushed by nobody but a commit that waits for it.
        let observer = fixture.database.connect().await;
        let _still = Still::new(&observer, "backend_type IN ('walwriter', 'background writer')").await;
        observer.batch_execute("SELECT pg_logical_emit_message(false, 'somebody', 'says nothing')").await.unwrap();
        let behind = "SELECT 1 WHERE pg_current_wal_insert_lsn() > pg_current_wal_flush_lsn()";
        assert!(holds(&observer, behind).await, "nothing is tested: the server has flushed everything");
        assert_eq!(copies(&log), 0);
        take_until(&mut source, &mut log, "the end of the copy is said", async |log: &Log| log.has_ended()).await;
        let slot = fixture.config(&["app.*"]).object_name();
        let place = log.position.unwrap().commit;
        let confirmed = format!(
            "SELECT 1 FROM pg_replication_slots WHERE slot_name = '{slot}' AND confirmed_flush_lsn - '0/0' >= {place}"
        );
        let moved = async |_: &Log| holds(&observer, &confirmed).await;
        take_until(&mut source, &mut log, "the slot moves to the end of the copy", moved).await;
        Replica::compute(&log, &fixture.database).await.assert_equals(&fixture.database).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_tree_is_not_copied_before_the_stream_has_passed_its_change() {
    let sql =
        "CREATE SCHEMA app; CREATE TABLE app.events (id int, at int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
        CREATE TABLE app.old PARTITION OF app.events FOR VALUES FROM (0) TO (10);
        CREATE TABLE app.new PARTITION OF app.events FOR VALUES FROM (10) TO (20);
        INSERT INTO app.events SELECT n, n % 20 FROM generate_series(1, 200) n";
    for version in Version::ALL {
        let Some(fixture) = Fixture::new(version, "tree_still", sql).await else { return };
        let mut config = fixture.config(&["app.events"]);
        config.partitions = Partitions::Root;
        config.heartbeat = Duration::ZERO;
        let slot = config.object_name();
        let mut source = PostgresSource::new(config).unwrap();
        let mut log = Log::default();
        open(&mut source, &mut log).await;
        ingest_all(&fixture, &mut source, &mut log).await;
        // A second slot shows what the source writes into the WAL by itself.
        let observer = fixture.database.connect().await;
        let look = format!("{slot}_look");
        observer
            .batch_execute(&format!("SELECT pg_create_logical_replication_slot('{look}', 'test_decoding')"))
            .await
            .unwrap();
        let sender = format!("pid = (SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{slot}')");
        let still = Still::new(&observer, &sender).await;
        let gone = "INSERT INTO app.events SELECT n, 5 FROM generate_series(1000, 1100) n; ALTER TABLE app.events DETACH PARTITION app.old";
        fixture.database.execute(gone).await;
        let mark = format!(
            "SELECT 1 FROM pg_logical_slot_peek_changes('{look}', NULL, NULL) WHERE data LIKE '%crossfade.heartbeat%'"
        );
        let begun = |log: &Log| log.count(|event| matches!(event, Event::BackfillBegan(_))) > 1;
        let noticed = async |log: &Log| begun(log) || holds(&observer, &mark).await;
        take_until(&mut source, &mut log, "the change of the tree is noticed", noticed).await;
        let early = begun(&log);
        drop(still);
        take_until(&mut source, &mut log, "the tree is copied again", async |log: &Log| {
            log.count(|event| matches!(event, Event::BackfillEnded { .. })) > 1
        })
        .await;
        observer.batch_execute(&format!("SELECT pg_drop_replication_slot('{look}')")).await.unwrap();
        let replica = ingest_all(&fixture, &mut source, &mut log).await;
        assert_eq!(replica.rows("app.events").len(), 100, "{version}");
        assert!(!early, "{version}: the copy began before the stream had passed the change");
    }
}
