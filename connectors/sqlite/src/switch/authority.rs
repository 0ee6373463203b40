//! `_crossfade_authority`: which side the writers of a migration belong to. One row for each unit, in both files; the one that
//! counts is that of the side which has the authority.
//!
//! Applications read it as `crossfade_side`, first thing after `BEGIN IMMEDIATE`: they have the file's one lock then, so what
//! they read holds until they commit, and whoever asks meets no error at all.

use super::{Asked, SwitchEnd, fence};
use crate::client::{exists, failure};
use crossfade_connector::{Failure, switch::Written};
use crossfade_event::Side;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, TransactionBehavior, params};
use std::time::{Duration, Instant};

/// The one unit of this version.
const UNIT: &str = "all";

/// What applications ask.
pub(crate) const VIEW: &str = "crossfade_side";

const TABLE: &str = "_crossfade_authority";
const PASS: &str = "_crossfade_pass";

const MAKE: &str = "
CREATE TABLE IF NOT EXISTS _crossfade_authority (
  migration TEXT NOT NULL, unit TEXT NOT NULL, here TEXT NOT NULL CHECK (here IN ('old', 'new')),
  side TEXT NOT NULL CHECK (side IN ('old', 'new')), epoch INTEGER NOT NULL, since REAL NOT NULL,
  settled INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (migration, unit)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS _crossfade_pass (migration TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE VIEW IF NOT EXISTS crossfade_side AS SELECT migration, unit, here, side, epoch FROM _crossfade_authority;
";

/// The time in seconds since 1970, as SQLite has it.
const NOW: &str = "(julianday('now') - 2440587.5) * 86400.0";

/// Whether the file has what lets a stream through its fence.
pub(crate) fn has_pass(connection: &Connection) -> rusqlite::Result<bool> {
    exists(connection, "table", PASS)
}

/// Lets the open transaction through the fence of a migration, or ends that: the row must be gone before the commit, so nobody
/// else ever sees it.
pub(crate) fn pass(connection: &Connection, migration: &str, through: bool) -> rusqlite::Result<()> {
    let sql = match through {
        true => "INSERT OR IGNORE INTO _crossfade_pass VALUES (?1)",
        false => "DELETE FROM _crossfade_pass WHERE migration = ?1",
    };
    connection.prepare_cached(sql)?.execute([migration]).map(drop)
}

/// The one conditional write. False where it does not apply.
pub(super) fn give(connection: &Connection, asked: &Asked, epoch: u64) -> rusqlite::Result<bool> {
    let sql = format!(
        "UPDATE _crossfade_authority SET side = ?1, epoch = ?2, since = {NOW} \
         WHERE migration = ?3 AND unit = '{UNIT}' AND side = ?4 AND epoch = ?5"
    );
    let to = asked.here.other().to_string();
    let values = params![to, epoch as i64 + 1, asked.migration, asked.here.to_string(), epoch as i64];
    Ok(connection.execute(&sql, values)? == 1)
}

/// The row as the other side has it, never back to a lower epoch; where it names this side, the fence goes.
pub(super) fn follow(connection: &Connection, asked: &Asked, written: Written) -> rusqlite::Result<()> {
    let sql = format!(
        "UPDATE _crossfade_authority SET side = ?1, epoch = ?2, since = {NOW} \
         WHERE migration = ?3 AND unit = '{UNIT}' AND epoch < ?2"
    );
    connection.execute(&sql, params![written.side.to_string(), written.epoch as i64, asked.migration])?;
    if read(connection, asked)? == Some((asked.here.to_string(), written.epoch as i64)) {
        fence::down(connection, &asked.migration)?;
    }
    Ok(())
}

fn read(connection: &Connection, asked: &Asked) -> rusqlite::Result<Option<(String, i64)>> {
    if !exists(connection, "table", TABLE)? {
        return Ok(None);
    }
    let sql = format!("SELECT side, epoch FROM _crossfade_authority WHERE migration = ?1 AND unit = '{UNIT}'");
    connection.query_row(&sql, [&asked.migration], |row| Ok((row.get(0)?, row.get(1)?))).optional()
}

fn written(connection: &Connection, asked: &Asked) -> Result<Option<Written>, Failure> {
    let doing = "reading _crossfade_authority";
    let Some((side, epoch)) = read(connection, asked).map_err(|error| failure(doing, error))? else { return Ok(None) };
    let damaged = |cause: String| {
        Failure::lost(doing, cause, "Somebody else has written the row: put it back as `crossfade status` says")
    };
    let side = side.parse().map_err(|error| damaged(format!("{error}")))?;
    let epoch = u64::try_from(epoch).map_err(|error| damaged(error.to_string()))?;
    Ok(Some(Written { side, epoch }))
}

/// How long a commit may wait for readers, where the journal is no WAL: for as long new readers wait, too.
const ONE_COMMIT: Duration = Duration::from_millis(50);
/// And how long everybody has the file before it is tried again.
const BETWEEN_COMMITS: Duration = Duration::from_millis(200);

/// Work in a transaction of its own, that has the file's lock from its beginning. Where readers keep it from being committed it
/// is taken back and done again, until the time has passed for which the connection waits.
pub(super) fn alone<T>(
    connection: &Connection,
    doing: &str,
    work: impl Fn(&Connection) -> rusqlite::Result<T>,
) -> Result<T, Failure> {
    let usual = || connection.query_row("PRAGMA busy_timeout", [], |row| row.get::<_, u32>(0));
    let usual = Duration::from_millis(usual().map_err(|error| failure(doing, error))?.into());
    let until = Instant::now() + usual;
    let done = loop {
        match once(connection, usual, &work) {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && Instant::now() < until => {
                std::thread::sleep(BETWEEN_COMMITS);
            }
            done => break done,
        }
    };
    done.and_then(|done| connection.busy_timeout(usual).map(|()| done)).map_err(|error| failure(doing, error))
}

fn once<T>(
    connection: &Connection,
    usual: Duration,
    work: impl Fn(&Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    // To wait for the lock holds nobody up.
    connection.busy_timeout(usual)?;
    // Dropped, it is taken back, also where its commit failed.
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    let done = work(&transaction)?;
    connection.busy_timeout(ONE_COMMIT)?;
    transaction.commit()?;
    Ok(done)
}

impl SwitchEnd {
    /// Makes the table, the view and the migration's row, as far as they are not there. The row says that the old side has the
    /// authority, by `epoch`.
    ///
    /// # Errors
    /// `Retry` while the file is not there, or is not the sink's yet; `Refused` where its view's name is taken.
    pub async fn install(&mut self, epoch: u64) -> Result<(), Failure> {
        let doing = "making _crossfade_authority";
        if self.authority().await?.is_some() {
            return Ok(());
        }
        self.with(move |connection, asked| {
            // The sink chooses the journal mode of a file that it makes, and must find it empty.
            let made = asked.here == Side::Old
                || exists(connection, "table", "_crossfade_positions").map_err(|error| failure(doing, error))?;
            if !made {
                return Err(Failure::retry(doing, "the sink has not made its file yet"));
            }
            if exists(connection, "table", VIEW).map_err(|error| failure(doing, error))? {
                let told = format!("there is a table {VIEW}, and applications ask a view of that name");
                return Err(Failure::refused(doing, told, format!("ALTER TABLE {VIEW} RENAME TO another name")));
            }
            alone(connection, doing, |transaction| {
                transaction.execute_batch(MAKE)?;
                let sql = format!(
                    "INSERT OR IGNORE INTO _crossfade_authority (migration, unit, here, side, epoch, since) \
                     VALUES (?1, '{UNIT}', ?2, 'old', ?3, {NOW})"
                );
                transaction.execute(&sql, params![asked.migration, asked.here.to_string(), epoch as i64]).map(drop)
            })
        })
        .await
    }

    /// What the row says; `None` where there is none.
    ///
    /// # Errors
    /// When the file cannot be read, or the row is damaged.
    pub async fn authority(&mut self) -> Result<Option<Written>, Failure> {
        if !self.config.path.is_file() {
            return Ok(None);
        }
        self.with(|connection, asked| written(connection, asked)).await
    }

    /// Makes a switch from `epoch` impossible, if it has not happened: raises the epoch that it would have had to find. Waits
    /// for one that is being written at this moment. Returns what the row says then.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn take_back(&mut self, epoch: u64) -> Result<Option<Written>, Failure> {
        let doing = "taking the switch back";
        self.with(move |connection, asked| {
            if !exists(connection, "table", TABLE).map_err(|error| failure(doing, error))? {
                return Ok(None);
            }
            alone(connection, doing, |transaction| {
                let sql = format!(
                    "UPDATE _crossfade_authority SET epoch = epoch + 1 \
                     WHERE migration = ?1 AND unit = '{UNIT}' AND side = ?2 AND epoch = ?3"
                );
                transaction.execute(&sql, params![asked.migration, asked.here.to_string(), epoch as i64]).map(drop)
            })?;
            written(connection, asked)
        })
        .await
    }

    /// Writes what the other side's row says into this one's. Never back to a lower epoch. Where it names this side, its writers
    /// are let in: the fence goes.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn follow(&mut self, written: Written) -> Result<(), Failure> {
        let doing = "telling the other side who has the authority";
        self.with(move |connection, asked| {
            if !exists(connection, "table", TABLE).map_err(|error| failure(doing, error))? {
                return Ok(());
            }
            alone(connection, doing, |transaction| follow(transaction, asked, written))
        })
        .await
    }

    /// Commits something, so that every commit before it is on the disk too: one of the sink's may not be.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn settle(&mut self) -> Result<(), Failure> {
        self.with(|connection, asked| {
            alone(connection, "waiting for the new side's disk", |transaction| {
                // What changes nothing writes nothing, and waits for no disk.
                let sql = "UPDATE _crossfade_authority SET settled = settled + 1 WHERE migration = ?1";
                transaction.execute(sql, [&asked.migration]).map(drop)
            })
        })
        .await
    }

    /// How long ago the row was written, by this machine's clock; `None` where there is none.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn age(&mut self) -> Result<Option<Duration>, Failure> {
        self.with(|connection, asked| {
            let sql = format!("SELECT max(0, {NOW} - since) FROM _crossfade_authority WHERE migration = ?1");
            let age: Option<f64> = connection
                .query_row(&sql, [&asked.migration], |row| row.get(0))
                .optional()
                .map_err(|error| failure("asking how long ago the switch was", error))?;
            Ok(age.map(|age| Duration::try_from_secs_f64(age).unwrap_or_default()))
        })
        .await
    }

    /// Takes the migration's row away, and with the last one everything that was made for it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn forget(&mut self) -> Result<(), Failure> {
        if self.authority().await?.is_none() {
            return Ok(());
        }
        self.with(|connection, asked| {
            alone(connection, "removing _crossfade_authority", |transaction| {
                transaction.execute("DELETE FROM _crossfade_authority WHERE migration = ?1", [&asked.migration])?;
                let others =
                    transaction
                        .query_row("SELECT EXISTS (SELECT 1 FROM _crossfade_authority)", [], |row| row.get(0))?;
                if others {
                    return Ok(());
                }
                transaction.execute_batch(&format!(
                    "DROP VIEW IF EXISTS {VIEW}; DROP TABLE {TABLE}; DROP TABLE IF EXISTS {PASS}"
                ))
            })
        })
        .await
    }
}
