//! The contracts, kept by PostgreSQL: the suites of the testkit on databases of their own.
//!
//! Two of the sink's promises are kept in another way, by design, and `tests/sink` holds it to that:
//!
//! - `a_refused_change_holds_what_comes_with_it`: within one delivery this sink writes what the changes of a row come to,
//!   so that a row that is refused and mended by its next change is not refused. A row that is not mended holds its later
//!   changes and its children in the same delivery: `the_failing_change_its_later_ones_and_its_children_wait_…`.
//! - `a_lower_epoch_is_refused`: a second writer waits for the end of the older one's session before it takes the next
//!   epoch, for a session that was cut off may still commit. That it waits:
//!   `a_cancelled_delivery_leaves_nothing_and_its_successor_waits_for_its_end`; that a lower epoch is refused, and a
//!   writer that has lost its right: `an_older_epoch_is_refused`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fixture;

use crossfade_testkit::{
    postgres::{Postgres, Version},
    sink_suite,
};
use fixture::{SinkDatabase, SourceDatabase};

async fn source(version: Version) {
    let Some(server) = Postgres::shared(version) else { return };
    crossfade_testkit::source_suite::all(async || SourceDatabase::new(server).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_keeps_its_contract_on_15() {
    source(Version::V15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_keeps_its_contract_on_17() {
    source(Version::V17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_keeps_its_contract_on_18() {
    source(Version::V18).await;
}

/// A promise of the suite as a test of its own, on the oldest and the newest server.
macro_rules! the_sink_keeps {
    ($($promise:ident),* $(,)?) => {
        mod the_sink_keeps {
            use super::*;

            $(#[tokio::test(flavor = "multi_thread")]
            async fn $promise() {
                for version in [Version::V15, Version::V18] {
                    let Some(server) = Postgres::shared_target(version) else { continue };
                    sink_suite::$promise(SinkDatabase::new(server).await).await;
                }
            })*
        }
    };
}

the_sink_keeps!(
    a_repeat_is_harmless,
    rows_and_progress_come_together,
    what_is_not_committed_leaves_nothing,
    a_cancelled_apply_leaves_nothing_or_all,
    two_rows_exchange_their_unique_values,
    a_partial_update_touches_nothing_else,
    a_changed_key_takes_its_row_along,
    rows_without_a_key_stay_as_many_as_they_are,
    a_refused_change_holds_later_ones_and_children,
    quarantine_survives_a_restart,
    retry_applies_what_is_held_in_order,
    discard_frees_the_key,
    a_change_that_transforms_refused_is_on_record,
    a_mapping_is_written_once,
    a_truncate_stands_between_before_and_after,
    healing_writes_images_and_leaves_the_position,
    a_table_with_rows_of_others_is_refused_untouched,
    undo_puts_back_what_was_there,
    shadow_columns_touch_nothing_else,
    wipe_leaves_nothing,
);
