//! `[sink]`: where rows and changes go.

use super::{
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
