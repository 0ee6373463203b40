//! What the sink keeps of its own in the target: the schema `crossfade`.
//!
//! | table | what for |
//! |---|---|
//! | `positions` | how far each migration has come, written in the same transaction as its rows; the epoch is the fence. Worker 0 is the migration itself, those above are the connections of `apply = "parallel"`, those below the log's partitions where several processes share the stream ([`super::shares`]) |
//! | `quarantine` | changes that cannot be applied, with their own copy |
//! | `undo` | what was there before we first overwrote it |
//! | `objects` | what we made, so that a wipe drops that and nothing else |
//! | `shapes` | the shapes that quarantined changes were written in |
//!
//! Additive, and each step is made once: `format` holds the number of the last one.

use super::{
    link::{Link, Param},
    shares,
};
use crate::client::{failure, quote_literal};
use crossfade_connector::{Failure, Progress};
use crossfade_event::{Cut, Offset};
use std::time::Duration;
use tokio::time::Instant;

const SCHEMA: &str = "CREATE SCHEMA IF NOT EXISTS crossfade";

/// The number of the last step that was made.
const FORMAT: [&str; 2] = [
    "CREATE TABLE IF NOT EXISTS crossfade.format (version integer NOT NULL)",
    "INSERT INTO crossfade.format SELECT 0 WHERE NOT EXISTS (SELECT FROM crossfade.format)",
];

/// The steps by which our schema came to be what it is; never changed, only added to.
const STEPS: [&[&str]; 1] = [&[
    "CREATE TABLE crossfade.positions ( \
     migration text NOT NULL, worker integer NOT NULL, epoch bigint NOT NULL, \
     stage text, generation bigint, cut text, source_position text, \
     progress text, schemas text, load_end text, written_at timestamptz, \
     PRIMARY KEY (migration, worker)) WITH (fillfactor = 20)",
    "CREATE TABLE crossfade.quarantine ( \
     id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, \
     migration text NOT NULL, log_offset bigint NOT NULL, ordinal bigint NOT NULL, \
     table_id bigint NOT NULL, table_schema text NOT NULL, table_name text NOT NULL, \
     key bytea, key_hash text NOT NULL, kind text NOT NULL, origin text NOT NULL, reason text NOT NULL, \
     shape bigint NOT NULL, change bytea NOT NULL, at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(), \
     UNIQUE (migration, log_offset, ordinal, table_id))",
    "CREATE TABLE crossfade.undo ( \
     migration text NOT NULL, table_schema text NOT NULL, table_name text NOT NULL, key text[] NOT NULL, \
     existed boolean NOT NULL, columns text[] NOT NULL, before text[], written text, \
     at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(), \
     PRIMARY KEY (migration, table_schema, table_name, key))",
    "CREATE TABLE crossfade.objects ( \
     migration text NOT NULL, kind text NOT NULL, schema text NOT NULL, name text NOT NULL, part text NOT NULL, \
     made_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(), number bigint GENERATED ALWAYS AS IDENTITY, \
     PRIMARY KEY (migration, kind, schema, name, part))",
    "CREATE TABLE crossfade.shapes ( \
     id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, \
     migration text NOT NULL, table_id bigint NOT NULL, hash text NOT NULL, shape text NOT NULL, \
     UNIQUE (migration, table_id, hash))",
]];

fn format_is(version: usize) -> String {
    format!("UPDATE crossfade.format SET version = {version}")
}

/// Everything that [`install`] runs where nothing of ours is there yet.
pub(super) fn install_sql() -> Vec<String> {
    let fixed = std::iter::once(SCHEMA).chain(FORMAT).chain(STEPS.iter().copied().flatten().copied());
    fixed.map(str::to_owned).chain([format_is(STEPS.len())]).collect()
}

/// How long we wait for another session of the same migration to end. One that was cut off ends by the server's own
/// checks of the connection, which every session of ours asks for.
const LOCK_PATIENCE: Duration = Duration::from_secs(20);

/// Waits until no other session writes for this migration. The lock lives as long as the session, so that a session
/// that was cut off (and may still commit) has ended before its successor reads the position.
pub(super) async fn lock(link: &mut Link, migration: &str) -> Result<(), Failure> {
    let doing = "waiting for the target to ourselves";
    let started = Instant::now();
    while !try_lock(link, migration).await? {
        if started.elapsed() > LOCK_PATIENCE {
            return Err(Failure::retry(doing, "another session writes for this migration and does not end"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// The number of the migration's lock.
pub(super) fn lock_number(migration: &str) -> i64 {
    xxhash_rust::xxh3::xxh3_64(format!("crossfade sink {migration}").as_bytes()).cast_signed()
}

/// Whether no other session writes for this migration; then it is ours.
pub(super) async fn try_lock(link: &mut Link, migration: &str) -> Result<bool, Failure> {
    let number = lock_number(migration);
    let doing = "asking for the target to ourselves";
    let rows = link.query(doing, "SELECT pg_try_advisory_lock($1)", &[&number]).await?;
    Ok(rows.first().is_some_and(|row| row.get(0)))
}

/// True when our schema is there.
pub(super) async fn exists(link: &mut Link) -> Result<bool, Failure> {
    let sql = "SELECT to_regclass('crossfade.positions') IS NOT NULL";
    let rows = link.query("looking for the schema crossfade", sql, &[]).await?;
    Ok(rows.first().is_some_and(|row| row.get(0)))
}

/// Makes our schema, or brings it up to date.
pub(super) async fn install(link: &mut Link) -> Result<(), Failure> {
    let doing = "making the schema crossfade in the target";
    let found = link.query(doing, "SELECT to_regclass('crossfade.format') IS NOT NULL", &[]).await?;
    if found.first().is_some_and(|row| row.get(0)) {
        let version = link.query(doing, "SELECT version FROM crossfade.format", &[]).await?;
        let version: i32 = version.first().map_or(0, |row| row.get(0));
        if version as usize == STEPS.len() {
            return Ok(());
        }
        if version as usize > STEPS.len() {
            let told =
                format!("the target's schema crossfade has format {version}, this program knows {}", STEPS.len());
            return Err(Failure::halt(doing, told, "Use the release that wrote it, or a newer one"));
        }
    }
    let refuse = |error: tokio_postgres::Error| match error.code().map(|code| code.code()) {
        Some("42501") => {
            let told = error.as_db_error().map_or_else(String::new, |error| error.message().to_owned());
            let advice = "GRANT CREATE ON DATABASE … TO the sink's role, or make the schema for it: \
                          CREATE SCHEMA crossfade AUTHORIZATION the_role";
            Failure::refused(doing, told, advice)
        }
        _ => failure(doing, error),
    };
    // Two migrations may begin in one database at the same time.
    link.session
        .batch_execute("BEGIN; SELECT pg_advisory_xact_lock(hashtextextended('crossfade schema', 0))")
        .await
        .map_err(refuse)?;
    let schema = link.query(doing, "SELECT to_regnamespace('crossfade') IS NOT NULL", &[]).await?;
    if !schema.first().is_some_and(|row| row.get::<_, bool>(0)) {
        link.session.batch_execute(SCHEMA).await.map_err(refuse)?;
    }
    link.session.batch_execute(&FORMAT.join("; ")).await.map_err(refuse)?;
    let version = link.query(doing, "SELECT version FROM crossfade.format", &[]).await?;
    let version: i32 = version.first().map_or(0, |row| row.get(0));
    for step in STEPS.iter().skip(version as usize) {
        link.session.batch_execute(&step.join("; ")).await.map_err(refuse)?;
    }
    let sql = format!("{}; COMMIT", format_is(STEPS.len()));
    link.session.batch_execute(&sql).await.map_err(refuse)
}

/// Takes a worker's row of the migration (the first one is the migration's own) for this epoch. With the migration's own
/// all partitions come back that others write.
pub(super) async fn fence(link: &mut Link, migration: &str, worker: i32, epoch: u64) -> Result<(), Failure> {
    let sql = "INSERT INTO crossfade.positions AS p (migration, worker, epoch) VALUES ($1, $3, $2) \
               ON CONFLICT (migration, worker) DO UPDATE SET epoch = excluded.epoch WHERE p.epoch <= excluded.epoch";
    let params = vec![Param::text(migration), Param::i64(epoch as i64), Param::i32(worker)];
    match link.run("taking the target for this run", sql, params).await? {
        0 => Err(fenced(epoch)),
        _ if worker == 0 => shares::take_all_back(link, migration, epoch).await,
        _ => Ok(()),
    }
}

/// Somebody with a higher epoch writes now.
pub(super) fn fenced(epoch: u64) -> Failure {
    Failure::refused(
        "writing to the target",
        format!("epoch {epoch} is over: a later run has taken the target"),
        "Let the later run do the work; this one must not write any more",
    )
}

/// Where the last load ended in the log: a cut, as its offsets.
pub(super) async fn load_end(link: &mut Link, migration: &str) -> Result<Cut, Failure> {
    let sql = "SELECT load_end FROM crossfade.positions WHERE migration = $1 AND worker = 0";
    let rows = link.query("reading where the load ended", sql, &[&migration]).await?;
    let text = rows.first().and_then(|row| row.get::<_, Option<String>>(0)).unwrap_or_default();
    Ok(Cut(text.split(',').filter_map(|offset| offset.parse().ok()).map(Offset).collect()))
}

/// How far the migration has come.
pub(super) async fn progress(link: &mut Link, migration: &str, worker: i32) -> Result<Option<Progress>, Failure> {
    let doing = "reading how far the target has come";
    if !exists(link).await? {
        return Ok(None);
    }
    let sql = "SELECT progress, schemas FROM crossfade.positions WHERE migration = $1 AND worker = $2";
    let rows = link.query(doing, sql, &[&migration, &worker]).await?;
    match rows.first() {
        Some(row) => parsed(row.get(0), row.get(1)),
        None => Ok(None),
    }
}

/// A place, as its row says it.
pub(super) fn parsed(progress: Option<String>, schemas: Option<String>) -> Result<Option<Progress>, Failure> {
    let doing = "reading how far the target has come";
    let (Some(progress), Some(schemas)) = (progress, schemas) else { return Ok(None) };
    let damaged = |error: serde_json::Error| {
        Failure::lost(doing, error, "The row of crossfade.positions is damaged: wipe the target and begin again")
    };
    let mut progress: Progress = serde_json::from_str(&progress).map_err(damaged)?;
    progress.schemas = serde_json::from_str(&schemas).map_err(damaged)?;
    Ok(Some(progress))
}

/// The statement that moves the position, and its parameters. The followed schemas are written when they change only:
/// the row stays small for the many commits between.
pub(super) fn position(
    migration: &str,
    worker: i32,
    epoch: u64,
    upto: &Progress,
    schemas: Option<&str>,
) -> Result<(&'static str, Vec<Param>), Failure> {
    let slim = Progress { schemas: Vec::new(), ..upto.clone() };
    let unwritable = |error| Failure::halt("writing the position", error, "Report this");
    let text = serde_json::to_string(&slim).map_err(unwritable)?;
    let stage = match upto.stage {
        crossfade_connector::Stage::Loading => "loading",
        crossfade_connector::Stage::Streaming => "streaming",
    };
    let worker = Param::i32(worker);
    let mut params = vec![
        Param::text(migration),
        Param::i64(epoch as i64),
        Param::text(stage),
        Param::i64(i64::from(upto.generation)),
        Param::text(&upto.cut.to_string()),
        upto.position.map_or(Param::Null, |position| Param::text(&position.to_string())),
        Param::text(&text),
    ];
    Ok(match schemas {
        None => (
            "UPDATE crossfade.positions SET stage = $3, generation = $4, cut = $5, source_position = $6, \
             progress = $7, load_end = CASE $3 WHEN 'loading' THEN $5 ELSE load_end END, \
             written_at = clock_timestamp() WHERE migration = $1 AND worker = $8 AND epoch = $2",
            {
                params.push(worker);
                params
            },
        ),
        Some(schemas) => {
            params.push(Param::text(schemas));
            params.push(worker);
            (
                "UPDATE crossfade.positions SET stage = $3, generation = $4, cut = $5, source_position = $6, \
                 progress = $7, load_end = CASE $3 WHEN 'loading' THEN $5 ELSE load_end END, schemas = $8, \
                 written_at = clock_timestamp() \
                 WHERE migration = $1 AND worker = $9 AND epoch = $2",
                params,
            )
        }
    })
}

/// The statement that moves the migration's own place to the lowest one of its partitions, whatever its stage says.
pub(super) fn lowest(migration: &str, epoch: u64, lowest: &Progress) -> Result<(&'static str, Vec<Param>), Failure> {
    let slim = Progress { schemas: Vec::new(), ..lowest.clone() };
    let text =
        serde_json::to_string(&slim).map_err(|error| Failure::halt("writing the position", error, "Report this"))?;
    let params = vec![
        Param::text(migration),
        Param::i64(epoch as i64),
        Param::text(&lowest.cut.to_string()),
        lowest.position.map_or(Param::Null, |position| Param::text(&position.to_string())),
        Param::text(&text),
    ];
    let sql = "UPDATE crossfade.positions SET cut = $3, source_position = $4, progress = $5, \
               written_at = clock_timestamp() WHERE migration = $1 AND worker = 0 AND epoch = $2";
    Ok((sql, params))
}

/// The statement that notes that we made something: sent together with the one that makes it, so that a process that is
/// ended between the two leaves neither.
pub(super) fn note_sql(migration: &str, kind: &str, schema: &str, name: &str, part: &str) -> String {
    let values = [migration, kind, schema, name, part].map(quote_literal).join(", ");
    format!(
        "INSERT INTO crossfade.objects (migration, kind, schema, name, part) VALUES ({values}) ON CONFLICT DO NOTHING"
    )
}
