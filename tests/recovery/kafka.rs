//! The log on Kafka: the run and the broker are killed in turn and together, under live writers. Built with the feature
//! `kafka` (`make test-kafka`).

use crate::{
    bank, is_soak,
    setup::Direction,
    stand::{SPEC, Stand},
};
use crossfade_testkit::{kafka::Kafka, seeded};
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

/// A stand whose log is on a broker of this test's own.
async fn stand_over(kafka: &Kafka) -> Option<Stand> {
    let mut stand = Stand::new(Direction::PostgresToPostgres).await?;
    stand.log = format!("[log]\nkind = \"kafka\"\nbrokers = \"{}\"\n", kafka.brokers());
    stand.write_spec(&stand.source.spec(), &stand.target.spec());
    Some(stand)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_run_and_the_broker_may_be_killed_at_any_moment() {
    let Some(kafka) = Kafka::start(&[]) else { return };
    let Some(stand) = stand_over(&kafka).await else { return };
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
