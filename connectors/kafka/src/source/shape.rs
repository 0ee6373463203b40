//! A table's shape, and rows in it: from images as JSON to cells.

use super::{
    connect::Schema,
    envelope::{Change, Image, Seen},
    types,
    value::{Fault, Placeholder, Read, read},
    wire::{Handling, Unread, Wire, type_of},
};
use crossfade_event::{
    Cell, Column, ColumnType, Format, Identity, Logical, Row, RowBuilder, SchemaVersion, TableId, TableSchema,
    catalog::TableDef,
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// Why a record does not fit its table. Never holds a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Misfit {
    #[error("the value of column {column} cannot be read: {fault}")]
    Value { column: String, fault: Fault },
    #[error("column {column}: {unread}")]
    Unread { column: String, unread: Unread },
    #[error("the records have a new column {0}, and do not say its type")]
    Untyped(String),
    #[error("the column {gone} has gone and {came} has come: whether it was renamed is not said")]
    Renamed { gone: String, came: String },
    #[error("the column {0} has gone, and it is part of the key")]
    Key(String),
    #[error("the records have no column {0} any more, and do not say whether it was dropped")]
    Gone(String),
    #[error("the column {column} has {found} digits behind its point now, and its type has {known}")]
    Scale { column: String, found: i64, known: i64 },
    #[error("{0}")]
    Other(&'static str),
}

/// How a change's images are written, and the table's new schema where it has one.
pub(crate) type Fit = (Arc<Vec<Wire>>, Option<Arc<TableSchema>>);

/// A table, and how its records are to be read.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) schema: Arc<TableSchema>,
    handling: Handling,
    key: Vec<usize>,
    /// Where records carry no schema.
    plain: Arc<Vec<Wire>>,
    /// By the number of a record's schema, those that fit the shape as it is.
    wires: HashMap<u64, Arc<Vec<Wire>>>,
}

/// What a planned table looks like in the log.
pub(crate) fn schema_of(id: TableId, def: &TableDef) -> TableSchema {
    TableSchema {
        id,
        version: SchemaVersion(1),
        name: def.name.clone(),
        columns: def.carried().map(|def| def.column.clone()).collect(),
        identity: def.identity,
        native_id: 0,
    }
}

/// A column's type as rows carry it: in PostgreSQL's text form.
pub(crate) fn column_type(name: &str, logical: Logical) -> ColumnType {
    ColumnType { name: name.into(), native_id: 0, logical, format: Format::PgText }
}

impl Shape {
    pub(crate) fn new(schema: Arc<TableSchema>, handling: Handling) -> Self {
        let plain = schema.columns.iter().map(|column| Wire::of_type(&column.type_.name, handling)).collect();
        Self { key: schema.key_columns(), schema, handling, plain: Arc::new(plain), wires: HashMap::new() }
    }

    /// How this change's images are written; with the table's new schema where its columns have changed.
    pub(crate) fn fit(&mut self, change: &Change) -> Result<Fit, Misfit> {
        let Some(seen) = &change.schema else {
            let image = change.after.as_ref().or(change.before.as_ref());
            return match image {
                Some(image) => self.fit_plain(image).map(|()| (self.plain.clone(), None)),
                None => Ok((self.plain.clone(), None)),
            };
        };
        if let Some(wires) = self.wires.get(&seen.number) {
            return Ok((wires.clone(), None));
        }
        let evolved = self.evolve(&seen.schema)?;
        if let Some(schema) = &evolved {
            *self = Self::new(schema.clone(), self.handling);
        }
        let wires = Arc::new(self.wires_of(seen)?);
        self.wires.insert(seen.number, wires.clone());
        Ok((wires, evolved))
    }

    fn fit_plain(&self, image: &Image) -> Result<(), Misfit> {
        if let Some(column) = self.schema.columns.iter().find(|column| !image.contains_key(&*column.name)) {
            return Err(Misfit::Gone(column.name.to_string()));
        }
        match image.keys().find(|name| self.schema.column_index(name).is_none()) {
            Some(name) if image.len() > self.schema.columns.len() => Err(Misfit::Untyped(name.clone())),
            _ => Ok(()),
        }
    }

    fn wires_of(&self, seen: &Seen) -> Result<Vec<Wire>, Misfit> {
        let wire = |column: &Column| {
            let named = || column.name.to_string();
            let field = seen.schema.get(&column.name).ok_or_else(|| Misfit::Gone(named()))?;
            let wire = Wire::of_schema(field, Some(&column.type_.name), self.handling);
            let wire = wire.map_err(|unread| Misfit::Unread { column: named(), unread })?;
            match (&wire, types::arguments(&column.type_.name).as_slice()) {
                (Wire::Decimal { scale }, [_, known]) if scale > known && column.type_.logical == Logical::Numeric => {
                    Err(Misfit::Scale { column: named(), found: *scale, known: *known })
                }
                _ => Ok(wire),
            }
        };
        self.schema.columns.iter().map(wire).collect()
    }

    /// The table's next schema, where the record's has other columns.
    fn evolve(&self, row: &Schema) -> Result<Option<Arc<TableSchema>>, Misfit> {
        let gone: Vec<&Column> = self.schema.columns.iter().filter(|column| row.get(&column.name).is_none()).collect();
        let name = |field: &Schema| field.field.clone().unwrap_or_default();
        let came: Vec<&Schema> =
            row.fields.iter().filter(|field| self.schema.column_index(&name(field)).is_none()).collect();
        if let (Some(gone), Some(came)) = (gone.first(), came.first()) {
            return Err(Misfit::Renamed { gone: gone.name.to_string(), came: name(came) });
        }
        if gone.is_empty() && came.is_empty() {
            return Ok(None);
        }
        if let Some(key) = gone.iter().find(|column| column.key.is_some()) {
            return Err(Misfit::Key(key.name.to_string()));
        }
        let mut schema = (*self.schema).clone();
        schema.version.0 += 1;
        schema.columns.retain(|column| row.get(&column.name).is_some());
        for column in &mut schema.columns {
            column.default = None;
        }
        for field in came {
            schema.columns.push(self.added(field)?);
        }
        Ok(Some(Arc::new(schema)))
    }

    /// A column that came, with the constant that rows from before read in it, as far as the record says it.
    fn added(&self, field: &Schema) -> Result<Column, Misfit> {
        let name = field.field.clone().unwrap_or_default();
        let unread = |unread| Misfit::Unread { column: name.clone(), unread };
        let type_name = type_of(field).map_err(unread)?;
        let type_ = column_type(&type_name, types::logical(&type_name));
        let wire = Wire::of_schema(field, Some(&type_name), self.handling).map_err(unread)?;
        let default = constant(field, &wire, &type_)?;
        let default = default.map(|text| format!("'{}'::{type_name}", text.replace('\'', "''")));
        Ok(Column {
            name: name.as_str().into(),
            type_,
            key: None,
            nullable: field.optional,
            native_id: 0,
            default: default.map(Into::into),
        })
    }

    fn cell(&self, index: usize, wires: &[Wire], image: &Image, placeholder: &Placeholder) -> Result<Read, Misfit> {
        let (Some(column), Some(wire)) = (self.schema.columns.get(index), wires.get(index)) else {
            return Err(Misfit::Other("the table's shape has changed under the record"));
        };
        let json = image.get(&*column.name).ok_or_else(|| Misfit::Gone(column.name.to_string()))?;
        read(wire, &column.type_.name, column.type_.logical, json, placeholder)
            .map_err(|fault| Misfit::Value { column: column.name.to_string(), fault })
    }

    /// A whole image.
    pub(crate) fn row(&self, wires: &[Wire], image: &Image, placeholder: &Placeholder) -> Result<Row, Misfit> {
        let mut row = RowBuilder::with_capacity(self.schema.columns.len(), 256);
        for index in 0..self.schema.columns.len() {
            match self.cell(index, wires, image, placeholder)? {
                Read::Null => row.push(Cell::Null),
                Read::Unchanged => row.push(Cell::Unchanged),
                Read::Text(text) => row.push(Cell::Bytes(text.as_bytes())),
            }
        }
        Ok(row.finish())
    }

    /// The key's cells alone.
    pub(crate) fn key_row(&self, wires: &[Wire], key: &Image, placeholder: &Placeholder) -> Result<Row, Misfit> {
        if key.len() != self.key.len() {
            return Err(Misfit::Other("the record's key has other columns than the table's"));
        }
        let mut row = RowBuilder::with_capacity(self.schema.columns.len(), 64);
        for index in 0..self.schema.columns.len() {
            if !self.key.contains(&index) {
                row.push(Cell::Absent);
                continue;
            }
            match self.cell(index, wires, key, placeholder)? {
                Read::Text(text) => row.push(Cell::Bytes(text.as_bytes())),
                Read::Null | Read::Unchanged => return Err(Misfit::Other("the record's key has no value")),
            }
        }
        Ok(row.finish())
    }
}

/// The constant that a field says its column has where nothing is said.
fn constant(field: &Schema, wire: &Wire, type_: &ColumnType) -> Result<Option<String>, Misfit> {
    let Some(json) = &field.default else { return Ok(None) };
    let column = field.field.clone().unwrap_or_default();
    let said = read(wire, &type_.name, type_.logical, json, &Placeholder::new(""));
    match said.map_err(|fault| Misfit::Value { column, fault })? {
        Read::Text(text) => Ok(Some(text)),
        Read::Null | Read::Unchanged => Ok(None),
    }
}

/// Reading a topic as a whole, in the shape that its table has now: a column that came later is absent before.
impl Shape {
    pub(crate) fn wires_now(&mut self, change: &Change) -> Result<Arc<Vec<Wire>>, Misfit> {
        let Some(seen) = &change.schema else { return Ok(self.plain.clone()) };
        if let Some(wires) = self.wires.get(&seen.number) {
            return Ok(wires.clone());
        }
        let wire = |column: &Column| match seen.schema.get(&column.name) {
            Some(field) => Wire::of_schema(field, Some(&column.type_.name), self.handling)
                .map_err(|unread| Misfit::Unread { column: column.name.to_string(), unread }),
            None => Ok(Wire::Text),
        };
        let wires = Arc::new(self.schema.columns.iter().map(wire).collect::<Result<Vec<_>, _>>()?);
        self.wires.insert(seen.number, wires.clone());
        Ok(wires)
    }

    /// What rows from before a column read in it: by column, as soon as a record says it.
    pub(crate) fn constants(&self, wires: &[Wire], seen: &Seen) -> Result<Vec<Option<Option<String>>>, Misfit> {
        let of = |(column, wire): (&Column, &Wire)| match seen.schema.get(&column.name) {
            Some(field) => constant(field, wire, &column.type_).map(Some),
            None => Ok(None),
        };
        self.schema.columns.iter().zip(wires).map(of).collect()
    }

    pub(crate) fn row_now(&self, wires: &[Wire], image: &Image, placeholder: &Placeholder) -> Result<Row, Misfit> {
        let mut row = RowBuilder::with_capacity(self.schema.columns.len(), 256);
        for (index, column) in self.schema.columns.iter().enumerate() {
            if !image.contains_key(&*column.name) {
                row.push(Cell::Absent);
                continue;
            }
            match self.cell(index, wires, image, placeholder)? {
                Read::Null => row.push(Cell::Null),
                Read::Unchanged => row.push(Cell::Unchanged),
                Read::Text(text) => row.push(Cell::Bytes(text.as_bytes())),
            }
        }
        Ok(row.finish())
    }

    pub(crate) fn key_now(
        &self,
        wires: &[Wire],
        key: &Image,
        placeholder: &Placeholder,
    ) -> Result<crossfade_event::Key, Misfit> {
        let row = self.key_row(wires, key, placeholder)?;
        self.schema.key_of(&row).ok_or(Misfit::Other("the record's key has no value"))
    }
}

/// What a topic's records say of their table.
pub(crate) struct Described<'a> {
    /// The names in the record's key, none where it has no key.
    pub(crate) key: Vec<String>,
    pub(crate) change: &'a Change,
}

/// One table as a catalog has it: types by the spec, else by the target's table, else by the records themselves.
pub(crate) fn table_def(
    described: &Described<'_>,
    name: &crossfade_event::TableName,
    said: Option<&BTreeMap<String, String>>,
    target: Option<&TableDef>,
) -> Result<TableDef, Vec<String>> {
    let schema = described.change.schema.as_deref().map(|seen| &seen.schema);
    let image = described.change.after.as_ref().or(described.change.before.as_ref());
    let names: Vec<String> = match (schema, image) {
        (Some(schema), _) => schema.fields.iter().filter_map(|field| field.field.clone()).collect(),
        (None, Some(image)) => image.keys().cloned().collect(),
        (None, None) => Vec::new(),
    };
    let mut columns = Vec::new();
    let mut untyped = Vec::new();
    for column in names {
        let key = described.key.iter().position(|part| *part == column).and_then(|at| u16::try_from(at).ok());
        let field = schema.and_then(|schema| schema.get(&column));
        let there = target.and_then(|target| target.column(&column)).map(|def| &def.column);
        let type_ = match (said.and_then(|said| said.get(&column)), there, field) {
            (Some(said), ..) => column_type(said, types::logical(said)),
            (None, Some(there), _) => {
                let name = &there.type_.name;
                column_type(name, types::logical_there(name, there.type_.logical))
            }
            (None, None, Some(field)) => match type_of(field) {
                Ok(name) => column_type(&name, types::logical(&name)),
                Err(unread) => {
                    untyped.push(format!("{column} ({unread})"));
                    continue;
                }
            },
            (None, None, None) => {
                untyped.push(column);
                continue;
            }
        };
        let nullable = key.is_none() && field.is_none_or(|field| field.optional);
        columns.push(crossfade_event::catalog::ColumnDef::plain(Column {
            name: column.as_str().into(),
            type_,
            key,
            nullable,
            native_id: 0,
            default: None,
        }));
    }
    if !untyped.is_empty() {
        return Err(untyped);
    }
    let has_key = !described.key.is_empty();
    let identity = if has_key { Identity::Key } else { Identity::FullRow };
    let key = || crossfade_event::catalog::KeyDef::plain(format!("{}_pkey", name.name), described.key.clone());
    Ok(TableDef::plain(name.clone(), identity, columns, has_key.then(key)))
}
