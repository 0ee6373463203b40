//! Readers that are near the writer are handed what was appended without its going through the file: they must be given
//! exactly what the file holds, and nothing that it does not hold.

use crate::conformance::open;
use crossfade_event::{Batch, Cut, Event};
use crossfade_log::{Entry, EventLog, Lane, LogError, LogReader, embedded::Embedded};
use crossfade_testkit::log_suite::{at, batch, good, insert, part, read_all, row, rows, schema, snapshot, transaction};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{fs, os::unix::fs::FileExt};

fn seed() -> u64 {
    let seed = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    eprintln!("SEED={seed}");
    seed
}

fn first() -> Batch {
    batch(1, vec![Event::SchemaSeen(schema(1, 1))], Some(at(1, u32::MAX)), true)
}

fn some(random: &mut StdRng) -> Vec<Event> {
    let change =
        |random: &mut StdRng| insert(&random.random::<u32>().to_string(), &"v".repeat(random.random_range(0..900)));
    (0..random.random_range(1..40)).map(|_| change(random)).collect()
}

/// A reader and what it was given so far.
struct Near {
    lane: Lane,
    reader: <Embedded as EventLog>::Reader,
    entries: Vec<Entry>,
}

impl Near {
    fn read(&mut self) -> bool {
        let Some(given) = good(self.reader.try_next()) else { return false };
        self.entries.extend(given.entries);
        true
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_near_and_far_are_given_what_the_file_holds() {
    let mut random = StdRng::seed_from_u64(seed());
    for _ in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path());
        good(log.append(first()).await);
        let mut readers: Vec<Near> = [Lane::Stream, Lane::Stream, Lane::Snapshot, Lane::All]
            .map(|lane| Near { lane, reader: good(log.read(&log.start(), lane)), entries: Vec::new() })
            .into();
        // One that looks on from the side takes nothing from memory, and gets the same.
        let aside = good(log.read_aside(&log.start(), Lane::Stream));
        readers.push(Near { lane: Lane::Stream, reader: aside, entries: Vec::new() });
        let mut waiting = Vec::new();
        for n in 2..120 {
            match random.random_range(0..12) {
                0 => {
                    waiting.push(log.append(part(n, some(&mut random))));
                    good(log.abandon().await);
                }
                1 => {
                    waiting.push(log.append(part(n, some(&mut random))));
                    waiting.push(log.append(transaction(n, some(&mut random))));
                }
                2 => waiting.push(log.append(snapshot(vec![rows(1, &["a", "b"])]))),
                _ => waiting.push(log.append(transaction(n, some(&mut random)))),
            }
            if random.random_bool(0.5) {
                for appended in waiting.drain(..) {
                    good(appended.await);
                }
            }
            // The first reads often, the others seldom.
            let turn = if random.random_bool(0.7) { 0 } else { random.random_range(0..readers.len()) };
            for _ in 0..random.random_range(0..4) {
                readers[turn].read();
            }
        }
        for appended in waiting {
            good(appended.await);
        }
        for near in &mut readers {
            while near.read() {}
        }
        drop(log);
        let from_files = good(Embedded::open_read_only(dir.path()));
        for near in &readers {
            assert!(near.entries == read_all(&from_files, &from_files.start(), near.lane), "{:?}", near.lane);
        }
    }
}

#[tokio::test]
async fn a_near_reader_needs_no_file_and_a_second_one_does() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    good(log.append(first()).await);
    let mut one = good(log.read(&log.tail().cut, Lane::Stream));
    let mut two = good(log.read(&log.tail().cut, Lane::Stream));
    assert!(good(one.try_next()).is_none() && good(two.try_next()).is_none());
    let mut aside = good(log.read_aside(&log.tail().cut, Lane::Stream));
    assert!(good(aside.try_next()).is_none());

    good(log.append(transaction(2, vec![insert("key", "note")])).await);
    let segment = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
    let segment = segment.into_iter().find(|path| path.extension().is_some_and(|kind| kind == "log")).unwrap();
    let file = fs::OpenOptions::new().read(true).write(true).open(&segment).unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    let needle = row("key", crossfade_event::Cell::Bytes(b"note"));
    let found = bytes.windows(needle.as_bytes().len()).position(|window| window == needle.as_bytes()).unwrap();
    bytes[found] ^= 1;
    file.write_all_at(&bytes[found..=found], found as u64).unwrap();

    assert!(
        matches!(aside.try_next(), Err(LogError::Corrupt { .. })),
        "who looks on reads the file, and takes nothing"
    );
    let given = good(one.try_next()).expect("it is handed over");
    assert!(given.whole && given.entries.iter().any(|entry| matches!(entry.event, Event::Changed(_))));
    assert!(matches!(two.try_next(), Err(LogError::Corrupt { .. })), "the file is what the second one reads");
}

#[tokio::test]
async fn what_a_near_reader_has_not_come_to_is_told_and_what_nobody_reads_is_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    good(log.append(first()).await);
    let mut near = good(log.read(&log.tail().cut, Lane::Stream));
    good(log.append(transaction(2, vec![insert("key", "note")])).await);
    assert_eq!((log.behind_bytes(), log.unread_bytes()), (None, None), "nobody has asked yet");
    good(near.try_next()).expect("given");
    let note = "n".repeat(100_000);
    good(log.append(transaction(3, vec![insert("key", &note)])).await);
    good(near.try_next()).expect("given");
    for n in 4..304 {
        good(log.append(transaction(n, vec![insert("key", &note)])).await);
    }
    let (mut count, mut told) = (0, Vec::new());
    while let Some(given) = good(near.try_next()) {
        count += given.entries.len();
        // A machine that stands still for a while takes the reader for one that is gone.
        told.extend(log.behind_bytes());
    }
    assert_eq!(count, 300 * 3, "what was let go is read from the file");
    assert!(told.is_sorted_by(|before, after| before >= after), "{told:?}");
    assert!(told.first().is_some_and(|first| *first > 20 << 20), "also beyond what is kept in memory: {told:?}");
    assert_eq!(read_all(&log, &log.start(), Lane::Stream).len(), 1 + 302 * 3);
}

#[tokio::test]
async fn what_a_consumer_has_read_and_not_held_yet_is_told_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    good(log.append(first()).await);
    let mut near = good(log.read(&log.tail().cut, Lane::Stream));
    let mut places = vec![log.tail().cut];
    for n in 2..12 {
        good(log.append(transaction(n, vec![insert("key", &"n".repeat(100_000))])).await);
        places.push(log.tail().cut);
    }
    while good(near.try_next()).is_some() {}
    // Whoever was not heard of for half a second is not near: on a machine that stood still it says so once more.
    let held_at = |place: &Cut| loop {
        good(log.hold("one", place));
        assert_eq!(log.unread_bytes().unwrap_or_default(), 0, "all is read");
        if let Some(behind) = log.behind_bytes() {
            return behind;
        }
    };
    let behind: Vec<u64> = places.iter().map(held_at).collect();
    assert_eq!(behind.last(), Some(&0), "all is held");
    assert!(behind.windows(2).all(|two| (100_000..101_000).contains(&(two[0] - two[1]))), "{behind:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_place_near_the_end_has_the_last_batch_behind_it_and_is_near_the_end() {
    let home = tempfile::tempdir().unwrap();
    let mut random = StdRng::seed_from_u64(seed());
    let log = open(home.path());
    assert_eq!(log.near_end(), log.start());
    good(log.append(first()).await);
    for commit in 2..200u64 {
        let events = some(&mut random);
        good(log.append(transaction(commit, events)).await);
        if commit % 50 == 0 {
            // Rows of a backfill move nothing.
            good(log.append(snapshot(vec![rows(0, &["k"])])).await);
        }
        if commit % 20 == 0 {
            let position = log.tail().position.unwrap();
            let behind = read_all(&log, &log.near_end(), Lane::Stream);
            assert!(behind.iter().any(|entry| entry.position == position), "commit {commit}");
        }
    }
    let (near, end) = (log.near_end().total(), log.tail().cut.total());
    assert!(near > end / 2, "{near} of {end}");
    drop(log);
    // And in one that was opened again.
    let log = open(home.path());
    let position = log.tail().position.unwrap();
    assert!(read_all(&log, &log.near_end(), Lane::Stream).iter().any(|entry| entry.position == position));
}
