//! What is read.

use super::stand::{Record, Stand};
use crossfade_connector::{Inspect, Source};
use crossfade_event::{Event, TableName};
use crossfade_kafka::{DebeziumInspect, DebeziumSource, UNAVAILABLE};

/// A snapshot's rows, then transactions over two tables.
fn history(stand: &Stand) {
    stand.write("t", (1..=3).map(|id| Record::of("r", id, "a")));
    stand.write("loose", [Record::loose("r", None, Some("x")), Record::loose("r", None, Some("x"))]);
    stand.write("t", [Record::of("u", 1, "b").at(10, 200, 1), Record::of("c", 4, "a").at(10, 201, 3)]);
    stand.write("loose", [Record::loose("u", Some("x"), Some("y")).at(10, 202, 2)]);
    stand.end(10, 210, &[("t", 2), ("loose", 1)]);
    stand.write("t", [Record::of("d", 2, "").at(11, 220, 1)]);
    stand.end(11, 230, &[("t", 1), ("elsewhere", 7)]);
    stand.end(12, 240, &[]);
}

const WORDS: [&str; 9] = ["+1=x", "+1=x", "+1=a", "+2=a", "+3=a", "1=b", "1=x>1=y", "+4=a", "-2=?"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_come_whole_and_in_their_order_and_every_restart_goes_on() {
    let Some(stand) = Stand::new("whole", 1).await else { return };
    history(&stand);
    let mut reading = stand.reading(&["public.*"], true).await;
    assert_eq!(reading.words(), WORDS);
    // Five rows of the snapshot, each by itself, and two transactions that are not empty.
    assert_eq!(reading.transactions(), 5 + 2);
    assert!(matches!(&reading.events[..3], [Event::SchemaSeen(_), Event::SchemaSeen(_), Event::BackfillBegan(_)]));
    // Killed wherever a batch ended, and begun again with what the log had then.
    let places = vec![reading.resume.clone()];
    for (number, at) in places.into_iter().enumerate() {
        let xid = 20 + number as u64;
        stand.write("t", [Record::of("u", 3, "c").at(xid, 300 + xid, 1)]);
        stand.end(xid, 305 + xid, &[("t", 1)]);
        let before = reading.events.len();
        reading.source.open(at).await.unwrap();
        while reading.words().last().map(String::as_str) != Some("3=c") {
            reading.step().await.unwrap();
        }
        assert_eq!(reading.words()[WORDS.len()..], ["3=c"]);
        assert!(!reading.events[before..].iter().any(|event| matches!(event, Event::BackfillBegan(_))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_ends_within_the_beginning_is_gone_on_with() {
    let Some(stand) = Stand::new("begun", 1).await else { return };
    history(&stand);
    let config = stand.config(&["public.*"], true);
    let mut inspect = DebeziumInspect::new(config.clone(), None);
    let catalog = inspect.catalog(&config.tables).await.unwrap();
    let end = inspect.barrier().await.unwrap().unwrap();
    for kept in 1..=3 {
        let mut reading = stand.reading(&["public.*"], true).await;
        reading.events.clear();
        reading.resume = crossfade_connector::Resume::default();
        reading.schemas.clear();
        reading.source = DebeziumSource::new(config.clone(), Some(&catalog));
        reading.source.open(reading.resume.clone()).await.unwrap();
        for _ in 0..kept {
            reading.step().await.unwrap();
        }
        reading.source = DebeziumSource::new(config.clone(), Some(&catalog));
        reading.source.open(reading.resume.clone()).await.unwrap();
        reading.until(end).await;
        assert_eq!(reading.words(), WORDS, "after {kept} batches");
        let ended = reading.events.iter().filter(|event| matches!(event, Event::BackfillEnded { .. })).count();
        assert!(ended >= 1 && reading.resume.snapshot.ended);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_connector_sends_again_is_known_as_such() {
    let Some(stand) = Stand::new("again", 1).await else { return };
    history(&stand);
    let insert = || Record::loose("c", None, Some("z"));
    // Killed within transaction 13; then 10 to 13 come again.
    stand.write("loose", [insert().at(13, 250, 1), insert().at(13, 250, 2)]);
    stand.write("t", [Record::of("u", 1, "b").at(10, 200, 1), Record::of("c", 4, "a").at(10, 201, 3)]);
    stand.write("loose", [Record::loose("u", Some("x"), Some("y")).at(10, 202, 2)]);
    stand.end(10, 210, &[("t", 2), ("loose", 1)]);
    stand.write("t", [Record::of("d", 2, "").at(11, 220, 1)]);
    stand.end(11, 230, &[("t", 1)]);
    stand.write("loose", [insert().at(13, 250, 1), insert().at(13, 250, 2), insert().at(13, 250, 3)]);
    stand.end(13, 260, &[("loose", 3)]);
    let mut reading = stand.reading(&["public.*"], true).await;
    assert_eq!(reading.words()[..WORDS.len()], WORDS);
    assert_eq!(reading.words()[WORDS.len()..], ["+1=z", "+1=z", "+1=z"]);
    // Also after a restart, which knows the transactions from their topic alone.
    stand.write("loose", [insert().at(13, 250, 1), insert().at(13, 250, 2), insert().at(13, 250, 3)]);
    stand.end(13, 260, &[("loose", 3)]);
    stand.write("loose", [insert().at(14, 270, 1)]);
    stand.end(14, 280, &[("loose", 1)]);
    let at = reading.resume.clone();
    reading.source.open(at).await.unwrap();
    let mut inspect = DebeziumInspect::new(stand.config(&["public.*"], true), None);
    let end = inspect.barrier().await.unwrap().unwrap();
    reading.until(end).await;
    assert_eq!(reading.words().len(), WORDS.len() + 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_barrier_is_reached_while_others_write_and_after_they_have_stopped() {
    let Some(stand) = Stand::new("barrier", 2).await else { return };
    stand.write("t", [Record::of("r", 0, "a")]);
    let mut reading = stand.reading(&["public.*"], true).await;
    let mut inspect = DebeziumInspect::new(stand.config(&["public.*"], true), None);
    let write = |from: u64, to: u64| {
        for xid in from..to {
            // The changes of the next transaction are there before this one's end is.
            let of = |xid: u64| {
                (1..=3).map(move |order| Record::of("u", (xid * 3 + order) as i64, "b").at(xid, xid * 10, order))
            };
            if xid == from {
                stand.write("t", of(xid));
            }
            if xid + 1 < to {
                stand.write("t", of(xid + 1));
            }
            stand.end(xid, xid * 10 + 5, &[("t", 3)]);
        }
    };
    for round in 1..7 {
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| write(round * 100, round * 100 + 20));
            let deadline = std::time::Instant::now();
            tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(async {
                    let end = inspect.barrier().await.unwrap().unwrap();
                    reading.until(end).await;
                });
            });
            writer.join().unwrap();
            assert!(deadline.elapsed() < crossfade_testkit::wait::GENEROUS);
        });
        let end = inspect.barrier().await.unwrap().unwrap();
        reading.until(end).await;
        assert_eq!(reading.words().len() as u64, 1 + round * 60);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_moves_to_another_key_keeps_what_the_update_left_alone() {
    for (transactions, partitions) in [(true, 1), (true, 3), (false, 1)] {
        let Some(stand) = Stand::new("moves", partitions).await else { return };
        let order = |order| if transactions { order } else { 0 };
        stand.write("t", [Record::of("r", 1, "a"), Record::of("r", 2, "a")]);
        stand.write(
            "t",
            [
                Record::of("d", 1, "").at(10, 200, order(1)).with("__debezium.newkey"),
                Record::of("c", 5, UNAVAILABLE).at(10, 200, order(2)).with("__debezium.oldkey"),
                Record::of("u", 5, "b").at(10, 201, order(3)),
            ],
        );
        if transactions {
            stand.end(10, 210, &[("t", 3)]);
        }
        let reading = stand.reading(&["public.t"], transactions).await;
        let mut words = reading.words();
        words[..2].sort();
        assert_eq!(words, ["+1=a", "+2=a", "1=?>5=same", "5=b"], "{transactions} {partitions}");
    }
    // Over several partitions without an order among them nobody knows whose value it was.
    let Some(stand) = Stand::new("torn", 3).await else { return };
    stand.write(
        "t",
        [Record::of("d", 1, "").with("__debezium.newkey"), Record::of("c", 5, UNAVAILABLE).with("__debezium.oldkey")],
    );
    let config = stand.config(&["public.t"], false);
    let catalog = DebeziumInspect::new(config.clone(), None).catalog(&config.tables).await.unwrap();
    let mut source = DebeziumSource::new(config, Some(&catalog));
    source.open(crossfade_connector::Resume::default()).await.unwrap();
    let failure = loop {
        if let Err(failure) = source.next().await {
            break failure;
        }
    };
    assert!(failure.to_string().contains("left alone"), "{failure}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_transaction_comes_in_parts_and_is_whole_at_its_end() {
    let Some(stand) = Stand::new("large", 2).await else { return };
    stand.write("t", [Record::of("r", 0, "a")]);
    let text = "x".repeat(20_000);
    let rows = 1..=1_500u64;
    stand.write("t", rows.clone().map(|number| Record::of("c", number as i64, &text).at(10, 200, number)));
    stand.end(10, 210, &[("t", 1_500)]);
    stand.write("t", [Record::of("d", 7, "").at(11, 220, 1)]);
    stand.end(11, 230, &[("t", 1)]);
    let reading = stand.reading(&["public.t"], true).await;
    assert!(reading.parts > 10, "{} parts", reading.parts);
    let words = reading.words();
    let found: std::collections::BTreeSet<&String> = words.iter().collect();
    assert_eq!((words.len(), found.len()), (1_502, 1_502));
    assert_eq!((words[0].as_str(), words[1_501].as_str()), ("+0=a", "-7=?"));
    assert_eq!(reading.transactions(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_transactions_each_record_is_its_own_and_truncates_and_messages_are_read() {
    let Some(stand) = Stand::new("alone", 1).await else { return };
    stand.write(
        "t",
        [Record::of("r", 1, "a"), Record::of("c", 2, "b").at(10, 200, 1), Record::of("d", 1, "").at(10, 201, 2)],
    );
    let bare = |op| Record {
        key: None,
        before: serde_json::Value::Null,
        after: serde_json::Value::Null,
        ..Record::of(op, 0, "")
    };
    stand.write("t", [bare("m"), bare("t"), Record::of("c", 3, "c")]);
    let reading = stand.reading(&["public.t"], false).await;
    assert_eq!(reading.words(), ["+1=a", "+2=b", "-1=?", "+3=c"]);
    assert_eq!(reading.transactions(), 5);
    let truncated = reading.events.iter().position(|event| matches!(event, Event::Truncated(_))).unwrap();
    assert!(matches!(&reading.events[truncated + 3], Event::Changed(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rows_that_a_topic_amounts_to_can_be_asked_for() {
    let Some(stand) = Stand::new("rows", 3).await else { return };
    history(&stand);
    let mut inspect = DebeziumInspect::new(stand.config(&["public.*"], true), None);
    let catalog = inspect.catalog(&["public.*".to_owned()]).await.unwrap();
    assert_eq!(catalog.tables.len(), 2);
    assert_eq!(inspect.count(&TableName::new("public", "t")).await.unwrap(), 3);
    assert_eq!(inspect.count(&TableName::new("public", "loose")).await.unwrap(), 2);
    assert!(inspect.losses().is_empty());
    // A row that moved has what it had, in whatever order the partitions are read.
    let id = |id: i64| Record::of("d", id, "").with("__debezium.newkey");
    for (number, (from, to)) in [(1, 51), (51, 3_007), (4, 62), (62, 4)].into_iter().enumerate() {
        let place = (20 + number as u64, 400 + number as u64, 1);
        stand.write(
            "t",
            [
                id(from).at(place.0, place.1, 1),
                Record::of("c", to, UNAVAILABLE).at(place.0, place.1, 2).with("__debezium.oldkey"),
            ],
        );
    }
    let schema = stand.schema("t", &catalog);
    inspect.scan(&schema).await.unwrap();
    let rows = inspect.scan_next().await.unwrap();
    let mut words: Vec<String> = rows.iter().map(|row| super::stand::cells(row).join("=")).collect();
    words.sort();
    assert_eq!(words, ["3007=b", "3=a", "4=a"]);
}
