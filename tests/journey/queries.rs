//! Query pairs and the page of `verify`, and dual reads of an application beside a running migration.

use crate::desk::{Desk, Writer, postgres, sqlite, two_databases};
use crossfade_dualread::{
    DualReads, Failure, Flag, Listener, Options, Outcome, POSTGRES_END, POSTGRES_REACHED, Percent, Places, Position,
    Side, Subject, Told, place,
};
use crossfade_testkit::{
    postgres::{Database, connect},
    wait::{GENEROUS, wait_until},
};
use rusqlite::Connection;
use serde_json::Value;
use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio_postgres::Client;

const KEYS: &str = "[keys.default]\nmake = \"uuid-v5\"\nnamespace = \"6f1c1f0e-6f2b-4b57-9a34-0d5be4c7a001\"\n\
    [rekey]\ntables = [\"public.*\"]\nwith = \"default\"\n\
    [[table]]\nfrom = \"public.customers\"\nsteps = [{ rename = \"mail\", to = \"email\" }]\n";

const SHOP: &str = "CREATE TABLE customers (id bigint PRIMARY KEY, mail text NOT NULL, since timestamptz NOT NULL, vip boolean); \
    CREATE TABLE orders (id bigint PRIMARY KEY, customer_id bigint NOT NULL REFERENCES customers, total numeric NOT NULL); \
    INSERT INTO customers SELECT n, 'c' || n || '@example.org', timestamptz '2020-01-01 00:00Z' + n * interval '1 day', n % 7 = 0 FROM generate_series(1, 200) n; \
    INSERT INTO orders SELECT n, 1 + n % 200, n * 1.25 FROM generate_series(1, 1000) n";

/// The customers that the writer leaves alone have the odd ids.
fn work(number: u64) -> String {
    let id = 2 + number * 2 % 198;
    format!(
        "UPDATE customers SET mail = 'm{number}@example.org' WHERE id = {id}; \
         INSERT INTO orders VALUES ({}, {id}, {number}.5)",
        10_000 + number
    )
}

/// Every customer is found under its new key by the mapping.
const PAIRS: &str = r#"
runs = 40

[[query]]
name = "customer"
source = "SELECT mail, since, vip FROM customers WHERE id = $1"
target = "SELECT email AS mail, since, vip FROM customers WHERE id = $1"
params = { on = "target", sql = "SELECT old_id, new_id FROM uuid_migration_mapping WHERE table_name LIKE '%customers' ORDER BY new_id LIMIT 20", source = ["old_id"], target = ["new_id"] }
latency = { within = "1000%", slack = "10s" }

[[query]]
name = "orders of a customer"
source = "SELECT total FROM orders WHERE customer_id = $1 ORDER BY total"
target = "SELECT o.total * 1.0 AS total FROM orders o JOIN customers c ON c.id = o.customer_id WHERE c.email = 'c' || $1 || '@example.org'"
params = { sql = "SELECT n::text AS id FROM generate_series(1, 99, 2) n" }
compare = { order = "any", numbers = ["total"] }
runs = 50
"#;

fn answers(said: &str, name: &str) -> Value {
    let report: Value = serde_json::from_str(said).unwrap_or_else(|error| panic!("{error}\n{said}"));
    let found = report["queries"].as_array().unwrap().iter().find(|query| query["name"] == name).cloned();
    found.unwrap_or_else(|| panic!("{name} is not in\n{said}"))
}

/// Nothing on the page may come from elsewhere or show what is in a row.
fn assert_stands_alone(page: &str) {
    for wrong in ["http", "src=", "<script", "@example.org"] {
        assert!(!page.contains(wrong), "the page has {wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn query_pairs_are_asked_of_both_sides_while_somebody_writes() {
    let Some((source, target)) = two_databases().await else { return };
    source.execute(SHOP).await;
    let desk = Desk::new();
    desk.write_spec(&format!("{}\ntables = [\"public.*\"]", postgres(&source)), &postgres(&target), KEYS);
    desk.crossfade.write("queries.toml", PAIRS);
    desk.expect(0, &["check"], &[]);
    let writer = Writer::start(&source, work);
    let mut run = desk.start();
    writer.wait_for_more(50);
    desk.wait(&mut run);

    let asked = ["--queries", "queries.toml", "--no-rows", "--json", "--report", "all.html"];
    let said = desk.expect(0, &["verify"], &asked);
    for (name, runs) in [("customer", 40), ("orders of a customer", 50)] {
        let found = answers(&said.stdout, name);
        assert_eq!(found["runs"], runs, "{said}");
        let same = found["matched"].as_u64().unwrap() + found["explained_by_lag"].as_u64().unwrap();
        assert_eq!((same, &found["source"]["count"]), (runs, &Value::from(runs)), "{found}");
        assert!(found["target"]["p99_ms"].as_f64().unwrap() > 0.0, "{found}");
    }
    let page = std::fs::read_to_string(desk.path("all.html")).unwrap();
    assert!(page.contains("both sides agree") && page.contains("<path class=\"new\""), "{page}");
    assert_stands_alone(&page);
    let again = ["--queries", "queries.toml", "--no-rows", "--json", "--share", "50%", "--for", "2s"];
    let said = desk.expect(0, &["verify"], &again);
    let found = answers(&said.stdout, "customer");
    assert!(found["runs"].as_u64().unwrap() >= 20 && found["mismatched"] == 0, "{said}");
    writer.stop();
    desk.wait(&mut run);

    // One value damaged in the target: the pair that reads it differs, at whatever lag, and so does the row.
    target.execute("UPDATE orders SET total = total + 1 WHERE customer_id = (SELECT id FROM customers WHERE email = 'c7@example.org')").await;
    let said = desk.expect(4, &["verify"], &["--queries", "queries.toml", "--report", "damaged.html"]);
    assert!(said.stdout.contains("differs: query orders of a customer with values"), "{said}");
    assert!(said.stdout.contains("different: public.orders key") && said.stderr.contains("rows differ"), "{said}");
    assert_eq!(said.stdout.matches("differs: query").count(), 1, "only the values that are wrong\n{said}");
    let page = std::fs::read_to_string(desk.path("damaged.html")).unwrap();
    assert!(page.contains("query is answered differently") && page.contains("5 rows differ</p>"), "{page}");
    assert_stands_alone(&page);
    // Asked again and again, it ends by itself long before its time.
    let again = ["--queries", "queries.toml", "--no-rows", "--share", "50%", "--for", "30d"];
    let said = desk.expect(4, &["verify"], &again);
    assert!(said.stderr.contains("answered differently: orders of a customer"), "{said}");
    let keyed = desk.expect(4, &["verify"], &["--json", "--show-keys"]);
    let keyed: Value = serde_json::from_str(&keyed.stdout).unwrap();
    let samples = keyed["tables"].as_array().unwrap().iter().flat_map(|table| table["samples"].as_array().unwrap());
    let mut keys: Vec<String> = samples.map(|sample| sample["key"][0].as_str().unwrap().to_owned()).collect();
    keys.sort();
    let wrong = "SELECT string_agg(id::text, ',' ORDER BY id::text) FROM orders WHERE customer_id = (SELECT id FROM customers WHERE email = 'c7@example.org')";
    assert_eq!(target.value(wrong).await.unwrap(), keys.join(","));
    desk.stop(run);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_pair_is_said_by_name() {
    let Some((source, target)) = two_databases().await else { return };
    source.execute(SHOP).await;
    let desk = Desk::new();
    desk.write_spec(&format!("{}\ntables = [\"public.*\"]", postgres(&source)), &postgres(&target), "");
    desk.expect(0, &["run"], &["--until", "caught-up", "--quiet"]);
    let ask = |code: i32, source: &str, target: &str, more: &str| {
        let text =
            format!("[[query]]\nname = \"one\"\nsource = \"{source}\"\ntarget = \"{target}\"\nruns = 20\n{more}");
        desk.crossfade.write("one.toml", &text);
        let said = desk.expect(code, &["verify"], &["--queries", "one.toml", "--no-rows"]);
        format!("{}{}", said.stdout, said.stderr)
    };
    let fine = "SELECT id, mail FROM customers WHERE id < 9 ORDER BY id";
    ask(0, fine, fine, "");
    for (code, one, other, more, words) in [
        (2, "SELECT nothing FROM customers", fine, "", vec!["\"one\"", "source", "nothing"]),
        (4, fine, "SELECT nothing FROM customers", "", vec!["target fails: query one", "nothing"]),
        (
            4,
            fine,
            "SELECT id, mail FROM customers WHERE id < 8 ORDER BY id",
            "",
            vec!["another number of rows, 1 row differs"],
        ),
        (
            4,
            fine,
            "SELECT id, upper(mail) AS mail FROM customers WHERE id < 9 ORDER BY id",
            "",
            vec!["8 rows differ: mail"],
        ),
        (
            4,
            fine,
            "SELECT id, mail AS email FROM customers WHERE id < 9 ORDER BY id",
            "",
            vec!["other columns: mail, email"],
        ),
        (
            0,
            fine,
            "SELECT id, mail AS email FROM customers WHERE id < 9 ORDER BY id DESC",
            "compare = { order = \"any\", by-place = true }",
            vec![],
        ),
        (2, "SELECT ARRAY[1] AS list", "SELECT ARRAY[1] AS list", "", vec!["list", "Cast it"]),
        (2, "SELECT $1::int", "SELECT 1", "", vec!["1 parameters, and 0 are given"]),
        (2, fine, fine, "params = { sql = \"SELECT 1 WHERE false\" }", vec!["gives no row"]),
        (2, "DELETE FROM customers", fine, "", vec!["read-only"]),
        (
            3,
            "SELECT 1",
            "SELECT 1 FROM pg_sleep(0.03)",
            "latency = { within = \"10%\" }",
            vec!["slow: query one", "10 % more is allowed"],
        ),
        (1, "SELECT clock_timestamp() AS now", "SELECT clock_timestamp() AS now", "", vec!["changed too fast"]),
    ] {
        let said = ask(code, one, other, more);
        assert!(words.iter().all(|word| said.contains(word)), "{one} | {other} | {more}\n{said}");
    }
    assert_eq!(source.value("SELECT count(*) FROM customers").await.as_deref(), Some("200"), "nothing was deleted");
}

fn texts(path: &Path, sql: &str) {
    Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn query_pairs_are_asked_of_sqlite_files_and_across_systems() {
    let Some((_, target)) = two_databases().await else { return };
    let desk = Desk::new();
    let (old, new) = (desk.path("old.db"), desk.path("new.db"));
    texts(
        &old,
        "PRAGMA journal_mode = WAL; CREATE TABLE orders (id integer PRIMARY KEY, total text, paid integer, at text); \
         WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 100) \
         INSERT INTO orders SELECT n, n || '.50', n % 2, '2026-01-01T00:00:00Z' FROM n",
    );
    let pairs = |schema: &str, total: &str, number: &str| {
        format!(
            "[[query]]\nname = \"one\"\nsource = \"SELECT total, paid, at FROM orders WHERE id = $1\"\n\
             target = \"SELECT {total} AS total, paid, at FROM {schema}orders WHERE id = {number}\"\nruns = 30\n\
             params = {{ sql = \"SELECT id FROM orders WHERE id < 20\" }}\n\
             compare = {{ numbers = [\"total\"], moments = [\"at\"] }}\n"
        )
    };
    desk.write_spec(&format!("{}\ntables = [\"main.*\"]", sqlite(&old)), &sqlite(&new), "");
    desk.crossfade.write("queries.toml", &pairs("", "total", "$1"));
    desk.expect(0, &["run"], &["--until", "caught-up", "--quiet"]);
    desk.expect(0, &["verify"], &["--queries", "queries.toml", "--report", "page.html"]);
    assert_stands_alone(&std::fs::read_to_string(desk.path("page.html")).unwrap());
    texts(&new, "UPDATE orders SET total = '0.50' WHERE id = 7");
    let said = desk.expect(4, &["verify"], &["--queries", "queries.toml", "--no-rows"]);
    assert!(said.stdout.contains("1 row differs: total"), "{said}");

    let across = Desk::new();
    across.write_spec(
        &format!("{}\ntables = [\"main.*\"]", sqlite(&old)),
        &format!("{}\nschema = \"shop\"", postgres(&target)),
        "",
    );
    across.expect(0, &["run"], &["--until", "caught-up", "--quiet"]);
    across.crossfade.write("queries.toml", &pairs("shop.", "total::numeric(9,3)", "$1"));
    across.expect(0, &["verify"], &["--queries", "queries.toml", "--no-rows"]);
}

/// An application's places, and what it hears.
struct Shop {
    old: Client,
    new: Client,
    migration: String,
}

impl Places for Shop {
    async fn end(&self, _: Side) -> Result<Position, Failure> {
        let row = self.old.query_one(POSTGRES_END, &[]).await.map_err(|error| Failure::retry("the end", error))?;
        place(row.get(0)).map_err(|error| Failure::retry("the end", error))
    }

    async fn reached(&self, _: Side) -> Result<Option<Position>, Failure> {
        let row = self.new.query_opt(POSTGRES_REACHED, &[&self.migration]).await;
        let row = row.map_err(|error| Failure::retry("the position", error))?;
        let text: Option<String> = row.and_then(|row| row.get(0));
        text.map(|text| place(&text)).transpose().map_err(|error| Failure::retry("the position", error))
    }
}

#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<Told>>>);

impl Listener for Heard {
    fn hear(&self, told: &Told) {
        self.0.lock().unwrap().push(told.clone());
    }
}

impl Heard {
    fn outcomes(&self) -> Vec<Outcome> {
        let told = self.0.lock().unwrap();
        let judged = |told: &Told| match told {
            Told::Judged { outcome, .. } => Some(outcome.clone()),
            _ => None,
        };
        told.iter().filter_map(judged).collect()
    }
}

async fn client(database: &Database) -> Arc<Client> {
    Arc::new(connect(&database.url).await.unwrap())
}

/// One read of an application: the mail of a customer, by its old key.
async fn mail_of(reads: &DualReads, old: &Arc<Client>, new: &Arc<Client>, id: i64) -> String {
    let (old, new) = (Arc::clone(old), Arc::clone(new));
    let from_old = move || {
        let old = Arc::clone(&old);
        async move {
            old.query_one("SELECT mail FROM customers WHERE id = $1", &[&id]).await.map(|row| row.get::<_, String>(0))
        }
    };
    let from_new = move || {
        let new = Arc::clone(&new);
        async move {
            let sql = "SELECT c.email FROM customers c JOIN uuid_migration_mapping m ON m.new_id = c.id \
                       WHERE m.table_name LIKE '%customers' AND m.old_id = $1";
            new.query_one(sql, &[&id.to_string()]).await.map(|row| row.get::<_, String>(0))
        }
    };
    reads.read(Subject::new("shop", id.to_be_bytes()), from_old, from_new).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_reads_both_sides_of_a_running_migration() {
    let Some((source, target)) = two_databases().await else { return };
    source.execute(SHOP).await;
    let desk = Desk::new();
    desk.write_spec(&format!("{}\ntables = [\"public.*\"]", postgres(&source)), &postgres(&target), KEYS);
    let mut run = desk.start();
    desk.wait(&mut run);
    let places = Shop {
        old: connect(&source.url).await.unwrap(),
        new: connect(&target.url).await.unwrap(),
        migration: desk.name.clone(),
    };
    let heard = Heard::default();
    let options = Options { patience: GENEROUS, candidate_timeout: GENEROUS, ..Options::default() };
    let flag = Flag { epoch: 1, authority: Side::Old, percent: Percent::ALL };
    let reads = DualReads::heard_by(options, flag, places, heard.clone());
    let (old, new) = (client(&source).await, client(&target).await);

    // Under a writer of everything that is read: never a mismatch.
    let writer = Writer::start(&source, work);
    for id in (1..=200).chain(1..=200) {
        mail_of(&reads, &old, &new, id).await;
    }
    writer.stop();
    reads.settled().await;
    let outcomes = heard.outcomes();
    assert!(
        outcomes.iter().all(|outcome| matches!(outcome, Outcome::Match | Outcome::Lag | Outcome::Unjudged(_))),
        "{outcomes:?}"
    );
    assert!(outcomes.iter().filter(|outcome| **outcome == Outcome::Match).count() > 50, "{:?}", reads.snapshot());

    // Held up on purpose: the read's answer is at once the new one, and the comparison waits for the target.
    desk.expect(0, &["pause"], &[]);
    old.batch_execute("UPDATE customers SET mail = 'held@example.org' WHERE id = 11").await.unwrap();
    assert_eq!(mail_of(&reads, &old, &new, 11).await, "held@example.org");
    tokio::time::timeout(Duration::from_millis(200), reads.settled())
        .await
        .expect_err("nothing is judged while it is paused");
    desk.expect(0, &["resume"], &[]);
    reads.settled().await;
    assert_eq!(heard.outcomes().last(), Some(&Outcome::Lag));

    // Wrong in the target: found, named by a hash, and stepped down past the budget.
    desk.wait(&mut run);
    new.batch_execute("UPDATE customers SET email = 'wrong@example.org'").await.unwrap();
    let mut id = 0;
    while reads.stepped_down().is_none() {
        id = id % 200 + 1;
        assert_ne!(mail_of(&reads, &old, &new, id).await, "wrong@example.org");
        reads.settled().await;
        assert!(heard.outcomes().len() < 2_000, "it does not step down: {:?}", reads.snapshot());
    }
    assert!(matches!(heard.outcomes().last(), Some(Outcome::Mismatch(_))));
    let asked = reads.snapshot().counts.sampled;
    assert_eq!(mail_of(&reads, &old, &new, 11).await, "held@example.org");
    assert_eq!(reads.snapshot().counts.sampled, asked, "nothing is compared any more");
    wait_until("what was told", async || {
        heard.0.lock().unwrap().iter().any(|told| matches!(told, Told::SteppedDown(_)))
    })
    .await;
    desk.stop(run);
}
