//! Connections that end, locks that clash, servers that do not take writes.

use crate::rig::{Rig, V, column, insert, new_sink, table, update};
use crossfade_connector::{Delivery, Guard, Sink, Stage, TargetTable, Verdict};

fn people() -> TargetTable {
    table(1, "people", vec![column("id", "integer", Some(0)), column("name", "text", None)])
}

const END_SESSIONS: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
     WHERE application_name = 'crossfade sink test' AND datname = current_database()";

#[tokio::test]
async fn a_lost_connection_loses_the_open_transaction_and_nothing_else() {
    let Some(mut rig) = Rig::streaming(vec![people()]).await else { return };
    rig.stream(vec![insert(1, &[V::Int(1), V::Null])]).await.unwrap();
    let upto = rig.upto(Stage::Streaming);
    let writes = rig.writes(vec![insert(1, &[V::Int(2), V::Null])]);
    rig.sink.apply(Delivery { writes, upto, commits: false }, Guard::Forward).await.unwrap();
    rig.database.execute(END_SESSIONS).await;
    let failure = rig.stream(vec![insert(1, &[V::Int(3), V::Null])]).await.unwrap_err();
    assert!(failure.is_transient(), "{failure}");
    // Without asking where it stands, nothing more goes in.
    let failure = rig.stream(vec![insert(1, &[V::Int(3), V::Null])]).await.unwrap_err();
    assert!(failure.is_transient(), "{failure}");
    let progress = rig.sink.progress().await.unwrap().unwrap();
    assert_eq!(progress.cut.total(), 300);
    rig.prepare().await.unwrap();
    rig.stream(vec![insert(1, &[V::Int(2), V::Null]), insert(1, &[V::Int(3), V::Null])]).await.unwrap();
    assert_eq!(rig.ask("SELECT id FROM app.people ORDER BY id").await, ["1", "2", "3"]);
}

#[tokio::test]
async fn a_server_that_crashes_loses_rows_and_their_position_together() {
    use crossfade_testkit::postgres::{Postgres, Settings};
    let Some(server) = Postgres::start(crate::rig::server_version(), Settings::new().fsync()) else { return };
    let Some(mut rig) = Rig::on(server.create_database("crash").await, vec![people()]).await else { return };
    rig.prepare().await.unwrap();
    rig.load(Vec::new()).await.unwrap();
    // A commit that waits for the disk, and takes everything before it along.
    rig.database.execute("CREATE TABLE flushed ()").await;
    let mut next = 0;
    for _ in 0..5 {
        for _ in 0..40 {
            next += 1;
            rig.stream(vec![insert(1, &[V::Int(next), V::Null])]).await.unwrap();
        }
        server.kill();
        server.start_again();
        let progress = rig.restart().await.unwrap();
        let rows = rig.ask("SELECT count(*) FROM app.people").await;
        // The load was the first step of a hundred; each delivery after it brought one row.
        next = i32::try_from(progress.cut.total() / 100 - 1).unwrap();
        assert_eq!(rows, [next.to_string()]);
        rig.stand_at(&progress);
    }
}

#[tokio::test]
async fn a_cancelled_delivery_leaves_nothing_and_its_successor_waits_for_its_end() {
    let Some(mut rig) = Rig::streaming(vec![people()]).await else { return };
    rig.stream(vec![insert(1, &[V::Int(1), V::Text("a")])]).await.unwrap();
    // Somebody holds the row: the delivery waits, and is dropped meanwhile.
    let mut other = rig.database.connect().await;
    let held = other.transaction().await.unwrap();
    held.execute("UPDATE app.people SET name = 'theirs' WHERE id = 1", &[]).await.unwrap();
    let upto = rig.upto(Stage::Streaming);
    let writes = rig.writes(vec![insert(1, &[V::Int(5), V::Null]), update(1, &[V::Int(1), V::Text("b")])]);
    let waiting = rig.sink.apply(Delivery { writes, upto, commits: true }, Guard::Forward);
    let watcher = rig.database.connect().await;
    let blocked = async {
        loop {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                       AND application_name = 'crossfade sink test' AND wait_event_type = 'Lock'";
            if watcher.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) > 0 {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = waiting => panic!("the delivery must wait for the lock"),
        () = blocked => {}
    }
    held.rollback().await.unwrap();
    let progress = rig.restart().await.unwrap();
    // Whether its commit was on the way or not: rows and position agree.
    let there = rig.ask("SELECT count(*) FROM app.people WHERE id = 5").await;
    assert_eq!(there[0] == "1", progress.cut.total() == 400, "{progress:?}");
}

#[tokio::test]
async fn a_deadlock_is_tried_again() {
    let Some(mut rig) = Rig::streaming(vec![people()]).await else { return };
    rig.stream(vec![insert(1, &[V::Int(1), V::Null]), insert(1, &[V::Int(2), V::Null])]).await.unwrap();
    let mut other = rig.database.connect().await;
    let held = other.transaction().await.unwrap();
    held.execute("UPDATE app.people SET name = 'x' WHERE id = 2", &[]).await.unwrap();
    let theirs = async {
        let watcher = rig.database.connect().await;
        loop {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                       AND application_name = 'crossfade sink test' AND wait_event_type = 'Lock'";
            if watcher.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) > 0 {
                break;
            }
            tokio::task::yield_now().await;
        }
        // Ours has 1 and waits for 2; now they want 1. Ours waited first, so ours is told of the deadlock.
        held.execute("UPDATE app.people SET name = 'y' WHERE id = 1", &[]).await
    };
    let changes = vec![update(1, &[V::Int(1), V::Text("a")]), update(1, &[V::Int(2), V::Text("b")])];
    let upto = crossfade_connector::Progress {
        cut: crossfade_event::Cut::single(crossfade_event::Offset(900)),
        ..rig.sink.progress().await.unwrap().unwrap()
    };
    let writes = rig.writes(changes);
    let (ours, theirs) = tokio::join!(rig.sink.apply(Delivery { writes, upto, commits: true }, Guard::Forward), theirs);
    match (ours, theirs) {
        (Err(failure), Ok(_)) => assert!(matches!(failure.verdict, Verdict::Retry { .. }), "{failure}"),
        (Ok(_), Err(_)) => {}
        other => panic!("one of the two must be the victim: {other:?}"),
    }
}

#[tokio::test]
async fn a_database_that_is_read_only_for_now_is_waited_for() {
    let Some(mut rig) = Rig::streaming(vec![people()]).await else { return };
    let name = rig.database.name.clone();
    // As in a managed server's maintenance: for as long as it lasts, transactions cannot write.
    rig.database.execute(&format!("ALTER DATABASE {name} SET default_transaction_read_only = on")).await;
    rig.sink = new_sink(&rig.database.url);
    assert!(rig.sink.progress().await.unwrap().is_some());
    let failure = rig.prepare().await.unwrap_err();
    assert!(matches!(failure.verdict, Verdict::Retry { .. }), "{failure}");
    let client = rig.database.connect().await;
    client.batch_execute("SET default_transaction_read_only = off").await.unwrap();
    client.batch_execute(&format!("ALTER DATABASE {name} RESET default_transaction_read_only")).await.unwrap();
    rig.restart().await;
    rig.stream(vec![insert(1, &[V::Int(1), V::Null])]).await.unwrap();
    assert_eq!(rig.ask("SELECT id FROM app.people").await, ["1"]);
}

#[tokio::test]
async fn a_place_that_an_older_session_moves_after_it_was_told_is_not_gone_on_from() {
    let Some(mut rig) = Rig::streaming(vec![people()]).await else { return };
    let mut successor = new_sink(&rig.database.url);
    let before = successor.progress().await.unwrap();
    // What was on its way arrives: the successor would apply it once more.
    rig.stream(vec![insert(1, &[V::Int(1), V::Text("a")])]).await.unwrap();
    drop(std::mem::replace(&mut rig.sink, new_sink(&rig.database.url)));
    let refused = successor.prepare(&rig.target).await.unwrap_err();
    assert!(refused.is_transient(), "{refused}");
    let after = successor.progress().await.unwrap();
    assert_ne!(after, before);
    successor.prepare(&rig.target).await.unwrap();
}
