//! The lock, looking from outside, retention, figures, options.

use crate::conformance::{open, small};
use crossfade_event::{Cut, Event};
use crossfade_log::{
    EventLog, Lane, LogError, LogReader, Seek,
    embedded::{Embedded, Options, Retention},
};
use crossfade_testkit::log_suite::{COMMON, at, batch, events_of, insert, part, read_all, schema, soon, transaction};
use std::{fs, time::Duration};

async fn fill(log: &Embedded, from: u64, to: u64) {
    if from == 1 {
        log.append(batch(1, vec![Event::SchemaSeen(schema(1, 1))], Some(at(1, u32::MAX)), true)).await.unwrap();
    }
    for n in from.max(2)..to {
        let bulk = (0..10).map(|k| insert(&format!("{n}/{k}"), &"r".repeat(100))).collect();
        log.append(transaction(n, bulk)).await.unwrap();
    }
}

#[tokio::test]
async fn a_second_writer_is_told_who_has_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    match Embedded::open(dir.path(), small()) {
        Err(LogError::Locked { pid, .. }) => assert_eq!(pid, std::process::id()),
        other => panic!("{other:?}"),
    }
    let clone = log.clone();
    drop(log);
    assert!(matches!(Embedded::open(dir.path(), small()), Err(LogError::Locked { .. })), "a clone keeps it open");
    drop(clone);
    open(dir.path());
}

#[tokio::test]
async fn others_may_look_while_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    for round in 0..20 {
        fill(&log, 1 + round * 10, 1 + (round + 1) * 10).await;
        let look = Embedded::open_read_only(dir.path()).unwrap();
        assert_eq!(events_of(&look, Lane::All), events_of(&log, Lane::All));
        assert_eq!((look.tail(), look.latest_schemas()), (log.tail(), log.latest_schemas()));
        assert_eq!(look.verify().unwrap(), log.verify().unwrap());
        assert_eq!(look.id(), log.id());
        let refused = soon("an append", look.append(transaction(5, Vec::new()))).await;
        assert!(matches!(refused, Err(LogError::ReadOnly { .. })), "{refused:?}");
        assert!(matches!(look.hold("x", &Cut::start(1)), Err(LogError::ReadOnly { .. })));
        assert!(matches!(look.trim(&look.tail().cut, true), Err(LogError::ReadOnly { .. })));
    }
    let nowhere = Embedded::open_read_only(dir.path().join("nowhere"));
    assert!(matches!(nowhere, Err(LogError::Io { .. })), "{nowhere:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn looking_never_takes_a_log_in_motion_for_a_damaged_one() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    fill(&log, 1, 10).await;
    let writer = tokio::spawn({
        let log = log.clone();
        async move {
            for n in 10..3000 {
                drop(log.append(transaction(n, vec![insert("a", &"m".repeat(200))])));
                if n % 500 == 0 {
                    log.append(transaction(n, vec![insert("a", "b")])).await.unwrap();
                    log.trim(&log.tail().cut, true).unwrap();
                }
            }
            log.append(transaction(3000, vec![insert("a", "b")])).await.unwrap();
        }
    });
    let mut looks = 0;
    while !writer.is_finished() || looks < 5 {
        let look = Embedded::open_read_only(dir.path()).unwrap();
        let entries = read_all_that_is_left(&look);
        assert!(entries.is_sorted(), "in order");
        looks += 1;
        tokio::task::yield_now().await;
    }
    writer.await.unwrap();
}

/// The offsets of what can be read, up to where the owner drops segments under our feet.
fn read_all_that_is_left(log: &Embedded) -> Vec<u64> {
    let mut reader = log.read(&log.start(), Lane::All).unwrap();
    let mut offsets = Vec::new();
    loop {
        match reader.try_next() {
            Ok(Some(entries)) => offsets.extend(entries.entries.iter().map(|entry| entry.offset.0)),
            Ok(None) => return offsets,
            Err(LogError::Io { cause, .. }) if cause.kind() == std::io::ErrorKind::NotFound => return offsets,
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn retention_by_bytes_drops_the_oldest_segments_but_nothing_that_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention { bytes: Some(200 * 1024), time: None };
    let log = Embedded::open(dir.path(), Options { retention, ..small() }).unwrap();
    fill(&log, 1, 150).await;
    assert_eq!(log.start(), Cut::start(1), "nobody has read: all is kept");
    log.hold("deliver", &log.tail().cut).unwrap();
    log.release("deliver").unwrap();
    fill(&log, 150, 300).await;
    let figures = log.statistics().unwrap();
    assert!(figures.bytes <= 264 * 1024 && figures.start.0 > 0, "{figures:?}");
    let held = log.tail().cut;
    log.hold("deliver", &held).unwrap();
    let rest = read_all(&log, &held, Lane::All).len();
    fill(&log, 300, 900).await;
    assert!(log.statistics().unwrap().bytes > 400 * 1024, "the consumer holds it");
    assert_eq!(read_all(&log, &held, Lane::All).len(), rest + 600 * 12);
    log.release("deliver").unwrap();
    log.retain().unwrap();
    assert!(log.statistics().unwrap().bytes <= 264 * 1024);
}

#[tokio::test]
async fn retention_by_time_drops_segments_that_nobody_wrote_to_for_so_long() {
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention { time: Some(Duration::from_secs(3600)), bytes: None };
    let log = Embedded::open(dir.path(), Options { retention, ..small() }).unwrap();
    fill(&log, 1, 300).await;
    log.hold("deliver", &log.tail().cut).unwrap();
    log.retain().unwrap();
    assert_eq!(log.start(), Cut::start(1), "nothing is old");
    let first = crate::crash::segments(dir.path())[0].clone();
    let old = std::time::SystemTime::now() - Duration::from_secs(7200);
    fs::File::options().write(true).open(&first).unwrap().set_modified(old).unwrap();
    assert_eq!(log.statistics().unwrap().oldest.map(|time| time <= old + Duration::from_secs(1)), Some(true));
    let before = log.statistics().unwrap().segments;
    log.retain().unwrap();
    assert_eq!(log.statistics().unwrap().segments, before - 1);
    assert!(!first.exists());
}

#[tokio::test]
async fn what_is_not_built_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let refused = Embedded::open(dir.path(), Options { partitions: 8, ..small() }).unwrap_err();
    assert!(matches!(&refused, LogError::NotBuilt(what) if what.contains("8 partitions")), "{refused}");
}

#[tokio::test]
async fn places_are_found_by_the_index_as_by_reading() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    fill(&log, 1, 600).await;
    for trimmed in [false, true] {
        if trimmed {
            log.trim(&log.tail().cut, true).unwrap();
        }
        let mut found = 0;
        for n in (0..620).step_by(7) {
            let end = Seek::Position(at(n, u32::MAX));
            for seek in [
                Seek::Time(COMMON + n as i64),
                Seek::Position(at(n, 0)),
                end,
                Seek::Sequence(crossfade_event::Sequence(n * 12)),
            ] {
                let slow = crossfade_log::find(&log, &log.start(), seek).unwrap();
                found += usize::from(slow.is_some());
                assert_eq!(log.find(seek).unwrap(), slow, "{seek:?}");
            }
        }
        assert!(found > 100);
    }
}

#[tokio::test]
async fn an_idle_log_gives_back_the_room_that_it_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    fill(&log, 1, 3).await;
    let file = crate::crash::segments(dir.path())[0].clone();
    assert_eq!(fs::metadata(&file).unwrap().len(), 64 * 1024);
    let bytes = log.statistics().unwrap().bytes;
    drop(log);
    assert_eq!(fs::metadata(&file).unwrap().len(), bytes);
}

/// The segment files and indexes in a folder, by name.
fn files(dir: &std::path::Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned()).collect();
    names.retain(|name| name.ends_with(".log") || name.ends_with(".idx"));
    names.sort();
    names
}

#[tokio::test]
async fn much_that_was_written_is_sealed_when_the_log_is_closed_and_an_unfinished_head_never() {
    let dir = tempfile::tempdir().unwrap();
    let options = || Options::default();
    let reopen = || Embedded::open(dir.path(), options()).unwrap();
    let log = reopen();
    log.append(batch(1, vec![Event::SchemaSeen(schema(1, 1))], Some(at(1, u32::MAX)), true)).await.unwrap();
    drop(log);
    assert_eq!(files(dir.path()).len(), 1, "a little is read through faster than it is sealed");

    let log = reopen();
    let bulk = |n: u64| transaction(n, vec![insert(&n.to_string(), &"v".repeat(600_000))]);
    for n in 2..12 {
        log.append(bulk(n)).await.unwrap();
    }
    let (all, tail) = (events_of(&log, Lane::All), log.tail());
    drop(log);
    let sealed = files(dir.path());
    assert_eq!(sealed.len(), 3, "two segments and the index of the first: {sealed:?}");

    let log = reopen();
    assert_eq!((events_of(&log, Lane::All), log.tail()), (all.clone(), tail), "nothing has come or gone");
    assert_eq!(log.verify().unwrap().segments, 2);
    log.append(bulk(12)).await.unwrap();
    for n in 0..10 {
        let piece = vec![insert(&n.to_string(), &"h".repeat(600_000))];
        log.append(part(13, piece)).await.unwrap();
    }
    drop(log);
    let log = reopen();
    assert_eq!(events_of(&log, Lane::All).len(), all.len() + 3, "the head whose rest never came is gone");
    assert_eq!(files(dir.path()), sealed);
    log.append(bulk(13)).await.unwrap();
    assert_eq!(log.tail().cut.next(crossfade_event::Partition(0)).0, (all.len() + 6) as u64);
}
