//! Resident memory: idle, and while one transaction of 3 M rows passes.

use crate::{
    servers::{Databases, Pair, spawn, until_true},
    summary::row,
    usage::{MIB, peak_bytes, private_bytes, resident_bytes},
};
use anyhow::{Context, Result};
use std::time::Duration;

const SCHEMA: &str = "CREATE TABLE items (id bigint PRIMARY KEY, name text NOT NULL, body text NOT NULL); CREATE TABLE done (id int PRIMARY KEY)";

pub(crate) async fn run(rows: u64) -> Result<()> {
    let pair = Pair::start()?;
    let (peer_idle, peer_large) = subscription(&pair, rows).await?;
    let (our_idle, our_large) = crossfade(&pair, rows).await?;
    row("resident memory, idle", "MiB", &[peer_idle], &[our_idle]);
    row(&format!("resident memory, one transaction of {rows} rows"), "MiB", &[peer_large], &[our_large]);
    Ok(())
}

async fn write(databases: &Databases, rows: u64) {
    databases
        .source
        .execute(&format!(
            "INSERT INTO items SELECT i, 'item ' || i, repeat(md5(i::text), 3) FROM generate_series(1, {rows}) i"
        ))
        .await;
    databases.source.execute("INSERT INTO done VALUES (1)").await;
}

async fn crossfade(pair: &Pair, rows: u64) -> Result<(f64, f64)> {
    let databases = pair.databases("memory").await;
    databases.source.execute(SCHEMA).await;
    let folder = tempfile::tempdir()?;
    let running = spawn(folder.path(), &databases.spec("memory"), &[]);
    let target = databases.target.connect().await;
    while target.query_one("SELECT count(*) FROM done", &[]).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let idle = resident_bytes(running.pid())? as f64 / MIB;
    write(&databases, rows).await;
    until_true(&target, "SELECT EXISTS (SELECT FROM done)").await?;
    let large = peak_bytes(running.pid())? as f64 / MIB;
    running.terminate();
    running.wait();
    databases.free_slot().await;
    databases.compare("SELECT * FROM public.items ORDER BY id").await?;
    Ok((idle, large))
}

async fn subscription(pair: &Pair, rows: u64) -> Result<(f64, f64)> {
    let databases = pair.databases("memory").await;
    databases.source.execute(SCHEMA).await;
    databases.target.execute(SCHEMA).await;
    databases.source.execute("CREATE PUBLICATION bench FOR TABLE items, done").await;
    let name = &databases.target.name;
    let connection =
        format!("host=127.0.0.1 port={} user=postgres dbname={}", pair.source.port(), databases.source.name);
    databases
        .target
        .execute(&format!(
            "CREATE SUBSCRIPTION {name} CONNECTION '{connection}' PUBLICATION bench WITH (copy_data = false, binary = true, streaming = on)"
        ))
        .await;
    let target = databases.target.connect().await;
    until_true(&target, "SELECT EXISTS (SELECT FROM pg_stat_subscription WHERE pid IS NOT NULL)").await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let pid: i32 = target.query_one("SELECT pid FROM pg_stat_subscription WHERE pid IS NOT NULL", &[]).await?.get(0);
    let pid = u32::try_from(pid).context("a process id")?;
    let idle = private_bytes(pid)? as f64 / MIB;
    let mut large = idle;
    let writing = write(&databases, rows);
    tokio::pin!(writing);
    let mut written = false;
    loop {
        large = large.max(private_bytes(pid).unwrap_or(0) as f64 / MIB);
        tokio::select! {
            () = &mut writing, if !written => written = true,
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
        if written && target.query_one("SELECT EXISTS (SELECT FROM done)", &[]).await?.get(0) {
            break;
        }
    }
    databases.target.execute(&format!("DROP SUBSCRIPTION {name}")).await;
    Ok((idle, large))
}
