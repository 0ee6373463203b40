//! Which topics there are, what they are called, and whether they hold a history that can be read.

use super::note::lost;
use crate::client::{Clients, LogConsumer, PATIENCE, bounds};
use crossfade_connector::Failure;
use crossfade_event::TableName;
use crossfade_log::LogError;
use rdkafka::consumer::Consumer;

/// A topic as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) name: String,
    /// The cluster's own id for it.
    pub(crate) id: String,
    /// The first offset that is kept and the one after the last, of each partition.
    pub(crate) bounds: Vec<(u64, u64)>,
}

/// What a broker's error means here.
pub(crate) fn failure(error: LogError) -> Failure {
    match error {
        LogError::Server { doing, cause, passing: true } => Failure::reconnect(doing, cause),
        LogError::Server { doing, cause, passing: false } => Failure::misconfigured(
            doing,
            cause,
            "Give the user the rights to describe and to read the topics, and to describe their settings; then try again",
        ),
        LogError::Denied { doing, said, remedy } => {
            Failure::refused(doing, format!("the brokers do not allow it to this user ({said})"), remedy)
        }
        LogError::Refused { what, remedy } => Failure::misconfigured("connecting to Kafka", what, remedy),
        LogError::Lost { what, .. } => lost(what),
        other => Failure::halt("asking Kafka", other.to_string(), "Look into the brokers' logs"),
    }
}

/// The part of a topic's name that stands for a schema or a table: what Kafka does not take becomes `_`.
fn part(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' }).collect()
}

/// Where Debezium writes a table's changes.
pub(crate) fn topic_of(prefix: &str, table: &TableName) -> String {
    format!("{prefix}.{}.{}", part(&table.schema), part(&table.name))
}

/// The topics of this prefix that are called like a table's, each with the name that it gives the table.
pub(crate) fn of_prefix(
    consumer: &LogConsumer,
    brokers: &str,
    prefix: &str,
) -> Result<Vec<(String, TableName)>, Failure> {
    let metadata = consumer
        .fetch_metadata(None, PATIENCE)
        .map_err(|error| failure(crate::client::server(format!("asking {brokers} for its topics"), error)))?;
    let mut found: Vec<(String, TableName)> = metadata
        .topics()
        .iter()
        .filter_map(|topic| {
            let (schema, name) = topic.name().strip_prefix(prefix)?.strip_prefix('.')?.split_once('.')?;
            Some((topic.name().to_owned(), TableName::new(schema, name)))
        })
        .collect();
    found.sort();
    Ok(found)
}

/// What is there of these topics; those that are not there are left out.
pub(crate) fn look(clients: &Clients, consumer: &LogConsumer, names: &[&str]) -> Result<Vec<Found>, Failure> {
    let described = clients.describe(names, "Read").map_err(failure)?;
    let mut found = Vec::new();
    for (name, topic) in names.iter().zip(described) {
        let Some(topic) = topic else { continue };
        let bounds = (0..topic.partitions)
            .map(|partition| bounds(consumer, name, partition).map_err(failure))
            .collect::<Result<_, _>>()?;
        found.push(Found { name: (*name).to_owned(), id: topic.id, bounds });
    }
    Ok(found)
}

/// Whether a table's name is meant: `schema.table` with `*` and `?`, `!` in front excludes, later patterns win.
pub(crate) fn is_meant(patterns: &[String], table: &TableName) -> bool {
    let name: Vec<char> = table.to_string().chars().collect();
    let mut meant = false;
    for pattern in patterns {
        let (verdict, glob) = pattern.strip_prefix('!').map_or((true, pattern.as_str()), |glob| (false, glob));
        if matches(&glob.chars().collect::<Vec<_>>(), &name) {
            meant = verdict;
        }
    }
    meant
}

fn matches(glob: &[char], text: &[char]) -> bool {
    match (glob.split_first(), text.split_first()) {
        (None, None) => true,
        (Some(('*', rest)), _) => {
            matches(rest, text) || text.split_first().is_some_and(|(_, tail)| matches(glob, tail))
        }
        (Some(('?', rest)), Some((_, tail))) => matches(rest, tail),
        (Some((wanted, rest)), Some((seen, tail))) => wanted == seen && matches(rest, tail),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_called_as_debezium_calls_them() {
        assert_eq!(topic_of("shop", &TableName::new("public", "Odd name$")), "shop.public.Odd_name_");
    }

    #[test]
    fn later_patterns_win() {
        let patterns = ["public.*", "!public.log_?", "public.log_1"].map(str::to_owned);
        let meant = |name: &str| is_meant(&patterns, &TableName::new("public", name));
        assert!(meant("orders") && meant("log_1") && meant("log_10"));
        assert!(!meant("log_2") && !is_meant(&patterns, &TableName::new("other", "orders")));
    }
}
