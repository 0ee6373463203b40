//! Tables that are not ours alone: shadow columns beside the old ones, and tables that were there before us.

use crate::rig::{Rig, V, block, column, delete, insert, key, row, table, update};
use crossfade_connector::{Rollback, Sink, TargetTable, Verdict, WriteMode};

/// The key, and a shadow column that is ours.
fn shadows() -> TargetTable {
    let mut table = table(1, "users", vec![column("id", "integer", Some(0)), column("uuid_id", "text", None)]);
    table.mode = WriteMode::Columns { columns: vec![1] };
    table
}

const USERS: &str = "CREATE SCHEMA app; CREATE TABLE app.users (id int PRIMARY KEY, name text); \
     INSERT INTO app.users SELECT g, 'n' || g FROM generate_series(1, 5) g";

async fn rig(sql: &str, tables: Vec<TargetTable>) -> Option<Rig> {
    let mut rig = Rig::empty(tables).await?;
    rig.database.execute(sql).await;
    rig.target.into_existing = true;
    rig.prepare().await.unwrap();
    Some(rig)
}

#[tokio::test]
async fn shadow_columns_are_added_and_written_beside_the_old_ones() {
    let Some(mut rig) = rig(USERS, vec![shadows()]).await else { return };
    let rows: Vec<_> = (1..=4).map(|id| row(&[V::Int(id), V::Text("u")])).collect();
    rig.load(vec![block(1, 1, &rows)]).await.unwrap();
    rig.stream(vec![
        update(1, &[V::Int(2), V::Text("v")]),
        // Gone from the table already: neither made again nor an error.
        insert(1, &[V::Int(9), V::Text("w")]),
        delete(1, &[V::Int(3), V::Absent]),
    ])
    .await
    .unwrap();
    assert_eq!(
        rig.ask("SELECT * FROM app.users ORDER BY id").await,
        ["1|n1|u", "2|n2|v", "3|n3|u", "4|n4|u", "5|n5|∅"]
    );
    assert_eq!(rig.ask("SELECT count(*) FROM crossfade.undo").await, ["0"], "the column is our own");
    let report = rig.sink.wipe(&rig.target.clone()).await.unwrap();
    assert!(report.dropped.iter().any(|dropped| dropped == "column uuid_id of app.users"), "{:?}", report.dropped);
    assert_eq!(rig.ask("SELECT * FROM app.users WHERE id = 1").await, ["1|n1"]);
    assert_eq!(rig.ask("SELECT to_regnamespace('crossfade') IS NULL").await, ["t"]);
}

#[tokio::test]
async fn our_own_transactions_are_marked_with_and_without_the_right_to_an_origin() {
    for superuser in [true, false] {
        let Some(mut rig) = Rig::empty(vec![shadows()]).await else { return };
        rig.database.execute(USERS).await;
        let name = format!("own_{superuser}_{}", rig.database.name);
        rig.database
            .execute(&format!(
                "CREATE ROLE {name} LOGIN {}; GRANT CREATE ON DATABASE {} TO {name}; ALTER SCHEMA app OWNER TO {name}; \
                 ALTER TABLE app.users OWNER TO {name}",
                if superuser { "SUPERUSER" } else { "" },
                rig.database.name
            ))
            .await;
        rig.database.execute(&format!("SELECT pg_create_logical_replication_slot('{name}', 'test_decoding')")).await;
        rig.sink = crate::rig::new_sink(&rig.database.url.replace("postgres@", &format!("{name}@")));
        rig.target.into_existing = true;
        rig.target.migration = format!("m{superuser}");
        rig.prepare().await.unwrap();
        rig.load(vec![block(1, 1, &[row(&[V::Int(1), V::Text("u")])])]).await.unwrap();
        rig.stream(vec![update(1, &[V::Int(2), V::Text("v")])]).await.unwrap();
        let seen = rig
            .ask(&format!("SELECT data FROM pg_logical_slot_get_changes('{name}', NULL, NULL, 'only-local', 'true')"))
            .await;
        let mut ours = false;
        for line in &seen {
            if line.starts_with("BEGIN") {
                ours = false;
            }
            ours |= line.contains("crossfade.own");
            assert!(!line.contains("app.users: UPDATE") || ours, "unmarked with superuser = {superuser}: {seen:?}");
        }
        rig.database.execute(&format!("SELECT pg_drop_replication_slot('{name}')")).await;
    }
}

fn people() -> TargetTable {
    table(1, "people", vec![column("id", "integer", Some(0)), column("name", "text", None)])
}

const PEOPLE: &str = "CREATE SCHEMA app; CREATE TABLE app.people (id int PRIMARY KEY, name text); \
     INSERT INTO app.people SELECT g, 'old' || g FROM generate_series(1, 6) g";

#[tokio::test]
async fn an_undo_puts_back_what_was_overwritten_and_leaves_alone_what_others_changed() {
    let Some(mut rig) = rig(PEOPLE, vec![people()]).await else { return };
    rig.load(vec![block(1, 1, &[row(&[V::Int(1), V::Text("new1")]), row(&[V::Int(10), V::Text("new10")])])])
        .await
        .unwrap();
    rig.stream(vec![
        update(1, &[V::Int(2), V::Text("new2")]),
        update(1, &[V::Int(2), V::Text("newer2")]),
        delete(1, &[V::Int(3), V::Absent]),
        insert(1, &[V::Int(11), V::Text("new11")]),
        update(1, &[V::Int(4), V::Text("new4")]),
    ])
    .await
    .unwrap();
    rig.stream(vec![update(1, &[V::Int(1), V::Text("newer1")]), delete(1, &[V::Int(11), V::Absent])]).await.unwrap();
    rig.database.execute("UPDATE app.people SET name = 'theirs' WHERE id = 4").await;
    let report = rig.sink.undo(&rig.target.clone()).await.unwrap();
    assert_eq!((report.restored, report.removed, report.left_alone.len()), (3, 1, 1), "{report:?}");
    assert_eq!(
        rig.ask("SELECT * FROM app.people ORDER BY id").await,
        ["1|old1", "2|old2", "3|old3", "4|theirs", "5|old5", "6|old6"]
    );
    let again = rig.sink.undo(&rig.target.clone()).await.unwrap();
    assert_eq!((again.restored, again.removed, again.left_alone.len()), (0, 0, 1));
}

#[tokio::test]
async fn an_undo_puts_values_back_into_their_columns_whatever_those_are_called_now() {
    let texts = |names: [&str; 2]| {
        let [one, other] = names.map(|name| column(name, "text", None));
        table(1, "people", vec![column("id", "integer", Some(0)), one, other])
    };
    let sql = "CREATE SCHEMA app; CREATE TABLE app.people (id int PRIMARY KEY, a text, b text); \
               INSERT INTO app.people VALUES (1, 'old a', 'old b')";
    let (before, after) = (texts(["a", "b"]), texts(["b", "a"]));
    let Some(mut rig) = rig(sql, vec![before.clone()]).await else { return };
    rig.load(vec![block(1, 1, &[row(&[V::Int(1), V::Text("A"), V::Text("B")])])]).await.unwrap();
    rig.sink.alter(&before, &after).await.unwrap();
    rig.stream(Vec::new()).await.unwrap();
    assert_eq!(rig.ask("SELECT a, b FROM app.people").await, ["B|A"]);
    rig.target.tables = vec![after];
    let report = rig.sink.undo(&rig.target.clone()).await.unwrap();
    assert_eq!((report.restored, report.left_alone.len()), (1, 0), "{report:?}");
    assert_eq!(rig.ask("SELECT a, b FROM app.people").await, ["old b|old a"]);
}

#[tokio::test]
async fn an_undo_leaves_alone_what_somebody_changes_at_that_very_moment() {
    let Some(mut rig) = rig(PEOPLE, vec![people()]).await else { return };
    rig.load(vec![block(1, 1, &[row(&[V::Int(1), V::Text("new1")]), row(&[V::Int(2), V::Text("new2")])])])
        .await
        .unwrap();
    let mut other = rig.database.connect().await;
    let theirs = other.transaction().await.unwrap();
    theirs.execute("UPDATE app.people SET name = 'theirs' WHERE id = 1", &[]).await.unwrap();
    let watcher = rig.database.connect().await;
    let target = rig.target.clone();
    let blocked = async {
        loop {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                       AND application_name = 'crossfade sink test' AND wait_event_type = 'Lock'";
            if watcher.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) > 0 {
                break theirs.commit().await.unwrap();
            }
            tokio::task::yield_now().await;
        }
    };
    let (report, ()) = tokio::join!(rig.sink.undo(&target), blocked);
    let report = report.unwrap();
    assert_eq!((report.restored, report.left_alone.len()), (1, 1), "{report:?}");
    assert_eq!(rig.ask("SELECT * FROM app.people WHERE id < 3 ORDER BY id").await, ["1|theirs", "2|old2"]);
}

#[tokio::test]
async fn a_wipe_drops_what_we_made_and_nothing_else() {
    let orders = table(2, "orders", vec![column("id", "integer", Some(0)), column("person", "integer", None)]);
    let orders = crate::rig::refers(orders, "person", "people", "id");
    let Some(mut rig) = Rig::empty(vec![people(), orders]).await else { return };
    rig.database.execute("CREATE SCHEMA app; CREATE TABLE app.mine (a int)").await;
    rig.prepare().await.unwrap();
    rig.load(vec![block(1, 1, &[row(&[V::Int(1), V::Null])]), block(2, 2, &[row(&[V::Int(1), V::Int(1)])])])
        .await
        .unwrap();
    rig.stream(vec![]).await.unwrap();
    let report = rig.sink.wipe(&rig.target.clone()).await.unwrap();
    assert!(report.dropped.contains(&"table app.people".to_owned()), "{:?}", report.dropped);
    assert_eq!(rig.ask("SELECT relname FROM pg_class WHERE relnamespace = 'app'::regnamespace").await, ["mine"]);
    assert_eq!(rig.sink.progress().await.unwrap(), None);
    rig.sink.wipe(&rig.target.clone()).await.unwrap();
    // And everything can begin again.
    rig.prepare().await.unwrap();
    rig.load(vec![]).await.unwrap();
    rig.stream(vec![insert(1, &[V::Int(1), V::Null])]).await.unwrap();
    assert!(rig.sink.read_row(crossfade_event::TableId(1), &key(&[V::Int(1)])).await.unwrap().is_some());
}

#[tokio::test]
async fn a_table_without_a_unique_key_is_refused_as_a_target() {
    let Some(mut rig) = Rig::empty(vec![shadows()]).await else { return };
    rig.database.execute("CREATE SCHEMA app; CREATE TABLE app.users (id int, name text)").await;
    rig.target.into_existing = true;
    let failure = rig.prepare().await.unwrap_err();
    assert!(matches!(failure.verdict, Verdict::Refused { .. }), "{failure}");
}

#[tokio::test]
async fn a_column_that_was_there_gets_its_values_back() {
    let users = "CREATE SCHEMA app; CREATE TABLE app.users (id int PRIMARY KEY, name text, uuid_id text); \
                 INSERT INTO app.users VALUES (1, 'a', 'kept'), (2, 'b', NULL), (3, 'c', 'kept too')";
    let Some(mut rig) = rig(users, vec![shadows()]).await else { return };
    let rows: Vec<_> = (1..=3).map(|id| row(&[V::Int(id), V::Text("ours")])).collect();
    rig.load(vec![block(1, 1, &rows)]).await.unwrap();
    rig.stream(vec![update(1, &[V::Int(1), V::Text("ours again")])]).await.unwrap();
    rig.database
        .execute(
            "UPDATE app.users SET name = 'renamed' WHERE id = 1; UPDATE app.users SET uuid_id = 'theirs' WHERE id = 3",
        )
        .await;
    let report = rig.sink.undo(&rig.target.clone()).await.unwrap();
    assert_eq!((report.restored, report.left_alone.len()), (1, 1), "{report:?}");
    assert_eq!(rig.ask("SELECT * FROM app.users ORDER BY id").await, ["1|renamed|kept", "2|b|ours", "3|c|theirs"]);
}
