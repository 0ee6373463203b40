//! What a running migration answers on its control socket.

use super::{
    adding::{Added, Asker},
    ends::SinkJob,
    fallen,
    proof::{Begun, Looking, named},
    resources,
    session::Session,
    supervise::barrier,
    switch::Wanted,
    together::Together,
    verifier,
    watcher::{Watcher, held},
};
use crate::{
    args,
    commands::folder::DELIVER,
    error::CliError,
    event_log::AnyLog,
    spec::{Part, Spec},
};
use crossfade_connector::{Progress, QuarantineFilter, Stage};
use crossfade_control::{
    By, Command, Direction, Fall, Gates, Journal, JournalError, Measures, Overlay, Pace, Phase, Sample, Slowness,
    Verdict, Windows,
};
use crossfade_event::{Cut, Partition, Position, TableName, TableSchema};
use crossfade_log::{EventLog, embedded::Embedded};
use crossfade_observe::{
    LogStatus, Meter, Rates, Retrying, SinkStatus, Status, VerifyStatus, lag_ms,
    socket::{Control, Refused},
};
use crossfade_pipeline::ValveHandle;
use crossfade_state::{Changes, Setting, SettingKey, SledStore, StateStore};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    str::FromStr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot, watch};

/// What the tasks of a run share.
pub(super) struct Shared {
    pub(super) spec: Spec,
    pub(super) journal: Journal<Embedded>,
    pub(super) by: By,
    pub(super) watcher: Arc<Watcher>,
    pub(super) valve: ValveHandle,
    log: AnyLog,
    state: SledStore,
    pub(super) jobs: mpsc::Sender<SinkJob>,
    askers: mpsc::Sender<Asker>,
    switches: mpsc::Sender<Wanted>,
    /// Where others may deliver as well.
    together: Option<Arc<Together>>,
    meters: Mutex<Meters>,
    /// Whoever writes the flags of dual reads has this; true once they were written by a command.
    pub(super) reads: tokio::sync::Mutex<bool>,
    /// The gates as they are judged here.
    pub(super) gates: Gates,
    verdicts: Mutex<Vec<Verdict>>,
    begun: Instant,
    /// Goes on whenever what was proven is voided; in each run from another number.
    voids: AtomicU64,
    /// From where, and up to where, rows that have changed since the last clean pass were compared.
    verified: Mutex<Option<(Cut, Cut)>>,
    /// What whoever compares both sides all the time says; nothing where nobody does.
    verifying: Mutex<Option<VerifyStatus>>,
    stop: mpsc::Sender<()>,
    stop_asked: Mutex<Option<mpsc::Receiver<()>>>,
    closed: watch::Sender<bool>,
}

/// What is measured over a span of time.
#[derive(Default)]
struct Meters {
    rates: Meter,
    window: Windows,
    pace: Pace,
    slowness: Slowness,
    /// When nothing was pending last.
    caught_up: Option<Duration>,
    /// Since when the gate on lag would roll back.
    lags_since: Option<Duration>,
    /// How many collisions are in quarantine.
    collisions: Option<u64>,
    /// Those of them that somebody has let pass by `resume` after the gate had paused for them.
    answered: u64,
    /// How often that was, or some were taken out: a count that began before is of no use.
    answers: u64,
}

impl Meters {
    /// After a resume, what led to the pause does not pause again.
    fn forget_what_paused(&mut self) {
        self.window.clear();
        self.pace.clear();
        self.slowness.clear();
    }
}

/// Where the tasks of a run are asked for something.
pub(super) struct Asking {
    pub(super) jobs: mpsc::Sender<SinkJob>,
    pub(super) askers: mpsc::Sender<Asker>,
    pub(super) switches: mpsc::Sender<Wanted>,
}

/// Tells when a run's loops have ended.
pub(super) struct Closed(watch::Receiver<bool>);

impl Closed {
    pub(super) async fn wait(&mut self) {
        let _ = self.0.wait_for(|closed| *closed).await;
    }
}

impl Shared {
    pub(super) fn new(
        session: &Session,
        watcher: Arc<Watcher>,
        valve: ValveHandle,
        asking: Asking,
        together: Option<Arc<Together>>,
    ) -> Self {
        let Asking { jobs, askers, switches } = asking;
        let (stop, stop_asked) = mpsc::channel(1);
        Self {
            spec: session.spec.clone(),
            journal: session.journal.clone(),
            by: session.by.clone(),
            watcher,
            valve,
            log: session.log.clone(),
            state: session.state.clone(),
            jobs,
            askers,
            switches,
            together,
            meters: Mutex::default(),
            reads: tokio::sync::Mutex::default(),
            gates: fallen::gates_of(&session.spec, &session.journal.migration()),
            verdicts: Mutex::default(),
            begun: Instant::now(),
            // No other run counts from the same number.
            voids: AtomicU64::new(session.by.at_us.unsigned_abs()),
            verified: Mutex::default(),
            verifying: Mutex::default(),
            stop,
            stop_asked: Mutex::new(Some(stop_asked)),
            closed: watch::Sender::new(false),
        }
    }

    /// Taken once, by the owner of the run.
    pub(super) fn stop_asked(&self) -> mpsc::Receiver<()> {
        held(&self.stop_asked).take().unwrap_or_else(|| mpsc::channel(1).1)
    }

    pub(super) fn closed(&self) -> Closed {
        Closed(self.closed.subscribe())
    }

    pub(super) fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Keeps what the gates say now; returns those that only warn, and held until now.
    pub(super) fn set_verdicts(&self, verdicts: Vec<Verdict>) -> Vec<Verdict> {
        let mut known = held(&self.verdicts);
        let held_before = |new: &Verdict| known.iter().find(|old| old.gate == new.gate).is_none_or(|old| old.holds);
        let fallen = verdicts.iter().filter(|new| !new.holds && !new.pauses() && held_before(new)).cloned().collect();
        *known = verdicts;
        fallen
    }

    /// What the gates are judged by.
    pub(super) fn measures(&self, status: &Status) -> Measures {
        let sample = Sample { applied: status.conservation.applied, quarantined: status.conservation.quarantined };
        let runs = self.valve.reason().is_none();
        let gates = &self.gates;
        let baseline = gates.latency.and_then(|_| self.journal.migration().baseline);
        let at = self.begun.elapsed();
        let mut meters = held(&self.meters);
        let copied = self.rows_of_a_copy().filter(|_| runs);
        Measures {
            window: meters.window.push(at, sample),
            lag: status.lag.ms.map(Duration::from_millis).filter(|_| runs),
            rows_per_s: gates.throughput.and_then(|gate| meters.pace.push(at, copied, gate.over.0)),
            disk: gates.disk.and_then(|_| resources::disk_used(&self.spec.base())),
            memory: gates.memory.and_then(|_| resources::memory_used()),
            slower: baseline.and_then(|baseline| meters.slowness.over(&baseline)),
            collisions: meters.collisions.map(|count| count.saturating_sub(meters.answered)),
        }
    }

    /// What a count of the collisions is noted with: asked for before they are counted.
    pub(super) fn collisions_answered(&self) -> u64 {
        held(&self.meters).answers
    }

    /// Notes how many collisions are in quarantine; nothing where somebody has answered some since they were counted.
    pub(super) fn counted_collisions(&self, answers: u64, collisions: Option<u64>) {
        let mut meters = held(&self.meters);
        if meters.answers == answers {
            meters.collisions = collisions;
            meters.answered = collisions.map_or(meters.answered, |count| meters.answered.min(count));
        }
    }

    /// What is mended makes no room for others: so many were left when nothing else could have come yet.
    fn left_collisions(&self, left: Option<u64>) {
        let mut meters = held(&self.meters);
        if let Some(left) = left {
            meters.answered = meters.answered.min(left);
            meters.collisions = None;
            // A count from before that is worth nothing.
            meters.answers += 1;
        }
    }

    /// Whoever resumes after the gate on collisions had paused knows of those that are there: only others pause again. Before
    /// anything more is applied.
    async fn answer_collisions(&self) {
        let counted = super::collisions::count(&self.spec).await;
        let mut meters = held(&self.meters);
        if let Err(error) = &counted {
            tracing::warn!("the collisions in quarantine cannot be counted: {error}");
        }
        let count = counted.ok().or(meters.collisions);
        meters.answers += 1;
        meters.collisions = count;
        meters.answered = count.unwrap_or(meters.answered);
    }

    /// Notes how fast the source answers.
    pub(super) fn slowness(&self, note: impl FnOnce(&mut Slowness, Duration)) {
        note(&mut held(&self.meters).slowness, self.begun.elapsed());
    }

    /// How many rows of copies are in the sink, while some are still to come.
    fn rows_of_a_copy(&self) -> Option<u64> {
        let tables = self.watcher.counters.totals().tables;
        tables.iter().any(|table| !table.loaded).then(|| tables.iter().map(|table| table.rows_loaded).sum())
    }

    /// Everything, as it stands.
    pub(super) fn status_now(&self) -> Status {
        let totals = self.watcher.counters.totals();
        let rates: Rates = held(&self.meters).rates.push(self.begun.elapsed(), &totals);
        let now_us = jiff::Timestamp::now().as_microsecond();
        let mut status = Status::new(self.spec.name.as_str(), now_us, &self.journal.migration(), &totals, rates)
            .run_by(std::process::id());
        let progress = self.watcher.progress.borrow().clone();
        let health = held(&self.watcher.health).clone();
        let last = Some(self.watcher.last_commit_us.load(Relaxed)).filter(|at| *at != 0);
        status.source = serde_json::to_value(&health).unwrap_or(Value::Null);
        status.sink = sink_status(progress.as_ref());
        let mut position = progress.as_ref().and_then(|progress| progress.position);
        let mut sink_cut = progress.as_ref().map(|progress| progress.cut.clone());
        if let Some(part) = self.spec.part {
            status.role = Some(part.name().to_owned());
            let cut = match part {
                Part::Deliver => progress.map(|progress| progress.cut),
                Part::Ingest => self.delivered_elsewhere(),
            };
            status.lag.events = entries_between(cut.as_ref(), &self.log);
            sink_cut.clone_from(&cut);
            if part == Part::Ingest {
                // It cannot say more of the sink; of itself, how far it is behind the source.
                status.sink.cut = cut.map(|cut| cut.to_string());
                position = self.log.tail().position;
                status.overall = status.overall.filter(|_| status.tables.iter().any(|table| table.state != "copied"));
            }
        }
        let behind = i64::try_from(status.lag.events).unwrap_or(i64::MAX);
        status.lag.ms = lag_ms(behind, last, now_us, self.since_caught_up(behind));
        status.lag.bytes = lag_bytes(health.current, position);
        status.log = log_status(&self.log);
        status.delivers = self.log.delivers();
        status.log.behind = behind_by_partition(sink_cut.as_ref(), &self.log);
        status.clients = self.log.clients();
        status.processes = self.log.processes();
        status.verify = held(&self.verifying).clone();
        status.gates = held(&self.verdicts).clone();
        status.retrying = held(&self.watcher.retrying).clone().or_else(|| log_waiting(&self.log));
        status
    }

    /// How long something has been pending without a break; nothing where that was so from the beginning.
    fn since_caught_up(&self, pending: i64) -> Option<Duration> {
        let now = self.begun.elapsed();
        let mut meters = held(&self.meters);
        if pending <= 0 {
            meters.caught_up = Some(now);
        }
        meters.caught_up.map(|then| now.saturating_sub(then))
    }

    /// Whether a gate has failed for long enough to take everything back: that the sink is behind is no reason before it
    /// has been so for as long again, for after a stop it is behind at once and makes up for it.
    pub(super) fn has_lasted(&self, fall: Option<&Fall>) -> bool {
        let (now, mut meters) = (self.begun.elapsed(), held(&self.meters));
        let Some(lag) = self.gates.lag.filter(|_| fall.is_some_and(|fall| fall.verdict.gate == "lag")) else {
            meters.lags_since = None;
            return true;
        };
        let since = *meters.lags_since.get_or_insert(now);
        now.saturating_sub(since) >= lag.max.0
    }

    /// How far the process that delivers has come, by what it has noted in the log.
    fn delivered_elsewhere(&self) -> Option<Cut> {
        self.log.consumers().into_iter().find(|(name, _)| name == DELIVER).map(|(_, cut)| cut)
    }

    /// Whether what concerns the whole sink is this process's to do.
    pub(super) fn leads(&self) -> bool {
        self.together.as_ref().is_none_or(|together| together.leads())
    }

    /// Refuses what concerns the whole sink in a process that has only a share of it.
    fn has_lead(&self) -> Result<(), Refused> {
        self.delivers()?;
        if self.leads() {
            return Ok(());
        }
        let who = self.log.lead().unwrap_or_else(|| "another deliver".to_owned());
        Err(Refused::new(
            3,
            format!(
                "this deliver of {} takes its share of the partitions; what concerns the whole sink is done by the one that has the lead: {who}",
                self.spec.name
            ),
        ))
    }

    /// Refuses what needs the sink in a process that does not have it.
    fn delivers(&self) -> Result<(), Refused> {
        match self.spec.part {
            Some(Part::Ingest) => Err(Refused::new(
                3,
                format!("this process is the ingest of {}: what concerns the sink is deliver's to do", self.spec.name),
            )),
            _ => Ok(()),
        }
    }

    /// Returns once the sink has everything that was in the source when asked.
    pub(super) async fn wait_caught_up(&self) -> Result<Position, CliError> {
        let wanted = barrier(self).await?;
        self.wait_for(wanted, Stage::Streaming).await
    }

    /// Returns once the sink has passed a position, in this stage.
    pub(super) async fn wait_for(&self, wanted: Option<Position>, stage: Stage) -> Result<Position, CliError> {
        let mut progress = self.watcher.progress.subscribe();
        let reached = progress
            .wait_for(|progress| {
                progress.as_ref().is_some_and(|p| p.stage == stage && p.position.is_some() && p.position >= wanted)
            })
            .await
            .map_err(|_| CliError::failed("the run has ended"))?;
        reached.as_ref().and_then(|progress| progress.position).ok_or_else(|| CliError::failed("the run has ended"))
    }

    pub(super) async fn pause(&self, who: String, reason: String) -> Result<(), Refused> {
        let was_open = self.valve.reason().is_none();
        self.valve.close(format!("paused by {who}: {reason}"));
        let paused = self.command(&who, Command::Pause { by: who.clone(), reason }).await;
        if paused.is_err() && was_open {
            self.valve.open();
        }
        paused
    }

    /// Has the journal begin the rollback that a gate wants, and nothing applied from here on. False where that cannot be: a
    /// person holds the migration, or a rollback would end what only a switch may.
    pub(super) async fn fall_back(&self, fall: &Fall) -> bool {
        let migration = self.journal.migration();
        let is_stopped = migration.overlay.as_ref().is_some_and(|overlay| !overlay.is_by_gate());
        let is_before = (Phase::Expanded..=Phase::Ready).contains(&migration.phase) && !migration.was_switched;
        if is_stopped || !is_before || migration.authority.to_route {
            return false;
        }
        let was_open = self.valve.reason().is_none();
        self.valve.close(fall.to_string());
        let command = Command::FallBack { kind: fallen::kind_of(&self.spec), fall: fall.clone() };
        match self.command(&fall.by(), command).await {
            Ok(()) => true,
            Err(refused) => {
                tracing::warn!("a gate could not roll back: {}", refused.error);
                if was_open {
                    self.valve.open();
                }
                false
            }
        }
    }

    /// Asks the run to end in order.
    pub(super) fn stop_now(&self) {
        // A second one finds the first still waiting, which is as good.
        let _ = self.stop.try_send(());
    }

    /// The source's tables, by the names that they have now.
    pub(super) fn source_tables(&self) -> Vec<TableName> {
        self.log.latest_schemas().iter().map(|schema| schema.name.clone()).collect()
    }

    /// The source's tables as the stream has them now.
    pub(super) fn source_schemas(&self) -> Vec<Arc<TableSchema>> {
        self.log.latest_schemas()
    }

    /// How many changes have gone into quarantine in this run.
    pub(super) fn quarantined(&self) -> u64 {
        self.watcher.counters.totals().conservation.quarantined
    }

    /// The gates that do not hold now, each in a few words.
    pub(super) fn failing_gates(&self) -> Vec<String> {
        let verdicts = held(&self.verdicts);
        let failing = verdicts.iter().filter(|verdict| !verdict.holds);
        failing.map(|verdict| format!("{}: {}, at most {}", verdict.gate, verdict.measured, verdict.max)).collect()
    }

    /// Has the authority given to the other side, or says why not.
    async fn switch(&self, direction: Direction, who: String, body: &Value) -> Result<Value, Refused> {
        let (answer, answered) = oneshot::channel();
        let deadline = body.get("deadline_ms").and_then(Value::as_u64);
        let wanted = Wanted {
            direction,
            who,
            dry_run: body.get("dry_run").and_then(Value::as_bool).unwrap_or(false),
            deadline: deadline.map(|ms| crate::spec::Span(Duration::from_millis(ms))),
            answer,
        };
        self.switches.try_send(wanted).map_err(|_| {
            Refused::new(
                3,
                "another switch of this migration is under way, or the run is ending; ask `crossfade status`",
            )
        })?;
        let gone = || Refused::new(1, "the run is ending; whether it has switched, `crossfade status` says");
        let outcome = answered.await.map_err(|_| gone())?.map_err(|error| refused(&error))?;
        serde_json::to_value(outcome).map_err(|error| Refused::new(1, error.to_string()))
    }

    /// What was proven of both sides holds no more.
    pub(super) async fn void(&self, who: &str, why: &str) -> Result<(), Refused> {
        self.voids.fetch_add(1, Relaxed);
        // A comparison that a later run would go on with is begun anew.
        self.keep(verifier::KEPT, None).await.map_err(|error| refused(&error))?;
        self.command(who, Command::Void { why: why.to_owned() }).await
    }

    /// Whether a comparison is the beginning of a proof that is carried on: to a switch, or all the time.
    fn is_proof_carried_on(&self) -> bool {
        let spec = &self.spec;
        (spec.switch.is_some() || spec.verify.continuous) && !crate::wiring::writes_beside(spec)
    }

    /// A number that is another one after each time.
    pub(super) fn voids(&self) -> u64 {
        self.voids.load(Relaxed)
    }

    /// Rows that have changed since the clean pass begun at the first cut are compared up to the second.
    pub(super) fn set_verified(&self, upto: Option<(Cut, Cut)>) {
        *held(&self.verified) = upto;
    }

    /// Up to where that was done for the clean pass begun at `from`.
    pub(super) fn verified_upto(&self, from: &Cut) -> Option<Cut> {
        held(&self.verified).as_ref().filter(|(begun, _)| begun == from).map(|(_, upto)| upto.clone())
    }

    /// Says how far comparing both sides all the time has come.
    pub(super) fn verifying(&self, say: impl FnOnce(&mut VerifyStatus)) {
        say(held(&self.verifying).get_or_insert_default());
    }

    /// What is kept under a name in the state.
    pub(super) fn kept(&self, name: &str) -> Option<String> {
        match self.state.get(&SettingKey::new(name)) {
            Ok(kept) => kept.map(|Setting(text)| text),
            Err(error) => {
                tracing::warn!("what the state keeps of {name} cannot be read, and is made anew: {error}");
                None
            }
        }
    }

    /// Keeps it there, or takes it away.
    pub(super) async fn keep(&self, name: &str, text: Option<String>) -> Result<(), CliError> {
        let key = SettingKey::new(name);
        let changes = match text {
            Some(text) => Changes::one(&key, &Setting(text)),
            None => Changes::new().remove(&key),
        };
        Ok(self.state.commit(changes).await?)
    }

    /// What somebody asks for goes into the journal under their name.
    pub(super) async fn command(&self, who: &str, command: Command) -> Result<(), Refused> {
        self.journal.command(command, &By { who: who.to_owned(), ..self.now() }).await.map(drop).map_err(|error| {
            match &error {
                JournalError::Refused(_) => Refused::new(3, error.to_string()),
                _ => Refused::new(1, error.to_string()),
            }
        })
    }

    pub(super) fn now(&self) -> By {
        By { at_us: jiff::Timestamp::now().as_microsecond(), ..self.by.clone() }
    }

    /// Takes in new tables that match the spec; the journal keeps the wish until the log has them.
    async fn add_tables(&self) -> Result<Added, Refused> {
        let (answer, answered) = oneshot::channel();
        let gone = || Refused::new(1, "the run is ending; with the next one, ask again");
        self.askers.send(answer).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?.map_err(|error| refused(&error))
    }

    pub(super) fn log(&self) -> &AnyLog {
        &self.log
    }

    pub(super) async fn job<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, CliError>>) -> SinkJob,
    ) -> Result<T, Refused> {
        let (answer, answered) = oneshot::channel();
        let gone = || Refused::new(1, "the run is ending");
        self.jobs.send(job(answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?.map_err(|error| refused(&error))
    }
}

fn refused(error: &CliError) -> Refused {
    let hint = error.hint.as_ref().map(|hint| format!(". {hint}")).unwrap_or_default();
    Refused::new(error.exit as u8, format!("{}{hint}", error.message))
}

fn lag_bytes(current: Option<Position>, applied: Option<Position>) -> Option<u64> {
    let (current, applied) = (current?, applied?);
    (current.source == applied.source).then(|| current.commit.saturating_sub(applied.commit))
}

/// How far a place is from the log's end: marks count too.
fn entries_between(from: Option<&Cut>, log: &AnyLog) -> u64 {
    let from = from.map_or_else(|| log.start().total(), Cut::total);
    log.tail().cut.total().saturating_sub(from)
}

/// The same by partition, where servers hold the log.
fn behind_by_partition(from: Option<&Cut>, log: &AnyLog) -> BTreeMap<u32, u64> {
    if log.elsewhere().is_none() {
        return BTreeMap::new();
    }
    let (start, end) = (log.start(), log.tail().cut);
    let from = from.unwrap_or(&start);
    let of = |partition: u32| {
        let partition = Partition(partition);
        end.next(partition).0.saturating_sub(from.next(partition).0)
    };
    (0..log.partitions()).map(|partition| (partition, of(partition))).collect()
}

fn sink_status(progress: Option<&Progress>) -> SinkStatus {
    SinkStatus {
        position: progress.and_then(|progress| progress.position).map(|position| position.to_string()),
        cut: progress.map(|progress| progress.cut.to_string()),
        stage: progress.map(|progress| match progress.stage {
            Stage::Loading => "loading".to_owned(),
            Stage::Streaming => "streaming".to_owned(),
        }),
    }
}

fn log_status(log: &AnyLog) -> LogStatus {
    let tail = log.tail();
    LogStatus {
        start: log.start().to_string(),
        end: tail.cut.to_string(),
        position: tail.position.map(|position| position.to_string()),
        bytes: log.bytes().unwrap_or(0),
        elsewhere: log.elsewhere(),
        behind: BTreeMap::new(),
    }
}

/// The log waits by itself, and for as long as it takes.
fn log_waiting(log: &AnyLog) -> Option<Retrying> {
    log.waiting().map(|failure| Retrying { side: "log".to_owned(), failure, times: 0, wait_ms: 0 })
}

/// The control socket's answers.
pub(super) struct Answers(pub(super) Arc<Shared>);

impl Control for Answers {
    async fn status(&self) -> Status {
        self.0.status_now()
    }

    async fn pause(&self, who: String, reason: String) -> Result<(), Refused> {
        self.0.has_lead()?;
        self.0.pause(who, reason).await
    }

    async fn resume(&self, who: String) -> Result<(), Refused> {
        self.0.has_lead()?;
        let overlay = self.0.journal.migration().overlay;
        self.0.command(&who, Command::Resume).await?;
        if matches!(overlay, Some(Overlay::Paused { by, .. }) if by == "gate collisions") {
            self.0.answer_collisions().await;
        }
        held(&self.0.meters).forget_what_paused();
        self.0.valve.open();
        Ok(())
    }

    async fn stop(&self) -> Result<(), Refused> {
        self.0.stop_now();
        Ok(())
    }

    async fn checkpoint(&self, who: String, name: String) -> Result<Value, Refused> {
        self.0.has_lead()?;
        let progress = self.0.watcher.progress.borrow().clone();
        let Some(progress) = progress.filter(|progress| progress.stage == Stage::Streaming) else {
            return Err(Refused::new(3, "the sink is still being filled: there is no place to name yet"));
        };
        let at_us = self.0.now().at_us;
        let command = Command::NameCheckpoint {
            name: name.clone(),
            cut: progress.cut.clone(),
            position: progress.position,
            at_us,
        };
        self.0.command(&who, command).await?;
        let position = progress.position.map(|position| position.to_string());
        Ok(json!({ "name": name, "cut": progress.cut.to_string(), "position": position }))
    }

    async fn wait(&self, what: String) -> Result<Value, Refused> {
        self.0.delivers()?;
        if what != "caught-up" {
            return Err(Refused::new(2, format!("{what:?} cannot be waited for; known is caught-up")));
        }
        let position = self.0.wait_caught_up().await.map_err(|error| refused(&error))?;
        let quarantined = self.0.watcher.counters.totals().conservation.quarantined;
        Ok(json!({ "position": position.to_string(), "quarantined": quarantined }))
    }

    async fn command(&self, verb: String, body: Value) -> Result<Value, Refused> {
        if verb != "state" {
            self.0.has_lead()?;
        }
        let who = body.get("who").and_then(Value::as_str).unwrap_or(&self.0.by.who).to_owned();
        match verb.as_str() {
            "replay" => {
                let text = body.get("from").and_then(Value::as_str).unwrap_or_default();
                let from = args::From::from_str(text).map_err(|error| Refused::new(2, error))?;
                let cut = super::place::cut_of(&from, &self.0.log, &self.0.journal.migration())
                    .and_then(|cut| super::retired::refuse_over_failback(&self.0.spec, &cut).map(|()| cut))
                    .map_err(|error| refused(&error))?;
                self.0.command(&who, Command::Note { what: format!("replay from {text}") }).await?;
                self.0.void(&who, "a replay has written the target again").await?;
                let report = self.0.job(|answer| SinkJob::Heal(cut, answer)).await?;
                Ok(super::replay::heal_json(&report))
            }
            "state" => crate::commands::state::listed(&self.0.state).map_err(|error| refused(&error)),
            "add-tables" if self.0.spec.part.is_some() => {
                Err(Refused::new(3, "new tables are taken in by a run that does all of a migration"))
            }
            "add-tables" => {
                let Added { tables, begun } = self.0.add_tables().await?;
                Ok(json!({ "tables": tables, "begun": begun }))
            }
            "repair" => super::repair::answer(&self.0, body).await,
            "cutover" => self.0.switch(Direction::Cutover, who, &body).await,
            "failback" => self.0.switch(Direction::Failback, who, &body).await,
            "dual-reads" => {
                let share = serde_json::from_value(body.get("share").cloned().unwrap_or_default())
                    .map_err(|error| Refused::new(2, format!("no share: {error}")))?;
                let compared = super::reads::set(&self.0, &who, share).await.map_err(|error| refused(&error))?;
                serde_json::to_value(compared).map_err(|error| Refused::new(1, error.to_string()))
            }
            "approve" => {
                let approval = serde_json::from_value(body.get("approval").cloned().unwrap_or_default())
                    .map_err(|error| Refused::new(2, format!("no approval: {error}")))?;
                self.0.command(&who, Command::Approve { approval }).await?;
                Ok(Value::Null)
            }
            "verify-begins" => {
                let begun = match crate::registry::postgres_switch_ends(&self.0.spec, "a proof that is carried on") {
                    Ok(_) if self.0.is_proof_carried_on() => {
                        let before = self.0.journal.migration().clean_pass.and_then(|pass| pass.mark);
                        let mut looking = Looking::open(&self.0).await.map_err(|error| refused(&error))?;
                        Some(looking.begin(&self.0, before.as_deref()).await.map_err(|error| refused(&error))?)
                    }
                    _ => None,
                };
                serde_json::to_value(begun).map_err(|error| Refused::new(1, error.to_string()))
            }
            "verified" => {
                let begun: Option<Begun> = serde_json::from_value(body.get("begun").cloned().unwrap_or_default())
                    .map_err(|error| Refused::new(2, format!("no beginning: {error}")))?;
                let shapes = self.0.watcher.progress.borrow().as_ref().map(|progress| named(&progress.schemas));
                let holds = |begun: &Begun| begun.voids == self.0.voids() && shapes.as_ref() == Some(&begun.schemas);
                if begun.as_ref().is_some_and(|begun| !holds(begun)) {
                    return Err(Refused::new(
                        3,
                        "meanwhile the target was written by a repair or a replay, a table has changed its shape, or the run was started again: verify again",
                    ));
                }
                let (from, mark) = begun.map_or((None, None), |begun| (Some(begun.from), begun.mark));
                let number = |key: &str| body.get(key).and_then(Value::as_u64).unwrap_or_default();
                let position = serde_json::from_value(body.get("position").cloned().unwrap_or_default())
                    .map_err(|error| Refused::new(2, format!("no position: {error}")))?;
                let (rows, differences) = (number("rows"), number("differences"));
                let at_us = self.0.now().at_us;
                self.0.command(&who, Command::Verified { position, rows, differences, at_us, from, mark }).await?;
                Ok(Value::Null)
            }
            "quarantine-retry" => {
                self.0.void(&who, "changes of the quarantine were applied").await?;
                let (outcome, left) = self.0.job(|answer| SinkJob::Retry(filter_of(&body), answer)).await?;
                self.0.left_collisions(left);
                serde_json::to_value(outcome).map_err(|error| Refused::new(1, error.to_string()))
            }
            "quarantine-discard" => {
                self.0.command(&who, Command::Note { what: format!("discard from quarantine: {body}") }).await?;
                self.0.void(&who, "changes of the quarantine were dropped").await?;
                let (outcome, left) = self.0.job(|answer| SinkJob::Discard(filter_of(&body), answer)).await?;
                self.0.left_collisions(left);
                serde_json::to_value(outcome).map_err(|error| Refused::new(1, error.to_string()))
            }
            _ => Err(Refused::new(2, format!("{verb:?} is nothing that a running migration does"))),
        }
    }
}

/// `{"table": "schema.name", "ids": [1, 2]}`, both optional.
fn filter_of(body: &Value) -> QuarantineFilter {
    let table = body.get("table").and_then(Value::as_str).and_then(|text| text.split_once('.'));
    QuarantineFilter {
        table: table.map(|(schema, name)| TableName::new(schema, name)),
        ids: body.get("ids").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_i64).collect(),
    }
}
