//! Disks that are full: under the log, under the state, under the target's tables. The run stops cleanly, or waits and says so;
//! with room again it goes on, and nothing is lost.
//!
//! The disks are small file systems in memory, which only root may mount. They are unmounted however the test ends.

use crate::{
    bank,
    ends::End,
    setup::Direction,
    stand::{SPEC, Stand},
};
use crossfade_testkit::{
    crossfade::{Finished, Running, binary},
    postgres::{Postgres, Settings, Version},
    seeded, unavailable,
    wait::wait_until,
};
use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

const BALLAST: i64 = 4_000;
pub(crate) const MIB: u64 = 1 << 20;

/// A file system of so many bytes.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) at: PathBuf,
    /// Unmounts when its input ends.
    watchdog: Child,
}

const UNMOUNT: &str = r#"read -r word; umount "$1" 2>/dev/null || umount -l "$1""#;

impl Disk {
    /// Over the folder `at`, which is made, for the user who owns `like`. `None` where nothing may be mounted, which has been
    /// said.
    pub(crate) fn mount(at: PathBuf, bytes: u64, like: &Path) -> Option<Self> {
        fs::create_dir_all(&at).unwrap();
        let owner = fs::metadata(like).unwrap();
        let options = format!("size={bytes},mode=0755,uid={},gid={}", owner.uid(), owner.gid());
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&at).output();
        let failed = match mounted {
            Ok(done) if done.status.success() => None,
            Ok(done) => Some(String::from_utf8_lossy(&done.stderr).trim().to_owned()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(reason) = failed {
            if may_mount() {
                unavailable("a small file system", &reason);
            } else {
                println!(
                    "*** SKIPPED: full disks are not tried, for this process may not mount a file system: {reason}"
                );
            }
            return None;
        }
        let watchdog = Command::new("sh")
            .args(["-c", UNMOUNT, "watchdog"])
            .arg(&at)
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        Some(Self { at, watchdog })
    }

    fn filler(&self) -> PathBuf {
        self.at.join("filler")
    }

    /// Takes all room but `left` bytes.
    pub(crate) fn fill(&self, left: u64) {
        let mut file = File::create(self.filler()).unwrap();
        let block = vec![0xa5; 4096];
        loop {
            match file.write(&block) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => panic!("{error}"),
            }
        }
        let taken = file.metadata().unwrap().len();
        file.set_len(taken.saturating_sub(left)).unwrap();
    }

    /// Gives the room back.
    pub(crate) fn free(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        let _ = self.watchdog.wait();
    }
}

/// Whether the right to mount is there (`CAP_SYS_ADMIN`): root in a container may lack it.
fn may_mount() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let rights = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap_or_default();
    u64::from_str_radix(rights.trim(), 16).is_ok_and(|rights| rights & (1 << 21) != 0)
}

/// Changes in the source until the run has ended by itself.
async fn press(stand: &Stand, mut run: Running) -> Finished {
    let mut turn = 0;
    wait_until("the run to end by itself", async || {
        if run.is_running() {
            turn = (turn + 1) % 8;
            stand.source.execute(&format!("UPDATE ballast SET filler = filler || '.' WHERE id % 8 = {turn}")).await;
        }
        !run.is_running()
    })
    .await;
    run.wait()
}

fn assert_says_full(finished: &Finished) {
    assert_eq!(finished.code, Some(1), "a full disk is a failure that another start mends\n{finished}");
    let said = &finished.stderr;
    assert!(said.contains("No space left on device"), "the cause must be named\n{finished}");
    assert!(said.contains("ake room"), "the remedy must be named\n{finished}");
    assert!(!said.contains("panicked"), "{finished}");
}

/// The disk is over a folder within the work folder; it is filled to the last byte, and to some bytes before, while the run follows.
async fn fills_up(direction: Direction, within: &[&str], bytes: u64) {
    let Some(stand) = Stand::new(direction).await else { return };
    let at = within.iter().fold(stand.work(), |path, part| path.join(part));
    let Some(disk) = Disk::mount(at, bytes, stand.folder()) else { return };
    bank::create(&stand.source, BALLAST).await;
    let teller = bank::teller(&stand.source, seeded::seed("a full disk"), 100);
    let mut mark = 1;
    let mut run = stand.start();
    stand.until_caught_up(&mut run, mark).await;
    for left in [0, 4_096, 150_000, 0] {
        disk.fill(left);
        let ended = press(&stand, run).await;
        assert_says_full(&ended);
        assert_eq!(stand.crossfade.run(&["status", SPEC]).code, Some(0), "the status can be read on a full disk");
        if left == 0 {
            assert_says_full(&press(&stand, stand.start()).await);
        }
        teller.wait_for_more(5);
        disk.free();
        run = stand.start();
        mark += 1;
        stand.until_caught_up(&mut run, mark).await;
    }
    assert!(teller.stop() > 20);
    stand.wait_caught_up();
    stand.assert_equal(false).await;
    assert!(run.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_work_folder_stops_a_postgres_migration_and_room_lets_it_go_on() {
    fills_up(Direction::PostgresToPostgres, &[], 48 * MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_work_folder_stops_a_sqlite_migration_and_room_lets_it_go_on() {
    fills_up(Direction::SqliteToSqlite, &[], 48 * MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_log_alone_stops_the_migration_and_room_lets_it_go_on() {
    fills_up(Direction::PostgresToPostgres, &["log"], 48 * MIB).await;
}

/// The target's tables are on a disk of their own, which is full while it is copied, and again while it follows.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_targets_tables_is_waited_for_and_shown() {
    let folder =
        tempfile::Builder::new().permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755)).tempdir().unwrap();
    let (Some(source), Some(target)) = (Postgres::shared(Version::V15), Postgres::start(Version::V15, Settings::new()))
    else {
        return;
    };
    let Some(disk) = Disk::mount(folder.path().join("tables"), 64 * MIB, target.folder()) else { return };
    let (one, two) = (source.create_database("source").await, target.create_database("target").await);
    let administrator = target.connect("postgres").await;
    for sql in [
        format!("CREATE TABLESPACE small LOCATION '{}'", disk.at.display()),
        format!("ALTER DATABASE {} SET TABLESPACE small", two.name),
    ] {
        administrator.batch_execute(&sql).await.unwrap();
    }
    let setup = Direction::PostgresToPostgres.into();
    let stand = Stand::over(setup, End::Postgres(one), End::Postgres(two), tempfile::tempdir().unwrap(), binary());
    bank::create(&stand.source, 40_000).await;
    let teller = bank::teller(&stand.source, seeded::seed("a full disk under the target"), 100);

    disk.fill(2 * MIB);
    let mut run = stand.start();
    until_it_says_full(&stand, &mut run, "while it copies").await;
    disk.free();
    stand.until_caught_up(&mut run, 1).await;

    disk.fill(0);
    stand.source.execute("UPDATE ballast SET filler = filler || filler || filler").await;
    until_it_says_full(&stand, &mut run, "while it follows").await;
    teller.wait_for_more(5);
    run.kill();
    let mut run = stand.start();
    until_it_says_full(&stand, &mut run, "after a kill").await;
    disk.free();
    stand.until_caught_up(&mut run, 2).await;
    teller.stop();
    stand.wait_caught_up();
    stand.assert_equal(false).await;
    assert!(run.is_running());
}

async fn until_it_says_full(stand: &Stand, run: &mut Running, when: &str) {
    let what = format!("the status says that the target's disk is full, {when}");
    stand
        .until(&what, run, async || {
            let status = stand.crossfade.run(&["status", SPEC, "--json"]);
            status.code == Some(0) && status.stdout.contains("No space left on device")
        })
        .await;
}
