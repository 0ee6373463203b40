//! Writing: tables made from a catalog, rows in sets, and in the same transaction how far we have come.
//!
//! ```text
//!  prepare ─ schemas, types, tables ─▶ Loading: COPY ─▶ finish_load: keys ─▶ Streaming: fold, sets ─▶ constraints
//!                                          └────────── position, rejections, undo records: same transaction ──────┘
//! ```
//!
//! The session commits asynchronously unless told otherwise: after a crash of the *server* its last few transactions may
//! be gone, and their position with them, so that they come again from the log. A commit that was lost with its position
//! is never noticed; this is what PostgreSQL's own apply worker does.
//!
//! Where the role may set it, `session_replication_role = replica` keeps the target's triggers and foreign keys from
//! firing on rows that are facts already; without the right everything works too, with the constraints in force.

mod alter;
mod apply;
mod attempt;
mod back;
mod collide;
mod contract;
pub(crate) mod ddl;
mod exchange;
mod finish;
mod fold;
mod held;
mod hold;
mod link;
mod load;
mod make;
mod mapping;
mod own;
mod parallel;
mod part;
mod quarantine;
mod record;
mod refuse;
mod retire;
mod rollback;
mod sets;
mod shares;
mod statements;
mod statistics;
mod store;
mod strip;
mod table;
mod undo;
mod write;

pub use apply::OnError;
pub use back::{Back, OldKey};
pub use part::PostgresPart;

use crate::{
    Config,
    client::{connect, quote_literal},
};
use apply::{Parts, Writer};
use crossfade_connector::{
    Applied, Delivery, Failure, Guard, LEADING, Progress, Stage, Target, TargetTable, Verdict, WriteMode,
};
use crossfade_event::{Cut, Key, TableId, TableName, TableSchema};
use held::Held;
use link::{Bind, Link};
use make::Found;
use serde::{Deserialize, Serialize};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use table::Table;
use tokio::time::Instant;

/// How often constraints that the rows of the moment do not allow are tried again.
const CONSTRAINT_PAUSE: Duration = Duration::from_secs(5);

/// Waits for locks are short, and repeated: whoever wants the table meanwhile queues behind us no longer than this.
const LOCK_TIMEOUT: &str = "SET lock_timeout = '5s'";

/// How changes are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Apply {
    /// One connection; readers of the target see only states that the source had.
    #[default]
    Transactional,
    /// Several connections, split by the key's hash; the order holds per key only.
    Parallel {
        /// How many.
        workers: u32,
    },
}

/// How a PostgreSQL target is written.
#[derive(Debug, Clone)]
pub struct SinkConfig {
    /// Where it is.
    pub connection: Config,
    /// The migration's name.
    pub migration: String,
    /// How changes are applied.
    pub apply: Apply,
    /// What is done about a change that cannot be applied.
    pub on_error: OnError,
    /// Whether each commit waits for the server's disk. Off by default, for the log is durable and the position stands
    /// in the same transaction as the rows.
    pub synchronous_commit: bool,
    /// The target is the side that another migration came from, and what is written there is taken back to it.
    pub back: Option<Back>,
}

impl SinkConfig {
    /// The usual: transactional, with a quarantine, asynchronous commits.
    pub fn new(connection: Config, migration: impl Into<String>) -> Self {
        Self {
            connection,
            migration: migration.into(),
            apply: Apply::Transactional,
            on_error: OnError::Quarantine,
            synchronous_commit: false,
            back: None,
        }
    }
}

/// A PostgreSQL database as a target.
pub struct PostgresSink {
    config: SinkConfig,
    link: Option<Link>,
    target: Option<Target>,
    tables: Vec<Table>,
    index: HashMap<TableId, usize>,
    held: Held,
    /// Numbers of the shapes that quarantined changes are written in, by table.
    shapes: HashMap<usize, i64>,
    /// Set while something is under way and after it failed: the position must be read before anything else.
    lost: bool,
    /// A part of a transaction is in, or a change of shape waits for it: only this session can end it.
    in_part: bool,
    /// Changes of shape, from and to, that go into the transaction of the rows after them. They are made when those come,
    /// for until its commit such a transaction keeps everybody else from the table.
    shaping: Vec<(TargetTable, TargetTable)>,
    standing: Option<Progress>,
    /// What was told of our place, until it is certain that no older session moves it any more.
    told: Option<Option<Progress>>,
    written_schemas: Option<Vec<(TableId, crossfade_event::SchemaVersion)>>,
    load_end: Cut,
    /// The connections of `apply = "parallel"`.
    crew: Vec<parallel::Worker>,
    /// The crew's tables are not as they are now.
    crew_is_stale: bool,
    /// When constraints are tried next, while some are missing.
    constraints_at: Option<Instant>,
    statistics: statistics::Statistics,
    /// Others may deliver as well: the lock is asked for, and not waited for.
    asks_for_lead: bool,
    /// When the lead last said that it looks after what is shared.
    noted_at: Option<Instant>,
}

impl std::fmt::Debug for PostgresSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresSink").field("migration", &self.config.migration).finish_non_exhaustive()
    }
}

impl PostgresSink {
    /// A sink; connects when it is first used.
    pub fn new(config: SinkConfig) -> Self {
        Self {
            config,
            link: None,
            target: None,
            tables: Vec::new(),
            index: HashMap::new(),
            held: Held::default(),
            shapes: HashMap::new(),
            lost: false,
            in_part: false,
            shaping: Vec::new(),
            standing: None,
            told: None,
            written_schemas: None,
            load_end: Cut::default(),
            crew: Vec::new(),
            crew_is_stale: true,
            constraints_at: None,
            statistics: statistics::Statistics::default(),
            asks_for_lead: false,
            noted_at: None,
        }
    }

    async fn connect(&self) -> Result<Link, Failure> {
        self.connect_as(&format!("crossfade sink {}", self.config.migration)).await
    }

    async fn connect_as(&self, name: &str) -> Result<Link, Failure> {
        let session = connect(&self.config.connection, name).await?;
        let mut link = Link::new(session, false);
        let doing = "setting up a session in the target";
        let synchronous = if self.config.synchronous_commit { "on" } else { "off" };
        let sql = format!(
            "SET synchronous_commit = {synchronous}; SET plan_cache_mode = force_generic_plan; SET jit = off; \
             SET work_mem = '64MB'; SET maintenance_work_mem = '256MB'; SET client_min_messages = warning; \
             SET default_transaction_isolation = 'read committed'; \
             SET check_function_bodies = off; SET default_tablespace = ''; \
             SET tcp_keepalives_idle = 20; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; \
             SET client_connection_check_interval = '2s'; {}",
            finish::PLAN_SETS
        );
        link.execute(doing, &sql).await?;
        if self.config.connection.lock_timeout().is_zero() {
            link.execute(doing, LOCK_TIMEOUT).await?;
        }
        // A fence of this migration is not meant for its own stream: it stands on the target after a failback.
        let pass = match &self.config.back {
            Some(back) => back::pass_sql(back),
            None => format!("SET crossfade.pass = {}", quote_literal(&self.config.migration).trim_start()),
        };
        link.execute(doing, &pass).await?;
        let sql = "SELECT pg_is_in_recovery(), has_parameter_privilege('session_replication_role', 'SET'), \
                   current_setting('server_encoding')";
        let rows = link.query(doing, sql, &[]).await?;
        let (standby, replica) = rows.first().map_or((false, false), |row| (row.get(0), row.get(1)));
        if standby {
            return Err(Failure::retry(doing, "the target is a standby and takes no writes until it is promoted"));
        }
        if rows.first().is_some_and(|row| row.get::<_, &str>(2) == "SQL_ASCII") {
            let told = "the target database has the encoding SQL_ASCII, in which no text is safe";
            return Err(Failure::refused(doing, told, "Make the target database with ENCODING 'UTF8'"));
        }
        if replica {
            link.execute(doing, "SET session_replication_role = replica").await?;
            link.replica = true;
        }
        Ok(link)
    }

    /// The session, opened if there is none.
    async fn link(&mut self) -> Result<&mut Link, Failure> {
        let link = self.take_link().await?;
        Ok(self.link.insert(link))
    }

    /// Takes the session out: whoever is cancelled or fails takes it along, and with it what it left open.
    async fn take_link(&mut self) -> Result<Link, Failure> {
        match self.link.take() {
            Some(link) if !link.session.is_closed() => Ok(link),
            _ => {
                self.tables.clear();
                self.index.clear();
                self.crew.clear();
                self.connect().await
            }
        }
    }

    fn give_back(&mut self, link: Link) {
        self.link = Some(link);
    }

    fn must_stand(&self) -> Result<(), Failure> {
        if self.lost {
            return Err(Failure::retry(
                "writing to the target",
                "the session was lost: the position must be read again",
            ));
        }
        self.must_be_prepared()
    }

    /// Takes the session out for work that belongs to what it has done before: another session cannot go on with it.
    fn same_link(&mut self) -> Result<Link, Failure> {
        self.lost = true;
        match self.link.take() {
            Some(link) if !link.session.is_closed() => Ok(link),
            _ => Err(Failure::reconnect("writing to the target", "the session was lost")),
        }
    }

    /// Adds the labels that enums lack in a transaction of their own: in the one that adds it no label can be used.
    async fn label_first(&self, link: &mut Link, target: &Target) -> Result<(), Failure> {
        if !link.open {
            return match self.shaping.is_empty() {
                // Everything else of the target is made in the same way.
                true => Ok(()),
                false => make::make_labels(link, target).await,
            };
        }
        if make::lacks_labels(link, target).await? {
            let mut beside = self.connect().await?;
            make::make_labels(&mut beside, target).await?;
        }
        Ok(())
    }

    /// Makes the changes of shape that wait, in the transaction of what comes next.
    async fn shape_up(&mut self, link: &mut Link) -> Result<(), Failure> {
        if self.shaping.is_empty() {
            return Ok(());
        }
        if !link.open {
            link.execute("beginning a transaction", &link.begin).await?;
            link.open = true;
        }
        for (before, after) in std::mem::take(&mut self.shaping) {
            self.alter_on(link, &before, &after).await?;
        }
        Ok(())
    }

    fn must_be_prepared(&self) -> Result<(), Failure> {
        if self.target.is_none() || self.tables.is_empty() {
            return Err(Failure::retry("writing to the target", "the sink must be prepared first"));
        }
        Ok(())
    }

    /// Where the sink stands, for work that does not move it.
    fn standing(&self) -> Progress {
        self.standing.clone().unwrap_or(Progress {
            cut: Cut::default(),
            stage: Stage::Streaming,
            generation: 0,
            stream_from: Cut::default(),
            sequence: None,
            position: None,
            schemas: Vec::new(),
        })
    }

    fn schema_of(&self, id: TableId, name: &TableName) -> Option<Arc<TableSchema>> {
        let by_id = self.index.get(&id).and_then(|index| self.tables.get(*index));
        let found = by_id
            .filter(|table| table.target.schema.name == *name)
            .or_else(|| self.tables.iter().find(|table| table.target.schema.name == *name))
            .or(by_id)?;
        Some(found.target.schema.clone())
    }

    fn release_keys(&mut self, keys: &HashSet<(TableId, &Key)>) {
        self.held.release(keys);
    }

    async fn reload_held(&mut self) -> Result<(), Failure> {
        let migration = self.config.migration.clone();
        let keys = quarantine::held_keys(self.link().await?, &migration).await?;
        self.held = Held::default();
        for (table, key) in keys {
            self.held.add(table, key);
        }
        Ok(())
    }

    async fn deliver_on(
        &mut self,
        link: &mut Link,
        delivery: Delivery,
        on_error: OnError,
        guard: Guard,
        position: Option<Bind>,
    ) -> Result<Applied, Failure> {
        let epoch = self.target.as_ref().map_or(0, |target| target.epoch);
        Box::pin(Writer::new(self.parts(link, epoch), on_error, guard).deliver(delivery, position)).await
    }

    fn parts<'a>(&'a mut self, link: &'a mut Link, epoch: u64) -> Parts<'a> {
        Parts {
            link,
            tables: &mut self.tables,
            index: &self.index,
            held: &mut self.held,
            shapes: &mut self.shapes,
            migration: &self.config.migration,
            epoch,
        }
    }

    async fn prepare_on(&mut self, link: &mut Link, target: &Target) -> Result<(), Failure> {
        let migration = &self.config.migration;
        if !link.locked && self.asks_for_lead {
            // The session was lost, and with it the lead: it is for whoever asks for it.
            return Err(Failure::refused(LEADING, "the session was lost, and with it the lead", "Ask for it again"));
        }
        if !link.locked {
            store::lock(link, migration).await?;
            link.locked = true;
        }
        let found = make::survey(link, target).await?;
        if self.config.back.is_some() {
            make::refuse_absent(target, &found)?;
        }
        if !link.open {
            store::install(link).await?;
            store::fence(link, migration, 0, target.epoch).await?;
            if let Some(back) = &self.config.back {
                back::prepare(link, back).await?;
            }
        }
        let progress = store::progress(link, migration, 0).await?;
        // The lock is ours now. Before it was, a session that had been cut off may have committed.
        if self.told.take().is_some_and(|told| told != progress) {
            let told = "an older session committed meanwhile: the position must be read again";
            return Err(Failure::retry("preparing the target", told));
        }
        if !self.asks_for_lead {
            shares::must_be_level(link, migration, progress.as_ref()).await?;
        }
        make::make_support(link, target).await?;
        for (table, found) in target.tables.iter().zip(&found) {
            make::make_table(link, target, table, *found).await?;
        }
        let mut tables = Vec::with_capacity(target.tables.len());
        for (wanted, found) in target.tables.iter().zip(&found) {
            let tracked = *found == Found::Foreign && wanted.mode != WriteMode::InsertOnce;
            let tracked = tracked && !made_by_us(link, migration, wanted).await?;
            let made = matches!(found, Found::Absent | Found::Ours);
            let table = Table::resolve(link, wanted, made, tracked).await?;
            make::check_key(&table, *found)?;
            tables.push(table);
        }
        table::make_types(link, &mut tables).await?;
        table::link_parents(&mut tables);
        if !link.open {
            match &self.config.back {
                Some(back) => own::mark_all(link, &back.forward).await?,
                None => own::mark(link, migration, target).await?,
            }
        }
        let streaming = progress.as_ref().is_some_and(|progress| progress.stage == Stage::Streaming);
        if streaming {
            collide::make_injective(link, migration, &tables, self.config.on_error).await?;
            finish::make_keys(link, target, &mut tables).await?;
        }
        self.load_end = store::load_end(link, migration).await?;
        let held = quarantine::held_keys(link, migration).await?;
        self.held = Held::default();
        for (table, key) in held {
            self.held.add(table, key);
        }
        self.shapes.clear();
        self.constraints_at = streaming.then(Instant::now);
        self.written_schemas = None;
        self.standing = progress;
        self.install_tables(tables);
        self.target = Some(target.clone());
        Ok(())
    }

    fn install_tables(&mut self, tables: Vec<Table>) {
        self.crew_is_stale = true;
        self.index = tables.iter().enumerate().map(|(index, table)| (table.id(), index)).collect();
        self.tables = tables;
    }

    async fn apply_on(&mut self, link: &mut Link, delivery: Delivery, guard: Guard) -> Result<Applied, Failure> {
        let unprepared = || Failure::retry("writing to the target", "the sink must be prepared first");
        let target = self.target.clone().ok_or_else(unprepared)?;
        let streaming = delivery.upto.stage == Stage::Streaming;
        if streaming && !link.open && self.tables.iter().any(|table| table.bulk && !table.key.is_empty() && table.made)
        {
            finish::make_keys(link, &target, &mut self.tables).await?;
        }
        self.shape_up(link).await?;
        let target = self.target.clone().ok_or_else(unprepared)?;
        let (commits, upto) = (delivery.commits, delivery.upto.clone());
        let mut position = None;
        if commits && guard == Guard::Forward {
            let schemas = (self.written_schemas.as_ref() != Some(&upto.schemas))
                .then(|| serde_json::to_string(&upto.schemas))
                .transpose()
                .map_err(|error| Failure::halt("writing the position", error, "Report this"))?;
            let (sql, params) = store::position(&self.config.migration, 0, target.epoch, &upto, schemas.as_deref())?;
            position = Some(link.bind(sql, params).await?);
        }
        let moves = position.is_some();
        let applied = match self.config.apply {
            Apply::Parallel { workers } if guard == Guard::Forward => {
                Box::pin(self.apply_split(link, delivery, position, workers, &target)).await?
            }
            _ => self.deliver_on(link, delivery, self.config.on_error, guard, position).await?,
        };
        if moves {
            if !streaming {
                self.load_end = upto.cut.clone();
                self.constraints_at = None;
            } else if self.standing.as_ref().is_none_or(|standing| standing.stage == Stage::Loading) {
                self.constraints_at = Some(Instant::now());
            }
            self.written_schemas = Some(upto.schemas.clone());
            let due = self.constraints_at.is_some_and(|at| at <= Instant::now());
            let is_loaded = upto.cut.covers(&self.load_end);
            self.standing = Some(upto);
            if streaming && due && is_loaded {
                self.complete_on(link).await?;
            }
        }
        Ok(applied)
    }

    /// Makes the constraints that wait for the rows after a load; again later where the rows do not allow them yet.
    async fn complete_on(&mut self, link: &mut Link) -> Result<(), Failure> {
        let Some(target) = self.target.clone() else { return Ok(()) };
        if finish::completes(&self.tables) {
            self.statistics.settled().await;
        }
        let whole = match finish::complete(link, &target, &mut self.tables).await {
            // Somebody holds a lock for long: the rows are in, the constraints can wait.
            Err(Failure { verdict: Verdict::Retry { .. }, .. }) if !link.session.is_closed() => {
                link.execute("preparing to write sets", finish::PLAN_SETS).await?;
                false
            }
            done => done?,
        };
        self.constraints_at = (!whole).then(|| Instant::now() + CONSTRAINT_PAUSE);
        Ok(())
    }

    async fn alter_on(&mut self, link: &mut Link, before: &TargetTable, after: &TargetTable) -> Result<(), Failure> {
        alter::alter(link, &self.config.migration, before, after).await?;
        let index = self.index.get(&after.schema.id).or_else(|| self.index.get(&before.schema.id)).copied();
        let known = index.and_then(|index| self.tables.get(index));
        let (made, tracked, cautious) =
            known.map_or((true, false, 0), |table| (table.made, table.tracked, table.cautious));
        let mut table = Table::resolve(link, after, made, tracked).await?;
        table.cautious = cautious;
        let mut tables = std::mem::take(&mut self.tables);
        match index.and_then(|index| tables.get_mut(index)) {
            Some(slot) => *slot = table,
            None => tables.push(table),
        }
        table::make_types(link, &mut tables).await?;
        table::link_parents(&mut tables);
        self.install_tables(tables);
        self.shapes.clear();
        if let Some(target) = &mut self.target {
            match target.tables.iter_mut().find(|table| table.schema.id == before.schema.id) {
                Some(slot) => *slot = after.clone(),
                None => target.tables.push(after.clone()),
            }
        }
        if self.standing.as_ref().is_some_and(|standing| standing.stage == Stage::Streaming) {
            self.constraints_at = Some(Instant::now());
        }
        Ok(())
    }
}

/// Whether all that we write in a table are columns that we made.
async fn made_by_us(link: &mut Link, migration: &str, table: &TargetTable) -> Result<bool, Failure> {
    let WriteMode::Columns { columns } = &table.mode else { return Ok(false) };
    let name = &table.schema.name;
    let sql =
        "SELECT part FROM crossfade.objects WHERE migration = $1 AND kind = 'column' AND schema = $2 AND name = $3";
    let rows = link.query("looking for what we made", sql, &[&migration, &&*name.schema, &&*name.name]).await?;
    let made: HashSet<String> = rows.iter().map(|row| row.get(0)).collect();
    Ok(columns.iter().filter_map(|index| table.schema.columns.get(*index)).all(|column| made.contains(&*column.name)))
}
