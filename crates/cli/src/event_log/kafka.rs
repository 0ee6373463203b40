//! From `[log] kind = "kafka"` to topics: their names, how they are reached, and what stands in their way.

use super::{SILENT, Seat, Sound, prefix};
use crate::{
    commands::Finding,
    error::CliError,
    output,
    spec::{KafkaLog as Keys, KafkaSasl, KafkaTls, Mechanism, Spec, Transformer},
};
use bytes::Bytes;
use crossfade_event::{Event, Offset, SchemaVersion, TableId};
use crossfade_kafka::{
    Connection, LogOptions, Mechanism as KafkaMechanism, Retention, Sasl, Tls, Workers,
    client::{BrokerFigures, ClientFigures, ends_figures},
    log::{KafkaLog, Make, Process, Share, delete, examine},
};
use crossfade_log::{Entry, EventLog, Lane, LogError, LogReader};
use crossfade_observe::{BrokerStatus, ClientStatus, DeliverStatus, ProcessStatus};
use crossfade_pipeline::{Maker, PipelineError, Routes};
use secrecy::SecretString;
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::AtomicBool},
};

/// What a worker makes, made by the pipeline.
struct Work(Maker<KafkaLog>);

impl Make for Work {
    fn take(&mut self, entry: &Entry) -> Result<Option<Bytes>, LogError> {
        self.0.take(entry).map_err(of_worker)
    }

    fn followed(&self) -> Vec<(TableId, SchemaVersion)> {
        self.0.followed()
    }
}

fn of_worker(error: PipelineError) -> LogError {
    match error {
        PipelineError::Log(error) => error,
        other => LogError::Refused {
            what: other.to_string(),
            remedy: "Deliver comes to the same end at this place; see what it says".to_owned(),
        },
    }
}

/// Works as a transform worker of the log until `stop` is set.
pub(super) fn transform(
    log: &KafkaLog,
    routes: Routes,
    stop: &AtomicBool,
    tell: &dyn Fn(Share),
) -> Result<(), LogError> {
    let of = log.clone();
    let begin = move |followed: &[(TableId, SchemaVersion)]| {
        let maker = Maker::new(of.clone(), routes.clone(), followed).map_err(of_worker)?;
        Ok(Box::new(Work(maker)) as Box<dyn Make>)
    };
    log.transform(Arc::new(begin), stop, tell)
}

/// What the group tells, told on.
pub(super) struct Seated<'a>(pub(super) &'a dyn Seat);

impl crossfade_kafka::log::Seat for Seated<'_> {
    fn given(&self, partitions: &BTreeSet<u32>) {
        self.0.given(partitions);
    }

    fn places(&self) -> BTreeMap<u32, Offset> {
        self.0.places()
    }
}

/// Those that share the stream, in the order of their first partitions.
pub(super) fn delivers(log: &KafkaLog) -> Vec<DeliverStatus> {
    let lead = log.lead();
    let mut delivers: Vec<DeliverStatus> = Vec::new();
    for (partition, applying) in log.applying() {
        let at = jiff::Timestamp::from_millisecond(applying.at_ms).map_or_else(|_| String::new(), |at| at.to_string());
        let known = delivers.iter().position(|deliver| deliver.process == applying.who);
        let place = known.unwrap_or(delivers.len());
        if known.is_none() {
            delivers.push(DeliverStatus {
                leads: lead.as_ref() == Some(&applying.who),
                process: applying.who,
                pid: applying.pid,
                ..DeliverStatus::default()
            });
        }
        if let Some(deliver) = delivers.get_mut(place) {
            deliver.partitions.insert(partition, applying.before);
            deliver.at = std::mem::take(&mut deliver.at).max(at);
        }
    }
    delivers
}

/// How the log is kept. The ids of its topics are noted in the migration's folder.
pub(super) fn options(spec: &Spec, keys: &Keys) -> LogOptions {
    let retention =
        Retention { time: keys.retention.time.map(|time| time.0), bytes: keys.retention.bytes.map(|bytes| bytes.0) };
    LogOptions {
        partitions: keys.partitions,
        replication: keys.replication,
        min_insync_replicas: keys.min_insync_replicas,
        retention,
        segment_bytes: keys.segment_bytes.map(|size| size.0),
        workers: (keys.transform == Transformer::Workers)
            .then(|| Workers { silent: keys.worker_timeout.map_or(SILENT, |silent| silent.0) }),
        pin: Some(super::pin(spec)),
        ..LogOptions::new(connection(&keys.brokers, keys.tls.as_ref(), keys.sasl.as_ref()), prefix(spec, keys))
    }
}

/// How a spec's brokers are reached.
pub(crate) fn connection(brokers: &str, tls: Option<&KafkaTls>, sasl: Option<&KafkaSasl>) -> Connection {
    let tls = tls.map(|tls| Tls {
        authority: tls.authority.clone(),
        certificate: tls.certificate.clone(),
        key: tls.key.clone(),
        key_password: tls.key_password.as_ref().map(|password| SecretString::from(password.expose())),
    });
    let sasl = sasl.map(|sasl| Sasl {
        mechanism: match sasl.mechanism {
            Mechanism::ScramSha512 => KafkaMechanism::ScramSha512,
            Mechanism::ScramSha256 => KafkaMechanism::ScramSha256,
            Mechanism::Plain => KafkaMechanism::Plain,
        },
        user: sasl.user.clone(),
        password: SecretString::from(sasl.password.expose()),
        without_tls: sasl.without_tls,
    });
    Connection { brokers: brokers.to_owned(), tls, sasl }
}

/// What the log's clients in this process have counted.
pub(super) fn clients(log: &KafkaLog) -> Vec<ClientStatus> {
    log.figures().into_iter().map(client).collect()
}

/// What those of a source and a sink over topics have.
pub(super) fn ends_clients() -> Vec<ClientStatus> {
    ends_figures().into_iter().map(client).collect()
}

fn client(figures: ClientFigures) -> ClientStatus {
    let broker = |(number, seen): (i32, BrokerFigures)| {
        let BrokerFigures { connected, outstanding, rtt_us, rtt_p99_us, errors } = seen;
        (number, BrokerStatus { connected, outstanding, rtt_us, rtt_p99_us, errors })
    };
    ClientStatus {
        purpose: figures.purpose.to_owned(),
        clients: figures.clients,
        queued_records: figures.queued_records,
        queued_bytes: figures.queued_bytes,
        sent_records: figures.sent_records,
        sent_bytes: figures.sent_bytes,
        received_records: figures.received_records,
        received_bytes: figures.received_bytes,
        transactions: figures.transactions,
        brokers: figures.brokers.into_iter().map(broker).collect(),
    }
}

/// All processes of the migration, as they say themselves.
pub(super) fn processes(log: &KafkaLog) -> Vec<ProcessStatus> {
    let at = |ms| jiff::Timestamp::from_millisecond(ms).map_or_else(|_| String::new(), |at| at.to_string());
    let status = |process: Process| ProcessStatus {
        who: process.who,
        role: process.role,
        at: at(process.at_ms),
        partitions: process.partitions,
        behind: process.behind,
        waiting: process.waiting,
    };
    log.processes().into_iter().map(status).collect()
}

/// Whether the migration has noted its topics.
pub(super) fn is_pinned(options: &LogOptions) -> bool {
    options.pin.as_ref().is_some_and(|pin| pin.exists())
}

/// Deletes the topics that this migration has noted as its own.
pub(super) async fn forget(options: LogOptions) -> Result<(), CliError> {
    let deleted = tokio::task::spawn_blocking(move || delete(&options)).await;
    let deleted = deleted.map_err(|error| CliError::failed(format!("deleting the log's topics: {error}")))??;
    if !deleted.is_empty() {
        tracing::info!(topics = deleted.join(", "), "the log's topics are deleted");
    }
    Ok(())
}

/// Whether a log could be kept so: brokers that cannot be reached, and a log that is lost, are errors; what must be
/// changed first is a finding.
pub(super) async fn preflight(options: LogOptions) -> Result<Vec<Finding>, CliError> {
    let object = options.connection.brokers.clone();
    let examined = tokio::task::spawn_blocking(move || examine(&options)).await;
    let finding = |problem, remedy, fatal| Finding { end: "log", object: object.clone(), problem, remedy, fatal };
    match examined.map_err(|error| CliError::failed(format!("asking Kafka: {error}")))? {
        Ok(found) if found.there => Ok(Vec::new()),
        Ok(found) => Ok(vec![finding(
            format!("the topics {} and {} are not there yet", found.changes, found.meta),
            "`crossfade run` makes them; to have others make them, see the page of connectors/kafka".to_owned(),
            false,
        )]),
        Err(LogError::Refused { what, remedy }) => Ok(vec![finding(what, remedy, true)]),
        Err(error) => Err(error.into()),
    }
}

/// Reads every entry again: each is decoded, and each round is as long as its end says.
pub(super) fn verify(log: &KafkaLog) -> Result<Sound, CliError> {
    let mut reader = log.read(&log.start(), Lane::All)?;
    let (mut records, mut rows, mut transactions, mut bytes) = (0u64, 0u64, 0u64, 0u64);
    while let Some(entries) = reader.try_next()? {
        for entry in entries.entries {
            records += 1;
            bytes += entry.event.size_bytes() as u64;
            match &entry.event {
                Event::Rows(block) => {
                    for row in block.iter() {
                        row.map_err(|error| damaged(log, &entry, &error))?;
                        rows += 1;
                    }
                }
                Event::Committed => transactions += 1,
                _ => {}
            }
        }
    }
    let said = format!(
        "{} records, {} copied rows, {} transactions, {}",
        output::count(records),
        output::count(rows),
        output::count(transactions),
        output::bytes(bytes)
    );
    let figures = json!({ "records": records, "rows": rows, "transactions": transactions, "bytes": bytes });
    Ok(Sound { said, figures })
}

fn damaged(log: &KafkaLog, entry: &crossfade_log::Entry, error: &dyn std::fmt::Display) -> CliError {
    let (partition, offset) = (entry.partition.0, entry.offset);
    CliError::new(
        crate::error::Exit::Lost,
        format!("the topic {} is damaged (partition {partition}, offset {offset}): {error}", log.topic()),
    )
    .hint("start again from the source: `crossfade rollback --wipe`, then `crossfade run`")
}
