//! Several that deliver: each is a member of a group that has the partitions shared out, and notes in the compacted topic
//! which it applies, and how far, so that everybody can say it.
//!
//! The group says only who *has* a partition. Who may write it is the sink's word; where it goes on, too. The group's own
//! offsets are committed for tools that show lag, and asked for nothing.

use super::{
    KafkaLog, drawn,
    members::{Member, Turn},
    meta::{Applies, Says, Writer},
    reader::KafkaReader,
    shared::lock,
    who,
};
use crate::client::{assignment, is_passing, server};
use crossfade_event::{Cut, Offset, Partition};
use crossfade_log::{Lane, LogError};
use rdkafka::consumer::{CommitMode, Consumer};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// How often the group is listened to.
const LISTEN: Duration = Duration::from_millis(100);

/// How often it is noted how far this process is.
const NOTE_EVERY: Duration = Duration::from_secs(1);

/// How often the group's own offsets are committed.
const COMMIT_EVERY: Duration = Duration::from_secs(5);

/// One process that delivers beside others.
pub trait Seat: Send + Sync {
    /// These partitions are this process's now, and no others.
    fn given(&self, partitions: &BTreeSet<u32>);

    /// The partitions that it applies, and the first offset of each that is not in the sink.
    fn places(&self) -> BTreeMap<u32, Offset>;
}

/// Who applies a partition, by what it has noted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applying {
    /// For people.
    pub who: String,
    /// Its process.
    pub pid: u32,
    /// Entries of the partition that are still before it, marks included.
    pub before: u64,
    /// When it said so, in milliseconds since 1970.
    pub at_ms: i64,
}

impl KafkaLog {
    /// Takes a seat among those that deliver, until `stop` is set. Blocks. `silent` is how long it may say nothing before
    /// its partitions are given to others.
    ///
    /// # Errors
    /// [`LogError::Server`] when the group refuses it, and what keeps the log from being read.
    pub fn take_seat(&self, silent: Duration, stop: &AtomicBool, seat: &dyn Seat) -> Result<(), LogError> {
        let shared = &self.0.shared;
        let group = &shared.names.delivers;
        let member = shared.clients.member(group, silent, Member::default())?;
        member
            .subscribe(&[&shared.names.changes])
            .map_err(|error| server(format!("joining the group {group}"), error))?;
        let mut given = BTreeSet::new();
        let (mut noted, mut committed) = (Instant::now(), Instant::now());
        let ended = loop {
            if stop.load(Relaxed) {
                break Ok(());
            }
            if let Some(trouble) = shared.trouble() {
                break Err(trouble.error());
            }
            // Nothing is read here: its partitions rest.
            if let Some(Err(error)) = member.poll(LISTEN) {
                tracing::debug!(%error, "the group of those that deliver");
                if !is_passing(&error) {
                    break Err(server(format!("delivering in the group {group}"), error));
                }
            }
            let turns = member.context().turns();
            if !turns.is_empty() {
                turns.into_iter().for_each(|turn| take(&mut given, turn));
                tracing::info!(partitions = ?given, "the group has given this deliver its partitions");
                seat.given(&given);
            }
            if noted.elapsed() >= NOTE_EVERY {
                noted = Instant::now();
                let places = seat.places();
                if let Err(error) = self.note_places(&given, &places) {
                    tracing::debug!(%error, "it is not noted yet how far this deliver is");
                }
                if committed.elapsed() >= COMMIT_EVERY {
                    committed = Instant::now();
                    let places = places.iter().filter(|(partition, _)| given.contains(*partition));
                    let places = places.map(|(partition, next)| (partition.cast_signed(), next.0));
                    let list = assignment(&shared.names.changes, places);
                    if let Err(error) = list.and_then(|list| member.commit(&list, CommitMode::Async)) {
                        tracing::debug!(%error, "the group's offsets are not committed");
                    }
                }
            }
        };
        seat.given(&BTreeSet::new());
        if let Err(error) = self.note_places(&given, &BTreeMap::new()) {
            tracing::debug!(%error, "it is not noted that this deliver has gone");
        }
        member.unsubscribe();
        ended
    }

    /// Notes what has changed of the partitions that are ours.
    fn note_places(&self, given: &BTreeSet<u32>, places: &BTreeMap<u32, Offset>) -> Result<(), LogError> {
        let shared = &self.0.shared;
        let (who, pid) = (who(), std::process::id());
        let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
        let mut news = Vec::new();
        {
            let delivers = lock(&shared.delivers);
            for partition in given {
                let before = delivers.shares.get(partition);
                match places.get(partition) {
                    Some(next) if before.is_none_or(|noted| noted.who != who || noted.next != *next) => {
                        news.push((*partition, Some(Applies { who: who.clone(), pid, next: *next, at_ms })));
                    }
                    None if before.is_some() => news.push((*partition, None)),
                    _ => {}
                }
            }
        }
        shared.write_shares(&news)
    }

    /// Says that this process has the lead of those that deliver.
    ///
    /// # Errors
    /// [`LogError::ReadOnly`] for a log that is only looked at, [`LogError::Server`] when it cannot be written.
    pub fn say_lead(&self) -> Result<(), LogError> {
        self.0.shared.say(&Says::Lead(Writer { id: drawn(), who: who() })).map(drop)
    }

    /// This process no longer says how far that consumer is: another one does.
    pub fn leave_hold(&self, consumer: &str) {
        lock(&self.0.shared.holds).leave(consumer);
    }

    /// Who has the lead of several that deliver, by what was noted last.
    pub fn lead(&self) -> Option<String> {
        lock(&self.0.shared.delivers).lead.as_ref().map(|lead| lead.who.clone())
    }

    /// Who applies which partition of a stream that is shared.
    pub fn applying(&self) -> BTreeMap<u32, Applying> {
        let end = self.0.shared.end().cut;
        let applying = |(partition, applies): (&u32, &Applies)| {
            let before = end.next(Partition(*partition)).0.saturating_sub(applies.next.0);
            (*partition, Applying { who: applies.who.clone(), pid: applies.pid, before, at_ms: applies.at_ms })
        };
        lock(&self.0.shared.delivers).shares.iter().map(applying).collect()
    }

    /// Reads the rows of one partition, what workers have made of them, and what belongs to no row, from a cut in which
    /// the other partitions mean nothing.
    ///
    /// # Errors
    /// As [`crossfade_log::EventLog::read`].
    pub fn read_partition(&self, from: &Cut, partition: Partition) -> Result<KafkaReader, LogError> {
        let shared = &self.0.shared;
        let reader = KafkaReader::of_worker(shared.clone(), self.0.clone(), from, partition, Lane::Stream)?;
        Ok(if shared.standing.transformed.is_some() { reader.with_made() } else { reader })
    }
}

fn take(given: &mut BTreeSet<u32>, turn: Turn) {
    match turn {
        Turn::Given(partitions) => given.extend(partitions),
        Turn::Taken { partitions, held_dead } => {
            if held_dead {
                tracing::warn!(
                    ?partitions,
                    "the group held this deliver for dead and gives its partitions to others: what it had begun in them does not count, and it joins again"
                );
            }
            given.retain(|partition| !partitions.contains(partition));
        }
    }
}
