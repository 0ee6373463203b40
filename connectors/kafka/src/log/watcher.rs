//! Looks after the log beside its work: writes consumers' places, tells tools how far the sink has come, sees that the topics
//! are still the same, and warns before the broker drops what somebody still needs.

use super::{
    lag::Lag,
    meta::{Notes, read_on},
    place::near,
    processes::Telling,
    shared::{Delivers, Shared, lock},
    topics,
};
use crossfade_event::Partition;
use crossfade_log::LogError;
use std::{
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// How often consumers' places are written.
const HOLDS_EVERY: Duration = Duration::from_secs(1);

/// How often the topics are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How often one warning is repeated.
const WARN_EVERY: Duration = Duration::from_secs(600);

/// Works until the log is closed: then `closed` ends.
pub(super) fn run(shared: &Arc<Shared>, closed: &Receiver<()>) {
    let (mut looked, mut warned, mut notes) = (Instant::now(), None, Notes::default());
    let (mut lag, mut telling) = (Lag::default(), Telling::default());
    loop {
        let ended = matches!(closed.recv_timeout(HOLDS_EVERY), Err(RecvTimeoutError::Disconnected) | Ok(()));
        if let Err(error) = shared.write_holds() {
            tracing::debug!(%error, "the places of the log's consumers are not written yet");
        }
        if ended {
            telling.end(shared);
            lag.end(shared);
            return;
        }
        lag.follow(shared);
        telling.tell(shared);
        shared.serve_idle();
        if looked.elapsed() >= LOOK_EVERY && shared.trouble().is_none() {
            looked = Instant::now();
            if let Err(error) = hear_others(shared, &mut notes) {
                tracing::debug!(%error, "the places of the log's other consumers could not be read");
            }
            look(shared, &mut warned);
        }
    }
}

/// Whoever writes hears from time to time how far the consumers of other processes have come; whoever follows, at once.
fn hear_others(shared: &Shared, notes: &mut Notes) -> Result<(), LogError> {
    if !shared.writes {
        return Ok(());
    }
    let meta = read_on(&lock(&shared.asking), &shared.names, notes)?;
    lock(&shared.holds).hear_all(meta.holds);
    *lock(&shared.delivers) = Delivers { lead: meta.lead, shares: meta.shares };
    *lock(&shared.processes) = meta.processes;
    Ok(())
}

fn look(shared: &Shared, warned: &mut Option<Instant>) {
    match topics::same(&shared.clients, &shared.names, &shared.standing).and_then(|()| expired(shared)) {
        Ok(()) => {}
        Err(error @ LogError::Lost { .. }) => {
            tracing::error!(%error, "the log is lost");
            shared.stop_for(&error);
            // Readers at the end wake and see it.
            shared.end.send_modify(|_| {});
            return;
        }
        Err(error @ LogError::Denied { .. }) => tracing::warn!(%error, "the topics can no longer be looked at"),
        Err(error) => tracing::debug!(%error, "the topics could not be looked at"),
    }
    if warned.is_none_or(|last| last.elapsed() > WARN_EVERY) && warn(shared).unwrap_or(false) {
        *warned = Some(Instant::now());
    }
}

/// An error when the broker has dropped what a consumer still needs.
fn expired(shared: &Shared) -> Result<(), LogError> {
    let start = shared.look_at_the_start()?;
    match shared.first_overtaken(&start) {
        Some((consumer, cut)) => Err(shared.expired(&consumer, &cut)),
        None => Ok(()),
    }
}

/// Warns of a consumer that needs what is in the older half of the time that the topic keeps, or in the oldest fifth of
/// what it holds while it is full.
fn warn(shared: &Shared) -> Result<bool, LogError> {
    let holds = lock(&shared.holds).all.clone();
    let (start, end) = (shared.start(), shared.end().cut);
    let retention = shared.standing.retention;
    let mut old = start.clone();
    if let Some(time) = retention.time {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
        let from: Vec<(i32, u64)> = (0i32..).zip(&start.0).map(|(partition, at)| (partition, at.0)).collect();
        let half = now - (time / 2).as_millis() as i64;
        for (partition, at) in near(&lock(&shared.asking), &shared.names.changes, &from, half)? {
            old.set_next(Partition(partition as u32), crossfade_event::Offset(at));
        }
    }
    let is_full = retention.bytes.is_some() && start.total() > 0;
    if is_full {
        for partition in (0..shared.partitions()).map(Partition) {
            let (from, to) = (start.next(partition).0, end.next(partition).0);
            let fifth = crossfade_event::Offset(from + to.saturating_sub(from) / 5);
            old.set_next(partition, old.next(partition).max(fifth));
        }
    }
    let late = holds.iter().find(|(_, cut)| end.covers(cut) && **cut != end && !cut.covers(&old));
    if let Some((consumer, cut)) = late {
        tracing::warn!(
            %consumer, %cut, begins_at = %start,
            "the broker may soon drop entries of {} that are still needed: deliver is slow or stopped; give the topic a longer retention",
            shared.names.changes
        );
    }
    Ok(late.is_some())
}
