//! `cutover` and `approve`: asked of the process that runs the migration; where nobody does, this one runs it for as long as a
//! switch takes.

use super::{control::ask, folder};
use crate::{
    args::{ApproveArgs, CutoverArgs},
    error::{CliError, Exit},
    output, run,
    spec::{Span, Spec},
};
use crossfade_control::{Approval, Command};
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

/// Switches, or says why not.
pub(crate) async fn cutover(spec: &Spec, args: &CutoverArgs) -> Result<(), CliError> {
    whole(spec, "cutover")?;
    if spec.switch.is_none() {
        return Err(run::no_section(spec));
    }
    let in_place = crate::wiring::writes_beside(spec);
    if in_place && !args.dry_run {
        run::prepare_swap(spec).await?;
    }
    let answer = match folder::owner(spec)? {
        Some(_) => asked(spec, args).await,
        None => match run::settled(spec).await? {
            Some(outcome) => to_json(&outcome),
            None => run::while_followed(spec, args.json, Box::pin(asked(spec, args))).await,
        },
    };
    let answer = match answer {
        Ok(answer) => answer,
        // The run may have ended before its answer was through: then the row says what became of the switch.
        Err(error) if folder::owner(spec)?.is_none() => match run::settled(spec).await? {
            Some(outcome) => to_json(&outcome)?,
            None => return Err(error),
        },
        Err(error) => return Err(error),
    };
    let answer = match in_place && !args.dry_run { true => completed(spec, answer).await?, false => answer };
    tell(args, &answer)
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

/// Switches back, or says why not.
pub(crate) async fn failback(spec: &Spec, args: &CutoverArgs) -> Result<(), CliError> {
    whole(spec, "failback")?;
    if !crate::wiring::writes_beside(spec) {
        return Err(CliError::not_built("failback between two sides"));
    }
    let answer = to_json(&run::failback_within(spec, args.dry_run, args.deadline).await?)?;
    tell(args, &answer)
}

/// Only a process that does all of a migration can switch it.
fn whole(spec: &Spec, what: &str) -> Result<(), CliError> {
    match spec.part {
        None => Ok(()),
        Some(_) => Err(CliError::not_built(&format!(
            "{what} for a migration whose ingest and deliver are processes of their own"
        ))),
    }
}

async fn asked(spec: &Spec, args: &CutoverArgs) -> Result<Json, CliError> {
    let deadline = args.deadline.or(spec.switch.as_ref().map(|switch| switch.deadline));
    let deadline = deadline.map_or(BEYOND, |Span(deadline)| deadline + BEYOND);
    let body = json!({
        "who": folder::by_hand().who,
        "dry_run": args.dry_run,
        "deadline_ms": args.deadline.map(|Span(deadline)| deadline.as_millis() as u64),
    });
    let socket = crossfade_state::WorkFolder::socket_path(&spec.folder());
    let request = crossfade_observe::socket::request(&socket, hyper::Method::POST, "/command/cutover", Some(&body));
    match tokio::time::timeout(deadline, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(CliError::failed("the process that runs the migration gave no answer in time")
            .hint("`crossfade status` says where it stands; no writer is held up longer than the deadline")),
    }
}

fn to_json(outcome: &run::Outcome) -> Result<Json, CliError> {
    serde_json::to_value(outcome).map_err(|error| CliError::failed(format!("the answer cannot be written: {error}")))
}

fn tell(args: &CutoverArgs, answer: &Json) -> Result<(), CliError> {
    if args.json {
        output::json(answer)?;
    } else {
        output::print(&render(answer))?;
    }
    let is = |key: &str| answer.get(key).and_then(Json::as_bool).unwrap_or(false);
    let failing = guards(answer).filter(|guard| guard.get("holds").and_then(Json::as_bool) == Some(false)).count();
    if failing > 0 {
        let what = if args.dry_run { "the switch would be refused" } else { "the switch is refused" };
        return Err(CliError::new(
            Exit::Refused,
            format!("{what}: {failing} of its guards say no; nobody was held up"),
        )
        .hint("each says above what would allow it"));
    }
    if is("switched") && !is("routed") {
        let why = answer.get("not_routed").and_then(Json::as_str).unwrap_or("not known");
        return Err(CliError::failed(format!("the switch is made, and not everything after it is done: {why}"))
            .hint("the same command again does the rest"));
    }
    Ok(())
}

fn guards(answer: &Json) -> impl Iterator<Item = &Json> {
    answer.get("guards").and_then(Json::as_array).into_iter().flatten()
}

fn render(answer: &Json) -> String {
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
    let number = |value: &Json, key: &str| value.get(key).and_then(Json::as_u64).unwrap_or_default();
    if answer.get("switched").and_then(Json::as_bool) == Some(true) {
        let side = answer.get("side").and_then(Json::as_str).unwrap_or("new");
        page.push_str(&format!("the {side} side has the authority, epoch {}\n", number(answer, "epoch")));
    }
    for sql in answer.get("sql").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str) {
        page.push_str(&format!("{}\n", sql.trim()));
    }
    if let Some(pause) = answer.get("pause") {
        let ms = |key: &str| number(pause, key) as f64 / 1000.0;
        page.push_str(&format!(
            "writers were held up for {:.1} ms: locks {:.1}, drain {:.1}, new side {:.1}, commit {:.1}; {} tries at the locks\n",
            ms("total_us"),
            ms("locks_us"),
            ms("drain_us"),
            ms("prepare_us"),
            ms("commit_us"),
            number(pause, "tries")
        ));
    }
    page
}
