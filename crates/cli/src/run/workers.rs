//! `run --role transform`: a worker, which makes of what is in the log what deliver would make of it.
//!
//! ```text
//!  <base>/transform-1/, transform-2/ …     a lock and `worker.json`, one for each worker on this machine
//! ```
//! A worker keeps nothing that would be missed: what it must agree on with the others is in the log's head, and where it
//! goes on stands in the topic of what was made.

use super::{roles, session::routes, supervise::Signals};
use crate::{
    args::RunArgs,
    commands::folder,
    error::CliError,
    event_log::AnyLog,
    spec::{LogSpec, Spec},
};
use crossfade_observe::WorkerStatus;
use crossfade_state::WorkFolder;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

/// More on one machine are refused: each takes the work of one process.
const MANY: u32 = 100;

fn dir_of(base: &Path, number: u32) -> PathBuf {
    base.join(format!("transform-{number}"))
}

/// The folders of the workers that have run here.
pub(super) fn folders(base: &Path) -> Result<Vec<PathBuf>, CliError> {
    Ok((1..=MANY).map(|number| dir_of(base, number)).filter(|dir| dir.is_dir()).collect())
}

/// The workers that run here, as they say themselves.
pub(crate) fn here(spec: &Spec) -> Result<Vec<WorkerStatus>, CliError> {
    let mut workers = Vec::new();
    for dir in folders(&spec.base())? {
        if WorkFolder::owner(&dir)?.is_none() {
            continue;
        }
        // One that begins has said nothing yet.
        let Ok(text) = fs::read(status_path(&dir)) else { continue };
        workers.extend(serde_json::from_slice::<WorkerStatus>(&text).ok());
    }
    Ok(workers)
}

fn status_path(dir: &Path) -> PathBuf {
    dir.join("worker.json")
}

/// A folder that no other worker has.
fn own_folder(base: &Path) -> Result<WorkFolder, CliError> {
    for number in 1..=MANY {
        match WorkFolder::lock(dir_of(base, number)) {
            Err(error) if error.is_locked() => {}
            other => return Ok(other?),
        }
    }
    Err(CliError::refused(format!("{MANY} workers run here already: {}", base.display())))
}

fn refuse(spec: &Spec, args: &RunArgs) -> Result<(), CliError> {
    let refused = |what: &str| {
        CliError::misconfigured(format!("{what} cannot be said to --role transform"))
            .hint("say it to a run that does all of the migration")
    };
    if args.dry_run {
        return Err(refused("--dry-run"));
    }
    if args.until.is_some() {
        return Err(refused("--until"));
    }
    if args.limit.is_some() {
        return Err(refused("--limit"));
    }
    if let LogSpec::Embedded(_) = spec.log {
        return Err(CliError::misconfigured(
            "--role transform needs the log on Kafka: the one on disk is for one process that does all of it",
        )
        .hint("write kind = \"kafka\" in [log], or run it without --role"));
    }
    if !spec.has_workers() {
        return Err(CliError::misconfigured(format!(
            "{} has no workers: whoever delivers transforms",
            spec.file.display()
        ))
        .hint("write transform = \"workers\" into [log] before the migration begins"));
    }
    if WorkFolder::journal_path(&spec.base()).is_dir() {
        return Err(CliError::refused(format!(
            "the migration {} was begun by one process that does all of it: its journal is in {}",
            spec.name,
            spec.base().display()
        ))
        .hint(format!("crossfade run {}, without --role; or take another name", spec.file.display())));
    }
    Ok(())
}

/// Works until told to stop, or until it cannot go on.
pub(super) async fn work(spec: &Spec, args: &RunArgs) -> Result<(), CliError> {
    refuse(spec, args)?;
    let mut signals = Signals::listen()?;
    let own = own_folder(&spec.base())?;
    let say = |status: WorkerStatus| write(own.dir(), status);
    say(WorkerStatus::default())?;
    let waiting = |waits: String| say(WorkerStatus { waiting: Some(waits), ..WorkerStatus::default() });
    let roles::Agreed { plan, secret, .. } = tokio::select! {
        agreed = roles::agreed_by(spec, waiting) => agreed?,
        _ = signals.next() => return Ok(()),
    };
    let log = AnyLog::follow(spec)?;
    // The epoch is of those that write the sink.
    let routes = routes(spec, &plan, secret, 0)?;
    let (stop, dir) = (Arc::new(AtomicBool::new(false)), own.dir().to_owned());
    let told = stop.clone();
    let mut work = tokio::task::spawn_blocking(move || {
        log.transform(routes, &told, &|status| {
            if let Err(error) = write(&dir, status) {
                tracing::warn!("{error}");
            }
        })
    });
    loop {
        tokio::select! {
            ended = &mut work => return ended.map_err(|error| CliError::failed(format!("the work ended badly: {error}")))?,
            second = signals.next(), if !signals.over => {
                stop.store(true, Relaxed);
                if second {
                    // Everything is safe to drop at any moment: what was begun is aborted by whoever comes next.
                    std::process::exit(0);
                }
            }
        }
    }
}

/// Says how it stands.
fn write(dir: &Path, status: WorkerStatus) -> Result<(), CliError> {
    let now = folder::by_hand().at_us;
    let at = jiff::Timestamp::from_microsecond(now).map_or_else(|_| String::new(), |at| at.to_string());
    let status = WorkerStatus { pid: std::process::id(), at, ..status };
    let path = status_path(dir);
    let beside = path.with_extension("new");
    let text =
        serde_json::to_vec(&status).map_err(|error| CliError::failed(format!("telling how it stands: {error}")))?;
    fs::write(&beside, text)
        .and_then(|()| fs::rename(&beside, &path))
        .map_err(|error| CliError::io(format!("writing {}", path.display()), &error))
}
