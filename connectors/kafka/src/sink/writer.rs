//! The one who writes: what it knows, how it becomes the only one, and what it makes of a failure.
//!
//! ```text
//!  delivery ──▶ records · records · … ──▶ flush ──▶ progress, quarantine ──▶ commit ──▶ can it be read? ──▶ applied
//!                   │
//!                   └─ whatever fails: the producer is dropped; the next one of its id ends what it had begun, and the
//!                      sink's own topic says what is in
//! ```
//!
//! What it makes is in [`super::prepare`], what it does with a delivery in [`super::apply`], how a record gets out in
//! [`super::live`].

use super::{
    GROUP, SinkConfig,
    envelope::Manner,
    held::held_keys,
    live::{Live, MESSAGE_BYTES_MAX},
    notes::{self, Birth, Notes},
    prepared::Prepared,
    settled, topics,
};
use crate::{
    client::{Clients, LogConsumer, PATIENCE, Purpose, Right, code_of, needing},
    source::topics::failure,
};
use crossfade_connector::{Failure, Progress};
use crossfade_event::TableId;
use rdkafka::{
    error::{KafkaError, RDKafkaErrorCode},
    producer::Producer,
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

/// How long a transaction may last: what brokers allow unless told otherwise. A source transaction that is larger than
/// memory is written in one of Kafka's.
const LASTING: Duration = Duration::from_secs(900);

pub(super) struct Writer {
    pub(super) config: SinkConfig,
    pub(super) manner: Manner,
    /// The sink's own topic.
    pub(super) own: String,
    pub(super) asking: Option<Asking>,
    pub(super) live: Option<Live>,
    pub(super) tables: HashMap<TableId, Arc<Prepared>>,
    /// Drawn for this writer.
    pub(super) id: u64,
    /// Somebody with a right to it has taken over.
    pub(super) shut_out: bool,
}

/// Clients for questions.
pub(super) struct Asking {
    pub(super) clients: Clients,
    /// Reads what is committed.
    pub(super) stable: LogConsumer,
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
            let clients = Clients::new(self.config.connection.clone()).map_err(failure)?.counting_as_an_end();
            let stable = clients.asking(GROUP).map_err(failure)?;
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
    pub(super) fn connect(&mut self) -> Result<bool, Failure> {
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
        let producer =
            clients.transactional_for(&own, MESSAGE_BYTES_MAX, LASTING, Some(Purpose::Sink)).map_err(failure)?;
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
            _ => failure(clients.unreachable(&[Right::Transaction(&own)], doing(), error)),
        })?;
        let plain = clients.producer_for(MESSAGE_BYTES_MAX, Some(Purpose::Sink)).map_err(failure)?;
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
            topics::same(name, made, topics::find_known(&asking.clients, name)?.as_ref())?;
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

    pub(super) fn table(&self, id: TableId) -> Result<&Arc<Prepared>, Failure> {
        self.tables.get(&id).ok_or_else(|| {
            let told = format!("table {} is not among the prepared ones", id.0);
            Failure::halt("applying changes", told, "Report this: a table must be prepared before its rows come")
        })
    }

    /// Hears what the producers have to say beside, while nothing is to be written: figures would pile up.
    pub(super) fn hear(&self) {
        if let Some(live) = &self.live {
            live.producer.poll(Duration::ZERO);
            live.plain.poll(Duration::ZERO);
        }
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
            Broken::Kafka(doing, error) => {
                let topics = self.tables.values().flat_map(|table| &table.topics).map(|one| &one.topic);
                let mut rights: Vec<Right<'_>> = topics.map(|topic| Right::Topic("Write", topic)).collect();
                rights.extend([Right::Topic("Write", &self.own), Right::Transaction(&self.own)]);
                failure(needing(&rights, doing, error))
            }
        }
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

pub(super) fn superseded(own: &str) -> Failure {
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
