//! The copy: tables cut into chunks, chunks read by some threads at once.
//!
//! A table with a key is read in the key's order, page by page, each page in a short read of its own: what changes
//! meanwhile is in the stream, for the triggers were there before the first page. A table without a key must be seen
//! at one moment, so it is one chunk and one long read. Columns may get other names between two pages: they are asked
//! for whenever the schema has changed.

use super::{
    chunks::{Edge, Walk, decode, edge, key_ends, range, rowid_ends},
    install::{Captured, Install, other_key, unrecorded},
    stream::{Bounds, Sender, position},
};
use crate::{
    Config,
    client::{Access, failure, journal_mode, list, open, quoted},
    codec::put_cell,
};
use crossfade_connector::{Failure, TableSnapshot};
use crossfade_event::{Batch, ChunkId, ChunkPlan, Event, RowBlock, SourceId, Stamped, TableSchema, Visibility};
use rusqlite::{Connection, params_from_iter};
use std::{
    collections::VecDeque,
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

/// One table to copy.
struct Table {
    schema: Arc<TableSchema>,
    walk: Walk,
    /// Places of the key's columns among the cells.
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

/// Why a table is read no further.
enum Ended {
    Gone,
    /// The triggers are missing.
    Unrecorded,
}

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
            let walk = Walk::of(&captured.shape, &schema).ok_or_else(|| other_key(&schema))?;
            let places = if walk == Walk::Whole { Vec::new() } else { schema.key_columns() };
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

    fn unrecorded(&self, schema: &TableSchema) -> Failure {
        unrecorded(schema, &self.install.names.trigger(schema.id.0, "ai"))
    }

    fn cut(&self, connection: &Connection, schema: &TableSchema, walk: &Walk) -> Result<Vec<ChunkPlan>, Failure> {
        let doing = || format!("cutting {} into chunks", schema.name);
        let cut = || -> rusqlite::Result<Option<Vec<String>>> {
            let snapshot = connection.unchecked_transaction()?;
            let Some(names) = self.install.names_now(&snapshot, schema)? else { return Ok(None) };
            let key = named(&names, &schema.key_columns());
            match (walk, key.as_slice()) {
                (Walk::Whole, _) => Ok(Vec::new()),
                (Walk::Rowid, [name]) => rowid_ends(&snapshot, &schema.name.name, name, self.chunk_rows),
                _ => key_ends(&snapshot, &schema.name.name, walk, &key, self.chunk_rows),
            }
            .map(Some)
        };
        let ends = cut().map_err(|error| failure(doing(), error))?.ok_or_else(|| self.unrecorded(schema))?;
        let mut from = String::new();
        let mut chunks = Vec::with_capacity(ends.len() + 1);
        for end in ends.into_iter().chain([String::new()]) {
            chunks.push(ChunkPlan { id: ChunkId(chunks.len() as u32), range: format!("{from}..{end}").into() });
            from = end;
        }
        Ok(chunks)
    }
}

fn named(names: &[String], places: &[usize]) -> Vec<String> {
    places.iter().filter_map(|place| names.get(*place)).cloned().collect()
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
                Err(Ended::Gone) => return Ok(Err(Gone)),
                Err(Ended::Unrecorded) => return Err(self.copy.unrecorded(&job.table.schema)),
            }
        } else {
            loop {
                match reader.page(after.as_ref(), to.as_ref()).map_err(|error| failure(doing(), error))? {
                    Err(Ended::Gone) => return Ok(Err(Gone)),
                    Err(Ended::Unrecorded) => return Err(self.copy.unrecorded(&job.table.schema)),
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
    /// The file's schema under which the columns have these names.
    schema: Option<i64>,
    names: Vec<String>,
    block: Vec<u8>,
    block_rows: u32,
    events: Vec<Event>,
    batch_bytes: usize,
    rows: u64,
}

impl<'a> Reader<'a> {
    fn new(connection: &'a Connection, copy: &'a Copy, job: &'a Job, page_bytes: usize) -> Self {
        Self {
            connection,
            copy,
            job,
            page_bytes,
            schema: None,
            names: Vec::new(),
            block: Vec::with_capacity(BLOCK_BYTES + 4096),
            block_rows: 0,
            events: Vec::new(),
            batch_bytes: 0,
            rows: 0,
        }
    }

    /// Learns the names of the columns, where the open snapshot has another schema than the one before. False where
    /// nothing records the table any more.
    fn learn_names(&mut self) -> rusqlite::Result<bool> {
        let schema = self
            .connection
            .prepare_cached("SELECT schema_version FROM pragma_schema_version")?
            .query_row([], |row| row.get(0))?;
        if self.schema == Some(schema) {
            return Ok(true);
        }
        let Some(names) = self.copy.install.names_now(self.connection, &self.job.table.schema)? else {
            return Ok(false);
        };
        (self.schema, self.names) = (Some(schema), names);
        Ok(true)
    }

    /// Reads a page; returns the key of its last row, or `None` at the end of the chunk.
    fn page(&mut self, after: Option<&Edge>, upto: Option<&Edge>) -> rusqlite::Result<Result<Option<Edge>, Ended>> {
        let table = self.job.table.clone();
        let snapshot = self.connection.unchecked_transaction()?;
        if !self.learn_names()? {
            return Ok(Err(Ended::Unrecorded));
        }
        let key = named(&self.names, &table.places);
        let (condition, values) = range(&table.walk, &key, after, upto);
        let sql = format!(
            "SELECT {} FROM {}{condition} ORDER BY {}",
            list(&self.names),
            quoted(&table.schema.name.name),
            table.walk.order(&key).join(", ")
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
                last = Some(edge(row, table.places.iter().copied())?);
                break;
            }
        }
        // The lock goes before anything is handed over: the log may be slow.
        drop(rows);
        drop(statement);
        snapshot.commit()?;
        let sent = full.into_iter().try_for_each(|events| self.copy.send(events));
        Ok(sent.map(|()| last).map_err(|Gone| Ended::Gone))
    }

    /// Reads the whole table at one moment, and says which moment.
    fn whole(&mut self) -> rusqlite::Result<Result<Visibility, Ended>> {
        let install = &self.copy.install;
        let (snapshot, seen) = {
            let mut bounds = self.copy.bounds.lock();
            let snapshot = self.connection.unchecked_transaction()?;
            let sql = format!("SELECT max(seq) FROM {}", quoted(&install.names.changes()));
            let seen: i64 = snapshot.query_row(&sql, [], |row| row.get(0))?;
            bounds.insert(seen);
            (snapshot, seen)
        };
        if !self.learn_names()? {
            return Ok(Err(Ended::Unrecorded));
        }
        let read = self.read_all()?;
        snapshot.commit()?;
        if read.is_err() {
            return Ok(Err(Ended::Gone));
        }
        // On record before the log can say that the copy ended: after a restart the stream must stop there too.
        install.record_bound(self.connection, seen)?;
        let next = seen as u64 + 1;
        Ok(Ok(Visibility { xmin: next, xmax: next, in_progress: Vec::new() }))
    }

    fn read_all(&mut self) -> rusqlite::Result<Result<(), Gone>> {
        let sql = format!("SELECT {} FROM {}", list(&self.names), quoted(&self.job.table.schema.name.name));
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
