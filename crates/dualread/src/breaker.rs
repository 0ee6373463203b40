//! A breaker: where the side without the authority fails again and again, it is left alone for a while, then tried with a
//! few reads. Pure: the time is handed in.

use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// When the breaker opens, and how it closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BreakerOptions {
    /// So many failures in succession open it.
    pub failures: u32,
    /// How long it then stays open; twice as long after each trial that fails, up to 32 times.
    pub cool_down: Duration,
    /// So many trials must succeed in succession to close it; no more are under way at once.
    pub trials: u32,
}

impl Default for BreakerOptions {
    fn default() -> Self {
        Self { failures: 5, cool_down: Duration::from_secs(10), trials: 3 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed { failures: u32 },
    Open { until: Instant },
    HalfOpen { under_way: u32, succeeded: u32 },
}

/// Leave to ask the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Leave {
    /// The opening after which it was given; a word about an earlier one is no news.
    round: u64,
}

/// What a word about a read has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    Opened,
    Closed,
}

#[derive(Debug)]
pub(crate) struct Breaker {
    options: BreakerOptions,
    state: State,
    /// Openings in succession, without a closing.
    opened: u32,
    round: u64,
}

const DOUBLED_MAX: u32 = 5;

impl Breaker {
    pub(crate) fn new(options: BreakerOptions) -> Self {
        Self { options, state: State::Closed { failures: 0 }, opened: 0, round: 0 }
    }

    pub(crate) fn word(&self) -> &'static str {
        match self.state {
            State::Closed { .. } => "closed",
            State::Open { .. } => "open",
            State::HalfOpen { .. } => "half-open",
        }
    }

    /// Whether a read may ask the other side now.
    pub(crate) fn admit(&mut self, now: Instant) -> Option<Leave> {
        if matches!(self.state, State::Open { until } if now >= until) {
            self.round += 1;
            self.state = State::HalfOpen { under_way: 0, succeeded: 0 };
        }
        match &mut self.state {
            State::Closed { .. } => {}
            State::HalfOpen { under_way, succeeded } if *under_way + *succeeded < self.options.trials.max(1) => {
                *under_way += 1;
            }
            State::Open { .. } | State::HalfOpen { .. } => return None,
        }
        Some(Leave { round: self.round })
    }

    /// How a read that had leave went; `None` where it was given up without a word.
    pub(crate) fn done(&mut self, leave: Leave, went_well: Option<bool>, now: Instant) -> Option<Turn> {
        if leave.round != self.round {
            return None;
        }
        match (&mut self.state, went_well) {
            (State::Closed { failures }, Some(true)) => {
                *failures = 0;
                None
            }
            (State::Closed { failures }, Some(false)) => {
                *failures += 1;
                (*failures >= self.options.failures.max(1)).then(|| self.open(now))
            }
            (State::HalfOpen { under_way, succeeded }, Some(true)) => {
                *under_way = under_way.saturating_sub(1);
                *succeeded += 1;
                let closes = *succeeded >= self.options.trials.max(1);
                closes.then(|| {
                    self.round += 1;
                    self.opened = 0;
                    self.state = State::Closed { failures: 0 };
                    Turn::Closed
                })
            }
            (State::HalfOpen { .. }, Some(false)) => Some(self.open(now)),
            (State::HalfOpen { under_way, .. }, None) => {
                *under_way = under_way.saturating_sub(1);
                None
            }
            (State::Closed { .. }, None) | (State::Open { .. }, _) => None,
        }
    }

    fn open(&mut self, now: Instant) -> Turn {
        let wait = self.options.cool_down.saturating_mul(1 << self.opened.min(DOUBLED_MAX));
        self.opened = self.opened.saturating_add(1);
        self.round += 1;
        self.state = State::Open { until: now + wait };
        Turn::Opened
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OPTIONS: BreakerOptions = BreakerOptions { failures: 3, cool_down: Duration::from_secs(10), trials: 2 };

    fn fail(breaker: &mut Breaker, times: u32, now: Instant) {
        for _ in 0..times {
            let leave = breaker.admit(now).unwrap();
            breaker.done(leave, Some(false), now);
        }
    }

    #[test]
    fn failures_in_succession_open_it_and_trials_close_it() {
        let start = Instant::now();
        let mut breaker = Breaker::new(OPTIONS);
        fail(&mut breaker, 2, start);
        let leave = breaker.admit(start).unwrap();
        breaker.done(leave, Some(true), start);
        fail(&mut breaker, 2, start);
        assert_eq!(breaker.word(), "closed", "a success in between begins the count anew");
        fail(&mut breaker, 1, start);
        assert_eq!(breaker.word(), "open");
        assert_eq!(breaker.admit(start + Duration::from_secs(9)), None);

        let later = start + Duration::from_secs(10);
        let (one, two) = (breaker.admit(later).unwrap(), breaker.admit(later).unwrap());
        assert_eq!(breaker.admit(later), None, "no more trials at once than are asked for");
        assert_eq!(breaker.done(one, Some(true), later), None);
        assert_eq!(breaker.admit(later), None, "two are enough");
        assert_eq!(breaker.done(two, Some(true), later), Some(Turn::Closed));
        assert!(breaker.admit(later).is_some());
    }

    #[test]
    fn a_trial_that_fails_opens_it_for_twice_as_long_and_one_given_up_makes_room() {
        let start = Instant::now();
        let mut breaker = Breaker::new(OPTIONS);
        fail(&mut breaker, 3, start);
        let later = start + Duration::from_secs(10);
        let given_up = breaker.admit(later).unwrap();
        breaker.done(given_up, None, later);
        let (one, late) = (breaker.admit(later).unwrap(), breaker.admit(later).unwrap());
        assert_eq!(breaker.done(one, Some(false), later), Some(Turn::Opened));
        assert_eq!(breaker.done(late, Some(true), later), None, "a word about an earlier opening is no news");
        assert_eq!(breaker.admit(later + Duration::from_secs(19)), None);
        assert!(breaker.admit(later + Duration::from_secs(20)).is_some());
    }

    proptest! {
        #[test]
        fn it_never_stays_shut_for_ever_nor_lets_more_trials_in_than_asked_for(
            steps in proptest::collection::vec((0u8..4, 0u64..15), 1..200)
        ) {
            let mut now = Instant::now();
            let mut breaker = Breaker::new(OPTIONS);
            let mut held = Vec::new();
            for (what, seconds) in steps {
                now += Duration::from_secs(seconds);
                match what {
                    0 => held.extend(breaker.admit(now)),
                    1 => { held.pop().map(|leave| breaker.done(leave, Some(true), now)); }
                    2 => { held.pop().map(|leave| breaker.done(leave, Some(false), now)); }
                    _ => { held.pop().map(|leave| breaker.done(leave, None, now)); }
                }
                if let State::HalfOpen { under_way, succeeded } = breaker.state {
                    prop_assert!(under_way + succeeded <= OPTIONS.trials);
                }
            }
            for leave in held.drain(..) {
                breaker.done(leave, None, now);
            }
            now += OPTIONS.cool_down * 32;
            let leave = breaker.admit(now);
            prop_assert!(leave.is_some(), "with nothing under way and after the longest wait a read is let in");
        }
    }
}
