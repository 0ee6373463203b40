//! The whole journey, as a user makes it: real servers, live writers, and only commands that the README shows. Both ends are
//! compared by the tests' own means, beside what `crossfade verify` says.
#![cfg(test)]

mod adding;
mod bad_input;
mod bench;
mod beside;
mod born;
mod changes;
mod clerks;
mod collisions;
mod compared;
mod compared_always;
mod cowrie;
mod cowrie_taken_back;
mod cycle_reports;
mod cycle_reports_in_place;
mod cycle_reports_taken_back;
#[cfg(feature = "kafka")]
mod debezium;
mod defaults;
#[cfg(feature = "kafka")]
mod delivers;
mod demo;
mod desk;
#[cfg(feature = "kafka")]
mod dual;
mod example;
mod failback;
mod fallen;
mod files;
mod heimdall;
mod heimdall_taken_back;
mod in_place;
#[cfg(feature = "kafka")]
mod kafka;
mod ledger;
mod listened;
mod lookups;
mod one_database;
mod planned;
mod queries;
mod reads;
mod renames;
mod replayed;
mod reporters;
mod reverse;
#[cfg(feature = "kafka")]
mod rights;
#[cfg(feature = "kafka")]
mod roles;
mod shapes;
mod shapes_kept;
mod shop;
mod six_tables;
mod small;
mod standing;
mod strangers;
mod superseded;
mod switch;
mod switches;
mod tellers;
#[cfg(feature = "kafka")]
mod told;
#[cfg(feature = "kafka")]
mod topics;
mod trees;
mod twin;
#[cfg(feature = "kafka")]
mod workers;
mod zoo;

/// Whether this is the long round.
fn is_soak() -> bool {
    std::env::var("CROSSFADE_SOAK").is_ok_and(|value| value == "1")
}
