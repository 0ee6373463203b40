//! Crashes: the tail cut or garbled at any byte leaves a prefix of whole batches, or is refused; never anything else.

use crate::{
    conformance::{open, small},
    disk::{self, TestDisk},
};
use crossfade_event::{Batch, Event};
use crossfade_log::{
    EventLog, Lane, LogError,
    embedded::{Embedded, Options},
};
use crossfade_testkit::log_suite::{
    at, batch, crashed, crashed_in_memory, events_of, flat, insert, part, schema, transaction,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

fn seed() -> u64 {
    let seed = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    eprintln!("SEED={seed}");
    seed
}

/// The segment files, rising.
pub(crate) fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    found.sort();
    found
}

fn first() -> Batch {
    batch(1, vec![Event::SchemaSeen(schema(1, 1))], Some(at(1, u32::MAX)), true)
}

/// Random transactions, some of them in parts.
fn random_batches(random: &mut StdRng, count: u64) -> Vec<Batch> {
    let mut batches = vec![first()];
    for n in 2..count {
        let mut inserts = || {
            let changes = random.random_range(1..4);
            let change = |_| insert(&random.random::<u32>().to_string(), &"v".repeat(random.random_range(0..200)));
            (0..changes).map(change).collect::<Vec<_>>()
        };
        let (one, two) = (inserts(), inserts());
        if random.random_bool(0.3) {
            batches.push(part(n, one));
            batches.push(part(n, two.clone()));
        }
        batches.push(transaction(n, two));
    }
    batches
}

/// How many events there are after each whole batch.
fn whole_lengths(batches: &[Batch]) -> Vec<usize> {
    let mut lengths = vec![0];
    let mut total = 0;
    for batch in batches {
        total += batch.events.len();
        if batch.whole {
            lengths.push(total);
        }
    }
    lengths
}

fn all_events(batches: &[Batch]) -> Vec<Event> {
    flat(batches.iter().flat_map(|batch| batch.events.iter().map(|stamped| stamped.event.clone())))
}

#[tokio::test]
async fn a_tail_cut_at_any_byte_leaves_a_prefix_of_whole_batches() {
    let mut random = StdRng::seed_from_u64(seed());
    let batches = random_batches(&mut random, 14);
    let (events, lengths) = (all_events(&batches), whole_lengths(&batches));
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    for batch in batches {
        log.append(batch).await.unwrap();
    }
    drop(log);
    let file = segments(dir.path()).pop().unwrap();
    let length = fs::metadata(&file).unwrap().len();
    let mut seen = Vec::new();
    for cut in 0..length {
        let copy = crashed_in_memory(dir.path());
        let torn = copy.path().join(file.file_name().unwrap());
        let handle = fs::OpenOptions::new().write(true).open(&torn).unwrap();
        handle.set_len(cut).unwrap();
        if cut % 3 == 0 {
            // As room set aside in advance looks after a crash.
            handle.set_len(length + 5000).unwrap();
        }
        drop(handle);
        if cut < 92 {
            // The only segment has no header left, but there are schemas: that is no new log.
            assert!(matches!(Embedded::open(copy.path(), small()), Err(LogError::Corrupt { .. })), "cut at {cut}");
            continue;
        }
        // So many syncs would only take time: no power is cut here.
        let open = |dir: &Path| Embedded::open(dir, Options { sync: false, ..small() }).unwrap();
        let log = open(copy.path());
        let found = events_of(&log, Lane::All);
        assert!(events.starts_with(&found) && lengths.contains(&found.len()), "cut at {cut}: {} events", found.len());
        seen.push(found.len());
        drop(log);
        if cut % 7 == 0 {
            assert_eq!(events_of(&open(copy.path()), Lane::All), found, "and stays so");
        }
    }
    seen.dedup();
    assert_eq!(seen, lengths[..lengths.len() - 1], "every prefix came up");
}

#[tokio::test]
async fn garbage_anywhere_leaves_a_prefix_or_is_refused_with_the_place() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let batches = random_batches(&mut random, 60);
    let (events, lengths) = (all_events(&batches), whole_lengths(&batches));
    let dir = tempfile::tempdir().unwrap();
    let log = Embedded::open(dir.path(), Options { segment_bytes: 8192, ..small() }).unwrap();
    for batch in batches {
        log.append(batch).await.unwrap();
    }
    drop(log);
    let (mut refused, mut cut) = (0, 0);
    for round in 0..600 {
        let copy = crashed_in_memory(dir.path());
        let files = segments(copy.path());
        let file = &files[random.random_range(0..files.len())];
        let mut bytes = fs::read(file).unwrap();
        let at = random.random_range(0..bytes.len());
        let length = random.random_range(1..64).min(bytes.len() - at);
        match random.random_range(0..3) {
            0 => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes[at..at + length].fill(0),
            _ => random.fill(&mut bytes[at..at + length]),
        }
        fs::write(file, &bytes).unwrap();
        let result = Embedded::open(copy.path(), small()).and_then(|log| log.verify().map(|_| log));
        match result {
            Err(LogError::Corrupt { file: named, .. }) => {
                assert!(files.contains(&named), "SEED={seed} round {round}: {}", named.display());
                refused += 1;
            }
            Err(LogError::TooNew { .. } | LogError::NotBuilt(_)) => refused += 1,
            Err(error) => panic!("SEED={seed} round {round}: {error}"),
            Ok(log) => {
                let found = events_of(&log, Lane::All);
                let known = events.starts_with(&found) && lengths.contains(&found.len());
                assert!(known, "SEED={seed} round {round}: {} events of {}", found.len(), events.len());
                cut += usize::from(found.len() < events.len());
            }
        }
    }
    assert!(refused > 100, "most damage is refused: {refused}");
    assert!(cut > 0, "damage of the last frame cannot be told from a torn one: {cut}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hole_in_what_was_never_synced_is_a_torn_tail_and_one_in_what_was_is_damage() {
    let (dir, held) = (tempfile::tempdir().unwrap(), Arc::new(TestDisk::default()));
    let log = disk::open(dir.path(), &held).unwrap();
    log.append(first()).await.unwrap();
    held.hold_syncs(true);
    let lead = tokio::spawn(log.append(transaction(2, vec![insert("lead", "1")])));
    tokio::task::block_in_place(|| held.until_a_sync_waits());
    let group: Vec<_> = (3..8).map(|n| log.append(transaction(n, vec![insert("group", &"g".repeat(300))]))).collect();
    held.hold_syncs(false);
    lead.await.unwrap().unwrap();
    for append in group {
        append.await.unwrap();
    }
    drop(log);
    let file = segments(dir.path()).pop().unwrap();
    let bytes = fs::read(&file).unwrap();
    let find = |text: &[u8]| bytes.windows(text.len()).position(|window| window == text).unwrap();
    let (lead_at, group_at) = (find(b"lead"), find(b"ggggggg"));
    for (at, torn) in [(group_at, true), (lead_at, false)] {
        let copy = crashed(dir.path());
        let mut hole = bytes.clone();
        hole[at..at + 4].fill(0);
        fs::write(copy.path().join(file.file_name().unwrap()), hole).unwrap();
        match Embedded::open(copy.path(), small()) {
            Ok(log) => {
                assert!(torn, "synced bytes were lost without a word");
                assert_eq!(events_of(&log, Lane::All).len(), 1 + 3, "all before the hole");
            }
            Err(error) => assert!(!torn && matches!(error, LogError::Corrupt { .. }), "{error}"),
        }
    }
}

/// Takes away a random part of what was written and never synced, sector by sector, as a power cut may.
fn cut_power(random: &mut StdRng, from: &Path, to: &Path, unsynced: &[(u64, u64, usize)]) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let inode = entry.metadata().unwrap().ino();
        let copy = to.join(entry.file_name());
        let mut bytes = fs::read(&copy).unwrap();
        for (_, at, length) in unsynced.iter().filter(|(of, _, _)| *of == inode) {
            let (at, end) = (*at as usize, *at as usize + length);
            for sector in (at - at % 512..end).step_by(512) {
                if random.random_bool(0.4) {
                    let lost = sector.max(at)..(sector + 512).min(end).min(bytes.len());
                    bytes[lost].fill(0);
                }
            }
        }
        fs::write(copy, bytes).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_takes_nothing_that_was_acknowledged() {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let (dir, held) = (tempfile::tempdir().unwrap(), Arc::new(TestDisk::default()));
    let log = Embedded::open(dir.path(), Options { disk: held.clone(), segment_bytes: 16 * 1024, ..small() }).unwrap();
    log.append(first()).await.unwrap();
    let (mut position, mut schemas, mut torn) = (2, 1, 0);
    for round in 0..60 {
        let acknowledged = events_of(&log, Lane::All);
        held.hold_syncs(true);
        let mut appends = Vec::new();
        let mut appended = acknowledged.clone();
        let mut lengths = vec![appended.len()];
        for _ in 0..random.random_range(1..12) {
            let mut changes = vec![insert("k", &"p".repeat(random.random_range(0..3000)))];
            if random.random_bool(0.2) {
                schemas += 1;
                changes.insert(0, Event::SchemaSeen(schema(schemas, 1)));
            }
            let whole = transaction(position, changes);
            appended.extend(whole.events.iter().map(|stamped| stamped.event.clone()));
            lengths.push(appended.len());
            position += 1;
            appends.push(tokio::spawn(log.append(whole)));
        }
        tokio::task::block_in_place(|| held.until_a_sync_waits());
        let copy = crashed_in_memory(dir.path());
        cut_power(&mut random, dir.path(), copy.path(), &held.unsynced());
        held.hold_syncs(false);
        for append in appends {
            append.await.unwrap().unwrap();
        }
        let after = Embedded::open(copy.path(), small()).unwrap_or_else(|error| panic!("SEED={seed} {round}: {error}"));
        let found = events_of(&after, Lane::All);
        assert!(found.starts_with(&acknowledged), "SEED={seed} round {round}: acknowledged events are gone");
        assert!(appended.starts_with(&found) && lengths.contains(&found.len()), "SEED={seed} round {round}");
        torn += usize::from(found.len() < appended.len());
        for event in &found {
            if let Event::SchemaSeen(schema) = event {
                assert_eq!(after.schema(schema.id, schema.version).as_ref(), Some(schema), "SEED={seed} {round}");
            }
        }
        after.append(transaction(900, vec![insert("k", "goes on")])).await.unwrap();
    }
    assert!(torn > 5, "the cuts hit something: {torn}");
}
