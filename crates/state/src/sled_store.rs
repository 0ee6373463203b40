//! The store on disk, on sled 0.34.7.
//!
//! sled is beta and at rest upstream, so it is trusted with as little as possible:
//!
//! - Everything is read into memory at open, every envelope checked; reads never touch sled again.
//! - Its `flush` ends in `sync_file_range`, which is no barrier against power loss. A commit is `apply_batch`, `flush`,
//!   then `fdatasync` on a descriptor of our own, opened before the first write, so that no error is eaten by its
//!   background thread.
//! - It panics where it should return errors: it is opened on a thread of its own with a time limit, and panics
//!   of a commit poison the store.
//! - It cuts what it cannot read, and cannot tell: see [`crate::guard`].
//! - Its file only grows: at open, when the file is far larger than what is in it, everything is written into a new
//!   folder that takes its place.

use crate::{
    Changes, Key, Prefix, Record, StateError, StateStore,
    envelope::{PART_BYTES_MAX, Payload, join},
    guard::{Guard, sweep_unfinished_snapshots, sync_dir},
    image::{Image, explain},
    records::{Commits, CommitsKey},
};
use std::{
    any::Any,
    collections::BTreeMap,
    fs::{self, File},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock, mpsc},
    thread,
    time::Duration,
};

const CACHE_BYTES: u64 = 16 << 20;
const OPEN_LIMIT: Duration = Duration::from_secs(60);
const LOCK_TRIES: u32 = 25;
const LOCK_PAUSE: Duration = Duration::from_millis(20);
const COMPACT_ABOVE_BYTES: u64 = 64 << 20;
const COMPACT_ABOVE_RATIO: u64 = 8;

/// State on disk. Opening and dropping block for a moment; reading does not; commits run on the blocking threads.
#[derive(Debug, Clone)]
pub struct SledStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    created: bool,
    image: RwLock<Image>,
    disk: Mutex<Disk>,
}

struct Disk {
    db: sled::Db,
    barrier: File,
    guard: Guard,
    commits: u64,
    failed: Option<String>,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("commits", &self.commits).field("failed", &self.failed).finish_non_exhaustive()
    }
}

impl SledStore {
    /// Opens the store in `dir`, or makes an empty one. The folder belongs to one process (see
    /// [`crate::WorkFolder`]). Blocks while sled reads its file.
    ///
    /// # Errors
    /// [`StateError::Damaged`] for anything that is not as it was written; nothing has been changed then.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, StateError> {
        Self::open_compacting(dir.as_ref(), COMPACT_ABOVE_BYTES)
    }

    fn open_compacting(dir: &Path, above_bytes: u64) -> Result<Self, StateError> {
        finish_interrupted_compaction(dir)?;
        let (disk, image) = open_disk(dir)?;
        let file_bytes = disk.barrier.metadata().map_or(0, |meta| meta.len());
        if file_bytes > above_bytes && file_bytes > COMPACT_ABOVE_RATIO * live_bytes(&image) {
            let commits = disk.commits;
            drop(disk);
            compact(dir, &image, commits)?;
            tracing::info!(dir = %dir.display(), file_bytes, "the state was written anew, for its file had grown");
            return Self::open_compacting(dir, u64::MAX);
        }
        let created = disk.commits == 0;
        Ok(Self(Arc::new(Inner { dir: dir.into(), created, image: RwLock::new(image), disk: Mutex::new(disk) })))
    }

    /// True when this open found no commit: then, if the log is not empty, the state was lost and is to be rebuilt.
    pub fn was_created(&self) -> bool {
        self.0.created
    }

    /// How many commits the store has seen in its life.
    pub fn commits(&self) -> u64 {
        self.0.disk.lock().unwrap_or_else(PoisonError::into_inner).commits
    }

    /// [`StateStore::commit`] for callers without a runtime.
    ///
    /// # Errors
    /// As [`StateStore::commit`].
    pub fn commit_blocking(&self, changes: Changes) -> Result<(), StateError> {
        if let Some(refused) = changes.refused {
            return Err(refused);
        }
        if changes.ops.is_empty() {
            return Ok(());
        }
        let mut disk = self.0.disk.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = &disk.failed {
            return Err(self.poisoned(why.clone()));
        }
        let (plan, batch) = {
            let image = self.0.image.read().unwrap_or_else(PoisonError::into_inner);
            let plan = image.plan(changes.ops);
            let batch = batch_of(&plan, &image, disk.commits + 1);
            (plan, batch)
        };
        match catch_unwind(AssertUnwindSafe(|| disk.write(batch))) {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return Err(self.poison(&mut disk, why)),
            Err(panic) => return Err(self.poison(&mut disk, panic_text(&*panic))),
        }
        self.0.image.write().unwrap_or_else(PoisonError::into_inner).apply(plan);
        Ok(())
    }

    fn poison(&self, disk: &mut Disk, why: String) -> StateError {
        disk.failed = Some(why.clone());
        self.poisoned(why)
    }

    fn poisoned(&self, why: String) -> StateError {
        StateError::Poisoned { dir: self.0.dir.clone(), why }
    }
}

impl StateStore for SledStore {
    fn get<K: Key>(&self, key: &K) -> Result<Option<K::Value>, StateError> {
        self.0.image.read().unwrap_or_else(PoisonError::into_inner).get(&self.0.dir, key)
    }

    fn scan<K: Key>(&self, prefix: &Prefix<K>) -> Result<Vec<(K, K::Value)>, StateError> {
        self.0.image.read().unwrap_or_else(PoisonError::into_inner).scan(&self.0.dir, prefix)
    }

    async fn commit(&self, changes: Changes) -> Result<(), StateError> {
        let store = self.clone();
        match tokio::task::spawn_blocking(move || store.commit_blocking(changes)).await {
            Ok(done) => done,
            Err(gone) => Err(self.poisoned(format!("the writing task ended: {gone}"))),
        }
    }

    fn is_empty(&self) -> bool {
        self.0.image.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

impl Disk {
    /// One commit: in sled, on disk, and only then in the guard.
    fn write(&mut self, batch: sled::Batch) -> Result<(), String> {
        self.guard.begin().map_err(|error| error.to_string())?;
        self.db.apply_batch(batch).map_err(|error| format!("writing failed: {error}"))?;
        self.db.flush().map_err(|error| format!("flushing failed: {error}"))?;
        self.barrier.sync_data().map_err(|error| format!("fdatasync failed: {error}"))?;
        self.commits += 1;
        self.guard.committed(self.commits).map_err(|error| error.to_string())
    }
}

/// Writes and removals of a plan, parts of longer values and leftovers of old ones included.
fn batch_of(plan: &BTreeMap<Vec<u8>, Option<Payload>>, image: &Image, commit: u64) -> sled::Batch {
    let mut batch = sled::Batch::default();
    for (key, payload) in plan {
        let before = image.payload(key).map_or(0, parts_of);
        let now = payload.as_ref().map_or(0, parts_of);
        if let Some(payload) = payload {
            put(&mut batch, key, payload);
        }
        for part in now..before {
            batch.remove(part_key(key, part));
        }
    }
    put_commits(&mut batch, commit);
    batch
}

fn put(batch: &mut sled::Batch, key: &[u8], payload: &Payload) {
    for (part, envelope) in payload.seal(key).into_iter().enumerate() {
        batch.insert(part_key(key, part as u16), envelope);
    }
}

fn put_commits(batch: &mut sled::Batch, commit: u64) {
    let bytes = bincode_u64(commit);
    put(batch, &[CommitsKey::KIND], &Payload { type_: Commits::TYPE, version: Commits::VERSION, bytes });
}

fn bincode_u64(value: u64) -> Vec<u8> {
    value.to_le_bytes().to_vec()
}

fn parts_of(payload: &Payload) -> u16 {
    payload.bytes.len().div_ceil(PART_BYTES_MAX).max(1) as u16
}

fn part_key(key: &[u8], part: u16) -> Vec<u8> {
    [key, &part.to_be_bytes()].concat()
}

/// Opens sled, checks everything that is in it, and reads it.
fn open_disk(dir: &Path) -> Result<(Disk, Image), StateError> {
    fs::create_dir_all(dir).map_err(|cause| StateError::io("making", dir, cause))?;
    sweep_unfinished_snapshots(dir)?;
    let mut guard = Guard::open(dir)?;
    let (db, image, commits) = match open_guarded(dir) {
        Ok(opened) => opened,
        // Killed while sled made its files for the first time: nothing was ever committed, so nothing is lost.
        Err(StateError::Damaged { what, .. }) if !guard.says().began => {
            tracing::warn!(dir = %dir.display(), what, "making the state anew: nothing was ever committed to it");
            drop(guard);
            fs::remove_dir_all(dir).map_err(|cause| StateError::io("removing", dir, cause))?;
            fs::create_dir_all(dir).map_err(|cause| StateError::io("making", dir, cause))?;
            guard = Guard::open(dir)?;
            open_guarded(dir)?
        }
        Err(other) => return Err(other),
    };
    guard.pin_conf()?;
    guard.check(commits)?;
    let path = dir.join("db");
    let barrier = File::options().read(true).write(true).open(&path);
    let barrier = barrier.map_err(|cause| StateError::io("opening", &path, cause))?;
    if !guard.says().began {
        barrier.sync_all().map_err(|cause| StateError::io("syncing", &path, cause))?;
        let conf = dir.join("conf");
        let synced = File::open(&conf).and_then(|file| file.sync_all());
        synced.map_err(|cause| StateError::io("syncing", &conf, cause))?;
        sync_dir(dir)?;
        dir.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), sync_dir)?;
    }
    Ok((Disk { db, barrier, guard, commits, failed: None }, image))
}

/// Opens and reads sled on a thread of its own: it may panic or hang on damaged files.
fn open_guarded(dir: &Path) -> Result<(sled::Db, Image, u64), StateError> {
    let (send, receive) = mpsc::channel();
    let owned = dir.to_path_buf();
    let opener = thread::Builder::new().name("state-open".to_owned()).spawn(move || {
        let opened = catch_unwind(AssertUnwindSafe(|| open_and_load(&owned)));
        // Nobody listens any more after the time limit: then the store is dropped here.
        drop(send.send(opened));
    });
    opener.map_err(|cause| StateError::io("starting a thread for", dir, cause))?;
    let damaged = |what: String| StateError::Damaged { dir: dir.into(), what };
    match receive.recv_timeout(OPEN_LIMIT) {
        Ok(Ok(opened)) => opened,
        Ok(Err(panic)) => Err(damaged(format!("the store panicked while opening ({})", panic_text(&*panic)))),
        Err(_) => Err(damaged(format!("it did not open within {} seconds", OPEN_LIMIT.as_secs()))),
    }
}

fn open_and_load(dir: &Path) -> Result<(sled::Db, Image, u64), StateError> {
    let open =
        || sled::Config::new().path(dir).cache_capacity(CACHE_BYTES).open().map_err(|error| translate(dir, error));
    let mut db = open();
    // A store that was just dropped is let go a moment later: by its own threads, or by a process that is being
    // started and has not closed what it inherited.
    for _ in 0..LOCK_TRIES {
        if !db.as_ref().is_err_and(StateError::is_locked) {
            break;
        }
        thread::sleep(LOCK_PAUSE);
        db = open();
    }
    let db = db?;
    let (image, commits) = load(dir, &db)?;
    Ok((db, image, commits))
}

/// Reads every entry, puts parts together, opens every envelope.
fn load(dir: &Path, db: &sled::Db) -> Result<(Image, u64), StateError> {
    let mut values: BTreeMap<Vec<u8>, Vec<sled::IVec>> = BTreeMap::new();
    for entry in db.iter() {
        let (key, envelope) = entry.map_err(|error| translate(dir, error))?;
        let (key, _) = key
            .split_last_chunk::<2>()
            .ok_or_else(|| StateError::Damaged { dir: dir.into(), what: "a key that cannot be read".to_owned() })?;
        values.entry(key.to_vec()).or_default().push(envelope);
    }
    let (mut image, mut commits) = (Image::default(), 0);
    for (key, parts) in values {
        let payload = join(&key, &parts).map_err(|flaw| explain(dir, "a value", &flaw))?;
        if key == [CommitsKey::KIND] {
            commits = payload.value::<Commits>().map_err(|flaw| explain(dir, CommitsKey::NAME, &flaw))?.0;
        } else {
            image.insert(key, payload);
        }
    }
    Ok((image, commits))
}

fn translate(dir: &Path, error: sled::Error) -> StateError {
    match error {
        sled::Error::Io(cause) if cause.to_string().contains("acquire lock") => {
            StateError::Locked { dir: dir.into(), pid: 0 }
        }
        sled::Error::Io(cause)
            if !matches!(cause.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof) =>
        {
            StateError::io("opening", dir, cause)
        }
        other => StateError::Damaged { dir: dir.into(), what: other.to_string() },
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    let line = text.and_then(|text| text.lines().next()).unwrap_or("no message");
    format!("the store panicked: {line}")
}

fn live_bytes(image: &Image) -> u64 {
    image.iter().map(|(key, payload)| key.len() + payload.bytes.len() + 32).sum::<usize>() as u64
}

/// Writes everything into a new folder and puts it in the place of the old one. Killed anywhere, the next open finds
/// either the old or the new one.
fn compact(dir: &Path, image: &Image, commits: u64) -> Result<(), StateError> {
    let (new, old) = (beside(dir, ".new"), beside(dir, ".old"));
    remove_if_there(&new)?;
    let (mut disk, _) = open_disk(&new)?;
    let mut batch = sled::Batch::default();
    image.iter().for_each(|(key, payload)| put(&mut batch, key, payload));
    put_commits(&mut batch, commits);
    let failed = |why: String| StateError::Poisoned { dir: dir.into(), why };
    disk.write(batch).map_err(failed)?;
    disk.guard.settle(commits)?;
    drop(disk);
    fs::rename(dir, &old).map_err(|cause| StateError::io("moving", dir, cause))?;
    fs::rename(&new, dir).map_err(|cause| StateError::io("moving", &new, cause))?;
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        sync_dir(parent)?;
    }
    remove_if_there(&old)
}

fn finish_interrupted_compaction(dir: &Path) -> Result<(), StateError> {
    let (new, old) = (beside(dir, ".new"), beside(dir, ".old"));
    if !dir.exists() && old.exists() {
        fs::rename(&old, dir).map_err(|cause| StateError::io("moving", &old, cause))?;
    }
    remove_if_there(&old)?;
    remove_if_there(&new)
}

fn beside(dir: &Path, suffix: &str) -> PathBuf {
    let mut name = dir.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn remove_if_there(dir: &Path) -> Result<(), StateError> {
    match fs::remove_dir_all(dir) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => Err(StateError::io("removing", dir, cause)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Setting, SettingKey};

    #[test]
    fn a_grown_file_is_written_anew_at_open_and_keeps_everything() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("state");
        let store = SledStore::open(&dir).unwrap();
        for round in 0..200 {
            let value = Setting(format!("{round}{}", "x".repeat(9000)));
            store.commit_blocking(Changes::one(&SettingKey::new("long"), &value)).unwrap();
        }
        drop(store);
        let before = fs::metadata(dir.join("db")).unwrap().len();
        let store = SledStore::open_compacting(&dir, 0).unwrap();
        assert!(fs::metadata(dir.join("db")).unwrap().len() < before, "the file did not shrink from {before}");
        assert!(store.get(&SettingKey::new("long")).unwrap().unwrap().0.starts_with("199"));
        assert_eq!(store.commits(), 200);
        drop(store);
        // Killed between the two renames.
        fs::rename(&dir, beside(&dir, ".old")).unwrap();
        assert_eq!(SledStore::open(&dir).unwrap().commits(), 200);
    }

    #[test]
    fn after_a_failed_write_every_commit_is_refused_and_reading_goes_on() {
        let home = tempfile::tempdir().unwrap();
        let store = SledStore::open(home.path().join("state")).unwrap();
        let key = SettingKey::new("a");
        store.commit_blocking(Changes::one(&key, &Setting("1".into()))).unwrap();
        let one = Changes::one(&key, &Setting("2".into()));
        // A barrier that cannot be synced.
        let (reader, _writer) = std::io::pipe().unwrap();
        let whole = std::mem::replace(
            &mut store.0.disk.lock().unwrap().barrier,
            File::from(std::os::fd::OwnedFd::from(reader)),
        );
        assert!(matches!(store.commit_blocking(one), Err(StateError::Poisoned { .. })));
        // The next sync would succeed, and say nothing of what the failed one lost.
        store.0.disk.lock().unwrap().barrier = whole;
        let again = Changes::one(&key, &Setting("3".into()));
        assert!(matches!(store.commit_blocking(again), Err(StateError::Poisoned { .. })));
        assert_eq!(store.get(&key).unwrap(), Some(Setting("1".into())));
    }
}
