//! What stands in the way of a switch. Changes nothing; the lock is taken for a moment, to see whether it can be had.

use super::{SwitchEnd, connect, lock::hold};
use crate::{
    client::{failure, journal_mode, shown},
    inspect::shape::TableShape,
    source::install::obstacle,
};
use crossfade_connector::{
    Failure, Refusal,
    switch::{Look, Writing},
};
use crossfade_event::TableName;
use rusqlite::Connection;
use std::time::{Duration, Instant};

/// For so long the lock is tried for; somebody who has it for longer is one to wait for.
const PATIENCE: Duration = Duration::from_secs(2);

fn refusal(object: impl Into<String>, problem: impl Into<String>, remedy: impl Into<String>) -> Refusal {
    Refusal { object: object.into(), problem: problem.into(), remedy: remedy.into(), fatal: true }
}

impl SwitchEnd {
    /// Looks at the side that has the authority.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn look(&mut self, tables: &[TableName]) -> Result<Look, Failure> {
        let doing = "looking at what a switch needs";
        let path = shown(&self.config.path);
        let missing = self.missing(tables, false).await?;
        let config = self.config.clone();
        let begun = Instant::now();
        let held = hold(doing, move || connect(&config), begun + PATIENCE, begun + PATIENCE).await?;
        let writing = held.is_none().then(|| Writing {
            age_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            who: format!("a process has the write lock of {path} (`fuser {path}` names those that have it open)"),
        });
        Ok(Look { missing, writing, deadlock_timeout_ms: u64::MAX })
    }

    /// Looks at the side that would get the authority: what the way back needs of it.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn look_for_the_way_back(&mut self, tables: &[TableName]) -> Result<Vec<Refusal>, Failure> {
        self.missing(tables, true).await
    }

    async fn missing(&mut self, tables: &[TableName], recorded: bool) -> Result<Vec<Refusal>, Failure> {
        let (tables, path) = (tables.to_vec(), shown(&self.config.path));
        self.with(move |connection, _| {
            missing(connection, &path, &tables, recorded)
                .map_err(|error| failure("looking at what a switch needs", error))
        })
        .await
    }
}

fn missing(
    connection: &Connection,
    path: &str,
    tables: &[TableName],
    recorded: bool,
) -> rusqlite::Result<Vec<Refusal>> {
    let mut missing = Vec::new();
    let journal = journal_mode(connection)?;
    if matches!(journal.as_str(), "off" | "memory") {
        let problem = format!("has journal_mode = {journal}: a commit that is cut off leaves a part of it");
        missing.push(refusal(path, problem, "PRAGMA journal_mode = WAL"));
    }
    for table in tables {
        match TableShape::read(connection, &table.name)? {
            None => missing.push(refusal(table.to_string(), "is not there any more", "put it back, or begin anew")),
            Some(shape) if recorded => {
                let obstacle = obstacle(connection, &shape)?;
                missing.extend(obstacle.map(|(problem, remedy)| refusal(table.to_string(), problem, remedy)));
            }
            Some(_) => {}
        }
    }
    Ok(missing)
}
