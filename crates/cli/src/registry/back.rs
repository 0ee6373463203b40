//! The connectors of a way back: what the new side's source and the old side's sink need beside a usual one.

use super::{AnySink, AnySource, postgres_sink, source_connection, sqlite};
use crate::{
    error::CliError,
    spec::{self, Reverse, SinkSpec, SourceSpec, Spec},
};
use crossfade_connector::{Failure, MappingEntry};
use crossfade_event::{Position, TableName, catalog::TableDef};
use crossfade_postgres::{Back, OldKey, PostgresSink, SinkConfig};
use crossfade_sqlite::SqliteSink;
use crossfade_transform::{Step, TableRule};
use std::path::Path;

/// Has the tables of the new side tell rows as they were before, where the way back needs that. A SQLite file is told with the
/// record of its changes, which is made after this.
pub(crate) async fn tell_old_rows(spec: &Spec, folder: &Path) -> Result<(), CliError> {
    let tables = spec.reverse.iter().flat_map(|reverse| &reverse.back.tables);
    let old_rows: Vec<_> = tables.filter(|table| table.needs_old_rows).map(|table| table.from.clone()).collect();
    match AnySource::new(spec, folder, false)? {
        AnySource::Postgres(source) => Ok(source.tell_old_rows(&old_rows).await?),
        AnySource::Sqlite(_) => Ok(()),
        #[cfg(feature = "kafka")]
        AnySource::Debezium(_) => Err(no_way_back()),
    }
}

/// Where the stream of a way back begins, which a switch has made and moved up.
pub(crate) async fn place_of_slot(spec: &Spec, folder: &Path) -> Result<Position, CliError> {
    match AnySource::new(spec, folder, false)? {
        AnySource::Postgres(source) => Ok(source.place_of_slot().await?),
        AnySource::Sqlite(source) => Ok(source.end_of_record().await?),
        #[cfg(feature = "kafka")]
        AnySource::Debezium(_) => Err(no_way_back()),
    }
}

/// The side that a migration writes, or its way back, for bringing it pairs of old and new keys.
pub(crate) fn written_side(spec: &Spec) -> Result<AnySink, CliError> {
    match &spec.sink {
        SinkSpec::Postgres(keys) => Ok(AnySink::Postgres(Box::new(PostgresSink::new(postgres_sink(spec, keys)?)))),
        SinkSpec::Sqlite(_) => AnySink::new(spec),
        SinkSpec::Kafka(_) => Err(no_way_back()),
    }
}

/// The old side of a migration, as the sink of its way back; for taking away what that has left there.
pub(crate) fn left_by_way_back(spec: &Spec) -> Result<AnySink, CliError> {
    source_as_sink(spec, spec.name.reversed().as_str())
}

/// The pairs of old and new keys of the migration that a way back takes back.
pub(crate) fn mapping_of(spec: &Spec, forward: &spec::Name) -> Result<AnySink, CliError> {
    source_as_sink(spec, forward.as_str())
}

fn source_as_sink(spec: &Spec, migration: &str) -> Result<AnySink, CliError> {
    match &spec.source {
        SourceSpec::Postgres(keys) => {
            let config = SinkConfig::new(source_connection(keys)?, migration);
            Ok(AnySink::Postgres(Box::new(PostgresSink::new(config))))
        }
        SourceSpec::Sqlite(keys) => {
            let config = sqlite(&keys.path, keys.busy_timeout);
            Ok(AnySink::Sqlite(Box::new(SqliteSink::new(config, migration))))
        }
        SourceSpec::Debezium(_) => Err(no_way_back()),
    }
}

/// The same call to either kind that has a way back.
macro_rules! back {
    ($any:expr, $one:ident => $call:expr) => {
        match $any {
            Self::Postgres($one) => $call,
            Self::Sqlite($one) => $call,
            #[cfg(feature = "kafka")]
            Self::Kafka(_) => Err(none_of_topics()),
        }
    };
}

impl AnySink {
    pub(crate) async fn has_mapping(&mut self) -> Result<bool, Failure> {
        back!(self, one => one.has_mapping().await)
    }

    pub(crate) async fn bring_mapping(&mut self, entries: &[MappingEntry]) -> Result<(), Failure> {
        back!(self, one => one.bring_mapping(entries).await)
    }

    pub(crate) async fn has_all_of_mapping(&mut self) -> Result<(), Failure> {
        back!(self, one => one.has_all_of_mapping().await)
    }

    pub(crate) async fn retire_back(&mut self, forward: &str) -> Result<(), Failure> {
        back!(self, one => one.retire_back(forward).await)
    }

    pub(crate) async fn forget_back(&mut self, forward: &str) -> Result<(), Failure> {
        back!(self, one => one.forget_back(forward).await)
    }

    pub(crate) async fn adopt(&mut self, entries: &[MappingEntry]) -> Result<(), Failure> {
        back!(self, one => one.adopt(entries).await)
    }

    pub(crate) async fn has_unmapped(&mut self, table: &TableName, column: &str, of: &str) -> Result<bool, Failure> {
        back!(self, one => one.has_unmapped(table, column, of).await)
    }

    /// Forgets the migration in the target; what was written there stays.
    pub(crate) async fn forget(&mut self) -> Result<(), Failure> {
        back!(self, one => one.forget().await)
    }
}

/// Drops the mapping of a migration into a SQLite file.
pub(crate) async fn drop_mapping(spec: &Spec) -> Result<(), CliError> {
    match AnySink::new(spec)? {
        AnySink::Sqlite(mut sink) => Ok(sink.drop_mapping().await?),
        _ => Err(CliError::not_built("dropping the mapping of another system than SQLite in this way")),
    }
}

#[cfg(feature = "kafka")]
fn none_of_topics() -> Failure {
    Failure::refused("taking a migration back", "it writes topics", "A way back is built between two databases only")
}

fn no_way_back() -> CliError {
    CliError::refused("a way back is built between two PostgreSQL databases and between two SQLite files only")
}

/// What a SQLite sink knows that takes a migration back.
pub(super) fn of_sqlite(reverse: &Reverse) -> crossfade_sqlite::Back {
    let keys = reverse.back.tables.iter().flat_map(|table| table.keys.iter().map(move |key| (table, key)));
    let key =
        |(table, key): (&crossfade_transform::BackTable, &crossfade_transform::BackKey)| crossfade_sqlite::OldKey {
            table: table.to.clone(),
            column: key.column.clone(),
            of: key.of.clone(),
            of_column: key.of_column.clone(),
        };
    crossfade_sqlite::Back { forward: reverse.of.to_string(), keys: keys.map(key).collect() }
}

/// What a sink knows that takes a migration back.
pub(super) fn of(reverse: &Reverse) -> Back {
    let keys = reverse.back.tables.iter().flat_map(|table| table.keys.iter().map(move |key| (table, key)));
    let filters = |rule: &&TableRule| rule.steps.iter().any(|step| matches!(step, Step::Filter(_)));
    let named = |rule: &TableRule| {
        let is_it = |table: &&TableDef| table.name.to_string() == rule.from || *table.name.name == *rule.from;
        reverse.forward.catalog.tables.iter().find(is_it).map(|table| table.name.clone())
    };
    Back {
        forward: reverse.of.to_string(),
        epoch: reverse.epoch,
        keys: keys
            .map(|(table, key)| OldKey {
                table: table.to.clone(),
                column: key.column.clone(),
                of: key.of.clone(),
                of_column: key.of_column.clone(),
                sequence: key.sequence.clone(),
                is_uuid: key.is_uuid,
            })
            .collect(),
        partial: reverse.forward.rules.table.iter().filter(filters).filter_map(named).collect(),
    }
}
