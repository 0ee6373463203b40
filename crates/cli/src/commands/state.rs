//! `state ls|rebuild`: looks into the state, or makes it again from what it is a cache of.

use super::folder;
use crate::{
    error::CliError,
    output::{self, Table},
    registry::AnySink,
    spec::Spec,
};
use crossfade_connector::{Quarantine, QuarantineFilter, QuarantinedChange, Sink};
use crossfade_control::{Journal, Migration};
use crossfade_event::{Event, TableId};
use crossfade_log::{EventLog, Lane, LogReader, embedded::Embedded};
use crossfade_pipeline::SnapshotFold;
use crossfade_state::{
    Changes, Checkpoint, CheckpointKey, ChunkDone, ChunkKey, Cursor, CursorKey, Epoch, EpochKey, IdentityKey,
    IdentityPin, IngestFold, IngestFoldKey, JournalFoldKey, QuarantineKey, QuarantineRecord, Setting, SettingKey,
    SledStore, StateStore, TableFold, TableFoldKey, WorkFolder, listing, quarantine_aside,
};
use serde::Serialize;
use std::{collections::BTreeMap, path::PathBuf};

/// Everything in the state. It holds no row values, so all of it may be shown.
pub(crate) fn ls(spec: &Spec, as_json: bool) -> Result<(), CliError> {
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
    let store = SledStore::open(path)?;
    let all = listing(&store)?;
    if as_json {
        return output::json(&all);
    }
    if all.is_empty() {
        return output::line("the state is empty");
    }
    let mut table = Table::new(["kind", "key", "value"]);
    for entry in all {
        table.row([entry.kind.to_owned(), entry.key, entry.value]);
    }
    output::print(&table.render())
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
    let mut changes = from_log(&folder::log(spec)?, &mut told)?;
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
fn from_log(log: &Embedded, told: &mut Rebuilt) -> Result<Changes, CliError> {
    let mut fold = SnapshotFold { folded: log.start(), ..SnapshotFold::default() };
    let mut rows: BTreeMap<(TableId, u32), u64> = BTreeMap::new();
    let mut reader = log.read(&log.start(), Lane::Snapshot)?;
    while let Some(entries) = reader.try_next()? {
        for entry in &entries.entries {
            if let Event::ChunkEnded { table, chunk, rows: count } = &entry.event {
                rows.insert((*table, chunk.0), *count);
            }
            fold.absorb(entry);
        }
    }
    let state = fold.state;
    let generation = state.generation;
    let ingest = IngestFold {
        upto: fold.folded,
        generation,
        ended: state.ended,
        visible: state.visible,
        tables: state.tables.iter().map(|(table, _)| *table).collect(),
    };
    told.tables = state.tables.len();
    let mut changes = Changes::one(&IngestFoldKey, &ingest);
    for (table, snapshot) in state.tables {
        let key = TableFoldKey { generation, table };
        changes = changes.put(&key, &TableFold { chunks: snapshot.chunks, ended: snapshot.ended });
        told.chunks += snapshot.done.len();
        for chunk in snapshot.done {
            let rows = rows.get(&(table, chunk.0)).copied().unwrap_or_default();
            changes = changes.put(&ChunkKey { generation, table, chunk }, &ChunkDone { rows });
        }
    }
    Ok(changes)
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
        offset: change.offset,
        ordinal: change.ordinal,
        table: change.table,
        key_hash: change.key_hash,
        kind: change.kind,
        reason: change.reason,
        at: change.at,
    }
}
