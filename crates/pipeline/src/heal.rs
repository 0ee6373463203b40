//! Replay into the same sink: a stretch of the log is folded to one final image per key, and only those are written.
//!
//! No older value is ever visible, for each key is written once, with what it has at the sink's position; rows outside
//! the stretch are left alone. Live apply must wait meanwhile: the caller owns the sink.
//!
//! Memory is bounded: the keys are shared out over as many passes as the stretch needs, each pass reads the stretch
//! again and folds its share. All passes are one sink transaction.

use crate::{
    PipelineError, fold_snapshots,
    gather::{Gather, Meaning},
    route::Routes,
};
use crossfade_connector::{Delivery, Guard, Progress, Sink, Stage, Write};
use crossfade_event::{Cell, Change, Cut, Event, Identity, Key, Op, Row, Rows, TableId, TableSchema, Version};
use crossfade_log::{EventLog, Lane, LogReader};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

/// What a healing replay did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HealReport {
    /// Changes and rows read from the log.
    pub read: u64,
    /// Keys whose final image was written.
    pub written: u64,
    /// Keys that end deleted.
    pub deleted: u64,
    /// Target tables without a key: they cannot be healed key by key and were left alone.
    pub left_alone: Vec<TableId>,
}

/// What a key comes to.
enum Final {
    Image { at: Version, row: Row },
    Deleted { at: Version, old: Row },
}

/// Applies the log from `from` up to the sink's position again. `budget_bytes` bounds the memory of one pass.
///
/// # Errors
/// When the sink is not streaming yet, when the log no longer reaches back to `from`, or when either fails.
pub async fn heal<K: Sink, L: EventLog>(
    log: &L,
    routes: &Routes,
    sink: &mut K,
    from: &Cut,
    budget_bytes: usize,
) -> Result<HealReport, PipelineError> {
    let progress = sink.progress().await.map_err(PipelineError::Sink)?;
    let Some(progress) = progress.filter(|progress| progress.stage == Stage::Streaming) else {
        return Err(PipelineError::Refused(
            "the sink is still being filled: a replay into it would change nothing. Wait for `crossfade wait --caught-up`".to_owned(),
        ));
    };
    let mut routes = routes.clone();
    routes.restore(log, &progress.schemas)?;
    sink.prepare(routes.target()).await.map_err(PipelineError::Sink)?;
    let mut replay = Replay { log: log.clone(), routes, from: from.clone(), progress, report: HealReport::default() };
    let passes = replay.measure()?.div_ceil(budget_bytes.max(1) as u64).max(1);
    for pass in 0..passes {
        replay.report.read = 0;
        let finals = replay.fold(pass, passes).await?;
        let writes = replay.writes(finals);
        let delivery = Delivery { writes, upto: replay.progress.clone(), commits: pass + 1 == passes };
        sink.apply(delivery, Guard::Heal).await.map_err(PipelineError::Sink)?;
    }
    Ok(replay.report)
}

struct Replay<L> {
    log: L,
    routes: Routes,
    from: Cut,
    progress: Progress,
    report: HealReport,
}

impl<L: EventLog> Replay<L> {
    /// About how many bytes the stretch holds.
    fn measure(&self) -> Result<u64, PipelineError> {
        let mut bytes = 0;
        let with_backfill = self.progress.stream_from.covers(&self.from);
        for lane in [Lane::Snapshot, Lane::Stream].into_iter().filter(|lane| with_backfill || *lane == Lane::Stream) {
            self.each(lane, &mut |_, event| {
                bytes += event.size_bytes() as u64;
                Ok(())
            })?;
        }
        Ok(bytes)
    }

    /// Every entry of the stretch in one lane.
    fn each(
        &self,
        lane: Lane,
        take: &mut dyn FnMut(&crossfade_log::Entry, &Event) -> Result<(), PipelineError>,
    ) -> Result<(), PipelineError> {
        let mut reader = self.log.read(&self.from, lane)?;
        // A backfill's rows count as long as they belong to what the sink has loaded, wherever they stand.
        let upto = (lane == Lane::Stream).then_some(&self.progress.cut);
        while let Some(entries) = reader.try_next()? {
            for entry in &entries.entries {
                if upto.is_some_and(|upto| entry.offset >= upto.next(entry.partition)) {
                    return Ok(());
                }
                take(entry, &entry.event)?;
                if lane == Lane::Snapshot
                    && matches!(&entry.event, Event::BackfillEnded { generation } if *generation >= self.progress.generation)
                {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn fold(&mut self, pass: u64, passes: u64) -> Result<HashMap<(TableId, Key), Final>, PipelineError> {
        let visible = fold_snapshots(&self.log)?.visible;
        let mut gather = Gather::new(self.log.clone(), self.routes.clone(), visible);
        // Lookups see what they saw the first time: the views as they were where the stretch begins.
        let views_at =
            if self.progress.stream_from.covers(&self.from) { &self.progress.stream_from } else { &self.from };
        gather.views.rebuild(&self.log, self.progress.generation, views_at).await?;
        let mut fold = Fold {
            schemas: self.routes.target().tables.iter().map(|table| (table.schema.id, table.schema.clone())).collect(),
            finals: HashMap::new(),
            left_alone: BTreeSet::new(),
            pass,
            passes,
        };
        let mut read = 0;
        // The stretch holds the backfill's rows when it begins at or before the backfill does.
        if self.progress.stream_from.covers(&self.from) {
            self.each(Lane::Snapshot, &mut |entry, _| {
                let meaning = gather.snapshot(entry)?;
                read += fold.take(&mut gather, meaning)?;
                Ok(())
            })?;
        }
        self.each(Lane::Stream, &mut |entry, _| {
            let meaning = gather.stream(entry)?;
            read += fold.take(&mut gather, meaning)?;
            Ok(())
        })?;
        self.report.read = read;
        self.report.left_alone = fold.left_alone.into_iter().collect();
        Ok(fold.finals)
    }

    fn writes(&mut self, finals: HashMap<(TableId, Key), Final>) -> Vec<Write> {
        let mut writes: Vec<(Version, Write)> = finals
            .into_iter()
            .map(|((table, _), last)| {
                let schema = crossfade_event::SchemaVersion(1);
                let (at, change) = match last {
                    Final::Image { at, row } => {
                        self.report.written += 1;
                        (at, Change { table, schema, op: Op::Update, old: None, new: Some(row) })
                    }
                    Final::Deleted { at, old } => {
                        self.report.deleted += 1;
                        (at, Change { table, schema, op: Op::Delete, old: Some(old), new: None })
                    }
                };
                (at, Write::Change { at, change })
            })
            .collect();
        writes.sort_by_key(|(at, _)| *at);
        writes.into_iter().map(|(_, write)| write).collect()
    }
}

/// Folds writes to one final image per key, for the keys of one pass.
struct Fold {
    schemas: HashMap<TableId, Arc<TableSchema>>,
    finals: HashMap<(TableId, Key), Final>,
    left_alone: BTreeSet<TableId>,
    pass: u64,
    passes: u64,
}

impl Fold {
    /// Takes what was gathered; returns how many outputs it was.
    fn take<L: EventLog>(&mut self, gather: &mut Gather<L>, meaning: Meaning) -> Result<u64, PipelineError> {
        if let Meaning::Follow(_) = meaning {
            for table in &gather.routes.target().tables {
                self.schemas.insert(table.schema.id, table.schema.clone());
            }
        }
        let (writes, tally) = gather.take();
        for write in writes {
            match write {
                Write::Change { at, change } => self.change(at, &change),
                Write::Rows { table, at, rows, .. } => {
                    for row in Rows::new(rows) {
                        let row = row.map_err(|error| PipelineError::Refused(format!("a damaged row: {error}")))?;
                        self.image(at, table, row, None);
                    }
                }
                Write::Truncate { tables, .. } => self.finals.retain(|(table, _), _| !tables.contains(table)),
                Write::Reject(_) | Write::Boundary => {}
            }
        }
        Ok(tally.read)
    }

    fn change(&mut self, at: Version, change: &Change) {
        let Some(schema) = self.schemas.get(&change.table).cloned() else { return };
        if schema.identity != Identity::Key {
            self.left_alone.insert(change.table);
            return;
        }
        let before = change.old.as_ref().and_then(|old| schema.key_of(old));
        match (&change.new, before) {
            (Some(new), before) => {
                let moved = before.filter(|before| schema.key_of(new).as_ref() != Some(before));
                let carried = moved.as_ref().and_then(|key| self.held(change.table, key));
                if let (Some(key), Some(old)) = (moved, &change.old) {
                    self.put(change.table, key, Final::Deleted { at, old: old.clone() });
                }
                self.image(at, change.table, new.clone(), carried);
            }
            (None, Some(key)) => {
                if let Some(old) = &change.old {
                    self.put(change.table, key, Final::Deleted { at, old: old.clone() });
                }
            }
            (None, None) => {
                self.left_alone.insert(change.table);
            }
        }
    }

    fn image(&mut self, at: Version, table: TableId, row: Row, carried: Option<Row>) {
        let keyed = self.schemas.get(&table).filter(|schema| schema.identity == Identity::Key);
        let Some(key) = keyed.and_then(|schema| schema.key_of(&row)) else {
            self.left_alone.insert(table);
            return;
        };
        let before = carried.or_else(|| self.held(table, &key));
        let row = match before {
            Some(before) if row.has_unchanged() => merge(&before, &row),
            _ => row,
        };
        self.put(table, key, Final::Image { at, row });
    }

    fn held(&self, table: TableId, key: &Key) -> Option<Row> {
        match self.finals.get(&(table, key.clone()))? {
            Final::Image { row, .. } => Some(row.clone()),
            Final::Deleted { .. } => None,
        }
    }

    fn put(&mut self, table: TableId, key: Key, last: Final) {
        if key.hash64() % self.passes == self.pass {
            self.finals.insert((table, key), last);
        }
    }
}

/// `after`, with its unchanged cells taken from `before`.
fn merge(before: &Row, after: &Row) -> Row {
    let before: Vec<Cell<'_>> = before.cells().collect();
    after
        .cells()
        .enumerate()
        .map(|(index, cell)| match cell {
            Cell::Unchanged => before.get(index).copied().unwrap_or(Cell::Unchanged),
            cell => cell,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unchanged_cells_come_from_the_image_before() {
        let before: Row = [Cell::Bytes(b"1"), Cell::Bytes(b"long"), Cell::Null].into_iter().collect();
        let after: Row = [Cell::Bytes(b"1"), Cell::Unchanged, Cell::Bytes(b"x")].into_iter().collect();
        let merged: Row = [Cell::Bytes(b"1"), Cell::Bytes(b"long"), Cell::Bytes(b"x")].into_iter().collect();
        assert_eq!(merge(&before, &after), merged);
    }
}
