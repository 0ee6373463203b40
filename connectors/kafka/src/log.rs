//! The event log on Kafka topics.
//!
//! ```text
//!   <prefix>.changes   N partitions   entries by key, and behind every round a mark in each partition
//!   <prefix>.meta      compacted      schemas, the last round and its position, consumers' places, who writes
//!   <prefix>.transformed              where workers transform: what they have made of the entries, by partition and round
//! ```
//!
//! **One writer** with one fixed `transactional.id`: whoever opens the log shuts out the one before, and that one says so
//! ([`LogError::Fenced`]). Everything that becomes readable at once is a *round*, and each partition says with a mark
//! where the round ends there. Readers merge the partitions round by round; rounds of a source transaction whose last part
//! has not come are held back, and passed over when it never comes. The writer's group of rounds is one transaction of
//! Kafka, read with `read_committed`.
//!
//! **Resuming**: the marks carry the source's position, so the end of the topic says where to go on.
//!
//! **What is not the same as in the embedded log**: the broker drops entries by age and size and asks nobody. Consumers'
//! places hold back [`EventLog::trim`] only; when the broker drops what one still needs, the log is [`LogError::Lost`].

mod build;
mod ended;
mod follow;
mod lag;
mod made;
mod members;
mod meta;
mod pin;
mod place;
mod processes;
mod reader;
mod roles;
mod seats;
mod served;
mod shared;
mod tail;
mod topics;
mod torn;
mod transform;
mod watcher;
mod writer;

pub use processes::Process;
pub use reader::KafkaReader;
pub use seats::{Applying, Seat};
pub use transform::{Begin, Make, Share};

use crate::{
    LogOptions, Retention,
    client::{ClientFigures, Clients, LogConsumer, PATIENCE, Purpose, Right, bounds},
};
use build::{Builder, Group};
use crossfade_event::{Batch, Cut, SchemaVersion, TableId, TableSchema};
use crossfade_log::{EventLog, Lane, LogError, Tail, provider::Schemas};
use ended::Ended;
use meta::{Birth, Meta, Notes, Says, Writer as Owner};
use pin::Pin;
use rdkafka::producer::Producer;
use shared::{Delivers, End, Holds, Shared, lock};
use std::{
    fs,
    sync::{Arc, Mutex, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use topics::Names;
use writer::{Job, Writer};

/// How long the two topics may take until what was committed in both can be read in both.
const AGREE: Duration = Duration::from_secs(2);

/// The log on Kafka. All clones are one log.
#[derive(Debug, Clone)]
pub struct KafkaLog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    /// Where a log that is only looked at has read its notes to.
    notes: Mutex<Notes>,
    jobs: Option<mpsc::Sender<Job>>,
    watchers: Vec<(mpsc::Sender<()>, JoinHandle<()>)>,
}

impl Drop for Inner {
    /// Consumers' places are written once more; the writer ends with its queue.
    fn drop(&mut self) {
        self.jobs = None;
        let (closing, watchers): (Vec<_>, Vec<_>) = self.watchers.drain(..).unzip();
        drop(closing);
        for watcher in watchers {
            // It ends by itself; only its last places would be older.
            let _ = watcher.join();
        }
    }
}

impl KafkaLog {
    /// Opens the log for writing, and makes its topics where there are none. Whoever wrote it before is shut out. Asks
    /// the brokers many things, so call it where blocking is allowed.
    ///
    /// # Errors
    /// [`LogError::Refused`] for topics that cannot be used as they are, [`LogError::Lost`] for topics that are not what
    /// they were, [`LogError::Server`] when no broker answers or one says no.
    pub fn open(options: LogOptions) -> Result<Self, LogError> {
        patiently(|| Self::open_once(options.clone()))
    }

    fn open_once(options: LogOptions) -> Result<Self, LogError> {
        let names = Names::new(&options.topic_prefix)?;
        let clients = Clients::new(options.connection.clone())?.counting();
        let pin = pin_of(&options)?;
        let standing = topics::open(&clients, &names, &options, pin.as_ref(), topics::Way::Make)?;
        let asking = clients.asking(&names.readers)?;
        // Before anybody is shut out.
        refuse_anothers(&names, &options, pin.as_ref(), &meta::read(&asking, &names)?)?;
        let producer = clients.transactional(&names.writer, standing.message_bytes_max, Purpose::Writer)?;
        // From here on nobody else can commit, and what another had begun is ended: what is read now stays.
        let doing = || format!("beginning to write to {}", clients.brokers());
        let rights = [Right::Transaction(&names.writer)];
        producer.init_transactions(PATIENCE).map_err(|error| clients.unreachable(&rights, doing(), error))?;
        let ended = Ended::new(&clients, &names)?;
        ended.end_hanging(&producer, &names, standing.changes.partitions)?;
        let meta = meta::read(&asking, &names)?;
        refuse_anothers(&names, &options, pin.as_ref(), &meta)?;
        let noting = clients.producer(standing.message_bytes_max)?;
        let before = meta.writer.as_ref().map(|writer| writer.id);
        let made = Made { names, options, pin, standing, asking, noting: Some(noting), clients };
        let (shared, tail, birth) = made.settle(meta)?;
        let shared = Arc::new(shared);
        // Before the topic says that there is a log: one that is not pinned here counts as somebody else's.
        if let Some(path) = &shared.options.pin {
            Pin::new(shared.id, &shared.standing).write(path)?;
        }
        let owner = Owner { id: drawn(), who: who() };
        let (jobs, receiver) = mpsc::channel();
        let builder = Builder::new(shared.partitions(), tail.last_round, tail.settled.position);
        let mut writer = Writer {
            shared: shared.clone(),
            jobs: receiver,
            producer,
            ended,
            builder,
            owner: owner.clone(),
            before,
            last: tail.settled,
        };
        let mut notes = vec![Says::Writer(owner)];
        notes.extend(birth.map(Says::Log));
        writer.write(&Group::of_notes(notes, tail.has_head))?;
        writer.before = None;
        start("kafka-log-writer", move || writer.run())?;
        let watchers = vec![watch(&shared)?];
        Ok(Self(Arc::new(Inner { shared, notes: Mutex::default(), jobs: Some(jobs), watchers })))
    }

    /// Opens the log for looking, also while another process writes it. It shows the log as it is now; see
    /// [`KafkaLog::look_again`].
    ///
    /// # Errors
    /// As [`KafkaLog::open`]; [`LogError::Refused`] when there is no log.
    pub fn open_read_only(options: LogOptions) -> Result<Self, LogError> {
        patiently(|| Self::open_read_only_once(options.clone()))
    }

    fn open_read_only_once(options: LogOptions) -> Result<Self, LogError> {
        let names = Names::new(&options.topic_prefix)?;
        let clients = Clients::new(options.connection.clone())?;
        let pin = pin_of(&options)?;
        let standing = topics::open(&clients, &names, &options, pin.as_ref(), topics::Way::Look)?;
        let asking = clients.asking(&names.readers)?;
        let made = Made { names, options, pin, standing, asking, noting: None, clients };
        let (shared, notes) = made.seen()?;
        let (shared, notes) = (Arc::new(shared), Mutex::new(notes));
        Ok(Self(Arc::new(Inner { shared, notes, jobs: None, watchers: Vec::new() })))
    }

    /// Opens a log that another process writes, and follows it: what is appended there can be read here a moment later, and
    /// consumers' places may be noted here. Nothing can be appended.
    ///
    /// # Errors
    /// As [`KafkaLog::open_read_only`].
    pub fn open_following(options: LogOptions) -> Result<Self, LogError> {
        patiently(|| Self::open_following_once(options.clone()))
    }

    fn open_following_once(options: LogOptions) -> Result<Self, LogError> {
        let names = Names::new(&options.topic_prefix)?;
        let clients = Clients::new(options.connection.clone())?.counting();
        let pin = pin_of(&options)?;
        let standing = topics::open(&clients, &names, &options, pin.as_ref(), topics::Way::Look)?;
        let asking = clients.asking(&names.readers)?;
        let noting = clients.producer(standing.message_bytes_max)?;
        let made = Made { names, options, pin, standing, asking, noting: Some(noting), clients };
        let (mut shared, notes) = made.seen()?;
        shared.writes = false;
        let shared = Arc::new(shared);
        let (closing, closed) = mpsc::channel();
        let followed = shared.clone();
        let follower = start("kafka-log-follower", move || follow::run(&followed, notes, &closed))?;
        let watchers = vec![(closing, follower), watch(&shared)?];
        Ok(Self(Arc::new(Inner { shared, notes: Mutex::default(), jobs: None, watchers })))
    }

    /// For a log that was opened for looking, or is followed: shows it as it is now. Says whether more has come. Asks the brokers, so call
    /// it where blocking is allowed.
    ///
    /// # Errors
    /// [`LogError::Lost`] for topics that are not what they were, [`LogError::Server`] when no broker answers.
    pub fn look_again(&self) -> Result<bool, LogError> {
        let shared = &self.0.shared;
        if !shared.read_only {
            // It sees by itself what comes, and what goes wrong.
            return shared.trouble().map_or(Ok(false), |trouble| Err(trouble.error()));
        }
        let mut notes = lock(&self.0.notes);
        let look = {
            let asking = lock(&shared.asking);
            let (_, end) = bounds(&asking, &shared.names.meta, 0)?;
            // Whatever moves the end of the log is noted there.
            if notes.covers(end) {
                return Ok(false);
            }
            topics::same(&shared.clients, &shared.names, &shared.standing)?;
            looked(&asking, &shared.names, &shared.standing, None, &mut notes)?
        };
        let before = shared.end().cut;
        for schema in &look.meta.schemas {
            lock(&shared.schemas).insert(schema)?;
        }
        lock(&shared.holds).all = look.meta.holds;
        *lock(&shared.delivers) = Delivers { lead: look.meta.lead, shares: look.meta.shares };
        *lock(&shared.processes) = look.meta.processes;
        if let Some(start) = look.meta.start.filter(|start| start.covers(&shared.start())) {
            *lock(&shared.start) = start;
        }
        shared.settle(&look.tail.settled);
        Ok(shared.end().cut != before)
    }

    /// What the log waits for while its brokers are away; nothing while it goes on.
    pub fn waiting(&self) -> Option<String> {
        lock(&self.0.shared.waiting).values().next().cloned()
    }

    /// What the clients of this process have counted, by what they are for; nothing of a log that is only looked at.
    pub fn figures(&self) -> Vec<ClientFigures> {
        self.0.shared.clients.figures()
    }

    /// How the brokers are reached.
    pub fn brokers(&self) -> &str {
        self.0.shared.clients.brokers()
    }

    /// The log's own number, drawn when it was made.
    pub fn id(&self) -> u64 {
        self.0.shared.id
    }

    /// The topic of entries.
    pub fn topic(&self) -> &str {
        &self.0.shared.names.changes
    }

    /// The named consumers, and the first offsets that each has not read.
    pub fn consumers(&self) -> Vec<(String, Cut)> {
        lock(&self.0.shared.holds).all.iter().map(|(name, cut)| (name.clone(), cut.clone())).collect()
    }

    /// When the broker drops entries, as the topic says.
    pub fn retention(&self) -> Retention {
        self.0.shared.standing.retention
    }

    /// Why the log takes no more appends, if so.
    pub fn poisoned(&self) -> Option<String> {
        self.0.shared.trouble().map(|trouble| trouble.error().to_string())
    }

    fn ask(&self, job: Job) {
        // Without a writer the reply's other end is dropped with the job, and whoever waits hears of it.
        if let Some(jobs) = &self.0.jobs {
            let _ = jobs.send(job);
        }
    }

    fn ended(&self) -> LogError {
        match self.0.shared.trouble() {
            Some(trouble) => trouble.error(),
            None if !self.0.shared.writes => self.0.shared.is_read_only(),
            None => LogError::Poisoned { why: "the thread that writes the log has ended".to_owned() },
        }
    }
}

/// What [`examine`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examined {
    /// The topic of entries.
    pub changes: String,
    /// The topic of notes.
    pub meta: String,
    /// Whether they are there already.
    pub there: bool,
}

/// Looks whether a log could be kept so, and writes nothing.
///
/// # Errors
/// As [`KafkaLog::open`].
pub fn examine(options: &LogOptions) -> Result<Examined, LogError> {
    let names = Names::new(&options.topic_prefix)?;
    let clients = Clients::new(options.connection.clone())?;
    let pin = pin_of(options)?;
    let there = topics::examine(&clients, &names, options, pin.as_ref())?.is_some();
    if there {
        let asking = clients.asking(&names.readers)?;
        refuse_anothers(&names, options, pin.as_ref(), &meta::read(&asking, &names)?)?;
    }
    Ok(Examined { changes: names.changes, meta: names.meta, there })
}

/// Deletes the topics of a log, and forgets them: those whose ids are in [`LogOptions::pin`], and no others of the same
/// name. Returns their names. May be done again where it ended half-way.
///
/// # Errors
/// [`LogError::Server`] when no broker answers or one says no.
pub fn delete(options: &LogOptions) -> Result<Vec<String>, LogError> {
    let (Some(path), Some(pin)) = (&options.pin, pin_of(options)?) else { return Ok(Vec::new()) };
    let names = Names::new(&options.topic_prefix)?;
    let deleted = topics::delete(&Clients::new(options.connection.clone())?, &names, &pin)?;
    Pin::remove(path)?;
    Ok(deleted)
}

/// How long opening goes on asking: longer than one question that a broker leaves unanswered, and another answers then.
const OPENING: Duration = Duration::from_secs(45);

/// Opening a log asks many things. A broker that goes in the midst of it fails one of them at once, and may be back in a
/// moment; one that is not there at all is waited for by the first question.
fn patiently<T>(mut open: impl FnMut() -> Result<T, LogError>) -> Result<T, LogError> {
    let began = Instant::now();
    loop {
        match open() {
            Err(error @ LogError::Server { passing: true, .. }) if began.elapsed() < OPENING => {
                tracing::debug!("{error}; asking again");
                thread::sleep(Duration::from_millis(200));
            }
            other => return other,
        }
    }
}

fn pin_of(options: &LogOptions) -> Result<Option<Pin>, LogError> {
    Ok(options.pin.as_deref().map(Pin::read).transpose()?.flatten())
}

/// A log that is not pinned where it should be is somebody else's: two writers of one log would shut each other out.
fn refuse_anothers(names: &Names, options: &LogOptions, pin: Option<&Pin>, meta: &Meta) -> Result<(), LogError> {
    let Some(birth) = &meta.birth else { return Ok(()) };
    match pin {
        Some(pin) if pin.log == birth.id => Ok(()),
        Some(pin) => Err(LogError::Lost {
            what: format!(
                "the topic {} belongs to the log {:016x}, and the log {:016x} was kept in it",
                names.meta, birth.id, pin.log
            ),
            remedy: "Put the right topics back, or start again from the source: `crossfade rollback --wipe`, then `crossfade run`".to_owned(),
        }),
        None if options.pin.is_some() => Err(LogError::Refused {
            what: format!("the topics {} and {} hold the log of another migration", names.changes, names.meta),
            remedy: "Name another topic_prefix; or, if nobody needs that log any more, delete both topics".to_owned(),
        }),
        None => Ok(()),
    }
}

/// The log as its topics show it.
struct Look {
    meta: Meta,
    tail: tail::Tail,
    birth: Option<Birth>,
}

/// Looks at both topics, while somebody else may be writing them: what is noted of the end was committed with the entries
/// before it, so the end that was noted is one, and the other topic may only have more.
fn looked(
    asking: &LogConsumer,
    names: &Names,
    standing: &topics::Standing,
    pin: Option<&Pin>,
    notes: &mut Notes,
) -> Result<Look, LogError> {
    let mut differ_since: Option<Instant> = None;
    loop {
        let meta = meta::read_on(asking, names, notes)?;
        let seen = match &meta.birth {
            Some(birth) if birth.changes == standing.changes.id => {
                tail::noted(asking, names, standing.changes.partitions, meta.tail.clone()).map(|tail| (tail, None))
            }
            _ => look(asking, names, standing, pin, &meta),
        };
        match seen {
            Ok((tail, birth)) => return Ok(Look { meta, tail, birth }),
            // Committed in one of the topics, and not to be read in the other yet. What asking itself took, of brokers that
            // are slow or change their leaders, does not count: both are looked at again after that.
            Err(LogError::Lost { .. }) if differ_since.get_or_insert_with(Instant::now).elapsed() < AGREE => {
                thread::sleep(Duration::from_millis(20));
            }
            Err(error) => return Err(error),
        }
    }
}

/// Where the log ends; and how it was made, if it is being made now.
fn look(
    asking: &LogConsumer,
    names: &Names,
    standing: &topics::Standing,
    pin: Option<&Pin>,
    meta: &Meta,
) -> Result<(tail::Tail, Option<Birth>), LogError> {
    let ends = tail::ends(asking, names, standing.changes.partitions)?;
    let birth = match &meta.birth {
        Some(birth) if birth.changes != standing.changes.id => {
            return Err(topics::recreated(&names.changes, &birth.changes, &standing.changes.id));
        }
        Some(_) => None,
        None if ends.last.iter().any(Option::is_some) || meta.tail.is_some() => {
            return Err(LogError::Lost {
                what: format!("the topic {} does not say how the log in {} was made", names.meta, names.changes),
                remedy: "Put the right topic back, or name another topic_prefix".to_owned(),
            });
        }
        None => Some(Birth {
            // One that ended right after it had pinned its topics goes on under the number that it had drawn.
            id: pin.map_or_else(drawn, |pin| pin.log),
            changes: standing.changes.id.clone(),
            partitions: standing.changes.partitions,
        }),
    };
    Ok((tail::settle(names, &ends, meta.tail.clone())?, birth))
}

/// What is needed to open a log.
struct Made {
    names: Names,
    options: LogOptions,
    pin: Option<Pin>,
    standing: topics::Standing,
    asking: LogConsumer,
    noting: Option<crate::client::LogProducer>,
    clients: Clients,
}

impl Made {
    /// For a log that another process writes.
    fn seen(self) -> Result<(Shared, Notes), LogError> {
        let mut notes = Notes::default();
        let look = looked(&self.asking, &self.names, &self.standing, self.pin.as_ref(), &mut notes)?;
        refuse_anothers(&self.names, &self.options, self.pin.as_ref(), &look.meta)?;
        let (shared, ..) = self.shared(look.meta, look.tail, look.birth)?;
        Ok((shared, notes))
    }

    fn settle(self, meta: Meta) -> Result<(Shared, tail::Tail, Option<Birth>), LogError> {
        let (tail, birth) = look(&self.asking, &self.names, &self.standing, self.pin.as_ref(), &meta)?;
        self.shared(meta, tail, birth)
    }

    fn shared(
        self,
        meta: Meta,
        tail: tail::Tail,
        birth: Option<Birth>,
    ) -> Result<(Shared, tail::Tail, Option<Birth>), LogError> {
        let id = birth.as_ref().or(meta.birth.as_ref()).map_or(0, |birth| birth.id);
        let mut schemas = Schemas::default();
        for schema in &meta.schemas {
            schemas.insert(schema)?;
        }
        let partitions = self.standing.changes.partitions;
        let processes = Mutex::new(meta.processes);
        let end = End { round: tail.settled.round, cut: tail.settled.cut.clone(), position: tail.settled.position };
        let shared = Shared {
            id,
            writes: self.noting.is_some(),
            read_only: self.noting.is_none(),
            end: tokio::sync::watch::Sender::new(end),
            start: Mutex::new(meta.start.unwrap_or_else(|| Cut::start(partitions))),
            schemas: Mutex::new(schemas),
            abandoned: Mutex::new(tail.settled.abandoned.clone()),
            holds: Mutex::new(Holds::heard(meta.holds)),
            trouble: Mutex::new(None),
            asking: Mutex::new(self.asking),
            noting: self.noting.map(Mutex::new),
            delivers: Mutex::new(Delivers { lead: meta.lead, shares: meta.shares }),
            waiting: Mutex::default(),
            served: Mutex::default(),
            own: drawn(),
            told: Mutex::default(),
            processes,
            clients: self.clients,
            names: self.names,
            options: self.options,
            standing: self.standing,
        };
        shared.look_at_the_start()?;
        Ok((shared, tail, birth))
    }
}

/// Looks after the log beside its work.
fn watch(shared: &Arc<Shared>) -> Result<(mpsc::Sender<()>, JoinHandle<()>), LogError> {
    let (closing, closed) = mpsc::channel();
    let watched = shared.clone();
    Ok((closing, start("kafka-log-watcher", move || watcher::run(&watched, &closed))?))
}

fn start(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, LogError> {
    let started = thread::Builder::new().name(name.to_owned()).spawn(work);
    started.map_err(|cause| LogError::Io { doing: "starting a thread for", file: name.into(), cause })
}

/// A number that nobody else has drawn.
fn drawn() -> u64 {
    let drawn = uuid::Uuid::now_v7().as_u128();
    (drawn as u64) ^ ((drawn >> 64) as u64)
}

/// This process, for people.
fn who() -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "an unnamed host" } else { host.trim() };
    format!("process {} on {host}", std::process::id())
}

impl EventLog for KafkaLog {
    type Reader = KafkaReader;

    fn partitions(&self) -> u32 {
        self.0.shared.partitions()
    }

    fn append(&self, batch: Batch) -> impl Future<Output = Result<Cut, LogError>> + Send + 'static {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.ask(Job::Append(batch, reply));
        let log = self.clone();
        async move { answer.await.unwrap_or_else(|_| Err(log.ended())) }
    }

    fn abandon(&self) -> impl Future<Output = Result<(), LogError>> + Send + 'static {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.ask(Job::Abandon(reply));
        let log = self.clone();
        async move { answer.await.unwrap_or_else(|_| Err(log.ended())) }
    }

    fn read(&self, from: &Cut, lane: Lane) -> Result<KafkaReader, LogError> {
        KafkaReader::new(self.0.shared.clone(), self.0.clone(), from, lane)
    }

    fn read_made(&self, from: &Cut, lane: Lane) -> Result<KafkaReader, LogError> {
        let reader = self.read(from, lane)?;
        Ok(if self.0.shared.standing.transformed.is_some() { reader.with_made() } else { reader })
    }

    fn tail(&self) -> Tail {
        let end = self.0.shared.end();
        Tail { cut: end.cut, position: end.position }
    }

    fn start(&self) -> Cut {
        self.0.shared.start()
    }

    fn schema(&self, table: TableId, version: SchemaVersion) -> Option<Arc<TableSchema>> {
        lock(&self.0.shared.schemas).get(table, version)
    }

    fn latest_schemas(&self) -> Vec<Arc<TableSchema>> {
        lock(&self.0.shared.schemas).latest()
    }

    fn hold(&self, consumer: &str, cut: &Cut) -> Result<(), LogError> {
        self.0.shared.hold(consumer, cut)
    }

    fn release(&self, consumer: &str) -> Result<(), LogError> {
        self.0.shared.release(consumer)
    }

    fn trim(&self, below: &Cut, force: bool) -> Result<Cut, LogError> {
        self.0.shared.trim(below, force)
    }
}
