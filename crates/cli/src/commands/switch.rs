//! `cutover`, `failback` and `approve`: asked of the process that runs the migration; where nobody does, this one runs it for as long as a
//! switch takes.

use super::{control::ask, folder};
use crate::{
    args::{ApproveArgs, SwitchArgs},
    error::{CliError, Exit},
    output, run,
    spec::{Span, Spec},
};
use crossfade_control::{Approval, Command, Direction};
use crossfade_event::Side;
use serde_json::{Value as Json, json};
use std::time::Duration;

/// How long an answer may take beyond the deadline: what comes before the freeze is not bounded by it.
const BEYOND: Duration = Duration::from_secs(120);

/// Notes that somebody agrees.
pub(crate) async fn approve(spec: &Spec, args: &ApproveArgs) -> Result<(), CliError> {
    whole(spec, "approve")?;
    let mut by = folder::by_hand();
    if let Some(name) = &args.by {
        by.who.clone_from(name);
    }
    if by.who.trim().is_empty() || args.reason.trim().is_empty() {
        return Err(CliError::misconfigured("an approval names who agrees and why; one of them is empty"));
    }
    let approval = Approval { who: by.who.clone(), why: args.reason.clone(), at_us: by.at_us };
    let body = json!({ "who": by.who, "approval": approval });
    if ask(spec, hyper::Method::POST, "/command/approve", Some(body)).await?.is_none() {
        let owned = folder::taken(spec)?;
        folder::journal(&owned)?.command(Command::Approve { approval }, &by).await?;
    }
    output::line(format!("{} agrees to the next switch of {}", by.who, spec.name))
}

/// Switches to the new side, or says why not.
pub(crate) async fn cutover(spec: &Spec, args: &SwitchArgs) -> Result<(), CliError> {
    whole(spec, "cutover")?;
    if spec.switch.is_none() {
        return Err(run::no_section(spec));
    }
    let in_place = crate::wiring::writes_beside(spec);
    if in_place && !args.dry_run {
        run::prepare_swap(spec).await?;
    }
    let is_there = |outcome: &run::Outcome| outcome.authority == Side::New;
    let asking = || Box::pin(asked(spec, spec, Direction::Cutover, args));
    let answer = match folder::owner(spec)? {
        Some(_) => asking().await,
        None => match run::settled(spec).await?.filter(is_there) {
            Some(outcome) => to_json(&outcome),
            None => run::while_followed(spec, args.json, asking()).await,
        },
    };
    let answer = or_by_the_row(spec, spec, answer, is_there).await?;
    let answer = match in_place && !args.dry_run {
        true => completed(spec, answer).await?,
        false => answer,
    };
    tell(spec, Direction::Cutover, args, &answer)
}

/// Switches back to the old side, or says why not. The process that runs the way back does it.
pub(crate) async fn failback(spec: &Spec, args: &SwitchArgs) -> Result<(), CliError> {
    whole(spec, "failback")?;
    if spec.switch.is_none() {
        return Err(run::no_section(spec));
    }
    if crate::wiring::writes_beside(spec) {
        let answer = to_json(&run::failback_within(spec, args.dry_run, args.deadline).await?)?;
        return tell(spec, Direction::Failback, args, &answer);
    }
    let is_there = |outcome: &run::Outcome| outcome.authority == Side::Old;
    let back = run::reversed(spec).await?;
    let answer = match folder::owner(&back)? {
        Some(_) => asked(spec, &back, Direction::Failback, args).await,
        None => match run::settled(spec).await? {
            None => Err(run::nothing_to_take_back(spec)),
            Some(outcome) if is_there(&outcome) => to_json(&outcome),
            Some(outcome) => {
                let back = run::way_back(spec, outcome.epoch, args.json).await?;
                let asking = Box::pin(asked(spec, &back, Direction::Failback, args));
                run::while_followed(&back, args.json, asking).await
            }
        },
    };
    let answer = or_by_the_row(spec, &back, answer, is_there).await?;
    if folder::owner(&back)?.is_none() {
        run::tidy(spec).await;
    }
    tell(spec, Direction::Failback, args, &answer)
}

/// What the run has put off is done here, once it has ended.
async fn completed(spec: &Spec, mut answer: Json) -> Result<Json, CliError> {
    let is = |key: &str| answer.get(key).and_then(Json::as_bool).unwrap_or(false);
    if !is("switched") || is("routed") {
        return Ok(answer);
    }
    if let (Some(outcome), Some(answer)) = (run::after_swap(spec).await?, answer.as_object_mut()) {
        answer.insert("routed".to_owned(), outcome.routed.into());
        if let Some(why) = outcome.not_routed {
            answer.insert("not_routed".to_owned(), why.into());
        }
    }
    Ok(answer)
}

/// The run may have ended before its answer was through: then the row says what became of the switch.
async fn or_by_the_row(
    spec: &Spec,
    runs: &Spec,
    answer: Result<Json, CliError>,
    is_there: impl Fn(&run::Outcome) -> bool,
) -> Result<Json, CliError> {
    match answer {
        Err(error) if folder::owner(runs)?.is_none() => match run::settled(spec).await?.filter(is_there) {
            Some(outcome) => to_json(&outcome),
            None => Err(error),
        },
        answer => answer,
    }
}

/// Only a process that does all of a migration can switch it.
pub(super) fn whole(spec: &Spec, what: &str) -> Result<(), CliError> {
    match spec.part {
        None => Ok(()),
        Some(_) => Err(CliError::not_built(&format!(
            "{what} for a migration whose ingest and deliver are processes of their own"
        ))),
    }
}

/// Asks the process that does `runs`, the migration's own or its way back.
async fn asked(spec: &Spec, runs: &Spec, direction: Direction, args: &SwitchArgs) -> Result<Json, CliError> {
    let deadline = args.deadline.or(spec.switch.as_ref().map(|switch| switch.deadline));
    let deadline = deadline.map_or(BEYOND, |Span(deadline)| deadline + BEYOND);
    let body = json!({
        "who": folder::by_hand().who,
        "dry_run": args.dry_run,
        "deadline_ms": args.deadline.map(|Span(deadline)| deadline.as_millis() as u64),
    });
    let socket = crossfade_state::WorkFolder::socket_path(&runs.folder());
    let route = format!("/command/{direction}");
    let request = crossfade_observe::socket::request(&socket, hyper::Method::POST, &route, Some(&body));
    match tokio::time::timeout(deadline, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(CliError::failed("the process that runs the migration gave no answer in time")
            .hint("`crossfade status` says where it stands; no writer is held up longer than the deadline")),
    }
}

fn to_json(outcome: &run::Outcome) -> Result<Json, CliError> {
    serde_json::to_value(outcome).map_err(|error| CliError::failed(format!("the answer cannot be written: {error}")))
}

fn tell(spec: &Spec, direction: Direction, args: &SwitchArgs, answer: &Json) -> Result<(), CliError> {
    if args.json {
        output::json(answer)?;
    } else {
        output::print(&render(answer))?;
    }
    let is = |key: &str| answer.get(key).and_then(Json::as_bool).unwrap_or(false);
    let failing = failing(answer);
    if failing > 0 {
        let what = match args.dry_run {
            true => format!("a {direction} would be refused"),
            false => format!("the {direction} is refused"),
        };
        return Err(CliError::new(
            Exit::Refused,
            format!("{what}: {failing} of its guards say no; nobody was held up"),
        )
        .hint("each says above what would allow it"));
    }
    if is("switched") && !is("routed") {
        let why = answer.get("not_routed").and_then(Json::as_str).unwrap_or("not known");
        let side = direction.to();
        return Err(CliError::failed(format!(
            "the {side} side has the authority, and not everything after it is done: {why}"
        ))
        .hint(format!("crossfade {direction} {} does the rest", spec.file.display())));
    }
    Ok(())
}

/// How many of an answer's guards say no.
pub(super) fn failing(answer: &Json) -> usize {
    guards(answer).filter(|guard| guard.get("holds").and_then(Json::as_bool) == Some(false)).count()
}

fn guards(answer: &Json) -> impl Iterator<Item = &Json> {
    answer.get("guards").and_then(Json::as_array).into_iter().flatten()
}

/// The guards as a table, and what would allow those that say no.
pub(super) fn guards_text(answer: &Json) -> String {
    let text = |value: &Json, key: &str| value.get(key).and_then(Json::as_str).unwrap_or_default().to_owned();
    let mut table = output::Table::new(["guard", "", "seen", "wanted"]);
    let mut remedies = String::new();
    for guard in guards(answer) {
        let holds = guard.get("holds").and_then(Json::as_bool).unwrap_or(false);
        let verdict = if holds { "holds" } else { "NO" };
        table.row([text(guard, "guard"), verdict.to_owned(), text(guard, "seen"), text(guard, "wanted")]);
        if !holds {
            remedies.push_str(&format!("{}: {}\n", text(guard, "guard"), text(guard, "remedy")));
        }
    }
    let mut page = if guards(answer).next().is_some() { table.render() } else { String::new() };
    page.push_str(&remedies);
    page
}

fn render(answer: &Json) -> String {
    let text = |value: &Json, key: &str| value.get(key).and_then(Json::as_str).unwrap_or_default().to_owned();
    let mut page = guards_text(answer);
    let number = |value: &Json, key: &str| value.get(key).and_then(Json::as_u64).unwrap_or_default();
    if answer.get("switched").and_then(Json::as_bool) == Some(true) {
        page.push_str(&format!(
            "the {} side has the authority, epoch {}\n",
            text(answer, "authority"),
            number(answer, "epoch")
        ));
    }
    for sql in answer.get("sql").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str) {
        page.push_str(&format!("{}\n", sql.trim()));
    }
    if let Some(pause) = answer.get("pause") {
        let ms = |key: &str| number(pause, key) as f64 / 1000.0;
        page.push_str(&format!(
            "writers were held up for {:.1} ms: locks {:.1}, drain {:.1}, compare {:.1} ({} rows), other side {:.1}, commit {:.1}; {} tries at the locks\n",
            ms("total_us"),
            ms("locks_us"),
            ms("drain_us"),
            ms("verify_us"),
            number(pause, "rows_verified"),
            ms("prepare_us"),
            ms("commit_us"),
            number(pause, "tries")
        ));
    }
    page
}
