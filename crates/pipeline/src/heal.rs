//! Replay into the same sink: a stretch of the log is folded to one final image per key, and only those are written.
//!
//! No older value is ever visible, for each key is written once, with what it has at the sink's position; rows outside
//! the stretch are left alone. Live apply must wait meanwhile: the caller owns the sink.
//!
//! The stretch is gone through as deliver went: the stream up to where a backfill began, that backfill's rows, the stream
//! from there on; and what lookups read is what it was there.
//!
//! Memory is bounded: the keys are shared out over as many passes as the stretch needs, each pass reads the stretch
//! again and folds its share. All passes are one sink transaction; but where others write the same tables it would keep
//! their rows locked for long, and small steps are committed one by one.

use crate::{
    PipelineError,
    fold::{Begun, SnapshotFold, fold_snapshots},
    gather::{Gather, Meaning},
    route::Routes,
    views::trimmed,
};
use crossfade_connector::{Delivery, Guard, Progress, Sink, Stage, Write};
use crossfade_event::{Cell, Change, Cut, Event, Identity, Key, Op, Row, Rows, TableId, TableSchema, Version};
use crossfade_log::{Entry, EventLog, Lane, LogReader};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

/// Rows that are locked at a time in tables that others write.
const SHARED_ROWS: usize = 500;

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
    let progress = streaming(sink, "a replay into it would change nothing").await?;
    let mut routes = routes.clone();
    routes.restore(log, &progress.schemas)?;
    sink.prepare(routes.target()).await.map_err(PipelineError::Sink)?;
    let mut replay = Replay::new(log.clone(), routes, from.clone(), progress, fold_snapshots(log)?);
    let passes = replay.measure()?.div_ceil(budget_bytes.max(1) as u64).max(1);
    let step = replay.routes.writes_beside_others().then_some(SHARED_ROWS);
    for pass in 0..passes {
        replay.report.read = 0;
        let finals = replay.fold(pass, passes).await?;
        let writes = replay.writes(finals);
        let upto = replay.progress.clone();
        let refused = match step {
            Some(step) => in_steps(sink, &writes, step, &upto).await? > 0,
            None => true,
        };
        // What the rows of two steps exchange can only be written together.
        if refused {
            if step.is_some() {
                // What was refused is not to wait behind itself.
                sink.prepare(replay.routes.target()).await.map_err(PipelineError::Sink)?;
            }
            let delivery = Delivery { writes, upto, commits: step.is_some() || pass + 1 == passes };
            sink.apply(delivery, Guard::Heal).await.map_err(PipelineError::Sink)?;
        }
    }
    Ok(replay.report)
}

/// How far a sink has come that is filled.
///
/// # Errors
/// Refused while it is being filled: `why` says what that means.
pub(crate) async fn streaming<K: Sink>(sink: &mut K, why: &str) -> Result<Progress, PipelineError> {
    let progress = sink.progress().await.map_err(PipelineError::Sink)?;
    progress.filter(|progress| progress.stage == Stage::Streaming).ok_or_else(|| {
        PipelineError::Refused(format!("the sink is still being filled: {why}. Wait for `crossfade wait --caught-up`"))
    })
}

/// Writes so many at a time, each step committed; how many were refused, or wait behind what was.
pub(crate) async fn in_steps<K: Sink>(
    sink: &mut K,
    writes: &[Write],
    step: usize,
    upto: &Progress,
) -> Result<u64, PipelineError> {
    let mut refused = 0;
    for writes in writes.chunks(step) {
        let delivery = Delivery { writes: writes.to_vec(), upto: upto.clone(), commits: true };
        let applied = sink.apply(delivery, Guard::Heal).await.map_err(PipelineError::Sink)?;
        refused += applied.rejected.len() as u64 + applied.held;
    }
    Ok(refused)
}

pub(crate) struct Replay<L> {
    log: L,
    routes: Routes,
    from: Cut,
    progress: Progress,
    fold: SnapshotFold,
    /// The backfills that began before the stretch, and are in what lookups read at its beginning.
    before: Vec<Begun>,
    /// The stretch, in the order in which deliver went through it.
    legs: Vec<Leg>,
    report: HealReport,
}

/// A part of the stretch that is read in one lane.
enum Leg {
    /// The stream from one place to another.
    Stream(Cut, Cut),
    /// A backfill's rows.
    Rows(Begun),
}

impl<L: EventLog> Replay<L> {
    pub(crate) fn new(log: L, routes: Routes, from: Cut, progress: Progress, fold: SnapshotFold) -> Self {
        let loaded = fold.backfills.iter().filter(|begun| begun.backfill.generation <= progress.generation);
        let (within, before): (Vec<Begun>, Vec<Begun>) = loaded.cloned().partition(|begun| begun.from.covers(&from));
        let mut legs = Vec::new();
        let mut at = from.clone();
        for begun in within {
            let next = begun.from.clone();
            legs.push(Leg::Stream(std::mem::replace(&mut at, next.clone()), next));
            legs.push(Leg::Rows(begun));
        }
        legs.push(Leg::Stream(at, progress.cut.clone()));
        Self { log, routes, from, progress, fold, before, legs, report: HealReport::default() }
    }

    /// Whether of all entries of the stretch this holds.
    pub(crate) fn entries(&self, holds: &mut dyn FnMut(&Event) -> bool) -> Result<bool, PipelineError> {
        let mut all = true;
        for leg in &self.legs {
            self.each(leg, &mut |entry| {
                all &= holds(&entry.event);
                Ok(())
            })?;
        }
        Ok(all)
    }

    /// The keys of the target that the stretch changes.
    pub(crate) async fn keys(&mut self) -> Result<HashSet<(TableId, Key)>, PipelineError> {
        Ok(self.fold(0, 1).await?.into_keys().collect())
    }

    /// About how many bytes the stretch holds.
    fn measure(&self) -> Result<u64, PipelineError> {
        let mut bytes = 0;
        for leg in &self.legs {
            self.each(leg, &mut |entry| {
                bytes += entry.event.size_bytes() as u64;
                Ok(())
            })?;
        }
        Ok(bytes)
    }

    /// Every entry of one leg.
    fn each(&self, leg: &Leg, take: &mut dyn FnMut(&Entry) -> Result<(), PipelineError>) -> Result<(), PipelineError> {
        let mut reader = match leg {
            Leg::Stream(from, _) => self.log.read(from, Lane::Stream)?,
            Leg::Rows(begun) => self.log.read(&begun.from, Lane::Snapshot)?,
        };
        while let Some(entries) = reader.try_next()? {
            for entry in &entries.entries {
                let is_past = match leg {
                    Leg::Stream(_, upto) => entry.offset >= upto.next(entry.partition),
                    Leg::Rows(begun) => {
                        matches!(&entry.event, Event::BackfillEnded { generation } if *generation >= begun.backfill.generation)
                    }
                };
                if is_past {
                    return Ok(());
                }
                take(entry)?;
            }
        }
        Ok(())
    }

    async fn fold(&mut self, pass: u64, passes: u64) -> Result<HashMap<(TableId, Key), Final>, PipelineError> {
        let mut gather = Gather::new(self.log.clone(), self.routes.clone(), self.fold.visible.clone());
        self.views_at_the_beginning(&mut gather).await?;
        let mut fold = Fold {
            schemas: self.routes.target().tables.iter().map(|table| (table.schema.id, table.schema.clone())).collect(),
            finals: HashMap::new(),
            left_alone: BTreeSet::new(),
            pass,
            passes,
        };
        let mut read = 0;
        for leg in &self.legs {
            if let Leg::Rows(begun) = leg {
                let generation = begun.backfill.generation;
                gather.views.fill_from_backfill(&self.log, &begun.from, generation).await?;
            }
            self.each(leg, &mut |entry| {
                let meaning = match leg {
                    Leg::Stream(..) => gather.stream(entry)?,
                    Leg::Rows(_) => gather.snapshot(entry, None)?,
                };
                // A later backfill begins with empty tables.
                if let Meaning::BackfillBegan { generation: 2.., tables } = &meaning {
                    gather.truncated(entry, tables)?;
                }
                read += fold.take(&mut gather, meaning)?;
                Ok(())
            })?;
        }
        self.report.read = read;
        self.report.left_alone = fold.left_alone.into_iter().collect();
        Ok(fold.finals)
    }

    /// Lookups see what they saw the first time: the views as they were where the stretch begins.
    async fn views_at_the_beginning(&self, gather: &mut Gather<L>) -> Result<(), PipelineError> {
        let begins_with_the_first =
            matches!(self.legs.get(1), Some(Leg::Rows(begun)) if begun.backfill.generation == 1);
        match (gather.views.is_empty(), self.before.is_empty(), begins_with_the_first) {
            (true, ..) | (false, true, true) => Ok(()),
            (false, true, false) => Err(trimmed()),
            (false, false, _) => gather.views.rebuild(&self.log, &self.before, &self.from).await,
        }
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
                Write::Truncate { at, tables } => self.truncate(at, &tables),
                Write::Reject(_) | Write::Began { .. } | Write::Boundary => {}
            }
        }
        Ok(tally.read)
    }

    /// Rows that were written before their table was emptied end deleted, unless they come again.
    fn truncate(&mut self, at: Version, tables: &[TableId]) {
        for ((table, _), last) in &mut self.finals {
            if let Final::Image { row, .. } = last
                && tables.contains(table)
            {
                *last = Final::Deleted { at, old: row.clone() };
            }
        }
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
            // A row is a slice of the piece of the log that it was read in, and would keep all of that in memory.
            let last = match last {
                Final::Image { at, row } => Final::Image { at, row: detached(&row) },
                Final::Deleted { at, old } => Final::Deleted { at, old: detached(&old) },
            };
            self.finals.insert((table, key), last);
        }
    }
}

/// The row with bytes of its own.
fn detached(row: &Row) -> Row {
    row.cells().collect()
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
