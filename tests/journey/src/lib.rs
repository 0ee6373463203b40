//! The package exists for its test; see `main.rs`.
