//! Tables with rows of others: what is refused, saved, put back and left alone.

use super::{quarantine::with_quarantine, *};

fn words<F: SinkFixture>(fixture: &F) -> (String, String) {
    use crossfade_event::Logical;
    (fixture.type_of(Logical::Int64).name.to_string(), fixture.type_of(Logical::Text).name.to_string())
}

/// Somebody's table, with `mine` and `theirs`.
async fn make_foreign<F: SinkFixture>(fixture: &mut F) {
    let ((int, word), schema) = (words(fixture), fixture.schema());
    fixture
        .execute(&format!("CREATE TABLE {schema}.parent (id {int} PRIMARY KEY, name {word} NOT NULL, extra {word})"))
        .await;
    fixture
        .execute(&format!(
            "INSERT INTO {schema}.parent VALUES (1, 'old one', 'x'), (2, 'old two', 'y'), (3, 'old three', 'z')"
        ))
        .await;
}

/// Nothing has been changed then.
pub async fn a_table_with_rows_of_others_is_refused_untouched<F: SinkFixture>(mut fixture: F) {
    make_foreign(&mut fixture).await;
    let before = fixture.rows("parent").await;
    let tables = vec![child(&fixture), parent(&fixture)];
    let target = crossfade_connector::Target {
        migration: "suite".to_owned(),
        epoch: 1,
        tables,
        support: fixture.support(),
        into_existing: false,
    };
    let refused = fixture.sink("suite").prepare(&target).await.expect_err("a table with rows of others is refused");
    assert!(matches!(refused.verdict, Verdict::Refused { .. }), "{refused}");
    assert_same("parent", &fixture.rows("parent").await, &before);
    assert!(!fixture.objects().await.iter().any(|name| name.ends_with("child")), "nothing was made");
}

/// Overwritten, deleted and inserted rows of somebody's table come back, but for those that somebody changed since.
pub async fn undo_puts_back_what_was_there<F: SinkFixture>(mut fixture: F) {
    make_foreign(&mut fixture).await;
    let before = fixture.rows("parent").await;
    let mut table = parent(&fixture);
    table.def.uniques.clear();
    let mut bench = Bench::with(fixture, vec![table], true).await;
    let writes = vec![
        bench.update(PARENT, &[Int(1), Text("new one")]),
        bench.change(PARENT, Op::Delete, Some(&[Int(2), Absent]), None),
        bench.insert(PARENT, &[Int(4), Text("four")]),
        bench.insert(PARENT, &[Int(5), Text("five")]),
    ];
    bench.commit(writes).await;
    let writes =
        vec![bench.update(PARENT, &[Int(1), Text("newer one")]), bench.update(PARENT, &[Int(3), Text("new three")])];
    bench.commit(writes).await;
    let schema = bench.fixture.schema();
    bench.fixture.execute(&format!("UPDATE {schema}.parent SET name = 'theirs' WHERE id = 5")).await;
    let mut bench = bench.restart().await;
    let target = bench.target.clone();
    let report = bench.sink.undo(&target).await.unwrap_or_else(|failure| panic!("the undo fails: {failure}"));
    assert_eq!((report.restored, report.removed, report.left_alone.len()), (3, 1, 1), "{report:?}");
    let mut wanted = before;
    wanted.push(vec![Some("5".to_owned()), Some("theirs".to_owned()), None]);
    wanted.sort();
    assert_same("parent", &bench.rows("parent").await, &wanted);
    let again = bench.sink.undo(&target).await.unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!((again.restored, again.removed), (0, 0), "a repeat changes nothing");
}

/// Only our columns, no rows; and undone again.
pub async fn shadow_columns_touch_nothing_else<F: SinkFixture>(mut fixture: F) {
    make_foreign(&mut fixture).await;
    let before = fixture.rows("parent").await;
    let columns = [
        ("id", crossfade_event::Logical::Int64, Some(0), false),
        ("extra", crossfade_event::Logical::Text, None, true),
    ];
    let mut table = bench::table(&fixture, PARENT, "parent", &columns);
    table.mode = WriteMode::Columns { columns: vec![1] };
    let mut bench = Bench::with(fixture, vec![table], false).await;
    let block = bench.block(PARENT, &[&[Int(1), Text("s1")], &[Int(9), Text("nobody")]]);
    let writes = vec![
        block,
        bench.update(PARENT, &[Int(2), Text("s2")]),
        bench.change(PARENT, Op::Delete, Some(&[Int(3), Absent]), None),
    ];
    let applied = bench.commit(writes).await;
    assert!(applied.rejected.is_empty());
    let wanted: [&[C]; 3] = [
        &[Int(1), Text("old one"), Text("s1")],
        &[Int(2), Text("old two"), Text("s2")],
        &[Int(3), Text("old three"), Text("z")],
    ];
    assert_same("parent", &bench.rows("parent").await, &text(&wanted));
    let target = bench.target.clone();
    bench.sink.undo(&target).await.unwrap_or_else(|failure| panic!("{failure}"));
    assert_same("parent", &bench.rows("parent").await, &before);
}

/// All that was made is gone, and what was not is there; a second time changes nothing.
pub async fn wipe_leaves_nothing<F: SinkFixture>(mut fixture: F) {
    let (int, _) = words(&fixture);
    let schema = fixture.schema();
    fixture.execute(&format!("CREATE TABLE {schema}.theirs (n {int})")).await;
    let before = fixture.objects().await;
    let mut bench = with_quarantine(fixture).await;
    let target = bench.target.clone();
    let report = bench.sink.wipe(&target).await.unwrap_or_else(|failure| panic!("the wipe fails: {failure}"));
    assert!(report.dropped.iter().any(|name| name.contains("child")), "{report:?}");
    assert_eq!(bench.fixture.objects().await, before);
    bench.sink.wipe(&target).await.unwrap_or_else(|failure| panic!("a second wipe fails: {failure}"));
    assert_eq!(bench.recorded().await, None);
    assert_eq!(bench.fixture.objects().await, before);
}
