//! `run` and what shares its wiring: a source, a log, a sink and the rules of one spec, brought together.
//!
//! ```text
//!  source ──▶ ingest ──▶ log ──▶ deliver ──▶ sink        two tasks, each with its own end
//!                 │                  │
//!                 └──── Watcher ─────┴──▶ counters, journal, status file, terminal, control socket
//! ```

mod adding;
mod adopted;
mod back;
mod base;
mod clean;
mod collisions;
mod control;
mod dry;
mod ends;
mod fallen;
mod follower;
mod growth;
mod keep;
mod latency;
mod listen;
mod place;
mod plan_file;
mod proof;
mod queries;
mod reads;
mod repair;
mod replay;
mod resources;
mod retired;
mod reverse;
mod roles;
mod rollback;
mod session;
#[cfg(test)]
mod shop;
mod supervise;
mod swap;
mod switch;
mod together;
mod upkeep;
mod verifier;
mod verify;
mod views;
mod watcher;
mod word;
mod workers;

pub(crate) use back::{opened as way_back, planned as reversed};
pub(crate) use clean::cleanup;
pub(crate) use dry::dry_run;
pub(crate) use ends::{discard, retry};
pub(crate) use keep::whole;
pub(crate) use latency::{Way as LatencyWay, way as latency_way};
pub(crate) use plan_file::{PlanFile, secret_of};
pub(crate) use reads::{is_more, lower as lower_reads, refuse_out_of_phase};
pub(crate) use replay::replay;
pub(crate) use retired::tidy;
pub(crate) use roles::{found, needs_deliver, parts_here};
pub(crate) use rollback::rollback;
pub(crate) use session::{Session, settled};
pub(crate) use swap::{after as after_swap, failback as failback_within, prepare as prepare_swap};
pub(crate) use switch::{Outcome, no_section, nothing_to_take_back};
pub(crate) use upkeep::while_followed;
pub(crate) use verify::verify;
pub(crate) use views::sql as views_sql;
pub(crate) use workers::here as workers_here;

use crate::{
    args::{Role, RunArgs, Until},
    error::{CliError, Exit},
    spec::{Part, Spec},
    wiring,
};
use crossfade_control::Command;
use crossfade_observe::Listening;
use supervise::{Running, Signals};

/// Runs a migration in the foreground until it is stopped, has caught up, or fails for good.
pub(crate) async fn run(spec: &Spec, args: &RunArgs) -> Result<(), CliError> {
    let listening = listen::bind(args)?;
    if args.role == Role::Transform {
        fallen::refuse_by_roles(spec)?;
        return workers::work(spec, args).await;
    }
    let part = part_of(args)?;
    if args.dry_run {
        return dry_run(spec, args.limit).await;
    }
    let spec = &spec.as_part(part);
    if part.is_some() {
        fallen::refuse_by_roles(spec)?;
    }
    // A switch that was cut off is settled first, by the word of its row.
    if part.is_none() && spec.switch.is_some() && crate::commands::folder::existing(spec).is_ok() {
        session::settled(spec).await?;
    }
    // What a gate has taken back, or was about to, is nobody's to go on with.
    if part.is_none() && fallen::has_fallen(spec)? {
        drop(listening);
        return fallen::carry_on(spec).await;
    }
    if let Some(migration) = back::switched(spec)? {
        return back::run(spec, &migration, args, listening).await;
    }
    let session = match part {
        // It may have to wait for ingest, and is told to stop meanwhile.
        Some(Part::Deliver) => {
            let mut signals = Signals::listen()?;
            tokio::select! {
                session = Session::open(spec) => session?,
                _ = signals.next() => return Ok(()),
            }
        }
        _ => Session::open(spec).await?,
    };
    match run_session(session, args, listening).await {
        Err(error) if error.exit == Exit::Refused && part.is_none() && fallen::has_fallen(spec)? => {
            fallen::carry_on(spec).await
        }
        ended => ended,
    }
}

/// Runs what was opened, and puts into its journal how it ended.
async fn run_session(session: Session, args: &RunArgs, listening: Option<Listening>) -> Result<(), CliError> {
    let journal = session.journal.clone();
    let by = session.by.clone();
    let in_place = wiring::writes_beside(&session.spec);
    let mut running = Running::start(session, args.quiet, args.limit).await?;
    if let Some(listening) = listening {
        running.show_on(listening);
    }
    let outcome = running.until(args.until == Some(Until::CaughtUp)).await;
    // Names have changed under it: that is how a run ends whose columns have changed places.
    if in_place && journal.migration().phase.is_over() {
        return Ok(());
    }
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

/// What this process is to do of the migration; what only the other one can do is refused.
fn part_of(args: &RunArgs) -> Result<Option<Part>, CliError> {
    let part = match args.role {
        Role::All | Role::Transform => return Ok(None),
        Role::Ingest => Part::Ingest,
        Role::Deliver => Part::Deliver,
    };
    let refused = |what: &str| {
        CliError::misconfigured(format!("{what} cannot be said to --role {}", part.name()))
            .hint("say it to a run that does all of the migration")
    };
    match part {
        _ if args.dry_run => Err(refused("--dry-run")),
        Part::Ingest if args.until.is_some() => {
            Err(CliError::misconfigured("--role ingest does not know when the sink has caught up")
                .hint("say --until to --role deliver, or ask `crossfade wait --caught-up`"))
        }
        Part::Ingest if args.limit.is_some() => Err(refused("--limit")),
        _ => Ok(Some(part)),
    }
}
