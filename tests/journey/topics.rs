//! Topics for others as the sink: what is written there is read by Kafka's own tools and by our own source for Debezium's
//! topics, and adds up to the source, whatever is killed meanwhile. Built with the feature `kafka` (`make test-kafka`).

use crate::{
    debezium::{TYPES, same, source as as_source},
    desk::{Desk, SPEC, Writer, postgres, rows, two_databases},
    rights::until_counted,
    shop::{SHOP, TABLES, work},
};
use crossfade_testkit::{debezium::Debezium, kafka::Kafka, postgres::Database, seeded};
use rand::Rng;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// How topics of this prefix stand in a spec as the sink.
pub(crate) fn sink(kafka: &Kafka, prefix: &str, more: &str) -> String {
    format!("kind = \"kafka\"\nbrokers = \"{}\"\ntopic_prefix = \"{prefix}\"\n{more}", kafka.brokers())
}

fn from(database: &Database) -> String {
    format!("{}\ntables = [\"public.*\"]", postgres(database))
}

/// The tables that are read back.
const PUBLIC: &str = "\"public.*\"";

/// A topic's committed records, by Kafka's own consumer: key and value, a tombstone as nothing.
pub(crate) fn records(kafka: &Kafka, topic: &str) -> Vec<(String, Option<Value>)> {
    let text = kafka.read_topic(topic, &["print.key=true"]);
    text.lines()
        .map(|line| {
            let (key, value) = line.split_once('\t').unwrap_or_else(|| panic!("no key in {line}"));
            (key.to_owned(), (value != "null").then(|| serde_json::from_str(value).unwrap()))
        })
        .collect()
}

/// What stands in a record, with or without a schema around it.
pub(crate) fn payload(value: &Value) -> &Value {
    value.get("payload").unwrap_or(value)
}

/// The last image of each key.
pub(crate) fn folded(records: &[(String, Option<Value>)]) -> BTreeMap<String, Value> {
    let mut rows = BTreeMap::new();
    for (key, value) in records {
        match value.as_ref().map(|value| payload(value)["after"].clone()) {
            Some(Value::Null) | None => rows.remove(key),
            Some(after) => rows.insert(key.clone(), after),
        };
    }
    rows
}

fn topics(kafka: &Kafka) -> BTreeSet<String> {
    let out = kafka.tool("org.apache.kafka.tools.TopicCommand", &["--bootstrap-server", &kafka.brokers(), "--list"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().lines().map(str::to_owned).collect()
}

const KINDS: &str = "
CREATE TABLE kinds (
 id int PRIMARY KEY, b bool, i2 smallint, i4 int, i8 bigint, r4 real, r8 double precision, n numeric, n102 numeric(10,2), t text, vc varchar(20), ch char(5),
 by bytea, d date, tm time, tm3 time(3), tmtz timetz, ts timestamp, ts3 timestamp(3), tstz timestamptz, iv interval, u uuid, j json, jb jsonb, x xml,
 bt bit(3), b1 bit(1), bl bit(12), vb bit varying(8),
 ip inet, cd cidr, mac macaddr, pt point, m mood, em email, ia int[], ta text[], ba bytea[], ua uuid[], da date[], fa float8[], i4r int4range, tstzr tstzrange,
 h hstore, mon money, tsv tsvector, o oid);
CREATE TABLE parts (org text, sku text, qty int NOT NULL DEFAULT 0, big text, raw bytea, PRIMARY KEY (org, sku));
ALTER TABLE parts ALTER COLUMN big SET STORAGE EXTERNAL, ALTER COLUMN raw SET STORAGE EXTERNAL;
CREATE TABLE noted (a int, b text); ALTER TABLE noted REPLICA IDENTITY FULL;
CREATE TABLE passing (id int PRIMARY KEY, v text);";

const ROWS: &str = "
INSERT INTO kinds VALUES (1,true,-32768,2147483647,-9223372036854775808,'1.5e10','NaN','-0.0001000',12345678.90,'snöw','vc','ab',
 '\\x00ff10','2026-02-28','23:59:59.999999','01:02:03.004','04:05:06.5-08','0044-03-15 12:00:00 BC','2026-01-02 03:04:05.678','infinity','1 year 2 mons 3 days 04:05:06.7',
 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11','{\"a\": 1,  \"a\": 2}','{\"b\":[1,null]}','<a/>',B'110',B'1',B'100000000110',B'1',
 '10.0.0.1/8','10.0.0.0/8','08:00:2b:01:02:03','(1,2.5)','happy','A@b.c','{1,2,NULL}','{\"a,b\",NULL,\"c\\\"d\",\"\",null}','{\"\\\\x01\",NULL}','{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}','{2026-01-01}','{1.5,NaN,NULL}','[1,5)','[2026-01-01,)',
 'a=>1,b=>NULL','$1,234.50','a fat cat', 4294967295);
INSERT INTO kinds (id) VALUES (2);
INSERT INTO kinds (id, d, ts, tstz, iv, r4, t) VALUES (4, '0044-03-15 BC', '0001-01-01', '0044-03-15 12:00 BC', '-3 days', '-Infinity', repeat('x', 100000));
INSERT INTO parts SELECT 'o1', 's' || n, n, repeat(md5(n::text), 200), decode(repeat(md5(n::text), 200), 'hex') FROM generate_series(1, 200) n;
INSERT INTO noted SELECT n % 7, 'x' FROM generate_series(1, 40) n;
INSERT INTO passing SELECT n, 'x' FROM generate_series(1, 100) n;";

/// Changes of every sort.
const CHANGES: &str = "
BEGIN; INSERT INTO kinds (id, t, n, tstz, vb) VALUES (3, 'new', '10', '-infinity', B'10000001'); UPDATE kinds SET m = 'sad' WHERE id = 1; COMMIT;
UPDATE kinds SET id = 20 WHERE id = 2;
UPDATE kinds SET id = 40 WHERE id = 4;
UPDATE kinds SET iv = '00:00:01.5' WHERE id = 20;
UPDATE parts SET qty = qty + 1;
UPDATE parts SET sku = 'm' || sku WHERE qty % 3 = 0;
UPDATE parts SET org = 'o2', sku = 's' || qty WHERE qty % 3 = 0 AND qty % 2 = 0;
DELETE FROM parts WHERE qty % 5 = 0;
UPDATE parts SET big = 'small' WHERE qty % 11 = 0;
UPDATE noted SET b = 'y' WHERE a = 1;
DELETE FROM noted WHERE a = 2;
INSERT INTO noted VALUES (1, NULL), (1, NULL), (1, NULL);
UPDATE noted SET a = a + 1 WHERE b IS NULL;
BEGIN; INSERT INTO passing VALUES (1000, 'goes too'); TRUNCATE passing; INSERT INTO passing VALUES (7, 'stays'); COMMIT";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_to_topics_is_read_by_our_own_source_and_is_what_the_database_has() {
    let Some(kafka) = Kafka::shared() else { return };
    for (prefix, schemas) in [("outschema", true), ("outplain", false)] {
        let Some((source, target)) = two_databases().await else { return };
        for database in [&source, &target] {
            database.execute(TYPES).await;
            database.execute(KINDS).await;
        }
        source.execute(ROWS).await;
        let desk = Desk::new();
        let more = format!("schemas = {schemas}\ntransactions = true\npartitions = 3");
        desk.write_spec(&from(&source), &sink(kafka, prefix, &more), "");
        let said = desk.expect(0, &["check"], &[]);
        assert!(said.stdout.contains("public.kinds column n") && said.stdout.contains("NaN"), "{said}");
        let said = desk.expect(0, &["plan"], &[]);
        for word in [
            &format!("topic {prefix}.public.parts"),
            &format!("topic {prefix}.crossfade"),
            "cannot hold every value",
            "public.kinds.ia",
        ] {
            assert!(said.stdout.contains(word), "{word}\n{said}");
        }
        let mut run = desk.start();
        desk.wait(&mut run);
        for statement in CHANGES.split(";\n") {
            source.execute(statement).await;
        }
        desk.wait(&mut run);
        desk.verify();

        // Whoever reads: Kafka's own consumer.
        let parts = records(kafka, &format!("{prefix}.public.parts"));
        let last = folded(&parts);
        let wanted: i64 = source.value("SELECT count(*) FROM parts").await.unwrap().parse().unwrap();
        assert_eq!(last.len() as i64, wanted);
        assert_eq!(payload(parts[0].1.as_ref().unwrap())["op"], "r");
        assert_eq!(parts[0].1.as_ref().unwrap().get("schema").is_some(), schemas);
        assert_eq!(folded(&records(kafka, &format!("{prefix}.public.passing"))).len(), 1);
        let marks = records(kafka, &format!("{prefix}.transaction"));
        let ends: Vec<&Value> = marks
            .iter()
            .map(|(_, mark)| payload(mark.as_ref().unwrap()))
            .filter(|mark| mark["status"] == "END")
            .collect();
        assert_eq!(marks.len(), 2 * ends.len(), "each has a begin and an end");
        let told: u64 = ends.iter().map(|end| end["event_count"].as_u64().unwrap()).sum();
        let in_blocks: usize = ["kinds", "parts", "noted", "passing"]
            .iter()
            .flat_map(|table| records(kafka, &format!("{prefix}.public.{table}")))
            .filter(|(_, value)| value.as_ref().is_some_and(|value| !payload(value)["transaction"].is_null()))
            .count();
        assert_eq!(told as usize, in_blocks);

        // Our own source, into another database.
        let second = Desk::new();
        let more = format!("transactions = \"{prefix}.transaction\"");
        second.write_spec(&as_source(kafka, prefix, PUBLIC, &more), &postgres(&target), "");
        let mut reading = second.start();
        for table in ["kinds", "parts", "noted", "passing"] {
            let query = format!("SELECT * FROM {table}");
            same(&source, &target, &query, &query, &mut reading, None).await;
        }
        until_counted(&second, "received", "source", 100.0).await;
        until_counted(&desk, "sent", "sink", 100.0).await;
        second.stop(reading);
        desk.stop(run);
        desk.expect(3, &["rollback"], &["--undo", "--yes"]);
        desk.expect(0, &["rollback"], &["--wipe", "--yes"]);
        assert!(!topics(kafka).iter().any(|topic| topic.starts_with(&format!("{prefix}."))));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_without_a_form_waits_in_quarantine_with_all_that_follows_it() {
    let Some(kafka) = Kafka::shared() else { return };
    let Some((source, _)) = two_databases().await else { return };
    source.execute("CREATE TABLE kinds (id int PRIMARY KEY, n numeric, d date); INSERT INTO kinds VALUES (1, 'NaN', NULL), (2, 1.50, '2026-01-01')").await;
    let desk = Desk::new();
    let bad_ones_are_meant = "[gates]\nerror_rate = { max = \"100%\", then = \"warn\" }\n";
    desk.write_spec(&from(&source), &sink(kafka, "without", ""), bad_ones_are_meant);
    let mut run = desk.start();
    desk.wait(&mut run);
    source.execute("UPDATE kinds SET d = '2026-02-02' WHERE id = 1; UPDATE kinds SET n = 2.50 WHERE id = 2; UPDATE kinds SET d = 'infinity' WHERE id = 2; UPDATE kinds SET d = NULL WHERE id = 2").await;
    desk.wait(&mut run);
    let kinds = |held: &Value| -> Vec<(String, String)> {
        let word = |one: &Value, name: &str| one[name].as_str().unwrap().to_owned();
        held.as_array().unwrap().iter().map(|one| (word(one, "kind"), word(one, "reason"))).collect()
    };
    let held = desk.crossfade.json(&["quarantine", "ls", SPEC]);
    let found = kinds(&held);
    let of_kind = |kind: &str| found.iter().filter(|(one, _)| one == kind).count();
    assert_eq!((of_kind("rejected"), of_kind("held"), found.len()), (2, 2, 4), "{held}");
    assert!(found[0].1.contains("n: NaN") && found.iter().any(|(_, reason)| reason.contains("d: infinity")), "{held}");
    // Killed and started again: the same are there, once.
    run.kill();
    let mut run = desk.start();
    desk.wait(&mut run);
    assert_eq!(kinds(&desk.crossfade.json(&["quarantine", "ls", SPEC])), found);
    // A retry writes what it can: nothing yet. Discarded, the keys are free again.
    desk.command(&["quarantine", "retry"], &["--all"]);
    assert_eq!(kinds(&desk.crossfade.json(&["quarantine", "ls", SPEC])).len(), 4);
    desk.expect(0, &["quarantine", "discard"], &["--all"]);
    source.execute("UPDATE kinds SET n = 3, d = '2026-03-03'").await;
    desk.wait(&mut run);
    desk.verify();
    assert_eq!(folded(&records(kafka, "without.public.kinds")).len(), 2);
    desk.stop(run);
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_under_live_writers_lose_nothing_and_double_nothing() {
    let Some(kafka) = Kafka::shared() else { return };
    let Some((source, target)) = two_databases().await else { return };
    source.execute(SHOP).await;
    // Each row is written once and never again: in the topic it must stand exactly once.
    source.execute("CREATE TABLE ledger (id int PRIMARY KEY, v text); INSERT INTO ledger SELECT n, 'x' FROM generate_series(1, 5000) n").await;
    let writer = Writer::start(&source, |number| {
        let first = 10_000 + number * 3;
        format!("{}; INSERT INTO ledger SELECT n, 'y' FROM generate_series({first}, {first} + 2) n", work(number))
    });
    let desk = Desk::new();
    desk.write_spec(&from(&source), &sink(kafka, "killed", "transactions = true\npartitions = 3"), "");
    let mut run = desk.start();
    let seed = seeded::seed("kills of a sink on Kafka");
    let mut random = seeded::worker(seed, 1);
    for _ in 0..12 {
        tokio::time::sleep(Duration::from_millis(random.random_range(0..1_200))).await;
        run.kill();
        run = desk.start();
    }
    writer.wait_for_more(50);
    writer.stop();
    desk.wait(&mut run);
    desk.verify();
    let ledger = records(kafka, "killed.public.ledger");
    let wanted: usize = source.value("SELECT count(*) FROM ledger").await.unwrap().parse().unwrap();
    let mut letters: BTreeMap<&String, Vec<&str>> = BTreeMap::new();
    for (key, value) in &ledger {
        let op = payload(value.as_ref().unwrap())["op"].as_str().unwrap();
        letters.entry(key).or_default().push(op);
    }
    assert_eq!(letters.len(), wanted);
    // What came while the tables were copied is told by the copy and by the stream; all else once.
    let twice: Vec<_> =
        letters.iter().filter(|(_, ops)| !matches!(ops.as_slice(), ["r"] | ["c"] | ["r", "c"])).collect();
    assert!(twice.is_empty(), "{twice:?}");
    for table in TABLES {
        let rows = folded(&records(kafka, &format!("killed.public.{table}")));
        let wanted: usize = source.value(&format!("SELECT count(*) FROM {table}")).await.unwrap().parse().unwrap();
        assert_eq!(rows.len(), wanted, "{table}");
    }
    let second = Desk::new();
    second.write_spec(
        &as_source(kafka, "killed", PUBLIC, "transactions = \"killed.transaction\""),
        &postgres(&target),
        "",
    );
    let mut reading = second.start();
    second.wait(&mut reading);
    for table in TABLES.into_iter().chain(["ledger"]) {
        let query = format!("SELECT * FROM {table}");
        same(&source, &target, &query, &query, &mut reading, None).await;
    }
    second.stop(reading);
    desk.stop(run);
}

/// What `plan` says that Debezium's JDBC sink connector does not write as it is, of a table.
fn lost_by_jdbc(plan: &Value, table: &str) -> BTreeSet<String> {
    let notes = plan["notes"].as_array().unwrap().iter();
    notes
        .filter(|note| note["table"].to_string().contains(table))
        .filter(|note| note["text"].as_str().is_some_and(|text| text.starts_with("Debezium's JDBC sink")))
        .map(|note| note["column"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn debeziums_own_jdbc_sink_writes_what_our_topics_say() {
    let Some(kafka) = Kafka::shared() else { return };
    let Some((source, target)) = two_databases().await else { return };
    for database in [&source, &target] {
        database.execute(TYPES).await;
        database.execute(KINDS).await;
    }
    // It knows no word for a value that an update left alone.
    source.execute("ALTER TABLE parts REPLICA IDENTITY FULL; ALTER TABLE kinds REPLICA IDENTITY FULL").await;
    source.execute(ROWS).await;
    let desk = Desk::new();
    let tables = "tables = [\"public.kinds\", \"public.parts\", \"public.passing\"]";
    desk.write_spec(&format!("{}\n{tables}", postgres(&source)), &sink(kafka, "jdbc", "partitions = 3"), "");
    let plan = desk.crossfade.json(&["plan", SPEC]);
    let lost = lost_by_jdbc(&plan, "kinds");
    let expected = ["r4", "r8", "b1", "vb", "pt", "ba", "da", "fa", "h"].map(str::to_owned);
    assert_eq!(lost, BTreeSet::from(expected));
    assert!(lost_by_jdbc(&plan, "parts").is_empty());
    let mut run = desk.start();
    desk.wait(&mut run);
    let without: Vec<String> = lost.iter().map(|column| format!("jdbc.public.kinds:{column}")).collect();
    let Some(jdbc) = Debezium::start_sink(kafka, &target, "jdbc", &without.join(",")) else { return };
    let all = "SELECT column_name FROM information_schema.columns WHERE table_name = 'kinds' ORDER BY ordinal_position";
    let columns: Vec<String> = column_of(&source, all).await.into_iter().filter(|name| !lost.contains(name)).collect();
    let kinds = format!("SELECT {} FROM kinds", columns.join(", "));
    let queries = [kinds.as_str(), "SELECT * FROM parts", "SELECT * FROM passing"];
    for query in queries {
        same(&source, &target, query, query, &mut run, Some(&jdbc)).await;
    }
    for statement in CHANGES.split(";\n").filter(|statement| !statement.contains("noted")) {
        source.execute(statement).await;
    }
    for query in queries {
        same(&source, &target, query, query, &mut run, Some(&jdbc)).await;
    }
    assert_eq!(source.value("SELECT count(*) FROM kinds").await.as_deref(), Some("4"));
    // The comparison sees what is not written: the columns that are named.
    let bits = "SELECT id, vb FROM kinds";
    assert_ne!(rows(&source, bits).await, rows(&target, bits).await);
    desk.stop(run);
}

/// The first column of a query.
async fn column_of(database: &Database, query: &str) -> Vec<String> {
    let rows = database.connect().await.query(query, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_with_records_of_others_are_refused_by_name() {
    let Some(kafka) = Kafka::shared() else { return };
    let Some((source, _)) = two_databases().await else { return };
    source.execute("CREATE TABLE people (id int PRIMARY KEY, name text); INSERT INTO people VALUES (1, 'one')").await;
    let desk = Desk::new();
    let input = desk.crossfade.write("lines.txt", "somebody else's\n");
    let words = ["--bootstrap-server", &kafka.brokers(), "--topic", "theirs.public.people"];
    let out = kafka.tool_with_input("org.apache.kafka.tools.ConsoleProducer", &words, &input);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    desk.write_spec(&from(&source), &sink(kafka, "theirs", ""), "");
    for command in ["check", "run"] {
        let said = desk.expect(3, &[command], &[]);
        let text = format!("{}{}", said.stdout, said.stderr);
        assert!(text.contains("theirs.public.people") && text.contains("records that are not ours"), "{said}");
    }
    assert!(!topics(kafka).contains("theirs.crossfade"), "nothing has been made");
    // Another migration's.
    desk.write_spec(&from(&source), &sink(kafka, "shared", ""), "");
    let mut run = desk.start();
    desk.wait(&mut run);
    let second = Desk::new();
    second.write_spec(&from(&source), &sink(kafka, "shared", ""), "");
    let said = second.expect(3, &["run"], &["--quiet"]);
    assert!(said.stderr.contains("another migration"), "{said}");
    source.execute("INSERT INTO people VALUES (2, 'still running')").await;
    desk.wait(&mut run);
    desk.stop(run);
}
