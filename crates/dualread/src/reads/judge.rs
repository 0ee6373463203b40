//! One comparison, in a task of its own.

use super::{
    DualReads, Outcome, Sampled, Unjudged,
    ask::{Reader, Said, Started},
};
use crate::{
    Mismatch, Subject,
    rounds::{Rounds, Step},
};
use crossfade_event::Position;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

pub(super) struct Judging<T, E, D> {
    pub(super) reads: DualReads,
    pub(super) subject: Subject,
    pub(super) sampled: Sampled,
    pub(super) control: Reader<T, E>,
    pub(super) candidate: Reader<T, E>,
    pub(super) differ: D,
}

impl<T, E, D> Judging<T, E, D>
where
    T: Send + Sync + 'static,
    E: Send + 'static,
    D: Fn(&T, &T) -> Option<Mismatch> + Send + Sync + 'static,
{
    /// `known` is what the side with the authority answered, and `started` the other one's first answer.
    pub(super) async fn run(self, known: Option<T>, took: Duration, started: Started<T>) {
        let Self { reads, subject, sampled: Sampled { flag, turn, _place }, control, candidate, differ } = self;
        let said = started.said().await;
        turn.went(matches!(said, Said::Answered(..)));
        let outcome = match (known, said) {
            (Some(known), Said::Answered(answer, other_took)) => {
                reads.0.metrics.latency_of(flag.authority.other()).record(other_took);
                reads.took(took, other_took);
                let case = Case { reads: &reads, epoch: flag.epoch, control, candidate, differ: &differ };
                case.judge(known, &answer).await.unwrap_or_else(Outcome::Unjudged)
            }
            (Some(_), Said::Failed) => Outcome::CandidateFailed,
            (Some(_), Said::TimedOut) => Outcome::CandidateTimedOut,
            (None, Said::Answered(..)) => Outcome::ControlFailed,
            (None, Said::Failed | Said::TimedOut) => Outcome::BothFailed,
        };
        reads.ended(subject, outcome);
    }
}

/// Two answers of one question.
struct Case<'a, T, E, D> {
    reads: &'a DualReads,
    epoch: u64,
    control: Reader<T, E>,
    candidate: Reader<T, E>,
    differ: &'a D,
}

impl<T, E, D> Case<'_, T, E, D>
where
    T: Send + Sync + 'static,
    E: Send + 'static,
    D: Fn(&T, &T) -> Option<Mismatch> + Send + Sync + 'static,
{
    async fn judge(&self, mut known: T, answer: &T) -> Result<Outcome, Unjudged> {
        if self.difference(&known, answer)?.is_none() {
            return Ok(Outcome::Match);
        }
        let mut rounds = Rounds::new(self.reads.0.options.rounds);
        loop {
            self.wait_for_other().await?;
            let timeout = self.reads.0.options.candidate_timeout;
            let answer = self.again(Started::begin(&self.candidate, timeout)).await?;
            let after = self.again(Started::begin(&self.control, timeout)).await?;
            let stood_still = self.difference(&known, &after)?.is_none();
            match rounds.step(stood_still, self.difference(&after, &answer)?) {
                Step::Lag => return Ok(Outcome::Lag),
                Step::Mismatch(mismatch) => return Ok(Outcome::Mismatch(mismatch)),
                Step::Moving => return Err(Unjudged::Moving),
                Step::Again => known = after,
            }
        }
    }

    /// How two answers differ; a comparison of the application's that panics is no verdict.
    fn difference(&self, one: &T, other: &T) -> Result<Option<Mismatch>, Unjudged> {
        catch_unwind(AssertUnwindSafe(|| (self.differ)(one, other))).map_err(|_| Unjudged::Interrupted)
    }

    async fn again(&self, started: Started<T>) -> Result<T, Unjudged> {
        match started.said().await {
            Said::Answered(answer, _) if self.reads.flag().epoch == self.epoch => Ok(answer),
            _ => Err(Unjudged::Interrupted),
        }
    }

    /// Until the other side has all that the answer known so far could know.
    async fn wait_for_other(&self) -> Result<(), Unjudged> {
        let inner = &self.reads.0;
        let authority = self.reads.flag().authority;
        let begun = Instant::now();
        let all = async {
            let end: Position = inner.places.end_of(authority).await.map_err(|error| self.no_place(&error))?;
            loop {
                let reached = inner.places.reached_by_other(authority).await.map_err(|error| self.no_place(&error))?;
                if reached.is_some_and(|reached| reached >= end) {
                    return Ok(());
                }
                if begun.elapsed() >= inner.options.patience {
                    return Err(Unjudged::Behind);
                }
                tokio::time::sleep(inner.options.look_every).await;
            }
        };
        // A server that does not answer at all is waited for no longer either.
        let most = inner.options.patience + inner.options.candidate_timeout;
        tokio::time::timeout(most, all).await.unwrap_or(Err(Unjudged::Behind))
    }

    fn no_place(&self, error: &crossfade_connector::Failure) -> Unjudged {
        tracing::debug!("no position for a dual read: {error}");
        Unjudged::NoPlace
    }
}
