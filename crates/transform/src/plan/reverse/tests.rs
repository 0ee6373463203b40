use crate::{
    Back, BackHow, Bound, Forward, Output, Plan, PlanError, PlanOptions, back, plan,
    plan::tests::{Kept, catalog, options, rekey, row, rules, schema_of, sqlite, steps, table, texts},
};
use crossfade_event::{
    Change, Op, Row, SchemaVersion, TableId, TableName, TableSchema,
    catalog::{Catalog, Dialect, IdentityColumn},
};
use std::{collections::HashMap, sync::Arc};

/// The old side's tables with identity columns as keys, the migration there, and its new side.
struct There {
    old: Catalog,
    there: Plan,
    new: Catalog,
    forward: Arc<Forward>,
}

fn there(mut old: Catalog, rules: crate::Rules) -> There {
    for def in old.tables.iter_mut().flat_map(|table| &mut table.columns) {
        if def.column.key.is_some() {
            def.identity = Some(IdentityColumn::ByDefault);
            def.sequence = Some(TableName::new("public", "keys"));
        }
    }
    let options = options(Dialect::Postgres);
    let there = plan(&old, &rules, &options).unwrap();
    let tables = there.tables().iter().filter(|table| table.source.is_some()).map(|table| table.def.clone()).collect();
    let new = Catalog { tables, ..old.clone() };
    let forward = Arc::new(Forward { catalog: old.clone(), rules, options });
    There { old, there, new, forward }
}

impl There {
    fn back(&self) -> Result<Plan, PlanError> {
        plan(
            &self.new,
            &crate::Rules::default(),
            &PlanOptions { reverse: Some(self.forward.clone()), ..PlanOptions::default() },
        )
    }

    fn told(&self) -> Back {
        back(&self.forward).unwrap()
    }

    fn refusal(&self) -> String {
        let refused = self.back().unwrap_err().to_string();
        assert!(!self.told().refusals.is_empty(), "told before, too");
        refused
    }
}

fn apply(bound: &Bound, change: Change) -> Vec<Change> {
    let mut out = Vec::new();
    bound.apply(&change, &Kept(HashMap::new()), &mut out);
    let change = |output| match output {
        Output::Change(change) => change,
        other => panic!("{other:?}"),
    };
    out.into_iter().map(change).collect()
}

fn change(op: Op, old: Option<Row>, new: Option<Row>) -> Change {
    Change { table: TableId(7), schema: SchemaVersion(3), op, old, new }
}

/// An update on the new side, from and to these texts; what the old side gets, as texts of its written columns.
fn updated(way: &There, old_name: &str, new_name: &str, from: &[&str], to: &[&str]) -> Vec<String> {
    let plan = way.back().unwrap();
    let schema = schema_of(&way.new, new_name);
    let bound = plan.bind(&schema).unwrap();
    let made = apply(&bound, change(Op::Update, Some(row(&schema, from)), Some(row(&schema, to))));
    let target = target(&plan, old_name);
    texts(&target, made[0].new.as_ref().unwrap())
}

fn target(plan: &Plan, name: &str) -> Arc<TableSchema> {
    plan.tables().iter().find(|table| table.schema.name.to_string() == name).unwrap().schema.clone()
}

fn how(back: &Back, column: &str) -> BackHow {
    back.tables[0].columns.iter().find(|one| one.column == column).unwrap().how
}

#[test]
fn what_is_only_called_otherwise_comes_back_byte_for_byte() {
    let old = catalog(vec![table("users", "id integer!, email text, born date", &[])]);
    let way = there(
        old,
        rules(r#"{"table": [{"from": "users", "to": "people", "steps": [{"rename": "email", "to": "mail"}]}]}"#),
    );
    let there = way.there.bind(&schema_of(&way.old, "public.users")).unwrap();
    let schema = schema_of(&way.old, "public.users");
    let first = row(&schema, &["7", "a@b", "2020-02-29"]);
    let moved = apply(&there, change(Op::Insert, None, Some(first.clone())));
    let plan = way.back().unwrap();
    let bound = plan.bind(&schema_of(&way.new, "app_v2.people")).unwrap();
    let again = apply(&bound, change(Op::Insert, None, moved[0].new.clone()));
    assert_eq!(again[0].new, Some(first), "every byte of it");
    assert_eq!(again[0].table, target(&plan, "public.users").id);
    assert!(bound.passthrough().is_some(), "nothing is decoded");
    assert!(!way.told().tables[0].needs_old_rows);
}

#[test]
fn what_cannot_be_made_back_exactly_is_written_only_where_it_has_changed() {
    let old = catalog(vec![table("t", "id integer!, amount numeric, name text, kind text, code text", &[])]);
    let way = there(
        old,
        steps(
            "t",
            r#"{"cast": "amount", "to": "numeric(5,1)"}, {"split": "name", "by": " ", "into": ["first", "last"]},
               {"map_values": "kind", "with": {"a": "x", "b": "y"}}, {"null_if": "code", "any_of": ["-"]}"#,
        ),
    );
    let names: Vec<String> = way.new.tables[0].carried().map(|def| def.column.name.to_string()).collect();
    assert_eq!(names, ["id", "amount", "kind", "code", "first", "last"]);
    let before = ["1", "1.5", "x", "~", "Ada", "Lovelace"];
    let same = updated(&way, "public.t", "app_v2.t", &before, &before);
    assert_eq!(same, ["1", "=", "=", "=", "="], "nobody touched them");
    let after = ["1", "2.5", "y", "c", "Ada", "King"];
    let changed = updated(&way, "public.t", "app_v2.t", &before, &after);
    assert_eq!(changed, ["1", "2.5", "Ada King", "b", "c"]);
    let told = way.told();
    assert!(told.tables[0].needs_old_rows);
    for column in ["amount", "name", "kind", "code"] {
        assert_eq!(how(&told, column), BackHow::WhereChanged, "{column}");
    }

    // Without the row as it was nobody can tell, and nothing is guessed.
    let plan = way.back().unwrap();
    let schema = schema_of(&way.new, "app_v2.t");
    let mut out = Vec::new();
    let blind = change(Op::Update, None, Some(row(&schema, &after)));
    plan.bind(&schema).unwrap().apply(&blind, &Kept(HashMap::new()), &mut out);
    assert!(matches!(&out[0], Output::Rejected { reason, .. } if reason.contains("REPLICA IDENTITY FULL")), "{out:?}");
}

#[test]
fn values_that_change_places_come_back_exactly() {
    let old = catalog(vec![table("t", "id integer!, kind text, size bigint", &[])]);
    let steps =
        steps("t", r#"{"map_values": "kind", "with": {"a": "b", "b": "a"}}, {"cast": "size", "to": "numeric"}"#);
    let way = there(old, steps);
    assert_eq!(how(&way.told(), "kind"), BackHow::Exact);
    assert_eq!(how(&way.told(), "size"), BackHow::Exact, "every integer is a number");
    let back = updated(&way, "public.t", "app_v2.t", &["1", "a", "5"], &["1", "b", "6"]);
    assert_eq!(back, ["1", "a", "6"]);
}

#[test]
fn what_cannot_be_made_back_is_left_alone() {
    let mut old = catalog(vec![table("t", "id integer!, secret text, old text, state text, note text", &[])]);
    old.tables[0].columns[2].default = Some("'none'::text".into());
    let way = there(
        old,
        steps(
            "t",
            r#"{"mask": "secret", "with": "stars"}, {"drop": "old"}, {"constant": "on", "to": "state"},
               {"constant": "v2", "to": "version", "type": "text"}"#,
        ),
    );
    let told = way.told();
    for column in ["secret", "old", "state"] {
        assert_eq!(how(&told, column), BackHow::Kept, "{column}");
    }
    assert!(told.tables[0].columns[2].text.ends_with("gets its default"), "{:?}", told.tables[0].columns[2]);
    assert!(told.tables[0].left.contains(&"version".to_owned()));
    assert!(!told.tables[0].needs_old_rows);
    let back = updated(&way, "public.t", "app_v2.t", &["1", "***", "on", "n", "v2"], &["1", "***", "off", "m", "v3"]);
    assert_eq!(back, ["1", "m"], "the key, and the one column that came over as it was");
}

#[test]
fn new_keys_come_back_as_they_are_for_the_sink_to_find_the_old_ones() {
    let old = catalog(vec![
        table("users", "id integer!, boss integer", &[("boss", "users", "id")]),
        table("orders", "id bigint!, user_id integer, note text", &[("user_id", "users", "id")]),
    ]);
    let way = there(old, rekey("uuid-v5"));
    let plan = way.back().unwrap();
    let schema = schema_of(&way.new, "app_v2.orders");
    let (one, two) = ("00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002");
    let made = apply(&plan.bind(&schema).unwrap(), change(Op::Insert, None, Some(row(&schema, &[one, two, "n"]))));
    let target = target(&plan, "public.orders");
    assert_eq!(&*target.columns[0].type_.name, "bigint", "what the old side's table has");
    let cells: Vec<_> = made[0].new.as_ref().unwrap().cells().collect();
    assert!(matches!(cells[1], crossfade_event::Cell::Bytes(bytes) if bytes.len() == 16), "the new key's own bytes");
    let told = way.told();
    let keys: Vec<(String, String)> =
        told.tables[0].keys.iter().map(|key| (key.column.clone(), key.of.to_string())).collect();
    assert_eq!(told.tables[0].to.to_string(), "public.orders");
    assert_eq!(keys, [("id".into(), "public.orders".into()), ("user_id".into(), "public.users".into())]);
}

#[test]
fn what_has_no_way_back_is_refused_by_name() {
    let users = || catalog(vec![table("users", "id integer!, email text, org text", &[])]);
    let dropped = steps("users", r#"{"drop": "email"}"#);
    let mut strict = users();
    strict.tables[0].columns[1].column.nullable = false;
    let said = there(strict.clone(), dropped.clone()).refusal();
    assert!(said.contains("public.users.email is not sent back, takes no NULL and has no default"), "{said}");
    strict.tables[0].columns[1].default = Some("''::text".into());
    assert!(there(strict, dropped).back().is_ok(), "a default fills it");

    let filtered = r#"{"filter": "org = 'acme'"}"#;
    let said = there(users(), steps("users", filtered)).refusal();
    assert!(said.contains("a filter, and its keys stay"), "{said}");

    let mut drawn = there(users(), rekey("uuid-v5"));
    assert!(drawn.back().is_ok());
    let mut forward = Forward::clone(&drawn.forward);
    forward.catalog.tables[0].columns[0].sequence = None;
    drawn.forward = Arc::new(forward);
    let said = drawn.refusal();
    assert!(said.contains("public.users.id is no integer with a sequence to draw from"), "{said}");

    let mut renamed = there(users(), crate::Rules::default());
    renamed.new.tables[0].columns.remove(1);
    let said = renamed.back().unwrap_err().to_string();
    assert!(said.contains("app_v2.users has no column \"email\" any more"), "{said}");
}

#[test]
fn what_was_packed_comes_out_of_the_document_again() {
    let old = catalog(vec![table("t", "id integer!, size integer, doc jsonb", &[])]);
    let packed = r#"{"constant": "v2", "to": "version", "type": "text"}, {"pack": "version", "into": "doc"},
        {"pack": "size", "into": "doc"}"#;
    let way = there(old, steps("t", packed));
    let before = ["1", r#"{"a": 1.50, "size": 7, "version": "v2"}"#];
    assert_eq!(updated(&way, "public.t", "app_v2.t", &before, &before), ["1", "=", "="], "nobody touched it");
    let after = ["1", r#"{"a": 2.50, "size": 8, "version": "v2"}"#];
    assert_eq!(updated(&way, "public.t", "app_v2.t", &before, &after), ["1", "8", r#"{"a": 2.50}"#]);
    assert_eq!((how(&way.told(), "size"), how(&way.told(), "doc")), (BackHow::WhereChanged, BackHow::WhereChanged));
}

/// The same between two SQLite files.
fn there_in_files(old: Catalog, rules: crate::Rules) -> There {
    let old = sqlite(old);
    let options = PlanOptions { schema: None, ..options(Dialect::Sqlite) };
    let there = plan(&old, &rules, &options).unwrap();
    let tables = there.tables().iter().filter(|table| table.source.is_some()).map(|table| table.def.clone()).collect();
    let new = Catalog { tables, ..old.clone() };
    let forward = Arc::new(Forward { catalog: old.clone(), rules, options });
    There { old, there, new, forward }
}

#[test]
fn between_two_files_a_rowid_needs_no_sequence_to_draw_from() {
    let keyed = |columns| catalog(vec![table("t", columns, &[])]);
    let way = there_in_files(keyed("id bigint!, name text"), rekey("uuid-v5"));
    let told = way.told();
    assert!(told.refusals.is_empty(), "{told:?}");
    assert_eq!((told.tables[0].keys[0].of_column.as_str(), how(&told, "id")), ("id", BackHow::OldKey));
    // A text is no key that becomes a new one: it comes back as it stands.
    let way = there_in_files(keyed("id text!, name text"), rekey("uuid-v5"));
    assert_eq!(how(&way.told(), "id"), BackHow::Exact);
}

#[test]
fn between_two_files_a_cast_is_undone_by_the_declared_type_and_what_is_taken_apart_is_refused_by_name() {
    let old = catalog(vec![table("t", "id bigint!, amount text, name text", &[])]);
    let way = there_in_files(old.clone(), steps("t", r#"{"cast": "amount", "to": "INTEGER"}"#));
    assert_eq!(how(&way.told(), "amount"), BackHow::WhereChanged);
    assert!(way.told().tables[0].needs_old_rows && way.back().is_ok());
    let way = there_in_files(old, steps("t", r#"{"split": "name", "by": " ", "into": ["first", "last"]}"#));
    assert!(way.refusal().contains("\"split\""), "{:?}", way.told());
}
