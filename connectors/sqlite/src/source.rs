//! The source: what other processes write to a file, as batches for the log.
//!
//! Two kinds of threads work for it, each with connections of its own: one follows the stream, some copy tables while
//! a backfill is under way. They hand batches over through bounded channels; [`SqliteSource::next`] takes from both,
//! but never puts a backfill's rows between the parts of one transaction.

mod adding;
mod chunks;
pub(crate) mod install;
mod snapshot;
mod stream;
pub(crate) mod triggers;

pub use adding::TableAdder;

use crate::{
    Config, SourceOptions, SqliteInspect,
    client::{Access, failure, open, shown},
    inspect::shape::{self, TableShape},
};
use adding::Wish;
use crossfade_connector::{Failure, Refusal, Resume, Source, SourceHealth, TableSnapshot};
use crossfade_event::{
    Backfill, Batch, Durable, Event, Position, SourceId, Stamped, TableId, TableName, TableSchema, Visibility,
};
use install::{Captured, Install};
use snapshot::Copy;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    thread::JoinHandle,
};
pub(crate) use stream::file_number;
use stream::{Bounds, Stream, position};
use tokio::sync::mpsc;

/// Batches that wait in each channel.
const BATCHES_WAITING: usize = 4;

/// Reads a file's rows and changes.
pub struct SqliteSource {
    config: Config,
    options: SourceOptions,
    patterns: Vec<String>,
    install: Install,
    /// Where an empty log begins, with nothing copied.
    begin_at: Option<Position>,
    adder: TableAdder,
    running: Option<Running>,
}

impl std::fmt::Debug for SqliteSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteSource").field("path", &self.config.path).finish_non_exhaustive()
    }
}

/// What runs after `open`. Dropping it ends the threads: nobody listens to them any more.
struct Running {
    first: Option<Batch>,
    stream: mpsc::Receiver<Result<Batch, Failure>>,
    copy: Option<mpsc::Receiver<Result<Batch, Failure>>>,
    /// The backfill's end, which came while some of its rows still wait in their channel.
    held: Option<Batch>,
    /// Where the history stood when all was copied; negative until then.
    copied: Arc<AtomicI64>,
    /// The last batch was a part of a transaction that goes on.
    within: bool,
    confirmed: Arc<AtomicI64>,
    threads: Vec<JoinHandle<()>>,
    /// The backfill's end was not handed over yet.
    copying: bool,
    /// Whoever wanted the tables whose copy the first batch begins.
    told: Option<(Wish, Vec<TableName>)>,
}

/// What `open` found or made.
struct Opened {
    source: SourceId,
    schemas: HashMap<u32, Arc<TableSchema>>,
    since: i64,
    first: Option<Batch>,
    generation: u32,
    copying: Vec<(Captured, TableSnapshot)>,
    bounds: Vec<i64>,
    /// A backfill of no tables is under way: its end is all that is left of it.
    nothing_to_copy: bool,
    /// Tables that were taken in just now.
    added: Vec<TableName>,
}

impl SqliteSource {
    /// A source for the tables that `patterns` take, for the migration of that name.
    pub fn new(config: Config, migration: &str, patterns: Vec<String>, options: SourceOptions) -> Self {
        let install = Install::new(migration, options.old_rows);
        let adder = TableAdder::default();
        Self { config: config.for_reading(), options, patterns, install, begin_at: None, adder, running: None }
    }

    /// Where the log is empty, the source begins at this place of a record that was made before, with nothing copied: both
    /// ends were equal then.
    #[must_use]
    pub fn begin_at(self, begin_at: Option<Position>) -> Self {
        Self { begin_at, ..self }
    }

    /// Where the record ends now.
    ///
    /// # Errors
    /// `Lost` where there is none.
    pub async fn end_of_record(&self) -> Result<Position, Failure> {
        let (config, install) = (self.config.clone(), self.install.clone());
        blocking(move || {
            let connection = open(&config, Access::Existing)?;
            let gone = || Failure::lost("reading the end of the record", "the record of changes is gone", AGAIN);
            let source = identity(&connection)?.ok_or_else(gone)?;
            let span = install.span(&connection).map_err(|error| failure("reading the end of the record", error))?;
            span.map(|(_, highest)| position(source, highest, u32::MAX)).ok_or_else(gone)
        })
        .await
    }

    /// A position of this kind of source in its own words: the number of a recorded change.
    pub fn place_words(position: &Position) -> String {
        format!("change {}", position.commit)
    }

    /// What stands against the file as this source. Nothing is changed.
    ///
    /// # Errors
    /// When it cannot be read, or a pattern matches nothing.
    pub async fn preflight(&self) -> Result<Vec<Refusal>, Failure> {
        SqliteInspect::new(self.config.clone(), "").preflight_source(&self.patterns).await
    }

    /// The statements that make what the source needs of its own in the file, as if nothing of it were there. Nothing
    /// is changed.
    ///
    /// # Errors
    /// When the file cannot be read, or a table cannot be recorded.
    pub async fn ddl(&self) -> Result<Vec<String>, Failure> {
        let (config, install, patterns) = (self.config.clone(), self.install.clone(), self.patterns.clone());
        blocking(move || install.ddl(&open(&config, Access::Existing)?, &patterns)).await
    }

    /// The handle that takes in new tables.
    pub fn adder(&self) -> TableAdder {
        self.adder.clone()
    }

    /// Removes everything that the migration made in the source: triggers, recorded changes, its name. Afterwards a
    /// resume is impossible, and refused as lost.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn uninstall(&mut self) -> Result<(), Failure> {
        self.stop().await;
        let (config, install) = (self.config.clone(), self.install.clone());
        blocking(move || install.uninstall(&mut open(&config, Access::Existing)?)).await
    }

    async fn stop(&mut self) {
        let Some(running) = self.running.take() else { return };
        let Running { stream, copy, threads, .. } = running;
        drop((stream, copy));
        let _ = tokio::task::spawn_blocking(move || {
            for thread in threads {
                let _ = thread.join();
            }
        })
        .await;
    }

    fn start(&self, opened: Opened) -> Result<Running, Failure> {
        let Opened { source, schemas, since, first, generation, copying, bounds, nothing_to_copy, added: _ } = opened;
        let confirmed = Arc::new(AtomicI64::new(0));
        let bounds = Arc::new(Bounds::new(bounds));
        let mut threads = Vec::new();
        let mut copy_receiver = None;
        let mut backfill = None;
        let is_copying = nothing_to_copy || !copying.is_empty();
        let copied = Arc::new(AtomicI64::new(if nothing_to_copy { since } else { -1 }));
        if nothing_to_copy {
            backfill = Some((generation, copied.clone()));
        }
        if !copying.is_empty() {
            backfill = Some((generation, copied.clone()));
            let (sender, receiver) = mpsc::channel(BATCHES_WAITING);
            let copy = Copy {
                config: self.config.clone(),
                install: self.install.clone(),
                source,
                chunk_rows: self.options.chunk_rows,
                since,
                bounds: bounds.clone(),
                copied: copied.clone(),
                sender,
            };
            let workers = self.options.workers;
            threads.push(spawn("sqlite-copy", move || copy.run(copying, workers))?);
            copy_receiver = Some(receiver);
        }
        let (sender, receiver) = mpsc::channel(BATCHES_WAITING);
        let stream = Stream {
            connection: open(&self.config, Access::Existing)?,
            install: self.install.clone(),
            source,
            schemas,
            last: since,
            confirmed: confirmed.clone(),
            busy_timeout: self.config.busy_timeout,
            path: self.config.path.clone(),
            bounds,
            backfill,
            sender,
        };
        threads.push(spawn("sqlite-stream", move || stream.run())?);
        Ok(Running {
            first,
            stream: receiver,
            copy: copy_receiver,
            held: None,
            copied,
            within: false,
            confirmed,
            threads,
            copying: is_copying,
            told: None,
        })
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Failure> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(|error| Failure::retry(format!("starting the thread {name}"), error))
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(panicked) if panicked.is_panic() => std::panic::resume_unwind(panicked.into_panic()),
        Err(cancelled) => Err(Failure::retry("working on a SQLite file", cancelled)),
    }
}

/// Begins anew, or goes on where the log ends.
fn begin(
    config: &Config,
    install: &Install,
    patterns: &[String],
    begin_at: Option<Position>,
    resume: Resume,
    add: &[TableName],
) -> Result<Opened, Failure> {
    let mut connection = open(config, Access::Existing)?;
    match resume.position {
        None if begin_at.is_some() => begin_there(&connection, config, install, begin_at, &resume),
        None => begin_anew(&mut connection, install, patterns, &resume),
        Some(at) => go_on(&mut connection, config, install, patterns, at, resume, add),
    }
}

fn begin_anew(
    connection: &mut rusqlite::Connection,
    install: &Install,
    patterns: &[String],
    resume: &Resume,
) -> Result<Opened, Failure> {
    let tables = install::matching(connection, patterns)?;
    let first_number = resume.schemas.iter().map(|schema| schema.id.0).max().unwrap_or(0) + 1;
    let (tables, since) = install.begin(connection, tables, first_number)?;
    let source = identity(connection)?
        .ok_or_else(|| Failure::retry("reading the file's identity", "it vanished just after it was made"))?;
    let at = position(source, since, u32::MAX);
    let generation = resume.snapshot.generation + 1;
    Ok(Opened {
        source,
        schemas: stream::by_number(&tables.iter().map(|table| table.schema.clone()).collect::<Vec<_>>()),
        since,
        first: Some(first_batch(&tables, at, generation)),
        generation,
        copying: tables.iter().map(|table| (table.clone(), TableSnapshot::default())).collect(),
        bounds: Vec::new(),
        nothing_to_copy: false,
        added: Vec::new(),
    })
}

/// Begins at a place of the record that is there, with a backfill of no tables.
fn begin_there(
    connection: &rusqlite::Connection,
    config: &Config,
    install: &Install,
    begin_at: Option<Position>,
    resume: &Resume,
) -> Result<Opened, Failure> {
    let doing = || format!("beginning in {}", shown(&config.path));
    let gone = || Failure::lost(doing(), "the record of changes is not the one that was made for it", AGAIN);
    let at = begin_at.ok_or_else(gone)?;
    let since = check_record(connection, config, install, at)?;
    let mut tables: Vec<Arc<TableSchema>> = Vec::new();
    for layout in install.layouts_after(connection, -1).map_err(|error| failure(doing(), error))? {
        // Later ones come with the stream.
        if layout.since > since {
            continue;
        }
        tables.retain(|known| known.id != layout.schema.id);
        tables.push(layout.schema);
    }
    let generation = resume.snapshot.generation + 1;
    Ok(Opened {
        source: at.source,
        schemas: stream::by_number(&tables),
        since,
        first: Some(begun(tables.iter(), &[], at, generation)),
        generation,
        copying: Vec::new(),
        bounds: Vec::new(),
        nothing_to_copy: true,
        added: Vec::new(),
    })
}

/// The first batch of a backfill of these tables, which stands where the log ends.
fn first_batch(tables: &[Captured], at: Position, generation: u32) -> Batch {
    let copied: Vec<TableId> = tables.iter().map(|table| table.schema.id).collect();
    begun(tables.iter().map(|table| &table.schema), &copied, at, generation)
}

/// The same of tables that are only described, but for those that are copied.
fn begun<'t>(
    schemas: impl Iterator<Item = &'t Arc<TableSchema>>,
    copied: &[TableId],
    at: Position,
    generation: u32,
) -> Batch {
    let next = at.commit + 1;
    let mut events: Vec<Event> = schemas.cloned().map(Event::SchemaSeen).collect();
    events.push(Event::BackfillBegan(Backfill {
        generation,
        tables: copied.to_vec(),
        visible: Some(Visibility { xmin: next, xmax: next, in_progress: Vec::new() }),
    }));
    let events = events.into_iter().map(|event| Stamped { position: at, event }).collect();
    Batch { events, upto: Some(at), whole: true }
}

const AGAIN: &str = "put the former file back; or begin again with an empty folder, so that everything is copied anew";

fn go_on(
    connection: &mut rusqlite::Connection,
    config: &Config,
    install: &Install,
    patterns: &[String],
    at: Position,
    resume: Resume,
    add: &[TableName],
) -> Result<Opened, Failure> {
    let doing = || format!("going on in {}", shown(&config.path));
    let since = check_record(connection, config, install, at)?;
    let mut schemas = stream::by_number(&resume.schemas);
    install.forget_all_but(connection, &schemas.keys().copied().collect::<Vec<_>>())?;
    if resume.snapshot.ended && !add.is_empty() {
        let tables = adding::extend(connection, install, patterns, add, &resume.schemas)?;
        if !tables.is_empty() {
            let generation = resume.snapshot.generation + 1;
            schemas.extend(tables.iter().map(|table| (table.schema.id.0, table.schema.clone())));
            return Ok(Opened {
                source: at.source,
                schemas,
                since,
                first: Some(first_batch(&tables, at, generation)),
                generation,
                added: tables.iter().map(|table| table.schema.name.clone()).collect(),
                copying: tables.into_iter().map(|table| (table, TableSnapshot::default())).collect(),
                bounds: install.bounds_on_record(connection).map_err(|error| failure(doing(), error))?,
                nothing_to_copy: false,
            });
        }
    }
    let mut copying = Vec::new();
    for (id, state) in resume.snapshot.tables {
        if state.ended && resume.snapshot.ended {
            continue;
        }
        let Some(schema) = schemas.get(&id.0).cloned() else { continue };
        let shape = TableShape::read(connection, &schema.name.name).map_err(|error| failure(doing(), error))?;
        let shape = shape.ok_or_else(|| install::gone(&schema))?;
        copying.push((Captured { schema, shape }, state));
    }
    let bounds = install.bounds_on_record(connection).map_err(|error| failure(doing(), error))?;
    Ok(Opened {
        source: at.source,
        schemas,
        since,
        first: None,
        generation: resume.snapshot.generation,
        nothing_to_copy: !resume.snapshot.ended && copying.is_empty(),
        copying: if resume.snapshot.ended { Vec::new() } else { copying },
        bounds,
        added: Vec::new(),
    })
}

/// That the file is the one that a position is in, and has a record of everything behind it. Returns its number there.
fn check_record(
    connection: &rusqlite::Connection,
    config: &Config,
    install: &Install,
    at: Position,
) -> Result<i64, Failure> {
    let doing = || format!("going on in {}", shown(&config.path));
    match identity(connection)? {
        Some(source) if source == at.source => {}
        Some(_) => return Err(Failure::lost(doing(), "this is another file than the one that was copied", AGAIN)),
        None => {
            return Err(Failure::lost(
                doing(),
                "the file has no record of this migration: it was restored, or the record was removed",
                AGAIN,
            ));
        }
    }
    let since = at.commit as i64;
    match install.span(connection).map_err(|error| failure(doing(), error))? {
        None => Err(Failure::lost(doing(), "the record of changes is gone", AGAIN)),
        Some((_, highest)) if highest < since => Err(stream::went_back(install, since, highest)),
        Some((lowest, _)) if lowest > since => {
            Err(Failure::lost(doing(), format!("changes after {since} were removed from the record"), AGAIN))
        }
        Some(_) => Ok(since),
    }
}

fn identity(connection: &rusqlite::Connection) -> Result<Option<SourceId>, Failure> {
    Install::identity(connection).map_err(|error| failure("reading the file's identity", error))
}

impl Source for SqliteSource {
    async fn open(&mut self, resume: Resume) -> Result<(), Failure> {
        self.stop().await;
        // New tables wait until a backfill that is under way has ended.
        let wish = if resume.snapshot.ended { self.adder.take() } else { None };
        let only = wish.as_ref().map(|wish| wish.only.clone()).unwrap_or_default();
        let (config, install, patterns) = (self.config.clone(), self.install.clone(), self.patterns.clone());
        let begin_at = self.begin_at;
        let opened = blocking(move || begin(&config, &install, &patterns, begin_at, resume, &only)).await;
        match (opened, wish) {
            (Ok(opened), wish) => {
                let added = opened.added.clone();
                let running = self.running.insert(self.start(opened)?);
                running.told = wish.map(|wish| (wish, added));
                Ok(())
            }
            (Err(failure), Some(wish)) if failure.is_transient() => {
                self.adder.put(wish);
                Err(failure)
            }
            (Err(failure), Some(wish)) => {
                // Whoever asked may have gone away. The source itself goes on, opened without the new tables.
                let _ = wish.reply.send(Err(failure));
                Err(adding::again())
            }
            (Err(failure), None) => Err(failure),
        }
    }

    async fn next(&mut self) -> Result<Option<Batch>, Failure> {
        let Some(running) = &mut self.running else {
            return Err(Failure::reconnect("reading from SQLite", "the source is not open"));
        };
        if let Some((wish, names)) = running.told.take() {
            // Whoever asked may have gone away; the tables are in all the same.
            let _ = wish.reply.send(Ok(names));
        }
        if let Some(first) = running.first.take() {
            return Ok(Some(first));
        }
        loop {
            if running.copy.is_none()
                && let Some(held) = running.held.take()
            {
                running.copying = false;
                return Ok(Some(held));
            }
            let within = running.within;
            let draining = running.held.is_some();
            let (stream, copy) = (&mut running.stream, &mut running.copy);
            let copying = copy.is_some() && !within;
            let may_grow = !running.copying && !within;
            // `recv` is cancel-safe: what is not taken stays in its channel.
            tokio::select! {
                batch = stream.recv(), if !draining => {
                    let batch = batch.unwrap_or_else(|| Err(ended("stream")))?;
                    if copy.is_some() && ends_backfill(&batch) {
                        // Its rows are all in the other channel, which closes behind them.
                        running.held = Some(batch);
                        continue;
                    }
                    running.within = !batch.whole;
                    running.copying &= !ends_backfill(&batch);
                    return Ok(Some(batch));
                }
                () = self.adder.wanted(), if may_grow => return Err(adding::again()),
                batch = receive(copy), if copying => match batch {
                    Some(batch) => return batch.map(Some),
                    None if running.copied.load(Ordering::Acquire) < 0 => return Err(ended("tables")),
                    None => running.copy = None,
                },
            }
        }
    }

    async fn confirm(&mut self, durable: Durable) -> Result<(), Failure> {
        let Some(running) = &self.running else {
            return Err(Failure::reconnect("confirming to SQLite", "the source is not open"));
        };
        if running.stream.is_closed() {
            return Err(ended("stream"));
        }
        running.confirmed.fetch_max(durable.position().commit as i64, Ordering::AcqRel);
        Ok(())
    }

    async fn health(&mut self) -> Result<SourceHealth, Failure> {
        let (config, install, patterns) = (self.config.clone(), self.install.clone(), self.patterns.clone());
        blocking(move || health(&config, &install, &patterns)).await
    }
}

fn ends_backfill(batch: &Batch) -> bool {
    batch.events.iter().any(|stamped| matches!(stamped.event, Event::BackfillEnded { .. }))
}

async fn receive(copy: &mut Option<mpsc::Receiver<Result<Batch, Failure>>>) -> Option<Result<Batch, Failure>> {
    match copy {
        Some(copy) => copy.recv().await,
        None => std::future::pending().await,
    }
}

fn ended(what: &str) -> Failure {
    Failure::reconnect("reading from SQLite", format!("the thread that reads the {what} has ended"))
}

fn health(config: &Config, install: &Install, patterns: &[String]) -> Result<SourceHealth, Failure> {
    let doing = "asking the source how it is";
    let connection = open(config, Access::Existing)?;
    let Some((lowest, highest)) = install.span(&connection).map_err(|error| failure(doing, error))? else {
        return Ok(SourceHealth { status: Some("no changes are recorded".to_owned()), ..SourceHealth::default() });
    };
    let source = identity(&connection)?;
    let captured = install.layouts(&connection).map_err(|error| failure(doing, error))?;
    let names = shape::names(&connection).map_err(|error| failure(doing, error))?;
    let uncaptured = names
        .into_iter()
        .filter(|(name, view)| !view && shape::matches(patterns, name))
        .map(|(name, _)| name)
        .filter(|name| !captured.iter().any(|layout| *layout.schema.name.name == **name))
        .map(|name| format!("main.{name}"))
        .collect();
    // Counting pages means reading them: not where there are very many.
    let few = highest - lowest < 1_000_000;
    let sql = "SELECT pgsize FROM dbstat WHERE name = ?1 AND aggregate = TRUE";
    let retained = few
        .then(|| connection.query_row(sql, [install.names.changes()], |row| row.get::<_, i64>(0)))
        .transpose()
        .map_err(|error| failure(doing, error))?;
    let journal = crate::client::journal_mode(&connection).map_err(|error| failure(doing, error))?;
    Ok(SourceHealth {
        retained_bytes: retained.map(|bytes| bytes as u64),
        status: Some(format!("recording, {} changes kept, journal mode {journal}", highest - lowest)),
        current: source.map(|source| position(source, highest, u32::MAX)),
        uncaptured_tables: uncaptured,
    })
}
