//! From a cell's bytes to a [`crate::Value`] and back, for each [`crate::Format`].
