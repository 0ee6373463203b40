//! Reads entries: merges the partitions round by round, so that source transactions come whole and in commit order.
//!
//! Each partition has a queue of its own, which librdkafka fills ahead, within its bounds; only what belongs to the round
//! being put together is taken out.

use super::{
    made::{Made, Sought},
    served::Served,
    shared::{End, Shared, Trouble, Waiter},
    tail::unreadable,
};
use crate::{
    client::{Listener, LogConsumer, PATIENCE, Purpose, assignment, code_of, is_passing, reading},
    codec::{HEAD, Head, What},
};
use bytes::{Bytes, BytesMut};
use crossfade_event::{Cut, Offset, Partition, Position, Sequence};
use crossfade_log::{
    Entries, Entry, Lane, LogError, LogReader,
    record::{Kind, wanted},
};
use rdkafka::{
    Message,
    consumer::{Consumer, base_consumer::PartitionQueue},
    error::RDKafkaErrorCode,
    message::Timestamp,
};
use std::{
    collections::HashMap,
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};
use tokio::sync::{Notify, watch};

/// How many abandoned rounds are passed over before the reader's caller has its turn.
const PASSED: usize = 64;

/// The callback of a queue is a wish, not a promise: look again after so long.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How long nothing may come of what is known to be there before people are told.
const TELL_AFTER: Duration = Duration::from_secs(2);

/// And before the consumer is made anew: whatever keeps it from its broker, a new one begins without it. Longer each time
/// that nothing has come again.
const RENEW_AFTER: Duration = Duration::from_secs(20);

/// The longest time between two consumers.
const RENEW_AFTER_MAX: Duration = Duration::from_secs(320);

/// Payloads are copied out of librdkafka into pieces of this size.
const PIECE: usize = 64 * 1024;

/// Reads the log on Kafka.
pub struct KafkaReader {
    log: Arc<Shared>,
    _alive: Arc<dyn Send + Sync>,
    ends: watch::Receiver<End>,
    wanted: u16,
    /// The first offsets not yet given.
    next: Cut,
    /// Whether the last round given left nothing open.
    whole: bool,
    fetch: Option<Fetch>,
    stall: Stall,
    /// Of rows, those of this partition alone: a worker's. What belongs to no row comes from the first one.
    only: Option<Partition>,
    /// The last round that was given, and the timestamp of its records.
    last: (u64, i64),
    /// Where workers transform: what they have made.
    beside: Option<Beside>,
}

/// What workers have made of the round given last.
#[derive(Default)]
struct Beside {
    made: HashMap<Sequence, Bytes>,
    /// Since when something is not made that is to be given.
    waits_since: Option<Instant>,
    told: bool,
    /// When the consumer was made anew because nothing came.
    renewed: Option<Instant>,
}

/// Since when nothing has come.
#[derive(Debug)]
struct Stall {
    since: Option<Instant>,
    /// How many records had come by then.
    count: u64,
    told: bool,
    renewed: Instant,
    renew_after: Duration,
}

impl Default for Stall {
    fn default() -> Self {
        Self { since: None, count: 0, told: false, renewed: Instant::now(), renew_after: RENEW_AFTER }
    }
}

impl std::fmt::Debug for KafkaReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaReader").field("log", &self.log).field("next", &self.next).finish_non_exhaustive()
    }
}

/// A consumer under way.
struct Fetch {
    consumer: Arc<Served>,
    parts: Vec<Part>,
    woken: Arc<Woken>,
    piece: BytesMut,
    /// Begun with the first round that has rows.
    made: Option<Made>,
}

struct Part {
    queue: PartitionQueue<Listener>,
    taken: Taken,
}

/// What of the next round has come.
#[derive(Default)]
struct Taken {
    held: Vec<Held>,
    mark: Option<Mark>,
    /// How many of its records have come, and whether all of them were asked for.
    count: u32,
    from_its_beginning: bool,
    /// Rows are taken from another partition alone.
    rows_of: Option<Partition>,
}

struct Held {
    offset: Offset,
    head: Head,
    payload: Bytes,
}

#[derive(Clone, Copy)]
struct Mark {
    offset: Offset,
    round: u64,
    whole: bool,
    at_ms: i64,
}

/// Told when a queue is no longer empty.
#[derive(Default)]
pub(super) struct Woken {
    notify: Notify,
    flag: Mutex<bool>,
    changed: Condvar,
}

impl Woken {
    pub(super) fn wake(&self) {
        *super::shared::lock(&self.flag) = true;
        self.changed.notify_all();
        self.notify.notify_one();
    }

    fn wait(&self) {
        let mut flag = super::shared::lock(&self.flag);
        if !*flag {
            flag = match self.changed.wait_timeout(flag, LOOK_AGAIN) {
                Ok((flag, _)) => flag,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        *flag = false;
    }
}

impl Drop for KafkaReader {
    fn drop(&mut self) {
        if self.stall.told {
            self.log.goes_on(Waiter::Reader);
        }
        if self.beside.as_ref().is_some_and(|beside| beside.told) {
            self.log.goes_on(Waiter::Made);
        }
    }
}

/// What one look gives.
enum Look {
    Found(Entries),
    AtTheEnd,
    NotYet,
    /// It is there, and workers have not made it yet.
    NotMade,
}

/// How far the round being put together has come.
enum Filled {
    Complete,
    NotYet,
    /// A record came another way than through its partition's own queue: the consumer must be made anew.
    Astray,
}

impl KafkaReader {
    pub(super) fn new(log: Arc<Shared>, alive: Arc<dyn Send + Sync>, from: &Cut, lane: Lane) -> Result<Self, LogError> {
        log.check(from)?;
        Ok(Self::from(log, alive, from, lane))
    }

    /// One that brings what workers have made.
    pub(super) fn with_made(mut self) -> Self {
        self.beside = Some(Beside::default());
        self
    }

    /// A worker's: of rows those of one partition, and what belongs to no row. The other partitions' places mean nothing.
    pub(super) fn of_worker(
        log: Arc<Shared>,
        alive: Arc<dyn Send + Sync>,
        from: &Cut,
        only: Partition,
        lane: Lane,
    ) -> Result<Self, LogError> {
        let mut reader = Self::from(log, alive, from, lane);
        reader.only = Some(only);
        let (start, end) = (reader.log.start(), reader.log.end().cut);
        if !reader.next.covers(&reader.seen(&start)) {
            return Err(LogError::Trimmed { asked: from.clone(), start });
        }
        if !reader.seen(&end).covers(&reader.next) {
            return Err(LogError::Beyond { asked: from.clone(), end });
        }
        Ok(reader)
    }

    fn from(log: Arc<Shared>, alive: Arc<dyn Send + Sync>, from: &Cut, lane: Lane) -> Self {
        let ends = log.end.subscribe();
        let mut next = Cut::start(log.partitions());
        for (partition, at) in (0u32..).zip(&from.0) {
            next.set_next(Partition(partition), *at);
        }
        Self {
            log,
            _alive: alive,
            ends,
            wanted: wanted(lane),
            next,
            whole: true,
            fetch: None,
            stall: Stall::default(),
            only: None,
            last: (0, 0),
            beside: None,
        }
    }

    /// A place, with that of the reader itself in the partitions that it does not read.
    fn seen(&self, cut: &Cut) -> Cut {
        let mut seen = cut.clone();
        if let Some(only) = self.only {
            let others = (0..self.log.partitions()).map(Partition).filter(|other| other.0 != 0 && *other != only);
            others.for_each(|other| seen.set_next(other, self.next.next(other)));
        }
        seen
    }

    /// The last round that was given, and the timestamp of its records.
    pub(super) fn last(&self) -> (u64, i64) {
        self.last
    }

    /// Looks without waiting.
    fn look(&mut self) -> Result<Look, LogError> {
        let mut end = self.ends.borrow_and_update().clone();
        end.cut = self.seen(&end.cut);
        // What cannot be written any more can still be read; what cannot be followed does not come.
        let is_the_end = |trouble: &Trouble| matches!(trouble, Trouble::Lost { .. }) || !self.log.writes;
        if let Some(trouble) = self.log.trouble().filter(is_the_end) {
            return Err(trouble.error());
        }
        if self.next == end.cut {
            self.idle();
            return Ok(Look::AtTheEnd);
        }
        let start = self.log.start();
        if !self.next.covers(&self.seen(&start)) {
            return Err(self.log.overtaken(&self.next));
        }
        let mut fetch = match self.fetch.take() {
            Some(fetch) => fetch,
            None => Fetch::begin(&self.log, &self.next, self.only)?,
        };
        let looked = self.round(&mut fetch, &end);
        self.fetch = Some(fetch);
        match &looked {
            Ok(Look::NotYet) => self.stalls(),
            _ => self.moves(),
        }
        self.is_waiting(matches!(looked, Ok(Look::NotMade)));
        looked
    }

    /// There is nothing to be read: what comes beside is heard all the same.
    fn idle(&mut self) {
        if self.fetch.as_ref().is_some_and(|fetch| fetch.consumer.serve().is_astray()) {
            self.renew();
        }
    }

    /// People are told when workers are waited for.
    fn is_waiting(&mut self, waits: bool) {
        let Some(beside) = &mut self.beside else { return };
        if !waits {
            (beside.waits_since, beside.renewed) = (None, None);
            if std::mem::take(&mut beside.told) {
                self.log.goes_on(Waiter::Made);
            }
            return;
        }
        if beside.waits_since.get_or_insert_with(Instant::now).elapsed() > TELL_AFTER && !beside.told {
            beside.told = true;
            let waits = "what comes next has not been transformed: is a `run --role transform` at work?";
            self.log.waits(Waiter::Made, waits.to_owned());
        }
        // Perhaps it is there, and does not come: a new consumer begins without what keeps this one from its broker.
        let since = beside.renewed.or(beside.waits_since);
        if since.is_some_and(|since| since.elapsed() > RENEW_AFTER) {
            beside.renewed = Some(Instant::now());
            if let Some(old) = self.fetch.as_mut().and_then(|fetch| fetch.made.take()) {
                std::thread::spawn(move || drop(old));
            }
        }
    }

    /// Something was found, or nothing is to be found.
    fn moves(&mut self) {
        if self.stall.since.is_some() {
            if self.stall.told {
                self.log.goes_on(Waiter::Reader);
            }
            self.stall = Stall::default();
        }
    }

    /// What is known to be there has not come yet: people are told, and in the end the consumer is made anew.
    fn stalls(&mut self) {
        let count = self.progress();
        let since = *self.stall.since.get_or_insert_with(Instant::now);
        if count != self.stall.count {
            let told = self.stall.told;
            self.stall = Stall { since: Some(Instant::now()), count, told, ..Stall::default() };
            return;
        }
        if since.elapsed() > TELL_AFTER {
            self.stall.told = true;
            self.log.waits(Waiter::Reader, format!("{}: {}", self.doing(), self.complaint()));
        }
        if since.elapsed() > self.stall.renew_after && self.stall.renewed.elapsed() > self.stall.renew_after {
            tracing::debug!(topic = %self.log.names.changes, "nothing comes; another consumer is made");
            self.renew();
            (self.stall.renewed, self.stall.count) = (Instant::now(), 0);
            self.stall.renew_after = (self.stall.renew_after * 2).min(RENEW_AFTER_MAX);
        }
    }

    /// Begins again behind the last round that was given. Closing a consumer may take a while.
    fn renew(&mut self) {
        if let Some(fetch) = self.fetch.take() {
            std::thread::spawn(move || drop(fetch));
        }
    }

    /// Puts the next round together.
    fn round(&mut self, fetch: &mut Fetch, end: &End) -> Result<Look, LogError> {
        for _ in 0..PASSED {
            match fetch.fill(&self.log, &self.next, &end.cut, self.wanted)? {
                Filled::Complete => {}
                Filled::NotYet => return Ok(Look::NotYet),
                Filled::Astray => {
                    let anew = Fetch::begin(&self.log, &self.next, self.only)?;
                    let old = std::mem::replace(fetch, anew);
                    std::thread::spawn(move || drop(old));
                    return Ok(Look::NotYet);
                }
            }
            let behind = |(partition, _): &(u32, &Part)| {
                self.next.next(Partition(*partition)) < end.cut.next(Partition(*partition))
            };
            let marks = (0u32..).zip(&fetch.parts).filter(behind).filter_map(|(_, part)| part.taken.mark);
            let Some(round) = marks.clone().map(|mark| mark.round).min() else { return Ok(Look::AtTheEnd) };
            let whole = marks.clone().filter(|mark| mark.round == round).all(|mark| mark.whole);
            let at_ms = marks.filter(|mark| mark.round == round).map(|mark| mark.at_ms).next().unwrap_or(0);
            let is_abandoned = self.log.is_abandoned(round);
            let sought = match &self.beside {
                Some(_) if !is_abandoned => fetch.sought(round),
                _ => Vec::new(),
            };
            if !sought.is_empty() && !fetch.has_made(&self.log, &sought, at_ms, self.only)? {
                return Ok(Look::NotMade);
            }
            if let Some(beside) = &mut self.beside {
                beside.made = fetch.made.as_mut().map_or_else(HashMap::new, |made| made.take(&sought));
            }
            let mut held: Vec<(Partition, Held)> = Vec::new();
            for (partition, part) in (0u32..).zip(&mut fetch.parts) {
                let partition = Partition(partition);
                if let Some(mark) = part.taken.mark.filter(|mark| mark.round == round) {
                    let rows_of = part.taken.rows_of;
                    let taken = std::mem::take(&mut part.taken);
                    part.taken.rows_of = rows_of;
                    held.extend(taken.held.into_iter().map(|held| (partition, held)));
                    self.next.set_next(partition, Offset(mark.offset.0 + 1));
                    part.taken.from_its_beginning = true;
                }
            }
            if is_abandoned {
                continue;
            }
            self.whole = whole;
            self.last = (round, at_ms);
            held.sort_by_key(|(_, held)| held.head.place);
            let entries = held.into_iter().map(|(partition, held)| self.entry(partition, held));
            let entries = entries.collect::<Result<Vec<_>, _>>()?;
            return Ok(Look::Found(Entries { entries, next: self.next.clone(), whole }));
        }
        Ok(Look::Found(Entries { entries: Vec::new(), next: self.next.clone(), whole: self.whole }))
    }

    fn entry(&self, partition: Partition, held: Held) -> Result<Entry, LogError> {
        let wrong = |wrong| unreadable(&self.log.names, partition.0, held.offset.0, wrong);
        let event = held.head.event(&held.payload).map_err(wrong)?;
        let (Some(event), Some(position)) = (event, position_of(&held.head)) else {
            return Err(wrong(crate::codec::Unreadable::Foreign));
        };
        Ok(Entry { partition, offset: held.offset, sequence: held.head.sequence(), position, event })
    }

    /// [`KafkaReader::look`], waiting for what is known to be there; an error when nothing comes for long.
    fn collect(&mut self) -> Result<Option<Entries>, LogError> {
        let mut began = Instant::now();
        loop {
            let before = self.progress();
            match self.look()? {
                Look::Found(entries) => return Ok(Some(entries)),
                Look::AtTheEnd | Look::NotMade => return Ok(None),
                Look::NotYet => {}
            }
            if self.progress() != before {
                began = Instant::now();
            }
            if began.elapsed() > PATIENCE {
                return Err(self.unanswered());
            }
            if let Some(fetch) = &self.fetch {
                fetch.woken.wait();
            }
        }
    }

    fn progress(&self) -> u64 {
        self.fetch.as_ref().map_or(0, |fetch| fetch.parts.iter().map(|part| u64::from(part.taken.count)).sum())
    }

    fn unanswered(&self) -> LogError {
        let (doing, cause) = (self.doing(), self.complaint());
        LogError::Server { doing, cause: cause.into(), passing: true }
    }

    fn doing(&self) -> String {
        format!("reading {}", self.log.names.changes)
    }

    fn complaint(&self) -> String {
        let last = self.fetch.as_ref().and_then(|fetch| fetch.consumer.context().last());
        last.unwrap_or_else(|| "no broker answers".to_owned())
    }
}

/// Whether it is made by workers.
fn is_of_rows(what: What) -> bool {
    matches!(what, What::Event { kind: Kind::Changed | Kind::Rows, .. })
}

fn position_of(head: &Head) -> Option<Position> {
    match head.what {
        What::Event { position, .. } => Some(position),
        What::Mark { .. } | What::Seam => None,
    }
}

/// A partition's own queue, whose first record wakes who waits.
pub(super) fn queue_of(
    consumer: &Arc<LogConsumer>,
    topic: &str,
    partition: u32,
    woken: &Arc<Woken>,
) -> Result<PartitionQueue<Listener>, LogError> {
    let queue = consumer.split_partition_queue(topic, partition as i32);
    let mut queue = queue.ok_or_else(|| LogError::Contract(format!("{topic} has no partition {partition}")))?;
    let bell = woken.clone();
    queue.set_nonempty_callback(move || bell.wake());
    Ok(queue)
}

impl Fetch {
    fn begin(log: &Shared, from: &Cut, only: Option<Partition>) -> Result<Self, LogError> {
        let topic = &log.names.changes;
        let failed = |error| reading(topic, error);
        let consumer = log.clients.consumer(&log.names.readers, false, Some(Purpose::Reader))?;
        let consumer = log.served(consumer);
        let woken = Arc::new(Woken::default());
        let mut parts = Vec::new();
        for partition in 0..log.partitions() {
            let queue = queue_of(&consumer, topic, partition, &woken)?;
            parts.push(Part { queue, taken: Taken::default() });
        }
        // Only now: a record that came before its partition had a queue of its own would be given to nobody.
        let is_read = |partition: u32| partition == 0 || only.is_none_or(|only| only.0 == partition);
        let places = (0u32..).zip(&from.0).filter(|(partition, _)| is_read(*partition));
        let places = places.map(|(partition, at)| (partition as i32, at.0));
        consumer.assign(&assignment(topic, places).map_err(failed)?).map_err(failed)?;
        if let Some(only) = only.filter(|only| only.0 != 0)
            && let Some(first) = parts.first_mut()
        {
            first.taken.rows_of = Some(only);
        }
        Ok(Self { consumer, parts, woken, piece: BytesMut::new(), made: None })
    }

    /// The changes and rows of a round that has come, in each partition in order.
    fn sought(&self, round: u64) -> Vec<Sought> {
        let mut sought = Vec::new();
        for (partition, part) in (0u32..).zip(&self.parts) {
            if part.taken.mark.is_some_and(|mark| mark.round == round) {
                let rows = part.taken.held.iter().filter(|held| is_of_rows(held.head.what));
                sought.extend(rows.map(|held| Sought { partition: Partition(partition), head: held.head }));
            }
        }
        sought
    }

    /// Whether workers have made all of it, or never will.
    fn has_made(
        &mut self,
        log: &Shared,
        sought: &[Sought],
        at_ms: i64,
        only: Option<Partition>,
    ) -> Result<bool, LogError> {
        let made = match &mut self.made {
            Some(made) => made,
            none => none.insert(Made::begin(log, at_ms, &self.woken, only)?),
        };
        match made.has(log, sought)? {
            Some(has) => Ok(has),
            None => {
                let old = self.made.take();
                std::thread::spawn(move || drop(old));
                Ok(false)
            }
        }
    }

    /// Takes records out of the queues until every partition that is not at the end has its next mark.
    fn fill(&mut self, log: &Shared, next: &Cut, end: &Cut, wanted: u16) -> Result<Filled, LogError> {
        let mut complete = true;
        let mut heard = self.consumer.serve();
        if heard.is_astray() {
            return Ok(Filled::Astray);
        }
        if let Some(error) = heard.error() {
            return Err(fetch_error(log, next, error));
        }
        for (partition, part) in (0u32..).zip(&mut self.parts) {
            let id = Partition(partition);
            while part.taken.mark.is_none() && next.next(id) < end.next(id) {
                match part.queue.poll(Duration::ZERO) {
                    None => {
                        complete = false;
                        break;
                    }
                    Some(Err(error)) if is_passing(&error) => complete = false,
                    Some(Err(error)) => return Err(fetch_error(log, next, error)),
                    Some(Ok(message)) => {
                        let offset = Offset(message.offset().unsigned_abs());
                        let value = message.payload().unwrap_or_default();
                        let wrong = |wrong| unreadable(&log.names, partition, offset.0, wrong);
                        let head = Head::parse(value).map_err(wrong)?;
                        let at_ms = match message.timestamp() {
                            Timestamp::CreateTime(ms) | Timestamp::LogAppendTime(ms) => ms,
                            Timestamp::NotAvailable => 0,
                        };
                        part.taken.take(log, id, offset, at_ms, head, value, wanted, &mut self.piece)?;
                    }
                }
            }
        }
        Ok(if complete { Filled::Complete } else { Filled::NotYet })
    }
}

impl Taken {
    #[expect(clippy::too_many_arguments, reason = "one record and where it goes; a struct would only rename them")]
    fn take(
        &mut self,
        log: &Shared,
        partition: Partition,
        offset: Offset,
        at_ms: i64,
        head: Head,
        value: &[u8],
        wanted: u16,
        piece: &mut BytesMut,
    ) -> Result<(), LogError> {
        match head.what {
            What::Mark { whole, .. } => {
                // A mark knows how many records stand before it: none was compacted away or left out.
                if self.from_its_beginning && head.place != self.count {
                    return Err(LogError::Lost {
                        what: format!(
                            "partition {} of the topic {} has {} records of round {}, and had {}",
                            partition.0, log.names.changes, self.count, head.round, head.place
                        ),
                        remedy: "Put the right topic back, or start again from the source: `crossfade rollback --wipe`, then `crossfade run`".to_owned(),
                    });
                }
                self.mark = Some(Mark { offset, round: head.round, whole, at_ms });
            }
            // It belongs to the round before, whose mark was counted.
            What::Seam => {}
            What::Event { kind, .. } => {
                self.count += 1;
                let is_ours = self.rows_of.is_none() || !is_of_rows(head.what);
                if is_ours && kind.lane_flag() & wanted != 0 {
                    let payload = value.get(HEAD..).unwrap_or_default();
                    if piece.capacity() - piece.len() < payload.len() {
                        piece.reserve(payload.len().max(PIECE));
                    }
                    piece.extend_from_slice(payload);
                    self.held.push(Held { offset, head, payload: piece.split().freeze() });
                }
            }
        }
        Ok(())
    }
}

/// An error that trying again does not mend.
fn fetch_error(log: &Shared, next: &Cut, error: rdkafka::error::KafkaError) -> LogError {
    match code_of(&error) {
        Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
            match super::topics::same(&log.clients, &log.names, &log.standing) {
                Err(lost @ LogError::Lost { .. }) => {
                    log.stop_for(&lost);
                    lost
                }
                _ => log.overtaken(next),
            }
        }
        _ => reading(&log.names.changes, error),
    }
}

impl LogReader for KafkaReader {
    async fn next(&mut self) -> Result<Entries, LogError> {
        loop {
            tokio::task::consume_budget().await;
            match self.look()? {
                Look::Found(entries) => return Ok(entries),
                Look::AtTheEnd => {
                    if self.ends.changed().await.is_err() {
                        return Err(LogError::Poisoned { why: "the log was closed".to_owned() });
                    }
                }
                Look::NotYet | Look::NotMade => {
                    let Some(fetch) = &self.fetch else {
                        tokio::task::yield_now().await;
                        continue;
                    };
                    // A broker that is away is waited for: librdkafka keeps trying.
                    let _ = tokio::time::timeout(LOOK_AGAIN, fetch.woken.notify.notified()).await;
                }
            }
        }
    }

    /// Waits for the broker where the log is known to have more, half a minute at most.
    fn try_next(&mut self) -> Result<Option<Entries>, LogError> {
        let is_multi = tokio::runtime::Handle::try_current()
            .is_ok_and(|handle| handle.runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread);
        if is_multi { tokio::task::block_in_place(|| self.collect()) } else { self.collect() }
    }

    fn made(&mut self, sequence: Sequence) -> Option<Bytes> {
        self.beside.as_mut()?.made.remove(&sequence)
    }

    fn waits(&self) -> bool {
        self.beside.as_ref().is_some_and(|beside| beside.waits_since.is_some())
    }
}
