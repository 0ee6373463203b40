//! What the source keeps in its own file: the identity, the change table, the triggers, and the history of layouts.
//! All of it is made, and made anew, in transactions of its own, so a writer sees either none or all of it.
//!
//! Which tables can be recorded is asked in [`choose`]; what is on record is read in [`layouts`]; how the recording
//! follows a table that changes stands in [`renew`].

mod choose;
mod layouts;
mod renew;

pub(crate) use choose::{matching, obstacle};
pub(crate) use layouts::Layout;
pub(crate) use renew::{State, gone, other_key, unrecorded};

use super::triggers::{Names, Recording, op, recording};
use crate::{
    OldRows,
    client::{failure, literal, quoted},
    inspect::shape::TableShape,
};
use choose::matching_or_not;
use crossfade_connector::Failure;
use crossfade_event::{SchemaVersion, TableId, TableSchema};
use rusqlite::{Connection, TransactionBehavior};
use std::sync::Arc;

/// A table that is recorded.
#[derive(Debug, Clone)]
pub(crate) struct Captured {
    /// Its shape as of the last layout on record.
    pub(crate) schema: Arc<TableSchema>,
    pub(crate) shape: TableShape,
}

/// What is kept for one migration in one file.
#[derive(Debug, Clone)]
pub(crate) struct Install {
    pub(crate) names: Names,
    pub(crate) old_rows: OldRows,
}

impl Install {
    pub(crate) fn new(migration: &str, old_rows: OldRows) -> Self {
        Self { names: Names::new(migration), old_rows }
    }

    /// Makes everything for these tables, in one transaction, and returns them with the place from which the stream
    /// has everything. What an earlier run left is replaced.
    pub(crate) fn begin(
        &self,
        connection: &mut Connection,
        tables: Vec<TableShape>,
        first_number: u32,
    ) -> Result<(Vec<Captured>, i64), Failure> {
        let doing = "installing the triggers that record changes";
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|error| failure(doing, error))?;
        let captured = numbered(tables, first_number);
        let made = (|| {
            drop_triggers(&transaction, &self.names.triggers(None))?;
            self.make_tables(&transaction, &captured)?;
            for table in &captured {
                self.record(&transaction, table)?;
            }
            transaction
                .query_row(&format!("SELECT max(seq) FROM {}", quoted(&self.names.changes())), [], |row| row.get(0))
        })();
        let since: i64 = made.map_err(|error| failure(doing, error))?;
        transaction.commit().map_err(|error| failure(doing, error))?;
        Ok((captured, since))
    }

    /// Everything that [`Install::begin`] makes for the tables that match, as if nothing of it were there.
    pub(crate) fn ddl(&self, connection: &Connection, patterns: &[String]) -> Result<Vec<String>, Failure> {
        let (shapes, _) = matching_or_not(connection, patterns)?;
        let widest = shapes.iter().map(|shape| shape.carried().count()).max().unwrap_or(0);
        let mut statements = self.tables();
        statements.extend(self.cells(0, widest));
        for (number, shape) in (1..).zip(&shapes) {
            let Recording { removed, triggers } = recording(&self.names, number, shape, self.old_rows);
            statements.extend(removed);
            statements.extend(triggers.into_iter().map(|trigger| trigger.sql));
        }
        Ok(statements)
    }

    /// The statements that make our tables, each harmless where its table is there.
    fn tables(&self) -> Vec<String> {
        let (changes, layouts, bounds) =
            (quoted(&self.names.changes()), quoted(&self.names.layouts()), quoted(&self.names.bounds()));
        vec![
            "CREATE TABLE IF NOT EXISTS _crossfade_meta (key TEXT PRIMARY KEY, value)".to_owned(),
            "INSERT OR IGNORE INTO _crossfade_meta VALUES ('identity', lower(hex(randomblob(16))))".to_owned(),
            format!("CREATE TABLE IF NOT EXISTS {changes} (seq INTEGER PRIMARY KEY, tbl, op)"),
            format!("INSERT INTO {changes}(tbl, op) VALUES (0, {})", op::ANCHOR),
            format!(
                "CREATE TABLE IF NOT EXISTS {layouts} (tbl INTEGER, since INTEGER, layout TEXT, PRIMARY KEY (tbl, since))"
            ),
            format!("DELETE FROM {layouts}"),
            format!("CREATE TABLE IF NOT EXISTS {bounds} (seq INTEGER PRIMARY KEY)"),
        ]
    }

    /// The statements that give the change table its columns for values.
    fn cells(&self, have: usize, wanted: usize) -> impl Iterator<Item = String> {
        let changes = quoted(&self.names.changes());
        (have..wanted).map(move |place| format!("ALTER TABLE {changes} ADD COLUMN c{place}"))
    }

    /// Makes triggers and layouts for more tables, in one transaction.
    pub(crate) fn extend(
        &self,
        connection: &mut Connection,
        tables: Vec<TableShape>,
        first_number: u32,
    ) -> Result<Vec<Captured>, Failure> {
        let doing = "installing the triggers of new tables";
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|error| failure(doing, error))?;
        let captured = numbered(tables, first_number);
        let made = (|| -> rusqlite::Result<()> {
            self.widen(&transaction, captured.iter().map(|table| table.schema.columns.len()).max().unwrap_or(0))?;
            let sql = format!("INSERT INTO {}(tbl, op) VALUES (?1, ?2)", quoted(&self.names.changes()));
            for table in &captured {
                // A place of its own in the stream, at which the layout begins.
                transaction.execute(&sql, (table.schema.id.0, op::LAYOUT))?;
                self.record(&transaction, table)?;
            }
            Ok(())
        })();
        made.map_err(|error| failure(doing, error))?;
        transaction.commit().map_err(|error| failure(doing, error))?;
        Ok(captured)
    }

    /// Takes away what was made for tables that the log does not know: it was ended before it heard of them.
    pub(crate) fn forget_all_but(&self, connection: &mut Connection, known: &[u32]) -> Result<(), Failure> {
        let doing = "looking for tables that were not taken in to the end";
        let strangers: Vec<u32> = self
            .layouts(connection)
            .map_err(|error| failure(doing, error))?
            .into_iter()
            .map(|layout| layout.schema.id.0)
            .filter(|number| !known.contains(number))
            .collect();
        if strangers.is_empty() {
            return Ok(());
        }
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|error| failure(doing, error))?;
        let forgotten = (|| -> rusqlite::Result<()> {
            for number in strangers {
                drop_triggers(&transaction, &self.names.triggers(Some(number)))?;
                transaction.execute_batch(&format!("DROP TABLE IF EXISTS {}", quoted(&self.names.removed(number))))?;
                let sql = format!("DELETE FROM {} WHERE tbl = ?1", quoted(&self.names.layouts()));
                transaction.execute(&sql, [number])?;
                // The numbers stay without a gap; what they say of a stranger means nothing.
                let sql = format!("UPDATE {} SET op = ?1 WHERE tbl = ?2", quoted(&self.names.changes()));
                transaction.execute(&sql, (op::ANCHOR, number))?;
            }
            Ok(())
        })();
        forgotten.map_err(|error| failure(doing, error))?;
        transaction.commit().map_err(|error| failure(doing, error))
    }

    fn make_tables(&self, connection: &Connection, captured: &[Captured]) -> rusqlite::Result<()> {
        connection.execute_batch(&self.tables().join(";\n"))?;
        let widest = captured.iter().map(|table| table.schema.columns.len()).max().unwrap_or(0);
        self.widen(connection, widest)
    }

    /// Gives the change table as many columns for values.
    fn widen(&self, connection: &Connection, columns: usize) -> rusqlite::Result<()> {
        let have: u32 = connection.query_row(
            "SELECT count(*) FROM pragma_table_info(?1) WHERE name NOT IN ('seq', 'tbl', 'op')",
            [&self.names.changes()],
            |row| row.get(0),
        )?;
        for statement in self.cells(have as usize, columns) {
            connection.execute_batch(&statement)?;
        }
        Ok(())
    }

    /// Takes a place of its own in the record, behind everything that is in it, and returns its number.
    pub(crate) fn anchor(&self, connection: &Connection) -> rusqlite::Result<i64> {
        let changes = quoted(&self.names.changes());
        connection.execute(&format!("INSERT INTO {changes}(tbl, op) VALUES (0, {})", op::ANCHOR), [])?;
        connection.query_row(&format!("SELECT max(seq) FROM {changes}"), [], |row| row.get(0))
    }

    /// Makes a table's triggers and puts its layout on record.
    fn record(&self, connection: &Connection, table: &Captured) -> rusqlite::Result<()> {
        let number = table.schema.id.0;
        let Recording { removed, triggers } = recording(&self.names, number, &table.shape, self.old_rows);
        drop_triggers(connection, &self.names.triggers(Some(number)))?;
        connection.execute_batch(&format!("DROP TABLE IF EXISTS {}", quoted(&self.names.removed(number))))?;
        if let Some(removed) = removed {
            connection.execute_batch(&removed)?;
        }
        for trigger in triggers {
            connection.execute_batch(&trigger.sql)?;
        }
        let since: i64 =
            connection
                .query_row(&format!("SELECT max(seq) FROM {}", quoted(&self.names.changes())), [], |row| row.get(0))?;
        let layout = serde_json::to_string(&*table.schema)
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
        connection
            .prepare_cached(&format!("INSERT OR REPLACE INTO {} VALUES (?1, ?2, ?3)", quoted(&self.names.layouts())))?
            .execute((number, since, layout))?;
        Ok(())
    }

    /// Everything that was made for this migration goes; the file's identity stays while another one needs it.
    pub(crate) fn uninstall(&self, connection: &mut Connection) -> Result<(), Failure> {
        let doing = "removing the triggers that record changes";
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|error| failure(doing, error))?;
        let removed = (|| {
            drop_triggers(&transaction, &self.names.triggers(None))?;
            let own = [self.names.changes(), self.names.layouts(), self.names.bounds()];
            let prefix = self.names.removed(0);
            let prefix = prefix.trim_end_matches('0').to_owned();
            for (name, _) in all_tables(&transaction)? {
                let numbered = name.strip_prefix(&prefix).is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()));
                if numbered || own.contains(&name) {
                    transaction.execute_batch(&format!("DROP TABLE {}", quoted(&name)))?;
                }
            }
            if !all_tables(&transaction)?.iter().any(|(name, _)| name.starts_with("_crossfade_changes_")) {
                transaction.execute_batch("DROP TABLE IF EXISTS _crossfade_meta")?;
            }
            Ok(())
        })();
        removed.map_err(|error| failure(doing, error))?;
        transaction.commit().map_err(|error| failure(doing, error))
    }
}

fn drop_triggers(connection: &Connection, prefix: &str) -> rusqlite::Result<()> {
    let sql = format!(
        "SELECT name FROM main.sqlite_schema WHERE type = 'trigger' AND substr(name, 1, {}) = {}",
        prefix.len(),
        literal(prefix)
    );
    let names: Vec<String> =
        connection.prepare(&sql)?.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    // `_crossfade_shop_` is also the beginning of what a migration named `shop_x` makes.
    let own = |name: &String| {
        let rest = name.strip_prefix(prefix).unwrap_or_default();
        let digits = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        ["_ai", "_au", "_ad", "_bi", "_bu", "ai", "au", "ad", "bi", "bu"].contains(&digits)
    };
    for name in names.iter().filter(|name| own(name)) {
        connection.execute_batch(&format!("DROP TRIGGER {}", quoted(name)))?;
    }
    Ok(())
}

fn all_tables(connection: &Connection) -> rusqlite::Result<Vec<(String, bool)>> {
    let mut statement = connection.prepare("SELECT name FROM main.sqlite_schema WHERE type = 'table'")?;
    statement.query_map([], |row| Ok((row.get(0)?, false)))?.collect()
}

/// Tables that are to be recorded, numbered from `first_number` on, in their first layout.
fn numbered(tables: Vec<TableShape>, first_number: u32) -> Vec<Captured> {
    let of = |(number, shape): (u32, TableShape)| Captured {
        schema: Arc::new(shape.schema(TableId(number), SchemaVersion(1), None)),
        shape,
    };
    (first_number..).zip(tables).map(of).collect()
}
