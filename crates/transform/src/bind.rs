//! A plan joined with one schema as seen in the log: what turns a change of the source into changes of the target.

use crate::{
    cast::carry,
    plan::TablePlan,
    predicate::Truth,
    program::{From, Made, NOT_SENT, Reg, Run},
};
use bytes::BytesMut;
use crossfade_event::{
    Cell, Change, ColumnType, Format, Identity, Key, Logical, Op, Row, RowBuilder, SchemaVersion, TableId, TableSchema,
    Value, codec,
};
use std::sync::Arc;

const NO_OLD_ROW: &str = "the row as it was before did not come with the change, so that nobody can tell which of its \
     columns have changed; give the new side's table REPLICA IDENTITY FULL";

/// What comes out for one change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// A change of a table of the target.
    Change(Change),
    /// Left out by a filter (or, beside the old columns, nothing to write).
    Filtered,
    /// Refused: it goes into quarantine.
    Rejected {
        /// The target's table.
        table: TableId,
        /// The row's key in the target, as far as it can be told.
        key: Option<Key>,
        /// The change as it came.
        change: Change,
        /// Why, without values.
        reason: String,
    },
}

/// The rows that lookups read, as they are at the place in the log where the change stands.
pub trait Views {
    /// The kept cells of the row under `key`, in the order of [`crate::LookupView::keep`].
    fn get(&self, view: u32, key: &Key) -> Option<Row>;
}

/// A plan for the rows of one source schema. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Bound {
    plan: Arc<TablePlan>,
    /// Types of the registers as this schema writes them.
    types: Arc<[ColumnType]>,
    /// For every register that is loaded, the cell it comes from.
    load: Arc<[Option<usize>]>,
    /// For every output, whether the register's bytes are the output's bytes.
    raw: Arc<[bool]>,
    /// How many cells a row has.
    width: usize,
    passthrough: bool,
}

/// What became of one image of a row.
struct Image {
    passes: Truth,
    row: Row,
    mapping: Option<Mapped>,
}

/// A new key, and the old one as people read it; an old image may not have that.
type Mapped = (Value, Option<String>);

impl Bound {
    pub(crate) fn new(plan: Arc<TablePlan>, schema: &TableSchema) -> Self {
        let mut types: Vec<ColumnType> = plan.types.clone();
        let load: Vec<Option<usize>> = plan.loaded.iter().map(|name| schema.column_index(name)).collect();
        for (type_, from) in types.iter_mut().zip(&load) {
            if let Some(column) = from.and_then(|index| schema.columns.get(index)) {
                *type_ = column.type_.clone();
            }
        }
        let raw: Vec<bool> = plan
            .outs
            .iter()
            .map(|out| match &out.from {
                From::Register(register) => {
                    types.get(*register).is_some_and(|type_| same_bytes(type_, &out.column.type_))
                }
                From::Key(_) => false,
            })
            .collect();
        let in_order = plan.outs.iter().enumerate().all(
            |(place, out)| matches!(out.from, From::Register(register) if load.get(register) == Some(&Some(place))),
        );
        let passthrough = plan.ops.is_empty()
            && in_order
            && raw.iter().all(|raw| *raw)
            && plan.outs.len() == schema.columns.len()
            && plan.mapping.is_none()
            && plan.only_changed.is_empty()
            && !plan.columns_only;
        Self { plan, types: types.into(), load: load.into(), raw: raw.into(), width: schema.columns.len(), passthrough }
    }

    /// The target table that takes the rows byte for byte, if nothing is done to them.
    pub fn passthrough(&self) -> Option<TableId> {
        self.passthrough.then_some(self.plan.id)
    }

    /// The target's table.
    pub fn table(&self) -> TableId {
        self.plan.id
    }

    /// The target's tables that are emptied when the source's table is. Keys that were given out stay in the mapping.
    pub fn truncate(&self) -> Vec<TableId> {
        if self.plan.columns_only { Vec::new() } else { vec![self.plan.id] }
    }

    /// Turns a change into what the target gets. Always at least one output; rows of a snapshot come as inserts.
    pub fn apply(&self, change: &Change, views: &dyn Views, out: &mut Vec<Output>) {
        if self.passthrough {
            out.push(Output::Change(Change {
                table: self.plan.id,
                schema: SchemaVersion(self.plan.version),
                ..change.clone()
            }));
            return;
        }
        let before = out.len();
        if let Err(reason) = self.try_apply(change, views, out) {
            out.truncate(before);
            out.push(Output::Rejected {
                table: self.plan.id,
                key: self.key_alone(change, views),
                change: change.clone(),
                reason: format!("{}: {reason}", self.plan.source),
            });
        }
    }

    fn try_apply(&self, change: &Change, views: &dyn Views, out: &mut Vec<Output>) -> Result<(), String> {
        let mut filled = change.new.as_ref().map(|new| fill(new, change.old.as_ref()));
        if let (Op::Update, Some(new), false) = (change.op, &filled, self.plan.only_changed.is_empty()) {
            filled = Some(self.only_changed(new, change.old.as_ref())?);
        }
        match (change.op, &filled, &change.old) {
            (Op::Insert, Some(new), _) => {
                let image = self.image(new, false, views)?;
                self.inserted(image, out)
            }
            (Op::Update, Some(new), old) => {
                let before = old.as_ref().map(|old| self.image(old, true, views)).transpose()?;
                let after = self.image(new, false, views)?;
                self.updated(before, after, out)
            }
            (Op::Delete, _, Some(old)) => {
                let image = self.image(old, true, views)?;
                self.deleted(image, out)
            }
            _ => Err("a change without the image that it needs".to_owned()),
        }
    }

    /// Marks as unchanged what is only written where it has changed, and has not.
    fn only_changed(&self, new: &Row, old: Option<&Row>) -> Result<Row, String> {
        let old: Vec<Cell<'_>> = old.map(|old| old.cells().collect()).unwrap_or_default();
        let mut cells: Vec<Cell<'_>> = new.cells().collect();
        for group in &self.plan.only_changed {
            let places: Vec<usize> = group.iter().filter_map(|register| *self.load.get(*register)?).collect();
            let known = |place: &usize| matches!(old.get(*place), Some(Cell::Null | Cell::Bytes(_)));
            if !places.iter().all(known) {
                return Err(NO_OLD_ROW.to_owned());
            }
            if places.iter().all(|place| cells.get(*place) == old.get(*place)) {
                for place in places {
                    if let Some(cell) = cells.get_mut(place) {
                        *cell = Cell::Unchanged;
                    }
                }
            }
        }
        Ok(cells.into_iter().collect())
    }

    fn inserted(&self, image: Image, out: &mut Vec<Output>) -> Result<(), String> {
        match image.passes {
            Truth::True => {}
            Truth::Unknown => return Err(NOT_SENT.to_owned()),
            _ => {
                out.push(Output::Filtered);
                return Ok(());
            }
        }
        self.mapped(image.mapping, out)?;
        out.push(self.change(Op::Insert, None, Some(image.row)));
        Ok(())
    }

    fn updated(&self, before: Option<Image>, after: Image, out: &mut Vec<Output>) -> Result<(), String> {
        let was_in = before.as_ref().map_or(Truth::Unknown, |image| image.passes);
        match (was_in, after.passes) {
            (_, Truth::Unknown) => Err(NOT_SENT.to_owned()),
            (Truth::False, Truth::True) => self.inserted(after, out),
            (_, Truth::True) => {
                // An old image whose key cannot be told would leave the old row behind.
                if let (Some(before), Identity::Key, false) =
                    (&before, self.plan.schema.identity, self.plan.columns_only)
                {
                    self.needs_key(&before.row)?;
                }
                self.mapped_again(before.as_ref(), after.mapping, out)?;
                out.push(self.change(Op::Update, before.map(|image| image.row), Some(after.row)));
                Ok(())
            }
            (Truth::False, _) => {
                out.push(Output::Filtered);
                Ok(())
            }
            (_, _) if self.plan.columns_only => {
                out.push(Output::Filtered);
                Ok(())
            }
            // It leaves. Whether it was in cannot always be told; deleting what is not there does no harm.
            (_, _) => {
                let row = before.map_or_else(|| self.key_only(&after.row), |image| image.row);
                self.needs_key(&row)?;
                out.push(self.change(Op::Delete, Some(row), None));
                Ok(())
            }
        }
    }

    /// A key is mapped when its row comes into being, which any update may mean: a changed key, a row that enters, and a row
    /// that was moved past the pages still to be copied, of which nothing comes but its updates.
    fn mapped_again(&self, before: Option<&Image>, after: Option<Mapped>, out: &mut Vec<Output>) -> Result<(), String> {
        let takes = self.plan.mapping.as_ref().is_some_and(|mapping| mapping.old.is_some());
        match (before.and_then(|image| image.mapping.as_ref()), &after) {
            (Some((old_new, old)), Some((new_new, new))) if old == new && old_new != new_new => {
                Err("the column that its key takes the time from has changed, and with it the key".to_owned())
            }
            (Some((old_new, _)), Some((new_new, _))) if takes && old_new != new_new => {
                Err("it takes the key of another row than before, and the mapping has the former one".to_owned())
            }
            _ => self.mapped(after, out),
        }
    }

    fn deleted(&self, image: Image, out: &mut Vec<Output>) -> Result<(), String> {
        if image.passes == Truth::False || self.plan.columns_only {
            out.push(Output::Filtered);
            return Ok(());
        }
        self.needs_key(&image.row)?;
        out.push(self.change(Op::Delete, Some(image.row), None));
        Ok(())
    }

    fn needs_key(&self, row: &Row) -> Result<(), String> {
        match self.plan.schema.key_of(row) {
            Some(_) => Ok(()),
            None => Err("the old image lacks what the row's key in the target is made of".to_owned()),
        }
    }

    fn change(&self, op: Op, old: Option<Row>, new: Option<Row>) -> Output {
        let old = if self.plan.columns_only { None } else { old };
        Output::Change(Change { table: self.plan.id, schema: SchemaVersion(self.plan.version), op, old, new })
    }

    /// One image, transformed. Of an old one only the key matters where there is one.
    fn image(&self, row: &Row, old: bool, views: &dyn Views) -> Result<Image, String> {
        let mut run = self.load(row, old, views)?;
        let passes = run.all(&self.plan.ops)?;
        if passes == Truth::False && !old {
            // Its cells may not even be castable; only its key may be needed.
            return Ok(Image { passes, row: self.write(&run, true)?.0, mapping: None });
        }
        let keys_only = old && self.plan.schema.identity == Identity::Key;
        let (row, mapping) = self.write(&run, keys_only)?;
        Ok(Image { passes, row, mapping })
    }

    fn load<'a>(&'a self, row: &'a Row, old: bool, views: &'a dyn Views) -> Result<Run<'a, 'a>, String> {
        let cells: Vec<Cell<'_>> = row.cells().collect();
        if cells.len() != self.width {
            return Err("the row has another number of cells than its schema".to_owned());
        }
        let mut regs = Vec::with_capacity(self.types.len());
        for from in self.load.iter() {
            regs.push(from.and_then(|index| cells.get(index)).map_or(Reg::Absent, |cell| Reg::load(*cell)));
        }
        regs.resize(self.types.len(), Reg::Null);
        Ok(Run { regs, types: &self.types, views, old })
    }

    /// The output cells, and the old and the new key for the mapping.
    fn write(&self, run: &Run<'_, '_>, keys_only: bool) -> Result<(Row, Option<Mapped>), String> {
        let mut row = RowBuilder::with_capacity(self.plan.outs.len(), 128);
        let mut bytes = BytesMut::new();
        let mut mapping = None;
        for (place, out) in self.plan.outs.iter().enumerate() {
            if keys_only && !out.in_old {
                row.push(Cell::Absent);
                continue;
            }
            match &out.from {
                From::Register(register) => self.write_register(run, *register, place, &mut bytes, &mut row)?,
                From::Key(from) => {
                    let made = run.make_key(from)?;
                    if let (Made::Key { new, old }, Some(to)) = (&made, &self.plan.mapping)
                        && to.out == place
                    {
                        let old = match &to.old {
                            None => Some(old.clone()),
                            Some(registers) => run.shown(registers)?,
                        };
                        mapping = Some((new.clone(), old));
                    }
                    write_made(made, &out.column.type_, &mut bytes, &mut row)?;
                }
            }
        }
        Ok((row.finish(), mapping))
    }

    fn write_register(
        &self,
        run: &Run<'_, '_>,
        register: usize,
        place: usize,
        bytes: &mut BytesMut,
        row: &mut RowBuilder,
    ) -> Result<(), String> {
        let Some(out) = self.plan.outs.get(place) else { return Ok(()) };
        match run.regs.get(register) {
            None | Some(Reg::Absent) => row.push(Cell::Absent),
            Some(Reg::Unchanged) => row.push(Cell::Unchanged),
            Some(Reg::Null) => row.push(Cell::Null),
            Some(Reg::Raw(raw)) if self.raw.get(place) == Some(&true) => row.push(Cell::Bytes(raw)),
            Some(reg) => {
                let named = |reason: String| format!("column {}: {reason}", out.column.name);
                match reg.value(self.types.get(register)).map_err(named)? {
                    Some(value) => {
                        let value = carry(value, &out.column.type_).map_err(named)?;
                        bytes.clear();
                        codec::encode(&out.column.type_, &value, bytes).map_err(|error| named(error.to_string()))?;
                        row.push(Cell::Bytes(bytes));
                    }
                    None => row.push(Cell::Null),
                }
            }
        }
        Ok(())
    }

    fn key_only(&self, row: &Row) -> Row {
        self.plan.outs.iter().zip(row.cells()).map(|(out, cell)| if out.in_old { cell } else { Cell::Absent }).collect()
    }

    /// The key in the target of a change that is refused, as far as it can be made.
    fn key_alone(&self, change: &Change, views: &dyn Views) -> Option<Key> {
        let row = change.new.as_ref().or(change.old.as_ref())?;
        let mut run = self.load(row, true, views).ok()?;
        run.salvage(&self.plan.ops);
        let (row, _) = self.write(&run, true).ok()?;
        self.plan.schema.key_of(&row)
    }

    /// One row of the mapping table.
    fn mapped(&self, mapping: Option<Mapped>, out: &mut Vec<Output>) -> Result<(), String> {
        let (Some(target), Some((new, Some(old)))) = (&self.plan.mapping, mapping) else { return Ok(()) };
        let mut row = RowBuilder::with_capacity(3, 96);
        let mut bytes = BytesMut::new();
        let values = [Value::Text(self.plan.source.to_string()), Value::Text(old), new];
        for (column, value) in target.schema.columns.iter().zip(values) {
            // A mapping whose keys are not all UUIDs keeps them as text.
            let value = if column.type_.logical == Logical::Text { Value::Text(codec::to_text(&value)) } else { value };
            let value = carry(value, &column.type_)?;
            bytes.clear();
            codec::encode(&column.type_, &value, &mut bytes).map_err(|error| error.to_string())?;
            row.push(Cell::Bytes(&bytes));
        }
        out.push(Output::Change(Change {
            table: target.schema.id,
            schema: target.schema.version,
            op: Op::Insert,
            old: None,
            new: Some(row.finish()),
        }));
        Ok(())
    }

    /// An output whose bytes would have to be read, and only their own database can.
    pub(crate) fn unreadable(&self) -> Option<(String, Arc<str>)> {
        self.plan.outs.iter().zip(self.raw.iter()).find_map(|(out, raw)| match &out.from {
            From::Register(register) if !raw && !self.plan.overwritten.contains(register) => {
                let type_ = self.types.get(*register)?;
                let opaque = type_.logical == Logical::Opaque && type_.format == Format::PgBinary;
                opaque.then(|| (self.plan.loaded.get(*register).cloned().unwrap_or_default(), type_.name.clone()))
            }
            _ => None,
        })
    }
}

fn write_made(made: Made, type_: &ColumnType, bytes: &mut BytesMut, row: &mut RowBuilder) -> Result<(), String> {
    match made {
        Made::Absent => row.push(Cell::Absent),
        Made::Unchanged => row.push(Cell::Unchanged),
        Made::Null => row.push(Cell::Null),
        Made::Key { new, .. } => {
            let new = carry(new, type_)?;
            bytes.clear();
            codec::encode(type_, &new, bytes).map_err(|error| error.to_string())?;
            row.push(Cell::Bytes(bytes));
        }
    }
    Ok(())
}

/// What was not sent because it did not change, from the old image where that has it.
fn fill(new: &Row, old: Option<&Row>) -> Row {
    match old {
        Some(old) if new.has_unchanged() => new
            .cells()
            .zip(old.cells())
            .map(|(new, old)| match (new, old) {
                (Cell::Unchanged, Cell::Null | Cell::Bytes(_)) => old,
                (new, _) => new,
            })
            .collect(),
        _ => new.clone(),
    }
}

/// Whether bytes of one type are bytes of the other as they stand.
fn same_bytes(from: &ColumnType, to: &ColumnType) -> bool {
    from.format == to.format
        && from.logical == to.logical
        && (from.name == to.name || (from.logical != Logical::Opaque && from.format != Format::Tagged))
}
