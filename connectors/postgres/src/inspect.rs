//! Asking a PostgreSQL database about itself, at either end: its catalog, its rows, its place in history, and whether
//! it is fit to be a source or a target.
//!
//! Read-only, but for the mark that [`Inspect::barrier`] writes into the WAL.

mod catalog;
mod digest;
mod objects;
mod parts;
mod preflight;
mod query;
mod scan;
mod sizes;

use crate::{
    Config, Patterns,
    client::{Session, connect, failure},
    made,
    source::PostgresSource,
};
use crossfade_connector::{Asked, BucketDigest, Digesting, Failure, Inspect, Query, Refusal, RowPage, Target};
use crossfade_event::{Format, Key, Position, Row, SourceId, TableName, TableSchema, Value, catalog::Catalog};
use query::Questions;
use scan::Scan;

/// A PostgreSQL database that is asked about itself. Connects when it is first asked.
pub struct PostgresInspect {
    config: Config,
    session: Option<Session>,
    /// A scan holds its own session: its transaction stays open until its end.
    scan: Option<Scan>,
    /// Questions of somebody else's have one as well: its names are looked up otherwise.
    questions: Option<Questions>,
    identity: Option<(SourceId, u32)>,
    by_root: bool,
    as_text: bool,
    migration: Option<String>,
}

impl std::fmt::Debug for PostgresInspect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresInspect").field("config", &self.config).finish_non_exhaustive()
    }
}

impl PostgresInspect {
    /// Asks the database that `config` names.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            session: None,
            scan: None,
            questions: None,
            identity: None,
            by_root: false,
            migration: None,
            as_text: false,
        }
    }

    /// Whether a partition tree is told as one table, under its root's name, instead of leaf by leaf.
    #[must_use]
    pub fn by_root(self, by_root: bool) -> Self {
        Self { by_root, ..self }
    }

    /// Whether every column is told, and read, in its text form.
    #[must_use]
    pub fn as_text(self, as_text: bool) -> Self {
        Self { as_text, ..self }
    }

    /// The tables and columns that this migration made here are left out: it is asked as that migration's source.
    #[must_use]
    pub fn source_of(self, migration: &str) -> Self {
        Self { migration: Some(migration.to_owned()), ..self }
    }

    /// What stands against the database as what `source` takes it for. Nothing is changed.
    ///
    /// # Errors
    /// When it cannot be asked, or a pattern matches nothing.
    pub(crate) async fn preflight_source(&mut self, source: &PostgresSource) -> Result<Vec<Refusal>, Failure> {
        let catalog = self.catalog(source.tables()).await?;
        let session = self.session().await?;
        let missing = Box::pin(source.missing(session)).await?;
        Box::pin(preflight::source(session, &catalog, &missing)).await
    }

    /// What stands against the database as a target at all. Nothing is changed.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn preflight_sink(&mut self) -> Result<Vec<Refusal>, Failure> {
        Box::pin(preflight::sink(self.session().await?)).await
    }

    /// The same, and what stands against these tables there. Nothing is changed.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn preflight_target(&mut self, target: &Target) -> Result<Vec<Refusal>, Failure> {
        Box::pin(preflight::target(self.session().await?, target)).await
    }

    async fn session(&mut self) -> Result<&Session, Failure> {
        if self.session.as_ref().is_some_and(|session| session.is_closed()) {
            self.session = None;
        }
        let session = match self.session.take() {
            Some(session) => session,
            None => connect(&self.config, "crossfade inspect").await?,
        };
        Ok(self.session.insert(session))
    }

    /// Which database this is, as the source stamps its positions, and its timeline.
    async fn identity(&mut self) -> Result<(SourceId, u32), Failure> {
        if let Some(identity) = self.identity {
            return Ok(identity);
        }
        let doing = "reading the server's identity";
        let sql = "SELECT (SELECT system_identifier FROM pg_catalog.pg_control_system()), \
                   (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()), \
                   CASE WHEN pg_catalog.pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()) \
                   ELSE ('x' || pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8))::pg_catalog.bit(32)::pg_catalog.int4 END";
        let row = self.session().await?.query_one(sql, &[]).await.map_err(|error| failure(doing, error))?;
        let (system, database, timeline): (i64, u32, i32) = (row.get(0), row.get(1), row.get(2));
        let identity = (SourceId::of(&format!("postgres:{}:{database}", system as u64)), timeline as u32);
        self.identity = Some(identity);
        Ok(identity)
    }

    /// A place in the WAL as a position that includes every commit before it.
    async fn at(&mut self, lsn: u64) -> Result<Position, Failure> {
        let (source, timeline) = self.identity().await?;
        Ok(Position { source, timeline, commit: lsn, ordinal: u32::MAX })
    }
}

impl PostgresInspect {
    /// Begins to read a table: all of its rows, or those of which the condition holds.
    async fn scan_where(
        &mut self,
        schema: &TableSchema,
        condition: Option<String>,
    ) -> Result<Option<Position>, Failure> {
        self.scan = None;
        let session = connect(&self.config, "crossfade scan").await?;
        let (scan, lsn) = Box::pin(Scan::begin(session, schema, condition)).await?;
        self.scan = Some(scan);
        match lsn {
            Some(lsn) => self.at(lsn).await.map(Some),
            None => Ok(None),
        }
    }
}

impl Inspect for PostgresInspect {
    async fn catalog(&mut self, patterns: &[String]) -> Result<Catalog, Failure> {
        let patterns = Patterns::parse(patterns)?.by_root(self.by_root);
        let migration = self.migration.clone();
        let session = self.session().await?;
        let made = match &migration {
            Some(migration) => made::read(session, migration).await?,
            None => made::Made::default(),
        };
        let mut catalog = Box::pin(catalog::read(session, &patterns, &made.tables)).await?;
        catalog.tables.iter_mut().for_each(|table| made.leave_out(table));
        if self.as_text {
            for def in catalog.tables.iter_mut().flat_map(|table| &mut table.columns) {
                def.column.type_.format = Format::PgText;
            }
        }
        Ok(catalog)
    }

    async fn scan(&mut self, schema: &TableSchema) -> Result<Option<Position>, Failure> {
        self.scan_where(schema, None).await
    }

    async fn scan_next(&mut self) -> Result<RowPage, Failure> {
        let Some(scan) = &mut self.scan else { return Ok(RowPage::new()) };
        let page = Box::pin(scan.next()).await?;
        if page.is_empty() {
            self.scan = None;
        }
        Ok(page)
    }

    async fn fetch(&mut self, schema: &TableSchema, keys: &[Key]) -> Result<(Vec<Row>, Option<Position>), Failure> {
        let (rows, lsn) = Box::pin(scan::fetch(self.session().await?, schema, keys)).await?;
        match lsn {
            Some(lsn) => Ok((rows, Some(self.at(lsn).await?))),
            None => Ok((rows, None)),
        }
    }

    async fn barrier(&mut self) -> Result<Option<Position>, Failure> {
        let doing = "writing a mark into the source's stream";
        // A commit that is visible to us stands before the mark in the WAL. The mark's own transaction gives the
        // stream a commit at or after it, so that the place is reached even when nobody writes.
        let sql = "SELECT (pg_catalog.pg_logical_emit_message(true, 'crossfade', 'barrier') - '0/0')::pg_catalog.int8";
        let row = self.session().await?.query_one(sql, &[]).await.map_err(|error| failure(doing, error))?;
        let lsn: i64 = row.get(0);
        self.at(lsn as u64).await.map(Some)
    }

    async fn count(&mut self, table: &TableName) -> Result<u64, Failure> {
        let sql = format!("SELECT pg_catalog.count(*) FROM {}", crate::quote_table(table)?);
        let doing = format!("counting the rows of {table}");
        let row = self.session().await?.query_one(&sql, &[]).await.map_err(|error| failure(doing, error))?;
        Ok(row.get::<_, i64>(0) as u64)
    }

    fn digests(&self) -> Option<&'static str> {
        Some(digest::KIND)
    }

    async fn digest(
        &mut self,
        schema: &TableSchema,
        how: Digesting,
    ) -> Result<(Vec<BucketDigest>, Option<Position>), Failure> {
        let (digests, lsn) = Box::pin(digest::digest(self.session().await?, schema, how)).await?;
        match lsn {
            Some(lsn) => Ok((digests, Some(self.at(lsn).await?))),
            None => Ok((digests, None)),
        }
    }

    async fn scan_buckets(
        &mut self,
        schema: &TableSchema,
        how: Digesting,
        buckets: &[u32],
    ) -> Result<Option<Position>, Failure> {
        let list: Vec<String> = buckets.iter().map(u32::to_string).collect();
        let condition =
            format!("{} = ANY ('{{{}}}'::pg_catalog.int8[])", digest::bucket_of(schema, how)?, list.join(","));
        self.scan_where(schema, Some(condition)).await
    }

    async fn dangling(
        &mut self,
        table: &TableName,
        columns: &[String],
        parent: &TableName,
        parent_columns: &[String],
    ) -> Result<Option<u64>, Failure> {
        Box::pin(digest::dangling(self.session().await?, table, columns, parent, parent_columns)).await.map(Some)
    }

    async fn repeated(&mut self, table: &TableName, columns: &[String]) -> Result<Option<u64>, Failure> {
        Box::pin(digest::repeated(self.session().await?, table, columns)).await.map(Some)
    }
}

impl Query for PostgresInspect {
    async fn query(&mut self, sql: &str, params: &[Option<Value>], bytes_max: usize) -> Result<Asked, Failure> {
        let mut questions = match self.questions.take().filter(|questions| !questions.is_closed()) {
            Some(questions) => questions,
            None => Questions::open(&self.config).await?,
        };
        // A call that is given up takes its session with it: rows of its answer may still be on their way.
        let asked = Box::pin(questions.ask(sql, params, bytes_max)).await;
        self.questions = Some(questions);
        asked
    }
}
