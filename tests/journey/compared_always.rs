//! Both sides compared all the time, beside a run: what somebody damages in the target is found without being asked for, writers
//! cause no false alarm, and a switch proves what has changed since while the writers wait.

use crate::{
    desk::{SPEC, assert_same_tables, rows},
    switch::{FREEZER, guard, switch, switch_status},
    tellers::{Bank, Tellers},
};
use crossfade_testkit::{
    compare::assert_same,
    crossfade::Running,
    postgres::Database,
    wait::{wait_for, wait_until},
};
use serde_json::Value;
use std::time::Duration;
use tokio_postgres::Client;

const ALWAYS: &str = "[switch]\n[verify]\ncontinuous = true\nshare = \"50%\"\n";

async fn bank(rest: &str) -> Option<Bank> {
    let (old, new) = crate::desk::two_databases().await?;
    Some(Bank::between_with(old, new, rest).await)
}

fn verifying(bank: &Bank) -> Value {
    bank.desk.crossfade.json(&["status", SPEC])["verify"].clone()
}

/// Waits until both sides are proven to agree, without anybody having asked.
async fn proven(bank: &Bank, run: &mut Running) {
    bank.desk
        .until("both sides to be proven equal", run, async || switch_status(bank)["verified_at"].is_string())
        .await;
}

fn entries_followed(status: &Value) -> u64 {
    status["rows_followed"].as_u64().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_damaged_by_hand_is_found_without_asking_and_voids_the_proof() {
    let Some(bank) = bank(ALWAYS).await else { return };
    let mut run = bank.desk.start();
    bank.desk.wait(&mut run);
    bank.flagged().await;
    let tellers = Tellers::start(&bank, 2, 2);
    tellers.wait_for_more(200);
    proven(&bank, &mut run).await;
    // Writers who never stop are no reason for an alarm, and what they write is compared.
    let before = entries_followed(&verifying(&bank));
    bank.desk
        .until("what the tellers write to be compared", &mut run, async || {
            let status = verifying(&bank);
            assert_eq!(status["differences"], 0, "a false alarm: {status}");
            entries_followed(&status) > before + 500
        })
        .await;
    let status = switch_status(&bank);
    assert!(status["voided"].is_null() && status["verified_at"].is_string(), "{status}");

    let damage = "UPDATE movements SET amount = amount + 1 WHERE id = (SELECT min(id) FROM movements)";
    bank.new.execute(damage).await;
    bank.desk
        .until("the damage to be found", &mut run, async || {
            let said = bank.desk.crossfade.json(&["status", SPEC]);
            let sample = &said["verify"]["samples"][0];
            sample["table"] == "public.movements" && sample["kind"] == "different" && sample["columns"][0] == "amount"
        })
        .await;
    let status = switch_status(&bank);
    assert!(status["verified_at"].is_null(), "{status}");
    assert!(status["voided"].as_str().unwrap().contains("movements"), "{status}");
    let said = bank.desk.expect(0, &["status"], &[]);
    assert!(said.stdout.contains("differs       different: public.movements"), "{said}");
    // Nothing switches over it.
    let refused = bank.desk.expect(3, &["cutover"], &[]);
    assert!(refused.stdout.contains("clean-pass"), "{refused}");
    bank.desk.expect(0, &["verify"], &["--repair"]);
    proven(&bank, &mut run).await;
    bank.desk
        .until("the proof to be carried on", &mut run, async || {
            let status = verifying(&bank);
            status["differences"] == 0 && status["position"].is_string()
        })
        .await;
    tellers.stop();
    bank.desk.wait(&mut run);
    assert_same_tables(&bank.old, &bank.new, &["accounts", "movements", "notes"]).await;
    bank.desk.stop(run);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cutover_needs_no_other_proof_than_the_one_that_is_carried_on() {
    let Some(bank) = bank(ALWAYS).await else { return };
    let mut run = bank.desk.start();
    bank.desk.wait(&mut run);
    bank.flagged().await;
    let tellers = Tellers::start(&bank, 3, 1);
    tellers.wait_for_more(100);
    proven(&bank, &mut run).await;
    let answer = switch(&bank);
    assert!(guard(&answer, "clean-pass")["holds"] == true, "{answer}");
    println!("rows that were compared while the writers waited: {}", answer["pause"]);
    run.wait();
    tellers.wait_for_more_on_the_new_side(50);
    let told = tellers.stop();
    bank.assert_one_history(&told).await;
}

/// Nobody looks any more who else writes the target.
pub(crate) async fn assert_unwatched(target: &Database) {
    let watches = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'crossfade_watch%'";
    assert_eq!(target.value(watches).await.as_deref(), Some("0"), "the target is still watched");
    let notes = "SELECT to_regclass('crossfade.foreign_writes') IS NULL \
                 OR (xpath('/row/c/text()', query_to_xml('SELECT count(*) AS c FROM crossfade.foreign_writes', false, true, '')))[1]::text = '0'";
    assert_eq!(target.value(notes).await.as_deref(), Some("t"), "notes of other writers are left");
}

/// A cutover whose guards have passed, and that waits for a transaction at the gate before it freezes.
async fn at_the_gate(bank: &Bank, deadline: &str) -> (Running, Client) {
    let gate = bank.old.connect().await;
    gate.batch_execute(&format!("BEGIN; SELECT crossfade.side('{}')", bank.desk.name)).await.unwrap();
    let cutover = bank.desk.crossfade.spawn(&["cutover", SPEC, "--deadline", deadline]);
    wait_until("the freeze to be tried", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'crossfade freeze' AND datname = current_database()";
        bank.old.value(sql).await.as_deref() == Some("1")
    })
    .await;
    (cutover, gate)
}

async fn assert_refused_in_the_freeze(bank: &Bank, cutover: Running, gate: Client, tellers: Tellers, why: &str) {
    gate.batch_execute("COMMIT").await.unwrap();
    let ended = cutover.wait();
    assert_eq!(ended.code, Some(3), "{ended}");
    assert!(ended.stderr.contains("was taken back") && ended.stderr.contains(why), "{ended}");
    assert_eq!(bank.authority().await.0.split(' ').next(), Some("old"));
    // The freeze has lapsed: the writers go on where they were.
    wait_until("the freeze to lapse", async || bank.old.value(FREEZER).await.is_none()).await;
    tellers.wait_for_more(50);
    let status = switch_status(bank);
    assert!(status["verified_at"].is_null() && status["voided"].as_str().unwrap().contains(why), "{status}");
    bank.desk.expect(3, &["cutover"], &[]);
    // Mended and proven anew, it goes.
    bank.desk.expect(0, &["verify"], &["--repair"]);
    bank.desk.verify();
    switch(bank);
    tellers.wait_for_more_on_the_new_side(20);
    let told = tellers.stop();
    bank.assert_one_history(&told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_writes_right_before_the_freeze_is_noticed_in_it() {
    let Some(bank) = Bank::open("").await else { return };
    let (_run, tellers) = crate::switch::ready(&bank, 2, 0).await;
    let (cutover, gate) = at_the_gate(&bank, "60s").await;
    // A row that no change of the stream touches any more.
    bank.new.execute("UPDATE notes SET note = 'damaged' WHERE note = 'early'").await;
    assert_refused_in_the_freeze(&bank, cutover, gate, tellers, "has written public.notes").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_came_since_the_proof_and_is_not_what_it_should_be_is_found_in_the_freeze() {
    let Some(bank) = Bank::open("").await else { return };
    let (_run, tellers) = crate::switch::ready(&bank, 2, 0).await;
    let (cutover, gate) = at_the_gate(&bank, "60s").await;
    bank.old.execute("INSERT INTO notes VALUES ('fresh')").await;
    wait_until("the note to be on the new side", async || has(&bank.new, "fresh").await).await;
    // As if we had written it wrongly ourselves: nobody else is noticed.
    let hidden = format!("SET crossfade.pass = '{}'; DELETE FROM notes WHERE note = 'fresh'", bank.desk.name);
    bank.new.execute(&hidden).await;
    assert_refused_in_the_freeze(&bank, cutover, gate, tellers, "public.notes").await;
}

async fn has(side: &Database, note: &str) -> bool {
    side.value(&format!("SELECT count(*) FROM notes WHERE note = '{note}'")).await.as_deref() == Some("1")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_that_does_not_end_in_the_freeze_is_given_up_by_the_deadline_and_voids_nothing() {
    let Some(bank) = Bank::open("").await else { return };
    let (_run, tellers) = crate::switch::ready(&bank, 2, 0).await;
    let (cutover, gate) = at_the_gate(&bank, "10s").await;
    bank.old.execute("INSERT INTO notes VALUES ('fresh')").await;
    wait_until("the note to be on the new side", async || has(&bank.new, "fresh").await).await;
    // Whoever compares waits for this table, and the stream does not need it.
    let holds = bank.new.connect().await;
    holds.batch_execute("BEGIN; LOCK TABLE notes IN ACCESS EXCLUSIVE MODE").await.unwrap();
    gate.batch_execute("COMMIT").await.unwrap();
    // Nobody does anything: the deadline ends it, and the writers go on while the table is still locked.
    let ended = cutover.wait();
    assert_eq!(ended.code, Some(1), "{ended}");
    assert!(ended.stderr.contains("was taken back"), "{ended}");
    println!("given up: {}", ended.stderr);
    assert_eq!(bank.authority().await.0.split(' ').next(), Some("old"));
    tellers.wait_for_more(50);
    holds.batch_execute("ROLLBACK").await.unwrap();
    let status = switch_status(&bank);
    assert!(status["verified_at"].is_string() && status["voided"].is_null(), "{status}");
    switch(&bank);
    tellers.wait_for_more_on_the_new_side(20);
    let told = tellers.stop();
    bank.assert_one_history(&told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shape_that_changed_while_nobody_ran_ends_the_proof() {
    let Some(bank) = Bank::open("").await else { return };
    let (run, tellers) = crate::switch::ready(&bank, 2, 0).await;
    bank.desk.stop(run);
    // Every row has another value then, and the log names none of them.
    bank.old.execute("ALTER TABLE notes ADD COLUMN weight integer NOT NULL DEFAULT 7").await;
    bank.old.execute("INSERT INTO notes VALUES ('fresh')").await;
    let mut run = bank.desk.start();
    bank.desk.wait(&mut run);
    let refused = bank.desk.expect(3, &["cutover"], &[]);
    let said = format!("{}{}", refused.stdout, refused.stderr);
    assert!(said.contains("shape of a table has changed") || said.contains("clean-pass"), "{refused}");
    println!("{said}");
    assert_eq!(bank.authority().await.0.split(' ').next(), Some("old"));
    bank.desk.expect(0, &["verify"], &["--repair"]);
    bank.desk.verify();
    switch(&bank);
    tellers.wait_for_more_on_the_new_side(20);
    let told = tellers.stop();
    bank.assert_one_history(&told).await;
    let early = "SELECT * FROM notes WHERE note IN ('early', 'fresh') ORDER BY note";
    assert_same("notes", &rows(&bank.old, early).await, &rows(&bank.new, early).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_ends_the_watch_over_the_target() {
    let Some(bank) = Bank::open("").await else { return };
    let (run, tellers) = crate::switch::ready(&bank, 1, 0).await;
    let watches = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'crossfade_watch%'";
    assert_eq!(bank.new.value(watches).await.as_deref(), Some("3"), "each table is watched");
    bank.new.execute("INSERT INTO notes VALUES ('theirs')").await;
    tellers.stop();
    bank.desk.stop(run);
    bank.desk.expect(0, &["rollback"], &["--undo", "--yes"]);
    assert_unwatched(&bank.new).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_run_goes_on_with_the_comparison_where_it_was() {
    let Some(bank) = bank("[switch]\n[verify]\ncontinuous = true\nevery = \"1s\"\nshare = \"50%\"\n").await else {
        return;
    };
    let mut run = bank.desk.start();
    bank.desk.wait(&mut run);
    proven(&bank, &mut run).await;
    // Whoever reads this table waits; at some time everything else has been compared.
    let holds = bank.old.connect().await;
    let half_way = wait_for("a comparison that is half done", async || {
        for table in ["accounts", "movements", "notes"] {
            holds.batch_execute(&format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")).await.unwrap();
            for _ in 0..200 {
                let status = verifying(&bank);
                let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation IS NOT NULL \
                             AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
                let waits = bank.old.value(waits).await.as_deref() != Some("0");
                if status["doing"] == "passing" && waits {
                    let done = status["parts_done"].as_u64().unwrap_or(0);
                    if done > 0 {
                        return Some(done);
                    }
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            holds.batch_execute("ROLLBACK").await.unwrap();
        }
        None
    })
    .await;
    run.kill();
    holds.batch_execute("ROLLBACK").await.unwrap();
    // What was damaged in a part that was compared already is found all the same: the watch stands while nobody runs.
    bank.new.execute("UPDATE accounts SET balance = balance + 1 WHERE id = 3").await;
    let mut run = bank.desk.start();
    bank.desk
        .until("the damage to be found", &mut run, async || {
            verifying(&bank)["samples"][0]["table"] == "public.accounts"
        })
        .await;
    println!("killed with {half_way} parts done");
    bank.desk.expect(0, &["verify"], &["--repair"]);
    proven(&bank, &mut run).await;
    assert_same_tables(&bank.old, &bank.new, &["accounts", "movements", "notes"]).await;
    bank.desk.stop(run);
}
