//! From entries to what a sink is handed: transforms run here, and counts are kept.

use crate::{
    PipelineError,
    made::Taken,
    route::{Follow, Routes},
    views::{LookupViews, inserted},
};
use bytes::{Bytes, BytesMut};
use crossfade_connector::{Rejection, Write};
use crossfade_event::{
    Change, Cut, Event, Identity, Offset, Op, Position, RowBlock, Sequence, TableId, TableSchema, Transaction, Version,
    Visibility,
};
use crossfade_log::{Entry, EventLog};
use crossfade_transform::Output;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// Counts of what was gathered since the last hand-over.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    /// Source changes and rows: what must be conserved.
    pub(crate) read: u64,
    /// Those of them of which nothing goes to the sink.
    pub(crate) filtered: u64,
    /// Lookups that found no row.
    pub(crate) misses: u64,
    /// Those that workers had transformed already.
    pub(crate) made: u64,
    pub(crate) tables: BTreeMap<TableId, u64>,
    pub(crate) commit_time_us: Option<i64>,
}

/// Gathers writes for one sink.
pub(crate) struct Gather<L> {
    log: L,
    pub(crate) routes: Routes,
    pub(crate) views: LookupViews,
    pub(crate) visible: BTreeMap<TableId, Visibility>,
    writes: Vec<Write>,
    /// Rows of a backfill that were transformed, by target table, with the version of the first.
    rows: HashMap<TableId, (Version, u32, BytesMut)>,
    bytes: usize,
    tally: Tally,
    /// What the plan's own counters of lookups without a row said last.
    misses_seen: u64,
    transaction: Option<Transaction>,
    /// Whether the sink wants to be told of transactions as they begin.
    tells_transactions: bool,
    schemas: HashMap<TableId, Arc<TableSchema>>,
    outputs: Vec<Output>,
    /// Something but writes is to be recorded: a position, a followed schema.
    touched: bool,
}

/// What an entry means for the loop, beyond its writes.
pub(crate) enum Meaning {
    /// Nothing: go on.
    More,
    /// A source transaction ended, or the stream moved without one: the sink may stand here.
    Boundary(Position),
    /// The target must change before the next entry.
    Follow(Box<Follow>),
    /// A backfill begins.
    BackfillBegan { generation: u32, tables: Vec<TableId> },
    /// A backfill is wholly in the log.
    BackfillEnded { generation: u32 },
}

impl<L: EventLog> Gather<L> {
    pub(crate) fn new(log: L, routes: Routes, visible: BTreeMap<TableId, Visibility>) -> Self {
        let views = LookupViews::of(routes.plan(), routes.dialect(), routes.scratch());
        let misses_seen = misses(&routes);
        Self {
            log,
            routes,
            views,
            visible,
            writes: Vec::new(),
            rows: HashMap::new(),
            bytes: 0,
            tally: Tally::default(),
            misses_seen,
            transaction: None,
            tells_transactions: false,
            schemas: HashMap::new(),
            outputs: Vec::new(),
            touched: false,
        }
    }

    /// Tells the sink of transactions as they begin.
    pub(crate) fn telling_transactions(self, tells_transactions: bool) -> Self {
        Self { tells_transactions, ..self }
    }

    /// About how many bytes wait to be handed over.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.rows.is_empty() && self.tally.read == 0 && !self.touched
    }

    /// The sink has something to record, even if nothing is written.
    pub(crate) fn touch(&mut self) {
        self.touched = true;
    }

    /// Hands over what was gathered.
    pub(crate) fn take(&mut self) -> (Vec<Write>, Tally) {
        self.count_misses();
        let mut blocks: Vec<_> = std::mem::take(&mut self.rows).into_iter().collect();
        blocks.sort_by_key(|(_, (at, _, _))| *at);
        for (table, (at, count, rows)) in blocks {
            self.writes.push(Write::Rows { table, at, count, rows: rows.freeze() });
        }
        self.bytes = 0;
        self.touched = false;
        // The next hand-over will be about as large, and a little more: growing would move all of it.
        let room = Vec::with_capacity(self.writes.len() + self.writes.len() / 8);
        (std::mem::replace(&mut self.writes, room), std::mem::take(&mut self.tally))
    }

    fn count_misses(&mut self) {
        let now = misses(&self.routes);
        self.tally.misses += now.saturating_sub(self.misses_seen);
        self.misses_seen = now;
    }

    /// Takes one entry of the stream in.
    pub(crate) fn stream(&mut self, entry: &Entry) -> Result<Meaning, PipelineError> {
        match &entry.event {
            Event::Changed(change) => self.changed(entry.sequence, change.clone(), None)?,
            Event::Began(transaction) => {
                self.transaction = Some(*transaction);
                self.tally.commit_time_us = Some(transaction.commit_time_us);
                if self.tells_transactions {
                    self.writes.push(Write::Began { position: entry.position, transaction: *transaction });
                }
            }
            Event::Committed => {
                self.transaction = None;
                if self.writes.last().is_some_and(|last| !matches!(last, Write::Boundary)) {
                    self.writes.push(Write::Boundary);
                }
                return Ok(Meaning::Boundary(entry.position));
            }
            Event::Resolved | Event::Marked(_) if self.transaction.is_none() => {
                return Ok(Meaning::Boundary(entry.position));
            }
            Event::Truncated(truncate) => self.truncated(entry, &truncate.tables)?,
            _ => return self.either(entry),
        }
        Ok(Meaning::More)
    }

    /// Takes one entry of a backfill in.
    pub(crate) fn snapshot(&mut self, entry: &Entry, made: Option<Bytes>) -> Result<Meaning, PipelineError> {
        match &entry.event {
            Event::Rows(block) => self.block(entry, block, made)?,
            Event::SnapshotBegan { table, .. } => {
                // Without a key a second copy cannot be told from the first: begin with an empty table each time.
                // What lookups read of it was filled with the whole backfill's rows before the first of them came here.
                let schema = self.latest(*table)?;
                if schema.identity != Identity::Key {
                    self.empty_targets(entry, &[*table])?;
                }
            }
            Event::SnapshotEnded { table, visible: Some(visible) } => {
                self.visible.insert(*table, visible.clone());
            }
            _ => return self.either(entry),
        }
        Ok(Meaning::More)
    }

    fn either(&mut self, entry: &Entry) -> Result<Meaning, PipelineError> {
        Ok(match &entry.event {
            Event::SchemaSeen(schema) => {
                self.schemas.insert(schema.id, schema.clone());
                self.count_misses();
                let follow = self.routes.follow(schema)?;
                self.views.follow(schema)?;
                self.misses_seen = misses(&self.routes);
                match follow {
                    Some(follow) => {
                        self.views.check_plan(self.routes.plan())?;
                        Meaning::Follow(Box::new(follow))
                    }
                    None => Meaning::More,
                }
            }
            Event::BackfillBegan(backfill) => {
                Meaning::BackfillBegan { generation: backfill.generation, tables: backfill.tables.clone() }
            }
            Event::BackfillEnded { generation } => Meaning::BackfillEnded { generation: *generation },
            _ => Meaning::More,
        })
    }

    /// Empties what a backfill is about to fill again.
    pub(crate) fn truncated(&mut self, entry: &Entry, tables: &[TableId]) -> Result<(), PipelineError> {
        for table in tables {
            let schema = self.latest(*table)?;
            self.views.truncate(&schema)?;
        }
        self.empty_targets(entry, tables)
    }

    fn empty_targets(&mut self, entry: &Entry, tables: &[TableId]) -> Result<(), PipelineError> {
        let mut targets = Vec::new();
        for table in tables {
            let schema = self.latest(*table)?;
            targets.extend(self.routes.route(&schema)?.bound.truncate());
        }
        if !targets.is_empty() {
            // Rows gathered before it must stay before it.
            let (mut writes, tally) = self.take();
            writes.push(Write::Truncate { at: Version { sequence: entry.sequence, ordinal: 0 }, tables: targets });
            self.writes = writes;
            self.tally = tally;
        }
        Ok(())
    }

    /// Takes a change of the stream in, which stands at `sequence`, and what a worker has made of it.
    pub(crate) fn changed(
        &mut self,
        sequence: Sequence,
        change: Change,
        made: Option<Bytes>,
    ) -> Result<(), PipelineError> {
        let schema = self.schema(change.table, &change)?;
        *self.tally.tables.entry(change.table).or_default() += 1;
        let seen = self.transaction.is_some_and(|transaction| {
            self.visible.get(&change.table).is_some_and(|visible| visible.sees(transaction.xid))
        });
        if seen {
            self.views.observe(&schema, &change)?;
            self.tally.read += 1;
            self.tally.filtered += 1;
            return Ok(());
        }
        // A row that goes is still looked up by its own end (its new key's time, for one); a row that comes, by its own
        // beginning.
        let goes = change.old.is_some();
        if !goes {
            self.views.observe(&schema, &change)?;
        }
        let route = self.routes.route(&schema)?;
        if let Some(target) = route.passthrough() {
            if goes {
                self.views.observe(&schema, &change)?;
            }
            self.tally.read += 1;
            self.bytes += change.size_bytes();
            let change = Change { table: target, ..change };
            self.writes.push(Write::Change { at: Version { sequence, ordinal: 0 }, change });
            return Ok(());
        }
        self.tally.read += 1;
        match made.map_or(Ok(None), |made| Taken::of(made, self.routes.shapes(), 1))? {
            Some(mut taken) => {
                taken.row(&mut self.outputs)?;
                self.tally.made += 1;
            }
            None => {
                let laid_out = route.laid_out(&change);
                route.bound.apply(laid_out.as_ref().unwrap_or(&change), &self.views, &mut self.outputs);
                self.views.check()?;
            }
        }
        let mut outputs = std::mem::take(&mut self.outputs);
        self.tally.filtered += u64::from(nothing_goes(&outputs));
        if goes {
            self.views.observe(&schema, &change)?;
        }
        for (ordinal, output) in outputs.drain(..).enumerate() {
            self.output(Version { sequence, ordinal: ordinal as u32 }, output, false);
        }
        self.outputs = outputs;
        Ok(())
    }

    fn block(&mut self, entry: &Entry, block: &RowBlock, made: Option<Bytes>) -> Result<(), PipelineError> {
        let schema = self.log.schema(block.table, block.schema).ok_or_else(|| unknown(block.table))?;
        *self.tally.tables.entry(block.table).or_default() += u64::from(block.count);
        let route = self.routes.route(&schema)?;
        if let Some(target) = route.passthrough() {
            self.tally.read += u64::from(block.count);
            self.bytes += block.rows.len();
            let at = Version { sequence: entry.sequence, ordinal: 0 };
            let rows: Bytes = block.rows.clone();
            self.writes.push(Write::Rows { table: target, at, count: block.count, rows });
            return Ok(());
        }
        let mut ordinal = 0u32;
        let mut taken = made.map_or(Ok(None), |made| Taken::of(made, self.routes.shapes(), block.count))?;
        if taken.is_some() {
            self.tally.made += u64::from(block.count);
        }
        let mut outputs = std::mem::take(&mut self.outputs);
        for row in block.iter() {
            let row = row.map_err(|error| {
                PipelineError::Refused(format!("the rows at {} are damaged: {error}", entry.sequence))
            })?;
            match &mut taken {
                Some(taken) => taken.row(&mut outputs)?,
                None => {
                    let change = inserted(block.table, &schema, row);
                    let laid_out = route.laid_out(&change);
                    route.bound.apply(laid_out.as_ref().unwrap_or(&change), &self.views, &mut outputs);
                }
            }
            self.tally.read += 1;
            self.tally.filtered += u64::from(nothing_goes(&outputs));
            for output in outputs.drain(..) {
                self.output(Version { sequence: entry.sequence, ordinal }, output, true);
                ordinal += 1;
            }
        }
        self.outputs = outputs;
        self.views.check()
    }

    fn output(&mut self, at: Version, output: Output, loading: bool) {
        match output {
            Output::Filtered => {}
            Output::Rejected { table, key, change, reason } => {
                self.bytes += change.size_bytes();
                self.writes.push(Write::Reject(Rejection { at, table, key, change, reason }));
            }
            Output::Change(change) => {
                self.bytes += change.size_bytes();
                match (&change.new, change.op, loading) {
                    (Some(row), Op::Insert, true) => {
                        let (_, count, rows) =
                            self.rows.entry(change.table).or_insert_with(|| (at, 0, BytesMut::with_capacity(1 << 16)));
                        *count += 1;
                        rows.extend_from_slice(row.as_bytes());
                    }
                    _ => self.writes.push(Write::Change { at, change }),
                }
            }
        }
    }

    fn schema(&mut self, table: TableId, change: &Change) -> Result<Arc<TableSchema>, PipelineError> {
        if let Some(schema) = self.schemas.get(&table)
            && schema.version == change.schema
        {
            return Ok(schema.clone());
        }
        let schema = self.log.schema(table, change.schema).ok_or_else(|| unknown(table))?;
        self.schemas.insert(table, schema.clone());
        Ok(schema)
    }

    /// The newest schema that was met up to here; at a fresh start, the newest in the log.
    fn latest(&mut self, table: TableId) -> Result<Arc<TableSchema>, PipelineError> {
        if let Some(schema) = self.schemas.get(&table) {
            return Ok(schema.clone());
        }
        self.log.latest_schemas().into_iter().find(|schema| schema.id == table).ok_or_else(|| unknown(table))
    }
}

fn nothing_goes(outputs: &[Output]) -> bool {
    outputs.iter().all(|output| matches!(output, Output::Filtered))
}

fn misses(routes: &Routes) -> u64 {
    routes.plan().lookups().iter().map(crossfade_transform::LookupView::misses).sum()
}

fn unknown(table: TableId) -> PipelineError {
    PipelineError::Refused(format!(
        "the log has rows of table {} but not its schema: the log's schema file belongs to another log",
        table.0
    ))
}

/// The place after an entry, in a cut that has one place per partition.
pub(crate) fn past(cut: &mut Cut, entry: &Entry) {
    cut.set_next(entry.partition, Offset(entry.offset.0 + 1));
}
