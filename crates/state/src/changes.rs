//! What a commit writes.

use crate::{Key, Prefix, StateError, VALUE_BYTES_MAX, envelope::Payload};

/// Puts and removals that land together. A key or value beyond its limit is remembered and refused by the commit.
#[derive(Debug, Default)]
pub struct Changes {
    pub(crate) ops: Vec<Op>,
    pub(crate) refused: Option<StateError>,
}

#[derive(Debug)]
pub(crate) enum Op {
    Put(Vec<u8>, Payload),
    Remove(Vec<u8>),
    RemoveAll(Vec<u8>),
}

impl Changes {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// One put, for the many commits that are no more than that.
    pub fn one<K: Key>(key: &K, value: &K::Value) -> Self {
        Self::new().put(key, value)
    }

    /// Writes a value in place of whatever is there.
    #[must_use]
    pub fn put<K: Key>(mut self, key: &K, value: &K::Value) -> Self {
        let sealed = key.to_bytes().and_then(|key| {
            let too_large = |bytes| StateError::TooLarge {
                what: format!("a value of kind {}", K::NAME),
                bytes,
                limit: VALUE_BYTES_MAX,
            };
            Ok(Op::Put(key, Payload::of(value).map_err(too_large)?))
        });
        self.note(sealed);
        self
    }

    /// Removes a value; nothing happens when there is none.
    #[must_use]
    pub fn remove<K: Key>(mut self, key: &K) -> Self {
        self.note(key.to_bytes().map(Op::Remove));
        self
    }

    /// Removes everything under a prefix that is there when the commit comes.
    #[must_use]
    pub fn remove_all<K: Key>(mut self, prefix: Prefix<K>) -> Self {
        self.ops.push(Op::RemoveAll(prefix.0));
        self
    }

    /// True when there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty() && self.refused.is_none()
    }

    fn note(&mut self, op: Result<Op, StateError>) {
        match op {
            Ok(op) => self.ops.push(op),
            Err(refused) => {
                self.refused.get_or_insert(refused);
            }
        }
    }
}
