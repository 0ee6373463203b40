//! `[source]`: where rows and changes come from.

use super::{
    log::{KafkaSasl, KafkaTls},
    scalar::{Secret, Span},
};
use crossfade_postgres::SslMode;
use crossfade_sqlite::OldRows;
use schemars::JsonSchema;
use serde::Deserialize;
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// Where rows and changes come from.
#[derive(Debug, Clone, JsonSchema)]
#[serde(untagged)]
pub(crate) enum SourceSpec {
    /// A PostgreSQL database, by logical replication.
    Postgres(PostgresSource),
    /// A SQLite file, by triggers.
    Sqlite(SqliteSource),
    /// Topics that Debezium's PostgreSQL connector writes.
    Debezium(Box<DebeziumSource>),
}

impl SourceSpec {
    /// Whether partition trees are moved as one table.
    pub(crate) fn by_root(&self) -> bool {
        matches!(self, Self::Postgres(source) if source.partitions == Partitions::Root)
    }

    /// The table patterns.
    pub(crate) fn tables(&self) -> &[String] {
        match self {
            Self::Postgres(source) => &source.tables,
            Self::Sqlite(source) => &source.tables,
            Self::Debezium(source) => &source.tables,
        }
    }
}

/// `kind = "postgres"`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PostgresKind {
    /// PostgreSQL 14 or later.
    #[default]
    Postgres,
}

/// `kind = "sqlite"`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SqliteKind {
    /// SQLite 3.
    #[default]
    Sqlite,
}

/// What is done when a table is retyped or rewritten by DDL.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OnRewrite {
    /// The table is copied again.
    #[default]
    Snapshot,
    /// The migration stops and says what to do.
    Stop,
}

/// How a partition tree is moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Partitions {
    /// Leaf by leaf, into a tree of the same shape.
    #[default]
    Leaf,
    /// As one table, under its root's name.
    Root,
}

/// How the copy of existing rows is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Snapshot {
    /// How many chunks are read at once, 1 to 64.
    #[serde(default = "four")]
    #[schemars(range(min = 1, max = 64))]
    pub(crate) workers: u32,
    /// About how many rows a chunk has.
    #[serde(default = "quarter_million")]
    #[schemars(range(min = 100))]
    pub(crate) chunk_rows: u64,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self { workers: four(), chunk_rows: quarter_million() }
    }
}

fn four() -> u32 {
    4
}

fn quarter_million() -> u64 {
    250_000
}

/// A PostgreSQL database as the source.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PostgresSource {
    /// Always `postgres`.
    #[expect(dead_code, reason = "it chooses the type, and has done so when it is read")]
    pub(crate) kind: PostgresKind,
    /// `postgres://user:password@host:port/database`, the password through `${NAME}`.
    pub(crate) url: Secret,
    /// How the connection is secured; `verify-full` unless said otherwise here or in the URL.
    pub(crate) sslmode: Option<SslMode>,
    /// The authority's certificate, a PEM file; the system's authorities unless said.
    pub(crate) sslrootcert: Option<PathBuf>,
    /// Our own certificate, a PEM file.
    pub(crate) sslcert: Option<PathBuf>,
    /// Its key, a PEM file.
    pub(crate) sslkey: Option<PathBuf>,
    /// Which tables: `schema.table` with `*` and `?`; `!` in front excludes; later patterns win.
    #[schemars(length(min = 1))]
    pub(crate) tables: Vec<String>,
    /// How the copy of existing rows is cut.
    #[serde(default)]
    pub(crate) snapshot: Snapshot,
    /// What is done when a table is retyped or rewritten by DDL.
    #[serde(default)]
    pub(crate) on_rewrite: OnRewrite,
    /// Whether a partition tree is moved leaf by leaf, or as one table under its root's name.
    #[serde(default)]
    pub(crate) partitions: Partitions,
    /// How often a mark is written into an idle source, so that it need not keep its WAL; `0s` for never.
    #[serde(default = "ten_seconds")]
    pub(crate) heartbeat: Span,
    /// Whether standbys synchronise the slot (PostgreSQL 17 and later), so that it survives a failover.
    #[serde(default)]
    pub(crate) failover: bool,
    /// Whether everything is read in its text form, also where the binary form would do.
    #[serde(default)]
    pub(crate) text: bool,
}

/// A SQLite file as the source.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SqliteSource {
    /// Always `sqlite`.
    #[expect(dead_code, reason = "it chooses the type, and has done so when it is read")]
    pub(crate) kind: SqliteKind,
    /// The database file.
    pub(crate) path: PathBuf,
    /// Which tables: `main.table` with `*` and `?`; `!` in front excludes; later patterns win.
    #[schemars(length(min = 1))]
    pub(crate) tables: Vec<String>,
    /// How the copy of existing rows is cut.
    #[serde(default)]
    pub(crate) snapshot: Snapshot,
    /// How much of a changed row's former self is recorded: `full` where a filter or a new key needs columns that are
    /// not part of the key.
    #[serde(default)]
    pub(crate) old_rows: OldRows,
    /// How long a locked database is waited for.
    #[serde(default = "ten_seconds")]
    pub(crate) busy_timeout: Span,
}

/// `kind = "debezium"`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DebeziumKind {
    /// Topics that Debezium's PostgreSQL connector writes.
    Debezium,
}

/// The connector's `decimal.handling.mode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DecimalHandling {
    /// Bytes with the scale: every digit.
    #[default]
    Precise,
    /// Floats: digits are lost.
    Double,
    /// Texts.
    String,
}

/// The connector's `time.precision.mode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TimePrecision {
    /// Milliseconds where the column has no finer ones, else microseconds.
    #[default]
    Adaptive,
    /// The same, but for times of day, which are always in microseconds.
    AdaptiveTimeMicroseconds,
    /// Kafka Connect's own types: milliseconds.
    Connect,
    /// ISO 8601.
    Isostring,
    /// Microseconds everywhere.
    Microseconds,
    /// Nanoseconds everywhere.
    Nanoseconds,
}

/// The connector's `binary.handling.mode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum BinaryHandling {
    /// Bytes, which JSON writes as base64.
    #[default]
    Bytes,
    /// The same as a text.
    Base64,
    /// base64 with `-` and `_`.
    Base64UrlSafe,
    /// Hexadecimal digits.
    Hex,
}

/// Topics that Debezium's PostgreSQL connector writes, as the source.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[cfg_attr(
    not(feature = "kafka"),
    expect(dead_code, reason = "read, checked and then refused in a build without Kafka")
)]
pub(crate) struct DebeziumSource {
    /// Always `debezium`.
    #[expect(dead_code, reason = "it chooses the type, and has done so when it is read")]
    pub(crate) kind: DebeziumKind,
    /// `host:port`, several with commas between.
    pub(crate) brokers: String,
    /// The connector's `topic.prefix`: a table's topic is `PREFIX.schema.table`.
    pub(crate) topic_prefix: String,
    /// Which tables: `schema.table` with `*` and `?`; `!` in front excludes; later patterns win.
    #[schemars(length(min = 1))]
    pub(crate) tables: Vec<String>,
    /// The topic of transactions' marks, `PREFIX.transaction`, where the connector has `provide.transaction.metadata`; without
    /// it each record is a transaction of its own.
    pub(crate) transactions: Option<String>,
    /// The connector's `unavailable.value.placeholder`; `__debezium_unavailable_value` unless said.
    pub(crate) unavailable_value: Option<String>,
    /// The connector's `decimal.handling.mode`; asked only where records have no schema.
    #[serde(default)]
    pub(crate) decimal_handling: DecimalHandling,
    /// The connector's `time.precision.mode`; asked only where records have no schema.
    #[serde(default)]
    pub(crate) time_precision: TimePrecision,
    /// The connector's `binary.handling.mode`; asked where records have no schema, and where bytes come as texts.
    #[serde(default)]
    pub(crate) binary_handling: BinaryHandling,
    /// Types of columns, by table: `[source.types."public.orders"]`, then `total = "numeric(10,2)"`. They count before those
    /// of the target's table, and those before what the records say.
    #[serde(default)]
    pub(crate) types: BTreeMap<String, BTreeMap<String, String>>,
    /// TLS; without it everything travels in the clear. `tls = {}` trusts the system's authorities.
    pub(crate) tls: Option<KafkaTls>,
    /// Who we are.
    pub(crate) sasl: Option<KafkaSasl>,
}

pub(super) fn ten_seconds() -> Span {
    Span(Duration::from_secs(10))
}
