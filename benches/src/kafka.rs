//! With Kafka at the end, or between: the backlog of `backlog.rs`, against a real Debezium in Kafka Connect (one standalone
//! worker), and the log on Kafka against the log on disk. One broker, with Kafka's own settings.
//!
//! Both sides are timed from the start of their process, a Java machine here and a `crossfade run` there, to the record of
//! the last transaction being readable; what was there before the backlog has been copied before. Debezium writes without
//! schemas, which is less for it to do.

use crate::{
    backlog::{SCHEMA, fill, write},
    servers::{Databases, Pair, spawn, until_caught_up, until_true},
    summary::row,
    usage::{MIB, peak_bytes},
};
use anyhow::{Context, Result, ensure};
use crossfade_testkit::{debezium::Debezium, kafka::Kafka};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};
use std::time::{Duration, Instant};

const PER_TRANSACTION: u64 = 100;

/// Without schemas, and only what the backlog touches; the slot begins where the stream does.
const CONNECTOR: [(&str, &str); 6] = [
    ("snapshot.mode", "no_data"),
    ("table.include.list", "public.items,public.done"),
    ("key.converter", "org.apache.kafka.connect.json.JsonConverter"),
    ("key.converter.schemas.enable", "false"),
    ("value.converter", "org.apache.kafka.connect.json.JsonConverter"),
    ("value.converter.schemas.enable", "false"),
];

/// One round's figures.
#[derive(Debug, Clone, Copy)]
struct Round {
    changes_per_second: f64,
    peak_mib: f64,
}

fn rows(work: &str, peer: &[Round], ours: &[Round]) {
    let speed = |rounds: &[Round]| rounds.iter().map(|round| round.changes_per_second).collect::<Vec<_>>();
    let memory = |rounds: &[Round]| rounds.iter().map(|round| round.peak_mib).collect::<Vec<_>>();
    row(work, "changes/s", &speed(peer), &speed(ours));
    row("the same, resident memory, peak", "MiB", &memory(peer), &memory(ours));
}

/// Both do the same work in turns, each round on databases and topics of its own.
async fn in_turns(
    rounds: usize,
    changes: u64,
    mut once: impl AsyncFnMut(bool, &Pair, &Kafka, &Databases, &str) -> Result<Round>,
) -> Result<(Vec<Round>, Vec<Round>)> {
    let pair = Pair::start()?;
    let kafka = Kafka::start(&[]).context("Kafka cannot be had here")?;
    let (mut peer, mut ours) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let order = if round % 2 == 0 { [true, false] } else { [false, true] };
        for is_peer in order {
            let databases = pair.databases("kafka").await;
            databases.source.execute(SCHEMA).await;
            fill(&databases, changes).await;
            let figures = once(is_peer, &pair, &kafka, &databases, &kafka.prefix("bench")).await?;
            if is_peer { peer.push(figures) } else { ours.push(figures) }
        }
    }
    Ok((peer, ours))
}

/// `[log]` of a spec whose log is on Kafka.
fn log_on(kafka: &Kafka, prefix: &str) -> String {
    format!("[log]\nkind = \"kafka\"\nbrokers = \"{}\"\ntopic_prefix = \"{prefix}\"\n", kafka.brokers())
}

/// From PostgreSQL into topics.
pub(crate) async fn to_topics(rounds: usize, changes: u64) -> Result<()> {
    let (peer, ours) = in_turns(rounds, changes, async |is_peer, pair, kafka, databases, prefix| match is_peer {
        true => debezium(pair, kafka, databases, prefix, changes).await,
        false => into_topics(pair, kafka, databases, prefix, changes).await,
    })
    .await?;
    rows("backlog, transactions of 100, into topics", &peer, &ours);
    Ok(())
}

async fn debezium(pair: &Pair, kafka: &Kafka, databases: &Databases, prefix: &str, changes: u64) -> Result<Round> {
    let connector = begun_connector(kafka, databases, prefix, &CONNECTOR).await?;
    write(databases, changes, PER_TRANSACTION).await?;
    pair.settle().await?;
    let begun = Instant::now();
    connector.start_again();
    let peak = until_told(kafka, prefix, || connector.pid()).await?;
    let took = begun.elapsed().as_secs_f64();
    drop(connector);
    databases.free_slot().await;
    ensure!(count(kafka, prefix)? >= changes, "Debezium has not told every change");
    Ok(Round { changes_per_second: changes as f64 / took, peak_mib: peak })
}

/// A connector that has its slot and has noted where it is, and does not run.
async fn begun_connector(
    kafka: &Kafka,
    databases: &Databases,
    prefix: &str,
    settings: &[(&str, &str)],
) -> Result<Debezium> {
    let connector = Debezium::start(kafka, &databases.source, prefix, settings).context("Debezium cannot be had")?;
    // Once it has its slot: what it is told then, it notes.
    let source = databases.source.connect().await;
    let has_slot = "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE database = current_database() AND active)";
    until_true(&source, has_slot).await?;
    databases.source.execute("INSERT INTO done VALUES (0)").await;
    while !connector.has_noted_the_stream() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    connector.kill();
    Ok(connector)
}

async fn into_topics(pair: &Pair, kafka: &Kafka, databases: &Databases, prefix: &str, changes: u64) -> Result<Round> {
    let folder = tempfile::tempdir()?;
    let spec = format!(
        "{}topic_prefix = \"{prefix}\"\npartitions = 1\nschemas = false\n",
        databases.spec_to("topics", &format!("kind = \"kafka\"\nbrokers = \"{}\"\n", kafka.brokers()))
    );
    until_caught_up(folder.path(), &spec)?;
    let copied = count(kafka, prefix)?;
    write(databases, changes, PER_TRANSACTION).await?;
    pair.settle().await?;
    let begun = Instant::now();
    let running = spawn(folder.path(), &spec, &[]);
    let peak = until_told(kafka, prefix, || Some(running.pid())).await?;
    let took = begun.elapsed().as_secs_f64();
    running.terminate();
    running.wait();
    databases.free_slot().await;
    // A delete is two records, and each transaction of Kafka leaves one more that nobody sees.
    ensure!(count(kafka, prefix)? - copied >= changes, "not every change was told");
    Ok(Round { changes_per_second: changes as f64 / took, peak_mib: peak })
}

/// From PostgreSQL to PostgreSQL, the log on Kafka against the log on disk.
pub(crate) async fn log(rounds: usize, changes: u64) -> Result<()> {
    let (disk, topics) = in_turns(rounds, changes, async |is_disk, pair, kafka, databases, prefix| {
        let log = if is_disk { String::new() } else { log_on(kafka, prefix) };
        over_log(pair, databases, &log, changes).await
    })
    .await?;
    rows("backlog, transactions of 100: log on disk (as the peer) and on Kafka", &disk, &topics);
    Ok(())
}

async fn over_log(pair: &Pair, databases: &Databases, log: &str, changes: u64) -> Result<Round> {
    let folder = tempfile::tempdir()?;
    let spec = format!("{}{log}", databases.spec("log"));
    until_caught_up(folder.path(), &spec)?;
    write(databases, changes, PER_TRANSACTION).await?;
    pair.settle().await?;
    let watcher = databases.target.connect().await;
    let begun = Instant::now();
    let running = spawn(folder.path(), &spec, &[]);
    until_true(&watcher, "SELECT EXISTS (SELECT FROM done)").await?;
    let took = begun.elapsed().as_secs_f64();
    let peak = peak_bytes(running.pid())? as f64 / MIB;
    running.terminate();
    running.wait();
    databases.free_slot().await;
    databases.compare("SELECT * FROM public.items ORDER BY id").await?;
    Ok(Round { changes_per_second: changes as f64 / took, peak_mib: peak })
}

/// From PostgreSQL to PostgreSQL over topics: Debezium and its JDBC sink, a worker each, with the schemas that the sink
/// needs; and a run whose log is on Kafka.
pub(crate) async fn over_topics(rounds: usize, changes: u64) -> Result<()> {
    let (peer, ours) = in_turns(rounds, changes, async |is_peer, pair, kafka, databases, prefix| match is_peer {
        true => connectors(pair, kafka, databases, prefix, changes).await,
        false => over_log(pair, databases, &log_on(kafka, prefix), changes).await,
    })
    .await?;
    rows("backlog, transactions of 100, over topics", &peer, &ours);
    Ok(())
}

/// Both connectors; the memory is that of the larger worker.
async fn connectors(pair: &Pair, kafka: &Kafka, databases: &Databases, prefix: &str, changes: u64) -> Result<Round> {
    databases.target.execute(SCHEMA).await;
    databases.copy_items().await?;
    let with_schemas = CONNECTOR.map(|(name, value)| match name.ends_with("schemas.enable") {
        true => (name, "true"),
        false => (name, value),
    });
    let source = begun_connector(kafka, databases, prefix, &with_schemas).await?;
    write(databases, changes, PER_TRANSACTION).await?;
    pair.settle().await?;
    let watcher = databases.target.connect().await;
    let begun = Instant::now();
    source.start_again();
    let sink = Debezium::start_sink(kafka, &databases.target, prefix, "").context("Debezium cannot be had")?;
    // The sink takes the topics one by one: that the last transaction is there does not say that all before it is.
    let all = format!(
        "SELECT EXISTS (SELECT FROM done WHERE id = 1) AND (SELECT count(*) = {kept} FROM items) \
         AND (SELECT name = 'moved {moved}' FROM items WHERE id = {last})",
        kept = changes / 2 + changes / 2 - changes / 10,
        moved = changes / 10 * 4,
        last = 1 + (changes / 10 * 4) % (changes / 4),
    );
    until_true(&watcher, &all).await?;
    let took = begun.elapsed().as_secs_f64();
    let peaks = [source.pid(), sink.pid()].into_iter().flatten().map(peak_bytes).collect::<Result<Vec<_>>>()?;
    drop((source, sink));
    databases.free_slot().await;
    databases.compare("SELECT * FROM public.items ORDER BY id").await?;
    let peak_mib = peaks.into_iter().max().unwrap_or_default() as f64 / MIB;
    Ok(Round { changes_per_second: changes as f64 / took, peak_mib })
}

fn reader(kafka: &Kafka) -> Result<BaseConsumer> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", kafka.brokers()).set("group.id", "bench").set("isolation.level", "read_committed");
    Ok(config.create()?)
}

/// How many records stand in the topic of `items`.
fn count(kafka: &Kafka, prefix: &str) -> Result<u64> {
    let topic = format!("{prefix}.public.items");
    let (low, high) = reader(kafka)?.fetch_watermarks(&topic, 0, Duration::from_secs(30))?;
    Ok((high - low).unsigned_abs())
}

/// Waits until the last transaction's row can be read; gives the largest memory that the process had then, in MiB.
async fn until_told(kafka: &Kafka, prefix: &str, pid: impl Fn() -> Option<u32>) -> Result<f64> {
    let consumer = reader(kafka)?;
    let mut places = TopicPartitionList::new();
    places.add_partition_offset(&format!("{prefix}.public.done"), 0, Offset::Beginning)?;
    consumer.assign(&places)?;
    loop {
        match consumer.poll(Duration::from_millis(5)) {
            // What is told of the row that was there before bears another number.
            Some(Ok(message)) => {
                let payload: serde_json::Value = serde_json::from_slice(message.payload().unwrap_or_default())?;
                if payload["after"]["id"] == 1 {
                    let pid = pid().context("it has ended")?;
                    return Ok(peak_bytes(pid)? as f64 / MIB);
                }
            }
            // The topic comes with its first record.
            Some(Err(_)) | None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}
