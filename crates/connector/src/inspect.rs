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
}
