//! Where the server is and how to get in: the connection string, parsed into a value that cannot be wrong.
//!
//! TLS with full verification is the default, and nothing falls back silently: a connection without TLS is made only
//! where `sslmode=disable` was written, also over loopback and Unix sockets.

mod parse;

use crossfade_connector::Failure;
use schemars::JsonSchema;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

/// How the connection is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SslMode {
    /// No TLS. Anyone on the way can read and change everything.
    Disable,
    /// TLS, but the server's certificate is not checked: whoever answers is believed.
    Require,
    /// TLS; the certificate must come from a known authority, the host name is not checked.
    VerifyCa,
    /// TLS; the certificate must come from a known authority and name the host.
    #[default]
    VerifyFull,
}

impl SslMode {
    fn parse(text: &str) -> Result<Self, Failure> {
        match text {
            "disable" => Ok(Self::Disable),
            "require" => Ok(Self::Require),
            "verify-ca" => Ok(Self::VerifyCa),
            "verify-full" => Ok(Self::VerifyFull),
            "allow" | "prefer" => Err(refuse(
                format!("sslmode={text} falls back to an unprotected connection silently"),
                "Write sslmode=verify-full, or sslmode=disable if the network may be trusted",
            )),
            other => Err(refuse(
                format!("sslmode={other} is not known"),
                "Use one of verify-full (the default), verify-ca, require, disable",
            )),
        }
    }
}

/// TLS settings that stand beside the URL in a spec; what is said here wins over the URL.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsOptions {
    /// `verify-full` (the default), `verify-ca`, `require` or `disable`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sslmode: Option<SslMode>,
    /// PEM file with the authorities to trust; the system's own where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sslrootcert: Option<PathBuf>,
    /// PEM file with the client's certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sslcert: Option<PathBuf>,
    /// PEM file with the client's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sslkey: Option<PathBuf>,
}

/// One address of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A name or an address.
    Tcp(String),
    /// The folder of a Unix socket.
    Unix(PathBuf),
}

/// A parsed connection string. Holds the password; prints without it.
#[derive(Clone)]
pub struct Config {
    hosts: Vec<(Host, u16)>,
    user: String,
    password: Option<SecretString>,
    dbname: String,
    options: Option<String>,
    tls: TlsOptions,
    connect_timeout: Duration,
    lock_timeout: Duration,
    statement_timeout: Duration,
}

impl Config {
    /// Reads `postgres://user:password@host:port/database?sslmode=…` or `host=… user=… …`.
    ///
    /// # Errors
    /// `Misconfigured`, naming the part that is wrong; never with the password.
    pub fn parse(url: &str) -> Result<Self, Failure> {
        Self::with_tls(url, &TlsOptions::default())
    }

    /// The same, with TLS settings that win over the URL's.
    ///
    /// # Errors
    /// As [`Config::parse`].
    pub fn with_tls(url: &str, tls: &TlsOptions) -> Result<Self, Failure> {
        let mut config = parse::parse(url)?;
        let TlsOptions { sslmode, sslrootcert, sslcert, sslkey } = tls.clone();
        config.tls = TlsOptions {
            sslmode: sslmode.or(config.tls.sslmode),
            sslrootcert: sslrootcert.or(config.tls.sslrootcert),
            sslcert: sslcert.or(config.tls.sslcert),
            sslkey: sslkey.or(config.tls.sslkey),
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), Failure> {
        let mode = self.ssl_mode();
        if mode != SslMode::Disable && self.hosts.iter().any(|(host, _)| matches!(host, Host::Unix(_))) {
            return Err(refuse(
                format!("sslmode={mode} cannot be had over a Unix socket"),
                "Write sslmode=disable for a Unix socket, or name a host",
            ));
        }
        if self.tls.sslcert.is_some() != self.tls.sslkey.is_some() {
            return Err(refuse(
                "a client certificate needs both sslcert and sslkey".to_owned(),
                "Give both, or neither",
            ));
        }
        Ok(())
    }

    /// The same server with another limit for waiting on a lock and for one statement; zero means none.
    #[must_use]
    pub fn with_timeouts(mut self, lock: Duration, statement: Duration) -> Self {
        self.lock_timeout = lock;
        self.statement_timeout = statement;
        self
    }

    /// The addresses, in the order in which they are tried.
    pub fn hosts(&self) -> &[(Host, u16)] {
        &self.hosts
    }

    /// The role.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The database.
    pub fn dbname(&self) -> &str {
        &self.dbname
    }

    /// How the connection is protected.
    pub fn ssl_mode(&self) -> SslMode {
        self.tls.sslmode.unwrap_or_default()
    }

    pub(crate) fn password(&self) -> Option<&SecretString> {
        self.password.as_ref()
    }

    pub(crate) fn options(&self) -> Option<&str> {
        self.options.as_deref()
    }

    pub(crate) fn root_cert(&self) -> Option<&Path> {
        self.tls.sslrootcert.as_deref()
    }

    pub(crate) fn client_cert(&self) -> Option<(&Path, &Path)> {
        Some((self.tls.sslcert.as_deref()?, self.tls.sslkey.as_deref()?))
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    pub(crate) fn lock_timeout(&self) -> Duration {
        self.lock_timeout
    }

    pub(crate) fn statement_timeout(&self) -> Duration {
        self.statement_timeout
    }
}

impl fmt::Display for SslMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disable => "disable",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(name) => f.write_str(name),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

impl fmt::Display for Config {
    /// `user@host:port/database`: enough to know which server is meant.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@", self.user)?;
        for (index, (host, port)) in self.hosts.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{host}:{port}")?;
        }
        write!(f, "/{}", self.dbname)
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Config({self}, sslmode={})", self.ssl_mode())
    }
}

fn refuse(problem: String, advice: &str) -> Failure {
    Failure::misconfigured("reading the PostgreSQL connection string", problem, advice)
}
