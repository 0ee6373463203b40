//! The one thread that writes: gathers what waits into a group, sends it in one transaction, and publishes the new end.
//!
//! ```text
//!  append ──▶ queue ──▶ build a group ──▶ begin · records and marks · flush · tail · commit ──▶ publish ──▶ replies
//!                            ▲                               │
//!                            └──── the same bytes again ─────┴─ anything unclear: a new producer of the same id,
//!                                                               then the topic itself says whether the group is in
//! ```
//!
//! A transaction of Kafka holds one group, a few megabytes, never a whole source transaction: so none lasts long, and
//! `transaction.max.timeout.ms` cuts no source transaction, however large.

use super::{
    Ended,
    build::{Builder, Group},
    meta::{self, LastRound, Says, Writer as Owner},
    shared::{Shared, Waiter, lock},
    tail::{Ends, Last},
    topics::{self, Names},
};
use crate::client::{LogProducer, NOTE, PATIENCE, Purpose, Right, code_of, flush, is_passing, needing, reason, send};
use crossfade_event::{Batch, Cut, Offset};
use crossfade_log::LogError;
use rdkafka::{
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseRecord, Producer},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::sync::oneshot;

/// A group is sent once it is this large.
const GROUP_BYTES: usize = 2 << 20;

/// How long one step of a transaction may take before it is held to have failed.
const STEP: Duration = Duration::from_secs(50);

/// How long what was committed may take until it can be read.
const READABLE: Duration = Duration::from_secs(10);

/// How long the producer is left alone while there is nothing to write.
const IDLE: Duration = Duration::from_secs(1);

/// How often a person is told that the brokers are still away.
const ALARM_EVERY: Duration = Duration::from_secs(30);

/// What the writer is asked.
pub(super) enum Job {
    Append(Batch, oneshot::Sender<Result<Cut, LogError>>),
    Abandon(oneshot::Sender<Result<(), LogError>>),
}

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) jobs: Receiver<Job>,
    pub(super) producer: LogProducer,
    pub(super) ended: Ended,
    pub(super) builder: Builder,
    pub(super) owner: Owner,
    /// Who wrote before, until our own name is noted.
    pub(super) before: Option<u64>,
    /// The end as it will be noted next.
    pub(super) last: LastRound,
}

/// What is known of a group after something went wrong.
enum Fate {
    Landed(Cut),
    Missing,
}

impl Writer {
    /// Works until the last handle of the log is gone.
    pub(super) fn run(mut self) {
        loop {
            let job = match self.jobs.recv_timeout(IDLE) {
                Ok(job) => job,
                Err(RecvTimeoutError::Timeout) => {
                    // What the producer has to say beside is heard while there is nothing to write, too.
                    self.producer.poll(Duration::ZERO);
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            match job {
                Job::Abandon(reply) => {
                    let abandoned = self.abandon();
                    // Nobody may be waiting any more.
                    let _ = reply.send(abandoned);
                }
                Job::Append(batch, reply) => self.append(batch, reply),
            }
        }
    }

    /// Writes this batch and whatever else waits.
    fn append(&mut self, batch: Batch, reply: oneshot::Sender<Result<Cut, LogError>>) {
        let mut replies = Vec::new();
        let mut next = Some(Job::Append(batch, reply));
        let mut abandon = None;
        while let Some(job) = next.take() {
            match job {
                Job::Append(batch, reply) => match self.take(batch) {
                    Ok(()) => replies.push(reply),
                    Err(error) => {
                        let written = self.write_group();
                        self.shared.stop_for(&error);
                        answer(replies, written);
                        let _ = reply.send(Err(error));
                        return;
                    }
                },
                Job::Abandon(reply) => {
                    abandon = Some(reply);
                    break;
                }
            }
            if self.builder.size_bytes() < GROUP_BYTES {
                next = self.jobs.try_recv().ok();
            }
        }
        let written = self.write_group();
        answer(replies, written);
        if let Some(reply) = abandon {
            let abandoned = self.abandon();
            let _ = reply.send(abandoned);
        }
    }

    fn take(&mut self, batch: Batch) -> Result<(), LogError> {
        match self.shared.trouble() {
            Some(trouble) => Err(trouble.error()),
            None => self.builder.take(batch, &mut lock(&self.shared.schemas)),
        }
    }

    fn abandon(&mut self) -> Result<(), LogError> {
        if let Some(trouble) = self.shared.trouble() {
            return Err(trouble.error());
        }
        let head = self.builder.abandon(self.last.round, &mut lock(&self.shared.schemas));
        if let Some(head) = head {
            self.last.abandoned.push(head);
            self.write_group()?;
        }
        Ok(())
    }

    /// Sends what was built; on return it is committed, or nothing more will ever be written.
    fn write_group(&mut self) -> Result<Cut, LogError> {
        let group = self.builder.finish();
        if group.is_empty() {
            return Ok(self.last.cut.clone());
        }
        let written = self.write(&group);
        if let Err(error) = &written {
            self.shared.stop_for(error);
        }
        written
    }

    /// Sends a group until it is in.
    pub(super) fn write(&mut self, group: &Group) -> Result<Cut, LogError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
        self.last.at_ms = self.last.at_ms.max(now);
        let cut = loop {
            if let Some(trouble) = self.shared.trouble() {
                return Err(trouble.error());
            }
            match self.attempt(group) {
                Ok(cut) => break cut,
                Err(Broken::Ours(error)) => return Err(error),
                Err(Broken::Kafka(error)) if !is_passing(&error) => return Err(self.refused(group, error)),
                Err(Broken::Kafka(error)) => {
                    self.takes_nothing(&error);
                    match self.recover(group, &error)? {
                        Fate::Landed(cut) => break cut,
                        Fate::Missing => {}
                    }
                }
            }
        };
        self.shared.goes_on(Waiter::Writer);
        self.last.position = self.builder.position();
        if let Some(round) = group.whole {
            self.last.round = round;
            self.last.cut = cut;
        }
        self.forget_dropped_heads();
        self.shared.settle(&self.last);
        Ok(self.last.cut.clone())
    }

    /// One try: everything in one transaction.
    fn attempt(&self, group: &Group) -> Result<Cut, Broken> {
        let (producer, names) = (&self.producer, &self.shared.names);
        producer.context().reset();
        producer.begin_transaction()?;
        for (record, key, value) in group.records() {
            let number =
                if record.mark.is_some() && record.mark == group.whole { 1 + record.partition.0 as usize } else { 0 };
            self.send(&names.changes, record.partition.0, key, value, number)?;
        }
        if group.whole.is_some() {
            flush(producer, STEP)?;
        }
        let cut = self.cut_of(group)?;
        let mut notes = group.notes.clone();
        if group.moves_the_tail() {
            notes.push(Says::Tail(self.last_with(group, cut.clone())));
        }
        for note in notes {
            self.send(&names.meta, 0, Some(note.key().as_bytes()), &note.to_bytes()?, NOTE)?;
        }
        flush(producer, STEP)?;
        self.offsets()?;
        producer.commit_transaction(STEP)?;
        self.until_readable()?;
        Ok(cut)
    }

    /// Committed is what can be read: see [`super::ended`].
    fn until_readable(&self) -> Result<(), Broken> {
        let names = &self.shared.names;
        let ends = self.producer.context().ends();
        for (topic, of_notes) in [(&names.changes, false), (&names.meta, true)] {
            let ends = ends.iter().filter(|((is_note, _), _)| *is_note == of_notes);
            let ends: BTreeMap<u32, u64> = ends.map(|((_, partition), end)| (*partition, *end)).collect();
            // Whatever the reason: the topic itself is asked what has become of it.
            if !ends.is_empty() && !self.ended.reaches(topic, &ends, READABLE).unwrap_or(false) {
                return Err(KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut).into());
            }
        }
        Ok(())
    }

    fn send(&self, topic: &str, partition: u32, key: Option<&[u8]>, value: &[u8], number: usize) -> Result<(), Broken> {
        let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(topic, number)
            .partition(partition as i32)
            .payload(value)
            .timestamp(self.last.at_ms);
        if let Some(key) = key {
            record = record.key(key);
        }
        send(&self.producer, record, STEP).map_err(|error| Broken::Kafka(reason(&self.producer, error)))
    }

    /// The offsets that were asked for; an error when a record was not taken.
    fn offsets(&self) -> Result<BTreeMap<usize, u64>, Broken> {
        self.producer.context().offsets().map_err(|error| Broken::Kafka(reason(&self.producer, error)))
    }

    /// The cut after the last whole round, by the offsets that its marks were given.
    fn cut_of(&self, group: &Group) -> Result<Cut, Broken> {
        let offsets = self.offsets()?;
        if group.whole.is_none() {
            return Ok(self.last.cut.clone());
        }
        let mut cut = Cut::default();
        for partition in 0..self.shared.partitions() {
            let Some(at) = offsets.get(&(1 + partition as usize)) else {
                return Err(KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut).into());
            };
            cut.set_next(crossfade_event::Partition(partition), Offset(at + 1));
        }
        if !cut.covers(&self.last.cut) {
            // A topic that was made anew begins at zero again, and says nothing of it.
            return Err(Broken::Ours(LogError::Lost {
                what: format!(
                    "the topic {} took entries at {cut}, and had {} already: it was deleted and made anew, or lost its end",
                    self.shared.names.changes, self.last.cut
                ),
                remedy: "Start again from the source: `crossfade rollback --wipe`, then `crossfade run`".to_owned(),
            }));
        }
        Ok(cut)
    }

    fn last_with(&self, group: &Group, cut: Cut) -> LastRound {
        let round = group.whole.unwrap_or(self.last.round);
        LastRound { round, cut, position: self.builder.position(), ..self.last.clone() }
    }

    /// Brokers that answer may still take no records: people are told until they do.
    fn takes_nothing(&self, error: &KafkaError) {
        let topic = &self.shared.names.changes;
        let is_untold = matches!(code_of(error), Some(RDKafkaErrorCode::MessageTimedOut));
        let hint = "is the disk of a broker full, or are fewer copies in step than min.insync.replicas asks?";
        let why = if is_untold { format!("{error}: {hint}") } else { error.to_string() };
        if is_untold {
            tracing::warn!("Kafka takes nothing: writing to {topic}: {why}; reading the source waits until it does");
        }
        self.shared.waits(Waiter::Writer, format!("Kafka takes nothing: writing to {topic}: {why}"));
    }

    /// A new producer of the same id ends whatever the old one had begun; then the topic itself says whether the group is
    /// in. Waits for brokers that are away.
    fn recover(&mut self, group: &Group, error: &KafkaError) -> Result<Fate, LogError> {
        let began = Instant::now();
        let mut alarm: Option<Instant> = None;
        let mut pause = Duration::from_millis(50);
        tracing::debug!(%error, "a transaction to Kafka did not go through");
        loop {
            match self.reconnect(group) {
                Ok(fate) => {
                    if alarm.is_some() {
                        tracing::info!(after_s = began.elapsed().as_secs(), "Kafka answers again; the log goes on");
                    }
                    return Ok(fate);
                }
                Err(LogError::Server { doing, cause, passing: true }) => {
                    self.shared.waits(Waiter::Writer, format!("Kafka takes nothing: {doing}: {cause}"));
                    if alarm.is_none_or(|last| last.elapsed() > ALARM_EVERY) && began.elapsed() > Duration::from_secs(2)
                    {
                        alarm = Some(Instant::now());
                        tracing::warn!(
                            brokers = self.shared.clients.brokers(),
                            "Kafka takes nothing: {doing}: {cause}; reading the source waits until it does"
                        );
                    }
                }
                Err(error) => return Err(error),
            }
            if let Some(trouble) = self.shared.trouble() {
                return Err(trouble.error());
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    fn reconnect(&mut self, group: &Group) -> Result<Fate, LogError> {
        let shared = &self.shared;
        topics::same(&shared.clients, &shared.names, &shared.standing)?;
        self.still_ours()?;
        let (id, bytes_max) = (&shared.names.writer, shared.standing.message_bytes_max);
        let producer = shared.clients.transactional(id, bytes_max, Purpose::Writer)?;
        let rights = [Right::Transaction(id)];
        let failed = |error| needing(&rights, "beginning to write to Kafka", error);
        producer.init_transactions(PATIENCE).map_err(failed)?;
        self.ended.end_hanging(&producer, &shared.names, shared.partitions())?;
        self.producer = producer;
        let Some((first, last)) = group.rounds else { return Ok(Fate::Missing) };
        let ends = shared.last_round()?;
        let rounds = || ends.last.iter().map(|last| last.map_or(0, |last| last.round));
        match (rounds().min(), rounds().max()) {
            (Some(least), Some(_)) if least == last => Ok(Fate::Landed(self.landed(group, &ends)?)),
            (_, Some(most)) if most > last => Err(self.fenced("somebody else")),
            (_, Some(most)) if most >= first => Err(self.half()),
            _ => Ok(Fate::Missing),
        }
    }

    /// A transaction that ended one way here and another way there.
    fn half(&self) -> LogError {
        let Names { changes, meta, .. } = &self.shared.names;
        LogError::Lost {
            what: format!("the broker has committed a transaction in a part of {changes} and {meta} only"),
            remedy: "Start again from the source: `crossfade rollback --wipe`, then `crossfade run`".to_owned(),
        }
    }

    /// The cut of a group that turned out to be in. Its last round may be the head of something larger: then the end of
    /// the log is what was noted in the same transaction.
    fn landed(&self, group: &Group, ends: &Ends) -> Result<Cut, LogError> {
        if group.moves_the_tail() {
            let noted = meta::read(&lock(&self.shared.asking), &self.shared.names)?.tail;
            if noted.map(|tail| tail.round) != Some(group.whole.unwrap_or(self.last.round)) {
                return Err(self.half());
            }
        }
        match (group.whole, group.rounds) {
            (None, _) => Ok(self.last.cut.clone()),
            (Some(whole), Some((_, last))) if whole == last => {
                let next = |(last, old): (&Option<Last>, &Offset)| last.map_or(*old, |last| last.next);
                Ok(Cut(ends.last.iter().zip(&self.last.cut.0).map(next).collect()))
            }
            _ => {
                let meta = meta::read(&lock(&self.shared.asking), &self.shared.names)?;
                meta.tail.map(|tail| tail.cut).ok_or_else(|| LogError::Lost {
                    what: format!("the topic {} has lost its notes", self.shared.names.meta),
                    remedy: "Start again from the source: `crossfade rollback --wipe`, then `crossfade run`".to_owned(),
                })
            }
        }
    }

    /// Whoever opened the log last owns it: one that was stopped for long and wakes must not take it back.
    fn still_ours(&self) -> Result<(), LogError> {
        let meta = meta::read(&lock(&self.shared.asking), &self.shared.names)?;
        match meta.writer {
            Some(writer) if writer.id != self.owner.id && Some(writer.id) != self.before => {
                Err(self.fenced(&writer.who))
            }
            _ => Ok(()),
        }
    }

    fn fenced(&self, by: &str) -> LogError {
        LogError::Fenced { log: format!("the topic {}", self.shared.names.changes), by: by.to_owned() }
    }

    /// What a broker refuses for good, in words.
    fn refused(&self, group: &Group, error: KafkaError) -> LogError {
        let topic = &self.shared.names.changes;
        if code_of(&error) == Some(RDKafkaErrorCode::MessageSizeTooLarge) {
            let largest = group.records().map(|(_, _, value)| value.len()).max().unwrap_or_default();
            return LogError::Refused {
                what: format!(
                    "an event of {largest} bytes is larger than the topic {topic} takes ({} bytes)",
                    self.shared.standing.message_bytes_max
                ),
                remedy: format!(
                    "Raise it: kafka-configs --alter --topic {topic} --add-config max.message.bytes={}; then start again",
                    largest.next_power_of_two().saturating_mul(2)
                ),
            };
        }
        let Names { changes, meta, writer, .. } = &self.shared.names;
        let rights = [Right::Topic("Write", changes), Right::Topic("Write", meta), Right::Transaction(writer)];
        needing(&rights, format!("writing to {topic}"), error)
    }

    /// Heads that nobody can read any more need not be remembered.
    fn forget_dropped_heads(&mut self) {
        const MANY: usize = 1_000;
        if self.last.abandoned.len() > MANY {
            let surplus = self.last.abandoned.len() - MANY;
            self.last.abandoned.drain(..surplus);
        }
    }
}

enum Broken {
    Kafka(KafkaError),
    Ours(LogError),
}

impl From<KafkaError> for Broken {
    fn from(error: KafkaError) -> Self {
        Self::Kafka(error)
    }
}

impl From<LogError> for Broken {
    fn from(error: LogError) -> Self {
        Self::Ours(error)
    }
}

/// Tells everybody; the first hears the reason itself.
fn answer(replies: Vec<oneshot::Sender<Result<Cut, LogError>>>, written: Result<Cut, LogError>) {
    let again = match &written {
        Ok(cut) => Ok(cut.clone()),
        Err(error) => Err(super::shared::Trouble::of(error)),
    };
    let mut written = Some(written);
    for reply in replies {
        let said = written.take().unwrap_or_else(|| again.clone().map_err(|trouble| trouble.error()));
        // Nobody may be waiting: a dropped append lands all the same.
        let _ = reply.send(said);
    }
}
