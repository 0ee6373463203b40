//! `run --role deliver` beside others: which partitions the group has given this process, who applies each of them here,
//! and whether this process has the lead (docs/adr/0016).

use super::{session::Session, watcher::held};
use crate::{
    event_log::AnyLog,
    registry,
    spec::{Part, Spec},
};
use crossfade_control::Command;
use crossfade_event::{Offset, Partition};
use crossfade_log::EventLog;
use crossfade_pipeline::{
    DeliverOptions, Others, PipelineError, Routes, Stop, Stopper, Watch, apply_partition, stop_channel,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

/// What one process knows of its share.
pub(super) struct Together {
    log: AnyLog,
    /// How long it may be silent before its partitions are given to others.
    silent: Duration,
    given: watch::Sender<BTreeSet<u32>>,
    /// The first offset that is not in the sink, of each partition that is applied here.
    places: Mutex<BTreeMap<u32, Offset>>,
    /// The epoch of the lead; zero without.
    lead: AtomicU64,
    began: Instant,
    facts: mpsc::UnboundedSender<Command>,
}

impl Together {
    /// Whether, and how, this process shares the stream with others; says it where the plan keeps it alone.
    pub(super) fn of(session: &Session, facts: mpsc::UnboundedSender<Command>) -> Option<Arc<Self>> {
        let silent = may_share(&session.spec)?;
        let why = match session.routes.keeps_alone() {
            _ if session.log.partitions() < 2 => "the log has one partition".to_owned(),
            _ if !session.marks_moves => "the log was begun by an earlier crossfade".to_owned(),
            Some(why) => why,
            None => {
                return Some(Arc::new(Self {
                    log: session.log.clone(),
                    silent,
                    given: watch::Sender::new(BTreeSet::new()),
                    places: Mutex::default(),
                    lead: AtomicU64::new(0),
                    began: Instant::now(),
                    facts,
                }));
            }
        };
        tracing::info!(%why, "one deliver applies all of this migration; any other one stands by");
        None
    }

    /// Whether what concerns the whole sink is this process's to do.
    pub(super) fn leads(&self) -> bool {
        self.lead.load(Relaxed) > 0
    }

    fn tell(&self, partition: u32, next: Option<Offset>) {
        let mut places = held(&self.places);
        match next {
            Some(next) => places.insert(partition, next),
            None => places.remove(&partition),
        };
    }
}

/// How long a deliver of this spec may be silent, if several may share the stream.
fn may_share(spec: &Spec) -> Option<Duration> {
    if spec.part != Some(Part::Deliver) || !registry::applies_in_parallel(spec) {
        return None;
    }
    AnyLog::silent(spec)
}

impl Others for Together {
    fn turn(&self) -> Result<u64, PipelineError> {
        Ok(self.log.turn()?)
    }

    fn silent(&self) -> Duration {
        // First the group misses it.
        self.silent * 2
    }

    fn are_there(&self) -> bool {
        let given = self.given.borrow().len();
        // One that has just come has been given nothing yet; one that was given nothing for long has others beside it.
        (given > 0 || self.began.elapsed() > self.silent) && given < self.log.partitions() as usize
    }

    fn we_lead(&self, epoch: Option<u64>) {
        self.lead.store(epoch.unwrap_or(0), Relaxed);
        match epoch {
            Some(epoch) => {
                // The journal's task outlives the loops; when it has gone, the process is ending.
                let _ = self.facts.send(Command::TakeEpoch { epoch });
                if let Err(error) = self.log.say_lead() {
                    tracing::debug!(%error, "it is not noted who has the lead");
                }
            }
            None => self.log.leave_hold(crate::commands::folder::DELIVER),
        }
    }
}

/// What the group tells.
struct Seat(Arc<Together>);

impl crate::event_log::Seat for Seat {
    fn given(&self, partitions: &BTreeSet<u32>) {
        self.0.given.send_replace(partitions.clone());
    }

    fn places(&self) -> BTreeMap<u32, Offset> {
        held(&self.0.places).clone()
    }
}

/// Applies what the group gives this process, until stopped.
pub(super) async fn share(
    together: Arc<Together>,
    spec: Spec,
    routes: Routes,
    options: DeliverOptions,
    watch: Arc<dyn Watch>,
    mut stop: Stop,
) -> Result<(), PipelineError> {
    let leaves = Arc::new(AtomicBool::new(false));
    let (log, silent, seat) = (together.log.clone(), together.silent, Seat(together.clone()));
    let told = leaves.clone();
    let mut seated = tokio::task::spawn_blocking(move || log.take_seat(silent, &told, &seat));
    let mut given = together.given.subscribe();
    let mut owners = Owners { at_work: BTreeMap::new(), tasks: JoinSet::new() };
    let outcome = loop {
        tokio::select! {
            () = stop.requested() => break Ok(()),
            ended = &mut seated => return ended.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic())).map_err(PipelineError::from),
            Some(ended) = owners.tasks.join_next() => match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => break Err(error),
                Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
            },
            Ok(()) = given.changed() => {
                let now = given.borrow_and_update().clone();
                owners.at_work.retain(|partition, stopper| {
                    let stays = now.contains(partition);
                    if !stays {
                        stopper.stop();
                    }
                    stays
                });
                for partition in now {
                    if !owners.at_work.contains_key(&partition) {
                        let stopper = owners.begin(partition, &together, &spec, &routes, &options, &watch);
                        owners.at_work.insert(partition, stopper);
                    }
                }
            }
        }
    };
    // First they end, then the group hears of it: whoever gets the partitions finds nobody in them.
    owners.at_work.values().for_each(Stopper::stop);
    while owners.tasks.join_next().await.is_some() {}
    leaves.store(true, Relaxed);
    if let Ok(Err(error)) = seated.await {
        tracing::debug!(%error, "the group of those that deliver was left");
    }
    outcome
}

/// Those who apply partitions in this process.
struct Owners {
    at_work: BTreeMap<u32, Stopper>,
    tasks: JoinSet<Result<(), PipelineError>>,
}

impl Owners {
    fn begin(
        &mut self,
        partition: u32,
        together: &Arc<Together>,
        spec: &Spec,
        routes: &Routes,
        options: &DeliverOptions,
        watch: &Arc<dyn Watch>,
    ) -> Stopper {
        let (stopper, stop) = stop_channel();
        let (together, routes, options, watch) = (together.clone(), routes.clone(), options.clone(), watch.clone());
        let sink = registry::part(spec, partition);
        self.tasks.spawn(async move {
            let mut sink = sink.map_err(|error| PipelineError::Refused(error.message))?;
            let told = |next| together.tell(partition, next);
            apply_partition(
                &together.log,
                Partition(partition),
                &routes,
                &mut sink,
                &options,
                &*together,
                &*watch,
                &told,
                stop,
            )
            .await
        });
        stopper
    }
}
