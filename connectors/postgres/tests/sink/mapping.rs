//! The mapping table: two old keys never become one new key unnoticed.

use crate::rig::{Rig, V, block, column, delete, insert, new_sink, parallel_sink, row, table, update, update_from};
use crossfade_connector::{
    Ddl, Delivery, Guard, Inspect, Quarantine, QuarantineFilter, Sink, Stage, TargetTable, WriteMode,
};
use crossfade_event::{Row, catalog::KeyDef};
use crossfade_postgres::{Config, PostgresInspect};

fn mapping() -> TargetTable {
    let mut columns =
        vec![column("table_name", "text", Some(0)), column("old_id", "text", Some(1)), column("new_id", "text", None)];
    columns[2].nullable = false;
    let mut table = table(1, "keys", columns);
    table.def.uniques.push(KeyDef {
        name: "keys_new_id_key".to_owned(),
        columns: vec!["new_id".to_owned(), "table_name".to_owned()],
        deferrable: false,
        nulls_not_distinct: false,
    });
    table.mode = WriteMode::InsertOnce;
    table
}

fn people() -> TargetTable {
    table(2, "people", vec![column("id", "text", Some(0)), column("said", "text", None)])
}

fn text(text: &str) -> V {
    V::Raw(text.as_bytes().to_vec())
}

fn mapped(old: &str, new: &str) -> [V; 3] {
    [V::Text("people"), text(old), text(new)]
}

const THERE: &str = "SELECT old_id, new_id FROM app.keys ORDER BY old_id";
const CONSTRAINTS: &str = "SELECT conname FROM pg_constraint WHERE conrelid = 'app.keys'::regclass AND contype = 'u'";

/// One connection, or several.
async fn rig(workers: Option<u32>) -> Option<Rig> {
    let mut rig = Rig::empty(vec![mapping(), people()]).await?;
    if let Some(workers) = workers {
        rig.sink = parallel_sink(&rig.database.url, workers);
    }
    rig.prepare().await.unwrap();
    Some(rig)
}

#[tokio::test]
async fn a_new_key_that_came_twice_in_a_load_is_named_and_held() {
    for workers in [None, Some(3)] {
        let Some(mut rig) = rig(workers).await else { return };
        let mut rows: Vec<Row> = (0..1500).map(|n| row(&mapped(&format!("{n:04}"), &format!("new {n}")))).collect();
        rows.extend([row(&mapped("x1", "new 7")), row(&mapped("x2", "new 7")), row(&mapped("x3", "new 9"))]);
        rig.load(vec![block(1, 50, &rows)]).await.unwrap();
        assert_eq!(rig.ask(CONSTRAINTS).await, ["keys_new_id_key"]);
        assert_eq!(rig.ask("SELECT count(*), count(DISTINCT new_id) FROM app.keys").await, ["1500|1500"]);
        assert_eq!(rig.ask("SELECT old_id FROM app.keys WHERE new_id = 'new 7'").await, ["0007"]);
        let listed = rig.sink.list(&QuarantineFilter::default()).await.unwrap();
        assert_eq!(listed.len(), 3, "{listed:?}");
        assert!(listed.iter().all(|change| change.kind == "collision" && change.reason.contains("keys_new_id_key")));
        let (_, change) = rig.sink.show(listed[0].id).await.unwrap().unwrap();
        assert_eq!(change.new, Some(row(&mapped("x1", "new 7"))));
        // The key waits: it is tried again only when asked, and fails again.
        let applied = rig.stream(vec![insert(1, &mapped("x1", "new 7"))]).await.unwrap();
        assert_eq!((applied.applied, applied.held), (0, 1));
        let outcome = rig.sink.retry(&QuarantineFilter::default()).await.unwrap();
        assert_eq!((outcome.applied, outcome.remaining), (0, 4));
        rig.database.execute("DELETE FROM app.keys WHERE old_id IN ('0007', '0009')").await;
        let outcome = rig.sink.retry(&QuarantineFilter::default()).await.unwrap();
        // One of two takes the key that is free now, what comes for it once more changes nothing.
        assert_eq!((outcome.applied, outcome.remaining), (3, 1));
        assert_eq!(
            rig.ask("SELECT old_id FROM app.keys WHERE new_id IN ('new 7', 'new 9') ORDER BY 1").await,
            ["x1", "x3"]
        );
    }
}

#[tokio::test]
async fn two_rows_of_a_load_that_became_one_leave_the_one_that_the_mapping_names() {
    for workers in [None, Some(3)] {
        let Some(mut rig) = rig(workers).await else { return };
        let people: Vec<Row> =
            ["2", "1", "3"].iter().zip(["a", "a", "b"]).map(|(said, id)| row(&[text(id), text(said)])).collect();
        let keys: Vec<Row> =
            [("2", "a"), ("1", "a"), ("3", "b")].iter().map(|(old, new)| row(&mapped(old, new))).collect();
        rig.load(vec![block(1, 50, &keys), block(2, 60, &people)]).await.unwrap();
        rig.stream(Vec::new()).await.unwrap();
        let listed = rig.sink.list(&QuarantineFilter::default()).await.unwrap();
        assert!(listed.iter().any(|change| &*change.table.name == "keys" && change.kind == "collision"), "{listed:?}");
        let (_, change) = rig.sink.show(listed[0].id).await.unwrap().unwrap();
        assert_eq!(change.new, Some(row(&mapped("1", "a"))));
        assert_eq!(rig.ask(THERE).await, ["2|a", "3|b"]);
        // The row that came first stands, in the table and in the mapping.
        assert_eq!(rig.ask("SELECT * FROM app.people ORDER BY id").await, ["a|2", "b|3"]);
    }
}

#[tokio::test]
async fn the_row_that_was_written_first_stands_wherever_the_server_has_put_it() {
    for workers in [None, Some(3)] {
        let Some(mut rig) = rig(workers).await else { return };
        let load = async |rig: &mut Rig, pairs: Vec<(String, String, String)>| {
            let keys: Vec<Row> = pairs.iter().map(|(old, new, _)| row(&mapped(old, new))).collect();
            let people: Vec<Row> = pairs.iter().map(|(_, new, said)| row(&[text(new), text(said)])).collect();
            let writes = vec![block(1, 50, &keys), block(2, 60, &people)];
            let upto = rig.upto(Stage::Loading);
            rig.sink.apply(Delivery { writes, upto, commits: true }, Guard::Forward).await.unwrap();
        };
        // Four rows fill a page but for a little, and the one that comes twice fills what is left of the last page: a later
        // one finds room before it.
        let long = |n: usize| (n.to_string(), format!("n{n}"), "x".repeat(1900));
        let first = ("one".to_owned(), "a".to_owned(), format!("first {}", "x".repeat(354)));
        load(&mut rig, (10..26).map(long).chain([first]).collect()).await;
        rig.database.execute("VACUUM app.people").await;
        let second = ("two".to_owned(), "a".to_owned(), "second".to_owned());
        let short = |n: usize| (n.to_string(), format!("n{n}"), "short".to_owned());
        load(&mut rig, [second].into_iter().chain((100..700).map(short)).collect()).await;
        let lies = "SELECT left(said, 6) FROM app.people WHERE id = 'a' ORDER BY ctid";
        assert_eq!(rig.ask(lies).await, ["second", "first "], "the case that is meant");
        rig.sink.finish_load().await.unwrap();
        rig.stream(Vec::new()).await.unwrap();
        assert_eq!(rig.ask("SELECT old_id FROM app.keys WHERE new_id = 'a'").await, ["one"]);
        assert_eq!(rig.ask(lies).await, ["first "]);
    }
}

#[tokio::test]
async fn a_new_key_that_comes_twice_in_the_stream_is_refused_with_its_row() {
    for workers in [None, Some(3)] {
        let Some(mut rig) = rig(workers).await else { return };
        rig.load(Vec::new()).await.unwrap();
        rig.stream(Vec::new()).await.unwrap();
        let with_row = |rig: &Rig, pairs: &[(&str, &str)]| {
            let changes: Vec<_> = pairs
                .iter()
                .flat_map(|(old, new)| [insert(1, &mapped(old, new)), insert(2, &[text(new), text(old)])])
                .collect();
            let mut writes = rig.writes(changes);
            // The two outputs of one change stand at one place.
            for (number, write) in writes.iter_mut().enumerate() {
                if let crossfade_connector::Write::Change { at, .. } = write {
                    at.sequence.0 -= number as u64 - number as u64 / 2;
                    at.ordinal = (number % 2) as u32;
                }
            }
            writes
        };
        let upto = rig.upto(Stage::Streaming);
        let writes = with_row(&rig, &[("1", "a"), ("2", "b"), ("3", "a"), ("4", "c")]);
        let delivery = Delivery { writes, upto, commits: true };
        let applied = rig.sink.apply(delivery, Guard::Forward).await.unwrap();
        assert_eq!((applied.rejected.len(), applied.held), (1, 1));
        assert!(applied.rejected[0].reason.contains("keys_new_id_key"), "{}", applied.rejected[0].reason);
        // The other row is what it was, and what comes for its key waits.
        assert_eq!(rig.ask("SELECT * FROM app.people ORDER BY id").await, ["a|1", "b|2", "c|4"]);
        assert_eq!(rig.ask(THERE).await, ["1|a", "2|b", "4|c"]);
        let applied = rig.stream(vec![update(2, &[text("a"), text("later")])]).await.unwrap();
        assert_eq!((applied.applied, applied.held), (0, 1));
        let outcome = rig.sink.retry(&QuarantineFilter::default()).await.unwrap();
        assert_eq!((outcome.applied, outcome.remaining), (0, 3));
        assert_eq!(rig.ask("SELECT * FROM app.people WHERE id = 'a'").await, ["a|1"]);
    }
}

#[tokio::test]
async fn a_target_of_an_earlier_release_gets_the_constraint_at_the_next_start() {
    for workers in [None, Some(3)] {
        let Some(mut rig) = rig(workers).await else { return };
        rig.load(vec![block(1, 50, &[row(&mapped("1", "a")), row(&mapped("2", "b"))])]).await.unwrap();
        rig.stream(Vec::new()).await.unwrap();
        rig.database.execute("ALTER TABLE app.keys DROP CONSTRAINT keys_new_id_key").await;
        rig.database.execute("INSERT INTO app.keys VALUES ('people', '3', 'b'), ('others', '3', 'b')").await;
        for _ in 0..2 {
            rig.sink = workers.map_or_else(|| new_sink(&rig.database.url), |n| parallel_sink(&rig.database.url, n));
            rig.sink.progress().await.unwrap();
            rig.prepare().await.unwrap();
            assert_eq!(rig.ask(CONSTRAINTS).await, ["keys_new_id_key"]);
            assert_eq!(rig.ask(THERE).await, ["1|a", "2|b", "3|b"]);
            let listed = rig.sink.list(&QuarantineFilter::default()).await.unwrap();
            assert_eq!(listed.len(), 1, "{listed:?}");
        }
    }
}

#[tokio::test]
async fn a_plan_shows_the_constraint_of_the_mapping() {
    let Some(mut rig) = rig(None).await else { return };
    let sql = rig.sink.ddl(&rig.target).unwrap();
    let unique = "ALTER TABLE  \"app\".\"keys\" ADD CONSTRAINT  \"keys_new_id_key\" UNIQUE";
    assert!(
        sql.after_load.iter().any(|line| line.replace("  ", " ").starts_with(&unique.replace("  ", " "))),
        "{sql:?}"
    );
    rig.load(Vec::new()).await.unwrap();
    let mut inspect = PostgresInspect::new(Config::parse(&rig.database.url).unwrap());
    let there = inspect.catalog(&["app.keys".to_owned()]).await.unwrap();
    assert_eq!(there.tables[0].uniques, mapping().def.uniques);
}

#[tokio::test]
async fn a_key_that_was_given_out_stays_whatever_becomes_of_its_row() {
    let Some(mut rig) = rig(None).await else { return };
    // Already in the load, where the table has no index yet.
    rig.load(vec![block(1, 50, &[row(&mapped("1", "a")), row(&mapped("1", "other"))])]).await.unwrap();
    rig.stream(vec![insert(1, &mapped("2", "b")), insert(1, &mapped("2", "other")), insert(1, &mapped("3", "c"))])
        .await
        .unwrap();
    let applied = rig
        .stream(vec![
            delete(1, &[V::Text("people"), text("1"), V::Absent]),
            insert(1, &mapped("1", "again")),
            update(1, &mapped("2", "another")),
            update_from(1, &[V::Text("people"), text("3"), V::Absent], &mapped("4", "d")),
        ])
        .await
        .unwrap();
    assert!(applied.rejected.is_empty(), "{}", applied.rejected[0].reason);
    assert_eq!(rig.ask(THERE).await, ["1|a", "2|b", "3|c", "4|d"]);
    let applied = rig.stream(vec![update(1, &[V::Text("people"), text("2"), V::Same])]).await.unwrap();
    assert_eq!(applied.rejected.len(), 1, "a part of an entry is none");
}
