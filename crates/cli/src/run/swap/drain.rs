//! What is still on its way is written by the session that holds the tables, and committed with the switch.
//!
//! Delivery goes on as ever, through a sink that at some moment takes the locks ([`Holding`]): so whatever a delivery needs
//! to begin, rows that lookups read above all, is there before anybody waits.

use super::millis;
use crate::{
    error::{CliError, Exit},
    event_log::AnyLog,
    registry::AnySink,
    run::{control::Shared, switch::Pause},
    wiring,
};
use crossfade_connector::{
    Applied, Delivery, Failure, Guard, Inspect, Progress, Sink, Stage, Target, TargetTable,
    switch::{Given, Locked},
};
use crossfade_control::{By, Command};
use crossfade_event::{Key, Position, Row, TableId, TableName};
use crossfade_pipeline::{DeliverOptions, Delivered, Routes, Watch, deliver, stop_channel, valve};
use crossfade_postgres::PostgresSink;
use std::{
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use tokio::sync::{oneshot, watch};

/// A switch within tables, for whoever owns the sink.
pub(in crate::run) struct SwapJob {
    pub(in crate::run) shared: Arc<Shared>,
    pub(in crate::run) by: By,
    /// The tables whose columns change places.
    pub(in crate::run) tables: Vec<TableName>,
    /// What is done in the one commit.
    pub(in crate::run) sql: String,
    pub(in crate::run) deadline: Duration,
    pub(in crate::run) lock_timeout: Duration,
    /// The authority's epoch as it stands.
    pub(in crate::run) epoch: u64,
}

/// From the freeze to the point of no return. Until that everything can be taken back: nothing is committed.
pub(in crate::run) async fn switch_over(
    log: &AnyLog,
    routes: &Routes,
    sink: &mut AnySink,
    options: &DeliverOptions,
    job: SwapJob,
    real: &dyn Watch,
) -> Result<Pause, CliError> {
    let AnySink::Postgres(sink) = sink else { return Err(CliError::not_built("a switch within tables of this sink")) };
    let ask = Ask::default();
    let later = Later { real, ask: &ask, kept: Mutex::default(), progress: watch::Sender::new(None) };
    let drained = drained(log, routes, sink, options, &job, (&ask, &later)).await;
    let (locked, pause) = match drained {
        Ok(drained) => drained,
        Err(error) => {
            if ask.held.load(SeqCst) {
                sink.let_go().await;
            }
            return Err(error);
        }
    };
    let step = Instant::now();
    let given = sink.give_held(locked, job.epoch, &job.sql).await;
    let pause = Pause { commit_us: micros(step.elapsed()), total_us: micros(locked.since.elapsed()), ..pause };
    match given {
        Given::Done => {
            let over = Command::SwitchedOver { epoch: job.epoch + 1 };
            job.shared.journal.command(over, &job.by).await?;
            for delivered in held(&later.kept).drain(..) {
                real.delivered(&delivered);
            }
            Ok(pause)
        }
        Given::Refused(failure) => Err(failure.into()),
        Given::Unknown(failure) => Err(CliError { exit: Exit::Failed, ..failure.into() }),
    }
}

async fn drained(
    log: &AnyLog,
    routes: &Routes,
    sink: &mut PostgresSink,
    options: &DeliverOptions,
    job: &SwapJob,
    (ask, later): (&Ask, &Later<'_>),
) -> Result<(Locked, Pause), CliError> {
    let (stopper, own_stop) = stop_channel();
    let (_open, mut open) = valve();
    // What the log keeps for us is moved on by what is committed only.
    let options = DeliverOptions { consumer: None, until: None, ..options.clone() };
    let mut holding = Holding { sink, ask };
    let mut delivering = pin!(deliver(log, routes, &mut holding, &options, later, &mut open, own_stop));
    let mut steps = pin!(frozen(job, ask, later));
    tokio::select! {
        ended = &mut delivering => match ended {
            Ok(_) => Err(CliError::failed("the delivery has ended")),
            Err(error) => Err(error.into()),
        },
        done = &mut steps => {
            stopper.stop();
            let ended = delivering.await;
            let done = done?;
            ended?;
            Ok(done)
        }
    }
}

/// Asks for the freeze once the sink has caught up, and returns when everything written before it is in.
async fn frozen(job: &SwapJob, ask: &Ask, later: &Later<'_>) -> Result<(Locked, Pause), CliError> {
    let mut source = wiring::source_inspect(&job.shared.spec)?;
    later.reached(source.barrier().await?).await?;
    let (answer, locked) = oneshot::channel();
    let wish = Wish { tables: job.tables.clone(), deadline: job.deadline, lock_timeout: job.lock_timeout, answer };
    *held(&ask.wish) = Some(wish);
    // Something to deliver, so that it is seen.
    source.barrier().await?;
    let locked = locked.await.map_err(|_| CliError::failed("the delivery has ended"))??;
    let mut pause = Pause { locks_us: micros(locked.since.elapsed()), tries: locked.tries, ..Pause::default() };
    let next = job.epoch + 1;
    let step = Instant::now();
    let work = async {
        job.shared.journal.command(Command::Frozen { epoch: next }, &job.by).await?;
        let position = source.barrier().await?;
        later.reached(position).await?;
        if later.has_refused() {
            return Err(CliError::failed(
                "a change went into quarantine while the writers waited: the new columns would lack it",
            )
            .hint("`crossfade quarantine ls` names it"));
        }
        job.shared.journal.command(Command::Drained { epoch: next, position }, &job.by).await?;
        Ok(())
    };
    match tokio::time::timeout(locked.left(), work).await {
        Ok(done) => done?,
        Err(_) => {
            return Err(CliError::failed(format!(
                "not everything was in the new columns within the deadline of {} ms",
                millis(job.deadline)
            ))
            .hint("let it catch up first, or allow a longer --deadline"));
        }
    }
    pause.drain_us = micros(step.elapsed());
    Ok((locked, pause))
}

/// What is asked of the sink while it delivers.
#[derive(Default)]
struct Ask {
    wish: Mutex<Option<Wish>>,
    /// The locks are held: nothing is committed any more.
    held: AtomicBool,
}

struct Wish {
    tables: Vec<TableName>,
    deadline: Duration,
    lock_timeout: Duration,
    answer: oneshot::Sender<Result<Locked, Failure>>,
}

/// The sink, which takes the locks before the first delivery after they are asked for.
struct Holding<'a> {
    sink: &'a mut PostgresSink,
    ask: &'a Ask,
}

impl Holding<'_> {
    fn is_held(&self) -> bool {
        self.ask.held.load(SeqCst)
    }
}

impl Sink for Holding<'_> {
    async fn prepare(&mut self, target: &Target) -> Result<(), Failure> {
        match self.is_held() {
            true => self.sink.progress_held().map(drop),
            false => self.sink.prepare(target).await,
        }
    }

    async fn alter(&mut self, before: &TargetTable, after: &TargetTable) -> Result<(), Failure> {
        if self.is_held() {
            let told = "a table changed its shape while the writers waited";
            return Err(Failure::halt("applying what was written", told, "Switch again"));
        }
        self.sink.alter(before, after).await
    }

    async fn progress(&mut self) -> Result<Option<Progress>, Failure> {
        match self.is_held() {
            true => self.sink.progress_held(),
            false => self.sink.progress().await,
        }
    }

    async fn apply(&mut self, delivery: Delivery, guard: Guard) -> Result<Applied, Failure> {
        let wish = if self.is_held() { None } else { held(&self.ask.wish).take() };
        if let Some(wish) = wish {
            let ends = Instant::now() + wish.deadline;
            let locked = self.sink.hold(&wish.tables, ends, wish.lock_timeout).await;
            self.ask.held.store(locked.is_ok(), SeqCst);
            // Whoever asked may have gone: then the freeze ends with its deadline, or with the sink.
            let _ = wish.answer.send(locked);
        }
        self.sink.apply(delivery, guard).await
    }

    async fn finish_load(&mut self) -> Result<(), Failure> {
        self.sink.finish_load().await
    }

    async fn read_row(&mut self, table: TableId, key: &Key) -> Result<Option<Row>, Failure> {
        self.sink.read_row(table, key).await
    }
}

/// Tells of what is committed at once, and of what is held once it is committed.
struct Later<'a> {
    real: &'a dyn Watch,
    ask: &'a Ask,
    kept: Mutex<Vec<Delivered>>,
    progress: watch::Sender<Option<Progress>>,
}

impl Later<'_> {
    /// Waits until the sink has passed a position, committed or not.
    async fn reached(&self, wanted: Option<Position>) -> Result<(), CliError> {
        let mut progress = self.progress.subscribe();
        let is_there = |progress: &Option<Progress>| {
            progress
                .as_ref()
                .is_some_and(|p| p.stage == Stage::Streaming && p.position.is_some() && p.position >= wanted)
        };
        progress.wait_for(is_there).await.map(drop).map_err(|_| CliError::failed("the delivery has ended"))
    }

    fn has_refused(&self) -> bool {
        held(&self.kept).iter().any(|delivered| delivered.quarantined > 0)
    }
}

impl Watch for Later<'_> {
    fn delivered(&self, what: &Delivered) {
        match self.ask.held.load(SeqCst) {
            true => held(&self.kept).push(what.clone()),
            false => self.real.delivered(what),
        }
        self.progress.send_replace(Some(what.progress.clone()));
    }

    fn stage(&self, stage: Stage) {
        self.real.stage(stage);
    }

    fn retrying(&self, side: &'static str, failure: &Failure, wait: Duration) {
        self.real.retrying(side, failure, wait);
    }

    fn recovered(&self, side: &'static str) {
        self.real.recovered(side);
    }
}

fn held<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
