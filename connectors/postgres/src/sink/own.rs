//! Marking our own writes, where we write into the source's own tables: they must not come back as changes.
//!
//! Two ways. A *replication origin* is set for the session where the role has the right to; every change of ours then
//! carries it. Otherwise the first statement of each of our transactions is a transactional logical message, which any
//! role may write, and by which the source drops the transaction whole.

use super::link::Link;
use crate::client::{origin_name, quote_literal};
use crossfade_connector::{Failure, Target, WriteMode};

/// Marks the session, or its transactions, as ours, if the target has a table with other writers.
pub(super) async fn mark(link: &mut Link, migration: &str, target: &Target) -> Result<(), Failure> {
    if !target.tables.iter().any(|table| matches!(table.mode, WriteMode::Columns { .. })) {
        link.set_begin(None);
        return Ok(());
    }
    mark_all(link, migration).await
}

/// Marks everything that is written as that migration's own.
pub(super) async fn mark_all(link: &mut Link, migration: &str) -> Result<(), Failure> {
    if set_origin(link, migration).await? {
        link.set_begin(None);
    } else {
        set_message(link, migration);
    }
    Ok(())
}

/// The same by a message only: an origin serves one session at a time.
pub(super) fn mark_by_message(link: &mut Link, migration: &str, target: &Target) {
    let needed = target.tables.iter().any(|table| matches!(table.mode, WriteMode::Columns { .. }));
    match needed {
        true => set_message(link, migration),
        false => link.set_begin(None),
    }
}

fn set_message(link: &mut Link, migration: &str) {
    let message = format!(
        "SELECT pg_catalog.pg_logical_emit_message(true, 'crossfade.own', {})",
        quote_literal(migration).trim_start()
    );
    link.set_begin(Some(&message));
}

/// Sets the origin; false without the right, or while another session holds it.
async fn set_origin(link: &mut Link, migration: &str) -> Result<bool, Failure> {
    let doing = "marking the session as our own";
    let is_set = link.query(doing, "SELECT pg_catalog.has_function_privilege('pg_catalog.pg_replication_origin_session_setup(text)', 'EXECUTE') \
         AND pg_catalog.has_function_privilege('pg_catalog.pg_replication_origin_create(text)', 'EXECUTE')", &[]).await?;
    if !is_set.first().is_some_and(|row| row.get::<_, bool>(0)) {
        return Ok(false);
    }
    let literal = quote_literal(&origin_name(migration)).trim_start().to_owned();
    let sql = format!(
        "SELECT pg_catalog.pg_replication_origin_create({literal}) \
           WHERE pg_catalog.pg_replication_origin_oid({literal}) IS NULL; \
         DO $$ BEGIN PERFORM pg_catalog.pg_replication_origin_session_setup({literal}) \
           WHERE NOT pg_catalog.pg_replication_origin_session_is_setup(); END $$"
    );
    match link.session.batch_execute(&sql).await {
        Ok(()) => Ok(true),
        Err(error) => {
            tracing::info!(%error, "no replication origin: our transactions are marked by a message each");
            Ok(false)
        }
    }
}
