//! How far are we: small facts that a restart needs at once, in a store that is written as a whole or not at all.
//!
//! Everything in here is a cache of what the log, the journal and the sink say, so losing it costs time, never data
//! (`crossfade state rebuild`). What comes in are [`Changes`] made of typed keys and values; what goes out is the
//! same, read from memory. Two stores: [`SledStore`] on disk and [`MemoryStore`] for tests and trial runs.
//!
//! What this crate deliberately does not do: it keeps no row and no position that exists nowhere else, and it never
//! takes unreadable for absent. A damaged folder is an error that names the folder; [`quarantine_aside`] moves it
//! away when somebody decides so.

mod changes;
mod envelope;
mod error;
mod folder;
mod guard;
mod image;
mod key;
mod listing;
mod memory;
mod records;
mod sled_store;

pub use changes::Changes;
pub use envelope::{PART_BYTES_MAX, Record, VALUE_BYTES_MAX, decode_parts, encode_parts};
pub use error::StateError;
pub use folder::{WorkFolder, quarantine_aside};
pub use key::{KEY_BYTES_MAX, Key, KeyReader, KeyWriter, Prefix};
pub use listing::{Listed, listing};
pub use memory::MemoryStore;
pub use records::{
    Checkpoint, CheckpointKey, ChunkDone, ChunkKey, Cursor, CursorKey, Digest, DigestKey, Epoch, EpochKey, FoldMarks,
    FoldMarksKey, IdentityKey, IdentityPin, IngestFold, IngestFoldKey, JournalFold, JournalFoldKey, MarkedBackfill,
    QuarantineKey, QuarantineRecord, Setting, SettingKey, TableFold, TableFoldKey,
};
pub use sled_store::SledStore;

use std::future::Future;

/// Small typed facts. Cheap to clone; all clones are one store.
///
/// **Reading** is from memory and never waits. **Writing** is all or nothing, durable on return, and may be dropped:
/// a commit that was begun is finished or (after a crash) absent as a whole. Commits land in some order; await one
/// before the next where the order matters. **After a failed write** every commit fails until the store is opened anew.
pub trait StateStore: Clone + Send + Sync + 'static {
    /// The value under a key; `None` when there is none.
    ///
    /// # Errors
    /// [`StateError::Damaged`] or [`StateError::TooNew`] when there is one that cannot be read.
    fn get<K: Key>(&self, key: &K) -> Result<Option<K::Value>, StateError>;

    /// All keys that begin with `prefix` and their values, in the order of the keys.
    ///
    /// # Errors
    /// As [`StateStore::get`].
    fn scan<K: Key>(&self, prefix: &Prefix<K>) -> Result<Vec<(K, K::Value)>, StateError>;

    /// Writes all of it or nothing; durable on return.
    ///
    /// # Errors
    /// [`StateError::TooLarge`] for a key or value beyond its limit (nothing is written, the store goes on),
    /// [`StateError::Poisoned`] after a failed write.
    fn commit(&self, changes: Changes) -> impl Future<Output = Result<(), StateError>> + Send;

    /// True while nothing has ever been written, or all of it was removed.
    fn is_empty(&self) -> bool;
}
