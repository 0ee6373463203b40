//! The switch between two SQLite files and the way back, under clerks who never stop: refused with its reason, made, killed after
//! every line of the journal.

use crate::{
    desk::SPEC,
    ledger::{Clerks, Ledger},
    switch::{LINES, guard, journal_says, made},
};
use crossfade_testkit::{compare::sqlite_reader, crossfade::Running, wait::wait_for_blocking};
use rand::{Rng, SeedableRng, rngs::StdRng};
use rusqlite::{Connection, TransactionBehavior};
use serde_json::Value;
use std::{fs, path::Path, sync::atomic::Ordering::Relaxed, time::Duration};

pub(crate) const OLD: usize = 0;
pub(crate) const NEW: usize = 1;

/// A run that has caught up, a comparison that found nothing, and clerks at work.
pub(crate) fn ready(ledger: &Ledger, asking: i64, plain: i64) -> (Running, Clerks) {
    let mut run = ledger.desk.start();
    ledger.desk.wait(&mut run);
    ledger.flagged();
    let clerks = Clerks::start(ledger, asking, plain);
    clerks.wait_for_more(100);
    ledger.desk.verify();
    (run, clerks)
}

pub(crate) fn switch(ledger: &Ledger) -> Value {
    let answer = made(&ledger.desk, "cutover");
    assert_eq!((&answer["switched"], &answer["routed"]), (&true.into(), &true.into()), "{answer}");
    answer
}

pub(crate) fn fail_back(ledger: &Ledger) -> Value {
    let answer = made(&ledger.desk, "failback");
    assert_eq!((&answer["switched"], &answer["authority"]), (&true.into(), &"old".into()), "{answer}");
    answer
}

/// The stream back, caught up.
pub(crate) fn follow_back(ledger: &Ledger, clerks: &Clerks) -> Running {
    clerks.wait_for_more_on(NEW, 50);
    let mut run = ledger.desk.start();
    ledger.desk.wait_with(&mut run, &["--reverse"]);
    run
}

/// One side refuses everybody, by whatever statement changes a row.
fn assert_fenced(ledger: &Ledger, side: usize) {
    let path = [&ledger.old, &ledger.new][side];
    let file = Connection::open(path).unwrap();
    file.busy_timeout(Duration::from_secs(60)).unwrap();
    for sql in [
        "INSERT INTO slips VALUES ('late')",
        "INSERT OR IGNORE INTO slips VALUES ('late')",
        "INSERT OR REPLACE INTO accounts SELECT * FROM accounts",
        "UPDATE OR IGNORE accounts SET balance = 0",
        "DELETE FROM entries",
    ] {
        let refused = file.execute(sql, []).unwrap_err().to_string();
        assert!(refused.starts_with("crossfade: main."), "{sql}: {refused}");
    }
}

/// Both sides are told the same.
pub(crate) fn assert_authority(ledger: &Ledger, side: &str) {
    let (old, new) = ledger.authority();
    assert!(old.starts_with(side) && old == new, "the old side's row says {old}, the new side's {new}");
}

/// Clerks stop; the side with the authority has everything, and so has the other one once the stream has caught up.
pub(crate) fn assert_all_there(ledger: &Ledger, clerks: Clerks, side: usize, switches: usize) {
    println!("the longest time between two commits of the clerks: {:?}", clerks.counts().longest_gap());
    let known = clerks.stop();
    ledger.assert_has_all(side, &known, switches);
    let mut run = ledger.desk.start();
    ledger.desk.wait_with(&mut run, if side == NEW { &["--reverse"] } else { &[] });
    ledger.assert_same();
    ledger.assert_has_all(1 - side, &known, switches);
    match side {
        NEW => ledger.assert_same_keys(OLD, "_crossfade_reverse_keys"),
        _ => ledger.assert_same_keys(NEW, "uuid_migration_mapping"),
    }
    if side == OLD {
        ledger.desk.verify();
    }
    ledger.desk.stop(run);
}

#[test]
fn a_cutover_and_a_failback_take_live_writers_from_file_to_file_and_lose_nothing() {
    let ledger = Ledger::open("route = 'echo $CROSSFADE_SIDE >> routed'");
    let mut run = ledger.desk.start();
    ledger.desk.wait(&mut run);
    ledger.flagged();
    let clerks = Clerks::start(&ledger, 3, 2);
    clerks.wait_for_more(100);
    let refused = ledger.desk.expect(3, &["cutover"], &[]);
    assert!(refused.stdout.contains("clean-pass"), "{refused}");
    ledger.desk.verify();
    ledger.desk.expect(0, &["cutover"], &["--dry-run"]);
    assert_authority(&ledger, "old 0");

    println!("cutover: {}", switch(&ledger)["pause"]);
    assert_eq!(run.wait().code, Some(0), "the run ends once the new side has the authority");
    clerks.wait_for_more_on(NEW, 100);
    assert_authority(&ledger, "new");
    assert_fenced(&ledger, OLD);
    let fenced = clerks.counts().fenced.load(Relaxed);
    assert_eq!(fenced, 2, "whoever asks first is never refused, who does not once");
    ledger.desk.expect(3, &["rollback"], &["--wipe", "--yes"]);
    let run = follow_back(&ledger, &clerks);
    assert_fenced(&ledger, OLD);
    println!("failback: {}", fail_back(&ledger)["pause"]);
    assert_eq!(run.wait().code, Some(0), "the stream back ends once the old side has the authority");
    clerks.wait_for_more_on(OLD, 100);
    assert_authority(&ledger, "old");
    assert_fenced(&ledger, NEW);
    assert_eq!(clerks.counts().fenced.load(Relaxed), 4);
    let routed = fs::read_to_string(ledger.desk.path("routed")).unwrap();
    assert_eq!(routed, "new\nold\n");

    // The migration goes on, and can switch again.
    let mut run = ledger.desk.start();
    ledger.desk.wait(&mut run);
    ledger.desk.verify();
    switch(&ledger);
    assert_eq!(run.wait().code, Some(0));
    clerks.wait_for_more_on(NEW, 100);
    assert_all_there(&ledger, clerks, NEW, 3);
}

#[test]
fn where_nobody_runs_it_cutover_and_failback_run_it_themselves_and_in_a_file_without_a_wal_too() {
    let ledger = Ledger::open_in("DELETE", "");
    let (run, clerks) = ready(&ledger, 2, 1);
    ledger.desk.stop(run);
    clerks.wait_for_more(50);
    switch(&ledger);
    clerks.wait_for_more_on(NEW, 50);
    fail_back(&ledger);
    clerks.wait_for_more_on(OLD, 50);
    assert_all_there(&ledger, clerks, OLD, 2);
}

#[test]
fn killed_right_after_any_line_of_the_journal_a_cutover_ends_on_one_side_and_goes_on() {
    for line in LINES {
        let ledger = Ledger::open("");
        let (run, clerks) = ready(&ledger, 2, 1);
        let cutover = ledger.desk.crossfade.spawn(&["cutover", SPEC, "--json"]);
        wait_for_blocking(&format!("the journal to say {line}"), || {
            (journal_says(&ledger.desk, line) > 0).then_some(())
        });
        run.kill();
        cutover.wait();
        // The lock has gone with the process. Where both sides are closed, for the second commit did not come, the next
        // command opens the one that the row names.
        let (old, new) = ledger.authority();
        println!("killed after {line}: the old side's row says {old}, the new side's {new}");
        if old.starts_with("old") || new.starts_with("new") {
            clerks.wait_for_more(50);
        }
        let status = ledger.desk.crossfade.json(&["status", SPEC])["switch"].clone();
        assert_eq!(status["authority"].as_str(), old.split(' ').next(), "{status}");
        switch(&ledger);
        clerks.wait_for_more_on(NEW, 50);
        assert_fenced(&ledger, OLD);
        assert_all_there(&ledger, clerks, NEW, 1);
    }
}

#[test]
fn killed_right_after_any_line_of_the_journal_a_failback_ends_on_one_side_and_goes_on() {
    for line in LINES {
        let ledger = Ledger::open("");
        let (run, clerks) = ready(&ledger, 2, 1);
        switch(&ledger);
        assert_eq!(run.wait().code, Some(0));
        let run = follow_back(&ledger, &clerks);
        let before = journal_says(&ledger.desk, line);
        let failback = ledger.desk.crossfade.spawn(&["failback", SPEC, "--json"]);
        wait_for_blocking(&format!("the journal to say {line}"), || {
            (journal_says(&ledger.desk, line) > before).then_some(())
        });
        run.kill();
        failback.wait();
        let (old, new) = ledger.authority();
        println!("killed after {line}: the old side's row says {old}, the new side's {new}");
        if old.starts_with("old") || new.starts_with("new") {
            clerks.wait_for_more(50);
        }
        fail_back(&ledger);
        clerks.wait_for_more_on(OLD, 50);
        assert_fenced(&ledger, NEW);
        assert_all_there(&ledger, clerks, OLD, 2);
    }
}

#[test]
fn a_writer_that_does_not_end_keeps_the_switch_from_being_made_and_nobody_is_held_up() {
    let ledger = Ledger::open("deadline = \"2s\"");
    let (_run, clerks) = ready(&ledger, 2, 1);
    let mut file = Connection::open(&ledger.old).unwrap();
    file.busy_timeout(Duration::from_secs(60)).unwrap();
    let busy = file.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    let refused = ledger.desk.command(&["cutover"], &["--json"]);
    assert_eq!(refused.code, Some(3), "{refused}");
    let answer: Value = serde_json::from_str(&refused.stdout).unwrap();
    assert!(guard(&answer, "oldest-writer")["seen"].as_str().unwrap().contains("old.db"), "{answer}");
    busy.rollback().unwrap();
    clerks.wait_for_more_on(OLD, 50);
    assert_authority(&ledger, "old 0");
    switch(&ledger);
    clerks.wait_for_more_on(NEW, 50);
    assert_all_there(&ledger, clerks, NEW, 1);
}

#[test]
fn a_wipe_before_the_switch_leaves_nothing_of_it_in_either_file() {
    let ledger = Ledger::open("");
    let (run, clerks) = ready(&ledger, 1, 0);
    clerks.stop();
    ledger.desk.stop(run);
    ledger.desk.expect(0, &["rollback"], &["--wipe", "--yes"]);
    for file in [&ledger.old, &ledger.new] {
        let sql = "SELECT count(*) FROM sqlite_schema WHERE name LIKE '%crossfade%'";
        let left: i64 = sqlite_reader(file).query_row(sql, [], |row| row.get(0)).unwrap();
        assert_eq!(left, 0, "something of ours is left in {}", file.display());
    }
}

#[test]
fn a_clean_up_takes_away_what_was_kept_for_the_way_back_and_leaves_the_fence() {
    let ledger = Ledger::open("keep = \"2s\"");
    let (run, clerks) = ready(&ledger, 1, 0);
    switch(&ledger);
    assert_eq!(run.wait().code, Some(0));
    let mut run = follow_back(&ledger, &clerks);
    let known = clerks.stop();
    ledger.desk.wait_with(&mut run, &["--reverse"]);
    ledger.assert_same();
    ledger.desk.stop(run);
    ledger.desk.expect(0, &["cleanup"], &["--dry-run"]);
    ledger.desk.expect(3, &["cleanup"], &["--confirm", "another"]);
    let name = ledger.desk.name.clone();
    wait_for_blocking("the clean-up to be allowed", || {
        let done = ledger.desk.command(&["cleanup"], &["--confirm", &name, "--drop-mapping"]);
        (done.code == Some(0)).then_some(())
    });
    ledger.assert_same();
    ledger.assert_has_all(NEW, &known, 1);
    assert_fenced(&ledger, OLD);
    let exported = fs::read_to_string(ledger.desk.work().join("cleanup/mapping.csv")).unwrap();
    assert!(exported.lines().count() > 300, "the mapping is exported before it goes");
    let sql = "SELECT name FROM sqlite_schema WHERE type <> 'index' AND name LIKE '%crossfade%' AND name NOT LIKE '_crossfade_fence %' \
               OR name = 'uuid_migration_mapping' ORDER BY name";
    let left = |file: &Path| -> Vec<String> {
        let file = sqlite_reader(file);
        let mut statement = file.prepare(sql).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    };
    let asked = ["_crossfade_authority", "_crossfade_pass", "crossfade_side"];
    assert_eq!(left(&ledger.new), asked);
    let pairs = ["_crossfade_reverse_keys", "_crossfade_reverse_mapping"];
    assert_eq!(left(&ledger.old), [&asked[..2], &pairs[..], &asked[2..]].concat());
}

/// In the long round only: `CROSSFADE_SWITCHES` there and back, each killed at a moment of its own and then completed.
#[test]
fn killed_at_random_moments_many_switches_there_and_back_lose_nothing() {
    if !crate::is_soak() {
        return;
    }
    let rounds = std::env::var("CROSSFADE_SWITCHES").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut dice = StdRng::seed_from_u64(seed);
    let ledger = Ledger::open("");
    let (mut run, clerks) = ready(&ledger, 3, 1);
    for _ in 0..rounds {
        killed_somewhere(&ledger, run, "cutover", &mut dice);
        switch(&ledger);
        run = follow_back(&ledger, &clerks);
        killed_somewhere(&ledger, run, "failback", &mut dice);
        fail_back(&ledger);
        clerks.wait_for_more_on(OLD, 20);
        run = ledger.desk.start();
        ledger.desk.wait(&mut run);
        ledger.desk.verify();
    }
    ledger.desk.stop(run);
    assert_all_there(&ledger, clerks, OLD, 2 * rounds);
}

fn killed_somewhere(ledger: &Ledger, run: Running, command: &str, dice: &mut StdRng) {
    let switching = ledger.desk.crossfade.spawn(&[command, SPEC, "--json"]);
    std::thread::sleep(Duration::from_millis(dice.random_range(0..250)));
    run.kill();
    switching.wait();
    let (old, new) = ledger.authority();
    println!("{command} killed: the old side's row says {old}, the new side's {new}");
}
