//! The suite of `crossfade-testkit`, provider by provider.

use crossfade_log::{
    embedded::{Embedded, Options},
    memory::Memory,
};
use crossfade_testkit::log_suite;
use std::{cell::Cell, path::Path};

/// Segments so small that every test fills several.
pub(crate) fn small() -> Options {
    Options { segment_bytes: 64 * 1024, ..Options::default() }
}

pub(crate) fn open(dir: &Path) -> Embedded {
    Embedded::open(dir, small()).unwrap()
}

fn embedded() -> impl Fn() -> Embedded {
    let (dir, count) = (tempfile::tempdir().unwrap(), Cell::new(0));
    move || {
        count.set(count.get() + 1);
        open(&dir.path().join(count.get().to_string()))
    }
}

macro_rules! suite {
    ($provider:ident, $make:expr, $($test:ident)*) => {
        mod $provider {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    log_suite::$test($make).await;
                }
            )*
        }
    };
}

macro_rules! every_log {
    ($provider:ident, $make:expr) => {
        suite! {
            $provider, $make,
            every_kind_of_event_comes_back_as_it_was
            appends_land_in_the_order_of_the_calls
            offsets_rise_within_each_partition
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

every_log!(the_embedded_log, embedded());
every_log!(the_log_in_memory, Memory::new);
every_log!(the_log_in_memory_with_8_partitions_and_gaps, || Memory::with(8, true));
suite! {
    the_embedded_log_that_survives, open,
    everything_is_there_after_reopening
    the_position_survives_trimming_and_reopening
    an_unfinished_head_is_gone_after_reopening
    consumers_still_hold_after_reopening
}
