//! What tables need around them: types, sequences, extensions.

use crate::client::failure;
use crossfade_connector::Failure;
use crossfade_event::{
    TableName,
    catalog::{SequenceDef, TypeDef, TypeDefinition},
};
use std::collections::{HashMap, HashSet};
use tokio_postgres::Client;

/// The first oid of objects that users make.
const FIRST_USER_OID: u32 = 16_384;

const TYPES: &str = "\
SELECT t.oid, n.nspname::text, t.typname::text, t.typtype::text, t.typelem, t.typbasetype, t.typlen = -1 AND t.typelem <> 0,
  (SELECT e.extname::text FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
   WHERE d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass AND d.objid = t.oid AND d.deptype = 'e' LIMIT 1),
  ARRAY(SELECT l.enumlabel::text FROM pg_catalog.pg_enum l WHERE l.enumtypid = t.oid ORDER BY l.enumsortorder),
  ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
    WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum),
  ARRAY(SELECT pg_catalog.format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute a
    WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum),
  ARRAY(SELECT a.atttypid FROM pg_catalog.pg_attribute a
    WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum),
  CASE WHEN t.typtype = 'd' THEN pg_catalog.concat_ws(' ', 'AS', pg_catalog.format_type(t.typbasetype, t.typtypmod),
    CASE WHEN t.typcollation <> b.typcollation AND t.typcollation <> 0
      THEN (SELECT pg_catalog.format('COLLATE %I.%I', cn.nspname, co.collname) FROM pg_catalog.pg_collation co
            JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace WHERE co.oid = t.typcollation) END,
    'DEFAULT ' || pg_catalog.pg_get_expr(t.typdefaultbin, 0),
    CASE WHEN t.typnotnull THEN 'NOT NULL' END,
    (SELECT pg_catalog.string_agg(pg_catalog.format('CONSTRAINT %I %s', k.conname, pg_catalog.pg_get_constraintdef(k.oid)), ' ' ORDER BY k.conname)
     FROM pg_catalog.pg_constraint k WHERE k.contypid = t.oid AND k.contype = 'c')) END,
  r.rngsubtype,
  CASE WHEN r.rngtypid IS NOT NULL THEN pg_catalog.concat_ws(', ',
    'subtype = ' || pg_catalog.format_type(r.rngsubtype, NULL),
    CASE WHEN NOT oc.opcdefault THEN pg_catalog.format('subtype_opclass = %I.%I', ocn.nspname, oc.opcname) END,
    CASE WHEN r.rngcollation <> 0 AND r.rngcollation <> st.typcollation
      THEN (SELECT pg_catalog.format('collation = %I.%I', cn.nspname, co.collname) FROM pg_catalog.pg_collation co
            JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace WHERE co.oid = r.rngcollation) END,
    CASE WHEN r.rngsubdiff <> 0 THEN 'subtype_diff = ' || r.rngsubdiff::pg_catalog.regproc::text END,
    (SELECT pg_catalog.format('multirange_type_name = %I.%I', mn.nspname, m.typname) FROM pg_catalog.pg_type m
       JOIN pg_catalog.pg_namespace mn ON mn.oid = m.typnamespace
       WHERE m.oid = (pg_catalog.to_jsonb(r.*) ->> 'rngmultitypid')::pg_catalog.oid)) END,
  CASE WHEN t.typtype = 'c' THEN (SELECT c.relkind::text FROM pg_catalog.pg_class c WHERE c.oid = t.typrelid) END,
  (SELECT mr.rngtypid FROM pg_catalog.pg_range mr WHERE t.typtype = 'm'
     AND (pg_catalog.to_jsonb(mr.*) ->> 'rngmultitypid')::pg_catalog.oid = t.oid)
FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_catalog.pg_type b ON b.oid = t.typbasetype
LEFT JOIN pg_catalog.pg_range r ON r.rngtypid = t.oid
LEFT JOIN pg_catalog.pg_type st ON st.oid = r.rngsubtype
LEFT JOIN pg_catalog.pg_opclass oc ON oc.oid = r.rngsubopc
LEFT JOIN pg_catalog.pg_namespace ocn ON ocn.oid = oc.opcnamespace
WHERE t.oid = ANY($1)";

struct Found {
    def: Option<TypeDef>,
    needs: Vec<u32>,
    extension: Option<String>,
}

/// User-defined types, those that others need first, and the extensions that types belong to.
pub(super) async fn types(client: &Client, roots: Vec<u32>) -> Result<(Vec<TypeDef>, Vec<String>), Failure> {
    let mut found: HashMap<u32, Found> = HashMap::new();
    let mut wanted: Vec<u32> = roots.iter().copied().filter(|oid| *oid >= FIRST_USER_OID).collect();
    while !wanted.is_empty() {
        let rows = client.query(TYPES, &[&wanted]).await.map_err(|error| failure("reading the types", error))?;
        for row in rows {
            let (oid, type_) = read(&row);
            found.insert(oid, type_);
        }
        let mut next: Vec<u32> = found
            .values()
            .flat_map(|type_| type_.needs.iter().copied())
            .filter(|oid| *oid >= FIRST_USER_OID && !found.contains_key(oid))
            .collect();
        next.sort_unstable();
        next.dedup();
        if next == wanted {
            break;
        }
        wanted = next;
    }
    let mut extensions: Vec<String> = found.values().filter_map(|type_| type_.extension.clone()).collect();
    extensions.sort();
    extensions.dedup();
    let mut order = Vec::new();
    let mut oids: Vec<u32> = found.keys().copied().collect();
    oids.sort_unstable();
    let mut seen = HashSet::new();
    for oid in oids {
        visit(oid, &found, &mut seen, &mut order);
    }
    Ok((order, extensions))
}

fn visit(oid: u32, found: &HashMap<u32, Found>, seen: &mut HashSet<u32>, order: &mut Vec<TypeDef>) {
    if !seen.insert(oid) {
        return;
    }
    let Some(type_) = found.get(&oid) else { return };
    for need in &type_.needs {
        visit(*need, found, seen, order);
    }
    order.extend(type_.def.clone());
}

fn read(row: &tokio_postgres::Row) -> (u32, Found) {
    let oid: u32 = row.get(0);
    let name = TableName::new(row.get::<_, &str>(1), row.get::<_, &str>(2));
    let kind: &str = row.get(3);
    let extension: Option<String> = row.get(7);
    let mut needs: Vec<u32> = Vec::new();
    if row.get(6) {
        needs.push(row.get(4));
    }
    let definition = match kind {
        "e" => Some(TypeDefinition::Enum(row.get(8))),
        "d" => {
            needs.push(row.get(5));
            row.get::<_, Option<String>>(12).map(TypeDefinition::Domain)
        }
        "c" => {
            needs.extend(row.get::<_, Vec<u32>>(11));
            // A table's own row type comes with its table.
            let is_free = row.get::<_, Option<&str>>(15) == Some("c");
            let fields = row.get::<_, Vec<String>>(9).into_iter().zip(row.get::<_, Vec<String>>(10));
            is_free.then(|| TypeDefinition::Composite(fields.collect()))
        }
        "r" => {
            needs.extend(row.get::<_, Option<u32>>(13));
            row.get::<_, Option<String>>(14).map(TypeDefinition::Range)
        }
        "m" => {
            needs.extend(row.get::<_, Option<u32>>(16));
            None
        }
        _ => None,
    };
    let def = definition.filter(|_| extension.is_none()).map(|definition| TypeDef { name, definition });
    if extension.is_some() {
        needs.clear();
    }
    (oid, Found { def, needs, extension })
}

/// Extensions whose functions or operator classes stand in defaults and indexes.
pub(super) async fn used_extensions(client: &Client, oids: &[u32]) -> Result<Vec<String>, Failure> {
    let sql = "\
WITH parts(classid, objid) AS (
  SELECT 'pg_catalog.pg_attrdef'::pg_catalog.regclass::oid, d.oid FROM pg_catalog.pg_attrdef d WHERE d.adrelid = ANY($1)
  UNION ALL SELECT 'pg_catalog.pg_class'::pg_catalog.regclass::oid, i.indexrelid FROM pg_catalog.pg_index i WHERE i.indrelid = ANY($1)
  UNION ALL SELECT 'pg_catalog.pg_constraint'::pg_catalog.regclass::oid, c.oid FROM pg_catalog.pg_constraint c WHERE c.conrelid = ANY($1))
SELECT DISTINCT e.extname::text FROM parts p
JOIN pg_catalog.pg_depend u ON u.classid = p.classid AND u.objid = p.objid
JOIN pg_catalog.pg_depend m ON m.classid = u.refclassid AND m.objid = u.refobjid AND m.deptype = 'e'
JOIN pg_catalog.pg_extension e ON e.oid = m.refobjid
WHERE e.extname <> 'plpgsql'";
    let rows = client.query(sql, &[&oids]).await.map_err(|error| failure("reading the extensions", error))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Sequences that feed the tables' columns: owned by them, or named by their defaults.
pub(super) async fn sequences(client: &Client, oids: &[u32]) -> Result<Vec<SequenceDef>, Failure> {
    let sql = "\
WITH fed(seq, rel, num) AS (
  SELECT d.objid, d.refobjid, d.refobjsubid FROM pg_catalog.pg_depend d
  JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S'
  WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refclassid = d.classid
    AND d.refobjid = ANY($1) AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
  UNION
  SELECT u.refobjid, a.adrelid, a.adnum FROM pg_catalog.pg_attrdef a
  JOIN pg_catalog.pg_depend u ON u.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND u.objid = a.oid
    AND u.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
  JOIN pg_catalog.pg_class s ON s.oid = u.refobjid AND s.relkind = 'S'
  WHERE a.adrelid = ANY($1))
SELECT DISTINCT ON (s.seqrelid) n.nspname::text, c.relname::text,
  pg_catalog.format('AS %s INCREMENT BY %s MINVALUE %s MAXVALUE %s START WITH %s CACHE %s %s',
    pg_catalog.format_type(s.seqtypid, NULL), s.seqincrement, s.seqmin, s.seqmax, s.seqstart, s.seqcache,
    CASE WHEN s.seqcycle THEN 'CYCLE' ELSE 'NO CYCLE' END),
  CASE WHEN pg_catalog.has_sequence_privilege(s.seqrelid, 'USAGE, SELECT')
    THEN pg_catalog.pg_sequence_last_value(s.seqrelid)::pg_catalog.int8 END,
  s.seqincrement, tn.nspname::text, t.relname::text, a.attname::text
FROM fed f JOIN pg_catalog.pg_sequence s ON s.seqrelid = f.seq
JOIN pg_catalog.pg_class c ON c.oid = s.seqrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_class t ON t.oid = f.rel JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = f.rel AND a.attnum = f.num
ORDER BY s.seqrelid, t.relkind = 'r', f.rel";
    let rows = client.query(sql, &[&oids]).await.map_err(|error| failure("reading the sequences", error))?;
    let mut sequences: Vec<SequenceDef> = rows
        .into_iter()
        .map(|row| SequenceDef {
            name: TableName::new(row.get::<_, &str>(0), row.get::<_, &str>(1)),
            options: row.get(2),
            last_value: row.get(3),
            increment: row.get(4),
            owner: Some((TableName::new(row.get::<_, &str>(5), row.get::<_, &str>(6)), row.get(7))),
        })
        .collect();
    sequences.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(sequences)
}
