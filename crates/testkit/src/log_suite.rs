//! The one suite that every event log passes. Each test is a function over a maker: `make` gives a new, empty log, and
//! `open` (for logs that survive) opens the one in a folder, or makes it there.
//!
//! Nothing here knows how many partitions a log has or whether its offsets have gaps, so the expectations are those of
//! the contract: what was appended comes back in order, whole, and only once it is durable.

mod durable;
mod events;
mod keeping;
mod reading;

pub use durable::*;
pub use events::{
    COMMON, SOURCE, at, batch, change, delete, every_kind, flat, insert, key_change, part, row, rows, schema, snapshot,
    transaction, update,
};
pub use keeping::*;
pub use reading::*;

use crossfade_event::{Cut, Event};
use crossfade_log::{Entries, Entry, EventLog, Lane, LogError, LogReader};
use std::{future::Future, time::Duration};

/// What a log must be able to do in this test.
///
/// # Panics
/// When it cannot.
pub fn good<T>(result: Result<T, LogError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("the log failed: {error}"),
    }
}

/// Ends a wait that would never end.
///
/// # Panics
/// After half a minute.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(30), future).await {
        Ok(value) => value,
        Err(_) => panic!("nothing came of {what} in 30 s"),
    }
}

/// Everything from a place to the tail.
///
/// # Panics
/// When reading fails.
pub fn read_all(log: &impl EventLog, from: &Cut, lane: Lane) -> Vec<Entry> {
    let mut reader = good(log.read(from, lane));
    let mut all = Vec::new();
    while let Some(Entries { entries, .. }) = good(reader.try_next()) {
        all.extend(entries);
    }
    all
}

/// As [`read_all`] from the start of the log, the events alone.
///
/// # Panics
/// When reading fails.
pub fn events_of(log: &impl EventLog, lane: Lane) -> Vec<Event> {
    read_all(log, &log.start(), lane).into_iter().map(|entry| entry.event).collect()
}
