//! What a broker's error means: whether it is worth another try.

use crossfade_log::LogError;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// A broker's error as the log's.
pub(crate) fn server(doing: impl Into<String>, error: KafkaError) -> LogError {
    let passing = is_passing(&error);
    LogError::Server { doing: doing.into(), cause: Box::new(error), passing }
}

/// The number that the broker, or librdkafka, gave.
pub(crate) fn code_of(error: &KafkaError) -> Option<RDKafkaErrorCode> {
    match error {
        KafkaError::AdminOp(code) => Some(*code),
        error => error.rdkafka_error_code(),
    }
}

/// Whether it may work when tried again: everything but what a person must mend.
pub(crate) fn is_passing(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    if matches!(error, KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_) | KafkaError::Nul(_)) {
        return false;
    }
    !matches!(
        code_of(error),
        Some(
            Code::MessageSizeTooLarge
                | Code::TopicAuthorizationFailed
                | Code::GroupAuthorizationFailed
                | Code::ClusterAuthorizationFailed
                | Code::TransactionalIdAuthorizationFailed
                | Code::InvalidTopic
                | Code::InvalidConfig
                | Code::InvalidPartitions
                | Code::InvalidReplicationFactor
                | Code::InvalidTransactionTimeout
                | Code::PolicyViolation
                | Code::UnsupportedVersion
                | Code::UnsupportedForMessageFormat
                | Code::InvalidRecord
                | Code::SaslAuthenticationFailed
                | Code::UnsupportedSASLMechanism
                | Code::AutoOffsetReset
                | Code::OffsetOutOfRange
        )
    )
}
