//! What was killed, where, and what it hit.

use std::{collections::BTreeMap, fmt};

/// What a migration was doing when it was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// The copy was not wholly in the target.
    Snapshot,
    /// The copy was in, and what had been committed before the start was not.
    CatchUp,
    /// The target followed the source.
    Streaming,
    /// A healing replay was under way.
    Replay,
    /// A rollback was under way.
    Rollback,
    /// Changes in quarantine were tried again; only where there is a quarantine.
    Retry,
}

impl Phase {
    /// What every round has.
    pub(crate) const ALL: [Self; 5] = [Self::Snapshot, Self::CatchUp, Self::Streaming, Self::Replay, Self::Rollback];

    fn name(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::CatchUp => "catch-up",
            Self::Streaming => "streaming",
            Self::Replay => "replay",
            Self::Rollback => "rollback",
            Self::Retry => "retry",
        }
    }
}

/// Kills per phase.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tally(BTreeMap<Phase, (usize, usize)>);

impl Tally {
    /// Counts one kill; `unfinished` when it hit something half done: a batch in the log that was not in the target, a
    /// transaction left open, a replay or a rollback begun and not ended.
    pub(crate) fn note(&mut self, phase: Phase, unfinished: bool) {
        let entry = self.0.entry(phase).or_default();
        entry.0 += 1;
        entry.1 += usize::from(unfinished);
    }

    pub(crate) fn kills(&self, phase: Phase) -> usize {
        self.0.get(&phase).map_or(0, |(kills, _)| *kills)
    }

    pub(crate) fn all(&self) -> usize {
        self.0.values().map(|(kills, _)| kills).sum()
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (phase, (kills, unfinished)) in &other.0 {
            let entry = self.0.entry(*phase).or_default();
            entry.0 += kills;
            entry.1 += unfinished;
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for phase in Phase::ALL.into_iter().chain([Phase::Retry]) {
            if phase == Phase::Retry && self.kills(phase) == 0 {
                continue;
            }
            let (kills, unfinished) = self.0.get(&phase).copied().unwrap_or_default();
            writeln!(f, "  {:<10} {kills:>4} kills, {unfinished:>4} of them hit an unfinished batch", phase.name())?;
        }
        let unfinished: usize = self.0.values().map(|(_, unfinished)| unfinished).sum();
        write!(f, "  {:<10} {:>4} kills, {unfinished:>4} of them hit an unfinished batch", "together", self.all())
    }
}
