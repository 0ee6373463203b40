//! Rows in both key versions (`write = "dual-records"`), in two topics and in one record: read by the library that consumers
//! use and held against the database, whatever is killed meanwhile. Built with the feature `kafka` (`make test-kafka`).

use crate::{
    desk::{Desk, SPEC, Writer, postgres, two_databases},
    shop::{SHOP, work},
};
use crossfade_kafka::dual::{self, DualRecord, Operation, Rows};
use crossfade_testkit::{kafka::Kafka, postgres::Database, seeded};
use rand::Rng;
use serde_json::{Map, Value};
use std::{collections::BTreeMap, time::Duration};

const NAMESPACE: &str = "6f1c1f0e-6f2b-4b57-9a34-0d5be4c7a001";

/// Every integer key becomes a UUID, and so does every reference to one.
const KEYS: &str = "
[keys.default]
make = \"uuid-v5\"
namespace = \"6f1c1f0e-6f2b-4b57-9a34-0d5be4c7a001\"
[rekey]
tables = [\"public.people\", \"public.orders\", \"public.ledger\", \"public.passing\", \"public.papers\"]
";

const LAYOUTS: [&str; 2] = ["two-topics", "one-record"];

fn sink(kafka: &Kafka, prefix: &str, layout: &str) -> String {
    format!(
        "kind = \"kafka\"\nbrokers = \"{}\"\ntopic_prefix = \"{prefix}\"\nwrite = \"dual-records\"\nlayout = \"{layout}\"\ndecimal = \"string\"\npartitions = 3\ntransactions = true",
        kafka.brokers()
    )
}

fn from(database: &Database) -> String {
    format!("{}\ntables = [\"public.*\"]", postgres(database))
}

/// A table's topics.
fn topics(prefix: &str, table: &str, layout: &str) -> Vec<String> {
    match layout {
        "one-record" => vec![format!("{prefix}.public.{table}")],
        _ => ["v1", "v2"].map(|version| format!("{prefix}.public.{table}.{version}")).to_vec(),
    }
}

/// A topic's committed records with their headers, by Kafka's own consumer, as the library reads them.
fn records(kafka: &Kafka, topic: &str) -> Vec<DualRecord> {
    const BETWEEN: &str = "@header@";
    let between = format!("headers.separator={BETWEEN}");
    let text = kafka.read_topic(topic, &["print.key=true", "print.headers=true", &between]);
    let parsed = text.lines().map(|line| {
        let parts: Vec<&str> = line.split('\t').collect();
        let [headers, key, value] = parts.as_slice() else { panic!("no headers, key and value in {line}") };
        let headers = headers.split(BETWEEN).map(|header| {
            let (name, value) = header.split_once(':').unwrap_or_else(|| panic!("no header in {header}"));
            (name, Some(value.as_bytes()))
        });
        let value = (*value != "null").then_some(value.as_bytes());
        dual::read(Some(key.as_bytes()), value, headers).unwrap_or_else(|error| panic!("{error}: {line}"))
    });
    parsed.collect()
}

/// What a table's topics amount to, and how many records each of its keys has had, by operation.
fn read(kafka: &Kafka, prefix: &str, table: &str, layout: &str) -> (Rows, BTreeMap<String, Vec<Operation>>) {
    let (mut rows, mut told) = (Rows::default(), BTreeMap::<String, Vec<Operation>>::new());
    for record in topics(prefix, table, layout).iter().flat_map(|topic| records(kafka, topic)) {
        for key in [&record.v1, &record.v2].into_iter().flatten().map(|told| &told.key) {
            if !record.is_tombstone {
                told.entry(Value::Object(key.clone()).to_string()).or_default().push(record.op);
            }
        }
        rows.take(record);
    }
    (rows, told)
}

/// The new key of a row, as PostgreSQL makes it.
fn new_key(table: &str, key: &str) -> String {
    let name = format!("public.{table}");
    format!(
        "uuid_generate_v5('{NAMESPACE}', 'key:v1;n{}:{name},i' || length({key}::text) || ':' || {key} || ',')",
        name.len()
    )
}

/// The source's rows, by the key in both versions as JSON: columns as texts.
async fn wanted(source: &Database, table: &str, columns: &[&str]) -> Rows {
    let of = async |is_new: bool| {
        let column = |column: &&str| match (is_new, *column) {
            (true, "id") => format!("{}::text AS id", new_key(table, "id")),
            (true, "person") => format!("{}::text AS person", new_key("people", "person")),
            (_, column) => format!("{column}::text"),
        };
        let list: Vec<String> = columns.iter().map(column).collect();
        let rows =
            source.connect().await.query(&format!("SELECT {} FROM {table}", list.join(", ")), &[]).await.unwrap();
        let row = |row: &tokio_postgres::Row| {
            let cell = |index: usize| row.get::<_, Option<String>>(index).map_or(Value::Null, Value::String);
            let cells: Map<String, Value> =
                columns.iter().enumerate().map(|(index, name)| ((*name).to_owned(), cell(index))).collect();
            let id = cells["id"].as_str().unwrap();
            let key = if is_new { format!("{{\"id\":\"{id}\"}}") } else { format!("{{\"id\":{id}}}") };
            (key, cells)
        };
        rows.iter().map(row).collect::<BTreeMap<_, _>>()
    };
    Rows { v1: of(false).await, v2: of(true).await }
}

/// Which keys of which version differ. A column that came after a row was told reads as NULL in it.
fn differing(wanted: &Rows, found: &Rows) -> Vec<String> {
    let mut out = Vec::new();
    for (version, wanted, found) in [("v1", &wanted.v1, &found.v1), ("v2", &wanted.v2, &found.v2)] {
        let same = |want: &Map<String, Value>, have: &Map<String, Value>| {
            let text = |value: Option<&Value>| match value {
                None | Some(Value::Null) => None,
                Some(Value::String(text)) => Some(text.clone()),
                Some(other) => Some(other.to_string()),
            };
            want.keys().chain(have.keys()).all(|name| text(want.get(name)) == text(have.get(name)))
        };
        for key in wanted.keys().filter(|key| !found.contains_key(*key)) {
            out.push(format!("{version} lacks {key}"));
        }
        for (key, have) in found {
            match wanted.get(key) {
                None => out.push(format!("{version} has {key}, which the source has not")),
                Some(want) if !same(want, have) => out.push(format!("{version} differs in {key}: {want:?}, {have:?}")),
                Some(_) => {}
            }
        }
    }
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn both_key_versions_have_exactly_the_rows_of_the_source_whatever_is_killed() {
    let Some(kafka) = Kafka::shared() else { return };
    let seed = seeded::seed("kills of a sink in two key versions");
    for (number, layout) in LAYOUTS.into_iter().enumerate() {
        let prefix = format!("dual{number}");
        let Some((source, _)) = two_databases().await else { return };
        source.execute("CREATE EXTENSION \"uuid-ossp\"").await;
        source.execute(SHOP).await;
        source
            .execute(
                "CREATE TABLE ledger (id int PRIMARY KEY, v text); INSERT INTO ledger SELECT n, 'x' FROM generate_series(1, 3000) n;
                 CREATE TABLE passing (id int PRIMARY KEY, v text); INSERT INTO passing SELECT n, 'x' FROM generate_series(1, 300) n;
                 CREATE TABLE papers (id int PRIMARY KEY, n int NOT NULL, big text); ALTER TABLE papers ALTER COLUMN big SET STORAGE EXTERNAL;
                 INSERT INTO papers SELECT n, 0, repeat(md5(n::text), 200) FROM generate_series(1, 50) n",
            )
            .await;
        let writer = Writer::start(&source, |number| {
            let first = 10_000 + number * 3;
            format!(
                "{}; INSERT INTO ledger SELECT n, 'y' FROM generate_series({first}, {first} + 2) n; UPDATE papers SET n = n + 1 WHERE id = {}",
                work(number),
                1 + number % 50
            )
        });
        let desk = Desk::new();
        desk.write_spec(&from(&source), &sink(kafka, &prefix, layout), KEYS);
        let said = desk.expect(0, &["plan"], &[]);
        for topic in topics(&prefix, "people", layout) {
            assert!(said.stdout.contains(&format!("topic {topic} ")), "{topic}\n{said}");
        }
        let mut run = desk.start();
        let mut random = seeded::worker(seed, number);
        for round in 0..8 {
            tokio::time::sleep(Duration::from_millis(random.random_range(0..1_200))).await;
            run.kill();
            run = desk.start();
            if round == 4 {
                source.execute("ALTER TABLE people ADD COLUMN extra text").await;
            }
        }
        source.execute("BEGIN; INSERT INTO passing VALUES (1000, 'goes too'); TRUNCATE passing; INSERT INTO passing VALUES (7, 'stays'); COMMIT").await;
        source.execute("UPDATE people SET extra = 'more' WHERE id % 3 = 0").await;
        writer.wait_for_more(50);
        writer.stop();
        desk.wait(&mut run);
        desk.verify();
        for (table, columns) in [
            ("people", vec!["id", "name", "note", "extra"]),
            ("orders", vec!["id", "person", "total", "note"]),
            ("ledger", vec!["id", "v"]),
            ("passing", vec!["id", "v"]),
            ("papers", vec!["id", "n", "big"]),
        ] {
            let (found, told) = read(kafka, &prefix, table, layout);
            let wanted = wanted(&source, table, &columns).await;
            let differences = differing(&wanted, &found);
            assert!(differences.is_empty() && !wanted.v1.is_empty(), "{layout} {table}: {differences:#?}");
            if table == "ledger" {
                // Each row is written once and never again.
                use Operation::{Copied, Created};
                let once = |ops: &[Operation]| matches!(ops, [Copied] | [Created] | [Copied, Created]);
                let twice: Vec<_> = told.iter().filter(|(_, ops)| !once(ops)).collect();
                assert!(twice.is_empty(), "{layout}: {twice:?}");
            }
            // The comparer finds what is missing, what is too much and what differs, in either version.
            let (key, row) = found.v2.first_key_value().map(|(key, row)| (key.clone(), row.clone())).unwrap();
            let mut broken = found.clone();
            broken.v2.remove(&key);
            broken.v2.insert("{\"id\":\"nobody\"}".to_owned(), row);
            let first = broken.v1.values_mut().next().unwrap();
            first.insert(columns[1].to_owned(), Value::String("altered".to_owned()));
            assert_eq!(differing(&wanted, &broken).len(), 3, "{layout} {table}");
        }
        desk.stop(run);
        desk.expect(0, &["rollback"], &["--wipe", "--yes"]);
        let out =
            kafka.tool("org.apache.kafka.tools.TopicCommand", &["--bootstrap-server", &kafka.brokers(), "--list"]);
        let left = String::from_utf8(out.stdout).unwrap();
        assert!(!left.lines().any(|topic| topic.starts_with(&format!("{prefix}."))), "{left}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_says_where_it_stands_and_a_moved_row_leaves_a_tombstone_in_both_versions() {
    let Some(kafka) = Kafka::shared() else { return };
    for (number, layout) in LAYOUTS.into_iter().enumerate() {
        let prefix = format!("dualsays{number}");
        let Some((source, _)) = two_databases().await else { return };
        source.execute("CREATE EXTENSION \"uuid-ossp\"; CREATE TABLE people (id int PRIMARY KEY, d date); INSERT INTO people VALUES (1, NULL), (2, 'infinity')").await;
        let desk = Desk::new();
        let rest = format!(
            "{}[gates]\nerror_rate = {{ max = \"100%\", then = \"warn\" }}\n",
            KEYS.replace(", \"public.orders\", \"public.ledger\", \"public.passing\", \"public.papers\"", "")
        );
        desk.write_spec(&from(&source), &sink(kafka, &prefix, layout), &rest);
        let mut run = desk.start();
        desk.wait(&mut run);
        source.execute("UPDATE people SET id = 10 WHERE id = 1").await;
        desk.wait(&mut run);
        let all: Vec<DualRecord> =
            topics(&prefix, "people", layout).iter().flat_map(|topic| records(kafka, topic)).collect();
        let versions = all.iter().flat_map(|record| [("v1", &record.v1, record), ("v2", &record.v2, record)]);
        let mut told: BTreeMap<(&str, String), Vec<(Operation, bool)>> = BTreeMap::new();
        for (version, one, record) in versions {
            let Some(one) = one else { continue };
            assert_eq!(record.place.commit.is_none(), record.op == Operation::Copied, "{record:?}");
            assert_eq!(record.other_key.is_some(), layout == "two-topics", "{record:?}");
            told.entry((version, one.key["id"].to_string())).or_default().push((record.op, record.is_tombstone));
        }
        let key =
            async |id: i32| source.value(&format!("SELECT {}", new_key("people", &id.to_string()))).await.unwrap();
        let gone = vec![(Operation::Copied, false), (Operation::Deleted, false), (Operation::Deleted, true)];
        let come = vec![(Operation::Created, false)];
        // The row whose value has no form waits in quarantine, and neither version has it.
        let expected = BTreeMap::from([
            (("v1", "1".to_owned()), gone.clone()),
            (("v1", "10".to_owned()), come.clone()),
            (("v2", format!("\"{}\"", key(1).await)), gone),
            (("v2", format!("\"{}\"", key(10).await)), come),
        ]);
        assert_eq!(told, expected, "{layout}");
        let held = desk.crossfade.json(&["quarantine", "ls", SPEC]);
        assert_eq!(held.as_array().unwrap().len(), 1, "{held}");
        // Discarded, its key is free again, in both versions.
        desk.expect(0, &["quarantine", "discard"], &["--all"]);
        source.execute("UPDATE people SET d = '2026-01-01'").await;
        desk.wait(&mut run);
        desk.verify();
        let (found, _) = read(kafka, &prefix, "people", layout);
        assert_eq!((found.v1.len(), found.v2.len()), (2, 2), "{layout}");
        desk.stop(run);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_without_a_key_and_sinks_without_records_are_refused_by_name() {
    let Some(kafka) = Kafka::shared() else { return };
    let Some((source, target)) = two_databases().await else { return };
    source.execute("CREATE TABLE noted (a int); CREATE TABLE people (id int PRIMARY KEY)").await;
    let desk = Desk::new();
    desk.write_spec(&from(&source), &sink(kafka, "dualnone", "two-topics"), "");
    let said = desk.command(&["plan"], &[]);
    assert!(said.code != Some(0) && said.stderr.contains("public.noted") && said.stderr.contains("no key"), "{said}");
    // It may be written as ever, beside the others.
    desk.write_spec(
        &from(&source),
        &sink(kafka, "dualnone", "two-topics"),
        "[[table]]\nfrom = \"public.noted\"\nwrite = \"shadow-tables\"\n",
    );
    let said = desk.expect(0, &["plan"], &[]);
    for topic in ["dualnone.public.noted ", "dualnone.public.people.v1 ", "dualnone.public.people.v2 "] {
        assert!(said.stdout.contains(topic), "{said}");
    }
    desk.write_spec(
        &from(&source),
        &postgres(&target),
        "[[table]]\nfrom = \"public.people\"\nwrite = \"dual-records\"\n",
    );
    let said = desk.command(&["plan"], &[]);
    assert!(
        said.code != Some(0) && said.stderr.contains("dual-records") && said.stderr.contains("not built"),
        "{said}"
    );
}
