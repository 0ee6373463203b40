//! `crossfade demo`: the whole life of a migration on embedded parts, with live writers, in under half a minute.
//!
//! The demo's own process plays the application: it owns the shop database and runs three writers. The migrator is
//! the same binary as a child, driven only by commands that a user has too. Every claim in the closing summary was
//! checked by reading both files row by row, with code that shares nothing with the migrator.

mod check;
mod child;
mod clerks;
mod shop;
mod switch;
mod writers;

use anyhow::{Context, Result, bail, ensure};
use check::{compare_with_mapping, same_content};
use child::Crossfade;
use shop::{CUSTOMERS, LINES_PER_ORDER, ORDERS};
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use switch::Switched;
use writers::Writers;

/// How long any one step may take before the demo gives up.
const STEP_LIMIT: Duration = Duration::from_secs(120);

/// What was proven, in figures.
#[derive(Debug, Default)]
struct Proof {
    rows_first: u64,
    killed_in_snapshot_at: u64,
    killed_while_streaming_at: u64,
    transactions: u64,
    key_changes: u64,
    compared: u64,
    replayed: u64,
    damaged: u64,
    wiped: bool,
}

/// Runs the demo in `folder`, which must not exist or be empty.
///
/// # Errors
/// The first step that did not end as it should.
pub(crate) fn run(folder: &Path) -> Result<()> {
    let begun = Instant::now();
    if folder.exists() {
        ensure!(
            folder.join("shop.db").exists() || std::fs::read_dir(folder)?.next().is_none(),
            "{} exists and is not a demo's folder; name another one with --folder",
            folder.display()
        );
        std::fs::remove_dir_all(folder).with_context(|| format!("emptying {}", folder.display()))?;
    }
    std::fs::create_dir_all(folder)?;
    let folder = folder.canonicalize()?;
    let stage = Stage::new(&folder)?;
    let mut proof = Proof::default();

    say(&format!("A shop with {ORDERS} orders, {CUSTOMERS} customers and {} order lines", ORDERS * LINES_PER_ORDER));
    shop::create(&stage.shop)?;
    proof.rows_first = u64::from(CUSTOMERS + ORDERS + ORDERS * LINES_PER_ORDER);

    let mut writers = Writers::start(&stage.shop, 3)?;
    say("Three writers insert, update, delete and change keys all the while");
    snapshot_with_a_kill(&stage, &mut proof)?;
    let run = stream_with_a_kill(&stage, &mut writers, &mut proof)?;
    let run = checkpoint_and_compare(&stage, run, writers, &mut proof)?;
    heal_by_hand_damage(&stage, &run, &mut proof)?;
    replay_into_a_third_file(&stage, &mut proof)?;
    run.stop()?;
    wipe(&stage, &mut proof)?;
    let switched = switch::second_half(&stage)?;
    summary(&folder, &proof, &switched, begun.elapsed());
    Ok(())
}

/// The files and programs of the demo.
struct Stage {
    shop: PathBuf,
    target: PathBuf,
    third: PathBuf,
    fresh: PathBuf,
    first: Crossfade,
    other: Crossfade,
    again: Crossfade,
}

impl Stage {
    fn new(folder: &Path) -> Result<Self> {
        let file = |name: &str| folder.join(name);
        let stage = Self {
            shop: file("shop.db"),
            target: file("shop-v2.db"),
            third: file("shop-v3.db"),
            fresh: file("shop-v3-fresh.db"),
            first: Crossfade::new(folder, "migration.toml"),
            other: Crossfade::new(folder, "replay.toml"),
            again: Crossfade::new(folder, "fresh.toml"),
        };
        let first = shop::spec("shop", "shop-v2.db", shop::FIRST_RULES);
        std::fs::write(file("migration.toml"), format!("{first}{}", shop::SWITCH))?;
        std::fs::write(file("queries.toml"), switch::QUERIES)?;
        std::fs::write(file("replay.toml"), shop::spec("shop-replay", "shop-v3.db", shop::OTHER_RULES))?;
        std::fs::write(file("fresh.toml"), shop::spec("shop-fresh", "shop-v3-fresh.db", shop::OTHER_RULES))?;
        Ok(stage)
    }
}

fn snapshot_with_a_kill(stage: &Stage, proof: &mut Proof) -> Result<()> {
    let run = stage.first.start()?;
    let rows = wait_until("a part of the orders in the target", || {
        let rows = check::rows_if_any(&stage.target, "orders");
        (rows >= u64::from(ORDERS) / 10).then_some(rows)
    })?;
    run.kill()?;
    let rows = check::rows_if_any(&stage.target, "orders").max(rows);
    proof.killed_in_snapshot_at = rows;
    say(&format!("Killed (SIGKILL) with {rows} of {ORDERS} orders copied; started again"));
    Ok(())
}

fn stream_with_a_kill<'a>(stage: &'a Stage, writers: &mut Writers, proof: &mut Proof) -> Result<child::Running<'a>> {
    let run = stage.first.start()?;
    stage.first.wait_caught_up()?;
    wait_for_writes(writers, 200)?;
    run.kill()?;
    proof.killed_while_streaming_at = writers.transactions();
    say(&format!(
        "Killed again while streaming, after {} transactions; started again",
        proof.killed_while_streaming_at
    ));
    stage.first.start()
}

fn checkpoint_and_compare<'a>(
    stage: &'a Stage,
    run: child::Running<'a>,
    mut writers: Writers,
    proof: &mut Proof,
) -> Result<child::Running<'a>> {
    stage.first.wait_caught_up()?;
    stage.first.command(&["checkpoint", "migration.toml", "before-damage"])?;
    wait_for_writes(&mut writers, 300)?;
    let (transactions, key_changes, touched) = writers.stop()?;
    proof.transactions = transactions;
    proof.key_changes = key_changes;
    std::fs::write(
        stage.shop.with_file_name("touched.txt"),
        touched.iter().map(|id| format!("{id}\n")).collect::<String>(),
    )?;
    stage.first.wait_caught_up()?;
    proof.compared = compare_with_mapping(&stage.shop, &stage.target)?;
    let verified = stage.first.command(&["verify", "migration.toml"])?;
    ensure!(verified.contains("0 differences"), "`crossfade verify` does not agree:\n{verified}");
    say(&format!("Both sides agree, row by row: {} rows, keys and references through the mapping", proof.compared));
    Ok(run)
}

fn heal_by_hand_damage(stage: &Stage, run: &child::Running<'_>, proof: &mut Proof) -> Result<()> {
    run.check_alive()?;
    let touched: Vec<i64> = std::fs::read_to_string(stage.shop.with_file_name("touched.txt"))?
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect();
    proof.damaged = check::damage(&stage.target, &touched)?;
    ensure!(compare_with_mapping(&stage.shop, &stage.target).is_err(), "the comparison did not see the damage");
    stage.first.command(&["replay", "migration.toml", "--from", "checkpoint:before-damage"])?;
    compare_with_mapping(&stage.shop, &stage.target).context("after the healing replay")?;
    say(&format!("{} rows damaged by hand, seen, and healed by a replay from a checkpoint", proof.damaged));
    Ok(())
}

fn replay_into_a_third_file(stage: &Stage, proof: &mut Proof) -> Result<()> {
    stage.first.command(&["replay", "migration.toml", "--from", "offset:0", "--into", "replay.toml"])?;
    stage.again.command(&["run", "fresh.toml", "--until", "caught-up"])?;
    proof.replayed = same_content(&stage.third, &stage.fresh)?;
    say(&format!("Replayed from the beginning with another spec: {} rows, equal to a fresh migration", proof.replayed));
    Ok(())
}

fn wipe(stage: &Stage, proof: &mut Proof) -> Result<()> {
    stage.other.command(&["rollback", "replay.toml", "--wipe", "--yes"])?;
    // It has done its part, and records the shop's changes as well: what comes back after a switch would be missing in it.
    stage.again.command(&["rollback", "fresh.toml", "--wipe", "--yes"])?;
    let left = check::tables(&stage.third)?;
    ensure!(left.is_empty(), "the wipe left {left:?} behind");
    proof.wiped = true;
    say("The third file wiped: nothing of ours is left in it");
    Ok(())
}

fn summary(folder: &Path, proof: &Proof, switched: &Switched, took: Duration) {
    println!();
    println!("Proven in {:.1} s:", took.as_secs_f64());
    println!(
        "  {:>9} rows moved to UUID keys under {} live transactions ({} of them changed a key)",
        proof.rows_first, proof.transactions, proof.key_changes
    );
    println!(
        "  {:>9} rows compared one by one on both sides after 2 kills (at {} orders, at {} transactions): 0 differences",
        proof.compared, proof.killed_in_snapshot_at, proof.killed_while_streaming_at
    );
    println!("  {:>9} rows damaged by hand, healed by a replay from a checkpoint", proof.damaged);
    println!("  {:>9} rows replayed into a third file with another spec, equal to a fresh migration", proof.replayed);
    println!("  {:>9} of our objects left after the wipe", if proof.wiped { 0 } else { 1 });
    println!("  {:>9} reads asked of both sides under live writes: 0 different answers", switched.reads);
    println!(
        "  {:>9} orders by live writers through cutover ({:.0} ms) and failback ({:.0} ms), {} of them on the new side: 0 lost",
        switched.orders, switched.cutover.own_ms, switched.failback.own_ms, switched.on_new
    );
    println!("  {:>9} rows compared one by one on both sides after that: 0 differences", switched.compared);
    println!();
    println!("Everything is in {}", folder.display());
    println!(
        "Try there:  crossfade status migration.toml   ·   crossfade log ls migration.toml   ·   crossfade plan migration.toml"
    );
}

fn say(line: &str) {
    println!("• {line}");
}

/// Waits until the application has committed so many more transactions.
fn wait_for_writes(writers: &mut Writers, more: u64) -> Result<()> {
    let before = writers.transactions();
    wait_until("the application's writes", || match writers.check() {
        Err(error) => Some(Err(error)),
        Ok(()) => (writers.transactions() > before + more).then_some(Ok(())),
    })?
}

fn wait_until<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(found) = ready() {
            return Ok(found);
        }
        if begun.elapsed() > STEP_LIMIT {
            bail!("waited {} s for {what}", STEP_LIMIT.as_secs());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
