//! What the state holds of a run under way: how far both loops have come, and the fold of the log from which the next start
//! reads on. All of it is a cache, written beside the loops: never waited for by them.

use super::{session::Session, watcher::Watcher};
use crate::{commands::folder, error::CliError, event_log::AnyLog};
use crossfade_connector::SnapshotState;
use crossfade_control::Migration;
use crossfade_event::Cut;
use crossfade_log::EventLog;
use crossfade_pipeline::{Folds, SnapshotFold, Stop};
use crossfade_state::{Changes, Cursor, CursorKey, SledStore, StateStore};
use std::{sync::Arc, time::Duration};
use tokio::sync::Mutex;

/// How often the cursors are written, if they have moved.
const EVERY: Duration = Duration::from_secs(1);

/// Every how many times the fold is read on: while rows are being copied, not at all.
const FOLD_EVERY: u32 = 10;

/// Keeps the state of one run.
#[derive(Clone)]
pub(super) struct Keeper {
    state: SledStore,
    log: AnyLog,
    watcher: Arc<Watcher>,
    folds: Folds,
    kept: Arc<Mutex<Kept>>,
}

/// The fold of a log of which the last backfill may have been trimmed away: the journal still knows its number, and that it
/// ended, for a log is not trimmed before the sink has it. The next one counts on from there.
pub(crate) fn whole(mut fold: SnapshotFold, log: &impl EventLog, migration: &Migration) -> SnapshotFold {
    let is_trimmed = log.start() != Cut::start(log.partitions());
    if is_trimmed && fold.state.generation < migration.generation {
        fold.state = SnapshotState { generation: migration.generation, ended: true, ..SnapshotState::default() };
    }
    fold
}

/// What the state is known to hold.
#[derive(Default)]
struct Kept {
    deliver: Option<Cursor>,
    ingest: Option<Cursor>,
    fold: Option<SnapshotFold>,
}

impl Keeper {
    /// Begins with what the state holds from before.
    pub(super) fn new(session: &Session, watcher: Arc<Watcher>) -> Result<Self, CliError> {
        let (state, log) = (session.state.clone(), session.log.clone());
        let fold = SnapshotFold::kept(&state, log.id())?;
        let kept = fold.clone().map(Folds::starting_with).unwrap_or_default();
        let folds = Folds::starting_with(whole(kept.refreshed(&log)?, &log, &session.journal.migration()));
        let kept = Arc::new(Mutex::new(Kept { fold, ..Kept::default() }));
        Ok(Self { state, log, watcher, folds, kept })
    }

    /// The fold of the log that both loops share.
    pub(super) fn folds(&self) -> Folds {
        self.folds.clone()
    }

    /// Writes from time to time, until the loops stop.
    pub(super) async fn run(self, mut stop: Stop) {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for round in 1u32.. {
            tokio::select! {
                _ = tick.tick() => {}
                () = stop.requested() => return,
            }
            let with_fold = round.is_multiple_of(FOLD_EVERY) && !self.watcher.is_loading();
            if let Err(error) = self.keep(with_fold).await {
                // The store takes nothing more until it is opened anew; what it holds stays right, only older.
                tracing::warn!("the state could not be written and stays as it was: {error}");
                return;
            }
        }
    }

    /// Writes what has changed.
    pub(super) async fn keep(&self, with_fold: bool) -> Result<(), CliError> {
        let mut kept = self.kept.lock().await;
        let progress = self.watcher.progress.borrow().clone();
        let deliver = progress.map(|progress| Cursor { cut: progress.cut, position: progress.position });
        let tail = self.log.tail();
        let ingest = Some(Cursor { cut: tail.cut, position: tail.position });
        let fold = match with_fold {
            true => {
                let (folds, log) = (self.folds.clone(), self.log.clone());
                let folded = tokio::task::spawn_blocking(move || folds.refreshed(&log)).await;
                Some(folded.map_err(|error| CliError::failed(format!("folding the log: {error}")))??)
            }
            false => None,
        };
        let mut changes = match &fold {
            Some(fold) => fold.changes(self.log.id(), kept.fold.as_ref()),
            None => Changes::new(),
        };
        for (name, before, now) in [(folder::DELIVER, &kept.deliver, &deliver), (folder::INGEST, &kept.ingest, &ingest)]
        {
            if let Some(now) = now.as_ref().filter(|now| before.as_ref() != Some(now)) {
                changes = changes.put(&CursorKey::new(name), now);
            }
        }
        self.state.commit(changes).await?;
        // Only now: what the store did not take is written the next time.
        *kept = Kept { deliver, ingest, fold: fold.or_else(|| kept.fold.take()) };
        Ok(())
    }
}

#[cfg(test)]
mod tests;
