//! The log in a folder: segment files, one writer, any number of readers.
//!
//! ```text
//!  append ──▶ queue ──▶ writer thread: encode all that waits ─▶ few large writes ─▶ one fdatasync ─▶ publish the end
//!                                                                                                       │
//!  near reader ◀── the batches themselves, from memory, each once ◀───────────────────────────────────────┤
//!  any reader  ◀── frames below the published end, read from the page cache in large pieces ◀─────────────┘
//! ```
//!
//! In the folder: `<base>.log` segments, `<base>.idx` sparse indexes, `schemas`, `consumers`, each described at the top
//! of its module and in `docs/log-format.md`, and `lock`, which the one writing process holds. Readers in this process
//! see nothing before it is durable and whole. Other processes may look, with [`Embedded::open_read_only`].
//!
//! After a failed write or fsync the log is poisoned: what is on disk is then unknown (the kernel drops the dirty
//! pages of a failed fsync), so nothing more is written until opening has read it again. A batch that breaks the
//! contract poisons it too, for later batches must not land behind a missing one.

mod consumers;
mod disk;
mod find;
mod frames;
mod fresh;
mod index;
mod open;
mod reader;
mod recover;
mod schemas;
mod segment;
mod shared;
mod writer;

pub use disk::{Disk, OsDisk};
pub use reader::Reader;
pub use recover::Verified;
pub use shared::Statistics;

use crate::{EventLog, Lane, LogError, Tail};
use crossfade_event::{Batch, Cut, Offset, Partition, Position, SchemaVersion, TableId, TableSchema};
use shared::{Inner, Job};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// How a log is kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// A segment takes no frame that would make it longer, unless it is the segment's first.
    pub segment_bytes: u64,
    /// How many partitions; one.
    pub partitions: u32,
    /// What is dropped of its own accord.
    pub retention: Retention,
    /// Whether appends are made durable with fdatasync. Without, a crash of the machine (not of the process) loses
    /// what the system had not written yet; a log that a consumer has read further than its new end is then refused.
    pub sync: bool,
    /// The log's own number; drawn when the log is made, unless it is given here.
    pub id: Option<u64>,
    /// How bytes reach the disk; other than [`OsDisk`] in tests.
    pub disk: Arc<dyn Disk>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 64 * 1024 * 1024,
            partitions: 1,
            retention: Retention::default(),
            sync: true,
            id: None,
            disk: Arc::new(OsDisk),
        }
    }
}

/// When whole segments are dropped. Never past the slowest consumer, and not before the first one has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retention {
    /// Drop a segment when its last append is older.
    pub time: Option<Duration>,
    /// Drop the oldest segments while the log is larger.
    pub bytes: Option<u64>,
}

/// Where the log ends for its readers: after the last frame that is durable and ends a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct End {
    next: Offset,
    segment: Offset,
    at: u64,
    upto: Option<Position>,
}

/// The embedded log. All clones are one log; when the last one and the last reader are gone it is closed.
#[derive(Debug, Clone)]
pub struct Embedded(Arc<Inner>);

impl Embedded {
    /// Opens the log in `dir` for writing, and makes it where there is none. Reads the last segment, so call it where
    /// blocking is allowed.
    ///
    /// # Errors
    /// [`LogError::Locked`] when another process writes here, [`LogError::Corrupt`] and [`LogError::TooNew`] for files
    /// that cannot be used (nothing is changed then), [`LogError::NotBuilt`] for options that are not built.
    pub fn open(dir: impl AsRef<Path>, options: Options) -> Result<Self, LogError> {
        open::for_writing(dir.as_ref(), options).map(|inner| Self(Arc::new(inner)))
    }

    /// Opens the log in `dir` for looking, also while another process writes there. It shows the log as it is now.
    ///
    /// # Errors
    /// As [`Embedded::open`], but for the lock; [`LogError::Io`] when there is no log.
    pub fn open_read_only(dir: impl AsRef<Path>) -> Result<Self, LogError> {
        open::for_reading(dir.as_ref()).map(|inner| Self(Arc::new(inner)))
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.0.shared.dir
    }

    /// The log's own number, drawn when it was made: another log in the same folder has another.
    pub fn id(&self) -> u64 {
        self.0.shared.id
    }

    /// The named consumers, and the first offset that each has not read.
    pub fn consumers(&self) -> Vec<(String, Cut)> {
        self.0.shared.consumers()
    }

    /// Figures for people.
    ///
    /// # Errors
    /// When a file cannot be looked at.
    pub fn statistics(&self) -> Result<Statistics, LogError> {
        self.0.shared.statistics()
    }

    /// Drops what the retention allows; also done by itself whenever a segment is full. Returns the new start.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn retain(&self) -> Result<Cut, LogError> {
        self.0.shared.retain()
    }

    /// Reads and checks every frame and every record. Takes as long as reading the whole log.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] with the first damage.
    pub fn verify(&self) -> Result<Verified, LogError> {
        self.0.shared.verify()
    }

    /// Why the log takes no more appends, if so.
    pub fn poisoned(&self) -> Option<String> {
        self.0.shared.poisoned()
    }
}

impl EventLog for Embedded {
    type Reader = Reader;

    fn partitions(&self) -> u32 {
        1
    }

    fn append(&self, batch: Batch) -> impl Future<Output = Result<Cut, LogError>> + Send + 'static {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.0.enqueue(Job::Append(batch, reply));
        async move { answer.await.unwrap_or_else(|_| Err(writer_ended())) }
    }

    fn abandon(&self) -> impl Future<Output = Result<(), LogError>> + Send + 'static {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.0.enqueue(Job::Abandon(reply));
        async move { answer.await.unwrap_or_else(|_| Err(writer_ended())) }
    }

    fn read(&self, from: &Cut, lane: Lane) -> Result<Reader, LogError> {
        Reader::new(self.0.clone(), from, lane)
    }

    fn read_aside(&self, from: &Cut, lane: Lane) -> Result<Reader, LogError> {
        Reader::new(self.0.clone(), from, lane).map(Reader::aside)
    }

    fn tail(&self) -> Tail {
        let end = self.0.shared.end();
        Tail { cut: Cut::single(end.next), position: end.upto }
    }

    fn near_end(&self) -> Cut {
        Cut::single(self.near_the_end())
    }

    fn start(&self) -> Cut {
        Cut::single(self.0.shared.start())
    }

    fn schema(&self, table: TableId, version: SchemaVersion) -> Option<Arc<TableSchema>> {
        self.0.shared.schemas().get(table, version)
    }

    fn latest_schemas(&self) -> Vec<Arc<TableSchema>> {
        self.0.shared.schemas().latest()
    }

    fn behind_bytes(&self) -> Option<u64> {
        self.0.shared.fresh.behind_bytes()
    }

    fn unread_bytes(&self) -> Option<u64> {
        self.0.shared.fresh.unread_bytes()
    }

    fn hold(&self, consumer: &str, cut: &Cut) -> Result<(), LogError> {
        self.0.shared.hold(consumer, offset_of(cut)?)
    }

    fn release(&self, consumer: &str) -> Result<(), LogError> {
        self.0.shared.release(consumer)
    }

    fn trim(&self, below: &Cut, force: bool) -> Result<Cut, LogError> {
        self.0.shared.trim(offset_of(below)?, force)
    }
}

fn writer_ended() -> LogError {
    LogError::Poisoned { why: "the thread that writes the log has ended".to_owned() }
}

/// The one offset of a cut.
fn offset_of(cut: &Cut) -> Result<Offset, LogError> {
    if cut.0.len() > 1 {
        return Err(LogError::Contract(format!("a cut of {} partitions for a log of one", cut.0.len())));
    }
    Ok(cut.next(Partition(0)))
}

fn io_error(doing: &'static str, file: &Path) -> impl FnOnce(std::io::Error) -> LogError {
    move |cause| LogError::Io { doing, file: file.to_owned(), cause }
}

fn corrupt(file: &Path, at: u64, what: impl Into<String>) -> LogError {
    LogError::Corrupt { file: file.to_owned(), at, what: what.into() }
}

/// Makes the folder's entries durable: a new, renamed or removed file.
fn sync_dir(dir: &Path) -> Result<(), LogError> {
    std::fs::File::open(dir).and_then(|folder| folder.sync_all()).map_err(io_error("syncing", dir))
}

/// The file that the one writer holds locked.
fn lock_path(dir: &Path) -> PathBuf {
    dir.join("lock")
}
