//! Every outcome, and that no lag is ever taken for a mismatch.

use crate::world::{World, all_by, dual_reads, eager, is_mismatch};
use crossfade_dualread::{Options, Outcome, Side, Subject, Unjudged};
use crossfade_testkit::seeded::{seed, worker};
use rand::Rng;
use std::{sync::atomic::Ordering, time::Duration};

#[tokio::test]
async fn equal_answers_match_and_only_two_questions_are_asked() {
    let world = World::still();
    let (reads, heard) = dual_reads(&world, eager());
    assert_eq!(world.read(&reads).await, Ok(1));
    reads.settled().await;
    assert_eq!(heard.outcomes(), [Outcome::Match]);
    let asked = (world.asked_control.load(Ordering::SeqCst), world.asked_candidate.load(Ordering::SeqCst));
    assert_eq!(asked, (1, 1));
    let counts = reads.snapshot().counts;
    assert_eq!((counts.reads, counts.sampled, counts.matched), (1, 1, 1));
    assert_eq!((reads.snapshot().old.count, reads.snapshot().new.count), (1, 1));
}

#[tokio::test]
async fn a_side_that_is_behind_is_explained_by_lag_once_it_has_come_past_the_position() {
    // Each question lets the other side come one step further.
    let world = World::where_happens(|sides| sides.apply(1));
    world.with(|sides| (0..9).for_each(|_| sides.write()));
    let (reads, heard) = dual_reads(&world, eager());
    assert_eq!(world.read(&reads).await, Ok(10));
    reads.settled().await;
    assert_eq!(heard.outcomes(), [Outcome::Lag]);
    assert_eq!(reads.snapshot().counts.explained_by_lag, 1);
}

#[tokio::test]
async fn a_side_that_stands_still_behind_the_position_gets_no_verdict() {
    let world = World::still();
    world.with(|sides| sides.write());
    let (reads, heard) = dual_reads(&world, Options { patience: Duration::from_millis(20), ..eager() });
    assert_eq!(world.read(&reads).await, Ok(2));
    reads.settled().await;
    assert_eq!(heard.outcomes(), [Outcome::Unjudged(Unjudged::Behind)]);
}

#[tokio::test]
async fn a_value_that_is_wrong_past_the_position_is_a_stable_mismatch() {
    let world = World::still();
    world.with(|sides| sides.damage = Some(99));
    let (reads, heard) = dual_reads(&world, eager());
    assert_eq!(world.read(&reads).await, Ok(1), "the answer is that of the side with the authority");
    reads.settled().await;
    assert!(matches!(heard.outcomes().as_slice(), [outcome] if is_mismatch(outcome)), "{:?}", heard.outcomes());
}

#[tokio::test]
async fn an_answer_that_changes_at_every_look_gets_no_verdict() {
    let world = World::where_happens(|sides| {
        sides.write();
        sides.apply(usize::MAX / 2);
    });
    world.with(|sides| sides.damage = Some(0));
    let (reads, heard) = dual_reads(&world, eager());
    world.read(&reads).await.unwrap();
    reads.settled().await;
    assert_eq!(heard.outcomes(), [Outcome::Unjudged(Unjudged::Moving)]);
}

#[tokio::test]
async fn after_a_switch_the_new_side_answers_and_the_old_one_is_compared() {
    let world = World::still();
    world.with(|sides| sides.damage = Some(7));
    let (reads, _) = dual_reads(&world, eager());
    assert_eq!(world.read(&reads).await, Ok(1));
    assert!(reads.set(all_by(Side::New, 2)));
    assert_eq!(world.read(&reads).await, Ok(7), "the new side has the authority");
    reads.settled().await;
}

#[tokio::test]
async fn an_authority_that_changes_while_a_difference_is_judged_leaves_no_verdict() {
    let world = World::still();
    world.with(|sides| sides.damage = Some(7));
    let (reads, heard) = dual_reads(&world, eager());
    let (one, other, switch) = (world.clone(), world.clone(), reads.clone());
    let old = move || {
        let value = one.control();
        async move { Ok::<_, ()>(value) }
    };
    let new = move || {
        // The second question is the judgement's.
        if other.asked_candidate.load(Ordering::SeqCst) == 1 {
            switch.set(all_by(Side::New, 2));
        }
        let value = other.candidate();
        async move { Ok(value) }
    };
    reads.read(Subject::new("acme", "one"), old, new).await.unwrap();
    reads.settled().await;
    assert_eq!(heard.outcomes(), [Outcome::Unjudged(Unjudged::Interrupted)]);
}

/// Hundreds of worlds, in each of which writes and deliveries come at any moment between two questions.
#[tokio::test]
async fn no_lag_is_ever_taken_for_a_mismatch_and_damage_always_is_found_in_the_end() {
    let seed = seed("worlds of dual reads");
    let mut found = [0_usize; 4];
    for number in 0..300 {
        let mut random = worker(seed, number);
        let (writes, applies) = (random.random_range(0.0..0.9), random.random_range(0.1..1.0));
        let behind = random.random_range(0..5);
        let mut dice = worker(seed, number + 100_000);
        let world = World::where_happens(move |sides| {
            if sides.history.len() < 200 && dice.random_bool(writes) {
                sides.write();
            }
            if dice.random_bool(applies) {
                sides.apply(dice.random_range(1..4));
            }
        });
        world.with(|sides| (0..behind).for_each(|_| sides.write()));
        let (reads, heard) = dual_reads(&world, Options { look_every: Duration::ZERO, ..eager() });
        for _ in 0..3 {
            let before = world.with(|sides| *sides.history.last().unwrap());
            let answer = world.read(&reads).await.unwrap();
            assert!(answer >= before, "world {number}: the answer is older than the side with the authority was");
        }
        reads.settled().await;
        for outcome in heard.outcomes() {
            assert!(!is_mismatch(&outcome), "world {number}, seed {seed}: {outcome:?}");
            found[match outcome {
                Outcome::Match => 0,
                Outcome::Lag => 1,
                Outcome::Unjudged(Unjudged::Moving) => 2,
                _ => panic!("world {number}, seed {seed}: {outcome:?}"),
            }] += 1;
        }
        // Whatever happened: once nobody writes, damage is found at the first read.
        world.with(|sides| {
            (sides.history, sides.applied) = (vec![5; 200], 200);
            sides.damage = Some(4);
        });
        world.read(&reads).await.unwrap();
        reads.settled().await;
        assert!(
            heard.outcomes().last().is_some_and(is_mismatch),
            "world {number}, seed {seed}: {:?}",
            heard.outcomes()
        );
    }
    assert!(found[..3].iter().all(|count| *count > 0), "a kind of outcome was never met: {found:?}");
}
