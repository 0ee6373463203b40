//! The source against real servers: every test compares byte by byte what the log says with what the server has.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests fail by panicking")]

mod basics;
mod ending;
mod growth;
mod held;
mod identity;
mod inspected;
mod large;
mod leaving;
mod lost;
mod roots;
mod secured;
mod shapes;
mod support;
mod text;
mod writers;
