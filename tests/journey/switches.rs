//! Figures of the switch, in the long round only (`CROSSFADE_SOAK=1`): how long writers wait under load, and what is left after many
//! switches with faults in them. `make bench-switch` runs both; `CROSSFADE_SWITCHES` says how many.

use crate::{
    desk::{SPEC, assert_same_tables},
    failback::{TABLES, fail_back, follow_back},
    switch::{assert_fenced, ready, switch, switch_status},
    tellers::{Bank, Pace, Tellers},
};
use crossfade_testkit::{
    crossfade::Running,
    postgres::{Database, Postgres, Settings, Version},
};
use std::{
    collections::BTreeMap,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

/// So many switches, unless said otherwise.
fn count(usual: usize) -> usize {
    std::env::var("CROSSFADE_SWITCHES").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// The tellers' work in one switch's figures.
const TELLERS: u64 = 10;
const RATE: u64 = 1_000;

fn percentile(sorted: &[Duration], share: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

fn say(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let ms = |share| percentile(&times, share).as_secs_f64() * 1e3;
    println!(
        "FIGURE {what}: n {}, p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, longest {:.1} ms",
        times.len(),
        ms(0.5),
        ms(0.9),
        ms(0.99),
        ms(1.0)
    );
}

/// Starts the stream that follows the side with the authority, and makes everything ready for the next switch.
fn follow(bank: &Bank, tellers: &Tellers, on_new: bool) -> Running {
    if on_new {
        return follow_back(bank, tellers);
    }
    let mut run = bank.desk.start();
    bank.desk.wait(&mut run);
    bank.desk.verify();
    run
}

#[tokio::test(flavor = "multi_thread")]
async fn how_long_writers_wait_under_a_thousand_transactions_a_second() {
    if !crate::is_soak() {
        return;
    }
    // What waits for a disk must wait for it here.
    let server = || Postgres::start(Version::V15, Settings::new().fsync());
    let (Some(source), Some(target)) = (server(), server()) else { return };
    let (old, new) = (source.create_database("source").await, target.create_database("target").await);
    let bank = Bank::between(old, new, "deadline = \"10s\"").await;
    let (mut run, first) = ready(&bank, 1, 0).await;
    first.stop();
    bank.old.execute("DELETE FROM movements; UPDATE accounts SET balance = 1000; DELETE FROM notes").await;
    bank.desk.wait(&mut run);
    let every = Duration::from_micros(1_000_000 * TELLERS / RATE);
    let tellers = Tellers::start_at(&bank, TELLERS - 2, 2, Pace::Every(every));
    let counts = tellers.counts();
    let (mut gaps, mut still, mut own, mut rates) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut on_new = false;
    let switches = count(50);
    for _ in 0..switches {
        // As much again without a switch, for comparison.
        tellers.wait_for_more(RATE / 2);
        counts.longest_gap_since();
        let (begun, before) = (Instant::now(), counts.committed.load(Relaxed));
        tellers.wait_for_more(RATE);
        still.push(counts.longest_gap_since());
        rates.push((counts.committed.load(Relaxed) - before) as f64 / begun.elapsed().as_secs_f64());
        let answer = if on_new { fail_back(&bank) } else { switch(&bank) };
        on_new = !on_new;
        tellers.wait_for_more(RATE / 2);
        gaps.push(counts.longest_gap_since());
        own.push(Duration::from_micros(answer["pause"]["total_us"].as_u64().unwrap()));
        println!("{} {} gap {:?}", answer["authority"], answer["pause"], gaps.last().unwrap());
        assert_eq!(run.wait().code, Some(0));
        run = follow(&bank, &tellers, on_new);
    }
    let rate = rates.iter().sum::<f64>() / rates.len() as f64;
    let told = tellers.stop();
    let side = if on_new { &bank.new } else { &bank.old };
    bank.assert_has_all(side, &told, switches).await;
    let rows = side.value("SELECT count(*) FROM movements").await.unwrap();
    println!("FIGURE {rate:.0} transactions a second, 500 accounts, {rows} movements at the end, 3 tables");
    say("longest gap between two commits, with a switch in it", gaps);
    say("longest gap in as many transactions without one", still);
    say("as the switch itself measures it", own);
    bank.desk.stop(run);
}

/// Numbers that are the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn ms(&mut self, limit: u64) -> Duration {
        Duration::from_millis(self.below(limit))
    }
}

const FAULTS: [&str; 6] = [
    "kill",
    "kill in the freeze",
    "freeze cut off",
    "sessions cut off",
    "table locked where it goes to",
    "long transaction",
];

/// One switch with a fault in it, and then without, until it is made.
struct Round<'b> {
    bank: &'b Bank,
    tellers: &'b Tellers,
    from: &'b Database,
    to: &'b Database,
    command: &'static str,
}

impl Round<'_> {
    /// Does the worst while the command is at work; says what became of it.
    async fn with(&self, fault: &str, mut run: Running, dice: &mut Dice) -> (Option<Running>, bool) {
        let command = self.bank.desk.crossfade.spawn(&[self.command, SPEC, "--json"]);
        let frozen = "SELECT pid FROM pg_stat_activity WHERE application_name = 'crossfade freeze' \
            AND state = 'idle in transaction' AND datname = current_database()";
        match fault {
            "kill" => {
                tokio::time::sleep(dice.ms(400)).await;
                run.kill();
                return (None, command.wait().code == Some(0));
            }
            "kill in the freeze" => {
                let begun = Instant::now();
                while self.from.value(frozen).await.is_none() && begun.elapsed() < Duration::from_secs(2) {}
                tokio::time::sleep(Duration::from_micros(dice.below(40_000))).await;
                run.kill();
                return (None, command.wait().code == Some(0));
            }
            "freeze cut off" => {
                let begun = Instant::now();
                while begun.elapsed() < Duration::from_secs(2) {
                    if let Some(pid) = self.from.value(frozen).await {
                        self.from.execute(&format!("SELECT pg_terminate_backend({pid})")).await;
                        break;
                    }
                }
            }
            "sessions cut off" => {
                tokio::time::sleep(dice.ms(400)).await;
                let all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                    WHERE application_name LIKE 'crossfade%' AND datname = current_database()";
                let side = if dice.below(2) == 0 { self.from } else { self.to };
                side.execute(all).await;
            }
            "table locked where it goes to" => {
                let holds = self.to.connect().await;
                let mode = ["SHARE UPDATE EXCLUSIVE", "ACCESS EXCLUSIVE"][dice.below(2) as usize];
                tokio::time::sleep(dice.ms(200)).await;
                holds.batch_execute(&format!("BEGIN; LOCK TABLE notes IN {mode} MODE")).await.unwrap();
                tokio::time::sleep(dice.ms(3_000)).await;
                holds.batch_execute("COMMIT").await.unwrap();
            }
            _ => {
                let slow = self.from.connect().await;
                tokio::time::sleep(dice.ms(200)).await;
                // It may come too late: then the fence refuses it.
                let begun = slow.batch_execute("BEGIN; DELETE FROM notes WHERE note = 'none'").await;
                tokio::time::sleep(dice.ms(3_000)).await;
                let _ = slow.batch_execute(if begun.is_ok() { "COMMIT" } else { "ROLLBACK" }).await;
            }
        }
        let ended = command.wait();
        (run.is_running().then_some(run), ended.code == Some(0))
    }

    /// Whether the writers are on the other side by now.
    fn is_made(&self) -> bool {
        let wanted = if self.command == "cutover" { "new" } else { "old" };
        switch_status(self.bank)["authority"] == wanted
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_switches_with_faults_in_them_have_one_writer_at_any_time_and_lose_nothing() {
    if !crate::is_soak() {
        return;
    }
    let seed = std::env::var("CROSSFADE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_260_729);
    println!("seed {seed}");
    let Some(bank) = Bank::open("deadline = \"2s\"\nlock_timeout = \"500ms\"").await else { return };
    let (mut run, tellers) = ready(&bank, 3, 1).await;
    let (mut dice, mut on_new, mut tally) = (Dice(seed), false, BTreeMap::<(&str, &str), usize>::new());
    let mut made = BTreeMap::<&str, usize>::new();
    let switches = count(60);
    let limit = std::env::var("CROSSFADE_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(900);
    let begun = Instant::now();
    let mut done = 0;
    while done < switches && begun.elapsed() < Duration::from_secs(limit) {
        let (from, to) = if on_new { (&bank.new, &bank.old) } else { (&bank.old, &bank.new) };
        let command = if on_new { "failback" } else { "cutover" };
        let round = Round { bank: &bank, tellers: &tellers, from, to, command };
        let fault = FAULTS[dice.below(FAULTS.len() as u64) as usize];
        let (left, told) = round.with(fault, run, &mut dice).await;
        // Whatever has happened: whoever runs it again settles it, and the writers go on.
        let made_at_once = round.is_made();
        drop(left);
        let mut now = bank.desk.start();
        round.tellers.wait_for_more(30);
        if !round.is_made() {
            bank.desk.wait_with(&mut now, if on_new { &["--reverse"] } else { &[] });
            let said = bank.desk.expect(0, &["verify"], if on_new { &["--reverse"] } else { &[] });
            assert!(said.stdout.contains("0 differences"), "{said}");
            let _ = if on_new { fail_back(&bank) } else { switch(&bank) };
            assert_eq!(now.wait().code, Some(0));
        } else {
            drop(now);
        }
        let came = match (told, made_at_once) {
            (true, _) => "made in spite of it",
            (false, true) => "made, and found so later",
            (false, false) => "taken back, and made again",
        };
        *tally.entry((fault, came)).or_default() += 1;
        *made.entry(command).or_default() += 1;
        (on_new, done) = (!on_new, done + 1);
        tellers.wait_for_more(30);
        assert_fenced(from).await;
        run = follow(&bank, &tellers, on_new);
    }
    let (side, other) = if on_new { (&bank.new, &bank.old) } else { (&bank.old, &bank.new) };
    let told = tellers.stop();
    bank.desk.wait_with(&mut run, if on_new { &["--reverse"] } else { &[] });
    bank.assert_has_all(side, &told, done).await;
    assert_same_tables(side, other, &TABLES).await;
    for ((fault, came), times) in &tally {
        println!("FIGURE {fault}: {came}: {times}");
    }
    println!("FIGURE {made:?} with a fault each, {} movements, 0 lost, in {:?}", told.len(), begun.elapsed());
    bank.desk.stop(run);
}
