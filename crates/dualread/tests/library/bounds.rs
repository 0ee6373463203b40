//! What the side without the authority can never do, and what ends the comparing.

use crate::world::{Heard, World, all_by, dual_reads, eager};
use crossfade_dualread::{
    BreakerOptions, Budgets, DualReads, Failure, Flag, LatencyBudget, NoPlaces, Options, Outcome, Percent, Polled,
    Side, Subject, Told, Unjudged, Why,
};
use crossfade_testkit::wait::wait_until;
use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Notify, Semaphore};

const KEY: &str = "one";

fn subject() -> Subject {
    Subject::new("acme", KEY)
}

async fn fine() -> Result<u64, &'static str> {
    Ok(1)
}

async fn broken() -> Result<u64, &'static str> {
    Err("broken")
}

fn of_all(options: Options) -> (DualReads, Heard) {
    dual_reads(&World::still(), options)
}

#[tokio::test]
async fn a_call_that_is_not_sampled_asks_one_side_only() {
    let world = World::still();
    let (reads, heard) = dual_reads(&world, eager());
    reads.set(Flag { percent: Percent::NONE, ..all_by(Side::Old, 1) });
    assert_eq!(world.read(&reads).await, Ok(1));
    reads.set(Flag { percent: Percent::NONE, ..all_by(Side::New, 2) });
    assert_eq!(world.read(&reads).await, Ok(1));
    let asked = (world.asked_control.load(Ordering::SeqCst), world.asked_candidate.load(Ordering::SeqCst));
    assert_eq!(asked, (1, 1), "one call each, of the side that has the authority");
    assert_eq!((reads.snapshot().counts.sampled, heard.outcomes().len()), (0, 0));
}

#[tokio::test]
async fn whatever_the_other_side_does_the_answer_is_there_and_at_once() {
    let (reads, heard) = of_all(Options { candidate_timeout: Duration::from_millis(30), ..eager() });
    assert_eq!(reads.read(subject(), fine, broken).await, Ok(1));
    reads.settled().await;
    assert_eq!(reads.read(subject(), fine, pending::<Result<u64, &'static str>>).await, Ok(1));
    reads.settled().await;
    let panics = || async { panic!("on purpose: the other side's closure panics") };
    assert_eq!(reads.read(subject(), fine, panics).await, Ok(1));
    reads.settled().await;
    let differ = |_: &u64, _: &u64| panic!("on purpose: the comparison panics");
    assert_eq!(reads.read_by(subject(), differ, fine, fine).await, Ok(1));
    reads.settled().await;
    let wanted = [
        Outcome::CandidateFailed,
        Outcome::CandidateTimedOut,
        Outcome::CandidateFailed,
        Outcome::Unjudged(Unjudged::Interrupted),
    ];
    assert_eq!(heard.outcomes(), wanted);
}

#[tokio::test]
async fn an_error_of_the_side_with_the_authority_is_the_applications() {
    let (reads, heard) = of_all(eager());
    assert_eq!(reads.read(subject(), broken, fine).await, Err("broken"));
    reads.settled().await;
    assert_eq!(reads.read(subject(), broken, broken).await, Err("broken"));
    reads.settled().await;
    assert_eq!(heard.outcomes(), [Outcome::ControlFailed, Outcome::BothFailed]);
}

#[tokio::test]
async fn the_answer_does_not_wait_for_the_other_side() {
    let (reads, heard) = of_all(eager());
    let gate = Arc::new(Semaphore::new(0));
    let inside = Arc::clone(&gate);
    let slow = move || {
        let gate = Arc::clone(&inside);
        async move {
            drop(gate.acquire().await);
            Ok::<u64, &'static str>(1)
        }
    };
    assert_eq!(reads.read(subject(), fine, slow).await, Ok(1));
    assert_eq!(heard.outcomes(), [], "the other side has not answered yet");
    gate.add_permits(1);
    reads.settled().await;
    assert_eq!(heard.outcomes(), [Outcome::Match]);
}

#[tokio::test]
async fn no_more_are_compared_at_once_than_said() {
    let (reads, heard) = of_all(Options { compared_at_once: 3, ..eager() });
    let (gate, most, now) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    for _ in 0..10 {
        let (gate, most, now) = (Arc::clone(&gate), Arc::clone(&most), Arc::clone(&now));
        let held = move || {
            let (gate, most, now) = (Arc::clone(&gate), Arc::clone(&most), Arc::clone(&now));
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                drop(gate.acquire().await);
                now.fetch_sub(1, Ordering::SeqCst);
                Ok::<u64, &'static str>(1)
            }
        };
        assert_eq!(reads.read(subject(), fine, held).await, Ok(1));
    }
    wait_until("three to be under way", async || now.load(Ordering::SeqCst) == 3).await;
    gate.add_permits(1);
    reads.settled().await;
    assert_eq!(most.load(Ordering::SeqCst), 3);
    let counts = reads.snapshot().counts;
    assert_eq!((counts.sampled, counts.skipped_busy, counts.matched), (3, 7, 3));
    assert_eq!(heard.outcomes().len(), 3);
}

/// Tells when it is dropped.
struct Ends(Arc<Notify>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

#[tokio::test]
async fn a_read_that_is_given_up_ends_the_other_sides_too() {
    let (reads, heard) = of_all(Options { candidate_timeout: crossfade_testkit::wait::GENEROUS * 10, ..eager() });
    let (ended, began) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (ends, begins) = (Arc::clone(&ended), Arc::clone(&began));
    let held = move || {
        let (guard, begins) = (Ends(Arc::clone(&ends)), Arc::clone(&begins));
        async move {
            begins.notify_one();
            let _guard = guard;
            pending::<Result<u64, &'static str>>().await
        }
    };
    {
        let reading = reads.read(subject(), pending::<Result<u64, &'static str>>, held);
        tokio::select! {
            _ = reading => panic!("nobody answers"),
            () = began.notified() => {}
        }
    }
    let in_time = tokio::time::timeout(crossfade_testkit::wait::GENEROUS, ended.notified()).await;
    assert!(in_time.is_ok(), "the other side goes on though nobody waits for it");
    reads.settled().await;
    assert_eq!(heard.outcomes(), []);
    assert_eq!(reads.read(subject(), fine, fine).await, Ok(1));
    reads.settled().await;
    assert_eq!(heard.outcomes(), [Outcome::Match], "its place and its leave were given back");
}

#[tokio::test]
async fn the_breaker_leaves_a_failing_side_alone_and_tries_it_again() {
    let breaker = BreakerOptions { failures: 3, cool_down: Duration::from_millis(50), trials: 2 };
    let (reads, heard) = of_all(Options { breaker, ..eager() });
    for _ in 0..3 {
        assert_eq!(reads.read(subject(), fine, broken).await, Ok(1));
        reads.settled().await;
    }
    assert!(heard.has(|told| *told == Told::BreakerOpened));
    assert_eq!(reads.snapshot().breaker, "open");
    let asked = Arc::new(AtomicUsize::new(0));
    wait_until("the breaker to close", async || {
        let asked = Arc::clone(&asked);
        let counted = move || {
            asked.fetch_add(1, Ordering::SeqCst);
            fine()
        };
        assert_eq!(reads.read(subject(), fine, counted).await, Ok(1));
        reads.settled().await;
        reads.snapshot().breaker == "closed"
    })
    .await;
    assert!(heard.has(|told| *told == Told::BreakerClosed));
    assert_eq!(asked.load(Ordering::SeqCst), 2, "two trials close it, and while it was open nobody was asked");
    assert!(reads.snapshot().counts.skipped_open > 0);
}

#[tokio::test]
async fn it_steps_down_past_its_mismatch_budget_until_somebody_changes_the_flag() {
    let world = World::still();
    let budgets = Budgets { mismatches: 0.5, window: 10, least: 4, latency: None };
    let (reads, heard) = dual_reads(&world, Options { budgets, ..eager() });
    let read = async || {
        world.read(&reads).await.unwrap();
        reads.settled().await;
    };
    read().await;
    read().await;
    world.with(|sides| sides.damage = Some(7));
    while reads.stepped_down().is_none() {
        read().await;
        assert!(heard.outcomes().len() < 10, "the budget is not held to");
    }
    assert_eq!(reads.stepped_down(), Some(Why::Mismatches { mismatched: 3, judged: 5 }));
    assert!(heard.has(|told| matches!(told, Told::SteppedDown(_))));
    let asked = world.asked_candidate.load(Ordering::SeqCst);
    read().await;
    assert_eq!(world.asked_candidate.load(Ordering::SeqCst), asked, "nothing is compared any more");
    assert!(reads.snapshot().prometheus("shop").contains("crossfade_dual_reads_stepped_down{migration=\"shop\"} 1"));

    assert!(reads.set(all_by(Side::Old, 1)), "the same flag again is no news");
    read().await;
    assert_eq!(world.asked_candidate.load(Ordering::SeqCst), asked);
    world.with(|sides| sides.damage = None);
    assert!(reads.set(all_by(Side::Old, 2)));
    read().await;
    assert_eq!(world.asked_candidate.load(Ordering::SeqCst), asked + 1, "somebody has changed the flag");
    assert!(heard.has(|told| *told == Told::SteppedUp) && reads.stepped_down().is_none());
}

#[tokio::test]
async fn it_steps_down_past_its_latency_budget() {
    let latency = LatencyBudget { over: 0.1, slack: Duration::ZERO };
    let budgets = Budgets { window: 20, least: 10, latency: Some(latency), ..Budgets::default() };
    let (reads, heard) = of_all(Options { budgets, ..eager() });
    let slow = || async {
        std::thread::sleep(Duration::from_millis(3));
        Ok::<u64, &'static str>(1)
    };
    // A busy machine may hold up the quick side as well, now and then.
    while reads.stepped_down().is_none() {
        reads.read(subject(), fine, slow).await.unwrap();
        reads.settled().await;
        assert!(heard.outcomes().len() < 2_000, "the budget is not held to");
    }
    assert!(heard.has(|told| matches!(told, Told::SteppedDown(Why::Latency { .. }))), "{:?}", heard.all());
}

#[tokio::test]
async fn an_epoch_that_is_over_is_refused_and_so_is_a_second_authority_in_one_epoch() {
    let (reads, heard) = of_all(eager());
    assert!(reads.set(all_by(Side::New, 5)));
    assert!(!reads.set(all_by(Side::Old, 4)));
    assert!(!reads.set(all_by(Side::Old, 5)));
    assert_eq!(reads.flag(), all_by(Side::New, 5));
    let refused = heard.all().iter().filter(|told| matches!(told, Told::FlagRefused { .. })).count();
    assert_eq!(refused, 2);
    assert!(reads.set(Flag { percent: Percent::NONE, ..all_by(Side::New, 5) }), "the share may change within an epoch");
}

#[tokio::test]
async fn the_feed_is_followed_and_its_failures_change_nothing() {
    let (reads, heard) = of_all(eager());
    let next = Arc::new(Mutex::new(vec![
        Ok(all_by(Side::New, 3)),
        Err(Failure::retry("reading the flag", "the server is away")),
        Ok(all_by(Side::New, 2)),
        Ok(all_by(Side::Old, 4)),
    ]));
    let feed = Polled::new(Duration::from_millis(1), move || {
        let next = Arc::clone(&next);
        async move {
            let mut next = next.lock().unwrap();
            if next.is_empty() { Ok(all_by(Side::Old, 4)) } else { next.remove(0) }
        }
    });
    let followed = reads.clone();
    let following = tokio::spawn(async move { followed.follow(feed).await });
    wait_until("the last flag", async || reads.flag() == all_by(Side::Old, 4)).await;
    following.abort();
    assert!(heard.has(|told| matches!(told, Told::FeedFailed(_))));
    assert!(heard.has(|told| matches!(told, Told::FlagRefused { .. })));
}

#[tokio::test]
async fn nothing_is_compared_while_the_flag_is_too_old() {
    let world = World::still();
    assert_eq!(Options::default().flag_age_max, Some(Duration::from_secs(30)));
    let (reads, _) = dual_reads(&world, Options { flag_age_max: Some(Duration::from_millis(20)), ..eager() });
    // Given once and followed by nobody, it does not age.
    tokio::time::sleep(Duration::from_millis(30)).await;
    world.read(&reads).await.unwrap();
    reads.settled().await;
    assert_eq!(world.asked_candidate.load(Ordering::SeqCst), 1);
    // A feed that never speaks: it is not known whether that still holds.
    let followed = reads.clone();
    let silent = Polled::new(Duration::from_secs(3600), pending);
    let following = tokio::spawn(async move { followed.follow(silent).await });
    wait_until("the flag to be too old", async || {
        let before = world.asked_candidate.load(Ordering::SeqCst);
        world.read(&reads).await.unwrap();
        reads.settled().await;
        world.asked_candidate.load(Ordering::SeqCst) == before
    })
    .await;
    following.abort();
    assert!(reads.set(all_by(Side::Old, 1)), "the feed has spoken");
    let before = world.asked_candidate.load(Ordering::SeqCst);
    world.read(&reads).await.unwrap();
    reads.settled().await;
    assert_eq!(world.asked_candidate.load(Ordering::SeqCst), before + 1);
}

#[tokio::test]
async fn without_positions_a_difference_gets_no_verdict() {
    let heard = Heard::default();
    let reads = DualReads::heard_by(eager(), all_by(Side::Old, 1), NoPlaces, heard.clone());
    let other = || async { Ok::<u64, &'static str>(2) };
    assert_eq!(reads.read(subject(), fine, other).await, Ok(1));
    reads.settled().await;
    assert_eq!(heard.outcomes(), [Outcome::Unjudged(Unjudged::NoPlace)]);
}
