//! The source that reads Debezium's topics, on a real broker. The records here are written by hand, in the form that a real
//! Debezium gives them (`tests/debezium`); journeys run with a real one.

mod ending;
mod reading;
mod stand;
