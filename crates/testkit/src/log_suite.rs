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

/// Calls a macro with the names of the tests that every log passes, behind what it is given.
#[macro_export]
macro_rules! every_log_test {
    ($with:ident! { $($given:tt)* }) => {
        $with! {
            $($given)*
            every_kind_of_event_comes_back_as_it_was
            appends_land_in_the_order_of_the_calls
            offsets_rise_within_each_partition
            sequences_are_the_order_of_the_whole_log
            the_cut_behind_a_backfills_beginning_holds_for_every_lane
            an_append_is_visible_once_it_has_resolved
            a_dropped_append_lands_all_the_same
            parts_are_visible_only_with_the_last_one
            an_empty_last_part_makes_a_transaction_whole
            what_is_given_at_once_is_bounded
            an_abandoned_head_is_never_seen
            each_lane_gets_its_own
            a_reader_moves_over_what_is_not_its_lane
            reading_goes_on_exactly_where_a_cut_says
            a_place_beyond_the_end_is_refused
            a_reader_at_the_tail_wakes
            waiting_can_be_given_up
            a_key_change_keeps_both_keys_in_order
            schemas_are_known
            schemas_are_kept_after_trimming
            trimming_stops_at_the_slowest_consumer
            trimming_keeps_what_lies_at_or_after_the_place
            a_reader_that_was_overtaken_is_told
            what_breaks_the_contract_is_refused
            places_are_found
        }
    };
}

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
