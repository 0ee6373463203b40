//! Names: from the rules to the source's tables, from the source's tables to the target's.

use super::{PlanError, PlanOptions, PlannedTable, def};
use crate::{
    pattern,
    rules::{Rules, TableRule, WriteKind},
    suggest::suggestion,
};
use crossfade_event::{
    TableId, TableName,
    catalog::{Catalog, Dialect, TableDef},
};
use std::{collections::BTreeMap, sync::Arc};

/// A table by its full name, or by its bare one where only one schema has it.
pub(crate) fn find_table<'a>(catalog: &'a Catalog, name: &str) -> Option<&'a TableDef> {
    let full = catalog.tables.iter().find(|table| table.name.to_string() == name);
    full.or_else(|| {
        let mut bare = catalog.tables.iter().filter(|table| &*table.name.name == name);
        bare.next().filter(|_| bare.next().is_none())
    })
}

pub(crate) fn known_table<'a>(catalog: &'a Catalog, name: &str, place: &str) -> Result<&'a TableDef, PlanError> {
    find_table(catalog, name).ok_or_else(|| {
        let names: Vec<String> = catalog
            .tables
            .iter()
            .map(|table| if name.contains('.') { table.name.to_string() } else { table.name.name.to_string() })
            .collect();
        PlanError::UnknownTable {
            place: place.to_owned(),
            name: name.to_owned(),
            near: suggestion(name, names.iter().map(String::as_str)),
        }
    })
}

pub(crate) fn unknown_column<'a>(
    place: &str,
    table: &TableName,
    column: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> PlanError {
    PlanError::UnknownColumn {
        place: place.to_owned(),
        table: table.clone(),
        column: column.to_owned(),
        near: suggestion(column, known),
    }
}

/// A table's number in the target: made from its name, so that it stays when other tables come or go.
pub(crate) fn table_id(name: &TableName) -> TableId {
    let hash = crossfade_event::SourceId::of(&format!("target table {name}")).0;
    TableId((hash >> 33) as u32)
}

pub(super) fn clashing_numbers(tables: &[PlannedTable]) -> Result<(), PlanError> {
    let mut seen: BTreeMap<TableId, &TableName> = BTreeMap::new();
    for table in tables {
        if let Some(other) = seen.insert(table.schema.id, &table.schema.name) {
            return Err(PlanError::Clash(format!(
                "{other} and {} share a number in the target; rename one of them with `to`",
                table.schema.name
            )));
        }
    }
    Ok(())
}

pub(super) fn check_rules(source: &Catalog, rules: &Rules) -> Result<(), PlanError> {
    let mut seen: BTreeMap<&TableName, &str> = BTreeMap::new();
    for rule in &rules.table {
        let place = format!("[[table]] from = \"{}\"", rule.from);
        let table = known_table(source, &rule.from, &place)?;
        if rule.refresh {
            return Err(PlanError::Unbuilt(format!("refresh = true in {place}")));
        }
        if let Some(other) = seen.insert(&table.name, &rule.from) {
            return Err(PlanError::Clash(format!(
                "[[table]] from = \"{other}\" and from = \"{}\" are both about {}; make them one",
                rule.from, table.name
            )));
        }
    }
    match &rules.rekey {
        Some(rekey) if !source.tables.iter().any(|table| pattern::takes(&rekey.tables, &table.name)) => {
            let names: Vec<String> = source.tables.iter().map(|table| table.name.to_string()).collect();
            let wanted = rekey.tables.join(", ");
            Err(PlanError::UnknownTable {
                place: "[rekey] tables".to_owned(),
                near: suggestion(&wanted, names.iter().map(String::as_str)),
                name: wanted,
            })
        }
        _ => Ok(()),
    }
}

pub(super) fn target_names(
    source: &Catalog,
    rules: &Rules,
    options: &PlanOptions,
) -> Result<BTreeMap<TableName, TableName>, PlanError> {
    let mut names = BTreeMap::new();
    let mut taken: BTreeMap<TableName, TableName> = BTreeMap::new();
    for table in source.tables.iter().filter(|table| def::is_planned(table, options.dialect)) {
        let rule = rules.table.iter().find(|rule| find_table(source, &rule.from).is_some_and(|d| d.name == table.name));
        let kind = rule.and_then(|rule| rule.write).unwrap_or(options.write);
        let target = match kind {
            WriteKind::ShadowTables => target_name(source, &table.name, rule, options),
            WriteKind::ShadowColumns if options.dialect == Dialect::Sqlite => {
                return Err(PlanError::Unbuilt(format!("write = \"shadow-columns\" for {} in SQLite", table.name)));
            }
            WriteKind::ShadowColumns => {
                if let Some(to) = rule.and_then(|rule| rule.to.as_ref()) {
                    return Err(PlanError::Clash(format!(
                        "{} is written as shadow columns, beside the old ones, and cannot be called \"{to}\"",
                        table.name
                    )));
                }
                table.name.clone()
            }
            WriteKind::DualRecords if options.records => target_name(source, &table.name, rule, options),
            WriteKind::DualRecords => {
                return Err(PlanError::Unbuilt(format!("write = \"dual-records\" for {} in a SQL sink", table.name)));
            }
        };
        if let Some(other) = taken.insert(target.clone(), table.name.clone()) {
            return Err(PlanError::Clash(format!(
                "{other} and {} would both become {target}; give one of them another name with `to`",
                table.name
            )));
        }
        names.insert(table.name.clone(), target);
    }
    Ok(names)
}

fn target_name(source: &Catalog, name: &TableName, rule: Option<&TableRule>, options: &PlanOptions) -> TableName {
    let schema: Arc<str> = match (&options.schema, options.dialect) {
        (_, Dialect::Sqlite) => Arc::from("main"),
        (Some(schema), Dialect::Postgres) => Arc::from(schema.as_str()),
        (None, Dialect::Postgres) if source.dialect == Dialect::Sqlite => Arc::from("public"),
        (None, Dialect::Postgres) => name.schema.clone(),
    };
    match rule.and_then(|rule| rule.to.as_deref()).map(|to| to.split_once('.').ok_or(to)) {
        None => TableName { schema, name: name.name.clone() },
        Some(Err(to)) => TableName { schema, name: Arc::from(to) },
        Some(Ok((schema, to))) => TableName::new(schema, to),
    }
}
