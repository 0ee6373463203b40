//! A slot that a switch has made before anybody reads from it: while nobody wrote, so that both sides are equal where it
//! begins.

use super::{Identified, SourceConfig, examine, publication, slot};
use crate::{
    Session,
    client::{self, failure, replication::Replication},
    quote_table,
    source::catalog::Candidate,
};
use crossfade_connector::Failure;
use crossfade_event::{Position, SourceId, TableName};

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

/// Has these tables tell each row as it was before.
pub(in crate::source) async fn tell_old_rows(config: &SourceConfig, tables: &[TableName]) -> Result<(), Failure> {
    let session = client::connect(&config.connection, &config.application_name()).await?;
    for table in tables {
        tells_old_rows(&session, table).await?;
    }
    Ok(())
}

async fn tells_old_rows(session: &Session, table: &TableName) -> Result<(), Failure> {
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
