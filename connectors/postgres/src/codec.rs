//! Bytes and types: what `pgoutput` says, and how PostgreSQL's types map to ours.

pub(crate) mod pgoutput;
pub mod types;
