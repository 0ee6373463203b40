//! The copy: tables cut into chunks, chunks read by some threads at once.
//!
//! A table with a key is read in the key's order, page by page, each page in a short read of its own: what changes
//! meanwhile is in the stream, for the triggers were there before the first page. A table without a key must be seen
//! at one moment, so it is one chunk and one long read.

use super::{
    install::{Captured, Install},
    stream::{Bounds, Sender, position},
};
use crate::{
    Config,
    client::{Access, failure, journal_mode, list, open, quoted},
    codec::{Bound, put_cell, tagged},
    inspect::shape::TableShape,
};
use crossfade_connector::{Failure, TableSnapshot};
use crossfade_event::{
    Batch, ChunkId, ChunkPlan, Event, Identity, RowBlock, SourceId, Stamped, TableSchema, Visibility,
};
use rusqlite::{Connection, params_from_iter, types::ValueRef};
use std::{
    collections::VecDeque,
    fmt::Write,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
};

/// Bytes of one block of rows, and of one batch.
const BLOCK_BYTES: usize = 256 << 10;
const BATCH_BYTES: usize = 1 << 20;
/// Bytes read under one lock: in WAL mode readers hinder nobody, in the others they hold up commits.
const PAGE_BYTES_WAL: usize = 8 << 20;
const PAGE_BYTES_ROLLBACK: usize = 1 << 20;
/// A table is never cut into more chunks than this.
const CHUNKS_MAX: u64 = 1000;

/// How the rows of a table are walked.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Walk {
    /// By the rowid, under this name.
    Rowid(String),
    /// By the key's columns, each with its collation.
    Key(Vec<(String, String)>),
    /// All at once.
    Whole,
}

impl Walk {
    fn of(shape: &TableShape, identity: Identity) -> Self {
        let key = shape.key();
        match (shape.rowid_column(), identity) {
            (_, Identity::FullRow | Identity::InsertOnly) => Self::Whole,
            (Some(column), _) if key == [column.name.as_str()] => Self::Rowid(column.name.clone()),
            _ => Self::Key(key.iter().map(|name| ((*name).to_owned(), shape.key_collation(name))).collect()),
        }
    }

    /// The columns that order the rows, as SQL.
    fn order(&self) -> Vec<String> {
        match self {
            Self::Rowid(name) => vec![quoted(name)],
            Self::Key(columns) => columns
                .iter()
                .map(|(name, collation)| format!("{} COLLATE {}", quoted(name), quoted(collation)))
                .collect(),
            Self::Whole => Vec::new(),
        }
    }
}

/// One table to copy.
struct Table {
    schema: Arc<TableSchema>,
    walk: Walk,
    /// Places of the walk's columns among the cells.
    places: Vec<usize>,
    left: AtomicUsize,
}

struct Job {
    table: Arc<Table>,
    chunk: ChunkPlan,
}

/// The copy of all tables of one backfill.
pub(super) struct Copy {
    pub(super) config: Config,
    pub(super) install: Install,
    pub(super) source: SourceId,
    pub(super) chunk_rows: u64,
    /// Where the stream stood when the backfill began: the stamp of its rows.
    pub(super) since: i64,
    pub(super) bounds: Arc<Bounds>,
    /// Where the recorded history stood when everything was copied; the stream says that the backfill ended once it
    /// has come that far, so that at that place the log holds all that any page could see.
    pub(super) copied: Arc<AtomicI64>,
    pub(super) sender: Sender,
}

/// Shared by the threads.
struct Work {
    copy: Copy,
    jobs: Mutex<VecDeque<Job>>,
    tables_left: AtomicUsize,
}

/// Nobody listens any more.
struct Gone;

impl Copy {
    /// Plans what has no plan, and copies what is missing on so many threads. Blocks until all is handed over.
    pub(super) fn run(self, tables: Vec<(Captured, TableSnapshot)>, workers: usize) {
        let sender = self.sender.clone();
        match self.plan(tables) {
            Err(failure) => {
                let _ = sender.blocking_send(Err(failure));
            }
            Ok(None) => {}
            Ok(Some(work)) => {
                std::thread::scope(|scope| {
                    for _ in 0..workers.max(1) {
                        scope.spawn(|| {
                            if let Err(failure) = work.copy_chunks() {
                                let _ = work.copy.sender.blocking_send(Err(failure));
                            }
                        });
                    }
                });
            }
        }
    }

    fn plan(self, tables: Vec<(Captured, TableSnapshot)>) -> Result<Option<Work>, Failure> {
        let connection = open(&self.config, Access::Existing)?;
        let mut jobs = VecDeque::new();
        let left: Vec<_> = tables.into_iter().filter(|(_, state)| !state.ended).collect();
        let tables_left = AtomicUsize::new(left.len());
        for (captured, state) in left {
            let schema = captured.schema.clone();
            let walk = Walk::of(&captured.shape, schema.identity);
            let places = places(&schema, &walk);
            // A copy that must be one read is begun again as a whole, and says so.
            let begins = state.chunks.is_empty() || walk == Walk::Whole;
            let chunks = if begins { self.cut(&connection, &schema, &walk)? } else { state.chunks };
            if begins {
                let event = Event::SnapshotBegan { table: schema.id, chunks: chunks.clone() };
                if self.send(vec![event]).is_err() {
                    return Ok(None);
                }
            }
            let open: Vec<_> = chunks.into_iter().filter(|chunk| begins || !state.done.contains(&chunk.id)).collect();
            let table = Arc::new(Table { schema, walk, places, left: AtomicUsize::new(open.len()) });
            if open.is_empty() && self.end_table(&table, None, &tables_left).is_err() {
                return Ok(None);
            }
            jobs.extend(open.into_iter().map(|chunk| Job { table: table.clone(), chunk }));
        }
        if tables_left.load(Ordering::Acquire) == 0 && jobs.is_empty() {
            // Everything was in the log but the last word.
            self.finished(&connection)?;
            return Ok(None);
        }
        Ok(Some(Work { copy: self, jobs: Mutex::new(jobs), tables_left }))
    }

    fn end_table(&self, table: &Table, visible: Option<Visibility>, tables_left: &AtomicUsize) -> Result<bool, Gone> {
        self.send(vec![Event::SnapshotEnded { table: table.schema.id, visible }])?;
        Ok(tables_left.fetch_sub(1, Ordering::AcqRel) == 1)
    }

    fn finished(&self, connection: &Connection) -> Result<(), Failure> {
        let span = self.install.span(connection).map_err(|error| failure("ending the copy", error))?;
        self.copied.store(span.map_or(self.since, |(_, highest)| highest), Ordering::Release);
        Ok(())
    }

    fn send(&self, events: Vec<Event>) -> Result<(), Gone> {
        let position = position(self.source, self.since, u32::MAX);
        let events = events.into_iter().map(|event| Stamped { position, event }).collect();
        self.sender.blocking_send(Ok(Batch { events, upto: None, whole: true })).map_err(|_| Gone)
    }

    fn cut(&self, connection: &Connection, schema: &TableSchema, walk: &Walk) -> Result<Vec<ChunkPlan>, Failure> {
        let doing = || format!("cutting {} into chunks", schema.name);
        let ends = match walk {
            Walk::Whole => Ok(Vec::new()),
            Walk::Rowid(name) => rowid_ends(connection, &schema.name.name, name, self.chunk_rows),
            Walk::Key(_) => key_ends(connection, &schema.name.name, walk, self.chunk_rows),
        }
        .map_err(|error| failure(doing(), error))?;
        let mut from = String::new();
        let mut chunks = Vec::with_capacity(ends.len() + 1);
        for end in ends.into_iter().chain([String::new()]) {
            chunks.push(ChunkPlan { id: ChunkId(chunks.len() as u32), range: format!("{from}..{end}").into() });
            from = end;
        }
        Ok(chunks)
    }
}

fn places(schema: &TableSchema, walk: &Walk) -> Vec<usize> {
    let names: Vec<&str> = match walk {
        Walk::Rowid(name) => vec![name],
        Walk::Key(columns) => columns.iter().map(|(name, _)| &**name).collect(),
        Walk::Whole => Vec::new(),
    };
    names.into_iter().filter_map(|name| schema.column_index(name)).collect()
}

/// Where chunks end, evenly over the span of rowids; there are no more chunks than the file can have rows for.
fn rowid_ends(connection: &Connection, table: &str, rowid: &str, chunk_rows: u64) -> rusqlite::Result<Vec<String>> {
    let (table, rowid) = (quoted(table), quoted(rowid));
    let sql = format!("SELECT (SELECT min({rowid}) FROM {table}), (SELECT max({rowid}) FROM {table})");
    let span: Option<(i64, i64)> =
        connection.query_row(&sql, [], |row| Ok(row.get::<_, Option<i64>>(0)?.zip(row.get::<_, Option<i64>>(1)?)))?;
    let Some((lowest, highest)) = span else { return Ok(Vec::new()) };
    let bytes: u64 =
        connection.query_row("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size", [], |row| {
            row.get::<_, i64>(0).map(|bytes| bytes as u64)
        })?;
    let width = i128::from(highest) - i128::from(lowest) + 1;
    // No row takes less than about eight bytes of the file.
    let rows = u64::try_from(width).unwrap_or(u64::MAX).min(bytes / 8);
    let count = (rows / chunk_rows.max(1)).clamp(1, CHUNKS_MAX);
    let ends = (1..count).map(|index| i128::from(lowest) + width * i128::from(index) / i128::from(count) - 1);
    Ok(ends.map(|end| encode(&vec![integer_cell(end as i64)])).collect())
}

fn integer_cell(value: i64) -> Vec<u8> {
    let mut cell = Vec::with_capacity(13);
    put_cell(&mut cell, ValueRef::Integer(value));
    cell.split_off(4)
}

/// Where chunks end, every so many rows along the key's index.
fn key_ends(connection: &Connection, table: &str, walk: &Walk, chunk_rows: u64) -> rusqlite::Result<Vec<String>> {
    let order = walk.order().join(", ");
    let mut ends: Vec<String> = Vec::new();
    let mut after: Option<Edge> = None;
    let names = match walk {
        Walk::Key(columns) => list(columns.iter().map(|(name, _)| name)),
        _ => return Ok(ends),
    };
    while (ends.len() as u64) < CHUNKS_MAX - 1 {
        let (condition, values) = range(walk, after.as_ref(), None);
        let sql = format!(
            "SELECT {names} FROM {}{condition} ORDER BY {order} LIMIT 1 OFFSET {}",
            quoted(table),
            chunk_rows.max(1) - 1
        );
        let mut statement = connection.prepare_cached(&sql)?;
        let mut rows = statement.query(params_from_iter(values))?;
        let Some(row) = rows.next()? else { break };
        let count = row.as_ref().column_count();
        let end = edge(row, 0..count)?;
        ends.push(encode(&end));
        after = Some(end);
    }
    Ok(ends)
}

/// The condition for rows after one key and up to another, with its values.
fn range<'a>(walk: &Walk, after: Option<&'a Edge>, upto: Option<&'a Edge>) -> (String, Vec<Bound<'a>>) {
    let order = walk.order();
    let tuple = |parts: Vec<String>| if parts.len() == 1 { parts.join("") } else { format!("({})", parts.join(", ")) };
    let mut values = Vec::new();
    let mut terms = Vec::new();
    for (bound, sign) in [(after, ">"), (upto, "<=")] {
        let Some(bound) = bound else { continue };
        let from = values.len();
        values.extend(bound.iter().map(|cell| tagged(cell).map_or(Bound::NULL, Bound::Ref)));
        let marks = (from + 1..=values.len()).map(|number| format!("?{number}")).collect();
        terms.push(format!("{} {sign} {}", tuple(order.clone()), tuple(marks)));
    }
    let condition = if terms.is_empty() { String::new() } else { format!(" WHERE {}", terms.join(" AND ")) };
    (condition, values)
}

impl Work {
    fn copy_chunks(&self) -> Result<(), Failure> {
        let connection = open(&self.copy.config, Access::Existing)?;
        let wal = journal_mode(&connection).map_err(|error| failure("reading the journal mode", error))? == "wal";
        let page_bytes = if wal { PAGE_BYTES_WAL } else { PAGE_BYTES_ROLLBACK };
        loop {
            let job = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(job) = job else { return Ok(()) };
            if self.copy_chunk(&connection, &job, page_bytes)?.is_err() {
                return Ok(());
            }
        }
    }

    fn copy_chunk(&self, connection: &Connection, job: &Job, page_bytes: usize) -> Result<Result<(), Gone>, Failure> {
        let doing = || format!("reading chunk {} of {}", job.chunk.id.0, job.table.schema.name);
        let (from, to) = decode(&job.chunk.range).ok_or_else(|| {
            Failure::halt(doing(), "the chunk's range in the log is damaged", "begin again with an empty folder")
        })?;
        let mut reader = Reader::new(connection, &self.copy, job, page_bytes);
        let mut after = from;
        let mut visible = None;
        if job.table.walk == Walk::Whole {
            match reader.whole().map_err(|error| failure(doing(), error))? {
                Ok(seen) => visible = Some(seen),
                Err(gone) => return Ok(Err(gone)),
            }
        } else {
            loop {
                match reader.page(after.as_ref(), to.as_ref()).map_err(|error| failure(doing(), error))? {
                    Err(gone) => return Ok(Err(gone)),
                    Ok(None) => break,
                    Ok(last) => after = last,
                }
            }
        }
        let ended = Event::ChunkEnded { table: job.table.schema.id, chunk: job.chunk.id, rows: reader.rows };
        match reader.flush(Some(ended)) {
            Ok(()) => self.end(connection, job, visible),
            Err(gone) => Ok(Err(gone)),
        }
    }

    fn end(
        &self,
        connection: &Connection,
        job: &Job,
        visible: Option<Visibility>,
    ) -> Result<Result<(), Gone>, Failure> {
        if job.table.left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return Ok(Ok(()));
        }
        match self.copy.end_table(&job.table, visible, &self.tables_left) {
            Ok(true) => self.copy.finished(connection).map(Ok),
            Ok(false) => Ok(Ok(())),
            Err(gone) => Ok(Err(gone)),
        }
    }
}

/// Reads the rows of one chunk into blocks and batches.
struct Reader<'a> {
    connection: &'a Connection,
    copy: &'a Copy,
    job: &'a Job,
    page_bytes: usize,
    columns: String,
    block: Vec<u8>,
    block_rows: u32,
    events: Vec<Event>,
    batch_bytes: usize,
    rows: u64,
}

impl<'a> Reader<'a> {
    fn new(connection: &'a Connection, copy: &'a Copy, job: &'a Job, page_bytes: usize) -> Self {
        let columns = list(job.table.schema.columns.iter().map(|column| &column.name));
        Self {
            connection,
            copy,
            job,
            page_bytes,
            columns,
            block: Vec::with_capacity(BLOCK_BYTES + 4096),
            block_rows: 0,
            events: Vec::new(),
            batch_bytes: 0,
            rows: 0,
        }
    }

    /// Reads a page; returns the key of its last row, or `None` at the end of the chunk.
    fn page(&mut self, after: Option<&Edge>, upto: Option<&Edge>) -> rusqlite::Result<Result<Option<Edge>, Gone>> {
        let (condition, values) = range(&self.job.table.walk, after, upto);
        let sql = format!(
            "SELECT {} FROM {}{condition} ORDER BY {}",
            self.columns,
            quoted(&self.job.table.schema.name.name),
            self.job.table.walk.order().join(", ")
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        let count = statement.column_count();
        let mut rows = statement.query(params_from_iter(values))?;
        let mut full: Vec<Vec<Event>> = Vec::new();
        let mut bytes = 0;
        let mut last = None;
        while let Some(row) = rows.next()? {
            bytes += self.take(row, count)?;
            if self.batch_bytes >= BATCH_BYTES {
                full.push(self.batch());
            }
            if bytes >= self.page_bytes {
                last = Some(edge(row, self.job.table.places.iter().copied())?);
                break;
            }
        }
        // The lock goes before anything is handed over: the log may be slow.
        drop(rows);
        Ok(full.into_iter().try_for_each(|events| self.copy.send(events)).map(|()| last))
    }

    /// Reads the whole table at one moment, and says which moment.
    fn whole(&mut self) -> rusqlite::Result<Result<Visibility, Gone>> {
        let install = &self.copy.install;
        let seen = {
            let mut bounds = self.copy.bounds.lock();
            self.connection.execute_batch("BEGIN")?;
            let sql = format!("SELECT max(seq) FROM {}", quoted(&install.names.changes()));
            let seen: i64 = self.connection.query_row(&sql, [], |row| row.get(0))?;
            bounds.insert(seen);
            seen
        };
        let read = self.read_all();
        self.connection.execute_batch("COMMIT")?;
        if read?.is_err() {
            return Ok(Err(Gone));
        }
        // On record before the log can say that the copy ended: after a restart the stream must stop there too.
        install.record_bound(self.connection, seen)?;
        let next = seen as u64 + 1;
        Ok(Ok(Visibility { xmin: next, xmax: next, in_progress: Vec::new() }))
    }

    fn read_all(&mut self) -> rusqlite::Result<Result<(), Gone>> {
        let sql = format!("SELECT {} FROM {}", self.columns, quoted(&self.job.table.schema.name.name));
        let mut statement = self.connection.prepare(&sql)?;
        let count = statement.column_count();
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            self.take(row, count)?;
            if self.batch_bytes >= BATCH_BYTES {
                let events = self.batch();
                if self.copy.send(events).is_err() {
                    return Ok(Err(Gone));
                }
            }
        }
        Ok(Ok(()))
    }

    fn take(&mut self, row: &rusqlite::Row<'_>, count: usize) -> rusqlite::Result<usize> {
        let before = self.block.len();
        self.block.extend_from_slice(&(count as u16).to_be_bytes());
        for place in 0..count {
            put_cell(&mut self.block, row.get_ref(place)?);
        }
        let taken = self.block.len() - before;
        self.block_rows += 1;
        self.rows += 1;
        if self.block.len() >= BLOCK_BYTES {
            self.close_block();
        }
        Ok(taken)
    }

    fn close_block(&mut self) {
        if self.block_rows == 0 {
            return;
        }
        let rows = std::mem::replace(&mut self.block, Vec::with_capacity(BLOCK_BYTES + 4096));
        self.batch_bytes += rows.len();
        self.events.push(Event::Rows(RowBlock {
            table: self.job.table.schema.id,
            schema: self.job.table.schema.version,
            chunk: self.job.chunk.id,
            count: std::mem::take(&mut self.block_rows),
            rows: rows.into(),
        }));
    }

    fn batch(&mut self) -> Vec<Event> {
        self.batch_bytes = 0;
        std::mem::take(&mut self.events)
    }

    fn flush(&mut self, last: Option<Event>) -> Result<(), Gone> {
        self.close_block();
        let mut events = self.batch();
        events.extend(last);
        self.copy.send(events)
    }
}

/// The cells of a key as [`put_cell`] writes them, without their lengths; a NULL is empty.
type Edge = Vec<Vec<u8>>;

fn edge(row: &rusqlite::Row<'_>, places: impl Iterator<Item = usize>) -> rusqlite::Result<Edge> {
    places
        .map(|place| {
            let mut cell = Vec::with_capacity(16);
            put_cell(&mut cell, row.get_ref(place)?);
            Ok(cell.split_off(4))
        })
        .collect()
}

/// A key as it stands in a chunk's range: its cells in hex, each with a `,` behind it.
fn encode(edge: &Edge) -> String {
    edge.iter().fold(String::new(), |mut out, cell| {
        for byte in cell {
            let _ = write!(out, "{byte:02x}");
        }
        out.push(',');
        out
    })
}

fn decode(range: &str) -> Option<(Option<Edge>, Option<Edge>)> {
    let (from, to) = range.split_once("..")?;
    let end = |text: &str| {
        if text.is_empty() {
            Some(None)
        } else {
            text.strip_suffix(',')?.split(',').map(decode_one).collect::<Option<_>>().map(Some)
        }
    };
    Some((end(from)?, end(to)?))
}

fn decode_one(text: &str) -> Option<Vec<u8>> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_survives_the_log() {
        let key = vec![vec![1, 128, 0, 0, 0, 0, 0, 0, 0], vec![5, 255], vec![], vec![4]];
        let range = format!("..{}", encode(&key));
        assert_eq!(decode(&range), Some((None, Some(key))));
        assert_eq!(decode(".."), Some((None, None)));
        assert_eq!(decode("x1,.."), None);
    }

    #[test]
    fn the_widest_span_of_rowids_is_cut_without_overflow() {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY); INSERT INTO t VALUES (-9223372036854775808), (9223372036854775807)")
            .unwrap();
        let ends = rowid_ends(&connection, "t", "id", 100).unwrap();
        assert!(ends.len() < 1000);
        assert_eq!(rowid_ends(&connection, "t", "id", u64::MAX).unwrap(), Vec::<String>::new());
    }
}
