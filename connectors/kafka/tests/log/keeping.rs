//! What survives, and what is refused: the log opened again, by another, and over topics that are not what they were.

use super::*;
use crossfade_event::{Cut, Event, Offset, Partition, TableId};
use crossfade_log::{EventLog, Lane, LogError};
use crossfade_testkit::log_suite::{self, at, batch, good, insert, part, read_all, schema, soon, transaction};
use rdkafka::{
    ClientConfig, TopicPartitionList,
    admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication},
    client::DefaultClientContext,
    producer::{BaseProducer, BaseRecord, Producer},
};
use std::time::Duration;

const PARTITIONS: u32 = 4;

fn seen() -> crossfade_event::Batch {
    batch(1, vec![Event::SchemaSeen(schema(1, 1))], Some(at(1, u32::MAX)), true)
}

fn bulk(n: u64) -> Vec<Event> {
    (0..30).map(|k| insert(&format!("{n}/{k}"), &"w".repeat(120))).collect()
}

async fn fill(log: &KafkaLog, from: u64, to: u64) {
    let appends: Vec<_> = (from..to).map(|n| log.append(transaction(n, bulk(n)))).collect();
    for append in appends {
        good(soon("an append", append).await);
    }
}

fn admin(kafka: &Kafka) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", kafka.brokers()).create().unwrap()
}

async fn make_topic(kafka: &Kafka, name: &str, partitions: i32, settings: &[(&str, &str)]) {
    let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    for (key, value) in settings {
        topic = topic.set(key, value);
    }
    for result in admin(kafka).create_topics([&topic], &AdminOptions::new()).await.unwrap() {
        result.unwrap();
    }
}

async fn delete_topic(kafka: &Kafka, name: &str) {
    for result in admin(kafka).delete_topics(&[name], &AdminOptions::new()).await.unwrap() {
        result.unwrap();
    }
}

fn refusal(result: Result<KafkaLog, LogError>) -> String {
    match result {
        Err(LogError::Refused { what, remedy }) => format!("{what}. {remedy}"),
        other => panic!("it is not refused: {other:?}"),
    }
}

fn loss<T: std::fmt::Debug>(result: Result<T, LogError>) -> String {
    match result {
        Err(LogError::Lost { what, .. }) => what,
        other => panic!("it is not lost: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_there_after_reopening_and_offsets_have_gaps() {
    let Some(kafka) = Kafka::shared() else { return };
    let prefix = kafka.prefix("reopened");
    let log = open(kafka, &prefix, PARTITIONS);
    for batch in log_suite::every_kind() {
        good(soon("an append", log.append(batch)).await);
    }
    fill(&log, 30, 100).await;
    let (all, tail, schemas, id) =
        (read_all(&log, &log.start(), Lane::All), log.tail(), log.latest_schemas(), log.id());
    let offsets: Vec<u64> =
        all.iter().filter(|entry| entry.partition == Partition(0)).map(|entry| entry.offset.0).collect();
    assert!(offsets.windows(2).any(|pair| pair[1] > pair[0] + 2), "the broker's own records take offsets too");
    drop(log);
    let looked = KafkaLog::open_read_only(options(kafka, &prefix, PARTITIONS)).unwrap();
    assert_eq!((read_all(&looked, &looked.start(), Lane::All), looked.tail()), (all.clone(), tail.clone()));
    assert!(soon("an append to a log that is only looked at", looked.append(seen())).await.is_err());
    let log = open(kafka, &prefix, PARTITIONS);
    assert_eq!(read_all(&log, &log.start(), Lane::All), all);
    assert_eq!((log.tail(), log.latest_schemas(), log.id()), (tail.clone(), schemas, id));
    fill(&log, 100, 105).await;
    assert_eq!(read_all(&log, &tail.cut, Lane::All).len(), 5 * 32, "and it goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unfinished_head_is_gone_after_reopening() {
    let Some(kafka) = Kafka::shared() else { return };
    for parts in [1, 300] {
        let prefix = kafka.prefix("head");
        let log = open(kafka, &prefix, PARTITIONS);
        good(soon("the schema", log.append(seen())).await);
        fill(&log, 2, 10).await;
        let (all, tail) = (read_all(&log, &log.start(), Lane::All), log.tail());
        good(soon("a schema in a part", log.append(part(50, vec![Event::SchemaSeen(schema(2, 1))]))).await);
        let appends: Vec<_> = (0..parts).map(|n| log.append(part(50, bulk(n)))).collect();
        for append in appends {
            good(soon("a part", append).await);
        }
        drop(log);
        for again in 0..2 {
            let log = open(kafka, &prefix, PARTITIONS);
            assert_eq!(read_all(&log, &log.start(), Lane::All), all, "{parts} parts, opened {again} times before");
            assert_eq!(log.tail(), tail);
            assert_eq!(log.schema(TableId(2), schema(2, 1).version), None, "its schema comes anew with it");
        }
        let log = open(kafka, &prefix, PARTITIONS);
        let whole = batch(50, [vec![Event::SchemaSeen(schema(2, 1))], bulk(50)].concat(), None, true);
        good(soon("the whole", log.append(whole)).await);
        assert_eq!(read_all(&log, &tail.cut, Lane::All).len(), 31, "{parts} parts");
        drop(log);
        let log = open(kafka, &prefix, PARTITIONS);
        assert_eq!(read_all(&log, &log.start(), Lane::All).len(), all.len() + 31);
        assert_eq!(log.latest_schemas(), [schema(1, 1), schema(2, 1)]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumers_and_the_beginning_survive() {
    let Some(kafka) = Kafka::shared() else { return };
    let prefix = kafka.prefix("held");
    let log = open(kafka, &prefix, PARTITIONS);
    good(soon("the schema", log.append(seen())).await);
    fill(&log, 2, 20).await;
    let held = log.tail().cut;
    good(log.hold("deliver", &held));
    good(log.hold("gone", &log.start()));
    good(log.release("gone"));
    fill(&log, 20, 40).await;
    let rest = read_all(&log, &held, Lane::All);
    drop(log);
    let log = open(kafka, &prefix, PARTITIONS);
    assert_eq!(log.consumers(), [("deliver".to_owned(), held.clone())]);
    let start = good(log.trim(&log.tail().cut, false));
    assert_eq!(start, held, "it still holds back the trimming");
    drop(log);
    let log = open(kafka, &prefix, PARTITIONS);
    assert_eq!(log.start(), held);
    assert_eq!(read_all(&log, &held, Lane::All), rest);
    let everything = log.tail();
    good(log.trim(&everything.cut, true));
    drop(log);
    let log = open(kafka, &prefix, PARTITIONS);
    assert_eq!((log.tail(), log.start()), (everything.clone(), everything.cut), "the position outlives the entries");
    assert_eq!(log.latest_schemas(), [schema(1, 1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_opens_the_log_shuts_out_the_one_before_who_says_so() {
    let Some(kafka) = Kafka::shared() else { return };
    let prefix = kafka.prefix("fenced");
    let first = open(kafka, &prefix, PARTITIONS);
    good(soon("the schema", first.append(seen())).await);
    let second = open(kafka, &prefix, PARTITIONS);
    let error = soon("an append of the first", first.append(transaction(2, bulk(2)))).await.unwrap_err();
    assert!(matches!(&error, LogError::Fenced { by, .. } if by.contains(&std::process::id().to_string())), "{error:?}");
    let error = soon("another", first.append(transaction(2, bulk(2)))).await.unwrap_err();
    assert!(matches!(error, LogError::Fenced { .. }), "{error:?}");
    fill(&second, 2, 30).await;
    assert_eq!(read_all(&second, &second.start(), Lane::All).len(), 1 + 28 * 32, "the second was not disturbed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_that_were_deleted_and_made_anew_are_lost() {
    let Some(kafka) = Kafka::shared() else { return };
    let (prefix, folder) = (kafka.prefix("anew"), tempfile::tempdir().unwrap());
    let options = LogOptions { pin: Some(folder.path().join("log/pin.json")), ..options(kafka, &prefix, PARTITIONS) };
    let log = KafkaLog::open(options.clone()).unwrap();
    good(soon("the schema", log.append(seen())).await);
    fill(&log, 2, 10).await;
    let (topic, meta) = (log.topic().to_owned(), format!("{prefix}.meta"));
    delete_topic(kafka, &topic).await;
    // While it runs.
    crossfade_testkit::wait::wait_until("the topic is gone", async || {
        !admin(kafka)
            .inner()
            .fetch_metadata(None, Duration::from_secs(10))
            .unwrap()
            .topics()
            .iter()
            .any(|there| there.name() == topic)
    })
    .await;
    make_topic(kafka, &topic, PARTITIONS as i32, &[("retention.ms", "-1")]).await;
    let what = loss(crossfade_testkit::log_suite::soon("an append", log.append(transaction(10, bulk(10)))).await);
    assert!(what.contains(&topic), "{what}");
    drop(log);
    // After it ended, with and without the file that pins the ids.
    let what = loss(KafkaLog::open(options.clone()));
    assert!(what.contains("deleted and made anew"), "{what}");
    let what = loss(KafkaLog::open(LogOptions { pin: None, ..options.clone() }));
    assert!(what.contains("deleted and made anew"), "{what}");
    // Both anew: only the file knows.
    delete_topic(kafka, &meta).await;
    delete_topic(kafka, &topic).await;
    let what = loss(KafkaLog::open(options.clone()));
    assert!(what.contains("has been deleted"), "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_that_cannot_keep_a_log_are_refused_with_the_remedy() {
    let Some(kafka) = Kafka::shared() else { return };
    type Case<'a> = (&'a str, i32, &'a [(&'a str, &'a str)], &'a str);
    let cases: [Case<'_>; 5] = [
        ("compacted", 4, &[("cleanup.policy", "compact"), ("retention.ms", "-1")], "cleanup.policy=compact"),
        ("both", 4, &[("cleanup.policy", "compact,delete"), ("retention.ms", "-1")], "compaction would drop changes"),
        ("narrow", 3, &[("retention.ms", "-1")], "has 3 partitions, the spec says 4"),
        ("short", 4, &[("retention.ms", "60000")], "retention.ms=60000"),
        ("unclean", 4, &[("retention.ms", "-1"), ("unclean.leader.election.enable", "true")], "unclean"),
    ];
    for (hint, partitions, settings, expected) in cases {
        let prefix = kafka.prefix(hint);
        make_topic(kafka, &format!("{prefix}.changes"), partitions, settings).await;
        let said = refusal(KafkaLog::open(options(kafka, &prefix, PARTITIONS)));
        assert!(said.contains(expected) && said.contains(&prefix), "{said}");
    }
    let said = refusal(KafkaLog::open(options(kafka, "no spaces", PARTITIONS)));
    assert!(said.contains("cannot begin the name of a topic"), "{said}");
    let said = refusal(KafkaLog::open_read_only(options(kafka, "nothing-here", PARTITIONS)));
    assert!(said.contains("there is no log yet"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_given_is_used_and_keeps_its_retention() {
    let Some(kafka) = Kafka::shared() else { return };
    let prefix = kafka.prefix("given");
    make_topic(kafka, &format!("{prefix}.changes"), 4, &[("retention.ms", "7200000")]).await;
    let hour = Some(Duration::from_secs(3600));
    let retention = crossfade_kafka::Retention { time: hour, bytes: None };
    let log = KafkaLog::open(LogOptions { retention, ..options(kafka, &prefix, PARTITIONS) }).unwrap();
    assert_eq!(log.retention().time, hour.map(|hour| hour * 2));
    good(soon("the schema", log.append(seen())).await);
    // What the spec asks for later is held against the topic too.
    let change = AlterConfig::new(ResourceSpecifier::Topic(log.topic())).set("retention.ms", "1000");
    for result in admin(kafka).alter_configs([&change], &AdminOptions::new()).await.unwrap() {
        result.unwrap();
    }
    drop(log);
    let said = refusal(KafkaLog::open(LogOptions { retention, ..options(kafka, &prefix, PARTITIONS) }));
    assert!(said.contains("needs 3600000"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_else_wrote_is_refused() {
    let Some(kafka) = Kafka::shared() else { return };
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", kafka.brokers()).create().unwrap();
    let write = |topic: &str| {
        producer.send(BaseRecord::<str, str>::to(topic).partition(0).payload("{\"before\":null}")).unwrap();
        producer.flush(Duration::from_secs(30)).unwrap();
    };
    let prefix = kafka.prefix("foreign");
    make_topic(kafka, &format!("{prefix}.changes"), 4, &[("retention.ms", "-1")]).await;
    write(&format!("{prefix}.changes"));
    let said = refusal(KafkaLog::open(options(kafka, &prefix, PARTITIONS)));
    assert!(said.contains("that Crossfade did not write"), "{said}");
    // Into a log in use: the reader stops at it, and names it.
    let prefix = kafka.prefix("foreign");
    let log = open(kafka, &prefix, PARTITIONS);
    good(soon("the schema", log.append(seen())).await);
    write(log.topic());
    fill(&log, 2, 4).await;
    let mut reader = good(log.read(&log.start(), Lane::All));
    let error = loop {
        match crossfade_log::LogReader::try_next(&mut reader) {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the foreign record was passed over"),
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("partition 0, offset"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_broker_dropped_before_its_time_is_lost_and_the_rest_begins_whole() {
    let Some(kafka) = Kafka::shared() else { return };
    let prefix = kafka.prefix("expired");
    let log = open(kafka, &prefix, PARTITIONS);
    good(soon("the schema", log.append(seen())).await);
    fill(&log, 2, 10).await;
    let held = log.tail().cut;
    good(log.hold("deliver", &held));
    for n in 10..40 {
        fill(&log, n, n + 1).await;
    }
    let all = read_all(&log, &log.start(), Lane::All);
    // As retention does it: one partition loses more than the others, and nobody is asked.
    let place = |n: usize, partition: u32| {
        let of = all.iter().filter(|entry| entry.partition == Partition(partition));
        of.map(|entry| entry.offset).nth(n).unwrap_or(Offset(0)).0 as i64
    };
    let mut below = TopicPartitionList::new();
    for (partition, n) in [(1, 150), (2, 90)] {
        let at = rdkafka::Offset::Offset(place(n, partition as u32));
        below.add_partition_offset(log.topic(), partition, at).unwrap();
    }
    admin(kafka).delete_records(&below, &AdminOptions::new()).await.unwrap();
    let mut reader = good(log.read(&held, Lane::All));
    let what = loss(loop {
        match crossfade_log::LogReader::try_next(&mut reader) {
            Ok(Some(_)) => {}
            Ok(None) => panic!("what was dropped was passed over"),
            Err(error) => break Err::<(), _>(error),
        }
    });
    assert!(what.contains("`deliver` still needs"), "{what}");
    let what = loss(log.hold("deliver", &held));
    assert!(what.contains("has dropped entries"), "{what}");
    drop(log);
    let log = open(kafka, &prefix, PARTITIONS);
    let rest = read_all(&log, &log.start(), Lane::All);
    assert!(!rest.is_empty() && all.ends_with(&rest), "what is left is the end of what there was");
    assert!(matches!(rest[0].event, Event::Began(_)), "and begins with a whole transaction: {:?}", rest[0].event);
    assert!(matches!(log.read(&Cut::start(PARTITIONS), Lane::All), Err(LogError::Trimmed { .. })));
    fill(&log, 40, 50).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_no_record_can_hold_is_refused_with_its_size() {
    let Some(kafka) = Kafka::shared() else { return };
    let prefix = kafka.prefix("wide");
    make_topic(kafka, &format!("{prefix}.changes"), 4, &[("retention.ms", "-1"), ("max.message.bytes", "200000")])
        .await;
    let log = open(kafka, &prefix, PARTITIONS);
    good(soon("the schema", log.append(seen())).await);
    good(soon("what fits", log.append(transaction(2, vec![insert("k", &"x".repeat(150_000))]))).await);
    let noise: String =
        (0..400_000u64).map(|n| char::from(33 + (n.wrapping_mul(2_654_435_761) >> 13) as u8 % 90)).collect();
    let error = soon("what does not", log.append(transaction(3, vec![insert("k", &noise)]))).await.unwrap_err();
    assert!(matches!(error, LogError::Refused { .. }), "{error:?}");
    assert!(error.to_string().contains("max.message.bytes"), "{error}");
    assert_eq!(log.tail().position, Some(at(2, u32::MAX)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_lie_where_the_java_client_puts_them() {
    let Some(kafka) = Kafka::shared() else { return };
    let topic = kafka.prefix("java");
    make_topic(kafka, &topic, 8, &[]).await;
    let keys: Vec<String> = (0..60).map(|n| format!("key-{n}-{}", "x".repeat(n % 7))).collect();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lines");
    std::fs::write(&file, keys.iter().map(|key| format!("{key}\tvalue\n")).collect::<String>()).unwrap();
    let out = kafka.tool_with_input(
        "org.apache.kafka.tools.ConsoleProducer",
        &["--bootstrap-server", &kafka.brokers(), "--topic", &topic, "--reader-property", "parse.key=true"],
        &file,
    );
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let consumer: rdkafka::consumer::BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", kafka.brokers()).set("group.id", &topic).create().unwrap();
    let mut all = TopicPartitionList::new();
    (0..8).for_each(|partition| all.add_partition_offset(&topic, partition, rdkafka::Offset::Beginning).unwrap());
    rdkafka::consumer::Consumer::assign(&consumer, &all).unwrap();
    let mut seen = 0;
    while seen < keys.len() {
        use rdkafka::Message;
        let message = consumer.poll(Duration::from_secs(30)).expect("a record of the Java client").unwrap();
        let key = message.key().unwrap();
        let expected = crossfade_kafka::codec::partition_of(key, 8);
        assert_eq!(message.partition() as u32, expected.0, "{}", String::from_utf8_lossy(key));
        seen += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_of_somebody_else_that_nobody_ends_is_refused_with_the_command_that_ends_it() {
    let Some(kafka) = Kafka::shared() else { return };
    let prefix = kafka.prefix("hanging");
    let log = open(kafka, &prefix, PARTITIONS);
    good(soon("the schema", log.append(seen())).await);
    fill(&log, 2, 10).await;
    let (all, topic) = (read_all(&log, &log.start(), Lane::All), log.topic().to_owned());
    drop(log);
    let theirs: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", kafka.brokers())
        .set("transactional.id", "somebody-else")
        .create()
        .unwrap();
    theirs.init_transactions(Duration::from_secs(30)).unwrap();
    theirs.begin_transaction().unwrap();
    theirs
        .send(BaseRecord::<[u8], [u8]>::to(&topic).partition(1).payload(b"theirs"))
        .map_err(|(error, _)| error)
        .unwrap();
    theirs.flush(Duration::from_secs(30)).unwrap();
    let said = refusal(KafkaLog::open(options(kafka, &prefix, PARTITIONS)));
    assert!(said.contains("kafka-transactions") && said.contains("--partition 1"), "{said}");
    theirs.abort_transaction(Duration::from_secs(30)).unwrap();
    let log = open(kafka, &prefix, PARTITIONS);
    assert_eq!(read_all(&log, &log.start(), Lane::All), all);
    fill(&log, 10, 12).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_not_noted_beside_the_migration_is_somebody_elses_and_can_be_deleted_only_by_its_own() {
    use crossfade_kafka::log::{delete, examine};
    let Some(kafka) = Kafka::shared() else { return };
    let (prefix, folder) = (kafka.prefix("owned"), tempfile::tempdir().unwrap());
    let of = |name: &str| LogOptions { pin: Some(folder.path().join(name)), ..options(kafka, &prefix, PARTITIONS) };
    assert!(!examine(&of("ours")).unwrap().there);
    let log = KafkaLog::open(of("ours")).unwrap();
    good(soon("the schema", log.append(seen())).await);
    assert!(examine(&of("ours")).unwrap().there);
    let said = refusal(KafkaLog::open(of("theirs")));
    assert!(said.contains("hold the log of another migration"), "{said}");
    assert!(matches!(examine(&of("theirs")), Err(LogError::Refused { .. })));
    assert_eq!(delete(&of("theirs")).unwrap(), Vec::<String>::new());
    // Whoever only looks sees what comes, when asked to look again.
    let looked = KafkaLog::open_read_only(of("ours")).unwrap();
    assert!(!good(looked.look_again()));
    fill(&log, 2, 10).await;
    assert!(good(looked.look_again()));
    assert_eq!((looked.tail(), looked.latest_schemas()), (log.tail(), log.latest_schemas()));
    assert_eq!(read_all(&looked, &looked.start(), Lane::All), read_all(&log, &log.start(), Lane::All));
    // One that ended right after it had noted its topics goes on under the same number.
    let id = log.id();
    drop((log, looked));
    assert_eq!(KafkaLog::open(of("ours")).unwrap().id(), id);
    let deleted = delete(&of("ours")).unwrap();
    assert_eq!(deleted, [format!("{prefix}.changes"), format!("{prefix}.meta")]);
    assert!(!examine(&of("theirs")).unwrap().there, "and anybody may begin anew");
    assert_eq!(delete(&of("ours")).unwrap(), Vec::<String>::new());
    assert_ne!(KafkaLog::open(of("theirs")).unwrap().id(), id);
}
