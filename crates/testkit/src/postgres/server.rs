//! One server: its folder, its process, its end.

use super::{Settings, Version, binaries};
use crate::{ports, unavailable, watchdog::Watchdog};
use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// How long a server may take to start or stop before the test is failed: far more than it ever needs.
const DEADLINE: Duration = Duration::from_secs(120);

/// A server that runs until it is dropped.
#[derive(Debug)]
pub struct Postgres {
    version: Version,
    programs: PathBuf,
    folder: PathBuf,
    port: u16,
    user: Option<(u32, u32)>,
    process: Mutex<Option<Child>>,
    // Last, so that it looks after the folder until everything else is gone.
    watchdog: Watchdog,
}

impl Postgres {
    /// Makes a new cluster and starts it. `None`, said loudly, where the programs cannot be had.
    pub fn start(version: Version, settings: Settings) -> Option<Self> {
        match binaries::find(version) {
            Ok(programs) => Some(Self::make(version, programs, &settings)),
            Err(reason) => {
                unavailable(&version.to_string(), &reason);
                None
            }
        }
    }

    /// The one that the tests of this binary share as a source. Do not stop it; see [`Postgres::start`] for that.
    pub fn shared(version: Version) -> Option<&'static Self> {
        static SERVERS: [OnceLock<Option<Postgres>>; 3] = [OnceLock::new(), OnceLock::new(), OnceLock::new()];
        Self::shared_in(&SERVERS, version)
    }

    /// A second one, another system, that they share as a target.
    pub fn shared_target(version: Version) -> Option<&'static Self> {
        static SERVERS: [OnceLock<Option<Postgres>>; 3] = [OnceLock::new(), OnceLock::new(), OnceLock::new()];
        Self::shared_in(&SERVERS, version)
    }

    fn shared_in(servers: &'static [OnceLock<Option<Self>>; 3], version: Version) -> Option<&'static Self> {
        servers.get(version as usize)?.get_or_init(|| Self::start(version, Settings::new())).as_ref()
    }

    fn make(version: Version, programs: PathBuf, settings: &Settings) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("crossfade-postgres-")
            .tempdir()
            .unwrap_or_else(|error| panic!("no temporary folder for a server: {error}"))
            .keep();
        let watchdog = Watchdog::over_server(&folder);
        let user = server_user();
        if let Some((uid, gid)) = user {
            chown(&folder, Some(uid), Some(gid)).unwrap_or_else(|error| panic!("cannot give a folder away: {error}"));
        }
        let mut server = Self { version, programs, folder, port: 0, user, process: Mutex::new(None), watchdog };
        server.initdb(settings);
        // Somebody may take the port between our look at it and the server's: then another one.
        for _ in 0..20 {
            server.port = ports::free();
            if server.try_start() {
                return server;
            }
        }
        panic!("{version} does not start:\n{}", server.log());
    }

    fn initdb(&self, settings: &Settings) {
        let out = self
            .program("initdb")
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(self.data())
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("initdb cannot be run: {error}"));
        assert!(out.status.success(), "initdb failed:\n{}", String::from_utf8_lossy(&out.stderr));
        let conf = self.data().join("postgresql.conf");
        let made = fs::read_to_string(&conf).unwrap_or_else(|error| panic!("{}: {error}", conf.display()));
        self.write_file("postgresql.conf", &(made + &settings.postgresql_conf()));
        if let Some(lines) = &settings.hba {
            self.write_file("pg_hba.conf", lines);
        }
        for (name, content) in &settings.files {
            self.write_file(name, content);
        }
    }

    /// Writes a file into the data folder, as the server's user, readable by it alone.
    pub fn write_file(&self, name: &str, content: &str) {
        let path = self.data().join(name);
        let done = fs::write(&path, content)
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o600)))
            .and_then(|()| self.user.map_or(Ok(()), |(uid, gid)| chown(&path, Some(uid), Some(gid))));
        done.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        // The folder the test stands in may be closed to that user.
        command.current_dir(&self.folder).env_remove("PGDATA").env_remove("PGPORT").env("LC_ALL", "C");
        command
    }

    /// Starts and waits until it takes connections; false when it ended instead.
    fn try_start(&self) -> bool {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.folder.join("server.log"))
            .unwrap_or_else(|error| panic!("no log file for a server: {error}"));
        let errors = log.try_clone().unwrap_or_else(|error| panic!("no log file for a server: {error}"));
        let mut child = self
            .program("postgres")
            .arg("-D")
            .arg(self.data())
            .args(["-p", &self.port.to_string()])
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            // Out of the terminal's group: Ctrl-C ends the test, and the watchdog then ends the server in order.
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{} cannot be run: {error}", self.version));
        let started = Instant::now();
        while !self.is_ready(child.id()) {
            if child.try_wait().is_ok_and(|ended| ended.is_some()) {
                return false;
            }
            assert!(started.elapsed() < DEADLINE, "{} is not ready:\n{}", self.version, self.log());
            thread::sleep(Duration::from_millis(5));
        }
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        true
    }

    /// The server says in its pid file when it is ready; the first line tells this start from an earlier one.
    fn is_ready(&self, pid: u32) -> bool {
        let Ok(text) = fs::read_to_string(self.data().join("postmaster.pid")) else { return false };
        let mut lines = text.lines();
        lines.next() == Some(pid.to_string().as_str()) && lines.nth(6).is_some_and(|line| line.trim() == "ready")
    }

    /// Starts it after [`Postgres::stop`] or [`Postgres::kill`], on the same port.
    pub fn start_again(&self) {
        let running = self.process.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        assert!(!running, "{} runs already", self.version);
        assert!(self.try_start(), "{} does not start again:\n{}", self.version, self.log());
    }

    /// Stops it as an administrator would (`fast`): sessions are ended, a checkpoint is written.
    pub fn stop(&self) {
        self.end("INT");
    }

    /// Ends it and all of its backends with SIGKILL, as a crash of the machine would.
    pub fn kill(&self) {
        let Some(mut child) = self.process.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        child.kill().unwrap_or_else(|error| panic!("{} cannot be killed: {error}", self.version));
        child.wait().unwrap_or_else(|error| panic!("{} cannot be waited for: {error}", self.version));
        let started = Instant::now();
        loop {
            let left = processes_in(&self.data());
            if left.is_empty() {
                return;
            }
            signal("KILL", &left);
            assert!(started.elapsed() < DEADLINE, "backends of {} do not end", self.version);
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Stops it and starts it again.
    pub fn restart(&self) {
        self.stop();
        self.start_again();
    }

    /// Stops all of its processes where they are (SIGSTOP): it keeps its connections and answers nothing.
    pub fn freeze(&self) {
        signal("STOP", &processes_in(&self.data()));
    }

    /// Lets it go on after [`Postgres::freeze`].
    pub fn thaw(&self) {
        signal("CONT", &processes_in(&self.data()));
    }

    fn end(&self, name: &str) {
        let Some(mut child) = self.process.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        signal(name, &[child.id()]);
        let started = Instant::now();
        while child.try_wait().is_ok_and(|ended| ended.is_none()) {
            assert!(started.elapsed() < DEADLINE, "{} does not stop:\n{}", self.version, self.log());
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Which version it is.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The port it listens on, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id of the postmaster; `None` while it is stopped.
    pub fn pid(&self) -> Option<u32> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(Child::id)
    }

    /// The process ids of the postmaster and everything it started: for measuring memory and CPU.
    pub fn pids(&self) -> Vec<u32> {
        processes_in(&self.data())
    }

    /// The folder that goes with the server: `data` and `server.log`.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// What it has written to its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("server.log")).unwrap_or_default()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.thaw();
        self.end("QUIT");
        self.watchdog.end();
    }
}

/// Sends a signal by process ids. The shell's own `kill`, for there is no safe call in the standard library.
pub(crate) fn signal(name: &str, pids: &[u32]) {
    if pids.is_empty() {
        return;
    }
    let sent = Command::new("sh")
        .args(["-c", "kill -\"$0\" \"$@\" 2>/dev/null", name])
        .args(pids.iter().map(u32::to_string))
        .stdin(Stdio::null())
        .status();
    assert!(sent.is_ok(), "no shell to send a signal with");
}

/// The processes that stand in `folder`: the postmaster goes into its data folder, and its children stay there.
fn processes_in(folder: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|place| place == folder))
        .collect()
}

/// Whom the server runs as: PostgreSQL refuses root. `None` for whoever runs the test.
fn server_user() -> Option<(u32, u32)> {
    let me = fs::metadata("/proc/self").ok().map(|found| std::os::unix::fs::MetadataExt::uid(&found));
    if me != Some(0) {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let entry = |name: &str| {
        let mut fields = users.lines().find(|line| line.split(':').next() == Some(name))?.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    Some(entry("postgres").or_else(|| entry("nobody")).unwrap_or((65_534, 65_534)))
}
