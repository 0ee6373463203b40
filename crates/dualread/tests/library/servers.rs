//! Two real servers, and somebody who carries rows from one to the other when told to, with the position in the same
//! transaction, as a migration does.

use crate::{
    guide::TwoServers,
    world::{Heard, all_by, eager, is_mismatch},
};
use crossfade_dualread::{DualReads, Options, Outcome, POSTGRES_END, Side, Subject, Unjudged};
use crossfade_testkit::{
    postgres::{Database, Postgres, Version},
    wait::wait_until,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio_postgres::Client;

const MIGRATION: &str = "shop";

/// The tables of the target that a migration makes, as far as they matter here.
const TARGET: &str = "CREATE SCHEMA crossfade; \
    CREATE TABLE crossfade.positions (migration text, worker integer, source_position text, PRIMARY KEY (migration, worker)); \
    INSERT INTO crossfade.positions VALUES ('shop', 0, NULL); \
    CREATE TABLE customers (id text PRIMARY KEY, tenant text, email text)";

struct Stand {
    old: Arc<Client>,
    new: Arc<Client>,
    /// How often the target has answered.
    answered: Arc<AtomicUsize>,
}

impl Stand {
    async fn new(source: &Database, target: &Database) -> Self {
        source.execute("CREATE TABLE customers (id bigint PRIMARY KEY, tenant text, mail text)").await;
        source
            .execute("INSERT INTO customers SELECT n, 'acme', 'c' || n || '@example.org' FROM generate_series(1, 50) n")
            .await;
        target.execute(TARGET).await;
        let (old, new) = (Arc::new(source.connect().await), Arc::new(target.connect().await));
        Self { old, new, answered: Arc::default() }
    }

    /// Brings the target up to the source, in one transaction with the position, which is taken before the rows are.
    async fn carry(&self) {
        let end: String = self.old.query_one(POSTGRES_END, &[]).await.unwrap().get(0);
        let mut sql =
            format!("BEGIN; UPDATE crossfade.positions SET source_position = '{end}'; DELETE FROM customers;");
        for row in self.old.query("SELECT id, tenant, mail FROM customers", &[]).await.unwrap() {
            let (id, tenant, mail): (i64, &str, &str) = (row.get(0), row.get(1), row.get(2));
            sql.push_str(&format!("INSERT INTO customers VALUES ('c-{id}', '{tenant}', '{mail}');"));
        }
        self.new.batch_execute(&format!("{sql} COMMIT")).await.unwrap();
    }

    async fn mail_of(&self, reads: &DualReads, id: i64) -> Option<String> {
        let (old, new, answered) = (Arc::clone(&self.old), Arc::clone(&self.new), Arc::clone(&self.answered));
        let one = move || {
            let old = Arc::clone(&old);
            async move {
                let row = old.query_opt("SELECT mail FROM customers WHERE id = $1", &[&id]).await?;
                Ok::<_, tokio_postgres::Error>(row.map(|row| row.get::<_, String>(0)))
            }
        };
        let other = move || {
            let (new, answered) = (Arc::clone(&new), Arc::clone(&answered));
            async move {
                let row = new.query_opt("SELECT email FROM customers WHERE id = $1", &[&format!("c-{id}")]).await?;
                answered.fetch_add(1, Ordering::SeqCst);
                Ok(row.map(|row| row.get(0)))
            }
        };
        reads.read(Subject::new("acme", id.to_be_bytes()), one, other).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lagging_target_is_explained_and_a_wrong_one_is_found() {
    let (Some(source), Some(target)) = (Postgres::shared(Version::V15), Postgres::shared_target(Version::V15)) else {
        return;
    };
    let (source, target) = (source.create_database("reads").await, target.create_database("reads").await);
    let stand = Stand::new(&source, &target).await;
    stand.carry().await;
    let places =
        || TwoServers { old: Arc::clone(&stand.old), new: Arc::clone(&stand.new), migration: MIGRATION.to_owned() };
    let heard = Heard::default();
    let reads = DualReads::heard_by(eager(), all_by(Side::Old, 1), places(), heard.clone());

    for id in 1..=50 {
        assert_eq!(stand.mail_of(&reads, id).await, Some(format!("c{id}@example.org")));
        reads.settled().await;
    }
    assert_eq!(heard.outcomes(), vec![Outcome::Match; 50]);

    // Written, and not carried yet: the read's answer is the new one, the comparison waits until the target is there.
    stand
        .old
        .batch_execute("UPDATE customers SET mail = 'new@example.org' WHERE id = 7; DELETE FROM customers WHERE id = 8")
        .await
        .unwrap();
    assert_eq!(stand.mail_of(&reads, 7).await.as_deref(), Some("new@example.org"));
    assert_eq!(stand.mail_of(&reads, 8).await, None);
    wait_until("the target's answers", async || stand.answered.load(Ordering::SeqCst) == 52).await;
    assert_eq!(heard.outcomes().len(), 50, "a difference is not judged before the target is past the position");
    while heard.outcomes().len() < 52 {
        stand.carry().await;
        tokio::task::yield_now().await;
    }
    reads.settled().await;
    assert_eq!(heard.outcomes()[50..], [Outcome::Lag, Outcome::Lag]);

    // Wrong in the target, though everything is carried.
    stand.carry().await;
    stand.new.batch_execute("UPDATE customers SET email = 'wrong@example.org' WHERE id = 'c-9'").await.unwrap();
    assert_eq!(stand.mail_of(&reads, 9).await.as_deref(), Some("c9@example.org"));
    while heard.outcomes().len() < 53 {
        // Only the position moves.
        let end: String = stand.old.query_one(POSTGRES_END, &[]).await.unwrap().get(0);
        stand.new.execute("UPDATE crossfade.positions SET source_position = $1", &[&end]).await.unwrap();
    }
    reads.settled().await;
    assert!(is_mismatch(&heard.outcomes()[52]), "{:?}", heard.outcomes()[52]);

    // Nobody carries: no verdict, and the application has its answer all the same.
    let impatient = Options { patience: Duration::from_millis(50), ..eager() };
    let heard = Heard::default();
    let reads = DualReads::heard_by(impatient, all_by(Side::Old, 1), places(), heard.clone());
    stand.old.batch_execute("UPDATE customers SET mail = 'later@example.org' WHERE id = 7").await.unwrap();
    assert_eq!(stand.mail_of(&reads, 7).await.as_deref(), Some("later@example.org"));
    reads.settled().await;
    assert_eq!(heard.outcomes(), [Outcome::Unjudged(Unjudged::Behind)]);
}
