//! Rules that no type can say: what is not built yet, what clashes, what must not stand in a file.

use super::{
    document::Document,
    error::SpecError,
    log::{KafkaSasl, KafkaTls, LogSpec, Mechanism, Transformer},
    scalar::Secret,
    sink::{Apply, Cleanup, KafkaSink, SinkSpec, WriteRecords, WriteTo},
    source::{DebeziumSource, SourceSpec},
};
use crossfade_control::Gates;
use crossfade_transform::{Rules, Step, WriteKind};

/// What the design has and this build has not: where it would stand, as which word, and what it would be.
const UNBUILT: [(&[&str], &str); 9] = [
    (&["source", "kind"], "kafka"),
    (&["source", "kind"], "cassandra"),
    (&["source", "kind"], "mongodb"),
    (&["sink", "kind"], "cassandra"),
    (&["sink", "kind"], "mongodb"),
    (&["sink", "kind"], "duckdb"),
    (&["log", "format"], "debezium-json"),
    (&["sink", "write"], "dual-records"),
    (&["source", "snapshot", "through"], "sink"),
];

/// Refuses by name what is not built yet.
pub(super) fn refuse_unbuilt(document: &Document<'_>) -> Result<(), SpecError> {
    for (path, value) in UNBUILT {
        let is_built =
            value == "dual-records" && document.literal(&["sink", "kind"]).is_some_and(|(kind, _)| kind == "kafka");
        if let Some((_, span)) = document.literal(path).filter(|(text, _)| *text == value && !is_built) {
            let (key, section) = path.split_last().unwrap_or((&"", &[]));
            let section = section.join(".");
            return Err(document.error(span, format!("{key} = {value:?} in [{section}] is not built yet")));
        }
    }
    Ok(())
}

/// What was written to a topic has been read: no gate takes that back. And how fast a source answers only a server knows.
pub(super) fn check_gates(
    document: &Document<'_>,
    source: &SourceSpec,
    sink: &SinkSpec,
    gates: &Gates,
) -> Result<(), SpecError> {
    if gates.latency.is_some() && !matches!(source, SourceSpec::Postgres(_)) {
        let span = document.span_of(&["gates", "latency"]);
        return Err(document.error(span, "the gate \"latency\" is built for sources of kind = \"postgres\" only"));
    }
    if gates.collisions.is_some() && matches!(sink, SinkSpec::Kafka(_)) {
        let span = document.span_of(&["gates", "collisions"]);
        let told = "the gate \"collisions\" is not built for topics: a topic takes two records of one key, and refuses neither";
        return Err(document.error(span, told));
    }
    match (sink, gates.rolling_back().first()) {
        (SinkSpec::Kafka(_), Some(gate)) => Err(document
            .error(
                document.span_of(&["gates", gate, "then"]),
                format!("then = \"rollback\" in [gates.{gate}] is not built for topics: what was written to one has been read"),
            )
            .advise("write \"pause\"; `crossfade rollback --wipe` deletes the topics")),
        _ => Ok(()),
    }
}

/// Reads `[keys.*]`, `[rekey]` and `[[table]]`.
pub(super) fn read_transforms(document: &mut Document<'_>) -> Result<Rules, SpecError> {
    let tables = document.take_all(&["keys", "rekey", "table"]);
    document.read(tables)
}

/// What is wrong only together with something else.
pub(super) fn check(
    document: &Document<'_>,
    source: &SourceSpec,
    sink: &SinkSpec,
    rules: &Rules,
) -> Result<(), SpecError> {
    for section in ["source", "sink"] {
        refuse_plain_password(document, section)?;
    }
    if source.tables().is_empty() {
        let span = document.span_of(&["source", "tables"]);
        return Err(
            document.error(span, "\"tables\" in [source] is empty; [\"public.*\"] takes every table of a schema")
        );
    }
    check_ranges(document, source, sink)?;
    check_sink(document, sink)?;
    check_layout(document, sink, rules)?;
    check_same_database(document, source, sink)?;
    if let SourceSpec::Debezium(source) = source {
        check_debezium(document, source, sink, rules)?;
    }
    check_tables(document, rules)
}

/// What topics cannot do, and what a source that is read from its database can.
fn check_debezium(
    document: &Document<'_>,
    source: &DebeziumSource,
    sink: &SinkSpec,
    rules: &Rules,
) -> Result<(), SpecError> {
    let refuse = |path: &[&str], message: &str| Err(document.error(document.span_of(path), message));
    for path in [["source", "sasl", "password"], ["source", "tls", "key_password"]] {
        refuse_literal(document, &path)?;
    }
    if source.brokers.split(',').any(|broker| broker.trim().is_empty()) {
        return refuse(
            &["source", "brokers"],
            "\"brokers\" in [source] names no broker; write host:port, several with commas between",
        );
    }
    if source.topic_prefix.is_empty() {
        return refuse(
            &["source", "topic_prefix"],
            "\"topic_prefix\" in [source] is empty; it is the connector's topic.prefix",
        );
    }
    let beside = matches!(sink, SinkSpec::Postgres(sink) if sink.write == WriteTo::ShadowColumns);
    if beside || rules.table.iter().any(|table| table.write == Some(WriteKind::ShadowColumns)) {
        return refuse(
            &["sink", "write"],
            "write = \"shadow-columns\" is not built for kind = \"debezium\" in [source]: the tables beside which they would stand are not known",
        );
    }
    if rules.table.iter().flat_map(|table| &table.steps).any(|step| matches!(step, Step::Lookup(_))) {
        return refuse(
            &["table"],
            "lookups are not built for kind = \"debezium\" in [source]: a row may come before the one that it looks up",
        );
    }
    check_security(document, "source", source.tls.as_ref(), source.sasl.as_ref())
}

/// The fewest characters of a secret: fewer can be tried out.
const SECRET_CHARS_MIN: usize = 16;

/// A secret is one only where it does not stand in the spec, and cannot be guessed.
pub(super) fn check_secret(document: &Document<'_>, secret: Option<&Secret>) -> Result<(), SpecError> {
    let Some((written, span)) = document.literal(&["secret"]) else { return Ok(()) };
    if !written.contains("${") && !written.starts_with("file:") {
        return Err(document.error(span, "\"secret\" stands in plain text").advise(
            "put it into the environment and write secret = \"${NAME}\", or into a file of mode 0600 and write secret = \"file:PATH\"",
        ));
    }
    if secret.is_some_and(|secret| secret.expose().chars().count() < SECRET_CHARS_MIN) {
        return Err(document
            .error(span, format!("\"secret\" has fewer than {SECRET_CHARS_MIN} characters"))
            .advise("make one: openssl rand -hex 32"));
    }
    Ok(())
}

/// What cannot be meant, and what would put a password where it can be heard or read.
pub(super) fn check_log(
    document: &Document<'_>,
    log: &LogSpec,
    sink: &SinkSpec,
    rules: &Rules,
) -> Result<(), SpecError> {
    let LogSpec::Kafka(log) = log else { return Ok(()) };
    for path in [["log", "sasl", "password"], ["log", "tls", "key_password"]] {
        refuse_literal(document, &path)?;
    }
    let refuse = |path: &[&str], message: String| Err(document.error(document.span_of(path), message));
    if log.brokers.split(',').any(|broker| broker.trim().is_empty()) {
        return refuse(
            &["log", "brokers"],
            "\"brokers\" in [log] names no broker; write host:port, several with commas between".to_owned(),
        );
    }
    if let Some(prefix) = &log.topic_prefix {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if prefix.is_empty() || prefix.len() > 200 || prefix.starts_with('.') || !prefix.chars().all(allowed) {
            return refuse(
                &["log", "topic_prefix"],
                format!(
                    "{prefix:?} in [log] cannot begin a topic's name; use letters, digits, `.`, `_` and `-`, at most 200, no dot in front"
                ),
            );
        }
    }
    if let Some(partitions) = log.partitions
        && !(1..=1_000).contains(&partitions)
    {
        return refuse(
            &["log", "partitions"],
            format!("\"partitions\" in [log] must be from 1 to 1000, not {partitions}"),
        );
    }
    if let Some(silent) = log.worker_timeout {
        let seconds = silent.0.as_secs_f64();
        if !(6.0..=1_800.0).contains(&seconds) {
            return refuse(
                &["log", "worker_timeout"],
                format!("\"worker_timeout\" in [log] must be from 6s to 30m, not {seconds}s"),
            );
        }
        let is_shared = matches!(sink, SinkSpec::Postgres(keys) if keys.apply == Apply::Parallel);
        if log.transform != Transformer::Workers && !is_shared {
            return refuse(
                &["log", "worker_timeout"],
                "\"worker_timeout\" in [log] is for workers, and for delivers that share the stream; write transform = \"workers\" beside it, or apply = \"parallel\" in [sink]".to_owned(),
            );
        }
    }
    for (key, figure) in [("replication", log.replication), ("min_insync_replicas", log.min_insync_replicas)] {
        if figure == Some(0) {
            return refuse(&["log", key], format!("{key:?} in [log] must be 1 or more, not 0"));
        }
    }
    if let (Some(copies), Some(in_sync)) = (log.replication, log.min_insync_replicas)
        && in_sync > copies
    {
        return refuse(
            &["log", "min_insync_replicas"],
            format!(
                "two rules clash: \"min_insync_replicas\" in [log] is {in_sync}, and \"replication\" only {copies}"
            ),
        );
    }
    let looks_up = rules.table.iter().flat_map(|table| &table.steps).any(|step| matches!(step, Step::Lookup(_)));
    if looks_up && (log.retention.time.is_some() || log.retention.bytes.is_some()) {
        let message = "two rules clash: lookups are made anew from the log's beginning, and \"retention\" in [log] lets the broker drop it";
        return refuse(&["log", "retention"], message.to_owned());
    }
    check_security(document, "log", log.tls.as_ref(), log.sasl.as_ref())
}

fn check_security(
    document: &Document<'_>,
    section: &str,
    tls: Option<&KafkaTls>,
    sasl: Option<&KafkaSasl>,
) -> Result<(), SpecError> {
    if let Some(tls) = tls
        && tls.certificate.is_some() != tls.key.is_some()
    {
        let message =
            format!("a client certificate and its key belong together: name both in [{section}.tls], or neither");
        return Err(document.error(document.span_of(&[section, "tls"]), message));
    }
    let Some(sasl) = sasl else { return Ok(()) };
    let refuse = |key: &str, message: String| Err(document.error(document.span_of(&[section, "sasl", key]), message));
    match (tls, sasl.mechanism) {
        (None, Mechanism::Plain) => refuse(
            "mechanism",
            format!(
                "mechanism = \"plain\" without [{section}.tls] sends the password in the clear; use TLS, or \"scram-sha-512\""
            ),
        ),
        (None, _) if !sasl.without_tls => Err(document
            .error(document.span_of(&[section, "sasl"]), "SCRAM without TLS lets whoever listens try passwords")
            .advise(format!("add [{section}.tls]; or ask for it by name: without_tls = true in [{section}.sasl]"))),
        (Some(_), _) if sasl.without_tls => {
            refuse("without_tls", format!("two rules clash: \"without_tls\" in [{section}.sasl] and [{section}.tls]"))
        }
        _ => Ok(()),
    }
}

/// A password stands in the environment or in a file of its own.
fn refuse_literal(document: &Document<'_>, path: &[&str]) -> Result<(), SpecError> {
    let Some((written, span)) = document.literal(path) else { return Ok(()) };
    if written.contains("${") || written.starts_with("file:") {
        return Ok(());
    }
    let (key, section) = path.split_last().unwrap_or((&"", &[]));
    Err(document.error(span, format!("{key:?} in [{}] stands in plain text", section.join("."))).advise(format!(
        "put it into the environment and write {key} = \"${{NAME}}\", or into a file of mode 0600 and write {key} = \"file:PATH\""
    )))
}

fn check_ranges(document: &Document<'_>, source: &SourceSpec, sink: &SinkSpec) -> Result<(), SpecError> {
    let snapshot = match source {
        SourceSpec::Postgres(source) => source.snapshot,
        SourceSpec::Sqlite(source) => source.snapshot,
        // Debezium cuts its own.
        SourceSpec::Debezium(_) => super::source::Snapshot::default(),
    };
    let mut figures = vec![
        (["source", "snapshot", "workers"].as_slice(), u64::from(snapshot.workers), 1, 64),
        (["source", "snapshot", "chunk_rows"].as_slice(), snapshot.chunk_rows, 100, u64::MAX),
    ];
    if let SinkSpec::Postgres(sink) = sink {
        figures.push((["sink", "workers"].as_slice(), sink.workers.map_or(1, u64::from), 1, 64));
    }
    for (path, figure, least, most) in figures {
        if figure < least || figure > most {
            let (key, section) = path.split_last().unwrap_or((&"", &[]));
            let upto = if most == u64::MAX { "or more".to_owned() } else { format!("to {most}") };
            let message = format!("{key:?} in [{}] must be {least} {upto}, not {figure}", section.join("."));
            return Err(document.error(document.span_of(path), message));
        }
    }
    Ok(())
}

fn check_sink(document: &Document<'_>, sink: &SinkSpec) -> Result<(), SpecError> {
    let refuse = |key: &str, message: &str| Err(document.error(document.span_of(&["sink", key]), message));
    match sink {
        SinkSpec::Postgres(sink) if sink.workers.is_some() && sink.apply != Apply::Parallel => refuse(
            "workers",
            "two rules clash: \"workers\" in [sink] needs apply = \"parallel\"; one connection writes otherwise",
        ),
        SinkSpec::Postgres(sink) if sink.schema.as_deref() == Some("") => {
            refuse("schema", "\"schema\" in [sink] is empty; leave it out to keep the source's schemas")
        }
        SinkSpec::Sqlite(sink) if sink.write == WriteTo::ShadowColumns => {
            refuse("write", "a SQLite file has no shadow columns; use write = \"shadow-tables\"")
        }
        SinkSpec::Sqlite(sink) if sink.apply == Apply::Parallel => {
            refuse("apply", "a SQLite file has one writer; use apply = \"transactional\"")
        }
        SinkSpec::Kafka(sink) => check_topics(document, sink),
        SinkSpec::Postgres(_) | SinkSpec::Sqlite(_) => Ok(()),
    }
}

/// Where no table is told in both key versions, there are no places for them.
fn check_layout(document: &Document<'_>, sink: &SinkSpec, rules: &Rules) -> Result<(), SpecError> {
    let SinkSpec::Kafka(sink) = sink else { return Ok(()) };
    let any = rules.table.iter().any(|table| table.write == Some(WriteKind::DualRecords));
    if sink.write == WriteRecords::DualRecords || any {
        return Ok(());
    }
    match document.key_span(&["sink", "layout"]) {
        Some(span) => Err(document.error(
            span,
            "\"layout\" in [sink] says where both key versions stand, and nothing is written as write = \"dual-records\"",
        )),
        None => Ok(()),
    }
}

/// What a sink on Kafka cannot be told.
fn check_topics(document: &Document<'_>, sink: &KafkaSink) -> Result<(), SpecError> {
    for path in [["sink", "sasl", "password"], ["sink", "tls", "key_password"]] {
        refuse_literal(document, &path)?;
    }
    let refuse = |key: &str, message: String| Err(document.error(document.span_of(&["sink", key]), message));
    if sink.brokers.split(',').any(|broker| broker.trim().is_empty()) {
        let message = "\"brokers\" in [sink] names no broker; write host:port, several with commas between";
        return refuse("brokers", message.to_owned());
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let prefix = &sink.topic_prefix;
    if prefix.is_empty() || prefix.len() > 100 || prefix.starts_with('.') || !prefix.chars().all(allowed) {
        return refuse(
            "topic_prefix",
            format!(
                "{prefix:?} in [sink] cannot begin a topic's name; use letters, digits, `.`, `_` and `-`, at most 100, no dot in front"
            ),
        );
    }
    if let Some(partitions) = sink.partitions
        && !(1..=1_000).contains(&partitions)
    {
        return refuse("partitions", format!("\"partitions\" in [sink] must be from 1 to 1000, not {partitions}"));
    }
    for (key, figure) in [("replication", sink.replication), ("min_insync_replicas", sink.min_insync_replicas)] {
        if figure == Some(0) {
            return refuse(key, format!("{key:?} in [sink] must be 1 or more, not 0"));
        }
    }
    if let (Some(copies), Some(in_sync)) = (sink.replication, sink.min_insync_replicas)
        && in_sync > copies
    {
        let message = format!(
            "two rules clash: \"min_insync_replicas\" in [sink] is {in_sync}, and \"replication\" only {copies}"
        );
        return refuse("min_insync_replicas", message);
    }
    let has_retention = sink.retention.time.is_some() || sink.retention.bytes.is_some();
    if sink.cleanup == Cleanup::Compact && has_retention {
        let message = "two rules clash: \"retention\" in [sink] drops records by age or size, and cleanup = \"compact\" keeps the last of each key";
        return refuse("retention", message.to_owned());
    }
    check_security(document, "sink", sink.tls.as_ref(), sink.sasl.as_ref())
}

/// The new shape must differ in name from the old one.
fn check_same_database(document: &Document<'_>, source: &SourceSpec, sink: &SinkSpec) -> Result<(), SpecError> {
    let (SourceSpec::Postgres(source), SinkSpec::Postgres(sink)) = (source, sink) else { return Ok(()) };
    let same = source.url.expose() == sink.url.expose();
    if same && sink.schema.is_none() && sink.write == WriteTo::ShadowTables {
        let message = "source and sink are the same database, and nothing tells the new tables from the old ones";
        let advice = "give [sink] a schema of its own, or write = \"shadow-columns\"";
        return Err(document.error(document.span_of(&["sink", "url"]), message).advise(advice));
    }
    Ok(())
}

/// Two SQLite ends must be two files.
pub(super) fn check_two_files(document: &Document<'_>, source: &SourceSpec, sink: &SinkSpec) -> Result<(), SpecError> {
    let (SourceSpec::Sqlite(source), SinkSpec::Sqlite(sink)) = (source, sink) else { return Ok(()) };
    let real = |path: &std::path::Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if real(&source.path) == real(&sink.path) {
        let message = format!(
            "source and sink are the same file, {}; a SQLite sink needs a file of its own",
            sink.path.display()
        );
        return Err(document.error(document.span_of(&["sink", "path"]), message));
    }
    Ok(())
}

/// No table may have two sets of rules.
fn check_tables(document: &Document<'_>, rules: &Rules) -> Result<(), SpecError> {
    for (index, table) in rules.table.iter().enumerate() {
        let earlier = rules.table.iter().take(index).position(|other| other.from == table.from);
        if let Some(earlier) = earlier {
            let message = format!(
                "two rules clash: [[table]] number {} and number {} are both from {:?}; make them one",
                earlier + 1,
                index + 1,
                table.from
            );
            let span = document.span_of(&["table", &index.to_string(), "from"]);
            return Err(document.error(span, message));
        }
    }
    Ok(())
}

/// A password belongs into the environment or a file of its own.
fn refuse_plain_password(document: &Document<'_>, section: &str) -> Result<(), SpecError> {
    let Some((url, span)) = document.literal(&[section, "url"]) else { return Ok(()) };
    if !has_plain_password(url) {
        return Ok(());
    }
    let variable = format!("{}_PASSWORD", section.to_uppercase());
    let message = format!("\"url\" in [{section}] holds a password in plain text");
    Err(document.error(span, message).advise(format!(
        "put ${{{variable}}} in its place and set that variable, or put the whole URL into a file of mode 0600 and write url = \"file:PATH\""
    )))
}

pub(crate) fn has_plain_password(url: &str) -> bool {
    let outside = |password: &str| password.is_empty() || password.contains("${");
    let rest = url.split_once("://").map_or("", |(_, rest)| rest);
    let (before_query, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = before_query.rsplit_once('@').map_or("", |(authority, _)| authority);
    let in_login = authority.split_once(':').is_some_and(|(_, password)| !outside(password));
    let pairs = if rest.is_empty() { url.split_whitespace().collect::<Vec<_>>() } else { query.split('&').collect() };
    let in_pairs = pairs.iter().filter_map(|pair| pair.trim().strip_prefix("password=")).any(|value| !outside(value));
    in_login || in_pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_plain_text_is_seen_in_every_spelling() {
        for plain in [
            "postgres://app:hunter2@host/db",
            "postgres://app@host/db?password=hunter2",
            "host=h user=u password=hunter2",
        ] {
            assert!(has_plain_password(plain), "{plain}");
        }
        for fine in [
            "${URL}",
            "postgres://app@host/db",
            "postgres://app:${PW}@host/db",
            "postgres://app@host:5432/db?sslmode=require",
            "host=h password=${PW}",
            "file:secret",
        ] {
            assert!(!has_plain_password(fine), "{fine}");
        }
    }
}
