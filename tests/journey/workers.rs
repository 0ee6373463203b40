//! Transform workers over a real broker: killed, frozen longer than their group bears, added and taken away under live
//! writers; and what is refused. Built with the feature `kafka` (`make test-kafka`).

use crate::{
    desk::{Desk, SPEC, Writer, postgres, two_databases},
    is_soak,
    kafka::{log, prefix, source_of, topics},
    roles::{RULES, assert_equal, elsewhere, one, until, wait_both},
    shop::{SHOP, work},
};
use crossfade_testkit::{crossfade::Running, kafka::Kafka, postgres::Database, seeded};
use rand::Rng;
use std::{collections::BTreeMap, fs, time::Duration};

/// The keys of this table only ever count up.
const STEPS: &str = "
CREATE TABLE steps (id int PRIMARY KEY, n int NOT NULL, words text);
INSERT INTO steps SELECT n, 0, 'step' FROM generate_series(1, 40) n;";

const MASKED: &str = r#"
[[table]]
from  = "public.steps"
steps = [{ mask = "words", with = "stars" }]
"#;

/// Notes every write in the order in which it came.
const HISTORY: &str = "
CREATE TABLE history (at bigserial PRIMARY KEY, id int, n int);
CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO public.history (id, n) VALUES (NEW.id, NEW.n); RETURN NEW; END $$;
CREATE TRIGGER noted AFTER INSERT OR UPDATE ON steps FOR EACH ROW EXECUTE FUNCTION noted();
ALTER TABLE steps ENABLE ALWAYS TRIGGER noted;";

fn steps(number: u64) -> String {
    format!("{}; UPDATE steps SET n = n + 1 WHERE id % 7 = {}", work(number), number % 7)
}

async fn desk_with_workers(kafka: &Kafka, rules: &str) -> Option<(Desk, Database, Database)> {
    let (source, target) = two_databases().await?;
    source.execute(SHOP).await;
    source.execute(STEPS).await;
    let desk = Desk::new();
    desk.write_spec(&source_of(&source), &postgres(&target), &format!("{}{rules}", log_with_workers(kafka)));
    Some((desk, source, target))
}

fn log_with_workers(kafka: &Kafka) -> String {
    format!("{}partitions = 8\ntransform = \"workers\"\nworker_timeout = \"6s\"\n", log(kafka))
}

/// How many partitions each worker of this machine has; nothing while a process begins that is asked for it.
fn shares(desk: &Desk) -> BTreeMap<u64, usize> {
    let said = desk.command(&["status"], &["--json"]);
    let status: serde_json::Value = serde_json::from_str(&said.stdout).unwrap_or_default();
    let workers = status["workers"].as_array().cloned().unwrap_or_default();
    let share = |worker: &serde_json::Value| Some((worker["pid"].as_u64()?, worker["partitions"].as_object()?.len()));
    workers.iter().filter_map(share).collect()
}

/// How many partitions the workers have together, and how many workers have some.
fn shared_out(desk: &Desk) -> (usize, usize) {
    let shares = shares(desk);
    (shares.values().sum(), shares.values().filter(|share| **share > 0).count())
}

async fn until_shared(desk: &Desk, among: usize, workers: &mut [Running]) {
    until(&format!("8 partitions to be shared among {among}"), async || {
        assert_alive(workers);
        shared_out(desk) == (8, among)
    })
    .await;
}

fn assert_alive(workers: &mut [Running]) {
    for worker in workers {
        assert!(worker.is_running(), "a worker has ended\n{}", worker.stderr());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_are_killed_and_frozen_and_both_sides_end_equal_with_every_key_in_order() {
    let Some(kafka) = Kafka::shared() else { return };
    let Some((desk, source, target)) = desk_with_workers(kafka, &format!("{RULES}{MASKED}")).await else { return };
    let mut rng = seeded::seeded("kills of workers");
    let mut ingest = desk.start_role("ingest");
    let mut workers = vec![desk.start_role("transform"), desk.start_role("transform")];
    let mut deliver = desk.start_role("deliver");
    wait_both(&desk, &mut ingest, &mut deliver);
    target.execute(HISTORY).await;
    until_shared(&desk, 2, &mut workers).await;
    let writers = [Writer::start(&source, steps), Writer::start(&source, |n| steps(n + 1_000_000))];
    for round in 0..if is_soak() { 60 } else { 8 } {
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..900))).await;
        match round % 4 {
            3 => {
                deliver.kill();
                deliver = desk.start_role("deliver");
            }
            // Sometimes it is back before its group has missed it, sometimes another has all of it meanwhile.
            which => {
                workers.remove(which % 2).kill();
                if which == 2 {
                    until_shared(&desk, 1, &mut workers).await;
                }
                workers.push(desk.start_role("transform"));
            }
        }
        writers[0].wait_for_more(rng.random_range(1..10));
    }
    until_shared(&desk, 2, &mut workers).await;
    wait_both(&desk, &mut ingest, &mut deliver);

    // Longer than the group bears: another one has its partitions when it wakes.
    workers[0].freeze();
    until("the group to give all to the other one", async || {
        shares(&desk).get(&u64::from(workers[1].pid())) == Some(&8)
    })
    .await;
    wait_both(&desk, &mut ingest, &mut deliver);
    workers[0].thaw();
    desk.until_said("held this worker for dead", &mut workers[0]);
    until_shared(&desk, 2, &mut workers).await;
    writers[0].wait_for_more(20);

    // A third comes, and one goes as it should.
    workers.push(desk.start_role("transform"));
    until_shared(&desk, 3, &mut workers).await;
    desk.stop(workers.remove(0));
    until_shared(&desk, 2, &mut workers).await;
    assert_alive(&mut workers);
    writers[0].wait_for_more(20);
    writers.into_iter().for_each(Writer::stop);
    wait_both(&desk, &mut ingest, &mut deliver);

    assert_equal(&desk, &source, &target).await;
    let there = "SELECT string_agg(id || ':' || n, ' ' ORDER BY id) FROM steps WHERE words IN ('****', 'step')";
    assert_eq!(one(&source, there).await, one(&target, there).await);
    assert_eq!(one(&target, "SELECT count(*) FROM steps WHERE words = '****'").await, "40", "all are transformed");
    let back = "SELECT count(*) FROM (SELECT n, lag(n) OVER (PARTITION BY id ORDER BY at) before FROM history) h \
                WHERE n <= before";
    assert_eq!(one(&target, back).await, "0", "a key went back, or a change came twice");
    assert!(one(&target, "SELECT count(*) FROM history").await.parse::<u64>().unwrap() > 100);
    let status = desk.crossfade.json(&["status", SPEC]);
    assert!(status["made"].as_u64() > Some(0), "nothing came from the workers: {status}");
    desk.verify();
    let held = desk.crossfade.json(&["quarantine", "ls", SPEC]);
    assert_eq!(held.as_array().map(Vec::len), Some(0), "nothing may be in quarantine: {held}");
    for running in workers.into_iter().chain([deliver, ingest]) {
        desk.stop(running);
    }
    desk.expect(0, &["rollback"], &["--wipe", "--yes"]);
    assert!(!topics(kafka, &["--list"]).contains(&prefix(&desk)));
}

#[tokio::test(flavor = "multi_thread")]
async fn deliver_waits_for_workers_and_says_so_and_shapes_may_change_meanwhile() {
    let Some(kafka) = Kafka::shared() else { return };
    let Some((desk, source, target)) = desk_with_workers(kafka, &format!("{RULES}{MASKED}")).await else { return };
    // A worker that comes first waits for ingest.
    let mut worker = desk.start_role("transform");
    desk.until_said("waiting for it", &mut worker);
    let (mut ingest, mut deliver) = (desk.start_role("ingest"), desk.start_role("deliver"));
    wait_both(&desk, &mut ingest, &mut deliver);
    desk.stop(worker);
    let before = one(&target, "SELECT sum(n) FROM steps").await;
    source.execute("UPDATE steps SET n = n + 1").await;
    until("deliver to say what it waits for", async || {
        let said = desk.expect(0, &["status"], &[]);
        said.stdout.contains("has not been transformed")
    })
    .await;
    let status = desk.crossfade.json(&["status", SPEC]);
    assert_eq!(status["retrying"]["side"], "log", "{status}");
    assert_eq!(one(&target, "SELECT sum(n) FROM steps").await, before, "nobody has transformed it");
    // What deliver did not take in while nobody transformed comes in the new shape, and the old one.
    source.execute("ALTER TABLE steps ADD COLUMN more int; UPDATE steps SET more = id, n = n + 1").await;
    source.execute("ALTER TABLE steps ADD COLUMN most int DEFAULT 3; UPDATE steps SET most = id WHERE id < 9").await;
    source.execute("TRUNCATE orders; INSERT INTO orders VALUES (1, 5, 2, 'after')").await;
    let mut worker = desk.start_role("transform");
    wait_both(&desk, &mut ingest, &mut deliver);
    assert!(worker.is_running(), "{}", worker.stderr());
    let all = "SELECT string_agg(id || ':' || n || ':' || more || ':' || most, ' ' ORDER BY id) FROM steps";
    assert_eq!(one(&source, all).await, one(&target, all).await);
    assert_equal(&desk, &source, &target).await;

    // What the transforms cannot make, and what the target refuses, wait in quarantine as ever.
    desk.expect(0, &["checkpoint"], &["here"]);
    target.execute("ALTER TABLE steps ADD CONSTRAINT ours CHECK (n < 1000)").await;
    source.execute("UPDATE steps SET n = 1000 WHERE id = 3").await;
    wait_both(&desk, &mut ingest, &mut deliver);
    assert_eq!(desk.crossfade.json(&["quarantine", "ls", SPEC]).as_array().map(Vec::len), Some(1));
    target.execute("ALTER TABLE steps DROP CONSTRAINT ours").await;
    desk.expect(0, &["quarantine", "retry"], &["--all"]);
    target.execute("UPDATE steps SET words = 'damaged' WHERE id < 20").await;
    source.execute("UPDATE steps SET n = n + 1").await;
    wait_both(&desk, &mut ingest, &mut deliver);
    target.execute("UPDATE steps SET words = 'damaged' WHERE id < 20").await;
    desk.expect(0, &["replay"], &["--from", "checkpoint:here"]);
    assert_eq!(one(&target, "SELECT count(*) FROM steps WHERE words = '****'").await, "40");
    assert_eq!(one(&source, all).await, one(&target, all).await);
    desk.verify();
    for running in [worker, deliver, ingest] {
        desk.stop(running);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_transforms_is_settled_when_a_migration_begins() {
    let Some(kafka) = Kafka::shared() else { return };
    let Some((desk, source, _target)) = desk_with_workers(kafka, RULES).await else { return };
    let said = desk.expect(3, &["run"], &[]);
    assert!(said.stderr.contains("transform = \"workers\"") && said.stderr.contains("by roles"), "{said}");
    let with = fs::read_to_string(desk.path(SPEC)).unwrap();
    let without = with.replace("transform = \"workers\"\nworker_timeout = \"6s\"\n", "");
    let (mut ingest, mut deliver) = (desk.start_role("ingest"), desk.start_role("deliver"));
    let worker = desk.start_role("transform");
    wait_both(&desk, &mut ingest, &mut deliver);
    desk.stop(deliver);
    // On this machine, and on one that has nothing yet.
    desk.crossfade.write(SPEC, &without);
    let said = desk.expect(3, &["run"], &["--role", "deliver"]);
    assert!(said.stderr.contains("with transform workers"), "{said}");
    let said = desk.expect(2, &["run"], &["--role", "transform"]);
    assert!(said.stderr.contains("has no workers"), "{said}");
    let folder = tempfile::tempdir().unwrap();
    let there = elsewhere(&desk, folder.path());
    let said = there.run(&["run", SPEC, "--quiet", "--role", "deliver"]);
    assert!(said.code == Some(3) && said.stderr.contains("with transform workers"), "{said}");
    desk.stop(ingest);
    let said = desk.expect(3, &["run"], &["--role", "ingest"]);
    assert!(said.stderr.contains("with transform workers"), "{said}");
    desk.crossfade.write(SPEC, &with);
    for more in [&["--until", "caught-up"][..], &["--limit", "3"]] {
        let words: Vec<&str> = ["--role", "transform"].into_iter().chain(more.iter().copied()).collect();
        let said = desk.expect(2, &["run"], &words);
        assert!(said.stderr.contains("cannot be said to --role transform"), "{said}");
    }
    // A rollback is not begun under a worker.
    desk.expect(75, &["rollback"], &["--wipe", "--yes"]);
    desk.stop(worker);
    desk.expect(0, &["rollback"], &["--wipe", "--yes"]);

    // And the other way round.
    desk.crossfade.write(SPEC, &without);
    let (mut ingest, mut deliver) = (desk.start_role("ingest"), desk.start_role("deliver"));
    wait_both(&desk, &mut ingest, &mut deliver);
    desk.stop(deliver);
    desk.stop(ingest);
    desk.crossfade.write(SPEC, &with);
    for role in ["ingest", "deliver", "transform"] {
        let said = desk.expect(3, &["run"], &["--role", role]);
        assert!(said.stderr.contains("without transform workers"), "{said}");
    }
    drop(source);
}

/// Role, number of partitions, and what it waits for, of each process that `status` names.
fn processes(said: &str) -> Vec<(String, usize, String)> {
    let status: serde_json::Value = serde_json::from_str(said).unwrap_or_default();
    let text = |of: &serde_json::Value| of.as_str().unwrap_or_default().to_owned();
    let process = |process: &serde_json::Value| {
        let partitions = process["partitions"].as_object().map_or(0, serde_json::Map::len);
        (text(&process["role"]), partitions, text(&process["waiting"]))
    };
    status["processes"].as_array().into_iter().flatten().map(process).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_every_process_on_whatever_machine_it_is_asked() {
    let Some(kafka) = Kafka::shared() else { return };
    let Some((desk, _source, _target)) = desk_with_workers(kafka, &format!("{RULES}{MASKED}")).await else { return };
    let (mut ingest, mut deliver) = (desk.start_role("ingest"), desk.start_role("deliver"));
    let worker = desk.start_role("transform");
    wait_both(&desk, &mut ingest, &mut deliver);

    let folder = tempfile::tempdir().unwrap();
    let there = elsewhere(&desk, folder.path());
    let base = folder.path().join("crossfade-data").join(&desk.name);
    fs::create_dir_all(&base).unwrap();
    fs::copy(desk.work().join("secret"), base.join("secret")).unwrap();
    let other = there.spawn(&["run", SPEC, "--quiet", "--role", "transform"]);
    let asked = || [desk.command(&["status"], &["--json"]).stdout, there.run(&["status", SPEC, "--json"]).stdout];
    let roles = |said: &str| processes(said).into_iter().map(|(role, ..)| role).collect::<Vec<_>>();
    until("each machine to show all four", async || {
        asked().iter().all(|said| {
            let shared: usize = processes(said).iter().map(|(_, partitions, _)| partitions).sum();
            roles(said) == ["deliver", "ingest", "transform", "transform"] && shared == 8
        })
    })
    .await;
    // One that stands by says what it waits for.
    let second = there.spawn(&["run", SPEC, "--quiet", "--role", "deliver"]);
    until("the second deliver to be shown", async || {
        asked().iter().all(|said| {
            let stands_by = |(role, _, waits): &(String, usize, String)| role == "deliver" && waits.contains("session");
            roles(said).len() == 5 && processes(said).iter().any(stands_by)
        })
    })
    .await;
    let said = there.run(&["status", SPEC]);
    assert!(said.stdout.contains("ingest: process") && said.stdout.contains("transform: process"), "{said}");
    // One that ends takes its word back.
    for running in [other, second] {
        desk.stop(running);
    }
    until("those that have ended to be gone", async || {
        asked().iter().all(|said| roles(said) == ["deliver", "ingest", "transform"])
    })
    .await;
    for running in [worker, deliver, ingest] {
        desk.stop(running);
    }
}
