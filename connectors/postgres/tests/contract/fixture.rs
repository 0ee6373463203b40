//! Databases of a test's own.

use crossfade_connector::{Failure, Resume, Source, SourceHealth};
use crossfade_event::{
    Batch, ColumnType, Durable, Format, Logical,
    catalog::{Catalog, Dialect},
};
use crossfade_postgres::{Config, PostgresSink, PostgresSource, SinkConfig, SourceConfig};
use crossfade_testkit::{
    postgres::{Database, Postgres},
    sink_suite::SinkFixture,
    source_suite::{SourceFixture, TextRow},
};
use std::time::Duration;

/// A database that a source reads and a test writes.
pub(crate) struct SourceDatabase {
    database: Database,
    folder: tempfile::TempDir,
}

impl SourceDatabase {
    pub(crate) async fn new(server: &Postgres) -> Self {
        let database = server.create_database("contract").await;
        Self { database, folder: tempfile::tempdir().unwrap() }
    }
}

/// A source of which a restart is opened while the server still holds the slot for the one before: as a run does, it
/// tries again until the slot is free.
pub(crate) struct Patient(PostgresSource);

impl Source for Patient {
    async fn open(&mut self, resume: Resume) -> Result<(), Failure> {
        loop {
            match self.0.open(resume.clone()).await {
                Err(failure) if failure.is_transient() => tokio::time::sleep(Duration::from_millis(5)).await,
                opened => return opened,
            }
        }
    }

    async fn next(&mut self) -> Result<Option<Batch>, Failure> {
        self.0.next().await
    }

    async fn confirm(&mut self, durable: Durable) -> Result<(), Failure> {
        self.0.confirm(durable).await
    }

    async fn health(&mut self) -> Result<SourceHealth, Failure> {
        self.0.health().await
    }
}

/// All rows as text, sorted.
async fn rows(database: &Database, table: &str) -> Vec<TextRow> {
    let client = database.connect().await;
    let messages = client.simple_query(&format!("SELECT * FROM {table}")).await.unwrap();
    let mut found: Vec<TextRow> = messages
        .iter()
        .filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|index| row.get(index).map(str::to_owned)).collect())
            }
            _ => None,
        })
        .collect();
    found.sort();
    found
}

impl SourceFixture for SourceDatabase {
    type Source = Patient;

    async fn execute(&mut self, statements: &[String]) {
        self.database.execute(&format!("BEGIN; {}; COMMIT", statements.join("; "))).await;
    }

    fn source(&self, tables: &[&str]) -> Patient {
        let tables = tables.iter().map(|table| format!("public.{table}")).collect();
        let migration = self.database.name.replace('_', "-");
        let connection = Config::parse(&self.database.url).unwrap();
        let mut config = SourceConfig::new(connection, migration, tables, self.folder.path().join("spool"));
        config.snapshot.workers = 2;
        config.snapshot.chunk_rows = 200;
        Patient(PostgresSource::new(config).unwrap())
    }

    async fn rows(&mut self, table: &str) -> Vec<TextRow> {
        rows(&self.database, table).await
    }

    async fn record_whole_rows(&mut self, table: &str) {
        self.database.execute(&format!("ALTER TABLE {table} REPLICA IDENTITY FULL")).await;
    }
}

/// A database that a sink writes.
pub(crate) struct SinkDatabase {
    database: Database,
}

impl SinkDatabase {
    pub(crate) async fn new(server: &Postgres) -> Self {
        Self { database: server.create_database("contract").await }
    }
}

impl SinkFixture for SinkDatabase {
    type Sink = PostgresSink;

    fn sink(&self, migration: &str) -> PostgresSink {
        PostgresSink::new(SinkConfig::new(Config::parse(&self.database.url).unwrap(), migration))
    }

    fn type_of(&self, logical: Logical) -> ColumnType {
        let (name, native_id) = match logical {
            Logical::Int64 => ("bigint", 20),
            Logical::Text => ("text", 25),
            other => panic!("no word for {other:?}"),
        };
        ColumnType { name: name.into(), native_id, logical, format: Format::PgBinary }
    }

    fn schema(&self) -> String {
        "public".to_owned()
    }

    fn support(&self) -> Catalog {
        Catalog {
            dialect: Dialect::Postgres,
            tables: Vec::new(),
            types: Vec::new(),
            sequences: Vec::new(),
            extensions: Vec::new(),
        }
    }

    async fn execute(&mut self, sql: &str) {
        self.database.execute(sql).await;
    }

    async fn rows(&mut self, table: &str) -> Vec<TextRow> {
        rows(&self.database, table).await
    }

    async fn objects(&mut self) -> Vec<String> {
        let sql = "SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                   WHERE n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
                   UNION ALL SELECT nspname::text FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%' ORDER BY 1";
        let rows = self.database.connect().await.query(sql, &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }
}
