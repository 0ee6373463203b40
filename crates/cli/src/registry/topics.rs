//! Topics for others to read as a sink: how a spec names them, and which columns they cannot hold wholly.

use crate::{
    event_log::kafka::connection,
    spec::{Cleanup, DualLayout, KafkaSink as Keys, OnError, SinkDecimal, SinkFormat, Spec},
};
use crossfade_connector::Target;
use crossfade_kafka::{DecimalMode, KafkaSink, Layout, OnError as KafkaOnError, Retention, SinkConfig, SinkForm};
use crossfade_transform::{Fidelity, Note};

/// Where and how a spec's sink writes.
pub(super) fn config(spec: &Spec, keys: &Keys) -> SinkConfig {
    let connection = connection(&keys.brokers, keys.tls.as_ref(), keys.sasl.as_ref());
    SinkConfig {
        form: match keys.format {
            SinkFormat::DebeziumJson => SinkForm::DebeziumJson,
        },
        layout: match keys.layout {
            DualLayout::TwoTopics => Layout::TwoTopics,
            DualLayout::OneRecord => Layout::OneRecord,
        },
        schemas: keys.schemas,
        transactions: keys.transactions,
        decimal: match keys.decimal {
            SinkDecimal::Precise => DecimalMode::Precise,
            SinkDecimal::String => DecimalMode::String,
        },
        partitions: keys.partitions,
        replication: keys.replication,
        min_insync_replicas: keys.min_insync_replicas,
        compact: keys.cleanup == Cleanup::Compact,
        retention: Retention {
            time: keys.retention.time.map(|time| time.0),
            bytes: keys.retention.bytes.map(|bytes| bytes.0),
        },
        on_error: match keys.on_error {
            OnError::Quarantine => KafkaOnError::Quarantine,
            OnError::Stop => KafkaOnError::Stop,
        },
        ..SinkConfig::new(connection, spec.name.as_str(), keys.topic_prefix.as_str())
    }
}

/// The sink of a spec; not connected yet.
pub(super) fn sink(spec: &Spec, keys: &Keys) -> KafkaSink {
    KafkaSink::new(config(spec, keys))
}

/// The columns of which the records cannot hold every value, and those that Debezium's own JDBC sink connector does not
/// write as they are.
pub(super) fn unsayable(spec: &Spec, keys: &Keys, target: &Target) -> Vec<Note> {
    let note = |one: crossfade_kafka::Unsayable, fidelity, text| Note {
        table: one.table,
        column: Some(one.column),
        fidelity,
        text,
    };
    let sink = sink(spec, keys);
    let inexact = sink.unsayable(target).into_iter().map(|one| {
        let text = format!("{}: rows with such values go to quarantine", one.text);
        note(one, Fidelity::Inexact, text)
    });
    let elsewhere = sink.lost_by_jdbc(target).into_iter().map(|one| {
        let text = format!("Debezium's JDBC sink connector does not write it as it is: {}", one.text);
        note(one, Fidelity::Advice, text)
    });
    inexact.chain(elsewhere).collect()
}
