//! Latencies as counts: each octave in 32 parts, so a quantile is right to 3 %; recording is one atomic addition.

use serde::Serialize;
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Below this many nanoseconds every value has a bucket of its own.
const LINEAR: u64 = 64;
/// Parts of an octave, as a power of two.
const PARTS: u32 = 5;
/// The highest octave that is told apart: 2^41 ns are 36 minutes.
const OCTAVE_MAX: u32 = 41;
const BUCKETS: usize = LINEAR as usize + ((OCTAVE_MAX - 5) << PARTS) as usize;

/// Latencies of one side.
pub struct Histogram {
    buckets: Box<[AtomicU64]>,
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Histogram").field(&self.latency()).finish()
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect() }
    }
}

/// Quantiles of latencies, in milliseconds; all zero where there were none.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Latency {
    /// How many.
    pub count: u64,
    /// Half of them took no longer.
    pub p50_ms: f64,
    /// 95 of a hundred.
    pub p95_ms: f64,
    /// 99 of a hundred.
    pub p99_ms: f64,
}

impl Histogram {
    /// Adds one.
    pub fn record(&self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.buckets.get(bucket_of(ns)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The quantiles as they are now.
    pub fn latency(&self) -> Latency {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        let count = counts.iter().sum();
        let at = |share: f64| {
            let rank = ((count as f64 * share).ceil() as u64).max(1);
            let mut seen = 0;
            let found = counts.iter().position(|bucket| {
                seen += bucket;
                seen >= rank
            });
            found.map_or(0.0, |index| highest_of(index) as f64 / 1e6)
        };
        Latency { count, p50_ms: at(0.50), p95_ms: at(0.95), p99_ms: at(0.99) }
    }
}

impl Latency {
    /// Exact quantiles of some latencies in milliseconds.
    pub fn of(mut took_ms: Vec<f64>) -> Self {
        took_ms.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| {
            let rank = (took_ms.len() as f64 * share).ceil() as usize;
            took_ms.get(rank.saturating_sub(1)).copied().unwrap_or_default()
        };
        Self { count: took_ms.len() as u64, p50_ms: at(0.50), p95_ms: at(0.95), p99_ms: at(0.99) }
    }
}

fn bucket_of(ns: u64) -> usize {
    if ns < LINEAR {
        return ns as usize;
    }
    let octave = ns.ilog2();
    if octave > OCTAVE_MAX {
        return BUCKETS - 1;
    }
    let part = (ns >> (octave - PARTS)) & ((1 << PARTS) - 1);
    (LINEAR + (u64::from(octave - 6) << PARTS) + part) as usize
}

/// The highest value of a bucket.
fn highest_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < LINEAR {
        return bucket;
    }
    let (octave, part) = ((bucket - LINEAR) >> PARTS, (bucket - LINEAR) & ((1 << PARTS) - 1));
    ((1 << PARTS) + part + 1) * (1 << (octave + 6 - u64::from(PARTS))) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_bucket_holds_its_value_to_one_part_in_32(ns in 0u64..(1 << 42)) {
            let highest = highest_of(bucket_of(ns));
            prop_assert!(highest >= ns && highest - ns <= ns / 32, "{} in a bucket up to {}", ns, highest);
            if ns > 0 {
                prop_assert!(bucket_of(ns - 1) <= bucket_of(ns));
            }
        }

        #[test]
        fn quantiles_are_those_of_the_sorted_values(mut took in proptest::collection::vec(1u64..10_000_000_000, 1..300)) {
            let histogram = Histogram::default();
            took.iter().for_each(|ns| histogram.record(Duration::from_nanos(*ns)));
            let (rough, exact) = (histogram.latency(), Latency::of(took.iter().map(|ns| *ns as f64 / 1e6).collect()));
            took.sort_unstable();
            prop_assert_eq!(rough.count, exact.count);
            for (rough, exact) in [(rough.p50_ms, exact.p50_ms), (rough.p95_ms, exact.p95_ms), (rough.p99_ms, exact.p99_ms)] {
                prop_assert!(rough >= exact && rough <= exact * 1.04 + 1e-6, "{} for {}", rough, exact);
            }
        }
    }

    #[test]
    fn what_takes_longer_than_any_bucket_is_counted_in_the_last() {
        let histogram = Histogram::default();
        histogram.record(Duration::from_secs(1_000_000));
        assert_eq!(histogram.latency().count, 1);
        assert_eq!(Latency::of(Vec::new()), Latency::default());
    }
}
