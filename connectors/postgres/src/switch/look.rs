//! What stands in the way of a switch. Changes nothing.

use super::SwitchEnd;
use crate::{client::failure, quote_table};
use crossfade_connector::{
    Failure, Refusal,
    switch::{Look, Writing},
};
use crossfade_event::TableName;

fn refusal(object: impl Into<String>, problem: impl Into<String>, remedy: impl Into<String>) -> Refusal {
    Refusal { object: object.into(), problem: problem.into(), remedy: remedy.into(), fatal: true }
}

impl SwitchEnd {
    /// Looks at the side that has the authority.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn look(&mut self, tables: &[TableName]) -> Result<Look, Failure> {
        let family = self.family(tables).await?;
        let writing = self.oldest_writer(&family).await?;
        let doing = "looking at what a switch needs";
        let names = quoted(&family)?;
        let session = self.session().await?;
        let sql = "SELECT pg_catalog.to_regprocedure('crossfade.fence()') IS NOT NULL, \
             CASE WHEN pg_catalog.to_regnamespace('crossfade') IS NULL \
               THEN pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') \
               ELSE pg_catalog.has_schema_privilege('crossfade', 'CREATE') END, \
             (SELECT setting::pg_catalog.int8 FROM pg_catalog.pg_settings WHERE name = 'deadlock_timeout')";
        let row = session.query_one(sql, &[]).await.map_err(|error| failure(doing, error))?;
        let (is_there, may_make): (bool, bool) = (row.get(0), row.get(1));
        let mut missing = Vec::new();
        if !is_there && !may_make {
            missing.push(refusal(
                "schema crossfade",
                "the role may not make it",
                "GRANT CREATE ON DATABASE … TO the role",
            ));
        }
        let deadlock_timeout_ms = u64::try_from(row.get::<_, i64>(2)).unwrap_or_default();
        let sql = "SELECT c.oid::pg_catalog.regclass::text, pg_catalog.pg_has_role(c.relowner, 'USAGE'), \
             EXISTS (SELECT FROM pg_catalog.pg_subscription_rel s WHERE s.srrelid = c.oid) \
             FROM pg_catalog.pg_class c WHERE c.oid = ANY ($1::text[]::pg_catalog.regclass[])";
        let rows = session.query(sql, &[&names]).await.map_err(|error| failure(doing, error))?;
        for row in &rows {
            let (table, owned, subscribed): (&str, bool, bool) = (row.get(0), row.get(1), row.get(2));
            if !owned {
                let remedy = "GRANT its owner's role TO the role: a fence is a trigger that always fires";
                missing.push(refusal(table, "the role does not own it", remedy));
            }
            if subscribed {
                let remedy = "end the subscription first: no fence holds its workers";
                missing.push(refusal(table, "a subscription writes it", remedy));
            }
        }
        Ok(Look { missing, writing, deadlock_timeout_ms })
    }

    /// The oldest transaction that writes one of the tables.
    pub(super) async fn oldest_writer(&mut self, family: &[TableName]) -> Result<Option<Writing>, Failure> {
        let names = quoted(family)?;
        let sql = "SELECT (1000 * EXTRACT(epoch FROM pg_catalog.clock_timestamp() - a.xact_start))::pg_catalog.int8, \
               a.pid, COALESCE(NULLIF(a.application_name, ''), a.backend_type, ''), l.relation::pg_catalog.regclass::text \
             FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid \
             WHERE l.locktype = 'relation' AND l.granted AND l.relation = ANY ($1::text[]::pg_catalog.regclass[]) \
               AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) \
               AND l.mode NOT IN ('AccessShareLock', 'RowShareLock') AND a.pid <> pg_catalog.pg_backend_pid() \
               AND a.xact_start IS NOT NULL \
             ORDER BY a.xact_start LIMIT 1";
        let row = self.session().await?.query_opt(sql, &[&names]).await;
        let row = row.map_err(|error| failure("looking for the oldest writer", error))?;
        Ok(row.map(|row| Writing {
            age_ms: u64::try_from(row.get::<_, i64>(0)).unwrap_or_default(),
            who: format!(
                "server process {} ({}) writes {}",
                row.get::<_, i32>(1),
                row.get::<_, &str>(2),
                row.get::<_, &str>(3)
            ),
        }))
    }

    /// Looks at the side that would get the authority: what the way back needs of it.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn look_for_the_way_back(&mut self, tables: &[TableName]) -> Result<Vec<Refusal>, Failure> {
        let doing = "looking at what the way back needs";
        let (names, slot) = (quoted(tables)?, super::reverse::name_of(&self.migration));
        let session = self.session().await?;
        let sql = "SELECT pg_catalog.current_setting('wal_level'), \
             (SELECT rolsuper OR rolreplication FROM pg_catalog.pg_roles WHERE rolname = current_user), \
             pg_catalog.current_setting('max_replication_slots')::pg_catalog.int8 \
               > (SELECT pg_catalog.count(*) FROM pg_catalog.pg_replication_slots WHERE slot_name <> $1), \
             pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')";
        let row = session.query_one(sql, &[&slot]).await.map_err(|error| failure(doing, error))?;
        let mut missing = Vec::new();
        if row.get::<_, &str>(0) != "logical" {
            missing.push(refusal(
                "wal_level of the new side",
                "is not logical",
                "set wal_level = logical there and restart it",
            ));
        }
        if !row.get::<_, bool>(1) {
            missing.push(refusal("the role on the new side", "may not make a slot", "ALTER ROLE … REPLICATION"));
        }
        if !row.get::<_, bool>(2) {
            missing.push(refusal("the new side", "has no slot left", "raise max_replication_slots there"));
        }
        if !row.get::<_, bool>(3) {
            let remedy = "GRANT CREATE ON DATABASE … TO the role";
            missing.push(refusal("the role on the new side", "may not make a publication", remedy));
        }
        let sql = "SELECT c.oid::pg_catalog.regclass::text FROM pg_catalog.pg_class c \
             WHERE c.oid = ANY ($1::text[]::pg_catalog.regclass[]) AND NOT pg_catalog.pg_has_role(c.relowner, 'USAGE')";
        let rows = session.query(sql, &[&names]).await.map_err(|error| failure(doing, error))?;
        missing.extend(rows.iter().map(|row| {
            refusal(row.get::<_, &str>(0), "the role does not own it", "GRANT its owner's role TO the role")
        }));
        Ok(missing)
    }
}

fn quoted(tables: &[TableName]) -> Result<Vec<String>, Failure> {
    tables.iter().map(|table| quote_table(table).map(|name| name.as_str().to_owned())).collect()
}
