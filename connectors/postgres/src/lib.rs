//! PostgreSQL at either end of the journey.
//!
//! As a source: rows by `COPY (FORMAT binary)` in parallel chunks, and every change after them through logical
//! replication (`pgoutput`). As a sink: tables made from a catalog, written in sets, with the position in the same
//! transaction.
//!
//! What this crate deliberately does not do: it owns no loop, no retry and no shutdown; it never decides what to do
//! about a failure, it only says what kind it is.

pub mod client;
pub mod codec;
pub mod config;
mod inspect;
mod made;
mod sink;
pub mod source;
pub mod swap;
pub mod switch;

pub use client::{Patterns, QuotedName, Session, connect, failure, quote_ident, quote_literal, quote_table};
pub use config::{Config, Host, SslMode, TlsOptions};
pub use inspect::PostgresInspect;
pub use sink::{Apply, Back, OldKey, OnError, PostgresPart, PostgresSink, SinkConfig};
pub use source::{Begin, OnRewrite, Partitions, PostgresSource, SnapshotConfig, SourceConfig, TableAdder};
