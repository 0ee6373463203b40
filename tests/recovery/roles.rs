//! One migration as two processes over three brokers: ingest, deliver and any one broker are killed, stopped for longer than
//! a session lasts, and one broker is replaced by another with an empty disk, all under live writers. Built with the
//! feature `kafka` (`make test-kafka`, `make soak`).

use crate::{
    bank,
    crew::found_nobody,
    hand::Hand,
    is_soak,
    setup::Direction,
    stand::{SPEC, Stand},
};
use crossfade_testkit::{
    crossfade::Running,
    kafka::{Cluster, Kafka},
    seeded,
    wait::{GENEROUS, wait_until},
};
use rand::Rng;
use std::time::{Duration, Instant};

/// What is done to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Ingest,
    Deliver,
    Broker,
    /// Both processes, and a broker.
    All,
    /// A process keeps its sessions and does nothing, for a while.
    Stopped,
    /// A broker does.
    Hang,
    /// A broker's disk is lost.
    Replaced,
}

const FAULTS: [Fault; 7] =
    [Fault::Ingest, Fault::Broker, Fault::Deliver, Fault::Stopped, Fault::All, Fault::Hang, Fault::Replaced];

/// The two processes.
struct Pair {
    ingest: Option<Running>,
    deliver: Option<Running>,
}

impl Pair {
    fn start(stand: &Stand) -> Self {
        Self { ingest: Some(start(stand, "ingest")), deliver: Some(start(stand, "deliver")) }
    }

    fn kill(process: &mut Option<Running>) {
        process.take().map(Running::kill);
    }

    /// Waits until `reached`. Nobody may end meanwhile but for want of a broker, and is begun again then.
    async fn until(&mut self, stand: &Stand, what: &str, mut reached: impl AsyncFnMut() -> bool) {
        let began = Instant::now();
        while !reached().await {
            for (role, process) in [("ingest", &mut self.ingest), ("deliver", &mut self.deliver)] {
                let process = process.as_mut().expect("both run");
                if process.is_running() {
                    assert!(began.elapsed() < GENEROUS, "in vain waited for: {what}\n{}", process.stderr());
                    continue;
                }
                let ended = std::mem::replace(process, start(stand, role)).wait();
                assert!(found_nobody(&ended), "{role} ended before: {what}\n{ended}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn start(stand: &Stand, role: &str) -> Running {
    stand.crossfade.spawn(&["run", SPEC, "--quiet", "--role", role])
}

/// Whether every copy is in step.
fn in_step(kafka: &Cluster) -> bool {
    let words = ["--bootstrap-server", &kafka.brokers(), "--describe", "--under-replicated-partitions"];
    let said = kafka.tool("org.apache.kafka.tools.TopicCommand", &words);
    said.status.success() && said.stdout.iter().all(u8::is_ascii_whitespace)
}

/// One fault, from which everybody is back at the end.
async fn strike(fault: Fault, stand: &Stand, kafka: &Cluster, pair: &mut Pair, teller: &Hand, rng: &mut impl Rng) {
    let place = rng.random_range(0..kafka.len());
    let node: &Kafka = kafka.node(place);
    match fault {
        Fault::Ingest => {
            Pair::kill(&mut pair.ingest);
            pair.ingest = Some(start(stand, "ingest"));
        }
        Fault::Deliver => {
            Pair::kill(&mut pair.deliver);
            pair.deliver = Some(start(stand, "deliver"));
        }
        Fault::Broker => {
            node.kill();
            teller.wait_for_more(rng.random_range(1..40));
            node.start_again();
        }
        Fault::All => {
            node.kill();
            Pair::kill(&mut pair.ingest);
            Pair::kill(&mut pair.deliver);
            teller.wait_for_more(rng.random_range(1..20));
            // With one of three away, they work.
            *pair = Pair::start(stand);
            teller.wait_for_more(rng.random_range(1..40));
            node.start_again();
        }
        Fault::Stopped => {
            let which = if rng.random_ratio(1, 2) { &pair.ingest } else { &pair.deliver };
            let most_ms = if is_soak() { 70_000 } else { 12_000 };
            if let Some(process) = which {
                process.freeze();
                tokio::time::sleep(Duration::from_millis(rng.random_range(500..most_ms))).await;
                process.thaw();
            }
        }
        Fault::Hang => {
            node.freeze();
            tokio::time::sleep(Duration::from_millis(rng.random_range(500..12_000))).await;
            node.thaw();
        }
        Fault::Replaced => {
            // One fault at a time: what is only on a broker that is being written off is gone for good.
            wait_until("every copy to be in step", async || in_step(kafka)).await;
            kafka.replace(place);
            wait_until("every copy to be in step", async || in_step(kafka)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_and_any_broker_may_be_killed_stopped_or_replaced_at_any_moment() {
    let Some(kafka) = Cluster::start(3) else { return };
    let Some(mut stand) = Stand::new(Direction::PostgresToPostgres).await else { return };
    stand.log = format!("[log]\nkind = \"kafka\"\nbrokers = \"{}\"\n", kafka.brokers());
    stand.write_spec(&stand.source.spec(), &stand.target.spec());
    let (rounds, ballast) = if is_soak() { (210, 120_000) } else { (FAULTS.len() * 2, 40_000) };
    bank::create(&stand.source, ballast).await;
    let seed = seeded::seed("kills of roles and brokers");
    let mut rng = seeded::worker(seed, 7);
    let teller = bank::teller(&stand.source, seed, 120);
    let mut pair = Pair::start(&stand);
    let known = stand.work().join("topics.json");
    pair.until(&stand, "the log is there", async || known.exists()).await;
    let mut longest = [Duration::ZERO; FAULTS.len()];
    let mut tally = [0usize; FAULTS.len()];
    for round in 0..rounds {
        // Every fault comes in turn; the first ones in the middle of the copy.
        let which = round % FAULTS.len();
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..900))).await;
        strike(FAULTS[which], &stand, &kafka, &mut pair, &teller, &mut rng).await;
        tally[which] += 1;
        if rng.random_ratio(1, 2) {
            // From the fault's end to what is written then being visible on the target.
            let (mark, since) = (1 + round as i64, Instant::now());
            bank::backlog(&stand.source, 1_000 + mark, 300, mark).await;
            pair.until(&stand, "the target has caught up", async || stand.has_mark(mark).await).await;
            longest[which] = longest[which].max(since.elapsed());
        }
    }
    teller.wait_for_more(20);
    assert!(teller.stop() > 0, "the teller committed nothing: this proves nothing");
    bank::write_mark(&stand.source, 1_000).await;
    pair.until(&stand, "the target has caught up", async || stand.has_mark(1_000).await).await;
    stand.wait_caught_up();
    stand.assert_equal(false).await;
    let held = stand.crossfade.json(&["quarantine", "ls", SPEC]);
    assert_eq!(held.as_array().map(Vec::len), Some(0), "nothing may be in quarantine: {held}");
    for running in [pair.ingest, pair.deliver].into_iter().flatten() {
        running.terminate();
        let ended = running.wait();
        assert_eq!(ended.code, Some(0), "{ended}");
    }
    let sound = stand.crossfade.succeed(&["log", "verify", SPEC]);
    println!(
        "{tally:?} of {FAULTS:?}, both sides equal; longest to visible after each {longest:?}; {}",
        sound.stdout.trim()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_three_brokers_dies_under_load_and_another_takes_its_place() {
    let Some(kafka) = Cluster::start(3) else { return };
    let Some(mut stand) = Stand::new(Direction::PostgresToPostgres).await else { return };
    stand.log = format!("[log]\nkind = \"kafka\"\nbrokers = \"{}\"\n", kafka.brokers());
    stand.write_spec(&stand.source.spec(), &stand.target.spec());
    bank::create(&stand.source, 20_000).await;
    let seed = seeded::seed("a broker dies");
    let teller = bank::teller(&stand.source, seed, 120);
    let mut pair = Pair::start(&stand);
    bank::backlog(&stand.source, 1_000, 300, 1).await;
    pair.until(&stand, "the target follows", async || stand.has_mark(1).await).await;
    let described =
        kafka.tool("org.apache.kafka.tools.TopicCommand", &["--bootstrap-server", &kafka.brokers(), "--describe"]);
    let described = String::from_utf8_lossy(&described.stdout).into_owned();
    let ours: Vec<&str> = described.lines().filter(|line| line.starts_with("Topic: crossfade_")).collect();
    assert!(ours.len() >= 2 && ours.iter().all(|line| line.contains("ReplicationFactor: 3")), "{described}");
    assert!(ours.iter().all(|line| line.contains("min.insync.replicas=2")), "{described}");
    for (place, mark) in [(0, 2), (1, 3)] {
        let since = Instant::now();
        kafka.node(place).kill();
        bank::write_mark(&stand.source, mark).await;
        pair.until(&stand, "the target goes on without that broker", async || stand.has_mark(mark).await).await;
        println!("broker {} killed: what was committed then was visible after {:?}", place + 1, since.elapsed());
        kafka.node(place).start_again();
        kafka.replace(place);
        wait_until("the one in its place to have every copy", async || in_step(&kafka)).await;
    }
    teller.wait_for_more(20);
    teller.stop();
    bank::write_mark(&stand.source, 4).await;
    pair.until(&stand, "the target has caught up", async || stand.has_mark(4).await).await;
    stand.wait_caught_up();
    stand.assert_equal(false).await;
    for running in [pair.ingest, pair.deliver].into_iter().flatten() {
        running.terminate();
        assert_eq!(running.wait().code, Some(0));
    }
    stand.crossfade.succeed(&["log", "verify", SPEC]);
}
