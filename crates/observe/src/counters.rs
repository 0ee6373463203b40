//! What was counted. Written by the loops without a lock on the way, read by whoever shows it.

use crossfade_event::TableName;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed},
    },
};

/// Counters of one run. Cheap to clone; all clones count together.
#[derive(Debug, Clone, Default)]
pub struct Counters(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    read: AtomicU64,
    applied: AtomicU64,
    filtered: AtomicU64,
    quarantined: AtomicU64,
    pending: AtomicI64,
    bytes: AtomicU64,
    commits: AtomicU64,
    lookup_misses: AtomicU64,
    made: AtomicU64,
    tables: RwLock<BTreeMap<TableName, Arc<Table>>>,
}

#[derive(Debug, Default)]
struct Table {
    rows_estimate: AtomicU64,
    rows_copied: AtomicU64,
    rows_loaded: AtomicU64,
    changes: AtomicU64,
    chunks: AtomicU64,
    chunks_done: AtomicU64,
    copied: AtomicBool,
    loaded: AtomicBool,
}

/// A delivery that was committed; everything counted in the source's changes and rows, not in what became of them.
#[derive(Debug, Clone, Default)]
pub struct Committed {
    /// Whether these were rows of a backfill; else changes of the stream.
    pub loading: bool,
    /// Read from the log.
    pub read: u64,
    /// In the sink.
    pub applied: u64,
    /// Left out by the spec's filters, or seen by a snapshot already.
    pub filtered: u64,
    /// In quarantine: rejected or held.
    pub quarantined: u64,
    /// Lookups that found no row.
    pub lookup_misses: u64,
    /// Those that workers had transformed already.
    pub made: u64,
    /// How many of each table.
    pub tables: Vec<(TableName, u64)>,
}

impl Counters {
    /// All zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Changes and rows that were in the log but not in the sink when this run began.
    pub fn backlog(&self, changes: u64) {
        self.0.read.fetch_add(changes, Relaxed);
        self.0.pending.fetch_add(signed(changes), Relaxed);
    }

    /// Changes and rows became durable in the log; `rows` are those of a backfill, by table, and part of `changes`.
    pub fn ingested<'a>(&self, changes: u64, bytes: u64, rows: impl IntoIterator<Item = (&'a TableName, u64)>) {
        self.0.read.fetch_add(changes, Relaxed);
        self.0.pending.fetch_add(signed(changes), Relaxed);
        self.0.bytes.fetch_add(bytes, Relaxed);
        for (table, count) in rows {
            self.table(table).rows_copied.fetch_add(count, Relaxed);
        }
    }

    /// A delivery was committed.
    pub fn committed(&self, what: &Committed) {
        self.0.pending.fetch_sub(signed(what.read), Relaxed);
        self.0.applied.fetch_add(what.applied, Relaxed);
        self.0.filtered.fetch_add(what.filtered, Relaxed);
        self.0.quarantined.fetch_add(what.quarantined, Relaxed);
        self.0.commits.fetch_add(1, Relaxed);
        self.0.lookup_misses.fetch_add(what.lookup_misses, Relaxed);
        self.0.made.fetch_add(what.made, Relaxed);
        for (table, count) in &what.tables {
            let table = self.table(table);
            let counter = if what.loading { &table.rows_loaded } else { &table.changes };
            counter.fetch_add(*count, Relaxed);
        }
    }

    /// About how many rows a table has.
    pub fn estimate(&self, table: &TableName, rows: u64) {
        self.table(table).rows_estimate.store(rows, Relaxed);
    }

    /// A table's copy as earlier runs left it: its chunks, those that are in the log, and whether all are.
    pub fn chunks(&self, table: &TableName, total: u64, done: u64, ended: bool) {
        let table = self.table(table);
        table.chunks.store(total, Relaxed);
        table.chunks_done.store(done, Relaxed);
        table.copied.store(ended, Relaxed);
    }

    /// A table's copy begins, or begins again: its counts begin anew.
    pub fn copy_began(&self, table: &TableName, chunks: u64) {
        let table = self.table(table);
        for counter in [&table.rows_copied, &table.rows_loaded, &table.chunks_done] {
            counter.store(0, Relaxed);
        }
        table.chunks.store(chunks, Relaxed);
        table.copied.store(false, Relaxed);
        table.loaded.store(false, Relaxed);
    }

    /// One more chunk of a table is wholly in the log.
    pub fn chunk_ended(&self, table: &TableName) {
        self.table(table).chunks_done.fetch_add(1, Relaxed);
    }

    /// A table's copy is wholly in the log.
    pub fn copied(&self, table: &TableName) {
        self.table(table).copied.store(true, Relaxed);
    }

    /// A backfill is wholly in the sink: all tables, or only these.
    pub fn loaded<'a>(&self, tables: impl IntoIterator<Item = &'a TableName>) {
        for table in tables {
            let table = self.table(table);
            table.copied.store(true, Relaxed);
            table.loaded.store(true, Relaxed);
        }
    }

    /// Everything as it stands.
    pub fn totals(&self) -> Totals {
        let tables = self.0.tables.read().unwrap_or_else(PoisonError::into_inner);
        let table = |(name, table): (&TableName, &Arc<Table>)| TableTotals {
            table: name.clone(),
            rows_estimate: table.rows_estimate.load(Relaxed),
            rows_copied: table.rows_copied.load(Relaxed),
            rows_loaded: table.rows_loaded.load(Relaxed),
            changes: table.changes.load(Relaxed),
            chunks: table.chunks.load(Relaxed),
            chunks_done: table.chunks_done.load(Relaxed),
            copied: table.copied.load(Relaxed),
            loaded: table.loaded.load(Relaxed),
        };
        Totals {
            conservation: Conservation {
                read: self.0.read.load(Relaxed),
                applied: self.0.applied.load(Relaxed),
                filtered: self.0.filtered.load(Relaxed),
                quarantined: self.0.quarantined.load(Relaxed),
                pending: self.0.pending.load(Relaxed),
            },
            bytes: self.0.bytes.load(Relaxed),
            commits: self.0.commits.load(Relaxed),
            lookup_misses: self.0.lookup_misses.load(Relaxed),
            made: self.0.made.load(Relaxed),
            tables: tables.iter().map(table).collect(),
        }
    }

    fn table(&self, name: &TableName) -> Arc<Table> {
        let known = self.0.tables.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        known.unwrap_or_else(|| self.write_tables().entry(name.clone()).or_default().clone())
    }

    fn write_tables(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<TableName, Arc<Table>>> {
        self.0.tables.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// The conservation line: nothing is dropped. `pending` is counted by itself (in at the log, out at the sink's
/// commit), so that a change which went in and came out nowhere shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Conservation {
    /// Changes and rows in the log that were not in the sink when this run began, and all that came since.
    pub read: u64,
    /// In the sink.
    pub applied: u64,
    /// Left out by the spec's filters, or seen by a snapshot already.
    pub filtered: u64,
    /// In quarantine.
    pub quarantined: u64,
    /// In the log, not yet in the sink.
    pub pending: i64,
}

impl Conservation {
    /// What is missing (or too much, when negative): zero at all times.
    pub fn missing(&self) -> i128 {
        let accounted = i128::from(self.applied) + i128::from(self.filtered) + i128::from(self.quarantined);
        i128::from(self.read) - accounted - i128::from(self.pending)
    }

    /// Whether nothing is missing and nothing too much.
    pub fn holds(&self) -> bool {
        self.missing() == 0 && self.pending >= 0
    }
}

/// All counters at one moment (but for a count or two that came while they were read).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Totals {
    /// The conservation line.
    pub conservation: Conservation,
    /// Bytes that went into the log in this run.
    pub bytes: u64,
    /// The sink's commits in this run.
    pub commits: u64,
    /// Lookups that found no row, in this run.
    pub lookup_misses: u64,
    /// Changes and rows that workers had transformed already.
    pub made: u64,
    /// Table by table, sorted by name.
    pub tables: Vec<TableTotals>,
}

/// One table's counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableTotals {
    /// Which.
    pub table: TableName,
    /// About how many rows it has.
    pub rows_estimate: u64,
    /// Rows of its copy that are in the log.
    pub rows_copied: u64,
    /// Rows of its copy that are in the sink.
    pub rows_loaded: u64,
    /// Changes of the stream that were delivered.
    pub changes: u64,
    /// Chunks as planned.
    pub chunks: u64,
    /// Chunks that are in the log.
    pub chunks_done: u64,
    /// Whether the whole copy is in the log.
    pub copied: bool,
    /// Whether the whole copy is in the sink.
    pub loaded: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn what_went_in_is_accounted_for_and_what_vanished_shows() {
        let counters = Counters::new();
        counters.backlog(5);
        counters.ingested(10, 1_000, []);
        let commit = |read, applied, filtered, quarantined| {
            counters.committed(&Committed { read, applied, filtered, quarantined, ..Committed::default() });
        };
        commit(8, 5, 2, 1);
        let line = counters.totals().conservation;
        assert_eq!(line, Conservation { read: 15, applied: 5, filtered: 2, quarantined: 1, pending: 7 });
        assert!(line.holds());
        commit(3, 2, 0, 0);
        assert_eq!(counters.totals().conservation.missing(), 1, "one change went in and came out nowhere");
        assert!(!counters.totals().conservation.holds());
    }

    #[test]
    fn more_out_than_in_does_not_hold() {
        let counters = Counters::new();
        counters.ingested(1, 0, []);
        counters.committed(&Committed { read: 2, applied: 2, ..Committed::default() });
        assert!(!counters.totals().conservation.holds());
    }

    #[test]
    fn counts_of_many_threads_add_up_table_by_table() {
        let counters = Counters::new();
        let names = [TableName::new("public", "a"), TableName::new("public", "b")];
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in 0..1_000 {
                        let table = &names[n % 2];
                        counters.ingested(2, 10, [(table, 2)]);
                        let tables = vec![(table.clone(), 2)];
                        counters.committed(&Committed {
                            loading: true,
                            read: 2,
                            applied: 2,
                            tables,
                            ..Committed::default()
                        });
                    }
                });
            }
        });
        let totals = counters.totals();
        assert!(totals.conservation.holds());
        assert_eq!((totals.conservation.read, totals.bytes, totals.commits), (8_000, 40_000, 4_000));
        let per_table: Vec<_> = totals.tables.iter().map(|table| (table.rows_copied, table.rows_loaded)).collect();
        assert_eq!(per_table, [(4_000, 4_000), (4_000, 4_000)]);
    }

    #[test]
    fn a_copy_counts_its_chunks_and_begins_anew_when_it_must() {
        let (counters, table) = (Counters::new(), TableName::new("public", "a"));
        let chunks = |counters: &Counters| {
            let totals = counters.totals();
            let table = &totals.tables[0];
            (table.chunks, table.chunks_done, table.rows_copied, table.copied, table.loaded)
        };
        counters.copy_began(&table, 2);
        counters.ingested(5, 50, [(&table, 5)]);
        counters.chunk_ended(&table);
        assert_eq!(chunks(&counters), (2, 1, 5, false, false));
        counters.chunk_ended(&table);
        counters.copied(&table);
        counters.loaded([&table]);
        assert_eq!(chunks(&counters), (2, 2, 5, true, true));
        counters.copy_began(&table, 3);
        assert_eq!(chunks(&counters), (3, 0, 0, false, false));
        // Another run, which finds one chunk of three in the log.
        let later = Counters::new();
        later.chunks(&table, 3, 1, false);
        later.chunk_ended(&table);
        assert_eq!(chunks(&later), (3, 2, 0, false, false));
    }
}
