//! The only reader of a [`Verdict`], and the only place that waits after a failure.

use crate::{PipelineError, Silent, Stop, Watch, stop_channel};
use crossfade_connector::{Failure, Verdict};
use crossfade_log::LogError;
use rand::Rng;
use std::time::{Duration, Instant};

/// How long transient failures are borne.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Before the first success: a server that cannot be reached at all is more likely a wrong address.
    pub first: Duration,
    /// After it; `None` is for ever.
    pub later: Option<Duration>,
}

impl Default for Patience {
    fn default() -> Self {
        Self { first: Duration::from_secs(15), later: None }
    }
}

/// The pause before attempt `attempt` (from zero), before jitter: 100 ms doubling up to 10 s.
pub fn backoff_ms(attempt: u32) -> u64 {
    (100u64 << attempt.min(10)).min(10_000)
}

/// Counts attempts since the last success.
#[derive(Debug)]
pub(crate) struct Retry {
    patience: Patience,
    succeeded: bool,
    attempt: u32,
    since: Option<Instant>,
}

impl Retry {
    pub(crate) fn new(patience: Patience) -> Self {
        Self { patience, succeeded: false, attempt: 0, since: None }
    }

    /// Something worked: the next failure starts from the shortest pause.
    pub(crate) fn succeeded(&mut self, side: &'static str, watch: &dyn Watch) {
        if self.attempt > 0 {
            watch.recovered(side);
        }
        self.succeeded = true;
        self.attempt = 0;
        self.since = None;
    }

    /// Waits before the next attempt, or gives the failure back when it is final or patience is over.
    pub(crate) async fn wait(
        &mut self,
        side: &'static str,
        failure: Failure,
        watch: &dyn Watch,
        stop: &mut Stop,
    ) -> Result<(), Failure> {
        if !failure.is_transient() {
            return Err(failure);
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        let limit = if self.succeeded { self.patience.later } else { Some(self.patience.first) };
        if limit.is_some_and(|limit| since.elapsed() > limit) {
            return Err(failure);
        }
        let asked = match failure.verdict {
            Verdict::Retry { after } => after,
            _ => None,
        };
        let base_ms = backoff_ms(self.attempt);
        let wait = asked.unwrap_or_else(|| Duration::from_millis(rand::rng().random_range(base_ms / 2..=base_ms)));
        self.attempt += 1;
        watch.retrying(side, &failure, wait);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.requested() => {}
        }
        Ok(())
    }
}

/// For a command that somebody waits for: what a deadlock or the like ended is tried again, for a minute. A server that
/// cannot be reached is not waited for; whoever sits there can see to it.
#[derive(Debug)]
pub struct Again(Retry);

impl Default for Again {
    fn default() -> Self {
        let minute = Duration::from_secs(60);
        Self(Retry::new(Patience { first: minute, later: Some(minute) }))
    }
}

impl Again {
    /// The outcome, if it is one; `None`, after a pause, if the sink is to be asked once more.
    ///
    /// # Errors
    /// What trying again cannot mend, or has not mended.
    pub async fn unless_passing<T>(&mut self, outcome: Result<T, PipelineError>) -> Result<Option<T>, PipelineError> {
        match outcome {
            Ok(value) => Ok(Some(value)),
            Err(PipelineError::Sink(failure)) if matches!(failure.verdict, Verdict::Retry { .. }) => {
                let (_stopper, mut never) = stop_channel();
                self.0.wait("sink", failure, &Silent, &mut never).await.map_err(PipelineError::Sink)?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// A server that holds the log and does not answer now is waited for, as a source or a sink is.
///
/// # Errors
/// Everything else, as it came.
pub(crate) fn passing_of_log(error: PipelineError) -> Result<Failure, PipelineError> {
    match error {
        PipelineError::Log(LogError::Server { doing, cause, passing: true }) => {
            Ok(Failure::new(Verdict::Reconnect, doing, cause))
        }
        error => Err(error),
    }
}

/// It was waited for in vain.
pub(crate) fn log_failed(failure: Failure) -> PipelineError {
    let cause = std::error::Error::source(&failure).map(ToString::to_string).unwrap_or_default();
    LogError::Server { doing: failure.doing, cause: cause.into(), passing: true }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_ten_seconds() {
        assert_eq!([0, 1, 2, 6, 7, 60].map(backoff_ms), [100, 200, 400, 6_400, 10_000, 10_000]);
    }

    #[tokio::test]
    async fn a_command_bears_a_deadlock_and_no_more() {
        let mut again = Again::default();
        let deadlock = || PipelineError::Sink(Failure::retry("writing", "deadlock detected"));
        assert!(matches!(again.unless_passing::<()>(Err(deadlock())).await, Ok(None)));
        assert!(matches!(again.unless_passing(Ok(7)).await, Ok(Some(7))));
        let away = PipelineError::Sink(Failure::new(Verdict::Reconnect, "connecting", "refused"));
        assert!(again.unless_passing::<()>(Err(away)).await.is_err());
        again.0.patience.first = Duration::ZERO;
        assert!(again.unless_passing::<()>(Err(deadlock())).await.is_err(), "patience is over");
    }

    #[tokio::test]
    async fn a_final_failure_is_given_back_at_once() {
        let (_stopper, mut stop) = crate::stop_channel();
        let failure = Failure::halt("testing", "broken", "mend it");
        let mut retry = Retry::new(Patience::default());
        assert!(retry.wait("sink", failure, &crate::Silent, &mut stop).await.is_err());
    }
}
