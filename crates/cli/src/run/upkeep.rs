//! While both sides are compared, somebody must bring the target up to the source: the process that runs the migration,
//! or, where nobody does, this one, by the same code as `crossfade run`.

use super::{
    follower::{Follower, Origin},
    roles,
    session::Session,
    supervise::Running,
};
use crate::{commands::folder, error::CliError, spec::Spec};
use crossfade_control::Overlay;
use crossfade_observe::socket;
use crossfade_pipeline::stop_channel;
use crossfade_state::WorkFolder;
use futures::future::LocalBoxFuture;
use std::time::Duration;

/// Runs `work` while the target of `spec` follows its source; tells `work` whether it is this process that sees to it, which
/// has then caught up.
pub(crate) fn while_followed<'a, T: 'a>(
    spec: &'a Spec,
    quiet: bool,
    work: LocalBoxFuture<'a, Result<T, CliError>>,
) -> LocalBoxFuture<'a, Result<T, CliError>> {
    Box::pin(async move {
        if spec.part.is_some() {
            // Two processes do, and the other one may be on another machine.
            roles::are_running(spec)?;
            return work.await;
        }
        let folder = folder::existing(spec)?;
        let origin = Origin::read(&folder)?.map(|origin| origin.load()).transpose()?;
        match (folder::owner(spec)?, origin) {
            (Some(_), None) => work.await,
            (None, None) => while_running(spec, quiet, work).await,
            // Whoever follows the other log can do so only as far as that one is followed itself.
            (Some(_), Some(from)) => while_followed(&from, quiet, work).await,
            (None, Some(from)) => while_followed(&from, quiet, Box::pin(while_following(&from, spec, work))).await,
        }
    })
}

/// Whether a process sees to it already.
pub(super) fn is_followed(spec: &Spec) -> Result<bool, CliError> {
    Ok(spec.part.is_some() || folder::owner(spec)?.is_some())
}

/// How long an answer may take that a run has given before its end.
const LAST_ANSWER: Duration = Duration::from_secs(2);

/// Runs the migration beside `work`, which begins once it has caught up.
async fn while_running<T>(
    spec: &Spec,
    quiet: bool,
    work: LocalBoxFuture<'_, Result<T, CliError>>,
) -> Result<T, CliError> {
    let session = Session::open(spec).await?;
    if let Some(Overlay::Paused { by, reason }) = session.journal.migration().overlay {
        return Err(CliError::refused(format!(
            "the migration is paused by {by} ({reason}), so the target stands where it is and cannot be compared with a source that moves"
        ))
        .hint(format!("crossfade resume {}", spec.file.display())));
    }
    let control = WorkFolder::socket_path(session.folder.dir());
    let running = Running::start(session, quiet, None).await?;
    let mut run = Box::pin(running.until(false));
    let ask = async |route: &str| socket::request(&control, hyper::Method::POST, route, None).await;
    let mut work = Box::pin(async {
        ask("/wait/caught-up").await?;
        work.await
    });
    let outcome = tokio::select! {
        biased;
        outcome = &mut work => outcome,
        // An answer by which the run ends, as after a switch, may still be on its way.
        ended = &mut run => {
            let stopped = || CliError::failed("the run has stopped before it was done");
            ended?;
            return tokio::time::timeout(LAST_ANSWER, work).await.unwrap_or_else(|_| Err(stopped()));
        }
    };
    tokio::select! {
        ended = &mut run => ended?,
        asked = ask("/stop") => {
            match asked {
                // It has ended by itself meanwhile.
                Err(socket::SocketError::NotRunning | socket::SocketError::Failed(_)) => {}
                asked => drop(asked?),
            }
            run.await?;
        }
    }
    outcome
}

/// Follows another migration's log beside `work`, which begins once the sink has all that is in it now.
async fn while_following<T>(
    from: &Spec,
    into: &Spec,
    work: LocalBoxFuture<'_, Result<T, CliError>>,
) -> Result<T, CliError> {
    let mut follower = Follower::open(from, into, None).await?;
    let (stopper, stop) = stop_channel();
    Box::pin(follower.catch_up(stop.clone())).await?;
    let mut following = Box::pin(follower.follow(stop));
    let outcome = tokio::select! {
        ended = &mut following => return Err(ended.err().unwrap_or_else(|| CliError::failed("the replay has ended"))),
        outcome = work => outcome,
    };
    stopper.stop();
    following.await?;
    outcome
}
