//! Any question to a database, in its own words: what query pairs are asked by.

use crate::Failure;
use crossfade_event::{Column, Row, Value};
use std::{future::Future, time::Duration};

/// An answer, undecoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Its columns; what the database does not say of them (keys, whether NULL is allowed) is left open.
    pub columns: Vec<Column>,
    /// Its rows, in the order in which they came.
    pub rows: Vec<Row>,
    /// From when the question was sent until the last row was there. What it took to prepare it is not in it.
    pub took: Duration,
}

/// Asks a database a question of somebody else's.
pub trait Query: Send {
    /// Asks one statement that only reads, with values for its parameters. It runs in a transaction that can only read.
    /// An answer of more than `bytes_max` is refused. A statement is prepared once and then kept.
    ///
    /// # Errors
    /// See [`Failure`].
    fn query(
        &mut self,
        sql: &str,
        params: &[Option<Value>],
        bytes_max: usize,
    ) -> impl Future<Output = Result<Asked, Failure>> + Send;
}
