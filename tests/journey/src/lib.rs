//! The package exists for its test, which walks the whole journey by commands: see `main.rs`.
