//! The rows that lookups read, at the place in the log where deliver stands: kept up to date by the same events, in
//! the same order, and rebuilt from the log at every start, so that a replay sees what the first run saw.

mod store;
mod view;

pub use store::{Scratch, ScratchError};

use crate::{PipelineError, fold::Begun};
use crossfade_event::{Change, Cut, Event, Identity, Key, Op, Row, TableId, TableSchema, catalog::Dialect};
use crossfade_log::{EventLog, Lane, LogReader};
use crossfade_transform::{Plan, Views};
use std::sync::{Arc, OnceLock};
use store::Shelf;
use view::{View, ViewError};

/// All views of a plan.
#[derive(Debug)]
pub(crate) struct LookupViews {
    views: Vec<View>,
    /// The first thing that could not be read while transforming, which has no way to say so itself.
    broken: OnceLock<ScratchError>,
}

impl From<ViewError> for PipelineError {
    fn from(error: ViewError) -> Self {
        match error {
            ViewError::Scratch(error) => Self::Scratch(error),
            other => Self::Refused(other.to_string()),
        }
    }
}

impl LookupViews {
    pub(crate) fn of(plan: &Plan, dialect: Dialect, scratch: &Scratch) -> Self {
        let shelf = Shelf::new(scratch.clone());
        let views = plan.lookups().iter().map(|lookup| View::new(lookup, dialect, &shelf));
        Self { views: views.collect(), broken: OnceLock::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.views.is_empty()
    }

    /// A table has another shape from here on.
    pub(crate) fn follow(&mut self, schema: &TableSchema) -> Result<(), PipelineError> {
        for view in self.views.iter_mut().filter(|view| view.reads(schema)) {
            view.follow(schema)?;
        }
        Ok(())
    }

    /// Takes in one change of a source table.
    pub(crate) fn observe(&mut self, schema: &TableSchema, change: &Change) -> Result<(), PipelineError> {
        for view in self.views.iter_mut().filter(|view| view.reads(schema)) {
            view.observe(schema, change)?;
        }
        Ok(())
    }

    /// The plan was made anew: it must still want the same views.
    pub(crate) fn check_plan(&self, plan: &Plan) -> Result<(), PipelineError> {
        let same = plan.lookups().len() == self.views.len()
            && plan.lookups().iter().zip(&self.views).all(|(lookup, view)| view.is_of(lookup));
        if same {
            return Ok(());
        }
        Err(PipelineError::Refused(
            "a table changed so that lookups read other columns than before; start again: what they read is then made anew from the log".to_owned(),
        ))
    }

    /// Fails if a lookup could not be answered.
    pub(crate) fn check(&mut self) -> Result<(), PipelineError> {
        self.broken.take().map_or(Ok(()), |error| Err(error.into()))
    }

    pub(crate) fn truncate(&mut self, schema: &TableSchema) -> Result<(), PipelineError> {
        for view in self.views.iter_mut().filter(|view| view.reads(schema)) {
            view.clear()?;
        }
        Ok(())
    }

    /// Takes in one event; anything but rows, changes and schemas is passed over.
    fn absorb<L: EventLog>(&mut self, log: &L, event: &Event) -> Result<(), PipelineError> {
        match event {
            Event::Changed(change) => {
                if let Some(schema) = log.schema(change.table, change.schema) {
                    self.observe(&schema, change)?;
                }
            }
            Event::Rows(block) => {
                let Some(schema) = log.schema(block.table, block.schema).filter(|schema| self.wants(schema)) else {
                    return Ok(());
                };
                for row in block.iter() {
                    let row = row.map_err(|error| PipelineError::Refused(format!("a damaged row block: {error}")))?;
                    self.observe(&schema, &inserted(block.table, &schema, row))?;
                }
            }
            Event::SchemaSeen(schema) => self.follow(schema)?,
            // Without a key the table's copy begins anew each time.
            Event::SnapshotBegan { table, .. } => {
                if let Some(schema) = latest(log, *table).filter(|schema| schema.identity != Identity::Key) {
                    self.truncate(&schema)?;
                }
            }
            Event::Truncated(truncate) => {
                for schema in truncate.tables.iter().filter_map(|table| latest(log, *table)) {
                    self.truncate(&schema)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn wants(&self, schema: &TableSchema) -> bool {
        self.views.iter().any(|view| view.reads(schema))
    }

    /// Fills the views with a backfill's rows: lookups are complete before the first row that needs them.
    pub(crate) async fn fill_from_backfill<L: EventLog>(
        &mut self,
        log: &L,
        from: &Cut,
        generation: u32,
    ) -> Result<(), PipelineError> {
        if self.is_empty() {
            return Ok(());
        }
        let mut reader = log.read(from, Lane::Snapshot)?;
        loop {
            for entry in reader.next().await?.entries {
                if matches!(&entry.event, Event::BackfillEnded { generation: ended } if *ended >= generation) {
                    return Ok(());
                }
                self.absorb(log, &entry.event)?;
            }
        }
    }

    /// Builds the views as they were at `upto`, after these backfills: each of them followed by the stream until the next
    /// one began, as deliver itself went.
    pub(crate) async fn rebuild<L: EventLog>(
        &mut self,
        log: &L,
        backfills: &[Begun],
        upto: &Cut,
    ) -> Result<(), PipelineError> {
        if self.is_empty() {
            return Ok(());
        }
        let is_there = |first: &Begun| first.backfill.generation == 1 && first.from.covers(&log.start());
        if !backfills.first().is_some_and(is_there) {
            return Err(trimmed());
        }
        for (index, begun) in backfills.iter().enumerate() {
            for schema in begun.backfill.tables.iter().filter_map(|table| latest(log, *table)) {
                self.truncate(&schema)?;
            }
            self.fill_from_backfill(log, &begun.from, begun.backfill.generation).await?;
            let end = backfills.get(index + 1).map_or(upto, |next| &next.from);
            self.follow_stream(log, &begun.from, end)?;
        }
        Ok(())
    }

    /// Follows the stream from `from` up to `upto`.
    fn follow_stream<L: EventLog>(&mut self, log: &L, from: &Cut, upto: &Cut) -> Result<(), PipelineError> {
        let mut reader = log.read(from, Lane::Stream)?;
        while let Some(entries) = reader.try_next()? {
            for entry in entries.entries {
                if entry.offset >= upto.next(entry.partition) {
                    return Ok(());
                }
                self.absorb(log, &entry.event)?;
            }
        }
        Ok(())
    }
}

impl Views for LookupViews {
    fn get(&self, view: u32, key: &Key) -> Option<Row> {
        let view = self.views.iter().find(|candidate| candidate.number == view)?;
        view.get(key).unwrap_or_else(|error| {
            // The first one tells it all.
            let _ = self.broken.set(error);
            None
        })
    }
}

/// The log does not reach back to where the rows came from that lookups read.
pub(crate) fn trimmed() -> PipelineError {
    PipelineError::Refused(
        "the log no longer holds the rows that the lookups read: they were trimmed away. Begin again with an empty folder, or keep more of the log (`[log] retention`)".to_owned(),
    )
}

pub(crate) fn inserted(table: TableId, schema: &TableSchema, row: Row) -> Change {
    Change { table, schema: schema.version, op: Op::Insert, old: None, new: Some(row) }
}

fn latest<L: EventLog>(log: &L, table: TableId) -> Option<Arc<TableSchema>> {
    log.latest_schemas().into_iter().find(|schema| schema.id == table)
}
