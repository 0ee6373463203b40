//! What the providers of the log share, also those of other crates: what they demand of a batch, how they divide it over
//! partitions, and how they remember schemas.

pub use crate::{
    contract::{check_lanes, unknown_schema},
    route::{check, divide},
    schemas::Schemas,
};
