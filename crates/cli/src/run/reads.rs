//! The share of reads that applications compare: set by a person, followed by applications from a table on either side, and
//! ended by the first of them that steps down.
//!
//! ```text
//!  dual-reads 5% ─▶ guards ─▶ journal: judged, set ─▶ flag on both sides ──▶ applications compare
//!                                  ▲                                              │ past a budget
//!                   journal: stepped down, 0% ◀── heard here, every second ◀── crossfade.step_down(): 0% at once
//! ```
//! The journal says what is wanted, and the run keeps the flags as it says: after a switch that was taken back (which raises
//! the epoch, and with it ends the share), after a clean pass that was voided, after a server that could not be reached.

use super::{control::Shared, no_section};
use crate::{error::CliError, registry, spec::Spec};
use crossfade_connector::{Quarantine, QuarantineFilter};
use crossfade_control::{By, Command, Guarded, Journal, Migration, ReadFacts};
use crossfade_dualread::{Percent, Why};
use crossfade_log::embedded::Embedded;
use crossfade_postgres::switch::{Share, SteppedDown, SwitchEnd};
use serde::Serialize;
use std::{sync::Arc, time::Duration};

/// For whoever asks it elsewhere.
const SHARES: &str = "a share of the applications' reads";

/// How often the flags are looked at while reads are compared.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// One server may be gone for longer than a person waits.
const WRITE_LIMIT: Duration = Duration::from_secs(20);

/// What came of it.
#[derive(Debug, Serialize)]
pub(crate) struct Compared {
    /// The share that holds, such as `5%`.
    pub(crate) share: String,
    /// What the guards said; none are asked where less is compared than before.
    pub(crate) guards: Vec<Guarded>,
    /// Whether both sides' flags say so by now.
    pub(crate) told: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) not_told: Option<String>,
}

/// Sets the share, as the process that runs the migration.
pub(super) async fn set(shared: &Shared, who: &str, percent: Percent) -> Result<Compared, CliError> {
    let spec = &shared.spec;
    may_compare(spec)?;
    let (journal, by) = (&shared.journal, By { who: who.to_owned(), ..shared.now() });
    // One at a time writes the flags; whoever keeps them looks again afterwards, whatever came in between.
    let mut touched = shared.reads.lock().await;
    *touched = true;
    let (mut old, mut new) = registry::postgres_switch_ends(spec, SHARES)?;
    if percent != Percent::NONE {
        hear(&mut old, &mut new, journal, &by).await?;
    }
    if !is_more(&journal.migration(), percent) {
        return lower(spec, journal, &by, percent).await;
    }
    let millionths = millionths(percent);
    let switch = spec.switch.as_ref().ok_or_else(|| no_section(spec))?;
    let mut missing = Vec::new();
    for end in [&mut old, &mut new] {
        if let Err(error) = install(end, journal.migration().authority.epoch).await {
            missing.push(said(&error));
        }
    }
    let quarantined = registry::AnySink::for_looking(spec)?.list(&QuarantineFilter::default()).await?.len() as u64;
    let facts = ReadFacts { quarantined, gates: shared.failing_gates(), missing };
    let verified_within_ms = u64::try_from(switch.verified_within.0.as_millis()).unwrap_or(u64::MAX);
    journal.command(Command::CompareReads { millionths, facts, verified_within_ms, at_us: by.at_us }, &by).await?;
    let migration = journal.migration();
    let guards = migration.reads_judgement.as_ref().map(|judged| judged.guards.clone()).unwrap_or_default();
    if guards.iter().any(|guard| !guard.holds) {
        return Ok(Compared { share: share_of(&migration), guards, told: true, not_told: None });
    }
    let compared = tell(&mut old, &mut new, &migration).await;
    Ok(Compared { guards, ..compared })
}

/// Has less of the reads compared, or none: asks no guard, and needs nobody who runs. What an application has found until now
/// is heard before; none at all is set whatever can be heard.
pub(crate) async fn lower(
    spec: &Spec,
    journal: &Journal<Embedded>,
    by: &By,
    percent: Percent,
) -> Result<Compared, CliError> {
    may_compare(spec)?;
    let (mut old, mut new) = registry::postgres_switch_ends(spec, SHARES)?;
    if percent != Percent::NONE {
        hear(&mut old, &mut new, journal, by).await?;
        if is_more(&journal.migration(), percent) {
            let why = journal.migration().stepped_down.unwrap_or_default();
            return Err(CliError::refused(format!("an application's dual reads have stepped down: {why}"))
                .hint("a share is set again while `crossfade run` runs: it asks the guards"));
        }
    }
    journal.command(Command::DualRead { millionths: millionths(percent) }, by).await?;
    Ok(tell(&mut old, &mut new, &journal.migration()).await)
}

/// Hears whether an application has stepped down that the journal does not know of, before anything is judged by the journal.
///
/// # Errors
/// When a flag cannot be read: what it says is not known then.
pub(super) async fn hear_before(spec: &Spec, journal: &Journal<Embedded>, by: &By) -> Result<(), CliError> {
    if journal.migration().dual_millionths == 0 {
        return Ok(());
    }
    let (mut old, mut new) = registry::postgres_switch_ends(spec, SHARES)?;
    hear(&mut old, &mut new, journal, by).await
}

async fn hear(old: &mut SwitchEnd, new: &mut SwitchEnd, journal: &Journal<Embedded>, by: &By) -> Result<(), CliError> {
    let migration = journal.migration();
    if migration.dual_millionths == 0 {
        return Ok(());
    }
    for (side, end) in [("old", old), ("new", new)] {
        let asked = tokio::time::timeout(WRITE_LIMIT, end.share()).await;
        let found =
            asked.map_err(|_| CliError::failed(format!("the {side} side does not say whether reads differ")))??;
        if let Some(found) = found.and_then(|found| stepped_down(found, &migration)) {
            return took_down(journal, &found, by).await;
        }
    }
    Ok(())
}

/// What an application has found of the share that the journal says. Of whichever epoch: a switch that was taken back raises
/// it, and an end that is heard twice is one.
fn stepped_down(found: Share, migration: &Migration) -> Option<SteppedDown> {
    found.stepped_down.filter(|_| migration.dual_millionths > 0 && found.percent == share_of(migration))
}

async fn took_down(journal: &Journal<Embedded>, found: &SteppedDown, by: &By) -> Result<(), CliError> {
    let why = Why::of_figures(&found.budget, found.one, found.other).map(|why| why.to_string());
    let why = why.unwrap_or_else(|| "a budget is spent".to_owned());
    tracing::warn!("an application's dual reads have stepped down: {why}");
    let by = By { who: "dual reads".to_owned(), ..by.clone() };
    journal.command(Command::StepDown { why }, &by).await?;
    Ok(())
}

/// The share's end where nobody is left who could keep the flags: what is undone is nothing to compare with.
pub(super) async fn end(spec: &Spec, migration: &Migration) {
    if spec.switch.is_none() {
        return;
    }
    let Ok((mut old, mut new)) = registry::postgres_switch_ends(spec, SHARES) else { return };
    let told = tell(&mut old, &mut new, migration).await;
    if let Some(why) = told.not_told {
        tracing::warn!("the flag of dual reads could not be set to 0%: {why}");
    }
}

/// Who may ask at all.
fn may_compare(spec: &Spec) -> Result<(), CliError> {
    if spec.reverse.is_some() {
        return Err(CliError::refused("reads are compared between `crossfade verify` and the switch"));
    }
    if spec.switch.is_none() {
        return Err(no_section(spec));
    }
    registry::postgres_switch_ends(spec, SHARES).map(drop)
}

/// Whether so large a share is more than what is compared now.
pub(crate) fn is_more(migration: &Migration, percent: Percent) -> bool {
    millionths(percent) > migration.dual_millionths
}

fn millionths(percent: Percent) -> u32 {
    (percent.fraction() * 1e6).round() as u32
}

fn share_of(migration: &Migration) -> String {
    let hundredths = u16::try_from(migration.dual_millionths / 100).unwrap_or(u16::MAX);
    Percent::hundredths(hundredths).unwrap_or(Percent::ALL).to_string()
}

fn said(error: &CliError) -> String {
    match &error.hint {
        Some(hint) => format!("{} ({hint})", error.message),
        None => error.message.clone(),
    }
}

async fn install(end: &mut SwitchEnd, epoch: u64) -> Result<(), CliError> {
    end.install(epoch).await?;
    Ok(end.install_reads().await?)
}

/// Writes what the journal says into both flags.
async fn tell(old: &mut SwitchEnd, new: &mut SwitchEnd, migration: &Migration) -> Compared {
    let share = share_of(migration);
    let mut not_told = Vec::new();
    for (side, end) in [("old", old), ("new", new)] {
        match tokio::time::timeout(WRITE_LIMIT, write(end, migration)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => not_told.push(format!("the {side} side: {}", said(&error))),
            Err(_) => not_told.push(format!("the {side} side gave no answer within {} s", WRITE_LIMIT.as_secs())),
        }
    }
    let not_told = (!not_told.is_empty()).then(|| not_told.join("; "));
    Compared { share, guards: Vec::new(), told: not_told.is_none(), not_told }
}

async fn write(end: &mut SwitchEnd, migration: &Migration) -> Result<(), CliError> {
    // Nobody has ever been told anything else.
    if migration.dual_millionths == 0 && end.share().await?.is_none() {
        return Ok(());
    }
    let is_set = end.set_share(&share_of(migration), migration.authority.side).await?;
    // Where the row gives the authority to the other side, the share has ended with its epoch.
    match is_set || migration.dual_millionths == 0 {
        true => Ok(()),
        false => {
            Err(CliError::failed("the row of crossfade.authority names another side: a switch has been made there"))
        }
    }
}

/// Keeps the flags as the journal says, and puts into it what an application has found.
pub(super) async fn keep(shared: Arc<Shared>) {
    let mut closed = shared.closed();
    let Ok((mut old, mut new)) = registry::postgres_switch_ends(&shared.spec, SHARES) else { return };
    let work = async {
        let mut is_level = false;
        let mut failed = false;
        loop {
            let mut touched = shared.reads.lock().await;
            is_level &= !std::mem::take(&mut *touched);
            let migration = shared.journal.migration();
            if !migration.phase.is_switching() && (migration.dual_millionths > 0 || !is_level) {
                let mut level = Ok(());
                for end in [&mut old, &mut new] {
                    let looked = tokio::time::timeout(WRITE_LIMIT, look(end, &shared)).await;
                    let looked = looked.unwrap_or_else(|_| Err(CliError::failed("a side gives no answer")));
                    level = level.and(looked);
                }
                if let Err(error) = &level
                    && !failed
                {
                    tracing::warn!("the flag of dual reads cannot be kept as it should be: {error}");
                }
                failed = level.is_err();
                is_level = level.is_ok() && migration.dual_millionths == 0;
                // Sessions that nothing is asked of are not kept.
                if is_level && let Ok(ends) = registry::postgres_switch_ends(&shared.spec, SHARES) {
                    (old, new) = ends;
                }
            }
            drop(touched);
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = closed.wait() => {}
    }
}

/// One flag: hears whether an application has stepped down, and sets right what is not as the journal says.
async fn look(end: &mut SwitchEnd, shared: &Shared) -> Result<(), CliError> {
    let found = end.share().await?;
    let migration = shared.journal.migration();
    if migration.phase.is_switching() {
        return Ok(());
    }
    let is_as_wanted = found.as_ref().is_some_and(|found| found.percent == share_of(&migration) && found.is_of_epoch);
    if let Some(found) = found.and_then(|found| stepped_down(found, &migration)) {
        took_down(&shared.journal, &found, &shared.now()).await?;
        let migration = shared.journal.migration();
        // A switch that has begun meanwhile has not taken it: it is heard after it.
        return if migration.stepped_down.is_some() { write(end, &migration).await } else { Ok(()) };
    }
    if is_as_wanted {
        return Ok(());
    }
    if migration.dual_millionths > 0 {
        install(end, migration.authority.epoch).await?;
    }
    write(end, &migration).await
}
