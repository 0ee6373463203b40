//! The first place that can be read, where the broker has dropped entries.
//!
//! A broker drops segments partition by partition, so the partitions begin in different rounds. The log begins with the
//! first round that all partitions still hold as a whole.

use super::{tail::unreadable, topics::Names};
use crate::{
    client::{LogConsumer, PATIENCE, assignment, reading, scan},
    codec::{Head, What},
};
use crossfade_event::{Cut, Offset, Partition};
use crossfade_log::LogError;
use rdkafka::{Message, consumer::Consumer, message::Timestamp};
use std::{collections::BTreeMap, ops::Range};

/// The first readable place, given the lowest offset that each partition keeps, the last place that was known to be a
/// good beginning, and the end of the log.
pub(super) fn first(consumer: &LogConsumer, names: &Names, low: &Cut, known: &Cut, end: &Cut) -> Result<Cut, LogError> {
    if known.covers(low) {
        return Ok(known.clone());
    }
    let partitions = 0..low.0.len() as u32;
    let from: Vec<(i32, u64)> = partitions
        .clone()
        .filter(|partition| low.next(Partition(*partition)) < end.next(Partition(*partition)))
        .map(|partition| (partition as i32, low.next(Partition(partition)).0))
        .collect();
    let ranges = |from: &[(i32, u64)]| -> Vec<(i32, Range<u64>)> {
        from.iter().map(|(partition, at)| (*partition, *at..end.next(Partition(*partition as u32)).0)).collect()
    };
    // The first mark of each partition ends a round whose beginning may be gone.
    let mut latest: Option<(u64, i64)> = None;
    scan(consumer, &names.changes, &ranges(&from), |message| {
        let mark = mark_of(names, message)?;
        if let Some((round, _)) = mark {
            let at_ms = match message.timestamp() {
                Timestamp::CreateTime(ms) | Timestamp::LogAppendTime(ms) => ms,
                Timestamp::NotAvailable => 0,
            };
            latest = latest.max(Some((round, at_ms)));
        }
        Ok(mark.is_some())
    })?;
    let Some((round, at_ms)) = latest else { return Ok(end.clone()) };
    let near = near(consumer, &names.changes, &from, at_ms)?;
    let mut start = end.clone();
    scan(consumer, &names.changes, &ranges(&near), |message| match mark_of(names, message)? {
        Some((there, next)) if there >= round => {
            start.set_next(Partition(message.partition() as u32), next);
            Ok(true)
        }
        _ => Ok(false),
    })?;
    Ok(start)
}

fn mark_of(names: &Names, message: &rdkafka::message::BorrowedMessage<'_>) -> Result<Option<(u64, Offset)>, LogError> {
    let (partition, offset) = (message.partition() as u32, message.offset().unsigned_abs());
    let head = Head::parse(message.payload().unwrap_or_default())
        .map_err(|wrong| unreadable(names, partition, offset, wrong))?;
    Ok(matches!(head.what, What::Mark { .. }).then_some((head.round, Offset(offset + 1))))
}

/// For each partition the first offset of that time: all records of one transaction bear one. Where there is none, the
/// place from which it was asked for.
pub(super) fn near(
    consumer: &LogConsumer,
    topic: &str,
    from: &[(i32, u64)],
    at_ms: i64,
) -> Result<Vec<(i32, u64)>, LogError> {
    let found = of_that_time(consumer, topic, from.iter().map(|(partition, _)| *partition), at_ms)?;
    let place = |(partition, from): &(i32, u64)| (*partition, found.get(partition).map_or(*from, |at| *from.max(at)));
    Ok(from.iter().map(place).collect())
}

/// The first offset of that time or later, for each partition that has one.
pub(super) fn of_that_time(
    consumer: &LogConsumer,
    topic: &str,
    partitions: impl Iterator<Item = i32>,
    at_ms: i64,
) -> Result<BTreeMap<i32, u64>, LogError> {
    let failed = |error| reading(topic, error);
    let asked = partitions.map(|partition| (partition, at_ms.unsigned_abs()));
    let list = assignment(topic, asked).map_err(failed)?;
    let found = consumer.offsets_for_times(list, PATIENCE).map_err(failed)?;
    let there = |element: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| match element.offset() {
        rdkafka::Offset::Offset(at) => Some((element.partition(), at.unsigned_abs())),
        _ => None,
    };
    Ok(found.elements().iter().filter_map(there).collect())
}
