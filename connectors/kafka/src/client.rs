//! The one place that makes producers, consumers and admin clients.

mod admin;
mod asking;
mod errors;
mod figures;
mod sending;
mod settings;

pub(crate) use asking::{assignment, bounds, reaches, scan};
pub(crate) use errors::{
    Right, code_of, is_denied, is_passing, is_passing_for_readers, needing, reading, server, writing,
};
pub(crate) use figures::Purpose;
pub use figures::{BrokerFigures, ClientFigures, ends_figures};
pub(crate) use sending::{flush, reason, send};

use crate::Connection;
use crossfade_log::LogError;
use figures::{Counting, Figures};
use rdkafka::{
    ClientConfig, ClientContext, Message,
    admin::AdminClient,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    consumer::{BaseConsumer, ConsumerContext},
    error::KafkaError,
    producer::{BaseProducer, DeliveryResult, ProducerContext},
};
use settings::{base, producing};
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How long one question to the brokers may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long one broker may take to answer what any other can be asked instead: it may be frozen, and keep its connection.
pub(crate) const QUESTION: Duration = Duration::from_secs(10);

/// How long a broker keeps a question for more that it cannot answer yet: long where somebody follows what comes, short where
/// the answer is that there is nothing more, for behind every transaction stands a record that nobody is given.
const FOLLOWING: Duration = Duration::from_millis(250);
const ASKING: Duration = Duration::from_millis(10);

/// Passes what librdkafka says on to the program's own log, and remembers the last complaint.
#[derive(Debug, Default)]
pub struct Listener {
    last: Mutex<Option<String>>,
    counting: Option<Counting>,
}

impl Listener {
    fn heard(&self, complaint: &str) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // "1/1 brokers are down" says less than why they are.
        if last.is_none() || !complaint.ends_with("brokers are down") {
            *last = Some(complaint.to_owned());
        }
    }

    /// The last complaint.
    pub fn last(&self) -> Option<String> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn tell(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::error!(facility, "kafka: {message}");
        }
        _ => tracing::debug!(facility, "kafka: {message}"),
    }
}

impl ClientContext for Listener {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tell(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!("kafka: {error}: {reason}");
        self.heard(reason);
    }

    fn stats_raw(&self, said: &[u8]) {
        if let Some(counting) = &self.counting {
            counting.take(said);
        }
    }
}

impl ConsumerContext for Listener {}

/// What became of the records of one transaction: the first failure, and the offsets of those that were asked about.
#[derive(Debug, Default)]
pub struct Deliveries {
    listener: Listener,
    state: Mutex<Delivered>,
}

#[derive(Debug, Default)]
struct Delivered {
    error: Option<KafkaError>,
    offsets: BTreeMap<usize, u64>,
    /// After the last record, by partition; those of notes apart.
    ends: BTreeMap<(bool, u32), u64>,
}

/// The number of a record in the topic of notes.
pub(crate) const NOTE: usize = usize::MAX;

impl Deliveries {
    fn state(&self) -> MutexGuard<'_, Delivered> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets the transaction before.
    pub fn reset(&self) {
        *self.state() = Delivered::default();
    }

    /// The offsets by the number that was given to their record.
    ///
    /// # Errors
    /// The first record's that was not taken.
    pub fn offsets(&self) -> Result<BTreeMap<usize, u64>, KafkaError> {
        let mut state = self.state();
        match state.error.take() {
            Some(error) => Err(error),
            None => Ok(state.offsets.clone()),
        }
    }

    /// The offset after the last record, by whether it is a note, and partition.
    pub(crate) fn ends(&self) -> BTreeMap<(bool, u32), u64> {
        self.state().ends.clone()
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tell(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.listener.error(error, reason);
    }

    fn stats_raw(&self, said: &[u8]) {
        self.listener.stats_raw(said);
    }
}

impl ProducerContext for Deliveries {
    /// A number above zero asks for the record's offset, but for that of a note.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        match result {
            Ok(message) => {
                let (offset, partition) = (message.offset().unsigned_abs(), message.partition().unsigned_abs());
                let mut state = self.state();
                let end = state.ends.entry((number == NOTE, partition)).or_default();
                *end = (*end).max(offset + 1);
                if number > 0 && number != NOTE {
                    state.offsets.insert(number, offset);
                }
            }
            Err((error, _)) => {
                self.state().error.get_or_insert_with(|| error.clone());
            }
        }
    }
}

/// A consumer, its partitions assigned by us.
pub type LogConsumer = BaseConsumer<Listener>;

/// A producer whose deliveries are watched.
pub type LogProducer = BaseProducer<Deliveries>;

/// Makes clients.
pub struct Clients {
    connection: Connection,
    admin: AdminClient<Listener>,
    /// Those of clients that count; none counts where nobody would poll them while nothing is to be done.
    figures: Option<Figures>,
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clients").field("connection", &self.connection).finish_non_exhaustive()
    }
}

impl Clients {
    /// Checks the connection's parts and makes an admin client; nothing has been asked of a broker yet.
    ///
    /// # Errors
    /// When the connection may not be made, or a certificate cannot be read.
    pub fn new(connection: Connection) -> Result<Self, LogError> {
        connection.check().map_err(|refused| {
            let text = refused.to_string();
            let (what, remedy) = text.split_once(". ").unwrap_or((&text, ""));
            LogError::Refused { what: format!("the connection to Kafka: {what}"), remedy: remedy.to_owned() }
        })?;
        let admin = AdminClient::from_config_and_context(&base(&connection), Listener::default());
        let admin = admin.map_err(|error| server("making a client for Kafka", error))?;
        Ok(Self { connection, admin, figures: None })
    }

    /// The same, and clients made with a purpose count what they do. Somebody must poll each of them every few seconds.
    #[must_use]
    pub(crate) fn counting(self) -> Self {
        Self { figures: Some(Figures::default()), ..self }
    }

    /// The same for a source or a sink, which [`ends_figures`] tells.
    #[must_use]
    pub(crate) fn counting_as_an_end(self) -> Self {
        Self { figures: Some(Figures::of_ends()), ..self }
    }

    /// What the clients have counted, by their purpose.
    pub(crate) fn figures(&self) -> Vec<ClientFigures> {
        self.figures.as_ref().map(Figures::sums).unwrap_or_default()
    }

    /// For a client with this purpose: what counts for it, where anything does.
    fn counting_for(&self, purpose: Option<Purpose>, config: &mut ClientConfig) -> Option<Counting> {
        let counting = self.figures.as_ref().zip(purpose).map(|(figures, purpose)| figures.count(purpose))?;
        config.set("statistics.interval.ms", figures::EVERY.as_millis().to_string());
        Some(counting)
    }

    /// The brokers, for messages.
    pub fn brokers(&self) -> &str {
        &self.connection.brokers
    }

    /// A producer whose transactions belong to `id`: making another one with the same id shuts this one out.
    ///
    /// # Errors
    /// When its settings are refused.
    pub(crate) fn transactional(
        &self,
        id: &str,
        message_bytes_max: u64,
        purpose: Purpose,
    ) -> Result<LogProducer, LogError> {
        // A transaction holds a few megabytes, never a whole source transaction, so it lasts for moments; this is how
        // long one that nobody ends holds up the readers.
        self.transactional_for(id, message_bytes_max, Duration::from_secs(60), Some(purpose))
    }

    /// The same, with transactions that may last so long.
    pub(crate) fn transactional_for(
        &self,
        id: &str,
        message_bytes_max: u64,
        lasting: Duration,
        purpose: Option<Purpose>,
    ) -> Result<LogProducer, LogError> {
        let mut config = producing(&self.connection, message_bytes_max);
        config
            .set("transactional.id", id)
            .set("transaction.timeout.ms", lasting.as_millis().to_string())
            .set("message.timeout.ms", "45000");
        let counting = self.counting_for(purpose, &mut config);
        let listener = Listener { counting, ..Listener::default() };
        LogProducer::from_config_and_context(&config, Deliveries { listener, ..Deliveries::default() })
            .map_err(|error| server("making a producer for Kafka", error))
    }

    /// A producer without transactions.
    ///
    /// # Errors
    /// When its settings are refused.
    pub fn producer(&self, message_bytes_max: u64) -> Result<LogProducer, LogError> {
        self.producer_for(message_bytes_max, None)
    }

    pub(crate) fn producer_for(
        &self,
        message_bytes_max: u64,
        purpose: Option<Purpose>,
    ) -> Result<LogProducer, LogError> {
        let mut config = producing(&self.connection, message_bytes_max);
        let counting = self.counting_for(purpose, &mut config);
        let listener = Listener { counting, ..Listener::default() };
        LogProducer::from_config_and_context(&config, Deliveries { listener, ..Deliveries::default() })
            .map_err(|error| server("making a producer for Kafka", error))
    }

    /// A consumer that reads what is committed, from where it is told, and nowhere else. With `ends` it tells where a
    /// partition ends.
    ///
    /// # Errors
    /// When its settings are refused.
    pub(crate) fn consumer(&self, group: &str, ends: bool, purpose: Option<Purpose>) -> Result<LogConsumer, LogError> {
        self.reading(group, ends, "read_committed", FOLLOWING, purpose)
    }

    /// A consumer that reads what is there now, and asks where partitions end; what is committed.
    pub(crate) fn asking(&self, group: &str) -> Result<LogConsumer, LogError> {
        self.reading(group, true, "read_committed", ASKING, None)
    }

    /// The same with what is not committed.
    pub(crate) fn uncommitted(&self, group: &str) -> Result<LogConsumer, LogError> {
        self.reading(group, true, "read_uncommitted", ASKING, None)
    }

    /// A consumer that is a member of a group, which says what it is given and when that is taken away again.
    pub(crate) fn member<C: ConsumerContext>(
        &self,
        group: &str,
        silent: Duration,
        context: C,
    ) -> Result<BaseConsumer<C>, LogError> {
        let mut config = base(&self.connection);
        config
            .set("group.id", group)
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", silent.as_millis().to_string())
            .set("heartbeat.interval.ms", (silent / 4).min(Duration::from_secs(3)).as_millis().to_string())
            .set("max.poll.interval.ms", silent.max(Duration::from_secs(300)).as_millis().to_string())
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("allow.auto.create.topics", "false")
            .set("isolation.level", "read_committed")
            // It reads nothing itself; this is for the moment until its partitions rest.
            .set("auto.offset.reset", "latest")
            .set("queued.max.messages.kbytes", "64");
        BaseConsumer::from_config_and_context(&config, context)
            .map_err(|error| server("making a member of a group for Kafka", error))
    }

    fn reading(
        &self,
        group: &str,
        ends: bool,
        isolation: &str,
        wait: Duration,
        purpose: Option<Purpose>,
    ) -> Result<LogConsumer, LogError> {
        let mut config = base(&self.connection);
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("allow.auto.create.topics", "false")
            .set("auto.offset.reset", "error")
            .set("isolation.level", isolation)
            .set("check.crcs", "true")
            .set("enable.partition.eof", if ends { "true" } else { "false" })
            .set("fetch.wait.max.ms", wait.as_millis().to_string())
            .set("fetch.error.backoff.ms", "50")
            .set("queued.max.messages.kbytes", "4096");
        let counting = self.counting_for(purpose, &mut config);
        LogConsumer::from_config_and_context(&config, Listener { counting, ..Listener::default() })
            .map_err(|error| server("making a consumer for Kafka", error))
    }
}
