//! After a load: primary keys, unique constraints, indexes, foreign keys, sequences. All of it idempotent, for it may
//! be killed anywhere; what is made and the note of it are one transaction, for an index whose name another relation has
//! is known by its note alone.
//!
//! In two steps, for a load's rows come from different moments: keys (and plain indexes) as soon as the load is in, all
//! else once the stream has passed the load's end. In between two rows may well hold one unique value, or a row's
//! parent be gone, as they never did in the source.

use super::{
    apply::OnError,
    collide,
    ddl::{self, RowKey},
    link::Link,
    make,
    statements::WRITTEN_FIRST,
    store,
    table::Table,
};
use crate::client::{failure, quote_ident, quote_table};
use crossfade_connector::{Failure, Target, TargetTable, WriteMode};
use crossfade_event::{
    TableName,
    catalog::{ForeignKeyDef, IndexDef, KeyDef},
};

/// Planning for the work below, and back to planning for sets.
pub(super) const PLAN_WHOLE: &str = "SET enable_hashjoin = on; SET enable_mergejoin = on; SET enable_seqscan = on; \
     SET enable_material = on; SET enable_memoize = on";
/// A set meets its table by the key's index, always: no statistics can make the server read the whole table instead.
pub(super) const PLAN_SETS: &str = "SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_seqscan = off; \
     SET enable_material = off; SET enable_memoize = off";

/// Makes the keys of tables of ours that lack them.
pub(super) async fn make_keys(link: &mut Link, target: &Target, tables: &mut [Table]) -> Result<(), Failure> {
    link.execute("preparing to make keys", PLAN_WHOLE).await?;
    for table in tables.iter_mut() {
        if table.bulk && is_ours(table) {
            make_key(link, target, &table.target).await?;
            table.look_at_indexes(link).await?;
        }
    }
    link.forget();
    link.execute("preparing to write sets", PLAN_SETS).await
}

/// Makes one table's primary key, or where it has none, a unique index on the key by which its rows are found.
pub(super) async fn make_key(link: &mut Link, target: &Target, table: &TargetTable) -> Result<(), Failure> {
    let name = &table.schema.name;
    let quoted = quote_table(name)?;
    let doing = format!("making the primary key of {name}");
    match ddl::row_key(table) {
        RowKey::None => Ok(()),
        RowKey::Unique(key) => make_unique(link, target, table, key).await.map(drop),
        RowKey::Primary(key) => {
            let sql = "SELECT EXISTS (SELECT FROM pg_index WHERE indrelid = ($1::text)::regclass AND indisprimary)";
            let rows = link.query(&doing, sql, &[&quoted.as_str()]).await?;
            if rows.first().is_some_and(|row| row.get::<_, bool>(0)) {
                return Ok(());
            }
            let is_free = is_free(link, name, &key.name).await?;
            let sql = ddl::constraint(name, key, "PRIMARY KEY", is_free)?;
            let note = store::note_sql(&target.migration, "constraint", &name.schema, &name.name, &key.name);
            unique_or_dedupe(link, &doing, &Making { sql, note }, quoted.as_str(), &ddl::list(&key.columns)?).await
        }
        RowKey::Index(columns) => {
            let sql = "SELECT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = ($1::text)::regclass AND i.indisunique AND \
                 i.indimmediate AND i.indpred IS NULL AND ARRAY(SELECT a.attname::text FROM pg_attribute a \
                 WHERE a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey::int2[]) ORDER BY a.attname) = $2)";
            let rows = link.query(&doing, sql, &[&quoted.as_str(), &ddl::sorted(&columns)]).await?;
            if rows.first().is_some_and(|row| row.get::<_, bool>(0)) {
                return Ok(());
            }
            // Known by its columns: a note would add nothing.
            let making = Making { sql: ddl::key_index(name, &columns)?, note: String::new() };
            unique_or_dedupe(link, &doing, &making, quoted.as_str(), &ddl::list(&columns)?).await
        }
    }
}

/// A statement that makes something, and the note of it: together one transaction.
pub(super) struct Making {
    pub(super) sql: String,
    pub(super) note: String,
}

impl Making {
    pub(super) fn both(&self) -> String {
        format!("{}; {}", self.sql, self.note)
    }
}

/// Adds something unique. Where a key came twice (its row moved while it was copied) the later one goes: the
/// stream has the row's last image still to come.
async fn unique_or_dedupe(
    link: &mut Link,
    doing: &str,
    making: &Making,
    table: &str,
    columns: &str,
) -> Result<(), Failure> {
    let both = making.both();
    let framed = match link.open {
        true => format!("SAVEPOINT making; {both}; RELEASE SAVEPOINT making"),
        false => both.clone(),
    };
    let Err(error) = link.session.batch_execute(&framed).await else { return Ok(()) };
    if error.code().is_none_or(|code| code.code() != "23505") {
        return match link.open {
            true => Err(failure(doing, error)),
            false => make::run_noted(link, doing, &making.sql, &making.note).await,
        };
    }
    let dedupe = format!(
        "DELETE FROM {table} d USING (SELECT ctid AS at, tableoid AS part, row_number() OVER (PARTITION BY {columns} ORDER BY {WRITTEN_FIRST}) AS n \
         FROM {table}) x WHERE x.n > 1 AND d.ctid = x.at AND d.tableoid = x.part"
    );
    let sql = match link.open {
        true => format!("ROLLBACK TO SAVEPOINT making; {dedupe}; {both}; RELEASE SAVEPOINT making"),
        false => format!("BEGIN; {dedupe}; {both}; COMMIT"),
    };
    let done = link.session.batch_execute(&sql).await;
    if done.is_err() && !link.open {
        link.execute(doing, "ROLLBACK").await?;
    }
    done.map_err(|error| failure(doing, error))
}

/// Whether no relation beside the table has this name: constraints and indexes share theirs with tables.
async fn is_free(link: &mut Link, table: &TableName, name: &str) -> Result<bool, Failure> {
    let full = format!("{}.{}", quote_ident(&table.schema)?, quote_ident(name)?);
    let sql = "SELECT to_regclass($1::text) IS NOT NULL";
    let taken = link.query("looking for a free name", sql, &[&full]).await?;
    Ok(!taken.first().is_some_and(|row| row.get::<_, bool>(0)))
}

async fn make_unique(link: &mut Link, target: &Target, table: &TargetTable, key: &KeyDef) -> Result<bool, Failure> {
    let doing = format!("making the unique constraint {} of {}", key.name, table.schema.name);
    match missing_unique(link, &target.migration, table, key).await? {
        Some(making) => optional(link, &doing, &making).await,
        None => Ok(true),
    }
}

/// What makes a unique constraint; `None` when it is there.
pub(super) async fn missing_unique(
    link: &mut Link,
    migration: &str,
    table: &TargetTable,
    key: &KeyDef,
) -> Result<Option<Making>, Failure> {
    let name = &table.schema.name;
    let quoted = quote_table(name)?;
    let doing = format!("looking for the unique constraint {} of {name}", key.name);
    let columns = ddl::sorted(&key.columns);
    let sql = "SELECT EXISTS (SELECT FROM pg_constraint c WHERE c.conrelid = ($1::text)::regclass AND c.contype IN ('u', 'p') \
               AND ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.conrelid \
               AND a.attnum = ANY (c.conkey) ORDER BY a.attname) = $2)";
    let rows = link.query(&doing, sql, &[&quoted.as_str(), &columns]).await?;
    if rows.first().is_some_and(|row| row.get(0)) {
        return Ok(None);
    }
    let is_free = is_free(link, name, &key.name).await?;
    let sql = ddl::constraint(name, key, "UNIQUE", is_free)?;
    let note = store::note_sql(migration, "constraint", &name.schema, &name.name, &key.name);
    Ok(Some(Making { sql, note }))
}

/// Makes something that rows of the moment may not satisfy yet: two rows may hold one unique value between two points
/// of the source's history, as a load brings them. Then it is made the next time. True when it is there.
async fn optional(link: &mut Link, doing: &str, making: &Making) -> Result<bool, Failure> {
    match link.session.batch_execute(&making.both()).await {
        Ok(()) => Ok(true),
        Err(error) if error.code().is_some_and(|code| matches!(code.code(), "23505" | "23503" | "23P01")) => {
            tracing::warn!(doing, "the rows of the moment do not allow it; it is tried again later");
            Ok(false)
        }
        Err(_) => make::run_noted(link, doing, &making.sql, &making.note).await.map(|()| true),
    }
}

async fn make_index(link: &mut Link, target: &Target, table: &TargetTable, index: &IndexDef) -> Result<bool, Failure> {
    let name = &table.schema.name;
    let quoted = quote_table(name)?;
    let doing = format!("making the index {} of {name}", index.name);
    let sql = "SELECT FROM crossfade.objects WHERE migration = $1 AND kind = 'index' AND schema = $2 AND name = $3 AND part = $4";
    let noted = link.query(&doing, sql, &[&target.migration, &&*name.schema, &&*name.name, &index.name]).await?;
    let sql = "SELECT EXISTS (SELECT FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid \
               WHERE i.indrelid = ($1::text)::regclass AND c.relname = $2)";
    let there = link.query(&doing, sql, &[&quoted.as_str(), &index.name]).await?;
    if !noted.is_empty() || there.first().is_some_and(|row| row.get::<_, bool>(0)) {
        return Ok(true);
    }
    let is_free = is_free(link, name, &index.name).await?;
    let sql = ddl::index(name, index, is_free)?;
    let note = store::note_sql(&target.migration, "index", &name.schema, &name.name, &index.name);
    let making = Making { sql, note };
    match link.session.batch_execute(&making.both()).await {
        Ok(()) => Ok(true),
        Err(error) if !link.open && is_unknown(&error) => {
            tracing::warn!(%error, sql = making.sql, "the target cannot make this index, for it uses what is not there; it is left out");
            Ok(true)
        }
        Err(_) if index.unique => optional(link, &doing, &making).await,
        Err(_) => make::run_noted(link, &doing, &making.sql, &making.note).await.map(|()| true),
    }
}

/// The statement names a function, a type or an operator class that the server does not have.
fn is_unknown(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| matches!(code.code(), "42883" | "42704" | "3F000"))
}

async fn make_foreign_key(
    link: &mut Link,
    target: &Target,
    table: &TargetTable,
    foreign: &ForeignKeyDef,
) -> Result<bool, Failure> {
    let name = &table.schema.name;
    let quoted = quote_table(name)?;
    let doing = format!("making the foreign key {} of {name}", foreign.name);
    let sql = "SELECT convalidated FROM pg_constraint WHERE conrelid = ($1::text)::regclass AND contype = 'f' AND conname = $2";
    let there = link.query(&doing, sql, &[&quoted.as_str(), &foreign.name]).await?;
    if there.first().is_some_and(|row| row.get::<_, bool>(0)) {
        return Ok(true);
    }
    let ddl::ForeignKeySql { add, validate } = ddl::foreign_key(table, foreign)?;
    let note = store::note_sql(&target.migration, "constraint", &name.schema, &name.name, &foreign.name);
    let Some(validate) = validate else { return optional(link, &doing, &Making { sql: add, note }).await };
    if there.is_empty() {
        make::run_noted(link, &doing, &add, &note).await?;
    }
    let checking = Making { sql: validate, note: String::new() };
    optional(link, &format!("checking the foreign key {} of {name}", foreign.name), &checking).await
}

/// What the stream needs once the load is in: keys, and what makes reading fast.
///
/// True when keys were doubled, and are held since.
pub(super) async fn after_load(
    link: &mut Link,
    target: &Target,
    tables: &mut [Table],
    on_error: OnError,
) -> Result<bool, Failure> {
    link.execute("preparing to make keys", PLAN_WHOLE).await?;
    let held = collide::make_injective(link, &target.migration, tables, on_error).await?;
    make_keys(link, target, tables).await?;
    link.execute("preparing to make indexes", PLAN_WHOLE).await?;
    for table in tables.iter().filter(|table| is_ours(table)) {
        for index in table.target.def.indexes.iter().filter(|index| !index.unique) {
            make_index(link, target, &table.target, index).await?;
        }
    }
    link.forget();
    link.execute("preparing to write sets", PLAN_SETS).await?;
    Ok(held)
}

pub(super) fn is_ours(table: &Table) -> bool {
    table.target.mode == WriteMode::Table && table.made
}

/// Whether [`complete`] has anything to make in the tables.
pub(super) fn completes(tables: &[Table]) -> bool {
    let wants = |table: &Table| {
        let def = &table.target.def;
        !def.uniques.is_empty() || !def.foreign_keys.is_empty() || def.indexes.iter().any(|index| index.unique)
    };
    tables.iter().any(|table| is_ours(table) && wants(table))
}

/// What only holds once the stream has passed the end of the load, for until then the rows come from different moments:
/// unique constraints, foreign keys, and the sequences' values. True when all of it is there.
pub(super) async fn complete(link: &mut Link, target: &Target, tables: &mut [Table]) -> Result<bool, Failure> {
    link.execute("preparing to make constraints", PLAN_WHOLE).await?;
    let mut whole = true;
    for table in tables.iter().filter(|table| is_ours(table)) {
        for key in &table.target.def.uniques {
            whole &= make_unique(link, target, &table.target, key).await?;
        }
        for index in &table.target.def.indexes {
            whole &= make_index(link, target, &table.target, index).await?;
        }
    }
    for table in tables.iter().filter(|table| is_ours(table)) {
        for foreign in &table.target.def.foreign_keys {
            whole &= make_foreign_key(link, target, &table.target, foreign).await?;
        }
    }
    for sequence in &target.support.sequences {
        if let Some(sql) = ddl::sequence_value(target, sequence)? {
            link.execute(&format!("setting the sequence {}", sequence.name), &sql).await?;
        }
    }
    for table in tables.iter_mut() {
        table.look_at_indexes(link).await?;
    }
    link.forget();
    link.execute("preparing to write sets", PLAN_SETS).await?;
    Ok(whole)
}
