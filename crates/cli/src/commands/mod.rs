//! One file for each group of commands. Each loads its spec, does its work, and prints its answer.

mod check;
pub(crate) mod control;
mod dual_reads;
pub(crate) mod folder;
mod init;
mod log;
mod mapping;
mod plan;
mod plan_reverse;
mod quarantine;
pub(crate) mod state;
mod stopped;
pub(crate) mod switch;

use crate::{
    args::{Command, LogCommand, MappingCommand, QuarantineCommand, StateCommand},
    error::CliError,
    run,
    spec::Spec,
};
pub(crate) use check::Finding;
use std::path::Path;

/// Does what the command line says.
pub(crate) async fn dispatch(command: Command, reverse: bool) -> Result<(), CliError> {
    if reverse {
        return dispatch_reverse(command).await;
    }
    match command {
        Command::Demo(args) => tokio::task::block_in_place(|| crate::demo::run(&args.folder)).map_err(CliError::from),
        Command::Init(args) => init::init(args).await,
        Command::Check(args) => check::check(&load(&args.spec)?, args.json).await,
        Command::Plan(args) => plan::plan(&load(&args.spec)?, args.json).await,
        Command::Run(args) => run::run(&load(&args.spec)?.as_part(None), &args).await,
        Command::Wait(args) => control::wait(&load(&args.spec)?, args.timeout, args.json).await,
        Command::Status(args) => control::status(&load(&args.spec)?, args.json).await,
        Command::Verify(args) => run::verify(&load(&args.spec)?, &args).await,
        Command::Checkpoint(args) => control::checkpoint(&load(&args.spec)?, &args.name, args.json).await,
        Command::Replay(args) => run::replay(&load(&args.spec)?, &args).await,
        Command::Rollback(args) => run::rollback(&load(&args.spec)?, &args).await,
        Command::DualReads(args) => dual_reads::dual_reads(&load(&args.spec)?, &args).await,
        Command::Approve(args) => switch::approve(&load(&args.spec)?, &args).await,
        Command::Cutover(args) => switch::cutover(&load(&args.spec)?, &args).await,
        Command::Failback(args) => switch::failback(&load(&args.spec)?, &args).await,
        Command::Cleanup(args) => run::cleanup(&load(&args.spec)?, &args).await,
        Command::Pause(args) => control::pause(&load(&args.spec)?, &args.reason).await,
        Command::Resume(args) => control::resume(&load(&args.spec)?, args.add).await,
        Command::Quarantine(command) => dispatch_quarantine(command).await,
        Command::Mapping(MappingCommand::Export(args)) => {
            mapping::export(&load(&args.spec)?, args.table.as_deref(), args.json).await
        }
        Command::Mapping(MappingCommand::Lookup(args)) => {
            mapping::lookup(&load(&args.spec)?, &args.key, args.json).await
        }
        Command::Log(LogCommand::Ls(args)) => log::ls(&load(&args.spec)?, args.json),
        Command::Log(LogCommand::Cat(args)) => log::cat(&load(&args.spec)?, &args),
        Command::Log(LogCommand::Verify(args)) => log::verify(&load(&args.spec)?, args.json),
        Command::State(StateCommand::Ls(args)) => state::ls(&load(&args.spec)?, args.json).await,
        Command::State(StateCommand::Rebuild(args)) => state::rebuild(&load(&args.spec)?, args.json).await,
    }
}

async fn dispatch_quarantine(command: QuarantineCommand) -> Result<(), CliError> {
    let spec = load(command.spec())?;
    of_quarantine(&spec, command).await
}

async fn of_quarantine(spec: &Spec, command: QuarantineCommand) -> Result<(), CliError> {
    match command {
        QuarantineCommand::Ls(args) => quarantine::ls(spec, &args).await,
        QuarantineCommand::Show(args) => quarantine::show(spec, &args).await,
        QuarantineCommand::Retry(args) => quarantine::retry(spec, &args).await,
        QuarantineCommand::Discard(args) => quarantine::discard(spec, &args).await,
    }
}

/// The same of the way back of a migration, where that makes sense.
async fn dispatch_reverse(command: Command) -> Result<(), CliError> {
    let refused = |what: &str| {
        Err(CliError::misconfigured(format!("{what} knows no --reverse"))
            .hint("plan, wait, status, verify, pause, resume, quarantine and log do"))
    };
    match command {
        Command::Plan(args) => plan_reverse::plan(&back(&args.spec).await?, args.json),
        Command::Wait(args) => control::wait(&back(&args.spec).await?, args.timeout, args.json).await,
        Command::Status(args) => control::status(&back(&args.spec).await?, args.json).await,
        Command::Verify(args) => run::verify(&back(&args.spec).await?, &args).await,
        Command::Pause(args) => control::pause(&back(&args.spec).await?, &args.reason).await,
        Command::Resume(args) if args.add => refused("resume --add"),
        Command::Resume(args) => control::resume(&back(&args.spec).await?, false).await,
        Command::Quarantine(command) => of_quarantine(&back(command.spec()).await?, command).await,
        Command::Log(LogCommand::Ls(args)) => log::ls(&back(&args.spec).await?, args.json),
        Command::Log(LogCommand::Cat(args)) => log::cat(&back(&args.spec).await?, &args),
        Command::Log(LogCommand::Verify(args)) => log::verify(&back(&args.spec).await?, args.json),
        Command::Run(_) => refused("what begins a way back"),
        Command::Demo(_)
        | Command::Init(_)
        | Command::Check(_)
        | Command::Checkpoint(_)
        | Command::Replay(_)
        | Command::Rollback(_)
        | Command::DualReads(_)
        | Command::Approve(_)
        | Command::Cutover(_)
        | Command::Failback(_)
        | Command::Cleanup(_)
        | Command::Mapping(_)
        | Command::State(_) => refused("this command"),
    }
}

/// The way back of a spec.
async fn back(path: &Path) -> Result<Spec, CliError> {
    run::reversed(&load(path)?).await
}

/// Loads a spec and tells its warnings.
fn load(path: &Path) -> Result<Spec, CliError> {
    let spec = Spec::load(path)?;
    for warning in &spec.warnings {
        tracing::warn!(spec = %path.display(), "{warning}");
    }
    Ok(run::found(&spec))
}
