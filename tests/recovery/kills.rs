//! Kills in every phase, direction by direction, with a report.

use crate::{
    ends::Direction,
    is_soak,
    round::{Kills, play},
    tally::{Phase, Tally},
};
use crossfade_testkit::seeded;
use std::time::Duration;

const REACH: Duration = Duration::from_millis(150);

/// Plays rounds until every phase had its share, and prints what was killed.
async fn killed(direction: Direction, rounds: usize, kills: Kills, least: usize) {
    let seed = seeded::seed(direction.name());
    let mut tally = Tally::default();
    for round in 0..rounds {
        let Some(played) = play(direction, kills, seed.wrapping_add(round as u64)).await else { return };
        tally.add(&played);
    }
    println!("\n{}: {rounds} rounds, both sides equal after each\n{tally}\n", direction.name());
    for phase in Phase::ALL {
        assert!(tally.kills(phase) >= least, "only {} kills in {phase:?}\n{tally}", tally.kills(phase));
    }
}

/// Between two systems of one kind: at least four kills a phase, in the long round at least 125 in all.
async fn killed_often(direction: Direction) {
    let kills = Kills { per_phase: 4, ballast: 40_000, backlog: 1_500, reach: REACH };
    if is_soak() {
        killed(direction, 6, Kills { ballast: 120_000, backlog: 4_000, ..kills }, 20).await;
    } else {
        killed(direction, 1, kills, 4).await;
    }
}

/// From one system into the other: a few kills a phase.
async fn killed_lightly(direction: Direction) {
    let kills = Kills { per_phase: 1, ballast: 15_000, backlog: 500, reach: REACH };
    let rounds = if is_soak() { 3 } else { 1 };
    killed(direction, rounds, kills, rounds).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_to_postgres_survives_kills_in_every_phase() {
    killed_often(Direction::PostgresToPostgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_to_sqlite_survives_kills_in_every_phase() {
    killed_often(Direction::SqliteToSqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_to_sqlite_survives_kills_in_every_phase() {
    killed_lightly(Direction::PostgresToSqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_to_postgres_survives_kills_in_every_phase() {
    killed_lightly(Direction::SqliteToPostgres).await;
}
