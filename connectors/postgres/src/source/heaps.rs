//! Tables whose values were computed anew without a word in the stream.
//!
//! `ALTER TABLE … ALTER … TYPE … USING …` writes every row again, and no event says so. Where the type stays what it is, or
//! looks like a wider one, the stream's word of the table's shape does not tell it either. The catalog does: the rows
//! lie in another file, and the column has another entry. Either of them alone is harmless: `VACUUM FULL`, `CLUSTER` and
//! `TRUNCATE` make a file, a rename or a longer `varchar` makes an entry. (A `VACUUM FULL` of a table that has columns
//! with a constant default makes both: that table is copied again for nothing.)
//!
//! What was seen is kept in a file, with the number of the backfill that copied the table, as for partition trees
//! ([`super::tree`]): what happens while nobody looks is found afterwards, and a file that says more than the log is not
//! believed.

use super::notes;
use crossfade_connector::Failure;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Where a table's rows lie, and by which entries of the catalog its columns are known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Heap {
    /// The number of the file; zero for the root of a tree, which has none.
    pub(super) file: u32,
    /// By the column's number: the transaction that wrote its entry.
    pub(super) entries: BTreeMap<u32, u32>,
}

impl Heap {
    /// The transactions that may have computed values anew since `before`.
    fn rewriters<'h>(&'h self, before: &'h Self) -> impl Iterator<Item = u32> + 'h {
        let entries = self.entries.iter().filter(|_| self.file != before.file);
        entries
            .filter(|(column, entry)| before.entries.get(column).is_some_and(|known| known != *entry))
            .map(|(_, entry)| *entry)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let file = words.next()?.parse().ok()?;
        let entry = |word: &str| {
            let (column, entry) = word.split_once(':')?;
            Some((column.parse().ok()?, entry.parse().ok()?))
        };
        Some(Self { file, entries: words.map(entry).collect::<Option<_>>()? })
    }
}

impl std::fmt::Display for Heap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.file)?;
        self.entries.iter().try_for_each(|(column, entry)| write!(f, " {column}:{entry}"))
    }
}

/// By the table's oid: the backfill that copied it last, and how it was then.
type Known = BTreeMap<u32, (u32, Heap)>;

/// What is known of every table.
#[derive(Debug)]
pub(super) struct Heaps {
    path: PathBuf,
    known: Known,
    /// The last backfill in the log, when we began.
    generation: u32,
    /// The file could not be read: nothing is known of tables that are not in `known`, whatever the log has of them.
    damaged: bool,
}

impl Heaps {
    pub(super) async fn read(folder: &Path, generation: u32) -> Self {
        let path = folder.join("heaps");
        let known = match tokio::fs::read_to_string(&path).await {
            Ok(text) => parse(&text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some(Known::new()),
            Err(_) => None,
        };
        Self { path, damaged: known.is_none(), known: known.unwrap_or_default(), generation }
    }

    /// Whether the table's values are not what its last copy had, and no event says so.
    pub(super) fn is_rewritten(&self, oid: u32, now: &Heap) -> bool {
        match self.known.get(&oid) {
            _ if now.file == 0 => false,
            Some((copied, known)) => *copied > self.generation || now.rewriters(known).next().is_some(),
            None => self.damaged,
        }
    }

    /// Whether whatever computed the table's values anew was this transaction.
    pub(super) fn is_rewritten_by(&self, oid: u32, now: &Heap, xid: u64) -> bool {
        let Some((_, known)) = self.known.get(&oid) else { return false };
        now.rewriters(known).all(|writer| writer == xid as u32)
    }

    /// How tables are is how a backfill copies them, for its chunks see at least this, and the stream has nothing from
    /// before it: noted before the backfill begins.
    pub(super) async fn copied(&mut self, tables: Vec<(u32, Heap)>, generation: u32) -> Result<(), Failure> {
        if tables.is_empty() {
            return Ok(());
        }
        self.known.extend(tables.into_iter().map(|(oid, heap)| (oid, (generation, heap))));
        self.write().await?;
        self.generation = self.generation.max(generation);
        Ok(())
    }

    /// How tables are that are not rewritten.
    pub(super) async fn seen(&mut self, tables: Vec<(u32, Heap)>) -> Result<(), Failure> {
        let mut changed = false;
        for (oid, heap) in tables.into_iter().filter(|(_, heap)| heap.file != 0) {
            let known = self.known.entry(oid).or_insert_with(|| (self.generation, Heap::default()));
            if known.1 != heap {
                known.1 = heap;
                changed = true;
            }
        }
        if changed { self.write().await } else { Ok(()) }
    }

    async fn write(&self) -> Result<(), Failure> {
        let mut text = String::new();
        for (oid, (generation, heap)) in &self.known {
            text.push_str(&format!("{oid} {generation} {heap}\n"));
        }
        text.push_str("end\n");
        notes::write(&self.path, &text).await
    }
}

fn parse(text: &str) -> Option<Known> {
    let line = |line: &str| {
        let (oid, rest) = line.split_once(' ')?;
        let (generation, heap) = rest.split_once(' ')?;
        Some((oid.parse().ok()?, (generation.parse().ok()?, Heap::parse(heap)?)))
    };
    text.strip_suffix("end\n")?.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heap(file: u32, entries: &[(u32, u32)]) -> Heap {
        Heap { file, entries: entries.iter().copied().collect() }
    }

    #[tokio::test]
    async fn a_new_file_with_a_new_entry_is_a_rewrite_and_either_alone_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut heaps = Heaps::read(folder.path(), 0).await;
        let before = heap(10, &[(1, 700), (2, 700)]);
        assert!(!heaps.is_rewritten(5, &before), "a table that was never looked at");
        heaps.copied(vec![(5, before.clone())], 1).await.unwrap();
        for (now, rewritten) in [
            (before.clone(), false),
            (heap(11, &[(1, 700), (2, 700)]), false),
            (heap(10, &[(1, 700), (2, 800)]), false),
            (heap(11, &[(1, 700), (3, 800)]), false),
            (heap(11, &[(1, 700), (2, 800)]), true),
        ] {
            assert_eq!(heaps.is_rewritten(5, &now), rewritten, "{now:?}");
        }
        assert!(heaps.is_rewritten_by(5, &heap(11, &[(1, 700), (2, 800)]), (7 << 32) + 800));
        assert!(!heaps.is_rewritten_by(5, &heap(11, &[(1, 801), (2, 800)]), 800), "one of two");

        // One after the other they are no rewrite either, whoever notices.
        let now = heap(10, &[(1, 700), (2, 800)]);
        heaps.seen(vec![(5, now)]).await.unwrap();
        let heaps = Heaps::read(folder.path(), 1).await;
        assert!(!heaps.is_rewritten(5, &heap(11, &[(1, 700), (2, 800)])));
        assert!(heaps.is_rewritten(5, &heap(11, &[(1, 700), (2, 900)])), "a restart knows as much");
    }

    #[tokio::test]
    async fn a_file_that_says_more_than_the_log_or_is_cut_off_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let now = heap(10, &[(1, 700)]);
        Heaps::read(folder.path(), 1).await.copied(vec![(5, now.clone())], 2).await.unwrap();
        assert!(!Heaps::read(folder.path(), 2).await.is_rewritten(5, &now));
        assert!(Heaps::read(folder.path(), 1).await.is_rewritten(5, &now), "that copy is not in the log");
        let text = std::fs::read_to_string(folder.path().join("heaps")).unwrap();
        std::fs::write(folder.path().join("heaps"), &text[..text.len() - 2]).unwrap();
        assert!(Heaps::read(folder.path(), 2).await.is_rewritten(5, &now));
    }
}
