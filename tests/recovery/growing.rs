//! Kills while a new table is taken in (`resume --add`): once its place in the target is made, the next run finishes it without
//! being asked again; before that, asking again is enough.

use crate::{
    bank, is_soak,
    setup::{Direction, Setup},
    stand::{SPEC, Stand},
};
use crossfade_testkit::{compare::assert_same, seeded};
use rand::Rng;
use std::time::Duration;

const ROWS: i64 = 4_000;

async fn tables_come_through_kills(direction: Direction) {
    let Some(stand) = Stand::new(direction).await else { return };
    bank::create(&stand.source, 500).await;
    let seed = seeded::seed("tables that come through kills");
    let mut rng = seeded::worker(seed, 7);
    let teller = bank::teller(&stand.source, seed, 100);
    let mut run = stand.start();
    stand.until_caught_up(&mut run, 1).await;
    let times = if is_soak() { 20 } else { 3 };
    let (mut made, mut unfinished) = (0, 0);
    for time in 0..times {
        let table = format!("grown_{time}");
        let fill = format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS}) SELECT i, 'old' FROM n"
        );
        stand
            .source
            .execute(&format!(
                "BEGIN; CREATE TABLE {table} (id bigint PRIMARY KEY, note text); INSERT INTO {table} {fill}; COMMIT"
            ))
            .await;
        let count = format!("SELECT count(*) FROM {table}");
        let mut asker = stand.crossfade.spawn(&["resume", SPEC, "--add"]);
        stand
            .until("the new table is in the target", &mut run, async || {
                stand.target.number(&count).await.is_some() || !asker.is_running()
            })
            .await;
        tokio::time::sleep(Duration::from_micros(rng.random_range(0..40_000))).await;
        let ended = run.kill();
        assert_eq!(ended.code, None, "the migration ended by itself before it was killed\n{ended}");
        stand.until_sessions_ended().await;
        let asked = asker.wait();
        let there = stand.target.number(&count).await;
        stand
            .source
            .execute(&format!(
                "UPDATE {table} SET note = 'new' WHERE id % 5 = 0; INSERT INTO {table} VALUES (-1, 'late')"
            ))
            .await;
        run = stand.start();
        match there {
            Some(rows) => {
                made += 1;
                unfinished += usize::from(rows < ROWS);
            }
            None => {
                assert_ne!(asked.code, Some(0), "the new table was said to be taken in, and is not\n{asked}");
                stand.until("it can be asked", &mut run, async || stand.work().join("control.sock").exists()).await;
                stand.crossfade.succeed(&["resume", SPEC, "--add"]);
            }
        }
        stand
            .until("the new table is filled", &mut run, async || stand.target.number(&count).await == Some(ROWS + 1))
            .await;
        stand.until_caught_up(&mut run, 10 + time).await;
        let all = format!("SELECT * FROM {table}");
        assert_same(&table, &stand.source.rows(&all).await, &stand.target.rows(&all).await);
    }
    assert!(made > 0, "no kill came after the table was made in the target: this proves nothing");
    teller.stop();
    stand.wait_caught_up();
    stand.assert_equal(false).await;
    println!(
        "{}: {times} kills while a table was taken in, {made} after it was made, {unfinished} of them before it was filled",
        Setup::from(direction).name()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_table_is_taken_in_through_kills_between_postgres_servers() {
    tables_come_through_kills(Direction::PostgresToPostgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_table_is_taken_in_through_kills_between_sqlite_files() {
    tables_come_through_kills(Direction::SqliteToSqlite).await;
}
