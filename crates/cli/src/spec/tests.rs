//! Every way in which a spec can be wrong has its sentence and its place.

use super::*;
use std::path::Path;

const HEAD: &str = "name = \"shop\"\n";
const SOURCE: &str = "[source]\nkind = \"sqlite\"\npath = \"shop.db\"\ntables = [\"main.*\"]\n";
const SINK: &str = "[sink]\nkind = \"sqlite\"\npath = \"shop-v2.db\"\n";

fn environment(name: &str) -> Option<String> {
    match name {
        "SOURCE_URL" => Some("postgres://app:hunter2@old.example/shop".to_owned()),
        "TARGET_URL" => Some("postgres://app:hunter2@new.example/shop".to_owned()),
        "SECRET" => Some("hunter2".to_owned()),
        "LONG_SECRET" => Some("0123456789abcdef0123456789abcdef".to_owned()),
        "TRICK" => Some("${SECRET}".to_owned()),
        _ => None,
    }
}

fn parse(text: &str) -> Result<Spec, SpecError> {
    Spec::parse(Path::new("spec.toml"), text, &environment)
}

fn refusal(text: &str) -> String {
    parse(text).map(|spec| format!("accepted: {spec:?}")).unwrap_or_else(|error| error.to_string())
}

#[test]
fn the_shortest_spec_is_read_with_all_defaults() {
    let spec = parse(&format!("{HEAD}{SOURCE}{SINK}")).unwrap();
    assert_eq!(spec.name.as_str(), "shop");
    assert_eq!(spec.folder(), Path::new("crossfade-data/shop"));
    assert_eq!(spec.source.tables(), ["main.*"]);
    assert_eq!(spec.gates, Gates::default());
    let SinkSpec::Sqlite(sink) = &spec.sink else { panic!("another sink") };
    assert_eq!(
        (sink.write, sink.on_error, sink.existing),
        (WriteTo::ShadowTables, OnError::Quarantine, Existing::Refuse)
    );
}

#[test]
fn a_switch_has_defaults_and_is_refused_where_it_cannot_be_made() {
    let source = "[source]\nkind = \"postgres\"\nurl = \"${SOURCE_URL}\"\ntables = [\"public.*\"]\n";
    let sink = "[sink]\nkind = \"postgres\"\nurl = \"${TARGET_URL}\"\n";
    let with = |rest: &str| format!("{HEAD}{source}{sink}[switch]\n{rest}");
    assert_eq!(parse(&with("")).unwrap().switch, Some(SwitchSpec::default()));
    assert_eq!(parse(&format!("{HEAD}{source}{sink}")).unwrap().switch, None);
    let said = parse(&with("deadline = \"5s\"\nlock_timeout = \"1s\"\napprovals = 2\nroute = \"true\"\n"))
        .unwrap()
        .switch
        .unwrap();
    assert_eq!((said.approvals, said.route.as_deref()), (2, Some("true")));
    for (text, word) in [
        (with("deadline = \"2m\"\n"), "from 500ms to 60s"),
        (with("deadline = \"1s\"\n"), "at most half of"),
        (with("approvals = 3\n"), "0, 1 or 2"),
        (with("route = \" \"\n"), "is empty"),
        (with("deadlin = \"1s\"\n"), "did you mean \"deadline\"?"),
        (format!("{HEAD}{SOURCE}{sink}[switch]\n"), "is built for kind = \"postgres\""),
        (format!("{HEAD}{source}{SINK}[switch]\n"), "is built for kind = \"postgres\""),
        (format!("{HEAD}{SOURCE}{}[switch]\n", SINK.replace("shop-v2.db", "shop.db")), "a file of its own"),
        (format!("{HEAD}{SOURCE}{SINK}[views]\napp = \"shop\"\n"), "within one PostgreSQL database"),
        (with("[views]\napp = \"My Shop\"\n"), "lower-case letters"),
    ] {
        let refused = refusal(&text);
        assert!(refused.contains(word), "{refused}");
    }
    let between_files = parse(&format!("{HEAD}{SOURCE}{SINK}[switch]\n")).unwrap();
    assert_eq!(between_files.switch, Some(SwitchSpec::default()));
    // Columns change places within their table.
    let beside = with("").replace("${TARGET_URL}\"\n", "${TARGET_URL}\"\nwrite = \"shadow-columns\"\n");
    assert_eq!(parse(&beside).unwrap().switch, Some(SwitchSpec::default()));
    assert_eq!(parse(&with("[views]\napp = \"shop\"\n")).unwrap().views.unwrap().app, "shop");
}

#[test]
fn relative_paths_start_from_the_specs_own_folder() {
    let text = format!("{HEAD}dir = \"./data\"\n{SOURCE}{SINK}");
    let spec = Spec::parse(Path::new("/etc/shop/spec.toml"), &text, &environment).unwrap();
    assert_eq!(spec.folder(), Path::new("/etc/shop/data/shop"));
    let SourceSpec::Sqlite(source) = &spec.source else { panic!("another source") };
    assert_eq!(source.path, Path::new("/etc/shop/shop.db"));
}

#[test]
fn each_wrong_spec_is_refused_with_its_place_and_the_nearest_right_word() {
    let spec = |head: &str, source: &str, sink: &str, rest: &str| format!("{head}{source}{sink}{rest}");
    let with = |rest: &str| spec(HEAD, SOURCE, SINK, rest);
    let cases = [
        (
            spec(HEAD, &SOURCE.replace("tables", "tabels"), SINK, ""),
            "spec.toml:5:1: unknown key \"tabels\" in [source]; did you mean \"tables\"?",
        ),
        (with("[gate]\n"), "spec.toml:9:2: unknown key \"gate\" at the top level; did you mean \"gates\"?"),
        (
            with("[gates]\nlatency = { max = \"1\" }\n"),
            "spec.toml:10:19: \"max\" in [gates.latency]: `1` is not by how much something may grow; write it like \"+50%\", at most \"+10000%\"",
        ),
        (
            with("[gates]\nlag = { max = \"1s\", then = \"stop\" }\n"),
            "spec.toml:10:28: \"then\" in [gates.lag]: `stop` is not \"warn\", \"pause\" or \"rollback\"",
        ),
        (
            with("[log]\nkind = \"pulsar\"\n"),
            "spec.toml:10:8: \"kind\" in [log] cannot be \"pulsar\"; known are embedded, kafka",
        ),
        (
            spec(HEAD, SOURCE, "[sink]\nkind = \"duckdb\"\n", ""),
            "spec.toml:7:8: kind = \"duckdb\" in [sink] is not built yet",
        ),
        (
            spec(HEAD, SOURCE, &SINK.replace("\"sqlite\"", "\"sqlight\""), ""),
            "spec.toml:7:8: \"kind\" in [sink] cannot be \"sqlight\"; did you mean \"sqlite\"?",
        ),
        (
            spec(HEAD, SOURCE, SINK, "write = \"dual-records\"\n"),
            "spec.toml:9:9: write = \"dual-records\" in [sink] is not built yet",
        ),
        (
            spec(
                HEAD,
                SOURCE,
                "[sink]\nkind = \"kafka\"\nbrokers = \"h:1\"\ntopic_prefix = \"p\"\n",
                "layout = \"one-record\"\n",
            ),
            "spec.toml:10:1: \"layout\" in [sink] says where both key versions stand, and nothing is written as write = \"dual-records\"",
        ),
        (
            spec(HEAD, SOURCE, SINK, "write = \"shadow-table\"\n"),
            "spec.toml:9:9: \"write\" in [sink] cannot be \"shadow-table\"; did you mean \"shadow-tables\"?",
        ),
        (
            spec(HEAD, SOURCE, SINK, "write = \"shadow-columns\"\n"),
            "spec.toml:9:9: a SQLite file has no shadow columns; use write = \"shadow-tables\"",
        ),
        (
            spec(HEAD, SOURCE, SINK, "apply = \"parallel\"\n"),
            "spec.toml:9:9: a SQLite file has one writer; use apply = \"transactional\"",
        ),
        (spec("", SOURCE, SINK, ""), "spec.toml: the key \"name\" is missing at the top level"),
        (spec(HEAD, "", SINK, ""), "spec.toml: the key \"source\" is missing at the top level"),
        (
            spec(HEAD, &SOURCE.replace("path = \"shop.db\"\n", ""), SINK, ""),
            "spec.toml:2:1: the key \"path\" is missing in [source]",
        ),
        (
            spec(HEAD, &SOURCE.replace("[\"main.*\"]", "\"main.*\""), SINK, ""),
            "spec.toml:5:10: wrong type for \"tables\" in [source]: string \"main.*\" where it needs a list",
        ),
        (
            spec(HEAD, SOURCE, SINK, "[gates]\nlag = { max = 30, then = \"warn\" }\n"),
            "spec.toml:10:15: wrong type for \"max\" in [gates.lag]: integer `30` where it needs a string",
        ),
        (
            spec(HEAD, &format!("{SOURCE}snapshot = {{ workers = 0 }}\n"), SINK, ""),
            "spec.toml:6:24: \"workers\" in [source.snapshot] must be 1 to 64, not 0",
        ),
        (
            spec("name = \"Shop_1\"\n", SOURCE, SINK, ""),
            "spec.toml:1:8: \"name\": \"Shop_1\" is not a name: lower-case letters, digits and `-`, beginning with a letter, at most 41; for example \"shop-1\"",
        ),
        (spec("name = shop\n", SOURCE, SINK, ""), "spec.toml:1:8: this is not TOML: "),
        (
            spec(HEAD, &SOURCE.replace("shop.db", "${NOT_SET}"), SINK, ""),
            "spec.toml:4:8: the environment variable NOT_SET is not set (\"path\" in [source] needs it)",
        ),
        (
            spec(HEAD, &SOURCE.replace("shop.db", "${not closed"), SINK, ""),
            "spec.toml:4:8: `${` without a variable's name and `}`",
        ),
        (
            spec(HEAD, SOURCE, &SINK.replace("shop-v2.db", "./shop.db"), ""),
            "spec.toml:8:8: source and sink are the same file, shop.db; a SQLite sink needs a file of its own",
        ),
        (
            with("[log]\nretention = { time = \"7 weeks\" }\n"),
            "spec.toml:10:22: \"time\" in [log.retention]: \"7 weeks\" is not a length of time; write a whole number and ms, s, m, h or d, for example 30s",
        ),
        (
            with("[[table]]\nfrom = \"main.a\"\n[[table]]\nfrom = \"main.a\"\n"),
            "spec.toml:12:8: two rules clash: [[table]] number 1 and number 2 are both from \"main.a\"; make them one",
        ),
    ];
    let wrong: Vec<String> = cases
        .into_iter()
        .map(|(text, expected)| (refusal(&text), expected))
        .filter(|(said, expected)| !said.starts_with(expected))
        .map(|(said, expected)| format!("said: {said}\nwant: {expected}\n"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_log_on_kafka_is_read_with_its_defaults() {
    let with = |rest: &str| format!("{HEAD}{SOURCE}{SINK}[log]\nkind = \"kafka\"\nbrokers = \"a:9092,b:9092\"\n{rest}");
    let LogSpec::Kafka(log) = parse(&with("")).unwrap().log else { panic!("another log") };
    assert_eq!((log.brokers.as_str(), log.partitions, log.topic_prefix), ("a:9092,b:9092", None, None));
    let secured = "tls = { authority = \"ca.pem\" }\nsasl = { user = \"u\", password = \"${SECRET}\" }\n";
    let spec = Spec::parse(Path::new("/etc/shop/spec.toml"), &with(secured), &environment).unwrap();
    assert!(!format!("{spec:?}").contains("hunter2"));
    let LogSpec::Kafka(log) = spec.log else { panic!("another log") };
    assert_eq!(log.tls.unwrap().authority.unwrap(), Path::new("/etc/shop/ca.pem"));
    assert!(matches!(parse(&format!("{HEAD}{SOURCE}{SINK}[log]\n")).unwrap().log, LogSpec::Embedded(_)));
}

#[test]
fn what_cannot_be_meant_in_a_log_on_kafka_is_refused_at_its_place() {
    let sasl = |rest: &str| format!("sasl = {{ user = \"u\", {rest} }}\n");
    let lookup = "[[table]]\nfrom = \"main.a\"\nsteps = [{ lookup = \"main.b\", on = { id = \"b_id\" }, take = { x = \"y\" } }]\n";
    let cases = [
        ("partition = 2\n".to_owned(), "12:1: unknown key \"partition\" in [log]; did you mean \"partitions\"?"),
        ("format = \"debezium-json\"\n".to_owned(), "12:10: format = \"debezium-json\" in [log] is not built yet"),
        ("partitions = 0\n".to_owned(), "12:14: \"partitions\" in [log] must be from 1 to 1000, not 0"),
        ("topic_prefix = \"a b\"\n".to_owned(), "12:16: \"a b\" in [log] cannot begin a topic's name"),
        ("replication = 0\n".to_owned(), "12:15: \"replication\" in [log] must be 1 or more, not 0"),
        ("replication = 1\nmin_insync_replicas = 2\n".to_owned(), "13:23: two rules clash: \"min_insync_replicas\""),
        ("tls = { certificate = \"c.pem\" }\n".to_owned(), "12:7: a client certificate and its key belong together"),
        (sasl("password = \"hunter2\""), "12:33: \"password\" in [log.sasl] stands in plain text"),
        (sasl("password = \"${SECRET}\""), "12:8: SCRAM without TLS lets whoever listens try passwords"),
        (sasl("password = \"${SECRET}\", mechanism = \"plain\""), "12:58: mechanism = \"plain\" without [log.tls]"),
        (
            format!("retention = {{ time = \"7d\" }}\n{lookup}"),
            "12:13: two rules clash: lookups are made anew from the log's beginning",
        ),
    ];
    let mut wrong = Vec::new();
    for (rest, expected) in cases {
        let said = refusal(&format!("{HEAD}{SOURCE}{SINK}[log]\nkind = \"kafka\"\nbrokers = \"b:9092\"\n{rest}"));
        if !said.starts_with(&format!("spec.toml:{expected}")) || said.contains("hunter2") {
            wrong.push(format!("said: {said}\nwant: {expected}\n"));
        }
    }
    let said = refusal(&format!("{HEAD}{SOURCE}{SINK}[log]\nkind = \"kafka\"\nbrokers = \"b:9092,\"\n"));
    assert!(said.starts_with("spec.toml:11:11: \"brokers\" in [log] names no broker"), "{said}");
    let said = refusal(&format!("{HEAD}{SOURCE}{SINK}[log]\nkind = \"kafka\"\nsegment_bytes = \"1MiB\"\n"));
    assert!(said.contains("the key \"brokers\" is missing in [log]"), "{said}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_topics_cannot_do_is_refused_by_name_and_at_its_place() {
    const DEBEZIUM: &str =
        "[source]\nkind = \"debezium\"\nbrokers = \"b:9092\"\ntopic_prefix = \"shop\"\ntables = [\"public.*\"]\n";
    const TARGET: &str = "[sink]\nkind = \"postgres\"\nurl = \"${TARGET_URL}\"\n";
    let spec = parse(&format!("{HEAD}{DEBEZIUM}[source.types.\"public.t\"]\nx = \"uuid\"\n{TARGET}")).unwrap();
    let SourceSpec::Debezium(source) = &spec.source else { panic!("another source") };
    assert_eq!((source.transactions.as_deref(), source.types["public.t"]["x"].as_str()), (None, "uuid"));
    let columns = "write = \"shadow-columns\"\n";
    let lookup = "[[table]]\nfrom = \"public.t\"\nsteps = [{ lookup = \"public.u\", on = { id = \"x\" }, take = { y = \"z\" } }]\n";
    let plain = "sasl = { user = \"u\", password = \"${SECRET}\", mechanism = \"plain\" }\n";
    let said_plainly = "tls = {}\nsasl = { user = \"u\", password = \"hunter2\" }\n";
    for (text, word) in [
        (
            format!("{HEAD}{DEBEZIUM}{TARGET}{columns}"),
            "10:9: write = \"shadow-columns\" is not built for kind = \"debezium\"",
        ),
        (format!("{HEAD}{DEBEZIUM}{TARGET}{lookup}"), "lookups are not built for kind = \"debezium\""),
        (format!("{HEAD}{}{TARGET}", DEBEZIUM.replace("b:9092", " ")), "4:11: \"brokers\" in [source] names no broker"),
        (format!("{HEAD}{}{TARGET}", DEBEZIUM.replace("\"shop\"", "\"\"")), "\"topic_prefix\" in [source] is empty"),
        (format!("{HEAD}{DEBEZIUM}{plain}{TARGET}"), "without [source.tls] sends the password in the clear"),
        (format!("{HEAD}{DEBEZIUM}{said_plainly}{TARGET}"), "\"password\" in [source.sasl] stands in plain text"),
        (format!("{HEAD}{DEBEZIUM}snapshot = {{ workers = 2 }}\n{TARGET}"), "unknown key \"snapshot\" in [source]"),
        (
            format!("{HEAD}{DEBEZIUM}time_precision = \"exact\"\n{TARGET}"),
            "\"time_precision\" in [source] cannot be \"exact\"",
        ),
    ] {
        let said = refusal(&text);
        assert!(said.contains(word) && !said.contains("hunter2"), "{said}\nis not {word}");
    }
}

#[cfg(not(feature = "kafka"))]
#[test]
fn a_crossfade_without_kafka_says_how_to_have_one_with_it() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("spec.toml");
    let topics = "[source]\nkind = \"debezium\"\nbrokers = \"b:9092\"\ntopic_prefix = \"p\"\ntables = [\"public.*\"]\n";
    for text in [
        format!("{HEAD}{SOURCE}{SINK}[log]\nkind = \"kafka\"\nbrokers = \"b:9092\"\n"),
        format!("{HEAD}{topics}{SINK}"),
    ] {
        std::fs::write(&file, text).unwrap();
        let error = Spec::load(&file).unwrap_err();
        assert!(error.to_string().contains("needs a crossfade with Kafka"), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("--features kafka")), "{error}");
    }
}

#[test]
fn a_postgres_spec_is_checked_for_what_two_keys_say_together() {
    let source = "[source]\nkind = \"postgres\"\nurl = \"${SOURCE_URL}\"\ntables = [\"public.*\"]\n";
    let sink = "[sink]\nkind = \"postgres\"\nurl = \"${SOURCE_URL}\"\n";
    assert!(refusal(&format!("{HEAD}{source}{sink}")).contains("source and sink are the same database"));
    assert!(parse(&format!("{HEAD}{source}{sink}schema = \"app_v2\"\n")).is_ok());
    let workers = format!("{HEAD}{source}{sink}schema = \"app_v2\"\nworkers = 4\n");
    assert!(refusal(&workers).contains("\"workers\" in [sink] needs apply = \"parallel\""));
    let plain = format!("{HEAD}{}{sink}", source.replace("${SOURCE_URL}", "postgres://app:hunter2@h/d"));
    let said = refusal(&plain);
    assert!(said.starts_with("spec.toml:4:7: \"url\" in [source] holds a password in plain text"), "{said}");
    assert!(!said.contains("hunter2"));
}

#[test]
fn what_comes_from_the_environment_is_never_read_again_and_never_printed() {
    let spec = parse(&format!("{HEAD}{}{SINK}", SOURCE.replace("shop.db", "${TRICK}"))).unwrap();
    let SourceSpec::Sqlite(source) = &spec.source else { panic!("another source") };
    assert_eq!(source.path, Path::new("${SECRET}"));
    let said = refusal(&format!("{HEAD}{}{SINK}", SOURCE.replace("[\"main.*\"]", "\"${SECRET}\"")));
    assert!(!said.contains("hunter2") && said.contains("${SECRET}"), "{said}");
    let url = "[source]\nkind = \"postgres\"\nurl = \"${SOURCE_URL}\"\ntables = [\"public.*\"]\n";
    assert!(!format!("{:?}", parse(&format!("{HEAD}{url}{SINK}")).unwrap()).contains("hunter2"));
}

#[test]
fn the_migrations_own_secret_never_stands_in_the_spec() {
    let with = |secret: &str| format!("{HEAD}secret = \"{secret}\"\n{SOURCE}{SINK}");
    assert!(refusal(&with("correct horse battery staple")).contains("\"secret\" stands in plain text"));
    let short = refusal(&with("${SECRET}"));
    assert!(short.contains("fewer than 16 characters") && !short.contains("hunter2"), "{short}");
    let spec = parse(&with("${LONG_SECRET}")).unwrap();
    assert_eq!(spec.secret.unwrap().expose(), "0123456789abcdef0123456789abcdef");
}

#[test]
fn two_dollars_stand_for_one() {
    let spec = parse(&format!("{HEAD}{}{SINK}", SOURCE.replace("shop.db", "a$${b}.db"))).unwrap();
    let SourceSpec::Sqlite(source) = &spec.source else { panic!("another source") };
    assert_eq!(source.path, Path::new("a${b}.db"));
}

#[test]
fn a_secret_file_is_read_and_one_that_others_can_read_is_told() {
    use std::os::unix::fs::PermissionsExt;
    let home = tempfile::tempdir().unwrap();
    let secret = home.path().join("url");
    std::fs::write(&secret, "postgres://app:hunter2@h/d\n").unwrap();
    let text = format!("{HEAD}[source]\nkind = \"postgres\"\nurl = \"file:url\"\ntables = [\"public.*\"]\n{SINK}");
    let load = |mode: u32| {
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(mode)).unwrap();
        Spec::parse(&home.path().join("spec.toml"), &text, &environment).unwrap()
    };
    let spec = load(0o600);
    let SourceSpec::Postgres(source) = &spec.source else { panic!("another source") };
    assert_eq!(source.url.expose(), "postgres://app:hunter2@h/d");
    assert!(spec.warnings.is_empty());
    assert!(load(0o644).warnings.iter().any(|warning| warning.contains("chmod 600")));
    std::fs::remove_file(&secret).unwrap();
    let said = Spec::parse(&home.path().join("spec.toml"), &text, &environment).unwrap_err().to_string();
    assert!(said.contains("cannot be read"), "{said}");
}

#[test]
fn every_example_is_a_valid_spec() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let mut read = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|kind| kind == "toml") {
            let text = std::fs::read_to_string(&path).unwrap();
            Spec::parse(&path, &text, &environment).unwrap_or_else(|error| panic!("{error}"));
            read += 1;
        }
    }
    assert!(read >= 4, "only {read} examples were found");
}

#[test]
fn the_published_schema_is_current() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../spec.schema.json");
    let made = schema::text().unwrap();
    if std::env::var_os("CROSSFADE_UPDATE").is_some() {
        std::fs::write(&file, &made).unwrap();
    }
    let kept = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(kept == made, "spec.schema.json is stale: run `CROSSFADE_UPDATE=1 cargo test -p crossfade-cli schema`");
}

#[test]
fn what_a_gate_cannot_do_is_refused_by_name_and_at_its_place() {
    let topics = "[sink]\nkind = \"kafka\"\nbrokers = \"b:9092\"\ntopic_prefix = \"shop\"\n";
    let rolls_back = "[gates]\nlag = { max = \"1s\", then = \"rollback\" }\n";
    let said = refusal(&format!("{HEAD}{SOURCE}{topics}{rolls_back}"));
    assert!(said.contains("then = \"rollback\" in [gates.lag] is not built for topics"), "{said}");
    assert_eq!(parse(&format!("{HEAD}{SOURCE}{SINK}{rolls_back}")).unwrap().gates.rolling_back(), ["lag"]);
    let latency = "[gates]\nlatency = { max = \"+50%\", then = \"rollback\" }\n";
    let said = refusal(&format!("{HEAD}{SOURCE}{SINK}{latency}"));
    assert!(said.contains("the gate \"latency\" is built for sources of kind = \"postgres\" only"), "{said}");
    let source = "[source]\nkind = \"postgres\"\nurl = \"${SOURCE_URL}\"\ntables = [\"public.*\"]\n";
    assert_eq!(parse(&format!("{HEAD}{source}{SINK}{latency}")).unwrap().gates.rolling_back(), ["latency"]);
}
