//! `[sink]`: where rows and changes go.

use super::{
    log::{KafkaKind, KafkaSasl, KafkaTls, Retention},
    scalar::{Secret, Span},
    source::{PostgresKind, SqliteKind, ten_seconds},
};
use crossfade_postgres::SslMode;
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::PathBuf;

/// Where rows and changes go.
#[derive(Debug, Clone, JsonSchema)]
#[serde(untagged)]
pub(crate) enum SinkSpec {
    /// A PostgreSQL database.
    Postgres(PostgresSink),
    /// A SQLite file.
    Sqlite(SqliteSink),
    /// Topics of a Kafka cluster, for others to read.
    Kafka(Box<KafkaSink>),
}

/// Where the new shape stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum WriteTo {
    /// Tables of their own: another schema, database or system.
    #[default]
    ShadowTables,
    /// Columns beside the old ones, in the source's own tables.
    ShadowColumns,
}

/// How changes are applied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Apply {
    /// Whole source transactions in their order: readers see only states that the source had.
    #[default]
    Transactional,
    /// Several connections, each with its share of the keys: order per key only.
    Parallel,
}

/// What happens with a change that cannot be applied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OnError {
    /// It is held, with all later changes of its key; everything else goes on.
    #[default]
    Quarantine,
    /// The migration stops.
    Stop,
}

/// What happens with target tables that hold rows of somebody else's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Existing {
    /// Nothing is written into them.
    #[default]
    Refuse,
    /// They are written into; what is overwritten is kept for `rollback --undo`.
    Merge,
}

/// A PostgreSQL database as the sink.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PostgresSink {
    /// Always `postgres`.
    #[expect(dead_code, reason = "it chooses the type, and has done so when it is read")]
    pub(crate) kind: PostgresKind,
    /// `postgres://user:password@host:port/database`, the password through `${NAME}`. May be the source's own: then
    /// another schema, or shadow columns, tells new from old.
    pub(crate) url: Secret,
    /// How the connection is secured; `verify-full` unless said otherwise here or in the URL.
    pub(crate) sslmode: Option<SslMode>,
    /// The authority's certificate, a PEM file; the system's authorities unless said.
    pub(crate) sslrootcert: Option<PathBuf>,
    /// Our own certificate, a PEM file.
    pub(crate) sslcert: Option<PathBuf>,
    /// Its key, a PEM file.
    pub(crate) sslkey: Option<PathBuf>,
    /// Where the new shape stands; `[[table]]` may say otherwise.
    #[serde(default)]
    pub(crate) write: WriteTo,
    /// The schema of all target tables; the source's schemas unless said.
    pub(crate) schema: Option<String>,
    /// How changes are applied.
    #[serde(default)]
    pub(crate) apply: Apply,
    /// How many connections `apply = "parallel"` uses, 1 to 64.
    #[schemars(range(min = 1, max = 64))]
    pub(crate) workers: Option<u32>,
    /// What happens with a change that cannot be applied.
    #[serde(default)]
    pub(crate) on_error: OnError,
    /// What happens with target tables that hold rows of somebody else's.
    #[serde(default)]
    pub(crate) existing: Existing,
}

/// A SQLite file as the sink.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SqliteSink {
    /// Always `sqlite`.
    #[expect(dead_code, reason = "it chooses the type, and has done so when it is read")]
    pub(crate) kind: SqliteKind,
    /// The database file; made if it does not exist.
    pub(crate) path: PathBuf,
    /// Where the new shape stands; a SQLite file has no shadow columns.
    #[serde(default)]
    pub(crate) write: WriteTo,
    /// How changes are applied; a SQLite file has one writer.
    #[serde(default)]
    pub(crate) apply: Apply,
    /// What happens with a change that cannot be applied.
    #[serde(default)]
    pub(crate) on_error: OnError,
    /// What happens with target tables that hold rows of somebody else's.
    #[serde(default)]
    pub(crate) existing: Existing,
    /// How long a locked database is waited for.
    #[serde(default = "ten_seconds")]
    pub(crate) busy_timeout: Span,
}

/// In which form records are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SinkFormat {
    /// Debezium's envelope as JSON.
    #[default]
    DebeziumJson,
}

/// How numbers of any scale are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SinkDecimal {
    /// Bytes with the scale; NaN and the infinities go to quarantine.
    #[default]
    Precise,
    /// Texts: every value has one.
    String,
}

/// What is told of each change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum WriteRecords {
    /// The row as the plan makes it, under its new key.
    #[default]
    ShadowTables,
    /// Both key versions: the row as the source has it, under the source's key, and the row as the plan makes it, under its
    /// new one.
    DualRecords,
}

/// Where the two key versions of `write = "dual-records"` stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DualLayout {
    /// In two topics, `PREFIX.schema.table.v1` and `PREFIX.schema.table.v2`, written in one transaction of Kafka.
    #[default]
    TwoTopics,
    /// In one record, whose key and images have a part for each version.
    OneRecord,
}

/// What a topic keeps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Cleanup {
    /// Everything, or what `retention` says.
    #[default]
    Delete,
    /// The last record of each key.
    Compact,
}

/// Topics of a Kafka cluster, for others to read.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[cfg_attr(
    not(feature = "kafka"),
    expect(dead_code, reason = "read, checked and then refused in a build without Kafka")
)]
pub(crate) struct KafkaSink {
    /// Always `kafka`.
    #[expect(dead_code, reason = "it chooses the type, and has done so when it is read")]
    pub(crate) kind: KafkaKind,
    /// `host:port`, several with commas between.
    pub(crate) brokers: String,
    /// A table's topic is `PREFIX.schema.table`; the sink's own is `PREFIX.crossfade`. No two migrations share one.
    pub(crate) topic_prefix: String,
    /// In which form records are written.
    #[serde(default)]
    pub(crate) format: SinkFormat,
    /// What is told of each change; `[[table]]` may say otherwise.
    #[serde(default)]
    pub(crate) write: WriteRecords,
    /// Where the two key versions of `write = "dual-records"` stand.
    #[serde(default)]
    pub(crate) layout: DualLayout,
    /// Whether each record carries the schema that Kafka Connect's JSON converter reads.
    #[serde(default = "yes")]
    pub(crate) schemas: bool,
    /// Whether transactions are told: in the topic `PREFIX.transaction`, and in each record.
    #[serde(default)]
    pub(crate) transactions: bool,
    /// How numbers of any scale are written.
    #[serde(default)]
    pub(crate) decimal: SinkDecimal,
    /// The schema that tables are said to be in; the source's schemas unless said.
    pub(crate) schema: Option<String>,
    /// Partitions of a table's topic; four unless said.
    #[schemars(range(min = 1, max = 1000))]
    pub(crate) partitions: Option<u32>,
    /// Copies of each partition; three, or as many as there are brokers, unless said.
    #[schemars(range(min = 1))]
    pub(crate) replication: Option<u16>,
    /// How many copies must have a record before it counts; two where there are three copies, else one, unless said.
    #[schemars(range(min = 1))]
    pub(crate) min_insync_replicas: Option<u16>,
    /// What a topic keeps.
    #[serde(default)]
    pub(crate) cleanup: Cleanup,
    /// When the broker drops records; without it all are kept.
    #[serde(default)]
    pub(crate) retention: Retention,
    /// What happens with a change that cannot be written.
    #[serde(default)]
    pub(crate) on_error: OnError,
    /// TLS; without it everything travels in the clear. `tls = {}` trusts the system's authorities.
    pub(crate) tls: Option<KafkaTls>,
    /// Who we are.
    pub(crate) sasl: Option<KafkaSasl>,
}

fn yes() -> bool {
    true
}
