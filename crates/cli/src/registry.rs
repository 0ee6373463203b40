//! The connectors that this binary knows: one line each. The pipeline stays generic; here a closed set is chosen from.

mod back;
#[cfg(feature = "kafka")]
mod debezium;
mod switch;
#[cfg(feature = "kafka")]
mod topics;

pub(crate) use back::{drop_mapping, left_by_way_back, mapping_of, place_of_slot, tell_old_rows, written_side};
pub(crate) use switch::{AnyFreeze, AnyOpening, AnySwitchEnd, one_file, postgres_switch_ends, switch_ends};

use crate::{
    error::CliError,
    spec::{
        self, Apply, OnError, OnRewrite, PostgresSink as SinkKeys, PostgresSource as SourceKeys, SinkSpec, SourceSpec,
        Spec,
    },
};
use crossfade_connector::{
    Applied, Asked, BucketDigest, Ddl, Delivery, Digesting, Failure, Gathered, Guard, Inspect, Lead, MappingEntry,
    Overseen, Progress, Quarantine, QuarantineFilter, QuarantineOutcome, QuarantinedChange, Query, Refusal, Resume,
    Rollback, RowPage, Sink, Source, SourceHealth, StoredMapping, Target, TargetSql, TargetTable, UndoReport,
};
use crossfade_event::{
    Batch, Change, Durable, Key, Position, Row, TableId, TableName, TableSchema, Value, catalog::Catalog,
};
use crossfade_postgres::{
    Apply as PostgresApply, Begin, Config as PostgresConfig, OnError as PostgresOnError,
    OnRewrite as PostgresOnRewrite, Partitions, PostgresInspect, PostgresPart, PostgresSink, PostgresSource,
    SinkConfig, SnapshotConfig, SourceConfig, TlsOptions, swap::SwapEnd,
};
use crossfade_sqlite::{
    Config as SqliteConfig, OnError as SqliteOnError, SourceOptions, SqliteInspect, SqliteSink, SqliteSource,
};
use crossfade_transform::Note;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// Where changes come from.
pub(crate) enum AnySource {
    /// PostgreSQL
    Postgres(Box<PostgresSource>),
    /// SQLite
    Sqlite(Box<SqliteSource>),
    /// Debezium's topics
    #[cfg(feature = "kafka")]
    Debezium(Box<crossfade_kafka::DebeziumSource>),
}

/// Where they go.
pub(crate) enum AnySink {
    /// PostgreSQL
    Postgres(Box<PostgresSink>),
    /// SQLite
    Sqlite(Box<SqliteSink>),
    /// Topics for others to read
    #[cfg(feature = "kafka")]
    Kafka(Box<crossfade_kafka::KafkaSink>),
}

/// What may be asked.
pub(crate) enum AnyInspect {
    /// PostgreSQL
    Postgres(Box<PostgresInspect>),
    /// SQLite
    Sqlite(Box<SqliteInspect>),
    /// Debezium's topics
    #[cfg(feature = "kafka")]
    Debezium(Box<debezium::Asking>),
    /// Topics for others to read
    #[cfg(feature = "kafka")]
    Kafka(Box<crossfade_kafka::KafkaSinkInspect>),
}

/// The name of a look at a database that belongs to no migration yet.
const LOOKING: &str = "init";

/// The same call, whichever it is; where Debezium's topics are one of them.
macro_rules! any {
    ($any:expr, $one:ident => $call:expr) => {
        match $any {
            Self::Postgres($one) => $call,
            Self::Sqlite($one) => $call,
            #[cfg(feature = "kafka")]
            Self::Debezium($one) => $call,
        }
    };
}

/// The same call, whichever it is; where topics for others are one of them.
macro_rules! each {
    ($any:expr, $one:ident => $call:expr) => {
        match $any {
            Self::Postgres($one) => $call,
            Self::Sqlite($one) => $call,
            #[cfg(feature = "kafka")]
            Self::Kafka($one) => $call,
        }
    };
}

/// The same call, whichever is asked.
macro_rules! asked {
    ($any:expr, $one:ident => $call:expr) => {
        match $any {
            Self::Postgres($one) => $call,
            Self::Sqlite($one) => $call,
            #[cfg(feature = "kafka")]
            Self::Debezium($one) => $call,
            #[cfg(feature = "kafka")]
            Self::Kafka($one) => $call,
        }
    };
}

impl Source for AnySource {
    async fn open(&mut self, resume: Resume) -> Result<(), Failure> {
        any!(self, one => one.open(resume).await)
    }

    async fn next(&mut self) -> Result<Option<Batch>, Failure> {
        any!(self, one => one.next().await)
    }

    async fn confirm(&mut self, durable: Durable) -> Result<(), Failure> {
        any!(self, one => one.confirm(durable).await)
    }

    async fn health(&mut self) -> Result<SourceHealth, Failure> {
        any!(self, one => one.health().await)
    }

    fn marks(&self) -> Option<&'static str> {
        any!(self, one => one.marks())
    }
}

impl Sink for AnySink {
    async fn prepare(&mut self, target: &Target) -> Result<(), Failure> {
        each!(self, one => one.prepare(target).await)
    }

    async fn alter(&mut self, before: &TargetTable, after: &TargetTable) -> Result<(), Failure> {
        each!(self, one => one.alter(before, after).await)
    }

    async fn progress(&mut self) -> Result<Option<Progress>, Failure> {
        each!(self, one => one.progress().await)
    }

    async fn apply(&mut self, delivery: Delivery, guard: Guard) -> Result<Applied, Failure> {
        each!(self, one => one.apply(delivery, guard).await)
    }

    async fn finish_load(&mut self) -> Result<(), Failure> {
        each!(self, one => one.finish_load().await)
    }

    async fn read_row(&mut self, table: TableId, key: &Key) -> Result<Option<Row>, Failure> {
        each!(self, one => one.read_row(table, key).await)
    }

    fn wants_transactions(&self) -> bool {
        each!(self, one => one.wants_transactions())
    }
}

impl Lead for AnySink {
    async fn try_lead(&mut self, silent: Duration) -> Result<bool, Failure> {
        match self {
            Self::Postgres(one) => one.try_lead(silent).await,
            _ => Err(not_shared()),
        }
    }

    async fn take_back(&mut self, epoch: u64) -> Result<Gathered, Failure> {
        match self {
            Self::Postgres(one) => one.take_back(epoch).await,
            _ => Err(not_shared()),
        }
    }

    async fn share(&mut self, partitions: u32) -> Result<Result<(), String>, Failure> {
        match self {
            Self::Postgres(one) => one.share(partitions).await,
            _ => Err(not_shared()),
        }
    }

    async fn oversee(&mut self) -> Result<Overseen, Failure> {
        match self {
            Self::Postgres(one) => one.oversee().await,
            _ => Err(not_shared()),
        }
    }
}

/// Asked first ([`applies_in_parallel`]); nobody comes here.
fn not_shared() -> Failure {
    Failure::halt("sharing the stream", "only a PostgreSQL sink is written by several", "Report this")
}

/// Whether changes go to the sink of a spec in the order of their keys alone.
pub(crate) fn applies_in_parallel(spec: &Spec) -> bool {
    matches!(&spec.sink, SinkSpec::Postgres(keys) if keys.apply == Apply::Parallel)
}

/// One partition of a stream that several apply.
pub(crate) fn part(spec: &Spec, partition: u32) -> Result<PostgresPart, CliError> {
    match &spec.sink {
        SinkSpec::Postgres(keys) => Ok(PostgresPart::new(postgres_sink(spec, keys)?, partition)),
        _ => Err(not_shared().into()),
    }
}

fn postgres_sink(spec: &Spec, keys: &SinkKeys) -> Result<SinkConfig, CliError> {
    let mut config = SinkConfig::new(sink_connection(keys)?, spec.name.as_str());
    config.apply = match keys.apply {
        Apply::Transactional => PostgresApply::Transactional,
        Apply::Parallel => PostgresApply::Parallel { workers: keys.workers.unwrap_or(4) },
    };
    config.on_error = match keys.on_error {
        OnError::Quarantine => PostgresOnError::Quarantine,
        OnError::Stop => PostgresOnError::Stop,
    };
    config.back = spec.reverse.as_deref().map(back::of);
    Ok(config)
}

impl Quarantine for AnySink {
    async fn list(&mut self, filter: &QuarantineFilter) -> Result<Vec<QuarantinedChange>, Failure> {
        each!(self, one => one.list(filter).await)
    }

    async fn show(&mut self, id: i64) -> Result<Option<(QuarantinedChange, Change)>, Failure> {
        each!(self, one => one.show(id).await)
    }

    async fn retry(&mut self, filter: &QuarantineFilter) -> Result<QuarantineOutcome, Failure> {
        each!(self, one => one.retry(filter).await)
    }

    async fn discard(&mut self, filter: &QuarantineFilter) -> Result<QuarantineOutcome, Failure> {
        each!(self, one => one.discard(filter).await)
    }
}

impl StoredMapping for AnySink {
    async fn mapping_page(
        &mut self,
        table: Option<&str>,
        after: Option<&MappingEntry>,
        limit: u32,
    ) -> Result<Vec<MappingEntry>, Failure> {
        each!(self, one => one.mapping_page(table, after, limit).await)
    }

    async fn mapping_lookup(&mut self, id: &str) -> Result<Vec<MappingEntry>, Failure> {
        each!(self, one => one.mapping_lookup(id).await)
    }
}

impl Rollback for AnySink {
    async fn undo(&mut self, target: &Target) -> Result<UndoReport, Failure> {
        each!(self, one => one.undo(target).await)
    }

    async fn wipe(&mut self, target: &Target) -> Result<UndoReport, Failure> {
        each!(self, one => one.wipe(target).await)
    }
}

impl Inspect for AnyInspect {
    async fn catalog(&mut self, patterns: &[String]) -> Result<Catalog, Failure> {
        asked!(self, one => one.catalog(patterns).await)
    }

    async fn scan(&mut self, schema: &TableSchema) -> Result<Option<Position>, Failure> {
        asked!(self, one => one.scan(schema).await)
    }

    async fn scan_next(&mut self) -> Result<RowPage, Failure> {
        asked!(self, one => one.scan_next().await)
    }

    async fn fetch(&mut self, schema: &TableSchema, keys: &[Key]) -> Result<(Vec<Row>, Option<Position>), Failure> {
        asked!(self, one => one.fetch(schema, keys).await)
    }

    async fn barrier(&mut self) -> Result<Option<Position>, Failure> {
        asked!(self, one => one.barrier().await)
    }

    async fn count(&mut self, table: &TableName) -> Result<u64, Failure> {
        asked!(self, one => one.count(table).await)
    }

    fn digests(&self) -> Option<&'static str> {
        asked!(self, one => one.digests())
    }

    async fn digest(
        &mut self,
        schema: &TableSchema,
        how: Digesting,
    ) -> Result<(Vec<BucketDigest>, Option<Position>), Failure> {
        asked!(self, one => one.digest(schema, how).await)
    }

    async fn scan_buckets(
        &mut self,
        schema: &TableSchema,
        how: Digesting,
        buckets: &[u32],
    ) -> Result<Option<Position>, Failure> {
        asked!(self, one => one.scan_buckets(schema, how, buckets).await)
    }

    async fn dangling(
        &mut self,
        table: &TableName,
        columns: &[String],
        parent: &TableName,
        parent_columns: &[String],
    ) -> Result<Option<u64>, Failure> {
        asked!(self, one => one.dangling(table, columns, parent, parent_columns).await)
    }

    async fn repeated(&mut self, table: &TableName, columns: &[String]) -> Result<Option<u64>, Failure> {
        asked!(self, one => one.repeated(table, columns).await)
    }
}

impl Query for AnyInspect {
    async fn query(&mut self, sql: &str, params: &[Option<Value>], bytes_max: usize) -> Result<Asked, Failure> {
        match self {
            Self::Postgres(one) => one.query(sql, params, bytes_max).await,
            Self::Sqlite(one) => one.query(sql, params, bytes_max).await,
            #[cfg(feature = "kafka")]
            Self::Debezium(_) | Self::Kafka(_) => Err(Failure::misconfigured(
                "asking a query",
                "topics answer no queries",
                "Query pairs need a database at both ends",
            )),
        }
    }
}

impl AnySource {
    /// The source of a spec; not connected yet.
    pub(crate) fn new(spec: &Spec, folder: &Path, as_text: bool) -> Result<Self, CliError> {
        match &spec.source {
            SourceSpec::Postgres(keys) => {
                let config = SourceConfig {
                    connection: source_connection(keys)?,
                    migration: spec.name.to_string(),
                    tables: keys.tables.clone(),
                    snapshot: SnapshotConfig {
                        workers: keys.snapshot.workers as usize,
                        chunk_rows: keys.snapshot.chunk_rows,
                    },
                    spool_dir: folder.join("spool"),
                    text: keys.text || as_text,
                    on_rewrite: match keys.on_rewrite {
                        OnRewrite::Snapshot => PostgresOnRewrite::Snapshot,
                        OnRewrite::Stop => PostgresOnRewrite::Stop,
                    },
                    partitions: match spec.source.by_root() {
                        true => Partitions::Root,
                        false => Partitions::Leaf,
                    },
                    heartbeat: keys.heartbeat.0,
                    failover: keys.failover,
                    seen_first: crate::wiring::writes_beside(spec),
                    begin: spec.reverse.as_ref().and_then(|reverse| reverse.begin).map_or(Begin::Copy, Begin::At),
                };
                Ok(Self::Postgres(Box::new(PostgresSource::new(config)?)))
            }
            SourceSpec::Sqlite(keys) => {
                let options = SourceOptions {
                    workers: keys.snapshot.workers as usize,
                    chunk_rows: keys.snapshot.chunk_rows,
                    old_rows: keys.old_rows,
                };
                let config = sqlite(&keys.path, keys.busy_timeout);
                let begin = spec.reverse.as_ref().and_then(|reverse| reverse.begin);
                let source =
                    SqliteSource::new(config, spec.name.as_str(), keys.tables.clone(), options).begin_at(begin);
                Ok(Self::Sqlite(Box::new(source)))
            }
            #[cfg(feature = "kafka")]
            SourceSpec::Debezium(keys) => debezium::source(spec, keys).map(|source| Self::Debezium(Box::new(source))),
            #[cfg(not(feature = "kafka"))]
            SourceSpec::Debezium(_) => Err(without_kafka("reading Debezium's topics")),
        }
    }
}

impl AnySource {
    async fn uninstall(&mut self) -> Result<(), Failure> {
        any!(self, one => one.uninstall().await)
    }

    async fn preflight(&self) -> Result<Vec<Refusal>, Failure> {
        any!(self, one => one.preflight().await)
    }

    async fn ddl(&self) -> Result<Vec<String>, Failure> {
        any!(self, one => one.ddl().await)
    }
}

impl Ddl for AnySink {
    fn ddl(&self, target: &Target) -> Result<TargetSql, Failure> {
        each!(self, one => one.ddl(target))
    }
}

impl AnySink {
    /// A sink for reading what it keeps of the migration; it is not prepared, and makes nothing.
    pub(crate) fn for_looking(spec: &Spec) -> Result<Self, CliError> {
        #[cfg(feature = "kafka")]
        if let SinkSpec::Kafka(keys) = &spec.sink {
            let config = crossfade_kafka::SinkConfig { looking: true, ..topics::config(spec, keys) };
            return Ok(Self::Kafka(Box::new(crossfade_kafka::KafkaSink::new(config))));
        }
        Self::new(spec)
    }

    /// The sink of a spec; not connected yet.
    pub(crate) fn new(spec: &Spec) -> Result<Self, CliError> {
        match &spec.sink {
            SinkSpec::Postgres(keys) => Ok(Self::Postgres(Box::new(PostgresSink::new(postgres_sink(spec, keys)?)))),
            SinkSpec::Sqlite(keys) => {
                let config = sqlite(&keys.path, keys.busy_timeout);
                let on_error = match keys.on_error {
                    OnError::Quarantine => SqliteOnError::Quarantine,
                    OnError::Stop => SqliteOnError::Stop,
                };
                let back = spec.reverse.as_deref().map(back::of_sqlite);
                let sink = SqliteSink::new(config, spec.name.as_str()).on_error(on_error).taking_back(back);
                Ok(Self::Sqlite(Box::new(sink)))
            }
            #[cfg(feature = "kafka")]
            SinkSpec::Kafka(keys) => Ok(Self::Kafka(Box::new(topics::sink(spec, keys)))),
            #[cfg(not(feature = "kafka"))]
            SinkSpec::Kafka(_) => Err(without_kafka("writing topics")),
        }
    }
}

impl AnyInspect {
    /// Asks a spec's source; with `as_text` every value comes in its text form.
    pub(crate) fn of_source(spec: &Spec, as_text: bool) -> Result<Self, CliError> {
        match &spec.source {
            SourceSpec::Postgres(keys) => {
                let inspect = PostgresInspect::new(source_connection(keys)?).by_root(spec.source.by_root());
                let inspect = inspect.source_of(spec.name.as_str()).as_text(as_text);
                Ok(Self::Postgres(Box::new(inspect)))
            }
            SourceSpec::Sqlite(keys) => Ok(Self::sqlite(sqlite(&keys.path, keys.busy_timeout), spec.name.as_str())),
            #[cfg(feature = "kafka")]
            SourceSpec::Debezium(keys) => debezium::Asking::new(spec, keys).map(|one| Self::Debezium(Box::new(one))),
            #[cfg(not(feature = "kafka"))]
            SourceSpec::Debezium(_) => Err(without_kafka("reading Debezium's topics")),
        }
    }

    /// What the source has lost of its values before they come here; known once its catalog has been read.
    pub(crate) fn losses(&self) -> Vec<Note> {
        #[cfg(feature = "kafka")]
        if let Self::Debezium(asking) = self {
            return asking.losses();
        }
        Vec::new()
    }

    /// Asks a spec's sink.
    pub(crate) fn of_sink(spec: &Spec) -> Result<Self, CliError> {
        match &spec.sink {
            SinkSpec::Postgres(keys) => Ok(Self::postgres(sink_connection(keys)?)),
            SinkSpec::Sqlite(keys) => Ok(Self::sqlite(sqlite(&keys.path, keys.busy_timeout), spec.name.as_str())),
            #[cfg(feature = "kafka")]
            SinkSpec::Kafka(keys) => {
                let inspect = crossfade_kafka::KafkaSinkInspect::new(&topics::config(spec, keys));
                Ok(Self::Kafka(Box::new(inspect)))
            }
            #[cfg(not(feature = "kafka"))]
            SinkSpec::Kafka(_) => Err(without_kafka("reading topics")),
        }
    }

    /// Asks a database that the command line names.
    pub(crate) fn of_place(place: &Place) -> Result<Self, CliError> {
        match place {
            Place::Postgres(url) => Ok(Self::postgres(PostgresConfig::parse(url)?)),
            Place::Sqlite(path) => Ok(Self::sqlite(SqliteConfig::new(path), LOOKING)),
        }
    }

    fn postgres(connection: PostgresConfig) -> Self {
        Self::Postgres(Box::new(PostgresInspect::new(connection)))
    }

    fn sqlite(config: SqliteConfig, migration: &str) -> Self {
        Self::Sqlite(Box::new(SqliteInspect::new(config, migration)))
    }
}

/// Takes away what a migration made in its source. Afterwards it cannot be resumed.
pub(crate) async fn release(spec: &Spec) -> Result<(), CliError> {
    Ok(AnySource::new(spec, Path::new(""), false)?.uninstall().await?)
}

/// The statements by which a spec's source prepares to be captured, as far as they have not been run yet.
pub(crate) async fn source_ddl(spec: &Spec) -> Result<Vec<String>, CliError> {
    Ok(AnySource::new(spec, Path::new(""), false)?.ddl().await?)
}

/// The statements by which a spec's sink makes its target. Connects to nothing.
pub(crate) fn sink_ddl(spec: &Spec, target: &Target) -> Result<TargetSql, CliError> {
    Ok(AnySink::new(spec)?.ddl(target)?)
}

/// A place in a spec's source, in the source's own words.
pub(crate) fn place_words(spec: &Spec, position: &Position) -> String {
    match &spec.source {
        SourceSpec::Postgres(_) => PostgresSource::place_words(position),
        SourceSpec::Sqlite(_) => SqliteSource::place_words(position),
        #[cfg(feature = "kafka")]
        SourceSpec::Debezium(_) => crossfade_kafka::DebeziumSource::place_words(position),
        #[cfg(not(feature = "kafka"))]
        SourceSpec::Debezium(_) => position.to_string(),
    }
}

/// Has the target forget the migration; what was written there stays.
pub(crate) async fn forget_sink(spec: &Spec) -> Result<(), CliError> {
    Ok(AnySink::new(spec)?.forget().await?)
}

/// The database in which columns change places.
pub(crate) fn swap_end(spec: &Spec) -> Result<SwapEnd, CliError> {
    match &spec.sink {
        SinkSpec::Postgres(sink) => Ok(SwapEnd::new(sink_connection(sink)?, spec.name.as_str())),
        _ => Err(CliError::not_built("a switch within tables of another system than PostgreSQL")),
    }
}

/// What stands in the way of capturing the spec's tables, and what is worth knowing.
pub(crate) async fn preflight_source(spec: &Spec) -> Result<Vec<Refusal>, CliError> {
    Ok(AnySource::new(spec, Path::new(""), false)?.preflight().await?)
}

/// What stands in the way of writing to the target, and what is worth knowing.
pub(crate) async fn preflight_sink(spec: &Spec, target: &Target) -> Result<Vec<Refusal>, CliError> {
    Ok(match &spec.sink {
        SinkSpec::Postgres(keys) => PostgresInspect::new(sink_connection(keys)?).preflight_target(target).await?,
        SinkSpec::Sqlite(keys) => {
            SqliteInspect::new(sqlite(&keys.path, keys.busy_timeout), spec.name.as_str()).preflight_sink().await?
        }
        #[cfg(feature = "kafka")]
        SinkSpec::Kafka(keys) => topics::sink(spec, keys).preflight(target).await?,
        #[cfg(not(feature = "kafka"))]
        SinkSpec::Kafka(_) => return Err(without_kafka("writing topics")),
    })
}

/// The columns of which the target's form cannot hold every value.
pub(crate) fn unsayable(spec: &Spec, target: &Target) -> Result<Vec<Note>, CliError> {
    match &spec.sink {
        SinkSpec::Postgres(_) | SinkSpec::Sqlite(_) => Ok(Vec::new()),
        #[cfg(feature = "kafka")]
        SinkSpec::Kafka(keys) => Ok(topics::unsayable(spec, keys, target)),
        #[cfg(not(feature = "kafka"))]
        SinkSpec::Kafka(_) => target.tables.first().map_or(Ok(Vec::new()), |_| Err(without_kafka("writing topics"))),
    }
}

/// A spec for Kafka is refused where it is read; nobody comes here.
#[cfg(not(feature = "kafka"))]
fn without_kafka(doing: &str) -> CliError {
    CliError::not_built(&format!("{doing}, in a crossfade without Kafka,"))
}

fn source_connection(keys: &SourceKeys) -> Result<PostgresConfig, CliError> {
    let tls = TlsOptions {
        sslmode: keys.sslmode,
        sslrootcert: keys.sslrootcert.clone(),
        sslcert: keys.sslcert.clone(),
        sslkey: keys.sslkey.clone(),
    };
    Ok(PostgresConfig::with_tls(keys.url.expose(), &tls)?)
}

fn sink_connection(keys: &SinkKeys) -> Result<PostgresConfig, CliError> {
    let tls = TlsOptions {
        sslmode: keys.sslmode,
        sslrootcert: keys.sslrootcert.clone(),
        sslcert: keys.sslcert.clone(),
        sslkey: keys.sslkey.clone(),
    };
    Ok(PostgresConfig::with_tls(keys.url.expose(), &tls)?)
}

fn sqlite(path: &Path, busy_timeout: spec::Span) -> SqliteConfig {
    SqliteConfig { busy_timeout: busy_timeout.0, ..SqliteConfig::new(path) }
}

/// A database as the command line names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// `postgres://…`
    Postgres(String),
    /// `sqlite:path`
    Sqlite(PathBuf),
}

impl Place {
    /// Reads `postgres://user@host/database` or `sqlite:path`.
    pub(crate) fn parse(url: &str) -> Result<Self, CliError> {
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return Ok(Self::Postgres(url.to_owned()));
        }
        if let Some(path) = url.strip_prefix("sqlite:") {
            return Ok(Self::Sqlite(PathBuf::from(path.strip_prefix("//").unwrap_or(path))));
        }
        let scheme = url.split_once(':').map_or("it", |(scheme, _)| scheme);
        Err(CliError::misconfigured(format!("{scheme} is no kind of database that can be looked at"))
            .hint("write postgres://user@host:5432/database, or sqlite:path/to/file.db"))
    }

    /// The database's own name.
    pub(crate) fn database(&self) -> String {
        match self {
            Self::Sqlite(path) => path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            Self::Postgres(url) => {
                let plain = url.split('?').next().unwrap_or_default();
                plain.rsplit('/').next().unwrap_or_default().to_owned()
            }
        }
    }

    /// Whether a password stands in it.
    pub(crate) fn has_secret(&self) -> bool {
        matches!(self, Self::Postgres(url) if spec::has_plain_password(url))
    }
}
