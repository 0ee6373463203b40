//! The way back as a migration of its own: from the new side of a migration to the side that it came from. No second file
//! says it; it is made of the first.

use super::{
    Name, Spec,
    log::{EmbeddedLog, LogSpec},
    sink::{Apply, Existing, PostgresSink, SinkSpec, SqliteSink, WriteTo},
    source::{
        OnRewrite, Partitions, PostgresKind, PostgresSource, Snapshot, SourceSpec, SqliteKind, SqliteSource,
        ten_seconds,
    },
};
use crossfade_event::Position;
use crossfade_sqlite::OldRows;
use crossfade_transform::{Back, Forward};
use std::{fmt, sync::Arc};

/// The folder of the way back, in the migration's own.
pub(crate) const FOLDER: &str = "reverse";

/// What is known of the migration that is taken back.
#[derive(Clone)]
pub(crate) struct Reverse {
    /// Its name.
    pub(crate) of: Name,
    /// Its spec.
    pub(crate) spec: Box<Spec>,
    /// What it did.
    pub(crate) forward: Arc<Forward>,
    /// What becomes of each column.
    pub(crate) back: Back,
    /// By what right the old side is written behind its fence.
    pub(crate) epoch: u64,
    /// Where the new side's slot begins; `None` before there is one.
    pub(crate) begin: Option<Position>,
}

impl fmt::Debug for Reverse {
    /// Without what derived keys are made from.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reverse").field("of", &self.of).field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl Spec {
    /// The way back of this migration; `None` where its ends are not two PostgreSQL databases or two SQLite files.
    pub(crate) fn reversed(&self, reverse: Reverse) -> Option<Self> {
        let (source, sink) = match (&self.source, &self.sink) {
            (SourceSpec::Postgres(old), SinkSpec::Postgres(new)) => {
                let (source, sink) = between_servers(old, new, &reverse);
                (SourceSpec::Postgres(source), SinkSpec::Postgres(sink))
            }
            (SourceSpec::Sqlite(old), SinkSpec::Sqlite(new)) => {
                let (source, sink) = between_files(old, new, &reverse);
                (SourceSpec::Sqlite(source), SinkSpec::Sqlite(sink))
            }
            _ => return None,
        };
        // A log on Kafka is shared by machines; the way back has one process, and a log in its folder.
        let log = match &self.log {
            LogSpec::Embedded(log) => log.clone(),
            LogSpec::Kafka(_) => EmbeddedLog::default(),
        };
        Some(Self {
            name: self.name.reversed(),
            dir: self.as_part(None).base(),
            part: None,
            source,
            log: LogSpec::Embedded(log),
            sink,
            rules: crossfade_transform::Rules::default(),
            require: Vec::new(),
            reverse: Some(Arc::new(reverse)),
            warnings: Vec::new(),
            ..self.clone()
        })
    }
}

/// The new side's tables, by name.
fn tables_of(reverse: &Reverse) -> Vec<String> {
    reverse.back.tables.iter().map(|table| table.from.to_string()).collect()
}

fn between_files(old: &SqliteSource, new: &SqliteSink, reverse: &Reverse) -> (SqliteSource, SqliteSink) {
    let whole_old = reverse.back.tables.iter().any(|table| table.needs_old_rows);
    let source = SqliteSource {
        kind: SqliteKind::Sqlite,
        path: new.path.clone(),
        tables: tables_of(reverse),
        snapshot: Snapshot::default(),
        old_rows: if whole_old { OldRows::Full } else { OldRows::Key },
        busy_timeout: new.busy_timeout,
    };
    let sink = SqliteSink {
        kind: SqliteKind::Sqlite,
        path: old.path.clone(),
        write: WriteTo::ShadowTables,
        apply: Apply::Transactional,
        on_error: new.on_error,
        existing: Existing::Merge,
        busy_timeout: old.busy_timeout,
    };
    (source, sink)
}

fn between_servers(old: &PostgresSource, new: &PostgresSink, reverse: &Reverse) -> (PostgresSource, PostgresSink) {
    let source = PostgresSource {
        kind: PostgresKind::Postgres,
        url: new.url.clone(),
        sslmode: new.sslmode,
        sslrootcert: new.sslrootcert.clone(),
        sslcert: new.sslcert.clone(),
        sslkey: new.sslkey.clone(),
        tables: tables_of(reverse),
        snapshot: Snapshot::default(),
        // A copy would take from the old side what never came over.
        on_rewrite: OnRewrite::Stop,
        partitions: Partitions::Leaf,
        heartbeat: ten_seconds(),
        failover: old.failover,
        text: old.text,
    };
    let sink = PostgresSink {
        kind: PostgresKind::Postgres,
        url: old.url.clone(),
        sslmode: old.sslmode,
        sslrootcert: old.sslrootcert.clone(),
        sslcert: old.sslcert.clone(),
        sslkey: old.sslkey.clone(),
        write: WriteTo::ShadowTables,
        schema: None,
        apply: Apply::Transactional,
        workers: None,
        on_error: new.on_error,
        existing: Existing::Merge,
    };
    (source, sink)
}
