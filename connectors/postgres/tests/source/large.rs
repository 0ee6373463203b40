//! Transactions larger than memory, and those that are rolled back in part.

use crate::support::*;
use crossfade_event::Event;
use crossfade_testkit::postgres::Version;

const TABLE: &str = "CREATE SCHEMA app; CREATE TABLE app.t (id int PRIMARY KEY, a int, note text);";

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_transaction_comes_in_parts_and_leaves_no_file() {
    for version in [Version::V15, Version::V18] {
        let Some(fixture) = Fixture::new(version, "large", TABLE).await else { return };
        fixture.database.execute("INSERT INTO app.t SELECT n, n, 'before' FROM generate_series(1, 1000) n").await;
        let (mut source, mut log) = fixture.copied().await;
        assert_eq!(log.parts, 0);
        fixture
            .database
            .execute(
                "SET logical_decoding_work_mem = '64kB'; BEGIN;
                 INSERT INTO app.t SELECT n, n, repeat('x', 100) FROM generate_series(1001, 400000) n;
                 UPDATE app.t SET a = a + 1 WHERE id <= 50000; DELETE FROM app.t WHERE id % 3 = 0; COMMIT;",
            )
            .await;
        ingest_all(&fixture, &mut source, &mut log).await;
        assert!(log.parts > 20, "{} parts on {version}", log.parts);
        assert_eq!(log.count(|event| matches!(event, Event::Began(_))), 1);
        assert!(keeps_no_transaction(&fixture.folder.path().join("spool")));
        let stamps: Vec<_> = log.events.iter().map(|stamped| stamped.position).collect();
        assert!(stamps.is_sorted(), "positions are in order");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_savepoint_rolled_back_is_in_no_log_however_large() {
    let Some(fixture) = Fixture::new(Version::V15, "savepoints", TABLE).await else { return };
    let mut log = Log::default();
    let mut source = fixture.source();
    open(&mut source, &mut log).await;
    let rolled_back = fixture.database.connect().await;
    rolled_back
        .batch_execute(
            "BEGIN; INSERT INTO app.t SELECT n, 1, repeat('r', 500) FROM generate_series(900000, 1100000) n; ROLLBACK",
        )
        .await
        .unwrap();
    fixture
        .database
        .execute(
            "BEGIN; INSERT INTO app.t SELECT n, 0, repeat('a', 200) FROM generate_series(1, 150000) n;
             SAVEPOINT one; INSERT INTO app.t SELECT n, 1, repeat('b', 500) FROM generate_series(200000, 400000) n;
             SAVEPOINT two; UPDATE app.t SET note = 'lost' WHERE id < 50000; ROLLBACK TO two;
             INSERT INTO app.t VALUES (500001, 1, 'lost as well'); ROLLBACK TO one;
             SAVEPOINT three; UPDATE app.t SET note = 'kept' WHERE id < 1000; RELEASE three;
             INSERT INTO app.t VALUES (500000, 2, 'kept'); COMMIT",
        )
        .await;
    let replica = ingest_all(&fixture, &mut source, &mut log).await;
    assert_eq!(replica.rows("app.t").len(), 150_001);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_was_cut_off_in_the_middle_comes_again_as_a_whole() {
    let Some(fixture) = Fixture::new(Version::V15, "cut_off", TABLE).await else { return };
    let (mut source, mut log) = fixture.copied().await;
    fixture.database.execute("INSERT INTO app.t SELECT n, n, repeat('y', 300) FROM generate_series(1, 300000) n").await;
    let before = log.parts;
    while log.parts < before + 5 {
        take(&mut source, &mut log, 1).await;
    }
    drop(source);
    let mut source = fixture.source();
    open(&mut source, &mut log).await;
    ingest_all(&fixture, &mut source, &mut log).await;
    assert_eq!(log.changes().len(), 300_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewrite_inside_a_large_transaction_does_not_wait_for_a_copy_that_waits_for_the_stream() {
    let sql = "CREATE SCHEMA app; CREATE TABLE app.a (n int, pad text); ALTER TABLE app.a REPLICA IDENTITY FULL;
        CREATE TABLE app.b (id int PRIMARY KEY, a int); CREATE TABLE app.big (id int PRIMARY KEY, pad text);
        CREATE TABLE app.c (id int PRIMARY KEY, a int NOT NULL);
        INSERT INTO app.a SELECT n % 5000, repeat('x', 500) FROM generate_series(1, 16000) n;
        INSERT INTO app.b SELECT n, n FROM generate_series(1, 300) n; INSERT INTO app.c SELECT * FROM app.b";
    for version in [Version::V15, Version::V18] {
        let Some(fixture) = Fixture::new(version, "rewrite_large", sql).await else { return };
        // One worker, and nobody takes its rows: it is in the first table until everything has happened.
        let mut config = fixture.config(&["app.*"]);
        config.snapshot.workers = 1;
        let mut source = crossfade_postgres::PostgresSource::new(config).unwrap();
        let mut log = Log::default();
        open(&mut source, &mut log).await;
        fixture
            .database
            .execute(
                "BEGIN; INSERT INTO app.big SELECT n, repeat('y', 300) FROM generate_series(1, 30000) n;
                 ALTER TABLE app.b ALTER a TYPE text USING 'was ' || a; INSERT INTO app.b VALUES (-1, 'new');
                 INSERT INTO app.a VALUES (1, 'new'); COMMIT",
            )
            .await;
        fixture.database.execute("ALTER TABLE app.c ALTER a TYPE text USING 'was ' || a").await;
        fixture.database.execute("UPDATE app.c SET a = 'then' WHERE id = 5; DELETE FROM app.a WHERE n = 7").await;
        let replica = ingest_all(&fixture, &mut source, &mut log).await;
        assert_eq!(replica.rows("app.a").len(), 16_001 - 4, "{version}");
        assert_eq!((log.schema("app.b").version.0, log.schema("app.c").version.0), (2, 2), "{version}");
        assert!(log.parts > 3, "the transaction came as a whole, and nothing is tested");
        // A restart goes on with what the log says.
        drop(source);
        fixture.database.execute("UPDATE app.b SET a = 'later' WHERE id = 5").await;
        let mut source = fixture.source();
        open(&mut source, &mut log).await;
        ingest_all(&fixture, &mut source, &mut log).await;
    }
}
