//! From messages to batches: pure, no I/O.
//!
//! Small transactions are gathered into one batch, a large one is handed over in parts. Inside a transaction whose end
//! is not known yet the stamps carry the place of its commit record plus one: beyond every earlier commit's end, and
//! not beyond its own. A transaction that ends within its batch is stamped with its end, as is one that was spooled.

use super::{relations::Captured, visibility};
use crate::{
    client::replication::Lsn,
    codec::pgoutput::{Message, OldKind, Tuple},
};
use bytes::{Bytes, BytesMut};
use crossfade_connector::Failure;
use crossfade_event::{Batch, Change, Event, Mark, Op, Position, Row, Stamped, TableId, Transaction, Truncate};
use std::collections::HashMap;

/// A batch is closed at about this size.
pub(super) const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Rows are written into blocks of this size and share them.
const ARENA_BYTES: usize = 256 * 1024;
/// Marks of ours: heartbeats move the position only, own writes are dropped, all else is for the log.
const HEARTBEAT: &str = "crossfade.heartbeat";
const OWN: &str = "crossfade.own";
const OURS: &str = "crossfade";

pub(super) struct Assembler {
    /// Source and timeline of every position.
    origin: Position,
    migration: String,
    own_origin: String,
    pub(super) tables: HashMap<u32, Captured>,
    arena: BytesMut,
    events: Vec<Stamped>,
    bytes: usize,
    open: Option<Open>,
    /// Everything up to here is handed over or in `events`.
    upto: Lsn,
    /// Everything up to here was read; what lies between concerns none of our tables.
    seen: Lsn,
    near_xid: u64,
    /// Indexes of events with unchanged cells, of tables in a backfill, with their transactions.
    unresolved: Vec<(usize, u64)>,
    /// Tables in a backfill, and up to which commit their unchanged cells must be looked up.
    pub(super) resolving: HashMap<TableId, Lsn>,
    /// The beginning of a backfill is among the events.
    backfill_waits: bool,
    /// A schema is among the events: rows that are copied under it come after it.
    schema_waits: bool,
    /// The last part of a transaction is among the events.
    last_part_waits: bool,
}

/// The transaction being read.
struct Open {
    transaction: Transaction,
    stamp: u64,
    ordinal: u32,
    /// Whether `Began` was written.
    began: bool,
    /// Ours, to be left out.
    dropped: bool,
    /// Where its events begin in the batch.
    first: usize,
    /// Whether an earlier part was handed over.
    in_parts: bool,
}

fn damaged(error: impl std::error::Error + Send + Sync + 'static) -> Failure {
    Failure::halt(
        "decoding the replication stream",
        error,
        "The server sent what its protocol does not allow: report this with the server's version",
    )
}

impl Assembler {
    pub(super) fn new(origin: Position, migration: &str, own_origin: String, near_xid: u64) -> Self {
        Self {
            origin,
            migration: migration.to_owned(),
            own_origin,
            tables: HashMap::new(),
            arena: BytesMut::new(),
            events: Vec::new(),
            bytes: 0,
            open: None,
            upto: Lsn(origin.commit),
            seen: Lsn(origin.commit),
            near_xid,
            unresolved: Vec::new(),
            resolving: HashMap::new(),
            backfill_waits: false,
            schema_waits: false,
            last_part_waits: false,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes >= BATCH_BYTES_MAX
    }

    pub(super) fn upto(&self) -> Lsn {
        self.upto
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// The number of the transaction being read.
    pub(super) fn xid(&self) -> Option<u64> {
        self.open.as_ref().map(|open| open.transaction.xid)
    }

    /// True between two parts of one transaction, also when its end was read: nothing else may be handed over now.
    pub(super) fn in_parts(&self) -> bool {
        self.last_part_waits || self.open.as_ref().is_some_and(|open| open.in_parts)
    }

    pub(super) fn position(&self, commit: u64) -> Position {
        Position { commit, ordinal: u32::MAX, ..self.origin }
    }

    /// True until the beginning of a backfill, or a schema under which rows are copied by now, is handed over.
    pub(super) fn backfill_waits(&self) -> bool {
        self.backfill_waits || self.schema_waits
    }

    /// Everything of the stream up to here was read.
    pub(super) fn seen(&self) -> Lsn {
        self.seen
    }

    /// Adds an event that belongs to no transaction.
    pub(super) fn push_outside(&mut self, event: Event) {
        self.backfill_waits |= matches!(event, Event::BackfillBegan(_));
        self.bytes += event.size_bytes();
        self.events.push(Stamped { position: self.position(self.upto.0), event });
    }

    fn push(&mut self, event: Event) {
        let Some(open) = &mut self.open else { return };
        let at = |ordinal| Position { commit: open.stamp, ordinal, ..self.origin };
        if !open.began {
            open.began = true;
            open.first = self.events.len();
            self.events.push(Stamped { position: at(0), event: Event::Began(open.transaction) });
            open.ordinal = 1;
        }
        self.bytes += event.size_bytes() + 24;
        self.events.push(Stamped { position: at(open.ordinal), event });
        open.ordinal = open.ordinal.saturating_add(1).min(u32::MAX - 1);
    }

    /// A schema that holds from here on.
    pub(super) fn push_schema(&mut self, event: Event) {
        self.schema_waits = true;
        if self.open.is_some() { self.push(event) } else { self.push_outside(event) }
    }

    pub(super) fn begin(&mut self, xid: u32, commit_time_us: i64, stamp: u64) -> Result<(), Failure> {
        if self.open.is_some() {
            return Err(out_of_order("a transaction begins inside another one"));
        }
        self.near_xid = visibility::widen(xid, self.near_xid);
        self.open = Some(Open {
            transaction: Transaction { xid: self.near_xid, commit_time_us },
            stamp,
            ordinal: 0,
            began: false,
            dropped: false,
            first: self.events.len(),
            in_parts: false,
        });
        Ok(())
    }

    pub(super) fn commit(&mut self, end: Lsn) -> Result<(), Failure> {
        let open = self.open.take().ok_or_else(|| out_of_order("a commit without a beginning"))?;
        self.seen = self.seen.max(end);
        if !open.began {
            return Ok(());
        }
        for stamped in self.events.get_mut(open.first..).unwrap_or_default() {
            stamped.position.commit = end.0;
        }
        self.events.push(Stamped { position: self.position(end.0), event: Event::Committed });
        self.bytes += 56;
        self.last_part_waits |= open.in_parts;
        self.upto = end;
        Ok(())
    }

    /// Takes one message of a transaction (or a message that stands alone). Relation messages and those of streamed
    /// transactions are the engine's.
    pub(super) fn take(&mut self, message: Message<'_>) -> Result<(), Failure> {
        match message {
            Message::Begin { final_lsn, commit_time_us, xid } => self.begin(xid, commit_time_us, final_lsn.0 + 1),
            Message::Commit { end_lsn } => self.commit(end_lsn),
            Message::Insert { relation, new } => self.change(relation, Op::Insert, None, Some(new)),
            Message::Update { relation, old, new } => self.change(relation, Op::Update, old, Some(new)),
            Message::Delete { relation, kind, old } => self.change(relation, Op::Delete, Some((kind, old)), None),
            Message::Truncate { relations, restart_identity } => self.truncate(&relations, restart_identity),
            Message::Origin { name } => {
                let ours = name == self.own_origin;
                if let Some(open) = &mut self.open {
                    open.dropped |= ours;
                }
                Ok(())
            }
            Message::Logical { transactional, lsn, prefix, content } => {
                self.logical(transactional, lsn, prefix, content);
                Ok(())
            }
            Message::Type => Ok(()),
            Message::Relation(_)
            | Message::StreamStart { .. }
            | Message::StreamStop
            | Message::StreamCommit { .. }
            | Message::StreamAbort { .. } => Err(out_of_order("a message of a streamed transaction")),
        }
    }

    fn change(
        &mut self,
        relation: u32,
        op: Op,
        old: Option<(OldKind, Tuple<'_>)>,
        new: Option<Tuple<'_>>,
    ) -> Result<(), Failure> {
        let Some(open) = &self.open else { return Err(out_of_order("a change outside a transaction")) };
        if open.dropped {
            return Ok(());
        }
        let Some(table) = self.tables.get(&relation) else { return Ok(()) };
        let Some(rules) = table.rules.clone() else {
            return Err(out_of_order("a change of a table whose shape was not sent"));
        };
        let schema = table.schema.clone();
        if self.arena.capacity() < 4096 {
            self.arena.reserve(ARENA_BYTES);
        }
        let mut unchanged = false;
        let new = match new {
            None => None,
            Some(tuple) => {
                unchanged = tuple.write_row(&rules, old, &mut self.arena).map_err(damaged)?;
                Some(self.cut_row()?)
            }
        };
        let old = match old {
            None => None,
            Some((kind, tuple)) => {
                tuple.write_old(kind, &rules, &mut self.arena).map_err(damaged)?;
                Some(self.cut_row()?)
            }
        };
        let change = Change { table: schema.id, schema: schema.version, op, old, new };
        self.push(Event::Changed(change));
        if unchanged && self.resolving.contains_key(&schema.id) {
            let xid = self.xid().unwrap_or_default();
            self.unresolved.push((self.events.len() - 1, xid));
        }
        Ok(())
    }

    fn cut_row(&mut self) -> Result<Row, Failure> {
        Row::parse(self.arena.split().freeze()).map_err(damaged)
    }

    fn truncate(&mut self, relations: &[u32], restart_identity: bool) -> Result<(), Failure> {
        let Some(open) = &self.open else { return Err(out_of_order("a truncate outside a transaction")) };
        let tables: Vec<TableId> =
            relations.iter().filter_map(|relation| self.tables.get(relation)).map(|table| table.schema.id).collect();
        if !open.dropped && !tables.is_empty() {
            self.push(Event::Truncated(Truncate { tables, restart_identity }));
        }
        Ok(())
    }

    fn logical(&mut self, transactional: bool, lsn: Lsn, prefix: &str, content: &[u8]) {
        let ours = prefix.strip_prefix(OURS).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        if !ours {
            return;
        }
        match (&mut self.open, transactional) {
            (Some(open), true) if prefix == OWN => {
                open.dropped |= !open.began && (content.is_empty() || content == self.migration.as_bytes());
            }
            (Some(_), true) if prefix == HEARTBEAT => {}
            (None, false) if prefix == HEARTBEAT => self.seen = self.seen.max(Lsn(lsn.0 + 1)),
            (Some(open), true) if !open.dropped => self.push(Event::Marked(mark(prefix, content))),
            (None, false) => {
                // Its record starts at `lsn`: one further is beyond every commit before and none after.
                self.upto = self.upto.max(Lsn(lsn.0 + 1));
                self.seen = self.seen.max(self.upto);
                self.push_outside(Event::Marked(mark(prefix, content)));
            }
            _ => {}
        }
    }

    /// The server has sent everything up to `end`.
    pub(super) fn keepalive(&mut self, end: Lsn) {
        if self.open.is_none() {
            self.seen = self.seen.max(end);
        }
    }

    /// Where an idle stream stands beyond what was handed over, if it does and nothing is waiting.
    pub(super) fn idle_beyond(&self) -> Option<Lsn> {
        (self.open.is_none() && self.events.is_empty() && self.seen > self.upto).then_some(self.seen)
    }

    /// Moves the position over what concerns none of our tables.
    pub(super) fn push_resolved(&mut self) {
        self.upto = self.seen.max(self.upto);
        self.push_outside(Event::Resolved);
    }

    /// Whether whole transactions are waiting, or a transaction has grown beyond a batch.
    pub(super) fn has_batch(&self) -> bool {
        match &self.open {
            None => !self.events.is_empty(),
            Some(open) if open.in_parts => self.is_full(),
            Some(open) if open.began => open.first > 0 || self.is_full(),
            Some(_) => !self.events.is_empty(),
        }
    }

    /// Takes what is waiting: whole transactions first, else a part of the open one.
    pub(super) fn take_batch(&mut self) -> Option<Batch> {
        let upto = Some(self.position(self.upto.0));
        match &mut self.open {
            Some(open) if open.began && (open.first == 0 || open.in_parts) => {
                if self.bytes < BATCH_BYTES_MAX {
                    return None;
                }
                open.in_parts = true;
                open.first = 0;
                self.bytes = 0;
                self.schema_waits = false;
                Some(Batch { events: taken(&mut self.events), upto: None, whole: false })
            }
            Some(open) if open.began => {
                let rest = self.events.split_off(open.first);
                open.first = 0;
                self.backfill_waits = false;
                self.last_part_waits = false;
                self.schema_waits = rest.iter().any(|stamped| matches!(stamped.event, Event::SchemaSeen(_)));
                self.bytes = rest.iter().map(|stamped| stamped.event.size_bytes() + 24).sum();
                Some(Batch { events: std::mem::replace(&mut self.events, rest), upto, whole: true })
            }
            _ if self.events.is_empty() => None,
            _ => {
                self.bytes = 0;
                self.backfill_waits = false;
                self.schema_waits = false;
                self.last_part_waits = false;
                Some(Batch { events: taken(&mut self.events), upto, whole: true })
            }
        }
    }

    /// Events with unchanged cells that must be looked up before they are handed over. Those of later commits stay, for
    /// what is found may move the bound.
    pub(super) fn take_unresolved(&mut self) -> Vec<(usize, u64)> {
        let (events, resolving) = (&self.events, &self.resolving);
        let is_wanted = |(index, _): &(usize, u64)| {
            let Some(Stamped { position, event: Event::Changed(change) }) = events.get(*index) else { return false };
            resolving.get(&change.table).is_some_and(|until| Lsn(position.commit) <= *until)
        };
        let (wanted, later) = std::mem::take(&mut self.unresolved).into_iter().partition(is_wanted);
        self.unresolved = later;
        wanted
    }

    /// Changes of these tables up to this place must be looked up.
    pub(super) fn resolve_until(&mut self, tables: &[TableId], now: Lsn) {
        for table in tables {
            let until = self.resolving.entry(*table).or_insert(now);
            *until = (*until).max(now);
        }
    }

    /// What is left needs no look.
    pub(super) fn leave_unresolved(&mut self) {
        self.unresolved.clear();
    }

    pub(super) fn event_mut(&mut self, index: usize) -> Option<&mut Event> {
        self.events.get_mut(index).map(|stamped| &mut stamped.event)
    }

    pub(super) fn event(&self, index: usize) -> Option<&Event> {
        self.events.get(index).map(|stamped| &stamped.event)
    }
}

/// Takes all events; the next batch will be about as large, and its room is made at once.
fn taken(events: &mut Vec<Stamped>) -> Vec<Stamped> {
    let room = Vec::with_capacity(events.len());
    std::mem::replace(events, room)
}

fn mark(prefix: &str, content: &[u8]) -> Mark {
    Mark { prefix: prefix.into(), content: Bytes::copy_from_slice(content) }
}

fn out_of_order(what: &'static str) -> Failure {
    damaged(std::io::Error::new(std::io::ErrorKind::InvalidData, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(assembler: &mut Assembler, bytes: usize) {
        let content = vec![b'm'; bytes];
        let prefix = "crossfade.test";
        assembler.take(Message::Logical { transactional: true, lsn: Lsn(1), prefix, content: &content }).unwrap();
    }

    #[test]
    fn nothing_comes_between_the_parts_of_a_transaction_until_its_last_part_is_taken() {
        let mut assembler = Assembler::new(Position::origin(crossfade_event::SourceId(1)), "m", "m".to_owned(), 0);
        for next_begins in [false, true] {
            assembler.begin(7, 0, 101).unwrap();
            take(&mut assembler, BATCH_BYTES_MAX);
            assert!(!assembler.in_parts());
            assert!(!assembler.take_batch().unwrap().whole);
            assert!(assembler.in_parts(), "its end was not read");
            take(&mut assembler, 10);
            assembler.commit(Lsn(120)).unwrap();
            assert!(assembler.in_parts(), "its last part waits");
            if next_begins {
                assembler.begin(8, 0, 130).unwrap();
                take(&mut assembler, 10);
                assert!(assembler.in_parts(), "its last part waits before the next transaction");
            }
            let last = assembler.take_batch().unwrap();
            assert!(last.whole);
            assert_eq!(last.events.len(), 2);
            assert!(!assembler.in_parts());
        }
    }
}
