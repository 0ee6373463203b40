//! The contracts, kept by PostgreSQL: the suites of the testkit on databases of their own.
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

/// Promises that this sink keeps in another way are held to in `tests/sink`. It writes what a set of changes comes to:
/// a row that is refused and mended by the next change of one delivery is not refused, and two rows exchange a unique
/// value by way of a third state, as PostgreSQL itself has them do. An older writer's session keeps a newer one waiting
/// instead of losing its right.
async fn sink(version: Version) {
    let Some(server) = Postgres::shared_target(version) else { return };
    let fresh = async || SinkDatabase::new(server).await;
    sink_suite::a_repeat_is_harmless(fresh().await).await;
    sink_suite::rows_and_progress_come_together(fresh().await).await;
    sink_suite::what_is_not_committed_leaves_nothing(fresh().await).await;
    sink_suite::a_cancelled_apply_leaves_nothing_or_all(fresh().await).await;
    sink_suite::a_partial_update_touches_nothing_else(fresh().await).await;
    sink_suite::a_changed_key_takes_its_row_along(fresh().await).await;
    sink_suite::rows_without_a_key_stay_as_many_as_they_are(fresh().await).await;
    sink_suite::a_change_that_transforms_refused_is_on_record(fresh().await).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn the_sink_keeps_what_it_shares_with_every_sink_on_15() {
    sink(Version::V15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sink_keeps_what_it_shares_with_every_sink_on_18() {
    sink(Version::V18).await;
}
