//! One partition of a stream that is shared: a session of its own, whose commits count while the partition's row has the
//! number under which it was taken (see [`super::shares`]).

use super::{
    OnError, PostgresSink, SinkConfig,
    apply::{Parts, Run, Writer},
    fold::Unit,
    held::Held,
    link::{Link, Param, Trouble},
    shares::{self, worker_of},
    store,
    table::{self, Table},
    write,
};
use crate::client::failure;
use crossfade_connector::{Delivery, Failure, Guard, Owner, PartSink, Progress, Taken, Target, Verdict, Written};
use crossfade_event::TableId;
use std::collections::HashMap;

/// A partition as one who may have taken it over sees it.
pub struct PostgresPart {
    sink: PostgresSink,
    partition: u32,
    /// Under which it was taken last.
    number: u64,
    link: Option<Link>,
    tables: Vec<Table>,
    index: HashMap<TableId, usize>,
}

impl std::fmt::Debug for PostgresPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresPart").field("partition", &self.partition).finish_non_exhaustive()
    }
}

impl PostgresPart {
    /// A partition; connects when it is first used.
    pub fn new(config: SinkConfig, partition: u32) -> Self {
        Self {
            sink: PostgresSink::new(config),
            partition,
            number: 0,
            link: None,
            tables: Vec::new(),
            index: HashMap::new(),
        }
    }

    fn migration(&self) -> &str {
        &self.sink.config.migration
    }

    /// The session with nothing open in it; taken out, so that whoever fails takes it along.
    async fn idle_link(&mut self) -> Result<Link, Failure> {
        let mut link = match self.link.take() {
            Some(link) if !link.session.is_closed() => link,
            _ => {
                self.tables.clear();
                self.index.clear();
                shares::connect(&self.sink, self.partition).await?
            }
        };
        roll_back(&mut link).await?;
        Ok(link)
    }

    async fn take_on(&self, link: &mut Link, number: u64) -> Result<Taken, Failure> {
        let doing = "taking a partition over";
        link.execute(doing, "BEGIN").await?;
        link.open = true;
        let sql = "SELECT stage FROM crossfade.positions WHERE migration = $1 AND worker = 0 FOR SHARE";
        let rows = link.query(doing, sql, &[&self.migration()]).await?;
        if rows.first().and_then(|row| row.get::<_, Option<&str>>(0)) != Some("shared") {
            roll_back(link).await?;
            return Ok(Taken::NotShared);
        }
        let sql = "UPDATE crossfade.positions SET epoch = $3, stage = 'streaming' \
                   WHERE migration = $1 AND worker = $2 AND epoch < $3 RETURNING progress, schemas";
        let (worker, number) = (worker_of(self.partition), number.cast_signed());
        let rows = link.query(doing, sql, &[&self.migration(), &worker, &number]).await?;
        let Some(row) = rows.first() else {
            roll_back(link).await?;
            return Ok(Taken::Superseded);
        };
        let place = store::parsed(row.get(0), row.get(1))?;
        link.execute(doing, "COMMIT").await?;
        link.open = false;
        let missing = || {
            let told = format!("the row of partition {} in crossfade.positions is empty", self.partition);
            Failure::lost(doing, told, "Wipe the target and begin again: `crossfade rollback --wipe`")
        };
        place.map(Taken::Ours).ok_or_else(missing)
    }

    async fn write_on(&mut self, link: &mut Link, delivery: Delivery) -> Result<Written, Failure> {
        let Delivery { writes, upto, commits } = delivery;
        let (mut held, mut shapes) = (Held::default(), HashMap::new());
        let parts = Parts {
            link: &mut *link,
            tables: &mut self.tables,
            index: &self.index,
            held: &mut held,
            shapes: &mut shapes,
            migration: &self.sink.config.migration,
            epoch: self.number,
        };
        let mut writer = Writer::new(parts, OnError::Quarantine, Guard::Forward);
        writer.calm_down();
        for run in writer.runs(writes)? {
            let units = match run {
                Run::Changes(units) => units,
                Run::Reject(_) => return Ok(Written::NotAlone("a change is one for the quarantine".to_owned())),
                Run::Rows { .. } | Run::Truncate { .. } => {
                    return Ok(Written::NotAlone("it concerns a whole table".to_owned()));
                }
            };
            for range in ranges(&units, writer.tables, writer.link.replica) {
                match writer.attempt(range, None).await {
                    Ok(_) => {}
                    Err(Trouble::Failure(failure)) => return Err(failure),
                    Err(trouble) => return Ok(Written::NotAlone(trouble.reason())),
                }
            }
        }
        let applied = writer.applied();
        drop(writer);
        if commits && !self.place(link, &upto).await? {
            return Ok(Written::NotOurs);
        }
        Ok(Written::In(applied))
    }

    /// Moves the partition's place, and commits. False where it is somebody else's by now.
    async fn place(&self, link: &mut Link, upto: &Progress) -> Result<bool, Failure> {
        let worker = worker_of(self.partition);
        let (sql, params) = store::position(self.migration(), worker, self.number, upto, None)?;
        let bind = link.bind(sql, params).await?;
        let doing = "writing the place of a partition";
        let counts = link.pipeline(None, std::slice::from_ref(&bind)).await;
        if counts.map_err(|(_, error)| failure(doing, error))?.first() == Some(&0) {
            return Ok(false);
        }
        if link.open {
            link.execute("committing", "COMMIT").await?;
            link.open = false;
        }
        Ok(true)
    }
}

/// Changes that may be tried together; what moves a row stands alone.
fn ranges<'u>(units: &'u [Unit], tables: &[Table], replica: bool) -> Vec<&'u [Unit]> {
    let mut ranges = Vec::new();
    let mut rest = units;
    while let Some(at) = rest.iter().position(|unit| write::needs_move(tables, unit, replica)) {
        let (before, from) = rest.split_at(at);
        let (alone, behind) = from.split_at(1);
        ranges.extend([before, alone]);
        rest = behind;
    }
    ranges.push(rest);
    ranges.retain(|range| !range.is_empty());
    ranges
}

async fn roll_back(link: &mut Link) -> Result<(), Failure> {
    if std::mem::take(&mut link.open) {
        link.execute("rolling back what was left open", "ROLLBACK").await?;
    }
    Ok(())
}

impl PartSink for PostgresPart {
    async fn is_shared(&mut self) -> Result<bool, Failure> {
        let mut link = self.idle_link().await?;
        let shared = store::exists(&mut link).await? && {
            let sql = "SELECT stage FROM crossfade.positions WHERE migration = $1 AND worker = 0";
            let rows = link.query("asking whether the stream is shared", sql, &[&self.migration()]).await?;
            rows.first().and_then(|row| row.get::<_, Option<&str>>(0)) == Some("shared")
        };
        self.link = Some(link);
        Ok(shared)
    }

    async fn take(&mut self, number: u64) -> Result<Taken, Failure> {
        let mut link = self.idle_link().await?;
        let taken = match self.take_on(&mut link, number).await {
            // Whoever had it stands still between writing its place and the commit.
            Err(Failure { verdict: Verdict::Retry { .. }, .. }) if !link.session.is_closed() => {
                roll_back(&mut link).await?;
                shares::end_sessions(&mut link, self.migration(), Some(self.partition)).await?;
                self.take_on(&mut link, number).await?
            }
            taken => taken?,
        };
        if let Taken::Ours(_) = &taken {
            self.number = number;
            shares::end_sessions(&mut link, self.migration(), Some(self.partition)).await?;
        }
        self.link = Some(link);
        Ok(taken)
    }

    async fn prepare(&mut self, target: &Target) -> Result<(), Failure> {
        let mut link = self.idle_link().await?;
        link.forget();
        let mut tables = Vec::with_capacity(target.tables.len());
        for wanted in &target.tables {
            tables.push(Table::resolve(&mut link, wanted, true, false).await?);
        }
        table::make_types(&mut link, &mut tables).await?;
        table::link_parents(&mut tables);
        shares::mark(&mut link, self.migration(), target);
        self.index = tables.iter().enumerate().map(|(index, table)| (table.id(), index)).collect();
        self.tables = tables;
        self.link = Some(link);
        Ok(())
    }

    async fn write(&mut self, delivery: Delivery) -> Result<Written, Failure> {
        let doing = "writing a partition";
        let mut link = match self.link.take() {
            Some(link) if !link.session.is_closed() && !self.tables.is_empty() => link,
            _ => return Err(Failure::reconnect(doing, "the session was lost")),
        };
        let written = self.write_on(&mut link, delivery).await?;
        if !matches!(written, Written::In(_)) {
            roll_back(&mut link).await?;
        }
        self.link = Some(link);
        Ok(written)
    }

    async fn ask(&mut self) -> Result<(), Failure> {
        let mut link = self.idle_link().await?;
        let sql = "UPDATE crossfade.positions SET stage = 'asks' WHERE migration = $1 AND worker = $2 AND epoch = $3";
        let params = vec![
            Param::text(self.migration()),
            Param::i32(worker_of(self.partition)),
            Param::i64(self.number.cast_signed()),
        ];
        link.run("asking for the lead", sql, params).await?;
        self.link = Some(link);
        Ok(())
    }

    async fn owner(&mut self, number: u64) -> Result<Owner, Failure> {
        let mut link = self.idle_link().await?;
        let sql = "SELECT epoch, stage FROM crossfade.positions WHERE migration = $1 AND worker = $2";
        let worker = worker_of(self.partition);
        let doing = "asking whose a partition is";
        let owner = match store::exists(&mut link).await? {
            false => Owner::Lead,
            true => match link.query(doing, sql, &[&self.migration(), &worker]).await?.first() {
                Some(row) if row.get::<_, i64>(0) == number.cast_signed() => Owner::Us,
                Some(row) if row.get::<_, Option<&str>>(1) != Some("back") => Owner::Another,
                _ => Owner::Lead,
            },
        };
        self.link = Some(link);
        Ok(owner)
    }
}
