//! The release binary, run as a user runs it: from a folder, with a spec, by its arguments; and killed.

use crate::{postgres::signal, wait::GENEROUS, watchdog::Watchdog};
use serde_json::Value;
use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

/// A place from which `crossfade` is run: a folder and some environment.
#[derive(Debug, Clone)]
pub struct Crossfade {
    binary: PathBuf,
    folder: PathBuf,
    env: Vec<(String, String)>,
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it said beside.
    pub stderr: String,
}

/// A run under way; killed when dropped, and when the test's process ends in whatever way.
#[derive(Debug)]
pub struct Running {
    child: Child,
    said: String,
    stdout: PathBuf,
    stderr: PathBuf,
    watchdog: Watchdog,
}

/// The binary under test: `$CROSSFADE_BIN`, or the release build beside this test's own build.
///
/// # Panics
/// When there is none.
pub fn binary() -> PathBuf {
    if let Some(given) = env::var_os("CROSSFADE_BIN") {
        return given.into();
    }
    let own = env::current_exe().unwrap_or_else(|error| panic!("a test does not know its own place: {error}"));
    let built = own.ancestors().map(|folder| folder.join("release/crossfade")).find(|file| file.is_file());
    built.unwrap_or_else(|| {
        panic!("there is no release binary: run `cargo build --release -p crossfade-cli`, or set CROSSFADE_BIN")
    })
}

impl Crossfade {
    /// Runs the binary under test from `folder`.
    pub fn at(folder: &Path) -> Self {
        Self::with_binary(binary(), folder)
    }

    /// Runs a binary of one's own choice: one built with a fault.
    pub fn with_binary(binary: PathBuf, folder: &Path) -> Self {
        Self { binary, folder: folder.to_owned(), env: Vec::new() }
    }

    /// Sets a variable for every run from here.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The folder it runs from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes a file into the folder, and gives its path.
    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.join(name);
        fs::write(&path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    /// Starts it. Its output goes to files, so that it never waits for a reader.
    pub fn spawn(&self, args: &[&str]) -> Running {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let outputs = self.folder.join("test-output");
        fs::create_dir_all(&outputs).unwrap_or_else(|error| panic!("{}: {error}", outputs.display()));
        let (stdout, stderr) = (outputs.join(format!("{number}.out")), outputs.join(format!("{number}.err")));
        let open = |path: &Path| File::create(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let child = Command::new(&self.binary)
            .args(args)
            .current_dir(&self.folder)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(open(&stdout))
            .stderr(open(&stderr))
            .spawn()
            .unwrap_or_else(|error| panic!("{} cannot be run: {error}", self.binary.display()));
        let watchdog = Watchdog::over_process(child.id());
        Running { child, said: format!("crossfade {}", args.join(" ")), stdout, stderr, watchdog }
    }

    /// Runs it to its end.
    pub fn run(&self, args: &[&str]) -> Finished {
        self.spawn(args).wait()
    }

    /// Runs it to its end, which must be success.
    ///
    /// # Panics
    /// With what it said, when it is not.
    pub fn succeed(&self, args: &[&str]) -> Finished {
        let finished = self.run(args);
        assert_eq!(finished.code, Some(0), "crossfade {} failed\n{finished}", args.join(" "));
        finished
    }

    /// What a command reports with `--json` (which is added here).
    ///
    /// # Panics
    /// When it prints no JSON.
    pub fn json(&self, args: &[&str]) -> Value {
        let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        let finished = self.run(&args);
        serde_json::from_str(&finished.stdout)
            .unwrap_or_else(|error| panic!("crossfade {} prints no JSON ({error})\n{finished}", args.join(" ")))
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let code = self.code.map_or_else(|| "ended by a signal".to_owned(), |code| format!("exit code {code}"));
        writeln!(f, "{code}\n--- stdout\n{}\n--- stderr\n{}", tail(&self.stdout), tail(&self.stderr))
    }
}

/// The last lines: what matters of a long output.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(60)..).unwrap_or_default().join("\n")
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|ended| ended.is_none())
    }

    /// Ends it with SIGKILL, wherever it is; returns when it is gone.
    pub fn kill(mut self) -> Finished {
        // An error means that it has ended already.
        let _ = self.child.kill();
        self.wait()
    }

    /// Stops it where it is (SIGSTOP): it keeps its connections and does nothing.
    pub fn freeze(&self) {
        signal("STOP", &[self.child.id()]);
    }

    /// Lets it go on after [`Running::freeze`].
    pub fn thaw(&self) {
        signal("CONT", &[self.child.id()]);
    }

    /// Asks it to drain and stop (SIGTERM).
    pub fn terminate(&self) {
        signal("TERM", &[self.child.id()]);
    }

    /// Asks it as Ctrl-C does (SIGINT).
    pub fn interrupt(&self) {
        signal("INT", &[self.child.id()]);
    }

    /// What it has printed so far.
    pub fn stdout(&self) -> String {
        fs::read_to_string(&self.stdout).unwrap_or_default()
    }

    /// What it has said beside so far.
    pub fn stderr(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end within [`GENEROUS`].
    pub fn wait(self) -> Finished {
        self.wait_within(GENEROUS)
    }

    /// Waits for its end, not longer than `limit`.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn wait_within(mut self, limit: Duration) -> Finished {
        let started = Instant::now();
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                self.watchdog.end();
                return Finished { code: status.code(), stdout: self.stdout(), stderr: self.stderr() };
            }
            if started.elapsed() > limit {
                let so_far = Finished { code: None, stdout: self.stdout(), stderr: self.stderr() };
                panic!("{} does not end within {limit:?}\n{so_far}", self.said);
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.watchdog.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_run_watched_and_killed() {
        let folder = tempfile::tempdir().unwrap();
        let shell = Crossfade::with_binary("/bin/sh".into(), folder.path()).env("WORD", "heard");
        let finished = shell.run(&["-c", "echo $WORD; echo beside >&2; exit 3"]);
        assert_eq!(
            (finished.code, finished.stdout.as_str(), finished.stderr.as_str()),
            (Some(3), "heard\n", "beside\n")
        );

        let mut sleeper = shell.spawn(&["-c", "exec sleep 600"]);
        assert!(sleeper.is_running());
        let pid = sleeper.pid();
        assert_eq!(sleeper.kill().code, None);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());

        let dropped = shell.spawn(&["-c", "exec sleep 600"]);
        let pid = dropped.pid();
        drop(dropped);
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "a dropped run must not go on");
    }

    #[test]
    #[should_panic(expected = "exit code 4")]
    fn a_run_that_must_succeed_and_does_not_fails_the_test() {
        let folder = tempfile::tempdir().unwrap();
        Crossfade::with_binary("/bin/sh".into(), folder.path()).succeed(&["-c", "exit 4"]);
    }
}
