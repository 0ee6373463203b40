//! Kafka: the event log on topics, for teams whose log must outgrow one machine.
//!
//! [`log::KafkaLog`] is an [`EventLog`](crossfade_log::EventLog) like the embedded one and passes the same suite, against a
//! real broker. [`client`] is the one place that makes producers, consumers and admin clients; [`codec`] turns an event
//! into a Kafka record and back.
//!
//! What this crate deliberately does not do: it decodes no row, and it never asks a broker to make a topic by writing to
//! it.

pub mod client;
pub mod codec;
mod config;
pub mod dual;
mod ids;
pub mod log;
mod note;
mod sink;
mod source;

pub use config::{Connection, ConnectionError, LogOptions, Mechanism, Retention, Sasl, Tls, Workers};
pub use sink::{KafkaSink, KafkaSinkInspect, Layout, OnError, SinkConfig, SinkForm, Unsayable};
pub use source::{
    BinaryMode, DebeziumConfig, DebeziumInspect, DebeziumSource, DecimalMode, Handling, Loss, TimePrecision,
    UNAVAILABLE,
};
