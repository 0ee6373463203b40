//! The one who writes: one transaction of Kafka for each committing delivery, with the place in the log in it.
//!
//! ```text
//!  delivery ──▶ records · records · … ──▶ flush ──▶ progress, quarantine ──▶ commit ──▶ can it be read? ──▶ applied
//!                   │
//!                   └─ whatever fails: the producer is dropped; the next one of its id ends what it had begun, and the
//!                      sink's own topic says what is in
//! ```

use super::{
    GROUP, SinkConfig,
    envelope::{Draft, Manner, Origin, Reason, Table},
    held::held_keys,
    notes::{self, Birth, Made, Notes, Owner, Says, Standing},
    settled,
    topics::{self, For},
};
use crate::{
    client::{Clients, LogConsumer, LogProducer, PATIENCE, code_of, flush, server},
    source::topics::failure,
};
use crossfade_connector::{
    Applied, Delivery, Failure, Guard, Progress, Rejection, Target, TargetTable, UndoReport, Verdict, Write, WriteMode,
};
use crossfade_event::{Change, Identity, Key, Op, Position, Row, Rows, TableId, Transaction, Version};
use rdkafka::{
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, Producer},
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// The largest record that is sent.
const MESSAGE_BYTES_MAX: u64 = 64 << 20;

/// How long one step of a transaction may take before it is held to have failed.
const STEP: Duration = Duration::from_secs(50);

/// How long a transaction may last: what brokers allow unless told otherwise. A source transaction that is larger than
/// memory is written in one of Kafka's.
const LASTING: Duration = Duration::from_secs(900);

/// Numbers of partitions are below this.
const PARTITIONS_MAX: usize = 1 << 12;

pub(super) struct Writer {
    pub(super) config: SinkConfig,
    pub(super) manner: Manner,
    /// The sink's own topic.
    pub(super) own: String,
    asking: Option<Asking>,
    pub(super) live: Option<Live>,
    pub(super) tables: HashMap<TableId, Arc<Table>>,
    /// Drawn for this writer.
    id: u64,
    /// Somebody with a right to it has taken over.
    shut_out: bool,
}

/// Clients for questions.
pub(super) struct Asking {
    pub(super) clients: Clients,
    /// Reads what is committed.
    pub(super) stable: LogConsumer,
}

/// What there is while we are the one who writes.
pub(super) struct Live {
    pub(super) producer: LogProducer,
    /// For notes outside of transactions.
    plain: LogProducer,
    pub(super) birth: Birth,
    owner: Option<Owner>,
    pub(super) standing: Option<Standing>,
    /// Keys behind which later changes wait.
    pub(super) held: HashMap<(TableId, Vec<u8>), String>,
    pub(super) next_held: i64,
    open: bool,
    /// The source transaction under way.
    transaction: Option<Under>,
    /// Topics by the number that their records bear.
    numbers: Vec<String>,
    now_us: i64,
}

/// A source transaction under way.
struct Under {
    id: String,
    xid: u64,
    commit: u64,
    commit_time_us: i64,
    /// Its first mark is written.
    begun: bool,
    total: u64,
    of_tables: BTreeMap<String, u64>,
}

/// A record on its way.
pub(super) struct Sent<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: u32,
    pub(super) key: Option<&'a [u8]>,
    pub(super) value: Option<&'a [u8]>,
    pub(super) headers: Option<OwnedHeaders>,
}

impl Writer {
    pub(super) fn new(config: SinkConfig) -> Self {
        let manner = config.manner();
        let own = topics::own(&config.topic_prefix);
        let id = drawn();
        Self { config, manner, own, asking: None, live: None, tables: HashMap::new(), id, shut_out: false }
    }

    pub(super) fn asking(&mut self) -> Result<&Asking, Failure> {
        if self.asking.is_none() {
            let clients = Clients::new(self.config.connection.clone()).map_err(failure)?;
            let stable = clients.consumer(GROUP, true).map_err(failure)?;
            self.asking = Some(Asking { clients, stable });
        }
        self.asking.as_ref().ok_or_else(|| Failure::reconnect("connecting to Kafka", "there is no client"))
    }

    /// What the sink's own topic says now; nothing where there is none.
    pub(super) fn notes(&mut self) -> Result<Option<Notes>, Failure> {
        let own = self.own.clone();
        let (migration, form) = (self.config.migration.clone(), self.config.form.name());
        let asking = self.asking()?;
        if topics::find(&asking.clients, &own)?.is_none() {
            return Ok(None);
        }
        let notes = notes::read(&asking.clients, &asking.stable, &own)?;
        let doing = || format!("reading the topic {own}");
        match &notes.birth {
            Some(birth) if birth.migration != migration => Err(Failure::refused(
                doing(),
                format!("it belongs to another migration, {}", birth.migration),
                "Name another topic_prefix in [sink]",
            )),
            Some(birth) if birth.form != form => Err(Failure::refused(
                doing(),
                format!("its topics are written as {}, and the spec says {form}", birth.form),
                format!("Write format = {:?} in [sink], or name another topic_prefix", birth.form),
            )),
            _ => Ok(Some(notes)),
        }
    }

    /// Becomes the one who writes: whoever was it before is shut out, and what he had begun is ended. False where the sink
    /// has no topic of its own yet.
    fn connect(&mut self) -> Result<bool, Failure> {
        if self.live.is_some() {
            return Ok(true);
        }
        // Before anybody is shut out.
        if self.notes()?.is_none() {
            return Ok(false);
        }
        let own = self.own.clone();
        let asking = self.asking()?;
        let clients = &asking.clients;
        let producer = clients.transactional_for(&own, MESSAGE_BYTES_MAX, LASTING).map_err(failure)?;
        let doing = || format!("beginning to write to {}", clients.brokers());
        producer.init_transactions(PATIENCE).map_err(|error| match code_of(&error) {
            Some(RDKafkaErrorCode::InvalidTransactionTimeout) => Failure::misconfigured(
                doing(),
                error,
                format!(
                    "Let the brokers allow transactions of {} minutes: transaction.max.timeout.ms",
                    LASTING.as_secs() / 60
                ),
            ),
            _ => failure(clients.unreachable(doing(), error)),
        })?;
        let plain = clients.producer(MESSAGE_BYTES_MAX).map_err(failure)?;
        // From here on nobody else can commit: what is read now stays.
        let notes = self.notes()?.unwrap_or_default();
        let birth = notes.birth.clone().unwrap_or_else(|| Birth {
            migration: self.config.migration.clone(),
            form: self.config.form.name().to_owned(),
            topics: BTreeMap::new(),
        });
        let asking = self.asking()?;
        let mut all: Vec<(String, u32)> = Vec::new();
        for (name, made) in birth.topics.iter().filter(|(_, made)| made.id.is_some()) {
            topics::same(name, made, topics::find(&asking.clients, name)?.as_ref())?;
            all.push((name.clone(), made.partitions));
        }
        all.push((own, 1));
        settled::abort_hanging(&asking.clients, &asking.stable, &producer, &all, notes.standing.as_ref())?;
        self.live = Some(Live {
            producer,
            plain,
            birth,
            owner: notes.owner,
            standing: notes.standing,
            held: held_keys(notes.held.values()),
            next_held: notes.held.keys().next_back().map_or(1, |last| last + 1),
            open: false,
            transaction: None,
            numbers: Vec::new(),
            now_us: 0,
        });
        Ok(true)
    }

    pub(super) fn progress(&mut self) -> Result<Option<Progress>, Failure> {
        if self.config.looking {
            return Ok(self.notes()?.and_then(|notes| notes.standing).map(|standing| standing.progress));
        }
        if !self.connect()? {
            return Ok(None);
        }
        Ok(self.live.as_ref().and_then(|live| live.standing.as_ref()).map(|standing| standing.progress.clone()))
    }

    pub(super) fn prepare(&mut self, target: &Target) -> Result<(), Failure> {
        self.prepared(target).inspect_err(|_| self.abandon())
    }

    fn prepared(&mut self, target: &Target) -> Result<(), Failure> {
        let wanted = self.wanted(target)?;
        let known = match &self.live {
            Some(live) => Some((live.birth.clone(), live.owner.clone())),
            None => self.notes()?.map(|notes| (notes.birth.unwrap_or_default(), notes.owner)),
        };
        if let Some(owner) = known.as_ref().and_then(|(_, owner)| owner.as_ref())
            && owner.epoch > target.epoch
        {
            return Err(superseded(&self.own));
        }
        // Before anything is made.
        let birth = known.map(|(birth, _)| birth).unwrap_or_default();
        let asking = self.asking()?;
        let mut adopted: BTreeMap<String, Made> = BTreeMap::new();
        for (name, _) in wanted.iter().filter(|(name, _)| !birth.topics.contains_key(name)) {
            if let Some(there) = topics::find(&asking.clients, name)? {
                adopted.insert(name.clone(), topics::adopt(&asking.stable, name, &there)?);
            }
        }
        let own = self.own.clone();
        if topics::find(&self.asking()?.clients, &own)?.is_none() {
            let config = self.config.clone();
            topics::make(&self.asking()?.clients, &config, &own, For::Own)?;
        }
        self.connect()?;
        self.make(&wanted, adopted)?;
        let owner = Owner { id: self.id, epoch: target.epoch };
        let own = self.own.clone();
        let live = self.live.as_mut().ok_or_else(not_prepared)?;
        if live.owner.as_ref() != Some(&owner) {
            live.note_now(&own, &Says::Writer(owner.clone()))?;
            live.owner = Some(owner);
        }
        self.shut_out = false;
        let partitions: HashMap<String, u32> =
            live.birth.topics.iter().map(|(name, made)| (name.clone(), made.partitions)).collect();
        self.tables = target
            .tables
            .iter()
            .map(|table| {
                let topic = topics::of_table(&self.config.topic_prefix, &table.schema.name);
                let count = partitions.get(&topic).copied().unwrap_or(1);
                (table.schema.id, Arc::new(Table::new(table, topic, count, &self.manner)))
            })
            .collect();
        Ok(())
    }

    /// Looks whether a target could be written, and makes nothing.
    pub(super) fn examine(&mut self, target: &Target) -> Result<(), Failure> {
        let wanted = self.wanted(target)?;
        let birth = self.notes()?.and_then(|notes| notes.birth).unwrap_or_default();
        let config = self.config.clone();
        let asking = self.asking()?;
        topics::copies(&asking.clients, &config)?;
        for (name, _) in &wanted {
            let there = topics::find(&asking.clients, name)?;
            match (birth.topics.get(name), there) {
                (Some(made), there) if made.id.is_some() => topics::same(name, made, there.as_ref())?,
                (None, Some(there)) => drop(topics::adopt(&asking.stable, name, &there)?),
                _ => {}
            }
        }
        Ok(())
    }

    /// Deletes what was made here.
    pub(super) fn wipe(&mut self) -> Result<UndoReport, Failure> {
        // Whoever still writes is shut out first.
        self.abandon();
        self.connect_for_wipe()?;
        let Some(notes) = self.notes()? else { return Ok(UndoReport::default()) };
        self.abandon();
        let own = self.own.clone();
        let dropped = topics::wipe(&self.asking()?.clients, &notes.birth.unwrap_or_default(), &own)?;
        Ok(UndoReport { dropped, ..UndoReport::default() })
    }

    /// Shuts out whoever still writes. Topics that are not what they were are no reason to keep the others.
    fn connect_for_wipe(&mut self) -> Result<(), Failure> {
        match self.connect() {
            Err(failure) if matches!(failure.verdict, Verdict::Lost { .. } | Verdict::Halt { .. }) => Ok(()),
            done => done.map(drop),
        }
    }

    /// The topics of a target; refuses what cannot be written.
    fn wanted(&self, target: &Target) -> Result<Vec<(String, For)>, Failure> {
        let prefix = &self.config.topic_prefix;
        let mut wanted: Vec<(String, For)> = Vec::new();
        for table in &target.tables {
            let name = &table.schema.name;
            let doing = || format!("preparing the topic of {name}");
            if matches!(table.mode, WriteMode::Columns { .. }) {
                let advice = "Leave write = \"shadow-columns\" out of the table's rules";
                return Err(Failure::refused(doing(), "topics have no columns beside others", advice));
            }
            if self.config.compact && table.schema.identity != Identity::Key {
                return Err(Failure::refused(
                    doing(),
                    "the table has no key, and a compacted topic takes no record without one",
                    "Give the table a primary key, exclude it, or write cleanup = \"delete\" in [sink]",
                ));
            }
            let topic = topics::of_table(prefix, name);
            if wanted.iter().any(|(other, _)| *other == topic) {
                let what = format!("another table's topic is called {topic} too");
                return Err(Failure::refused(doing(), what, "Give one of them another name (`to` in its [[table]])"));
            }
            wanted.push((topic, For::table(&table.schema)));
        }
        if self.config.transactions {
            wanted.push((topics::transactions(prefix), For::Transactions));
        }
        Ok(wanted)
    }

    /// Makes the topics that are not there. What is about to be made is noted first, so that a wipe finds it.
    fn make(&mut self, wanted: &[(String, For)], adopted: BTreeMap<String, Made>) -> Result<(), Failure> {
        let (own, config) = (self.own.clone(), self.config.clone());
        let (Some(asking), Some(live)) = (&self.asking, &mut self.live) else { return Err(not_prepared()) };
        let before = live.birth.clone();
        live.birth.topics.extend(adopted);
        let missing: Vec<&(String, For)> = wanted
            .iter()
            .filter(|(name, _)| live.birth.topics.get(name).is_none_or(|made| made.id.is_none()))
            .collect();
        for (name, _) in &missing {
            live.birth.topics.entry(name.clone()).or_default();
        }
        if live.birth != before || live.owner.is_none() {
            live.note_now(&own, &Says::Sink(live.birth.clone()))?;
        }
        if missing.is_empty() {
            return Ok(());
        }
        for (name, purpose) in missing {
            let there = topics::make(&asking.clients, &config, name, *purpose)?;
            let made = Made { id: Some(there.id), partitions: there.partitions, was_there: false };
            live.birth.topics.insert(name.clone(), made);
        }
        live.note_now(&own, &Says::Sink(live.birth.clone()))
    }

    pub(super) fn alter(&mut self, before: &TargetTable, after: &TargetTable) -> Result<(), Failure> {
        if before.schema.name != after.schema.name {
            return Err(Failure::halt(
                format!("following a change of {}", before.schema.name),
                format!("it is called {} now, and a topic keeps its name", after.schema.name),
                "Give the table its former name back",
            ));
        }
        let topic = topics::of_table(&self.config.topic_prefix, &after.schema.name);
        let partitions = self.table(after.schema.id)?.partitions;
        self.tables.insert(after.schema.id, Arc::new(Table::new(after, topic, partitions, &self.manner)));
        Ok(())
    }

    pub(super) fn table(&self, id: TableId) -> Result<&Arc<Table>, Failure> {
        self.tables.get(&id).ok_or_else(|| {
            let told = format!("table {} is not among the prepared ones", id.0);
            Failure::halt("applying changes", told, "Report this: a table must be prepared before its rows come")
        })
    }

    /// Nothing of an open transaction stays.
    pub(super) fn abandon(&mut self) {
        if let Some(live) = self.live.take()
            && live.open
        {
            // Where it does not go through, the next producer of this id ends it.
            if let Err(error) = live.producer.abort_transaction(Duration::from_secs(5)) {
                tracing::debug!(%error, "a transaction could not be aborted at once");
            }
        }
    }

    pub(super) fn apply(&mut self, delivery: Delivery, guard: Guard) -> Result<Applied, Failure> {
        let mut applied = Applied::default();
        if self.shut_out {
            return Err(superseded(&self.own));
        }
        match self.try_apply(delivery, guard, &mut applied) {
            Ok(()) => Ok(applied),
            Err(broken) => {
                self.abandon();
                Err(self.judged(broken))
            }
        }
    }

    /// Whoever was shut out is told by whom; unless he who did it had no right to, and has gone again.
    pub(super) fn judged(&mut self, broken: Broken) -> Failure {
        match broken {
            Broken::Failure(failure) => failure,
            Broken::Kafka(doing, error) if is_fenced(&error) => match self.notes() {
                Ok(Some(Notes { owner: Some(owner), .. })) if owner.id != self.id => {
                    self.shut_out = true;
                    superseded(&self.own)
                }
                Ok(_) => Failure::reconnect(doing, error),
                Err(failure) => failure,
            },
            Broken::Kafka(doing, error) => failure(server(doing, error)),
        }
    }

    fn try_apply(&mut self, delivery: Delivery, guard: Guard, applied: &mut Applied) -> Result<(), Broken> {
        let Delivery { writes, upto, commits } = delivery;
        self.live.as_mut().ok_or_else(not_prepared)?.now_us = now_us();
        for write in writes {
            match write {
                Write::Rows { table, at, count, rows } => self.rows(table, at, count, rows, applied)?,
                Write::Change { at, change } => self.change(at, change, false, applied)?,
                Write::Truncate { at, tables } => {
                    for table in tables {
                        self.truncate(at, table, applied)?;
                    }
                }
                Write::Reject(rejection) => self.reject(rejection, true, applied)?,
                Write::Began { position, transaction } => self.begins(position, transaction)?,
                Write::Boundary => self.ends()?,
            }
        }
        if commits {
            self.commit((guard == Guard::Forward).then_some(upto))?;
        }
        Ok(())
    }

    fn rows(
        &mut self,
        table: TableId,
        at: Version,
        count: u32,
        rows: bytes::Bytes,
        applied: &mut Applied,
    ) -> Result<(), Broken> {
        let version = self.table(table)?.schema.version;
        let damaged = |what: &str| {
            let doing = format!("applying the rows at {}", at.sequence);
            Failure::halt(doing, what.to_owned(), "Run `crossfade log verify`")
        };
        let mut found = 0u32;
        for row in Rows::new(rows) {
            let row = row.map_err(|error| damaged(&error.to_string()))?;
            let change = Change { table, schema: version, op: Op::Insert, old: None, new: Some(row) };
            self.change(Version { ordinal: at.ordinal + found, ..at }, change, true, applied)?;
            found += 1;
        }
        if found == count {
            Ok(())
        } else {
            Err(damaged("a block of rows holds another number of rows than it says").into())
        }
    }

    fn change(&mut self, at: Version, change: Change, is_copy: bool, applied: &mut Applied) -> Result<(), Broken> {
        if let Some(reason) = self.waits_behind(&change)? {
            return self.hold(at, change, "held", &reason, applied);
        }
        match self.write_change(at, &change, is_copy)? {
            Ok(()) => applied.applied += 1,
            Err(Reason(reason)) => {
                let table = self.table(change.table)?;
                let key = change.key(&table.schema);
                self.reject(Rejection { at, table: change.table, key, change, reason }, false, applied)?;
            }
        }
        Ok(())
    }

    /// Writes one change, wholly or not at all.
    pub(super) fn write_change(
        &mut self,
        at: Version,
        change: &Change,
        is_copy: bool,
    ) -> Result<Result<(), Reason>, Broken> {
        let table = self.table(change.table)?.clone();
        // The first new key stays: what comes later of the same old key is the same.
        if table.mode == WriteMode::InsertOnce && change.op != Op::Insert {
            return Ok(Ok(()));
        }
        let drafts = match table.drafts(change, is_copy) {
            Ok(drafts) => drafts,
            Err(reason) => return Ok(Err(reason)),
        };
        let most = MESSAGE_BYTES_MAX as usize - (1 << 20);
        if drafts.iter().any(|draft| draft.size_bytes() > most) {
            return Ok(Err(Reason(format!("its record is larger than {most} bytes, which is all that a topic takes"))));
        }
        let transactions = self.config.transactions;
        let prefix = &self.config.topic_prefix;
        let Some(live) = &mut self.live else { return Err(not_prepared().into()) };
        for draft in &drafts {
            live.write_draft(&table, draft, at, is_copy, &self.manner, transactions.then_some(prefix))?;
        }
        Ok(Ok(()))
    }

    fn begins(&mut self, position: Position, transaction: Transaction) -> Result<(), Broken> {
        let live = self.live.as_mut().ok_or_else(not_prepared)?;
        let xid = if transaction.xid == 0 { position.commit } else { transaction.xid };
        live.transaction = Some(Under {
            id: format!("{xid}:{}", position.commit),
            xid,
            commit: position.commit,
            commit_time_us: transaction.commit_time_us,
            begun: false,
            total: 0,
            of_tables: BTreeMap::new(),
        });
        Ok(())
    }

    fn ends(&mut self) -> Result<(), Broken> {
        let live = self.live.as_mut().ok_or_else(not_prepared)?;
        let Some(under) = live.transaction.take().filter(|under| under.begun) else { return Ok(()) };
        live.mark(&topics::transactions(&self.config.topic_prefix), &under.mark(true, self.manner.schemas))
    }

    /// Commits what was sent, with the sink's place; without one it stays.
    pub(super) fn commit(&mut self, upto: Option<Progress>) -> Result<(), Broken> {
        let own = self.own.clone();
        let (Some(asking), Some(live)) = (&self.asking, &mut self.live) else { return Err(not_prepared().into()) };
        if upto.is_none() && !live.open {
            return Ok(());
        }
        live.begin()?;
        let failed = |error| Broken::Kafka("writing to the sink's topics".to_owned(), error);
        let mut standing = None;
        if let Some(progress) = upto {
            flush(&live.producer, STEP).map_err(failed)?;
            let noted = Standing { progress, reaches: live.reaches()? };
            live.send(Sent {
                topic: &own,
                partition: 0,
                key: Some(b"progress"),
                value: Some(&Says::Progress(noted.clone()).to_bytes()?),
                headers: None,
            })?;
            standing = Some(noted);
        }
        flush(&live.producer, STEP).map_err(failed)?;
        let reaches = live.reaches()?;
        live.producer.commit_transaction(STEP).map_err(failed)?;
        live.open = false;
        settled::until_readable(&asking.stable, &reaches)?;
        live.standing = standing.or(live.standing.take());
        Ok(())
    }
}

impl Live {
    pub(super) fn begin(&mut self) -> Result<(), Broken> {
        if !self.open {
            self.producer.context().reset();
            self.producer
                .begin_transaction()
                .map_err(|error| Broken::Kafka("beginning a transaction".to_owned(), error))?;
            self.open = true;
        }
        Ok(())
    }

    /// Sends a record in the open transaction.
    pub(super) fn send(&mut self, sent: Sent<'_>) -> Result<(), Broken> {
        self.begin()?;
        let Sent { topic, partition, key, value, headers } = sent;
        let number = match self.numbers.iter().position(|name| name == topic) {
            Some(number) => number,
            None => {
                self.numbers.push(topic.to_owned());
                self.numbers.len() - 1
            }
        };
        let number = 1 + number * PARTITIONS_MAX + partition as usize;
        let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(topic, number).partition(partition as i32);
        record.key = key;
        record.payload = value;
        record.headers = headers;
        let began = Instant::now();
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((error, back))
                    if code_of(&error) == Some(RDKafkaErrorCode::QueueFull) && began.elapsed() < STEP =>
                {
                    self.producer.poll(Duration::from_millis(10));
                    record = back;
                }
                Err((error, _)) => return Err(Broken::Kafka(format!("writing to {topic}"), error)),
            }
        }
    }

    /// After the last record of each partition.
    fn reaches(&self) -> Result<Vec<(String, u32, u64)>, Broken> {
        let offsets = self.producer.context().offsets();
        let offsets = offsets.map_err(|error| Broken::Kafka("writing to the sink's topics".to_owned(), error))?;
        let reach = |(number, offset): (usize, u64)| {
            let topic = self.numbers.get((number - 1) / PARTITIONS_MAX).cloned().unwrap_or_default();
            (topic, ((number - 1) % PARTITIONS_MAX) as u32, offset + 1)
        };
        Ok(offsets.into_iter().map(reach).collect())
    }

    /// Everything that was sent has been taken.
    pub(super) fn settle(&self) -> Result<(), Broken> {
        flush(&self.producer, STEP).map_err(|error| Broken::Kafka("writing to the sink's topics".to_owned(), error))
    }

    /// Notes something at once, outside of any transaction.
    fn note_now(&self, own: &str, says: &Says) -> Result<(), Failure> {
        let failed = |error| failure(server(format!("writing to {own}"), error));
        let (key, value) = (says.key(), says.to_bytes()?);
        self.plain.context().reset();
        let record = BaseRecord::<str, [u8], usize>::with_opaque_to(own, 0).partition(0).key(&key).payload(&value);
        self.plain.send(record).map_err(|(error, _)| failed(error))?;
        flush(&self.plain, STEP).map_err(failed)?;
        self.plain.context().offsets().map(drop).map_err(failed)
    }

    fn write_draft(
        &mut self,
        table: &Table,
        draft: &Draft,
        at: Version,
        is_copy: bool,
        manner: &Manner,
        marks: Option<&String>,
    ) -> Result<(), Broken> {
        if let Some(prefix) = marks
            && let Some(under) = self.transaction.as_mut().filter(|under| !under.begun)
        {
            under.begun = true;
            let mark = under.mark(false, manner.schemas);
            self.mark(&topics::transactions(prefix), &mark)?;
        }
        let mut block = None;
        if let Some(under) = self.transaction.as_mut().filter(|_| !is_copy) {
            under.total += 1;
            let of_table = under.of_tables.entry(table.collection.clone()).or_default();
            *of_table += 1;
            block = marks.map(|_| (under.id.clone(), under.total, *of_table));
        }
        let under = self.transaction.as_ref().filter(|_| !is_copy);
        let origin = Origin {
            snapshot: is_copy,
            xid: under.map(|under| under.xid),
            commit: under.map(|under| under.commit),
            sequence: (!is_copy).then_some(at.sequence.0),
            commit_time_us: under.map_or(self.now_us, |under| under.commit_time_us),
            now_us: self.now_us,
            block: block.as_ref().map(|(id, total, of_table)| (id.as_str(), *total, *of_table)),
        };
        let value = table.value(draft, origin, manner);
        let partition = table.partition(draft.key.as_deref());
        let key = draft.key.as_deref().map(str::as_bytes);
        let headers = draft
            .moved
            .as_ref()
            .map(|(name, key)| OwnedHeaders::new().insert(Header { key: name, value: Some(key.as_bytes()) }));
        self.send(Sent { topic: &table.topic, partition, key, value: Some(value.as_bytes()), headers })?;
        if draft.goes {
            self.send(Sent { topic: &table.topic, partition, key, value: None, headers: None })?;
        }
        Ok(())
    }

    /// That the row of a key is gone with all others.
    pub(super) fn write_gone(
        &mut self,
        table: &Table,
        key: &[u8],
        at: Version,
        manner: &Manner,
        marks: Option<&String>,
    ) -> Result<(), Broken> {
        let draft = table.gone_key(&String::from_utf8_lossy(key));
        self.write_draft(table, &draft, at, false, manner, marks)
    }

    /// That a table without a key was emptied.
    pub(super) fn write_emptied(&mut self, table: &Table, at: Version, manner: &Manner) -> Result<(), Broken> {
        let origin = Origin {
            snapshot: false,
            xid: None,
            commit: None,
            sequence: Some(at.sequence.0),
            commit_time_us: self.now_us,
            now_us: self.now_us,
            block: None,
        };
        let value = table.emptied(origin, manner);
        self.send(Sent { topic: &table.topic, partition: 0, key: None, value: Some(value.as_bytes()), headers: None })
    }

    fn mark(&mut self, topic: &str, (key, value): &(String, String)) -> Result<(), Broken> {
        let (key, value) = (Some(key.as_bytes()), Some(value.as_bytes()));
        self.send(Sent { topic, partition: 0, key, value, headers: None })
    }
}

impl Under {
    /// The mark of its begin or of its end, as a key and a value.
    fn mark(&self, is_end: bool, schemas: bool) -> (String, String) {
        let wrapped = |schema: &str, payload: String| match schemas {
            true => format!("{{\"schema\":{schema},\"payload\":{payload}}}"),
            false => payload,
        };
        let collections: Vec<serde_json::Value> = self
            .of_tables
            .iter()
            .map(|(table, count)| serde_json::json!({ "data_collection": table, "event_count": count }))
            .collect();
        let value = serde_json::json!({
            "status": if is_end { "END" } else { "BEGIN" },
            "id": self.id,
            "event_count": is_end.then_some(self.total),
            "data_collections": is_end.then_some(collections),
            "ts_ms": self.commit_time_us.div_euclid(1_000),
        });
        let key = serde_json::json!({ "id": self.id });
        (wrapped(super::shape::MARK_KEY, key.to_string()), wrapped(super::shape::MARK, value.to_string()))
    }
}

/// Why a step did not go through.
pub(super) enum Broken {
    Kafka(String, KafkaError),
    Failure(Failure),
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

fn is_fenced(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    // What a producer that was shut out still held is thrown away, and that is all that is heard of it at first.
    matches!(
        code_of(error),
        Some(
            Code::Fenced
                | Code::ProducerFenced
                | Code::InvalidProducerEpoch
                | Code::Fatal
                | Code::PurgeQueue
                | Code::PurgeInflight
        )
    )
}

fn superseded(own: &str) -> Failure {
    Failure::refused(
        format!("writing to {own} and the topics beside it"),
        "another process has taken over",
        "Stop this one; the other goes on",
    )
}

pub(super) fn not_prepared() -> Failure {
    Failure::reconnect("applying changes", "the sink is not prepared")
}

fn drawn() -> u64 {
    uuid::Uuid::now_v7().as_u64_pair().1
}

fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}

/// Every key that a change touches, as bytes.
pub(super) fn keys_of(table: &Table, change: &Change) -> Vec<Vec<u8>> {
    let whole = |row: &Option<Row>| row.as_ref().and_then(|row| table.schema.key_of(row));
    let keys: [Option<Key>; 2] = [whole(&change.new), whole(&change.old)];
    let mut keys: Vec<Vec<u8>> = keys.into_iter().flatten().map(|key| key.as_bytes().to_vec()).collect();
    keys.dedup();
    keys
}
