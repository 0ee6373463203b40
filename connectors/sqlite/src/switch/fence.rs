//! The lasting fence: triggers on every table of the side that has lost the authority, which refuse each row that is written.
//!
//! A writer sees the newest state or none at all, so a fence that was committed holds for everybody who begins to write
//! after it, and a connection's prepared statements are prepared anew for it. Only a transaction that holds the migration's
//! row in `_crossfade_pass` gets through: the stream's to the new side, after a failback. It takes the row away again before it
//! commits, and nobody else can write beside it, so nobody else ever gets through by it. The stream back fires no triggers at
//! all.
//!
//! SQLite fires triggers for rows: a statement that changes none meets no fence. A connection that has switched triggers off
//! (`SQLITE_DBCONFIG_ENABLE_TRIGGER`) meets none either, and was never recorded.

use super::{SwitchEnd, authority::alone};
use crate::client::{literal, quoted};
use crossfade_connector::Failure;
use crossfade_event::{Side, TableName};
use rusqlite::Connection;

/// What the names of a migration's fences begin with. No migration's name has a space, so one is never another's beginning.
fn prefix(migration: &str) -> String {
    format!("_crossfade_fence {migration} ")
}

/// The statements that put the fence up on this side.
pub(super) fn up(migration: &str, here: Side, tables: &[TableName]) -> String {
    let passes = format!("EXISTS (SELECT 1 FROM _crossfade_pass WHERE migration = {})", literal(migration));
    let mut sql = String::new();
    for table in tables {
        let said = format!(
            "crossfade: {table} is not written here any more: the migration {migration} has moved to the {} side; \
             SELECT side FROM crossfade_side says where to write",
            here.other()
        );
        for event in ["INSERT", "UPDATE", "DELETE"] {
            let name = format!("{}{} {}", prefix(migration), table.name, event.to_lowercase());
            sql.push_str(&format!(
                "CREATE TRIGGER IF NOT EXISTS {} BEFORE {event} ON {} WHEN NOT {passes} \
                 BEGIN SELECT RAISE(ABORT, {}); END; ",
                quoted(&name),
                quoted(&table.name),
                literal(&said)
            ));
        }
    }
    sql
}

/// Takes the fence of a migration down.
pub(super) fn down(connection: &Connection, migration: &str) -> rusqlite::Result<()> {
    let prefix = prefix(migration);
    let sql = "SELECT name FROM main.sqlite_schema WHERE type = 'trigger' AND substr(name, 1, length(?1)) = ?1";
    let names: Vec<String> =
        connection.prepare(sql)?.query_map([&prefix], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    names.iter().try_for_each(|name| connection.execute_batch(&format!("DROP TRIGGER {}", quoted(name))))
}

impl SwitchEnd {
    /// Takes the fence down. Only for a side that has the authority.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn lift(&mut self) -> Result<(), Failure> {
        if !self.config.path.is_file() {
            return Ok(());
        }
        self.with(|connection, asked| {
            alone(connection, "taking the fence down", |transaction| down(transaction, &asked.migration))
        })
        .await
    }
}
