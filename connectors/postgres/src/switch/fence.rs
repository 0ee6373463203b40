//! The lasting fence: a trigger on every table of the side that has lost the authority, which refuses writes.
//!
//! It fires for everybody, superusers and owners too, and whatever `session_replication_role` is (`ENABLE ALWAYS`). It
//! asks no table, for a transaction that took its snapshot before the switch would not see what that says: the trigger's being
//! there is the fence. Only a session that names the migration in `crossfade.pass` gets through: the reverse stream's.
//! It fires for each statement, so on partitions and parents it stands on all of them. The workers of a subscription fire no such
//! trigger: a table that one writes is refused before the switch.

use super::{SwitchEnd, authority};
use crate::{quote_ident, quote_literal, quote_table};
use crossfade_connector::Failure;
use crossfade_event::{Side, TableName};

/// The trigger's function. SQLSTATE 25006 is what a read-only server answers: pools that look for the writable one know it.
pub(crate) const FUNCTION: &str = "CREATE OR REPLACE FUNCTION crossfade.fence() RETURNS trigger
  LANGUAGE plpgsql AS $crossfade$
BEGIN
  IF pg_catalog.current_setting('crossfade.pass', true) IS NOT DISTINCT FROM TG_ARGV[0] THEN
    RETURN NULL;
  END IF;
  RAISE EXCEPTION USING ERRCODE = '25006',
    MESSAGE = pg_catalog.format('%I.%I is not written here any more: the migration %s has switched to the other side',
      TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_ARGV[0]),
    HINT = 'Ask crossfade.side() which side has the authority, and connect to that one.';
END $crossfade$";

/// The trigger's name: each migration has its own.
pub(super) fn name_of(migration: &str) -> String {
    format!("crossfade_fence_{}", migration.replace('-', "_"))
}

/// The statements that put the fence up, in a transaction that holds the tables' locks.
pub(super) fn up(migration: &str, tables: &[TableName]) -> Result<String, Failure> {
    let (trigger, told) = (quote_ident(&name_of(migration))?, quote_literal(migration));
    let mut sql = String::new();
    for table in tables {
        let table = quote_table(table)?;
        let named = quote_literal(table.as_str());
        // One of a switch before is there already, out of action.
        sql.push_str(&format!(
            "DO $crossfade$ BEGIN IF NOT EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE tgname = {} \
               AND tgrelid = {}::pg_catalog.regclass) THEN \
               CREATE TRIGGER {trigger} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table} \
               FOR EACH STATEMENT EXECUTE FUNCTION crossfade.fence({}); END IF; END $crossfade$; \
             ALTER TABLE {table} ENABLE ALWAYS TRIGGER {trigger}; ",
            quote_literal(&name_of(migration)).trim_start(),
            named.trim_start(),
            told.trim_start()
        ));
    }
    Ok(sql)
}

/// Puts the fence out of action, where the row says that this side has the authority. It waits for writers only, of whom
/// there are none behind a fence, and for maintenance; never for readers.
pub(super) fn out_of_action(migration: &str, here: Side, epoch: u64) -> String {
    let trigger = name_of(migration);
    let name = quote_literal(&trigger);
    let name = name.trim_start();
    format!(
        "DO $crossfade$ DECLARE t record; BEGIN IF {} THEN \
         FOR t IN SELECT tgrelid::pg_catalog.regclass AS name FROM pg_catalog.pg_trigger \
           WHERE tgname = {name} AND NOT tgisinternal AND tgenabled <> 'D' ORDER BY tgrelid \
         LOOP EXECUTE pg_catalog.format('ALTER TABLE ONLY %s DISABLE TRIGGER %I', t.name, {name}); END LOOP; \
         END IF; END $crossfade$",
        authority::says(migration, here, epoch)
    )
}

/// Puts the fences of this migration on all other tables of this database out of action: those of the other side, where both
/// sides are here. In the transaction that gives the authority away, so it is asked for nothing but its commit.
pub(super) fn others_out_of_action(migration: &str, tables: &[TableName]) -> Result<String, Failure> {
    let trigger = name_of(migration);
    let name = quote_literal(&trigger);
    let name = name.trim_start();
    let ours: Vec<String> = tables
        .iter()
        .map(|table| Ok(format!("{}::pg_catalog.regclass", quote_literal(quote_table(table)?.as_str()).trim_start())))
        .collect::<Result<_, Failure>>()?;
    Ok(format!(
        "DO $crossfade$ DECLARE t record; BEGIN \
         FOR t IN SELECT tgrelid::pg_catalog.regclass AS name FROM pg_catalog.pg_trigger \
           WHERE tgname = {name} AND NOT tgisinternal AND tgenabled <> 'D' \
             AND tgrelid <> ALL (ARRAY[{}]::pg_catalog.regclass[]) ORDER BY tgrelid \
         LOOP EXECUTE pg_catalog.format('ALTER TABLE ONLY %s DISABLE TRIGGER %I', t.name, {name}); END LOOP; \
         END $crossfade$",
        ours.join(", ")
    ))
}

impl SwitchEnd {
    /// Lets a session of the side that has lost the authority write there all the same: the reverse stream's.
    pub fn pass_sql(&self) -> String {
        format!("SET crossfade.pass = {}", self.literal())
    }

    /// Takes the fence down, and the watch over the target. Only for a side that has the authority.
    ///
    /// # Errors
    /// When a table cannot be locked in time.
    pub async fn lift(&mut self) -> Result<(), Failure> {
        let trigger = name_of(&self.migration);
        let sql = format!(
            "DO $crossfade$ DECLARE t record; BEGIN \
             FOR t IN SELECT tgrelid::pg_catalog.regclass AS name FROM pg_catalog.pg_trigger WHERE tgname = {} AND NOT tgisinternal \
             LOOP EXECUTE pg_catalog.format('DROP TRIGGER %I ON %s', {}, t.name); END LOOP; END $crossfade$",
            quote_literal(&trigger).trim_start(),
            quote_literal(&trigger).trim_start()
        );
        self.execute("taking the fence down", &sql).await?;
        self.unwatch().await
    }
}
