//! A segment: one file of frames, named after its first offset.
//!
//! | at | size | header (92 bytes, little-endian) |
//! |---|---|---|
//! | 0 | 8 | the letters `CFLOGSEG` |
//! | 8 | 4 | format |
//! | 12 | 4 | flags: 1 begins inside an unfinished head · 2 has a position |
//! | 16 | 8 | the log's own number, drawn when it was made |
//! | 24 | 8 | base: the first offset |
//! | 32 | 8 | epoch: how many openings for writing the log had seen |
//! | 40 | 4 | how many partitions the log has |
//! | 44 | 4 | which partition this is |
//! | 48 | 8 | source of the position that the log had reached before this segment |
//! | 56 | 8 | its commit |
//! | 64 | 4 | its timeline |
//! | 68 | 4 | its ordinal |
//! | 72 | 8 | the latest commit time of any transaction before this segment, the lowest `i64` for none |
//! | 80 | 8 | length of the register of schemas that came before this segment |
//! | 88 | 4 | CRC-32C of all before |

use super::{io_error, shared::held};
use crate::{LogError, record::FORMAT};
use crossfade_event::{Offset, Position, SourceId};
use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Mutex,
};

/// How long a segment's header is; the first frame follows.
pub(super) const SEGMENT_HEADER: usize = 92;

const MAGIC: [u8; 8] = *b"CFLOGSEG";
const INSIDE: u32 = 1;
const POSITION: u32 = 2;

/// What had happened in the log before some place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Before {
    /// The highest `upto`.
    pub(super) upto: Option<Position>,
    /// The latest commit time.
    pub(super) latest_time_us: i64,
    /// Whether a batch or a transaction spans the place.
    pub(super) inside: bool,
}

impl Before {
    /// Before everything.
    pub(super) const NOTHING: Self = Self { upto: None, latest_time_us: i64::MIN, inside: false };
}

/// A segment's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) log: u64,
    pub(super) base: Offset,
    pub(super) epoch: u64,
    pub(super) before: Before,
    pub(super) schemas_at: u64,
}

/// Why a header cannot be used.
#[derive(Debug)]
pub(super) enum BadHeader {
    /// Fewer bytes than a header has, or none that were ever written: a segment whose making was cut off.
    Torn(&'static str),
    /// Anything else.
    Error(LogError),
}

impl SegmentHeader {
    pub(super) fn to_bytes(self) -> [u8; SEGMENT_HEADER] {
        let Before { upto, latest_time_us, inside } = self.before;
        let flags = if inside { INSIDE } else { 0 } | if upto.is_some() { POSITION } else { 0 };
        let position = upto.unwrap_or(Position::origin(SourceId(0)));
        let mut bytes = Vec::with_capacity(SEGMENT_HEADER);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&flags.to_le_bytes());
        bytes.extend_from_slice(&self.log.to_le_bytes());
        bytes.extend_from_slice(&self.base.0.to_le_bytes());
        bytes.extend_from_slice(&self.epoch.to_le_bytes());
        bytes.extend_from_slice(&1u32.to_le_bytes());
        bytes.extend_from_slice(&0u32.to_le_bytes());
        put_position(&mut bytes, position);
        bytes.extend_from_slice(&latest_time_us.to_le_bytes());
        bytes.extend_from_slice(&self.schemas_at.to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        let mut out = [0; SEGMENT_HEADER];
        out.copy_from_slice(&bytes);
        out
    }

    pub(super) fn read(path: &Path) -> Result<Self, BadHeader> {
        let error = |doing| move |cause| BadHeader::Error(io_error(doing, path)(cause));
        let mut file = File::open(path).map_err(error("opening"))?;
        let mut bytes = Vec::with_capacity(SEGMENT_HEADER);
        file.by_ref().take(SEGMENT_HEADER as u64).read_to_end(&mut bytes).map_err(error("reading"))?;
        Self::parse(path, &bytes)
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self, BadHeader> {
        let Some((body, crc)) = bytes.split_last_chunk::<4>().filter(|_| bytes.len() == SEGMENT_HEADER) else {
            return Err(BadHeader::Torn("the file ends inside its header"));
        };
        let Some(format) = body.strip_prefix(&MAGIC).and_then(|rest| rest.first_chunk::<4>()) else {
            return Err(BadHeader::Torn("the file does not begin as a segment does"));
        };
        // The format comes first: a newer one may have another checksum.
        let found = u32::from_le_bytes(*format);
        if found > FORMAT {
            return Err(BadHeader::Error(LogError::TooNew { file: path.to_owned(), found, known: FORMAT }));
        }
        if u32::from_le_bytes(*crc) != crc32c::crc32c(body) {
            return Err(BadHeader::Torn("the header does not match its checksum"));
        }
        let flags = read_u32(body, 12);
        if read_u32(body, 40) != 1 {
            return Err(BadHeader::Error(LogError::NotBuilt("a log with several partitions".to_owned())));
        }
        let upto = (flags & POSITION != 0).then(|| read_position(body, 48));
        let latest_time_us = read_u64(body, 72) as i64;
        Ok(Self {
            log: read_u64(body, 16),
            base: Offset(read_u64(body, 24)),
            epoch: read_u64(body, 32),
            before: Before { upto, latest_time_us, inside: flags & INSIDE != 0 },
            schemas_at: read_u64(body, 80),
        })
    }
}

/// A position in 24 bytes: source, commit, timeline, ordinal.
pub(super) fn put_position(out: &mut Vec<u8>, position: Position) {
    out.extend_from_slice(&position.source.0.to_le_bytes());
    out.extend_from_slice(&position.commit.to_le_bytes());
    out.extend_from_slice(&position.timeline.to_le_bytes());
    out.extend_from_slice(&position.ordinal.to_le_bytes());
}

/// What [`put_position`] wrote.
pub(super) fn read_position(bytes: &[u8], at: usize) -> Position {
    Position {
        source: SourceId(read_u64(bytes, at)),
        commit: read_u64(bytes, at + 8),
        timeline: read_u32(bytes, at + 16),
        ordinal: read_u32(bytes, at + 20),
    }
}

/// An integer at a place that is known to exist; zero past the end.
pub(super) fn read_u32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

/// As [`read_u32`].
pub(super) fn read_u64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |chunk| u64::from_le_bytes(*chunk))
}

/// What is known of a segment that takes no more frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sealed {
    /// The file's length.
    pub(super) bytes: u64,
    /// The offset after its last record.
    pub(super) next: Offset,
}

/// One segment of an open log.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) header: SegmentHeader,
    pub(super) path: PathBuf,
    sealed: Mutex<Option<Sealed>>,
}

impl Segment {
    pub(super) fn new(dir: &Path, header: SegmentHeader, sealed: Option<Sealed>) -> Self {
        Self { header, path: segment_path(dir, header.base), sealed: Mutex::new(sealed) }
    }

    pub(super) fn base(&self) -> Offset {
        self.header.base
    }

    pub(super) fn sealed(&self) -> Option<Sealed> {
        *held(&self.sealed)
    }

    /// Notes that it takes no more frames; or, when an abandoned head had reached beyond it, that it does again.
    pub(super) fn set_sealed(&self, sealed: Option<Sealed>) {
        *held(&self.sealed) = sealed;
    }
}

/// The file of the segment that begins at `base`.
pub(super) fn segment_path(dir: &Path, base: Offset) -> PathBuf {
    dir.join(format!("{:020}.log", base.0))
}

/// The bases of all segments in a folder, rising.
pub(super) fn list(dir: &Path) -> Result<Vec<Offset>, LogError> {
    let mut bases = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io_error("listing", dir))? {
        let entry = entry.map_err(io_error("listing", dir))?;
        let name = entry.file_name();
        let base = name.to_str().and_then(|name| name.strip_suffix(".log")).filter(|stem| stem.len() == 20);
        bases.extend(base.and_then(|stem| stem.parse().ok()).map(Offset));
    }
    bases.sort_unstable();
    Ok(bases)
}
