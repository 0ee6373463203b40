//! Bytes to events, sharing the bytes.

use super::{Fields, FrameHeader, Kind, Malformed, RECORD_HEADER};
use bytes::Bytes;
use crossfade_event::{
    Backfill, Change, ChunkId, ChunkPlan, Event, Mark, Offset, Op, Position, Row, RowBlock, SchemaVersion, TableId,
    Transaction, Truncate, Visibility,
};
use std::sync::Arc;

/// What a record says of itself, readable without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    /// Length of the payload.
    pub payload_bytes: u32,
    /// What it says.
    pub kind: Kind,
    /// Operation and images of a change.
    pub bits: u8,
    /// Which table, zero for none.
    pub table: TableId,
    /// Which of its schemas, zero for none.
    pub schema: SchemaVersion,
    /// The position's commit.
    pub commit: u64,
    /// The key's hash, zero for none.
    pub key_hash: u64,
    /// The position's ordinal.
    pub ordinal: u32,
}

impl RecordHeader {
    /// Reads a header.
    ///
    /// # Errors
    /// When the bytes are no header.
    pub fn parse(bytes: &[u8; RECORD_HEADER]) -> Result<Self, Malformed> {
        let mut fields = Fields(bytes);
        let payload_bytes = fields.u32()?;
        let kind = Kind::from_number(fields.u8()?).ok_or(Malformed("a record of an unknown kind"))?;
        let bits = fields.u8()?;
        let _zero = fields.u16()?;
        Ok(Self {
            payload_bytes,
            kind,
            bits,
            table: TableId(fields.u32()?),
            schema: SchemaVersion(fields.u32()?),
            commit: fields.u64()?,
            key_hash: fields.u64()?,
            ordinal: fields.u32()?,
        })
    }
}

/// One record of a frame, its payload still undecoded.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its place in the log.
    pub offset: Offset,
    /// Its place in the source's history.
    pub position: Position,
    /// What it says of itself.
    pub header: RecordHeader,
    /// The payload; shares the frame's bytes.
    pub payload: Bytes,
}

impl Record {
    /// Decodes the payload.
    ///
    /// # Errors
    /// When it is not what its kind demands.
    pub fn event(&self) -> Result<Event, Malformed> {
        decode_event(&self.header, &self.payload)
    }
}

/// The records of one frame. After an error there is nothing more.
#[derive(Debug, Clone)]
pub struct Records {
    header: FrameHeader,
    body: Bytes,
    at: usize,
    index: u32,
}

impl Records {
    /// The records in a frame's body.
    pub fn new(header: FrameHeader, body: Bytes) -> Self {
        Self { header, body, at: 0, index: 0 }
    }

    /// Where in the body the next record begins.
    pub fn at(&self) -> usize {
        self.at
    }

    fn read(&mut self) -> Result<Option<Record>, Malformed> {
        let rest = self.body.get(self.at..).unwrap_or_default();
        if self.index == self.header.count {
            return if rest.is_empty() { Ok(None) } else { Err(Malformed("a frame has bytes after its records")) };
        }
        let head = rest.first_chunk::<RECORD_HEADER>().ok_or(Malformed("a frame ends inside a record"))?;
        let header = RecordHeader::parse(head)?;
        let start = self.at + RECORD_HEADER;
        let end = start + header.payload_bytes as usize;
        if end > self.body.len() {
            return Err(Malformed("a frame ends inside a record"));
        }
        let record = Record {
            offset: Offset(self.header.base.0.saturating_add(u64::from(self.index))),
            position: Position {
                source: self.header.source,
                timeline: self.header.timeline,
                commit: header.commit,
                ordinal: header.ordinal,
            },
            header,
            payload: self.body.slice(start..end),
        };
        self.at = end;
        self.index += 1;
        Ok(Some(record))
    }
}

impl Iterator for Records {
    type Item = Result<Record, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let result = self.read().transpose();
        if let Some(Err(_)) = &result {
            self.index = self.header.count;
            self.body.clear();
            self.at = 0;
        }
        result
    }
}

/// Decodes one record's payload; rows share its bytes.
///
/// # Errors
/// When the payload is not what the kind demands.
pub fn decode_event(header: &RecordHeader, payload: &Bytes) -> Result<Event, Malformed> {
    let table = header.table;
    let mut fields = Fields(payload);
    let event = match header.kind {
        Kind::Changed => return changed(header, payload),
        Kind::Rows => {
            let (chunk, count) = (ChunkId(fields.u32()?), fields.u32()?);
            let rows = payload.slice(8..);
            return Ok(Event::Rows(RowBlock { table, schema: header.schema, chunk, count, rows }));
        }
        Kind::SchemaSeen => {
            let schema = serde_json::from_slice(payload).map_err(|_| Malformed("a schema is not what it should be"))?;
            return Ok(Event::SchemaSeen(Arc::new(schema)));
        }
        Kind::Marked => {
            let prefix = fields.text()?.into();
            let content = payload.slice(payload.len() - fields.0.len()..);
            return Ok(Event::Marked(Mark { prefix, content }));
        }
        Kind::BackfillBegan => Event::BackfillBegan(Backfill {
            generation: fields.u32()?,
            tables: tables(&mut fields)?,
            visible: visibility(&mut fields)?,
        }),
        Kind::SnapshotBegan => {
            let count = fields.count(8)?;
            let chunk =
                |fields: &mut Fields<'_>| Ok(ChunkPlan { id: ChunkId(fields.u32()?), range: fields.text()?.into() });
            let chunks = (0..count).map(|_| chunk(&mut fields)).collect::<Result<_, Malformed>>()?;
            Event::SnapshotBegan { table, chunks }
        }
        Kind::ChunkEnded => Event::ChunkEnded { table, chunk: ChunkId(fields.u32()?), rows: fields.u64()? },
        Kind::SnapshotEnded => Event::SnapshotEnded { table, visible: visibility(&mut fields)? },
        Kind::BackfillEnded => Event::BackfillEnded { generation: fields.u32()? },
        Kind::Began => Event::Began(Transaction { xid: fields.u64()?, commit_time_us: fields.i64()? }),
        Kind::Truncated => {
            let restart_identity = flag(&mut fields)?;
            Event::Truncated(Truncate { tables: tables(&mut fields)?, restart_identity })
        }
        Kind::Committed => Event::Committed,
        Kind::Resolved => Event::Resolved,
    };
    fields.end()?;
    Ok(event)
}

fn changed(header: &RecordHeader, payload: &Bytes) -> Result<Event, Malformed> {
    let op = match header.bits & 15 {
        0 => Op::Insert,
        1 => Op::Update,
        2 => Op::Delete,
        _ => return Err(Malformed("a change that is neither insert, update nor delete")),
    };
    let row = |bytes: Bytes| Row::parse(bytes).map_err(|_| Malformed("a row is not what it should be"));
    let (old, new) = match header.bits & 0xf0 {
        16 => (Some(row(payload.clone())?), None),
        32 => (None, Some(row(payload.clone())?)),
        48 => {
            let mut fields = Fields(payload);
            let length = fields.u32()? as usize;
            fields.bytes(length)?;
            (Some(row(payload.slice(4..4 + length))?), Some(row(payload.slice(4 + length..))?))
        }
        _ => return Err(Malformed("a change without any image")),
    };
    Ok(Event::Changed(Change { table: header.table, schema: header.schema, op, old, new }))
}

fn tables(fields: &mut Fields<'_>) -> Result<Vec<TableId>, Malformed> {
    let count = fields.count(4)?;
    (0..count).map(|_| fields.u32().map(TableId)).collect()
}

fn flag(fields: &mut Fields<'_>) -> Result<bool, Malformed> {
    match fields.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed("a flag in a record is neither zero nor one")),
    }
}

fn visibility(fields: &mut Fields<'_>) -> Result<Option<Visibility>, Malformed> {
    if !flag(fields)? {
        return Ok(None);
    }
    let (xmin, xmax) = (fields.u64()?, fields.u64()?);
    let count = fields.count(8)?;
    let in_progress = (0..count).map(|_| fields.u64()).collect::<Result<_, _>>()?;
    Ok(Some(Visibility { xmin, xmax, in_progress }))
}
