//! The event log of a migration, whichever its spec names: one line each, like the connectors. Everything behind
//! [`EventLog`] stays generic; here the log is opened, and asked what only one of them can tell.

#[cfg(feature = "kafka")]
pub(crate) mod kafka;

use crate::{
    commands::{Finding, folder},
    error::CliError,
    spec::{EmbeddedLog, KafkaLog as KafkaKeys, LogSpec, Spec},
};
use bytes::Bytes;
use crossfade_event::{Batch, Cut, Offset, Partition, SchemaVersion, Sequence, TableId, TableSchema};
#[cfg(feature = "kafka")]
use crossfade_kafka::log::{KafkaLog, KafkaReader};
use crossfade_log::{
    Entries, EventLog, Lane, LogError, LogReader, Tail,
    embedded::{Embedded, Options, Reader, Retention},
};
use crossfade_observe::{ClientStatus, DeliverStatus, ProcessStatus, WorkerStatus};
use crossfade_pipeline::{Partitions, Routes};
use crossfade_state::WorkFolder;
use futures::{FutureExt, future::BoxFuture};
use serde_json::{Value as Json, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

/// What a worker does, as `--role` has it.
#[cfg(feature = "kafka")]
const TRANSFORM: &str = "transform";

/// The log. All clones are one log.
#[derive(Debug, Clone)]
pub(crate) enum AnyLog {
    /// Segment files in the migration's folder.
    Embedded(Embedded),
    /// Topics of a Kafka cluster, and the migration's folder.
    #[cfg(feature = "kafka")]
    Kafka(KafkaLog, Arc<Path>),
}

/// Reads the log.
pub(crate) enum AnyReader {
    /// Segment files.
    Embedded(Reader),
    /// Topics.
    #[cfg(feature = "kafka")]
    Kafka(Box<KafkaReader>),
}

/// One process that delivers beside others: what the group of those that deliver tells it, and asks.
#[cfg_attr(not(feature = "kafka"), expect(dead_code, reason = "only a log of topics has seats to give"))]
pub(crate) trait Seat: Send + Sync {
    /// These partitions are this process's now, and no others.
    fn given(&self, partitions: &BTreeSet<u32>);

    /// The partitions that it applies, and the first offset of each that is not in the sink.
    fn places(&self) -> BTreeMap<u32, Offset>;
}

/// The same call, whichever it is.
macro_rules! each {
    ($any:expr, $one:ident => $call:expr) => {
        match $any {
            Self::Embedded($one) => $call,
            #[cfg(feature = "kafka")]
            Self::Kafka($one, ..) => $call,
        }
    };
}

impl EventLog for AnyLog {
    type Reader = AnyReader;

    fn partitions(&self) -> u32 {
        each!(self, one => one.partitions())
    }

    fn append(&self, batch: Batch) -> impl Future<Output = Result<Cut, LogError>> + Send + 'static {
        let appending: BoxFuture<'static, Result<Cut, LogError>> = each!(self, one => one.append(batch).boxed());
        appending
    }

    fn abandon(&self) -> impl Future<Output = Result<(), LogError>> + Send + 'static {
        let abandoning: BoxFuture<'static, Result<(), LogError>> = each!(self, one => one.abandon().boxed());
        abandoning
    }

    fn read(&self, from: &Cut, lane: Lane) -> Result<AnyReader, LogError> {
        match self {
            Self::Embedded(log) => log.read(from, lane).map(AnyReader::Embedded),
            #[cfg(feature = "kafka")]
            Self::Kafka(log, _) => log.read(from, lane).map(|reader| AnyReader::Kafka(Box::new(reader))),
        }
    }

    fn read_aside(&self, from: &Cut, lane: Lane) -> Result<AnyReader, LogError> {
        match self {
            Self::Embedded(log) => log.read_aside(from, lane).map(AnyReader::Embedded),
            #[cfg(feature = "kafka")]
            Self::Kafka(log, _) => log.read_aside(from, lane).map(|reader| AnyReader::Kafka(Box::new(reader))),
        }
    }

    fn read_made(&self, from: &Cut, lane: Lane) -> Result<AnyReader, LogError> {
        match self {
            Self::Embedded(log) => log.read_made(from, lane).map(AnyReader::Embedded),
            #[cfg(feature = "kafka")]
            Self::Kafka(log, _) => log.read_made(from, lane).map(|reader| AnyReader::Kafka(Box::new(reader))),
        }
    }

    fn tail(&self) -> Tail {
        each!(self, one => one.tail())
    }

    fn near_end(&self) -> Cut {
        each!(self, one => one.near_end())
    }

    fn start(&self) -> Cut {
        each!(self, one => one.start())
    }

    fn schema(&self, table: TableId, version: SchemaVersion) -> Option<Arc<TableSchema>> {
        each!(self, one => one.schema(table, version))
    }

    fn latest_schemas(&self) -> Vec<Arc<TableSchema>> {
        each!(self, one => one.latest_schemas())
    }

    fn behind_bytes(&self) -> Option<u64> {
        each!(self, one => one.behind_bytes())
    }

    fn unread_bytes(&self) -> Option<u64> {
        each!(self, one => one.unread_bytes())
    }

    fn hold(&self, consumer: &str, cut: &Cut) -> Result<(), LogError> {
        each!(self, one => one.hold(consumer, cut))
    }

    fn release(&self, consumer: &str) -> Result<(), LogError> {
        each!(self, one => one.release(consumer))
    }

    fn trim(&self, below: &Cut, force: bool) -> Result<Cut, LogError> {
        each!(self, one => one.trim(below, force))
    }
}

impl Partitions for AnyLog {
    type PartReader = AnyReader;

    #[cfg_attr(not(feature = "kafka"), expect(unused_variables, reason = "only a log on Kafka is shared"))]
    fn read_partition(&self, from: &Cut, partition: Partition) -> Result<AnyReader, LogError> {
        match self {
            Self::Embedded(_) => Err(LogError::Contract("the log on disk is read as a whole".to_owned())),
            #[cfg(feature = "kafka")]
            Self::Kafka(log, _) => log.read_partition(from, partition).map(|reader| AnyReader::Kafka(Box::new(reader))),
        }
    }
}

impl LogReader for AnyReader {
    async fn next(&mut self) -> Result<Entries, LogError> {
        each!(self, one => one.next().await)
    }

    fn try_next(&mut self) -> Result<Option<Entries>, LogError> {
        each!(self, one => one.try_next())
    }

    fn made(&mut self, sequence: Sequence) -> Option<Bytes> {
        each!(self, one => one.made(sequence))
    }

    fn waits(&self) -> bool {
        each!(self, one => one.waits())
    }
}

/// What a log that was read from its beginning to its end holds.
#[derive(Debug, Default)]
pub(crate) struct Sound {
    /// For people: what was looked at.
    pub(crate) said: String,
    /// For programs.
    pub(crate) figures: Json,
}

impl AnyLog {
    /// Opens the log for writing, and makes it where there is none.
    pub(crate) async fn open(spec: &Spec) -> Result<Self, CliError> {
        let opened = match &spec.log {
            LogSpec::Embedded(keys) => {
                let (path, options) = (WorkFolder::log_path(&spec.base()), embedded_options(keys));
                tokio::task::spawn_blocking(move || Embedded::open(path, options).map(Self::Embedded)).await
            }
            #[cfg(feature = "kafka")]
            LogSpec::Kafka(keys) => {
                let (options, folder) = (kafka::options(spec, keys), Arc::from(spec.folder()));
                tokio::task::spawn_blocking(move || KafkaLog::open(options).map(|log| Self::Kafka(log, folder))).await
            }
            #[cfg(not(feature = "kafka"))]
            LogSpec::Kafka(_) => return Err(without_kafka()),
        };
        Ok(opened.map_err(|error| CliError::failed(format!("opening the log: {error}")))??)
    }

    /// The log of a migration that has one, for looking; works beside a running migration.
    pub(crate) fn look(spec: &Spec) -> Result<Self, CliError> {
        let base = folder::base(spec)?;
        Self::if_there(spec)?.ok_or_else(|| {
            CliError::misconfigured(format!("the migration {} has no log yet: {}", spec.name, place(spec, &base)))
                .hint(format!("`crossfade run {}` makes it", spec.file.display()))
        })
    }

    /// The log of a migration that another process runs, for following it as it grows.
    pub(crate) fn follow(spec: &Spec) -> Result<Self, CliError> {
        #[cfg(feature = "kafka")]
        if let LogSpec::Kafka(keys) = &spec.log {
            folder::base(spec)?;
            let options = kafka::options(spec, keys);
            if kafka::is_pinned(&options) {
                return Ok(Self::Kafka(in_place(|| KafkaLog::open_following(options))?, Arc::from(spec.folder())));
            }
        }
        Self::look(spec)
    }

    /// The log of a migration, for looking; `None` where there is none yet.
    pub(crate) fn if_there(spec: &Spec) -> Result<Option<Self>, CliError> {
        match &spec.log {
            LogSpec::Embedded(_) => {
                let path = WorkFolder::log_path(&spec.base());
                Ok(if path.is_dir() { Some(Self::Embedded(Embedded::open_read_only(path)?)) } else { None })
            }
            #[cfg(feature = "kafka")]
            LogSpec::Kafka(keys) => {
                let options = kafka::options(spec, keys);
                if !kafka::is_pinned(&options) {
                    return Ok(None);
                }
                let log = in_place(|| KafkaLog::open_read_only(options))?;
                Ok(Some(Self::Kafka(log, Arc::from(spec.folder()))))
            }
            #[cfg(not(feature = "kafka"))]
            LogSpec::Kafka(_) => Err(without_kafka()),
        }
    }

    /// For a log that is only looked at, or followed: the log as it is now.
    pub(crate) fn looked_again(&mut self, spec: &Spec) -> Result<(), CliError> {
        match self {
            Self::Embedded(_) => *self = Self::look(spec)?,
            #[cfg(feature = "kafka")]
            Self::Kafka(log, _) => {
                in_place(|| log.look_again())?;
            }
        }
        Ok(())
    }

    /// Drops a migration's log.
    pub(crate) async fn forget(spec: &Spec) -> Result<(), CliError> {
        match &spec.log {
            LogSpec::Embedded(_) => {}
            #[cfg(feature = "kafka")]
            LogSpec::Kafka(keys) => kafka::forget(kafka::options(spec, keys)).await?,
            #[cfg(not(feature = "kafka"))]
            LogSpec::Kafka(_) => return Err(without_kafka()),
        }
        let path = WorkFolder::log_path(&spec.base());
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(CliError::io(format!("removing {}", path.display()), &error))
            }
            _ => Ok(()),
        }
    }

    /// What is in the way of a log as the spec describes it. Writes nothing.
    pub(crate) async fn preflight(spec: &Spec) -> Result<Vec<Finding>, CliError> {
        match &spec.log {
            LogSpec::Embedded(_) => Ok(Vec::new()),
            #[cfg(feature = "kafka")]
            LogSpec::Kafka(keys) => kafka::preflight(kafka::options(spec, keys)).await,
            #[cfg(not(feature = "kafka"))]
            LogSpec::Kafka(_) => Err(without_kafka()),
        }
    }

    /// What whoever writes the log has said of the migration; `None` while there is no log, or nothing said.
    pub(crate) fn head(spec: &Spec) -> Result<Option<String>, CliError> {
        match &spec.log {
            LogSpec::Embedded(_) => Ok(None),
            #[cfg(feature = "kafka")]
            LogSpec::Kafka(keys) => Ok(in_place(|| KafkaLog::head(&kafka::options(spec, keys)))?),
            #[cfg(not(feature = "kafka"))]
            LogSpec::Kafka(_) => Err(without_kafka()),
        }
    }

    /// Notes in the migration's folder which log it is, where it was made on another machine.
    pub(crate) fn adopt(spec: &Spec) -> Result<(), CliError> {
        match &spec.log {
            LogSpec::Embedded(_) => Ok(()),
            #[cfg(feature = "kafka")]
            LogSpec::Kafka(keys) => Ok(in_place(|| KafkaLog::adopt(&kafka::options(spec, keys)))?),
            #[cfg(not(feature = "kafka"))]
            LogSpec::Kafka(_) => Err(without_kafka()),
        }
    }

    /// Says in the log what the migration is.
    #[cfg_attr(not(feature = "kafka"), expect(unused_variables, reason = "only a log on Kafka has a head"))]
    pub(crate) fn say_head(&self, head: &str) -> Result<(), CliError> {
        match self {
            Self::Embedded(_) => Err(one_machine()),
            #[cfg(feature = "kafka")]
            Self::Kafka(log, _) => Ok(in_place(|| log.say_head(head))?),
        }
    }

    /// Takes the turn to deliver: a number higher than all that were given before, on whatever machine.
    pub(crate) fn take_turn(&self) -> Result<u64, CliError> {
        Ok(self.turn()?)
    }

    /// The same, for a loop.
    pub(crate) fn turn(&self) -> Result<u64, LogError> {
        match self {
            Self::Embedded(_) => Err(on_one_machine()),
            #[cfg(feature = "kafka")]
            Self::Kafka(log, _) => in_place(|| log.take_turn()),
        }
    }

    /// How long a process that delivers beside others may be silent; `None` where the log is for one.
    pub(crate) fn silent(spec: &Spec) -> Option<Duration> {
        match &spec.log {
            LogSpec::Embedded(_) => None,
            LogSpec::Kafka(keys) => Some(keys.worker_timeout.map_or(SILENT, |silent| silent.0)),
        }
    }

    /// Takes a seat among those that deliver until `stop` is set. Blocks.
    #[cfg_attr(not(feature = "kafka"), expect(unused_variables, reason = "only a log on Kafka is shared"))]
    pub(crate) fn take_seat(&self, silent: Duration, stop: &AtomicBool, seat: &dyn Seat) -> Result<(), LogError> {
        match self {
            Self::Embedded(_) => Err(on_one_machine()),
            #[cfg(feature = "kafka")]
            Self::Kafka(log, _) => log.take_seat(silent, stop, &kafka::Seated(seat)),
        }
    }

    /// Says that this process has the lead of those that deliver.
    pub(crate) fn say_lead(&self) -> Result<(), LogError> {
        match self {
            Self::Embedded(_) => Err(on_one_machine()),
            #[cfg(feature = "kafka")]
            Self::Kafka(log, _) => in_place(|| log.say_lead()),
        }
    }

    /// Another process says from now on how far that consumer is.
    #[cfg_attr(not(feature = "kafka"), expect(unused_variables, reason = "only a log on Kafka is shared"))]
    pub(crate) fn leave_hold(&self, consumer: &str) {
        match self {
            Self::Embedded(_) => {}
            #[cfg(feature = "kafka")]
            Self::Kafka(log, _) => log.leave_hold(consumer),
        }
    }

    /// Who has the lead of several that deliver, by what it has said.
    pub(crate) fn lead(&self) -> Option<String> {
        match self {
            Self::Embedded(_) => None,
            #[cfg(feature = "kafka")]
            Self::Kafka(log, _) => log.lead(),
        }
    }

    /// Those that share the stream, and what each has of it; nothing while one applies all of it.
    pub(crate) fn delivers(&self) -> Vec<DeliverStatus> {
        match self {
            Self::Embedded(_) => Vec::new(),
            #[cfg(feature = "kafka")]
            Self::Kafka(log, _) => kafka::delivers(log),
        }
    }

    /// Works as a transform worker of the log until `stop` is set; `tell` hears what it has. Blocks.
    #[cfg_attr(not(feature = "kafka"), expect(unused_variables, reason = "only a log on Kafka has workers"))]
    pub(crate) fn transform(
        &self,
        routes: Routes,
        stop: &AtomicBool,
        tell: &dyn Fn(WorkerStatus),
    ) -> Result<(), CliError> {
        match self {
            Self::Embedded(_) => Err(one_machine()),
            #[cfg(feature = "kafka")]
            Self::Kafka(log, _) => Ok(kafka::transform(log, routes, stop, &|share| {
                let before = share.partitions.values().sum();
                log.tell(TRANSFORM, share.partitions.clone(), before, share.waiting.clone());
                tell(WorkerStatus {
                    partitions: share.partitions,
                    made: share.made,
                    waiting: share.waiting,
                    clients: kafka::clients(log),
                    ..WorkerStatus::default()
                });
            })?),
        }
    }

    /// The log's own number, drawn when it was made.
    pub(crate) fn id(&self) -> u64 {
        each!(self, one => one.id())
    }

    /// The named consumers, and the first offset that each has not read.
    pub(crate) fn consumers(&self) -> Vec<(String, Cut)> {
        each!(self, one => one.consumers())
    }

    /// Drops what the retention allows. A broker does so by itself.
    pub(crate) fn retain(&self) -> Result<(), LogError> {
        match self {
            Self::Embedded(log) => log.retain().map(drop),
            #[cfg(feature = "kafka")]
            Self::Kafka(..) => Ok(()),
        }
    }

    /// Its size, where this machine's own disk holds it.
    pub(crate) fn bytes(&self) -> Option<u64> {
        match self {
            Self::Embedded(log) => log.statistics().ok().map(|statistics| statistics.bytes),
            #[cfg(feature = "kafka")]
            Self::Kafka(..) => None,
        }
    }

    /// Where it is kept, unless it is in the migration's folder.
    pub(crate) fn elsewhere(&self) -> Option<String> {
        match self {
            Self::Embedded(_) => None,
            #[cfg(feature = "kafka")]
            Self::Kafka(log, _) => Some(format!("the topic {} at {}", log.topic(), log.brokers())),
        }
    }

    /// What it waits for; nothing while it goes on.
    pub(crate) fn waiting(&self) -> Option<String> {
        match self {
            Self::Embedded(_) => None,
            #[cfg(feature = "kafka")]
            Self::Kafka(log, _) => log.waiting(),
        }
    }

    /// What the clients of this process have counted: those of a log on servers, and of topics at either end.
    pub(crate) fn clients(&self) -> Vec<ClientStatus> {
        match self {
            #[cfg(not(feature = "kafka"))]
            Self::Embedded(_) => Vec::new(),
            #[cfg(feature = "kafka")]
            Self::Embedded(_) => kafka::ends_clients(),
            #[cfg(feature = "kafka")]
            Self::Kafka(log, _) => kafka::clients(log).into_iter().chain(kafka::ends_clients()).collect(),
        }
    }

    /// Says what this process does of a migration that several do.
    #[cfg_attr(not(feature = "kafka"), expect(unused_variables, reason = "only a log on Kafka is for several"))]
    pub(crate) fn tell(&self, role: &str, behind: u64, waiting: Option<String>) {
        match self {
            Self::Embedded(_) => {}
            #[cfg(feature = "kafka")]
            Self::Kafka(log, _) => log.tell(role, std::collections::BTreeMap::new(), behind, waiting),
        }
    }

    /// All processes of a migration that several do, as they say themselves.
    pub(crate) fn processes(&self) -> Vec<ProcessStatus> {
        match self {
            Self::Embedded(_) => Vec::new(),
            #[cfg(feature = "kafka")]
            Self::Kafka(log, _) => kafka::processes(log),
        }
    }

    /// A folder beside the log, for what may be lost.
    pub(crate) fn folder_beside(&self, name: &str) -> PathBuf {
        match self {
            Self::Embedded(log) => log.dir().with_file_name(name),
            #[cfg(feature = "kafka")]
            Self::Kafka(_, folder) => folder.join(name),
        }
    }

    /// Where it is and how large, for programs and for people.
    pub(crate) fn figures(&self) -> Result<(Json, String), CliError> {
        let (start, end) = (self.start(), self.tail().cut);
        Ok(match self {
            Self::Embedded(log) => {
                let figures = log.statistics()?;
                let text = format!("{} of together {}", figures.segments, crate::output::bytes(figures.bytes));
                let json = json!({
                    "folder": log.dir(), "id": format!("{:016x}", log.id()), "start": figures.start.0,
                    "end": figures.end.0, "segments": figures.segments, "bytes": figures.bytes,
                });
                (json, format!("log       {}\nentries   {start} to {end}\nfiles     {text}\n", log.dir().display()))
            }
            #[cfg(feature = "kafka")]
            Self::Kafka(log, _) => {
                let json = json!({
                    "topic": log.topic(), "brokers": log.brokers(), "id": format!("{:016x}", log.id()),
                    "start": offsets(&start), "end": offsets(&end), "partitions": log.partitions(),
                });
                (json, format!("log       topic {} at {}\noffsets   {start} to {end}\n", log.topic(), log.brokers()))
            }
        })
    }

    /// Reads every byte again.
    pub(crate) fn verify(&self) -> Result<Sound, CliError> {
        match self {
            Self::Embedded(log) => {
                let sound = log.verify()?;
                let said = format!(
                    "{} segments, {} frames, {} records, {}",
                    sound.segments,
                    crate::output::count(sound.frames),
                    crate::output::count(sound.records),
                    crate::output::bytes(sound.bytes)
                );
                let figures = serde_json::to_value(sound)
                    .map_err(|error| CliError::failed(format!("telling what the log holds: {error}")))?;
                Ok(Sound { said, figures })
            }
            #[cfg(feature = "kafka")]
            Self::Kafka(log, _) => in_place(|| kafka::verify(log)),
        }
    }
}

/// One for each partition.
#[cfg(feature = "kafka")]
fn offsets(cut: &Cut) -> Vec<u64> {
    cut.0.iter().map(|offset| offset.0).collect()
}

/// Where the log is, for people.
pub(crate) fn place(spec: &Spec, folder: &Path) -> String {
    match &spec.log {
        LogSpec::Embedded(_) => WorkFolder::log_path(folder).display().to_string(),
        LogSpec::Kafka(keys) => {
            let prefix = prefix(spec, keys);
            format!("the topics {prefix}.changes and {prefix}.meta at {}", keys.brokers)
        }
    }
}

/// What of the log may not change while a migration runs: another one would not hold what the sink has taken. Brokers may
/// get other names.
pub(crate) fn identity(spec: &Spec) -> Option<String> {
    match &spec.log {
        LogSpec::Embedded(_) => None,
        LogSpec::Kafka(keys) => Some(format!("kafka {}", prefix(spec, keys))),
    }
}

/// Where the ids of the log's topics are noted.
pub(crate) fn pin(spec: &Spec) -> PathBuf {
    spec.base().join("topics.json")
}

/// What the topics' names begin with.
fn prefix(spec: &Spec, keys: &KafkaKeys) -> String {
    keys.topic_prefix.clone().unwrap_or_else(|| format!("crossfade_{}", spec.name.as_str().replace('-', "_")))
}

/// How long a worker, or one that shares the stream, may be silent, unless said.
pub(crate) const SILENT: Duration = Duration::from_secs(30);

/// The roles are refused before their log is opened; nobody comes here.
fn on_one_machine() -> LogError {
    LogError::Contract("the log on disk is for one process that does all of a migration".to_owned())
}

/// The roles are refused before their log is opened; nobody comes here.
fn one_machine() -> CliError {
    CliError::refused("the log on disk is for one process that does all of a migration")
}

/// A spec for Kafka is refused where it is read; nobody comes here.
#[cfg(not(feature = "kafka"))]
fn without_kafka() -> CliError {
    CliError::not_built("the log on Kafka, in a crossfade without it,")
}

fn embedded_options(keys: &EmbeddedLog) -> Options {
    let usual = Options::default();
    let retention =
        Retention { time: keys.retention.time.map(|time| time.0), bytes: keys.retention.bytes.map(|bytes| bytes.0) };
    let segment_bytes = keys.segment_bytes.map_or(usual.segment_bytes, |size| size.0);
    Options { segment_bytes, retention, ..usual }
}

/// Does what blocks, and lets this thread's other work go elsewhere meanwhile.
#[cfg(feature = "kafka")]
fn in_place<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}
