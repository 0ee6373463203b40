//! Plans from small catalogs, and what they do to rows.

mod alone;
mod keys;
mod made;
mod refused;
mod swap;
mod values;

use super::*;
use crate::{Output, Views};
use crossfade_event::{
    Cell, Change, Column, Format, Identity, Key, Op as RowOp, Row, SchemaVersion, Value,
    catalog::{ColumnDef, ForeignKeyDef, KeyDef, RelationKind},
    codec,
};
use proptest::prelude::*;
use std::collections::HashMap;

const NAMESPACE: &str = "6f1c1f0e-6f2b-4b57-9a34-0d5be4c7a001";

/// `"id integer! , name text"`: `!` marks the key.
pub(super) fn table(name: &str, columns: &str, references: &[(&str, &str, &str)]) -> TableDef {
    let mut key = Vec::new();
    let defs: Vec<ColumnDef> = columns
        .split(", ")
        .enumerate()
        .map(|(at, text)| {
            let (column, type_) = text.split_once(' ').unwrap();
            let is_key = type_.ends_with('!');
            if is_key {
                key.push(column.to_owned());
            }
            let spec = crate::types::TypeSpec::postgres(type_.trim_end_matches('!')).unwrap();
            ColumnDef {
                column: Column {
                    name: Arc::from(column),
                    type_: spec.postgres_column(),
                    key: is_key.then(|| key.len() as u16 - 1),
                    nullable: !is_key,
                    native_id: at as u32 + 1,
                    default: None,
                },
                default: None,
                identity: None,
                generated: None,
                collation: None,
                sequence: None,
            }
        })
        .collect();
    let (schema, bare) = name.split_once('.').unwrap_or(("public", name));
    TableDef {
        name: TableName::new(schema, bare),
        kind: RelationKind::Table,
        identity: if key.is_empty() { Identity::FullRow } else { Identity::Key },
        primary_key: (!key.is_empty()).then(|| KeyDef {
            name: format!("{bare}_pkey"),
            columns: key,
            deferrable: false,
            nulls_not_distinct: false,
        }),
        columns: defs,
        uniques: Vec::new(),
        checks: Vec::new(),
        foreign_keys: references
            .iter()
            .map(|(ours, other, theirs)| ForeignKeyDef {
                name: format!("{bare}_{}_fkey", ours.replace(',', "_")),
                columns: ours.split(',').map(str::to_owned).collect(),
                references: TableName::new("public", *other),
                referenced_columns: theirs.split(',').map(str::to_owned).collect(),
                suffix: String::new(),
            })
            .collect(),
        indexes: Vec::new(),
        rows_estimate: 0,
        bytes: 0,
        native_id: 0,
        obstacle: None,
    }
}

pub(super) fn catalog(tables: Vec<TableDef>) -> Catalog {
    Catalog { dialect: Dialect::Postgres, tables, types: vec![], sequences: vec![], extensions: vec![] }
}

/// The same with SQLite's declared types.
pub(super) fn sqlite(mut catalog: Catalog) -> Catalog {
    catalog.dialect = Dialect::Sqlite;
    for def in catalog.tables.iter_mut().flat_map(|table| &mut table.columns) {
        let declared = match def.column.type_.logical {
            Logical::Int16 | Logical::Int32 | Logical::Int64 => "INTEGER",
            Logical::Float64 => "REAL",
            Logical::Bytes => "BLOB",
            _ => "TEXT",
        };
        def.column.type_ = crate::types::sqlite_column(declared);
    }
    catalog
}

fn shop() -> Catalog {
    catalog(vec![
        table("users", "id integer!, email text, boss integer, doc jsonb", &[("boss", "users", "id")]),
        table("orders", "id bigint!, user_id bigint, amount numeric, note text", &[("user_id", "users", "id")]),
        table("lines", "order_id bigint!, line_no integer!, sku text", &[("order_id", "orders", "id")]),
        table(
            "parts",
            "id integer!, order_id bigint, line_no integer",
            &[("order_id,line_no", "lines", "order_id,line_no")],
        ),
    ])
}

pub(super) fn rules(text: &str) -> Rules {
    serde_json::from_str(text).unwrap()
}

pub(super) fn rekey(make: &str) -> Rules {
    let namespace = if matches!(make, "uuid-v5" | "uuid-v8-sha256") {
        format!(", \"namespace\": \"{NAMESPACE}\"")
    } else {
        String::new()
    };
    rules(&format!(
        "{{\"keys\": {{\"default\": {{\"make\": \"{make}\"{namespace}}}}}, \"rekey\": {{\"tables\": [\"*\"]}}}}"
    ))
}

pub(super) fn options(dialect: Dialect) -> PlanOptions {
    PlanOptions {
        schema: Some("app_v2".into()),
        dialect,
        secret: b"a secret of thirty-two bytes.....".to_vec(),
        ..Default::default()
    }
}

pub(super) fn steps(from: &str, steps: &str) -> Rules {
    rules(&format!("{{\"table\": [{{\"from\": \"{from}\", \"steps\": [{steps}]}}]}}"))
}

pub(super) fn schema_of(catalog: &Catalog, name: &str) -> Arc<TableSchema> {
    let table = find_table(catalog, name).unwrap();
    Arc::new(TableSchema {
        id: TableId(7),
        version: SchemaVersion(3),
        name: table.name.clone(),
        columns: table.carried().map(|def| def.column.clone()).collect(),
        identity: table.identity,
        native_id: 0,
    })
}

/// Cells by their text; `~` NULL, `=` unchanged, `-` absent.
pub(super) fn row(schema: &TableSchema, texts: &[&str]) -> Row {
    let mut bytes = Vec::new();
    for (column, text) in schema.columns.iter().zip(texts) {
        let mut out = bytes::BytesMut::new();
        if !matches!(*text, "~" | "=" | "-") {
            let value = match column.type_.logical {
                Logical::Dynamic if *text != "text:7" && text.parse::<i64>().is_ok() => {
                    Value::Int(text.parse().unwrap())
                }
                Logical::Dynamic => Value::Text((*text).trim_start_matches("text:").to_owned()),
                logical => codec::from_text(logical, text).unwrap(),
            };
            codec::encode(&column.type_, &value, &mut out).unwrap();
        }
        bytes.push(out);
    }
    texts
        .iter()
        .zip(&bytes)
        .map(|(text, bytes)| match *text {
            "~" => Cell::Null,
            "=" => Cell::Unchanged,
            "-" => Cell::Absent,
            _ => Cell::Bytes(bytes),
        })
        .collect()
}

pub(super) fn texts(schema: &TableSchema, row: &Row) -> Vec<String> {
    row.cells()
        .zip(&schema.columns)
        .map(|(cell, column)| match cell {
            Cell::Null => "~".into(),
            Cell::Unchanged => "=".into(),
            Cell::Absent => "-".into(),
            Cell::Bytes(bytes) => codec::to_text(&codec::decode(&column.type_, bytes).unwrap()),
        })
        .collect()
}

#[derive(Default)]
pub(super) struct Kept(pub(super) HashMap<(u32, Key), Row>);

impl Views for Kept {
    fn get(&self, view: u32, key: &Key) -> Option<Row> {
        self.0.get(&(view, key.clone())).cloned()
    }
}

fn change(op: RowOp, old: Option<Row>, new: Option<Row>) -> Change {
    Change { table: TableId(7), schema: SchemaVersion(3), op, old, new }
}

/// What comes out, in words: `insert app_v2.users [..]`.
fn told(plan: &Plan, outputs: &[Output]) -> Vec<String> {
    let table = |id: &TableId| plan.tables().iter().find(|table| table.schema.id == *id).unwrap();
    outputs
        .iter()
        .map(|output| match output {
            Output::Filtered => "filtered".to_owned(),
            Output::Rejected { reason, .. } => format!("rejected {reason}"),
            Output::Change(change) => {
                let schema = &table(&change.table).schema;
                let image =
                    |row: &Option<Row>| row.as_ref().map(|row| texts(schema, row).join(" ")).unwrap_or_default();
                let op = format!("{:?}", change.op).to_lowercase();
                format!("{op} {} [{}] [{}]", schema.name.name, image(&change.old), image(&change.new))
            }
        })
        .collect()
}

fn run(
    catalog: &Catalog,
    plan: &Plan,
    name: &str,
    op: RowOp,
    old: Option<&[&str]>,
    new: Option<&[&str]>,
) -> Vec<String> {
    run_with(catalog, plan, name, op, old, new, &Kept::default())
}

fn run_with(
    catalog: &Catalog,
    plan: &Plan,
    name: &str,
    op: RowOp,
    old: Option<&[&str]>,
    new: Option<&[&str]>,
    views: &Kept,
) -> Vec<String> {
    let schema = schema_of(catalog, name);
    let bound = plan.bind(&schema).unwrap();
    let image = |texts: &[&str]| row(&schema, texts);
    let mut out = Vec::new();
    bound.apply(&change(op, old.map(image), new.map(image)), views, &mut out);
    told(plan, &out)
}

fn vector(make: &str, table: &str, key: i64) -> String {
    let vectors: serde_json::Value = serde_json::from_str(include_str!("../../tests/vectors.json")).unwrap();
    let found = vectors.as_array().unwrap().iter().find(|vector| {
        vector["make"] == make
            && vector["table"] == table
            && vector["key"].as_array().unwrap() == &[serde_json::json!(key)]
    });
    found.unwrap()["new"].as_str().unwrap().to_owned()
}

#[test]
fn rows_that_nothing_is_done_to_pass_byte_for_byte() {
    let catalog = shop();
    let plan = plan(&catalog, &Rules::default(), &options(Dialect::Postgres)).unwrap();
    let bound = plan.bind(&schema_of(&catalog, "users")).unwrap();
    let target = plan.tables().iter().find(|table| &*table.schema.name.name == "users").unwrap();
    assert_eq!(bound.passthrough(), Some(target.schema.id));
    assert_eq!(target.schema.name, TableName::new("app_v2", "users"));
    assert_eq!(target.write, Writing::Table);
    assert!(plan.notes().is_empty());
}

proptest! {
    #[test]
    fn the_same_row_gives_the_same_bytes(id in any::<i32>(), email in "[^\0]{0,20}", boss in any::<i32>()) {
        let catalog = shop();
        let mut rules = rekey("uuid-v4");
        rules.table = steps("users", r#"{"mask": "email", "with": "hmac"}, {"canonical_key": "k", "of": ["email", "boss"], "normalise": ["nfkc", "lower"]}"#).table;
        // The hash is made of a column that is no new key yet.
        let schema = schema_of(&catalog, "users");
        let texts = [id.to_string(), email, boss.to_string()];
        let new = row(&schema, &[&texts[0], "x", &texts[2], "~"]);
        let mut all = Vec::new();
        for _ in 0..2 {
            let plan = plan(&catalog, &rules, &options(Dialect::Postgres)).unwrap();
            let mut out = Vec::new();
            plan.bind(&schema).unwrap().apply(&change(RowOp::Insert, None, Some(new.clone())), &Kept::default(), &mut out);
            all.push(out);
        }
        prop_assert_eq!(&all[0], &all[1]);
        prop_assert_eq!(all[0].len(), 2);
    }

    #[test]
    fn random_rows_come_out_once_and_never_panic(bytes in any::<Vec<u8>>(), op in 0usize..3) {
        let catalog = shop();
        let mut rules = rekey("uuid-v5");
        rules.table = steps("users", r#"{"extract": "doc", "path": "$.a", "to": "a"}, {"filter": "email <> 'x'"}"#).table;
        let plan = plan(&catalog, &rules, &options(Dialect::Postgres)).unwrap();
        let bound = plan.bind(&schema_of(&catalog, "users")).unwrap();
        let cut = |n: usize| Cell::Bytes(bytes.get(..n.min(bytes.len())).unwrap());
        let image: Row = [cut(4), cut(9), Cell::Null, cut(20)].into_iter().collect();
        let op = [RowOp::Insert, RowOp::Update, RowOp::Delete][op];
        let mut out = Vec::new();
        bound.apply(&change(op, Some(image.clone()), Some(image)), &Kept::default(), &mut out);
        prop_assert!(!out.is_empty());
    }
}
