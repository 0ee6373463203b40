//! The connectors of a way back: what the new side's source and the old side's sink need beside a usual one.

use super::{AnySource, postgres_sink, source_connection};
use crate::{
    error::CliError,
    spec::{self, Reverse, SinkSpec, SourceSpec, Spec},
};
use crossfade_event::{Position, catalog::TableDef};
use crossfade_postgres::{Back, OldKey, PostgresSink, PostgresSource, SinkConfig};
use crossfade_transform::{Step, TableRule};
use std::path::Path;

/// Has the tables of the new side tell rows as they were before, where the way back needs that.
pub(crate) async fn tell_old_rows(spec: &Spec, folder: &Path) -> Result<(), CliError> {
    let tables = spec.reverse.iter().flat_map(|reverse| &reverse.back.tables);
    let old_rows: Vec<_> = tables.filter(|table| table.needs_old_rows).map(|table| table.from.clone()).collect();
    Ok(new_side(spec, folder)?.tell_old_rows(&old_rows).await?)
}

/// Where the slot of a way back begins, which a switch has made and moved up.
pub(crate) async fn place_of_slot(spec: &Spec, folder: &Path) -> Result<Position, CliError> {
    Ok(new_side(spec, folder)?.place_of_slot().await?)
}

fn new_side(spec: &Spec, folder: &Path) -> Result<Box<PostgresSource>, CliError> {
    match AnySource::new(spec, folder, false)? {
        AnySource::Postgres(source) => Ok(source),
        _ => Err(no_way_back()),
    }
}

/// The side that a migration writes, or its way back, for bringing it pairs of old and new keys.
pub(crate) fn written_side(spec: &Spec) -> Result<PostgresSink, CliError> {
    match &spec.sink {
        SinkSpec::Postgres(keys) => Ok(PostgresSink::new(postgres_sink(spec, keys)?)),
        _ => Err(no_way_back()),
    }
}

/// The old side of a migration, as the sink of its way back; for taking away what that has left there.
pub(crate) fn left_by_way_back(spec: &Spec) -> Result<PostgresSink, CliError> {
    match &spec.source {
        SourceSpec::Postgres(keys) => {
            Ok(PostgresSink::new(SinkConfig::new(source_connection(keys)?, spec.name.reversed().as_str())))
        }
        _ => Err(no_way_back()),
    }
}

/// The pairs of old and new keys of the migration that a way back takes back.
pub(crate) fn mapping_of(spec: &Spec, forward: &spec::Name) -> Result<PostgresSink, CliError> {
    match &spec.source {
        SourceSpec::Postgres(keys) => {
            Ok(PostgresSink::new(SinkConfig::new(source_connection(keys)?, forward.as_str())))
        }
        _ => Err(no_way_back()),
    }
}

fn no_way_back() -> CliError {
    CliError::refused("a way back is built between two PostgreSQL databases only")
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
