//! Keys that wait: an earlier change of theirs is in quarantine.

use super::table::{Parent, Table};
use crossfade_event::{Cell, Change, Format, Key, Logical, Op, Row, TableId};
use std::collections::{HashMap, HashSet};

/// The held keys of each table, with a way back for an attempt that is rolled back.
#[derive(Debug, Default)]
pub(super) struct Held {
    keys: HashMap<TableId, HashSet<Key>>,
    log: Vec<(TableId, Key)>,
}

/// Why a change is not tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// An earlier change of its key is in quarantine.
    Key,
    /// Its parent's row is.
    Parent,
    /// Its own row of the mapping table is: its new key is another row's.
    Mapping,
}

impl Held {
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub(super) fn has(&self, table: TableId) -> bool {
        self.keys.contains_key(&table)
    }

    pub(super) fn add(&mut self, table: TableId, key: Key) {
        if self.keys.entry(table).or_default().insert(key.clone()) {
            self.log.push((table, key));
        }
    }

    /// The keys of one table, in an order of their own that is always the same.
    pub(super) fn of(&self, table: TableId) -> Vec<Key> {
        let mut keys: Vec<Key> = self.keys.get(&table).into_iter().flatten().cloned().collect();
        keys.sort_unstable_by(|one, other| one.as_bytes().cmp(other.as_bytes()));
        keys
    }

    /// Lets keys go, for their changes to be tried again.
    pub(super) fn release(&mut self, keys: &HashSet<(TableId, &Key)>) {
        for (table, key) in keys {
            if let Some(held) = self.keys.get_mut(table) {
                held.remove(*key);
                if held.is_empty() {
                    self.keys.remove(table);
                }
            }
        }
        self.log.clear();
    }

    /// A place to which [`Held::rewind`] goes back.
    pub(super) fn mark(&self) -> usize {
        self.log.len()
    }

    pub(super) fn rewind(&mut self, mark: usize) {
        for (table, key) in self.log.drain(mark.min(self.log.len())..) {
            if let Some(keys) = self.keys.get_mut(&table) {
                keys.remove(&key);
                if keys.is_empty() {
                    self.keys.remove(&table);
                }
            }
        }
    }

    /// Whether a change must wait; then its keys are held as well.
    pub(super) fn check(&mut self, table: &Table, change: &Change) -> Option<Why> {
        if self.is_empty() {
            return None;
        }
        let schema = &table.target.schema;
        let own: Vec<Key> = change.key(schema).into_iter().chain(change.replaced_key(schema)).collect();
        let why = if own.iter().any(|key| self.keys.get(&schema.id).is_some_and(|held| held.contains(key))) {
            Why::Key
        } else if change.op != Op::Delete && change.new.as_ref().is_some_and(|row| self.parent_held(table, row)) {
            Why::Parent
        } else {
            return None;
        };
        for key in own {
            self.add(schema.id, key);
        }
        Some(why)
    }

    /// Makes the keys of a change wait.
    pub(super) fn hold(&mut self, table: &Table, change: &Change) {
        let schema = &table.target.schema;
        for key in change.key(schema).into_iter().chain(change.replaced_key(schema)) {
            self.add(schema.id, key);
        }
    }

    fn parent_held(&self, table: &Table, row: &Row) -> bool {
        table.parents.iter().any(|parent| {
            parent.table != table.id()
                && self.keys.get(&parent.table).is_some_and(|held| {
                    parent_key(table, parent, row).is_some_and(|key| held.iter().any(|held| same_key(held, &key)))
                })
        })
    }
}

/// The cells by which a row names its parent; `None` when one is NULL or not sent.
fn parent_key(table: &Table, parent: &Parent, row: &Row) -> Option<Vec<Vec<u8>>> {
    let cells: Vec<Cell<'_>> = row.cells().collect();
    parent
        .columns
        .iter()
        .map(|index| {
            let type_ = &table.target.schema.columns.get(*index)?.type_;
            let Cell::Bytes(bytes) = cells.get(*index)? else { return None };
            let is_int = matches!(type_.logical, Logical::Int16 | Logical::Int32 | Logical::Int64);
            Some(if is_int && type_.format == Format::PgBinary { trimmed(bytes) } else { bytes.to_vec() })
        })
        .collect()
}

/// Whether a held key is the one that a row names; integers of two widths may be one number.
fn same_key(held: &Key, wanted: &[Vec<u8>]) -> bool {
    held.cells().len() == wanted.len()
        && held.cells().zip(wanted).all(|(cell, wanted)| match cell {
            Cell::Bytes(bytes) => {
                bytes == wanted.as_slice() || (matches!(bytes.len(), 2 | 4 | 8) && trimmed(bytes) == *wanted)
            }
            _ => false,
        })
}

/// A big-endian integer without the bytes that only repeat its sign.
fn trimmed(bytes: &[u8]) -> Vec<u8> {
    let mut rest = bytes;
    while let [first, second, ..] = rest {
        let sign = if second & 0x80 == 0 { 0 } else { 0xff };
        if *first != sign {
            break;
        }
        rest = rest.get(1..).unwrap_or_default();
    }
    rest.to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_of_two_widths_are_one_number() {
        for number in [0i16, 1, -1, 127, 128, -128, -129, 300, i16::MIN, i16::MAX] {
            assert_eq!(trimmed(&number.to_be_bytes()), trimmed(&i64::from(number).to_be_bytes()), "{number}");
        }
        assert_ne!(trimmed(&255i32.to_be_bytes()), trimmed(&(-1i32).to_be_bytes()));
    }

    #[test]
    fn a_rolled_back_attempt_holds_nothing() {
        let key = |number: u8| Key::from([Cell::Bytes(&[number])].into_iter().collect::<Row>());
        let mut held = Held::default();
        held.add(TableId(1), key(1));
        let mark = held.mark();
        held.add(TableId(1), key(2));
        held.add(TableId(2), key(1));
        held.rewind(mark);
        assert!(held.has(TableId(1)) && !held.has(TableId(2)));
        assert!(!held.keys[&TableId(1)].contains(&key(2)));
    }
}
