//! What steps make of the values of a row.

use super::*;

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
