//! Workers beside a log: whatever becomes of them, whoever delivers is given what was made of each change, once and in the
//! order of the log; and what will never be made is not waited for.

use super::*;
use bytes::Bytes;
use crossfade_event::{Event, SchemaVersion, Sequence, TableId};
use crossfade_kafka::{
    Workers,
    codec::Head,
    log::{KafkaReader, Make},
};
use crossfade_log::{Entry, EventLog, Lane, LogError, LogReader};
use crossfade_testkit::{log_suite, seeded};
use rand::Rng;
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::task::JoinHandle;

/// Makes of each change its place.
struct Echo;

fn made_of(sequence: Sequence) -> Bytes {
    format!("made of {}", sequence.0).into()
}

impl Make for Echo {
    fn take(&mut self, entry: &Entry) -> Result<Option<Bytes>, LogError> {
        Ok(matches!(entry.event, Event::Changed(_) | Event::Rows(_)).then(|| made_of(entry.sequence)))
    }

    fn followed(&self) -> Vec<(TableId, SchemaVersion)> {
        Vec::new()
    }
}

fn with_workers(kafka: &Kafka, prefix: &str, partitions: u32) -> LogOptions {
    LogOptions { workers: Some(Workers { silent: Duration::from_secs(6) }), ..options(kafka, prefix, partitions) }
}

struct Worker(Arc<AtomicBool>, JoinHandle<Result<(), LogError>>);

impl Worker {
    fn start(options: LogOptions) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let work = tokio::task::spawn_blocking(move || {
            let log = KafkaLog::open_following(options)?;
            log.transform(Arc::new(|_| Ok(Box::new(Echo) as Box<dyn Make>)), &stopped, &|_| {})
        });
        Self(stop, work)
    }

    async fn stop(self) {
        self.0.store(true, Relaxed);
        self.1.await.unwrap().unwrap();
    }
}

/// Takes entries until so many changes have come; what was made of each.
async fn taken(reader: &mut KafkaReader, count: usize) -> Vec<(Sequence, Option<Bytes>)> {
    let mut taken = Vec::new();
    log_suite::soon("all to be made", async {
        while taken.len() < count {
            for entry in reader.next().await.unwrap().entries {
                if matches!(entry.event, Event::Changed(_) | Event::Rows(_)) {
                    taken.push((entry.sequence, reader.made(entry.sequence)));
                }
            }
        }
    })
    .await;
    taken
}

fn clients(kafka: &Kafka) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", kafka.brokers()).set("group.id", "tests").set("isolation.level", "read_committed");
    config
}

/// What is in a partition of the topic of what was made: the offset of each record, and its round and place where it is no
/// note.
fn records(kafka: &Kafka, prefix: &str, partition: i32) -> Vec<(i64, Option<(u64, u32)>)> {
    let topic = format!("{prefix}.transformed");
    let consumer: BaseConsumer = clients(kafka).set("enable.partition.eof", "true").create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&topic, partition, Offset::Beginning).unwrap();
    consumer.assign(&list).unwrap();
    let mut records = Vec::new();
    loop {
        match consumer.poll(Duration::from_secs(30)).expect("the broker answers") {
            Err(rdkafka::error::KafkaError::PartitionEOF(_)) => return records,
            Err(error) => panic!("{error}"),
            Ok(message) => {
                let is_note = message.key() == Some(b"note");
                let place = (!is_note).then(|| Head::parse(message.payload().unwrap()).unwrap());
                records.push((message.offset(), place.map(|head| (head.round, head.place))));
            }
        }
    }
}

async fn begin(log: &KafkaLog) {
    let seen = Event::SchemaSeen(log_suite::schema(1, 1));
    log.append(log_suite::batch(1, vec![seen], None, true)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_come_and_go_and_each_change_is_made_once_and_in_order() {
    let Some(kafka) = Kafka::shared() else { return };
    let mut rng = seeded::seeded("workers that come and go");
    let (prefix, partitions) = (kafka.prefix("workers"), 8);
    let log = KafkaLog::open(with_workers(kafka, &prefix, partitions)).unwrap();
    begin(&log).await;
    let mut reader = log.read_made(&log.start(), Lane::Stream).unwrap();
    let mut workers = vec![Worker::start(with_workers(kafka, &prefix, partitions))];
    let (mut commit, mut keys) = (2, 0);
    let mut expected = 0;
    for round in 0..8 {
        for _ in 0..rng.random_range(5..60) {
            let changes: Vec<Event> = (0..rng.random_range(1..20))
                .map(|_| {
                    keys += 1;
                    log_suite::insert(&keys.to_string(), "v")
                })
                .collect();
            expected += changes.len();
            log.append(log_suite::transaction(commit, changes)).await.unwrap();
            commit += 1;
        }
        match round % 3 {
            0 => workers.push(Worker::start(with_workers(kafka, &prefix, partitions))),
            1 => workers.remove(0).stop().await,
            _ => {}
        }
    }
    for (sequence, made) in taken(&mut reader, expected).await {
        assert_eq!(made, Some(made_of(sequence)));
    }
    assert!(reader.try_next().unwrap().is_none() && !reader.waits(), "the end");
    for worker in workers {
        worker.stop().await;
    }
    let mut count = 0;
    for partition in 0..partitions {
        let places: Vec<_> = records(kafka, &prefix, partition as i32).into_iter().filter_map(|(_, at)| at).collect();
        assert!(places.is_sorted_by(|before, after| before < after), "partition {partition} has something twice");
        count += places.len();
    }
    assert_eq!(count, expected, "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_made_yet_is_waited_for_and_what_is_gone_is_not() {
    let Some(kafka) = Kafka::shared() else { return };
    let prefix = kafka.prefix("gone");
    let log = KafkaLog::open(with_workers(kafka, &prefix, 1)).unwrap();
    begin(&log).await;
    log.append(log_suite::transaction(2, vec![log_suite::insert("1", "a")])).await.unwrap();
    let mut reader = log.read_made(&log.start(), Lane::Stream).unwrap();
    // The schema comes at once; the change is not the end, and is not given.
    while reader.try_next().unwrap().is_some() {}
    assert!(reader.waits(), "nobody has made it");
    log_suite::soon("people to be told", async {
        while log.waiting().is_none_or(|waits| !waits.contains("has not been transformed")) {
            let _ = tokio::time::timeout(Duration::from_millis(50), reader.next()).await;
        }
    })
    .await;
    let worker = Worker::start(with_workers(kafka, &prefix, 1));
    let first = taken(&mut reader, 1).await;
    assert_eq!(first[0].1, Some(made_of(first[0].0)));
    log.append(log_suite::transaction(3, vec![log_suite::insert("2", "b")])).await.unwrap();
    let second = taken(&mut reader, 1).await;
    assert_eq!(second[0].1, Some(made_of(second[0].0)));
    assert_eq!(log.waiting(), None);
    worker.stop().await;

    let records = records(kafka, &prefix, 0);
    let of_second = records.iter().rev().find(|(_, place)| place.is_some()).unwrap().0;
    let admin: AdminClient<DefaultClientContext> = clients(kafka).create().unwrap();
    let mut below = TopicPartitionList::new();
    below.add_partition_offset(&format!("{prefix}.transformed"), 0, Offset::Offset(of_second)).unwrap();
    admin.delete_records(&below, &AdminOptions::new()).await.unwrap();
    // Its broker has dropped the first; nobody will make it again.
    let mut reader = log.read_made(&log.start(), Lane::Stream).unwrap();
    let made: BTreeMap<Sequence, Option<Bytes>> = taken(&mut reader, 2).await.into_iter().collect();
    assert_eq!(made, BTreeMap::from([(first[0].0, None), (second[0].0, second[0].1.clone())]));
    // Without what was made there is nothing to wait for.
    let plain = log_suite::read_all(&log, &log.start(), Lane::Stream);
    assert_eq!(plain.iter().filter(|entry| matches!(entry.event, Event::Changed(_))).count(), 2);
}
