//! Random numbers that can be had again: the seed is printed, and `CROSSFADE_SEED` repeats a run.

use rand::{SeedableRng, rngs::StdRng};
use std::env;

/// The seed of this run: `CROSSFADE_SEED`, or a new one. Printed with `what`, so that a failed test shows it.
///
/// # Panics
/// When `CROSSFADE_SEED` is no number.
pub fn seed(what: &str) -> u64 {
    let seed = env::var("CROSSFADE_SEED").map_or_else(
        |_| rand::random::<u64>() >> 1,
        |given| given.parse().unwrap_or_else(|_| panic!("CROSSFADE_SEED is no number: {given}")),
    );
    println!("seed of {what}: {seed} (CROSSFADE_SEED={seed} repeats it)");
    seed
}

/// A generator from [`seed`].
pub fn seeded(what: &str) -> StdRng {
    StdRng::seed_from_u64(seed(what))
}

/// The generator of one of several workers that share a seed.
pub fn worker(seed: u64, number: usize) -> StdRng {
    StdRng::seed_from_u64(seed ^ (number as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
}
