//! Where the topic of entries ends: the last mark of each partition says so itself.

use super::{meta::LastRound, topics::Names};
use crate::{
    client::{LogConsumer, bounds, scan},
    codec::{Head, Unreadable, What},
};
use crossfade_event::{Cut, Offset, Partition, Position};
use crossfade_log::LogError;
use rdkafka::Message;
use std::{collections::BTreeMap, ops::Range};

/// How far before the end a mark is looked for first: only the broker's own records stand behind the last one.
const LOOK_BACK: u64 = 16;

const REMEDY: &str =
    "Put the right topics back, or start again from the source: `crossfade rollback --wipe`, then `crossfade run`";

/// The last mark of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Last {
    pub(super) round: u64,
    pub(super) whole: bool,
    pub(super) upto: Option<Position>,
    /// The offset after it.
    pub(super) next: Offset,
}

/// The last marks, `None` for a partition that holds none, and the lowest offset that each partition keeps.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) last: Vec<Option<Last>>,
    pub(super) low: Cut,
}

/// What the end of the topic means.
#[derive(Debug)]
pub(super) struct Tail {
    /// The last whole round.
    pub(super) settled: LastRound,
    /// The last round of all.
    pub(super) last_round: u64,
    /// There are rounds behind the last whole one: a crash left them.
    pub(super) has_head: bool,
}

/// Reads the last marks.
pub(super) fn ends(consumer: &LogConsumer, names: &Names, partitions: u32) -> Result<Ends, LogError> {
    let mut last: Vec<Option<Last>> = vec![None; partitions as usize];
    let mut limits = BTreeMap::new();
    for partition in 0..partitions {
        limits.insert(partition as i32, bounds(consumer, &names.changes, partition)?);
    }
    let low = Cut(limits.values().map(|(low, _)| Offset(*low)).collect());
    let mut back = LOOK_BACK;
    loop {
        let missing = |partition: &i32| last.get(*partition as usize).is_some_and(Option::is_none);
        let ranges: Vec<(i32, Range<u64>)> = limits
            .iter()
            .filter(|(partition, (low, high))| missing(partition) && low < high)
            .map(|(partition, (low, high))| (*partition, high.saturating_sub(back).max(*low)..*high))
            .collect();
        if ranges.is_empty() {
            return Ok(Ends { last, low });
        }
        scan(consumer, &names.changes, &ranges, |message| {
            let (partition, offset) = (message.partition(), message.offset().unsigned_abs());
            let head = Head::parse(message.payload().unwrap_or_default())
                .map_err(|wrong| unreadable(names, partition as u32, offset, wrong))?;
            if let (What::Mark { whole, upto }, Some(slot)) = (head.what, last.get_mut(partition as usize)) {
                *slot = Some(Last { round: head.round, whole, upto, next: Offset(offset + 1) });
            }
            Ok(false)
        })?;
        // Those that were read from their very beginning and have no mark hold nothing that was ever committed.
        limits.retain(|partition, (low, high)| !ranges.contains(&(*partition, *low..*high)));
        back = back.saturating_mul(16);
    }
}

/// The end as it was noted, for whoever does not write: the topic may have more since, and not less.
pub(super) fn noted(
    consumer: &LogConsumer,
    names: &Names,
    partitions: u32,
    noted: Option<LastRound>,
) -> Result<Tail, LogError> {
    let settled = noted.unwrap_or_else(|| nothing(partitions));
    for partition in 0..partitions {
        let (_, end) = bounds(consumer, &names.changes, partition)?;
        if end < settled.cut.next(Partition(partition)).0 {
            return Err(LogError::Lost {
                what: format!("partition {partition} of the topic {} has lost its end", names.changes),
                remedy: REMEDY.to_owned(),
            });
        }
    }
    Ok(Tail { last_round: settled.round, has_head: false, settled })
}

/// What is noted before the first round.
fn nothing(partitions: u32) -> LastRound {
    LastRound { round: 0, cut: Cut::start(partitions), position: None, at_ms: 0, abandoned: Vec::new() }
}

/// Holds what the topic says against what was noted, so that a topic which lost its end is never taken for whole.
pub(super) fn settle(names: &Names, ends: &Ends, noted: Option<LastRound>) -> Result<Tail, LogError> {
    let partitions = ends.last.len() as u32;
    let noted = noted.unwrap_or_else(|| nothing(partitions));
    let found: Vec<&Last> = ends.last.iter().flatten().collect();
    let last_round = found.iter().map(|last| last.round).max();
    let lost = |what: String| Err(LogError::Lost { what, remedy: REMEDY.to_owned() });
    let Some(last_round) = last_round else {
        // Everything has expired, or nothing ever came.
        if !ends.low.covers(&noted.cut) {
            return lost(format!(
                "the topic {} is empty, and its entries up to {} were known",
                names.changes, noted.cut
            ));
        }
        return Ok(Tail { last_round: noted.round, has_head: false, settled: noted });
    };
    for (partition, last) in ends.last.iter().enumerate() {
        let expired =
            last.is_none() && ends.low.0.get(partition) >= noted.cut.0.get(partition) && last_round == noted.round;
        if !expired && last.is_none_or(|last| last.round != last_round) {
            return lost(format!("partition {partition} of the topic {} has lost its end", names.changes));
        }
    }
    if last_round < noted.round {
        return lost(format!(
            "the topic {} ends with round {last_round}, and round {} was known",
            names.changes, noted.round
        ));
    }
    let agrees = |last: &&Last| last.whole && last.upto <= noted.position;
    let cut_agrees = ends.last.iter().zip(&noted.cut.0).all(|(last, next)| last.is_none_or(|last| last.next == *next));
    if last_round == noted.round && !(cut_agrees && found.iter().all(agrees)) {
        return lost(format!("the topic {} does not end as it was known to end, at {}", names.changes, noted.cut));
    }
    let mut settled = noted;
    let has_head = last_round > settled.round;
    if has_head {
        if found.iter().any(|last| last.whole) {
            return lost(format!("the topics {} and {} do not belong together", names.changes, names.meta));
        }
        let head = (settled.round + 1, last_round);
        // It may have been noted already, with nothing behind it since.
        if settled.abandoned.last() != Some(&head) {
            settled.abandoned.push(head);
        }
    }
    Ok(Tail { settled, last_round, has_head })
}

/// A record that cannot be read, as the log's error.
pub(super) fn unreadable(names: &Names, partition: u32, offset: u64, wrong: Unreadable) -> LogError {
    match wrong {
        Unreadable::TooNew(found) => LogError::TooNew {
            file: names.changes.clone().into(),
            found: u32::from(found),
            known: u32::from(crate::codec::FORMAT),
        },
        Unreadable::Foreign => LogError::Refused {
            what: format!(
                "the topic {} holds a record (partition {partition}, offset {offset}) that Crossfade did not write",
                names.changes
            ),
            remedy: "Name another topic_prefix, and let nobody else write to the topics".to_owned(),
        },
        Unreadable::Damaged(malformed) => LogError::Lost {
            what: format!(
                "the topic {} is damaged (partition {partition}, offset {offset}): {malformed}",
                names.changes
            ),
            remedy: REMEDY.to_owned(),
        },
    }
}
