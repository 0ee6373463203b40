//! The steps of one table, undone one after the other, last one first.

use super::super::{
    Fidelity, PlanError, notes,
    table::{Draft, Work},
};
use crate::{
    jsonpath::Path,
    program::{KeyFrom, Op},
    step::Step,
    types::{TypeSpec, for_sqlite_declared},
};
use crossfade_event::{ColumnType, Logical, catalog::TableDef};
use std::collections::BTreeMap;

/// A column of the old shape, as far as it has been made back.
#[derive(Debug, Clone)]
pub(super) struct Now {
    pub(super) register: usize,
    /// The columns of the new side that it is made of: their registers.
    pub(super) from: Vec<usize>,
    /// What is made of them may be another value than the one that was there.
    pub(super) where_changed: bool,
    /// It holds a new key.
    pub(super) key: Option<KeyFrom>,
    /// What is done, in words.
    pub(super) said: Vec<String>,
}

/// The columns as they stand before the steps that are still to be undone.
pub(super) struct Undo<'u, 'a> {
    draft: &'u Draft<'a>,
    pub(super) now: BTreeMap<String, Now>,
    /// Columns of the old side that cannot be made back, and why.
    pub(super) kept: BTreeMap<String, String>,
    pub(super) types: Vec<ColumnType>,
    pub(super) ops: Vec<Op>,
    pub(super) overwritten: Vec<usize>,
}

impl<'u, 'a> Undo<'u, 'a> {
    /// Begins with the new side's own columns.
    pub(super) fn new(draft: &'u Draft<'a>, new: &TableDef) -> Result<Self, PlanError> {
        let types = new.carried().map(|def| def.column.type_.clone()).collect();
        let mut now = BTreeMap::new();
        // Behind the steps only keys come, and columns that are keys: those have no old column.
        let last = draft.stages.last().map(|(columns, _)| columns.as_slice()).unwrap_or_default();
        for work in last {
            let key = draft.columns.iter().find(|end| end.name == work.name).and_then(|end| end.key.clone());
            let Some(register) = new.carried().position(|def| *def.column.name == *work.name) else {
                return Err(PlanError::OneWay(format!(
                    "{} has no column \"{}\" any more, from which {} is filled",
                    new.name, work.name, draft.source.name
                )));
            };
            let from = vec![register];
            now.insert(work.name.clone(), Now { register, from, where_changed: false, key, said: Vec::new() });
        }
        Ok(Self { draft, now, kept: BTreeMap::new(), types, ops: Vec::new(), overwritten: Vec::new() })
    }

    fn before(&self, index: usize, name: &str) -> Option<&'u Work> {
        let (columns, _): &'u (Vec<Work>, usize) = self.draft.stages.get(index)?;
        columns.iter().find(|work| work.name == name)
    }

    /// The operation that the step did.
    fn operation(&self, index: usize) -> Option<&'u Op> {
        let (_, count): &'u (Vec<Work>, usize) = self.draft.stages.get(index)?;
        self.draft.program.ops.get(*count)
    }

    /// Leaves the column alone, or forgets it where the step made it.
    fn leave(&mut self, index: usize, name: &str, why: &str) {
        self.now.remove(name);
        if let Some(origin) = self.before(index, name).and_then(|work| work.origin.clone()) {
            self.kept.insert(origin, why.to_owned());
        }
    }

    fn inexact(&mut self, name: &str, said: Option<String>) {
        if let Some(now) = self.now.get_mut(name) {
            now.where_changed = true;
            now.said.extend(said);
        }
    }

    /// Undoes the step of that number.
    pub(super) fn step(&mut self, index: usize, step: &Step) {
        match step {
            Step::Rename(step) => {
                if let Some(now) = self.now.remove(&step.to) {
                    self.now.insert(step.rename.clone(), now);
                }
            }
            Step::Cast(step) => self.cast(index, &step.cast),
            Step::Constant(step) => self.leave(index, &step.to, "became a constant"),
            Step::Drop(step) => {
                for name in step.drop.names() {
                    self.leave(index, name, "was dropped");
                }
            }
            Step::Filter(_) => {}
            Step::NullIf(step) => self.inexact(&step.null_if, Some("NULL stays NULL".to_owned())),
            Step::MapValues(step) => self.map_values(index, &step.map_values),
            Step::Split(step) if step.keep => step.into.iter().for_each(|name| self.leave(index, name, "")),
            Step::Split(step) => self.merge(index, &step.into, &step.by, &step.split),
            Step::Merge(step) if step.keep => self.leave(index, &step.to, ""),
            Step::Merge(step) => self.split(index, &step.to, &step.with, &step.merge),
            Step::Extract(step) => self.leave(index, &step.to, "was taken out of another column"),
            Step::Lookup(step) => {
                for name in step.take.keys() {
                    match self.before(index, name) {
                        Some(_) => self.inexact(name, Some("was filled from another table".to_owned())),
                        None => self.leave(index, name, ""),
                    }
                }
            }
            Step::Mask(step) => self.leave(index, &step.mask, "was masked"),
            Step::CanonicalKey(step) => self.leave(index, &step.canonical_key, ""),
            Step::Pack(step) => self.unpack(index, step),
        }
    }

    /// The member goes; a column of the old side that went into it comes out of it again.
    fn unpack(&mut self, index: usize, step: &crate::step::Pack) {
        let Some(Op::Pack { name, .. }) = self.operation(index) else { return };
        let Some(document) = self.now.get_mut(&step.into) else { return };
        document.where_changed = true;
        document.said.push(format!("loses its member \"{name}\""));
        let (register, from) = (document.register, document.from.clone());
        let packed = self.before(index, &step.pack).filter(|_| !step.keep);
        if let Some(work) = packed.filter(|work| work.origin.is_some())
            && let Some(path) = Path::parse(&format!("$['{name}']"))
        {
            let to = self.types.len();
            self.types.push(work.value.postgres_column());
            self.overwritten.push(to);
            self.ops.push(Op::Extract { from: register, path, to, type_: work.value.clone(), keep_existing: false });
            let said = vec![format!("is taken out of {} again", step.into)];
            self.now.insert(step.pack.clone(), Now { register: to, from, where_changed: true, key: None, said });
        }
        self.change(register, Op::Unpack { from: register, name: name.clone() });
    }

    fn change(&mut self, register: usize, op: Op) {
        self.ops.push(op);
        if !self.overwritten.contains(&register) {
            self.overwritten.push(register);
        }
    }

    fn cast(&mut self, index: usize, name: &str) {
        let (Some(work), Some(Op::Cast { to, .. })) = (self.before(index, name), self.operation(index)) else { return };
        let from = work.value.clone();
        if from.logical == Logical::Opaque {
            return self.leave(index, name, "was cast from a type that only its own database can write");
        }
        let exact = notes::of_cast(&from, to).0 == Fidelity::Lossless;
        let Some(now) = self.now.get_mut(name) else { return };
        now.said.push(format!("is cast back from {} to {}", to.name, from.name));
        now.where_changed |= !exact;
        let register = now.register;
        // A SQLite column takes anything; what it is declared as is what its values are meant to be.
        let to = if from.logical == Logical::Dynamic { for_sqlite_declared(&from.name) } else { from };
        self.change(register, Op::Cast { register, to });
    }

    fn map_values(&mut self, index: usize, name: &str) {
        let Some(Op::MapValues { with, otherwise, type_, .. }) = self.operation(index) else { return };
        let is_one_to_one =
            with.iter().enumerate().all(|(at, (_, new))| with.iter().skip(at + 1).all(|(_, other)| other != new));
        if otherwise.is_some() || !is_one_to_one {
            return self.leave(index, name, "had several values replaced by one");
        }
        // Where the old values and the new ones are the same set, every other value stands for itself on both sides.
        let exact = with.iter().all(|(_, new)| with.iter().any(|(old, _)| old == new));
        let Some(now) = self.now.get_mut(name) else { return };
        now.said.push("has its listed values put back".to_owned());
        now.where_changed |= !exact;
        let register = now.register;
        let with = with.iter().map(|(old, new)| (new.clone(), old.clone())).collect();
        self.change(register, Op::MapValues { register, with, otherwise: None, type_: type_.clone() });
    }

    /// A new register for a column that was made into others.
    fn made_again(&mut self, index: usize, name: &str, from: Vec<usize>, said: String) -> Option<(usize, Option<Op>)> {
        let work = self.before(index, name)?;
        let text = TypeSpec::postgres("text")?;
        let register = self.types.len();
        self.types.push(text.postgres_column());
        self.overwritten.push(register);
        let value = work.value.clone();
        let cast = (value.logical != Logical::Text).then_some(Op::Cast { register, to: value });
        self.now.insert(name.to_owned(), Now { register, from, where_changed: true, key: None, said: vec![said] });
        Some((register, cast))
    }

    fn merge(&mut self, index: usize, parts: &[String], by: &str, name: &str) {
        let found: Option<Vec<Now>> = parts.iter().map(|part| self.now.remove(part)).collect();
        let Some(found) = found else {
            return self.leave(index, name, "was split, and not all of its parts are there");
        };
        let from = found.iter().flat_map(|now| now.from.iter().copied()).collect();
        let said = format!("is put together again from {}", parts.join(" and "));
        if let Some((to, cast)) = self.made_again(index, name, from, said) {
            let from = found.iter().map(|now| now.register).collect();
            self.ops.push(Op::Merge { from, with: by.to_owned(), to });
            self.ops.extend(cast);
        }
    }

    fn split(&mut self, index: usize, name: &str, by: &str, parts: &[String]) {
        let found = self.now.remove(name).filter(|_| !by.is_empty());
        let Some(found) = found else {
            for part in parts {
                self.leave(index, part, "was put together with others, with nothing between them");
            }
            return;
        };
        let mut into = Vec::with_capacity(parts.len());
        let mut casts = Vec::new();
        for part in parts {
            let said = format!("is cut out of {name}");
            if let Some((register, cast)) = self.made_again(index, part, found.from.clone(), said) {
                into.push(register);
                casts.extend(cast);
            }
        }
        self.ops.push(Op::Split { from: found.register, by: by.to_owned(), into });
        self.ops.extend(casts);
    }
}
