//! Real PostgreSQL servers as processes: each in a temporary folder, on a free port of 127.0.0.1, stopped by its process
//! id, and gone with the test that started it even when that test is killed (see `watchdog.rs`).
//!
//! Most tests want [`Postgres::shared`]: one server per test binary and a database of one's own. A test that restarts,
//! kills or reconfigures its server starts one with [`Postgres::start`]. Each server is made by its own `initdb`, so no
//! two have one system identifier.
//!
//! A server that cannot be had is a loud skip on a person's machine, and a failure where `CI` is set.

mod binaries;
mod server;

pub(crate) use binaries::{REPOSITORY, cache_folder};
pub use server::Postgres;
pub(crate) use server::signal;

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};
use tokio_postgres::{Client, NoTls};

/// Which major version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// 15, as Debian packages it.
    V15,
    /// 17, as zonky.io publishes it on Maven Central.
    V17,
    /// 18, from the same place.
    V18,
}

impl Version {
    /// All of them, oldest first.
    pub const ALL: [Self; 3] = [Self::V15, Self::V17, Self::V18];

    /// The number.
    pub fn major(self) -> u32 {
        match self {
            Self::V15 => 15,
            Self::V17 => 17,
            Self::V18 => 18,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgreSQL {}", self.major())
    }
}

/// How a server is set up. The default suits tests: logical WAL, plenty of slots and workers, `fsync` off.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    config: Vec<(String, String)>,
    hba: Option<String>,
    files: Vec<(String, String)>,
    fsync: bool,
}

impl Settings {
    /// The default.
    pub fn new() -> Self {
        Self::default()
    }

    /// One line of `postgresql.conf`; the value is quoted here. The last word wins, over the defaults too.
    #[must_use]
    pub fn set(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.config.push((name.to_owned(), value.to_string()));
        self
    }

    /// Makes commits as durable as in production: for benchmarks.
    #[must_use]
    pub fn fsync(mut self) -> Self {
        self.fsync = true;
        self
    }

    /// Takes TLS connections with these certificates (and plain ones too, unless [`Settings::hba`] says otherwise).
    /// A client that proves itself shows a certificate of the same authority.
    #[must_use]
    pub fn tls(self, certificates: &crate::tls::Certificates) -> Self {
        self.set("ssl", "on")
            .set("ssl_cert_file", "tls-server.crt")
            .set("ssl_key_file", "tls-server.key")
            .set("ssl_ca_file", "tls-authority.crt")
            .file("tls-server.crt", &certificates.server.certificate)
            .file("tls-server.key", &certificates.server.key)
            .file("tls-authority.crt", &certificates.authority)
    }

    /// The whole of `pg_hba.conf`; the default trusts everyone on 127.0.0.1. Leave a line that lets `postgres` in.
    #[must_use]
    pub fn hba(mut self, lines: &str) -> Self {
        self.hba = Some(lines.to_owned());
        self
    }

    /// A file in the data folder, readable by the server alone: a certificate, a key.
    #[must_use]
    pub fn file(mut self, name: &str, content: &str) -> Self {
        self.files.push((name.to_owned(), content.to_owned()));
        self
    }

    fn postgresql_conf(&self) -> String {
        let on_if = |yes: bool| if yes { "on" } else { "off" };
        let defaults = [
            ("listen_addresses", "127.0.0.1"),
            ("unix_socket_directories", ""),
            ("wal_level", "logical"),
            ("max_connections", "200"),
            ("max_wal_senders", "200"),
            ("max_replication_slots", "200"),
            ("max_worker_processes", "50"),
            ("max_logical_replication_workers", "20"),
            ("max_prepared_transactions", "10"),
            ("shared_buffers", "128MB"),
            ("max_wal_size", "4GB"),
            // Beside the data rather than in /dev/shm, so that a killed server leaves nothing behind.
            ("dynamic_shared_memory_type", "mmap"),
            ("timezone", "UTC"),
            ("log_timezone", "UTC"),
            ("log_line_prefix", "%m [%p] %d %a "),
            ("fsync", on_if(self.fsync)),
            ("full_page_writes", on_if(self.fsync)),
        ];
        let mut text = String::new();
        let own = self.config.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in defaults.into_iter().chain(own) {
            text.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
        }
        text
    }
}

/// A database of one's own on a server.
#[derive(Debug, Clone)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// How to reach it as the superuser, as a spec's `url` takes it.
    pub url: String,
}

impl Database {
    /// A connection as the superuser.
    pub async fn connect(&self) -> Client {
        connect(&self.url).await.unwrap_or_else(|error| panic!("no connection to the test's database: {error}"))
    }

    /// Runs statements, separated by semicolons.
    pub async fn execute(&self, sql: &str) {
        let client = self.connect().await;
        client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{error:?}\nin: {sql}"));
    }

    /// The first column of the first row, as text.
    pub async fn value(&self, sql: &str) -> Option<String> {
        let client = self.connect().await;
        let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{error:?}\nin: {sql}"));
        messages.into_iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
            _ => None,
        })?
    }
}

/// A connection without TLS; its task ends with the client.
///
/// # Errors
/// When the server refuses it or is not there.
pub async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

impl Postgres {
    /// How to reach a database as the superuser.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable", self.port())
    }

    /// How to reach a database as somebody else.
    pub fn url_as(&self, user: &str, password: &str, database: &str) -> String {
        format!("postgres://{user}:{password}@127.0.0.1:{}/{database}?sslmode=disable", self.port())
    }

    /// A connection as the superuser to a database.
    pub async fn connect(&self, database: &str) -> Client {
        connect(&self.url(database))
            .await
            .unwrap_or_else(|error| panic!("no connection to {}: {error}", self.version()))
    }

    /// Makes an empty database; `hint` becomes part of its name. It stays until the server goes.
    pub async fn create_database(&self, hint: &str) -> Database {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let name = format!("{hint}_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let client = self.connect("postgres").await;
        client
            .batch_execute(&format!("CREATE DATABASE \"{name}\" TEMPLATE template0"))
            .await
            .unwrap_or_else(|error| panic!("cannot create the database {name}: {error:?}"));
        Database { url: self.url(&name), name }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn round_trip(version: Version) {
        let Some(server) = Postgres::start(version, Settings::new()) else { return };
        let database = server.create_database("kept").await;
        database.execute("CREATE TABLE t (a int PRIMARY KEY); INSERT INTO t VALUES (41)").await;
        assert_eq!(database.value("SHOW wal_level").await.as_deref(), Some("logical"));
        let number = database.value("SHOW server_version_num").await.unwrap();
        assert_eq!(number.parse::<u32>().unwrap() / 10_000, version.major());

        server.kill();
        assert!(connect(&database.url).await.is_err(), "a killed server must not answer");
        server.start_again();
        assert_eq!(database.value("SELECT a FROM t").await.as_deref(), Some("41"));

        server.stop();
        assert!(connect(&database.url).await.is_err(), "a stopped server must not answer");
        server.start_again();
        assert_eq!(database.value("SELECT a FROM t").await.as_deref(), Some("41"));

        let folder = server.folder().to_owned();
        drop(server);
        assert!(!folder.exists(), "the folder must go with the server");
        assert!(connect(&database.url).await.is_err(), "a dropped server must not answer");
    }

    #[tokio::test]
    async fn a_15_starts_survives_a_kill_and_leaves_nothing() {
        round_trip(Version::V15).await;
    }

    #[tokio::test]
    async fn a_17_starts_survives_a_kill_and_leaves_nothing() {
        round_trip(Version::V17).await;
    }

    #[tokio::test]
    async fn an_18_starts_survives_a_kill_and_leaves_nothing() {
        round_trip(Version::V18).await;
    }

    #[tokio::test]
    async fn the_shared_servers_are_two_systems_and_give_databases_of_ones_own() {
        let (Some(source), Some(target)) = (Postgres::shared(Version::V15), Postgres::shared_target(Version::V15))
        else {
            return;
        };
        let (one, two) = (source.create_database("own").await, source.create_database("own").await);
        assert_ne!(one.name, two.name);
        let system = "SELECT system_identifier FROM pg_control_system()";
        let there = target.create_database("own").await;
        assert_ne!(one.value(system).await, there.value(system).await);
    }
}
