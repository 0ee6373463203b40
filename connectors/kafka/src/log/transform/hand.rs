//! Who writes one partition of what was made: takes it over, says where it stands, and commits.

use super::super::{
    ended::Ended,
    made::{NOTE, Note},
    shared::Shared,
    topics::Names,
};
use crate::client::{LogProducer, PATIENCE, Purpose, Right, assignment, code_of, flush, needing, reason, send};
use crossfade_event::Partition;
use crossfade_log::LogError;
use rdkafka::{
    consumer::ConsumerGroupMetadata,
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseRecord, Producer},
};
use std::time::Duration;

/// How long one step of a transaction may take before it is held to have failed.
pub(super) const STEP: Duration = Duration::from_secs(50);

/// How long what was committed may take until it can be read.
const READABLE: Duration = Duration::from_secs(10);

/// Why a partition is begun anew, or left.
pub(super) enum Broken {
    /// Somebody else has it now.
    Fenced(KafkaError),
    Log(LogError),
}

impl From<LogError> for Broken {
    fn from(error: LogError) -> Self {
        Self::Log(error)
    }
}

impl Broken {
    pub(super) fn of(rights: &[Right<'_>], doing: String, error: KafkaError) -> Self {
        use RDKafkaErrorCode as Code;
        match code_of(&error) {
            Some(
                Code::Fenced
                | Code::ProducerFenced
                | Code::InvalidProducerEpoch
                | Code::IllegalGeneration
                | Code::UnknownMemberId
                | Code::FencedInstanceId,
            ) => Self::Fenced(error),
            _ => Self::Log(needing(rights, doing, error)),
        }
    }
}

/// What goes to the broker in one transaction.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) records: Vec<(Vec<u8>, i64)>,
    pub(super) bytes: usize,
    /// The log has come further.
    pub(super) moved: bool,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

/// The `transactional.id` of a partition.
fn transaction_of(names: &Names, partition: Partition) -> String {
    format!("{}.{}", names.workers, partition.0)
}

/// Writes one partition; whoever took it last.
pub(super) struct Hand<'a> {
    shared: &'a Shared,
    partition: Partition,
    pub(super) producer: LogProducer,
    ended: Ended,
}

impl<'a> Hand<'a> {
    /// Takes a partition over: whoever had it is shut out, and what was begun there is ended.
    pub(super) fn take(shared: &'a Shared, partition: Partition) -> Result<Self, LogError> {
        let names = &shared.names;
        let id = transaction_of(names, partition);
        let producer = shared.clients.transactional(&id, shared.standing.message_bytes_max, Purpose::Worker)?;
        let doing = || format!("beginning to write to {}", names.transformed);
        let rights = [Right::Transaction(&id)];
        producer.init_transactions(PATIENCE).map_err(|error| needing(&rights, doing(), error))?;
        let ended = Ended::new(&shared.clients, names)?;
        ended.abort_hanging_in(&producer, &[(&names.transformed, partition.0)])?;
        Ok(Self { shared, partition, producer, ended })
    }

    /// What was noted last: nobody else can note anything any more.
    pub(super) fn note(&self) -> Result<Option<Note>, LogError> {
        let consumer = self.shared.clients.asking(&self.shared.names.readers)?;
        Note::last(&consumer, self.shared, self.partition)
    }

    /// Writes what was made, the note behind it and the group's place, all or nothing.
    pub(super) fn write(&self, batch: &Batch, note: &Note, group: &ConsumerGroupMetadata) -> Result<(), Broken> {
        let (producer, names) = (&self.producer, &self.shared.names);
        let id = transaction_of(names, self.partition);
        let rights = [
            Right::Topic("Write", &names.transformed),
            Right::Topic("Read", &names.changes),
            Right::Group(&names.workers),
            Right::Transaction(&id),
        ];
        let doing = || format!("writing to {}", names.transformed);
        let broken = |error| Broken::of(&rights, doing(), error);
        // Of a record.
        let refused = |error| broken(reason(producer, error));
        producer.context().reset();
        producer.begin_transaction().map_err(broken)?;
        for (value, at_ms) in &batch.records {
            self.send(None, value, *at_ms).map_err(refused)?;
        }
        self.send(Some(NOTE), &note.to_bytes()?, note.at_ms).map_err(refused)?;
        flush(producer, STEP).map_err(broken)?;
        producer.context().offsets().map_err(refused)?;
        let place = assignment(&names.changes, [(self.partition.0 as i32, note.own.0)]).map_err(broken)?;
        producer.send_offsets_to_transaction(&place, group, STEP).map_err(broken)?;
        producer.commit_transaction(STEP).map_err(broken)?;
        let ends = producer.context().ends().into_iter().map(|((_, partition), end)| (partition, end)).collect();
        match self.ended.reaches(&names.transformed, &ends, READABLE)? {
            true => Ok(()),
            // Whether it counts is seen when the partition is begun anew.
            false => Err(broken(KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut))),
        }
    }

    pub(super) fn send(&self, key: Option<&[u8]>, value: &[u8], at_ms: i64) -> Result<(), KafkaError> {
        let topic = &self.shared.names.transformed;
        let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(topic, 0)
            .partition(self.partition.0 as i32)
            .payload(value)
            .timestamp(at_ms);
        if let Some(key) = key {
            record = record.key(key);
        }
        send(&self.producer, record, STEP)
    }
}
