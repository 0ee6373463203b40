//! Which partition an event goes to.

use crate::{LogError, contract::unknown_schema, schemas::Schemas};
use bytes::BytesMut;
use crossfade_event::{Change, Event, Op, Partition, Row, RowBlock, TableSchema};
use std::collections::BTreeMap;

/// Checks that an event's schema is known.
pub(super) fn check(event: &Event, schemas: &Schemas) -> Result<(), LogError> {
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

/// The partitions of an event, and what goes to each.
pub(super) fn divide(event: Event, schemas: &Schemas, partitions: u32) -> Result<Vec<(Partition, Event)>, LogError> {
    let first = Partition(0);
    Ok(match event {
        Event::Changed(change) => {
            let schema = schemas.get(change.table, change.schema);
            let schema = schema.ok_or_else(|| unknown_schema(change.table, change.schema))?;
            divide_change(change, &schema, partitions)
        }
        Event::Rows(block) if partitions > 1 => {
            let schema = schemas.get(block.table, block.schema);
            let schema = schema.ok_or_else(|| unknown_schema(block.table, block.schema))?;
            divide_rows(&block, &schema, partitions)?
        }
        event => vec![(first, event)],
    })
}

fn place(row: &Row, schema: &TableSchema, partitions: u32) -> Partition {
    let hash = schema.key_of(row).map_or(u64::from(schema.id.0), |key| key.hash64());
    Partition((hash % u64::from(partitions)) as u32)
}

/// An update that changes its key is a delete and an insert where the two keys' partitions differ; but one with
/// unchanged cells cannot stand without the row before it, and goes whole to the new key's partition.
fn divide_change(change: Change, schema: &TableSchema, partitions: u32) -> Vec<(Partition, Event)> {
    let of = |row: &Option<Row>| row.as_ref().map_or(Partition(0), |row| place(row, schema, partitions));
    let here = if change.new.is_some() { of(&change.new) } else { of(&change.old) };
    let there = of(&change.old);
    let whole = change.new.as_ref().is_some_and(|row| !row.has_unchanged());
    if change.replaced_key(schema).is_none() || here == there || !whole {
        return vec![(here, Event::Changed(change))];
    }
    let Change { table, schema, old, new, .. } = change;
    let delete = Change { table, schema, op: Op::Delete, old, new: None };
    let insert = Change { table, schema, op: Op::Insert, old: None, new };
    vec![(there, Event::Changed(delete)), (here, Event::Changed(insert))]
}

fn divide_rows(block: &RowBlock, schema: &TableSchema, partitions: u32) -> Result<Vec<(Partition, Event)>, LogError> {
    let mut parts: BTreeMap<Partition, (u32, BytesMut)> = BTreeMap::new();
    for row in block.iter() {
        let row = row.map_err(|error| LogError::Contract(format!("a damaged row of {}: {error}", schema.name)))?;
        let (count, bytes) = parts.entry(place(&row, schema, partitions)).or_default();
        *count += 1;
        bytes.extend_from_slice(row.as_bytes());
    }
    let part = |(partition, (count, bytes)): (Partition, (u32, BytesMut))| {
        (partition, Event::Rows(RowBlock { count, rows: bytes.freeze(), ..block.clone() }))
    };
    Ok(parts.into_iter().map(part).collect())
}
