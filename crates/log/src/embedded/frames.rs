//! Reads frames off a segment file in large pieces: one allocation and one read for many frames, whose records share
//! the piece's bytes.

use crate::record::{FRAME_HEADER, FrameHeader};
use bytes::Bytes;
use rustix::{buffer::spare_capacity, io::Errno};
use std::{fs::File, io, num::NonZeroU64, path::Path};

/// How much is read at once.
const PIECE: usize = 512 * 1024;

/// How much is read after a large frame was passed over: perhaps the next one is passed over too.
const GLANCE: usize = 4 * 1024;

/// The system is told to forget so much at once.
const DROPPED_BYTES: u64 = 1 << 20;

/// No smaller than a page; one that was passed in part is not forgotten yet.
const PAGE: u64 = 64 * 1024;

/// Why there is no frame.
#[derive(Debug)]
pub(super) enum Bad {
    /// Reading failed.
    Io(io::Error),
    /// The bytes are no frame.
    Damage(&'static str),
}

/// Frames of one file, from a place on.
#[derive(Debug)]
pub(super) struct Frames {
    file: File,
    piece: Bytes,
    piece_at: u64,
    at: u64,
    glance: bool,
    /// Below it the system was told to forget.
    dropped: u64,
}

impl Frames {
    pub(super) fn open(path: &Path, at: u64) -> io::Result<Self> {
        Ok(Self { file: File::open(path)?, piece: Bytes::new(), piece_at: at, at, glance: false, dropped: at })
    }

    /// Where the next frame begins.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// The next frame's header, if one begins below `limit`; does not move.
    pub(super) fn header(&mut self, limit: u64) -> Result<Option<FrameHeader>, Bad> {
        if self.at >= limit {
            return Ok(None);
        }
        let bytes = self.bytes(0, FRAME_HEADER, limit)?;
        let head = bytes.first_chunk().ok_or(Bad::Damage("the file ends inside a frame"))?;
        FrameHeader::parse(head).map(Some).map_err(|malformed| Bad::Damage(malformed.0))
    }

    /// The body of the frame whose header was just read, checked; moves past it.
    pub(super) fn body(&mut self, header: &FrameHeader, limit: u64) -> Result<Bytes, Bad> {
        self.glance = false;
        let body = self.bytes(FRAME_HEADER, header.body_bytes as usize, limit)?;
        if !header.matches(&body) {
            return Err(Bad::Damage("a frame does not match its checksum"));
        }
        self.at += header.frame_bytes();
        Ok(body)
    }

    /// Moves past the frame whose header was just read without reading its body.
    pub(super) fn pass(&mut self, header: &FrameHeader) {
        self.glance = header.body_bytes as usize > GLANCE * 4;
        self.at += header.frame_bytes();
    }

    /// Moves to a place at or after this one, where a frame begins.
    pub(super) fn jump(&mut self, at: u64) {
        self.at = at;
    }

    /// Lets the system forget the file's pages that were passed, once they are many. They come back in use for what is
    /// written next, rather than pushing out what a database on the same machine would like to keep.
    pub(super) fn drop_pages(&mut self) {
        if self.at - self.dropped < DROPPED_BYTES {
            return;
        }
        let length = NonZeroU64::new(self.at - self.dropped);
        // It is only advice: a system that does not take it keeps them longer.
        let _ = rustix::fs::fadvise(&self.file, self.dropped, length, rustix::fs::Advice::DontNeed);
        self.dropped = self.at & !(PAGE - 1);
    }

    /// Forgets what was read ahead.
    pub(super) fn forget(&mut self) {
        self.piece = Bytes::new();
        self.piece_at = self.at;
    }

    fn bytes(&mut self, skip: usize, length: usize, limit: u64) -> Result<Bytes, Bad> {
        let from = self.at + skip as u64;
        if limit.saturating_sub(from) < length as u64 {
            return Err(Bad::Damage("the file ends inside a frame"));
        }
        let piece_end = self.piece_at + self.piece.len() as u64;
        if self.at < self.piece_at || from + length as u64 > piece_end {
            self.fill(skip + length, limit)?;
        }
        let start = (from - self.piece_at) as usize;
        Ok(self.piece.slice(start..start + length))
    }

    fn fill(&mut self, need: usize, limit: u64) -> Result<(), Bad> {
        let wanted = if self.glance { GLANCE } else { PIECE }.max(need) as u64;
        let length = wanted.min(limit - self.at) as usize;
        // Not `read_exact`, for which the room would have to be filled with zeros first.
        let mut piece = Vec::with_capacity(length);
        while piece.len() < length {
            let at = self.at + piece.len() as u64;
            match rustix::io::pread(&self.file, spare_capacity(&mut piece), at) {
                Ok(0) => return Err(Bad::Damage("the file ends inside a frame")),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(Bad::Io(error.into())),
            }
        }
        // There may be room for more than was asked for, and what lies beyond the limit is nobody's yet.
        piece.truncate(length);
        self.piece = piece.into();
        self.piece_at = self.at;
        Ok(())
    }
}
