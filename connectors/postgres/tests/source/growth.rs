//! Tables and partitions that come and go while the stream runs.

use crate::support::*;
use crossfade_connector::Source;
use crossfade_event::Event;
use crossfade_testkit::postgres::Version;

const TREE: &str = "CREATE SCHEMA app;
    CREATE TABLE app.events (id int, at date, note text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE app.events_1 PARTITION OF app.events FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
    CREATE TABLE app.events_2 PARTITION OF app.events FOR VALUES FROM ('2021-01-01') TO ('2022-01-01') PARTITION BY LIST (id);
    CREATE TABLE app.events_2a PARTITION OF app.events_2 DEFAULT;
    INSERT INTO app.events SELECT n, date '2020-01-01' + n % 700, 'x' FROM generate_series(1, 3000) n;";

#[tokio::test(flavor = "multi_thread")]
async fn new_tables_are_reported_and_taken_in_when_asked_for() {
    let sql = "CREATE SCHEMA app; CREATE TABLE app.t (id int PRIMARY KEY); INSERT INTO app.t VALUES (1)";
    let Some(fixture) = Fixture::new(Version::V15, "added", sql).await else { return };
    let (mut source, mut log) = fixture.copied().await;
    fixture
        .database
        .execute("CREATE TABLE app.later (id int PRIMARY KEY, a text); INSERT INTO app.later SELECT n, 'old' FROM generate_series(1, 100) n")
        .await;
    // A transaction that wrote to the table before it was published ends after that.
    let writer = fixture.database.connect().await;
    writer.batch_execute("BEGIN; INSERT INTO app.later VALUES (1000, 'running')").await.unwrap();
    assert_eq!(source.health().await.unwrap().uncaptured_tables, ["app.later"]);
    let adder = source.adder();
    let adding = tokio::spawn(async move { adder.add_tables(None).await });
    while log.count(|event| matches!(event, Event::BackfillBegan(_))) < 2 {
        take(&mut source, &mut log, 1).await;
    }
    assert_eq!(adding.await.unwrap().unwrap().len(), 1);
    // The stream goes on while the copy waits; one that did not wait would be through long before the last of these.
    let read = |log: &Log| log.count(|event| matches!(event, Event::ChunkEnded { .. }));
    let before = read(&log);
    for number in 2..22 {
        fixture.database.execute(&format!("INSERT INTO app.t VALUES ({number})")).await;
        let here = fixture.here().await;
        take_until(&mut source, &mut log, "the stream goes on", async |log: &Log| {
            log.position.is_some_and(|position| position.commit >= here)
        })
        .await;
    }
    assert_eq!(read(&log), before, "the copy waits for the transaction that ran");
    writer.batch_execute("INSERT INTO app.later VALUES (1002, 'after'); COMMIT").await.unwrap();
    let replica = ingest_all(&fixture, &mut source, &mut log).await;
    assert_eq!(replica.rows("app.later").len(), 102);
    assert!(source.health().await.unwrap().uncaptured_tables.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_migration_made_in_the_same_database_is_no_new_table() {
    let sql = "CREATE SCHEMA app; CREATE TABLE app.t (id int PRIMARY KEY); CREATE SCHEMA crossfade;
        CREATE TABLE crossfade.objects (migration text, kind text, schema text, name text, part text);
        CREATE TABLE app.mapping (id int PRIMARY KEY); CREATE TABLE app.new (id int PRIMARY KEY); CREATE TABLE app.theirs (id int PRIMARY KEY)";
    let Some(fixture) = Fixture::new(Version::V15, "own_tables", sql).await else { return };
    let config = fixture.config(&["app.*"]);
    let note = format!(
        "INSERT INTO crossfade.objects SELECT m, k, 'app', n, '' FROM (VALUES ('{}', 'mapping', 'mapping'),
         ('{0}', 'table', 'new'), ('{0}', 'shape', 't'), ('another', 'table', 'theirs')) v (m, k, n)",
        config.migration
    );
    fixture.database.execute(&note).await;
    let mut log = Log::default();
    let mut source = fixture.source();
    open(&mut source, &mut log).await;
    fixture.database.execute("INSERT INTO app.mapping VALUES (1); INSERT INTO app.theirs VALUES (1)").await;
    ingest_all(&fixture, &mut source, &mut log).await;
    assert!(source.health().await.unwrap().uncaptured_tables.is_empty());
    let captured: Vec<String> = log.resume().schemas.iter().map(|schema| schema.name.to_string()).collect();
    assert_eq!(captured, ["app.t", "app.theirs"]);
    let made = fixture
        .database
        .value("SELECT count(*)::text FROM pg_publication_tables WHERE tablename IN ('mapping', 'new')")
        .await;
    assert_eq!(made.as_deref(), Some("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_published_before_it_is_taken_in_needs_no_new_session() {
    let sql = "CREATE SCHEMA app; CREATE TABLE app.t (id int PRIMARY KEY); INSERT INTO app.t VALUES (1)";
    let Some(fixture) = Fixture::new(Version::V15, "published_before", sql).await else { return };
    let (mut source, mut log) = fixture.copied().await;
    let publication = fixture.config(&["app.*"]).object_name();
    fixture
        .database
        .execute(&format!(
            "CREATE TABLE app.later (id int PRIMARY KEY, a text); CREATE TABLE app.other (id int PRIMARY KEY);
             ALTER PUBLICATION {publication} ADD TABLE app.later"
        ))
        .await;
    // The stream says its shape now, and never again in this session.
    fixture.database.execute("INSERT INTO app.later VALUES (1, 'before')").await;
    ingest_all(&fixture, &mut source, &mut log).await;
    let adder = source.adder();
    let only = vec![crossfade_event::TableName::new("app", "later")];
    let adding = tokio::spawn(async move { adder.add_tables(Some(only)).await });
    while log.count(|event| matches!(event, Event::BackfillBegan(_))) < 2 {
        take(&mut source, &mut log, 1).await;
    }
    assert_eq!(adding.await.unwrap().unwrap().len(), 1);
    fixture
        .database
        .execute("INSERT INTO app.later VALUES (2, 'after'); UPDATE app.later SET a = 'x' WHERE id = 1")
        .await;
    let replica = ingest_all(&fixture, &mut source, &mut log).await;
    assert_eq!(replica.rows("app.later").len(), 2);
    assert_eq!(source.health().await.unwrap().uncaptured_tables, ["app.other"], "only what was named is taken in");
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_captured_by_leaf_and_their_tree_is_watched() {
    for version in [Version::V15, Version::V18] {
        let Some(fixture) = Fixture::new(version, "tree", TREE).await else { return };
        let mut config = fixture.config(&["app.events"]);
        config.snapshot.chunk_rows = 200;
        let mut source = crossfade_postgres::PostgresSource::new(config).unwrap();
        let mut log = Log::default();
        open(&mut source, &mut log).await;
        fixture
            .database
            .execute("UPDATE app.events SET at = at + 300 WHERE id < 100; DELETE FROM app.events WHERE id > 2900")
            .await;
        ingest_all(&fixture, &mut source, &mut log).await;

        // A new leaf, one with rows of its own, and a truncated one.
        fixture
            .database
            .execute(
                "CREATE TABLE app.events_3 PARTITION OF app.events FOR VALUES FROM ('2022-01-01') TO ('2023-01-01');
                 INSERT INTO app.events VALUES (1, '2022-05-05', 'new leaf');
                 CREATE TABLE app.apart (id int NOT NULL, at date NOT NULL, note text, PRIMARY KEY (id, at));
                 INSERT INTO app.apart SELECT n, '2023-03-03', 'brought along' FROM generate_series(1, 500) n;
                 ALTER TABLE app.events ATTACH PARTITION app.apart FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
                 TRUNCATE app.events_1;",
            )
            .await;
        while log.count(|event| matches!(event, Event::SnapshotEnded { .. })) < 4 {
            take(&mut source, &mut log, 1).await;
        }
        let replica = ingest_all(&fixture, &mut source, &mut log).await;
        assert_eq!(replica.rows("app.apart").len(), 500);
        assert_eq!(replica.rows("app.events_1").len(), 0);

        // One leaves, one is dropped: their rows are in the tree no more.
        fixture.database.execute("ALTER TABLE app.events DETACH PARTITION app.apart; DROP TABLE app.events_3").await;
        let truncated = |log: &Log| log.count(|event| matches!(event, Event::Truncated(_)));
        let before = truncated(&log);
        while truncated(&log) == before {
            take(&mut source, &mut log, 1).await;
        }
        let replica = Replica::compute(&log, &fixture.database).await;
        assert_eq!(replica.rows("app.apart").len() + replica.rows("app.events_3").len(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_on_a_new_table_delays_its_capture_and_nothing_else() {
    let sql = "CREATE SCHEMA app; CREATE TABLE app.t (id int PRIMARY KEY); INSERT INTO app.t VALUES (1)";
    for version in [Version::V15, Version::V18] {
        let Some(fixture) = Fixture::new(version, "added_locked", sql).await else { return };
        let (mut source, mut log) = fixture.copied().await;
        fixture.database.execute("CREATE TABLE app.later (id int PRIMARY KEY); INSERT INTO app.later VALUES (7)").await;
        let locking = fixture.database.connect().await;
        locking.batch_execute("BEGIN; LOCK TABLE app.later IN ACCESS EXCLUSIVE MODE").await.unwrap();
        let adder = source.adder();
        let refused = tokio::time::timeout(PATIENCE, adder.add_tables(None)).await.expect("it waits for the lock");
        assert!(refused.as_ref().is_err_and(crossfade_connector::Failure::is_transient), "{refused:?}");
        // The stream goes on in the same session.
        fixture.database.execute("INSERT INTO app.t VALUES (2)").await;
        let target = fixture.here().await;
        ingest(&mut source, &mut log, target).await;
        locking.batch_execute("ROLLBACK").await.unwrap();
        let adding = tokio::spawn(async move { adder.add_tables(None).await });
        while log.count(|event| matches!(event, Event::BackfillBegan(_))) < 2 {
            take(&mut source, &mut log, 1).await;
        }
        assert_eq!(adding.await.unwrap().unwrap().len(), 1);
        let replica = ingest_all(&fixture, &mut source, &mut log).await;
        assert_eq!(replica.rows("app.later").len(), 1);
    }
}
