//! The thread that reads the topics: round by round, and in each, what was there when it began.
//!
//! A round asks where every partition ends, then reads up to there. Between two rounds the position is the sum of those
//! ends; within one it keeps the sum of the round before, and only its ordinal rises. So whoever knows the sum of the ends
//! at some moment knows that a sink whose position has reached it has all that was there at that moment.

use super::{
    envelope::{self, Change, Marked, Op},
    note::{Note, kept, lost},
    out::{Beside, Ended, Out},
    record::{Moved, Record, What, decode},
    shape::{Misfit, Shape},
    value::Placeholder,
};
use crate::client::{Listener, LogConsumer, Right, bounds, is_passing_for_readers, needing};
use crossfade_connector::Failure;
use crossfade_event::{Change as RowChange, Event, Identity, Op as RowOp, TableId, Transaction, Truncate};
use rdkafka::{Message, consumer::base_consumer::PartitionQueue, error::KafkaError};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// How long one wait for a record lasts before it is looked whether anybody still wants one.
pub(super) const LOOK: Duration = Duration::from_millis(100);

/// How long an idle source waits before it asks again where the topics end.
const IDLE: Duration = Duration::from_millis(200);

/// After so many waits in vain it is asked whether what is waited for still exists.
const CHECK_AFTER: u32 = 30;

/// After so many waits in vain behind the word that a partition is at its end, what is left of it is Kafka's own marks.
const QUIET: u32 = 3;

/// Figures that others look at.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) read: AtomicU64,
    pub(crate) end: AtomicU64,
}

/// One partition.
pub(super) struct Part {
    pub(super) table: Option<usize>,
    pub(super) topic: Arc<str>,
    pub(super) partition: u32,
    pub(super) queue: PartitionQueue<Listener>,
    /// The first offset whose record has not been handed over.
    pub(super) next: u64,
    /// The first offset that has not been read.
    pub(super) read: u64,
    /// Where the round ends.
    pub(super) high: u64,
    pub(super) head: Option<Record>,
    /// A deleted row whose new key is told by one of the next records.
    pub(super) moving: Option<Box<Moved>>,
    /// The last transaction of which a record was taken, and its place there.
    pub(super) last: (u64, u64),
    /// Kafka says that nothing more is there.
    pub(super) ended: bool,
    /// Nothing more has come since.
    pub(super) at_end: bool,
}

/// A table that is read.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) id: TableId,
    pub(super) name: String,
    pub(super) shape: Shape,
    /// All its records are in one partition.
    pub(super) in_order: bool,
}

/// Everything that the thread has.
pub(super) struct Follower {
    pub(super) consumer: Arc<LogConsumer>,
    pub(super) parts: Vec<Part>,
    pub(super) tables: Vec<Table>,
    /// The partition of transactions' marks.
    pub(super) marks: Option<usize>,
    pub(super) reader: envelope::Reader,
    pub(super) placeholder: Placeholder,
    pub(super) note: Note,
    pub(super) done: super::transactions::Done,
    pub(super) out: Out,
    pub(super) figures: Arc<Figures>,
}

pub(super) type Step<T = ()> = Result<T, Ended>;

impl Follower {
    /// Reads until nobody listens any more, or something fails.
    pub(super) fn run(mut self) {
        if let Err(Ended::Failed(failure)) = self.rounds() {
            self.out.fail(failure);
        }
    }

    fn rounds(&mut self) -> Step {
        loop {
            self.look()?;
            if (0..self.parts.len()).all(|at| self.is_idle(at)) {
                self.out.wanted()?;
                // What a transaction took beyond the round before has been read already.
                self.resolve();
                self.hand_over()?;
                self.serve(IDLE)?;
            } else {
                self.round()?;
            }
        }
    }

    /// Where everything ends now, and whether it is still there.
    fn look(&mut self) -> Step {
        let mut end = 0;
        // The marks last: see `DebeziumInspect::barrier`.
        let (marks, tables): (Vec<_>, Vec<_>) = self.parts.iter_mut().partition(|part| part.table.is_none());
        for part in tables.into_iter().chain(marks) {
            let high = still_kept(&self.consumer, part)?;
            if high > part.high {
                part.at_end = false;
            }
            part.high = high;
            end += high;
        }
        self.figures.end.store(end, Ordering::Relaxed);
        Ok(())
    }

    fn round(&mut self) -> Step {
        for at in 0..self.parts.len() {
            if Some(at) != self.marks {
                self.table_part(at)?;
            }
        }
        if let Some(at) = self.marks {
            while self.peek_within(at)? {
                let what = self.take(at).map(|record| record.what);
                if let Some(What::Mark(Marked::Ended(ended))) = what {
                    self.transaction(&ended)?;
                }
                if self.out.is_full() {
                    self.hand_over()?;
                }
            }
        }
        self.resolve();
        self.hand_over()
    }

    /// Everything up to where the round ends has been read, but for transactions whose end is not there yet.
    fn resolve(&mut self) {
        if self.parts.iter().all(|part| part.moving.is_none()) {
            self.out.resolve(self.parts.iter().map(|part| part.high).sum());
        }
    }

    /// Nothing to do in a partition until more comes, in it or in the topic of transactions.
    fn is_idle(&self, at: usize) -> bool {
        let Some(part) = self.parts.get(at) else { return true };
        match &part.head {
            Some(head) => head.offset >= part.high || self.waits_for(at).is_some_and(|xid| !self.done.contains(xid)),
            None => part.read >= part.high || part.at_end,
        }
    }

    /// Reads a partition to where the round ends, or to a change that waits for its transaction's end.
    fn table_part(&mut self, at: usize) -> Step {
        while self.peek_within(at)? {
            match self.waits_for(at) {
                Some(xid) if self.done.contains(xid) => {
                    // The connector has sent it again.
                    self.take(at);
                    continue;
                }
                Some(_) => return Ok(()),
                None => {}
            }
            self.next_alone(at)?;
            if self.out.is_full() {
                self.hand_over()?;
            }
        }
        Ok(())
    }

    /// Hands over the next record of a partition, as a transaction of its own.
    fn next_alone(&mut self, at: usize) -> Step {
        let Some(part) = self.parts.get_mut(at) else { return Ok(()) };
        let in_order = part.table.and_then(|table| self.tables.get(table)).is_some_and(|table| table.in_order);
        let Some(record) = part.head.take() else { return Ok(()) };
        let after = record.offset + 1;
        match (record.what, part.moving.take()) {
            (What::Mark(_) | What::Tombstone, Some(moving)) => {
                part.moving = Some(moving);
                return Ok(());
            }
            (What::Mark(_) | What::Tombstone, None) => {}
            (What::Change(moved), None) if moved.goes && in_order => {
                // Until it is known where the row goes, nothing of it has been handed over.
                part.moving = Some(moved);
                return Ok(());
            }
            (What::Change(moved), Some(gone)) if moved.comes => self.alone(at, &[&gone, &moved])?,
            (What::Change(moved), gone) => {
                if let Some(gone) = gone {
                    self.alone(at, &[&gone])?;
                }
                self.alone(at, &[&moved])?;
            }
        }
        if let Some(part) = self.parts.get_mut(at) {
            part.next = after;
        }
        Ok(())
    }

    /// A transaction of these changes.
    fn alone(&mut self, at: usize, changes: &[&Moved]) -> Step {
        let Some(last) = changes.last() else { return Ok(()) };
        let origin = &last.change.origin;
        let transaction = Transaction { xid: origin.xid.unwrap_or_default(), commit_time_us: origin.time_us() };
        let began = self.out.len();
        for (index, event) in self.events(at, changes)?.into_iter().enumerate() {
            let is_schema = matches!(event, Event::SchemaSeen(_));
            if index == 0 && !is_schema {
                self.out.push(Event::Began(transaction));
            }
            self.out.push(event);
            if index == 0 && is_schema {
                self.out.push(Event::Began(transaction));
            }
        }
        if self.out.len() > began {
            self.out.push(Event::Committed);
        }
        Ok(())
    }

    /// What becomes of changes that belong together: one, or a row that goes and comes back under another key.
    pub(super) fn events(&mut self, at: usize, changes: &[&Moved]) -> Step<Vec<Event>> {
        let Some(part) = self.parts.get(at) else { return Ok(Vec::new()) };
        let (topic, partition) = (part.topic.clone(), part.partition);
        let Some(table) = part.table else { return Ok(Vec::new()) };
        let [gone, moved] = match changes {
            [one] => [None, Some(*one)],
            [gone, moved] => [Some(*gone), Some(*moved)],
            _ => [None, None],
        };
        let Some(moved) = moved else { return Ok(Vec::new()) };
        self.check_origin(&moved.change, &topic)?;
        let Some(table) = self.tables.get_mut(table) else { return Ok(Vec::new()) };
        let misfit = |misfit| misfits(&misfit, &topic, partition, moved.offset);
        named(&moved.change, table, &topic, partition, moved.offset)?;
        let mut events = Vec::new();
        let (wires, evolved) = table.shape.fit(&moved.change).map_err(misfit)?;
        if let Some(schema) = evolved {
            events.push(Event::SchemaSeen(schema));
        }
        let shape = &table.shape;
        let keyed = shape.schema.identity == Identity::Key;
        let whole = |image: Option<&envelope::Image>| match image {
            Some(image) => shape.row(&wires, image, &self.placeholder).map_err(misfit),
            None => Err(misfit(Misfit::Other("the record has no image of the row"))),
        };
        let key_of = |moved: &Moved| match &moved.key {
            Some(key) => shape.key_row(&wires, &key.cells, &self.placeholder).map_err(misfit),
            None => Err(misfit(Misfit::Other("the record has no key, and its table has one"))),
        };
        let (before, after) = (moved.change.before.as_ref(), moved.change.after.as_ref());
        let (op, old, new) = match (moved.change.op, gone) {
            (Op::Message, _) => return Ok(events),
            (Op::Truncate, _) => {
                events.push(Event::Truncated(Truncate { tables: vec![table.id], restart_identity: false }));
                return Ok(events);
            }
            (_, Some(gone)) => (RowOp::Update, Some(key_of(gone)?), Some(whole(after)?)),
            (Op::Create | Op::Read, None) => (RowOp::Insert, None, Some(whole(after)?)),
            (Op::Update, None) if keyed => (RowOp::Update, None, Some(whole(after)?)),
            (Op::Update, None) => (RowOp::Update, Some(whole(before)?), Some(whole(after)?)),
            (Op::Delete, None) if keyed => (RowOp::Delete, Some(key_of(moved)?), None),
            (Op::Delete, None) => (RowOp::Delete, Some(whole(before)?), None),
        };
        let new = match (new, &old, keyed) {
            // Without a key the whole old row is there, and says what was left alone.
            (Some(new), Some(old), false) => Some(filled(&new, old)),
            (new, ..) => new,
        };
        let is_unknown = |row: &crossfade_event::Row| row.cells().any(|cell| cell == crossfade_event::Cell::Unchanged);
        if op != RowOp::Update && new.as_ref().is_some_and(is_unknown) {
            return Err(misfit(Misfit::Other(
                "a value was left alone by a change of the row's key, and the topic does not say of which row: its partitions have no order among them (use one partition, or transaction metadata)",
            ))
            .into());
        }
        events.push(Event::Changed(RowChange { table: table.id, schema: shape.schema.version, op, old, new }));
        Ok(events)
    }

    /// One database, and one snapshot of it.
    fn check_origin(&mut self, change: &Change, topic: &str) -> Step {
        let origin = &change.origin;
        match (&self.note.database, &origin.db) {
            (None, Some(db)) => self.note.database = Some(db.clone()),
            (Some(known), Some(db)) if known != db => {
                return Err(lost(format!(
                    "the topic {topic} has records of the database {db}, and had those of {known}"
                ))
                .into());
            }
            _ => {}
        }
        if change.op == Op::Read && !origin.is_incremental() {
            match (self.note.snapshot, origin.lsn) {
                (None, lsn) => self.note.snapshot = lsn,
                (Some(known), Some(lsn)) if known != lsn => {
                    return Err(lost(format!(
                        "Debezium has taken another snapshot (at {lsn}, the one before at {known}): what changed between the two is not in the topic {topic}"
                    ))
                    .into());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Hands over what is ready.
    pub(super) fn hand_over(&mut self) -> Step {
        let mut read = 0;
        for part in &self.parts {
            read += part.next;
            let place = self.note.topics.entry(part.topic.to_string()).or_default();
            let index = part.partition as usize;
            if place.next.len() <= index {
                place.next.resize(index + 1, 0);
            }
            if let Some(next) = place.next.get_mut(index) {
                *next = part.next;
            }
        }
        self.figures.read.store(read, Ordering::Relaxed);
        self.out.whole(&self.note)
    }

    /// Whether the next record is there and within the round; waits for it.
    pub(super) fn peek_within(&mut self, at: usize) -> Step<bool> {
        let mut waited = 0;
        loop {
            let Some(part) = self.parts.get_mut(at) else { return Ok(false) };
            if let Some(head) = &part.head {
                return Ok(head.offset < part.high);
            }
            if part.read >= part.high || part.at_end {
                return Ok(false);
            }
            if self.poll(at, LOOK)? {
                continue;
            }
            waited += 1;
            if let Some(part) = self.parts.get_mut(at) {
                part.at_end = part.ended && waited >= QUIET;
            }
            self.still_there(at, waited)?;
        }
    }

    /// Looks from time to time whether what is waited for can still come.
    pub(super) fn still_there(&mut self, at: usize, waited: u32) -> Step {
        self.out.wanted()?;
        if waited.is_multiple_of(CHECK_AFTER)
            && let Some(part) = self.parts.get(at)
        {
            still_kept(&self.consumer, part)?;
        }
        Ok(())
    }

    /// Takes the next record, which has been looked at, as handed over.
    pub(super) fn take(&mut self, at: usize) -> Option<Record> {
        let part = self.parts.get_mut(at)?;
        let record = part.head.take()?;
        part.next = record.offset + 1;
        Some(record)
    }

    /// The transaction of the next change, where its end is waited for.
    pub(super) fn waits_for(&self, at: usize) -> Option<u64> {
        self.marks?;
        match self.parts.get(at)?.head.as_ref().map(|head| &head.what)? {
            What::Change(moved) => envelope::xid(&moved.change.block.as_ref()?.id),
            What::Tombstone | What::Mark(_) => None,
        }
    }

    /// Gets one record of a partition, if one comes in time.
    pub(super) fn poll(&mut self, at: usize, limit: Duration) -> Step<bool> {
        self.serve(Duration::ZERO)?;
        let Some(part) = self.parts.get_mut(at) else { return Ok(false) };
        match part.queue.poll(limit) {
            None => Ok(false),
            Some(Err(KafkaError::PartitionEOF(_))) => {
                part.ended = true;
                Ok(false)
            }
            Some(Err(error)) => heard(&[&part.topic], error).map(|()| false),
            Some(Ok(message)) => {
                let offset = u64::try_from(message.offset()).unwrap_or_default();
                let (is_mark, topic, partition) = (part.table.is_none(), part.topic.clone(), part.partition);
                let record = decode(&mut self.reader, &message, offset, is_mark).map_err(|foreign| {
                    Failure::misconfigured(
                        format!("reading the record at offset {offset} of partition {partition} of the topic {topic}"),
                        foreign,
                        "Name a topic_prefix under which Debezium's PostgreSQL connector writes its own envelope, as JSON",
                    )
                })?;
                part.head = Some(record);
                part.read = offset + 1;
                part.ended = false;
                Ok(true)
            }
        }
    }

    /// Lets the client work; errors that belong to no partition come here.
    fn serve(&mut self, limit: Duration) -> Step {
        serve(&self.consumer, self.parts.iter().map(|part| &part.topic), limit)
    }
}

/// How long what comes beside is waited for at once while a batch is not taken.
const A_MOMENT: Duration = Duration::from_millis(5);

/// Serves the consumer while nobody takes a batch: errors are heard, and figures do not pile up in a run that is paused.
pub(super) fn beside(consumer: Arc<LogConsumer>, parts: &[Part]) -> Beside {
    let topics: Vec<Arc<str>> = parts.iter().map(|part| part.topic.clone()).collect();
    Box::new(move || serve(&consumer, topics.iter(), A_MOMENT))
}

/// Hears what comes beside the partitions' own queues.
fn serve<'a>(consumer: &LogConsumer, topics: impl Iterator<Item = &'a Arc<str>>, limit: Duration) -> Step {
    match consumer.poll(limit) {
        None | Some(Err(KafkaError::PartitionEOF(_))) => Ok(()),
        Some(Err(error)) => {
            let mut topics: Vec<&str> = topics.map(|topic| &**topic).collect();
            topics.dedup();
            heard(&topics, error)
        }
        Some(Ok(message)) => Err(Failure::reconnect(
            format!("reading {}", message.topic()),
            "a record came another way than its partition's own",
        )
        .into()),
    }
}

/// Where a partition ends, provided that it still has what comes next.
fn still_kept(consumer: &LogConsumer, part: &Part) -> Step<u64> {
    let (low, high) = bounds(consumer, &part.topic, part.partition).map_err(super::topics::failure)?;
    kept(&part.topic, part.partition as usize, part.next, low, high)?;
    Ok(high)
}

fn heard(topics: &[&str], error: KafkaError) -> Step {
    let code = crate::client::code_of(&error);
    if code == Some(rdkafka::error::RDKafkaErrorCode::AutoOffsetReset)
        || code == Some(rdkafka::error::RDKafkaErrorCode::OffsetOutOfRange)
    {
        return Err(lost("records expired before they were read").into());
    }
    if is_passing_for_readers(&error) {
        // The client tries again by itself; what has gone for good is found when it is asked for.
        tracing::debug!("kafka: {error}");
        return Ok(());
    }
    let rights: Vec<Right<'_>> = topics.iter().map(|topic| Right::Topic("Read", topic)).collect();
    Err(super::topics::failure(needing(&rights, "reading the topics", error)).into())
}

/// The record must be of the table that its topic is named after.
fn named(change: &Change, table: &Table, topic: &str, partition: u32, offset: u64) -> Step {
    let origin = &change.origin;
    let name =
        format!("{}.{}", origin.schema.as_deref().unwrap_or_default(), origin.table.as_deref().unwrap_or_default());
    if name == table.name || change.op == Op::Message {
        return Ok(());
    }
    Err(Failure::misconfigured(
        format!("reading the record at offset {offset} of partition {partition} of the topic {topic}"),
        format!("it is of the table {name}, where those of {} were expected", table.name),
        "Topics that hold several tables, or were renamed, cannot be read",
    )
    .into())
}

/// What an update left alone is what it was.
fn filled(new: &crossfade_event::Row, old: &crossfade_event::Row) -> crossfade_event::Row {
    let cell = |(new, old)| if new == crossfade_event::Cell::Unchanged { old } else { new };
    new.cells().zip(old.cells()).map(cell).collect()
}

fn misfits(misfit: &Misfit, topic: &str, partition: u32, offset: u64) -> Failure {
    Failure::halt(
        format!("reading the record at offset {offset} of partition {partition} of the topic {topic}"),
        misfit.to_string(),
        "Exclude the table in [source] tables, or begin anew with what the topics hold now: `crossfade rollback --wipe`, then `crossfade run`",
    )
}
