//! What every source must keep. A connector's tests call [`all`] with a maker of fresh databases; each promise is a
//! function of its own, so that a failure names it.
//!
//! The SQL here is what PostgreSQL and SQLite both understand.

mod model;

pub use model::{Model, TextRow, text_row};

use crossfade_connector::{Failure, Source, Verdict};
use crossfade_event::{Batch, Event, Frontier, Op, Stamped};
use std::{collections::BTreeSet, time::Duration};

/// How long a suite waits for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// A database of a test's own, and sources that read it.
pub trait SourceFixture: Send {
    /// The source.
    type Source: Source;

    /// Runs statements as one transaction, as an application would.
    fn execute(&mut self, statements: &[String]) -> impl Future<Output = ()> + Send;

    /// A source for these tables; every call is for the same migration, as after a restart.
    fn source(&self, tables: &[&str]) -> Self::Source;

    /// All rows of a table as text, sorted; columns in the table's order.
    fn rows(&mut self, table: &str) -> impl Future<Output = Vec<TextRow>> + Send;

    /// Makes a table without a key send whole old rows; nothing to do where it always does.
    fn record_whole_rows(&mut self, table: &str) -> impl Future<Output = ()> + Send;
}

/// Runs the whole suite, each promise on a database of its own.
pub async fn all<F: SourceFixture, M: AsyncFn() -> F>(make: M) {
    a_backfill_is_bracketed(&mut make().await).await;
    changes_come_in_commit_order_and_whole(&mut make().await).await;
    a_batch_that_was_not_logged_comes_again(&mut make().await).await;
    nothing_comes_twice_once_it_is_in_the_log(&mut make().await).await;
    a_key_change_carries_both_keys(&mut make().await).await;
    rows_deleted_between_two_attempts_do_not_survive(&mut make().await).await;
    a_backfill_is_resumed_chunk_by_chunk(&mut make().await).await;
    a_table_without_a_key_keeps_its_duplicates(&mut make().await).await;
    cancelling_next_loses_nothing(&mut make().await).await;
    large_transactions_come_in_parts_that_count_together(&mut make().await).await;
    a_rolled_back_change_never_comes(&mut make().await).await;
}

fn sql<S: AsRef<str>>(statements: &[S]) -> Vec<String> {
    statements.iter().map(|statement| statement.as_ref().to_owned()).collect()
}

async fn make_items<F: SourceFixture>(fixture: &mut F, count: u32) {
    let mut statements = sql(&["CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, amount INTEGER)"]);
    statements.extend((1..=count).map(|id| format!("INSERT INTO item VALUES ({id}, 'item {id}', {})", id * 10)));
    fixture.execute(&statements).await;
}

async fn next<S: Source>(source: &mut S) -> Batch {
    match tokio::time::timeout(PATIENCE, source.next()).await {
        Ok(Ok(Some(batch))) => batch,
        Ok(Ok(None)) => panic!("the source ended by itself"),
        Ok(Err(failure)) => panic!("the source failed: {failure}"),
        Err(_) => panic!("no batch within {PATIENCE:?}"),
    }
}

/// Reads until the model is as wanted.
async fn until<S: Source>(source: &mut S, model: &mut Model, wanted: impl Fn(&Model) -> bool) {
    while !wanted(model) {
        let batch = next(source).await;
        model.take(batch);
    }
}

async fn open<S: Source>(source: &mut S, model: &Model) {
    let opened = tokio::time::timeout(PATIENCE, source.open(model.resume())).await;
    opened.expect("the source opens in time").unwrap_or_else(|failure| panic!("the source does not open: {failure}"));
}

async fn confirm<S: Source>(source: &mut S, model: &Model) {
    let mut frontier = Frontier::default();
    let ticket = frontier.begin(model.position());
    if let Some(durable) = frontier.finish(ticket) {
        source.confirm(durable).await.unwrap_or_else(|failure| panic!("the source takes no confirmation: {failure}"));
    }
}

/// Schemas and the beginning come first, rows between a table's beginning and its end, the end last.
pub async fn a_backfill_is_bracketed<F: SourceFixture>(fixture: &mut F) {
    make_items(fixture, 100).await;
    let mut source = fixture.source(&["item"]);
    let mut model = Model::default();
    open(&mut source, &model).await;
    let first = next(&mut source).await;
    let began = first.events.iter().position(|stamped| matches!(stamped.event, Event::BackfillBegan(_)));
    let schema = first.events.iter().position(|stamped| matches!(stamped.event, Event::SchemaSeen(_)));
    assert!(schema.expect("the first batch describes the table") < began.expect("the first batch begins the backfill"));
    assert!(first.upto.is_some(), "the stream has a beginning");
    model.take(first);
    until(&mut source, &mut model, Model::backfill_ended).await;
    let kinds: Vec<&str> = model.events().iter().map(kind).collect();
    assert_eq!(kinds.first(), Some(&"schema"));
    let place = |wanted: &str| {
        kinds.iter().position(|kind| *kind == wanted).unwrap_or_else(|| panic!("no {wanted} among {kinds:?}"))
    };
    assert!(place("snapshot began") < place("rows") && place("rows") < place("chunk ended"));
    assert!(place("chunk ended") < place("snapshot ended") && place("snapshot ended") < place("backfill ended"));
    assert_same("item", &model.rows("item"), &fixture.rows("item").await);
}

fn kind(stamped: &Stamped) -> &'static str {
    match &stamped.event {
        Event::SchemaSeen(_) => "schema",
        Event::BackfillBegan(_) => "backfill began",
        Event::SnapshotBegan { .. } => "snapshot began",
        Event::Rows(_) => "rows",
        Event::ChunkEnded { .. } => "chunk ended",
        Event::SnapshotEnded { .. } => "snapshot ended",
        Event::BackfillEnded { .. } => "backfill ended",
        Event::Changed(_) => "change",
        _ => "other",
    }
}

/// A source whose backfill of `item` is done.
async fn streaming<F: SourceFixture>(fixture: &mut F, rows: u32) -> (F::Source, Model) {
    make_items(fixture, rows).await;
    let mut source = fixture.source(&["item"]);
    let mut model = Model::default();
    open(&mut source, &model).await;
    until(&mut source, &mut model, Model::backfill_ended).await;
    (source, model)
}

/// Positions rise, changes of one row come in the order of their commits, and a transaction's changes are together.
pub async fn changes_come_in_commit_order_and_whole<F: SourceFixture>(fixture: &mut F) {
    let (mut source, mut model) = streaming(fixture, 3).await;
    for round in 0..20 {
        fixture
            .execute(&sql(&[
                format!("UPDATE item SET amount = {round} WHERE id = 1"),
                format!("UPDATE item SET amount = {round} WHERE id = 2"),
            ]))
            .await;
    }
    until(&mut source, &mut model, |model| model.changes().len() >= 40).await;
    let changes = model.changes();
    assert_eq!(changes.len(), 40, "each update is one change");
    let positions: Vec<_> = model
        .events()
        .iter()
        .filter(|stamped| matches!(stamped.event, Event::Changed(_)))
        .map(|stamped| stamped.position)
        .collect();
    assert!(positions.windows(2).all(|pair| pair[0] < pair[1]), "every change has a place of its own, and they rise");
    for pair in changes.chunks(2) {
        assert_eq!(pair[0].0.xid, pair[1].0.xid, "changes of one transaction stay together");
    }
    let committed = model
        .events()
        .iter()
        .filter(|stamped| matches!(stamped.event, Event::Committed))
        .map(|stamped| stamped.position);
    assert_eq!(committed.max(), model.position(), "a transaction's end is where the next one begins");
    assert_same("item", &model.rows("item"), &fixture.rows("item").await);
}

/// Dropped before the log had it: it comes again, the same.
pub async fn a_batch_that_was_not_logged_comes_again<F: SourceFixture>(fixture: &mut F) {
    let (mut source, mut model) = streaming(fixture, 2).await;
    fixture.execute(&sql(&["INSERT INTO item VALUES (7, 'seven', 7)"])).await;
    let changes = |batch: &Batch| batch.events.iter().any(|stamped| matches!(stamped.event, Event::Changed(_)));
    while !changes(&next(&mut source).await) {}
    drop(source);
    let mut source = fixture.source(&["item"]);
    open(&mut source, &model).await;
    until(&mut source, &mut model, |model| !model.changes().is_empty()).await;
    assert_same("item", &model.rows("item"), &fixture.rows("item").await);
}

/// Dropped between `next` and `confirm`: what the log has does not come again.
pub async fn nothing_comes_twice_once_it_is_in_the_log<F: SourceFixture>(fixture: &mut F) {
    let (mut source, mut model) = streaming(fixture, 2).await;
    for id in 10..20 {
        fixture.execute(&sql(&[format!("INSERT INTO item VALUES ({id}, 'x', 0)")])).await;
        if id % 3 == 0 {
            confirm(&mut source, &model).await;
        }
        if id % 2 == 0 {
            let batch = next(&mut source).await;
            model.take(batch);
            drop(source);
            model.crash();
            source = fixture.source(&["item"]);
            open(&mut source, &model).await;
        }
    }
    until(&mut source, &mut model, |model| model.changes().len() >= 10).await;
    let keys: BTreeSet<_> =
        model.changes().iter().map(|(_, change)| change.new.clone().map(|row| row.as_bytes().to_vec())).collect();
    assert_eq!((model.changes().len(), keys.len()), (10, 10), "each change came once");
    assert_same("item", &model.rows("item"), &fixture.rows("item").await);
}

/// One update, with the old key and the whole new row.
pub async fn a_key_change_carries_both_keys<F: SourceFixture>(fixture: &mut F) {
    let (mut source, mut model) = streaming(fixture, 3).await;
    fixture.execute(&sql(&["UPDATE item SET id = 99, amount = 1 WHERE id = 2"])).await;
    until(&mut source, &mut model, |model| !model.changes().is_empty()).await;
    let (_, change) = model.changes().remove(0);
    let schema = model.schema("item");
    assert_eq!(change.op, Op::Update);
    assert!(change.replaced_key(&schema).is_some(), "the change says which key it leaves");
    assert_eq!(model.changes().len(), 1);
    assert_same("item", &model.rows("item"), &fixture.rows("item").await);
}

/// A row that a first attempt copied and that is gone before the second one is a ghost: the stream removes it.
pub async fn rows_deleted_between_two_attempts_do_not_survive<F: SourceFixture>(fixture: &mut F) {
    make_items(fixture, 2000).await;
    let mut source = fixture.source(&["item"]);
    let mut model = Model::default();
    open(&mut source, &model).await;
    until(&mut source, &mut model, |model| {
        model.events().iter().any(|stamped| matches!(stamped.event, Event::Rows(_)))
    })
    .await;
    drop(source);
    fixture
        .execute(&sql(&[
            "DELETE FROM item WHERE id < 1000",
            "UPDATE item SET id = id + 10000 WHERE id = 1500",
            "INSERT INTO item VALUES (5, 'new', 5)",
        ]))
        .await;
    let mut source = fixture.source(&["item"]);
    open(&mut source, &model).await;
    until(&mut source, &mut model, |model| model.backfill_ended() && model.changes().len() >= 1001).await;
    assert_same("item", &model.rows("item"), &fixture.rows("item").await);
}

/// Stopped again and again while rows change: chunks that are in the log are not read again, and all is right at last.
pub async fn a_backfill_is_resumed_chunk_by_chunk<F: SourceFixture>(fixture: &mut F) {
    make_items(fixture, 5000).await;
    let mut model = Model::default();
    for round in 0..200 {
        let mut source = fixture.source(&["item"]);
        open(&mut source, &model).await;
        let done = model.resume().snapshot.tables.first().map(|(_, table)| table.done.clone()).unwrap_or_default();
        let before = model.events().len();
        for _ in 0..3 {
            if model.backfill_ended() {
                break;
            }
            let batch = next(&mut source).await;
            model.take(batch);
        }
        let again = model.events()[before..]
            .iter()
            .any(|stamped| matches!(&stamped.event, Event::Rows(block) if done.contains(&block.chunk)));
        assert!(!again, "a chunk that was in the log was read again");
        if model.backfill_ended() {
            fixture.execute(&sql(&["INSERT INTO item VALUES (-1, 'end', 0)"])).await;
            let last = |change: &crossfade_event::Change| change.op == Op::Insert;
            until(&mut source, &mut model, |model| model.changes().last().is_some_and(|(_, change)| last(change)))
                .await;
            assert_same("item", &model.rows("item"), &fixture.rows("item").await);
            return;
        }
        drop(source);
        model.crash();
        let id = round * 23 + 1;
        fixture
            .execute(&sql(&[
                format!("UPDATE item SET amount = amount + 1 WHERE id = {id}"),
                format!("UPDATE item SET id = id + 100000 WHERE id = {}", id + 1),
                format!("DELETE FROM item WHERE id = {}", 5000 - id),
            ]))
            .await;
    }
    panic!("the backfill does not end");
}

/// Rows that are equal in everything stay as many as they are, also those that change while the table is copied.
pub async fn a_table_without_a_key_keeps_its_duplicates<F: SourceFixture>(fixture: &mut F) {
    let mut statements = sql(&["CREATE TABLE note (word TEXT, amount INTEGER)"]);
    statements.extend((0..500).map(|n| format!("INSERT INTO note VALUES ('w{}', {})", n % 10, n % 5)));
    fixture.execute(&statements).await;
    fixture.record_whole_rows("note").await;
    let mut source = fixture.source(&["note"]);
    let mut model = Model::default();
    open(&mut source, &model).await;
    let first = next(&mut source).await;
    model.take(first);
    fixture
        .execute(&sql(&[
            "INSERT INTO note VALUES ('w1', 1)",
            "INSERT INTO note VALUES ('w1', 1)",
            "INSERT INTO note VALUES (NULL, 1)",
        ]))
        .await;
    until(&mut source, &mut model, Model::backfill_ended).await;
    fixture
        .execute(&sql(&[
            "UPDATE note SET amount = 77 WHERE word = 'w3' AND amount = 3",
            "DELETE FROM note WHERE word = 'w4'",
            "INSERT INTO note VALUES ('w9', 4)",
            "INSERT INTO note VALUES ('end', 0)",
        ]))
        .await;
    let ended = Some("end".to_owned());
    until(&mut source, &mut model, |model| model.rows("note").iter().any(|row| row[0] == ended)).await;
    assert_same("note", &model.rows("note"), &fixture.rows("note").await);
}

/// `next` given up in mid-air: the batch comes with the next call.
pub async fn cancelling_next_loses_nothing<F: SourceFixture>(fixture: &mut F) {
    let (mut source, mut model) = streaming(fixture, 1).await;
    for id in 100..130 {
        fixture.execute(&sql(&[format!("INSERT INTO item VALUES ({id}, 'x', 0)")])).await;
        // Given up after a moment that is sometimes too short and sometimes not.
        if let Ok(batch) = tokio::time::timeout(Duration::from_millis(id % 7), source.next()).await {
            model.take(batch.unwrap_or_else(|failure| panic!("{failure}")).expect("a source without an end"));
        }
    }
    until(&mut source, &mut model, |model| model.changes().len() >= 30).await;
    assert_same("item", &model.rows("item"), &fixture.rows("item").await);
}

/// More than a batch holds: parts come one after the other, nothing in between, and count once the last is in.
pub async fn large_transactions_come_in_parts_that_count_together<F: SourceFixture>(fixture: &mut F) {
    let (mut source, mut model) = streaming(fixture, 1).await;
    let filler = "x".repeat(1000);
    let statements: Vec<String> =
        (1000..6000).map(|id| format!("INSERT INTO item VALUES ({id}, '{filler}', {id})")).collect();
    fixture.execute(&statements).await;
    let mut parts = 0;
    while model.changes().len() < 5000 {
        let batch = next(&mut source).await;
        parts += 1;
        assert_eq!(batch.whole, batch.upto.is_some(), "a part of a transaction moves no position");
        if !batch.whole {
            assert!(model.changes().is_empty(), "parts do not count before the last one");
        }
        model.take(batch);
    }
    assert!(parts > 1, "five megabytes come in more than one batch");
    assert_same("item", &model.rows("item"), &fixture.rows("item").await);
}

/// Rolled back at the source: not a trace, and nothing after it is lost.
pub async fn a_rolled_back_change_never_comes<F: SourceFixture>(fixture: &mut F) {
    let (mut source, mut model) = streaming(fixture, 2).await;
    fixture
        .execute(&sql(&[
            "SAVEPOINT a",
            "UPDATE item SET amount = -1 WHERE id = 1",
            "ROLLBACK TO SAVEPOINT a",
            "UPDATE item SET amount = 5 WHERE id = 2",
        ]))
        .await;
    until(&mut source, &mut model, |model| !model.changes().is_empty()).await;
    assert_eq!(model.changes().len(), 1);
    assert_same("item", &model.rows("item"), &fixture.rows("item").await);
}

/// Asserts that two tables are equal, and shows a few of the rows that are not.
pub fn assert_same(table: &str, found: &[TextRow], wanted: &[TextRow]) {
    let left_over = |from: &[TextRow], other: &[TextRow]| {
        let mut other = other.to_vec();
        let extra = from.iter().filter(|row| match other.binary_search(row) {
            Ok(place) => {
                other.remove(place);
                false
            }
            Err(_) => true,
        });
        extra.take(5).cloned().collect::<Vec<_>>()
    };
    assert!(
        found == wanted,
        "{table} differs ({} rows, {} wanted)\n  too much: {:?}\n  missing: {:?}",
        found.len(),
        wanted.len(),
        left_over(found, wanted),
        left_over(wanted, found)
    );
}

/// Asserts that a source is lost to us, and says how to go on.
pub fn assert_lost(failure: &Failure) {
    assert!(
        matches!(&failure.verdict, Verdict::Lost { advice } if !advice.is_empty()),
        "expected a lost source, got: {failure}"
    );
}
