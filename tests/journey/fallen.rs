//! A gate takes a migration back by itself, while an application writes and the process is killed again and again: the target
//! is what it was before, the source has nothing of ours, and nothing begins anew before a person says so.

use crate::desk::{Desk, SPEC, Writer, postgres, rows, two_databases};
use crossfade_testkit::{
    compare::{Rows, assert_same},
    crossfade::Running,
    postgres::{Database, Postgres, Settings, Version},
};
use std::{fs, time::Duration};

/// Every object of a database that is not the system's, and what stands around it.
const OBJECTS: &str = "
SELECT 'relation', n.nspname || '.' || c.relname, c.relkind::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
UNION ALL SELECT 'schema', nspname, '' FROM pg_namespace WHERE nspname !~ '^pg_'
UNION ALL SELECT 'column', attrelid::regclass || '.' || attname, atttypid::regtype::text FROM pg_attribute
 WHERE attrelid > 16383 AND attnum > 0 AND NOT attisdropped AND attrelid::regclass::text !~ '^pg_'
UNION ALL SELECT 'type', n.nspname || '.' || typname, typtype::text FROM pg_type t JOIN pg_namespace n ON n.oid = typnamespace
 WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
UNION ALL SELECT 'constraint', conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace > 16383 OR connamespace = 'public'::regnamespace
UNION ALL SELECT 'trigger', tgrelid::regclass || '.' || tgname, tgenabled::text FROM pg_trigger
UNION ALL SELECT 'identity', oid::regclass::text, relreplident::text FROM pg_class WHERE oid > 16383 AND relkind = 'r'
UNION ALL SELECT 'publication', pubname, '' FROM pg_publication
UNION ALL SELECT 'slot', slot_name, '' FROM pg_replication_slots WHERE database = current_database()";

/// A tenth of what is read cannot be cast.
const GATES: &str = "
[[table]]
from = \"public.items\"
steps = [{ cast = \"amount\", to = \"integer\" }]
[gates]
error_rate = { max = \"2%\", then = \"rollback\" }
";

fn source_of(count: u32, bad: bool) -> String {
    let amount = if bad { "CASE WHEN n % 10 = 0 THEN 'none' ELSE n::text END" } else { "n::text" };
    format!(
        "CREATE TABLE items (id int PRIMARY KEY, amount text, note text);
         INSERT INTO items SELECT n, {amount}, repeat('x', 100) FROM generate_series(1, {count}) n;
         CREATE TABLE ticks (id int PRIMARY KEY, beat bigint); INSERT INTO ticks VALUES (1, 0);"
    )
}

fn work(number: u64) -> String {
    format!("UPDATE ticks SET beat = beat + 1; UPDATE items SET note = 'note {number}' WHERE id = {}", 1 + number % 9)
}

/// What the journal has been told, as its own text.
fn journal(desk: &Desk) -> String {
    let files = fs::read_dir(desk.work().join("journal")).unwrap();
    let mut text = String::new();
    let mut folders: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    while let Some(path) = folders.pop() {
        if path.is_dir() {
            folders.extend(fs::read_dir(path).unwrap().map(|file| file.unwrap().path()));
        } else {
            text.push_str(&String::from_utf8_lossy(&fs::read(path).unwrap()));
        }
    }
    text
}

/// Waits until the migration says this phase, as long as the run lives.
async fn until_phase(desk: &Desk, run: &mut Running, phase: &str) {
    desk.until(phase, run, async || desk.crossfade.json(&["status", SPEC])["phase"] == phase).await;
}

/// Kills it over and over, a little later each time, until it has come to its end; that must be this code.
fn to_the_end_through_kills(desk: &Desk, code: i32) -> String {
    for round in 0u64..60 {
        let mut run = desk.start();
        // The times are no condition: whatever a kill meets, the next one goes on from there.
        for _ in 0..round * 3 {
            if !run.is_running() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        if round >= 40 || !run.is_running() {
            let ended = run.wait();
            assert_eq!(ended.code, Some(code), "after {round} kills\n{ended}");
            return ended.stderr;
        }
        run.kill();
    }
    unreachable!("the last rounds are not killed")
}

/// Refused until a person has answered; `status` says why and what to do.
async fn stays_until_answered(desk: &Desk, target: &Database, before: &Rows) {
    let said = desk.expect(3, &["run"], &[]);
    assert!(said.stderr.contains("gate error_rate") && said.stderr.contains("crossfade resume"), "{said}");
    desk.expect(3, &["verify"], &[]);
    let status = desk.crossfade.json(&["status", SPEC]);
    assert_eq!(status["phase"], "wiped", "{status}");
    let (reason, remedy) = (status["reason"].as_str().unwrap(), status["remedy"].as_str().unwrap());
    assert!(reason.contains("rolled back by gate error_rate") && reason.contains("the limit is 2%"), "{reason}");
    assert!(remedy.contains("crossfade resume"), "{remedy}");
    assert_same("the target after a refused run", before, &rows(target, OBJECTS).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_takes_back_a_copy_under_way_and_is_killed_while_it_does() {
    let Some((source, target)) = two_databases().await else { return };
    source.execute(&source_of(150_000, true)).await;
    target.execute("CREATE TABLE others (id int PRIMARY KEY); INSERT INTO others VALUES (1), (2)").await;
    let (old, new) = (rows(&source, OBJECTS).await, rows(&target, OBJECTS).await);
    let desk = Desk::new();
    let from =
        format!("{}\ntables = [\"public.*\"]\nsnapshot = {{ workers = 1, chunk_rows = 5000 }}", postgres(&source));
    desk.write_spec(&from, &postgres(&target), GATES);
    let writer = Writer::start(&source, work);

    let mut running = desk.start();
    // Somebody reads what has been copied: the wipe waits for him, and is killed while it does.
    let reader = target.connect().await;
    desk.until("the target to be there", &mut running, async || {
        target.value("SELECT to_regclass('public.ticks')::text").await.is_some()
    })
    .await;
    reader.batch_execute("BEGIN; SELECT count(*) FROM ticks").await.unwrap();
    until_phase(&desk, &mut running, "wiping").await;
    let status = desk.crossfade.json(&["status", SPEC]);
    assert!(status["reason"].as_str().unwrap().contains("rolled back by gate error_rate"), "{status}");
    assert!(status["remedy"].as_str().unwrap().contains("crossfade run"), "{status}");
    running.kill();
    let said = journal(&desk);
    assert!(said.contains("gate-fell") && said.contains("\"quarantined\":") && !said.contains("caught-up"), "{said}");
    let refused = desk.expect(3, &["verify"], &[]);
    assert!(refused.stderr.contains("`crossfade run` completes"), "{refused}");
    reader.batch_execute("COMMIT").await.unwrap();

    let said = to_the_end_through_kills(&desk, 3);
    assert!(said.contains("rolled back by gate error_rate"), "{said}");
    writer.wait_for_more(10);
    assert_same("what is in the target", &new, &rows(&target, OBJECTS).await);
    assert_same("what is in the source", &old, &rows(&source, OBJECTS).await);
    assert_eq!(target.value("SELECT count(*)::text FROM others").await.as_deref(), Some("2"));
    stays_until_answered(&desk, &target, &new).await;

    // Mended and answered, it begins anew and comes to its end.
    source.execute("UPDATE items SET amount = '0' WHERE amount = 'none'").await;
    desk.expect(0, &["resume"], &[]);
    let mut running = desk.start();
    desk.wait(&mut running);
    writer.stop();
    desk.wait(&mut running);
    desk.verify();
    desk.stop(running);
    let (left, right) = ("SELECT id, amount::int, note FROM items", "SELECT id, amount, note FROM items");
    assert_same("items", &rows(&source, left).await, &rows(&target, right).await);
    assert_same("ticks", &rows(&source, "SELECT * FROM ticks").await, &rows(&target, "SELECT * FROM ticks").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_in_the_stream_puts_back_the_rows_of_others_before_it_drops_what_was_made() {
    let Some((source, target)) = two_databases().await else { return };
    source.execute(&source_of(3_000, false)).await;
    // The target has rows of its own under some of the keys, and under others.
    target
        .execute(
            "CREATE TABLE items (id int PRIMARY KEY, amount int, note text);
             INSERT INTO items SELECT n, -n, 'theirs ' || n FROM generate_series(2000, 5000) n",
        )
        .await;
    const THEIRS: &str = "SELECT * FROM items";
    let (old, new, theirs) = (rows(&source, OBJECTS).await, rows(&target, OBJECTS).await, rows(&target, THEIRS).await);
    let desk = Desk::new();
    let from = format!("{}\ntables = [\"public.*\"]", postgres(&source));
    desk.write_spec(&from, &format!("{}\nexisting = \"merge\"", postgres(&target)), GATES);
    let writer = Writer::start(&source, work);
    let mut running = desk.start();
    desk.wait(&mut running);
    until_phase(&desk, &mut running, "shadowing").await;

    // Somebody holds a row that must be put back: the undo waits, and is killed while it does.
    let holder = target.connect().await;
    holder.batch_execute("BEGIN; SELECT FROM items WHERE id = 2500 FOR UPDATE").await.unwrap();
    source.execute("INSERT INTO items SELECT n, 'none', 'bad' FROM generate_series(10000, 13000) n").await;
    until_phase(&desk, &mut running, "undoing").await;
    running.kill();
    holder.batch_execute("ROLLBACK").await.unwrap();
    // And somebody writes one meanwhile: it is his, and nothing is dropped that is known of it before he was asked.
    target.execute("UPDATE items SET note = 'mine now' WHERE id = 2600").await;
    to_the_end_through_kills(&desk, 4);
    let said = desk.expect(4, &["run"], &[]);
    assert!(said.stdout.contains("left alone") && said.stderr.contains("1 rows were left alone"), "{said}");
    assert_eq!(desk.crossfade.json(&["status", SPEC])["phase"], "undone");
    target.execute(&format!("UPDATE items SET note = '{}' WHERE id = 2600", "x".repeat(100))).await;

    to_the_end_through_kills(&desk, 3);
    writer.wait_for_more(10);
    assert_same("the rows of others", &theirs, &rows(&target, THEIRS).await);
    assert_same("what is in the target", &new, &rows(&target, OBJECTS).await);
    assert_same("what is in the source", &old, &rows(&source, OBJECTS).await);
    stays_until_answered(&desk, &target, &new).await;

    source.execute("DELETE FROM items WHERE amount = 'none'").await;
    desk.expect(0, &["resume"], &[]);
    let mut running = desk.start();
    desk.wait(&mut running);
    writer.stop();
    desk.wait(&mut running);
    let (left, right) =
        ("SELECT id, amount::int, note FROM items", "SELECT id, amount, note FROM items WHERE id <= 3000");
    assert_same("items", &rows(&source, left).await, &rows(&target, right).await);
    desk.stop(running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_whose_application_gets_slow_pauses_the_migration_until_it_is_resumed() {
    let settings = Settings::new().set("shared_preload_libraries", "pg_stat_statements");
    let Some(server) = Postgres::start(Version::V15, settings) else { return };
    let (source, target) = (server.create_database("source").await, server.create_database("target").await);
    source
        .execute(
            "CREATE EXTENSION pg_stat_statements;
             CREATE TABLE pace (ms int); INSERT INTO pace VALUES (10);
             CREATE TABLE ticks (id int PRIMARY KEY, beat bigint); INSERT INTO ticks VALUES (1, 0)",
        )
        .await;
    // What the application did before is what it is compared with.
    let writer = Writer::start(&source, |number| {
        format!("SELECT pg_sleep(ms / 1000.0) FROM pace; UPDATE ticks SET beat = {number}")
    });
    writer.wait_for_more(60);
    let desk = Desk::new();
    let from = format!("{}\ntables = [\"public.ticks\"]", postgres(&source));
    desk.write_spec(&from, &postgres(&target), "[gates]\nlatency = { max = \"+150%\", then = \"pause\" }\n");
    let said = desk.expect(0, &["check"], &[]);
    assert!(!said.stdout.contains("question of our own"), "{said}");
    let mut running = desk.start();
    desk.wait(&mut running);
    let said = journal(&desk);
    let (taken, copied) = (said.find("baseline-taken"), said.find("start-backfill"));
    assert!(taken.is_some() && taken < copied && said.contains("\"statements\""), "{said}");

    let latency = || {
        let status = desk.crossfade.json(&["status", SPEC]);
        let gates = status["gates"].as_array().unwrap().clone();
        (status, gates.into_iter().find(|gate| gate["gate"] == "latency"))
    };
    desk.until("the latency to be known", &mut running, async || {
        latency().1.is_some_and(|gate| gate["measured"] != "-" && gate["holds"] == true)
    })
    .await;
    source.execute("UPDATE pace SET ms = 300").await;
    desk.until("a pause", &mut running, async || latency().0["standing"] == "paused").await;
    let (status, gate) = latency();
    let reason = status["reason"].as_str().unwrap();
    assert!(reason.contains("gate latency") && reason.contains("the limit is +150%"), "{status}");
    assert_eq!(gate.unwrap()["holds"], false, "{status}");
    // It is reading that the source is slow by: that is held as well.
    desk.until("nothing to be read any more", &mut running, async || {
        let before = latency().0["log"]["end"].clone();
        writer.wait_for_more(5);
        latency().0["log"]["end"] == before
    })
    .await;

    source.execute("UPDATE pace SET ms = 10").await;
    desk.expect(0, &["resume"], &[]);
    desk.wait(&mut running);
    desk.until("the latency to be known again", &mut running, async || {
        latency().1.is_some_and(|gate| gate["measured"] != "-" && gate["holds"] == true)
    })
    .await;
    assert_eq!(latency().0["standing"], "running");
    writer.stop();
    desk.wait(&mut running);
    assert_same("ticks", &rows(&source, "SELECT * FROM ticks").await, &rows(&target, "SELECT * FROM ticks").await);
    desk.stop(running);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_statements_cannot_be_read_check_says_so_and_a_question_of_ours_is_judged() {
    let Some((source, target)) = two_databases().await else { return };
    source.execute("CREATE TABLE ticks (id int PRIMARY KEY, beat bigint); INSERT INTO ticks VALUES (1, 0)").await;
    let desk = Desk::new();
    let from = format!("{}\ntables = [\"public.ticks\"]", postgres(&source));
    desk.write_spec(&from, &postgres(&target), "[gates]\nlatency = { max = \"+10000%\" }\n");
    let said = desk.expect(0, &["check"], &[]);
    for word in ["the gate latency", "question of our own", "CREATE EXTENSION pg_stat_statements"] {
        assert!(said.stdout.contains(word), "{word}: {said}");
    }
    let mut running = desk.start();
    desk.wait(&mut running);
    assert!(journal(&desk).contains("\"probe\""));
    desk.until("the latency to be known", &mut running, async || {
        let status = desk.crossfade.json(&["status", SPEC]);
        status["gates"].as_array().unwrap().iter().any(|gate| gate["gate"] == "latency" && gate["measured"] != "-")
    })
    .await;
    assert_same("ticks", &rows(&source, "SELECT * FROM ticks").await, &rows(&target, "SELECT * FROM ticks").await);
    desk.stop(running);
}
