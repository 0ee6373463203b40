//! What the state is given, and what it says again.

use super::*;
use crate::run::shop::Shop;
use crossfade_connector::Sink;
use crossfade_event::{Batch, Event, Mark, Position, SourceId, Stamped};
use crossfade_log::embedded::{Embedded, Options};

fn cursor(session: &Session, name: &str) -> Option<Cursor> {
    session.state.get(&CursorKey::new(name)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_is_how_far_both_loops_have_come_and_the_next_start_reads_on_from_it() {
    let shop = Shop::new();
    shop.run().await;
    let spec = shop.spec("first");
    let session = Session::open(&spec).await.unwrap();
    let tail = session.log.tail();
    // The run kept it as it ended.
    let kept = SnapshotFold::kept(&session.state, session.log.id()).unwrap().unwrap();
    assert_eq!(kept.folded, tail.cut);
    assert_eq!((kept.state.generation, kept.state.ended, kept.state.tables.len()), (1, true, 1));
    assert_eq!(cursor(&session, folder::INGEST).unwrap().cut, tail.cut);
    let sink = crate::registry::AnySink::for_looking(&spec).unwrap().progress().await.unwrap().unwrap();
    assert_eq!(cursor(&session, folder::DELIVER).unwrap().cut, sink.cut);

    // More comes into the log: the cursors follow at once, the fold when it is asked for.
    let (watcher, _facts) = Watcher::new(session.log.clone(), None);
    let watcher = Arc::new(watcher);
    let keeper = Keeper::new(&session, watcher.clone()).unwrap();
    assert_eq!(keeper.folds().refreshed(&session.log).unwrap(), kept);
    session.log.append(mark(tail.position.unwrap(), 1)).await.unwrap();
    let later = session.log.tail().cut;
    watcher.progress.send_replace(Some(crossfade_connector::Progress { cut: later.clone(), ..sink.clone() }));
    keeper.keep(false).await.unwrap();
    assert_eq!(cursor(&session, folder::INGEST).unwrap().cut, later);
    assert_eq!(cursor(&session, folder::DELIVER).unwrap().cut, later);
    assert_eq!(SnapshotFold::kept(&session.state, session.log.id()).unwrap().unwrap().folded, tail.cut);
    keeper.keep(true).await.unwrap();
    assert_eq!(SnapshotFold::kept(&session.state, session.log.id()).unwrap().unwrap().folded, later);
    // The state of another log is no cache of this one.
    assert_eq!(SnapshotFold::kept(&session.state, session.log.id() + 1).unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_ends_when_the_loops_are_told_to() {
    let shop = Shop::new();
    shop.run().await;
    let session = Session::open(&shop.spec("first")).await.unwrap();
    let (watcher, _facts) = Watcher::new(session.log.clone(), None);
    let keeper = Keeper::new(&session, Arc::new(watcher)).unwrap();
    let (stopper, stop) = crossfade_pipeline::stop_channel();
    let running = tokio::spawn(keeper.run(stop));
    stopper.stop();
    running.await.unwrap();
}

fn mark(at: Position, number: u32) -> Batch {
    let position = Position { ordinal: at.ordinal.saturating_add(number), ..at };
    let event = Event::Marked(Mark { prefix: "test".into(), content: vec![7; 512].into() });
    Batch { events: vec![Stamped { position, event }], upto: Some(position), whole: true }
}

#[tokio::test]
async fn the_journal_knows_the_number_of_a_copy_that_was_trimmed_away() {
    let home = tempfile::tempdir().unwrap();
    let log = Embedded::open(home.path(), Options { segment_bytes: 4096, ..Options::default() }).unwrap();
    let migration = |generation| Migration { generation, ..Migration::default() };
    for number in 0..64u32 {
        let at = Position { source: SourceId(1), timeline: 0, commit: u64::from(number), ordinal: 0 };
        log.append(mark(at, 0)).await.unwrap();
    }
    let known = |state: SnapshotState| SnapshotFold { state, ..SnapshotFold::default() };
    // Nothing was trimmed: a log that knows of no copy has none.
    assert_eq!(whole(SnapshotFold::default(), &log, &migration(3)), SnapshotFold::default());
    log.trim(&log.tail().cut, true).unwrap();
    assert_ne!(log.start(), Cut::start(1), "the test has trimmed nothing");
    let found = whole(SnapshotFold::default(), &log, &migration(3)).state;
    assert_eq!((found.generation, found.ended), (3, true));
    // One that is there, and under way, stays so.
    let under_way = known(SnapshotState { generation: 3, ended: false, ..SnapshotState::default() });
    assert_eq!(whole(under_way.clone(), &log, &migration(3)), under_way);
    assert_eq!(whole(under_way.clone(), &log, &migration(0)), under_way);
}
