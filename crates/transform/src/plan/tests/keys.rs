//! Keys that become others, and the references that follow.

use super::*;

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

#[test]
fn a_row_that_has_a_key_already_keeps_it_and_so_does_every_reference_to_it_and_the_mapping() {
    let catalog = shop();
    let has = "00000000-0000-4000-8000-00000000002a";
    let derived = vector("uuid-v5", "public.users", 42);
    let pairs = [("public.users", 42, has.to_owned()), ("public.orders", 1, "none of a user's".to_owned())];
    let options = PlanOptions { adopted: Arc::new(Adopted::from_pairs(pairs)), ..options(Dialect::Postgres) };
    let plan = plan(&catalog, &rekey("uuid-v5"), &options).unwrap();
    let user = run(&catalog, &plan, "users", RowOp::Insert, None, Some(&["42", "a@b", "42", "~"]));
    assert_eq!(user[0], format!("insert uuid_migration_mapping [] [public.users 42 {has}]"));
    assert_eq!(user[1], format!("insert users [] [{has} a@b {has} ~]"));
    let order = run(&catalog, &plan, "orders", RowOp::Insert, None, Some(&["7", "42", "1.50", "~"]));
    assert!(order[1].contains(&format!(" {has} 1.50 ~]")), "{}", order[1]);
    // Another table's key of that number is another key, and so is the next one.
    let moved =
        run(&catalog, &plan, "users", RowOp::Update, Some(&["42", "-", "-", "-"]), Some(&["1", "x", "42", "="]));
    assert!(moved[1].starts_with(&format!("update users [{has} - - -] [")), "{}", moved[1]);
    let new = vector("uuid-v5", "public.users", 1);
    assert!(moved[1].ends_with(&format!("[{new} x {has} =]")), "{}", moved[1]);
    let gone = run(&catalog, &plan, "users", RowOp::Delete, Some(&["42", "-", "-", "-"]), None);
    assert_eq!(gone, [format!("delete users [{has} - - -] []")]);
    assert!(!format!("{user:?}{order:?}").contains(&derived));
}

#[test]
fn updates_and_deletes_go_by_the_new_key() {
    let catalog = shop();
    let plan = plan(&catalog, &rekey("uuid-v8-sha256"), &options(Dialect::Postgres)).unwrap();
    let (one, two) = (vector("uuid-v8-sha256", "public.users", 1), vector("uuid-v8-sha256", "public.users", 42));
    let update = run(&catalog, &plan, "users", RowOp::Update, None, Some(&["1", "x", "~", "="]));
    // The row may never have come otherwise: it was moved while its table was copied.
    let mapped = format!("insert uuid_migration_mapping [] [public.users 1 {one}]");
    assert_eq!(update, [mapped, format!("update users [] [{one} x ~ =]")]);
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
    assert!(parts.def.columns.iter().any(|def| &*def.column.name == "lines_id" && def.column.nullable));
    assert_eq!(parts.def.indexes, [], "nothing was found by the old columns");
    let mut found_by = catalog.clone();
    found_by.tables[3].uniques.push(KeyDef {
        columns: vec!["line_no".into(), "order_id".into(), "id".into()],
        ..lines.def.primary_key.clone().unwrap()
    });
    let plan_of_it = super::plan(&found_by, &rules, &options(Dialect::Postgres)).unwrap();
    let parts_of_it = plan_of_it.tables().iter().find(|table| &*table.schema.name.name == "parts").unwrap();
    assert_eq!(parts_of_it.def.indexes[0].definition, "USING btree (\"lines_id\")");
    let line = run(&catalog, &plan, "lines", RowOp::Insert, None, Some(&["7", "3", "a"]));
    let part = run(&catalog, &plan, "parts", RowOp::Insert, None, Some(&["1", "7", "3"]));
    assert!(line[0].starts_with("insert uuid_migration_mapping [] [public.lines (7,3) "), "{}", line[0]);
    let id = line[0].rsplit(' ').next().unwrap().trim_end_matches(']');
    assert!(part[1].ends_with(&format!(" 3 {id}]")), "{} {id}", part[1]);
    let unset = run(&catalog, &plan, "parts", RowOp::Insert, None, Some(&["1", "~", "3"]));
    assert!(unset[1].ends_with(" ~ 3 ~]"), "{}", unset[1]);
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

/// A table that stands beside another one, row for row, and is found by the reference: `attribute_id` is its own old key.
fn beside() -> Catalog {
    let mut scoping =
        table("scoping", "attribute_id bigint!, planning_id bigint, reason text", &[("planning_id", "planning", "id")]);
    scoping.columns[0].column.key = None;
    scoping.columns[1].column.key = Some(0);
    scoping.columns[1].column.nullable = false;
    scoping.uniques.push(KeyDef { name: "scoping_planning_id_key".into(), ..scoping.primary_key.clone().unwrap() });
    scoping.uniques[0].columns = vec!["planning_id".into()];
    let marks = table("marks", "id bigint!, scoping_id bigint", &[("scoping_id", "scoping", "attribute_id")]);
    catalog(vec![table("planning", "id bigint!, name text", &[]), scoping, marks])
}

fn taking(catalog: &mut Catalog) -> Rules {
    catalog.tables.retain(|table| &*table.name.name != "marks");
    let mut rules = rekey("uuid-v5");
    let taken = r#"{ "drop": "attribute_id" }, { "rename": "planning_id", "to": "id" }"#;
    rules.table = steps("scoping", taken).table;
    rules
}

#[test]
fn a_table_takes_the_key_of_the_row_it_refers_to_and_the_mapping_knows_its_own_old_one() {
    let mut catalog = beside();
    let rules = taking(&mut catalog);
    let plan = plan(&catalog, &rules, &options(Dialect::Postgres)).unwrap();
    let scoping = plan.tables().iter().find(|table| &*table.schema.name.name == "scoping").unwrap();
    let key = scoping.def.primary_key.as_ref().unwrap();
    assert_eq!((key.name.as_str(), key.columns.as_slice()), ("scoping_pkey", &["id".to_owned()][..]));
    assert_eq!(scoping.def.uniques, [], "it is unique as the key that it is now");
    assert_eq!(scoping.def.foreign_keys[0].columns, ["id"]);

    let of_planning = run(&catalog, &plan, "planning", RowOp::Insert, None, Some(&["5", "n"]));
    let id = of_planning[0].rsplit(' ').next().unwrap().trim_end_matches(']').to_owned();
    let mapped = format!("insert uuid_migration_mapping [] [public.scoping 9 {id}]");
    let made = run(&catalog, &plan, "scoping", RowOp::Insert, None, Some(&["9", "5", "why"]));
    assert_eq!(made, [mapped.clone(), format!("insert scoping [] [{id} why]")]);
    let same = run(&catalog, &plan, "scoping", RowOp::Update, Some(&["-", "5", "-"]), Some(&["9", "5", "so"]));
    assert_eq!(same, [mapped, format!("update scoping [{id} -] [{id} so]")]);
    let gone = run(&catalog, &plan, "scoping", RowOp::Delete, Some(&["-", "5", "-"]), None);
    assert_eq!(gone, [format!("delete scoping [{id} -] []")]);
    // The mapping would go on saying the former key.
    let moved = run(&catalog, &plan, "scoping", RowOp::Update, Some(&["-", "5", "-"]), Some(&["9", "6", "so"]));
    assert!(moved[0].starts_with("rejected public.scoping: it takes the key of another row"), "{moved:?}");
}

#[test]
fn a_reference_to_a_key_that_is_dropped_is_refused() {
    let catalog = beside();
    let rules = taking(&mut beside());
    let refused = plan(&catalog, &rules, &options(Dialect::Postgres)).unwrap_err().to_string();
    assert!(
        refused.contains("public.marks.scoping_id refers to public.scoping by columns that a step drops"),
        "{refused}"
    );
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
fn with_dual_records_the_source_s_own_row_stands_before_the_new_one_under_both_keys() {
    let catalog = shop();
    let options = PlanOptions { write: WriteKind::DualRecords, records: true, ..options(Dialect::Postgres) };
    let mut wanted = rekey("uuid-v5");
    wanted.table = rules(r#"{"table": [{"from": "users", "steps": [{"mask": "email", "with": "null"}]}]}"#).table;
    let plan = plan(&catalog, &wanted, &options).unwrap();
    let users = plan.tables().iter().find(|table| &*table.schema.name.name == "users").unwrap();
    assert_eq!(users.write, Writing::Dual { second: 4 });
    let keys: Vec<&str> =
        users.schema.key_columns().into_iter().map(|index| &*users.schema.columns[index].name).collect();
    assert_eq!(keys, ["v1.id", "v2.id"]);
    let (one, two) = (vector("uuid-v5", "public.users", 1), vector("uuid-v5", "public.users", 42));
    // A step changes the new version alone.
    let came = run(&catalog, &plan, "users", RowOp::Insert, None, Some(&["1", "a@b", "~", "~"]));
    assert_eq!(came[1], format!("insert users [] [1 a@b ~ ~ {one} ~ ~ ~]"));
    // What a row was is told as far as the source has sent it; of the new version its key.
    let before: &[&str] = &["1", "a@b", "~", "~"];
    let moved = run(&catalog, &plan, "users", RowOp::Update, Some(before), Some(&["42", "a@b", "~", "="]));
    assert_eq!(moved[1], format!("update users [1 a@b ~ ~ {one} - - -] [42 a@b ~ ~ {two} ~ ~ ~]"));
    let gone = run(&catalog, &plan, "users", RowOp::Delete, Some(&["1", "-", "-", "-"]), None);
    assert_eq!(gone, [format!("delete users [1 - - - {one} - - -] []")]);
}
