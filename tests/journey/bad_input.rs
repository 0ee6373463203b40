//! What is wrong is said in one clear sentence, with the place, the remedy and the right exit code, and nothing is half done.

use crate::desk::{Desk, postgres, rows, sqlite, two_databases};
use crossfade_testkit::{
    compare::{assert_same, sqlite_reader, sqlite_texts},
    crossfade::Finished,
    ports,
    postgres::{Database, Postgres, Settings, Version},
};

/// One sentence that names each of `words`, a code, and no secret.
fn assert_said(finished: &Finished, code: i32, words: &[&str]) {
    let said = format!("{}{}", finished.stdout, finished.stderr);
    assert_eq!(finished.code, Some(code), "{finished}");
    for word in words {
        assert!(said.contains(word), "it must be said: {word}\n{finished}");
    }
    assert!(finished.stderr.lines().any(|line| line.starts_with("error: ")), "{finished}");
    assert!(!said.contains("S3CR3T"), "a secret was told\n{finished}");
    assert!(!said.contains("panicked"), "{finished}");
}

fn spec(desk: &Desk, source: &str, target: &str) {
    let end = |url: &str| format!("kind = \"postgres\"\nurl = \"{url}\"");
    desk.write_spec(&format!("{}\ntables = [\"public.*\"]", end(source)), &end(target), "");
}

/// How somebody else reaches a database of a server that trusts everybody.
fn as_role(server: &Postgres, role: &str, database: &Database) -> String {
    server.url(&database.name).replace("//postgres@", &format!("//{role}@"))
}

async fn with_a_table() -> Option<(Database, Database)> {
    let (source, target) = two_databases().await?;
    source
        .execute("CREATE TABLE customers (id int PRIMARY KEY, name text); INSERT INTO customers VALUES (1, 'a')")
        .await;
    Some((source, target))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_value_of_a_row_is_logged_at_any_level() {
    let Some((source, target)) = with_a_table().await else { return };
    source.execute("INSERT INTO customers VALUES (2, 'S3CR3T of the copy')").await;
    let desk = Desk::new();
    spec(&desk, &source.url, &target.url);
    let mut run = desk.crossfade.spawn(&["run", "shop.toml", "--quiet", "--log", "trace"]);
    desk.wait(&mut run);
    source
        .execute("UPDATE customers SET name = 'S3CR3T of the stream' WHERE id = 1; DELETE FROM customers WHERE id = 2")
        .await;
    desk.wait(&mut run);
    run.terminate();
    let ended = run.wait();
    assert!(ended.stderr.contains("TRACE") && ended.stderr.contains("DEBUG"), "it logs");
    let told = ended.stderr.lines().find(|line| line.contains("S3CR3T"));
    assert_eq!(told, None, "a value was logged");
    let there = rows(&target, "SELECT id, name FROM customers").await;
    assert_same("customers", &rows(&source, "SELECT id, name FROM customers").await, &there);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_named() {
    let Some((source, _)) = with_a_table().await else { return };
    let desk = Desk::new();
    let port = ports::free().to_string();
    let nowhere = format!("postgres://app@127.0.0.1:{port}/shop?sslmode=disable");
    spec(&desk, &nowhere, &source.url);
    assert_said(&desk.command(&["check"], &[]), 1, &["127.0.0.1", &port]);
    spec(&desk, &source.url, &nowhere);
    assert_said(&desk.command(&["check"], &[]), 1, &["127.0.0.1", &port]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_said_without_telling_it() {
    let Some((_, target)) = with_a_table().await else { return };
    let hba = "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
    let Some(server) = Postgres::start(Version::V15, Settings::new().hba(hba)) else { return };
    let source = server.create_database("shop").await;
    source.execute("CREATE ROLE app LOGIN REPLICATION PASSWORD 'right'; CREATE TABLE t (id int PRIMARY KEY)").await;
    let mut desk = Desk::new();
    desk.crossfade = desk.crossfade.env("SOURCE_URL", &server.url_as("app", "S3CR3T", &source.name));
    spec(&desk, "${SOURCE_URL}", &target.url);
    assert_said(&desk.command(&["check"], &[]), 2, &["password", "app"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_logical_wal_is_refused_with_the_setting() {
    let Some((_, target)) = with_a_table().await else { return };
    let Some(server) = Postgres::start(Version::V15, Settings::new().set("wal_level", "replica")) else { return };
    let source = server.create_database("shop").await;
    source.execute("CREATE TABLE t (id int PRIMARY KEY)").await;
    let desk = Desk::new();
    spec(&desk, &source.url, &target.url);
    for command in ["check", "run"] {
        assert_said(&desk.command(&[command], &[]), 3, &["wal_level", "logical"]);
    }
    assert_eq!(rows(&target, "SELECT 1 FROM pg_tables WHERE schemaname !~ '^pg_|^info'").await.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_free_slot_is_refused_with_the_setting() {
    let Some((_, target)) = with_a_table().await else { return };
    let Some(server) = Postgres::start(Version::V15, Settings::new().set("max_replication_slots", 1)) else { return };
    let source = server.create_database("shop").await;
    source.execute("CREATE TABLE t (id int PRIMARY KEY)").await;
    source.execute("SELECT pg_create_logical_replication_slot('taken', 'pgoutput')").await;
    let desk = Desk::new();
    spec(&desk, &source.url, &target.url);
    assert_said(&desk.command(&["check"], &[]), 3, &["max_replication_slots"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_not_empty_is_refused_and_left_as_it_is() {
    let Some((source, target)) = with_a_table().await else { return };
    target
        .execute("CREATE TABLE customers (id int PRIMARY KEY, name text); INSERT INTO customers VALUES (7, 'theirs')")
        .await;
    let desk = Desk::new();
    spec(&desk, &source.url, &target.url);
    for command in ["check", "run"] {
        assert_said(&desk.command(&[command], &[]), 3, &["customers"]);
    }
    assert_eq!(target.value("SELECT string_agg(name, ',') FROM customers").await.as_deref(), Some("theirs"));
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
    assert_eq!(source.value(slots).await.as_deref(), Some("0"), "nothing half done: no slot is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_does_not_exist_is_named_with_the_nearest() {
    let Some((source, target)) = with_a_table().await else { return };
    let desk = Desk::new();
    let tables = |patterns: &str| format!("{}\ntables = [{patterns}]", postgres(&source));
    desk.write_spec(&tables("\"public.*\""), &postgres(&target), "[[table]]\nfrom = \"public.custmers\"\nto = \"c\"\n");
    assert_said(&desk.command(&["check"], &[]), 2, &["public.custmers", "customers"]);
    desk.write_spec(
        &tables("\"public.*\""),
        &postgres(&target),
        "[[table]]\nfrom = \"public.customers\"\nsteps = [{ drop = \"nmae\" }]\n",
    );
    assert_said(&desk.command(&["check"], &[]), 2, &["nmae", "name"]);
    desk.write_spec(&tables("\"public.custmers\""), &postgres(&target), "");
    assert_said(&desk.command(&["check"], &[]), 2, &["public.custmers"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_the_rights_is_told_which_grant_it_needs() {
    let Some((source, target)) = with_a_table().await else { return };
    source.execute("CREATE ROLE reader_of_nothing LOGIN REPLICATION").await;
    let server = Postgres::shared(Version::V15).unwrap();
    let desk = Desk::new();
    spec(&desk, &as_role(server, "reader_of_nothing", &source), &target.url);
    assert_said(&desk.command(&["check"], &[]), 3, &["GRANT SELECT", "customers"]);
    let server = Postgres::shared_target(Version::V15).unwrap();
    target.execute("CREATE ROLE writer_of_nothing LOGIN").await;
    spec(&desk, &source.url, &as_role(server, "writer_of_nothing", &target));
    assert_said(&desk.command(&["check"], &[]), 3, &["GRANT"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_with_only_the_needed_grants_can_migrate() {
    let Some((source, target)) = with_a_table().await else { return };
    let desk = Desk::new();
    let (one, two) = (Postgres::shared(Version::V15).unwrap(), Postgres::shared_target(Version::V15).unwrap());
    source
        .execute(
            "CREATE ROLE only_reads LOGIN REPLICATION; GRANT USAGE ON SCHEMA public TO only_reads; \
                    GRANT SELECT ON ALL TABLES IN SCHEMA public TO only_reads",
        )
        .await;
    target
        .execute(&format!(
            "CREATE ROLE only_writes LOGIN; GRANT CREATE, CONNECT ON DATABASE \"{}\" TO only_writes",
            target.name
        ))
        .await;
    let sink = format!("kind = \"postgres\"\nurl = \"{}\"\nschema = \"moved\"", as_role(two, "only_writes", &target));
    let url = as_role(one, "only_reads", &source);
    desk.write_spec(&format!("kind = \"postgres\"\nurl = \"{url}\"\ntables = [\"public.*\"]"), &sink, "");
    // It may not make a publication of tables that it does not own: the exact statement is printed, for somebody who may.
    let checked = desk.command(&["check"], &[]);
    assert_said(&checked, 3, &["CREATE PUBLICATION"]);
    let refused = desk.command(&["run"], &["--quiet"]);
    assert_said(&refused, 3, &["CREATE PUBLICATION"]);
    let mut lines = checked.stdout.lines();
    let statement = lines.find_map(|line| line.find("CREATE PUBLICATION").map(|at| line[at..].to_owned())).unwrap();
    source.execute(&statement).await;
    let checked = desk.expect(0, &["check"], &[]);
    assert!(!checked.stdout.contains("PUBLICATION"), "what is there is not asked for again\n{checked}");
    let mut run = desk.start();
    desk.wait(&mut run);
    source.execute("INSERT INTO customers VALUES (2, 'b')").await;
    desk.wait(&mut run);
    assert_eq!(
        target.value("SELECT string_agg(name, ',' ORDER BY id) FROM moved.customers").await.as_deref(),
        Some("a,b")
    );
    desk.verify();
    desk.stop(run);
}

#[test]
fn what_is_wrong_in_a_spec_is_said_with_its_place() {
    let desk = Desk::new();
    let sqlite = |name: &str| format!("kind = \"sqlite\"\npath = \"{name}\"");
    let source = format!("{}\ntables = [\"main.*\"]", sqlite("old.db"));
    rusqlite::Connection::open(desk.path("old.db"))
        .unwrap()
        .execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY)")
        .unwrap();

    desk.write_spec(&source.replace("tables", "tabels"), &sqlite("new.db"), "");
    assert_said(&desk.command(&["check"], &[]), 2, &["tabels", "tables", "shop.toml:"]);
    desk.write_spec(&source, &sqlite("new.db"), "[gates]\nlag = { max = 3, then = \"warn\" }\n");
    assert_said(&desk.command(&["check"], &[]), 2, &["lag", "shop.toml:"]);
    desk.write_spec(&source, &sqlite("new.db"), "[gates]\nmismatch = { max = \"1%\", then = \"warn\" }\n");
    assert_said(&desk.command(&["check"], &[]), 2, &["mismatch"]);
    desk.write_spec(&source, "kind = \"postgres\"\nurl = \"${NOBODY_SET_THIS}\"", "");
    assert_said(&desk.command(&["check"], &[]), 2, &["NOBODY_SET_THIS"]);
    desk.write_spec(&source.replace("old.db", "no-such.db"), &sqlite("new.db"), "");
    assert_said(&desk.command(&["check"], &[]), 2, &["no-such.db"]);
    assert_said(&desk.crossfade.run(&["check", "nowhere.toml"]), 2, &["nowhere.toml"]);
    for command in ["failback", "cleanup"] {
        desk.write_spec(&source, &sqlite("new.db"), "");
        assert_said(&desk.command(&[command], &[]), 2, &["has no [switch]"]);
    }
}

#[test]
fn a_row_that_a_sqlite_target_refuses_stops_the_run_where_the_spec_says_so() {
    let desk = Desk::new();
    let (old, new) = (desk.path("old.db"), desk.path("new.db"));
    let (source, items) = (rusqlite::Connection::open(&old).unwrap(), "SELECT id, name FROM items");
    source
        .execute_batch(
            "PRAGMA journal_mode = WAL; CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT);
             INSERT INTO items VALUES (1, 'first'), (2, 'second')",
        )
        .unwrap();
    let sink = format!("{}\non_error = \"stop\"", sqlite(&new));
    desk.write_spec(&format!("{}\ntables = [\"main.*\"]", sqlite(&old)), &sink, "");
    let mut run = desk.start();
    desk.wait(&mut run);
    let there = || sqlite_texts(&sqlite_reader(&new), items);
    let before = there();
    let target = rusqlite::Connection::open(&new).unwrap();
    target.busy_timeout(crossfade_testkit::wait::GENEROUS).unwrap();
    target
        .execute_batch("CREATE TRIGGER ours BEFORE INSERT ON items WHEN NEW.name = 'S3CR3T' BEGIN SELECT RAISE(ABORT, 'not here'); END")
        .unwrap();
    source
        .execute_batch(
            "BEGIN; INSERT INTO items VALUES (3, 'S3CR3T'); UPDATE items SET name = 'later' WHERE id = 1; COMMIT",
        )
        .unwrap();
    // Asked again it stops again, and nothing of that transaction is in.
    for ended in [run.wait(), desk.start().wait()] {
        assert_said(&ended, 1, &["main.items", "log offset", "on_error = \"quarantine\""]);
        assert_same("nothing is half done", &before, &there());
        let listed = desk.expect(0, &["quarantine", "ls"], &[]);
        assert!(listed.stdout.contains("nothing is in quarantine"), "{listed}");
    }
    target.execute_batch("DROP TRIGGER ours").unwrap();
    let mut run = desk.start();
    desk.wait(&mut run);
    assert_same("once nothing refuses it", &sqlite_texts(&source, items), &there());
    desk.verify();
    desk.stop(run);
}
