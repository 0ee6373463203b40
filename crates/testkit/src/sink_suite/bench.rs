//! What the suite's promises are written with: a small target, rows in its formats, deliveries.

use crossfade_connector::{
    Applied, Delivery, Guard, Progress, Quarantine, Rollback, Sink, Stage, Target, TargetTable, Write, WriteMode,
};
use crossfade_event::{
    Cell, Change, Column, ColumnType, Cut, Identity, Key, Logical, Offset, Op, Position, Row, RowBuilder,
    SchemaVersion, Sequence, SourceId, TableId, TableName, TableSchema, Value, Version,
    catalog::{Catalog, ColumnDef, ForeignKeyDef, KeyDef, TableDef},
    codec,
};
use std::sync::Arc;

use crate::source_suite::TextRow;

/// A target database of a test's own.
pub trait SinkFixture: Send {
    /// The sink.
    type Sink: Sink + Quarantine + Rollback;

    /// A sink for this migration; every call with the same name is as after a restart.
    fn sink(&self, migration: &str) -> Self::Sink;

    /// How the target spells a type, and the format in which its cells come.
    fn type_of(&self, logical: Logical) -> ColumnType;

    /// The schema in which tables stand.
    fn schema(&self) -> String;

    /// What must exist first: nothing, in the target's own dialect.
    fn support(&self) -> Catalog;

    /// Runs a statement as somebody else.
    fn execute(&mut self, sql: &str) -> impl Future<Output = ()> + Send;

    /// All rows of a table as text, sorted; columns in the table's order.
    fn rows(&mut self, table: &str) -> impl Future<Output = Vec<TextRow>> + Send;

    /// The names of everything in the database that is not its own: tables, indexes, schemas.
    fn objects(&mut self) -> impl Future<Output = Vec<String>> + Send;
}

/// A cell as the promises write it.
#[derive(Debug, Clone, Copy)]
pub(super) enum C {
    Int(i64),
    Text(&'static str),
    Null,
    Unchanged,
    Absent,
}

/// A sink with its target, and the place in the log where it stands.
pub(super) struct Bench<F: SinkFixture> {
    pub(super) fixture: F,
    pub(super) sink: F::Sink,
    pub(super) target: Target,
    offset: u64,
}

pub(super) const PARENT: TableId = TableId(1);
pub(super) const CHILD: TableId = TableId(2);
pub(super) const HEAP: TableId = TableId(3);
pub(super) const MAPPING: TableId = TableId(4);

impl<F: SinkFixture> Bench<F> {
    /// A target with `parent (id, name unique)`, `child (id, parent_id → parent, note)`, and a keyless `heap (a, b)`.
    pub(super) async fn new(fixture: F) -> Self {
        let tables = vec![parent(&fixture), child(&fixture), heap(&fixture), mapping(&fixture)];
        Self::with(fixture, tables, false).await
    }

    pub(super) async fn with(fixture: F, tables: Vec<TargetTable>, into_existing: bool) -> Self {
        let support = fixture.support();
        let target = Target { migration: "suite".to_owned(), epoch: 1, tables, support, into_existing };
        let mut sink = fixture.sink("suite");
        sink.prepare(&target).await.unwrap_or_else(|failure| panic!("the sink does not prepare: {failure}"));
        Self { fixture, sink, target, offset: 10 }
    }

    /// As after a crash: nothing of the old sink is left but what it committed.
    pub(super) async fn restart(self) -> Self {
        let Self { fixture, sink, target, offset } = self;
        drop(sink);
        let mut sink = fixture.sink("suite");
        sink.prepare(&target).await.unwrap_or_else(|failure| panic!("the sink does not prepare again: {failure}"));
        Self { fixture, sink, target, offset }
    }

    fn table(&self, id: TableId) -> &TargetTable {
        self.target.tables.iter().find(|table| table.schema.id == id).expect("a table of the target")
    }

    pub(super) fn row(&self, table: TableId, cells: &[C]) -> Row {
        row(&self.table(table).schema, cells)
    }

    pub(super) fn key(&self, table: TableId, cells: &[C]) -> Key {
        let schema = &self.table(table).schema;
        let mut whole = vec![C::Absent; schema.columns.len()];
        for (place, cell) in schema.key_columns().into_iter().zip(cells) {
            whole[place] = *cell;
        }
        schema.key_of(&row(schema, &whole)).expect("a key")
    }

    fn at(&mut self) -> Version {
        self.offset += 1;
        Version { sequence: Sequence(self.offset), ordinal: 0 }
    }

    pub(super) fn change(&mut self, table: TableId, op: Op, old: Option<&[C]>, new: Option<&[C]>) -> Write {
        let change = Change {
            table,
            schema: self.table(table).schema.version,
            op,
            old: old.map(|cells| self.row(table, cells)),
            new: new.map(|cells| self.row(table, cells)),
        };
        Write::Change { at: self.at(), change }
    }

    pub(super) fn insert(&mut self, table: TableId, cells: &[C]) -> Write {
        self.change(table, Op::Insert, None, Some(cells))
    }

    pub(super) fn update(&mut self, table: TableId, cells: &[C]) -> Write {
        self.change(table, Op::Update, None, Some(cells))
    }

    pub(super) fn block(&mut self, table: TableId, rows: &[&[C]]) -> Write {
        let bytes: Vec<u8> = rows.iter().flat_map(|cells| self.row(table, cells).as_bytes().to_vec()).collect();
        Write::Rows { table, at: self.at(), count: rows.len() as u32, rows: bytes.into() }
    }

    pub(super) fn progress(&self) -> Progress {
        let source = SourceId(7);
        Progress {
            cut: Cut::single(Offset(self.offset + 1)),
            stage: Stage::Streaming,
            generation: 1,
            stream_from: Cut::single(Offset(0)),
            sequence: None,
            position: Some(Position { source, timeline: 0, commit: self.offset, ordinal: u32::MAX }),
            schemas: Vec::new(),
        }
    }

    pub(super) async fn apply(&mut self, writes: Vec<Write>, commits: bool) -> Applied {
        let upto = self.progress();
        let applied = self.sink.apply(Delivery { writes, upto, commits }, Guard::Forward).await;
        applied.unwrap_or_else(|failure| panic!("the sink does not apply: {failure}"))
    }

    pub(super) async fn commit(&mut self, writes: Vec<Write>) -> Applied {
        self.apply(writes, true).await
    }

    pub(super) async fn rows(&mut self, table: &str) -> Vec<TextRow> {
        self.fixture.rows(table).await
    }

    pub(super) async fn recorded(&mut self) -> Option<Progress> {
        self.sink.progress().await.unwrap_or_else(|failure| panic!("the sink does not tell its position: {failure}"))
    }
}

/// Rows as text, sorted, for comparing.
pub(super) fn text(rows: &[&[C]]) -> Vec<TextRow> {
    let mut rows: Vec<TextRow> = rows
        .iter()
        .map(|cells| {
            cells
                .iter()
                .map(|cell| match cell {
                    C::Int(value) => Some(value.to_string()),
                    C::Text(text) => Some((*text).to_owned()),
                    _ => None,
                })
                .collect()
        })
        .collect();
    rows.sort();
    rows
}

fn row(schema: &TableSchema, cells: &[C]) -> Row {
    assert_eq!(cells.len(), schema.columns.len(), "a cell for every column of {}", schema.name);
    let mut row = RowBuilder::with_capacity(cells.len(), 64);
    for (cell, column) in cells.iter().zip(&schema.columns) {
        let value = match cell {
            C::Int(value) => Value::Int(*value),
            C::Text(text) => Value::Text((*text).to_owned()),
            C::Null | C::Unchanged | C::Absent => {
                row.push(match cell {
                    C::Null => Cell::Null,
                    C::Unchanged => Cell::Unchanged,
                    _ => Cell::Absent,
                });
                continue;
            }
        };
        let mut bytes = bytes::BytesMut::new();
        codec::encode(&column.type_, &value, &mut bytes).expect("a value of the column's type");
        row.push(Cell::Bytes(&bytes));
    }
    row.finish()
}

/// A column: name, kind, place in the key, nullable.
pub(super) type Spec = (&'static str, Logical, Option<u16>, bool);

/// A table of the target from a few words.
pub(super) fn table<F: SinkFixture>(fixture: &F, id: TableId, name: &str, columns: &[Spec]) -> TargetTable {
    let columns: Vec<Column> = columns
        .iter()
        .enumerate()
        .map(|(index, (name, logical, key, nullable))| Column {
            name: (*name).into(),
            type_: fixture.type_of(*logical),
            key: *key,
            nullable: *nullable,
            native_id: index as u32 + 1,
            default: None,
        })
        .collect();
    let keyed = columns.iter().any(|column| column.key.is_some());
    let name = TableName::new(fixture.schema(), name);
    let identity = if keyed { Identity::Key } else { Identity::FullRow };
    let primary_key = keyed.then(|| KeyDef::plain(format!("{}_pkey", name.name), key_names(&columns)));
    let plain = columns.iter().cloned().map(ColumnDef::plain).collect();
    let def = TableDef::plain(name.clone(), identity, plain, primary_key);
    let schema = TableSchema { id, version: SchemaVersion(1), name, columns, identity, native_id: 0 };
    TargetTable { schema: Arc::new(schema), def, mode: WriteMode::Table }
}

fn key_names(columns: &[Column]) -> Vec<String> {
    let mut found: Vec<_> = columns.iter().filter_map(|column| Some((column.key?, column.name.to_string()))).collect();
    found.sort();
    found.into_iter().map(|(_, name)| name).collect()
}

pub(super) fn parent<F: SinkFixture>(fixture: &F) -> TargetTable {
    let columns = [("id", Logical::Int64, Some(0), false), ("name", Logical::Text, None, false)];
    let mut table = table(fixture, PARENT, "parent", &columns);
    table.def.uniques.push(KeyDef {
        name: "parent_name_key".to_owned(),
        columns: vec!["name".to_owned()],
        deferrable: false,
        nulls_not_distinct: false,
    });
    table
}

pub(super) fn child<F: SinkFixture>(fixture: &F) -> TargetTable {
    let columns = [
        ("id", Logical::Int64, Some(0), false),
        ("parent_id", Logical::Int64, None, true),
        ("note", Logical::Text, None, true),
    ];
    let mut table = table(fixture, CHILD, "child", &columns);
    table.def.foreign_keys.push(ForeignKeyDef {
        name: "child_parent_id_fkey".to_owned(),
        columns: vec!["parent_id".to_owned()],
        references: TableName::new(fixture.schema(), "parent"),
        referenced_columns: vec!["id".to_owned()],
        suffix: String::new(),
    });
    table
}

pub(super) fn heap<F: SinkFixture>(fixture: &F) -> TargetTable {
    table(fixture, HEAP, "heap", &[("a", Logical::Text, None, true), ("b", Logical::Int64, None, true)])
}

pub(super) fn mapping<F: SinkFixture>(fixture: &F) -> TargetTable {
    let columns = [("old_id", Logical::Text, Some(0), false), ("new_id", Logical::Text, None, false)];
    let mut table = table(fixture, MAPPING, "mapping", &columns);
    table.mode = WriteMode::InsertOnce;
    table
}
