//! Files of a test's own.

use crossfade_event::{
    ColumnType, Format, Logical,
    catalog::{Catalog, Dialect},
};
use crossfade_sqlite::{Config, SourceOptions, SqliteSink, SqliteSource};
use crossfade_testkit::{
    sink_suite::SinkFixture,
    source_suite::{SourceFixture, TextRow},
};
use rusqlite::{Connection, types::ValueRef};
use std::{path::PathBuf, time::Duration};
use tempfile::TempDir;

/// A file that a source reads and a test writes.
pub(crate) struct SourceFile {
    pub(crate) folder: TempDir,
    pub(crate) writer: Connection,
    pub(crate) options: SourceOptions,
}

impl SourceFile {
    pub(crate) fn new(journal: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let writer = Connection::open(folder.path().join("source.db")).unwrap();
        writer.busy_timeout(Duration::from_secs(10)).unwrap();
        writer.query_row(&format!("PRAGMA journal_mode = {journal}"), [], |_| Ok(())).unwrap();
        writer.execute_batch("PRAGMA synchronous = OFF").unwrap();
        Self { folder, writer, options: SourceOptions { workers: 2, chunk_rows: 200, ..SourceOptions::default() } }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("source.db")
    }

    pub(crate) fn run(&self, sql: &str) {
        self.writer.execute_batch(sql).unwrap();
    }

    pub(crate) fn config(&self) -> Config {
        Config { cache_mib: 2, ..Config::new(self.path()) }
    }

    pub(crate) fn read(&self, table: &str) -> Vec<TextRow> {
        rows(&self.writer, table)
    }
}

/// All rows as text, sorted, as the vocabulary prints values.
pub(crate) fn rows(connection: &Connection, table: &str) -> Vec<TextRow> {
    asked(connection, &format!("SELECT * FROM \"{}\"", table.replace('"', "\"\"")))
}

/// The same of any query.
pub(crate) fn asked(connection: &Connection, query: &str) -> Vec<TextRow> {
    let mut statement = connection.prepare(query).unwrap();
    let count = statement.column_count();
    let mut rows = statement.query([]).unwrap();
    let mut found = Vec::new();
    while let Some(row) = rows.next().unwrap() {
        found.push((0..count).map(|index| text(row.get_ref(index).unwrap())).collect());
    }
    found.sort();
    found
}

fn text(value: ValueRef<'_>) -> Option<String> {
    use crossfade_event::{Value, codec::to_text};
    Some(match value {
        ValueRef::Null => return None,
        ValueRef::Integer(value) => to_text(&Value::Int(value)),
        ValueRef::Real(value) => to_text(&Value::Float64(value)),
        ValueRef::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => to_text(&Value::Text(text.to_owned())),
            Err(_) => to_text(&Value::RawText(bytes.to_vec())),
        },
        ValueRef::Blob(bytes) => to_text(&Value::Bytes(bytes.to_vec())),
    })
}

impl SourceFixture for SourceFile {
    type Source = SqliteSource;

    async fn execute(&mut self, statements: &[String]) {
        let transaction = self.writer.transaction().unwrap();
        for statement in statements {
            transaction.execute_batch(statement).unwrap();
        }
        transaction.commit().unwrap();
    }

    fn source(&self, tables: &[&str]) -> SqliteSource {
        let tables = tables.iter().map(|table| (*table).to_owned()).collect();
        SqliteSource::new(self.config(), "test", tables, self.options)
    }

    async fn rows(&mut self, table: &str) -> Vec<TextRow> {
        self.read(table)
    }

    async fn record_whole_rows(&mut self, _: &str) {}
}

/// A file that a sink writes.
pub(crate) struct SinkFile {
    pub(crate) folder: TempDir,
}

impl SinkFile {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("target.db")
    }

    pub(crate) fn connection(&self) -> Connection {
        let connection = Connection::open(self.path()).unwrap();
        connection.busy_timeout(Duration::from_secs(10)).unwrap();
        connection
    }
}

impl SinkFixture for SinkFile {
    type Sink = SqliteSink;

    fn sink(&self, migration: &str) -> SqliteSink {
        SqliteSink::new(Config::new(self.path()), migration)
    }

    fn type_of(&self, logical: Logical) -> ColumnType {
        let name = match logical {
            Logical::Int64 => "INTEGER",
            Logical::Text => "TEXT",
            other => panic!("no word for {other:?}"),
        };
        ColumnType { name: name.into(), native_id: 0, logical: Logical::Dynamic, format: Format::Tagged }
    }

    fn schema(&self) -> String {
        "main".to_owned()
    }

    fn support(&self) -> Catalog {
        Catalog {
            dialect: Dialect::Sqlite,
            tables: Vec::new(),
            types: Vec::new(),
            sequences: Vec::new(),
            extensions: Vec::new(),
        }
    }

    async fn execute(&mut self, sql: &str) {
        self.connection().execute_batch(sql).unwrap();
    }

    async fn rows(&mut self, table: &str) -> Vec<TextRow> {
        rows(&self.connection(), table)
    }

    async fn objects(&mut self) -> Vec<String> {
        let connection = self.connection();
        let mut statement =
            connection.prepare("SELECT name FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' ORDER BY name").unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }
}
