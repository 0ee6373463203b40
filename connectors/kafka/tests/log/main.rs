//! The log on a real broker.

mod broken;
mod conformance;
mod figures;
mod following;
mod keeping;
mod secured;
mod several;
mod torn;
mod workers;

use crossfade_kafka::{Connection, LogOptions, log::KafkaLog};
use crossfade_testkit::kafka::Kafka;

pub(crate) fn options(kafka: &Kafka, prefix: &str, partitions: u32) -> LogOptions {
    LogOptions { partitions: Some(partitions), ..LogOptions::new(Connection::plain(kafka.brokers()), prefix) }
}

pub(crate) fn open(kafka: &Kafka, prefix: &str, partitions: u32) -> KafkaLog {
    KafkaLog::open(options(kafka, prefix, partitions)).unwrap_or_else(|error| panic!("{error}: {error:?}"))
}

pub(crate) fn follow(kafka: &Kafka, prefix: &str, partitions: u32) -> KafkaLog {
    let opened = KafkaLog::open_following(options(kafka, prefix, partitions));
    opened.unwrap_or_else(|error| panic!("{error}: {error:?}"))
}
