//! Do these tests find what they are for? Two builds with a defect each must fail them: one acknowledges to the source before
//! the log has it, the other writes the position outside of the rows' transaction.
//!
//! Each needs a release build of its own, so they run in the long round, and where `CROSSFADE_MUTANTS=1` asks for them.

use crate::{
    is_soak,
    round::{Kills, play_forward},
    setup::{Direction, Setup},
};
use crossfade_testkit::seeded;
use std::{
    any::Any,
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

/// Kills until one is found, so many rounds at most. A sound build passes each of them.
const ROUNDS: u64 = 8;

fn is_asked_for() -> bool {
    is_soak() || env::var("CROSSFADE_MUTANTS").is_ok_and(|value| value == "1")
}

/// The binary with a defect: only our own crates are built anew.
fn build(defect: &str) -> PathBuf {
    let repository = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let built =
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository.join("target"), PathBuf::from).join("defects");
    fs::create_dir_all(&built).unwrap();
    let compiler = built.join(format!("rustc-{defect}"));
    fs::write(&compiler, format!("#!/bin/sh\nexec \"$@\" --cfg 'defect=\"{defect}\"'\n")).unwrap();
    fs::set_permissions(&compiler, fs::Permissions::from_mode(0o755)).unwrap();
    let done = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--release", "--offline", "-p", "crossfade-cli"])
        .current_dir(&repository)
        .env("CARGO_TARGET_DIR", &built)
        .env("RUSTC_WORKSPACE_WRAPPER", &compiler)
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
        .output()
        .unwrap();
    assert!(done.status.success(), "the build with a defect failed:\n{}", String::from_utf8_lossy(&done.stderr));
    let own = built.join(format!("crossfade-{defect}"));
    fs::copy(built.join("release/crossfade"), &own).unwrap();
    own
}

fn is_found(direction: Direction, binary: &Path) -> bool {
    let seed = seeded::seed("a build with a defect");
    // A source hears once a second of what it may forget: kills come up to that long after a sign of work.
    let kills = Kills { per_phase: 6, ballast: 3_000, backlog: 3_000, reach: Duration::from_millis(1_200) };
    for round in 0..ROUNDS {
        let (seed, binary) = (seed.wrapping_add(round), binary.to_owned());
        let played = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            runtime.block_on(play_forward(direction.into(), kills, seed, binary))
        });
        match played.join() {
            Ok(None) => return true,
            Ok(Some(_)) => {}
            Err(failed) => {
                println!("{}: found in round {}: {}", Setup::from(direction).name(), round + 1, sentence(failed));
                return true;
            }
        }
    }
    false
}

/// The first lines of the panic by which a round failed.
fn sentence(panic: Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .map(|text| text.lines().take(4).collect::<Vec<_>>().join(" / "))
        .unwrap_or_default()
}

fn fails_with(defect: &str) {
    if !is_asked_for() {
        println!("not asked for: CROSSFADE_MUTANTS=1 builds a binary with the defect {defect}, which must fail");
        return;
    }
    let binary = build(defect);
    for direction in [Direction::PostgresToPostgres, Direction::SqliteToSqlite] {
        assert!(is_found(direction, &binary), "{}: {defect} was not found", Setup::from(direction).name());
    }
}

#[test]
fn a_build_that_acknowledges_before_the_log_has_it_is_found() {
    fails_with("ack-before-append");
}

#[test]
fn a_build_that_writes_the_position_outside_of_the_transaction_is_found() {
    fails_with("position-outside-transaction");
}
