//! A broker that was alone and died has committed a transaction in a part of its partitions only: made here by taking the
//! broker's own mark of the commit away from the others, while it is down.

use super::*;
use crossfade_event::{Batch, Event};
use crossfade_log::{EventLog, Lane};
use crossfade_testkit::{
    log_suite::{at, batch, good, insert, read_all, schema, transaction},
    wait::wait_until,
};
use std::{fs, path::Path};

const PREFIX: &str = "torn";
const CHANGES_0: &str = "torn.changes-0";
const CHANGES_1: &str = "torn.changes-1";
const META: &str = "torn.meta-0";

/// Set in the attributes of a batch that the broker wrote itself.
const CONTROL: u16 = 0x20;

/// Takes the last batch away, which must be the end of a transaction.
fn tear(data: &Path, partition: &str) {
    let segment = data.join(partition).join("00000000000000000000.log");
    let bytes = fs::read(&segment).unwrap();
    let (mut at, mut last) = (0, 0);
    while at < bytes.len() {
        let length = u32::from_be_bytes(bytes[at + 8..at + 12].try_into().unwrap()) as usize;
        (last, at) = (at, at + 12 + length);
    }
    let attributes = u16::from_be_bytes(bytes[last + 21..last + 23].try_into().unwrap());
    assert!(attributes & CONTROL != 0, "{partition} does not end with the end of a transaction");
    fs::OpenOptions::new().write(true).open(&segment).unwrap().set_len(last as u64).unwrap();
}

/// Rows for both partitions.
fn rows(commit: u64) -> Batch {
    transaction(commit, (0..20).map(|k| insert(&format!("{commit}/{k}"), "v")).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_broker_has_committed_in_a_part_of_its_partitions_is_committed_in_all_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let Some(kafka) = Kafka::start(&[("log.dirs", &data.display().to_string())]) else { return };
    let log = open(&kafka, PREFIX, 2);
    good(log.append(batch(1, vec![Event::SchemaSeen(schema(1, 1))], Some(at(1, u32::MAX)), true)).await);
    good(log.append(rows(2)).await);
    drop(log);
    let torn: [(&[&str], bool); 6] = [
        (&[CHANGES_0], true),
        (&[CHANGES_1], true),
        (&[META], true),
        (&[CHANGES_0, CHANGES_1], true),
        (&[CHANGES_1, META], true),
        // Nobody can have read anything of it.
        (&[CHANGES_0, CHANGES_1, META], false),
    ];
    for (commit, (partitions, stays)) in (10..).step_by(10).zip(torn) {
        let log = open(&kafka, PREFIX, 2);
        let before = (log.tail(), read_all(&log, &log.start(), Lane::All));
        good(log.append(rows(commit)).await);
        let after = (log.tail(), read_all(&log, &log.start(), Lane::All));
        assert_ne!(before.1, after.1);
        drop(log);
        kafka.kill();
        partitions.iter().for_each(|partition| tear(&data, partition));
        kafka.start_again();
        let log = open(&kafka, PREFIX, 2);
        let expected = if stays { &after } else { &before };
        assert_eq!(&(log.tail(), read_all(&log, &log.start(), Lane::All)), expected, "{partitions:?}");
        good(log.append(rows(commit + 1)).await);
        let entries = read_all(&log, &log.start(), Lane::All);
        assert_eq!(entries.len(), expected.1.len() + after.1.len() - before.1.len(), "{partitions:?}");
        // Also for whoever reads it from the beginning another time, and from where the end was.
        drop(log);
        let log = open(&kafka, PREFIX, 2);
        assert_eq!(read_all(&log, &log.start(), Lane::All), entries, "{partitions:?}");
        let from = &expected.0.cut;
        let rest: Vec<_> = entries.iter().filter(|entry| entry.offset >= from.next(entry.partition)).cloned().collect();
        assert_eq!(read_all(&log, from, Lane::All), rest, "{partitions:?}");
    }
}

/// A log that is open when it happens hears nothing of the append that was on its way, and finds out by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_open_meanwhile_takes_what_was_committed_in_part_for_landed() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let Some(kafka) = Kafka::start(&[("log.dirs", &data.display().to_string())]) else { return };
    let log = open(&kafka, PREFIX, 2);
    good(log.append(batch(1, vec![Event::SchemaSeen(schema(1, 1))], Some(at(1, u32::MAX)), true)).await);
    for (commit, partition) in [(10, CHANGES_0), (20, CHANGES_1)] {
        good(log.append(rows(commit)).await);
        kafka.kill();
        tear(&data, partition);
        // It is begun while nobody answers, and finds the one before unfinished.
        let appending = tokio::spawn({
            let log = log.clone();
            async move { log.append(rows(commit + 1)).await }
        });
        if commit == 20 {
            // By then another producer is to be begun, which has to end what hangs; before, the one that is there ends it.
            wait_until("the log to say that it waits", async || log.waiting().is_some()).await;
        }
        kafka.start_again();
        good(appending.await.unwrap());
    }
    let entries = read_all(&log, &log.start(), Lane::All);
    drop(log);
    let log = open(&kafka, PREFIX, 2);
    assert_eq!(read_all(&log, &log.start(), Lane::All), entries);
    let mut commits: Vec<u64> =
        entries.iter().map(|entry| entry.position.commit).filter(|commit| *commit > 1).collect();
    let counts: Vec<usize> = commits.chunk_by(|one, other| one == other).map(<[u64]>::len).collect();
    commits.dedup();
    assert_eq!(commits, [10, 11, 20, 21]);
    assert!(counts.iter().all(|count| *count == counts[0]), "{counts:?}");
}
