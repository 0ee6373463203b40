//! Two PostgreSQL servers with `fsync` on and the same settings, and the ways of filling and comparing them.

use anyhow::{Context, Result, ensure};
use crossfade_testkit::{
    compare::assert_same_streams,
    crossfade::{Crossfade, Running},
    postgres::{Database, Postgres, Settings, Version},
};
use std::path::Path;
use tokio_postgres::Client;

/// A source and a target server.
pub(crate) struct Pair {
    pub(crate) source: Postgres,
    pub(crate) target: Postgres,
}

/// A database on each of the two, empty.
pub(crate) struct Databases {
    pub(crate) source: Database,
    pub(crate) target: Database,
}

impl Pair {
    /// Starts both.
    pub(crate) fn start() -> Result<Self> {
        let start = || Postgres::start(Version::V15, settings()).context("PostgreSQL 15 cannot be had here");
        Ok(Self { source: start()?, target: start()? })
    }

    /// New databases for one round.
    pub(crate) async fn databases(&self, hint: &str) -> Databases {
        Databases { source: self.source.create_database(hint).await, target: self.target.create_database(hint).await }
    }

    /// Writes everything out, so that no round pays for the one before.
    pub(crate) async fn settle(&self) -> Result<()> {
        for server in [&self.source, &self.target] {
            server.connect("postgres").await.batch_execute("CHECKPOINT").await?;
        }
        Ok(())
    }
}

/// How a server is set that something is measured on.
pub(crate) fn settings() -> Settings {
    Settings::new().fsync().set("shared_buffers", "512MB").set("max_wal_size", "8GB")
}

impl Databases {
    /// A spec that copies `public.*` one to one.
    pub(crate) fn spec(&self, name: &str) -> String {
        let sink = format!("kind    = \"postgres\"\nurl     = \"{}\"\nsslmode = \"disable\"\n", self.target.url);
        self.spec_to(name, &sink)
    }

    /// The same to another sink; what is added to it goes on from `[sink]`.
    pub(crate) fn spec_to(&self, name: &str, sink: &str) -> String {
        format!(
            r#"name = "{name}"
dir  = "data"

[source]
kind    = "postgres"
url     = "{}"
sslmode = "disable"
tables  = ["public.*"]

[sink]
{sink}"#,
            self.source.url
        )
    }

    /// Frees Crossfade's slot once its run has ended: the next round makes one of the same name, and the server is not to
    /// keep WAL for this one.
    pub(crate) async fn free_slot(&self) {
        let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
                    WHERE database = current_database() AND NOT active";
        self.source.execute(drop).await;
    }

    /// Both ends, row by row.
    pub(crate) async fn compare(&self, query: &str) -> Result<u64> {
        let (left, right) = (self.source.connect().await, self.target.connect().await);
        Ok(assert_same_streams((&left, query), (&right, query)).await)
    }
}

/// Starts `crossfade run` in `folder`.
pub(crate) fn spawn(folder: &Path, spec: &str, more: &[&str]) -> Running {
    Crossfade::at(folder).write("spec.toml", spec);
    spawn_written(folder, more)
}

/// The same by a spec that is there already: written once more, it could be read half by whoever was started before.
pub(crate) fn spawn_written(folder: &Path, more: &[&str]) -> Running {
    Crossfade::at(folder).spawn(&[&["run", "spec.toml", "--quiet"], more].concat())
}

/// Runs it until it has caught up.
pub(crate) fn until_caught_up(folder: &Path, spec: &str) -> Result<()> {
    let finished = spawn(folder, spec, &["--until", "caught-up"]).wait();
    ensure!(finished.code == Some(0), "crossfade run failed: {finished}");
    Ok(())
}

/// Waits, in small steps, until a query gives true.
pub(crate) async fn until_true(client: &Client, query: &str) -> Result<()> {
    loop {
        if client.query_one(query, &[]).await?.get(0) {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// The same, as long as all who work for it are there.
#[cfg(feature = "kafka")]
pub(crate) async fn until_true_by(running: &mut [Running], client: &Client, query: &str) -> Result<()> {
    let ended = async {
        loop {
            if let Some(one) = running.iter_mut().find_map(|one| (!one.is_running()).then(|| one.stderr())) {
                return one;
            }
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
    };
    tokio::select! {
        reached = until_true(client, query) => reached,
        said = ended => Err(anyhow::anyhow!("a process has ended: {said}")),
    }
}
