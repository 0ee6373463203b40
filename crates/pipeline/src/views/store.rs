//! Keys and what is kept under them: in memory while that is little, in files of their own when it is more.
//!
//! A cache of the log, not the truth: the files are made anew at every start, are never synced, and go away with
//! whoever made them (or at the next start, when that was killed).

use bytes::Bytes;
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// What an entry costs in memory beside its bytes, about.
const ENTRY_BYTES: usize = 112;

/// How often a folder is removed that is still being written into, and how long is waited in between; what is left then
/// goes at the next start.
const REMOVALS: u32 = 100;
const BETWEEN_REMOVALS: Duration = Duration::from_millis(5);

/// What sled may keep of its file in memory.
const CACHE_BYTES: u64 = 32 << 20;

/// Where rows that are looked up go when they are too many for memory, and when that is.
#[derive(Debug, Clone)]
pub struct Scratch {
    /// A folder that only this process writes; need not exist.
    pub dir: PathBuf,
    /// Bytes that one view may hold in memory.
    pub memory_bytes_max: usize,
}

impl Scratch {
    /// A folder, with the usual bound.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), memory_bytes_max: 32 << 20 }
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new(std::env::temp_dir().join("crossfade-views"))
    }
}

/// The rows kept for lookups cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[error(
    "the rows kept for lookups in {} cannot be used: {cause}. Make room or mend the disk, then start again: they are made anew from the log",
    dir.display()
)]
pub struct ScratchError {
    dir: PathBuf,
    #[source]
    cause: sled::Error,
}

/// The file that all views of one reader of the log share; made when the first of them outgrows memory.
#[derive(Debug)]
pub(crate) struct Shelf {
    scratch: Scratch,
    /// With the folder that is its own.
    db: Mutex<Option<(sled::Db, PathBuf)>>,
}

impl Shelf {
    pub(crate) fn new(scratch: Scratch) -> Arc<Self> {
        Arc::new(Self { scratch, db: Mutex::new(None) })
    }

    fn tree(&self, name: &str) -> Result<sled::Tree, ScratchError> {
        let mut held = self.db.lock().unwrap_or_else(PoisonError::into_inner);
        let db = match held.as_ref() {
            Some((db, _)) => db.clone(),
            None => held.insert(self.open()?).0.clone(),
        };
        db.open_tree(name).map_err(|cause| self.error(cause))
    }

    fn open(&self) -> Result<(sled::Db, PathBuf), ScratchError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let dir = &self.scratch.dir;
        fs::create_dir_all(dir).map_err(|cause| self.error(cause.into()))?;
        sweep(dir);
        let own = dir.join(format!("views-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed)));
        // A process of the same number may have left one of this name (in a container every process is the first).
        if own.exists() {
            fs::remove_dir_all(&own).map_err(|cause| self.error(cause.into()))?;
        }
        tracing::info!(dir = %own.display(), "the rows that lookups read outgrow memory and are kept on disk");
        let config = sled::Config::new().path(&own).temporary(true).cache_capacity(CACHE_BYTES).flush_every_ms(None);
        config.open().map(|db| (db, own)).map_err(|cause| self.error(cause))
    }

    fn error(&self, cause: sled::Error) -> ScratchError {
        ScratchError { dir: self.scratch.dir.clone(), cause }
    }
}

impl Drop for Shelf {
    /// sled removes its folder itself, while a thread of its own may still write into it: then it stays behind.
    fn drop(&mut self) {
        let held = self.db.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let Some((db, own)) = held else { return };
        drop(db);
        for _ in 0..REMOVALS {
            match fs::remove_dir_all(&own) {
                Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => std::thread::sleep(BETWEEN_REMOVALS),
                _ => return,
            }
        }
    }
}

/// Removes what processes left that were killed.
fn sweep(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix("views-")?.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| pid != std::process::id() && !Path::new(&format!("/proc/{pid}")).exists()) {
            // What cannot be removed now can be removed at the next start.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// One map of bytes to bytes.
#[derive(Debug)]
pub(crate) struct Store {
    name: String,
    memory: HashMap<Bytes, Bytes>,
    bytes: usize,
    disk: Option<sled::Tree>,
    /// Last, so that the last of the trees is closed before the folder is removed.
    shelf: Arc<Shelf>,
}

impl Store {
    pub(crate) fn new(name: String, shelf: Arc<Shelf>) -> Self {
        Self { name, shelf, memory: HashMap::new(), bytes: 0, disk: None }
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ScratchError> {
        let Some(tree) = &self.disk else { return Ok(self.memory.get(key).cloned()) };
        let found = tree.get(key).map_err(|cause| self.shelf.error(cause))?;
        Ok(found.map(|value| Bytes::copy_from_slice(&value)))
    }

    pub(crate) fn put(&mut self, key: &Bytes, value: &Bytes) -> Result<(), ScratchError> {
        if let Some(tree) = &self.disk {
            tree.insert(key, value.as_ref()).map_err(|cause| self.shelf.error(cause))?;
            return Ok(());
        }
        let before = self.memory.insert(key.clone(), value.clone());
        self.bytes += cost(key, value);
        self.bytes -= before.map_or(0, |before| cost(key, &before));
        if self.bytes > self.shelf.scratch.memory_bytes_max { self.spill() } else { Ok(()) }
    }

    pub(crate) fn remove(&mut self, key: &[u8]) -> Result<(), ScratchError> {
        if let Some(tree) = &self.disk {
            tree.remove(key).map_err(|cause| self.shelf.error(cause))?;
        } else if let Some(before) = self.memory.remove(key) {
            self.bytes -= cost(key, &before);
        }
        Ok(())
    }

    /// Empties it; what comes next is in memory again.
    pub(crate) fn clear(&mut self) -> Result<(), ScratchError> {
        self.memory.clear();
        self.bytes = 0;
        match self.disk.take() {
            Some(tree) => tree.clear().map_err(|cause| self.shelf.error(cause)),
            None => Ok(()),
        }
    }

    /// Gives every entry another value.
    pub(crate) fn change_all(
        &mut self,
        mut change: impl FnMut(&[u8], Bytes) -> Result<Bytes, ScratchError>,
    ) -> Result<(), ScratchError> {
        if let Some(tree) = &self.disk {
            for entry in tree {
                let (key, value) = entry.map_err(|cause| self.shelf.error(cause))?;
                let value = change(&key, Bytes::copy_from_slice(&value))?;
                tree.insert(key, value.as_ref()).map_err(|cause| self.shelf.error(cause))?;
            }
            return Ok(());
        }
        for (key, value) in std::mem::take(&mut self.memory) {
            let changed = change(&key, value.clone())?;
            self.bytes = self.bytes + changed.len() - value.len();
            self.memory.insert(key, changed);
        }
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.disk.as_ref().map_or_else(|| self.memory.is_empty(), sled::Tree::is_empty)
    }

    fn spill(&mut self) -> Result<(), ScratchError> {
        let tree = self.shelf.tree(&self.name)?;
        for (key, value) in self.memory.drain() {
            tree.insert(key, value.as_ref()).map_err(|cause| self.shelf.error(cause))?;
        }
        self.memory.shrink_to_fit();
        self.bytes = 0;
        self.disk = Some(tree);
        Ok(())
    }
}

fn cost(key: &[u8], value: &[u8]) -> usize {
    key.len() + value.len() + ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};
    use std::collections::BTreeMap;

    #[test]
    fn a_store_that_outgrows_memory_answers_as_before() {
        let home = tempfile::tempdir().unwrap();
        for seed in 0..20 {
            println!("seed {seed}");
            let mut random = StdRng::seed_from_u64(seed);
            let memory_bytes_max = random.random_range(100..20_000);
            let shelf = Shelf::new(Scratch { dir: home.path().join("scratch"), memory_bytes_max });
            let mut store = Store::new("one".to_owned(), shelf.clone());
            let mut other = Store::new("other".to_owned(), shelf);
            let mut model: BTreeMap<Bytes, Bytes> = BTreeMap::new();
            for step in 0..400u32 {
                let key = Bytes::from(random.random_range(0..60u32).to_string());
                match random.random_range(0..100) {
                    0 => {
                        store.clear().unwrap();
                        model.clear();
                    }
                    1 => {
                        let longer = |value: &Bytes| Bytes::from([value.as_ref(), b"!"].concat());
                        store.change_all(|_, value| Ok(longer(&value))).unwrap();
                        model.values_mut().for_each(|value| *value = longer(value));
                    }
                    2..30 => {
                        store.remove(&key).unwrap();
                        model.remove(&key);
                    }
                    _ => {
                        let value = Bytes::from(format!("{step}{}", "x".repeat(random.random_range(0..50))));
                        store.put(&key, &value).unwrap();
                        model.insert(key.clone(), value);
                        other.put(&key, &Bytes::from_static(b"another's")).unwrap();
                    }
                }
                assert_eq!(store.get(&key).unwrap().as_ref(), model.get(&key));
            }
            for key in (0..60u32).map(|key| Bytes::from(key.to_string())) {
                assert_eq!(store.get(&key).unwrap().as_ref(), model.get(&key));
            }
            assert_eq!(store.is_empty(), model.is_empty());
        }
        let left: Vec<_> = fs::read_dir(home.path().join("scratch")).unwrap().collect();
        assert!(left.is_empty(), "nothing stays behind: {left:?}");
    }

    #[test]
    fn what_a_killed_process_left_is_removed() {
        let home = tempfile::tempdir().unwrap();
        let left = home.path().join("views-4000000000-7");
        fs::create_dir_all(&left).unwrap();
        let mut store =
            Store::new("one".to_owned(), Shelf::new(Scratch { dir: home.path().into(), memory_bytes_max: 0 }));
        store.put(&Bytes::from_static(b"k"), &Bytes::from_static(b"v")).unwrap();
        assert!(!left.exists());
        assert_eq!(store.get(b"k").unwrap(), Some(Bytes::from_static(b"v")));
    }
}
