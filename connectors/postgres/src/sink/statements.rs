//! The SQL by which a table is written.

use super::{ddl, table::Table};
use crate::client::{printed, quote_ident};
use crossfade_connector::{Failure, WriteMode};
use crossfade_event::catalog::KeyDef;
use std::sync::Arc;

/// The statements of every delivery, written once.
#[derive(Debug, Default)]
pub(super) struct Sql {
    pub(super) copy: String,
    pub(super) delete: String,
    /// Sets all that may be set; `None` where that is nothing.
    pub(super) update: Option<String>,
    pub(super) insert: String,
    pub(super) insert_missing: String,
    pub(super) upsert: String,
    pub(super) delete_copies: String,
}

/// The order in which rows of a load were written. Deliveries follow one another, so that their transactions tell it; where
/// a row lies does not, for the server puts it wherever there is room.
pub(super) const WRITTEN_FIRST: &str = "age(xmin) DESC, tableoid, ctid";

impl Table {
    /// Writes them (again, when the types' names or the indexes have changed).
    pub(super) fn write_sql(&mut self) {
        self.sql = Arc::new(Sql {
            copy: self.copy_sql(),
            delete: self.delete_sql(),
            update: self.update_sql(&self.settable()),
            insert: self.insert_sql(),
            insert_missing: self.insert_missing_sql(),
            upsert: self.upsert_sql(),
            delete_copies: self.delete_copies_sql(),
        });
    }

    /// The columns that an update may set: all but the key's (and, in a table of other writers, only ours).
    pub(super) fn settable(&self) -> Vec<usize> {
        let ours = |index: &usize| match &self.target.mode {
            WriteMode::Columns { columns } => columns.contains(index),
            _ => true,
        };
        (0..self.columns.len())
            .filter(|index| !self.key.contains(index) && ours(index))
            .filter(|index| !self.columns.get(*index).is_some_and(|column| column.always))
            .collect()
    }

    fn column(&self, index: usize) -> &str {
        self.columns.get(index).map_or("", |column| column.quoted.as_str())
    }

    /// The value of a field `prefix``index` of `s`, as the column takes it.
    fn value(&self, index: usize, prefix: char, number: usize) -> String {
        match self.columns.get(index) {
            Some(column) if column.text => format!("s.{prefix}{number}::{}", column.base),
            _ => format!("s.{prefix}{number}"),
        }
    }

    /// `"a" = s.c0 AND …` over the key, from a row or from a key.
    pub(super) fn matches_key(&self, alias: &str, from_row: bool) -> String {
        let parts: Vec<String> = self
            .key
            .iter()
            .enumerate()
            .map(|(place, index)| {
                let value = if from_row { self.value(*index, 'c', *index) } else { self.value(*index, 'k', place) };
                let equals = self.columns.get(*index).map_or("=", |column| column.equals.as_str());
                format!("{alias}.{} {equals} {value}", self.column(*index))
            })
            .collect();
        parts.join(" AND ")
    }

    fn all_columns(&self) -> String {
        self.columns.iter().map(|column| column.quoted.as_str()).collect::<Vec<_>>().join(", ")
    }

    pub(super) fn key_columns_sql(&self) -> String {
        self.key.iter().map(|index| self.column(*index)).collect::<Vec<_>>().join(", ")
    }

    /// `COPY` straight into the table.
    fn copy_sql(&self) -> String {
        format!("COPY {} ({}) FROM STDIN (FORMAT binary)", self.quoted, self.all_columns())
    }

    fn delete_sql(&self) -> String {
        format!(
            "DELETE FROM {} t USING unnest($1::{}[]) s WHERE {}",
            self.quoted,
            self.key_type.name,
            self.matches_key("t", false)
        )
    }

    /// Sets `columns` of the rows with these keys; `None` when there is nothing to set.
    pub(super) fn update_sql(&self, columns: &[usize]) -> Option<String> {
        let sets: Vec<String> = columns
            .iter()
            .map(|index| format!("{} = {}", self.column(*index), self.value(*index, 'c', *index)))
            .collect();
        (!sets.is_empty()).then(|| {
            format!(
                "UPDATE {} t SET {} FROM unnest($1::{}[]) s WHERE {}",
                self.quoted,
                sets.join(", "),
                self.row_type.name,
                self.matches_key("t", true)
            )
        })
    }

    /// Moves rows to another key and sets `columns`: the old key stands in fields of its own, after the row's.
    pub(super) fn move_sql(&self, columns: &[usize]) -> String {
        let width = self.columns.len();
        let sets: Vec<String> = self
            .key
            .iter()
            .chain(columns)
            .map(|index| format!("{} = {}", self.column(*index), self.value(*index, 'c', *index)))
            .collect();
        let finds: Vec<String> = self
            .key
            .iter()
            .enumerate()
            .map(|(place, index)| {
                let equals = self.columns.get(*index).map_or("=", |column| column.equals.as_str());
                format!("t.{} {equals} {}", self.column(*index), self.value(*index, 'c', width + place))
            })
            .collect();
        format!(
            "UPDATE {} t SET {} FROM unnest($1::{}[]) s WHERE {}",
            self.quoted,
            sets.join(", "),
            self.row_type.name,
            finds.join(" AND ")
        )
    }

    fn insert_head(&self) -> String {
        let values: Vec<String> = (0..self.columns.len()).map(|index| self.value(index, 'c', index)).collect();
        format!(
            "INSERT INTO {} AS t ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM unnest($1::{}[]) s",
            self.quoted,
            self.all_columns(),
            values.join(", "),
            self.row_type.name
        )
    }

    /// Inserts; a key that is there already is an error.
    fn insert_sql(&self) -> String {
        self.insert_head()
    }

    /// Takes the rows under the keys `$2` away and inserts the rows `$1`, as one step: the count is what makes the server
    /// delete first.
    pub(super) fn anew_sql(&self) -> String {
        format!(
            "WITH gone AS (DELETE FROM {} t USING unnest($2::{}[]) s WHERE {} RETURNING 1) \
             {} WHERE (SELECT count(*) FROM gone) >= 0",
            self.quoted,
            self.key_type.name,
            self.matches_key("t", false),
            self.insert_head(),
        )
    }

    /// Inserts what is not there yet.
    fn insert_missing_sql(&self) -> String {
        if self.arbiter {
            format!("{} ON CONFLICT ({}) DO NOTHING", self.insert_head(), self.key_columns_sql())
        } else {
            format!(
                "{} WHERE NOT EXISTS (SELECT FROM {} t WHERE {})",
                self.insert_head(),
                self.quoted,
                self.matches_key("t", true)
            )
        }
    }

    /// Inserts, or overwrites what is there; only with an arbiter.
    fn upsert_sql(&self) -> String {
        let sets: Vec<String> =
            self.settable().into_iter().map(|index| format!("{0} = excluded.{0}", self.column(index))).collect();
        if sets.is_empty() {
            return self.insert_missing_sql();
        }
        format!("{} ON CONFLICT ({}) DO UPDATE SET {}", self.insert_head(), self.key_columns_sql(), sets.join(", "))
    }

    /// Takes away so many copies of each row, whichever: for tables whose rows have no key. Rows are compared by their
    /// text, so that types without equality are no exception and every bit counts.
    fn delete_copies_sql(&self) -> String {
        let mine: Vec<String> = self.columns.iter().map(|column| format!("t.{}::text", column.quoted)).collect();
        let theirs: Vec<String> = self
            .columns
            .iter()
            .enumerate()
            .map(|(index, column)| match column.text {
                true => format!("s.c{index}::{}::text", column.base),
                false => format!("s.c{index}::text"),
            })
            .collect();
        format!(
            "DELETE FROM {0} d USING (\
               SELECT m.ctid AS at, m.tableoid AS part, m.n, row_number() OVER (PARTITION BY m.i) AS r FROM (\
                 SELECT t.ctid, t.tableoid, s.n, s.i FROM {0} t JOIN (\
                   SELECT u.*, u.ordinality AS i FROM ROWS FROM (unnest($1::{1}[]), unnest($2::int8[])) \
                   WITH ORDINALITY AS u({2}, n)) s \
                 ON ROW({3})::text = ROW({4})::text) m) x \
             WHERE x.r <= x.n AND d.ctid = x.at AND d.tableoid = x.part",
            self.quoted,
            self.row_type.name,
            (0..self.row_type.fields.len()).map(|index| format!("c{index}")).collect::<Vec<_>>().join(", "),
            mine.join(", "),
            theirs.join(", "),
        )
    }

    /// All columns of `t` in their formats.
    fn formatted(&self) -> String {
        let columns: Vec<String> = self
            .columns
            .iter()
            .map(|column| match column.text {
                true => printed(&format!("t.{}", column.quoted)),
                false => format!("t.{}", column.quoted),
            })
            .collect();
        columns.join(", ")
    }

    /// Takes rows out, and gives them, of which another one has the same values in the columns of `unique`: all but the
    /// one that was written first.
    pub(super) fn collisions_sql(&self, unique: &KeyDef) -> Result<String, Failure> {
        Ok(format!(
            "DELETE FROM {0} t USING (SELECT n.at FROM (SELECT ctid AS at, row_number() OVER (PARTITION BY {1} ORDER BY {WRITTEN_FIRST}) AS n \
               FROM {0}) n WHERE n.n > 1 LIMIT $1) x WHERE t.ctid = x.at RETURNING {2}",
            self.quoted,
            ddl::list(&unique.columns)?,
            self.formatted(),
        ))
    }

    /// Rows give up the values of these columns.
    pub(super) fn free_sql(&self, columns: &[String]) -> Result<String, Failure> {
        let nulls = columns.iter().map(|column| Ok(format!("{} = NULL", quote_ident(column)?)));
        Ok(format!(
            "UPDATE {} t SET {} FROM unnest($1::{}[]) s WHERE {}",
            self.quoted,
            nulls.collect::<Result<Vec<_>, Failure>>()?.join(", "),
            self.key_type.name,
            self.matches_key("t", false)
        ))
    }

    /// Reads the row under each key, all columns in their formats.
    pub(super) fn select_sql(&self) -> String {
        format!(
            "SELECT {} FROM {} t JOIN unnest($1::{}[]) s ON {}",
            self.formatted(),
            self.quoted,
            self.key_type.name,
            self.matches_key("t", false)
        )
    }
}
