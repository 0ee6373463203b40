use super::*;
use crate::codec::types::Portability;
use crossfade_event::{Identity, Logical, TableId};

fn live(attnum: u32, name: &str, type_oid: u32, type_name: &str) -> LiveColumn {
    LiveColumn {
        attnum,
        name: name.into(),
        type_oid,
        type_modifier: -1,
        type_name: type_name.into(),
        nullable: attnum != 1,
        key: (attnum == 1).then_some(0),
        missing: None,
        filled: false,
    }
}

fn table(columns: Vec<LiveColumn>) -> LiveTable {
    LiveTable {
        oid: 7,
        name: TableName::new("app", "t"),
        columns,
        identity: Identity::Key,
        is_root: false,
        heap: Default::default(),
    }
}

fn types() -> HashMap<u32, TypeFacts> {
    let facts = |oid| TypeFacts { oid, logical: Logical::Opaque, portability: Portability::Binary };
    [20, 23, 25].into_iter().map(|oid| (oid, facts(oid))).collect()
}

fn sent(table: &LiveTable) -> Relation {
    let columns = table.columns.iter().map(|column| RelationColumn {
        name: column.name.to_string(),
        type_oid: column.type_oid,
        type_modifier: column.type_modifier,
        is_key: column.key.is_some(),
    });
    Relation { oid: 7, schema: "app".into(), name: "t".into(), identity: b'd', columns: columns.collect() }
}

fn before() -> (LiveTable, TableSchema) {
    let table = table(vec![live(1, "id", 23, "integer"), live(2, "note", 25, "text")]);
    let schema = table.schema(TableId(1), SchemaVersion(1), &types(), false);
    (table, schema)
}

fn followed(now: &LiveTable) -> Followed {
    follow(&before().1, &sent(now), Some(now), &types(), false).unwrap()
}

#[test]
fn the_same_shape_is_no_new_version() {
    assert!(matches!(followed(&before().0), Followed::Same));
}

#[test]
fn a_rename_keeps_the_columns_number() {
    let now = table(vec![live(1, "id", 23, "integer"), live(2, "remark", 25, "text")]);
    let Followed::Changed(next) = followed(&now) else { panic!("a change") };
    assert_eq!((next.version, &*next.columns[1].name, next.columns[1].native_id), (SchemaVersion(2), "remark", 2));
}

#[test]
fn an_added_column_brings_the_constant_that_old_rows_read() {
    let mut now = before().0;
    now.columns.push(LiveColumn { missing: Some("'x'::text".into()), filled: true, ..live(3, "more", 25, "text") });
    let Followed::Changed(next) = followed(&now) else { panic!("a change") };
    assert_eq!(next.columns[2].default.as_deref(), Some("'x'::text"));
    now.columns[2].missing = None;
    assert!(matches!(followed(&now), Followed::Rewritten(_, why) if why.contains("not constant")));
}

#[test]
fn later_versions_keep_the_constant_that_a_column_came_with() {
    let mut now = before().0;
    let constant = Some("'it''s'::character varying(9)".into());
    now.columns.push(LiveColumn { missing: constant, filled: true, ..live(3, "more", 25, "character varying(9)") });
    let Followed::Changed(first) = followed(&now) else { panic!("a change") };
    // Another column comes, this one is widened, and the catalog has forgotten what old rows read in it.
    now.columns[2] = live(3, "other", 25, "character varying(20)");
    now.columns.push(live(4, "later", 25, "text"));
    let Followed::Changed(next) = follow(&first, &sent(&now), Some(&now), &types(), false).unwrap() else {
        panic!("a change")
    };
    assert_eq!(next.columns[2].default.as_deref(), Some("'it''s'::character varying(20)"));
    assert_eq!(next.columns[3].default, None);
    now.columns[2].type_name = "integer".into();
    let told = follow(&next, &sent(&now), Some(&now), &types(), false).unwrap();
    assert!(matches!(told, Followed::Rewritten(next, _) if next.columns[2].default.is_none()));
}

#[test]
fn a_retyped_or_replaced_column_is_a_rewrite() {
    let retyped = table(vec![live(1, "id", 20, "bigint"), live(2, "note", 25, "text")]);
    assert!(matches!(followed(&retyped), Followed::Rewritten(_, why) if why.contains("retyped")));
    let replaced = table(vec![live(1, "id", 23, "integer"), live(3, "note", 25, "text")]);
    // Before or after? The stream says the same either way; the catalog is asked again later.
    assert!(matches!(followed(&replaced), Followed::Same));
    let told = compare(&before().1, &sent(&replaced), Some(&replaced), &types(), false).unwrap();
    assert!(matches!(told, Followed::Rewritten(_, why) if why.contains("added again")));
}

#[test]
fn a_catalog_that_is_ahead_is_noticed() {
    let (stream, schema) = before();
    let ahead = table(vec![live(1, "id", 23, "integer"), live(2, "remark", 25, "text")]);
    let same = follow(&schema, &sent(&stream), Some(&ahead), &types(), false).unwrap();
    assert!(matches!(same, Followed::Same));
    let between = table(vec![live(1, "id", 23, "integer"), live(2, "middle", 25, "text")]);
    let error = follow(&schema, &sent(&between), Some(&ahead), &types(), false).unwrap_err();
    assert!(error.to_string().contains("middle"), "{error}");
    // Two columns of one type exchanged their names since: by name each would get the other's values.
    let pair = |first: &str, second: &str| table(vec![live(1, first, 25, "text"), live(2, second, 25, "text")]);
    let schema = pair("a", "b").schema(TableId(1), SchemaVersion(1), &types(), false);
    let error = follow(&schema, &sent(&pair("b", "a")), Some(&pair("a", "b")), &types(), false).unwrap_err();
    assert!(error.to_string().contains("its columns were changed again"), "{error}");
}

#[test]
fn widening_rewrites_nothing() {
    let column = |name: &str| live(2, "c", 25, name).column(&types(), false);
    let widened = |from, to| is_widened(&column(from), &column(to));
    assert!(widened("character varying(10)", "character varying(20)"));
    assert!(widened("character varying(10)", "text"));
    assert!(widened("numeric(5,2)", "numeric(7,2)"));
    assert!(!widened("numeric(5,2)", "numeric(7,3)"));
    assert!(!widened("character varying(20)", "character varying(10)"));
    assert!(!widened("integer", "bigint"));
}
