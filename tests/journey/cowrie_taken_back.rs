//! `examples/cowrie`, taken back from every phase while the application writes: killed as soon as each is entered, in the midst
//! of the copy, paused, verified, and after a switch and the way back. What is left is each time what a twin has in which
//! nothing was ever migrated. `CROSSFADE_EXAMPLES=full` takes the whole size.

use crate::{
    cowrie::{OWN, size},
    example::Example,
    twin::{Author, Twins},
};
use crossfade_testkit::{
    crossfade::Running,
    postgres::{Postgres, Version},
    wait::wait_until,
};

const NAME: &str = "cowrie-taken-back";
const SPEC: &str = "cowrie.toml";

struct Stage {
    example: Example,
    twins: Twins,
}

impl Stage {
    async fn set() -> Option<Self> {
        let server = Postgres::shared(Version::V15)?;
        let (database, twin) = (server.create_database("cowrie").await, server.create_database("twin").await);
        let example = Example::copy("cowrie", &[("COWRIE_URL", database.url.as_str())]).named(SPEC, NAME);
        for each in [&database, &twin] {
            example.sql(each, "schema.sql", &[]).await;
            example.sql(each, "generate.sql", &[("rows", &size().to_string()), ("seed", "7")]).await;
            each.execute(OWN).await;
        }
        Some(Self { example, twins: Twins::of(database, twin, NAME) })
    }

    /// Takes everything back while the application goes on; then both are the same.
    async fn take_back(&mut self, author: Author, phase: &str) {
        author.wait_for_more(0, 5);
        let said = self.example.expect(0, "crossfade rollback cowrie.toml --wipe --yes");
        author.wait_for_more(0, 5);
        self.twins.stop(author).await;
        println!("{phase}: {}", said.stdout.trim());
        self.twins.assert_same(phase).await;
    }

    async fn filled(&self) -> u64 {
        let there = "SELECT count(*) FROM pg_attribute WHERE attrelid = 'session_summaries'::regclass AND attname = 'source_ip_v2'";
        if self.twins.database.value(there).await.as_deref() == Some("0") {
            return 0;
        }
        let filled = "SELECT count(*) FROM session_summaries WHERE source_ip_v2 IS NOT NULL";
        self.twins.database.value(filled).await.unwrap().parse().unwrap()
    }

    async fn caught_up(&self) -> Running {
        let mut run = self.example.start("crossfade run cowrie.toml");
        self.example.wait(&mut run, "crossfade wait cowrie.toml --caught-up --timeout 10m");
        wait_until("the flag table", async || {
            let sql = "SELECT to_regprocedure('crossfade.side(text, text)') IS NOT NULL";
            self.twins.database.value(sql).await.as_deref() == Some("t")
        })
        .await;
        run
    }
}

/// Sessions come, change and go, and so does what is known of addresses.
fn busy(number: u64, side: usize) -> String {
    let known = 1 + number * 31 % 1000;
    match number % 5 {
        1 => format!(
            "UPDATE ip_inventory SET geo_country = 'N{}', current_asn = {number}, enrichment_updated_at = '2025-01-01'::timestamptz + {number} * interval '1 s'
             WHERE ip_address = '11.0.0.0'::inet + {known}",
            number % 10
        ),
        _ => calm(number, side),
    }
}

/// The same, but what is known of an address stays: a comparison finds what the stream has found.
fn calm(number: u64, side: usize) -> String {
    let known = 1 + number * 31 % 1000;
    let types = ["snapshot_ip_types", "snapshot_ip_type"][side];
    let at = format!("'2025-01-01'::timestamptz + {number} * interval '1 s'");
    match number % 5 {
        0 => format!(
            "INSERT INTO ip_inventory VALUES ('12.0.0.0'::inet + {number}, {number}, 'SE', 'mobile', {at}, {at}, {at});
             INSERT INTO session_summaries (session_id, first_event_at, last_event_at, event_count, command_count, file_downloads, login_attempts, enrichment)
             VALUES ('new-{number}', {at}, {at}, 1, 0, 0, 0, jsonb_build_object('source_ip', host('12.0.0.0'::inet + {number})))"
        ),
        1 | 2 => {
            format!("UPDATE session_summaries SET event_count = event_count + 1 WHERE session_id = md5('7/{known}')")
        }
        3 => format!("UPDATE session_summaries SET {types} = 'own {number}' WHERE session_id = md5('7/{}')", known + 1000),
        _ => format!("DELETE FROM session_summaries WHERE session_id = md5('7/{}')", 3000 + number),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn from_every_phase_of_it_what_is_left_is_what_the_application_wrote() {
    let Some(mut stage) = Stage::set().await else { return };

    let author = stage.twins.write(busy, false);
    stage.example.expect(0, "crossfade plan cowrie.toml");
    stage.example.expect(0, "crossfade run cowrie.toml --dry-run");
    let nothing = stage.example.expect(2, "crossfade rollback cowrie.toml --wipe --yes");
    assert!(nothing.stderr.contains("has no folder yet"), "{nothing}");
    stage.twins.stop(author).await;
    stage.twins.assert_same("a plan").await;
    let author = stage.twins.write(busy, false);
    stage.example.expect(0, "crossfade run cowrie.toml --limit 10000 --quiet");
    stage.take_back(author, "a trial").await;

    for phase in ["expanded", "capturing", "backfilling", "catching-up", "shadowing"] {
        let author = stage.twins.write(busy, false);
        let came = stage.example.kill_in(SPEC, NAME, phase);
        stage.take_back(author, &format!("{phase} (killed while {came})")).await;
    }

    // In the midst of the copy, and again after it was killed and went on.
    let author = stage.twins.write(busy, false);
    let run = stage.example.start("crossfade run cowrie.toml");
    wait_until("the first rows to be filled", async || stage.filled().await > 0).await;
    run.kill();
    let phase = format!("a copy of {} of {} rows", stage.filled().await, size());
    stage.take_back(author, &phase).await;
    let author = stage.twins.write(busy, false);
    stage.example.kill_in(SPEC, NAME, "backfilling");
    let run = stage.caught_up().await;
    stage.example.expect(0, "crossfade pause cowrie.toml");
    author.wait_for_more(0, 20);
    run.kill();
    stage.take_back(author, "paused").await;

    // Verified, in a moment in which nobody writes.
    let author = stage.twins.write(calm, false);
    let mut run = stage.caught_up().await;
    stage.twins.stop(author).await;
    stage.example.wait(&mut run, "crossfade wait cowrie.toml --caught-up --timeout 10m");
    let verified = stage.example.expect(0, "crossfade verify cowrie.toml");
    assert!(verified.stdout.contains("0 differences"), "{verified}");
    let author = stage.twins.write(calm, false);
    stage.example.stop(run);
    assert_eq!(stage.example.status(&[])["phase"], "verified");
    stage.take_back(author, "verified").await;

    // Switched: nothing is taken back until the old columns have their names again, with everything that was written.
    let run = stage.caught_up().await;
    stage.example.expect(0, "crossfade verify cowrie.toml");
    let author = stage.twins.write(calm, true);
    author.wait_for_more(0, 20);
    stage.example.start("crossfade cutover cowrie.toml --dry-run").wait();
    stage.example.switch("crossfade cutover cowrie.toml");
    assert_eq!(run.wait().code, Some(0), "the run ends once the new columns have the names");
    author.wait_for_more(1, 40);
    stage.example.expect(3, "crossfade rollback cowrie.toml --wipe --yes");
    stage.example.switch("crossfade failback cowrie.toml");
    author.wait_for_more(0, 40);
    stage.twins.stop(author).await;
    let author = stage.twins.write(calm, false);
    stage.take_back(author, "switched, and a failback").await;
}
