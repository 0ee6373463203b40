//! The record format: how events become bytes, and bytes events again. Version 1; `docs/log-format.md` says the same
//! for readers without Rust.
//!
//! All integers of ours are little-endian; rows keep their own layout (see [`crossfade_event::Row`]). A **frame** is
//! what is written, checked and skipped at once: a header of 72 bytes, then its records without gaps.
//!
//! | at | size | frame header |
//! |---|---|---|
//! | 0 | 4 | the letters `CFRM` |
//! | 4 | 4 | CRC-32C of bytes 8 to 72 of this header |
//! | 8 | 4 | CRC-32C of the body |
//! | 12 | 4 | length of the body |
//! | 16 | 8 | offset of the first record (of the next one, where there is none) |
//! | 24 | 4 | how many records; their offsets rise by one |
//! | 28 | 2 | flags: 1 some records are of a snapshot · 2 some are of the stream · 4 some are of both lanes · 8 whole: the batch ends here and so does every source transaction in it · 16 has an `upto` |
//! | 30 | 2 | zero |
//! | 32 | 8 | source, of all records and of `upto` |
//! | 40 | 4 | timeline, likewise |
//! | 44 | 4 | ordinal of `upto` |
//! | 48 | 8 | commit of `upto` |
//! | 56 | 8 | the latest commit time of the transactions that begin here, microseconds since 1970; the lowest `i64` for none |
//! | 64 | 8 | the offset below which all was durable when this frame was made: damage below it is never a torn tail |
//!
//! | at | size | record header (36 bytes) |
//! |---|---|---|
//! | 0 | 4 | length of the payload that follows this header |
//! | 4 | 1 | kind, see [`Kind`] |
//! | 5 | 1 | for a change: 0 insert, 1 update, 2 delete; plus 16 with an old image, plus 32 with a new one. Else zero |
//! | 6 | 2 | zero |
//! | 8 | 4 | table, zero for none |
//! | 12 | 4 | schema version, zero for none |
//! | 16 | 8 | commit of the position |
//! | 24 | 8 | for a change: XXH3-64 of its key (the new one); zero where there is none |
//! | 32 | 4 | ordinal of the position |
//!
//! | kind | payload |
//! |---|---|
//! | 1 schema seen | the [`crossfade_event::TableSchema`] as JSON |
//! | 2 backfill began | `u32` generation, `u32` count and so many `u32` tables, visibility |
//! | 3 snapshot began | `u32` count, then for each chunk `u32` id, `u32` length, range in UTF-8 |
//! | 4 rows | `u32` chunk, `u32` count, the rows |
//! | 5 chunk ended | `u32` chunk, `u64` rows |
//! | 6 snapshot ended | visibility |
//! | 7 backfill ended | `u32` generation |
//! | 8 began | `u64` xid, `i64` commit time |
//! | 9 changed | the one image; with two: `u32` length of the old one, old, new |
//! | 10 truncated | `u8` restart identity, `u32` count and so many `u32` tables |
//! | 11 marked | `u32` length, prefix in UTF-8, content |
//! | 12 committed, 13 resolved | empty |
//!
//! Visibility: `u8` 0 for none; or 1, `u64` xmin, `u64` xmax, `u32` count and so many `u64` in progress.

mod decode;
mod encode;
mod frame;

pub use decode::{Record, RecordHeader, Records, decode_event};
pub use encode::{Encoder, encode_event, kind_of};
pub use frame::{FRAME_HEADER, FrameHeader, flags};

/// The newest format that this program writes and reads.
pub const FORMAT: u32 = 1;

/// How long a record's header is.
pub const RECORD_HEADER: usize = 36;

/// A frame is closed once its body is this long; one larger record makes a larger frame.
pub const FRAME_BODY: usize = 256 * 1024;

/// No body is longer; a batch with a record that long is refused.
pub const FRAME_BODY_MAX: usize = u32::MAX as usize - (1 << 20);

/// Bytes that are not what the format says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// What a record says; the number in its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// [`crossfade_event::Event::SchemaSeen`]
    SchemaSeen = 1,
    /// [`crossfade_event::Event::BackfillBegan`]
    BackfillBegan = 2,
    /// [`crossfade_event::Event::SnapshotBegan`]
    SnapshotBegan = 3,
    /// [`crossfade_event::Event::Rows`]
    Rows = 4,
    /// [`crossfade_event::Event::ChunkEnded`]
    ChunkEnded = 5,
    /// [`crossfade_event::Event::SnapshotEnded`]
    SnapshotEnded = 6,
    /// [`crossfade_event::Event::BackfillEnded`]
    BackfillEnded = 7,
    /// [`crossfade_event::Event::Began`]
    Began = 8,
    /// [`crossfade_event::Event::Changed`]
    Changed = 9,
    /// [`crossfade_event::Event::Truncated`]
    Truncated = 10,
    /// [`crossfade_event::Event::Marked`]
    Marked = 11,
    /// [`crossfade_event::Event::Committed`]
    Committed = 12,
    /// [`crossfade_event::Event::Resolved`]
    Resolved = 13,
}

impl Kind {
    /// The kind with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        const ALL: [Kind; 13] = [
            Kind::SchemaSeen,
            Kind::BackfillBegan,
            Kind::SnapshotBegan,
            Kind::Rows,
            Kind::ChunkEnded,
            Kind::SnapshotEnded,
            Kind::BackfillEnded,
            Kind::Began,
            Kind::Changed,
            Kind::Truncated,
            Kind::Marked,
            Kind::Committed,
            Kind::Resolved,
        ];
        ALL.get(usize::from(number).checked_sub(1)?).copied()
    }

    /// Which of the frame's lane flags a record of this kind sets.
    pub fn lane_flag(self) -> u16 {
        match self {
            Self::SchemaSeen | Self::BackfillBegan | Self::BackfillEnded => flags::BOTH,
            Self::SnapshotBegan | Self::Rows | Self::ChunkEnded | Self::SnapshotEnded => flags::SNAPSHOT,
            Self::Began | Self::Changed | Self::Truncated | Self::Marked | Self::Committed | Self::Resolved => {
                flags::STREAM
            }
        }
    }
}

/// The lane flags that a reader of `lane` wants.
pub fn wanted(lane: crate::Lane) -> u16 {
    match lane {
        crate::Lane::All => flags::BOTH | flags::SNAPSHOT | flags::STREAM,
        crate::Lane::Snapshot => flags::BOTH | flags::SNAPSHOT,
        crate::Lane::Stream => flags::BOTH | flags::STREAM,
    }
}

/// Reads integers off the front of some bytes.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Result<&'a [u8; N], Malformed> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed("a record is too short"))?;
        self.0 = rest;
        Ok(head)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        let [byte] = *self.take::<1>()?;
        Ok(byte)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.take().map(|bytes| u16::from_le_bytes(*bytes))
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.take().map(|bytes| u32::from_le_bytes(*bytes))
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.take().map(|bytes| u64::from_le_bytes(*bytes))
    }

    fn i64(&mut self) -> Result<i64, Malformed> {
        self.take().map(|bytes| i64::from_le_bytes(*bytes))
    }

    fn bytes(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_at_checked(length).ok_or(Malformed("a record is too short"))?;
        self.0 = rest;
        Ok(head)
    }

    fn text(&mut self) -> Result<&'a str, Malformed> {
        let length = self.u32()? as usize;
        std::str::from_utf8(self.bytes(length)?).map_err(|_| Malformed("a text in a record is not UTF-8"))
    }

    /// A count of elements of at least `size` bytes each: never more than can be there, so that a damaged count
    /// reserves no memory.
    fn count(&mut self, size: usize) -> Result<usize, Malformed> {
        let count = self.u32()? as usize;
        if count.saturating_mul(size) > self.0.len() {
            return Err(Malformed("a record has a count larger than itself"));
        }
        Ok(count)
    }

    fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed("a record has bytes after its end")) }
    }
}

#[cfg(test)]
mod tests {}
