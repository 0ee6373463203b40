//! When nobody runs the migration: `verify` catches up by itself; and a sink that another log fills: verified the same way,
//! and built on a copy.

use crate::desk::{Desk, SPEC, postgres, sqlite, two_databases};
use crossfade_testkit::{
    compare::{assert_same, sqlite_reader, sqlite_texts},
    crossfade::Finished,
    postgres::{Postgres, Version},
};
use rusqlite::Connection;
use std::path::Path;

const FILL: &str = "
CREATE TABLE parts (id integer PRIMARY KEY, name text NOT NULL, price integer);
WITH RECURSIVE n (id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id < 400) INSERT INTO parts SELECT id, 'part ' || id, id FROM n;
";
const ALL: &str = "SELECT id, name, price FROM parts";

fn work(round: u32) -> String {
    let first = 1_000 + round * 100;
    format!(
        "UPDATE parts SET price = price + 1 WHERE id % 7 = {}; DELETE FROM parts WHERE id % 50 = {round};
         INSERT INTO parts VALUES ({first}, 'new', 1), ({}, 'new', 2); UPDATE parts SET id = -id WHERE id = {}",
        round % 7,
        first + 1,
        round + 11
    )
}

fn second(desk: &Desk, source: &str, sink: &str, rest: &str) -> String {
    let text = format!("name = \"{}-second\"\n[source]\n{source}\n[sink]\n{sink}\n{rest}", desk.name);
    desk.crossfade.write("second.toml", &text);
    "second.toml".to_owned()
}

fn run(desk: &Desk, code: i32, args: &[&str]) -> Finished {
    let finished = desk.crossfade.run(args);
    assert_eq!(finished.code, Some(code), "crossfade {}\n{finished}", args.join(" "));
    finished
}

fn make(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.execute_batch(&format!("PRAGMA journal_mode = WAL; {FILL}")).unwrap();
    connection
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_catches_up_by_itself_between_two_postgres_servers_that_nobody_runs() {
    let Some((source, target)) = two_databases().await else { return };
    source.execute(FILL).await;
    let desk = Desk::new();
    desk.write_spec(&format!("{}\ntables = [\"public.*\"]", postgres(&source)), &postgres(&target), "");
    let mut running = desk.start();
    desk.wait(&mut running);
    desk.stop(running);
    source.execute(&work(1)).await;

    let said = desk.expect(0, &["verify"], &[]);
    assert!(said.stdout.contains("catches up first") && said.stdout.contains("0 differences"), "{said}");
    crate::desk::assert_same_tables(&source, &target, &["parts"]).await;
    source.execute(&work(2)).await;
    target.execute("UPDATE parts SET price = -5 WHERE id = 300").await;
    let report = desk.crossfade.json(&["verify", SPEC]);
    assert_eq!(
        (report["differences"].as_u64(), report["caught_up_first"].as_bool()),
        (Some(1), Some(true)),
        "{report}"
    );
    target.execute("UPDATE parts SET price = (SELECT 300) WHERE id = 300").await;
    let right = source.value("SELECT price::text FROM parts WHERE id = 300").await.unwrap();
    target.execute(&format!("UPDATE parts SET price = {right} WHERE id = 300")).await;

    // Nothing is left running: the next run has the folder, and pausing keeps `verify` from waiting in vain.
    let mut running = desk.start();
    desk.wait(&mut running);
    let said = desk.expect(0, &["verify"], &[]);
    assert!(!said.stdout.contains("catches up first"), "{said}");
    desk.expect(0, &["pause"], &["--reason", "lunch"]);
    desk.stop(running);
    let said = desk.expect(3, &["verify"], &[]);
    assert!(said.stderr.contains("paused") && said.stderr.contains("crossfade resume"), "{said}");

    // A sink that this log fills: what is missing since the replay ended comes first here too.
    let Some(server) = Postgres::shared_target(Version::V15) else { return };
    let other = server.create_database("second").await;
    desk.expect(0, &["resume"], &[]);
    let from = format!("{}\ntables = [\"public.*\"]", postgres(&source));
    let spec = second(&desk, &from, &postgres(&other), "[[table]]\nfrom = \"public.parts\"\nto = \"pieces\"\n");
    run(&desk, 0, &["replay", SPEC, "--from", "start", "--into", &spec]);
    source.execute(&work(3)).await;
    let said = run(&desk, 0, &["verify", &spec]);
    assert!(said.stdout.contains("catches up first") && said.stdout.contains("0 differences"), "{said}");
    let (left, right) =
        (crate::desk::rows(&source, ALL).await, crate::desk::rows(&other, "SELECT id, name, price FROM pieces").await);
    assert_same("pieces", &left, &right);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_is_built_on_a_copy_of_a_sqlite_file_and_what_is_no_copy_is_refused() {
    let desk = Desk::new();
    let (old, new, copy) = (desk.path("old.db"), desk.path("new.db"), desk.path("copy.db"));
    let source = make(&old);
    let from = format!("{}\ntables = [\"main.*\"]", sqlite(&old));
    desk.write_spec(&from, &sqlite(&new), "[log]\nsegment_bytes = \"8KiB\"\nretention = { bytes = \"16KiB\" }\n");
    let mut running = desk.start();
    desk.wait(&mut running);
    source.execute_batch(&work(1)).unwrap();
    desk.wait(&mut running);
    desk.expect(0, &["checkpoint"], &["copied"]);
    desk.stop(running);
    Connection::open(&new).unwrap().execute("VACUUM INTO ?1", [copy.display().to_string()]).unwrap();
    source.execute_batch(&work(2)).unwrap();
    desk.verify();

    // An empty sink is no copy; without --base a later place is refused.
    let spec = second(&desk, &from, &sqlite(&desk.path("empty.db")), "");
    let said = run(&desk, 3, &["replay", SPEC, "--from", "checkpoint:copied", "--into", &spec]);
    assert!(said.stderr.contains("--base"), "{said}");
    let said = run(&desk, 3, &["replay", SPEC, "--from", "checkpoint:copied", "--into", &spec, "--base"]);
    assert!(said.stderr.contains("holds no copy"), "{said}");

    // The copy says itself where it stands. Only what came since is applied: a row that nothing touched stays as it is.
    Connection::open(&copy).unwrap().execute_batch("UPDATE parts SET name = 'by hand' WHERE id = 20").unwrap();
    let spec = second(&desk, &from, &sqlite(&copy), "");
    run(&desk, 0, &["replay", SPEC, "--from", "checkpoint:copied", "--into", &spec, "--base"]);
    let wanted = sqlite_texts(&sqlite_reader(&old), "SELECT id, name, price FROM parts WHERE id <> 20");
    let found = sqlite_texts(&sqlite_reader(&copy), "SELECT id, name, price FROM parts WHERE id <> 20");
    assert_same("built on the copy", &wanted, &found);
    let by_hand = sqlite_texts(&sqlite_reader(&copy), "SELECT 1 FROM parts WHERE name = 'by hand'");
    assert_eq!(by_hand.count(), 1, "it was built on the copy, not anew");
    let said = run(&desk, 3, &["run", &spec]);
    assert!(said.stderr.contains("--follow"), "it has no source of its own: {said}");
    // Said again, it goes on; verified, it catches up and finds the one row.
    source.execute_batch(&work(3)).unwrap();
    run(&desk, 0, &["replay", SPEC, "--from", "checkpoint:copied", "--into", &spec, "--base"]);
    let said = run(&desk, 4, &["verify", &spec]);
    assert!(said.stdout.contains("1 differences"), "{said}");
    // Undone, the copy is what it was.
    run(&desk, 0, &["rollback", &spec, "--undo"]);
    let plain = "SELECT id, name, price FROM parts WHERE id BETWEEN 1000 AND 1150 OR id IN (20, 30)";
    let found = sqlite_texts(&sqlite_reader(&copy), plain);
    assert!(found.count() <= 4, "{found:?}");

    // Another source's copy, and one whose place the log has dropped.
    let (foreign, second_old) = (desk.path("foreign.db"), desk.path("second-old.db"));
    drop(make(&second_old));
    let name = desk.name.clone();
    let elsewhere = format!(
        "name = \"{name}\"\ndir = \"elsewhere\"\n[source]\n{}\ntables = [\"main.*\"]\n[sink]\n{}\n",
        sqlite(&second_old),
        sqlite(&foreign)
    );
    desk.crossfade.write("elsewhere.toml", &elsewhere);
    run(&desk, 0, &["run", "elsewhere.toml", "--until", "caught-up", "--quiet"]);
    std::fs::remove_dir_all(desk.path("crossfade-data").join(format!("{name}-second"))).unwrap();
    let spec = second(&desk, &from, &sqlite(&foreign), "");
    let said = run(&desk, 3, &["replay", SPEC, "--from", "checkpoint:copied", "--into", &spec, "--base"]);
    assert!(said.stderr.contains("another source"), "{said}");

    let aged = desk.path("aged.db");
    Connection::open(&new).unwrap().execute("VACUUM INTO ?1", [aged.display().to_string()]).unwrap();
    let mut running = desk.start();
    for round in 0..40u32 {
        source.execute_batch(&format!("UPDATE parts SET price = price + {round}")).unwrap();
        desk.wait(&mut running);
    }
    desk.stop(running);
    std::fs::remove_dir_all(desk.path("crossfade-data").join(format!("{name}-second"))).unwrap();
    let spec = second(&desk, &from, &sqlite(&aged), "");
    let said = run(&desk, 3, &["replay", SPEC, "--from", "checkpoint:copied", "--into", &spec, "--base"]);
    assert!(said.stderr.contains("trimmed away"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_is_built_on_a_copy_of_postgres_tables_that_were_right_at_a_checkpoint() {
    let Some((source, target)) = two_databases().await else { return };
    let Some(server) = Postgres::shared_target(Version::V15) else { return };
    source.execute(FILL).await;
    let desk = Desk::new();
    let from = format!("{}\ntables = [\"public.*\"]", postgres(&source));
    desk.write_spec(&from, &postgres(&target), "");
    let mut running = desk.start();
    desk.wait(&mut running);
    source.execute(&work(1)).await;
    desk.wait(&mut running);
    desk.expect(0, &["checkpoint"], &["copied"]);
    // The tables alone, as a dump of them would bring them.
    let copy = server.create_database("copy").await;
    copy.execute("CREATE TABLE parts (id integer PRIMARY KEY, name text NOT NULL, price integer)").await;
    for row in crate::desk::rows(&target, ALL).await.iter() {
        let cell = |at: usize| row[at].clone().unwrap();
        copy.execute(&format!("INSERT INTO parts VALUES ({}, '{}', {})", cell(0), cell(1), cell(2))).await;
    }
    copy.execute("UPDATE parts SET name = 'by hand' WHERE id = 20").await;
    source.execute(&work(2)).await;
    desk.wait(&mut running);
    let spec = second(&desk, &from, &postgres(&copy), "");
    run(&desk, 0, &["replay", SPEC, "--from", "checkpoint:copied", "--into", &spec, "--base"]);
    let (wanted, found) = (
        crate::desk::rows(&source, &format!("{ALL} WHERE id <> 20")).await,
        crate::desk::rows(&copy, &format!("{ALL} WHERE id <> 20")).await,
    );
    assert_same("built on the copy", &wanted, &found);
    assert_eq!(copy.value("SELECT name FROM parts WHERE id = 20").await.as_deref(), Some("by hand"));
    desk.stop(running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_in_another_schema_of_the_same_database_goes_on_from_where_it_was_taken() {
    let Some((source, target)) = two_databases().await else { return };
    source.execute(FILL).await;
    let desk = Desk::new();
    let from = format!("{}\ntables = [\"public.*\"]", postgres(&source));
    desk.write_spec(&from, &format!("{}\nschema = \"app_v2\"", postgres(&target)), "");
    let mut running = desk.start();
    desk.wait(&mut running);
    source.execute(&work(1)).await;
    desk.wait(&mut running);
    desk.expect(0, &["pause"], &["--reason", "copying"]);
    desk.expect(0, &["checkpoint"], &["copied"]);
    target
        .execute(
            "CREATE SCHEMA app_v3; CREATE TABLE app_v3.parts (LIKE app_v2.parts INCLUDING ALL);
             INSERT INTO app_v3.parts SELECT * FROM app_v2.parts; UPDATE app_v3.parts SET name = 'by hand' WHERE id = 20",
        )
        .await;
    desk.expect(0, &["resume"], &[]);
    // The first sink goes on, and its own word with it: what comes now is not in the copy.
    source.execute(&work(2)).await;
    desk.wait(&mut running);
    let spec = second(&desk, &from, &format!("{}\nschema = \"app_v3\"", postgres(&target)), "");
    run(&desk, 0, &["replay", SPEC, "--from", "checkpoint:copied", "--into", &spec, "--base"]);
    let (wanted, found) = (
        crate::desk::rows(&source, &format!("{ALL} WHERE id <> 20")).await,
        crate::desk::rows(&target, "SELECT id, name, price FROM app_v3.parts WHERE id <> 20").await,
    );
    assert_same("built on the copy beside", &wanted, &found);
    let by_hand = target.value("SELECT name FROM app_v3.parts WHERE id = 20").await;
    assert_eq!(by_hand.as_deref(), Some("by hand"), "it was built on the copy, not anew");
    desk.stop(running);
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_finds_planned_tables_that_the_source_dropped_or_calls_otherwise() {
    let Some((source, target)) = two_databases().await else { return };
    source.execute(FILL).await;
    source
        .execute(
            "CREATE TABLE passing (id integer PRIMARY KEY, name text); INSERT INTO passing VALUES (1, 'one'), (2, 'two');
             CREATE TABLE pieces (id integer PRIMARY KEY, part integer REFERENCES parts); INSERT INTO pieces VALUES (1, 1), (2, 2)",
        )
        .await;
    let desk = Desk::new();
    let tables = "tables = [\"public.pa*\", \"public.pieces\"]";
    desk.write_spec(&format!("{}\n{tables}", postgres(&source)), &postgres(&target), "");
    let mut running = desk.start();
    desk.wait(&mut running);
    desk.verify();

    // Outside the spec's patterns it is followed still, and compared still.
    source.execute("ALTER TABLE parts RENAME TO articles; UPDATE articles SET price = price + 1").await;
    desk.wait(&mut running);
    desk.verify();
    target.execute("UPDATE parts SET price = -1 WHERE id = 7").await;
    let report = desk.crossfade.json(&["verify", SPEC]);
    assert_eq!(report["differences"].as_u64(), Some(1), "{report}");
    target.execute("UPDATE parts SET price = 8 WHERE id = 7").await;
    desk.verify();

    // A drop does not come with the stream: what the target still has is said, and is too much.
    source.execute("DROP TABLE passing").await;
    let said = desk.expect(4, &["verify"], &[]);
    let told = "public.passing is no longer in the source; 2 of its rows are left in public.passing";
    assert!(said.stdout.contains(told) && said.stdout.contains("2 differences"), "{said}");
    target.execute("TRUNCATE passing").await;
    let report = desk.crossfade.json(&["verify", SPEC]);
    assert_eq!(report["differences"].as_u64(), Some(0), "{report}");
    assert_eq!(report["dropped"][0]["table"], "public.passing", "{report}");
    desk.verify();
    desk.stop(running);
}

fn kinds(listed: &serde_json::Value, kinds: &[&str]) -> Vec<String> {
    let is_wanted = |entry: &&serde_json::Value| kinds.contains(&entry["kind"].as_str().unwrap());
    listed.as_array().unwrap().iter().filter(is_wanted).map(ToString::to_string).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_shows_a_run_as_it_goes_and_a_rebuilt_one_says_the_same() {
    let desk = Desk::new();
    let (old, new) = (desk.path("old.db"), desk.path("new.db"));
    let source = make(&old);
    let from = format!("{}\ntables = [\"main.*\"]", sqlite(&old));
    desk.write_spec(&from, &sqlite(&new), "[log]\nsegment_bytes = \"8KiB\"\nretention = { bytes = \"16KiB\" }\n");
    let mut running = desk.start();
    desk.wait(&mut running);
    // While it runs, the cursors come to where the sink stands.
    for round in 1..4 {
        source.execute_batch(&work(round)).unwrap();
        desk.wait(&mut running);
        let status = desk.crossfade.json(&["status", SPEC]);
        let at = format!("Cut([Offset({})])", status["sink"]["cut"].as_str().unwrap());
        desk.until("the cursor in the state to follow", &mut running, async || {
            let cursors = kinds(&desk.crossfade.json(&["state", "ls", SPEC]), &["cursor"]);
            cursors.iter().any(|cursor| cursor.contains("deliver") && cursor.contains(&at))
        })
        .await;
    }
    // Killed, it is as recent as that; built anew, it says the same.
    running.kill();
    let before = kinds(&desk.crossfade.json(&["state", "ls", SPEC]), &["cursor"]);
    assert!(before.len() == 2, "{before:?}");
    let mut running = desk.start();
    desk.wait(&mut running);
    desk.stop(running);
    let all = ["cursor", "ingest-fold", "fold-marks", "table-fold", "chunk"];
    let before = kinds(&desk.crossfade.json(&["state", "ls", SPEC]), &all);
    desk.expect(0, &["state", "rebuild"], &[]);
    assert_eq!(before, kinds(&desk.crossfade.json(&["state", "ls", SPEC]), &all));

    // The copy is trimmed away from the log, and the state is lost: the next copy still counts on from the first.
    let mut running = desk.start();
    for round in 0..40u32 {
        source.execute_batch(&format!("UPDATE parts SET price = price + {round}")).unwrap();
        desk.wait(&mut running);
    }
    desk.stop(running);
    let said = desk
        .command(&["replay"], &["--from", "start", "--into", &second(&desk, &from, &sqlite(&desk.path("x.db")), "")]);
    assert!(said.code == Some(3) && said.stderr.contains("trimmed away"), "{said}");
    std::fs::remove_dir_all(desk.work().join("state")).unwrap();
    source
        .execute_batch(
            "CREATE TABLE extra (id integer PRIMARY KEY, name text); INSERT INTO extra VALUES (1, 'one'), (2, 'two')",
        )
        .unwrap();
    let mut running = desk.start();
    desk.wait(&mut running);
    desk.expect(0, &["resume"], &["--add"]);
    desk.until("the new table to be in", &mut running, async || {
        let reader = sqlite_reader(&new);
        let is_there = reader.prepare("SELECT 1 FROM extra").is_ok();
        is_there && sqlite_texts(&reader, "SELECT * FROM extra").count() == 2
    })
    .await;
    source.execute_batch("INSERT INTO extra VALUES (3, 'three'); UPDATE parts SET price = 0 WHERE id = 5").unwrap();
    desk.wait(&mut running);
    for sql in [ALL, "SELECT id, name FROM extra"] {
        assert_same(sql, &sqlite_texts(&sqlite_reader(&old), sql), &sqlite_texts(&sqlite_reader(&new), sql));
    }
    desk.stop(running);
}
