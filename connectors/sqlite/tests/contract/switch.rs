//! One side of a switch: the freeze that ends by itself, the one conditional write, and what is said to whoever writes.

use crossfade_connector::switch::{Given, Written};
use crossfade_event::{Side, TableName};
use crossfade_sqlite::{Config, OldRows, switch::SwitchEnd};
use rusqlite::{Connection, ErrorCode};
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tempfile::TempDir;

struct Sides {
    old: SwitchEnd,
    new: SwitchEnd,
    files: [PathBuf; 2],
    _folder: TempDir,
}

/// Two files with a table each, and the flag table in both.
async fn sides() -> Sides {
    let folder = tempfile::tempdir().unwrap();
    let files = [folder.path().join("old.db"), folder.path().join("new.db")];
    for file in &files {
        let connection = Connection::open(file).unwrap();
        connection.pragma_update(None, "journal_mode", "WAL").unwrap();
        // The second table is how a sink's file is known.
        let sql =
            "CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT); CREATE TABLE _crossfade_positions (migration)";
        connection.execute_batch(sql).unwrap();
    }
    let mut old = SwitchEnd::new(Config::new(&files[0]), "shop", Side::Old);
    let mut new = SwitchEnd::new(Config::new(&files[1]), "shop", Side::New);
    old.install(0).await.unwrap();
    new.install(0).await.unwrap();
    Sides { old, new, files, _folder: folder }
}

fn items() -> Vec<TableName> {
    vec![TableName::new("main", "items")]
}

fn soon(ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(ms)
}

/// What somebody else is told who writes one item at once.
fn write(file: &Path, wait: Duration) -> Result<(), rusqlite::Error> {
    let connection = Connection::open(file).unwrap();
    connection.busy_timeout(wait).unwrap();
    connection.execute("INSERT INTO items (name) VALUES ('x')", []).map(drop)
}

fn is_busy(written: &Result<(), rusqlite::Error>) -> bool {
    matches!(written, Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy))
}

const NOT_LONG: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_freeze_holds_writers_up_and_readers_not_and_a_release_lets_them_go_on() {
    let mut sides = sides().await;
    let freeze = sides.old.freeze(&items(), soon(60_000)).await.unwrap();
    assert!(is_busy(&write(&sides.files[0], NOT_LONG)));
    let seen: i64 = Connection::open(&sides.files[0])
        .unwrap()
        .query_row("SELECT count(*) FROM items", [], |row| row.get(0))
        .unwrap();
    assert_eq!(seen, 0);
    freeze.release().await;
    write(&sides.files[0], NOT_LONG).unwrap();
}

#[tokio::test]
async fn a_freeze_that_nobody_ends_is_over_by_its_deadline_and_its_late_word_does_nothing() {
    let mut sides = sides().await;
    let freeze = sides.old.freeze(&items(), soon(300)).await.unwrap();
    // Held until the deadline, and no longer: the writer waits for it without us doing anything.
    write(&sides.files[0], LONG).unwrap();
    assert!(matches!(freeze.give(0).await, Given::Refused(_)));
    let row = sides.old.authority().await.unwrap();
    assert_eq!(row, Some(Written { side: Side::Old, epoch: 0 }));
    write(&sides.files[0], LONG).unwrap();
}

#[tokio::test]
async fn a_lock_that_is_not_to_be_had_is_given_up_within_the_deadline() {
    let mut sides = sides().await;
    let busy = Connection::open(&sides.files[0]).unwrap();
    busy.execute_batch("BEGIN IMMEDIATE; INSERT INTO items (name) VALUES ('busy')").unwrap();
    let refused = sides.old.freeze(&items(), soon(400)).await.unwrap_err();
    assert!(refused.is_transient() && refused.to_string().contains("old.db"), "{refused}");
    busy.execute_batch("COMMIT").unwrap();
    write(&sides.files[0], NOT_LONG).unwrap();
}

#[tokio::test]
async fn the_authority_goes_once_with_the_fence_and_whoever_takes_it_back_first_keeps_it() {
    let mut sides = sides().await;
    // Taken back: the last word of that switch finds another epoch.
    let row = sides.old.take_back(0).await.unwrap();
    assert_eq!(row, Some(Written { side: Side::Old, epoch: 1 }));
    let late = sides.old.freeze(&items(), soon(60_000)).await.unwrap();
    assert!(matches!(late.give(0).await, Given::Refused(_)));
    write(&sides.files[0], NOT_LONG).unwrap();

    let freeze = sides.old.freeze(&items(), soon(60_000)).await.unwrap();
    assert!(matches!(freeze.give(1).await, Given::Done));
    let told = write(&sides.files[0], NOT_LONG).unwrap_err().to_string();
    assert!(told.starts_with("crossfade: main.items is not written here any more"), "{told}");
    // Nothing is taken back any more.
    let row = sides.old.take_back(1).await.unwrap();
    assert_eq!(row, Some(Written { side: Side::New, epoch: 2 }));
}

#[tokio::test]
async fn the_other_side_is_opened_by_one_commit_or_by_whoever_asks_the_row_next() {
    let mut sides = sides().await;
    // A failback before: the new side is fenced.
    let freeze = sides.new.freeze(&items(), soon(60_000)).await.unwrap();
    let connection = Connection::open(&sides.files[1]).unwrap();
    drop(freeze);
    connection.busy_timeout(LONG).unwrap();
    connection.execute("UPDATE _crossfade_authority SET side = 'new'", []).unwrap();
    let freeze = sides.new.freeze(&items(), soon(60_000)).await.unwrap();
    assert!(matches!(freeze.give(0).await, Given::Done));
    assert!(write(&sides.files[1], NOT_LONG).is_err());

    let written = Written { side: Side::New, epoch: 2 };
    let opening = sides.new.ready_to_open(written, soon(60_000)).await.unwrap();
    assert!(is_busy(&write(&sides.files[1], NOT_LONG)), "both sides are closed until it is opened");
    opening.leave().await;
    let refused = write(&sides.files[1], LONG).unwrap_err();
    assert!(refused.to_string().starts_with("crossfade: "), "{refused}");
    sides.new.follow(written).await.unwrap();
    write(&sides.files[1], NOT_LONG).unwrap();
    assert_eq!(sides.new.authority().await.unwrap(), Some(written));

    // Never back to a lower epoch.
    sides.new.follow(Written { side: Side::Old, epoch: 1 }).await.unwrap();
    assert_eq!(sides.new.authority().await.unwrap(), Some(written));
}

#[tokio::test]
async fn the_record_of_the_way_back_begins_behind_what_the_sink_wrote_and_goes_without_a_trace() {
    let mut sides = sides().await;
    sides.new.prepare_reverse(&items(), OldRows::Key).await.unwrap();
    write(&sides.files[1], NOT_LONG).unwrap();
    let begin = sides.new.reverse_from_here().await.unwrap();
    write(&sides.files[1], NOT_LONG).unwrap();
    let file = Connection::open(&sides.files[1]).unwrap();
    let sql = format!("SELECT count(*) FROM \"{}\" WHERE seq > ?1", begin.name);
    let recorded: i64 = file.query_row(&sql, [begin.from as i64], |row| row.get(0)).unwrap();
    assert_eq!(recorded, 1, "what was written after it, and nothing else");
    sides.new.drop_reverse().await.unwrap();
    sides.new.lift().await.unwrap();
    sides.new.forget().await.unwrap();
    let sql = "SELECT count(*) FROM sqlite_schema WHERE name LIKE '%crossfade%' AND name <> '_crossfade_positions'";
    let left: i64 = file.query_row(sql, [], |row| row.get(0)).unwrap();
    assert_eq!(left, 0);
}
