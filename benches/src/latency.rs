//! From a commit on the source to the row being visible on the target, under a steady rate of small transactions.

use crate::{
    servers::{Databases, Pair, spawn},
    summary::row,
};
use anyhow::{Context, Result};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

const SCHEMA: &str = "CREATE TABLE ticks (id bigint PRIMARY KEY, body text NOT NULL)";
/// How long each measurement lasts, after two seconds of warming up. At 500 a second one stall of the disk of 160 ms
/// touches 80 of them: in eight seconds that is two percent, and alone decides what the 99th percentile is.
const SECONDS: u64 = 30;

pub(crate) async fn run(rounds: usize) -> Result<()> {
    let pair = Pair::start()?;
    for rate in [500u64, 2_000] {
        let (mut peer, mut ours) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            let order = if round % 2 == 0 { [true, false] } else { [false, true] };
            for is_peer in order {
                let databases = pair.databases("latency").await;
                databases.source.execute(SCHEMA).await;
                let p99 = if is_peer {
                    subscription(&pair, &databases, rate).await?
                } else {
                    crossfade(&databases, rate).await?
                };
                if is_peer {
                    peer.push(p99)
                } else {
                    ours.push(p99)
                }
                databases.compare("SELECT * FROM public.ticks ORDER BY id").await?;
            }
        }
        row(&format!("commit to visible at {rate} tx/s, p99"), "ms", &peer, &ours);
    }
    Ok(())
}

async fn subscription(pair: &Pair, databases: &Databases, rate: u64) -> Result<f64> {
    databases.target.execute(SCHEMA).await;
    databases.source.execute("CREATE PUBLICATION bench FOR TABLE ticks").await;
    let name = &databases.target.name;
    let connection =
        format!("host=127.0.0.1 port={} user=postgres dbname={}", pair.source.port(), databases.source.name);
    databases
        .target
        .execute(&format!(
            "CREATE SUBSCRIPTION {name} CONNECTION '{connection}' PUBLICATION bench WITH (copy_data = false, binary = true, streaming = on)"
        ))
        .await;
    let p99 = measure(databases, rate).await;
    databases.target.execute(&format!("DROP SUBSCRIPTION {name}")).await;
    p99
}

async fn crossfade(databases: &Databases, rate: u64) -> Result<f64> {
    let folder = tempfile::tempdir()?;
    let running = spawn(folder.path(), &databases.spec("latency"), &[]);
    let target = databases.target.connect().await;
    while target.query_one("SELECT count(*) FROM ticks", &[]).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let p99 = measure(databases, rate).await;
    running.terminate();
    running.wait();
    databases.free_slot().await;
    p99
}

/// The 99th percentile in milliseconds.
async fn measure(databases: &Databases, rate: u64) -> Result<f64> {
    let committed: Arc<Mutex<VecDeque<Instant>>> = Arc::default();
    let total = rate * (SECONDS + 2);
    let writer = {
        let (committed, client) = (committed.clone(), databases.source.connect().await);
        tokio::spawn(async move {
            let insert = client.prepare("INSERT INTO ticks VALUES ($1, repeat('x', 100))").await?;
            let begun = Instant::now();
            for id in 1..=total {
                let due = begun + Duration::from_secs_f64(id as f64 / rate as f64);
                if let Some(early) = due.checked_duration_since(Instant::now()) {
                    tokio::time::sleep(early).await;
                }
                client.execute(&insert, &[&(id as i64)]).await?;
                if let Ok(mut committed) = committed.lock() {
                    committed.push_back(Instant::now());
                }
            }
            Ok::<_, tokio_postgres::Error>(())
        })
    };
    let target = databases.target.connect().await;
    let newest = target.prepare("SELECT coalesce(max(id), 0) FROM ticks").await?;
    let (mut seen, mut delays_ms) = (0u64, Vec::with_capacity(total as usize));
    while seen < total {
        let now_at = target.query_one(&newest, &[]).await?.get::<_, i64>(0) as u64;
        let now = Instant::now();
        {
            let mut committed = committed.lock().map_err(|_| anyhow::anyhow!("the writer panicked"))?;
            // A row can be seen before its writer has heard of the commit; then it is counted in the next look.
            while seen < now_at {
                let Some(at) = committed.pop_front() else { break };
                seen += 1;
                if seen > rate * 2 {
                    delays_ms.push(now.saturating_duration_since(at).as_secs_f64() * 1_000.0);
                }
            }
        }
        tokio::time::sleep(Duration::from_micros(300)).await;
    }
    writer.await??;
    delays_ms.sort_by(f64::total_cmp);
    delays_ms.get(delays_ms.len() * 99 / 100).copied().context("nothing was measured")
}
