//! Several writers at once, each a thread with its own connection, until they are told to stop.

use super::{Size, open_sqlite, statements::Statements};
use crate::{postgres, wait::wait_for_blocking};
use rusqlite::Connection;
use std::{
    ops::AddAssign,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// What writers did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Transactions of which the server said that they are in.
    pub committed: u64,
    /// Transactions that the writer rolled back, or that the server refused (deadlock, a key taken).
    pub rolled_back: u64,
    /// Transactions whose end nobody knows, for the connection was lost at the commit.
    pub unknown: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.committed += other.committed;
        self.rolled_back += other.rolled_back;
        self.unknown += other.unknown;
    }
}

/// Writers at work.
#[derive(Debug)]
pub struct Writers {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Tally>>,
}

/// What the threads share.
#[derive(Clone)]
struct Shift {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    /// Between two transactions of one writer; `None` for none.
    pause: Option<Duration>,
}

impl Writers {
    /// `count` writers over a shop made by [`super::create_postgres`]. They outlive restarts of the server. `per_second`
    /// bounds each writer's transactions.
    pub fn postgres(url: &str, count: usize, size: Size, seed: u64, per_second: Option<u32>) -> Self {
        let url = url.to_owned();
        Self::start(count, per_second, move |number, shift| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.unwrap_or_else(|error| panic!("no runtime for a writer: {error}"));
            runtime.block_on(write_postgres(&url, number, Statements::postgres(seed, number + 1, size), &shift))
        })
    }

    /// The same over a shop made by [`super::create_sqlite`].
    pub fn sqlite(path: &Path, count: usize, size: Size, seed: u64, per_second: Option<u32>) -> Self {
        let path: PathBuf = path.to_owned();
        Self::start(count, per_second, move |number, shift| {
            write_sqlite(&open_sqlite(&path), number, Statements::sqlite(seed, number + 1, size), &shift)
        })
    }

    fn start(
        count: usize,
        per_second: Option<u32>,
        work: impl Fn(usize, Shift) -> Tally + Clone + Send + 'static,
    ) -> Self {
        let pause = per_second.map(|rate| Duration::from_secs(1) / rate.max(1));
        let shift = Shift { stop: Arc::default(), committed: Arc::default(), pause };
        let threads = (0..count).map(|number| {
            let (work, shift) = (work.clone(), shift.clone());
            thread::spawn(move || work(number, shift))
        });
        Self { threads: threads.collect(), stop: shift.stop, committed: shift.committed }
    }

    /// How many transactions have been committed so far.
    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Waits until so many more transactions are committed.
    pub fn wait_for_more(&self, transactions: u64) {
        let goal = self.committed() + transactions;
        wait_for_blocking("live writers to commit", || {
            assert!(!self.threads.iter().any(JoinHandle::is_finished), "a writer has ended");
            (self.committed() >= goal).then_some(())
        });
    }

    /// Lets each finish its transaction, and sums up.
    ///
    /// # Panics
    /// When a writer did.
    pub fn stop(mut self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = Tally::default();
        for thread in self.threads.drain(..) {
            sum += thread.join().unwrap_or_else(|_| panic!("a writer panicked"));
        }
        sum
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shift {
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn note(&self, tally: &mut Tally, end: End) {
        match end {
            End::Committed => {
                tally.committed += 1;
                self.committed.fetch_add(1, Ordering::Relaxed);
            }
            End::RolledBack => tally.rolled_back += 1,
            End::Unknown => tally.unknown += 1,
        }
    }

    /// What is left of the pause after a transaction that began at `began`.
    fn rest(&self, began: Instant) -> Duration {
        self.pause.map_or(Duration::ZERO, |pause| pause.saturating_sub(began.elapsed()))
    }
}

enum End {
    Committed,
    RolledBack,
    Unknown,
}

async fn write_postgres(url: &str, number: usize, mut statements: Statements, shift: &Shift) -> Tally {
    let mut tally = Tally::default();
    let mut client = None;
    while !shift.is_over() {
        let Some(open) = client.take() else {
            client = postgres::connect(url).await.ok();
            match &client {
                Some(open) => begin_pulse_postgres(open, number).await,
                // The server is down for a moment.
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
            continue;
        };
        let began = Instant::now();
        let end = transact_postgres(&open, &mut statements).await;
        shift.note(&mut tally, end);
        if !open.is_closed() {
            client = Some(open);
        }
        tokio::time::sleep(shift.rest(began)).await;
    }
    tally
}

async fn begin_pulse_postgres(client: &tokio_postgres::Client, number: usize) {
    for table in ["pulse", "pulse_echo"] {
        let sql = format!("INSERT INTO {table} VALUES ({}, 0) ON CONFLICT DO NOTHING", number + 1);
        // A server that goes down just now is met again by the next transaction, which then counts nothing: the insert
        // is tried again with the next connection.
        let _ = client.batch_execute(&sql).await;
    }
}

async fn transact_postgres(client: &tokio_postgres::Client, statements: &mut Statements) -> End {
    let plan = statements.next_transaction();
    let mut sql = String::from("BEGIN");
    for statement in &plan.statements {
        sql.push(';');
        sql.push_str(statement);
    }
    if client.batch_execute(&sql).await.is_err() || !plan.commits {
        let _ = client.batch_execute("ROLLBACK").await;
        return End::RolledBack;
    }
    match client.batch_execute("COMMIT").await {
        Ok(()) => End::Committed,
        Err(error) if error.code().is_some_and(|code| !code.code().starts_with("57")) => End::RolledBack,
        Err(_) => End::Unknown,
    }
}

fn write_sqlite(connection: &Connection, number: usize, mut statements: Statements, shift: &Shift) -> Tally {
    let mut tally = Tally::default();
    for table in ["pulse", "pulse_echo"] {
        let sql = format!("INSERT INTO {table} VALUES ({}, 0) ON CONFLICT DO NOTHING", number + 1);
        connection.execute_batch(&sql).unwrap_or_else(|error| panic!("a writer cannot begin: {error}"));
    }
    while !shift.is_over() {
        let began = Instant::now();
        shift.note(&mut tally, transact_sqlite(connection, &mut statements));
        thread::sleep(shift.rest(began));
    }
    tally
}

fn transact_sqlite(connection: &Connection, statements: &mut Statements) -> End {
    let plan = statements.next_transaction();
    // At once for writing: a reader that turns writer while another writes is refused without waiting.
    let written = connection
        .execute_batch("BEGIN IMMEDIATE")
        .and_then(|()| plan.statements.iter().try_for_each(|statement| connection.execute_batch(statement)));
    if written.is_ok() && plan.commits && connection.execute_batch("COMMIT").is_ok() {
        return End::Committed;
    }
    let _ = connection.execute_batch("ROLLBACK");
    End::RolledBack
}
