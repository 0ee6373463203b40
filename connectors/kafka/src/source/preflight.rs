//! What stands against topics as a source, each with its remedy.

use super::{
    DebeziumConfig,
    inspect::Asking,
    note::kept,
    topics::{failure, is_meant, of_prefix},
};
use crossfade_connector::{Failure, Refusal};

/// Why a table without a key cannot be read from these topics.
pub(crate) fn keyless(table: &str, transactions: bool, in_order: bool) -> Option<Refusal> {
    let refusal = |problem: &str, remedy: &str| {
        Some(Refusal { object: table.to_owned(), problem: problem.to_owned(), remedy: remedy.to_owned(), fatal: true })
    };
    if !transactions {
        return refusal(
            "the table has no key, and without transaction metadata a record that Debezium sent twice cannot be told from two equal rows",
            "Set provide.transaction.metadata=true in the connector and name the topic in [source]: transactions = \"PREFIX.transaction\"; or give the table a primary key; or exclude it",
        );
    }
    if !in_order {
        return refusal(
            "the table has no key, and its topic has several partitions: its changes have no order",
            "Give the topic one partition, and let Debezium begin anew; or give the table a primary key; or exclude it",
        );
    }
    None
}

/// What stands against the topics as a source.
pub(super) fn preflight(config: &DebeziumConfig) -> Result<Vec<Refusal>, Failure> {
    let asking = Asking::new(config)?;
    let all = of_prefix(&asking.consumer, asking.clients.brokers(), &config.topic_prefix)?;
    let mut findings = Vec::new();
    let refusal = |object: &str, problem: String, remedy: &str, fatal| Refusal {
        object: object.to_owned(),
        problem,
        remedy: remedy.to_owned(),
        fatal,
    };
    let usual = format!("{}.transaction", config.topic_prefix);
    let marks = match &config.transactions {
        Some(topic) => Some(topic.clone()),
        None => {
            let there = asking.clients.describe(&[&usual], "Read").map_err(failure)?;
            if there.into_iter().flatten().next().is_some() {
                findings.push(refusal(
                    &usual,
                    "the topic of transactions is there and is not used: each record is a transaction of its own"
                        .to_owned(),
                    &format!("write transactions = \"{usual}\" in [source] to have whole transactions"),
                    false,
                ));
            }
            None
        }
    };
    let meant = all.iter().filter(|(_, name)| is_meant(&config.tables, name)).map(|(topic, _)| topic.clone());
    for topic in meant.chain(marks.clone()) {
        let found = asking.look(&topic)?;
        let settings = asking.clients.settings(&[&topic]).map_err(failure)?;
        let setting = |name: &str| settings.get(&topic).and_then(|of| of.get(name)).map(String::as_str);
        if setting("cleanup.policy").is_some_and(|policy| policy.contains("compact")) {
            findings.push(refusal(
                &topic,
                "it is compacted: what an update left alone may have been dropped with the record that had it".to_owned(),
                &format!("kafka-configs --alter --topic {topic} --add-config cleanup.policy=delete, and let Debezium begin anew"),
                true,
            ));
        }
        if let Some(ms) = setting("retention.ms").and_then(|ms| ms.parse::<u64>().ok()) {
            findings.push(refusal(
                &topic,
                format!("the brokers drop its records after {} hours, whether they were read or not", ms / 3_600_000),
                &format!(
                    "kafka-configs --alter --topic {topic} --add-config retention.ms=-1 while the migration lasts"
                ),
                false,
            ));
        }
        for (partition, (low, high)) in found.bounds.iter().enumerate() {
            if let Err(expired) = kept(&topic, partition, 0, *low, *high) {
                findings.push(refusal(
                    &topic,
                    expired.to_string(),
                    "let Debezium take another snapshot into topics of another prefix, and name that one",
                    true,
                ));
                break;
            }
        }
        if marks.as_ref() == Some(&topic) {
            if found.bounds.len() != 1 {
                findings.push(refusal(
                    &topic,
                    "it has several partitions, and so its transactions have no order".to_owned(),
                    "give it one partition, and let Debezium begin anew",
                    true,
                ));
            }
            continue;
        }
        if let Some(sample) = asking.sample(&found, false)?
            && sample.key.is_empty()
        {
            findings.extend(keyless(&sample.name.to_string(), config.transactions.is_some(), found.bounds.len() == 1));
        }
    }
    Ok(findings)
}
