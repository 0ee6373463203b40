//! The same journey with its log on Kafka: a real broker between two real databases. Built with the feature `kafka`
//! (`make test-kafka`).

use crate::{
    desk::{Desk, SPEC, Writer, assert_same_tables, postgres, rows, two_databases},
    shop::{SHOP, TABLES, work},
};
use crossfade_testkit::{
    compare::assert_same,
    kafka::Kafka,
    postgres::{Database, Postgres, Version},
};
use serde_json::Value;
use std::{collections::BTreeSet, fs};

/// How a log on this broker stands in a spec.
pub(crate) fn log(kafka: &Kafka) -> String {
    format!("[log]\nkind = \"kafka\"\nbrokers = \"{}\"\n", kafka.brokers())
}

pub(crate) fn source_of(database: &Database) -> String {
    format!("{}\ntables = [\"public.*\"]", postgres(database))
}

/// A desk with a shop to be moved through this broker.
async fn desk_over(kafka: &Kafka) -> Option<(Desk, Database, Database)> {
    let (source, target) = two_databases().await?;
    source.execute(SHOP).await;
    let desk = Desk::new();
    desk.write_spec(&source_of(&source), &postgres(&target), &log(kafka));
    Some((desk, source, target))
}

/// What the migration's topics are called.
pub(crate) fn prefix(desk: &Desk) -> String {
    format!("crossfade_{}", desk.name.replace('-', "_"))
}

/// Kafka's own command for topics.
pub(crate) fn topics(kafka: &Kafka, args: &[&str]) -> String {
    let brokers = kafka.brokers();
    let words: Vec<&str> = ["--bootstrap-server", &brokers].into_iter().chain(args.iter().copied()).collect();
    let out = kafka.tool("org.apache.kafka.tools.TopicCommand", &words);
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{said}");
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_migration_goes_through_topics_and_a_wipe_leaves_none() {
    let Some(kafka) = Kafka::shared() else { return };
    let Some((desk, source, target)) = desk_over(kafka).await else { return };
    let Some(server) = Postgres::shared_target(Version::V15) else { return };
    let other = server.create_database("through_kafka").await;
    let topic = format!("{}.changes", prefix(&desk));

    let said = desk.expect(0, &["check"], &[]);
    assert!(said.stdout.contains(&topic) && said.stdout.contains("ready: 2 tables"), "{said}");
    let said = desk.expect(0, &["plan"], &[]);
    assert!(said.stdout.contains("make the topics") && said.stdout.contains(&topic), "{said}");
    desk.expect(2, &["log", "ls"], &[]);
    let mut run = desk.start();
    let writer = Writer::start(&source, work);
    writer.wait_for_more(60);
    desk.wait(&mut run);
    let said = desk.expect(0, &["status"], &[]);
    assert!(said.stdout.contains(&format!("in the topic {topic}")), "{said}");
    desk.verify();
    desk.expect(0, &["checkpoint"], &["first"]);
    writer.wait_for_more(60);

    // Damaged by hand since then, and healed from the topics while everybody goes on.
    target.execute("UPDATE people SET name = 'damaged' WHERE id % 3 = 0").await;
    source.execute("UPDATE people SET note = 'touched' WHERE id % 3 = 0").await;
    desk.wait(&mut run);
    let said = desk.expect(0, &["replay"], &["--from", "checkpoint:first"]);
    assert!(said.stdout.contains("rows written as they should be"), "{said}");
    writer.wait_for_more(20);
    writer.stop();
    desk.wait(&mut run);
    assert_same_tables(&source, &target, &TABLES).await;
    desk.verify();

    // Another sink of another shape, from the same topics, beside the run.
    let text = format!(
        "name = \"{}-second\"\n[source]\n{}\n[sink]\n{}\n[[table]]\nfrom = \"public.people\"\nto = \"persons\"\n\
         steps = [{{ rename = \"name\", to = \"full_name\" }}]\n",
        desk.name,
        source_of(&source),
        postgres(&other)
    );
    desk.crossfade.write("second.toml", &text);
    let mut follow = desk.crossfade.spawn(&["replay", SPEC, "--from", "start", "--into", "second.toml", "--follow"]);
    source.execute("INSERT INTO people VALUES (-1, 'the last one', NULL)").await;
    let last = "SELECT CASE WHEN to_regclass('public.persons') IS NULL THEN NULL ELSE \
                (xpath('/row/n/text()', query_to_xml('SELECT count(*) AS n FROM public.persons WHERE id = -1', false, true, '')))[1]::text END";
    desk.until("the second sink to have the last row", &mut follow, async || {
        other.value(last).await.as_deref() == Some("1")
    })
    .await;
    follow.interrupt();
    let ended = follow.wait();
    assert_eq!(ended.code, Some(0), "{ended}");
    desk.wait(&mut run);
    for (there, here) in [
        ("SELECT * FROM orders", "SELECT * FROM orders"),
        ("SELECT id, full_name, note FROM persons", "SELECT id, name, note FROM people"),
    ] {
        assert_same(there, &rows(&source, here).await, &rows(&other, there).await);
    }

    // The log as it lies there.
    let figures = desk.crossfade.json(&["log", "ls", SPEC]);
    assert_eq!(
        (figures["topic"].as_str(), figures["tables"].as_array().map(Vec::len), figures["partitions"].as_u64()),
        (Some(topic.as_str()), Some(2), Some(8)),
        "eight partitions, where the spec says nothing"
    );
    let said = desk.expect(0, &["log", "cat"], &["--limit", "20"]);
    assert_eq!(said.stdout.lines().count(), 20, "{said}");
    // Every entry has a number in the order of all partitions, and can be asked for by it.
    let all = lines(&desk.expect(0, &["log", "cat"], &["--json"]).stdout);
    let number = |entry: &Value| entry["sequence"].as_u64().unwrap();
    assert!(all.is_sorted_by(|a, b| number(a) < number(b)), "sequences do not rise");
    let partitions: BTreeSet<u64> = all.iter().map(|entry| entry["partition"].as_u64().unwrap()).collect();
    assert_eq!(partitions.len(), 8);
    let middle = number(&all[all.len() / 2]).to_string();
    let said = desk.expect(0, &["log", "cat"], &["--json", "--limit", "3", "--from", &middle]);
    assert_eq!(lines(&said.stdout), all[all.len() / 2..][..3], "{said}");
    let said = desk.expect(
        2,
        &["replay"],
        &["--from", &format!("offset:{}", number(&all[all.len() - 1]) + 2_000_000_000_000)],
    );
    assert!(said.stderr.contains("is not among them"), "{said}");
    let said = desk.expect(0, &["log", "verify"], &[]);
    assert!(said.stdout.starts_with("the log is sound"), "{said}");
    desk.stop(run);

    // The state is lost, and made again from topics, journal and sink; then a run goes on where the last one was.
    fs::remove_dir_all(desk.work().join("state")).unwrap();
    desk.expect(0, &["state", "rebuild"], &[]);
    source.execute("UPDATE orders SET note = 'after the rebuild' WHERE id % 5 = 0").await;
    let mut run = desk.start();
    desk.wait(&mut run);
    assert_same_tables(&source, &target, &TABLES).await;
    desk.stop(run);

    let there = topics(kafka, &["--list"]);
    assert!(there.contains(&topic), "{there}");
    desk.expect(0, &["rollback"], &["--wipe", "--yes"]);
    let there = topics(kafka, &["--list"]);
    assert!(!there.contains(&prefix(&desk)), "{there}");
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
    assert_eq!(source.value(slots).await.as_deref(), Some("0"));
    // And it can begin anew.
    let mut run = desk.start();
    desk.wait(&mut run);
    assert_same_tables(&source, &target, &TABLES).await;
    desk.stop(run);
}

/// What was printed as JSON, line by line.
fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_several_partitions_put_into_quarantine_goes_in_again_in_the_order_of_the_source() {
    let Some(kafka) = Kafka::shared() else { return };
    let Some((desk, source, target)) = desk_over(kafka).await else { return };
    let bad_ones_are_meant = "[gates]\nerror_rate = { max = \"100%\", then = \"warn\" }\n";
    let rest = format!("{}partitions = 8\n{bad_ones_are_meant}", log(kafka));
    desk.write_spec(&source_of(&source), &postgres(&target), &rest);
    let mut run = desk.start();
    desk.wait(&mut run);
    target.execute("ALTER TABLE people ADD CONSTRAINT ours CHECK (note <> 'bad')").await;
    let writer = Writer::start(&source, work);
    // Their keys lie in all partitions, many at offsets that another partition has too; the later changes wait.
    for n in 0..40 {
        let key = 500_000 + n;
        source.execute(&format!("INSERT INTO people VALUES ({key}, 'first', 'bad')")).await;
        source.execute(&format!("UPDATE people SET name = 'second', note = 'bad' WHERE id = {key}")).await;
        source.execute(&format!("INSERT INTO orders VALUES ({key}, {key}, 1, NULL)")).await;
        if n % 4 == 0 {
            source.execute(&format!("UPDATE people SET id = id + 1000 WHERE id = {key}")).await;
        }
        if n % 8 == 1 {
            source.execute(&format!("DELETE FROM people WHERE id = {key}")).await;
        }
    }
    writer.wait_for_more(20);
    desk.wait(&mut run);
    let held = desk.crossfade.json(&["quarantine", "ls", SPEC]);
    let held = held.as_array().unwrap();
    let of_people = held.iter().filter(|change| change["kind"] == "rejected").count();
    assert!(of_people >= 40, "{of_people} of {} were refused", held.len());
    // A run that is killed meanwhile finds all of them where they were, once.
    run.kill();
    let mut run = desk.start();
    desk.wait(&mut run);
    let again = desk.crossfade.json(&["quarantine", "ls", SPEC]);
    let names = |held: &[Value]| -> Vec<(u64, u64, String)> {
        let name =
            |change: &Value| (change["sequence"].as_u64(), change["ordinal"].as_u64(), change["table"].to_string());
        held.iter().map(name).map(|(a, b, c)| (a.unwrap(), b.unwrap(), c)).collect()
    };
    assert!(names(again.as_array().unwrap()).starts_with(&names(held)), "something was lost or doubled");
    target.execute("ALTER TABLE people DROP CONSTRAINT ours").await;
    desk.expect(0, &["quarantine", "retry"], &["--all"]);
    writer.stop();
    desk.wait(&mut run);
    assert_same_tables(&source, &target, &TABLES).await;
    assert_eq!(desk.crossfade.json(&["quarantine", "ls", SPEC]).as_array().map(Vec::len), Some(0));
    desk.verify();
    desk.stop(run);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_goes_away_pauses_the_run_which_says_so_and_goes_on_by_itself() {
    let Some(kafka) = Kafka::start(&[]) else { return };
    let Some((desk, source, target)) = desk_over(&kafka).await else { return };
    let mut run = desk.start();
    let writer = Writer::start(&source, work);
    writer.wait_for_more(30);
    desk.wait(&mut run);
    kafka.kill();
    writer.wait_for_more(30);
    desk.until_said("Kafka takes nothing", &mut run);
    let status = desk.crossfade.json(&["status", SPEC]);
    assert_eq!(status["retrying"]["side"], "log", "{status}");
    let said = desk.expect(0, &["status"], &[]);
    assert!(said.stdout.contains("Kafka takes nothing"), "{said}");
    // Whoever only looks does not wait for ever.
    desk.expect(1, &["log", "ls"], &[]);
    kafka.start_again();
    writer.wait_for_more(30);
    writer.stop();
    desk.wait(&mut run);
    assert_same_tables(&source, &target, &TABLES).await;
    let status = desk.crossfade.json(&["status", SPEC]);
    assert!(status["retrying"].is_null(), "{status}");
    desk.stop(run);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_brokers_and_topics_is_said_with_its_code() {
    let Some(kafka) = Kafka::shared() else { return };
    let Some((desk, source, target)) = desk_over(kafka).await else { return };
    let with = |rest: &str| desk.write_spec(&source_of(&source), &postgres(&target), &format!("{}{rest}", log(kafka)));
    let make = |name: &str, partitions: &str| {
        let made = ["--create", "--topic", name, "--partitions", partitions, "--config", "retention.ms=-1"];
        topics(kafka, &made);
    };
    let refused = |code: i32, word: &str| {
        for command in ["check", "plan", "run"] {
            let said = desk.expect(code, &[command], &[]);
            assert!(
                said.stderr.contains(word) || said.stdout.contains(word),
                "{command} does not say {word:?}\n{said}"
            );
        }
    };
    // Whom nobody answers.
    let nobody = format!("[log]\nkind = \"kafka\"\nbrokers = \"127.0.0.1:{}\"\n", crossfade_testkit::ports::free());
    desk.write_spec(&source_of(&source), &postgres(&target), &nobody);
    let said = desk.expect(1, &["check"], &[]);
    assert!(said.stderr.contains("127.0.0.1") && said.stderr.contains("refused"), "{said}");
    with("replication = 3\n");
    refused(3, "too few for 3 copies");
    // Topics that are something else.
    make("wide.changes", "3");
    with("topic_prefix = \"wide\"\npartitions = 4\n");
    refused(3, "has 3 partitions, the spec says 4");
    make("theirs.changes", "8");
    topics(kafka, &["--create", "--topic", "theirs.meta", "--config", "cleanup.policy=compact"]);
    let input = desk.crossfade.write("lines.txt", "somebody:else's\n");
    let brokers = kafka.brokers();
    let words = [
        "--bootstrap-server",
        &brokers,
        "--topic",
        "theirs.meta",
        "--property",
        "parse.key=true",
        "--property",
        "key.separator=:",
    ];
    let out = kafka.tool_with_input("org.apache.kafka.tools.ConsoleProducer", &words, &input);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    with("topic_prefix = \"theirs\"\n");
    refused(3, "that Crossfade did not write");
    // Another migration's.
    with("topic_prefix = \"shared\"\n");
    let mut run = desk.start();
    desk.wait(&mut run);
    let (second, ..) = match desk_over(kafka).await {
        Some(second) => second,
        None => return,
    };
    second.write_spec(
        &source_of(&source),
        &format!("{}\nschema = \"second\"", postgres(&target)),
        &format!("{}topic_prefix = \"shared\"\n", log(kafka)),
    );
    for command in ["check", "run"] {
        let said = second.expect(3, &[command], &[]);
        assert!(said.stderr.contains("another migration") || said.stdout.contains("another migration"), "{said}");
    }
    source.execute("UPDATE people SET note = 'still running'").await;
    desk.wait(&mut run);
    desk.stop(run);
    // Ours, deleted and made anew: lost, for the one that runs and for whoever starts.
    topics(kafka, &["--delete", "--topic", "shared.changes"]);
    make("shared.changes", "8");
    let said = desk.expect(5, &["run"], &["--quiet"]);
    assert!(said.stderr.contains("deleted and made anew") && said.stderr.contains("rollback --wipe"), "{said}");
    desk.expect(5, &["log", "ls"], &[]);
    desk.expect(0, &["rollback"], &["--wipe", "--yes"]);
    assert!(topics(kafka, &["--list"]).contains("shared.changes"), "a topic that is not ours stays");
}
