//! SQLite, as a source and as a sink.
//!
//! Where it stands in the journey: [`SqliteSource`] turns what other processes write to a file into batches for the
//! log, by triggers that record every change inside the writer's own transaction; [`SqliteSink`] writes changes into
//! a file, its position in the same transaction; [`SqliteInspect`] answers questions at either end.
//!
//! Every connection lives on a thread of its own, for SQLite blocks; callers hold a channel. Files may be in any
//! journal mode, and other processes write to them all the while: a lock is waited for as long as
//! [`Config::busy_timeout`] says, then the call fails with a verdict to retry.
//!
//! What this crate deliberately does not do: it changes no setting of a file that exists already (not even its
//! journal mode), it reads no WAL, and it holds no read transaction longer than a page of rows takes (but for tables
//! without a key, which can only be copied in one).

mod client;
mod codec;
mod config;
mod inspect;
mod sink;
mod source;
pub mod switch;

pub use config::{Config, OldRows, SourceOptions};
pub use inspect::SqliteInspect;
pub use sink::{Back, OldKey, OnError, SqliteSink};
pub use source::{SqliteSource, TableAdder};
