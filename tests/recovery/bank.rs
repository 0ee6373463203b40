//! An additive workload: money moves between accounts, and every movement is also a row of a table without a key.
//!
//! Images of rows hide a change that is applied twice; a movement that comes twice stands there twice, one that is lost
//! is missing, and in both cases no account is what its movements add up to.

use crate::{
    ends::{End, open_sqlite},
    hand::Hand,
};
use crossfade_testkit::{postgres, seeded};
use rand::{Rng, rngs::StdRng};
use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

/// Accounts at the start, each with [`OPENING`] on it.
pub(crate) const ACCOUNTS: i64 = 100;
const OPENING: i64 = 1_000;

/// The tables of this workload.
pub(crate) const TABLES: [&str; 4] = ["accounts", "movements", "marks", "ballast"];

/// Makes the tables and fills them; `ballast` rows make the copy last.
pub(crate) async fn create(end: &End, ballast: i64) {
    let number = "bigint";
    let fill = |count: i64, values: &str| {
        format!(
            "WITH RECURSIVE n(i) AS (SELECT CAST(1 AS {number}) UNION ALL SELECT i + 1 FROM n WHERE i < {count}) SELECT {values} FROM n"
        )
    };
    let begin = match end {
        End::Postgres(_) => "BEGIN;",
        End::Sqlite(_) => "PRAGMA journal_mode = WAL; BEGIN;",
    };
    end.execute(&format!(
        "{begin}
         CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint NOT NULL, note text);
         CREATE TABLE movements (writer bigint NOT NULL, number bigint NOT NULL, debtor bigint NOT NULL,
             creditor bigint NOT NULL, amount bigint NOT NULL);
         CREATE TABLE marks (id bigint PRIMARY KEY);
         CREATE TABLE ballast (id bigint PRIMARY KEY, filler text NOT NULL);
         INSERT INTO accounts {};
         INSERT INTO ballast {};
         COMMIT;",
        fill(ACCOUNTS, &format!("i, {OPENING}, 'opened'")),
        fill(ballast, "i, 'row ' || i || ' of what makes the copy last long enough to be interrupted in its middle'"),
    ))
    .await;
}

/// Commits `transactions` movements, then a large change, then the mark: what somebody who was away has to catch up.
pub(crate) async fn backlog(end: &End, writer: i64, transactions: i64, mark: i64) {
    let ballast = format!("UPDATE ballast SET filler = filler || '.' WHERE id % 7 = {}", mark.rem_euclid(7));
    match end {
        End::Postgres(database) => {
            let sql = format!(
                "DO $$ DECLARE d bigint; c bigint; BEGIN FOR i IN 1..{transactions} LOOP
                   d := 1 + (i * 7) % {ACCOUNTS}; c := 1 + (i * 13 + 1) % {ACCOUNTS};
                   UPDATE accounts SET balance = balance - 3 WHERE id = d;
                   UPDATE accounts SET balance = balance + 3 WHERE id = c;
                   INSERT INTO movements VALUES ({writer}, i, d, c, 3);
                   COMMIT;
                 END LOOP; END $$"
            );
            // A writer may meet us on the same two accounts: then the rest is not written, which harms nothing.
            let _ = database.connect().await.simple_query(&sql).await;
            database.execute(&ballast).await;
        }
        End::Sqlite(path) => {
            let connection = open_sqlite(path);
            for number in 1..=transactions {
                let (debtor, creditor) = (1 + (number * 7) % ACCOUNTS, 1 + (number * 13 + 1) % ACCOUNTS);
                let sql = movement(writer, number, debtor, creditor, 3);
                let sql = format!("BEGIN IMMEDIATE; {sql} COMMIT;");
                connection.execute_batch(&sql).unwrap_or_else(|error| panic!("{error}"));
            }
            connection.execute_batch(&ballast).unwrap_or_else(|error| panic!("{error}"));
        }
    }
    write_mark(end, mark).await;
}

/// Badges for [`hand_around`]; only where several connections write.
pub(crate) async fn create_badges(end: &End) {
    end.execute(
        "ALTER TABLE movements ADD PRIMARY KEY (writer, number);
         CREATE TABLE badges (id bigint PRIMARY KEY, badge text UNIQUE);
         INSERT INTO badges SELECT i, 'badge ' || i FROM generate_series(1, 500) i",
    )
    .await;
}

/// Commits transactions of which each gives one row's unique value away, and the next gives it to another row: a worker that is
/// ahead of the others may have the second without the first.
pub(crate) async fn hand_around(end: &End, transactions: i64, mark: i64) {
    end.execute(&format!(
        "DO $$ DECLARE a bigint; b bigint; was text; BEGIN FOR i IN 1..{transactions} LOOP
           a := 1 + (i * 7 + {mark}) % 500; b := 1 + (i * 13 + 1) % 500;
           IF a <> b THEN
             SELECT badge INTO was FROM badges WHERE id = a;
             UPDATE badges SET badge = 'of {mark} ' || i WHERE id = a; COMMIT;
             UPDATE badges SET badge = was WHERE id = b; COMMIT;
           END IF;
         END LOOP; END $$"
    ))
    .await;
}

/// A row by whose arrival one knows that everything before it has arrived.
pub(crate) async fn write_mark(end: &End, mark: i64) {
    end.execute(&format!("INSERT INTO marks VALUES ({mark})")).await;
}

/// Whether the mark is there.
pub(crate) async fn has_mark(end: &End, mark: i64) -> bool {
    end.number(&format!("SELECT id FROM marks WHERE id = {mark}")).await.is_some()
}

fn movement(writer: i64, number: i64, debtor: i64, creditor: i64, amount: i64) -> String {
    // Always the smaller account first, so that two writers never wait for each other in a circle.
    let mut updates = [
        format!("UPDATE accounts SET balance = balance - {amount} WHERE id = {debtor};"),
        format!("UPDATE accounts SET balance = balance + {amount} WHERE id = {creditor};"),
    ];
    if creditor < debtor {
        updates.reverse();
    }
    format!("{} INSERT INTO movements VALUES ({writer}, {number}, {debtor}, {creditor}, {amount});", updates.join(" "))
}

/// Fails unless every account is what its movements add up to, and no movement is missing or doubled.
pub(crate) async fn assert_adds_up(end: &End, which: &str) {
    let moved = |side: &str| format!("(SELECT coalesce(sum(amount), 0) FROM movements WHERE {side} = accounts.id)");
    let wrong = format!(
        "SELECT count(*) FROM accounts WHERE balance <> {OPENING} + {} - {}",
        moved("creditor"),
        moved("debtor")
    );
    let wrong = end.number(&wrong).await;
    assert_eq!(wrong, Some(0), "{which}: accounts that are not what their movements add up to");
    let doubled = "SELECT count(*) FROM (SELECT 1 FROM movements GROUP BY writer, number HAVING count(*) > 1) AS d";
    assert_eq!(end.number(doubled).await, Some(0), "{which}: movements that stand there twice");
}

/// The teller's number among the writers of movements.
const TELLER: i64 = 1;

/// Sets a teller to work; about `per_second` transactions.
pub(crate) fn teller(end: &End, seed: u64, per_second: u32) -> Hand {
    Hand::start("the teller", end, seeded::worker(seed, 77), per_second, work)
}

fn work(end: &End, mut rng: StdRng, stop: &AtomicBool, committed: &AtomicU64, pause: Duration) {
    let runtime = quietly();
    let mut writer = Writer::new(end);
    // Counts attempts, so that a transaction whose end nobody knows never shares a number with the next.
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let debtor = rng.random_range(1..=ACCOUNTS);
        let creditor = 1 + (debtor + rng.random_range(0..ACCOUNTS - 1)) % ACCOUNTS;
        let mut sql = movement(TELLER, number, debtor, creditor, rng.random_range(1..50));
        if rng.random_ratio(1, 10) {
            sql.push_str(&format!(" UPDATE accounts SET note = 'seen {number}' WHERE id = {debtor};"));
        }
        if runtime.block_on(writer.commit(&sql)) {
            committed.fetch_add(1, Ordering::Relaxed);
        }
        thread::sleep(pause);
    }
}

/// A runtime for a writer's own thread.
pub(crate) fn quietly() -> tokio::runtime::Runtime {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap_or_else(|error| panic!("no runtime for a writer: {error}"))
}

/// A connection that is made again when it is lost.
pub(crate) enum Writer {
    Postgres(String, Option<tokio_postgres::Client>),
    Sqlite(rusqlite::Connection),
}

impl Writer {
    pub(crate) fn new(end: &End) -> Self {
        match end {
            End::Postgres(database) => Self::Postgres(database.url.clone(), None),
            End::Sqlite(path) => Self::Sqlite(open_sqlite(path)),
        }
    }

    /// Commits, or says that nobody knows.
    pub(crate) async fn commit(&mut self, sql: &str) -> bool {
        match self {
            Self::Sqlite(connection) => {
                let done = connection.execute_batch(&format!("BEGIN IMMEDIATE; {sql} COMMIT;"));
                done.unwrap_or_else(|error| panic!("a writer cannot write: {error}"));
                true
            }
            Self::Postgres(url, client) => {
                if client.as_ref().is_none_or(tokio_postgres::Client::is_closed) {
                    *client = postgres::connect(url).await.ok();
                }
                let Some(open) = client else { return false };
                let done = open.batch_execute(&format!("BEGIN; {sql} COMMIT;")).await.is_ok();
                if !done {
                    // A server that goes down, or a deadlock: the next connection begins afresh.
                    *client = None;
                }
                done
            }
        }
    }
}
