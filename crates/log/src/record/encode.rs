//! Events to bytes, straight into one buffer.

use super::{FORMAT, FRAME_BODY, FRAME_BODY_MAX, FRAME_HEADER, FrameHeader, Kind, RECORD_HEADER, RecordHeader, flags};
use crate::{LogError, contract::unknown_schema};
use crossfade_event::{
    Batch, Cell, Change, Event, Identity, Offset, Op, Position, Row, SchemaVersion, SourceId, Stamped, TableId,
    TableSchema, Visibility,
};
use std::collections::HashMap;

/// Writes batches as frames. Knows the schemas, for a record carries the hash of its key.
#[derive(Debug, Default)]
pub struct Encoder {
    keys: HashMap<(TableId, SchemaVersion), KeyCells>,
    latest: Option<((TableId, SchemaVersion), KeyCells)>,
    scratch: Vec<u8>,
}

/// Which cells make a table's key.
#[derive(Debug, Clone)]
enum KeyCells {
    None,
    All,
    Some(std::sync::Arc<[usize]>),
}

/// The frame being written.
#[derive(Debug, Clone, Copy)]
struct Open {
    at: usize,
    base: Offset,
    count: u32,
    flags: u16,
    source: SourceId,
    timeline: u32,
    latest_time_us: i64,
}

/// Where a batch goes, and what is told of each finished frame.
struct Sheet<'a, F> {
    out: &'a mut Vec<u8>,
    next: Offset,
    durable: Offset,
    open: Option<Open>,
    done: F,
}

impl Encoder {
    /// The format that it writes.
    pub const FORMAT: u32 = FORMAT;

    /// Takes note of a schema; needed before the first change under it.
    pub fn learn(&mut self, schema: &TableSchema) {
        let cells = match schema.identity {
            Identity::Key => KeyCells::Some(schema.key_columns().into()),
            Identity::FullRow => KeyCells::All,
            Identity::InsertOnly => KeyCells::None,
        };
        self.latest = None;
        self.keys.insert((schema.id, schema.version), cells);
    }

    /// Forgets a schema whose record was taken back.
    pub fn forget(&mut self, table: TableId, version: SchemaVersion) {
        self.latest = None;
        self.keys.remove(&(table, version));
    }

    /// Writes `batch` behind what `out` has, its first record at `next`. After each frame `done` is called with the
    /// buffer, where the frame begins in it, and its header; it may write the buffer out and empty it. A batch is one
    /// frame unless its sources differ or it is large. Returns the offset after the batch.
    ///
    /// # Errors
    /// [`LogError::Contract`] for a batch that may not be written, and what `done` says. Frames may have been made by
    /// then; none of them ends a batch, so readers never see them.
    pub fn encode(
        &mut self,
        batch: &Batch,
        out: &mut Vec<u8>,
        next: Offset,
        durable: Offset,
        done: impl FnMut(&mut Vec<u8>, usize, &FrameHeader) -> Result<(), LogError>,
    ) -> Result<Offset, LogError> {
        let mut sheet = Sheet { out, next, durable, open: None, done };
        for stamped in &batch.events {
            sheet.make_room(stamped.position)?;
            self.record(stamped, &mut sheet)?;
        }
        sheet.finish(batch)?;
        Ok(sheet.next)
    }

    fn record<F>(&mut self, stamped: &Stamped, sheet: &mut Sheet<'_, F>) -> Result<(), LogError> {
        let event = &stamped.event;
        let kind = kind_of(event);
        let (table, schema) = table_of(event);
        let key_hash = match event {
            Event::Changed(change) => self.key_hash(change)?,
            _ => 0,
        };
        let out = &mut *sheet.out;
        let start = out.len();
        let mut head = [0u8; RECORD_HEADER];
        head[4] = kind as u8;
        head[5] = change_bits(event);
        head[8..12].copy_from_slice(&table.to_le_bytes());
        head[12..16].copy_from_slice(&schema.to_le_bytes());
        head[16..24].copy_from_slice(&stamped.position.commit.to_le_bytes());
        head[24..32].copy_from_slice(&key_hash.to_le_bytes());
        head[32..36].copy_from_slice(&stamped.position.ordinal.to_le_bytes());
        out.extend_from_slice(&head);
        payload(event, out)?;
        let length = out.len() - start - RECORD_HEADER;
        let too_large = || LogError::Contract(format!("an event of {length} bytes, more than a record can hold"));
        let length = u32::try_from(length).ok().filter(|_| length < FRAME_BODY_MAX - RECORD_HEADER);
        let length = length.ok_or_else(too_large)?;
        if let Some(slot) = out.get_mut(start..start + 4) {
            slot.copy_from_slice(&length.to_le_bytes());
        }
        if let Some(open) = &mut sheet.open {
            open.count += 1;
            open.flags |= kind.lane_flag();
            if let Event::Began(transaction) = event {
                open.latest_time_us = open.latest_time_us.max(transaction.commit_time_us);
            }
        }
        sheet.next.0 += 1;
        Ok(())
    }

    /// The hash that [`Change::key`] would have, without building the key.
    fn key_hash(&mut self, change: &Change) -> Result<u64, LogError> {
        let name = (change.table, change.schema);
        if self.latest.as_ref().is_none_or(|(latest, _)| *latest != name) {
            let cells = self.keys.get(&name).ok_or_else(|| unknown_schema(name.0, name.1))?;
            self.latest = Some((name, cells.clone()));
        }
        let Some((_, cells)) = &self.latest else { return Ok(0) };
        let Some(row) = change.new.as_ref().or(change.old.as_ref()) else {
            return Err(LogError::Contract(format!("a change of table {} without any image", name.0.0)));
        };
        Ok(match cells {
            KeyCells::None => 0,
            KeyCells::All if row.cells().any(|cell| matches!(cell, Cell::Absent | Cell::Unchanged)) => 0,
            KeyCells::All => xxhash_rust::xxh3::xxh3_64(row.as_bytes()),
            KeyCells::Some(wanted) => hash_of(row, wanted, &mut self.scratch).unwrap_or_default(),
        })
    }

    /// Checks that a table's schema is known.
    pub(crate) fn knows(&self, table: TableId, version: SchemaVersion) -> Result<(), LogError> {
        let name = (table, version);
        if self.keys.contains_key(&name) { Ok(()) } else { Err(unknown_schema(table, version)) }
    }
}

/// The hash of the key made of `wanted` cells: of its bytes as [`crossfade_event::Key`] lays them out.
fn hash_of(row: &Row, wanted: &[usize], scratch: &mut Vec<u8>) -> Option<u64> {
    scratch.clear();
    scratch.extend_from_slice(&(u16::try_from(wanted.len()).ok()?).to_be_bytes());
    let in_front = wanted.iter().enumerate().all(|(place, index)| place == *index);
    if in_front {
        // The common case, a key of the first columns: no need to find the cells first.
        let mut cells = row.cells();
        for _ in wanted {
            put_cell(cells.next()?, scratch)?;
        }
    } else {
        for index in wanted {
            put_cell(row.cell(*index)?, scratch)?;
        }
    }
    Some(xxhash_rust::xxh3::xxh3_64(scratch))
}

fn put_cell(cell: Cell<'_>, out: &mut Vec<u8>) -> Option<()> {
    match cell {
        Cell::Absent | Cell::Unchanged => return None,
        Cell::Null => out.extend_from_slice(&(-1i32).to_be_bytes()),
        Cell::Bytes(bytes) => {
            out.extend_from_slice(&(bytes.len() as i32).to_be_bytes());
            out.extend_from_slice(bytes);
        }
    }
    Some(())
}

impl<F: FnMut(&mut Vec<u8>, usize, &FrameHeader) -> Result<(), LogError>> Sheet<'_, F> {
    /// Opens a frame for an event at `position`, closing the one before where it is full or of another source.
    fn make_room(&mut self, position: Position) -> Result<(), LogError> {
        if let Some(open) = self.open {
            let full = self.out.len() - open.at - FRAME_HEADER >= FRAME_BODY;
            if full || open.source != position.source || open.timeline != position.timeline {
                self.close(0, None)?;
            }
        }
        if self.open.is_none() {
            self.begin(position.source, position.timeline);
        }
        Ok(())
    }

    fn begin(&mut self, source: SourceId, timeline: u32) {
        let at = self.out.len();
        self.out.extend_from_slice(&[0; FRAME_HEADER]);
        let (base, latest_time_us) = (self.next, i64::MIN);
        self.open = Some(Open { at, base, count: 0, flags: 0, source, timeline, latest_time_us });
    }

    /// Closes the batch's last frame, which says whether the batch is whole and up to where it goes.
    fn finish(&mut self, batch: &Batch) -> Result<(), LogError> {
        if let (Some(open), Some(upto)) = (self.open, batch.upto)
            && (open.source != upto.source || open.timeline != upto.timeline)
        {
            self.close(0, None)?;
        }
        if self.open.is_none() {
            let (source, timeline) = batch.upto.map_or((SourceId(0), 0), |upto| (upto.source, upto.timeline));
            self.begin(source, timeline);
        }
        self.close(if batch.whole { flags::WHOLE } else { 0 }, batch.upto)
    }

    fn close(&mut self, extra: u16, upto: Option<Position>) -> Result<(), LogError> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let body = self.out.get(open.at + FRAME_HEADER..).unwrap_or_default();
        let header = FrameHeader {
            body_crc: crc32c::crc32c(body),
            body_bytes: body.len() as u32,
            base: open.base,
            count: open.count,
            flags: open.flags | extra | if upto.is_some() { flags::UPTO } else { 0 },
            source: open.source,
            timeline: open.timeline,
            upto_commit: upto.map_or(0, |upto| upto.commit),
            upto_ordinal: upto.map_or(0, |upto| upto.ordinal),
            latest_time_us: open.latest_time_us,
            durable: self.durable,
        };
        if let Some(slot) = self.out.get_mut(open.at..open.at + FRAME_HEADER) {
            slot.copy_from_slice(&header.to_bytes());
        }
        (self.done)(self.out, open.at, &header)
    }
}

/// Writes an event's payload, for a log whose records are framed by others: what [`super::decode_event`] reads back with
/// the header that this gives. The header has no position and no key's hash.
///
/// # Errors
/// [`LogError::Contract`] for an event that cannot be written.
pub fn encode_event(event: &Event, out: &mut Vec<u8>) -> Result<RecordHeader, LogError> {
    let start = out.len();
    payload(event, out)?;
    let length = out.len() - start;
    let payload_bytes = u32::try_from(length)
        .map_err(|_| LogError::Contract(format!("an event of {length} bytes, more than a record can hold")))?;
    let (table, schema) = table_of(event);
    Ok(RecordHeader {
        payload_bytes,
        kind: kind_of(event),
        bits: change_bits(event),
        table: TableId(table),
        schema: SchemaVersion(schema),
        commit: 0,
        key_hash: 0,
        ordinal: 0,
    })
}

/// The kind of record that an event becomes.
pub fn kind_of(event: &Event) -> Kind {
    match event {
        Event::SchemaSeen(_) => Kind::SchemaSeen,
        Event::BackfillBegan(_) => Kind::BackfillBegan,
        Event::SnapshotBegan { .. } => Kind::SnapshotBegan,
        Event::Rows(_) => Kind::Rows,
        Event::ChunkEnded { .. } => Kind::ChunkEnded,
        Event::SnapshotEnded { .. } => Kind::SnapshotEnded,
        Event::BackfillEnded { .. } => Kind::BackfillEnded,
        Event::Began(_) => Kind::Began,
        Event::Changed(_) => Kind::Changed,
        Event::Truncated(_) => Kind::Truncated,
        Event::Marked(_) => Kind::Marked,
        Event::Committed => Kind::Committed,
        Event::Resolved => Kind::Resolved,
    }
}

fn table_of(event: &Event) -> (u32, u32) {
    match event {
        Event::SchemaSeen(schema) => (schema.id.0, schema.version.0),
        Event::Rows(block) => (block.table.0, block.schema.0),
        Event::Changed(change) => (change.table.0, change.schema.0),
        Event::SnapshotBegan { table, .. } | Event::ChunkEnded { table, .. } | Event::SnapshotEnded { table, .. } => {
            (table.0, 0)
        }
        _ => (0, 0),
    }
}

fn change_bits(event: &Event) -> u8 {
    let Event::Changed(change) = event else { return 0 };
    let op = match change.op {
        Op::Insert => 0,
        Op::Update => 1,
        Op::Delete => 2,
    };
    op | if change.old.is_some() { 16 } else { 0 } | if change.new.is_some() { 32 } else { 0 }
}

fn payload(event: &Event, out: &mut Vec<u8>) -> Result<(), LogError> {
    match event {
        Event::SchemaSeen(schema) => serde_json::to_writer(&mut *out, &**schema)
            .map_err(|error| LogError::Contract(format!("the schema of {} cannot be written: {error}", schema.name)))?,
        Event::BackfillBegan(backfill) => {
            put_u32(out, backfill.generation);
            put_tables(out, &backfill.tables);
            put_visibility(out, backfill.visible.as_ref());
        }
        Event::SnapshotBegan { chunks, .. } => {
            put_u32(out, chunks.len() as u32);
            for chunk in chunks {
                put_u32(out, chunk.id.0);
                put_text(out, &chunk.range);
            }
        }
        Event::Rows(block) => {
            put_u32(out, block.chunk.0);
            put_u32(out, block.count);
            out.extend_from_slice(&block.rows);
        }
        Event::ChunkEnded { chunk, rows, .. } => {
            put_u32(out, chunk.0);
            out.extend_from_slice(&rows.to_le_bytes());
        }
        Event::SnapshotEnded { visible, .. } => put_visibility(out, visible.as_ref()),
        Event::BackfillEnded { generation } => put_u32(out, *generation),
        Event::Began(transaction) => {
            out.extend_from_slice(&transaction.xid.to_le_bytes());
            out.extend_from_slice(&transaction.commit_time_us.to_le_bytes());
        }
        Event::Changed(change) => put_images(out, change),
        Event::Truncated(truncate) => {
            out.push(u8::from(truncate.restart_identity));
            put_tables(out, &truncate.tables);
        }
        Event::Marked(mark) => {
            put_text(out, &mark.prefix);
            out.extend_from_slice(&mark.content);
        }
        Event::Committed | Event::Resolved => {}
    }
    Ok(())
}

fn put_images(out: &mut Vec<u8>, change: &Change) {
    if let (Some(old), Some(_)) = (&change.old, &change.new) {
        put_u32(out, old.as_bytes().len() as u32);
    }
    for row in [&change.old, &change.new].into_iter().flatten() {
        out.extend_from_slice(row.as_bytes());
    }
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_u32(out, text.len() as u32);
    out.extend_from_slice(text.as_bytes());
}

fn put_tables(out: &mut Vec<u8>, tables: &[TableId]) {
    put_u32(out, tables.len() as u32);
    for table in tables {
        put_u32(out, table.0);
    }
}

fn put_visibility(out: &mut Vec<u8>, visible: Option<&Visibility>) {
    let Some(visible) = visible else { return out.push(0) };
    out.push(1);
    out.extend_from_slice(&visible.xmin.to_le_bytes());
    out.extend_from_slice(&visible.xmax.to_le_bytes());
    put_u32(out, visible.in_progress.len() as u32);
    for xid in &visible.in_progress {
        out.extend_from_slice(&xid.to_le_bytes());
    }
}
