//! All loops of Crossfade live here, on both sides of the log.
//!
//! [`ingest`] carries a source's batches into the log and confirms what is durable; [`deliver`] carries entries from
//! the log through the transforms into a sink. They share nothing but the log, so each fails, restarts and is tested
//! alone. Where workers transform beside the log, each is a [`Maker`], and deliver takes what they made. [`heal`] applies a stretch of the log again, folded per key.
//!
//! Where several deliver, one leads ([`deliver_together`]), and each applies the partitions that it has
//! ([`apply_partition`]).
//!
//! What this crate deliberately does not do: it knows no particular database, prints nothing, and decides nothing
//! about phases; it tells a [`Watch`] what happens and obeys a [`Stop`] and a [`Valve`].

mod bulk;
mod deliver;
mod evolve;
mod fold;
mod gather;
mod heal;
mod ingest;
mod lead;
mod made;
mod pace;
mod repair;
mod retry;
mod route;
mod share;
mod shutdown;
mod views;
mod watch;

pub use deliver::{DeliverOptions, Ending, deliver};
pub use evolve::evolve_catalog;
pub use fold::{Begun, Folds, SnapshotFold, fold_snapshots};
pub use heal::{HealReport, heal};
pub use ingest::{IngestOptions, ingest};
pub use lead::{Others, deliver_together, level};
pub use made::Maker;
pub use repair::{RepairReport, Wanted, repair};
pub use retry::{Again, Patience, backoff_ms};
pub use route::Routes;
pub use share::{Partitions, apply_partition};
pub use shutdown::{Stop, Stopper, Valve, ValveHandle, stop_channel, valve};
pub use views::{Scratch, ScratchError};
pub use watch::{Backfilling, Copying, Delivered, Ingested, Silent, Watch};

use crossfade_connector::Failure;
use crossfade_log::LogError;

/// Why a loop ended before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The source failed for good.
    #[error("source: {0}")]
    Source(#[source] Failure),
    /// The sink failed for good.
    #[error("sink: {0}")]
    Sink(#[source] Failure),
    /// The log failed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The transforms do not fit what the log holds.
    #[error(transparent)]
    Plan(#[from] crossfade_transform::PlanError),
    /// The rows that lookups read cannot be kept.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    /// The log does not hold what the sink needs to go on.
    #[error("{0}")]
    Refused(String),
}
