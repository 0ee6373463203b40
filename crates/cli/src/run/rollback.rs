//! `rollback`: takes back what a migration wrote. Both ways can be killed and run again.

use super::{
    plan_file::{PlanFile, secret_of},
    session::routes,
};
use crate::{args::RollbackArgs, commands::folder, error::CliError, output, spec::Spec, wiring};
use crossfade_connector::{Rollback, UndoReport};
use crossfade_control::Command;
use crossfade_state::WorkFolder;
use std::io::{IsTerminal, Write};

/// Rolls back.
pub(crate) async fn rollback(spec: &Spec, args: &RollbackArgs) -> Result<(), CliError> {
    let owned = folder::taken(spec)?;
    if args.wipe && !args.yes {
        confirm(spec)?;
    }
    let Some(plan) = PlanFile::read(owned.dir())? else {
        return output::line(format!("the migration {} has made nothing yet", spec.name));
    };
    plan.check(spec)?;
    let journal = folder::journal(&owned)?;
    let by = folder::by_hand();
    journal.command(if args.wipe { Command::Wipe } else { Command::Undo }, &by).await?;
    // Every worker of before is refused from here on.
    journal.command(Command::RaiseEpoch, &by).await?;
    let routes = routes(spec, &plan, secret_of(owned.dir())?, journal.migration().epoch)?;
    let mut sink = wiring::sink(spec)?;
    let report = if args.wipe {
        let report = sink.wipe(routes.target()).await?;
        wiring::release_source(spec, owned.dir()).await?;
        report
    } else {
        sink.undo(routes.target()).await?
    };
    if args.wipe {
        forget(&owned)?;
    }
    journal.command(Command::RollbackDone, &by).await?;
    say(&report, args)
}

/// The log and the state speak of a target that is gone. The journal stays.
fn forget(owned: &WorkFolder) -> Result<(), CliError> {
    let dir = owned.dir();
    for path in [WorkFolder::log_path(dir), WorkFolder::state_path(dir), dir.join("spool")] {
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(CliError::io(format!("removing {}", path.display()), &error));
            }
            _ => {}
        }
    }
    match std::fs::remove_file(PlanFile::path(dir)) {
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
