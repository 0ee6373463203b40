//! Keys that rows have already. A row that was born on the new side, while that was the writer, has a new key of its own and
//! an old one that was drawn for it. Once the migration goes forward again, the pair counts in place of what would be
//! derived from the old key: for the row itself, and for every reference to it.
//!
//! Transforms stay pure all the same. An old key is drawn only where neither the old side nor the mapping had it before, so no
//! event that came before the pair has that key: what it gave then it gives for ever, and what comes after it gives this.

use crossfade_event::{Value, codec};
use std::{collections::BTreeMap, fmt, sync::Arc};
use uuid::Uuid;

/// What an entry takes in memory beside its text.
const ENTRY_BYTES: usize = std::mem::size_of::<(i64, New)>();

/// All keys that are kept, by the source's table whose keys they are.
#[derive(Clone, Default, PartialEq)]
pub struct Adopted {
    tables: BTreeMap<String, Arc<AdoptedKeys>>,
    bytes: usize,
}

impl fmt::Debug for Adopted {
    /// Without a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Adopted").field("pairs", &self.len()).finish_non_exhaustive()
    }
}

/// Those of one table, in the order of their old keys.
#[derive(Clone, Default, PartialEq)]
pub struct AdoptedKeys(Vec<(i64, New)>);

impl fmt::Debug for AdoptedKeys {
    /// Without a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AdoptedKeys").field(&self.0.len()).finish()
    }
}

/// A new key; most are UUIDs, which take less as bytes.
#[derive(Clone, PartialEq)]
enum New {
    Uuid([u8; 16]),
    Text(Box<str>),
}

impl New {
    fn of(text: &str) -> Self {
        match Uuid::try_parse(text) {
            // Another spelling of a UUID is another text.
            Ok(uuid) if uuid.hyphenated().to_string() == text => Self::Uuid(uuid.into_bytes()),
            _ => Self::Text(text.into()),
        }
    }
}

impl Adopted {
    /// From pairs as they stand on record: the table, the old key, the new one as text. Of an old key that comes twice the last
    /// pair counts.
    pub fn from_pairs<T: Into<String>>(pairs: impl IntoIterator<Item = (T, i64, String)>) -> Self {
        let mut tables: BTreeMap<String, Vec<(i64, New)>> = BTreeMap::new();
        let mut bytes = 0;
        for (table, old, new) in pairs {
            let new = New::of(&new);
            bytes += ENTRY_BYTES + if let New::Text(text) = &new { text.len() } else { 0 };
            tables.entry(table.into()).or_default().push((old, new));
        }
        let sorted = |mut keys: Vec<(i64, New)>| {
            keys.sort_by_key(|(old, _)| *old);
            Arc::new(AdoptedKeys(keys))
        };
        Self { tables: tables.into_iter().map(|(table, keys)| (table, sorted(keys))).collect(), bytes }
    }

    /// How many pairs there are.
    pub fn len(&self) -> usize {
        self.tables.values().map(|keys| keys.0.len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// What they take in memory, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Those of one table of the source.
    pub(crate) fn of(&self, table: &str) -> Option<Arc<AdoptedKeys>> {
        self.tables.get(table).cloned()
    }
}

impl AdoptedKeys {
    /// The new key of the row with this old one, where it has one already.
    pub(crate) fn get(&self, old: i64, as_uuid: bool) -> Option<Value> {
        let end = self.0.partition_point(|(key, _)| *key <= old);
        let (_, new) = self.0.get(end.checked_sub(1)?).filter(|(key, _)| *key == old)?;
        Some(match (new, as_uuid) {
            (New::Uuid(bytes), true) => Value::Uuid(*bytes),
            (New::Uuid(bytes), false) => Value::Text(codec::to_text(&Value::Uuid(*bytes))),
            (New::Text(text), _) => Value::Text(text.to_string()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "6f1c1f0e-6f2b-4b57-9a34-0d5be4c7a001";

    fn pair(table: &str, old: i64, new: &str) -> (String, i64, String) {
        (table.to_owned(), old, new.to_owned())
    }

    #[test]
    fn a_pair_is_found_by_its_table_and_its_old_key_and_gives_the_very_key_that_it_was() {
        let adopted = Adopted::from_pairs([
            pair("public.a", 7, UUID),
            pair("public.a", -3, &UUID.to_uppercase()),
            pair("public.b", 7, "sha256:00"),
        ]);
        let a = adopted.of("public.a").unwrap();
        let text = |text: &str| Some(Value::Text(text.to_owned()));
        assert_eq!(a.get(7, true), Some(Value::Uuid(Uuid::try_parse(UUID).unwrap().into_bytes())));
        assert_eq!(a.get(7, false), text(UUID));
        assert_eq!(a.get(-3, false), text(&UUID.to_uppercase()), "a text stays as it was written");
        assert_eq!((a.get(8, true), a.get(6, true), a.get(i64::MIN, true)), (None, None, None));
        assert_eq!(adopted.of("public.b").unwrap().get(7, false), text("sha256:00"));
        assert_eq!(adopted.of("public.c"), None);
        assert_eq!((adopted.len(), adopted.is_empty()), (3, false));
        assert!(adopted.bytes() > 3 * 16);
        assert!(!format!("{adopted:?} {a:?}").contains("6f1c"), "keys are values of rows");
    }

    #[test]
    fn of_an_old_key_that_comes_twice_the_last_pair_counts() {
        let adopted = Adopted::from_pairs([pair("t", 1, "first"), pair("t", 1, "last")]);
        assert_eq!(adopted.of("t").unwrap().get(1, false), Some(Value::Text("last".to_owned())));
    }
}
