//! The switch within one table: which new column takes which old one's place, and how the old one is kept exact after it.
//! What cannot be kept exact is refused by name, before anything is switched.

use super::{Context, Drafted, PlanError, PlanOptions, context, drafted, table::Draft};
use crate::{
    rules::{Rules, TableRule},
    step::Step,
};
use crossfade_event::{
    Logical, TableName,
    catalog::{Catalog, RelationKind},
    swap::{Added, Kept, Refers, SwapPair, SwapTable},
};
use serde::Serialize;

/// Every table whose new columns stand beside its old ones, or why they cannot change places.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Swap {
    /// The tables, in the catalog's order.
    pub tables: Vec<SwapTable>,
    /// What could not be kept exact.
    pub refusals: Vec<SwapRefusal>,
}

/// Something that could not be kept exact after the switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SwapRefusal {
    /// The table.
    pub table: TableName,
    /// The column, or the whole table.
    pub column: Option<String>,
    /// What stands against it.
    pub why: String,
}

/// Works out what changes places.
///
/// # Errors
/// As [`super::plan()`].
pub fn swap(source: &Catalog, rules: &Rules, options: &PlanOptions) -> Result<Swap, PlanError> {
    let mut context = context(source, rules, options)?;
    let Drafted { drafts, .. } = drafted(&mut context)?;
    let mut swap = Swap { tables: Vec::new(), refusals: Vec::new() };
    for draft in &drafts {
        if draft.program.columns_only && draft.program.written {
            let refusals = &mut swap.refusals;
            let table = Places { context: &context, draft, drafts: &drafts, refusals }.table();
            swap.tables.push(table);
        } else if draft.program.written {
            swap.refusals.push(SwapRefusal {
                table: draft.source.name.clone(),
                column: None,
                why: "is written as a table of its own, and others as columns beside the old ones: one switch moves one kind".to_owned(),
            });
        }
    }
    Ok(swap)
}

struct Places<'p, 'a> {
    context: &'p Context<'a>,
    draft: &'p Draft<'a>,
    drafts: &'p [Draft<'a>],
    refusals: &'p mut Vec<SwapRefusal>,
}

impl Places<'_, '_> {
    fn refuse(&mut self, column: Option<&str>, why: impl Into<String>) {
        let (table, column) = (self.draft.source.name.clone(), column.map(str::to_owned));
        self.refusals.push(SwapRefusal { table, column, why: why.into() });
    }

    fn rule(&self) -> Option<&TableRule> {
        self.context.rule(&self.draft.source.name)
    }

    fn table(mut self) -> SwapTable {
        let source = self.draft.source;
        if source.kind != RelationKind::Table {
            self.refuse(None, "is partitioned; the columns of a partition tree cannot change places yet");
        }
        if self.rule().is_some_and(|rule| rule.steps.iter().any(|step| matches!(step, Step::Filter(_)))) {
            self.refuse(None, "has a filter: the rows that it leaves out would have nothing in their new columns");
        }
        let pairs = self.pairs();
        let added = self.added(&pairs);
        let dropped = self.dropped();
        let key = self.key(&pairs, &dropped);
        SwapTable { table: source.name.clone(), pairs, added, dropped, key }
    }

    /// The old columns that a step took away. They stay until the clean-up, under other names: so rows that are born after the
    /// switch must get something in them.
    fn dropped(&mut self) -> Vec<String> {
        let Some((before, _)) = self.draft.stages.last() else { return Vec::new() };
        let source = self.draft.source;
        let is_gone = |name: &str| before.iter().all(|work| work.origin.as_deref() != Some(name));
        let gone = source.carried().filter(|def| is_gone(&def.column.name)).collect::<Vec<_>>();
        for def in &gone {
            let fills =
                def.column.nullable || def.default.is_some() || def.identity.is_some() || def.sequence.is_some();
            if !fills {
                let why = "is dropped, takes no NULL and has no default: a row that is born after the switch would have nothing in it";
                self.refuse(Some(&def.column.name), why);
            }
        }
        gone.iter().map(|def| def.column.name.to_string()).collect()
    }

    /// The columns as they stood before the shadows took their values.
    fn pairs(&mut self) -> Vec<SwapPair> {
        let Some((before, _)) = self.draft.stages.last() else { return Vec::new() };
        let shadows = self.rule().map(|rule| rule.shadow.clone()).unwrap_or_default();
        let mut pairs = Vec::new();
        for work in before {
            let Some(old) = &work.origin else { continue };
            let shadow = shadows.get(&work.name).unwrap_or(&work.name);
            let is_ours = |column: &&super::table::Work| column.name == *shadow && column.origin.is_none();
            let Some(new) = self.draft.columns.iter().find(is_ours) else { continue };
            let is_text = new.value.logical == Logical::Text;
            let Some(kept) = self.kept(old, &work.name, new.key.is_some() && !is_text) else { continue };
            let def = self.draft.source.column(old);
            if def.is_some_and(|def| !def.column.nullable) && work.nullable {
                self.refuse(Some(old), "takes no NULL, and the column that takes its place does");
            }
            if def.is_some_and(|def| def.generated.is_some()) {
                self.refuse(Some(old), "is computed by the database");
            }
            pairs.push(SwapPair {
                old: old.clone(),
                shadow: shadow.clone(),
                name: work.name.clone(),
                not_null: !work.nullable,
                kept,
            });
        }
        pairs
    }

    /// How the old column is filled after the switch; `None` where it cannot be, which has been said.
    fn kept(&mut self, old: &str, name: &str, uuid: bool) -> Option<Kept> {
        let table = &self.draft.source.name;
        let Some(domain) = self.context.domains.columns.get(&(table.clone(), old.to_owned())).cloned() else {
            return match self.rule().and_then(|rule| remade(rule, old)) {
                None => Some(Kept::Copied),
                Some(verb) => {
                    self.refuse(
                        Some(old),
                        format!(
                            "has its new values from `{verb}`: what is written to \"{name}\" after the switch has no way back"
                        ),
                    );
                    None
                }
            };
        };
        let [(key, _)] = domain.key.as_slice() else {
            self.refuse(Some(old), format!("refers to the composite key of {}", domain.table));
            return None;
        };
        if domain.table == *table && key == old {
            let def = self.draft.source.column(old)?;
            if def.default.is_none() && def.identity.is_none() && def.sequence.is_none() {
                self.refuse(
                    Some(old),
                    "has neither a default nor a sequence: a row that is born after the switch would have no old key",
                );
            }
            return Some(Kept::Drawn { uuid });
        }
        let is_moved = |draft: &&Draft<'_>| draft.source.name == domain.table && draft.program.columns_only;
        if self.drafts.iter().find(is_moved).is_none() {
            self.refuse(Some(old), format!("refers to {}, whose key does not change its place with it", domain.table));
            return None;
        }
        if !self.draft.source.foreign_keys.iter().any(|foreign| foreign.columns.iter().any(|column| column == old)) {
            self.refuse(
                Some(old),
                format!(
                    "refers to {} without a foreign key: a reference to a row that is not there has no old key",
                    domain.table
                ),
            );
        }
        Some(Kept::Found { table: domain.table.clone(), key: key.clone() })
    }

    fn added(&self, pairs: &[SwapPair]) -> Vec<Added> {
        let is_new =
            |work: &&super::table::Work| work.origin.is_none() && !pairs.iter().any(|pair| pair.shadow == work.name);
        let surrogate = self.draft.surrogate.as_deref();
        let columns = self.draft.columns.iter().filter(is_new);
        columns
            .map(|work| {
                let is_key = surrogate == Some(work.name.as_str());
                let uuid = is_key && work.value.logical != Logical::Text;
                let refers = self.refers(&work.name);
                let not_null = is_key || refers.as_ref().is_some_and(|(_, not_null)| *not_null);
                Added { name: work.name.clone(), not_null, uuid, refers: refers.map(|(refers, _)| refers) }
            })
            .collect()
    }

    /// What a new column refers to, and whether each row has to.
    fn refers(&self, column: &str) -> Option<(Refers, bool)> {
        let (place, _) = self.draft.by_surrogate.iter().find(|(_, name)| name == column)?;
        let foreign = self.draft.source.foreign_keys.get(*place)?;
        let parent = self.drafts.iter().find(|other| other.source.name == foreign.references)?;
        let key = parent.surrogate.clone().filter(|_| parent.program.columns_only)?;
        let is_set = |name: &String| self.draft.source.column(name).is_some_and(|def| !def.column.nullable);
        let refers = Refers {
            like: foreign.name.clone(),
            table: foreign.references.clone(),
            key,
            suffix: foreign.suffix.clone(),
        };
        Some((refers, foreign.columns.iter().all(is_set)))
    }

    fn key(&mut self, pairs: &[SwapPair], dropped: &[String]) -> Vec<String> {
        if let Some(surrogate) = &self.draft.surrogate {
            return vec![surrogate.clone()];
        }
        let Some(key) = &self.draft.source.primary_key else { return Vec::new() };
        if key.columns.iter().any(|column| dropped.contains(column)) {
            return self.taken(pairs);
        }
        let new_name = |column: &String| pairs.iter().find(|pair| pair.old == *column).map(|pair| pair.name.clone());
        if key.columns.iter().all(|column| new_name(column).is_none()) {
            return Vec::new();
        }
        key.columns.iter().map(|column| new_name(column).unwrap_or_else(|| column.clone())).collect()
    }
}

impl Places<'_, '_> {
    /// The key is dropped: the new column of another unique one takes its place.
    fn taken(&mut self, pairs: &[SwapPair]) -> Vec<String> {
        match &self.draft.taken_key {
            Some(taken) => {
                let pair = pairs.iter().find(|pair| pair.shadow == *taken);
                pair.map(|pair| vec![pair.name.clone()]).unwrap_or_default()
            }
            None => {
                let why = "has its primary key dropped, and not exactly one other column that is unique by itself, takes no NULL and becomes a new key";
                self.refuse(None, why);
                Vec::new()
            }
        }
    }
}

/// The step that makes other values of an old column, so that a new one is no value of the old.
fn remade(rule: &TableRule, old: &str) -> Option<&'static str> {
    let mut name = old;
    for step in &rule.steps {
        match step {
            Step::Rename(rename) if rename.rename == name => name = &rename.to,
            Step::MapValues(map) if map.map_values == name => return Some("map_values"),
            Step::Mask(mask) if mask.mask == name => return Some("mask"),
            Step::Constant(constant) if constant.to == name => return Some("constant"),
            _ => {}
        }
    }
    None
}
