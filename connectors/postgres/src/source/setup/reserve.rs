//! A slot that is made before anybody reads from it: at a switch, while nobody writes, so that both sides are equal where
//! it begins.

use super::{Identified, SourceConfig, clear_leftover, examine, publication, slot};
use crate::{
    Patterns, Session,
    client::{self, failure, replication::Replication},
    quote_table,
    source::catalog::{self, Candidate},
};
use crossfade_connector::Failure;
use crossfade_event::{Position, SourceId, TableName};

/// Makes publication and slot, in this order: a slot decodes with the catalog as it was at each change.
pub(in crate::source) async fn reserve(
    config: &SourceConfig,
    patterns: &Patterns,
    old_rows: &[TableName],
) -> Result<Position, Failure> {
    let session = client::connect(&config.connection, &config.application_name()).await?;
    let server = examine(&session).await?;
    let mut replication = Replication::connect(&config.connection, &config.application_name()).await?;
    let Identified { system, timeline, .. } = replication.identify().await?;
    let source = SourceId::of(&format!("postgres:{system}:{}", server.database_oid));
    let candidates = catalog::candidates(&session, &config.migration).await?;
    let names: Vec<_> = candidates.iter().map(|candidate| candidate.name.clone()).collect();
    patterns.select(&names)?;
    let wanted = catalog::wanted(&candidates, patterns);
    publication::ensure(&session, config, &candidates, &wanted, server.version).await?;
    for table in old_rows {
        tell_old_rows(&session, table).await?;
    }
    let slot = config.object_name();
    clear_leftover(config, &session, &slot, &system).await?;
    let failover = config.failover && server.version >= 170_000;
    let created = replication.create_slot(&slot, server.version, failover).await?;
    Ok(Position { source, timeline, commit: created.consistent_point.0, ordinal: u32::MAX })
}

/// The place up to which the slot was confirmed.
pub(in crate::source) async fn place_of_slot(config: &SourceConfig) -> Result<Position, Failure> {
    let session = client::connect(&config.connection, &config.application_name()).await?;
    let server = examine(&session).await?;
    let mut replication = Replication::connect(&config.connection, &config.application_name()).await?;
    let Identified { system, timeline, .. } = replication.identify().await?;
    let source = SourceId::of(&format!("postgres:{system}:{}", server.database_oid));
    let name = config.object_name();
    let found = slot::find(&session, &name).await?;
    let found = found.ok_or_else(|| slot::lost(&name, "the slot does not exist".to_owned()))?;
    let commit = found.confirmed().map_or(0, |confirmed| confirmed.0);
    let place = Position { source, timeline, commit, ordinal: u32::MAX };
    found.check_history(&name, config.connection.dbname(), &place)?;
    Ok(place)
}

async fn tell_old_rows(session: &Session, table: &TableName) -> Result<(), Failure> {
    let doing = || format!("making {table} tell each row as it was before");
    let quoted = quote_table(table)?;
    let sql = "SELECT relreplident = 'f' FROM pg_catalog.pg_class WHERE oid = pg_catalog.to_regclass($1::text)";
    let told = session.query_opt(sql, &[&quoted.as_str()]).await.map_err(|error| failure(doing(), error))?;
    if told.is_some_and(|row| row.get(0)) {
        return Ok(());
    }
    let sql = format!("ALTER TABLE {quoted} REPLICA IDENTITY FULL");
    session.batch_execute(&sql).await.map_err(|error| match error.code().map(|code| code.code()) {
        Some("42501") => Failure::refused(doing(), "only its owner may", format!("Have the table's owner run: {sql};")),
        _ => failure(doing(), error),
    })
}

/// The slot and the publication that were made must still be there, and nobody may have read from the slot: with an empty
/// log nothing of it was confirmed.
pub(super) async fn still_there(
    config: &SourceConfig,
    session: &Session,
    candidates: &[Candidate],
    wanted: &[Candidate],
    version: u32,
    place: &Position,
) -> Result<(), Failure> {
    let name = config.object_name();
    let found = slot::find(session, &name).await?;
    let found = found.ok_or_else(|| slot::lost(&name, "the slot does not exist any more".to_owned()))?;
    found.check_history(&name, config.connection.dbname(), place)?;
    found.check_free(&name)?;
    match publication::statement(session, &name, candidates, wanted, version).await? {
        None => Ok(()),
        Some(_) => {
            let problem = format!("publication {name} does not hold all tables: changes went by unseen");
            Err(slot::lost(&name, problem))
        }
    }
}
