//! The demo's second half: both sides read and compared, the writers taken to the new side, and back again.

use super::{STEP_LIMIT, Stage, check, child::Running, clerks::Clerks, say, wait_until};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value as Json;
use std::time::{Duration, Instant};

/// What was proven, in figures.
#[derive(Debug, Default)]
pub(super) struct Switched {
    pub(super) reads: u64,
    pub(super) by_lag: u64,
    pub(super) cutover: Pause,
    pub(super) failback: Pause,
    pub(super) on_new: u64,
    pub(super) orders: u64,
    pub(super) compared: u64,
}

/// How long the writers were held up, as the switch and as they themselves have measured it.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Pause {
    pub(super) own_ms: f64,
    pub(super) felt: Duration,
}

/// The questions of the dual reads, in the words of both sides.
pub(super) const QUERIES: &str = r#"runs = 50

[[query]]
name   = "customer by key"
source = "SELECT email, full_name AS name, balance FROM customers WHERE id = $1"
target = "SELECT email, name, balance FROM customers WHERE id = $1"

[query.params]
on     = "target"
sql    = "SELECT old_id, new_id FROM uuid_migration_mapping WHERE table_name = 'main.customers' ORDER BY old_id LIMIT 50"
source = ["old_id"]
target = ["new_id"]

[[query]]
name   = "orders of a customer"
source = "SELECT o.placed, CAST(o.amount_text AS INTEGER) AS amount, o.status FROM orders o WHERE o.customer_id = $1"
target = "SELECT o.placed_on AS placed, o.amount, o.status FROM orders o WHERE o.customer_id = $1"
compare = { order = "any" }

[query.params]
on     = "target"
sql    = "SELECT old_id, new_id FROM uuid_migration_mapping WHERE table_name = 'main.customers' ORDER BY new_id LIMIT 50"
source = ["old_id"]
target = ["new_id"]
"#;

const OLD: usize = 0;
const NEW: usize = 1;

/// Takes live writers to the new side and back, and proves that nothing was lost.
pub(super) fn second_half(stage: &Stage) -> Result<Switched> {
    let mut proof = Switched::default();
    let run = stage.first.start()?;
    stage.first.wait_caught_up()?;
    let mut clerks = Clerks::start(&stage.shop, &stage.target, 3)?;
    say("Three clerks write orders, and ask crossfade_side which file to write");
    wait_for_orders(&mut clerks, OLD, 200)?;
    dual_reads(stage, &mut proof)?;
    stage.first.command(&["verify", "migration.toml"])?;
    proof.cutover = switch(stage, "cutover", &mut clerks, run, NEW)?;
    say(&format!("Cutover: the clerks write the new file now; {}", proof.cutover.said()));

    wait_for_orders(&mut clerks, NEW, 200)?;
    let run = stage.first.start()?;
    stage.first.command(&["wait", "migration.toml", "--reverse", "--caught-up", "--timeout", "60s"])?;
    wait_for_orders(&mut clerks, NEW, 200)?;
    say("The old file follows the new one, behind a fence; orders that were born there get old keys");
    proof.failback = switch(stage, "failback", &mut clerks, run, OLD)?;
    say(&format!("Failback: the clerks write the old file again; {}", proof.failback.said()));

    wait_for_orders(&mut clerks, OLD, 200)?;
    let run = stage.first.start()?;
    proof.on_new = clerks.on(NEW);
    let known = clerks.stop()?;
    stage.first.wait_caught_up()?;
    proof.orders = known.len() as u64;
    for file in [&stage.shop, &stage.target] {
        check::has_all_orders(file, &known)?;
    }
    proof.compared = check::compare_with_mapping(&stage.shop, &stage.target)?;
    run.stop()?;
    say(&format!(
        "Both sides agree again: {} rows, and every order that a clerk knows of is there once",
        proof.compared
    ));
    Ok(proof)
}

/// The same questions to both sides for a share of the time, judged by what the target has come past.
fn dual_reads(stage: &Stage, proof: &mut Switched) -> Result<()> {
    let words = ["verify", "migration.toml", "--queries", "queries.toml", "--no-rows", "--share", "50%", "--for", "1s"];
    let answer: Json = serde_json::from_str(&stage.first.command(&[&words[..], &["--json"]].concat())?)?;
    let pairs = answer.get("queries").and_then(Json::as_array).context("the answer names no queries")?;
    let sum = |key: &str| pairs.iter().filter_map(|pair| pair.get(key).and_then(Json::as_u64)).sum::<u64>();
    proof.reads = sum("runs");
    proof.by_lag = sum("explained_by_lag");
    ensure!(proof.reads > 0 && sum("mismatched") == 0, "the dual reads do not agree: {answer}");
    say(&format!(
        "Dual reads while they write: {} asked of both files, the same answers ({} once the target had come as far)",
        proof.reads, proof.by_lag
    ));
    Ok(())
}

/// Switches under the clerks. A machine that is too slow for a guard that looks at the clock is asked again.
fn switch(stage: &Stage, command: &str, clerks: &mut Clerks, run: Running<'_>, to: usize) -> Result<Pause> {
    clerks.longest_gap();
    let begun = Instant::now();
    let answer = loop {
        match stage.first.command(&[command, "migration.toml", "--json"]) {
            Ok(answer) => break answer,
            Err(error) if begun.elapsed() > STEP_LIMIT => bail!(error),
            Err(error) => {
                run.check_alive().with_context(|| error.to_string())?;
                std::thread::sleep(Duration::from_millis(200));
            }
        }
    };
    run.ended()?;
    wait_for_orders(clerks, to, 50)?;
    let answer: Json = serde_json::from_str(&answer)?;
    let own_us = answer.pointer("/pause/total_us").and_then(Json::as_f64).context("the answer names no pause")?;
    Ok(Pause { own_ms: own_us / 1000.0, felt: clerks.longest_gap() })
}

impl Pause {
    pub(super) fn said(&self) -> String {
        format!(
            "it held them up for {:.0} ms, and the longest time between two commits was {:.0} ms",
            self.own_ms,
            self.felt.as_secs_f64() * 1000.0
        )
    }
}

fn wait_for_orders(clerks: &mut Clerks, side: usize, more: u64) -> Result<()> {
    let before = clerks.on(side);
    wait_until("the clerks' orders", || match clerks.check() {
        Err(error) => Some(Err(error)),
        Ok(()) => (clerks.on(side) > before + more).then_some(Ok(())),
    })?
}
