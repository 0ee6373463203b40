//! The writer: one connection on one thread, and the transaction that is open on it.

use super::{
    OnError,
    alter::SHAPE,
    back::{self, Back},
    finish::Waits,
    mapping::MAPPING,
    own, table,
    table::Table,
};
use crate::{
    Config,
    client::{Access, exists, failure, open, quoted, shown},
    inspect::shape::TableShape,
    switch,
};
use crossfade_connector::{Applied, Delivery, Failure, Guard, Progress, Target, TargetTable, WriteMode};
use crossfade_event::{
    Change, Identity, Key, TableId, Version,
    catalog::{Catalog, Dialect},
};
use rusqlite::{Connection, config::DbConfig};
use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

/// Everything the sink's thread owns.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) config: Config,
    pub(super) migration: String,
    pub(super) connection: Option<Connection>,
    pub(super) tables: HashMap<TableId, Table>,
    /// The order in which the target names its tables: parents first.
    pub(super) order: Vec<TableId>,
    pub(super) support: Catalog,
    pub(super) epoch: u64,
    /// Whether a transaction is open.
    pub(super) open: bool,
    /// A replay is writing: what it cannot write is on record already.
    pub(super) healing: bool,
    /// Keys of which an earlier change is in quarantine.
    pub(super) held: HashMap<TableId, HashSet<Key>>,
    /// Changes of the open source transaction that wait for a unique value to become free.
    pub(super) deferred: Vec<(Version, Change)>,
    /// The notes of the layouts in which changes go to quarantine.
    pub(super) layouts: HashMap<TableId, String>,
    pub(super) on_error: OnError,
    /// What is known of the migration that is taken back, where one is.
    pub(super) back: Option<Back>,
    /// Whether the file may have a fence, which our transactions must pass.
    pub(super) fenced: bool,
    /// Indexes and checks that wait for the stream, when to try them next, and how long to pause after a failure.
    pub(super) pending: Vec<(String, Waits)>,
    pub(super) pending_at: Instant,
    pub(super) pending_pause: Duration,
}

impl Writer {
    pub(super) fn new(config: Config, migration: String, on_error: OnError, back: Option<Back>) -> Self {
        let support = Catalog {
            dialect: Dialect::Sqlite,
            tables: Vec::new(),
            types: Vec::new(),
            sequences: Vec::new(),
            extensions: Vec::new(),
        };
        Self {
            config,
            migration,
            connection: None,
            tables: HashMap::new(),
            order: Vec::new(),
            support,
            epoch: 0,
            open: false,
            healing: false,
            held: HashMap::new(),
            deferred: Vec::new(),
            layouts: HashMap::new(),
            on_error,
            back,
            fenced: false,
            pending: Vec::new(),
            pending_at: Instant::now(),
            pending_pause: Duration::ZERO,
        }
    }

    pub(super) fn connection(&self) -> Result<&Connection, Failure> {
        self.connection.as_ref().ok_or_else(|| {
            Failure::reconnect(format!("writing to {}", shown(&self.config.path)), "the sink is not prepared")
        })
    }

    pub(super) fn table(&self, id: TableId) -> Result<&Table, Failure> {
        self.tables.get(&id).ok_or_else(|| {
            Failure::halt(
                "writing to SQLite",
                format!("a change names table {}, which the target does not have", id.0),
                "this is a mistake of Crossfade's; please report it",
            )
        })
    }

    /// Nothing of the open transaction stays.
    pub(super) fn abandon(&mut self) {
        self.deferred.clear();
        self.layouts.clear();
        if !std::mem::take(&mut self.open) {
            return;
        }
        if let Some(connection) = &self.connection
            && !connection.is_autocommit()
            && connection.execute_batch("ROLLBACK").is_err()
        {
            // A connection that cannot even roll back is of no use; closing it rolls back.
            self.connection = None;
        }
        // Keys held by the transaction that is gone are not held.
        if let Some(connection) = &self.connection
            && let Ok(held) = super::quarantine::held_keys(connection, &self.migration)
        {
            self.held = held;
        } else {
            self.connection = None;
        }
    }

    fn opened(&self, access: Access) -> Result<Connection, Failure> {
        let connection = open_target(&self.config, access)?;
        if self.back.is_some() {
            back::fires_no_triggers(&connection)?;
        }
        Ok(connection)
    }

    /// Opens the file, without making it.
    pub(super) fn look(&mut self) -> Result<Option<&Connection>, Failure> {
        if self.connection.is_none() {
            if !self.config.path.is_file() {
                return Ok(None);
            }
            self.connection = Some(self.opened(Access::Existing)?);
        }
        Ok(self.connection.as_ref())
    }

    /// Opens the file for whoever only looks; false while it holds nothing of ours.
    pub(super) fn looks_at_its_own(&mut self) -> Result<bool, Failure> {
        let doing = format!("reading {}", shown(&self.config.path));
        let Some(connection) = self.look()? else { return Ok(false) };
        own::are_there(connection).map_err(|error| failure(doing, error))
    }

    pub(super) fn progress(&mut self) -> Result<Option<Progress>, Failure> {
        self.abandon();
        let migration = self.migration.clone();
        let path = shown(&self.config.path);
        let Some(connection) = self.look()? else { return Ok(None) };
        let read = || {
            if own::are_there(connection)? { own::progress(connection, &migration) } else { Ok(None) }
        };
        read().map_err(|error| failure(format!("reading the position in {path}"), error))
    }

    /// Makes everything of the target that does not exist, in one transaction.
    pub(super) fn prepare(&mut self, target: &Target) -> Result<(), Failure> {
        self.abandon();
        let doing = format!("preparing {}", shown(&self.config.path));
        let fresh = !self.config.path.is_file();
        if self.connection.is_none() {
            self.connection = Some(self.opened(Access::Create)?);
        }
        let connection = self.connection()?;
        settle(connection, fresh).map_err(|error| failure(&doing, error))?;
        if let Some(back) = &self.back {
            back::prepare(connection, back)?;
        }
        connection.execute_batch("BEGIN IMMEDIATE").map_err(|error| failure(&doing, error))?;
        let prepared = prepare_in(connection, &self.migration, target);
        let ended = if prepared.is_ok() { "COMMIT" } else { "ROLLBACK" };
        let end = connection.execute_batch(ended).map_err(|error| failure(&doing, error));
        let tables = prepared?;
        if let Err(error) = end {
            let _ = connection.execute_batch("ROLLBACK");
            return Err(error);
        }
        let fenced = self.back.is_none() && switch::has_pass(connection).map_err(|error| failure(&doing, error))?;
        self.held =
            super::quarantine::held_keys(connection, &self.migration).map_err(|error| failure(&doing, error))?;
        self.order = tables.iter().map(Table::id).collect();
        let moves = self.back.is_some();
        self.fenced = fenced;
        self.tables = tables.into_iter().map(|table| (table.id(), Table { moves, ..table })).collect();
        self.support = target.support.clone();
        self.epoch = target.epoch;
        self.load_pending()
    }

    /// Applies one delivery; whatever fails takes the whole open transaction with it.
    pub(super) fn apply(&mut self, delivery: Delivery, guard: Guard) -> Result<Applied, Failure> {
        let upto =
            (delivery.commits && guard == Guard::Forward && !self.pending.is_empty()).then(|| delivery.upto.clone());
        let applied = self.apply_in(delivery, guard);
        if applied.is_err() {
            self.abandon();
        }
        let applied = applied?;
        if let Some(progress) = upto {
            self.make_pending(Some(&progress))?;
        }
        Ok(applied)
    }

    /// Begins a transaction that passes the migration's own fence.
    pub(super) fn begin(&mut self, doing: &str) -> Result<(), Failure> {
        let connection = self.connection()?;
        connection.execute_batch("BEGIN IMMEDIATE").map_err(|error| failure(doing, error))?;
        let passed = match self.fenced {
            true => switch::pass(connection, &self.migration, true),
            false => Ok(()),
        };
        self.open = true;
        passed.map_err(|error| {
            self.abandon();
            failure(doing, error)
        })
    }

    /// Commits it. What let it through the fence does not stay in it.
    pub(super) fn commit(&mut self, doing: &str) -> Result<(), Failure> {
        let connection = self.connection()?;
        let left = match self.fenced {
            true => switch::pass(connection, &self.migration, false),
            false => Ok(()),
        };
        left.and_then(|()| connection.execute_batch("COMMIT")).map_err(|error| failure(doing, error))?;
        self.open = false;
        Ok(())
    }

    fn apply_in(&mut self, mut delivery: Delivery, guard: Guard) -> Result<Applied, Failure> {
        let doing = "applying changes";
        self.healing = guard == Guard::Heal;
        if !self.open {
            self.begin(doing)?;
            self.check_fence()?;
        }
        if let Some(back) = &self.back {
            back::turn(self.connection()?, back, &self.tables, &mut delivery)?;
        }
        let mut applied = Applied::default();
        for write in delivery.writes {
            self.write(write, &mut applied)?;
        }
        if delivery.commits {
            self.settle_deferred(&mut applied)?;
            #[cfg(defect = "position-outside-transaction")]
            {
                self.connection()?.execute_batch("COMMIT").map_err(|error| failure("committing too early", error))?;
                // A slow disk: the rows are in long before the position is.
                std::thread::sleep(Duration::from_millis(20));
                self.connection()?
                    .execute_batch("BEGIN IMMEDIATE")
                    .map_err(|error| failure("committing too early", error))?;
            }
            if guard == Guard::Forward {
                let recorded = own::set_progress(self.connection()?, &self.migration, self.epoch, &delivery.upto)
                    .map_err(|error| failure("recording the position", error))?;
                if !recorded {
                    return Err(fenced(&self.migration));
                }
            }
            self.commit("committing")?;
        }
        Ok(applied)
    }

    pub(super) fn check_fence(&self) -> Result<(), Failure> {
        let epoch =
            own::epoch(self.connection()?, &self.migration).map_err(|error| failure("reading the epoch", error))?;
        if epoch == Some(self.epoch) { Ok(()) } else { Err(fenced(&self.migration)) }
    }
}

/// Refused, not failed: the epoch is a gate, and trying again cannot open it.
fn fenced(migration: &str) -> Failure {
    Failure::refused(
        format!("writing for {migration}"),
        "a later run has taken the target over (its epoch is higher than ours, or its record is gone)",
        "Let the later run do the work; this one must not write any more",
    )
}

/// Triggers of others may run on this connection, and may hold texts in double quotes. What we read ourselves is named
/// with its table.
fn open_target(config: &Config, access: Access) -> Result<Connection, Failure> {
    let connection = open(config, access)?;
    let set = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, true);
    set.map_err(|error| failure(format!("opening {}", shown(&config.path)), error))?;
    Ok(connection)
}

fn settle(connection: &Connection, fresh: bool) -> rusqlite::Result<()> {
    let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
    if fresh || pages == 0 {
        // Only a file that we make ourselves: readers and the writer then never wait for each other.
        connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
    }
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.query_row("PRAGMA wal_autocheckpoint = 8000", [], |_| Ok(()))?;
    own::make(connection)
}

fn prepare_in(connection: &Connection, migration: &str, target: &Target) -> Result<Vec<Table>, Failure> {
    let doing = "preparing the target";
    match own::epoch(connection, migration).map_err(|error| failure(doing, error))? {
        Some(known) if known > target.epoch => return Err(fenced(migration)),
        _ => own::set_epoch(connection, migration, target.epoch).map_err(|error| failure(doing, error))?,
    }
    let made = own::noted(connection, migration, "table").map_err(|error| failure(doing, error))?;
    let known = own::noted(connection, migration, "existing").map_err(|error| failure(doing, error))?;
    let mut tables = Vec::with_capacity(target.tables.len());
    for wanted in &target.tables {
        let name = &*wanted.schema.name.name;
        let there = exists(connection, "table", name).map_err(|error| failure(doing, error))?;
        let ours = made.iter().any(|(made, _)| made.eq_ignore_ascii_case(name));
        let table = match (there, ours) {
            (true, true) => Table::new(wanted.clone(), true),
            (false, _) => make(connection, migration, wanted, &target.support)?,
            (true, false) => {
                let before = known.iter().any(|(known, _)| known.eq_ignore_ascii_case(name));
                adopt(connection, migration, wanted, target.into_existing || before)?
            }
        };
        if let Some(sql) = table::key_index(&table.target).filter(|_| table.ours) {
            connection.execute_batch(&sql).map_err(|error| failure(format!("making the key of {name}"), error))?;
        }
        tables.push(table);
    }
    Ok(tables)
}

fn make(connection: &Connection, migration: &str, wanted: &TargetTable, support: &Catalog) -> Result<Table, Failure> {
    let name = &*wanted.schema.name.name;
    if let WriteMode::Columns { .. } = wanted.mode {
        return Err(Failure::refused(
            format!("preparing {name}"),
            "shadow columns need a table that exists",
            format!("make the table {name}, or write shadow tables instead"),
        ));
    }
    let doing = || format!("making the table {name}");
    connection.execute_batch(&table::create(wanted, support)).map_err(|error| failure(doing(), error))?;
    own::note(connection, migration, "table", name, "")
        .and_then(|()| own::forget(connection, migration, SHAPE, name))
        .map_err(|error| failure(doing(), error))?;
    if wanted.mode == WriteMode::InsertOnce {
        own::note(connection, migration, MAPPING, name, "").map_err(|error| failure(doing(), error))?;
    }
    Ok(Table::new(wanted.clone(), true))
}

/// Takes a table that somebody else made.
fn adopt(
    connection: &Connection,
    migration: &str,
    wanted: &TargetTable,
    into_existing: bool,
) -> Result<Table, Failure> {
    let name = &*wanted.schema.name.name;
    let doing = || format!("preparing {name}");
    let read = |error| failure(doing(), error);
    let shape = TableShape::read(connection, name).map_err(read)?;
    let Some(shape) = shape.filter(|shape| !shape.virtual_) else {
        return Err(Failure::refused(
            doing(),
            "it is not a plain table",
            format!("give the target another name than {name}"),
        ));
    };
    let columns_only = matches!(wanted.mode, WriteMode::Columns { .. });
    let has_rows = connection
        .prepare(&format!("SELECT 1 FROM {}", quoted(name)))
        .and_then(|mut statement| statement.exists([]))
        .map_err(read)?;
    if has_rows && !into_existing && !columns_only {
        return Err(Failure::refused(
            doing(),
            "the table exists and has rows that are not ours",
            format!(
                "empty or rename {name}, or allow writing into existing tables: then what is overwritten is kept for undo"
            ),
        ));
    }
    if wanted.schema.identity != Identity::Key {
        return Err(Failure::refused(
            doing(),
            "the table exists, and without a key our rows could not be told from those of others",
            format!("rename {name}, so that it is made anew"),
        ));
    }
    if let Some((problem, remedy)) = table::misfit(wanted, &shape) {
        return Err(Failure::refused(doing(), format!("the table exists, but {problem}"), remedy));
    }
    own::note(connection, migration, "existing", name, "").map_err(read)?;
    Ok(Table::new(wanted.clone(), false))
}
