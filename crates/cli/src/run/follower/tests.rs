//! A second sink, filled from the first one's log.

use super::*;
use crate::run::shop::Shop;
use crossfade_event::{Backfill, Event};
use crossfade_log::embedded::Embedded;

async fn open(shop: &Shop) -> Follower {
    Box::pin(Follower::open(&shop.spec("first"), &shop.spec("second"), None)).await.unwrap()
}

/// Applies what there is; nobody asks to stop.
async fn caught_up(follower: &mut Follower) -> Stand {
    let (_stopper, stop) = stop_channel();
    Box::pin(follower.catch_up(stop)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sink_gets_all_of_the_log_and_goes_on_where_it_was() {
    let shop = Shop::new();
    shop.run().await;
    let mut follower = open(&shop).await;
    let first = caught_up(&mut follower).await;
    assert!(first.is_whole(), "{first:?}");
    assert_eq!(shop.rows("second.db"), shop.rows("shop.db"));
    drop(follower);
    shop.execute("UPDATE items SET name = 'new' WHERE id < 5; DELETE FROM items WHERE id = 7");
    shop.run().await;
    let mut follower = open(&shop).await;
    let second = caught_up(&mut follower).await;
    assert!(second.is_whole() && second.upto.covers(&first.upto) && second.upto != first.upto, "{first:?} {second:?}");
    assert_eq!(shop.rows("second.db"), shop.rows("shop.db"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_ends_in_the_middle_of_a_copy_leaves_a_sink_that_says_so() {
    let shop = Shop::new();
    shop.run().await;
    let begun = Backfill { generation: 2, tables: vec![shop.table()], visible: None };
    shop.say(Event::BackfillBegan(begun)).await;
    let mut follower = open(&shop).await;
    let stand = caught_up(&mut follower).await;
    assert!(stand.in_copy && !stand.is_whole(), "{stand:?}");
    // Following waits for the rest, and has it as soon as it is there.
    let (stopper, stop) = stop_channel();
    let mut following = Box::pin(follower.follow(stop));
    tokio::select! {
        ended = &mut following => panic!("it ended before the copy did: {ended:?}"),
        () = shop.say(Event::BackfillEnded { generation: 2 }) => {}
    }
    let streaming = async {
        loop {
            let mut sink = AnySink::for_looking(&shop.spec("second")).unwrap();
            match sink.progress().await.unwrap() {
                Some(progress) if progress.stage == Stage::Streaming && progress.generation == 2 => return,
                _ => tokio::task::yield_now().await,
            }
        }
    };
    tokio::select! {
        ended = &mut following => panic!("it ended by itself: {ended:?}"),
        () = streaming => stopper.stop(),
    }
    let stand = following.await.unwrap();
    assert!(!stand.in_copy, "{stand:?}");
    // By the log's word the table holds nothing: a copy that ended without a row.
    assert_eq!(shop.rows("second.db"), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_is_stopped_says_how_far_the_sink_is_and_not_how_far_the_log() {
    let shop = Shop::new();
    shop.run().await;
    let mut follower = open(&shop).await;
    let (stopper, stop) = stop_channel();
    stopper.stop();
    let stand = Box::pin(follower.catch_up(stop)).await.unwrap();
    assert!(!stand.is_whole() && !stand.upto.covers(&stand.end), "{stand:?}");
    assert!(caught_up(&mut follower).await.is_whole());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_without_a_whole_copy_fills_no_sink() {
    let shop = Shop::new();
    let refused = |error: CliError| (error.exit, error.message);
    let (from, into) = (shop.spec("first"), shop.spec("second"));
    let error = Box::pin(Follower::open(&from, &into, None)).await.err().unwrap();
    assert_eq!(error.exit, Exit::Misconfigured, "{error}");
    shop.run().await;
    // The first copy as one that was never ended.
    let log = WorkFolder::log_path(&from.folder());
    fs::remove_dir_all(&log).unwrap();
    let empty = Embedded::open(&log, crossfade_log::embedded::Options::default()).unwrap();
    drop(empty);
    let (exit, message) = refused(Box::pin(Follower::open(&from, &into, None)).await.err().unwrap());
    assert_eq!(exit, Exit::Refused);
    assert!(message.contains("does not hold a whole copy"), "{message}");
}

#[test]
fn an_origin_that_cannot_be_read_is_damage_and_never_a_source_of_ones_own() {
    let home = tempfile::tempdir().unwrap();
    assert_eq!(Origin::read(home.path()).unwrap(), None);
    for (text, word) in [("{", "is damaged"), (r#"{"format":2,"spec":"x","base":false}"#, "has format 2")] {
        fs::write(Origin::path(home.path()), text).unwrap();
        let error = Origin::read(home.path()).unwrap_err();
        assert!(error.exit == Exit::Lost && error.message.contains(word), "{error}");
    }
    let shop = Shop::new();
    let spec = shop.spec("first");
    Origin::write(home.path(), &spec, true).unwrap();
    let origin = Origin::read(home.path()).unwrap().unwrap();
    assert!(origin.base);
    assert_eq!(origin.load().unwrap().name.as_str(), "first");
    let error = Origin::refuse(home.path(), &shop.spec("second")).unwrap_err();
    assert_eq!(error.exit, Exit::Refused);
    assert!(error.hint.unwrap().contains("--follow"));
}
