//! A folder with a spec, and the commands that are run from it.

use crossfade_testkit::{
    compare::{self, Rows},
    crossfade::{Crossfade, Finished, Running},
    postgres::{Database, Postgres, Version},
    wait::GENEROUS,
};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// The spec of every test here.
pub(crate) const SPEC: &str = "shop.toml";

/// Where somebody sits who moves a database.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) crossfade: Crossfade,
    pub(crate) name: String,
    folder: TempDir,
}

impl Desk {
    /// An empty one, with a migration's name that was not used before: slots belong to a whole server.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let folder = tempfile::tempdir().unwrap();
        let name = format!("journey-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        Self { crossfade: Crossfade::at(folder.path()), name, folder }
    }

    /// A file in its folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The migration's work folder.
    pub(crate) fn work(&self) -> PathBuf {
        self.path("crossfade-data").join(&self.name)
    }

    /// Writes the spec: name, both ends and whatever else.
    pub(crate) fn write_spec(&self, source: &str, sink: &str, rest: &str) {
        let (name, log) = (&self.name, if rest.contains("[log]") { String::new() } else { log_of_choice() });
        self.crossfade.write(SPEC, &format!("name = \"{name}\"\n[source]\n{source}\n[sink]\n{sink}\n{rest}\n{log}"));
    }

    /// Runs a command over the spec: the words before it, and those behind.
    pub(crate) fn command(&self, words: &[&str], more: &[&str]) -> Finished {
        let args: Vec<&str> = words.iter().copied().chain([SPEC]).chain(more.iter().copied()).collect();
        self.crossfade.run(&args)
    }

    /// The same; it must end with this code.
    pub(crate) fn expect(&self, code: i32, words: &[&str], more: &[&str]) -> Finished {
        let finished = self.command(words, more);
        assert_eq!(finished.code, Some(code), "crossfade {} {}\n{finished}", words.join(" "), more.join(" "));
        finished
    }

    /// Starts `crossfade run`.
    pub(crate) fn start(&self) -> Running {
        self.crossfade.spawn(&["run", SPEC, "--quiet"])
    }

    /// Starts a process that does a part of it.
    #[cfg(feature = "kafka")]
    pub(crate) fn start_role(&self, role: &str) -> Running {
        self.crossfade.spawn(&["run", SPEC, "--quiet", "--role", role])
    }

    /// `crossfade wait --caught-up`, as long as the run lives.
    pub(crate) fn wait(&self, run: &mut Running) {
        self.wait_with(run, &[]);
    }

    /// The same, with more words.
    pub(crate) fn wait_with(&self, run: &mut Running, more: &[&str]) {
        let words: Vec<&str> = ["--caught-up", "--timeout", "240s"].iter().chain(more).copied().collect();
        let waited = self.command(&["wait"], &words);
        // A run that is ending says why in its last line.
        for _ in 0..250 {
            if waited.code == Some(0) || !run.is_running() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(
            waited.code == Some(0) && run.is_running(),
            "the run does not catch up\n{waited}\n--- the run says\n{}{}\n--- status\n{}",
            run.stdout(),
            run.stderr(),
            self.command(&["status"], more)
        );
    }

    /// `crossfade verify`, which must find no difference.
    pub(crate) fn verify(&self) {
        let said = self.expect(0, &["verify"], &[]);
        assert!(said.stdout.contains("0 differences"), "{said}");
    }

    /// Waits until a state is reached, as long as the run lives.
    pub(crate) async fn until(&self, what: &str, run: &mut Running, mut reached: impl AsyncFnMut() -> bool) {
        let started = Instant::now();
        while !reached().await {
            assert!(run.is_running(), "the run ended before: {what}\n{}{}", run.stdout(), run.stderr());
            let late = started.elapsed() > GENEROUS;
            assert!(!late, "in vain waited for: {what}\n{}\n{}", run.stderr(), self.command(&["status"], &[]));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until a run has said something.
    pub(crate) fn until_said(&self, word: &str, run: &mut Running) {
        let what = format!("the run to say {word:?}");
        crossfade_testkit::wait::wait_for_blocking(&what, || {
            let said = run.stderr();
            assert!(run.is_running(), "the run ended before {what}\n{said}");
            said.contains(word).then_some(())
        });
    }

    /// Ends the run in order; it must drain and say so by its code.
    pub(crate) fn stop(&self, run: Running) {
        run.interrupt();
        let ended = run.wait();
        assert_eq!(ended.code, Some(0), "{ended}");
    }
}

/// `[log]` of a spec that says nothing of it: nothing, so segments on disk; with `CROSSFADE_TEST_LOG=kafka` topics. So the same
/// journeys are made over either (`ci/test-kafka`).
pub(crate) fn log_of_choice() -> String {
    #[cfg(feature = "kafka")]
    if std::env::var("CROSSFADE_TEST_LOG").is_ok_and(|kind| kind == "kafka") {
        let kafka = crossfade_testkit::kafka::Kafka::shared().expect("CROSSFADE_TEST_LOG asks for a broker");
        return crate::kafka::log(kafka);
    }
    String::new()
}

/// How a database stands in a spec.
pub(crate) fn postgres(database: &Database) -> String {
    format!("kind = \"postgres\"\nurl = \"{}\"", database.url)
}

/// How a file stands in a spec.
pub(crate) fn sqlite(path: &Path) -> String {
    format!("kind = \"sqlite\"\npath = \"{}\"", path.display())
}

/// A database on each of the shared servers. `None` where they cannot be had, which has been said.
pub(crate) async fn two_databases() -> Option<(Database, Database)> {
    let (source, target) = (Postgres::shared(Version::V15)?, Postgres::shared_target(Version::V15)?);
    Some((source.create_database("source").await, target.create_database("target").await))
}

/// All rows of a query, by their text forms.
pub(crate) async fn rows(database: &Database, sql: &str) -> Rows {
    compare::postgres_rows(&database.connect().await, sql).await
}

/// Fails unless these tables are equal on both sides.
pub(crate) async fn assert_same_tables(source: &Database, target: &Database, tables: &[&str]) {
    let (left, right) = (source.connect().await, target.connect().await);
    compare::assert_same_tables(&left, &right, tables, str::to_owned).await;
}

/// Somebody who works in the source all the time.
#[derive(Debug)]
pub(crate) struct Writer {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Commits one transaction after another; `transaction` gives the statements of the n-th.
    pub(crate) fn start(database: &Database, transaction: impl Fn(u64) -> String + Send + 'static) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (url, over, count) = (database.url.clone(), Arc::clone(&stop), Arc::clone(&done));
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let client = crossfade_testkit::postgres::connect(&url).await.unwrap();
                for number in 0.. {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    let sql = transaction(number);
                    let done = client.batch_execute(&format!("BEGIN; {sql}; COMMIT")).await;
                    done.unwrap_or_else(|error| panic!("{error:?}\nin: {sql}"));
                    count.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
        });
        Self { stop, done, thread: Some(thread) }
    }

    /// Waits until so many more transactions are committed.
    pub(crate) fn wait_for_more(&self, transactions: u64) {
        let goal = self.done.load(Ordering::Relaxed) + transactions;
        crossfade_testkit::wait::wait_for_blocking("a writer to commit", || {
            assert!(self.thread.as_ref().is_some_and(|thread| !thread.is_finished()), "a writer has ended");
            (self.done.load(Ordering::Relaxed) >= goal).then_some(())
        });
    }

    /// Lets the last transaction end.
    pub(crate) fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join).transpose().unwrap_or_else(|_| panic!("a writer panicked"));
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
