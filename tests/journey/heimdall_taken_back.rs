//! `examples/heimdall`, both strategies, taken back from every phase while dumps come in: killed as soon as each is entered,
//! verified, paused by a gate, and while readers ask both graphs. What is left is each time what a twin has in which nothing was
//! ever migrated. `CROSSFADE_EXAMPLES=full` takes 400,000 nodes.

use crate::{
    desk::rows,
    example::Example,
    heimdall::{dumped, work},
    twin::{Author, Twins},
};
use crossfade_testkit::{
    crossfade::Running,
    postgres::{Postgres, Version},
    wait::wait_for,
};

const NAME: &str = "heimdall-taken-back";
const IN_PLACE: &str = "heimdall-in-place-taken-back";

struct Stage {
    example: Example,
    twins: Twins,
}

impl Stage {
    async fn set(spec: &str, name: &'static str) -> Option<Self> {
        let server = Postgres::shared(Version::V15)?;
        let (database, twin) = (server.create_database("graph").await, server.create_database("twin").await);
        let example = Example::copy("heimdall", &[("GRAPH_URL", database.url.as_str())]).named(spec, name);
        for each in [&database, &twin] {
            example.sql(each, "schema.sql", &[]).await;
            example.sql(each, "generate.sql", &[("rows", &dumped().to_string()), ("seed", "7")]).await;
            example.sql(each, "v2.sql", &[]).await;
        }
        Some(Self { example, twins: Twins::of(database, twin, name) })
    }

    /// Takes everything back while dumps come in; then both are the same.
    async fn take_back(&mut self, spec: &str, author: Author, phase: &str) {
        author.wait_for_more(0, 5);
        let said = self.example.expect(0, &format!("crossfade rollback {spec} --wipe --yes"));
        author.wait_for_more(0, 5);
        self.twins.stop(author).await;
        println!("{phase}: {}", said.stdout.trim());
        self.twins.assert_same(phase).await;
    }

    fn write(&self) -> Author {
        self.twins.write(|number, _| work(number), false)
    }

    async fn caught_up(&self, spec: &str) -> Running {
        let mut run = self.example.start(&format!("crossfade run {spec}"));
        self.example.wait(&mut run, &format!("crossfade wait {spec} --caught-up --timeout 10m"));
        run
    }

    /// Planned, tried, and killed as soon as each phase is entered.
    async fn until_following(&mut self, spec: &str, name: &str) {
        let author = self.write();
        self.example.expect(0, &format!("crossfade plan {spec}"));
        self.example.expect(0, &format!("crossfade run {spec} --dry-run"));
        let nothing = self.example.expect(2, &format!("crossfade rollback {spec} --wipe --yes"));
        assert!(nothing.stderr.contains("has no folder yet"), "{nothing}");
        self.twins.stop(author).await;
        self.twins.assert_same("a plan").await;
        let author = self.write();
        self.example.expect(0, &format!("crossfade run {spec} --limit 1000 --quiet"));
        self.take_back(spec, author, "a trial").await;
        for phase in ["expanded", "capturing", "backfilling", "catching-up", "shadowing"] {
            let author = self.write();
            let came = self.example.kill_in(spec, name, phase);
            self.take_back(spec, author, &format!("{phase} (killed while {came})")).await;
        }
        // Killed in its copy, gone on with, and compared while dumps come in.
        let author = self.write();
        self.example.kill_in(spec, name, "backfilling");
        let run = self.caught_up(spec).await;
        author.wait_for_more(0, 20);
        let verified = self.example.expect(0, &format!("crossfade verify {spec}"));
        assert!(verified.stdout.contains("0 differences"), "{verified}");
        self.example.stop(run);
        self.take_back(spec, author, "verified").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_graph_beside_the_old_one_can_be_taken_back_from_every_phase_while_dumps_come_in() {
    let spec = "heimdall.toml";
    let Some(mut stage) = Stage::set(spec, NAME).await else { return };
    stage.until_following(spec, NAME).await;

    // While readers ask both graphs: what they ask by is theirs, and goes with them.
    let author = stage.write();
    let run = stage.caught_up(spec).await;
    stage.example.sql(&stage.twins.database, "after-load.sql", &[]).await;
    stage.example.sql(&stage.twins.database, "dual-read.sql", &[]).await;
    let read = "SELECT f.id FROM intel.\"FieldValue\" v, \
         canonical.find_field_value(v.properties ->> 'value', v.properties ->> 'field', v.properties ->> 'row_key', v.properties ->> 'dump') f \
         WHERE v.id BETWEEN 1125899906842650 AND 1125899906842699 AND f.id = v.id";
    assert!(rows(&stage.twins.database, read).await.count() >= 45, "nodes are found by the new key");
    stage.example.stop(run);
    let gone = "DROP FUNCTION canonical.find_field_value; DROP TABLE canonical.reads";
    stage.twins.database.execute(gone).await;
    stage.take_back(spec, author, "dual reads").await;

    // While a gate has paused it, with rows in quarantine.
    let author = stage.write();
    let mut run = stage.caught_up(spec).await;
    stage.twins.stop(author).await;
    stage.twins.execute("UPDATE intel.\"FieldValue\" SET properties = CASE WHEN id % 20 = 0 THEN to_jsonb(properties::text) ELSE properties END WHERE id < 1125899906842625 + 3000").await;
    wait_for("the gate to pause it", async || {
        assert!(run.is_running(), "{}", run.stderr());
        (stage.example.status(&[])["standing"] == "paused").then_some(())
    })
    .await;
    stage.twins.execute("UPDATE intel.\"FieldValue\" SET properties = (properties #>> '{}')::jsonb WHERE jsonb_typeof(properties) = 'string'").await;
    let author = stage.write();
    run.kill();
    stage.take_back(spec, author, "paused by a gate").await;

    // There is nothing to switch to where the spec does not say so; and so everything can be taken back.
    let author = stage.write();
    let run = stage.caught_up(spec).await;
    let refused = stage.example.start("crossfade cutover heimdall.toml").wait();
    assert!(refused.code != Some(0) && refused.stderr.contains("[switch]"), "{refused}");
    stage.example.stop(run);
    stage.take_back(spec, author, "a switch that was refused").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_in_the_label_tables_can_be_taken_back_from_every_phase_while_dumps_come_in() {
    let spec = "in-place.toml";
    let Some(mut stage) = Stage::set(spec, IN_PLACE).await else { return };
    stage.until_following(spec, IN_PLACE).await;

    // Paused by hand, and still so when it is taken back.
    let author = stage.write();
    let run = stage.caught_up(spec).await;
    stage.example.expect(0, "crossfade pause in-place.toml");
    author.wait_for_more(0, 20);
    run.kill();
    stage.take_back(spec, author, "paused").await;
}
