//! What is seen before a switch: the facts that its guards judge.

use super::way::Way;
use crate::{error::CliError, registry::AnySink, run::reverse};
use crossfade_connector::{Quarantine, QuarantineFilter, Refusal};
use crossfade_control::{Direction, Facts, Limits, OldestWriter};
use std::time::{Duration, Instant};

/// The facts, and the epoch of the authority as its row has it.
pub(super) struct Looked {
    pub(super) facts: Facts,
    pub(super) authority_epoch: Option<u64>,
}

/// Looks at both ends. Of a dry run it writes nothing but the mark that measures the way.
pub(super) async fn look(way: &mut Way<'_>, limits: &Limits, dry_run: bool) -> Result<Looked, CliError> {
    let patience = Duration::from_millis(limits.deadline_ms);
    let mark_ms = mark(way, patience).await?;
    let rehearsal = Instant::now();
    if !dry_run {
        way.carry_sequences().await?;
    }
    let rehearsed_ms = millis(rehearsal.elapsed());
    let seen = way.from.look(&way.tables).await?;
    let mut missing = seen.missing;
    let mut writing = seen.writing;
    match way.direction {
        Direction::Cutover => {
            let targets = reverse::tables_of(&way.target);
            missing.extend(way.to.look_for_the_way_back(&targets).await?);
        }
        Direction::Failback => {
            // Its fence is lifted: what keeps a table there keeps the writers waiting, too.
            let frozen = if way.within_one { way.tables.as_slice() } else { &[] };
            let fenced = way.to.fenced_but(frozen).await?;
            let there = way.to.look(&fenced).await?;
            missing.extend(there.missing);
            writing = writing.into_iter().chain(there.writing).max_by_key(|one| one.age_ms);
        }
    }
    let authority_epoch = way.from.authority().await?.map(|written| written.epoch);
    if limits.lock_timeout_ms >= seen.deadlock_timeout_ms {
        tracing::warn!(
            lock_timeout_ms = limits.lock_timeout_ms,
            deadlock_timeout_ms = seen.deadlock_timeout_ms,
            "writers may meet a deadlock error while the locks are waited for; a shorter lock_timeout in [switch] spares them"
        );
    }
    let quarantined = AnySink::for_looking(&way.stream.spec)?.list(&QuarantineFilter::default()).await?.len() as u64;
    let facts = Facts {
        mark_ms,
        quarantined,
        oldest_writer: writing.map(|one| OldestWriter { age_ms: one.age_ms, who: one.who }),
        predicted_pause_ms: mark_ms.map(|ms| 2 * ms + rehearsed_ms + FIXED_MS + FENCE_MS * way.tables.len() as u64),
        gates: way.stream.failing_gates(),
        missing: missing.iter().map(said).collect(),
        way_back: way.way_back(),
    };
    Ok(Looked { facts, authority_epoch })
}

/// What a switch costs whatever there is to carry: locks, three lines of the journal, three commits.
const FIXED_MS: u64 = 20;
/// And for each table its trigger.
const FENCE_MS: u64 = 1;

pub(crate) fn said(refusal: &Refusal) -> String {
    format!("{}: {} ({})", refusal.object, refusal.problem, refusal.remedy)
}

/// How long a mark takes from the source into the sink; `None` when it takes too long.
async fn mark(way: &mut Way<'_>, patience: Duration) -> Result<Option<u64>, CliError> {
    // The first one opens the connection.
    way.mark().await?;
    let begun = Instant::now();
    let wanted = way.mark().await?;
    match tokio::time::timeout(patience, way.passed(wanted)).await {
        Ok(reached) => reached.map(|()| Some(millis(begun.elapsed()).max(1))),
        Err(_) => Ok(None),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
