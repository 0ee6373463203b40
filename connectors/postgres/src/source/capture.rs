//! What a source makes of its own in the database, as text: what a run sends, and what `check` and `plan` print.

use super::{catalog, object_name, setup::publication, slot};
use crate::{
    Patterns, Session,
    client::{drop_origin, drop_publication, failure, replication},
    quote_literal,
};
use crossfade_connector::Failure;

/// What is still to be made before the first row can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Capture {
    /// `CREATE PUBLICATION …`, or what adds tables to it; `None` when it holds them all.
    pub(crate) publication: Option<String>,
    /// The slot's command, which goes over a replication connection; `None` when the slot is there.
    pub(crate) slot: Option<String>,
}

/// Looks at what is there; changes nothing.
pub(crate) async fn missing(
    session: &Session,
    migration: &str,
    patterns: &Patterns,
    failover: bool,
) -> Result<Capture, Failure> {
    let doing = "asking for the server's version";
    let sql = "SELECT pg_catalog.current_setting('server_version_num')::int4";
    let version: i32 = session.query_one(sql, &[]).await.map_err(|error| failure(doing, error))?.get(0);
    let version = version as u32;
    let name = object_name(migration);
    let candidates = catalog::candidates(session, migration).await?;
    let mut wanted = catalog::wanted(&candidates, patterns);
    // Refused elsewhere, by name; it can be in no publication.
    wanted.retain(|candidate| !candidate.unlogged);
    let publication = match wanted.is_empty() {
        true => None,
        false => publication::statement(session, &name, &candidates, &wanted, version).await?,
    };
    let slot = match slot::find(session, &name).await? {
        Some(_) => None,
        None => Some(replication::create_slot_sql(&name, version, failover && version >= 170_000)),
    };
    Ok(Capture { publication, slot })
}

/// The mark that an idle source writes into its own stream.
pub(super) fn heartbeat(migration: &str) -> String {
    let content = quote_literal(migration);
    format!("SELECT pg_catalog.pg_logical_emit_message(false, 'crossfade.heartbeat', {})", content.trim_start())
}

/// Takes away what was made. The slot goes first: as long as it is there, the server keeps WAL for it. The origin goes last: it
/// names what is ours in what the slot would still have to tell.
pub(super) async fn uninstall(session: &Session, migration: &str) -> Result<(), Failure> {
    let name = object_name(migration);
    let drop = "SELECT pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots \
                WHERE slot_name = $1 AND database = pg_catalog.current_database()";
    let dropped = session.execute(drop, &[&name]).await;
    dropped.map_err(|error| failure(format!("dropping the slot {name}"), error))?;
    drop_publication(session, &name).await?;
    drop_origin(session, migration).await;
    Ok(())
}
