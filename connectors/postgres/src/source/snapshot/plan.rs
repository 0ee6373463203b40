//! Cutting a table into chunks.

use super::Shared;
use crate::client::wire::Wire;
use crossfade_connector::{Failure, TableSnapshot};
use crossfade_event::{ChunkId, ChunkPlan, Event, Identity, TableSchema};
use std::fmt;

/// What a chunk covers; written into the log as text and read again after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Range {
    /// The whole table, in one go.
    Whole,
    /// Pages of one file of the table; without an end for the last one, for the table may grow. For the root of a
    /// partition tree, those of one leaf.
    Pages { leaf: Option<u32>, file: u32, from: u32, to: Option<u32> },
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => f.write_str("whole"),
            Self::Pages { leaf, file, from, to } => {
                if let Some(leaf) = leaf {
                    write!(f, "leaf {leaf} ")?;
                }
                match to {
                    Some(to) => write!(f, "pages {file} {from} {to}"),
                    None => write!(f, "pages {file} {from} -"),
                }
            }
        }
    }
}

impl Range {
    /// The leaf that is read, where it is one of a tree.
    pub(super) fn leaf(self) -> Option<u32> {
        match self {
            Self::Pages { leaf, .. } => leaf,
            Self::Whole => None,
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        if text == "whole" {
            return Some(Self::Whole);
        }
        let (leaf, text) = match text.strip_prefix("leaf ").map(|rest| rest.split_once(' ')) {
            Some(leaf) => {
                let (leaf, rest) = leaf?;
                (Some(leaf.parse().ok()?), rest)
            }
            None => (None, text),
        };
        let mut words = text.strip_prefix("pages ")?.split(' ');
        let file = words.next()?.parse().ok()?;
        let from = words.next()?.parse().ok()?;
        let to = match words.next()? {
            "-" => None,
            to => Some(to.parse().ok()?),
        };
        Some(Self::Pages { leaf, file, from, to })
    }
}

pub(super) struct Planned {
    pub(super) chunks: Vec<ChunkPlan>,
    pub(super) next_chunk: u32,
    /// `SnapshotBegan`, where the plan is new.
    pub(super) announce: Option<Event>,
}

/// The plan of a table: the one that is in the log if it still holds, else a new one. The one chunk of a table without
/// a key is never read twice under one number, for its rows cannot be told from those of an attempt that broke off.
pub(super) async fn plan(
    shared: &Shared,
    wire: &mut Wire,
    schema: &TableSchema,
    state: &TableSnapshot,
) -> Result<Planned, Failure> {
    let next = state.chunks.iter().map(|chunk| chunk.id.0 + 1).max().unwrap_or(0);
    let broke_off = schema.identity != Identity::Key && state.done.is_empty();
    if state.ended || (!state.chunks.is_empty() && !broke_off) {
        return Ok(Planned { chunks: state.chunks.clone(), next_chunk: next, announce: None });
    }
    let (chunks, next_chunk) = cut(shared, wire, schema, next).await?;
    let announce = Some(Event::SnapshotBegan { table: schema.id, chunks: chunks.clone() });
    Ok(Planned { chunks, next_chunk, announce })
}

/// New chunks, numbered from `first`; and the number after the last one.
pub(super) async fn cut(
    shared: &Shared,
    wire: &mut Wire,
    schema: &TableSchema,
    first: u32,
) -> Result<(Vec<ChunkPlan>, u32), Failure> {
    let ranges = match schema.identity {
        Identity::Key => ranges(shared, wire, schema).await?,
        // All of it must be seen by one snapshot.
        Identity::FullRow | Identity::InsertOnly => vec![Range::Whole],
    };
    let chunks: Vec<ChunkPlan> = (first..)
        .zip(ranges)
        .map(|(id, range)| ChunkPlan { id: ChunkId(id), range: range.to_string().into() })
        .collect();
    let next = first + chunks.len() as u32;
    Ok((chunks, next))
}

async fn ranges(shared: &Shared, wire: &mut Wire, schema: &TableSchema) -> Result<Vec<Range>, Failure> {
    // Before 14 a range of pages is found by reading the whole table.
    if shared.version < 140_000 {
        return Ok(vec![Range::Whole]);
    }
    // The table itself, or the leaves of its tree. A leaf that may not be read by itself is read through the root.
    let sql = format!(
        "SELECT pg_catalog.pg_relation_filenode(c.oid), pg_catalog.pg_relation_size(c.oid) / \
         pg_catalog.current_setting('block_size')::int8, c.reltuples / NULLIF(c.relpages, 0), \
         NULLIF(c.oid, {oid}), a.amname = 'heap' AND pg_catalog.has_table_privilege(c.oid, 'SELECT') \
         FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_am a ON a.oid = c.relam WHERE c.relkind <> 'p' \
         AND (c.oid = {oid} OR c.oid IN (SELECT relid FROM pg_catalog.pg_partition_tree({oid}))) ORDER BY c.oid",
        oid = schema.native_id
    );
    let mut ranges = Vec::new();
    for row in wire.query(&sql).await? {
        let cell = |index: usize| row.get(index).and_then(Option::as_deref);
        let number = |index: usize| cell(index).and_then(|text| text.parse::<u32>().ok());
        let (Some(file), Some(pages), Some("t")) = (number(0), number(1), cell(4)) else {
            return Ok(vec![Range::Whole]);
        };
        // A table that was never analysed says nothing, or -1: a hundred rows a page will do.
        let rows_per_page =
            cell(2).and_then(|text| text.parse::<f64>().ok()).filter(|rows| *rows > 0.0).unwrap_or(100.0);
        let step = (shared.config.snapshot.chunk_rows as f64 / rows_per_page).clamp(1.0, f64::from(u32::MAX)) as u32;
        ranges.extend(pages_in_steps(number(3), file, pages, step));
    }
    Ok(if ranges.is_empty() { vec![Range::Whole] } else { ranges })
}

fn pages_in_steps(leaf: Option<u32>, file: u32, pages: u32, step: u32) -> Vec<Range> {
    let mut ranges = Vec::new();
    let mut from = 0u32;
    loop {
        let to = from.checked_add(step).filter(|to| *to < pages);
        ranges.push(Range::Pages { leaf, file, from, to });
        match to {
            Some(to) => from = to,
            None => return ranges,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_covered_without_gap_and_the_last_range_is_open() {
        let ranges = pages_in_steps(None, 7, 10, 4);
        let pages = |from, to| Range::Pages { leaf: None, file: 7, from, to };
        assert_eq!(ranges, [pages(0, Some(4)), pages(4, Some(8)), pages(8, None)]);
        assert_eq!(pages_in_steps(None, 7, 0, 4), [pages(0, None)]);
        assert_eq!(pages_in_steps(None, 7, 8, 4), [pages(0, Some(4)), pages(4, None)]);
    }

    #[test]
    fn a_range_reads_what_it_writes() {
        let pages = |leaf, to| Range::Pages { leaf, file: 1, from: 2, to };
        for range in [Range::Whole, pages(None, Some(3)), pages(None, None), pages(Some(77), Some(3))] {
            assert_eq!(Range::parse(&range.to_string()), Some(range));
        }
        assert_eq!(Range::parse("pages 1"), None);
    }
}
