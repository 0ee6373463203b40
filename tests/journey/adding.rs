//! Tables that come while a migration runs: reported, and taken in when somebody says so.

use crate::desk::{Desk, Writer, assert_same_tables, postgres, rows, sqlite, two_databases};
use crossfade_testkit::compare::{assert_same, sqlite_reader, sqlite_texts};
use rusqlite::Connection;

const ITEMS: &str = "CREATE TABLE items (id int PRIMARY KEY, name text, amount int NOT NULL DEFAULT 0);
    INSERT INTO items SELECT n, 'item ' || n, n FROM generate_series(1, 2000) n;";
const INVOICES: &str =
    "CREATE TABLE invoices (id int PRIMARY KEY, item int NOT NULL REFERENCES items ON DELETE CASCADE,
        number text NOT NULL UNIQUE, paid boolean NOT NULL DEFAULT false);
    CREATE INDEX invoices_item ON invoices (item);
    INSERT INTO invoices SELECT n, 1 + n % 1000, 'no ' || n FROM generate_series(1, 5000) n;";

fn on_items(number: u64) -> String {
    let (id, new) = (1001 + number * 7 % 1000, 100_000 + number);
    format!(
        "UPDATE items SET amount = amount + 1 WHERE id = {id}; INSERT INTO items VALUES ({new}, 'new', 0);
         DELETE FROM items WHERE id = {}",
        100_000 + number / 2
    )
}

fn on_invoices(number: u64) -> String {
    let (id, new) = (1 + number * 11 % 5000, 100_000 + number);
    format!(
        "UPDATE invoices SET paid = NOT paid WHERE id = {id}; DELETE FROM invoices WHERE id = {};
         INSERT INTO invoices VALUES ({new}, {}, 'new {new}'); UPDATE invoices SET id = -id WHERE id = {}",
        1 + number * 13 % 5000,
        1 + number % 1000,
        1 + number * 17 % 5000
    )
}

const CONSTRAINTS: &str = "SELECT conname, contype, convalidated FROM pg_constraint
    WHERE conrelid = 'public.invoices'::regclass AND contype IN ('p', 'u', 'f')
    UNION ALL SELECT indexrelid::regclass::text, 'i', indisvalid FROM pg_index WHERE indrelid = 'public.invoices'::regclass";

#[tokio::test(flavor = "multi_thread")]
async fn a_new_table_is_reported_and_taken_in_with_its_references_while_everything_goes_on() {
    let Some((source, target)) = two_databases().await else { return };
    source.execute(ITEMS).await;
    let desk = Desk::new();
    desk.write_spec(&format!("{}\ntables = [\"public.*\"]", postgres(&source)), &postgres(&target), "");
    let mut run = desk.start();
    let items = Writer::start(&source, on_items);
    desk.wait(&mut run);
    let said = desk.expect(0, &["resume"], &["--add"]);
    assert!(said.stdout.contains("no new table"), "{said}");

    source.execute(INVOICES).await;
    let invoices = Writer::start(&source, on_invoices);
    desk.until("the new table to be reported", &mut run, async || {
        desk.command(&["status"], &[]).stdout.contains("uncaptured tables: public.invoices")
    })
    .await;
    let said = desk.expect(0, &["resume"], &["--add"]);
    assert!(said.stdout.contains("taken in, and being copied: public.invoices"), "{said}");
    // Ended in the middle of it, it goes on.
    run.kill();
    items.wait_for_more(20);
    let mut run = desk.start();
    invoices.wait_for_more(100);
    desk.wait(&mut run);
    invoices.stop();
    items.stop();
    desk.wait(&mut run);
    assert_same_tables(&source, &target, &["items", "invoices"]).await;
    desk.until("the target to have the table's constraints", &mut run, async || {
        rows(&source, CONSTRAINTS).await == rows(&target, CONSTRAINTS).await
    })
    .await;
    desk.verify();
    let listed = desk.expect(0, &["quarantine", "ls"], &[]);
    assert!(!listed.stdout.contains("invoices") && !listed.stdout.contains("items"), "{listed}");
    let status = desk.command(&["status"], &[]);
    assert!(!status.stdout.contains("uncaptured"), "{status}");
    desk.stop(run);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wish_for_new_tables_is_kept_for_the_next_run_and_what_cannot_be_is_refused() {
    let Some((source, target)) = two_databases().await else { return };
    source.execute(ITEMS).await;
    let desk = Desk::new();
    desk.write_spec(&format!("{}\ntables = [\"public.*\"]", postgres(&source)), &postgres(&target), "");
    let mut run = desk.start();
    desk.wait(&mut run);
    source.execute("CREATE UNLOGGED TABLE passing (id int PRIMARY KEY)").await;
    let said = desk.expect(3, &["resume"], &["--add"]);
    assert!(said.stderr.contains("public.passing is unlogged"), "{said}");
    source.execute("DROP TABLE passing").await;
    desk.stop(run);

    source.execute(INVOICES).await;
    target.execute("CREATE TABLE invoices (id int); INSERT INTO invoices VALUES (1)").await;
    let said = desk.expect(0, &["resume"], &["--add"]);
    assert!(said.stdout.contains("taken in by the next run"), "{said}");
    // Somebody else's rows stand where it should go: the run goes on without it, and says why.
    let mut run = desk.start();
    desk.wait(&mut run);
    desk.until_said("rows that are not ours", &mut run);
    target.execute("DROP TABLE invoices").await;
    desk.stop(run);

    desk.expect(0, &["resume"], &["--add"]);
    let mut run = desk.start();
    let writer = Writer::start(&source, on_invoices);
    writer.wait_for_more(50);
    desk.until("the table to be in the target", &mut run, async || {
        target.value("SELECT to_regclass('public.invoices')").await.is_some()
            && !desk.command(&["status"], &[]).stdout.contains("uncaptured")
    })
    .await;
    writer.stop();
    desk.wait(&mut run);
    assert_same_tables(&source, &target, &["items", "invoices"]).await;
    desk.verify();
    desk.stop(run);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_table_of_a_sqlite_file_is_taken_in() {
    let desk = Desk::new();
    let (old, new) = (desk.path("old.db"), desk.path("new.db"));
    let file = Connection::open(&old).unwrap();
    file.busy_timeout(crossfade_testkit::wait::GENEROUS).unwrap();
    file.execute_batch(
        "PRAGMA journal_mode = WAL; CREATE TABLE items (id integer PRIMARY KEY, name text);
         WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 500) INSERT INTO items SELECT n, 'i' || n FROM n",
    )
    .unwrap();
    desk.write_spec(&format!("{}\ntables = [\"main.*\"]", sqlite(&old)), &sqlite(&new), "");
    let mut run = desk.start();
    desk.wait(&mut run);
    file.execute_batch(
        "CREATE TABLE notes (id integer PRIMARY KEY, item integer REFERENCES items, said text UNIQUE);
         WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 3000) INSERT INTO notes SELECT n, 1 + n % 500, 's' || n FROM n",
    )
    .unwrap();
    let said = desk.expect(0, &["resume"], &["--add"]);
    assert!(said.stdout.contains("main.notes"), "{said}");
    run.kill();
    file.execute_batch("UPDATE notes SET said = said || '!' WHERE id % 3 = 0; DELETE FROM notes WHERE id % 10 = 1; UPDATE items SET name = 'x' WHERE id < 5").unwrap();
    let mut run = desk.start();
    file.execute_batch("INSERT INTO notes VALUES (9001, 1, 'late'); UPDATE notes SET id = -id WHERE id < 100").unwrap();
    desk.wait(&mut run);
    for sql in ["SELECT id, name FROM items", "SELECT id, item, said FROM notes"] {
        assert_same(sql, &sqlite_texts(&sqlite_reader(&old), sql), &sqlite_texts(&sqlite_reader(&new), sql));
    }
    desk.verify();

    // And a wish that was left while nobody ran.
    desk.stop(run);
    file.execute_batch("CREATE TABLE more (a text, b blob); INSERT INTO more VALUES ('a', x'00'), ('a', x'00')")
        .unwrap();
    desk.expect(0, &["resume"], &["--add"]);
    let mut run = desk.start();
    desk.until("the table to be captured", &mut run, async || {
        let status = desk.command(&["status"], &[]).stdout;
        status.contains("main.more") && !status.contains("uncaptured")
    })
    .await;
    file.execute_batch("INSERT INTO more VALUES ('b', NULL)").unwrap();
    desk.wait(&mut run);
    let sql = "SELECT a, b FROM more";
    assert_same(sql, &sqlite_texts(&sqlite_reader(&old), sql), &sqlite_texts(&sqlite_reader(&new), sql));
    desk.stop(run);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_exchange_unique_values_while_they_are_copied_put_nothing_into_quarantine() {
    let Some((source, target)) = two_databases().await else { return };
    source
        .execute(
            "CREATE TABLE seats (id int PRIMARY KEY, seat int UNIQUE, pad text);
             INSERT INTO seats SELECT n, n, repeat('x', 300) FROM generate_series(1, 30000) n",
        )
        .await;
    let desk = Desk::new();
    let more = "tables = [\"public.*\"]\nsnapshot = { workers = 2, chunk_rows = 500 }";
    desk.write_spec(&format!("{}\n{more}", postgres(&source)), &postgres(&target), "");
    // Pairs far apart, so that one of the two is often copied and the other one not.
    let swap = |number: u64| {
        let (one, other) = (1 + number % 15_000, 30_000 - number % 15_000);
        format!(
            "CREATE TEMP TABLE s ON COMMIT DROP AS SELECT id, seat FROM seats WHERE id IN ({one}, {other});
             UPDATE seats SET seat = -id WHERE id IN ({one}, {other});
             UPDATE seats t SET seat = s.seat FROM s WHERE t.id <> s.id AND t.id IN ({one}, {other})"
        )
    };
    let writer = Writer::start(&source, swap);
    writer.wait_for_more(5);
    let mut run = desk.start();
    writer.wait_for_more(150);
    desk.wait(&mut run);
    writer.stop();
    desk.wait(&mut run);
    assert_same_tables(&source, &target, &["seats"]).await;
    let status = desk.command(&["status"], &[]);
    assert!(status.stdout.contains("+ 0 in quarantine"), "{status}");
    let unique = "SELECT count(*) FROM pg_constraint WHERE conrelid = 'seats'::regclass AND contype = 'u'";
    desk.until("the unique constraint", &mut run, async || target.value(unique).await.as_deref() == Some("1")).await;
    desk.stop(run);
}
