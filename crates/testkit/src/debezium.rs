//! A real Debezium as a process, as the source's or as the sink's side: Kafka Connect with one worker and one connector, in a temporary folder, stopped by its
//! process id. What it knows of how far it is stands in a file there, so that a killed one goes on when it is started again.
//!
//! A Debezium that cannot be had is a loud skip on a person's machine, and a failure where `CI` is set.

use crate::{
    kafka::Kafka,
    ports,
    postgres::{Database, REPOSITORY, cache_folder, signal},
    unavailable,
    watchdog::Watchdog,
};
use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

const VERSION: &str = "3.6.0.Final";

/// How long it may take to stop.
const DEADLINE: Duration = Duration::from_secs(240);

/// One worker with one connector, which captures one database.
#[derive(Debug)]
pub struct Debezium {
    programs: PathBuf,
    folder: TempDir,
    process: Mutex<Option<(Child, Watchdog)>>,
}

impl Debezium {
    /// Starts one that captures `database` into topics of `prefix`; further settings are the connector's. `None`, said
    /// loudly, where it cannot be had.
    pub fn start(kafka: &Kafka, database: &Database, prefix: &str, settings: &[(&str, &str)]) -> Option<Self> {
        let programs = match find() {
            Ok(programs) => programs,
            Err(reason) => {
                unavailable("Debezium", &reason);
                return None;
            }
        };
        let place = place(database);
        let slot: String =
            prefix.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect();
        let mut connector = format!(
            "name={prefix}\n\
             connector.class=io.debezium.connector.postgresql.PostgresConnector\n\
             database.hostname={}\ndatabase.port={}\n\
             database.user={}\ndatabase.password=none\n\
             database.dbname={}\n\
             topic.prefix={prefix}\n\
             plugin.name=pgoutput\nslot.name={slot}\npublication.name={slot}\n\
             publication.autocreate.mode=filtered\n",
            place.host, place.port, place.user, place.name
        );
        for (name, value) in settings {
            connector.push_str(&format!("{name}={value}\n"));
        }
        Some(Self::with(programs, kafka, &connector))
    }

    /// Starts one that writes what the topics of `prefix` and the schema `public` say into `database`: its own JDBC sink
    /// connector, which upserts and deletes by the record's key, and leaves the fields `without` alone (`topic:field`, with
    /// commas between). `None`, said loudly, where it cannot be had.
    pub fn start_sink(kafka: &Kafka, database: &Database, prefix: &str, without: &str) -> Option<Self> {
        let programs = match find() {
            Ok(programs) => programs,
            Err(reason) => {
                unavailable("Debezium", &reason);
                return None;
            }
        };
        let place = place(database);
        let connector = format!(
            "name={prefix}-sink\n\
             connector.class=io.debezium.connector.jdbc.JdbcSinkConnector\n\
             tasks.max=1\n\
             topics.regex={prefix}[.]public[.].*\n\
             connection.url=jdbc:postgresql://{}:{}/{}?stringtype=unspecified\n\
             connection.username={}\nconnection.password=none\n\
             insert.mode=upsert\ndelete.enabled=true\nprimary.key.mode=record_key\n\
             schema.evolution=none\nquote.identifiers=true\n\
             header.converter=org.apache.kafka.connect.storage.StringConverter\n\
             field.exclude.list={without}\n\
             collection.name.format=${{source.table}}\n",
            place.host, place.port, place.name, place.user
        );
        Some(Self::with(programs, kafka, &connector))
    }

    fn with(programs: PathBuf, kafka: &Kafka, connector: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("crossfade-debezium-").tempdir();
        let folder = folder.unwrap_or_else(|error| panic!("no temporary folder for Debezium: {error}"));
        let write = |name: &str, text: &str| {
            fs::write(folder.path().join(name), text).unwrap_or_else(|error| panic!("{name}: {error}"));
        };
        let worker = format!(
            "bootstrap.servers={}\n\
             key.converter=org.apache.kafka.connect.json.JsonConverter\n\
             value.converter=org.apache.kafka.connect.json.JsonConverter\n\
             consumer.isolation.level=read_committed\n\
             consumer.auto.offset.reset=earliest\n\
             consumer.metadata.max.age.ms=1000\n\
             offset.storage.file.filename={}\n\
             offset.flush.interval.ms=1000\n\
             listeners=http://127.0.0.1:{}\n\
             plugin.path={}\n",
            kafka.brokers(),
            folder.path().join("offsets").display(),
            ports::free(),
            programs.join("plugins").display()
        );
        write("worker.properties", &worker);
        write("connector.properties", connector);
        let debezium = Self { programs, folder, process: Mutex::new(None) };
        debezium.start_again();
        debezium
    }

    /// Starts it after [`Debezium::kill`]; it goes on from what it knows.
    pub fn start_again(&self) {
        let open = || {
            let log = fs::OpenOptions::new().create(true).append(true).open(self.folder.path().join("connect.log"));
            log.unwrap_or_else(|error| panic!("no log file for Debezium: {error}"))
        };
        let child = Command::new("java")
            .args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", "-Xmx512m"])
            .args(["-Djava.net.preferIPv4Stack=true", "-Dorg.slf4j.simpleLogger.defaultLogLevel=info", "-cp"])
            .arg(format!("{}/lib/*", self.programs.display()))
            .args(["org.apache.kafka.connect.cli.ConnectStandalone", "worker.properties", "connector.properties"])
            .current_dir(self.folder.path())
            .env_remove("JAVA_TOOL_OPTIONS")
            .stdin(Stdio::null())
            .stdout(open())
            .stderr(open())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("java cannot be run: {error}"));
        let watchdog = Watchdog::over_process(child.id());
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some((child, watchdog));
    }

    /// Ends it with SIGKILL: what it had sent and not noted it sends again.
    pub fn kill(&self) {
        let mut held = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((mut child, mut watchdog)) = held.take() else { return };
        signal("KILL", &[child.id()]);
        let started = Instant::now();
        while child.try_wait().is_ok_and(|ended| ended.is_none()) {
            assert!(started.elapsed() < DEADLINE, "Debezium does not end:\n{}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
        watchdog.end();
    }

    /// Its process id; `None` while it is not running.
    pub fn pid(&self) -> Option<u32> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(child, _)| child.id())
    }

    /// Whether it has noted that its snapshot is over and the stream under way: killed before, it takes another snapshot.
    pub fn has_noted_the_stream(&self) -> bool {
        let noted = fs::read(self.folder.path().join("offsets")).unwrap_or_default();
        String::from_utf8_lossy(&noted).contains("lsn_proc")
    }

    /// What it has written to its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("connect.log")).unwrap_or_default()
    }
}

/// Where a database is, and for whom.
struct Place<'a> {
    host: &'a str,
    port: &'a str,
    user: &'a str,
    name: &'a str,
}

fn place(database: &Database) -> Place<'_> {
    let url = database.url.strip_prefix("postgres://").unwrap_or(&database.url);
    let (login, rest) = url.split_once('@').unwrap_or(("postgres", url));
    let (place, name) = rest.split_once('/').unwrap_or((rest, "postgres"));
    let (host, port) = place.split_once(':').unwrap_or((place, "5432"));
    let user = login.split(':').next().unwrap_or("postgres");
    Place { host, port, user, name: name.split('?').next().unwrap_or(name) }
}

impl Drop for Debezium {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The folder with `lib` and `plugins`, fetched once.
fn find() -> Result<PathBuf, String> {
    let java = Command::new("java").arg("-version").stdin(Stdio::null()).output();
    if !java.is_ok_and(|out| out.status.success()) {
        return Err("there is no `java`; install the package default-jre-headless".to_owned());
    }
    let cache = cache_folder();
    let there = cache.join(format!("debezium-{VERSION}"));
    if there.join("complete").exists() && there.join("complete-jdbc").exists() {
        return Ok(there);
    }
    let fetched = Command::new(Path::new(REPOSITORY).join("ci/debezium-binaries"))
        .arg(&cache)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("ci/debezium-binaries cannot be run: {error}"))?;
    if fetched.status.success() { Ok(there) } else { Err(String::from_utf8_lossy(&fetched.stderr).trim().to_owned()) }
}
