//! Transform workers: a backlog whose rows are masked, by ingest and deliver alone, with one worker and with two. All processes,
//! both servers and the broker are on one machine, so this is what handing over costs, not what further machines give.

use crate::{
    backlog::{SCHEMA, fill, write},
    servers::{Databases, Pair, spawn_written, until_true_by},
    summary::{row, spread},
    usage::{MIB, peak_bytes},
};
use anyhow::{Context, Result, ensure};
use crossfade_testkit::{
    crossfade::{Crossfade, Running},
    kafka::Kafka,
};
use std::{path::Path, time::Instant};

const PER_TRANSACTION: u64 = 100;

/// Two values of each row are made by a keyed hash, and their columns are decoded for it.
const RULES: &str = r#"
[[table]]
from  = "public.items"
steps = [{ mask = "name", with = "hmac" }, { mask = "body", with = "hmac" }]
"#;

/// Of what a mask leaves alone.
const SAME: &str = "SELECT id, kind, price, at FROM public.items ORDER BY id";

/// One round's figures.
#[derive(Debug, Clone, Copy)]
struct Round {
    changes_per_second: f64,
    /// Of the largest worker; of deliver where there is none.
    peak_mib: f64,
}

/// Without workers, with one, with two.
pub(crate) async fn run(rounds: usize, changes: u64) -> Result<()> {
    let pair = Pair::start()?;
    let kafka = Kafka::start(&[]).context("Kafka cannot be had here")?;
    let mut all: [Vec<Round>; 3] = Default::default();
    for _ in 0..rounds {
        for (workers, figures) in all.iter_mut().enumerate() {
            let databases = pair.databases("workers").await;
            databases.source.execute(SCHEMA).await;
            fill(&databases, changes).await;
            figures.push(once(&pair, &kafka, &databases, workers, changes).await?);
        }
    }
    let speed = |rounds: &[Round]| rounds.iter().map(|round| round.changes_per_second).collect::<Vec<_>>();
    let memory = |rounds: &[Round]| rounds.iter().map(|round| round.peak_mib).collect::<Vec<_>>();
    let [none, one, two] = &all;
    row("backlog by roles: deliver transforms (as the peer), one worker", "changes/s", &speed(none), &speed(one));
    row("the same: one worker (as the peer), two", "changes/s", &speed(one), &speed(two));
    println!(
        "| of it resident memory of the larger worker, peak | MiB | {} | {} | |",
        spread(&memory(one)),
        spread(&memory(two))
    );
    Ok(())
}

/// Everybody who works for it, whoever's memory is looked at last.
fn start(folder: &Path, spec: &str, workers: usize) -> Vec<Running> {
    Crossfade::at(folder).write("spec.toml", spec);
    let roles = ["ingest", "deliver"].into_iter().chain(std::iter::repeat_n("transform", workers));
    roles.map(|role| spawn_written(folder, &["--role", role])).collect()
}

fn stop(running: Vec<Running>) -> Result<()> {
    running.iter().for_each(Running::terminate);
    for one in running {
        let finished = one.wait();
        ensure!(finished.code == Some(0), "crossfade run failed: {finished}");
    }
    Ok(())
}

async fn once(pair: &Pair, kafka: &Kafka, databases: &Databases, workers: usize, changes: u64) -> Result<Round> {
    let folder = tempfile::tempdir()?;
    let more = if workers > 0 { "transform = \"workers\"\n" } else { "" };
    let spec = format!(
        "{}[log]\nkind = \"kafka\"\nbrokers = \"{}\"\ntopic_prefix = \"{}\"\n{more}{RULES}",
        databases.spec("workers"),
        kafka.brokers(),
        kafka.prefix("workers")
    );
    let watcher = databases.target.connect().await;
    let running = start(folder.path(), &spec, workers);
    Crossfade::at(folder.path()).succeed(&["wait", "spec.toml", "--caught-up", "--timeout", "300s"]);
    stop(running)?;
    write(databases, changes, PER_TRANSACTION).await?;
    pair.settle().await?;
    let begun = Instant::now();
    let mut running = start(folder.path(), &spec, workers);
    until_true_by(&mut running, &watcher, "SELECT EXISTS (SELECT FROM done)").await?;
    let took = begun.elapsed().as_secs_f64();
    // Behind ingest: the workers, or deliver where it is alone.
    let watched = running.iter().skip(if workers > 0 { 2 } else { 1 });
    let peaks = watched.map(|one| peak_bytes(one.pid())).collect::<Result<Vec<_>>>()?;
    stop(running)?;
    databases.free_slot().await;
    databases.compare(SAME).await?;
    let peak_mib = peaks.into_iter().max().unwrap_or_default() as f64 / MIB;
    Ok(Round { changes_per_second: changes as f64 / took, peak_mib })
}
