//! What a worker makes of the log's changes for deliver, beside the log.
//!
//! A worker ([`Maker`]) follows the shapes as deliver does and transforms what comes to it; deliver takes what was made
//! where it was made under the very shapes that deliver itself follows there, and otherwise transforms the change itself,
//! as it does where there are no workers. So a worker can be late, gone or begun anew: what comes out is the same.
//!
//! A worker leaves to deliver what it cannot know: rows that pass unchanged (there is nothing to be made), and those that
//! look rows of other tables up.
//!
//! | at | size | what was made of a change, or of a block of rows. Version 1; integers are little-endian |
//! |---|---|---|
//! | 0 | 1 | the version |
//! | 1 | 1 | 0 left to deliver: nothing follows; 1 made |
//! | 2 | 8 | a number for the program's version and the shapes followed ([`shapes`]) |
//! | 10 | 4 | how many rows; one for a change |
//!
//! For each row a `u32` count of outputs, and for each of them a `u8`: 0 filtered; 1 a change; 2 rejected, and then `u32`
//! table, a blob (`u32` length, bytes) with the key and before it a `u8` whether there is one, the change as it came, and a
//! blob with the reason. A change: `u32` table, `u32` schema version, `u8` operation (0 insert, 1 update, 2 delete; plus 16
//! with an old image, plus 32 with a new one), and a blob for each image.

use crate::{
    PipelineError,
    route::Routes,
    views::{Scratch, inserted},
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use crossfade_event::{Change, Event, Key, Op, Row, SchemaVersion, TableId};
use crossfade_log::{Entry, EventLog};
use crossfade_transform::{Output, Views};
use std::cell::Cell;
use xxhash_rust::xxh3::Xxh3;

/// The format that this program writes and reads.
const VERSION: u8 = 1;

const LEFT: u8 = 0;
const MADE: u8 = 1;

const FILTERED: u8 = 0;
const CHANGE: u8 = 1;
const REJECTED: u8 = 2;

const HAS_OLD: u8 = 16;
const HAS_NEW: u8 = 32;

/// A number for what shapes were followed, and by which version of the program.
pub(crate) fn shapes(followed: &[(TableId, SchemaVersion)]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(env!("CARGO_PKG_VERSION").as_bytes());
    for (table, version) in followed {
        hash.update(&table.0.to_le_bytes());
        hash.update(&version.0.to_le_bytes());
    }
    hash.digest()
}

/// A worker: makes of changes what deliver would make of them.
#[derive(Debug)]
pub struct Maker<L> {
    log: L,
    routes: Routes,
    outputs: Vec<Output>,
    buffer: BytesMut,
}

/// A worker has no rows to look up.
#[derive(Default)]
struct NoRows {
    asked: Cell<bool>,
}

impl Views for NoRows {
    fn get(&self, _view: u32, _key: &Key) -> Option<Row> {
        self.asked.set(true);
        None
    }
}

impl<L: EventLog> Maker<L> {
    /// One that goes on where these shapes have been followed.
    ///
    /// # Errors
    /// When the log does not know one of them.
    pub fn new(log: L, mut routes: Routes, followed: &[(TableId, SchemaVersion)]) -> Result<Self, PipelineError> {
        routes = routes.with_scratch(Scratch::default());
        routes.restore(&log, followed)?;
        Ok(Self { log, routes, outputs: Vec::new(), buffer: BytesMut::new() })
    }

    /// The shapes followed so far.
    pub fn followed(&self) -> Vec<(TableId, SchemaVersion)> {
        self.routes.followed()
    }

    /// Takes the next entry; what was made of it, if it is a change or a block of rows.
    ///
    /// # Errors
    /// When the transforms do not fit what the log holds: deliver comes to the same end there.
    pub fn take(&mut self, entry: &Entry) -> Result<Option<Bytes>, PipelineError> {
        match &entry.event {
            Event::SchemaSeen(schema) => {
                self.routes.follow(schema)?;
                Ok(None)
            }
            Event::Changed(change) => self.made(change.table, change.schema, 1, |take| take(change)).map(Some),
            Event::Rows(block) => {
                let schema = self.log.schema(block.table, block.schema);
                let made = self.made(block.table, block.schema, block.count, |take| {
                    let schema = schema.as_ref()?;
                    for row in block.iter() {
                        take(&inserted(block.table, schema, row.ok()?))?;
                    }
                    Some(())
                });
                made.map(Some)
            }
            _ => Ok(None),
        }
    }

    /// What comes of the changes that `each` hands over; left to deliver where one cannot be made, which says why.
    fn made(
        &mut self,
        table: TableId,
        version: SchemaVersion,
        rows: u32,
        each: impl FnOnce(&mut dyn FnMut(&Change) -> Option<()>) -> Option<()>,
    ) -> Result<Bytes, PipelineError> {
        let Some(schema) = self.log.schema(table, version) else { return Ok(left()) };
        let route = self.routes.route(&schema)?;
        if route.passthrough().is_some() {
            return Ok(left());
        }
        let (none, buffer, outputs) = (NoRows::default(), &mut self.buffer, &mut self.outputs);
        buffer.clear();
        buffer.put_slice(&[VERSION, MADE]);
        buffer.put_u64_le(self.routes.shapes());
        buffer.put_u32_le(rows);
        let all = each(&mut |change| {
            let laid_out = route.laid_out(change);
            outputs.clear();
            route.bound.apply(laid_out.as_ref().unwrap_or(change), &none, outputs);
            if none.asked.get() {
                return None;
            }
            buffer.put_u32_le(outputs.len() as u32);
            outputs.iter().for_each(|output| put_output(output, buffer));
            Some(())
        });
        Ok(if all.is_some() { self.buffer.split().freeze() } else { left() })
    }
}

fn left() -> Bytes {
    Bytes::from_static(&[VERSION, LEFT])
}

fn put_output(output: &Output, buffer: &mut BytesMut) {
    match output {
        Output::Filtered => buffer.put_u8(FILTERED),
        Output::Change(change) => {
            buffer.put_u8(CHANGE);
            put_change(change, buffer);
        }
        Output::Rejected { table, key, change, reason } => {
            buffer.put_u8(REJECTED);
            buffer.put_u32_le(table.0);
            buffer.put_u8(u8::from(key.is_some()));
            if let Some(key) = key {
                put_blob(key.as_bytes(), buffer);
            }
            put_change(change, buffer);
            put_blob(reason.as_bytes(), buffer);
        }
    }
}

fn put_change(change: &Change, buffer: &mut BytesMut) {
    let op = match change.op {
        Op::Insert => 0,
        Op::Update => 1,
        Op::Delete => 2,
    };
    let images = if change.old.is_some() { HAS_OLD } else { 0 } | if change.new.is_some() { HAS_NEW } else { 0 };
    buffer.put_u32_le(change.table.0);
    buffer.put_u32_le(change.schema.0);
    buffer.put_u8(op | images);
    for row in [&change.old, &change.new].into_iter().flatten() {
        put_blob(row.as_bytes(), buffer);
    }
}

fn put_blob(bytes: &[u8], buffer: &mut BytesMut) {
    buffer.put_u32_le(bytes.len() as u32);
    buffer.put_slice(bytes);
}

/// What was made, row by row.
#[derive(Debug)]
pub(crate) struct Taken(Bytes);

impl Taken {
    /// What was made of so many rows under these shapes; nothing where it was left, or made under others.
    pub(crate) fn of(mut made: Bytes, shapes: u64, rows: u32) -> Result<Option<Self>, PipelineError> {
        let whole = |made: &mut Bytes| {
            let (version, how) = (made.try_get_u8().ok()?, made.try_get_u8().ok()?);
            if version != VERSION || how != MADE {
                return Some(None);
            }
            let (under, count) = (made.try_get_u64_le().ok()?, made.try_get_u32_le().ok()?);
            Some((under == shapes).then_some(count))
        };
        match whole(&mut made) {
            Some(Some(count)) if count == rows => Ok(Some(Self(made))),
            Some(None) => Ok(None),
            _ => Err(damaged()),
        }
    }

    /// What was made of the next row.
    pub(crate) fn row(&mut self, outputs: &mut Vec<Output>) -> Result<(), PipelineError> {
        let count = self.0.try_get_u32_le().map_err(|_| damaged())?;
        for _ in 0..count {
            outputs.push(self.output().ok_or_else(damaged)?);
        }
        Ok(())
    }

    fn output(&mut self) -> Option<Output> {
        match self.0.try_get_u8().ok()? {
            FILTERED => Some(Output::Filtered),
            CHANGE => self.change().map(Output::Change),
            REJECTED => {
                let table = TableId(self.0.try_get_u32_le().ok()?);
                let key = match self.0.try_get_u8().ok()? {
                    0 => None,
                    _ => Some(Key::from(self.image()?)),
                };
                let change = self.change()?;
                let reason = String::from_utf8(self.blob()?.to_vec()).ok()?;
                Some(Output::Rejected { table, key, change, reason })
            }
            _ => None,
        }
    }

    fn change(&mut self) -> Option<Change> {
        let (table, schema) = (TableId(self.0.try_get_u32_le().ok()?), SchemaVersion(self.0.try_get_u32_le().ok()?));
        let bits = self.0.try_get_u8().ok()?;
        let op = match bits & !(HAS_OLD | HAS_NEW) {
            0 => Op::Insert,
            1 => Op::Update,
            2 => Op::Delete,
            _ => return None,
        };
        let old = if bits & HAS_OLD == 0 { None } else { Some(self.image()?) };
        let new = if bits & HAS_NEW == 0 { None } else { Some(self.image()?) };
        Some(Change { table, schema, op, old, new })
    }

    fn image(&mut self) -> Option<Row> {
        Row::parse(self.blob()?).ok()
    }

    fn blob(&mut self) -> Option<Bytes> {
        let length = self.0.try_get_u32_le().ok()? as usize;
        (length <= self.0.len()).then(|| self.0.split_to(length))
    }
}

fn damaged() -> PipelineError {
    PipelineError::Refused(
        "what a transform worker has made of a change cannot be read: let nobody else write to the log's topics"
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossfade_event::Cell as Value;

    fn row(cells: &[Value<'_>]) -> Row {
        cells.iter().copied().collect()
    }

    fn every_output() -> Vec<Output> {
        let key = row(&[Value::Bytes(b"7")]);
        let whole = row(&[Value::Bytes(b"7"), Value::Null, Value::Unchanged]);
        let of = |op, old: Option<&Row>, new: Option<&Row>| Change {
            table: TableId(3),
            schema: SchemaVersion(2),
            op,
            old: old.cloned(),
            new: new.cloned(),
        };
        vec![
            Output::Filtered,
            Output::Change(of(Op::Insert, None, Some(&whole))),
            Output::Change(of(Op::Update, Some(&key), Some(&whole))),
            Output::Change(of(Op::Delete, Some(&key), None)),
            Output::Rejected {
                table: TableId(9),
                key: Some(Key::from(key.clone())),
                change: of(Op::Update, None, Some(&whole)),
                reason: "why".to_owned(),
            },
            Output::Rejected {
                table: TableId(9),
                key: None,
                change: of(Op::Delete, Some(&key), None),
                reason: String::new(),
            },
        ]
    }

    fn written(shapes: u64, rows: &[&[Output]]) -> Bytes {
        let mut buffer = BytesMut::new();
        buffer.put_slice(&[VERSION, MADE]);
        buffer.put_u64_le(shapes);
        buffer.put_u32_le(rows.len() as u32);
        for row in rows {
            buffer.put_u32_le(row.len() as u32);
            row.iter().for_each(|output| put_output(output, &mut buffer));
        }
        buffer.freeze()
    }

    #[test]
    fn what_was_made_is_taken_as_it_was_made() {
        let all = every_output();
        let mut taken = Taken::of(written(5, &[&all, &[], &all[..1]]), 5, 3).unwrap().unwrap();
        let mut found = Vec::new();
        for expected in [&all[..], &[], &all[..1]] {
            found.clear();
            taken.row(&mut found).unwrap();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn what_was_made_under_other_shapes_or_left_is_not_taken() {
        let made = written(5, &[&every_output()]);
        assert!(Taken::of(made.clone(), 6, 1).unwrap().is_none(), "other shapes");
        assert!(Taken::of(left(), 5, 1).unwrap().is_none(), "left");
        let mut newer = made.to_vec();
        newer[0] = 2;
        assert!(Taken::of(newer.into(), 5, 1).unwrap().is_none(), "another version of what is made");
        assert!(Taken::of(made.clone(), 5, 2).is_err(), "of another change");
        for end in 2..made.len() {
            let cut = Taken::of(made.slice(..end), 5, 1);
            let read = cut.and_then(|taken| taken.map_or(Ok(()), |mut taken| taken.row(&mut Vec::new())));
            assert!(read.is_err(), "cut at {end}");
        }
    }

    #[test]
    fn shapes_are_told_apart() {
        let followed = |version| [(TableId(1), SchemaVersion(1)), (TableId(2), SchemaVersion(version))];
        assert_ne!(shapes(&followed(1)), shapes(&followed(2)));
        assert_ne!(shapes(&[]), shapes(&followed(1)));
        assert_eq!(shapes(&followed(3)), shapes(&followed(3)));
    }
}
