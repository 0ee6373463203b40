//! Following a table's shape: columns added, dropped, renamed, retyped, told apart by the source's own numbers.
//!
//! A change of shape is a part of the transaction that records it: cut off before its commit, nothing of it stays. So each
//! is made once, and names may go round (two columns that exchange theirs, one that takes the name of a column that goes):
//! the table itself could not tell whether that was done. Asked again in the same transaction, the note of the last shape
//! says so.

use super::{
    link::{Link, Param},
    make::{run, run_noted},
    store,
};
use crate::client::{failure, quote_ident, quote_literal, quote_table};
use crossfade_connector::{Failure, TargetTable, WriteMode};
use crossfade_event::{
    Column, TableName,
    catalog::{ColumnDef, TableDef},
};

/// Brings the table from one shape to the other, in the open transaction.
pub(super) async fn alter(
    link: &mut Link,
    migration: &str,
    before: &TargetTable,
    after: &TargetTable,
) -> Result<(), Failure> {
    let name = &after.schema.name;
    if before.schema.name != *name {
        rename_table(link, migration, before, after).await?;
    }
    let quoted = quote_table(name)?;
    let doing = format!("following a change of {name}'s shape");
    let shape = shape_of(after);
    let noted = link.query(&doing, NOTED, &[&migration, &&*name.schema, &&*name.name, &shape]).await?;
    if !noted.is_empty() {
        return Ok(());
    }
    let columns = Columns { before: &before.schema.columns, after: &after.schema.columns };
    let in_columns = matches!(after.mode, WriteMode::Columns { .. });
    if !in_columns {
        drop_generated(link, &doing, quoted.as_str(), &before.def, &after.def).await?;
        // Before the others are renamed: one of them may take the name.
        for old in columns.dropped() {
            let sql = format!("ALTER TABLE {quoted} DROP COLUMN IF EXISTS {}", quote_ident(&old.name)?);
            run(link, &doing, &sql).await?;
        }
    }
    let renamed = rename_columns(link, &doing, quoted.as_str(), &columns).await?;
    rename_in_undo(link, &doing, migration, name, &renamed).await?;
    let written = |index: usize| match &after.mode {
        WriteMode::Columns { columns } => columns.contains(&index),
        _ => true,
    };
    for (index, new) in after.schema.columns.iter().enumerate() {
        match columns.before.iter().find(|old| columns.is_same(old, new)) {
            _ if !written(index) => {}
            None => add(link, migration, &doing, quoted.as_str(), after, new).await?,
            Some(old) => retype(link, &doing, quoted.as_str(), old, new).await?,
        }
    }
    if !in_columns {
        add_generated(link, migration, &doing, quoted.as_str(), &before.def, after).await?;
    }
    run(link, &doing, &note_shape_sql(migration, name, Some(&shape))).await
}

const NOTED: &str =
    "SELECT FROM crossfade.objects WHERE migration = $1 AND kind = 'shape' AND schema = $2 AND name = $3 AND part = $4";

/// The columns, in short.
fn shape_of(table: &TargetTable) -> String {
    let mut text = String::new();
    for column in &table.schema.columns {
        text.push_str(&format!("{:?} {} {} {};", column.name, column.native_id, column.type_.name, column.nullable));
    }
    for def in table.def.columns.iter().filter(|def| def.generated.is_some()) {
        text.push_str(&format!("{:?} generated;", def.column.name));
    }
    format!("{:016x}", xxhash_rust::xxh3::xxh3_64(text.as_bytes()))
}

/// Notes the shape that a table was brought to, in place of the one before; with `None` forgets it.
pub(super) fn note_shape_sql(migration: &str, name: &TableName, shape: Option<&str>) -> String {
    let forget = format!(
        "DELETE FROM crossfade.objects WHERE migration = {} AND kind = 'shape' AND schema = {} AND name = {}",
        quote_literal(migration),
        quote_literal(&name.schema),
        quote_literal(&name.name)
    );
    match shape {
        Some(shape) => format!("{forget}; {}", store::note_sql(migration, "shape", &name.schema, &name.name, shape)),
        None => forget,
    }
}

/// A table's columns in both shapes.
struct Columns<'c> {
    before: &'c [Column],
    after: &'c [Column],
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
        // Two target columns may come from one source column (a shadow beside it): then the name decides, or the type.
        (alone(self.before) && alone(self.after))
            || old.name == new.name
            || old.type_ == new.type_
            || old.type_.name == new.type_.name
    }

    fn dropped(&self) -> impl Iterator<Item = &'c Column> {
        self.before.iter().filter(|old| !self.after.iter().any(|new| self.is_same(old, new)))
    }

    /// Old and new names of those that have another one now.
    fn renamed(&self) -> Vec<(&'c str, &'c str)> {
        let new_name = |old: &'c Column| {
            let same = || self.after.iter().filter(|new| self.is_same(old, new));
            let stays = same().any(|new| new.name == old.name);
            same().next().filter(|_| !stays).map(|new| (&*old.name, &*new.name))
        };
        self.before.iter().filter_map(new_name).collect()
    }
}

/// Gives columns their new names, in an order in which each name is free when it is taken; where names go round, one
/// column steps aside first.
///
/// Returns old and new names.
async fn rename_columns(
    link: &mut Link,
    doing: &str,
    quoted: &str,
    columns: &Columns<'_>,
) -> Result<Vec<(String, String)>, Failure> {
    let mut waiting: Vec<(String, String)> = Vec::new();
    for (old, new) in columns.renamed() {
        // What is not there has its new name from a run of an earlier release.
        if has_column(link, quoted, old).await? {
            waiting.push((old.to_owned(), new.to_owned()));
        }
    }
    let renamed = waiting.clone();
    let rename = async |link: &mut Link, old: &str, new: &str| {
        let sql = format!("ALTER TABLE {quoted} RENAME COLUMN {} TO {}", quote_ident(old)?, quote_ident(new)?);
        run(link, doing, &sql).await
    };
    while let Some((old, new)) = waiting.pop() {
        if let Some(place) = waiting.iter().position(|(other, _)| *other == new) {
            // The one that has the name goes first; if it waits for this one in turn, it steps aside.
            let (taken, wanted) = waiting.remove(place);
            if leads_to(&waiting, &wanted, &old) {
                let aside = format!("crossfade_aside_{}", waiting.len());
                rename(link, &taken, &aside).await?;
                waiting.push((aside, wanted));
                waiting.push((old, new));
            } else {
                waiting.push((old, new));
                waiting.push((taken, wanted));
            }
        } else if !has_column(link, quoted, &new).await? {
            rename(link, &old, &new).await?;
        }
    }
    Ok(renamed)
}

/// What was saved of a column goes back into that column, whatever it is called by then.
async fn rename_in_undo(
    link: &mut Link,
    doing: &str,
    migration: &str,
    table: &TableName,
    renamed: &[(String, String)],
) -> Result<(), Failure> {
    if renamed.is_empty() {
        return Ok(());
    }
    let names = |pick: fn(&(String, String)) -> &str| Param::texts(renamed.iter().map(|pair| Some(pick(pair))));
    let params = vec![
        Param::text(migration),
        Param::text(&table.schema),
        Param::text(&table.name),
        names(|(old, _)| old),
        names(|(_, new)| new),
    ];
    let sql = "UPDATE crossfade.undo SET columns = ARRAY(SELECT coalesce(m.now, u.name) \
               FROM unnest(columns) WITH ORDINALITY u(name, place) \
               LEFT JOIN unnest($4::text[], $5::text[]) m(was, now) ON m.was = u.name ORDER BY u.place) \
               WHERE migration = $1 AND table_schema = $2 AND table_name = $3 AND columns && $4::text[]";
    link.run(doing, sql, params).await.map(drop)
}

/// Whether `name` is held by a column that waits, by way of others perhaps, for `end`.
fn leads_to(waiting: &[(String, String)], name: &str, end: &str) -> bool {
    let mut name = name;
    for _ in 0..=waiting.len() {
        if name == end {
            return true;
        }
        match waiting.iter().find(|(old, _)| old == name) {
            Some((_, next)) => name = next,
            None => return false,
        }
    }
    false
}

async fn has_column(link: &mut Link, quoted: &str, column: &str) -> Result<bool, Failure> {
    let sql = "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = ($1::text)::regclass AND attname = $2 \
               AND attnum > 0 AND NOT attisdropped)";
    let rows = link.query("looking for a column", sql, &[&quoted, &column]).await?;
    Ok(rows.first().is_some_and(|row| row.get(0)))
}

async fn rename_table(
    link: &mut Link,
    migration: &str,
    before: &TargetTable,
    after: &TargetTable,
) -> Result<(), Failure> {
    let (old, new) = (&before.schema.name, &after.schema.name);
    let doing = format!("renaming {old} to {new}");
    let there = link
        .query(
            &doing,
            "SELECT to_regclass($1::text) IS NOT NULL, to_regclass($2::text) IS NOT NULL",
            &[&quote_table(old)?.as_str(), &quote_table(new)?.as_str()],
        )
        .await?;
    let (old_there, new_there) = there.first().map_or((false, false), |row| (row.get(0), row.get(1)));
    if !old_there || new_there {
        return Ok(());
    }
    let mut sql = String::new();
    if old.name != new.name {
        sql = format!("ALTER TABLE {} RENAME TO {};", quote_table(old)?, quote_ident(&new.name)?);
    }
    if old.schema != new.schema {
        let named = TableName::new(old.schema.clone(), new.name.clone());
        sql.push_str(&format!("ALTER TABLE {} SET SCHEMA {};", quote_table(&named)?, quote_ident(&new.schema)?));
    }
    run(link, &doing, &sql).await?;
    let names = [migration, &old.schema, &old.name, &new.schema, &new.name].map(Param::text).to_vec();
    let sql = "UPDATE crossfade.objects SET schema = $4, name = $5 WHERE migration = $1 AND schema = $2 AND name = $3";
    link.run(&doing, sql, names.clone()).await?;
    let sql = "UPDATE crossfade.undo SET table_schema = $4, table_name = $5 \
               WHERE migration = $1 AND table_schema = $2 AND table_name = $3";
    link.run(&doing, sql, names).await.map(drop)
}

async fn add(
    link: &mut Link,
    migration: &str,
    doing: &str,
    quoted: &str,
    after: &TargetTable,
    new: &Column,
) -> Result<(), Failure> {
    if has_column(link, quoted, &new.name).await? {
        return Ok(());
    }
    let def = after.def.column(&new.name);
    let mut sql = format!("ALTER TABLE {quoted} ADD COLUMN {} {}", quote_ident(&new.name)?, new.type_.name);
    // What filled the rows that were there already; what fills new ones may be another expression.
    match &new.default {
        Some(default) => sql.push_str(&format!(" DEFAULT {default}{}", if new.nullable { "" } else { " NOT NULL" })),
        None => tracing::debug!(column = %new.name, "the added column begins empty"),
    }
    let lasting = def.and_then(|def| def.default.as_deref());
    if lasting != new.default.as_deref() {
        let words = lasting.map_or_else(|| "DROP DEFAULT".to_owned(), |default| format!("SET DEFAULT {default}"));
        sql.push_str(&format!("; ALTER TABLE {quoted} ALTER COLUMN {} {words}", quote_ident(&new.name)?));
    }
    let name = &after.schema.name;
    run_noted(link, doing, &sql, &store::note_sql(migration, "column", &name.schema, &name.name, &new.name)).await
}

async fn retype(link: &mut Link, doing: &str, quoted: &str, old: &Column, new: &Column) -> Result<(), Failure> {
    let column = quote_ident(&new.name)?;
    if old.type_.name != new.type_.name {
        let sql = format!("ALTER TABLE {quoted} ALTER COLUMN {column} TYPE {0} USING {column}::{0}", new.type_.name);
        link.session.batch_execute(&sql).await.map_err(|error| match super::link::Trouble::of(doing, error) {
            super::link::Trouble::Failure(failure) => failure,
            trouble => Failure::halt(
                format!("giving the column {} its new type {}", new.name, new.type_.name),
                trouble.reason(),
                "Change the target's column by hand, or copy the table again",
            ),
        })?;
    }
    if new.nullable && !old.nullable {
        let sql = format!("ALTER TABLE {quoted} ALTER COLUMN {column} DROP NOT NULL");
        return run(link, doing, &sql).await;
    }
    if !new.nullable && old.nullable {
        let sql = format!("ALTER TABLE {quoted} ALTER COLUMN {column} SET NOT NULL");
        return try_only(link, doing, &sql).await;
    }
    Ok(())
}

/// Something that rows in quarantine, or rows of another writer, may stand against; the data does not depend on it.
async fn try_only(link: &mut Link, doing: &str, sql: &str) -> Result<(), Failure> {
    let framed = match link.open {
        true => format!("SAVEPOINT trying; {sql}; RELEASE SAVEPOINT trying"),
        false => sql.to_owned(),
    };
    match link.session.batch_execute(&framed).await {
        Ok(()) => Ok(()),
        Err(error) if error.code().is_some_and(|code| code.code().starts_with("23")) => {
            tracing::warn!(doing, "a constraint of the source does not hold in the target, and is left out there");
            match link.open {
                true => link.execute(doing, "ROLLBACK TO SAVEPOINT trying; RELEASE SAVEPOINT trying").await,
                false => Ok(()),
            }
        }
        Err(error) => Err(failure(doing, error)),
    }
}

/// Generated columns are not carried, but made: follow those that went, before the columns that they are made of go.
async fn drop_generated(
    link: &mut Link,
    doing: &str,
    quoted: &str,
    before: &TableDef,
    after: &TableDef,
) -> Result<(), Failure> {
    let is_gone = |def: &&ColumnDef| def.generated.is_some() && after.column(&def.column.name).is_none();
    for def in before.columns.iter().filter(is_gone) {
        let sql = format!("ALTER TABLE {quoted} DROP COLUMN IF EXISTS {}", quote_ident(&def.column.name)?);
        run(link, doing, &sql).await?;
    }
    Ok(())
}

/// And those that came, once the columns that they are made of are there.
async fn add_generated(
    link: &mut Link,
    migration: &str,
    doing: &str,
    quoted: &str,
    before: &TableDef,
    after: &TargetTable,
) -> Result<(), Failure> {
    let is_new = |def: &&ColumnDef| def.generated.is_some() && before.column(&def.column.name).is_none();
    for def in after.def.columns.iter().filter(is_new) {
        if !has_column(link, quoted, &def.column.name).await? {
            let sql = format!("ALTER TABLE {quoted} ADD COLUMN {}", super::ddl::column(def)?);
            let name = &after.schema.name;
            let note = store::note_sql(migration, "column", &name.schema, &name.name, &def.column.name);
            run_noted(link, doing, &sql, &note).await?;
        }
    }
    Ok(())
}
