//! What the writer, the readers and the handle share.

use super::{
    End, Options,
    consumers::Consumers,
    fresh::Fresh,
    index::index_path,
    io_error,
    recover::{Verified, scrub},
    segment::Segment,
    sync_dir,
};
use crate::{LogError, schemas::Schemas};
use crossfade_event::{Batch, Cut, Offset};
use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard},
    thread::JoinHandle,
    time::SystemTime,
};
use tokio::sync::{oneshot, watch};

/// What the writer is asked for, in order.
#[derive(Debug)]
pub(super) enum Job {
    /// Append a batch.
    Append(Batch, oneshot::Sender<Result<Cut, LogError>>),
    /// Drop the unfinished head.
    Abandon(oneshot::Sender<Result<(), LogError>>),
}

impl Job {
    /// Answers with a refusal. Whoever stopped waiting has no use for it.
    pub(super) fn refuse(self, error: LogError) {
        match self {
            Self::Append(_, reply) => drop(reply.send(Err(error))),
            Self::Abandon(reply) => drop(reply.send(Err(error))),
        }
    }
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

/// What is in a folder.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) segments: Vec<Segment>,
    pub(super) end: End,
    pub(super) schemas: Schemas,
    pub(super) consumers: Consumers,
}

/// Shared by all.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) dir: PathBuf,
    pub(super) id: u64,
    pub(super) options: Options,
    pub(super) read_only: bool,
    pub(super) segments: RwLock<Vec<Arc<Segment>>>,
    pub(super) end: watch::Sender<End>,
    pub(super) fresh: Fresh,
    pub(super) schemas: RwLock<Schemas>,
    pub(super) consumers: Mutex<Consumers>,
    pub(super) trimming: Mutex<()>,
    queue: Mutex<Queue>,
    wake: Condvar,
    poison: Mutex<Option<String>>,
}

/// Figures of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statistics {
    /// Segment files.
    pub segments: usize,
    /// Their bytes, without what is set aside in advance.
    pub bytes: u64,
    /// The first offset kept.
    pub start: Offset,
    /// The first offset not yet there.
    pub end: Offset,
    /// When the oldest segment took its last append.
    pub oldest: Option<SystemTime>,
}

// A thread that panicked while holding one of these locks left whole values: each is changed by one assignment.
pub(super) fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// What opening found, shared; `options` are `None` for a log that is only read.
    pub(super) fn new(dir: PathBuf, found: Contents, options: Option<Options>) -> Self {
        Self {
            dir,
            id: found.segments.first().map_or(0, |segment| segment.header.log),
            read_only: options.is_none(),
            options: options.unwrap_or_default(),
            segments: RwLock::new(found.segments.into_iter().map(Arc::new).collect()),
            end: watch::Sender::new(found.end),
            fresh: Fresh::default(),
            schemas: RwLock::new(found.schemas),
            consumers: Mutex::new(found.consumers),
            trimming: Mutex::new(()),
            queue: Mutex::default(),
            wake: Condvar::new(),
            poison: Mutex::new(None),
        }
    }

    pub(super) fn end(&self) -> End {
        *self.end.borrow()
    }

    pub(super) fn start(&self) -> Offset {
        self.segments().first().map_or(Offset(0), |segment| segment.base())
    }

    pub(super) fn segments(&self) -> RwLockReadGuard<'_, Vec<Arc<Segment>>> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The segment that holds, or will hold, `offset`; `None` when it was trimmed.
    pub(super) fn segment_of(&self, offset: Offset) -> Option<Arc<Segment>> {
        let segments = self.segments();
        let after = segments.partition_point(|segment| segment.base() <= offset);
        segments.get(after.checked_sub(1)?).cloned()
    }

    pub(super) fn schemas(&self) -> RwLockReadGuard<'_, Schemas> {
        self.schemas.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn poisoned(&self) -> Option<String> {
        held(&self.poison).clone()
    }

    /// Refuses all further appends, for the first reason given.
    pub(super) fn poison(&self, why: String) {
        held(&self.poison).get_or_insert(why);
    }

    /// Waits for appends and takes all of them; `None` once the log is closed and nothing is left.
    pub(super) fn take(&self) -> Option<VecDeque<Job>> {
        let mut queue = held(&self.queue);
        while queue.jobs.is_empty() {
            if queue.closed {
                return None;
            }
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        Some(std::mem::take(&mut queue.jobs))
    }

    fn writable(&self) -> Result<(), LogError> {
        if self.read_only { Err(LogError::ReadOnly { dir: self.dir.clone() }) } else { Ok(()) }
    }

    pub(super) fn consumers(&self) -> Vec<(String, Cut)> {
        held(&self.consumers).all().iter().map(|(name, at)| (name.clone(), Cut::single(*at))).collect()
    }

    pub(super) fn hold(&self, consumer: &str, at: Offset) -> Result<(), LogError> {
        self.writable()?;
        let end = self.end().next;
        if at > end {
            return Err(LogError::Beyond { asked: Cut::single(at), end: Cut::single(end) });
        }
        self.fresh.holds(at, end);
        held(&self.consumers).hold(&self.dir, consumer, at)
    }

    pub(super) fn release(&self, consumer: &str) -> Result<(), LogError> {
        self.writable()?;
        held(&self.consumers).release(&self.dir, consumer)
    }

    /// Drops whole sealed segments below a place.
    pub(super) fn trim(&self, below: Offset, force: bool) -> Result<Cut, LogError> {
        self.writable()?;
        let _one_at_a_time = held(&self.trimming);
        let mut below = below.min(self.end().next);
        {
            let mut consumers = held(&self.consumers);
            consumers.save(&self.dir)?;
            if !force && let Some(slowest) = consumers.slowest() {
                below = below.min(slowest);
            }
        }
        let mut removed = false;
        while let Some(oldest) = self.oldest_sealed_below(below) {
            // Out of the list first: a reader then knows that it is gone, rather than missing.
            self.segments.write().unwrap_or_else(PoisonError::into_inner).remove(0);
            std::fs::remove_file(&oldest.path).map_err(io_error("removing", &oldest.path))?;
            match std::fs::remove_file(index_path(&self.dir, oldest.base())) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(io_error("removing", &index_path(&self.dir, oldest.base()))(error));
                }
                _ => removed = true,
            }
        }
        if removed {
            sync_dir(&self.dir)?;
        }
        Ok(Cut::single(self.start()))
    }

    fn oldest_sealed_below(&self, below: Offset) -> Option<Arc<Segment>> {
        let oldest = self.segments().first()?.clone();
        let sealed = oldest.sealed()?;
        // The last record stays, also where closing the log has sealed its segment: a source may read there how far it came.
        (sealed.next <= below && sealed.next < self.end().next).then_some(oldest)
    }

    /// Drops what the retention says; nothing as long as there never was a consumer.
    pub(super) fn retain(&self) -> Result<Cut, LogError> {
        let mut below = self.start();
        let retention = self.options.retention;
        if (retention.time.is_some() || retention.bytes.is_some()) && held(&self.consumers).ever() {
            let segments: Vec<Arc<Segment>> = self.segments().clone();
            let mut bytes: u64 = self.statistics()?.bytes;
            let now = SystemTime::now();
            for segment in segments {
                let Some(sealed) = segment.sealed() else { break };
                let written = std::fs::metadata(&segment.path).and_then(|data| data.modified());
                let written = written.map_err(io_error("looking at", &segment.path))?;
                let age = now.duration_since(written).unwrap_or_default();
                let too_old = retention.time.is_some_and(|limit| age > limit);
                let too_much = retention.bytes.is_some_and(|limit| bytes > limit);
                if !too_old && !too_much {
                    break;
                }
                bytes = bytes.saturating_sub(sealed.bytes);
                below = sealed.next;
            }
        }
        self.trim(below, false)
    }

    pub(super) fn statistics(&self) -> Result<Statistics, LogError> {
        let segments: Vec<Arc<Segment>> = self.segments().clone();
        let end = self.end();
        let bytes = segments.iter().map(|segment| segment.sealed().map_or(end.at, |sealed| sealed.bytes)).sum();
        let oldest = match segments.first() {
            Some(first) => Some(std::fs::metadata(&first.path).and_then(|data| data.modified()))
                .transpose()
                .map_err(io_error("looking at", &first.path))?,
            None => None,
        };
        Ok(Statistics { segments: segments.len(), bytes, start: self.start(), end: end.next, oldest })
    }

    pub(super) fn verify(&self) -> Result<Verified, LogError> {
        let end = self.end();
        let segments: Vec<Arc<Segment>> = self.segments().clone();
        let mut verified = Verified::default();
        for segment in segments {
            let limit = match segment.sealed() {
                _ if segment.base() == end.segment => end.at,
                Some(sealed) => sealed.bytes,
                None => continue,
            };
            match scrub(&segment, limit, &mut verified) {
                // Trimmed while we looked.
                Err(LogError::Io { cause, .. })
                    if cause.kind() == std::io::ErrorKind::NotFound && self.start() > segment.base() => {}
                result => result?,
            }
        }
        Ok(verified)
    }
}

/// The open log: closed when the last handle goes.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) shared: Arc<Shared>,
    pub(super) writer: Option<JoinHandle<()>>,
}

impl Inner {
    pub(super) fn enqueue(&self, job: Job) {
        if let Err(refused) = self.shared.writable() {
            return job.refuse(refused);
        }
        held(&self.shared.queue).jobs.push_back(job);
        self.shared.wake.notify_one();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        held(&self.shared.queue).closed = true;
        self.shared.wake.notify_one();
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has dropped its jobs, whose futures say so.
            let _ = writer.join();
        }
    }
}
