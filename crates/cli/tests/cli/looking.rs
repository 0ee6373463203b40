//! Looking into a log: one written here, without any database.

use crate::Desk;
use crossfade_event::{
    Batch, Cell, Change, Column, ColumnType, Event, Format, Identity, Logical, Op, Position, Row, SchemaVersion,
    SourceId, Stamped, TableId, TableName, TableSchema, Transaction,
};
use crossfade_log::{
    EventLog,
    embedded::{Embedded, Options},
};
use crossfade_state::WorkFolder;
use std::{fs, path::PathBuf, sync::Arc};

fn column(name: &str, key: Option<u16>, logical: Logical, type_name: &str) -> Column {
    Column {
        name: name.into(),
        type_: ColumnType { name: type_name.into(), native_id: 0, logical, format: Format::PgText },
        key,
        nullable: key.is_none(),
        native_id: 0,
        default: None,
    }
}

fn log_folder(desk: &Desk) -> PathBuf {
    WorkFolder::log_path(&desk.path().join("crossfade-data/shop"))
}

/// A log with one transaction that inserts one order.
fn desk_with_a_log() -> Desk {
    let desk = Desk::new();
    let schema = Arc::new(TableSchema {
        id: TableId(1),
        version: SchemaVersion(1),
        name: TableName::new("main", "orders"),
        columns: vec![
            column("id", Some(0), Logical::Int64, "bigint"),
            column("email", None, Logical::Text, "text"),
            column("note", None, Logical::Text, "text"),
        ],
        identity: Identity::Key,
        native_id: 0,
    });
    let row: Row = [Cell::Bytes(b"7"), Cell::Bytes(b"ada@example.org"), Cell::Null].into_iter().collect();
    let change = Change { table: schema.id, schema: schema.version, op: Op::Insert, old: None, new: Some(row) };
    let at = |ordinal| Position { source: SourceId(1), timeline: 1, commit: 0x16B_3748, ordinal };
    let events = vec![
        Stamped { position: at(0), event: Event::SchemaSeen(schema) },
        Stamped { position: at(0), event: Event::Began(Transaction { xid: 9, commit_time_us: 1_700_000_000_000_000 }) },
        Stamped { position: at(1), event: Event::Changed(change) },
        Stamped { position: at(u32::MAX), event: Event::Committed },
    ];
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let folder = log_folder(&desk);
    fs::create_dir_all(folder.parent().unwrap()).unwrap();
    let log = Embedded::open(&folder, Options::default()).unwrap();
    runtime.block_on(log.append(Batch { events, upto: Some(at(u32::MAX)), whole: true })).unwrap();
    drop(log);
    desk
}

#[test]
fn a_log_is_listed_printed_and_checked() {
    let desk = desk_with_a_log();
    let list = desk.run(&["log", "ls", "spec.toml"]);
    assert_eq!(list.code, 0, "{list:?}");
    assert!(list.stdout.contains("main.orders") && list.stdout.contains("1/16B3748/end"), "{}", list.stdout);
    let json: serde_json::Value =
        serde_json::from_str(&desk.run(&["log", "ls", "spec.toml", "--json"]).stdout).unwrap();
    assert_eq!(json["start"], 0);
    assert_eq!(json["tables"][0]["table"], "main.orders");
    let sound = desk.run(&["log", "verify", "spec.toml"]);
    assert_eq!(sound.code, 0, "{sound:?}");
    assert!(sound.stdout.starts_with("the log is sound"), "{}", sound.stdout);
}

#[test]
fn values_are_printed_only_when_asked_for() {
    let desk = desk_with_a_log();
    let without = desk.run(&["log", "cat", "spec.toml"]);
    assert_eq!(without.code, 0, "{without:?}");
    assert!(without.stdout.contains("changed") && without.stdout.contains("main.orders"), "{}", without.stdout);
    assert!(!without.stdout.contains("ada@example.org"));
    let with = desk.run(&["log", "cat", "spec.toml", "--values", "--json", "--table", "main.orders"]);
    let changed: Vec<serde_json::Value> = with
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &serde_json::Value| line["event"] == "changed")
        .collect();
    assert_eq!(changed.len(), 1);
    assert_eq!(changed[0]["new"], serde_json::json!({ "id": "7", "email": "ada@example.org", "note": null }));
}

#[test]
fn a_part_of_a_log_can_be_printed() {
    let desk = desk_with_a_log();
    let all = desk.run(&["log", "cat", "spec.toml", "--json"]).stdout.lines().count();
    assert_eq!(all, 4);
    assert_eq!(desk.run(&["log", "cat", "spec.toml", "--limit", "2"]).stdout.lines().count(), 2);
    let wrong =
        desk.refuse(&["log", "cat", "spec.toml", "--table", "main.order"], 2, "the log has no table main.order");
    assert!(wrong.stderr.contains("did you mean main.orders?"), "{wrong:?}");
}

#[test]
fn a_damaged_log_ends_with_five_and_names_the_file() {
    let desk = desk_with_a_log();
    let segment = fs::read_dir(log_folder(&desk))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|kind| kind == "log"))
        .unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    // The header of the file itself, which nothing can be read without.
    bytes[..32].fill(0xAA);
    fs::write(&segment, bytes).unwrap();
    let name = segment.file_name().unwrap().to_str().unwrap();
    desk.refuse(&["log", "verify", "spec.toml"], 5, name);
    desk.refuse(&["log", "ls", "spec.toml"], 5, name);
}
