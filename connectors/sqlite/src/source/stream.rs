//! The stream: reads the change table on a thread of its own, and clears it behind what is durable in our log.
//!
//! Triggers cannot see where a transaction ends, but a read does: whatever is visible at once was committed. So
//! everything up to the highest sequence number seen is handed over as one transaction, in parts where it is large
//! (the rows are read page by page in short reads; nothing below that number can still change). Two kinds of places
//! always end a transaction: where a table got another layout, and what the copy of a table without a key could see.

use super::{
    install::{Install, Layout, State, gone, unrecorded},
    triggers::op,
};
use crate::{
    client::{failure, quoted},
    codec::{put_absent, put_cell},
};
use bytes::Bytes;
use crossfade_connector::Failure;
use crossfade_event::{Batch, Change, Event, Op, Position, Row, SourceId, Stamped, TableSchema, Transaction};
use rusqlite::{Connection, types::ValueRef};
use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::sync::mpsc;

/// Bytes of changes in one batch.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// How long to sleep between looks at the file: short while it is busy, longer while nothing comes.
const SLEEP_MIN: Duration = Duration::from_millis(1);
const SLEEP_MAX: Duration = Duration::from_millis(50);
/// How often what is durable in our log is cleared from the file, and how many rows at once.
const CLEAR_EVERY: Duration = Duration::from_secs(1);
const CLEAR_ROWS_MAX: i64 = 10_000;
/// How long clearing waits for a lock: it can always be done later.
const CLEAR_PATIENCE: Duration = Duration::from_millis(20);

pub(super) type Sender = mpsc::Sender<Result<Batch, Failure>>;

/// Reads the stream.
pub(super) struct Stream {
    pub(super) connection: Connection,
    pub(super) install: Install,
    pub(super) source: SourceId,
    /// The shapes under which the changes after `last` were recorded.
    pub(super) schemas: HashMap<u32, Arc<TableSchema>>,
    /// Everything up to here was handed over.
    pub(super) last: i64,
    /// Everything up to here is durable in our log.
    pub(super) confirmed: Arc<AtomicI64>,
    pub(super) busy_timeout: Duration,
    pub(super) path: std::path::PathBuf,
    pub(super) bounds: Arc<Bounds>,
    /// The backfill under way, and where the history stood when all of it was copied (negative until then).
    pub(super) backfill: Option<(u32, Arc<AtomicI64>)>,
    pub(super) sender: Sender,
}

/// Places at which a transaction must end, for the copy of a table without a key saw everything up to there.
#[derive(Debug, Default)]
pub(super) struct Bounds(Mutex<BTreeSet<i64>>);

impl Bounds {
    pub(super) fn new(known: Vec<i64>) -> Self {
        Self(Mutex::new(known.into_iter().collect()))
    }

    /// A panic in the other thread leaves a set of numbers as good as it was.
    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeSet<i64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was seen of the file at one look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Seen {
    data: i64,
    schema: i64,
    file: (u64, u64),
    highest: i64,
}

struct Clock {
    cleared: i64,
    next: Instant,
}

impl Stream {
    /// Runs until nobody listens any more, or something fails.
    pub(super) fn run(mut self) {
        if let Err(failure) = self.follow() {
            let _ = self.sender.blocking_send(Err(failure));
        }
    }

    fn follow(&mut self) -> Result<(), Failure> {
        let mut seen = Seen { data: -1, schema: -1, ..Seen::default() };
        let mut clock = Clock { cleared: 0, next: Instant::now() };
        let mut sleep = SLEEP_MIN;
        let file = file_number(&self.path);
        while !self.sender.is_closed() {
            let (mut now, bounds) = self.look_with_bounds(seen)?;
            if now.file != file {
                return Err(replaced(&self.path));
            }
            let idle = now.highest <= self.last && now.schema == seen.schema;
            if now.schema != seen.schema && self.check_layouts()? {
                // Our own commits do not show in the data version: look again.
                now.data = -1;
            }
            if now.highest > self.last && now.schema == seen.schema && !self.hand_over(now.highest, bounds)? {
                return Ok(());
            }
            if !self.end_backfill() {
                return Ok(());
            }
            seen = now;
            self.clear(&mut clock)?;
            if idle {
                thread::sleep(sleep);
                sleep = (sleep * 2).min(SLEEP_MAX);
            } else {
                sleep = SLEEP_MIN;
            }
        }
        Ok(())
    }

    /// Says that the backfill ended, once everything that its pages could see has been handed over. False when nobody
    /// listens any more.
    fn end_backfill(&mut self) -> bool {
        let Some((generation, copied)) = &self.backfill else { return true };
        let copied = copied.load(Ordering::Acquire);
        if copied < 0 || self.last < copied {
            return true;
        }
        let position = position(self.source, self.last, u32::MAX);
        let ended = Event::BackfillEnded { generation: *generation };
        self.backfill = None;
        // The mark behind it lets a sink record that it has come this far, even if nobody writes any more.
        [(ended, None), (Event::Resolved, Some(position))]
            .into_iter()
            .all(|(event, upto)| self.send(Batch { events: vec![Stamped { position, event }], upto, whole: true }))
    }

    /// A look, and the places known by then at which a transaction must end: both under one lock, so that no copy of
    /// a table without a key takes its place in between.
    fn look_with_bounds(&self, before: Seen) -> Result<(Seen, Vec<i64>), Failure> {
        let bounds = self.bounds.lock();
        let seen = self.look(before)?;
        Ok((seen, bounds.iter().copied().collect()))
    }

    /// One look: cheap where nothing was committed since the last one.
    fn look(&self, before: Seen) -> Result<Seen, Failure> {
        let doing = "looking for changes";
        let number = |sql: &str| -> Result<i64, Failure> {
            self.connection
                .prepare_cached(sql)
                .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
                .map_err(|error| failure(doing, error))
        };
        let data = number("PRAGMA data_version")?;
        let file = file_number(&self.path);
        if data == before.data && before.highest <= self.last {
            return Ok(Seen { file, ..before });
        }
        let changes = quoted(&self.install.names.changes());
        // One statement is one snapshot: everything up to `highest` was recorded under this schema.
        let (schema, highest): (i64, i64) = self
            .connection
            .prepare_cached(&format!(
                "SELECT (SELECT schema_version FROM pragma_schema_version), coalesce((SELECT max(seq) FROM {changes}), -1)"
            ))
            .and_then(|mut statement| statement.query_row([], |row| Ok((row.get(0)?, row.get(1)?))))
            .map_err(|error| missing_or(doing, &self.connection, &self.install, error))?;
        if highest < self.last {
            return Err(went_back(&self.install, self.last, highest));
        }
        Ok(Seen { data, schema, file, highest })
    }

    /// Something in the schema changed: brings the triggers up to it.
    fn check_layouts(&mut self) -> Result<bool, Failure> {
        let doing = "reading the schema";
        let layouts = self.install.layouts(&self.connection).map_err(|error| failure(doing, error))?;
        let mut renewed = false;
        for Layout { schema, .. } in layouts {
            match self.install.state_of(&self.connection, &schema).map_err(|error| failure(doing, error))? {
                State::Intact => {}
                State::Stale(_) | State::Altered(_) => {
                    tracing::info!(table = %schema.name, "the table changed; its triggers are renewed");
                    self.install.renew(&mut self.connection, &schema, self.last)?;
                    renewed = true;
                }
                State::Gone => return Err(gone(&schema)),
                State::Unrecorded(trigger) => return Err(unrecorded(&schema, &trigger)),
            }
        }
        Ok(renewed)
    }

    /// Hands over everything up to `highest`. False when nobody listens any more.
    fn hand_over(&mut self, highest: i64, mut bounds: Vec<i64>) -> Result<bool, Failure> {
        let doing = "reading the history of layouts";
        let layouts = self.install.layouts_after(&self.connection, self.last).map_err(|error| failure(doing, error))?;
        for Layout { since, .. } in &layouts {
            bounds.extend([since - 1, *since]);
        }
        bounds.push(highest);
        bounds.retain(|bound| *bound > self.last && *bound <= highest);
        bounds.sort_unstable();
        bounds.dedup();
        for bound in bounds {
            let began: Vec<_> = layouts.iter().filter(|layout| layout.since == bound).collect();
            let listened = if began.is_empty() { self.transaction(bound)? } else { self.layout(bound, &began)? };
            if !listened {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn layout(&mut self, at: i64, began: &[&Layout]) -> Result<bool, Failure> {
        let position = position(self.source, at, u32::MAX);
        let mut events = Vec::new();
        for layout in began {
            self.schemas.insert(layout.schema.id.0, layout.schema.clone());
            events.push(Stamped { position, event: Event::SchemaSeen(layout.schema.clone()) });
        }
        events.push(Stamped { position, event: Event::Resolved });
        self.last = at;
        Ok(self.send(Batch { events, upto: Some(position), whole: true }))
    }

    /// One transaction, in as many parts as it takes.
    fn transaction(&mut self, upto: i64) -> Result<bool, Failure> {
        let first = self.last;
        let commit_time_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64);
        let began = Event::Began(Transaction { xid: upto as u64, commit_time_us });
        let mut events = vec![Stamped { position: position(self.source, upto, 0), event: began }];
        let mut pending = None;
        while self.last < upto {
            let page = self.page(upto, first, &mut pending, &mut events)?;
            self.last = page;
            let ended = page == upto;
            if ended {
                flush_old(&mut pending, &mut events, self.source, upto);
                events.push(Stamped { position: position(self.source, upto, u32::MAX), event: Event::Committed });
            }
            let upto = ended.then(|| position(self.source, upto, u32::MAX));
            if !self.send(Batch { events: std::mem::take(&mut events), upto, whole: ended }) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads up to a batch full of changes; returns the last sequence number read.
    fn page(
        &self,
        upto: i64,
        first: i64,
        pending: &mut Option<(i64, Change)>,
        events: &mut Vec<Stamped>,
    ) -> Result<i64, Failure> {
        let doing = "reading recorded changes";
        let sql = format!(
            "SELECT * FROM {} WHERE seq > ?1 AND seq <= ?2 ORDER BY seq",
            quoted(&self.install.names.changes())
        );
        let mut statement = self.connection.prepare_cached(&sql).map_err(|error| failure(doing, error))?;
        let mut rows = statement.query([self.last, upto]).map_err(|error| failure(doing, error))?;
        let mut bytes: Vec<u8> = Vec::with_capacity(BATCH_BYTES_MAX + (64 << 10));
        let mut found: Vec<Found> = Vec::new();
        let mut last = self.last;
        while let Some(row) = rows.next().map_err(|error| failure(doing, error))? {
            let (seq, table, op) = (integer(row, 0), integer(row, 1), integer(row, 2));
            if seq != last + 1 {
                return Err(gap(&self.install, last));
            }
            last = seq;
            if op == op::ANCHOR || op == op::LAYOUT {
                continue;
            }
            let schema = self.schemas.get(&(table as u32)).ok_or_else(|| stranger(table))?;
            let start = bytes.len();
            write_row(row, schema, op == op::DELETE || op == op::OLD, &mut bytes)
                .map_err(|error| failure(doing, error))?;
            found.push(Found { seq, table: table as u32, op, start, end: bytes.len() });
            if bytes.len() + found.len() * 64 >= BATCH_BYTES_MAX {
                break;
            }
        }
        if last == self.last {
            return Err(gap(&self.install, last));
        }
        let bytes = Bytes::from(bytes);
        for found in found {
            let at = |seq: i64| position(self.source, upto, (seq - first).min(i64::from(u32::MAX) - 1) as u32);
            let row = Row::parse(bytes.slice(found.start..found.end))
                .map_err(|error| Failure::halt(doing, error, "this is a mistake of Crossfade's; please report it"))?;
            let schema = self.schemas.get(&found.table).ok_or_else(|| stranger(i64::from(found.table)))?;
            let change = |op, old, new| Change { table: schema.id, schema: schema.version, op, old, new };
            if found.op == op::NEW {
                let old = match pending.take() {
                    Some((seq, old)) if seq + 1 == found.seq && old.table == schema.id => old.old,
                    // The old half stood alone: the row it was had gone already.
                    Some((seq, old)) => {
                        events.push(Stamped { position: at(seq), event: Event::Changed(old) });
                        None
                    }
                    None => None,
                };
                events.push(Stamped {
                    position: at(found.seq),
                    event: Event::Changed(change(Op::Update, old, Some(row))),
                });
                continue;
            }
            if let Some((seq, old)) = pending.take() {
                events.push(Stamped { position: at(seq), event: Event::Changed(old) });
            }
            let change = match found.op {
                op::INSERT => change(Op::Insert, None, Some(row)),
                op::UPDATE => change(Op::Update, None, Some(row)),
                op::DELETE => change(Op::Delete, Some(row), None),
                op::OLD => {
                    *pending = Some((found.seq, change(Op::Delete, Some(row), None)));
                    continue;
                }
                _ => return Err(gap(&self.install, found.seq)),
            };
            events.push(Stamped { position: at(found.seq), event: Event::Changed(change) });
        }
        Ok(last)
    }

    fn send(&self, batch: Batch) -> bool {
        self.sender.blocking_send(Ok(batch)).is_ok()
    }

    /// Clears what is durable in our log, but for the last row: it shows after a restart that this is the same history.
    fn clear(&mut self, clock: &mut Clock) -> Result<(), Failure> {
        let confirmed = self.confirmed.load(Ordering::Acquire);
        let now = Instant::now();
        let much = confirmed - clock.cleared >= CLEAR_ROWS_MAX;
        if confirmed <= clock.cleared || (now < clock.next && !much) {
            return Ok(());
        }
        let doing = "clearing recorded changes";
        let upto = if clock.cleared == 0 { confirmed } else { confirmed.min(clock.cleared + CLEAR_ROWS_MAX) };
        self.connection.busy_timeout(CLEAR_PATIENCE).map_err(|error| failure(doing, error))?;
        let cleared = self.clear_upto(upto);
        self.connection.busy_timeout(self.busy_timeout).map_err(|error| failure(doing, error))?;
        match cleared {
            Ok(true) => clock.cleared = upto,
            Ok(false) => {}
            Err(error) => {
                let failure = failure(doing, error);
                if !failure.is_transient() {
                    return Err(failure);
                }
                tracing::debug!("clearing recorded changes waits for a lock");
            }
        }
        clock.next = now + CLEAR_EVERY;
        Ok(())
    }

    /// Clears some rows; true once none is left below `upto`.
    fn clear_upto(&mut self, upto: i64) -> rusqlite::Result<bool> {
        let (changes, bounds) = (quoted(&self.install.names.changes()), quoted(&self.install.names.bounds()));
        let transaction = self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let lowest: i64 = transaction
            .prepare_cached(&format!("SELECT min(seq) FROM {changes}"))?
            .query_row([], |row| row.get::<_, Option<i64>>(0))?
            .unwrap_or(upto);
        let until = upto.min(lowest + CLEAR_ROWS_MAX);
        transaction.prepare_cached(&format!("DELETE FROM {changes} WHERE seq < ?1"))?.execute([until])?;
        transaction.prepare_cached(&format!("DELETE FROM {bounds} WHERE seq < ?1"))?.execute([until])?;
        transaction.commit()?;
        Ok(until == upto)
    }
}

struct Found {
    seq: i64,
    table: u32,
    op: i64,
    start: usize,
    end: usize,
}

fn flush_old(pending: &mut Option<(i64, Change)>, events: &mut Vec<Stamped>, source: SourceId, upto: i64) {
    if let Some((_, old)) = pending.take() {
        events.push(Stamped { position: position(source, upto, u32::MAX - 1), event: Event::Changed(old) });
    }
}

/// One recorded image as a row of the table. Old images may hold the key only.
fn write_row(row: &rusqlite::Row<'_>, schema: &TableSchema, old: bool, out: &mut Vec<u8>) -> rusqlite::Result<()> {
    out.extend_from_slice(&(schema.columns.len() as u16).to_be_bytes());
    let keyed = schema.identity == crossfade_event::Identity::Key;
    // A whole old image is told from a key alone by any other cell that is set; all NULL reads the same either way.
    let whole = !old || !keyed || has_more_than_key(row, schema)?;
    for (place, column) in schema.columns.iter().enumerate() {
        if whole || column.key.is_some() {
            put_cell(out, row.get_ref(place + 3)?);
        } else {
            put_absent(out);
        }
    }
    Ok(())
}

fn has_more_than_key(row: &rusqlite::Row<'_>, schema: &TableSchema) -> rusqlite::Result<bool> {
    for (place, column) in schema.columns.iter().enumerate() {
        if column.key.is_none() && row.get_ref(place + 3)? != ValueRef::Null {
            return Ok(true);
        }
    }
    Ok(false)
}

fn integer(row: &rusqlite::Row<'_>, column: usize) -> i64 {
    match row.get_ref(column) {
        Ok(ValueRef::Integer(value)) => value,
        _ => -1,
    }
}

/// The place of a change: its transaction is named by its last sequence number.
pub(super) fn position(source: SourceId, commit: i64, ordinal: u32) -> Position {
    Position { source, timeline: 0, commit: commit as u64, ordinal }
}

#[cfg(unix)]
pub(crate) fn file_number(path: &std::path::Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map_or((0, 0), |data| (data.dev(), data.ino()))
}

#[cfg(not(unix))]
pub(crate) fn file_number(_: &std::path::Path) -> (u64, u64) {
    (0, 0)
}

const AGAIN: &str = "begin again with an empty folder (`dir` of the spec), so that everything is copied anew";

pub(super) fn replaced(path: &std::path::Path) -> Failure {
    Failure::lost(
        format!("reading {}", path.display()),
        "the file was replaced by another one while it was read",
        format!("put the former file back; or {AGAIN}"),
    )
}

pub(super) fn went_back(install: &Install, last: i64, highest: i64) -> Failure {
    Failure::lost(
        format!("reading {}", install.names.changes()),
        format!(
            "the changes end at {highest}, but {last} was read before: the file was restored from a backup, or the table was emptied"
        ),
        format!("put the former file back; or {AGAIN}"),
    )
}

fn gap(install: &Install, after: i64) -> Failure {
    Failure::lost(
        format!("reading {}", install.names.changes()),
        format!("the change after {after} is missing: somebody removed recorded changes"),
        AGAIN,
    )
}

fn stranger(table: i64) -> Failure {
    Failure::lost(
        "reading recorded changes",
        format!("table {table} was never described: the record is another migration's"),
        AGAIN,
    )
}

fn missing_or(doing: &str, connection: &Connection, install: &Install, error: rusqlite::Error) -> Failure {
    match crate::client::exists(connection, "table", &install.names.changes()) {
        Ok(false) => Failure::lost(doing, format!("the table {} was dropped", install.names.changes()), AGAIN),
        _ => failure(doing, error),
    }
}

/// The tables of a position's stream, by number.
pub(super) fn by_number(schemas: &[Arc<TableSchema>]) -> HashMap<u32, Arc<TableSchema>> {
    schemas.iter().map(|schema| (schema.id.0, schema.clone())).collect()
}
