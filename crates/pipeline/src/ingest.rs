//! Read, append, make durable, tell the source that it may forget.

use crate::{
    Folds, Patience, PipelineError, Stop, Valve, Watch,
    pace::{Kind, Pace},
    retry::{self, Retry},
    watch::{Backfilling, Copying, Ingested},
};
use crossfade_connector::{Failure, Resume, Source};
use crossfade_event::{Batch, Cut, Event, Frontier, Mark, TableId, Ticket};
use crossfade_log::{EventLog, Lane, LogError, LogReader};
use futures::{StreamExt, future::BoxFuture, stream::FuturesOrdered};
use std::{collections::BTreeMap, time::Duration};

/// Bounds of one ingest.
#[derive(Debug, Clone)]
pub struct IngestOptions {
    /// Bytes handed to the log that are not durable yet; the source waits above it.
    pub in_flight_bytes_max: usize,
    /// How long transient failures are borne.
    pub patience: Patience,
    /// How often the source is asked for its health.
    pub health_every: Duration,
    /// What the log says of its backfills; shared with whoever else reads the same log.
    pub folds: Folds,
    /// Reading goes on while it is open. What was read is appended and confirmed either way.
    pub valve: Valve,
}

impl Default for IngestOptions {
    fn default() -> Self {
        Self {
            in_flight_bytes_max: 16 << 20,
            patience: Patience::default(),
            health_every: Duration::from_secs(5),
            folds: Folds::default(),
            valve: Valve::default(),
        }
    }
}

enum Broken {
    Source(Failure),
    Log(PipelineError),
}

impl From<LogError> for Broken {
    fn from(error: LogError) -> Self {
        Self::Log(error.into())
    }
}

/// Runs until stopped, until the source ends, or until something fails for good. On return everything appended is
/// durable or will come again from the source.
///
/// # Errors
/// The first failure that trying again cannot mend.
pub async fn ingest<S: Source, L: EventLog>(
    source: &mut S,
    log: &L,
    options: IngestOptions,
    watch: &dyn Watch,
    mut stop: Stop,
) -> Result<(), PipelineError> {
    let mut retry = Retry::new(options.patience);
    while !stop.is_requested() {
        match session(source, log, &options, &mut retry, watch, &mut stop).await {
            Ok(()) => return Ok(()),
            Err(Broken::Log(error)) => {
                let failure = retry::passing_of_log(error)?;
                retry.wait("log", failure, watch, &mut stop).await.map_err(retry::log_failed)?;
            }
            Err(Broken::Source(failure)) => {
                retry.wait("source", failure, watch, &mut stop).await.map_err(PipelineError::Source)?;
            }
        }
    }
    Ok(())
}

/// What is in flight: the append's future, with what to do once it is durable.
struct Appended {
    ticket: Ticket,
    said: Ingested,
    result: Result<Cut, LogError>,
}

async fn session<S: Source, L: EventLog>(
    source: &mut S,
    log: &L,
    options: &IngestOptions,
    retry: &mut Retry,
    watch: &dyn Watch,
    stop: &mut Stop,
) -> Result<(), Broken> {
    log.abandon().await?;
    let resume = resume(log, &options.folds, source.marks()).map_err(Broken::Log)?;
    let mut frontier = Frontier::at(resume.position);
    #[cfg(defect = "ack-before-append")]
    let mut hasty = Frontier::at(resume.position);
    tokio::select! {
        opened = source.open(resume) => opened.map_err(Broken::Source)?,
        () = stop.requested() => return Ok(()),
    }
    watch.opened();
    let mut health = tokio::time::interval(options.health_every);
    health.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut in_flight: FuturesOrdered<BoxFuture<'static, Appended>> = FuturesOrdered::new();
    let mut in_flight_bytes = 0usize;
    let mut reading = true;
    let mut pace = Pace::default();
    let mut valve = options.valve.clone();
    // Changes of a transaction whose last part has not come yet.
    let mut unfinished = 0u64;
    while reading || !in_flight.is_empty() {
        tokio::select! {
            biased;
            Some(done) = in_flight.next(), if !in_flight.is_empty() => {
                in_flight_bytes -= done.said.bytes as usize;
                let cut = done.result?;
                let durable = frontier.finish(done.ticket);
                if let Some(durable) = durable {
                    source.confirm(durable).await.map_err(Broken::Source)?;
                }
                watch.ingested(&Ingested { cut, durable, ..done.said });
            }
            () = stop.requested(), if reading => reading = false,
            _ = health.tick(), if reading => watch.health(&source.health().await.map_err(Broken::Source)?),
            () = valve.opened(), if reading && !valve.is_open() => {}
            () = pace.over(|kind| ahead(log, kind, in_flight_bytes)), if reading && pace.pauses() => {}
            batch = source.next(), if reading && valve.is_open() && !pace.pauses() && in_flight_bytes < options.in_flight_bytes_max => {
                match batch.map_err(Broken::Source)? {
                    None => reading = false,
                    Some(batch) => {
                        retry.succeeded("source", watch);
                        let mut said = describe(&batch);
                        unfinished += said.events;
                        said.events = if batch.whole { std::mem::take(&mut unfinished) } else { 0 };
                        in_flight_bytes += said.bytes as usize;
                        let kind = if said.rows.is_empty() { Kind::Changes } else { Kind::Copy };
                        pace.took(kind, said.bytes, ahead(log, kind, in_flight_bytes));
                        #[cfg(defect = "ack-before-append")]
                        {
                            let ticket = hasty.begin(batch.upto);
                            if let Some(durable) = hasty.finish(ticket) {
                                source.confirm(durable).await.map_err(Broken::Source)?;
                                // A slow disk: the source has heard of it long before the log has it.
                                tokio::time::sleep(Duration::from_millis(1_500)).await;
                            }
                        }
                        let ticket = frontier.begin(batch.upto);
                        let appending = log.append(batch);
                        in_flight.push_back(Box::pin(async move { Appended { ticket, said, result: appending.await } }));
                    }
                }
            }
        }
    }
    Ok(())
}

/// How far ingest is ahead of a near reader, in bytes of the log.
fn ahead<L: EventLog>(log: &L, kind: Kind, in_flight_bytes: usize) -> u64 {
    let behind = match kind {
        Kind::Changes => log.behind_bytes(),
        Kind::Copy => log.unread_bytes(),
    };
    behind.map_or(0, |behind| behind + in_flight_bytes as u64)
}

fn resume<L: EventLog>(log: &L, folds: &Folds, marks: Option<&str>) -> Result<Resume, PipelineError> {
    let snapshot = folds.refreshed(log)?.state;
    let mark = marks.map(|prefix| last_mark(log, prefix)).transpose()?.flatten();
    Ok(Resume { position: log.tail().position, schemas: log.latest_schemas(), snapshot, mark })
}

/// The last mark of a source, which stands at the log's end if anywhere.
fn last_mark<L: EventLog>(log: &L, prefix: &str) -> Result<Option<Mark>, PipelineError> {
    let mut reader = log.read(&log.near_end(), Lane::Stream)?;
    let mut last = None;
    while let Some(entries) = reader.try_next()? {
        for entry in entries.entries {
            if let Event::Marked(mark) = entry.event
                && *mark.prefix == *prefix
            {
                last = Some(mark);
            }
        }
    }
    Ok(last)
}

fn describe(batch: &Batch) -> Ingested {
    let mut rows: BTreeMap<TableId, u64> = BTreeMap::new();
    let (mut copying, mut backfills) = (Vec::new(), Vec::new());
    let (mut events, mut bytes) = (0u64, 0u64);
    for stamped in &batch.events {
        bytes += stamped.event.size_bytes() as u64 + 24;
        match &stamped.event {
            Event::Rows(block) => {
                events += u64::from(block.count);
                *rows.entry(block.table).or_default() += u64::from(block.count);
            }
            Event::Changed(_) => events += 1,
            Event::SnapshotBegan { table, chunks } => copying.push((*table, Copying::Began(chunks.len() as u64))),
            Event::ChunkEnded { table, .. } => copying.push((*table, Copying::ChunkEnded)),
            Event::SnapshotEnded { table, .. } => copying.push((*table, Copying::Ended)),
            Event::BackfillBegan(backfill) => backfills.push(Backfilling::Began(backfill.generation)),
            Event::BackfillEnded { generation } => backfills.push(Backfilling::Ended(*generation)),
            _ => {}
        }
    }
    Ingested { cut: Cut::default(), durable: None, events, rows, copying, backfills, bytes }
}
