//! What may be asked of a database at either end: its catalog, its rows, its place in history.

use crate::Failure;
use crossfade_event::{Key, Position, Row, TableName, TableSchema, catalog::Catalog};
use serde::Serialize;
use std::future::Future;

/// Why a preflight says no, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// The object: a table, a setting, a role.
    pub object: String,
    /// What is wrong.
    pub problem: String,
    /// The exact remedy: the GRANT, the setting.
    pub remedy: String,
    /// False for what is only worth knowing.
    pub fatal: bool,
}

/// A part of a table's rows, by the hash of the key, so that no collation matters: those whose
/// [`Key::hash64`] lies in `from..=to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanRange {
    /// Lowest hash.
    pub from: u64,
    /// Highest hash.
    pub to: u64,
}

impl ScanRange {
    /// All rows.
    pub const ALL: Self = Self { from: 0, to: u64::MAX };
}

/// Some rows of a scan; an empty page ends it.
pub type RowPage = Vec<Row>;

/// The digest of the rows of one bucket, as a database made it by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BucketDigest {
    /// Which bucket; rows are shared out by a hash of their keys.
    pub bucket: u32,
    /// How many rows.
    pub count: u64,
    /// The sum of their hashes, modulo 2^128.
    pub sum: u128,
}

/// How rows are shared out and hashed where they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digesting {
    /// How many buckets.
    pub buckets: u32,
    /// The key of the hashes.
    pub seed: u64,
}

/// Asks a database about itself. Read-only but for [`Inspect::barrier`].
pub trait Inspect: Send {
    /// What the tables that match `patterns` (`schema.table` with `*` and `?`, `!` in front excludes; later patterns
    /// win) look like. A pattern that matches nothing is an error that names the nearest table.
    ///
    /// # Errors
    /// See [`Failure`].
    fn catalog(&mut self, patterns: &[String]) -> impl Future<Output = Result<Catalog, Failure>> + Send;

    /// Begins a scan of the columns of `schema`, in its formats, at one consistent point; returns the position of
    /// that point where the system has one. One scan at a time.
    ///
    /// # Errors
    /// See [`Failure`].
    fn scan(&mut self, schema: &TableSchema) -> impl Future<Output = Result<Option<Position>, Failure>> + Send;

    /// The next rows of the scan, in any order; empty at its end.
    ///
    /// # Errors
    /// See [`Failure`].
    fn scan_next(&mut self) -> impl Future<Output = Result<RowPage, Failure>> + Send;

    /// The rows under these keys now, in the same formats, with the position after which the answer holds.
    ///
    /// # Errors
    /// See [`Failure`].
    fn fetch(
        &mut self,
        schema: &TableSchema,
        keys: &[Key],
    ) -> impl Future<Output = Result<(Vec<Row>, Option<Position>), Failure>> + Send;

    /// The end of the database's history now, as the stream will name it: a sink whose position has passed it has
    /// everything that was committed before the call. A source may write a mark into its own stream for this, so that
    /// the position is reached even when nobody writes.
    ///
    /// # Errors
    /// See [`Failure`].
    fn barrier(&mut self) -> impl Future<Output = Result<Option<Position>, Failure>> + Send;

    /// How many rows a table has, exactly.
    ///
    /// # Errors
    /// See [`Failure`].
    fn count(&mut self, table: &TableName) -> impl Future<Output = Result<u64, Failure>> + Send;

    /// How this database digests rows by itself; two that say the same make the same digests of rows that print alike.
    /// `None`: it does not, and its rows are read.
    fn digests(&self) -> Option<&'static str> {
        None
    }

    /// The digests of all buckets of a table that are not empty, made where the rows are, of the columns of `schema` at one
    /// consistent point; with the position of that point where the system has one. Only where [`Inspect::digests`] says how.
    ///
    /// # Errors
    /// See [`Failure`].
    fn digest(
        &mut self,
        schema: &TableSchema,
        how: Digesting,
    ) -> impl Future<Output = Result<(Vec<BucketDigest>, Option<Position>), Failure>> + Send {
        let _ = how;
        let told = format!("the rows of {} are not digested where they are", schema.name);
        std::future::ready(Err(Failure::halt("digesting", told, "Report this: they should have been read")))
    }

    /// Begins a scan as [`Inspect::scan`] does, of the rows of these buckets alone.
    ///
    /// # Errors
    /// See [`Failure`].
    fn scan_buckets(
        &mut self,
        schema: &TableSchema,
        how: Digesting,
        buckets: &[u32],
    ) -> impl Future<Output = Result<Option<Position>, Failure>> + Send {
        let _ = (how, buckets);
        self.scan(schema)
    }

    /// How many rows of `table` refer by `columns` to a row of `parent` that is not there; a reference with a NULL in it refers
    /// to nothing. `None` where that cannot be asked.
    ///
    /// # Errors
    /// See [`Failure`].
    fn dangling(
        &mut self,
        table: &TableName,
        columns: &[String],
        parent: &TableName,
        parent_columns: &[String],
    ) -> impl Future<Output = Result<Option<u64>, Failure>> + Send {
        let _ = (table, columns, parent, parent_columns);
        std::future::ready(Ok(None))
    }

    /// How many values of `columns`, none of them NULL, stand in more than one row. `None` where that cannot be asked.
    ///
    /// # Errors
    /// See [`Failure`].
    fn repeated(
        &mut self,
        table: &TableName,
        columns: &[String],
    ) -> impl Future<Output = Result<Option<u64>, Failure>> + Send {
        let _ = (table, columns);
        std::future::ready(Ok(None))
    }
}
