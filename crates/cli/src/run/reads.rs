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
use crossfade_postgres::switch::{Share, ShareSet, SteppedDown, SwitchEnd};
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
    refuse_out_of_phase(journal, &by, percent).await?;
    // One at a time writes the flags; whoever keeps them looks again afterwards, whatever came in between.
    let mut touched = shared.reads.lock().await;
    *touched = true;
    let (mut old, mut new) = registry::postgres_switch_ends(spec, SHARES)?;
    if percent != Percent::NONE && hear(&mut old, &mut new, journal, &by).await? {
        return Err(ended(&mut old, &mut new, journal).await);
    }
    if !is_more(&journal.migration(), percent) {
        return lower(spec, journal, &by, percent).await;
    }
    let millionths = millionths(percent);
    let switch = spec.switch.as_ref().ok_or_else(|| no_section(spec))?;
    let mut missing = Vec::new();
    for end in [&mut old, &mut new] {
        match tokio::time::timeout(WRITE_LIMIT, ready(end, &journal.migration())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => missing.push(said(&error)),
            Err(_) => missing.push(format!("a side gave no answer within {} s", WRITE_LIMIT.as_secs())),
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
    let compared = tell_unless_down(&mut old, &mut new, journal, &by).await?;
    Ok(Compared { guards, ..compared })
}

/// A share is refused where none is compared: while a switch is under way, after it, and before the target follows. The journal
/// says which of them it is.
pub(crate) async fn refuse_out_of_phase(
    journal: &Journal<Embedded>,
    by: &By,
    percent: Percent,
) -> Result<(), CliError> {
    if percent != Percent::NONE && !journal.migration().phase.is_following() {
        journal.command(Command::DualRead { millionths: millionths(percent) }, by).await?;
    }
    Ok(())
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
    if percent != Percent::NONE && hear(&mut old, &mut new, journal, by).await? {
        return Err(ended(&mut old, &mut new, journal).await);
    }
    journal.command(Command::DualRead { millionths: millionths(percent) }, by).await?;
    tell_unless_down(&mut old, &mut new, journal, by).await
}

/// No share is set where an application has found something that whoever asked did not know of. The journal has it now, and so
/// have the flags.
async fn ended(old: &mut SwitchEnd, new: &mut SwitchEnd, journal: &Journal<Embedded>) -> CliError {
    let migration = journal.migration();
    if let Some(why) = Compared::from(tell(old, new, &migration).await).not_told {
        tracing::warn!("the flag of dual reads could not be set to 0%: {why}");
    }
    let why = migration.stepped_down.unwrap_or_default();
    CliError::refused(format!("an application's dual reads have stepped down: {why}"))
        .hint("find out why; then the share is set again while `crossfade run` runs: it asks the guards")
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
    hear(&mut old, &mut new, journal, by).await.map(drop)
}

/// Whether it has heard of one.
async fn hear(
    old: &mut SwitchEnd,
    new: &mut SwitchEnd,
    journal: &Journal<Embedded>,
    by: &By,
) -> Result<bool, CliError> {
    let migration = journal.migration();
    if migration.dual_millionths == 0 {
        return Ok(false);
    }
    for (side, end) in [("old", old), ("new", new)] {
        let asked = tokio::time::timeout(WRITE_LIMIT, end.share()).await;
        let found = match asked {
            Ok(Ok(found)) => found,
            Ok(Err(failure)) => return Err(unheard(side, CliError::from(failure))),
            Err(_) => return Err(unheard(side, CliError::failed("it gives no answer"))),
        };
        if let Some(found) = found.and_then(|found| stepped_down(found, &migration)) {
            return took_down(journal, &found, by).await.map(|()| true);
        }
    }
    Ok(false)
}

fn unheard(side: &str, error: CliError) -> CliError {
    let message = format!("whether an application has found reads that differ, the {side} side does not say: {error}");
    CliError { message, ..error }.hint("ask again once it answers; a share of 0% can be set all the same")
}

/// What an application has found, while the journal says that reads are compared. Of whichever share and epoch: a side that could
/// not be told has an earlier share, a switch that was taken back raises the epoch, and an end that is heard twice is one.
fn stepped_down(found: Share, migration: &Migration) -> Option<SteppedDown> {
    found.stepped_down.filter(|_| migration.dual_millionths > 0)
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
    if let Some(why) = Compared::from(tell(&mut old, &mut new, migration).await).not_told {
        tracing::warn!(
            "the flag of dual reads could not be set to 0% (`crossfade dual-reads` with 0% tries again): {why}"
        );
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

/// Whether this side's flag is there, and can be written by us and followed and stepped down from by applications.
async fn ready(end: &mut SwitchEnd, migration: &Migration) -> Result<(), CliError> {
    install(end, migration.authority.epoch).await?;
    if migration.dual_millionths == 0 {
        // What had stepped down here is known, and has been answered by now.
        write(end, migration, true).await?;
    }
    Ok(end.try_share(migration.authority.side).await?)
}

/// Writes what the journal says into both flags.
async fn tell(old: &mut SwitchEnd, new: &mut SwitchEnd, migration: &Migration) -> Told {
    let mut told = Told { share: share_of(migration), ..Told::default() };
    for (side, end) in [("old", old), ("new", new)] {
        match tokio::time::timeout(WRITE_LIMIT, write(end, migration, false)).await {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(found))) => told.down = Some(found),
            Ok(Err(error)) => told.not.push(format!("the {side} side: {}", said(&error))),
            Err(_) => told.not.push(format!("the {side} side gave no answer within {} s", WRITE_LIMIT.as_secs())),
        }
    }
    told
}

/// What came of telling both sides.
#[derive(Default)]
struct Told {
    share: String,
    not: Vec<String>,
    down: Option<SteppedDown>,
}

impl From<Told> for Compared {
    fn from(Told { share, not, .. }: Told) -> Self {
        let not_told = (!not.is_empty()).then(|| not.join("; "));
        Self { share, guards: Vec::new(), told: not_told.is_none(), not_told }
    }
}

/// The same after a share was set; one that an application has stepped down from meanwhile has ended.
async fn tell_unless_down(
    old: &mut SwitchEnd,
    new: &mut SwitchEnd,
    journal: &Journal<Embedded>,
    by: &By,
) -> Result<Compared, CliError> {
    let told = tell(old, new, &journal.migration()).await;
    let Some(found) = &told.down else { return Ok(told.into()) };
    took_down(journal, found, by).await?;
    Err(ended(old, new, journal).await)
}

/// Gives back what an application has found that nobody has heard yet: the flag stays as it is then. A share of none, and one
/// that is set `over` it, answer it.
async fn write(end: &mut SwitchEnd, migration: &Migration, over: bool) -> Result<Option<SteppedDown>, CliError> {
    let is_none = migration.dual_millionths == 0;
    // Nobody has ever been told anything else.
    if is_none && end.share().await?.is_none() {
        return Ok(None);
    }
    match end.set_share(&share_of(migration), migration.authority.side, over || is_none).await? {
        ShareSet::Set => Ok(None),
        ShareSet::SteppedDown(found) => Ok(Some(found)),
        // The share has ended with its epoch.
        ShareSet::AnotherSide if is_none => Ok(None),
        ShareSet::AnotherSide => {
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
        return if migration.stepped_down.is_some() { write(end, &migration, true).await.map(drop) } else { Ok(()) };
    }
    if is_as_wanted {
        return Ok(());
    }
    if migration.dual_millionths > 0 {
        install(end, migration.authority.epoch).await?;
    }
    // What was found meanwhile is heard at the next look.
    write(end, &migration, false).await.map(drop)
}
