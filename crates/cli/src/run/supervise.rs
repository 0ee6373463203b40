//! A run under way: its tasks, their owner, and their end. Every task started here is joined here.

use super::{
    adding::{Adder, Adding},
    collisions,
    control::{Answers, Asking, Shared},
    ends::deliver_with_jobs,
    fallen,
    keep::Keeper,
    latency, reads,
    session::Session,
    switch::{Switching, install},
    together::{Together, share},
    verifier, views,
    watcher::Watcher,
};
use crate::{commands::folder::DELIVER, error::CliError, spec::Part, wiring};
use crossfade_connector::{Inspect, Sink, Stage};
use crossfade_control::{Command, Fall, Overlay, Verdict, evaluate, fall, pause_reason};
use crossfade_event::{Event, TableName};
use crossfade_log::{EventLog, Lane, LogReader};
use crossfade_observe::{Listening, StatusFile, Terminal, TerminalMode, socket::ControlSocket};
use crossfade_pipeline::{
    DeliverOptions, Folds, IngestOptions, PipelineError, Stop, Stopper, ValveHandle, Watch, ingest, stop_channel, valve,
};
use crossfade_state::WorkFolder;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::mpsc, task::JoinSet};

/// How often status file, terminal and gates look.
const TICK: Duration = Duration::from_millis(250);

/// How often an idle log drops what its retention allows; a busy one does so by itself.
const RETENTION: Duration = Duration::from_secs(60);

/// A run under way.
pub(super) struct Running {
    session: Session,
    shared: Arc<Shared>,
    keeper: Keeper,
    stopper: Stopper,
    stop: Stop,
    loops: JoinSet<Result<(), PipelineError>>,
    helpers: JoinSet<()>,
    /// Holds ingest while there is no room for the log.
    room: ValveHandle,
    quiet: bool,
    limit: Option<u64>,
}

impl Running {
    /// Starts both loops, or the one that is this process's part, and everything beside them.
    pub(super) async fn start(session: Session, quiet: bool, limit: Option<u64>) -> Result<Self, CliError> {
        latency::take_baseline(&session).await?;
        let (stopper, stop) = stop_channel();
        let part = session.spec.part;
        let (watcher, facts) = Watcher::new(session.log.clone(), part);
        let watcher = Arc::new(watcher);
        let keeper = Keeper::new(&session, watcher.clone())?;
        let (room, reading) = valve();
        let (valve_handle, valve) = valve();
        if let Some(Overlay::Paused { by, reason }) = &session.journal.migration().overlay {
            valve_handle.close(format!("paused by {by}: {reason}"));
        }
        let source = match part {
            Some(Part::Deliver) => None,
            _ => Some(wiring::source(&session.spec, session.folder.dir())?),
        };
        let mut sink = match part {
            Some(Part::Ingest) => None,
            _ => Some(wiring::sink(&session.spec)?),
        };
        count_what_is_there(&session, &keeper.folds(), sink.as_mut(), &watcher).await?;
        let (jobs, job_receiver) = mpsc::channel(4);
        let (askers, asked) = mpsc::channel(4);
        let (switches, switch_asked) = mpsc::channel(1);
        let asking = Asking { jobs, askers, switches };
        let together = sink.as_ref().and_then(|_| Together::of(&session, watcher.facts())).filter(|_| limit.is_none());
        let shared = Arc::new(Shared::new(&session, watcher.clone(), valve_handle, asking, together.clone()));
        // New tables need both loops in one process.
        let adder = source.as_ref().filter(|_| part.is_none()).map(Adder::of);
        let adding = adder.map(|adder| Adding::new(&session, adder, shared.clone(), asked));

        let mut loops = JoinSet::new();
        if let Some(mut source) = source {
            let (log, watch, stop) = (session.log.clone(), watcher.clone(), stop.clone());
            let options = IngestOptions { folds: keeper.folds(), valve: reading, ..IngestOptions::default() };
            loops.spawn(async move { ingest(&mut source, &log, options, &*watch, stop).await });
        }
        if let Some(sink) = sink {
            let (log, routes, watch, stop) =
                (session.log.clone(), session.routes.clone(), watcher.clone(), stop.clone());
            let watch: Arc<dyn Watch> = watch;
            let options = DeliverOptions { made: true, folds: keeper.folds(), ..DeliverOptions::new(Some(DELIVER)) };
            if let Some(together) = together.clone() {
                let (spec, routes) = (session.spec.clone(), routes.clone());
                loops.spawn(share(together, spec, routes, options.clone(), watch.clone(), stop.clone()));
            }
            loops.spawn(async move {
                let delivering =
                    deliver_with_jobs(log, routes, sink, options, together, watch, valve, stop, job_receiver);
                delivering.await.map(drop)
            });
        }
        let mut helpers = JoinSet::new();
        helpers.spawn(write_journal(shared.clone(), facts));
        helpers.spawn(keeper.clone().run(stop.clone()));
        helpers.spawn(Switching::new(shared.clone(), switch_asked).run());
        if let Some(baseline) = session.journal.migration().baseline.filter(|_| shared.gates.latency.is_some()) {
            helpers.spawn(latency::watch(shared.clone(), baseline));
        }
        if shared.gates.collisions.is_some() && part != Some(Part::Ingest) {
            helpers.spawn(collisions::watch(shared.clone()));
        }
        if shared.spec.verify.continuous && part.is_none() && shared.spec.reverse.is_none() && limit.is_none() {
            helpers.spawn(verifier::run(shared.clone()));
        }
        if shared.spec.switch.is_some() && part.is_none() && shared.spec.reverse.is_none() {
            helpers.spawn(install(shared.clone()));
            helpers.spawn(reads::keep(shared.clone()));
        }
        if shared.spec.views.is_some() && part.is_none() && shared.spec.reverse.is_none() {
            let (catalog, target) = (session.plan.catalog.clone(), session.routes.target().clone());
            helpers.spawn(views::install(shared.clone(), catalog, target));
        }
        if let Some(adding) = adding {
            helpers.spawn(adding.run());
        }
        let socket = ControlSocket::bind(&WorkFolder::socket_path(session.folder.dir()))
            .map_err(|error| CliError::io("opening the control socket", &error))?;
        let (answers, mut ended) = (Arc::new(Answers(shared.clone())), stop.clone());
        helpers.spawn(async move {
            if let Err(error) = socket.serve(answers, async move { ended.requested().await }).await {
                tracing::warn!("the control socket has ended: {error}");
            }
        });
        Ok(Self { session, shared, keeper, stopper, stop, loops, helpers, room, quiet, limit })
    }

    /// Shows the status to whoever can reach the address, until the run ends.
    pub(super) fn show_on(&mut self, listening: Listening) {
        let (shared, mut closed) = (self.shared.clone(), self.shared.closed());
        self.helpers.spawn(async move {
            let showing = listening.serve(move || shared.status_now());
            let ended = tokio::select! {
                ended = showing => ended,
                () = closed.wait() => Ok(()),
            };
            if let Err(error) = ended {
                tracing::warn!("nothing is shown on the address of --listen any more: {error}");
            }
        });
    }

    /// Stays until the run ends: by a signal, by having caught up, or by failing for good.
    pub(super) async fn until(mut self, caught_up: bool) -> Result<(), CliError> {
        let mut terminal = Terminal::new(if self.quiet { TerminalMode::Quiet } else { TerminalMode::Auto });
        let begun = Instant::now();
        let mut file = StatusFile::new(
            WorkFolder::status_path(self.session.folder.dir()),
            WorkFolder::history_path(self.session.folder.dir()),
        );
        let mut tick = tokio::time::interval(TICK);
        let mut retention = tokio::time::interval(RETENTION);
        let mut signals = Signals::listen()?;
        let reached = self.shared.clone();
        let mut catching_up =
            Box::pin(
                async move { if caught_up { reached.wait_caught_up().await } else { std::future::pending().await } },
            );
        let mut asked = self.shared.stop_asked();
        let mut outcome = Ok(());
        loop {
            tokio::select! {
                Some(ended) = self.loops.join_next() => {
                    match ended {
                        Ok(Ok(())) if self.stop.is_requested() || self.limit.is_some() => {}
                        Ok(Ok(())) => outcome = Err(CliError::failed("the source has come to its end")),
                        Ok(Err(error)) => outcome = outcome.and(Err(CliError::from(error))),
                        Err(error) => outcome = Err(CliError::failed(format!("a task ended badly: {error}"))),
                    }
                    self.stopper.stop();
                    if self.loops.is_empty() {
                        break;
                    }
                }
                reached = &mut catching_up, if !self.stop.is_requested() => {
                    outcome = outcome.and(reached.map(drop));
                    self.stopper.stop();
                }
                _ = asked.recv() => self.stopper.stop(),
                second = signals.next(), if !signals.over => {
                    self.stopper.stop();
                    if second {
                        // Everything is safe to drop at any moment; that is what the log and the sink's position are for.
                        break;
                    }
                }
                _ = retention.tick() => {
                    if let Err(error) = self.session.log.retain() {
                        tracing::warn!("old segments of the log could not be dropped: {error}");
                    }
                }
                _ = tick.tick() => {
                    let status = self.shared.status_now();
                    if let Some(fall) = self.judge(&status).await {
                        outcome = outcome.and(Err(fallen::begun(&self.session.spec, &fall)));
                        self.stopper.stop();
                    }
                    tell_the_others(&self.session, &status);
                    if let Err(error) = file.write_if_due(begun.elapsed(), &status) {
                        tracing::warn!("the status file could not be written: {error}");
                    }
                    terminal.show(begun.elapsed(), &status);
                    if self.limit.is_some_and(|limit| status.conservation.applied >= limit) {
                        self.stopper.stop();
                    }
                }
            }
        }
        terminal.finish();
        self.end(&mut file).await;
        outcome
    }

    /// Gates: warns, pauses, or has the journal begin a rollback; then returns by which.
    async fn judge(&self, status: &crossfade_observe::Status) -> Option<Fall> {
        if self.session.spec.part == Some(Part::Ingest) || !self.shared.leads() {
            // They judge what is applied, and whoever leads can pause it.
            return None;
        }
        if self.shared.journal.migration().phase.is_switching() {
            // The guards have asked them; a freeze ends by itself, and then they are asked again.
            return None;
        }
        let measures = self.shared.measures(status);
        let verdicts = evaluate(&self.shared.gates, &measures);
        self.keep_room(&verdicts);
        let wanted = fall(&verdicts, &measures);
        let has_lasted = self.shared.has_lasted(wanted.as_ref());
        let wanted = wanted.filter(|_| has_lasted);
        let fell = match &wanted {
            Some(wanted) => self.shared.fall_back(wanted).await.then(|| wanted.clone()),
            None => None,
        };
        // Where nothing may be taken back (somebody has not been told yet who has the authority, say) it pauses.
        let held = wanted.filter(|_| fell.is_none());
        let pause = pause_reason(&verdicts).or_else(|| held.map(|fall| (fall.by(), fall.verdict.says())));
        if let Some((by, reason)) = pause
            && fell.is_none()
            && self.shared.valve.reason().is_none()
            && let Err(refused) = self.shared.pause(by, reason).await
        {
            tracing::warn!("a gate could not pause: {}", refused.error);
        }
        for verdict in self.shared.set_verdicts(verdicts) {
            tracing::warn!(gate = %verdict.gate, "a gate does not hold any more: {}", verdict.says());
        }
        fell
    }

    /// A full disk is not helped by holding deliver alone: what is read goes into the log. Reading goes on by itself once
    /// there is room. A slow source is not helped either, for it is reading that it is slow by: until `resume`.
    fn keep_room(&self, verdicts: &[Verdict]) {
        let full = verdicts.iter().find(|verdict| verdict.gate == "disk" && verdict.pauses()).map(Verdict::says);
        let slow = match self.shared.journal.migration().overlay {
            Some(Overlay::Paused { by, reason }) if by == "gate latency" => Some(reason),
            _ => None,
        };
        match (full.or(slow), self.room.reason()) {
            (Some(why), None) => self.room.close(why),
            (None, Some(_)) => self.room.open(),
            _ => {}
        }
    }

    async fn end(mut self, file: &mut StatusFile) {
        self.loops.abort_all();
        while self.loops.join_next().await.is_some() {}
        let status = self.shared.status_now().not_running();
        if let Err(error) = file.write(&status) {
            tracing::warn!("the status file could not be written: {error}");
        }
        if let Err(error) = self.keeper.keep(true).await {
            tracing::warn!("the state could not be written and stays as it was: {error}");
        }
        self.shared.close();
        let drained =
            tokio::time::timeout(Duration::from_secs(3), async { while self.helpers.join_next().await.is_some() {} });
        if drained.await.is_err() {
            self.helpers.abort_all();
        }
    }
}

/// Where several processes do a migration, each says in the log what it does.
fn tell_the_others(session: &Session, status: &crossfade_observe::Status) {
    if let Some(part) = session.spec.part {
        let waiting = status.retrying.as_ref().map(|retrying| retrying.failure.clone());
        session.log.tell(part.name(), status.lag.events, waiting);
    }
}

/// Puts facts into the journal, one after another.
async fn write_journal(shared: Arc<Shared>, mut facts: mpsc::UnboundedReceiver<Command>) {
    let mut closed = shared.closed();
    loop {
        let fact = tokio::select! {
            fact = facts.recv() => fact,
            () = closed.wait() => facts.try_recv().ok(),
        };
        let Some(fact) = fact else { return };
        if let Err(error) = shared.journal.command(fact, &shared.by).await {
            tracing::debug!("the journal takes no such fact now: {error}");
        }
    }
}

/// Fills the counters with what the log holds and the sink does not, and with the tables' estimates.
async fn count_what_is_there(
    session: &Session,
    folds: &Folds,
    sink: Option<&mut crate::registry::AnySink>,
    watcher: &Watcher,
) -> Result<(), CliError> {
    let part = session.spec.part;
    for table in &session.plan.catalog.tables {
        watcher.counters.estimate(&table.name, table.rows_estimate);
    }
    if session.log.tail().cut == session.log.start() {
        return Ok(());
    }
    let fold = folds.refreshed(&session.log)?;
    watcher.resumed(&fold.state);
    // A sink that cannot be asked yet is deliver's matter, with its retries.
    let progress = match sink {
        Some(sink) => sink.progress().await.ok().flatten(),
        None => None,
    };
    let from = progress.as_ref().map_or_else(|| session.log.start(), |progress| progress.cut.clone());
    let mut waiting = 0u64;
    let streaming = progress.as_ref().is_some_and(|progress| progress.stage == Stage::Streaming);
    let stream_from = progress.as_ref().filter(|_| !streaming).map_or_else(|| from.clone(), |p| p.stream_from.clone());
    for (lane, from) in [(Lane::Snapshot, &from), (Lane::Stream, &stream_from)] {
        // Of one loop's process it is not known how much there is: it says how far apart both stand in the log.
        if part.is_some() || streaming && lane == Lane::Snapshot {
            continue;
        }
        let mut reader = session.log.read(from, lane)?;
        while let Some(entries) = reader.try_next()? {
            for entry in entries.entries {
                waiting += match &entry.event {
                    Event::Changed(_) => 1,
                    Event::Rows(block) => u64::from(block.count),
                    _ => 0,
                };
            }
        }
    }
    watcher.counters.backlog(waiting);
    let names: Vec<TableName> = session.log.latest_schemas().iter().map(|schema| schema.name.clone()).collect();
    if streaming {
        watcher.counters.loaded(&names);
        watcher.progress.send_replace(progress);
        return Ok(());
    }
    for (id, copy) in fold.state.tables {
        if let Some(schema) = session.log.latest_schemas().iter().find(|schema| schema.id == id) {
            let (total, done) = (copy.chunks.len() as u64, copy.done.len() as u64);
            watcher.counters.chunks(&schema.name, total, done, copy.ended);
        }
    }
    Ok(())
}

/// SIGINT and SIGTERM.
pub(super) struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    first: bool,
    pub(super) over: bool,
}

impl Signals {
    pub(super) fn listen() -> Result<Self, CliError> {
        use tokio::signal::unix::{SignalKind, signal};
        let listen = |kind| signal(kind).map_err(|error| CliError::io("listening for signals", &error));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            first: true,
            over: false,
        })
    }

    /// Waits for the next one; true for any but the first.
    pub(super) async fn next(&mut self) -> bool {
        let received = tokio::select! {
            received = self.interrupt.recv() => received,
            received = self.terminate.recv() => received,
        };
        self.over = received.is_none();
        !std::mem::replace(&mut self.first, false)
    }
}

/// The source's end of history now.
pub(super) async fn barrier(shared: &Shared) -> Result<Option<crossfade_event::Position>, CliError> {
    Ok(wiring::source_inspect(&shared.spec)?.barrier().await?)
}
