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

const KEYED: &str = r#"{"extract": "doc", "path": "$.v", "to": "v"},
    {"canonical_key": "ck", "of": [{"column": "v", "normalise": ["email"]}, "email"], "version": 2, "normalise": ["trim"]},
    {"constant": "v2", "to": "version", "type": "text"}, {"pack": "version", "into": "doc"},
    {"pack": "ck", "into": "doc", "path": "$.key"}, {"drop": "v"}"#;

#[test]
fn columns_are_packed_into_a_document_and_a_document_that_was_not_sent_stays_so() {
    let catalog = shop();
    let plan = plan(&catalog, &steps("users", KEYED), &options(Dialect::Postgres)).unwrap();
    let document = r#"{"n": 1.50, "v": " A@B.c ", "long name": [1]}"#;
    let made = run(&catalog, &plan, "users", RowOp::Insert, None, Some(&["1", " x ", "~", document]));
    // printf 'key:v2;t5:a@b.c,t1:x,' | sha256sum
    let key = "sha256:dc926517cc826931599f28b7c0c4986e4e2d2b04724b0158494c821e0a20f192";
    let wanted = format!(r#"{{"n": 1.50, "v": " A@B.c ", "key": "{key}", "version": "v2", "long name": [1]}}"#);
    assert_eq!(made, [format!("insert users [] [1  x  ~ {wanted}]")]);
    let update = run(&catalog, &plan, "users", RowOp::Update, None, Some(&["1", "y", "~", "="]));
    // The key hangs on the e-mail as well, which may have changed.
    assert_eq!(update, [format!("rejected public.users: {}", crate::program::NOT_SENT)]);
    let nothing = run(&catalog, &plan, "users", RowOp::Insert, None, Some(&["1", "x", "~", "[1]"]));
    assert_eq!(nothing, ["rejected public.users: the document that a column is packed into is no object"]);
}

#[test]
fn what_is_the_same_in_every_row_is_no_reason_to_ask_for_a_document_that_did_not_change() {
    let catalog = shop();
    let packed = r#"{"constant": "v2", "to": "version", "type": "text"}, {"pack": "version", "into": "doc"},
        {"pack": "boss", "into": "doc", "path": "$.boss"}"#;
    let only_constant = r#"{"constant": 2, "to": "version", "type": "integer"}, {"pack": "version", "into": "doc"}"#;
    let plan_of = |text: &str| plan(&catalog, &steps("users", text), &options(Dialect::Postgres)).unwrap();
    let constant = plan_of(only_constant);
    let update = |plan: &Plan, row: &[&str]| run(&catalog, plan, "users", RowOp::Update, None, Some(row));
    assert_eq!(update(&constant, &["1", "y", "~", "="]), ["update users [] [1 y ~ =]"]);
    assert_eq!(update(&constant, &["1", "y", "~", "~"]), [r#"update users [] [1 y ~ {"version": 2}]"#]);
    let both = plan_of(packed);
    assert_eq!(update(&both, &["1", "y", "7", "{}"]), [r#"update users [] [1 y {"boss": 7, "version": "v2"}]"#]);
    assert_eq!(update(&both, &["1", "y", "~", r#"{"boss": 1}"#]), [r#"update users [] [1 y {"version": "v2"}]"#]);
    assert_eq!(update(&both, &["1", "y", "7", "="]), [format!("rejected public.users: {}", crate::program::NOT_SENT)]);
}

#[test]
fn what_has_no_one_form_in_a_document_is_not_packed() {
    let catalog = catalog(vec![table("t", "id integer!, at timestamptz, doc json, docb jsonb", &[])]);
    for (step, word) in [
        (r#"{"pack": "at", "into": "docb"}"#, "cast it to text first"),
        (r#"{"pack": "id", "into": "doc"}"#, "a column is packed into jsonb"),
        (r#"{"pack": "id", "into": "docb", "path": "$.a.b"}"#, "write $.name"),
        (r#"{"pack": "docb", "into": "docb"}"#, "into itself"),
    ] {
        let refused = plan(&catalog, &steps("t", step), &options(Dialect::Postgres)).unwrap_err().to_string();
        assert!(refused.contains(word), "{refused}");
    }
}
