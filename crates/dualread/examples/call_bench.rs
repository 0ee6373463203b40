//! What a call costs that is not compared, beside the same closure called by itself; and one that is compared, until the
//! application has its answer. Prints a table for `docs/performance.md`.
//!
//! `cargo run --release -p crossfade-dualread --example call_bench`
#![expect(clippy::print_stdout, reason = "a measurement prints what it measured")]

use crossfade_dualread::{DualReads, Flag, NoPlaces, Options, Percent, Subject};
use std::{future::Future, hint::black_box, time::Instant};

const CALLS: u32 = 1_000_000;
const ROUNDS: usize = 9;

async fn answer() -> Result<u64, ()> {
    Ok(black_box(7))
}

/// Nanoseconds of a call, by the median of all rounds, with the least and the most.
async fn measure<F: Future>(calls: u32, call: impl Fn(u32) -> F) -> (f64, f64, f64) {
    let mut rounds = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        for number in 0..calls {
            black_box(call(number).await);
        }
        rounds.push(begun.elapsed().as_nanos() as f64 / f64::from(calls));
    }
    rounds.sort_by(f64::total_cmp);
    let at = |place: usize| rounds.get(place).copied().unwrap_or_default();
    (at(ROUNDS / 2), at(0), at(ROUNDS - 1))
}

fn print(what: &str, (median, least, most): (f64, f64, f64)) {
    println!("| {what} | {median:.0} ns ({least:.0} – {most:.0}) |");
}

#[tokio::main]
async fn main() {
    let share = |percent: Percent| {
        let options = Options { compared_at_once: 1 << 20, ..Options::default() };
        DualReads::new(options, Flag { percent, ..Flag::START }, NoPlaces)
    };
    let key = |number: u32| number.to_be_bytes();
    println!("| call | median of {ROUNDS} rounds (least – most) |\n|---|---|");
    print("the closure by itself", measure(CALLS, |_| answer()).await);
    let none = share(Percent::NONE);
    print("not sampled, at 0 %", measure(CALLS, |n| none.read(Subject::new("acme", key(n)), answer, answer)).await);
    let some = share(Percent::hundredths(1).unwrap_or_default());
    print(
        "nearly none sampled, at 0.01 %",
        measure(CALLS, |n| some.read(Subject::new("acme", key(n)), answer, answer)).await,
    );
    let all = share(Percent::ALL);
    print(
        "sampled, until its answer is there",
        measure(20_000, |n| all.read(Subject::new("acme", key(n)), answer, answer)).await,
    );
    all.settled().await;
}
