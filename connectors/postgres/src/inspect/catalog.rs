//! Tables and columns, from the catalog.

use super::{
    objects, parts,
    sizes::{self, Size},
};
use crate::{
    Patterns,
    client::failure,
    codec::types::{self, Portability, TypeFacts},
    source::tree,
};
use crossfade_connector::Failure;
use crossfade_event::{
    Column, ColumnType, Identity, TableName,
    catalog::{Catalog, ColumnDef, Dialect, IdentityColumn, RelationKind, TableDef},
};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};
use tokio_postgres::Client;

/// `pg_get_expr` opens the relation that it is given, and would wait for whoever has locked it; what names no column of
/// its own needs none.
const RELATIONS: &str = "\
SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text, c.relreplident::text,
  pn.nspname::text, p.relname::text, pg_catalog.pg_get_expr(c.relpartbound, 0),
  CASE WHEN c.relkind = 'p' THEN pg_catalog.pg_get_partkeydef(c.oid) END,
  rn.nspname::text, r.relname::text
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_inherits i ON c.relispartition AND i.inhrelid = c.oid
LEFT JOIN pg_catalog.pg_class p ON p.oid = i.inhparent
LEFT JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace
LEFT JOIN pg_catalog.pg_class r ON c.relispartition AND r.oid = pg_catalog.pg_partition_root(c.oid)
LEFT JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't'
  AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'crossfade')
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
    AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY 2, 3";

/// A relation as it was found.
struct Relation {
    oid: u32,
    name: TableName,
    kind: String,
    unlogged: bool,
    replica_identity: String,
    parent: Option<TableName>,
    bound: Option<String>,
    strategy: Option<String>,
    root: Option<TableName>,
    /// A partition tree that is taken as one table.
    as_one: bool,
    in_the_way: Option<(String, String)>,
}

/// Everything that the patterns mean, without what was made.
pub(super) async fn read(client: &Client, patterns: &Patterns, made: &HashSet<TableName>) -> Result<Catalog, Failure> {
    let mut relations = relations(client).await?;
    relations.retain(|relation| !made.contains(&relation.name));
    let names: Vec<TableName> = relations.iter().map(|relation| relation.name.clone()).collect();
    patterns.select(&names)?;
    let by_root = |relation: &Relation| relation.root.as_ref().is_some_and(|root| patterns.verdict(root) == Some(true));
    let is_wanted = |relation: &Relation| match patterns.is_by_root() && by_root(relation) {
        // It comes through its root.
        true => false,
        false => patterns.verdict(&relation.name).unwrap_or_else(|| by_root(relation)),
    };
    let mut wanted: Vec<Relation> = relations.into_iter().filter(is_wanted).collect();
    if patterns.is_by_root() {
        for root in wanted.iter_mut().filter(|relation| relation.kind == "p") {
            let members = tree::members(client, root.oid).await?;
            root.as_one = true;
            root.in_the_way = tree::obstacle(&root.name, &members, patterns);
        }
    }
    let taken: HashSet<TableName> = wanted.iter().map(|relation| relation.name.clone()).collect();
    let oids: Vec<u32> = wanted.iter().map(|relation| relation.oid).collect();
    let columns = columns(client, &oids).await?;
    let facts = facts(client, &wanted, &columns).await?;
    let parts = parts::read(client, &oids).await?;
    let sizes = measure(client, &wanted).await?;
    let mut tables: Vec<TableDef> = wanted
        .into_iter()
        .map(|relation| {
            let size = sizes.get(&relation.oid).copied().unwrap_or_default();
            table(relation, &columns, &facts, &parts, &taken, size)
        })
        .collect();
    tables.sort_by(|one, other| one.name.cmp(&other.name));
    let type_oids: HashSet<u32> = columns.values().flatten().map(|column| column.type_oid).collect();
    let (types, mut extensions) = objects::types(client, type_oids.into_iter().collect()).await?;
    extensions.extend(objects::used_extensions(client, &oids).await?);
    extensions.sort();
    extensions.dedup();
    let sequences = objects::sequences(client, &oids).await?;
    Ok(Catalog { dialect: Dialect::Postgres, tables, types, sequences, extensions })
}

async fn relations(client: &Client) -> Result<Vec<Relation>, Failure> {
    let rows = client.query(RELATIONS, &[]).await.map_err(|error| failure("listing the tables", error))?;
    let pair = |schema: Option<String>, name: Option<String>| Some(TableName::new(schema?, name?));
    Ok(rows
        .into_iter()
        .map(|row| Relation {
            oid: row.get(0),
            name: TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
            kind: row.get(3),
            unlogged: row.get::<_, &str>(4) == "u",
            replica_identity: row.get(5),
            parent: pair(row.get(6), row.get(7)),
            bound: row.get(8),
            strategy: row.get(9),
            root: pair(row.get(10), row.get(11)),
            as_one: false,
            in_the_way: None,
        })
        .collect())
}

/// A column as it was found.
struct Found {
    name: Arc<str>,
    type_oid: u32,
    type_name: String,
    nullable: bool,
    default: Option<String>,
    identity: Option<IdentityColumn>,
    generated: bool,
    collation: Option<String>,
    attnum: u32,
    key: Option<u16>,
    sequence: Option<TableName>,
    virtual_: bool,
}

const COLUMNS: &str = "\
SELECT a.attrelid, a.attname::text, a.atttypid, pg_catalog.format_type(a.atttypid, a.atttypmod), NOT a.attnotnull,
  CASE WHEN a.attgenerated = '' THEN pg_catalog.pg_get_expr(d.adbin, 0)
    ELSE pg_catalog.pg_get_expr(d.adbin, d.adrelid) END, a.attidentity::text, a.attgenerated::text,
  CASE WHEN a.attcollation <> 0 AND a.attcollation <> t.typcollation
    THEN pg_catalog.format('%I.%I', cn.nspname, co.collname) END,
  a.attnum::int4, pg_catalog.array_position(i.indkey::int2[], a.attnum)::int4, sn.nspname::text, s.relname::text
FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
LEFT JOIN pg_catalog.pg_collation co ON co.oid = a.attcollation
LEFT JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace
LEFT JOIN pg_catalog.pg_index i ON i.indrelid = c.oid AND i.indisvalid AND i.indimmediate
  AND (CASE c.relreplident WHEN 'i' THEN i.indisreplident WHEN 'n' THEN false ELSE i.indisprimary END)
LEFT JOIN LATERAL (SELECT dep.objid FROM pg_catalog.pg_depend dep
  JOIN pg_catalog.pg_class sc ON sc.oid = dep.objid AND sc.relkind = 'S'
  WHERE dep.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND dep.refclassid = dep.classid
    AND dep.refobjid = a.attrelid AND dep.refobjsubid = a.attnum AND dep.deptype IN ('a', 'i') LIMIT 1) dep ON true
LEFT JOIN pg_catalog.pg_class s ON s.oid = dep.objid
LEFT JOIN pg_catalog.pg_namespace sn ON sn.oid = s.relnamespace
WHERE a.attrelid = ANY($1) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum";

async fn columns(client: &Client, oids: &[u32]) -> Result<HashMap<u32, Vec<Found>>, Failure> {
    let rows =
        client.query(COLUMNS, &[&oids]).await.map_err(|error| failure("reading the columns of the tables", error))?;
    let mut found: HashMap<u32, Vec<Found>> = HashMap::new();
    for row in rows {
        let generated: String = row.get(7);
        let sequence = row.get::<_, Option<String>>(11).zip(row.get::<_, Option<String>>(12));
        found.entry(row.get(0)).or_default().push(Found {
            name: row.get::<_, String>(1).into(),
            type_oid: row.get(2),
            type_name: row.get(3),
            nullable: row.get(4),
            default: row.get(5),
            identity: match row.get(6) {
                "a" => Some(IdentityColumn::Always),
                "d" => Some(IdentityColumn::ByDefault),
                _ => None,
            },
            generated: !generated.is_empty(),
            virtual_: generated == "v",
            collation: row.get(8),
            attnum: row.get::<_, i32>(9) as u32,
            key: row.get::<_, Option<i32>>(10).map(|place| place as u16),
            sequence: sequence.map(|(schema, name)| TableName::new(schema, name)),
        });
    }
    Ok(found)
}

/// Whether the stream must ask for text everywhere, and what each type means.
struct Facts {
    types: HashMap<u32, TypeFacts>,
    text: bool,
}

async fn facts(client: &Client, relations: &[Relation], columns: &HashMap<u32, Vec<Found>>) -> Result<Facts, Failure> {
    let oids: HashSet<u32> = columns.values().flatten().map(|column| column.type_oid).collect();
    let types = types::facts(client, &oids.into_iter().collect::<Vec<_>>()).await?;
    // What the source captures: tables with rows of their own, without what is generated.
    let text = relations
        .iter()
        .filter(|relation| relation.kind == "r" || relation.as_one)
        .filter_map(|relation| columns.get(&relation.oid))
        .flatten()
        .filter(|column| !column.generated)
        .filter_map(|column| types.get(&column.type_oid))
        .any(|facts| facts.portability == Portability::TextOnly);
    Ok(Facts { types, text })
}

/// The sizes of all that has rows; those of a tree that is taken as one table are its leaves' together.
async fn measure(client: &Client, relations: &[Relation]) -> Result<HashMap<u32, Size>, Failure> {
    let stored = relations.iter().filter(|relation| matches!(relation.kind.as_str(), "r" | "m"));
    let roots: Vec<u32> = relations.iter().filter(|relation| relation.as_one).map(|relation| relation.oid).collect();
    let trees = if roots.is_empty() { HashMap::new() } else { sizes::leaves(client, &roots).await? };
    let oids: Vec<u32> = stored
        .map(|relation| relation.oid)
        .chain(trees.values().flatten().copied())
        .collect::<HashSet<_>>()
        .into_iter()
        .collect();
    let mut found = sizes::read(client, &oids).await?;
    for (root, leaves) in trees {
        let sizes = leaves.iter().filter_map(|leaf| found.get(leaf));
        let whole = sizes.fold(Size::default(), |whole, leaf| Size {
            bytes: whole.bytes + leaf.bytes,
            rows: whole.rows + leaf.rows,
        });
        found.insert(root, whole);
    }
    Ok(found)
}

fn table(
    relation: Relation,
    columns: &HashMap<u32, Vec<Found>>,
    facts: &Facts,
    parts: &parts::Parts,
    taken: &HashSet<TableName>,
    size: Size,
) -> TableDef {
    let own = columns.get(&relation.oid).map(Vec::as_slice).unwrap_or_default();
    let inherits = relation.parent.as_ref().is_some_and(|parent| taken.contains(parent));
    let mut parts = parts.of(relation.oid, inherits);
    parts.foreign_keys.sort_by(|one, other| one.name.cmp(&other.name));
    let has_key = own.iter().any(|column| column.key.is_some());
    let identity = match (has_key, relation.replica_identity.as_str()) {
        (true, _) => Identity::Key,
        (false, "f") => Identity::FullRow,
        (false, _) => Identity::InsertOnly,
    };
    let obstacle = obstacle(&relation, own);
    let kind = kind(&relation, taken);
    TableDef {
        name: relation.name,
        kind,
        columns: own.iter().map(|column| def(column, facts)).collect(),
        identity,
        primary_key: parts.primary_key,
        uniques: parts.uniques,
        checks: parts.checks,
        foreign_keys: parts.foreign_keys,
        indexes: parts.indexes,
        rows_estimate: size.rows,
        bytes: size.bytes,
        native_id: relation.oid,
        obstacle,
    }
}

fn kind(relation: &Relation, taken: &HashSet<TableName>) -> RelationKind {
    match (relation.kind.as_str(), &relation.parent, &relation.bound, &relation.strategy) {
        ("v" | "m", ..) => RelationKind::View,
        ("f", ..) => RelationKind::Foreign,
        _ if relation.unlogged => RelationKind::Unlogged,
        _ if relation.as_one => RelationKind::Table,
        // An inner node of a tree is a partition that is itself partitioned: SQL says so after the bound.
        (_, Some(parent), Some(bound), strategy) if taken.contains(parent) => RelationKind::Partition {
            parent: parent.clone(),
            bound: match strategy {
                Some(strategy) => format!("{bound} PARTITION BY {strategy}"),
                None => bound.clone(),
            },
        },
        ("p", _, _, Some(strategy)) => RelationKind::Partitioned { strategy: strategy.clone() },
        _ => RelationKind::Table,
    }
}

fn def(found: &Found, facts: &Facts) -> ColumnDef {
    let known = facts.types.get(&found.type_oid);
    let default = found.default.clone();
    ColumnDef {
        column: Column {
            name: found.name.clone(),
            type_: ColumnType {
                name: found.type_name.as_str().into(),
                native_id: found.type_oid,
                logical: known.map_or(crossfade_event::Logical::Opaque, |known| known.logical),
                format: known.map_or(crossfade_event::Format::PgText, |known| known.format(facts.text)),
            },
            key: found.key,
            nullable: found.nullable,
            native_id: found.attnum,
            default: None,
        },
        default: default.clone().filter(|_| !found.generated),
        identity: found.identity,
        generated: default.filter(|_| found.generated),
        collation: found.collation.clone(),
        sequence: found.sequence.clone(),
    }
}

/// Why a relation cannot be captured, with the remedy.
fn obstacle(relation: &Relation, columns: &[Found]) -> Option<String> {
    let name = &relation.name;
    let exclude = format!("exclude it with \"!{name}\"");
    if let Some((problem, remedy)) = &relation.in_the_way {
        return Some(format!("{problem}; {remedy}, or set partitions = \"leaf\""));
    }
    match relation.kind.as_str() {
        "v" => Some(format!(
            "{name} is a view: it has no rows of its own to capture; {exclude} and take the tables beneath it"
        )),
        "m" => Some(format!(
            "{name} is a materialised view: its changes are not in the WAL; {exclude} and make it again in the target"
        )),
        "f" => Some(format!(
            "{name} is a foreign table: its rows live in another server; {exclude} and migrate it from there"
        )),
        _ if relation.unlogged => Some(format!(
            "{name} is unlogged: its changes are not in the WAL; run ALTER TABLE {name} SET LOGGED, or {exclude}"
        )),
        _ if columns.iter().any(|column| column.virtual_) && columns.iter().all(|column| column.generated) => {
            Some(format!("{name} has nothing but generated columns; {exclude}"))
        }
        _ if columns.is_empty() => Some(format!("{name} has no columns; {exclude}")),
        _ => None,
    }
}
