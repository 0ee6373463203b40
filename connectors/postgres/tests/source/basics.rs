//! Rows and changes of plain tables.

use crate::support::*;
use crossfade_connector::Source;
use crossfade_event::{Cell, Event, Op};
use crossfade_testkit::postgres::Version;

const SHOP: &str = "CREATE SCHEMA app;
    CREATE TABLE app.customers (id int PRIMARY KEY, name text NOT NULL, born date, score numeric(8,3));
    CREATE TABLE app.orders (id bigint PRIMARY KEY, customer int NOT NULL, note text, total double precision);
    INSERT INTO app.customers SELECT n, 'customer ' || n, date '2000-01-01' + n, n / 7.0 FROM generate_series(1, 500) n;
    INSERT INTO app.orders SELECT n, n % 500 + 1, repeat('x', n % 40), n / 3.0 FROM generate_series(1, 20000) n;";

async fn snapshot_and_stream(version: Version) {
    let Some(fixture) = Fixture::new(version, "basics", SHOP).await else { return };
    let (mut source, mut log) = fixture.copied().await;
    let snapshot = log.count(|event| matches!(event, Event::Rows(_)));
    assert!(snapshot > 0);

    fixture
        .database
        .execute(
            "INSERT INTO app.customers VALUES (1000, 'new', NULL, 'NaN');
             UPDATE app.customers SET name = 'renamed' WHERE id = 2;
             UPDATE app.customers SET id = 3000 WHERE id = 3;
             DELETE FROM app.customers WHERE id = 4;
             UPDATE app.orders SET total = '-Infinity' WHERE id < 100;
             BEGIN; DELETE FROM app.orders WHERE id > 19000; SAVEPOINT s; DELETE FROM app.orders; ROLLBACK TO s; COMMIT;",
        )
        .await;
    ingest_all(&fixture, &mut source, &mut log).await;
    assert_eq!(log.count(|event| matches!(event, Event::Rows(_))), snapshot, "rows were copied again");
    let key_change = log.changes().into_iter().find(|change| change.op == Op::Update && change.old.is_some()).unwrap();
    let old: Vec<_> = key_change.old.as_ref().unwrap().cells().map(|cell| cell != Cell::Absent).collect();
    assert_eq!(old, [true, false, false, false], "an old key has the key and nothing else");

    fixture.database.execute("TRUNCATE app.orders; INSERT INTO app.orders VALUES (1, 1, 'again', 1)").await;
    let replica = ingest_all(&fixture, &mut source, &mut log).await;
    assert_eq!(replica.rows("app.orders").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_and_changes_arrive_bit_for_bit_from_15() {
    snapshot_and_stream(Version::V15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_and_changes_arrive_bit_for_bit_from_17() {
    snapshot_and_stream(Version::V17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_and_changes_arrive_bit_for_bit_from_18() {
    snapshot_and_stream(Version::V18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_source_goes_on_where_the_log_ends_and_copies_nothing_twice() {
    let Some(fixture) = Fixture::new(Version::V15, "resumed", SHOP).await else { return };
    let (source, mut log) = fixture.copied().await;
    let rows = log.count(|event| matches!(event, Event::Rows(_)));
    drop(source);
    fixture.database.execute("UPDATE app.customers SET score = score + 1 WHERE id % 3 = 0").await;
    let mut source = fixture.source();
    open(&mut source, &mut log).await;
    ingest_all(&fixture, &mut source, &mut log).await;
    assert_eq!(log.count(|event| matches!(event, Event::Rows(_))), rows);
    let changed = log.changes().len();
    assert_eq!(changed, 166, "each change once");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_names_the_slots_state_and_the_tables_that_are_not_captured() {
    let Some(fixture) = Fixture::new(Version::V15, "health", SHOP).await else { return };
    let mut log = Log::default();
    let mut source = fixture.source();
    open(&mut source, &mut log).await;
    fixture
        .database
        .execute("CREATE TABLE app.later (id int PRIMARY KEY); CREATE SCHEMA other; CREATE TABLE other.t ()")
        .await;
    let health = source.health().await.unwrap();
    assert_eq!(health.status.as_deref(), Some("reserved"));
    assert_eq!(health.uncaptured_tables, ["app.later"]);
    assert!(health.current.unwrap().commit > log.position.map_or(0, |position| position.commit));
    assert!(health.retained_bytes.is_some());
}
