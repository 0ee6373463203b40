//! Following the shape of the source's tables.

use crate::rig::{Rig, V, column, delete, insert, table, update};
use crossfade_connector::{Delivery, Guard, Quarantine, QuarantineFilter, Sink, Stage, TargetTable};
use crossfade_event::{
    Column, SchemaVersion, TableName,
    catalog::{ColumnDef, TypeDef, TypeDefinition},
};
use std::sync::Arc;

fn before() -> TargetTable {
    table(
        1,
        "people",
        vec![column("id", "integer", Some(0)), column("name", "text", None), column("old", "text", None)],
    )
}

/// `name` is now `full_name`, `old` is gone, `added` came with a default, `id` is wider.
fn after() -> TargetTable {
    let was = before();
    let mut added = column("added", "text", None);
    (added.native_id, added.default) = (9, Some("'x'::text".into()));
    let mut renamed = was.schema.columns[1].clone();
    renamed.name = "full_name".into();
    let mut id = was.schema.columns[0].clone();
    id.type_.name = "bigint".into();
    with(was, vec![id, renamed, added])
}

fn with(mut table: TargetTable, columns: Vec<Column>) -> TargetTable {
    let mut schema = (*table.schema).clone();
    schema.version = SchemaVersion(schema.version.0 + 1);
    table.def.columns = columns.iter().map(|column| ColumnDef::plain(column.clone())).collect();
    schema.columns = columns;
    table.schema = Arc::new(schema);
    table
}

#[tokio::test]
async fn columns_are_renamed_dropped_added_and_retyped() {
    let Some(mut rig) = Rig::streaming(vec![before()]).await else { return };
    rig.stream(vec![insert(1, &[V::Int(1), V::Text("a"), V::Text("gone")])]).await.unwrap();
    rig.sink.alter(&before(), &after()).await.unwrap();
    rig.sink.alter(&before(), &after()).await.unwrap();
    let big = |id: i64| V::Raw(id.to_be_bytes().to_vec());
    rig.stream(vec![
        insert(1, &[big(2), V::Text("b"), V::Null]),
        update(1, &[big(1), V::Text("c"), V::Same]),
        insert(1, &[big(3), V::Null, V::Null]),
        delete(1, &[big(3), V::Absent, V::Absent]),
    ])
    .await
    .unwrap();
    assert_eq!(rig.ask("SELECT id, full_name, added FROM app.people ORDER BY id").await, ["1|c|x", "2|b|∅"]);
    assert_eq!(
        rig.ask("SELECT attname, format_type(atttypid, -1) FROM pg_attribute WHERE attrelid = 'app.people'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY 1").await,
        ["added|text", "full_name|text", "id|bigint"]
    );
}

#[tokio::test]
async fn a_shape_that_changed_in_a_lost_transaction_is_followed_again() {
    let Some(mut rig) = Rig::streaming(vec![before()]).await else { return };
    let upto = rig.upto(Stage::Streaming);
    let writes = rig.writes(vec![insert(1, &[V::Int(1), V::Text("a"), V::Null])]);
    rig.sink.apply(Delivery { writes, upto, commits: false }, Guard::Forward).await.unwrap();
    rig.sink.alter(&before(), &after()).await.unwrap();
    rig.restart().await;
    assert_eq!(rig.ask("SELECT * FROM app.people").await, Vec::<String>::new());
    rig.stream(vec![insert(1, &[V::Int(1), V::Text("a"), V::Null])]).await.unwrap();
    rig.sink.alter(&before(), &after()).await.unwrap();
    rig.stream(Vec::new()).await.unwrap();
    assert_eq!(rig.ask("SELECT id, full_name, added FROM app.people").await, ["1|a|x"]);
}

/// The columns of the table and its rows, as text.
async fn there(rig: &Rig) -> (Vec<String>, Vec<String>) {
    let columns = "SELECT attname FROM pg_attribute WHERE attrelid = 'app.people'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY 1";
    let columns = rig.ask(columns).await;
    let rows = rig.ask(&format!("SELECT {} FROM app.people ORDER BY id", columns.join(", "))).await;
    (columns, rows)
}

#[tokio::test]
async fn a_change_of_shape_that_is_cut_off_leaves_nothing_behind() {
    let Some(mut rig) = Rig::streaming(vec![before()]).await else { return };
    rig.stream(vec![insert(1, &[V::Int(1), V::Text("a"), V::Text("gone")])]).await.unwrap();
    let was = there(&rig).await;
    // No rows were gathered before the change: the sink has no transaction open.
    rig.sink.alter(&before(), &after()).await.unwrap();
    // Nobody is kept from the table while the rows after it have not come.
    assert_eq!(there(&rig).await, was);
    rig.restart().await;
    assert_eq!(there(&rig).await, was);
    rig.sink.alter(&before(), &after()).await.unwrap();
    let upto = rig.upto(Stage::Streaming);
    rig.sink.apply(Delivery { writes: Vec::new(), upto, commits: false }, Guard::Forward).await.unwrap();
    rig.restart().await;
    assert_eq!(there(&rig).await, was);
    rig.sink.alter(&before(), &after()).await.unwrap();
    rig.stream(Vec::new()).await.unwrap();
    let (columns, rows) = there(&rig).await;
    assert_eq!((columns, rows), (vec!["added".into(), "full_name".into(), "id".into()], vec!["x|a|1".to_owned()]));
}

#[tokio::test]
async fn a_lost_session_is_not_gone_on_with_when_a_shape_changes() {
    const END: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE application_name = 'crossfade sink test' AND datname = current_database()";
    const LEFT: &str = "SELECT FROM pg_stat_activity \
         WHERE application_name = 'crossfade sink test' AND datname = current_database()";
    for prepares in [true, false] {
        let Some(mut rig) = Rig::streaming(vec![before()]).await else { return };
        let upto = rig.upto(Stage::Streaming);
        let writes = rig.writes(vec![insert(1, &[V::Int(1), V::Null, V::Null])]);
        rig.sink.apply(Delivery { writes, upto, commits: false }, Guard::Forward).await.unwrap();
        rig.database.execute(END).await;
        while !rig.ask(LEFT).await.is_empty() {
            tokio::task::yield_now().await;
        }
        // The first part is gone with its session: the rest must not be committed on another one.
        let followed = match prepares {
            true => rig.prepare().await,
            false => rig.sink.alter(&before(), &after()).await,
        };
        let committed = match followed {
            Ok(()) => rig.stream(vec![insert(1, &[V::Int(2), V::Null, V::Null])]).await.map(drop),
            Err(failure) => Err(failure),
        };
        assert!(committed.unwrap_err().is_transient());
        let progress = rig.sink.progress().await.unwrap().unwrap();
        assert_eq!(progress.cut.total(), 200);
        rig.prepare().await.unwrap();
        rig.stream(vec![insert(1, &[V::Int(1), V::Null, V::Null])]).await.unwrap();
        assert_eq!(rig.ask("SELECT id FROM app.people").await, ["1"]);
    }
}

/// A column's name, the source's number for it, its type.
type Lettered<'a> = (&'a str, u32, &'a str);

/// Columns behind a key.
fn lettered(columns: &[Lettered<'_>]) -> TargetTable {
    let mut all = vec![column("id", "integer", Some(0))];
    all.extend(columns.iter().map(|(name, _, type_)| column(name, type_, None)));
    all[0].native_id = 1;
    for (column, (_, number, _)) in all.iter_mut().skip(1).zip(columns) {
        column.native_id = *number;
    }
    with(table(1, "people", vec![column("id", "integer", Some(0))]), all)
}

#[tokio::test]
async fn values_go_with_their_columns_whatever_names_they_take() {
    let t = "text";
    let was = [("a", 2, t), ("b", 3, t), ("c", 4, t)];
    let cases: &[(&[Lettered<'_>], &str)] = &[
        // Two exchange their names; all three go round, both ways.
        (&[("b", 2, t), ("a", 3, t), ("c", 4, t)], "B|A|C"),
        (&[("b", 2, t), ("c", 3, t), ("a", 4, t)], "C|A|B"),
        (&[("c", 2, t), ("a", 3, t), ("b", 4, t)], "B|C|A"),
        // One takes the name of one that has given it up, in either order.
        (&[("b", 2, t), ("x", 3, t), ("c", 4, t)], "A|C|B"),
        (&[("x", 2, t), ("a", 3, t), ("c", 4, t)], "B|C|A"),
        // One takes the name of a column that goes.
        (&[("a", 3, t), ("c", 4, t)], "B|C"),
        (&[("b", 4, t)], "C"),
        // Another name and a wider type at once.
        (&[("x", 2, "character varying"), ("b", 3, t), ("c", 4, t)], "B|C|A"),
        // Dropped and added again: another column, and empty.
        (&[("a", 9, t), ("b", 3, t), ("c", 4, t)], "∅|B|C"),
        (&[("a", 9, "integer"), ("c", 4, t)], "∅|C"),
    ];
    for (now, expected) in cases {
        let (before, after) = (lettered(&was), lettered(now));
        let Some(mut rig) = Rig::streaming(vec![before.clone()]).await else { return };
        rig.stream(vec![insert(1, &[V::Int(1), V::Text("A"), V::Text("B"), V::Text("C")])]).await.unwrap();
        rig.sink.alter(&before, &after).await.unwrap();
        // Asked once more, it is done already.
        rig.sink.alter(&before, &after).await.unwrap();
        rig.stream(Vec::new()).await.unwrap();
        let mut columns: Vec<&str> = now.iter().map(|(name, ..)| *name).collect();
        columns.sort_unstable();
        let rows = rig.ask(&format!("SELECT {} FROM app.people", columns.join(", "))).await;
        assert_eq!(rows, [*expected], "{now:?}");
    }
}

#[tokio::test]
async fn a_quarantined_change_finds_its_columns_under_their_new_names() {
    let t = "text";
    let (before, after) = (lettered(&[("a", 2, t), ("b", 3, t)]), lettered(&[("b", 2, t), ("a", 3, t)]));
    let Some(mut rig) = Rig::streaming(vec![before.clone()]).await else { return };
    rig.database.execute("ALTER TABLE app.people ADD CONSTRAINT no_bad CHECK (id <> 7)").await;
    let applied = rig.stream(vec![insert(1, &[V::Int(7), V::Text("A"), V::Text("B")])]).await.unwrap();
    assert_eq!(applied.rejected.len(), 1);
    rig.sink.alter(&before, &after).await.unwrap();
    rig.stream(Vec::new()).await.unwrap();
    rig.database.execute("ALTER TABLE app.people DROP CONSTRAINT no_bad").await;
    let outcome = rig.sink.retry(&QuarantineFilter::default()).await.unwrap();
    assert_eq!((outcome.applied, outcome.remaining), (1, 0));
    assert_eq!(rig.ask("SELECT a, b FROM app.people").await, ["B|A"]);
}

#[tokio::test]
async fn a_shape_is_followed_where_types_are_spelled_as_people_do() {
    let (before, after) = (lettered(&[("a", 2, "varchar(20)")]), lettered(&[("b", 2, "varchar(20)"), ("c", 3, "int")]));
    let Some(mut rig) = Rig::streaming(vec![before.clone()]).await else { return };
    let upto = rig.upto(Stage::Streaming);
    let writes = rig.writes(vec![insert(1, &[V::Int(1), V::Text("A")])]);
    rig.sink.apply(Delivery { writes, upto, commits: false }, Guard::Forward).await.unwrap();
    rig.sink.alter(&before, &after).await.unwrap();
    rig.stream(vec![insert(1, &[V::Int(2), V::Text("B"), V::Int(5)])]).await.unwrap();
    assert_eq!(rig.ask("SELECT id, b, c FROM app.people ORDER BY id").await, ["1|A|∅", "2|B|5"]);
}

#[tokio::test]
async fn a_type_may_be_spelled_as_people_do() {
    let names = ["varchar(20)", "int", "decimal(5, 2)", "timestamptz(3)", "bool", "char(4)", "varchar(3)[]"];
    let mut columns = vec![column("id", "integer", Some(0))];
    columns.extend(names.iter().enumerate().map(|(number, name)| column(&format!("c{number}"), name, None)));
    let Some(mut rig) = Rig::streaming(vec![table(1, "spelled", columns)]).await else { return };
    rig.restart().await;
    let mut values = vec![V::Int(1), V::Text("v"), V::Int(2)];
    values.extend([V::Null, V::Null, V::Raw(vec![1]), V::Text("abcd"), V::Null]);
    rig.stream(vec![insert(1, &values)]).await.unwrap();
    assert_eq!(rig.ask("SELECT c0, c1, c4, c5 FROM app.spelled").await, ["v|2|t|abcd"]);
}

fn moods(labels: &[&str]) -> TypeDef {
    let labels = labels.iter().map(|label| (*label).to_owned()).collect();
    TypeDef { name: TableName::new("app", "mood"), definition: TypeDefinition::Enum(labels) }
}

#[tokio::test]
async fn a_label_that_comes_with_a_change_of_shape_can_be_used_at_once() {
    let before = lettered(&[("a", 2, "app.mood")]);
    let after = lettered(&[("a", 2, "app.mood"), ("b", 3, "app.mood")]);
    for open in [false, true] {
        let Some(mut rig) = Rig::empty(vec![before.clone()]).await else { return };
        rig.target.support.types = vec![moods(&["sad", "happy"])];
        rig.prepare().await.unwrap();
        rig.load(Vec::new()).await.unwrap();
        rig.stream(vec![insert(1, &[V::Int(1), V::Text("sad")])]).await.unwrap();
        if open {
            // A part of a large transaction is in already.
            let upto = rig.upto(Stage::Streaming);
            let writes = rig.writes(vec![insert(1, &[V::Int(2), V::Text("happy")])]);
            rig.sink.apply(Delivery { writes, upto, commits: false }, Guard::Forward).await.unwrap();
        }
        rig.sink.alter(&before, &after).await.unwrap();
        rig.target.support.types = vec![moods(&["sad", "ok", "happy"])];
        rig.target.tables = vec![after.clone()];
        rig.prepare().await.unwrap();
        let stream = rig.stream(vec![insert(1, &[V::Int(3), V::Text("ok"), V::Text("ok")])]);
        tokio::time::timeout(std::time::Duration::from_secs(60), stream).await.unwrap().unwrap();
        assert_eq!(rig.ask("SELECT b FROM app.people WHERE a = 'ok'").await, ["ok"]);
    }
}
