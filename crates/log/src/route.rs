//! What goes to which partition of a log that has several.

use crate::{LogError, contract::unknown_schema, schemas::Schemas};
use bytes::{Bytes, BytesMut};
use crossfade_event::{Change, Event, Mark, Op, Partition, Row, RowBlock, TableSchema};
use std::collections::BTreeMap;

/// Whose mark stands in the first partition before a change that one partition alone cannot tell.
const MOVES: &str = "crossfade.moves";

/// Whether it is the mark before a change that takes a row along from another partition: only who has everything before it
/// can apply what comes next.
pub fn is_before_move(event: &Event) -> bool {
    matches!(event, Event::Marked(mark) if &*mark.prefix == MOVES)
}

/// Checks that an event's schema is known.
///
/// # Errors
/// [`LogError::Contract`] when it is not.
pub fn check(event: &Event, schemas: &Schemas) -> Result<(), LogError> {
    let (table, version) = match event {
        Event::Changed(change) => (change.table, change.schema),
        Event::Rows(block) => (block.table, block.schema),
        _ => return Ok(()),
    };
    match schemas.get(table, version) {
        Some(_) => Ok(()),
        None => Err(unknown_schema(table, version)),
    }
}

/// The partitions of an event, and what goes to each: a change to its key's, a block of rows is divided by the keys of
/// its rows, all else goes to partition 0. `place` says which partition a row under a schema belongs to.
///
/// # Errors
/// [`LogError::Contract`] for an unknown schema or a damaged row.
pub fn divide(
    event: Event,
    schemas: &Schemas,
    place: impl Fn(&Row, &TableSchema) -> Partition,
) -> Result<Vec<(Partition, Event)>, LogError> {
    let schema_of = |table, version| schemas.get(table, version).ok_or_else(|| unknown_schema(table, version));
    Ok(match event {
        Event::Changed(change) => {
            let schema = schema_of(change.table, change.schema)?;
            divide_change(change, &schema, place)
        }
        Event::Rows(block) => {
            let schema = schema_of(block.table, block.schema)?;
            divide_rows(&block, &schema, place)?
        }
        event => vec![(Partition(0), event)],
    })
}

/// An update that changes its key is a delete and an insert where the two keys' partitions differ; but one with
/// unchanged cells cannot stand without the row before it, and goes whole to the new key's partition. Then the old key's
/// partition says nothing of it, so a mark stands before it in the first one ([`is_before_move`]).
fn divide_change(
    change: Change,
    schema: &TableSchema,
    place: impl Fn(&Row, &TableSchema) -> Partition,
) -> Vec<(Partition, Event)> {
    let of = |row: &Option<Row>| row.as_ref().map_or(Partition(0), |row| place(row, schema));
    let here = if change.new.is_some() { of(&change.new) } else { of(&change.old) };
    let there = of(&change.old);
    let whole = change.new.as_ref().is_some_and(|row| !row.has_unchanged());
    if change.replaced_key(schema).is_none() || here == there {
        return vec![(here, Event::Changed(change))];
    }
    if !whole {
        let mark = Mark { prefix: MOVES.into(), content: Bytes::new() };
        return vec![(Partition(0), Event::Marked(mark)), (here, Event::Changed(change))];
    }
    let Change { table, schema, old, new, .. } = change;
    let delete = Change { table, schema, op: Op::Delete, old, new: None };
    let insert = Change { table, schema, op: Op::Insert, old: None, new };
    vec![(there, Event::Changed(delete)), (here, Event::Changed(insert))]
}

fn divide_rows(
    block: &RowBlock,
    schema: &TableSchema,
    place: impl Fn(&Row, &TableSchema) -> Partition,
) -> Result<Vec<(Partition, Event)>, LogError> {
    let mut parts: BTreeMap<Partition, (u32, BytesMut)> = BTreeMap::new();
    for row in block.iter() {
        let row = row.map_err(|error| LogError::Contract(format!("a damaged row of {}: {error}", schema.name)))?;
        let (count, bytes) = parts.entry(place(&row, schema)).or_default();
        *count += 1;
        bytes.extend_from_slice(row.as_bytes());
    }
    let part = |(partition, (count, bytes)): (Partition, (u32, BytesMut))| {
        (partition, Event::Rows(RowBlock { count, rows: bytes.freeze(), ..block.clone() }))
    };
    Ok(parts.into_iter().map(part).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossfade_event::{Cell, Column, ColumnType, Format, Identity, Logical, SchemaVersion, TableId, TableName};

    fn column(name: &str, key: Option<u16>) -> Column {
        let type_ = ColumnType { name: "text".into(), native_id: 25, logical: Logical::Text, format: Format::PgBinary };
        Column { name: name.into(), type_, key, nullable: key.is_none(), native_id: 0, default: None }
    }

    #[test]
    fn before_a_row_that_moves_with_what_was_not_sent_stands_a_mark_for_all_partitions() {
        let schema = TableSchema {
            id: TableId(1),
            version: SchemaVersion(1),
            name: TableName::new("public", "long"),
            columns: vec![column("id", Some(0)), column("body", None)],
            identity: Identity::Key,
            native_id: 0,
        };
        // The key's first byte is its partition.
        let place = |row: &Row, _: &TableSchema| match row.cells().next() {
            Some(Cell::Bytes([first, ..])) => Partition(u32::from(*first)),
            _ => Partition(0),
        };
        let row = |key: u8, body: Cell<'_>| -> Row { [Cell::Bytes(&[key]), body].into_iter().collect() };
        let moved = |from: u8, to: u8, body: Cell<'_>| {
            let (old, new) = (Some(row(from, Cell::Absent)), Some(row(to, body)));
            let change = Change { table: TableId(1), schema: SchemaVersion(1), op: Op::Update, old, new };
            divide_change(change, &schema, place)
        };
        let divided = moved(3, 5, Cell::Unchanged);
        assert_eq!(divided.iter().map(|(partition, _)| partition.0).collect::<Vec<_>>(), [0, 5]);
        assert!(is_before_move(&divided[0].1) && matches!(divided[1].1, Event::Changed(_)));
        let whole = moved(3, 5, Cell::Bytes(b"all"));
        assert_eq!(whole.iter().map(|(partition, _)| partition.0).collect::<Vec<_>>(), [3, 5]);
        assert!(!whole.iter().any(|(_, event)| is_before_move(event)));
        assert_eq!(moved(3, 3, Cell::Unchanged).len(), 1, "one partition tells all of it");
    }
}
