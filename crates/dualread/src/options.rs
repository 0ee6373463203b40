//! The bounds of dual reads.

use crate::{BreakerOptions, Budgets};
use std::time::Duration;

/// How much the comparing may cost, and what ends it.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// How long the side without the authority may take for one answer.
    pub candidate_timeout: Duration,
    /// How many reads are compared at once: what comes meanwhile is answered, and not compared.
    pub compared_at_once: u32,
    /// How long the other side is waited for to come past a position.
    pub patience: Duration,
    /// How often it is asked how far it is.
    pub look_every: Duration,
    /// How often both sides are asked again because of one difference, at most; two agreeing verdicts are needed.
    pub rounds: u32,
    /// Past these it steps down.
    pub budgets: Budgets,
    /// What it does where the other side fails.
    pub breaker: BreakerOptions,
    /// Nothing is compared while the feed of the flag has not spoken for so long: whoever cannot be told that a share has ended
    /// does not go on with it for ever. A flag that is given once and never followed does not age. `None` for a feed that speaks
    /// only when something has changed.
    pub flag_age_max: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            candidate_timeout: Duration::from_secs(1),
            compared_at_once: 8,
            patience: Duration::from_secs(5),
            look_every: Duration::from_millis(20),
            rounds: 5,
            budgets: Budgets::default(),
            breaker: BreakerOptions::default(),
            flag_age_max: Some(Duration::from_secs(30)),
        }
    }
}
