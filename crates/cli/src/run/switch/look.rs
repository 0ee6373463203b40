//! What is seen before a switch: the facts that its guards judge.

use super::{Ends, carry_sequences};
use crate::{error::CliError, registry::AnySink, run::control::Shared};
use crossfade_connector::{Inspect, Quarantine, QuarantineFilter, Refusal, Stage};
use crossfade_control::{Facts, Limits, OldestWriter};
use std::time::{Duration, Instant};

/// The facts, and the epoch of the authority as its row has it.
pub(super) struct Looked {
    pub(super) facts: Facts,
    pub(super) authority_epoch: Option<u64>,
}

/// Looks at both ends. Of a dry run it writes nothing but the mark that measures the way.
pub(super) async fn look(shared: &Shared, ends: &mut Ends, limits: &Limits, dry_run: bool) -> Result<Looked, CliError> {
    let patience = Duration::from_millis(limits.deadline_ms);
    let mark_ms = mark(shared, ends, patience).await?;
    let rehearsal = Instant::now();
    if !dry_run {
        carry_sequences(shared, ends).await?;
    }
    let rehearsed_ms = millis(rehearsal.elapsed());
    let seen = ends.old.look(&ends.tables).await?;
    let targets = super::reverse::tables_of(&ends.target);
    let back = ends.new.look_for_the_way_back(&targets).await?;
    let authority_epoch = ends.old.authority().await?.map(|written| written.epoch);
    if limits.lock_timeout_ms >= seen.deadlock_timeout_ms {
        tracing::warn!(
            lock_timeout_ms = limits.lock_timeout_ms,
            deadlock_timeout_ms = seen.deadlock_timeout_ms,
            "writers may meet a deadlock error while the locks are waited for; a shorter lock_timeout in [switch] spares them"
        );
    }
    let quarantined = AnySink::for_looking(&shared.spec)?.list(&QuarantineFilter::default()).await?.len() as u64;
    let facts = Facts {
        mark_ms,
        quarantined,
        oldest_writer: seen.writing.map(|one| OldestWriter { age_ms: one.age_ms, who: one.who }),
        predicted_pause_ms: mark_ms.map(|ms| 2 * ms + rehearsed_ms + FIXED_MS + FENCE_MS * ends.tables.len() as u64),
        gates: shared.failing_gates(),
        missing: seen.missing.iter().chain(&back).map(said).collect(),
    };
    Ok(Looked { facts, authority_epoch })
}

/// What a switch costs whatever there is to carry: locks, three lines of the journal, two commits.
const FIXED_MS: u64 = 20;
/// And for each table its trigger.
const FENCE_MS: u64 = 1;

pub(crate) fn said(refusal: &Refusal) -> String {
    format!("{}: {} ({})", refusal.object, refusal.problem, refusal.remedy)
}

/// How long a mark takes from the source into the sink; `None` when it takes too long.
async fn mark(shared: &Shared, ends: &mut Ends, patience: Duration) -> Result<Option<u64>, CliError> {
    // The first one opens the connection.
    ends.source.barrier().await?;
    let begun = Instant::now();
    let wanted = ends.source.barrier().await?;
    match tokio::time::timeout(patience, shared.wait_for(wanted, Stage::Streaming)).await {
        Ok(reached) => reached.map(|_| Some(millis(begun.elapsed()).max(1))),
        Err(_) => Ok(None),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
