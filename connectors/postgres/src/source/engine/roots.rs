//! Watching the trees that are captured by their root; see [`crate::source::tree`].
//!
//! A tree's change is found in the catalog of now, the stream may be far behind. Rows that were written into a leaf
//! before it went are still to come, and would stay for ever in a copy that began before them; so a new copy begins once
//! the stream has passed the moment of the look, and counts as a copy of the tree as it was at that look: what happened
//! to it since is found by the next one.

use super::Engine;
use crate::{
    OnRewrite,
    client::replication::Lsn,
    codec::pgoutput::Relation,
    source::{
        catalog::Candidate,
        tree::{self, Member, Seen},
    },
};
use crossfade_connector::Failure;
use crossfade_event::{TableId, TableName};

/// A root that is to be copied again.
pub(super) struct Look {
    table: TableId,
    members: Vec<Member>,
    /// The end of WAL after the look.
    until: Lsn,
    nudged: bool,
}

impl Engine {
    /// The captured tables that are roots of a tree: oid, number, name.
    fn roots(&self) -> Vec<(u32, TableId, TableName)> {
        let captured = self.assembler.tables.iter().filter(|(oid, _)| self.roots.contains(oid));
        captured.map(|(oid, captured)| (*oid, captured.schema.id, captured.schema.name.clone())).collect()
    }

    /// How the trees of new roots are, looked at before anything of them is published.
    pub(super) async fn look_at_new_roots(&self, new: &[Candidate]) -> Result<Vec<(u32, Vec<Member>)>, Failure> {
        let mut looks = Vec::new();
        for root in new.iter().filter(|candidate| candidate.is_root) {
            let members = tree::members(&self.session, root.oid).await?;
            tree::check(&root.name, &members, &self.patterns)?;
            looks.push((root.oid, members));
        }
        Ok(looks)
    }

    /// Finds roots whose rows are not what the stream says any more. False where one has a new leaf that is locked: it is
    /// for a later look, and what changes in it until then is looked up.
    pub(super) async fn look_at_roots(&mut self) -> Result<bool, Failure> {
        for (oid, table, name) in self.roots() {
            if self.looks.contains_key(&oid) {
                continue;
            }
            let mut members = tree::members(&self.session, oid).await?;
            let doing = || format!("watching the partitions of {name}");
            if let Some((problem, remedy)) = tree::obstacle(&name, &members, &self.patterns) {
                return Err(Failure::halt(doing(), problem, format!("{remedy}, and run again")));
            }
            let strangers = self.trees.strangers(oid, &members);
            if !tree::find_empty(&self.session, &mut members, &strangers).await? {
                tracing::debug!(table = %name, "a new partition is locked: it is looked at later");
                self.assembler.resolving.insert(table, Lsn(u64::MAX));
                self.unsure.insert(oid);
                continue;
            }
            match self.trees.look(oid, &members) {
                Seen::Same => self.is_sure(oid, table).await?,
                Seen::Grown => {
                    self.trees.grown(oid, &members).await?;
                    self.is_sure(oid, table).await?;
                }
                Seen::Changed(why) if self.config.on_rewrite == OnRewrite::Stop => {
                    return Err(Failure::halt(
                        doing(),
                        format!("{why}: rows came or went without an event"),
                        "Set on_rewrite = \"snapshot\" to have the table copied again, and run",
                    ));
                }
                Seen::Changed(why) => {
                    tracing::info!(table = %name, why, "the table will be copied again");
                    let until = self.end_of_wal().await?;
                    self.unsure.remove(&oid);
                    // A row that came without an event may change before it is copied.
                    self.assembler.resolving.insert(table, Lsn(u64::MAX));
                    self.looks.insert(oid, Look { table, members, until, nudged: false });
                }
            }
        }
        Ok(self.unsure.is_empty())
    }

    /// Nothing came without an event: only what was read while that was in doubt is still looked up.
    async fn is_sure(&mut self, root: u32, table: TableId) -> Result<(), Failure> {
        if self.snapshot.is_none() && self.unsure.remove(&root) {
            let until = self.end_of_wal().await?;
            self.assembler.resolving.insert(table, until);
        }
        Ok(())
    }

    /// Whether a root is copied again, or perhaps will be.
    pub(super) fn awaits_a_copy(&self, table: TableId) -> bool {
        let is_it = |root: &u32| self.assembler.tables.get(root).is_some_and(|known| known.schema.id == table);
        self.looks.values().any(|look| look.table == table) || self.unsure.iter().any(is_it)
    }

    /// Begins the new copies, once the stream has come to where their change was seen. Between transactions, with no
    /// backfill under way but for one whose end is about to be said.
    pub(super) async fn copy_roots_again(&mut self) -> Result<(), Failure> {
        let seen = self.assembler.seen();
        if self.looks.is_empty() || self.assembler.is_open() || self.snapshot.is_some() {
            return Ok(());
        }
        if self.looks.values().any(|look| look.until > seen) {
            if self.looks.values_mut().any(|look| !std::mem::replace(&mut look.nudged, true)) {
                self.nudge().await?;
            }
            return Ok(());
        }
        let generation = self.generation + 1;
        let mut tables = Vec::new();
        for (root, look) in std::mem::take(&mut self.looks) {
            self.trees.copied(root, &look.members, generation).await?;
            tables.push(look.table);
        }
        self.begin_backfill(tables).await
    }

    /// The stream names a leaf before the first row of it: one that is new may have brought rows along. True where it
    /// belongs to a tree that is captured by its root.
    pub(super) async fn leaf_is_named(&mut self, relation: &Relation, root: &TableName) -> Result<bool, Failure> {
        let Some((oid, ..)) = self.roots().into_iter().find(|(_, _, name)| name == root) else { return Ok(false) };
        if !self.trees.has(oid, relation.oid) {
            self.look_at_roots().await?;
        }
        Ok(true)
    }
}
