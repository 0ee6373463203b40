//! `[log]`: the event log between source and sink.

use super::scalar::{Secret, Size, Span};
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::PathBuf;

/// The event log between source and sink.
#[derive(Debug, Clone, JsonSchema)]
#[serde(untagged)]
pub(crate) enum LogSpec {
    /// Segment files in the migration's folder.
    Embedded(EmbeddedLog),
    /// Topics of a Kafka cluster.
    Kafka(Box<KafkaLog>),
}

impl Default for LogSpec {
    fn default() -> Self {
        Self::Embedded(EmbeddedLog::default())
    }
}

/// `kind = "embedded"`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum EmbeddedKind {
    /// Segment files in the migration's folder.
    #[default]
    Embedded,
}

/// Segment files in the migration's folder.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EmbeddedLog {
    /// `embedded`, unless it is left out.
    #[serde(default)]
    #[expect(dead_code, reason = "it chooses the type, and has done so when it is read")]
    pub(crate) kind: EmbeddedKind,
    /// How long entries are kept; entries that the sink has not taken yet are always kept.
    #[serde(default)]
    pub(crate) retention: Retention,
    /// How large a segment file grows; 64MiB unless said.
    pub(crate) segment_bytes: Option<Size>,
}

/// Entries go once they are past either limit. Without any, all are kept: a replay may begin anywhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Retention {
    /// Entries older than this may go.
    pub(crate) time: Option<Span>,
    /// The oldest entries may go while the log is larger than this.
    pub(crate) bytes: Option<Size>,
}

/// `kind = "kafka"`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum KafkaKind {
    /// Topics of a Kafka cluster.
    Kafka,
}

/// How entries are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Format {
    /// Crossfade's own records.
    #[default]
    Native,
}

/// Who transforms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Transformer {
    /// Whoever delivers.
    #[default]
    Deliver,
    /// Processes of their own, any number of them: `crossfade run --role transform`.
    Workers,
}

/// Topics of a Kafka cluster.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[cfg_attr(
    not(feature = "kafka"),
    expect(dead_code, reason = "read, checked and then refused in a build without Kafka")
)]
pub(crate) struct KafkaLog {
    /// Always `kafka`.
    #[expect(dead_code, reason = "it chooses the type, and has done so when it is read")]
    pub(crate) kind: KafkaKind,
    /// `host:port`, several with commas between.
    pub(crate) brokers: String,
    /// The topics are `PREFIX.changes` and `PREFIX.meta`; `crossfade_` and the migration's name unless said. No two
    /// migrations share one.
    pub(crate) topic_prefix: Option<String>,
    /// Partitions of the topic of changes, fixed for the log's life; changes of one key are in one of them. Unless said,
    /// those that the topic has, and eight for one that is made.
    #[schemars(range(min = 1, max = 1000))]
    pub(crate) partitions: Option<u32>,
    /// Copies of each partition; three, or as many as there are brokers, unless said.
    #[schemars(range(min = 1))]
    pub(crate) replication: Option<u16>,
    /// How many copies must have an entry before it counts; two where there are three copies, else one, unless said.
    #[schemars(range(min = 1))]
    pub(crate) min_insync_replicas: Option<u16>,
    /// When the broker drops entries. It asks nobody: what the sink still needed is lost then.
    #[serde(default)]
    pub(crate) retention: Retention,
    /// How large a segment file of the topic grows; the broker's own default unless said.
    pub(crate) segment_bytes: Option<Size>,
    /// How entries are written.
    #[serde(default)]
    #[expect(dead_code, reason = "there is one so far; others are refused by name")]
    pub(crate) format: Format,
    /// Who transforms: whoever delivers, or workers, which are processes of their own.
    #[serde(default)]
    pub(crate) transform: Transformer,
    /// How long a worker, or a deliver that shares the stream with others, may be silent before its partitions are given to
    /// others, from 6s to 30m; 30s unless said.
    pub(crate) worker_timeout: Option<Span>,
    /// TLS; without it everything travels in the clear. `tls = {}` trusts the system's authorities.
    pub(crate) tls: Option<KafkaTls>,
    /// Who we are.
    pub(crate) sasl: Option<KafkaSasl>,
}

/// TLS to the brokers. Their certificates must be of a known authority and bear their hosts' names.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[cfg_attr(
    not(feature = "kafka"),
    expect(dead_code, reason = "read, checked and then refused in a build without Kafka")
)]
pub(crate) struct KafkaTls {
    /// The authority's certificate, a PEM file; the system's authorities unless said.
    pub(crate) authority: Option<PathBuf>,
    /// Our own certificate, a PEM file.
    pub(crate) certificate: Option<PathBuf>,
    /// Its key, a PEM file.
    pub(crate) key: Option<PathBuf>,
    /// The key's password.
    pub(crate) key_password: Option<Secret>,
}

/// How a password is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mechanism {
    /// SCRAM-SHA-512
    #[default]
    #[serde(rename = "scram-sha-512")]
    ScramSha512,
    /// SCRAM-SHA-256
    #[serde(rename = "scram-sha-256")]
    ScramSha256,
    /// The password itself goes to the broker; only with TLS.
    Plain,
}

/// A user and a password.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[cfg_attr(
    not(feature = "kafka"),
    expect(dead_code, reason = "read, checked and then refused in a build without Kafka")
)]
pub(crate) struct KafkaSasl {
    /// How the password is shown.
    #[serde(default)]
    pub(crate) mechanism: Mechanism,
    /// Who.
    pub(crate) user: String,
    /// The password.
    pub(crate) password: Secret,
    /// Use SCRAM without TLS too: whoever listens can then try passwords against what he has heard, and read and change
    /// everything else.
    #[serde(default)]
    pub(crate) without_tls: bool,
}
