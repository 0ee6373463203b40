//! The log on Kafka: the run and the broker are killed in turn and together, under live writers. Built with the feature
//! `kafka` (`make test-kafka`).

use crate::{
    bank,
    disk::{Disk, MIB},
    hand::Hand,
    is_soak,
    setup::Direction,
    stand::{SPEC, Stand},
};
use crossfade_testkit::{
    crossfade::Running,
    kafka::{Cluster, Kafka},
    seeded,
    wait::wait_until,
};
use rand::Rng;
use std::time::Duration;

/// What is done to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Run,
    Broker,
    Both,
    /// The broker keeps its connections and answers nothing, for a while.
    Hang,
}

const FAULTS: [Fault; 4] = [Fault::Run, Fault::Broker, Fault::Both, Fault::Hang];

/// A stand whose log is on brokers of this test's own.
async fn stand_over(brokers: &str, more: &str) -> Option<Stand> {
    let mut stand = Stand::new(Direction::PostgresToPostgres).await?;
    stand.log = format!("[log]\nkind = \"kafka\"\nbrokers = \"{brokers}\"\n{more}");
    stand.write_spec(&stand.source.spec(), &stand.target.spec());
    Some(stand)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_run_and_the_broker_may_be_killed_at_any_moment() {
    let Some(kafka) = Kafka::start(&[]) else { return };
    let Some(stand) = stand_over(&kafka.brokers(), "").await else { return };
    let (rounds, ballast) = if is_soak() { (60, 120_000) } else { (8, 40_000) };
    bank::create(&stand.source, ballast).await;
    let seed = seeded::seed("kills with the log on Kafka");
    let mut rng = seeded::worker(seed, 5);
    let teller = bank::teller(&stand.source, seed, 120);
    // Nothing is waited for while it plans: a broker that is not there then is a wrong address.
    let mut run = stand.start();
    let plan = stand.work().join("topics.json");
    stand.until("the log is there", &mut run, async || plan.exists()).await;
    let mut tally = [0usize; FAULTS.len()];
    for round in 0..rounds {
        // Every fault comes in turn; the first ones in the middle of the copy.
        let fault = FAULTS[round % FAULTS.len()];
        tally[round % FAULTS.len()] += 1;
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..900))).await;
        match fault {
            Fault::Run => {
                run.kill();
                run = stand.start();
            }
            Fault::Broker => {
                kafka.kill();
                teller.wait_for_more(rng.random_range(1..40));
                kafka.start_again();
            }
            Fault::Both => {
                kafka.kill();
                run.kill();
                teller.wait_for_more(rng.random_range(1..20));
                kafka.start_again();
                run = stand.start();
            }
            Fault::Hang => {
                kafka.freeze();
                tokio::time::sleep(Duration::from_millis(rng.random_range(500..4_000))).await;
                if rng.random_ratio(1, 2) {
                    run.kill();
                    run = stand.start();
                }
                kafka.thaw();
            }
        }
        if rng.random_ratio(1, 3) {
            let mark = 1 + round as i64;
            bank::backlog(&stand.source, 1_000 + mark, 300, mark).await;
            stand.until("the target has caught up", &mut run, async || stand.has_mark(mark).await).await;
        }
    }
    teller.wait_for_more(20);
    assert!(teller.stop() > 0, "the teller committed nothing: this proves nothing");
    stand.until_caught_up(&mut run, 1_000).await;
    stand.wait_caught_up();
    stand.assert_equal(false).await;
    let held = stand.crossfade.json(&["quarantine", "ls", SPEC]);
    assert_eq!(held.as_array().map(Vec::len), Some(0), "nothing may be in quarantine: {held}");
    run.terminate();
    let ended = run.wait();
    assert_eq!(ended.code, Some(0), "{ended}");
    let sound = stand.crossfade.succeed(&["log", "verify", SPEC]);
    println!("{tally:?} of {FAULTS:?}, both sides equal; {}", sound.stdout.trim());
}

/// Waits until the run sounds an alarm because nothing is taken, and the status says that this is the log's matter.
async fn until_it_says_nothing_is_taken(stand: &Stand, run: &mut Running) {
    wait_until("the run to say that Kafka takes nothing", async || {
        assert!(run.is_running(), "the run has ended\n{}", run.stderr());
        let said = stand.crossfade.run(&["status", SPEC, "--json"]);
        let status: serde_json::Value = serde_json::from_str(&said.stdout).unwrap_or_default();
        status["retrying"]["side"] == "log"
            && status.to_string().contains("Kafka takes nothing")
            && run.stderr().contains("reading the source waits until it does")
    })
    .await;
}

/// The writers end; what was written meanwhile arrives by itself, in the same run.
async fn assert_goes_on(stand: &Stand, mut run: Running, teller: Hand) {
    teller.wait_for_more(20);
    teller.stop();
    stand.until_caught_up(&mut run, 2).await;
    stand.wait_caught_up();
    stand.assert_equal(false).await;
    let status = stand.crossfade.json(&["status", SPEC]);
    assert!(status["retrying"].is_null(), "{status}");
    run.terminate();
    let ended = run.wait();
    assert_eq!(ended.code, Some(0), "{ended}");
    stand.crossfade.succeed(&["log", "verify", SPEC]);
}

/// All three copies must be in step for a write to count, and one of the three is gone: the brokers answer, everything can be
/// read, and they take no record.
#[tokio::test(flavor = "multi_thread")]
async fn brokers_with_too_few_copies_in_step_take_nothing_and_the_run_waits_with_an_alarm_and_goes_on_by_itself() {
    let Some(kafka) = Cluster::start(3) else { return };
    let Some(stand) = stand_over(&kafka.brokers(), "replication = 3\nmin_insync_replicas = 3\n").await else { return };
    bank::create(&stand.source, 10_000).await;
    let teller = bank::teller(&stand.source, seeded::seed("too few copies"), 120);
    let mut run = stand.start();
    stand.until_caught_up(&mut run, 1).await;
    kafka.node(2).kill();
    until_it_says_nothing_is_taken(&stand, &mut run).await;
    let arrived = stand.target.number("SELECT count(*) FROM movements").await;
    teller.wait_for_more(40);
    assert_eq!(stand.target.number("SELECT count(*) FROM movements").await, arrived, "something was taken");
    kafka.node(2).start_again();
    assert_goes_on(&stand, run, teller).await;
}

/// A broker whose disk is full ends itself; with room it is started again.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_whose_disk_is_full_takes_nothing_and_the_run_waits_with_an_alarm_and_goes_on_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::mount(folder.path().join("disk"), 256 * MIB, folder.path()) else { return };
    let data = disk.at.join("data");
    let Some(kafka) = Kafka::start(&[("log.dirs", &data.display().to_string())]) else { return };
    let Some(stand) = stand_over(&kafka.brokers(), "").await else { return };
    bank::create(&stand.source, 10_000).await;
    let teller = bank::teller(&stand.source, seeded::seed("a broker's full disk"), 120);
    let mut run = stand.start();
    stand.until_caught_up(&mut run, 1).await;
    disk.fill(0);
    until_it_says_nothing_is_taken(&stand, &mut run).await;
    teller.wait_for_more(40);
    // It may have ended by itself already.
    kafka.kill();
    disk.free();
    kafka.start_again();
    assert_goes_on(&stand, run, teller).await;
}
