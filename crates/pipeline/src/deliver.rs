//! Read the log, transform, apply, and let the sink record how far it has come.
//!
//! Two tasks and a channel of one place: the *producer* reads and transforms, the *consumer* owns the sink, so that the
//! next batch is ready when the last one is in. A batch closes when the log has nothing more and the sink is free, or
//! at its size; a source transaction that is larger goes over in parts of one sink transaction.
//!
//! ```text
//!            ┌────────────── backfill: Lane::Snapshot ──────────────┐
//!   Loading ─┤ BackfillBegan … Rows … BackfillEnded                  ├─▶ finish_load ─▶ Streaming from BackfillBegan
//!            └───────────────────────────────────────────────────────┘        (a later BackfillBegan: Loading again)
//! ```
//!
//! Whatever fails, the sink's own progress says where to go on; nothing here survives a failure.

use crate::{
    Folds, Patience, PipelineError, Stop, Valve, Watch,
    bulk::Bulk,
    fold::Begun,
    gather::{Gather, Meaning, Tally, past},
    retry::{self, Retry},
    route::{Follow, Routes},
    views::trimmed,
    watch::Delivered,
};
use crossfade_connector::{Delivery, Failure, Guard, Progress, Sink, Stage};
use crossfade_event::{Cut, Event, Partition, Position, Sequence, TableId};
use crossfade_log::{Entries, Entry, EventLog, Lane, LogReader};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

/// Bounds and ends of one deliver.
#[derive(Debug, Clone)]
pub struct DeliverOptions {
    /// The name under which the log keeps what this deliver still needs; `None` for one that only looks in (a replay
    /// from another process's log), which must do with what is kept for others.
    pub consumer: Option<String>,
    /// Bytes of changes in one batch; a quarter more where that brings a transaction to its end.
    pub batch_bytes_max: usize,
    /// Bytes of backfill rows in one batch.
    pub load_bytes_max: usize,
    /// End once the sink has everything up to this cut; `None` follows for ever.
    pub until: Option<Cut>,
    /// How long transient failures are borne.
    pub patience: Patience,
    /// Take what workers have made beside the log: only where they follow the very plan that this deliver follows.
    pub made: bool,
    /// For each partition, the number below which its changes are in the sink already: others have shared the stream.
    pub ahead: Vec<Sequence>,
    /// What the log says of its backfills; shared with whoever else reads the same log.
    pub folds: Folds,
    /// Told once the sink is prepared: whoever stops this deliver and goes on with the same session of the sink waits for it,
    /// for what is cancelled while it prepares takes the session along.
    pub prepared: Option<watch::Sender<bool>>,
}

impl DeliverOptions {
    /// The usual bounds.
    pub fn new(consumer: Option<&str>) -> Self {
        Self {
            consumer: consumer.map(str::to_owned),
            batch_bytes_max: 2 << 20,
            load_bytes_max: 8 << 20,
            until: None,
            patience: Patience::default(),
            made: false,
            ahead: Vec::new(),
            folds: Folds::default(),
            prepared: None,
        }
    }

    /// Whether a change of this number is in the sink already.
    fn is_in(&self, partition: Partition, sequence: Sequence) -> bool {
        self.ahead.get(partition.0 as usize).is_some_and(|upto| sequence < *upto)
    }

    /// The same with smaller batches: each keeps its rows locked until it is committed.
    fn beside_others(&self) -> Self {
        let bounded = |bytes: usize| bytes.min(SHARED_BYTES);
        Self {
            batch_bytes_max: bounded(self.batch_bytes_max),
            load_bytes_max: bounded(self.load_bytes_max),
            ..self.clone()
        }
    }
}

/// Bytes of one batch in tables that others write.
const SHARED_BYTES: usize = 128 << 10;

/// The name under which the log keeps what lookups are rebuilt from.
const LOOKUPS: &str = "lookups";

/// How a deliver ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It was asked to.
    Stopped,
    /// The sink has everything up to `DeliverOptions::until`.
    Reached,
}

/// What the producer hands to the consumer, in order.
enum Work {
    Stage(Stage),
    Deliver {
        delivery: Delivery,
        tally: Tally,
    },
    Follow(Box<Follow>),
    FinishLoad(Progress),
    /// Everything in the log now has been handed over; this is where the log stood.
    Tail(Progress),
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

/// Runs until stopped, until `options.until` is reached, or until something fails for good.
///
/// # Errors
/// The first failure that trying again cannot mend.
pub async fn deliver<K: Sink, L: EventLog>(
    log: &L,
    routes: &Routes,
    sink: &mut K,
    options: &DeliverOptions,
    watch: &dyn Watch,
    valve: &mut Valve,
    mut stop: Stop,
) -> Result<Ending, PipelineError> {
    let mut retry = Retry::new(options.patience);
    let options = &if routes.writes_beside_others() { options.beside_others() } else { options.clone() };
    while !stop.is_requested() {
        match session(log, routes.clone(), sink, options, &mut retry, watch, valve, &mut stop).await {
            Ok(ending) => return Ok(ending),
            Err(Broken::Other(error)) => {
                let failure = retry::passing_of_log(error)?;
                retry.wait("log", failure, watch, &mut stop).await.map_err(retry::log_failed)?;
            }
            Err(Broken::Sink(failure)) => {
                retry.wait("sink", failure, watch, &mut stop).await.map_err(PipelineError::Sink)?;
            }
        }
    }
    Ok(Ending::Stopped)
}

#[expect(clippy::too_many_arguments, reason = "one session of the loop above; a struct would only rename them")]
async fn session<K: Sink, L: EventLog>(
    log: &L,
    mut routes: Routes,
    sink: &mut K,
    options: &DeliverOptions,
    retry: &mut Retry,
    watch: &dyn Watch,
    valve: &mut Valve,
    stop: &mut Stop,
) -> Result<Ending, Broken> {
    let progress = tokio::select! {
        progress = sink.progress() => progress.map_err(Broken::Sink)?,
        () = stop.requested() => return Ok(Ending::Stopped),
    };
    if let Some(progress) = &progress {
        routes.restore(log, &progress.schemas)?;
    }
    tokio::select! {
        prepared = sink.prepare(routes.target()) => prepared.map_err(Broken::Sink)?,
        () = stop.requested() => return Ok(Ending::Stopped),
    }
    if let Some(prepared) = &options.prepared {
        prepared.send_replace(true);
    }
    retry.succeeded("sink", watch);
    let start = progress.unwrap_or_else(|| Progress {
        cut: log.start(),
        stage: Stage::Loading,
        generation: 0,
        stream_from: log.start(),
        sequence: None,
        position: None,
        schemas: Vec::new(),
    });
    // Before the first commit already: what is needed is not to be trimmed away meanwhile.
    if let Some(consumer) = &options.consumer {
        log.hold(consumer, lowest(&start))?;
        if !routes.plan().lookups().is_empty() {
            log.hold(LOOKUPS, &log.start())?;
        }
    }
    let (sender, receiver) = mpsc::channel(1);
    let fold = options.folds.refreshed(log)?;
    let own = fold.backfills.iter().find(|begun| begun.backfill.generation == start.generation);
    let began_at = own.map(|begun| begun.position);
    let producer = Producer {
        gather: Gather::new(log.clone(), routes, fold.visible).telling_transactions(sink.wants_transactions()),
        began_at,
        backfills: fold.backfills,
        log: log.clone(),
        progress: start,
        open: false,
        sender,
        options: options.clone(),
        bulk: Bulk::default(),
    };
    let mut task = AbortOnDrop(tokio::spawn(producer.run()));
    let consumed = consume(log, sink, options, receiver, watch, valve, stop).await?;
    match consumed {
        Some(ending) => Ok(ending),
        // The producer closed the channel: it failed, or was told to stop.
        None => match (&mut task.0).await {
            Ok(produced) => produced.map(|()| Ending::Stopped).map_err(Broken::Other),
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        },
    }
}

/// A task that ends with its owner.
struct AbortOnDrop(JoinHandle<Result<(), PipelineError>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn consume<K: Sink, L: EventLog>(
    log: &L,
    sink: &mut K,
    options: &DeliverOptions,
    mut work: mpsc::Receiver<Work>,
    watch: &dyn Watch,
    valve: &mut Valve,
    stop: &mut Stop,
) -> Result<Option<Ending>, Broken> {
    let mut uncommitted = Uncommitted::default();
    loop {
        let next = tokio::select! {
            biased;
            () = stop.requested() => return Ok(Some(Ending::Stopped)),
            next = work.recv() => next,
        };
        match next {
            None => return Ok(None),
            Some(Work::Stage(stage)) => watch.stage(stage),
            Some(Work::Deliver { delivery, tally }) => {
                tokio::select! {
                    () = valve.opened() => {}
                    () = stop.requested() => return Ok(Some(Ending::Stopped)),
                }
                let (upto, commits) = (delivery.upto.clone(), delivery.commits);
                let applied = sink.apply(delivery, Guard::Forward).await.map_err(Broken::Sink)?;
                uncommitted.add(tally, applied.rejected.len() as u64 + applied.held);
                if commits {
                    if let Some(consumer) = &options.consumer {
                        log.hold(consumer, lowest(&upto))?;
                    }
                    let reached = is_reached(options, &upto);
                    watch.delivered(&std::mem::take(&mut uncommitted).committed(upto));
                    if reached {
                        return Ok(Some(Ending::Reached));
                    }
                }
            }
            Some(Work::Follow(follow)) => follow_in_sink(sink, *follow).await.map_err(Broken::Sink)?,
            Some(Work::FinishLoad(then)) => {
                sink.finish_load().await.map_err(Broken::Sink)?;
                let delivery = Delivery { writes: Vec::new(), upto: then, commits: true };
                sink.apply(delivery, Guard::Forward).await.map_err(Broken::Sink)?;
            }
            Some(Work::Tail(progress)) => {
                watch.at_tail(&progress);
                if is_reached(options, &progress) {
                    return Ok(Some(Ending::Reached));
                }
            }
        }
    }
}

fn is_reached(options: &DeliverOptions, progress: &Progress) -> bool {
    progress.stage == Stage::Streaming && options.until.as_ref().is_some_and(|until| progress.cut.covers(until))
}

/// What of the log is still needed once the sink stands there.
pub(crate) fn lowest(progress: &Progress) -> &Cut {
    match progress.stage {
        Stage::Loading if progress.cut.covers(&progress.stream_from) => &progress.stream_from,
        _ => &progress.cut,
    }
}

async fn follow_in_sink<K: Sink>(sink: &mut K, follow: Follow) -> Result<(), Failure> {
    match follow {
        Follow::Prepare(target) => sink.prepare(&target).await,
        Follow::Alter(changes) => {
            for (before, after) in &changes {
                sink.alter(before, after).await?;
            }
            Ok(())
        }
    }
}

/// Counts of the parts of a sink transaction that is still open.
#[derive(Debug, Default)]
pub(crate) struct Uncommitted {
    tally: Tally,
    quarantined: u64,
}

impl Uncommitted {
    pub(crate) fn add(&mut self, tally: Tally, quarantined: u64) {
        self.tally.read += tally.read;
        self.tally.filtered += tally.filtered;
        self.tally.misses += tally.misses;
        self.tally.made += tally.made;
        for (table, count) in tally.tables {
            *self.tally.tables.entry(table).or_default() += count;
        }
        self.tally.commit_time_us = tally.commit_time_us.or(self.tally.commit_time_us);
        self.quarantined += quarantined;
    }

    pub(crate) fn committed(self, progress: Progress) -> Delivered {
        let quarantined = self.quarantined.min(self.tally.read - self.tally.filtered);
        Delivered {
            progress,
            read: self.tally.read,
            applied: self.tally.read - self.tally.filtered - quarantined,
            filtered: self.tally.filtered,
            quarantined,
            misses: self.tally.misses,
            made: self.tally.made,
            tables: self.tally.tables,
            commit_time_us: self.tally.commit_time_us,
        }
    }
}

/// Reads and transforms.
struct Producer<L: EventLog> {
    log: L,
    gather: Gather<L>,
    /// Where in the source's history the backfill that is loaded began.
    began_at: Option<Position>,
    /// The backfills that the log had when this began.
    backfills: Vec<Begun>,
    /// Where the sink stands once everything handed over so far is in.
    progress: Progress,
    /// Whether the last entry read stands inside a source transaction.
    open: bool,
    sender: mpsc::Sender<Work>,
    options: DeliverOptions,
    bulk: Bulk,
}

/// The consumer has gone: nothing is left to do.
struct Gone;

type Sent = Result<(), Gone>;

impl<L: EventLog> Producer<L> {
    async fn run(mut self) -> Result<(), PipelineError> {
        if self.progress.generation > 0 {
            let upto = match self.progress.stage {
                Stage::Loading => &self.progress.stream_from,
                Stage::Streaming => &self.progress.cut,
            };
            let loaded = self.backfills.partition_point(|begun| begun.backfill.generation <= self.progress.generation);
            self.gather.views.rebuild(&self.log, self.backfills.get(..loaded).unwrap_or_default(), upto).await?;
        }
        loop {
            let ended = match self.progress.stage {
                Stage::Loading => self.load().await?,
                Stage::Streaming => self.stream().await?,
            };
            if ended.is_err() {
                return Ok(());
            }
        }
    }

    fn read(&self, lane: Lane) -> Result<L::Reader, PipelineError> {
        let from = &self.progress.cut;
        Ok(if self.options.made { self.log.read_made(from, lane)? } else { self.log.read(from, lane)? })
    }

    /// Applies a backfill's rows, up to its end in the log.
    async fn load(&mut self) -> Result<Sent, PipelineError> {
        if self.send(Work::Stage(Stage::Loading)).await.is_err() {
            return Ok(Err(Gone));
        }
        let from = self.progress.stream_from.clone();
        let begins = self.backfills.first().is_none_or(|first| first.backfill.generation == 1);
        if self.progress.generation == 0 && !begins && !self.gather.views.is_empty() {
            return Err(trimmed());
        }
        self.gather.views.fill_from_backfill(&self.log, &from, self.progress.generation.max(1)).await?;
        let mut reader = self.read(Lane::Snapshot)?;
        loop {
            let Ok(entries) = self.fill(&mut reader, true).await? else { return Ok(Err(Gone)) };
            // What workers made is another log's.
            if !self.options.made {
                self.options.folds.follow(&self.progress.cut, &entries);
            }
            for entry in &entries.entries {
                let made = reader.made(entry.sequence);
                let meaning = self.gather.snapshot(entry, made)?;
                if matches!(meaning, Meaning::BackfillEnded { generation } if generation == self.progress.generation) {
                    // The place stays before this entry until the load is finished: a restart in between finds it again.
                    // The sink is told of it even if no rows are left: it is where rows are states that the source had.
                    self.progress.cut.set_next(entry.partition, entry.offset);
                    self.gather.touch();
                    return Ok(self.finish_load().await);
                }
                past(&mut self.progress.cut, entry);
                match meaning {
                    Meaning::More | Meaning::Boundary(_) => {}
                    Meaning::Follow(follow) => {
                        if self.follow(follow).await.is_err() {
                            return Ok(Err(Gone));
                        }
                    }
                    Meaning::BackfillBegan { generation, tables } => {
                        let at = self.progress.cut.clone();
                        self.begin_backfill(entry, &at, generation, &tables)?;
                    }
                    Meaning::BackfillEnded { .. } => {}
                }
                if self.progress.generation == 0 && entry.event.is_snapshot() {
                    return Err(PipelineError::Refused(
                        "the log no longer holds the beginning of its backfill, so an empty sink cannot be filled from it; use a sink that was already filled, or begin again with an empty folder".to_owned(),
                    ));
                }
            }
            self.progress.cut = entries.next;
            if self.gather.bytes() >= self.options.load_bytes_max && self.flush(true).await.is_err() {
                return Ok(Err(Gone));
            }
        }
    }

    /// `at` is the place behind the entry that says so.
    fn begin_backfill(
        &mut self,
        entry: &Entry,
        at: &Cut,
        generation: u32,
        tables: &[TableId],
    ) -> Result<(), PipelineError> {
        if generation <= self.progress.generation {
            return Ok(());
        }
        self.progress.generation = generation;
        self.began_at = Some(entry.position);
        self.progress.stage = Stage::Loading;
        self.progress.stream_from.clone_from(at);
        self.progress.cut.clone_from(at);
        if generation > 1 {
            self.gather.truncated(entry, tables)?;
        }
        Ok(())
    }

    async fn finish_load(&mut self) -> Sent {
        self.flush(true).await?;
        self.progress.stage = Stage::Streaming;
        self.progress.cut = self.progress.stream_from.clone();
        self.progress.sequence = None;
        self.progress.position = self.progress.position.max(self.began_at);
        self.progress.schemas = self.gather.routes.followed();
        self.send(Work::FinishLoad(self.progress.clone())).await
    }

    /// Applies the stream, until a later backfill begins.
    async fn stream(&mut self) -> Result<Sent, PipelineError> {
        if self.send(Work::Stage(Stage::Streaming)).await.is_err() {
            return Ok(Err(Gone));
        }
        let mut reader = self.read(Lane::Stream)?;
        // Behind the last entry, inside a transaction too: its parts may have come from any partition.
        let mut at = self.progress.cut.clone();
        loop {
            let Ok(entries) = self.fill(&mut reader, false).await? else { return Ok(Err(Gone)) };
            for entry in entries.entries {
                past(&mut at, &entry);
                match entry {
                    Entry { event: Event::Changed(_), sequence, partition, .. }
                        if self.options.is_in(partition, sequence) => {}
                    Entry { event: Event::Changed(change), sequence, .. } => {
                        let made = reader.made(sequence);
                        self.gather.changed(sequence, change, made)?;
                    }
                    entry => match self.gather.stream(&entry)? {
                        Meaning::More | Meaning::BackfillEnded { .. } => {
                            self.open |= matches!(entry.event, Event::Began(_));
                        }
                        Meaning::Boundary(position) => self.boundary(&at, entry.sequence, position),
                        Meaning::Follow(follow) => {
                            if self.follow(follow).await.is_err() {
                                return Ok(Err(Gone));
                            }
                        }
                        Meaning::BackfillBegan { generation, tables } if generation > self.progress.generation => {
                            if self.flush(true).await.is_err() {
                                return Ok(Err(Gone));
                            }
                            self.begin_backfill(&entry, &at, generation, &tables)?;
                            return Ok(Ok(()));
                        }
                        Meaning::BackfillBegan { .. } => {}
                    },
                }
                if self.is_full() && self.flush(!self.open).await.is_err() {
                    return Ok(Err(Gone));
                }
            }
            at = entries.next;
            if !self.open {
                self.progress.cut.clone_from(&at);
            }
        }
    }

    /// Whether what was gathered is handed over now. A transaction that ends soon is waited for: a part of one is written by
    /// itself, and costs the sink a commit's worth of questions and answers without one.
    fn is_full(&self) -> bool {
        let enough = self.options.batch_bytes_max;
        let limit = if self.open { enough + enough / 4 } else { enough };
        self.gather.bytes() >= limit
    }

    fn boundary(&mut self, at: &Cut, sequence: Sequence, position: Position) {
        self.open = false;
        self.progress.cut.clone_from(at);
        self.progress.sequence = Some(Sequence(sequence.0 + 1));
        self.progress.position = self.progress.position.max(Some(position));
        self.gather.touch();
    }

    /// The next entries. While something waits to be handed over and the log has nothing more, it is handed over as
    /// soon as the sink is free; what comes meanwhile joins it.
    async fn fill(&mut self, reader: &mut L::Reader, loading: bool) -> Result<Result<Entries, Gone>, PipelineError> {
        loop {
            if let Some(entries) = reader.try_next()? {
                return Ok(Ok(entries));
            }
            let ready = !self.gather.is_empty() && (loading || !self.open);
            if !ready {
                // What workers have not made yet is not the end.
                let is_at_tail = !self.open && self.gather.is_empty() && !reader.waits();
                if is_at_tail && self.send(Work::Tail(self.progress.clone())).await.is_err() {
                    return Ok(Err(Gone));
                }
                tokio::select! {
                    entries = reader.next() => return Ok(Ok(entries?)),
                    () = self.sender.closed() => return Ok(Err(Gone)),
                }
            }
            if let Some(until) = self.bulk.lingers(self.gather.bytes()) {
                tokio::select! {
                    entries = reader.next() => return Ok(Ok(entries?)),
                    () = tokio::time::sleep_until(until) => {}
                    () = self.sender.closed() => return Ok(Err(Gone)),
                }
            }
            let work = tokio::select! {
                biased;
                permit = self.sender.reserve() => permit.map(|permit| permit.send(work_of(&mut self.gather, &self.progress, true, &mut self.bulk))),
                entries = reader.next() => return Ok(Ok(entries?)),
            };
            if work.is_err() {
                return Ok(Err(Gone));
            }
        }
    }

    async fn flush(&mut self, commits: bool) -> Sent {
        if self.gather.is_empty() && !(commits && self.open) {
            return Ok(());
        }
        let work = work_of(&mut self.gather, &self.progress, commits, &mut self.bulk);
        self.send(work).await
    }

    /// What was gathered goes before the change, in one sink transaction with it and with the record that it was made: a
    /// change that is on record but was not made would never be made.
    async fn follow(&mut self, follow: Box<Follow>) -> Sent {
        self.flush(false).await?;
        self.progress.schemas = self.gather.routes.followed();
        self.gather.touch();
        self.send(Work::Follow(follow)).await
    }

    async fn send(&mut self, work: Work) -> Sent {
        self.sender.send(work).await.map_err(|_| Gone)
    }
}

fn work_of<L: EventLog>(gather: &mut Gather<L>, progress: &Progress, commits: bool, bulk: &mut Bulk) -> Work {
    let (writes, tally) = gather.take();
    bulk.handed_over(tally.read);
    let upto = Progress { schemas: gather.routes.followed(), ..progress.clone() };
    Work::Deliver { delivery: Delivery { writes, upto, commits }, tally }
}
