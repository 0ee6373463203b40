//! A broker that dies, hangs, or is not there.

use super::*;
use crossfade_event::{Event, Op};
use crossfade_log::{EventLog, Lane, LogError};
use crossfade_testkit::{
    log_suite::{at, batch, good, insert, read_all, schema, transaction},
    wait::wait_until,
};
use std::{collections::BTreeMap, time::Duration};

fn seen() -> crossfade_event::Batch {
    batch(1, vec![Event::SchemaSeen(schema(1, 1))], Some(at(1, u32::MAX)), true)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_go_on_by_themselves_over_kills_and_a_hanging_broker_and_nothing_is_lost_or_doubled() {
    let Some(kafka) = Kafka::start(&[]) else { return };
    let log = open(&kafka, "restarted", 4);
    good(log.append(seen()).await);
    let writing = tokio::spawn({
        let log = log.clone();
        async move {
            for n in 2..400u64 {
                let events = (0..20).map(|k| insert(&format!("{n}/{k}"), "v")).collect();
                good(log.append(transaction(n, events)).await);
            }
        }
    });
    let position = |log: &KafkaLog| log.tail().position.map_or(0, |position| position.commit);
    for (fault, at) in [("kill", 60), ("freeze", 160), ("kill", 260)] {
        wait_until("some appends", async || position(&log) >= at).await;
        match fault {
            "kill" => {
                kafka.kill();
                kafka.start_again();
            }
            _ => {
                kafka.freeze();
                // A reader has nothing either, and the log says so when that has lasted.
                let mut reader = good(log.read(&log.start(), Lane::All));
                let reading = tokio::spawn(async move { good(crossfade_log::LogReader::next(&mut reader).await) });
                wait_until("the log to say that it waits", async || log.waiting().is_some()).await;
                kafka.thaw();
                tokio::time::timeout(Duration::from_secs(120), reading).await.expect("the reader goes on").unwrap();
            }
        }
    }
    tokio::time::timeout(Duration::from_secs(240), writing).await.expect("the appends end").unwrap();
    let mut times: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
    let entries = read_all(&log, &log.start(), Lane::All);
    for entry in &entries {
        if let Event::Changed(change) = &entry.event {
            assert_eq!(change.op, Op::Insert);
            let key = change.key(&schema(1, 1)).unwrap();
            *times.entry(key.as_bytes().to_vec()).or_default() += 1;
        }
    }
    assert_eq!(times.len(), 398 * 20, "nothing is lost");
    assert!(times.values().all(|count| *count == 1), "nothing came twice");
    let commits: Vec<u64> = entries.iter().map(|entry| entry.position.commit).collect();
    assert!(commits.is_sorted(), "in commit order");
    // A reader that was in the midst of it goes on too.
    drop(log);
    let log = open(&kafka, "restarted", 4);
    assert_eq!(read_all(&log, &log.start(), Lane::All), entries);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_waits_for_a_broker_that_is_away() {
    let Some(kafka) = Kafka::start(&[]) else { return };
    let log = open(&kafka, "away", 2);
    good(log.append(seen()).await);
    for n in 2..50 {
        good(log.append(transaction(n, vec![insert("k", "v")])).await);
    }
    kafka.kill();
    let mut reader = good(log.read(&log.start(), Lane::All));
    let reading = tokio::spawn(async move {
        let mut events = 0;
        while events < 1 + 48 * 3 {
            events += good(crossfade_log::LogReader::next(&mut reader).await).entries.len();
        }
    });
    wait_until("the log to say that it waits", async || log.waiting().is_some()).await;
    assert!(!reading.is_finished());
    kafka.start_again();
    tokio::time::timeout(Duration::from_secs(120), reading).await.expect("the reader goes on").unwrap();
}

#[test]
fn brokers_that_are_not_there_are_named() {
    let port = crossfade_testkit::ports::free();
    let connection = Connection::plain(format!("127.0.0.1:{port}"));
    match KafkaLog::open(LogOptions::new(connection, "nobody")) {
        Err(LogError::Server { doing, cause, passing: true }) => {
            assert!(doing.contains(&port.to_string()), "{doing}");
            assert!(cause.to_string().contains("refused"), "{cause}");
        }
        other => panic!("{other:?}"),
    }
}

/// The example of that name, built beside this test.
fn example(name: &str) -> std::path::PathBuf {
    let own = std::env::current_exe().unwrap();
    let built = own.ancestors().map(|folder| folder.join("examples").join(name)).find(|file| file.is_file());
    built.expect("cargo builds the examples with the tests")
}

#[test]
fn a_writer_that_is_killed_at_any_moment_loses_and_doubles_nothing() {
    let Some(kafka) = Kafka::shared() else { return };
    let prefix = kafka.prefix("killed");
    let brokers = kafka.brokers();
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut random = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let place = crossfade_testkit::crossfade::Crossfade::with_binary(example("append"), folder.path());
    let mut reached = 0;
    for round in 0..8 {
        let writer = place.spawn(&[&brokers, &prefix, "4", "1000000"]);
        std::thread::sleep(Duration::from_millis(rand::Rng::random_range(&mut random, 200..2_500)));
        let ended = writer.kill();
        assert_eq!(ended.code, None, "round {round}: the writer ended by itself\n{ended}");
        if let Ok(log) = KafkaLog::open_read_only(options(kafka, &prefix, 4)) {
            let position = log.tail().position.map_or(0, |position| position.commit);
            assert!(position >= reached, "round {round}: what was acknowledged is gone");
            reached = position;
        }
    }
    place.succeed(&[&brokers, &prefix, "4", "50"]);
    let log = open(kafka, &prefix, 4);
    let last = log.tail().position.unwrap().commit;
    let (mut next, mut keys) = (2, Vec::new());
    for entry in read_all(&log, &log.start(), Lane::Stream) {
        match &entry.event {
            Event::Began(transaction) => assert_eq!(transaction.xid, next, "in order, without a hole, each once"),
            Event::Changed(change) => {
                let crossfade_event::Cell::Bytes(key) = change.new.as_ref().unwrap().cell(0).unwrap() else {
                    panic!("a key that is none")
                };
                keys.push(String::from_utf8(key.to_vec()).unwrap());
            }
            Event::Committed => {
                let count = if next % 7 == 0 { 300 } else { 5 };
                let expected: Vec<String> = (0..count).map(|k| format!("{next}/{k}")).collect();
                assert_eq!(keys, expected, "the whole transaction, in its order");
                keys.clear();
                next += 1;
            }
            _ => {}
        }
    }
    assert_eq!((next, keys.len()), (last + 1, 0));
    assert!(last > 50, "the writers wrote something");
}
