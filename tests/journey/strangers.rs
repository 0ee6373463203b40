//! What must not be there when files switch, and is refused before anybody is held up: a table that came meanwhile, keys of an
//! earlier life of the migration, another migration that records the same tables, a reader of a file without a WAL.

use crate::{
    desk::{Desk, postgres, rows, sqlite, two_databases},
    files::{NEW, OLD, assert_all_there, assert_authority, fail_back, follow_back, ready, switch},
    ledger::{Clerks, Ledger},
    switch::{guard, made},
};
use crossfade_testkit::compare::{assert_same, sqlite_reader, sqlite_texts};
use rusqlite::Connection;
use serde_json::Value;
use std::{fs, time::Duration};

/// A connection of somebody's own.
fn opened(path: &std::path::Path) -> Connection {
    let file = Connection::open(path).unwrap();
    file.busy_timeout(Duration::from_secs(60)).unwrap();
    file
}

#[test]
fn a_table_that_came_meanwhile_is_taken_in_before_a_switch_or_there_is_none() {
    let ledger = Ledger::open("");
    let (mut run, clerks) = ready(&ledger, 2, 1);
    opened(&ledger.old).execute_batch("CREATE TABLE later (id INTEGER PRIMARY KEY, note TEXT)").unwrap();
    let refused = ledger.desk.command(&["cutover"], &[]);
    assert_ne!(refused.code, Some(0), "{refused}");
    assert!(refused.stderr.contains("main.later came into being on the old side"), "{refused}");
    assert!(refused.stderr.contains("resume shop.toml --add"), "{refused}");
    clerks.wait_for_more_on(OLD, 50);
    assert_authority(&ledger, "old 0");

    ledger.desk.expect(0, &["resume"], &["--add"]);
    ledger.desk.wait(&mut run);
    ledger.desk.verify();
    switch(&ledger);
    assert_eq!(run.wait().code, Some(0));
    opened(&ledger.new).execute_batch("INSERT INTO later VALUES (1, 'born on the new side')").unwrap();
    let run = follow_back(&ledger, &clerks);
    fail_back(&ledger);
    assert_eq!(run.wait().code, Some(0));
    let sql = "SELECT note FROM later";
    let note: String = sqlite_reader(&ledger.old).query_row(sql, [], |row| row.get(0)).unwrap();
    assert_eq!(note, "born on the new side");
    assert_all_there(&ledger, clerks, OLD, 2);
}

#[test]
fn keys_of_an_earlier_life_of_the_migration_are_not_taken_for_its_own() {
    let ledger = Ledger::open("");
    let (run, clerks) = ready(&ledger, 2, 0);
    switch(&ledger);
    assert_eq!(run.wait().code, Some(0));
    let run = follow_back(&ledger, &clerks);
    fail_back(&ledger);
    assert_eq!(run.wait().code, Some(0));
    clerks.wait_for_more_on(OLD, 20);
    clerks.stop();
    // Somebody begins anew in what he takes for the way of doing so.
    fs::remove_dir_all(ledger.desk.work()).unwrap();
    for end in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}{end}", ledger.new.display()));
    }
    let mut run = ledger.desk.start();
    ledger.desk.wait(&mut run);
    ledger.desk.verify();
    let refused = ledger.desk.command(&["cutover"], &[]);
    assert_ne!(refused.code, Some(0), "{refused}");
    assert!(refused.stderr.contains("pairs of old and new keys of an earlier migration"), "{refused}");

    ledger.desk.stop(run);
    ledger.desk.expect(0, &["rollback"], &["--wipe", "--yes"]);
    let mut run = ledger.desk.start();
    ledger.desk.wait(&mut run);
    let clerks = Clerks::start_as(&ledger, 100, 2, 0);
    clerks.wait_for_more(20);
    ledger.desk.verify();
    switch(&ledger);
    assert_eq!(run.wait().code, Some(0));
    let run = follow_back(&ledger, &clerks);
    clerks.stop();
    ledger.desk.stop(run);
    let mut run = ledger.desk.start();
    ledger.desk.wait_with(&mut run, &["--reverse"]);
    ledger.assert_same();
    ledger.assert_same_keys(OLD, "_crossfade_reverse_keys");
    ledger.desk.stop(run);
}

#[test]
fn another_migration_that_records_the_same_tables_is_not_left_without_what_comes_back() {
    let ledger = Ledger::open("");
    let (run, clerks) = ready(&ledger, 1, 1);
    let copy = ledger.desk.path("copy.db");
    let spec = format!(
        "name = \"{}-copy\"\n[source]\n{}\ntables = [\"main.*\"]\n[sink]\n{}\n",
        ledger.desk.name,
        sqlite(&ledger.old),
        sqlite(&copy)
    );
    ledger.desk.crossfade.write("copy.toml", &spec);
    let other = ledger.desk.crossfade.run(&["run", "copy.toml", "--quiet", "--until", "caught-up"]);
    assert_eq!(other.code, Some(0), "{other}");
    let refused = ledger.desk.command(&["cutover"], &[]);
    assert_ne!(refused.code, Some(0), "{refused}");
    let said = format!("{}{}", refused.stdout, refused.stderr);
    assert!(said.contains("is recorded by another migration"), "{refused}");
    clerks.wait_for_more_on(OLD, 20);
    assert_authority(&ledger, "old 0");

    let ended = ledger.desk.crossfade.run(&["rollback", "copy.toml", "--wipe", "--yes"]);
    assert_eq!(ended.code, Some(0), "{ended}");
    switch(&ledger);
    assert_eq!(run.wait().code, Some(0));
    clerks.wait_for_more_on(NEW, 20);
    assert_all_there(&ledger, clerks, NEW, 1);
}

#[test]
fn a_reader_of_a_file_without_a_wal_keeps_the_switch_from_being_made_and_both_files_open() {
    let ledger = Ledger::open_in("DELETE", "deadline = \"2s\"");
    let (run, clerks) = ready(&ledger, 1, 0);
    let report = opened(&ledger.old);
    report.execute_batch("BEGIN; SELECT count(*) FROM accounts").unwrap();
    let seen: i64 = report.query_row("SELECT count(*) FROM accounts", [], |row| row.get(0)).unwrap();
    assert!(seen > 0);
    let refused = ledger.desk.command(&["cutover"], &["--json"]);
    // With it in the way the clerks cannot commit either, and while one tries nobody else gets in to read.
    match refused.code {
        Some(3) => {
            let answer: Value = serde_json::from_str(&refused.stdout).unwrap();
            assert!(guard(&answer, "oldest-writer")["seen"].as_str().unwrap().contains("reads it"), "{answer}");
        }
        _ => assert!(refused.code == Some(1) && refused.stderr.contains("database is locked"), "{refused}"),
    }
    assert_eq!(
        sqlite_reader(&ledger.new)
            .query_row("SELECT side FROM crossfade_side", [], |row| row.get::<_, String>(0))
            .unwrap(),
        "old"
    );
    report.execute_batch("COMMIT").unwrap();
    clerks.wait_for_more_on(OLD, 20);
    switch(&ledger);
    assert_eq!(run.wait().code, Some(0));
    let run = follow_back(&ledger, &clerks);
    // A report that begins while a failback is made: it is waited for, or the failback is taken back, but never are both closed.
    report.execute_batch("BEGIN; SELECT count(*) FROM accounts").unwrap();
    let _: i64 = report.query_row("SELECT count(*) FROM accounts", [], |row| row.get(0)).unwrap();
    let failed = ledger.desk.command(&["failback"], &["--json"]);
    assert_ne!(failed.code, Some(0), "{failed}");
    assert_authority(&ledger, "new");
    clerks.wait_for_more_on(NEW, 20);
    report.execute_batch("COMMIT").unwrap();
    fail_back(&ledger);
    assert_eq!(run.wait().code, Some(0));
    clerks.wait_for_more_on(OLD, 20);
    assert_all_there(&ledger, clerks, OLD, 2);
}

#[test]
fn after_a_failback_and_an_undo_the_tables_that_were_there_before_are_written_again_by_whoever_had_them() {
    let desk = Desk::new();
    let (old, new) = (desk.path("old.db"), desk.path("new.db"));
    let table = "CREATE TABLE notes (id INTEGER PRIMARY KEY, note TEXT)";
    opened(&old).execute_batch(&format!("{table}; INSERT INTO notes VALUES (1, 'ours'), (2, 'ours too')")).unwrap();
    opened(&new).execute_batch(&format!("{table}; INSERT INTO notes VALUES (1, 'somebody''s')")).unwrap();
    let (source, sink) =
        (format!("{}\ntables = [\"main.*\"]", sqlite(&old)), format!("{}\nexisting = \"merge\"", sqlite(&new)));
    desk.write_spec(&source, &sink, "[switch]\n");
    let mut run = desk.start();
    desk.wait(&mut run);
    desk.expect(0, &["verify"], &[]);
    made(&desk, "cutover");
    assert_eq!(run.wait().code, Some(0));
    let mut run = desk.start();
    desk.wait_with(&mut run, &["--reverse"]);
    desk.expect(0, &["verify"], &["--reverse"]);
    made(&desk, "failback");
    assert_eq!(run.wait().code, Some(0));
    let mine = "INSERT INTO notes VALUES (8, 'somebody''s again')";
    let refused = opened(&new).execute_batch(mine).unwrap_err().to_string();
    assert!(refused.starts_with("crossfade: main.notes is not written here"), "{refused}");
    desk.expect(0, &["rollback"], &["--undo"]);
    opened(&new).execute_batch(mine).unwrap();
    let sql = "SELECT id, note FROM notes ORDER BY id";
    let rows = sqlite_texts(&sqlite_reader(&new), sql);
    let wanted = Connection::open_in_memory().unwrap();
    wanted
        .execute_batch(&format!("{table}; INSERT INTO notes VALUES (1, 'somebody''s'), (8, 'somebody''s again')"))
        .unwrap();
    assert_same(sql, &sqlite_texts(&wanted, sql), &rows);
}

/// A column comes, with a value for every row that is there and one of its own in a row that is written right after it; and the
/// switch is asked for at once.
const COLUMN: [&str; 2] = [
    "ALTER TABLE notes ADD COLUMN extra VARCHAR(20) DEFAULT 'what all have'",
    "UPDATE notes SET extra = 'its own' WHERE id = 2",
];

#[test]
fn a_column_that_comes_to_a_file_right_before_a_switch_is_there_after_it() {
    let desk = Desk::new();
    let (old, new) = (desk.path("old.db"), desk.path("new.db"));
    let file = opened(&old);
    file.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE notes (id INTEGER PRIMARY KEY, note TEXT); INSERT INTO notes VALUES (1, 'a'), (2, 'b')").unwrap();
    desk.write_spec(&format!("{}\ntables = [\"main.*\"]", sqlite(&old)), &sqlite(&new), "[switch]\n");
    let mut run = desk.start();
    desk.wait(&mut run);
    desk.verify();
    file.execute_batch(&COLUMN.join(";")).unwrap();
    // The stream follows it in a moment, which voids the comparison; before that nobody can say that all has come.
    let refused = desk.command(&["cutover"], &[]);
    assert_ne!(refused.code, Some(0), "{refused}");
    desk.wait(&mut run);
    desk.verify();
    made(&desk, "cutover");
    assert_eq!(run.wait().code, Some(0));
    let sql = "SELECT id, note, extra FROM notes ORDER BY id";
    assert_same(sql, &sqlite_texts(&sqlite_reader(&old), sql), &sqlite_texts(&sqlite_reader(&new), sql));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_comes_to_a_server_right_before_a_switch_is_there_after_it() {
    for writes in 1..=2 {
        let Some((old, new)) = two_databases().await else { return };
        old.execute("CREATE TABLE notes (id int PRIMARY KEY, note text); INSERT INTO notes VALUES (1, 'a'), (2, 'b')")
            .await;
        let desk = Desk::new();
        desk.write_spec(&format!("{}\ntables = [\"public.*\"]", postgres(&old)), &postgres(&new), "[switch]\n");
        let mut run = desk.start();
        desk.wait(&mut run);
        desk.verify();
        // Without a row behind it, nothing in the stream speaks of the column.
        old.execute(&COLUMN[..writes].join(";")).await;
        let refused = desk.command(&["cutover"], &[]);
        assert_ne!(refused.code, Some(0), "{refused}");
        if writes == 1 {
            let said =
                "public.notes was altered, and the stream has heard nothing of it yet: its column \"extra\" is new";
            assert!(refused.stderr.contains(said), "{refused}");
            old.execute("UPDATE notes SET note = note WHERE id = 1").await;
        }
        desk.wait(&mut run);
        desk.verify();
        made(&desk, "cutover");
        assert_eq!(run.wait().code, Some(0));
        let sql = "SELECT id, note, extra FROM notes ORDER BY id";
        assert_same(sql, &rows(&old, sql).await, &rows(&new, sql).await);
    }
}
