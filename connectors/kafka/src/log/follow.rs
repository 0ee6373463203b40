//! Follows a log that another process writes: what that one notes of the log's end is read as it comes, and shown to the
//! readers here.
//!
//! The note of an end is written in the same transaction as the entries before it, and the schemas that they need stand
//! before it: whoever is woken by an end finds both.

use super::{
    meta::{self, Notes, Says},
    processes,
    shared::{Shared, Waiter, lock},
};
use crate::client::{LogConsumer, PATIENCE, Purpose, assignment, bounds, is_passing_for_readers, reading};
use crossfade_log::LogError;
use rdkafka::consumer::Consumer;
use std::{
    sync::{
        Arc,
        mpsc::{Receiver, TryRecvError},
    },
    thread,
    time::{Duration, Instant},
};

/// How long one look for a note takes at most: so long closing may take.
const LOOK: Duration = Duration::from_millis(100);

/// The pause before another consumer is made.
const PAUSE: Duration = Duration::from_secs(1);

/// How often it is asked whether there is more, although nothing comes.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// Works until the log is closed: then `closed` ends.
pub(super) fn run(shared: &Arc<Shared>, mut notes: Notes, closed: &Receiver<()>) {
    while shared.trouble().is_none() {
        match follow(shared, &mut notes, closed) {
            Ok(()) => return,
            Err(error @ LogError::Server { passing: true, .. }) => {
                shared.waits(Waiter::Follower, error.to_string());
                tracing::debug!(%error, "the notes of the log are followed anew");
                thread::sleep(PAUSE);
            }
            Err(error) => {
                tracing::error!(%error, "the log cannot be followed any more");
                shared.stop_for(&error);
                // Readers at the end wake and see it.
                shared.end.send_modify(|_| {});
            }
        }
    }
}

/// Reads notes with one consumer; returns when the log is closed.
fn follow(shared: &Shared, notes: &mut Notes, closed: &Receiver<()>) -> Result<(), LogError> {
    let topic = &shared.names.meta;
    let failed = |error| reading(topic, error);
    let consumer = shared.clients.consumer(&shared.names.readers, false, Some(Purpose::Follower))?;
    let (low, _) = bounds(&consumer, topic, 0)?;
    let from = assignment(topic, [(0, notes.next().max(low))]).map_err(failed)?;
    consumer.assign(&from).map_err(failed)?;
    let (mut heard, mut asked) = (Instant::now(), Instant::now());
    while matches!(closed.try_recv(), Err(TryRecvError::Empty)) {
        match consumer.poll(LOOK) {
            Some(Ok(message)) => {
                heard = Instant::now();
                let (key, says) = meta::note(&shared.names, &message)?;
                notes.take(&message);
                take(shared, &key, says)?;
                shared.goes_on(Waiter::Follower);
            }
            Some(Err(error)) if !is_passing_for_readers(&error) => return Err(failed(error)),
            Some(Err(_)) | None => {}
        }
        if heard.elapsed() > ASK_EVERY && asked.elapsed() > ASK_EVERY {
            asked = Instant::now();
            is_current(shared, &consumer, notes, heard)?;
        }
    }
    Ok(())
}

/// Nothing has come for a while: there is nothing, or the brokers are away.
fn is_current(shared: &Shared, consumer: &LogConsumer, notes: &mut Notes, heard: Instant) -> Result<(), LogError> {
    let (_, end) = bounds(consumer, &shared.names.meta, 0)?;
    if heard.elapsed() > PATIENCE && !notes.covers(end) {
        // The broker's own records have offsets too: what is read again from here shows whether there is more.
        let had = notes.next();
        meta::read_on(&lock(&shared.asking), &shared.names, notes)?;
        if notes.next() != had {
            let doing = format!("following {}", shared.names.meta);
            return Err(LogError::Server { doing, cause: "notes do not come".into(), passing: true });
        }
    }
    shared.goes_on(Waiter::Follower);
    Ok(())
}

fn take(shared: &Shared, key: &str, says: Option<Says>) -> Result<(), LogError> {
    if let Some(name) = key.strip_prefix("hold/") {
        let cut = match says {
            Some(Says::Hold(cut)) => Some(cut),
            _ => None,
        };
        lock(&shared.holds).hear(name, cut);
        return Ok(());
    }
    if let Some(partition) = meta::share_of(key) {
        let mut delivers = lock(&shared.delivers);
        match says {
            Some(Says::Share(applies)) => drop(delivers.shares.insert(partition, applies)),
            _ => drop(delivers.shares.remove(&partition)),
        }
        return Ok(());
    }
    match says {
        Some(Says::Lead(lead)) => lock(&shared.delivers).lead = Some(lead),
        None if key.starts_with("process/") => {
            lock(&shared.processes).retain(|id, _| processes::key(*id) != key);
        }
        Some(Says::Process(process)) => {
            lock(&shared.processes).insert(process.id, process);
        }
        Some(Says::Schema(schema)) => {
            lock(&shared.schemas).insert(&schema)?;
        }
        Some(Says::Tail(tail)) if tail.round >= shared.end().round => shared.settle(&tail),
        Some(Says::Start(cut)) => {
            let mut start = lock(&shared.start);
            if cut.covers(&start) {
                *start = cut;
            }
        }
        _ => {}
    }
    Ok(())
}
