//! The tables that a plan makes, and what it says of them.

use super::*;

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
fn a_table_that_is_only_looked_up_needs_no_shadow_and_nothing_of_it_is_written() {
    let catalog = shop();
    let looks_up = steps("orders", r#"{"lookup": "users", "on": {"id": "user_id"}, "take": {"mail": "email"}}"#);
    let beside = PlanOptions { write: WriteKind::ShadowColumns, ..options(Dialect::Postgres) };
    let catalog = Catalog { tables: catalog.tables.into_iter().take(2).collect(), ..catalog };
    let plan = plan(&catalog, &looks_up, &beside).unwrap();
    let written: Vec<String> = plan.tables().iter().map(|table| table.schema.name.to_string()).collect();
    assert_eq!(written, ["public.orders"]);
    for (op, old, new) in [
        (RowOp::Insert, None, Some(["1", "a", "~", "~"])),
        (RowOp::Update, None, Some(["1", "b", "~", "~"])),
        (RowOp::Delete, Some(["1", "-", "-", "-"]), None),
    ] {
        let old: Option<&[&str]> = old.as_ref().map(|row| &row[..]);
        let new: Option<&[&str]> = new.as_ref().map(|row| &row[..]);
        assert_eq!(run(&catalog, &plan, "users", op, old, new), ["filtered"], "{op:?}");
    }
    let nobody = super::super::plan(&catalog, &Rules::default(), &beside).unwrap_err();
    assert!(nobody.to_string().contains("nothing changes"), "{nobody}");
}
