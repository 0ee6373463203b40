//! Replication commands, and the stream: a task of its own reads from the server and answers it.
//!
//! ```text
//! server ──CopyData──▶ reader task ──chunks, bounded in bytes──▶ engine
//!        ◀─feedback──      ▲  every second, and when asked to
//!                          └── durable position (from `Source::confirm`)
//! ```
//! Two positions are told to the server and never mixed up: *received* (written) is how far this task has read;
//! *durable* (flushed, applied) is what the log has on disk. The server may forget only what lies before the latter.

use super::{
    pace::{PAUSE, Pace},
    wire::{Frame, Kind, Wire},
};
use crate::Config;
use bytes::{BufMut, Bytes, BytesMut};
use crossfade_connector::Failure;
use futures::FutureExt;
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior},
};

/// How many bytes may wait between the reader and the engine.
const QUEUE_BYTES_MAX: usize = 4 * 1024 * 1024;
const FEEDBACK_EVERY: Duration = Duration::from_secs(1);
/// What is in the socket already is told of at once; this bounds the wait where nothing is.
const TOLD_WITHIN: Duration = Duration::from_millis(1);
/// After so long without a word from the server we ask for one; after three times that it is taken for dead.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// Microseconds from 1970-01-01 to 2000-01-01, PostgreSQL's epoch.
pub(crate) const EPOCH_2000_US: i64 = 946_684_800_000_000;

/// A place in the write-ahead log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Lsn(pub(crate) u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl Lsn {
    /// Reads `16/B374D848`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (high, low) = text.split_once('/')?;
        let high = u32::from_str_radix(high, 16).ok()?;
        let low = u32::from_str_radix(low, 16).ok()?;
        Some(Self(u64::from(high) << 32 | u64::from(low)))
    }
}

/// What `IDENTIFY_SYSTEM` says.
#[derive(Debug, Clone)]
pub(crate) struct Identified {
    pub(crate) system: String,
    pub(crate) timeline: u32,
    pub(crate) current: Lsn,
}

/// A slot that was just made.
#[derive(Debug, Clone)]
pub(crate) struct CreatedSlot {
    pub(crate) consistent_point: Lsn,
    /// The exported snapshot: valid until the session's next command.
    pub(crate) snapshot: String,
}

/// A replication session that does not stream yet.
pub(crate) struct Replication {
    wire: Wire,
}

impl Replication {
    pub(crate) async fn connect(config: &Config, application_name: &str) -> Result<Self, Failure> {
        Ok(Self { wire: Wire::connect(config, application_name, Kind::Replication).await? })
    }

    pub(crate) async fn identify(&mut self) -> Result<Identified, Failure> {
        let rows = self.wire.query("IDENTIFY_SYSTEM").await?;
        let mut cells = rows.into_iter().next().unwrap_or_default().into_iter();
        let mut next = || cells.next().flatten();
        let (system, timeline, current) = (next(), next(), next());
        match (system, timeline.and_then(|text| text.parse().ok()), current.as_deref().and_then(Lsn::parse)) {
            (Some(system), Some(timeline), Some(current)) => Ok(Identified { system, timeline, current }),
            _ => Err(self.wire.unexpected(b'D')),
        }
    }

    /// The place where `timeline` left the one before it, and so on backwards: `(timeline, its end)`.
    pub(crate) async fn timeline_history(&mut self, timeline: u32) -> Result<Vec<(u32, Lsn)>, Failure> {
        let rows = self.wire.query(&format!("TIMELINE_HISTORY {timeline}")).await?;
        let content = rows.into_iter().next().and_then(|row| row.into_iter().nth(1)).flatten().unwrap_or_default();
        let ends = content.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?.parse().ok()?, Lsn::parse(words.next()?)?))
        });
        Ok(ends.collect())
    }

    /// Makes a logical slot and exports the snapshot of its consistent point.
    pub(crate) async fn create_slot(
        &mut self,
        slot: &str,
        version: u32,
        failover: bool,
    ) -> Result<CreatedSlot, Failure> {
        let rows = self.wire.query(&create_slot_sql(slot, version, failover)).await?;
        let row = rows.into_iter().next().unwrap_or_default();
        let cell = |index: usize| row.get(index).cloned().flatten();
        match (cell(1).as_deref().and_then(Lsn::parse), cell(2)) {
            (Some(consistent_point), Some(snapshot)) => Ok(CreatedSlot { consistent_point, snapshot }),
            _ => Err(self.wire.unexpected(b'D')),
        }
    }

    /// Begins to stream; `options` are pgoutput's, as SQL.
    pub(crate) async fn start(mut self, slot: &str, from: Lsn, options: &str) -> Result<WalStream, Failure> {
        self.wire.send_query(&format!("START_REPLICATION SLOT \"{slot}\" LOGICAL {from} ({options})")).await?;
        let mut failed = None;
        loop {
            let Frame { tag, body } = self.wire.receive().await?;
            match tag {
                b'W' => return Ok(WalStream::spawn(self.wire, from)),
                b'E' => failed = Some(self.wire.refused(&body)),
                b'Z' => return Err(failed.unwrap_or_else(|| self.wire.unexpected(b'Z'))),
                b'N' | b'S' => {}
                other => return Err(self.wire.unexpected(other)),
            }
        }
    }
}

/// The command that makes a slot and exports what is visible at its beginning.
pub(crate) fn create_slot_sql(slot: &str, version: u32, failover: bool) -> String {
    let options = match (version >= 150_000, failover) {
        (true, true) => "(SNAPSHOT 'export', FAILOVER true)",
        (true, false) => "(SNAPSHOT 'export')",
        (false, _) => "EXPORT_SNAPSHOT",
    };
    format!("CREATE_REPLICATION_SLOT \"{slot}\" LOGICAL pgoutput {options}")
}

/// Several `CopyData` messages in one piece; gives its bytes back to the queue when dropped.
pub(crate) struct Chunk {
    pub(crate) frames: Bytes,
    _room: OwnedSemaphorePermit,
}

/// The running stream. Dropping it ends the task and the session.
pub(crate) struct WalStream {
    chunks: mpsc::UnboundedReceiver<Result<Chunk, Failure>>,
    durable: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Drop for WalStream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl WalStream {
    fn spawn(wire: Wire, from: Lsn) -> Self {
        let durable = Arc::new(AtomicU64::new(from.0));
        // Unbounded in messages, bounded in bytes by the semaphore.
        let (sender, chunks) = mpsc::unbounded_channel();
        let reader = Reader {
            wire,
            received: from,
            durable: durable.clone(),
            acknowledged: Lsn(0),
            room: Arc::new(Semaphore::new(QUEUE_BYTES_MAX)),
            heard: Instant::now(),
            pace: Pace::default(),
        };
        let task = tokio::spawn(async move {
            if let Err(failure) = reader.run(&sender).await {
                // Nobody listens any more: the source was dropped.
                let _ = sender.send(Err(failure));
            }
        });
        Self { chunks, durable, task }
    }

    /// The next messages; waits. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Result<Chunk, Failure> {
        self.chunks.recv().await.unwrap_or_else(|| Err(ended()))
    }

    /// The handle by which the durable position is told to the server.
    pub(crate) fn durable(&self) -> Arc<AtomicU64> {
        self.durable.clone()
    }
}

fn ended() -> Failure {
    Failure::reconnect("reading the replication stream", "its task has ended")
}

struct Reader {
    wire: Wire,
    received: Lsn,
    durable: Arc<AtomicU64>,
    acknowledged: Lsn,
    room: Arc<Semaphore>,
    heard: Instant,
    pace: Pace,
}

impl Reader {
    async fn run(mut self, out: &mpsc::UnboundedSender<Result<Chunk, Failure>>) -> Result<(), Failure> {
        let mut tick = tokio::time::interval(FEEDBACK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let frames = self.wire.buffered_copy_data()?;
            if !frames.is_empty() {
                self.heard = Instant::now();
                let asked = self.note(&frames);
                let Some(room) = self.make_room(frames.len(), &mut tick).await? else { return Ok(()) };
                if out.send(Ok(Chunk { frames, _room: room })).is_err() {
                    return Ok(());
                }
                if asked {
                    self.feedback(false).await?;
                }
                continue;
            }
            if let Some(frame) = self.wire.buffered()? {
                self.other(&frame)?;
                continue;
            }
            self.fill(&mut tick).await?;
        }
    }

    /// Reads more, at the stream's pace.
    async fn fill(&mut self, tick: &mut tokio::time::Interval) -> Result<(), Failure> {
        let pauses = self.pace.is_fast();
        if pauses {
            // What is there already is handed on, and not kept waiting for more.
            if let Some(filled) = self.wire.fill().now_or_never() {
                let mut bytes = filled?;
                if !self.pace.is_much(bytes) {
                    self.pause().await?;
                    // What has gathered is told of as soon as the pause is over.
                    let more = tokio::time::timeout(TOLD_WITHIN, self.wire.fill()).await;
                    bytes += more.unwrap_or(Ok(0))?;
                    self.pace.gathered(bytes);
                }
                return Ok(());
            }
            self.pause().await?;
        }
        let began = Instant::now();
        tokio::select! {
            filled = self.wire.fill() => {
                let bytes = filled?;
                self.pace.waited(began.elapsed());
                if pauses {
                    self.pace.gathered(bytes);
                }
            }
            _ = tick.tick() => self.on_tick().await?,
        }
        Ok(())
    }

    /// Lets the stream gather, without being woken for each message of it.
    async fn pause(&self) -> Result<(), Failure> {
        // Where the system does not know it, the pause is one all the same.
        let gathers = self.wire.gather(true).is_ok();
        tokio::time::sleep(PAUSE).await;
        if gathers { self.wire.gather(false).map_err(|error| self.wire.broken(error)) } else { Ok(()) }
    }

    /// Waits for room in the queue; feedback goes on meanwhile.
    async fn make_room(
        &mut self,
        bytes: usize,
        tick: &mut tokio::time::Interval,
    ) -> Result<Option<OwnedSemaphorePermit>, Failure> {
        // A single message may be larger than the whole queue: it then has the queue for itself.
        let bytes = u32::try_from(bytes.min(QUEUE_BYTES_MAX)).unwrap_or(u32::MAX);
        let room = self.room.clone().acquire_many_owned(bytes);
        tokio::pin!(room);
        loop {
            tokio::select! {
                permit = &mut room => return Ok(permit.ok()),
                _ = tick.tick() => self.feedback(false).await?,
            }
        }
    }

    /// Notes how far the server has sent; true when it wants an answer.
    fn note(&mut self, frames: &Bytes) -> bool {
        let mut asked = false;
        let mut rest: &[u8] = frames;
        while let Some((header, body)) = rest.split_first_chunk::<5>() {
            let [_, length @ ..] = *header;
            let length = (u32::from_be_bytes(length) as usize).saturating_sub(4);
            let Some((body, next)) = body.split_at_checked(length) else { break };
            rest = next;
            let lsn =
                |at: usize| body.get(at..).and_then(|b| b.first_chunk::<8>()).map_or(0, |b| u64::from_be_bytes(*b));
            match body.first() {
                Some(b'w') => self.received = self.received.max(Lsn(lsn(1))).max(Lsn(lsn(9))),
                Some(b'k') => {
                    self.received = self.received.max(Lsn(lsn(1)));
                    asked |= body.get(17) == Some(&1);
                }
                _ => {}
            }
        }
        asked
    }

    fn other(&self, frame: &Frame) -> Result<(), Failure> {
        match frame.tag {
            b'E' => Err(self.wire.refused(&frame.body)),
            b'c' | b'C' | b'Z' => Err(Failure::reconnect("reading the replication stream", "the server ended it")),
            b'N' | b'S' => Ok(()),
            other => Err(self.wire.unexpected(other)),
        }
    }

    async fn on_tick(&mut self) -> Result<(), Failure> {
        let silence = self.heard.elapsed();
        if silence > SILENCE_MAX * 3 {
            return Err(Failure::reconnect("reading the replication stream", "the server has fallen silent"));
        }
        self.feedback(silence > SILENCE_MAX).await
    }

    async fn feedback(&mut self, ask: bool) -> Result<(), Failure> {
        let durable = Lsn(self.durable.load(Ordering::Acquire));
        if durable > self.acknowledged {
            tracing::trace!(%durable, received = %self.received, "position confirmed to the server");
            self.acknowledged = durable;
        }
        let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_micros() as i64) - EPOCH_2000_US;
        let mut out = BytesMut::with_capacity(64);
        out.put_u8(b'd');
        out.put_u32(4 + 34);
        out.put_u8(b'r');
        out.put_u64(self.received.max(durable).0);
        out.put_u64(durable.0);
        out.put_u64(durable.0);
        out.put_i64(now);
        out.put_u8(u8::from(ask));
        self.wire.send(&out).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_lsn_reads_what_it_writes() {
        let lsn = Lsn(0x0000_0016_b374_d848);
        assert_eq!(lsn.to_string(), "16/B374D848");
        assert_eq!(Lsn::parse("16/B374D848"), Some(lsn));
        assert_eq!(Lsn::parse("16-B3"), None);
    }
}
