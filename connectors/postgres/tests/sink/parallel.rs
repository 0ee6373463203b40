//! `apply = "parallel"`.

use crate::rig::{Rig, V, block, column, delete, insert, parallel_sink, row, table, unique, update, update_from};
use crossfade_connector::{Delivery, Guard, Progress, Sink, Stage, TargetTable, Write};
use crossfade_event::{Cut, Offset, Sequence};

fn people() -> TargetTable {
    table(1, "people", vec![column("id", "integer", Some(0)), column("name", "text", None)])
}

async fn rig(tables: Vec<TargetTable>) -> Option<Rig> {
    let mut rig = Rig::empty(tables).await?;
    rig.sink = parallel_sink(&rig.database.url, 3);
    rig.prepare().await.unwrap();
    Some(rig)
}

fn name(text: &str) -> V {
    V::Raw(text.as_bytes().to_vec())
}

#[tokio::test]
async fn the_workers_together_write_what_one_would() {
    let Some(mut rig) = rig(vec![unique(people(), "name")]).await else { return };
    let rows: Vec<_> = (0..3000).map(|id| row(&[V::Int(id), name(&format!("n{id}"))])).collect();
    let blocks: Vec<_> = rows.chunks(300).enumerate().map(|(at, some)| block(1, at as u64 + 1, some)).collect();
    let applied = rig.load(blocks).await.unwrap();
    assert_eq!(applied.applied, 3000);
    rig.stream(vec![]).await.unwrap();
    let mut changes = Vec::new();
    for id in 0..1000 {
        changes.push(update(1, &[V::Int(id), name(&format!("u{id}"))]));
        changes.push(insert(1, &[V::Int(id + 5000), V::Null]));
        changes.push(delete(1, &[V::Int(id + 1000), V::Absent]));
    }
    let applied = rig.stream(changes.clone()).await.unwrap();
    assert!(applied.rejected.is_empty());
    let state = "SELECT count(*), count(name), sum(id), count(*) FILTER (WHERE name LIKE 'u%') FROM app.people";
    let expected = rig.ask(state).await;
    assert_eq!(expected, ["3000|2000|8498500|1000"]);
    // Each worker has its own position, and a repeat after a restart is harmless.
    assert_eq!(rig.ask("SELECT count(DISTINCT cut), count(*) FROM crossfade.positions").await, ["1|4"]);
    rig.sink = parallel_sink(&rig.database.url, 2);
    rig.sink.progress().await.unwrap();
    rig.prepare().await.unwrap();
    rig.stream(changes).await.unwrap();
    assert_eq!(rig.ask(state).await, expected);
}

#[tokio::test]
async fn a_violation_between_workers_is_tried_again_in_source_order() {
    let Some(mut rig) = rig(vec![unique(people(), "name")]).await else { return };
    rig.load(vec![]).await.unwrap();
    rig.stream((0..600).map(|id| insert(1, &[V::Int(id), name(&format!("n{id}"))])).collect()).await.unwrap();
    // Each name moves on to the next row: whichever worker comes first meets a name that is still taken.
    let mut changes: Vec<_> = (0..600).map(|id| update(1, &[V::Int(id), V::Null])).collect();
    changes.extend((0..600).map(|id| update(1, &[V::Int(id), name(&format!("n{}", (id + 1) % 600))])));
    changes.push(update_from(1, &[V::Int(7), V::Absent], &[V::Int(7000), V::Text("moved")]));
    changes.push(insert(1, &[V::Int(9000), V::Text("n3")]));
    let applied = rig.stream(changes).await.unwrap();
    assert_eq!(applied.rejected.len(), 1, "only the last one is at fault by itself");
    assert_eq!(rig.ask("SELECT count(*) FROM app.people").await, ["600"]);
    assert_eq!(
        rig.ask("SELECT name FROM app.people WHERE id IN (0, 599, 7000) ORDER BY id").await,
        ["n1", "n0", "moved"]
    );
}

#[tokio::test]
async fn a_worker_that_was_ahead_leaves_out_what_it_has_by_the_order_of_all_partitions() {
    // As it stands in a log of eight partitions, and as it was written when logs had one.
    let several = |rig: &Rig, upto: &mut Progress| {
        upto.cut = Cut(vec![Offset(3); 8]);
        upto.sequence = Some(Sequence(rig.next + 700));
    };
    let single = |rig: &Rig, upto: &mut Progress| upto.cut = Cut::single(Offset(rig.next + 700));
    for is_single in [false, true] {
        let Some(mut rig) = rig(vec![people()]).await else { return };
        rig.load(vec![]).await.unwrap();
        let inserts = (0..600).map(|id| insert(1, &[V::Int(id), name("first")])).collect();
        let mut upto = rig.upto(Stage::Streaming);
        if is_single {
            single(&rig, &mut upto)
        } else {
            several(&rig, &mut upto)
        }
        let first = rig.writes(inserts);
        let delivery = |writes: &[Write]| Delivery { writes: writes.to_vec(), upto: upto.clone(), commits: true };
        rig.sink.apply(delivery(&first), Guard::Forward).await.unwrap();
        rig.ask("UPDATE app.people SET name = 'since'").await;
        rig.sink = parallel_sink(&rig.database.url, 3);
        rig.sink.progress().await.unwrap();
        rig.prepare().await.unwrap();
        // What comes again is left out, and what is new is not.
        rig.next += 700;
        let new = (600..1_200).map(|id| insert(1, &[V::Int(id), name("new")])).collect();
        let again = [first, rig.writes(new)].concat();
        rig.sink.apply(delivery(&again), Guard::Forward).await.unwrap();
        assert_eq!(
            rig.ask("SELECT name, count(*) FROM app.people GROUP BY 1 ORDER BY 1").await,
            ["new|600", "since|600"]
        );
    }
}
