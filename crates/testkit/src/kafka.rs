//! A real Kafka broker as a process: one node in KRaft mode (no ZooKeeper), in a temporary folder, on free ports of
//! 127.0.0.1, stopped by its process id, and gone with the test that started it.
//!
//! Most tests want [`Kafka::shared`] and topics of their own; a test that stops or kills its broker starts one with
//! [`Kafka::start`]. A broker that cannot be had is a loud skip on a person's machine, and a failure where `CI` is set.

mod cluster;
mod rights;

pub use cluster::Cluster;
pub use rights::{Right, table};

use crate::{
    ports,
    postgres::{REPOSITORY, cache_folder, signal},
    tls::Certificates,
    unavailable,
    watchdog::Watchdog,
};
use std::{
    fs,
    net::TcpStream,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Mutex, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};

const VERSION: &str = "4.3.1";

/// Whom a secured broker knows.
pub const USER: &str = "crossfade";

/// That user's password.
pub const PASSWORD: &str = "drawn-for-tests";

/// How long a broker may take to start or stop: far more than it ever needs. One that does not start is tried anew.
const DEADLINE: Duration = Duration::from_secs(240);

/// How often a broker is tried.
const TRIES: u32 = 4;

/// A broker that runs until it is dropped.
#[derive(Debug)]
pub struct Kafka {
    programs: PathBuf,
    folder: PathBuf,
    port: u16,
    /// Where a secured one is reached without a password, for itself and for tests.
    inside: Option<u16>,
    process: Mutex<Option<(Child, Watchdog)>>,
}

impl Kafka {
    /// Starts a broker with further lines of `server.properties`. `None`, said loudly, where it cannot be had.
    pub fn start(settings: &[(&str, &str)]) -> Option<Self> {
        Self::with(settings, None)
    }

    /// Starts a broker that takes TLS only, wants a client certificate of the same authority, and the user [`USER`] with
    /// the password [`PASSWORD`] by SCRAM-SHA-512 or PLAIN.
    pub fn secured(certificates: &Certificates) -> Option<Self> {
        Self::with(&[], Some(certificates))
    }

    fn with(settings: &[(&str, &str)], certificates: Option<&Certificates>) -> Option<Self> {
        match find() {
            Ok(programs) => Some(Self::make(programs, settings, certificates)),
            Err(reason) => {
                unavailable("Kafka", &reason);
                None
            }
        }
    }

    /// The one that the tests of this binary share. Do not stop it; see [`Kafka::start`] for that.
    pub fn shared() -> Option<&'static Self> {
        static SERVER: OnceLock<Option<Kafka>> = OnceLock::new();
        SERVER.get_or_init(|| Self::start(&[])).as_ref()
    }

    fn make(programs: PathBuf, settings: &[(&str, &str)], certificates: Option<&Certificates>) -> Self {
        // Somebody may take a port between our look at it and the broker's: then others.
        for attempt in 1.. {
            let folder = tempfile::Builder::new()
                .prefix("crossfade-kafka-")
                .tempdir()
                .unwrap_or_else(|error| panic!("no temporary folder for a broker: {error}"))
                .keep();
            let inside = certificates.map(|_| ports::free());
            let kafka =
                Self { programs: programs.clone(), folder, port: ports::free(), inside, process: Mutex::new(None) };
            kafka.format(&kafka.draw_id(), settings, certificates);
            if kafka.try_start() {
                return kafka;
            }
            assert!(attempt < TRIES, "Kafka does not start:\n{}", kafka.log());
        }
        unreachable!("the last try has returned or failed the test")
    }

    /// Draws a cluster's id.
    fn draw_id(&self) -> String {
        let id = self.tool("kafka.tools.StorageTool", &["random-uuid"]);
        String::from_utf8_lossy(&id.stdout).trim().to_owned()
    }

    /// Makes its storage. A setting that is given counts over ours: of two lines the later one does.
    fn format(&self, id: &str, settings: &[(&str, &str)], certificates: Option<&Certificates>) {
        let controller = ports::free();
        let (port, data) = (self.port, self.folder.join("data"));
        let mut text = format!(
            "process.roles=broker,controller\n\
             node.id=1\n\
             controller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{port}\n\
             controller.listener.names=CONTROLLER\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
             offsets.topic.replication.factor=1\n\
             offsets.topic.num.partitions=1\n\
             transaction.state.log.replication.factor=1\n\
             transaction.state.log.min.isr=1\n\
             transaction.state.log.num.partitions=5\n\
             group.initial.rebalance.delay.ms=0\n\
             log.dirs={}\n",
            data.display()
        );
        if let Some(certificates) = certificates {
            text.push_str(&self.security(certificates, controller));
        }
        for (name, value) in settings {
            text.push_str(&format!("{name}={value}\n"));
        }
        let properties = self.folder.join("server.properties");
        fs::write(&properties, text).unwrap_or_else(|error| panic!("{}: {error}", properties.display()));
        let user = format!("SCRAM-SHA-512=[name={USER},password={PASSWORD}]");
        let scram: &[&str] = if certificates.is_some() { &["--add-scram", &user] } else { &[] };
        self.make_storage(id, scram);
    }

    fn make_storage(&self, id: &str, more: &[&str]) {
        let words = [&["format", "-t", id, "-c", "server.properties"], more].concat();
        let formatted = self.tool("kafka.tools.StorageTool", &words);
        assert!(formatted.status.success(), "Kafka's storage cannot be made:\n{}", said(&formatted));
    }

    /// Takes everything from a stopped broker but its settings, as the loss of its disk would.
    fn empty(&self) {
        let data = self.folder.join("data");
        let said = fs::read_to_string(data.join("meta.properties")).unwrap_or_default();
        let id = said.lines().find_map(|line| line.strip_prefix("cluster.id=")).unwrap_or_default();
        fs::remove_dir_all(&data).unwrap_or_else(|error| panic!("{}: {error}", data.display()));
        self.make_storage(id, &[]);
    }

    /// Further lines, over those before: clients come by TLS with a password, the broker to itself without.
    fn security(&self, certificates: &Certificates, controller: u16) -> String {
        let (port, inside) = (self.port, self.inside.unwrap_or_default());
        let write = |name: &str, content: String| {
            let path = self.folder.join(name);
            fs::write(&path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            path.display().to_string()
        };
        let own = write("own.pem", format!("{}{}", certificates.server.key, certificates.server.certificate));
        let trusted = write("trusted.pem", certificates.authority.clone());
        let login = "org.apache.kafka.common.security";
        format!(
            "listeners=OUT://127.0.0.1:{port},PLAINTEXT://127.0.0.1:{inside},CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners=OUT://127.0.0.1:{port},PLAINTEXT://127.0.0.1:{inside}\n\
             listener.security.protocol.map=OUT:SASL_SSL,PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
             inter.broker.listener.name=PLAINTEXT\n\
             sasl.enabled.mechanisms=SCRAM-SHA-512,PLAIN\n\
             listener.name.out.scram-sha-512.sasl.jaas.config={login}.scram.ScramLoginModule required;\n\
             listener.name.out.plain.sasl.jaas.config={login}.plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\";\n\
             ssl.keystore.type=PEM\nssl.keystore.location={own}\n\
             ssl.truststore.type=PEM\nssl.truststore.location={trusted}\n\
             ssl.client.auth=required\nlistener.name.out.ssl.client.auth=required\n"
        )
    }

    fn java(&self) -> Command {
        let mut command = Command::new("java");
        command
            .args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", "-Djava.net.preferIPv4Stack=true"])
            .args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=info", "-cp"])
            .arg(format!("{}/lib/*", self.programs.display()))
            .current_dir(&self.folder)
            .env_remove("JAVA_TOOL_OPTIONS")
            .stdin(Stdio::null());
        command
    }

    /// Runs one of Kafka's own tools.
    pub fn tool(&self, class: &str, args: &[&str]) -> Output {
        let out = self.java().arg("-Xmx256m").arg(class).args(args).output();
        out.unwrap_or_else(|error| panic!("java cannot be run: {error}"))
    }

    /// Runs one of Kafka's own tools with a file as its input.
    pub fn tool_with_input(&self, class: &str, args: &[&str], input: &Path) -> Output {
        let file = fs::File::open(input).unwrap_or_else(|error| panic!("{}: {error}", input.display()));
        let out = self.java().stdin(file).arg("-Xmx256m").arg(class).args(args).output();
        out.unwrap_or_else(|error| panic!("java cannot be run: {error}"))
    }

    /// A topic's committed records as Kafka's own consumer prints them with these properties of its formatter.
    ///
    /// The consumer ends when nothing has come for a while, which on a busy machine may be before the end: where its group
    /// has not come to the end of each partition, it reads again with more patience.
    ///
    /// # Panics
    /// When that does not help.
    pub fn read_topic(&self, topic: &str, properties: &[&str]) -> String {
        let brokers = self.brokers();
        for patience_ms in [3_000, 10_000, 30_000, 90_000, 270_000] {
            let (group, patience) = (self.prefix("reads"), patience_ms.to_string());
            let mut words = vec!["--bootstrap-server", &brokers, "--topic", topic, "--from-beginning"];
            words.extend(["--group", &group, "--isolation-level", "read_committed", "--timeout-ms", &patience]);
            words.extend(properties.iter().flat_map(|property| ["--formatter-property", *property]));
            let out = self.tool("org.apache.kafka.tools.consumer.ConsoleConsumer", &words);
            if self.has_read_all(topic, &group) {
                return String::from_utf8_lossy(&out.stdout).into_owned();
            }
        }
        panic!("Kafka's consumer does not come to the end of {topic}")
    }

    /// Whether a group stands at the end of each partition of a topic.
    fn has_read_all(&self, topic: &str, group: &str) -> bool {
        let words = ["--bootstrap-server", &self.brokers(), "--describe", "--group", group];
        let out = self.tool("org.apache.kafka.tools.consumer.group.ConsumerGroupCommand", &words);
        let text = String::from_utf8_lossy(&out.stdout);
        // GROUP TOPIC PARTITION CURRENT-OFFSET LOG-END-OFFSET LAG …
        let rows: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .filter(|row: &Vec<&str>| row.get(1) == Some(&topic))
            .collect();
        !rows.is_empty() && rows.iter().all(|row| row.get(5) == Some(&"0") || row.get(4) == Some(&"0"))
    }

    /// Starts and waits until it takes connections; false when it ended instead, or did not come that far.
    fn try_start(&self) -> bool {
        self.spawn();
        self.takes_connections()
    }

    /// Starts it.
    fn spawn(&self) {
        let open = || {
            let log = fs::OpenOptions::new().create(true).append(true).open(self.folder.join("server.log"));
            log.unwrap_or_else(|error| panic!("no log file for a broker: {error}"))
        };
        let child = self
            .java()
            .args(["-Xms512m", "-Xmx512m", "kafka.Kafka", "server.properties"])
            .stdout(open())
            .stderr(open())
            // Out of the terminal's group: Ctrl-C ends the test, and the watchdog then ends the broker.
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("java cannot be run: {error}"));
        let watchdog = Watchdog::over_process_in(child.id(), &self.folder);
        *self.process() = Some((child, watchdog));
    }

    /// Waits until it takes connections; false when it has ended, or does not come that far and is ended.
    fn takes_connections(&self) -> bool {
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let has_ended = match &mut *self.process() {
                Some((child, _)) => child.try_wait().is_ok_and(|ended| ended.is_some()),
                None => true,
            };
            if has_ended || started.elapsed() > DEADLINE {
                self.end("KILL");
                return false;
            }
            thread::sleep(Duration::from_millis(10));
        }
        true
    }

    fn process(&self) -> std::sync::MutexGuard<'_, Option<(Child, Watchdog)>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts it after [`Kafka::stop`] or [`Kafka::kill`], on the same port, with what it had.
    pub fn start_again(&self) {
        assert!(self.process().is_none(), "Kafka runs already");
        assert!(self.try_start(), "Kafka does not start again:\n{}", self.log());
    }

    /// Stops it as an administrator would.
    pub fn stop(&self) {
        self.end("TERM");
    }

    /// Ends it with SIGKILL, as a crash of the process would.
    pub fn kill(&self) {
        self.end("KILL");
    }

    fn end(&self, name: &str) {
        let Some((mut child, mut watchdog)) = self.process().take() else { return };
        signal("CONT", &[child.id()]);
        signal(name, &[child.id()]);
        let started = Instant::now();
        while child.try_wait().is_ok_and(|ended| ended.is_none()) {
            assert!(started.elapsed() < DEADLINE, "Kafka does not stop:\n{}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
        watchdog.end();
    }

    /// Stops it where it is (SIGSTOP): it keeps its connections and answers nothing.
    pub fn freeze(&self) {
        signal("STOP", &self.pid().into_iter().collect::<Vec<_>>());
    }

    /// Lets it go on after [`Kafka::freeze`].
    pub fn thaw(&self) {
        signal("CONT", &self.pid().into_iter().collect::<Vec<_>>());
    }

    /// Its process id; `None` while it is stopped.
    pub fn pid(&self) -> Option<u32> {
        self.process().as_ref().map(|(child, _)| child.id())
    }

    /// Where tools reach a secured one without a password, as somebody who may do everything.
    ///
    /// # Panics
    /// When it is not secured.
    pub fn brokers_inside(&self) -> String {
        format!("127.0.0.1:{}", self.inside.unwrap_or_else(|| panic!("the broker is reached by everybody alike")))
    }

    /// Where clients reach it.
    pub fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A prefix for topics that no other test of this broker has.
    pub fn prefix(&self, hint: &str) -> String {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(1);
        format!("{hint}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// What it has written to its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("server.log")).unwrap_or_default()
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        self.end("KILL");
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn said(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// The folder with the broker's `lib`, fetched once.
fn find() -> Result<PathBuf, String> {
    let java = Command::new("java").arg("-version").stdin(Stdio::null()).output();
    if !java.is_ok_and(|out| out.status.success()) {
        return Err("there is no `java`; install the package default-jre-headless".to_owned());
    }
    let cache = cache_folder();
    let there = cache.join(format!("kafka-{VERSION}"));
    if there.join("complete").exists() {
        return Ok(there);
    }
    let fetched = Command::new(Path::new(REPOSITORY).join("ci/kafka-binaries"))
        .arg(&cache)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("ci/kafka-binaries cannot be run: {error}"))?;
    if fetched.status.success() { Ok(there) } else { Err(String::from_utf8_lossy(&fetched.stderr).trim().to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_starts_survives_a_kill_and_leaves_nothing() {
        let Some(kafka) = Kafka::start(&[]) else { return };
        let port = kafka.port;
        kafka.kill();
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "a killed broker must not answer");
        kafka.start_again();
        kafka.stop();
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "a stopped broker must not answer");
        kafka.start_again();
        let folder = kafka.folder.clone();
        drop(kafka);
        assert!(!folder.exists(), "the folder must go with the broker");
    }
}
