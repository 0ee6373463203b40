//! Three brokers, a copy of everything on each, of which one goes.

use super::*;
use crossfade_event::{Batch, Event};
use crossfade_log::{EventLog, Lane};
use crossfade_testkit::{
    kafka::Cluster,
    log_suite::{at, batch, good, insert, read_all, schema, transaction},
    wait::wait_until,
};
use std::{collections::BTreeMap, time::Duration};

const PARTITIONS: u32 = 4;

fn seen() -> Batch {
    batch(1, vec![Event::SchemaSeen(schema(1, 1))], Some(at(1, u32::MAX)), true)
}

fn of(kafka: &Cluster, prefix: &str) -> LogOptions {
    LogOptions { partitions: Some(PARTITIONS), ..LogOptions::new(Connection::plain(kafka.brokers()), prefix) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_and_readers_go_on_while_any_one_of_three_brokers_is_away_and_nothing_is_lost_or_doubled() {
    let Some(kafka) = Cluster::start(3) else { return };
    let log = KafkaLog::open(of(&kafka, "three")).unwrap_or_else(|error| panic!("{error}: {error:?}"));
    good(log.append(seen()).await);
    let writing = tokio::spawn({
        let log = log.clone();
        async move {
            for n in 2..800u64 {
                let events = (0..10).map(|k| insert(&format!("{n}/{k}"), "v")).collect();
                good(log.append(transaction(n, events)).await);
            }
        }
    });
    let reading = tokio::spawn({
        let log = log.clone();
        async move {
            let mut reader = good(log.read(&log.start(), Lane::All));
            let mut entries = 0;
            while entries < 1 + 798 * 12 {
                entries += good(crossfade_log::LogReader::next(&mut reader).await).entries.len();
            }
        }
    });
    let position = || log.tail().position.map_or(0, |position| position.commit);
    // One after another: each of them leads some partitions, one the controllers, and one ends the transactions.
    for place in 0..kafka.len() {
        kafka.node(place).kill();
        let now = position();
        wait_until("appends to go on without that broker", async || position() > now + 40).await;
        kafka.node(place).start_again();
        let now = position();
        wait_until("appends to go on with it", async || position() > now + 40).await;
    }
    tokio::time::timeout(Duration::from_secs(240), writing).await.expect("the appends end").unwrap();
    tokio::time::timeout(Duration::from_secs(120), reading).await.expect("the reader ends").unwrap();
    let mut times: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
    for entry in read_all(&log, &log.start(), Lane::All) {
        if let Event::Changed(change) = &entry.event {
            *times.entry(change.key(&schema(1, 1)).unwrap().as_bytes().to_vec()).or_default() += 1;
        }
    }
    assert_eq!(times.len(), 798 * 10, "nothing is lost");
    assert!(times.values().all(|count| *count == 1), "nothing came twice");
}
