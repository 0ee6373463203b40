//! Following a table's shape: columns dropped, renamed, added, retyped, told apart by the source's own numbers.
//!
//! A change of shape is a part of the transaction that records it: cut off before its commit, nothing of it stays. Names
//! may go round (two columns that exchange theirs, one that takes the name of a column that goes), so the table itself
//! cannot tell whether that was done. The note of the last shape, in the same transaction, says so to whoever asks again.

use super::{own, table, table::Table, writer::Writer};
use crate::{
    client::{failure, list, literal, quoted},
    inspect::shape::{Affinity, TableShape},
};
use crossfade_connector::{Failure, TargetTable, WriteMode};
use crossfade_event::{Column, catalog::Dialect};
use rusqlite::Connection;
use std::sync::Arc;

/// What a column is called that cannot be dropped, until the table is made anew without it.
const GONE: &str = "_crossfade_gone_";

/// The note of the shape that a table was brought to.
pub(super) const SHAPE: &str = "shape";

impl Writer {
    /// Follows a change of a table's shape, as a part of the open transaction.
    pub(super) fn alter(&mut self, before: &TargetTable, after: &TargetTable) -> Result<(), Failure> {
        let doing = || format!("following the change of {}", before.schema.name);
        let ours = self.tables.get(&before.schema.id).is_none_or(|table| table.ours);
        if before.schema.name != after.schema.name {
            return Err(Failure::halt(
                doing(),
                "the table has another name now",
                "rename it back, or begin a new migration",
            ));
        }
        if ours && after.mode == WriteMode::Table {
            let outside = !self.open;
            if outside {
                self.begin(&doing())?;
            }
            let altered = if outside { self.check_fence() } else { Ok(()) };
            let altered = altered.and_then(|()| self.alter_in(before, after));
            if altered.is_err() {
                self.abandon();
            }
            altered?;
            if outside {
                let committed = self.commit(&doing());
                if committed.is_err() {
                    self.abandon();
                }
                committed?;
            }
        }
        if !ours {
            self.check_columns(after)?;
        }
        let table = Table::new(after.clone(), ours);
        self.tables.remove(&before.schema.id);
        self.tables.insert(table.id(), table);
        self.layouts.clear();
        Ok(())
    }

    /// A table that somebody else made is theirs to change.
    fn check_columns(&self, after: &TargetTable) -> Result<(), Failure> {
        let name = &*after.schema.name.name;
        let doing = format!("following the change of {name}");
        let shape = TableShape::read(self.connection()?, name).map_err(|error| failure(&doing, error))?;
        match shape.as_ref().and_then(|shape| table::misfit(after, shape)) {
            None => Ok(()),
            Some((problem, remedy)) => {
                Err(Failure::halt(doing, format!("the target's table, which somebody else made: {problem}"), remedy))
            }
        }
    }

    fn alter_in(&mut self, before: &TargetTable, after: &TargetTable) -> Result<(), Failure> {
        let name = &*before.schema.name.name;
        let doing = format!("following the change of {name}");
        let failed = |error| failure(&doing, error);
        let shape = shape_of(after);
        let noted = own::noted(self.connection()?, &self.migration, SHAPE).map_err(failed)?;
        if noted.iter().any(|(table, noted)| table == name && *noted == shape) {
            return Ok(());
        }
        let columns = Columns { before: &before.schema.columns, after: &after.schema.columns };
        let dropped: Vec<&str> = columns.dropped().map(|column| &*column.name).collect();
        let renamed = columns.renamed();
        let mut change = Change { connection: self.connection()?, doing: &doing, name, rebuild: false };
        for (number, column) in dropped.iter().enumerate() {
            // Before the others are renamed: one of them may take the name.
            change.drop_column(column, number)?;
        }
        change.rename(&renamed)?;
        for new in columns.added() {
            change.add(new)?;
        }
        for (old, new) in columns.kept() {
            change.retype(old, new)?;
        }
        if change.rebuild {
            self.rebuild(after, &doing)?;
        }
        self.pending_follows(name, &dropped, &renamed)?;
        own::note(self.connection()?, &self.migration, SHAPE, name, &shape).map_err(failed)
    }

    /// Makes the table anew in its shape, with its rows: for what SQLite cannot do to a table that is there.
    fn rebuild(&self, after: &TargetTable, doing: &str) -> Result<(), Failure> {
        if self.support.dialect == Dialect::Sqlite {
            return Err(Failure::halt(
                doing,
                "SQLite cannot change the target's table to that shape",
                format!("change {} in the target by hand to the source's shape", after.schema.name.name),
            ));
        }
        rebuild(self.connection()?, after, &self.support).map_err(|error| failure(doing, error))
    }
}

/// The columns, in short.
fn shape_of(table: &TargetTable) -> String {
    table.schema.columns.iter().fold(String::new(), |mut text, column| {
        text.push_str(&format!("{:?} {} {:?} {};", column.name, column.native_id, column.type_.name, column.nullable));
        text
    })
}

/// A table's columns in both shapes.
pub(super) struct Columns<'c> {
    pub(super) before: &'c [Column],
    pub(super) after: &'c [Column],
}

impl<'c> Columns<'c> {
    /// The same column of the source: numbers tell, where the source has them, names otherwise.
    fn is_same(&self, old: &Column, new: &Column) -> bool {
        if old.native_id == 0 || new.native_id == 0 {
            return old.name == new.name;
        }
        if old.native_id != new.native_id {
            return false;
        }
        let alone = |columns: &[Column]| columns.iter().filter(|one| one.native_id == old.native_id).count() == 1;
        // Two target columns may come from one source column: then the name decides.
        (alone(self.before) && alone(self.after)) || old.name == new.name
    }

    fn dropped(&self) -> impl Iterator<Item = &'c Column> {
        self.before.iter().filter(|old| !self.after.iter().any(|new| self.is_same(old, new)))
    }

    fn added(&self) -> impl Iterator<Item = &'c Column> {
        self.after.iter().filter(|new| self.was(new).is_none())
    }

    fn kept(&self) -> impl Iterator<Item = (&'c Column, &'c Column)> {
        self.after.iter().filter_map(|new| Some((self.was(new).and_then(|at| self.before.get(at))?, new)))
    }

    /// Where a column of the new shape stood in the one before.
    pub(super) fn was(&self, new: &Column) -> Option<usize> {
        self.before.iter().position(|old| self.is_same(old, new))
    }

    /// Old and new names of those that have another one now.
    fn renamed(&self) -> Vec<(&'c str, &'c str)> {
        let names = self.kept().map(|(old, new)| (&*old.name, &*new.name));
        names.filter(|(old, new)| old != new).collect()
    }
}

/// A change of one table, statement by statement.
struct Change<'c> {
    connection: &'c Connection,
    doing: &'c str,
    name: &'c str,
    /// Something is left that only a table made anew can have.
    rebuild: bool,
}

impl Change<'_> {
    fn run(&self, sql: &str) -> Result<(), Failure> {
        self.connection.execute_batch(sql).map_err(|error| failure(self.doing, error))
    }

    /// Runs what SQLite may not be able to do; false if so, and then nothing was done.
    fn try_to(&self, sql: &str) -> Result<bool, Failure> {
        self.run("SAVEPOINT crossfade_shape")?;
        let tried = self.connection.execute_batch(sql);
        if tried.is_err() {
            self.run("ROLLBACK TO crossfade_shape")?;
        }
        self.run("RELEASE crossfade_shape")?;
        match tried {
            Ok(()) => Ok(true),
            Err(error) => match failure(self.doing, error) {
                transient if transient.is_transient() => Err(transient),
                _ => Ok(false),
            },
        }
    }

    fn shape(&self) -> Result<TableShape, Failure> {
        let shape = TableShape::read(self.connection, self.name).map_err(|error| failure(self.doing, error))?;
        shape.ok_or_else(|| {
            Failure::halt(self.doing, "the target's table is gone", "begin again with a target that is empty")
        })
    }

    fn has(&self, column: &str) -> Result<bool, Failure> {
        Ok(self.shape()?.columns.iter().any(|have| have.name.eq_ignore_ascii_case(column)))
    }

    /// Indexes over a column go with it. What else hangs on it keeps it from going: then it steps aside.
    fn drop_column(&mut self, column: &str, number: usize) -> Result<(), Failure> {
        let shape = self.shape()?;
        if !shape.columns.iter().any(|have| have.name.eq_ignore_ascii_case(column)) {
            return Ok(());
        }
        let over = |part: &Option<String>| part.as_ref().is_some_and(|name| name.eq_ignore_ascii_case(column));
        for index in shape.indexes.iter().filter(|index| index.origin == "c") {
            if index.parts.iter().any(|part| over(&part.column)) {
                self.run(&format!("DROP INDEX {}", quoted(&index.name)))?;
            }
        }
        let (table, column) = (quoted(self.name), quoted(column));
        if !self.try_to(&format!("ALTER TABLE {table} DROP COLUMN {column}"))? {
            self.rebuild = true;
            let aside = quoted(&format!("{GONE}{number}"));
            self.run(&format!("ALTER TABLE {table} RENAME COLUMN {column} TO {aside}"))?;
        }
        Ok(())
    }

    /// Gives columns their new names. Where one of these is still another column's, all step aside first.
    fn rename(&self, renamed: &[(&str, &str)]) -> Result<(), Failure> {
        let table = quoted(self.name);
        let there = self.shape()?;
        // What is not there has its new name from a run of an earlier release.
        let is_there = |old: &str| there.columns.iter().any(|column| column.name.eq_ignore_ascii_case(old));
        let renamed: Vec<_> = renamed.iter().filter(|(old, _)| is_there(old)).collect();
        let one = |old: &str, new: &str| {
            self.run(&format!("ALTER TABLE {table} RENAME COLUMN {} TO {}", quoted(old), quoted(new)))
        };
        let mut taken = false;
        for (_, new) in &renamed {
            taken |= renamed.iter().any(|(old, other)| old.eq_ignore_ascii_case(new) && other != new);
        }
        if !taken {
            return renamed.iter().try_for_each(|(old, new)| one(old, new));
        }
        let aside = |number: usize| format!("_crossfade_aside_{number}");
        for (number, (old, _)) in renamed.iter().enumerate() {
            one(old, &aside(number))?;
        }
        renamed.iter().enumerate().try_for_each(|(number, (_, new))| one(&aside(number), new))
    }

    fn add(&self, new: &Column) -> Result<(), Failure> {
        if self.has(&new.name)? {
            return Ok(());
        }
        let (table, column) = (quoted(self.name), quoted(&new.name));
        let plain = format!("ALTER TABLE {table} ADD COLUMN {column} {}", new.type_.name);
        // A column's default is a literal in SQLite's own words: the plan has seen to that.
        let Some(default) = &new.default else { return self.run(&plain) };
        let not_null = if new.nullable { "" } else { " NOT NULL" };
        self.run(&format!("{plain}{not_null} DEFAULT ({default})"))
    }

    fn retype(&mut self, old: &Column, new: &Column) -> Result<(), Failure> {
        let affinity = |column: &Column| Affinity::of(&column.type_.name, false);
        self.rebuild |= affinity(old) != affinity(new);
        if old.nullable == new.nullable || new.key.is_some() {
            return Ok(());
        }
        let word = if new.nullable { "DROP" } else { "SET" };
        let (table, column) = (quoted(self.name), quoted(&new.name));
        let done = self.try_to(&format!("ALTER TABLE {table} ALTER COLUMN {column} {word} NOT NULL"))?;
        if !done && new.nullable {
            return Err(Failure::halt(
                self.doing,
                format!("the column {} may be NULL in the source now, and must not be in the target", new.name),
                format!("ALTER TABLE {table} ALTER COLUMN {column} DROP NOT NULL"),
            ));
        }
        if !done {
            // Rows in quarantine may stand against it; the data does not depend on it.
            tracing::warn!(table = self.name, column = %new.name, "the source's NOT NULL does not hold in the target");
        }
        Ok(())
    }
}

/// Copies a table into one of its new shape, which takes its place, its indexes and its triggers.
fn rebuild(
    connection: &Connection,
    after: &TargetTable,
    support: &crossfade_event::catalog::Catalog,
) -> rusqlite::Result<()> {
    let name = &*after.schema.name.name;
    let aside = format!("_crossfade_rebuilt_{name}");
    let saved: Vec<String> = connection
        .prepare(
            "SELECT sql FROM main.sqlite_schema WHERE tbl_name = ?1 COLLATE NOCASE AND type IN ('index', 'trigger')
             AND sql IS NOT NULL ORDER BY rowid",
        )?
        .query_map([name], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let mut schema = (*after.schema).clone();
    schema.name.name = aside.as_str().into();
    // What became of the rows that are there is the source's to say: they must only fit in.
    let present = TableShape::read(connection, name)?;
    for column in &mut schema.columns {
        let have = present.iter().flat_map(|shape| &shape.columns).find(|have| *have.name == *column.name);
        column.nullable |= column.key.is_none() && have.is_some_and(|have| !have.not_null);
    }
    let made = TargetTable { schema: Arc::new(schema), ..after.clone() };
    connection.execute_batch(&table::create(&made, support))?;
    let columns = list(after.schema.columns.iter().map(|column| &column.name));
    let (old, new) = (quoted(name), quoted(&aside));
    connection.execute_batch(&format!("INSERT INTO {new} ({columns}) SELECT {columns} FROM {old}"))?;
    let counted = crate::client::exists(connection, "table", "sqlite_sequence")?;
    if counted {
        let sequence = format!(
            "UPDATE sqlite_sequence SET seq = max(seq, coalesce((SELECT seq FROM sqlite_sequence WHERE name = {}), 0)) \
             WHERE name = {}",
            literal(name),
            literal(&aside)
        );
        connection.execute_batch(&sequence)?;
    }
    connection.execute_batch(&format!("DROP TABLE {old}"))?;
    // Views that read the table, and references to it, keep its name while it is not there.
    connection.pragma_update(None, "legacy_alter_table", true)?;
    let renamed = connection.execute_batch(&format!("ALTER TABLE {new} RENAME TO {old}"));
    connection.pragma_update(None, "legacy_alter_table", false)?;
    renamed?;
    let mut left = saved.iter().filter(|sql| !sql.contains(GONE));
    left.try_for_each(|sql| connection.execute_batch(sql))
}
