//! Undo records: what was there before we first overwrote it, saved in the same transaction.
//!
//! Kept for tables that are not ours alone: those that were there before us, and columns beside other writers' ones
//! that were there before us. Values are kept in text form under the session's fixed settings, in which nothing is
//! lost; `written` is a hash of what we left, by which a later write of somebody else is told.

use super::{
    link::{Link, Param},
    table::Table,
};
use crossfade_connector::{Failure, WriteMode};
use crossfade_event::Identity;

/// Which columns a record keeps: those that we write.
fn kept(table: &Table) -> Vec<usize> {
    match &table.target.mode {
        WriteMode::Columns { columns } => columns.clone(),
        _ => (0..table.columns.len()).collect(),
    }
}

fn texts(table: &Table, alias: &str) -> String {
    let parts: Vec<String> = kept(table)
        .into_iter()
        .filter_map(|index| table.columns.get(index))
        .map(|column| format!("{alias}.{}::text", column.quoted))
        .collect();
    parts.join(", ")
}

fn key_of_set(table: &Table) -> String {
    let parts: Vec<String> = (0..table.key.len()).map(|place| format!("s.k{place}::text")).collect();
    parts.join(", ")
}

/// All that a record keeps: of a row that goes, in a table that is not ours alone, the columns of others too.
fn saved(table: &Table) -> String {
    let beside = beside(table).iter().map(|(_, quoted, _)| format!(", t.{quoted}::text"));
    std::iter::once(texts(table, "t")).chain(beside).collect()
}

fn beside(table: &Table) -> &[(String, String, String)] {
    match &table.target.mode {
        WriteMode::Columns { .. } => &[],
        _ => &table.beside,
    }
}

/// The expression that hashes what a row holds in the kept columns.
pub(super) fn hash(table: &Table, alias: &str) -> String {
    format!("md5(ROW({})::text)", texts(table, alias))
}

/// Saves what stands under the keys of a set; `None` for tables without a key, of which nothing can be saved.
pub(super) fn save_sql(table: &Table) -> Option<String> {
    if table.target.schema.identity != Identity::Key {
        return None;
    }
    let first = table.key.first().and_then(|index| table.columns.get(*index))?;
    let (join, only) = match table.target.mode {
        // Nothing of ours is lost where nothing stood.
        WriteMode::Columns { .. } => ("JOIN", format!("WHERE num_nonnulls({}) > 0", texts(table, "t"))),
        _ => ("LEFT JOIN", String::new()),
    };
    Some(format!(
        "INSERT INTO crossfade.undo (migration, table_schema, table_name, key, existed, columns, before) \
         SELECT $2, $3, $4, ARRAY[{}], t.{found} IS NOT NULL, $5::text[], \
           CASE WHEN t.{found} IS NOT NULL THEN ARRAY[{}]::text[] END \
         FROM unnest($1::{}[]) s {join} {} t ON {} {only} ON CONFLICT DO NOTHING",
        key_of_set(table),
        saved(table),
        table.key_type.name,
        table.quoted,
        table.matches_key("t", false),
        found = first.quoted,
    ))
}

/// Notes what we left under the keys of a set. The keys come first, and each finds its record: a server without statistics of
/// the records took all of them for one, and looked through the whole set for each.
pub(super) fn note_sql(table: &Table) -> Option<String> {
    (table.target.schema.identity == Identity::Key).then(|| {
        format!(
            "UPDATE crossfade.undo u SET written = (SELECT {} FROM {} t WHERE {}) FROM unnest($1::{}[]) s \
             CROSS JOIN LATERAL (SELECT x.ctid AS place FROM crossfade.undo x WHERE x.migration = $2 \
               AND x.table_schema = $3 AND x.table_name = $4 AND x.key = ARRAY[{}] OFFSET 0) x \
             WHERE u.ctid = x.place AND $5::text[] IS NOT NULL",
            hash(table, "t"),
            table.quoted,
            table.matches_key("t", false),
            table.key_type.name,
            key_of_set(table),
        )
    })
}

/// The parameters of both.
pub(super) fn params(migration: &str, table: &Table, set: Param) -> Vec<Param> {
    let name = &table.target.schema.name;
    let columns: Vec<&str> = kept(table)
        .into_iter()
        .filter_map(|index| table.target.schema.columns.get(index))
        .map(|column| &*column.name)
        .chain(beside(table).iter().map(|(name, ..)| name.as_str()))
        .collect();
    vec![
        set,
        Param::text(migration),
        Param::text(&name.schema),
        Param::text(&name.name),
        Param::texts(columns.into_iter().map(Some)),
    ]
}

/// Saves every row of a table that is about to be emptied.
pub(super) async fn save_all(link: &mut Link, migration: &str, table: &Table) -> Result<(), Failure> {
    if table.target.schema.identity != Identity::Key {
        return Ok(());
    }
    let key: Vec<String> = table
        .key
        .iter()
        .filter_map(|index| table.columns.get(*index))
        .map(|column| format!("t.{}::text", column.quoted))
        .collect();
    let sql = format!(
        "INSERT INTO crossfade.undo (migration, table_schema, table_name, key, existed, columns, before) \
         SELECT $1, $2, $3, ARRAY[{}], true, $4::text[], ARRAY[{}]::text[] FROM {} t ON CONFLICT DO NOTHING",
        key.join(", "),
        saved(table),
        table.quoted,
    );
    let [_, rest @ ..] = params(migration, table, Param::Null).try_into().unwrap_or([const { Param::Null }; 5]);
    let doing = format!("saving what {} holds", table.target.schema.name);
    link.run(&doing, &sql, rest.to_vec()).await?;
    let name = &table.target.schema.name;
    let sql = "UPDATE crossfade.undo SET written = NULL WHERE migration = $1 AND table_schema = $2 AND table_name = $3";
    let params = [migration, &name.schema, &name.name].map(Param::text).to_vec();
    link.run(&doing, sql, params).await.map(drop)
}
