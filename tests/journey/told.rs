//! What a sink on Kafka meets in its life: a broker that dies, a topic that is compacted, a change that cannot be written
//! where nothing may wait, a table that is altered. Built with the feature `kafka` (`make test-kafka`).

use crate::{
    desk::{Desk, SPEC, Writer, postgres, two_databases},
    shop::{SHOP, TABLES, work},
    topics::{folded, payload, records, sink},
};
use crossfade_testkit::{kafka::Kafka, postgres::Database, seeded, wait::GENEROUS};
use rand::Rng;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

fn from(database: &Database) -> String {
    format!("{}\ntables = [\"public.*\"]", postgres(database))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_killed_under_the_sink_costs_no_record_and_doubles_none() {
    let Some(kafka) = Kafka::start(&[]) else { return };
    let Some((source, _)) = two_databases().await else { return };
    source.execute(SHOP).await;
    source.execute("CREATE TABLE ledger (id int PRIMARY KEY, v text)").await;
    let desk = Desk::new();
    desk.write_spec(&from(&source), &sink(&kafka, "dying", "transactions = true\npartitions = 3"), "");
    let mut run = desk.start();
    desk.wait(&mut run);
    let writer = Writer::start(&source, |number| {
        let first = 1 + number * 3;
        format!("{}; INSERT INTO ledger SELECT n, 'y' FROM generate_series({first}, {first} + 2) n", work(number))
    });
    let seed = seeded::seed("a broker that dies under the sink");
    let mut random = seeded::worker(seed, 1);
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(random.random_range(0..1_500))).await;
        kafka.kill();
        writer.wait_for_more(20);
        kafka.start_again();
        writer.wait_for_more(20);
        assert!(run.is_running(), "{}", run.stderr());
    }
    writer.stop();
    desk.wait(&mut run);
    desk.verify();
    let ledger = records(&kafka, "dying.public.ledger");
    let mut letters: BTreeMap<&String, Vec<&str>> = BTreeMap::new();
    for (key, value) in &ledger {
        letters.entry(key).or_default().push(payload(value.as_ref().unwrap())["op"].as_str().unwrap());
    }
    let wanted: usize = source.value("SELECT count(*) FROM ledger").await.unwrap().parse().unwrap();
    assert_eq!(letters.len(), wanted);
    assert!(letters.values().all(|ops| ops.as_slice() == ["c"]), "{letters:?}");
    for table in TABLES {
        let rows = folded(&records(&kafka, &format!("dying.public.{table}")));
        let wanted: usize = source.value(&format!("SELECT count(*) FROM {table}")).await.unwrap().parse().unwrap();
        assert_eq!(rows.len(), wanted, "{table}");
    }
    desk.stop(run);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_topic_keeps_each_row_and_forgets_those_that_have_gone() {
    // Compaction as soon as there is something to compact.
    let settings = [
        ("log.cleaner.backoff.ms", "200"),
        ("log.cleaner.min.cleanable.ratio", "0.01"),
        ("log.cleaner.delete.retention.ms", "100"),
        ("log.roll.ms", "500"),
    ];
    let Some(kafka) = Kafka::start(&settings) else { return };
    let Some((source, _)) = two_databases().await else { return };
    source.execute("CREATE TABLE people (id int PRIMARY KEY, name text); INSERT INTO people SELECT n, 'x' FROM generate_series(1, 50) n").await;
    let desk = Desk::new();
    let topic = "compacted.public.people";
    desk.write_spec(&from(&source), &sink(&kafka, "compacted", "cleanup = \"compact\"\npartitions = 1"), "");
    let mut run = desk.start();
    desk.wait(&mut run);
    let rounds = 10;
    for round in 0..rounds {
        source.execute(&format!("UPDATE people SET name = 'round {round}'; UPDATE people SET id = id + 1000 WHERE id = {}; DELETE FROM people WHERE id = {}", round + 1, round + 30)).await;
    }
    desk.wait(&mut run);
    // What is written closes segments, so that those before are compacted.
    let started = Instant::now();
    let mut number = 0;
    while records(&kafka, topic).len() >= 50 * rounds {
        assert!(started.elapsed() < GENEROUS, "nothing is compacted\n{}", kafka.log());
        number += 1;
        source.execute(&format!("UPDATE people SET name = 'later {number}' WHERE id = 20")).await;
        desk.wait(&mut run);
    }
    desk.verify();
    let wanted: usize = source.value("SELECT count(*) FROM people").await.unwrap().parse().unwrap();
    assert_eq!(folded(&records(&kafka, topic)).len(), wanted);
    // What is emptied is found by what the topic still has.
    run.kill();
    source.execute("TRUNCATE people; INSERT INTO people VALUES (7, 'stays')").await;
    let mut run = desk.start();
    desk.wait(&mut run);
    desk.verify();
    let left = folded(&records(&kafka, topic));
    assert_eq!(left.len(), 1, "{left:?}");
    desk.stop(run);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_stop_a_change_that_cannot_be_written_ends_the_run_and_nothing_of_its_batch_is_told() {
    let Some(kafka) = Kafka::shared() else { return };
    let Some((source, _)) = two_databases().await else { return };
    source.execute("CREATE TABLE sums (id int PRIMARY KEY, n numeric); INSERT INTO sums VALUES (1, 1), (2, 2)").await;
    let desk = Desk::new();
    desk.write_spec(&from(&source), &sink(kafka, "stops", "on_error = \"stop\""), "");
    let mut run = desk.start();
    desk.wait(&mut run);
    source.execute("BEGIN; INSERT INTO sums VALUES (3, 3); UPDATE sums SET n = 'NaN' WHERE id = 1; COMMIT").await;
    let ended = run.wait();
    assert!(ended.code != Some(0), "{ended}");
    for word in ["public.sums", "n: NaN", "on_error = \"quarantine\""] {
        assert!(ended.stderr.contains(word), "{word}\n{ended}");
    }
    let told = records(kafka, "stops.public.sums");
    assert_eq!(told.len(), 2, "{told:?}");
    // A person decides: it may wait in quarantine, and the rest goes on.
    let bad_ones_are_meant = "[gates]\nerror_rate = { max = \"100%\", then = \"warn\" }\n";
    desk.write_spec(&from(&source), &sink(kafka, "stops", ""), bad_ones_are_meant);
    desk.command(&["resume"], &[]);
    let mut run = desk.start();
    desk.wait(&mut run);
    assert_eq!(folded(&records(kafka, "stops.public.sums")).len(), 3);
    assert_eq!(desk.crossfade.json(&["quarantine", "ls", SPEC]).as_array().unwrap().len(), 1);
    desk.stop(run);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_altered_table_is_told_in_its_new_shape_from_there_on() {
    let Some(kafka) = Kafka::shared() else { return };
    let Some((source, _)) = two_databases().await else { return };
    source.execute("CREATE TABLE people (id int PRIMARY KEY, name text, old text); INSERT INTO people VALUES (1, 'one', 'x'), (2, 'two', 'x')").await;
    let desk = Desk::new();
    desk.write_spec(&from(&source), &sink(kafka, "altered", ""), "");
    let mut run = desk.start();
    desk.wait(&mut run);
    source.execute("ALTER TABLE people ADD COLUMN extra int").await;
    source.execute("UPDATE people SET extra = 7 WHERE id = 1").await;
    source.execute("ALTER TABLE people DROP COLUMN old").await;
    source.execute("ALTER TABLE people RENAME COLUMN name TO title").await;
    source.execute("INSERT INTO people (id, title) VALUES (3, 'three')").await;
    source.execute("ALTER TABLE people ALTER COLUMN extra TYPE bigint").await;
    source.execute("INSERT INTO people VALUES (4, 'four', 5000000000)").await;
    desk.wait(&mut run);
    // Killed and started again it knows the shape that it has come to.
    run.kill();
    let mut run = desk.start();
    source.execute("UPDATE people SET title = 'again'").await;
    desk.wait(&mut run);
    desk.verify();
    let told = records(kafka, "altered.public.people");
    let rows = folded(&told);
    assert_eq!(rows.len(), 4);
    for row in rows.values() {
        let mut names: Vec<&String> = row.as_object().unwrap().keys().collect();
        names.sort();
        assert_eq!(names, ["extra", "id", "title"]);
    }
    // Each record's own schema names the columns that it has.
    for value in told.iter().filter_map(|(_, value)| value.as_ref()) {
        let Some(after) = payload(value)["after"].as_object() else { continue };
        let schema = value["schema"]["fields"].as_array().unwrap();
        let image = schema.iter().find(|field| field["field"] == "after").unwrap();
        let fields: Vec<&str> =
            image["fields"].as_array().unwrap().iter().map(|field| field["field"].as_str().unwrap()).collect();
        assert_eq!(fields.len(), after.len());
        assert!(fields.iter().all(|field| after.contains_key(*field)), "{value}");
    }
    desk.stop(run);
}
