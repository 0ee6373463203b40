//! What `plan` is told of a database: sizes, without waiting for anybody.

use crate::support::*;
use crossfade_connector::Inspect;
use crossfade_event::catalog::TableDef;
use crossfade_postgres::{Config, PostgresInspect};
use crossfade_testkit::postgres::Version;

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
