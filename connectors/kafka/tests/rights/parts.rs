//! What each part of a migration does with brokers, from its beginning to its end.

use super::Ended;
use bytes::Bytes;
use crossfade_connector::{
    Delivery, Guard, Inspect, Progress, Refusal, Resume, Sink, Source, Stage as SinkStage, Target, TargetTable, Write,
    WriteMode,
};
use crossfade_event::{
    Cell, Change, Column, ColumnType, Cut, Event, Format, Identity, Logical, Offset, Op, Position, RowBuilder,
    SchemaVersion, Sequence, SourceId, TableId, TableName, TableSchema, Version,
    catalog::{Catalog, ColumnDef, Dialect, KeyDef, TableDef},
};
use crossfade_kafka::{
    Connection, DebeziumConfig, DebeziumInspect, DebeziumSource, Handling, KafkaSink, LogOptions, SinkConfig,
    UNAVAILABLE, Workers,
    log::{KafkaLog, KafkaReader, Make, Share, delete},
};
use crossfade_log::{Entry, EventLog, Lane, LogError, LogReader};
use crossfade_testkit::{
    kafka::{Kafka, Right},
    log_suite,
};
use rdkafka::{
    ClientConfig, Message, Offset as Place, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tempfile::TempDir;

const CHANGES: usize = 20;
const PARTITIONS: u32 = 2;

/// Topics of one case's own, made by somebody who may do everything.
pub(crate) struct Stage {
    pub(crate) prefix: String,
    all: Connection,
    folder: TempDir,
}

/// Makes of each change a word.
struct Echo;

impl Make for Echo {
    fn take(&mut self, entry: &Entry) -> Result<Option<Bytes>, LogError> {
        Ok(matches!(entry.event, Event::Changed(_)).then(|| Bytes::from_static(b"made")))
    }

    fn followed(&self) -> Vec<(TableId, SchemaVersion)> {
        Vec::new()
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

impl Stage {
    pub(crate) async fn set(kafka: &Kafka, who: &str) -> Self {
        let prefix = kafka.prefix(who.split(' ').next_back().unwrap_or_default());
        let all = Connection::plain(kafka.brokers_inside());
        let stage = Self { prefix, all, folder: tempfile::tempdir().unwrap() };
        let all = stage.all.clone();
        let set: Result<(), Ended> = match who {
            "transform" | "look" | "wipe" => stage.ingest(all).await,
            "deliver" => match stage.ingest(all.clone()).await {
                Ok(()) => stage.transform(all).await,
                ended => ended,
            },
            "topics as the source" => stage.sink(all).await,
            _ => Ok(()),
        };
        set.unwrap_or_else(|ended| panic!("the stage of {who} cannot be set: {}", ended.said));
        stage
    }

    /// A right with the names of this stage.
    pub(crate) fn placed(&self, right: &Right) -> Right {
        right.with(&[("<prefix>", &self.prefix), ("<sink>", &self.prefix), ("<source>", &self.prefix)])
    }

    /// Begins, and goes on where it had come to.
    pub(crate) async fn play(&self, who: &str, connection: Connection) -> Result<(), Ended> {
        self.once(who, connection.clone()).await?;
        match who {
            "ingest" | "transform" | "topics as the sink" => self.once(who, connection).await,
            _ => Ok(()),
        }
    }

    async fn once(&self, who: &str, connection: Connection) -> Result<(), Ended> {
        match who {
            "ingest" => self.ingest(connection).await,
            "transform" => self.transform(connection).await,
            "deliver" => self.deliver(connection).await,
            "look" => self.look(connection).await,
            "wipe" => self.wipe(connection).await,
            "topics as the sink" => self.sink(connection).await,
            "topics as the source" => self.source(connection).await,
            other => panic!("nobody knows what {other:?} does"),
        }
    }

    fn options(&self, connection: Connection) -> LogOptions {
        LogOptions {
            partitions: Some(PARTITIONS),
            workers: Some(Workers { silent: Duration::from_secs(6) }),
            pin: Some(self.folder.path().join("topics.json")),
            ..LogOptions::new(connection, self.prefix.as_str())
        }
    }

    async fn ingest(&self, connection: Connection) -> Result<(), Ended> {
        let options = self.options(connection);
        let log = blocking(move || KafkaLog::open(options)).await?;
        if log.tail().position.is_some() {
            return Ok(());
        }
        let seen = Event::SchemaSeen(log_suite::schema(1, 1));
        log.append(log_suite::batch(1, vec![seen], None, true)).await?;
        for number in 0..CHANGES {
            let change = log_suite::insert(&format!("key {number}"), "v");
            log.append(log_suite::transaction(number as u64 + 2, vec![change])).await?;
        }
        // Whoever goes on with a log reads it.
        read(log.read(&log.start(), Lane::All)?).await?;
        let said = log.clone();
        blocking(move || said.say_head("what it is")).await?;
        Ok(())
    }

    async fn transform(&self, connection: Connection) -> Result<(), Ended> {
        let options = self.options(connection);
        let worked = blocking(move || {
            KafkaLog::head(&options)?;
            let log = KafkaLog::open_following(options)?;
            let stop = AtomicBool::new(false);
            let tell = |share: Share| {
                log.tell("transform", share.partitions.clone(), 0, None);
                let is_done = share.partitions.len() == PARTITIONS as usize
                    && share.partitions.values().all(|before| *before == 0);
                stop.store(is_done, Relaxed);
            };
            log.transform(Arc::new(|_| Ok(Box::new(Echo) as Box<dyn Make>)), &stop, &tell)
        });
        Ok(worked.await?)
    }

    async fn deliver(&self, connection: Connection) -> Result<(), Ended> {
        let options = self.options(connection);
        let log = blocking(move || {
            KafkaLog::head(&options)?;
            KafkaLog::adopt(&options)?;
            let log = KafkaLog::open_following(options)?;
            log.take_turn().map(|_| log)
        })
        .await?;
        let (seen, made) = read(log.read_made(&log.start(), Lane::All)?).await?;
        assert_eq!(made, CHANGES, "what workers have made comes along");
        log.hold("deliver", &seen)?;
        blocking(move || drop(log)).await;
        Ok(())
    }

    async fn look(&self, connection: Connection) -> Result<(), Ended> {
        let options = self.options(connection);
        let log = blocking(move || KafkaLog::open_read_only(options)).await?;
        read(log.read(&log.start(), Lane::All)?).await?;
        blocking(move || log.look_again().map(drop)).await?;
        Ok(())
    }

    async fn wipe(&self, connection: Connection) -> Result<(), Ended> {
        let options = self.options(connection);
        let deleted = blocking(move || delete(&options)).await?;
        assert_eq!(deleted.len(), 3, "{deleted:?}");
        Ok(())
    }

    async fn sink(&self, connection: Connection) -> Result<(), Ended> {
        let config = SinkConfig { partitions: Some(2), ..SinkConfig::new(connection, "rights", self.prefix.as_str()) };
        let mut sink = KafkaSink::new(config);
        let target = target();
        unless_refused(sink.preflight(&target).await?)?;
        sink.prepare(&target).await?;
        sink.progress().await?;
        let upto = Progress {
            cut: Cut::single(Offset(2)),
            stage: SinkStage::Streaming,
            generation: 1,
            stream_from: Cut::single(Offset(0)),
            sequence: None,
            position: Some(Position { source: SourceId(7), timeline: 0, commit: 1, ordinal: 0 }),
            schemas: Vec::new(),
        };
        let mut row = RowBuilder::with_capacity(2, 16);
        row.push(Cell::Bytes(b"1"));
        row.push(Cell::Bytes(b"one"));
        let new = Some(row.finish());
        let change = Change { table: TableId(1), schema: SchemaVersion(1), op: Op::Insert, old: None, new };
        let at = Version { sequence: Sequence(1), ordinal: 0 };
        let writes = vec![Write::Change { at, change }];
        sink.apply(Delivery { writes, upto: upto.clone(), commits: true }, Guard::Forward).await?;
        assert_eq!(sink.progress().await?, Some(upto));
        Ok(())
    }

    async fn source(&self, connection: Connection) -> Result<(), Ended> {
        let types = [("id", "bigint"), ("name", "text")].map(|(name, type_)| (name.to_owned(), type_.to_owned()));
        let config = DebeziumConfig {
            connection,
            topic_prefix: self.prefix.clone(),
            tables: vec!["app.parent".to_owned()],
            transactions: None,
            unavailable: UNAVAILABLE.to_owned(),
            handling: Handling::default(),
            types: BTreeMap::from([("app.parent".to_owned(), BTreeMap::from(types))]),
        };
        let mut inspect = DebeziumInspect::new(config.clone(), None);
        let catalog = inspect.catalog(&config.tables).await?;
        let mut source = DebeziumSource::new(config, Some(&catalog));
        unless_refused(source.preflight().await?)?;
        source.open(Resume::default()).await?;
        loop {
            let batch = source.next().await?;
            let events = batch.iter().flat_map(|batch| &batch.events);
            if events.into_iter().any(|stamped| matches!(stamped.event, Event::Changed(_))) {
                return Ok(());
            }
        }
    }

    /// A log that one writes, and another reads to its end.
    pub(crate) async fn written_and_read(&self, writes: Connection, follows: Connection) -> (KafkaLog, KafkaReader) {
        self.ingest(writes.clone()).await.unwrap_or_else(|ended| panic!("{}", ended.said));
        let (writes, follows) = (self.options(writes), self.options(follows));
        let writer = blocking(move || KafkaLog::open(writes)).await.unwrap();
        let follower = blocking(move || KafkaLog::open_following(follows)).await.unwrap();
        let mut reader = follower.read(&follower.start(), Lane::All).unwrap();
        for _ in 0..CHANGES {
            log_suite::soon("what is there", reader.next()).await.unwrap();
        }
        (writer, reader)
    }

    /// Whether a worker has said that it is there, and taken that back when it ended: records that nobody reads otherwise.
    pub(crate) fn was_shown(&self) -> bool {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.all.brokers).set("group.id", "tests");
        let consumer: BaseConsumer = config.set("enable.partition.eof", "true").create().unwrap();
        let mut all = TopicPartitionList::new();
        all.add_partition_offset(&format!("{}.meta", self.prefix), 0, Place::Beginning).unwrap();
        consumer.assign(&all).unwrap();
        loop {
            match consumer.poll(Duration::from_secs(30)).expect("the broker answers") {
                Err(KafkaError::PartitionEOF(_)) => return false,
                Err(error) => panic!("{error}"),
                Ok(message) if message.key().is_some_and(|key| key.starts_with(b"process/")) => return true,
                Ok(_) => {}
            }
        }
    }

    /// The places that are committed for the sink.
    pub(crate) fn committed(&self) -> Option<Vec<i64>> {
        let group = format!("{}.deliver", self.prefix);
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.all.brokers).set("group.id", group);
        let consumer: BaseConsumer = config.create().unwrap();
        let mut asked = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            asked.add_partition(&format!("{}.changes", self.prefix), partition as i32);
        }
        let found = consumer.committed_offsets(asked, Duration::from_secs(30)).unwrap();
        let place = |place: Place| if let Place::Offset(at) = place { Some(at) } else { None };
        found.elements().iter().map(|element| place(element.offset())).collect()
    }
}

/// What a preflight finds ends the program as a missing right does.
fn unless_refused(found: Vec<Refusal>) -> Result<(), Ended> {
    match found.into_iter().find(|refusal| refusal.fatal) {
        Some(Refusal { problem, remedy, .. }) => Err(Ended { said: format!("{problem}. {remedy}"), denied: true }),
        None => Ok(()),
    }
}

/// Reads all changes; where the reader stands then, and how many of them workers had made.
async fn read(mut reader: KafkaReader) -> Result<(Cut, usize), LogError> {
    let (mut seen, mut made, mut next) = (0, 0, Cut::default());
    while seen < CHANGES {
        let entries = reader.next().await?;
        for entry in entries.entries.iter().filter(|entry| matches!(entry.event, Event::Changed(_))) {
            seen += 1;
            made += usize::from(reader.made(entry.sequence).is_some());
        }
        next = entries.next;
    }
    Ok((next, made))
}

/// A table of two columns.
fn target() -> Target {
    let column = |(name, logical, pg, is_key): (&str, Logical, &str, bool)| Column {
        name: name.into(),
        type_: ColumnType { name: pg.into(), native_id: 0, logical, format: Format::PgText },
        key: is_key.then_some(0),
        nullable: !is_key,
        native_id: 0,
        default: None,
    };
    let columns: Vec<Column> =
        [("id", Logical::Int64, "bigint", true), ("name", Logical::Text, "text", false)].map(column).to_vec();
    let name = TableName::new("app", "parent");
    let key = KeyDef::plain("parent_pkey".to_owned(), vec!["id".to_owned()]);
    let plain = columns.iter().cloned().map(ColumnDef::plain).collect();
    let def = TableDef::plain(name.clone(), Identity::Key, plain, Some(key));
    let (id, version) = (TableId(1), SchemaVersion(1));
    let schema = TableSchema { id, version, name, columns, identity: Identity::Key, native_id: 0 };
    let support = Catalog {
        dialect: Dialect::Postgres,
        tables: Vec::new(),
        types: Vec::new(),
        sequences: Vec::new(),
        extensions: Vec::new(),
    };
    let tables = vec![TargetTable { schema: Arc::new(schema), def, mode: WriteMode::Table }];
    Target { migration: "rights".to_owned(), epoch: 1, tables, support, into_existing: false }
}
