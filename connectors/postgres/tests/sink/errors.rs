//! Changes that cannot be applied, and what waits behind them.

use crate::rig::{Rig, V, column, insert, refers, table, unique, update};
use crossfade_connector::{Delivery, Guard, Quarantine, QuarantineFilter, Sink, Stage, TargetTable, Write};
use crossfade_event::{Sequence, TableId, Version};

fn people() -> TargetTable {
    unique(table(1, "people", vec![column("id", "integer", Some(0)), column("name", "text", None)]), "name")
}

fn orders() -> TargetTable {
    refers(
        table(2, "orders", vec![column("id", "integer", Some(0)), column("person", "integer", None)]),
        "person",
        "people",
        "id",
    )
}

fn person(id: i32, name: &'static str) -> [V; 2] {
    [V::Int(id), V::Text(name)]
}

async fn rig() -> Option<Rig> {
    let mut rig = Rig::streaming(vec![people(), orders()]).await?;
    rig.stream(vec![insert(1, &person(1, "taken"))]).await.unwrap();
    Some(rig)
}

#[tokio::test]
async fn the_failing_change_its_later_ones_and_its_children_wait_and_all_else_goes_in() {
    let Some(mut rig) = rig().await else { return };
    let applied = rig
        .stream(vec![
            insert(1, &person(2, "b")),
            insert(1, &person(3, "taken")),
            insert(2, &[V::Int(10), V::Int(2)]),
            insert(2, &[V::Int(11), V::Int(3)]),
            update(1, &person(3, "taken")),
            update(2, &[V::Int(11), V::Int(2)]),
            insert(1, &person(4, "d")),
        ])
        .await
        .unwrap();
    assert_eq!((applied.rejected.len(), applied.held), (1, 3));
    assert!(applied.rejected[0].reason.contains("people_name_key"), "{}", applied.rejected[0].reason);
    assert!(!applied.rejected[0].reason.contains("taken"), "no values in reasons");
    assert_eq!(rig.ask("SELECT id FROM app.people ORDER BY id").await, ["1", "2", "4"]);
    assert_eq!(rig.ask("SELECT id FROM app.orders").await, ["10"]);
    let listed = rig.sink.list(&QuarantineFilter::default()).await.unwrap();
    let kinds: Vec<_> = listed.iter().map(|change| change.kind.as_str()).collect();
    assert_eq!(kinds, ["collision", "child", "held", "held"]);

    // Also after a restart.
    rig.restart().await;
    let applied = rig.stream(vec![update(1, &person(3, "e"))]).await.unwrap();
    assert_eq!((applied.applied, applied.held), (0, 1));
}

#[tokio::test]
async fn a_retry_applies_what_can_go_in_now_in_order() {
    let Some(mut rig) = rig().await else { return };
    rig.stream(vec![insert(1, &person(3, "taken"))]).await.unwrap();
    rig.stream(vec![update(1, &person(3, "later")), insert(2, &[V::Int(11), V::Int(3)])]).await.unwrap();
    let outcome = rig.sink.retry(&QuarantineFilter::default()).await.unwrap();
    assert_eq!((outcome.applied, outcome.remaining), (0, 3), "the name is still taken");
    rig.database.execute("UPDATE app.people SET name = 'free' WHERE id = 1").await;
    let outcome = rig.sink.retry(&QuarantineFilter::default()).await.unwrap();
    assert_eq!((outcome.applied, outcome.remaining), (3, 0));
    assert_eq!(rig.ask("SELECT id, name FROM app.people ORDER BY id").await, ["1|free", "3|later"]);
    assert_eq!(rig.ask("SELECT id FROM app.orders").await, ["11"]);
    let applied = rig.stream(vec![update(1, &person(3, "last"))]).await.unwrap();
    assert_eq!((applied.applied, applied.held), (1, 0));
}

#[tokio::test]
async fn a_discarded_key_is_free_again() {
    let Some(mut rig) = rig().await else { return };
    rig.stream(vec![insert(1, &person(3, "taken"))]).await.unwrap();
    rig.stream(vec![update(1, &person(3, "x"))]).await.unwrap();
    let first = rig.sink.list(&QuarantineFilter::default()).await.unwrap()[0].id;
    let (_, change) = rig.sink.show(first).await.unwrap().unwrap();
    assert_eq!(change, insert(1, &person(3, "taken")));
    let outcome = rig.sink.discard(&QuarantineFilter { table: None, ids: vec![first] }).await.unwrap();
    assert_eq!((outcome.discarded, outcome.remaining), (2, 0), "with all changes of its key");
    let applied = rig.stream(vec![insert(1, &person(3, "y"))]).await.unwrap();
    assert_eq!(applied.applied, 1);
}

#[tokio::test]
async fn one_bad_row_among_many_is_found_in_a_backfill_too() {
    let mut checked = people();
    checked.def.checks.push(crossfade_event::catalog::CheckDef { name: "even".into(), expression: "id <> 77".into() });
    let Some(mut rig) = Rig::empty(vec![checked]).await else { return };
    rig.prepare().await.unwrap();
    let rows: Vec<_> = (0..200).map(|id| crate::rig::row(&[V::Int(id), V::Null])).collect();
    let applied = rig.load(vec![crate::rig::block(1, 5, &rows)]).await.unwrap();
    assert_eq!((applied.applied, applied.rejected.len()), (199, 1));
    assert_eq!(applied.rejected[0].at.ordinal, 77);
    assert_eq!(rig.ask("SELECT count(*) FROM app.people").await, ["199"]);
}

#[tokio::test]
async fn a_change_without_what_it_needs_is_quarantined_not_left_out() {
    let Some(mut rig) = rig().await else { return };
    let applied = rig
        .stream(vec![
            update(1, &[V::Same, V::Text("x")]),
            insert(1, &[V::Int(8), V::Same]),
            // The old image knows the key that the new one does not repeat.
            crate::rig::update_from(1, &[V::Int(1), V::Absent], &[V::Same, V::Text("known")]),
        ])
        .await
        .unwrap();
    assert_eq!((applied.applied, applied.rejected.len()), (1, 2));
    assert_eq!(rig.ask("SELECT * FROM app.people").await, ["1|known"]);
    assert_eq!(rig.sink.list(&QuarantineFilter::default()).await.unwrap().len(), 2);
}

#[tokio::test]
async fn what_was_held_when_its_table_was_emptied_does_not_come_back() {
    let Some(mut rig) = rig().await else { return };
    rig.stream(vec![insert(1, &person(3, "taken"))]).await.unwrap();
    let upto = rig.upto(Stage::Streaming);
    let at = Version { sequence: Sequence(upto.cut.total() - 50), ordinal: 0 };
    let writes = vec![Write::Truncate { at, tables: vec![TableId(1), TableId(2)] }];
    rig.sink.apply(Delivery { writes, upto, commits: true }, Guard::Forward).await.unwrap();
    rig.sink.retry(&QuarantineFilter::default()).await.unwrap();
    assert_eq!(rig.ask("SELECT id FROM app.people").await, Vec::<String>::new());
    assert_eq!(rig.ask("SELECT count(*) FROM crossfade.quarantine").await, ["0"]);
    let applied = rig.stream(vec![insert(1, &person(3, "free"))]).await.unwrap();
    assert_eq!((applied.applied, applied.held), (1, 0));
}
