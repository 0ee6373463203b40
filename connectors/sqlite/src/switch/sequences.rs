//! Counters of AUTOINCREMENT columns: the new side's go on past whatever the old side has given out, with a margin. Other keys
//! have none: SQLite gives the next one by what the table holds.

use super::{SwitchEnd, authority::alone};
use crate::{
    client::{exists, failure},
    sink::counters,
};
use crossfade_connector::{Failure, Target};
use crossfade_event::{TableName, catalog::Catalog};
use rusqlite::{Connection, OptionalExtension};

const READING: &str = "reading how far the counters have come";

fn counter(connection: &Connection, table: &str) -> rusqlite::Result<Option<i64>> {
    if !exists(connection, "table", "sqlite_sequence")? {
        return Ok(None);
    }
    let read = connection.prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = ?1 COLLATE NOCASE");
    read?.query_row([table], |row| row.get(0)).optional()
}

impl SwitchEnd {
    /// The catalog with what each of its counters has given out by now.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn with_last_values(&mut self, mut catalog: Catalog) -> Result<Catalog, Failure> {
        self.with(move |connection, _| {
            for sequence in &mut catalog.sequences {
                if let Some((table, _)) = &sequence.owner {
                    let last = counter(connection, &table.name).map_err(|error| failure(READING, error))?;
                    sequence.last_value = last;
                }
            }
            Ok(catalog)
        })
        .await
    }

    /// How far the counters of these columns' tables have come; `None` where there is none.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn given_out(
        &mut self,
        columns: &[(TableName, String, Option<TableName>)],
    ) -> Result<Vec<Option<i64>>, Failure> {
        let tables: Vec<TableName> = columns.iter().map(|(table, ..)| table.clone()).collect();
        self.with(move |connection, _| {
            let read: rusqlite::Result<Vec<_>> = tables.iter().map(|table| counter(connection, &table.name)).collect();
            read.map_err(|error| failure(READING, error))
        })
        .await
    }

    /// Carries the values over, and never backwards.
    ///
    /// # Errors
    /// When a counter cannot be set.
    pub async fn carry_sequences(&mut self, target: &Target) -> Result<(), Failure> {
        let statements: Vec<String> = target.tables.iter().flat_map(|table| counters(table, &target.support)).collect();
        if statements.is_empty() {
            return Ok(());
        }
        self.with(move |connection, _| {
            alone(connection, "setting the counters", |transaction| {
                match exists(transaction, "table", "sqlite_sequence")? {
                    true => statements.iter().try_for_each(|statement| transaction.execute_batch(statement)),
                    false => Ok(()),
                }
            })
        })
        .await
    }
}
