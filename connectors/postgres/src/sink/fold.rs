//! From changes in order to one final change per key.
//!
//! Where the rows have no key but themselves, the order does not matter either: two equal rows cannot be told apart,
//! so what counts is how many copies of each came and went.

use super::{
    held::{Held, Why},
    table::Table,
};
use crossfade_connector::WriteMode;
use crossfade_event::{Cell, Change, Identity, Key, Op, Row, Sequence, Version};
use std::collections::{HashMap, HashSet, hash_map::Entry};

/// A change on its way.
#[derive(Debug, Clone)]
pub(super) struct Unit {
    pub(super) at: Version,
    /// Index into the sink's tables.
    pub(super) table: usize,
    pub(super) change: Change,
}

/// What is to become of a key.
#[derive(Debug, Clone)]
pub(super) enum Final {
    /// The row was not there before.
    Insert(Row),
    /// The row is written whole; it was probably there before.
    Put(Row),
    /// Some cells are written, the row must be there.
    Patch(Row),
    /// The row goes.
    Gone,
}

/// One key and what is to become of it.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) key: Key,
    pub(super) to: Final,
}

/// The final changes of one table.
#[derive(Debug, Default)]
pub(super) struct Folded {
    /// By key, in the order in which the keys first came.
    pub(super) slots: Vec<Slot>,
    index: HashMap<Key, usize, foldhash::fast::RandomState>,
    /// Rows without a key: how many copies more (or fewer).
    pub(super) copies: Vec<(Row, i64)>,
    copy_index: HashMap<Row, usize>,
    /// Insert-only rows.
    pub(super) appended: Vec<Row>,
    /// All rows are taken away and come again: two of them exchange what must be unique.
    pub(super) anew: bool,
    /// The columns whose values all rows give up first, for the same reason.
    pub(super) freed: Vec<String>,
}

/// An update that changes the key and must be written alone, for it needs the row as it stands: a partial one, and any of a
/// row with columns that are not ours.
pub(super) fn is_move(table: &Table, change: &Change) -> bool {
    change.op == Op::Update
        && change.old.is_some()
        && table.target.schema.identity == Identity::Key
        && change.replaced_key(&table.target.schema).is_some()
        && change
            .new
            .as_ref()
            .is_some_and(|new| !table.beside.is_empty() || !is_whole(&filled(new, change.old.as_ref())))
}

pub(super) fn is_whole(row: &Row) -> bool {
    row.cells().all(|cell| !matches!(cell, Cell::Unchanged | Cell::Absent))
}

/// The new image with what the old one knows of its unchanged cells.
fn filled(new: &Row, old: Option<&Row>) -> Row {
    match old {
        Some(old) if !is_whole(new) => merged(new, old),
        _ => new.clone(),
    }
}

/// `later` with the cells of `earlier` where it has none.
pub(super) fn merged(later: &Row, earlier: &Row) -> Row {
    later
        .cells()
        .zip(earlier.cells())
        .map(|(later, earlier)| match (later, earlier) {
            (Cell::Unchanged | Cell::Absent, Cell::Absent) => Cell::Unchanged,
            (Cell::Unchanged | Cell::Absent, earlier) => earlier,
            (later, _) => later,
        })
        .collect()
}

/// What a fold gives: the tables that are touched, and the changes that must wait.
pub(super) struct Fold<'u> {
    pub(super) tables: Vec<Option<Folded>>,
    pub(super) held: Vec<(&'u Unit, Why)>,
    pub(super) applied: u64,
}

/// Folds changes in order. Held keys are left out, and the keys that wait behind them join them.
///
/// A row whose new key belongs to another row already, as the mapping table said just before (`collided`), would overwrite
/// that one: it waits, and so does whatever comes for this new key.
pub(super) fn fold<'u>(
    units: &'u [Unit],
    tables: &[Table],
    held: &mut Held,
    collided: &HashSet<(Sequence, u32)>,
) -> Fold<'u> {
    let mut fold = Fold { tables: Vec::new(), held: Vec::new(), applied: 0 };
    fold.tables.resize_with(tables.len(), || None);
    for unit in units {
        let Some(table) = tables.get(unit.table) else { continue };
        let mapping = collided.contains(&(unit.at.sequence, unit.at.ordinal)).then_some(Why::Mapping);
        if mapping.is_some() {
            held.hold(table, &unit.change);
        }
        if let Some(why) = mapping.or_else(|| held.check(table, &unit.change)) {
            fold.held.push((unit, why));
            continue;
        }
        fold.applied += 1;
        if let Some(slot) = fold.tables.get_mut(unit.table) {
            slot.get_or_insert_default().take(table, &unit.change);
        }
    }
    fold
}

impl Folded {
    fn take(&mut self, table: &Table, change: &Change) {
        match table.target.schema.identity {
            Identity::Key => self.by_key(table, change),
            Identity::FullRow => {
                if let Some(old) = &change.old {
                    self.copy(old, -1);
                }
                if let Some(new) = &change.new {
                    self.copy(&filled(new, change.old.as_ref()), 1);
                }
            }
            Identity::InsertOnly => self.appended.extend(change.new.clone()),
        }
    }

    fn copy(&mut self, row: &Row, count: i64) {
        match self.copy_index.get(row) {
            Some(index) => {
                if let Some((_, total)) = self.copies.get_mut(*index) {
                    *total += count;
                }
            }
            None => {
                self.copy_index.insert(row.clone(), self.copies.len());
                self.copies.push((row.clone(), count));
            }
        }
    }

    fn by_key(&mut self, table: &Table, change: &Change) {
        let schema = &table.target.schema;
        if table.target.mode == WriteMode::InsertOnce {
            // The first key that was drawn stays, also when its row goes: it is needed again if the row comes again.
            let new = change.new.as_ref().filter(|_| change.op != Op::Delete);
            if let (Some(new), Some(key)) = (new, change.key(schema)) {
                self.set(key, |before| before.cloned().unwrap_or_else(|| Final::Insert(new.clone())));
            }
            return;
        }
        if let Some(before) = change.replaced_key(schema) {
            self.set(before, |_| Final::Gone);
        }
        let Some(key) = change.key(schema) else { return };
        match (&change.op, &change.new) {
            (Op::Delete, _) | (_, None) => self.set(key, |_| Final::Gone),
            (Op::Insert, Some(new)) => self.set(key, |before| match before {
                None => Final::Insert(new.clone()),
                Some(_) => Final::Put(new.clone()),
            }),
            (Op::Update, Some(new)) => {
                let new = filled(new, change.old.as_ref());
                let moved = change.old.is_some() && change.replaced_key(schema).is_some();
                self.set(key, |before| patched(new, before, moved));
            }
        }
    }

    fn set(&mut self, key: Key, to: impl FnOnce(Option<&Final>) -> Final) {
        match self.index.entry(key) {
            Entry::Occupied(at) => {
                if let Some(slot) = self.slots.get_mut(*at.get()) {
                    slot.to = to(Some(&slot.to));
                }
            }
            Entry::Vacant(at) => {
                let key = at.key().clone();
                at.insert(self.slots.len());
                self.slots.push(Slot { key, to: to(None) });
            }
        }
    }
}

/// An update on top of what the key was to become.
fn patched(new: Row, before: Option<&Final>, moved: bool) -> Final {
    match before {
        Some(Final::Insert(earlier)) => Final::Insert(merged(&new, earlier)),
        Some(Final::Put(earlier)) => Final::Put(merged(&new, earlier)),
        Some(Final::Patch(earlier)) => whole_or_patch(merged(&new, earlier)),
        // A row that moves to a key nobody has is new there.
        None if moved && is_whole(&new) => Final::Insert(new),
        Some(Final::Gone) | None => whole_or_patch(new),
    }
}

fn whole_or_patch(row: Row) -> Final {
    if is_whole(&row) { Final::Put(row) } else { Final::Patch(row) }
}
