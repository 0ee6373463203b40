//! What each step of a rule does to the columns as they stand by then.

use super::{
    Fidelity, PlanError, known_table, notes,
    table::{Steps, Work, spec_of},
    unknown_column,
};
use crate::{
    jsonpath::Path,
    predicate,
    program::{Lookup, Op},
    step::{self, Literal, Step},
    types,
};
use crossfade_event::{ColumnType, Identity, Logical, catalog::Dialect};
use std::collections::BTreeSet;

impl<'a> Steps<'_, 'a> {
    pub(super) fn step(&mut self, step: &Step) -> Result<(), PlanError> {
        match step {
            Step::Rename(step) => self.rename(step),
            Step::Extract(step) => self.extract(step),
            Step::Cast(step) => self.cast(step),
            Step::Constant(step) => self.constant(step),
            Step::Drop(step) => step.drop.names().iter().try_for_each(|name| {
                self.remove(name)?;
                self.note(name, Fidelity::OneWay, "is dropped");
                Ok(())
            }),
            Step::Filter(step) => self.filter(step),
            Step::NullIf(step) => self.null_if(step),
            Step::MapValues(step) => self.map_values(step),
            Step::Split(step) => self.split(step),
            Step::Merge(step) => self.merge(step),
            Step::Lookup(step) => self.lookup(step),
            Step::Mask(step) => self.mask(step),
            Step::CanonicalKey(step) => self.canonical_key(step),
            Step::Pack(step) => self.pack(step),
        }
    }

    fn rename(&mut self, step: &step::Rename) -> Result<(), PlanError> {
        let index = self.index(&step.rename)?;
        if self.columns.iter().any(|work| work.name == step.to) {
            return Err(PlanError::Clash(format!(
                "{} renames \"{}\" to \"{}\", which is there already",
                self.place, step.rename, step.to
            )));
        }
        if let Some(work) = self.columns.get_mut(index) {
            work.name.clone_from(&step.to);
        }
        self.note(&step.rename, Fidelity::Lossless, format!("is called {}", step.to));
        Ok(())
    }

    fn cast(&mut self, step: &step::Cast) -> Result<(), PlanError> {
        let to = self.parse_type(&step.to)?;
        let target = to.column(self.context.options.dialect);
        let work = self.touch(&step.cast)?;
        let from = std::mem::replace(&mut work.value, to.clone());
        work.target = target;
        work.retyped = true;
        let register = work.register;
        self.ops.push(Op::Cast { register, to: to.clone() });
        let (fidelity, text) = notes::of_cast(&from, &to);
        self.note(&step.cast, fidelity, text);
        Ok(())
    }

    fn constant(&mut self, step: &step::Constant) -> Result<(), PlanError> {
        let there = self.columns.iter().any(|work| work.name == step.to);
        let spec = match (&step.type_, there) {
            (Some(_), true) => {
                return Err(PlanError::Clash(format!(
                    "{} gives \"{}\" a type, which it has already; cast it",
                    self.place, step.to
                )));
            }
            (Some(name), false) => self.parse_type(name)?,
            (None, true) => self.work(&step.to)?.value.clone(),
            (None, false) => {
                return Err(self.invalid(format!("\"{}\" is a new column: say its `type`", step.to)));
            }
        };
        let value = self.literal(&step.constant, &spec)?;
        let to = if there { self.touch(&step.to)?.register } else { self.add_typed(&step.to, spec)? };
        self.ops.push(Op::Constant { to, value });
        self.note(&step.to, Fidelity::OneWay, "is the same in every row");
        Ok(())
    }

    fn filter(&mut self, step: &step::Filter) -> Result<(), PlanError> {
        let resolve = |name: &str| -> Result<(usize, ColumnType), String> {
            // SQLite's names do not tell capitals from small letters.
            let folds = self.context.source.dialect == Dialect::Sqlite;
            let alike = |work: &&Work| work.name == name || (folds && work.name.eq_ignore_ascii_case(name));
            let work = self.columns.iter().find(alike).ok_or_else(|| self.unknown(name).to_string())?;
            let type_ = if work.touched { work.value.postgres_column() } else { self.column_type(work) };
            Ok((work.register, type_))
        };
        let condition = predicate::compile(&step.filter, &resolve)
            .map_err(|problem| self.invalid(format!("in the filter \"{}\": {problem}", step.filter)))?;
        let mut looked_at = Vec::new();
        predicate::registers(&condition, &mut looked_at);
        let key: Vec<usize> = self
            .table
            .carried()
            .enumerate()
            .filter(|(_, def)| def.column.key.is_some())
            .map(|(register, _)| register)
            .collect();
        self.ops.push(Op::Filter(condition));
        self.context.note(&self.table.name, None, Fidelity::OneWay, "rows that the filter leaves out do not arrive");
        if self.table.identity != Identity::FullRow && looked_at.iter().any(|register| !key.contains(register)) {
            self.context.note(
                &self.table.name,
                None,
                Fidelity::Advice,
                "the filter looks at columns outside the key; with REPLICA IDENTITY FULL on the source's table rows \
                 that enter it arrive whole even where large values did not change (they are quarantined otherwise)",
            );
        }
        Ok(())
    }

    fn column_type(&self, work: &Work) -> ColumnType {
        self.types.get(work.register).cloned().unwrap_or_else(|| work.target.clone())
    }

    fn null_if(&mut self, step: &step::NullIf) -> Result<(), PlanError> {
        let spec = self.work(&step.null_if)?.value.clone();
        let any_of = step.any_of.iter().map(|literal| self.literal(literal, &spec)).collect::<Result<_, _>>()?;
        let work = self.touch(&step.null_if)?;
        work.nullable = true;
        let register = work.register;
        self.ops.push(Op::NullIf { register, any_of, type_: spec });
        self.note(&step.null_if, Fidelity::OneWay, "becomes NULL where it holds one of the listed values");
        Ok(())
    }

    fn map_values(&mut self, step: &step::MapValues) -> Result<(), PlanError> {
        let spec = self.work(&step.map_values)?.value.clone();
        let mut with = Vec::with_capacity(step.with.len());
        for (old, new) in &step.with {
            with.push((self.literal(&Literal::Text(old.clone()), &spec)?, self.literal(new, &spec)?));
        }
        let otherwise = step.otherwise.as_ref().map(|literal| self.literal(literal, &spec)).transpose()?;
        let register = self.touch(&step.map_values)?.register;
        let distinct: BTreeSet<&str> = step.with.values().map(Literal::text).collect();
        let fidelity = if otherwise.is_some() || distinct.len() < step.with.len() {
            Fidelity::OneWay
        } else {
            Fidelity::LossyBack
        };
        self.ops.push(Op::MapValues { register, with, otherwise, type_: spec });
        self.note(&step.map_values, fidelity, "has its listed values replaced");
        Ok(())
    }

    fn extract(&mut self, step: &step::Extract) -> Result<(), PlanError> {
        let from = self.work(&step.extract)?;
        if !matches!(from.value.logical, Logical::Json | Logical::Jsonb | Logical::Text | Logical::Dynamic) {
            let problem = format!("\"{}\" is {}, which is no JSON", step.extract, from.value.name);
            return Err(self.invalid(problem));
        }
        let from = from.register;
        let path = Path::parse(&step.path)
            .ok_or_else(|| self.invalid(format!("\"{}\" is no path; write $.a.b[0] or $['a b']", step.path)))?;
        let there = self.columns.iter().any(|work| work.name == step.to);
        let (to, type_) = match (&step.type_, there) {
            (Some(_), true) => {
                return Err(PlanError::Clash(format!(
                    "{} gives \"{}\" a type, which it has already",
                    self.place, step.to
                )));
            }
            (None, true) => {
                let work = self.touch(&step.to)?;
                (work.register, work.value.clone())
            }
            (type_, false) => {
                let spec = self.parse_type(type_.as_deref().unwrap_or("text"))?;
                (self.add_typed(&step.to, spec.clone())?, spec)
            }
        };
        self.ops.push(Op::Extract { from, path, to, type_, keep_existing: step.keep_existing });
        self.note(&step.to, Fidelity::LossyBack, format!("is taken from {} of {}", step.path, step.extract));
        Ok(())
    }

    fn split(&mut self, step: &step::Split) -> Result<(), PlanError> {
        if step.by.is_empty() || step.into.len() < 2 {
            return Err(self.invalid("a split needs a separator and at least two columns"));
        }
        let from = if step.keep { self.work(&step.split)?.clone() } else { self.remove(&step.split)? };
        let text = self.parse_type("text")?;
        let into = step.into.iter().map(|name| self.add_typed(name, text.clone())).collect::<Result<_, _>>()?;
        self.ops.push(Op::Split { from: from.register, by: step.by.clone(), into });
        self.note(&step.split, Fidelity::LossyBack, "is split; the last column takes the rest");
        Ok(())
    }

    fn merge(&mut self, step: &step::Merge) -> Result<(), PlanError> {
        let mut from = Vec::with_capacity(step.merge.len());
        for name in &step.merge {
            from.push(self.work(name)?.register);
        }
        if !step.keep {
            for name in &step.merge {
                self.remove(name)?;
            }
        }
        let text = self.parse_type("text")?;
        let to = self.add_typed(&step.to, text)?;
        self.ops.push(Op::Merge { from, with: step.with.clone(), to });
        self.note(&step.to, Fidelity::LossyBack, format!("is {} put together", step.merge.join(" and ")));
        Ok(())
    }

    fn mask(&mut self, step: &step::MaskColumn) -> Result<(), PlanError> {
        if step.with == step::Mask::Hmac && self.context.secret.len() < 16 {
            return Err(self.invalid("a mask with \"hmac\" needs the migration's secret, of at least 16 bytes"));
        }
        let text = self.parse_type("text")?;
        let target = text.column(self.context.options.dialect);
        let secret = self.context.secret.clone();
        let work = self.touch(&step.mask)?;
        if step.with == step::Mask::Null {
            work.nullable = true;
        } else {
            work.value = text;
            work.target = target;
            work.retyped = true;
        }
        let register = work.register;
        self.ops.push(Op::Mask { register, with: step.with, secret });
        self.note(&step.mask, Fidelity::OneWay, "is masked");
        Ok(())
    }

    fn canonical_key(&mut self, step: &step::CanonicalKey) -> Result<(), PlanError> {
        if step.of.is_empty() {
            return Err(self.invalid("a canonical key needs at least one column in `of`"));
        }
        let mut of = Vec::with_capacity(step.of.len());
        for part in &step.of {
            let (column, normalise) = part.read(&step.normalise);
            of.push((self.work(column)?.register, normalise.to_vec()));
        }
        let text = self.parse_type("text")?;
        let to = self.add_typed(&step.canonical_key, text)?;
        self.ops.push(Op::CanonicalKey { to, of, version: step.version });
        self.note(&step.canonical_key, Fidelity::OneWay, "is a hash");
        Ok(())
    }

    fn pack(&mut self, step: &step::Pack) -> Result<(), PlanError> {
        let name = match &step.path {
            None => step.pack.clone(),
            Some(path) => match Path::parse(path).as_ref().and_then(Path::member) {
                Some(name) => name.to_owned(),
                None => {
                    return Err(self.invalid(format!("\"{path}\" is no member of the document itself; write $.name")));
                }
            },
        };
        if self.context.crosses() || self.context.options.dialect != Dialect::Postgres {
            return Err(PlanError::Unbuilt(format!("pack between two kinds of databases, in {}", self.place)));
        }
        if step.pack == step.into {
            return Err(self.invalid(format!("\"{}\" cannot be packed into itself", step.pack)));
        }
        let kind = self.work(&step.pack)?.value.clone();
        let packs = matches!(
            kind.logical,
            Logical::Text
                | Logical::Uuid
                | Logical::Bool
                | Logical::Int16
                | Logical::Int32
                | Logical::Int64
                | Logical::Numeric
                | Logical::Jsonb
        );
        if !packs {
            let problem = format!(
                "\"{}\" is {}, which has no one form in a document; cast it to text first",
                step.pack, kind.name
            );
            return Err(self.invalid(problem));
        }
        let into = self.work(&step.into)?;
        if into.value.logical != Logical::Jsonb {
            let problem = format!("\"{}\" is {}; a column is packed into jsonb", step.into, into.value.name);
            return Err(self.invalid(problem));
        }
        let into = self.touch(&step.into)?.register;
        let from = if step.keep { self.work(&step.pack)?.register } else { self.remove(&step.pack)?.register };
        let last = self.ops.iter().rev().find(|op| op.writes(from));
        let constant = matches!(last, Some(Op::Constant { .. }));
        self.ops.push(Op::Pack { from, name: name.clone(), into, constant });
        self.note(&step.into, Fidelity::LossyBack, format!("gets {} as its member \"{name}\"", step.pack));
        Ok(())
    }

    fn lookup(&mut self, step: &step::Lookup) -> Result<(), PlanError> {
        if step.refresh {
            return Err(PlanError::Unbuilt(format!("refresh = true in {}", self.place)));
        }
        if self.table.identity == Identity::FullRow {
            return Err(self.invalid(
                "the table has no key, so an old row could not be found again once its looked-up values changed; \
                 give it a key",
            ));
        }
        let source: &'a crossfade_event::catalog::Catalog = self.context.source;
        let other = known_table(source, &step.lookup, &self.place)?;
        let theirs = |name: &str| -> Result<ColumnType, PlanError> {
            let def = other.column(name).ok_or_else(|| {
                unknown_column(&self.place, &other.name, name, other.columns.iter().map(|def| &*def.column.name))
            })?;
            Ok(def.column.type_.clone())
        };
        let wanted: BTreeSet<&str> = step.on.keys().map(String::as_str).collect();
        let keys = other.primary_key.iter().chain(&other.uniques);
        let unique =
            keys.into_iter().find(|key| key.columns.iter().map(String::as_str).collect::<BTreeSet<_>>() == wanted);
        let Some(key) = unique.map(|key| key.columns.clone()) else {
            return Err(self.invalid(format!(
                "the columns in `on` are no primary key and no unique constraint of {}, so a lookup could find two rows",
                other.name
            )));
        };
        let mut on = Vec::with_capacity(key.len());
        for name in &key {
            let ours = step.on.get(name).map(String::as_str).unwrap_or_default();
            on.push((self.work(ours)?.register, theirs(name)?));
        }
        let keep: Vec<String> = step.take.values().cloned().collect::<BTreeSet<_>>().into_iter().collect();
        let mut taken = Vec::with_capacity(step.take.len());
        for (ours, from) in &step.take {
            let place = keep.iter().position(|kept| kept == from).unwrap_or_default();
            taken.push((ours.clone(), place, theirs(from)?));
        }
        let (view, misses) = self.context.view(&other.name, key, keep);
        let (source, sink) = (self.context.source.dialect, self.context.options.dialect);
        let mut take = Vec::with_capacity(taken.len());
        for (ours, place, type_) in taken {
            let (register, spec) = if self.columns.iter().any(|work| work.name == ours) {
                let work = self.touch(&ours)?;
                (work.register, work.value.clone())
            } else {
                let spec = spec_of(&type_);
                (self.add(&ours, spec.clone(), types::carried(&type_, source, sink))?, spec)
            };
            take.push((register, place, type_, spec));
            let what =
                format!("is looked up in {}, as that is when the row changes; a miss leaves what is there", other.name);
            self.note(&ours, Fidelity::OneWay, what);
        }
        self.ops.push(Op::Lookup(Lookup { view, on, take, keep_existing: step.keep_existing, misses }));
        Ok(())
    }
}
