//! Comparing some of the tables at a time, so that whoever does it for long can rest in between, and go on after a restart.

use crate::{
    Options, Report, SinkPosition, VerifyError, drill,
    judge::{self, Judged},
    report,
    side::{self, Digests, Expected, LiveViews},
};
use crossfade_connector::Inspect;
use crossfade_event::TableId;
use std::collections::BTreeSet;

/// Tables of the target that are compared together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    tables: BTreeSet<TableId>,
    /// Its name: that of its first table.
    pub name: String,
}

/// The parts that a comparison can be done in: a table that both sides digest where its rows are is one by itself, and all
/// others are one together, for rows of one source table may go into several of them.
pub fn parts<A: Inspect, B: Inspect>(expected: &Expected<'_>, source: &A, target: &B) -> Vec<Part> {
    let alone = side::in_place(expected, source, target);
    let name = |table: &TableId| expected.targets.get(table).map(|side| side.schema.name.to_string());
    let part = |tables: BTreeSet<TableId>| {
        let name = tables.first().and_then(name)?;
        Some(Part { tables, name })
    };
    let together: BTreeSet<TableId> = expected.targets.keys().copied().filter(|table| !alone.contains(table)).collect();
    alone.iter().map(|table| BTreeSet::from([*table])).chain([together]).filter_map(part).collect()
}

/// Compares one part, as [`crate::verify`] does the whole; what the target is to be asked about itself is left out.
///
/// # Errors
/// See [`VerifyError`].
pub async fn verify_part<A: Inspect, B: Inspect, P: SinkPosition>(
    expected: &Expected<'_>,
    part: &Part,
    source: &mut A,
    target: &mut B,
    sink: &mut P,
    options: &Options,
) -> Result<Report, VerifyError> {
    let expected = expected.only(&part.tables);
    let (digests, judged, open) = compare(&expected, source, target, sink, options).await?;
    Ok(report::report(&expected, &digests, &judged, open, Vec::new(), options))
}

/// Digests of both sides, and of the buckets that differ the rows, so many at once as fit into memory. Says last how many
/// buckets were left open, for enough differences were found.
pub(crate) async fn compare<A: Inspect, B: Inspect, P: SinkPosition>(
    expected: &Expected<'_>,
    source: &mut A,
    target: &mut B,
    sink: &mut P,
    options: &Options,
) -> Result<(Digests, Judged, u64), VerifyError> {
    let in_place = side::in_place(expected, source, target);
    let mut digests = side::digest_source(expected, source, in_place, options).await?;
    crate::nudge(source).await?;
    judge::wait_for(sink, digests.position, options).await?;
    side::digest_target(expected, target, options, &mut digests).await?;
    let mut judged = Judged::default();
    let mut open = 0;
    for portion in drill::differing(&digests, options.rows_at_once) {
        if judged.real.len() as u64 >= options.differences_max {
            open += portion.values().map(|buckets| buckets.len() as u64).sum::<u64>();
            continue;
        }
        let suspects = drill::suspects(expected, source, target, &digests, &portion, options).await?;
        // A row that came with what it looks up, after that table was read, differs by that alone. What is suspected is judged
        // by what is there now.
        let fresh = match suspects.by_key.is_empty() {
            true => LiveViews::default(),
            false => expected.views().again(source).await?,
        };
        judged.add(judge::judge(&expected.by(&fresh), source, target, sink, suspects, options).await?);
    }
    Ok((digests, judged, open))
}
