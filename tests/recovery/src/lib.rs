//! The package exists for its test, which kills the release binary: see `main.rs`.
