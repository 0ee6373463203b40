//! Topics that a real Debezium writes, as the source: what it tells arrives, and what it has lost is named. Built with the
//! feature `kafka` (`make test-kafka`).

use crate::{
    desk::{Desk, SPEC, Writer, postgres, rows, two_databases},
    shop::{SHOP, TABLES, work},
};
use crossfade_testkit::{
    compare::assert_same, crossfade::Running, debezium::Debezium, kafka::Kafka, postgres::Database, seeded,
    wait::GENEROUS,
};
use rand::Rng;
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

/// How the topics stand in a spec.
pub(crate) fn source(kafka: &Kafka, prefix: &str, tables: &str, more: &str) -> String {
    format!(
        "kind = \"debezium\"\nbrokers = \"{}\"\ntopic_prefix = \"{prefix}\"\ntables = [{tables}]\n{more}",
        kafka.brokers()
    )
}

/// What a connector is told beside where it reads.
const WITH_SCHEMAS: [(&str, &str); 2] =
    [("value.converter.schemas.enable", "true"), ("key.converter.schemas.enable", "true")];

/// Types of its own that [`KINDS`] needs.
pub(crate) const TYPES: &str = "
CREATE EXTENSION IF NOT EXISTS hstore; CREATE EXTENSION IF NOT EXISTS citext;
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN email AS citext CHECK (value ~ '@');";

/// Every type that Debezium has a word for, and some without.
const KINDS: &str = "
CREATE TABLE kinds (
 id int PRIMARY KEY, b bool, i2 smallint, i4 int, i8 bigint, r4 real, r8 double precision, n numeric, n102 numeric(10,2), t text, vc varchar(20), ch char(5),
 by bytea, d date, tm time, tm3 time(3), tmtz timetz, ts timestamp, ts3 timestamp(3), tstz timestamptz, iv interval, u uuid, j json, jb jsonb, x xml,
 bt bit(3), b1 bit(1), bl bit(12), vb bit varying(8),
 ip inet, cd cidr, mac macaddr, pt point, m mood, em email, ia int[], ta text[], ba bytea[], ua uuid[], da date[], fa float8[], i4r int4range, tstzr tstzrange,
 h hstore, mon money, tsv tsvector, o oid);
INSERT INTO kinds VALUES (1,true,-32768,2147483647,-9223372036854775808,'1.5e10','NaN','NaN',12345678.90,'snöw','vc','ab',
 '\\x00ff10','2026-02-28','23:59:59.999999','01:02:03.004','24:00:00+00','0044-03-15 12:00:00 BC','2026-01-02 03:04:05.678','infinity','1 year 2 mons 3 days 04:05:06.7',
 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11','{\"a\": 1,  \"a\": 2}','{\"b\":[1,null]}','<a/>',B'110',B'1',B'100000000110',B'01',
 '10.0.0.1/8','10.0.0.0/8','08:00:2b:01:02:03','(1,2.5)','happy','A@b.c','{{1,2},{3,NULL}}','{\"a,b\",NULL,\"c\\\"d\",\"\",null}','{\"\\\\x01\",NULL}','{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}','{2026-01-01}','{1.5,NaN,NULL}','[1,5)','[2026-01-01,)',
 'a=>1,b=>NULL','$1,234.50','a fat cat', 4294967295);
INSERT INTO kinds (id) VALUES (2);
INSERT INTO kinds (id, n, d, tm, ts, tstz, iv, r4, ia, t) VALUES
 (4, '-0.0001000', '0044-03-15 BC', '24:00', '0001-01-01', '0044-03-15 12:00 BC', '-3 days', '-Infinity', '{1,2,NULL}', repeat('x', 100000));";

const OTHERS: &str = "
CREATE TABLE parts (org text, sku text, qty int NOT NULL DEFAULT 0, big text, raw bytea, PRIMARY KEY (org, sku));
ALTER TABLE parts ALTER COLUMN big SET STORAGE EXTERNAL, ALTER COLUMN raw SET STORAGE EXTERNAL;
CREATE TABLE noted (a int, b text); ALTER TABLE noted REPLICA IDENTITY FULL;
INSERT INTO parts SELECT 'o1', 's' || n, n, repeat(md5(n::text), 200), decode(repeat(md5(n::text), 200), 'hex') FROM generate_series(1, 200) n;
INSERT INTO noted SELECT n % 7, 'x' FROM generate_series(1, 40) n;";

/// Changes of every sort.
const CHANGES: &str = "
BEGIN; INSERT INTO kinds (id, t, n, tstz, vb, ts, d) VALUES (3, 'new', '10', '-infinity', B'00000001', 'infinity', 'infinity'); UPDATE kinds SET m = 'sad' WHERE id = 1; COMMIT;
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
UPDATE noted SET a = a + 1 WHERE b IS NULL;";

/// Ends a run, or what is left of it, with a kill.
fn kill_and_start(desk: &Desk, run: Running) -> Running {
    run.kill();
    desk.start()
}

/// Waits until Debezium and the run have brought a query's rows over.
pub(crate) async fn same(
    source: &Database,
    target: &Database,
    there: &str,
    here: &str,
    run: &mut Running,
    debezium: Option<&Debezium>,
) {
    let started = Instant::now();
    loop {
        let (wanted, found) = (rows(source, there).await, rows(target, here).await);
        if wanted == found {
            return;
        }
        assert!(run.is_running(), "the run has ended: {}", run.stderr());
        if started.elapsed() > GENEROUS {
            eprintln!("{}\n{}", run.stderr(), debezium.map(Debezium::log).unwrap_or_default());
            assert_same(there, &wanted, &found);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The columns of a table, but for those that the plan calls lossy.
fn told(plan: &serde_json::Value, table: &str) -> (Vec<String>, BTreeSet<String>) {
    let notes = plan["notes"].as_array().unwrap();
    let lossy: BTreeSet<String> = notes
        .iter()
        .filter(|note| note["fidelity"] == "lossy" && note["table"]["name"] == table)
        .map(|note| note["column"].as_str().unwrap().to_owned())
        .collect();
    let of = |one: &&serde_json::Value| one["source"].as_str() == Some(&format!("public.{table}"));
    let columns = plan["tables"].as_array().unwrap().iter().find(of).unwrap()["columns"].as_array().unwrap();
    let columns = columns.iter().map(|column| column["name"].as_str().unwrap().to_owned());
    (columns.filter(|column| !lossy.contains(column)).collect(), lossy)
}

/// Waits until the connector has made its topics.
async fn until_topics(desk: &Desk, debezium: &Debezium, word: &str) {
    let started = Instant::now();
    while !desk.command(&["check"], &[]).stdout.contains(word) {
        assert!(started.elapsed() < GENEROUS, "{}\n{}", desk.command(&["check"], &[]), debezium.log());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_that_debezium_tells_arrives_and_what_it_has_lost_is_named() {
    let Some(kafka) = Kafka::shared() else { return };
    for (prefix, with_schemas) in [("dbzschema", "true"), ("dbzplain", "false")] {
        let Some((from, to)) = two_databases().await else { return };
        from.execute(TYPES).await;
        from.execute(KINDS).await;
        from.execute(OTHERS).await;
        // The target has the tables already: their types count, and in plain JSON they are the only ones.
        to.execute(TYPES).await;
        to.execute(KINDS.split("INSERT").next().unwrap()).await;
        to.execute("CREATE TABLE parts (org text, sku text, qty int NOT NULL, big text, raw bytea, PRIMARY KEY (org, sku)); CREATE TABLE noted (a int, b text)").await;
        let settings = [
            ("value.converter", "org.apache.kafka.connect.json.JsonConverter"),
            ("value.converter.schemas.enable", with_schemas),
            ("key.converter", "org.apache.kafka.connect.json.JsonConverter"),
            ("key.converter.schemas.enable", with_schemas),
            ("provide.transaction.metadata", "true"),
        ];
        let Some(debezium) = Debezium::start(kafka, &from, prefix, &settings) else { return };
        let desk = Desk::new();
        let more = format!("transactions = \"{prefix}.transaction\"");
        desk.write_spec(&source(kafka, prefix, "\"public.*\"", &more), &postgres(&to), "");
        // The topic of transactions is made with the first one.
        let started = Instant::now();
        while rows(&from, "SELECT 1 FROM pg_replication_slots WHERE active AND database = current_database()")
            .await
            .count()
            == 0
        {
            assert!(started.elapsed() < GENEROUS, "{}", debezium.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        from.execute("INSERT INTO noted VALUES (100, 'first')").await;
        until_topics(&desk, &debezium, "ready: 3 tables").await;
        let said = desk.expect(0, &["plan"], &[]);
        assert!(said.stdout.contains("lossy") && said.stdout.contains("public.kinds.n: NaN"), "{said}");
        let plan = desk.crossfade.json(&["plan", SPEC]);
        let mut run = desk.start();
        // Between single statements, so that the connector's transactions are those of the text.
        for statement in CHANGES.split(";\n") {
            from.execute(statement).await;
        }
        let (columns, lossy) = told(&plan, "kinds");
        let expected = ["d", "da", "fa", "ba", "ia", "iv", "n", "n102", "ta", "tmtz", "ua", "vb"].map(str::to_owned);
        assert_eq!(lossy, BTreeSet::from(expected), "with schemas: {with_schemas}");
        let query = format!("SELECT {} FROM kinds", columns.join(", "));
        same(&from, &to, &query, &query, &mut run, Some(&debezium)).await;
        same(&from, &to, "SELECT * FROM parts", "SELECT * FROM parts", &mut run, Some(&debezium)).await;
        same(&from, &to, "SELECT * FROM noted", "SELECT * FROM noted", &mut run, Some(&debezium)).await;
        if with_schemas == "true" {
            // A column comes, with what all rows read in it, and another one goes.
            from.execute("ALTER TABLE parts ADD COLUMN extra text DEFAULT 'usual'").await;
            from.execute("UPDATE parts SET extra = 'other' WHERE qty % 7 = 0").await;
            from.execute("ALTER TABLE parts DROP COLUMN raw; UPDATE parts SET qty = qty + 1 WHERE qty % 4 = 0").await;
            let come =
                "SELECT count(*) FROM information_schema.columns WHERE table_name = 'parts' AND column_name = 'extra'";
            same(&from, &to, come, come, &mut run, Some(&debezium)).await;
            let query = "SELECT org, sku, qty, big, extra FROM parts";
            same(&from, &to, query, query, &mut run, Some(&debezium)).await;
        }
        desk.wait(&mut run);
        let said = desk.expect(0, &["verify"], &[]);
        assert!(said.stdout.contains("lossy: public.kinds.vb") && said.stdout.contains("0 differences"), "{said}");
        desk.stop(run);
        let held = desk.expect(0, &["quarantine", "ls"], &[]);
        assert!(!held.stdout.contains("public."), "{held}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn live_writers_and_kills_of_both_sides_lose_nothing_and_double_nothing() {
    let Some(kafka) = Kafka::shared() else { return };
    let Some((from, to)) = two_databases().await else { return };
    from.execute(SHOP).await;
    from.execute("CREATE TABLE noted (a int, b text); ALTER TABLE noted REPLICA IDENTITY FULL").await;
    let settings: Vec<(&str, &str)> =
        WITH_SCHEMAS.into_iter().chain([("provide.transaction.metadata", "true")]).collect();
    let Some(debezium) = Debezium::start(kafka, &from, "dbzkill", &settings) else { return };
    let writer = Writer::start(&from, |number| {
        let noted = match number % 3 {
            0 => format!("INSERT INTO noted VALUES ({}, 'x')", number % 5),
            1 => format!("UPDATE noted SET b = 'y' WHERE a = {}", number % 5),
            _ => format!("DELETE FROM noted WHERE a = {} AND b = 'y'", number % 5),
        };
        format!("{}; {noted}", work(number))
    });
    writer.wait_for_more(20);
    let desk = Desk::new();
    let more = "transactions = \"dbzkill.transaction\"";
    desk.write_spec(&source(kafka, "dbzkill", "\"public.*\"", more), &postgres(&to), "");
    until_topics(&desk, &debezium, "ready: 3 tables").await;
    let mut run = desk.start();
    desk.until("the connector to follow the stream", &mut run, async || debezium.has_noted_the_stream()).await;
    let seed = seeded::seed("kills with Debezium");
    let mut random = seeded::worker(seed, 1);
    for round in 0..8 {
        tokio::time::sleep(Duration::from_millis(random.random_range(0..1_500))).await;
        run = kill_and_start(&desk, run);
        if round % 4 == 2 {
            // It sends again what it had not noted.
            debezium.kill();
            writer.wait_for_more(20);
            debezium.start_again();
        }
    }
    writer.wait_for_more(50);
    writer.stop();
    for table in TABLES.into_iter().chain(["noted"]) {
        let columns = if table == "orders" { "id, person, total, note" } else { "*" };
        let query = format!("SELECT {columns} FROM {table}");
        same(&from, &to, &query, &query, &mut run, Some(&debezium)).await;
    }
    desk.wait(&mut run);
    let said = desk.expect(0, &["verify"], &[]);
    assert!(said.stdout.contains("0 differences"), "{said}");
    desk.stop(run);
}
