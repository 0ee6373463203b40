//! The contracts, kept by SQLite: the suites of the testkit on files of their own.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod both;
mod fixture;
mod hostile;
mod names;
mod reshape;
mod sink;
mod source;
mod stress;
mod switch;

use fixture::{SinkFile, SourceFile};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn the_source_keeps_its_contract_in_wal_mode() {
    runtime().block_on(crossfade_testkit::source_suite::all(async || SourceFile::new("wal")));
}

#[test]
fn the_source_keeps_its_contract_with_a_rollback_journal() {
    runtime().block_on(crossfade_testkit::source_suite::all(async || SourceFile::new("delete")));
}

#[test]
fn the_sink_keeps_its_contract() {
    runtime().block_on(crossfade_testkit::sink_suite::all(async || SinkFile::new()));
}
