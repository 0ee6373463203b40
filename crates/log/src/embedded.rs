//! Segments in a folder.
