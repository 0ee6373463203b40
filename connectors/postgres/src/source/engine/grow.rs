//! What makes a backfill begin while the stream runs: a table that was rewritten, tables that are taken in, a
//! partition that joined its tree. One backfill at a time; its beginning stands between two transactions, in one batch
//! with what caused it, so that no restart can lose it.
//!
//! The chunks wait until every transaction that ran at that moment has ended: what such a transaction did to a table
//! before it was published is not in the stream, and must be in the rows.

use super::{End, Engine};
use crate::{
    OnRewrite,
    client::{failure, replication::Lsn},
    codec::{
        pgoutput::{CellRule, Relation},
        types::TypeFacts,
    },
    source::{
        catalog::{self, Candidate, LiveTable},
        notes,
        relations::{self, Captured},
        setup, slot,
        snapshot::{Plan, SnapshotRun},
        tree::Member,
    },
};
use crossfade_connector::{Failure, SnapshotState, TableSnapshot, Verdict};
use crossfade_event::{Backfill, Event, SchemaVersion, TableId, TableName, TableSchema, Truncate, Visibility};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::oneshot, time::Instant};

/// How often the partition trees are looked at.
const TREE_EVERY: Duration = Duration::from_secs(2);

/// How long taking in tables waits for a lock; longer than the server needs to call off its own vacuum, a second.
const PUBLISH_LOCK_WAIT: &str = "2s";

/// Tables that are to be taken in, and how the trees of new roots are.
struct Wished {
    new: Vec<Candidate>,
    looks: Vec<(u32, Vec<Member>)>,
}

/// What may be asked of a running engine.
#[derive(Debug)]
pub(in crate::source) enum Command {
    /// Take in every table that matches and is not captured, of these names where they are given.
    AddTables { only: Option<Vec<TableName>>, reply: oneshot::Sender<Result<Vec<TableName>, Failure>> },
}

/// What is known of the partition trees.
pub(super) struct Tree {
    due: Option<Instant>,
    /// All leaves that ever were captured, by oid; kept in a file, for a leaf may leave while nobody looks. One that
    /// left before is emptied once more after a restart, which changes nothing.
    leaves: BTreeSet<u32>,
    file: PathBuf,
    /// Leaves that are gone, and up to where the stream may still speak of them.
    leaving: Vec<(u32, Lsn)>,
    /// Those that were emptied already.
    left: HashSet<u32>,
}

impl Tree {
    pub(super) async fn read(folder: &Path) -> Self {
        let file = folder.join("leaves");
        let text = tokio::fs::read_to_string(&file).await.unwrap_or_default();
        let leaves = text.lines().filter_map(|line| line.parse().ok()).collect();
        Self { due: None, leaves, file, leaving: Vec::new(), left: HashSet::new() }
    }

    async fn note(&mut self, leaves: BTreeSet<u32>) -> Result<(), Failure> {
        let before = self.leaves.len();
        self.leaves.extend(leaves);
        if self.leaves.len() == before {
            return Ok(());
        }
        let text: String = self.leaves.iter().map(|oid| format!("{oid}\n")).collect();
        notes::write(&self.file, &text).await
    }
}

impl Engine {
    pub(super) async fn obey(&mut self, command: Command) -> Result<(), Failure> {
        match command {
            Command::AddTables { only, reply } => {
                let (added, lost) = self.add_tables(only.as_deref()).await;
                // If nobody waits for the answer any more, the tables are in all the same.
                let _ = reply.send(added);
                if lost { Err(Failure::reconnect("taking in new tables", "the session failed")) } else { Ok(()) }
            }
        }
    }

    /// What came of it, and whether the engine must begin anew: a refusal and a lock that was not to be had are answers,
    /// a lost connection and tables that are half taken in are not only that.
    async fn add_tables(&mut self, only: Option<&[TableName]>) -> (Result<Vec<TableName>, Failure>, bool) {
        let published = self.publish_briefly(only).await;
        match published {
            Ok(wished) if wished.new.is_empty() => (Ok(Vec::new()), false),
            Ok(wished) => {
                let taken = self.take_in(wished).await;
                let lost = taken.is_err();
                (taken, lost)
            }
            Err(failure) => {
                let lost = failure.verdict == Verdict::Reconnect;
                (Err(failure), lost)
            }
        }
    }

    /// The stream stands still while somebody else's lock on a table is waited for: not for long.
    async fn publish_briefly(&self, only: Option<&[TableName]>) -> Result<Wished, Failure> {
        let doing = "bounding the wait for locks";
        let bounded = format!("SET lock_timeout = '{PUBLISH_LOCK_WAIT}'");
        self.session.batch_execute(&bounded).await.map_err(|error| failure(doing, error))?;
        let published = self.publish(only).await;
        match self.session.batch_execute("RESET lock_timeout").await {
            Ok(()) => published,
            Err(error) => Err(Failure::reconnect(doing, error)),
        }
    }

    async fn publish(&self, only: Option<&[TableName]>) -> Result<Wished, Failure> {
        let candidates = catalog::candidates(&self.session, &self.config.migration).await?;
        let wanted = catalog::wanted(&candidates, &self.patterns);
        let new: Vec<Candidate> = wanted
            .into_iter()
            .filter(|table| !self.assembler.tables.contains_key(&table.oid))
            .filter(|table| only.is_none_or(|only| only.contains(&table.name)))
            .collect();
        if new.is_empty() {
            return Ok(Wished { new, looks: Vec::new() });
        }
        let looks = self.look_at_new_roots(&new).await?;
        setup::publication::ensure(&self.session, &self.config, &candidates, &new, self.version).await?;
        Ok(Wished { new, looks })
    }

    async fn take_in(&mut self, Wished { new, looks }: Wished) -> Result<Vec<TableName>, Failure> {
        let oids: Vec<u32> = new.iter().map(|table| table.oid).collect();
        let tables = self.capture(&oids).await?;
        for (root, members) in &looks {
            self.trees.copied(*root, members, self.generation + 1).await?;
        }
        self.begin_backfill(tables).await?;
        Ok(new.into_iter().map(|table| table.name).collect())
    }

    /// Gives numbers to tables, and says their schemas.
    async fn capture(&mut self, oids: &[u32]) -> Result<Vec<TableId>, Failure> {
        let live = catalog::live_tables(&self.session, oids).await?;
        let types = catalog::column_types(&self.session, live.values()).await?;
        let mut captured = Vec::new();
        for table in live.values() {
            self.check_text(&table.name, &live, &types)?;
            let highest = self.assembler.tables.values().map(|known| known.schema.id.0).max();
            let id = TableId(highest.unwrap_or(0) + 1);
            let schema = table.schema(id, SchemaVersion(1), &types, self.text);
            let rules = self.rules_of_before(&schema)?;
            if table.is_root {
                self.roots.insert(table.oid);
            }
            self.passed_heaps.insert(table.oid, table.heap.clone());
            let schema = self.announce(schema);
            self.captured.insert(table.oid);
            self.assembler.tables.insert(table.oid, Captured { schema, rules });
            captured.push(id);
        }
        Ok(captured)
    }

    /// A table may have been published before it is taken in: then the server has said its shape in this session, and
    /// says it no more.
    fn rules_of_before(&mut self, schema: &TableSchema) -> Result<Option<Arc<[CellRule]>>, Failure> {
        let Some(relation) = self.passed_over.remove(&schema.native_id) else { return Ok(None) };
        let said = relation.columns.iter().map(|column| (column.name.as_str(), column.type_oid));
        if said.eq(schema.columns.iter().map(|column| (&*column.name, column.type_.native_id))) {
            return Ok(Some(relations::rules(schema, &relation)));
        }
        Err(Failure::reconnect(format!("taking in {}", schema.name), "its shape is another one than the stream said"))
    }

    /// Binary or text is one switch of the whole stream: a column that needs text makes it begin anew as text.
    pub(super) fn check_text(
        &self,
        table: &TableName,
        live: &BTreeMap<u32, LiveTable>,
        types: &HashMap<u32, TypeFacts>,
    ) -> Result<(), Failure> {
        if self.text || !setup::needs_text(live, types) {
            return Ok(());
        }
        Err(Failure::reconnect(
            format!("following the change of {table}"),
            "a column's type has no binary form that can travel: the stream goes on as text",
        ))
    }

    /// A backfill begins here: outside of transactions, with none running.
    pub(super) async fn begin_backfill(&mut self, tables: Vec<TableId>) -> Result<(), Failure> {
        let doing = "beginning a backfill";
        let row = self
            .session
            .query_one("SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text", &[])
            .await
            .map_err(|error| failure(doing, error))?;
        let next: u64 = row
            .get::<_, String>(0)
            .parse()
            .map_err(|error: std::num::ParseIntError| Failure::reconnect(doing, error))?;
        // Everything that has begun by now must be seen: the chunks wait for it.
        let visible = Visibility { xmin: next, xmax: next, in_progress: Vec::new() };
        let passed = std::mem::take(&mut self.passed_heaps).into_iter();
        let is_copied =
            |oid: &u32| self.assembler.tables.get(oid).is_some_and(|known| tables.contains(&known.schema.id));
        let heaps = passed.filter(|(oid, _)| is_copied(oid)).collect();
        self.heaps.copied(heaps, self.generation + 1).await?;
        self.end_before_the_next(&tables);
        self.generation += 1;
        let generation = self.generation;
        self.assembler.push_outside(Event::BackfillBegan(Backfill {
            generation,
            tables: tables.clone(),
            visible: Some(visible.clone()),
        }));
        for table in &tables {
            self.assembler.resolving.insert(*table, Lsn(u64::MAX));
        }
        self.copying = tables.iter().copied().collect();
        let schemas = self.assembler.tables.values().map(|captured| captured.schema.clone()).collect();
        let tables = tables.into_iter().map(|table| (table, TableSnapshot::default())).collect();
        let state = SnapshotState { generation, ended: false, visible: Some(visible), tables };
        self.snapshot =
            Some(SnapshotRun::start(Plan { config: self.config.clone(), version: self.version, state, schemas }));
        Ok(())
    }

    /// Rows of the table changed without an event: it is copied again once this transaction has ended, or we stop.
    pub(super) async fn rewritten(&mut self, schema: &TableSchema, why: &str) -> Result<(), End> {
        self.may_rewrite(schema, why)?;
        self.again_after_commit(schema.id).await
    }

    /// Whether the spec has a table that was rewritten copied again.
    pub(super) fn may_rewrite(&self, schema: &TableSchema, why: &str) -> Result<(), Failure> {
        if self.config.on_rewrite == OnRewrite::Stop {
            return Err(Failure::halt(
                format!("following the change of {}", schema.name),
                format!("{why}: rows that were there before changed without an event"),
                "Set on_rewrite = \"snapshot\" to have the table copied again, and run",
            ));
        }
        tracing::info!(table = %schema.name, why, "the table is copied again");
        Ok(())
    }

    /// Begins the backfill of what waits for one, where nothing stands in the way.
    pub(super) async fn begin_again(&mut self) -> Result<(), Failure> {
        if self.again.is_empty() || self.snapshot.is_some() || self.assembler.is_open() {
            return Ok(());
        }
        for oid in std::mem::take(&mut self.refresh) {
            self.take_shape(oid).await?;
        }
        let tables = std::mem::take(&mut self.again);
        self.begin_backfill(tables.into_iter().collect()).await
    }

    async fn again_after_commit(&mut self, table: TableId) -> Result<(), End> {
        if let Some(snapshot) = &self.snapshot {
            snapshot.abandon(table);
            self.hand_over().await?;
            if self.assembler.in_parts() {
                self.give_up_backfill();
            } else {
                self.finish_backfill().await?;
            }
        }
        self.again.insert(table);
        Ok(())
    }

    /// Lets the running backfill come to its end while the stream, of which nothing is left to hand over, waits.
    async fn finish_backfill(&mut self) -> Result<(), End> {
        loop {
            self.abandon_stale();
            if let Some(batch) = self.held.take() {
                self.out.send(Ok(batch)).await.map_err(|_| End::Unheard)?;
            }
            let Some(run) = &mut self.snapshot else { return Ok(()) };
            let output = run.next().await?;
            self.take_output(output);
        }
    }

    /// Between the parts of a large transaction nothing of a backfill can be handed over: the running one ends with what
    /// the log has of it, and the tables whose copy is not in are copied anew by the next one.
    fn give_up_backfill(&mut self) {
        self.snapshot = None;
        let waiting = self.held.take().map(|batch| batch.events).unwrap_or_default();
        self.copying.extend(waiting.iter().filter_map(|stamped| match &stamped.event {
            Event::SnapshotEnded { table, .. } => Some(*table),
            _ => None,
        }));
        let unfinished: Vec<TableId> = std::mem::take(&mut self.copying).into_iter().collect();
        tracing::info!(tables = unfinished.len(), "what is not copied yet is copied anew after a large transaction");
        self.copied_all(self.generation, unfinished);
    }

    /// A chunk that waits for the stream to say its table's new shape would wait for ever while the stream waits for it:
    /// the table goes into the next backfill, beside which the stream comes to that place.
    fn abandon_stale(&self) {
        let Some(run) = &self.snapshot else { return };
        for (oid, _) in &self.stale {
            if let Some(captured) = self.assembler.tables.get(oid) {
                run.abandon(captured.schema.id);
            }
        }
    }

    /// A relation that is not captured: a new leaf of a tree that is, or none of our business.
    pub(super) async fn unknown_relation(&mut self, relation: &Relation) -> Result<(), End> {
        let candidates = catalog::candidates(&self.session, &self.config.migration).await?;
        let root = candidates.iter().find(|table| table.oid == relation.oid).and_then(|table| table.root.as_ref());
        if let Some(root) = root
            && self.leaf_is_named(relation, root).await?
        {
            return Ok(());
        }
        let is_leaf = catalog::wanted(&candidates, &self.patterns)
            .into_iter()
            .any(|table| table.oid == relation.oid && table.root.is_some());
        if !is_leaf {
            self.passed_over.insert(relation.oid, relation.clone());
            return Ok(());
        }
        let doing = format!("taking in {}.{}", relation.schema, relation.name);
        let tables = self.capture(&[relation.oid]).await?;
        self.tree.note(BTreeSet::from([relation.oid])).await?;
        for table in tables {
            self.again_after_commit(table).await?;
        }
        let Some(captured) = self.assembler.tables.get_mut(&relation.oid) else { return Ok(()) };
        let names = captured.schema.columns.iter().map(|column| &*column.name);
        if !names.eq(relation.columns.iter().map(|column| column.name.as_str())) {
            return Err(End::Failed(Failure::retry(doing, "the catalog is ahead of the stream")));
        }
        captured.rules = Some(relations::rules(&captured.schema, relation));
        Ok(())
    }

    /// Leaves that joined a captured tree are copied; leaves that left it, or were dropped, have taken their rows with
    /// them: nothing of that is in the stream.
    pub(super) async fn watch_trees(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        if self.assembler.is_open() || self.tree.due.is_some_and(|due| now < due) {
            return Ok(());
        }
        self.tree.due = Some(now + TREE_EVERY);
        if !self.is_copying() {
            self.look_at_roots().await?;
        }
        self.empty_leaves_that_left();
        let candidates = catalog::candidates(&self.session, &self.config.migration).await?;
        let wanted = catalog::wanted(&candidates, &self.patterns);
        let captured = |oid: &u32| self.assembler.tables.contains_key(oid);
        let leaves: BTreeSet<u32> =
            wanted.iter().filter(|table| table.root.is_some()).map(|table| table.oid).filter(captured).collect();
        let known = |oid: &u32| self.tree.left.contains(oid) || self.tree.leaving.iter().any(|(left, _)| left == oid);
        let gone: Vec<u32> =
            self.tree.leaves.difference(&leaves).copied().filter(|oid| captured(oid) && !known(oid)).collect();
        if !gone.is_empty() {
            let end = self.end_of_wal().await?;
            for oid in gone {
                if let Some(table) = wanted.iter().find(|table| table.oid == oid) {
                    return Err(Failure::halt(
                        format!("watching the partitions of {}", table.name),
                        "it was detached from its tree and still matches the spec by itself: its changes are no \
                         longer published",
                        "Exclude it in the spec, or attach it again",
                    ));
                }
                self.tree.leaving.push((oid, end));
            }
        }
        self.tree.note(leaves).await?;
        if self.is_copying() {
            return Ok(());
        }
        // New leaves of trees of which we have some; a wholly new table is reported, and waits to be added.
        let trees: HashSet<&TableName> = wanted
            .iter()
            .filter(|table| self.assembler.tables.contains_key(&table.oid))
            .filter_map(|table| table.root.as_ref())
            .collect();
        let joined: Vec<u32> = wanted
            .iter()
            .filter(|table| table.root.as_ref().is_some_and(|root| trees.contains(root)))
            .filter(|table| !self.assembler.tables.contains_key(&table.oid))
            .map(|table| table.oid)
            .collect();
        if !joined.is_empty() {
            let tables = self.capture(&joined).await?;
            self.tree.note(joined.into_iter().collect()).await?;
            self.begin_backfill(tables).await?;
        }
        Ok(())
    }

    /// Once the stream has passed the moment at which they were gone, their rows go, too.
    fn empty_leaves_that_left(&mut self) {
        let seen = self.assembler.seen();
        let mut tables = Vec::new();
        let leaving = std::mem::take(&mut self.tree.leaving);
        for (oid, end) in leaving {
            if end > seen {
                self.tree.leaving.push((oid, end));
            } else if let Some(captured) = self.assembler.tables.get(&oid)
                && self.tree.left.insert(oid)
            {
                tracing::info!(table = %captured.schema.name, "the partition left its tree, and its rows with it");
                tables.push(captured.schema.id);
            }
        }
        if !tables.is_empty() {
            self.assembler.push_outside(Event::Truncated(Truncate { tables, restart_identity: false }));
        }
    }

    pub(super) async fn end_of_wal(&self) -> Result<Lsn, Failure> {
        slot::end_of_wal(&self.session).await
    }
}
