//! A store that forgets: for tests, and for trial runs that write nothing.

use crate::{Changes, Key, Prefix, StateError, StateStore, image::Image};
use std::{
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

/// State in memory only.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore(Arc<RwLock<Image>>);

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }
}

impl StateStore for MemoryStore {
    fn get<K: Key>(&self, key: &K) -> Result<Option<K::Value>, StateError> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(Path::new("memory"), key)
    }

    fn scan<K: Key>(&self, prefix: &Prefix<K>) -> Result<Vec<(K, K::Value)>, StateError> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).scan(Path::new("memory"), prefix)
    }

    async fn commit(&self, changes: Changes) -> Result<(), StateError> {
        if let Some(refused) = changes.refused {
            return Err(refused);
        }
        let mut image = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let plan = image.plan(changes.ops);
        image.apply(plan);
        Ok(())
    }

    fn is_empty(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}
