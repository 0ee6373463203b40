//! Taking a publication away from under writers.
//!
//! A session that writes to a table reads which publications list it, and then looks each of them up. One that was dropped in
//! between ends the statement of whoever writes (`cache lookup failed for publication`, XX000). So its tables leave the list
//! first, and the publication goes once whoever may have read the list before has ended.

use super::{Session, failure, quote_ident};
use crate::QuotedName;
use crossfade_connector::Failure;
use std::time::Duration;
use tokio::time::Instant;

/// So long transactions that began before are waited for. Beyond it a statement would have to have stood that long between
/// two looks into the catalog.
const OTHERS_END_WITHIN: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// For the locks that a change of the list takes; only a `VACUUM` or a change of the table holds them longer.
const LOCK: Duration = Duration::from_secs(1);

/// The tables of a publication by its own list, each as `ALTER PUBLICATION` wants it.
const LISTED: &str = "SELECT r.prrelid, pg_catalog.format('ONLY %I.%I', n.nspname, c.relname) \
     FROM pg_catalog.pg_publication p JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid \
     JOIN pg_catalog.pg_class c ON c.oid = r.prrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     WHERE p.pubname = $1";

/// Drops it, if it is there.
///
/// # Errors
/// When the role may not, or the server cannot be asked.
pub(crate) async fn drop_publication(session: &Session, name: &str) -> Result<(), Failure> {
    let doing = || format!("dropping the publication {name}");
    let quoted = quote_ident(name)?;
    let listed = session.query(LISTED, &[&name]).await.map_err(|error| failure(doing(), error))?;
    if !listed.is_empty() {
        let tables: Vec<&str> = listed.iter().map(|row| row.get(1)).collect();
        let oids: Vec<u32> = listed.iter().map(|row| row.get(0)).collect();
        empty(session, &quoted, &tables.join(", ")).await.map_err(|error| failure(doing(), error))?;
        others_end(session, &oids).await.map_err(|error| failure(doing(), error))?;
    }
    let drop = format!("DROP PUBLICATION IF EXISTS {quoted}");
    session.batch_execute(&drop).await.map_err(|error| failure(doing(), error))
}

async fn empty(session: &Session, publication: &QuotedName, tables: &str) -> Result<(), tokio_postgres::Error> {
    let sql = format!(
        "BEGIN; SET LOCAL lock_timeout = {}; ALTER PUBLICATION {publication} DROP TABLE {tables}; COMMIT",
        LOCK.as_millis()
    );
    match session.batch_execute(&sql).await {
        Ok(()) => Ok(()),
        Err(error) if error.as_db_error().is_some() => {
            // It is dropped with its tables then.
            tracing::debug!(%error, "the tables of a publication could not be taken out of it first");
            session.batch_execute("ROLLBACK").await
        }
        Err(error) => Err(error),
    }
}

/// Waits for the transactions that hold these tables now, for a while.
async fn others_end(session: &Session, tables: &[u32]) -> Result<(), tokio_postgres::Error> {
    let holding = "SELECT DISTINCT virtualtransaction FROM pg_catalog.pg_locks WHERE locktype = 'relation' \
         AND relation IN (SELECT o FROM pg_catalog.unnest($1::pg_catalog.oid[]) o UNION SELECT relid \
           FROM pg_catalog.unnest($1::pg_catalog.oid[]) o, pg_catalog.pg_partition_tree(o)) AND pid <> pg_catalog.pg_backend_pid() \
         AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())";
    let others: Vec<String> = session.query(holding, &[&tables]).await?.iter().map(|row| row.get(0)).collect();
    let running = "SELECT EXISTS (SELECT FROM pg_catalog.pg_locks \
         WHERE locktype = 'virtualxid' AND virtualxid = ANY ($1::text[]))";
    let until = Instant::now() + OTHERS_END_WITHIN;
    while !others.is_empty() && Instant::now() < until && session.query_one(running, &[&others]).await?.get(0) {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(())
}
