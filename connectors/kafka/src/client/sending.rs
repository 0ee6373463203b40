//! Sending records, and hearing what became of them.

use super::{LogProducer, errors::code_of};
use rdkafka::{
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseRecord, Producer},
};
use std::time::{Duration, Instant};

/// Sends a record; waits while the producer has as many as it takes, not longer than `limit`.
pub(crate) fn send(
    producer: &LogProducer,
    mut record: BaseRecord<'_, [u8], [u8], usize>,
    limit: Duration,
) -> Result<(), KafkaError> {
    let began = Instant::now();
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((error, back)) if code_of(&error) == Some(RDKafkaErrorCode::QueueFull) && began.elapsed() < limit => {
                producer.poll(Duration::from_millis(10));
                record = back;
            }
            Err((error, _)) => return Err(error),
        }
    }
}

/// Waits until everything that was sent has been answered.
///
/// The library's own flush looks every tenth of a second only, and its poll spins through the last millisecond of the time
/// that it is given.
pub(crate) fn flush(producer: &LogProducer, limit: Duration) -> Result<(), KafkaError> {
    const PAUSE: Duration = Duration::from_micros(200);
    let began = Instant::now();
    let mut open = producer.in_flight_count();
    loop {
        producer.poll(Duration::ZERO);
        let still = producer.in_flight_count();
        if still == 0 {
            return Ok(());
        }
        if began.elapsed() > limit {
            return Err(KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut));
        }
        if still == open {
            std::thread::sleep(PAUSE);
        }
        open = still;
    }
}

/// Why a record was not taken, or thrown away again: the reason is often another record's, or a partition's, and only the
/// producer knows it, or its transaction. Committing such a transaction never works, and says why.
pub(crate) fn reason(producer: &LogProducer, error: KafkaError) -> KafkaError {
    use RDKafkaErrorCode as Code;
    let is_told = !matches!(code_of(&error), Some(Code::PurgeQueue | Code::PurgeInflight | Code::State | Code::Fatal));
    if is_told {
        return error;
    }
    if let Some((code, why)) = producer.client().fatal_error() {
        tracing::debug!("kafka: {why}");
        return KafkaError::MessageProduction(code);
    }
    match producer.commit_transaction(Duration::from_secs(5)) {
        // A producer without transactions has none to ask.
        Err(why) if !matches!(code_of(&why), Some(Code::State | Code::NotConfigured)) => why,
        _ => error,
    }
}
