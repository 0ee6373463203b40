//! How fast the source answers, for the gate on it: by the server's own statistics of the application's statements where the
//! role may read all of them (`pg_stat_statements`), else by a question of our own. Once before tables are copied, which the
//! journal keeps, and then again and again.

use super::{control::Shared, session::Session};
use crate::{error::CliError, registry::AnyInspect, spec::Spec, wiring};
use crossfade_connector::{Failure, Query};
use crossfade_control::{Baseline, Command, Count, Phase};
use crossfade_event::{Cell, Value, codec};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(1);

/// How many answers of ours make a baseline.
const PROBES: usize = 25;

/// What is asked of a server that keeps no statistics for us: something that it always has at hand.
const PROBE: &str = "SELECT count(*) FROM pg_catalog.pg_class";

/// The extension's schema, where the role may read what it keeps of all roles.
const READABLE: &str = "SELECT pg_catalog.quote_ident(n.nspname), \
     pg_catalog.pg_has_role(pg_catalog.current_user(), 'pg_read_all_stats', 'USAGE')::int::bigint \
     FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace \
     WHERE e.extname = 'pg_stat_statements'";

/// No answer here is larger.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// How the latency of a source can be measured.
pub(crate) enum Way {
    /// By the statistics in this schema.
    Statements(String),
    /// By a question of our own: why, and what would allow the other way.
    Probe(&'static str, &'static str),
}

/// How the latency of this spec's source can be measured. Writes nothing.
///
/// # Errors
/// When the source cannot be asked.
pub(crate) async fn way(source: &mut AnyInspect) -> Result<Way, CliError> {
    const MAKE: &str = "put pg_stat_statements into shared_preload_libraries, restart the server, and CREATE EXTENSION pg_stat_statements";
    const GRANT: &str = "GRANT pg_read_all_stats TO the role of [source]";
    let answer = source.query(READABLE, &[], ANSWER_BYTES_MAX).await?;
    let Some(row) = answer.rows.first() else {
        return Ok(Way::Probe("the database has no extension pg_stat_statements", MAKE));
    };
    let value = |index: usize| match (row.cell(index), answer.columns.get(index)) {
        (Some(Cell::Bytes(bytes)), Some(column)) => codec::decode(&column.type_, bytes).ok(),
        _ => None,
    };
    let (Some(Value::Text(schema)), Some(Value::Int(may))) = (value(0), value(1)) else {
        return Ok(Way::Probe("what the catalog says of pg_stat_statements cannot be read", MAKE));
    };
    if may == 0 {
        return Ok(Way::Probe("the role may not read what pg_stat_statements has of other roles", GRANT));
    }
    // The view is there without its library, too, and then cannot be read; and before 1.8 its columns had other names.
    let sql = format!("SELECT total_exec_time FROM {schema}.pg_stat_statements LIMIT 1");
    match source.query(&sql, &[], ANSWER_BYTES_MAX).await {
        Ok(_) => Ok(Way::Statements(schema)),
        Err(failure) if failure.is_transient() => Err(failure.into()),
        Err(_) => Ok(Way::Probe(
            "pg_stat_statements cannot be read: its library is not loaded, or it is older than 1.8",
            MAKE,
        )),
    }
}

/// The statements that took most of the server's time and were run often enough to have a usual time.
fn usual(schema: &str) -> String {
    format!(
        "SELECT queryid, sum(calls)::bigint, (sum(total_exec_time) * 1000)::bigint FROM {schema}.pg_stat_statements \
         WHERE dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) \
         AND queryid IS NOT NULL AND query ~* '^\\s*(select|insert|update|delete|with|merge)' \
         GROUP BY queryid HAVING sum(calls) >= 20 ORDER BY sum(total_exec_time) DESC LIMIT 20"
    )
}

/// The same statements, as they stand now; without their texts, which the server would read from a file.
fn again(schema: &str, before: &BTreeMap<i64, Count>) -> String {
    let ids: Vec<String> = before.keys().map(i64::to_string).collect();
    format!(
        "SELECT queryid, sum(calls)::bigint, (sum(total_exec_time) * 1000)::bigint \
         FROM {schema}.pg_stat_statements(false) \
         WHERE dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) \
         AND queryid IN ({}) GROUP BY queryid",
        ids.join(", ")
    )
}

async fn counts(source: &mut AnyInspect, sql: &str) -> Result<BTreeMap<i64, Count>, Failure> {
    let answer = source.query(sql, &[], ANSWER_BYTES_MAX).await?;
    let mut counts = BTreeMap::new();
    for row in &answer.rows {
        let numbers: Vec<i64> = row
            .cells()
            .zip(&answer.columns)
            .filter_map(|(cell, column)| match cell {
                Cell::Bytes(bytes) => match codec::decode(&column.type_, bytes) {
                    Ok(Value::Int(number)) => Some(number),
                    _ => None,
                },
                _ => None,
            })
            .collect();
        if let [id, calls, total_us] = numbers.as_slice() {
            let positive = |number: &i64| u64::try_from(*number).unwrap_or(0);
            counts.insert(*id, Count { calls: positive(calls), total_us: positive(total_us) });
        }
    }
    Ok(counts)
}

async fn probe(source: &mut AnyInspect) -> Result<u64, Failure> {
    let answer = source.query(PROBE, &[], ANSWER_BYTES_MAX).await?;
    Ok(u64::try_from(answer.took.as_micros()).unwrap_or(u64::MAX))
}

/// Has the journal keep how fast the source answers, unless it does already.
///
/// # Errors
/// When the source cannot be asked: nothing may be copied before it was.
pub(super) async fn take_baseline(session: &Session) -> Result<(), CliError> {
    let migration = session.journal.migration();
    if session.spec.gates.latency.is_none() || migration.baseline.is_some() {
        return Ok(());
    }
    let mut source = wiring::source_inspect(&session.spec)?;
    let mut baseline = None;
    if let Way::Statements(schema) = way(&mut source).await? {
        let usual = counts(&mut source, &usual(&schema)).await?;
        baseline = (!usual.is_empty()).then_some(Baseline::Statements(usual));
    }
    if baseline.is_none() {
        let mut took = Vec::with_capacity(PROBES);
        for _ in 0..PROBES {
            took.push(probe(&mut source).await?);
        }
        baseline = Baseline::of_probes(took);
    }
    let Some(baseline) = baseline else { return Ok(()) };
    if migration.phase > Phase::Planned {
        tracing::warn!(phase = %migration.phase, "the gate latency came later than the migration: its baseline is what the source takes now");
    }
    tracing::info!(by = baseline.by(), "the source's latency before tables are copied is in the journal");
    session.journal.command(Command::TakeBaseline { baseline }, &session.by).await?;
    Ok(())
}

/// Looks again and again, until the run ends. While the source cannot be asked nothing is known, and the gate holds.
pub(super) async fn watch(shared: Arc<Shared>, baseline: Baseline) {
    let mut closed = shared.closed();
    let mut source = None;
    let mut is_known = true;
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let looked = tokio::select! {
            () = closed.wait() => return,
            looked = async {
                tick.tick().await;
                look(&shared, &mut source, &baseline).await
            } => looked,
        };
        match looked {
            Ok(()) => is_known = true,
            Err(error) => {
                source = None;
                shared.slowness(|slowness, _| slowness.clear());
                // Said once, not each second.
                if std::mem::replace(&mut is_known, false) {
                    tracing::warn!("the source's latency is not known now: {error}");
                }
            }
        }
    }
}

async fn look(shared: &Shared, source: &mut Option<Asked>, baseline: &Baseline) -> Result<(), CliError> {
    if source.is_none() {
        *source = Some(Asked::of(&shared.spec, baseline).await?);
    }
    let Some(asked) = source else { return Ok(()) };
    match &asked.sql {
        Some(sql) => {
            let counts = counts(&mut asked.source, sql).await?;
            shared.slowness(|slowness, at| slowness.counted(at, counts));
        }
        None => {
            let took_us = probe(&mut asked.source).await?;
            shared.slowness(|slowness, at| slowness.probed(at, took_us));
        }
    }
    Ok(())
}

/// A session with the source, and what is asked there; nothing for the question of our own.
struct Asked {
    source: AnyInspect,
    sql: Option<String>,
}

impl Asked {
    async fn of(spec: &Spec, baseline: &Baseline) -> Result<Self, CliError> {
        let mut source = wiring::source_inspect(spec)?;
        let sql = match baseline {
            Baseline::Probe(_) => None,
            Baseline::Statements(before) => match way(&mut source).await? {
                Way::Statements(schema) => Some(again(&schema, before)),
                Way::Probe(why, remedy) => {
                    return Err(CliError::refused(format!("its baseline is of statements, and {why}")).hint(remedy));
                }
            },
        };
        Ok(Self { source, sql })
    }
}
