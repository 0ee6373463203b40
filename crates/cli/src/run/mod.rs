//! `run` and what shares its wiring: a source, a log, a sink and the rules of one spec, brought together.
//!
//! ```text
//!  source ──▶ ingest ──▶ log ──▶ deliver ──▶ sink        two tasks, each with its own end
//!                 │                  │
//!                 └──── Watcher ─────┴──▶ counters, journal, status file, terminal, control socket
//! ```

mod adding;
mod base;
mod control;
mod dry;
mod ends;
mod follower;
mod growth;
mod keep;
mod place;
mod plan_file;
mod replay;
mod rollback;
mod session;
#[cfg(test)]
mod shop;
mod supervise;
mod upkeep;
mod verify;
mod watcher;
mod word;

pub(crate) use dry::dry_run;
pub(crate) use ends::{discard, retry};
pub(crate) use keep::whole;
pub(crate) use plan_file::{PlanFile, secret_of};
pub(crate) use replay::replay;
pub(crate) use rollback::rollback;
pub(crate) use session::Session;
pub(crate) use verify::verify;

use crate::{
    args::{Role, RunArgs, Until},
    error::{CliError, Exit},
    spec::Spec,
};
use crossfade_control::Command;
use supervise::Running;

/// Runs a migration in the foreground until it is stopped, has caught up, or fails for good.
pub(crate) async fn run(spec: &Spec, args: &RunArgs) -> Result<(), CliError> {
    if args.role != Role::All {
        return Err(CliError::not_built("--role other than all (it needs the log on Kafka)"));
    }
    if args.listen.is_some() {
        return Err(CliError::not_built("--listen"));
    }
    if args.dry_run {
        return dry_run(spec, args.limit).await;
    }
    let session = Session::open(spec).await?;
    let journal = session.journal.clone();
    let by = session.by.clone();
    let outcome =
        Running::start(session, args.quiet, args.limit).await?.until(args.until == Some(Until::CaughtUp)).await;
    if let Err(error) = &outcome {
        let command = match error.exit {
            Exit::Lost => {
                Some(Command::Lose { reason: error.message.clone(), remedy: error.hint.clone().unwrap_or_default() })
            }
            Exit::Failed => Some(Command::Fail { reason: error.message.clone() }),
            _ => None,
        };
        if let Some(command) = command
            && let Err(unwritten) = journal.command(command, &by).await
        {
            tracing::warn!("the journal could not take how the run ended: {unwritten}");
        }
    }
    outcome
}
