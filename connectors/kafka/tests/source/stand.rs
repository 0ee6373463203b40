//! Topics, records, and what comes of them.

use crossfade_connector::{Failure, Inspect, Resume, SnapshotState, Source};
use crossfade_event::{
    Batch, Cell, Change, Event, Mark, Op, Position, Row, SchemaVersion, TableId, TableName, TableSchema,
    catalog::Catalog,
};
use crossfade_kafka::{Connection, DebeziumConfig, DebeziumInspect, DebeziumSource, Handling, UNAVAILABLE};
use crossfade_testkit::{kafka::Kafka, wait::GENEROUS};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    message::{Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// A prefix with topics of a test's own.
pub(crate) struct Stand {
    pub(crate) kafka: &'static Kafka,
    pub(crate) prefix: String,
    producer: BaseProducer,
    admin: AdminClient<DefaultClientContext>,
}

/// One change as Debezium would write it.
#[derive(Clone)]
pub(crate) struct Record {
    pub(crate) op: &'static str,
    pub(crate) key: Option<Value>,
    pub(crate) before: Value,
    pub(crate) after: Value,
    pub(crate) xid: u64,
    pub(crate) lsn: u64,
    pub(crate) order: u64,
    pub(crate) header: Option<&'static str>,
}

impl Record {
    /// A row of `t`, which has a key.
    pub(crate) fn of(op: &'static str, id: i64, text: &str) -> Self {
        let after = if op == "d" { Value::Null } else { json!({"id": id, "x": text}) };
        let before = if op == "d" { json!({"id": id, "x": null}) } else { Value::Null };
        Self { op, key: Some(json!({"id": id})), before, after, xid: 0, lsn: 100, order: 0, header: None }
    }

    /// A row of `loose`, which has none.
    pub(crate) fn loose(op: &'static str, before: Option<&str>, after: Option<&str>) -> Self {
        let image = |text: Option<&str>| text.map_or(Value::Null, |text| json!({"a": 1, "b": text}));
        Self { op, key: None, before: image(before), after: image(after), xid: 0, lsn: 100, order: 0, header: None }
    }

    /// The place in a transaction, which ends at `lsn`.
    pub(crate) fn at(self, xid: u64, lsn: u64, order: u64) -> Self {
        Self { xid, lsn, order, ..self }
    }

    pub(crate) fn with(self, header: &'static str) -> Self {
        Self { header: Some(header), ..self }
    }

    fn value(&self, table: &str) -> Value {
        let transaction = match self.order {
            0 => Value::Null,
            order => {
                json!({"id": format!("{}:{}", self.xid, self.lsn), "total_order": order, "data_collection_order": order})
            }
        };
        let snapshot = if self.op == "r" { "true" } else { "false" };
        json!({
            "before": self.before, "after": self.after, "op": self.op, "transaction": transaction, "ts_ms": 1,
            "source": {
                "version": "3.6.0.Final", "connector": "postgresql", "name": "x", "db": "shop", "schema": "public",
                "table": table, "snapshot": snapshot, "txId": self.xid, "lsn": self.lsn, "ts_ms": 1, "ts_us": 1000,
            },
        })
    }
}

impl Stand {
    /// Topics `t` (with so many partitions), `loose`, and the transactions'.
    pub(crate) async fn new(hint: &str, partitions: i32) -> Option<Self> {
        let kafka = Kafka::shared()?;
        let client = ClientConfig::new().set("bootstrap.servers", kafka.brokers()).clone();
        let prefix = kafka.prefix(hint);
        let stand = Self { kafka, prefix, producer: client.create().unwrap(), admin: client.create().unwrap() };
        for (table, partitions) in [("public.t", partitions), ("public.loose", 1), ("transaction", 1)] {
            stand.make(table, partitions).await;
        }
        Some(stand)
    }

    pub(crate) fn topic(&self, table: &str) -> String {
        format!("{}.{table}", self.prefix)
    }

    pub(crate) async fn make(&self, table: &str, partitions: i32) {
        let name = self.topic(table);
        let topic = NewTopic::new(&name, partitions, TopicReplication::Fixed(1)).set("retention.ms", "-1");
        let made = self.admin.create_topics([&topic], &AdminOptions::new()).await.unwrap();
        made.into_iter().for_each(|made| drop(made.unwrap()));
    }

    /// A topic of a name that was another's; an error while that one is still going.
    pub(crate) async fn made_again(&self, table: &str) -> Result<(), rdkafka::error::RDKafkaErrorCode> {
        let name = self.topic(table);
        let topic = NewTopic::new(&name, 1, TopicReplication::Fixed(1));
        let made = self.admin.create_topics([&topic], &AdminOptions::new()).await.unwrap();
        made.into_iter().try_for_each(|made| made.map(drop).map_err(|(_, code)| code))?;
        // It is announced a moment later.
        let there = || {
            let metadata = self.producer.client().fetch_metadata(Some(&name), Duration::from_secs(30)).unwrap();
            metadata.topics().iter().any(|topic| topic.partitions().len() == 1)
        };
        while !there() {}
        Ok(())
    }

    pub(crate) async fn delete(&self, table: &str) {
        let name = self.topic(table);
        let gone = self.admin.delete_topics(&[&name], &AdminOptions::new()).await.unwrap();
        gone.into_iter().for_each(|gone| drop(gone.unwrap()));
    }

    pub(crate) async fn grow(&self, table: &str, partitions: usize) {
        let name = self.topic(table);
        let grown = rdkafka::admin::NewPartitions::new(&name, partitions);
        let done = self.admin.create_partitions([&grown], &AdminOptions::new()).await.unwrap();
        done.into_iter().for_each(|done| drop(done.unwrap()));
    }

    /// Drops the first records of a topic's first partition.
    pub(crate) async fn expire(&self, table: &str, below: i64) {
        let mut list = rdkafka::TopicPartitionList::new();
        list.add_partition_offset(&self.topic(table), 0, rdkafka::Offset::Offset(below)).unwrap();
        self.admin.delete_records(&list, &AdminOptions::new()).await.unwrap();
    }

    /// Writes changes of a table, with a tombstone behind each deleted row.
    pub(crate) fn write(&self, table: &str, records: impl IntoIterator<Item = Record>) {
        for record in records {
            let value = record.value(table).to_string();
            self.send(&format!("public.{table}"), record.key.as_ref(), Some(&value), record.header);
            if record.op == "d" {
                self.send(&format!("public.{table}"), record.key.as_ref(), None, None);
            }
        }
        self.flush();
    }

    /// The end of a transaction with so many changes in each table.
    pub(crate) fn end(&self, xid: u64, lsn: u64, counts: &[(&str, u64)]) {
        let collections: Vec<Value> = counts
            .iter()
            .map(|(table, count)| json!({"data_collection": format!("public.{table}"), "event_count": count}))
            .collect();
        let id = format!("{xid}:{lsn}");
        let total: u64 = counts.iter().map(|(_, count)| count).sum();
        let began = json!({"status": "BEGIN", "id": id, "event_count": null, "data_collections": null, "ts_ms": 1});
        let ended =
            json!({"status": "END", "id": id, "event_count": total, "data_collections": collections, "ts_ms": 1});
        for mark in [began, ended] {
            self.send("transaction", Some(&json!({"id": id})), Some(&mark.to_string()), None);
        }
        self.flush();
    }

    /// Anything.
    pub(crate) fn send(&self, table: &str, key: Option<&Value>, value: Option<&str>, header: Option<&str>) {
        let (topic, key) = (self.topic(table), key.map(Value::to_string));
        let mut record: BaseRecord<'_, str, str> = BaseRecord::to(&topic);
        if let Some(key) = &key {
            record = record.key(key);
        }
        if let Some(value) = value {
            record = record.payload(value);
        }
        if let Some(header) = header {
            record = record.headers(OwnedHeaders::new().insert(Header { key: header, value: Some("{}") }));
        }
        self.producer.send(record).map_err(|(error, _)| error).unwrap();
    }

    pub(crate) fn flush(&self) {
        self.producer.flush(Duration::from_secs(30)).unwrap();
    }

    pub(crate) fn config(&self, tables: &[&str], transactions: bool) -> DebeziumConfig {
        let types =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(name, type_)| ((*name).into(), (*type_).into())).collect();
        DebeziumConfig {
            connection: Connection::plain(self.kafka.brokers()),
            topic_prefix: self.prefix.clone(),
            tables: tables.iter().map(|table| (*table).to_owned()).collect(),
            transactions: transactions.then(|| self.topic("transaction")),
            unavailable: UNAVAILABLE.to_owned(),
            handling: Handling::default(),
            types: BTreeMap::from([
                ("public.t".to_owned(), types(&[("id", "bigint"), ("x", "text")])),
                ("public.loose".to_owned(), types(&[("a", "integer"), ("b", "text")])),
            ]),
        }
    }

    /// A table's schema, by its catalog.
    pub(crate) fn schema(&self, table: &str, catalog: &Catalog) -> TableSchema {
        let def = catalog.table(&TableName::new("public", table)).unwrap();
        TableSchema {
            id: TableId(1),
            version: SchemaVersion(1),
            name: def.name.clone(),
            columns: def.columns.iter().map(|def| def.column.clone()).collect(),
            identity: def.identity,
            native_id: 0,
        }
    }

    /// A reading from the beginning.
    pub(crate) async fn reading(&self, tables: &[&str], transactions: bool) -> Reading {
        let config = self.config(tables, transactions);
        let mut inspect = DebeziumInspect::new(config.clone(), None);
        let catalog = inspect.catalog(&config.tables).await.unwrap();
        let end = inspect.barrier().await.unwrap().unwrap();
        let mut reading = Reading {
            source: DebeziumSource::new(config, Some(&catalog)),
            resume: Resume::default(),
            schemas: Vec::new(),
            events: Vec::new(),
            parts: 0,
        };
        reading.source.open(Resume::default()).await.unwrap();
        reading.until(end).await;
        reading
    }
}

/// A source, and what came of it.
pub(crate) struct Reading {
    pub(crate) source: DebeziumSource,
    pub(crate) resume: Resume,
    pub(crate) schemas: Vec<Arc<TableSchema>>,
    /// All events of whole batches.
    pub(crate) events: Vec<Event>,
    pub(crate) parts: usize,
}

impl Reading {
    /// The next batch, as a log would take it.
    pub(crate) async fn step(&mut self) -> Result<Batch, Failure> {
        let next = tokio::time::timeout(GENEROUS, self.source.next()).await.expect("a source gives no batch");
        let batch = next?.expect("these topics have no end");
        let positions: Vec<Position> = batch.events.iter().map(|stamped| stamped.position).collect();
        assert!(positions.is_sorted(), "positions go back: {positions:?}");
        if let (Some(before), Some(first)) = (self.resume.position, positions.first()) {
            assert!(*first > before || batch.upto.is_none(), "{first} after {before}");
        }
        for stamped in &batch.events {
            match &stamped.event {
                Event::SchemaSeen(schema) => self.schemas.push(schema.clone()),
                Event::Marked(mark) => self.resume.mark = Some(Mark::clone(mark)),
                Event::BackfillBegan(begun) => {
                    self.resume.snapshot = SnapshotState { generation: begun.generation, ..SnapshotState::default() };
                }
                Event::BackfillEnded { .. } => self.resume.snapshot.ended = true,
                _ => {}
            }
        }
        self.resume.position = batch.upto.or(self.resume.position);
        self.resume.schemas = self.schemas.clone();
        self.parts += usize::from(!batch.whole);
        self.events.extend(batch.events.iter().map(|stamped| stamped.event.clone()));
        Ok(batch)
    }

    /// Reads until everything up to a place is there.
    pub(crate) async fn until(&mut self, end: Position) {
        while self.resume.position.is_none_or(|position| position < end) {
            self.step().await.unwrap_or_else(|failure| panic!("{failure}"));
        }
    }

    /// What stops it.
    pub(crate) async fn failure(&mut self) -> Failure {
        loop {
            if let Err(failure) = self.step().await {
                return failure;
            }
        }
    }

    /// The changes, as words: `+1=a` for an insert, `1=b` for an update, `-1` for a delete, `1>2=…` for a move.
    pub(crate) fn words(&self) -> Vec<String> {
        self.events
            .iter()
            .filter_map(|event| if let Event::Changed(change) = event { Some(word(change)) } else { None })
            .collect()
    }

    /// How many transactions have ended.
    pub(crate) fn transactions(&self) -> usize {
        self.events.iter().filter(|event| **event == Event::Committed).count()
    }
}

/// A row's cells, as words.
pub(crate) fn cells(row: &Row) -> Vec<String> {
    let cell = |cell: Cell<'_>| match cell {
        Cell::Null => "NULL".to_owned(),
        Cell::Unchanged => "same".to_owned(),
        Cell::Absent => "?".to_owned(),
        Cell::Bytes(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
    };
    row.cells().map(cell).collect()
}

fn word(change: &Change) -> String {
    let old = change.old.as_ref().map(cells);
    let new = change.new.as_ref().map(|row| cells(row).join("="));
    match (change.op, old, new) {
        (Op::Insert, None, Some(new)) => format!("+{new}"),
        (Op::Update, None, Some(new)) => new,
        (Op::Update, Some(old), Some(new)) => format!("{}>{new}", old.join("=")),
        (Op::Delete, Some(old), None) => format!("-{}", old.join("=")),
        other => panic!("{other:?}"),
    }
}
