//! Whole source transactions, put together from the topic of their marks and the tables' topics.
//!
//! The end of a transaction says how many changes it has in each table. Within a partition a transaction's changes stand
//! together, in the order of commits; so one that is of another, later transaction is the sign that no more will come.

use super::{
    envelope::{self, Ended as TransactionEnded},
    follow::{Follower, LOOK, Step},
    note::lost,
    record::{Moved, Record, What},
};
use crossfade_event::{Event, Transaction};
use std::collections::{HashSet, VecDeque};

/// So many transactions are remembered, to know those that the connector sends again.
pub(super) const REMEMBERED: usize = 65_536;

/// Bytes of a transaction that are put in order at once; a larger one is taken in parts.
const PART_BYTES: usize = 8 << 20;

/// Transactions that are complete, the latest of them.
#[derive(Debug, Default)]
pub(super) struct Done {
    known: HashSet<u64>,
    order: VecDeque<u64>,
}

impl Done {
    pub(super) fn insert(&mut self, xid: u64) {
        if self.known.insert(xid) {
            self.order.push_back(xid);
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    pub(super) fn contains(&self, xid: u64) -> bool {
        self.known.contains(&xid)
    }
}

/// A transaction that is being put together.
struct Open {
    xid: u64,
    transaction: Transaction,
    /// Place in the transaction, partition, change.
    changes: Vec<(u64, usize, Box<Moved>)>,
    bytes: usize,
    begun: bool,
}

/// What the next record of a partition means for a transaction.
enum Next {
    Taken,
    Other,
    NotYet,
}

impl Follower {
    /// Hands over one transaction, whose end was read.
    pub(super) fn transaction(&mut self, ended: &TransactionEnded) -> Step {
        if self.done.contains(ended.xid) {
            return Ok(());
        }
        if self.note.commit.is_some_and(|commit| ended.lsn.is_some_and(|lsn| lsn <= commit)) {
            return Err(lost(format!(
                "the history goes back: transaction {} ended before one that was read earlier. The database was restored, or another one writes into the same topics",
                ended.xid
            ))
            .into());
        }
        let transaction = Transaction { xid: ended.xid, commit_time_us: ended.time_us };
        let mut open = Open { xid: ended.xid, transaction, changes: Vec::new(), bytes: 0, begun: false };
        for (name, count) in &ended.counts {
            if let Some(table) = self.tables.iter().position(|table| table.name == *name) {
                self.collect(&mut open, table, *count)?;
            }
        }
        self.emit(&mut open, true)?;
        if open.begun {
            self.out.push(Event::Committed);
        }
        self.note.commit = ended.lsn.or(self.note.commit);
        self.done.insert(ended.xid);
        Ok(())
    }

    /// Takes so many changes of one table.
    fn collect(&mut self, open: &mut Open, table: usize, count: u64) -> Step {
        let parts: Vec<usize> = (0..self.parts.len())
            .filter(|at| self.parts.get(*at).is_some_and(|part| part.table == Some(table)))
            .collect();
        let (mut taken, mut waited) = (0, 0);
        while taken < count {
            let mut others = 0;
            let mut moved = false;
            for at in &parts {
                while taken < count {
                    match self.next_of(open, *at, &mut taken)? {
                        Next::Taken => moved = true,
                        Next::Other => {
                            others += 1;
                            break;
                        }
                        Next::NotYet => break,
                    }
                }
            }
            if open.bytes >= PART_BYTES {
                self.emit(open, false)?;
            }
            if moved {
                waited = 0;
                continue;
            }
            if others == parts.len() && taken < count {
                let name = self.tables.get(table).map(|table| table.name.clone()).unwrap_or_default();
                return Err(lost(format!(
                    "transaction {} has {count} changes of {name} by the word of the topic of transactions, and {taken} of them are in the table's topic",
                    open.xid
                ))
                .into());
            }
            // Its end is written, so its changes are on their way.
            for at in &parts {
                if self.parts.get(*at).is_some_and(|part| part.head.is_none()) {
                    self.poll(*at, LOOK)?;
                    waited += 1;
                    self.still_there(*at, waited)?;
                }
            }
        }
        Ok(())
    }

    /// Takes the next record of a partition if it is of the transaction.
    fn next_of(&mut self, open: &mut Open, at: usize, taken: &mut u64) -> Step<Next> {
        let has_head = self.parts.get(at).is_some_and(|part| part.head.is_some());
        if !has_head && !self.poll(at, std::time::Duration::ZERO)? {
            return Ok(Next::NotYet);
        }
        let waits_for = self.waits_for(at);
        if waits_for.is_some_and(|xid| xid != open.xid && !self.done.contains(xid)) {
            return Ok(Next::Other);
        }
        let Some(Record { what: What::Change(moved), bytes, .. }) = self.take(at) else { return Ok(Next::Taken) };
        match (waits_for, &moved.change.block) {
            (Some(xid), Some(block)) if xid == open.xid => {
                let Some(part) = self.parts.get_mut(at) else { return Ok(Next::Taken) };
                let here = (xid, block.total_order);
                // Sent twice: a connector that was killed goes on from where it knows that it was.
                if part.last.0 == xid && part.last.1 >= here.1 {
                    return Ok(Next::Taken);
                }
                part.last = here;
                *taken += 1;
                open.bytes += bytes;
                open.changes.push((here.1, at, moved));
            }
            // Of a transaction that is complete.
            (Some(_), _) => {}
            // A row that an incremental snapshot read meanwhile keeps its place in its partition.
            (None, _) => {
                let order = open.changes.iter().rev().find(|(_, part, _)| *part == at).map_or(0, |(order, ..)| *order);
                open.bytes += bytes;
                open.changes.push((order, at, moved));
            }
        }
        Ok(Next::Taken)
    }

    /// Hands over what was put together; all of it, or what need not wait for the next part.
    fn emit(&mut self, open: &mut Open, all: bool) -> Step {
        let mut changes = std::mem::take(&mut open.changes);
        open.bytes = 0;
        changes.sort_by_key(|(order, ..)| *order);
        if !all && changes.last().is_some_and(|(_, _, moved)| moved.goes) {
            open.changes.extend(changes.pop());
        }
        let mut rest = changes.into_iter().peekable();
        while let Some((_, at, moved)) = rest.next() {
            let comes = |(_, other, next): &(u64, usize, Box<Moved>)| next.comes && self.same_table(at, *other);
            let pair = if moved.goes { rest.next_if(comes) } else { None };
            let events = match &pair {
                Some((_, _, next)) => self.events(at, &[&moved, next])?,
                None => self.events(at, &[&moved])?,
            };
            for event in events {
                if !open.begun {
                    self.out.push(Event::Began(open.transaction));
                    open.begun = true;
                }
                self.out.push(event);
            }
            if self.out.is_full() && open.begun {
                self.out.part()?;
            }
        }
        Ok(())
    }

    fn same_table(&self, one: usize, other: usize) -> bool {
        let table = |at: usize| self.parts.get(at).and_then(|part| part.table);
        table(one) == table(other)
    }
}

/// The transactions whose ends are in these records of the topic of marks.
pub(super) fn ended(value: &[u8]) -> Option<u64> {
    match envelope::mark(value) {
        Ok(envelope::Marked::Ended(ended)) => Some(ended.xid),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_transactions_are_remembered_and_the_oldest_forgotten() {
        let mut done = Done::default();
        for xid in 0..REMEMBERED as u64 + 10 {
            done.insert(xid);
            done.insert(xid);
        }
        assert!(!done.contains(9) && done.contains(10) && done.contains(REMEMBERED as u64 + 9));
        assert_eq!(done.order.len(), done.known.len());
    }
}
