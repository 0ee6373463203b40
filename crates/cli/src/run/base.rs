//! `replay --base`: a sink that holds a copy already goes on from the place at which the copy was right, so that a log
//! that no longer reaches back to a whole backfill still builds it.
//!
//! A copy that was taken whole, our own tables included, says itself where it stands, and its word counts. One without
//! them is believed to be right at the place that the command names; and so is one beside the tables that it is a copy of,
//! for what stands there is how far those have come since.

use super::word::own_word;
use crate::{error::CliError, event_log::AnyLog, registry::AnySink, spec::Spec, wiring};
use crossfade_connector::{Delivery, Guard, Inspect, Progress, Sink, Stage, Target, WriteMode};
use crossfade_event::{Cut, Event, Position, SchemaVersion, TableId, TableName};
use crossfade_log::{Entry, EventLog, Lane, LogError, LogReader};
use crossfade_pipeline::{Routes, fold_snapshots};
use std::collections::{BTreeMap, BTreeSet};

/// Where a sink goes on that holds a copy, right at `place` or later. Looks, and writes nothing.
pub(super) async fn examine(
    log: &AnyLog,
    from: &Spec,
    into: &Spec,
    place: &Cut,
    routes: &Routes,
) -> Result<Progress, CliError> {
    let progress = match own_word(from, into).await? {
        Some(word) if word.is_of(routes.target()) => {
            nothing_is_missing(word.held.len())?;
            believed(log, from, place, word.progress)?
        }
        other => {
            is_readable(log, from, place)?;
            if let Some(word) = other {
                let upto = first_entry(log, place)?.map(|entry| entry.sequence.0);
                let is_before = |sequence: u64| upto.is_none_or(|upto| sequence < upto);
                nothing_is_missing(word.held.iter().filter(|change| is_before(change.sequence)).count())?;
            }
            progress_at(log, from, place)?
        }
    };
    let mut routes = routes.clone();
    routes.restore(log, &progress.schemas)?;
    holds_a_copy(into, routes.target()).await?;
    Ok(progress)
}

/// Makes the sink go on from there.
pub(super) async fn adopt(
    log: &AnyLog,
    progress: Progress,
    routes: &Routes,
    sink: &mut AnySink,
) -> Result<(), CliError> {
    let mut routes = routes.clone();
    routes.restore(log, &progress.schemas)?;
    sink.prepare(routes.target()).await?;
    sink.finish_load().await?;
    sink.apply(Delivery { writes: Vec::new(), upto: progress, commits: true }, Guard::Forward).await?;
    Ok(())
}

/// What was in quarantine when a copy was taken is not in its rows, and the log is read from a later place.
fn nothing_is_missing(held: usize) -> Result<(), CliError> {
    if held == 0 {
        return Ok(());
    }
    Err(CliError::refused(format!(
        "the copy was taken while {held} changes were in quarantine: they are not in its rows, and would be missing for ever"
    ))
    .hint("retry or discard them in the first sink, and take the copy again"))
}

/// The copy's own word, checked against the log.
fn believed(log: &AnyLog, from: &Spec, place: &Cut, progress: Progress) -> Result<Progress, CliError> {
    let another = |what: String| {
        CliError::refused(format!("the copy is not of {}: {what}", from.name))
            .hint(format!("take a copy of a sink that `crossfade run {}` fills", from.file.display()))
    };
    if progress.stage == Stage::Loading {
        return Err(CliError::refused("the copy was taken while its sink was still being filled")
            .hint("take it again after `crossfade wait --caught-up`"));
    }
    let tail = log.tail();
    if let (Some(own), Some(end)) = (progress.position, tail.position)
        && own.source != end.source
    {
        return Err(another("its position belongs to another source".to_owned()));
    }
    if !tail.cut.covers(&progress.cut) {
        return Err(another(format!("it stands at offset {}, and the log ends at {}", progress.cut, tail.cut)));
    }
    is_readable(log, from, &progress.cut)?;
    let next = first_entry(log, &progress.cut)?.map(|entry| entry.position).or(tail.position);
    if next < progress.position {
        return Err(another("the log has another history at its place".to_owned()));
    }
    if !progress.cut.covers(place) {
        return Err(CliError::refused(format!(
            "the copy stands at offset {}, before the place named ({place}): what came between would be missing",
            progress.cut
        ))
        .hint(match progress.position.filter(|_| log.elsewhere().is_some()) {
            Some(position) => format!("say --from position:{position}"),
            None => format!("say --from offset:{}", progress.cut),
        }));
    }
    Ok(progress)
}

/// The first entry of the stream from a place on.
fn first_entry(log: &AnyLog, from: &Cut) -> Result<Option<Entry>, CliError> {
    let mut reader = log.read(from, Lane::Stream)?;
    while let Some(entries) = reader.try_next()? {
        if let Some(entry) = entries.entries.into_iter().next() {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

fn is_readable(log: &AnyLog, from: &Spec, place: &Cut) -> Result<(), CliError> {
    match log.read(place, Lane::Stream) {
        Ok(_) => Ok(()),
        Err(LogError::Trimmed { asked, start }) => Err(CliError::refused(format!(
            "the log of {} begins at offset {start}: what came after the copy's place ({asked}) was trimmed away",
            from.name
        ))
        .hint("take a newer copy, and keep more of the log (`[log] retention`)")),
        Err(other) => Err(other.into()),
    }
}

/// What a sink that stands at `place` would say of itself.
fn progress_at(log: &AnyLog, from: &Spec, place: &Cut) -> Result<Progress, CliError> {
    let fold = fold_snapshots(log)?;
    let (before, after): (Vec<_>, Vec<_>) = fold.backfills.iter().partition(|begun| place.covers(&begun.from));
    let whole_log = log.start() == Cut::start(log.partitions());
    if before.is_empty() && whole_log {
        return Err(CliError::refused(format!(
            "the place named lies before the first copy in the log of {}: no sink ever stood there",
            from.name
        ))
        .hint("say --from start without --base, or name the place at which the copy was taken"));
    }
    // Where its beginning was trimmed away, the backfill of that time is known by the one that came after it.
    let generation = match (before.last(), after.first()) {
        (Some(begun), _) => begun.backfill.generation,
        (None, Some(next)) => next.backfill.generation.saturating_sub(1).max(1),
        (None, None) => fold.state.generation.max(1),
    };
    let Seen { position, schemas } = seen_up_to(log, place)?;
    Ok(Progress {
        cut: place.clone(),
        stage: Stage::Streaming,
        generation,
        stream_from: before.last().map_or_else(|| place.clone(), |begun| begun.from.clone()),
        sequence: None,
        position: position.max(before.last().map(|begun| begun.position)),
        schemas,
    })
}

struct Seen {
    position: Option<Position>,
    schemas: Vec<(TableId, SchemaVersion)>,
}

/// What the log says up to a place: the last position, and which schemas were in force.
fn seen_up_to(log: &AnyLog, place: &Cut) -> Result<Seen, CliError> {
    let mut position = None;
    let mut before: BTreeMap<TableId, SchemaVersion> = BTreeMap::new();
    let mut after: BTreeMap<TableId, SchemaVersion> = BTreeMap::new();
    let mut reader = log.read(&log.start(), Lane::Stream)?;
    while let Some(entries) = reader.try_next()? {
        for entry in entries.entries {
            let is_before = entry.offset < place.next(entry.partition);
            match &entry.event {
                Event::SchemaSeen(schema) if is_before => {
                    before.insert(schema.id, schema.version);
                }
                Event::SchemaSeen(schema) => {
                    after.entry(schema.id).or_insert(schema.version);
                }
                Event::Committed | Event::Resolved if is_before => position = Some(entry.position),
                _ => {}
            }
        }
    }
    // A schema whose mention was trimmed away is the one before the next, or still the last.
    for latest in log.latest_schemas() {
        let version = match after.get(&latest.id) {
            None => latest.version,
            Some(next) => SchemaVersion(next.0.saturating_sub(1)),
        };
        if !before.contains_key(&latest.id) && log.schema(latest.id, version).is_some() {
            before.insert(latest.id, version);
        }
    }
    Ok(Seen { position, schemas: before.into_iter().collect() })
}

/// Refuses a sink that cannot be a copy: a table or a column is missing, or there is no row in it at all.
async fn holds_a_copy(into: &Spec, target: &Target) -> Result<(), CliError> {
    let mut inspect = wiring::sink_inspect(into)?;
    let no_copy = |what: String| {
        CliError::refused(format!("the sink of {} holds no copy that could be built on: {what}", into.name)).hint(
            "put the copy there first, in the shape that this spec gives; or build the sink anew: --from start, without --base",
        )
    };
    let wanted: Vec<_> = target.tables.iter().filter(|table| table.mode == WriteMode::Table).collect();
    let schemas: BTreeSet<&str> = wanted.iter().map(|table| &*table.schema.name.schema).collect();
    let patterns: Vec<String> = schemas.iter().map(|schema| format!("{schema}.*")).collect();
    let there = inspect.catalog(&patterns).await.map_err(|failure| no_copy(failure.to_string()))?;
    let mut rows = 0;
    for table in wanted {
        let name: &TableName = &table.schema.name;
        let Some(found) = there.table(name) else { return Err(no_copy(format!("there is no table {name}"))) };
        let missing = table.schema.columns.iter().find(|column| found.column(&column.name).is_none());
        if let Some(column) = missing {
            return Err(no_copy(format!("the table {name} has no column {}", column.name)));
        }
        if rows == 0 {
            rows = inspect.count(name).await?;
        }
    }
    match rows {
        0 => Err(no_copy("its tables are empty".to_owned())),
        _ => Ok(()),
    }
}
