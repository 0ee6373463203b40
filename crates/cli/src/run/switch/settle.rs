//! What became of a switch, by the row's word; and what is left to do of one that has happened.

use super::Outcome;
use crate::{
    error::{CliError, Exit},
    registry::{self, AnySwitchEnd},
    run::{control::Shared, swap},
    spec::{DEADLINE_MAX, SinkSpec, SourceSpec, Spec},
    wiring,
};
use crossfade_connector::Verdict;
use crossfade_connector::switch::Written;
use crossfade_control::{By, Command, Journal};
use crossfade_event::Side;
use crossfade_log::embedded::Embedded;
use std::{
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

/// What the row says of the switch that the journal meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    /// None was meant.
    Nothing,
    /// It has happened.
    Moved,
    /// It has not, and will not.
    TakenBack,
}

/// Sets the journal right by the row, if it stands within a switch; makes sure first that the switch cannot happen any more.
/// The row that counts is that of the side which had the authority when the switch was meant.
pub(crate) async fn settle(
    old: &mut AnySwitchEnd,
    new: &mut AnySwitchEnd,
    journal: &Journal<Embedded>,
    by: &By,
) -> Result<Settled, CliError> {
    let migration = journal.migration();
    let Some(intent) = migration.intent.filter(|_| migration.phase.is_switching()) else {
        return Ok(Settled::Nothing);
    };
    let holder = match intent.direction.from() {
        Side::Old => old,
        Side::New => new,
    };
    let before = intent.epoch.saturating_sub(1);
    match holder.take_back(before).await? {
        Some(Written { side, epoch }) if side == intent.direction.to() && epoch == intent.epoch => {
            journal.command(Command::SwitchedOver { epoch }, by).await?;
            Ok(Settled::Moved)
        }
        Some(Written { side, epoch }) if side == intent.direction.from() && epoch >= intent.epoch => {
            let why = "it was not completed before its deadline, or its process ended".to_owned();
            journal.command(Command::TakenBack { epoch, why }, by).await?;
            Ok(Settled::TakenBack)
        }
        other => {
            let found = other.map_or_else(
                || "is missing".to_owned(),
                |written| format!("says side {}, epoch {}", written.side, written.epoch),
            );
            Err(CliError::new(
                Exit::Lost,
                format!(
                    "the row of crossfade.authority {found}, and the journal meant a {} to epoch {}",
                    intent.direction, intent.epoch
                ),
            )
            .hint("somebody else has written it, or the database was put back: restore the row, then ask again"))
        }
    }
}

/// Tells those who have not been told yet: the row of the side that has the authority now, whose fence goes with that, then the
/// spec's command.
pub(crate) async fn complete(
    spec: &Spec,
    old: &mut AnySwitchEnd,
    new: &mut AnySwitchEnd,
    journal: &Journal<Embedded>,
    by: &By,
) -> Outcome {
    let authority = journal.migration().authority;
    let told = if authority.to_route { tell(spec, old, new, journal, by).await } else { Ok(()) };
    Outcome {
        switched: true,
        authority: authority.side,
        epoch: authority.epoch,
        guards: Vec::new(),
        pause: None,
        routed: told.is_ok(),
        not_routed: told.err().map(|error| error.message),
        sql: Vec::new(),
    }
}

async fn tell(
    spec: &Spec,
    old: &mut AnySwitchEnd,
    new: &mut AnySwitchEnd,
    journal: &Journal<Embedded>,
    by: &By,
) -> Result<(), CliError> {
    let authority = journal.migration().authority;
    if wiring::writes_beside(spec) {
        swap::finish(spec, authority.side).await?;
    }
    // One row for both: it was written by the switch itself, and no other fence is in the way.
    if !are_one(old, new).await {
        let holder = match authority.side {
            Side::Old => &mut *old,
            Side::New => &mut *new,
        };
        let_in(holder, Written { side: authority.side, epoch: authority.epoch }).await?;
    }
    if let Some(route) = spec.switch.as_ref().and_then(|switch| switch.route.as_deref()) {
        let status = tokio::process::Command::new("sh")
            .arg("-c")
            .arg(route)
            .env("CROSSFADE_MIGRATION", spec.name.as_str())
            .env("CROSSFADE_SIDE", authority.side.to_string())
            .env("CROSSFADE_EPOCH", authority.epoch.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .status()
            .await
            .map_err(|error| CliError::io("running the command of \"route\" in [switch]", &error))?;
        if !status.success() {
            return Err(CliError::failed(format!("the command of \"route\" in [switch] ended with {status}")));
        }
    }
    journal.command(Command::Routed { epoch: authority.epoch }, by).await?;
    // Whoever writes the new side is no foreigner any more. What cannot be taken away while they do goes at the clean-up.
    if authority.side == Side::New {
        match tokio::time::timeout(UNWATCH_LIMIT, new.unwatch()).await {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => tracing::info!("the watch over the new side stays until the clean-up: {failure}"),
            Err(_) => tracing::info!("the watch over the new side stays until the clean-up: its tables are busy"),
        }
    }
    // Within tables the old columns are level at every moment.
    if wiring::writes_beside(spec)
        && authority.side == Side::New
        && let Err(refused) = journal.command(Command::Soak, by).await
    {
        tracing::warn!("the journal does not take that the old columns are level: {refused}");
    }
    Ok(())
}

/// Whether both sides are one database. One that does not answer is not the one that does.
async fn are_one(old: &mut AnySwitchEnd, new: &mut AnySwitchEnd) -> bool {
    matches!((old.identity().await, new.identity().await), (Ok(one), Ok(other)) if one == other)
}

/// Until this is done, nobody may be able to write anywhere: it is tried for as long as what is left of a switch that was cut off
/// can be in the way, which is its deadline.
async fn let_in(holder: &mut AnySwitchEnd, written: Written) -> Result<(), CliError> {
    let until = Instant::now() + DEADLINE_MAX;
    loop {
        match holder.follow(written).await {
            Err(failure)
                if matches!(failure.verdict, Verdict::Retry { .. } | Verdict::Reconnect) && Instant::now() < until =>
            {
                tracing::warn!("the side that has the authority is not open yet: {failure}");
                tokio::time::sleep(OPEN_AGAIN_AFTER).await;
            }
            opened => return Ok(opened?),
        }
    }
}

/// So long the watch over the new side is tried to be taken away right after a switch.
const UNWATCH_LIMIT: Duration = Duration::from_secs(2);

const OPEN_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// How often notes of other writers of the target that say nothing more are let go.
const TIDY_EVERY: Duration = Duration::from_secs(600);

/// How long to wait before a server that could not be reached is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Makes the flag table on both sides as soon as a spec speaks of a switch, so that applications can look at it long before.
/// What cannot be made is said once; a cutover asks again, and refuses.
pub(crate) async fn install(shared: Arc<Shared>) {
    let mut closed = shared.closed();
    let work = async {
        while let Err(error) = install_once(&shared.spec, shared.journal.migration().authority.epoch).await {
            if !error.passing {
                tracing::warn!("crossfade.authority could not be made: {error}");
                return;
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
        // Others may write the target for as long as they like; what is noted of it stays small.
        while let Ok((_, mut new)) = registry::postgres_switch_ends(&shared.spec, "a watch over the target") {
            tokio::time::sleep(TIDY_EVERY).await;
            if let Err(failure) = new.tidy_watch().await {
                tracing::debug!("notes of other writers were not let go: {failure}");
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = closed.wait() => {}
    }
}

async fn install_once(spec: &Spec, epoch: u64) -> Result<(), CliError> {
    let (mut old, mut new) = registry::switch_ends(spec)?;
    old.install(epoch).await?;
    Ok(new.install(epoch).await?)
}

/// Takes away what watches the target, before what stays there is left to its owners.
pub(crate) async fn unwatch(spec: &Spec) -> Result<(), CliError> {
    match (&spec.source, &spec.sink) {
        (SourceSpec::Postgres(_), SinkSpec::Postgres(_)) => Ok(registry::switch_ends(spec)?.1.unwatch().await?),
        _ => Ok(()),
    }
}

fn is_switchable(spec: &Spec) -> bool {
    let ends = (&spec.source, &spec.sink);
    matches!(ends, (SourceSpec::Postgres(_), SinkSpec::Postgres(_)) | (SourceSpec::Sqlite(_), SinkSpec::Sqlite(_)))
}

/// After an undo: what a failback has left on the new side's tables refuses nobody any more. They are no copy now, and belong to
/// whoever had them before.
pub(crate) async fn let_go(spec: &Spec) -> Result<(), CliError> {
    if !is_switchable(spec) || wiring::writes_beside(spec) || spec.views.is_some() {
        return Ok(());
    }
    let (_, mut new) = registry::switch_ends(spec)?;
    Ok(new.lift().await?)
}

/// Takes away what a switch made on both servers, before a wipe.
pub(crate) async fn forget(spec: &Spec) -> Result<(), CliError> {
    if !is_switchable(spec) {
        return Ok(());
    }
    let (mut old, mut new) = registry::switch_ends(spec)?;
    if wiring::writes_beside(spec) || spec.views.is_some() {
        swap::forget(spec).await?;
    }
    crate::run::reverse::give_up(spec, &mut new).await;
    for side in [&mut old, &mut new] {
        side.lift().await?;
        side.forget().await?;
    }
    Ok(())
}
