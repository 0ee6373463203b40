//! What a sink refuses, what waits behind it, and how it comes back.

use super::*;
use crossfade_connector::COLLISION;

pub(super) async fn list<F: SinkFixture>(bench: &mut Bench<F>) -> Vec<(String, String)> {
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
pub(super) async fn with_quarantine<F: SinkFixture>(fixture: F) -> Bench<F> {
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
    assert_eq!(
        bench.sink.collisions().await.unwrap_or_else(|failure| panic!("{failure}")),
        0,
        "refused for its own sake"
    );
    let free = bench.change(PARENT, Op::Delete, Some(&[Int(9), Absent]), None);
    bench.commit(vec![free]).await;
    let taken = bench.insert(PARENT, &[Int(8), Text("four")]);
    let applied = bench.commit(vec![taken, Write::Boundary]).await;
    assert_eq!(applied.rejected.len(), 1, "the value is taken, and stays so");
    let collided = bench.sink.list(&QuarantineFilter::default()).await.unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!(collided.iter().filter(|change| change.kind == COLLISION).count(), 1, "{collided:?}");
    assert_eq!(bench.sink.collisions().await.unwrap_or_else(|failure| panic!("{failure}")), 1);
    let freed = bench.update(PARENT, &[Int(4), Text("fourth")]);
    bench.commit(vec![freed, Write::Boundary]).await;
    let outcome = bench.sink.retry(&QuarantineFilter::default()).await.unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!((outcome.applied, outcome.remaining), (1, 4));
    assert_eq!(bench.sink.collisions().await.unwrap_or_else(|failure| panic!("{failure}")), 0, "it is in");
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
