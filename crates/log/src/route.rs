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
