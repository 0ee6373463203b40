//! The group `<prefix>.deliver`: how far the sink has come, committed for tools that show lag, and for nobody else. Where
//! the sink goes on stands in the sink itself, so these places are never read here, and it does no harm when they are old,
//! expire, or cannot be written.

use super::shared::Shared;
use crate::client::{LogConsumer, Right, assignment, code_of, is_denied, needing};
use crossfade_event::{Cut, Partition};
use rdkafka::{
    TopicPartitionList,
    consumer::{CommitMode, Consumer},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code},
};
use std::{
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::{Duration, Instant},
};

/// Under this name whoever delivers holds its place in the log.
const DELIVER: &str = "deliver";

/// Brokers forget the places of a group in which nobody is; those of a sink that stands still are written again.
const AGAIN: Duration = Duration::from_secs(3600);

/// How long the last place may take when the log is closed.
const LAST: Duration = Duration::from_secs(2);

/// How long it is left to those that are in the group, before it is tried again.
const OTHERS: Duration = Duration::from_secs(60);

/// Says how far the sink has come, once a second at most: as often as it is asked to.
#[derive(Default)]
pub(super) struct Lag {
    /// Who waits for the brokers' answers, so that nobody else has to.
    clerk: Option<Clerk>,
    said: Option<(Cut, Instant)>,
    /// The answer has not come yet.
    open: bool,
    /// People have been told that it is not allowed: nothing more is said.
    denied: bool,
    /// Somebody is in the group, and says the places himself: since then.
    others: Option<Instant>,
}

impl Lag {
    /// Hears what came of the last place, and says the present one.
    pub(super) fn follow(&mut self, shared: &Shared) {
        self.hear(shared);
        if self.others.is_some_and(|since| since.elapsed() < OTHERS) {
            return;
        }
        let Some(cut) = shared.own_place(DELIVER).filter(|_| !self.denied) else { return };
        let is_said = |(said, at): &(Cut, Instant)| *said == cut && at.elapsed() < AGAIN;
        if self.open || self.said.as_ref().is_some_and(is_said) {
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
        self.clerk = None;
    }

    fn hear(&mut self, shared: &Shared) {
        let Some(answer) = self.clerk.as_ref().and_then(|clerk| clerk.answers.try_recv().ok()) else { return };
        self.open = false;
        if let Err(error) = answer {
            self.said = None;
            self.complain(shared, error);
        }
    }

    fn complain(&mut self, shared: &Shared, error: KafkaError) {
        let names = &shared.names;
        if is_denied(&error) {
            self.denied = true;
            self.clerk = None;
            let rights = [Right::Group(&names.delivers), Right::Topic("Read", &names.changes)];
            let doing = format!("committing how far the sink has come to the group {}", names.delivers);
            tracing::warn!("tools show no lag of the sink: {}", needing(&rights, doing, error));
            return;
        }
        tracing::debug!(%error, "the sink's place is not committed yet");
        if let Some(Code::UnknownMemberId | Code::IllegalGeneration | Code::RebalanceInProgress) = code_of(&error) {
            self.others = Some(Instant::now());
        }
    }

    fn say(&mut self, shared: &Shared, cut: &Cut) -> Result<(), Box<dyn std::error::Error>> {
        let names = &shared.names;
        if self.clerk.is_none() {
            self.clerk = Some(Clerk::start(shared.clients.consumer(&names.delivers, false, None)?)?);
        }
        let Some(clerk) = &self.clerk else { return Ok(()) };
        let end = shared.end().cut;
        let places = (0..shared.partitions()).map(|partition| {
            let (next, end) = (cut.next(Partition(partition)).0, end.next(Partition(partition)).0);
            // Behind the last mark stands the broker's own record of the transaction's end, and nothing of ours.
            (partition as i32, if next == end && next > 0 { next + 1 } else { next })
        });
        clerk.places.send(assignment(&names.changes, places)?)?;
        Ok(())
    }
}

/// A thread that commits places: an answer may take long, and closing a client whose question was not answered does.
struct Clerk {
    places: Sender<TopicPartitionList>,
    answers: Receiver<KafkaResult<()>>,
}

impl Clerk {
    /// It ends once nobody gives it places any more, and nobody waits for that.
    fn start(consumer: LogConsumer) -> std::io::Result<Self> {
        let (places, given) = mpsc::channel::<TopicPartitionList>();
        let (answer, answers) = mpsc::channel();
        thread::Builder::new().name("kafka-log-lag".to_owned()).spawn(move || {
            for list in given {
                if answer.send(commit(&consumer, &list)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { places, answers })
    }
}

/// Commits places. That a right is missing is told beside the answer, which knows of a time-out alone.
fn commit(consumer: &LogConsumer, list: &TopicPartitionList) -> KafkaResult<()> {
    let failed = match consumer.commit(list, CommitMode::Sync) {
        Err(failed) if !is_denied(&failed) => failed,
        answered => return answered,
    };
    while let Some(beside) = consumer.poll(Duration::from_millis(10)) {
        if let Err(error) = beside
            && is_denied(&error)
        {
            return Err(error);
        }
    }
    Err(failed)
}
