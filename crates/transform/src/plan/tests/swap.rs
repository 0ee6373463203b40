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

#[test]
fn a_dropped_key_is_taken_over_by_the_one_other_unique_column_that_becomes_a_new_key() {
    let mut catalog = catalog_with_sequences();
    let parts = catalog.tables.iter_mut().find(|table| &*table.name.name == "parts").unwrap();
    for def in parts.columns.iter_mut().filter(|def| &*def.column.name == "order_id") {
        def.column.nullable = false;
    }
    parts.uniques.push(crossfade_event::catalog::KeyDef::plain("parts_order_id_key", vec!["order_id".to_owned()]));
    let rules = |step: &str| {
        let mut rules = rekey("uuid-v5");
        rules.table = super::rules(&format!(
            r#"{{"table": [{{"from": "users", "shadow": {{"id": "uuid_id", "boss": "boss_uuid"}}}},
                {{"from": "orders", "shadow": {{"id": "order_uuid", "user_id": "user_uuid"}}}},
                {{"from": "lines", "shadow": {{"order_id": "order_uuid"}}}},
                {{"from": "parts", "shadow": {{"order_id": "order_uuid"}}, "steps": [{step}]}}]}}"#
        ))
        .table;
        rules
    };
    let swap = super::swap(&catalog, &rules(r#"{"drop": "id"}"#), &beside()).unwrap();
    let parts = swap.tables.iter().find(|table| &*table.table.name == "parts").unwrap();
    assert_eq!(
        (parts.key.as_slice(), parts.dropped.as_slice()),
        (["order_id".to_owned()].as_slice(), ["id".to_owned()].as_slice())
    );
    assert_eq!((parts.now_called("id").as_str(), parts.now_called("line_no").as_str()), ("legacy_id", "line_no"));
    assert_eq!(swap.refusals, []);
    // Without it, or with nothing that fills the dropped column, it is refused by name.
    let mut none = catalog.clone();
    let parts = none.tables.iter_mut().find(|table| &*table.name.name == "parts").unwrap();
    parts.uniques.clear();
    for def in parts.columns.iter_mut().filter(|def| &*def.column.name == "id") {
        def.default = None;
    }
    let refused = super::swap(&none, &rules(r#"{"drop": "id"}"#), &beside()).unwrap().refusals;
    assert!(refused.iter().any(|one| one.why.contains("primary key dropped")), "{refused:?}");
    assert!(refused.iter().any(|one| one.why.contains("nothing in it")), "{refused:?}");
}

#[test]
fn a_surrogate_and_a_reference_by_it_are_new_columns_that_take_no_null() {
    let mut rules = with(USERS);
    for rule in rules.table.iter_mut().filter(|rule| rule.from == "lines") {
        rule.surrogate = Some("id".to_owned());
    }
    let mut catalog = catalog_with_sequences();
    for def in catalog.tables.iter_mut().flat_map(|table| &mut table.columns) {
        def.column.nullable &= !["line_no", "order_id"].contains(&&*def.column.name);
    }
    let swap = swap(&catalog, &rules, &beside()).unwrap();
    let of = |name: &str| swap.tables.iter().find(|table| &*table.table.name == name).unwrap();
    assert_eq!(of("lines").surrogate().unwrap().name, "id");
    assert_eq!(of("parts").surrogate(), None);
    let added = of("parts").added.iter().find(|added| added.name == "lines_id").unwrap();
    let refers = added.refers.as_ref().unwrap();
    assert!(added.not_null && !added.uuid, "{added:?}");
    assert_eq!((refers.table.name.as_ref(), refers.key.as_str()), ("lines", "id"));
}
