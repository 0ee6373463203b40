//! The application: three writers that never stop while the migration runs.

use anyhow::{Context, Result, anyhow};
use rand::{Rng, SeedableRng, rngs::StdRng};
use rusqlite::{Connection, OptionalExtension, params};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::shop::{CUSTOMERS, ORDERS};

/// Running writers.
pub(super) struct Writers {
    stop: Arc<AtomicBool>,
    transactions: Arc<AtomicU64>,
    key_changes: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<Vec<i64>>>>,
}

impl Writers {
    pub(super) fn start(shop: &Path, count: u64) -> Result<Self> {
        let mut writers = Self {
            stop: Arc::new(AtomicBool::new(false)),
            transactions: Arc::new(AtomicU64::new(0)),
            key_changes: Arc::new(AtomicU64::new(0)),
            threads: Vec::new(),
        };
        for number in 0..count {
            let writer = Writer {
                shop: shop.to_owned(),
                number,
                stop: writers.stop.clone(),
                transactions: writers.transactions.clone(),
                key_changes: writers.key_changes.clone(),
            };
            let thread = std::thread::Builder::new().name(format!("writer-{number}")).spawn(move || writer.run())?;
            writers.threads.push(thread);
        }
        Ok(writers)
    }

    /// How many transactions they have committed.
    pub(super) fn transactions(&self) -> u64 {
        self.transactions.load(Ordering::Relaxed)
    }

    /// A writer that has ended by itself has failed: says how.
    pub(super) fn check(&mut self) -> Result<()> {
        match self.threads.iter().position(JoinHandle::is_finished) {
            None => Ok(()),
            Some(index) => match self.threads.swap_remove(index).join() {
                Ok(Ok(_)) => Err(anyhow!("a writer ended by itself")),
                Ok(Err(error)) => Err(error.context("a writer of the application failed")),
                Err(_) => Err(anyhow!("a writer panicked")),
            },
        }
    }

    /// Ends them. Gives the counts of transactions and key changes, and the orders that were updated last.
    pub(super) fn stop(mut self) -> Result<(u64, u64, BTreeSet<i64>)> {
        self.stop.store(true, Ordering::Relaxed);
        let mut touched = BTreeSet::new();
        for thread in self.threads.drain(..) {
            touched.extend(thread.join().map_err(|_| anyhow!("a writer panicked"))??);
        }
        Ok((self.transactions(), self.key_changes.load(Ordering::Relaxed), touched))
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

struct Writer {
    shop: PathBuf,
    number: u64,
    stop: Arc<AtomicBool>,
    transactions: Arc<AtomicU64>,
    key_changes: Arc<AtomicU64>,
}

impl Writer {
    fn run(self) -> Result<Vec<i64>> {
        let mut connection = Connection::open(&self.shop)?;
        connection.busy_timeout(Duration::from_secs(30))?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        let mut random = StdRng::seed_from_u64(self.number);
        let mut next_id = 1_000_000 * (self.number as i64 + 1);
        let mut updated: Vec<i64> = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let order = i64::from(random.random_range(1..=ORDERS));
            match random.random_range(0..10) {
                0..3 => {
                    next_id += 1;
                    insert(&transaction, next_id, &mut random)?;
                }
                3..7 => {
                    let amount = random.random_range(0..900).to_string();
                    let changed = transaction.execute(
                        "UPDATE orders SET status = 'changed', amount_text = ?2 WHERE id = ?1",
                        params![order, amount],
                    )?;
                    if changed == 1 {
                        updated.push(order);
                    }
                }
                7 => {
                    transaction.execute("DELETE FROM order_lines WHERE order_id = ?1", [order])?;
                    transaction.execute("DELETE FROM orders WHERE id = ?1", [order])?;
                }
                8 => {
                    next_id += 1;
                    transaction.execute_batch("PRAGMA defer_foreign_keys = ON")?;
                    transaction
                        .execute("UPDATE order_lines SET order_id = ?2 WHERE order_id = ?1", [order, next_id])?;
                    let moved = transaction.execute("UPDATE orders SET id = ?2 WHERE id = ?1", [order, next_id])?;
                    self.key_changes.fetch_add(moved as u64, Ordering::Relaxed);
                }
                _ => {
                    let customer = random.random_range(1..=CUSTOMERS);
                    transaction.execute(
                        "UPDATE customers SET balance = coalesce(balance, 0) + 0.1 WHERE id = ?1",
                        [customer],
                    )?;
                }
            }
            transaction.commit().context("a writer's commit")?;
            self.transactions.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_micros(random.random_range(500..4_000)));
        }
        let last: Vec<i64> = updated.into_iter().rev().take(20).collect();
        let mut alive = Vec::new();
        for id in last {
            let found: Option<i64> =
                connection.query_row("SELECT id FROM orders WHERE id = ?1", [id], |row| row.get(0)).optional()?;
            alive.extend(found);
        }
        Ok(alive)
    }
}

fn insert(connection: &Connection, id: i64, random: &mut StdRng) -> Result<()> {
    connection.execute(
        "INSERT INTO orders VALUES (?1, ?2, '2026-11-21', ?3, NULL, NULL)",
        params![id, random.random_range(1..=CUSTOMERS), random.random_range(0..900).to_string()],
    )?;
    for n in 0..2 {
        connection.execute("INSERT INTO order_lines VALUES (?1, ?2, 'sku-new', ?3)", params![id * 10 + n, id, n])?;
    }
    Ok(())
}
