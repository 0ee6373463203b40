//! `apply = "parallel"`: several connections, each with the keys whose hash is its own.
//!
//! The order holds per key, not across keys. Each worker commits its share with a position of its own; when all of them
//! have, the migration's position moves. After a crash a worker that was ahead leaves out what it has already.
//!
//! What the server refuses in a worker's share is tried again on the migration's own connection, in source order, once
//! everything earlier is in; only what fails there too is a row's own fault. What cannot be split goes there at once:
//! changes of keys, rows without keys, emptied tables, and everything while keys are held.

use super::{
    OnError, PostgresSink,
    apply::{Parts, Run, Writer},
    fold::Unit,
    held::Held,
    link::{Link, Param, Trouble},
    own, store,
    table::{self, Composite, Table},
};
use bytes::Bytes;
use crossfade_connector::{Applied, Delivery, Failure, Guard, Progress, Stage, Target};
use crossfade_event::{Identity, Partition, Sequence, TableId, Version};
use futures::future::try_join_all;
use std::collections::HashMap;

/// Fewer changes are not worth several commits.
const SPLIT_FROM: usize = 512;

/// A connection of its own, and what it has.
pub(super) struct Worker {
    number: i32,
    link: Link,
    tables: Vec<Table>,
    done: Option<Progress>,
}

/// Rows of a backfill for one table.
type Blocks = (usize, u64, Vec<(Version, Bytes)>);

/// What one worker is given.
#[derive(Default)]
struct Share {
    units: Vec<Unit>,
    rows: Vec<Blocks>,
}

/// What a worker could not write, and how much it wrote.
#[derive(Default)]
struct Outcome {
    applied: u64,
    left: Share,
}

impl PostgresSink {
    /// Connects the workers, or gives those that are there the tables as they are now.
    pub(super) async fn gather_crew(&mut self, target: &Target, count: u32) -> Result<(), Failure> {
        let migration = self.config.migration.clone();
        if self.crew.len() != count as usize || self.crew.iter().any(|worker| worker.link.session.is_closed()) {
            self.crew.clear();
            let count = count.max(1);
            let mut same = false;
            for number in 1..=count.cast_signed() {
                let mut link = self.connect().await?;
                if number == 1 {
                    same = was_of(&mut link, &migration, count).await?;
                }
                own::mark_by_message(&mut link, &migration, target);
                store::fence(&mut link, &migration, number, target.epoch).await?;
                let done = if same { store::progress(&mut link, &migration, number).await? } else { None };
                self.crew.push(Worker { number, link, tables: Vec::new(), done });
            }
        }
        for worker in &mut self.crew {
            worker.tables = self.tables.clone();
            for table in &mut worker.tables {
                table.row_type = Composite::default();
                table.key_type = Composite::default();
            }
            worker.link.forget();
            table::make_types(&mut worker.link, &mut worker.tables).await?;
        }
        self.crew_is_stale = false;
        Ok(())
    }

    /// Applies a delivery with all workers, or on `link` alone where it cannot be split.
    pub(super) async fn apply_split(
        &mut self,
        link: &mut Link,
        delivery: Delivery,
        position: Option<super::link::Bind>,
        workers: u32,
        target: &Target,
    ) -> Result<Applied, Failure> {
        // Only the migration's own connection may write while its transaction is open, or keys are held; and only it sees
        // the types and the shape that an open transaction has made.
        let alone = link.open || !self.held.is_empty();
        if !alone && (self.crew_is_stale || self.crew.is_empty()) {
            self.gather_crew(target, workers).await?;
        }
        let on_error = self.config.on_error;
        let Delivery { writes, upto, commits } = delivery;
        let mut writer = Writer::new(self.parts(link, target.epoch), on_error, Guard::Forward);
        writer.calm_down();
        writer.loading = upto.stage == Stage::Loading;
        let runs = writer.runs(writes)?;
        let shares = if alone { Err(runs) } else { split(runs, writer.tables, workers as usize) };
        let shares = match shares {
            Err(runs) => return Box::pin(writer.work(runs, commits, position)).await,
            Ok(shares) => shares,
        };
        drop(writer);
        let moved = (commits && upto.stage == Stage::Streaming).then_some(&upto);
        let mut crew = std::mem::take(&mut self.crew);
        for worker in &mut crew {
            for (theirs, ours) in worker.tables.iter_mut().zip(&self.tables) {
                (theirs.bulk, theirs.cautious) = (ours.bulk, ours.cautious);
                if theirs.arbiter != ours.arbiter {
                    theirs.arbiter = ours.arbiter;
                    theirs.write_sql();
                }
            }
        }
        let (migration, index, epoch) = (self.config.migration.as_str(), &self.index, target.epoch);
        let work = crew
            .iter_mut()
            .zip(shares)
            .map(|(worker, share)| Box::pin(worker.work(share, moved, migration, index, epoch)));
        let outcomes = try_join_all(work).await?;
        for (index, ours) in self.tables.iter_mut().enumerate() {
            let theirs = crew.iter().filter_map(|worker| worker.tables.get(index)).map(|table| table.cautious);
            ours.cautious = ours.cautious.max(theirs.max().unwrap_or(0));
        }
        self.crew = crew;
        let (mut runs, mut units, mut applied) = (Vec::new(), Vec::new(), 0);
        for outcome in outcomes {
            applied += outcome.applied;
            units.extend(outcome.left.units);
            let rows = outcome.left.rows.into_iter();
            runs.extend(rows.map(|(table, count, blocks)| Run::Rows { table, count, blocks }));
        }
        units.sort_by_key(|unit| unit.at);
        if !units.is_empty() {
            runs.push(Run::Changes(units));
        }
        let writer = Writer::new(self.parts(link, target.epoch), on_error, Guard::Forward);
        let mut rest = Box::pin(writer.work(runs, commits, position)).await?;
        rest.applied += applied;
        Ok(rest)
    }
}

/// True if the last run had as many workers; otherwise their positions speak of other keys, and are forgotten.
async fn was_of(link: &mut Link, migration: &str, count: u32) -> Result<bool, Failure> {
    let doing = "reading the workers' positions";
    let sql = "SELECT count(*) FROM crossfade.positions WHERE migration = $1 AND worker > 0";
    let rows = link.query(doing, sql, &[&migration]).await?;
    let known: i64 = rows.first().map_or(0, |row| row.get(0));
    if known == i64::from(count) {
        return Ok(true);
    }
    let sql = "DELETE FROM crossfade.positions WHERE migration = $1 AND worker > 0";
    link.run(doing, sql, vec![Param::text(migration)]).await?;
    Ok(false)
}

/// Deals writes out by key; gives them back where they cannot be dealt.
fn split(runs: Vec<Run>, tables: &[Table], workers: usize) -> Result<Vec<Share>, Vec<Run>> {
    let by_key = |table: usize| tables.get(table).is_some_and(|table| table.target.schema.identity == Identity::Key);
    let stays = |unit: &Unit| {
        let Some(table) = tables.get(unit.table) else { return false };
        by_key(unit.table) && unit.change.replaced_key(&table.target.schema).is_none()
    };
    let fits = |run: &Run| match run {
        Run::Changes(units) => units.iter().all(stays),
        Run::Rows { table, .. } => by_key(*table),
        Run::Truncate { .. } | Run::Reject(_) => false,
    };
    let size = |run: &Run| match run {
        Run::Changes(units) => units.len(),
        Run::Rows { count, .. } => *count as usize,
        Run::Truncate { .. } | Run::Reject(_) => 0,
    };
    if runs.iter().map(size).sum::<usize>() < SPLIT_FROM || !runs.iter().all(fits) {
        return Err(runs);
    }
    let mut shares: Vec<Share> = Vec::new();
    shares.resize_with(workers.max(1), Share::default);
    let count = shares.len();
    for run in runs {
        match run {
            Run::Changes(units) => {
                for unit in units {
                    let hash = tables
                        .get(unit.table)
                        .and_then(|table| unit.change.key(&table.target.schema))
                        .map_or(0, |key| key.hash64());
                    if let Some(share) = shares.get_mut((hash % count as u64) as usize) {
                        share.units.push(unit);
                    }
                }
            }
            Run::Rows { table, blocks, .. } => {
                for (number, (at, block)) in blocks.into_iter().enumerate() {
                    let rows = crossfade_event::Rows::new(block.clone()).count() as u64;
                    if let Some(share) = shares.get_mut(number % count) {
                        match share.rows.last_mut() {
                            Some((same, total, blocks)) if *same == table => {
                                *total += rows;
                                blocks.push((at, block));
                            }
                            _ => share.rows.push((table, rows, vec![(at, block)])),
                        }
                    }
                }
            }
            Run::Truncate { .. } | Run::Reject(_) => {}
        }
    }
    Ok(shares)
}

impl Worker {
    /// Writes a share and commits it. What the server refuses comes back.
    async fn work(
        &mut self,
        mut share: Share,
        moved: Option<&Progress>,
        migration: &str,
        index: &HashMap<TableId, usize>,
        epoch: u64,
    ) -> Result<Outcome, Failure> {
        if let Some(done) = &self.done {
            // A position without a number was written when the offsets of a log's one partition were the numbers.
            let single = || (done.cut.0.len() == 1).then(|| Sequence(done.cut.next(Partition(0)).0));
            if let Some(upto) = done.sequence.or_else(single)
                && done.stage == Stage::Streaming
            {
                share.units.retain(|unit| unit.at.sequence >= upto);
            }
        }
        let (mut held, mut shapes, mut outcome) = (Held::default(), HashMap::new(), Outcome::default());
        let parts = Parts {
            link: &mut self.link,
            tables: &mut self.tables,
            index,
            held: &mut held,
            shapes: &mut shapes,
            migration,
            epoch,
        };
        let mut writer = Writer::new(parts, OnError::Quarantine, Guard::Forward);
        for (table, count, blocks) in share.rows {
            match writer.copy_rows(table, count, &blocks, None).await {
                Ok(true) => {}
                Err(Trouble::Failure(failure)) => return Err(failure),
                Ok(false) | Err(_) => outcome.left.rows.push((table, count, blocks)),
            }
        }
        if !share.units.is_empty() {
            match writer.attempt(&share.units, None).await {
                Ok(_) => {}
                Err(Trouble::Failure(failure)) => return Err(failure),
                Err(_) => outcome.left.units = share.units,
            }
        }
        outcome.applied = writer.applied();
        if let Some(upto) = moved.filter(|_| outcome.left.units.is_empty() && outcome.left.rows.is_empty()) {
            let (sql, params) = store::position(migration, self.number, epoch, upto, Some("[]"))?;
            if self.link.run("writing a worker's position", sql, params).await? == 0 {
                return Err(store::fenced(epoch));
            }
            self.done = Some(upto.clone());
        }
        if self.link.open {
            self.link.execute("committing", "COMMIT").await?;
            self.link.open = false;
        }
        Ok(outcome)
    }
}
