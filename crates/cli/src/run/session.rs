//! Everything that one process needs to work on a migration: its folder, journal, log, state, plan and routes.

use super::{
    adopted,
    follower::Origin,
    plan_file::{PlanFile, secret_id, secret_of, spec_hash},
    retired, reverse, roles, swap,
    switch::{self, Settled},
};
use crate::{
    commands::folder,
    error::{CliError, Exit},
    event_log::AnyLog,
    registry,
    spec::{Part, Spec},
    wiring,
};
use crossfade_connector::Inspect;
use crossfade_control::{By, Command, Direction, Journal, Overlay, Phase};
use crossfade_event::Side;
use crossfade_log::{EventLog, embedded::Embedded};
use crossfade_pipeline::Routes;
use crossfade_state::{SledStore, WorkFolder};
use crossfade_transform::PlanOptions;
use std::sync::Arc;

/// A migration that this process owns.
pub(crate) struct Session {
    pub(crate) spec: Spec,
    pub(crate) folder: WorkFolder,
    pub(crate) journal: Journal<Embedded>,
    pub(crate) log: AnyLog,
    pub(crate) state: SledStore,
    pub(crate) plan: PlanFile,
    pub(crate) routes: Routes,
    pub(crate) by: By,
    /// Whether the log says it where a row changes its key between two partitions and keeps what the change does not say.
    pub(crate) marks_moves: bool,
}

impl Session {
    /// Takes the folder, plans if nothing has been planned yet, and opens log and state. Deliver as a process of its own
    /// waits here until ingest has planned and made the log.
    pub(crate) async fn open(spec: &Spec) -> Result<Self, CliError> {
        let folder = roles::take_folder(spec)?;
        Origin::refuse(&spec.base(), spec)?;
        let journal = folder::journal(&folder)?;
        let by = folder::by_hand();
        if let phase @ (Phase::Contracting | Phase::Done) = journal.migration().phase {
            return Err(CliError::refused(format!(
                "the migration {} is {phase}: nothing of it runs any more",
                spec.name
            ))
            .hint("`crossfade cleanup` completes a clean-up that was cut off"));
        }
        if wiring::writes_beside(spec) && journal.migration().phase.is_over() {
            return Err(swap::nothing_to_run(spec));
        }
        refuse_half_done(&journal)?;
        if let Some(outcome) = settle_switch(spec, &journal, &by).await? {
            if wiring::writes_beside(spec) && outcome.authority == Side::New {
                return Err(swap::nothing_to_run(spec));
            }
            if outcome.authority == Side::New {
                tracing::info!(epoch = outcome.epoch, routed = outcome.routed, "the migration has switched");
                return Err(reverse::not_followed(spec));
            }
            if let Some(why) = outcome.not_routed {
                tracing::warn!("the old side has the authority, and not everybody has been told: {why}");
            }
            if !wiring::writes_beside(spec) {
                retired::after_failback(spec, &journal, &by).await?;
            }
        }
        swap::refuse_returned(spec, &journal.migration()).await?;
        let (plan, secret, marks_moves) = match spec.part {
            Some(Part::Deliver) => {
                let agreed = roles::agreed(spec, &folder, journal.migration().epoch).await?;
                (agreed.plan, agreed.secret, agreed.marks_moves)
            }
            _ => planned(spec).await.map(|(plan, secret)| (plan, secret, false))?,
        };
        plan.check(spec)?;
        let planned = Command::Plan { spec_hash: spec_hash(spec), secret_id: secret_id(&secret) };
        journal.command(planned, &by).await?;
        if let Some(Overlay::Failed { .. }) = journal.migration().overlay {
            journal.command(Command::Resume, &by).await?;
        }
        let log = match spec.part {
            None => {
                journal.command(Command::RaiseEpoch, &by).await?;
                let log = AnyLog::open(spec).await?;
                retired::note_resumed(&spec.base(), log.tail().cut)?;
                log
            }
            Some(Part::Ingest) => {
                let log = AnyLog::open(spec).await?;
                roles::say_head(spec, &log, &plan, &secret)?;
                log
            }
            Some(Part::Deliver) => {
                let log = AnyLog::follow(spec)?;
                roles::take_turn(&log, &journal, &by).await?;
                log
            }
        };
        let routes = routes(spec, &plan, secret, journal.migration().epoch)?;
        let state = open_state(&folder).await?;
        Ok(Self { spec: spec.clone(), folder, journal, log, state, plan, routes, by, marks_moves })
    }
}

/// A switch that was begun and has no end gets one here, by the word of the row; of one that has happened, what is left to do
/// is done. `None` where none was ever meant.
async fn settle_switch(spec: &Spec, journal: &Journal<Embedded>, by: &By) -> Result<Option<switch::Outcome>, CliError> {
    let before = journal.migration();
    if before.authority.epoch == 0 && !before.phase.is_switching() {
        return Ok(None);
    }
    let (mut old, mut new) = registry::switch_ends(spec)?;
    let taken_back = switch::settle(&mut old, &mut new, journal, by).await? == Settled::TakenBack;
    if taken_back && before.intent.is_some_and(|intent| intent.direction == Direction::Cutover) {
        reverse::give_up(spec, &mut new).await;
    }
    Ok(Some(switch::complete(spec, &mut old, &mut new, journal, by).await))
}

/// The same, for whoever asks while nobody runs the migration.
pub(crate) async fn settled(spec: &Spec) -> Result<Option<switch::Outcome>, CliError> {
    let owned = folder::taken(spec)?;
    settle_switch(spec, &folder::journal(&owned)?, &folder::by_hand()).await
}

/// What the migration was planned with, or is now.
async fn planned(spec: &Spec) -> Result<(PlanFile, Vec<u8>), CliError> {
    let secret = secret_of(&spec.base())?;
    let plan = match PlanFile::read(&spec.base())? {
        Some(plan) => plan,
        None => plan_now(spec).await?,
    };
    Ok((plan, secret))
}

/// A rollback that was begun must be finished before anything else.
fn refuse_half_done(journal: &Journal<Embedded>) -> Result<(), CliError> {
    let migration = journal.migration();
    if let Some(fall) = &migration.fallen {
        let hint = match migration.phase {
            Phase::RollingBack(_) => "`crossfade run` completes that",
            _ => "mend the cause, then `crossfade resume`; `crossfade run` begins anew",
        };
        return Err(CliError::refused(format!("the migration was {fall}")).hint(hint));
    }
    if let Phase::RollingBack(_) = migration.phase {
        return Err(CliError::refused(format!(
            "the migration is {}: a rollback was begun and not finished",
            migration.phase
        ))
        .hint("run the same `crossfade rollback` again; it goes on where it was"));
    }
    if let Phase::Switched | Phase::Soaking = migration.phase {
        return Err(CliError::refused(format!(
            "the migration is {}: its new side is the writer, and what it did not write itself would be overwritten",
            migration.phase
        ))
        .hint("`crossfade run` keeps the old side exact; ask about that with --reverse"));
    }
    if let Some(Overlay::Lost { reason, remedy }) = &migration.overlay {
        tracing::warn!(%reason, %remedy, "the migration was lost; it is opened again to see whether that still holds");
    }
    Ok(())
}

/// Looks at the source, and refuses what cannot work, before anything is made.
async fn plan_now(spec: &Spec) -> Result<PlanFile, CliError> {
    let preflight = wiring::preflight(spec).await?;
    if let Some(first) = preflight.findings.iter().find(|finding| finding.fatal) {
        return Err(CliError::new(Exit::Refused, format!("{} {}: {}", first.end, first.object, first.problem))
            .hint(format!("{}\n      `crossfade check {}` lists everything", first.remedy, spec.file.display())));
    }
    let catalog = wiring::source_inspect(spec)?.catalog(spec.source.tables()).await?;
    PlanFile::write(&spec.base(), spec, catalog)
}

/// The routes that the plan gives, with the keys that the migration has taken over.
pub(crate) fn routes(spec: &Spec, plan: &PlanFile, secret: Vec<u8>, epoch: u64) -> Result<Routes, CliError> {
    let options = PlanOptions { adopted: adopted::of(&spec.base())?, ..wiring::plan_options(spec, secret) };
    routes_by(spec, plan, options, epoch)
}

/// The same for whoever asks what the target is, and makes no key.
pub(super) fn bare_routes(spec: &Spec, plan: &PlanFile, secret: Vec<u8>, epoch: u64) -> Result<Routes, CliError> {
    routes_by(spec, plan, wiring::plan_options(spec, secret), epoch)
}

fn routes_by(spec: &Spec, plan: &PlanFile, options: PlanOptions, epoch: u64) -> Result<Routes, CliError> {
    let options = Arc::new(options);
    let rules = Arc::new(spec.rules.clone());
    let into_existing = wiring::into_existing(spec);
    Ok(Routes::new(plan.catalog.clone(), rules, options, spec.name.as_str(), epoch, into_existing)?)
}

async fn open_state(folder: &WorkFolder) -> Result<SledStore, CliError> {
    let path = WorkFolder::state_path(folder.dir());
    let opened = tokio::task::spawn_blocking(move || SledStore::open(path)).await;
    Ok(opened.map_err(|error| CliError::failed(format!("opening the state: {error}")))??)
}
