//! A ledger in two SQLite files, and clerks who ask which of them they write: money moves between accounts, and each entry notes
//! on which side it was made. Whatever is lost, doubled or written to the wrong side shows. All keys are new on the new side.

use crate::desk::{Desk, sqlite};
use crossfade_testkit::{
    compare::{assert_same, sqlite_reader, sqlite_texts},
    wait::wait_for_blocking,
};
use rusqlite::{Connection, ErrorCode, TransactionBehavior, params};
use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

const ACCOUNTS: i64 = 300;
const OPENING: i64 = 1_000;

const TABLES: &str = "
CREATE TABLE accounts (id INTEGER PRIMARY KEY, code INTEGER NOT NULL UNIQUE, balance INTEGER NOT NULL);
CREATE TABLE entries (id INTEGER PRIMARY KEY AUTOINCREMENT, clerk INTEGER NOT NULL, number INTEGER NOT NULL,
  debtor INTEGER NOT NULL REFERENCES accounts(id), creditor INTEGER NOT NULL REFERENCES accounts(id), amount INTEGER NOT NULL,
  made_at TEXT NOT NULL, UNIQUE (clerk, number));
CREATE TABLE slips (slip TEXT PRIMARY KEY) WITHOUT ROWID;
";

/// What stands in the tables, without keys that differ by side.
const SHOWN: [&str; 3] = [
    "SELECT code, balance FROM accounts",
    "SELECT e.clerk, e.number, d.code, c.code, e.amount, e.made_at FROM entries e \
     JOIN accounts d ON d.id = e.debtor JOIN accounts c ON c.id = e.creditor",
    "SELECT slip FROM slips",
];

/// Both files, and a migration between them that may switch.
pub(crate) struct Ledger {
    pub(crate) desk: Desk,
    pub(crate) old: PathBuf,
    pub(crate) new: PathBuf,
}

impl Ledger {
    pub(crate) fn open(switch: &str) -> Self {
        Self::open_in("WAL", switch)
    }

    /// The same, where the old file has this journal mode.
    pub(crate) fn open_in(journal_mode: &str, switch: &str) -> Self {
        let desk = Desk::new();
        let (old, new) = (desk.path("old.db"), desk.path("new.db"));
        let connection = Connection::open(&old).unwrap();
        connection.pragma_update(None, "journal_mode", journal_mode).unwrap();
        connection
            .execute_batch(&format!(
                "BEGIN; {TABLES} INSERT INTO accounts SELECT value + 5, value, {OPENING} FROM generate(); COMMIT"
            )
            .replace("generate()", &format!("(WITH RECURSIVE n(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n WHERE value < {ACCOUNTS}) SELECT value FROM n)")))
            .unwrap();
        let rules = "[keys.default]\nmake = \"uuid-v5\"\nnamespace = \"6f1c1f0e-6f2b-4b57-9a34-0d5be4c7a001\"\n\
             [rekey]\ntables = [\"main.accounts\", \"main.entries\"]\nwith = \"default\"\n";
        desk.write_spec(
            &format!("{}\ntables = [\"main.*\"]", sqlite(&old)),
            &sqlite(&new),
            &format!("{rules}[switch]\n{switch}\n"),
        );
        Self { desk, old, new }
    }

    fn side(&self, side: usize) -> &PathBuf {
        [&self.old, &self.new][side]
    }

    /// Waits until both sides can be asked.
    pub(crate) fn flagged(&self) {
        wait_for_blocking("the flag table", || {
            let (old, new) = self.authority();
            (!old.is_empty() && !new.is_empty()).then_some(())
        });
    }

    /// Which side has the authority, by both rows.
    pub(crate) fn authority(&self) -> (String, String) {
        let word = |path: &PathBuf| {
            let sql = "SELECT side || ' ' || epoch FROM crossfade_side WHERE migration = ?1";
            sqlite_reader(path).query_row(sql, [&self.desk.name], |row| row.get(0)).unwrap_or_default()
        };
        (word(&self.old), word(&self.new))
    }

    /// Fails unless both sides hold the same, and the pairs of keys on the old side stand for the same rows.
    pub(crate) fn assert_same(&self) {
        let (old, new) = (sqlite_reader(&self.old), sqlite_reader(&self.new));
        for sql in SHOWN {
            assert_same(sql, &sqlite_texts(&old, sql), &sqlite_texts(&new, sql));
        }
    }

    /// Fails unless this side's keys are those that the pairs on record give: `pairs` is the table with them, in the file `of`.
    pub(crate) fn assert_same_keys(&self, of: usize, pairs: &str) {
        let (old, new) = (sqlite_reader(&self.old), sqlite_reader(&self.new));
        let (old_path, new_path) = (self.old.display(), self.new.display());
        let reader = [&old, &new][of];
        let other = [new_path.to_string(), old_path.to_string()];
        reader.execute("ATTACH ?1 AS other", [&other[of]]).unwrap();
        let (old_side, new_side) = if of == 0 { ("main", "other") } else { ("other", "main") };
        for (table, natural) in
            [("accounts", "o.code = n.code"), ("entries", "o.clerk = n.clerk AND o.number = n.number")]
        {
            let wrong: i64 = reader
                .query_row(
                    &format!(
                        "SELECT count(*) FROM {old_side}.{table} o LEFT JOIN {new_side}.{table} n ON {natural} \
                         LEFT JOIN {pairs} p ON p.table_name = 'main.{table}' AND p.old_id = CAST(o.id AS TEXT) \
                         WHERE p.new_id IS NULL OR p.new_id IS NOT n.id"
                    ),
                    [],
                    |row| row.get(0),
                )
                .unwrap();
            assert_eq!(wrong, 0, "rows of {table} whose keys are not those on record");
        }
    }

    /// Fails unless this side has exactly what the clerks know to be committed, after so many switches, every account adds up,
    /// and there was one writer at any time.
    pub(crate) fn assert_has_all(&self, side: usize, known: &Known, switches: usize) {
        let file = sqlite_reader(self.side(side));
        let wrong: i64 = file
            .query_row(
                &format!(
                    "SELECT count(*) FROM accounts a WHERE balance <> {OPENING} \
                     + (SELECT coalesce(sum(amount), 0) FROM entries WHERE creditor = a.id) \
                     - (SELECT coalesce(sum(amount), 0) FROM entries WHERE debtor = a.id)"
                ),
                [],
                |row| row.get(0),
            )
            .unwrap();
        assert_eq!(wrong, 0, "accounts that do not add up");
        let mut statement = file.prepare("SELECT clerk, number, made_at FROM entries").unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
        let there: Vec<(i64, i64, String)> = rows.collect::<Result<_, _>>().unwrap();
        let wanted: BTreeSet<_> = known.0.iter().map(|one| (one.clerk, one.number, made_at(one.side))).collect();
        let found: BTreeSet<_> = there.iter().map(|(clerk, number, side)| (*clerk, *number, side.as_str())).collect();
        assert_eq!(found.len(), there.len(), "an entry stands there twice");
        let lost: Vec<_> = wanted.difference(&found).collect();
        let unknown: Vec<_> = found.difference(&wanted).collect();
        assert!(lost.is_empty() && unknown.is_empty(), "lost: {lost:?}, known to nobody: {unknown:?}");
        let turns = known.turns();
        assert!(turns <= switches, "the sides were written in turns {turns} times, with {switches} switches");
    }
}

fn made_at(side: usize) -> &'static str {
    ["old", "new"][side]
}

/// What the clerks know to be committed.
#[derive(Default)]
pub(crate) struct Known(Vec<Commit>);

struct Commit {
    clerk: i64,
    number: i64,
    side: usize,
    /// When its transaction had the file's lock, and when it was committed.
    begun: Instant,
    ended: Instant,
}

impl Known {
    /// How often the clerks went from one side to the other, by what is certain of the order of their commits.
    fn turns(&self) -> usize {
        let (mut side, mut turns, mut after) = (0, 0, None::<Instant>);
        loop {
            let other = self.0.iter().filter(|one| one.side != side && after.is_none_or(|after| one.begun > after));
            match other.map(|one| one.ended).min() {
                None => return turns,
                Some(ended) => (side, turns, after) = (1 - side, turns + 1, Some(ended)),
            }
        }
    }
}

/// Clerks at work.
pub(crate) struct Clerks {
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    threads: Vec<JoinHandle<Vec<Commit>>>,
}

/// What the clerks have met.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) committed: AtomicU64,
    pub(crate) on: [AtomicU64; 2],
    /// Writes that the fence refused; the clerk went to the other side then.
    pub(crate) fenced: AtomicU64,
    last: Mutex<Option<(Instant, Duration)>>,
}

impl Counts {
    /// The longest time between two commits, over all clerks.
    pub(crate) fn longest_gap(&self) -> Duration {
        self.last.lock().unwrap().map(|last| last.1).unwrap_or_default()
    }

    fn commit(&self, side: usize) {
        self.committed.fetch_add(1, Relaxed);
        self.on[side].fetch_add(1, Relaxed);
        let (now, mut last) = (Instant::now(), self.last.lock().unwrap());
        let gap = last.map_or(Duration::ZERO, |(before, gap)| gap.max(now - before));
        *last = Some((now, gap));
    }
}

impl Clerks {
    /// So many who ask `crossfade_side` first, and so many who just write until they are told off.
    pub(crate) fn start(ledger: &Ledger, asking: i64, plain: i64) -> Self {
        Self::start_as(ledger, 0, asking, plain)
    }

    /// The same by others than those before: their numbers begin with `first`.
    pub(crate) fn start_as(ledger: &Ledger, first: i64, asking: i64, plain: i64) -> Self {
        let (stop, counts) = (Arc::new(AtomicBool::new(false)), Arc::new(Counts::default()));
        let threads = (0..asking + plain)
            .map(|index| {
                let number = first + index;
                let (stop, counts) = (Arc::clone(&stop), Arc::clone(&counts));
                let (files, name) = ([ledger.old.clone(), ledger.new.clone()], ledger.desk.name.clone());
                let clerk = Clerk { number, asks: index < asking, files, name, side: 0 };
                thread::spawn(move || clerk.work(&stop, &counts))
            })
            .collect();
        Self { stop, counts, threads }
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Waits until so many more entries are committed: whatever has happened, the clerks go on.
    pub(crate) fn wait_for_more(&self, entries: u64) {
        self.wait_for(&self.counts.committed, entries);
    }

    /// The same on one side.
    pub(crate) fn wait_for_more_on(&self, side: usize, entries: u64) {
        self.wait_for(&self.counts.on[side], entries);
    }

    fn wait_for(&self, count: &AtomicU64, entries: u64) {
        let goal = count.load(Relaxed) + entries;
        wait_for_blocking("the clerks to go on", || {
            assert!(self.threads.iter().all(|thread| !thread.is_finished()), "a clerk has ended");
            (count.load(Relaxed) >= goal).then_some(())
        });
    }

    /// Lets everybody finish; what each knows to be committed.
    pub(crate) fn stop(mut self) -> Known {
        self.stop.store(true, Relaxed);
        Known(self.threads.drain(..).flat_map(|thread| thread.join().unwrap()).collect())
    }
}

impl Drop for Clerks {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

struct Clerk {
    number: i64,
    asks: bool,
    files: [PathBuf; 2],
    name: String,
    side: usize,
}

/// What became of one try.
enum Tried {
    Committed(Instant),
    /// The other side is written now: it was asked, or the fence said so.
    NotHere,
    Busy,
}

impl Clerk {
    fn work(mut self, stop: &AtomicBool, counts: &Counts) -> Vec<Commit> {
        let mut files: [Option<Connection>; 2] = [None, None];
        let mut known = Vec::new();
        let mut number = 0;
        while !stop.load(Relaxed) {
            let file = files[self.side].get_or_insert_with(|| {
                let file = Connection::open(&self.files[self.side]).unwrap();
                file.busy_timeout(Duration::from_secs(60)).unwrap();
                file.pragma_update(None, "foreign_keys", true).unwrap();
                file
            });
            match self.enter(file, number + 1, counts) {
                Tried::Committed(begun) => {
                    number += 1;
                    let (clerk, side) = (self.number, self.side);
                    counts.commit(side);
                    known.push(Commit { clerk, number, side, begun, ended: Instant::now() });
                    thread::sleep(Duration::from_millis(3));
                }
                Tried::NotHere => self.side = 1 - self.side,
                Tried::Busy => {}
            }
        }
        known
    }

    fn enter(&self, file: &mut Connection, number: i64, counts: &Counts) -> Tried {
        match self.transaction(file, number) {
            Ok(tried) => tried,
            Err(error) if error.to_string().starts_with("crossfade: ") => {
                counts.fenced.fetch_add(1, Relaxed);
                Tried::NotHere
            }
            Err(error)
                if matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)) =>
            {
                Tried::Busy
            }
            Err(error) => panic!("clerk {}: {error}", self.number),
        }
    }

    fn transaction(&self, file: &mut Connection, number: i64) -> rusqlite::Result<Tried> {
        let transaction = file.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let begun = Instant::now();
        if self.asks {
            let sql = "SELECT side FROM crossfade_side WHERE migration = ?1";
            let side: String = transaction.query_row(sql, [&self.name], |row| row.get(0))?;
            if side != made_at(self.side) {
                return Ok(Tried::NotHere);
            }
        }
        let dice = self.number * 1_000_003 + number * 7_919;
        let (debtor, creditor) = (1 + dice % ACCOUNTS, 1 + (dice / 7) % ACCOUNTS);
        let amount = 1 + dice % 9;
        for (code, amount) in [(debtor, -amount), (creditor, amount)] {
            transaction.execute("UPDATE accounts SET balance = balance + ?2 WHERE code = ?1", params![code, amount])?;
        }
        // On the new side whoever writes gives the key.
        let id = [
            "NULL",
            "lower(printf('%s-%s-4%s-8%s-%s', hex(randomblob(4)), hex(randomblob(2)), substr(hex(randomblob(2)), 2), substr(hex(randomblob(2)), 2), hex(randomblob(6))))",
        ];
        transaction.execute(
            &format!(
                "INSERT INTO entries (id, clerk, number, debtor, creditor, amount, made_at) \
                 SELECT {}, ?1, ?2, (SELECT id FROM accounts WHERE code = ?3), \
                 (SELECT id FROM accounts WHERE code = ?4), ?5, ?6",
                id[self.side]
            ),
            params![self.number, number, debtor, creditor, amount, made_at(self.side)],
        )?;
        transaction.execute("INSERT INTO slips VALUES (?1)", [format!("{}-{number}", self.number)])?;
        transaction.execute("DELETE FROM slips WHERE slip = ?1", [format!("{}-{}", self.number, number - 3)])?;
        transaction.commit()?;
        Ok(Tried::Committed(begun))
    }
}
