//! The one place that makes producers, consumers and admin clients.

mod errors;
mod figures;

pub(crate) use errors::{
    Right, code_of, is_denied, is_passing, is_passing_for_readers, needing, reading, server, writing,
};
pub(crate) use figures::Purpose;
pub use figures::{BrokerFigures, ClientFigures};

use crate::{Connection, ids};
use crossfade_log::LogError;
use figures::{Counting, Figures};
use futures::executor::block_on;
use rdkafka::{
    ClientConfig, ClientContext, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, OwnedResourceSpecifier, ResourceSpecifier},
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError, RDKafkaErrorCode},
    message::BorrowedMessage,
    producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext},
    topic_partition_list::TopicPartitionListElem,
};
use secrecy::ExposeSecret;
use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long one question to the brokers may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

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
        let config = producing(&self.connection, message_bytes_max);
        LogProducer::from_config_and_context(&config, Deliveries::default())
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

    /// The admin client, which has just heard who is there.
    fn admin(&self) -> Result<&AdminClient<Listener>, KafkaError> {
        ids::brokers(&self.admin, PATIENCE).map(|_| &self.admin)
    }

    /// The topics of these names, in their order; `None` for one that is not there. Whoever lacks the right to ask is told
    /// of the one that what he wants needs, which has that of asking in it.
    pub(crate) fn describe(&self, names: &[&str], right: &'static str) -> Result<Vec<Option<ids::Topic>>, LogError> {
        let doing = || format!("asking {} for its topics", self.brokers());
        let failed = |error| self.unreachable(&[], doing(), error);
        let described = self.admin().and_then(|admin| ids::describe(admin, names, PATIENCE)).map_err(failed)?;
        let named = names.iter().zip(described).map(|(name, found)| {
            let doing = || format!("asking for the topic {name}");
            found.map_err(|error| self.unreachable(&[Right::Topic(right, name)], doing(), error))
        });
        named.collect()
    }

    pub(crate) fn describe_one(&self, name: &str, right: &'static str) -> Result<Option<ids::Topic>, LogError> {
        Ok(self.describe(&[name], right)?.pop().flatten())
    }

    /// Topics that are said to be there: one that a single broker has not heard of is not gone yet.
    pub(crate) fn describe_known(
        &self,
        names: &[&str],
        right: &'static str,
    ) -> Result<Vec<Option<ids::Topic>>, LogError> {
        let began = Instant::now();
        loop {
            let found = self.describe(names, right)?;
            if found.iter().all(Option::is_some) || began.elapsed() >= HEARSAY {
                return Ok(found);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// How many brokers there are.
    ///
    /// # Errors
    /// When none answers.
    pub fn broker_count(&self) -> Result<usize, LogError> {
        let failed = |error| self.unreachable(&[], format!("asking {} for its brokers", self.brokers()), error);
        ids::brokers(&self.admin, PATIENCE).map_err(failed)
    }

    /// Makes a topic; one that is there already is left as it is.
    pub(crate) fn create(&self, topic: &NewTopic<'_>) -> Result<(), LogError> {
        let doing = || format!("making the topic {}", topic.name);
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE)).request_timeout(Some(PATIENCE));
        let failed = |error| self.unreachable(&[Right::Topic("Create", topic.name)], doing(), error);
        let results = self.admin().and_then(|admin| block_on(admin.create_topics([topic], &options)));
        for result in results.map_err(failed)? {
            match result {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((_, code)) => return Err(failed(KafkaError::AdminOp(code))),
            }
        }
        Ok(())
    }

    /// Deletes a topic; one that is not there is none to delete.
    pub(crate) fn delete(&self, topic: &str) -> Result<(), LogError> {
        let doing = || format!("deleting the topic {topic}");
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE)).request_timeout(Some(PATIENCE));
        let failed = |error| self.unreachable(&[Right::Topic("Delete", topic)], doing(), error);
        let results = self.admin().and_then(|admin| block_on(admin.delete_topics(&[topic], &options)));
        for result in results.map_err(failed)? {
            match result {
                Ok(_) | Err((_, RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic)) => {}
                Err((_, code)) => return Err(failed(KafkaError::AdminOp(code))),
            }
        }
        Ok(())
    }

    /// The settings of topics, each by its name.
    pub(crate) fn settings(&self, topics: &[&str]) -> Result<BTreeMap<String, BTreeMap<String, String>>, LogError> {
        let began = Instant::now();
        loop {
            let all = self.settings_now(topics)?;
            // Of a topic that a broker has not heard of yet, or that it does not let us ask about, it tells none, and the
            // library does not say why. None is not taken for settings that are as they should be.
            let untold = topics.iter().find(|topic| all.get(**topic).is_none_or(BTreeMap::is_empty));
            let Some(untold) = untold else { return Ok(all) };
            if began.elapsed() >= HEARSAY {
                let denied = KafkaError::AdminOp(RDKafkaErrorCode::TopicAuthorizationFailed);
                let doing = format!("asking for the settings of {untold}");
                return Err(needing(&[Right::Topic("DescribeConfigs", untold)], doing, denied));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn settings_now(&self, topics: &[&str]) -> Result<BTreeMap<String, BTreeMap<String, String>>, LogError> {
        let doing = || format!("asking for the settings of {}", topics.join(" and "));
        let asked: Vec<ResourceSpecifier<'_>> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
        let options = AdminOptions::new().request_timeout(Some(PATIENCE));
        let failed = |error| self.unreachable(&[], doing(), error);
        let results = self.admin().and_then(|admin| block_on(admin.describe_configs(&asked, &options)));
        let mut all = BTreeMap::new();
        for result in results.map_err(failed)? {
            let resource = result.map_err(|code| failed(KafkaError::AdminOp(code)))?;
            let OwnedResourceSpecifier::Topic(name) = resource.specifier else { continue };
            let entries = resource.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?)));
            all.insert(name, entries.collect());
        }
        Ok(all)
    }

    /// Drops the records below these offsets.
    pub(crate) fn delete_below(&self, topic: &str, offsets: &[u64]) -> Result<(), LogError> {
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE)).request_timeout(Some(PATIENCE));
        let places = offsets.iter().enumerate().map(|(partition, at)| (partition as i32, *at));
        let done = assignment(topic, places)
            .and_then(|list| self.admin().and_then(|admin| block_on(admin.delete_records(&list, &options))));
        let rights = [Right::Topic("Delete", topic)];
        let refused = |error| self.unreachable(&rights, format!("dropping old records of {topic}"), error);
        for element in done.map_err(refused)?.elements() {
            element.error().map_err(refused)?;
        }
        Ok(())
    }

    /// An error, with what the brokers complained of last where that says more.
    pub(crate) fn unreachable(&self, rights: &[Right<'_>], doing: String, error: KafkaError) -> LogError {
        let lost = matches!(
            code_of(&error),
            Some(
                RDKafkaErrorCode::OperationTimedOut
                    | RDKafkaErrorCode::BrokerTransportFailure
                    | RDKafkaErrorCode::AllBrokersDown
                    | RDKafkaErrorCode::RequestTimedOut
            )
        );
        match lost.then(|| self.complaint()).flatten() {
            Some(complaint) => LogError::Server { doing, cause: complaint.into(), passing: true },
            None => needing(rights, doing, error),
        }
    }

    /// What stands between us and the brokers. An admin client keeps it to itself, so another client is asked.
    fn complaint(&self) -> Option<String> {
        let producer = self.producer(1_000_000).ok()?;
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(2) {
            producer.poll(Duration::from_millis(20));
            match producer.context().listener.last() {
                Some(complaint) if !complaint.ends_with("brokers are down") => return Some(complaint),
                _ => {}
            }
        }
        producer.context().listener.last()
    }
}

fn base(connection: &Connection) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set_log_level(RDKafkaLogLevel::Warning)
        .set("bootstrap.servers", &connection.brokers)
        .set("client.id", "crossfade")
        .set("socket.keepalive.enable", "true")
        .set("log.connection.close", "false")
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "2000");
    let protocol = match (&connection.tls, &connection.sasl) {
        (None, None) => "plaintext",
        (Some(_), None) => "ssl",
        (None, Some(_)) => "sasl_plaintext",
        (Some(_), Some(_)) => "sasl_ssl",
    };
    config.set("security.protocol", protocol);
    if let Some(tls) = &connection.tls {
        let files = [
            ("ssl.ca.location", &tls.authority),
            ("ssl.certificate.location", &tls.certificate),
            ("ssl.key.location", &tls.key),
        ];
        for (name, file) in files {
            if let Some(file) = file {
                config.set(name, file.to_string_lossy());
            }
        }
        if let Some(password) = &tls.key_password {
            config.set("ssl.key.password", password.expose_secret());
        }
    }
    if let Some(sasl) = &connection.sasl {
        config
            .set("sasl.mechanism", sasl.mechanism.name())
            .set("sasl.username", &sasl.user)
            .set("sasl.password", sasl.password.expose_secret());
    }
    config
}

fn producing(connection: &Connection, message_bytes_max: u64) -> ClientConfig {
    let mut config = base(connection);
    config
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("compression.type", "lz4")
        .set("linger.ms", "0")
        .set("batch.size", "1048576")
        .set("message.max.bytes", message_bytes_max.clamp(1_000, 1_000_000_000).to_string())
        .set("queue.buffering.max.kbytes", "65536");
    config
}

/// A list of partitions of a topic, with an offset each.
pub(crate) fn assignment(
    topic: &str,
    places: impl IntoIterator<Item = (i32, u64)>,
) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::new();
    for (partition, at) in places {
        let at = i64::try_from(at).unwrap_or(i64::MAX);
        list.add_partition_offset(topic, partition, rdkafka::Offset::Offset(at))?;
    }
    Ok(list)
}

/// Reads these ranges of a topic's partitions, each to its end or to where the partition ends, or until `each` says that it
/// has seen enough of that partition. What is written beyond a range meanwhile is not waited for: whoever writes may write
/// without a pause.
pub(crate) fn scan(
    consumer: &LogConsumer,
    topic: &str,
    ranges: &[(i32, Range<u64>)],
    mut each: impl FnMut(&BorrowedMessage<'_>) -> Result<bool, LogError>,
) -> Result<(), LogError> {
    let doing = || format!("reading {topic}");
    let failed = |error| reading(topic, error);
    let ranges = || ranges.iter().filter(|(_, range)| !range.is_empty());
    // Up to where each that is not read through yet is read.
    let mut open: BTreeMap<i32, u64> = ranges().map(|(partition, range)| (*partition, range.end)).collect();
    if open.is_empty() {
        return Ok(());
    }
    let from = ranges().map(|(partition, range)| (*partition, range.start));
    let list = assignment(topic, from).map_err(failed)?;
    consumer.assign(&list).map_err(failed)?;
    let mut heard = Instant::now();
    while !open.is_empty() {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                heard = Instant::now();
                let offset = message.offset().unsigned_abs();
                if let Some(end) = open.get(&message.partition()).copied()
                    && (offset >= end || each(&message)? || offset + 1 >= end)
                {
                    open.remove(&message.partition());
                }
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                heard = Instant::now();
                open.remove(&partition);
            }
            Some(Err(error)) if !is_passing_for_readers(&error) => return Err(failed(error)),
            Some(Err(_)) | None if heard.elapsed() > PATIENCE => {
                let cause = consumer.context().last().unwrap_or_else(|| "no broker answers".to_owned());
                return Err(LogError::Server { doing: doing(), cause: cause.into(), passing: true });
            }
            Some(Err(_)) | None => {}
        }
    }
    consumer.unassign().map_err(failed)
}

/// How long a broker may not have heard of a topic that another one has just made.
const HEARSAY: Duration = Duration::from_secs(5);

/// How long one broker is waited for before it is asked who else has a partition now.
const ONE_BROKER: Duration = Duration::from_secs(10);

/// The first offset that is kept and the one after the last that can be read.
///
/// When a broker goes, its partitions are without a leader until another one takes them over. A client that asks meanwhile
/// is told so, and believes it for minutes where it reads nothing; one that has heard nothing waits for the broker that is
/// gone. So it is made to ask again who leads.
pub(crate) fn bounds(consumer: &LogConsumer, topic: &str, partition: u32) -> Result<(u64, u64), LogError> {
    let began = Instant::now();
    loop {
        let error = match consumer.fetch_watermarks(topic, partition as i32, ONE_BROKER) {
            Ok((low, high)) => {
                return Ok((u64::try_from(low).unwrap_or_default(), u64::try_from(high).unwrap_or_default()));
            }
            Err(error) => error,
        };
        let limit = match code_of(&error) {
            Some(RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition) => HEARSAY,
            _ if is_passing(&error) => PATIENCE,
            _ => Duration::ZERO,
        };
        if began.elapsed() >= limit {
            let rights = [Right::Topic("Read", topic)];
            return Err(needing(&rights, format!("asking where partition {partition} of {topic} ends"), error));
        }
        std::thread::sleep(Duration::from_millis(50));
        // When nobody answers, the next question says so.
        let _ = consumer.fetch_metadata(Some(topic), ONE_BROKER);
    }
}

/// Where partitions end, of all that is asked in one question to each broker; `None` for one that has no leader now.
fn ends(
    consumer: &LogConsumer,
    topic: &str,
    partitions: impl IntoIterator<Item = u32>,
) -> Result<BTreeMap<u32, Option<u64>>, KafkaError> {
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        // Asked for the place of a time, which this stands for: the end.
        list.add_partition_offset(topic, partition as i32, Offset::End)?;
    }
    let found = consumer.offsets_for_times(list, ONE_BROKER)?;
    let end = |element: TopicPartitionListElem<'_>| match (element.error(), element.offset()) {
        (Ok(()), Offset::Offset(at)) => u64::try_from(at).ok(),
        _ => None,
    };
    Ok(found.elements().into_iter().map(|element| (element.partition().unsigned_abs(), end(element))).collect())
}

/// Waits until everything below these ends of a topic's partitions can be read; false when it takes longer than `limit`.
pub(crate) fn reaches(
    consumer: &LogConsumer,
    topic: &str,
    wanted: &BTreeMap<u32, u64>,
    limit: Duration,
) -> Result<bool, LogError> {
    let began = Instant::now();
    let mut pause = Duration::from_micros(500);
    let mut missing = wanted.clone();
    while !missing.is_empty() {
        let rights = [Right::Topic("Read", topic)];
        let failed = |error| needing(&rights, format!("asking where {topic} ends"), error);
        let ends = ends(consumer, topic, missing.keys().copied()).map_err(failed)?;
        let end = |partition: &u32| ends.get(partition).copied().flatten();
        missing.retain(|partition, wanted| end(partition).is_none_or(|end| end < *wanted));
        if let Some(leaderless) = missing.keys().find(|partition| end(partition).is_none()) {
            // Asked by itself it is looked for until somebody leads it.
            bounds(consumer, topic, *leaderless)?;
        }
        if missing.is_empty() {
            break;
        }
        if began.elapsed() > limit {
            return Ok(false);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    Ok(true)
}

/// Sends a record; waits while the producer has as many as it takes, not longer than `limit`.
pub(crate) fn send(
    producer: &LogProducer,
    mut record: BaseRecord<'_, [u8], [u8], usize>,
    limit: Duration,
) -> Result<(), KafkaError> {
    let began = Instant::now();
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((error, back)) if code_of(&error) == Some(RDKafkaErrorCode::QueueFull) && began.elapsed() < limit => {
                producer.poll(Duration::from_millis(10));
                record = back;
            }
            Err((error, _)) => return Err(error),
        }
    }
}

/// Waits until everything that was sent has been answered.
///
/// The library's own flush looks every tenth of a second only, and its poll spins through the last millisecond of the time
/// that it is given.
pub(crate) fn flush(producer: &LogProducer, limit: Duration) -> Result<(), KafkaError> {
    const PAUSE: Duration = Duration::from_micros(200);
    let began = Instant::now();
    let mut open = producer.in_flight_count();
    loop {
        producer.poll(Duration::ZERO);
        let still = producer.in_flight_count();
        if still == 0 {
            return Ok(());
        }
        if began.elapsed() > limit {
            return Err(KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut));
        }
        if still == open {
            std::thread::sleep(PAUSE);
        }
        open = still;
    }
}

/// Why a record was not taken, or thrown away again: the reason is often another record's, or a partition's, and only the
/// producer knows it, or its transaction. Committing such a transaction never works, and says why.
pub(crate) fn reason(producer: &LogProducer, error: KafkaError) -> KafkaError {
    use RDKafkaErrorCode as Code;
    let is_told = !matches!(code_of(&error), Some(Code::PurgeQueue | Code::PurgeInflight | Code::State | Code::Fatal));
    if is_told {
        return error;
    }
    if let Some((code, why)) = producer.client().fatal_error() {
        tracing::debug!("kafka: {why}");
        return KafkaError::MessageProduction(code);
    }
    match producer.commit_transaction(Duration::from_secs(5)) {
        // A producer without transactions has none to ask.
        Err(why) if !matches!(code_of(&why), Some(Code::State | Code::NotConfigured)) => why,
        _ => error,
    }
}
