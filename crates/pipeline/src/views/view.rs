//! One view: the rows of one source table that a lookup reads, found by the lookup's key.
//!
//! A row is known by its own identity, for that is what an old image is sure to carry: a row is looked up by its code,
//! deleted by its id. Where both are the same columns one map does; else a second one leads from the lookup's key to
//! the row.
//!
//! ```text
//!  same columns:    key ──▶ kept cells
//!  else:            key ──▶ identity ──▶ key, kept cells
//! ```

use super::store::{ScratchError, Shelf, Store};
use bytes::{Bytes, BytesMut};
use crossfade_event::{Cell, Change, Identity, Key, Op, Row, Rows, SchemaVersion, TableId, TableName, TableSchema};
use crossfade_transform::LookupView;
use std::sync::Arc;

/// What is kept of one row.
#[derive(Debug, Clone)]
struct Kept {
    /// Its cells under which it is looked up.
    key: Row,
    /// Its cells that are taken.
    cells: Row,
}

/// Where the cells stand in the rows of one schema.
#[derive(Debug, Clone)]
struct Layout {
    of: (TableId, SchemaVersion),
    key: Arc<[usize]>,
    keep: Arc<[usize]>,
}

/// Why a view cannot follow its table.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ViewError {
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    #[error(
        "{0}, which lookups read, tells its rows apart by other columns than before, so the rows kept of it cannot be found again. Set its replica identity back, or begin again: `crossfade rollback --wipe`, then `crossfade run`"
    )]
    Identity(TableName),
    #[error(
        "{0}, which lookups read, lost a column that they need; take the column out of the spec's lookup, or put it back"
    )]
    Column(TableName),
    #[error(
        "a change of {0}, which lookups read, came without all of its values, and the log does not have the row from before. Give the table `REPLICA IDENTITY FULL`, and begin again"
    )]
    Partial(TableName),
}

/// One view.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) number: u32,
    table: TableName,
    native_id: u32,
    key: Vec<String>,
    keep: Vec<String>,
    /// The columns that tell rows apart, once a schema said so.
    identity: Option<Vec<(u32, String)>>,
    layout: Option<Layout>,
    /// By the row's own identity.
    rows: Store,
    /// From the lookup's key to the identity; `None` where they are the same.
    by_key: Option<Store>,
    shelf: Arc<Shelf>,
}

impl View {
    pub(crate) fn new(lookup: &LookupView, shelf: &Arc<Shelf>) -> Self {
        Self {
            number: lookup.view,
            table: lookup.table.clone(),
            native_id: 0,
            key: lookup.key.clone(),
            keep: lookup.keep.clone(),
            identity: None,
            layout: None,
            rows: Store::new(format!("rows-{}", lookup.view), shelf.clone()),
            by_key: None,
            shelf: shelf.clone(),
        }
    }

    /// Whether it is still what the plan asks for.
    pub(crate) fn is_of(&self, lookup: &LookupView) -> bool {
        self.number == lookup.view && self.table == lookup.table && self.key == lookup.key && self.keep == lookup.keep
    }

    /// Whether rows of this table go into it; a table keeps its view through a rename.
    pub(crate) fn reads(&self, schema: &TableSchema) -> bool {
        self.table == schema.name || (self.native_id != 0 && self.native_id == schema.native_id)
    }

    pub(crate) fn get(&self, key: &Key) -> Result<Option<Row>, ScratchError> {
        let Some(by_key) = &self.by_key else { return Ok(self.rows.get(key.as_bytes())?.map(row_of)) };
        let Some(own) = by_key.get(key.as_bytes())? else { return Ok(None) };
        Ok(self.kept(&own)?.map(|kept| kept.cells))
    }

    pub(crate) fn clear(&mut self) -> Result<(), ScratchError> {
        self.rows.clear()?;
        self.by_key.as_mut().map_or(Ok(()), Store::clear)
    }

    /// Takes in one change.
    pub(crate) fn observe(&mut self, schema: &TableSchema, change: &Change) -> Result<(), ViewError> {
        let Layout { key: key_places, keep: keep_places, .. } = self.layout(schema)?;
        let own = |row: &Row| match &self.by_key {
            None => pick(row, &key_places, None, None),
            Some(_) => schema.key_of(row).map(|key| row_of(key.as_bytes().clone())),
        };
        let old = change.old.as_ref().filter(|_| change.op != Op::Insert);
        let own_before = match (old.and_then(own), &change.new) {
            (Some(before), _) => Some(before),
            (None, Some(new)) => own(new),
            (None, None) => None,
        };
        let before = match &own_before {
            Some(own) => self.kept(own.as_bytes())?,
            None => None,
        };
        let Some(new) = &change.new else {
            return Ok(self.forget(own_before.as_ref(), before.as_ref())?);
        };
        let key = pick(new, &key_places, old, before.as_ref().map(|before| &before.key));
        let cells = pick(new, &keep_places, old, before.as_ref().map(|before| &before.cells));
        let own_now = match &self.by_key {
            None => key.clone(),
            Some(_) => own(new).or_else(|| own_before.clone()),
        };
        let (Some(own_now), Some(key), Some(cells)) = (own_now, key, cells) else {
            return Err(ViewError::Partial(self.table.clone()));
        };
        if before.is_some() {
            self.forget(own_before.as_ref(), before.as_ref())?;
        }
        Ok(self.put(&own_now, &Kept { key, cells })?)
    }

    fn layout(&mut self, schema: &TableSchema) -> Result<Layout, ViewError> {
        let of = (schema.id, schema.version);
        if let Some(layout) = self.layout.as_ref().filter(|layout| layout.of == of) {
            return Ok(layout.clone());
        }
        self.settle(schema)?;
        let places = |names: &[String]| -> Result<Arc<[usize]>, ViewError> {
            let places = names.iter().map(|name| schema.column_index(name)).collect::<Option<_>>();
            places.ok_or_else(|| ViewError::Column(self.table.clone()))
        };
        let layout = Layout { of, key: places(&self.key)?, keep: places(&self.keep)? };
        Ok(self.layout.insert(layout).clone())
    }

    /// Learns how the table tells its rows apart; that must not change while there are rows.
    fn settle(&mut self, schema: &TableSchema) -> Result<(), ViewError> {
        let of_key = schema.key_columns();
        let own: Vec<(u32, String)> = of_key
            .iter()
            .filter_map(|index| schema.columns.get(*index))
            .map(|column| (column.native_id, column.name.to_string()))
            .collect();
        let is_known = self.identity.as_ref().is_some_and(|known| {
            known.len() == own.len()
                && known.iter().zip(&own).all(|(a, b)| if a.0 != 0 { a.0 == b.0 } else { a.1 == b.1 })
        });
        if is_known {
            return Ok(());
        }
        if !self.rows.is_empty() {
            return Err(ViewError::Identity(self.table.clone()));
        }
        let mut names: Vec<&str> = own.iter().map(|(_, name)| name.as_str()).collect();
        let mut key: Vec<&str> = self.key.iter().map(String::as_str).collect();
        names.sort_unstable();
        key.sort_unstable();
        // Without a key an old image is whole, so the lookup's own key is always in it.
        let apart = schema.identity == Identity::Key && names != key;
        self.by_key = apart.then(|| Store::new(format!("by-key-{}", self.number), self.shelf.clone()));
        self.identity = Some(own);
        if self.table == schema.name {
            self.native_id = schema.native_id;
        }
        Ok(())
    }

    fn kept(&self, own: &[u8]) -> Result<Option<Kept>, ScratchError> {
        let Some(value) = self.rows.get(own)? else { return Ok(None) };
        if self.by_key.is_none() {
            return Ok(Some(Kept { key: row_of(Bytes::copy_from_slice(own)), cells: row_of(value) }));
        }
        let mut rows = Rows::new(value).map_while(Result::ok);
        Ok(rows.next().zip(rows.next()).map(|(key, cells)| Kept { key, cells }))
    }

    fn put(&mut self, own: &Row, kept: &Kept) -> Result<(), ScratchError> {
        let Some(by_key) = &mut self.by_key else { return self.rows.put(own.as_bytes(), kept.cells.as_bytes()) };
        // Rows with a NULL in the key are found by nothing.
        if kept.key.cells().all(|cell| cell != Cell::Null) {
            by_key.put(kept.key.as_bytes(), own.as_bytes())?;
        }
        let mut value = BytesMut::with_capacity(kept.key.as_bytes().len() + kept.cells.as_bytes().len());
        value.extend_from_slice(kept.key.as_bytes());
        value.extend_from_slice(kept.cells.as_bytes());
        self.rows.put(own.as_bytes(), &value.freeze())
    }

    fn forget(&mut self, own: Option<&Row>, kept: Option<&Kept>) -> Result<(), ScratchError> {
        let Some(own) = own else { return Ok(()) };
        if let (Some(by_key), Some(kept)) = (&mut self.by_key, kept) {
            // Two rows may swap their keys within a transaction: what leads to the other one stays.
            if by_key.get(kept.key.as_bytes())?.as_ref() == Some(own.as_bytes()) {
                by_key.remove(kept.key.as_bytes())?;
            }
        }
        self.rows.remove(own.as_bytes())
    }
}

/// Bytes that were a row when they were put in.
fn row_of(bytes: Bytes) -> Row {
    Row::parse(bytes).unwrap_or_else(|_| std::iter::empty::<Cell<'_>>().collect())
}

/// The cells at these places; one that is unchanged is taken from the old image, or from what was kept before. `None`
/// when one is not to be had.
fn pick(row: &Row, places: &[usize], old: Option<&Row>, before: Option<&Row>) -> Option<Row> {
    let cells: Vec<Cell<'_>> = row.cells().collect();
    let old: Option<Vec<Cell<'_>>> = old.map(|row| row.cells().collect());
    let before: Option<Vec<Cell<'_>>> = before.map(|row| row.cells().collect());
    places
        .iter()
        .enumerate()
        .map(|(nth, place)| match cells.get(*place)? {
            Cell::Absent => None,
            Cell::Unchanged => match old.as_ref().and_then(|old| old.get(*place)) {
                Some(cell @ (Cell::Null | Cell::Bytes(_))) => Some(*cell),
                _ => before.as_ref()?.get(nth).copied(),
            },
            cell => Some(*cell),
        })
        .collect()
}
