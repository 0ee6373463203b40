//! The sparse index of one segment: where some of its frames begin, and what had happened before each.
//!
//! The active segment's index is kept in memory, for opening scans that segment anyway. When a segment is sealed its
//! index is written beside it as `<base>.idx`; a missing or damaged one is made again from the segment.
//!
//! | at | size | file (little-endian) |
//! |---|---|---|
//! | 0 | 8 | the letters `CFLOGIDX` |
//! | 8 | 4 | format |
//! | 12 | 4 | how many marks |
//! | 16 | 8 | the log's own number |
//! | 24 | 8 | base of the segment |
//! | 32 | 8 | length of the segment's file |
//! | 40 | 8 | the offset after the segment's last record |
//! | 48 | 56 each | marks: `u64` offset, `u64` place in the file, `i64` latest commit time before, position reached before (source, commit, timeline, ordinal), `u64` flags: 1 inside a head · 2 has a position |
//! | end | 4 | CRC-32C of all before |

use super::segment::{Before, Sealed, SegmentHeader, put_position, read_position, read_u32, read_u64, segment_path};
use crate::record::{FORMAT, FrameHeader, flags};
use crossfade_event::{Offset, Position, SourceId};
use std::path::{Path, PathBuf};

const MAGIC: [u8; 8] = *b"CFLOGIDX";
const HEADER: usize = 48;
const MARK: usize = 56;

/// About so many bytes of frames lie between two marks.
const EVERY: u64 = 128 * 1024;

/// Where a frame begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) offset: Offset,
    pub(super) at: u64,
    pub(super) before: Before,
}

/// The marks of one segment, growing with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Index {
    pub(super) marks: Vec<Mark>,
    now: Before,
}

impl Index {
    pub(super) fn new(header: &SegmentHeader) -> Self {
        Self { marks: Vec::new(), now: header.before }
    }

    /// Notes a frame that begins at `at`.
    pub(super) fn note(&mut self, at: u64, frame: &FrameHeader) {
        if self.marks.last().is_none_or(|last| at >= last.at + EVERY) {
            self.marks.push(Mark { offset: frame.base, at, before: self.now });
        }
        let whole = frame.has(flags::WHOLE);
        self.now = Before {
            upto: self.now.upto.max(frame.upto()),
            latest_time_us: self.now.latest_time_us.max(frame.latest_time_us),
            inside: !whole,
        };
    }

    /// What has happened up to the end.
    pub(super) fn now(&self) -> Before {
        self.now
    }

    /// Goes back to an earlier state: that before `now` held, with the marks below `at`.
    pub(super) fn rewind(&mut self, at: u64, now: Before) {
        self.marks.retain(|mark| mark.at < at);
        self.now = now;
    }

    /// Where to begin looking for `offset`.
    pub(super) fn place(&self, offset: Offset) -> Option<Mark> {
        let after = self.marks.partition_point(|mark| mark.offset <= offset);
        self.marks.get(after.checked_sub(1)?).copied()
    }

    /// Writes the index of a sealed segment. It can always be made again, so nothing is synced and a failure is only
    /// worth a word.
    pub(super) fn save(&self, dir: &Path, header: &SegmentHeader, sealed: Sealed) {
        let path = index_path(dir, header.base);
        let temporary = path.with_extension("idx.tmp");
        let written =
            std::fs::write(&temporary, self.to_bytes(header, sealed)).and_then(|()| std::fs::rename(&temporary, &path));
        if let Err(error) = written {
            tracing::warn!(file = %path.display(), %error, "the index was not written; it is made again when needed");
        }
    }

    fn to_bytes(&self, header: &SegmentHeader, sealed: Sealed) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.marks.len() * MARK + 4);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&(self.marks.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&header.log.to_le_bytes());
        bytes.extend_from_slice(&header.base.0.to_le_bytes());
        bytes.extend_from_slice(&sealed.bytes.to_le_bytes());
        bytes.extend_from_slice(&sealed.next.0.to_le_bytes());
        for mark in &self.marks {
            let Before { upto, latest_time_us, inside } = mark.before;
            bytes.extend_from_slice(&mark.offset.0.to_le_bytes());
            bytes.extend_from_slice(&mark.at.to_le_bytes());
            bytes.extend_from_slice(&latest_time_us.to_le_bytes());
            put_position(&mut bytes, upto.unwrap_or(Position::origin(SourceId(0))));
            bytes.extend_from_slice(&(u64::from(inside) | if upto.is_some() { 2 } else { 0 }).to_le_bytes());
        }
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    /// Reads a sealed segment's index; `None` when it is missing, damaged or not this segment's.
    pub(super) fn load(dir: &Path, header: &SegmentHeader) -> Option<(Self, Sealed)> {
        let bytes = std::fs::read(index_path(dir, header.base)).ok()?;
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        let count = read_u32(body, 12) as usize;
        let fits = body.starts_with(&MAGIC)
            && u32::from_le_bytes(*crc) == crc32c::crc32c(body)
            && read_u32(body, 8) == FORMAT
            && read_u64(body, 16) == header.log
            && read_u64(body, 24) == header.base.0
            && body.len() == HEADER + count * MARK;
        let sealed = Sealed { bytes: read_u64(body, 32), next: Offset(read_u64(body, 40)) };
        let mark = |mark: &[u8]| {
            let flags = read_u64(mark, 48);
            Mark {
                offset: Offset(read_u64(mark, 0)),
                at: read_u64(mark, 8),
                before: Before {
                    latest_time_us: read_u64(mark, 16) as i64,
                    upto: (flags & 2 != 0).then(|| read_position(mark, 24)),
                    inside: flags & 1 != 0,
                },
            }
        };
        let marks = body.get(HEADER..)?.chunks_exact(MARK).map(mark).collect();
        fits.then_some((Self { marks, now: header.before }, sealed))
    }
}

/// The index file of the segment that begins at `base`.
pub(super) fn index_path(dir: &Path, base: Offset) -> PathBuf {
    segment_path(dir, base).with_extension("idx")
}
