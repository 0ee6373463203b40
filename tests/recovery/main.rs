//! What a user is promised: kill it whenever you like. The release binary is ended by SIGKILL at random moments, under live
//! writers, in every phase; it is started again, and at the end both sides are compared value by value, by the tests' own
//! comparison. Also here: the state folder lost or damaged, servers and network that go away, disks that are full, a second
//! run, and builds with a defect, which these tests must find.
//!
//! The short round runs with all tests; `CROSSFADE_SOAK=1` (`make soak`) makes it long. Every random choice follows from a
//! seed that is printed.
#![cfg(test)]

mod bank;
#[cfg(feature = "kafka")]
mod crew;
mod disk;
mod ends;
mod growing;
mod hand;
#[cfg(feature = "kafka")]
mod kafka;
mod kills;
mod mutants;
mod page;
#[cfg(feature = "kafka")]
mod roles;
mod round;
mod servers;
mod setup;
mod shadow;
mod stand;
mod state;
mod tail;
mod tally;
#[cfg(feature = "kafka")]
mod workers;
mod yard;

/// Whether this is the long round.
fn is_soak() -> bool {
    std::env::var("CROSSFADE_SOAK").is_ok_and(|value| value == "1")
}
