//! A sink that is filled from another migration's log: built by `replay --into`, and brought up to date the same way
//! later, for it has no log of its own.

use super::{
    base,
    plan_file::{PlanFile, keep_secret, secret_id, secret_of, spec_hash, write_whole},
    roles,
    session::routes,
};
use crate::{
    commands::folder,
    error::{CliError, Exit},
    event_log::AnyLog,
    registry::AnySink,
    spec::Spec,
    wiring,
};
use crossfade_connector::{Progress, Sink, Stage};
use crossfade_control::Command;
use crossfade_event::Cut;
use crossfade_log::EventLog;
use crossfade_pipeline::{
    DeliverOptions, Ending, Folds, Routes, Scratch, SnapshotFold, Stop, Watch, deliver, stop_channel, valve,
};
use crossfade_state::WorkFolder;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::sync::Notify;

const FORMAT: u32 = 1;

/// How often the other log is looked at for more.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// And at most, while the log cannot be reached.
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(10);

/// How long, with everything applied that is in the log, the rest of a backfill is waited for before the log is opened anew.
const OPEN_AGAIN: Duration = Duration::from_secs(2);

/// Whose log a sink is filled from; kept in the work folder of the migration that has the sink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    format: u32,
    /// The other migration's spec.
    spec: PathBuf,
    /// Whether the sink held a copy already, which somebody else made.
    base: bool,
}

impl Origin {
    fn path(folder: &Path) -> PathBuf {
        folder.join("replayed-from.json")
    }

    /// Reads it; `None` for a migration that has a source of its own.
    pub(super) fn read(folder: &Path) -> Result<Option<Self>, CliError> {
        let path = Self::path(folder);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(CliError::io(format!("reading {}", path.display()), &error)),
        };
        let origin: Self = serde_json::from_str(&text).map_err(|error| {
            CliError::new(Exit::Lost, format!("{} is damaged: {error}", path.display()))
                .hint("run the same `crossfade replay --into` again; it writes the file anew")
        })?;
        if origin.format > FORMAT {
            return Err(CliError::new(Exit::Lost, format!("{} has format {}", path.display(), origin.format))
                .hint("use the newer crossfade that wrote it"));
        }
        Ok(Some(origin))
    }

    /// The other migration's spec.
    pub(super) fn load(&self) -> Result<Spec, CliError> {
        let spec = Spec::load(&self.spec).map_err(|error| {
            let error = CliError::from(error);
            let message = format!("the spec from whose log this sink was built cannot be used: {}", error.message);
            CliError { message, ..error }
        })?;
        Ok(roles::found(&spec))
    }

    /// Refuses what only a migration with a source of its own can do.
    pub(super) fn refuse(folder: &Path, spec: &Spec) -> Result<(), CliError> {
        let Some(origin) = Self::read(folder)? else { return Ok(()) };
        let (from, into) = (origin.spec.display(), spec.file.display());
        Err(CliError::refused(format!(
            "the sink of {} is filled from the log that {from} has, not from a source of its own",
            spec.name
        ))
        .hint(format!("crossfade replay {from} --from start --into {into} --follow")))
    }

    fn write(folder: &Path, spec: &Spec, base: bool) -> Result<(), CliError> {
        let path = fs::canonicalize(&spec.file)
            .map_err(|error| CliError::io(format!("finding {}", spec.file.display()), &error))?;
        let text = serde_json::to_vec(&Self { format: FORMAT, spec: path, base })
            .map_err(|error| CliError::failed(format!("writing where the replay came from: {error}")))?;
        write_whole(&Self::path(folder), &text)
    }
}

/// Where a sink stands that was filled from a log, by its own word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stand {
    /// Up to where it has the log.
    pub(super) upto: Cut,
    /// Where the log ended when it was looked at.
    pub(super) end: Cut,
    /// It is being filled: of some tables it holds a part.
    pub(super) in_copy: bool,
}

impl Stand {
    /// It has all of the log.
    pub(super) fn is_whole(&self) -> bool {
        !self.in_copy && self.upto.covers(&self.end)
    }
}

/// Fills a sink from another migration's log. Owns the work folder of the sink's migration.
pub(super) struct Follower {
    from: Spec,
    sink: AnySink,
    routes: Routes,
    folds: Folds,
    /// Held as long as the sink is written.
    _own: WorkFolder,
}

/// Tells when all of the log that there is has been applied.
#[derive(Debug, Default)]
struct AtTail(Notify);

impl Watch for AtTail {
    fn at_tail(&self, _progress: &Progress) {
        self.0.notify_one();
    }
}

/// Without one, an empty sink would wait for it for ever.
fn holds_a_whole_copy(log: &AnyLog, from: &Spec, fold: &SnapshotFold) -> Result<(), CliError> {
    let generation = fold.backfills.first().map(|begun| begun.backfill.generation);
    if log.start() != Cut::start(log.partitions()) && generation != Some(1) {
        return Err(CliError::refused(format!(
            "the log of {} no longer holds a whole copy of the source: its beginning was trimmed away",
            from.name
        ))
        .hint("put a copy of a sink that it filled into the new one, and say --base; or keep more of the log (`[log] retention`)"));
    }
    if generation.is_none() || (fold.backfills.len() == 1 && !fold.state.ended) {
        return Err(CliError::refused(format!(
            "the log of {} does not hold a whole copy of the source yet",
            from.name
        ))
        .hint(format!("let `crossfade run {}` finish its first copy, then say this again", from.file.display())));
    }
    Ok(())
}

impl Follower {
    /// Takes the sink's own folder and plans there, unless that was done before. With `base`, the sink goes on from a copy
    /// that it holds, right at that place or later. Refused, nothing has been written.
    pub(super) async fn open(from: &Spec, into: &Spec, base: Option<&Cut>) -> Result<Self, CliError> {
        let from_folder = folder::base(from)?;
        let Some(plan) = PlanFile::read(&from_folder)? else {
            return Err(CliError::refused(format!(
                "the migration {} has not begun: there is nothing to replay",
                from.name
            )));
        };
        let own = roles::take_folder(into)?;
        // The same secret, so that derived keys are the same in every sink.
        let secret = secret_of(&from_folder)?;
        let before = PlanFile::read(own.dir())?;
        if let Some(before) = &before {
            before.check(into)?;
        }
        let plan = before.unwrap_or_else(|| PlanFile::unsaved(into, plan.catalog));
        let mut sink = wiring::sink(into)?;
        let folds = Folds::default();
        let log = AnyLog::look(from)?;
        let found = match (sink.progress().await?, base) {
            (Some(progress), _) if progress.stage == Stage::Streaming => None,
            (None, Some(place)) => {
                let routes = routes(into, &plan, secret.clone(), 0)?;
                Some(base::examine(&log, from, into, place, &routes).await?)
            }
            _ => {
                holds_a_whole_copy(&log, from, &folds.refreshed(&log)?)?;
                None
            }
        };
        keep_secret(own.dir(), &secret)?;
        let plan = PlanFile::write(own.dir(), into, plan.catalog)?;
        let (journal, by) = (folder::journal(&own)?, folder::by_hand());
        let on_a_copy = base.is_some() || Origin::read(own.dir())?.is_some_and(|origin| origin.base);
        Origin::write(own.dir(), from, on_a_copy)?;
        let planned = Command::Plan { spec_hash: spec_hash(into), secret_id: secret_id(&secret) };
        for command in [planned, Command::RaiseEpoch, Command::Expand, Command::StartCapture] {
            journal.command(command, &by).await?;
        }
        journal.command(Command::Note { what: format!("replay from the log of {}", from.name) }, &by).await?;
        let routes = routes(into, &plan, secret, journal.migration().epoch)?;
        let mut routes = routes.with_scratch(Scratch::new(own.dir().join("lookups")));
        if on_a_copy {
            // Its rows are there on purpose; what is overwritten of them is kept for undo.
            routes = routes.into_existing();
        }
        if let Some(progress) = found {
            tracing::info!(offset = %progress.cut, "the sink goes on from the copy that it holds");
            base::adopt(&log, progress, &routes, &mut sink).await?;
        }
        Ok(Self { from: from.clone(), sink, routes, folds, _own: own })
    }

    /// Applies what is in the log now.
    pub(super) async fn catch_up(&mut self, stop: Stop) -> Result<Stand, CliError> {
        self.apply(&AnyLog::look(&self.from)?, stop).await
    }

    async fn apply(&mut self, log: &AnyLog, mut stop: Stop) -> Result<Stand, CliError> {
        let fold = self.folds.refreshed(log)?;
        let tail = log.tail().cut;
        let options =
            DeliverOptions { until: Some(tail.clone()), folds: self.folds.clone(), ..DeliverOptions::new(None) };
        let (stopper, own_stop) = stop_channel();
        let (_handle, mut open) = valve();
        let tail_seen = AtTail::default();
        let mut delivering =
            Box::pin(deliver(log, &self.routes, &mut self.sink, &options, &tail_seen, &mut open, own_stop));
        // However long it takes to prepare, to rebuild the lookups or to commit: only then is there nothing left to do.
        let waited_in_vain = async {
            tail_seen.0.notified().await;
            tokio::time::sleep(OPEN_AGAIN).await;
        };
        let ended = tokio::select! {
            ended = &mut delivering => Some(ended?),
            () = stop.requested() => None,
            // What this handle shows of a backfill under way does not grow.
            () = waited_in_vain, if !fold.state.ended => None,
        };
        let ending = match ended {
            Some(ending) => ending,
            None => {
                stopper.stop();
                (&mut delivering).await?
            }
        };
        drop(delivering);
        if ending == Ending::Reached {
            return Ok(Stand { end: tail.clone(), upto: tail, in_copy: false });
        }
        let progress = self.sink.progress().await?;
        let in_copy = progress.as_ref().is_none_or(|progress| progress.stage == Stage::Loading);
        let upto = progress.map_or_else(|| log.start(), |progress| progress.cut);
        Ok(Stand { end: tail, upto, in_copy })
    }

    /// Follows the log until told to stop.
    pub(super) async fn follow(&mut self, mut stop: Stop) -> Result<Stand, CliError> {
        let mut applied: Option<Stand> = None;
        let mut log = AnyLog::follow(&self.from)?;
        let mut pause = LOOK_AGAIN;
        loop {
            let tail = log.tail().cut;
            // A session asks and prepares the sink: none is begun while nothing has come.
            let stand = match applied.take().filter(|stand| stand.end == tail) {
                Some(stand) => stand,
                None => Box::pin(self.apply(&log, stop.clone())).await?,
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => applied = Some(stand),
                () = stop.requested() => return Ok(stand),
            }
            match log.looked_again(&self.from) {
                Ok(()) => pause = LOOK_AGAIN,
                Err(error) if error.passing => {
                    pause = (pause * 2).min(LOOK_AGAIN_MAX);
                    tracing::warn!(wait_ms = pause.as_millis() as u64, "{error}; looking again");
                }
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests;
