//! One migration under test: its ends, its spec, its work folder, and the release binary that runs it.

use crate::{
    bank,
    ends::End,
    setup::{Mode, Setup},
    shadow,
    tail::{self, Tail},
    yard,
};
use crossfade_event::Cut;
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
    pub(crate) setup: Setup,
    pub(crate) source: End,
    pub(crate) target: End,
    pub(crate) crossfade: Crossfade,
    /// `[log]` of the spec.
    pub(crate) log: String,
    /// The migration's name: names are given once, for slots belong to a whole server.
    pub(crate) name: String,
    tail: Tail,
    folder: TempDir,
}

impl Stand {
    /// Fresh ends and a spec over them; nothing is in the source yet. `None` where a server cannot be had.
    pub(crate) async fn new(setup: impl Into<Setup>) -> Option<Self> {
        Self::with_binary(setup.into(), binary()).await
    }

    /// The same with another build of the binary.
    pub(crate) async fn with_binary(setup: Setup, binary: PathBuf) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("no temporary folder: {error}"));
        let (source, target) = setup.ends(folder.path()).await?;
        Some(Self::over(setup, source, target, folder, binary))
    }

    /// Over ends that are there already.
    pub(crate) fn over(setup: Setup, source: End, target: End, folder: TempDir, binary: PathBuf) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let name = format!("kills-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let crossfade = Crossfade::with_binary(binary, folder.path());
        let (log, tail) = (tail::spec(), Tail::default());
        let stand = Self { setup, source, target, crossfade, log, name, tail, folder };
        stand.write_spec(&stand.source.spec(), &stand.target.spec());
        stand
    }

    /// Writes the spec, with other words for the ends: a proxy in between.
    pub(crate) fn write_spec(&self, source: &str, sink: &str) {
        let (name, log, schema, rules) = (&self.name, &self.log, self.source.schema(), self.setup.rules());
        // Within one database a pattern would match our own mapping table, too.
        let tables = match self.setup.mode {
            Mode::Shadow => bank::TABLES.map(|table| format!("\"{schema}.{table}\"")).join(", "),
            _ => format!("\"{schema}.*\""),
        };
        let spec = format!(
            "name = \"{name}\"\n[source]\n{source}tables = [{tables}]\nsnapshot = {{ workers = 2, chunk_rows = 1000 }}\n\
             {log}[sink]\n{sink}{rules}"
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
        self.until("the target has caught up", run, async || self.has_mark(mark).await).await;
    }

    /// Whether the target has the mark.
    pub(crate) async fn has_mark(&self, mark: i64) -> bool {
        match self.setup.mode {
            Mode::Shadow => shadow::has_mark(&self.target, mark).await,
            _ => bank::has_mark(&self.target, mark).await,
        }
    }

    /// Makes the tables that every mode has, and those that only this one has.
    pub(crate) async fn fill(&self, ballast: i64) {
        bank::create(&self.source, ballast).await;
        match self.setup.mode {
            Mode::Plain => {}
            Mode::Parallel => bank::create_badges(&self.source).await,
            Mode::Yard { .. } => yard::create(&self.source).await,
            Mode::Shadow => shadow::adapt(&self.source).await,
        }
    }

    /// `crossfade wait --caught-up`, which must succeed.
    pub(crate) fn wait_caught_up(&self) {
        self.crossfade.succeed(&["wait", SPEC, "--caught-up", "--timeout", "240s"]);
    }

    /// Both sides, table by table and value by value; on both everything adds up.
    pub(crate) async fn assert_equal(&self, with_shop: bool) {
        if self.setup.mode == Mode::Shadow {
            shadow::assert_right(&self.target).await;
            bank::assert_adds_up(&self.source, "source").await;
            return;
        }
        let mut tables: Vec<&str> = bank::TABLES.to_vec();
        if self.setup.mode == Mode::Parallel {
            tables.push("badges");
        }
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
                    "SELECT 1::bigint FROM crossfade.positions WHERE migration = '{}' AND worker = 0 AND stage ILIKE 'streaming'",
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
    pub(crate) fn log_cut(&self) -> Cut {
        self.tail.cut(&self.work(), &self.name)
    }

    /// The same, the places of its partitions together.
    pub(crate) fn log_end(&self) -> u64 {
        self.log_cut().0.iter().map(|offset| offset.0).sum()
    }

    /// How many entries of the log the target has not got, after a kill: a batch was under way if there are any.
    pub(crate) async fn behind_the_log(&self) -> u64 {
        let sql = match &self.target {
            End::Postgres(_) => {
                format!("SELECT cut FROM crossfade.positions WHERE migration = '{}' AND worker = 0", self.name)
            }
            End::Sqlite(_) => format!(
                "SELECT (SELECT sum(value) FROM json_each(progress, '$.cut')) || '' FROM _crossfade_positions WHERE migration = '{}'",
                self.name
            ),
        };
        let cut = self.target.text(&sql).await.unwrap_or_default();
        let there: u64 = cut.split(',').filter_map(|place| place.parse::<u64>().ok()).sum();
        self.log_end().saturating_sub(there)
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
