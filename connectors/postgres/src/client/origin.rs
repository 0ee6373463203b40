//! The replication origin that marks a migration's own writes. The server has one list of them for all its databases.

use super::quote_literal;
use crate::Session;

/// The origin of a migration; its slot and its publication have the same name.
pub(crate) fn origin_name(migration: &str) -> String {
    format!("crossfade_{}", migration.replace('-', "_"))
}

/// Takes the origin away, once nothing is left to be read that was marked by it: while the server still has the migration's
/// slot it stays, for without its name our own writes would come back as somebody else's. It stays, too, where another session
/// has it or the role may not drop it, and does no harm there.
pub(crate) async fn drop_origin(session: &Session, migration: &str) {
    let name = origin_name(migration);
    let literal = quote_literal(&name).trim_start().to_owned();
    let sql = format!(
        "SELECT pg_catalog.pg_replication_origin_session_reset() WHERE pg_catalog.pg_replication_origin_session_is_setup(); \
         SELECT pg_catalog.pg_replication_origin_drop(roname) FROM pg_catalog.pg_replication_origin \
           WHERE roname = {literal} AND NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = {literal})"
    );
    if let Err(error) = session.batch_execute(&sql).await {
        tracing::info!(%error, %name, "the replication origin stays");
    }
}
