//! What ends a reading, and with which word.

use super::stand::{Record, Stand};
use crossfade_connector::{Failure, Inspect, Source, Verdict};
use crossfade_kafka::{DebeziumInspect, DebeziumSource};

fn lost(failure: &Failure, word: &str) {
    assert!(matches!(failure.verdict, Verdict::Lost { .. }), "{failure}");
    assert!(failure.to_string().contains(word), "{failure}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_another_one_now_is_lost() {
    for (word, what) in [("made anew", 0), ("deleted", 1), ("3 now", 2), ("expired", 3)] {
        let Some(stand) = Stand::new("lost", 1).await else { return };
        stand.write("t", (1..=3).map(|id| Record::of("r", id, "a")));
        let mut reading = stand.reading(&["public.t"], true).await;
        // The source is closed meanwhile, but for records that expire under a reader that has fallen behind.
        let at = reading.resume.clone();
        reading.source.uninstall().await.unwrap();
        match what {
            0 | 1 => {
                stand.delete("public.t").await;
                if what == 0 {
                    // A name is free again a moment after its topic was deleted.
                    while stand.made_again("public.t").await.is_err() {}
                }
            }
            2 => stand.grow("public.t", 3).await,
            _ => {
                stand.write("t", (4..=9).map(|id| Record::of("u", id, "b")));
                stand.expire("public.t", 5).await;
            }
        }
        lost(&reading.source.open(at).await.unwrap_err(), word);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_beginning_that_has_expired_is_lost_and_check_says_so_first() {
    let Some(stand) = Stand::new("expired", 1).await else { return };
    stand.write("t", (1..=3).map(|id| Record::of("r", id, "a")));
    stand.expire("public.t", 2).await;
    let config = stand.config(&["public.t"], true);
    let catalog = DebeziumInspect::new(config.clone(), None).catalog(&config.tables).await.unwrap();
    let mut source = DebeziumSource::new(config, Some(&catalog));
    let findings = source.preflight().await.unwrap();
    assert!(findings.iter().any(|finding| finding.fatal && finding.problem.contains("expired")), "{findings:?}");
    lost(&source.open(crossfade_connector::Resume::default()).await.unwrap_err(), "expired");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_history_is_lost() {
    let Some(stand) = Stand::new("history", 1).await else { return };
    stand.write("t", [Record::of("r", 1, "a")]);
    stand.write("t", [Record::of("u", 1, "b").at(10, 200, 1)]);
    stand.end(10, 210, &[("t", 1)]);
    // A second snapshot: what changed before it is nowhere.
    let mut reading = stand.reading(&["public.t"], true).await;
    stand.write("t", [Record { lsn: 150, ..Record::of("r", 1, "c") }]);
    lost(&reading.failure().await, "another snapshot");
    // A database that was restored.
    let Some(stand) = Stand::new("restored", 1).await else { return };
    stand.write("t", [Record::of("u", 1, "b").at(10, 200, 1)]);
    stand.end(10, 210, &[("t", 1)]);
    let mut reading = stand.reading(&["public.t"], true).await;
    stand.write("t", [Record::of("u", 1, "c").at(9, 150, 1)]);
    stand.end(9, 160, &[("t", 1)]);
    lost(&reading.failure().await, "goes back");
    // A table's topic that lacks changes of a transaction.
    let Some(stand) = Stand::new("lacks", 1).await else { return };
    stand.write("t", [Record::of("u", 1, "b").at(10, 200, 1)]);
    stand.end(10, 210, &[("t", 1)]);
    let mut reading = stand.reading(&["public.t"], true).await;
    stand.write("t", [Record::of("u", 1, "c").at(12, 250, 1)]);
    stand.end(11, 240, &[("t", 2)]);
    stand.end(12, 260, &[("t", 1)]);
    lost(&reading.failure().await, "has 2 changes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_cannot_be_read_is_named_by_its_place_and_shows_no_value() {
    for (value, word) in [
        ("hello secret", "no JSON"),
        (r#"{"id": 1, "x": "secret"}"#, "not Debezium's envelope"),
        (r#"{"op":"c","source":{"connector":"mysql"},"after":{"x":"secret"}}"#, "mysql"),
        (
            r#"{"op":"c","source":{"connector":"postgresql","db":"shop","schema":"public","table":"u"},"after":{"id":1,"x":"secret"}}"#,
            "of the table public.u",
        ),
        (
            r#"{"op":"c","source":{"connector":"postgresql","db":"shop","schema":"public","table":"t"},"after":{"id":"secret","x":"a"}}"#,
            "column id",
        ),
        (
            r#"{"op":"c","source":{"connector":"postgresql","db":"shop","schema":"public","table":"t"},"after":{"id":1,"x":"secret","y":1}}"#,
            "new column y",
        ),
        (
            r#"{"op":"c","source":{"connector":"postgresql","db":"shop","schema":"public","table":"t"},"after":{"id":1}}"#,
            "no column x",
        ),
        (
            r#"{"op":"c","source":{"connector":"postgresql","db":"other","schema":"public","table":"t"},"after":{"id":1,"x":"a"}}"#,
            "database other",
        ),
    ] {
        let Some(stand) = Stand::new("foreign", 1).await else { return };
        stand.write("t", [Record::of("r", 1, "a")]);
        let mut reading = stand.reading(&["public.t"], false).await;
        stand.send("public.t", Some(&serde_json::json!({"id": 1})), Some(value), None);
        stand.flush();
        let failure = reading.failure().await;
        let said = failure.to_string();
        assert!(!failure.is_transient() && said.contains(word) && !said.contains("secret"), "{said}");
        assert!(said.contains("offset 1") || word.contains("database"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_before_the_first_record_is_said_with_its_remedy() {
    let Some(stand) = Stand::new("wrong", 2).await else { return };
    stand.write("t", [Record::of("r", 1, "a")]);
    stand.write("loose", [Record::loose("r", None, Some("x"))]);
    // Nothing of that name.
    let failure = DebeziumInspect::new(stand.config(&["public.nothing"], true), None)
        .catalog(&["public.nothing".to_owned()])
        .await
        .unwrap_err();
    let said = failure.to_string();
    assert!(matches!(failure.verdict, Verdict::Misconfigured { .. }) && said.contains("public.loose"), "{said}");
    // A table without a key needs transactions.
    let config = stand.config(&["public.*"], false);
    let catalog = DebeziumInspect::new(config.clone(), None).catalog(&config.tables).await.unwrap();
    let mut source = DebeziumSource::new(config, Some(&catalog));
    let findings = source.preflight().await.unwrap();
    assert!(findings.iter().any(|one| one.fatal && one.object == "public.loose"), "{findings:?}");
    assert!(findings.iter().any(|one| !one.fatal && one.problem.contains("is not used")), "{findings:?}");
    assert!(source.open(crossfade_connector::Resume::default()).await.is_err());
    // Types of what is not there.
    for (table, column) in [("public.typo", "x"), ("public.t", "typo")] {
        let mut config = stand.config(&["public.t"], true);
        config.types.entry(table.to_owned()).or_default().insert(column.to_owned(), "text".to_owned());
        let failure = DebeziumInspect::new(config.clone(), None).catalog(&config.tables).await.unwrap_err();
        assert!(failure.to_string().contains("typo"), "{failure}");
    }
    // Types that nobody says.
    let mut config = stand.config(&["public.t"], true);
    config.types.clear();
    let failure = DebeziumInspect::new(config.clone(), None).catalog(&config.tables).await.unwrap_err();
    assert!(failure.to_string().contains("id, x"), "{failure}");
    // Brokers that are not there.
    let nobody = format!("127.0.0.1:{}", crossfade_testkit::ports::free());
    config.connection = crossfade_kafka::Connection::plain(nobody.clone());
    let failure = DebeziumInspect::new(config.clone(), None).catalog(&config.tables).await.unwrap_err();
    assert!(failure.to_string().contains(&nobody), "{failure}");
}
