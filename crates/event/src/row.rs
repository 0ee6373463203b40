//! Rows as bytes: the source's own values, undecoded.
//!
//! Layout: `u16` number of cells, then for each cell an `i32` and its bytes, all big-endian. The `i32` is the length,
//! or -1 for NULL, -2 for unchanged, -3 for absent. Without the last two this is exactly a tuple of PostgreSQL's
//! `COPY … (FORMAT binary)` (<https://www.postgresql.org/docs/current/sql-copy.html>), so that a snapshot travels from
//! one server to another without being touched.

use bytes::{BufMut, Bytes, BytesMut};
use std::fmt;

/// One value of a row, undecoded.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cell<'a> {
    /// Not part of this image (an old image that carries only the key).
    Absent,
    /// Part of the row, but the source did not send it, for it did not change (PostgreSQL's TOAST). Not NULL.
    Unchanged,
    /// SQL NULL.
    Null,
    /// A value in the column's [`crate::Format`].
    Bytes(&'a [u8]),
}

impl fmt::Debug for Cell<'_> {
    // Values never reach logs: only their kind and length do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("absent"),
            Self::Unchanged => f.write_str("unchanged"),
            Self::Null => f.write_str("null"),
            Self::Bytes(bytes) => write!(f, "<{} bytes>", bytes.len()),
        }
    }
}

const NULL: i32 = -1;
const UNCHANGED: i32 = -2;
const ABSENT: i32 = -3;

/// Bytes that are not a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// The bytes end inside a cell.
    #[error("the row ends inside cell {0}")]
    Short(usize),
    /// A length that is none of ours.
    #[error("cell {0} has the impossible length {1}")]
    Length(usize, i32),
    /// Bytes after the last cell.
    #[error("{0} bytes after the last cell")]
    Trailing(usize),
}

/// One row. Cheap to clone; the bytes are shared with the batch it came in.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Row(Bytes);

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.cells()).finish()
    }
}

impl Row {
    /// Takes bytes that must be exactly one row.
    ///
    /// # Errors
    /// When they are not.
    pub fn parse(bytes: Bytes) -> Result<Self, RowError> {
        let length = measure(&bytes)?;
        match bytes.len() - length {
            0 => Ok(Self(bytes)),
            trailing => Err(RowError::Trailing(trailing)),
        }
    }

    /// The row's bytes, in the layout of this module.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// How many cells.
    pub fn len(&self) -> usize {
        self.0.first_chunk::<2>().map_or(0, |count| usize::from(u16::from_be_bytes(*count)))
    }

    /// True for a row without cells.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All cells, in the order of the schema's columns.
    pub fn cells(&self) -> Cells<'_> {
        Cells { rest: self.0.get(2..).unwrap_or_default(), left: self.len() }
    }

    /// One cell; `None` past the end. Walks from the front: use [`Row::cells`] for many.
    pub fn cell(&self, index: usize) -> Option<Cell<'_>> {
        self.cells().nth(index)
    }

    /// True when a cell is unchanged: the row is not whole.
    pub fn has_unchanged(&self) -> bool {
        self.cells().any(|cell| cell == Cell::Unchanged)
    }
}

/// The cells of one row.
#[derive(Debug, Clone)]
pub struct Cells<'a> {
    rest: &'a [u8],
    left: usize,
}

impl<'a> Iterator for Cells<'a> {
    type Item = Cell<'a>;

    fn next(&mut self) -> Option<Cell<'a>> {
        self.left = self.left.checked_sub(1)?;
        let (length, rest) = self.rest.split_first_chunk::<4>()?;
        self.rest = rest;
        Some(match i32::from_be_bytes(*length) {
            NULL => Cell::Null,
            UNCHANGED => Cell::Unchanged,
            ABSENT => Cell::Absent,
            length => {
                let (bytes, rest) = self.rest.split_at_checked(usize::try_from(length).ok()?)?;
                self.rest = rest;
                Cell::Bytes(bytes)
            }
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Cells<'_> {}

/// The length of the row at the front of `bytes`.
fn measure(bytes: &[u8]) -> Result<usize, RowError> {
    let count = bytes.first_chunk::<2>().map(|count| u16::from_be_bytes(*count)).ok_or(RowError::Short(0))?;
    let mut at = 2;
    for index in 0..usize::from(count) {
        let length = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>()).ok_or(RowError::Short(index))?;
        at += 4;
        match i32::from_be_bytes(*length) {
            NULL | UNCHANGED | ABSENT => {}
            length => at += usize::try_from(length).map_err(|_| RowError::Length(index, length))?,
        }
        if at > bytes.len() {
            return Err(RowError::Short(index));
        }
    }
    Ok(at)
}

/// The rows of a block of concatenated rows, each sharing the block's bytes.
#[derive(Debug, Clone)]
pub struct Rows(Bytes);

impl Rows {
    /// Walks a block.
    pub fn new(block: Bytes) -> Self {
        Self(block)
    }
}

impl Iterator for Rows {
    type Item = Result<Row, RowError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        Some(match measure(&self.0) {
            Ok(length) => Ok(Row(self.0.split_to(length))),
            Err(error) => {
                self.0.clear();
                Err(error)
            }
        })
    }
}

/// Builds one row, cell by cell.
#[derive(Debug)]
pub struct RowBuilder {
    bytes: BytesMut,
    count: u16,
}

impl RowBuilder {
    /// A builder for about so many cells and value bytes.
    pub fn with_capacity(cells: usize, value_bytes: usize) -> Self {
        let mut bytes = BytesMut::with_capacity(2 + cells * 4 + value_bytes);
        bytes.put_u16(0);
        Self { bytes, count: 0 }
    }

    /// Adds a cell. At most 65,535 cells and 2 GiB a cell: both far beyond what any source sends.
    pub fn push(&mut self, cell: Cell<'_>) {
        self.count += 1;
        match cell {
            Cell::Null => self.bytes.put_i32(NULL),
            Cell::Unchanged => self.bytes.put_i32(UNCHANGED),
            Cell::Absent => self.bytes.put_i32(ABSENT),
            Cell::Bytes(bytes) => {
                self.bytes.put_i32(bytes.len() as i32);
                self.bytes.put_slice(bytes);
            }
        }
    }

    /// The row.
    pub fn finish(mut self) -> Row {
        if let Some(head) = self.bytes.first_chunk_mut::<2>() {
            *head = self.count.to_be_bytes();
        }
        Row(self.bytes.freeze())
    }
}

impl<'a> FromIterator<Cell<'a>> for Row {
    fn from_iter<T: IntoIterator<Item = Cell<'a>>>(cells: T) -> Self {
        let mut builder = RowBuilder::with_capacity(8, 64);
        for cell in cells {
            builder.push(cell);
        }
        builder.finish()
    }
}

/// What identifies a row: the cells of its key in the key's order, written as a [`Row`], so that no two keys are
/// written alike. Compared byte by byte, never by a collation.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key(Row);

impl Key {
    /// The key's cells.
    pub fn cells(&self) -> Cells<'_> {
        self.0.cells()
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &Bytes {
        self.0.as_bytes()
    }

    /// A hash for partitions, buckets and worker choice; the same on every machine and for ever (XXH3, 64 bits).
    pub fn hash64(&self) -> u64 {
        xxhash_rust::xxh3::xxh3_64(self.0.as_bytes())
    }
}

impl From<Row> for Key {
    fn from(row: Row) -> Self {
        Self(row)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key#{:016x}", self.hash64())
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_unchanged_and_absent_stay_three_things() {
        let cells = [Cell::Null, Cell::Unchanged, Cell::Absent, Cell::Bytes(b""), Cell::Bytes(b"abc")];
        let row: Row = cells.into_iter().collect();
        assert_eq!(row.cells().collect::<Vec<_>>(), cells);
        assert_eq!(Row::parse(row.as_bytes().clone()), Ok(row));
    }

    #[test]
    fn a_block_is_walked_row_by_row() {
        let one: Row = [Cell::Bytes(b"1")].into_iter().collect();
        let two: Row = [Cell::Null].into_iter().collect();
        let block = Bytes::from([one.as_bytes().as_ref(), two.as_bytes()].concat());
        assert_eq!(Rows::new(block).collect::<Result<Vec<_>, _>>(), Ok(vec![one, two]));
    }

    #[test]
    fn damaged_rows_are_refused_with_the_cell() {
        let row: Row = [Cell::Bytes(b"abc"), Cell::Bytes(b"d")].into_iter().collect();
        let cut = row.as_bytes().slice(..row.as_bytes().len() - 1);
        assert_eq!(Row::parse(cut), Err(RowError::Short(1)));
        assert_eq!(Row::parse(Bytes::from_static(&[0, 1, 255, 255, 255, 0])), Err(RowError::Length(0, -256)));
        assert_eq!(Row::parse(Bytes::from_static(&[0, 0, 9])), Err(RowError::Trailing(1)));
    }
}
