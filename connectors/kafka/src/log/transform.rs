//! A transform worker: a member of the group that has the partitions of the topic of changes shared out, and makes of
//! what is in its own what whoever delivers would make of it.
//!
//! ```text
//!  changes/0 ──▶ schemas, backfills ─┐
//!  changes/p ──▶ changes, rows ──────┴─▶ Make ──▶ transformed/p, note, the group's place     one transaction of Kafka
//! ```
//!
//! Each partition is worked on by a thread of its own, with a producer of its own, whose `transactional.id` belongs to the
//! partition. Whoever is given the partition begins with it: that ends what the one before had begun, and shuts it out.
//! Each transaction bears the group's generation as well. So one that was held to be dead and comes back can commit
//! nothing, says so, forgets what it knew of the partition, and goes on with what the group gives it next.
//!
//! Where it goes on stands in the partition itself, in the note behind what was made, which is committed together with it.
//! The group's own offsets are committed in the same transaction, for tools that show lag; they are asked for nothing, so it
//! does no harm when they expire.

mod hand;

use super::{
    KafkaLog,
    made::{self, Note},
    members::{Member, Turn},
    reader::KafkaReader,
    shared::{Shared, Waiter, lock},
    start,
};
use crate::{
    client::{Right, is_passing, needing},
    codec::{Head, What},
};
use bytes::Bytes;
use crossfade_event::{Cut, Event, Partition, SchemaVersion, TableId};
use crossfade_log::{Entries, Entry, Lane, LogError, LogReader, record::kind_of};
use hand::{Batch, Broken, Hand};
use rdkafka::{
    consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata},
    error::KafkaError,
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tokio::runtime::Handle;

/// A transaction is ended once so much was made.
const BATCH_BYTES: usize = 2 << 20;

/// How often the group is listened to, and an idle partition is looked at.
const LISTEN: Duration = Duration::from_millis(100);

/// The pause before a partition is begun anew: whoever was shut out hears from the group meanwhile what it still has.
const PAUSE: Duration = Duration::from_secs(1);

/// How often a partition in which nothing happens notes how far the log has come.
const NOTE_EVERY: Duration = Duration::from_secs(10);

/// And how often even if it has not come further: the last note is not to expire.
const NOTE_AGAIN: Duration = Duration::from_secs(600);

/// What makes something of entries; each partition has its own.
pub trait Make: Send {
    /// Takes the next entry; what was made of it, if it is a change or a block of rows.
    ///
    /// # Errors
    /// When it can never be made.
    fn take(&mut self, entry: &Entry) -> Result<Option<Bytes>, LogError>;

    /// The shapes followed so far.
    fn followed(&self) -> Vec<(TableId, SchemaVersion)>;
}

/// Makes a [`Make`] that goes on where these shapes have been followed.
pub type Begin = dyn Fn(&[(TableId, SchemaVersion)]) -> Result<Box<dyn Make>, LogError> + Send + Sync;

/// What a worker has of the log at the moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Share {
    /// Its partitions, and how many records of each are still before it.
    pub partitions: BTreeMap<u32, u64>,
    /// Changes and blocks of rows that it has made something of.
    pub made: u64,
    /// What it waits for.
    pub waiting: Option<String>,
}

impl KafkaLog {
    /// Works as one of the workers of this log until `stop` is set; `tell` hears from time to time what it has. Blocks;
    /// call it within a runtime of tokio.
    ///
    /// # Errors
    /// [`LogError::Refused`] for a log without workers, [`LogError::Lost`] for topics that are not what they were, and
    /// whatever [`Make`] cannot make.
    pub fn transform(&self, begin: Arc<Begin>, stop: &AtomicBool, tell: &dyn Fn(Share)) -> Result<(), LogError> {
        let shared = &self.0.shared;
        let Some(workers) = shared.options.workers.filter(|_| shared.standing.transformed.is_some()) else {
            return Err(LogError::Refused {
                what: format!("the log in {} was begun without transform workers", shared.names.changes),
                remedy: "Write `transform = \"workers\"` into [log] before the migration begins".to_owned(),
            });
        };
        let member = shared.clients.member(&shared.names.workers, workers.silent, Member::default())?;
        member.subscribe(&[&shared.names.changes]).map_err(|error| in_the_group(shared, error))?;
        let crew = Crew {
            log: self.clone(),
            member: Arc::new(member),
            begin,
            runtime: Handle::current(),
            failed: Arc::default(),
            made: Arc::default(),
            at_work: BTreeMap::new(),
            leaving: Vec::new(),
        };
        crew.run(stop, tell)
    }
}

/// One that works on a partition.
struct Worker {
    stop: Arc<AtomicBool>,
    /// The first record of its partition that it has not made.
    next: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

/// All of a process.
struct Crew {
    log: KafkaLog,
    member: Arc<BaseConsumer<Member>>,
    begin: Arc<Begin>,
    runtime: Handle,
    failed: Arc<Mutex<Option<LogError>>>,
    made: Arc<AtomicU64>,
    at_work: BTreeMap<u32, Worker>,
    /// They end by themselves, at the next step.
    leaving: Vec<JoinHandle<()>>,
}

impl Crew {
    fn run(mut self, stop: &AtomicBool, tell: &dyn Fn(Share)) -> Result<(), LogError> {
        let mut told: Option<Instant> = None;
        let ended = loop {
            if stop.load(Relaxed) {
                break Ok(());
            }
            if let Some(error) = lock(&self.failed).take() {
                break Err(error);
            }
            if let Some(trouble) = self.log.0.shared.trouble() {
                break Err(trouble.error());
            }
            // Nothing is read here: its partitions rest.
            if let Some(Err(error)) = self.member.poll(LISTEN) {
                tracing::debug!(%error, "the group of the workers");
                if !is_passing(&error) {
                    break Err(in_the_group(&self.log.0.shared, error));
                }
            }
            if let Err(error) = self.member.context().turns().into_iter().try_for_each(|turn| self.turn(turn)) {
                break Err(error);
            }
            self.leaving.retain(|thread| !thread.is_finished());
            if told.is_none_or(|last| last.elapsed() >= Duration::from_millis(500)) {
                told = Some(Instant::now());
                tell(self.share());
            }
        };
        // First they end, then the group hears of it: whoever gets the partitions finds nobody in them.
        self.at_work.values().for_each(|worker| worker.stop.store(true, Relaxed));
        for worker in std::mem::take(&mut self.at_work).into_values() {
            // It ends by itself.
            let _ = worker.thread.join();
        }
        self.member.unsubscribe();
        ended
    }

    fn turn(&mut self, turn: Turn) -> Result<(), LogError> {
        match turn {
            Turn::Given(partitions) => {
                for partition in partitions {
                    self.leave(partition);
                    let worker = self.at(Partition(partition))?;
                    self.at_work.insert(partition, worker);
                }
                let all: Vec<u32> = self.at_work.keys().copied().collect();
                tracing::info!(partitions = ?all, "the group has given this worker its partitions");
            }
            Turn::Taken { partitions, held_dead } => {
                if held_dead {
                    tracing::warn!(
                        ?partitions,
                        "the group held this worker for dead and gives its partitions to others: what it had begun in them is dropped, and it joins again"
                    );
                }
                partitions.into_iter().for_each(|partition| self.leave(partition));
            }
        }
        Ok(())
    }

    fn leave(&mut self, partition: u32) {
        if let Some(worker) = self.at_work.remove(&partition) {
            worker.stop.store(true, Relaxed);
            self.leaving.push(worker.thread);
        }
    }

    /// Begins to work on a partition.
    fn at(&self, partition: Partition) -> Result<Worker, LogError> {
        let (stop, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let post = Post {
            log: self.log.clone(),
            member: self.member.clone(),
            begin: self.begin.clone(),
            runtime: self.runtime.clone(),
            failed: self.failed.clone(),
            made: self.made.clone(),
            partition,
            stop: stop.clone(),
            next: next.clone(),
        };
        let thread = start("kafka-transform", move || post.work())?;
        Ok(Worker { stop, next, thread })
    }

    fn share(&self) -> Share {
        let shared = &self.log.0.shared;
        let end = shared.end().cut;
        let before = |(partition, worker): (&u32, &Worker)| {
            (*partition, end.next(Partition(*partition)).0.saturating_sub(worker.next.load(Relaxed)))
        };
        Share {
            partitions: self.at_work.iter().map(before).collect(),
            made: self.made.load(Relaxed),
            waiting: self.log.waiting(),
        }
    }
}

/// What a member of the group meets.
fn in_the_group(shared: &Shared, error: KafkaError) -> LogError {
    let names = &shared.names;
    let rights = [Right::Group(&names.workers), Right::Topic("Read", &names.changes)];
    needing(&rights, format!("working in the group {}", names.workers), error)
}

/// A partition and whoever works on it.
struct Post {
    log: KafkaLog,
    member: Arc<BaseConsumer<Member>>,
    begin: Arc<Begin>,
    runtime: Handle,
    failed: Arc<Mutex<Option<LogError>>>,
    made: Arc<AtomicU64>,
    partition: Partition,
    stop: Arc<AtomicBool>,
    next: Arc<AtomicU64>,
}

impl Post {
    fn work(self) {
        let shared = &self.log.0.shared;
        let waiter = Waiter::Worker(self.partition.0);
        while !self.stop.load(Relaxed) {
            match self.hold() {
                Ok(()) => break,
                Err(_) if self.stop.load(Relaxed) => break,
                Err(Broken::Fenced(error)) => {
                    tracing::debug!(%error, "shut out");
                    tracing::warn!(
                        partition = self.partition.0,
                        "another worker has taken this partition: what this one had begun in it is aborted, and it forgets what it knew of it"
                    );
                }
                Err(Broken::Log(error @ LogError::Server { passing: true, .. })) => {
                    tracing::debug!(%error, partition = self.partition.0, "a partition is begun anew");
                    shared.waits(waiter, error.to_string());
                }
                Err(Broken::Log(error)) => {
                    lock(&self.failed).get_or_insert(error);
                    break;
                }
            }
            let began = Instant::now();
            while began.elapsed() < PAUSE && !self.stop.load(Relaxed) {
                thread::sleep(Duration::from_millis(20));
            }
        }
        shared.goes_on(waiter);
    }

    /// Takes the partition over and works on it until told to stop.
    fn hold(&self) -> Result<(), Broken> {
        let shared = &self.log.0.shared;
        let hand = Hand::take(shared, self.partition)?;
        let note = hand.note()?;
        let followed = note.as_ref().map_or_else(Vec::new, |note| note.followed.clone());
        let mut make = (self.begin)(&followed)?;
        let mut reader = self.reader(note.as_ref())?;
        let (mut batch, mut noted) = (Batch::default(), Instant::now());
        let mut note = note;
        shared.goes_on(Waiter::Worker(self.partition.0));
        while !self.stop.load(Relaxed) {
            // Hears what the producer has to say beside.
            hand.producer.poll(Duration::ZERO);
            let entries = match reader.try_next()? {
                Some(entries) => Some(entries),
                None if batch.is_empty() => {
                    let next = self.runtime.block_on(async { tokio::time::timeout(LISTEN, reader.next()).await });
                    next.ok().transpose()?
                }
                None => None,
            };
            let is_at_end = entries.is_none();
            if let Some(entries) = entries {
                note = Some(self.take(entries, &reader, make.as_mut(), &mut batch)?);
            }
            let is_due = batch.bytes >= BATCH_BYTES || (is_at_end && !batch.is_empty());
            let is_time = batch.moved && noted.elapsed() > NOTE_EVERY || noted.elapsed() > NOTE_AGAIN;
            if let Some(note) = note.as_ref().filter(|_| is_due || is_time) {
                hand.write(&batch, note, &self.group()?)?;
                self.made.fetch_add(batch.records.len() as u64, Relaxed);
                self.next.store(note.own.0, Relaxed);
                batch = Batch::default();
                noted = Instant::now();
            }
        }
        Ok(())
    }

    /// Where it goes on; from the log's beginning where nothing says so, or the broker has dropped what came next.
    fn reader(&self, note: Option<&Note>) -> Result<KafkaReader, LogError> {
        let shared = &self.log.0.shared;
        let from = |from: &Cut| {
            KafkaReader::of_worker(shared.clone(), Arc::new(self.log.clone()), from, self.partition, Lane::All)
        };
        let Some(note) = note else { return from(&shared.start()) };
        let mut place = shared.start();
        place.set_next(Partition(0), note.first);
        place.set_next(self.partition, note.own);
        self.next.store(note.own.0, Relaxed);
        match from(&place) {
            Err(LogError::Trimmed { .. }) => from(&shared.start()),
            other => other,
        }
    }

    /// Makes what can be made of a round; returns what is to be noted behind it.
    fn take(
        &self,
        entries: Entries,
        reader: &KafkaReader,
        make: &mut dyn Make,
        batch: &mut Batch,
    ) -> Result<Note, LogError> {
        let shared = &self.log.0.shared;
        let (round, at_ms) = reader.last();
        for entry in &entries.entries {
            let Some(made) = make.take(entry)? else { continue };
            if entry.partition == self.partition {
                let value = made::value(&head_of(entry, round), shared.id, &made);
                batch.bytes += value.len();
                batch.records.push((value, at_ms));
            }
        }
        batch.moved = true;
        let (own, first) = (entries.next.next(self.partition), entries.next.next(Partition(0)));
        Ok(Note { log: shared.id, round, at_ms, own, first, followed: make.followed() })
    }

    fn group(&self) -> Result<ConsumerGroupMetadata, LogError> {
        self.member
            .group_metadata()
            .ok_or_else(|| LogError::Contract("a member of a group does not know its group".to_owned()))
    }
}

/// The head of the record that an entry was read from, as far as it tells it from others.
fn head_of(entry: &Entry, round: u64) -> Head {
    let (table, schema) = match &entry.event {
        Event::Changed(change) => (change.table, change.schema),
        Event::Rows(block) => (block.table, block.schema),
        _ => (TableId(0), SchemaVersion(0)),
    };
    let what = What::Event { kind: kind_of(&entry.event), bits: 0, table, schema, position: entry.position };
    Head { round, place: Head::place_of(entry.sequence), what }
}

#[cfg(test)]
mod tests;
