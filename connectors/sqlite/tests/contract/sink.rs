//! What only a SQLite target has to answer for: cells in PostgreSQL's formats, indexes that wait, schemas that change.

use crate::fixture::{SinkFile, rows};
use crossfade_connector::{
    Applied, Delivery, Guard, Progress, Sink, Stage, Target, TargetTable, Verdict, Write, WriteMode,
};
use crossfade_event::{
    Cell, Change, Column, ColumnType, Cut, Format, Identity, Logical, Offset, Op, Row, RowBuilder, SchemaVersion,
    Sequence, TableId, TableName, TableSchema, Value, Version,
    catalog::{ColumnDef, Dialect, IdentityColumn, IndexDef, KeyDef, SequenceDef, TableDef},
    codec,
};
use crossfade_sqlite::SqliteSink;
use crossfade_testkit::{sink_suite::SinkFixture, source_suite::assert_same};
use std::sync::Arc;

pub(crate) const TABLE: TableId = TableId(1);

pub(crate) fn column(id: u32, name: &str, type_: &str, logical: Logical, format: Format) -> Column {
    Column {
        name: name.into(),
        type_: ColumnType { name: type_.into(), native_id: 0, logical, format },
        key: (id == 1).then_some(0),
        nullable: id != 1,
        native_id: id,
        default: None,
    }
}

pub(crate) fn table(version: u32, columns: Vec<Column>) -> TargetTable {
    let name = TableName::new("main", "t");
    let defs = columns
        .iter()
        .map(|column| ColumnDef {
            default: column.default.as_deref().map(str::to_owned),
            ..ColumnDef::plain(column.clone())
        })
        .collect();
    let key = columns.iter().filter(|column| column.key.is_some()).map(|column| column.name.to_string()).collect();
    let def = TableDef::plain(name.clone(), Identity::Key, defs, Some(KeyDef::plain("t_pkey", key)));
    let version = SchemaVersion(version);
    let schema = TableSchema { id: TABLE, version, name, columns, identity: Identity::Key, native_id: 0 };
    TargetTable { schema: Arc::new(schema), def, mode: WriteMode::Table }
}

pub(crate) fn dynamic(id: u32, name: &str, type_: &str) -> Column {
    column(id, name, type_, Logical::Dynamic, Format::Tagged)
}

pub(crate) fn row(table: &TargetTable, values: &[Option<Value>]) -> Row {
    let mut row = RowBuilder::with_capacity(values.len(), 64);
    for (value, column) in values.iter().zip(&table.schema.columns) {
        let mut bytes = bytes::BytesMut::new();
        match value {
            None => row.push(Cell::Null),
            Some(value) => {
                codec::encode(&column.type_, value, &mut bytes).unwrap();
                row.push(Cell::Bytes(&bytes));
            }
        }
    }
    row.finish()
}

pub(crate) struct Bench {
    pub(crate) file: SinkFile,
    pub(crate) sink: SqliteSink,
    pub(crate) target: Target,
    pub(crate) offset: u64,
}

impl Bench {
    pub(crate) async fn new(table: TargetTable, dialect: Dialect) -> Self {
        let file = SinkFile::new();
        let support = crossfade_event::catalog::Catalog { dialect, ..file.support() };
        let target = Target { migration: "m".into(), epoch: 1, tables: vec![table], support, into_existing: false };
        let mut sink = file.sink("m");
        sink.prepare(&target).await.unwrap();
        Self { file, sink, target, offset: 0 }
    }

    pub(crate) async fn write(&mut self, stage: Stage, values: Vec<Vec<Option<Value>>>) -> Applied {
        let mut writes = Vec::new();
        for values in values {
            self.offset += 1;
            let at = Version { sequence: Sequence(self.offset), ordinal: 0 };
            let row = row(&self.target.tables[0], &values);
            writes.push(match stage {
                Stage::Loading => Write::Rows { table: TABLE, at, count: 1, rows: row.as_bytes().clone() },
                Stage::Streaming => {
                    let change =
                        Change { table: TABLE, schema: SchemaVersion(1), op: Op::Update, old: None, new: Some(row) };
                    Write::Change { at, change }
                }
            });
        }
        let upto = Progress {
            cut: Cut::single(Offset(self.offset)),
            stage,
            generation: 1,
            stream_from: Cut::single(Offset(0)),
            sequence: None,
            position: None,
            schemas: Vec::new(),
        };
        self.sink.apply(Delivery { writes, upto, commits: true }, Guard::Forward).await.unwrap()
    }

    fn text(&self) -> Vec<Vec<Option<String>>> {
        rows(&self.file.connection(), "t")
    }
}

pub(crate) fn text(text: &str) -> Option<Value> {
    Some(Value::Text(text.into()))
}

pub(crate) fn int(value: i64) -> Option<Value> {
    Some(Value::Int(value))
}

#[tokio::test(flavor = "multi_thread")]
async fn cells_of_postgresql_are_written_exactly_or_quarantined() {
    for format in [Format::PgBinary, Format::PgText] {
        let columns = vec![
            column(1, "id", "INTEGER", Logical::Int64, format),
            column(2, "b", "INTEGER", Logical::Bool, format),
            column(3, "n", "TEXT", Logical::Numeric, format),
            column(4, "f", "REAL", Logical::Float64, format),
            column(5, "u", "TEXT", Logical::Uuid, format),
            column(6, "d", "TEXT", Logical::Date, format),
            column(7, "x", "BLOB", Logical::Bytes, format),
        ];
        let mut bench = Bench::new(table(1, columns), Dialect::Postgres).await;
        let numeric = || Some(Value::Numeric(crossfade_event::Numeric::Finite("12345678901234567890.50".into())));
        let good = vec![
            int(1),
            Some(Value::Bool(true)),
            numeric(),
            Some(Value::Float64(-0.5)),
            Some(Value::Uuid([7; 16])),
            Some(Value::Date(0)),
            Some(Value::Bytes(vec![0, 255])),
        ];
        let bad = vec![int(2), None, None, Some(Value::Float64(f64::NAN)), None, None, None];
        let applied = bench.write(Stage::Loading, vec![good.clone(), bad.clone()]).await;
        assert_eq!((applied.applied, applied.rejected.len()), (1, 1));
        assert!(applied.rejected[0].reason.contains("NaN"), "{}", applied.rejected[0].reason);
        let found = bench.text();
        let wanted =
            ["1", "1", "12345678901234567890.50", "-0.5", "07070707-0707-0707-0707-070707070707", "2000-01-01"];
        assert_eq!(found[0][..6], wanted.map(|text| Some(text.to_owned())));
        let key = bench.target.tables[0].schema.key_of(&row(&bench.target.tables[0], &good)).unwrap();
        assert_eq!(bench.sink.read_row(TABLE, &key).await.unwrap(), Some(row(&bench.target.tables[0], &good)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unique_index_waits_until_the_stream_has_passed_the_end_of_the_copy() {
    let mut unique = table(1, vec![dynamic(1, "id", "INTEGER"), dynamic(2, "u", "TEXT")]);
    unique.def.uniques.push(KeyDef {
        name: "t_u".into(),
        columns: vec!["u".into()],
        deferrable: false,
        nulls_not_distinct: false,
    });
    unique.def.indexes.push(IndexDef {
        name: "t_plain".into(),
        unique: false,
        definition: "(u)".into(),
        columns: vec!["u".into()],
        plain: true,
    });
    let mut bench = Bench::new(unique, Dialect::Sqlite).await;
    // Rows copied at different moments: the stream tells of an earlier one, in which row 2 had what row 1 has here.
    let copied = vec![vec![int(1), text("a")], vec![int(2), text("b")], vec![int(3), text("c")]];
    bench.write(Stage::Loading, copied).await;
    bench.sink.finish_load().await.unwrap();
    let has = |bench: &Bench, name: &str| -> bool {
        bench.file.connection().prepare("SELECT 1 FROM sqlite_schema WHERE name = ?1").unwrap().exists([name]).unwrap()
    };
    assert!(has(&bench, "t_plain") && !has(&bench, "t_u"));
    bench.offset = 0;
    bench.write(Stage::Streaming, vec![vec![int(3), text("c")]]).await;
    assert!(!has(&bench, "t_u"), "the stream has not come far enough");
    let applied = bench.write(Stage::Streaming, vec![vec![int(2), text("a")]]).await;
    assert!(applied.rejected.is_empty(), "values may be doubled until the stream has caught up with the copy");
    let mut sink = bench.file.sink("m");
    sink.prepare(&bench.target).await.unwrap();
    bench.sink = sink;
    bench.write(Stage::Streaming, vec![vec![int(1), text("b")]]).await;
    assert!(has(&bench, "t_u"), "the values are unique now, also after a restart");
    let applied = bench.write(Stage::Streaming, vec![vec![int(4), text("b")]]).await;
    assert_eq!(applied.rejected.len(), 1, "and must stay so");
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_added_renamed_and_dropped_are_followed_twice_over() {
    let before = table(1, vec![dynamic(1, "id", "INTEGER"), dynamic(2, "a", "TEXT"), dynamic(3, "gone", "TEXT")]);
    let mut added = dynamic(4, "new", "TEXT");
    added.default = Some("'none'".into());
    added.nullable = false;
    let after = table(2, vec![dynamic(1, "id", "INTEGER"), dynamic(2, "b", "TEXT"), added]);
    let mut bench = Bench::new(before.clone(), Dialect::Sqlite).await;
    bench.write(Stage::Streaming, vec![vec![int(1), text("x"), text("y")]]).await;
    for _ in 0..2 {
        bench.sink.alter(&before, &after).await.unwrap();
    }
    bench.target.tables = vec![after];
    bench.write(Stage::Streaming, vec![vec![int(2), text("z"), text("w")]]).await;
    let row = |cells: [&str; 3]| cells.map(|cell| Some(cell.to_owned())).to_vec();
    assert_same("t", &bench.text(), &[row(["1", "x", "none"]), row(["2", "z", "w"])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_counter_goes_on_with_room_above_the_sources() {
    let mut counted = table(1, vec![dynamic(1, "id", "INTEGER"), dynamic(2, "a", "TEXT")]);
    let sequence = TableName::new("main", "t.id");
    counted.def.columns[0].sequence = Some(sequence.clone());
    counted.def.columns[0].identity = Some(IdentityColumn::ByDefault);
    let file = SinkFile::new();
    let mut support = file.support();
    support.sequences.push(SequenceDef {
        name: sequence,
        options: String::new(),
        last_value: Some(500),
        increment: 1,
        owner: None,
    });
    let target = Target { migration: "m".into(), epoch: 1, tables: vec![counted], support, into_existing: false };
    let mut sink = file.sink("m");
    sink.prepare(&target).await.unwrap();
    for _ in 0..2 {
        sink.finish_load().await.unwrap();
    }
    let connection = file.connection();
    connection.execute("INSERT INTO t(a) VALUES ('x')", []).unwrap();
    assert_eq!(connection.last_insert_rowid(), 10_501);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_target_is_waited_for_with_a_limit() {
    let mut bench = Bench::new(table(1, vec![dynamic(1, "id", "INTEGER")]), Dialect::Sqlite).await;
    let config = crossfade_sqlite::Config {
        busy_timeout: std::time::Duration::from_millis(50),
        ..crossfade_sqlite::Config::new(bench.file.path())
    };
    bench.sink = SqliteSink::new(config, "m");
    bench.sink.prepare(&bench.target).await.unwrap();
    let other = bench.file.connection();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let upto = Progress {
        cut: Cut::single(Offset(1)),
        stage: Stage::Streaming,
        generation: 1,
        stream_from: Cut::single(Offset(0)),
        sequence: None,
        position: None,
        schemas: Vec::new(),
    };
    let delivery = Delivery { writes: Vec::new(), upto, commits: true };
    let failure = bench.sink.apply(delivery.clone(), Guard::Forward).await.unwrap_err();
    assert!(matches!(failure.verdict, Verdict::Retry { .. }), "{failure}");
    other.execute_batch("ROLLBACK").unwrap();
    bench.sink.apply(delivery, Guard::Forward).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_whose_position_cannot_be_recorded_are_not_there() {
    let mut bench = Bench::new(table(1, vec![dynamic(1, "id", "INTEGER")]), Dialect::Sqlite).await;
    bench.write(Stage::Streaming, vec![vec![int(1)]]).await;
    let refuse = "CREATE TRIGGER refuse BEFORE UPDATE ON _crossfade_positions BEGIN SELECT RAISE(ABORT, 'no'); END";
    bench.file.connection().execute_batch(refuse).unwrap();
    let row = row(&bench.target.tables[0], &[int(2)]);
    let at = Version { sequence: Sequence(9), ordinal: 0 };
    let writes = vec![Write::Rows { table: TABLE, at, count: 1, rows: row.as_bytes().clone() }];
    let upto = bench.sink.progress().await.unwrap().unwrap();
    bench.sink.apply(Delivery { writes, upto, commits: true }, Guard::Forward).await.unwrap_err();
    assert_same("t", &bench.text(), &[vec![Some("1".to_owned())]]);
}
