//! The PostgreSQL sink against a real server.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests fail by panicking")]

mod altering;
mod columns;
mod enforced;
mod errors;
mod exchange;
mod loading;
mod mapping;
mod parallel;
mod recovery;
mod rig;
mod shapes;
mod shares;
mod streaming;
mod watched;
