//! A sink on a database of its own, and short ways to say what is written.

use bytes::Bytes;
use crossfade_connector::{
    Applied, Delivery, Failure, Guard, Progress, Sink, Stage, Target, TargetTable, Write, WriteMode,
};
use crossfade_event::{
    Cell, Change, Column, ColumnType, Cut, Format, Identity, Key, Logical, Offset, Op, Position, Row, SchemaVersion,
    Sequence, SourceId, TableId, TableName, TableSchema, Version,
    catalog::{Catalog, ColumnDef, Dialect, ForeignKeyDef, KeyDef, TableDef},
};
use crossfade_postgres::{Apply, Config, PostgresSink, SinkConfig};
use crossfade_testkit::postgres::{Database, Postgres, Version as ServerVersion};
use std::sync::Arc;

/// A value of a cell.
#[derive(Clone)]
pub(crate) enum V {
    Int(i32),
    Text(&'static str),
    Raw(Vec<u8>),
    Null,
    Same,
    Absent,
}

pub(crate) fn row(values: &[V]) -> Row {
    let bytes: Vec<Option<Vec<u8>>> = values
        .iter()
        .map(|value| match value {
            V::Int(number) => Some(number.to_be_bytes().to_vec()),
            V::Text(text) => Some(text.as_bytes().to_vec()),
            V::Raw(bytes) => Some(bytes.clone()),
            V::Null | V::Same | V::Absent => None,
        })
        .collect();
    values
        .iter()
        .zip(&bytes)
        .map(|(value, bytes)| match (value, bytes) {
            (V::Null, _) => Cell::Null,
            (V::Same, _) => Cell::Unchanged,
            (V::Absent, _) => Cell::Absent,
            (_, Some(bytes)) => Cell::Bytes(bytes),
            (_, None) => Cell::Null,
        })
        .collect()
}

/// One column: name, type, place in the key.
pub(crate) fn column(name: &str, type_: &str, key: Option<u16>) -> Column {
    let (oid, logical) = match type_ {
        "integer" => (23, Logical::Int32),
        "bigint" => (20, Logical::Int64),
        "text" => (25, Logical::Text),
        _ => (0, Logical::Opaque),
    };
    Column {
        name: name.into(),
        type_: ColumnType { name: type_.into(), native_id: oid, logical, format: Format::PgBinary },
        key,
        nullable: key.is_none(),
        native_id: 0,
        default: None,
    }
}

pub(crate) fn table(id: u32, name: &str, mut columns: Vec<Column>) -> TargetTable {
    for (place, column) in columns.iter_mut().enumerate() {
        column.native_id = place as u32 + 1;
    }
    let mut key: Vec<(u16, String)> =
        columns.iter().filter_map(|column| Some((column.key?, column.name.to_string()))).collect();
    key.sort();
    let identity = if key.is_empty() { Identity::FullRow } else { Identity::Key };
    let name = TableName::new("app", name);
    let primary_key = (!key.is_empty()).then(|| KeyDef {
        name: format!("{}_pkey", name.name),
        columns: key.into_iter().map(|(_, column)| column).collect(),
        deferrable: false,
        nulls_not_distinct: false,
    });
    TargetTable {
        def: TableDef::plain(
            name.clone(),
            identity,
            columns.iter().cloned().map(ColumnDef::plain).collect(),
            primary_key,
        ),
        schema: Arc::new(TableSchema {
            id: TableId(id),
            version: SchemaVersion(1),
            name,
            columns,
            identity,
            native_id: 0,
        }),
        mode: WriteMode::Table,
    }
}

pub(crate) fn unique(mut table: TargetTable, column: &str) -> TargetTable {
    table.def.uniques.push(KeyDef {
        name: format!("{}_{column}_key", table.schema.name.name),
        columns: vec![column.to_owned()],
        deferrable: false,
        nulls_not_distinct: false,
    });
    table
}

pub(crate) fn refers(mut table: TargetTable, column: &str, parent: &str, parent_column: &str) -> TargetTable {
    table.def.foreign_keys.push(ForeignKeyDef {
        name: format!("{}_{column}_fkey", table.schema.name.name),
        columns: vec![column.to_owned()],
        references: TableName::new("app", parent),
        referenced_columns: vec![parent_column.to_owned()],
        suffix: String::new(),
    });
    table
}

pub(crate) fn target(tables: Vec<TargetTable>) -> Target {
    Target {
        migration: "test".to_owned(),
        epoch: 1,
        tables,
        support: Catalog {
            dialect: Dialect::Postgres,
            tables: Vec::new(),
            types: Vec::new(),
            sequences: Vec::new(),
            extensions: Vec::new(),
        },
        into_existing: false,
    }
}

/// Which server the tests run on: 15, unless `CROSSFADE_TEST_POSTGRES` says 17 or 18.
pub(crate) fn server_version() -> ServerVersion {
    match std::env::var("CROSSFADE_TEST_POSTGRES").as_deref() {
        Ok("17") => ServerVersion::V17,
        Ok("18") => ServerVersion::V18,
        _ => ServerVersion::V15,
    }
}

/// A sink and its database.
pub(crate) struct Rig {
    pub(crate) database: Database,
    pub(crate) sink: PostgresSink,
    pub(crate) target: Target,
    pub(crate) next: u64,
}

impl Rig {
    /// A database of one's own, with nothing in it; `None` (said loudly) without a server.
    pub(crate) async fn empty(tables: Vec<TargetTable>) -> Option<Self> {
        Self::on(Postgres::shared_target(server_version())?.create_database("sink").await, tables).await
    }

    pub(crate) async fn on(database: Database, tables: Vec<TargetTable>) -> Option<Self> {
        let sink = new_sink(&database.url);
        Some(Self { database, sink, target: target(tables), next: 0 })
    }

    /// Goes on from where the sink says it is.
    pub(crate) fn stand_at(&mut self, progress: &Progress) {
        self.next = progress.cut.total();
    }

    /// Prepared, loaded with nothing, streaming.
    pub(crate) async fn streaming(tables: Vec<TargetTable>) -> Option<Self> {
        let mut rig = Self::empty(tables).await?;
        rig.prepare().await.unwrap();
        rig.load(Vec::new()).await.unwrap();
        rig.stream(Vec::new()).await.unwrap();
        Some(rig)
    }

    pub(crate) async fn prepare(&mut self) -> Result<(), Failure> {
        let target = self.target.clone();
        self.sink.prepare(&target).await
    }

    /// A new sink on the same database, as after a restart.
    pub(crate) async fn restart(&mut self) -> Option<Progress> {
        self.sink = new_sink(&self.database.url);
        let progress = self.sink.progress().await.unwrap();
        self.prepare().await.unwrap();
        progress
    }

    pub(crate) fn upto(&mut self, stage: Stage) -> Progress {
        self.next += 100;
        Progress {
            cut: Cut::single(Offset(self.next)),
            stage,
            generation: 1,
            stream_from: Cut::single(Offset(0)),
            sequence: None,
            position: (stage == Stage::Streaming).then_some(Position {
                source: SourceId(1),
                timeline: 1,
                commit: self.next,
                ordinal: u32::MAX,
            }),
            schemas: vec![(TableId(1), SchemaVersion(1))],
        }
    }

    pub(crate) async fn load(&mut self, writes: Vec<Write>) -> Result<Applied, Failure> {
        let upto = self.upto(Stage::Loading);
        let applied = self.sink.apply(Delivery { writes, upto, commits: true }, Guard::Forward).await?;
        self.sink.finish_load().await?;
        Ok(applied)
    }

    pub(crate) async fn stream(&mut self, changes: Vec<Change>) -> Result<Applied, Failure> {
        let upto = self.upto(Stage::Streaming);
        let writes = self.writes(changes);
        self.sink.apply(Delivery { writes, upto, commits: true }, Guard::Forward).await
    }

    pub(crate) fn writes(&self, changes: Vec<Change>) -> Vec<Write> {
        changes
            .into_iter()
            .enumerate()
            .map(|(number, change)| Write::Change {
                at: Version { sequence: Sequence(self.next + number as u64), ordinal: 0 },
                change,
            })
            .collect()
    }

    /// What a query gives, one line per row.
    pub(crate) async fn ask(&self, sql: &str) -> Vec<String> {
        let client = self.database.connect().await;
        let rows = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{error:?}\nin: {sql}"));
        rows.into_iter()
            .filter_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => {
                    Some((0..row.len()).map(|index| row.get(index).unwrap_or("∅")).collect::<Vec<_>>().join("|"))
                }
                _ => None,
            })
            .collect()
    }
}

pub(crate) fn new_sink(url: &str) -> PostgresSink {
    PostgresSink::new(SinkConfig::new(Config::parse(url).unwrap(), "test"))
}

pub(crate) fn parallel_sink(url: &str, workers: u32) -> PostgresSink {
    let config = SinkConfig::new(Config::parse(url).unwrap(), "test");
    PostgresSink::new(SinkConfig { apply: Apply::Parallel { workers }, ..config })
}

fn change(table: u32, op: Op, old: Option<Row>, new: Option<Row>) -> Change {
    Change { table: TableId(table), schema: SchemaVersion(1), op, old, new }
}

pub(crate) fn insert(table: u32, values: &[V]) -> Change {
    change(table, Op::Insert, None, Some(row(values)))
}

pub(crate) fn update(table: u32, values: &[V]) -> Change {
    change(table, Op::Update, None, Some(row(values)))
}

pub(crate) fn update_from(table: u32, old: &[V], new: &[V]) -> Change {
    change(table, Op::Update, Some(row(old)), Some(row(new)))
}

pub(crate) fn delete(table: u32, values: &[V]) -> Change {
    change(table, Op::Delete, Some(row(values)), None)
}

pub(crate) fn block(table: u32, offset: u64, rows: &[Row]) -> Write {
    let bytes: Vec<u8> = rows.iter().flat_map(|row| row.as_bytes().to_vec()).collect();
    Write::Rows {
        table: TableId(table),
        at: Version { sequence: Sequence(offset), ordinal: 0 },
        count: rows.len() as u32,
        rows: Bytes::from(bytes),
    }
}

pub(crate) fn key(values: &[V]) -> Key {
    Key::from(row(values))
}
