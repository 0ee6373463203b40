//! Two sides in memory: one that is written, and one that follows it with a lag. Time stands still between two questions,
//! unless somebody says what happens at each.

use crossfade_dualread::{
    DualReads, Failure, Flag, Listener, Mismatch, Options, Outcome, Percent, Places, Position, Side, Subject, Told,
    place,
};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// What happens before each question.
pub(crate) type Happens = Box<dyn FnMut(&mut Sides) + Send>;

/// One value with its history, and how far the other side has come in it.
pub(crate) struct Sides {
    /// Every value that the side with the authority ever had; the last one is now.
    pub(crate) history: Vec<u64>,
    /// How many of them the other side has applied; one at least.
    pub(crate) applied: usize,
    /// What the other side shows instead of the truth.
    pub(crate) damage: Option<u64>,
}

impl Sides {
    pub(crate) fn write(&mut self) {
        let next = self.history.last().map_or(1, |last| last + 1);
        self.history.push(next);
    }

    pub(crate) fn apply(&mut self, some: usize) {
        self.applied = (self.applied + some).min(self.history.len());
    }
}

#[derive(Clone)]
pub(crate) struct World {
    sides: Arc<Mutex<(Sides, Happens)>>,
    pub(crate) asked_control: Arc<AtomicUsize>,
    pub(crate) asked_candidate: Arc<AtomicUsize>,
}

impl World {
    pub(crate) fn still() -> Self {
        Self::where_happens(|_| {})
    }

    pub(crate) fn where_happens(happens: impl FnMut(&mut Sides) + Send + 'static) -> Self {
        let sides = Sides { history: vec![1], applied: 1, damage: None };
        Self {
            sides: Arc::new(Mutex::new((sides, Box::new(happens)))),
            asked_control: Arc::default(),
            asked_candidate: Arc::default(),
        }
    }

    pub(crate) fn with<R>(&self, look: impl FnOnce(&mut Sides) -> R) -> R {
        look(&mut self.sides.lock().unwrap().0)
    }

    fn ask<R>(&self, look: impl FnOnce(&mut Sides) -> R) -> R {
        let mut guard = self.sides.lock().unwrap();
        let (sides, happens) = &mut *guard;
        happens(sides);
        look(sides)
    }

    /// The side with the authority.
    pub(crate) fn control(&self) -> u64 {
        self.asked_control.fetch_add(1, Ordering::SeqCst);
        self.ask(|sides| *sides.history.last().unwrap())
    }

    /// The other one.
    pub(crate) fn candidate(&self) -> u64 {
        self.asked_candidate.fetch_add(1, Ordering::SeqCst);
        self.ask(|sides| sides.damage.unwrap_or(sides.history[sides.applied - 1]))
    }

    /// Reads by the library.
    pub(crate) async fn read(&self, reads: &DualReads) -> Result<u64, &'static str> {
        let (one, other) = (self.clone(), self.clone());
        let old = move || {
            let value = one.control();
            async move { Ok::<_, &'static str>(value) }
        };
        let new = move || {
            let value = other.candidate();
            async move { Ok(value) }
        };
        reads.read(Subject::new("acme", "one"), old, new).await
    }
}

impl Places for World {
    async fn end(&self, _: Side) -> Result<Position, Failure> {
        Ok(at(self.ask(|sides| sides.history.len())))
    }

    async fn reached(&self, _: Side) -> Result<Option<Position>, Failure> {
        Ok(Some(at(self.ask(|sides| sides.applied))))
    }
}

fn at(number: usize) -> Position {
    place(&format!("0/{number:X}/end")).unwrap()
}

/// Everything that was told.
#[derive(Clone, Default)]
pub(crate) struct Heard(Arc<Mutex<Vec<Told>>>);

impl Listener for Heard {
    fn hear(&self, told: &Told) {
        self.0.lock().unwrap().push(told.clone());
    }
}

impl Heard {
    pub(crate) fn all(&self) -> Vec<Told> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn outcomes(&self) -> Vec<Outcome> {
        let judged = |told| match told {
            Told::Judged { outcome, .. } => Some(outcome),
            _ => None,
        };
        self.all().into_iter().filter_map(judged).collect()
    }

    pub(crate) fn has(&self, wanted: impl Fn(&Told) -> bool) -> bool {
        self.all().iter().any(wanted)
    }
}

/// Everything is compared, and nothing is waited for long.
pub(crate) fn eager() -> Options {
    Options {
        candidate_timeout: Duration::from_secs(60),
        patience: Duration::from_secs(60),
        look_every: Duration::from_millis(1),
        ..Options::default()
    }
}

pub(crate) fn all_by(authority: Side, epoch: u64) -> Flag {
    Flag { epoch, authority, percent: Percent::ALL }
}

/// Dual reads of a world, and what they tell.
pub(crate) fn dual_reads(world: &World, options: Options) -> (DualReads, Heard) {
    let heard = Heard::default();
    (DualReads::heard_by(options, all_by(Side::Old, 1), world.clone(), heard.clone()), heard)
}

pub(crate) fn is_mismatch(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Mismatch(Mismatch { .. }))
}
