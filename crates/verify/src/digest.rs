//! Digests that do not depend on the order of rows: a count and a sum of keyed hashes, modulo 2^128.
//!
//! A sum, not an exclusive or: two equal wrong rows do not cancel each other.

use crossfade_connector::BucketDigest;
use crossfade_event::{Key, Row};
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// The digest of a set (or multiset) of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Digest {
    /// How many rows.
    pub count: u64,
    /// The sum of their hashes.
    pub sum: u128,
}

impl Digest {
    /// Adds one row.
    pub fn add(&mut self, hash: u128) {
        self.count += 1;
        self.sum = self.sum.wrapping_add(hash);
    }

    /// The hash of one row.
    pub fn hash(seed: u64, row: &Row) -> u128 {
        xxh3_128_with_seed(row.as_bytes(), seed)
    }
}

/// The digests of one table, by the hash of the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buckets(Vec<Digest>);

impl Buckets {
    /// So many empty buckets; at least one.
    pub fn new(count: u32) -> Self {
        Self(vec![Digest::default(); count.max(1) as usize])
    }

    /// Which bucket a key belongs to.
    pub fn of(&self, key: &Key) -> usize {
        (key.hash64() % self.0.len() as u64) as usize
    }

    /// Adds one row under its key.
    pub fn add(&mut self, key: &Key, hash: u128) {
        let bucket = self.of(key);
        if let Some(digest) = self.0.get_mut(bucket) {
            digest.add(hash);
        }
    }

    /// Takes in what a database made of one bucket by itself.
    pub fn put(&mut self, made: &BucketDigest) {
        if let Some(digest) = self.0.get_mut(made.bucket as usize) {
            digest.count += made.count;
            digest.sum = digest.sum.wrapping_add(made.sum);
        }
    }

    /// How many rows.
    pub fn rows(&self) -> u64 {
        self.0.iter().map(|digest| digest.count).sum()
    }

    /// How many rows of one bucket.
    pub(crate) fn rows_of(&self, bucket: usize) -> u64 {
        self.0.get(bucket).map_or(0, |digest| digest.count)
    }

    /// The buckets that differ.
    pub fn differing(&self, other: &Self) -> Vec<usize> {
        self.0.iter().zip(&other.0).enumerate().filter(|(_, (one, two))| one != two).map(|(index, _)| index).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossfade_event::Cell;

    fn row(text: &str) -> Row {
        [Cell::Bytes(text.as_bytes())].into_iter().collect()
    }

    #[test]
    fn order_does_not_matter_and_one_changed_value_does() {
        let sum = |rows: &[&str]| {
            let mut digest = Digest::default();
            rows.iter().for_each(|text| digest.add(Digest::hash(7, &row(text))));
            digest
        };
        assert_eq!(sum(&["a", "b", "c"]), sum(&["c", "a", "b"]));
        assert_ne!(sum(&["a", "b", "c"]), sum(&["a", "b", "d"]));
    }

    #[test]
    fn equal_rows_do_not_cancel() {
        let mut twice = Digest::default();
        twice.add(Digest::hash(7, &row("a")));
        twice.add(Digest::hash(7, &row("a")));
        assert_ne!(twice.sum, 0);
    }

    #[test]
    fn a_differing_bucket_is_named() {
        let key = Key::from(row("k"));
        let (mut one, two) = (Buckets::new(16), Buckets::new(16));
        one.add(&key, 5);
        assert_eq!(one.differing(&two), vec![one.of(&key)]);
    }
}
