//! Debezium's topics as a source: how a spec names them, and what is asked of them together with the target, whose tables
//! know types that the records do not say.

use crate::{
    error::CliError,
    event_log::kafka::connection,
    run::PlanFile,
    spec::{
        BinaryHandling, DebeziumSource as Keys, DecimalHandling, SinkSpec, Spec, TimePrecision as TimePrecisionKey,
    },
};
use crossfade_connector::{Failure, Inspect, RowPage, Verdict};
use crossfade_event::{
    Key, Position, Row, TableName, TableSchema,
    catalog::{Catalog, Dialect},
};
use crossfade_kafka::{
    BinaryMode, DebeziumConfig, DebeziumInspect, DebeziumSource, DecimalMode, Handling, TimePrecision, UNAVAILABLE,
};
use crossfade_postgres::PostgresInspect;
use crossfade_transform::{Fidelity, Note};

/// Every table of a database.
const EVERYTHING: &str = "*.*";

fn config(keys: &Keys) -> DebeziumConfig {
    let handling = Handling {
        decimal: match keys.decimal_handling {
            DecimalHandling::Precise => DecimalMode::Precise,
            DecimalHandling::Double => DecimalMode::Double,
            DecimalHandling::String => DecimalMode::String,
        },
        time: match keys.time_precision {
            TimePrecisionKey::Adaptive => TimePrecision::Adaptive,
            TimePrecisionKey::AdaptiveTimeMicroseconds => TimePrecision::AdaptiveTimeMicroseconds,
            TimePrecisionKey::Connect => TimePrecision::Connect,
            TimePrecisionKey::Isostring => TimePrecision::IsoString,
            TimePrecisionKey::Microseconds => TimePrecision::Microseconds,
            TimePrecisionKey::Nanoseconds => TimePrecision::Nanoseconds,
        },
        binary: match keys.binary_handling {
            BinaryHandling::Bytes => BinaryMode::Bytes,
            BinaryHandling::Base64 => BinaryMode::Base64,
            BinaryHandling::Base64UrlSafe => BinaryMode::Base64UrlSafe,
            BinaryHandling::Hex => BinaryMode::Hex,
        },
    };
    DebeziumConfig {
        connection: connection(&keys.brokers, keys.tls.as_ref(), keys.sasl.as_ref()),
        topic_prefix: keys.topic_prefix.clone(),
        tables: keys.tables.clone(),
        transactions: keys.transactions.clone(),
        unavailable: keys.unavailable_value.clone().unwrap_or_else(|| UNAVAILABLE.to_owned()),
        handling,
        types: keys.types.clone(),
    }
}

/// The tables of a migration that has begun.
fn begun(spec: &Spec) -> Result<Option<Catalog>, CliError> {
    Ok(PlanFile::read(&spec.base())?.map(|plan| plan.catalog))
}

/// The source of a spec; not connected yet.
pub(super) fn source(spec: &Spec, keys: &Keys) -> Result<DebeziumSource, CliError> {
    Ok(DebeziumSource::new(config(keys), begun(spec)?.as_ref()))
}

/// Asks the topics, and the target for types.
pub(crate) struct Asking {
    topics: DebeziumInspect,
    /// A PostgreSQL target, and the schema that all its tables are in, where the spec says one.
    target: Option<(Box<PostgresInspect>, Option<String>)>,
}

impl Asking {
    pub(super) fn new(spec: &Spec, keys: &Keys) -> Result<Self, CliError> {
        let target = match &spec.sink {
            SinkSpec::Postgres(sink) => {
                Some((Box::new(PostgresInspect::new(super::sink_connection(sink)?)), sink.schema.clone()))
            }
            SinkSpec::Sqlite(_) | SinkSpec::Kafka(_) => None,
        };
        Ok(Self { topics: DebeziumInspect::new(config(keys), begun(spec)?.as_ref()), target })
    }

    pub(super) fn losses(&self) -> Vec<Note> {
        let note = |loss: &crossfade_kafka::Loss| Note {
            table: loss.table.clone(),
            column: Some(loss.column.clone()),
            fidelity: Fidelity::Lossy,
            text: loss.text.clone(),
        };
        self.topics.losses().iter().map(note).collect()
    }
}

impl Inspect for Asking {
    async fn catalog(&mut self, patterns: &[String]) -> Result<Catalog, Failure> {
        if let Some((target, schema)) = &mut self.target {
            let known = match target.catalog(&[EVERYTHING.to_owned()]).await {
                Ok(catalog) => catalog,
                // It has no tables yet.
                Err(failure) if matches!(failure.verdict, Verdict::Misconfigured { .. }) => none(),
                Err(failure) => return Err(failure),
            };
            self.topics.know_target(known, schema.clone());
        }
        self.topics.catalog(patterns).await
    }

    async fn scan(&mut self, schema: &TableSchema) -> Result<Option<Position>, Failure> {
        self.topics.scan(schema).await
    }

    async fn scan_next(&mut self) -> Result<RowPage, Failure> {
        self.topics.scan_next().await
    }

    async fn fetch(&mut self, schema: &TableSchema, keys: &[Key]) -> Result<(Vec<Row>, Option<Position>), Failure> {
        self.topics.fetch(schema, keys).await
    }

    async fn barrier(&mut self) -> Result<Option<Position>, Failure> {
        self.topics.barrier().await
    }

    async fn count(&mut self, table: &TableName) -> Result<u64, Failure> {
        self.topics.count(table).await
    }
}

fn none() -> Catalog {
    Catalog {
        dialect: Dialect::Postgres,
        tables: Vec::new(),
        types: Vec::new(),
        sequences: Vec::new(),
        extensions: Vec::new(),
    }
}
