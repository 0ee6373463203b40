//! Whoever has lost a partition commits nothing in it any more. Against a real broker: the mock knows no fences.

use super::{hand::STEP, *};
use crate::{
    Connection, LogOptions, Workers,
    client::{assignment, flush, scan},
};
use crossfade_event::Offset;
use crossfade_log::EventLog;
use crossfade_testkit::{kafka::Kafka, wait::GENEROUS};
use rdkafka::producer::Producer;

fn log(kafka: &Kafka, hint: &str, partitions: u32) -> KafkaLog {
    let workers = Some(Workers { silent: Duration::from_secs(6) });
    let options = LogOptions {
        partitions: Some(partitions),
        workers,
        ..LogOptions::new(Connection::plain(kafka.brokers()), kafka.prefix(hint))
    };
    KafkaLog::open(options).unwrap()
}

fn member(log: &KafkaLog) -> BaseConsumer<Member> {
    let shared = &log.0.shared;
    let member = shared.clients.member(&shared.names.workers, Duration::from_secs(6), Member::default()).unwrap();
    member.subscribe(&[&shared.names.changes]).unwrap();
    member
}

/// Until each has as many partitions as this.
fn share_out(members: &[&BaseConsumer<Member>], each: usize) {
    let began = Instant::now();
    while members.iter().any(|member| member.assignment().unwrap().count() != each) {
        assert!(began.elapsed() < GENEROUS, "the group does not share out");
        members.iter().for_each(|member| drop(member.poll(Duration::from_millis(20))));
    }
}

fn note(log: &KafkaLog, round: u64) -> Note {
    Note {
        log: log.0.shared.id,
        round,
        at_ms: round as i64,
        own: Offset(round),
        first: Offset(round),
        followed: vec![(TableId(1), SchemaVersion(1))],
    }
}

fn batch(log: &KafkaLog, round: u64) -> Batch {
    let position = crossfade_event::Position::origin(crossfade_event::SourceId(1));
    let kind = crossfade_log::record::Kind::Changed;
    let what = What::Event { kind, bits: 0, table: TableId(1), schema: SchemaVersion(1), position };
    let value = made::value(&Head { round, place: 0, what }, log.0.shared.id, b"made");
    Batch { bytes: value.len(), records: vec![(value, round as i64)], moved: true }
}

/// The rounds of which something was made, as whoever delivers sees it.
fn rounds(log: &KafkaLog) -> Vec<u64> {
    let shared = &log.0.shared;
    let consumer = shared.clients.asking("tests").unwrap();
    let (low, end) = crate::client::bounds(&consumer, &shared.names.transformed, 0).unwrap();
    let mut rounds = Vec::new();
    scan(&consumer, &shared.names.transformed, &[(0, low..end)], |message| {
        if rdkafka::Message::key(message).is_none() {
            rounds.push(Head::parse(rdkafka::Message::payload(message).unwrap()).unwrap().round);
        }
        Ok(false)
    })
    .unwrap();
    rounds
}

fn written(hand: &Hand<'_>, log: &KafkaLog, round: u64, member: &BaseConsumer<Member>) -> Result<(), Broken> {
    hand.write(&batch(log, round), &note(log, round), &member.group_metadata().unwrap())
}

#[test]
fn a_worker_whose_partition_was_taken_commits_nothing_and_what_it_had_begun_is_aborted() {
    let Some(kafka) = Kafka::shared() else { return };
    let log = log(kafka, "taken", 2);
    let member = member(&log);
    share_out(&[&member], 2);
    let first = Hand::take(&log.0.shared, Partition(0)).unwrap();
    assert_eq!(first.note().unwrap(), None);
    assert!(written(&first, &log, 1, &member).is_ok());
    // In the middle of a batch.
    first.producer.begin_transaction().unwrap();
    for (value, at_ms) in &batch(&log, 2).records {
        first.send(None, value, *at_ms).unwrap();
    }
    flush(&first.producer, STEP).unwrap();
    let second = Hand::take(&log.0.shared, Partition(0)).unwrap();
    assert_eq!(second.note().unwrap(), Some(note(&log, 1)), "what was begun does not count");
    let place = assignment(&log.0.shared.names.changes, [(0, 2)]).unwrap();
    let group = member.group_metadata().unwrap();
    let committed = first
        .producer
        .send_offsets_to_transaction(&place, &group, STEP)
        .and_then(|()| first.producer.commit_transaction(STEP))
        .map_err(|error| Broken::of(&[], String::new(), error));
    assert!(matches!(committed, Err(Broken::Fenced(_))), "the one shut out commits");
    assert!(written(&second, &log, 3, &member).is_ok());
    assert_eq!(rounds(&log), [1, 3]);
    assert_eq!(second.note().unwrap(), Some(note(&log, 3)));
    // Another partition is nobody's business.
    assert!(written(&Hand::take(&log.0.shared, Partition(1)).unwrap(), &log, 4, &member).is_ok());
}

#[test]
fn a_worker_of_an_older_generation_commits_nothing() {
    let Some(kafka) = Kafka::shared() else { return };
    let log = log(kafka, "generation", 2);
    let member_before = member(&log);
    share_out(&[&member_before], 2);
    let before = member_before.group_metadata().unwrap();
    let hand = Hand::take(&log.0.shared, Partition(0)).unwrap();
    assert!(hand.write(&batch(&log, 1), &note(&log, 1), &before).is_ok());
    let another = member(&log);
    share_out(&[&member_before, &another], 1);
    let refused = hand.write(&batch(&log, 2), &note(&log, 2), &before);
    assert!(matches!(refused, Err(Broken::Fenced(_))), "of an older generation");
    let hand = Hand::take(&log.0.shared, Partition(0)).unwrap();
    assert!(written(&hand, &log, 3, &member_before).is_ok(), "of the one that counts");
    assert_eq!(rounds(&log), [1, 3]);
    assert_eq!(log.partitions(), 2);
}

#[test]
fn what_was_made_of_another_log_is_refused() {
    let Some(kafka) = Kafka::shared() else { return };
    let log = log(kafka, "another", 1);
    let member = member(&log);
    share_out(&[&member], 1);
    let hand = Hand::take(&log.0.shared, Partition(0)).unwrap();
    let of_another = Note { log: log.0.shared.id ^ 1, ..note(&log, 1) };
    assert!(hand.write(&Batch::default(), &of_another, &member.group_metadata().unwrap()).is_ok());
    let refused = hand.note().unwrap_err();
    assert!(refused.to_string().contains("made of another log"), "{refused}");
}
