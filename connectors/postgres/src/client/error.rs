//! From the server's errors to a verdict, in one match.

use crossfade_connector::{Failure, Verdict};
use std::{error::Error, fmt, io};

/// An error that the server reported, without what may hold a row's values (its detail, its hint, quoted input).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerError {
    /// The SQLSTATE.
    pub code: String,
    /// The server's sentence.
    pub message: String,
    /// The table that it speaks of, if it names one.
    pub table: Option<String>,
    /// The constraint that it speaks of, if it names one.
    pub constraint: Option<String>,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.code)
    }
}

impl Error for ServerError {}

impl ServerError {
    fn new(code: &str, message: &str, schema: Option<&str>, table: Option<&str>, constraint: Option<&str>) -> Self {
        Self {
            code: code.to_owned(),
            message: without_values(code, message),
            table: table.map(|table| match schema {
                Some(schema) => format!("{schema}.{table}"),
                None => table.to_owned(),
            }),
            constraint: constraint.map(str::to_owned),
        }
    }

    /// What `tokio-postgres` reported, if it is the server's error.
    pub fn of(error: &tokio_postgres::Error) -> Option<Self> {
        let error = error.as_db_error()?;
        Some(Self::new(error.code().code(), error.message(), error.schema(), error.table(), error.constraint()))
    }

    /// From the body of an `ErrorResponse`: fields of one byte and a text that ends with NUL.
    pub(crate) fn read(body: &[u8]) -> Self {
        let (mut code, mut message) = (String::new(), String::new());
        let (mut schema, mut table, mut constraint) = (None, None, None);
        for field in body.split(|byte| *byte == 0) {
            let Some((kind, value)) = field.split_first() else { break };
            let value = String::from_utf8_lossy(value).into_owned();
            match kind {
                b'C' => code = value,
                b'M' => message = value,
                b's' => schema = Some(value),
                b't' => table = Some(value),
                b'n' => constraint = Some(value),
                _ => {}
            }
        }
        Self::new(&code, &message, schema.as_deref(), table.as_deref(), constraint.as_deref())
    }

    /// The failure that it means.
    pub(crate) fn into_failure(self, doing: impl Into<String>) -> Failure {
        Failure::new(verdict(&self), doing, self)
    }
}

/// Messages of data exceptions quote the input, and those of a raised exception are anybody's.
fn without_values(code: &str, message: &str) -> String {
    match code.get(..2) {
        Some("P0") => "the database's own code raised an exception".to_owned(),
        Some("22") => {
            let mut parts = message.split('"');
            let mut clean = parts.next().unwrap_or_default().to_owned();
            if parts.next().is_some() {
                clean.push('…');
                clean.push_str(parts.next_back().unwrap_or_default());
            }
            clean
        }
        _ => message.to_owned(),
    }
}

/// What to do about a server's error: the only place that reads SQLSTATEs for this.
fn verdict(error: &ServerError) -> Verdict {
    let message = &error.message;
    let halt = |advice: &str| Verdict::Halt { advice: advice.to_owned() };
    let refused = |advice: String| Verdict::Refused { advice };
    let misconfigured = |advice: &str| Verdict::Misconfigured { advice: advice.to_owned() };
    match error.code.as_str() {
        // Deadlock, serialization failure, lock or statement timeout, an object in use, a standby's conflict.
        "40001" | "40P01" | "40003" | "55P03" | "55006" | "57014" => Verdict::Retry { after: None },
        // Read-only just now: a standby that may be promoted, a managed server in maintenance.
        "25006" => Verdict::Retry { after: None },
        "53400" if message.contains("replication slot") => {
            refused("Raise max_replication_slots on the server, or drop a slot that nobody uses".to_owned())
        }
        "53400" if message.contains("replication origin") => {
            refused("Raise max_replication_slots on the server: it also limits replication origins".to_owned())
        }
        // Out of disk, memory or connections: gets better without us.
        code if code.starts_with("53") => Verdict::Retry { after: None },
        "58030" => Verdict::Retry { after: None },
        "57P04" => misconfigured("The database was dropped; name another one"),
        "3D000" => misconfigured("Create the database, or name one that exists"),
        "42P01" | "3F000" => misconfigured("Make it, or name one that exists"),
        code if code.starts_with("57P") || code.starts_with("08") => Verdict::Reconnect,
        // Timeouts by which the server ends a session.
        "25P03" | "25P04" => Verdict::Reconnect,
        code if code.starts_with("28") => {
            misconfigured("Check the user, the password, sslmode and the server's pg_hba.conf")
        }
        "42501" => refused(grant_hint(error)),
        "55000" if message.contains("wal_level") => {
            refused("Set wal_level = logical on the server and restart it".to_owned())
        }
        "58P01" if message.contains("output plugin") => {
            refused("The server lacks the pgoutput plugin: install the whole server package".to_owned())
        }
        "XX001" | "XX002" => halt("The server reports damaged data: restore it from a backup"),
        code if code.starts_with("22") || code.starts_with("23") => {
            halt("The server refuses a value or a constraint is violated")
        }
        _ => halt("Look into the server's log for the whole story"),
    }
}

/// Names the right that is missing.
fn grant_hint(error: &ServerError) -> String {
    let message = &error.message;
    if message.contains("WAL sender") || message.contains("walsender") || message.contains("replication slot") {
        return "Give the role the right to replicate: ALTER ROLE … REPLICATION".to_owned();
    }
    let object = message.split_once("permission denied for ").map(|(_, object)| object);
    match object.and_then(|object| object.split_once(' ')) {
        Some(("table", name)) => {
            format!("GRANT SELECT (for a target also INSERT, UPDATE, DELETE) ON TABLE {name} TO the role")
        }
        Some(("schema", name)) => format!("GRANT USAGE (for a target also CREATE) ON SCHEMA {name} TO the role"),
        Some(("database", name)) => {
            format!("GRANT CONNECT (to make objects also CREATE) ON DATABASE {name} TO the role")
        }
        Some((kind, name)) => format!("GRANT the role what it needs on the {kind} {name}"),
        None => "Grant the role the right that the message names, or use one that owns the object".to_owned(),
    }
}

/// What `tokio-postgres` reported, as a failure with a verdict.
pub fn failure(doing: impl Into<String>, error: tokio_postgres::Error) -> Failure {
    if let Some(server) = ServerError::of(&error) {
        return server.into_failure(doing);
    }
    let is_io = error.source().is_some_and(|source| source.is::<io::Error>());
    // The kind of an error is private to tokio-postgres; these two are what a wrong or missing password gives.
    let kind = error.to_string();
    if kind.starts_with("authentication error") || kind.starts_with("invalid configuration") {
        let advice = "Check the user and the password in the connection string";
        return Failure::misconfigured(doing, error, advice);
    }
    if error.is_closed() || is_io || kind.starts_with("timeout") {
        return Failure::reconnect(doing, error);
    }
    Failure::halt(doing, error, "The server's answer was not understood: report this with the server's version")
}

/// An I/O error on our own connection: it is gone.
pub(crate) fn broken(doing: impl Into<String>, error: io::Error) -> Failure {
    Failure::reconnect(doing, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: &str, message: &str) -> ServerError {
        ServerError::new(code, message, None, None, None)
    }

    #[test]
    fn each_class_of_server_error_has_its_verdict() {
        for code in ["40001", "40P01", "53100", "53300", "25006"] {
            assert!(matches!(verdict(&of(code, "")), Verdict::Retry { .. }), "{code}");
        }
        for code in ["57P01", "57P02", "57P03", "08006"] {
            assert_eq!(verdict(&of(code, "")), Verdict::Reconnect, "{code}");
        }
        for code in ["28P01", "28000", "3D000"] {
            assert!(matches!(verdict(&of(code, "")), Verdict::Misconfigured { .. }), "{code}");
        }
        let denied = verdict(&of("42501", "permission denied for table orders"));
        assert!(
            matches!(denied, Verdict::Refused { advice } if advice.contains("GRANT SELECT") && advice.contains("orders"))
        );
        assert!(matches!(verdict(&of("23505", "")), Verdict::Halt { .. }));
    }

    #[test]
    fn values_quoted_by_the_server_are_left_out() {
        assert_eq!(
            of("22P02", "invalid input syntax for type integer: \"s3cret\"").message,
            "invalid input syntax for type integer: …"
        );
        assert_eq!(of("22003", "value \"12\" is out of range for type \"x\" now").message, "value … now");
        assert!(!of("P0001", "bad row 42").to_string().contains("42"));
    }
}
