//! Kills in every phase: direction by direction, version by version, and for each way of writing, with a report.

use crate::{
    is_soak,
    round::{Kills, play},
    setup::{Direction, Mode, Setup},
    tally::{Phase, Tally},
};
use crossfade_testkit::{
    postgres::Version::{self, V15, V17, V18},
    seeded,
};
use std::time::Duration;

const OFTEN: Kills = Kills { per_phase: 4, ballast: 40_000, backlog: 1_500, reach: Duration::from_millis(150) };
const LONG: Kills = Kills { ballast: 120_000, backlog: 4_000, ..OFTEN };
const LIGHT: Kills = Kills { per_phase: 1, ballast: 15_000, backlog: 500, ..OFTEN };

/// Plays rounds until every phase had its share, and prints what was killed.
async fn killed(setup: impl Into<Setup>, rounds: usize, kills: Kills) {
    let setup = setup.into();
    let seed = seeded::seed(&setup.name());
    let mut tally = Tally::default();
    for round in 0..rounds {
        let Some(played) = play(setup, kills, seed.wrapping_add(round as u64)).await else { return };
        tally.add(&played);
    }
    println!("\n{}: {rounds} rounds, both sides equal after each\n{tally}\n", setup.name());
    for phase in Phase::ALL {
        let least = rounds * kills.per_phase;
        assert!(tally.kills(phase) >= least, "only {} kills in {phase:?}\n{tally}", tally.kills(phase));
    }
}

/// Between two systems of one kind: at least four kills a phase, in the long round 24.
async fn killed_often(direction: Direction) {
    let (rounds, kills) = if is_soak() { (6, LONG) } else { (1, OFTEN) };
    killed(direction, rounds, kills).await;
}

/// From one system into the other: a few kills a phase.
async fn killed_lightly(direction: Direction) {
    killed(direction, if is_soak() { 3 } else { 1 }, LIGHT).await;
}

/// In the long round each of these versions has 20 kills a phase; in the short one chance takes one of them, and kills it once
/// a phase. The seed that is printed takes the same one again.
async fn killed_in_turn(mode: Mode, versions: &[(Version, Version)]) {
    if is_soak() {
        for (source, target) in versions {
            killed(Setup::between(*source, *target, mode), 5, Kills { ballast: 60_000, backlog: 2_000, ..OFTEN }).await;
        }
        return;
    }
    let turn = seeded::seed("the versions in turn");
    if let Some((source, target)) = versions.get((turn % versions.len() as u64) as usize) {
        killed(Setup::between(*source, *target, mode), 1, LIGHT).await;
    }
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

#[tokio::test(flavor = "multi_thread")]
async fn other_versions_of_postgres_survive_kills_in_every_phase() {
    killed_in_turn(Mode::Plain, &[(V17, V17), (V18, V18), (V15, V18), (V18, V15)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_connections_to_the_target_survive_kills_in_every_phase() {
    killed_in_turn(Mode::Parallel, &[(V15, V15), (V17, V18)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_all_kinds_survive_kills_with_changes_in_quarantine() {
    killed_in_turn(Mode::Yard { parallel: false }, &[(V15, V15), (V18, V17)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_all_kinds_survive_kills_by_several_connections() {
    killed_in_turn(Mode::Yard { parallel: true }, &[(V15, V15), (V17, V18)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shadow_columns_survive_kills_in_every_phase_and_never_come_back() {
    killed_in_turn(Mode::Shadow, &[(V15, V15), (V18, V18)]).await;
}
