//! `status`, `wait`, `pause`, `resume`, `checkpoint`: asked of the process that runs the migration, over its control
//! socket; where nobody runs, the folder itself answers.

use super::{folder, stopped};
use crate::{
    error::{CliError, Exit},
    event_log::AnyLog,
    output, registry, run,
    spec::{Part, Span, Spec},
};
use crossfade_control::{Command, Migration};
use crossfade_event::Position;
use crossfade_log::EventLog;
use crossfade_observe::{
    ProcessStatus, Rates, Status, Totals, render,
    socket::{SocketError, request},
};
use crossfade_state::WorkFolder;
use hyper::Method;
use serde_json::{Value as Json, json};
use std::time::Duration;
use tokio::time::Instant;

/// How often a process that is not there yet is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// So often a question is repeated whose answer was cut off.
const ASKED_AGAIN_MAX: u32 = 20;

/// How long any answer but that of `wait` may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// Asks the running process; `None` when nobody runs.
pub(crate) async fn ask(
    spec: &Spec,
    method: Method,
    route: &str,
    body: Option<Json>,
) -> Result<Option<Json>, CliError> {
    let socket = WorkFolder::socket_path(&spec.folder());
    let is_question = method == Method::GET;
    let asked = async {
        for _ in 0..ASKED_AGAIN_MAX {
            match request(&socket, method.clone(), route, body.as_ref()).await {
                // It is about to end, and was asked a moment too late: then nobody runs, and its last word is in its file.
                Err(SocketError::Failed(_)) if is_question => tokio::time::sleep(LOOK_AGAIN).await,
                answered => return answered,
            }
        }
        request(&socket, method, route, body.as_ref()).await
    };
    match tokio::time::timeout(ANSWER_LIMIT, asked).await {
        Ok(Ok(answer)) => Ok(Some(answer)),
        Ok(Err(SocketError::NotRunning)) => Ok(None),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(CliError::failed(format!(
            "the process that runs {} gave no answer within {} s",
            spec.name,
            ANSWER_LIMIT.as_secs()
        ))),
    }
}

/// Where it stands.
pub(crate) async fn status(spec: &Spec, as_json: bool) -> Result<(), CliError> {
    let mut status = match status_of(spec).await {
        // A machine that has workers alone has nothing of its own to say.
        Err(error) if error.exit == Exit::Misconfigured && !run::workers_here(spec)?.is_empty() => of_workers(spec),
        status => status?,
    };
    for part in run::parts_here(spec).into_iter().filter(|part| Some(*part) != spec.part) {
        status.beside = match status_of(&spec.as_part(Some(part))).await {
            Ok(beside) => Some(Box::new(beside)),
            // It is beginning, and has said nothing yet.
            Err(error) if error.exit == Exit::Locked => None,
            Err(error) => return Err(error),
        };
    }
    status.workers = run::workers_here(spec)?;
    hear_authority(spec, &mut status).await;
    let is_of_several = status.role.is_some();
    if status.processes.is_empty() && is_of_several {
        status.processes = processes(spec);
    }
    if as_json {
        return output::json(&status);
    }
    status.beside = status.beside.map(|beside| Box::new(with_place_words(spec, *beside)));
    let mut text = render(&with_place_words(spec, status));
    if !text.ends_with('\n') {
        text.push('\n');
    }
    output::print(&text)
}

/// What there is to say of a migration on a machine that only transforms.
fn of_workers(spec: &Spec) -> Status {
    let now = folder::by_hand().at_us;
    let migration = Migration::default();
    let mut status = Status::new(spec.name.as_str(), now, &migration, &Totals::default(), Rates::default());
    status.role = Some("transform".to_owned());
    status
}

/// The processes of the migration on whatever machines, by the log itself: nobody here follows it.
fn processes(spec: &Spec) -> Vec<ProcessStatus> {
    match AnyLog::if_there(spec) {
        Ok(log) => log.map(|log| log.processes()).unwrap_or_default(),
        Err(error) => {
            tracing::warn!("what runs on other machines is not known: {error}");
            Vec::new()
        }
    }
}

/// What one process says, or its folder.
async fn status_of(spec: &Spec) -> Result<Status, CliError> {
    match ask(spec, Method::GET, "/status", None).await? {
        Some(answer) => serde_json::from_value(answer)
            .map_err(|error| CliError::failed(format!("the running process answers in another shape: {error}"))),
        None => stopped::status(spec),
    }
}

/// How long the row of `crossfade.authority` is waited for.
const AUTHORITY_LIMIT: Duration = Duration::from_secs(5);

/// A switch was begun, and no process is there that knows its end: the row itself is asked.
async fn hear_authority(spec: &Spec, status: &mut Status) {
    let is_open = matches!(status.phase.as_str(), "freezing" | "draining" | "switching");
    let Some(switch) = status.switch.as_mut().filter(|_| is_open && status.pid.is_none()) else { return };
    let back_to_old = switch.towards.as_deref() == Some("old");
    let row = tokio::time::timeout(AUTHORITY_LIMIT, async {
        // The side that had the authority knows; the other one follows it.
        let (mut old, mut new) = registry::switch_ends(spec)?;
        let holder = if back_to_old { &mut new } else { &mut old };
        Ok::<_, CliError>(holder.authority().await?)
    });
    let row = match row.await {
        Ok(Ok(row)) => row.map(|written| (written.side.to_string(), written.epoch)),
        Ok(Err(error)) => {
            tracing::warn!("crossfade.authority cannot be asked now: {error}");
            None
        }
        Err(_) => None,
    };
    switch.without_an_end(row);
}

/// The status with the source's end of history as a person reads it: in the source's own words, and as the position
/// that other commands take.
fn with_place_words(spec: &Spec, mut status: Status) -> Status {
    if let Some(current) = status.source.get_mut("current")
        && let Ok(position) = serde_json::from_value::<Position>(current.clone())
    {
        *current = json!(format!("{}, position {position}", registry::place_words(spec, &position)));
    }
    status
}

/// Waits until the sink has passed the source's position as it is now; through restarts of the process that runs.
pub(crate) async fn wait(spec: &Spec, timeout: Span, as_json: bool) -> Result<(), CliError> {
    let until = Instant::now() + timeout.0;
    let mut seen = false;
    let mut told = false;
    loop {
        // Processes may come meanwhile, each into a folder of its own; only the one that writes the sink knows.
        let spec = &run::found(spec);
        let asked = spec.as_part(spec.part.map(|_| Part::Deliver));
        let socket = WorkFolder::socket_path(&asked.folder());
        match tokio::time::timeout_at(until, request(&socket, Method::POST, "/wait/caught-up", None)).await {
            Ok(Ok(answer)) => return tell_caught_up(&answer, as_json),
            Ok(Err(SocketError::NotRunning)) => {
                if !told {
                    tracing::warn!(migration = %spec.name, "no process runs this migration; waiting for one");
                    told = true;
                }
            }
            // The process went away while it was asked: another one may take its place.
            Ok(Err(SocketError::Failed(_))) => seen = true,
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => return Err(timed_out(spec, timeout, true)),
        }
        if Instant::now() + LOOK_AGAIN >= until {
            run::needs_deliver(spec, "wait --caught-up")?;
            return Err(timed_out(spec, timeout, seen));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn tell_caught_up(answer: &Json, as_json: bool) -> Result<(), CliError> {
    if as_json {
        return output::json(answer);
    }
    let held = answer.get("quarantined").and_then(Json::as_u64).unwrap_or(0);
    match held {
        0 => output::line("caught up"),
        held => output::line(format!("caught up, with {} changes in quarantine", output::count(held))),
    }
}

fn timed_out(spec: &Spec, timeout: Span, was_running: bool) -> CliError {
    let seconds = timeout.0.as_secs_f64();
    if was_running {
        CliError::failed(format!("{} has not caught up within {seconds} s", spec.name))
            .hint(format!("`crossfade status {}` says how far it is; --timeout allows more", spec.file.display()))
    } else {
        CliError::failed(format!("no process runs {}, and none came within {seconds} s", spec.name))
            .hint(format!("start it: crossfade run {}", spec.file.display()))
    }
}

/// Stops delivery for now.
pub(crate) async fn pause(spec: &Spec, reason: &str) -> Result<(), CliError> {
    run::needs_deliver(spec, "pause")?;
    let by = folder::by_hand();
    let body = json!({ "who": by.who, "reason": reason });
    if ask(spec, Method::POST, "/pause", Some(body)).await?.is_none() {
        let owned = folder::taken(spec)?;
        let command = Command::Pause { by: by.who.clone(), reason: reason.to_owned() };
        folder::journal(&owned)?.command(command, &by).await?;
    }
    output::line(format!("{} is paused; `crossfade resume {}` goes on", spec.name, spec.file.display()))
}

/// Lets it go on.
pub(crate) async fn resume(spec: &Spec, add: bool) -> Result<(), CliError> {
    run::needs_deliver(spec, "resume")?;
    if add && spec.part.is_some() {
        return Err(CliError::refused(format!(
            "`resume --add` is not built for a migration whose ingest and deliver are processes of their own, as those of {} are",
            spec.name
        ))
        .hint("move the new tables by a migration of their own"));
    }
    let by = folder::by_hand();
    let body = json!({ "who": by.who });
    if ask(spec, Method::POST, "/resume", Some(body)).await?.is_some() {
        output::line(format!("{} goes on", spec.name))?;
        if !add {
            return Ok(());
        }
        let asked = ask(spec, Method::POST, "/command/add-tables", Some(json!({ "who": by.who }))).await?;
        return tell_added(asked.as_ref());
    }
    let owned = folder::taken(spec)?;
    let journal = folder::journal(&owned)?;
    let before = journal.migration();
    journal.command(Command::Resume, &by).await?;
    if before.fallen.is_some() && before.phase.is_back() {
        return output::line(format!(
            "{} begins anew with the next `crossfade run {}`",
            spec.name,
            spec.file.display()
        ));
    }
    if add {
        journal.command(Command::AddTables, &by).await?;
        output::line("new tables that match the spec are taken in by the next run")?;
    }
    output::line(format!("{} is no longer paused; `crossfade run {}` goes on", spec.name, spec.file.display()))
}

fn tell_added(answer: Option<&Json>) -> Result<(), CliError> {
    let Some(answer) = answer else {
        return Err(CliError::failed(
            "the run ended while it was asked; whether new tables are taken in, `crossfade status` of the next run says",
        ));
    };
    let tables: Vec<&str> =
        answer.get("tables").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str).collect();
    if tables.is_empty() {
        return output::line("the source has no new table that matches the spec");
    }
    output::line(match answer.get("begun").and_then(Json::as_bool) {
        Some(true) => format!("taken in, and being copied: {}", tables.join(", ")),
        _ => format!("noted; the copy begins once what is under way in the source has ended: {}", tables.join(", ")),
    })
}

/// Names the present place.
pub(crate) async fn checkpoint(spec: &Spec, name: &str, as_json: bool) -> Result<(), CliError> {
    run::needs_deliver(spec, "checkpoint")?;
    let by = folder::by_hand();
    let route = format!("/checkpoint/{}", path_segment(name)?);
    let answer = match ask(spec, Method::POST, &route, Some(json!({ "who": by.who }))).await? {
        Some(answer) => answer,
        None => checkpoint_in_folder(spec, name).await?,
    };
    if as_json {
        return output::json(&answer);
    }
    let place = answer.get("cut").and_then(Json::as_str).unwrap_or_default();
    output::line(format!("checkpoint {name} stands at offset {place}"))
}

/// While nobody runs: the place up to which every reader of the log has come, as the log remembers it.
async fn checkpoint_in_folder(spec: &Spec, name: &str) -> Result<Json, CliError> {
    let owned = folder::taken(spec)?;
    let log = AnyLog::look(spec)?;
    let tail = log.tail();
    let cut = log.consumers().into_iter().find(|(name, _)| name == folder::DELIVER).map(|(_, cut)| cut);
    let cut = cut.unwrap_or_else(|| tail.cut.clone());
    let position = tail.position.filter(|_| cut == tail.cut);
    let by = folder::by_hand();
    let command = Command::NameCheckpoint { name: name.to_owned(), cut: cut.clone(), position, at_us: by.at_us };
    folder::journal(&owned)?.command(command, &by).await?;
    Ok(json!({
        "name": name, "cut": cut.to_string(), "position": position.map(|position| position.to_string()),
    }))
}

/// A name that can stand in a route; every valid one can.
fn path_segment(name: &str) -> Result<&str, CliError> {
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if plain && !name.is_empty() && !name.starts_with('.') {
        return Ok(name);
    }
    Err(CliError::misconfigured(format!("{name:?} cannot name a checkpoint"))
        .hint("take lower-case letters, digits, `-`, `_` and `.`, a letter or digit first"))
}

impl From<SocketError> for CliError {
    fn from(error: SocketError) -> Self {
        let exit = match error.exit() {
            2 => Exit::Misconfigured,
            3 => Exit::Refused,
            4 => Exit::Differences,
            5 => Exit::Lost,
            75 => Exit::Locked,
            _ => Exit::Failed,
        };
        Self::of(exit, &error)
    }
}
