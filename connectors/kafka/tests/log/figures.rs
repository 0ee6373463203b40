//! What tools and metrics see of a log: what its clients count, and how far the sink has come.

use super::*;
use crossfade_event::Event;
use crossfade_kafka::client::ClientFigures;
use crossfade_log::{EventLog, Lane, LogReader};
use crossfade_testkit::{
    log_suite::{batch, insert, schema, soon, transaction},
    wait::wait_for,
};
use std::collections::BTreeMap;

fn of(log: &KafkaLog, purpose: &str) -> Option<ClientFigures> {
    log.figures().into_iter().find(|figures| figures.purpose == purpose)
}

async fn until(log: &KafkaLog, purpose: &str, what: &str, holds: impl Fn(&ClientFigures) -> bool) -> ClientFigures {
    wait_for(&format!("the {purpose}'s figures to say {what}"), async || {
        of(log, purpose).filter(|figures| holds(figures))
    })
    .await
}

async fn write(log: &KafkaLog, from: u64, count: u64) {
    for number in from..from + count {
        let change = insert(&format!("key {number}"), "v");
        soon("an append", log.append(transaction(number + 2, vec![change]))).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clients_count_is_told_by_purpose_also_while_nothing_is_done() {
    let Some(kafka) = Kafka::shared() else { return };
    let prefix = kafka.prefix("figures");
    let log = open(kafka, &prefix, 2);
    let seen = vec![Event::SchemaSeen(schema(1, 1))];
    soon("the schema", log.append(batch(1, seen, None, true))).await.unwrap();
    write(&log, 0, 5).await;
    let other = follow(kafka, &prefix, 2);
    let mut reader = other.read(&other.start(), Lane::All).unwrap();
    let mut changes = 0;
    while changes < 5 {
        let entries = soon("entries", reader.next()).await.unwrap().entries;
        changes += entries.iter().filter(|entry| matches!(entry.event, Event::Changed(_))).count();
    }
    // Nobody appends and nobody reads from here on: what is polled is polled by the log itself.
    let writer = until(&log, "writer", "what was sent", |figures| figures.sent_records > 5).await;
    assert_eq!((writer.clients, writer.transactions.clone()), (1, BTreeMap::from([("Ready".to_owned(), 1)])));
    let broker = writer.brokers.get(&1).expect("the broker by its number");
    assert!(writer.brokers.len() == 1 && broker.connected == 1, "{writer:?}");
    let reading = until(&other, "reader", "what was received", |figures| figures.received_records > 5).await;
    assert!(reading.received_bytes > 0 && reading.clients == 1, "{reading:?}");
    until(&other, "follower", "what was received", |figures| figures.received_records > 0).await;
    let had = writer.sent_records;
    write(&log, 5, 20).await;
    let busy = until(&log, "writer", "more", |figures| figures.sent_records >= had + 20).await;
    assert!(busy.brokers.values().any(|broker| broker.rtt_us > 0 && broker.rtt_p99_us >= broker.rtt_us), "{busy:?}");
    // A reader that goes takes nothing back that it has counted.
    drop(reader);
    let left = until(&other, "reader", "that it has gone", |figures| figures.clients == 0).await;
    assert!(left.received_records >= reading.received_records && left.queued_records == 0, "{left:?}");
    // A log that is only looked at counts nothing, for nobody would poll its clients.
    let looked = KafkaLog::open_read_only(options(kafka, &prefix, 2)).unwrap();
    assert_eq!(looked.figures(), []);
}

/// What Kafka's own tool says of a group: place and lag of each partition; nothing while there is none.
fn described(kafka: &Kafka, group: &str) -> BTreeMap<u32, (u64, u64)> {
    let brokers = kafka.brokers();
    let words = ["--bootstrap-server", &brokers, "--describe", "--group", group];
    let out = kafka.tool("org.apache.kafka.tools.consumer.group.ConsumerGroupCommand", &words);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |place: usize| words.get(place)?.parse::<u64>().ok();
        // GROUP TOPIC PARTITION CURRENT-OFFSET LOG-END-OFFSET LAG …
        Some((u32::try_from(number(2)?).ok()?, (number(3)?, number(5)?)))
    };
    text.lines().filter_map(line).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn kafkas_own_tool_shows_how_far_the_sink_is_behind() {
    let Some(kafka) = Kafka::shared() else { return };
    let prefix = kafka.prefix("lag");
    let group = format!("{prefix}.deliver");
    let log = open(kafka, &prefix, 2);
    let seen = vec![Event::SchemaSeen(schema(1, 1))];
    soon("the schema", log.append(batch(1, seen, None, true))).await.unwrap();
    write(&log, 0, 10).await;
    let other = follow(kafka, &prefix, 2);
    let half = other.tail().cut;
    other.hold("deliver", &half).unwrap();
    other.hold("somebody", &other.start()).unwrap();
    let lag = |found: &BTreeMap<u32, (u64, u64)>| found.values().map(|(_, lag)| *lag).collect::<Vec<_>>();
    wait_for("the tool to show that the sink has all", async || {
        let found = described(kafka, &group);
        (lag(&found) == [0, 0]).then_some(())
    })
    .await;
    // Each of these is a record and two marks at least.
    write(&log, 10, 10).await;
    let found = described(kafka, &group);
    let behind: u64 = lag(&found).into_iter().sum();
    assert!((30..200).contains(&behind), "{found:?}");
    // The last place is said when the process ends, too.
    wait_for("the other process to follow", async || (other.tail().cut == log.tail().cut).then_some(())).await;
    other.hold("deliver", &other.tail().cut).unwrap();
    drop(other);
    assert_eq!(lag(&described(kafka, &group)), [0, 0]);
    assert_eq!(described(kafka, &format!("{prefix}.somebody")), BTreeMap::new());
}
