//! From the rules and a source's catalog to the target: its tables, what becomes of each column, what is lost.

mod added;
mod alone;
mod def;
mod domains;
mod dual;
mod expression;
mod follow;
mod index;
mod mapping;
mod names;
mod notes;
mod order;
mod rekey;
mod reverse;
mod steps;
mod swap;
mod table;

pub use added::default_cell;
pub use follow::Became;
pub use reverse::{Back, BackColumn, BackHow, BackKey, BackRefusal, BackTable, Forward, back};
pub use swap::{Swap, SwapRefusal, swap};

use crate::{
    adopted::Adopted,
    bind::Bound,
    program::{From, Op},
    rules::{Rules, TableRule, WriteKind},
};
use crossfade_event::{
    Column, ColumnType, Format, Logical, TableId, TableName, TableSchema,
    catalog::{Catalog, Dialect, TableDef},
};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

pub(crate) use mapping::MappingOut;
use names::{check_rules, clashing_numbers, find_table, known_table, table_id, target_names, unknown_column};

/// What the plan must know beside rules and catalog.
#[derive(Debug, Clone)]
pub struct PlanOptions {
    /// The schema that the target's tables stand in; `None` keeps the source's names.
    pub schema: Option<String>,
    /// The sink's words.
    pub dialect: Dialect,
    /// How tables are written that do not say otherwise.
    pub write: WriteKind,
    /// The migration's secret, from which `uuid-v4`, `uuid-v7` and masks are derived.
    pub secret: Vec<u8>,
    /// Whether the sink's rows are records, which may tell a row in two key versions.
    pub records: bool,
    /// The migration whose way back is planned: the source is its new side then, and the rules are its rules.
    pub reverse: Option<Arc<Forward>>,
    /// Keys that rows have already, in place of those that would be derived.
    pub adopted: Arc<Adopted>,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self {
            schema: None,
            dialect: Dialect::Postgres,
            write: WriteKind::default(),
            secret: Vec::new(),
            records: false,
            reverse: None,
            adopted: Arc::default(),
        }
    }
}

/// Why rules and catalog make no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A table that the source does not have, or that is not captured.
    #[error("{place} names the table \"{name}\", which is not among the source's captured tables{near}")]
    UnknownTable {
        /// Where it is named.
        place: String,
        /// The name.
        name: String,
        /// The nearest one, as a question.
        near: String,
    },
    /// A column that the table does not have at that point.
    #[error("{place} names the column \"{column}\", which {table} does not have there{near}")]
    UnknownColumn {
        /// Where it is named.
        place: String,
        /// The table.
        table: TableName,
        /// The column.
        column: String,
        /// The nearest one, as a question.
        near: String,
    },
    /// Two rules that cannot both hold.
    #[error("two rules clash: {0}")]
    Clash(String),
    /// A rule that makes no sense.
    #[error("{place}: {problem}")]
    Invalid {
        /// Where.
        place: String,
        /// What, and what to do.
        problem: String,
    },
    /// Something that the design has and this build has not.
    #[error("{0} is not built yet")]
    Unbuilt(String),
    /// A column whose binary form nobody but its own database can read.
    #[error(
        "the column \"{column}\" of {table} ({type_}) comes in binary, which only its own database can read; \
         it must be read in its text form"
    )]
    NeedsText {
        /// The table.
        table: TableName,
        /// The column.
        column: String,
        /// Its type.
        type_: String,
    },
    /// A schema in the log that the plan was not made for.
    #[error("{0}")]
    Unplanned(String),
    /// What was written on the new side cannot be taken back to the old one.
    #[error("there is no way back to the old side: {0}")]
    OneWay(String),
}

impl PlanError {
    pub(crate) fn invalid(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { place: place.into(), problem: problem.into() }
    }
}

/// How a table of the target is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Writing {
    /// A table of its own.
    Table,
    /// Columns beside the old ones: only these (by index in the schema) are written.
    Columns {
        /// Indexes of the written columns.
        columns: Vec<usize>,
    },
    /// Rows are inserted unless their key is there already.
    InsertOnce,
    /// Records in two key versions: the columns before `second` are the source's own row, those from there on the new one.
    /// Both keys together are the table's.
    Dual {
        /// Where the second version's columns begin.
        second: usize,
    },
}

/// One table of the target.
#[derive(Debug, Clone)]
pub struct PlannedTable {
    /// Its shape; its number is made from its name, so that it stays when other tables come or go.
    pub schema: Arc<TableSchema>,
    /// How to make it, in the sink's dialect.
    pub def: TableDef,
    /// How it is written.
    pub write: Writing,
    /// The table of the source that it comes from; `None` for the mapping table.
    pub source: Option<TableName>,
}

/// What becomes of a value on its way, and on its way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fidelity {
    /// It can be had back exactly.
    Lossless,
    /// It arrives as asked for, but the old value cannot always be had back exactly.
    LossyBack,
    /// There is no way back from the new value alone.
    OneWay,
    /// The target cannot hold every value exactly; one that does not fit is quarantined.
    Inexact,
    /// Whoever wrote the source's records has lost something of the values before they come here.
    Lossy,
    /// Nothing about values: something to know, or to do.
    Advice,
}

/// What is worth knowing of a table or column before anything runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Note {
    /// The source's table.
    pub table: TableName,
    /// The column, or the whole table.
    pub column: Option<String>,
    /// In one word.
    pub fidelity: Fidelity,
    /// In one sentence.
    pub text: String,
}

/// Rows of a source table that must be at hand while others are transformed.
#[derive(Debug, Clone)]
pub struct LookupView {
    /// Its number, by which [`crate::Views::get`] is asked.
    pub view: u32,
    /// The source's table.
    pub table: TableName,
    /// The columns of its key, in order; their cells, as the source writes them, are the key.
    pub key: Vec<String>,
    /// The columns whose cells are kept, in order.
    pub keep: Vec<String>,
    misses: Arc<AtomicU64>,
}

impl LookupView {
    /// How often a row was looked up that is not there, since the plan was made.
    pub fn misses(&self) -> u64 {
        self.misses.load(Ordering::Relaxed)
    }
}

/// An output cell and the column it goes into.
#[derive(Debug, Clone)]
pub(crate) struct Out {
    pub(crate) column: Column,
    pub(crate) from: From,
    /// Whether an image of what a row was carries it: it is of the key, or of the row as the source has it.
    pub(crate) in_old: bool,
}

/// What is done to the rows of one source table.
#[derive(Debug, Clone)]
pub(crate) struct TablePlan {
    pub(crate) id: TableId,
    pub(crate) version: u32,
    pub(crate) source: TableName,
    /// The source's columns that are loaded into the first registers.
    pub(crate) loaded: Vec<String>,
    /// Columns that the target computes itself.
    pub(crate) generated: Vec<String>,
    /// The types of all registers.
    pub(crate) types: Vec<ColumnType>,
    pub(crate) ops: Vec<Op>,
    pub(crate) outs: Vec<Out>,
    pub(crate) schema: Arc<TableSchema>,
    pub(crate) mapping: Option<MappingOut>,
    /// Registers that an operation writes.
    pub(crate) overwritten: Vec<usize>,
    /// Columns of the source whose default cannot be said in the target, and why.
    pub(crate) unsaid: Vec<(String, String)>,
    pub(crate) columns_only: bool,
    /// Whether anything of it is written at all; otherwise it is only looked up by others.
    pub(crate) written: bool,
    /// Where the columns of the second key version begin.
    pub(crate) dual: Option<usize>,
    /// Registers that are written where one of their group has changed in the row, and otherwise leave alone what the
    /// target has.
    pub(crate) only_changed: Vec<Vec<usize>>,
}

/// Rules and catalog, worked out.
#[derive(Debug, Clone)]
pub struct Plan {
    tables: Vec<PlannedTable>,
    support: Catalog,
    notes: Vec<Note>,
    lookups: Vec<LookupView>,
    programs: BTreeMap<TableName, Arc<TablePlan>>,
    text_columns: Vec<(TableName, String)>,
    back: Option<Arc<Back>>,
}

impl Plan {
    /// What becomes of each column on the way back, where this is the plan of a way back.
    pub fn back(&self) -> Option<&Back> {
        self.back.as_deref()
    }

    /// The target's tables, parents before children where the references allow it, the mapping table first.
    pub fn tables(&self) -> &[PlannedTable] {
        &self.tables
    }

    /// Types, sequences and extensions that must exist first.
    pub fn support(&self) -> &Catalog {
        &self.support
    }

    /// What is worth knowing, by table and column.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// The source tables whose rows must be at hand.
    pub fn lookups(&self) -> &[LookupView] {
        &self.lookups
    }

    /// Source columns that must be read in their text form, for only their own database can read their binary one.
    pub fn text_columns(&self) -> &[(TableName, String)] {
        &self.text_columns
    }

    /// Why the rows that were there before a column of the source cannot be given in the target what they read in it;
    /// `None` when they can.
    pub fn unsaid_default(&self, table: &TableName, column: &str) -> Option<&str> {
        let unsaid = &self.programs.get(table)?.unsaid;
        unsaid.iter().find(|(name, _)| name == column).map(|(_, why)| why.as_str())
    }

    /// Joins the plan with one source schema as seen in the log.
    ///
    /// # Errors
    /// When the plan knows nothing of the table or of one of its columns: plan again with the newer catalog.
    pub fn bind(&self, schema: &Arc<TableSchema>) -> Result<Bound, PlanError> {
        let program = self.programs.get(&schema.name).ok_or_else(|| {
            PlanError::Unplanned(format!("the log holds rows of {}, which the plan does not know", schema.name))
        })?;
        let known = |name: &str| program.loaded.iter().chain(&program.generated).any(|known| known == name);
        if let Some(column) = schema.columns.iter().find(|column| !known(&column.name)) {
            return Err(PlanError::Unplanned(format!(
                "the log holds rows of {} with the column \"{}\", which the plan does not know",
                schema.name, column.name
            )));
        }
        let bound = Bound::new(program.clone(), schema);
        match bound.unreadable() {
            Some((column, type_)) => {
                Err(PlanError::NeedsText { table: schema.name.clone(), column, type_: type_.to_string() })
            }
            None => Ok(bound),
        }
    }
}

/// Everything that is worked out once and read while single tables are planned.
pub(crate) struct Context<'a> {
    pub(crate) source: &'a Catalog,
    pub(crate) rules: &'a Rules,
    pub(crate) options: &'a PlanOptions,
    pub(crate) secret: Arc<Vec<u8>>,
    /// Source names and target names.
    pub(crate) names: BTreeMap<TableName, TableName>,
    pub(crate) domains: domains::Domains,
    pub(crate) lookups: Vec<LookupView>,
    pub(crate) notes: Vec<Note>,
}

impl Context<'_> {
    pub(crate) fn rule(&self, table: &TableName) -> Option<&TableRule> {
        self.rules.table.iter().find(|rule| find_table(self.source, &rule.from).is_some_and(|def| def.name == *table))
    }

    pub(crate) fn write_kind(&self, table: &TableName) -> WriteKind {
        self.rule(table).and_then(|rule| rule.write).unwrap_or(self.options.write)
    }

    pub(crate) fn crosses(&self) -> bool {
        self.source.dialect != self.options.dialect
    }

    pub(crate) fn note(
        &mut self,
        table: &TableName,
        column: Option<&str>,
        fidelity: Fidelity,
        text: impl Into<String>,
    ) {
        let note = Note { table: table.clone(), column: column.map(str::to_owned), fidelity, text: text.into() };
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// The number of the view that keeps these columns of that table under that key.
    pub(crate) fn view(&mut self, table: &TableName, key: Vec<String>, keep: Vec<String>) -> (u32, Arc<AtomicU64>) {
        if let Some(view) = self.lookups.iter().find(|v| v.table == *table && v.key == key && v.keep == keep) {
            return (view.view, view.misses.clone());
        }
        let view = u32::try_from(self.lookups.len()).unwrap_or(u32::MAX);
        let misses = Arc::new(AtomicU64::new(0));
        self.lookups.push(LookupView { view, table: table.clone(), key, keep, misses: misses.clone() });
        (view, misses)
    }
}

/// Works rules and catalog out.
///
/// # Errors
/// A sentence that names the rule and what to do.
pub fn plan(source: &Catalog, rules: &Rules, options: &PlanOptions) -> Result<Plan, PlanError> {
    if let Some(forward) = &options.reverse {
        return reverse::plan(source, forward);
    }
    let mut context = context(source, rules, options)?;
    let Drafted { mapping, drafts, mut planned } = drafted(&mut context)?;
    planned.sort_by(|a, b| a.schema.name.cmp(&b.schema.name));
    let mut tables: Vec<PlannedTable> = mapping.map(|mapping| mapping.table).into_iter().collect();
    tables.extend(order::parents_first(planned));
    clashing_numbers(&tables)?;
    let support = def::support(&context, &tables);
    notes::explain(&mut context, &drafts);
    let text_columns = text_columns(&context, &drafts);
    let programs = drafts.into_iter().map(|draft| (draft.source.name.clone(), Arc::new(draft.program))).collect();
    let mut notes = context.notes;
    notes.sort_by(|a, b| (&a.table, &a.column, a.fidelity).cmp(&(&b.table, &b.column, b.fidelity)));
    Ok(Plan { tables, support, notes, lookups: context.lookups, programs, text_columns, back: None })
}

/// What is known before single tables are planned.
fn context<'a>(source: &'a Catalog, rules: &'a Rules, options: &'a PlanOptions) -> Result<Context<'a>, PlanError> {
    check_rules(source, rules)?;
    let names = target_names(source, rules, options)?;
    let domains = domains::find(source, rules, options)?;
    Ok(Context {
        source,
        rules,
        options,
        secret: Arc::new(options.secret.clone()),
        names,
        domains,
        lookups: Vec::new(),
        notes: Vec::new(),
    })
}

/// Every table, planned by itself.
struct Drafted<'a> {
    mapping: Option<mapping::Mapping>,
    drafts: Vec<table::Draft<'a>>,
    planned: Vec<PlannedTable>,
}

fn drafted<'a>(context: &mut Context<'a>) -> Result<Drafted<'a>, PlanError> {
    let mapping = mapping::plan(context)?;
    let source = context.source;
    let mut drafts = Vec::with_capacity(source.tables.len());
    for table in &source.tables {
        if def::is_planned(table, context.options.dialect) {
            drafts.push(table::draft(context, table, mapping.as_ref())?);
        }
    }
    let planned = def::finish(context, &mut drafts)?;
    Ok(Drafted { mapping, drafts, planned })
}

fn text_columns(context: &Context<'_>, drafts: &[table::Draft<'_>]) -> Vec<(TableName, String)> {
    let mut out = Vec::new();
    for draft in drafts {
        for (register, column) in draft.source.carried().map(|def| &def.column).enumerate() {
            let opaque = column.type_.logical == Logical::Opaque && context.source.dialect == Dialect::Postgres;
            // By its register: a shadow beside the column has its values, and another name.
            let touched = draft
                .columns
                .iter()
                .any(|work| work.register == register && (work.touched || work.target != column.type_));
            if opaque && touched && column.type_.format != Format::PgText {
                out.push((draft.source.name.clone(), column.name.to_string()));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests;
