//! `replay`: applies the log again. Into the same sink it heals; into another one it builds anew.

use super::{
    adopted,
    ends::replay_into,
    follower::{Follower, Stand},
    place::cut_of,
    retired::refuse_over_failback,
    roles::needs_deliver,
    session::Session,
    supervise::Signals,
};
use crate::{
    args::{self, ReplayArgs},
    commands::folder,
    error::CliError,
    event_log::AnyLog,
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
    needs_deliver(spec, "replay")?;
    let report = if folder::owner(spec)?.is_some() {
        let path = WorkFolder::socket_path(&folder::existing(spec)?);
        let body = json!({ "from": from.to_string() });
        socket::request(&path, hyper::Method::POST, "/command/replay", Some(&body)).await?
    } else {
        folder::existing(spec)?;
        let session = Session::open(spec).await?;
        let cut = cut_of(from, &session.log, &session.journal.migration())?;
        refuse_over_failback(spec, &cut)?;
        session.journal.command(Command::Note { what: format!("replay from {from}") }, &session.by).await?;
        let mut sink = wiring::sink(spec)?;
        heal_json(&replay_into(&session.log, &session.routes, &mut sink, &cut).await?)
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
    let log = AnyLog::look(spec)?;
    let place = cut_of(&args.from, &log, &checkpoints_of(spec)?)?;
    if !args.base && place != log.start() {
        return Err(CliError::refused(
            "a new sink can only be built from the beginning of a complete copy in the log: a later place would miss what came before it",
        )
        .hint("say --from offset:0; or put a copy into the sink that was right at that place, and say --base"));
    }
    drop(log);
    refuse_over_failback(spec, &place)?;
    if !adopted::of(&spec.base())?.is_empty() {
        return Err(CliError::not_built(&format!(
            "a replay of {} into another sink, as rows that were born on its new side keep keys that {} would not make,",
            spec.name, into.name
        )));
    }
    let mut follower = Box::pin(Follower::open(spec, into, args.base.then_some(&place))).await?;
    let (stopper, stop) = stop_channel();
    let replay = async {
        let stand = follower.catch_up(stop.clone()).await?;
        if args.follow { follower.follow(stop.clone()).await } else { Ok(stand) }
    };
    let mut replay = Box::pin(replay);
    let mut signals = Signals::listen()?;
    let (stand, stopped) = tokio::select! {
        ended = &mut replay => (ended?, false),
        _ = signals.next() => {
            stopper.stop();
            (replay.await?, true)
        }
    };
    if args.json {
        let (upto, end) = (stand.upto.to_string(), stand.end.to_string());
        output::json(&json!({ "into": into.name.as_str(), "upto": upto, "end": end, "complete": stand.is_whole() }))?;
    } else if stand.is_whole() {
        let upto = &stand.upto;
        output::line(format!("replayed the log of {} into {} up to offset {upto}", spec.name, into.name))?;
    }
    match unfinished(spec, into, &stand, stopped) {
        // Whoever follows is always ended before the end; the next time it goes on.
        Some(why) if args.follow && !args.json => output::line(why.message),
        Some(why) if !args.follow => Err(why),
        _ => Ok(()),
    }
}

/// Why the other sink does not have all of the log.
fn unfinished(spec: &Spec, into: &Spec, stand: &Stand, stopped: bool) -> Option<CliError> {
    let Stand { upto, end, in_copy } = stand;
    let (spec_file, into_name) = (spec.file.display(), &into.name);
    if stand.is_whole() {
        return None;
    }
    let filled = if *in_copy { "is still being filled" } else { "does not have all of it" };
    Some(if stopped {
        CliError::failed(format!(
            "stopped while replaying the log of {}: {into_name} stands at offset {upto} of {end}, and {filled}",
            spec.name
        ))
        .hint("say the same again: it goes on from there")
    } else {
        CliError::failed(format!(
            "the log of {} ends in the middle of a copy of the source: {into_name} stands at offset {upto} of {end}, and {filled}",
            spec.name
        ))
        .hint(format!(
            "let `crossfade run {spec_file}` finish the copy, then say the same again; or say --follow, which waits for it"
        ))
    })
}

/// What the journal says, also beside the process that writes it.
fn checkpoints_of(spec: &Spec) -> Result<Migration, CliError> {
    let path = WorkFolder::journal_path(&folder::existing(spec)?);
    Ok(Journal::open(Embedded::open_read_only(path)?, None)?.migration())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{error::Exit, run::shop::Shop};
    use crossfade_event::{Cut, Offset};

    #[test]
    fn what_is_not_whole_is_no_success_and_says_what_to_do() {
        let shop = Shop::new();
        let (from, into) = (shop.spec("first"), shop.spec("second"));
        let at = |upto: u64, in_copy| Stand { upto: Cut::single(Offset(upto)), end: Cut::single(Offset(9)), in_copy };
        assert_eq!(unfinished(&from, &into, &at(9, false), false), None);
        let said = |stand: Stand, stopped| unfinished(&from, &into, &stand, stopped).unwrap();
        let copying = said(at(9, true), false);
        assert_eq!(copying.exit, Exit::Failed);
        assert!(copying.message.contains("first ends in the middle of a copy"), "{copying}");
        assert!(copying.message.contains("second stands at offset 9 of 9, and is still being filled"), "{copying}");
        assert!(copying.hint.unwrap().contains("--follow"));
        let stopped = said(at(4, false), true);
        assert!(stopped.message.contains("stands at offset 4 of 9, and does not have all of it"), "{stopped}");
        assert!(stopped.hint.unwrap().contains("goes on from there"));
    }
}
