//! Histories that cannot be gone on with: WAL that is gone, a server put back to an earlier state, another timeline.

use crate::support::*;
use crossfade_connector::{Source, Verdict};
use crossfade_testkit::postgres::{Postgres, Settings, Version};
use std::{fs, io::Write, path::Path, process::Command};

const TABLE: &str =
    "CREATE SCHEMA app; CREATE TABLE app.t (id int PRIMARY KEY, a text); INSERT INTO app.t VALUES (1, 'x')";

async fn fixture(version: Version, settings: Settings) -> Option<Fixture> {
    // Ended with the test's process, as the shared ones are.
    let server: &'static Postgres = Box::leak(Box::new(Postgres::start(version, settings)?));
    let database = server.create_database("lost").await;
    database.execute(TABLE).await;
    Some(Fixture { database, folder: tempfile::tempdir().unwrap(), server })
}

async fn is_lost(fixture: &Fixture, log: &mut Log, word: &str) {
    let mut source = fixture.source();
    let began = std::time::Instant::now();
    let failure = loop {
        let failure = try_open(&mut source, log).await.expect_err("it must not open");
        // The server may still be coming up, or ending our last session.
        if !failure.is_transient() {
            break failure;
        }
        assert!(began.elapsed() < PATIENCE, "{failure}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert!(matches!(failure.verdict, Verdict::Lost { .. }), "{failure}");
    assert!(failure.to_string().contains(word), "{failure}");
    assert!(failure.advice().unwrap().contains("--wipe"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_whose_wal_the_server_has_removed_is_lost() {
    for version in [Version::V15, Version::V18] {
        let settings = Settings::new().set("max_slot_wal_keep_size", "1MB").set("max_wal_size", "32MB");
        let settings = settings.set("min_wal_size", "32MB").set("wal_keep_size", "0");
        let Some(fixture) = fixture(version, settings).await else { return };
        let (mut source, mut log) = fixture.copied().await;
        assert!(source.health().await.unwrap().status.is_some());
        drop(source);
        let lost = "SELECT 1 FROM pg_replication_slots WHERE wal_status = 'lost'";
        let began = std::time::Instant::now();
        while fixture.database.value(lost).await.is_none() {
            assert!(began.elapsed() < PATIENCE, "the server keeps its WAL");
            let sql = "INSERT INTO app.t SELECT max(id) + n, repeat('x', 1000) FROM app.t, generate_series(1, 20000) n GROUP BY n";
            fixture.database.execute(sql).await;
            fixture.database.execute("SELECT pg_switch_wal()").await;
            fixture.database.execute("CHECKPOINT").await;
        }
        is_lost(&fixture, &mut log, "removed WAL").await;
    }
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(done.success());
}

/// The next start recovers from the archive as far as it goes, and begins a timeline of its own.
fn recover(data: &Path) {
    let mut settings = fs::OpenOptions::new().append(true).open(data.join("postgresql.auto.conf")).unwrap();
    settings.write_all(b"restore_command = 'false'\n").unwrap();
    fs::write(data.join("recovery.signal"), "").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_put_back_from_a_backup_is_lost_on_its_old_timeline_and_on_a_new_one() {
    for version in [Version::V15, Version::V18] {
        let Some(fixture) = fixture(version, Settings::new()).await else { return };
        let (source, mut log) = fixture.copied().await;
        drop(source);
        let (server, data) = (fixture.server, fixture.server.folder().join("data"));
        let backup = server.folder().join("backup");
        server.stop();
        copy(&data, &backup);
        server.start_again();
        // What only the lost history has, and the log.
        fixture.database.execute("INSERT INTO app.t SELECT n, repeat('x', 500) FROM generate_series(2, 3000) n").await;
        let mut source = fixture.source();
        open(&mut source, &mut log).await;
        ingest_all(&fixture, &mut source, &mut log).await;
        drop(source);
        let put_back = || {
            server.stop();
            fs::remove_dir_all(&data).unwrap();
            copy(&backup, &data);
        };
        put_back();
        server.start_again();
        is_lost(&fixture, &mut log, "ends before").await;

        put_back();
        recover(&data);
        server.start_again();
        is_lost(&fixture, &mut log, "which left ours").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_promoted_after_our_position_is_gone_on_with() {
    let Some(fixture) = fixture(Version::V15, Settings::new()).await else { return };
    let (source, mut log) = fixture.copied().await;
    drop(source);
    fixture.database.execute("INSERT INTO app.t VALUES (7, 'before')").await;
    fixture.server.stop();
    recover(&fixture.server.folder().join("data"));
    fixture.server.start_again();
    while fixture.database.value("SELECT pg_is_in_recovery()").await.as_deref() != Some("f") {
        tokio::task::yield_now().await;
    }
    fixture.database.execute("INSERT INTO app.t VALUES (8, 'after')").await;
    let mut source = fixture.source();
    open(&mut source, &mut log).await;
    let replica = ingest_all(&fixture, &mut source, &mut log).await;
    assert_eq!(replica.rows("app.t").len(), 3);
    assert_eq!(log.position.unwrap().timeline, 2);
}
