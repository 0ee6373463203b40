//! What a real Debezium wrote (see `tests/debezium`), against what PostgreSQL says of the same rows.

use super::{
    envelope::{Change, Marked, Op, Reader, key, mark},
    shape::{Described, Misfit, Shape, schema_of, table_def},
    value::{PLACEHOLDER, Placeholder},
    wire::{Handling, losses},
};
use crossfade_event::{Cell, ColumnType, TableId, TableName, catalog::TableDef};
use crossfade_testkit::{
    compare,
    postgres::{Postgres, Version},
};
use std::{collections::BTreeMap, sync::Arc};

const SQL: &str = include_str!("../../tests/debezium/schema-and-rows.sql");
const KINDS: [&str; 2] =
    [include_str!("../../tests/debezium/plain-kinds.tsv"), include_str!("../../tests/debezium/schema-kinds.tsv")];
const PARTS: [&str; 2] =
    [include_str!("../../tests/debezium/plain-parts.tsv"), include_str!("../../tests/debezium/schema-parts.tsv")];
const NOTED: [&str; 2] =
    [include_str!("../../tests/debezium/plain-noted.tsv"), include_str!("../../tests/debezium/schema-noted.tsv")];
const MARKS: [&str; 2] = [
    include_str!("../../tests/debezium/plain-transaction.tsv"),
    include_str!("../../tests/debezium/schema-transaction.tsv"),
];

/// Keys and values, a tombstone as nothing.
fn records(text: &str) -> Vec<(Option<&str>, Option<&str>)> {
    let word = |text| Some(text).filter(|text| *text != "null");
    text.lines().map(|line| line.split_once('\t').unwrap()).map(|(key, value)| (word(key), word(value))).collect()
}

fn changes(text: &str) -> Vec<(Vec<String>, Change)> {
    let mut reader = Reader::default();
    let records = records(text).into_iter().filter_map(|(name, value)| Some((name, value?)));
    records
        .map(|(name, value)| {
            let names = name.map(|name| key(name.as_bytes()).unwrap().cells.keys().cloned().collect());
            (names.unwrap_or_default(), reader.change(value.as_bytes()).unwrap())
        })
        .collect()
}

/// The table as PostgreSQL has it, as far as types go.
async fn types(client: &tokio_postgres::Client, table: &str) -> BTreeMap<String, String> {
    let sql = "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute \
               WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped";
    let rows = client.query(sql, &[&table]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

fn def(name: &str, (key, change): &(Vec<String>, Change), types: Option<&BTreeMap<String, String>>) -> TableDef {
    table_def(&Described { key: key.clone(), change }, &TableName::new("public", name), types, None).unwrap()
}

#[tokio::test]
async fn each_value_is_the_one_that_postgresql_has_or_its_column_is_called_lossy() {
    let Some(server) = Postgres::shared(Version::V15) else { return };
    let database = server.create_database("fixtures").await;
    database.execute(SQL).await;
    let client = database.connect().await;
    client.batch_execute(compare::FIXED_SETTINGS).await.unwrap();
    let types = types(&client, "kinds").await;
    let mut lossy_by_file = Vec::new();
    for text in KINDS {
        let all = changes(text);
        let def = def("kinds", &all[0], Some(&types));
        assert_eq!(def.columns.len(), 38);
        let mut shape = Shape::new(Arc::new(schema_of(TableId(1), &def)), Handling::default());
        let mut differing: BTreeMap<String, usize> = BTreeMap::new();
        let mut lossy = std::collections::BTreeSet::new();
        for (_, change) in all.iter().filter(|(_, change)| change.op == Op::Read) {
            let (wires, evolved) = shape.fit(change).unwrap();
            assert_eq!(evolved, None);
            let image = change.after.as_ref().unwrap();
            let row = shape.row(&wires, image, &Placeholder::new(PLACEHOLDER)).unwrap();
            for ((column, wire), cell) in shape.schema.columns.iter().zip(wires.iter()).zip(row.cells()) {
                let name = &column.name;
                if !losses(wire, &column.type_.name).is_empty() {
                    lossy.insert(name.to_string());
                }
                let id = image["id"].as_i64().unwrap();
                let sql = format!("SELECT {name}::text FROM kinds WHERE id = {id}");
                let wanted = compare::postgres_rows(&client, &sql).await;
                let wanted = wanted.iter().next().unwrap()[0].clone();
                let found = match cell {
                    Cell::Null => None,
                    // What the target makes of the text, by PostgreSQL's own word.
                    Cell::Bytes(text) => {
                        let text = std::str::from_utf8(text).unwrap();
                        let sql = format!("SELECT $x${text}$x$::{}::text", column.type_.name);
                        let read = compare::postgres_rows(&client, &sql).await;
                        read.iter().next().unwrap()[0].clone()
                    }
                    other => panic!("{name}: {other:?}"),
                };
                if found != wanted {
                    println!("{name}: {wanted:?} came as {found:?}");
                    *differing.entry(name.to_string()).or_default() += 1;
                }
            }
        }
        let wrong: Vec<&String> = differing.keys().filter(|name| !lossy.contains(*name)).collect();
        assert!(wrong.is_empty(), "{wrong:?} differ and are not called lossy");
        // Each loss is a real one in these rows, or one that they happen not to show.
        assert_eq!(differing.keys().cloned().collect::<Vec<_>>(), ["ia", "iv", "n", "tmtz"]);
        lossy_by_file.push(lossy);
    }
    assert_eq!(lossy_by_file[0], lossy_by_file[1], "with and without schemas");
    let lossy: Vec<&str> = lossy_by_file[0].iter().map(String::as_str).collect();
    assert_eq!(lossy, ["d", "ia", "iv", "n", "n102", "ta", "tmtz", "vb"]);
}

#[test]
fn a_table_is_derived_from_the_records_own_schema() {
    let all = changes(KINDS[1]);
    let def = def("kinds", &all[0], None);
    let type_of = |name: &str| def.column(name).unwrap().column.type_.name.to_string();
    for (name, type_) in [
        ("id", "integer"),
        ("b", "boolean"),
        ("i2", "smallint"),
        ("i8", "bigint"),
        ("r4", "real"),
        ("r8", "double precision"),
        ("n", "numeric"),
        ("n102", "numeric(10,2)"),
        ("t", "text"),
        ("by", "bytea"),
        ("d", "date"),
        ("tm", "time without time zone"),
        ("tmtz", "time with time zone"),
        ("ts", "timestamp without time zone"),
        ("tstz", "timestamp with time zone"),
        ("iv", "interval"),
        ("u", "uuid"),
        ("j", "json"),
        ("x", "xml"),
        ("bt", "bit varying"),
        ("pt", "point"),
        ("m", "text"),
        ("ia", "integer[]"),
        ("ta", "text[]"),
        ("i4r", "text"),
        ("h", "json"),
        ("mon", "numeric"),
        ("tsv", "tsvector"),
    ] {
        assert_eq!(type_of(name), type_, "{name}");
    }
    assert_eq!(def.primary_key.as_ref().unwrap().columns, ["id"]);
    let parts = super::shape::table_def(
        &Described { key: changes(PARTS[1])[0].0.clone(), change: &changes(PARTS[1])[0].1 },
        &TableName::new("public", "parts"),
        None,
        None,
    )
    .unwrap();
    assert_eq!(parts.primary_key.unwrap().columns, ["org", "sku"]);
    // Without a schema nobody knows.
    let plain = changes(KINDS[0]);
    let unknown = table_def(
        &Described { key: plain[0].0.clone(), change: &plain[0].1 },
        &TableName::new("public", "kinds"),
        None,
        None,
    );
    assert_eq!(unknown.unwrap_err().len(), 38);
}

#[test]
fn letters_keys_tombstones_and_marks_are_read_as_they_come() {
    for text in PARTS {
        let letters: Vec<Op> = changes(text).iter().map(|(_, change)| change.op).collect();
        use Op::{Create as C, Delete as D, Read as R, Update as U};
        assert_eq!(letters, [R, R, R, U, D, C, D, C, U]);
        assert_eq!(records(text).iter().filter(|(_, value)| value.is_none()).count(), 2);
        let orders: Vec<Option<u64>> =
            changes(text).iter().map(|(_, change)| change.block.as_ref().map(|block| block.total_order)).collect();
        assert_eq!(orders, [None, None, None, Some(1), Some(1), Some(2), Some(1), Some(1), Some(1)]);
    }
    for text in NOTED {
        assert!(changes(text).iter().all(|(key, _)| key.is_empty()));
    }
    for text in MARKS {
        let marks: Vec<Marked> =
            records(text).into_iter().map(|(_, value)| mark(value.unwrap().as_bytes()).unwrap()).collect();
        let ended: Vec<_> = marks
            .into_iter()
            .filter_map(|mark| match mark {
                Marked::Ended(ended) => Some(ended),
                Marked::Began => None,
            })
            .collect();
        assert_eq!(ended.len(), 10);
        assert_eq!(ended[0].counts, [("public.kinds".to_owned(), 2)]);
        assert!(ended[7].counts.is_empty(), "a truncate that was left out");
        assert!(ended.is_sorted_by(|one, other| one.lsn < other.lsn && one.xid < other.xid));
    }
}

#[test]
fn a_column_that_came_is_followed_and_one_that_may_have_been_renamed_is_not_guessed() {
    let all = changes(PARTS[1]);
    let def = def("parts", &all[0], None);
    let mut shape = Shape::new(Arc::new(schema_of(TableId(1), &def)), Handling::default());
    let (added, renamed) = (&all[7].1, &all[8].1);
    let (wires, evolved) = shape.fit(added).unwrap();
    let evolved = evolved.unwrap();
    assert_eq!((evolved.version.0, wires.len()), (2, 5));
    assert_eq!(evolved.columns[4].default.as_deref(), Some("'d'::text"));
    let row = shape.row(&wires, added.after.as_ref().unwrap(), &Placeholder::new(PLACEHOLDER)).unwrap();
    assert_eq!(row.cells().last(), Some(Cell::Bytes(b"e")));
    assert_eq!(shape.fit(renamed).unwrap_err(), Misfit::Renamed { gone: "qty".into(), came: "quantity".into() });
    // Without schemas neither can be followed.
    let types: BTreeMap<String, String> = shape
        .schema
        .columns
        .iter()
        .map(|column| {
            let ColumnType { name, .. } = &column.type_;
            (column.name.to_string(), name.to_string())
        })
        .collect();
    let all = changes(PARTS[0]);
    let def = super::fixtures::def("parts", &all[0], Some(&types));
    let mut shape = Shape::new(Arc::new(schema_of(TableId(1), &def)), Handling::default());
    assert_eq!(shape.fit(&all[7].1).unwrap_err(), Misfit::Untyped("extra".into()));
    assert_eq!(shape.fit(&all[8].1).unwrap_err(), Misfit::Gone("qty".into()));
}

#[test]
fn what_debezium_did_not_write_is_said_and_shows_no_value() {
    let mut reader = Reader::default();
    for (bytes, word) in [
        (&b"\xff\xfe"[..], "no text"),
        (b"hello", "no JSON"),
        (b"[1]", "no JSON"),
        (br#"{"id": 1, "secret": "value"}"#, "not Debezium's envelope"),
        (br#"{"op": "c", "source": {"connector": "mysql"}, "after": {"secret": "value"}}"#, "mysql"),
        (br#"{"op": "?", "source": {"connector": "postgresql"}}"#, "not Debezium's envelope"),
    ] {
        let said = reader.change(bytes).unwrap_err().to_string();
        assert!(said.contains(word) && !said.contains("value\""), "{said}");
    }
    assert!(mark(br#"{"op": "c"}"#).is_err());
}
