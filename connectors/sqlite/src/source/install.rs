//! What the source keeps in its own file: the identity, the change table, the triggers, and the history of layouts.
//! All of it is made, and made anew, in transactions of its own, so a writer sees either none or all of it.

use super::triggers::{Names, Recording, op, recording};
use crate::{
    OldRows,
    client::{failure, literal, quoted},
    inspect::shape::{self, TableShape},
};
use crossfade_connector::Failure;
use crossfade_event::{SchemaVersion, SourceId, TableId, TableSchema};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior};
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

/// A layout that begins at a place in the stream.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) since: i64,
    pub(crate) schema: Arc<TableSchema>,
}

type Done<T> = rusqlite::Result<Result<T, Failure>>;

impl Install {
    pub(crate) fn new(migration: &str, old_rows: OldRows) -> Self {
        Self { names: Names::new(migration), old_rows }
    }

    /// The file's identity, if it has one.
    pub(crate) fn identity(connection: &Connection) -> rusqlite::Result<Option<SourceId>> {
        if !crate::client::exists(connection, "table", Names::META)? {
            return Ok(None);
        }
        let text: Option<String> = connection
            .query_row("SELECT value FROM _crossfade_meta WHERE key = 'identity'", [], |row| row.get(0))
            .optional()?;
        Ok(text.map(|text| SourceId::of(&text)))
    }

    /// The lowest and the highest sequence number on record; `None` when the change table is missing or empty.
    pub(crate) fn span(&self, connection: &Connection) -> rusqlite::Result<Option<(i64, i64)>> {
        let changes = self.names.changes();
        if !crate::client::exists(connection, "table", &changes)? {
            return Ok(None);
        }
        let sql = format!("SELECT (SELECT min(seq) FROM {0}), (SELECT max(seq) FROM {0})", quoted(&changes));
        connection.query_row(&sql, [], |row| Ok(row.get::<_, Option<i64>>(0)?.zip(row.get::<_, Option<i64>>(1)?)))
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

    /// Places at which a transaction must end, as they are on record.
    pub(crate) fn bounds_on_record(&self, connection: &Connection) -> rusqlite::Result<Vec<i64>> {
        let mut statement = connection.prepare(&format!("SELECT seq FROM {}", quoted(&self.names.bounds())))?;
        statement.query_map([], |row| row.get(0))?.collect()
    }

    /// Puts such a place on record.
    pub(crate) fn record_bound(&self, connection: &Connection, bound: i64) -> rusqlite::Result<()> {
        let sql = format!("INSERT OR IGNORE INTO {} VALUES (?1)", quoted(&self.names.bounds()));
        connection.execute(&sql, [bound]).map(|_| ())
    }

    /// Layouts that begin after a place, in order.
    pub(crate) fn layouts_after(&self, connection: &Connection, after: i64) -> rusqlite::Result<Vec<Layout>> {
        let sql =
            format!("SELECT since, layout FROM {} WHERE since > ?1 ORDER BY since, tbl", quoted(&self.names.layouts()));
        let mut statement = connection.prepare_cached(&sql)?;
        let rows = statement.query_map([after], |row| {
            let (since, text): (i64, String) = (row.get(0)?, row.get(1)?);
            let schema = serde_json::from_str(&text).map_err(|error| {
                rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, error.into())
            })?;
            Ok(Layout { since, schema: Arc::new(schema) })
        })?;
        rows.collect()
    }

    /// The latest layout of every table.
    pub(crate) fn layouts(&self, connection: &Connection) -> rusqlite::Result<Vec<Layout>> {
        let mut latest: Vec<Layout> = Vec::new();
        for layout in self.layouts_after(connection, -1)? {
            match latest.iter_mut().find(|known| known.schema.id == layout.schema.id) {
                Some(known) => *known = layout,
                None => latest.push(layout),
            }
        }
        Ok(latest)
    }

    /// What of the recording of a table is not as it should be.
    pub(crate) fn state_of(&self, connection: &Connection, layout: &TableSchema) -> rusqlite::Result<State> {
        let Some(shape) = TableShape::read(connection, &layout.name.name)? else { return Ok(State::Gone) };
        let number = layout.id.0;
        let schema = shape.schema(layout.id, SchemaVersion(layout.version.0 + 1), Some(layout));
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
            return Ok(Err(Failure::halt(
                format!("following the change of {}", layout.name),
                "its key is another one now",
                format!(
                    "give {} its former key back, or begin again with an empty folder to copy it anew",
                    layout.name
                ),
            )));
        }
        if captured.schema.identity == crossfade_event::Identity::FullRow
            && self.was_touched(connection, layout, emitted)?
        {
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
            self.record_again(connection, &captured, emitted)?;
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
    fn record_again(&self, connection: &Connection, captured: &Captured, emitted: i64) -> rusqlite::Result<()> {
        let schema = &captured.schema;
        let changes = quoted(&self.names.changes());
        let cells: Vec<String> = (0..schema.columns.len()).map(|place| format!("c{place}")).collect();
        let columns = crate::client::list(schema.columns.iter().map(|column| &column.name));
        let key = schema.key_columns();
        let names =
            crate::client::list(key.iter().filter_map(|index| schema.columns.get(*index)).map(|column| &column.name));
        let keys = key.iter().map(|index| format!("c{index}")).collect::<Vec<_>>().join(", ");
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

pub(crate) fn unrecorded(layout: &TableSchema, trigger: &str) -> Failure {
    Failure::lost(
        format!("following the schema of {}", layout.name),
        format!("the trigger {trigger} is missing, so changes of the table may not have been recorded"),
        "begin again with an empty folder, so that the table is copied anew (rebuilding a table drops its triggers)",
    )
}

fn has_newer_trigger(connection: &Connection, table: &str, than: i64) -> rusqlite::Result<bool> {
    connection
        .prepare_cached(
            "SELECT 1 FROM main.sqlite_schema WHERE type = 'trigger' AND tbl_name = ?1 COLLATE NOCASE AND rowid > ?2
             AND name NOT GLOB '_crossfade_*'",
        )?
        .exists((table, than))
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

/// The tables that patterns take, refused where one cannot be recorded.
pub(crate) fn matching(connection: &Connection, patterns: &[String]) -> Result<Vec<TableShape>, Failure> {
    let (found, refused) = matching_or_not(connection, patterns)?;
    if let Some(refused) = refused {
        return Err(refused);
    }
    if found.is_empty() {
        return Err(Failure::misconfigured("reading the schema", "no table matches", "check `tables`"));
    }
    Ok(found)
}

/// The tables that patterns take and that can be recorded, and why the first of the others cannot.
fn matching_or_not(
    connection: &Connection,
    patterns: &[String],
) -> Result<(Vec<TableShape>, Option<Failure>), Failure> {
    let doing = |error| failure("reading the schema", error);
    let (mut found, mut refused) = (Vec::new(), None);
    for (name, view) in shape::names(connection).map_err(doing)? {
        if view || !shape::matches(patterns, &name) {
            continue;
        }
        let shape = TableShape::read(connection, &name).map_err(doing)?;
        let Some(shape) = shape.filter(|shape| !shape.virtual_) else { continue };
        match obstacle(connection, &shape).map_err(doing)? {
            None => found.push(shape),
            Some((problem, remedy)) => {
                refused.get_or_insert_with(|| Failure::refused(format!("capturing {name}"), problem, remedy));
            }
        }
    }
    Ok((found, refused))
}

/// Why a table cannot be recorded, and the remedy.
pub(crate) fn obstacle(connection: &Connection, shape: &TableShape) -> rusqlite::Result<Option<(String, String)>> {
    if shape.virtual_ {
        return Ok(Some((
            format!("{} is a virtual table, and SQLite fires no triggers on those", shape.name),
            format!("leave it out: \"!main.{}\" in `tables`", shape.name),
        )));
    }
    if shape.carried().count() > 1990 {
        return Ok(Some((
            format!("{} has more than 1990 columns", shape.name),
            "leave it out of `tables`, or raise SQLITE_MAX_COLUMN".to_owned(),
        )));
    }
    let key = shape.key();
    if key.is_empty() && shape.rowid_name().is_none() {
        return Ok(Some((
            format!("{} has no key, and its columns hide every name of the rowid", shape.name),
            format!("give {} a primary key, or rename one of its columns rowid, _rowid_ and oid", shape.name),
        )));
    }
    let nullable: Vec<String> = shape
        .columns
        .iter()
        .filter(|column| key.contains(&&*column.name) && !column.not_null && !shape.without_rowid)
        .filter(|column| shape.rowid_column() != Some(column))
        .map(|column| format!("{} IS NULL", quoted(&column.name)))
        .collect();
    if !nullable.is_empty() {
        let sql = format!("SELECT 1 FROM {} WHERE {}", quoted(&shape.name), nullable.join(" OR "));
        if connection.prepare(&sql)?.exists([])? {
            return Ok(Some((
                format!("{} has rows with NULL in the primary key, and such rows cannot be told apart", shape.name),
                format!(
                    "give those rows a key: SELECT rowid, * FROM {} WHERE {}",
                    quoted(&shape.name),
                    nullable.join(" OR ")
                ),
            )));
        }
    }
    Ok(None)
}
