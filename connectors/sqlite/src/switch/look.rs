//! What stands in the way of a switch. Changes nothing; the lock is taken for a moment, to see whether it can be had.

use super::{
    Asked, SwitchEnd, connect,
    lock::{Keep, hold},
    reverse::name_of,
};
use crate::{
    client::{failure, journal_mode, shown},
    inspect::shape::TableShape,
    source::{install::obstacle, triggers::Names},
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
        let held =
            hold(doing, Keep::EverybodyOut, move || connect(&config), begun + PATIENCE, begun + PATIENCE).await?;
        let writing = held.is_none().then(|| Writing {
            age_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            who: format!("a process writes {path}, or reads it where its journal is no WAL (`fuser {path}` names those that have it open)"),
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
        self.with(move |connection, asked| {
            missing(connection, asked, &path, &tables, recorded)
                .map_err(|error| failure("looking at what a switch needs", error))
        })
        .await
    }
}

fn missing(
    connection: &Connection,
    asked: &Asked,
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
            Some(_) => {
                let other = recorded_by_another(connection, asked, table)?;
                missing.extend(other.map(|trigger| {
                    let problem = format!(
                        "is recorded by another migration, too (trigger {trigger}): what comes back after a switch fires no triggers, so it would be missing there"
                    );
                    let remedy = "end the other migration, or begin it on the new file once this one has switched";
                    refusal(table.to_string(), problem, remedy)
                }));
            }
        }
    }
    Ok(missing)
}

/// A trigger by which another migration records what is written to a table.
fn recorded_by_another(connection: &Connection, asked: &Asked, table: &TableName) -> rusqlite::Result<Option<String>> {
    let sql = "SELECT name FROM main.sqlite_schema WHERE type = 'trigger' AND tbl_name = ?1 COLLATE NOCASE \
               AND substr(name, 1, 11) = '_crossfade_' AND substr(name, -3) = '_ai' ORDER BY name";
    let names: Vec<String> =
        connection.prepare(sql)?.query_map([&table.name], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let own = [Names::new(&asked.migration).triggers(None), Names::new(&name_of(&asked.migration)).triggers(None)];
    // `_crossfade_shop_` is also the beginning of what a migration named `shop_x` makes.
    let is_number = |rest: &str| rest.bytes().all(|byte| byte.is_ascii_digit());
    let number = |name: &str, prefix: &str| name.strip_prefix(prefix)?.strip_suffix("_ai").map(is_number);
    let is_own = |name: &String| own.iter().any(|prefix| number(name, prefix).unwrap_or(false));
    Ok(names.into_iter().find(|name| !is_own(name)))
}
