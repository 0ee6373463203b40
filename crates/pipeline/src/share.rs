//! One partition of a stream that several delivers share (docs/adr/0016): read, transform, write, and let the sink record
//! how far the *partition* has come.
//!
//! What belongs to no row is read from the first partition, so each owner sees the transactions' ends, and whatever is not
//! one partition's matter: before that it stops, drops what it has begun, and asks the lead.

use crate::{
    DeliverOptions, Others, PipelineError, Routes, Stop, Watch,
    deliver::Uncommitted,
    gather::{Gather, Meaning, past},
    retry::{self, Retry},
};
use crossfade_connector::{Delivery, Failure, Owner, PartSink, Progress, Taken, Written};
use crossfade_event::{Cut, Event, Offset, Partition, Sequence};
use crossfade_log::{Entries, Entry, EventLog, LogError, LogReader, is_before_move};
use std::time::Duration;
use tokio::time::Instant;

/// How often it is asked whether the stream is shared, or whether an idle partition is still ours.
const LOOK: Duration = Duration::from_millis(200);

/// The pause of one who was shut out: the group tells him meanwhile what it has given to others.
const PAUSE: Duration = Duration::from_secs(2);

/// The place of a partition in which nothing happens is written as often as this.
const PLACE_EVERY: Duration = Duration::from_millis(100);

/// What whoever applies a partition needs of the log beside it.
pub trait Partitions: EventLog {
    /// Reads one partition's rows, and what belongs to no row, from a cut in which the other partitions mean nothing.
    type PartReader: LogReader;

    /// Begins to read.
    ///
    /// # Errors
    /// As [`EventLog::read`].
    fn read_partition(&self, from: &Cut, partition: Partition) -> Result<Self::PartReader, LogError>;
}

/// Why a partition is left.
enum Left {
    /// Told to stop.
    Stopped,
    /// It is somebody else's.
    NotOurs,
    /// It has met what the lead must do, or what cannot be written alone; nothing of it is in.
    Asks(String),
}

enum Broken {
    Sink(Failure),
    Other(PipelineError),
}

impl<E: Into<PipelineError>> From<E> for Broken {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// Applies one partition whenever the stream is shared, until stopped. `told` hears the first offset that is not in.
///
/// # Errors
/// The first failure that trying again cannot mend.
#[expect(clippy::too_many_arguments, reason = "what deliver takes, and which partition")]
pub async fn apply_partition<P: PartSink, L: Partitions>(
    log: &L,
    partition: Partition,
    routes: &Routes,
    sink: &mut P,
    options: &DeliverOptions,
    others: &dyn Others,
    watch: &dyn Watch,
    told: &(dyn Fn(Option<Offset>) + Sync),
    mut stop: Stop,
) -> Result<(), PipelineError> {
    let mut retry = Retry::new(options.patience);
    let mut owner = PartOwner { log, partition, routes, sink, options, others, watch, told, number: None };
    while !stop.is_requested() {
        let broken = match Box::pin(owner.turn(&mut retry, &mut stop)).await {
            Ok(()) => continue,
            Err(broken) => broken,
        };
        match broken {
            Broken::Other(error) => {
                let failure = retry::passing_of_log(error)?;
                retry.wait("log", failure, watch, &mut stop).await.map_err(retry::log_failed)?;
            }
            Broken::Sink(failure) => {
                retry.wait("sink", failure, watch, &mut stop).await.map_err(PipelineError::Sink)?;
            }
        }
    }
    (owner.told)(None);
    Ok(())
}

struct PartOwner<'a, P, L> {
    log: &'a L,
    partition: Partition,
    routes: &'a Routes,
    sink: &'a mut P,
    options: &'a DeliverOptions,
    others: &'a dyn Others,
    watch: &'a dyn Watch,
    told: &'a (dyn Fn(Option<Offset>) + Sync),
    /// Under which the partition was taken last.
    number: Option<u64>,
}

/// Waits, or is told to stop.
async fn pause(pause: Duration, stop: &mut Stop) {
    tokio::select! {
        () = tokio::time::sleep(pause) => {}
        () = stop.requested() => {}
    }
}

impl<P: PartSink, L: Partitions> PartOwner<'_, P, L> {
    /// Takes the partition over, if the stream is shared, and applies it as long as it is ours.
    async fn turn(&mut self, retry: &mut Retry, stop: &mut Stop) -> Result<(), Broken> {
        self.was_shut_out(stop).await?;
        if !self.sink.is_shared().await.map_err(Broken::Sink)? {
            retry.succeeded("sink", self.watch);
            (self.told)(None);
            pause(LOOK, stop).await;
            return Ok(());
        }
        if stop.is_requested() {
            return Ok(());
        }
        let number = self.others.turn()?;
        let place = match self.sink.take(number).await.map_err(Broken::Sink)? {
            Taken::Ours(place) => place,
            Taken::NotShared | Taken::Superseded => {
                pause(LOOK, stop).await;
                return Ok(());
            }
        };
        tracing::debug!(partition = self.partition.0, number, "a partition is taken over");
        self.number = Some(number);
        retry.succeeded("sink", self.watch);
        match self.apply(place, stop).await? {
            Left::Stopped => {}
            Left::NotOurs => self.was_shut_out(stop).await?,
            Left::Asks(why) => {
                tracing::info!(partition = self.partition.0, %why, "the lead is asked to go on alone");
                self.sink.ask().await.map_err(Broken::Sink)?;
                while !stop.is_requested() && self.sink.owner(number).await.map_err(Broken::Sink)? == Owner::Us {
                    pause(LOOK, stop).await;
                }
            }
        }
        Ok(())
    }

    /// Says so if another one has taken the partition since it was ours.
    async fn was_shut_out(&mut self, stop: &mut Stop) -> Result<(), Broken> {
        let Some(number) = self.number.take() else { return Ok(()) };
        if self.sink.owner(number).await.map_err(Broken::Sink)? != Owner::Another {
            return Ok(());
        }
        (self.told)(None);
        if !stop.is_requested() {
            tracing::warn!(
                partition = self.partition.0,
                "another deliver has taken this partition over: this one was shut out, and what it had begun in it is rolled back"
            );
            pause(PAUSE, stop).await;
        }
        Ok(())
    }

    async fn apply(&mut self, place: Progress, stop: &mut Stop) -> Result<Left, Broken> {
        let mut routes = self.routes.clone();
        routes.restore(self.log, &place.schemas)?;
        self.sink.prepare(routes.target()).await.map_err(Broken::Sink)?;
        let fold = self.options.folds.refreshed(self.log)?;
        let mut reader = self.log.read_partition(&place.cut, self.partition)?;
        let mut work = PartWork {
            gather: Gather::new(self.log.clone(), routes, fold.visible),
            partition: self.partition,
            at: place.cut.clone(),
            written: (place.cut.clone(), Instant::now()),
            progress: place,
            open: false,
            uncommitted: Uncommitted::default(),
        };
        (self.told)(Some(work.at.next(self.partition)));
        while !stop.is_requested() {
            let mut entries = reader.try_next()?;
            if entries.is_none() && !work.is_due() {
                entries = tokio::select! {
                    entries = reader.next() => Some(entries?),
                    () = stop.requested() => return Ok(Left::Stopped),
                    () = tokio::time::sleep(LOOK) => None,
                };
                if entries.is_none() && !work.is_due() {
                    match self.is_ours().await? {
                        true => continue,
                        false => return Ok(Left::NotOurs),
                    }
                }
            }
            let is_at_end = entries.is_none();
            if let Some(entries) = entries
                && let Some(why) = work.take(entries, &mut reader)?
            {
                return Ok(Left::Asks(why));
            }
            if work.gather.bytes() >= self.options.batch_bytes_max || (is_at_end && work.is_due()) {
                match self.write(&mut work).await? {
                    Written::In(_) => {}
                    Written::NotOurs => return Ok(Left::NotOurs),
                    Written::NotAlone(why) => return Ok(Left::Asks(why)),
                }
            }
        }
        Ok(Left::Stopped)
    }

    /// An idle partition hears so that it was taken back; inside a transaction its next commit does.
    async fn is_ours(&mut self) -> Result<bool, Broken> {
        let Some(number) = self.number else { return Ok(false) };
        Ok(self.sink.owner(number).await.map_err(Broken::Sink)? == Owner::Us)
    }

    async fn write(&mut self, work: &mut PartWork<L>) -> Result<Written, Broken> {
        let (writes, tally) = work.gather.take();
        let commits = !work.open;
        let upto = Progress { schemas: Vec::new(), ..work.progress.clone() };
        let written = self.sink.write(Delivery { writes, upto: upto.clone(), commits }).await.map_err(Broken::Sink)?;
        if matches!(written, Written::In(_)) {
            work.uncommitted.add(tally, 0);
            if commits {
                work.written = (upto.cut.clone(), Instant::now());
                (self.told)(Some(upto.cut.next(self.partition)));
                self.watch.shared(&std::mem::take(&mut work.uncommitted).committed(upto));
            }
        }
        Ok(written)
    }
}

/// What was read of a partition and is not in yet.
struct PartWork<L: EventLog> {
    gather: Gather<L>,
    partition: Partition,
    /// Behind the last entry read.
    at: Cut,
    /// The place that the sink has, and since when.
    written: (Cut, Instant),
    /// Where the partition stands once everything read so far is in.
    progress: Progress,
    /// Whether the last entry read stands inside a source transaction.
    open: bool,
    uncommitted: Uncommitted,
}

impl<L: EventLog> PartWork<L> {
    /// Whether something is to be written now that nothing more is there.
    fn is_due(&self) -> bool {
        if self.open {
            return false;
        }
        let (cut, since) = &self.written;
        self.gather.bytes() > 0 || (self.progress.cut != *cut && since.elapsed() >= PLACE_EVERY)
    }

    /// Takes entries in; says what the lead is needed for, if it is.
    fn take(&mut self, entries: Entries, reader: &mut impl LogReader) -> Result<Option<String>, PipelineError> {
        for entry in entries.entries {
            if let Some(why) = self.needs_lead(&entry) {
                return Ok(Some(why.to_owned()));
            }
            past(&mut self.at, &entry);
            match entry {
                Entry { event: Event::Changed(change), sequence, partition, .. } => {
                    if partition == self.partition {
                        let made = reader.made(sequence);
                        self.gather.changed(sequence, change, made)?;
                    }
                }
                entry => match self.gather.stream(&entry)? {
                    Meaning::Boundary(position) => {
                        self.open = false;
                        self.progress.cut.clone_from(&self.at);
                        self.progress.sequence = Some(Sequence(entry.sequence.0 + 1));
                        self.progress.position = self.progress.position.max(Some(position));
                    }
                    // Nothing else that means something comes here.
                    _ => self.open |= matches!(entry.event, Event::Began(_)),
                },
            }
        }
        self.at = entries.next;
        if !self.open {
            self.progress.cut.clone_from(&self.at);
        }
        Ok(None)
    }

    /// Why an entry is not one partition's matter.
    fn needs_lead(&self, entry: &Entry) -> Option<&'static str> {
        match &entry.event {
            Event::SchemaSeen(schema) if !self.gather.routes.follows(schema) => Some("a table changes its shape"),
            Event::Truncated(_) => Some("tables are emptied"),
            Event::BackfillBegan(_) => Some("a copy begins"),
            event if is_before_move(event) => Some("a row changes its key and keeps what the change does not say"),
            _ => None,
        }
    }
}
