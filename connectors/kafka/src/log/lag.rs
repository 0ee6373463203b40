//! The group `<prefix>.deliver`: how far the sink has come, committed for tools that show lag, and for nobody else. Where
//! the sink goes on stands in the sink itself, so these places are never read here, and it does no harm when they are old,
//! expire, or cannot be written.

use super::shared::Shared;
use crate::client::{LogConsumer, Right, assignment, is_denied, needing};
use crossfade_event::{Cut, Partition};
use rdkafka::{
    consumer::{CommitMode, Consumer},
    error::KafkaError,
};
use std::time::{Duration, Instant};

/// Under this name whoever delivers holds its place in the log.
const DELIVER: &str = "deliver";

/// Brokers forget the places of a group in which nobody is; those of a sink that stands still are written again.
const AGAIN: Duration = Duration::from_secs(3600);

/// How long the last place may take when the log is closed.
const LAST: Duration = Duration::from_secs(2);

/// How long the answer may take before the place is said again.
const ANSWER: Duration = Duration::from_secs(30);

/// Says how far the sink has come, once a second at most: as often as it is asked to.
#[derive(Default)]
pub(super) struct Lag {
    consumer: Option<LogConsumer>,
    said: Option<(Cut, Instant)>,
    /// The answer has not come yet.
    open: bool,
    /// People have been told that it is not allowed: nothing more is said.
    denied: bool,
}

impl Lag {
    /// Hears what came of the last place, and says the present one.
    pub(super) fn follow(&mut self, shared: &Shared) {
        self.hear(shared);
        let Some(cut) = shared.own_place(DELIVER).filter(|_| !self.denied) else { return };
        let is_said = |(said, at): &(Cut, Instant)| match self.open {
            true => at.elapsed() < ANSWER,
            false => *said == cut && at.elapsed() < AGAIN,
        };
        if self.said.as_ref().is_some_and(is_said) {
            return;
        }
        match self.say(shared, &cut) {
            Ok(()) => {
                self.said = Some((cut, Instant::now()));
                self.open = true;
            }
            Err(error) => tracing::debug!(%error, "the sink's place is not committed yet"),
        }
    }

    /// The last place, if there is time for it.
    pub(super) fn end(&mut self, shared: &Shared) {
        let began = Instant::now();
        self.follow(shared);
        while self.open && began.elapsed() < LAST {
            std::thread::sleep(Duration::from_millis(10));
            self.follow(shared);
        }
        self.leave();
    }

    fn hear(&mut self, shared: &Shared) {
        let Some(consumer) = self.consumer.as_ref().filter(|_| self.open) else { return };
        let heard = match consumer.poll(Duration::ZERO) {
            Some(Err(error)) if is_denied(&error) => Some(Err(error)),
            _ => consumer.context().committed(),
        };
        let Some(answer) = heard else { return };
        self.open = false;
        if let Err(error) = answer {
            self.said = None;
            self.complain(shared, error);
        }
    }

    /// Closing a client whose place is not taken may take a while.
    fn leave(&mut self) {
        if let Some(consumer) = self.consumer.take() {
            std::thread::spawn(move || drop(consumer));
        }
    }

    fn complain(&mut self, shared: &Shared, error: KafkaError) {
        let names = &shared.names;
        if is_denied(&error) {
            self.denied = true;
            self.leave();
            let rights = [Right::Group(&names.delivered), Right::Topic("Read", &names.changes)];
            let doing = format!("committing how far the sink has come to the group {}", names.delivered);
            tracing::warn!("tools show no lag of the sink: {}", needing(&rights, doing, error));
        } else {
            tracing::debug!(%error, "the sink's place is not committed yet");
        }
    }

    fn say(&mut self, shared: &Shared, cut: &Cut) -> Result<(), Box<dyn std::error::Error>> {
        let names = &shared.names;
        if self.consumer.is_none() {
            self.consumer = Some(shared.clients.consumer(&names.delivered, false, None)?);
        }
        let Some(consumer) = &self.consumer else { return Ok(()) };
        let end = shared.end().cut;
        let places = (0..shared.partitions()).map(|partition| {
            let (next, end) = (cut.next(Partition(partition)).0, end.next(Partition(partition)).0);
            // Behind the last mark stands the broker's own record of the transaction's end, and nothing of ours.
            (partition as i32, if next == end && next > 0 { next + 1 } else { next })
        });
        consumer.commit(&assignment(&names.changes, places)?, CommitMode::Async)?;
        Ok(())
    }
}
