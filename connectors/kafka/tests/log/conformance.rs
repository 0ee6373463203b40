//! The suite of `crossfade-testkit`, as every log passes it, against the real broker.

use super::*;
use crossfade_testkit::log_suite;

fn make(partitions: u32) -> Option<impl Fn() -> KafkaLog> {
    let kafka = Kafka::shared()?;
    Some(move || open(kafka, &kafka.prefix("suite"), partitions))
}

macro_rules! suite {
    ($provider:ident, $partitions:expr, $($test:ident)*) => {
        mod $provider {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    let Some(make) = make($partitions) else { return };
                    log_suite::$test(make).await;
                }
            )*
        }
    };
}

macro_rules! every_log {
    ($provider:ident, $partitions:expr) => {
        suite! {
            $provider, $partitions,
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

every_log!(the_log_on_kafka, 1);
every_log!(the_log_on_kafka_with_8_partitions, 8);
