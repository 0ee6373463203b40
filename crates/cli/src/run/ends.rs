//! The two tasks of a run, each with the means to do something else for a moment with what it owns.

use super::{
    swap::{self, SwapJob},
    switch::Pause,
    together::Together,
};
use crate::{error::CliError, event_log::AnyLog, registry::AnySink};
use crossfade_connector::{Quarantine, QuarantineFilter, QuarantineOutcome, Sink};
use crossfade_event::Cut;
use crossfade_pipeline::{
    Again, DeliverOptions, Ending, HealReport, PipelineError, RepairReport, Routes, Scratch, Stop, Valve, Wanted,
    Watch, deliver, deliver_together, heal, level, repair, stop_channel,
};
use std::{pin::pin, sync::Arc};
use tokio::sync::{mpsc, oneshot};

/// Memory that one pass of a healing replay may use.
const HEAL_BYTES_MAX: usize = 64 << 20;

/// Something that needs the sink while nothing is being applied.
pub(super) enum SinkJob {
    /// Replays from a place in the log.
    Heal(Cut, oneshot::Sender<Result<HealReport, CliError>>),
    /// Writes rows as they should be.
    Repair(Vec<Wanted>, oneshot::Sender<Result<RepairReport, CliError>>),
    /// Applies quarantined changes again; tells also how many collisions are left, before anything else is applied.
    Retry(QuarantineFilter, oneshot::Sender<Result<(QuarantineOutcome, Option<u64>), CliError>>),
    /// Goes on by other routes: tables have come.
    Adopt(Box<Routes>, oneshot::Sender<Result<(), CliError>>),
    /// Drops quarantined changes; tells the same.
    Discard(QuarantineFilter, oneshot::Sender<Result<(QuarantineOutcome, Option<u64>), CliError>>),
    /// Gives the new columns the names of the old ones. Nothing is delivered after that.
    Swap(Box<SwapJob>, oneshot::Sender<Result<Pause, CliError>>),
}

/// Delivers until stopped; between two batches it does what is asked of the sink.
#[expect(clippy::too_many_arguments, reason = "a task takes all that it owns; a struct would only rename them")]
pub(super) async fn deliver_with_jobs(
    log: AnyLog,
    mut routes: Routes,
    mut sink: AnySink,
    options: DeliverOptions,
    together: Option<Arc<Together>>,
    watch: Arc<dyn Watch>,
    mut valve: Valve,
    mut stop: Stop,
    mut jobs: mpsc::Receiver<SinkJob>,
) -> Result<Ending, PipelineError> {
    loop {
        let (stopper, own_stop) = stop_channel();
        let job = {
            let routes = with_scratch(&log, &routes);
            let (sink, valve, watch) = (&mut sink, &mut valve, &*watch);
            let mut delivering = pin!(async {
                match &together {
                    None => deliver(&log, &routes, sink, &options, watch, valve, own_stop).await,
                    Some(others) => {
                        deliver_together(&log, &routes, sink, &options, &**others, watch, valve, own_stop).await
                    }
                }
            });
            let job = tokio::select! {
                ended = &mut delivering => return ended,
                Some(job) = jobs.recv() => Some(job),
                () = stop.requested() => None,
            };
            stopper.stop();
            delivering.await?;
            job
        };
        match job {
            None => return Ok(Ending::Stopped),
            Some(SinkJob::Adopt(grown, answer)) => {
                let adopted = prepare_as_followed(&log, &grown, &mut sink).await;
                if adopted.is_ok() {
                    routes = *grown;
                }
                let _ = answer.send(adopted);
            }
            Some(SinkJob::Swap(job, answer)) => {
                let routes = with_scratch(&log, &routes);
                let switched = swap::switch_over(&log, &routes, &mut sink, &options, *job, &*watch).await;
                let is_over = switched.is_ok();
                let _ = answer.send(switched);
                if is_over {
                    stop.requested().await;
                    return Ok(Ending::Stopped);
                }
            }
            Some(job) => {
                let routes = match &together {
                    None => Ok(routes.clone()),
                    // What works on the whole sink needs all of it at one place.
                    Some(others) => level(&log, &routes, &mut sink, &options, &**others, &*watch)
                        .await
                        .map(|epoch| routes.clone().with_epoch(epoch)),
                };
                run_job(&log, routes.map_err(CliError::from), &mut sink, job).await;
            }
        }
    }
}

async fn run_job(log: &AnyLog, routes: Result<Routes, CliError>, sink: &mut AnySink, job: SinkJob) {
    // Whoever asked may have gone away; then the answer has no taker.
    match job {
        SinkJob::Heal(from, answer) => {
            let done = async { replay_into(log, &routes?, sink, &from).await };
            let _ = answer.send(done.await);
        }
        SinkJob::Repair(wanted, answer) => {
            let done = async { repair_rows(log, &routes?, sink, &wanted).await };
            let _ = answer.send(done.await);
        }
        SinkJob::Retry(filter, answer) => {
            let done = async { retry(log, &routes?, sink, &filter).await }.await;
            let _ = answer.send(with_what_is_left(sink, done).await);
        }
        // Whoever owns the routes has done it.
        SinkJob::Adopt(_, answer) => drop(answer),
        SinkJob::Swap(_, answer) => drop(answer),
        SinkJob::Discard(filter, answer) => {
            let done = async { discard(log, &routes?, sink, &filter).await }.await;
            let _ = answer.send(with_what_is_left(sink, done).await);
        }
    }
}

/// With the collisions that are left; what cannot be counted is looked at again by the gate itself.
async fn with_what_is_left(
    sink: &mut AnySink,
    done: Result<QuarantineOutcome, CliError>,
) -> Result<(QuarantineOutcome, Option<u64>), CliError> {
    Ok((done?, sink.collisions().await.ok()))
}

/// Makes in the target what the routes need, in the shape to which the sink has followed the source; refused, nothing has
/// changed. What a delivery left open is rolled back, and comes again.
async fn prepare_as_followed(log: &AnyLog, routes: &Routes, sink: &mut AnySink) -> Result<(), CliError> {
    let progress = sink.progress().await?;
    let mut routes = routes.clone();
    if let Some(progress) = progress {
        routes.restore(log, &progress.schemas)?;
    }
    Ok(sink.prepare(routes.target()).await?)
}

/// Applies quarantined changes again.
pub(crate) async fn retry(
    log: &AnyLog,
    routes: &Routes,
    sink: &mut AnySink,
    filter: &QuarantineFilter,
) -> Result<QuarantineOutcome, CliError> {
    let mut again = Again::default();
    loop {
        prepare_as_followed(log, routes, sink).await?;
        let outcome = Quarantine::retry(sink, filter).await.map_err(PipelineError::Sink);
        if let Some(outcome) = again.unless_passing(outcome).await? {
            return Ok(outcome);
        }
    }
}

/// Writes rows as they should be; what a passing failure left undone is done again.
async fn repair_rows(
    log: &AnyLog,
    routes: &Routes,
    sink: &mut AnySink,
    wanted: &[Wanted],
) -> Result<RepairReport, CliError> {
    let mut again = Again::default();
    loop {
        let repaired = repair(log, routes, sink, wanted).await;
        if let Some(report) = again.unless_passing(repaired).await? {
            return Ok(report);
        }
    }
}

/// Drops quarantined changes.
pub(crate) async fn discard(
    log: &AnyLog,
    routes: &Routes,
    sink: &mut AnySink,
    filter: &QuarantineFilter,
) -> Result<QuarantineOutcome, CliError> {
    prepare_as_followed(log, routes, sink).await?;
    Ok(Quarantine::discard(sink, filter).await?)
}

/// Rows that lookups read, and that are too many for memory, go beside the log.
fn with_scratch(log: &AnyLog, routes: &Routes) -> Routes {
    routes.clone().with_scratch(Scratch::new(log.folder_beside("lookups")))
}

/// Replays from a place in the log into the same sink.
pub(super) async fn replay_into(
    log: &AnyLog,
    routes: &Routes,
    sink: &mut AnySink,
    from: &Cut,
) -> Result<HealReport, CliError> {
    let routes = with_scratch(log, routes);
    let mut again = Again::default();
    loop {
        let healed = heal(log, &routes, sink, from, HEAL_BYTES_MAX).await;
        if let Some(report) = again.unless_passing(healed).await? {
            return Ok(report);
        }
    }
}
