//! Constraints and indexes, from the catalog.

use crate::client::{failure, quote_ident};
use crossfade_connector::Failure;
use crossfade_event::{
    TableName,
    catalog::{CheckDef, ForeignKeyDef, IndexDef, KeyDef},
};
use std::collections::HashMap;
use tokio_postgres::Client;

/// What hangs on one table.
#[derive(Debug, Clone, Default)]
pub(super) struct TableParts {
    pub(super) primary_key: Option<KeyDef>,
    pub(super) uniques: Vec<KeyDef>,
    pub(super) checks: Vec<CheckDef>,
    pub(super) foreign_keys: Vec<ForeignKeyDef>,
    pub(super) indexes: Vec<IndexDef>,
}

/// What hangs on each table; the second of each is what it inherits from a partitioned parent.
#[derive(Debug, Default)]
pub(super) struct Parts {
    own: HashMap<u32, TableParts>,
    inherited: HashMap<u32, TableParts>,
}

impl Parts {
    /// A table's parts; those that come from its parent only where the parent is not made beside it.
    pub(super) fn of(&self, oid: u32, parent_is_taken: bool) -> TableParts {
        let mut parts = self.own.get(&oid).cloned().unwrap_or_default();
        let Some(inherited) = self.inherited.get(&oid).cloned() else { return parts };
        parts.primary_key = parts.primary_key.or(inherited.primary_key);
        if !parent_is_taken {
            parts.uniques.extend(inherited.uniques);
            parts.checks.extend(inherited.checks);
            parts.foreign_keys.extend(inherited.foreign_keys);
            parts.indexes.extend(inherited.indexes);
        }
        parts
    }

    fn slot(&mut self, oid: u32, inherited: bool) -> &mut TableParts {
        let map = if inherited { &mut self.inherited } else { &mut self.own };
        map.entry(oid).or_default()
    }
}

const CONSTRAINTS: &str = "\
SELECT c.conrelid, c.contype::text, c.conname::text,
  ARRAY(SELECT a.attname::text FROM pg_catalog.unnest(c.conkey) WITH ORDINALITY k(num, n)
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.num ORDER BY k.n),
  c.condeferrable, c.condeferred,
  COALESCE((pg_catalog.to_jsonb(i.*) ->> 'indnullsnotdistinct')::boolean, false),
  pg_catalog.pg_get_expr(c.conbin, c.conrelid), fn.nspname::text, f.relname::text,
  ARRAY(SELECT a.attname::text FROM pg_catalog.unnest(c.confkey) WITH ORDINALITY k(num, n)
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.num ORDER BY k.n),
  c.confupdtype::text, c.confdeltype::text, c.confmatchtype::text, c.conparentid <> 0 OR NOT c.conislocal,
  ARRAY(SELECT a.attname::text FROM pg_catalog.jsonb_array_elements_text(
      COALESCE(NULLIF(pg_catalog.to_jsonb(c.*) -> 'confdelsetcols', 'null'), '[]')) k(num)
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.num::int2)
FROM pg_catalog.pg_constraint c
LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = c.conindid AND c.contype IN ('p', 'u')
LEFT JOIN pg_catalog.pg_class f ON f.oid = c.confrelid
LEFT JOIN pg_catalog.pg_namespace fn ON fn.oid = f.relnamespace
WHERE c.conrelid = ANY($1) AND c.contype IN ('p', 'u', 'c', 'f')
  -- A reference to a partition tree is there once more for each of its members.
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint p WHERE p.oid = c.conparentid AND p.conrelid = c.conrelid)
ORDER BY c.conrelid, c.conname";

const INDEXES: &str = "\
SELECT i.indrelid, c.relname::text, i.indisunique,
  pg_catalog.substr(pg_catalog.pg_get_indexdef(i.indexrelid), pg_catalog.strpos(pg_catalog.pg_get_indexdef(i.indexrelid),
    pg_catalog.concat(' ', i.indrelid::pg_catalog.regclass::text, ' USING ')) + pg_catalog.length(i.indrelid::pg_catalog.regclass::text) + 2),
  ARRAY(SELECT DISTINCT a.attname::text FROM pg_catalog.pg_depend d
    JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
    WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = i.indexrelid AND d.refobjid = i.indrelid
      AND d.refobjsubid > 0 ORDER BY 1),
  i.indexprs IS NULL AND i.indpred IS NULL, c.relispartition
FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = ANY($1) AND i.indisvalid
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x'))
ORDER BY i.indrelid, c.relname";

pub(super) async fn read(client: &Client, oids: &[u32]) -> Result<Parts, Failure> {
    let mut parts = Parts::default();
    let rows = client.query(CONSTRAINTS, &[&oids]).await.map_err(|error| failure("reading the constraints", error))?;
    for row in rows {
        let slot = parts.slot(row.get(0), row.get(14));
        let name: String = row.get(2);
        let columns: Vec<String> = row.get(3);
        match row.get(1) {
            "c" => slot.checks.push(CheckDef { name, expression: row.get::<_, Option<String>>(7).unwrap_or_default() }),
            "f" => {
                let (Some(schema), Some(table)) = (row.get::<_, Option<String>>(8), row.get::<_, Option<String>>(9))
                else {
                    continue;
                };
                slot.foreign_keys.push(ForeignKeyDef {
                    name,
                    columns,
                    references: TableName::new(schema, table),
                    referenced_columns: row.get(10),
                    suffix: suffix(&row)?,
                });
            }
            kind => {
                let key = KeyDef { name, columns, deferrable: row.get(4), nulls_not_distinct: row.get(6) };
                if kind == "p" { slot.primary_key = Some(key) } else { slot.uniques.push(key) }
            }
        }
    }
    let rows = client.query(INDEXES, &[&oids]).await.map_err(|error| failure("reading the indexes", error))?;
    for row in rows {
        parts.slot(row.get(0), row.get(6)).indexes.push(IndexDef {
            name: row.get(1),
            unique: row.get(2),
            definition: row.get(3),
            columns: row.get(4),
            plain: row.get(5),
        });
    }
    Ok(parts)
}

/// What follows the referenced columns of a foreign key.
fn suffix(row: &tokio_postgres::Row) -> Result<String, Failure> {
    let action = |code: &str| match code {
        "r" => Some("RESTRICT"),
        "c" => Some("CASCADE"),
        "n" => Some("SET NULL"),
        "d" => Some("SET DEFAULT"),
        _ => None,
    };
    let mut words: Vec<String> = Vec::new();
    if row.get::<_, &str>(13) == "f" {
        words.push("MATCH FULL".to_owned());
    }
    if let Some(action) = action(row.get(11)) {
        words.push(format!("ON UPDATE {action}"));
    }
    if let Some(action) = action(row.get(12)) {
        words.push(format!("ON DELETE {action}"));
        let only: Vec<String> = row.get(15);
        if !only.is_empty() {
            let only = only
                .iter()
                .map(|name| Ok(quote_ident(name)?.as_str().to_owned()))
                .collect::<Result<Vec<_>, Failure>>()?;
            words.push(format!("({})", only.join(", ")));
        }
    }
    if row.get(4) {
        words.push("DEFERRABLE".to_owned());
    }
    if row.get(5) {
        words.push("INITIALLY DEFERRED".to_owned());
    }
    Ok(words.join(" "))
}
