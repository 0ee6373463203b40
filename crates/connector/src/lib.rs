//! The contracts between the pipeline and a foreign system: [`Source`], [`Sink`], and what only some of them can do.
//!
//! A connector translates; it owns no loop, no retry and no shutdown. Errors it sees become a [`Failure`] with a
//! [`Verdict`], and the pipeline is the only one who reads the verdict and waits. Each contract has a suite of tests
//! in `crossfade-testkit` that every implementation passes.

mod failure;
mod inspect;
mod query;
mod shared;
mod sink;
mod source;
pub mod switch;

pub use failure::{Failure, Verdict};
pub use inspect::{BucketDigest, Digesting, Inspect, Refusal, RowPage, ScanRange};
pub use query::{Asked, Query};
pub use shared::{Gathered, LEADING, Lead, Overseen, Owner, PartSink, Taken, Written};
pub use sink::{
    Applied, Ddl, Delivery, Guard, MappingEntry, Progress, Quarantine, QuarantineFilter, QuarantineOutcome,
    QuarantinedChange, Rejection, Rollback, Sink, Stage, StoredMapping, Target, TargetSql, TargetTable, UndoReport,
    Write, WriteMode,
};
pub use source::{Resume, SnapshotState, Source, SourceHealth, TableSnapshot};
