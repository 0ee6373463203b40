//! A quarantined change as bytes, in a format of its own: the log may have been trimmed when it is tried again.
//!
//! `u8` format (1) · `u8` operation (0 insert, 1 update, 2 delete) · `u32` schema version · for the old and then the
//! new image: `u32` length plus one (zero: none) and the row.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use crossfade_event::{Change, Op, Row, SchemaVersion, TableId};

const FORMAT: u8 = 1;

/// Bytes that are not a change of a format that we know.
#[derive(Debug, thiserror::Error)]
#[error("the quarantined change is damaged or was written by a newer release")]
pub(super) struct Damaged;

pub(super) fn encode(change: &Change) -> Bytes {
    let mut out = BytesMut::with_capacity(change.size_bytes() + 16);
    out.put_u8(FORMAT);
    out.put_u8(match change.op {
        Op::Insert => 0,
        Op::Update => 1,
        Op::Delete => 2,
    });
    out.put_u32(change.schema.0);
    for image in [&change.old, &change.new] {
        match image {
            None => out.put_u32(0),
            Some(row) => {
                out.put_u32(row.as_bytes().len() as u32 + 1);
                out.put_slice(row.as_bytes());
            }
        }
    }
    out.freeze()
}

pub(super) fn decode(table: TableId, mut bytes: Bytes) -> Result<Change, Damaged> {
    if bytes.try_get_u8().map_err(|_| Damaged)? != FORMAT {
        return Err(Damaged);
    }
    let op = match bytes.try_get_u8().map_err(|_| Damaged)? {
        0 => Op::Insert,
        1 => Op::Update,
        2 => Op::Delete,
        _ => return Err(Damaged),
    };
    let schema = SchemaVersion(bytes.try_get_u32().map_err(|_| Damaged)?);
    let mut image = || -> Result<Option<Row>, Damaged> {
        let Some(length) = (bytes.try_get_u32().map_err(|_| Damaged)? as usize).checked_sub(1) else { return Ok(None) };
        if length > bytes.len() {
            return Err(Damaged);
        }
        Row::parse(bytes.split_to(length)).map(Some).map_err(|_| Damaged)
    };
    let (old, new) = (image()?, image()?);
    if bytes.is_empty() { Ok(Change { table, schema, op, old, new }) } else { Err(Damaged) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossfade_event::Cell;

    #[test]
    fn a_change_comes_back_as_it_went() {
        let row: Row = [Cell::Bytes(b"1"), Cell::Null, Cell::Unchanged].into_iter().collect();
        for (op, old, new) in [
            (Op::Insert, None, Some(row.clone())),
            (Op::Update, Some(row.clone()), Some(row.clone())),
            (Op::Delete, Some(row), None),
        ] {
            let change = Change { table: TableId(7), schema: SchemaVersion(3), op, old, new };
            assert_eq!(decode(TableId(7), encode(&change)).unwrap(), change);
        }
    }

    #[test]
    fn the_format_of_the_first_release_still_opens() {
        let bytes = Bytes::from_static(&[1, 2, 0, 0, 0, 5, 0, 0, 0, 8, 0, 1, 0, 0, 0, 1, 65, 0, 0, 0, 0]);
        let change = decode(TableId(1), bytes).unwrap();
        assert_eq!((change.op, change.schema, change.new), (Op::Delete, SchemaVersion(5), None));
        assert!(decode(TableId(1), Bytes::from_static(&[2, 0])).is_err());
    }
}
