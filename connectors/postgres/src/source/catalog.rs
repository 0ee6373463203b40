//! What the server's catalog says of the tables that are captured: names, columns by number, keys, partition trees.

use super::heaps::Heap;
use crate::{
    Patterns,
    client::failure,
    codec::types::{self, TypeFacts},
    made,
};
use crossfade_connector::Failure;
use crossfade_event::{Column, ColumnType, Format, Identity, Logical, SchemaVersion, TableId, TableName, TableSchema};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock},
};
use tokio_postgres::Client;

/// A table as the catalog has it now.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LiveTable {
    pub(super) oid: u32,
    pub(super) name: TableName,
    pub(super) columns: Vec<LiveColumn>,
    pub(super) identity: Identity,
    /// The root of a partition tree, captured as one table.
    pub(super) is_root: bool,
    pub(super) heap: Heap,
}

/// A column as the catalog has it now; generated ones are left out.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LiveColumn {
    pub(super) attnum: u32,
    pub(super) name: Arc<str>,
    pub(super) type_oid: u32,
    pub(super) type_modifier: i32,
    pub(super) type_name: Arc<str>,
    pub(super) nullable: bool,
    pub(super) key: Option<u16>,
    /// The constant that rows from before the column read, as a literal with its type.
    pub(super) missing: Option<Arc<str>>,
    /// Whether new rows are filled by an expression or a sequence.
    pub(super) filled: bool,
}

/// A relation that a pattern could mean.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) oid: u32,
    pub(super) name: TableName,
    pub(super) is_root: bool,
    pub(super) unlogged: bool,
    /// The root of its partition tree, for a leaf.
    pub(super) root: Option<TableName>,
    /// Whether trees are captured by their root.
    pub(super) by_root: bool,
}

/// The names of what is captured, by oid; shared with `health`.
#[derive(Debug, Default)]
pub(super) struct CapturedNames(RwLock<HashSet<u32>>);

impl CapturedNames {
    pub(super) fn insert(&self, oid: u32) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(oid);
    }

    fn has(&self, oid: u32) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(&oid)
    }
}

const CANDIDATES: &str = "\
SELECT c.oid, n.nspname::text, c.relname::text, c.relkind = 'p', c.relpersistence = 'u', rn.nspname::text, r.relname::text
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_class r ON c.relispartition AND r.oid = pg_catalog.pg_partition_root(c.oid)
LEFT JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
  AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'crossfade')
ORDER BY 2, 3";

/// All tables that a pattern could mean: not those that the migration made itself.
pub(super) async fn candidates(client: &Client, migration: &str) -> Result<Vec<Candidate>, Failure> {
    let rows = client.query(CANDIDATES, &[]).await.map_err(|error| failure("listing the tables", error))?;
    let made = made::read(client, migration).await?.tables;
    let name = |schema: String, name: String| TableName::new(schema, name);
    Ok(rows
        .into_iter()
        .map(|row| Candidate {
            oid: row.get(0),
            name: name(row.get(1), row.get(2)),
            is_root: row.get(3),
            unlogged: row.get(4),
            root: row.get::<_, Option<String>>(5).zip(row.get::<_, Option<String>>(6)).map(|(s, n)| name(s, n)),
            by_root: false,
        })
        .filter(|candidate| !made.contains(&candidate.name))
        .collect())
}

/// Relations that no pattern can mean, and that may be excluded all the same: `public.*` speaks of them, too.
pub(super) async fn without_rows(client: &Client) -> Result<Vec<TableName>, Failure> {
    let sql = "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('v', 'm', 'f')";
    let rows = client.query(sql, &[]).await.map_err(|error| failure("listing the views", error))?;
    Ok(rows.iter().map(|row| TableName::new(row.get::<_, &str>(0), row.get::<_, &str>(1))).collect())
}

/// The tables with rows that the patterns mean: a leaf also through the root of its tree, unless a pattern speaks of
/// the leaf itself. Where trees are meant as one table, what stands under a root that is taken comes through it.
pub(super) fn wanted(candidates: &[Candidate], patterns: &Patterns) -> Vec<Candidate> {
    let is_taken = |root: &TableName| patterns.verdict(root) == Some(true);
    let is_wanted = |candidate: &&Candidate| {
        let verdict = patterns.verdict(&candidate.name);
        match (&candidate.root, patterns.is_by_root()) {
            (root, false) => !candidate.is_root && verdict.unwrap_or_else(|| root.as_ref().is_some_and(is_taken)),
            (None, true) => verdict == Some(true),
            (Some(root), true) => !candidate.is_root && !is_taken(root) && verdict == Some(true),
        }
    };
    let by_root = patterns.is_by_root();
    candidates.iter().filter(is_wanted).map(|candidate| Candidate { by_root, ..candidate.clone() }).collect()
}

/// Tables that match and are not captured.
pub(super) async fn uncaptured(
    client: &Client,
    migration: &str,
    patterns: &Patterns,
    captured: &CapturedNames,
) -> Result<Vec<String>, Failure> {
    let found = wanted(&candidates(client, migration).await?, patterns);
    Ok(found.into_iter().filter(|table| !captured.has(table.oid)).map(|table| table.name.to_string()).collect())
}

/// The constant that rows from before a column read stands with the rows: for the root of a tree, with its leaves. Leaves
/// that were rewritten since, or came later, hold the value themselves.
const COLUMNS: &str = "\
WITH RECURSIVE tree (root, relid) AS (
  SELECT h.inhparent, h.inhrelid FROM pg_catalog.pg_inherits h JOIN pg_catalog.pg_class p ON p.oid = h.inhparent
  WHERE h.inhparent = ANY($1) AND p.relkind = 'p'
  UNION SELECT t.root, h.inhrelid FROM tree t JOIN pg_catalog.pg_inherits h ON h.inhparent = t.relid)
SELECT c.oid, n.nspname::text, c.relname::text, c.relreplident::text, a.attnum::int4, a.attname::text, a.atttypid,
  a.atttypmod, pg_catalog.format_type(a.atttypid, a.atttypmod), NOT a.attnotnull,
  pg_catalog.array_position(i.indkey::int2[], a.attnum)::int4,
  CASE WHEN a.atthasmissing THEN (a.attmissingval::text::text[])[1] ELSE m.said[1] END,
  a.atthasmissing OR COALESCE(pg_catalog.cardinality(m.said) = 1, false),
  a.atthasdef OR a.attidentity <> '', i.indrelid IS NOT NULL,
  pg_catalog.array_length(i.indkey::int2[], 1), c.relkind = 'p', c.relfilenode, a.xmin::text
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_attribute a
  ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
LEFT JOIN pg_catalog.pg_index i ON i.indrelid = c.oid AND i.indisvalid AND i.indimmediate
  AND (CASE c.relreplident WHEN 'i' THEN i.indisreplident WHEN 'n' THEN false ELSE i.indisprimary END)
LEFT JOIN LATERAL (
  SELECT pg_catalog.array_agg(DISTINCT (l.attmissingval::text::text[])[1]) AS said
  FROM tree t JOIN pg_catalog.pg_attribute l ON l.attrelid = t.relid AND l.attname = a.attname AND l.atthasmissing
  WHERE t.root = c.oid) m ON c.relkind = 'p'
WHERE c.oid = ANY($1) ORDER BY c.oid, a.attnum";

/// Looks up tables by oid. What does not exist any more is left out.
pub(super) async fn live_tables(client: &Client, oids: &[u32]) -> Result<BTreeMap<u32, LiveTable>, Failure> {
    let rows =
        client.query(COLUMNS, &[&oids]).await.map_err(|error| failure("reading the columns of the tables", error))?;
    let mut tables: BTreeMap<u32, LiveTable> = BTreeMap::new();
    for row in rows {
        let (oid, has_index): (u32, bool) = (row.get(0), row.get(14));
        let replica_identity: String = row.get(3);
        let table = tables.entry(oid).or_insert_with(|| LiveTable {
            oid,
            name: TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
            columns: Vec::new(),
            identity: match (has_index, replica_identity.as_str()) {
                (true, _) => Identity::Key,
                (false, "f") => Identity::FullRow,
                (false, _) => Identity::InsertOnly,
            },
            is_root: row.get(16),
            heap: Heap { file: row.get(17), entries: BTreeMap::new() },
        });
        let Some(attnum) = row.get::<_, Option<i32>>(4) else { continue };
        let entry = row.get::<_, Option<String>>(18).and_then(|xid| xid.parse().ok());
        table.heap.entries.extend(entry.map(|entry: u32| (attnum as u32, entry)));
        let type_name: String = row.get(8);
        let missing: Option<String> = row.get(11);
        let has_missing: bool = row.get(12);
        table.columns.push(LiveColumn {
            attnum: attnum as u32,
            name: row.get::<_, String>(5).into(),
            type_oid: row.get(6),
            type_modifier: row.get(7),
            nullable: row.get(9),
            key: row.get::<_, Option<i32>>(10).map(|place| place as u16),
            missing: has_missing.then(|| literal(missing.as_deref(), &type_name).into()),
            filled: row.get(13),
            type_name: type_name.into(),
        });
    }
    Ok(tables)
}

fn literal(value: Option<&str>, type_name: &str) -> String {
    match value {
        Some(value) => format!("{}::{type_name}", crate::quote_literal(value).trim_start()),
        None => format!("NULL::{type_name}"),
    }
}

/// The types of some tables' columns.
pub(super) async fn column_types(
    client: &Client,
    tables: impl Iterator<Item = &LiveTable> + Send,
) -> Result<HashMap<u32, TypeFacts>, Failure> {
    let oids: HashSet<u32> = tables.flat_map(|table| table.columns.iter().map(|column| column.type_oid)).collect();
    types::facts(client, &oids.into_iter().collect::<Vec<_>>()).await
}

impl LiveTable {
    /// The table's shape now, as a schema.
    pub(super) fn schema(
        &self,
        id: TableId,
        version: SchemaVersion,
        types: &HashMap<u32, TypeFacts>,
        text: bool,
    ) -> TableSchema {
        TableSchema {
            id,
            version,
            name: self.name.clone(),
            columns: self.columns.iter().map(|column| column.column(types, text)).collect(),
            identity: self.identity,
            native_id: self.oid,
        }
    }
}

impl LiveColumn {
    pub(super) fn column(&self, types: &HashMap<u32, TypeFacts>, text: bool) -> Column {
        let facts = types.get(&self.type_oid);
        Column {
            name: self.name.clone(),
            type_: ColumnType {
                name: self.type_name.clone(),
                native_id: self.type_oid,
                logical: facts.map_or(Logical::Opaque, |facts| facts.logical),
                format: facts.map_or(Format::PgText, |facts| facts.format(text)),
            },
            key: self.key,
            nullable: self.nullable,
            native_id: self.attnum,
            default: None,
        }
    }
}
