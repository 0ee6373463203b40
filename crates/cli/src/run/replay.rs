//! `replay`: applies the log again. Into the same sink it heals; into another one it builds anew.

use super::{ends::heal_offline, follower::Follower, place::cut_of, session::Session};
use crate::{
    args::{self, ReplayArgs},
    commands::folder,
    error::CliError,
    output,
    spec::Spec,
    wiring,
};
use crossfade_control::{Command, Journal, Migration};
use crossfade_log::{EventLog, embedded::Embedded};
use crossfade_observe::socket;
use crossfade_pipeline::{HealReport, stop_channel};
use crossfade_state::WorkFolder;
use serde_json::{Value, json};

/// Replays.
pub(crate) async fn replay(spec: &Spec, args: &ReplayArgs) -> Result<(), CliError> {
    match &args.into {
        None => heal(spec, &args.from, args.json).await,
        Some(into) => build(spec, &Spec::load(into)?, args).await,
    }
}

/// What a healing replay did, for programs.
pub(super) fn heal_json(report: &HealReport) -> Value {
    json!({
        "read": report.read,
        "written": report.written,
        "deleted": report.deleted,
        "tables_left_alone": report.left_alone.len(),
    })
}

async fn heal(spec: &Spec, from: &args::From, as_json: bool) -> Result<(), CliError> {
    let report = if folder::owner(spec)?.is_some() {
        let path = WorkFolder::socket_path(&folder::existing(spec)?);
        let body = json!({ "from": from.to_string() });
        socket::request(&path, hyper::Method::POST, "/command/replay", Some(&body)).await?
    } else {
        folder::existing(spec)?;
        let session = Session::open(spec).await?;
        let cut = cut_of(from, &session.log, &session.journal.migration())?;
        session.journal.command(Command::Note { what: format!("replay from {from}") }, &session.by).await?;
        let mut sink = wiring::sink(spec)?;
        heal_json(&heal_offline(&session.log, &session.routes, &mut sink, &cut).await?)
    };
    if as_json {
        return output::json(&report);
    }
    let figure = |name: &str| report.get(name).and_then(Value::as_u64).unwrap_or(0);
    output::line(format!(
        "replayed {} changes: {} rows written as they should be, {} deleted",
        output::count(figure("read")),
        output::count(figure("written")),
        output::count(figure("deleted"))
    ))?;
    match figure("tables_left_alone") {
        0 => Ok(()),
        tables => {
            output::line(format!("{tables} tables without a key were left alone: their rows cannot be told apart"))
        }
    }
}

/// Builds another sink from this migration's log, by another spec's rules.
async fn build(spec: &Spec, into: &Spec, args: &ReplayArgs) -> Result<(), CliError> {
    if into.name.as_str() == spec.name.as_str() {
        return Err(CliError::misconfigured(format!(
            "{} and {} have the same name; a replay into another sink needs a name of its own",
            spec.file.display(),
            into.file.display()
        )));
    }
    let log = folder::log(spec)?;
    let place = cut_of(&args.from, &log, &checkpoints_of(spec)?)?;
    if !args.base && place != log.start() {
        return Err(CliError::refused(
            "a new sink can only be built from the beginning of a complete copy in the log: a later place would miss what came before it",
        )
        .hint("say --from offset:0; or put a copy into the sink that was right at that place, and say --base"));
    }
    drop(log);
    let mut follower = Box::pin(Follower::open(spec, into, args.base.then_some(&place))).await?;
    let (stopper, stop) = stop_channel();
    let replay = async {
        let (_, upto) = follower.catch_up(stop.clone()).await?;
        if args.follow { follower.follow(stop.clone()).await } else { Ok(upto) }
    };
    let mut replay = Box::pin(replay);
    let end = tokio::select! {
        ended = &mut replay => ended?,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.map_err(|error| CliError::io("listening for signals", &error))?;
            stopper.stop();
            replay.await?
        }
    };
    let end = end.to_string();
    if args.json {
        return output::json(&json!({ "into": into.name.as_str(), "upto": end }));
    }
    output::line(format!("replayed the log of {} into {} up to offset {end}", spec.name, into.name))
}

/// What the journal says, also beside the process that writes it.
fn checkpoints_of(spec: &Spec) -> Result<Migration, CliError> {
    let path = WorkFolder::journal_path(&folder::existing(spec)?);
    Ok(Journal::open(Embedded::open_read_only(path)?, None)?.migration())
}
