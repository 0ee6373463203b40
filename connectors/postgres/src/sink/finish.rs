//! After a load: primary keys, unique constraints, indexes, foreign keys, sequences. All of it idempotent, for it may
//! be killed anywhere.
//!
//! In two steps, for a load's rows come from different moments: keys (and plain indexes) as soon as the load is in, all
//! else once the stream has passed the load's end. In between two rows may well hold one unique value, or a row's
//! parent be gone, as they never did in the source.

use super::{
    link::Link,
    make::{ddl, owner_column},
    store,
    table::Table,
};
use crate::client::{failure, quote_ident, quote_literal, quote_table};
use crossfade_connector::{Failure, Target, TargetTable, WriteMode};
use crossfade_event::catalog::{ForeignKeyDef, IndexDef, KeyDef, RelationKind, SequenceDef};

/// So many values of a sequence are skipped: what the source gives out while we carry its value over.
const SEQUENCE_MARGIN: i64 = 1000;

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
    let key_columns = |columns: &[String]| -> Result<String, Failure> {
        Ok(columns
            .iter()
            .map(|column| Ok(quote_ident(column)?.as_str().to_owned()))
            .collect::<Result<Vec<_>, Failure>>()?
            .join(", "))
    };
    if let Some(key) = &table.def.primary_key {
        let sql = "SELECT EXISTS (SELECT FROM pg_index WHERE indrelid = ($1::text)::regclass AND indisprimary)";
        let rows = link.query(&doing, sql, &[&quoted.as_str()]).await?;
        if !rows.first().is_some_and(|row| row.get::<_, bool>(0)) {
            let sql = constraint_sql(link, table, key, "PRIMARY KEY").await?;
            unique_or_dedupe(link, &doing, &sql, quoted.as_str(), &key_columns(&key.columns)?).await?;
            store::note_object(link, &target.migration, "constraint", &name.schema, &name.name, &key.name).await?;
        }
        return Ok(());
    }
    let columns: Vec<String> = table
        .schema
        .key_columns()
        .into_iter()
        .filter_map(|index| table.schema.columns.get(index))
        .map(|column| column.name.to_string())
        .collect();
    let mut sorted = columns.clone();
    sorted.sort_unstable();
    let same = |key: &&KeyDef| {
        let mut other = key.columns.clone();
        other.sort_unstable();
        other == sorted
    };
    if columns.is_empty() {
        return Ok(());
    }
    if let Some(key) = table.def.uniques.iter().find(same) {
        return make_unique(link, target, table, key).await.map(drop);
    }
    let sql = "SELECT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = ($1::text)::regclass AND i.indisunique AND \
               i.indimmediate AND i.indpred IS NULL AND ARRAY(SELECT a.attname::text FROM pg_attribute a \
               WHERE a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey::int2[]) ORDER BY a.attname) = $2)";
    let rows = link.query(&doing, sql, &[&quoted.as_str(), &sorted]).await?;
    if !rows.first().is_some_and(|row| row.get::<_, bool>(0)) {
        let list = key_columns(&columns)?;
        let sql = format!("CREATE UNIQUE INDEX ON {quoted} ({list})");
        unique_or_dedupe(link, &doing, &sql, quoted.as_str(), &list).await?;
    }
    Ok(())
}

/// Adds something unique. Where a key came twice (its row moved while it was copied) one of the two goes first: the
/// stream has the row's last image still to come.
async fn unique_or_dedupe(link: &mut Link, doing: &str, sql: &str, table: &str, columns: &str) -> Result<(), Failure> {
    let savepoint = |sql: &str| match link.open {
        true => format!("SAVEPOINT making; {sql}; RELEASE SAVEPOINT making"),
        false => sql.to_owned(),
    };
    let Err(error) = link.session.batch_execute(&savepoint(sql)).await else { return Ok(()) };
    if error.code().is_none_or(|code| code.code() != "23505") {
        return if link.open { Err(failure(doing, error)) } else { ddl(link, doing, sql).await };
    }
    let dedupe = format!(
        "DELETE FROM {table} d USING (SELECT ctid AS at, tableoid AS part, row_number() OVER (PARTITION BY {columns}) AS n \
         FROM {table}) x WHERE x.n > 1 AND d.ctid = x.at AND d.tableoid = x.part"
    );
    let sql = match link.open {
        true => format!("ROLLBACK TO SAVEPOINT making; {dedupe}; {sql}; RELEASE SAVEPOINT making"),
        false => format!("BEGIN; {dedupe}; {sql}; COMMIT"),
    };
    let done = link.session.batch_execute(&sql).await;
    if done.is_err() && !link.open {
        link.execute(doing, "ROLLBACK").await?;
    }
    done.map_err(|error| failure(doing, error))
}

/// `ALTER TABLE … ADD CONSTRAINT …`; the name is left to the server where another relation has it already.
async fn constraint_sql(link: &mut Link, table: &TargetTable, key: &KeyDef, kind: &str) -> Result<String, Failure> {
    let name = &table.schema.name;
    let columns = key
        .columns
        .iter()
        .map(|column| Ok(quote_ident(column)?.as_str().to_owned()))
        .collect::<Result<Vec<_>, Failure>>()?
        .join(", ");
    let taken = link
        .query(
            "looking for a free name",
            "SELECT to_regclass($1::text) IS NOT NULL",
            &[&format!("{}.{}", quote_ident(&name.schema)?, quote_ident(&key.name)?)],
        )
        .await?;
    let named = match taken.first().is_some_and(|row| row.get::<_, bool>(0)) {
        true => String::new(),
        false => format!("CONSTRAINT {} ", quote_ident(&key.name)?),
    };
    let nulls = if key.nulls_not_distinct { " NULLS NOT DISTINCT" } else { "" };
    let deferrable = if key.deferrable { " DEFERRABLE" } else { "" };
    Ok(format!("ALTER TABLE {} ADD {named}{kind}{nulls} ({columns}){deferrable}", quote_table(name)?))
}

async fn make_unique(link: &mut Link, target: &Target, table: &TargetTable, key: &KeyDef) -> Result<bool, Failure> {
    let name = &table.schema.name;
    let quoted = quote_table(name)?;
    let doing = format!("making the unique constraint {} of {name}", key.name);
    let mut columns = key.columns.clone();
    columns.sort_unstable();
    let sql = "SELECT EXISTS (SELECT FROM pg_constraint c WHERE c.conrelid = ($1::text)::regclass AND c.contype IN ('u', 'p') \
               AND ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.conrelid \
               AND a.attnum = ANY (c.conkey) ORDER BY a.attname) = $2)";
    let rows = link.query(&doing, sql, &[&quoted.as_str(), &columns]).await?;
    if rows.first().is_some_and(|row| row.get(0)) {
        return Ok(true);
    }
    let sql = constraint_sql(link, table, key, "UNIQUE").await?;
    let done = optional(link, &doing, &sql).await?;
    if done {
        store::note_object(link, &target.migration, "constraint", &name.schema, &name.name, &key.name).await?;
    }
    Ok(done)
}

/// Makes something that rows of the moment may not satisfy yet: two rows may hold one unique value between two points
/// of the source's history, as a load brings them. Then it is made the next time. True when it is there.
async fn optional(link: &mut Link, doing: &str, sql: &str) -> Result<bool, Failure> {
    match link.session.batch_execute(sql).await {
        Ok(()) => Ok(true),
        Err(error) if error.code().is_some_and(|code| matches!(code.code(), "23505" | "23503" | "23P01")) => {
            tracing::warn!(doing, "the rows of the moment do not allow it; it is tried again later");
            Ok(false)
        }
        Err(_) => ddl(link, doing, sql).await.map(|()| true),
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
    let full = format!("{}.{}", quote_ident(&name.schema)?, quote_ident(&index.name)?);
    let taken = link.query(&doing, "SELECT to_regclass($1::text) IS NOT NULL", &[&full]).await?;
    let named = match taken.first().is_some_and(|row| row.get::<_, bool>(0)) {
        true => String::new(),
        false => quote_ident(&index.name)?.as_str().to_owned(),
    };
    let unique = if index.unique { "UNIQUE " } else { "" };
    let sql = format!("CREATE {unique}INDEX {named} ON {quoted} {}", index.definition);
    let done = if index.unique {
        optional(link, &doing, &sql).await?
    } else {
        ddl(link, &doing, &sql).await.map(|()| true)?
    };
    if done {
        store::note_object(link, &target.migration, "index", &name.schema, &name.name, &index.name).await?;
    }
    Ok(done)
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
    let list = |columns: &[String]| -> Result<String, Failure> {
        Ok(columns
            .iter()
            .map(|column| Ok(quote_ident(column)?.as_str().to_owned()))
            .collect::<Result<Vec<_>, Failure>>()?
            .join(", "))
    };
    let constraint = quote_ident(&foreign.name)?;
    let add = format!(
        "ALTER TABLE {quoted} ADD CONSTRAINT {constraint} FOREIGN KEY ({}) REFERENCES {} ({}) {}",
        list(&foreign.columns)?,
        quote_table(&foreign.references)?,
        list(&foreign.referenced_columns)?,
        foreign.suffix
    );
    let validated = match there.first() {
        Some(row) => row.get::<_, bool>(0),
        // Not to be had on a partitioned table before version 18: checked at once there.
        None if matches!(table.def.kind, RelationKind::Partitioned { .. }) => {
            let done = optional(link, &doing, &add).await?;
            if done {
                store::note_object(link, &target.migration, "constraint", &name.schema, &name.name, &foreign.name)
                    .await?;
            }
            return Ok(done);
        }
        None => {
            let add = format!("{} NOT VALID", add.trim_end().trim_end_matches("NOT VALID").trim_end());
            ddl(link, &doing, &add).await?;
            store::note_object(link, &target.migration, "constraint", &name.schema, &name.name, &foreign.name).await?;
            false
        }
    };
    if validated {
        return Ok(true);
    }
    let sql = format!("ALTER TABLE {quoted} VALIDATE CONSTRAINT {constraint}");
    optional(link, &format!("checking the foreign key {} of {name}", foreign.name), &sql).await
}

/// Carries a sequence's value over, past whatever the tables hold and with a margin.
async fn set_sequence(link: &mut Link, target: &Target, sequence: &SequenceDef) -> Result<(), Failure> {
    let doing = format!("setting the sequence {}", sequence.name);
    let Some((table, column)) = &sequence.owner else {
        let Some(last) = sequence.last_value else { return Ok(()) };
        let quoted = quote_table(&sequence.name)?;
        return set_value(link, &doing, quoted.as_str(), Some(last), sequence.increment).await;
    };
    let Some(def) = owner_column(target, sequence) else { return Ok(()) };
    let is_number = matches!(
        def.column.type_.logical,
        crossfade_event::Logical::Int16 | crossfade_event::Logical::Int32 | crossfade_event::Logical::Int64
    );
    if !is_number {
        return Ok(());
    }
    let quoted = quote_table(table)?;
    let of_column = match def.identity {
        None => quote_table(&sequence.name)?.as_str().to_owned(),
        Some(_) => {
            let sql = "SELECT pg_get_serial_sequence($1, $2)";
            let rows = link.query(&doing, sql, &[&quoted.as_str(), &column.as_str()]).await?;
            match rows.first().and_then(|row| row.get::<_, Option<String>>(0)) {
                Some(name) => name,
                None => return Ok(()),
            }
        }
    };
    let extreme = if sequence.increment < 0 { "min" } else { "max" };
    let rows =
        link.query(&doing, &format!("SELECT {extreme}({})::int8 FROM {quoted}", quote_ident(column)?), &[]).await?;
    let held: Option<i64> = rows.first().and_then(|row| row.get(0));
    let furthest = match (held, sequence.last_value, sequence.increment < 0) {
        (Some(one), Some(other), false) => Some(one.max(other)),
        (Some(one), Some(other), true) => Some(one.min(other)),
        (one, other, _) => one.or(other),
    };
    set_value(link, &doing, &of_column, furthest, sequence.increment).await
}

async fn set_value(link: &mut Link, doing: &str, name: &str, value: Option<i64>, step: i64) -> Result<(), Failure> {
    let Some(value) = value else { return Ok(()) };
    let sql = "SELECT s.seqmin, s.seqmax, (pg_sequence_last_value(s.seqrelid))::int8 FROM pg_sequence s \
               WHERE s.seqrelid = ($1::text)::regclass";
    let rows = link.query(doing, sql, &[&name]).await?;
    let Some(row) = rows.first() else { return Ok(()) };
    let (lowest, highest, now): (i64, i64, Option<i64>) = (row.get(0), row.get(1), row.get(2));
    let wanted = value.saturating_add(SEQUENCE_MARGIN.saturating_mul(step)).clamp(lowest, highest);
    // Never backwards: somebody may have drawn from it already.
    let behind = now.is_none_or(|now| if step < 0 { wanted < now } else { wanted > now });
    if behind {
        let sql = format!("SELECT setval({}::regclass, {wanted})", quote_literal(name));
        link.execute(doing, &sql).await?;
    }
    Ok(())
}

/// What the stream needs once the load is in: keys, and what makes reading fast.
pub(super) async fn after_load(link: &mut Link, target: &Target, tables: &mut [Table]) -> Result<(), Failure> {
    make_keys(link, target, tables).await?;
    link.execute("preparing to make indexes", PLAN_WHOLE).await?;
    for table in tables.iter().filter(|table| is_ours(table)) {
        for index in table.target.def.indexes.iter().filter(|index| !index.unique) {
            make_index(link, target, &table.target, index).await?;
        }
        let sql = format!("ANALYZE {}", table.quoted);
        if let Err(error) = link.session.batch_execute(&sql).await {
            tracing::debug!(%error, table = %table.target.schema.name, "no statistics were made");
        }
    }
    link.forget();
    link.execute("preparing to write sets", PLAN_SETS).await
}

fn is_ours(table: &Table) -> bool {
    table.target.mode == WriteMode::Table && table.made
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
        set_sequence(link, target, sequence).await?;
    }
    for table in tables.iter_mut() {
        table.look_at_indexes(link).await?;
    }
    link.forget();
    link.execute("preparing to write sets", PLAN_SETS).await?;
    Ok(whole)
}
