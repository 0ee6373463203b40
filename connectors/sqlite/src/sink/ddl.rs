//! The statements that make a target of which nothing is there yet: the same ones, in the same order, that the writer runs
//! where something is missing. Nothing here opens a file.

use super::{own, table};
use crossfade_connector::{Target, TargetSql, TargetTable, WriteMode};
use std::collections::HashMap;

/// Everything that `prepare` and `finish_load` run.
pub(super) fn whole(target: &Target) -> TargetSql {
    TargetSql { before_load: before_load(target), after_load: after_load(target) }
}

/// The tables that we make: shadow columns need a table that somebody else made.
fn ours(target: &Target) -> impl Iterator<Item = &TargetTable> {
    target.tables.iter().filter(|table| !matches!(table.mode, WriteMode::Columns { .. }))
}

fn before_load(target: &Target) -> Vec<String> {
    let own = own::MAKE.iter().map(|statement| (*statement).to_owned());
    let tables =
        ours(target).flat_map(|table| [Some(table::create(table, &target.support)), table::key_index(table)]).flatten();
    own.chain(tables).collect()
}

fn after_load<'t>(target: &'t Target) -> Vec<String> {
    let mut statements = Vec::new();
    let mut later = Vec::new();
    // Everything in a file shares its names: indexes, whatever table they are of, and tables.
    let own_name = |table: &'t TargetTable| (table.schema.name.name.to_ascii_lowercase(), &*table.schema.name.name);
    let mut names: HashMap<String, &str> = ours(target).map(own_name).collect();
    for table in ours(target) {
        let of = &*table.schema.name.name;
        for index in table::indexes(table, target.support.dialect) {
            let holder = *names.entry(index.name.to_ascii_lowercase()).or_insert(of);
            let name = if holder == of { index.name.clone() } else { index.other_name(of) };
            // What must be unique waits until the stream has passed the copy's end.
            let list = if index.unique { &mut later } else { &mut statements };
            list.push(index.sql(&name, of));
        }
    }
    for table in ours(target) {
        statements.extend(table::counters(table, &target.support));
    }
    statements.append(&mut later);
    statements
}
