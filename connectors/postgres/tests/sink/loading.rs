//! Making the target and filling it.

use crate::rig::{Rig, V, block, column, delete, insert, key, new_sink, refers, row, table, unique, update};
use crossfade_connector::{Delivery, Guard, Sink, Stage, Verdict};

fn people(id: u32) -> crossfade_connector::TargetTable {
    table(id, "people", vec![column("id", "integer", Some(0)), column("name", "text", None)])
}

#[tokio::test]
async fn a_backfill_goes_in_by_copy_and_gets_its_keys_afterwards() {
    let Some(mut rig) = Rig::empty(vec![unique(people(1), "name")]).await else { return };
    assert_eq!(rig.sink.progress().await.unwrap(), None);
    rig.prepare().await.unwrap();
    let rows: Vec<_> = (0..1000).map(|id| row(&[V::Int(id), V::Null])).collect();
    let applied = rig.load(vec![block(1, 1, &rows[..600]), block(1, 2, &rows[600..])]).await.unwrap();
    assert_eq!(applied.applied, 1000);
    assert_eq!(rig.ask("SELECT count(*), min(id), max(id) FROM app.people").await, ["1000|0|999"]);
    let contype = "SELECT contype FROM pg_constraint WHERE conrelid = 'app.people'::regclass AND contype IN ('p', 'u') ORDER BY 1";
    assert_eq!(rig.ask(contype).await, ["p"]);
    rig.stream(vec![]).await.unwrap();
    assert_eq!(rig.ask(contype).await, ["p", "u"], "constraints come once the stream has passed the load");
}

#[tokio::test]
async fn statistics_are_made_of_what_was_loaded_and_none_of_a_table_that_is_still_empty() {
    let bare = table(2, "bare", vec![column("id", "integer", Some(0))]);
    let Some(mut rig) = Rig::empty(vec![people(1), bare]).await else { return };
    rig.prepare().await.unwrap();
    rig.load(vec![block(1, 1, &[row(&[V::Int(1), V::Null])])]).await.unwrap();
    rig.stream(vec![]).await.unwrap();
    let known = "SELECT relname, reltuples FROM pg_class WHERE oid IN ('app.people'::regclass, 'app.bare'::regclass) ORDER BY 1";
    // They are made beside the stream.
    while rig.ask(known).await == ["bare|-1", "people|-1"] {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(rig.ask(known).await, ["bare|-1", "people|1"], "-1: never counted");
}

#[tokio::test]
async fn progress_is_what_was_committed_and_an_uncommitted_part_is_gone() {
    let Some(mut rig) = Rig::streaming(vec![people(1)]).await else { return };
    rig.stream(vec![insert(1, &[V::Int(1), V::Text("a")])]).await.unwrap();
    let committed = rig.sink.progress().await.unwrap();
    // A part of a large transaction, then the process is gone.
    rig.sink.prepare(&rig.target.clone()).await.unwrap();
    let upto = rig.upto(Stage::Streaming);
    let writes = rig.writes(vec![insert(1, &[V::Int(2), V::Text("b")])]);
    rig.sink.apply(Delivery { writes, upto, commits: false }, Guard::Forward).await.unwrap();
    assert_eq!(rig.restart().await, committed);
    assert_eq!(rig.ask("SELECT id FROM app.people").await, ["1"]);
    // The same parts again, to the end.
    for (id, commits) in [(2, false), (3, true)] {
        let upto = rig.upto(Stage::Streaming);
        let writes = rig.writes(vec![insert(1, &[V::Int(id), V::Text("b")])]);
        rig.sink.apply(Delivery { writes, upto, commits }, Guard::Forward).await.unwrap();
    }
    assert_eq!(rig.ask("SELECT id FROM app.people ORDER BY id").await, ["1", "2", "3"]);
}

#[tokio::test]
async fn a_key_that_was_copied_twice_stands_once_before_its_key_is_made() {
    let Some(mut rig) = Rig::empty(vec![people(1)]).await else { return };
    rig.prepare().await.unwrap();
    let rows = [row(&[V::Int(1), V::Text("old")]), row(&[V::Int(2), V::Text("x")]), row(&[V::Int(1), V::Text("new")])];
    rig.load(vec![block(1, 1, &rows)]).await.unwrap();
    assert_eq!(rig.ask("SELECT count(*) FROM app.people WHERE id = 1").await, ["1"]);
    rig.stream(vec![update(1, &[V::Int(1), V::Text("new")])]).await.unwrap();
    assert_eq!(rig.ask("SELECT * FROM app.people ORDER BY id").await, ["1|new", "2|x"]);
}

#[tokio::test]
async fn a_second_backfill_meets_the_keys_of_the_first() {
    let Some(mut rig) = Rig::streaming(vec![people(1)]).await else { return };
    rig.stream(vec![insert(1, &[V::Int(1), V::Text("a")])]).await.unwrap();
    let rows = [row(&[V::Int(1), V::Text("b")]), row(&[V::Int(2), V::Text("c")]), row(&[V::Int(2), V::Text("d")])];
    rig.load(vec![block(1, 50, &rows)]).await.unwrap();
    assert_eq!(rig.ask("SELECT id FROM app.people ORDER BY id").await, ["1", "2"]);
    assert_eq!(rig.ask("SELECT name FROM app.people WHERE id = 1").await, ["b"]);
}

#[tokio::test]
async fn a_target_with_rows_of_somebody_elses_is_refused_and_untouched() {
    let Some(mut rig) = Rig::empty(vec![people(1)]).await else { return };
    rig.database.execute("CREATE SCHEMA app; CREATE TABLE app.people (id int PRIMARY KEY, name text); INSERT INTO app.people VALUES (7, 'theirs')").await;
    let failure = rig.prepare().await.unwrap_err();
    assert!(matches!(failure.verdict, Verdict::Refused { .. }), "{failure}");
    assert!(failure.to_string().contains("app.people"), "{failure}");
    assert_eq!(rig.ask("SELECT to_regnamespace('crossfade') IS NULL").await, ["t"]);
}

#[tokio::test]
async fn preparing_twice_changes_nothing_and_a_row_is_read_back() {
    let Some(mut rig) = Rig::streaming(vec![people(1)]).await else { return };
    let whole = [V::Int(5), V::Text("five")];
    rig.stream(vec![insert(1, &whole), insert(1, &[V::Int(6), V::Null]), delete(1, &[V::Int(6), V::Absent])])
        .await
        .unwrap();
    rig.prepare().await.unwrap();
    rig.prepare().await.unwrap();
    assert_eq!(rig.sink.read_row(crossfade_event::TableId(1), &key(&[V::Int(5)])).await.unwrap(), Some(row(&whole)));
    assert_eq!(rig.sink.read_row(crossfade_event::TableId(1), &key(&[V::Int(6)])).await.unwrap(), None);
}

#[tokio::test]
async fn an_older_epoch_is_refused() {
    let Some(mut rig) = Rig::streaming(vec![people(1)]).await else { return };
    // A later run elsewhere takes the target while ours still holds a session.
    rig.database.execute("UPDATE crossfade.positions SET epoch = 5").await;
    let failure = rig.stream(vec![insert(1, &[V::Int(1), V::Null])]).await.unwrap_err();
    assert!(matches!(failure.verdict, Verdict::Refused { .. }), "{failure}");
    rig.sink = new_sink(&rig.database.url.clone());
    let failure = rig.prepare().await.unwrap_err();
    assert!(failure.to_string().contains("epoch"), "{failure}");
    assert_eq!(rig.ask("SELECT count(*) FROM app.people").await, ["0"]);
}

#[tokio::test]
async fn foreign_keys_come_last_and_are_validated() {
    let orders = table(2, "orders", vec![column("id", "integer", Some(0)), column("person", "integer", None)]);
    let Some(mut rig) = Rig::empty(vec![people(1), refers(orders, "person", "people", "id")]).await else { return };
    rig.prepare().await.unwrap();
    // The child's rows first: nothing stands in the way yet.
    rig.load(vec![block(2, 1, &[row(&[V::Int(1), V::Int(9)])]), block(1, 2, &[row(&[V::Int(9), V::Null])])])
        .await
        .unwrap();
    rig.stream(vec![]).await.unwrap();
    assert_eq!(rig.ask("SELECT convalidated FROM pg_constraint WHERE contype = 'f'").await, ["t"]);
}

#[tokio::test]
async fn an_empty_table_that_was_there_is_filled_and_a_wipe_empties_it_again() {
    let Some(mut rig) = Rig::empty(vec![people(1)]).await else { return };
    rig.database
        .execute(
            "CREATE SCHEMA app; CREATE TABLE app.people (id int PRIMARY KEY, name varchar(10), more int4 DEFAULT 7)",
        )
        .await;
    let failure = rig.prepare().await.unwrap_err();
    assert!(failure.to_string().contains("character varying(10)"), "{failure}");
    rig.database.execute("ALTER TABLE app.people ALTER name TYPE text").await;
    rig.prepare().await.unwrap();
    rig.load(vec![block(1, 1, &[row(&[V::Int(1), V::Text("a")]), row(&[V::Int(2), V::Null])])]).await.unwrap();
    rig.restart().await;
    rig.stream(vec![insert(1, &[V::Int(3), V::Null])]).await.unwrap();
    assert_eq!(rig.ask("SELECT * FROM app.people ORDER BY id").await, ["1|a|7", "2|∅|7", "3|∅|7"]);
    assert_eq!(rig.ask("SELECT count(*) FROM crossfade.undo").await, ["0"]);
    crossfade_connector::Rollback::wipe(&mut rig.sink, &rig.target.clone()).await.unwrap();
    assert_eq!(rig.ask("SELECT count(*) FROM app.people").await, ["0"]);
}

#[tokio::test]
async fn a_table_that_is_copied_anew_is_made_ready_for_rows_of_different_moments() {
    let orders = table(2, "orders", vec![column("id", "integer", Some(0)), column("person", "integer", None)]);
    let people = unique(people(1), "name");
    let Some(mut rig) = Rig::empty(vec![people, refers(orders, "person", "people", "id")]).await else { return };
    rig.prepare().await.unwrap();
    rig.load(vec![]).await.unwrap();
    rig.stream(vec![insert(1, &[V::Int(1), V::Text("a")]), insert(2, &[V::Int(1), V::Int(1)])]).await.unwrap();
    let constraints = "SELECT conname FROM pg_constraint WHERE connamespace = 'app'::regnamespace AND contype IN ('p', 'u', 'f') ORDER BY 1";
    let all = ["orders_person_fkey", "orders_pkey", "people_name_key", "people_pkey"];
    assert_eq!(rig.ask(constraints).await, all);
    let truncate = crossfade_connector::Write::Truncate {
        at: crossfade_event::Version { sequence: crossfade_event::Sequence(1), ordinal: 0 },
        tables: vec![crossfade_event::TableId(1)],
    };
    // One name in two rows, as it was never in the source at one moment; and one row twice.
    let rows = [row(&[V::Int(1), V::Text("b")]), row(&[V::Int(2), V::Text("b")]), row(&[V::Int(2), V::Text("b")])];
    let applied = rig.load(vec![truncate, block(1, 2, &rows)]).await.unwrap();
    assert!(applied.rejected.is_empty(), "{}", applied.rejected[0].reason);
    assert_eq!(rig.ask(constraints).await, ["orders_pkey", "people_pkey"]);
    rig.stream(vec![update(1, &[V::Int(1), V::Text("a")])]).await.unwrap();
    assert_eq!(rig.ask(constraints).await, all);
    assert_eq!(rig.ask("SELECT * FROM app.people ORDER BY id").await, ["1|a", "2|b"]);
}

#[tokio::test]
async fn an_index_is_not_made_twice_when_the_run_ends_before_it_is_noted() {
    use crossfade_event::catalog::IndexDef;
    let mut people = table(1, "people", vec![column("id", "integer", Some(0)), column("name", "text", None)]);
    people.def.indexes.push(IndexDef {
        name: "by_name".to_owned(),
        unique: false,
        definition: "USING btree (name)".to_owned(),
        columns: vec!["name".to_owned()],
        plain: true,
    });
    let Some(mut rig) = Rig::empty(vec![people]).await else { return };
    rig.prepare().await.unwrap();
    // The name belongs to another relation: the server names the index, and only the note tells that it is there.
    rig.database.execute("CREATE SEQUENCE app.by_name").await;
    rig.database.execute("ALTER TABLE crossfade.objects ADD CONSTRAINT ended CHECK (kind <> 'index')").await;
    let upto = rig.upto(Stage::Loading);
    rig.sink.apply(Delivery { writes: Vec::new(), upto, commits: true }, Guard::Forward).await.unwrap();
    rig.sink.finish_load().await.unwrap_err();
    rig.database.execute("ALTER TABLE crossfade.objects DROP CONSTRAINT ended").await;
    rig.restart().await;
    for _ in 0..2 {
        rig.sink.finish_load().await.unwrap();
        let made = "SELECT count(*) FROM pg_index WHERE indrelid = 'app.people'::regclass AND NOT indisprimary";
        assert_eq!(rig.ask(made).await, ["1"]);
    }
}
