//! Reading one chunk: a transaction, a snapshot that sees enough, a lock that keeps the table's file, and a `COPY`
//! whose tuples are regrouped untouched.

use super::{Job, Output, Shared, plan::Range};
use crate::{
    client::{replication::Lsn, wire::Wire},
    source::{fetch::select_list, slot::END_OF_WAL, visibility},
};
use bytes::{Buf, Bytes, BytesMut};
use crossfade_connector::Failure;
use crossfade_event::{Event, RowBlock, TableName, TableSchema, Visibility};
use std::{sync::Arc, time::Duration};

/// Rows are handed over in blocks of about this size.
const BLOCK_BYTES: usize = 256 * 1024;
/// How long to wait before a new snapshot is tried: a committing transaction leaves the list of running ones at once.
const SNAPSHOT_RETRY: Duration = Duration::from_millis(5);
/// A table that was added waits for transactions that ran at that moment, which may take long.
const SNAPSHOT_RETRY_MAX: Duration = Duration::from_millis(250);

/// How the reading of a chunk ended.
pub(super) enum Read {
    /// To its end; `ended` is still to be said.
    Whole { ended: Event, visible: Visibility },
    /// The table's rows lie in another file than when the chunks were cut.
    PlanIsVoid,
    /// A column was retyped or dropped; the stream says so at `until` at the latest.
    SchemaIsStale { until: Lsn },
    /// Nobody listens any more.
    Unheard,
}

pub(super) async fn read(
    shared: &Shared,
    wire: &mut Wire,
    schema: &Arc<TableSchema>,
    job: &Job,
) -> Result<Read, Failure> {
    let doing = || format!("reading chunk {} of {}", job.chunk.id.0, schema.name);
    let range = Range::parse(&job.chunk.range).ok_or_else(|| {
        Failure::halt(doing(), "its range in the log is not understood", "The log was written by another version")
    })?;
    let mut pause = SNAPSHOT_RETRY;
    let opened = loop {
        let Some(opened) = open(wire, schema, range.leaf()).await? else {
            // A table that was dropped has no rows.
            let ended = Event::ChunkEnded { table: job.table, chunk: job.chunk.id, rows: 0 };
            return Ok(Read::Whole { ended, visible: Visibility::default() });
        };
        if visibility::covers(&opened.visible, &shared.visible) {
            break opened;
        }
        wire.query("ROLLBACK").await?;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(SNAPSHOT_RETRY_MAX);
    };
    if !opened.agrees(schema) {
        wire.query("ROLLBACK").await?;
        return Ok(Read::SchemaIsStale { until: opened.end });
    }
    if let Range::Pages { file, .. } = range
        && opened.file != Some(file)
    {
        wire.query("ROLLBACK").await?;
        return Ok(Read::PlanIsVoid);
    }
    let list = select_list(schema, &opened.columns, "")?;
    let table = crate::quote_table(&opened.name)?;
    let only = if opened.is_root { "" } else { "ONLY " };
    let rows = match range {
        Range::Whole => String::new(),
        Range::Pages { from, to: None, .. } => format!(" WHERE ctid >= '({from},0)'"),
        Range::Pages { from, to: Some(to), .. } => format!(" WHERE ctid >= '({from},0)' AND ctid < '({to},0)'"),
    };
    wire.send_query(&format!("COPY (SELECT {list} FROM {only}{table}{rows}) TO STDOUT (FORMAT binary)")).await?;
    let Some(count) = copy(shared, wire, schema, job).await? else { return Ok(Read::Unheard) };
    wire.query("COMMIT").await?;
    let ended = Event::ChunkEnded { table: job.table, chunk: job.chunk.id, rows: count };
    Ok(Read::Whole { ended, visible: opened.visible })
}

/// What the chunk's transaction sees of the table.
struct Opened {
    visible: Visibility,
    file: Option<u32>,
    name: TableName,
    /// A whole partition tree, read through its root.
    is_root: bool,
    /// The columns' names now, by number.
    columns: Vec<(u32, String)>,
    /// Their types, in the same order.
    types: Vec<String>,
    /// The end of WAL.
    end: Lsn,
}

impl Opened {
    /// Whether the columns of the schema can be read as it says: renamed ones can, retyped ones cannot, and dropped
    /// ones only where NULL may stand for them.
    fn agrees(&self, schema: &TableSchema) -> bool {
        schema.columns.iter().all(|column| {
            let now = self.columns.iter().zip(&self.types).find(|((number, _), _)| *number == column.native_id);
            now.map_or(column.nullable, |(_, type_name)| **type_name == *column.type_.name)
        })
    }
}

/// Locks the table, then takes the snapshot: a rewrite before the lock is seen, and none can come after it. `None`
/// where the table does not exist any more.
async fn open(wire: &mut Wire, schema: &TableSchema, leaf: Option<u32>) -> Result<Option<Opened>, Failure> {
    let doing = || format!("opening {}", schema.name);
    let gone = || Failure::retry(doing(), "the table was renamed or dropped this moment");
    let root = schema.native_id;
    let oid = leaf.unwrap_or(root);
    let sql = format!(
        "SELECT n.nspname, c.relname, c.relkind FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = {oid}"
    );
    let row = wire.query(&sql).await?.into_iter().next().unwrap_or_default();
    let mut cells = row.into_iter().flatten();
    let (Some(namespace), Some(relation)) = (cells.next(), cells.next()) else { return Ok(None) };
    let is_root = cells.next().as_deref() == Some("p");
    let name = TableName::new(namespace, relation);
    let table = crate::quote_table(&name)?;
    wire.query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let locked = wire.query(&format!("LOCK TABLE ONLY {table} IN ACCESS SHARE MODE")).await;
    if let Err(failure) = locked {
        wire.query("ROLLBACK").await?;
        return Err(failure);
    }
    let sql = format!(
        "SELECT pg_catalog.pg_current_snapshot(), pg_catalog.pg_relation_filenode({oid}), \
         {}::pg_catalog.regclass::pg_catalog.oid = {oid}, {END_OF_WAL}",
        crate::quote_literal(table.as_str())
    );
    let row = wire.query(&sql).await?.into_iter().next().unwrap_or_default();
    let cell = |index: usize| row.get(index).and_then(Option::as_deref);
    if cell(2) != Some("t") {
        wire.query("ROLLBACK").await?;
        return Err(gone());
    }
    let visible = cell(0).and_then(visibility::parse).ok_or_else(gone)?;
    let file = cell(1).and_then(|text| text.parse().ok());
    let end = cell(3).and_then(Lsn::parse).ok_or_else(gone)?;
    let sql = format!(
        "SELECT r.attnum, a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute r \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = {oid} AND a.attname = r.attname AND a.attnum > 0 \
         AND NOT a.attisdropped WHERE r.attrelid = {root} AND r.attnum > 0 AND NOT r.attisdropped"
    );
    let (mut columns, mut types) = (Vec::new(), Vec::new());
    for row in wire.query(&sql).await? {
        let mut cells = row.into_iter().flatten();
        if let (Some(Ok(number)), Some(name), Some(type_name)) =
            (cells.next().map(|text| text.parse()), cells.next(), cells.next())
        {
            columns.push((number, name));
            types.push(type_name);
        }
    }
    Ok(Some(Opened { visible, file, name, is_root, columns, types, end }))
}

/// Reads a `COPY`'s answer; `None` when nobody listens any more.
async fn copy(shared: &Shared, wire: &mut Wire, schema: &TableSchema, job: &Job) -> Result<Option<u64>, Failure> {
    let mut blocks = Blocks::new(schema.columns.len());
    let mut total = 0u64;
    let mut failed = None;
    // The server sends row by row, or page by page; a chunk of some length is not read so.
    let (mut is_long, mut gathers) = (false, false);
    loop {
        let frames = wire.buffered_copy_data()?;
        if !frames.is_empty() {
            blocks.push(&frames).map_err(|problem| damaged(schema, problem))?;
            while let Some((rows, count)) = blocks.pop(BLOCK_BYTES) {
                total += u64::from(count);
                is_long = true;
                if !hand_over(shared, schema, job, rows, count).await {
                    return Ok(None);
                }
            }
            continue;
        }
        let Some(frame) = wire.buffered()? else {
            if is_long {
                gathers = wire.fill_gathered().await?;
            } else {
                wire.fill().await?;
            }
            continue;
        };
        match frame.tag {
            b'H' | b'c' | b'C' | b'N' | b'S' => {}
            b'E' => failed = Some(wire.refused(&frame.body)),
            b'Z' => break,
            other => return Err(wire.unexpected(other)),
        }
    }
    if gathers {
        wire.gather(false).map_err(|error| wire.broken(error))?;
    }
    if let Some(failure) = failed {
        wire.query("ROLLBACK").await?;
        return Err(failure);
    }
    if !blocks.ended {
        return Err(damaged(schema, "the copy ended without its trailer"));
    }
    if let Some((rows, count)) = blocks.pop(0) {
        total += u64::from(count);
        if !hand_over(shared, schema, job, rows, count).await {
            return Ok(None);
        }
    }
    Ok(Some(total))
}

async fn hand_over(shared: &Shared, schema: &TableSchema, job: &Job, rows: Bytes, count: u32) -> bool {
    let block = RowBlock { table: job.table, schema: schema.version, chunk: job.chunk.id, count, rows };
    shared.send(Output::Events(vec![Event::Rows(block)])).await
}

fn damaged(schema: &TableSchema, problem: &'static str) -> Failure {
    Failure::reconnect(format!("reading {}", schema.name), problem)
}

/// Takes the bytes of a binary `COPY` as they come and gives blocks of whole tuples.
struct Blocks {
    columns: usize,
    header_read: bool,
    ended: bool,
    buffer: BytesMut,
    /// So much of the buffer is whole tuples.
    whole: usize,
    count: u32,
}

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
/// The signature, 32 bits of flags, and the length of an extension.
const HEADER_BYTES: usize = SIGNATURE.len() + 8;

impl Blocks {
    fn new(columns: usize) -> Self {
        let buffer = BytesMut::with_capacity(BLOCK_BYTES * 2);
        Self { columns, header_read: false, ended: false, buffer, whole: 0, count: 0 }
    }

    /// Takes some `CopyData` messages, with their message headers.
    fn push(&mut self, frames: &[u8]) -> Result<(), &'static str> {
        let mut rest = frames;
        while let Some((header, body)) = rest.split_first_chunk::<5>() {
            let [_, length @ ..] = *header;
            let length = (u32::from_be_bytes(length) as usize).saturating_sub(4);
            let (body, next) = body.split_at_checked(length).ok_or("a message is cut short")?;
            self.buffer.extend_from_slice(body);
            rest = next;
        }
        if !self.header_read && !self.read_header()? {
            return Ok(());
        }
        self.walk()
    }

    fn read_header(&mut self) -> Result<bool, &'static str> {
        let Some(header) = self.buffer.first_chunk::<HEADER_BYTES>() else { return Ok(false) };
        if !header.starts_with(SIGNATURE) {
            return Err("the copy does not begin as one");
        }
        let extension = header.last_chunk::<4>().map_or(0, |length| u32::from_be_bytes(*length) as usize);
        if self.buffer.len() < HEADER_BYTES + extension {
            return Ok(false);
        }
        self.buffer.advance(HEADER_BYTES + extension);
        self.header_read = true;
        Ok(true)
    }

    /// Moves over the tuples that are there wholly.
    fn walk(&mut self) -> Result<(), &'static str> {
        while let Some(count) = self.buffer.get(self.whole..).and_then(|rest| rest.first_chunk::<2>()) {
            let count = i16::from_be_bytes(*count);
            if count == -1 {
                self.ended = true;
                self.buffer.truncate(self.whole);
                return Ok(());
            }
            if count as usize != self.columns {
                return Err("a row has another number of columns than was asked for");
            }
            let mut at = self.whole + 2;
            for _ in 0..count {
                let Some(length) = self.buffer.get(at..).and_then(|rest| rest.first_chunk::<4>()) else {
                    return Ok(());
                };
                at += 4 + usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
            }
            if at > self.buffer.len() {
                return Ok(());
            }
            self.whole = at;
            self.count += 1;
        }
        Ok(())
    }

    /// A block of whole tuples, once there are more than so many bytes of them.
    fn pop(&mut self, more_than: usize) -> Option<(Bytes, u32)> {
        if self.whole <= more_than {
            return None;
        }
        let rows = self.buffer.split_to(std::mem::take(&mut self.whole)).freeze();
        self.buffer.reserve(BLOCK_BYTES * 2);
        Some((rows, std::mem::take(&mut self.count)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossfade_event::Rows;

    fn frame(body: &[u8]) -> Vec<u8> {
        [&b"d"[..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
    }

    #[test]
    fn tuples_are_regrouped_however_the_messages_are_cut() {
        let header = [SIGNATURE, &[0; 8]].concat();
        let tuple = |value: &[u8]| [&[0, 1][..], &(value.len() as u32).to_be_bytes(), value].concat();
        let stream = [header, tuple(b"one"), tuple(b""), tuple(b"three"), vec![0xff, 0xff]].concat();
        for size in 1..stream.len() {
            let mut blocks = Blocks::new(1);
            for piece in stream.chunks(size) {
                blocks.push(&frame(piece)).unwrap();
            }
            assert!(blocks.ended, "pieces of {size}");
            let (rows, count) = blocks.pop(0).unwrap();
            assert_eq!((count, Rows::new(rows).count()), (3, 3));
        }
    }

    #[test]
    fn a_row_of_another_width_is_refused() {
        let mut blocks = Blocks::new(2);
        let stream = [SIGNATURE, &[0; 8], &[0, 1, 255, 255, 255, 255]].concat();
        assert!(blocks.push(&frame(&stream)).is_err());
    }
}
