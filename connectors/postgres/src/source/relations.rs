//! A table's shape as the stream says it, beside its shape as the catalog says it.
//!
//! A relation message names columns and types, no numbers and no defaults; the catalog has those, but of now, not of
//! the change's moment. The two together tell a rename (same number) from drop and add, and a column that old rows
//! read as a constant from one for which the table was rewritten. Where they contradict each other the catalog is
//! ahead: what the stream says is taken, with the numbers that are known, and what cannot be told stops us.

use super::catalog::{LiveColumn, LiveTable};
use crate::codec::{
    pgoutput::{CellRule, Relation, RelationColumn},
    types::TypeFacts,
};
use crossfade_connector::Failure;
use crossfade_event::{Column, Format, SchemaVersion, TableName, TableSchema};
use std::{collections::HashMap, sync::Arc};

/// A captured table: its latest schema, and how the stream's tuples are read under it.
pub(super) struct Captured {
    pub(super) schema: Arc<TableSchema>,
    /// `None` until the stream has said the table's shape in this session.
    pub(super) rules: Option<Arc<[CellRule]>>,
}

/// What a relation message means for a table.
#[derive(Debug)]
pub(super) enum Followed {
    /// Nothing new.
    Same,
    /// A new version that rows written before can be read into.
    Changed(TableSchema),
    /// A new version, and rows written before have changed without an event.
    Rewritten(TableSchema, String),
}

/// What the stream says of a table, against the schema that is known. Where that is word for word what is known, a
/// column may still be another one of the same name and type; the catalog knows, but whether its word holds for this
/// place in the stream or for a later one it does not say. Nothing is new then until the stream has passed it.
pub(super) fn follow(
    old: &TableSchema,
    relation: &Relation,
    live: Option<&LiveTable>,
    types: &HashMap<u32, TypeFacts>,
    text: bool,
) -> Result<Followed, Failure> {
    let told = compare(old, relation, live, types, text)?;
    let is_replaced = |next: &TableSchema| {
        let both = old.columns.iter().zip(&next.columns);
        both.clone().any(|(old, next)| old.native_id != next.native_id)
            && both.clone().all(|(old, next)| old.type_ == next.type_)
    };
    match told {
        Followed::Rewritten(next, _) if says(relation, old) && is_replaced(&next) => Ok(Followed::Same),
        told => Ok(told),
    }
}

/// Whether a relation message names the columns of a schema, in their order.
pub(super) fn says(relation: &Relation, schema: &TableSchema) -> bool {
    let said = relation.columns.iter().map(|column| (column.name.as_str(), column.type_oid));
    said.eq(schema.columns.iter().map(|column| (&*column.name, column.type_.native_id)))
}

/// Compares a shape with the schema that is known.
pub(super) fn compare(
    old: &TableSchema,
    relation: &Relation,
    live: Option<&LiveTable>,
    types: &HashMap<u32, TypeFacts>,
    text: bool,
) -> Result<Followed, Failure> {
    let live_columns = live.map(|table| table.columns.as_slice()).unwrap_or_default();
    let agrees = live_columns.len() == relation.columns.len()
        && live_columns.iter().zip(&relation.columns).all(|(live, column)| is_same(live, column));
    let mut rewritten = None;
    let mut columns = Vec::with_capacity(relation.columns.len());
    for column in &relation.columns {
        let live = live_columns.iter().find(|live| is_same(live, column));
        let (next, why) = follow_column(old, column, live, types, text)?;
        rewritten = rewritten.or(why);
        columns.push(next);
    }
    // The stream names columns by their numbers, in order: names that were exchanged since would exchange values.
    if !columns.is_sorted_by(|one, other| one.native_id < other.native_id) {
        return Err(ahead(old, "its columns were"));
    }
    let mut next = TableSchema {
        id: old.id,
        version: old.version,
        name: TableName::new(relation.schema.as_str(), relation.name.as_str()),
        columns,
        // Where the catalog is ahead its keys are of another shape: the known identity stays until it is told anew.
        identity: live.filter(|_| agrees).map_or(old.identity, |table| table.identity),
        native_id: old.native_id,
    };
    if !agrees {
        for column in &mut next.columns {
            let known = old.columns.iter().find(|known| known.native_id == column.native_id);
            column.key = known.and_then(|known| known.key);
        }
    }
    if is_equal(old, &next) {
        return Ok(Followed::Same);
    }
    next.version = SchemaVersion(old.version.0 + 1);
    Ok(match rewritten {
        Some(why) => Followed::Rewritten(next, why),
        None => Followed::Changed(next),
    })
}

fn is_same(live: &LiveColumn, column: &RelationColumn) -> bool {
    *live.name == *column.name && live.type_oid == column.type_oid && live.type_modifier == column.type_modifier
}

/// Equal but for defaults: one of them never makes a version of its own.
fn is_equal(old: &TableSchema, next: &TableSchema) -> bool {
    let plain = |column: &Column| Column { default: None, ..column.clone() };
    old.name == next.name
        && old.identity == next.identity
        && old.columns.len() == next.columns.len()
        && old.columns.iter().zip(&next.columns).all(|(a, b)| plain(a) == plain(b))
}

/// One column of the new version, and why the table's old rows are not what they were, if they are not.
fn follow_column(
    old: &TableSchema,
    column: &RelationColumn,
    live: Option<&LiveColumn>,
    types: &HashMap<u32, TypeFacts>,
    text: bool,
) -> Result<(Column, Option<String>), Failure> {
    let same_name = old.columns.iter().find(|known| *known.name == *column.name);
    let Some(live) = live else {
        // The catalog is ahead. What is known already keeps its number; what is not cannot be told.
        return match same_name.filter(|known| known.type_.native_id == column.type_oid) {
            Some(known) => Ok((known.clone(), None)),
            None => Err(ahead(old, &format!("column {} was", column.name))),
        };
    };
    let mut next = live.column(types, text);
    let known = old.columns.iter().find(|known| known.native_id == next.native_id);
    let why = match known {
        Some(known) if known.type_.name != next.type_.name && !is_widened(known, &next) => {
            Some(format!("column {} was retyped from {} to {}", next.name, known.type_.name, next.type_.name))
        }
        Some(known) => {
            next.default = known.default.as_deref().map(|default| retyped(default, known, &next).into());
            None
        }
        None if same_name.is_some() => Some(format!("column {} was dropped and added again", next.name)),
        None => {
            next.default = live.missing.clone();
            (live.missing.is_none() && live.filled)
                .then(|| format!("column {} was added with a default that is not constant", next.name))
        }
    };
    Ok((next, why))
}

/// The constant that a column came with, said in the type to which it was widened: its text is the same.
fn retyped(default: &str, known: &Column, next: &Column) -> String {
    match default.strip_suffix(&*known.type_.name) {
        Some(text) => format!("{text}{}", next.type_.name),
        None => default.to_owned(),
    }
}

fn ahead(table: &TableSchema, what: &str) -> Failure {
    Failure::halt(
        format!("following the change of {}", table.name),
        format!("{what} changed again before the first change was read"),
        "Take the table in anew: exclude it, run, and add it again with `resume --add`",
    )
}

/// Retypes that leave every value as it is, and rewrite nothing.
fn is_widened(known: &Column, next: &Column) -> bool {
    let (from, to) = (&*known.type_.name, &*next.type_.name);
    let sized = |text: &str, prefix: &str| {
        text.strip_prefix(prefix)?.strip_suffix(')')?.split_once(',').map_or_else(
            || Some((text.strip_prefix(prefix)?.strip_suffix(')')?.parse::<i64>().ok()?, 0)),
            |(precision, scale)| Some((precision.parse().ok()?, scale.parse().ok()?)),
        )
    };
    if let Some((size, _)) = sized(from, "character varying(") {
        return matches!(to, "text" | "character varying")
            || sized(to, "character varying(").is_some_and(|(wider, _)| wider >= size);
    }
    if let Some((precision, scale)) = sized(from, "numeric(") {
        return to == "numeric"
            || sized(to, "numeric(").is_some_and(|(wider, same)| wider >= precision && same == scale);
    }
    matches!((from, to), ("character varying", "text") | ("text", "character varying"))
}

/// How tuples are read: the format of each column, and what the server sends as an old key.
pub(super) fn rules(schema: &TableSchema, relation: &Relation) -> Arc<[CellRule]> {
    schema
        .columns
        .iter()
        .zip(&relation.columns)
        .map(|(column, sent)| CellRule {
            format: if column.type_.format == Format::PgBinary { CellRule::BINARY } else { CellRule::TEXT },
            in_old_key: sent.is_key,
        })
        .collect()
}

#[cfg(test)]
#[path = "relations_tests.rs"]
mod tests;
