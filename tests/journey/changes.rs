//! What may happen in a source while a migration runs: its tables change shape, are emptied, keys change, transactions are
//! rolled back in part or grow very large.

use crate::{
    desk::{Desk, assert_same_tables, postgres, rows, two_databases},
    is_soak,
};
use crossfade_testkit::{crossfade::Running, postgres::Database};

/// A running migration of a fresh source, caught up.
async fn following(schema: &str) -> Option<(Desk, Running, Database, Database)> {
    let (source, target) = two_databases().await?;
    source.execute(schema).await;
    let desk = Desk::new();
    desk.write_spec(&format!("{}\ntables = [\"public.*\"]", postgres(&source)), &postgres(&target), "");
    let mut run = desk.start();
    desk.wait(&mut run);
    Some((desk, run, source, target))
}

async fn settle(desk: &Desk, mut run: Running, source: &Database, target: &Database, tables: &[&str]) {
    desk.wait(&mut run);
    assert_same_tables(source, target, tables).await;
    desk.verify();
    desk.stop(run);
}

const ITEMS: &str = "CREATE TABLE items (id int PRIMARY KEY, name text, amount int NOT NULL DEFAULT 0);
    INSERT INTO items SELECT n, 'item ' || n, n FROM generate_series(1, 500) n;";

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_are_added_renamed_and_dropped_are_followed() {
    let Some((desk, mut run, source, target)) = following(ITEMS).await else { return };
    source.execute("ALTER TABLE items ADD COLUMN plain text").await;
    source.execute("UPDATE items SET plain = 'p' WHERE id <= 10; INSERT INTO items VALUES (1001, 'a', 1, 'b')").await;
    source.execute("ALTER TABLE items ADD COLUMN filled int NOT NULL DEFAULT 42").await;
    source
        .execute(
            "UPDATE items SET filled = 43 WHERE id BETWEEN 20 AND 30; INSERT INTO items (id, name) VALUES (1002, 'c')",
        )
        .await;
    desk.wait(&mut run);
    assert_same_tables(&source, &target, &["items"]).await;
    source.execute("ALTER TABLE items RENAME COLUMN name TO title").await;
    source.execute("UPDATE items SET title = title || '!' WHERE id <= 50").await;
    source.execute("ALTER TABLE items DROP COLUMN amount").await;
    source.execute("UPDATE items SET plain = 'q' WHERE id > 490; DELETE FROM items WHERE id = 3").await;
    desk.wait(&mut run);
    let columns = "SELECT string_agg(column_name, ',' ORDER BY column_name) FROM information_schema.columns WHERE table_name = 'items'";
    assert_eq!(target.value(columns).await, source.value(columns).await);
    settle(&desk, run, &source, &target, &["items"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_change_while_nobody_runs_is_followed_afterwards() {
    let Some((desk, run, source, target)) = following(ITEMS).await else { return };
    desk.stop(run);
    source.execute("INSERT INTO items VALUES (2001, 'before', 1)").await;
    source.execute("ALTER TABLE items ADD COLUMN late int DEFAULT 7; UPDATE items SET late = 8 WHERE id < 5").await;
    source
        .execute("ALTER TABLE items RENAME COLUMN amount TO quantity; INSERT INTO items VALUES (2002, 'after', 2, 3)")
        .await;
    let run = desk.start();
    settle(&desk, run, &source, &target, &["items"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_gets_another_type_is_copied_again() {
    let Some((desk, mut run, source, target)) = following(ITEMS).await else { return };
    source.execute("ALTER TABLE items ALTER amount TYPE numeric(12,2) USING amount / 4.0").await;
    source.execute("UPDATE items SET amount = 0.25 WHERE id = 9; INSERT INTO items VALUES (3001, 'n', 1.75)").await;
    desk.wait(&mut run);
    settle(&desk, run, &source, &target, &["items"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn emptied_tables_changed_keys_and_rolled_back_savepoints_are_followed() {
    let schema = format!(
        "{ITEMS} CREATE TABLE parents (id int PRIMARY KEY, said text);
         CREATE TABLE children (id int PRIMARY KEY, parent int NOT NULL REFERENCES parents ON UPDATE CASCADE ON DELETE CASCADE);
         INSERT INTO parents SELECT n, 'p' FROM generate_series(1, 50) n;
         INSERT INTO children SELECT n, 1 + n % 50 FROM generate_series(1, 200) n"
    );
    let Some((desk, run, source, target)) = following(&schema).await else { return };
    source.execute("TRUNCATE items").await;
    source.execute("INSERT INTO items VALUES (1, 'again', 1)").await;
    source
        .execute(
            "BEGIN; TRUNCATE parents CASCADE; INSERT INTO parents VALUES (1, 'new'), (2, 'new'); \
                    INSERT INTO children VALUES (1, 1), (2, 2); COMMIT",
        )
        .await;
    source.execute("UPDATE parents SET id = id + 100; UPDATE children SET id = id + 1000").await;
    // Two rows exchange their keys, in one transaction.
    source
        .execute(
            "BEGIN; UPDATE parents SET id = -1 WHERE id = 101; UPDATE parents SET id = 101 WHERE id = 102; \
                    UPDATE parents SET id = 102 WHERE id = -1; COMMIT",
        )
        .await;
    source.execute("BEGIN; INSERT INTO items VALUES (2, 'kept', 2); SAVEPOINT s; INSERT INTO items VALUES (3, 'not kept', 3); \
                    UPDATE items SET name = 'not kept'; ROLLBACK TO s; SAVEPOINT t; DELETE FROM items WHERE id = 1; RELEASE t; \
                    INSERT INTO items VALUES (1, 'third', 3); COMMIT").await;
    source.execute("BEGIN; INSERT INTO items VALUES (99, 'rolled back', 0); ROLLBACK").await;
    settle(&desk, run, &source, &target, &["items", "parents", "children"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_values_that_an_update_leaves_alone_stay_as_they_are() {
    let schema = "CREATE TABLE pages (id int PRIMARY KEY, hits int NOT NULL, body text);
        ALTER TABLE pages ALTER body SET STORAGE EXTERNAL;
        INSERT INTO pages SELECT n, 0, repeat(chr(97 + n % 26), 20000) FROM generate_series(1, 50) n;
        CREATE TABLE noted (body text, hits int); ALTER TABLE noted ALTER body SET STORAGE EXTERNAL;
        ALTER TABLE noted REPLICA IDENTITY FULL; INSERT INTO noted SELECT body, 0 FROM pages";
    let Some((desk, run, source, target)) = following(schema).await else { return };
    source.execute("UPDATE pages SET hits = hits + 1; UPDATE pages SET hits = hits + 1 WHERE id % 2 = 0").await;
    source
        .execute("INSERT INTO pages VALUES (100, 0, repeat('z', 30000)); UPDATE pages SET hits = 5 WHERE id = 100")
        .await;
    source.execute("UPDATE pages SET id = id + 1000 WHERE id <= 10; UPDATE noted SET hits = hits + 1").await;
    source
        .execute(
            "BEGIN; UPDATE pages SET body = 'short' WHERE id = 20; UPDATE pages SET hits = 77 WHERE id = 20; COMMIT",
        )
        .await;
    settle(&desk, run, &source, &target, &["pages", "noted"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_moved_leaf_by_leaf() {
    let schema = "CREATE TABLE events (id int NOT NULL, at date NOT NULL, what text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
        CREATE TABLE events_2024 PARTITION OF events FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
        CREATE TABLE events_2025 PARTITION OF events FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
        INSERT INTO events SELECT n, '2024-01-01'::date + n, 'e' || n FROM generate_series(1, 700) n;";
    let Some((desk, run, source, target)) = following(schema).await else { return };
    source.execute("UPDATE events SET at = at + 300 WHERE id < 50; DELETE FROM events WHERE id % 9 = 0").await;
    source
        .execute(
            "INSERT INTO events SELECT n, '2025-06-01', 'new' FROM generate_series(1000, 1100) n; TRUNCATE events_2024",
        )
        .await;
    source.execute("INSERT INTO events VALUES (1, '2024-05-05', 'again')").await;
    settle(&desk, run, &source, &target, &["events_2024", "events_2025", "events"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_without_a_key_keep_their_duplicates() {
    let schema = "CREATE TABLE pairs (a int, b text, c float8); ALTER TABLE pairs REPLICA IDENTITY FULL;
        INSERT INTO pairs SELECT n % 5, 'x', 'NaN' FROM generate_series(1, 50) n;
        CREATE TABLE grown (a int, said text); INSERT INTO grown SELECT n % 7, 's' FROM generate_series(1, 70) n";
    let Some((desk, run, source, target)) = following(schema).await else { return };
    source.execute("DELETE FROM pairs WHERE ctid IN (SELECT ctid FROM pairs WHERE a = 1 LIMIT 3)").await;
    source.execute("UPDATE pairs SET b = 'y' WHERE ctid IN (SELECT ctid FROM pairs WHERE a = 2 LIMIT 4)").await;
    source
        .execute(
            "INSERT INTO pairs VALUES (1, NULL, NULL), (1, NULL, NULL); INSERT INTO grown VALUES (1, 's'), (1, 's')",
        )
        .await;
    settle(&desk, run, &source, &target, &["pairs", "grown"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_very_large_transaction_is_followed_among_small_ones() {
    let rows_of_it: i64 = if is_soak() { 3_000_000 } else { 300_000 };
    let Some((desk, mut run, source, target)) = following(ITEMS).await else { return };
    let client = source.connect().await;
    client.batch_execute("BEGIN").await.unwrap();
    let half = rows_of_it / 2;
    let insert = |from: i64, to: i64| {
        format!("INSERT INTO items SELECT n, 'large ' || n, n FROM generate_series({from}, {to}) n")
    };
    client.batch_execute(&insert(10_000, 10_000 + half - 1)).await.unwrap();
    source.execute("UPDATE items SET amount = -1 WHERE id = 5; INSERT INTO items VALUES (900, 'between', 1)").await;
    desk.wait(&mut run);
    assert_eq!(
        target.value("SELECT count(*) FROM items").await.as_deref(),
        Some("501"),
        "nothing of what is not committed"
    );
    client.batch_execute(&insert(10_000 + half, 10_000 + rows_of_it - 1)).await.unwrap();
    client.batch_execute("UPDATE items SET amount = amount + 1 WHERE id % 10 = 0; COMMIT").await.unwrap();
    desk.wait(&mut run);
    let counted = rows(&target, "SELECT count(*) FROM items").await;
    assert!(counted.iter().any(|row| row[0] == Some((rows_of_it + 501).to_string())), "{counted:?}");
    let digest = "SELECT count(*), sum(id), sum(amount), sum(hashtextextended(name, 0)) FROM items";
    let (left, right) = (rows(&source, digest).await, rows(&target, digest).await);
    crossfade_testkit::compare::assert_same("items", &left, &right);
    desk.stop(run);
}
