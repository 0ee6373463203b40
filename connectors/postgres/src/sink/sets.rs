//! Sets of rows and keys as parameters, built from the cells' own bytes.

use super::{link::Param, table::Composite};
use bytes::{BufMut, Bytes, BytesMut};
use crossfade_event::{Cell, Row};

/// Rows and keys per statement: bounds the server's memory for one set.
pub(super) const SET_ROWS: usize = 4096;
/// Bytes per statement.
pub(super) const SET_BYTES: usize = 4 << 20;

/// An array of a composite type, element by element.
pub(super) struct Set<'a> {
    composite: &'a Composite,
    out: BytesMut,
    count: i32,
}

impl<'a> Set<'a> {
    pub(super) fn new(composite: &'a Composite, bytes: usize) -> Self {
        let mut out = BytesMut::with_capacity(20 + bytes);
        out.put_i32(1);
        out.put_i32(0);
        out.put_u32(composite.oid);
        out.put_i32(0);
        out.put_i32(1);
        Self { composite, out, count: 0 }
    }

    /// Adds an element. Fields that the cells do not reach are NULL, as are cells that hold nothing.
    pub(super) fn push<'c>(&mut self, cells: impl Iterator<Item = Cell<'c>>) {
        let start = self.out.len();
        self.out.put_i32(0);
        self.out.put_i32(self.composite.fields.len() as i32);
        let mut fields = self.composite.fields.iter();
        for cell in cells {
            let Some(oid) = fields.next() else { break };
            self.out.put_u32(*oid);
            match cell {
                Cell::Bytes(bytes) => {
                    self.out.put_i32(bytes.len() as i32);
                    self.out.put_slice(bytes);
                }
                Cell::Null | Cell::Unchanged | Cell::Absent => self.out.put_i32(-1),
            }
        }
        for oid in fields {
            self.out.put_u32(*oid);
            self.out.put_i32(-1);
        }
        let length = (self.out.len() - start - 4) as i32;
        if let Some(head) = self.out.get_mut(start..start + 4) {
            head.copy_from_slice(&length.to_be_bytes());
        }
        self.count += 1;
    }

    pub(super) fn finish(mut self) -> Param {
        if let Some(head) = self.out.get_mut(12..16) {
            head.copy_from_slice(&self.count.to_be_bytes());
        }
        Param::Bytes(self.out.freeze())
    }
}

/// A set of whole rows.
pub(super) fn rows<'r>(composite: &Composite, rows: impl Iterator<Item = &'r Row> + Clone) -> Param {
    let bytes = rows.clone().map(|row| row.as_bytes().len() + composite.fields.len() * 4 + 8).sum();
    let mut set = Set::new(composite, bytes);
    for row in rows {
        set.push(row.cells());
    }
    set.finish()
}

/// An `int8[]`.
pub(super) fn numbers(numbers: impl ExactSizeIterator<Item = i64>) -> Param {
    let mut out = BytesMut::with_capacity(20 + numbers.len() * 12);
    out.put_i32(1);
    out.put_i32(0);
    out.put_u32(20);
    out.put_i32(numbers.len() as i32);
    out.put_i32(1);
    for number in numbers {
        out.put_i32(8);
        out.put_i64(number);
    }
    Param::Bytes(out.freeze())
}

/// What stands before the rows of a binary `COPY`.
pub(super) const COPY_HEAD: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// What stands after them.
pub(super) const COPY_TAIL: &[u8] = &[0xff, 0xff];

/// Rows as the whole input of a binary `COPY`.
pub(super) fn copy_input<'r>(rows: impl Iterator<Item = &'r Row> + Clone) -> Bytes {
    let bytes: usize = rows.clone().map(|row| row.as_bytes().len()).sum();
    let mut out = BytesMut::with_capacity(bytes + 32);
    out.put_slice(COPY_HEAD);
    for row in rows {
        out.put_slice(row.as_bytes());
    }
    out.put_slice(COPY_TAIL);
    out.freeze()
}
