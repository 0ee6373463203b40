//! A migration on a broker with an authorizer: each process is a user of its own, with exactly the rights that the page of
//! connectors/kafka names for it. Which right each is told to be missing is tested there one by one; here, how the program
//! ends. Built with the feature `kafka` (`make test-kafka`).

use crate::{
    desk::{Desk, SPEC, Writer, postgres, two_databases},
    kafka::{prefix, source_of},
    roles::{RULES, assert_equal},
    shop::{SHOP, work},
};
use crossfade_testkit::{
    crossfade::{Crossfade, Finished, Running},
    kafka::{Kafka, PASSWORD, Right, USER, table},
    postgres::Database,
    tls::Certificates,
    wait::wait_for,
};
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
};

const PAGE: &str = include_str!("../../connectors/kafka/README.md");

/// One user for each part, and some for those who lack a right.
const USERS: [&str; 13] = [
    "ingest",
    "transform",
    "deliver",
    "look",
    "whole",
    "wipe",
    "none",
    "lacks1",
    "lacks2",
    "lacks3",
    "lacks4",
    "lacks5",
    "lacks6",
];

fn broker() -> Option<(Kafka, Certificates)> {
    let certificates = Certificates::new(USER);
    let users = USERS.map(str::to_owned);
    Some((Kafka::authorizing(&certificates, &users)?, certificates))
}

/// A desk with a shop to be moved; `more` says further things about the log.
async fn desk(kafka: &Kafka, certificates: &Certificates, more: &str) -> Option<(Desk, Database, Database)> {
    let (source, target) = two_databases().await?;
    source.execute(SHOP).await;
    let desk = Desk::new();
    certificates.write_to(desk.crossfade.folder());
    let log = format!(
        "[log]\nkind = \"kafka\"\nbrokers = \"{}\"\npartitions = 4\n{more}\
         tls = {{ authority = \"authority.crt\", certificate = \"client.crt\", key = \"client.key\" }}\n\
         sasl = {{ mechanism = \"plain\", user = \"${{KAFKA_USER}}\", password = \"${{KAFKA_PASSWORD}}\" }}\n",
        kafka.brokers()
    );
    desk.write_spec(&source_of(&source), &postgres(&target), &format!("{log}{RULES}"));
    Some((desk, source, target))
}

/// The rights that the page names for these parts.
fn rights(desk: &Desk, parts: &[&str]) -> Vec<Right> {
    let prefix = prefix(desk);
    let of_parts = table(PAGE, "## Rights").into_iter().filter(|(who, _)| parts.contains(&who.as_str()));
    let mut rights: Vec<Right> = of_parts.map(|(_, right)| right.with(&[("<prefix>", &prefix)])).collect();
    rights.sort();
    rights.dedup();
    rights
}

/// The same but for one; and how that one is named to whoever lacks it.
fn lacking(desk: &Desk, parts: &[&str], operation: &str, of: &str, name: &str) -> (Vec<Right>, String) {
    let name = format!("{}.{name}", prefix(desk));
    let is_meant = |right: &Right| right.kind == of && right.name == name && right.operation == operation;
    let (lacks, has): (Vec<Right>, Vec<Right>) = rights(desk, parts).into_iter().partition(is_meant);
    assert_eq!(lacks.len(), 1, "the page names no {operation} on {of} {name}");
    (has, format!("Grant {operation} on the {of} {name} "))
}

fn user(desk: &Desk, user: &str) -> Crossfade {
    desk.crossfade.clone().env("KAFKA_USER", user).env("KAFKA_PASSWORD", PASSWORD)
}

fn start(desk: &Desk, name: &str, role: &str) -> Running {
    user(desk, name).spawn(&["run", SPEC, "--quiet", "--role", role])
}

fn assert_refused(said: &Finished, grant: &str) {
    assert!(said.code == Some(3) && said.stderr.to_lowercase().contains(&grant.to_lowercase()), "{grant}\n{said}");
    assert!(!said.stderr.contains(PASSWORD), "{said}");
}

fn wait(desk: &Desk, name: &str, running: &mut [&mut Running]) {
    let waited = user(desk, name).run(&["wait", SPEC, "--caught-up", "--timeout", "240s"]);
    let live = running.iter_mut().all(|running| running.is_running());
    let said: Vec<String> = running.iter().map(|running| running.stderr()).collect();
    assert!(waited.code == Some(0) && live, "they do not catch up\n{waited}\n{}", said.join("\n---\n"));
}

/// Waits until the process that runs it tells Prometheus that its clients of this purpose have counted more than that.
pub(crate) async fn until_counted(desk: &Desk, what: &str, client: &str, more_than: f64) {
    let name = format!("crossfade_log_client_{what}_records_total{{migration=\"{}\",client=\"{client}\"}}", desk.name);
    wait_for("the metrics to say what the clients have sent or received", async || {
        let mut socket = UnixStream::connect(desk.work().join("control.sock")).unwrap();
        socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut page = String::new();
        socket.read_to_string(&mut page).unwrap();
        let count = page.lines().find_map(|line| line.strip_prefix(&name)?.trim().parse::<f64>().ok());
        count.filter(|count| *count > more_than)
    })
    .await;
}

fn stop(running: Running) {
    running.interrupt();
    let ended = running.wait();
    assert_eq!(ended.code, Some(0), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_runs_with_the_rights_of_the_page_and_without_one_is_refused() {
    let Some((kafka, certificates)) = broker() else { return };
    let workers = "transform = \"workers\"\nworker_timeout = \"6s\"\n";
    let Some((mut desk, source, target)) = desk(&kafka, &certificates, workers).await else { return };
    for part in ["ingest", "transform", "deliver", "look"] {
        kafka.allow(part, &rights(&desk, &[part]));
    }
    let run = |name: &str, role: &str| user(&desk, name).run(&["run", SPEC, "--quiet", "--role", role]);
    let lacks = |name: &str, parts: &[&str], operation: &str, of: &str, what: &str| {
        let (has, grant) = lacking(&desk, parts, operation, of, what);
        kafka.allow(name, &has);
        grant
    };
    // Before there is anything.
    assert_refused(&run("none", "ingest"), "Grant Read on the topic ");
    let grant = lacks("lacks1", &["ingest"], "Create", "topic", "changes");
    assert_refused(&run("lacks1", "ingest"), &grant);
    let grant = lacks("lacks2", &["ingest"], "Write", "transactional id", "ingest");
    assert_refused(&run("lacks2", "ingest"), &grant);

    let mut ingest = start(&desk, "ingest", "ingest");
    let mut transform = start(&desk, "transform", "transform");
    let mut deliver = start(&desk, "deliver", "deliver");
    let writer = Writer::start(&source, work);
    writer.wait_for_more(40);
    wait(&desk, "look", &mut [&mut ingest, &mut transform, &mut deliver]);
    // Whoever lacks a right disturbs nobody.
    let grant = lacks("lacks3", &["transform"], "Read", "group", "transform");
    assert_refused(&run("lacks3", "transform"), &grant);
    let grant = lacks("lacks4", &["look"], "Read", "topic", "changes");
    assert_refused(&user(&desk, "lacks4").run(&["log", "ls", SPEC]), &grant);
    for words in [&["status", SPEC][..], &["log", "ls", SPEC], &["log", "verify", SPEC]] {
        user(&desk, "look").succeed(words);
    }
    stop(deliver);
    let grant = lacks("lacks5", &["deliver"], "Write", "topic", "meta");
    assert_refused(&run("lacks5", "deliver"), &grant);
    // Tools would show no lag; everything else goes on.
    let grant = lacks("lacks6", &["deliver"], "Read", "group", "deliver");
    let mut deliver = start(&desk, "lacks6", "deliver");
    writer.wait_for_more(20);
    desk.until_said(&grant, &mut deliver);
    writer.stop();
    wait(&desk, "look", &mut [&mut ingest, &mut transform, &mut deliver]);
    desk.crossfade = user(&desk, "look");
    assert_equal(&desk, &source, &target).await;
    [deliver, transform, ingest].into_iter().for_each(stop);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_has_the_rights_of_ingest_and_deliver_and_a_wipe_its_own() {
    let Some((kafka, certificates)) = broker() else { return };
    let Some((mut desk, source, target)) = desk(&kafka, &certificates, "").await else { return };
    kafka.allow("whole", &rights(&desk, &["ingest", "deliver"]));
    kafka.allow("wipe", &rights(&desk, &["wipe"]));
    let mut run = user(&desk, "whole").spawn(&["run", SPEC, "--quiet"]);
    let writer = Writer::start(&source, work);
    writer.wait_for_more(40);
    writer.stop();
    wait(&desk, "whole", &mut [&mut run]);
    let status = user(&desk, "whole").json(&["status", SPEC]);
    let partitions = status["log"]["behind"].as_object().map(serde_json::Map::len);
    assert_eq!(partitions, Some(4), "{status}");
    until_counted(&desk, "sent", "writer", 40.0).await;
    stop(run);
    desk.crossfade = user(&desk, "whole");
    assert_equal(&desk, &source, &target).await;
    let said = desk.command(&["rollback"], &["--wipe", "--yes"]);
    assert!(said.code == Some(3) && said.stderr.contains("on the topic"), "{said}");
    let wiped = user(&desk, "wipe").run(&["rollback", SPEC, "--wipe", "--yes"]);
    assert_eq!(wiped.code, Some(0), "{wiped}");
}
