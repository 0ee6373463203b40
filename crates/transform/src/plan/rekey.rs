//! New keys of one table: its own, its references, surrogates; and the columns that stand beside the old ones.

use super::{
    Fidelity, PlanError,
    domains::Domain,
    names::find_table,
    table::{Steps, Work, spec_of},
};
use crate::{
    program::{Kept, KeyFrom, Time},
    step::Step,
    types::TypeSpec,
};
use crossfade_event::{ColumnType, Identity, catalog::RelationKind};
use std::{collections::BTreeMap, sync::Arc};

impl Steps<'_, '_> {
    fn key_from(&mut self, domain: &Domain, parts: Vec<usize>) -> Result<KeyFrom, PlanError> {
        let time = match &domain.time {
            None => Time::None,
            Some((time, type_)) => {
                if self
                    .context
                    .source
                    .table(&domain.table)
                    .is_none_or(|def| matches!(def.kind, RelationKind::Partitioned { .. }))
                {
                    return Err(PlanError::Unbuilt(format!("uuid-v7 for the partitioned table {}", domain.table)));
                }
                let key: Vec<String> = domain.key.iter().map(|(name, _)| name.clone()).collect();
                let (view, _) = self.context.view(&domain.table, key, vec![time.clone()]);
                let kept = Kept { view, key: domain.key.iter().map(|(_, t)| t.clone()).collect(), time: type_.clone() };
                let own = self.table.name == domain.table && self.is_own_key(domain, &parts);
                let register = self.table.carried().position(|def| *def.column.name == **time);
                match register.filter(|_| own) {
                    Some(register) if self.overwritten.contains(&register) => {
                        return Err(PlanError::Clash(format!(
                            "{} changes \"{time}\", which the new key takes its time from",
                            self.place
                        )));
                    }
                    Some(register) => Time::Own(register, kept),
                    None => Time::Referred(kept),
                }
            }
        };
        let types = domain.key.iter().map(|(_, type_)| type_.clone());
        Ok(KeyFrom {
            table: Arc::from(domain.table.to_string()),
            parts: parts.into_iter().zip(types).collect(),
            maker: domain.maker.clone(),
            adopted: self.context.options.adopted.of(&domain.table.to_string()),
            time,
        })
    }

    fn is_own_key(&self, domain: &Domain, parts: &[usize]) -> bool {
        domain
            .key
            .iter()
            .map(|(name, _)| self.table.carried().position(|def| *def.column.name == **name))
            .eq(parts.iter().map(|part| Some(*part)))
    }

    /// The type of a new key in the target.
    fn key_type(&self, domain: &Domain) -> Result<(TypeSpec, ColumnType), PlanError> {
        let spec = TypeSpec::postgres(if domain.maker.makes_uuid() { "uuid" } else { "text" })
            .ok_or_else(|| self.invalid("there is no type for the new key"))?;
        let target = spec.column(self.context.options.dialect);
        Ok((spec, target))
    }

    /// Columns that hold a key which becomes a new one. Made last, from the source's own values.
    pub(super) fn new_keys(&mut self) -> Result<(), PlanError> {
        for index in 0..self.columns.len() {
            let Some(work) = self.columns.get(index).cloned() else { continue };
            let Some(origin) = &work.origin else { continue };
            let Some(domain) = self.context.domains.columns.get(&(self.table.name.clone(), origin.clone())).cloned()
            else {
                continue;
            };
            let (spec, target) = self.key_type(&domain)?;
            let key = self.key_from(&domain, vec![work.register])?;
            let text =
                format!("becomes {}, made from the key of {}; the mapping table has both", target.name, domain.table);
            self.note(origin, Fidelity::LossyBack, text);
            if let Some(work) = self.columns.get_mut(index) {
                work.key = Some(key);
                work.value = spec;
                work.target = target;
                work.retyped = true;
                // SQLite lets a key that is not the row number be NULL.
                work.nullable &= !self.table.primary_key.iter().any(|key| key.columns.contains(origin));
            }
        }
        Ok(())
    }

    pub(super) fn own_surrogate(&mut self) -> Result<Option<String>, PlanError> {
        let Some((name, domain)) = self.context.domains.surrogates.get(&self.table.name).cloned() else {
            return Ok(None);
        };
        let columns: Vec<String> = domain.key.iter().map(|(name, _)| name.clone()).collect();
        self.add_key(&name, &domain, &columns)?;
        if let Some(work) = self.columns.last_mut() {
            work.nullable = false;
        }
        // It stands first, as keys do.
        self.columns.rotate_right(1);
        self.note(&name, Fidelity::LossyBack, format!("is the new key, made from {}", columns.join(" and ")));
        Ok(Some(name))
    }

    /// A new column with the key that the source's `columns` refer to.
    fn add_key(&mut self, name: &str, domain: &Domain, columns: &[String]) -> Result<(), PlanError> {
        let mut parts = Vec::with_capacity(columns.len());
        for column in columns {
            let register = self.table.carried().position(|def| &*def.column.name == column.as_str());
            let register = register.ok_or_else(|| self.unknown(column))?;
            if self.overwritten.contains(&register) {
                return Err(PlanError::Clash(format!(
                    "{} changes \"{column}\", from which the new key \"{name}\" is made",
                    self.place
                )));
            }
            parts.push(register);
        }
        let (spec, target) = self.key_type(domain)?;
        let key = self.key_from(domain, parts)?;
        self.add(name, spec, target)?;
        if let Some(work) = self.columns.last_mut() {
            work.key = Some(key);
        }
        Ok(())
    }

    /// A reference to a composite key that has a surrogate goes by a new column.
    pub(super) fn references_by_surrogate(&mut self) -> Result<Vec<(usize, String)>, PlanError> {
        let mut found = Vec::new();
        for (place, foreign) in self.table.foreign_keys.iter().enumerate() {
            let Some((surrogate, domain)) = self.context.domains.surrogates.get(&foreign.references).cloned() else {
                continue;
            };
            let ours: Option<Vec<String>> = domain
                .key
                .iter()
                .map(|(name, _)| {
                    let at = foreign.referenced_columns.iter().position(|referenced| referenced == name)?;
                    foreign.columns.get(at).cloned()
                })
                .collect();
            let Some(ours) = ours.filter(|ours| ours.len() == foreign.columns.len()) else { continue };
            let name = format!("{}_{surrogate}", foreign.references.name);
            self.add_key(&name, &domain, &ours)?;
            let may_be_null = |name: &String| self.table.column(name).is_none_or(|def| def.column.nullable);
            let nullable = ours.iter().any(may_be_null);
            if let Some(work) = self.columns.last_mut() {
                work.nullable = nullable;
            }
            self.note(&name, Fidelity::LossyBack, format!("refers to {} by its new key", foreign.references));
            found.push((place, name));
        }
        Ok(found)
    }

    /// Beside the old columns only the key and the new ones are written, each under its own name. `false` where nothing
    /// is: the table is only looked up by others.
    pub(super) fn shadow(&mut self, names: &BTreeMap<String, String>) -> Result<bool, PlanError> {
        let nothing = self
            .columns
            .iter()
            .all(|work| !work.touched && work.key.is_none() && work.origin.as_deref() == Some(&*work.name));
        if nothing && names.is_empty() && self.is_looked_up() {
            self.context.note(
                &self.table.name,
                None,
                Fidelity::Advice,
                "is only looked up by other tables; nothing of it is written",
            );
            return Ok(false);
        }
        if self.table.identity != Identity::Key {
            return Err(self.invalid("shadow columns need a key by which the row is found"));
        }
        for name in names.keys() {
            self.work(name)?;
        }
        let mut columns = Vec::new();
        for (register, def) in self.table.carried().enumerate().filter(|(_, def)| def.column.key.is_some()) {
            if self.overwritten.contains(&register) {
                return Err(self.invalid(format!(
                    "\"{}\" is the key by which the row is found, and a step changes it",
                    def.column.name
                )));
            }
            columns.push(Work {
                name: def.column.name.to_string(),
                register,
                origin: Some(def.column.name.to_string()),
                touched: false,
                retyped: false,
                value: spec_of(&def.column.type_),
                target: def.column.type_.clone(),
                nullable: def.column.nullable,
                key: None,
            });
        }
        for work in std::mem::take(&mut self.columns) {
            let is_new = work.origin.is_none();
            let changed = work.touched || work.key.is_some();
            let renamed = work.origin.as_ref().is_some_and(|origin| *origin != work.name);
            match names.get(&work.name) {
                None if is_new => columns.push(Work { nullable: true, ..work }),
                None if renamed => {
                    columns.push(Work { origin: None, nullable: true, touched: true, retyped: true, ..work });
                }
                None if !changed => {}
                None => {
                    return Err(self.invalid(format!(
                        "\"{}\" changes; name the column that stands beside it: shadow = {{ {} = \"…\" }}",
                        work.name, work.name
                    )));
                }
                Some(shadow) if self.table.column(shadow).is_some() => {
                    return Err(PlanError::Clash(format!(
                        "{} names the shadow \"{shadow}\", which is a column of the table already",
                        self.place
                    )));
                }
                Some(shadow) => columns.push(Work {
                    name: shadow.clone(),
                    nullable: true,
                    origin: None,
                    touched: true,
                    retyped: true,
                    ..work
                }),
            }
        }
        if columns.iter().all(|work| work.origin.is_some()) {
            return Err(self.invalid("nothing changes, so there is no shadow column to write"));
        }
        self.columns = columns;
        Ok(true)
    }

    /// Whether a rule of another table looks rows of this one up.
    fn is_looked_up(&self) -> bool {
        let steps = self.context.rules.table.iter().flat_map(|rule| &rule.steps);
        let mut looked_up = steps.filter_map(|step| match step {
            Step::Lookup(lookup) => find_table(self.context.source, &lookup.lookup),
            _ => None,
        });
        looked_up.any(|table| table.name == self.table.name)
    }
}
