//! What a reader of the target may see: only states that the source had, never an older one after a newer one.
//!
//! Every transaction of the shop's writers counts up two counters, in two tables (see [`crate::shop`]). A reader that
//! takes both in one snapshot sees a torn transaction when they differ, a step back in time when one falls, and at the
//! end a transaction lost or applied twice when they are not what the writers know of.

use crate::{postgres, shop::Tally};
use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// What must not happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// A reader saw a part of a transaction.
    Torn {
        /// Whose transaction.
        writer: i32,
        /// The first counter.
        beat: i64,
        /// The second one.
        echo: i64,
    },
    /// A reader saw an older state after a newer one.
    Backwards {
        /// Whose transactions.
        writer: i32,
        /// Seen before.
        before: i64,
        /// Seen after.
        after: i64,
    },
    /// The end does not hold as many transactions as were committed.
    Count {
        /// In the database.
        found: i64,
        /// Committed for certain.
        least: i64,
        /// Those whose end nobody knows included.
        most: i64,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Torn { writer, beat, echo } => {
                write!(
                    f,
                    "a reader saw a part of a transaction of writer {writer}: {beat} in pulse, {echo} in pulse_echo"
                )
            }
            Self::Backwards { writer, before, after } => {
                write!(f, "a reader saw {after} transactions of writer {writer} after it had seen {before}")
            }
            Self::Count { found, least, most } => {
                write!(f, "{found} transactions are in, but from {least} to {most} were committed")
            }
        }
    }
}

/// One reading: for each writer both counters, taken in one snapshot. A counter whose row is not there yet is zero.
pub type Reading = BTreeMap<i32, (i64, i64)>;

/// What has been seen so far.
#[derive(Debug, Clone, Default)]
pub struct History {
    last: BTreeMap<i32, i64>,
    readings: u64,
    distinct: u64,
}

impl History {
    /// Takes a reading in.
    ///
    /// # Errors
    /// What it violates.
    pub fn observe(&mut self, reading: &Reading) -> Result<(), Violation> {
        self.readings += 1;
        let mut new = false;
        for (&writer, &(beat, echo)) in reading {
            if beat != echo {
                return Err(Violation::Torn { writer, beat, echo });
            }
            let before = self.last.insert(writer, beat).unwrap_or_default();
            if beat < before {
                return Err(Violation::Backwards { writer, before, after: beat });
            }
            new |= beat > before;
        }
        self.distinct += u64::from(new);
        for (&writer, &before) in &self.last {
            if before > 0 && !reading.contains_key(&writer) {
                return Err(Violation::Backwards { writer, before, after: 0 });
            }
        }
        Ok(())
    }

    /// How many readings showed something new: an observer that saw nothing move proves nothing.
    pub fn distinct(&self) -> u64 {
        self.distinct
    }
}

/// Holds the sum of all counters at the end against what the writers know.
///
/// # Errors
/// When a committed transaction is missing, or one is in twice.
pub fn check_count(last: &Reading, tally: Tally) -> Result<(), Violation> {
    let found = last.values().map(|(beat, _)| beat).sum();
    let least = tally.committed as i64;
    let most = least + tally.unknown as i64;
    if (least..=most).contains(&found) { Ok(()) } else { Err(Violation::Count { found, least, most }) }
}

fn merge(rows: impl IntoIterator<Item = (i32, bool, i64)>) -> Reading {
    let mut reading = Reading::new();
    for (writer, is_echo, beat) in rows {
        let entry = reading.entry(writer).or_default();
        *(if is_echo { &mut entry.1 } else { &mut entry.0 }) = beat;
    }
    reading
}

fn query(schema: &str) -> String {
    let schema = if schema.is_empty() { String::new() } else { format!("{schema}.") };
    format!("SELECT writer, false, beat FROM {schema}pulse UNION ALL SELECT writer, true, beat FROM {schema}pulse_echo")
}

/// One reading from PostgreSQL; `schema` holds the counters. One statement is one snapshot.
///
/// # Errors
/// The server's.
pub async fn read_postgres(client: &tokio_postgres::Client, schema: &str) -> Result<Reading, tokio_postgres::Error> {
    let rows = client.query(&query(schema), &[]).await?;
    Ok(merge(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2)))))
}

/// One reading from SQLite.
///
/// # Errors
/// SQLite's.
pub fn read_sqlite(connection: &rusqlite::Connection) -> rusqlite::Result<Reading> {
    let mut statement = connection.prepare_cached(&query(""))?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    rows.collect::<rusqlite::Result<Vec<_>>>().map(merge)
}

/// Reads the target again and again until it is stopped. A target that is not there (yet, or for a moment) is asked
/// again.
#[derive(Debug)]
pub struct Observer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<History, Violation>>>,
}

impl Observer {
    /// Over PostgreSQL.
    pub fn postgres(url: &str, schema: &str) -> Self {
        let (url, schema) = (url.to_owned(), schema.to_owned());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.unwrap_or_else(|error| panic!("no runtime for an observer: {error}"));
        let mut client = None;
        Self::start(move || {
            runtime.block_on(async {
                if client.as_ref().is_none_or(tokio_postgres::Client::is_closed) {
                    client = postgres::connect(&url).await.ok();
                }
                read_postgres(client.as_ref()?, &schema).await.ok()
            })
        })
    }

    /// Over SQLite.
    pub fn sqlite(path: &Path) -> Self {
        let path: PathBuf = path.to_owned();
        let mut connection = None;
        Self::start(move || {
            if connection.is_none() {
                connection = path.exists().then(|| crate::compare::sqlite_reader(&path));
            }
            read_sqlite(connection.as_ref()?).ok()
        })
    }

    fn start(mut read: impl FnMut() -> Option<Reading> + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut history = History::default();
            while !stopped.load(Ordering::Relaxed) {
                if let Some(reading) = read() {
                    history.observe(&reading)?;
                }
                thread::sleep(Duration::from_millis(3));
            }
            Ok(history)
        });
        Self { stop, thread: Some(thread) }
    }

    /// Stops reading.
    ///
    /// # Errors
    /// The first thing seen that must not happen.
    ///
    /// # Panics
    /// When the observer did.
    pub fn stop(mut self) -> Result<History, Violation> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take();
        thread.map_or_else(
            || Ok(History::default()),
            |thread| thread.join().unwrap_or_else(|_| panic!("an observer panicked")),
        )
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        compare, seeded,
        shop::{self, Size, Writers},
    };

    fn reading(counters: &[(i32, i64, i64)]) -> Reading {
        counters.iter().map(|&(writer, beat, echo)| (writer, (beat, echo))).collect()
    }

    #[test]
    fn a_torn_a_stale_and_a_vanished_reading_are_found() {
        let seen = |readings: &[&[(i32, i64, i64)]]| {
            let mut history = History::default();
            readings.iter().try_for_each(|counters| history.observe(&reading(counters)))
        };
        assert_eq!(seen(&[&[(1, 1, 1)], &[(1, 1, 1), (2, 5, 5)], &[(1, 3, 3), (2, 5, 5)]]), Ok(()));
        assert_eq!(seen(&[&[(1, 2, 1)]]), Err(Violation::Torn { writer: 1, beat: 2, echo: 1 }));
        let back = Err(Violation::Backwards { writer: 1, before: 2, after: 1 });
        assert_eq!(seen(&[&[(1, 2, 2)], &[(1, 1, 1)]]), back);
        let gone = Err(Violation::Backwards { writer: 1, before: 2, after: 0 });
        assert_eq!(seen(&[&[(1, 2, 2)], &[]]), gone);
    }

    #[test]
    fn a_lost_and_a_doubled_transaction_are_found() {
        let tally = Tally { committed: 10, rolled_back: 3, unknown: 1 };
        for (found, right) in [(9, false), (10, true), (11, true), (12, false)] {
            assert_eq!(check_count(&reading(&[(1, found - 4, 0), (2, 4, 0)]), tally).is_ok(), right, "{found}");
        }
    }

    #[test]
    fn writers_of_sqlite_commit_what_they_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shop.db");
        let (seed, size) = (seeded::seed("sqlite writers"), Size::default());
        shop::create_sqlite(&path, size, seed);
        let observer = Observer::sqlite(&path);
        let writers = Writers::sqlite(&path, 3, size, seed, None);
        writers.wait_for_more(400);
        let tally = writers.stop();
        let history = observer.stop().unwrap_or_else(|violation| panic!("{violation}"));
        assert!(history.distinct() > 1);
        assert!(tally.rolled_back < tally.committed, "{tally:?}");
        let connection = compare::sqlite_reader(&path);
        check_count(&read_sqlite(&connection).unwrap(), tally).unwrap_or_else(|violation| panic!("{violation}"));
        let kept = compare::sqlite_rows(&connection, "SELECT count(*) FROM customers WHERE id > 1000000000");
        assert!(kept.iter().all(|row| row != &[Some("integer 0".to_owned())]), "writers must write");
    }

    #[tokio::test]
    async fn writers_of_postgres_commit_what_they_count_through_a_crash() {
        use crate::postgres::{Postgres, Settings, Version};
        // Each commit that was acknowledged must outlive the crash, so the server keeps its promise even here.
        let Some(server) = Postgres::start(Version::V17, Settings::new().fsync()) else { return };
        let database = server.create_database("shop").await;
        let (seed, size) = (seeded::seed("postgres writers"), Size::default());
        shop::create_postgres(&database, size, seed).await;
        let observer = Observer::postgres(&database.url, "public");
        let writers = Writers::postgres(&database.url, 3, size, seed, None);
        writers.wait_for_more(100);
        server.kill();
        server.start_again();
        writers.wait_for_more(100);
        let tally = writers.stop();
        observer.stop().unwrap_or_else(|violation| panic!("{violation}"));
        assert!(tally.rolled_back < tally.committed, "{tally:?}");
        let reading = read_postgres(&database.connect().await, "public").await.unwrap();
        check_count(&reading, tally).unwrap_or_else(|violation| panic!("{violation}"));
    }
}
