//! One change as statements, by the way in which its table is written.

use super::{
    apply::{Fault, run},
    table::Table,
    undo,
};
use crate::codec::{Bound, CellError, bound_key, bound_row};
use crossfade_event::{Change, Key, Op, Row};
use rusqlite::Connection;

pub(super) fn insert_once(keep: &undo::Keep<'_>, table: &Table, change: &Change) -> Result<(), Fault> {
    let Some(new) = change.new.as_ref().filter(|_| change.op != Op::Delete) else { return Ok(()) };
    let key = needed_key(table, change)?;
    let values = whole(table, new)?;
    keep.around(&key, |connection| run(connection, &table.sql.insert, values))
}

pub(super) fn write_columns(
    keep: &undo::Keep<'_>,
    table: &Table,
    columns: &[usize],
    change: &Change,
) -> Result<(), Fault> {
    let Some(new) = change.new.as_ref().filter(|_| change.op != Op::Delete) else { return Ok(()) };
    let key = needed_key(table, change)?;
    let cells = bound_row(&table.schema, new)?;
    let present: Vec<usize> =
        columns.iter().copied().filter(|index| matches!(cells.get(*index), Some(Some(_)))).collect();
    if present.is_empty() {
        return Ok(());
    }
    let key_values = bound_key(&table.schema, &key)?;
    let values: Vec<Bound<'_>> =
        present.iter().filter_map(|index| cells.get(*index).cloned().flatten()).chain(key_values).collect();
    let sql = if present == columns { table.sql.shadow.clone() } else { table.partial_update(&present) };
    keep.around(&key, |connection| run(connection, &sql, values))
}

pub(super) fn write_keyed(keep: &undo::Keep<'_>, table: &Table, change: &Change) -> Result<(), Fault> {
    let replaced = change.replaced_key(&table.schema);
    let Some(new) = change.new.as_ref().filter(|_| change.op != Op::Delete) else {
        return delete(keep, table, &needed_key(table, change)?);
    };
    let key = needed_key(table, change)?;
    // What stands under the new key is about to be replaced by this row.
    if !new.has_unchanged() {
        let values = whole(table, new)?;
        if let Some(replaced) = &replaced {
            if table.moves && moved(keep, table, replaced, &key, new)? {
                return Ok(());
            }
            delete(keep, table, replaced)?;
        }
        return keep.around(&key, |connection| run(connection, &table.sql.upsert, values));
    }
    let from = replaced.as_ref().unwrap_or(&key);
    let cells = bound_row(&table.schema, new)?;
    let present: Vec<usize> = (0..cells.len()).filter(|index| matches!(cells.get(*index), Some(Some(_)))).collect();
    let key_values = bound_key(&table.schema, from)?;
    let values: Vec<Bound<'_>> =
        present.iter().filter_map(|index| cells.get(*index).cloned().flatten()).chain(key_values).collect();
    let sql = table.partial_update(&present);
    if replaced.is_some() {
        delete(keep, table, &key)?;
    }
    let mut found = 0;
    keep.around_both(from, &key, |connection| {
        found = run(connection, &sql, values)?;
        Ok(found)
    })?;
    if found == 0 {
        let reason = "the row is not in the target, and the change carries only a part of it";
        return Err(Fault::Row { reason: reason.to_owned(), unique: false });
    }
    Ok(())
}

/// Gives the row of one key another one, and all values that are sent: what its other columns hold goes with it. False where there
/// is no such row.
fn moved(keep: &undo::Keep<'_>, table: &Table, from: &Key, to: &Key, new: &Row) -> Result<bool, Fault> {
    let values: Vec<Bound<'_>> = whole(table, new)?.into_iter().chain(bound_key(&table.schema, from)?).collect();
    let columns: Vec<usize> = (0..table.schema.columns.len()).collect();
    delete(keep, table, to)?;
    let mut found = 0;
    keep.around_both(from, to, |connection| {
        found = run(connection, &table.partial_update(&columns), values)?;
        Ok(found)
    })?;
    Ok(found > 0)
}

pub(super) fn delete(keep: &undo::Keep<'_>, table: &Table, key: &Key) -> Result<(), Fault> {
    let values = bound_key(&table.schema, key)?;
    keep.around(key, |connection| run(connection, &table.sql.delete, values))
}

pub(super) fn write_whole(connection: &Connection, table: &Table, change: &Change) -> Result<(), Fault> {
    let doing = "writing a row without a key";
    if let Some(old) = &change.old {
        let values = whole(table, old)?;
        run(connection, &table.delete_equal(), values).map_err(|error| Fault::of(error, doing))?;
    } else if change.op != Op::Insert {
        let reason = "the source sent no old row, and the table has no key to find it by";
        return Err(Fault::Row { reason: reason.to_owned(), unique: false });
    }
    let Some(new) = change.new.as_ref().filter(|_| change.op != Op::Delete) else { return Ok(()) };
    let values = whole(table, new)?;
    run(connection, &table.sql.insert_new, values).map(|_| ()).map_err(|error| Fault::of(error, doing))
}

pub(super) fn write_insert_only(connection: &Connection, table: &Table, change: &Change) -> Result<(), Fault> {
    match (&change.new, change.op) {
        (Some(new), Op::Insert) => {
            let values = whole(table, new)?;
            run(connection, &table.sql.insert_new, values)
                .map(|_| ())
                .map_err(|error| Fault::of(error, "writing an insert-only table"))
        }
        _ => Err(Fault::Row { reason: "rows of an insert-only table cannot be found again".to_owned(), unique: false }),
    }
}

fn needed_key(table: &Table, change: &Change) -> Result<Key, Fault> {
    let key = change.key(&table.schema);
    key.ok_or_else(|| Fault::Row { reason: "the change does not carry the row's key".to_owned(), unique: false })
}

/// The values of a whole row.
fn whole<'a>(table: &Table, row: &'a Row) -> Result<Vec<Bound<'a>>, Fault> {
    let cells = bound_row(&table.schema, row)?;
    cells
        .into_iter()
        .zip(&table.schema.columns)
        .map(|(cell, column)| match cell {
            Some(Bound::Ref(rusqlite::types::ValueRef::Null)) if column.key.is_some() => {
                Err(CellError::new(&column.name, "NULL in the key: it identifies no row").into())
            }
            Some(value) => Ok(value),
            None => Err(CellError::new(&column.name, "no value in a whole row").into()),
        })
        .collect()
}
