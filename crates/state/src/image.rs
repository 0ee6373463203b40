//! The whole state in memory: what both stores read from. Small by contract (DESIGN: cursors, folds, indexes).

use crate::{
    Key, Prefix, StateError,
    changes::Op,
    envelope::{Flaw, Payload},
};
use std::{collections::BTreeMap, path::Path};

/// Every key and its payload.
#[derive(Debug, Default, Clone)]
pub(crate) struct Image(BTreeMap<Vec<u8>, Payload>);

impl Image {
    pub(crate) fn get<K: Key>(&self, dir: &Path, key: &K) -> Result<Option<K::Value>, StateError> {
        let Some(payload) = self.0.get(&key.to_bytes()?) else { return Ok(None) };
        payload.value().map(Some).map_err(|flaw| explain(dir, K::NAME, &flaw))
    }

    pub(crate) fn scan<K: Key>(&self, dir: &Path, prefix: &Prefix<K>) -> Result<Vec<(K, K::Value)>, StateError> {
        self.under(&prefix.0)
            .map(|(bytes, payload)| {
                let key = K::from_bytes(bytes).ok_or(Flaw::Damaged("a key that cannot be read"));
                key.and_then(|key| Ok((key, payload.value()?))).map_err(|flaw| explain(dir, K::NAME, &flaw))
            })
            .collect()
    }

    pub(crate) fn under<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = (&'a Vec<u8>, &'a Payload)> {
        self.0.range(prefix.to_vec()..).take_while(move |(key, _)| key.starts_with(prefix))
    }

    pub(crate) fn payload(&self, key: &[u8]) -> Option<&Payload> {
        self.0.get(key)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Vec<u8>, &Payload)> {
        self.0.iter()
    }

    pub(crate) fn insert(&mut self, key: Vec<u8>, payload: Payload) {
        self.0.insert(key, payload);
    }

    /// What each key becomes, in order of the keys, once all of `ops` are done; `None` for removed.
    pub(crate) fn plan(&self, ops: Vec<Op>) -> BTreeMap<Vec<u8>, Option<Payload>> {
        let mut plan = BTreeMap::new();
        for op in ops {
            match op {
                Op::Put(key, payload) => {
                    plan.insert(key, Some(payload));
                }
                Op::Remove(key) => {
                    plan.insert(key, None);
                }
                Op::RemoveAll(prefix) => {
                    plan.iter_mut().filter(|(key, _)| key.starts_with(&prefix)).for_each(|(_, slot)| *slot = None);
                    plan.extend(self.under(&prefix).map(|(key, _)| (key.clone(), None)));
                }
            }
        }
        plan
    }

    pub(crate) fn apply(&mut self, plan: BTreeMap<Vec<u8>, Option<Payload>>) {
        for (key, payload) in plan {
            match payload {
                Some(payload) => self.0.insert(key, payload),
                None => self.0.remove(&key),
            };
        }
    }
}

/// A flaw as an error that names the folder and the kind.
pub(crate) fn explain(dir: &Path, name: &str, flaw: &Flaw) -> StateError {
    match *flaw {
        Flaw::Damaged(what) => StateError::Damaged { dir: dir.into(), what: format!("{name}: {what}") },
        Flaw::TooNew(what, found, known) => {
            StateError::TooNew { dir: dir.into(), what: format!("{name}: {what}"), found, known }
        }
    }
}
