//! Several delivers, one lead (docs/adr/0016). Whoever has it delivers as one that is alone, until others are there and the
//! stream can be shared; then it looks after those who apply it, partition by partition, until it must take all back.
//!
//! ```text
//!  stand by ──lead──▶ take back ──▶ alone: level, then up to the log's end ──▶ alone ──others are there──▶ shared ─┐
//!     ▲                  ▲                                                                                         │
//!     └── lead lost      └── somebody asks · paused · nobody else is there any more ────────────────────────────────┘
//! ```

use crate::{
    DeliverOptions, Ending, PipelineError, Routes, Stop, Valve, Watch,
    deliver::{Uncommitted, deliver, lowest},
    retry::Retry,
    shutdown::{stop_channel, valve},
};
use crossfade_connector::{Failure, Gathered, LEADING, Lead, Stage};
use crossfade_event::{Cut, Partition};
use crossfade_log::EventLog;
use std::time::Duration;
use tokio::{sync::watch, time::Instant};

/// How often it is asked for the lead, and how often whoever has it looks after the others.
const LOOK: Duration = Duration::from_millis(250);

/// How often the stream is offered to others that it could not be shared with before.
const OFFER: Duration = Duration::from_secs(3);

/// A sharing that lasted less was hardly worth it: the next one waits a little, and longer each time.
const STEADY: Duration = Duration::from_secs(10);

/// The longest of these pauses.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// The first of them.
const PAUSE_MIN: Duration = Duration::from_millis(500);

/// What a deliver knows of the others that deliver the same migration, and tells them.
pub trait Others: Send + Sync {
    /// A turn: a number that is higher than all that were given before, whoever asked.
    ///
    /// # Errors
    /// When the log cannot be written.
    fn turn(&self) -> Result<u64, PipelineError>;

    /// How long whoever has the lead may be silent before it is another's.
    fn silent(&self) -> Duration;

    /// Whether some partitions are theirs.
    fn are_there(&self) -> bool;

    /// We have the lead under this epoch, or no longer.
    fn we_lead(&self, epoch: Option<u64>);
}

/// Delivers until stopped or until something fails for good, beside others.
///
/// # Errors
/// The first failure that neither trying again nor leaving the lead to another mends.
#[expect(clippy::too_many_arguments, reason = "what deliver takes, and the others")]
pub async fn deliver_together<K: Lead, L: EventLog>(
    log: &L,
    routes: &Routes,
    sink: &mut K,
    options: &DeliverOptions,
    others: &dyn Others,
    watch: &dyn Watch,
    valve: &mut Valve,
    mut stop: Stop,
) -> Result<Ending, PipelineError> {
    let mut retry = Retry::new(options.patience);
    let mut before: Option<String> = None;
    loop {
        if !stand_by(sink, others.silent(), &mut retry, watch, &mut stop).await? {
            return Ok(Ending::Stopped);
        }
        retry.succeeded("sink", watch);
        let lead = Leading { log, routes, sink: &mut *sink, options, others, watch };
        let error = match Box::pin(lead.work(valve, &mut stop)).await {
            Ok(ending) => return Ok(ending),
            Err(error) => error,
        };
        others.we_lead(None);
        match error {
            PipelineError::Sink(failure) if failure.is_transient() => {
                retry.wait("sink", failure, watch, &mut stop).await.map_err(PipelineError::Sink)?;
            }
            PipelineError::Sink(failure) if failure.doing == LEADING => {
                tracing::info!(%failure, "the lead is asked for again");
            }
            PipelineError::Sink(failure) => {
                // Either the lead has gone to another, or it is as it says: then it says so again.
                let told = failure.to_string();
                if before.as_ref() == Some(&told) {
                    return Err(PipelineError::Sink(failure));
                }
                tracing::warn!(%failure, "the lead is asked for again");
                before = Some(told);
            }
            other => return Err(other),
        }
    }
}

/// Waits for the lead; false when told to stop.
async fn stand_by<K: Lead>(
    sink: &mut K,
    silent: Duration,
    retry: &mut Retry,
    watch: &dyn Watch,
    stop: &mut Stop,
) -> Result<bool, PipelineError> {
    let mut told = false;
    while !stop.is_requested() {
        let asked = async {
            let leads = sink.try_lead(silent).await?;
            let place = if leads { None } else { sink.progress().await? };
            Ok::<_, Failure>((leads, place))
        };
        match asked.await {
            Ok((true, _)) => return Ok(true),
            Ok((false, place)) => {
                retry.succeeded("sink", watch);
                if !std::mem::replace(&mut told, true) {
                    tracing::info!(
                        "another deliver has the lead; this one takes its share of the partitions, and stands by to lead"
                    );
                }
                if let Some(place) = place {
                    watch.elsewhere(&place);
                }
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => {}
                    () = stop.requested() => {}
                }
            }
            Err(failure) => retry.wait("sink", failure, watch, stop).await.map_err(PipelineError::Sink)?,
        }
    }
    Ok(false)
}

/// Takes all partitions back and brings them level, though delivering is paused: whoever works on the whole sink needs
/// all of it at one place.
///
/// # Errors
/// As [`deliver`], and when somebody else has the lead. Returns the epoch under which it leads now.
pub async fn level<K: Lead, L: EventLog>(
    log: &L,
    routes: &Routes,
    sink: &mut K,
    options: &DeliverOptions,
    others: &dyn Others,
    watch: &dyn Watch,
) -> Result<u64, PipelineError> {
    if !sink.try_lead(others.silent()).await.map_err(PipelineError::Sink)? {
        let failure = Failure::refused(
            "taking the partitions back",
            "another deliver has the lead",
            "Say it on the machine of that one; `crossfade status` tells which it is",
        );
        return Err(PipelineError::Sink(failure));
    }
    let epoch = others.turn()?;
    others.we_lead(Some(epoch));
    let gathered = sink.take_back(epoch).await.map_err(PipelineError::Sink)?;
    let Some(level) = gathered.level else { return Ok(epoch) };
    let options = DeliverOptions { ahead: gathered.ahead, until: Some(level), ..options.clone() };
    let (_handle, mut open) = valve();
    let (_stopper, never) = stop_channel();
    deliver(log, &routes.clone().with_epoch(epoch), sink, &options, watch, &mut open, never).await.map(|_| epoch)
}

/// One who has the lead.
struct Leading<'a, K, L> {
    log: &'a L,
    routes: &'a Routes,
    sink: &'a mut K,
    options: &'a DeliverOptions,
    others: &'a dyn Others,
    watch: &'a dyn Watch,
}

impl<K: Lead, L: EventLog> Leading<'_, K, L> {
    async fn work(mut self, valve: &mut Valve, stop: &mut Stop) -> Result<Ending, PipelineError> {
        let epoch = self.others.turn()?;
        self.others.we_lead(Some(epoch));
        let routes = self.routes.clone().with_epoch(epoch);
        let mut pause = Duration::ZERO;
        loop {
            let gathered = self.sink.take_back(epoch).await.map_err(PipelineError::Sink)?;
            if self.alone_until_level(&routes, gathered, valve, stop).await? == Ending::Stopped
                || self.alone(&routes, Instant::now() + pause, valve, stop).await? == Ending::Stopped
            {
                return Ok(Ending::Stopped);
            }
            let began = Instant::now();
            if self.shared(valve, stop).await? == Ending::Stopped {
                return Ok(Ending::Stopped);
            }
            pause = match began.elapsed() < STEADY {
                true => (pause * 2).clamp(PAUSE_MIN, PAUSE_MAX),
                false => Duration::ZERO,
            };
        }
    }

    /// Whatever made it take all back is passed where the log ended then.
    async fn alone_until_level(
        &mut self,
        routes: &Routes,
        gathered: Gathered,
        valve: &mut Valve,
        stop: &Stop,
    ) -> Result<Ending, PipelineError> {
        let mut until = self.log.tail().cut;
        for partition in (0..self.log.partitions()).map(Partition) {
            let level = gathered.level.as_ref().map_or_else(Default::default, |level: &Cut| level.next(partition));
            until.set_next(partition, until.next(partition).max(level));
        }
        let options = DeliverOptions { ahead: gathered.ahead, until: Some(until), ..self.options.clone() };
        deliver(self.log, routes, self.sink, &options, self.watch, valve, stop.clone()).await
    }

    /// Delivers alone until the stream is shared, `from` then on at the earliest.
    async fn alone(
        &mut self,
        routes: &Routes,
        mut from: Instant,
        valve: &mut Valve,
        stop: &Stop,
    ) -> Result<Ending, PipelineError> {
        let mut told: Option<String> = None;
        loop {
            if self.others.are_there() && valve.is_open() && from <= Instant::now() {
                from = Instant::now() + OFFER;
                match self.offer(routes).await? {
                    Ok(()) => return Ok(Ending::Reached),
                    Err(why) => {
                        if told.as_ref() != Some(&why) {
                            tracing::info!(%why, "the stream is not shared for now: this deliver applies all of it");
                            told = Some(why);
                        }
                    }
                }
            }
            let (stopper, own_stop) = stop_channel();
            let looks = valve.clone();
            let mut asked = stop.clone();
            let (prepared, mut is_prepared) = watch::channel(false);
            let options = DeliverOptions { prepared: Some(prepared), ..self.options.clone() };
            let mut delivering = Box::pin(deliver(self.log, routes, self.sink, &options, self.watch, valve, own_stop));
            let offered = async {
                // Stopped while it prepares, however long that takes, the sink would lose its session, and with it the lead.
                let _ = is_prepared.wait_for(|prepared| *prepared).await;
                // What was in vain a moment ago is not what this deliver is for, however long it took to prepare.
                let rest = if told.is_some() { OFFER } else { Duration::ZERO };
                until_offered(self.others, &looks, from.max(Instant::now() + rest)).await;
            };
            tokio::select! {
                ended = &mut delivering => return ended,
                () = asked.requested() => {
                    stopper.stop();
                    delivering.await?;
                    return Ok(Ending::Stopped);
                }
                () = offered => {
                    stopper.stop();
                    delivering.await?;
                }
            }
        }
    }

    /// Shares the stream, if the shapes that are followed by now allow it, and the sink.
    async fn offer(&mut self, routes: &Routes) -> Result<Result<(), String>, PipelineError> {
        // What was handed over in part and not committed is rolled back with it, and comes again.
        let place = self.sink.progress().await.map_err(PipelineError::Sink)?;
        let mut routes = routes.clone();
        routes.restore(self.log, place.as_ref().map_or(&[], |place| &place.schemas))?;
        match routes.keeps_alone() {
            Some(why) => Ok(Err(why)),
            None => self.sink.share(self.log.partitions()).await.map_err(PipelineError::Sink),
        }
    }

    /// Looks after those who apply the stream, until all partitions must come back.
    async fn shared(&mut self, valve: &Valve, stop: &mut Stop) -> Result<Ending, PipelineError> {
        tracing::info!("the stream is shared with other delivers");
        loop {
            let overseen = self.sink.oversee().await.map_err(PipelineError::Sink)?;
            if let Some(consumer) = &self.options.consumer {
                self.log.hold(consumer, lowest(&overseen.progress))?;
            }
            self.watch.delivered(&Uncommitted::default().committed(overseen.progress.clone()));
            if overseen.progress.cut.covers(&self.log.tail().cut) && overseen.progress.stage == Stage::Streaming {
                self.watch.at_tail(&overseen.progress);
            }
            let why = match () {
                () if !overseen.asks.is_empty() => format!("asked for by the owners of partitions {:?}", overseen.asks),
                () if !valve.is_open() => "delivering is paused".to_owned(),
                () if !self.others.are_there() => "no other deliver has any".to_owned(),
                () => {
                    tokio::select! {
                        () = tokio::time::sleep(LOOK) => continue,
                        () = stop.requested() => return Ok(Ending::Stopped),
                    }
                }
            };
            tracing::info!(%why, "all partitions are taken back");
            return Ok(Ending::Reached);
        }
    }
}

/// Waits until the stream may be offered to others, `from` then on at the earliest.
async fn until_offered(others: &dyn Others, valve: &Valve, from: Instant) {
    tokio::time::sleep_until(from).await;
    while !others.are_there() || !valve.is_open() {
        tokio::time::sleep(LOOK).await;
    }
}
