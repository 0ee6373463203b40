//! Chunks: where a table is cut, and the ranges of keys that the pieces cover.
//!
//! A range is written as text, for it stands in the log: the key after which it begins and the one with which it
//! ends, either of them empty for an open end. All bounds come from keys that were there when the table was cut; what
//! comes later falls into one of the ranges all the same, for together they cover everything.

use crate::{
    client::{list, quoted},
    codec::{Bound, put_cell, tagged},
    inspect::shape::TableShape,
};
use crossfade_event::{Identity, TableSchema};
use rusqlite::{Connection, params_from_iter, types::ValueRef};
use std::fmt::Write;

/// A table is never cut into more chunks than this.
const CHUNKS_MAX: u64 = 1000;

/// How the rows of a table are walked. The columns are named by whoever walks, for they may be renamed on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Walk {
    /// By the rowid, which is the key.
    Rowid,
    /// By the key's columns, each with its collation.
    Key(Vec<String>),
    /// All at once.
    Whole,
}

impl Walk {
    /// `None` where the table's key is not the schema's.
    pub(super) fn of(shape: &TableShape, schema: &TableSchema) -> Option<Self> {
        if schema.identity != Identity::Key {
            return Some(Self::Whole);
        }
        let key = shape.key();
        if key.len() != schema.key_columns().len() {
            return None;
        }
        Some(match shape.rowid_column() {
            Some(column) if key == [column.name.as_str()] => Self::Rowid,
            _ => Self::Key(key.iter().map(|name| shape.key_collation(name)).collect()),
        })
    }

    /// What orders the rows, as SQL: the key's columns by their names.
    pub(super) fn order(&self, names: &[String]) -> Vec<String> {
        match self {
            Self::Rowid => names.iter().map(|name| quoted(name)).collect(),
            Self::Key(collations) => names
                .iter()
                .zip(collations)
                .map(|(name, collation)| format!("{} COLLATE {}", quoted(name), quoted(collation)))
                .collect(),
            Self::Whole => Vec::new(),
        }
    }
}

/// Where chunks end, evenly over the span of rowids; there are no more chunks than the file can have rows for.
pub(super) fn rowid_ends(
    connection: &Connection,
    table: &str,
    rowid: &str,
    chunk_rows: u64,
) -> rusqlite::Result<Vec<String>> {
    let (table, rowid) = (quoted(table), quoted(rowid));
    let sql = format!("SELECT (SELECT min({rowid}) FROM {table}), (SELECT max({rowid}) FROM {table})");
    let span: Option<(i64, i64)> =
        connection.query_row(&sql, [], |row| Ok(row.get::<_, Option<i64>>(0)?.zip(row.get::<_, Option<i64>>(1)?)))?;
    let Some((lowest, highest)) = span else { return Ok(Vec::new()) };
    let bytes: u64 =
        connection.query_row("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size", [], |row| {
            row.get::<_, i64>(0).map(|bytes| bytes as u64)
        })?;
    let width = i128::from(highest) - i128::from(lowest) + 1;
    // No row takes less than about eight bytes of the file.
    let rows = u64::try_from(width).unwrap_or(u64::MAX).min(bytes / 8);
    let count = (rows / chunk_rows.max(1)).clamp(1, CHUNKS_MAX);
    let ends = (1..count).map(|index| i128::from(lowest) + width * i128::from(index) / i128::from(count) - 1);
    Ok(ends.map(|end| encode(&vec![integer_cell(end as i64)])).collect())
}

fn integer_cell(value: i64) -> Vec<u8> {
    let mut cell = Vec::with_capacity(13);
    put_cell(&mut cell, ValueRef::Integer(value));
    cell.split_off(4)
}

/// Where chunks end, every so many rows along the key's index.
pub(super) fn key_ends(
    connection: &Connection,
    table: &str,
    walk: &Walk,
    names: &[String],
    chunk_rows: u64,
) -> rusqlite::Result<Vec<String>> {
    let order = walk.order(names).join(", ");
    let mut ends: Vec<String> = Vec::new();
    let mut after: Option<Edge> = None;
    let columns = list(names);
    while (ends.len() as u64) < CHUNKS_MAX - 1 {
        let (condition, values) = range(walk, names, after.as_ref(), None);
        let sql = format!(
            "SELECT {columns} FROM {}{condition} ORDER BY {order} LIMIT 1 OFFSET {}",
            quoted(table),
            chunk_rows.max(1) - 1
        );
        let mut statement = connection.prepare_cached(&sql)?;
        let mut rows = statement.query(params_from_iter(values))?;
        let Some(row) = rows.next()? else { break };
        let count = row.as_ref().column_count();
        let end = edge(row, 0..count)?;
        ends.push(encode(&end));
        after = Some(end);
    }
    Ok(ends)
}

/// The condition for rows after one key and up to another, with its values.
pub(super) fn range<'a>(
    walk: &Walk,
    names: &[String],
    after: Option<&'a Edge>,
    upto: Option<&'a Edge>,
) -> (String, Vec<Bound<'a>>) {
    let order = walk.order(names);
    let tuple = |parts: Vec<String>| if parts.len() == 1 { parts.join("") } else { format!("({})", parts.join(", ")) };
    let mut values = Vec::new();
    let mut terms = Vec::new();
    for (bound, sign) in [(after, ">"), (upto, "<=")] {
        let Some(bound) = bound else { continue };
        let from = values.len();
        values.extend(bound.iter().map(|cell| tagged(cell).map_or(Bound::NULL, Bound::Ref)));
        let marks = (from + 1..=values.len()).map(|number| format!("?{number}")).collect();
        terms.push(format!("{} {sign} {}", tuple(order.clone()), tuple(marks)));
    }
    let condition = if terms.is_empty() { String::new() } else { format!(" WHERE {}", terms.join(" AND ")) };
    (condition, values)
}

/// The cells of a key as [`put_cell`] writes them, without their lengths; a NULL is empty.
pub(super) type Edge = Vec<Vec<u8>>;

pub(super) fn edge(row: &rusqlite::Row<'_>, places: impl Iterator<Item = usize>) -> rusqlite::Result<Edge> {
    places
        .map(|place| {
            let mut cell = Vec::with_capacity(16);
            put_cell(&mut cell, row.get_ref(place)?);
            Ok(cell.split_off(4))
        })
        .collect()
}

/// A key as it stands in a chunk's range: its cells in hex, each with a `,` behind it.
fn encode(edge: &Edge) -> String {
    edge.iter().fold(String::new(), |mut out, cell| {
        for byte in cell {
            let _ = write!(out, "{byte:02x}");
        }
        out.push(',');
        out
    })
}

pub(super) fn decode(range: &str) -> Option<(Option<Edge>, Option<Edge>)> {
    let (from, to) = range.split_once("..")?;
    let end = |text: &str| {
        if text.is_empty() {
            Some(None)
        } else {
            text.strip_suffix(',')?.split(',').map(decode_one).collect::<Option<_>>().map(Some)
        }
    };
    Some((end(from)?, end(to)?))
}

fn decode_one(text: &str) -> Option<Vec<u8>> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_survives_the_log() {
        let key = vec![vec![1, 128, 0, 0, 0, 0, 0, 0, 0], vec![5, 255], vec![], vec![4]];
        let range = format!("..{}", encode(&key));
        assert_eq!(decode(&range), Some((None, Some(key))));
        assert_eq!(decode(".."), Some((None, None)));
        assert_eq!(decode("x1,.."), None);
    }

    #[test]
    fn the_widest_span_of_rowids_is_cut_without_overflow() {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY); INSERT INTO t VALUES (-9223372036854775808), (9223372036854775807)")
            .unwrap();
        let ends = rowid_ends(&connection, "t", "id", 1).unwrap();
        assert_eq!(ends.len() as u64, CHUNKS_MAX - 1, "the file has room for more rows than there may be chunks");
        let ends: Vec<i64> = ends
            .iter()
            .map(|end| match decode(&format!("..{end}")).unwrap().1.unwrap().remove(0).split_first_chunk::<1>() {
                Some((_, number)) => i64::from_be_bytes(number.try_into().unwrap()),
                None => panic!("an empty end"),
            })
            .collect();
        assert!(ends.is_sorted_by(|before, after| before < after) && ends[0] < 0 && ends[998] > 0);
        assert_eq!(rowid_ends(&connection, "t", "id", u64::MAX).unwrap(), Vec::<String>::new());
    }
}
