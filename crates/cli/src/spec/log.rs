//! `[log]`: the event log between source and sink.

use super::scalar::{Size, Span};
use schemars::JsonSchema;
use serde::Deserialize;

/// `kind = "embedded"`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum EmbeddedKind {
    /// Segment files in the migration's folder.
    #[default]
    Embedded,
}

/// The event log between source and sink.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogSpec {
    /// Always `embedded`.
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
