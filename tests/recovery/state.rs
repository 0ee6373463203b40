//! The state is a cache: lost or damaged in the middle of a migration, with changes in quarantine, it is made again from the
//! log, the journal and the target, and nothing else is lost.

use crate::{
    bank,
    ends::End,
    setup::Direction,
    stand::{SPEC, Stand},
};
use crossfade_testkit::{compare::assert_same, seeded};
use serde_json::Value;
use std::{collections::BTreeSet, fs, io::Write, path::Path};

const BALLAST: i64 = 8_000;

/// What happens to the state's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    Deleted,
    Corrupted,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_migration_outlives_its_deleted_state_with_rows_in_quarantine() {
    harmed(Direction::PostgresToPostgres, Harm::Deleted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_migration_outlives_its_corrupted_state_with_rows_in_quarantine() {
    harmed(Direction::PostgresToPostgres, Harm::Corrupted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sqlite_migration_outlives_its_deleted_state_with_rows_in_quarantine() {
    harmed(Direction::SqliteToSqlite, Harm::Deleted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sqlite_migration_outlives_its_corrupted_state_with_rows_in_quarantine() {
    harmed(Direction::SqliteToSqlite, Harm::Corrupted).await;
}

async fn harmed(direction: Direction, harm: Harm) {
    let Some(stand) = Stand::new(direction).await else { return };
    bank::create(&stand.source, BALLAST).await;
    refuse_nothing_else(&stand);
    let mut run = stand.start();
    stand.until_caught_up(&mut run, 1).await;
    refuse_bad_notes(&stand.target).await;
    // Three changes that the target refuses, then later ones of the same keys, which must wait behind them.
    stand.source.execute("UPDATE accounts SET note = 'bad' WHERE id IN (11, 12, 13)").await;
    stand.source.execute("UPDATE accounts SET note = 'good again' WHERE id IN (11, 12)").await;
    stand.until_caught_up(&mut run, 2).await;
    let teller = bank::teller(&stand.source, seeded::seed("a lost state"), 100);
    teller.wait_for_more(20);
    run.kill();
    stand.until_sessions_ended().await;
    let before = held(&stand);
    assert!(before.len() >= 5, "five changes are to be in quarantine: {before:?}");

    let state = stand.work().join("state");
    assert!(state.is_dir(), "{} is not there", state.display());
    match harm {
        Harm::Deleted => fs::remove_dir_all(&state).unwrap(),
        Harm::Corrupted => {
            corrupt(&state);
            let refused = stand.start().wait();
            assert_eq!(refused.code, Some(5), "a damaged state must be refused, not taken for a new one\n{refused}");
            assert!(refused.stderr.contains("crossfade state rebuild"), "the remedy must be named\n{refused}");
        }
    }
    stand.crossfade.succeed(&["state", "rebuild", SPEC]);
    teller.wait_for_more(20);

    let mut run = stand.start();
    stand.until_caught_up(&mut run, 3).await;
    assert!(teller.stop() >= 40);
    stand.wait_caught_up();
    let after = held(&stand);
    assert!(before.is_subset(&after), "the quarantine must be intact: {before:?} became {after:?}");
    for table in ["movements", "ballast", "marks"] {
        let all = format!("SELECT * FROM {table}");
        assert_same(table, &stand.source.rows(&all).await, &stand.target.rows(&all).await);
    }
    let others = "SELECT * FROM accounts WHERE id NOT IN (11, 12, 13)";
    assert_same("accounts", &stand.source.rows(others).await, &stand.target.rows(others).await);

    allow_bad_notes(&stand.target).await;
    stand.crossfade.succeed(&["quarantine", "retry", SPEC, "--all"]);
    assert!(held(&stand).is_empty(), "a retry that nothing hinders leaves nothing in quarantine");
    stand.wait_caught_up();
    stand.assert_equal(false).await;
    assert!(run.is_running());
}

/// The copy goes on where it was, although the state that counted its chunks is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_state_deleted_while_the_copy_runs_costs_nothing() {
    for direction in [Direction::PostgresToPostgres, Direction::SqliteToSqlite] {
        let Some(stand) = Stand::new(direction).await else { return };
        bank::create(&stand.source, 40_000).await;
        let teller = bank::teller(&stand.source, seeded::seed("a state lost while copying"), 100);
        for _ in 0..3 {
            let mut run = stand.start();
            let state = stand.work().join("state");
            stand.until("the state is there", &mut run, async || state.is_dir()).await;
            run.kill();
            stand.until_sessions_ended().await;
            fs::remove_dir_all(&state).unwrap();
        }
        let mut run = stand.start();
        stand.until_caught_up(&mut run, 1).await;
        teller.stop();
        stand.wait_caught_up();
        stand.assert_equal(false).await;
    }
}

/// Errors beyond the gate would pause the migration, and here they are the point.
fn refuse_nothing_else(stand: &Stand) {
    let path = stand.folder().join(SPEC);
    let mut spec = fs::OpenOptions::new().append(true).open(path).unwrap();
    spec.write_all(b"\n[gates]\nerror_rate = { max = \"100%\", then = \"warn\" }\n").unwrap();
}

async fn refuse_bad_notes(target: &End) {
    let sql = match target {
        End::Postgres(_) => "ALTER TABLE accounts ADD CONSTRAINT no_bad_notes CHECK (note <> 'bad') NOT VALID",
        End::Sqlite(_) => {
            "CREATE TRIGGER no_bad_notes BEFORE UPDATE ON accounts WHEN NEW.note = 'bad' \
             BEGIN SELECT RAISE(ABORT, 'no bad notes'); END; \
             CREATE TRIGGER no_bad_rows BEFORE INSERT ON accounts WHEN NEW.note = 'bad' \
             BEGIN SELECT RAISE(ABORT, 'no bad notes'); END"
        }
    };
    target.execute(sql).await;
}

async fn allow_bad_notes(target: &End) {
    let sql = match target {
        End::Postgres(_) => "ALTER TABLE accounts DROP CONSTRAINT no_bad_notes",
        End::Sqlite(_) => "DROP TRIGGER no_bad_notes; DROP TRIGGER no_bad_rows",
    };
    target.execute(sql).await;
}

/// What is in quarantine: number, kind and reason of each.
fn held(stand: &Stand) -> BTreeSet<String> {
    let all = stand.crossfade.json(&["quarantine", "ls", SPEC]);
    let all = all.as_array().unwrap_or_else(|| panic!("quarantine ls gives a list: {all}"));
    all.iter().map(|one| format!("{} {} {}", one["id"], text(&one["kind"]), text(&one["reason"]))).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Turns bytes over in the middle of every file that holds something.
fn corrupt(folder: &Path) {
    let mut harmed = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let mut bytes = fs::read(&path).unwrap();
            if bytes.len() < 16 {
                continue;
            }
            let half = bytes.len() / 2;
            for byte in bytes.iter_mut().skip(half / 2).take(half) {
                *byte ^= 0xa5;
            }
            fs::write(&path, bytes).unwrap();
            harmed += 1;
        }
    }
    assert!(harmed > 0, "nothing to harm in {}", folder.display());
}
