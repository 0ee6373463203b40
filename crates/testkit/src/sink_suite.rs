//! What every transactional sink must keep. A connector's tests call [`all`] with a maker of fresh databases; each
//! promise is a function of its own, so that a failure names it.

mod bench;
mod others;
mod quarantine;

pub use bench::SinkFixture;
pub use others::{
    a_table_with_rows_of_others_is_refused_untouched, shadow_columns_touch_nothing_else, undo_puts_back_what_was_there,
    wipe_leaves_nothing,
};
pub use quarantine::{
    a_change_that_transforms_refused_is_on_record, a_refused_change_holds_later_ones_and_children,
    a_refused_change_holds_what_comes_with_it, discard_frees_the_key, quarantine_survives_a_restart,
    retry_applies_what_is_held_in_order,
};

use crate::source_suite::assert_same;
use bench::{Bench, C, CHILD, HEAP, MAPPING, PARENT, child, parent, text};
use crossfade_connector::{
    Delivery, Guard, Quarantine, QuarantineFilter, Rejection, Rollback, Sink, Verdict, Write, WriteMode,
};
use crossfade_event::{Change, Op, SchemaVersion, Sequence, Version};
use quarantine::list;

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
