//! What the writer, the readers and the watcher of one log have in common.

use super::{
    meta::{Applies, LastRound, Says, Writer, hold_key, share_key},
    place,
    processes::Process,
    served::Served,
    tail::{self},
    topics::{Names, Standing},
};
use crate::{
    LogOptions,
    client::{Clients, LogConsumer, LogProducer, PATIENCE, flush, reason, writing},
};
use crossfade_event::{Cut, Partition, Position};
use crossfade_log::{LogError, provider::Schemas};
use rdkafka::producer::{BaseRecord, Producer as _};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};
use tokio::sync::watch;

/// Where the log ends for its readers: after the last whole round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    pub(super) round: u64,
    pub(super) cut: Cut,
    pub(super) position: Option<Position>,
}

/// Why nothing more is written, and for what is lost nothing more is read.
#[derive(Debug, Clone)]
pub(super) enum Trouble {
    Lost { what: String, remedy: String },
    Fenced { log: String, by: String },
    Denied { doing: String, said: String, remedy: String },
    Stopped(String),
}

impl Trouble {
    pub(super) fn of(error: &LogError) -> Self {
        match error {
            LogError::Lost { what, remedy } => Self::Lost { what: what.clone(), remedy: remedy.clone() },
            LogError::Fenced { log, by } => Self::Fenced { log: log.clone(), by: by.clone() },
            LogError::Denied { doing, said, remedy } => {
                Self::Denied { doing: doing.clone(), said: said.clone(), remedy: remedy.clone() }
            }
            error => Self::Stopped(
                std::error::Error::source(error).map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}")),
            ),
        }
    }

    pub(super) fn error(&self) -> LogError {
        match self {
            Self::Lost { what, remedy } => LogError::Lost { what: what.clone(), remedy: remedy.clone() },
            Self::Fenced { log, by } => LogError::Fenced { log: log.clone(), by: by.clone() },
            Self::Denied { doing, said, remedy } => {
                LogError::Denied { doing: doing.clone(), said: said.clone(), remedy: remedy.clone() }
            }
            Self::Stopped(why) => LogError::Poisoned { why: why.clone() },
        }
    }
}

/// Consumers' places, and those that have not been written to the broker yet.
#[derive(Debug, Default)]
pub(super) struct Holds {
    pub(super) all: BTreeMap<String, Cut>,
    pub(super) unwritten: BTreeSet<String>,
    /// Those whose places this process says; the others it hears of.
    own: BTreeSet<String>,
}

impl Holds {
    /// What others have said.
    pub(super) fn heard(all: BTreeMap<String, Cut>) -> Self {
        Self { all, ..Self::default() }
    }

    /// Notes the place of a consumer of this process; nothing when it is released.
    fn say(&mut self, consumer: &str, cut: Option<&Cut>) {
        self.own.insert(consumer.to_owned());
        let changed = match cut {
            Some(cut) => self.all.insert(consumer.to_owned(), cut.clone()).as_ref() != Some(cut),
            None => self.all.remove(consumer).is_some(),
        };
        if changed {
            self.unwritten.insert(consumer.to_owned());
        }
    }

    /// Another process says it from now on.
    pub(super) fn leave(&mut self, consumer: &str) {
        self.own.remove(consumer);
        self.unwritten.remove(consumer);
    }

    /// Notes what another process says of a consumer's place.
    pub(super) fn hear(&mut self, consumer: &str, cut: Option<Cut>) {
        if self.own.contains(consumer) {
            return;
        }
        match cut {
            Some(cut) => self.all.insert(consumer.to_owned(), cut),
            None => self.all.remove(consumer),
        };
    }

    /// Notes all that others say.
    pub(super) fn hear_all(&mut self, others: BTreeMap<String, Cut>) {
        self.all.retain(|name, _| self.own.contains(name) || others.contains_key(name));
        for (name, cut) in others {
            self.hear(&name, Some(cut));
        }
    }
}

pub(super) struct Shared {
    pub(super) clients: Clients,
    pub(super) names: Names,
    pub(super) options: LogOptions,
    pub(super) standing: Standing,
    pub(super) id: u64,
    /// Whether this process writes the entries.
    pub(super) writes: bool,
    /// Nothing is written at all, consumers' places neither.
    pub(super) read_only: bool,
    pub(super) end: watch::Sender<End>,
    pub(super) start: Mutex<Cut>,
    pub(super) schemas: Mutex<Schemas>,
    pub(super) abandoned: Mutex<Vec<(u64, u64)>>,
    pub(super) holds: Mutex<Holds>,
    pub(super) trouble: Mutex<Option<Trouble>>,
    /// For questions; one at a time.
    pub(super) asking: Mutex<LogConsumer>,
    /// For notes outside of transactions: consumers' places. None where nothing may be written.
    pub(super) noting: Option<Mutex<LogProducer>>,
    /// Who has the lead of several that deliver, and who of them applies which partition.
    pub(super) delivers: Mutex<Delivers>,
    /// Who waits for the brokers, and for what.
    pub(super) waiting: Mutex<BTreeMap<Waiter, String>>,
    /// The readers' consumers, to be served while nobody reads.
    pub(super) served: Mutex<Vec<Weak<Served>>>,
    /// Drawn for this process, and what it says of itself.
    pub(super) own: u64,
    pub(super) told: Mutex<Option<Process>>,
    /// What the others have said of themselves, when they were heard last.
    pub(super) processes: Mutex<BTreeMap<u64, Process>>,
}

/// What is noted of several that deliver.
#[derive(Debug, Default)]
pub(super) struct Delivers {
    pub(super) lead: Option<Writer>,
    pub(super) shares: BTreeMap<u32, Applies>,
}

/// Who can have to wait for the brokers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Waiter {
    Writer,
    Reader,
    Follower,
    /// A reader, for what workers have not made yet.
    Made,
    /// A worker, by its partition.
    Worker(u32),
}

/// The number of a note whose offset is wanted.
const SAID: usize = 1;

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("names", &self.names).field("id", &self.id).finish_non_exhaustive()
    }
}

/// Every change under these locks is made by code that does not panic.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn partitions(&self) -> u32 {
        self.standing.changes.partitions
    }

    pub(super) fn end(&self) -> End {
        self.end.borrow().clone()
    }

    pub(super) fn start(&self) -> Cut {
        lock(&self.start).clone()
    }

    pub(super) fn trouble(&self) -> Option<Trouble> {
        lock(&self.trouble).clone()
    }

    /// Notes why nothing goes on any more; the first reason stays.
    pub(super) fn stop_for(&self, error: &LogError) {
        lock(&self.trouble).get_or_insert_with(|| Trouble::of(error));
    }

    /// Notes that somebody waits for the brokers, for people to see.
    pub(super) fn waits(&self, who: Waiter, why: String) {
        lock(&self.waiting).insert(who, why);
    }

    /// Notes that somebody no longer waits.
    pub(super) fn goes_on(&self, who: Waiter) {
        lock(&self.waiting).remove(&who);
    }

    pub(super) fn is_abandoned(&self, round: u64) -> bool {
        lock(&self.abandoned).iter().any(|(first, last)| (*first..=*last).contains(&round))
    }

    /// Publishes a new end.
    pub(super) fn settle(&self, last: &LastRound) {
        *lock(&self.abandoned) = last.abandoned.clone();
        self.end.send_replace(End { round: last.round, cut: last.cut.clone(), position: last.position });
    }

    /// A reader's consumer, which is served also while nobody reads.
    pub(super) fn served(&self, consumer: LogConsumer) -> Arc<Served> {
        let served = Arc::new(Served::new(consumer));
        let mut all = lock(&self.served);
        all.retain(|other| other.strong_count() > 0);
        all.push(Arc::downgrade(&served));
        served
    }

    /// Serves the consumers of readers that nobody reads with now.
    pub(super) fn serve_idle(&self) {
        let all: Vec<Arc<Served>> = lock(&self.served).iter().filter_map(Weak::upgrade).collect();
        all.iter().for_each(|served| served.serve_if_idle());
    }

    /// Checks that a place lies in the log.
    pub(super) fn check(&self, cut: &Cut) -> Result<(), LogError> {
        let there = self.partitions() as usize;
        if cut.0.len() > there {
            return Err(LogError::Contract(format!("a cut of {} partitions for a log of {there}", cut.0.len())));
        }
        let (start, end) = (self.start(), self.end().cut);
        if !cut.covers(&start) {
            return Err(LogError::Trimmed { asked: cut.clone(), start });
        }
        if !end.covers(cut) {
            return Err(LogError::Beyond { asked: cut.clone(), end });
        }
        Ok(())
    }

    pub(super) fn hold(&self, consumer: &str, cut: &Cut) -> Result<(), LogError> {
        if self.read_only {
            return Err(self.is_read_only());
        }
        match self.check(cut) {
            Ok(()) => {}
            Err(LogError::Trimmed { .. }) => return Err(self.expired(consumer, cut)),
            Err(error) => return Err(error),
        }
        lock(&self.holds).say(consumer, Some(cut));
        Ok(())
    }

    pub(super) fn release(&self, consumer: &str) -> Result<(), LogError> {
        if self.read_only {
            return Err(self.is_read_only());
        }
        lock(&self.holds).say(consumer, None);
        Ok(())
    }

    /// The place of a consumer of this process.
    pub(super) fn own_place(&self, consumer: &str) -> Option<Cut> {
        let holds = lock(&self.holds);
        holds.all.get(consumer).filter(|_| holds.own.contains(consumer)).cloned()
    }

    /// Entries that somebody still needed are gone.
    pub(super) fn expired(&self, consumer: &str, cut: &Cut) -> LogError {
        LogError::Lost {
            what: format!(
                "the broker has dropped entries of the topic {} that `{consumer}` still needs: it stands at {cut}, and the topic begins at {}",
                self.names.changes,
                self.start()
            ),
            remedy: "Give the topic a longer retention and start again from the source: `crossfade rollback --wipe`, then `crossfade run`"
                .to_owned(),
        }
    }

    /// Looks where the topic begins now.
    pub(super) fn look_at_the_start(&self) -> Result<Cut, LogError> {
        let consumer = lock(&self.asking);
        let ends = (0..self.partitions())
            .map(|partition| crate::client::bounds(&consumer, &self.names.changes, partition))
            .collect::<Result<Vec<_>, _>>()?;
        let low = Cut(ends.iter().map(|(low, _)| crossfade_event::Offset(*low)).collect());
        let first = place::first(&consumer, &self.names, &low, &self.start(), &self.end().cut)?;
        drop(consumer);
        let mut start = lock(&self.start);
        if first.covers(&start) {
            *start = first;
        }
        Ok(start.clone())
    }

    /// A reader stands where nothing is any more: either somebody needed it, or it was asked for too late.
    pub(super) fn overtaken(&self, at: &Cut) -> LogError {
        match self.look_at_the_start() {
            Err(error) => error,
            Ok(start) if at.covers(&start) => LogError::Lost {
                what: format!("the topic {} has lost its end: {at} is not there any more", self.names.changes),
                remedy: "Put the right topic back, or start again from the source: `crossfade rollback --wipe`, then `crossfade run`".to_owned(),
            },
            Ok(start) => match self.first_overtaken(&start) {
                Some((consumer, cut)) => self.expired(&consumer, &cut),
                None => LogError::Trimmed { asked: at.clone(), start },
            },
        }
    }

    /// A consumer that stands before the beginning.
    pub(super) fn first_overtaken(&self, start: &Cut) -> Option<(String, Cut)> {
        let holds = lock(&self.holds);
        holds.all.iter().find(|(_, cut)| !cut.covers(start)).map(|(name, cut)| (name.clone(), cut.clone()))
    }

    pub(super) fn trim(&self, below: &Cut, force: bool) -> Result<Cut, LogError> {
        let Some(noting) = self.noting.as_ref().filter(|_| self.writes) else { return Err(self.is_read_only()) };
        let (start, end) = (self.start(), self.end().cut);
        let mut limit = below.clone();
        if !force {
            for held in lock(&self.holds).all.values() {
                for (partition, at) in (0u32..).zip(limit.0.iter_mut()) {
                    *at = (*at).min(held.next(Partition(partition)));
                }
            }
        }
        for (partition, at) in (0u32..).zip(limit.0.iter_mut()) {
            *at = (*at).min(end.next(Partition(partition))).max(start.next(Partition(partition)));
        }
        if limit == start {
            return Ok(start);
        }
        // First the note: a beginning that was noted and not reached does no harm.
        self.note(&lock(noting), &Says::Start(limit.clone()))?;
        let offsets: Vec<u64> = limit.0.iter().map(|offset| offset.0).collect();
        self.clients.delete_below(&self.names.changes, &offsets)?;
        *lock(&self.start) = limit.clone();
        Ok(limit)
    }

    pub(super) fn is_read_only(&self) -> LogError {
        LogError::ReadOnly { dir: self.names.changes.clone().into() }
    }

    /// Writes consumers' places that have changed.
    pub(super) fn write_holds(&self) -> Result<(), LogError> {
        let Some(noting) = &self.noting else { return Ok(()) };
        let unwritten = {
            let mut holds = lock(&self.holds);
            let names = std::mem::take(&mut holds.unwritten);
            names.into_iter().map(|name| (holds.all.get(&name).cloned(), name)).collect::<Vec<_>>()
        };
        if unwritten.is_empty() {
            return Ok(());
        }
        let producer = lock(noting);
        let written = unwritten.iter().try_for_each(|(cut, name)| {
            let value = cut.clone().map(|cut| Says::Hold(cut).to_bytes()).transpose()?;
            self.send_note(&producer, &hold_key(name), value.as_deref())
        });
        let written = written.and_then(|()| self.flush_notes(&producer));
        if written.is_err() {
            lock(&self.holds).unwritten.extend(unwritten.into_iter().map(|(_, name)| name));
        }
        written
    }

    /// Notes who applies partitions, and how far; `None` where nobody does.
    pub(super) fn write_shares(&self, shares: &[(u32, Option<Applies>)]) -> Result<(), LogError> {
        let Some(noting) = &self.noting else { return Err(self.is_read_only()) };
        if shares.is_empty() {
            return Ok(());
        }
        let producer = lock(noting);
        for (partition, applies) in shares {
            let value = applies.clone().map(|applies| Says::Share(applies).to_bytes()).transpose()?;
            self.send_note(&producer, &share_key(*partition), value.as_deref())?;
        }
        self.flush_notes(&producer)
    }

    fn note(&self, producer: &LogProducer, says: &Says) -> Result<(), LogError> {
        self.send_note(producer, &says.key(), Some(&says.to_bytes()?))?;
        self.flush_notes(producer)
    }

    fn send_note(&self, producer: &LogProducer, key: &str, value: Option<&[u8]>) -> Result<(), LogError> {
        let mut record = BaseRecord::with_opaque_to(&self.names.meta, 0usize).partition(0).key(key);
        if let Some(value) = value {
            record = record.payload(value);
        }
        producer.send(record).map_err(|(error, _)| writing(&self.names.meta, reason(producer, error)))
    }

    fn flush_notes(&self, producer: &LogProducer) -> Result<(), LogError> {
        let failed = |error| writing(&self.names.meta, reason(producer, error));
        flush(producer, Duration::from_secs(10)).map_err(failed)?;
        producer.context().offsets().map_err(failed)?;
        producer.context().reset();
        Ok(())
    }

    /// Says something outside of the entries' transactions; returns the offset of the note.
    pub(super) fn say(&self, says: &Says) -> Result<u64, LogError> {
        let Some(noting) = &self.noting else { return Err(self.is_read_only()) };
        let (key, value) = (says.key(), says.to_bytes()?);
        let producer = lock(noting);
        let failed = |error| writing(&self.names.meta, reason(&producer, error));
        let record = BaseRecord::with_opaque_to(&self.names.meta, SAID).partition(0).key(&key).payload(&value);
        producer.send(record).map_err(|(error, _)| failed(error))?;
        flush(&producer, PATIENCE).map_err(failed)?;
        let offset = producer.context().offsets().map_err(failed)?.get(&SAID).copied();
        producer.context().reset();
        offset.ok_or_else(|| LogError::Contract("a note was taken and has no offset".to_owned()))
    }

    /// Takes a note back.
    pub(super) fn take_back(&self, key: &str) -> Result<(), LogError> {
        let Some(noting) = &self.noting else { return Err(self.is_read_only()) };
        let producer = lock(noting);
        self.send_note(&producer, key, None)?;
        self.flush_notes(&producer)
    }

    /// The last round of the topic itself, and the cut after it.
    pub(super) fn last_round(&self) -> Result<tail::Ends, LogError> {
        tail::ends(&lock(&self.asking), &self.names, self.partitions())
    }
}
