//! The other three directions, each with a small shop and a writer: SQLite to SQLite with new keys, PostgreSQL to SQLite, SQLite
//! to PostgreSQL.

use crate::desk::{Desk, Writer, postgres, sqlite};
use crossfade_testkit::{
    compare::{assert_same, sqlite_reader, sqlite_texts},
    crossfade::Running,
    postgres::{Postgres, Version},
    wait::wait_for_blocking,
};
use rusqlite::Connection;
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

const SCHEMA: &str = "
CREATE TABLE customers (id integer PRIMARY KEY, mail text NOT NULL UNIQUE, name text);
CREATE TABLE orders (id integer PRIMARY KEY, customer_id integer NOT NULL REFERENCES customers, total text, paid integer NOT NULL);
";

fn fill() -> String {
    let mut sql = String::from(SCHEMA);
    for id in 1..=300 {
        sql.push_str(&format!("INSERT INTO customers VALUES ({id}, 'c{id}@example.org', 'žluťoučký {id}');\n"));
        sql.push_str(&format!(
            "INSERT INTO orders VALUES ({id}, {id}, '{id}.50', {}), ({}, {id}, NULL, 0);\n",
            id % 2,
            id + 1000
        ));
    }
    sql
}

/// Plain SQL that both systems take.
fn work(number: u64) -> String {
    let (id, new) = (1 + number * 7 % 300, 10_000 + number);
    match number % 4 {
        0 => format!(
            "INSERT INTO customers VALUES ({new}, 'n{new}@example.org', NULL); INSERT INTO orders VALUES ({new}, {new}, '1', 0)"
        ),
        1 => format!("UPDATE orders SET paid = paid + 1, total = '{number}.00' WHERE customer_id = {id}"),
        2 => format!("DELETE FROM orders WHERE id = {}", 1000 + id),
        _ => format!("UPDATE orders SET id = id + 1000000 WHERE id = {id}"),
    }
}

fn make_sqlite(path: &Path) {
    let connection = Connection::open(path).unwrap();
    connection.execute_batch(&format!("PRAGMA journal_mode = WAL; BEGIN; {} COMMIT;", fill())).unwrap();
}

/// Writes into a file for as long as `body` takes.
async fn while_writing(path: &Path, body: impl AsyncFnOnce(&AtomicU64)) {
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (over, count, path) = (Arc::clone(&stop), Arc::clone(&done), path.to_owned());
    let writer = thread::spawn(move || {
        let connection = Connection::open(path).unwrap();
        connection.busy_timeout(crossfade_testkit::wait::GENEROUS).unwrap();
        for number in 0.. {
            if over.load(Ordering::Relaxed) {
                return;
            }
            connection.execute_batch(&format!("BEGIN IMMEDIATE; {}; COMMIT", work(number))).unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(5));
        }
    });
    body(&done).await;
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
}

fn wait_for_more(done: &AtomicU64, transactions: u64) {
    let goal = done.load(Ordering::Relaxed) + transactions;
    wait_for_blocking("a writer to commit", || (done.load(Ordering::Relaxed) >= goal).then_some(()));
}

/// Starts the migration of a file while somebody writes into it; it has caught up when this returns.
async fn run_under_writers(desk: &Desk, file: &Path) -> Running {
    let mut run = None;
    while_writing(file, async |done| {
        let run = run.insert(desk.start());
        wait_for_more(done, 100);
        desk.wait(run);
    })
    .await;
    let mut run: Running = run.unwrap();
    desk.wait(&mut run);
    run
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sqlite_file_moves_into_another_one_with_new_keys() {
    let desk = Desk::new();
    let (old, new) = (desk.path("shop.db"), desk.path("shop-v2.db"));
    make_sqlite(&old);
    desk.write_spec(
        &format!("{}\ntables = [\"main.*\"]", sqlite(&old)),
        &sqlite(&new),
        "[keys.default]\nmake = \"uuid-v5\"\nnamespace = \"6f1c1f0e-6f2b-4b57-9a34-0d5be4c7a001\"\n\
         [rekey]\ntables = [\"main.*\"]\nwith = \"default\"\n[[table]]\nfrom = \"main.customers\"\n\
         to = \"clients\"\nsteps = [{ rename = \"mail\", to = \"email\" }]\n",
    );
    desk.expect(0, &["check"], &[]);
    desk.expect(0, &["plan"], &[]);
    let run = run_under_writers(&desk, &old).await;
    desk.verify();

    // The source through the target's own mapping, by a join of both files.
    let both = sqlite_reader(&new);
    both.execute_batch(&format!("ATTACH '{}' AS old", old.display())).unwrap();
    let key = |table: &str, column: &str| {
        format!(
            "(SELECT new_id FROM uuid_migration_mapping WHERE table_name LIKE '%{table}' AND old_id = CAST({column} AS TEXT))"
        )
    };
    let wanted = format!("SELECT {}, mail, name FROM old.customers", key("customers", "id"));
    assert_same(
        "clients",
        &sqlite_texts(&both, &wanted),
        &sqlite_texts(&both, "SELECT id, email, name FROM main.clients"),
    );
    let wanted =
        format!("SELECT {}, {}, total, paid FROM old.orders", key("orders", "id"), key("customers", "customer_id"));
    let found = "SELECT id, customer_id, total, paid FROM main.orders";
    assert_same("orders", &sqlite_texts(&both, &wanted), &sqlite_texts(&both, found));
    let broken = sqlite_texts(&both, "SELECT * FROM pragma_foreign_key_check");
    assert_eq!(broken.count(), 0, "every reference of the target is closed");
    let references = sqlite_texts(&both, "SELECT \"table\", \"from\" FROM pragma_foreign_key_list('orders')");
    assert_eq!(references.count(), 1, "the reference is made in the target");

    let export = desk.expect(0, &["mapping", "export"], &[]);
    assert!(export.stdout.lines().count() > 900, "{export}");
    desk.expect(0, &["mapping", "lookup"], &["17"]);
    desk.stop(run);
    desk.expect(0, &["rollback"], &["--wipe", "--yes"]);
    let left = sqlite_texts(&sqlite_reader(&new), "SELECT name FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'");
    assert_eq!(left.count(), 0, "a wipe leaves nothing: {left:?}");
    let left = sqlite_texts(&sqlite_reader(&old), "SELECT name FROM sqlite_schema WHERE name LIKE '%crossfade%'");
    assert_eq!(left.count(), 0, "a wipe leaves nothing in the source: {left:?}");
}

const CUSTOMERS: &str = "SELECT id, mail, name FROM customers";
const ORDERS: &str = "SELECT id, customer_id, total, paid FROM orders";

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_database_moves_into_a_sqlite_file() {
    let Some(server) = Postgres::shared(Version::V15) else { return };
    let source = server.create_database("to_sqlite").await;
    source.execute(&fill()).await;
    let desk = Desk::new();
    let file = desk.path("new.db");
    desk.write_spec(&format!("{}\ntables = [\"public.*\"]", postgres(&source)), &sqlite(&file), "");
    desk.expect(0, &["check"], &[]);
    desk.expect(0, &["plan"], &[]);
    let writer = Writer::start(&source, work);
    let mut run = desk.start();
    writer.wait_for_more(100);
    desk.wait(&mut run);
    writer.stop();
    desk.wait(&mut run);
    for sql in [CUSTOMERS, ORDERS] {
        assert_same(sql, &crate::desk::rows(&source, sql).await, &sqlite_texts(&sqlite_reader(&file), sql));
    }
    desk.verify();
    desk.stop(run);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sqlite_file_moves_into_a_postgres_database() {
    let Some(server) = Postgres::shared_target(Version::V15) else { return };
    let target = server.create_database("from_sqlite").await;
    let desk = Desk::new();
    let file = desk.path("old.db");
    make_sqlite(&file);
    let sink = format!("{}\nschema = \"shop\"", postgres(&target));
    desk.write_spec(&format!("{}\ntables = [\"main.*\"]", sqlite(&file)), &sink, "");
    desk.expect(0, &["check"], &[]);
    desk.expect(0, &["plan"], &[]);
    let run = run_under_writers(&desk, &file).await;
    for sql in [CUSTOMERS, ORDERS] {
        let there = sql.replace("FROM ", "FROM shop.");
        assert_same(sql, &sqlite_texts(&sqlite_reader(&file), sql), &crate::desk::rows(&target, &there).await);
    }
    desk.verify();
    desk.stop(run);
}
