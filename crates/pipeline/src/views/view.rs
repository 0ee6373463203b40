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
use bytes::Bytes;
use crossfade_event::{
    Cell, Change, Column, Identity, Key, Op, Row, Rows, SchemaVersion, TableId, TableName, TableSchema,
    catalog::Dialect,
};
use crossfade_transform::{LookupView, default_cell};
use std::sync::Arc;

/// What is kept of one row.
#[derive(Debug, Clone)]
struct Kept {
    /// Its cells under which it is looked up.
    key: Row,
    /// Its cells that are taken.
    cells: Row,
}

impl Kept {
    /// Rows with a NULL in the key are found by nothing.
    fn is_found(&self) -> bool {
        self.key.cells().all(|cell| cell != Cell::Null)
    }

    fn to_bytes(&self) -> Bytes {
        [self.key.as_bytes().as_ref(), self.cells.as_bytes().as_ref()].concat().into()
    }
}

/// Where the cells stand in the rows of one schema.
#[derive(Debug, Clone)]
struct Layout {
    of: (TableId, SchemaVersion),
    key: Arc<[Place]>,
    keep: Arc<[Place]>,
}

#[derive(Debug, Clone)]
enum Place {
    Cell(usize),
    /// The column came later: all rows from before read this in it, or NULL.
    Later(Option<Bytes>),
}

/// The columns that are meant by the lookup's names, in the newest version of the table.
#[derive(Debug)]
struct Meant {
    version: SchemaVersion,
    key: Vec<Column>,
    keep: Vec<Column>,
    /// All columns of that version, whatever is kept of them.
    all: Vec<Column>,
}

impl Meant {
    /// The first column that was there already while its values were not kept: it bears a name of the lookup's only now.
    fn not_kept_before(&self, before: &Self) -> Option<&Column> {
        let among = |columns: &[Column], column: &Column| columns.iter().any(|have| have.is_same(column));
        let fresh = |column: &&Column, kept: &[Column]| !among(kept, column) && among(&before.all, column);
        let key = self.key.iter().find(|column| fresh(column, &before.key));
        key.or_else(|| self.keep.iter().find(|column| fresh(column, &before.keep)))
    }
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
        "the name \"{1}\" of {0}, which lookups read, went to another column that was there before, and the values of that one were not kept. Begin again: `crossfade rollback --wipe`, then `crossfade run`"
    )]
    Renamed(TableName, String),
    #[error(
        "a change of {0}, which lookups read, came without all of its values, and the log does not have the row from before. Give the table `REPLICA IDENTITY FULL`, and begin again"
    )]
    Partial(TableName),
    #[error(
        "rows of {0}, which lookups read, from before its column \"{1}\" cannot be given what they read in it: its default is no constant that can be read. Take the table in anew: exclude it, run, and add it again with `crossfade resume --add`"
    )]
    Constant(TableName, String),
}

/// One view.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) number: u32,
    table: TableName,
    native_id: u32,
    key: Vec<String>,
    keep: Vec<String>,
    dialect: Dialect,
    /// What these names mean, once a schema said so.
    meant: Option<Meant>,
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
    pub(crate) fn new(lookup: &LookupView, dialect: Dialect, shelf: &Arc<Shelf>) -> Self {
        Self {
            number: lookup.view,
            table: lookup.table.clone(),
            native_id: 0,
            key: lookup.key.clone(),
            keep: lookup.keep.clone(),
            dialect,
            meant: None,
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

    /// Follows a schema of its table: where a name means another column than before, the rows that are kept hold what they
    /// read in that one, which came after them.
    pub(crate) fn follow(&mut self, schema: &TableSchema) -> Result<(), ViewError> {
        if self.meant.as_ref().is_some_and(|meant| meant.version >= schema.version) {
            return Ok(());
        }
        let columns = |names: &[String]| -> Option<Vec<Column>> {
            names.iter().map(|name| Some(schema.columns.get(schema.column_index(name)?)?.clone())).collect()
        };
        // What is missing is said when a row comes.
        let (Some(key), Some(keep)) = (columns(&self.key), columns(&self.keep)) else { return Ok(()) };
        let meant = Meant { version: schema.version, key, keep, all: schema.columns.to_vec() };
        self.layout = None;
        let Some(before) = self.meant.replace(meant).filter(|_| !self.rows.is_empty()) else { return Ok(()) };
        let Some(now) = &self.meant else { return Ok(()) };
        if let Some(column) = now.not_kept_before(&before) {
            return Err(ViewError::Renamed(self.table.clone(), column.name.to_string()));
        }
        let key = self.places(&now.key, &before.key)?;
        let keep = self.places(&now.keep, &before.keep)?;
        let stays = |places: &[Place]| {
            places.iter().enumerate().all(|(at, place)| matches!(place, Place::Cell(was) if *was == at))
        };
        if stays(&key) && stays(&keep) {
            return Ok(());
        }
        let Some(by_key) = &mut self.by_key else {
            // Its key is the table's own, which is looked at with the next row.
            let kept =
                |cells| pick(&row_of(cells), &keep, None, None).map_or_else(Bytes::new, |row| row.as_bytes().clone());
            return Ok(self.rows.change_all(|_, cells| Ok(kept(cells)))?);
        };
        by_key.clear()?;
        let changed = |own: &[u8], value: Bytes| {
            let mut rows = Rows::new(value.clone()).map_while(Result::ok);
            let kept = rows.next().zip(rows.next());
            let now = kept.and_then(|(old_key, cells)| {
                Some(Kept { key: pick(&old_key, &key, None, None)?, cells: pick(&cells, &keep, None, None)? })
            });
            let Some(now) = now else { return Ok(value) };
            if now.is_found() {
                by_key.put(now.key.as_bytes(), &Bytes::copy_from_slice(own))?;
            }
            Ok(now.to_bytes())
        };
        Ok(self.rows.change_all(changed)?)
    }

    fn layout(&mut self, schema: &TableSchema) -> Result<Layout, ViewError> {
        let of = (schema.id, schema.version);
        if let Some(layout) = self.layout.as_ref().filter(|layout| layout.of == of) {
            return Ok(layout.clone());
        }
        self.settle(schema)?;
        self.follow(schema)?;
        let Some(meant) = &self.meant else { return Err(ViewError::Column(self.table.clone())) };
        let (key, keep) = (self.places(&meant.key, &schema.columns)?, self.places(&meant.keep, &schema.columns)?);
        Ok(self.layout.insert(Layout { of, key, keep }).clone())
    }

    /// Where columns stand among others.
    fn places(&self, columns: &[Column], among: &[Column]) -> Result<Arc<[Place]>, ViewError> {
        let place = |column: &Column| match among.iter().position(|have| have.is_same(column)) {
            Some(at) => Ok(Place::Cell(at)),
            None => default_cell(self.dialect, column)
                .map(Place::Later)
                .ok_or_else(|| ViewError::Constant(self.table.clone(), column.name.to_string())),
        };
        columns.iter().map(place).collect()
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
        if kept.is_found() {
            by_key.put(kept.key.as_bytes(), own.as_bytes())?;
        }
        self.rows.put(own.as_bytes(), &kept.to_bytes())
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

/// The cells of these places; one that is unchanged is taken from the old image, or from what was kept before. `None`
/// when one is not to be had.
fn pick(row: &Row, places: &[Place], old: Option<&Row>, before: Option<&Row>) -> Option<Row> {
    let cells: Vec<Cell<'_>> = row.cells().collect();
    let old: Option<Vec<Cell<'_>>> = old.map(|row| row.cells().collect());
    let before: Option<Vec<Cell<'_>>> = before.map(|row| row.cells().collect());
    places
        .iter()
        .enumerate()
        .map(|(nth, place)| match place {
            Place::Later(constant) => Some(constant.as_deref().map_or(Cell::Null, Cell::Bytes)),
            Place::Cell(at) => match cells.get(*at)? {
                Cell::Absent => None,
                Cell::Unchanged => match old.as_ref().and_then(|old| old.get(*at)) {
                    Some(cell @ (Cell::Null | Cell::Bytes(_))) => Some(*cell),
                    _ => before.as_ref()?.get(nth).copied(),
                },
                cell => Some(*cell),
            },
        })
        .collect()
}
