//! Whole verifications of small tables in memory.

use super::*;
use crossfade_connector::RowPage;
use crossfade_event::{
    Cell, Change, Column, ColumnType, Format, Identity, Key, Logical, Op, Row, SchemaVersion, TableId,
    catalog::{Catalog, ColumnDef, Dialect, KeyDef, TableDef},
};
use crossfade_transform::{PlanOptions, Rules, plan};

/// A database with one table. What it holds can change when single rows are first asked for: after both sides were read
/// as a whole, before the suspects are judged.
#[derive(Default)]
struct Memory {
    rows: Vec<Row>,
    later: Option<Vec<Row>>,
    /// What the first question for single rows is answered with, and no other.
    passing: Option<Vec<Row>>,
    /// How often single rows were asked for, where each time they are others.
    restless: Option<u32>,
    scanned: RowPage,
    asked_for: Vec<TableName>,
}

impl Memory {
    fn of(rows: &[(&str, &str)]) -> Self {
        Self { rows: rows_of(rows), ..Self::default() }
    }

    fn then(self, rows: &[(&str, &str)]) -> Self {
        Self { later: Some(rows_of(rows)), ..self }
    }

    fn for_a_moment(self, rows: &[(&str, &str)]) -> Self {
        Self { passing: Some(rows_of(rows)), ..self }
    }
}

fn rows_of(rows: &[(&str, &str)]) -> Vec<Row> {
    let row = |(id, note): &(&str, &str)| [id, note].map(|text| Cell::Bytes(text.as_bytes())).into_iter().collect();
    rows.iter().map(row).collect()
}

impl Inspect for Memory {
    async fn catalog(&mut self, _patterns: &[String]) -> Result<Catalog, Failure> {
        Ok(catalog())
    }

    async fn scan(&mut self, schema: &TableSchema) -> Result<Option<Position>, Failure> {
        self.asked_for.push(schema.name.clone());
        self.scanned = self.rows.clone();
        Ok(None)
    }

    async fn scan_next(&mut self) -> Result<RowPage, Failure> {
        Ok(std::mem::take(&mut self.scanned))
    }

    async fn fetch(&mut self, schema: &TableSchema, keys: &[Key]) -> Result<(Vec<Row>, Option<Position>), Failure> {
        let passing = self.passing.take();
        if let Some(times) = &mut self.restless {
            *times += 1;
            self.rows = rows_of(&[("c", &times.to_string())]);
        }
        if let Some(later) = self.later.take() {
            self.rows = later;
        }
        let is_wanted = |row: &&Row| schema.key_of(row).is_some_and(|key| keys.contains(&key));
        Ok((passing.as_ref().unwrap_or(&self.rows).iter().filter(is_wanted).cloned().collect(), None))
    }

    async fn barrier(&mut self) -> Result<Option<Position>, Failure> {
        Ok(None)
    }

    async fn count(&mut self, _table: &TableName) -> Result<u64, Failure> {
        Ok(self.rows.len() as u64)
    }
}

struct Nowhere;

impl SinkPosition for Nowhere {
    async fn position(&mut self) -> Result<Option<Position>, Failure> {
        Ok(None)
    }
}

fn column(name: &str, key: Option<u16>, native_id: u32) -> ColumnDef {
    let type_ = ColumnType { name: "text".into(), native_id: 25, logical: Logical::Text, format: Format::PgBinary };
    let column = Column { name: name.into(), type_, key, nullable: false, native_id, default: None };
    ColumnDef::plain(column)
}

fn catalog() -> Catalog {
    let key = KeyDef::plain("parts_pkey", vec!["id".to_owned()]);
    let columns = vec![column("id", Some(0), 1), column("note", None, 2)];
    let name = TableName::new("public", "parts");
    let table = TableDef { native_id: 7, ..TableDef::plain(name, Identity::Key, columns, Some(key)) };
    let (types, sequences, extensions) = (Vec::new(), Vec::new(), Vec::new());
    Catalog { dialect: Dialect::Postgres, tables: vec![table], types, sequences, extensions }
}

/// The rule makes one key of `a` and `b`.
fn planned() -> crossfade_transform::Plan {
    let rules: Rules = serde_json::from_value(serde_json::json!({
        "table": [{ "from": "public.parts", "steps": [{ "map_values": "id", "with": { "a": "k", "b": "k", "c": "c" } }] }]
    }))
    .unwrap();
    plan(&catalog(), &rules, &PlanOptions::default()).unwrap()
}

/// The source's table, which has this name now.
fn subject<'a>(plan: &'a crossfade_transform::Plan, name: &str) -> Subject<'a> {
    let (planned, now) = (TableName::new("public", "parts"), TableName::new("public", name));
    let schema = TableSchema {
        id: TableId(1),
        version: SchemaVersion(1),
        name: now.clone(),
        columns: catalog().tables[0].columns.iter().map(|def| def.column.clone()).collect(),
        identity: Identity::Key,
        native_id: 7,
    };
    Subject { plan, source_tables: vec![Arc::new(schema)], renamed: BTreeMap::from([(now, planned)]) }
}

fn options() -> Options {
    Options { patience: Duration::from_secs(5), ..Options::default() }
}

/// Compares. The source's table has this name now.
async fn compared(source: &mut Memory, target: &mut Memory, name: &str) -> Report {
    let plan = planned();
    verify(&subject(&plan, name), source, target, &mut Nowhere, &options()).await.unwrap()
}

#[tokio::test]
async fn two_source_rows_on_one_target_key_are_a_difference_whichever_the_target_keeps() {
    for kept in ["of a", "of b", "the same"] {
        let (of_a, of_b) = if kept == "the same" { (kept, kept) } else { ("of a", "of b") };
        for order in [[("a", of_a), ("b", of_b), ("c", "c")], [("b", of_b), ("c", "c"), ("a", of_a)]] {
            let (mut source, mut target) = (Memory::of(&order), Memory::of(&[("k", kept), ("c", "c")]));
            let report = compared(&mut source, &mut target, "parts").await;
            assert_eq!(report.differences, 1, "kept {kept}: {report:?}");
            assert_eq!((report.tables[0].expected_rows, report.tables[0].target_rows), (3, 2));
            assert_eq!(report.tables[0].samples[0].kind, DifferenceKind::Missing);
        }
    }
}

#[tokio::test]
async fn a_row_that_takes_the_place_of_the_one_that_was_read_is_no_difference() {
    let mut source = Memory::of(&[("a", "one")]).then(&[("b", "two")]);
    let mut target = Memory::of(&[]).then(&[("k", "two")]);
    let report = compared(&mut source, &mut target, "parts").await;
    assert_eq!(report.differences, 0, "{report:?}");
    // But without one, what the target has is too much.
    let mut source = Memory::of(&[("a", "one")]).then(&[]);
    let mut target = Memory::of(&[]).then(&[("k", "two")]);
    let report = compared(&mut source, &mut target, "parts").await;
    assert_eq!(report.tables[0].samples[0].kind, DifferenceKind::Extra, "{report:?}");
}

#[tokio::test]
async fn what_is_left_of_a_row_that_went_while_it_was_looked_at_is_no_difference_where_it_may_stay() {
    // As the mapping keeps an entry whose row was deleted after it was suspected and before it was judged.
    for (may_have_more, differences) in [(true, 0), (false, 1)] {
        let (mut source, mut target) = (Memory::of(&[]), Memory::of(&[("c", "one")]));
        let plan = planned();
        let (subject, views) = (subject(&plan, "parts"), side::LiveViews::default());
        let mut expected = Expected::of(&subject, &views).unwrap();
        let row = rows_of(&[("c", "one")]).remove(0);
        let (table, side) = expected.targets.iter_mut().next().unwrap();
        side.may_have_more = may_have_more;
        let key = side.schema.key_of(&row).unwrap();
        let origin = Some((subject.source_tables[0].clone(), key.clone()));
        let suspect = drill::Suspect { origin, expected: vec![row], found: Vec::new() };
        let suspects = drill::Suspects { by_key: BTreeMap::from([((*table, key), suspect)]), position: None };
        let judged =
            judge::judge(&expected, &mut source, &mut target, &mut Nowhere, suspects, &options()).await.unwrap();
        assert_eq!((judged.real.len(), judged.unjudged), (differences, 0), "{judged:?}");
    }
}

#[tokio::test]
async fn a_row_that_changed_and_changed_back_while_it_was_looked_at_is_no_difference() {
    // The source said `one` before and after; in between it was something else, and so the target is for a moment.
    let mut source = Memory::of(&[("c", "one")]);
    let mut target = Memory::of(&[("c", "behind")]).for_a_moment(&[("c", "between")]).then(&[("c", "one")]);
    let report = compared(&mut source, &mut target, "parts").await;
    assert_eq!(report.differences, 0, "{report:?}");
    // One that stays is told.
    let mut target = Memory::of(&[("c", "behind")]).for_a_moment(&[("c", "between")]).then(&[("c", "another")]);
    let report = compared(&mut source, &mut target, "parts").await;
    assert_eq!(report.differences, 1, "{report:?}");
}

#[tokio::test]
async fn of_a_row_that_changes_whenever_it_is_looked_at_nothing_is_said() {
    let mut source = Memory { restless: Some(0), ..Memory::of(&[("c", "one")]) };
    let mut target = Memory::of(&[("c", "behind")]);
    let (plan, options) = (planned(), Options { patience: Duration::ZERO, ..options() });
    let report = verify(&subject(&plan, "parts"), &mut source, &mut target, &mut Nowhere, &options).await.unwrap();
    assert_eq!((report.differences, report.unjudged_rows), (0, 1), "{report:?}");
    assert!(source.restless > Some(40), "it was given up after {:?} looks", source.restless);
}

#[tokio::test]
async fn a_renamed_source_table_is_read_under_its_new_name_and_held_against_the_planned_one() {
    let (mut source, mut target) = (Memory::of(&[("a", "one")]), Memory::of(&[("k", "one")]));
    let report = compared(&mut source, &mut target, "pieces").await;
    assert_eq!((report.differences, report.tables[0].expected_rows), (0, 1), "{report:?}");
    assert_eq!(report.tables[0].table, "public.parts");
    assert!(source.asked_for.iter().all(|name| &*name.name == "pieces"), "{:?}", source.asked_for);
    assert!(target.asked_for.iter().all(|name| &*name.name == "parts"), "{:?}", target.asked_for);
}

/// Compares the rows that these changes of the log touch.
async fn followed(source: &mut Memory, target: &mut Memory, changes: &[Change], settled: bool) -> Changed {
    let plan = planned();
    let (subject, views) = (subject(&plan, "parts"), LiveViews::default());
    let expected = Expected::of(&subject, &views).unwrap();
    let (schema, mut keys) = (subject.source_tables[0].clone(), Keys::default());
    for change in changes {
        keys.note(&subject, &expected, &schema, change).unwrap();
    }
    keys.compare(&expected, source, target, &mut Nowhere, settled, &options()).await.unwrap()
}

fn written(id: &str) -> Change {
    let row = rows_of(&[(id, "as it was")]).remove(0);
    Change { table: TableId(1), schema: SchemaVersion(1), op: Op::Update, old: None, new: Some(row) }
}

fn deleted(id: &str) -> Change {
    let row = rows_of(&[(id, "as it was")]).remove(0);
    Change { table: TableId(1), schema: SchemaVersion(1), op: Op::Delete, old: Some(row), new: None }
}

#[tokio::test]
async fn of_what_has_changed_each_row_is_compared_as_it_is_now() {
    for settled in [false, true] {
        let mut source = Memory::of(&[("c", "two"), ("a", "one")]);
        let mut target = Memory::of(&[("c", "two"), ("k", "one"), ("d", "nobody asks")]);
        let changes = [written("c"), written("c"), written("a"), deleted("gone")];
        let told = followed(&mut source, &mut target, &changes, settled).await;
        assert_eq!((told.rows, told.differences.len()), (3, 0), "{told:?}");
        // A row that the stream should have written otherwise, one that is missing, and one that should have gone.
        let mut target = Memory::of(&[("c", "another"), ("gone", "still there")]);
        let told = followed(&mut source, &mut target, &changes, settled).await;
        let mut kinds: Vec<String> = told.differences.iter().map(|(_, one)| format!("{:?}", one.kind)).collect();
        kinds.sort_unstable();
        assert_eq!(kinds, ["Different", "Extra", "Missing"], "{told:?}");
    }
}

#[tokio::test]
async fn a_row_that_has_changed_since_is_left_to_its_newer_change_until_nobody_writes() {
    let newer = || Memory::of(&[("c", "two")]).for_a_moment(&[("c", "one")]);
    let behind = || Memory::of(&[("c", "behind")]);
    let told = followed(&mut newer(), &mut behind(), &[written("c")], false).await;
    assert_eq!(told.differences.len(), 0, "{told:?}");
    let told = followed(&mut newer(), &mut behind(), &[written("c")], true).await;
    assert_eq!(told.differences.len(), 1, "{told:?}");
}

#[tokio::test]
async fn however_few_rows_are_held_at_once_every_difference_is_found() {
    let names: Vec<String> = (0..40).map(|number| format!("row {number}")).collect();
    let rows = |note: &'static str| names.iter().map(|name| (name.as_str(), note)).collect::<Vec<_>>();
    let plan = planned();
    for (rows_at_once, differences_max) in [(1, u64::MAX), (7, u64::MAX), (1_000, u64::MAX), (1, 5)] {
        let (mut source, mut target) = (Memory::of(&rows("right")), Memory::of(&rows("wrong")));
        let options = Options { rows_at_once, differences_max, ..options() };
        let report = verify(&subject(&plan, "parts"), &mut source, &mut target, &mut Nowhere, &options).await.unwrap();
        match differences_max {
            5 => assert!(report.differences >= 5 && report.differences < 10 && report.open_buckets > 20, "{report:?}"),
            _ => assert_eq!((report.differences, report.open_buckets), (40, 0), "{rows_at_once}: {report:?}"),
        }
    }
}
