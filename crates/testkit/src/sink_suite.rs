//! What every transactional sink must keep. A connector's tests call [`all`] with a maker of fresh databases; each
//! promise is a function of its own, so that a failure names it.

mod bench;

pub use bench::SinkFixture;

use crate::source_suite::assert_same;
use bench::{Bench, C, CHILD, HEAP, MAPPING, PARENT, child, parent, text};
use crossfade_connector::{
    Delivery, Guard, Quarantine, QuarantineFilter, Rejection, Rollback, Sink, Verdict, Write, WriteMode,
};
use crossfade_event::{Change, Op, SchemaVersion, Sequence, Version};

/// Runs the whole suite, each promise on a database of its own.
pub async fn all<F: SinkFixture, M: AsyncFn() -> F>(make: M) {
    a_repeat_is_harmless(make().await).await;
    rows_and_progress_come_together(make().await).await;
    what_is_not_committed_leaves_nothing(make().await).await;
    a_cancelled_apply_leaves_nothing_or_all(make().await).await;
    two_rows_exchange_their_unique_values(make().await).await;
    a_partial_update_touches_nothing_else(make().await).await;
    a_changed_key_takes_its_row_along(make().await).await;
    rows_without_a_key_stay_as_many_as_they_are(make().await).await;
    a_refused_change_holds_later_ones_and_children(make().await).await;
    a_refused_change_holds_what_comes_with_it(make().await).await;
    quarantine_survives_a_restart(make().await).await;
    retry_applies_what_is_held_in_order(make().await).await;
    discard_frees_the_key(make().await).await;
    a_change_that_transforms_refused_is_on_record(make().await).await;
    a_lower_epoch_is_refused(make().await).await;
    a_mapping_is_written_once(make().await).await;
    a_truncate_stands_between_before_and_after(make().await).await;
    healing_writes_images_and_leaves_the_position(make().await).await;
    a_table_with_rows_of_others_is_refused_untouched(make().await).await;
    undo_puts_back_what_was_there(make().await).await;
    shadow_columns_touch_nothing_else(make().await).await;
    wipe_leaves_nothing(make().await).await;
}

use C::{Absent, Int, Null, Text, Unchanged};

async fn loaded<F: SinkFixture>(fixture: F) -> Bench<F> {
    let mut bench = Bench::new(fixture).await;
    let parents = bench.block(PARENT, &[&[Int(1), Text("one")], &[Int(2), Text("two")]]);
    let children = bench.block(CHILD, &[&[Int(1), Int(1), Text("a")], &[Int(2), Int(2), Null]]);
    bench.commit(vec![parents, children]).await;
    bench.sink.finish_load().await.unwrap_or_else(|failure| panic!("the load does not finish: {failure}"));
    bench
}

/// Prepared, loaded and finished twice: the same rows.
pub async fn a_repeat_is_harmless<F: SinkFixture>(fixture: F) {
    let mut bench = Bench::new(fixture).await;
    let rows: [&[C]; 2] = [&[Int(1), Text("one")], &[Int(2), Text("two")]];
    for _ in 0..2 {
        let block = bench.block(PARENT, &rows);
        bench.commit(vec![block]).await;
        bench = bench.restart().await;
    }
    for _ in 0..2 {
        bench.sink.finish_load().await.unwrap_or_else(|failure| panic!("the load does not finish: {failure}"));
        let delete = bench.change(PARENT, Op::Delete, Some(&[Int(2), Absent]), None);
        let insert = bench.insert(PARENT, &[Int(3), Text("three")]);
        let applied = bench.commit(vec![delete, insert]).await;
        assert!(applied.rejected.is_empty());
    }
    assert_same("parent", &bench.rows("parent").await, &text(&[&[Int(1), Text("one")], &[Int(3), Text("three")]]));
}

/// After a restart the recorded place is exactly that of the rows.
pub async fn rows_and_progress_come_together<F: SinkFixture>(fixture: F) {
    let mut bench = Bench::new(fixture).await;
    assert_eq!(bench.recorded().await, None, "a fresh sink stands nowhere");
    for id in 1..=5 {
        let insert = bench.insert(PARENT, &[Int(id), Text(["a", "b", "c", "d", "e"][id as usize - 1])]);
        bench.commit(vec![insert]).await;
        let wanted = bench.progress();
        bench = bench.restart().await;
        assert_eq!(bench.recorded().await, Some(wanted));
        assert_eq!(bench.rows("parent").await.len() as i64, id);
    }
}

/// Parts of a transaction without its end: gone after a restart, and not to be seen before.
pub async fn what_is_not_committed_leaves_nothing<F: SinkFixture>(fixture: F) {
    let mut bench = Bench::new(fixture).await;
    let first = bench.insert(PARENT, &[Int(1), Text("one")]);
    bench.commit(vec![first]).await;
    let before = bench.recorded().await;
    let part = bench.insert(PARENT, &[Int(2), Text("two")]);
    let bad = bench.insert(PARENT, &[Int(3), Null]);
    bench.apply(vec![part, bad], false).await;
    assert_same("parent", &bench.rows("parent").await, &text(&[&[Int(1), Text("one")]]));
    let mut bench = bench.restart().await;
    assert_eq!(bench.recorded().await, before);
    assert_same("parent", &bench.rows("parent").await, &text(&[&[Int(1), Text("one")]]));
    assert!(list(&mut bench).await.is_empty(), "a refusal that was not committed is not on record");
    let insert = bench.insert(PARENT, &[Int(3), Text("three")]);
    let applied = bench.commit(vec![insert]).await;
    assert_eq!(applied.held, 0, "nothing is held by what was never committed");
}

/// Given up in mid-air: the recorded place tells the truth either way.
pub async fn a_cancelled_apply_leaves_nothing_or_all<F: SinkFixture>(fixture: F) {
    let mut bench = Bench::new(fixture).await;
    for id in 1..=20 {
        let insert = bench.insert(PARENT, &[Int(id), Text("x")]);
        let insert = rename(insert, id, &bench);
        let upto = bench.progress();
        let delivery = Delivery { writes: vec![insert], upto: upto.clone(), commits: true };
        let patience = std::time::Duration::from_micros(id as u64 * 40);
        let _ = tokio::time::timeout(patience, bench.sink.apply(delivery.clone(), Guard::Forward)).await;
        // What was given up may still be on its way: who prepares has waited for its end.
        bench.sink.prepare(&bench.target.clone()).await.unwrap_or_else(|failure| panic!("{failure}"));
        let there = bench.recorded().await == Some(upto.clone());
        let rows = bench.rows("parent").await.len() as i64;
        assert_eq!(rows, if there { id } else { id - 1 }, "the place and the rows agree");
        if !there {
            bench.sink.apply(delivery, Guard::Forward).await.unwrap_or_else(|failure| panic!("{failure}"));
        }
    }
}

/// Gives every row a name of its own.
fn rename<F: SinkFixture>(write: Write, id: i64, bench: &Bench<F>) -> Write {
    const NAMES: [&str; 20] =
        ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r", "s", "t"];
    match write {
        Write::Change { at, change } => {
            let new = Some(bench.row(PARENT, &[Int(id), Text(NAMES[id as usize - 1])]));
            Write::Change { at, change: Change { new, ..change } }
        }
        other => other,
    }
}

/// In one source transaction two rows swap what must be unique, and three rotate it.
pub async fn two_rows_exchange_their_unique_values<F: SinkFixture>(fixture: F) {
    let mut bench = loaded(fixture).await;
    let writes = vec![
        bench.update(PARENT, &[Int(1), Text("two")]),
        bench.update(PARENT, &[Int(2), Text("one")]),
        Write::Boundary,
    ];
    let applied = bench.commit(writes).await;
    assert!(applied.rejected.is_empty(), "{:?}", applied.rejected.first().map(|rejection| &rejection.reason));
    assert_same("parent", &bench.rows("parent").await, &text(&[&[Int(1), Text("two")], &[Int(2), Text("one")]]));
    let third = bench.insert(PARENT, &[Int(3), Text("three")]);
    bench.commit(vec![third, Write::Boundary]).await;
    let writes = vec![
        bench.update(PARENT, &[Int(1), Text("one")]),
        bench.update(PARENT, &[Int(2), Text("three")]),
        bench.update(PARENT, &[Int(3), Text("two")]),
        Write::Boundary,
    ];
    let applied = bench.commit(writes).await;
    assert!(applied.rejected.is_empty());
    let wanted: [&[C]; 3] = [&[Int(1), Text("one")], &[Int(2), Text("three")], &[Int(3), Text("two")]];
    assert_same("parent", &bench.rows("parent").await, &text(&wanted));
}

/// Unchanged is not NULL.
pub async fn a_partial_update_touches_nothing_else<F: SinkFixture>(fixture: F) {
    let mut bench = loaded(fixture).await;
    let update = bench.update(CHILD, &[Int(1), Null, Unchanged]);
    bench.commit(vec![update]).await;
    let moved = bench.change(CHILD, Op::Update, Some(&[Int(1), Absent, Absent]), Some(&[Int(9), Int(2), Unchanged]));
    bench.commit(vec![moved]).await;
    assert_same("child", &bench.rows("child").await, &text(&[&[Int(2), Int(2), Null], &[Int(9), Int(2), Text("a")]]));
    let missing = bench.update(CHILD, &[Int(77), Null, Unchanged]);
    let applied = bench.commit(vec![missing]).await;
    assert_eq!(applied.rejected.len(), 1, "a part of a row that is not there is no row");
}

/// Delete and insert in one step, also onto a key that is there.
pub async fn a_changed_key_takes_its_row_along<F: SinkFixture>(fixture: F) {
    let mut bench = loaded(fixture).await;
    let moved = bench.change(PARENT, Op::Update, Some(&[Int(1), Absent]), Some(&[Int(5), Text("one")]));
    let again = bench.change(PARENT, Op::Update, Some(&[Int(5), Absent]), Some(&[Int(6), Text("one")]));
    let stray = bench.change(CHILD, Op::Update, Some(&[Int(1), Absent, Absent]), Some(&[Int(2), Int(2), Text("onto")]));
    let child = bench.change(CHILD, Op::Delete, Some(&[Int(1), Absent, Absent]), None);
    let applied = bench.commit(vec![stray, child, moved, again, Write::Boundary]).await;
    assert!(applied.rejected.is_empty(), "{:?}", applied.rejected.first().map(|rejection| &rejection.reason));
    assert_same("parent", &bench.rows("parent").await, &text(&[&[Int(2), Text("two")], &[Int(6), Text("one")]]));
    assert_same("child", &bench.rows("child").await, &text(&[&[Int(2), Int(2), Text("onto")]]));
}

/// Duplicates, NULLs, and one of several equal rows deleted.
pub async fn rows_without_a_key_stay_as_many_as_they_are<F: SinkFixture>(fixture: F) {
    let mut bench = Bench::new(fixture).await;
    let block = bench
        .block(HEAP, &[&[Text("a"), Int(1)], &[Text("a"), Int(1)], &[Text("a"), Int(1)], &[Null, Null], &[Null, Null]]);
    bench.commit(vec![block]).await;
    let delete = bench.change(HEAP, Op::Delete, Some(&[Text("a"), Int(1)]), None);
    let null = bench.change(HEAP, Op::Delete, Some(&[Null, Null]), None);
    let update = bench.change(HEAP, Op::Update, Some(&[Text("a"), Int(1)]), Some(&[Text("b"), Null]));
    let insert = bench.insert(HEAP, &[Text("a"), Int(1)]);
    bench.commit(vec![delete, null, update, insert]).await;
    let wanted: [&[C]; 4] = [&[Text("a"), Int(1)], &[Text("a"), Int(1)], &[Text("b"), Null], &[Null, Null]];
    assert_same("heap", &bench.rows("heap").await, &text(&wanted));
}

async fn list<F: SinkFixture>(bench: &mut Bench<F>) -> Vec<(String, String)> {
    let listed = bench.sink.list(&QuarantineFilter::default()).await.unwrap_or_else(|failure| panic!("{failure}"));
    listed.into_iter().map(|change| (change.table.name.to_string(), change.kind)).collect()
}

fn kinds(wanted: &[(&str, &str)]) -> Vec<(String, String)> {
    wanted.iter().map(|(table, kind)| ((*table).to_owned(), (*kind).to_owned())).collect()
}

/// `parent 3` cannot be written.
fn refused<F: SinkFixture>(bench: &mut Bench<F>) -> Vec<Write> {
    vec![bench.insert(PARENT, &[Int(3), Null])]
}

/// Later changes of `parent 3`, which must wait, and a child of it, and a row that has nothing to do with it.
fn behind<F: SinkFixture>(bench: &mut Bench<F>) -> Vec<Write> {
    vec![
        bench.update(PARENT, &[Int(3), Text("three")]),
        bench.insert(CHILD, &[Int(30), Int(3), Text("of three")]),
        bench.update(CHILD, &[Int(30), Int(1), Text("held too")]),
        bench.insert(PARENT, &[Int(4), Text("four")]),
        Write::Boundary,
    ]
}

/// A change that was refused, and in a delivery of their own what waits behind it and what does not.
async fn with_quarantine<F: SinkFixture>(fixture: F) -> Bench<F> {
    let mut bench = loaded(fixture).await;
    let writes = refused(&mut bench);
    let applied = bench.commit(writes).await;
    assert_eq!((applied.applied, applied.rejected.len(), applied.held), (0, 1, 0));
    assert!(!applied.rejected[0].reason.is_empty());
    let writes = behind(&mut bench);
    let applied = bench.commit(writes).await;
    assert_eq!((applied.applied, applied.rejected.len(), applied.held), (1, 0, 3));
    bench
}

const HELD: [(&str, &str); 4] = [("parent", "rejected"), ("parent", "held"), ("child", "child"), ("child", "held")];

/// One row is refused: its later changes wait behind it, and so do rows that refer to it; the rest is in.
pub async fn a_refused_change_holds_later_ones_and_children<F: SinkFixture>(fixture: F) {
    only_what_is_behind_waits(with_quarantine(fixture).await).await;
}

/// The same within one delivery: for sinks that write change by change. One that writes what a set of changes comes to
/// writes the row as the last of them leaves it.
pub async fn a_refused_change_holds_what_comes_with_it<F: SinkFixture>(fixture: F) {
    let mut bench = loaded(fixture).await;
    let mut writes = refused(&mut bench);
    writes.extend(behind(&mut bench));
    let applied = bench.commit(writes).await;
    assert_eq!((applied.applied, applied.rejected.len(), applied.held), (1, 1, 3));
    only_what_is_behind_waits(bench).await;
}

async fn only_what_is_behind_waits<F: SinkFixture>(mut bench: Bench<F>) {
    assert_eq!(list(&mut bench).await, kinds(&HELD));
    let wanted: [&[C]; 3] = [&[Int(1), Text("one")], &[Int(2), Text("two")], &[Int(4), Text("four")]];
    assert_same("parent", &bench.rows("parent").await, &text(&wanted));
    assert_eq!(bench.rows("child").await.len(), 2);
}

/// What is held stays held in the next process.
pub async fn quarantine_survives_a_restart<F: SinkFixture>(fixture: F) {
    let mut bench = with_quarantine(fixture).await.restart().await;
    let again = bench.update(PARENT, &[Int(3), Text("drei")]);
    let other = bench.update(PARENT, &[Int(4), Text("vier")]);
    let applied = bench.commit(vec![again, other]).await;
    assert_eq!((applied.applied, applied.held), (1, 1));
    let first = bench.sink.list(&QuarantineFilter::default()).await.unwrap_or_else(|failure| panic!("{failure}"))[0].id;
    let (head, change) =
        bench.sink.show(first).await.unwrap_or_else(|failure| panic!("{failure}")).expect("it is there");
    assert_eq!((head.kind.as_str(), change.op), ("rejected", Op::Insert));
    assert_eq!(change.new, Some(bench.row(PARENT, &[Int(3), Null])));
}

/// Once the cause is gone, a key's changes go in, the oldest first.
pub async fn retry_applies_what_is_held_in_order<F: SinkFixture>(fixture: F) {
    let mut bench = with_quarantine(fixture).await;
    let outcome = bench.sink.retry(&QuarantineFilter::default()).await.unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!((outcome.applied, outcome.remaining), (0, 4), "nothing has changed, so nothing goes in");
    bench
        .fixture
        .execute(&format!("CREATE TABLE other (n {})", bench.fixture.type_of(crossfade_event::Logical::Int64).name))
        .await;
    // Only the first change is at fault: without it the rest can go in.
    let first = bench.sink.list(&QuarantineFilter::default()).await.unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!(first.len(), 4);
    let free = bench.change(PARENT, Op::Delete, Some(&[Int(9), Absent]), None);
    bench.commit(vec![free]).await;
    let taken = bench.insert(PARENT, &[Int(8), Text("four")]);
    let applied = bench.commit(vec![taken, Write::Boundary]).await;
    assert_eq!(applied.rejected.len(), 1, "the value is taken, and stays so");
    let freed = bench.update(PARENT, &[Int(4), Text("fourth")]);
    bench.commit(vec![freed, Write::Boundary]).await;
    let outcome = bench.sink.retry(&QuarantineFilter::default()).await.unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!((outcome.applied, outcome.remaining), (1, 4));
    let wanted: [&[C]; 4] =
        [&[Int(1), Text("one")], &[Int(2), Text("two")], &[Int(4), Text("fourth")], &[Int(8), Text("four")]];
    assert_same("parent", &bench.rows("parent").await, &text(&wanted));
    let later = bench.update(PARENT, &[Int(8), Text("eighth")]);
    assert_eq!(bench.commit(vec![later]).await.held, 0, "a key whose changes are in is free");
}

/// Dropped for good: nothing of it is written, and the key takes changes again.
pub async fn discard_frees_the_key<F: SinkFixture>(fixture: F) {
    let mut bench = with_quarantine(fixture).await;
    let listed = bench.sink.list(&QuarantineFilter::default()).await.unwrap_or_else(|failure| panic!("{failure}"));
    let filter = QuarantineFilter { table: None, ids: vec![listed[0].id] };
    let outcome = bench.sink.discard(&filter).await.unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!((outcome.discarded, outcome.remaining), (2, 2), "the key's later changes go with it");
    let again = bench.insert(PARENT, &[Int(3), Text("three")]);
    assert_eq!(bench.commit(vec![again]).await.applied, 1);
    let outcome = bench.sink.retry(&QuarantineFilter::default()).await.unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!((outcome.applied, outcome.remaining), (2, 0), "the parent is there now");
    assert_eq!(bench.rows("child").await.len(), 3);
}

/// What the transforms refused is recorded as it came, and its key is held.
pub async fn a_change_that_transforms_refused_is_on_record<F: SinkFixture>(fixture: F) {
    let mut bench = loaded(fixture).await;
    let change = Change {
        table: PARENT,
        schema: SchemaVersion(1),
        op: Op::Insert,
        old: None,
        new: Some(bench.row(PARENT, &[Int(6), Text("six")])),
    };
    let at = Version { sequence: Sequence(5), ordinal: 3 };
    let key = Some(bench.key(PARENT, &[Int(6)]));
    let refused = Write::Reject(Rejection { at, table: PARENT, key, change, reason: "no such country".to_owned() });
    let later = bench.update(PARENT, &[Int(6), Text("sechs")]);
    let applied = bench.commit(vec![refused, later]).await;
    assert_eq!((applied.rejected.len(), applied.held), (1, 1));
    let listed = bench.sink.list(&QuarantineFilter::default()).await.unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!((listed[0].sequence, listed[0].ordinal, listed[0].reason.as_str()), (5, 3, "no such country"));
}

/// Who comes with a lower epoch is refused, and who held it before loses the right to write.
pub async fn a_lower_epoch_is_refused<F: SinkFixture>(fixture: F) {
    let mut bench = loaded(fixture).await;
    let mut newer = bench.target.clone();
    newer.epoch = 2;
    let mut other = bench.fixture.sink("suite");
    other.prepare(&newer).await.unwrap_or_else(|failure| panic!("{failure}"));
    let writes = vec![bench.insert(PARENT, &[Int(50), Text("late")])];
    let upto = bench.progress();
    for guard in [Guard::Forward, Guard::Heal] {
        let delivery = Delivery { writes: writes.clone(), upto: upto.clone(), commits: true };
        let late = bench.sink.apply(delivery, guard).await.expect_err("the older writer is refused");
        assert!(matches!(late.verdict, Verdict::Refused { .. }), "{late}");
    }
    let mut lower = bench.fixture.sink("suite");
    let refused = lower.prepare(&bench.target).await.expect_err("a lower epoch is refused");
    assert!(matches!(refused.verdict, Verdict::Refused { .. }), "{refused}");
    assert_eq!(bench.rows("parent").await.len(), 2);
}

/// The first key drawn stays.
pub async fn a_mapping_is_written_once<F: SinkFixture>(fixture: F) {
    let mut bench = Bench::new(fixture).await;
    let block = bench.block(MAPPING, &[&[Text("1"), Text("x")], &[Text("2"), Text("y")]]);
    bench.commit(vec![block]).await;
    let writes = vec![
        bench.insert(MAPPING, &[Text("1"), Text("other")]),
        bench.insert(MAPPING, &[Text("3"), Text("z")]),
        bench.update(MAPPING, &[Text("2"), Text("other")]),
        bench.change(MAPPING, Op::Delete, Some(&[Text("1"), Absent]), None),
    ];
    let applied = bench.commit(writes).await;
    assert!(applied.rejected.is_empty());
    let wanted: [&[C]; 3] = [&[Text("1"), Text("x")], &[Text("2"), Text("y")], &[Text("3"), Text("z")]];
    assert_same("mapping", &bench.rows("mapping").await, &text(&wanted));
}

/// Before it is gone, after it is there.
pub async fn a_truncate_stands_between_before_and_after<F: SinkFixture>(fixture: F) {
    let mut bench = loaded(fixture).await;
    let before = bench.insert(CHILD, &[Int(7), Null, Text("before")]);
    let empty = Write::Truncate { at: Version { sequence: Sequence(9000), ordinal: 0 }, tables: vec![CHILD] };
    let after = bench.insert(CHILD, &[Int(8), Null, Text("after")]);
    bench.commit(vec![before, empty, after]).await;
    assert_same("child", &bench.rows("child").await, &text(&[&[Int(8), Null, Text("after")]]));
}

/// Final images over damaged rows; the recorded place stays.
pub async fn healing_writes_images_and_leaves_the_position<F: SinkFixture>(fixture: F) {
    let mut bench = loaded(fixture).await;
    let before = bench.recorded().await;
    let schema = bench.fixture.schema();
    bench.fixture.execute(&format!("DELETE FROM {schema}.child WHERE id = 1")).await;
    bench.fixture.execute(&format!("UPDATE {schema}.child SET note = 'damaged' WHERE id = 2")).await;
    let writes = vec![bench.update(CHILD, &[Int(1), Int(1), Text("a")]), bench.update(CHILD, &[Int(2), Int(2), Null])];
    let upto = bench.progress();
    bench
        .sink
        .apply(Delivery { writes, upto, commits: true }, Guard::Heal)
        .await
        .unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!(bench.recorded().await, before);
    assert_same("child", &bench.rows("child").await, &text(&[&[Int(1), Int(1), Text("a")], &[Int(2), Int(2), Null]]));
    let key = bench.key(CHILD, &[Int(1)]);
    let row = bench.sink.read_row(CHILD, &key).await.unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!(row, Some(bench.row(CHILD, &[Int(1), Int(1), Text("a")])));
}

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
