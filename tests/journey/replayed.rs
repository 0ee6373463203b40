//! A second sink that is filled from the first one's log while everybody goes on writing.

use crate::{
    desk::{Desk, SPEC, Writer, assert_same_tables, postgres, rows, two_databases},
    shop::{SHOP, TABLES, work},
};
use crossfade_testkit::{
    compare::assert_same,
    crossfade::Finished,
    postgres::{Postgres, Version},
};
use std::fs;

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

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_into_another_sink_follows_a_live_source_and_both_sinks_end_equal() {
    let Some((source, target)) = two_databases().await else { return };
    let Some(server) = Postgres::shared_target(Version::V15) else { return };
    let other = server.create_database("replayed").await;
    source.execute(SHOP).await;
    let desk = Desk::new();
    let from = format!("{}\ntables = [\"public.*\"]", postgres(&source));
    desk.write_spec(&from, &postgres(&target), "");
    let mut migration = desk.start();
    let writer = Writer::start(&source, work);
    desk.wait(&mut migration);
    let spec = second(
        &desk,
        &from,
        &postgres(&other),
        "[[table]]\nfrom = \"public.people\"\nto = \"persons\"\nsteps = [{ rename = \"name\", to = \"full_name\" }]\n",
    );
    let mut replay = desk.crossfade.spawn(&["replay", SPEC, "--from", "start", "--into", &spec, "--follow"]);
    writer.wait_for_more(60);
    // Killed while it follows, it goes on where it was; a change of shape comes to it as to the first one.
    replay = {
        replay.kill();
        desk.crossfade.spawn(&["replay", SPEC, "--from", "start", "--into", &spec, "--follow"])
    };
    source.execute("ALTER TABLE orders ADD COLUMN shop int NOT NULL DEFAULT 7").await;
    writer.wait_for_more(60);
    // A table is copied again: the replay follows through the whole of it.
    source.execute("ALTER TABLE orders ALTER total TYPE numeric(14,4) USING total * 1.5").await;
    writer.wait_for_more(60);
    writer.stop();
    source.execute("INSERT INTO people VALUES (-1, 'the last one', NULL)").await;
    desk.wait(&mut migration);
    desk.until("the replay to have the last row", &mut replay, async || {
        let last = "SELECT CASE WHEN to_regclass('public.persons') IS NULL THEN NULL ELSE \
                    (xpath('/row/n/text()', query_to_xml('SELECT count(*) AS n FROM public.persons WHERE id = -1', false, true, '')))[1]::text END";
        other.value(last).await.as_deref() == Some("1")
    })
    .await;
    replay.interrupt();
    let ended = replay.wait();
    assert_eq!(ended.code, Some(0), "{ended}");
    assert!(ended.stdout.contains("replayed the log"), "{ended}");

    assert_same_tables(&source, &target, &TABLES).await;
    for (there, here) in [
        ("SELECT * FROM orders", "SELECT * FROM orders"),
        ("SELECT id, full_name, note FROM persons", "SELECT id, name, note FROM people"),
    ] {
        assert_same(there, &rows(&source, here).await, &rows(&other, there).await);
    }
    let said = run(&desk, 0, &["verify", &spec]);
    assert!(said.stdout.contains("0 differences"), "{said}");
    desk.stop(migration);
    // Once more, without following: there is nothing left to do, and it says where it stands.
    let said = run(&desk, 0, &["replay", SPEC, "--from", "start", "--into", &spec, "--json"]);
    let said: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!((said["complete"].as_bool(), &said["upto"]), (Some(true), &said["end"]), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_in_quarantine_goes_in_under_the_names_of_now_and_an_undo_knows_them_too() {
    let Some((source, target)) = two_databases().await else { return };
    source.execute("CREATE TABLE items (id int PRIMARY KEY, a text, b text); INSERT INTO items SELECT n, 'a' || n, 'b' || n FROM generate_series(1, 50) n").await;
    // The table was there, and holds a row of somebody else.
    target.execute("CREATE TABLE items (id int PRIMARY KEY, a text, b text, CONSTRAINT small CHECK (id < 1000)); INSERT INTO items VALUES (900, 'theirs', 'x'), (7, 'old a', 'old b')").await;
    let desk = Desk::new();
    let sink = format!("{}\nexisting = \"merge\"", postgres(&target));
    desk.write_spec(&format!("{}\ntables = [\"public.*\"]", postgres(&source)), &sink, "");
    let mut migration = desk.start();
    desk.wait(&mut migration);
    source.execute("INSERT INTO items VALUES (1001, 'A', 'B')").await;
    desk.wait(&mut migration);
    // Two columns exchange their names.
    source.execute("BEGIN; ALTER TABLE items RENAME a TO x; ALTER TABLE items RENAME b TO a; ALTER TABLE items RENAME x TO b; COMMIT; INSERT INTO items (id, a, b) VALUES (60, 'new a', 'new b')").await;
    desk.wait(&mut migration);
    assert_eq!(target.value("SELECT a || ' ' || b FROM items WHERE id = 5").await.as_deref(), Some("b5 a5"));
    target.execute("ALTER TABLE items DROP CONSTRAINT small").await;
    let columns = "SELECT string_agg(attname, ',' ORDER BY attname) FROM pg_attribute WHERE attrelid = 'public.items'::regclass AND attnum > 0 AND NOT attisdropped";
    let said = desk.expect(0, &["quarantine", "retry"], &["--all"]);
    assert!(said.stdout.starts_with("1 applied"), "{said}");
    assert_eq!(target.value("SELECT a || ' ' || b FROM items WHERE id = 1001").await.as_deref(), Some("B A"));
    assert_eq!(target.value(columns).await.as_deref(), Some("a,b,id"));
    desk.stop(migration);
    let said = desk.expect(0, &["rollback"], &["--undo"]);
    assert!(said.stdout.contains("rows put back"), "{said}");
    assert_eq!(target.value(columns).await.as_deref(), Some("a,b,id"));
    assert_eq!(target.value("SELECT string_agg(id::text, ',' ORDER BY id) FROM items").await.as_deref(), Some("7,900"));
    assert_eq!(target.value("SELECT a || ' ' || b FROM items WHERE id = 7").await.as_deref(), Some("old b old a"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wipe_that_was_ended_just_before_its_last_word_can_be_ended_later() {
    let Some((source, target)) = two_databases().await else { return };
    source.execute("CREATE TABLE items (id int PRIMARY KEY)").await;
    let desk = Desk::new();
    desk.write_spec(&format!("{}\ntables = [\"public.*\"]", postgres(&source)), &postgres(&target), "");
    let mut migration = desk.start();
    desk.wait(&mut migration);
    desk.stop(migration);
    // The journal of a wipe that has begun, with nothing else left of the migration.
    let plan = desk.work().join("plan.json");
    let kept = fs::read(&plan).unwrap();
    fs::write(&plan, "{").unwrap();
    assert_ne!(desk.command(&["rollback"], &["--wipe", "--yes"]).code, Some(0));
    fs::write(&plan, kept).unwrap();
    target.execute("CREATE TABLE theirs (id int); CREATE VIEW in_the_way AS SELECT * FROM items").await;
    desk.expect(3, &["rollback"], &["--wipe", "--yes"]);
    target.execute("DROP VIEW in_the_way; DROP TABLE items; DROP SCHEMA crossfade CASCADE").await;
    fs::remove_file(&plan).unwrap();
    let said = desk.expect(3, &["run"], &["--quiet"]);
    assert!(said.stderr.contains("run the same `crossfade rollback` again"), "{said}");
    desk.expect(0, &["rollback"], &["--wipe", "--yes"]);
    // The log is gone with the rest, and with the next run everything begins anew.
    assert!(!desk.work().join("log").exists());
}
