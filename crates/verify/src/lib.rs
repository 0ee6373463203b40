//! Do both ends agree? Counts and keyed digests per bucket, drilled down to rows and columns, judged by position.
//!
//! The source side is taken through the spec's transforms, so what is compared is what the target should hold. A row
//! that differs is judged only once the sink has passed the position at which its source row was read, and the source
//! row has not changed since: an in-flight row is never a difference, and no timer decides.
//!
//! What this crate deliberately does not do: it repairs nothing, and it knows no particular database.

mod changed;
mod digest;
mod drill;
mod integrity;
mod judge;
mod part;
mod repair;
mod report;
mod side;
#[cfg(test)]
mod tests;

pub use changed::{Changed, Keys, ROWS_CHANGED_MAX};
pub use digest::{Buckets, Digest};
pub use integrity::{Check, CheckKind, integrity};
pub use part::{Part, parts, verify_part};
pub use repair::{Differences, Repairable, rows_to_repair};
pub use report::{Difference, DifferenceKind, Report, TableReport};
pub use side::{Expected, LiveViews, scan_rows};

use crossfade_connector::{Digesting, Failure, Inspect};
use crossfade_event::{Position, TableName, TableSchema};
use crossfade_transform::Plan;
use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

/// Why verification could not be finished.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The source could not be read.
    #[error("source: {0}")]
    Source(#[source] Failure),
    /// The target could not be read.
    #[error("target: {0}")]
    Target(#[source] Failure),
    /// The transforms do not fit the source.
    #[error(transparent)]
    Plan(#[from] crossfade_transform::PlanError),
    /// Which rows a change of the log touches cannot be told.
    #[error("{table}: {why}")]
    Unfit {
        /// The source's table.
        table: TableName,
        /// Why not.
        why: String,
    },
    /// The sink does not move, so rows that were changed cannot be judged.
    #[error(
        "the target stands at {at} and has not reached {wanted} in {waited_s} s. Start `crossfade run` so that it catches up, then verify again"
    )]
    Behind {
        /// Where the sink stands.
        at: String,
        /// Where it should be.
        wanted: Position,
        /// How long it was waited for.
        waited_s: u64,
    },
}

/// Tells how far the sink has come.
pub trait SinkPosition: Send {
    /// The source position up to which the sink is exact.
    ///
    /// # Errors
    /// When the sink cannot be asked.
    fn position(&mut self) -> impl Future<Output = Result<Option<Position>, Failure>> + Send;
}

/// Bounds of one verification.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many buckets per table; a differing bucket is read again row by row.
    pub buckets: u32,
    /// How many differences are listed per table; all are counted.
    pub samples: usize,
    /// How long to wait for the sink to pass a position. A limit on patience, not on correctness: running into it is
    /// an error, never a verdict.
    pub patience: Duration,
    /// The key of the row hashes; any value, the same on both sides.
    pub seed: u64,
    /// Whether rows that differ are also named by their keys' values.
    pub show_keys: bool,
    /// About how many rows of buckets that differ are held in memory at once.
    pub rows_at_once: u64,
    /// A row that changes while it is judged is left alone, for whoever asks is given it again with its newer change.
    pub leave_changed: bool,
    /// Once so many differences are found nobody looks for more; the report says how many buckets were left open.
    pub differences_max: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            buckets: 4096,
            samples: 20,
            patience: Duration::from_secs(120),
            seed: 0x00C0_FFEE,
            show_keys: false,
            rows_at_once: 250_000,
            leave_changed: false,
            differences_max: u64::MAX,
        }
    }
}

impl Options {
    /// How a database shares out and hashes rows that it digests by itself.
    pub(crate) fn digesting(&self) -> Digesting {
        Digesting { buckets: self.buckets.max(1), seed: self.seed }
    }
}

/// What is compared.
#[derive(Debug, Clone)]
pub struct Subject<'a> {
    /// The plan by which the target is made from the source.
    pub plan: &'a Plan,
    /// The source's tables, as they are now.
    pub source_tables: Vec<Arc<TableSchema>>,
    /// Tables that were renamed since they were planned: the name now, and the one in the plan.
    pub renamed: BTreeMap<TableName, TableName>,
}

impl Subject<'_> {
    /// The name under which a source table was planned.
    pub(crate) fn planned_name<'a>(&'a self, now: &'a TableName) -> &'a TableName {
        self.renamed.get(now).unwrap_or(now)
    }
}

/// Lets an idle source move, so that the sink can pass the position at which it was read.
pub(crate) async fn nudge<A: Inspect>(source: &mut A) -> Result<(), VerifyError> {
    source.barrier().await.map(drop).map_err(VerifyError::Source)
}

/// Compares both sides. Says that there is no difference only if there is none.
///
/// # Errors
/// See [`VerifyError`].
pub async fn verify<A: Inspect, B: Inspect, P: SinkPosition>(
    subject: &Subject<'_>,
    source: &mut A,
    target: &mut B,
    sink: &mut P,
    options: &Options,
) -> Result<Report, VerifyError> {
    verify_rows(subject, source, target, sink, options).await.map(|(report, _)| report)
}

/// The same, and which rows differ, for [`rows_to_repair`].
///
/// # Errors
/// See [`VerifyError`].
pub async fn verify_rows<A: Inspect, B: Inspect, P: SinkPosition>(
    subject: &Subject<'_>,
    source: &mut A,
    target: &mut B,
    sink: &mut P,
    options: &Options,
) -> Result<(Report, Differences), VerifyError> {
    let views = LiveViews::read(subject, source).await?;
    let expected = Expected::of(subject, &views)?;
    let (digests, judged, open) = part::compare(&expected, source, target, sink, options).await?;
    let checks = integrity::integrity(subject, source, target, sink, options).await?;
    let report = report::report(&expected, &digests, &judged, open, checks, options);
    Ok((report, Differences(judged.real)))
}
