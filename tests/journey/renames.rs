//! Columns that get other names, or go, while their tables are copied and followed: checks, indexes, computed columns and
//! references go with them into the target, whenever these are made there.

use crate::desk::{Desk, assert_same_tables, postgres, rows, sqlite, two_databases};
use crossfade_testkit::{
    compare::{assert_same, sqlite_reader, sqlite_texts},
    crossfade::Running,
    postgres::{Database, Postgres, Version},
};
use rusqlite::Connection;
use std::path::Path;

const ROWS: i64 = 40_000;

/// `items` has a row for each of its numbers, all of them in one of the places.
fn shop(text: &str, number_rows: &str) -> String {
    format!(
        "CREATE TABLE places (code {text} NOT NULL PRIMARY KEY, area integer NOT NULL, UNIQUE (code, area), CHECK (area > 0));
         INSERT INTO places VALUES ('a', 1), ('b', 2);
         CREATE TABLE items (id integer PRIMARY KEY, name {text} NOT NULL, amount integer NOT NULL, place {text}, area integer, old integer, pad {text},
            CONSTRAINT named CHECK (name <> 'name'), CONSTRAINT enough CHECK (amount >= 0 AND amount < 1000000), CONSTRAINT aged CHECK (old > 0),
            CONSTRAINT placed FOREIGN KEY (place, area) REFERENCES places (code, area));
         CREATE INDEX items_name ON items (name DESC, amount);
         CREATE INDEX items_lower ON items (lower(name)) WHERE amount > 5;
         CREATE UNIQUE INDEX items_once ON items (name, amount);
         CREATE INDEX items_old ON items (old);
         CREATE INDEX items_older ON items (lower(pad)) WHERE old > 1;
         {number_rows} INSERT INTO items SELECT n, 'Item ' || n, n, 'b', 2, 7, 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' FROM n;"
    )
}

/// Every name that something hangs on becomes another one, two of them each other's; what hangs on a column that goes has
/// gone before it where the database asks for that.
const OTHER_NAMES: &str =
    "ALTER TABLE items RENAME COLUMN name TO spare; ALTER TABLE items RENAME COLUMN amount TO name;
    ALTER TABLE items RENAME COLUMN spare TO amount; ALTER TABLE items RENAME COLUMN area TO district;
    ALTER TABLE places RENAME COLUMN area TO number; ALTER TABLE places RENAME COLUMN code TO sign;";
/// Plain SQL under the new names.
const CHANGES: &str = "UPDATE items SET amount = amount || '!', name = name + 1 WHERE id % 7 = 0; DELETE FROM items WHERE id % 11 = 3;
    INSERT INTO places VALUES ('c', 3); INSERT INTO items (id, amount, name, place, district) VALUES (900001, 'New', 900001, 'c', 3);";

fn spec(desk: &Desk, source: &str, tables: &str, sink: &str) {
    let source = format!("{source}\ntables = [\"{tables}\"]\nsnapshot = {{ workers = 1, chunk_rows = 200 }}");
    desk.write_spec(&source, sink, "");
}

/// Ends a run in the middle of its copy.
async fn kill_while_copying(desk: &Desk, count: impl AsyncFn() -> i64) {
    let mut run = desk.start();
    desk.until("some rows to be copied", &mut run, async || count().await > 0).await;
    run.kill();
    let copied = count().await;
    assert!(copied < ROWS, "the copy was over: {copied}");
}

const SOURCE_ROWS: &str = "WITH n AS (SELECT n FROM generate_series(1, 40000) n)";
const IN_POSTGRES: &str = "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace
    UNION ALL SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
    UNION ALL SELECT table_name, column_name, generation_expression FROM information_schema.columns WHERE table_schema = 'public'";

/// Waits until the target has all that the source has, in the same words.
async fn until_the_same(desk: &Desk, run: &mut Running, source: &Database, target: &Database) {
    let wanted = rows(source, IN_POSTGRES).await;
    let mut found = wanted.clone();
    desk.until("everything that the source's tables have", run, async || {
        found = rows(target, IN_POSTGRES).await;
        found.count() >= wanted.count()
    })
    .await;
    assert_same("what is said of columns", &wanted, &found);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_names_a_column_goes_with_it_while_a_postgres_table_is_copied() {
    let Some((source, target)) = two_databases().await else { return };
    source.execute(&shop("text", SOURCE_ROWS)).await;
    source.execute("ALTER TABLE items ADD COLUMN doubled int GENERATED ALWAYS AS (amount * 2) STORED").await;
    let desk = Desk::new();
    spec(&desk, &postgres(&source), "public.*", &postgres(&target));
    let counted = "SELECT count(*) FROM items";
    kill_while_copying(&desk, async || {
        let Some(_) = target.value("SELECT to_regclass('public.items')").await else { return 0 };
        target.value(counted).await.and_then(|count| count.parse().ok()).unwrap_or(0)
    })
    .await;
    source.execute(&format!("{OTHER_NAMES} ALTER TABLE items DROP COLUMN old; {CHANGES}")).await;
    let mut run = desk.start();
    desk.wait(&mut run);
    assert_same_tables(&source, &target, &["items", "places"]).await;
    until_the_same(&desk, &mut run, &source, &target).await;

    // A table that is taken in later refers to a column under its new name.
    source.execute("ALTER TABLE places RENAME COLUMN sign TO letter; CREATE TABLE notes (id int PRIMARY KEY, place text REFERENCES places)").await;
    source.execute("INSERT INTO notes VALUES (1, 'a'), (2, 'c')").await;
    desk.expect(0, &["resume"], &["--add"]);
    source.execute("UPDATE items SET name = name + 1 WHERE id < 100").await;
    desk.wait(&mut run);
    until_the_same(&desk, &mut run, &source, &target).await;
    assert_same_tables(&source, &target, &["items", "places", "notes"]).await;
    desk.verify();

    // One that is copied again has all it had; it may be copied twice, and has less in between.
    source
        .execute("ALTER TABLE items ALTER district TYPE bigint; ALTER TABLE items RENAME COLUMN pad TO padding")
        .await;
    source.execute("UPDATE items SET name = name + 1 WHERE id < 100").await;
    desk.wait(&mut run);
    until_the_same(&desk, &mut run, &source, &target).await;
    desk.stop(run);
}

const ITEMS: &str = "SELECT id, amount, name, place, district FROM items";
const PLACES: &str = "SELECT * FROM places";
const INDEXES: &str =
    "SELECT il.name, il.\"unique\", ix.seqno, ix.name, ix.\"desc\" FROM pragma_index_list('items') il,
    pragma_index_xinfo(il.name) ix WHERE il.origin = 'c' AND ix.key = 1";

fn copied_into(path: &Path) -> i64 {
    let count = |path: &Path| Connection::open(path)?.query_row("SELECT count(*) FROM items", [], |row| row.get(0));
    if path.exists() { count(path).unwrap_or(0) } else { 0 }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_names_a_column_goes_with_it_while_a_postgres_table_is_copied_into_sqlite() {
    let Some(server) = Postgres::shared(Version::V15) else { return };
    let source = server.create_database("renames").await;
    source.execute(&shop("text", SOURCE_ROWS)).await;
    let desk = Desk::new();
    let file = desk.path("new.db");
    spec(&desk, &postgres(&source), "public.*", &sqlite(&file));
    kill_while_copying(&desk, async || copied_into(&file)).await;
    source.execute(&format!("{OTHER_NAMES} ALTER TABLE items DROP COLUMN old; {CHANGES}")).await;
    let mut run = desk.start();
    desk.wait(&mut run);
    for sql in [ITEMS, PLACES] {
        assert_same(sql, &rows(&source, sql).await, &sqlite_texts(&sqlite_reader(&file), sql));
    }
    let wanted = "VALUES ('items_name', 0, 0, 'amount', 1), ('items_name', 0, 1, 'name', 0),
        ('items_once', 1, 0, 'amount', 0), ('items_once', 1, 1, 'name', 0)";
    let has = |sql: &str| sqlite_texts(&sqlite_reader(&file), sql);
    desk.until("the indexes", &mut run, async || has(INDEXES).count() == 4).await;
    assert_same("indexes", &has(wanted), &has(INDEXES));
    desk.verify();
    desk.stop(run);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_names_a_column_goes_with_it_while_a_sqlite_table_is_copied() {
    let desk = Desk::new();
    let (old, new) = (desk.path("old.db"), desk.path("new.db"));
    let file = Connection::open(&old).unwrap();
    file.busy_timeout(crossfade_testkit::wait::GENEROUS).unwrap();
    let numbers = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 40000)";
    let shop = shop("TEXT", numbers).replace("items (lower(name))", "items (lower([NAME]))");
    file.execute_batch(&format!("PRAGMA journal_mode = WAL; {shop}")).unwrap();
    spec(&desk, &sqlite(&old), "main.*", &sqlite(&new));
    kill_while_copying(&desk, async || copied_into(&new)).await;
    file.execute_batch(&format!("{OTHER_NAMES} {CHANGES}")).unwrap();
    let mut run = desk.start();
    desk.wait(&mut run);
    let same = |sql: &str| {
        assert_same(sql, &sqlite_texts(&sqlite_reader(&old), sql), &sqlite_texts(&sqlite_reader(&new), sql));
    };
    [ITEMS, PLACES].iter().for_each(|sql| same(sql));
    let indexes = sqlite_texts(&file, INDEXES).count();
    desk.until("the indexes", &mut run, async || sqlite_texts(&sqlite_reader(&new), INDEXES).count() == indexes).await;
    same(INDEXES);
    same("SELECT \"table\", \"from\", \"to\" FROM pragma_foreign_key_list('items')");
    desk.verify();
    desk.stop(run);
}
