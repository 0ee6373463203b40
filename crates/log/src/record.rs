//! The record format.
