//! The one thread that writes. It takes all appends that wait, encodes them into one buffer, writes that with few
//! large writes, syncs once, publishes the new end and answers.

use super::{
    End,
    fresh::{Handed, Spot},
    index::{Index, index_path},
    io_error,
    open::{create, reserve},
    schemas::{RegisterFile, to_bytes},
    segment::{Before, SEGMENT_HEADER, Sealed, Segment, SegmentHeader},
    shared::{Job, Shared, held},
    sync_dir,
};
use crate::{
    LogError,
    contract::check_lanes,
    record::{Encoder, FrameHeader, flags},
};
use crossfade_event::{Batch, Cut, Event, Offset, SchemaVersion, TableId};
use std::{
    fs::{File, OpenOptions},
    sync::{Arc, PoisonError},
};
use tokio::sync::oneshot;

/// The buffer is written once it holds so much.
const WRITE_BYTES: usize = 1 << 20;

/// A buffer that one huge record has blown up beyond this is given back.
const KEPT_BYTES: usize = 8 << 20;

/// A segment of so many bytes is sealed when the log is closed.
const SEALED_AT_CLOSE_BYTES: u64 = 4 << 20;

/// A schema that was added to the register.
#[derive(Debug, Clone, Copy)]
struct Added {
    offset: Offset,
    at: u64,
    table: TableId,
    version: SchemaVersion,
}

/// The active segment: what is written where.
#[derive(Debug)]
pub(super) struct Tape {
    shared: Arc<Shared>,
    segment: Arc<Segment>,
    file: File,
    /// Where in the file the buffer will go.
    at: u64,
    index: Index,
    /// After the last frame that ends a batch: what readers may see once it is durable.
    end: End,
    /// What had happened by then.
    before: Before,
    /// The segments that were filled since, should the head in them be abandoned.
    behind: Vec<(Arc<Segment>, Index)>,
    epoch: u64,
    /// How long the register is, and where the schemas are in it that came since the last end of a batch.
    register: (u64, Vec<Added>),
    rolled: bool,
    /// Of the batch being written: where its first frame begins, and the lanes of its events.
    writing: (Option<Spot>, u16),
}

impl Tape {
    pub(super) fn new(
        shared: Arc<Shared>,
        segment: Arc<Segment>,
        file: File,
        index: Index,
        end: End,
        epoch: u64,
        register_at: u64,
    ) -> Self {
        let register = (register_at, Vec::new());
        let before = index.now();
        Self {
            shared,
            segment,
            file,
            at: end.at,
            index,
            end,
            before,
            behind: Vec::new(),
            epoch,
            register,
            rolled: false,
            writing: (None, 0),
        }
    }

    /// A frame was added to the buffer at `start`.
    fn frame(&mut self, buffer: &mut Vec<u8>, start: usize, frame: &FrameHeader) -> Result<(), LogError> {
        let mut at = self.at + start as u64;
        let first = at == SEGMENT_HEADER as u64;
        if !first && at + frame.frame_bytes() > self.shared.options.segment_bytes {
            let own = buffer.split_off(start);
            self.flush(buffer)?;
            *buffer = own;
            self.roll(frame.base)?;
            at = self.at;
        }
        self.index.note(at, frame);
        self.writing.0.get_or_insert(Spot { segment: self.segment.base(), at });
        self.writing.1 |= frame.flags;
        if frame.has(flags::WHOLE) {
            self.end = End {
                next: frame.next(),
                segment: self.segment.base(),
                at: at + frame.frame_bytes(),
                upto: self.index.now().upto,
            };
            self.before = self.index.now();
            self.behind.clear();
        }
        if buffer.len() >= WRITE_BYTES { self.flush(buffer) } else { Ok(()) }
    }

    /// Writes the buffer, and empties it.
    fn flush(&mut self, buffer: &mut Vec<u8>) -> Result<(), LogError> {
        if buffer.is_empty() {
            return Ok(());
        }
        self.shared.options.disk.write(&self.file, buffer, self.at).map_err(io_error("writing", &self.segment.path))?;
        self.at += buffer.len() as u64;
        buffer.clear();
        if buffer.capacity() > KEPT_BYTES {
            buffer.shrink_to(KEPT_BYTES);
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), LogError> {
        if !self.shared.options.sync {
            return Ok(());
        }
        self.shared.options.disk.sync(&self.file).map_err(io_error("syncing", &self.segment.path))
    }

    /// Seals the active segment, which ends before `base`, and makes the next one.
    fn roll(&mut self, base: Offset) -> Result<(), LogError> {
        self.seal(base)?;
        let known = self.register.1.iter().find(|added| added.offset >= base).map_or(self.register.0, |added| added.at);
        let before = self.index.now();
        let log = self.segment.header.log;
        let header = SegmentHeader { log, base, epoch: self.epoch, before, schemas_at: known };
        let options = &self.shared.options;
        self.file = create(&self.shared.dir, &header, &*options.disk, options.segment_bytes, options.sync)?;
        let next = Arc::new(Segment::new(&self.shared.dir, header, None));
        self.shared.segments.write().unwrap_or_else(PoisonError::into_inner).push(next.clone());
        let filled = std::mem::replace(&mut self.segment, next);
        let index = std::mem::replace(&mut self.index, Index::new(&header));
        self.behind.push((filled, index));
        self.at = SEGMENT_HEADER as u64;
        self.rolled = true;
        Ok(())
    }

    fn seal(&mut self, next: Offset) -> Result<(), LogError> {
        self.file.set_len(self.at).map_err(io_error("cutting", &self.segment.path))?;
        self.sync()?;
        let sealed = Sealed { bytes: self.at, next };
        self.index.save(&self.shared.dir, &self.segment.header, sealed);
        self.segment.set_sealed(Some(sealed));
        Ok(())
    }

    /// Goes back to the last end of a batch: cuts what was written since, and makes that durable before anything is
    /// written over it.
    fn rewind(&mut self) -> Result<(), LogError> {
        let dir = &self.shared.dir;
        while self.segment.base() > self.end.segment {
            let Some((filled, index)) = self.behind.pop() else { break };
            self.shared.segments.write().unwrap_or_else(PoisonError::into_inner).pop();
            std::fs::remove_file(&self.segment.path).map_err(io_error("removing", &self.segment.path))?;
            sync_dir(dir)?;
            // Written anew when the segment is filled again; a missing one does no harm.
            let _ = std::fs::remove_file(index_path(dir, filled.base()));
            filled.set_sealed(None);
            let file = OpenOptions::new().read(true).write(true).open(&filled.path);
            self.file = file.map_err(io_error("opening", &filled.path))?;
            (self.segment, self.index) = (filled, index);
        }
        self.behind.clear();
        self.index.rewind(self.end.at, self.before);
        self.at = self.end.at;
        let cut = self.file.set_len(self.at).and_then(|()| self.file.sync_all());
        cut.map_err(io_error("cutting", &self.segment.path))?;
        reserve(&self.file, self.shared.options.segment_bytes);
        Ok(())
    }
}

/// The writing thread's own.
#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    encoder: Encoder,
    tape: Tape,
    buffer: Vec<u8>,
    register: RegisterFile,
    /// Batches that are written but not yet durable, for readers.
    fresh: Vec<Handed>,
    /// The offset of the next record.
    next: Offset,
    /// All below is durable.
    durable: Offset,
    /// Whether a transaction is under way whose end has not come.
    inside: bool,
    /// What failed for good, be it a write or a sync: nothing since the last sync can be relied on.
    broken: Option<String>,
    /// Held locked as long as this thread lives.
    _lock: File,
}

type Reply = oneshot::Sender<Result<Cut, LogError>>;
type Answers = Vec<(Reply, Cut)>;

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, tape: Tape, register: RegisterFile, lock: File) -> Self {
        let mut encoder = Encoder::default();
        shared.schemas().all().for_each(|schema| encoder.learn(schema));
        let next = tape.end.next;
        let durable = if shared.options.sync { next } else { Offset(0) };
        let buffer = Vec::with_capacity(WRITE_BYTES + WRITE_BYTES / 2);
        let fresh = Vec::new();
        Self { shared, encoder, tape, buffer, register, fresh, next, durable, inside: false, broken: None, _lock: lock }
    }

    pub(super) fn run(mut self) {
        let mut answers = Answers::new();
        while let Some(jobs) = self.shared.take() {
            for job in jobs {
                if self.shared.poisoned().is_some() {
                    job.refuse(self.refusal());
                    continue;
                }
                match job {
                    Job::Append(batch, reply) => self.put(batch, reply, &mut answers),
                    Job::Abandon(reply) => {
                        self.settle(&mut answers);
                        // Whoever stopped waiting has no use for an answer, here and below.
                        let _ = reply.send(self.abandon());
                    }
                }
            }
            self.settle(&mut answers);
            self.tidy();
        }
        self.close();
    }

    /// Encodes one append; it is answered once it is durable. One that is refused is answered after those before it.
    fn put(&mut self, batch: Batch, reply: Reply, answers: &mut Answers) {
        let (start, written) = (self.buffer.len(), self.tape.at);
        let base = self.next;
        self.tape.writing = (None, 0);
        match self.write(&batch) {
            Ok(next) => {
                answers.push((reply, Cut::single(next)));
                self.hand_over(batch, base);
            }
            Err(error) => {
                if matches!(error, LogError::Contract(_)) {
                    // What is in the file of it already ends no batch: nobody will see it, and opening cuts it.
                    self.buffer.truncate(if self.tape.at == written { start } else { 0 });
                } else {
                    self.broken = Some(why(&error));
                }
                self.shared.poison(why(&error));
                self.settle(answers);
                let _ = reply.send(Err(error));
            }
        }
    }

    /// Keeps what was just written for a reader that is near.
    fn hand_over(&mut self, batch: Batch, base: Offset) {
        let (Some(from), flags) = self.tape.writing else { return };
        let to = Spot { segment: self.tape.segment.base(), at: self.tape.at + self.buffer.len() as u64 };
        let bytes = if to.segment == from.segment { to.at - from.at } else { to.at };
        let Batch { events, whole, .. } = batch;
        self.fresh.push(Handed { from, to, base, next: self.next, flags, whole, bytes, events });
    }

    /// Drops the unfinished head. Readers never saw it.
    fn abandon(&mut self) -> Result<(), LogError> {
        if let Some(why) = &self.broken {
            return Err(LogError::Poisoned { why: why.clone() });
        }
        if !self.inside {
            return Ok(());
        }
        let done = self.rewind();
        if let Err(error) = &done {
            self.broken = Some(why(error));
            self.shared.poison(why(error));
        }
        done
    }

    fn rewind(&mut self) -> Result<(), LogError> {
        self.tape.rewind()?;
        self.shared.fresh.cut(&self.tape.end);
        if let Some(first) = self.tape.register.1.first() {
            self.register.cut(first.at)?;
            let mut schemas = self.shared.schemas.write().unwrap_or_else(PoisonError::into_inner);
            for added in self.tape.register.1.drain(..) {
                schemas.remove(added.table, added.version);
                self.encoder.forget(added.table, added.version);
            }
            self.tape.register.0 = self.register.at;
        }
        self.next = self.tape.end.next;
        self.durable = self.durable.min(self.next);
        self.inside = false;
        Ok(())
    }

    fn write(&mut self, batch: &Batch) -> Result<Offset, LogError> {
        self.check(batch)?;
        if batch.events.is_empty() && batch.upto.is_none() && (!batch.whole || !self.inside) {
            return Ok(self.next);
        }
        let tape = &mut self.tape;
        let next = self.encoder.encode(batch, &mut self.buffer, self.next, self.durable, |buffer, start, frame| {
            tape.frame(buffer, start, frame)
        })?;
        self.next = next;
        self.inside = !batch.whole;
        Ok(next)
    }

    /// Checks what a batch must keep to, and registers the schemas that it brings.
    fn check(&mut self, batch: &Batch) -> Result<(), LogError> {
        check_lanes(batch, self.inside)?;
        let mut added = Vec::new();
        if !self.inside {
            self.tape.register = (self.register.at, Vec::new());
        }
        for (stamped, offset) in batch.events.iter().zip(self.next.0..) {
            match &stamped.event {
                Event::SchemaSeen(schema) => {
                    let at = self.register.at + added.len() as u64;
                    let new = self.shared.schemas.write().unwrap_or_else(PoisonError::into_inner).insert(schema)?;
                    if new {
                        self.encoder.learn(schema);
                        let (table, version, offset) = (schema.id, schema.version, Offset(offset));
                        self.tape.register.1.push(Added { offset, at, table, version });
                        added.extend(to_bytes(schema, offset, at)?);
                    }
                }
                Event::Rows(block) => self.encoder.knows(block.table, block.schema)?,
                _ => {}
            }
        }
        if !added.is_empty() {
            self.register.add(&added, &*self.shared.options.disk, self.shared.options.sync)?;
            self.tape.register.0 = self.register.at;
        }
        Ok(())
    }

    /// Makes what was written durable, shows it to readers, and answers.
    fn settle(&mut self, answers: &mut Answers) {
        if answers.is_empty() {
            return;
        }
        if self.broken.is_none() {
            let done = self.tape.flush(&mut self.buffer).and_then(|()| self.tape.sync());
            self.broken = done.err().map(|error| why(&error));
        }
        if let Some(why) = &self.broken {
            self.fresh.clear();
            self.shared.poison(why.clone());
            for (reply, _) in answers.drain(..) {
                let _ = reply.send(Err(self.refusal()));
            }
            return;
        }
        if self.shared.options.sync {
            self.durable = self.next;
        }
        // With no reader open there is nobody to keep anything for.
        if self.shared.end.receiver_count() > 0 {
            self.shared.fresh.keep(&mut self.fresh);
        } else {
            self.fresh.clear();
            self.shared.fresh.forget();
        }
        if self.tape.end != self.shared.end() {
            self.shared.end.send_replace(self.tape.end);
        }
        for (reply, cut) in answers.drain(..) {
            let _ = reply.send(Ok(cut));
        }
    }

    fn refusal(&self) -> LogError {
        LogError::Poisoned { why: self.shared.poisoned().unwrap_or_default() }
    }

    /// After a segment was filled: what the retention allows goes.
    fn tidy(&mut self) {
        if std::mem::take(&mut self.tape.rolled)
            && let Err(error) = self.shared.retain()
        {
            tracing::warn!(%error, "old segments could not be dropped");
        }
    }

    fn close(mut self) {
        if let Err(error) = held(&self.shared.consumers).save(&self.shared.dir) {
            tracing::warn!(%error, "the consumers' places were not written; older ones stand");
        }
        // Whoever opens the log next then finds an index rather than much to read through.
        if self.shared.poisoned().is_none()
            && !self.inside
            && self.tape.at >= SEALED_AT_CLOSE_BYTES
            && let Err(error) = self.tape.roll(self.next)
        {
            tracing::warn!(%error, "the last segment was not sealed; it is read through when the log is opened");
        }
        if self.shared.poisoned().is_none()
            && let Err(error) = self.tape.file.set_len(self.tape.at)
        {
            tracing::warn!(%error, "the room set aside was not given back");
        }
    }
}

/// The whole of an error in one line, its cause included.
fn why(error: &LogError) -> String {
    match error {
        LogError::Io { cause, .. } => format!("{error}: {cause}"),
        _ => error.to_string(),
    }
}
