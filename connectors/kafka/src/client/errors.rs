//! What a broker's error means: whether it is worth another try, and which right it asks for.

use crossfade_log::LogError;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// A right that a broker with an authorizer asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Right<'a> {
    /// To do this with a topic.
    Topic(&'static str, &'a str),
    /// To be in a group, and to commit its places.
    Group(&'a str),
    /// To write transactions under this id.
    Transaction(&'a str),
}

impl Right<'_> {
    /// Whether it is one of those that such an error is about.
    fn is_meant(self, code: RDKafkaErrorCode) -> bool {
        match self {
            // Whoever may write no topic at all is told that the cluster does not let him write.
            Self::Topic(..) => {
                matches!(
                    code,
                    RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed
                )
            }
            Self::Group(_) => code == RDKafkaErrorCode::GroupAuthorizationFailed,
            Self::Transaction(_) => code == RDKafkaErrorCode::TransactionalIdAuthorizationFailed,
        }
    }

    fn grant(self) -> String {
        let (operation, kind, option, name) = match self {
            Self::Topic(operation, name) => (operation, "topic", "topic", name),
            Self::Group(name) => ("Read", "group", "group", name),
            Self::Transaction(name) => ("Write", "transactional id", "transactional-id", name),
        };
        format!(
            "{operation} on the {kind} {name} (kafka-acls --bootstrap-server HOST:PORT --add --allow-principal User:NAME --operation {operation} --{option} {name})"
        )
    }
}

/// A broker's error as the log's.
pub(crate) fn server(doing: impl Into<String>, error: KafkaError) -> LogError {
    needing(&[], doing, error)
}

/// A broker's error as the log's; where it is a right that is missing, it is said which of these to grant.
pub(crate) fn needing(rights: &[Right<'_>], doing: impl Into<String>, error: KafkaError) -> LogError {
    let doing = doing.into();
    let Some(code) = code_of(&error).filter(|code| is_denial(*code)) else {
        let passing = is_passing(&error);
        return LogError::Server { doing, cause: Box::new(error), passing };
    };
    let grants: Vec<String> = rights.iter().filter(|right| right.is_meant(code)).map(|right| right.grant()).collect();
    let remedy = match grants.is_empty() {
        true => "Grant what the page of connectors/kafka says of this role".to_owned(),
        false => format!("Grant {}", grants.join(" and ")),
    };
    LogError::Denied { doing, said: code.to_string(), remedy }
}

/// An error while a topic is read.
pub(crate) fn reading(topic: &str, error: KafkaError) -> LogError {
    needing(&[Right::Topic("Read", topic)], format!("reading {topic}"), error)
}

/// Whether a reader goes on all the same: it may work again; or it concerns the group alone under whose name the reader
/// appears, which it never joins.
pub(crate) fn is_passing_for_readers(error: &KafkaError) -> bool {
    code_of(error) == Some(RDKafkaErrorCode::GroupAuthorizationFailed) || is_passing(error)
}

/// An error while a topic is written.
pub(crate) fn writing(topic: &str, error: KafkaError) -> LogError {
    needing(&[Right::Topic("Write", topic)], format!("writing to {topic}"), error)
}

/// Whether a right is missing.
pub(crate) fn is_denied(error: &KafkaError) -> bool {
    code_of(error).is_some_and(is_denial)
}

fn is_denial(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
    )
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_right_is_named_with_its_object_and_is_not_tried_again() {
        let said = |code| {
            let rights =
                [Right::Topic("Write", "a.changes"), Right::Group("a.readers"), Right::Transaction("a.ingest")];
            needing(&rights, "working", KafkaError::AdminOp(code)).to_string()
        };
        use RDKafkaErrorCode as Code;
        let cases = [
            (Code::TopicAuthorizationFailed, "Grant Write on the topic a.changes ("),
            (Code::ClusterAuthorizationFailed, "Grant Write on the topic a.changes ("),
            (Code::GroupAuthorizationFailed, "Grant Read on the group a.readers ("),
            (Code::TransactionalIdAuthorizationFailed, "Grant Write on the transactional id a.ingest ("),
        ];
        for (code, grant) in cases {
            assert!(said(code).contains(grant), "{}", said(code));
        }
        assert!(matches!(
            needing(&[], "working", KafkaError::AdminOp(Code::BrokerTransportFailure)),
            LogError::Server { passing: true, .. }
        ));
    }
}
