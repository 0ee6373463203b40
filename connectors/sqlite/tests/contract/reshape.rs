//! A table of the target whose columns change: whatever becomes of the names, values stay where they belong.

use crate::{
    fixture::asked,
    sink::{Bench, TABLE, column, dynamic, int, row, table, text},
};
use crossfade_connector::{
    Delivery, Guard, Progress, Quarantine, QuarantineFilter, Sink, Stage, TargetTable, Verdict, Write,
};
use crossfade_event::{
    Change, Column, Cut, Format, Logical, Offset, Op, SchemaVersion, Sequence, TableName, Value, Version,
    catalog::{Dialect, ForeignKeyDef, IndexDef, KeyDef},
};
use crossfade_sqlite::OnError;
use crossfade_testkit::{
    sink_suite::SinkFixture,
    source_suite::{TextRow, assert_same},
};

/// Refuses the row with the key 2, as long as it is there.
const REFUSE: &str = "CREATE TRIGGER refuse BEFORE INSERT ON t WHEN NEW.id = 2 BEGIN SELECT RAISE(ABORT, 'no'); END";

fn texts(names: &[(u32, &str)]) -> Vec<Column> {
    let id = dynamic(1, "id", "INTEGER");
    [id].into_iter().chain(names.iter().map(|(number, name)| dynamic(*number, name, "TEXT"))).collect()
}

fn cells(cells: &[&str]) -> TextRow {
    cells.iter().map(|cell| (*cell != "-").then(|| (*cell).to_owned())).collect()
}

impl Bench {
    /// Twice, as after a crash before anybody recorded that it was done.
    async fn reshape(&mut self, after: TargetTable) {
        for _ in 0..2 {
            self.sink.alter(&self.target.tables[0], &after).await.unwrap();
        }
        self.target.tables = vec![after];
    }

    async fn insert(&mut self, values: &[Option<Value>]) -> crossfade_connector::Applied {
        self.change(Op::Insert, values).await.unwrap()
    }

    async fn change(
        &mut self,
        op: Op,
        values: &[Option<Value>],
    ) -> Result<crossfade_connector::Applied, crossfade_connector::Failure> {
        self.offset += 1;
        let at = Version { sequence: Sequence(self.offset), ordinal: 0 };
        let new = Some(row(&self.target.tables[0], values));
        let change = Change { table: TABLE, schema: SchemaVersion(1), op, old: None, new };
        let delivery = Delivery { writes: vec![Write::Change { at, change }], upto: self.standing(), commits: true };
        self.sink.apply(delivery, Guard::Forward).await
    }

    fn standing(&self) -> Progress {
        Progress {
            cut: Cut::single(Offset(self.offset + 1)),
            stage: Stage::Streaming,
            generation: 1,
            stream_from: Cut::single(Offset(0)),
            sequence: None,
            position: None,
            schemas: Vec::new(),
        }
    }

    fn ask(&self, query: &str) -> Vec<TextRow> {
        asked(&self.file.connection(), query)
    }

    fn run(&self, sql: &str) {
        self.file.connection().execute_batch(sql).unwrap();
    }
}

/// What a table's columns become, and in which the values `one` … `four` of the columns 2, 3, 4 and a new fifth stand.
struct Case {
    what: &'static str,
    after: &'static [(u32, &'static str)],
    /// The row that was there, by the names in `after`.
    there: &'static [&'static str],
}

const BEFORE: [(u32, &str); 3] = [(2, "a"), (3, "b"), (4, "c")];

const CASES: [Case; 9] = [
    Case { what: "two exchange their names", after: &[(2, "b"), (3, "a"), (4, "c")], there: &["one", "two", "three"] },
    Case { what: "names go round", after: &[(2, "b"), (3, "c"), (4, "a")], there: &["one", "two", "three"] },
    Case { what: "names move up", after: &[(2, "b"), (3, "c"), (4, "d")], there: &["one", "two", "three"] },
    Case { what: "one takes a dropped one's name", after: &[(2, "b"), (4, "c")], there: &["one", "three"] },
    Case { what: "two do", after: &[(3, "a"), (4, "b")], there: &["two", "three"] },
    Case {
        what: "one goes and one of its name comes",
        after: &[(2, "a"), (3, "b"), (5, "c")],
        there: &["one", "two", "-"],
    },
    Case {
        what: "so, and it takes another's name",
        after: &[(2, "c"), (3, "b"), (5, "a")],
        there: &["one", "two", "-"],
    },
    Case { what: "only the case changes", after: &[(2, "A"), (3, "b"), (4, "C")], there: &["one", "two", "three"] },
    Case { what: "case and names change", after: &[(2, "B"), (3, "A"), (4, "c")], there: &["one", "two", "three"] },
];

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_take_each_others_names_keep_their_values() {
    for held in [false, true] {
        for case in &CASES {
            println!("{} (a row in quarantine: {held})", case.what);
            let mut bench = Bench::new(table(1, texts(&BEFORE)), Dialect::Sqlite).await;
            let values = || [text("one"), text("two"), text("three")];
            bench.insert(&[&[int(1)], &values()[..]].concat()).await;
            if held {
                bench.run(REFUSE);
                let applied = bench.insert(&[&[int(2)], &values()[..]].concat()).await;
                assert_eq!(applied.rejected.len(), 1);
            }
            bench.reshape(table(2, texts(case.after))).await;
            let new: Vec<Option<Value>> = case.after.iter().map(|(number, _)| text(&format!("new {number}"))).collect();
            bench.insert(&[&[int(3)], &new[..]].concat()).await;
            let mut wanted = vec![cells(&[&["1"], case.there].concat())];
            if held {
                bench.run("DROP TRIGGER refuse");
                let outcome = bench.sink.retry(&QuarantineFilter::default()).await.unwrap();
                assert_eq!((outcome.applied, outcome.remaining), (1, 0));
                wanted.push(cells(&[&["2"], case.there].concat()));
            }
            wanted.push([vec![Some("3".to_owned())], new.iter().map(shown).collect()].concat());
            let names: Vec<String> = case.after.iter().map(|(_, name)| format!("t.\"{name}\"")).collect();
            assert_same("t", &bench.ask(&format!("SELECT id, {} FROM t", names.join(", "))), &wanted);
            let names_now = bench.ask("SELECT name FROM pragma_table_info('t')");
            for (_, name) in case.after {
                assert!(names_now.contains(&cells(&[name])), "{name} is not there in that spelling");
            }
            assert_eq!(names_now.len(), case.after.len() + 1);
        }
    }
}

fn shown(value: &Option<Value>) -> Option<String> {
    match value {
        Some(Value::Text(text)) => Some(text.clone()),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_go_there_and_back_again_are_followed_each_time() {
    let mut bench = Bench::new(table(1, texts(&BEFORE)), Dialect::Sqlite).await;
    bench.insert(&[int(1), text("one"), text("two"), text("three")]).await;
    for version in 2..6 {
        let exchanged = [(2, "b"), (3, "a"), (4, "c")];
        let names = if version % 2 == 0 { exchanged } else { BEFORE };
        bench.reshape(table(version, texts(&names))).await;
        let wanted = if version % 2 == 0 { cells(&["two", "one"]) } else { cells(&["one", "two"]) };
        assert_same("t", &bench.ask("SELECT a, b FROM t"), &[wanted]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_row_gets_the_default_of_a_column_that_came_meanwhile() {
    let mut bench = Bench::new(table(1, texts(&[(2, "a")])), Dialect::Sqlite).await;
    bench.insert(&[int(1), text("one")]).await;
    bench.run(REFUSE);
    bench.insert(&[int(2), text("two")]).await;
    // It waits behind the first, and says nothing of the column that is to come.
    assert_eq!(bench.change(Op::Update, &[int(2), text("later")]).await.unwrap().held, 1);
    let mut columns = texts(&[(2, "a"), (3, "n")]);
    columns[2].default = Some("1 + 4".into());
    columns[2].nullable = false;
    let first = bench.sink.alter(&bench.target.tables[0], &table(2, columns.clone())).await;
    assert!(first.is_err(), "SQLite adds no column with a default that is no constant to rows that are there");
    columns[2].default = Some("'none'".into());
    bench.reshape(table(2, columns)).await;
    bench.run("DROP TRIGGER refuse");
    bench.sink.retry(&QuarantineFilter::default()).await.unwrap();
    assert_same("t", &bench.ask("SELECT * FROM t"), &[cells(&["1", "one", "none"]), cells(&["2", "later", "none"])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn digits_stay_text_once_their_column_is_one_of_text() {
    let of = |version, type_| table(version, vec![dynamic(1, "id", "INTEGER"), dynamic(2, "n", type_)]);
    let mut bench = Bench::new(of(1, "INTEGER"), Dialect::Postgres).await;
    bench.insert(&[int(1), int(7)]).await;
    bench.reshape(of(2, "TEXT")).await;
    bench.insert(&[int(2), text("007")]).await;
    assert_same("t", &bench.ask("SELECT * FROM t"), &[cells(&["1", "7"]), cells(&["2", "007"])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_of_another_type_does_not_convert_values_any_more() {
    let pg = |id, name, type_| column(id, name, type_, Logical::Dynamic, Format::Tagged);
    let mut before =
        table(1, vec![pg(1, "id", "INTEGER"), pg(2, "n", "INTEGER"), pg(3, "u", "TEXT"), pg(4, "p", "INTEGER")]);
    before.schema = {
        let mut schema = (*before.schema).clone();
        schema.columns[1].nullable = false;
        schema.into()
    };
    before.def.uniques.push(KeyDef {
        name: "t_u".into(),
        columns: vec!["u".into()],
        deferrable: false,
        nulls_not_distinct: false,
    });
    before.def.indexes.push(IndexDef {
        name: "t_p".into(),
        unique: false,
        definition: "(p)".into(),
        columns: vec!["p".into()],
        plain: true,
    });
    before.def.foreign_keys.push(ForeignKeyDef {
        name: "t_p_fkey".into(),
        columns: vec!["p".into()],
        references: TableName::new("main", "t"),
        referenced_columns: vec!["id".into()],
        suffix: String::new(),
    });
    let mut bench = Bench::new(before, Dialect::Postgres).await;
    bench.insert(&[int(1), int(7), text("a"), int(1)]).await;
    bench.sink.finish_load().await.unwrap();
    bench.run("CREATE VIEW v AS SELECT n FROM t; CREATE TRIGGER seen AFTER DELETE ON t BEGIN SELECT 1; END");
    // The referring column goes, another one becomes text and may be NULL.
    let mut after = table(2, vec![pg(1, "id", "INTEGER"), pg(2, "n", "TEXT"), pg(3, "w", "TEXT"), pg(5, "x", "REAL")]);
    after.def.uniques = bench.target.tables[0].def.uniques.clone();
    after.def.uniques[0].columns = vec!["w".into()];
    bench.reshape(after).await;
    bench.insert(&[int(2), text("007"), text("b"), None]).await;
    bench.insert(&[int(3), None, text("c"), Some(Value::Float64(1.0))]).await;
    assert_same(
        "t",
        &bench.ask("SELECT id, n, typeof(n), w, x FROM t"),
        &[
            cells(&["1", "7", "text", "a", "-"]),
            cells(&["2", "007", "text", "b", "-"]),
            cells(&["3", "-", "null", "c", "1"]),
        ],
    );
    assert_eq!(bench.insert(&[int(4), None, text("c"), None]).await.rejected.len(), 1, "it is unique as before");
    let left =
        bench.ask("SELECT name FROM sqlite_schema WHERE name NOT LIKE '%crossfade%' AND name NOT LIKE 'sqlite%'");
    assert_eq!(left, [cells(&["seen"]), cells(&["t"]), cells(&["t_u"]), cells(&["v"])]);
    assert_eq!(bench.ask("SELECT count(*) FROM v"), [cells(&["3"])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_may_be_null_from_then_on_and_must_not_where_rows_allow_it() {
    let with = |version, nullable: bool| {
        let mut columns = texts(&[(2, "a")]);
        columns[1].nullable = nullable;
        table(version, columns)
    };
    let mut bench = Bench::new(with(1, false), Dialect::Sqlite).await;
    assert_eq!(bench.insert(&[int(1), None]).await.rejected.len(), 1);
    bench.reshape(with(2, true)).await;
    assert_eq!(bench.insert(&[int(2), None]).await.rejected.len(), 0);
    let not_null = "SELECT \"notnull\" FROM pragma_table_info('t') WHERE name = 'a'";
    bench.reshape(with(3, false)).await;
    assert_eq!(bench.ask(not_null), [cells(&["0"])], "a row stands against it");
    bench.run("UPDATE t SET a = 'x'");
    bench.reshape(with(4, true)).await;
    bench.reshape(with(5, false)).await;
    assert_eq!(bench.ask(not_null), [cells(&["1"])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_waits_follows_its_columns() {
    let unique = |version, columns: &[(u32, &str)], over: &str| {
        let mut table = table(version, texts(columns));
        table.def.uniques.push(KeyDef {
            name: "t_u".into(),
            columns: vec![over.into()],
            deferrable: false,
            nulls_not_distinct: false,
        });
        table
    };
    let mut bench = Bench::new(unique(1, &[(2, "u"), (3, "v")], "u"), Dialect::Sqlite).await;
    bench.write(Stage::Loading, vec![vec![int(1), text("a"), text("x")], vec![int(2), text("b"), text("x")]]).await;
    bench.sink.finish_load().await.unwrap();
    bench.reshape(unique(2, &[(2, "v"), (3, "u")], "v")).await;
    bench.offset = 10;
    bench.write(Stage::Streaming, vec![vec![int(3), text("c"), text("x")]]).await;
    assert_eq!(bench.ask("SELECT name FROM pragma_index_info('t_u')"), [cells(&["v"])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_superseded_changes_no_shape() {
    let mut bench = Bench::new(table(1, texts(&BEFORE)), Dialect::Sqlite).await;
    let mut later = bench.file.sink("m");
    let target = crossfade_connector::Target { epoch: 2, ..bench.target.clone() };
    later.prepare(&target).await.unwrap();
    let after = table(2, texts(&[(2, "b"), (3, "a"), (4, "c")]));
    let failure = bench.sink.alter(&bench.target.tables[0], &after).await.unwrap_err();
    assert!(matches!(failure.verdict, Verdict::Refused { .. }), "{failure}");
    assert_eq!(bench.ask("SELECT name FROM pragma_table_info('t')")[0..2], [cells(&["a"]), cells(&["b"])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_refused_stops_the_migration_where_the_spec_says_so() {
    let mut bench = Bench::new(table(1, texts(&[(2, "a")])), Dialect::Sqlite).await;
    bench.sink = bench.file.sink("m").on_error(OnError::Stop);
    bench.sink.prepare(&bench.target).await.unwrap();
    bench.insert(&[int(1), text("one")]).await;
    let before = bench.sink.progress().await.unwrap();
    bench.run(REFUSE);
    for op in [Op::Insert, Op::Update] {
        let failure = bench.change(op, &[int(2), text("secret")]).await.unwrap_err();
        let said = failure.to_string();
        assert!(matches!(failure.verdict, Verdict::Halt { .. }) && said.contains("main.t"), "{said}");
        assert!(said.contains("log offset") && !said.contains("secret"), "{said}");
    }
    let new = row(&bench.target.tables[0], &[int(2), text("secret")]);
    let at = Version { sequence: Sequence(9), ordinal: 0 };
    let block = Write::Rows { table: TABLE, at, count: 1, rows: new.as_bytes().clone() };
    let change = Change { table: TABLE, schema: SchemaVersion(1), op: Op::Insert, old: None, new: Some(new) };
    let reason = "the value is not in the map".to_owned();
    let key = change.key(&bench.target.tables[0].schema);
    let refused = Write::Reject(crossfade_connector::Rejection { at, table: TABLE, key, change, reason });
    for write in [block, refused] {
        let delivery = Delivery { writes: vec![write], upto: bench.standing(), commits: true };
        let failure = bench.sink.apply(delivery, Guard::Forward).await.unwrap_err();
        assert!(matches!(failure.verdict, Verdict::Halt { .. }), "{failure}");
    }
    assert_eq!(bench.sink.progress().await.unwrap(), before, "the position stays before it");
    assert_same("t", &bench.ask("SELECT * FROM t"), &[cells(&["1", "one"])]);
    assert!(bench.sink.list(&QuarantineFilter::default()).await.unwrap().is_empty());
    bench.run("DROP TRIGGER refuse");
    bench.change(Op::Insert, &[int(2), text("mended")]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_others_that_would_convert_values_or_double_rows_is_refused() {
    for (made, said) in [
        ("CREATE TABLE t (id INTEGER PRIMARY KEY, a NUMERIC)", "declared NUMERIC"),
        ("CREATE TABLE t (id INTEGER PRIMARY KEY)", "no column a"),
        ("CREATE TABLE t (id INTEGER, a TEXT)", "unique"),
        ("CREATE TABLE t (id INTEGER, a TEXT, PRIMARY KEY (id, a))", "unique"),
    ] {
        let file = crate::fixture::SinkFile::new();
        file.connection().execute_batch(made).unwrap();
        let target = crossfade_connector::Target {
            migration: "m".into(),
            epoch: 1,
            tables: vec![table(1, texts(&[(2, "a")]))],
            support: file.support(),
            into_existing: true,
        };
        let failure = file.sink("m").prepare(&target).await.unwrap_err();
        assert!(matches!(failure.verdict, Verdict::Refused { .. }) && failure.to_string().contains(said), "{failure}");
    }
}

/// The table's owner changes it while the migration runs: what is put back goes by the columns' names.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_overwritten_comes_back_into_its_own_columns_or_is_left_alone() {
    for (change, wanted) in [
        ("ALTER TABLE t ADD COLUMN more", ["old a|old x|old y|-", "kept a|kept x|-|-"].as_slice()),
        ("ALTER TABLE t DROP COLUMN x; ALTER TABLE t ADD COLUMN more", &["old a|old y|-"]),
    ] {
        let file = crate::fixture::SinkFile::new();
        file.connection()
            .execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, x TEXT, y TEXT); INSERT INTO t VALUES (1, 'old a', 'old x', 'old y'), (2, 'kept a', 'kept x', NULL)")
            .unwrap();
        let tables = vec![table(1, texts(&[(2, "a")]))];
        let support = file.support();
        let target =
            crossfade_connector::Target { migration: "m".into(), epoch: 1, tables, support, into_existing: true };
        let mut sink = file.sink("m");
        sink.prepare(&target).await.unwrap();
        let mut bench = Bench { file, sink, target: target.clone(), offset: 0 };
        bench.change(Op::Update, &[int(1), text("ours")]).await.unwrap();
        let old = row(&target.tables[0], &[int(2), None]);
        let at = Version { sequence: Sequence(9), ordinal: 0 };
        let gone = Change { table: TABLE, schema: SchemaVersion(1), op: Op::Delete, old: Some(old), new: None };
        let writes = vec![Write::Change { at, change: gone }];
        let delivery = Delivery { writes, upto: bench.standing(), commits: true };
        bench.sink.apply(delivery, Guard::Forward).await.unwrap();
        bench.run(change);
        let mut sink = bench.file.sink("m");
        let report = crossfade_connector::Rollback::undo(&mut sink, &target).await.unwrap();
        let rows = bench.ask("SELECT * FROM t");
        let wanted: Vec<TextRow> = wanted
            .iter()
            .zip(1..)
            .map(|(row, id)| cells(&[&[["1", "2"][id - 1]], &row.split('|').collect::<Vec<_>>()[..]].concat()))
            .collect();
        assert_same("t", &rows, &wanted);
        assert_eq!(report.left_alone.len(), 2 - wanted.len(), "{report:?}");
    }
}
