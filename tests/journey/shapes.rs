//! Holding a source against a target with other keys: the source's rows are taken through the mapping that the target
//! keeps, here and not by Crossfade, and compared as they come out.

use crate::desk::rows;
use crossfade_testkit::{
    compare::{Rows, assert_same},
    postgres::Database,
};
use std::collections::{BTreeMap, BTreeSet};

/// Old key to new key, table by table.
#[derive(Debug, Default)]
pub(crate) struct Mapping(BTreeMap<(String, String), String>);

impl Mapping {
    /// Reads it from what `crossfade mapping export` printed; no new key may stand there twice.
    pub(crate) fn parse(csv: &str) -> Self {
        let mut lines = csv.lines();
        assert_eq!(lines.next(), Some("table_name,old_id,new_id,migrated_at"), "the heading of an export");
        let mut found = Self::default();
        let mut new_keys = BTreeSet::new();
        for line in lines {
            let cells: Vec<&str> = line.split(',').collect();
            let [table, old, new, _] = cells[..] else { panic!("a line of an export has four cells: {line}") };
            let table = table.rsplit('.').next().unwrap_or(table);
            assert!(new_keys.insert((table.to_owned(), new.to_owned())), "the new key {new} of {table} is given twice");
            found.0.insert((table.to_owned(), old.to_owned()), new.to_owned());
        }
        found
    }

    /// How many rows of a table have a new key.
    pub(crate) fn count(&self, table: &str) -> usize {
        self.0.keys().filter(|(of, _)| of == table).count()
    }

    /// The new key.
    pub(crate) fn new_key(&self, table: &str, old: &str) -> &str {
        let found = self.0.get(&(table.to_owned(), old.to_owned()));
        found.unwrap_or_else(|| panic!("the mapping has no key {old} of {table}"))
    }

    pub(crate) fn take_through(&self, rows: &Rows, keys: &[(usize, &str)]) -> Rows {
        rows.iter()
            .map(|row| {
                let mut row = row.clone();
                for (index, table) in keys {
                    row[*index] = row[*index].as_deref().map(|old| self.new_key(table, old).to_owned());
                }
                row
            })
            .collect()
    }
}

/// A table, its columns, and which of them hold keys of which table.
pub(crate) struct Shape {
    pub(crate) table: &'static str,
    pub(crate) columns: &'static [&'static str],
    pub(crate) keys: &'static [(&'static str, &'static str)],
}

/// Fails unless the target has exactly the source's rows under their new keys.
pub(crate) async fn assert_same_through(mapping: &Mapping, source: &Database, target: &Database, shapes: &[Shape]) {
    for Shape { table, columns, keys } in shapes {
        let sql = format!("SELECT {} FROM {table}", columns.join(", "));
        let place = |column: &str| columns.iter().position(|other| *other == column).unwrap();
        let keys: Vec<(usize, &str)> = keys.iter().map(|(column, of)| (place(column), *of)).collect();
        let wanted = mapping.take_through(&rows(source, &sql).await, &keys);
        assert_same(table, &wanted, &rows(target, &sql).await);
    }
}
