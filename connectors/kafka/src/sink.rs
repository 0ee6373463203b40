//! The sink: rows and changes as topics that others read, in Debezium's envelope as JSON.
//!
//! One writer on a thread of its own ([`writer`]), one `transactional.id`: a committing delivery is one transaction of
//! Kafka, and the sink's place in the log is in it. A caller who gives up before the answer comes leaves nothing behind.
//!
//! What this sink deliberately does not do: it reads no row back for writing, so what topics have no word for (references
//! between tables, unique values, rows that are there once only) is not held to.

mod apply;
mod emptied;
mod envelope;
mod form;
mod held;
mod inspect;
mod live;
mod nested;
mod notes;
mod prepare;
mod prepared;
mod settled;
mod shape;
mod told;
mod topics;
mod writer;

pub use inspect::KafkaSinkInspect;

use crate::{
    Connection, DebeziumConfig, Retention,
    source::wire::{DecimalMode, Handling},
};
use crossfade_connector::{
    Applied, Ddl, Delivery, Failure, Guard, Inspect, MappingEntry, Progress, Quarantine, QuarantineFilter,
    QuarantineOutcome, QuarantinedChange, Refusal, Rollback, Sink, StoredMapping, Target, TargetSql, TargetTable,
    UndoReport, Verdict,
};
use crossfade_event::{Change, Key, Row, TableId, TableName};
use envelope::{Manner, Table};
use prepared::{Prepared, View};
use std::{sync::mpsc, time::Duration};
use tokio::sync::oneshot;
use topics::For;
use writer::Writer;

/// The name under which consumers appear; no group is ever joined.
const GROUP: &str = "crossfade-sink";

/// How long the producers are left alone while there is nothing to write.
const IDLE: Duration = Duration::from_secs(1);

type Job = Box<dyn FnOnce(&mut Writer) + Send>;

/// What is done about a change that cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnError {
    /// It goes to quarantine, its key waits behind it, everything else goes on.
    #[default]
    Quarantine,
    /// The migration stops.
    Stop,
}

/// In which form records are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SinkForm {
    /// Debezium's envelope as JSON.
    #[default]
    DebeziumJson,
}

impl SinkForm {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::DebeziumJson => "debezium-json",
        }
    }
}

/// Where the two key versions of a table stand that is told in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layout {
    /// In two topics, written in one transaction.
    #[default]
    TwoTopics,
    /// In one record, whose key and images have a part for each.
    OneRecord,
}

/// Where and how a sink writes.
#[derive(Debug, Clone)]
pub struct SinkConfig {
    /// How to reach the brokers.
    pub connection: Connection,
    /// The migration's name.
    pub migration: String,
    /// A table's topic is `PREFIX.schema.table`; the sink's own is `PREFIX.crossfade`.
    pub topic_prefix: String,
    /// In which form records are written.
    pub form: SinkForm,
    /// Where two key versions stand, of tables that are told in both.
    pub layout: Layout,
    /// Whether each record carries the schema that Kafka Connect's JSON converter reads.
    pub schemas: bool,
    /// Whether transactions are told, in a topic of their own and in each record.
    pub transactions: bool,
    /// How numbers of any scale are written: `Precise` or `String`.
    pub decimal: DecimalMode,
    /// How many partitions a table's topic is made with; four unless said.
    pub partitions: Option<u32>,
    /// Copies of each partition; three, or as many as there are brokers, unless said.
    pub replication: Option<u16>,
    /// How many copies must have a record before it counts; two where there are three copies, else one, unless said.
    pub min_insync_replicas: Option<u16>,
    /// Whether topics keep the last record of each key only.
    pub compact: bool,
    /// When the broker may drop records.
    pub retention: Retention,
    /// What is done about a change that cannot be written.
    pub on_error: OnError,
    /// Only asks, and shuts nobody out.
    pub looking: bool,
}

impl SinkConfig {
    /// Everything by default.
    pub fn new(connection: Connection, migration: impl Into<String>, topic_prefix: impl Into<String>) -> Self {
        Self {
            connection,
            migration: migration.into(),
            topic_prefix: topic_prefix.into(),
            form: SinkForm::default(),
            layout: Layout::default(),
            schemas: true,
            transactions: false,
            decimal: DecimalMode::Precise,
            partitions: None,
            replication: None,
            min_insync_replicas: None,
            compact: false,
            retention: Retention::default(),
            on_error: OnError::default(),
            looking: false,
        }
    }

    fn handling(&self) -> Handling {
        Handling { decimal: self.decimal, ..Handling::default() }
    }

    fn manner(&self) -> Manner {
        Manner {
            prefix: self.topic_prefix.clone(),
            database: self.migration.clone(),
            schemas: self.schemas,
            handling: self.handling(),
            compacted: self.compact,
            layout: self.layout,
        }
    }

    /// Its topics, as whoever reads them takes them.
    fn as_source(&self) -> DebeziumConfig {
        DebeziumConfig {
            connection: self.connection.clone(),
            topic_prefix: self.topic_prefix.clone(),
            tables: vec!["*.*".to_owned()],
            transactions: None,
            unavailable: crate::UNAVAILABLE.to_owned(),
            handling: self.handling(),
            types: std::collections::BTreeMap::new(),
        }
    }
}

/// A column of which the form cannot hold every value; such values go to quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsayable {
    /// The table.
    pub table: TableName,
    /// The column.
    pub column: String,
    /// Which values.
    pub text: &'static str,
}

/// What is said of a table's columns.
type Said<'a> = Box<dyn Iterator<Item = (&'a str, &'static str)> + 'a>;

/// Writes topics.
pub struct KafkaSink {
    config: SinkConfig,
    target: Option<Target>,
    jobs: Option<mpsc::Sender<Job>>,
}

impl std::fmt::Debug for KafkaSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaSink").field("config", &self.config).finish_non_exhaustive()
    }
}

impl KafkaSink {
    /// A sink; nothing has been asked of a broker yet.
    pub fn new(config: SinkConfig) -> Self {
        Self { config, target: None, jobs: None }
    }

    /// The columns of which the form cannot hold every value.
    pub fn unsayable(&self, target: &Target) -> Vec<Unsayable> {
        self.columns(target, |table| Box::new(table.unsayable()))
    }

    /// The columns that Debezium's own JDBC sink connector does not write as they are, where it could read the topics at all.
    pub fn lost_by_jdbc(&self, target: &Target) -> Vec<Unsayable> {
        if !self.config.schemas {
            return Vec::new();
        }
        self.columns(target, |table| match table.view {
            View::Both => Box::new(std::iter::empty()),
            View::All | View::First | View::Second => Box::new(table.lost_by_jdbc()),
        })
    }

    fn columns(&self, target: &Target, of: impl Fn(&Table) -> Said<'_>) -> Vec<Unsayable> {
        let manner = self.config.manner();
        let mut found: Vec<Unsayable> = Vec::new();
        for table in &target.tables {
            for (column, text) in Prepared::new(table, &manner, |_| 1).topics.iter().flat_map(&of) {
                let one = Unsayable { table: table.schema.name.clone(), column: column.to_owned(), text };
                if !found.contains(&one) {
                    found.push(one);
                }
            }
        }
        found
    }

    /// What stands in the way of writing a target. Nothing is changed.
    ///
    /// # Errors
    /// When the brokers cannot be asked.
    pub async fn preflight(&self, target: &Target) -> Result<Vec<Refusal>, Failure> {
        let mut looking = Self::new(SinkConfig { looking: true, ..self.config.clone() });
        let target = target.clone();
        let said = looking.call("looking at the sink's topics", move |writer| writer.examine(&target)).await;
        match said {
            Ok(()) => Ok(Vec::new()),
            Err(failure) => match &failure.verdict {
                Verdict::Refused { advice } => Ok(vec![Refusal {
                    object: format!("the topics {}.*", self.config.topic_prefix),
                    problem: format!(
                        "{}: {}",
                        failure.doing,
                        std::error::Error::source(&failure).map(ToString::to_string).unwrap_or_default()
                    ),
                    remedy: advice.clone(),
                    fatal: true,
                }]),
                _ => Err(failure),
            },
        }
    }

    /// Runs a job on the writer's thread and waits for its answer.
    async fn call<T: Send + 'static>(
        &mut self,
        doing: &'static str,
        job: impl FnOnce(&mut Writer) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |writer| {
            if answer.is_closed() {
                return;
            }
            let done = job(writer);
            if answer.send(done).is_err() {
                // The caller has gone and does not know what became of it: it will ask for the progress.
                writer.abandon();
            }
        });
        let gone = || Failure::reconnect(doing, "the thread that writes to Kafka has ended");
        self.jobs()?.send(job).map_err(|_| gone())?;
        match answered.await {
            Ok(done) => done,
            Err(_) => {
                self.jobs = None;
                Err(gone())
            }
        }
    }

    fn jobs(&mut self) -> Result<mpsc::Sender<Job>, Failure> {
        if let Some(jobs) = &self.jobs {
            return Ok(jobs.clone());
        }
        let (sender, receiver) = mpsc::channel::<Job>();
        let mut writer = Writer::new(self.config.clone());
        std::thread::Builder::new()
            .name("kafka-sink".to_owned())
            .spawn(move || {
                loop {
                    match receiver.recv_timeout(IDLE) {
                        Ok(job) => job(&mut writer),
                        Err(mpsc::RecvTimeoutError::Timeout) => writer.hear(),
                        Err(mpsc::RecvTimeoutError::Disconnected) => break,
                    }
                }
                writer.abandon();
            })
            .map_err(|error| Failure::retry("starting the thread that writes to Kafka", error))?;
        self.jobs = Some(sender.clone());
        Ok(sender)
    }
}

impl Ddl for KafkaSink {
    /// The topics, each with the settings with which it is made on one broker.
    fn ddl(&self, target: &Target) -> Result<TargetSql, Failure> {
        let copies = self.config.replication.map_or(3, i32::from);
        let line = |name: &str, purpose: For| {
            let (partitions, settings) = topics::settings(&self.config, purpose, copies);
            let settings: Vec<String> = settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("topic {name} (partitions={partitions}, {})", settings.join(", "))
        };
        let prefix = &self.config.topic_prefix;
        let mut lines = vec![line(&topics::own(prefix), For::Own)];
        if self.config.transactions {
            lines.push(line(&topics::transactions(prefix), For::Transactions));
        }
        for table in &target.tables {
            let names = prepared::topics_of(prefix, &table.schema.name, &table.mode, self.config.layout);
            lines.extend(names.iter().map(|(_, name)| line(name, For::table(&table.schema))));
        }
        Ok(TargetSql { before_load: lines, after_load: Vec::new() })
    }
}

impl Sink for KafkaSink {
    async fn prepare(&mut self, target: &Target) -> Result<(), Failure> {
        let wanted = target.clone();
        self.call("preparing the target", move |writer| writer.prepare(&wanted)).await?;
        self.target = Some(target.clone());
        Ok(())
    }

    async fn alter(&mut self, before: &TargetTable, after: &TargetTable) -> Result<(), Failure> {
        let (old, new) = (before.clone(), after.clone());
        self.call("following a change of the schema", move |writer| writer.alter(&old, &new)).await?;
        if let Some(target) = &mut self.target {
            for table in target.tables.iter_mut().filter(|table| table.schema.id == after.schema.id) {
                *table = after.clone();
            }
        }
        Ok(())
    }

    async fn progress(&mut self) -> Result<Option<Progress>, Failure> {
        self.call("reading the position", Writer::progress).await
    }

    async fn apply(&mut self, delivery: Delivery, guard: Guard) -> Result<Applied, Failure> {
        self.call("applying changes", move |writer| writer.apply(delivery, guard)).await
    }

    async fn finish_load(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    async fn read_row(&mut self, table: TableId, key: &Key) -> Result<Option<Row>, Failure> {
        let tables = self.target.iter().flat_map(|target| &target.tables);
        let Some(table) = tables.into_iter().find(|one| one.schema.id == table) else {
            let advice = "Report this: a table must be prepared before it is read";
            return Err(Failure::halt("reading a row", "its table is not among the prepared ones", advice));
        };
        let mut inspect = KafkaSinkInspect::new(&self.config);
        let (rows, _) = inspect.fetch(&table.schema, std::slice::from_ref(key)).await?;
        Ok(rows.into_iter().next())
    }

    fn wants_transactions(&self) -> bool {
        true
    }
}

impl Quarantine for KafkaSink {
    async fn list(&mut self, filter: &QuarantineFilter) -> Result<Vec<QuarantinedChange>, Failure> {
        let filter = filter.clone();
        self.call("reading the quarantine", move |writer| writer.list(&filter)).await
    }

    /// None: a topic refuses no record for the sake of another one's key.
    async fn collisions(&mut self) -> Result<u64, Failure> {
        Ok(0)
    }

    async fn show(&mut self, id: i64) -> Result<Option<(QuarantinedChange, Change)>, Failure> {
        self.call("reading the quarantine", move |writer| writer.show(id)).await
    }

    async fn retry(&mut self, filter: &QuarantineFilter) -> Result<QuarantineOutcome, Failure> {
        let filter = filter.clone();
        self.call("retrying quarantined changes", move |writer| writer.retry(&filter)).await
    }

    async fn discard(&mut self, filter: &QuarantineFilter) -> Result<QuarantineOutcome, Failure> {
        let filter = filter.clone();
        self.call("discarding quarantined changes", move |writer| writer.discard(&filter)).await
    }
}

impl StoredMapping for KafkaSink {
    async fn mapping_page(
        &mut self,
        _table: Option<&str>,
        _after: Option<&MappingEntry>,
        _limit: u32,
    ) -> Result<Vec<MappingEntry>, Failure> {
        Err(no_mapping())
    }

    async fn mapping_lookup(&mut self, _id: &str) -> Result<Vec<MappingEntry>, Failure> {
        Err(no_mapping())
    }
}

fn no_mapping() -> Failure {
    Failure::refused(
        "reading the mapping",
        "looking it up is not built for a sink on Kafka",
        "Read the mapping's own topic: its key is the old key, and its value has the new one",
    )
}

impl Rollback for KafkaSink {
    async fn undo(&mut self, _target: &Target) -> Result<UndoReport, Failure> {
        Err(Failure::refused(
            "putting rows back",
            "what was written to a topic is written, and has been read",
            "Delete the topics that were made here with `crossfade rollback --wipe`",
        ))
    }

    async fn wipe(&mut self, _target: &Target) -> Result<UndoReport, Failure> {
        self.call("deleting the sink's topics", Writer::wipe).await
    }
}
