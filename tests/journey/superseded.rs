//! One writer: a run whose epoch is over is refused, with the same exit code whatever the target is.

use crate::desk::{Desk, SPEC, postgres, sqlite, two_databases};
use crossfade_testkit::crossfade::Running;

/// A run that notices, when it next writes, that a later one has taken the target; and one that is begun after that.
fn is_refused(desk: &Desk, run: Running) {
    let ended = run.wait();
    assert_eq!(ended.code, Some(3), "{ended}");
    assert!(ended.stderr.contains("a later run has taken the target"), "{ended}");
    let again = desk.expect(3, &["run"], &["--quiet"]);
    assert!(again.stderr.contains("a later run has taken the target"), "{again}");
    let status = desk.crossfade.json(&["status", SPEC]);
    assert_eq!(status["pid"], serde_json::Value::Null, "nobody runs it any more: {status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_superseded_run_into_postgres_ends_with_three() {
    let Some((source, target)) = two_databases().await else { return };
    source.execute("CREATE TABLE t (id int PRIMARY KEY)").await;
    let desk = Desk::new();
    desk.write_spec(&format!("{}\ntables = [\"public.*\"]", postgres(&source)), &postgres(&target), "");
    let mut run = desk.start();
    desk.wait(&mut run);
    target.execute("UPDATE crossfade.positions SET epoch = epoch + 10").await;
    source.execute("INSERT INTO t VALUES (1)").await;
    is_refused(&desk, run);
    assert_eq!(target.value("SELECT count(*) FROM t").await.as_deref(), Some("0"), "the old run wrote nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_superseded_run_into_sqlite_ends_with_three() {
    let desk = Desk::new();
    let (old, new) = (desk.path("old.db"), desk.path("new.db"));
    let open = |path| rusqlite::Connection::open(path).unwrap();
    open(&old).execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (id INTEGER PRIMARY KEY)").unwrap();
    desk.write_spec(&format!("{}\ntables = [\"main.*\"]", sqlite(&old)), &sqlite(&new), "");
    let mut run = desk.start();
    desk.wait(&mut run);
    open(&new).execute_batch("UPDATE _crossfade_positions SET epoch = epoch + 10").unwrap();
    open(&old).execute_batch("INSERT INTO t VALUES (1)").unwrap();
    is_refused(&desk, run);
    let count: i64 = open(&new).query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 0, "the old run wrote nothing");
}
