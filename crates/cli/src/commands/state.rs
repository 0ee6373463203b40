//! `state ls|rebuild`: looks into the state, or makes it again from what it is a cache of.

use super::{control, folder};
use crate::{
    error::CliError,
    event_log::AnyLog,
    output::{self, Table},
    registry::AnySink,
    run::whole,
    spec::Spec,
};
use crossfade_connector::{Quarantine, QuarantineFilter, QuarantinedChange, Sink};
use crossfade_control::{Journal, Migration};
use crossfade_log::{EventLog, embedded::Embedded};
use crossfade_pipeline::fold_snapshots;
use crossfade_state::{
    Changes, Checkpoint, CheckpointKey, Cursor, CursorKey, Epoch, EpochKey, IdentityKey, IdentityPin, JournalFoldKey,
    QuarantineKey, QuarantineRecord, Setting, SettingKey, SledStore, StateStore, WorkFolder, listing, quarantine_aside,
};
use hyper::Method;
use serde::Serialize;
use serde_json::Value;
use std::path::PathBuf;

/// Everything in the state. It holds no row values, so all of it may be shown. Asked of the process that runs the migration,
/// where one does.
pub(crate) async fn ls(spec: &Spec, as_json: bool) -> Result<(), CliError> {
    let all = match control::ask(spec, Method::POST, "/command/state", None).await? {
        Some(answer) => answer,
        None => in_folder(spec)?,
    };
    if as_json {
        return output::json(&all);
    }
    let entries = all.as_array().map(Vec::as_slice).unwrap_or_default();
    if entries.is_empty() {
        return output::line("the state is empty");
    }
    let mut table = Table::new(["kind", "key", "value"]);
    for entry in entries {
        table.row(
            ["kind", "key", "value"].map(|name| entry.get(name).and_then(Value::as_str).unwrap_or("?").to_owned()),
        );
    }
    output::print(&table.render())
}

fn in_folder(spec: &Spec) -> Result<Value, CliError> {
    let owned = folder::taken(spec)?;
    let path = WorkFolder::state_path(owned.dir());
    if !path.is_dir() {
        return Err(CliError::misconfigured(format!(
            "the migration {} has no state yet: {}",
            spec.name,
            path.display()
        ))
        .hint(format!("`crossfade run {}` makes it", spec.file.display())));
    }
    listed(&SledStore::open(path)?)
}

/// What a store holds, for programs.
pub(crate) fn listed(store: &SledStore) -> Result<Value, CliError> {
    serde_json::to_value(listing(store)?).map_err(|error| CliError::failed(format!("listing the state: {error}")))
}

/// What a rebuild found.
#[derive(Debug, Default, Serialize)]
struct Rebuilt {
    /// Where the old state went.
    moved_to: Option<PathBuf>,
    /// Tables of the last backfill.
    tables: usize,
    /// Its chunks that are in the log.
    chunks: usize,
    /// Named places.
    checkpoints: usize,
    /// Changes in quarantine.
    quarantined: usize,
    /// Where the sink stands.
    sink: Option<String>,
}

/// Builds the state again from the log, the journal and the sink. The old one is kept beside it.
pub(crate) async fn rebuild(spec: &Spec, as_json: bool) -> Result<(), CliError> {
    let owned = folder::taken(spec)?;
    let journal = folder::journal(&owned)?;
    let mut told = Rebuilt::default();
    let mut changes = from_log(&AnyLog::look(spec)?, &journal.migration(), &mut told)?;
    changes = from_journal(changes, &journal, &mut told).await?;
    changes = from_sink(changes, spec, &mut told).await?;
    // Everything was read before anything is moved: a rebuild that fails leaves what there is.
    let path = WorkFolder::state_path(owned.dir());
    if path.exists() {
        told.moved_to = Some(quarantine_aside(&path)?);
    }
    SledStore::open(&path)?.commit(changes).await?;
    if as_json {
        return output::json(&told);
    }
    let mut text = format!(
        "the state is whole again: {} tables with {} finished chunks, {} checkpoints, {} changes in quarantine\n",
        told.tables, told.chunks, told.checkpoints, told.quarantined
    );
    if let Some(moved) = &told.moved_to {
        text.push_str(&format!("the old one is kept in {}\n", moved.display()));
    }
    output::print(&text)
}

/// How far the copies have come: what ingest resumes from.
fn from_log(log: &AnyLog, migration: &Migration, told: &mut Rebuilt) -> Result<Changes, CliError> {
    let fold = whole(fold_snapshots(log)?, log, migration);
    told.tables = fold.state.tables.len();
    told.chunks = fold.state.tables.iter().map(|(_, snapshot)| snapshot.done.len()).sum();
    let tail = log.tail();
    let cursor = Cursor { cut: tail.cut, position: tail.position };
    Ok(fold.changes(log.id(), None).put(&CursorKey::new(folder::INGEST), &cursor))
}

/// Decisions: checkpoints, epoch, pinned identities.
async fn from_journal(
    mut changes: Changes,
    journal: &Journal<Embedded>,
    told: &mut Rebuilt,
) -> Result<Changes, CliError> {
    let Migration { epoch, spec_hash, secret_id, pins, checkpoints, .. } = journal.migration();
    told.checkpoints = checkpoints.len();
    for (name, place) in checkpoints {
        let checkpoint = Checkpoint { cut: place.cut, position: place.position, at_us: place.at_us };
        changes = changes.put(&CheckpointKey::new(name), &checkpoint);
    }
    let at_us = folder::by_hand().at_us;
    for (end, identity) in pins {
        changes = changes.put(&IdentityKey::new(end.to_string()), &IdentityPin { identity, at_us });
    }
    for (name, value) in [("spec-hash", spec_hash), ("secret-id", secret_id)] {
        if !value.is_empty() {
            changes = changes.put(&SettingKey::new(name), &Setting(value));
        }
    }
    Ok(changes.put(&EpochKey, &Epoch(epoch)).put(&JournalFoldKey, &journal.fold().await?))
}

/// Where the sink stands by its own word, and what it holds back.
async fn from_sink(mut changes: Changes, spec: &Spec, told: &mut Rebuilt) -> Result<Changes, CliError> {
    let mut sink = AnySink::new(spec)?;
    if let Some(progress) = sink.progress().await? {
        told.sink = progress.position.map(|position| position.to_string());
        let cursor = Cursor { cut: progress.cut, position: progress.position };
        changes = changes.put(&CursorKey::new(folder::DELIVER), &cursor);
    }
    for change in sink.list(&QuarantineFilter::default()).await? {
        told.quarantined += 1;
        changes = changes.put(&QuarantineKey(change.id), &record(change));
    }
    Ok(changes)
}

fn record(change: QuarantinedChange) -> QuarantineRecord {
    QuarantineRecord {
        offset: change.sequence,
        ordinal: change.ordinal,
        table: change.table,
        key_hash: change.key_hash,
        kind: change.kind,
        reason: change.reason,
        at: change.at,
    }
}
