//! Reads entries below the published end, and waits there for more.

use super::{
    End, corrupt,
    frames::{Bad, Frames},
    fresh::{Given, Handed, Spot},
    index::Index,
    io_error, offset_of,
    segment::{SEGMENT_HEADER, Segment},
    shared::Inner,
};
use crate::{
    Entries, Entry, Lane, LogError, LogReader,
    record::{FrameHeader, Records, flags, kind_of, wanted},
};
use bytes::Bytes;
use crossfade_event::{Cut, Event, Offset, Partition, Position, Sequence};
use std::sync::Arc;
use tokio::sync::watch;

/// No more entries than this are given at once (a frame is never divided).
const ENTRIES: usize = 8192;

/// Nor entries of more bytes: they keep in memory what they were read in.
const ENTRIES_BYTES: u64 = 512 * 1024;

/// After passing over so much that belongs to the other lane, the reader's caller has its turn.
const PASSED_BYTES: u64 = 32 * 1024 * 1024;

/// Reads the embedded log. Holds one piece of a file in memory; entries share its bytes.
#[derive(Debug)]
pub struct Reader {
    log: Arc<Inner>,
    ends: watch::Receiver<End>,
    wanted: u16,
    /// Whether the system may forget what was read: nobody reads the stream a second time soon.
    drops_pages: bool,
    /// Whether it takes batches from memory, and is one by whom others pace themselves.
    near: bool,
    /// The first offset not yet given.
    next: Offset,
    place: Option<Place>,
    /// Whether the last frame passed ended a batch.
    whole: bool,
}

/// A place in a segment.
#[derive(Debug)]
struct Place {
    segment: Arc<Segment>,
    frames: Frames,
}

impl Reader {
    pub(super) fn new(log: Arc<Inner>, from: &Cut, lane: Lane) -> Result<Self, LogError> {
        let next = offset_of(from)?;
        let (start, end) = (log.shared.start(), log.shared.end().next);
        if next < start {
            return Err(LogError::Trimmed { asked: from.clone(), start: Cut::single(start) });
        }
        if next > end {
            return Err(LogError::Beyond { asked: from.clone(), end: Cut::single(end) });
        }
        let ends = log.shared.end.subscribe();
        let drops_pages = lane == Lane::Stream && !log.shared.read_only && log.shared.options.sync;
        Ok(Self { log, ends, wanted: wanted(lane), drops_pages, near: true, next, place: None, whole: true })
    }

    /// The same as one that looks on from the side: it reads the files, and others may come behind it.
    pub(super) fn aside(self) -> Self {
        Self { near: false, drops_pages: false, ..self }
    }

    fn collect(&mut self) -> Result<Option<Entries>, LogError> {
        let end = *self.ends.borrow_and_update();
        let (from, was_whole) = (self.next, self.whole);
        let (mut entries, mut taken, mut passed) = (Vec::new(), 0, 0);
        loop {
            // A transaction in several parts is not begun behind others, so that those can be told as whole.
            let enough = |whole: bool, bytes: u64, entries: &[Entry], was_whole: bool| {
                let begins_parts = was_whole && !whole;
                (begins_parts || taken + bytes > ENTRIES_BYTES || entries.len() >= ENTRIES) && !entries.is_empty()
            };
            let fits = |batch: &Handed| !enough(batch.whole, batch.bytes, &entries, self.whole);
            let fresh = self.spot().filter(|_| self.near).map(|spot| self.log.shared.fresh.take(spot, &end, fits));
            match fresh {
                Some(Given::Batch(batch)) => {
                    taken += batch.bytes;
                    self.take_fresh(batch, &mut entries)?;
                    continue;
                }
                Some(Given::Later) => break,
                Some(Given::Nothing) | None => {}
            }
            let Some((frame, limit)) = self.frame(&end)? else { break };
            let bytes = frame.frame_bytes();
            if enough(frame.has(flags::WHOLE), bytes, &entries, self.whole) || passed > PASSED_BYTES {
                break;
            }
            if frame.flags & self.wanted == 0 || frame.next() <= self.next {
                passed += bytes;
                self.pass(&frame);
            } else {
                taken += bytes;
                self.take(&frame, limit, &mut entries)?;
            }
        }
        self.rest(&end);
        // The end of a transaction may come alone, without an event.
        let moved = self.next > from || self.whole != was_whole;
        Ok(moved.then(|| Entries { entries, next: Cut::single(self.next), whole: self.whole }))
    }

    /// Where the next frame begins, if that is known.
    fn spot(&self) -> Option<Spot> {
        self.place.as_ref().map(|place| Spot { segment: place.segment.base(), at: place.frames.at() })
    }

    /// Takes a batch that never left memory, and moves past its frames.
    fn take_fresh(&mut self, batch: Handed, entries: &mut Vec<Entry>) -> Result<(), LogError> {
        let Handed { to, base, next, flags, whole, events, .. } = batch;
        match &mut self.place {
            Some(place) if place.segment.base() == to.segment => place.frames.jump(to.at),
            _ => {
                let segment = self.log.shared.segment_of(to.segment).ok_or_else(|| self.trimmed(to.segment))?;
                self.place = Some(self.open(segment, to.at)?);
            }
        }
        if flags & self.wanted != 0 {
            entries.reserve(events.len());
            for (offset, stamped) in (base.0..).map(Offset).zip(events) {
                if offset >= self.next && kind_of(&stamped.event).lane_flag() & self.wanted != 0 {
                    let (position, event) = (stamped.position, stamped.event);
                    entries.push(entry(offset, position, event));
                }
            }
        }
        self.next = self.next.max(next);
        self.whole = whole;
        if let Some(place) = self.place.as_mut().filter(|_| self.drops_pages) {
            place.frames.drop_pages();
        }
        Ok(())
    }

    /// The next frame's header, and the limit of its file, from the next segment where this one is at its end.
    fn frame(&mut self, end: &End) -> Result<Option<(FrameHeader, u64)>, LogError> {
        loop {
            if self.place.is_none() {
                self.place = Some(self.seek(self.next)?);
            }
            let Some(place) = &mut self.place else { return Ok(None) };
            let segment = place.segment.clone();
            let sealed = segment.sealed();
            let limit = match sealed {
                Some(sealed) if end.segment > segment.base() => sealed.bytes,
                _ if end.segment == segment.base() => end.at,
                _ => return Ok(None),
            };
            let at = place.frames.at();
            if let Some(frame) = place.frames.header(limit).map_err(|bad| damage(&segment, at, bad))? {
                return Ok(Some((frame, limit)));
            }
            match sealed {
                Some(sealed) if end.segment > segment.base() => {
                    if sealed.next > self.next {
                        return Err(corrupt(&segment.path, at, "the segment ends before the next one begins"));
                    }
                    self.place = Some(self.enter(sealed.next)?);
                }
                _ => return Ok(None),
            }
        }
    }

    /// The place of the frame that holds `offset`, or near before it.
    fn seek(&self, offset: Offset) -> Result<Place, LogError> {
        let segment = self.log.shared.segment_of(offset).ok_or_else(|| self.trimmed(offset))?;
        let mark = Index::load(&self.log.shared.dir, &segment.header)
            .filter(|_| segment.sealed().is_some())
            .and_then(|(index, _)| index.place(offset));
        self.open(segment, mark.map_or(SEGMENT_HEADER as u64, |mark| mark.at))
    }

    fn enter(&self, base: Offset) -> Result<Place, LogError> {
        let segment = self.log.shared.segment_of(base).filter(|segment| segment.base() == base);
        self.open(segment.ok_or_else(|| self.trimmed(base))?, SEGMENT_HEADER as u64)
    }

    fn open(&self, segment: Arc<Segment>, at: u64) -> Result<Place, LogError> {
        match Frames::open(&segment.path, at) {
            Ok(frames) => Ok(Place { segment, frames }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && self.log.shared.start() > segment.base() => {
                Err(self.trimmed(segment.base()))
            }
            Err(error) => Err(io_error("opening", &segment.path)(error)),
        }
    }

    fn trimmed(&self, asked: Offset) -> LogError {
        LogError::Trimmed { asked: Cut::single(asked), start: Cut::single(self.log.shared.start()) }
    }

    fn pass(&mut self, frame: &FrameHeader) {
        if let Some(place) = &mut self.place {
            place.frames.pass(frame);
        }
        self.went_past(frame);
    }

    fn went_past(&mut self, frame: &FrameHeader) {
        self.next = self.next.max(frame.next());
        self.whole = frame.has(flags::WHOLE);
    }

    fn take(&mut self, frame: &FrameHeader, limit: u64, entries: &mut Vec<Entry>) -> Result<(), LogError> {
        let Some(place) = &mut self.place else { return Ok(()) };
        let at = place.frames.at();
        let body = place.frames.body(frame, limit).map_err(|bad| damage(&place.segment, at, bad))?;
        decode(frame, body, self.next, self.wanted, entries).map_err(|what| corrupt(&place.segment.path, at, what))?;
        self.went_past(frame);
        if let Some(place) = self.place.as_mut().filter(|_| self.drops_pages) {
            place.frames.drop_pages();
        }
        Ok(())
    }

    /// At the end nothing is kept in memory.
    fn rest(&mut self, end: &End) {
        if self.next == end.next
            && let Some(place) = &mut self.place
        {
            place.frames.forget();
        }
    }
}

/// One partition: the offset is the sequence.
fn entry(offset: Offset, position: Position, event: Event) -> Entry {
    Entry { partition: Partition(0), offset, sequence: Sequence(offset.0), position, event }
}

fn decode(
    frame: &FrameHeader,
    body: Bytes,
    from: Offset,
    wanted: u16,
    entries: &mut Vec<Entry>,
) -> Result<(), &'static str> {
    entries.reserve(frame.count as usize);
    for record in Records::new(*frame, body) {
        let record = record.map_err(|malformed| malformed.0)?;
        if record.offset >= from && record.header.kind.lane_flag() & wanted != 0 {
            let event = record.event().map_err(|malformed| malformed.0)?;
            let (offset, position) = (record.offset, record.position);
            entries.push(entry(offset, position, event));
        }
    }
    Ok(())
}

fn damage(segment: &Segment, at: u64, bad: Bad) -> LogError {
    match bad {
        Bad::Damage(what) => corrupt(&segment.path, at, what),
        Bad::Io(cause) => io_error("reading", &segment.path)(cause),
    }
}

impl LogReader for Reader {
    async fn next(&mut self) -> Result<Entries, LogError> {
        loop {
            // Reading a log that is ahead never waits: give others their turn.
            tokio::task::consume_budget().await;
            if let Some(entries) = self.collect()? {
                return Ok(entries);
            }
            if self.ends.changed().await.is_err() {
                return Err(LogError::Poisoned { why: "the log was closed".to_owned() });
            }
        }
    }

    fn try_next(&mut self) -> Result<Option<Entries>, LogError> {
        self.collect()
    }
}
