//! A role that may not set `session_replication_role`: foreign keys and triggers are in force.

use crate::rig::{Rig, V, column, delete, insert, new_sink, refers, table, update, update_from};
use crossfade_connector::TargetTable;

fn tables(on: &str) -> Vec<TargetTable> {
    let mut child = refers(
        table(
            2,
            "child",
            vec![column("id", "integer", Some(0)), column("parent", "integer", None), column("note", "text", None)],
        ),
        "parent",
        "parent",
        "id",
    );
    child.def.foreign_keys[0].suffix = on.to_owned();
    vec![table(1, "parent", vec![column("id", "integer", Some(0)), column("name", "text", None)]), child]
}

async fn rig(on: &str) -> Option<Rig> {
    let mut rig = Rig::empty(tables(on)).await?;
    let name = format!("plain_{}", rig.database.name);
    rig.database
        .execute(&format!("CREATE ROLE {name} LOGIN; GRANT CREATE ON DATABASE {} TO {name}", rig.database.name))
        .await;
    rig.sink = new_sink(&rig.database.url.replace("postgres@", &format!("{name}@")));
    rig.prepare().await.unwrap();
    rig.load(vec![]).await.unwrap();
    rig.stream(vec![]).await.unwrap();
    assert_eq!(rig.ask("SELECT count(*) FROM pg_constraint WHERE contype = 'f'").await, ["1"]);
    rig.stream(vec![
        // The child comes first in the delivery; the parent's table comes first in the target.
        insert(2, &[V::Int(10), V::Int(1), V::Text("long")]),
        insert(1, &[V::Int(1), V::Null]),
        insert(1, &[V::Int(2), V::Null]),
    ])
    .await
    .unwrap();
    Some(rig)
}

#[tokio::test]
async fn a_parent_goes_after_its_children_went_elsewhere() {
    let Some(mut rig) = rig("").await else { return };
    let applied = rig
        .stream(vec![update(2, &[V::Int(10), V::Int(2), V::Same]), delete(1, &[V::Int(1), V::Absent])])
        .await
        .unwrap();
    assert!(applied.rejected.is_empty(), "{}", applied.rejected[0].reason);
    let applied = rig
        .stream(vec![delete(2, &[V::Int(10), V::Absent, V::Absent]), delete(1, &[V::Int(2), V::Absent])])
        .await
        .unwrap();
    assert!(applied.rejected.is_empty());
    assert_eq!(rig.ask("SELECT count(*) FROM app.parent").await, ["0"]);
}

#[tokio::test]
async fn a_parents_new_key_does_not_take_its_children_along() {
    let Some(mut rig) = rig("ON UPDATE CASCADE ON DELETE CASCADE").await else { return };
    let applied = rig
        .stream(vec![
            update_from(1, &[V::Int(1), V::Absent], &[V::Int(5), V::Text("five")]),
            update(2, &[V::Int(10), V::Int(5), V::Same]),
        ])
        .await
        .unwrap();
    assert!(applied.rejected.is_empty(), "{}", applied.rejected[0].reason);
    assert_eq!(rig.ask("SELECT * FROM app.child").await, ["10|5|long"]);
    assert_eq!(rig.ask("SELECT * FROM app.parent ORDER BY id").await, ["2|∅", "5|five"]);
}

#[tokio::test]
async fn a_child_without_a_parent_is_quarantined() {
    let Some(mut rig) = rig("").await else { return };
    let applied = rig
        .stream(vec![insert(2, &[V::Int(11), V::Int(77), V::Null]), insert(2, &[V::Int(12), V::Int(2), V::Null])])
        .await
        .unwrap();
    assert_eq!(applied.rejected.len(), 1);
    assert!(applied.rejected[0].reason.contains("child_parent_fkey"), "{}", applied.rejected[0].reason);
    assert_eq!(rig.ask("SELECT id FROM app.child ORDER BY id").await, ["10", "12"]);
}
