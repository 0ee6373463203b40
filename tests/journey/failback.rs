//! Back to the old side, under tellers who never stop: refused with its reason, made, interrupted anywhere; and what the migration
//! is then.

use crate::{
    desk::{SPEC, assert_same_tables, postgres, rows, two_databases},
    switch::{LINES, assert_fenced, guard, journal_says, made, ready, switch, switch_status},
    tellers::{Bank, Tellers, Told},
};
use crossfade_testkit::{
    compare::assert_same,
    crossfade::Running,
    postgres::{Postgres, Version},
    wait::{GENEROUS, wait_for, wait_for_blocking},
};
use serde_json::Value;
use std::{fs, sync::atomic::Ordering::Relaxed, time::Instant};
use tokio_postgres::Client;

pub(crate) const TABLES: [&str; 3] = ["accounts", "movements", "notes"];

/// A bank that has switched, with the stream back at work, and both sides compared over it.
pub(crate) async fn switched(bank: &Bank, asking: u64, plain: u64) -> (Running, Tellers) {
    let (run, tellers) = ready(bank, asking, plain).await;
    switch(bank);
    assert_eq!(run.wait().code, Some(0));
    (follow_back(bank, &tellers), tellers)
}

/// The stream back, caught up, and a comparison over it that finds nothing.
pub(crate) fn follow_back(bank: &Bank, tellers: &Tellers) -> Running {
    tellers.wait_for_more_on_the_new_side(50);
    let mut run = bank.desk.start();
    bank.desk.wait_with(&mut run, &["--reverse"]);
    let said = bank.desk.expect(0, &["verify"], &["--reverse"]);
    assert!(said.stdout.contains("0 differences"), "{said}");
    run
}

/// A failback that must end well.
pub(crate) fn fail_back(bank: &Bank) -> Value {
    let answer = made(&bank.desk, "failback");
    let said = (&answer["switched"], &answer["authority"], &answer["routed"]);
    assert_eq!(said, (&true.into(), &"old".into(), &true.into()), "{answer}");
    answer
}

/// The tellers write the old side again, nobody can write the new one, and no write was lost.
pub(crate) async fn assert_back(bank: &Bank, tellers: Tellers) -> Told {
    tellers.wait_for_more_on_the_old_side(100);
    let (old, new) = bank.authority().await;
    assert!(old.starts_with("old ") && old == new, "the old side's row says {old}, the new side's {new}");
    assert_fenced(&bank.new).await;
    println!("the longest time between two commits of the tellers: {:?}", tellers.counts().longest_gap());
    let told = tellers.stop();
    bank.assert_has_all(&bank.old, &told, 2).await;
    told
}

/// The migration goes on: the new side follows the old one again, behind its fence.
pub(crate) async fn assert_followed(bank: &Bank) {
    let mut run = bank.desk.start();
    bank.desk.wait(&mut run);
    assert_same_tables(&bank.old, &bank.new, &TABLES).await;
    bank.desk.verify();
    assert_fenced(&bank.new).await;
    bank.desk.stop(run);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failback_takes_live_writers_back_to_the_old_server_and_loses_nothing() {
    let Some(bank) = Bank::open("route = 'echo $CROSSFADE_SIDE $CROSSFADE_EPOCH >> routed'").await else { return };
    let refused = bank.desk.command(&["failback"], &[]);
    assert_ne!(refused.code, Some(0), "there is nothing to take back\n{refused}");
    let (run, tellers) = ready(&bank, 4, 2).await;
    switch(&bank);
    assert_eq!(run.wait().code, Some(0));
    let status = switch_status(&bank);
    assert!(status["next"].as_str().unwrap().contains("crossfade failback"), "{status}");
    tellers.wait_for_more_on_the_new_side(50);
    let mut run = bank.desk.start();
    bank.desk.wait_with(&mut run, &["--reverse"]);
    let refused = bank.desk.expect(3, &["failback"], &[]);
    assert!(refused.stdout.contains("clean-pass") && refused.stdout.contains("verify --reverse"), "{refused}");
    bank.desk.expect(0, &["verify"], &["--reverse"]);
    let dry = bank.desk.expect(0, &["failback"], &["--dry-run"]);
    assert!(!dry.stdout.contains(" NO "), "{dry}");
    let (old, new) = bank.authority().await;
    assert!(new.starts_with("new ") && old == new, "a dry run changes nothing: {old}, {new}");

    let fenced = tellers.counts().fenced.load(Relaxed);
    let answer = fail_back(&bank);
    println!("as the failback itself has measured it: {}", answer["pause"]);
    assert_eq!(run.wait().code, Some(0), "the stream back ends once the old side has the authority");
    tellers.wait_for_more_on_the_old_side(50);
    let fenced = tellers.counts().fenced.load(Relaxed) - fenced;
    assert!(fenced <= 2, "whoever asks first is never refused, who does not once: {fenced}");
    assert_back(&bank, tellers).await;
    let routed = fs::read_to_string(bank.desk.path("routed")).unwrap();
    let sides: Vec<&str> = routed.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(sides, ["new", "old"], "each side is told once\n{routed}");
    // Asked again, everything is as it is.
    assert_eq!(fail_back(&bank)["epoch"], answer["epoch"]);
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'crossfade_%_reverse' AND database = current_database()";
    assert_eq!(bank.new.value(slots).await.as_deref(), Some("0"), "a slot that nobody reads holds WAL");
    assert_followed(&bank).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_runs_the_way_back_the_failback_runs_it_itself() {
    let Some(bank) = Bank::open("").await else { return };
    let (run, tellers) = switched(&bank, 3, 0).await;
    bank.desk.stop(run);
    tellers.wait_for_more(100);
    fail_back(&bank);
    assert_back(&bank, tellers).await;
    assert_followed(&bank).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn between_newer_servers_the_deadline_ends_a_freeze_and_the_tellers_go_there_and_back() {
    let (Some(source), Some(target)) = (Postgres::shared(Version::V17), Postgres::shared_target(Version::V18)) else {
        return;
    };
    let (old, new) = (source.create_database("source").await, target.create_database("target").await);
    let bank = Bank::between(old, new, "deadline = \"3s\"").await;
    let (run, tellers) = switched(&bank, 3, 1).await;
    // The process stands still while writers wait: the server ends that by itself.
    let (failback, holds) = stuck(&bank).await;
    run.freeze();
    tellers.wait_for_more_on_the_new_side(50);
    holds.batch_execute("ROLLBACK").await.unwrap();
    run.thaw();
    assert_eq!(failback.wait().code, Some(1));
    fail_back(&bank);
    assert_eq!(run.wait().code, Some(0));
    assert_back(&bank, tellers).await;
    assert_followed(&bank).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn there_and_back_and_there_again_the_tellers_go_on_and_every_write_is_there() {
    let Some(bank) = Bank::open("").await else { return };
    let (mut run, tellers) = switched(&bank, 3, 1).await;
    for round in 1..=2 {
        fail_back(&bank);
        assert_eq!(run.wait().code, Some(0));
        tellers.wait_for_more_on_the_old_side(50);
        run = bank.desk.start();
        bank.desk.wait(&mut run);
        bank.desk.verify();
        assert!(switch(&bank)["epoch"].as_u64().unwrap() > 2 * round);
        assert_eq!(run.wait().code, Some(0));
        run = follow_back(&bank, &tellers);
    }
    tellers.wait_for_more_on_the_new_side(50);
    let told = tellers.stop();
    bank.assert_has_all(&bank.new, &told, 5).await;
    assert_fenced(&bank.old).await;
    bank.desk.wait_with(&mut run, &["--reverse"]);
    bank.assert_has_all(&bank.old, &told, 5).await;
    assert_same_tables(&bank.new, &bank.old, &TABLES).await;
    bank.desk.stop(run);
}

/// A failback in the middle of its drain: writers are held up, and the old side cannot take what they wrote, for somebody holds
/// its accounts.
async fn stuck(bank: &Bank) -> (Running, Client) {
    // At the gate somebody waits who has written nothing, so that no guard sees him.
    let at_the_gate = bank.new.connect().await;
    at_the_gate.batch_execute(&format!("BEGIN; SELECT crossfade.side('{}')", bank.desk.name)).await.unwrap();
    let failback = bank.desk.crossfade.spawn(&["failback", SPEC]);
    let freezing =
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'crossfade freeze' AND datname = current_database()";
    wait_for("the freeze to be tried", async || bank.new.value(freezing).await).await;
    let holds = bank.old.connect().await;
    holds.batch_execute("BEGIN; LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE").await.unwrap();
    at_the_gate.batch_execute("UPDATE accounts SET balance = balance WHERE id = 1; COMMIT").await.unwrap();
    let frozen = format!("{freezing} AND state = 'idle in transaction'");
    wait_for("the freeze to hold", async || bank.new.value(&frozen).await).await;
    (failback, holds)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_does_not_end_lets_the_writers_go_on_where_they_were_and_the_next_failback_takes_them_back() {
    let Some(bank) = Bank::open("deadline = \"3s\"").await else { return };
    let (run, tellers) = switched(&bank, 3, 1).await;
    let (failback, holds) = stuck(&bank).await;
    let ended = failback.wait();
    assert_eq!(ended.code, Some(1), "{ended}");
    assert!(ended.stderr.contains("taken back, and the new side goes on"), "{ended}");
    tellers.wait_for_more_on_the_new_side(50);
    holds.batch_execute("ROLLBACK").await.unwrap();
    let (old, new) = bank.authority().await;
    assert!(old.starts_with("new ") && new.starts_with("new ") && old < new, "the epoch was raised: {old}, {new}");
    fail_back(&bank);
    assert_eq!(run.wait().code, Some(0));
    assert_back(&bank, tellers).await;
    assert_followed(&bank).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failback_waits_for_nobody_who_writes_for_long_and_for_two_people_where_they_are_asked_for() {
    let Some(bank) = Bank::open("lock_timeout = \"500ms\"").await else { return };
    let (run, tellers) = switched(&bank, 2, 0).await;
    let slow = bank.new.connect().await;
    slow.batch_execute("BEGIN; INSERT INTO notes VALUES ('not yet')").await.unwrap();
    let answer = wait_for("the guard to see it", async || {
        let said = bank.desk.command(&["failback"], &["--dry-run", "--json"]);
        let answer: Value = serde_json::from_str(&said.stdout).unwrap();
        (guard(&answer, "oldest-writer")["holds"] == false).then_some(answer)
    })
    .await;
    assert!(guard(&answer, "oldest-writer")["seen"].as_str().unwrap().contains("notes"), "{answer}");
    slow.batch_execute("COMMIT").await.unwrap();
    let spec = fs::read_to_string(bank.desk.path(SPEC)).unwrap();
    fs::write(bank.desk.path(SPEC), spec.replace("[switch]", "[switch]\napprovals = 1")).unwrap();
    bank.desk.stop(run);
    let mut run = bank.desk.start();
    bank.desk.wait_with(&mut run, &["--reverse"]);
    let refused = bank.desk.expect(3, &["failback"], &[]);
    assert!(refused.stdout.contains("one person"), "{refused}");
    bank.desk.expect(0, &["approve"], &["--reason", "it does not work out", "--by", "ann"]);
    fail_back(&bank);
    assert_eq!(run.wait().code, Some(0));
    assert_back(&bank, tellers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_right_after_any_line_of_the_journal_a_failback_ends_on_one_side_and_goes_on() {
    for line in LINES {
        let Some(bank) = Bank::open("").await else { return };
        killed_after(line, &bank).await;
    }
}

/// A failback whose process is killed once the journal has this line; asked again it is made, and the migration goes on.
pub(crate) async fn killed_after(line: &str, bank: &Bank) {
    let (run, tellers) = switched(bank, 3, 1).await;
    let before = journal_says(&bank.desk, line);
    let failback = bank.desk.crossfade.spawn(&["failback", SPEC]);
    // Without a pause between two looks: what comes after the line is a matter of milliseconds.
    let begun = Instant::now();
    while journal_says(&bank.desk, line) == before {
        assert!(begun.elapsed() < GENEROUS, "the journal never says {line}");
    }
    run.kill();
    failback.wait();
    let (old, new) = bank.authority().await;
    println!("killed after {line}: the old side's row says {old}, the new side's {new}");
    let status = switch_status(bank);
    assert_eq!(status["authority"].as_str(), new.split(' ').next(), "{status}");
    if new.starts_with("new") || old.starts_with("old") {
        // Nobody has to do anything for it.
        tellers.wait_for_more(50);
    } else {
        // Between the two commits: both sides are closed, and any command opens one.
        assert!(status["next"].as_str().unwrap().contains("crossfade failback"), "{status}");
    }
    fail_back(bank);
    assert_back(bank, tellers).await;
    assert_followed(bank).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failback_a_wipe_leaves_nothing_on_either_server_and_the_next_run_begins_anew() {
    let Some(bank) = Bank::open("").await else { return };
    let (run, tellers) = switched(&bank, 2, 0).await;
    fail_back(&bank);
    assert_eq!(run.wait().code, Some(0));
    assert_back(&bank, tellers).await;
    let stood: Vec<_> = [
        rows(&bank.old, "SELECT * FROM accounts").await,
        rows(&bank.old, "SELECT * FROM movements").await,
        rows(&bank.old, "SELECT * FROM notes").await,
    ]
    .into();
    bank.desk.expect(0, &["rollback"], &["--wipe", "--yes"]);
    for side in [&bank.old, &bank.new] {
        let left = "SELECT (SELECT count(*) FROM pg_namespace WHERE nspname = 'crossfade') \
            + (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'crossfade%') \
            + (SELECT count(*) FROM pg_replication_slots WHERE database = current_database())";
        assert_eq!(side.value(left).await.as_deref(), Some("0"), "something is left in {}", side.url);
    }
    for (table, stood) in TABLES.iter().zip(&stood) {
        assert_same(table, stood, &rows(&bank.old, &format!("SELECT * FROM {table}")).await);
    }
    assert_eq!(bank.new.value("SELECT to_regclass('movements') IS NULL").await.as_deref(), Some("t"));
    let mut run = bank.desk.start();
    bank.desk.wait(&mut run);
    assert_same_tables(&bank.old, &bank.new, &TABLES).await;
    bank.desk.stop(run);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_with_new_keys_that_were_born_on_the_new_side_keep_them_after_a_failback_and_the_migration_goes_on() {
    let Some((old, new)) = two_databases().await else { return };
    old.execute(
        "CREATE TABLE people (id serial PRIMARY KEY, name text, boss integer REFERENCES people);
         INSERT INTO people (name, boss) SELECT 'p' || n, nullif(n / 10, 0) FROM generate_series(1, 100) n",
    )
    .await;
    let desk = crate::desk::Desk::new();
    desk.write_spec(
        &format!("{}\ntables = [\"public.*\"]", postgres(&old)),
        &postgres(&new),
        "[keys.default]\nmake = \"uuid-v5\"\nnamespace = \"6f1c3f5e-0b57-4c7e-9d0c-3a3a2f6a9b11\"\n\
         [rekey]\ntables = [\"public.*\"]\n[switch]\n",
    );
    let mut run = desk.start();
    desk.wait(&mut run);
    desk.verify();
    desk.expect(0, &["cutover"], &[]);
    assert_eq!(run.wait().code, Some(0));
    new.execute(
        "INSERT INTO people (id, name, boss) SELECT gen_random_uuid(), 'born' || n, (SELECT id FROM people WHERE name = 'p7') \
         FROM generate_series(1, 20) n; UPDATE people SET name = name || '!' WHERE name ~ '^p1'; DELETE FROM people WHERE name = 'p99'",
    )
    .await;
    let mut run = desk.start();
    desk.wait_with(&mut run, &["--reverse"]);
    let dry = desk.expect(0, &["failback"], &["--dry-run"]);
    assert!(dry.stdout.contains("not asked for: public.people."), "{dry}");
    desk.expect(0, &["failback"], &[]);
    assert_eq!(run.wait().code, Some(0));
    let both = "SELECT p.name, b.name FROM people p LEFT JOIN people b ON b.id = p.boss";
    assert_same("people", &rows(&new, both).await, &rows(&old, both).await);
    let keys = "SELECT name, id::text FROM people WHERE name ~ '^born'";
    let born = rows(&new, keys).await;
    // From here on what is done on the old side is told under the keys that the rows have: of itself and of what refers to it.
    old.execute(
        "INSERT INTO people (name, boss) SELECT 'later', id FROM people WHERE name = 'born3';
         UPDATE people SET name = name || '?' WHERE name ~ '^p2';
         UPDATE people SET boss = (SELECT id FROM people WHERE name = 'born5') WHERE name ~ '^p3';
         UPDATE people SET boss = (SELECT id FROM people WHERE name = 'born6') WHERE name ~ '^born1';
         DELETE FROM people WHERE name = 'born7';
         WITH gone AS (DELETE FROM people WHERE name = 'born8' RETURNING id) SELECT set_config('test.id', id::text, false) FROM gone;
         INSERT INTO people (id, name) VALUES (current_setting('test.id')::integer, 'born8');
         UPDATE people SET id = 5000 WHERE name = 'born9'",
    )
    .await;
    let mut run = desk.start();
    desk.wait(&mut run);
    desk.verify();
    assert_same("people", &rows(&old, both).await, &rows(&new, both).await);
    let wanted: Vec<_> = born
        .iter()
        .filter(|row| !["born7", "born9"].iter().any(|gone| row[0].as_deref() == Some(gone)))
        .cloned()
        .collect();
    let found = rows(&new, &format!("{keys} AND name <> 'born9'")).await;
    let found: Vec<_> = found.iter().cloned().collect();
    assert_eq!(wanted.len(), 18);
    assert_eq!(wanted, found, "rows that were born on the new side keep their keys");
    let mapping = desk.expect(0, &["mapping", "export"], &[]);
    for row in &wanted {
        assert!(mapping.stdout.contains(row[1].as_deref().unwrap()), "{row:?} is in the mapping\n{mapping}");
    }
    // What was written meanwhile is not in the log: an older place of it would put older values back.
    let refused = desk.expect(3, &["replay"], &["--from", "offset:0"]);
    assert!(refused.stderr.contains("put older values back"), "{refused}");

    // There again, and back again: what was born the first time has its pair, what is born now gets one.
    wait_for_blocking("the cutover to be made", || {
        desk.verify();
        (desk.command(&["cutover"], &[]).code == Some(0)).then_some(())
    });
    assert_eq!(run.wait().code, Some(0));
    new.execute(
        "INSERT INTO people (id, name, boss) SELECT gen_random_uuid(), 'again' || n, (SELECT id FROM people WHERE name = 'born8') \
         FROM generate_series(1, 10) n; UPDATE people SET name = name || '+' WHERE name ~ '^born1'; \
         DELETE FROM people WHERE name = 'born2'",
    )
    .await;
    let mut run = desk.start();
    desk.wait_with(&mut run, &["--reverse"]);
    assert_same("people", &rows(&new, both).await, &rows(&old, both).await);
    desk.expect(0, &["failback"], &[]);
    assert_eq!(run.wait().code, Some(0));
    let before = rows(&new, "SELECT id::text FROM people").await;
    old.execute("UPDATE people SET name = name || '.'").await;
    let mut run = desk.start();
    desk.wait(&mut run);
    desk.verify();
    assert_same("people", &rows(&old, both).await, &rows(&new, both).await);
    assert_same("keys", &before, &rows(&new, "SELECT id::text FROM people").await);
    desk.stop(run);
    desk.expect(0, &["rollback"], &["--wipe", "--yes"]);
    desk.expect(0, &["run"], &["--until", "caught-up", "--quiet"]);
    assert_same("people", &rows(&old, both).await, &rows(&new, both).await);
}
