//! One migration as two processes over a real broker: `--role ingest` and `--role deliver`, killed in turn, started in any
//! order, stopped for long, and begun twice. Built with the feature `kafka` (`make test-kafka`).

use crate::{
    desk::{Desk, SPEC, Writer, assert_same_tables, postgres, two_databases},
    is_soak,
    kafka::{log, prefix, source_of, topics},
    shapes::{Mapping, Shape, assert_same_through},
    shop::{SHOP, TABLES, work},
};
use crossfade_testkit::{
    crossfade::{Crossfade, Running},
    kafka::Kafka,
    postgres::Database,
    seeded,
    wait::GENEROUS,
};
use rand::Rng;
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

/// Keys that only one secret gives, a column under another name, and a table too.
pub(crate) const RULES: &str = r#"
[keys.default]
make = "uuid-v4"

[rekey]
tables = ["public.people"]
with   = "default"

[[table]]
from  = "public.orders"
to    = "purchases"
steps = [{ rename = "note", to = "remark" }]
"#;

const PEOPLE: Shape = Shape { table: "people", columns: &["id", "name", "note"], keys: &[("id", "people")] };

/// A desk with a shop, to be moved by two processes.
async fn desk_of_two(kafka: &Kafka, rules: &str) -> Option<(Desk, Database, Database)> {
    let (source, target) = two_databases().await?;
    source.execute(SHOP).await;
    let desk = Desk::new();
    desk.write_spec(&source_of(&source), &postgres(&target), &format!("{}{rules}", log(kafka)));
    Some((desk, source, target))
}

/// `crossfade wait --caught-up`, as long as both live.
pub(crate) fn wait_both(desk: &Desk, ingest: &mut Running, deliver: &mut Running) {
    let waited = desk.command(&["wait"], &["--caught-up", "--timeout", "240s"]);
    assert!(
        waited.code == Some(0) && ingest.is_running() && deliver.is_running(),
        "they do not catch up\n{waited}\n--- ingest says\n{}\n--- deliver says\n{}\n--- status\n{}",
        ingest.stderr(),
        deliver.stderr(),
        desk.command(&["status"], &[])
    );
}

pub(crate) async fn until(what: &str, mut reached: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !reached().await {
        assert!(began.elapsed() < GENEROUS, "in vain waited for: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) async fn one(database: &Database, sql: &str) -> String {
    database.value(sql).await.unwrap_or_default()
}

/// Both sides, by the tests' own means.
pub(crate) async fn assert_equal(desk: &Desk, source: &Database, target: &Database) {
    let mapping = Mapping::parse(&desk.expect(0, &["mapping", "export"], &[]).stdout);
    assert_same_through(&mapping, source, target, &[PEOPLE]).await;
    let there = crate::desk::rows(target, "SELECT id, person, total, remark FROM purchases").await;
    let orders = crate::desk::rows(source, "SELECT id, person, total, note FROM orders").await;
    let wanted = orders
        .iter()
        .map(|row| {
            let mut row = row.clone();
            row[1] = row[1].as_deref().map(|person| mapping.new_key("people", person).to_owned());
            row
        })
        .collect();
    crossfade_testkit::compare::assert_same("purchases", &wanted, &there);
}

#[tokio::test(flavor = "multi_thread")]
async fn ingest_and_deliver_are_killed_in_turn_and_both_sides_end_equal() {
    let Some(kafka) = Kafka::shared() else { return };
    let Some((desk, source, target)) = desk_of_two(kafka, RULES).await else { return };
    let mut rng = seeded::seeded("kills of ingest and deliver");

    // Deliver comes first, and has nothing to begin from.
    let mut deliver = desk.start_role("deliver");
    desk.until_said("waiting for it", &mut deliver);
    let said = desk.expect(0, &["status"], &[]);
    assert!(said.stdout.contains("deliver") && said.stdout.contains("ingest has not begun"), "{said}");
    let writer = Writer::start(&source, work);
    let mut ingest = desk.start_role("ingest");
    desk.until("deliver has begun", &mut deliver, async || desk.work().join("deliver/control.sock").exists()).await;
    for round in 0..if is_soak() { 60 } else { 12 } {
        // The first ones in the middle of the copy.
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..700))).await;
        match round % 4 {
            0 => {
                deliver.kill();
                deliver = desk.start_role("deliver");
            }
            1 => {
                ingest.kill();
                ingest = desk.start_role("ingest");
            }
            // Both, and started again in either order.
            both => {
                ingest.kill();
                deliver.kill();
                writer.wait_for_more(rng.random_range(1..20));
                if both == 2 {
                    deliver = desk.start_role("deliver");
                    ingest = desk.start_role("ingest");
                } else {
                    ingest = desk.start_role("ingest");
                    deliver = desk.start_role("deliver");
                }
            }
        }
    }
    writer.wait_for_more(20);
    wait_both(&desk, &mut ingest, &mut deliver);
    desk.verify();
    writer.wait_for_more(20);
    writer.stop();
    wait_both(&desk, &mut ingest, &mut deliver);
    assert_equal(&desk, &source, &target).await;
    let held = desk.crossfade.json(&["quarantine", "ls", SPEC]);
    assert_eq!(held.as_array().map(Vec::len), Some(0), "nothing may be in quarantine: {held}");

    desk.stop(ingest);
    desk.stop(deliver);
    let said = desk.expect(3, &["verify"], &[]);
    assert!(said.stderr.contains("is not running"), "{said}");
    desk.expect(0, &["log", "verify"], &[]);
    let said = desk.expect(3, &["run"], &[]);
    assert!(said.stderr.contains("was begun by roles"), "{said}");
    desk.expect(0, &["rollback"], &["--wipe", "--yes"]);
    assert!(!topics(kafka, &["--list"]).contains(&prefix(&desk)));
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
    assert_eq!(one(&source, slots).await, "0");
    // And it can begin anew.
    let (mut ingest, mut deliver) = (desk.start_role("ingest"), desk.start_role("deliver"));
    wait_both(&desk, &mut ingest, &mut deliver);
    assert_equal(&desk, &source, &target).await;
    desk.stop(deliver);
    desk.stop(ingest);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_concerns_the_sink_is_asked_of_deliver_and_what_only_one_process_can_do_is_refused() {
    let Some(kafka) = Kafka::shared() else { return };
    let Some((desk, source, target)) = desk_of_two(kafka, "").await else { return };
    let mut ingest = desk.start_role("ingest");
    desk.until("ingest has begun", &mut ingest, async || desk.work().join("ingest/control.sock").exists()).await;
    // Nobody delivers yet on this machine: so it is ingest that answers, and it cannot do what needs the sink.
    let status = desk.crossfade.json(&["status", SPEC]);
    assert_eq!(status["role"], "ingest", "{status}");
    for words in
        [&["pause"][..], &["resume"], &["wait"], &["checkpoint"], &["replay"], &["quarantine", "retry"], &["rollback"]]
    {
        let more: &[&str] = match words[words.len() - 1] {
            "wait" => &["--caught-up", "--timeout", "1s"],
            "checkpoint" => &["here"],
            "replay" => &["--from", "start"],
            "retry" => &["--all"],
            "rollback" => &["--wipe", "--yes"],
            _ => &[],
        };
        let said = desk.expect(3, words, more);
        assert!(said.stderr.contains("concerns the sink") && said.stderr.contains("--role deliver"), "{said}");
    }

    let mut deliver = desk.start_role("deliver");
    let writer = Writer::start(&source, work);
    wait_both(&desk, &mut ingest, &mut deliver);
    let status = desk.crossfade.json(&["status", SPEC]);
    assert_eq!((&status["role"], &status["beside"]["role"]), (&"deliver".into(), &"ingest".into()), "{status}");
    assert_eq!((&status["phase"], &status["conserved"]), (&"shadowing".into(), &true.into()), "{status}");
    let said = desk.expect(0, &["status"], &[]);
    assert!(said.stdout.contains("entries of the log") && said.stdout.contains("read into the log"), "{said}");
    desk.verify();

    desk.expect(0, &["checkpoint"], &["first"]);
    desk.expect(0, &["pause"], &["--reason", "to see"]);
    let before = desk.crossfade.json(&["status", SPEC]);
    assert_eq!(before["standing"], "paused", "{before}");
    writer.wait_for_more(40);
    // What comes meanwhile is in the topics, and is told as lag by both.
    until("the lag to be seen", async || {
        let status = desk.crossfade.json(&["status", SPEC]);
        status["lag"]["events"].as_u64() > Some(40) && status["beside"]["lag"]["events"].as_u64() > Some(40)
    })
    .await;
    desk.expect(0, &["resume"], &[]);
    wait_both(&desk, &mut ingest, &mut deliver);
    target.execute("UPDATE people SET name = 'damaged' WHERE id % 3 = 0").await;
    source.execute("UPDATE people SET note = 'touched' WHERE id % 3 = 0").await;
    wait_both(&desk, &mut ingest, &mut deliver);
    desk.expect(0, &["replay"], &["--from", "checkpoint:first"]);
    writer.stop();
    wait_both(&desk, &mut ingest, &mut deliver);
    assert_same_tables(&source, &target, &TABLES).await;
    until("the lag to be gone", async || {
        let status = desk.crossfade.json(&["status", SPEC]);
        status["lag"]["events"] == 0
    })
    .await;

    // A change that the target refuses waits, and goes in again, while both run.
    target.execute("ALTER TABLE people ADD CONSTRAINT ours CHECK (note <> 'bad')").await;
    source.execute("INSERT INTO people VALUES (-1, 'held', 'bad')").await;
    wait_both(&desk, &mut ingest, &mut deliver);
    assert_eq!(desk.crossfade.json(&["quarantine", "ls", SPEC]).as_array().map(Vec::len), Some(1));
    target.execute("ALTER TABLE people DROP CONSTRAINT ours").await;
    desk.expect(0, &["quarantine", "retry"], &["--all"]);
    // The shape changes on the way.
    source.execute("ALTER TABLE people ADD COLUMN more int; UPDATE people SET more = id WHERE id < 100").await;
    wait_both(&desk, &mut ingest, &mut deliver);
    assert_same_tables(&source, &target, &TABLES).await;

    let said = desk.expect(3, &["resume"], &["--add"]);
    assert!(said.stderr.contains("resume --add") && said.stderr.contains("not built"), "{said}");
    for role in ["ingest", "deliver"] {
        desk.expect(75, &["run"], &["--role", role]);
    }
    desk.expect(3, &["run"], &[]);
    desk.expect(0, &["state", "ls"], &[]);
    desk.expect(0, &["log", "ls"], &[]);
    desk.stop(deliver);
    // With deliver at rest its folder answers, and the log is still there to heal from.
    desk.expect(0, &["quarantine", "ls"], &[]);
    desk.expect(0, &["replay"], &["--from", "checkpoint:first"]);
    desk.expect(0, &["state", "rebuild"], &[]);
    desk.stop(ingest);
    let mut deliver = desk.start_role("deliver");
    let mut ingest = desk.start_role("ingest");
    wait_both(&desk, &mut ingest, &mut deliver);
    assert_same_tables(&source, &target, &TABLES).await;
    desk.stop(ingest);
    desk.stop(deliver);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_deliver_is_away_the_source_keeps_no_more_of_its_wal() {
    let Some(kafka) = Kafka::shared() else { return };
    let Some((desk, source, target)) = desk_of_two(kafka, "").await else { return };
    let (mut ingest, mut deliver) = (desk.start_role("ingest"), desk.start_role("deliver"));
    wait_both(&desk, &mut ingest, &mut deliver);
    let before = one(&target, "SELECT count(*) FROM orders WHERE note = 'meanwhile'").await;
    deliver.kill();
    for _ in 0..20 {
        source.execute("UPDATE orders SET note = 'meanwhile', total = total + 1").await;
    }
    let written = one(&source, "SELECT pg_current_wal_lsn()").await;
    let confirmed = format!(
        "SELECT bool_and(confirmed_flush_lsn >= '{written}' AND restart_lsn IS NOT NULL) FROM pg_replication_slots \
         WHERE database = current_database()"
    );
    desk.until("the slot is confirmed past all of it", &mut ingest, async || one(&source, &confirmed).await == "t")
        .await;
    assert_eq!(one(&target, "SELECT count(*) FROM orders WHERE note = 'meanwhile'").await, before, "nobody delivered");
    let status = desk.crossfade.json(&["status", SPEC]);
    let lag = status["beside"]["lag"]["events"].as_u64();
    assert!(lag >= Some(120_000), "ingest sees how far deliver is behind: {status}");
    let mut deliver = desk.start_role("deliver");
    wait_both(&desk, &mut ingest, &mut deliver);
    assert_same_tables(&source, &target, &TABLES).await;
    desk.stop(ingest);
    desk.stop(deliver);
}

/// Another machine: the same spec in a folder of its own.
pub(crate) fn elsewhere(desk: &Desk, folder: &Path) -> Crossfade {
    let there = Crossfade::at(folder);
    there.write(SPEC, &fs::read_to_string(desk.path(SPEC)).unwrap());
    there
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_deliver_on_another_machine_waits_and_two_never_write() {
    let Some(kafka) = Kafka::shared() else { return };
    let Some((desk, source, target)) = desk_of_two(kafka, RULES).await else { return };
    let (mut ingest, mut first) = (desk.start_role("ingest"), desk.start_role("deliver"));
    let writer = Writer::start(&source, work);
    wait_both(&desk, &mut ingest, &mut first);

    let folder = tempfile::tempdir().unwrap();
    let there = elsewhere(&desk, folder.path());
    let base = folder.path().join("crossfade-data").join(&desk.name);
    let run = |role: &str| there.run(&["run", SPEC, "--quiet", "--role", role]);
    // Keys made with another secret would be other keys: it must be brought there.
    let said = run("deliver");
    assert_eq!(said.code, Some(3), "{said}");
    assert!(said.stderr.contains("copy the file `secret`"), "{said}");
    fs::write(base.join("secret"), [7; 32]).unwrap();
    let said = run("deliver");
    assert!(said.code == Some(3) && said.stderr.contains("another secret"), "{said}");
    fs::copy(desk.work().join("secret"), base.join("secret")).unwrap();
    // What was refused has written nothing that another spec would not be refused by.
    let text = fs::read_to_string(desk.path(SPEC)).unwrap();
    there.write(SPEC, &text.replace("remark", "words"));
    let said = run("deliver");
    assert!(said.code == Some(3) && said.stderr.contains("says something else"), "{said}");
    there.write(SPEC, &text);
    assert!(first.is_running(), "whoever was refused has disturbed nobody");

    // A second one waits, and writes nothing while the first one lives.
    let mut second = there.spawn(&["run", SPEC, "--quiet", "--role", "deliver"]);
    until("the second to say that it waits", async || {
        assert!(second.is_running(), "{}", second.stderr());
        second.stderr().contains("another session writes for this migration")
    })
    .await;
    let epoch = "SELECT epoch FROM crossfade.positions WHERE worker = 0";
    let of_the_first = one(&target, epoch).await;
    writer.wait_for_more(20);
    wait_both(&desk, &mut ingest, &mut first);
    assert_eq!(one(&target, epoch).await, of_the_first, "the second has written");
    // A second ingest elsewhere shuts nobody out: where a deliver is, and where nobody is.
    let said = run("ingest");
    assert!(said.code == Some(3) && said.stderr.contains("has its folder elsewhere"), "{said}");
    let third = tempfile::tempdir().unwrap();
    let said = elsewhere(&desk, third.path()).run(&["run", SPEC, "--quiet", "--role", "ingest"]);
    assert!(said.code == Some(3) && said.stderr.contains("another migration"), "{said}");

    // Their sessions break until the second is the one that comes in; from then on the first is refused, for good.
    until("the second to be let in", async || {
        let others = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                      WHERE datname = current_database() AND pid <> pg_backend_pid()";
        let _ = target.value(others).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        one(&target, epoch).await != of_the_first
    })
    .await;
    writer.wait_for_more(20);
    assert!(second.is_running(), "{}", second.stderr());
    second.kill();
    let ended = first.wait();
    assert_eq!(ended.code, Some(3), "{ended}");
    assert!(ended.stderr.contains("a later run has taken the target"), "{ended}");
    let second = there.spawn(&["run", SPEC, "--quiet", "--role", "deliver"]);
    writer.wait_for_more(20);
    let waited = there.run(&["wait", SPEC, "--caught-up", "--timeout", "240s"]);
    assert_eq!(waited.code, Some(0), "{waited}\n{}", second.stderr());
    let said = there.succeed(&["verify", SPEC]);
    assert!(said.stdout.contains("0 differences"), "{said}");
    let status = there.json(&["status", SPEC]);
    assert_eq!((&status["role"], &status["beside"]), (&"deliver".into(), &serde_json::Value::Null), "{status}");

    // Back again: it stands by until the other one ends.
    let mut first = desk.start_role("deliver");
    desk.until_said("another session writes for this migration", &mut first);
    second.kill();
    writer.wait_for_more(20);
    writer.stop();
    wait_both(&desk, &mut ingest, &mut first);
    assert_equal(&desk, &source, &target).await;
    desk.stop(first);
    desk.stop(ingest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_one_process_began_is_not_continued_by_two() {
    let Some(kafka) = Kafka::shared() else { return };
    let Some((desk, source, target)) = desk_of_two(kafka, "").await else { return };
    let mut run = desk.start();
    desk.wait(&mut run);
    desk.expect(75, &["run"], &["--role", "deliver"]);
    desk.stop(run);
    for role in ["ingest", "deliver"] {
        let said = desk.expect(3, &["run"], &["--role", role]);
        assert!(said.stderr.contains("was begun by one process"), "{said}");
    }
    source.execute("UPDATE people SET note = 'still whole'").await;
    let mut run = desk.start();
    desk.wait(&mut run);
    assert_same_tables(&source, &target, &TABLES).await;
    desk.stop(run);
}
