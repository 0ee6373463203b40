//! New columns that take the names of the old ones in one table.

use super::*;
use crossfade_event::swap::{Kept, SwapPair};

fn catalog_with_sequences() -> Catalog {
    let mut catalog = shop();
    for def in catalog.tables.iter_mut().flat_map(|table| &mut table.columns) {
        if &*def.column.name == "id" {
            def.default = Some("nextval('seq')".to_owned());
        }
    }
    catalog
}

fn beside() -> PlanOptions {
    PlanOptions { schema: None, write: WriteKind::ShadowColumns, ..options(Dialect::Postgres) }
}

fn with(table: &str) -> Rules {
    let mut rules = rekey("uuid-v5");
    rules.table = super::rules(&format!(
        r#"{{"table": [{table}
            {{"from": "orders", "shadow": {{"id": "order_uuid", "user_id": "user_uuid"}}}},
            {{"from": "lines", "shadow": {{"order_id": "order_uuid"}}}},
            {{"from": "parts", "shadow": {{"id": "part_uuid", "order_id": "order_uuid"}}}}]}}"#
    ))
    .table;
    rules
}

const USERS: &str = r#"{"from": "users", "shadow": {"id": "uuid_id", "boss": "boss_uuid", "email": "email_v2"},
    "steps": [{"null_if": "email", "any_of": [""]}, {"rename": "doc", "to": "document"}]},"#;

fn swapped(rules: &Rules) -> Swap {
    swap(&catalog_with_sequences(), rules, &beside()).unwrap()
}

#[test]
fn each_old_column_has_its_new_one_and_a_way_to_be_kept() {
    let swap = swapped(&with(USERS));
    assert_eq!(swap.refusals, []);
    let users = swap.tables.iter().find(|table| &*table.table.name == "users").unwrap();
    let pair = |old: &str| users.pairs.iter().find(|pair| pair.old == old).unwrap().clone();
    let wanted = |old: &str, shadow: &str, name: &str, not_null: bool, kept: Kept| SwapPair {
        old: old.to_owned(),
        shadow: shadow.to_owned(),
        name: name.to_owned(),
        not_null,
        kept,
    };
    assert_eq!(pair("id"), wanted("id", "uuid_id", "id", true, Kept::Drawn { uuid: true }));
    let boss = Kept::Found { table: TableName::new("public", "users"), key: "id".to_owned() };
    assert_eq!(pair("boss"), wanted("boss", "boss_uuid", "boss", false, boss));
    assert_eq!(pair("email"), wanted("email", "email_v2", "email", false, Kept::Copied));
    assert_eq!(pair("doc"), wanted("doc", "document", "document", false, Kept::Copied));
    assert_eq!(users.key, ["id"]);
    assert_eq!(pair("doc").legacy(), "legacy_doc");
    let lines = swap.tables.iter().find(|table| &*table.table.name == "lines").unwrap();
    assert_eq!(lines.key, ["order_id", "line_no"]);
    let order = Kept::Found { table: TableName::new("public", "orders"), key: "id".to_owned() };
    assert_eq!(lines.pairs.first().unwrap().kept, order);
}

#[test]
fn what_could_not_be_kept_is_refused_by_name() {
    let why = |users: &str| {
        let swap = swapped(&with(users));
        let said = swap.refusals.iter().map(|one| format!("{} {:?} {}", one.table, one.column, one.why));
        said.collect::<Vec<_>>().join("; ")
    };
    let users = |step: &str| {
        format!(
            r#"{{"from": "users", "shadow": {{"id": "uuid_id", "boss": "boss_uuid", "email": "email_v2"}}, "steps": [{step}]}},"#
        )
    };
    assert!(why(&users(r#"{"mask": "email", "with": "hmac"}"#)).contains("from `mask`"));
    assert!(why(&users(r#"{"map_values": "email", "with": {"a": "b"}}"#)).contains("from `map_values`"));
    assert!(why(&users(r#"{"null_if": "email", "any_of": [""]}, {"filter": "email = 'x'"}"#)).contains("has a filter"));
    let mut without_default = catalog_with_sequences();
    for def in without_default.tables.iter_mut().flat_map(|table| &mut table.columns) {
        def.default = None;
    }
    let swap = super::swap(&without_default, &with(USERS), &beside()).unwrap();
    assert!(swap.refusals.iter().any(|one| one.why.contains("no old key") && one.column.as_deref() == Some("id")));
    let mut unreferenced = catalog_with_sequences();
    for table in unreferenced.tables.iter_mut().filter(|table| &*table.name.name == "orders") {
        table.foreign_keys.clear();
    }
    let mut rules = with(USERS);
    rules.rekey.as_mut().unwrap().references = [("public.orders.user_id".to_owned(), "public.users".to_owned())].into();
    let swap = super::swap(&unreferenced, &rules, &beside()).unwrap();
    assert!(swap.refusals.iter().any(|one| one.why.contains("without a foreign key")), "{:?}", swap.refusals);
}
