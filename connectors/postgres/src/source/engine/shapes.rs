//! Shapes that are taken from the catalog, where the stream does not say them (in time): a chunk finds its table changed
//! before the stream has come to it, or a table is changed and nobody writes to it afterwards.
//!
//! The stream says a table's shape before the first change under it, and not sooner. A table that was retyped and then
//! left alone would keep its old values with us for ever; so the catalog is held against what we know, again and again.
//! It is the catalog of now: what it says counts once the stream has passed the moment of the look, and only if nothing
//! has happened to the table since. The same look finds values that were computed anew under the same shape
//! ([`crate::source::heaps`]).

use super::Engine;
use crate::{
    client::replication::Lsn,
    codec::pgoutput::{Relation, RelationColumn},
    source::{
        catalog::{self, LiveTable},
        relations::{self, Captured, Followed},
    },
};
use crossfade_connector::Failure;
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

/// How often the catalog is held against what is known.
const SHAPES_EVERY: Duration = Duration::from_secs(10);

/// Tables whose shape in the catalog is not the one that is known, by oid: that shape, and where the stream must be.
pub(super) type Suspects = BTreeMap<u32, (LiveTable, Lsn)>;

impl Engine {
    /// Holds the catalog against what is known; what differs is believed later.
    pub(super) async fn watch_shapes(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        if self.is_copying() || self.assembler.is_open() || self.shapes_due.is_some_and(|due| now < due) {
            return Ok(());
        }
        self.shapes_due = Some(now + SHAPES_EVERY);
        let oids: Vec<u32> = self.assembler.tables.keys().copied().collect();
        let changed = self.changed_shapes(&oids).await?;
        self.suspects.retain(|oid, _| changed.iter().any(|table| table.oid == *oid));
        let new: Vec<LiveTable> = changed.into_iter().filter(|table| !self.suspects.contains_key(&table.oid)).collect();
        self.suspect(new).await
    }

    /// Of these tables, those that the catalog has in another shape than the one that is known, or whose values were
    /// computed anew.
    async fn changed_shapes(&mut self, oids: &[u32]) -> Result<Vec<LiveTable>, Failure> {
        let live = catalog::live_tables(&self.session, oids).await?;
        let types = catalog::column_types(&self.session, live.values()).await?;
        let heaps = &self.heaps;
        let harmless = live.values().filter(|table| !heaps.is_rewritten(table.oid, &table.heap));
        let harmless: Vec<_> = harmless.map(|table| (table.oid, table.heap.clone())).collect();
        self.heaps.seen(harmless).await?;
        let mut changed = Vec::new();
        for (oid, table) in live {
            let Some(captured) = self.assembler.tables.get(&oid) else { continue };
            let told = relations::compare(&captured.schema, &as_relation(&table), Some(&table), &types, self.text)?;
            let is_same = matches!(told, Followed::Same) && !self.heaps.is_rewritten(oid, &table.heap);
            if !is_same {
                changed.push(table);
            }
        }
        Ok(changed)
    }

    async fn suspect(&mut self, tables: Vec<LiveTable>) -> Result<(), Failure> {
        if tables.is_empty() {
            return Ok(());
        }
        let until = self.end_of_wal().await?;
        self.suspects.extend(tables.into_iter().map(|table| (table.oid, (table, until))));
        Box::pin(self.nudge()).await
    }

    /// Takes the shapes that the stream has passed and that are still the same: what comes next is written under them.
    /// Between transactions, with no backfill under way.
    pub(super) async fn believe_shapes(&mut self) -> Result<(), Failure> {
        let seen = self.assembler.seen();
        let due: Vec<u32> =
            self.suspects.iter().filter(|(_, (_, until))| *until <= seen).map(|(oid, _)| *oid).collect();
        if due.is_empty() || self.is_copying() || self.assembler.is_open() {
            return Ok(());
        }
        let mut moved = Vec::new();
        for table in self.changed_shapes(&due).await? {
            match self.suspects.get(&table.oid) {
                Some((then, _)) if *then == table => {
                    self.take_shape(table.oid).await?;
                    self.passed_heaps.insert(table.oid, table.heap);
                }
                _ => moved.push(table),
            }
        }
        self.suspects.retain(|oid, _| !due.contains(oid));
        self.suspect(moved).await?;
        self.begin_again().await
    }

    /// Takes a table's shape from the catalog, once the stream has come to where a chunk found it changed.
    pub(super) async fn reshape_from_catalog(&mut self) -> Result<(), Failure> {
        if self.assembler.is_open() {
            return Ok(());
        }
        let seen = self.assembler.seen();
        let (due, later) = std::mem::take(&mut self.stale).into_iter().partition(|(_, until)| *until <= seen);
        self.stale = later;
        let due: Vec<(u32, Lsn)> = due;
        for (oid, _) in due {
            self.take_shape(oid).await?;
        }
        Ok(())
    }

    /// A table's shape as the catalog has it. Where its rows were rewritten and a backfill is running, the table waits
    /// for the next one, and its shape with it.
    pub(super) async fn take_shape(&mut self, oid: u32) -> Result<(), Failure> {
        let live = catalog::live_tables(&self.session, &[oid]).await?;
        let types = catalog::column_types(&self.session, live.values()).await?;
        let (Some(table), Some(captured)) = (live.get(&oid), self.assembler.tables.get(&oid)) else { return Ok(()) };
        let old = captured.schema.clone();
        self.check_text(&old.name, &live, &types)?;
        let is_rewritten = self.heaps.is_rewritten(oid, &table.heap);
        let anew = || "its values were computed anew (ALTER TABLE … TYPE … USING)".to_owned();
        let told = match relations::compare(&old, &as_relation(table), Some(table), &types, self.text)? {
            Followed::Same if is_rewritten => Followed::Rewritten((*old).clone(), anew()),
            Followed::Changed(next) if is_rewritten => Followed::Rewritten(next, anew()),
            told => told,
        };
        let next = match told {
            Followed::Same => return Ok(()),
            Followed::Changed(next) => next,
            Followed::Rewritten(next, why) => {
                if let Some(snapshot) = &self.snapshot {
                    snapshot.abandon(old.id);
                    self.refresh.insert(oid);
                    return Ok(());
                }
                if self.again.insert(old.id) {
                    self.may_rewrite(&next, &why)?;
                }
                next
            }
        };
        // The server says the shape once more before it sends a change under a new one. Where the two look the same it
        // may have done so already.
        let rules = captured.rules.clone().filter(|_| relations::says(&as_relation(table), &old));
        if next == *old {
            return Ok(());
        }
        let schema = self.announce(next);
        self.assembler.tables.insert(oid, Captured { schema, rules });
        Ok(())
    }
}

impl Engine {
    /// Where the transaction that the stream is in has itself computed a table's values anew, the copy that follows it has
    /// them; otherwise it may have been another one, later than the stream is, and the next look will tell.
    pub(super) fn note_own_rewrite(&mut self, table: Option<&LiveTable>) {
        if let Some((table, xid)) = table.zip(self.assembler.xid())
            && self.heaps.is_rewritten_by(table.oid, &table.heap, xid)
        {
            self.passed_heaps.insert(table.oid, table.heap.clone());
        }
    }
}

/// The catalog's shape as the stream would say it.
fn as_relation(table: &LiveTable) -> Relation {
    let column = |column: &catalog::LiveColumn| RelationColumn {
        name: column.name.to_string(),
        type_oid: column.type_oid,
        type_modifier: column.type_modifier,
        is_key: column.key.is_some(),
    };
    Relation {
        oid: table.oid,
        schema: table.name.schema.to_string(),
        name: table.name.name.to_string(),
        identity: b'd',
        columns: table.columns.iter().map(column).collect(),
    }
}
