//! One migration under test: its ends, its spec, its work folder, and the release binary that runs it.

use crate::{
    bank,
    ends::{Direction, End},
};
use crossfade_event::Partition;
use crossfade_log::{EventLog, embedded::Embedded};
use crossfade_testkit::{
    compare::{assert_same, assert_same_tables, postgres_columns},
    crossfade::{Crossfade, Running, binary},
    shop,
    wait::GENEROUS,
};
use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// The spec's file name.
pub(crate) const SPEC: &str = "spec.toml";

/// A migration and everything around it.
#[derive(Debug)]
pub(crate) struct Stand {
    pub(crate) direction: Direction,
    pub(crate) source: End,
    pub(crate) target: End,
    pub(crate) crossfade: Crossfade,
    /// The migration's name: names are given once, for slots belong to a whole server.
    pub(crate) name: String,
    folder: TempDir,
}

impl Stand {
    /// Fresh ends and a spec over them; nothing is in the source yet. `None` where a server cannot be had.
    pub(crate) async fn new(direction: Direction) -> Option<Self> {
        Self::with_binary(direction, binary()).await
    }

    /// The same with another build of the binary.
    pub(crate) async fn with_binary(direction: Direction, binary: PathBuf) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("no temporary folder: {error}"));
        let (source, target) = direction.ends(folder.path()).await?;
        Some(Self::over(direction, source, target, folder, binary))
    }

    /// Over ends that are there already.
    pub(crate) fn over(direction: Direction, source: End, target: End, folder: TempDir, binary: PathBuf) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let name = format!("kills-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let crossfade = Crossfade::with_binary(binary, folder.path());
        let stand = Self { direction, source, target, crossfade, name, folder };
        stand.write_spec(&stand.source.spec(), &stand.target.spec());
        stand
    }

    /// Writes the spec, with other words for the ends: a proxy in between.
    pub(crate) fn write_spec(&self, source: &str, sink: &str) {
        let (name, schema) = (&self.name, self.source.schema());
        // A file has no schema of its own to name the target's.
        let into = if self.direction == Direction::SqliteToPostgres { "schema = \"public\"\n" } else { "" };
        let spec = format!(
            "name = \"{name}\"\n[source]\n{source}tables = [\"{schema}.*\"]\nsnapshot = {{ workers = 2, chunk_rows = 1000 }}\n\
             [log]\nsegment_bytes = \"1MiB\"\n[sink]\n{sink}{into}"
        );
        self.crossfade.write(SPEC, &spec);
    }

    /// The work folder.
    pub(crate) fn work(&self) -> PathBuf {
        self.folder.path().join("crossfade-data").join(&self.name)
    }

    /// The test's own folder.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts `crossfade run`.
    pub(crate) fn start(&self) -> Running {
        self.crossfade.spawn(&["run", SPEC, "--quiet"])
    }

    /// Waits until `reached`, while `run` is alive.
    pub(crate) async fn until(&self, what: &str, run: &mut Running, mut reached: impl AsyncFnMut() -> bool) {
        let started = Instant::now();
        while !reached().await {
            assert!(
                run.is_running(),
                "the migration ended while it was to reach: {what}\n--- stdout\n{}\n--- stderr\n{}",
                run.stdout(),
                run.stderr()
            );
            assert!(
                started.elapsed() < GENEROUS,
                "waited {GENEROUS:?} in vain for: {what}\n--- stderr\n{}\n--- status\n{}",
                run.stderr(),
                std::fs::read_to_string(self.work().join("status.json")).unwrap_or_default()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until everything that the source has now is in the target: a mark is written, and arrives.
    pub(crate) async fn until_caught_up(&self, run: &mut Running, mark: i64) {
        bank::write_mark(&self.source, mark).await;
        self.until("the target has caught up", run, async || bank::has_mark(&self.target, mark).await).await;
    }

    /// `crossfade wait --caught-up`, which must succeed.
    pub(crate) fn wait_caught_up(&self) {
        self.crossfade.succeed(&["wait", SPEC, "--caught-up", "--timeout", "120s"]);
    }

    /// Both sides, table by table and value by value; on both everything adds up.
    pub(crate) async fn assert_equal(&self, with_shop: bool) {
        let mut tables: Vec<&str> = bank::TABLES.to_vec();
        if with_shop {
            tables.extend(shop::TABLES);
        }
        match (&self.source, &self.target) {
            (End::Postgres(source), End::Postgres(target)) => {
                let (left, right) = (source.connect().await, target.connect().await);
                assert_same_tables(&left, &right, &tables, str::to_owned).await;
            }
            (End::Sqlite(_), End::Sqlite(_)) => {
                for table in tables {
                    let all = format!("SELECT * FROM {table}");
                    assert_same(table, &self.source.rows(&all).await, &self.target.rows(&all).await);
                }
            }
            _ => {
                for table in tables {
                    let columns = match (&self.source, &self.target) {
                        (End::Postgres(end), _) | (_, End::Postgres(end)) => {
                            postgres_columns(&end.connect().await, table).await
                        }
                        _ => "*".to_owned(),
                    };
                    let all = format!("SELECT {columns} FROM {table}");
                    assert_same(table, &self.source.texts(&all).await, &self.target.texts(&all).await);
                }
            }
        }
        bank::assert_adds_up(&self.source, "source").await;
        bank::assert_adds_up(&self.target, "target").await;
    }

    /// Whether the target holds a whole copy, by its own word.
    pub(crate) async fn is_loaded(&self) -> bool {
        let sql = match &self.target {
            End::Postgres(_) => {
                format!(
                    "SELECT 1::bigint FROM crossfade.positions WHERE migration = '{}' AND stage ILIKE 'streaming'",
                    self.name
                )
            }
            End::Sqlite(_) => format!(
                "SELECT 1 FROM _crossfade_positions WHERE migration = '{}' AND progress ->> '$.stage' LIKE 'streaming'",
                self.name
            ),
        };
        self.target.number(&sql).await.is_some()
    }

    /// Where the log ends; works beside a run.
    pub(crate) fn log_end(&self) -> u64 {
        let log = Embedded::open_read_only(self.work().join("log"));
        log.map_or(0, |log| log.tail().cut.next(Partition(0)).0)
    }

    /// How many entries of the log the target has not got, after a kill: a batch was under way if there are any.
    pub(crate) async fn behind_the_log(&self) -> u64 {
        let sql = match &self.target {
            End::Postgres(_) => format!("SELECT cut FROM crossfade.positions WHERE migration = '{}'", self.name),
            End::Sqlite(_) => format!(
                "SELECT json_extract(progress, '$.cut[0]') || '' FROM _crossfade_positions WHERE migration = '{}'",
                self.name
            ),
        };
        let cut = self.target.text(&sql).await.and_then(|cut| cut.parse::<u64>().ok());
        self.log_end().saturating_sub(cut.unwrap_or_default())
    }

    /// Waits until no session of a run that was killed is left in the target.
    pub(crate) async fn until_sessions_ended(&self) {
        if let End::Postgres(_) = self.target {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'crossfade%' AND datname = current_database()";
            crossfade_testkit::wait::wait_until("the killed sessions to end", async || {
                self.target.number(sql).await == Some(0)
            })
            .await;
        }
    }
}

impl Drop for Stand {
    /// What a failed test leaves is there to be looked at.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.folder.disable_cleanup(true);
            println!("the folder of {} is kept: {}", self.name, self.folder.path().display());
        }
    }
}
