//! Several delivers share the stream of one migration over a real broker: killed, frozen longer than their group bears, added
//! and taken away under live writers; what one of them alone must do; and what is not shared. Built with the feature
//! `kafka` (`make test-kafka`).

use crate::{
    desk::{Desk, SPEC, Writer, assert_same_tables, postgres, two_databases},
    is_soak,
    kafka::{log, source_of},
    roles::{RULES, assert_equal, elsewhere, one, until, wait_both},
    shop::{SHOP, work},
};
use crossfade_testkit::{
    crossfade::{Crossfade, Running},
    kafka::Kafka,
    postgres::Database,
    seeded,
    wait::{GENEROUS, wait_until},
};
use rand::Rng;
use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// The keys of `steps` only ever count up. Rows of `long` change their keys, and keep what the source does not send again.
/// In `names` what one row gives up another one takes.
const MORE: &str = "
CREATE TABLE steps (id int PRIMARY KEY, n int NOT NULL, words text);
INSERT INTO steps SELECT n, 0, 'step' FROM generate_series(1, 40) n;
CREATE TABLE long (id int PRIMARY KEY, n int NOT NULL, body text);
ALTER TABLE long ALTER body SET STORAGE EXTERNAL;
INSERT INTO long SELECT n, 0, repeat(n::text, 3000) FROM generate_series(1, 30) n;
CREATE TABLE names (id int PRIMARY KEY, name text UNIQUE);
INSERT INTO names SELECT n, 'name ' || n FROM generate_series(1, 20) n;";

/// Notes every write in the order in which it came.
const HISTORY: &str = "
CREATE TABLE history (at bigserial PRIMARY KEY, id int, n int, by int DEFAULT pg_backend_pid());
CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO public.history (id, n) VALUES (NEW.id, NEW.n); RETURN NEW; END $$;
CREATE TRIGGER noted AFTER INSERT OR UPDATE ON steps FOR EACH ROW EXECUTE FUNCTION noted();
ALTER TABLE steps ENABLE ALWAYS TRIGGER noted;";

const SAME: [&str; 3] = ["steps", "long", "names"];

fn steps(number: u64) -> String {
    let row = 1 + number / 3 % 30;
    let rare = match number % 800 {
        // A row takes another key, and a large value along that nobody sends; then another row has the key it had.
        7 => format!("UPDATE long SET id = {}, n = n + 1 WHERE id = {row}", 10_000 + number),
        8..=100 => format!("UPDATE long SET n = n + 1 WHERE id = {}", 10_007 + number / 800 * 800),
        101 => format!("INSERT INTO long VALUES ({row}, 0, 'anew') ON CONFLICT (id) DO UPDATE SET n = long.n + 1"),
        400 => {
            let (one, other) = (1 + number / 800 % 10, 11 + number / 7 % 10);
            format!(
                "UPDATE names SET name = NULL WHERE id = {one}; UPDATE names SET name = 'name {one}' \
                 WHERE id = {other} AND NOT EXISTS (SELECT FROM names WHERE name = 'name {one}')"
            )
        }
        _ => "SELECT 1".to_owned(),
    };
    format!(
        "{}; UPDATE steps SET n = n + 1 WHERE id % 7 = {}; UPDATE long SET n = n + 1 WHERE id = {row}; {rare}",
        work(number),
        number % 7
    )
}

async fn desk_of_several(kafka: &Kafka, sink: &str, rules: &str) -> Option<(Desk, Database, Database)> {
    let (source, target) = two_databases().await?;
    source.execute(SHOP).await;
    source.execute(MORE).await;
    let desk = Desk::new();
    let log = format!("{}partitions = 8\nworker_timeout = \"6s\"\n", log(kafka));
    desk.write_spec(&source_of(&source), &format!("{}\n{sink}", postgres(&target)), &format!("{log}{rules}"));
    Some((desk, source, target))
}

const PARALLEL: &str = "apply = \"parallel\"\nworkers = 2";

/// A machine that delivers.
struct Machine {
    there: Crossfade,
    deliver: Running,
    _folder: Option<TempDir>,
}

impl Machine {
    /// The one where ingest is too.
    fn first(desk: &Desk) -> Self {
        Self { there: desk.crossfade.clone(), deliver: begin(&desk.crossfade), _folder: None }
    }

    /// Another one, with the secret brought there.
    fn another(desk: &Desk) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let there = elsewhere(desk, folder.path());
        let base = folder.path().join("crossfade-data").join(&desk.name);
        fs::create_dir_all(&base).unwrap();
        fs::copy(desk.work().join("secret"), base.join("secret")).unwrap();
        let deliver = begin(&there);
        Self { there, deliver, _folder: Some(folder) }
    }

    fn kill_and_start_again(&mut self) {
        std::mem::replace(&mut self.deliver, begin(&self.there)).kill();
    }

    fn pid(&self) -> u64 {
        u64::from(self.deliver.pid())
    }

    fn status(&self) -> serde_json::Value {
        let said = self.there.run(&["status", SPEC, "--json"]);
        serde_json::from_str(&said.stdout).unwrap_or_default()
    }

    /// How many partitions each process has, as this one says it.
    fn shares(&self) -> BTreeMap<u64, usize> {
        let status = self.status();
        let delivers = status["delivers"].as_array().cloned().unwrap_or_default();
        let share = |one: &serde_json::Value| Some((one["pid"].as_u64()?, one["partitions"].as_object()?.len()));
        delivers.iter().filter_map(share).collect()
    }

    /// Which process has the lead, as this one says it.
    fn lead(&self) -> Option<u64> {
        let status = self.status();
        let delivers = status["delivers"].as_array().cloned().unwrap_or_default();
        delivers.iter().find(|one| one["leads"] == true).and_then(|one| one["pid"].as_u64())
    }

    fn applied(&self) -> u64 {
        self.status()["conservation"]["applied"].as_u64().unwrap_or_default()
    }
}

fn begin(there: &Crossfade) -> Running {
    there.spawn(&["run", SPEC, "--quiet", "--log", "info", "--role", "deliver"])
}

fn assert_alive(machines: &mut [Machine]) {
    for machine in machines {
        assert!(machine.deliver.is_running(), "a deliver has ended\n{}", machine.deliver.stderr());
    }
}

/// Waits until those that are not frozen have all partitions among them, and each some.
async fn until_shared(machines: &mut [Machine], frozen: Option<usize>) {
    let live = || (0..).zip(machines.iter()).filter(|(at, _)| Some(*at) != frozen).map(|(_, machine)| machine);
    let mut pids: Vec<u64> = live().map(Machine::pid).collect();
    pids.sort_unstable();
    let began = Instant::now();
    loop {
        let shares = live().next().map(Machine::shares).unwrap_or_default();
        if shares.values().sum::<usize>() == 8 && shares.keys().eq(&pids) {
            break;
        }
        if began.elapsed() > GENEROUS {
            let said: Vec<String> = live().map(|machine| machine.deliver.stderr()).collect();
            panic!("8 partitions are not shared among {pids:?}: {shares:?}\n{}", said.join("\n---\n"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_alive(machines);
}

/// Waits until each that is not frozen has applied more.
async fn until_each_writes(machines: &[Machine], frozen: Option<usize>) {
    let live = || (0..).zip(machines).filter(|(at, _)| Some(*at) != frozen).map(|(_, machine)| machine);
    let before: Vec<u64> = live().map(Machine::applied).collect();
    until("each deliver to apply some more", async || {
        live().zip(&before).all(|(machine, before)| machine.applied() > *before + 10)
    })
    .await;
}

async fn assert_in_order(target: &Database) {
    let back = "SELECT count(*) FROM (SELECT n, lag(n) OVER (PARTITION BY id ORDER BY at) before FROM history) h \
                WHERE n <= before";
    assert_eq!(one(target, back).await, "0", "a key went back, or had a change twice");
    assert!(one(target, "SELECT count(*) FROM history").await.parse::<u64>().unwrap() > 100);
}

/// Which of them has the lead, as the last one says it.
async fn place_of_lead(machines: &[Machine]) -> usize {
    let mut place = None;
    until("one of them to have the lead", async || {
        let lead = machines.last().and_then(Machine::lead);
        place = machines.iter().position(|machine| Some(machine.pid()) == lead);
        place.is_some()
    })
    .await;
    place.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn delivers_are_killed_frozen_and_added_and_both_sides_end_equal_with_every_key_in_order() {
    let Some(kafka) = Kafka::shared() else { return };
    let Some((desk, source, target)) = desk_of_several(kafka, PARALLEL, RULES).await else { return };
    let mut rng = seeded::seeded("kills of delivers");
    let mut ingest = desk.start_role("ingest");
    let mut machines = vec![Machine::first(&desk)];
    wait_both(&desk, &mut ingest, &mut machines[0].deliver);
    target.execute(HISTORY).await;
    let writers = [Writer::start(&source, steps), Writer::start(&source, |number| steps(number + 1_000_000))];
    assert!(machines[0].shares().is_empty(), "one that is alone shares nothing");

    machines.push(Machine::another(&desk));
    until_shared(&mut machines, None).await;
    until_each_writes(&machines, None).await;
    assert_eq!(place_of_lead(&machines).await, 0, "whoever came first");
    wait_both(&desk, &mut ingest, &mut machines[0].deliver);

    for round in 0..if is_soak() { 40 } else { 4 } {
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..900))).await;
        // Sometimes the one that leads, sometimes the other one.
        machines[round % 2].kill_and_start_again();
        writers[0].wait_for_more(rng.random_range(1..40));
    }
    until_shared(&mut machines, None).await;

    // A third comes. Frozen for longer than the group bears: others have its partitions when it wakes.
    machines.push(Machine::another(&desk));
    until_shared(&mut machines, None).await;
    until_each_writes(&machines, None).await;
    let follows = (place_of_lead(&machines).await + 1) % 3;
    machines[follows].deliver.freeze();
    until_shared(&mut machines, Some(follows)).await;
    until_each_writes(&machines, Some(follows)).await;
    machines[follows].deliver.thaw();
    desk.until_said("held this deliver for dead", &mut machines[follows].deliver);
    until_shared(&mut machines, None).await;

    // So is whoever leads: what is shared goes on, and another one leads in the end.
    let leads = place_of_lead(&machines).await;
    machines[leads].deliver.freeze();
    until_shared(&mut machines, Some(leads)).await;
    until_each_writes(&machines, Some(leads)).await;
    let frozen = machines[leads].pid();
    until("another one to have the lead", async || machines[(leads + 1) % 3].lead().is_some_and(|lead| lead != frozen))
        .await;
    machines[leads].deliver.thaw();
    until_shared(&mut machines, None).await;

    // One goes as it should, one is killed; who is left is alone again.
    desk.stop(machines.remove(2).deliver);
    until_shared(&mut machines, None).await;
    machines.remove(1).deliver.kill();
    until("the last one to apply all by itself", async || machines[0].shares().is_empty()).await;
    writers[0].wait_for_more(20);
    writers.into_iter().for_each(Writer::stop);
    wait_both(&desk, &mut ingest, &mut machines[0].deliver);
    assert_equal(&desk, &source, &target).await;
    assert_same_tables(&source, &target, &SAME).await;
    assert_in_order(&target).await;
    desk.verify();
    let held = desk.crossfade.json(&["quarantine", "ls", SPEC]);
    assert_eq!(held.as_array().map(Vec::len), Some(0), "nothing may be in quarantine: {held}");
    assert_alive(&mut machines);
    for machine in machines {
        desk.stop(machine.deliver);
    }
    desk.stop(ingest);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_one_partitions_matter_is_done_by_the_one_that_leads() {
    let Some(kafka) = Kafka::shared() else { return };
    let Some((desk, source, target)) = desk_of_several(kafka, PARALLEL, RULES).await else { return };
    let mut ingest = desk.start_role("ingest");
    let mut machines = vec![Machine::first(&desk)];
    wait_both(&desk, &mut ingest, &mut machines[0].deliver);
    target.execute(HISTORY).await;
    machines.push(Machine::another(&desk));
    let writers = [Writer::start(&source, steps), Writer::start(&source, |number| steps(number + 1_000_000))];
    until_shared(&mut machines, None).await;

    source.execute("INSERT INTO people VALUES (-5, 'stays', NULL)").await;
    // Shapes change and tables are emptied between changes of every partition.
    for column in ["more", "most"] {
        source
            .execute(&format!(
                "ALTER TABLE steps ADD COLUMN {column} int DEFAULT 3; UPDATE steps SET {column} = id, n = n + 1"
            ))
            .await;
        writers[0].wait_for_more(10);
        source.execute("BEGIN; TRUNCATE orders; INSERT INTO orders VALUES (1, -5, 2, 'after'); COMMIT").await;
        writers[0].wait_for_more(10);
    }
    wait_both(&desk, &mut ingest, &mut machines[0].deliver);
    until_shared(&mut machines, None).await;

    // Commands go to the one that leads; another one says which that is.
    let (leads, follows) = if place_of_lead(&machines).await == 0 { (0, 1) } else { (1, 0) };
    let (lead, other) = (machines[leads].there.clone(), machines[follows].there.clone());
    let process = format!("process {}", machines[leads].pid());
    for words in [&["pause", SPEC][..], &["checkpoint", SPEC, "here"], &["quarantine", "retry", SPEC, "--all"]] {
        let said = other.run(words);
        assert!(said.code == Some(3) && said.stderr.contains(&process), "{said}");
    }
    other.succeed(&["wait", SPEC, "--caught-up", "--timeout", "240s"]);
    lead.succeed(&["checkpoint", SPEC, "here"]);
    lead.succeed(&["pause", SPEC]);
    until("nobody to write any more", async || machines[0].shares().is_empty()).await;
    let before = one(&target, "SELECT sum(n) FROM steps").await;
    writers[0].wait_for_more(20);
    assert_eq!(one(&target, "SELECT sum(n) FROM steps").await, before, "somebody wrote while it was paused");
    lead.succeed(&["resume", SPEC]);
    until_shared(&mut machines, None).await;

    // What the target refuses waits in quarantine, and as long as it does one applies all.
    target.execute("ALTER TABLE names ADD CONSTRAINT ours CHECK (id < 500)").await;
    source.execute("INSERT INTO names VALUES (500, 'refused')").await;
    until("it to be in quarantine", async || {
        other.json(&["quarantine", "ls", SPEC]).as_array().map(Vec::len) == Some(1)
    })
    .await;
    lead.succeed(&["wait", SPEC, "--caught-up", "--timeout", "240s"]);
    // What the status says of it is heard from the topic.
    until("nothing to be shared with a key that is held", async || machines[0].shares().is_empty()).await;
    target.execute("ALTER TABLE names DROP CONSTRAINT ours").await;
    lead.succeed(&["quarantine", "retry", SPEC, "--all"]);
    until_shared(&mut machines, None).await;

    // Damaged by hand, and healed while the stream is shared.
    // Two delivers write there all the while: the one or the other may meet us in a deadlock.
    wait_until("all names to be damaged at once", async || {
        target.connect().await.batch_execute("UPDATE people SET name = 'damaged'").await.is_ok()
    })
    .await;
    source.execute("UPDATE people SET note = 'touched'").await;
    lead.succeed(&["wait", SPEC, "--caught-up", "--timeout", "240s"]);
    target.execute("ALTER TABLE steps DISABLE TRIGGER noted").await;
    lead.succeed(&["replay", SPEC, "--from", "checkpoint:here"]);
    target.execute("ALTER TABLE steps ENABLE ALWAYS TRIGGER noted").await;
    until_shared(&mut machines, None).await;
    until_each_writes(&machines, None).await;

    writers.into_iter().for_each(Writer::stop);
    wait_both(&desk, &mut ingest, &mut machines[0].deliver);
    assert_equal(&desk, &source, &target).await;
    assert_same_tables(&source, &target, &SAME).await;
    assert_in_order(&target).await;
    let said = lead.succeed(&["verify", SPEC]);
    assert!(said.stdout.contains("0 differences"), "{said}");
    assert_alive(&mut machines);
    for machine in machines {
        desk.stop(machine.deliver);
    }
    desk.stop(ingest);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_shared_is_applied_by_one_and_says_why() {
    let Some(kafka) = Kafka::shared() else { return };
    // By a key of these two rows may follow one another that are not one.
    let rules = "[[table]]\nfrom = \"public.names\"\nsteps = [{ cast = \"id\", to = \"numeric\" }]\n";
    let Some((desk, source, target)) = desk_of_several(kafka, PARALLEL, rules).await else { return };
    let mut ingest = desk.start_role("ingest");
    let mut first = Machine::first(&desk);
    let writer = Writer::start(&source, steps);
    wait_both(&desk, &mut ingest, &mut first.deliver);
    assert!(first.deliver.stderr().contains("does not tell that of public.names"), "{}", first.deliver.stderr());
    let mut second = Machine::another(&desk);
    desk.until_said("another session writes for this migration", &mut second.deliver);
    assert!(first.shares().is_empty());
    first.deliver.kill();
    writer.wait_for_more(20);
    writer.stop();
    second.there.succeed(&["wait", SPEC, "--caught-up", "--timeout", "240s"]);
    assert_same_tables(&source, &target, &["steps", "long", "names"]).await;
    desk.stop(second.deliver);
    desk.stop(ingest);
    drop(target);
}
