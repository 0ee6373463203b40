//! Rows in two key versions: beside what the plan makes of a row stands the row as the source has it.

use super::{Out, PlanError};
use crate::{program::From, types};
use crossfade_event::{
    Column, Identity,
    catalog::{Dialect, TableDef},
};
use std::sync::Arc;

/// What the names of the first version's columns begin with: the row as the source has it.
pub(super) const FIRST: &str = "v1.";
/// What the names of the second version's columns begin with: the row as the plan makes it.
pub(super) const SECOND: &str = "v2.";

/// The outputs of both versions, and where the second begins.
pub(super) struct Both {
    pub(super) outs: Vec<Out>,
    pub(super) second: usize,
}

/// Puts the source's own row before the outputs of the new one. Its cells are loaded a second time, right behind those on
/// which the steps work. The key is both keys, one after the other: so a change of either is one of the row's key.
pub(super) fn both(table: &TableDef, second: Vec<Out>, dialects: (Dialect, Dialect)) -> Result<Both, PlanError> {
    if table.identity != Identity::Key {
        return Err(PlanError::invalid(
            format!("[[table]] from = \"{}\"", table.name),
            "the table has no key, so there are no two versions of one; give it a primary key, exclude it, or write = \"shadow-tables\" for it",
        ));
    }
    let count = table.carried().count();
    let mut outs: Vec<Out> = table
        .carried()
        .enumerate()
        .map(|(index, def)| {
            let name = Arc::from(format!("{FIRST}{}", def.column.name));
            let type_ = types::carried(&def.column.type_, dialects.0, dialects.1);
            let column = Column { name, type_, ..def.column.clone() };
            Out { column, from: From::Register(count + index), in_old: true }
        })
        .collect();
    let first_keys = outs.iter().filter(|out| out.column.key.is_some()).count() as u16;
    outs.extend(second.into_iter().map(|out| {
        let name = Arc::from(format!("{SECOND}{}", out.column.name));
        let key = out.column.key.map(|place| first_keys + place);
        Out { column: Column { name, key, ..out.column }, ..out }
    }));
    Ok(Both { outs, second: count })
}
