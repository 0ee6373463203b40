//! Changes, folded and written in sets.

use crate::rig::{Rig, V, column, delete, insert, table, unique, update, update_from};
use crossfade_connector::{Delivery, Guard, Sink, Stage, TargetTable, Write};
use crossfade_event::{Sequence, TableId, Version};

fn people() -> TargetTable {
    table(
        1,
        "people",
        vec![column("id", "integer", Some(0)), column("name", "text", None), column("note", "text", None)],
    )
}

#[tokio::test]
async fn changes_of_one_key_end_in_the_last_one() {
    let Some(mut rig) = Rig::streaming(vec![people()]).await else { return };
    rig.stream(vec![
        insert(1, &[V::Int(1), V::Text("a"), V::Null]),
        update(1, &[V::Int(1), V::Text("b"), V::Null]),
        insert(1, &[V::Int(2), V::Text("x"), V::Null]),
        delete(1, &[V::Int(2), V::Absent, V::Absent]),
        insert(1, &[V::Int(3), V::Text("y"), V::Null]),
        delete(1, &[V::Int(3), V::Absent, V::Absent]),
        insert(1, &[V::Int(3), V::Text("z"), V::Text("again")]),
    ])
    .await
    .unwrap();
    assert_eq!(rig.ask("SELECT * FROM app.people ORDER BY id").await, ["1|b|∅", "3|z|again"]);
}

#[tokio::test]
async fn a_repeat_is_harmless() {
    let Some(mut rig) = Rig::streaming(vec![people()]).await else { return };
    let changes = vec![
        insert(1, &[V::Int(1), V::Text("a"), V::Null]),
        insert(1, &[V::Int(2), V::Text("b"), V::Null]),
        update(1, &[V::Int(1), V::Text("c"), V::Null]),
        delete(1, &[V::Int(2), V::Absent, V::Absent]),
    ];
    rig.stream(changes.clone()).await.unwrap();
    rig.stream(changes).await.unwrap();
    assert_eq!(rig.ask("SELECT * FROM app.people").await, ["1|c|∅"]);
    assert_eq!(rig.ask("SELECT count(*) FROM crossfade.quarantine").await, ["0"]);
}

#[tokio::test]
async fn many_changes_in_one_delivery_are_the_same_as_one_by_one() {
    let Some(mut rig) = Rig::streaming(vec![people()]).await else { return };
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut state = seed | 1;
    let mut draw = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let mut model: std::collections::BTreeMap<i32, (Option<i32>, Option<i32>)> = std::collections::BTreeMap::new();
    let cell = |value: Option<i32>| match value {
        None => V::Null,
        Some(number) => V::Raw(number.to_string().into_bytes()),
    };
    for _ in 0..12 {
        let mut changes = Vec::new();
        for _ in 0..(1 + draw(400)) {
            let id = draw(60) as i32;
            let (name, note) = ((draw(4) > 0).then(|| draw(1000) as i32), Some(draw(1000) as i32));
            match (model.get(&id).copied(), draw(5)) {
                (None, _) => {
                    model.insert(id, (name, note));
                    changes.push(insert(1, &[V::Int(id), cell(name), cell(note)]));
                }
                (Some(_), 0) => {
                    model.remove(&id);
                    changes.push(delete(1, &[V::Int(id), V::Absent, V::Absent]));
                }
                (Some((_, kept)), 1) => {
                    model.insert(id, (name, kept));
                    changes.push(update(1, &[V::Int(id), cell(name), V::Same]));
                }
                (Some((kept, _)), 2) => {
                    model.insert(id, (kept, note));
                    changes.push(update(1, &[V::Int(id), V::Same, cell(note)]));
                }
                (Some((kept, _)), 3) => {
                    let to = draw(60) as i32;
                    if model.contains_key(&to) {
                        continue;
                    }
                    model.remove(&id);
                    model.insert(to, (kept, note));
                    changes.push(update_from(
                        1,
                        &[V::Int(id), V::Absent, V::Absent],
                        &[V::Int(to), V::Same, cell(note)],
                    ));
                }
                (Some(_), _) => {
                    model.insert(id, (name, note));
                    changes.push(update(1, &[V::Int(id), cell(name), cell(note)]));
                }
            }
        }
        let applied = rig.stream(changes).await.unwrap();
        assert!(applied.rejected.is_empty(), "seed {seed}: {}", applied.rejected[0].reason);
        let show = |value: Option<i32>| value.map_or("∅".to_owned(), |number| number.to_string());
        let wanted: Vec<String> =
            model.iter().map(|(id, (name, note))| format!("{id}|{}|{}", show(*name), show(*note))).collect();
        assert_eq!(rig.ask("SELECT * FROM app.people ORDER BY id").await, wanted, "seed {seed}");
    }
}

#[tokio::test]
async fn two_rows_swap_a_unique_value_within_one_transaction() {
    let Some(mut rig) = Rig::streaming(vec![unique(people(), "name")]).await else { return };
    rig.stream(vec![insert(1, &[V::Int(1), V::Text("a"), V::Null]), insert(1, &[V::Int(2), V::Text("b"), V::Null])])
        .await
        .unwrap();
    let applied = rig
        .stream(vec![
            update(1, &[V::Int(1), V::Text("aside"), V::Null]),
            update(1, &[V::Int(2), V::Text("a"), V::Null]),
            update(1, &[V::Int(1), V::Text("b"), V::Null]),
        ])
        .await
        .unwrap();
    assert!(applied.rejected.is_empty(), "{}", applied.rejected[0].reason);
    assert_eq!(rig.ask("SELECT id, name FROM app.people ORDER BY id").await, ["1|b", "2|a"]);
}

#[tokio::test]
async fn unchanged_cells_keep_what_is_there() {
    let Some(mut rig) = Rig::streaming(vec![people()]).await else { return };
    rig.stream(vec![insert(1, &[V::Int(1), V::Text("a"), V::Text("long")])]).await.unwrap();
    rig.stream(vec![
        update(1, &[V::Int(1), V::Text("b"), V::Same]),
        update_from(1, &[V::Int(1), V::Absent, V::Absent], &[V::Int(4), V::Text("c"), V::Same]),
        update(1, &[V::Int(4), V::Same, V::Same]),
    ])
    .await
    .unwrap();
    assert_eq!(rig.ask("SELECT * FROM app.people").await, ["4|c|long"]);
}

#[tokio::test]
async fn an_update_of_a_missing_row_writes_it_when_it_is_whole() {
    let Some(mut rig) = Rig::streaming(vec![people()]).await else { return };
    let applied = rig.stream(vec![update(1, &[V::Int(1), V::Text("a"), V::Null])]).await.unwrap();
    assert!(applied.rejected.is_empty());
    assert_eq!(rig.ask("SELECT * FROM app.people").await, ["1|a|∅"]);
    let applied = rig.stream(vec![update(1, &[V::Int(2), V::Text("a"), V::Same])]).await.unwrap();
    assert_eq!(applied.rejected.len(), 1);
    assert!(applied.rejected[0].reason.contains("row missing"), "{}", applied.rejected[0].reason);
}

#[tokio::test]
async fn rows_without_a_key_are_counted_and_any_copy_will_do() {
    let log = table(1, "log", vec![column("a", "integer", None), column("b", "json", None), column("c", "text", None)]);
    let Some(mut rig) = Rig::streaming(vec![log]).await else { return };
    let line = |a: i32, b: &'static str| [V::Int(a), V::Text(b), V::Null];
    rig.stream(vec![
        insert(1, &line(1, "{}")),
        insert(1, &line(1, "{}")),
        insert(1, &line(1, "{ }")),
        insert(1, &line(2, "[]")),
    ])
    .await
    .unwrap();
    rig.stream(vec![delete(1, &line(1, "{}")), update_from(1, &line(2, "[]"), &line(3, "[]"))]).await.unwrap();
    assert_eq!(rig.ask("SELECT a, b FROM app.log ORDER BY a, b::text").await, ["1|{ }", "1|{}", "3|[]"]);
    rig.stream(vec![
        update_from(1, &line(3, "[]"), &line(4, "[]")),
        delete(1, &line(4, "[]")),
        delete(1, &line(1, "{}")),
    ])
    .await
    .unwrap();
    assert_eq!(rig.ask("SELECT a, b FROM app.log").await, ["1|{ }"]);
}

#[tokio::test]
async fn a_truncate_empties_what_came_before_it_and_nothing_else() {
    let Some(mut rig) = Rig::streaming(vec![people()]).await else { return };
    rig.stream(vec![insert(1, &[V::Int(1), V::Null, V::Null])]).await.unwrap();
    let mut writes = rig.writes(vec![insert(1, &[V::Int(2), V::Null, V::Null])]);
    writes.push(Write::Truncate { at: Version { sequence: Sequence(9), ordinal: 0 }, tables: vec![TableId(1)] });
    writes.extend(rig.writes(vec![insert(1, &[V::Int(3), V::Null, V::Null])]));
    let upto = rig.upto(Stage::Streaming);
    rig.sink.apply(Delivery { writes, upto, commits: true }, Guard::Forward).await.unwrap();
    assert_eq!(rig.ask("SELECT id FROM app.people").await, ["3"]);
}

#[tokio::test]
async fn healing_writes_final_images_and_leaves_the_position() {
    let Some(mut rig) = Rig::streaming(vec![people()]).await else { return };
    let first = vec![insert(1, &[V::Int(1), V::Text("a"), V::Null]), insert(1, &[V::Int(2), V::Text("b"), V::Null])];
    rig.stream(first.clone()).await.unwrap();
    let before = rig.ask("SELECT cut, progress FROM crossfade.positions").await;
    rig.database.execute("UPDATE app.people SET name = 'damaged'; DELETE FROM app.people WHERE id = 2").await;
    let upto = rig.upto(Stage::Streaming);
    let writes = rig.writes(first);
    rig.sink.apply(Delivery { writes, upto, commits: true }, Guard::Heal).await.unwrap();
    assert_eq!(rig.ask("SELECT id, name FROM app.people ORDER BY id").await, ["1|a", "2|b"]);
    assert_eq!(rig.ask("SELECT cut, progress FROM crossfade.positions").await, before);
}

#[tokio::test]
async fn a_mapping_keeps_its_first_entry_and_is_read_in_pages() {
    use crossfade_connector::{StoredMapping, WriteMode};
    let mut mapping = table(
        9,
        "mapping",
        vec![column("table_name", "text", Some(0)), column("old_id", "text", Some(1)), column("new_id", "text", None)],
    );
    mapping.mode = WriteMode::InsertOnce;
    let mut migrated_at = mapping.def.columns[2].clone();
    migrated_at.column = column("migrated_at", "timestamp with time zone", None);
    migrated_at.default = Some("now()".to_owned());
    mapping.def.columns.push(migrated_at);
    let Some(mut rig) = Rig::streaming(vec![people(), mapping]).await else { return };
    let entry = |old: &'static str, new: &'static str| insert(9, &[V::Text("people"), V::Text(old), V::Text(new)]);
    rig.stream(vec![entry("1", "a"), entry("2", "b"), entry("1", "a"), entry("3", "c")]).await.unwrap();
    rig.stream(vec![entry("2", "other"), entry("10", "d")]).await.unwrap();
    rig.restart().await;
    let mut pages = Vec::new();
    let mut after = None;
    loop {
        let page = rig.sink.mapping_page(Some("people"), after.as_ref(), 2).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.clone());
        pages.extend(page.into_iter().map(|entry| format!("{}={}", entry.old_id, entry.new_id)));
    }
    assert_eq!(pages, ["1=a", "10=d", "2=b", "3=c"]);
    let found = rig.sink.mapping_lookup("d").await.unwrap();
    assert_eq!((found.len(), found[0].old_id.as_str()), (1, "10"));
    assert!(found[0].migrated_at.ends_with('Z'), "{}", found[0].migrated_at);
    assert!(rig.sink.mapping_page(Some("orders"), None, 2).await.unwrap().is_empty());
}
