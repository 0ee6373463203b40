//! Statistics of what was loaded, for whoever reads: made on a session of their own, for the stream need not wait for
//! them (our own statements are planned without any).

use super::{ddl, link::Link, table::Table};
use crate::{
    Config,
    client::wire::{Kind, Wire},
};
use crossfade_connector::Failure;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Whoever holds a table for longer has it without statistics of ours.
const LOCK_TIMEOUT: &str = "SET lock_timeout = '5s'";

/// Nobody waits longer for them: what is in the way then is met by whoever changes the tables, with limits of its own.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is being made, if anything. The server makes it to its end even if this process ends before.
#[derive(Default)]
pub(super) struct Statistics(Option<JoinHandle<()>>);

impl Statistics {
    /// Has the server begin with those tables that have rows.
    ///
    /// Of a table that is empty now they would say that it has no rows, and whoever plans by them reads it from end to
    /// end, however much the stream has brought since; without any, the server assumes some pages and takes the index.
    ///
    /// # Errors
    /// Where it cannot be asked which have rows. Statistics that cannot be made are a line in the log: the server's own
    /// housekeeping makes them later.
    pub(super) async fn begin(
        &mut self,
        link: &mut Link,
        config: &Config,
        migration: &str,
        tables: impl Iterator<Item = &Table>,
    ) -> Result<(), Failure> {
        let mut names = Vec::new();
        for table in tables {
            let name = &table.target.schema.name;
            let rows = link.query(&format!("looking whether {name} has rows"), &ddl::has_rows(name)?, &[]).await?;
            if rows.first().is_some_and(|row| row.get(0)) {
                names.push(crate::quote_table(name)?.to_string());
            }
        }
        if names.is_empty() {
            return Ok(());
        }
        match start(config, migration, &format!("ANALYZE {}", names.join(", "))).await {
            Ok(wire) => self.0 = Some(tokio::spawn(end(wire))),
            Err(failure) => tracing::debug!(%failure, "no statistics were made"),
        }
        Ok(())
    }

    /// Waits until nothing is being made: its locks are in the way of whoever changes the tables.
    pub(super) async fn settled(&mut self) {
        if let Some(mut task) = self.0.take()
            && tokio::time::timeout(PATIENCE, &mut task).await.is_err()
        {
            tracing::debug!("the statistics are not waited for any longer");
            task.abort();
        }
    }
}

/// The statement is sent before this returns: a process that ends now leaves it to the server.
async fn start(config: &Config, migration: &str, sql: &str) -> Result<Wire, Failure> {
    let mut wire = Wire::connect(config, &format!("crossfade statistics {migration}"), Kind::Plain).await?;
    wire.query(LOCK_TIMEOUT).await?;
    wire.send_query(sql).await?;
    Ok(wire)
}

async fn end(mut wire: Wire) {
    loop {
        match wire.receive().await.map(|frame| (frame.tag, frame)) {
            Ok((b'Z', _)) => return,
            Ok((b'E', frame)) => tracing::debug!(failure = %wire.refused(&frame.body), "no statistics were made"),
            Ok(_) => {}
            Err(failure) => return tracing::debug!(%failure, "no statistics were made"),
        }
    }
}
