//! The library: one call that reads the side with the authority, and now and then the other one too.

mod ask;
mod judge;

use crate::{
    Budgets, Failure, Feed, Flag, Mismatch, Options, Percent, Places, Side, Snapshot, Subject, Why,
    breaker::{Breaker, Leave, Turn},
    budget::Spent,
    exactly,
    metrics::{Metrics, up},
    places::AnyPlaces,
};
use ask::{Reader, Started};
use judge::Judging;
use std::{
    fmt,
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// How one comparison ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Both answers are the same.
    Match,
    /// They differed, and the other side's was right once it was past the position of the first answer.
    Lag,
    /// They differ, and no lag can explain it: a stable mismatch.
    Mismatch(Mismatch),
    /// The side without the authority failed, or its closure panicked.
    CandidateFailed,
    /// The side without the authority did not answer in time.
    CandidateTimedOut,
    /// The side with the authority failed, and the other one answered.
    ControlFailed,
    /// Both failed.
    BothFailed,
    /// They differed, and that could not be judged.
    Unjudged(Unjudged),
}

/// Why a difference could not be judged. It is counted, and held against no budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unjudged {
    /// The other side did not come past the position in time.
    Behind,
    /// The answer changed each time it was looked at.
    Moving,
    /// No position could be asked for.
    NoPlace,
    /// A side failed when it was asked again, or the authority changed meanwhile.
    Interrupted,
}

/// What dual reads have to say.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// A comparison has ended.
    Judged {
        /// What was read.
        subject: Subject,
        /// How it ended.
        outcome: Outcome,
    },
    /// A budget is spent: nothing is compared any more until the flag changes or [`DualReads::step_up`] is called.
    SteppedDown(Why),
    /// Comparing goes on.
    SteppedUp,
    /// The other side fails: it is left alone for a while.
    BreakerOpened,
    /// It works again.
    BreakerClosed,
    /// Somebody has changed the flag.
    FlagChanged(Flag),
    /// A flag was refused: its epoch is over, or the same epoch gives the authority to the other side.
    FlagRefused {
        /// What holds.
        known: Flag,
        /// What was refused.
        offered: Flag,
    },
    /// The flag could not be read, or a step down could not be told; what is known holds.
    FeedFailed(String),
}

/// Hears what dual reads have to say: to write it down, to alert somebody, to set the share in the table to nothing.
pub trait Listener: Send + Sync + 'static {
    /// Must return at once.
    fn hear(&self, told: &Told);
}

/// Tells the application's log ([`tracing`]); never a value.
#[derive(Debug, Clone, Copy)]
pub struct Logs;

impl Listener for Logs {
    fn hear(&self, told: &Told) {
        match told {
            Told::Judged { subject, outcome: Outcome::Mismatch(mismatch) } => {
                tracing::warn!(%subject, "both sides answer differently: {mismatch}");
            }
            Told::Judged { subject, outcome } => tracing::debug!(%subject, ?outcome, "a read was compared"),
            Told::SteppedDown(why) => tracing::warn!("reads are no longer compared: {why}"),
            Told::SteppedUp => tracing::info!("reads are compared again"),
            Told::BreakerOpened => tracing::warn!("the side without the authority fails and is left alone for a while"),
            Told::BreakerClosed => tracing::info!("the side without the authority answers again"),
            Told::FlagChanged(Flag { epoch, authority, percent }) => {
                tracing::info!(epoch, %authority, %percent, "the flag of dual reads has changed");
            }
            Told::FlagRefused { known, offered } => {
                tracing::warn!(
                    epoch = known.epoch,
                    offered = offered.epoch,
                    "a flag was refused, for its epoch is over"
                );
            }
            Told::FeedFailed(error) => tracing::warn!("the flag of dual reads cannot be reached: {error}"),
        }
    }
}

/// Reads of both sides of one migration. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct DualReads(Arc<Inner>);

struct Inner {
    options: Options,
    places: Box<dyn AnyPlaces>,
    listener: Box<dyn Listener>,
    known: RwLock<Known>,
    stepped_down: AtomicBool,
    /// By which flag it compared when it stepped down, and why: for whoever tells others ([`DualReads::tell_step_downs`]).
    down: watch::Sender<Option<(Flag, Why)>>,
    watched: Mutex<Watched>,
    /// One for each comparison that is under way.
    places_left: Arc<Semaphore>,
    metrics: Metrics,
}

/// The flag, and when it was last heard of; never, where it was given at the beginning and nobody follows it.
#[derive(Debug, Clone, Copy)]
struct Known {
    flag: Flag,
    heard: Option<Instant>,
}

struct Watched {
    spent: Spent,
    breaker: Breaker,
    why: Option<Why>,
}

impl fmt::Debug for DualReads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DualReads").field("flag", &self.flag()).finish_non_exhaustive()
    }
}

/// A lock's content. Nobody panics while holding one; if somebody did, what is in it still holds.
fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A read that is to be compared.
struct Sampled {
    flag: Flag,
    turn: Under,
    _place: OwnedSemaphorePermit,
}

/// The breaker's leave: given back without a word where nobody says how it went.
struct Under {
    reads: DualReads,
    leave: Option<Leave>,
}

impl Under {
    fn went(mut self, well: bool) {
        self.say(Some(well));
    }

    fn say(&mut self, well: Option<bool>) {
        let Some(leave) = self.leave.take() else { return };
        let turn = held(&self.reads.0.watched).breaker.done(leave, well, Instant::now());
        match turn {
            Some(Turn::Opened) => self.reads.tell(&Told::BreakerOpened),
            Some(Turn::Closed) => self.reads.tell(&Told::BreakerClosed),
            None => {}
        }
    }
}

impl Drop for Under {
    fn drop(&mut self) {
        self.say(None);
    }
}

impl DualReads {
    /// Reads of both sides, with what is known of the flag now. [`DualReads::follow`] keeps the flag up to date.
    pub fn new(options: Options, flag: Flag, places: impl Places) -> Self {
        Self::heard_by(options, flag, places, Logs)
    }

    /// The same, with somebody else to hear what there is to say.
    pub fn heard_by(options: Options, flag: Flag, places: impl Places, listener: impl Listener) -> Self {
        let budgets: Budgets = options.budgets;
        let watched = Watched { spent: Spent::new(budgets), breaker: Breaker::new(options.breaker), why: None };
        Self(Arc::new(Inner {
            places_left: Arc::new(Semaphore::new(options.compared_at_once as usize)),
            places: Box::new(places),
            listener: Box::new(listener),
            known: RwLock::new(Known { flag, heard: None }),
            stepped_down: AtomicBool::new(false),
            down: watch::Sender::new(None),
            watched: Mutex::new(watched),
            metrics: Metrics::default(),
            options,
        }))
    }

    /// Reads: the answer is that of the side that has the authority, whatever the other one does; and answers are compared
    /// by equality. See [`DualReads::read_by`].
    ///
    /// # Errors
    /// Those of the side that has the authority.
    pub async fn read<T, E, O, N>(&self, subject: Subject, old: O, new: N) -> Result<T, E>
    where
        T: PartialEq + Clone + Send + Sync + 'static,
        E: Send + 'static,
        O: AsyncReader<T, E>,
        N: AsyncReader<T, E>,
    {
        self.read_by(subject, exactly, old, new).await
    }

    /// Reads, and compares by `differ` ([`crate::Rules::comparing`] makes one).
    ///
    /// A call that is not sampled runs one closure, in place. Of one that is, the other side runs beside it in a task of
    /// its own; the answer is returned as soon as the side with the authority has given it. Each closure may be called
    /// again when a difference is judged, so it must only read. Dropping the call ends both.
    ///
    /// # Errors
    /// Those of the side that has the authority.
    pub async fn read_by<T, E, D, O, N>(&self, subject: Subject, differ: D, old: O, new: N) -> Result<T, E>
    where
        T: Clone + Send + Sync + 'static,
        E: Send + 'static,
        D: Fn(&T, &T) -> Option<Mismatch> + Send + Sync + 'static,
        O: AsyncReader<T, E>,
        N: AsyncReader<T, E>,
    {
        up(&self.0.metrics.counters.reads);
        let flag = self.flag();
        let Some(sampled) = self.sample(subject, flag) else {
            return match flag.authority {
                Side::Old => old.read().await,
                Side::New => new.read().await,
            };
        };
        let (old, new) = (Reader::new(old), Reader::new(new));
        let (control, candidate) = match flag.authority {
            Side::Old => (old, new),
            Side::New => (new, old),
        };
        let started = Started::begin(&candidate, self.0.options.candidate_timeout);
        let begun = Instant::now();
        let answer = control.ask().await;
        let took = begun.elapsed();
        self.0.metrics.latency_of(flag.authority).record(took);
        let known = answer.as_ref().ok().cloned();
        let judging = Judging { reads: self.clone(), subject, sampled, control, candidate, differ };
        // Whoever wants to wait for it waits for its place (`settled`).
        tokio::spawn(judging.run(known, took, started));
        answer
    }

    /// The flag that holds.
    pub fn flag(&self) -> Flag {
        self.known().flag
    }

    fn known(&self) -> Known {
        *self.0.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this read is compared; takes what it needs for it.
    fn sample(&self, subject: Subject, flag: Flag) -> Option<Sampled> {
        if !flag.percent.takes(subject) || self.0.stepped_down.load(Ordering::Acquire) {
            return None;
        }
        let age = || self.known().heard.map(|heard| heard.elapsed());
        if self.0.options.flag_age_max.is_some_and(|most| age().is_some_and(|age| age > most)) {
            return None;
        }
        let counters = &self.0.metrics.counters;
        let Ok(place) = Arc::clone(&self.0.places_left).try_acquire_owned() else {
            up(&counters.skipped_busy);
            return None;
        };
        let Some(leave) = held(&self.0.watched).breaker.admit(Instant::now()) else {
            up(&counters.skipped_open);
            return None;
        };
        up(&counters.sampled);
        let turn = Under { reads: self.clone(), leave: Some(leave) };
        Some(Sampled { flag, turn, _place: place })
    }

    /// Takes a flag. One whose epoch is over is refused, and so is one that gives the authority of the epoch that holds to
    /// the other side; says whether it was taken. A flag that differs makes what had stepped down begin anew, unless nothing is
    /// compared by it.
    pub fn set(&self, offered: Flag) -> bool {
        let known = {
            let mut known = self.0.known.write().unwrap_or_else(PoisonError::into_inner);
            let same_epoch = offered.epoch == known.flag.epoch;
            if offered.epoch < known.flag.epoch || (same_epoch && offered.authority != known.flag.authority) {
                let known = known.flag;
                self.tell(&Told::FlagRefused { known, offered });
                return false;
            }
            std::mem::replace(&mut *known, Known { flag: offered, heard: Some(Instant::now()) }).flag
        };
        if known != offered {
            self.tell(&Told::FlagChanged(offered));
            if offered.percent != Percent::NONE {
                self.step_up();
            }
        }
        true
    }

    /// Keeps the flag up to date, for as long as the future is polled: give it to a task of its own.
    pub async fn follow<F: Feed>(&self, mut feed: F) {
        let mut pause = FEED_PAUSE;
        // From here on somebody may say that it has changed.
        self.0.known.write().unwrap_or_else(PoisonError::into_inner).heard.get_or_insert_with(Instant::now);
        loop {
            match feed.next().await {
                Ok(flag) => {
                    self.set(flag);
                    pause = FEED_PAUSE;
                }
                Err(error) => {
                    self.tell(&Told::FeedFailed(error.to_string()));
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(FEED_PAUSE_MAX);
                }
            }
        }
    }

    /// Tells others by `tell` whenever it steps down, with the flag by which it compared, for as long as the future is polled:
    /// give it to a task of its own. With [`crate::STEP_DOWN`] the flag itself says `0%` from then on, `crossfade status` says
    /// why, and every other process of the application hears of it. One that could not be told is told again, after a while,
    /// unless it compares again by then.
    pub async fn tell_step_downs<T, F>(&self, mut tell: T)
    where
        T: FnMut(Flag, Why) -> F + Send,
        F: Future<Output = Result<(), Failure>> + Send,
    {
        let mut down = self.0.down.subscribe();
        let mut pause = FEED_PAUSE;
        loop {
            let stepped = *down.borrow_and_update();
            let is_told = match stepped {
                None => true,
                Some((flag, why)) => match tell(flag, why).await {
                    Ok(()) => true,
                    Err(error) => {
                        self.tell(&Told::FeedFailed(error.to_string()));
                        false
                    }
                },
            };
            if is_told {
                pause = FEED_PAUSE;
                // Its sender lives as long as this does.
                let _ = down.changed().await;
            } else {
                let _ = tokio::time::timeout(pause, down.changed()).await;
                pause = (pause * 2).min(FEED_PAUSE_MAX);
            }
        }
    }

    /// Compares again after it had stepped down, with budgets that begin anew.
    pub fn step_up(&self) {
        let was_down = {
            let mut watched = held(&self.0.watched);
            watched.spent.forget();
            watched.why = None;
            self.0.stepped_down.swap(false, Ordering::AcqRel)
        };
        if was_down {
            self.0.down.send_replace(None);
            self.tell(&Told::SteppedUp);
        }
    }

    fn step_down(&self, why: Why) {
        let is_news = {
            let mut watched = held(&self.0.watched);
            watched.why.get_or_insert(why);
            !self.0.stepped_down.swap(true, Ordering::AcqRel)
        };
        if is_news {
            self.0.down.send_replace(Some((self.flag(), why)));
            self.tell(&Told::SteppedDown(why));
        }
    }

    /// Why it has stepped down, if it has.
    pub fn stepped_down(&self) -> Option<Why> {
        held(&self.0.watched).why
    }

    /// All that is measured, as it is now.
    pub fn snapshot(&self) -> Snapshot {
        let (why, breaker) = {
            let watched = held(&self.0.watched);
            (watched.why, watched.breaker.word())
        };
        self.0.metrics.snapshot(self.flag(), why.map(|why| why.to_string()), breaker)
    }

    /// Waits until no comparison is under way: before an application ends, or a test looks at what was found.
    pub async fn settled(&self) {
        let all = self.0.options.compared_at_once;
        // Closed by nobody, so this cannot fail.
        drop(self.0.places_left.acquire_many(all).await);
    }

    fn tell(&self, told: &Told) {
        self.0.listener.hear(told);
    }

    /// A comparison has ended.
    fn ended(&self, subject: Subject, outcome: Outcome) {
        self.0.metrics.count(&outcome);
        let why = match outcome {
            Outcome::Match | Outcome::Lag => held(&self.0.watched).spent.judged(false),
            Outcome::Mismatch(_) => held(&self.0.watched).spent.judged(true),
            _ => None,
        };
        self.tell(&Told::Judged { subject, outcome });
        if let Some(why) = why {
            self.step_down(why);
        }
    }

    /// Both sides have answered.
    fn took(&self, control: Duration, candidate: Duration) {
        let why = held(&self.0.watched).spent.took(control, candidate);
        if let Some(why) = why {
            self.step_down(why);
        }
    }
}

const FEED_PAUSE: Duration = Duration::from_millis(200);
const FEED_PAUSE_MAX: Duration = Duration::from_secs(10);

/// A closure that reads one side: it may be called several times.
pub trait AsyncReader<T, E>: Send + Sync + 'static {
    /// Reads.
    fn read(&self) -> impl Future<Output = Result<T, E>> + Send;
}

impl<T, E, C, F> AsyncReader<T, E> for C
where
    C: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = Result<T, E>> + Send,
{
    fn read(&self) -> impl Future<Output = Result<T, E>> + Send {
        self()
    }
}
