//! `rollback`: takes back what a migration wrote. Both ways can be killed and run again.

use super::{
    back,
    follower::Origin,
    plan_file::{PlanFile, secret_of},
    retired, roles,
    session::routes,
};
use crate::{
    args::RollbackArgs, commands::folder, error::CliError, event_log::AnyLog, output, registry::AnySink, spec::Spec,
    wiring,
};
use crossfade_connector::{Rollback, Sink, UndoReport};
use crossfade_control::{By, Command, Journal, Phase, RollbackKind};
use crossfade_log::embedded::Embedded;
use crossfade_pipeline::Routes;
use crossfade_state::WorkFolder;
use std::io::{IsTerminal, Write};

/// Rolls back.
pub(crate) async fn rollback(spec: &Spec, args: &RollbackArgs) -> Result<(), CliError> {
    roles::needs_deliver(spec, "rollback")?;
    let held = Held::of(spec)?;
    if args.wipe && !args.yes {
        confirm(spec)?;
    }
    let kind = if args.wipe { RollbackKind::Wipe } else { RollbackKind::Undo };
    match held.take_back(spec, kind, &folder::by_hand()).await? {
        Some(report) => say(&report, args),
        None => output::line(format!("the migration {} has made nothing yet", spec.name)),
    }
}

/// All of a migration that is on this machine, held by this process: nobody may write meanwhile, ingest neither.
pub(super) struct Held {
    owned: WorkFolder,
    others: Vec<WorkFolder>,
    pub(super) journal: Journal<Embedded>,
}

impl Held {
    /// Takes the folders and opens the journal.
    pub(super) fn of(spec: &Spec) -> Result<Self, CliError> {
        let owned = folder::taken(spec)?;
        let others = roles::take_others(spec)?;
        let journal = folder::journal(&owned)?;
        Ok(Self { owned, others, journal })
    }

    /// Takes back what was written, from the journal's word that it begins to its word that it is done. `None` where nothing
    /// was made yet. Killed anywhere between, it is done by being asked again.
    pub(super) async fn take_back(
        &self,
        spec: &Spec,
        kind: RollbackKind,
        by: &By,
    ) -> Result<Option<UndoReport>, CliError> {
        let (journal, is_wipe) = (&self.journal, kind == RollbackKind::Wipe);
        let Some(plan) = PlanFile::read(&spec.base())? else {
            if journal.migration().phase == Phase::RollingBack(RollbackKind::Wipe) {
                // Everything was dropped, the plan as the last of it; what was left to do is to say so.
                forget(spec, &self.owned, &self.others).await?;
                journal.command(Command::RollbackDone, by).await?;
                return Ok(Some(UndoReport::default()));
            }
            return Ok(None);
        };
        plan.check(spec)?;
        journal.command(if is_wipe { Command::Wipe } else { Command::Undo }, by).await?;
        // The note of a way back that nobody will go.
        back::forget(spec)?;
        // Every worker of before is refused from here on.
        roles::outlast(spec, journal, by).await?;
        let routes = routes(spec, &plan, secret_of(&spec.base())?, journal.migration().epoch)?;
        let mut sink = wiring::sink(spec)?;
        // Whoever compares hears that there is nothing to compare with, before the flag itself goes.
        super::reads::end(spec, &journal.migration()).await;
        let report = if is_wipe {
            retired::forget(spec).await?;
            super::switch::forget(spec).await?;
            let report = sink.wipe(routes.target()).await?;
            wiring::release_source(spec, self.owned.dir()).await?;
            report
        } else {
            super::switch::unwatch(spec).await?;
            let routes = as_followed(spec, routes, &mut sink).await?;
            let report = sink.undo(routes.target()).await?;
            super::switch::let_go(spec).await?;
            report
        };
        if is_wipe {
            forget(spec, &self.owned, &self.others).await?;
        }
        journal.command(Command::RollbackDone, by).await?;
        Ok(Some(report))
    }
}

/// The target's tables as they are now: the sink has followed the source's changes of shape.
async fn as_followed(spec: &Spec, mut routes: Routes, sink: &mut AnySink) -> Result<Routes, CliError> {
    let log = match Origin::read(&spec.base())? {
        Some(origin) => Some(AnyLog::look(&origin.load()?)?),
        // Without a log there is nothing that it could have followed.
        None => AnyLog::if_there(spec)?,
    };
    if let (Some(progress), Some(log)) = (sink.progress().await?, log) {
        routes.restore(&log, &progress.schemas)?;
    }
    Ok(routes)
}

/// The log and the state speak of a target that is gone. The journal stays.
async fn forget(spec: &Spec, owned: &WorkFolder, others: &[WorkFolder]) -> Result<(), CliError> {
    AnyLog::forget(spec).await?;
    let dirs = others.iter().chain([owned]).map(WorkFolder::dir);
    for path in dirs.flat_map(|dir| [WorkFolder::state_path(dir), dir.join("spool")]) {
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(CliError::io(format!("removing {}", path.display()), &error));
            }
            _ => {}
        }
    }
    match std::fs::remove_file(PlanFile::path(&spec.base())) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(CliError::io("removing the plan", &error)),
        _ => Ok(()),
    }
}

fn confirm(spec: &Spec) -> Result<(), CliError> {
    if !std::io::stdin().is_terminal() {
        return Err(CliError::refused(
            "a wipe drops everything that the migration made, and nobody is here to confirm it",
        )
        .hint("say --yes"));
    }
    output::print(&format!(
        "This drops everything that {} made in the target, and its log. Type its name to go on: ",
        spec.name
    ))?;
    std::io::stdout().flush()?;
    let mut typed = String::new();
    std::io::stdin().read_line(&mut typed)?;
    if typed.trim() == spec.name.as_str() {
        return Ok(());
    }
    Err(CliError::refused("not confirmed: nothing has been changed"))
}

fn say(report: &UndoReport, args: &RollbackArgs) -> Result<(), CliError> {
    if args.json {
        output::json(report)?;
    } else {
        output::line(format!(
            "{} rows put back, {} rows of ours removed, {} objects dropped",
            output::count(report.restored),
            output::count(report.removed),
            report.dropped.len()
        ))?;
        for (table, key) in &report.left_alone {
            output::line(format!("left alone, for somebody else changed it since: {table} key {key}"))?;
        }
    }
    if report.left_alone.is_empty() {
        return Ok(());
    }
    Err(CliError::new(crate::error::Exit::Differences, format!("{} rows were left alone", report.left_alone.len())))
}
