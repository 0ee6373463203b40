//! Following the shape of the source's tables.

use crate::rig::{Rig, V, column, delete, insert, table, update};
use crossfade_connector::{Delivery, Guard, Sink, Stage, TargetTable};
use crossfade_event::{Column, SchemaVersion, catalog::ColumnDef};
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
    table.def.columns = columns
        .iter()
        .map(|column| ColumnDef {
            column: column.clone(),
            default: None,
            identity: None,
            generated: None,
            collation: None,
            sequence: None,
        })
        .collect();
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
    assert_eq!(rig.ask("SELECT id, full_name, added FROM app.people").await, ["1|a|x"]);
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
