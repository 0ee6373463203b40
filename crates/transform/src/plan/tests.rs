//! Plans from small catalogs, and what they do to rows.

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
fn table(name: &str, columns: &str, references: &[(&str, &str, &str)]) -> TableDef {
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

fn catalog(tables: Vec<TableDef>) -> Catalog {
    Catalog { dialect: Dialect::Postgres, tables, types: vec![], sequences: vec![], extensions: vec![] }
}

/// The same with SQLite's declared types.
fn sqlite(mut catalog: Catalog) -> Catalog {
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

fn rules(text: &str) -> Rules {
    serde_json::from_str(text).unwrap()
}

fn rekey(make: &str) -> Rules {
    let namespace = if matches!(make, "uuid-v5" | "uuid-v8-sha256") {
        format!(", \"namespace\": \"{NAMESPACE}\"")
    } else {
        String::new()
    };
    rules(&format!(
        "{{\"keys\": {{\"default\": {{\"make\": \"{make}\"{namespace}}}}}, \"rekey\": {{\"tables\": [\"*\"]}}}}"
    ))
}

fn options(dialect: Dialect) -> PlanOptions {
    PlanOptions {
        schema: Some("app_v2".into()),
        dialect,
        secret: b"a secret of thirty-two bytes.....".to_vec(),
        ..Default::default()
    }
}

fn steps(from: &str, steps: &str) -> Rules {
    rules(&format!("{{\"table\": [{{\"from\": \"{from}\", \"steps\": [{steps}]}}]}}"))
}

fn schema_of(catalog: &Catalog, name: &str) -> Arc<TableSchema> {
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
fn row(schema: &TableSchema, texts: &[&str]) -> Row {
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

fn texts(schema: &TableSchema, row: &Row) -> Vec<String> {
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
struct Kept(HashMap<(u32, Key), Row>);

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

#[test]
fn every_integer_key_and_every_reference_becomes_a_uuid() {
    let catalog = shop();
    let plan = plan(&catalog, &rekey("uuid-v5"), &options(Dialect::Postgres)).unwrap();
    let types = |name: &str| -> Vec<String> {
        let table = plan.tables().iter().find(|table| &*table.schema.name.name == name).unwrap();
        table.def.columns.iter().map(|def| def.column.type_.name.to_string()).collect()
    };
    assert_eq!(types("users"), ["uuid", "text", "uuid", "jsonb"]);
    assert_eq!(types("orders"), ["uuid", "uuid", "numeric", "text"]);
    assert_eq!(types("lines"), ["uuid", "integer", "text"]);
    assert_eq!(types("parts"), ["uuid", "uuid", "integer"]);
    assert_eq!(types("uuid_migration_mapping"), ["text", "text", "uuid", "timestamp with time zone"]);
    let order: Vec<&str> = plan.tables().iter().map(|table| &*table.schema.name.name).collect();
    assert_eq!(order, ["uuid_migration_mapping", "users", "orders", "lines", "parts"]);
    let mapping = &plan.tables()[0];
    assert_eq!((mapping.write.clone(), mapping.schema.columns.len()), (Writing::InsertOnce, 3));

    let user = run(&catalog, &plan, "users", RowOp::Insert, None, Some(&["42", "a@b", "7", "~"]));
    let order = run(&catalog, &plan, "orders", RowOp::Insert, None, Some(&["1", "42", "1.50", "~"]));
    assert_eq!(user.len(), 2);
    let new: Vec<&str> = user[0].split(' ').collect();
    assert!(user[0].starts_with("insert uuid_migration_mapping [] [public.users 42 "), "{}", user[0]);
    let new = new.last().unwrap().trim_end_matches(']');
    // docs/key-vectors.md has this one.
    assert_eq!(new, vector("uuid-v5", "public.users", 42));
    assert!(user[1].starts_with(&format!("insert users [] [{new} a@b ")), "{}", user[1]);
    assert!(order[1].contains(&format!(" {new} 1.50 ~]")), "{}", order[1]);
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
fn updates_and_deletes_go_by_the_new_key() {
    let catalog = shop();
    let plan = plan(&catalog, &rekey("uuid-v8-sha256"), &options(Dialect::Postgres)).unwrap();
    let (one, two) = (vector("uuid-v8-sha256", "public.users", 1), vector("uuid-v8-sha256", "public.users", 42));
    let update = run(&catalog, &plan, "users", RowOp::Update, None, Some(&["1", "x", "~", "="]));
    assert_eq!(update, [format!("update users [] [{one} x ~ =]")]);
    let moved = run(&catalog, &plan, "users", RowOp::Update, Some(&["1", "-", "-", "-"]), Some(&["42", "x", "~", "="]));
    assert_eq!(
        moved,
        [
            format!("insert uuid_migration_mapping [] [public.users 42 {two}]"),
            format!("update users [{one} - - -] [{two} x ~ =]"),
        ]
    );
    let gone = run(&catalog, &plan, "users", RowOp::Delete, Some(&["1", "-", "-", "-"]), None);
    assert_eq!(gone, [format!("delete users [{one} - - -] []")]);
}

#[test]
fn a_composite_key_gets_a_surrogate_and_references_follow() {
    let catalog = shop();
    let mut rules = rekey("uuid-v5");
    rules.table = vec![TableRule { from: "lines".into(), surrogate: Some("id".into()), ..Default::default() }];
    let plan = plan(&catalog, &rules, &options(Dialect::Postgres)).unwrap();
    let lines = plan.tables().iter().find(|table| &*table.schema.name.name == "lines").unwrap();
    assert_eq!(lines.def.primary_key.as_ref().unwrap().columns, ["id"]);
    assert_eq!(lines.def.uniques[0].columns, ["order_id", "line_no"]);
    assert_eq!(lines.schema.key_columns(), [0]);
    let parts = plan.tables().iter().find(|table| &*table.schema.name.name == "parts").unwrap();
    assert_eq!(parts.def.foreign_keys[0].columns, ["lines_id"]);
    assert_eq!(parts.def.foreign_keys[0].referenced_columns, ["id"]);
    let line = run(&catalog, &plan, "lines", RowOp::Insert, None, Some(&["7", "3", "a"]));
    let part = run(&catalog, &plan, "parts", RowOp::Insert, None, Some(&["1", "7", "3"]));
    assert!(line[0].starts_with("insert uuid_migration_mapping [] [public.lines (7,3) "), "{}", line[0]);
    let id = line[0].rsplit(' ').next().unwrap().trim_end_matches(']');
    assert!(part[1].ends_with(&format!(" 3 {id}]")), "{} {id}", part[1]);
    let unset = run(&catalog, &plan, "parts", RowOp::Insert, None, Some(&["1", "~", "3"]));
    assert!(unset[1].ends_with(" ~ 3 ~]"), "{}", unset[1]);
}

#[test]
fn steps_run_in_their_order() {
    let catalog = shop();
    let rules = steps(
        "public.orders",
        r#"{"rename": "note", "to": "remark"}, {"cast": "amount", "to": "numeric(5,2)"},
           {"constant": "eu", "to": "region", "type": "text"}, {"null_if": "remark", "any_of": ["none", ""]},
           {"map_values": "remark", "with": {"a": "b"}}, {"merge": ["region", "remark"], "with": "/", "to": "both", "keep": true},
           {"drop": "region"}, {"split": "both", "by": "/", "into": ["x", "y"]}"#,
    );
    let plan = plan(&catalog, &rules, &options(Dialect::Postgres)).unwrap();
    let insert = |row: &[&str]| run(&catalog, &plan, "orders", RowOp::Insert, None, Some(row));
    assert_eq!(insert(&["1", "2", "1.005", "a"]), ["insert orders [] [1 2 1.01 b eu b]"]);
    assert_eq!(insert(&["1", "2", "~", "none"]), ["insert orders [] [1 2 ~ ~ eu ~]"]);
    assert_eq!(insert(&["1", "2", "1000", "c"]), ["rejected public.orders: a numeric value does not fit numeric(5,2)"]);
    let partly = run(&catalog, &plan, "orders", RowOp::Update, None, Some(&["1", "2", "3", "="]));
    assert_eq!(partly[0], format!("rejected public.orders: {}", crate::program::NOT_SENT));
    let fidelity: Vec<Fidelity> =
        plan.notes().iter().filter(|note| note.column.as_deref() == Some("amount")).map(|note| note.fidelity).collect();
    assert_eq!(fidelity, [Fidelity::LossyBack]);
}

#[test]
fn an_unchanged_cell_stays_so_through_what_depends_on_it_alone() {
    let catalog = shop();
    let rules = steps(
        "users",
        r#"{"extract": "doc", "path": "$.a", "to": "a", "type": "integer"}, {"mask": "email", "with": "stars"}"#,
    );
    let plan = plan(&catalog, &rules, &options(Dialect::Postgres)).unwrap();
    let update = run(&catalog, &plan, "users", RowOp::Update, None, Some(&["1", "abc", "~", "="]));
    assert_eq!(update, ["update users [] [1 *** ~ = =]"]);
    let full = run(
        &catalog,
        &plan,
        "users",
        RowOp::Update,
        Some(&["1", "abc", "~", "{\"a\": 5}"]),
        Some(&["1", "=", "~", "="]),
    );
    assert_eq!(full, ["update users [1 - - - -] [1 *** ~ {\"a\": 5} 5]"]);
    let broken = run(&catalog, &plan, "users", RowOp::Insert, None, Some(&["1", "abc", "~", "{\"a\": \"x\"}"]));
    assert_eq!(broken, ["rejected public.users: a text value cannot become integer"]);
}

#[test]
fn rows_enter_and_leave_a_filter() {
    let catalog = shop();
    let plan = plan(&catalog, &steps("orders", r#"{"filter": "note = 'acme'"}"#), &options(Dialect::Postgres)).unwrap();
    let go = |op, old: Option<&[&str]>, new: Option<&[&str]>| run(&catalog, &plan, "orders", op, old, new);
    let (acme, other, null) = (["1", "~", "1", "acme"], ["1", "~", "1", "zzz"], ["1", "~", "1", "~"]);
    assert_eq!(go(RowOp::Insert, None, Some(&acme)), ["insert orders [] [1 ~ 1 acme]"]);
    assert_eq!(go(RowOp::Insert, None, Some(&other)), ["filtered"]);
    assert_eq!(go(RowOp::Insert, None, Some(&null)), ["filtered"]);
    assert_eq!(go(RowOp::Update, Some(&acme), Some(&other)), ["delete orders [1 - - -] []"]);
    assert_eq!(go(RowOp::Update, Some(&other), Some(&acme)), ["insert orders [] [1 ~ 1 acme]"]);
    assert_eq!(go(RowOp::Update, Some(&other), Some(&null)), ["filtered"]);
    assert_eq!(go(RowOp::Update, None, Some(&other)), ["delete orders [1 - - -] []"]);
    assert_eq!(go(RowOp::Update, None, Some(&acme)), ["update orders [] [1 ~ 1 acme]"]);
    assert_eq!(go(RowOp::Delete, Some(&other), None), ["filtered"]);
    assert_eq!(go(RowOp::Delete, Some(&["1", "-", "-", "-"]), None), ["delete orders [1 - - -] []"]);
    let open = go(RowOp::Update, None, Some(&["1", "~", "2", "="]));
    assert_eq!(open, [format!("rejected public.orders: {}", crate::program::NOT_SENT)]);
}

#[test]
fn lookups_take_from_the_view_and_count_misses() {
    let mut catalog = shop();
    catalog.tables.push(table("ips", "ip text!, country text, asn integer", &[]));
    let rules = steps(
        "orders",
        r#"{"lookup": "public.ips", "on": {"ip": "note"}, "take": {"country": "country", "asn": "asn"}}"#,
    );
    let plan = plan(&catalog, &rules, &options(Dialect::Postgres)).unwrap();
    let view = &plan.lookups()[0];
    assert_eq!(
        (&view.key[..], &view.keep[..]),
        (&["ip".to_owned()][..], &["asn".to_owned(), "country".to_owned()][..])
    );
    let key: Row = [Cell::Bytes(b"10.0.0.1")].into_iter().collect();
    let kept: Row = [Cell::Bytes(&[0, 0, 0, 9]), Cell::Bytes(b"de")].into_iter().collect();
    let views = Kept(HashMap::from([((view.view, Key::from(key)), kept)]));
    let go = |row: &[&str]| run_with(&catalog, &plan, "orders", RowOp::Insert, None, Some(row), &views);
    assert_eq!(go(&["1", "~", "1", "10.0.0.1"]), ["insert orders [] [1 ~ 1 10.0.0.1 9 de]"]);
    assert_eq!(view.misses(), 0);
    assert_eq!(go(&["1", "~", "1", "10.0.0.2"]), ["insert orders [] [1 ~ 1 10.0.0.2 ~ ~]"]);
    assert_eq!(view.misses(), 1);
}

#[test]
fn a_v7_key_has_the_time_of_its_own_row_also_in_references() {
    let catalog = catalog(vec![
        table("users", "id integer!, created timestamptz", &[]),
        table("orders", "id text!, user_id bigint", &[("user_id", "users", "id")]),
    ]);
    let mut rules = rekey("uuid-v7");
    rules.keys.get_mut("default").unwrap().time = Some("created".into());
    let plan = plan(&catalog, &rules, &options(Dialect::Postgres)).unwrap();
    let users = schema_of(&catalog, "users");
    let stored = row(&users, &["42", "2023-11-14 22:13:20.123+00"]);
    let cells: Vec<Cell<'_>> = stored.cells().collect();
    let views = Kept(HashMap::from([(
        (plan.lookups()[0].view, Key::from([cells[0]].into_iter().collect::<Row>())),
        [cells[1]].into_iter().collect(),
    )]));
    let expected = vector("uuid-v7", "public.users", 42);
    let user = run(&catalog, &plan, "users", RowOp::Insert, None, Some(&["42", "2023-11-14 22:13:20.123+00"]));
    assert_eq!(user[1], format!("insert users [] [{expected} 2023-11-14 22:13:20.123+00]"));
    let order = run_with(&catalog, &plan, "orders", RowOp::Insert, None, Some(&["o", "42"]), &views);
    assert_eq!(order, [format!("insert orders [] [o {expected}]")]);
    let dangling = run(&catalog, &plan, "orders", RowOp::Insert, None, Some(&["o", "43"]));
    assert_eq!(dangling, ["rejected public.orders: it refers to a row of public.users that is not there"]);
    let gone = run_with(&catalog, &plan, "users", RowOp::Delete, Some(&["42", "-"]), None, &views);
    assert_eq!(gone, [format!("delete users [{expected} -] []")]);
    let moved = run(
        &catalog,
        &plan,
        "users",
        RowOp::Update,
        Some(&["42", "2023-11-14 22:13:20.123+00"]),
        Some(&["42", "2024-01-01 00:00:00+00"]),
    );
    assert!(moved[0].starts_with("rejected public.users: the column that its key takes the time from"), "{moved:?}");
    let unknown =
        run(&catalog, &plan, "users", RowOp::Update, Some(&["42", "-"]), Some(&["43", "2023-11-14 22:13:20.123+00"]));
    assert!(unknown[0].starts_with("rejected public.users: the old image lacks"), "{unknown:?}");
}

#[test]
fn beside_the_old_columns_only_key_and_shadows_are_written() {
    let catalog = shop();
    let mut rules = rekey("uuid-v5");
    let shadow = |from: &str, shadow: &[(&str, &str)]| TableRule {
        from: from.into(),
        write: Some(WriteKind::ShadowColumns),
        shadow: shadow.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect(),
        ..Default::default()
    };
    rules.rekey.as_mut().unwrap().tables = vec!["public.users".into(), "public.orders".into()];
    rules.table = vec![
        shadow("users", &[("id", "uuid_id"), ("boss", "boss_uuid")]),
        shadow("orders", &[("id", "uuid_id"), ("user_id", "user_uuid")]),
        shadow("lines", &[("order_id", "order_uuid")]),
        shadow("parts", &[("order_id", "order_uuid")]),
    ];
    let mut options = options(Dialect::Postgres);
    options.schema = None;
    let plan = plan(&catalog, &rules, &options).unwrap();
    let users = plan.tables().iter().find(|table| &*table.schema.name.name == "users").unwrap();
    let names: Vec<&str> = users.schema.columns.iter().map(|column| &*column.name).collect();
    assert_eq!(names, ["id", "uuid_id", "boss_uuid"]);
    assert_eq!(users.write, Writing::Columns { columns: vec![1, 2] });
    assert_eq!(users.schema.name, TableName::new("public", "users"));
    assert_eq!(users.def.indexes[0].columns, ["uuid_id"]);
    assert_eq!(users.def.foreign_keys[0].columns, ["boss_uuid"]);
    let one = vector("uuid-v5", "public.users", 1);
    let insert = run(&catalog, &plan, "users", RowOp::Insert, None, Some(&["1", "a", "~", "~"]));
    assert_eq!(insert[1], format!("insert users [] [1 {one} ~]"));
    assert_eq!(run(&catalog, &plan, "users", RowOp::Delete, Some(&["1", "-", "-", "-"]), None), ["filtered"]);
}

#[test]
fn from_sqlite_to_sqlite_keys_become_texts() {
    let catalog = sqlite(shop());
    let plan = plan(&catalog, &rekey("uuid-v5"), &options(Dialect::Sqlite)).unwrap();
    let user = run(&catalog, &plan, "users", RowOp::Insert, None, Some(&["42", "a", "text:7", "~"]));
    assert_eq!(plan.tables()[0].schema.name, TableName::new("main", "uuid_migration_mapping"));
    let (own, boss) = (vector("uuid-v5", "public.users", 42), {
        let seven = run(&catalog, &plan, "users", RowOp::Insert, None, Some(&["7", "a", "~", "~"]));
        seven[0].rsplit(' ').next().unwrap().trim_end_matches(']').to_owned()
    });
    assert_eq!(user[1], format!("insert users [] [{own} a {boss} ~]"));
}

#[test]
fn steps_take_sqlites_values_as_they_are() {
    let catalog = sqlite(shop());
    let rules = steps(
        "orders",
        r#"{"null_if": "note", "any_of": ["none"]}, {"map_values": "user_id", "with": {"1": 2}}, {"filter": "NOTE is null or Note <> 'x'"},
           {"lookup": "users", "on": {"id": "user_id"}, "take": {"mail": "email"}}"#,
    );
    let plan = plan(&catalog, &rules, &options(Dialect::Sqlite)).unwrap();
    let go = |row: &[&str]| run(&catalog, &plan, "orders", RowOp::Insert, None, Some(row));
    assert_eq!(go(&["7", "1", "5", "none"]), ["insert orders [] [7 2 5 ~ ~]"]);
    assert_eq!(go(&["7", "text:odd", "5", "y"]), ["insert orders [] [7 odd 5 y ~]"]);
    assert_eq!(go(&["7", "1", "5", "x"]), ["filtered"]);
}

#[test]
fn a_value_that_is_there_is_kept_also_where_it_was_not_sent() {
    let catalog = shop();
    let rules = steps("users", r#"{"extract": "doc", "path": "$.mail", "to": "email", "keep_existing": true}"#);
    let plan = plan(&catalog, &rules, &options(Dialect::Postgres)).unwrap();
    let go = |row: &[&str]| run(&catalog, &plan, "users", RowOp::Update, None, Some(row));
    let doc = "{\"mail\": \"m\"}";
    assert_eq!(go(&["1", "a", "~", doc]), [format!("update users [] [1 a ~ {doc}]")]);
    assert_eq!(go(&["1", "~", "~", doc]), [format!("update users [] [1 m ~ {doc}]")]);
    assert_eq!(go(&["1", "=", "~", doc]), [format!("update users [] [1 = ~ {doc}]")]);
}

#[test]
fn a_refused_row_is_known_by_its_new_key() {
    let catalog = shop();
    let mut rules = rekey("uuid-v5");
    rules.table = steps("users", r#"{"cast": "email", "to": "integer"}"#).table;
    let plan = plan(&catalog, &rules, &options(Dialect::Postgres)).unwrap();
    let schema = schema_of(&catalog, "users");
    let mut out = Vec::new();
    let new = row(&schema, &["42", "not a number", "~", "~"]);
    plan.bind(&schema).unwrap().apply(&change(RowOp::Insert, None, Some(new)), &Kept::default(), &mut out);
    let [Output::Rejected { key: Some(key), reason, .. }] = out.as_slice() else { panic!("{out:?}") };
    assert_eq!(reason, "public.users: a text value cannot become integer");
    let cells: Vec<Cell<'_>> = key.cells().collect();
    let Value::Uuid(expected) = codec::from_text(Logical::Uuid, &vector("uuid-v5", "public.users", 42)).unwrap() else {
        panic!()
    };
    assert_eq!(cells, [Cell::Bytes(&expected)]);
}

#[test]
fn indexes_checks_and_sequences_follow_or_are_named() {
    let mut catalog = shop();
    let orders = catalog.tables.iter_mut().find(|table| &*table.name.name == "orders").unwrap();
    orders.columns[0].sequence = Some(TableName::new("public", "orders_id_seq"));
    orders.columns[0].default = Some("nextval('orders_id_seq'::regclass)".into());
    orders.columns[3].default = Some("'none'::text".into());
    let index = |name: &str, definition: &str, columns: &[&str], plain| crossfade_event::catalog::IndexDef {
        name: name.into(),
        unique: false,
        definition: definition.into(),
        columns: columns.iter().map(ToString::to_string).collect(),
        plain,
    };
    orders.indexes = vec![
        index("a", "USING btree (note DESC) WHERE (note IS NOT NULL)", &["note"], true),
        index("b", "USING btree (user_id)", &["user_id"], true),
        index("c", "USING btree (user_id) WHERE (user_id > 5)", &["user_id"], true),
        index("d", "USING btree (lower(note))", &["note"], false),
        index("e", "USING btree (user_id) WHERE (amount > (0)::numeric)", &["amount", "user_id"], false),
    ];
    orders.checks = vec![
        crossfade_event::catalog::CheckDef { name: "pos".into(), expression: "(amount > (0)::numeric)".into() },
        crossfade_event::catalog::CheckDef { name: "ref".into(), expression: "(user_id > 0)".into() },
    ];
    catalog.sequences = vec![crossfade_event::catalog::SequenceDef {
        name: TableName::new("public", "orders_id_seq"),
        options: "AS bigint".into(),
        last_value: Some(9),
        increment: 1,
        owner: Some((TableName::new("public", "orders"), "id".into())),
    }];
    let mut rules = rekey("uuid-v5");
    rules.rekey.as_mut().unwrap().tables = vec!["public.users".into()];
    rules.table = steps("orders", r#"{"rename": "note", "to": "the note"}, {"rename": "amount", "to": "total"}"#).table;
    let plan = plan(&catalog, &rules, &options(Dialect::Postgres)).unwrap();
    let orders = plan.tables().iter().find(|table| &*table.schema.name.name == "orders").unwrap();
    let definitions: Vec<&str> = orders.def.indexes.iter().map(|index| index.definition.as_str()).collect();
    assert_eq!(
        definitions,
        [
            "USING btree (\"the note\" DESC) WHERE (\"the note\" IS NOT NULL)",
            "USING btree (\"user_id\")",
            "USING btree (lower(\"the note\"))",
            "USING btree (\"user_id\") WHERE (\"total\" > (0)::numeric)",
        ]
    );
    assert_eq!(orders.def.checks.len(), 1);
    assert_eq!(orders.def.checks[0].expression, "(\"total\" > (0)::numeric)");
    assert_eq!(orders.def.columns[0].default.as_deref(), Some("nextval('\"app_v2\".\"orders_id_seq\"'::regclass)"));
    assert_eq!(orders.def.columns[3].default.as_deref(), Some("'none'::text"));
    assert_eq!(plan.support().sequences[0].name, TableName::new("app_v2", "orders_id_seq"));
    assert_eq!(plan.support().sequences[0].owner.as_ref().unwrap().0, TableName::new("app_v2", "orders"));
    let said: Vec<&str> = plan.notes().iter().map(|note| note.text.as_str()).collect();
    let by_hand = "CREATE INDEX \"c\" ON \"app_v2\".\"orders\" USING btree (user_id) WHERE (user_id > 5);";
    let left = said.iter().find(|text| text.starts_with("the index c is not carried over")).unwrap();
    assert!(left.contains("user_id, which change") && left.ends_with(by_hand), "{left}");
    assert!(said.contains(&"the check ref is not carried over"));
}

#[test]
fn sqlites_row_numbers_become_identity_columns() {
    let mut catalog = sqlite(shop());
    catalog.tables[0].columns[0].default = None;
    let plan = plan(&catalog, &Rules::default(), &options(Dialect::Postgres)).unwrap();
    let users = plan.tables().iter().find(|table| &*table.schema.name.name == "users").unwrap();
    assert_eq!(users.def.columns[0].identity, Some(crossfade_event::catalog::IdentityColumn::ByDefault));
    assert_eq!(&*users.def.columns[0].column.type_.name, "bigint");
    let owners: Vec<String> =
        plan.support().sequences.iter().filter_map(|s| s.owner.as_ref()).map(|(t, c)| format!("{t}.{c}")).collect();
    assert!(owners.contains(&"app_v2.users.id".to_owned()), "{owners:?}");
}

#[test]
fn numbers_of_tables_do_not_depend_on_each_other() {
    let all = plan(&shop(), &Rules::default(), &options(Dialect::Postgres)).unwrap();
    let mut fewer = shop();
    fewer.tables.remove(0);
    fewer.tables.retain(|table| table.foreign_keys.iter().all(|key| &*key.references.name != "users"));
    let some = plan(&fewer, &Rules::default(), &options(Dialect::Postgres)).unwrap();
    for table in some.tables() {
        assert!(
            all.tables()
                .iter()
                .any(|other| other.schema.id == table.schema.id && other.schema.name == table.schema.name)
        );
    }
}

#[test]
fn postgres_to_sqlite_and_back_is_exact_or_refused() {
    let postgres = catalog(vec![table(
        "t",
        "id integer!, f double precision, n numeric, b boolean, d date, x bytea, r inet",
        &[],
    )]);
    let to_sqlite = plan(&postgres, &Rules::default(), &options(Dialect::Sqlite)).unwrap();
    let declared: Vec<&str> = to_sqlite.tables()[0].schema.columns.iter().map(|column| &*column.type_.name).collect();
    assert_eq!(declared, ["INTEGER", "REAL", "TEXT", "INTEGER", "TEXT", "BLOB", "TEXT"]);
    let go = |row: &[&str]| run(&postgres, &to_sqlite, "t", RowOp::Insert, None, Some(row));
    assert_eq!(
        go(&["1", "1.5", "1.50", "t", "infinity", "\\x00ff", "10.0.0.1"]),
        ["insert t [] [1 1.5 1.50 1 infinity \\x00ff 10.0.0.1]"]
    );
    assert_eq!(
        go(&["1", "NaN", "~", "~", "~", "~", "~"]),
        ["rejected public.t: column f: a float64 value does not fit REAL exactly; a cast may help"]
    );
    assert!(
        to_sqlite.notes().iter().any(|note| note.column.as_deref() == Some("f") && note.fidelity == Fidelity::Inexact)
    );

    let source = sqlite(shop());
    let to_postgres = plan(&source, &Rules::default(), &options(Dialect::Postgres)).unwrap();
    let go = |row: &[&str]| run(&source, &to_postgres, "lines", RowOp::Insert, None, Some(row));
    assert_eq!(go(&["1", "2", "a"]), ["insert lines [] [1 2 a]"]);
    assert_eq!(
        go(&["1", "text:two", "a"]),
        ["rejected public.lines: column line_no: a text value does not fit bigint exactly; a cast may help"]
    );
}

#[test]
fn binary_that_only_its_database_can_read_is_named_before_anything_runs() {
    let mut catalog = catalog(vec![table("t", "id integer!, r inet", &[])]);
    catalog.tables[0].columns[1].column.type_.format = Format::PgBinary;
    let plan = plan(&catalog, &Rules::default(), &options(Dialect::Sqlite)).unwrap();
    assert_eq!(plan.text_columns(), [(TableName::new("public", "t"), "r".to_owned())]);
    let error = plan.bind(&schema_of(&catalog, "t")).unwrap_err();
    assert!(matches!(error, PlanError::NeedsText { .. }));
}

#[test]
fn what_cannot_be_is_said_with_the_nearest_name() {
    let catalog = shop();
    let error = |rules: &Rules| plan(&catalog, rules, &options(Dialect::Postgres)).unwrap_err().to_string();
    assert_eq!(
        error(&steps("public.user", "")),
        "[[table]] from = \"public.user\" names the table \"public.user\", which is not among the source's captured tables; did you mean \"public.users\"?"
    );
    assert_eq!(
        error(&steps("users", r#"{"drop": "emial"}"#)),
        "step 1 of [[table]] from = \"public.users\" names the column \"emial\", which public.users does not have there; did you mean \"email\"?"
    );
    assert!(error(&steps("users", r#"{"rename": "email", "to": "boss"}"#)).starts_with("two rules clash"));
    assert!(
        error(&steps("users", r#"{"cast": "email", "to": "numeric(0)"}"#)).contains("\"numeric(0)\" is not a type")
    );
    assert!(error(&steps("users", r#"{"filter": "emial = 'x'"}"#)).contains("did you mean \"email\"?"));
    assert!(error(&steps("users", r#"{"drop": "id"}"#)).contains("is part of the key"));
    assert!(
        error(&steps("orders", r#"{"cast": "user_id", "to": "text"}"#))
            .contains("only one of the two changes its type")
    );
    let mut clash = rekey("uuid-v5");
    clash.table = steps("users", r#"{"cast": "id", "to": "text"}"#).table;
    assert!(error(&clash).contains("becomes a new key"));
    let mut missing = rekey("uuid-v5");
    missing.rekey.as_mut().unwrap().with = "defualt".into();
    assert!(error(&missing).contains("did you mean \"default\"?"));
    let mut secret = options(Dialect::Postgres);
    secret.secret.clear();
    assert!(plan(&catalog, &rekey("uuid-v4"), &secret).unwrap_err().to_string().contains("secret"));
    let twice = rules(r#"{"table": [{"from": "users", "to": "x"}, {"from": "orders", "to": "x"}]}"#);
    assert!(error(&twice).contains("would both become app_v2.x"));
    let dual = rules(r#"{"table": [{"from": "users", "write": "dual-records"}]}"#);
    assert!(error(&dual).contains("is not built yet"));
}

#[test]
fn wrong_steps_are_refused_when_they_are_read() {
    let read =
        |text: &str| serde_json::from_str::<Rules>(&format!("{{\"table\":[{{\"from\":\"a\",\"steps\":[{text}]}}]}}"));
    let error = |text: &str| read(text).unwrap_err().to_string();
    assert!(error(r#"{"renam": "a", "to": "b"}"#).starts_with("no step is called `renam`; did you mean \"rename\"?"));
    assert!(error(r#"{"rename": "a", "ot": "b"}"#).contains("unknown field `ot`"));
    assert!(error(r#"{"rename": "a", "cast": "b"}"#).contains("one step cannot be two"));
    assert!(error(r#"{"constant": [1], "to": "b"}"#).contains("a value must be"));
    assert!(read(r#"{"constant": 1.50, "to": "b", "type": "numeric"}"#).is_ok());
    let schema = serde_json::to_string(&schemars::schema_for!(Rules)).unwrap();
    assert!(schema.contains("canonical_key"));
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
