//! The cutover to another server, under tellers who never stop: refused with its reason, made, interrupted anywhere.

use crate::{
    desk::{Desk, SPEC, assert_same_tables},
    tellers::{Bank, Tellers},
};
use crossfade_testkit::{
    crossfade::{Finished, Running},
    postgres::Database,
    wait::{wait_for, wait_for_blocking, wait_until},
};
use serde_json::Value;
use std::{fs, sync::atomic::Ordering::Relaxed};
use tokio_postgres::Client;

/// A run that has caught up, a comparison that found nothing, and tellers at work.
pub(crate) async fn ready(bank: &Bank, asking: u64, plain: u64) -> (Running, Tellers) {
    let mut run = bank.desk.start();
    bank.desk.wait(&mut run);
    bank.flagged().await;
    let tellers = Tellers::start(bank, asking, plain);
    tellers.wait_for_more(100);
    bank.desk.verify();
    (run, tellers)
}

pub(crate) fn guard<'a>(answer: &'a Value, name: &str) -> &'a Value {
    let guards = answer["guards"].as_array().unwrap();
    guards.iter().find(|guard| guard["guard"] == name).unwrap_or_else(|| panic!("no guard {name} in {answer}"))
}

pub(crate) fn switch_status(bank: &Bank) -> Value {
    bank.desk.crossfade.json(&["status", SPEC])["switch"].clone()
}

/// The old side refuses everybody, by whatever way.
pub(crate) async fn assert_fenced(old: &Database) {
    for sql in [
        "INSERT INTO notes VALUES ('late')",
        "UPDATE accounts SET balance = 0",
        "DELETE FROM accounts WHERE id = 1",
        "TRUNCATE notes",
        "COPY notes FROM PROGRAM 'echo late'",
        "SET session_replication_role = replica; INSERT INTO notes VALUES ('late')",
    ] {
        let refused = old.connect().await.batch_execute(sql).await.unwrap_err();
        assert_eq!(refused.code().map(|code| code.code()), Some("25006"), "{sql}: {refused:?}");
    }
}

/// A switch that must be made in the end: where the machine is too slow for the deadline, or for a guard that looks at the
/// clock, it is asked again.
pub(crate) fn made(desk: &Desk, command: &str) -> Value {
    wait_for_blocking(&format!("the {command} to be made"), || {
        let done = desk.command(&[command], &["--json"]);
        let answer: Value = serde_json::from_str(&done.stdout).unwrap_or_default();
        let no = answer["guards"].as_array().into_iter().flatten().filter(|guard| guard["holds"] == false);
        let is_slow = |name: &Value| ["caught-up", "pause", "oldest-writer", "gates"].iter().any(|slow| name == slow);
        match done.code {
            Some(0) => Some(answer),
            Some(1) if done.stderr.contains("was taken back") => None,
            Some(3) if !answer.is_null() && no.into_iter().all(|guard| is_slow(&guard["guard"])) => None,
            _ => panic!("{done}"),
        }
    })
}

/// A cutover that must end well.
pub(crate) fn switch(bank: &Bank) -> Value {
    let answer = made(&bank.desk, "cutover");
    assert_eq!((&answer["switched"], &answer["routed"]), (&true.into(), &true.into()), "{answer}");
    answer
}

/// The tellers go on there, and everything is one history.
async fn assert_switched(bank: &Bank, tellers: Tellers, epoch: u64) {
    tellers.wait_for_more_on_the_new_side(200);
    let word = format!("new {epoch}");
    assert_eq!(bank.authority().await, (word.clone(), word));
    assert_fenced(&bank.old).await;
    println!("the longest time between two commits of the tellers: {:?}", tellers.counts().longest_gap());
    let told = tellers.stop();
    bank.assert_one_history(&told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cutover_moves_live_writers_to_the_other_server_and_loses_nothing() {
    let Some(bank) = Bank::open("route = 'echo $CROSSFADE_MIGRATION $CROSSFADE_SIDE $CROSSFADE_EPOCH >> routed'").await
    else {
        return;
    };
    let mut run = bank.desk.start();
    bank.desk.wait(&mut run);
    bank.flagged().await;
    let tellers = Tellers::start(&bank, 4, 2);
    tellers.wait_for_more(100);
    // Without a comparison it is refused, and says what would allow it.
    let refused = bank.desk.expect(3, &["cutover"], &[]);
    assert!(refused.stdout.contains("clean-pass") && refused.stdout.contains("crossfade verify"), "{refused}");
    let status = switch_status(&bank);
    assert_eq!((&status["authority"], guard(&status, "clean-pass")["holds"].as_bool()), (&"old".into(), Some(false)));
    bank.desk.verify();
    let dry = bank.desk.expect(0, &["cutover"], &["--dry-run"]);
    assert!(!dry.stdout.contains(" NO "), "{dry}");
    assert_eq!(bank.authority().await, ("old 0".to_owned(), "old 0".to_owned()));

    let answer = switch(&bank);
    println!("as the switch itself has measured it: {}", answer["pause"]);
    let ended = run.wait();
    assert_eq!(ended.code, Some(0), "the run ends once the new side has the authority\n{ended}");
    let fenced = tellers.counts().fenced.load(Relaxed);
    let epoch = answer["epoch"].as_u64().unwrap();
    assert_switched(&bank, tellers, epoch).await;
    assert!(fenced <= 2, "whoever asks first is never refused, who does not once: {fenced}");
    let routed = fs::read_to_string(bank.desk.path("routed")).unwrap();
    assert_eq!(routed, format!("{} new {epoch}\n", bank.desk.name));
    // Asked again, everything is as it is; and nothing goes back over it.
    assert_eq!(switch(&bank)["epoch"], epoch);
    let status = switch_status(&bank);
    assert_eq!((&status["authority"], &status["epoch"]), (&"new".into(), &epoch.into()), "{status}");
    bank.desk.expect(3, &["rollback"], &["--wipe", "--yes"]);
    // And the old side follows the new one, behind its fence.
    let mut run = bank.desk.start();
    bank.desk.wait_with(&mut run, &["--reverse"]);
    assert_same_tables(&bank.new, &bank.old, &["accounts", "movements", "notes"]).await;
    assert_fenced(&bank.old).await;
    bank.desk.stop(run);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_runs_it_the_cutover_runs_it_itself() {
    let Some(bank) = Bank::open("").await else { return };
    let (run, tellers) = ready(&bank, 3, 0).await;
    bank.desk.stop(run);
    tellers.wait_for_more(100);
    let epoch = switch(&bank)["epoch"].as_u64().unwrap();
    assert_switched(&bank, tellers, epoch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_is_refused_until_two_people_agree_and_nothing_voids_the_proof() {
    let Some(bank) = Bank::open("approvals = 2\nlock_timeout = \"1s\"").await else { return };
    let (_run, tellers) = ready(&bank, 2, 0).await;
    let refused = bank.desk.expect(3, &["cutover"], &[]);
    assert!(refused.stdout.contains("2 people"), "{refused}");
    for who in ["ann", "ann", "bob"] {
        bank.desk.expect(0, &["approve"], &["--reason", "change 4711", "--by", who]);
        let said = if who == "bob" { 0 } else { 3 };
        bank.desk.expect(said, &["cutover"], &["--dry-run"]);
    }
    // A shape that changes voids the proof.
    bank.old.execute("ALTER TABLE notes ADD COLUMN more text; INSERT INTO notes VALUES ('new', 'shape')").await;
    wait_for("the proof to be void", async || switch_status(&bank)["verified_at"].is_null().then_some(())).await;
    bank.desk.expect(3, &["cutover"], &[]);
    bank.desk.verify();
    // So does a transaction that has written for long and does not end.
    let slow = bank.old.connect().await;
    slow.batch_execute("BEGIN; INSERT INTO notes VALUES ('not yet')").await.unwrap();
    let answer = wait_for("the guard to see it", async || {
        let said = bank.desk.command(&["cutover"], &["--dry-run", "--json"]);
        let answer: Value = serde_json::from_str(&said.stdout).unwrap();
        (guard(&answer, "oldest-writer")["holds"] == false).then_some(answer)
    })
    .await;
    assert!(guard(&answer, "oldest-writer")["seen"].as_str().unwrap().contains("notes"), "{answer}");
    slow.batch_execute("COMMIT").await.unwrap();
    let epoch = switch(&bank)["epoch"].as_u64().unwrap();
    assert_switched(&bank, tellers, epoch).await;
}

/// A cutover that stands in the middle of its drain: writers are held up, and the new side cannot take what they wrote.
struct Stuck {
    cutover: Running,
    /// Holds the new side's accounts.
    holds: Client,
    /// The server process that holds the freeze.
    freezer: String,
}

pub(crate) const FREEZER: &str = "SELECT pid FROM pg_stat_activity WHERE application_name = 'crossfade freeze' AND state = 'idle in transaction' \
     AND datname = current_database()";

async fn stuck(bank: &Bank) -> Stuck {
    // A transaction at the gate keeps the freeze from being granted, and no guard from passing: it has written nothing.
    let at_the_gate = bank.old.connect().await;
    at_the_gate.batch_execute(&format!("BEGIN; SELECT crossfade.side('{}')", bank.desk.name)).await.unwrap();
    let cutover = bank.desk.crossfade.spawn(&["cutover", SPEC, "--json"]);
    wait_until("the freeze to be tried", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'crossfade freeze' AND datname = current_database()";
        bank.old.value(sql).await.as_deref() == Some("1")
    })
    .await;
    let holds = bank.new.connect().await;
    holds.batch_execute("BEGIN; LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE").await.unwrap();
    at_the_gate.batch_execute("UPDATE accounts SET balance = balance WHERE id = 1; COMMIT").await.unwrap();
    let freezer = wait_for("the freeze to hold", async || bank.old.value(FREEZER).await).await;
    Stuck { cutover, holds, freezer }
}

impl Stuck {
    async fn let_go(&self) {
        self.holds.batch_execute("ROLLBACK").await.unwrap();
    }

    fn taken_back(self) -> Finished {
        let ended = self.cutover.wait();
        assert_eq!(ended.code, Some(1), "{ended}");
        assert!(ended.stderr.contains("taken back"), "{ended}");
        ended
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_does_not_end_lets_the_writers_go_on_by_the_deadline_and_the_next_one_switches() {
    let Some(bank) = Bank::open("deadline = \"3s\"").await else { return };
    let (_run, tellers) = ready(&bank, 3, 1).await;
    let stuck = stuck(&bank).await;
    let status = switch_status(&bank);
    assert!(status["next"].as_str().unwrap().contains("under way"), "{status}");
    // Nobody does anything: the deadline ends it.
    tellers.wait_for_more(100);
    stuck.let_go().await;
    stuck.taken_back();
    assert_eq!(bank.authority().await, ("old 1".to_owned(), "old 0".to_owned()));
    let slots = format!(
        "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'crossfade_{}_reverse'",
        bank.desk.name.replace('-', "_")
    );
    assert_eq!(bank.new.value(&slots).await.as_deref(), Some("0"), "the slot for the way back holds WAL for nobody");
    let epoch = switch(&bank)["epoch"].as_u64().unwrap();
    assert!(epoch > 1, "the one that was taken back counts");
    assert_switched(&bank, tellers, epoch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_freeze_whose_connection_is_lost_is_taken_back() {
    let Some(bank) = Bank::open("deadline = \"20s\"").await else { return };
    let (_run, tellers) = ready(&bank, 3, 1).await;
    let stuck = stuck(&bank).await;
    bank.old.execute(&format!("SELECT pg_terminate_backend({})", stuck.freezer)).await;
    tellers.wait_for_more(100);
    stuck.let_go().await;
    stuck.taken_back();
    let epoch = switch(&bank)["epoch"].as_u64().unwrap();
    assert!(epoch > 1, "the one that was taken back counts");
    assert_switched(&bank, tellers, epoch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_stands_still_holds_nobody_up_beyond_the_deadline_and_its_late_word_does_nothing() {
    let Some(bank) = Bank::open("deadline = \"3s\"").await else { return };
    let (run, tellers) = ready(&bank, 3, 1).await;
    let stuck = stuck(&bank).await;
    run.freeze();
    // Nobody is left to end it but the server itself.
    tellers.wait_for_more(100);
    stuck.let_go().await;
    run.thaw();
    stuck.taken_back();
    let epoch = switch(&bank)["epoch"].as_u64().unwrap();
    assert!(epoch > 1, "the one that was taken back counts");
    assert_switched(&bank, tellers, epoch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_writers_wait_it_takes_back_and_says_so() {
    let Some(bank) = Bank::open("deadline = \"20s\"").await else { return };
    let (run, tellers) = ready(&bank, 3, 1).await;
    let stuck = stuck(&bank).await;
    run.kill();
    tellers.wait_for_more(100);
    stuck.let_go().await;
    stuck.cutover.wait();
    let status = switch_status(&bank);
    assert_eq!(status["authority"], "old", "{status}");
    assert!(status["next"].as_str().unwrap().contains("crossfade cutover"), "{status}");
    let epoch = switch(&bank)["epoch"].as_u64().unwrap();
    assert!(epoch > 1, "the one that was taken back counts");
    assert_switched(&bank, tellers, epoch).await;
}

/// How often a word stands in the journal by now, as bytes.
pub(crate) fn journal_says(desk: &Desk, word: &str) -> usize {
    let Ok(folder) = fs::read_dir(desk.work().join("journal")) else { return 0 };
    let files = folder.filter_map(Result::ok).map(|file| file.path());
    let logs = files.filter(|path| path.extension().is_some_and(|end| end == "log"));
    logs.map(|path| {
        let content = fs::read(path).unwrap_or_default();
        content.windows(word.len()).filter(|window| *window == word.as_bytes()).count()
    })
    .sum()
}

/// The lines that a switch writes into the journal, in order, each by a word of its own.
pub(crate) const LINES: [&str; 5] =
    ["switch-intended", "\"draining\"", "\"switching\"", "authority-moved", "routing-flipped"];

#[tokio::test(flavor = "multi_thread")]
async fn killed_right_after_any_line_of_the_journal_it_ends_on_one_side_and_goes_on() {
    for line in LINES {
        let Some(bank) = Bank::open("").await else { return };
        let (run, tellers) = ready(&bank, 3, 1).await;
        let cutover = bank.desk.crossfade.spawn(&["cutover", SPEC, "--json"]);
        wait_for_blocking(&format!("the journal to say {line}"), || (journal_says(&bank.desk, line) > 0).then_some(()));
        run.kill();
        cutover.wait();
        // On whichever side it is: the tellers go on, and nobody has to do anything for it.
        tellers.wait_for_more(50);
        let (old, new) = bank.authority().await;
        println!("killed after {line}: the old side's row says {old}, the new side's {new}");
        let status = switch_status(&bank);
        assert_eq!(status["authority"].as_str(), old.split(' ').next(), "{status}");
        let answer = switch(&bank);
        assert_switched(&bank, tellers, answer["epoch"].as_u64().unwrap()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wipe_before_the_switch_leaves_nothing_of_it_on_either_server() {
    let Some(bank) = Bank::open("").await else { return };
    let (run, tellers) = ready(&bank, 2, 0).await;
    bank.desk.expect(0, &["cutover"], &["--dry-run"]);
    tellers.stop();
    bank.desk.stop(run);
    bank.desk.expect(0, &["rollback"], &["--wipe", "--yes"]);
    for side in [&bank.old, &bank.new] {
        let left = side.value("SELECT count(*) FROM pg_namespace WHERE nspname = 'crossfade'").await;
        assert_eq!(left.as_deref(), Some("0"), "the schema crossfade is still there");
    }
}
