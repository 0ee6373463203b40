//! Failing disks, and disks that take their time.

use crate::conformance::small;
use crossfade_event::{Batch, Event};
use crossfade_log::{
    EventLog, Lane, LogError, LogReader,
    embedded::{Disk, Embedded, Options, OsDisk},
};
use crossfade_testkit::log_suite::{at, batch, events_of, insert, part, read_all, schema, soon, transaction};
use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, Condvar, Mutex},
};

/// A disk whose writes and syncs can be made to wait or to fail.
#[derive(Debug, Default)]
pub(crate) struct TestDisk {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    hold_syncs: bool,
    waiting: usize,
    syncs: usize,
    writes: usize,
    fail_sync: bool,
    room: Option<usize>,
    /// What was written and not synced since: inode, place, length.
    unsynced: Vec<(u64, u64, usize)>,
}

impl TestDisk {
    pub(crate) fn hold_syncs(&self, hold: bool) {
        self.state.lock().unwrap().hold_syncs = hold;
        self.changed.notify_all();
    }

    /// Waits until a sync waits.
    pub(crate) fn until_a_sync_waits(&self) {
        let mut state = self.state.lock().unwrap();
        while state.waiting == 0 {
            state = self.changed.wait(state).unwrap();
        }
    }

    /// What a power cut may still take away: inode, place, length.
    pub(crate) fn unsynced(&self) -> Vec<(u64, u64, usize)> {
        self.state.lock().unwrap().unsynced.clone()
    }

    fn counts(&self) -> (usize, usize) {
        let state = self.state.lock().unwrap();
        (state.writes, state.syncs)
    }
}

impl Disk for TestDisk {
    fn write(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.writes += 1;
        let room = state.room.map_or(bytes.len(), |room| room.min(bytes.len()));
        if let Some(left) = &mut state.room {
            *left -= room;
        }
        state.unsynced.push((file.metadata()?.ino(), at, room));
        OsDisk.write(file, &bytes[..room], at)?;
        if room < bytes.len() { Err(io::Error::from_raw_os_error(libc::ENOSPC)) } else { Ok(()) }
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.waiting += 1;
        self.changed.notify_all();
        while state.hold_syncs {
            state = self.changed.wait(state).unwrap();
        }
        state.waiting -= 1;
        state.syncs += 1;
        if state.fail_sync {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let inode = file.metadata()?.ino();
        state.unsynced.retain(|(of, _, _)| *of != inode);
        drop(state);
        OsDisk.sync(file)
    }
}

pub(crate) fn open(dir: &Path, disk: &Arc<TestDisk>) -> Result<Embedded, LogError> {
    Embedded::open(dir, Options { disk: disk.clone(), ..small() })
}

fn first() -> Batch {
    batch(1, vec![Event::SchemaSeen(schema(1, 1))], Some(at(1, u32::MAX)), true)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_visible_or_acknowledged_before_it_is_synced() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Arc::new(TestDisk::default()));
    let log = open(dir.path(), &disk).unwrap();
    log.append(first()).await.unwrap();
    let before = log.tail();
    let mut reader = log.read(&before.cut, Lane::All).unwrap();
    disk.hold_syncs(true);
    let append = tokio::spawn(log.append(transaction(2, vec![insert("a", "1")])));
    tokio::task::block_in_place(|| disk.until_a_sync_waits());
    assert!(reader.try_next().unwrap().is_none());
    assert_eq!(log.tail(), before);
    assert!(!append.is_finished());
    disk.hold_syncs(false);
    soon("the append", append).await.unwrap().unwrap();
    assert_eq!(reader.try_next().unwrap().unwrap().entries.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_that_wait_together_share_one_write_and_one_sync() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Arc::new(TestDisk::default()));
    let log = open(dir.path(), &disk).unwrap();
    log.append(first()).await.unwrap();
    disk.hold_syncs(true);
    let one = log.append(transaction(2, vec![insert("a", "1")]));
    tokio::task::block_in_place(|| disk.until_a_sync_waits());
    let many: Vec<_> = (3..103).map(|n| log.append(transaction(n, vec![insert("a", "1")]))).collect();
    let (writes, syncs) = disk.counts();
    disk.hold_syncs(false);
    soon("the first", one).await.unwrap();
    for append in many {
        soon("the others", append).await.unwrap();
    }
    assert_eq!(disk.counts(), (writes + 1, syncs + 2), "one write, and one sync after the one that was held");
}

#[tokio::test]
async fn after_a_failed_sync_nothing_is_written_until_the_log_is_opened_anew() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Arc::new(TestDisk::default()));
    let log = open(dir.path(), &disk).unwrap();
    log.append(first()).await.unwrap();
    let (before, tail) = (events_of(&log, Lane::All), log.tail());
    disk.state.lock().unwrap().fail_sync = true;
    let failed = soon("the append", log.append(transaction(2, vec![insert("a", "1")]))).await;
    assert!(matches!(&failed, Err(LogError::Poisoned { why }) if why.contains("syncing")), "{failed:?}");
    disk.state.lock().unwrap().fail_sync = false;
    let counts = disk.counts();
    let refused = soon("the next", log.append(transaction(3, vec![insert("a", "1")]))).await;
    assert!(matches!(refused, Err(LogError::Poisoned { .. })), "{refused:?}");
    assert!(matches!(soon("abandoning", log.abandon()).await, Err(LogError::Poisoned { .. })));
    assert_eq!(disk.counts(), counts, "nothing is written and no sync is tried again");
    assert_eq!((events_of(&log, Lane::All), log.tail()), (before.clone(), tail), "readers go on with what was there");
    drop(log);
    let log = open(dir.path(), &disk).unwrap();
    let (writes, syncs) = disk.counts();
    assert!(writes > counts.0 && syncs > counts.1, "what a failed sync left in memory is written again");
    let now = events_of(&log, Lane::All);
    assert!(now.starts_with(&before) && [before.len(), before.len() + 3].contains(&now.len()));
    log.append(transaction(4, vec![insert("a", "1")])).await.unwrap();
}

#[tokio::test]
async fn a_full_disk_stops_the_log_and_room_lets_it_go_on() {
    for room in (0..9000).step_by(373) {
        let (dir, disk) = (tempfile::tempdir().unwrap(), Arc::new(TestDisk::default()));
        let log = open(dir.path(), &disk).unwrap();
        log.append(first()).await.unwrap();
        disk.state.lock().unwrap().room = Some(room);
        let mut taken = 1;
        let refused = loop {
            match log.append(transaction(taken + 1, vec![insert("a", &"x".repeat(900))])).await {
                Ok(_) => taken += 1,
                Err(refused) => break refused,
            }
        };
        assert!(matches!(&refused, LogError::Poisoned { why } if why.contains("No space left")), "{refused:?}");
        let visible = events_of(&log, Lane::All);
        assert_eq!(log.tail().position, Some(at(taken, u32::MAX)));
        // Room alone does not heal it: what the failed write left in the file is not known before it is read again.
        disk.state.lock().unwrap().room = None;
        let counts = disk.counts();
        let next = log.append(transaction(taken + 2, vec![insert("a", "1")])).await;
        assert!(matches!(next, Err(LogError::Poisoned { .. })), "{next:?}");
        assert_eq!(disk.counts(), counts, "nothing more is written");
        drop(log);
        let log = open(dir.path(), &disk).unwrap();
        assert_eq!(events_of(&log, Lane::All), visible, "{room} bytes of room");
        log.append(transaction(taken + 1, vec![insert("a", "1")])).await.unwrap();
        assert_eq!(events_of(&log, Lane::All).len(), visible.len() + 3);
    }
}

#[tokio::test]
async fn a_disk_that_fails_while_a_head_is_abandoned_or_a_schema_is_registered_stops_the_log() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Arc::new(TestDisk::default()));
    let log = open(dir.path(), &disk).unwrap();
    disk.state.lock().unwrap().room = Some(0);
    assert!(log.append(first()).await.is_err(), "the register of schemas has no room");
    assert!(log.poisoned().is_some());
    drop(log);
    disk.state.lock().unwrap().room = None;
    let log = open(dir.path(), &disk).unwrap();
    assert!(log.latest_schemas().is_empty());
    log.append(first()).await.unwrap();
    log.append(part(2, vec![insert("a", "1")])).await.unwrap();
    log.abandon().await.unwrap();
    assert_eq!(read_all(&log, &log.start(), Lane::All).len(), 1);
}

#[tokio::test]
async fn without_sync_nothing_is_synced() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Arc::new(TestDisk::default()));
    let log = Embedded::open(dir.path(), Options { disk: disk.clone(), sync: false, ..small() }).unwrap();
    log.append(first()).await.unwrap();
    for n in 2..200 {
        log.append(transaction(n, vec![insert("a", &"x".repeat(1000))])).await.unwrap();
    }
    assert!(log.statistics().unwrap().segments > 2);
    assert_eq!(disk.counts().1, 0);
}
