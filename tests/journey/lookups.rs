//! Values that are looked up in another table of the source: as that table was when the row changed, through changes of the
//! looked-up rows, restarts, a table that is copied again, and a healing replay.

use crate::desk::{Desk, postgres, rows, sqlite, two_databases};
use crossfade_testkit::{
    compare::{Rows, assert_same, sqlite_reader, sqlite_texts},
    crossfade::Running,
};
use rusqlite::Connection;
use std::path::PathBuf;

const SCHEMA: &str = "
CREATE TABLE zones (id integer PRIMARY KEY, code text NOT NULL UNIQUE, name text);
CREATE TABLE items (id integer PRIMARY KEY, zone text, amount integer);
";

fn fill() -> String {
    let mut sql = String::from(SCHEMA);
    for id in 1..=50 {
        sql.push_str(&format!("INSERT INTO zones VALUES ({id}, 'c{id}', 'zone {id}');\n"));
    }
    for id in 1..=500 {
        sql.push_str(&format!("INSERT INTO items VALUES ({id}, 'c{}', {id});\n", 1 + id % 60));
    }
    sql
}

fn rules(schema: &str) -> String {
    format!(
        "[[table]]\nfrom = \"{schema}.items\"\nsteps = [{{ lookup = \"{schema}.zones\", on = {{ code = \"zone\" }}, take = {{ zone_name = \"name\" }} }}]\n"
    )
}

const EXPECTED: &str = "SELECT i.id, i.zone, i.amount, z.name FROM items i LEFT JOIN zones z ON z.code = i.zone";
const FOUND: &str = "SELECT id, zone, amount, zone_name FROM items";

/// What changes in the looked-up table, and what is written after it. A zone is deleted by its number, found by its code.
const CHANGES: &str = "
UPDATE zones SET name = 'renamed' WHERE id = 1;
INSERT INTO items VALUES (1001, 'c1', 1);
UPDATE zones SET code = 'moved' WHERE id = 2;
INSERT INTO items VALUES (1002, 'c2', 1), (1003, 'moved', 1);
DELETE FROM zones WHERE id = 3;
INSERT INTO items VALUES (1004, 'c3', 1);
UPDATE zones SET id = 3004 WHERE id = 4;
UPDATE zones SET name = 'of another number' WHERE id = 3004;
INSERT INTO items VALUES (1005, 'c4', 1);
INSERT INTO zones VALUES (51, 'c51', 'new');
UPDATE items SET amount = -1 WHERE zone = 'c51';
";

/// What the target must hold of the rows above.
const AFTER: &str = "SELECT id, zone_name FROM items WHERE id > 1000 OR zone = 'c51'";

fn after() -> Vec<(i64, Option<&'static str>)> {
    let mut wanted = vec![
        (1001, Some("renamed")),
        (1002, None),
        (1003, Some("zone 2")),
        (1004, None),
        (1005, Some("of another number")),
    ];
    wanted.extend((1..=500).filter(|id| 1 + id % 60 == 51).map(|id| (id, Some("new"))));
    wanted
}

fn assert_after(found: &Rows) {
    let mut found: Vec<(i64, Option<String>)> =
        found.iter().map(|row| (row[0].as_ref().unwrap().parse().unwrap(), row[1].clone())).collect();
    let mut wanted: Vec<_> = after().into_iter().map(|(id, name)| (id, name.map(str::to_owned))).collect();
    found.sort();
    wanted.sort();
    assert_eq!(found, wanted);
}

fn misses(desk: &Desk) -> u64 {
    desk.crossfade.json(&["status", crate::desk::SPEC])["lookup_misses"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn looked_up_values_are_those_of_the_moment_between_two_postgres_servers() {
    let Some((source, target)) = two_databases().await else { return };
    source.execute(&fill()).await;
    let desk = Desk::new();
    let from = format!("{}\ntables = [\"public.*\"]\non_rewrite = \"snapshot\"", postgres(&source));
    desk.write_spec(&from, &postgres(&target), &rules("public"));
    let mut run = desk.start();
    desk.wait(&mut run);
    assert_same("the copy", &rows(&source, EXPECTED).await, &rows(&target, FOUND).await);
    let missed = misses(&desk);
    assert!(missed >= 80, "80 items name a zone that is not there: {missed}");
    desk.expect(0, &["checkpoint"], &["before"]);

    source.execute(CHANGES).await;
    desk.wait(&mut run);
    assert_after(&rows(&target, AFTER).await);
    assert!(misses(&desk) > missed);
    // What was written before the zone was renamed keeps the name of then.
    let kept = "SELECT id FROM items WHERE zone = 'c1' AND id < 1000 AND zone_name <> 'zone 1'";
    assert_eq!(rows(&target, kept).await.count(), 0);

    // A process that was just started looks up the same.
    run.kill();
    source.execute("INSERT INTO items VALUES (2001, 'c1', 1), (2002, 'c2', 1), (2003, 'moved', 1)").await;
    let mut run = desk.start();
    desk.wait(&mut run);
    let found = rows(&target, "SELECT id, zone_name FROM items WHERE id > 2000").await;
    let found: Vec<String> = found.iter().map(|row| format!("{:?}", row[1])).collect();
    assert_eq!(found.len(), 3);
    assert!(found.contains(&"Some(\"renamed\")".to_owned()) && found.contains(&"None".to_owned()), "{found:?}");
    source.execute("DELETE FROM items WHERE id > 2000").await;
    desk.wait(&mut run);

    // A healing replay from before the changes writes what was looked up the first time.
    let before_healing = rows(&target, FOUND).await;
    target.execute("UPDATE items SET zone_name = 'damaged' WHERE id > 1000 OR zone = 'c51'").await;
    desk.expect(0, &["replay"], &["--from", "checkpoint:before"]);
    assert_same("healed", &before_healing, &rows(&target, FOUND).await);

    // Rewritten, the items are copied again: all of them look up what is there now.
    copied_again(&desk, &mut run, &source, &target).await;
    assert_same("copied again", &rows(&source, EXPECTED).await, &rows(&target, FOUND).await);
    source.execute("UPDATE zones SET name = 'last' WHERE id = 51; UPDATE items SET amount = 7 WHERE id = 50").await;
    desk.stop(run);
    let mut run = desk.start();
    desk.wait(&mut run);
    let last = rows(&target, "SELECT zone_name FROM items WHERE id = 50").await;
    assert_eq!(last.iter().next().unwrap()[0].as_deref(), Some("last"));
    // The stretch now holds the second copy.
    let before_healing = rows(&target, FOUND).await;
    target.execute("UPDATE items SET zone_name = 'damaged', amount = 0").await;
    desk.expect(0, &["replay"], &["--from", "checkpoint:before"]);
    assert_same("healed across a copy", &before_healing, &rows(&target, FOUND).await);
    desk.stop(run);
}

async fn copied_again(
    desk: &Desk,
    run: &mut Running,
    source: &crossfade_testkit::postgres::Database,
    target: &crossfade_testkit::postgres::Database,
) {
    source
        .execute("ALTER TABLE items ALTER COLUMN amount TYPE bigint USING amount * 10; UPDATE items SET zone = 'c9' WHERE id = 9")
        .await;
    desk.until("the second copy to be in", run, async || {
        let sum = "SELECT coalesce(sum(amount), 0)::text FROM items";
        source.value(sum).await == target.value(sum).await
    })
    .await;
    desk.wait(run);
}

#[tokio::test(flavor = "multi_thread")]
async fn looked_up_values_are_those_of_the_moment_between_two_sqlite_files() {
    let desk = Desk::new();
    let (old, new) = (desk.path("old.db"), desk.path("new.db"));
    let source = Connection::open(&old).unwrap();
    source.execute_batch(&format!("PRAGMA journal_mode = WAL; BEGIN; {} COMMIT;", fill())).unwrap();
    desk.write_spec(&format!("{}\ntables = [\"main.*\"]", sqlite(&old)), &sqlite(&new), &rules("main"));
    let mut run = desk.start();
    desk.wait(&mut run);
    let both = || (sqlite_texts(&sqlite_reader(&old), EXPECTED), sqlite_texts(&sqlite_reader(&new), FOUND));
    let (expected, found) = both();
    assert_same("the copy", &expected, &found);
    assert_eq!(misses(&desk), (1..=500).filter(|id| 1 + id % 60 > 50).count() as u64);
    desk.expect(0, &["checkpoint"], &["before"]);
    source.execute_batch(CHANGES).unwrap();
    desk.wait(&mut run);
    assert_after(&sqlite_texts(&sqlite_reader(&new), AFTER));

    run.kill();
    source.execute_batch("INSERT INTO items VALUES (2001, 'c1', 1), (2002, 'c3', 1)").unwrap();
    let mut run = desk.start();
    desk.wait(&mut run);
    let found = sqlite_texts(&sqlite_reader(&new), "SELECT id, zone_name FROM items WHERE id > 2000 ORDER BY id");
    let names: Vec<Option<&str>> = found.iter().map(|row| row[1].as_deref()).collect();
    assert!(names.contains(&Some("renamed")) && names.contains(&None), "{names:?}");

    let (_, before_healing) = both();
    desk.stop(run);
    Connection::open(&new).unwrap().execute_batch("UPDATE items SET zone_name = 'damaged' WHERE id > 1000").unwrap();
    desk.expect(0, &["replay"], &["--from", "checkpoint:before"]);
    assert_same("healed", &before_healing, &both().1);
}

/// A filled SQLite file, and where the spec that is written moves it.
fn between_files(desk: &Desk) -> (Connection, PathBuf) {
    let (old, new) = (desk.path("old.db"), desk.path("new.db"));
    let source = Connection::open(&old).unwrap();
    source.busy_timeout(crossfade_testkit::wait::GENEROUS).unwrap();
    source.execute_batch(&format!("PRAGMA journal_mode = WAL; BEGIN; {} COMMIT;", fill())).unwrap();
    desk.write_spec(&format!("{}\ntables = [\"main.*\"]", sqlite(&old)), &sqlite(&new), &rules("main"));
    (source, new)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lookup_reads_the_constant_of_a_column_that_took_the_name_it_reads() {
    let desk = Desk::new();
    let (source, new) = between_files(&desk);
    let mut run = desk.start();
    desk.wait(&mut run);
    source
        .execute_batch(
            "BEGIN; ALTER TABLE zones RENAME COLUMN name TO old_name; ALTER TABLE zones ADD COLUMN name TEXT DEFAULT 'unnamed'; COMMIT",
        )
        .unwrap();
    let followed = "SELECT 1 FROM pragma_table_info('zones') WHERE name = 'old_name'";
    desk.until("the other names", &mut run, async || sqlite_texts(&sqlite_reader(&new), followed).count() == 1).await;
    source
        .execute_batch(
            "UPDATE zones SET name = 'given' WHERE id = 8; UPDATE zones SET old_name = 'other' WHERE id = 9;
             INSERT INTO items VALUES (1007, 'c7', 1), (1008, 'c8', 1), (1009, 'c9', 1)",
        )
        .unwrap();
    desk.wait(&mut run);
    // A process that was just started reads rows of both shapes from the log.
    run.kill();
    source.execute_batch("INSERT INTO items VALUES (2007, 'c7', 1), (2008, 'c8', 1), (2009, 'c9', 1)").unwrap();
    let mut run = desk.start();
    desk.wait(&mut run);
    let wanted = "SELECT i.id, z.name FROM items i JOIN zones z ON z.code = i.zone WHERE i.id > 1000";
    let found = "SELECT id, zone_name FROM items WHERE id > 1000";
    assert_same("looked up", &sqlite_texts(&source, wanted), &sqlite_texts(&sqlite_reader(&new), found));
    let zones = "SELECT id, code, old_name, name FROM zones";
    assert_same(zones, &sqlite_texts(&source, zones), &sqlite_texts(&sqlite_reader(&new), zones));
    desk.stop(run);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_a_lookup_reads_and_that_goes_to_a_column_with_values_of_its_own_stops_the_run() {
    let desk = Desk::new();
    let (source, _) = between_files(&desk);
    let mut run = desk.start();
    desk.wait(&mut run);
    source
        .execute_batch("ALTER TABLE zones ADD COLUMN new_name TEXT; UPDATE zones SET new_name = 'new ' || id")
        .unwrap();
    desk.wait(&mut run);
    source
        .execute_batch(
            "BEGIN; ALTER TABLE zones RENAME COLUMN name TO old_name; ALTER TABLE zones RENAME COLUMN new_name TO name; COMMIT;
             UPDATE zones SET old_name = 'other' WHERE id = 9; INSERT INTO items VALUES (1009, 'c9', 1)",
        )
        .unwrap();
    // Started again it is the same: what the rows read in that column is not known.
    for ended in [run.wait(), desk.start().wait()] {
        assert_ne!(ended.code, Some(0), "{ended}");
        for word in ["main.zones", "\"name\"", "rollback --wipe"] {
            assert!(ended.stderr.contains(word), "{word} is missing: {ended}");
        }
    }
}
