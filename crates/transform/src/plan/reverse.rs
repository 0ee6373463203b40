//! The way back: from the rules of a migration to what takes a change of its new side to the old one.
//!
//! ```text
//!  forward   old row ──▶ step 1 ──▶ … ──▶ step n ──▶ new keys ──▶ new row
//!  back      old row ◀── undone ◀── … ◀── undone ◀── old keys ◀── new row
//! ```
//! Each step is undone in turn, last one first. What cannot be undone leaves the old side's column alone: a row that is
//! there keeps what it has, one that was born on the new side gets the column's default. What can be undone, but not
//! exactly (a rounded number, a text that was cut in two), is written only where it has changed on the new side, so that
//! no value of the old side is altered that nobody touched.
//!
//! New keys are not turned back here, for that is no matter of the row: the sink finds each old key where the pair is on
//! record, and draws one for a row that was born on the new side. Here is only said which columns hold such keys.

mod undo;

use super::{
    Drafted, Note, Out, Plan, PlanError, PlanOptions, PlannedTable, TablePlan, Writing, clashing_numbers, context,
    drafted, order, table::Draft, table_id,
};
use crate::{program::From, rules::Rules, step::Step};
use crossfade_event::{
    ColumnType, Identity, Logical, SchemaVersion, TableName, TableSchema,
    catalog::{Catalog, ColumnDef, Dialect, RelationKind, TableDef},
};
use serde::Serialize;
use std::{collections::BTreeMap, sync::Arc};
use undo::{Now, Undo};

/// The migration that is taken back: its old side as it was planned, and what was done to it.
#[derive(Debug, Clone)]
pub struct Forward {
    /// The old side's tables.
    pub catalog: Catalog,
    /// What became of them.
    pub rules: Rules,
    /// What the plan knew beside.
    pub options: PlanOptions,
}

/// What becomes of everything on the way back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Back {
    /// The tables, by the old side's name.
    pub tables: Vec<BackTable>,
    /// Why there is no way back, where there is none.
    pub refusals: Vec<BackRefusal>,
}

/// One table of the old side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackTable {
    /// The new side's table.
    pub from: TableName,
    /// The old side's.
    pub to: TableName,
    /// What becomes of each column of the old side.
    pub columns: Vec<BackColumn>,
    /// The new side's columns that are not sent back.
    pub left: Vec<String>,
    /// Columns that hold new keys, which become old ones.
    pub keys: Vec<BackKey>,
    /// The new side must tell each row as it was before: REPLICA IDENTITY FULL.
    pub needs_old_rows: bool,
}

/// What becomes of one column of the old side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackColumn {
    /// Its name.
    pub column: String,
    /// The new side's columns that it is made of.
    pub from: Vec<String>,
    /// In one word.
    pub how: BackHow,
    /// In one sentence.
    pub text: String,
}

/// How a column of the old side is filled on the way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackHow {
    /// Exactly what the new side has.
    Exact,
    /// Made back from the new side's value, and only where that has changed: it may be another one than it was.
    WhereChanged,
    /// The old key of the row that the new one stands for.
    OldKey,
    /// Not at all: what the old row has stays.
    Kept,
}

/// A column that holds new keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackKey {
    /// The old side's column.
    pub column: String,
    /// Whose key it holds: the old side's table.
    pub of: TableName,
    /// That table's key column.
    pub of_column: String,
    /// What gives keys to rows that were born on the new side: its sequence; in SQLite the table itself, whose next rowid it is.
    pub sequence: TableName,
    /// Whether the new keys are UUIDs; texts otherwise.
    pub is_uuid: bool,
}

/// Why a switch would be one-way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackRefusal {
    /// The old side's table.
    pub table: TableName,
    /// Its column, or all of it.
    pub column: Option<String>,
    /// In one sentence.
    pub why: String,
}

/// Works the way back out from the migration alone, before its new side is there.
///
/// # Errors
/// What the plan of the migration itself refuses.
pub fn back(forward: &Forward) -> Result<Back, PlanError> {
    work_out(forward, None).map(|(back, _)| back)
}

/// The plan of the way back, for the new side as it is now.
pub(super) fn plan(new: &Catalog, forward: &Forward) -> Result<Plan, PlanError> {
    let (back, made) = work_out(forward, Some(new))?;
    if let Some(refusal) = back.refusals.first() {
        let column = refusal.column.as_ref().map(|column| format!(".{column}")).unwrap_or_default();
        return Err(PlanError::OneWay(format!("{}{column} {}", refusal.table, refusal.why)));
    }
    let mut planned = Vec::with_capacity(made.len());
    let mut programs = BTreeMap::new();
    for Made { program, def } in made {
        let (schema, source) = (program.schema.clone(), Some(program.source.clone()));
        planned.push(PlannedTable { schema, def, write: Writing::Table, source });
        programs.insert(program.source.clone(), Arc::new(program));
    }
    planned.sort_by(|a, b| a.schema.name.cmp(&b.schema.name));
    let tables = order::parents_first(planned);
    clashing_numbers(&tables)?;
    let support = Catalog {
        dialect: forward.catalog.dialect,
        tables: Vec::new(),
        types: Vec::new(),
        sequences: Vec::new(),
        extensions: Vec::new(),
    };
    let notes = notes(&back);
    let text_columns = Vec::new();
    Ok(Plan { tables, support, notes, lookups: Vec::new(), programs, text_columns, back: Some(Arc::new(back)) })
}

/// What is worth knowing, in the words of every plan.
fn notes(back: &Back) -> Vec<Note> {
    use super::Fidelity::{Lossless, LossyBack, OneWay};
    let columns = back.tables.iter().flat_map(|table| table.columns.iter().map(move |column| (table, column)));
    let note = |(table, column): (&BackTable, &BackColumn)| Note {
        table: table.to.clone(),
        column: Some(column.column.clone()),
        fidelity: match column.how {
            BackHow::Exact | BackHow::OldKey => Lossless,
            BackHow::WhereChanged => LossyBack,
            BackHow::Kept => OneWay,
        },
        text: column.text.clone(),
    };
    columns.filter(|(_, column)| !column.text.is_empty()).map(note).collect()
}

/// One table's program, and the old side's table that it writes.
struct Made {
    program: TablePlan,
    def: TableDef,
}

fn work_out(forward: &Forward, new: Option<&Catalog>) -> Result<(Back, Vec<Made>), PlanError> {
    let mut context = context(&forward.catalog, &forward.rules, &forward.options)?;
    let Drafted { drafts, planned, .. } = drafted(&mut context)?;
    let mut found = Back { tables: Vec::new(), refusals: Vec::new() };
    let mut made = Vec::new();
    let crosses = context.crosses();
    for (draft, planned) in drafts.iter().zip(&planned) {
        let mut way = Way { context: &context, draft, refusals: Vec::new() };
        if crosses {
            way.refuse(None, "stands in another kind of database than its new form; a way back is built between two PostgreSQL databases and between two SQLite files only");
        } else if !way.is_a_table() {
            // Said already.
        } else {
            let def = match new {
                None => &planned.def,
                Some(catalog) => catalog.table(&planned.schema.name).ok_or_else(|| {
                    PlanError::OneWay(format!(
                        "{} is filled from {}, which the new side has no longer",
                        draft.source.name, planned.schema.name
                    ))
                })?,
            };
            let (table, program) = way.table(def)?;
            found.tables.push(table);
            made.push(Made { program, def: draft.source.clone() });
        }
        found.refusals.append(&mut way.refusals);
    }
    found.tables.sort_by(|a, b| a.to.cmp(&b.to));
    Ok((found, made))
}

/// One table on its way back.
struct Way<'w, 'a> {
    context: &'w super::Context<'a>,
    draft: &'w Draft<'a>,
    refusals: Vec<BackRefusal>,
}

impl Way<'_, '_> {
    fn refuse(&mut self, column: Option<&str>, why: impl Into<String>) {
        let (table, column) = (self.draft.source.name.clone(), column.map(str::to_owned));
        self.refusals.push(BackRefusal { table, column, why: why.into() });
    }

    /// Whether it is a table of the kind that is taken back; refuses it otherwise.
    fn is_a_table(&mut self) -> bool {
        let source = self.draft.source;
        let program = &self.draft.program;
        let why = if program.columns_only {
            "is written as columns beside the old ones: nothing is taken back within one table"
        } else if program.dual.is_some() {
            "goes into records, which nobody writes a way back from"
        } else if source.kind != RelationKind::Table {
            "is part of a partition tree, which is not taken back yet"
        } else if source.identity != Identity::Key {
            "has no key by which a row could be found again"
        } else {
            return true;
        };
        self.refuse(None, why);
        false
    }

    fn table(&mut self, new: &TableDef) -> Result<(BackTable, TablePlan), PlanError> {
        let draft = self.draft;
        let mut undo = Undo::new(draft, new)?;
        let rule = self.context.rule(&draft.source.name);
        let steps = rule.map_or(&[][..], |rule| rule.steps.as_slice());
        self.check_steps(steps);
        for (index, step) in steps.iter().enumerate().rev() {
            undo.step(index, step);
        }
        self.check_filter(steps.iter().any(|step| matches!(step, Step::Filter(_))));
        let mut columns = Vec::new();
        let mut outs = Vec::new();
        let mut schema = Vec::new();
        let mut keys = Vec::new();
        for def in draft.source.carried() {
            let name = &*def.column.name;
            let Some(now) = undo.now.get(name) else {
                self.check_left_out(def);
                columns
                    .push(kept(def, undo.kept.get(name).map_or("has no column that it could be made of", |why| why)));
                continue;
            };
            if let Some(key) = self.key_of(def, now) {
                keys.push(key);
            }
            if now.where_changed && def.column.key.is_some() {
                self.refuse(Some(name), "is part of the key by which rows are found, and cannot be made back exactly");
            }
            let mut written = def.column.clone();
            written.default = None;
            if now.key.is_none() && !undo.overwritten.contains(&now.register) {
                // As the new side sends it.
                let sent = undo.types.get(now.register).filter(|sent| sent.name == written.type_.name);
                written.type_ = sent.cloned().unwrap_or(written.type_);
            }
            let cell = match (&now.key, undo.types.get(now.register)) {
                (Some(_), Some(sent)) => sent.clone(),
                _ => written.type_.clone(),
            };
            let column = crossfade_event::Column { type_: cell, ..written.clone() };
            outs.push(Out { column, from: From::Register(now.register), in_old: def.column.key.is_some() });
            schema.push(written);
            columns.push(sent(def, now, new));
        }
        let sources: Vec<usize> = undo.now.values().flat_map(|now| now.from.iter().copied()).collect();
        let carried: Vec<&ColumnDef> = new.carried().collect();
        let left = carried.iter().enumerate().filter(|(register, _)| !sources.contains(register));
        let left = left.map(|(_, def)| def.column.name.to_string()).collect();
        let needs_old_rows = needs_old_rows(draft.source, &undo, new);
        let mut groups: Vec<Vec<usize>> =
            undo.now.values().filter(|now| now.where_changed).map(|now| now.from.clone()).collect();
        groups.sort();
        groups.dedup();
        let schema = Arc::new(TableSchema {
            id: table_id(&draft.source.name),
            version: SchemaVersion(1),
            name: draft.source.name.clone(),
            columns: schema,
            identity: Identity::Key,
            native_id: draft.source.native_id,
        });
        let (from, to) = (new.name.clone(), draft.source.name.clone());
        let program = TablePlan {
            id: schema.id,
            version: 1,
            source: from.clone(),
            loaded: carried.iter().map(|def| def.column.name.to_string()).collect(),
            generated: new
                .columns
                .iter()
                .filter(|def| def.generated.is_some())
                .map(|def| def.column.name.to_string())
                .collect(),
            types: undo.types,
            ops: undo.ops,
            overwritten: undo.overwritten,
            outs,
            unsaid: Vec::new(),
            schema,
            mapping: None,
            written: true,
            columns_only: false,
            dual: None,
            only_changed: groups,
        };
        Ok((BackTable { from, to, columns, left, keys, needs_old_rows }, program))
    }

    /// Steps that take a value apart or put it together are undone in PostgreSQL's types.
    fn check_steps(&mut self, steps: &[Step]) {
        if self.context.source.dialect != Dialect::Sqlite {
            return;
        }
        for step in steps {
            let (name, column) = match step {
                Step::Split(step) => ("split", &step.split),
                Step::Merge(step) => ("merge", &step.to),
                Step::Pack(step) => ("pack", &step.pack),
                Step::MapValues(step) => ("map_values", &step.map_values),
                _ => continue,
            };
            self.refuse(
                Some(column),
                format!("has the step \"{name}\", which is not taken back between SQLite files yet"),
            );
        }
    }

    /// A column that is not written must be one that a new row can do without.
    fn check_left_out(&mut self, def: &ColumnDef) {
        if def.column.key.is_some() {
            self.refuse(Some(&def.column.name), "is part of the key by which rows are found, and is not sent back");
            return;
        }
        let filled = def.default.is_some() || def.identity.is_some() || def.sequence.is_some();
        if !def.column.nullable && !filled {
            let why = "is not sent back, takes no NULL and has no default: a row that is born on the new side could not be \
                       written. Give it a default, or let it take NULL";
            self.refuse(Some(&def.column.name), why);
        }
    }

    /// The rows that a filter left out are still on the old side: none of them may be met by accident.
    fn check_filter(&mut self, filters: bool) {
        let table = &self.draft.source.name;
        let key = self.draft.source.primary_key.as_ref();
        let drawn = key.is_some_and(|key| {
            key.columns.iter().any(|column| {
                let domain = self.context.domains.columns.get(&(table.clone(), column.clone()));
                domain.is_some_and(|domain| domain.table == *table)
            })
        });
        if filters && !drawn {
            let why = "has a filter, and its keys stay what they are: a row that is born on the new side could take the key \
                       of one that the filter has left out. Give it new keys, or leave the filter";
            self.refuse(None, why);
        }
    }

    /// Whose key the column holds, where that became a new one.
    fn key_of(&mut self, def: &ColumnDef, now: &Now) -> Option<BackKey> {
        now.key.as_ref()?;
        let place = (self.draft.source.name.clone(), def.column.name.to_string());
        let domain = self.context.domains.columns.get(&place)?.clone();
        let [(of_column, type_)] = domain.key.as_slice() else {
            self.refuse(Some(&def.column.name), "holds a key of several columns, which is not turned back yet");
            return None;
        };
        let owner = self.context.source.table(&domain.table).and_then(|table| table.column(of_column));
        if self.context.source.dialect == Dialect::Sqlite {
            return self.rowid_of(def, &domain.table, of_column, domain.maker.makes_uuid());
        }
        let whole = |type_: &ColumnType| matches!(type_.logical, Logical::Int16 | Logical::Int32 | Logical::Int64);
        let sequence = owner.and_then(|owner| owner.sequence.clone());
        let Some(sequence) = sequence.filter(|_| whole(type_) && whole(&def.column.type_)) else {
            let why = format!(
                "holds the key of {}, and rows that are born on the new side could be given none of its keys: \
                 {}.{of_column} is no integer with a sequence to draw from. Give it one (GENERATED BY DEFAULT AS IDENTITY)",
                domain.table, domain.table
            );
            self.refuse(Some(&def.column.name), why);
            return None;
        };
        Some(BackKey {
            column: def.column.name.to_string(),
            of: domain.table.clone(),
            of_column: of_column.clone(),
            sequence,
            is_uuid: domain.maker.makes_uuid(),
        })
    }

    /// The same of a SQLite table: its rowid is always an integer, and the next one is always to be had.
    fn rowid_of(&mut self, def: &ColumnDef, of: &TableName, of_column: &str, is_uuid: bool) -> Option<BackKey> {
        let owner = self.context.source.table(of);
        let is_integer = owner
            .and_then(|owner| owner.column(of_column))
            .is_some_and(|owner| owner.column.type_.name.eq_ignore_ascii_case("INTEGER"));
        let is_key = owner.and_then(|owner| owner.primary_key.as_ref()).is_some_and(|key| key.columns == [of_column]);
        if !is_integer || !is_key {
            let why = format!(
                "holds the key of {of}, and rows that are born on the new side could be given none of its keys: \
                 {of}.{of_column} is no INTEGER PRIMARY KEY"
            );
            self.refuse(Some(&def.column.name), why);
            return None;
        }
        Some(BackKey {
            column: def.column.name.to_string(),
            of: of.clone(),
            of_column: of_column.to_owned(),
            sequence: of.clone(),
            is_uuid,
        })
    }
}

fn kept(def: &ColumnDef, why: &str) -> BackColumn {
    let born = match &def.default {
        _ if def.identity.is_some() || def.sequence.is_some() => "the next value of its sequence",
        Some(_) => "its default",
        None => "NULL",
    };
    let text = format!("{why}: the old row keeps what it has, one that is born on the new side gets {born}");
    BackColumn { column: def.column.name.to_string(), from: Vec::new(), how: BackHow::Kept, text }
}

fn sent(def: &ColumnDef, now: &Now, new: &TableDef) -> BackColumn {
    let column = def.column.name.to_string();
    let names = |register: &usize| new.carried().nth(*register).map(|def| def.column.name.to_string());
    let from: Vec<String> = now.from.iter().filter_map(names).collect();
    if now.key.is_some() {
        let text = format!("gets the old key that {} stands for", from.join(" and "));
        return BackColumn { column, from, how: BackHow::OldKey, text };
    }
    let renamed = from.iter().any(|name| *name != column);
    let mut said = now.said.clone();
    if said.is_empty() && renamed {
        said.push(format!("comes from {}", from.join(" and ")));
    }
    if now.where_changed {
        said.push("written only where that has changed".to_owned());
    }
    let how = if now.where_changed { BackHow::WhereChanged } else { BackHow::Exact };
    BackColumn { column, from, how, text: said.join("; ") }
}

/// Whether the key of the old side's row cannot be told from the key of the new side's, or something is only written where
/// it has changed.
fn needs_old_rows(old: &TableDef, undo: &Undo<'_, '_>, new: &TableDef) -> bool {
    let key: Vec<&str> = new.primary_key.iter().flat_map(|key| key.columns.iter().map(String::as_str)).collect();
    let names: Vec<&str> = new.carried().map(|def| &*def.column.name).collect();
    let in_key = |register: &usize| names.get(*register).is_some_and(|name| key.contains(name));
    let told = |def: &ColumnDef| undo.now.get(&*def.column.name).is_none_or(|now| now.from.iter().all(in_key));
    undo.now.values().any(|now| now.where_changed) || !old.carried().filter(|def| def.column.key.is_some()).all(told)
}

#[cfg(test)]
mod tests;
