//! The triggers that record changes, as SQL.
//!
//! They run inside the writers' own transactions, so a change is on record exactly if it is committed. Each writes to
//! one table, `_crossfade_changes_<migration>(seq, tbl, op, c0, c1, …)`: values stand in columns without a type, so
//! SQLite stores them as they are. `seq` counts without gaps, whatever is rolled back.
//!
//! Three things are subtle:
//!
//! * A trigger of the application may change the same row again, and run *before* ours. So for a table with a key
//!   ours record the row as it stands in the table now, not as `NEW` says: the last record of a key is always right.
//!   (Without a key `NEW` and `OLD` are recorded, and ours are kept the newest, for SQLite runs the newest first.)
//! * `REPLACE` removes rows that stand in the way of a unique index, without firing delete triggers (unless the
//!   writer has set `recursive_triggers`). A `BEFORE` trigger notes the rows in the way in `_crossfade_removed_…`, and
//!   the `AFTER` trigger records those that are indeed gone. The others stay noted for a while: the trigger may stand
//!   between (what `REPLACE` removes first may set off a cascade that changes other rows, before it removes the next).
//!   Statements that only ignore or update leave notes that later changes of the table throw away.
//! * Keys are compared byte by byte: `a` and `A` are two keys for us, even where a collation says they are one.

use crate::{
    OldRows,
    client::quoted,
    inspect::{
        ddl,
        shape::{Affinity, ColumnShape, IndexShape, TableShape},
    },
};
use std::fmt::Write;

/// What a row of the change table says.
pub(super) mod op {
    pub(crate) const INSERT: i64 = 1;
    pub(crate) const UPDATE: i64 = 2;
    pub(crate) const DELETE: i64 = 3;
    /// What an update replaced; the next row is [`NEW`], unless the row was gone again at once.
    pub(crate) const OLD: i64 = 4;
    pub(crate) const NEW: i64 = 5;
    /// From here on the table has another layout.
    pub(crate) const LAYOUT: i64 = 6;
    /// Nothing happened; counts from here.
    pub(crate) const ANCHOR: i64 = 8;
}

/// How many notes outlive a change of their table: more than one row can have rows in its way, and cascades can nest.
const NOTES_KEPT: usize = 16;

/// The names of what a migration makes in the source.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    migration: String,
}

impl Names {
    pub(crate) const META: &'static str = "_crossfade_meta";

    pub(crate) fn new(migration: &str) -> Self {
        Self { migration: migration.replace('-', "_") }
    }

    pub(crate) fn changes(&self) -> String {
        format!("_crossfade_changes_{}", self.migration)
    }

    pub(crate) fn layouts(&self) -> String {
        format!("_crossfade_layouts_{}", self.migration)
    }

    pub(crate) fn bounds(&self) -> String {
        format!("_crossfade_bounds_{}", self.migration)
    }

    pub(crate) fn removed(&self, number: u32) -> String {
        format!("_crossfade_removed_{}_{number}", self.migration)
    }

    pub(crate) fn trigger(&self, number: u32, kind: &str) -> String {
        format!("_crossfade_{}_{number}_{kind}", self.migration)
    }

    /// The prefix of a table's triggers, or of all of them.
    pub(crate) fn triggers(&self, number: Option<u32>) -> String {
        number.map_or_else(
            || format!("_crossfade_{}_", self.migration),
            |number| format!("_crossfade_{}_{number}_", self.migration),
        )
    }
}

/// One trigger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trigger {
    pub(super) name: String,
    pub(super) sql: String,
}

/// What must exist for one table to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Recording {
    /// `CREATE TABLE` of the table for rows in the way, where one is needed.
    pub(super) removed: Option<String>,
    pub(super) triggers: Vec<Trigger>,
}

/// The triggers for one table.
pub(super) fn recording(names: &Names, number: u32, shape: &TableShape, old_rows: OldRows) -> Recording {
    Recorder::new(names, number, shape, old_rows).recording()
}

struct Recorder<'a> {
    names: &'a Names,
    number: u32,
    shape: &'a TableShape,
    /// The table's rows, as they are named in a query over it.
    here: String,
    /// The table, as it stands behind FROM.
    from: String,
    columns: Vec<&'a ColumnShape>,
    /// Places of the key's columns among the carried ones; empty without a key.
    key: Vec<usize>,
    rowid: Option<String>,
    whole_old: bool,
}

impl<'a> Recorder<'a> {
    fn new(names: &'a Names, number: u32, shape: &'a TableShape, old_rows: OldRows) -> Self {
        let columns: Vec<_> = shape.carried().collect();
        let key: Vec<usize> =
            shape.key().iter().filter_map(|name| columns.iter().position(|column| column.name == *name)).collect();
        let whole_old = key.is_empty() || old_rows == OldRows::Full;
        let table = quoted(&shape.name);
        // A table that is called as SQL calls the row that a trigger is about would hide it.
        let hides = ["new", "old"].iter().any(|name| shape.name.eq_ignore_ascii_case(name));
        let here = if hides { "_crossfade_row".to_owned() } else { table.clone() };
        let from = if hides { format!("{table} AS {here}") } else { table };
        Self { names, number, shape, here, from, columns, key, rowid: shape.rowid_name(), whole_old }
    }

    fn recording(&self) -> Recording {
        let obstructed = self.obstructions();
        let removed = (!obstructed.is_empty()).then(|| self.removed_table());
        let mut triggers = vec![
            self.trigger("ai", "AFTER INSERT", None, &[self.confirm(&obstructed, false), self.insert()].concat()),
            self.trigger("au", "AFTER UPDATE", None, &[self.confirm(&obstructed, true), self.update()].concat()),
            self.trigger("ad", "AFTER DELETE", None, &self.delete(&obstructed)),
        ];
        if !obstructed.is_empty() {
            triggers.push(self.trigger("bi", "BEFORE INSERT", None, &self.note(&obstructed, None)));
            let own = self.itself("OLD");
            let when = self.may_obstruct();
            triggers.push(self.trigger("bu", "BEFORE UPDATE", when.as_deref(), &self.note(&obstructed, Some(&own))));
        }
        Recording { removed, triggers }
    }

    fn trigger(&self, kind: &str, event: &str, when: Option<&str>, body: &str) -> Trigger {
        let name = self.names.trigger(self.number, kind);
        let when = when.map(|when| format!(" WHEN {when}")).unwrap_or_default();
        let sql =
            format!("CREATE TRIGGER {} {event} ON {}{when} BEGIN {body}END", quoted(&name), quoted(&self.shape.name));
        Trigger { name, sql }
    }

    fn places(&self, whole: bool) -> Vec<usize> {
        if whole { (0..self.columns.len()).collect() } else { self.key.clone() }
    }

    fn cells(&self, places: &[usize]) -> String {
        places.iter().fold(String::new(), |mut out, place| {
            let _ = write!(out, ", c{place}");
            out
        })
    }

    fn values(&self, prefix: &str, places: &[usize]) -> String {
        places.iter().filter_map(|place| self.columns.get(*place)).fold(String::new(), |mut out, column| {
            let _ = write!(out, ", {prefix}.{}", quoted(&column.name));
            out
        })
    }

    fn into(&self, places: &[usize]) -> String {
        format!("INSERT INTO {}(tbl, op{})", quoted(&self.names.changes()), self.cells(places))
    }

    fn insert(&self) -> String {
        self.record_new(&op::INSERT.to_string())
    }

    /// Records the row as it is now.
    fn record_new(&self, op: &str) -> String {
        let all = self.places(true);
        if self.key.is_empty() {
            return format!("{} VALUES ({}, {op}{}); ", self.into(&all), self.number, self.values("NEW", &all));
        }
        format!(
            "{} SELECT {}, {op}{} FROM {} WHERE {}; ",
            self.into(&all),
            self.number,
            self.values(&self.here, &all),
            self.from,
            self.itself("NEW")
        )
    }

    fn update(&self) -> String {
        let old = self.places(self.whole_old);
        let moved = self.key_differs("OLD", "NEW");
        let always = self.whole_old;
        let condition = if always { String::new() } else { format!(" WHERE {moved}") };
        let op = if always {
            op::NEW.to_string()
        } else {
            format!("CASE WHEN {moved} THEN {} ELSE {} END", op::NEW, op::UPDATE)
        };
        format!(
            "{} SELECT {}, {}{}{condition}; {}",
            self.into(&old),
            self.number,
            op::OLD,
            self.values("OLD", &old),
            self.record_new(&op)
        )
    }

    fn delete(&self, obstructed: &[String]) -> String {
        let old = self.places(self.whole_old);
        let forget = match (&self.rowid, self.key.is_empty() && !obstructed.is_empty()) {
            (Some(rowid), true) => {
                format!("DELETE FROM {} WHERE r = OLD.{}; ", quoted(&self.names.removed(self.number)), quoted(rowid))
            }
            _ => String::new(),
        };
        format!("{} VALUES ({}, {}{}); {forget}", self.into(&old), self.number, op::DELETE, self.values("OLD", &old))
    }

    /// The row of the table that `image` (`NEW` or `OLD`) is.
    fn itself(&self, image: &str) -> String {
        match &self.rowid {
            Some(rowid) => format!("{}.{1} = {image}.{1}", self.here, quoted(rowid)),
            None => self.key_same(&self.here, image),
        }
    }

    /// True where the keys are the same by the key's own collation: finds a row through its index.
    fn key_same(&self, one: &str, other: &str) -> String {
        self.key
            .iter()
            .filter_map(|place| self.columns.get(*place))
            .map(|column| format!("{one}.{0} = {other}.{0}", quoted(&column.name)))
            .collect::<Vec<_>>()
            .join(" AND ")
    }

    /// True where the keys differ in any byte.
    fn key_differs(&self, one: &str, other: &str) -> String {
        self.key
            .iter()
            .filter_map(|place| self.columns.get(*place))
            .map(|column| {
                differs(
                    &format!("{one}.{}", quoted(&column.name)),
                    &format!("{other}.{}", quoted(&column.name)),
                    column.affinity,
                )
            })
            .collect::<Vec<_>>()
            .join(" OR ")
    }

    fn removed_table(&self) -> String {
        let places = self.places(self.whole_old);
        format!("CREATE TABLE {} (r{})", quoted(&self.names.removed(self.number)), self.cells(&places))
    }

    /// For each way in which a row can stand in the way of `NEW`: the condition on the table's rows.
    fn obstructions(&self) -> Vec<String> {
        let mut found: Vec<String> = self
            .shape
            .indexes
            .iter()
            .filter(|index| index.unique && !(self.is_key(index) && self.key_is_bytes()))
            .map(|index| self.obstruction(index))
            .collect();
        let rowid_is_key = self.shape.rowid_column().is_some_and(|column| self.shape.key() == [column.name.as_str()]);
        if let Some(rowid) = self.rowid.as_ref().filter(|_| !rowid_is_key) {
            found.push(format!("{}.{1} = NEW.{1}", self.here, quoted(rowid)));
        }
        if self.shape.without_rowid
            && !self.key_is_bytes()
            && !self.shape.indexes.iter().any(|index| self.is_key(index))
        {
            found.push(self.key_same(&self.here, "NEW"));
        }
        found
    }

    fn is_key(&self, index: &IndexShape) -> bool {
        let parts: Vec<_> = index.parts.iter().filter_map(|part| part.column.as_deref()).collect();
        index.is_plain() && !index.partial && parts == self.shape.key()
    }

    /// Whether two keys that SQLite holds for equal are equal in every byte.
    fn key_is_bytes(&self) -> bool {
        self.key.iter().filter_map(|place| self.columns.get(*place)).all(|column| {
            column.affinity != Affinity::Blob && self.shape.key_collation(&column.name).eq_ignore_ascii_case("BINARY")
        })
    }

    fn obstruction(&self, index: &IndexShape) -> String {
        let table = &self.here;
        if index.is_plain() && !index.partial {
            return index
                .parts
                .iter()
                .filter_map(|part| Some((part.column.as_deref()?, &part.collation)))
                .map(|(column, collation)| {
                    format!("{table}.{0} = NEW.{0} COLLATE {1}", quoted(column), quoted(collation))
                })
                .collect::<Vec<_>>()
                .join(" AND ");
        }
        // Expressions and predicates are asked of the new row by their own words, over a row of the same names.
        let new = self.shape.columns.iter().map(|column| format!("NEW.{0} AS {0}", quoted(&column.name)));
        let new = format!("(SELECT {}) AS {table}", new.collect::<Vec<_>>().join(", "));
        let definition = ddl::index(index.sql.as_deref().unwrap_or_default());
        let mut terms: Vec<String> = definition
            .elements
            .iter()
            .map(|element| format!("({0}) = (SELECT {0} FROM {new})", ddl::without_order(element)))
            .collect();
        if let Some(predicate) = definition.predicate {
            terms.push(format!("({predicate})"));
            terms.push(format!("(SELECT {predicate} FROM {new})"));
        }
        terms.join(" AND ")
    }

    /// Whether an update can put a row in the way of others at all; `None` where it takes asking.
    fn may_obstruct(&self) -> Option<String> {
        let unique: Vec<_> = self.shape.indexes.iter().filter(|index| index.unique).collect();
        if unique.iter().any(|index| index.partial || !index.is_plain()) {
            return None;
        }
        let mut columns: Vec<&str> =
            unique.iter().flat_map(|index| &index.parts).filter_map(|part| part.column.as_deref()).collect();
        if self.shape.without_rowid {
            columns.extend(self.shape.key());
        }
        let rowid = self.rowid.iter().map(|rowid| format!("OLD.{0} IS NOT NEW.{0}", quoted(rowid)));
        columns.sort_unstable();
        columns.dedup();
        let columns =
            columns.into_iter().map(|column| format!("OLD.{0} IS NOT NEW.{0} COLLATE BINARY", quoted(column)));
        Some(rowid.chain(columns).collect::<Vec<_>>().join(" OR "))
    }

    /// Notes the rows that stand in the way of `NEW`, but for the row itself.
    fn note(&self, obstructed: &[String], own: Option<&str>) -> String {
        let table = &self.here;
        let places = self.places(self.whole_old);
        let rowid = self.rowid.as_ref().map_or_else(|| "0".to_owned(), |rowid| format!("{table}.{}", quoted(rowid)));
        let same_key = (!self.key.is_empty()).then(|| format!("({})", self.key_differs(table, "NEW")));
        let others: String = own
            .map(|own| format!(" AND NOT ({own})"))
            .into_iter()
            .chain(same_key.map(|differs| format!(" AND {differs}")))
            .collect();
        obstructed.iter().fold(String::new(), |mut out, condition| {
            let _ = write!(
                out,
                "INSERT INTO {}(r{}) SELECT {rowid}{} FROM {} WHERE {condition}{others}; ",
                quoted(&self.names.removed(self.number)),
                self.cells(&places),
                self.values(table, &places),
                self.from
            );
            out
        })
    }

    /// Records those of the noted rows that are gone, and forgets them and what was noted long ago.
    fn confirm(&self, obstructed: &[String], update: bool) -> String {
        if obstructed.is_empty() {
            return String::new();
        }
        let removed = quoted(&self.names.removed(self.number));
        let places = self.places(self.whole_old);
        let gone = self.gone(&removed, update);
        // Rows without a key are noted by their rowid, which VACUUM gives to others.
        let old = if self.key.is_empty() && !update {
            "> 0".to_owned()
        } else {
            format!("<= (SELECT max(rowid) FROM {removed}) - {}", NOTES_KEPT.max(4 * obstructed.len()))
        };
        format!(
            "{} SELECT DISTINCT {}, {}{} FROM {removed} WHERE {gone}; \
             DELETE FROM {removed} WHERE rowid {old} OR {gone}; {}",
            self.into(&places),
            self.number,
            op::DELETE,
            self.cells(&places),
            if update { self.refresh(&removed) } else { String::new() }
        )
    }

    /// True where a noted row is gone. By its rowid also where the row that is written has taken that.
    fn gone(&self, removed: &str, update: bool) -> String {
        let missing = |there: &str| format!("NOT EXISTS (SELECT 1 FROM {} WHERE {there})", self.from);
        let (here, rowid) = (&self.here, self.rowid.as_deref().map(quoted));
        match (rowid, self.key.is_empty()) {
            (Some(rowid), true) => {
                let missing = missing(&format!("{here}.{rowid} = {removed}.r"));
                let gone = format!("({missing} OR {removed}.r = NEW.{rowid})");
                if update { format!("{removed}.r <> OLD.{rowid} AND {gone}") } else { gone }
            }
            _ => {
                let same = self.cell_columns(&self.key).map(|(place, column)| {
                    let (now, noted) = (format!("{here}.{}", quoted(&column.name)), format!("{removed}.c{place}"));
                    format!("{now} = {noted} AND NOT ({})", differs(&now, &noted, column.affinity))
                });
                missing(&same.collect::<Vec<_>>().join(" AND "))
            }
        }
    }

    /// A noted row that is changed before it goes is noted as it is then.
    fn refresh(&self, removed: &str) -> String {
        if !self.whole_old {
            return String::new();
        }
        let all = self.places(true);
        let mut set: Vec<String> =
            self.cell_columns(&all).map(|(place, column)| format!("c{place} = NEW.{}", quoted(&column.name))).collect();
        let is_old = match (self.rowid.as_deref().map(quoted), self.key.is_empty()) {
            (Some(rowid), true) => {
                set.push(format!("r = NEW.{rowid}"));
                format!("r = OLD.{rowid}")
            }
            _ => {
                let same = self.cell_columns(&self.key);
                let same = same.map(|(place, column)| format!("c{place} IS OLD.{}", quoted(&column.name)));
                same.collect::<Vec<_>>().join(" AND ")
            }
        };
        format!("UPDATE {removed} SET {} WHERE {is_old}; ", set.join(", "))
    }

    fn cell_columns<'p>(&'p self, places: &'p [usize]) -> impl Iterator<Item = (usize, &'p ColumnShape)> {
        places.iter().filter_map(|place| Some((*place, *self.columns.get(*place)?)))
    }
}

fn differs(one: &str, other: &str, affinity: Affinity) -> String {
    match affinity {
        // Only such a column can hold 1 and 1.0, which SQLite compares as equal.
        Affinity::Blob => format!("{one} IS NOT {other} COLLATE BINARY OR typeof({one}) <> typeof({other})"),
        _ => format!("{one} IS NOT {other} COLLATE BINARY"),
    }
}
