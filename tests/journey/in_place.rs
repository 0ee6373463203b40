//! New columns take the names of the old ones in the application's own tables, under clerks who never stop, and give them back.

use crate::{
    clerks::{Clerks, Office},
    desk::{SPEC, rows},
};
use crossfade_testkit::{
    compare::assert_same,
    crossfade::Running,
    postgres::Version,
    wait::{wait_for, wait_for_blocking, wait_until},
};
use serde_json::Value;
use std::fs;

/// A run that has caught up, a comparison that found nothing, and clerks at work.
async fn ready(office: &Office, asking: u64, plain: u64) -> (Running, Clerks) {
    let mut run = office.desk.start();
    office.desk.wait(&mut run);
    wait_until("the flag table", async || {
        let sql = "SELECT to_regprocedure('crossfade.side(text, text)') IS NOT NULL";
        office.database.value(sql).await.as_deref() == Some("t")
    })
    .await;
    let clerks = Clerks::start(office, asking, plain);
    clerks.wait_for_more(60);
    let said = office.desk.command(&["verify"], &[]);
    assert!(
        said.code == Some(0) && said.stdout.contains("0 differences"),
        "{said}\n{}\n{}",
        office.desk.command(&["quarantine", "ls"], &[]),
        office.desk.command(&["status"], &[])
    );
    (run, clerks)
}

fn switch(office: &Office, word: &str) -> Value {
    let done = office.desk.expect(0, &[word], &["--json"]);
    let answer: Value = serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error}\n{done}"));
    assert_eq!((&answer["switched"], &answer["routed"]), (&true.into(), &true.into()), "{done}");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_change_places_under_live_writers_and_back_and_no_write_is_lost() {
    for version in Version::ALL {
        let Some(office) = Office::open(version, "").await else { return };
        let (run, clerks) = ready(&office, 2, 2).await;
        let dry = office.desk.expect(0, &["cutover"], &["--dry-run"]);
        assert!(
            !dry.stdout.contains(" NO ") && dry.stdout.contains("RENAME COLUMN \"user_id\" TO \"legacy_user_id\""),
            "{dry}"
        );
        assert_eq!(office.authority().await, "old 0");

        let answer = switch(&office, "cutover");
        println!("{version:?}: as the switch itself has measured it: {}", answer["pause"]);
        let ended = run.wait();
        assert_eq!(ended.code, Some(0), "the run ends once the new columns have the names\n{ended}");
        clerks.wait_for_more(100);
        assert_eq!(office.authority().await, "new 1");
        office.assert_new_shape().await;
        office.assert_both_right().await;
        office.desk.expect(3, &["rollback"], &["--wipe", "--yes"]);
        office.desk.expect(3, &["run"], &["--quiet"]);

        let answer = switch(&office, "failback");
        println!("{version:?}: and on the way back: {}", answer["pause"]);
        clerks.wait_for_more(100);
        assert_eq!(office.authority().await, "old 2");
        println!("{version:?}: the longest time between two commits: {:?}", clerks.longest_gap());
        clerks.assert_few_errors();
        let told = clerks.stop();
        office.assert_nothing_lost(&told).await;
        office.assert_old_shape().await;
        let refused = office.desk.expect(3, &["run"], &["--quiet"]);
        assert!(refused.stderr.contains("--wipe"), "{refused}");
        office.desk.expect(0, &["rollback"], &["--wipe", "--yes"]);
        office.assert_as_it_was().await;
        // And it can begin anew.
        let mut run = office.desk.start();
        office.desk.wait(&mut run);
        office.desk.verify();
        office.desk.stop(run);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_runs_it_the_cutover_in_place_runs_it_itself() {
    let Some(office) = Office::open(Version::V15, "").await else { return };
    let (run, clerks) = ready(&office, 2, 1).await;
    office.desk.stop(run);
    clerks.wait_for_more(50);
    switch(&office, "cutover");
    clerks.wait_for_more(50);
    let told = clerks.stop();
    office.assert_nothing_lost(&told).await;
    office.assert_both_right().await;
}

/// What the journal holds so far, as bytes that a word is looked for in.
fn journal_says(office: &Office, word: &str) -> usize {
    let Ok(folder) = fs::read_dir(office.desk.work().join("journal")) else { return 0 };
    let files = folder.filter_map(Result::ok).filter(|file| file.path().extension().is_some_and(|end| end == "log"));
    files
        .map(|file| {
            let content = fs::read(file.path()).unwrap_or_default();
            content.windows(word.len()).filter(|window| *window == word.as_bytes()).count()
        })
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_right_after_any_line_of_the_journal_the_columns_are_on_one_side() {
    for line in ["switch-intended", "\"draining\"", "\"switching\"", "authority-moved", "routing-flipped"] {
        let Some(office) = Office::open(Version::V15, "").await else { return };
        let (run, clerks) = ready(&office, 2, 1).await;
        let cutover = office.desk.crossfade.spawn(&["cutover", SPEC, "--json"]);
        wait_for_blocking(&format!("the journal to say {line}"), || (journal_says(&office, line) > 0).then_some(()));
        run.kill();
        cutover.kill();
        clerks.wait_for_more(40);
        let side = office.authority().await;
        println!("killed after {line}: the row says {side}");
        let status = office.desk.crossfade.json(&["status", SPEC])["switch"].clone();
        assert_eq!(status["authority"].as_str(), side.split(' ').next(), "{status}");
        switch(&office, "cutover");
        clerks.wait_for_more(40);
        office.assert_new_shape().await;
        // And the same on the way back.
        let before = journal_says(&office, line);
        let failback = office.desk.crossfade.spawn(&["failback", SPEC, "--json"]);
        wait_for_blocking(&format!("the journal to say {line} again"), || {
            (journal_says(&office, line) > before).then_some(())
        });
        failback.kill();
        clerks.wait_for_more(40);
        println!("killed after {line} on the way back: the row says {}", office.authority().await);
        switch(&office, "failback");
        clerks.wait_for_more(40);
        let told = clerks.stop();
        office.assert_nothing_lost(&told).await;
        office.assert_old_shape().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_kept_exact_is_refused_by_name() {
    let Some(office) = Office::open(Version::V15, "").await else { return };
    office
        .database
        .execute(
            "CREATE TABLE badges (badge int PRIMARY KEY, owner int REFERENCES users);
             ALTER TABLE orders ALTER CONSTRAINT orders_user_id_fkey DEFERRABLE;
             CREATE VIEW busy AS SELECT u.user_id, u.email FROM users u GROUP BY u.user_id;
             ALTER TABLE users ADD legacy_balance int",
        )
        .await;
    // A reference from a table that the migration does not know.
    let spec = std::fs::read_to_string(office.desk.path(SPEC)).unwrap();
    office
        .desk
        .crossfade
        .write(SPEC, &spec.replace("[\"public.*\"]", "[\"public.*\", \"!public.badges\", \"!public.busy\"]"));
    let mut run = office.desk.start();
    office.desk.wait(&mut run);
    let refused = office.desk.expect(3, &["cutover"], &["--dry-run"]);
    for named in ["badges: badges_owner_fkey", "orders: orders_user_id_fkey: is deferrable", "busy", "legacy_balance"] {
        assert!(refused.stdout.contains(named), "{named} is not named\n{refused}");
    }
    office.desk.expect(3, &["cutover"], &[]);
    assert_eq!(office.authority().await, "old 0");
    office.desk.stop(run);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_does_not_end_lets_everybody_go_on_and_what_was_drained_comes_again() {
    let Some(office) = Office::open(Version::V15, "deadline = \"3s\"").await else { return };
    let (_run, clerks) = ready(&office, 2, 1).await;
    // The mapping is written with the rows: whoever holds it keeps the drain from its end.
    let gate = office.database.connect().await;
    gate.batch_execute(&format!("BEGIN; SELECT crossfade.side('{}')", office.desk.name)).await.unwrap();
    let cutover = office.desk.crossfade.spawn(&["cutover", SPEC, "--json"]);
    wait_until("the freeze to be tried", async || {
        let sql = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        office.database.value(sql).await.as_deref() != Some("0")
    })
    .await;
    let holds = office.database.connect().await;
    holds.batch_execute("BEGIN; LOCK TABLE uuid_migration_mapping IN EXCLUSIVE MODE").await.unwrap();
    gate.batch_execute("INSERT INTO users (email) VALUES ('late'); COMMIT").await.unwrap();
    let ended = cutover.wait();
    holds.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(ended.code, Some(1), "{ended}");
    assert!(ended.stderr.contains("taken back"), "{ended}");
    assert_eq!(office.authority().await, "old 1");
    clerks.wait_for_more(40);
    let shadow = wait_for("the late row to have its new key", async || {
        office.database.value("SELECT uuid_id::text FROM users WHERE email = 'late'").await
    })
    .await;
    switch(&office, "cutover");
    clerks.wait_for_more(40);
    let told = clerks.stop();
    office.assert_nothing_lost(&told).await;
    office.assert_both_right().await;
    let now = rows(&office.database, "SELECT user_id::text FROM users WHERE email = 'late'").await;
    assert_same("the key", &rows(&office.database, &format!("VALUES ('{shadow}')")).await, &now);
}
