//! The vocabulary of Crossfade: what travels from a source, through the log, into a sink.
//!
//! Everything here is pure data: no I/O, no clock, no runtime. A [`Row`] keeps the source's own bytes; a column is
//! decoded into a [`Value`] only when somebody asks. [`Position`] is a place in the source's history (theirs),
//! [`Offset`] a place in our log (ours); the two are never confused.
//!
//! What this crate deliberately does not do: it knows no database's SQL, opens no connection and writes no file.

pub mod catalog;
mod change;
pub mod codec;
mod frontier;
mod place;
mod row;
mod schema;
mod side;
pub mod swap;
mod value;

pub use change::{
    Backfill, Batch, Change, ChunkId, ChunkPlan, Event, Mark, Op, RowBlock, Stamped, Transaction, Truncate, Visibility,
};
pub use frontier::{Durable, Frontier, Ticket};
pub use place::{Cut, Offset, ParsePositionError, Partition, Position, Sequence, SourceId, Version};
pub use row::{Cell, Cells, Key, Row, RowBuilder, RowError, Rows};
pub use schema::{Column, ColumnType, Format, Identity, Logical, SchemaVersion, TableId, TableName, TableSchema};
pub use side::{ParseSideError, Side};
pub use value::{Interval, Numeric, TimeTz, Value};
