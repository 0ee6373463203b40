//! Initial load: 1 M rows of 170 bytes, through the log, against `psql COPY (binary) | psql COPY`.

use crate::{
    servers::{Pair, until_caught_up},
    summary::row,
};
use anyhow::{Result, ensure};
use crossfade_testkit::postgres::Database;
use std::{process::Command, time::Instant};

const TABLE: &str = "CREATE TABLE items (id bigint PRIMARY KEY, kind int NOT NULL, price numeric(12,2) NOT NULL, \
                     at timestamptz NOT NULL, name text NOT NULL, body text NOT NULL)";

pub(crate) async fn run(rounds: usize, rows: u64) -> Result<()> {
    let pair = Pair::start()?;
    let (mut peer, mut ours) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        // In turns, so that neither always finds the warmer machine.
        let order = if round % 2 == 0 { [true, false] } else { [false, true] };
        for is_peer in order {
            let databases = pair.databases("load").await;
            fill(&databases.source, rows).await;
            pair.settle().await?;
            let folder = tempfile::tempdir()?;
            let begun = Instant::now();
            if is_peer {
                databases.target.execute(TABLE).await;
                pipe(&databases.source.url, &databases.target.url)?;
                peer.push(rows as f64 / begun.elapsed().as_secs_f64());
            } else {
                until_caught_up(folder.path(), &databases.spec("load"))?;
                ours.push(rows as f64 / begun.elapsed().as_secs_f64());
                databases.free_slot().await;
            }
            let compared = databases.compare("SELECT * FROM public.items ORDER BY id").await?;
            ensure!(compared == rows, "{compared} of {rows} rows arrived");
        }
    }
    row("initial load", "rows/s", &peer, &ours);
    Ok(())
}

/// Makes the table and its rows.
pub(crate) async fn fill(database: &Database, rows: u64) {
    database.execute(TABLE).await;
    database
        .execute(&format!(
            "INSERT INTO items SELECT i, i % 1000, i * 0.37, timestamptz '2026-01-01' + i * interval '1 second', \
             'item ' || i, rpad(md5(i::text), 96, md5((i * 7)::text)) FROM generate_series(1, {rows}) i"
        ))
        .await;
    database.execute("VACUUM ANALYZE items").await;
}

fn pipe(source: &str, target: &str) -> Result<()> {
    let script = format!(
        "set -e -o pipefail; psql -qXAt '{source}' -c 'COPY items TO STDOUT (FORMAT binary)' \
         | psql -qXAt '{target}' -c 'COPY items FROM STDIN (FORMAT binary)'"
    );
    ensure!(Command::new("bash").args(["-c", &script]).status()?.success(), "the peer's pipe failed");
    Ok(())
}
