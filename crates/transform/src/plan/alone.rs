//! What keeps several processes from applying one stream together: each has some partitions, and a partition has the
//! changes of some keys *of the source*. In the target two rows meet only under one key. So partitions are independent
//! where the target's key tells the source's: then all changes of a row there come from one partition.

use super::{Plan, TablePlan};
use crate::program::From;
use crossfade_event::{
    Identity, Logical, TableId,
    catalog::{Catalog, ColumnDef, TableDef},
};
use std::collections::BTreeSet;

impl Plan {
    /// Why the stream must be applied by one process; `None` where partitions are independent.
    pub fn keeps_alone(&self, source: &Catalog) -> Option<String> {
        if let Some(view) = self.lookups.first() {
            return Some(format!("rows of {} are looked up", view.table));
        }
        let mut targets: BTreeSet<TableId> = BTreeSet::new();
        for (name, program) in &self.programs {
            if program.columns_only || program.dual.is_some() {
                return Some(format!("{name} is not written to a table of its own"));
            }
            if !targets.insert(program.id) {
                return Some(format!("{} takes the rows of several tables", program.schema.name));
            }
            let known = source.table(name).is_some_and(|table| tells_key(table, program));
            if !known {
                return Some(format!("the key of {} in the target does not tell that of {name}", program.schema.name));
            }
        }
        None
    }
}

/// Whether each column of the source's key stands in the target's as it is, or within a key made of it.
fn tells_key(table: &TableDef, program: &TablePlan) -> bool {
    if table.identity != Identity::Key || program.schema.identity != Identity::Key {
        return false;
    }
    let in_key = |place: usize| program.schema.columns.get(place).is_some_and(|column| column.key.is_some());
    let is_told = |register: usize, logical| {
        !program.overwritten.contains(&register)
            && program.outs.iter().enumerate().any(|(place, out)| {
                in_key(place)
                    && match &out.from {
                        From::Register(from) => *from == register && out.column.type_.logical == logical,
                        From::Key(made) => {
                            made.maker.normalise.is_empty() && made.parts.iter().any(|(part, _)| *part == register)
                        }
                    }
            })
    };
    let mut keys = table.carried().enumerate().filter(|(_, def)| def.column.key.is_some()).peekable();
    keys.peek().is_some()
        && keys.all(|(register, def)| is_byte_for_byte(def) && is_told(register, def.column.type_.logical))
}

/// Whether two values that are equal there are written alike; by their bytes the log divides them.
fn is_byte_for_byte(def: &ColumnDef) -> bool {
    let type_ = &def.column.type_;
    match type_.logical {
        Logical::Text => def.collation.is_none() && !type_.name.contains("citext"),
        Logical::Bool
        | Logical::Int16
        | Logical::Int32
        | Logical::Int64
        | Logical::Bytes
        | Logical::Date
        | Logical::Time
        | Logical::Timestamp
        | Logical::TimestampTz
        | Logical::Uuid => true,
        _ => false,
    }
}
