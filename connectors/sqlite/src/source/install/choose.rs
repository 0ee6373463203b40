//! Which tables are recorded: those that the patterns take, refused where one cannot be.

use crate::{
    client::{failure, quoted},
    inspect::shape::{self, TableShape},
};
use crossfade_connector::Failure;
use rusqlite::Connection;

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
pub(super) fn matching_or_not(
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
