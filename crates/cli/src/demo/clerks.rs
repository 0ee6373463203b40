//! The application of the demo's second half: clerks who ask, in each transaction, which of the two files they write.

use anyhow::{Context, Result, anyhow};
use rusqlite::{Connection, TransactionBehavior, params};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::shop::CUSTOMERS;

/// The migration's name, by which they ask.
const MIGRATION: &str = "shop";

/// A new key, as whoever writes the new side makes one.
const UUID: &str = "lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-8' || \
     substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6)))";

/// Running clerks.
pub(super) struct Clerks {
    stop: Arc<AtomicBool>,
    seen: Arc<Seen>,
    threads: Vec<JoinHandle<Result<Vec<String>>>>,
}

/// What they have met.
#[derive(Default)]
struct Seen {
    /// Commits on the old side, and on the new one.
    on: [AtomicU64; 2],
    /// The last commit, and the longest time between two.
    last: Mutex<Option<(Instant, Duration)>>,
}

impl Seen {
    fn commit(&self, side: usize) {
        if let Some(on) = self.on.get(side) {
            on.fetch_add(1, Ordering::Relaxed);
        }
        let (now, mut last) = (Instant::now(), self.last.lock().unwrap_or_else(PoisonError::into_inner));
        let gap = last.map_or(Duration::ZERO, |(before, gap)| gap.max(now - before));
        *last = Some((now, gap));
    }
}

impl Clerks {
    pub(super) fn start(old: &Path, new: &Path, count: usize) -> Result<Self> {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Seen::default()));
        let mut clerks = Self { stop, seen, threads: Vec::new() };
        for number in 0..count {
            let (stop, seen) = (clerks.stop.clone(), clerks.seen.clone());
            let clerk = Clerk { number, files: [old.to_owned(), new.to_owned()], side: 0 };
            let thread =
                std::thread::Builder::new().name(format!("clerk-{number}")).spawn(move || clerk.work(&stop, &seen))?;
            clerks.threads.push(thread);
        }
        Ok(clerks)
    }

    /// Commits on the old side, or on the new one.
    pub(super) fn on(&self, side: usize) -> u64 {
        self.seen.on.get(side).map_or(0, |on| on.load(Ordering::Relaxed))
    }

    /// The longest time between two commits since it was asked the last time.
    pub(super) fn longest_gap(&self) -> Duration {
        let mut last = self.seen.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_mut().map(|last| std::mem::take(&mut last.1)).unwrap_or_default()
    }

    /// One that has ended by itself has failed: says how.
    pub(super) fn check(&mut self) -> Result<()> {
        match self.threads.iter().position(JoinHandle::is_finished) {
            None => Ok(()),
            Some(index) => match self.threads.swap_remove(index).join() {
                Ok(Ok(_)) => Err(anyhow!("a clerk ended by itself")),
                Ok(Err(error)) => Err(error.context("a clerk of the application failed")),
                Err(_) => Err(anyhow!("a clerk panicked")),
            },
        }
    }

    /// Ends them. Gives the marks of all orders that they know to be committed.
    pub(super) fn stop(mut self) -> Result<Vec<String>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut marks = Vec::new();
        for thread in self.threads.drain(..) {
            marks.extend(thread.join().map_err(|_| anyhow!("a clerk panicked"))??);
        }
        Ok(marks)
    }
}

impl Drop for Clerks {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

struct Clerk {
    number: usize,
    files: [PathBuf; 2],
    side: usize,
}

impl Clerk {
    fn work(mut self, stop: &AtomicBool, seen: &Seen) -> Result<Vec<String>> {
        let open = |path: &PathBuf| -> Result<Connection> {
            let file = Connection::open(path)?;
            file.busy_timeout(Duration::from_secs(30))?;
            file.pragma_update(None, "synchronous", "NORMAL")?;
            Ok(file)
        };
        let [old, new] = &self.files;
        let mut files = [open(old)?, open(new)?];
        let mut marks = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let Some(file) = files.get_mut(self.side) else { break };
            let mark = format!("clerk-{}-{}", self.number, marks.len());
            match self.order(file, &mark, marks.len()).context("an order of a clerk")? {
                true => {
                    seen.commit(self.side);
                    marks.push(mark);
                    std::thread::sleep(Duration::from_millis(6));
                }
                false => self.side = 1 - self.side,
            }
        }
        Ok(marks)
    }

    /// Writes one order. False where the other side is the one that is written.
    fn order(&self, file: &mut Connection, mark: &str, number: usize) -> Result<bool> {
        // The transaction has the file's lock, so what it is told holds until it commits.
        let transaction = file.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let side: String =
            transaction
                .query_row("SELECT side FROM crossfade_side WHERE migration = ?1", [MIGRATION], |row| row.get(0))?;
        if Some(&side.as_str()) != ["old", "new"].get(self.side) {
            return Ok(false);
        }
        let customer = format!("c{}@example.org", (number * 7 + self.number) % CUSTOMERS as usize + 1);
        let sql = match self.side {
            0 => "INSERT INTO orders (customer_id, placed, amount_text, status) \
                  SELECT id, '2026-11-22', CAST(?2 AS TEXT), ?3 FROM customers WHERE email = ?1"
                .to_owned(),
            _ => format!(
                "INSERT INTO orders (id, customer_id, placed_on, amount, status) \
                 SELECT {UUID}, id, '2026-11-22', ?2, ?3 FROM customers WHERE email = ?1"
            ),
        };
        transaction.prepare_cached(&sql)?.execute(params![customer, (number % 900) as i64, mark])?;
        transaction
            .prepare_cached("UPDATE customers SET balance = coalesce(balance, 0) + 1 WHERE email = ?1")?
            .execute([customer])?;
        transaction.commit()?;
        Ok(true)
    }
}
