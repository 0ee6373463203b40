//! Whether a transaction is over for its readers, too: see [`crate::log`]'s `ended` on how a broker that is killed at the
//! wrong moment can leave one that nobody ends.
//!
//! A batch counts only once all of it can be read; and what nobody ends, which then counted for nobody, is aborted before
//! anything else is written.

use super::notes::Standing;
use crate::{
    client::{Clients, LogConsumer, LogProducer, bounds, flush, reaches, writing},
    source::topics::failure,
};
use crossfade_connector::Failure;
use rdkafka::producer::{BaseRecord, Producer};
use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

/// How long the marks of an end may be on their way.
const UNDER_WAY: Duration = Duration::from_secs(1);

/// How long they may take after an abort.
const ABORT: Duration = Duration::from_secs(20);

/// How long what was committed may take until it can be read.
const READABLE: Duration = Duration::from_secs(10);

/// A partition with a transaction that nobody ends, and where it begins.
struct Hanging {
    topic: String,
    partition: u32,
    from: u64,
}

/// Waits until all of a transaction can be read.
pub(super) fn until_readable(stable: &LogConsumer, ends: &[(String, u32, u64)]) -> Result<(), Failure> {
    let mut by_topic: BTreeMap<&str, BTreeMap<u32, u64>> = BTreeMap::new();
    for (topic, partition, end) in ends {
        by_topic.entry(topic).or_default().insert(*partition, *end);
    }
    for (topic, ends) in by_topic {
        if !reaches(stable, topic, &ends, READABLE).map_err(failure)? {
            let doing = format!("waiting until {topic} can be read");
            return Err(Failure::reconnect(doing, "a transaction was committed and is not to be read yet"));
        }
    }
    Ok(())
}

/// Ends what nobody ends. Call it right after `producer` has begun: then nothing of it is on its way.
pub(super) fn abort_hanging(
    clients: &Clients,
    stable: &LogConsumer,
    producer: &LogProducer,
    topics: &[(String, u32)],
    standing: Option<&Standing>,
) -> Result<(), Failure> {
    let all = clients.uncommitted(super::GROUP).map_err(failure)?;
    let hanging = hanging_for(&all, stable, topics, UNDER_WAY)?;
    let Some(first) = hanging.first() else { return Ok(()) };
    for Hanging { topic, partition, from } in &hanging {
        let is_noted = |(name, number, end): &&(String, u32, u64)| name == topic && number == partition && end > from;
        if standing.is_some_and(|standing| standing.reaches.iter().any(|reach| is_noted(&reach))) {
            return Err(Failure::lost(
                format!("looking at partition {partition} of {topic}"),
                "the broker has committed a transaction in a part of its topics only",
                "Start again: `crossfade rollback --wipe`, then `crossfade run`",
            ));
        }
    }
    tracing::warn!(
        topic = %first.topic, partition = first.partition, offset = first.from,
        "the broker has left a transaction without an end; it is aborted now, and what was in it is written again"
    );
    let failed = |error| failure(writing(&first.topic, error));
    producer.begin_transaction().map_err(failed)?;
    for Hanging { topic, partition, .. } in &hanging {
        // Nobody ever reads it: it only brings the partition into the transaction.
        let record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(topic, 0).partition(*partition as i32);
        producer.send(record.payload(b"")).map_err(|(error, _)| failed(error))?;
    }
    flush(producer, ABORT).map_err(failed)?;
    producer.abort_transaction(ABORT).map_err(failed)?;
    match hanging_for(&all, stable, topics, ABORT)?.first() {
        None => Ok(()),
        Some(Hanging { topic, partition, from }) => Err(Failure::refused(
            format!("beginning to write to {topic}"),
            format!("a transaction in its partition {partition} is ended by nobody, and it is not ours"),
            format!(
                "Abort it: kafka-transactions --bootstrap-server HOST:PORT abort --topic {topic} --partition {partition} --start-offset {from}; and let nobody else write to the topic"
            ),
        )),
    }
}

/// Partitions in which something is open for as long as `limit`.
fn hanging_for(
    all: &LogConsumer,
    stable: &LogConsumer,
    topics: &[(String, u32)],
    limit: Duration,
) -> Result<Vec<Hanging>, Failure> {
    let began = Instant::now();
    loop {
        let mut hanging = Vec::new();
        for (topic, partitions) in topics {
            for partition in 0..*partitions {
                // First the end, which may move on: what can be read then reaches it unless something is open.
                let (_, end) = bounds(all, topic, partition).map_err(failure)?;
                let (_, from) = bounds(stable, topic, partition).map_err(failure)?;
                if from < end {
                    hanging.push(Hanging { topic: topic.clone(), partition, from });
                }
            }
        }
        if hanging.is_empty() || began.elapsed() > limit {
            return Ok(hanging);
        }
        thread::sleep(Duration::from_millis(20));
    }
}
