//! Servers that die and come back, a network that is cut, and a second run of the same migration. The run itself stays: it
//! waits, says so, and goes on.

use crate::{
    bank,
    ends::End,
    hand::Hand,
    is_soak,
    setup::Direction,
    stand::{SPEC, Stand},
};
use crossfade_testkit::{
    crossfade::{Running, binary},
    postgres::{
        Postgres, Settings,
        Version::{self, V15, V17, V18},
    },
    proxy::{Fault, Proxy},
    seeded,
    wait::wait_until,
};
use rand::Rng;
use std::process::Command;

const BALLAST: i64 = 15_000;

/// Two servers of this test's own. Commits that were acknowledged must outlive a kill, so `fsync` is on.
async fn servers() -> Option<(Postgres, Postgres, Stand)> {
    servers_of(V15, V15).await
}

async fn servers_of(source: Version, target: Version) -> Option<(Postgres, Postgres, Stand)> {
    let source = Postgres::start(source, Settings::new().fsync())?;
    let target = Postgres::start(target, Settings::new().fsync())?;
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (source.create_database("source").await, target.create_database("target").await);
    let setup = Direction::PostgresToPostgres.into();
    let stand = Stand::over(setup, End::Postgres(one), End::Postgres(two), folder, binary());
    bank::create(&stand.source, BALLAST).await;
    Some((source, target, stand))
}

/// The writers end, the run catches up, both sides are equal; and it is still the same run.
async fn settle(stand: &Stand, mut run: Running, teller: Hand, mark: i64) {
    teller.wait_for_more(10);
    teller.stop();
    stand.until_caught_up(&mut run, mark).await;
    stand.wait_caught_up();
    stand.assert_equal(false).await;
    assert!(run.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_server_that_crashes_and_restarts_is_waited_for() {
    let Some((source, _target, stand)) = servers().await else { return };
    let teller = bank::teller(&stand.source, seeded::seed("a source that crashes"), 150);
    let mut run = stand.start();
    for mark in 1..=3 {
        stand.until_caught_up(&mut run, mark).await;
        teller.wait_for_more(10);
        source.kill();
        source.start_again();
        teller.wait_for_more(10);
    }
    source.restart();
    settle(&stand, run, teller, 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_server_that_crashes_in_the_middle_of_the_copy_is_waited_for() {
    let Some((source, _target, stand)) = servers().await else { return };
    let teller = bank::teller(&stand.source, seeded::seed("a source that crashes while it is copied"), 100);
    let mut run = stand.start();
    // Segments, or the note of the topics.
    let (segments, topics) = (stand.work().join("log"), stand.work().join("topics.json"));
    stand.until("the log is there", &mut run, async || segments.is_dir() || topics.exists()).await;
    source.kill();
    source.start_again();
    settle(&stand, run, teller, 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_server_that_crashes_and_restarts_is_waited_for() {
    let Some((_source, target, stand)) = servers().await else { return };
    let teller = bank::teller(&stand.source, seeded::seed("a target that crashes"), 150);
    let mut run = stand.start();
    for mark in 1..=4 {
        stand.until_caught_up(&mut run, mark).await;
        teller.wait_for_more(10);
        // Commits that the target had not written to its disk are gone now, and their position with them.
        target.kill();
        target.start_again();
        teller.wait_for_more(5);
    }
    target.restart();
    settle(&stand, run, teller, 10).await;
}

/// How a server goes down.
#[derive(Debug, Clone, Copy)]
enum Stop {
    /// Sessions are ended, a checkpoint is written.
    Fast,
    /// Backends are told to quit as they are; the next start recovers.
    Immediate,
    /// Not even that.
    Killed,
}

fn take_down(server: &Postgres, how: Stop) {
    match how {
        Stop::Fast => server.stop(),
        Stop::Immediate => {
            let pid = server.pid().map(|pid| pid.to_string()).unwrap_or_default();
            let sent = Command::new("sh").args(["-c", "kill -QUIT \"$0\"", &pid]).status();
            assert!(sent.is_ok_and(|status| status.success()), "no signal to the server");
            crossfade_testkit::wait::wait_for_blocking("the server's processes to end", || {
                server.pids().is_empty().then_some(())
            });
            // Only its exit is still to be taken note of.
            server.kill();
        }
        Stop::Killed => server.kill(),
    }
}

/// The source, the target, both at once and Crossfade itself go down in turn, each in every way, in the copy and after it.
async fn all_go_down(source: Version, target: Version, times: usize) {
    let Some((source, target, stand)) = servers_of(source, target).await else { return };
    let seed = seeded::seed("all go down");
    let mut rng = seeded::worker(seed, 3);
    let teller = bank::teller(&stand.source, seed, 150);
    let mut run = stand.start();
    // Nothing is waited for while it plans: a server that is not there then is a wrong address.
    stand.until("the copy has begun", &mut run, async || stand.log_end() > 0).await;
    let (mut mark, mut killed) = (0, 0);
    for time in 0..times {
        // Both orders: what goes down while the other is coming back.
        let how = [Stop::Fast, Stop::Immediate, Stop::Killed][time % 3];
        match time % 5 {
            0 => (take_down(&source, how), source.start_again()).1,
            1 => (take_down(&target, how), target.start_again()).1,
            2 => {
                take_down(&target, how);
                teller.wait_for_more(10);
                killed += 1;
                run.kill();
                run = stand.start();
                target.start_again();
            }
            3 => {
                take_down(&source, how);
                take_down(&target, how);
                source.start_again();
                target.start_again();
            }
            _ => {
                killed += 1;
                run.kill();
                take_down(&source, how);
                source.start_again();
                run = stand.start();
            }
        }
        teller.wait_for_more(rng.random_range(1..20));
        if rng.random_ratio(1, 2) {
            mark += 1;
            bank::backlog(&stand.source, 1_000 + mark, 300, mark).await;
            stand.until("the target has caught up", &mut run, async || stand.has_mark(mark).await).await;
        }
    }
    settle(&stand, run, teller, 1_000).await;
    println!(
        "{} to {}: {times} times something went down, {killed} times crossfade was killed with it, both sides equal",
        source.version(),
        target.version()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn source_target_and_crossfade_may_go_down_in_any_way_and_order() {
    if !is_soak() {
        return all_go_down(V15, V15, 5).await;
    }
    for (source, target) in [(V15, V15), (V17, V17), (V18, V18), (V15, V18), (V18, V15)] {
        all_go_down(source, target, 30).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_is_cut_again_and_again_loses_nothing() {
    let (Some(source), Some(target)) = (Postgres::shared(V15), Postgres::shared_target(V15)) else {
        return;
    };
    let Some(stand) = Stand::new(Direction::PostgresToPostgres).await else { return };
    bank::create(&stand.source, BALLAST).await;
    let seed = seeded::seed("a network that is cut");
    let (to_source, to_target) = (Proxy::start(source.port(), seed), Proxy::start(target.port(), seed + 1));
    let through =
        |end: &End, own: u16, proxy: &Proxy| end.spec().replace(&format!(":{own}/"), &format!(":{}/", proxy.port()));
    stand.write_spec(
        &through(&stand.source, source.port(), &to_source),
        &through(&stand.target, target.port(), &to_target),
    );
    let teller = bank::teller(&stand.source, seed, 150);
    let mut run = stand.start();
    // In the copy, and then in the stream: every connection dies after some bytes of the server's. A target says little.
    for _ in 0..2 {
        for (proxy, reach) in [(&to_source, 20_000..400_000), (&to_target, 300..9_000)] {
            let before = proxy.cuts();
            proxy.set(Fault::CutAfter(reach));
            stand.until("three connections are cut", &mut run, async || proxy.cuts() >= before + 3).await;
            proxy.set(Fault::None);
        }
    }
    stand.until_caught_up(&mut run, 1).await;
    for _ in 0..5 {
        teller.wait_for_more(5);
        to_source.cut_all();
        teller.wait_for_more(5);
        to_target.cut_all();
    }
    to_target.set(Fault::Split(7));
    to_source.set(Fault::Split(7));
    teller.wait_for_more(20);
    to_target.set(Fault::None);
    to_source.set(Fault::None);
    settle(&stand, run, teller, 10).await;
    assert!(to_source.cuts() >= 6 && to_target.cuts() >= 6, "the network was to be cut");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_run_of_the_same_migration_is_turned_away() {
    for direction in [Direction::PostgresToPostgres, Direction::SqliteToSqlite] {
        let Some(stand) = Stand::new(direction).await else { return };
        bank::create(&stand.source, 100).await;
        let mut run = stand.start();
        stand.until_caught_up(&mut run, 1).await;
        let second = stand.start().wait();
        assert_eq!(second.code, Some(75), "{second}");
        assert!(second.stderr.contains(&run.pid().to_string()), "it must be said who owns the migration\n{second}");
        stand.until_caught_up(&mut run, 2).await;
        run.terminate();
        assert_eq!(run.wait().code, Some(0), "a run that is asked to stop drains and ends well");
        let third = stand.start();
        wait_until("the third run", async || stand.work().join("control.sock").exists()).await;
        drop(third);
    }
}

/// A run that was stopped in its tracks wakes up after another took its place: it may write nothing more.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_superseded_is_fenced_by_the_target() {
    let Some(stand) = Stand::new(Direction::PostgresToPostgres).await else { return };
    bank::create(&stand.source, 500).await;
    let mut run = stand.start();
    stand.until_caught_up(&mut run, 1).await;
    let raise = format!("UPDATE crossfade.positions SET epoch = epoch + 1 WHERE migration = '{}'", stand.name);
    stand.target.execute(&raise).await;
    bank::write_mark(&stand.source, 2).await;
    let ended = run.wait();
    assert_eq!(ended.code, Some(3), "{ended}");
    assert!(ended.stderr.contains("epoch"), "{ended}");
    assert!(!bank::has_mark(&stand.target, 2).await, "the older run must not write");
    let status = stand.crossfade.run(&["status", SPEC]);
    assert_eq!(status.code, Some(0), "{status}");
}
