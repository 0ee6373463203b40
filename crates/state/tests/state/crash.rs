//! A process that is killed at any moment loses nothing that it was told is written.
//!
//! The child is this same test binary: one test that does nothing unless a folder is named in its environment.

use crossfade_state::{Changes, Prefix, Setting, SettingKey, SledStore, StateStore};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
};

const FOLDER: &str = "CROSSFADE_STATE_CHILD";
const ROUNDS: u32 = 25;

#[test]
fn child_commits_until_it_is_killed() {
    let Some(dir) = std::env::var_os(FOLDER) else { return };
    println!("opening");
    let store = SledStore::open(dir).unwrap();
    let first = store.get(&SettingKey::new("a")).unwrap().map_or(0, |value| number(&value));
    for n in first + 1.. {
        // Both values land together; the second one in several parts of changing number.
        let long = Setting(format!("{n} {}", "x".repeat((n as usize * 977) % 20_000)));
        let changes = Changes::one(&SettingKey::new("a"), &Setting(n.to_string())).put(&SettingKey::new("b"), &long);
        store.commit_blocking(changes).unwrap();
        println!("written {n}");
        std::io::stdout().flush().unwrap();
    }
}

fn number(value: &Setting) -> u64 {
    value.0.split(' ').next().unwrap().parse().unwrap()
}

fn start(dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["crash::child_commits_until_it_is_killed", "--exact", "--nocapture", "--test-threads=1"])
        .env(FOLDER, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// Kills the child once it has said `after` lines that begin with `word`; returns the last number it said.
fn kill_after(mut child: Child, word: &str, after: u32) -> u64 {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let said = |line: &str| line.contains(word).then(|| line.rsplit(' ').next()?.parse().ok()).flatten();
    let mut last = 0;
    let mut seen = 0;
    while seen < after {
        let line = lines.next().expect("the child ended by itself");
        seen += u32::from(line.contains(word));
        last = said(&line).unwrap_or(last);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // What it said before the kill came counts too.
    lines.filter_map(|line| said(&line)).last().unwrap_or(last)
}

#[test]
fn every_acknowledged_commit_survives_kill_9() {
    let seed: u64 = rand::rng().random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("state");
    let mut in_flight = 0;
    for round in 0..ROUNDS {
        let acknowledged = kill_after(start(&dir), "written", random.random_range(1..25));
        let store = SledStore::open(&dir).unwrap();
        let a = number(&store.get(&SettingKey::new("a")).unwrap().unwrap());
        let b = number(&store.get(&SettingKey::new("b")).unwrap().unwrap());
        assert!(
            a == acknowledged || a == acknowledged + 1,
            "round {round}: {acknowledged} was acknowledged, {a} is there"
        );
        assert_eq!(a, b, "round {round}: a commit landed in part");
        in_flight += u32::from(a == acknowledged + 1);
    }
    println!("{ROUNDS} kills, {in_flight} with a commit that had landed but was not acknowledged");
}

#[test]
fn a_process_killed_while_opening_leaves_a_store_that_opens() {
    let seed: u64 = rand::rng().random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let home = tempfile::tempdir().unwrap();
    for round in 0..20 {
        let dir = home.path().join(format!("state{}", round / 4));
        let child = start(&dir);
        // Anywhere between the first mkdir and the first commit: spun, for the point is to hit every instant.
        let until = std::time::Instant::now() + std::time::Duration::from_micros(random.random_range(500..30_000));
        while std::time::Instant::now() < until {
            std::hint::spin_loop();
        }
        kill_after(child, "", 0);
        let store = SledStore::open(&dir).unwrap_or_else(|error| panic!("seed {seed}, round {round}: {error}"));
        store.commit_blocking(Changes::one(&SettingKey::new("a"), &Setting("0".into()))).unwrap();
        assert!(store.scan(&Prefix::<SettingKey>::all()).unwrap().len() <= 2);
    }
}
