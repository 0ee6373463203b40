//! What may be asked of a file: its catalog, its rows, its place in history.
//!
//! A scan reads at one moment, so it is one long read; it runs on a thread of its own, which ends with the scan.

mod catalog;
pub(crate) mod ddl;
mod query;
pub(crate) mod shape;

use crate::{
    Config,
    client::{Access, failure, list, open, quoted, shown},
    codec::{bound_key, put_cell},
    source::{
        blocking,
        install::{Install, State},
    },
};
use bytes::Bytes;
use crossfade_connector::{Asked, Failure, Inspect, Query, Refusal, RowPage};
use crossfade_event::{Key, Position, Row, TableName, TableSchema, Value, catalog::Catalog};
use rusqlite::Connection;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Bytes of one page of a scan.
const PAGE_BYTES: usize = 1 << 20;

/// Asks a file about itself.
pub struct SqliteInspect {
    config: Config,
    install: Install,
    scan: Option<mpsc::Receiver<Result<RowPage, Failure>>>,
    /// For questions of somebody else's.
    questions: Option<Connection>,
}

/// For how long the stream is waited for that has to follow a change of shape, and how often it is looked for.
const PATIENCE: Duration = Duration::from_secs(30);
const AGAIN_AFTER: Duration = Duration::from_millis(20);

impl std::fmt::Debug for SqliteInspect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteInspect").field("path", &self.config.path).finish_non_exhaustive()
    }
}

impl SqliteInspect {
    /// An inspector for either end of the migration of that name.
    pub fn new(config: Config, migration: &str) -> Self {
        let install = Install::new(migration, crate::OldRows::Key);
        Self { config: config.for_reading(), install, scan: None, questions: None }
    }

    /// What stands in the way of capturing the tables that `patterns` take, and what is worth knowing.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn preflight_source(&mut self, patterns: &[String]) -> Result<Vec<Refusal>, Failure> {
        let (config, patterns) = (self.config.clone(), patterns.to_vec());
        blocking(move || catalog::preflight_source(&open(&config, Access::Existing)?, &patterns)).await
    }

    /// What stands in the way of writing to the file, and what is worth knowing.
    ///
    /// # Errors
    /// When the file exists and cannot be read.
    pub async fn preflight_sink(&mut self) -> Result<Vec<Refusal>, Failure> {
        let config = self.config.clone();
        blocking(move || {
            if config.path.exists() {
                return catalog::preflight_sink(&open(&config, Access::Existing)?);
            }
            let folder = config.path.parent().filter(|folder| !folder.as_os_str().is_empty());
            Ok(match folder {
                Some(folder) if !folder.is_dir() => vec![Refusal {
                    object: shown(&config.path),
                    problem: format!("the folder {} does not exist", folder.display()),
                    remedy: format!("mkdir -p {}", folder.display()),
                    fatal: true,
                }],
                _ => Vec::new(),
            })
        })
        .await
    }
}

impl SqliteInspect {
    /// The one number that a question has for an answer.
    async fn number(&mut self, doing: String, sql: String) -> Result<u64, Failure> {
        let config = self.config.clone();
        blocking(move || {
            let connection = open(&config, Access::Existing)?;
            let number = connection.query_row(&sql, [], |row| row.get::<_, i64>(0));
            number.map(|number| number as u64).map_err(|error| failure(doing, error))
        })
        .await
    }
}

impl Inspect for SqliteInspect {
    async fn catalog(&mut self, patterns: &[String]) -> Result<Catalog, Failure> {
        let (config, patterns) = (self.config.clone(), patterns.to_vec());
        blocking(move || catalog::read(&open(&config, Access::Existing)?, &patterns)).await
    }

    async fn scan(&mut self, schema: &TableSchema) -> Result<Option<Position>, Failure> {
        let (config, install, schema) = (self.config.clone(), self.install.clone(), schema.clone());
        let (sender, receiver) = mpsc::channel(4);
        let (began, begun) = tokio::sync::oneshot::channel();
        // The thread ends when nobody listens any more.
        std::thread::Builder::new()
            .name("sqlite-scan".to_owned())
            .spawn(move || {
                let connection = match open(&config, Access::Existing).and_then(|connection| {
                    let position = begin_scan(&connection, &install)?;
                    Ok((connection, position))
                }) {
                    Ok((connection, position)) => {
                        if began.send(Ok(position)).is_err() {
                            return;
                        }
                        connection
                    }
                    Err(failure) => {
                        let _ = began.send(Err(failure));
                        return;
                    }
                };
                if let Err(failure) = scan(&connection, &schema, &sender) {
                    let _ = sender.blocking_send(Err(failure));
                }
            })
            .map_err(|error| Failure::retry("starting a scan", error))?;
        self.scan = Some(receiver);
        begun.await.map_err(|error| Failure::retry("starting a scan", error))?
    }

    async fn scan_next(&mut self) -> Result<RowPage, Failure> {
        match &mut self.scan {
            Some(scan) => scan.recv().await.unwrap_or_else(|| Ok(Vec::new())),
            None => Ok(Vec::new()),
        }
    }

    async fn fetch(&mut self, schema: &TableSchema, keys: &[Key]) -> Result<(Vec<Row>, Option<Position>), Failure> {
        let (config, install, schema, keys) =
            (self.config.clone(), self.install.clone(), schema.clone(), keys.to_vec());
        blocking(move || fetch(&open(&config, Access::Existing)?, &install, &schema, &keys)).await
    }

    async fn barrier(&mut self) -> Result<Option<Position>, Failure> {
        let (config, install) = (self.config.clone(), self.install.clone());
        blocking(move || {
            let connection = open(&config, Access::Existing)?;
            let until = Instant::now() + PATIENCE;
            loop {
                match settled(&connection, &install)? {
                    Ok(position) => return Ok(position),
                    Err(table) if Instant::now() >= until => {
                        let why = format!("{table} was altered, and the stream has not followed that yet");
                        return Err(Failure::retry("asking for the end of the history", why));
                    }
                    Err(_) => std::thread::sleep(AGAIN_AFTER),
                }
            }
        })
        .await
    }

    async fn count(&mut self, table: &TableName) -> Result<u64, Failure> {
        let (config, table) = (self.config.clone(), table.clone());
        blocking(move || {
            let connection = open(&config, Access::Existing)?;
            connection
                .query_row(&format!("SELECT count(*) FROM {}", quoted(&table.name)), [], |row| row.get::<_, i64>(0))
                .map(|count| count as u64)
                .map_err(|error| failure(format!("counting {table}"), error))
        })
        .await
    }

    async fn dangling(
        &mut self,
        table: &TableName,
        columns: &[String],
        parent: &TableName,
        parent_columns: &[String],
    ) -> Result<Option<u64>, Failure> {
        let given: Vec<String> = columns.iter().map(|name| format!("c.{} IS NOT NULL", quoted(name))).collect();
        let pairs = parent_columns.iter().zip(columns);
        let same: Vec<String> = pairs.map(|(one, other)| format!("p.{} = c.{}", quoted(one), quoted(other))).collect();
        let sql = format!(
            "SELECT count(*) FROM {} c WHERE {} AND NOT EXISTS (SELECT 1 FROM {} p WHERE {})",
            quoted(&table.name),
            given.join(" AND "),
            quoted(&parent.name),
            same.join(" AND ")
        );
        self.number(format!("looking for references of {table} to nothing"), sql).await.map(Some)
    }

    async fn repeated(&mut self, table: &TableName, columns: &[String]) -> Result<Option<u64>, Failure> {
        let names: Vec<String> = columns.iter().map(|name| quoted(name)).collect();
        let given: Vec<String> = names.iter().map(|name| format!("{name} IS NOT NULL")).collect();
        let sql = format!(
            "SELECT count(*) FROM (SELECT 1 FROM {} WHERE {} GROUP BY {} HAVING count(*) > 1)",
            quoted(&table.name),
            given.join(" AND "),
            names.join(", ")
        );
        self.number(format!("looking for values that {table} has more than once"), sql).await.map(Some)
    }
}

impl Query for SqliteInspect {
    async fn query(&mut self, sql: &str, params: &[Option<Value>], bytes_max: usize) -> Result<Asked, Failure> {
        let (config, kept) = (self.config.clone(), self.questions.take());
        let (sql, params) = (sql.to_owned(), params.to_vec());
        let (connection, asked) = blocking(move || {
            let connection = kept.map_or_else(|| query::connect(&config), Ok)?;
            let asked = query::ask(&connection, &sql, &params, bytes_max);
            Ok((connection, asked))
        })
        .await?;
        self.questions = Some(connection);
        asked
    }
}

/// The end of the recorded history in the open snapshot; `None` where nothing is recorded.
fn position(connection: &Connection, install: &Install) -> Result<Option<Position>, Failure> {
    let read = || {
        let Some(source) = Install::identity(connection)? else { return Ok(None) };
        let span = install.span(connection)?;
        Ok(span.map(|(_, highest)| Position { source, timeline: 0, commit: highest as u64, ordinal: u32::MAX }))
    };
    read().map_err(|error| failure("reading the end of the history", error))
}

/// The same, once the recording has the shapes that the tables have; before that, a table for which it has not. What was written
/// to a new column before its triggers were made anew is recorded once more behind that: only then is the end the end.
fn settled(connection: &Connection, install: &Install) -> Result<Result<Option<Position>, TableName>, Failure> {
    let read = |error| failure("reading the shapes of the tables", error);
    let snapshot = connection.unchecked_transaction().map_err(read)?;
    let position = position(&snapshot, install)?;
    if position.is_none() {
        return Ok(Ok(None));
    }
    for layout in install.layouts(&snapshot).map_err(read)? {
        if let State::Altered(_) = install.state_of(&snapshot, &layout.schema).map_err(read)? {
            return Ok(Err(layout.schema.name.clone()));
        }
    }
    Ok(Ok(position))
}

fn begin_scan(connection: &Connection, install: &Install) -> Result<Option<Position>, Failure> {
    connection.execute_batch("BEGIN").map_err(|error| failure("beginning a scan", error))?;
    // The first read fixes the moment, and it is the one that tells the position.
    connection
        .query_row("SELECT count(*) FROM main.sqlite_schema", [], |_| Ok(()))
        .map_err(|error| failure("beginning a scan", error))?;
    position(connection, install)
}

fn select(schema: &TableSchema) -> String {
    let columns = list(schema.columns.iter().map(|column| &column.name));
    format!("SELECT {columns} FROM {}", quoted(&schema.name.name))
}

fn scan(
    connection: &Connection,
    schema: &TableSchema,
    sender: &mpsc::Sender<Result<RowPage, Failure>>,
) -> Result<(), Failure> {
    let doing = || format!("scanning {}", schema.name);
    let mut statement = connection.prepare(&select(schema)).map_err(|error| failure(doing(), error))?;
    let mut rows = statement.query([]).map_err(|error| failure(doing(), error))?;
    let mut page = Page::default();
    while let Some(row) = rows.next().map_err(|error| failure(doing(), error))? {
        page.take(row, schema).map_err(|error| failure(doing(), error))?;
        if page.bytes.len() >= PAGE_BYTES && sender.blocking_send(page.rows(schema)).is_err() {
            return Ok(());
        }
    }
    if !page.ends.is_empty() {
        let _ = sender.blocking_send(page.rows(schema));
    }
    Ok(())
}

/// Rows read into one piece of memory.
#[derive(Default)]
struct Page {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Page {
    fn take(&mut self, row: &rusqlite::Row<'_>, schema: &TableSchema) -> rusqlite::Result<()> {
        self.bytes.extend_from_slice(&(schema.columns.len() as u16).to_be_bytes());
        for (index, column) in schema.columns.iter().enumerate() {
            let value = row.get_ref(index)?;
            if column.type_.format == crossfade_event::Format::Tagged {
                put_cell(&mut self.bytes, value);
                continue;
            }
            let mut cell = crossfade_event::RowBuilder::with_capacity(1, 16);
            crate::codec::push_read(&mut cell, &column.type_, value)
                .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
            self.bytes.extend_from_slice(cell.finish().as_bytes().get(2..).unwrap_or_default());
        }
        self.ends.push(self.bytes.len());
        Ok(())
    }

    fn rows(&mut self, schema: &TableSchema) -> Result<RowPage, Failure> {
        let bytes = Bytes::from(std::mem::take(&mut self.bytes));
        let mut start = 0;
        std::mem::take(&mut self.ends)
            .into_iter()
            .map(|end| {
                let row = Row::parse(bytes.slice(start..end));
                start = end;
                row.map_err(|error| {
                    Failure::halt(
                        format!("reading {}", schema.name),
                        error,
                        "this is a mistake of Crossfade's; please report it",
                    )
                })
            })
            .collect()
    }
}

fn fetch(
    connection: &Connection,
    install: &Install,
    schema: &TableSchema,
    keys: &[Key],
) -> Result<(Vec<Row>, Option<Position>), Failure> {
    let doing = || format!("reading rows of {}", schema.name);
    let position = begin_scan(connection, install)?;
    let columns = schema.key_columns();
    let condition: Vec<String> = columns
        .iter()
        .filter_map(|index| schema.columns.get(*index))
        .enumerate()
        .map(|(n, column)| format!("{} = ?{}", quoted(&column.name), n + 1))
        .collect();
    if condition.is_empty() {
        return Err(Failure::halt(doing(), "the table has no key", "rows of such a table can only be scanned"));
    }
    let sql = format!("{} WHERE {}", select(schema), condition.join(" AND "));
    let mut statement = connection.prepare(&sql).map_err(|error| failure(doing(), error))?;
    let mut page = Page::default();
    for key in keys {
        let values = bound_key(schema, key)
            .map_err(|error| Failure::halt(doing(), error, "the key is not one of this table's"))?;
        for (index, value) in values.into_iter().enumerate() {
            statement.raw_bind_parameter(index + 1, value).map_err(|error| failure(doing(), error))?;
        }
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next().map_err(|error| failure(doing(), error))? {
            page.take(row, schema).map_err(|error| failure(doing(), error))?;
        }
    }
    Ok((page.rows(schema)?, position))
}
