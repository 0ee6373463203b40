//! How to reach the brokers, and how the log is kept there.

use secrecy::SecretString;
use std::{path::PathBuf, time::Duration};

/// How to reach the brokers.
#[derive(Debug, Clone)]
pub struct Connection {
    /// `host:port`, several with commas between.
    pub brokers: String,
    /// TLS; without it everything travels in the clear.
    pub tls: Option<Tls>,
    /// Who we are.
    pub sasl: Option<Sasl>,
}

/// TLS. The broker's certificate must be of a known authority and bear the host's name.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// The authority's certificate, PEM; the system's authorities without it.
    pub authority: Option<PathBuf>,
    /// Our own certificate, PEM.
    pub certificate: Option<PathBuf>,
    /// Its key, PEM.
    pub key: Option<PathBuf>,
    /// The key's password.
    pub key_password: Option<SecretString>,
}

/// How a password is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// SCRAM-SHA-512
    ScramSha512,
    /// SCRAM-SHA-256
    ScramSha256,
    /// PLAIN: the password itself goes to the broker, so never without TLS.
    Plain,
}

impl Mechanism {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ScramSha512 => "SCRAM-SHA-512",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::Plain => "PLAIN",
        }
    }
}

/// A user and a password.
#[derive(Debug, Clone)]
pub struct Sasl {
    /// How.
    pub mechanism: Mechanism,
    /// Who.
    pub user: String,
    /// The password.
    pub password: SecretString,
    /// Use SCRAM without TLS too. Whoever listens can then try passwords against what he has heard, and read and change
    /// everything else.
    pub without_tls: bool,
}

/// A connection that may not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionError {
    /// No broker is named.
    #[error("no broker is named. Name one as host:port")]
    NoBroker,
    /// SCRAM in the clear.
    #[error(
        "SCRAM without TLS lets whoever listens try passwords. Use TLS, or ask for it by name (`without_tls = true`)"
    )]
    ScramInTheClear,
    /// PLAIN in the clear.
    #[error("PLAIN without TLS sends the password in the clear. Use TLS, or SCRAM-SHA-512")]
    PlainInTheClear,
    /// Half of a client certificate.
    #[error("a client certificate and its key belong together. Name both, or neither")]
    HalfACertificate,
}

impl Connection {
    /// Brokers without TLS and password.
    pub fn plain(brokers: impl Into<String>) -> Self {
        Self { brokers: brokers.into(), tls: None, sasl: None }
    }

    /// Checks that the connection may be made.
    ///
    /// # Errors
    /// When a password would travel where it can be heard, or a part is missing.
    pub fn check(&self) -> Result<(), ConnectionError> {
        if self.brokers.split(',').all(|broker| broker.trim().is_empty()) {
            return Err(ConnectionError::NoBroker);
        }
        match &self.tls {
            Some(tls) if tls.certificate.is_some() != tls.key.is_some() => {
                return Err(ConnectionError::HalfACertificate);
            }
            Some(_) => return Ok(()),
            None => {}
        }
        match &self.sasl {
            Some(sasl) if sasl.mechanism == Mechanism::Plain => Err(ConnectionError::PlainInTheClear),
            Some(sasl) if !sasl.without_tls => Err(ConnectionError::ScramInTheClear),
            _ => Ok(()),
        }
    }
}

/// How the log is kept on the brokers.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// How to reach them.
    pub connection: Connection,
    /// The topics are `<prefix>.changes` and `<prefix>.meta`.
    pub topic_prefix: String,
    /// How many partitions; fixed for the log's life. Unless said, those that the topic has, and eight for a new one.
    pub partitions: Option<u32>,
    /// Copies of each partition; three, or as many as there are brokers, unless said.
    pub replication: Option<u16>,
    /// How many copies must have a record before it counts; two where there are three copies, else one, unless said.
    pub min_insync_replicas: Option<u16>,
    /// When the broker may drop entries. It does not ask who still needs them.
    pub retention: Retention,
    /// How large a segment file of the topic grows; the broker's own default unless said.
    pub segment_bytes: Option<u64>,
    /// Workers transform what is in the log, beside it, into a third topic, `<prefix>.transformed`; where there are none,
    /// whoever delivers does.
    pub workers: Option<Workers>,
    /// A file in which the ids of the topics are kept, so that topics that were deleted and made anew are never taken for
    /// the old ones.
    pub pin: Option<PathBuf>,
}

impl LogOptions {
    /// Everything by default.
    pub fn new(connection: Connection, topic_prefix: impl Into<String>) -> Self {
        Self {
            connection,
            topic_prefix: topic_prefix.into(),
            partitions: None,
            replication: None,
            min_insync_replicas: None,
            retention: Retention::default(),
            segment_bytes: None,
            workers: None,
            pin: None,
        }
    }
}

/// Workers that transform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workers {
    /// How long one may be silent before its partitions are given to others.
    pub silent: Duration,
}

/// When entries are dropped; without either limit all are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retention {
    /// Drop entries that are older.
    pub time: Option<Duration>,
    /// Drop the oldest entries while the log is larger.
    pub bytes: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_never_travels_in_the_clear_unasked() {
        let sasl = |mechanism, without_tls| Sasl { mechanism, user: "u".into(), password: "p".into(), without_tls };
        let with = |sasl, tls| Connection { brokers: "b:9092".into(), tls, sasl: Some(sasl) }.check();
        let tls = || Some(Tls::default());
        assert_eq!(with(sasl(Mechanism::ScramSha512, false), None), Err(ConnectionError::ScramInTheClear));
        assert_eq!(with(sasl(Mechanism::ScramSha512, true), None), Ok(()));
        assert_eq!(with(sasl(Mechanism::Plain, true), None), Err(ConnectionError::PlainInTheClear));
        assert_eq!(with(sasl(Mechanism::Plain, false), tls()), Ok(()));
        assert_eq!(with(sasl(Mechanism::ScramSha256, false), tls()), Ok(()));
        let half = Tls { certificate: Some("c".into()), ..Tls::default() };
        assert_eq!(with(sasl(Mechanism::Plain, false), Some(half)), Err(ConnectionError::HalfACertificate));
        assert_eq!(Connection::plain(" , ").check(), Err(ConnectionError::NoBroker));
    }

    #[test]
    fn a_password_is_in_no_debug_text() {
        let sasl =
            Sasl { mechanism: Mechanism::Plain, user: "u".into(), password: "hidden".into(), without_tls: false };
        let connection = Connection { brokers: "b:9092".into(), tls: Some(Tls::default()), sasl: Some(sasl) };
        assert!(!format!("{connection:?}").contains("hidden"));
    }
}
