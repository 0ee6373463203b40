//! The source: a publication, a slot, a stream, and the chunks of a backfill beside it.
//!
//! ```text
//! open ─ setup: same server? same slot? publication covers all? ──▶ engine (a task)
//!                                                                    │  ▲        ▲
//!   next ◀── batches, one waiting at most ── assembler ◀── pgoutput ─┘  │        │ rows
//!   confirm ──▶ durable position ──▶ reader task ──▶ server             │   snapshot workers
//!                                        └── chunks of WAL ─────────────┘
//! ```
//! The engine hands over through a channel, so that `next` can be cancelled at any moment and loses nothing: what was
//! not handed over is read again from the log's own position after the next `open`.

mod assemble;
pub(crate) mod capture;
mod catalog;
mod engine;
mod fetch;
mod heaps;
mod notes;
mod relations;
mod setup;
mod slot;
mod snapshot;
mod spool;
pub(crate) mod tree;
mod visibility;

use crate::{
    Config, Patterns, PostgresInspect, Session,
    client::{self, replication::Lsn},
};
use crossfade_connector::{Failure, Refusal, Resume, Source, SourceHealth};
use crossfade_event::{Batch, Durable, Position, SourceId, TableName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

/// How tables are copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotConfig {
    /// How many chunks are read at the same time.
    pub workers: usize,
    /// About how many rows a chunk has.
    pub chunk_rows: u64,
}

impl Default for SnapshotConfig {
    fn default() -> Self {
        Self { workers: 4, chunk_rows: 250_000 }
    }
}

/// What happens when a table is rewritten while it is captured (a column retyped, one added with a default that is
/// not constant): its old rows change without an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnRewrite {
    /// The table is copied again, within the stream.
    #[default]
    Snapshot,
    /// The migration stops and says what to do.
    Stop,
}

/// How a partition tree is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Partitions {
    /// Leaf by leaf: each is a table of its own.
    #[default]
    Leaf,
    /// As one table, under its root's name.
    Root,
}

/// Where a source begins whose log is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Begin {
    /// With a copy of the tables as they are.
    #[default]
    Copy,
    /// At the place of a slot that was made before ([`PostgresSource::place_of_slot`]), with nothing copied: both ends were
    /// equal there.
    At(Position),
}

/// Everything that a source needs to know.
#[derive(Debug, Clone)]
pub struct SourceConfig {
    /// The server.
    pub connection: Config,
    /// The migration's name: names the slot and the publication (`crossfade_` and the name, `-` as `_`).
    pub migration: String,
    /// Which tables, as patterns.
    pub tables: Vec<String>,
    /// How tables are copied.
    pub snapshot: SnapshotConfig,
    /// A folder for transactions too large for memory; emptied at every start.
    pub spool_dir: PathBuf,
    /// Read everything as text, even where the binary form would do.
    pub text: bool,
    /// What to do when a table is rewritten.
    pub on_rewrite: OnRewrite,
    /// How partition trees are captured.
    pub partitions: Partitions,
    /// How often an idle source writes a mark into its own stream; zero for never.
    pub heartbeat: Duration,
    /// Make the slot one that standbys synchronise (PostgreSQL 17 and later).
    pub failover: bool,
    /// Hand a transaction over only when every session sees it: needed where the sink writes into the same tables, for
    /// a row that it does not see yet is to it one that is gone.
    pub seen_first: bool,
    /// Where it begins with an empty log.
    pub begin: Begin,
}

impl SourceConfig {
    /// A config with the usual settings.
    pub fn new(connection: Config, migration: impl Into<String>, tables: Vec<String>, spool_dir: PathBuf) -> Self {
        Self {
            connection,
            migration: migration.into(),
            tables,
            snapshot: SnapshotConfig::default(),
            spool_dir,
            text: false,
            on_rewrite: OnRewrite::default(),
            partitions: Partitions::default(),
            heartbeat: Duration::from_secs(30),
            failover: false,
            seen_first: false,
            begin: Begin::Copy,
        }
    }

    /// The name of the slot and of the publication.
    pub fn object_name(&self) -> String {
        object_name(&self.migration)
    }

    pub(crate) fn application_name(&self) -> String {
        format!("crossfade {}", self.migration)
    }
}

/// The longest name of a migration, and of its way back, whose objects a server takes.
const NAME_MAX: usize = 49;

/// The name of a migration's slot and publication.
fn object_name(migration: &str) -> String {
    format!("crossfade_{}", migration.replace('-', "_"))
}

/// A PostgreSQL database as a source. See the module's drawing.
#[derive(Debug)]
pub struct PostgresSource {
    config: Arc<SourceConfig>,
    patterns: Patterns,
    adder: TableAdder,
    running: Option<Running>,
}

/// Takes new tables in while the source runs; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct TableAdder(Arc<Mutex<Option<mpsc::Sender<engine::Command>>>>);

impl TableAdder {
    /// Takes in tables that match the patterns and are not captured, of these names (`None` for all): they join the
    /// publication, and are copied within the stream. Waits for a running backfill to end first. Returns the names of
    /// those whose copy begins; its beginning is on its way to the log then.
    ///
    /// # Errors
    /// `Refused` with the exact SQL where the role may not change the publication; `Reconnect` while the source is not
    /// open.
    pub async fn add_tables(&self, only: Option<Vec<TableName>>) -> Result<Vec<TableName>, Failure> {
        let closed = || Failure::reconnect("taking in new tables", "the source is not open");
        let commands = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (reply, answer) = oneshot::channel();
        commands.ok_or_else(closed)?.send(engine::Command::AddTables { only, reply }).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }
}

struct Running {
    batches: mpsc::Receiver<Result<Batch, Failure>>,
    durable: Arc<AtomicU64>,
    identity: (SourceId, u32),
    captured: Arc<catalog::CapturedNames>,
    session: Session,
    task: JoinHandle<()>,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Running")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl PostgresSource {
    /// A source that is not connected yet.
    ///
    /// # Errors
    /// `Misconfigured` for a name or a pattern that cannot be.
    pub fn new(config: SourceConfig) -> Result<Self, Failure> {
        let named = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let name = &config.migration;
        if !name.starts_with(|c: char| c.is_ascii_lowercase()) || name.len() > NAME_MAX || !name.chars().all(named) {
            return Err(Failure::misconfigured(
                "reading the spec",
                format!("`{name}` cannot name a migration"),
                format!("Use a to z first, then a to z, 0 to 9 and -, at most {NAME_MAX} in all"),
            ));
        }
        if config.snapshot.workers == 0 || config.snapshot.chunk_rows == 0 {
            return Err(Failure::misconfigured(
                "reading the spec",
                "snapshot.workers and snapshot.chunk_rows cannot be zero",
                "Give at least one of each",
            ));
        }
        let patterns = Patterns::parse(&config.tables)?.by_root(config.partitions == Partitions::Root);
        Ok(Self { config: Arc::new(config), patterns, adder: TableAdder::default(), running: None })
    }

    /// The handle that takes in new tables.
    pub fn adder(&self) -> TableAdder {
        self.adder.clone()
    }

    /// A position of this kind of source in the server's own words: an LSN.
    pub fn place_words(position: &Position) -> String {
        Lsn(position.commit).to_string()
    }

    /// The statements that make what the source needs of its own in the database, as far as it is not there yet, and
    /// the mark that an idle source writes. Nothing is changed.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn ddl(&self) -> Result<Vec<String>, Failure> {
        let config = &self.config;
        let session = client::connect(&config.connection, &config.application_name()).await?;
        let missing = self.missing(&session).await?;
        let mark = (!config.heartbeat.is_zero()).then(|| capture::heartbeat(&config.migration));
        Ok(missing.publication.into_iter().chain(missing.slot).chain(mark).collect())
    }

    /// What stands against the database as this source. Nothing is changed.
    ///
    /// # Errors
    /// When it cannot be asked, or a pattern matches nothing.
    pub async fn preflight(&self) -> Result<Vec<Refusal>, Failure> {
        PostgresInspect::new(self.config.connection.clone()).preflight_source(self).await
    }

    /// What of its own the source has still to make.
    pub(crate) async fn missing(&self, session: &Session) -> Result<capture::Capture, Failure> {
        capture::missing(session, &self.config.migration, &self.patterns, self.config.failover).await
    }

    /// Has these tables tell each row as it was before, from here on (`REPLICA IDENTITY FULL`).
    ///
    /// # Errors
    /// `Refused` with the exact SQL where the role may not.
    pub async fn tell_old_rows(&self, tables: &[TableName]) -> Result<(), Failure> {
        Box::pin(setup::tell_old_rows(&self.config, tables)).await
    }

    /// Where a slot begins that a switch has made under this source's name, and moved up to where both sides are equal: with
    /// an empty log the source begins there ([`Begin::At`]).
    ///
    /// # Errors
    /// `Lost` where it is not there, or is of another kind.
    pub async fn place_of_slot(&self) -> Result<Position, Failure> {
        Box::pin(setup::place_of_slot(&self.config)).await
    }

    /// The patterns, as the spec writes them.
    pub(crate) fn tables(&self) -> &[String] {
        &self.config.tables
    }

    /// Removes everything that the migration made in the source: slot and publication. Afterwards a resume is
    /// impossible, and refused as lost.
    ///
    /// # Errors
    /// When the server cannot be reached, or the role may not.
    pub async fn uninstall(&mut self) -> Result<(), Failure> {
        self.stop().await;
        let session = client::connect(&self.config.connection, &self.config.application_name()).await?;
        capture::uninstall(&session, &self.config.migration).await
    }

    /// Ends the engine, so that its slot is free again.
    async fn stop(&mut self) {
        if let Some(mut old) = self.running.take() {
            old.task.abort();
            let _ = (&mut old.task).await;
        }
    }

    fn running(&mut self) -> Result<&mut Running, Failure> {
        self.running.as_mut().ok_or_else(|| Failure::reconnect("reading from PostgreSQL", "the source is not open"))
    }
}

impl Source for PostgresSource {
    async fn open(&mut self, resume: Resume) -> Result<(), Failure> {
        self.stop().await;
        let prepared = Box::pin(setup::prepare(&self.config, &self.patterns, resume)).await?;
        let identity = (prepared.origin.source, prepared.origin.timeline);
        let captured = prepared.captured.clone();
        let session = client::connect(&self.config.connection, &self.config.application_name()).await?;
        // One batch may wait: while it does, the next one grows.
        let (sender, batches) = mpsc::channel(1);
        let (commands, receiver) = mpsc::channel(1);
        let started = engine::Engine::start(self.config.clone(), self.patterns.clone(), prepared, sender, receiver);
        let (engine, durable) = Box::pin(started).await?;
        let task = tokio::spawn(engine.run());
        *self.adder.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(commands);
        self.running = Some(Running { batches, durable, identity, captured, session, task });
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Batch>, Failure> {
        match self.running()?.batches.recv().await {
            Some(batch) => batch.map(Some),
            None => Err(Failure::reconnect("reading from PostgreSQL", "the source's task has ended")),
        }
    }

    async fn confirm(&mut self, durable: Durable) -> Result<(), Failure> {
        let position = durable.position();
        // A position inside a transaction confirms nothing: the transaction comes again as a whole.
        if position.ordinal == u32::MAX {
            self.running()?.durable.fetch_max(position.commit, Ordering::AcqRel);
        }
        Ok(())
    }

    async fn health(&mut self) -> Result<SourceHealth, Failure> {
        let config = self.config.clone();
        let patterns = self.patterns.clone();
        let running = self.running()?;
        let health = slot::health(&running.session, &config.object_name()).await?;
        let current = health.current.map(|Lsn(commit)| Position {
            source: running.identity.0,
            timeline: running.identity.1,
            commit,
            ordinal: u32::MAX,
        });
        let uncaptured_tables =
            catalog::uncaptured(&running.session, &config.migration, &patterns, &running.captured).await?;
        Ok(SourceHealth {
            retained_bytes: health.retained_bytes,
            status: health.wal_status,
            current,
            uncaptured_tables,
        })
    }
}
