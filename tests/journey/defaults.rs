//! Columns that come with a constant: rows from before read it in the source, so they must hold it in a target that
//! speaks another dialect as well.

use crate::desk::{Desk, assert_same_tables, postgres, rows, sqlite, two_databases};
use crossfade_testkit::{
    compare::{assert_same, sqlite_reader, sqlite_texts},
    crossfade::Running,
    postgres::{Postgres, Version},
};
use rusqlite::Connection;

/// A migration of these tables that has caught up.
fn moved(desk: &Desk, source: &str, tables: &str, sink: &str) -> Running {
    desk.write_spec(&format!("{source}\ntables = [\"{tables}\"]"), sink, "");
    let mut run = desk.start();
    desk.wait(&mut run);
    run
}

#[tokio::test(flavor = "multi_thread")]
async fn what_old_rows_read_in_a_new_column_of_postgres_stands_in_sqlite() {
    let Some(server) = Postgres::shared(Version::V15) else { return };
    let source = server.create_database("defaults").await;
    source.execute("CREATE TABLE items (id int PRIMARY KEY, name text); INSERT INTO items SELECT n, 'i' || n FROM generate_series(1, 300) n").await;
    let desk = Desk::new();
    let file = desk.path("new.db");
    let mut run = moved(&desk, &postgres(&source), "public.*", &sqlite(&file));
    source
        .execute(
            r"ALTER TABLE items ADD COLUMN said text DEFAULT 'it''s a \ and \\ here', ADD COLUMN whole int NOT NULL DEFAULT 42,
              ADD COLUMN below int DEFAULT -7, ADD COLUMN price numeric(8,2) DEFAULT 1.50, ADD COLUMN flag bool DEFAULT true,
              ADD COLUMN at timestamptz DEFAULT '2024-05-06 07:08:09+02', ADD COLUMN empty_one text DEFAULT NULL,
              ADD COLUMN half float8 DEFAULT -0.5, ADD COLUMN raw bytea DEFAULT '\x00ff5c'",
        )
        .await;
    source.execute("UPDATE items SET whole = 1, said = NULL WHERE id < 5; INSERT INTO items (id) VALUES (1001)").await;
    desk.wait(&mut run);
    let in_source = r"SELECT id, name, said, whole, below, price::text, flag::int, empty_one, half, encode(raw, 'hex'),
        to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') || '+00' FROM items";
    let in_target = "SELECT id, name, said, whole, below, price, flag, empty_one, half, lower(hex(raw)), at FROM items";
    assert_same("items", &rows(&source, in_source).await, &sqlite_texts(&sqlite_reader(&file), in_target));
    desk.verify();
    desk.stop(run);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_old_rows_read_in_a_new_column_of_sqlite_stands_in_postgres() {
    let Some(server) = Postgres::shared_target(Version::V15) else { return };
    let target = server.create_database("defaults").await;
    let desk = Desk::new();
    let file = desk.path("old.db");
    let old = Connection::open(&file).unwrap();
    old.execute_batch(
        "CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT);
         WITH RECURSIVE n(v) AS (SELECT 1 UNION ALL SELECT v + 1 FROM n WHERE v < 300)
         INSERT INTO items SELECT v, 'i' || v FROM n",
    )
    .unwrap();
    let mut run = moved(&desk, &sqlite(&file), "main.*", &postgres(&target));
    old.execute_batch(
        r"ALTER TABLE items ADD COLUMN said TEXT DEFAULT 'it''s a \ and \\ here';
          ALTER TABLE items ADD COLUMN whole INTEGER NOT NULL DEFAULT 42;
          ALTER TABLE items ADD COLUMN below INTEGER DEFAULT -7;
          ALTER TABLE items ADD COLUMN price DECIMAL(8,2) DEFAULT 1.25;
          ALTER TABLE items ADD COLUMN flag BOOLEAN DEFAULT TRUE;
          ALTER TABLE items ADD COLUMN at DATETIME DEFAULT '2024-05-06 07:08:09';
          ALTER TABLE items ADD COLUMN empty_one TEXT DEFAULT NULL;
          ALTER TABLE items ADD COLUMN raw BLOB DEFAULT x'00ff5c';
          UPDATE items SET whole = 1, said = NULL WHERE id < 5; INSERT INTO items (id) VALUES (1001);",
    )
    .unwrap();
    desk.wait(&mut run);
    let in_source = "SELECT id, name, said, whole, below, price, flag, at, empty_one, lower(hex(raw)) FROM items";
    let in_target = "SELECT id, name, said, whole, below, price, flag::int, \
        to_char(at, 'YYYY-MM-DD HH24:MI:SS'), empty_one, encode(raw, 'hex') FROM items";
    assert_same("items", &sqlite_texts(&sqlite_reader(&file), in_source), &rows(&target, in_target).await);
    desk.verify();
    desk.stop(run);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_constant_that_the_target_cannot_hold_stops_the_run_and_says_what_to_do() {
    let Some(server) = Postgres::shared(Version::V15) else { return };
    let source = server.create_database("unsaid").await;
    source.execute("CREATE TABLE items (id int PRIMARY KEY); INSERT INTO items VALUES (1), (2)").await;
    let desk = Desk::new();
    let file = desk.path("new.db");
    let run = moved(&desk, &postgres(&source), "public.*", &sqlite(&file));
    source.execute("ALTER TABLE items ADD COLUMN odd float8 DEFAULT 'NaN'; INSERT INTO items VALUES (3, 1)").await;
    let ended = run.wait();
    assert_ne!(ended.code, Some(0), "{ended}");
    for word in ["items", "\"odd\"", "resume --add"] {
        assert!(ended.stderr.contains(word), "{word} is missing: {ended}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_of_rows_from_before_a_column_gives_them_what_they_read_in_it() {
    let Some((source, target)) = two_databases().await else { return };
    source.execute("CREATE TABLE items (id int PRIMARY KEY, name text); INSERT INTO items SELECT n, 'i' || n FROM generate_series(1, 50) n").await;
    let desk = Desk::new();
    let mut run = moved(&desk, &postgres(&source), "public.*", &postgres(&target));
    desk.expect(0, &["checkpoint"], &["before"]);
    source.execute("INSERT INTO items SELECT n, 'then' FROM generate_series(101, 150) n; UPDATE items SET name = 'moved' WHERE id = 1").await;
    source
        .execute(
            "ALTER TABLE items ADD COLUMN said varchar(9) NOT NULL DEFAULT 'it''s', ADD COLUMN whole int DEFAULT -7",
        )
        .await;
    source.execute("INSERT INTO items (id) VALUES (1001); UPDATE items SET whole = 1 WHERE id = 120").await;
    desk.wait(&mut run);
    // A later version is the newest, and the column has another type in it.
    source.execute("ALTER TABLE items ALTER said TYPE varchar(20), ADD COLUMN later text").await;
    source.execute("INSERT INTO items (id, later) VALUES (1002, 'x')").await;
    desk.wait(&mut run);
    assert_same_tables(&source, &target, &["items"]).await;
    desk.stop(run);
    target.execute("UPDATE items SET name = 'damaged' WHERE id IN (1, 110); DELETE FROM items WHERE id = 130").await;
    desk.expect(0, &["replay"], &["--from", "checkpoint:before"]);
    assert_same_tables(&source, &target, &["items"]).await;
    desk.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_waits_in_quarantine_while_a_column_comes_has_what_the_others_read_in_it() {
    let Some((source, target)) = two_databases().await else { return };
    source.execute("CREATE TABLE items (id int PRIMARY KEY, name text); INSERT INTO items SELECT n, 'i' || n FROM generate_series(1, 50) n").await;
    let desk = Desk::new();
    let mut run = moved(&desk, &postgres(&source), "public.*", &postgres(&target));
    target.execute("ALTER TABLE items ADD CONSTRAINT ours CHECK (name <> 'bad')").await;
    source.execute("INSERT INTO items VALUES (60, 'bad'), (61, 'good')").await;
    desk.wait(&mut run);
    source
        .execute(
            "ALTER TABLE items ADD COLUMN said varchar(9) NOT NULL DEFAULT 'it''s', ADD COLUMN whole int DEFAULT -7",
        )
        .await;
    source.execute("INSERT INTO items (id) VALUES (1001)").await;
    desk.wait(&mut run);
    // A later version is the newest that a new run follows, and the column has another type in it.
    source.execute("ALTER TABLE items ALTER said TYPE varchar(20), ADD COLUMN later text; INSERT INTO items (id, later) VALUES (1002, 'x')").await;
    desk.wait(&mut run);
    desk.stop(run);
    let mut run = desk.start();
    desk.wait(&mut run);
    target.execute("ALTER TABLE items DROP CONSTRAINT ours").await;
    desk.expect(0, &["quarantine", "retry"], &["--all"]);
    desk.wait(&mut run);
    assert_same_tables(&source, &target, &["items"]).await;
    desk.verify();
    desk.stop(run);
}
