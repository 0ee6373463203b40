//! The way back as a migration of its own: from the new side of a migration to the side that it came from. No second file
//! says it; it is made of the first.

use super::{
    Name, Spec,
    log::{EmbeddedLog, LogSpec},
    sink::{Apply, Existing, PostgresSink, SinkSpec, WriteTo},
    source::{OnRewrite, Partitions, PostgresKind, PostgresSource, Snapshot, SourceSpec, ten_seconds},
};
use crossfade_event::Position;
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
    /// The way back of this migration; `None` where its ends are not two PostgreSQL databases.
    pub(crate) fn reversed(&self, reverse: Reverse) -> Option<Self> {
        let (SourceSpec::Postgres(old), SinkSpec::Postgres(new)) = (&self.source, &self.sink) else { return None };
        let source = PostgresSource {
            kind: PostgresKind::Postgres,
            url: new.url.clone(),
            sslmode: new.sslmode,
            sslrootcert: new.sslrootcert.clone(),
            sslcert: new.sslcert.clone(),
            sslkey: new.sslkey.clone(),
            tables: reverse.back.tables.iter().map(|table| table.from.to_string()).collect(),
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
        // A log on Kafka is shared by machines; the way back has one process, and a log in its folder.
        let log = match &self.log {
            LogSpec::Embedded(log) => log.clone(),
            LogSpec::Kafka(_) => EmbeddedLog::default(),
        };
        Some(Self {
            name: self.name.reversed(),
            dir: self.as_part(None).base(),
            part: None,
            source: SourceSpec::Postgres(source),
            log: LogSpec::Embedded(log),
            sink: SinkSpec::Postgres(sink),
            rules: crossfade_transform::Rules::default(),
            require: Vec::new(),
            reverse: Some(Arc::new(reverse)),
            warnings: Vec::new(),
            ..self.clone()
        })
    }
}
