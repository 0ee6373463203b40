//! What is read, as batches for the log.

use super::note::Note;
use crossfade_connector::Failure;
use crossfade_event::{Batch, Event, Position, SourceId, Stamped};
use tokio::sync::mpsc;

/// A batch is handed over once it holds so many bytes or events.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_EVENTS: usize = 4_096;

/// Why a reading ends.
#[derive(Debug)]
pub(super) enum Ended {
    /// Nobody listens any more.
    Closed,
    Failed(Failure),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// What is done, for a moment, while nobody takes a batch.
pub(super) type Beside = Box<dyn FnMut() -> Result<(), Ended> + Send>;

/// Batches under way.
pub(super) struct Out {
    sender: mpsc::Sender<Result<Batch, Failure>>,
    beside: Beside,
    source: SourceId,
    commit: u64,
    ordinal: u32,
    events: Vec<Stamped>,
    bytes: usize,
    last: Option<Position>,
}

impl Out {
    pub(super) fn new(sender: mpsc::Sender<Result<Batch, Failure>>, beside: Beside, at: Position) -> Self {
        let Position { source, commit, ordinal, .. } = at;
        Self { sender, beside, source, commit, ordinal, events: Vec::new(), bytes: 0, last: None }
    }

    /// One event, after all others.
    pub(super) fn push(&mut self, event: Event) {
        self.ordinal = self.ordinal.saturating_add(1);
        self.bytes += event.size_bytes() + 24;
        let position = Position { source: self.source, timeline: 0, commit: self.commit, ordinal: self.ordinal };
        self.last = Some(position);
        self.events.push(Stamped { position, event });
    }

    /// Everything up to this sum of offsets has been read.
    pub(super) fn resolve(&mut self, commit: u64) {
        if commit > self.commit {
            (self.commit, self.ordinal) = (commit, 0);
            self.push(Event::Resolved);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes >= BATCH_BYTES || self.events.len() >= BATCH_EVENTS
    }

    /// Hands over a part of a transaction that goes on.
    pub(super) fn part(&mut self) -> Result<(), Ended> {
        let events = std::mem::take(&mut self.events);
        self.bytes = 0;
        self.send(Batch { events, upto: None, whole: false })
    }

    /// Hands over whole transactions, with the word of how far the topics have been read.
    pub(super) fn whole(&mut self, note: &Note) -> Result<(), Ended> {
        if self.events.is_empty() {
            return Ok(());
        }
        self.push(Event::Marked(note.mark()));
        let events = std::mem::take(&mut self.events);
        self.bytes = 0;
        self.send(Batch { events, upto: self.last, whole: true })
    }

    fn send(&mut self, batch: Batch) -> Result<(), Ended> {
        let mut batch = Ok(batch);
        loop {
            match self.sender.try_send(batch) {
                Ok(()) => return Ok(()),
                Err(mpsc::error::TrySendError::Closed(_)) => return Err(Ended::Closed),
                Err(mpsc::error::TrySendError::Full(back)) => batch = back,
            }
            (self.beside)()?;
        }
    }

    /// Whether anybody still listens.
    pub(super) fn wanted(&self) -> Result<(), Ended> {
        if self.sender.is_closed() { Err(Ended::Closed) } else { Ok(()) }
    }

    /// The last word. Whoever does not listen any more need not hear it.
    pub(super) fn fail(self, failure: Failure) {
        let _ = self.sender.blocking_send(Err(failure));
    }
}
