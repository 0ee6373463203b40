//! Following a table's shape: columns added, dropped, renamed, retyped, told apart by the source's own numbers.
//!
//! Every step looks at the table as it is, so that a repeat changes nothing.

use super::{
    link::Link,
    make::{run, run_noted},
    store,
};
use crate::client::{failure, quote_ident, quote_table};
use crossfade_connector::{Failure, TargetTable, WriteMode};
use crossfade_event::{
    Column,
    catalog::{ColumnDef, TableDef},
};

/// Brings the table from one shape to the other.
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
    let written = |index: usize| match &after.mode {
        WriteMode::Columns { columns } => columns.contains(&index),
        _ => true,
    };
    // Names first: a column may take the name that another one gives up.
    for old in &before.schema.columns {
        let renamed = after.schema.columns.iter().find(|new| same_column(old, new) && new.name != old.name);
        if let Some(new) = renamed
            && has_column(link, quoted.as_str(), &old.name).await?
            && !has_column(link, quoted.as_str(), &new.name).await?
        {
            let sql = format!(
                "ALTER TABLE {quoted} RENAME COLUMN {} TO {}",
                quote_ident(&old.name)?,
                quote_ident(&new.name)?
            );
            run(link, &doing, &sql).await?;
        }
    }
    for old in dropped(&before.schema.columns, &after.schema.columns) {
        if !matches!(after.mode, WriteMode::Columns { .. }) {
            let sql = format!("ALTER TABLE {quoted} DROP COLUMN IF EXISTS {}", quote_ident(&old.name)?);
            run(link, &doing, &sql).await?;
        }
    }
    for (index, new) in after.schema.columns.iter().enumerate().filter(|(index, _)| written(*index)) {
        match before.schema.columns.iter().find(|old| same_column(old, new)) {
            None => add(link, migration, &doing, quoted.as_str(), after, new).await?,
            Some(old) => retype(link, &doing, quoted.as_str(), old, new).await?,
        }
        let _ = index;
    }
    generated(link, migration, &doing, quoted.as_str(), &before.def, after).await
}

/// The same column of the source; numbers tell, where the source has them, names otherwise.
fn same_column(old: &Column, new: &Column) -> bool {
    if old.native_id != 0 && new.native_id != 0 {
        old.native_id == new.native_id && same_family(old, new)
    } else {
        old.name == new.name
    }
}

/// Two target columns may come from one source column (a shadow beside it): then the name decides.
fn same_family(old: &Column, new: &Column) -> bool {
    old.name == new.name || old.type_ == new.type_ || old.type_.name == new.type_.name
}

fn dropped<'c>(before: &'c [Column], after: &'c [Column]) -> impl Iterator<Item = &'c Column> {
    before
        .iter()
        .filter(|old| !after.iter().any(|new| same_column(old, new)) && !after.iter().any(|new| new.name == old.name))
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
        let named = crossfade_event::TableName::new(old.schema.clone(), new.name.clone());
        sql.push_str(&format!("ALTER TABLE {} SET SCHEMA {};", quote_table(&named)?, quote_ident(&new.schema)?));
    }
    run(link, &doing, &sql).await?;
    let sql = "UPDATE crossfade.objects SET schema = $4, name = $5 WHERE migration = $1 AND schema = $2 AND name = $3";
    let params = [migration, &old.schema, &old.name, &new.schema, &new.name].map(super::link::Param::text).to_vec();
    link.run(&doing, sql, params).await.map(drop)
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

/// Generated columns are not carried, but made: follow those that came and went.
async fn generated(
    link: &mut Link,
    migration: &str,
    doing: &str,
    quoted: &str,
    before: &TableDef,
    after: &TargetTable,
) -> Result<(), Failure> {
    if matches!(after.mode, WriteMode::Columns { .. }) {
        return Ok(());
    }
    let is_new = |def: &&ColumnDef| def.generated.is_some() && before.column(&def.column.name).is_none();
    for def in after.def.columns.iter().filter(is_new) {
        if !has_column(link, quoted, &def.column.name).await? {
            let sql = format!("ALTER TABLE {quoted} ADD COLUMN {}", super::ddl::column(def)?);
            let name = &after.schema.name;
            let note = store::note_sql(migration, "column", &name.schema, &name.name, &def.column.name);
            run_noted(link, doing, &sql, &note).await?;
        }
    }
    let is_gone = |def: &&ColumnDef| def.generated.is_some() && after.def.column(&def.column.name).is_none();
    for def in before.columns.iter().filter(is_gone) {
        let sql = format!("ALTER TABLE {quoted} DROP COLUMN IF EXISTS {}", quote_ident(&def.column.name)?);
        run(link, doing, &sql).await?;
    }
    Ok(())
}
