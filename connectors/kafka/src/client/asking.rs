//! Questions to a topic through a consumer: what stands in a range of it, and where its partitions end.

use super::{
    LogConsumer, PATIENCE, Right,
    errors::{code_of, is_passing, is_passing_for_readers, needing, reading},
};
use crossfade_log::LogError;
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::Consumer,
    error::{KafkaError, RDKafkaErrorCode},
    message::BorrowedMessage,
    topic_partition_list::TopicPartitionListElem,
};
use std::{
    collections::BTreeMap,
    ops::Range,
    time::{Duration, Instant},
};

/// A list of partitions of a topic, with an offset each.
pub(crate) fn assignment(
    topic: &str,
    places: impl IntoIterator<Item = (i32, u64)>,
) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::new();
    for (partition, at) in places {
        let at = i64::try_from(at).unwrap_or(i64::MAX);
        list.add_partition_offset(topic, partition, Offset::Offset(at))?;
    }
    Ok(list)
}

/// Reads these ranges of a topic's partitions, each to its end or to where the partition ends, or until `each` says that it
/// has seen enough of that partition. What is written beyond a range meanwhile is not waited for: whoever writes may write
/// without a pause.
pub(crate) fn scan(
    consumer: &LogConsumer,
    topic: &str,
    ranges: &[(i32, Range<u64>)],
    mut each: impl FnMut(&BorrowedMessage<'_>) -> Result<bool, LogError>,
) -> Result<(), LogError> {
    let doing = || format!("reading {topic}");
    let failed = |error| reading(topic, error);
    let ranges = || ranges.iter().filter(|(_, range)| !range.is_empty());
    // Up to where each that is not read through yet is read.
    let mut open: BTreeMap<i32, u64> = ranges().map(|(partition, range)| (*partition, range.end)).collect();
    if open.is_empty() {
        return Ok(());
    }
    let from = ranges().map(|(partition, range)| (*partition, range.start));
    let list = assignment(topic, from).map_err(failed)?;
    consumer.assign(&list).map_err(failed)?;
    let mut heard = Instant::now();
    let mut asked = heard;
    while !open.is_empty() {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                heard = Instant::now();
                let offset = message.offset().unsigned_abs();
                if let Some(end) = open.get(&message.partition()).copied()
                    && (offset >= end || each(&message)? || offset + 1 >= end)
                {
                    open.remove(&message.partition());
                }
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                heard = Instant::now();
                open.remove(&partition);
            }
            Some(Err(error)) if !is_passing_for_readers(&error) => return Err(failed(error)),
            Some(Err(_)) | None if heard.elapsed() > PATIENCE => {
                let cause = consumer.context().last().unwrap_or_else(|| "no broker answers".to_owned());
                return Err(LogError::Server { doing: doing(), cause: cause.into(), passing: true });
            }
            // Whoever led the partition may have gone: see [`bounds`].
            Some(Err(_)) | None if heard.max(asked).elapsed() > SILENCE => {
                asked = Instant::now();
                let _ = consumer.fetch_metadata(Some(topic), SILENCE);
            }
            Some(Err(_)) | None => {}
        }
    }
    consumer.unassign().map_err(failed)
}

/// How long nothing may come of a partition before it is asked who leads it.
const SILENCE: Duration = Duration::from_secs(2);

/// How long a broker may not have heard of a topic that another one has just made.
pub(super) const HEARSAY: Duration = Duration::from_secs(5);

/// How long one broker is waited for before it is asked who else has a partition now.
const ONE_BROKER: Duration = Duration::from_secs(10);

/// The first offset that is kept and the one after the last that can be read.
///
/// When a broker goes, its partitions are without a leader until another one takes them over. A client that asks meanwhile
/// is told so, and believes it for minutes where it reads nothing; one that has heard nothing waits for the broker that is
/// gone. So it is made to ask again who leads.
pub(crate) fn bounds(consumer: &LogConsumer, topic: &str, partition: u32) -> Result<(u64, u64), LogError> {
    let began = Instant::now();
    loop {
        let error = match consumer.fetch_watermarks(topic, partition as i32, ONE_BROKER) {
            Ok((low, high)) => {
                return Ok((u64::try_from(low).unwrap_or_default(), u64::try_from(high).unwrap_or_default()));
            }
            Err(error) => error,
        };
        let limit = match code_of(&error) {
            Some(RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition) => HEARSAY,
            _ if is_passing(&error) => PATIENCE,
            _ => Duration::ZERO,
        };
        if began.elapsed() >= limit {
            let rights = [Right::Topic("Read", topic)];
            return Err(needing(&rights, format!("asking where partition {partition} of {topic} ends"), error));
        }
        std::thread::sleep(Duration::from_millis(50));
        // When nobody answers, the next question says so.
        let _ = consumer.fetch_metadata(Some(topic), ONE_BROKER);
    }
}

/// Where partitions end, of all that is asked in one question to each broker; `None` for one that has no leader now.
fn ends(
    consumer: &LogConsumer,
    topic: &str,
    partitions: impl IntoIterator<Item = u32>,
) -> Result<BTreeMap<u32, Option<u64>>, KafkaError> {
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        // Asked for the place of a time, which this stands for: the end.
        list.add_partition_offset(topic, partition as i32, Offset::End)?;
    }
    let found = consumer.offsets_for_times(list, ONE_BROKER)?;
    let end = |element: TopicPartitionListElem<'_>| match (element.error(), element.offset()) {
        (Ok(()), Offset::Offset(at)) => u64::try_from(at).ok(),
        _ => None,
    };
    Ok(found.elements().into_iter().map(|element| (element.partition().unsigned_abs(), end(element))).collect())
}

/// Waits until everything below these ends of a topic's partitions can be read; false when it takes longer than `limit`.
pub(crate) fn reaches(
    consumer: &LogConsumer,
    topic: &str,
    wanted: &BTreeMap<u32, u64>,
    limit: Duration,
) -> Result<bool, LogError> {
    let began = Instant::now();
    let mut pause = Duration::from_micros(500);
    let mut missing = wanted.clone();
    while !missing.is_empty() {
        let rights = [Right::Topic("Read", topic)];
        let failed = |error| needing(&rights, format!("asking where {topic} ends"), error);
        let ends = ends(consumer, topic, missing.keys().copied()).map_err(failed)?;
        let end = |partition: &u32| ends.get(partition).copied().flatten();
        missing.retain(|partition, wanted| end(partition).is_none_or(|end| end < *wanted));
        if let Some(leaderless) = missing.keys().find(|partition| end(partition).is_none()) {
            // Asked by itself it is looked for until somebody leads it.
            bounds(consumer, topic, *leaderless)?;
        }
        if missing.is_empty() {
            break;
        }
        if began.elapsed() > limit {
            return Ok(false);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    Ok(true)
}
