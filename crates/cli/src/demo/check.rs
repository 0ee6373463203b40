//! Comparing both sides row by row, with nothing of the migrator's own code.

use anyhow::{Context, Result, bail, ensure};
use rusqlite::{Connection, OpenFlags, OptionalExtension, types::Value};
use std::{collections::HashMap, path::Path};

/// What a table's rows become: table, and pairs of the source's expression and the target's column.
struct Shape {
    table: &'static str,
    columns: &'static [(&'static str, &'static str)],
    /// Source column that refers to another table, that table, and the target's column.
    reference: Option<(&'static str, &'static str, &'static str)>,
}

const SHAPES: [Shape; 3] = [
    Shape {
        table: "customers",
        columns: &[("email", "email"), ("full_name", "name"), ("balance", "balance")],
        reference: None,
    },
    Shape {
        table: "orders",
        columns: &[
            ("placed", "placed_on"),
            ("CAST(amount_text AS INTEGER)", "amount"),
            ("status", "status"),
            ("attachment", "attachment"),
        ],
        reference: Some(("customer_id", "customers", "customer_id")),
    },
    Shape {
        table: "order_lines",
        columns: &[("sku", "sku"), ("quantity", "quantity")],
        reference: Some(("order_id", "orders", "order_id")),
    },
];

fn open(path: &Path) -> Result<Connection> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .with_context(|| format!("opening {}", path.display()))?;
    connection.busy_timeout(std::time::Duration::from_secs(30))?;
    Ok(connection)
}

/// Rows of a table, zero while the file or the table is not there yet.
pub(super) fn rows_if_any(path: &Path, table: &str) -> u64 {
    let count = || -> Result<u64> {
        Ok(open(path)?.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get::<_, i64>(0))? as u64)
    };
    if path.exists() { count().unwrap_or(0) } else { 0 }
}

/// The new key of every old one, by table, as the target's mapping table has it.
fn mapping(target: &Connection) -> Result<HashMap<(String, String), Value>> {
    let mut statement = target.prepare("SELECT table_name, old_id, new_id FROM uuid_migration_mapping")?;
    let rows = statement.query_map([], |row| Ok(((row.get(0)?, row.get(1)?), row.get(2)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Compares every row of the shop with what the target holds under its new key. Gives the number of rows compared.
pub(super) fn compare_with_mapping(shop: &Path, target: &Path) -> Result<u64> {
    let (shop, target) = (open(shop)?, open(target)?);
    let mapping = mapping(&target)?;
    let new_id = |table: &str, old: i64| -> Result<&Value> {
        let named = |name: String| mapping.get(&(name, old.to_string()));
        named(table.to_owned())
            .or_else(|| named(format!("main.{table}")))
            .with_context(|| format!("{table} {old} is not in the mapping"))
    };
    let mut compared = 0;
    for shape in &SHAPES {
        let sources: Vec<&str> = shape.columns.iter().map(|(source, _)| *source).collect();
        let targets: Vec<&str> = shape.columns.iter().map(|(_, target)| *target).collect();
        let (from, to) = shape.reference.map_or(("NULL", "NULL"), |(from, _, to)| (from, to));
        let mut theirs = shop.prepare(&format!("SELECT id, {from}, {} FROM {}", sources.join(", "), shape.table))?;
        let mut ours =
            target.prepare(&format!("SELECT {to}, {} FROM {} WHERE id = ?1", targets.join(", "), shape.table))?;
        let mut rows = theirs.query([])?;
        let mut count = 0u64;
        while let Some(row) = rows.next()? {
            let id: i64 = row.get(0)?;
            let mut expected: Vec<Value> = Vec::with_capacity(targets.len() + 1);
            expected.push(match shape.reference {
                Some((_, parent, _)) => new_id(parent, row.get(1)?)?.clone(),
                None => Value::Null,
            });
            for index in 0..sources.len() {
                expected.push(row.get(index + 2)?);
            }
            let found = ours
                .query_row([new_id(shape.table, id)?], |row| {
                    (0..=targets.len()).map(|index| row.get(index)).collect::<Result<Vec<Value>, _>>()
                })
                .optional()?;
            match found {
                None => bail!("{} {id} is missing in the target", shape.table),
                Some(found) => ensure!(found == expected, "{} {id} differs in the target", shape.table),
            }
            count += 1;
        }
        let there: i64 = target.query_row(&format!("SELECT count(*) FROM {}", shape.table), [], |row| row.get(0))?;
        ensure!(there as u64 == count, "{} has {there} rows in the target and {count} in the shop", shape.table);
        compared += count;
    }
    Ok(compared)
}

/// Fails unless the file has exactly the orders with these marks, each once.
pub(super) fn has_all_orders(path: &Path, known: &[String]) -> Result<()> {
    let file = open(path)?;
    let mut statement = file.prepare("SELECT status FROM orders WHERE status LIKE 'clerk-%' ORDER BY status")?;
    let there: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let mut known = known.to_vec();
    known.sort();
    ensure!(there == known, "{} has {} orders of the clerks, who know of {}", path.display(), there.len(), known.len());
    Ok(())
}

/// Damages orders in the target by hand: a value, a reference, a whole row. Gives how many.
pub(super) fn damage(target: &Path, orders: &[i64]) -> Result<u64> {
    let connection = Connection::open(target)?;
    connection.busy_timeout(std::time::Duration::from_secs(30))?;
    // Whoever damages data by hand asks no constraint.
    connection.pragma_update(None, "foreign_keys", false)?;
    let mut damaged = 0;
    for (index, old) in orders.iter().enumerate() {
        let statement = match index % 3 {
            0 => "UPDATE orders SET amount = -1 WHERE id = ?1",
            1 => "UPDATE orders SET status = 'damaged', attachment = x'00' WHERE id = ?1",
            _ => "DELETE FROM orders WHERE id = ?1",
        };
        let new: Option<Value> = connection
            .query_row(
                "SELECT new_id FROM uuid_migration_mapping WHERE table_name IN ('orders', 'main.orders') AND old_id = ?1",
                [old.to_string()],
                |row| row.get(0),
            )
            .optional()?;
        if let Some(new) = new {
            damaged += connection.execute(statement, [new])? as u64;
        }
    }
    ensure!(damaged > 0, "nothing could be damaged");
    Ok(damaged)
}

/// The tables of a file that are not SQLite's own.
pub(super) fn tables(path: &Path) -> Result<Vec<String>> {
    let connection = open(path)?;
    let mut statement = connection
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name")?;
    let names = statement.query_map([], |row| row.get(0))?;
    Ok(names.collect::<Result<_, _>>()?)
}

/// Compares two targets table by table, row by row in the order of the key. Gives the number of rows.
pub(super) fn same_content(one: &Path, two: &Path) -> Result<u64> {
    let (left, right) = (open(one)?, open(two)?);
    let mut compared = 0;
    for shape in &SHAPES {
        let dump = |connection: &Connection| -> Result<Vec<Vec<Value>>> {
            let mut statement = connection.prepare(&format!("SELECT * FROM {} ORDER BY id", shape.table))?;
            let width = statement.column_count();
            let rows = statement
                .query_map([], |row| (0..width).map(|index| row.get(index)).collect::<Result<Vec<Value>, _>>())?;
            Ok(rows.collect::<Result<_, _>>()?)
        };
        let (left, right) = (dump(&left)?, dump(&right)?);
        ensure!(left == right, "{} differs between the replayed and the fresh target", shape.table);
        compared += left.len() as u64;
    }
    Ok(compared)
}
