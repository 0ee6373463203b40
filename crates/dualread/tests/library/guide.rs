//! The Rust of `docs/guide/dual-reads.md`, word for word: what the page shows is what is compiled and run here.

use crossfade_testkit::postgres::{Postgres, Version};
use std::{future::Future, pin::Pin, sync::Arc, time::Duration};
use tokio_postgres::Client;

use crossfade_dualread::{
    Answer, DualReads, Failure, Feed, Flag, Order, POSTGRES_END, POSTGRES_REACHED, Places, Polled, Position, Rules,
    SELECT_FLAG, STEP_DOWN, Side, Subject, Why, place,
};

/// Where both sides are: the one that has the authority says where its history ends, the other one how far it has come.
pub(crate) struct TwoServers {
    pub(crate) old: Arc<Client>,
    pub(crate) new: Arc<Client>,
    pub(crate) migration: String,
}

impl TwoServers {
    fn client(&self, side: Side) -> &Client {
        match side {
            Side::Old => &self.old,
            Side::New => &self.new,
        }
    }
}

impl Places for TwoServers {
    async fn end(&self, authority: Side) -> Result<Position, Failure> {
        let doing = "asking where the history ends";
        let row = self.client(authority).query_one(POSTGRES_END, &[]).await;
        let row = row.map_err(|error| Failure::retry(doing, error))?;
        place(row.get(0)).map_err(|error| Failure::retry(doing, error))
    }

    async fn reached(&self, authority: Side) -> Result<Option<Position>, Failure> {
        let doing = "asking how far the other side has come";
        let row = self.client(authority.other()).query_opt(POSTGRES_REACHED, &[&self.migration]).await;
        let row = row.map_err(|error| Failure::retry(doing, error))?;
        let text: Option<String> = row.and_then(|row| row.get(0));
        text.map(|text| place(&text)).transpose().map_err(|error| Failure::retry(doing, error))
    }
}

/// The flag, looked at every second.
fn flag_of(database: Arc<Client>, migration: &'static str) -> impl Feed {
    Polled::new(Duration::from_secs(1), move || {
        let database = Arc::clone(&database);
        async move {
            let doing = "reading the flag of dual reads";
            let row = database.query_one(SELECT_FLAG, &[&migration]).await;
            let row = row.map_err(|error| Failure::retry(doing, error))?;
            Flag::of_row(row.get(0), row.get(1), row.get(2)).map_err(|error| Failure::retry(doing, error))
        }
    })
}

type Telling = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

/// Says in the database that this process has stepped down.
fn telling_of(database: Arc<Client>, migration: &'static str) -> impl FnMut(Flag, Why) -> Telling + Send {
    move |flag, why| {
        let database = Arc::clone(&database);
        Box::pin(async move {
            let ((budget, one, other), epoch) = (why.figures(), flag.epoch as i64);
            let told = database
                .execute(STEP_DOWN, &[&migration, &epoch, &flag.percent.to_string(), &budget, &one, &other])
                .await;
            told.map(drop).map_err(|error| Failure::retry("saying that dual reads have stepped down", error))
        })
    }
}

type Bought = (String, String);

/// The orders of a customer, from whichever side has the authority.
async fn orders(
    reads: &DualReads,
    (old, new): (Arc<Client>, Arc<Client>),
    tenant: &str,
    customer: i64,
) -> Result<Vec<Bought>, tokio_postgres::Error> {
    let rules = Rules { order: Order::Any, numbers: ["total"].into(), ..Rules::default() };
    let differ = rules.comparing(|orders: &Vec<Bought>| {
        orders.iter().fold(Answer::of(["number", "total"]), |answer, (number, total)| {
            answer.row([number.as_str().into(), total.as_str().into()])
        })
    });
    let from_old = move || {
        let old = Arc::clone(&old);
        async move {
            let sql = "SELECT number, total::text FROM orders WHERE customer = $1";
            let rows = old.query(sql, &[&customer]).await?;
            Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
        }
    };
    let from_new = move || {
        let new = Arc::clone(&new);
        async move {
            let sql = "SELECT o.number, o.total::text FROM orders o JOIN customers c ON c.id = o.customer_id WHERE c.old_id = $1";
            let rows = new.query(sql, &[&customer]).await?;
            Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
        }
    };
    reads.read_by(Subject::new(tenant, customer.to_be_bytes()), differ, from_old, from_new).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_page_shows_works() {
    let (Some(source), Some(target)) = (Postgres::shared(Version::V15), Postgres::shared_target(Version::V15)) else {
        return;
    };
    let (source, target) = (source.create_database("guide").await, target.create_database("guide").await);
    source
        .execute(
            "CREATE TABLE orders (number text PRIMARY KEY, customer bigint, total numeric); \
             INSERT INTO orders VALUES ('a', 1, 5.50), ('b', 1, 7), ('c', 2, 1)",
        )
        .await;
    target
        .execute(
            "CREATE TABLE customers (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), old_id bigint UNIQUE); \
             CREATE TABLE orders (number text PRIMARY KEY, customer_id uuid REFERENCES customers, total numeric(9,2)); \
             INSERT INTO customers (old_id) VALUES (1), (2); \
             INSERT INTO orders SELECT v.number, c.id, v.total FROM customers c, (VALUES ('b', 1, 7.00), ('a', 1, 5.5), ('c', 2, 1)) \
               v(number, customer, total) WHERE c.old_id = v.customer",
        )
        .await;
    let (old, new) = (Arc::new(source.connect().await), Arc::new(target.connect().await));
    // What `crossfade dual-reads` makes, as far as an application sees it; with `crossfade` itself: tests/journey, `reads`.
    old.batch_execute(
        "CREATE SCHEMA crossfade; CREATE TABLE crossfade.dual_reads (migration text, epoch bigint, authority text, percent text); \
         INSERT INTO crossfade.dual_reads VALUES ('shop', 1, 'old', '5%'); \
         CREATE TABLE told (percent text, budget text, one float8, other float8); \
         CREATE FUNCTION crossfade.step_down(text, bigint, text, text, float8, float8) RETURNS boolean LANGUAGE sql AS \
         'INSERT INTO told VALUES ($3, $4, $5, $6); SELECT true'",
    )
    .await
    .unwrap();

    let places = TwoServers { old: Arc::clone(&old), new: Arc::clone(&new), migration: "shop".to_owned() };
    let reads = DualReads::new(crossfade_dualread::Options::default(), Flag::START, places);
    let followed = reads.clone();
    let feed = flag_of(Arc::clone(&old), "shop");
    let following = tokio::spawn(async move { followed.follow(feed).await });
    let (stepping, told) = (reads.clone(), Arc::clone(&old));
    let telling = tokio::spawn(async move { stepping.tell_step_downs(telling_of(told, "shop")).await });
    crossfade_testkit::wait::wait_until("the flag of the table", async || reads.flag().epoch == 1).await;
    assert_eq!(reads.flag().percent.to_string(), "5%");

    old.batch_execute("UPDATE crossfade.dual_reads SET percent = '100%'").await.unwrap();
    crossfade_testkit::wait::wait_until("all to be compared", async || reads.flag().percent.value() == 100.0).await;
    let found = orders(&reads, (Arc::clone(&old), Arc::clone(&new)), "acme", 1).await.unwrap();
    assert_eq!(found, [("a".to_owned(), "5.50".to_owned()), ("b".to_owned(), "7".to_owned())]);
    reads.settled().await;
    assert_eq!(reads.snapshot().counts.matched, 1, "{:?}", reads.snapshot());

    // Wrong on the new side: once the budget is spent, it says so where the flag is.
    new.batch_execute("UPDATE orders SET total = 9").await.unwrap();
    new.batch_execute(
        "CREATE SCHEMA crossfade; CREATE TABLE crossfade.positions AS \
         SELECT 'shop'::text AS migration, 0 AS worker, '1/FFFFFFFFFFFF/end'::text AS source_position",
    )
    .await
    .unwrap();
    for _ in 0..100 {
        orders(&reads, (Arc::clone(&old), Arc::clone(&new)), "acme", 1).await.unwrap();
        reads.settled().await;
    }
    assert!(reads.stepped_down().is_some(), "{:?}", reads.snapshot());
    let told = "SELECT percent || ' ' || budget || ' ' || (one > 0 AND other >= one) FROM told";
    crossfade_testkit::wait::wait_until("what was told", async || {
        source.value(told).await.as_deref() == Some("100% mismatches true")
    })
    .await;
    following.abort();
    telling.abort();
}

fn page() -> String {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/guide/dual-reads.md");
    std::fs::read_to_string(page).unwrap()
}

#[test]
fn every_piece_of_rust_on_the_page_stands_in_this_file() {
    let own = include_str!("guide.rs");
    let page = page();
    let pieces: Vec<&str> = page.split("```rust\n").skip(1).map(|rest| rest.split("\n```").next().unwrap()).collect();
    assert!(pieces.len() >= 4, "only {} pieces of Rust were found on the page", pieces.len());
    let known: Vec<&str> = own.lines().map(str::trim).collect();
    for piece in pieces {
        let lines: Vec<&str> = piece.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let wanted = known.iter().filter(|line| !line.is_empty()).copied().collect::<Vec<_>>();
        let found = wanted.windows(lines.len()).any(|window| window == lines);
        assert!(found, "the page shows what is not run:\n{piece}");
    }
}
