//! Debezium's relational envelope: what becomes of one change, as records with a key, a value and perhaps a tombstone
//! behind.

use super::{
    form::{Fault, Form, string},
    shape::{key_schema, value_schema},
};
use crate::{codec::partition_of, source::wire::Handling};
use crossfade_connector::{TargetTable, WriteMode};
use crossfade_event::{Cell, Change, Identity, Op, Row, TableSchema};
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
}

/// A table, and how its rows are written.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) schema: Arc<TableSchema>,
    pub(super) mode: WriteMode,
    pub(super) topic: String,
    pub(super) partitions: u32,
    /// `schema.table`, as the topic of transactions calls it.
    pub(super) collection: String,
    forms: Vec<Form>,
    /// `"name":` for each column.
    names: Vec<String>,
    key: Vec<usize>,
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
    op: char,
    before: String,
    after: String,
    /// A tombstone follows.
    pub(super) goes: bool,
    /// The header that tells a row which moves to another key, and that key.
    pub(super) moved: Option<(&'static str, String)>,
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
    pub(super) fn new(target: &TargetTable, topic: String, partitions: u32, manner: &Manner) -> Self {
        let schema = target.schema.clone();
        let forms: Vec<Form> = schema.columns.iter().map(|column| Form::of(column, manner.handling)).collect();
        let names = schema.columns.iter().map(|column| {
            let mut name = String::new();
            string(&column.name, &mut name);
            name.push(':');
            name
        });
        let key = if schema.identity == Identity::Key { schema.key_columns() } else { Vec::new() };
        let has_key = !key.is_empty();
        Self {
            key_schema: (manner.schemas && has_key).then(|| key_schema(&schema, &forms, &key, &topic)),
            value_schema: manner.schemas.then(|| value_schema(&schema, &forms, &topic)),
            names: names.collect(),
            collection: schema.name.to_string(),
            mode: target.mode.clone(),
            compacted: manner.compacted,
            schema,
            topic,
            partitions,
            forms,
            key,
        }
    }

    /// Where records of this key lie; those of a table without a key lie in one partition, in their order.
    pub(super) fn partition(&self, key: Option<&str>) -> u32 {
        key.map_or(0, |key| partition_of(key.as_bytes(), self.partitions).0)
    }

    /// What the forms of its columns have no word for.
    pub(super) fn unsayable(&self) -> impl Iterator<Item = (&str, &'static str)> {
        let columns = self.schema.columns.iter().zip(&self.forms);
        columns.filter_map(|(column, form)| Some((&*column.name, form.unsayable()?)))
    }

    /// The records of one change. Rows of a copy have the letter `r`.
    pub(super) fn drafts(&self, change: &Change, is_copy: bool) -> Result<Vec<Draft>, Reason> {
        let keyed = !self.key.is_empty();
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
            (Op::Update, Some(new)) if keyed && change.replaced_key(&self.schema).is_some() => {
                let old = old.ok_or("the change carries no old row")?;
                let mut gone = self.gone(old, keyed)?;
                let mut comes = self.draft('c', "null".to_owned(), new, Some(old), keyed)?;
                comes.moved = gone.key.clone().map(|key| ("__debezium.oldkey", key));
                gone.moved = comes.key.clone().map(|key| ("__debezium.newkey", key));
                Ok(vec![gone, comes])
            }
            (Op::Update, Some(new)) => {
                let before = match old {
                    Some(old) if is_whole(old) => self.image(old, None)?,
                    _ if !keyed => return Err("the source sent no old row, and the table has no key".into()),
                    _ => "null".to_owned(),
                };
                Ok(vec![self.draft('u', before, new, old, keyed)?])
            }
        }
    }

    fn gone(&self, old: &Row, keyed: bool) -> Result<Draft, Reason> {
        let key = if keyed { Some(self.key(old)?) } else { None };
        if !keyed && !is_whole(old) {
            return Err("the source sent no whole old row, and the table has no key".into());
        }
        let before = self.last_image(old)?;
        Ok(Draft { goes: key.is_some(), key, op: 'd', before, after: "null".to_owned(), moved: None })
    }

    fn draft(&self, op: char, before: String, new: &Row, old: Option<&Row>, keyed: bool) -> Result<Draft, Reason> {
        let key = if keyed { Some(self.key(new)?) } else { None };
        let after = self.image(new, old)?;
        Ok(Draft { key, op, before, after, goes: false, moved: None })
    }

    /// A row's key as it is written.
    pub(super) fn key(&self, row: &Row) -> Result<String, Reason> {
        let cells: Vec<Cell<'_>> = row.cells().collect();
        let mut out = self.opened(&self.key_schema);
        out.push('{');
        for (place, index) in self.key.iter().enumerate() {
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
                Cell::Bytes(bytes) => form.write(bytes, &mut out).map_err(|fault| self.named(*index, &fault))?,
                Cell::Null => {
                    return Err(Reason(format!("{}: NULL in the key: it identifies no row", self.column(*index))));
                }
                Cell::Absent | Cell::Unchanged => return Err("the change does not carry the row's key".into()),
            }
        }
        out.push('}');
        self.close(&self.key_schema, &mut out);
        Ok(out)
    }

    /// A row as it is now; what was left alone is taken from `old` where that has it.
    fn image(&self, row: &Row, old: Option<&Row>) -> Result<String, Reason> {
        let mut out = String::with_capacity(row.as_bytes().len() * 2 + self.names.len() * 16);
        let before: Vec<Cell<'_>> = old.map(|old| old.cells().collect()).unwrap_or_default();
        if row.len() != self.forms.len() {
            return Err("the row has another number of cells than its table has columns".into());
        }
        out.push('{');
        for (index, ((cell, form), name)) in row.cells().zip(&self.forms).zip(&self.names).enumerate() {
            if index > 0 {
                out.push(',');
            }
            out.push_str(name);
            let cell = match (cell, before.get(index)) {
                (Cell::Unchanged, Some(known @ (Cell::Bytes(_) | Cell::Null))) => *known,
                (cell, _) => cell,
            };
            if form.write_cell(cell, &mut out).map_err(|fault| self.named(index, &fault))? {
                continue;
            }
            if cell == Cell::Absent {
                return Err(Reason(format!("{}: no value in a whole row", self.column(index))));
            }
            let hint = "ALTER TABLE … REPLICA IDENTITY FULL lets the source send it";
            if self.compacted {
                let why = "a large value was left alone by an update, and a compacted topic forgets what it was";
                return Err(Reason(format!("{}: {why}; {hint}", self.column(index))));
            }
            if !form.write_unchanged(PLACEHOLDER, &mut out) {
                let why = "a large value was left alone by an update, and its type has no word for that";
                return Err(Reason(format!("{}: {why}; {hint}", self.column(index))));
            }
        }
        out.push('}');
        Ok(out)
    }

    /// A row as it was last, as far as it is known: what is not comes as null.
    fn last_image(&self, row: &Row) -> Result<String, Reason> {
        let mut out = String::from("{");
        for (index, ((cell, form), name)) in row.cells().zip(&self.forms).zip(&self.names).enumerate() {
            if index > 0 {
                out.push(',');
            }
            out.push_str(name);
            if !form.write_cell(cell, &mut out).map_err(|fault| self.named(index, &fault))? {
                out.push_str("null");
            }
        }
        out.push('}');
        Ok(out)
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
        // All but the key is not known, and comes as null.
        let mut before = payload.strip_suffix('}').unwrap_or(payload).to_owned();
        for (index, name) in self.names.iter().enumerate().filter(|(index, _)| !self.key.contains(index)) {
            if index > 0 || !self.key.is_empty() {
                before.push(',');
            }
            before.push_str(name);
            before.push_str("null");
        }
        before.push('}');
        Draft { key: Some(key.to_owned()), op: 'd', before, after: "null".to_owned(), goes: true, moved: None }
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
        let draft = Draft { key: None, op: 't', before: nothing(), after: nothing(), goes: false, moved: None };
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
        string(&self.schema.name.schema, out);
        out.push_str(",\"table\":");
        string(&self.schema.name.name, out);
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

fn is_whole(row: &Row) -> bool {
    row.cells().all(|cell| matches!(cell, Cell::Bytes(_) | Cell::Null))
}

/// Why a change cannot be written; never holds a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reason(pub(super) String);

impl From<&str> for Reason {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}
