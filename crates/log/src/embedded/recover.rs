//! Opening: what is in the folder, and where the log really ends.
//!
//! Only the last segment can have a torn tail, for a segment is synced before the next one is made; closing the log seals
//! one that has grown, so that only after a crash is there much to look at. In it the log ends
//! after the last frame that ends a whole batch: what follows was never visible to anybody, be it torn, or a head
//! whose rest never came (which may reach back over several segments). Everything is looked at before anything is
//! changed, so that a damaged log is left as it was found.
//!
//! A torn tail is told from damage by the frames behind it: each says below which offset all was durable when it was
//! made. A valid frame that vouches for the damaged place means that durable bytes were lost.

use super::{
    End,
    consumers::Consumers,
    corrupt,
    frames::{Bad, Frames},
    index::Index,
    io_error,
    schemas::{self, Register},
    segment::{BadHeader, Before, SEGMENT_HEADER, Sealed, Segment, SegmentHeader, list, segment_path},
};
use crate::{
    LogError,
    record::{FRAME_HEADER, FrameHeader, Kind, Records, flags},
};
use bytes::Bytes;
use crossfade_event::{Offset, SchemaVersion, TableId};
use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// What a folder holds.
#[derive(Debug)]
pub(super) struct Found {
    /// The segments kept; the last one is the active one.
    pub(super) segments: Vec<Segment>,
    /// The active segment's index.
    pub(super) index: Index,
    /// Where the log ends.
    pub(super) end: End,
    /// Files beyond the end: they hold nothing that was ever visible.
    pub(super) beyond: Vec<PathBuf>,
    /// The register of schemas.
    pub(super) register: Register,
    /// Who reads.
    pub(super) consumers: Consumers,
    /// From here on no later frame says that the bytes of the last segment were durable.
    pub(super) unvouched_at: u64,
}

/// What a scan of one segment found.
struct Scan {
    index: Index,
    /// After the last frame.
    at: u64,
    next: Offset,
    /// After the last frame that ends a batch: place, offset, and what had happened by then.
    whole: Option<(u64, Offset, Before)>,
    damage: Option<&'static str>,
    /// The frames that no later frame vouches for.
    unvouched: VecDeque<(Offset, u64)>,
    /// The schemas that came in this segment.
    schemas: Vec<(Offset, TableId, SchemaVersion)>,
}

/// Looks at a folder; `None` when there is no segment. With `write` missing indexes are made.
pub(super) fn survey(dir: &Path, write: bool) -> Result<Option<Found>, LogError> {
    // The consumers first: another process may be writing, and they never are ahead of what is in the segments.
    let consumers = Consumers::load(dir)?;
    let (mut headers, mut beyond) = headers(dir)?;
    let (end, scan) = loop {
        let Some(last) = headers.last().copied() else { return Ok(None) };
        let path = segment_path(dir, last.base);
        let mut scan = scan(&path, &last)?;
        if let Some(what) = scan.damage
            && (!beyond.is_empty() || vouched_for(&path, &scan)?)
        {
            return Err(corrupt(&path, scan.at, what));
        }
        let (at, next, before) = match scan.whole {
            Some(whole) => whole,
            None if last.before.inside && headers.len() > 1 => {
                beyond.push(path);
                headers.pop();
                continue;
            }
            None => (SEGMENT_HEADER as u64, last.base, last.before),
        };
        scan.index.rewind(at, before);
        break (End { next, segment: last.base, at, upto: before.upto }, scan);
    };
    let mut segments = Vec::with_capacity(headers.len());
    for (header, follower) in headers.iter().zip(headers.iter().skip(1)) {
        segments.push(Segment::new(dir, *header, Some(sealed(dir, header, follower, write)?)));
    }
    segments.extend(headers.last().map(|last| Segment::new(dir, *last, None)));
    // The newest first, so that a crash while they are removed leaves no hole.
    beyond.sort_unstable_by(|a, b| b.cmp(a));
    let register = schemas::load(dir, end.next)?;
    let least = headers.last().map_or(0, |last| last.schemas_at);
    let known = |(at, table, version): &(Offset, TableId, SchemaVersion)| {
        *at >= end.next || register.schemas.get(*table, *version).is_some()
    };
    if register.at < least || !scan.schemas.iter().all(known) {
        return Err(corrupt(&schemas::path(dir), register.at, "schemas that are in the log are missing here"));
    }
    if let Some((name, at)) = consumers.furthest()
        && at > end.next
    {
        let what = format!("{name} has read up to offset {at}, and the log now ends at {}", end.next);
        return Err(corrupt(&segment_path(dir, end.segment), end.at, what));
    }
    let unvouched_at = scan.unvouched.front().map_or(end.at, |(_, at)| *at);
    Ok(Some(Found { segments, index: scan.index, end, beyond, register, consumers, unvouched_at }))
}

/// All headers, rising; a last segment whose making was cut off is set apart.
fn headers(dir: &Path) -> Result<(Vec<SegmentHeader>, Vec<PathBuf>), LogError> {
    let (mut headers, mut beyond): (Vec<SegmentHeader>, _) = (Vec::new(), Vec::new());
    let bases = list(dir)?;
    for (index, base) in bases.iter().enumerate() {
        let path = segment_path(dir, *base);
        let header = match SegmentHeader::read(&path) {
            Ok(header) => header,
            Err(BadHeader::Error(error)) => return Err(error),
            Err(BadHeader::Torn(what))
                if index + 1 < bases.len() || bases.len() == 1 && base.0 > 0 || holds_frames(&path)? =>
            {
                return Err(corrupt(&path, 0, what));
            }
            Err(BadHeader::Torn(_)) => {
                beyond.push(path);
                continue;
            }
        };
        if header.base != *base {
            return Err(corrupt(&path, 24, "the file's name does not match its first offset"));
        }
        if headers.first().is_some_and(|first| first.log != header.log) {
            return Err(corrupt(&path, 16, "the file belongs to another log"));
        }
        headers.push(header);
    }
    Ok((headers, beyond))
}

/// The length and end of a sealed segment: from its index, or by scanning it. It must end where the next one begins.
fn sealed(dir: &Path, header: &SegmentHeader, follower: &SegmentHeader, write: bool) -> Result<Sealed, LogError> {
    let path = segment_path(dir, header.base);
    let length = std::fs::metadata(&path).map_err(io_error("looking at", &path))?.len();
    let sealed = match Index::load(dir, header) {
        Some((_, sealed)) => sealed,
        None => {
            let scan = scan(&path, header)?;
            if let Some(what) = scan.damage {
                return Err(corrupt(&path, scan.at, what));
            }
            let sealed = Sealed { bytes: scan.at, next: scan.next };
            if write {
                scan.index.save(dir, header, sealed);
            }
            sealed
        }
    };
    if length != sealed.bytes {
        return Err(corrupt(
            &path,
            length.min(sealed.bytes),
            "the file does not have the length that it was sealed with",
        ));
    }
    if sealed.next != follower.base {
        let path = segment_path(dir, sealed.next);
        return Err(corrupt(&path, 0, "the file is missing, and segments behind it are there"));
    }
    Ok(sealed)
}

/// Reads all frames of a segment, and checks them.
fn scan(path: &Path, header: &SegmentHeader) -> Result<Scan, LogError> {
    let limit = std::fs::metadata(path).map_err(io_error("looking at", path))?.len();
    let mut frames = Frames::open(path, SEGMENT_HEADER as u64).map_err(io_error("opening", path))?;
    let mut scan = Scan {
        index: Index::new(header),
        at: frames.at(),
        next: header.base,
        whole: None,
        damage: None,
        unvouched: VecDeque::new(),
        schemas: Vec::new(),
    };
    loop {
        scan.at = frames.at();
        match one(&mut frames, limit, scan.next) {
            Ok(None) => return Ok(scan),
            Ok(Some((frame, body))) => {
                if frame.has(flags::BOTH) {
                    scan.schemas.extend(schemas_in(frame, body));
                }
                scan.index.note(scan.at, &frame);
                while scan.unvouched.front().is_some_and(|(base, _)| *base < frame.durable) {
                    scan.unvouched.pop_front();
                }
                scan.unvouched.push_back((frame.base, scan.at));
                scan.next = frame.next();
                if frame.has(flags::WHOLE) {
                    scan.whole = Some((frames.at(), scan.next, scan.index.now()));
                }
            }
            Err(Bad::Damage(what)) => {
                scan.damage = Some(what);
                return Ok(scan);
            }
            Err(Bad::Io(cause)) => return Err(io_error("reading", path)(cause)),
        }
    }
}

/// The schemas that a frame brings, by the records' headers alone.
fn schemas_in(frame: FrameHeader, body: Bytes) -> impl Iterator<Item = (Offset, TableId, SchemaVersion)> {
    Records::new(frame, body)
        .flatten()
        .filter(|record| record.header.kind == Kind::SchemaSeen)
        .map(|record| (record.offset, record.header.table, record.header.schema))
}

fn one(frames: &mut Frames, limit: u64, next: Offset) -> Result<Option<(FrameHeader, Bytes)>, Bad> {
    let Some(frame) = frames.header(limit)? else { return Ok(None) };
    if frame.base != next {
        return Err(Bad::Damage("a frame does not follow the one before it"));
    }
    let body = frames.body(&frame, limit)?;
    Ok(Some((frame, body)))
}

/// Whether a valid frame behind the place where a scan ended says that this place was durable.
fn vouched_for(path: &Path, scan: &Scan) -> Result<bool, LogError> {
    let found = search(path, scan.at, |frame| frame.durable > scan.next)?;
    // Another process may be writing: what looked torn may have been completed meanwhile.
    Ok(found && {
        let limit = std::fs::metadata(path).map_err(io_error("looking at", path))?.len();
        let mut frames = Frames::open(path, scan.at).map_err(io_error("opening", path))?;
        one(&mut frames, limit, scan.next).is_err()
    })
}

/// Whether there is any valid frame in a file whose header is no header.
fn holds_frames(path: &Path) -> Result<bool, LogError> {
    search(path, 0, |_| true)
}

/// Whether a frame that is whole, undamaged and as `wanted` begins anywhere from `from` on.
fn search(path: &Path, from: u64, wanted: impl Fn(&FrameHeader) -> bool) -> Result<bool, LogError> {
    const BLOCK: usize = 1 << 20;
    const ZEROS: [u8; 4096] = [0; 4096];
    let file = File::open(path).map_err(io_error("opening", path))?;
    let mut block = vec![0u8; BLOCK + FRAME_HEADER];
    let mut at = from;
    loop {
        let length = read_at(&file, &mut block, at).map_err(io_error("reading", path))?;
        let bytes = block.get(..length).unwrap_or_default();
        let mut index = 0;
        while let Some(head) = bytes.get(index..).and_then(|rest| rest.first_chunk::<FRAME_HEADER>()) {
            if bytes.get(index..).is_some_and(|rest| rest.starts_with(&ZEROS)) {
                index += ZEROS.len() - 3;
                continue;
            }
            if head.first() == Some(&b'C')
                && let Ok(frame) = FrameHeader::parse(head)
                && wanted(&frame)
                && body_is_sound(&file, at + index as u64, &frame).map_err(io_error("reading", path))?
            {
                return Ok(true);
            }
            index += 1;
        }
        if length < block.len() {
            return Ok(false);
        }
        at += BLOCK as u64;
    }
}

fn body_is_sound(file: &File, at: u64, frame: &FrameHeader) -> io::Result<bool> {
    if file.metadata()?.len() < at + frame.frame_bytes() {
        return Ok(false);
    }
    let mut body = vec![0; frame.body_bytes as usize];
    file.read_exact_at(&mut body, at + FRAME_HEADER as u64)?;
    Ok(frame.matches(&body))
}

/// Fills as much of `buffer` as the file has.
fn read_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut length = 0;
    while let Some(rest) = buffer.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + length as u64) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// What a scrub found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Verified {
    /// Segment files.
    pub segments: u64,
    /// Frames, each with a sound checksum.
    pub frames: u64,
    /// Records, each decoded.
    pub records: u64,
    /// Bytes of frames.
    pub bytes: u64,
}

/// Checks every byte of one segment below `limit`: checksums, order, and that every record can be decoded.
pub(super) fn scrub(segment: &Segment, limit: u64, into: &mut Verified) -> Result<(), LogError> {
    let path = &segment.path;
    let mut frames = Frames::open(path, SEGMENT_HEADER as u64).map_err(io_error("opening", path))?;
    let mut next = segment.base();
    into.segments += 1;
    loop {
        let at = frames.at();
        let bad = |bad| match bad {
            Bad::Damage(what) => corrupt(path, at, what),
            Bad::Io(cause) => io_error("reading", path)(cause),
        };
        let Some(frame) = frames.header(limit).map_err(bad)? else { break };
        if frame.base != next {
            return Err(corrupt(path, at, "a frame does not follow the one before it"));
        }
        let body = frames.body(&frame, limit).map_err(bad)?;
        for record in Records::new(frame, body) {
            let decoded = record.and_then(|record| record.event());
            decoded.map_err(|malformed| corrupt(path, at, malformed.0))?;
            into.records += 1;
        }
        next = frame.next();
        into.frames += 1;
        into.bytes += frame.frame_bytes();
    }
    match segment.sealed() {
        Some(sealed) if sealed.bytes == limit && sealed.next != next => {
            Err(corrupt(path, limit, "the segment ends before the next one begins"))
        }
        _ => Ok(()),
    }
}
