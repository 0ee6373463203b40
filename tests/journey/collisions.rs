//! Two rows of the source that come to one new key: the gate on collisions pauses at the first one, knows of it after a kill, lets
//! a person answer it, and takes the migration back where the spec says so.

use crate::{
    desk::{Desk, SPEC, Writer, postgres, rows, two_databases},
    switch::journal_says,
};
use crossfade_testkit::{compare::assert_same, crossfade::Running, postgres::Database};
use serde_json::Value;

/// The key is a name, and the new one does not tell apart how it is written.
const FILL: &str = "CREATE TABLE people (name text PRIMARY KEY, beat bigint NOT NULL);
    INSERT INTO people SELECT 'p' || n, 0 FROM generate_series(1, 400) n";

fn spec(then: &str) -> String {
    format!(
        "[keys.canonical]\nmake = \"canonical-sha256\"\nnormalise = [\"trim\", \"lower\"]\n\
         [[table]]\nfrom = \"public.people\"\nkey = \"canonical\"\n\
         [gates]\ncollisions = {{ max = 0, then = \"{then}\" }}\n"
    )
}

/// Nobody here writes the rows that collide.
fn work(number: u64) -> String {
    format!("UPDATE people SET beat = beat + 1 WHERE name = 'p{}'", 1 + number % 40)
}

struct Stage {
    desk: Desk,
    source: Database,
    target: Database,
}

impl Stage {
    async fn set(then: &str) -> Option<Self> {
        let (source, target) = two_databases().await?;
        source.execute(FILL).await;
        let desk = Desk::new();
        let from = format!("{}\ntables = [\"public.*\"]", postgres(&source));
        desk.write_spec(&from, &postgres(&target), &spec(then));
        Some(Self { desk, source, target })
    }

    fn status(&self) -> Value {
        self.desk.crossfade.json(&["status", SPEC])
    }

    fn gate(&self) -> Value {
        let status = self.status();
        let gates = status["gates"].as_array().cloned().unwrap_or_default();
        gates.into_iter().find(|gate| gate["gate"] == "collisions").unwrap_or_default()
    }

    /// Waits until the gate has paused it so many times.
    async fn until_paused(&self, run: &mut Running, times: usize) {
        let what = format!("pause {times}");
        self.desk
            .until(&what, run, async || {
                journal_says(&self.desk, "{\"paused\":") >= times && self.status()["standing"] == "paused"
            })
            .await;
        let status = self.status();
        let reason = status["reason"].as_str().unwrap();
        assert!(reason.contains("gate collisions") && reason.contains("the limit is 0"), "{status}");
    }

    fn kinds(&self) -> Vec<String> {
        let listed: Value = self.desk.crossfade.json(&["quarantine", "ls", SPEC]);
        listed.as_array().unwrap().iter().map(|change| change["kind"].as_str().unwrap().to_owned()).collect()
    }

    /// Both sides by the tests' own means: each person once, under the new key that the mapping has for it.
    async fn assert_same_people(&self) {
        let found = "SELECT m.old_id, p.beat FROM people p JOIN uuid_migration_mapping m ON m.new_id = p.name::text";
        let (old, new) = (rows(&self.source, "SELECT name, beat FROM people").await, rows(&self.target, found).await);
        assert_same("people", &old, &new);
        let count = self.target.value("SELECT count(*) FROM people").await;
        assert_eq!(count, self.source.value("SELECT count(*) FROM people").await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_collision_pauses_and_is_known_after_a_kill_until_somebody_answers_it() {
    let Some(stage) = Stage::set("pause").await else { return };
    let (desk, source) = (&stage.desk, &stage.source);
    let writer = Writer::start(source, work);
    let mut run = desk.start();
    desk.wait(&mut run);
    desk.until("the gate to be judged", &mut run, async || stage.gate()["measured"] == "0 collisions").await;
    assert_eq!(stage.gate()["holds"], true);
    assert_eq!(journal_says(desk, "{\"paused\":"), 0);

    source.execute("INSERT INTO people VALUES (' P300 ', 7)").await;
    stage.until_paused(&mut run, 1).await;
    let gate = stage.gate();
    assert_eq!((&gate["holds"], &gate["measured"]), (&false.into(), &"1 collision".into()), "{gate}");
    assert!(stage.kinds().contains(&"collision".to_owned()), "{:?}", stage.kinds());

    // Resumed while nobody runs, nothing is answered: a process that has seen nothing of it finds it where it is.
    run.kill();
    desk.expect(0, &["resume"], &[]);
    let mut run = desk.start();
    stage.until_paused(&mut run, 2).await;

    // Mended and answered it goes on: what is behind the collision waits with it, and is dropped with it.
    source.execute("DELETE FROM people WHERE name = ' P300 '").await;
    desk.expect(0, &["resume"], &[]);
    desk.wait(&mut run);
    writer.wait_for_more(20);
    desk.wait(&mut run);
    desk.until("the gate to hold again", &mut run, async || stage.gate()["holds"] == true).await;
    assert_eq!(stage.gate()["measured"], "0 collisions");
    // Another one is not among those that were answered.
    source.execute("INSERT INTO people VALUES ('P301', 8)").await;
    stage.until_paused(&mut run, 3).await;
    source.execute("DELETE FROM people WHERE name = 'P301'").await;
    desk.expect(0, &["resume"], &[]);
    desk.wait(&mut run);
    desk.expect(0, &["quarantine", "discard"], &["--all"]);
    // Those that are gone make no room for others.
    source.execute("INSERT INTO people VALUES ('P302', 9)").await;
    stage.until_paused(&mut run, 4).await;
    source.execute("DELETE FROM people WHERE name = 'P302'").await;
    desk.expect(0, &["resume"], &[]);
    desk.wait(&mut run);
    desk.expect(0, &["quarantine", "discard"], &["--all"]);
    writer.stop();
    desk.wait(&mut run);
    stage.assert_same_people().await;
    desk.verify();
    desk.stop(run);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collision_among_the_rows_that_are_copied_takes_the_migration_back_where_the_spec_says_so() {
    let Some(stage) = Stage::set("rollback").await else { return };
    let (desk, source, target) = (&stage.desk, &stage.source, &stage.target);
    source.execute("INSERT INTO people VALUES ('P300', 7)").await;
    let writer = Writer::start(source, work);
    let refused = desk.start().wait();
    assert_eq!(refused.code, Some(3), "{refused}");
    // Whether that run has completed it or this one: nothing begins anew.
    let refused = desk.expect(3, &["run"], &[]);
    assert!(refused.stderr.contains("rolled back by gate collisions: 1 collision"), "{refused}");
    let status = stage.status();
    assert_eq!(status["phase"], "wiped", "{status}");
    assert!(journal_says(desk, "gate-fell") > 0 && journal_says(desk, "\"collisions\":1") > 0);
    let left = "SELECT count(*) FROM pg_tables WHERE schemaname IN ('public', 'crossfade')";
    assert_eq!(target.value(left).await.as_deref(), Some("0"));
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
    assert_eq!(source.value(slots).await.as_deref(), Some("0"));

    source.execute("DELETE FROM people WHERE name = 'P300'").await;
    desk.expect(0, &["resume"], &[]);
    let mut run = desk.start();
    desk.wait(&mut run);
    writer.stop();
    desk.wait(&mut run);
    stage.assert_same_people().await;
    desk.verify();
    desk.stop(run);
}
