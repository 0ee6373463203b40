//! `examples/cycle-reports` between two servers, taken back from every phase while reporters write: killed as soon as each is
//! entered, verified, while a share of the reads is compared, and after a switch, a day on the new side, and the way back.
//! `CROSSFADE_EXAMPLES=full` takes 100,000 rows.

use crate::{
    cycle_reports::{Stage, content},
    reporters::Reporters,
    twin::catalog,
};
use crossfade_testkit::{
    compare::{Rows, assert_same},
    crossfade::Running,
    wait::wait_until,
};

const NAME: &str = "cycle-reports-taken-back";
const SPEC: &str = "cycle-reports.toml";

/// What both catalogs said before anything was begun.
struct Before {
    stage: Stage,
    catalogs: [Rows; 2],
}

impl Before {
    async fn set() -> Option<Self> {
        let mut stage = Stage::set().await?;
        stage.example = stage.example.named(SPEC, NAME);
        let catalogs = [catalog(&stage.old, NAME).await, catalog(&stage.new, NAME).await];
        Some(Self { stage, catalogs })
    }

    fn write(&self, asks: bool, round: &str) -> Reporters {
        Reporters::start(&self.stage.old, &self.stage.new, asks.then_some(NAME), self.stage.size, round)
    }

    async fn caught_up(&self) -> Running {
        let mut run = self.stage.example.start("crossfade run cycle-reports.toml");
        self.stage.example.wait(&mut run, "crossfade wait cycle-reports.toml --caught-up --timeout 10m");
        wait_until("the flag table", async || {
            let sql = "SELECT to_regprocedure('crossfade.side(text, text)') IS NOT NULL";
            self.stage.old.value(sql).await.as_deref() == Some("t")
                && self.stage.new.value(sql).await.as_deref() == Some("t")
        })
        .await;
        run
    }

    /// Takes everything back. Every row that the reporters have written stays on the old side, and nothing else on either.
    async fn take_back(&self, reporters: Reporters, phase: &str) {
        reporters.stop();
        let written = content(&self.stage.old).await;
        let said = self.stage.example.expect(0, "crossfade rollback cycle-reports.toml --wipe --yes");
        println!("{phase}: {}", said.stdout.trim());
        assert_eq!(written, content(&self.stage.old).await, "the old side after {phase} was taken back");
        self.assert_nothing_left(phase).await;
    }

    /// Both catalogs say what they said.
    async fn assert_nothing_left(&self, phase: &str) {
        for (side, (database, before)) in [&self.stage.old, &self.stage.new].into_iter().zip(&self.catalogs).enumerate()
        {
            let what = format!("the catalog of the {} side after {phase} was taken back", ["old", "new"][side]);
            assert_same(&what, before, &catalog(database, NAME).await);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn between_two_servers_it_can_be_taken_back_from_every_phase_and_after_a_failback() {
    let Some(before) = Before::set().await else { return };
    let (stage, example) = (&before.stage, &before.stage.example);

    let reporters = before.write(false, "a");
    example.expect(0, "crossfade plan cycle-reports.toml");
    example.expect(0, "crossfade run cycle-reports.toml --dry-run");
    let nothing = example.expect(2, "crossfade rollback cycle-reports.toml --wipe --yes");
    assert!(nothing.stderr.contains("has no folder yet"), "{nothing}");
    reporters.stop();
    before.assert_nothing_left("a plan").await;
    for (round, phase) in ["expanded", "capturing", "backfilling", "catching-up", "shadowing"].into_iter().enumerate() {
        let reporters = before.write(false, &format!("b{round}"));
        reporters.wait_for_more(0, 5);
        let came = example.kill_in(SPEC, NAME, phase);
        before.take_back(reporters, &format!("{phase} (killed while {came})")).await;
    }

    // Verified, and with a share of the reads compared by applications that follow the flag.
    let reporters = before.write(false, "c");
    let run = before.caught_up().await;
    let verified = example.expect(0, "crossfade verify cycle-reports.toml");
    assert!(verified.stdout.contains("0 differences"), "{verified}");
    assert_eq!(example.status(&[])["phase"], "verified");
    example.stop(run);
    before.take_back(reporters, "verified").await;
    let reporters = before.write(false, "d");
    let run = before.caught_up().await;
    example.expect(0, "crossfade verify cycle-reports.toml");
    example.expect(0, "crossfade dual-reads cycle-reports.toml 5%");
    assert_eq!(example.status(&[])["phase"], "dual reading");
    example.stop(run);
    before.take_back(reporters, "dual reading").await;

    // Switched, and written on the new side.
    let run = before.caught_up().await;
    example.sql(&stage.new, "new-side.sql", &[]).await;
    let reporters = before.write(true, "e");
    reporters.wait_for_more(0, 20);
    example.expect(0, "crossfade verify cycle-reports.toml");
    example.switch("crossfade cutover cycle-reports.toml");
    assert_eq!(run.wait().code, Some(0));
    reporters.wait_for_more(1, 60);
    reporters.stop();
    example.expect(3, "crossfade rollback cycle-reports.toml --wipe --yes");
    let mut run = example.start("crossfade run cycle-reports.toml");
    example.wait(&mut run, "crossfade wait cycle-reports.toml --reverse --caught-up --timeout 10m");

    // Back under writers: those of the new side end with its authority, and then both sides are one history.
    let stay = Reporters::start_on_one_side(&stage.old, &stage.new, NAME, stage.size, "f");
    stay.wait_for_more(1, 40);
    let guards = example.start("crossfade failback cycle-reports.toml --dry-run").wait();
    assert!(
        guards.stdout.contains("does not come back as it stands"),
        "the first stay, so no comparison is asked for\n{guards}"
    );
    example.switch("crossfade failback cycle-reports.toml");
    assert_eq!(run.wait().code, Some(0), "the stream back ends once the old side has the authority");
    println!("{}", stay.stop());
    stage.assert_one_history().await;
    let reporters = before.write(true, "g");
    reporters.wait_for_more(0, 40);
    before.take_back(reporters, "switched, and a failback").await;

    // And it can begin anew.
    let mut run = before.caught_up().await;
    example.wait(&mut run, "crossfade wait cycle-reports.toml --caught-up --timeout 10m");
    stage.assert_one_history().await;
    example.stop(run);
}
