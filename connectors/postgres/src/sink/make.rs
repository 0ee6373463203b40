//! Making the target: schemas, extensions, types, sequences, tables and columns. Additive and idempotent; what we made
//! is noted, so that a wipe drops that and nothing else.
//!
//! The primary key of a table that is about to be loaded waits until the load is in ([`super::finish`]), with the
//! other indexes and the foreign keys.

use super::{ddl, link::Link, store};
use crate::client::{failure, quote_ident, quote_literal, quote_table};
use crossfade_connector::{Failure, Target, TargetTable, WriteMode};
use crossfade_event::{
    Identity, TableName,
    catalog::{ColumnDef, RelationKind, SequenceDef, TypeDef, TypeDefinition},
};
use std::time::Duration;

/// How often a statement that waits for a lock too long is tried again.
const LOCK_ATTEMPTS: u32 = 10;

/// What is there of a table before anything is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing.
    Absent,
    /// We made it.
    Ours,
    /// Somebody else did, and it was empty when we came: all rows are ours.
    Adopted,
    /// Somebody else did, and it holds rows of theirs.
    Foreign,
}

/// Looks for every table first, and refuses before anything is changed.
pub(super) async fn survey(link: &mut Link, target: &Target) -> Result<Vec<Found>, Failure> {
    let mut found = Vec::with_capacity(target.tables.len());
    for table in &target.tables {
        let name = &table.schema.name;
        let doing = format!("looking for {name} in the target");
        let quoted = quote_table(name)?.as_str().to_owned();
        let sql = "SELECT c.relkind::text FROM pg_class c WHERE c.oid = to_regclass($1::text)";
        let rows = link.query(&doing, sql, &[&quoted]).await?;
        let Some(kind) = rows.first().map(|row| row.get::<_, String>(0)) else {
            if let WriteMode::Columns { .. } = table.mode {
                let told = format!("there is no table {name}");
                return Err(Failure::refused(
                    &doing,
                    told,
                    "Shadow columns are written beside existing ones: name their table",
                ));
            }
            found.push(Found::Absent);
            continue;
        };
        if !matches!(kind.as_str(), "r" | "p") {
            let told = format!("{name} exists and is no table");
            return Err(Failure::refused(&doing, told, "Choose another schema or name for the target's table"));
        }
        if is_ours(link, &target.migration, "table", name).await? {
            found.push(Found::Ours);
            continue;
        }
        if is_ours(link, &target.migration, "rows", name).await? {
            found.push(Found::Adopted);
            continue;
        }
        if table.mode == WriteMode::Table {
            let rows = link.query(&doing, &format!("SELECT EXISTS (SELECT FROM {quoted})"), &[]).await?;
            let is_empty = rows.first().is_some_and(|row| !row.get::<_, bool>(0));
            if is_empty {
                found.push(Found::Adopted);
                continue;
            }
            if !target.into_existing {
                let told =
                    format!("the table {name} exists in the target and holds rows that are not this migration's");
                let advice = "Empty or drop it, choose another schema, or set into_existing = true to write into it with undo records";
                return Err(Failure::refused(&doing, told, advice));
            }
        }
        found.push(Found::Foreign);
    }
    Ok(found)
}

/// On the way back every table is there: a migration came from it.
pub(super) fn refuse_absent(target: &Target, found: &[Found]) -> Result<(), Failure> {
    match target.tables.iter().zip(found).find(|(_, found)| **found == Found::Absent) {
        None => Ok(()),
        Some((table, _)) => Err(Failure::halt(
            "preparing the way back",
            format!("there is no table {} on the old side any more", table.schema.name),
            "Put it back as it was at the switch, with its rows; or give up the way back",
        )),
    }
}

async fn is_ours(link: &mut Link, migration: &str, kind: &str, name: &TableName) -> Result<bool, Failure> {
    if !store::exists(link).await? {
        return Ok(false);
    }
    let sql = "SELECT FROM crossfade.objects WHERE migration = $1 AND kind = $2 AND schema = $3 AND name = $4";
    let rows = link.query("looking for what we made", sql, &[&migration, &kind, &&*name.schema, &&*name.name]).await?;
    Ok(!rows.is_empty())
}

/// Runs DDL; waits for locks in small steps, so that the application's own queries never queue behind us for long.
pub(super) async fn run(link: &mut Link, doing: &str, sql: &str) -> Result<(), Failure> {
    run_noted(link, doing, sql, "").await
}

/// Runs DDL, and in the same transaction the note of what it made ([`store::note_sql`]).
pub(super) async fn run_noted(link: &mut Link, doing: &str, sql: &str, note: &str) -> Result<(), Failure> {
    let both = if note.is_empty() { sql.to_owned() } else { format!("{sql}; {note}") };
    let mut attempt = 0;
    loop {
        match link.session.batch_execute(&both).await {
            Ok(()) => return Ok(()),
            Err(error) => {
                let code = error.code().map(|code| code.code().to_owned()).unwrap_or_default();
                if code == "42501" {
                    let told = error.as_db_error().map_or_else(String::new, |error| error.message().to_owned());
                    let advice = format!(
                        "{} Grant the sink's role what the message names (for a new schema: GRANT CREATE ON DATABASE …; \
                         inside a schema: GRANT USAGE, CREATE ON SCHEMA …), or let its owner run: {}",
                        "The role may not do this.",
                        sql.trim()
                    );
                    return Err(Failure::refused(doing, told, advice));
                }
                attempt += 1;
                if code != "55P03" || link.open || attempt >= LOCK_ATTEMPTS {
                    return Err(failure(doing, error));
                }
                tokio::time::sleep(Duration::from_millis(50 << attempt.min(6))).await;
            }
        }
    }
}

async fn exists(link: &mut Link, sql: &str, name: &str) -> Result<bool, Failure> {
    let rows = link.query("looking at the target's catalog", sql, &[&name]).await?;
    Ok(rows.first().is_some_and(|row| row.get(0)))
}

async fn make_schema(link: &mut Link, migration: &str, schema: &str) -> Result<(), Failure> {
    if exists(link, "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)", schema).await? {
        return Ok(());
    }
    let note = store::note_sql(migration, "schema", schema, "", "");
    run_noted(link, &format!("making the schema {schema}"), &ddl::schema(schema)?, &note).await
}

/// Makes everything that tables need.
pub(super) async fn make_support(link: &mut Link, target: &Target) -> Result<(), Failure> {
    let migration = &target.migration;
    let support = &target.support;
    for schema in ddl::schemas(target) {
        make_schema(link, migration, schema).await?;
    }
    for extension in &support.extensions {
        if exists(link, "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = $1)", extension).await? {
            continue;
        }
        let note = store::note_sql(migration, "extension", "", extension, "");
        let sql = format!("{}; {note}", ddl::extension(extension)?);
        let doing = format!("making the extension {extension}, whose types the tables use");
        if let Err(error) = link.session.batch_execute(&sql).await {
            let told = error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned());
            let advice =
                format!("Let an administrator of the target run: CREATE EXTENSION {}", quote_ident(extension)?);
            return Err(Failure::refused(doing, told, advice));
        }
    }
    for type_ in &support.types {
        make_type(link, migration, type_).await?;
    }
    for sequence in &support.sequences {
        make_sequence(link, target, sequence).await?;
    }
    Ok(())
}

async fn make_type(link: &mut Link, migration: &str, type_: &TypeDef) -> Result<(), Failure> {
    let quoted = quote_table(&type_.name)?;
    if exists(link, "SELECT to_regtype($1::text) IS NOT NULL", quoted.as_str()).await? {
        if let TypeDefinition::Enum(labels) = &type_.definition {
            return add_labels(link, &type_.name, labels).await;
        }
        return Ok(());
    }
    let kind = if matches!(type_.definition, TypeDefinition::Domain(_)) { "domain" } else { "type" };
    let note = store::note_sql(migration, kind, &type_.name.schema, &type_.name.name, "");
    run_noted(link, &format!("making the type {}", type_.name), &ddl::type_(type_)?, &note).await
}

/// Labels that came to enums since they were made. A label can be used once the transaction that added it has ended:
/// `link` must have none open.
pub(super) async fn make_labels(link: &mut Link, target: &Target) -> Result<(), Failure> {
    for type_ in &target.support.types {
        if let TypeDefinition::Enum(labels) = &type_.definition {
            let quoted = quote_table(&type_.name)?;
            if exists(link, "SELECT to_regtype($1::text) IS NOT NULL", quoted.as_str()).await? {
                add_labels(link, &type_.name, labels).await?;
            }
        }
    }
    Ok(())
}

/// Whether an enum that is there lacks a label.
pub(super) async fn lacks_labels(link: &mut Link, target: &Target) -> Result<bool, Failure> {
    for type_ in &target.support.types {
        if let TypeDefinition::Enum(labels) = &type_.definition {
            let sql = "SELECT to_regtype($1::text) IS NOT NULL AND EXISTS (SELECT FROM unnest($2::text[]) l \
                       WHERE l NOT IN (SELECT enumlabel::text FROM pg_enum WHERE enumtypid = to_regtype($1::text)))";
            let quoted = quote_table(&type_.name)?;
            let rows = link.query("looking at the labels of an enum", sql, &[&quoted.as_str(), labels]).await?;
            if rows.first().is_some_and(|row| row.get(0)) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Labels that came to an enum since it was made. Their order among the old ones is kept.
async fn add_labels(link: &mut Link, name: &TableName, labels: &[String]) -> Result<(), Failure> {
    let quoted = quote_table(name)?;
    let sql = "SELECT enumlabel::text FROM pg_enum WHERE enumtypid = ($1::text)::regtype";
    let there = link.query("looking at the labels of an enum", sql, &[&quoted.as_str()]).await?;
    let there: Vec<String> = there.iter().map(|row| row.get(0)).collect();
    for (place, label) in labels.iter().enumerate() {
        if there.contains(label) {
            continue;
        }
        let before = place.checked_sub(1).and_then(|before| labels.get(before));
        let after = before.map_or_else(
            || labels.iter().find(|label| there.contains(label)).map(|next| format!(" BEFORE {}", quote_literal(next))),
            |before| Some(format!(" AFTER {}", quote_literal(before))),
        );
        let sql = format!(
            "ALTER TYPE {quoted} ADD VALUE IF NOT EXISTS {}{}",
            quote_literal(label),
            after.unwrap_or_default()
        );
        run(link, &format!("adding a label to {name}"), &sql).await?;
    }
    Ok(())
}

async fn make_sequence(link: &mut Link, target: &Target, sequence: &SequenceDef) -> Result<(), Failure> {
    let Some(sql) = ddl::sequence(target, sequence)? else { return Ok(()) };
    let quoted = quote_table(&sequence.name)?;
    if exists(link, "SELECT to_regclass($1::text) IS NOT NULL", quoted.as_str()).await? {
        return Ok(());
    }
    let note = store::note_sql(&target.migration, "sequence", &sequence.name.schema, &sequence.name.name, "");
    run_noted(link, &format!("making the sequence {}", sequence.name), &sql, &note).await
}

/// Makes a table, or the columns that are ours in somebody else's.
pub(super) async fn make_table(
    link: &mut Link,
    target: &Target,
    table: &TargetTable,
    found: Found,
) -> Result<(), Failure> {
    match (&table.mode, found) {
        (WriteMode::Columns { .. }, _) => {
            for (column, type_, def) in ddl::shadow_columns(table) {
                add_column(link, &target.migration, &table.schema.name, column, type_, def).await?;
            }
            Ok(())
        }
        (_, Found::Absent) => create_table(link, target, table).await,
        // A column that came since it was made.
        (_, Found::Ours) => {
            for def in &table.def.columns {
                let column = &def.column;
                add_column(link, &target.migration, &table.schema.name, &column.name, &column.type_.name, Some(def))
                    .await?;
            }
            complete_table(link, target, table).await
        }
        (_, Found::Adopted) => {
            let name = &table.schema.name;
            let note = store::note_sql(&target.migration, "rows", &name.schema, &name.name, "");
            link.execute("noting what was made", &note).await
        }
        (_, Found::Foreign) => Ok(()),
    }
}

async fn add_column(
    link: &mut Link,
    migration: &str,
    table: &TableName,
    column: &str,
    type_: &str,
    def: Option<&ColumnDef>,
) -> Result<(), Failure> {
    let quoted = quote_table(table)?;
    let sql = "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = ($1::text)::regclass AND attname = $2 \
               AND attnum > 0 AND NOT attisdropped)";
    let rows = link.query("looking for a column", sql, &[&quoted.as_str(), &column]).await?;
    if rows.first().is_some_and(|row| row.get(0)) {
        return Ok(());
    }
    let sql = ddl::add_column(table, column, type_, def)?;
    let note = store::note_sql(migration, "column", &table.schema, &table.name, column);
    run_noted(link, &format!("adding the column {column} to {table}"), &sql, &note).await
}

async fn create_table(link: &mut Link, target: &Target, table: &TargetTable) -> Result<(), Failure> {
    let name = &table.schema.name;
    let parent_is_there = match &table.def.kind {
        RelationKind::Partition { parent, .. } => {
            target.tables.iter().any(|other| other.schema.name == *parent)
                || exists(link, "SELECT to_regclass($1::text) IS NOT NULL", quote_table(parent)?.as_str()).await?
        }
        _ => false,
    };
    let sql = ddl::table(table, parent_is_there)?;
    let doing = format!("making the table {name}");
    let note = |kind| store::note_sql(&target.migration, kind, &name.schema, &name.name, "");
    let new = format!("{}; {}", note("table"), super::alter::note_shape_sql(&target.migration, name, None));
    let notes = match table.mode {
        WriteMode::InsertOnce => format!("{new}; {}", note("mapping")),
        _ => new,
    };
    run_noted(link, &doing, &sql, &notes).await?;
    complete_table(link, target, table).await
}

/// What a table that we made needs beside itself; repeating it changes nothing.
async fn complete_table(link: &mut Link, target: &Target, table: &TargetTable) -> Result<(), Failure> {
    let name = &table.schema.name;
    let doing = format!("making the table {name}");
    if table.mode == WriteMode::InsertOnce {
        super::finish::make_key(link, target, table).await?;
    }
    for sql in ddl::owned_sequences(target, table)? {
        run(link, &doing, &sql).await?;
    }
    Ok(())
}

/// A table that was there before us must be one that rows can be found in.
pub(super) fn check_key(table: &super::table::Table, found: Found) -> Result<(), Failure> {
    let schema = &table.target.schema;
    let theirs = matches!(found, Found::Foreign | Found::Adopted);
    if theirs && schema.identity == Identity::Key && !table.arbiter {
        let told =
            format!("the table {} has no unique index on exactly the key by which its rows are found", schema.name);
        return Err(Failure::refused(
            "preparing the target",
            told,
            "Add a primary key or a unique index on those columns",
        ));
    }
    Ok(())
}
