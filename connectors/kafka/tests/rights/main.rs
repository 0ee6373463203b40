//! The rights that the page of this crate names: with exactly these each part works, and without any one of them it ends
//! with a sentence that says which is missing. The page itself is read, so it cannot say anything else.
#![cfg(test)]

mod parts;

use crossfade_connector::{Failure, Verdict};
use crossfade_kafka::{Connection, Mechanism, Sasl, Tls};
use crossfade_log::{EventLog, LogError, LogReader};
use crossfade_testkit::{
    kafka::{Kafka, PASSWORD, Right, USER, table},
    tls::Certificates,
    wait::GENEROUS,
};
use parts::Stage;
use std::{collections::BTreeMap, error::Error, path::Path, sync::Arc};
use tokio::{sync::Semaphore, task::JoinSet};

const PAGE: &str = include_str!("../../README.md");

/// How many are tried at once.
const AT_ONCE: usize = 6;

/// How something ended that did not end well.
#[derive(Debug)]
struct Ended {
    said: String,
    /// It is said to be a missing right, and ends the program as such.
    denied: bool,
}

impl From<LogError> for Ended {
    fn from(error: LogError) -> Self {
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        Self { said: format!("{error}{cause}"), denied: matches!(error, LogError::Denied { .. }) }
    }
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        let cause = failure.source().map(ToString::to_string).unwrap_or_default();
        let advice = failure.advice().unwrap_or_default();
        Self {
            said: format!("{}: {cause}. {advice}", failure.doing),
            denied: matches!(failure.verdict, Verdict::Refused { .. }),
        }
    }
}

/// One part with its rights, but for one.
#[derive(Debug, Clone)]
struct Case {
    who: String,
    user: String,
    rights: Vec<Right>,
    lacks: Option<Right>,
}

/// Every part with all its rights, and without each of them.
fn cases() -> Vec<Case> {
    let mut parts: BTreeMap<String, Vec<Right>> = BTreeMap::new();
    for (who, right) in table(PAGE, "## Rights") {
        parts.entry(who).or_default().push(right);
    }
    let mut cases = Vec::new();
    for (who, rights) in parts {
        for lacks in std::iter::once(None).chain(rights.iter().cloned().map(Some)) {
            let rights = rights.iter().filter(|right| Some(*right) != lacks.as_ref()).cloned().collect();
            cases.push(Case { who: who.clone(), user: format!("u{}", cases.len()), rights, lacks });
        }
    }
    cases
}

fn connection(kafka: &Kafka, folder: &Path, user: &str) -> Connection {
    let file = |name: &str| Some(folder.join(name));
    let (authority, certificate, key) = (file("authority.crt"), file("client.crt"), file("client.key"));
    Connection {
        brokers: kafka.brokers(),
        tls: Some(Tls { authority, certificate, key, key_password: None }),
        sasl: Some(Sasl {
            mechanism: Mechanism::Plain,
            user: user.into(),
            password: PASSWORD.into(),
            without_tls: false,
        }),
    }
}

/// What is wrong with how it ended, if anything is.
fn judged(case: &Case, stage: &Stage, ended: Result<(), Ended>) -> Option<String> {
    let told = format!("{} (topics {}) without {:?}", case.who, stage.prefix, case.lacks);
    let Some(lacks) = &case.lacks else {
        return ended.err().map(|ended| format!("{} does not work with the rights it has: {}", case.who, ended.said));
    };
    let lacks = stage.placed(lacks);
    let has_shown = if lacks.kind == "group" && lacks.name.ends_with(".deliver") {
        // Nothing that matters: tools show no lag.
        Some(stage.committed().is_some())
    } else if case.who == "transform" && lacks.name.ends_with(".meta") && lacks.operation == "Write" {
        // The same: `status` elsewhere does not show it.
        Some(stage.was_shown())
    } else {
        None
    };
    if let Some(shown) = has_shown {
        return match ended {
            Err(ended) => Some(format!("{told} ends: {}", ended.said)),
            Ok(()) => shown.then(|| format!("{told} has been shown all the same")),
        };
    }
    let grant = format!("{} on the {} {}", lacks.operation, lacks.kind, lacks.name.trim_end_matches('*'));
    match ended {
        Ok(()) => Some(format!("{told} works all the same: the right is not needed")),
        Err(ended) if ended.denied && ended.said.contains(&grant) => None,
        Err(ended) => Some(format!("{told} does not say {grant:?} (denied: {}): {}", ended.denied, ended.said)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_part_works_with_the_rights_of_the_table_and_names_the_one_that_is_missing() {
    let certificates = Certificates::new(USER);
    let cases = cases();
    let users: Vec<String> = cases.iter().map(|case| case.user.clone()).collect();
    let Some(kafka) = Kafka::authorizing(&certificates, &users) else { return };
    let (kafka, folder) = (Arc::new(kafka), Arc::new(tempfile::tempdir().unwrap()));
    certificates.write_to(folder.path());
    let (turns, mut running) = (Arc::new(Semaphore::new(AT_ONCE)), JoinSet::new());
    for case in cases {
        let (kafka, folder, turns) = (kafka.clone(), folder.clone(), turns.clone());
        running.spawn(async move {
            let _turn = turns.acquire().await.unwrap();
            let stage = Stage::set(&kafka, &case.who).await;
            let rights: Vec<Right> = case.rights.iter().map(|right| stage.placed(right)).collect();
            kafka.allow(&case.user, &rights);
            let connection = connection(&kafka, folder.path(), &case.user);
            match tokio::time::timeout(GENEROUS, stage.play(&case.who, connection)).await {
                Ok(ended) => judged(&case, &stage, ended),
                Err(_) => Some(format!("{} without {:?} hangs", case.who, case.lacks)),
            }
        });
    }
    let (mut wrong, mut count) = (Vec::new(), 0);
    while let Some(judged) = running.join_next().await {
        count += 1;
        wrong.extend(judged.unwrap());
    }
    assert!(count > 35, "the table has become short: {count} cases");
    wrong.sort();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_taken_away_later_ends_whoever_writes_and_whoever_follows() {
    let certificates = Certificates::new(USER);
    let users = ["writes", "follows"].map(str::to_owned);
    let Some(kafka) = Kafka::authorizing(&certificates, &users) else { return };
    let folder = tempfile::tempdir().unwrap();
    certificates.write_to(folder.path());
    let stage = Stage::set(&kafka, "nobody").await;
    let of = |who: &str| -> Vec<Right> {
        let of_part = table(PAGE, "## Rights").into_iter().filter(|(part, _)| part == who);
        of_part.map(|(_, right)| stage.placed(&right)).collect()
    };
    kafka.allow("writes", &of("ingest"));
    kafka.allow("follows", &of("deliver"));
    let (writer, mut reader) = stage
        .written_and_read(connection(&kafka, folder.path(), "writes"), connection(&kafka, folder.path(), "follows"))
        .await;
    let taken = |operation: &str, topic: &str| Right {
        kind: "topic".to_owned(),
        name: format!("{}.{topic}", stage.prefix),
        operation: operation.to_owned(),
    };
    kafka.forbid("follows", &[taken("Read", "meta")]);
    let ended = tokio::time::timeout(GENEROUS, async {
        loop {
            match reader.next().await {
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    });
    let ended = ended.await.expect("whoever follows hangs").to_string();
    assert!(ended.contains("Read on the topic") && ended.contains(".meta"), "{ended}");
    kafka.forbid("writes", &[taken("Write", "changes")]);
    let change = crossfade_testkit::log_suite::insert("one more", "v");
    let append = writer.append(crossfade_testkit::log_suite::transaction(1_000, vec![change]));
    let ended = tokio::time::timeout(GENEROUS, append).await.expect("whoever writes hangs").unwrap_err().to_string();
    assert!(ended.contains("Write on the topic") && ended.contains(".changes"), "{ended}");
}
