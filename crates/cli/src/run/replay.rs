//! `replay`: applies the log again. Into the same sink it heals; into another one it builds anew.

use super::{
    ends::heal_offline,
    place::cut_of,
    plan_file::{PlanFile, secret_id, secret_of, spec_hash},
    session::{Session, routes},
};
use crate::{
    args::{self, ReplayArgs},
    commands::folder,
    error::CliError,
    output,
    spec::Spec,
    wiring,
};
use crossfade_control::{Command, Migration};
use crossfade_log::EventLog;
use crossfade_observe::socket;
use crossfade_pipeline::{DeliverOptions, Ending, HealReport, Silent, deliver, stop_channel, valve};
use crossfade_state::WorkFolder;
use serde_json::{Value, json};

/// Replays.
pub(crate) async fn replay(spec: &Spec, args: &ReplayArgs) -> Result<(), CliError> {
    if args.base {
        return Err(CliError::not_built("replay --base"));
    }
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
    let from_folder = folder::existing(spec)?;
    let Some(plan) = PlanFile::read(&from_folder)? else {
        return Err(CliError::refused(format!(
            "the migration {} has not begun: there is nothing to replay",
            spec.name
        )));
    };
    if into.folder() == spec.folder() {
        return Err(CliError::misconfigured(format!(
            "{} and {} have the same name and folder; a replay into another sink needs a name of its own",
            spec.file.display(),
            into.file.display()
        )));
    }
    let log = folder::log(spec)?;
    let cut = cut_of(&args.from, &log, &Migration::default())?;
    if cut != log.start() {
        return Err(CliError::refused(
            "a new sink can only be built from the beginning of a complete copy in the log: a later place would miss what came before it",
        )
        .hint("say --from offset:0"));
    }
    let own = WorkFolder::lock(into.folder())?;
    let journal = folder::journal(&own)?;
    let by = folder::by_hand();
    // The same secret, so that derived keys are the same in every sink.
    let secret = secret_of(&from_folder)?;
    PlanFile::write(own.dir(), into, plan.catalog.clone())?;
    let planned = Command::Plan { spec_hash: spec_hash(into), secret_id: secret_id(&secret) };
    for command in [planned, Command::RaiseEpoch, Command::Expand, Command::StartCapture] {
        journal.command(command, &by).await?;
    }
    journal.command(Command::Note { what: format!("replay from the log of {}", spec.name) }, &by).await?;
    let into_plan = PlanFile::read(own.dir())?.unwrap_or(plan);
    let routes = routes(into, &into_plan, secret, journal.migration().epoch)?;
    let mut sink = wiring::sink(into)?;
    let (_stopper, stop) = stop_channel();
    let (_handle, mut open) = valve();
    loop {
        let log = folder::log(spec)?;
        let options = DeliverOptions { until: Some(log.tail().cut), ..DeliverOptions::new(None) };
        let ending = deliver(&log, &routes, &mut sink, &options, &Silent, &mut open, stop.clone()).await?;
        if !args.follow || ending == Ending::Stopped {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep(std::time::Duration::from_millis(100)) => {}
            interrupted = tokio::signal::ctrl_c() => {
                interrupted.map_err(|error| CliError::io("listening for signals", &error))?;
                break;
            }
        }
    }
    let end = log.tail().cut.to_string();
    if args.json {
        return output::json(&json!({ "into": into.name.as_str(), "upto": end }));
    }
    output::line(format!("replayed the log of {} into {} up to offset {end}", spec.name, into.name))
}
