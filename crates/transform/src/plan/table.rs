//! One table: its rule's steps, worked out one after another on the columns as they stand by then.

use super::{
    Context, Fidelity, Out, PlanError, TablePlan, added::Way, dual, mapping::Mapping, mapping::MappingOut, table_id,
    unknown_column,
};
use crate::{
    cast, predicate,
    program::{From, KeyFrom, Op},
    rules::WriteKind,
    step::Literal,
    types::{self, Affinity, Modifier, TypeSpec, affinity},
};
use crossfade_event::{
    Column, ColumnType, Identity, Logical, SchemaVersion, TableSchema, Value,
    catalog::{KeyDef, TableDef},
};
use std::sync::Arc;

/// A column as it stands after some steps.
#[derive(Debug, Clone)]
pub(crate) struct Work {
    pub(crate) name: String,
    pub(crate) register: usize,
    /// The source's column that it still is.
    pub(crate) origin: Option<String>,
    /// Whether a step has changed its values.
    pub(crate) touched: bool,
    /// Whether its type in the target is another than the source's column would get.
    pub(crate) retyped: bool,
    /// The type of its values by now.
    pub(crate) value: TypeSpec,
    /// Its type in the target.
    pub(crate) target: ColumnType,
    pub(crate) nullable: bool,
    /// The new key that it becomes.
    pub(crate) key: Option<KeyFrom>,
}

/// A table on its way into the plan.
pub(crate) struct Draft<'a> {
    pub(crate) source: &'a TableDef,
    pub(crate) columns: Vec<Work>,
    /// The name of the surrogate that is the new primary key.
    pub(crate) surrogate: Option<String>,
    /// The column that is the new primary key where the old one is dropped and rows are found by this one (or, beside old
    /// columns, could be): the table takes the key of the row that it refers to.
    pub(crate) taken_key: Option<String>,
    /// References (by their place in the source's list) that go by a surrogate of the parent: the column for it.
    pub(crate) by_surrogate: Vec<(usize, String)>,
    /// How the columns stood before each step, and behind the last one; with the number of operations by then.
    pub(crate) stages: Vec<(Vec<Work>, usize)>,
    pub(crate) program: TablePlan,
}

impl Draft<'_> {
    /// What a source's column has become, if it is still there.
    pub(crate) fn now(&self, column: &str) -> Option<&Work> {
        self.columns.iter().find(|work| work.origin.as_deref() == Some(column))
    }
}

/// The columns as they stand, and what has been done to them.
pub(super) struct Steps<'c, 'a> {
    pub(super) context: &'c mut Context<'a>,
    pub(super) table: &'a TableDef,
    /// Where in the spec: for errors.
    pub(super) place: String,
    pub(super) columns: Vec<Work>,
    pub(super) types: Vec<ColumnType>,
    pub(super) ops: Vec<Op>,
    pub(super) overwritten: Vec<usize>,
}

/// Works one table out.
pub(crate) fn draft<'a>(
    context: &mut Context<'a>,
    table: &'a TableDef,
    mapping: Option<&Mapping>,
) -> Result<Draft<'a>, PlanError> {
    let rule = context.rule(&table.name).cloned();
    let mut steps = Steps::new(context, table);
    let mut stages = Vec::new();
    for (index, step) in rule.iter().flat_map(|rule| &rule.steps).enumerate() {
        stages.push((steps.columns.clone(), steps.ops.len()));
        steps.place = format!("step {} of [[table]] from = \"{}\"", index + 1, table.name);
        steps.step(step)?;
    }
    stages.push((steps.columns.clone(), steps.ops.len()));
    steps.place = format!("[[table]] from = \"{}\"", table.name);
    steps.new_keys()?;
    let surrogate = steps.own_surrogate()?;
    let by_surrogate = steps.references_by_surrogate()?;
    if let Some(kind) = rule.as_ref().filter(|rule| !rule.shadow.is_empty()).map(|_| steps.write_kind())
        && kind != WriteKind::ShadowColumns
    {
        return Err(PlanError::Clash(format!(
            "{} names shadow columns, and is not written as shadow-columns",
            steps.place
        )));
    }
    let columns_only = steps.write_kind() == WriteKind::ShadowColumns;
    let mut written = true;
    if columns_only {
        written = steps.shadow(&rule.map(|rule| rule.shadow).unwrap_or_default())?;
    }
    let columns = std::mem::take(&mut steps.columns);
    let (types, mut ops, overwritten) = (steps.types, steps.ops, steps.overwritten);
    if !written {
        ops.push(Op::Filter(predicate::never()));
    }
    let mut outs = outs(table, &columns, surrogate.as_deref(), columns_only)?;
    let unsaid = say_defaults(context, table, &columns, &mut outs, &types, &ops);
    let mut own_key = own_key_out(context, table, &outs, surrogate.as_deref());
    let taken = if surrogate.is_none() && !columns_only { taken_key(table, &columns) } else { None };
    let mut old_key = None;
    if let Some(taken) = &taken {
        let text = "is the new primary key: the old one goes, and rows are found by this column";
        context.note(&table.name, taken.origin.as_deref(), Fidelity::Advice, text);
        own_key = outs.iter().position(|out| matches!(out.from, From::Key(_)) && *out.column.name == *taken.name);
        old_key = own_key.and(old_key_registers(table));
    }
    let mut dual = None;
    if context.write_kind(&table.name) == WriteKind::DualRecords {
        let both = dual::both(table, outs, (context.source.dialect, context.options.dialect))?;
        own_key = own_key.map(|out| both.second + out);
        outs = both.outs;
        dual = Some(both.second);
    }
    let name = context.names.get(&table.name).cloned().unwrap_or_else(|| table.name.clone());
    let identity = if surrogate.is_some() { Identity::Key } else { table.identity };
    let schema = Arc::new(TableSchema {
        id: table_id(&name),
        version: SchemaVersion(1),
        name,
        columns: outs.iter().map(|out| out.column.clone()).collect(),
        identity,
        native_id: table.native_id,
    });
    let program = TablePlan {
        id: schema.id,
        version: 1,
        source: table.name.clone(),
        loaded: loaded(table, dual.is_some()),
        generated: table.columns.iter().filter(|d| d.generated.is_some()).map(|d| d.column.name.to_string()).collect(),
        types,
        ops,
        overwritten,
        outs,
        unsaid,
        schema,
        mapping: mapping.zip(own_key).map(|(mapping, out)| MappingOut {
            schema: mapping.table.schema.clone(),
            out,
            old: old_key,
        }),
        columns_only,
        written,
        dual,
        only_changed: Vec::new(),
    };
    let taken_key = match columns_only {
        true => taken_beside(table, &columns, &stages),
        false => taken.map(|work| work.name),
    };
    Ok(Draft { source: table, columns, surrogate, taken_key, by_surrogate, stages, program })
}

/// The one column by which rows are found, where the primary key is dropped and it is not.
fn taken_key(table: &TableDef, columns: &[Work]) -> Option<Work> {
    let stays = |name: &str| columns.iter().find(|work| work.origin.as_deref() == Some(name));
    let primary = table.primary_key.as_ref()?;
    if primary.columns.iter().all(|name| stays(name).is_some()) {
        return None;
    }
    let mut found_by = table.carried().filter(|def| def.column.key.is_some());
    match (found_by.next(), found_by.next()) {
        (Some(only), None) => stays(&only.column.name).cloned(),
        _ => None,
    }
}

/// Beside old columns rows are found by the old key as long as they are followed. Where steps drop it, the one column that is
/// unique by itself, takes no NULL and becomes a new key is the primary key once the new columns have the names.
fn taken_beside(table: &TableDef, columns: &[Work], stages: &[(Vec<Work>, usize)]) -> Option<String> {
    let (left, _) = stages.last()?;
    let is_left = |name: &String| left.iter().any(|work| work.origin.as_ref() == Some(name));
    if table.primary_key.as_ref()?.columns.iter().any(is_left) {
        return None;
    }
    let alone = |key: &KeyDef| match key.columns.as_slice() {
        [only] if !key.deferrable => Some(only.clone()),
        _ => None,
    };
    let shadow = |name: String| {
        let register = table.carried().position(|def| *def.column.name == name && !def.column.nullable)?;
        columns.iter().find(|work| work.origin.is_none() && work.register == register && work.key.is_some())
    };
    let mut found = table.uniques.iter().filter_map(alone).filter_map(shadow);
    match (found.next(), found.next()) {
        (Some(only), None) => Some(only.name.clone()),
        _ => None,
    }
}

/// Where the old primary key's columns are loaded.
fn old_key_registers(table: &TableDef) -> Option<Vec<usize>> {
    let place = |name: &String| table.carried().position(|def| *def.column.name == **name);
    table.primary_key.as_ref()?.columns.iter().map(place).collect()
}

/// The source's columns that are loaded; twice, where the row as the source has it is told beside the new one.
fn loaded(table: &TableDef, twice: bool) -> Vec<String> {
    let names = || table.carried().map(|def| def.column.name.to_string());
    if twice { names().chain(names()).collect() } else { names().collect() }
}

/// The output that is the table's own new key.
fn own_key_out(context: &Context<'_>, table: &TableDef, outs: &[Out], surrogate: Option<&str>) -> Option<usize> {
    if let Some(surrogate) = surrogate {
        return outs.iter().position(|out| &*out.column.name == surrogate);
    }
    let [key] = table.primary_key.as_ref()?.columns.as_slice() else { return None };
    let domain = context.domains.columns.get(&(table.name.clone(), key.clone()))?;
    let own = table.carried().position(|def| &*def.column.name == key.as_str())?;
    let is_own =
        table.foreign_keys.iter().all(|foreign| foreign.columns != [key.clone()]) || domain.table == table.name;
    is_own.then_some(())?;
    outs.iter().position(|out| matches!(&out.from, From::Key(from) if matches!(from.parts.as_slice(), [(register, _)] if *register == own)))
}

fn outs(
    table: &TableDef,
    columns: &[Work],
    surrogate: Option<&str>,
    columns_only: bool,
) -> Result<Vec<Out>, PlanError> {
    let mut outs = Vec::with_capacity(columns.len());
    for work in columns {
        let source = work.origin.as_deref().and_then(|origin| table.column(origin)).map(|def| &def.column);
        let key = match (surrogate, source) {
            (Some(surrogate), _) if !columns_only => (surrogate == work.name).then_some(0),
            (_, source) => source.and_then(|column| column.key),
        };
        let column = Column {
            name: Arc::from(work.name.as_str()),
            type_: work.target.clone(),
            key,
            nullable: work.nullable,
            native_id: source.map_or(0, |column| column.native_id),
            default: None,
        };
        let from = match &work.key {
            Some(key) => From::Key(key.clone()),
            None => From::Register(work.register),
        };
        let in_old = column.key.is_some();
        outs.push(Out { column, from, in_old });
    }
    let by_old_key = surrogate.is_none() || columns_only;
    if table.identity == Identity::Key && by_old_key {
        for def in table.carried().filter(|def| def.column.key.is_some()) {
            let stays = |(work, out): (&Work, &Out)| {
                work.origin.as_deref() == Some(&*def.column.name) && out.column.key == def.column.key
            };
            if !columns.iter().zip(&outs).any(stays) {
                return Err(PlanError::Clash(format!(
                    "{}.{} is part of the key by which rows are found, and a step takes it away; \
                     give the table a `surrogate`, or leave the column, or have rows found by another unique one \
                     (ALTER TABLE … REPLICA IDENTITY USING INDEX …), which becomes the key then",
                    table.name, def.column.name
                )));
            }
        }
    }
    Ok(outs)
}

/// Gives the outputs what rows from before their columns read in them. Returns the source's columns where that cannot
/// be said, and why: the plan's first tables do not need it, only columns that are added later do.
fn say_defaults(
    context: &Context<'_>,
    table: &TableDef,
    columns: &[Work],
    outs: &mut [Out],
    types: &[ColumnType],
    ops: &[Op],
) -> Vec<(String, String)> {
    let mut unsaid = Vec::new();
    for (work, out) in columns.iter().zip(outs) {
        let source = work.origin.as_deref().and_then(|origin| table.column(origin)).map(|def| &def.column);
        let Some((source, default)) = source.and_then(|source| Some((source, source.default.as_deref()?))) else {
            continue;
        };
        if !work.retyped && !work.touched && !context.crosses() {
            out.column.default.clone_from(&source.default);
            continue;
        }
        let way = Way {
            from: context.source.dialect,
            to: context.options.dialect,
            register: work.register,
            types,
            ops,
            out: &out.column.type_,
        };
        let said = match &work.key {
            Some(_) => Err("it becomes a new key".to_owned()),
            None => way.literal(source, default),
        };
        match said {
            Ok(literal) => out.column.default = literal.map(Arc::from),
            Err(why) => unsaid.push((source.name.to_string(), why)),
        }
    }
    unsaid
}

/// The type of a column's values, whose meaning the source has told.
pub(super) fn spec_of(type_: &ColumnType) -> TypeSpec {
    let modifier = match TypeSpec::postgres(&type_.name) {
        Some(spec) if spec.logical == type_.logical => spec.modifier,
        _ => Modifier::None,
    };
    TypeSpec { name: type_.name.clone(), logical: type_.logical, oid: type_.native_id, modifier }
}

impl<'c, 'a> Steps<'c, 'a> {
    pub(super) fn new(context: &'c mut Context<'a>, table: &'a TableDef) -> Self {
        let (source, sink) = (context.source.dialect, context.options.dialect);
        let columns = table.carried().enumerate().map(|(register, def)| Work {
            name: def.column.name.to_string(),
            register,
            origin: Some(def.column.name.to_string()),
            touched: false,
            retyped: false,
            value: spec_of(&def.column.type_),
            target: types::carried(&def.column.type_, source, sink),
            nullable: def.column.nullable,
            key: None,
        });
        let columns = columns.collect();
        let mut types: Vec<ColumnType> = table.carried().map(|def| def.column.type_.clone()).collect();
        if context.write_kind(&table.name) == WriteKind::DualRecords {
            types.extend_from_within(..);
        }
        Self { columns, types, context, table, place: String::new(), ops: Vec::new(), overwritten: Vec::new() }
    }

    pub(super) fn write_kind(&self) -> WriteKind {
        self.context.write_kind(&self.table.name)
    }

    pub(super) fn index(&self, name: &str) -> Result<usize, PlanError> {
        self.columns.iter().position(|work| work.name == name).ok_or_else(|| self.unknown(name))
    }

    pub(super) fn unknown(&self, name: &str) -> PlanError {
        unknown_column(&self.place, &self.table.name, name, self.columns.iter().map(|work| work.name.as_str()))
    }

    pub(super) fn work(&self, name: &str) -> Result<&Work, PlanError> {
        self.columns.iter().find(|work| work.name == name).ok_or_else(|| self.unknown(name))
    }

    pub(super) fn invalid(&self, problem: impl Into<String>) -> PlanError {
        PlanError::invalid(self.place.clone(), problem)
    }

    pub(super) fn note(&mut self, column: &str, fidelity: Fidelity, text: impl Into<String>) {
        self.context.note(&self.table.name, Some(column), fidelity, text);
    }

    pub(super) fn parse_type(&self, name: &str) -> Result<TypeSpec, PlanError> {
        TypeSpec::parse(name, self.context.options.dialect)
            .ok_or_else(|| self.invalid(format!("\"{name}\" is not a type")))
    }

    /// A register and a column of that name, unless it is taken.
    pub(super) fn add(&mut self, name: &str, spec: TypeSpec, target: ColumnType) -> Result<usize, PlanError> {
        if self.columns.iter().any(|work| work.name == name) {
            return Err(PlanError::Clash(format!(
                "{} makes the column \"{name}\", which is there already",
                self.place
            )));
        }
        let register = self.types.len();
        self.types.push(spec.postgres_column());
        self.overwritten.push(register);
        self.columns.push(Work {
            name: name.to_owned(),
            register,
            origin: None,
            touched: true,
            retyped: true,
            value: spec,
            target,
            nullable: true,
            key: None,
        });
        Ok(register)
    }

    pub(super) fn add_typed(&mut self, name: &str, spec: TypeSpec) -> Result<usize, PlanError> {
        let target = spec.column(self.context.options.dialect);
        self.add(name, spec, target)
    }

    /// Marks a column whose values a step changes.
    pub(super) fn touch(&mut self, name: &str) -> Result<&mut Work, PlanError> {
        let index = self.index(name)?;
        if let Some(origin) = self.columns.get(index).and_then(|work| work.origin.clone())
            && let Some(domain) = self.context.domains.columns.get(&(self.table.name.clone(), origin.clone()))
        {
            return Err(PlanError::Clash(format!(
                "{} changes \"{name}\", which holds the key of {} and becomes a new key",
                self.place, domain.table
            )));
        }
        let place = self.place.clone();
        let work = self.columns.get_mut(index).ok_or_else(|| PlanError::invalid(place, "a column is lost"))?;
        work.touched = true;
        if !self.overwritten.contains(&work.register) {
            self.overwritten.push(work.register);
        }
        Ok(work)
    }

    pub(super) fn remove(&mut self, name: &str) -> Result<Work, PlanError> {
        let index = self.index(name)?;
        Ok(self.columns.remove(index))
    }

    /// A literal as a value of the column's type.
    pub(super) fn literal(&self, literal: &Literal, spec: &TypeSpec) -> Result<Value, PlanError> {
        let refuse = || self.invalid(format!("`{}` is not a value of type {}", literal.text(), spec.name));
        if spec.logical == Logical::Dynamic {
            let text = || Value::Text(literal.text().to_owned());
            return Ok(match (literal, affinity(&spec.name)) {
                (Literal::Bool(bool), _) => Value::Int((*bool).into()),
                (Literal::Text(_), Affinity::Text | Affinity::Blob) | (Literal::Number(_), Affinity::Text) => text(),
                (Literal::Text(number) | Literal::Number(number), _) => number
                    .parse()
                    .map(Value::Int)
                    .ok()
                    .or_else(|| cast::parse(number, Logical::Float64))
                    .unwrap_or_else(text),
            });
        }
        cast::cast(Value::Text(literal.text().to_owned()), spec).map_err(|_| refuse())
    }
}
