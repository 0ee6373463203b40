//! A delivery, from its writes to its commit.
//!
//! A delivery is cut into *runs*: changes that may be folded together, rows of a backfill, an emptied table. A run is
//! tried as sets. If the server refuses the data, the attempt is rolled back, first tried again with upserts (some
//! keys were there already, as they may be just after a backfill), then halved, and halved again, always in source
//! order, until the change that is at fault stands alone: that one goes to quarantine, everything else goes in. A value
//! that another row still has may be free once the rest of the run is in ([`super::exchange`]). All of it, with the
//! position, is one transaction.

use super::{
    fold::{Unit, is_whole, merged},
    held::Held,
    link::{Bind, Link},
    refuse::Record,
    store,
    table::Table,
    write::Tail,
};
use crate::client::failure;
use bytes::Bytes;
use crossfade_connector::{Applied, Delivery, Failure, Guard, Rejection, Stage, Write, WriteMode};
use crossfade_event::{Change, Identity, Op, Sequence, TableId, Version};
use std::collections::{HashMap, HashSet};

/// What is done about a change that cannot be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnError {
    /// It goes to quarantine, its key and its children wait behind it, everything else goes on.
    #[default]
    Quarantine,
    /// The migration stops.
    Stop,
}

/// What may be folded together, or not.
pub(super) enum Run {
    Changes(Vec<Unit>),
    Rows { table: usize, count: u64, blocks: Vec<(Version, Bytes)> },
    Truncate { at: Version, tables: Vec<usize> },
    Reject(Rejection),
}

/// Applies one delivery on one session.
pub(super) struct Writer<'a> {
    pub(super) link: &'a mut Link,
    pub(super) tables: &'a mut [Table],
    pub(super) index: &'a HashMap<TableId, usize>,
    pub(super) held: &'a mut Held,
    pub(super) shapes: &'a mut HashMap<usize, i64>,
    pub(super) migration: &'a str,
    pub(super) epoch: u64,
    pub(super) on_error: OnError,
    pub(super) guard: Guard,
    /// A backfill's rows are being applied.
    pub(super) loading: bool,
    pub(super) applied: Applied,
    pub(super) records: Vec<Record>,
    /// Rows whose own place in the mapping table was refused, just before them.
    pub(super) collided: HashSet<(Sequence, u32)>,
}

/// What a sink lends to a writer.
pub(super) struct Parts<'a> {
    pub(super) link: &'a mut Link,
    pub(super) tables: &'a mut [Table],
    pub(super) index: &'a HashMap<TableId, usize>,
    pub(super) held: &'a mut Held,
    pub(super) shapes: &'a mut HashMap<usize, i64>,
    pub(super) migration: &'a str,
    pub(super) epoch: u64,
}

impl<'a> Writer<'a> {
    pub(super) fn new(parts: Parts<'a>, on_error: OnError, guard: Guard) -> Self {
        let Parts { link, tables, index, held, shapes, migration, epoch } = parts;
        Self {
            link,
            tables,
            index,
            held,
            shapes,
            migration,
            epoch,
            on_error,
            guard,
            loading: false,
            applied: Applied::default(),
            records: Vec::new(),
            collided: HashSet::new(),
        }
    }

    /// How many changes are in.
    pub(super) fn applied(&self) -> u64 {
        self.applied.applied
    }

    /// Applies it all. `position` moves the sink's place; it is given for deliveries that commit.
    pub(super) async fn deliver(mut self, delivery: Delivery, position: Option<Bind>) -> Result<Applied, Failure> {
        let commits = delivery.commits;
        self.loading = delivery.upto.stage == Stage::Loading;
        let runs = self.runs(delivery.writes)?;
        self.calm_down();
        self.work(runs, commits, position).await
    }

    /// Each delivery without a conflict brings a table nearer to plain inserts again.
    pub(super) fn calm_down(&mut self) {
        for table in self.tables.iter_mut() {
            table.cautious = table.cautious.saturating_sub(1);
        }
    }

    /// Writes runs, records what was refused, moves the position and commits.
    pub(super) async fn work(
        mut self,
        runs: Vec<Run>,
        commits: bool,
        position: Option<Bind>,
    ) -> Result<Applied, Failure> {
        #[cfg(defect = "position-outside-transaction")]
        let (later, position) = (position, None::<Bind>);
        let mut written = false;
        let last = runs.len().saturating_sub(1);
        for (number, run) in runs.into_iter().enumerate() {
            let is_last = number == last && self.records.is_empty();
            let tail = position.as_ref().filter(|_| is_last).map(|position| Tail { position, commits });
            match run {
                Run::Changes(units) => written = self.changes(&units, tail).await?,
                Run::Rows { table, count, blocks } => written = self.rows(table, count, &blocks, tail).await?,
                Run::Truncate { at, tables } => self.truncate(at, &tables).await?,
                Run::Reject(rejection) => self.refused(rejection)?,
            }
        }
        self.file_records().await?;
        match position {
            Some(bind) if !written => self.position(bind).await?,
            _ => {}
        }
        if commits && self.link.open && !self.link.held {
            self.link.execute("committing", "COMMIT").await?;
            self.link.open = false;
        }
        #[cfg(defect = "position-outside-transaction")]
        if let Some(bind) = later {
            self.position(bind).await?;
        }
        Ok(self.applied)
    }

    async fn position(&mut self, bind: Bind) -> Result<(), Failure> {
        let counts = self
            .link
            .pipeline(None, std::slice::from_ref(&bind))
            .await
            .map_err(|(_, error)| failure("writing the position", error))?;
        if counts.first() == Some(&0) {
            return Err(store::fenced(self.epoch));
        }
        Ok(())
    }

    pub(super) fn table_index(&self, table: TableId) -> Result<usize, Failure> {
        self.index.get(&table).copied().ok_or_else(|| {
            let told = format!("table {} is not among the prepared ones", table.0);
            Failure::halt("applying changes", told, "Report this: a table must be prepared before its rows come")
        })
    }

    /// Cuts a delivery into runs.
    pub(super) fn runs(&self, writes: Vec<Write>) -> Result<Vec<Run>, Failure> {
        let mut runs: Vec<Run> = Vec::new();
        let mut writes = writes.into_iter();
        while let Some(write) = writes.next() {
            match write {
                Write::Began { .. } | Write::Boundary => {}
                Write::Change { at, change } => {
                    let table = self.table_index(change.table)?;
                    self.check(table, &change)?;
                    let change = completed(change);
                    if let Some(reason) = self.tables.get(table).and_then(|table| incomplete(table, &change)) {
                        let (table, reason) = (change.table, reason.to_owned());
                        runs.push(Run::Reject(Rejection { at, table, key: None, change, reason }));
                        continue;
                    }
                    let unit = Unit { at, table, change };
                    match runs.last_mut() {
                        Some(Run::Changes(units)) => units.push(unit),
                        _ => {
                            // Most deliveries are one run.
                            let mut units = Vec::with_capacity(writes.len() + 1);
                            units.push(unit);
                            runs.push(Run::Changes(units));
                        }
                    }
                }
                Write::Rows { table, at, count, rows } => {
                    let table = self.table_index(table)?;
                    match runs.last_mut() {
                        Some(Run::Rows { table: same, count: total, blocks }) if *same == table => {
                            blocks.push((at, rows));
                            *total += u64::from(count);
                        }
                        _ => runs.push(Run::Rows { table, count: u64::from(count), blocks: vec![(at, rows)] }),
                    }
                }
                Write::Truncate { at, tables } => {
                    let tables = tables.into_iter().map(|table| self.table_index(table)).collect::<Result<_, _>>()?;
                    runs.push(Run::Truncate { at, tables });
                }
                Write::Reject(rejection) => runs.push(Run::Reject(rejection)),
            }
        }
        Ok(runs)
    }

    /// A change must have the shape that was prepared.
    pub(super) fn check(&self, table: usize, change: &Change) -> Result<(), Failure> {
        let Some(table) = self.tables.get(table) else { return Ok(()) };
        let width = table.columns.len();
        if change.old.iter().chain(&change.new).any(|row| row.len() != width) {
            let told = format!("a row for {} does not have {width} columns", table.target.schema.name);
            return Err(Failure::halt("applying changes", told, "Report this: the table must be altered first"));
        }
        if self.guard == Guard::Heal && table.target.schema.identity != Identity::Key {
            return Err(Failure::refused(
                "healing the target",
                format!("{} has no key, so its changes cannot be applied a second time", table.target.schema.name),
                "Leave the table out of the replay, or copy it again",
            ));
        }
        Ok(())
    }
}

/// The change with what its old image knows of the new one's unchanged cells, the key's above all.
fn completed(mut change: Change) -> Change {
    if let (Some(old), Some(new)) = (&change.old, &change.new)
        && !is_whole(new)
    {
        change.new = Some(merged(new, old));
    }
    change
}

/// Why a change cannot be written whatever the target holds; never left out in silence.
fn incomplete(table: &Table, change: &Change) -> Option<&'static str> {
    let schema = &table.target.schema;
    match (change.op, &change.new) {
        (Op::Insert, Some(new)) if !is_whole(new) => Some("the new row's image is not whole"),
        (Op::Update, Some(new)) if table.target.mode == WriteMode::InsertOnce && !is_whole(new) => {
            Some("the new row's image is not whole")
        }
        (Op::Insert | Op::Update, None) => Some("the change carries no new image"),
        (Op::Delete, _) if change.old.is_none() => Some("the change does not say which row it deletes"),
        _ if schema.identity == Identity::Key && change.key(schema).is_none() => {
            Some("the change does not carry its row's key")
        }
        _ => None,
    }
}
