//! What must survive: for logs that can be opened again.

use super::*;
use crossfade_event::{Batch, TableId};
use std::{fs, io, path::Path};

fn seen() -> Batch {
    batch(1, vec![Event::SchemaSeen(schema(1, 1))], Some(at(1, u32::MAX)), true)
}

fn bulk(n: u64) -> Vec<Event> {
    (0..30).map(|k| insert(&format!("{n}/{k}"), &"w".repeat(120))).collect()
}

async fn fill(log: &impl EventLog, from: u64, to: u64) {
    for n in from..to {
        good(soon("an append", log.append(transaction(n, bulk(n)))).await);
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap_or_else(|error| panic!("no temporary folder: {error}"))
}

/// Copies a log's folder as a crash of the process would leave it.
///
/// # Panics
/// When files cannot be copied.
pub fn crashed(from: &Path) -> tempfile::TempDir {
    copied(from, folder())
}

/// As [`crashed`], but in memory where the system has such a place: for thousands of copies, whose syncs would only
/// take time.
///
/// # Panics
/// When files cannot be copied.
pub fn crashed_in_memory(from: &Path) -> tempfile::TempDir {
    copied(from, tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| folder()))
}

fn copied(from: &Path, to: tempfile::TempDir) -> tempfile::TempDir {
    let copy = |to: &Path| -> io::Result<()> {
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
        Ok(())
    };
    match copy(to.path()) {
        Ok(()) => to,
        Err(error) => panic!("the folder of a log cannot be copied: {error}"),
    }
}

/// Everything is there after opening again: entries, tail, position, schemas, start.
///
/// # Panics
/// When not.
pub async fn everything_is_there_after_reopening<L: EventLog>(open: impl Fn(&Path) -> L) {
    let dir = folder();
    let log = open(dir.path());
    for batch in every_kind() {
        good(soon("an append", log.append(batch)).await);
    }
    fill(&log, 30, 100).await;
    let (all, tail, schemas) = (read_all(&log, &log.start(), Lane::All), log.tail(), log.latest_schemas());
    let crash = crashed(dir.path());
    drop(log);
    for place in [dir.path(), crash.path()] {
        let log = open(place);
        assert_eq!(read_all(&log, &log.start(), Lane::All), all);
        assert_eq!((log.tail(), log.latest_schemas()), (tail.clone(), schemas.clone()));
        fill(&log, 100, 105).await;
        assert_eq!(read_all(&log, &tail.cut, Lane::All).len(), 5 * 32, "and it goes on");
    }
}

/// The position survives although what carried it was trimmed away, and nothing came since.
///
/// # Panics
/// When not.
pub async fn the_position_survives_trimming_and_reopening<L: EventLog>(open: impl Fn(&Path) -> L) {
    let dir = folder();
    let log = open(dir.path());
    good(soon("the schema", log.append(seen())).await);
    fill(&log, 2, 150).await;
    let start = good(log.trim(&log.tail().cut, true));
    drop(log);
    let log = open(dir.path());
    assert_eq!(log.start(), start);
    assert_ne!(start, Cut::start(log.partitions()));
    assert_eq!(log.tail().position, Some(at(149, u32::MAX)));
    assert_eq!(log.latest_schemas(), [schema(1, 1)]);
    assert!(matches!(log.read(&Cut::start(log.partitions()), Lane::All), Err(LogError::Trimmed { .. })));
}

/// A head whose rest never came is gone after opening again, however large, and the whole may come anew.
///
/// # Panics
/// When not.
pub async fn an_unfinished_head_is_gone_after_reopening<L: EventLog>(open: impl Fn(&Path) -> L) {
    for parts in [1, 60] {
        let dir = folder();
        let log = open(dir.path());
        good(soon("the schema", log.append(seen())).await);
        fill(&log, 2, 10).await;
        let (all, tail) = (read_all(&log, &log.start(), Lane::All), log.tail());
        good(soon("a schema in a part", log.append(part(50, vec![Event::SchemaSeen(schema(2, 1))]))).await);
        for n in 0..parts {
            good(soon("a part", log.append(part(50, bulk(n)))).await);
        }
        let crash = crashed(dir.path());
        drop(log);
        for place in [dir.path(), crash.path()] {
            let log = open(place);
            assert_eq!(read_all(&log, &log.start(), Lane::All), all, "{parts} parts");
            assert_eq!(log.tail(), tail);
            assert_eq!(log.schema(TableId(2), schema(2, 1).version), None, "its schema comes anew with it");
            let whole = batch(50, [vec![Event::SchemaSeen(schema(2, 1))], bulk(50)].concat(), None, true);
            good(soon("the whole", log.append(whole)).await);
            assert_eq!(read_all(&log, &tail.cut, Lane::All).len(), 31);
            assert_eq!(log.latest_schemas(), [schema(1, 1), schema(2, 1)]);
        }
    }
}

/// Consumers survive, and still hold back the trimming.
///
/// # Panics
/// When not.
pub async fn consumers_still_hold_after_reopening<L: EventLog>(open: impl Fn(&Path) -> L) {
    let dir = folder();
    let log = open(dir.path());
    good(soon("the schema", log.append(seen())).await);
    fill(&log, 2, 40).await;
    let held = log.tail().cut;
    good(log.hold("deliver", &held));
    fill(&log, 40, 120).await;
    let crash = crashed(dir.path());
    drop(log);
    for place in [dir.path(), crash.path()] {
        let log = open(place);
        let rest = read_all(&log, &held, Lane::All);
        let start = good(log.trim(&log.tail().cut, false));
        assert!(held.covers(&start));
        assert_eq!(read_all(&log, &held, Lane::All), rest);
        good(log.release("deliver"));
        drop(log);
        let log = open(place);
        assert!(good(log.trim(&log.tail().cut, false)).covers(&held), "a released one holds nothing back");
    }
}
