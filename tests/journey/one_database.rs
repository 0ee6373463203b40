//! There and back between two schemas of one database, under tellers who never stop: one commit closes one side and opens the
//! other, and the migration goes on after it.

use crate::{
    desk::{SPEC, assert_same_tables, rows},
    failback::{TABLES, assert_back, assert_followed, fail_back, follow_back, killed_after, switched},
    switch::{FREEZER, LINES, assert_fenced, ready, switch, switch_status},
    tellers::Bank,
};
use crossfade_testkit::{
    compare::assert_same,
    postgres::{Postgres, Version},
    wait::wait_for,
};
use std::fs;

/// A bank in one database.
async fn bank(version: Version, switch: &str) -> Option<Bank> {
    let database = Postgres::shared(version)?.create_database("bank").await;
    Some(Bank::within(database, &format!("[switch]\n{switch}\n[views]\napp = \"bank\"\n")).await)
}

/// What is refused on the side that has lost the authority, by its views too.
async fn assert_refused(bank: &Bank, views: &str) {
    let sql = format!("UPDATE {views}.accounts SET balance = 0 WHERE id = 1");
    let refused = bank.old.connect().await.batch_execute(&sql).await.unwrap_err();
    assert_eq!(refused.code().map(|code| code.code()), Some("25006"), "{sql}: {refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn between_two_schemas_of_one_database_the_tellers_go_there_and_back_and_there_again() {
    let Some(bank) = bank(Version::V17, "route = 'echo $CROSSFADE_SIDE >> routed'").await else { return };
    let (run, tellers) = ready(&bank, 3, 1).await;
    switch(&bank);
    assert_eq!(run.wait().code, Some(0));
    let mut run = follow_back(&bank, &tellers);
    for round in 1..=2 {
        assert_refused(&bank, "bank_v1").await;
        fail_back(&bank);
        assert_eq!(run.wait().code, Some(0), "the stream back ends once the old side has the authority");
        tellers.wait_for_more_on_the_old_side(50);
        assert_fenced(&bank.new).await;
        assert_refused(&bank, "bank_v2").await;
        run = bank.desk.start();
        bank.desk.wait(&mut run);
        bank.desk.verify();
        assert!(switch(&bank)["epoch"].as_u64().unwrap() > 2 * round);
        assert_eq!(run.wait().code, Some(0));
        run = follow_back(&bank, &tellers);
    }
    tellers.wait_for_more_on_the_new_side(50);
    println!("the longest time between two commits of the tellers: {:?}", tellers.counts().longest_gap());
    let told = tellers.stop();
    assert_fenced(&bank.old).await;
    bank.assert_has_all(&bank.new, &told, 5).await;
    bank.desk.wait_with(&mut run, &["--reverse"]);
    bank.assert_has_all(&bank.old, &told, 5).await;
    assert_same_tables(&bank.new, &bank.old, &TABLES).await;
    let routed = fs::read_to_string(bank.desk.path("routed")).unwrap();
    assert_eq!(routed, "new\nold\nnew\nold\nnew\n", "each side is told once each time");
    bank.desk.stop(run);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_right_after_any_line_of_the_journal_a_failback_within_one_database_ends_on_one_side_and_goes_on() {
    for line in LINES {
        let Some(bank) = bank(Version::V15, "").await else { return };
        killed_after(line, &bank).await;
    }
}

/// The old side's tables that somebody holds for maintenance are what the last step waits for.
#[tokio::test(flavor = "multi_thread")]
async fn where_a_table_of_the_old_side_is_held_the_writers_go_on_by_the_deadline_and_the_next_failback_takes_them_back()
{
    let Some(bank) = bank(Version::V15, "deadline = \"3s\"").await else { return };
    let (run, tellers) = switched(&bank, 3, 1).await;
    let (at_the_gate, holds) = (bank.new.connect().await, bank.old.connect().await);
    let freezing =
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'crossfade freeze' AND datname = current_database()";
    let failback = loop {
        at_the_gate.batch_execute(&format!("BEGIN; SELECT crossfade.side('{}')", bank.desk.name)).await.unwrap();
        let mut failback = bank.desk.crossfade.spawn(&["failback", SPEC]);
        wait_for("the freeze to be tried", async || {
            let is_tried = bank.new.value(freezing).await.is_some() || !failback.is_running();
            is_tried.then_some(())
        })
        .await;
        // As a VACUUM does: the stream goes on.
        holds.batch_execute("BEGIN; LOCK TABLE accounts IN SHARE UPDATE EXCLUSIVE MODE").await.unwrap();
        at_the_gate.batch_execute("COMMIT").await.unwrap();
        let is_frozen = wait_for("the freeze to hold", async || match bank.new.value(FREEZER).await {
            None if failback.is_running() => None,
            freezer => Some(freezer.is_some()),
        })
        .await;
        if is_frozen {
            break failback;
        }
        // On a slow machine it gave up at the gate. Then it is tried again.
        let ended = failback.wait();
        assert_eq!(ended.code, Some(1), "{ended}");
        holds.batch_execute("ROLLBACK").await.unwrap();
    };
    let ended = failback.wait();
    assert_eq!(ended.code, Some(1), "{ended}");
    assert!(ended.stderr.contains("taken back, and the new side goes on"), "{ended}");
    tellers.wait_for_more_on_the_new_side(50);
    assert_fenced(&bank.old).await;
    assert_eq!(switch_status(&bank)["authority"], "new");
    holds.batch_execute("ROLLBACK").await.unwrap();
    fail_back(&bank);
    assert_eq!(run.wait().code, Some(0));
    assert_back(&bank, tellers).await;
    assert_followed(&bank).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failback_within_one_database_a_wipe_leaves_the_old_tables_and_nothing_else() {
    let Some(bank) = bank(Version::V15, "").await else { return };
    let (run, tellers) = switched(&bank, 2, 0).await;
    bank.desk.stop(run);
    tellers.wait_for_more(50);
    // Where nobody runs the way back, the failback runs it itself.
    fail_back(&bank);
    assert_back(&bank, tellers).await;
    let mut stood = Vec::new();
    for table in TABLES {
        stood.push(rows(&bank.old, &format!("SELECT * FROM {table}")).await);
    }
    bank.desk.expect(0, &["rollback"], &["--wipe", "--yes"]);
    let left = "SELECT (SELECT count(*) FROM pg_namespace WHERE nspname IN ('crossfade', 'app_v2', 'bank_v1', 'bank_v2')) \
        + (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'crossfade%') \
        + (SELECT count(*) FROM pg_publication) \
        + (SELECT count(*) FROM pg_replication_slots WHERE database = current_database())";
    assert_eq!(bank.old.value(left).await.as_deref(), Some("0"), "something is left");
    for (table, stood) in TABLES.iter().zip(&stood) {
        assert_same(table, stood, &rows(&bank.old, &format!("SELECT * FROM {table}")).await);
    }
    let mut run = bank.desk.start();
    bank.desk.wait(&mut run);
    assert_same_tables(&bank.old, &bank.new, &TABLES).await;
    bank.desk.stop(run);
}
