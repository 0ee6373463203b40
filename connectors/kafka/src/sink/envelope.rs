//! Debezium's relational envelope: what becomes of one change, as records with a key, a value and perhaps a tombstone
//! behind.

use super::{
    Layout,
    form::{Fault, Form, string},
    prepared::{Group, View, groups, told_name, told_table},
    shape::{Fields, key_schema, value_schema},
};
use crate::{codec::partition_of, source::wire::Handling};
use crossfade_connector::TargetTable;
use crossfade_event::{Cell, Change, Op, Row, TableName, TableSchema};
use std::{fmt::Write as _, sync::Arc};

/// What every record of one sink has in common.
#[derive(Debug, Clone)]
pub(super) struct Manner {
    pub(super) prefix: String,
    /// The name of the migration, as the database that the records say they come from.
    pub(super) database: String,
    pub(super) schemas: bool,
    pub(super) handling: Handling,
    /// Topics keep the last record of each key only.
    pub(super) compacted: bool,
    /// Where two key versions stand.
    pub(super) layout: Layout,
}

/// A table, and how its rows are written into one topic.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) schema: Arc<TableSchema>,
    /// The table as its records call it.
    name: TableName,
    pub(super) view: View,
    pub(super) topic: String,
    pub(super) partitions: u32,
    /// `schema.table`, as the topic of transactions calls it.
    pub(super) collection: String,
    forms: Vec<Form>,
    /// `"name":` for each column.
    names: Vec<String>,
    groups: Vec<Group>,
    /// A number that only the same columns have.
    pub(super) shape: u64,
    key_schema: Option<String>,
    value_schema: Option<String>,
    compacted: bool,
}

/// What stands where an update left a large value alone.
const PLACEHOLDER: &str = crate::UNAVAILABLE;

/// One record before it is known where in the history it stands.
#[derive(Debug)]
pub(super) struct Draft {
    /// As it is written; none for a table without a key.
    pub(super) key: Option<String>,
    pub(super) op: char,
    before: String,
    after: String,
    /// A tombstone follows.
    pub(super) goes: bool,
    /// The header that tells a row which moves to another key, and that key.
    pub(super) moved: Option<(&'static str, String)>,
    /// The key that the row has in the topic of the other key version.
    pub(super) other_key: Option<String>,
}

impl Draft {
    /// About how large its record becomes.
    pub(super) fn size_bytes(&self) -> usize {
        self.before.len() + self.after.len() + self.key.as_ref().map_or(0, String::len)
    }
}

/// Where in the history a record stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin<'a> {
    pub(super) snapshot: bool,
    pub(super) xid: Option<u64>,
    /// The end of its transaction in the source's history.
    pub(super) commit: Option<u64>,
    /// The change's number in the order of the whole log.
    pub(super) sequence: Option<u64>,
    pub(super) commit_time_us: i64,
    pub(super) now_us: i64,
    /// The transaction's name, the record's number in it and within its table.
    pub(super) block: Option<(&'a str, u64, u64)>,
}

impl Table {
    pub(super) fn new(target: &TargetTable, view: View, topic: String, partitions: u32, manner: &Manner) -> Self {
        let schema = target.schema.clone();
        let forms: Vec<Form> = schema.columns.iter().map(|column| Form::of(column, manner.handling)).collect();
        let names = schema.columns.iter().map(|column| {
            let mut name = String::new();
            string(told_name(&column.name, view), &mut name);
            name.push(':');
            name
        });
        let groups = groups(target, view);
        let has_key = groups.iter().any(|group| !group.key.is_empty());
        let name = told_table(&schema.name, view);
        let fields = Fields { schema: &schema, forms: &forms, groups: &groups, view };
        Self {
            key_schema: (manner.schemas && has_key).then(|| key_schema(&fields, &topic)),
            value_schema: manner.schemas.then(|| value_schema(&fields, &topic)),
            shape: shape_number(&schema),
            names: names.collect(),
            collection: name.to_string(),
            compacted: manner.compacted,
            name,
            view,
            schema,
            topic,
            partitions,
            forms,
            groups,
        }
    }

    /// Where records of this key lie; those of a table without a key lie in one partition, in their order.
    pub(super) fn partition(&self, key: Option<&str>) -> u32 {
        key.map_or(0, |key| partition_of(key.as_bytes(), self.partitions).0)
    }

    /// What the forms of its columns have no word for.
    pub(super) fn unsayable(&self) -> impl Iterator<Item = (&str, &'static str)> {
        let columns = self.schema.columns.iter().zip(&self.forms);
        columns.filter_map(|(column, form)| Some((told_name(&column.name, self.view), form.unsayable()?)))
    }

    /// What Debezium's own JDBC sink connector cannot write of its columns.
    pub(super) fn lost_by_jdbc(&self) -> impl Iterator<Item = (&str, &'static str)> {
        let columns = self.schema.columns.iter().zip(&self.forms);
        columns.filter_map(|(column, form)| Some((told_name(&column.name, self.view), form.lost_by_jdbc()?)))
    }

    fn is_keyed(&self) -> bool {
        self.groups.iter().any(|group| !group.key.is_empty())
    }

    /// Whether a change takes the row to another key, as this topic knows it.
    fn moves(&self, old: &Row, new: &Row) -> bool {
        let (old, new): (Vec<Cell<'_>>, Vec<Cell<'_>>) = (old.cells().collect(), new.cells().collect());
        let key = || self.groups.iter().flat_map(|group| &group.key);
        let is_told = |index: &usize| matches!(old.get(*index), Some(Cell::Bytes(_)));
        key().all(is_told) && key().any(|index| old.get(*index) != new.get(*index))
    }

    /// Whether an image has a value for each of the columns that this topic tells.
    fn is_whole(&self, row: &Row) -> bool {
        let is_told = |index| self.groups.iter().any(|group| group.columns.contains(&index));
        row.cells().enumerate().all(|(index, cell)| !is_told(index) || matches!(cell, Cell::Bytes(_) | Cell::Null))
    }

    /// The records of one change. Rows of a copy have the letter `r`.
    pub(super) fn drafts(&self, change: &Change, is_copy: bool) -> Result<Vec<Draft>, Reason> {
        let keyed = self.is_keyed();
        let old = change.old.as_ref();
        match (change.op, &change.new) {
            (Op::Delete, _) | (_, None) => {
                let old = old.ok_or("the change carries no old row")?;
                Ok(vec![self.gone(old, keyed)?])
            }
            (Op::Insert, Some(new)) => {
                let draft = self.draft(if is_copy { 'r' } else { 'c' }, "null".to_owned(), new, None, keyed)?;
                Ok(vec![draft])
            }
            (Op::Update, Some(new)) if keyed && old.is_some_and(|old| self.moves(old, new)) => {
                let old = old.ok_or("the change carries no old row")?;
                let mut gone = self.gone(old, keyed)?;
                let mut comes = self.draft('c', "null".to_owned(), new, Some(old), keyed)?;
                comes.moved = gone.key.clone().map(|key| ("__debezium.oldkey", key));
                gone.moved = comes.key.clone().map(|key| ("__debezium.newkey", key));
                Ok(vec![gone, comes])
            }
            (Op::Update, Some(new)) => {
                let before = match old {
                    Some(old) if self.is_whole(old) => self.image(old, None)?,
                    _ if !keyed => return Err("the source sent no old row, and the table has no key".into()),
                    _ => "null".to_owned(),
                };
                Ok(vec![self.draft('u', before, new, old, keyed)?])
            }
        }
    }

    fn gone(&self, old: &Row, keyed: bool) -> Result<Draft, Reason> {
        let key = if keyed { Some(self.key(old)?) } else { None };
        if !keyed && !self.is_whole(old) {
            return Err("the source sent no whole old row, and the table has no key".into());
        }
        let before = self.last_image(old)?;
        Ok(Draft { goes: key.is_some(), key, op: 'd', before, after: "null".to_owned(), moved: None, other_key: None })
    }

    fn draft(&self, op: char, before: String, new: &Row, old: Option<&Row>, keyed: bool) -> Result<Draft, Reason> {
        let key = if keyed { Some(self.key(new)?) } else { None };
        let after = self.image(new, old)?;
        Ok(Draft { key, op, before, after, goes: false, moved: None, other_key: None })
    }

    /// Writes an object with one member for each of the groups, or the members of the only one.
    fn grouped(
        &self,
        out: &mut String,
        write: impl Fn(&Group, &mut String) -> Result<(), Reason>,
    ) -> Result<(), Reason> {
        let is_one = matches!(self.groups.as_slice(), [Group { name: None, .. }]);
        if !is_one {
            out.push('{');
        }
        for (place, group) in self.groups.iter().enumerate() {
            if place > 0 {
                out.push(',');
            }
            if let Some(name) = group.name {
                let _ = write!(out, "\"{name}\":");
            }
            out.push('{');
            write(group, out)?;
            out.push('}');
        }
        if !is_one {
            out.push('}');
        }
        Ok(())
    }

    /// A row's key as it is written.
    pub(super) fn key(&self, row: &Row) -> Result<String, Reason> {
        let cells: Vec<Cell<'_>> = row.cells().collect();
        let mut out = self.opened(&self.key_schema);
        self.grouped(&mut out, |group, out| self.key_of(group, &cells, out))?;
        self.close(&self.key_schema, &mut out);
        Ok(out)
    }

    fn key_of(&self, group: &Group, cells: &[Cell<'_>], out: &mut String) -> Result<(), Reason> {
        for (place, index) in group.key.iter().enumerate() {
            if place > 0 {
                out.push(',');
            }
            let (Some(cell), Some(form), Some(name)) =
                (cells.get(*index), self.forms.get(*index), self.names.get(*index))
            else {
                return Err("the row has another number of cells than its table has columns".into());
            };
            out.push_str(name);
            match cell {
                Cell::Bytes(bytes) => form.write(bytes, out).map_err(|fault| self.named(*index, &fault))?,
                Cell::Null => {
                    return Err(Reason(format!("{}: NULL in the key: it identifies no row", self.column(*index))));
                }
                Cell::Absent | Cell::Unchanged => return Err("the change does not carry the row's key".into()),
            }
        }
        Ok(())
    }

    /// A row as it is now; what was left alone is taken from `old` where that has it.
    fn image(&self, row: &Row, old: Option<&Row>) -> Result<String, Reason> {
        let mut out = String::with_capacity(row.as_bytes().len() * 2 + self.names.len() * 16);
        let before: Vec<Cell<'_>> = old.map(|old| old.cells().collect()).unwrap_or_default();
        let cells: Vec<Cell<'_>> = row.cells().collect();
        if cells.len() != self.forms.len() {
            return Err("the row has another number of cells than its table has columns".into());
        }
        self.grouped(&mut out, |group, out| {
            for (index, form, name) in self.columns(group) {
                if index > group.columns.start {
                    out.push(',');
                }
                out.push_str(name);
                let cell = cells.get(index).copied().unwrap_or(Cell::Absent);
                let cell = match (cell, before.get(index)) {
                    (Cell::Unchanged, Some(known @ (Cell::Bytes(_) | Cell::Null))) => *known,
                    (cell, _) => cell,
                };
                self.write_cell(index, form, cell, out)?;
            }
            Ok(())
        })?;
        Ok(out)
    }

    fn write_cell(&self, index: usize, form: &Form, cell: Cell<'_>, out: &mut String) -> Result<(), Reason> {
        if form.write_cell(cell, out).map_err(|fault| self.named(index, &fault))? {
            return Ok(());
        }
        if cell == Cell::Absent {
            return Err(Reason(format!("{}: no value in a whole row", self.column(index))));
        }
        let hint = "ALTER TABLE … REPLICA IDENTITY FULL lets the source send it";
        if self.compacted {
            let why = "a large value was left alone by an update, and a compacted topic forgets what it was";
            return Err(Reason(format!("{}: {why}; {hint}", self.column(index))));
        }
        if !form.write_unchanged(PLACEHOLDER, out) {
            let why = "a large value was left alone by an update, and its type has no word for that";
            return Err(Reason(format!("{}: {why}; {hint}", self.column(index))));
        }
        Ok(())
    }

    /// A row as it was last, as far as it is known: what is not comes as null.
    fn last_image(&self, row: &Row) -> Result<String, Reason> {
        let mut out = String::new();
        let cells: Vec<Cell<'_>> = row.cells().collect();
        self.grouped(&mut out, |group, out| {
            for (index, form, name) in self.columns(group) {
                if index > group.columns.start {
                    out.push(',');
                }
                out.push_str(name);
                let cell = cells.get(index).copied().unwrap_or(Cell::Absent);
                if !form.write_cell(cell, out).map_err(|fault| self.named(index, &fault))? {
                    out.push_str("null");
                }
            }
            Ok(())
        })?;
        Ok(out)
    }

    /// The columns of a group, each with its number and its name as it is written.
    fn columns<'a>(&'a self, group: &Group) -> impl Iterator<Item = (usize, &'a Form, &'a str)> {
        let (from, count) = (group.columns.start, group.columns.len());
        let all = self.forms.iter().zip(&self.names).enumerate();
        all.skip(from).take(count).map(|(index, (form, name))| (index, form, name.as_str()))
    }

    fn column(&self, index: usize) -> &str {
        self.schema.columns.get(index).map_or("", |column| &column.name)
    }

    fn named(&self, index: usize, fault: &Fault) -> Reason {
        Reason(format!("{}: {fault}", self.column(index)))
    }

    fn opened(&self, schema: &Option<String>) -> String {
        match schema {
            Some(schema) => format!("{{\"schema\":{schema},\"payload\":"),
            None => String::new(),
        }
    }

    fn close(&self, schema: &Option<String>, out: &mut String) {
        if schema.is_some() {
            out.push('}');
        }
    }

    /// That the row of a key, as it is written, is gone.
    pub(super) fn gone_key(&self, key: &str) -> Draft {
        let payload = match &self.key_schema {
            Some(schema) => {
                let head = "{\"schema\":".len() + schema.len() + ",\"payload\":".len();
                key.get(head..key.len().saturating_sub(1)).unwrap_or("{}")
            }
            None => key,
        };
        let parts: std::collections::BTreeMap<&str, &serde_json::value::RawValue> = match self.view {
            View::Both => serde_json::from_str(payload).unwrap_or_default(),
            _ => std::collections::BTreeMap::new(),
        };
        // All but the key is not known, and comes as null.
        let mut before = String::new();
        let written = self.grouped(&mut before, |group, out| {
            let key = match group.name {
                Some(name) => parts.get(name).map_or("{}", |part| part.get()),
                None => payload,
            };
            out.push_str(key.strip_prefix('{').and_then(|key| key.strip_suffix('}')).unwrap_or_default());
            for (index, _, name) in self.columns(group).filter(|(index, ..)| !group.key.contains(index)) {
                if index > group.columns.start || !group.key.is_empty() {
                    out.push(',');
                }
                out.push_str(name);
                out.push_str("null");
            }
            Ok(())
        });
        debug_assert!(written.is_ok(), "nothing in it can be refused");
        let (key, after) = (Some(key.to_owned()), "null".to_owned());
        Draft { key, op: 'd', before, after, goes: true, moved: None, other_key: None }
    }

    /// The whole value.
    pub(super) fn value(&self, draft: &Draft, origin: Origin<'_>, manner: &Manner) -> String {
        let mut out = self.opened(&self.value_schema);
        let _ = write!(out, "{{\"before\":{},\"after\":{},\"source\":", draft.before, draft.after);
        self.source(origin, manner, &mut out);
        out.push_str(",\"transaction\":");
        match origin.block {
            Some((id, total, of_table)) => {
                out.push_str("{\"id\":");
                string(id, &mut out);
                let _ = write!(out, ",\"total_order\":{total},\"data_collection_order\":{of_table}}}");
            }
            None => out.push_str("null"),
        }
        let now = origin.now_us;
        let (op, ms, ns) = (draft.op, now.div_euclid(1_000), now.saturating_mul(1_000));
        let _ = write!(out, ",\"op\":\"{op}\",\"ts_ms\":{ms},\"ts_us\":{now},\"ts_ns\":{ns}}}");
        self.close(&self.value_schema, &mut out);
        out
    }

    /// That a table without a key was emptied.
    pub(super) fn emptied(&self, origin: Origin<'_>, manner: &Manner) -> String {
        let nothing = || "null".to_owned();
        let draft = Draft {
            key: None,
            op: 't',
            before: nothing(),
            after: nothing(),
            goes: false,
            moved: None,
            other_key: None,
        };
        self.value(&draft, origin, manner)
    }

    fn source(&self, origin: Origin<'_>, manner: &Manner, out: &mut String) {
        let us = origin.commit_time_us;
        let (ms, ns) = (us.div_euclid(1_000), us.saturating_mul(1_000));
        let _ = write!(
            out,
            "{{\"version\":\"crossfade {}\",\"connector\":\"postgresql\",\"name\":",
            env!("CARGO_PKG_VERSION")
        );
        string(&manner.prefix, out);
        let _ = write!(out, ",\"ts_ms\":{ms},\"snapshot\":\"{}\",\"db\":", origin.snapshot);
        string(&manner.database, out);
        out.push_str(",\"sequence\":");
        match (origin.commit, origin.sequence) {
            (Some(commit), Some(sequence)) => {
                let _ = write!(out, "\"[\\\"{commit}\\\",\\\"{sequence}\\\"]\"");
            }
            _ => out.push_str("null"),
        }
        let _ = write!(out, ",\"ts_us\":{us},\"ts_ns\":{ns},\"schema\":");
        string(&self.name.schema, out);
        out.push_str(",\"table\":");
        string(&self.name.name, out);
        for (name, value) in [("txId", origin.xid), ("lsn", origin.sequence)] {
            match value {
                Some(value) => {
                    let _ = write!(out, ",\"{name}\":{value}");
                }
                None => {
                    let _ = write!(out, ",\"{name}\":null");
                }
            }
        }
        out.push_str(",\"xmin\":null,\"origin\":null,\"origin_lsn\":null}");
    }
}

/// A number that only the same columns have: by it whoever reads knows when a table's shape has changed.
fn shape_number(schema: &TableSchema) -> u64 {
    let mut text = String::new();
    for column in &schema.columns {
        let _ = writeln!(text, "{}\0{}\0{:?}\0{}", column.name, column.type_.name, column.key, column.nullable);
    }
    crossfade_event::SourceId::of(&text).0
}

/// Why a change cannot be written; never holds a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reason(pub(super) String);

impl From<&str> for Reason {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}
