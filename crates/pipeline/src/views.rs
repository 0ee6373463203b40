//! The rows that lookups read, at the place in the log where deliver stands: kept up to date by the same events, in
//! the same order, and rebuilt from the log at every start, so that a replay sees what the first run saw.

use crate::{PipelineError, gather::past};
use crossfade_event::{Backfill, Cell, Change, Cut, Event, Key, Op, Row, TableId, TableSchema};
use crossfade_log::{EventLog, Lane, LogReader};
use crossfade_transform::{Plan, Views};
use std::{collections::HashMap, sync::Arc};

/// One view: which cells of the source's rows make its key, and which it keeps.
#[derive(Debug)]
struct View {
    number: u32,
    table: crossfade_event::TableName,
    key: Vec<String>,
    keep: Vec<String>,
    rows: HashMap<Key, Row>,
}

/// All views of a plan.
#[derive(Debug, Default)]
pub(crate) struct LookupViews {
    views: Vec<View>,
}

impl LookupViews {
    pub(crate) fn of(plan: &Plan) -> Self {
        let views = plan
            .lookups()
            .iter()
            .map(|lookup| View {
                number: lookup.view,
                table: lookup.table.clone(),
                key: lookup.key.clone(),
                keep: lookup.keep.clone(),
                rows: HashMap::new(),
            })
            .collect();
        Self { views }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.views.is_empty()
    }

    /// Takes in one change of a source table.
    pub(crate) fn observe(&mut self, schema: &TableSchema, change: &Change) {
        for view in self.views.iter_mut().filter(|view| view.table == schema.name) {
            if change.op != Op::Insert
                && let Some(old) = &change.old
                && let Some(key) = pick(schema, old, &view.key, None)
            {
                view.rows.remove(&Key::from(key));
            }
            if let Some(new) = &change.new
                && let Some(key) = pick(schema, new, &view.key, None)
            {
                let key = Key::from(key);
                if let Some(row) = pick(schema, new, &view.keep, view.rows.get(&key)) {
                    view.rows.insert(key, row);
                }
            }
        }
    }

    fn truncate(&mut self, schema: &TableSchema) {
        for view in self.views.iter_mut().filter(|view| view.table == schema.name) {
            view.rows.clear();
        }
    }

    /// Takes in one event; anything but rows and changes is passed over.
    pub(crate) fn absorb<L: EventLog>(&mut self, log: &L, event: &Event) -> Result<(), PipelineError> {
        match event {
            Event::Changed(change) => {
                if let Some(schema) = log.schema(change.table, change.schema) {
                    self.observe(&schema, change);
                }
            }
            Event::Rows(block) => {
                let Some(schema) = log.schema(block.table, block.schema).filter(|schema| self.wants(schema)) else {
                    return Ok(());
                };
                for row in block.iter() {
                    let row = row.map_err(|error| PipelineError::Refused(format!("a damaged row block: {error}")))?;
                    self.observe(&schema, &inserted(block.table, &schema, row));
                }
            }
            Event::Truncated(truncate) => {
                for table in &truncate.tables {
                    if let Some(schema) = latest(log, *table) {
                        self.truncate(&schema);
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn wants(&self, schema: &TableSchema) -> bool {
        self.views.iter().any(|view| view.table == schema.name)
    }

    /// Fills the views with a backfill's rows: lookups are complete before the first row that needs them.
    pub(crate) async fn fill_from_backfill<L: EventLog>(
        &mut self,
        log: &L,
        from: &Cut,
        generation: u32,
    ) -> Result<(), PipelineError> {
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

    /// Builds the views as they were at `upto`, after `generation`: every backfill up to it, each followed by the stream
    /// until the next one began, as deliver itself went.
    pub(crate) async fn rebuild<L: EventLog>(
        &mut self,
        log: &L,
        generation: u32,
        upto: &Cut,
    ) -> Result<(), PipelineError> {
        if self.is_empty() {
            return Ok(());
        }
        let began = backfills(log, generation)?;
        if began.first().is_none_or(|(first, _)| first.generation != 1) {
            return Err(PipelineError::Refused(
                "the log no longer holds the rows that the lookups read: they were trimmed away. Begin again with an empty folder, or keep more of the log (`[log] retention`)".to_owned(),
            ));
        }
        for (index, (backfill, from)) in began.iter().enumerate() {
            for table in backfill.tables.iter().filter_map(|table| latest(log, *table)) {
                self.truncate(&table);
            }
            self.fill_from_backfill(log, from, backfill.generation).await?;
            let end = began.get(index + 1).map_or(upto, |(_, next)| next);
            self.follow_stream(log, from, end)?;
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
        self.views.iter().find(|candidate| candidate.number == view)?.rows.get(key).cloned()
    }
}

pub(crate) fn inserted(table: TableId, schema: &TableSchema, row: Row) -> Change {
    Change { table, schema: schema.version, op: Op::Insert, old: None, new: Some(row) }
}

/// The backfills of the log up to a generation, each with the place after its beginning.
fn backfills<L: EventLog>(log: &L, upto: u32) -> Result<Vec<(Backfill, Cut)>, PipelineError> {
    let mut found = Vec::new();
    let mut reader = log.read(&log.start(), Lane::Snapshot)?;
    let mut at = log.start();
    while let Some(entries) = reader.try_next()? {
        for entry in &entries.entries {
            past(&mut at, entry);
            match &entry.event {
                Event::BackfillBegan(backfill) if backfill.generation > upto => return Ok(found),
                Event::BackfillBegan(backfill) => found.push((backfill.clone(), at.clone())),
                _ => {}
            }
        }
    }
    Ok(found)
}

fn latest<L: EventLog>(log: &L, table: TableId) -> Option<Arc<TableSchema>> {
    log.latest_schemas().into_iter().find(|schema| schema.id == table)
}

/// The named cells of a row; an unchanged one is taken from `before`. `None` when one is not to be had.
fn pick(schema: &TableSchema, row: &Row, names: &[String], before: Option<&Row>) -> Option<Row> {
    let cells: Vec<Cell<'_>> = row.cells().collect();
    let kept: Option<Vec<Cell<'_>>> = before.map(|row| row.cells().collect());
    names
        .iter()
        .enumerate()
        .map(|(place, name)| match cells.get(schema.column_index(name)?)? {
            Cell::Unchanged => kept.as_ref()?.get(place).copied(),
            Cell::Absent => None,
            cell => Some(*cell),
        })
        .collect()
}
