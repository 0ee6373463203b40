//! The whole of it, for a target of which nothing is there yet: the same statements in the same order as a run's, with
//! the names that are free at each point.

use super::{ForeignKeySql, RowKey};
use crate::sink::store;
use crossfade_connector::{Failure, Target, TargetSql, TargetTable, WriteMode};
use crossfade_event::{
    TableName,
    catalog::{KeyDef, RelationKind},
};
use std::collections::{HashMap, HashSet};

/// Everything that `prepare` and `finish_load` run.
pub(in crate::sink) fn whole(target: &Target) -> Result<TargetSql, Failure> {
    let mut walk = Walk { target, names: HashSet::new(), keys: HashMap::new(), trees: HashSet::new() };
    let before_load = walk.before_load()?;
    Ok(TargetSql { before_load, after_load: walk.after_load()? })
}

/// What would be there after the statements so far.
struct Walk<'t> {
    target: &'t Target,
    /// Relations, by schema and name: tables, sequences, and the indexes of constraints.
    names: HashSet<(&'t str, &'t str)>,
    /// The columns of each table's keys and unique constraints, sorted.
    keys: HashMap<&'t TableName, HashSet<Vec<String>>>,
    /// Leaves that were made as such: what their parent has, they have.
    trees: HashSet<&'t TableName>,
}

impl<'t> Walk<'t> {
    fn before_load(&mut self) -> Result<Vec<String>, Failure> {
        let target = self.target;
        let mut out = store::install_sql();
        for schema in super::schemas(target) {
            out.push(super::schema(schema)?);
        }
        for extension in &target.support.extensions {
            out.push(super::extension(extension)?);
        }
        for type_ in &target.support.types {
            out.push(super::type_(type_)?);
        }
        for sequence in &target.support.sequences {
            self.names.insert((&sequence.name.schema, &sequence.name.name));
            out.extend(super::sequence(target, sequence)?);
        }
        for table in &target.tables {
            let name = &table.schema.name;
            if let WriteMode::Columns { .. } = table.mode {
                for (column, type_, def) in super::shadow_columns(table) {
                    out.push(super::add_column(name, column, type_, def)?);
                }
                continue;
            }
            let parent = match &table.def.kind {
                RelationKind::Partition { parent, .. } => Some(parent),
                _ => None,
            };
            let is_leaf = parent.is_some_and(|parent| target.tables.iter().any(|other| other.schema.name == *parent));
            if is_leaf {
                self.trees.insert(name);
            }
            self.names.insert((&name.schema, &name.name));
            out.push(super::table(table, is_leaf)?);
            if table.mode == WriteMode::InsertOnce {
                out.extend(self.row_key(table)?);
            }
            out.extend(super::owned_sequences(target, table)?);
        }
        Ok(out)
    }

    fn after_load(&mut self) -> Result<Vec<String>, Failure> {
        let target = self.target;
        let ours = || target.tables.iter().filter(|table| table.mode == WriteMode::Table);
        let mut out = Vec::new();
        for table in ours() {
            out.extend(self.row_key(table)?);
        }
        for table in target.tables.iter().filter(|table| table.mode == WriteMode::InsertOnce) {
            for key in &table.def.uniques {
                out.extend(self.key(table, key, "UNIQUE")?);
            }
        }
        for table in ours() {
            for index in table.def.indexes.iter().filter(|index| !index.unique) {
                let is_free = self.take(&table.schema.name, &index.name);
                out.push(super::index(&table.schema.name, index, is_free)?);
            }
            out.push(super::analyze(&table.schema.name)?);
        }
        for table in ours() {
            for key in &table.def.uniques {
                out.extend(self.key(table, key, "UNIQUE")?);
            }
            for index in table.def.indexes.iter().filter(|index| index.unique) {
                let is_free = self.take(&table.schema.name, &index.name);
                out.push(super::index(&table.schema.name, index, is_free)?);
            }
        }
        for table in ours() {
            for foreign in &table.def.foreign_keys {
                let ForeignKeySql { add, validate } = super::foreign_key(table, foreign)?;
                out.push(add);
                out.extend(validate);
            }
        }
        for sequence in &target.support.sequences {
            out.extend(super::sequence_value(target, sequence)?);
        }
        Ok(out)
    }

    /// Takes a name in a table's schema; false when another relation has it.
    fn take(&mut self, table: &'t TableName, name: &'t str) -> bool {
        self.names.insert((&table.schema, name))
    }

    fn row_key(&mut self, table: &'t TargetTable) -> Result<Option<String>, Failure> {
        match super::row_key(table) {
            // It came with the tree's own.
            RowKey::Primary(_) if self.trees.contains(&table.schema.name) => Ok(None),
            RowKey::Primary(key) => self.key(table, key, "PRIMARY KEY"),
            RowKey::Unique(key) => self.key(table, key, "UNIQUE"),
            RowKey::Index(columns) => super::key_index(&table.schema.name, &columns).map(Some),
            RowKey::None => Ok(None),
        }
    }

    fn key(&mut self, table: &'t TargetTable, key: &'t KeyDef, kind: &str) -> Result<Option<String>, Failure> {
        let name = &table.schema.name;
        if !self.keys.entry(name).or_default().insert(super::sorted(&key.columns)) {
            return Ok(None);
        }
        let is_free = self.take(name, &key.name);
        super::constraint(name, key, kind, is_free).map(Some)
    }
}
