//! What tests stand on (a dev-dependency only): real servers as processes, live writers, exact comparison, faults on the
//! wire, and the conformance suites that every implementation of a contract passes.
//!
//! Helpers fail a test by panicking with a sentence that says what was expected: they stand where an assertion would.
//! Whatever is random prints its seed. What this crate deliberately does not do: it knows no connector and not the
//! binary's insides; the release binary is run as a user runs it ([`crossfade`]).
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "everything here is part of a test: a broken expectation fails it, with its message"
)]

pub mod compare;
pub mod crossfade;
pub mod debezium;
pub mod history;
pub mod kafka;
pub mod log_suite;
pub mod ports;
pub mod postgres;
pub mod proxy;
pub mod seeded;
pub mod shop;
pub mod sink_suite;
pub mod source_suite;
pub mod tls;
pub mod wait;
mod watchdog;

use std::{env, io::Write, thread};

/// Says that something a test needs is not to be had: a loud skip for a person, a failure where `CI` is set.
///
/// # Panics
/// Where the variable `CI` is set (to anything but nothing, `0` or `false`).
pub fn unavailable(what: &str, reason: &str) {
    let in_ci = env::var("CI").is_ok_and(|value| !matches!(value.as_str(), "" | "0" | "false"));
    assert!(!in_ci, "{what} is not available: {reason}");
    let current = thread::current();
    let test = current.name().unwrap_or("a test");
    // Past the test runner's capture: a skip that nobody sees is a lie.
    let _ = writeln!(std::io::stderr(), "\n*** SKIPPED {test}: {what} is not available: {reason}\n");
}
