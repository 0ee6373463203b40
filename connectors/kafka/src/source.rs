//! The source: topics that Debezium's PostgreSQL connector wrote, as batches for the log.
//!
//! A thread of its own reads them ([`follow`]) and hands batches over through a bounded channel. Rows that the connector
//! read in its snapshot come in the stream, as rows that are there from now on, so a backfill has no rows of its own: it
//! begins and ends before the first record.
//!
//! What this source deliberately does not do: it asks the database that Debezium reads nothing, writes nothing into the
//! brokers, and keeps no offsets of a consumer group. How far it has come stands in our log ([`note`]).

mod connect;
mod envelope;
#[cfg(test)]
mod fixtures;
mod fold;
mod follow;
mod inspect;
mod note;
mod out;
mod preflight;
mod record;
pub(crate) mod shape;
pub(crate) mod topics;
mod transactions;
pub(crate) mod types;
pub(crate) mod value;
pub(crate) mod wire;

pub(crate) use inspect::Versions;
pub use inspect::{DebeziumInspect, Loss};
pub use wire::{BinaryMode, DecimalMode, Handling, TimePrecision};

use crate::{
    Connection,
    client::{Clients, LogConsumer, Purpose, assignment, scan, server},
};
use crossfade_connector::{Failure, Refusal, Resume, Source, SourceHealth};
use crossfade_event::{
    Backfill, Batch, Durable, Event, Identity, Position, SourceId, Stamped, TableId, TableSchema,
    catalog::{Catalog, TableDef},
};
use follow::{Figures, Follower, Part, Table};
use note::{Note, Place};
use out::Out;
use rdkafka::{Message, consumer::Consumer};
use shape::Shape;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
};
use tokio::sync::mpsc;
use topics::{Found, failure, topic_of};
use transactions::{Done, REMEMBERED};
use value::Placeholder;

/// What connectors write where an update left a large value alone, unless they are told otherwise.
pub const UNAVAILABLE: &str = value::PLACEHOLDER;

/// Batches that wait in the channel.
const BATCHES_WAITING: usize = 4;

/// The name under which consumers appear; no group is ever joined.
const GROUP: &str = "crossfade-debezium";

/// Where Debezium's topics are, and what they mean.
#[derive(Debug, Clone)]
pub struct DebeziumConfig {
    /// How to reach the brokers.
    pub connection: Connection,
    /// The connector's `topic.prefix`.
    pub topic_prefix: String,
    /// Which tables: `schema.table` with `*` and `?`, `!` in front excludes, later patterns win.
    pub tables: Vec<String>,
    /// The topic of transactions' marks; without it each record is a transaction of its own.
    pub transactions: Option<String>,
    /// The connector's `unavailable.value.placeholder`.
    pub unavailable: String,
    /// What records without a schema do not say.
    pub handling: Handling,
    /// Types of columns, by table.
    pub types: BTreeMap<String, BTreeMap<String, String>>,
}

/// Reads the topics.
pub struct DebeziumSource {
    config: DebeziumConfig,
    /// The tables as they were planned.
    planned: Vec<TableDef>,
    running: Option<Running>,
}

impl std::fmt::Debug for DebeziumSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DebeziumSource").field("config", &self.config).finish_non_exhaustive()
    }
}

/// What runs after `open`. Dropping the receiver ends the thread.
struct Running {
    first: VecDeque<Batch>,
    batches: mpsc::Receiver<Result<Batch, Failure>>,
    figures: Arc<Figures>,
    source: SourceId,
    thread: JoinHandle<()>,
}

impl DebeziumSource {
    /// A source for the tables of this catalog, which [`DebeziumInspect`] gave when the migration was planned.
    pub fn new(config: DebeziumConfig, planned: Option<&Catalog>) -> Self {
        let planned = planned.map(|catalog| catalog.tables.clone()).unwrap_or_default();
        Self { config, planned, running: None }
    }

    /// A position of this kind of source in its own words: how many offsets had been read.
    pub fn place_words(position: &Position) -> String {
        format!("{} records read", position.commit)
    }

    /// What stands against these topics as a source. Nothing is changed.
    ///
    /// # Errors
    /// When the brokers cannot be asked.
    pub async fn preflight(&self) -> Result<Vec<Refusal>, Failure> {
        let config = self.config.clone();
        blocking(move || preflight::preflight(&config)).await
    }

    /// The statements that make what the source needs of its own: there are none.
    ///
    /// # Errors
    /// Never.
    pub async fn ddl(&self) -> Result<Vec<String>, Failure> {
        Ok(Vec::new())
    }

    /// Takes away what the migration made at its source: nothing.
    ///
    /// # Errors
    /// Never.
    pub async fn uninstall(&mut self) -> Result<(), Failure> {
        self.stop().await;
        Ok(())
    }

    async fn stop(&mut self) {
        let Some(Running { batches, thread, .. }) = self.running.take() else { return };
        drop(batches);
        // A thread that panicked has said so by itself.
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(panicked) if panicked.is_panic() => std::panic::resume_unwind(panicked.into_panic()),
        Err(cancelled) => Err(Failure::retry("reading the topics that Debezium writes", cancelled)),
    }
}

/// Whose positions they are: those of one prefix on one cluster's topics.
pub(crate) fn source_id(config: &DebeziumConfig) -> SourceId {
    SourceId::of(&format!("debezium {}", config.topic_prefix))
}

/// The tables' schemas: those in the log, and before there are any, those that were planned.
fn schemas(planned: &[TableDef], resume: &Resume) -> Vec<Arc<TableSchema>> {
    if resume.position.is_some() {
        return resume.schemas.clone();
    }
    let first = resume.schemas.iter().map(|schema| schema.id.0).max().unwrap_or(0) + 1;
    (first..)
        .zip(planned.iter().filter(|table| table.obstacle.is_none()))
        .map(|(id, def)| Arc::new(shape::schema_of(TableId(id), def)))
        .collect()
}

/// What `open` makes: the thread's work, and the batches that come before it.
struct Begun {
    follower: Follower,
    first: VecDeque<Batch>,
    batches: mpsc::Receiver<Result<Batch, Failure>>,
    figures: Arc<Figures>,
}

fn begin(config: &DebeziumConfig, planned: &[TableDef], resume: &Resume) -> Result<Begun, Failure> {
    let clients = Clients::new(config.connection.clone()).map_err(failure)?.counting_as_an_end();
    let consumer = clients.asking(GROUP).map_err(failure)?;
    let schemas = schemas(planned, resume);
    let names: Vec<String> = schemas.iter().map(|schema| topic_of(&config.topic_prefix, &schema.name)).collect();
    let asked: Vec<&str> = names.iter().chain(&config.transactions).map(String::as_str).collect();
    let found = topics::look(&clients, &consumer, &asked)?;
    let note = match resume.position {
        Some(_) => {
            let note = Note::read(resume.mark.as_ref())?;
            note.check(&found)?;
            if let Some(other) = asked.iter().find(|name| !note.topics.contains_key(**name)) {
                return Err(Failure::misconfigured(
                    "going on with the topics that Debezium writes",
                    format!("the migration was begun with other topics than {other}"),
                    "Put \"topic_prefix\" and \"transactions\" in [source] back to what they were",
                ));
            }
            if note.transactions != config.transactions.is_some() {
                return Err(Failure::misconfigured(
                    "going on with the topics that Debezium writes",
                    "the migration was begun with another word about the topic of transactions",
                    "Put \"transactions\" in [source] back to what it was",
                ));
            }
            note
        }
        None => first_note(config, &asked, &found)?,
    };
    let at = resume.position.unwrap_or_else(|| start(config, &note));
    let (sender, batches) = mpsc::channel(BATCHES_WAITING);
    let done = match &config.transactions {
        Some(topic) => remembered(&clients, topic, &note)?,
        None => Done::default(),
    };
    let (parts, consumer) = parts(&clients, &names, &note)?;
    let first = first_batches(&schemas, resume, at, &note);
    let marks = parts.iter().position(|part| part.table.is_none());
    let tables = schemas
        .into_iter()
        .enumerate()
        .map(|(index, schema)| Table {
            id: schema.id,
            name: schema.name.to_string(),
            in_order: parts.iter().filter(|part| part.table == Some(index)).count() == 1,
            shape: Shape::new(schema, config.handling),
        })
        .collect::<Vec<_>>();
    keyless(&tables, config)?;
    let figures = Arc::new(Figures::default());
    let beside = follow::beside(consumer.clone(), &parts);
    let follower = Follower {
        consumer,
        parts,
        tables,
        marks,
        reader: envelope::Reader::default(),
        placeholder: Placeholder::new(&config.unavailable),
        note,
        done,
        out: Out::new(sender, beside, first.back().and_then(|batch| batch.upto).unwrap_or(at)),
        figures: figures.clone(),
    };
    Ok(Begun { follower, first, batches, figures })
}

/// Rows without a key cannot be told apart, so a record that was sent twice, or out of order, must be known as such.
fn keyless(tables: &[Table], config: &DebeziumConfig) -> Result<(), Failure> {
    for table in tables.iter().filter(|table| table.shape.schema.identity != Identity::Key) {
        if let Some(refusal) = preflight::keyless(&table.name, config.transactions.is_some(), table.in_order) {
            return Err(Failure::refused(format!("reading {}", table.name), refusal.problem, refusal.remedy));
        }
    }
    Ok(())
}

/// Everything from the topics' beginning.
fn first_note(config: &DebeziumConfig, asked: &[&str], found: &[Found]) -> Result<Note, Failure> {
    let mut note = Note::new(config.transactions.is_some());
    for name in asked {
        let Some(topic) = found.iter().find(|topic| topic.name == *name) else {
            return Err(Failure::misconfigured(
                format!("looking for the topic {name}"),
                "there is none",
                "Start the connector (for the topic of transactions, with provide.transaction.metadata=true), or name what it writes",
            ));
        };
        for (partition, (low, high)) in topic.bounds.iter().enumerate() {
            note::kept(name, partition, 0, *low, *high)?;
        }
        note.topics.insert(topic.name.clone(), Place { id: topic.id.clone(), next: vec![0; topic.bounds.len()] });
    }
    if let Some(topic) = &config.transactions
        && note.topics.get(topic).is_some_and(|place| place.next.len() != 1)
    {
        return Err(Failure::refused(
            format!("reading the topic {topic}"),
            "it has several partitions, and so its transactions have no order",
            format!("Give {topic} one partition, and let Debezium begin anew"),
        ));
    }
    Ok(note)
}

fn start(config: &DebeziumConfig, note: &Note) -> Position {
    let commit = note.topics.values().flat_map(|place| &place.next).sum();
    Position { source: source_id(config), timeline: 0, commit, ordinal: 0 }
}

/// The batches of a backfill without rows, as far as they are not in the log yet.
fn first_batches(schemas: &[Arc<TableSchema>], resume: &Resume, at: Position, note: &Note) -> VecDeque<Batch> {
    let mut batches = VecDeque::new();
    if resume.snapshot.ended {
        return batches;
    }
    let mut position = at;
    let mut stamped = |event| {
        position.ordinal += 1;
        Stamped { position, event }
    };
    let generation =
        if resume.position.is_some() { resume.snapshot.generation } else { resume.snapshot.generation + 1 };
    if resume.position.is_none() {
        let mut events: Vec<Stamped> =
            schemas.iter().map(|schema| stamped(Event::SchemaSeen(schema.clone()))).collect();
        let tables = schemas.iter().map(|schema| schema.id).collect();
        events.push(stamped(Event::BackfillBegan(Backfill { generation, tables, visible: None })));
        events.push(stamped(Event::Marked(note.mark())));
        batches.push_back(whole(events));
    }
    let mut events = Vec::new();
    for schema in schemas {
        events.push(stamped(Event::SnapshotBegan { table: schema.id, chunks: Vec::new() }));
        events.push(stamped(Event::SnapshotEnded { table: schema.id, visible: None }));
    }
    batches.push_back(Batch { events, upto: None, whole: true });
    let events = vec![stamped(Event::BackfillEnded { generation }), stamped(Event::Marked(note.mark()))];
    batches.push_back(whole(events));
    batches
}

fn whole(events: Vec<Stamped>) -> Batch {
    Batch { upto: events.last().map(|stamped| stamped.position), events, whole: true }
}

/// Assigns every partition from where it was read up to, each with a queue of its own.
fn parts(clients: &Clients, names: &[String], note: &Note) -> Result<(Vec<Part>, Arc<LogConsumer>), Failure> {
    let consumer = Arc::new(clients.consumer(GROUP, true, Some(Purpose::Source)).map_err(failure)?);
    let doing = |error| failure(server("assigning the topics that Debezium writes", error));
    let mut all = rdkafka::TopicPartitionList::new();
    for (name, place) in &note.topics {
        let places = place.next.iter().enumerate().map(|(partition, next)| (partition as i32, *next));
        for element in assignment(name, places).map_err(doing)?.elements() {
            all.add_partition_offset(name, element.partition(), element.offset()).map_err(doing)?;
        }
    }
    consumer.assign(&all).map_err(doing)?;
    let mut parts = Vec::new();
    for (name, place) in &note.topics {
        let topic: Arc<str> = name.as_str().into();
        for (partition, next) in place.next.iter().enumerate() {
            let queue = consumer.split_partition_queue(name, partition as i32).ok_or_else(|| {
                Failure::reconnect(format!("reading {name}"), "the client has no queue for one of its partitions")
            })?;
            parts.push(Part {
                table: names.iter().position(|table| table == name),
                topic: topic.clone(),
                partition: partition as u32,
                queue,
                next: *next,
                read: *next,
                high: *next,
                head: None,
                moving: None,
                last: (0, 0),
                ended: false,
                at_end: false,
            });
        }
    }
    Ok((parts, consumer))
}

/// The last transactions before the place that was read up to.
fn remembered(clients: &Clients, topic: &str, note: &Note) -> Result<Done, Failure> {
    let mut done = Done::default();
    let next = note.topics.get(topic).and_then(|place| place.next.first().copied()).unwrap_or_default();
    if next == 0 {
        return Ok(done);
    }
    let consumer = clients.asking(GROUP).map_err(failure)?;
    let (low, _) = crate::client::bounds(&consumer, topic, 0).map_err(failure)?;
    // Each has a beginning and an end.
    let from = low.max(next.saturating_sub(2 * REMEMBERED as u64));
    if from >= next {
        return Ok(done);
    }
    scan(&consumer, topic, &[(0, from..next)], |message| {
        if let Some(xid) = message.payload().and_then(transactions::ended) {
            done.insert(xid);
        }
        Ok(false)
    })
    .map_err(failure)?;
    Ok(done)
}

impl Source for DebeziumSource {
    async fn open(&mut self, resume: Resume) -> Result<(), Failure> {
        self.stop().await;
        let (config, planned) = (self.config.clone(), self.planned.clone());
        let source = source_id(&config);
        let (begun, thread) = blocking(move || {
            let Begun { follower, first, batches, figures } = begin(&config, &planned, &resume)?;
            let thread = std::thread::Builder::new().name("debezium".to_owned()).spawn(move || follower.run());
            let thread = thread.map_err(|error| Failure::retry("starting the thread that reads the topics", error))?;
            Ok(((first, batches, figures), thread))
        })
        .await?;
        let (first, batches, figures) = begun;
        self.running = Some(Running { first, batches, figures, source, thread });
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Batch>, Failure> {
        let Some(running) = &mut self.running else {
            return Err(Failure::reconnect("reading the topics", "the source is not open"));
        };
        if let Some(batch) = running.first.pop_front() {
            return Ok(Some(batch));
        }
        match running.batches.recv().await {
            Some(batch) => batch.map(Some),
            None => Err(Failure::reconnect("reading the topics", "the thread that reads them has ended")),
        }
    }

    async fn confirm(&mut self, _durable: Durable) -> Result<(), Failure> {
        // Nobody there keeps anything for us.
        Ok(())
    }

    async fn health(&mut self) -> Result<SourceHealth, Failure> {
        let Some(running) = &self.running else { return Ok(SourceHealth::default()) };
        let (read, end) = (running.figures.read.load(Ordering::Relaxed), running.figures.end.load(Ordering::Relaxed));
        let status = format!("{} records of the topics are not read yet", end.saturating_sub(read));
        Ok(SourceHealth {
            status: Some(status),
            current: Some(Position { source: running.source, timeline: 0, commit: end, ordinal: 0 }),
            ..SourceHealth::default()
        })
    }

    fn marks(&self) -> Option<&'static str> {
        Some(note::PREFIX)
    }
}
