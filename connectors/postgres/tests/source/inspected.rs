//! What `plan` is told of a database: sizes, without waiting for anybody.

use crate::support::*;
use crossfade_connector::{Digesting, Inspect};
use crossfade_event::{SchemaVersion, TableId, TableName, TableSchema, catalog::TableDef};
use crossfade_postgres::{Config, PostgresInspect};
use crossfade_testkit::postgres::Version;
use std::collections::BTreeMap;

async fn tables(fixture: &Fixture, by_root: bool) -> Vec<TableDef> {
    let mut inspect = PostgresInspect::new(Config::parse(&fixture.database.url).unwrap()).by_root(by_root);
    let patterns = ["app.*".to_owned()];
    let read = tokio::time::timeout(PATIENCE, inspect.catalog(&patterns)).await;
    read.expect("the catalog waits for a lock").unwrap().tables
}

fn of<'a>(tables: &'a [TableDef], name: &str) -> &'a TableDef {
    tables.iter().find(|table| *table.name.name == *name).unwrap_or_else(|| panic!("no {name}"))
}

const TABLES: &str = "CREATE SCHEMA app; CREATE TABLE app.narrow (id int PRIMARY KEY, n int);
    ALTER TABLE app.narrow SET (autovacuum_enabled = off);
    INSERT INTO app.narrow SELECT n, n FROM generate_series(1, 20000) n;
    CREATE TABLE app.empty (id int PRIMARY KEY);
    CREATE TABLE app.grown (id int PRIMARY KEY, a text); ALTER TABLE app.grown SET (autovacuum_enabled = off);
    INSERT INTO app.grown SELECT n, repeat('x', 100) FROM generate_series(1, 1000) n; ANALYZE app.grown;
    INSERT INTO app.grown SELECT n, repeat('x', 100) FROM generate_series(1001, 10000) n;
    CREATE TABLE app.tree (id int, at int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE app.low PARTITION OF app.tree FOR VALUES FROM (0) TO (10) WITH (autovacuum_enabled = off);
    CREATE TABLE app.high PARTITION OF app.tree FOR VALUES FROM (10) TO (20) PARTITION BY LIST (id);
    CREATE TABLE app.high_any PARTITION OF app.high DEFAULT WITH (autovacuum_enabled = off);
    INSERT INTO app.tree SELECT n, n % 20 FROM generate_series(1, 20000) n;";

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_never_analysed_has_rows_by_its_size_and_one_that_grew_has_more() {
    for version in Version::ALL {
        let Some(fixture) = Fixture::new(version, "never_analysed", TABLES).await else { return };
        let about = |table: &TableDef, rows: u64| {
            let estimate = table.rows_estimate;
            assert!((rows / 2..=rows * 2).contains(&estimate), "{version}: {} has about {estimate} rows", table.name);
            assert!(table.bytes > rows * 28, "{version}: {} has {} bytes", table.name, table.bytes);
        };
        let by_root = tables(&fixture, true).await;
        about(of(&by_root, "narrow"), 20_000);
        about(of(&by_root, "grown"), 10_000);
        about(of(&by_root, "tree"), 20_000);
        assert_eq!((of(&by_root, "empty").rows_estimate, of(&by_root, "empty").bytes), (0, 0));
        let by_leaf = tables(&fixture, false).await;
        about(of(&by_leaf, "low"), 10_000);
        about(of(&by_leaf, "high_any"), 10_000);
        fixture.database.execute("ANALYZE app.grown, app.tree").await;
        let by_root = tables(&fixture, true).await;
        assert_eq!((of(&by_root, "grown").rows_estimate, of(&by_root, "tree").rows_estimate), (10_000, 20_000));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobodys_lock_is_waited_for_when_sizes_are_asked_for() {
    for version in Version::ALL {
        let Some(fixture) = Fixture::new(version, "sizes_locked", TABLES).await else { return };
        fixture.database.execute("ANALYZE app.low").await;
        let holder = fixture.database.connect().await;
        holder.batch_execute("BEGIN; LOCK TABLE app.low, app.narrow IN ACCESS EXCLUSIVE MODE").await.unwrap();
        let tables = tables(&fixture, true).await;
        // Of what is locked the catalog's word is taken: what was analysed, and nothing of what never was.
        assert_eq!(of(&tables, "narrow").rows_estimate, 0, "{version}");
        let tree = of(&tables, "tree").rows_estimate;
        assert!((15_000..=30_000).contains(&tree), "{version}: the tree has about {tree} rows");
        assert!(of(&tables, "grown").rows_estimate > 5_000, "{version}: one lock takes the sizes of all");
        holder.batch_execute("ROLLBACK").await.unwrap();
    }
}

const HOW: Digesting = Digesting { buckets: 64, seed: 7 };

/// A table and what it digests to, bucket by bucket.
async fn digests(fixture: &Fixture, name: &str) -> (PostgresInspect, TableSchema, BTreeMap<u32, (u64, u128)>) {
    let found = tables(fixture, false).await;
    let table = of(&found, name);
    let schema = TableSchema {
        id: TableId(1),
        version: SchemaVersion(1),
        name: table.name.clone(),
        columns: table.columns.iter().map(|def| def.column.clone()).collect(),
        identity: table.identity,
        native_id: table.native_id,
    };
    let mut inspect = PostgresInspect::new(Config::parse(&fixture.database.url).unwrap());
    let (made, position) = inspect.digest(&schema, HOW).await.unwrap();
    assert!(position.is_some());
    (inspect, schema, made.iter().map(|digest| (digest.bucket, (digest.count, digest.sum))).collect())
}

const DIGESTED: &str = "CREATE SCHEMA app;
    CREATE TABLE app.t (\"a key\" int, at timestamptz, n numeric, f float8, note text, doc json, kept bool DEFAULT true, PRIMARY KEY (\"a key\", at));
    INSERT INTO app.t SELECT n, timestamptz '2024-01-01 12:00+05' + n * interval '1 ms', n / 7.0, n / 7.0::float8, 'note ' || n, '{\"a\":1}' FROM generate_series(1, 500) n;
    INSERT INTO app.t VALUES (501, '-infinity', 'NaN', '-0', NULL, NULL), (502, 'infinity', 1.0, '-Infinity', '', 'null'), (503, '0001-01-01 BC', 1e-20, 5e-324, 'a,b\"(\\', '{}')";

#[tokio::test(flavor = "multi_thread")]
async fn a_servers_own_digests_tell_every_change_and_are_the_same_on_every_server() {
    let mut first = None;
    for version in Version::ALL {
        let Some(fixture) = Fixture::new(version, "digested", DIGESTED).await else { return };
        let (mut inspect, schema, before) = digests(&fixture, "t").await;
        assert_eq!(before.values().map(|(count, _)| count).sum::<u64>(), 503);
        assert_eq!(first.get_or_insert(before.clone()), &before, "{version}");
        // A scan of some buckets gives their rows, all of them and no others.
        for (bucket, (count, _)) in &before {
            inspect.scan_buckets(&schema, HOW, &[*bucket]).await.unwrap();
            let mut rows = 0;
            loop {
                let page = inspect.scan_next().await.unwrap();
                if page.is_empty() {
                    break;
                }
                rows += page.len() as u64;
            }
            assert_eq!(rows, *count, "{version}: bucket {bucket}");
        }
        for change in [
            "UPDATE app.t SET n = 1.00 WHERE \"a key\" = 502",
            "UPDATE app.t SET note = NULL WHERE \"a key\" = 502",
            "UPDATE app.t SET f = 0 WHERE \"a key\" = 501",
            "UPDATE app.t SET doc = '{ }' WHERE \"a key\" = 503",
            "UPDATE app.t SET kept = false WHERE \"a key\" = 7",
            "UPDATE app.t SET note = (SELECT note FROM app.t o WHERE o.\"a key\" = 11 - t.\"a key\") WHERE \"a key\" IN (5, 6)",
            "UPDATE app.t SET at = at + interval '1 us' WHERE \"a key\" = 9",
            "DELETE FROM app.t WHERE \"a key\" = 100",
            "INSERT INTO app.t VALUES (100, 'epoch')",
        ] {
            let (_, _, was) = digests(&fixture, "t").await;
            fixture.database.execute(change).await;
            let (_, _, is) = digests(&fixture, "t").await;
            assert_ne!(is, was, "{version}: {change}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn references_to_nothing_and_values_that_stand_twice_are_counted() {
    let sql = "CREATE SCHEMA app; CREATE TABLE app.parent (a int, b text, PRIMARY KEY (a, b));
        CREATE TABLE app.child (id int PRIMARY KEY, a bigint, b text, once int);
        INSERT INTO app.parent VALUES (1, 'x'), (2, 'y');
        INSERT INTO app.child VALUES (1, 1, 'x', 5), (2, 1, 'y', 5), (3, NULL, 'nothing', NULL), (4, 3, 'y', NULL), (5, 2, 'y', 6)";
    let Some(fixture) = Fixture::new(Version::V15, "dangling", sql).await else { return };
    let mut inspect = PostgresInspect::new(Config::parse(&fixture.database.url).unwrap());
    let (child, parent) = (TableName::new("app", "child"), TableName::new("app", "parent"));
    let columns = ["a".to_owned(), "b".to_owned()];
    assert_eq!(inspect.dangling(&child, &columns, &parent, &columns).await.unwrap(), Some(2));
    assert_eq!(inspect.repeated(&child, &["once".to_owned()]).await.unwrap(), Some(1));
    assert_eq!(inspect.repeated(&child, &["id".to_owned()]).await.unwrap(), Some(0));
}
