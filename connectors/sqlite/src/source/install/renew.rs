//! How the recording follows a table that changes: triggers and layouts made anew, or a failure that says what to do.

use super::{Captured, Install};
use crate::{
    client::{failure, quoted},
    inspect::{ddl, shape::TableShape},
    source::triggers::{op, recording},
};
use crossfade_connector::Failure;
use crossfade_event::{Identity, SchemaVersion, TableSchema};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior};
use std::sync::Arc;

type Done<T> = rusqlite::Result<Result<T, Failure>>;

/// How the recording of a table stands.
pub(crate) enum State {
    /// As it should.
    Intact,
    /// The table is as it was, its triggers are not: an index came, or a trigger that would run before ours.
    Stale(Box<Captured>),
    /// The table has another shape.
    Altered(Box<Captured>),
    /// There is no such table.
    Gone,
    /// A trigger without which changes go unrecorded is missing.
    Unrecorded(String),
}

pub(crate) fn gone(layout: &TableSchema) -> Failure {
    Failure::halt(
        format!("following the schema of {}", layout.name),
        "the table was dropped or renamed",
        "give the table its name back, or leave it out of `tables` and begin again with an empty folder",
    )
}

pub(crate) fn other_key(layout: &TableSchema) -> Failure {
    Failure::halt(
        format!("following the change of {}", layout.name),
        "its key is another one now",
        format!("give {} its former key back, or begin again with an empty folder to copy it anew", layout.name),
    )
}

pub(crate) fn unrecorded(layout: &TableSchema, trigger: &str) -> Failure {
    Failure::lost(
        format!("following the schema of {}", layout.name),
        format!("the trigger {trigger} is missing, so changes of the table may not have been recorded"),
        "begin again with an empty folder, so that the table is copied anew (rebuilding a table drops its triggers)",
    )
}

impl Install {
    /// What of the recording of a table is not as it should be.
    pub(crate) fn state_of(&self, connection: &Connection, layout: &TableSchema) -> rusqlite::Result<State> {
        let Some(shape) = TableShape::read(connection, &layout.name.name)? else { return Ok(State::Gone) };
        let number = layout.id.0;
        let unrecorded = || Ok(State::Unrecorded(self.names.trigger(number, "ai")));
        let Some((table, sql)) = self.recorder(connection, number)? else { return unrecorded() };
        let recorded = ddl::recorded_columns(&sql).unwrap_or_default();
        // Another table has taken the name, or the trigger is not as we made it.
        if !table.eq_ignore_ascii_case(&shape.name) || recorded.len() != layout.columns.len() {
            return unrecorded();
        }
        let schema = shape.schema(layout.id, SchemaVersion(layout.version.0 + 1), Some((layout, &recorded)));
        let same = TableSchema { version: layout.version, ..schema.clone() } == *layout;
        let wanted = recording(&self.names, number, &shape, self.old_rows);
        let mut intact = true;
        for trigger in &wanted.triggers {
            let there: Option<(String, i64)> = connection
                .prepare_cached("SELECT sql, rowid FROM main.sqlite_schema WHERE type = 'trigger' AND name = ?1")?
                .query_row([&trigger.name], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            let always = ["_ai", "_au", "_ad"].iter().any(|kind| trigger.name.ends_with(kind));
            match there {
                None if always => return Ok(State::Unrecorded(trigger.name.clone())),
                None => intact = false,
                Some((sql, rowid)) => {
                    intact &= sql == trigger.sql && !has_newer_trigger(connection, &shape.name, rowid)?;
                }
            }
        }
        let captured = Captured { schema: Arc::new(schema), shape };
        Ok(match (same, intact) {
            (true, true) => State::Intact,
            (true, false) => State::Stale(Box::new(Captured { schema: Arc::new(layout.clone()), ..captured })),
            (false, _) => State::Altered(Box::new(captured)),
        })
    }

    /// Brings the recording of one table up to its present shape. `emitted` is a place before which everything was
    /// recorded under the layout on record; rows changed since are recorded once more, as they are now.
    pub(crate) fn renew(&self, connection: &mut Connection, layout: &TableSchema, emitted: i64) -> Result<(), Failure> {
        let doing = format!("renewing the triggers of {}", layout.name);
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|error| failure(&doing, error))?;
        let renewed = self.renew_in(&transaction, layout, emitted).map_err(|error| failure(&doing, error))?;
        renewed?;
        transaction.commit().map_err(|error| failure(&doing, error))
    }

    fn renew_in(&self, connection: &Connection, layout: &TableSchema, emitted: i64) -> Done<()> {
        let (captured, altered) = match self.state_of(connection, layout)? {
            State::Intact => return Ok(Ok(())),
            State::Stale(captured) => (captured, false),
            State::Altered(captured) => (captured, true),
            State::Gone => return Ok(Err(gone(layout))),
            State::Unrecorded(trigger) => return Ok(Err(unrecorded(layout, &trigger))),
        };
        let key = |schema: &TableSchema| {
            schema
                .key_columns()
                .iter()
                .filter_map(|index| schema.columns.get(*index))
                .map(|column| column.native_id)
                .collect::<Vec<_>>()
        };
        if altered && (captured.schema.identity != layout.identity || key(&captured.schema) != key(layout)) {
            return Ok(Err(other_key(layout)));
        }
        if captured.schema.identity == Identity::FullRow && self.was_touched(connection, layout, emitted)? {
            return Ok(Err(Failure::halt(
                format!("following the change of {}", layout.name),
                "rows without a key changed before the change of the table was noticed, so what was recorded of them is not whole",
                format!(
                    "begin again with an empty folder, so that {} is copied anew; a primary key would let it be followed",
                    layout.name
                ),
            )));
        }
        if altered {
            self.widen(connection, captured.schema.columns.len())?;
            let sql = format!("INSERT INTO {}(tbl, op) VALUES (?1, ?2)", quoted(&self.names.changes()));
            connection.prepare_cached(&sql)?.execute((captured.schema.id.0, op::LAYOUT))?;
            self.record(connection, &captured)?;
            // Without a key nothing changed since: that was asked just now.
            if captured.schema.identity == Identity::Key {
                self.record_again(connection, layout, &captured, emitted)?;
            }
        } else {
            let before = self.layouts(connection)?;
            let since = before.iter().find(|known| known.schema.id == layout.id).map(|known| known.since);
            self.record(connection, &captured)?;
            // The layout is the old one: only the triggers are new.
            connection
                .prepare_cached(&format!(
                    "DELETE FROM {} WHERE tbl = ?1 AND since > ?2",
                    quoted(&self.names.layouts())
                ))?
                .execute((layout.id.0, since))?;
        }
        Ok(Ok(()))
    }

    fn was_touched(&self, connection: &Connection, layout: &TableSchema, emitted: i64) -> rusqlite::Result<bool> {
        let sql = format!("SELECT 1 FROM {} WHERE seq > ?1 AND tbl = ?2", quoted(&self.names.changes()));
        connection.prepare_cached(&sql)?.exists((emitted, layout.id.0))
    }

    /// Rows that changed between the change of the table and now were recorded by its old triggers: record them whole.
    fn record_again(
        &self,
        connection: &Connection,
        layout: &TableSchema,
        captured: &Captured,
        emitted: i64,
    ) -> rusqlite::Result<()> {
        let schema = &captured.schema;
        let changes = quoted(&self.names.changes());
        let cells: Vec<String> = (0..schema.columns.len()).map(|place| format!("c{place}")).collect();
        let columns = crate::client::list(schema.columns.iter().map(|column| &column.name));
        let key = schema.key_columns();
        let names =
            crate::client::list(key.iter().filter_map(|index| schema.columns.get(*index)).map(|column| &column.name));
        // The former triggers put the key where it stood in the former layout.
        let keys = layout.key_columns().iter().map(|index| format!("c{index}")).collect::<Vec<_>>().join(", ");
        let sql = format!(
            "INSERT INTO {changes}(tbl, op, {}) SELECT {}, {}, {columns} FROM {} WHERE ({names}) IN
             (SELECT {keys} FROM {changes} WHERE seq > ?1 AND tbl = {} AND op IN ({}, {}, {}))",
            cells.join(", "),
            schema.id.0,
            op::UPDATE,
            quoted(&captured.shape.name),
            schema.id.0,
            op::INSERT,
            op::UPDATE,
            op::NEW,
        );
        connection.execute(&sql, [emitted])?;
        Ok(())
    }
}

fn has_newer_trigger(connection: &Connection, table: &str, than: i64) -> rusqlite::Result<bool> {
    connection
        .prepare_cached(
            "SELECT 1 FROM main.sqlite_schema WHERE type = 'trigger' AND tbl_name = ?1 COLLATE NOCASE AND rowid > ?2
             AND name NOT GLOB '_crossfade_*'",
        )?
        .exists((table, than))
}
