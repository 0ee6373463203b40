//! One migration as five processes over topics: ingest, two transform workers and two delivers that share the stream. Each of
//! them and the broker are killed and frozen in every phase, under live writers; both sides must then be equal, and a history
//! kept by the target must show every key in its order. Built with the feature `kafka` (`make test-kafka`, `make soak`).

use crate::{
    bank,
    crew::{Crew, DELIVERS, INGEST, WORKERS},
    ends::End,
    hand::Hand,
    is_soak,
    setup::{Mode, Setup},
    stand::{SPEC, Stand},
    tally::Phase,
};
use crossfade_testkit::{
    compare::assert_same_tables,
    kafka::{Cluster, Kafka},
    postgres::Version::V15,
    seeded,
};
use rand::{Rng, rngs::StdRng};
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

/// What is done to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Worker,
    Broker,
    Deliver,
    Ingest,
    /// One process is frozen, mostly for longer than its group bears.
    Stopped,
    /// All processes, and a broker.
    All,
    /// A broker keeps its connections and answers nothing, for a while.
    Hang,
}

const FAULTS: [Fault; 7] =
    [Fault::Worker, Fault::Broker, Fault::Deliver, Fault::Ingest, Fault::Stopped, Fault::All, Fault::Hang];

/// How many faults in each phase of a round, at most while it copies.
fn phases() -> [(Phase, usize); 3] {
    let (copying, behind, streaming) = if is_soak() { (5, 8, 8) } else { (3, 4, 4) };
    [(Phase::Snapshot, copying), (Phase::CatchUp, behind), (Phase::Streaming, streaming)]
}

/// The keys of this table only ever count up; what is transformed leaves its values as they are, so that both sides can be
/// held against each other as they stand.
const STEPS: &str = "
CREATE TABLE steps (id int PRIMARY KEY, n int NOT NULL, words text);
INSERT INTO steps SELECT n, 0, 'step' FROM generate_series(1, 40) n;";

const RULES: &str = r#"
[[table]]
from  = "public.steps"
steps = [{ null_if = "words", any_of = ["never said"] }]
[[table]]
from  = "public.accounts"
steps = [{ null_if = "note", any_of = ["never said"] }]
[[table]]
from  = "public.ballast"
steps = [{ null_if = "filler", any_of = ["never said"] }]
"#;

/// Notes every write in the order in which it came.
const HISTORY: &str = "
CREATE TABLE history (at bigserial PRIMARY KEY, id int, n int);
CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO public.history (id, n) VALUES (NEW.id, NEW.n); RETURN NEW; END $$;
CREATE TRIGGER noted AFTER INSERT OR UPDATE ON steps FOR EACH ROW EXECUTE FUNCTION noted();
ALTER TABLE steps ENABLE ALWAYS TRIGGER noted;";

/// How often which fault came in which phase.
type Faults = BTreeMap<(Phase, Fault), usize>;

fn step(end: &End, mut rng: StdRng, stop: &AtomicBool, committed: &AtomicU64, pause: Duration) {
    let runtime = bank::quietly();
    let mut writer = bank::Writer::new(end);
    while !stop.load(Ordering::Relaxed) {
        let sql = format!("UPDATE steps SET n = n + 1 WHERE id % 7 = {};", rng.random_range(0..7));
        if runtime.block_on(writer.commit(&sql)) {
            committed.fetch_add(1, Ordering::Relaxed);
        }
        thread::sleep(pause);
    }
}

/// A migration under faults.
struct Round<'a> {
    stand: Stand,
    kafka: &'a Cluster,
    crew: Crew,
    rng: StdRng,
    teller: Hand,
    stepper: Hand,
    mark: i64,
    faults: Faults,
    /// Which fault comes next: over all rounds each comes in turn.
    next: usize,
}

impl<'a> Round<'a> {
    async fn begin(kafka: &'a Cluster, seed: u64, next: usize) -> Option<Self> {
        let mut stand = Stand::new(Setup::between(V15, V15, Mode::Parallel)).await?;
        stand.log = format!(
            "[log]\nkind = \"kafka\"\nbrokers = \"{}\"\npartitions = 8\ntransform = \"workers\"\nworker_timeout = \"6s\"\n{RULES}",
            kafka.brokers()
        );
        stand.write_spec(&stand.source.spec(), &stand.target.spec());
        stand.fill(if is_soak() { 120_000 } else { 40_000 }).await;
        stand.source.execute(STEPS).await;
        let teller = bank::teller(&stand.source, seed, 80);
        let stepper = Hand::start("the stepper", &stand.source, seeded::worker(seed, 78), 80, step);
        let crew = Crew::begin(&stand).await;
        let rng = seeded::worker(seed, 99);
        Some(Self { stand, kafka, crew, rng, teller, stepper, mark: 0, faults: Faults::new(), next })
    }

    fn node(&mut self) -> &'a Kafka {
        self.kafka.node(self.rng.random_range(0..self.kafka.len()))
    }

    /// One fault, from which everybody is back at the end.
    async fn strike(&mut self) -> Fault {
        let fault = FAULTS[self.next % FAULTS.len()];
        self.next += 1;
        let moment = Duration::from_millis(self.rng.random_range(0..900));
        tokio::time::sleep(moment).await;
        let either = self.rng.random_range(0..2);
        match fault {
            Fault::Worker => self.again(WORKERS[either]),
            Fault::Deliver => self.again(DELIVERS[either]),
            Fault::Ingest => self.again(INGEST),
            Fault::Broker => {
                let node = self.node();
                node.kill();
                self.teller.wait_for_more(self.rng.random_range(1..40));
                node.start_again();
            }
            Fault::All => {
                let node = self.node();
                node.kill();
                self.crew.kill_all();
                self.teller.wait_for_more(self.rng.random_range(1..20));
                // Whoever begins must find the brokers.
                node.start_again();
                self.crew.start_all();
            }
            Fault::Stopped => {
                let who = self.rng.random_range(0..=DELIVERS[1]);
                let lasts = Duration::from_millis(self.rng.random_range(500..if is_soak() { 20_000 } else { 10_000 }));
                self.crew.freeze(who, lasts).await;
            }
            Fault::Hang => {
                let node = self.node();
                node.freeze();
                tokio::time::sleep(Duration::from_millis(self.rng.random_range(500..8_000))).await;
                node.thaw();
            }
        }
        fault
    }

    fn again(&mut self, who: usize) {
        self.crew.kill(who);
        self.crew.start(who);
    }

    async fn strike_in(&mut self, phase: Phase) {
        let fault = self.strike().await;
        *self.faults.entry((phase, fault)).or_default() += 1;
    }

    async fn until_caught_up(&mut self) {
        self.mark += 1;
        let (stand, mark) = (&self.stand, self.mark);
        bank::write_mark(&stand.source, mark).await;
        self.crew.until("the target has caught up", async || stand.has_mark(mark).await).await;
    }

    /// All phases in turn; gives the faults that came in each.
    async fn play(mut self) -> (Faults, usize) {
        let [(_, copying), (_, behind), (_, streaming)] = phases();
        for _ in 0..copying {
            if self.stand.is_loaded().await {
                break;
            }
            self.strike_in(Phase::Snapshot).await;
        }
        self.until_caught_up().await;
        self.stand.target.execute_at_last(HISTORY).await;
        for _ in 0..behind / 2 {
            self.crew.kill_all();
            self.mark += 1;
            bank::hand_around(&self.stand.source, 300, self.mark).await;
            bank::backlog(&self.stand.source, 1_000 + self.mark, 1_500, self.mark).await;
            self.crew.start_all();
            for _ in 0..2 {
                let there = self.stand.has_mark(self.mark).await;
                self.strike_in(if there { Phase::Streaming } else { Phase::CatchUp }).await;
            }
        }
        self.until_caught_up().await;
        self.crew.until_shared().await;
        for _ in 0..streaming {
            self.strike_in(Phase::Streaming).await;
        }
        self.settle().await
    }

    /// The writers end, everything arrives, and both sides are equal.
    async fn settle(mut self) -> (Faults, usize) {
        self.until_caught_up().await;
        self.crew.until_shared().await;
        self.crew.until_made().await;
        self.teller.wait_for_more(10);
        self.stepper.wait_for_more(10);
        let Self { stand, mut crew, teller, stepper, mark, faults, next, .. } = self;
        assert!(teller.stop() > 0 && stepper.stop() > 0, "nobody committed anything: this proves nothing");
        bank::write_mark(&stand.source, mark + 1).await;
        crew.until("the target has caught up", async || stand.has_mark(mark + 1).await).await;
        stand.wait_caught_up();
        stand.assert_equal(false).await;
        assert_steps(&stand).await;
        let held = stand.crossfade.json(&["quarantine", "ls", SPEC]);
        assert_eq!(held.as_array().map(Vec::len), Some(0), "nothing may be in quarantine: {held}");
        crew.stop().await;
        stand.crossfade.succeed(&["log", "verify", SPEC]);
        (faults, next)
    }
}

/// Each key of `steps` stands where it does in the source, and came there one step after the other.
async fn assert_steps(stand: &Stand) {
    let (End::Postgres(source), End::Postgres(target)) = (&stand.source, &stand.target) else {
        panic!("both ends are servers")
    };
    assert_same_tables(&source.connect().await, &target.connect().await, &["steps"], str::to_owned).await;
    let back = "SELECT count(*) FROM (SELECT n, lag(n) OVER (PARTITION BY id ORDER BY at) before FROM history) h \
                WHERE n <= before";
    assert_eq!(stand.target.number(back).await, Some(0), "a key went back, or had a change twice");
    let noted = stand.target.number("SELECT count(*) FROM history").await;
    assert!(noted > Some(100), "only {noted:?} writes were noted: this proves nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_delivers_and_brokers_may_be_killed_or_frozen_in_every_phase() {
    // With three of them a group and a transaction move to another broker; with one they wait for it.
    let Some(kafka) = Cluster::start(if is_soak() { 3 } else { 1 }) else { return };
    let seed = seeded::seed("kills of workers, delivers and brokers");
    let (mut faults, mut next, began) = (Faults::new(), 0, Instant::now());
    let rounds = if is_soak() { 10 } else { 1 };
    for number in 0..rounds {
        let Some(round) = Round::begin(&kafka, seed.wrapping_add(number), next).await else { return };
        let played;
        (played, next) = round.play().await;
        for (what, times) in played {
            *faults.entry(what).or_default() += times;
        }
        println!("round {} of {rounds}: {next} faults after {:?}, both sides equal", number + 1, began.elapsed());
    }
    for (phase, _) in phases() {
        let of = |fault| faults.get(&(phase, fault)).copied().unwrap_or_default();
        println!("  {phase:?}: {:?}", FAULTS.map(|fault| (fault, of(fault))));
        assert!(FAULTS.into_iter().any(|fault| of(fault) > 0), "nothing was done in {phase:?}");
    }
}
