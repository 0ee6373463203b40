//! A backlog of changes, half inserts, two fifths updates, a tenth deletes, against `CREATE SUBSCRIPTION`; with the
//! processor seconds of both servers and everything beside them.

use crate::{
    servers::{Databases, Pair, spawn, until_caught_up, until_true},
    summary::{median, row},
    usage::{cpu_seconds, waited_children_seconds},
};
use anyhow::Result;
use crossfade_testkit::postgres::Postgres;
use std::time::Instant;

pub(crate) const SCHEMA: &str = "CREATE TABLE items (id bigint PRIMARY KEY, kind int NOT NULL, price numeric(12,2) NOT NULL, \
                      at timestamptz NOT NULL, name text NOT NULL, body text NOT NULL); \
                      CREATE TABLE done (id int PRIMARY KEY)";

/// One round's figures.
struct Round {
    changes_per_second: f64,
    /// Of the source's server, of the target's, and beside them.
    cpu_seconds_per_million: [f64; 3],
}

pub(crate) async fn run(rounds: usize, changes: u64, per_transaction: u64) -> Result<()> {
    let pair = Pair::start()?;
    let (mut peer, mut ours) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let order = if round % 2 == 0 { [true, false] } else { [false, true] };
        for is_peer in order {
            let databases = pair.databases("backlog").await;
            databases.source.execute(SCHEMA).await;
            fill(&databases, changes).await;
            if is_peer {
                peer.push(subscription(&pair, &databases, changes, per_transaction).await?);
            } else {
                ours.push(crossfade(&pair, &databases, changes, per_transaction, "").await?);
            }
            databases.compare("SELECT * FROM public.items ORDER BY id").await?;
        }
    }
    let speed = |rounds: &[Round]| rounds.iter().map(|round| round.changes_per_second).collect::<Vec<_>>();
    let cpu =
        |rounds: &[Round]| rounds.iter().map(|round| round.cpu_seconds_per_million.iter().sum()).collect::<Vec<f64>>();
    row(&format!("backlog, transactions of {per_transaction}"), "changes/s", &speed(&peer), &speed(&ours));
    row("the same, processor time with both servers", "s per million", &cpu(&peer), &cpu(&ours));
    println!(
        "| of it source server · target server · beside them | s per million | {} | {} | |",
        parts(&peer),
        parts(&ours)
    );
    Ok(())
}

/// The same backlog of 100s without and with both sides compared all the time: as by default, and with as large a share of the
/// time as there is and everything compared again each second.
pub(crate) async fn verified(rounds: usize, changes: u64) -> Result<()> {
    let by_default = "\n[verify]\ncontinuous = true\n";
    let all_the_time = "\n[verify]\ncontinuous = true\nevery = \"1s\"\nshare = \"100%\"\n";
    let pair = Pair::start()?;
    let mut found: [Vec<f64>; 3] = Default::default();
    for round in 0..rounds {
        for place in 0..3 {
            let way = (round + place) % 3;
            let databases = pair.databases("verified").await;
            databases.source.execute(SCHEMA).await;
            fill(&databases, changes).await;
            let more = ["", by_default, all_the_time].get(way).copied().unwrap_or_default();
            let figure = crossfade(&pair, &databases, changes, 100, more).await?.changes_per_second;
            if let Some(figures) = found.get_mut(way) {
                figures.push(figure);
            }
            databases.compare("SELECT * FROM public.items ORDER BY id").await?;
        }
    }
    let [without, usual, most] = found;
    row("backlog of 100s, with both sides compared all the time", "changes/s", &without, &usual);
    row("the same with share = 100% and every = 1s", "changes/s", &without, &most);
    Ok(())
}

fn parts(rounds: &[Round]) -> String {
    let median_of = |part: usize| {
        let figures: Vec<f64> =
            rounds.iter().filter_map(|round| round.cpu_seconds_per_million.get(part)).copied().collect();
        format!("{:.2}", median(&figures))
    };
    [0, 1, 2].map(median_of).join(" · ")
}

pub(crate) async fn fill(databases: &Databases, changes: u64) {
    databases
        .source
        .execute(&format!(
            "INSERT INTO items SELECT i, i % 1000, i * 0.37, now(), 'item ' || i, rpad(md5(i::text), 96, 'x') \
             FROM generate_series(1, {}) i",
            changes / 2
        ))
        .await;
}

/// Writes the backlog, then the row that says that it is over.
pub(crate) async fn write(databases: &Databases, changes: u64, per_transaction: u64) -> Result<()> {
    let sql = format!(
        "CREATE PROCEDURE backlog() LANGUAGE plpgsql AS $$ \
         DECLARE n bigint := {existing}; moved bigint := 0; gone bigint := {existing}; \
         BEGIN \
           FOR i IN 0..{last} LOOP \
             IF i % 10 < 5 THEN \
               n := n + 1; \
               INSERT INTO items VALUES (n, i % 1000, i * 0.37, now(), 'new ' || n, rpad(md5(n::text), 96, 'y')); \
             ELSIF i % 10 < 9 THEN \
               moved := moved + 1; \
               UPDATE items SET price = price + 1, name = 'moved ' || moved WHERE id = 1 + moved % ({existing} / 2); \
             ELSE \
               DELETE FROM items WHERE id = gone; gone := gone - 1; \
             END IF; \
             IF i % {per_transaction} = {per_transaction} - 1 THEN COMMIT; END IF; \
           END LOOP; \
         END $$",
        existing = changes / 2,
        last = changes - 1,
    );
    databases.source.execute(&sql).await;
    // One statement each: together they would be one transaction, in which no procedure may commit.
    let writer = databases.source.connect().await;
    writer.batch_execute("SET synchronous_commit = off").await?;
    writer.batch_execute("CALL backlog()").await?;
    writer.batch_execute("INSERT INTO done VALUES (1)").await?;
    Ok(())
}

async fn subscription(pair: &Pair, databases: &Databases, changes: u64, per: u64) -> Result<Round> {
    databases.target.execute(SCHEMA).await;
    databases.source.execute("CREATE PUBLICATION bench FOR TABLE items, done").await;
    let name = &databases.target.name;
    let source = databases.source.connect().await;
    source.execute("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", &[name]).await?;
    let connection =
        format!("host=127.0.0.1 port={} user=postgres dbname={}", pair.source.port(), databases.source.name);
    databases
        .target
        .execute(&format!(
            "CREATE SUBSCRIPTION {name} CONNECTION '{connection}' PUBLICATION bench \
             WITH (create_slot = false, slot_name = '{name}', enabled = false, copy_data = false, binary = true, streaming = on)"
        ))
        .await;
    // The rows that are there already: what the initial copy would have brought.
    databases.copy_items().await?;
    write(databases, changes, per).await?;
    pair.settle().await?;
    let watcher = databases.target.connect().await;
    let before = cpu_seconds_of(pair);
    let begun = Instant::now();
    databases.target.execute(&format!("ALTER SUBSCRIPTION {name} ENABLE")).await;
    until_true(&watcher, "SELECT EXISTS (SELECT FROM done)").await?;
    let took = begun.elapsed().as_secs_f64();
    let cpu = since(before, cpu_seconds_of(pair));
    databases.target.execute(&format!("DROP SUBSCRIPTION {name}")).await;
    Ok(figures(changes, took, cpu))
}

async fn crossfade(pair: &Pair, databases: &Databases, changes: u64, per: u64, more: &str) -> Result<Round> {
    let folder = tempfile::tempdir()?;
    let spec = format!("{}{more}", databases.spec("backlog"));
    until_caught_up(folder.path(), &spec)?;
    write(databases, changes, per).await?;
    pair.settle().await?;
    let watcher = databases.target.connect().await;
    let before = cpu_seconds_of(pair);
    let begun = Instant::now();
    let running = spawn(folder.path(), &spec, &[]);
    until_true(&watcher, "SELECT EXISTS (SELECT FROM done)").await?;
    let took = begun.elapsed().as_secs_f64();
    running.terminate();
    running.wait();
    let cpu = since(before, cpu_seconds_of(pair));
    databases.free_slot().await;
    Ok(figures(changes, took, cpu))
}

fn figures(changes: u64, took: f64, cpu: [f64; 3]) -> Round {
    Round {
        changes_per_second: changes as f64 / took,
        cpu_seconds_per_million: cpu.map(|seconds| seconds * 1_000_000.0 / changes as f64),
    }
}

/// Of the source's server, of the target's, and of what was started and waited for.
fn cpu_seconds_of(pair: &Pair) -> [f64; 3] {
    let of = |server: &Postgres| server.pid().map_or(0.0, cpu_seconds);
    [of(&pair.source), of(&pair.target), waited_children_seconds()]
}

fn since(before: [f64; 3], now: [f64; 3]) -> [f64; 3] {
    let mut took = now;
    took.iter_mut().zip(before).for_each(|(now, before)| *now -= before);
    took
}

impl Databases {
    pub(crate) async fn copy_items(&self) -> Result<()> {
        let script = format!(
            "set -e -o pipefail; psql -qXAt '{}' -c 'COPY items TO STDOUT' | psql -qXAt '{}' -c 'COPY items FROM STDIN'",
            self.source.url, self.target.url
        );
        anyhow::ensure!(
            std::process::Command::new("bash").args(["-c", &script]).status()?.success(),
            "the copy failed"
        );
        Ok(())
    }
}
