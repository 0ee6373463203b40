//! Partition trees that are captured by their root: what happens to a tree without an event is noticed, always.

use crate::support::*;
use crossfade_connector::{Failure, Source, Verdict};
use crossfade_event::Event;
use crossfade_postgres::{OnRewrite, Partitions, PostgresSource, SourceConfig};
use crossfade_testkit::postgres::Version;
use std::time::Instant;

const TREE: &str = "CREATE SCHEMA app;
    CREATE TABLE app.events (id int, at date, note text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE app.events_1 PARTITION OF app.events FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
    CREATE TABLE app.events_2 PARTITION OF app.events FOR VALUES FROM ('2021-01-01') TO ('2022-01-01') PARTITION BY LIST (id);
    CREATE TABLE app.events_2a PARTITION OF app.events_2 DEFAULT;
    CREATE TABLE app.odd (note text, gone int, at date NOT NULL, id int NOT NULL, PRIMARY KEY (id, at));
    ALTER TABLE app.odd DROP COLUMN gone, ALTER note SET STORAGE EXTERNAL;
    ALTER TABLE app.events ATTACH PARTITION app.odd FOR VALUES FROM ('2022-01-01') TO ('2023-01-01');
    CREATE TABLE app.plain (id int PRIMARY KEY); INSERT INTO app.plain VALUES (1);
    INSERT INTO app.events SELECT n, date '2020-01-01' + n % 1000, 'x' || n FROM generate_series(1, 5000) n;";

fn by_root(fixture: &Fixture) -> SourceConfig {
    let mut config = fixture.config(&["app.*"]);
    config.partitions = Partitions::Root;
    config.snapshot.chunk_rows = 300;
    config
}

async fn following(version: Version, name: &str) -> Option<(Fixture, PostgresSource, Log)> {
    let fixture = Fixture::new(version, name, TREE).await?;
    let mut log = Log::default();
    let mut source = PostgresSource::new(by_root(&fixture)).unwrap();
    open(&mut source, &mut log).await;
    ingest_all(&fixture, &mut source, &mut log).await;
    Some((fixture, source, log))
}

fn copies(log: &Log) -> usize {
    log.count(|event| matches!(event, Event::BackfillEnded { .. }))
}

/// Ingests until so many backfills have ended, and compares everything.
async fn copied(fixture: &Fixture, source: &mut PostgresSource, log: &mut Log, wanted: usize, why: &str) {
    let began = Instant::now();
    while copies(log) < wanted {
        take(source, log, 1).await;
        assert!(began.elapsed() < PATIENCE, "{why}: {} copies, {wanted} expected", copies(log));
    }
    ingest_all(fixture, source, log).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_arrives_as_one_table_under_its_roots_name() {
    for version in Version::ALL {
        let Some((fixture, mut source, mut log)) = following(version, "roots").await else { return };
        let names: Vec<String> = log
            .events
            .iter()
            .filter_map(|stamped| match &stamped.event {
                Event::SchemaSeen(schema) => Some(schema.name.to_string()),
                _ => None,
            })
            .collect();
        assert_eq!(names, ["app.events", "app.plain"]);
        assert!(log.count(|event| matches!(event, Event::ChunkEnded { .. })) > 10, "the leaves are cut into chunks");
        fixture
            .database
            .execute(
                "UPDATE app.events SET at = at + 300 WHERE id < 500 AND at < '2022-01-01';
                 UPDATE app.events SET id = -id WHERE id % 100 = 7; DELETE FROM app.events WHERE id > 4900;
                 INSERT INTO app.events VALUES (9001, '2022-05-05', repeat('long', 3000)); UPDATE app.plain SET id = 2;
                 UPDATE app.events SET id = 9002 WHERE id = 9001",
            )
            .await;
        let replica = ingest_all(&fixture, &mut source, &mut log).await;
        assert!(replica.rows("app.events").len() > 4800);
        assert_eq!(copies(&log), 1, "nothing happened to the tree");
        drop(source);
        fixture.database.execute("UPDATE app.events SET note = 'again' WHERE id % 10 = 3").await;
        let mut source = PostgresSource::new(by_root(&fixture)).unwrap();
        open(&mut source, &mut log).await;
        ingest_all(&fixture, &mut source, &mut log).await;
        assert_eq!(copies(&log), 1, "a restart copies nothing again");
        assert!(source.health().await.unwrap().uncaptured_tables.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_to_a_tree_without_an_event_has_it_copied_again() {
    for version in [Version::V15, Version::V18] {
        let Some((fixture, mut source, mut log)) = following(version, "roots_watched").await else { return };
        let apart = "CREATE TABLE app.apart (id int NOT NULL, at date NOT NULL, note text, PRIMARY KEY (id, at));
            ALTER TABLE app.apart ALTER note SET STORAGE EXTERNAL;
            INSERT INTO app.apart SELECT n, '2023-03-03', repeat('b', 3000) FROM generate_series(1, 500) n;
            ALTER TABLE app.events ATTACH PARTITION app.apart FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
            UPDATE app.events SET id = -id WHERE at = '2023-03-03' AND id < 50";
        let back = "ALTER TABLE app.events DETACH PARTITION app.apart; DELETE FROM app.apart WHERE id > 400;
            INSERT INTO app.apart VALUES (4000, '2023-04-04', 'alone');
            ALTER TABLE app.events ATTACH PARTITION app.apart FOR VALUES FROM ('2023-01-01') TO ('2024-01-01')";
        let mut wanted = 1;
        for (what, sql) in [
            ("attached with rows", apart),
            ("truncated", "INSERT INTO app.events VALUES (7000, '2020-06-06', 'short-lived'); TRUNCATE app.events_1"),
            ("detached, changed and attached again", back),
            (
                "detached",
                "INSERT INTO app.events VALUES (7001, '2023-06-06', 'goes too'); ALTER TABLE app.events DETACH PARTITION app.apart",
            ),
            ("dropped", "DROP TABLE app.odd"),
            ("truncated below an inner node", "TRUNCATE app.events_2"),
        ] {
            fixture.database.execute(&format!("{sql}; UPDATE app.events SET note = 'then' WHERE id = 5")).await;
            wanted += 1;
            copied(&fixture, &mut source, &mut log, wanted, what).await;
        }
        // Empty leaves may come: what gets into them is in the stream.
        fixture
            .database
            .execute("CREATE TABLE app.later PARTITION OF app.events FOR VALUES FROM ('2030-01-01') TO ('2031-01-01')")
            .await;
        let began = Instant::now();
        while began.elapsed() < std::time::Duration::from_secs(3) {
            take(&mut source, &mut log, 1).await;
        }
        fixture
            .database
            .execute("INSERT INTO app.events SELECT n, '2030-01-01', 'l' FROM generate_series(1, 100) n")
            .await;
        ingest_all(&fixture, &mut source, &mut log).await;
        assert_eq!(copies(&log), wanted, "an empty leaf needs no copy");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_that_changes_while_nobody_looks_or_the_stream_is_far_behind_is_copied_again() {
    let Some((fixture, source, mut log)) = following(Version::V15, "roots_behind").await else { return };
    drop(source);
    fixture.database.execute("TRUNCATE app.events_1").await;
    let mut source = PostgresSource::new(by_root(&fixture)).unwrap();
    open(&mut source, &mut log).await;
    copied(&fixture, &mut source, &mut log, 2, "truncated while nobody looked").await;

    // Rows that the stream has not brought yet when their leaf is gone must not come back as ghosts.
    // The first look comes with the start, when the stream is at the backlog's beginning.
    drop(source);
    for round in 1..=60 {
        fixture
            .database
            .execute(&format!(
                "BEGIN; INSERT INTO app.events SELECT {round} * 100000 + n, '2022-02-02', repeat('x', 1000) FROM generate_series(1, 500) n;
                 DELETE FROM app.events WHERE id > 100000 AND id % 500 <> 0; COMMIT"
            ))
            .await;
    }
    fixture.database.execute("ALTER TABLE app.events DETACH PARTITION app.odd").await;
    let mut source = PostgresSource::new(by_root(&fixture)).unwrap();
    open(&mut source, &mut log).await;
    copied(&fixture, &mut source, &mut log, 3, "detached behind a backlog").await;
}

async fn failure_of(source: &mut PostgresSource) -> Failure {
    let failed = async {
        loop {
            if let Err(failure) = source.next().await {
                return failure;
            }
        }
    };
    tokio::time::timeout(PATIENCE, failed).await.expect("the source does not stop")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_that_changes_stops_the_source_where_the_spec_says_so() {
    let Some(fixture) = Fixture::new(Version::V15, "roots_stop", TREE).await else { return };
    let mut config = by_root(&fixture);
    config.on_rewrite = OnRewrite::Stop;
    let mut source = PostgresSource::new(config).unwrap();
    let mut log = Log::default();
    open(&mut source, &mut log).await;
    ingest_all(&fixture, &mut source, &mut log).await;
    fixture.database.execute("TRUNCATE app.events_2a").await;
    let failure = failure_of(&mut source).await;
    assert!(matches!(failure.verdict, Verdict::Halt { .. }), "{failure}");
    assert!(failure.to_string().contains("app.events_2a was truncated"), "{failure}");
    assert!(failure.advice().unwrap().contains("on_rewrite"));
}

#[tokio::test(flavor = "multi_thread")]
async fn trees_that_cannot_be_captured_by_their_root_are_refused_by_name() {
    for (name, sql, word) in [
        ("unlogged", "ALTER TABLE app.events_1 SET UNLOGGED", "app.events_1 is unlogged"),
        (
            "identity",
            "ALTER TABLE app.odd ADD UNIQUE (at, id, note), ALTER note SET NOT NULL; ALTER TABLE app.odd REPLICA IDENTITY USING INDEX odd_at_id_note_key",
            "app.odd has another replica identity",
        ),
        ("excluded", "", "app.events_1 is excluded"),
    ] {
        let Some(fixture) = Fixture::new(Version::V15, &format!("roots_{name}"), TREE).await else { return };
        fixture.database.execute(sql).await;
        let mut config = by_root(&fixture);
        if name == "excluded" {
            config.tables.push("!app.events_1".to_owned());
        }
        let mut source = PostgresSource::new(config).unwrap();
        let failure = try_open(&mut source, &mut Log::default()).await.unwrap_err();
        assert!(matches!(failure.verdict, Verdict::Refused { .. }), "{name}: {failure}");
        assert!(failure.to_string().contains(word), "{name}: {failure}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_without_a_key_is_copied_in_one_go_and_keeps_its_duplicates() {
    let sql = "CREATE SCHEMA app; CREATE TABLE app.log (a int, b text) PARTITION BY LIST (a);
        CREATE TABLE app.log_1 PARTITION OF app.log FOR VALUES IN (1); CREATE TABLE app.log_2 PARTITION OF app.log DEFAULT;
        ALTER TABLE app.log REPLICA IDENTITY FULL; ALTER TABLE app.log_1 REPLICA IDENTITY FULL; ALTER TABLE app.log_2 REPLICA IDENTITY FULL;
        INSERT INTO app.log SELECT n % 5, 'x' FROM generate_series(1, 100) n";
    for version in [Version::V15, Version::V18] {
        let Some(fixture) = Fixture::new(version, "roots_keyless", sql).await else { return };
        let mut source = PostgresSource::new(by_root(&fixture)).unwrap();
        let mut log = Log::default();
        open(&mut source, &mut log).await;
        fixture.database.execute("INSERT INTO app.log VALUES (1, 'x'), (7, 'x'); UPDATE app.log SET a = 1 WHERE a = 3; DELETE FROM app.log WHERE a = 4").await;
        let replica = ingest_all(&fixture, &mut source, &mut log).await;
        assert_eq!(replica.rows("app.log").len(), 82);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_leaf_does_not_hold_up_the_stream() {
    for version in [Version::V15, Version::V18] {
        let Some((fixture, mut source, mut log)) = following(version, "roots_locked").await else { return };
        let later = "CREATE TABLE app.later PARTITION OF app.events FOR VALUES FROM ('2030-01-01') TO ('2031-01-01')";
        let (known, new) = (fixture.database.connect().await, fixture.database.connect().await);
        known.batch_execute("BEGIN; TRUNCATE app.events_1").await.unwrap();
        new.batch_execute(&format!("BEGIN; {later}; COMMIT; BEGIN; LOCK TABLE app.later IN ACCESS EXCLUSIVE MODE"))
            .await
            .unwrap();
        // Longer than two looks are apart.
        let began = Instant::now();
        for id in 100.. {
            fixture.database.execute(&format!("INSERT INTO app.plain VALUES ({id})")).await;
            let target = fixture.here().await;
            ingest(&mut source, &mut log, target).await;
            if began.elapsed() > std::time::Duration::from_secs(5) {
                break;
            }
        }
        known.batch_execute("ROLLBACK").await.unwrap();
        new.batch_execute("ROLLBACK").await.unwrap();
        fixture
            .database
            .execute("INSERT INTO app.events SELECT n, '2030-01-01', 'l' FROM generate_series(1, 100) n")
            .await;
        ingest_all(&fixture, &mut source, &mut log).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_with_a_constant_default_is_followed_on_a_tree_and_one_without_has_it_copied_again() {
    for version in Version::ALL {
        let Some((fixture, mut source, mut log)) = following(version, "roots_default").await else { return };
        fixture
            .database
            .execute(
                "ALTER TABLE app.events ADD word text DEFAULT 'it''s', ADD at_once timestamptz DEFAULT now();
                 UPDATE app.events SET note = 'then' WHERE id = 5",
            )
            .await;
        ingest_all(&fixture, &mut source, &mut log).await;
        assert_eq!(copies(&log), 1, "{version}: a constant is no reason to copy");
        let default = |log: &Log, name: &str| {
            let schema = log.schema("app.events");
            schema.columns.iter().find(|column| *column.name == *name).unwrap().default.clone()
        };
        assert_eq!(default(&log, "word").as_deref(), Some("'it''s'::text"));
        // A leaf that was rewritten since has the value in its rows, and must not hide what the others read.
        for sql in [
            "ALTER TABLE app.events ADD n int NOT NULL DEFAULT 7",
            "VACUUM FULL app.events_1",
            "UPDATE app.events SET note = 'now' WHERE id = 5",
        ] {
            fixture.database.execute(sql).await;
        }
        copied(&fixture, &mut source, &mut log, 2, "rewritten by a VACUUM FULL").await;
        assert_eq!(default(&log, "n").as_deref(), Some("'7'::integer"));
        fixture
            .database
            .execute(
                "ALTER TABLE app.events ADD v float8 DEFAULT random(); UPDATE app.events SET note = 'x' WHERE id = 6",
            )
            .await;
        copied(&fixture, &mut source, &mut log, 3, "added with a default that is not constant").await;
        assert_eq!(default(&log, "v"), None);
    }
}
