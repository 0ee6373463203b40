//! The statements that make a target, as text. [`super::make`] and [`super::finish`] run them where something is missing,
//! [`whole`] lists them for a target of which nothing is there yet: what `plan` prints is what runs. Nothing here asks
//! a server.

mod whole;

use crate::client::{quote_ident, quote_literal, quote_table};
use crossfade_connector::{Failure, Target, TargetTable, WriteMode};
use crossfade_event::{
    Logical, TableName,
    catalog::{
        CheckDef, ColumnDef, ForeignKeyDef, IdentityColumn, IndexDef, KeyDef, RelationKind, SequenceDef, TypeDef,
        TypeDefinition,
    },
};
pub(super) use whole::whole;

/// So many values of a sequence are skipped: what the source gives out while we carry its value over.
const SEQUENCE_MARGIN: i64 = 1000;

/// Names in quotes, with commas between.
pub(super) fn list(columns: &[String]) -> Result<String, Failure> {
    let quoted = columns.iter().map(|column| Ok(quote_ident(column)?.as_str().to_owned()));
    Ok(quoted.collect::<Result<Vec<_>, Failure>>()?.join(", "))
}

/// The schemas that anything of the target stands in, each once.
pub(super) fn schemas(target: &Target) -> Vec<&str> {
    let support = &target.support;
    let mut schemas: Vec<&str> = target.tables.iter().map(|table| &*table.schema.name.schema).collect();
    schemas.extend(support.types.iter().map(|type_| &*type_.name.schema));
    schemas.extend(support.sequences.iter().map(|sequence| &*sequence.name.schema));
    schemas.sort_unstable();
    schemas.dedup();
    schemas
}

pub(super) fn schema(name: &str) -> Result<String, Failure> {
    Ok(format!("CREATE SCHEMA IF NOT EXISTS {}", quote_ident(name)?))
}

pub(super) fn extension(name: &str) -> Result<String, Failure> {
    Ok(format!("CREATE EXTENSION IF NOT EXISTS {} SCHEMA public", quote_ident(name)?))
}

pub(super) fn type_(def: &TypeDef) -> Result<String, Failure> {
    let quoted = quote_table(&def.name)?;
    Ok(match &def.definition {
        TypeDefinition::Enum(labels) => {
            let labels: Vec<String> = labels.iter().map(|label| quote_literal(label)).collect();
            format!("CREATE TYPE {quoted} AS ENUM ({})", labels.join(", "))
        }
        TypeDefinition::Composite(fields) => {
            let fields = fields
                .iter()
                .map(|(name, type_)| Ok(format!("{} {type_}", quote_ident(name)?)))
                .collect::<Result<Vec<_>, Failure>>()?;
            format!("CREATE TYPE {quoted} AS ({})", fields.join(", "))
        }
        TypeDefinition::Domain(tail) => {
            let tail = tail.trim_start();
            let word = if tail.get(..3).is_some_and(|head| head.eq_ignore_ascii_case("as ")) { "" } else { "AS " };
            format!("CREATE DOMAIN {quoted} {word}{tail}")
        }
        TypeDefinition::Range(inside) => format!("CREATE TYPE {quoted} AS RANGE ({inside})"),
    })
}

/// The target's column that a sequence feeds.
pub(super) fn owner_column<'t>(target: &'t Target, sequence: &SequenceDef) -> Option<&'t ColumnDef> {
    let (table, column) = sequence.owner.as_ref()?;
    let table = target.tables.iter().find(|found| found.schema.name == *table)?;
    table.def.columns.iter().find(|def| *def.column.name == **column)
}

/// `None` for the sequence of an identity column, which comes with the column.
pub(super) fn sequence(target: &Target, sequence: &SequenceDef) -> Result<Option<String>, Failure> {
    if owner_column(target, sequence).is_some_and(|def| def.identity.is_some()) {
        return Ok(None);
    }
    let sql = format!("CREATE SEQUENCE {} {}", quote_table(&sequence.name)?, sequence.options);
    Ok(Some(sql.trim_end().to_owned()))
}

/// Gives a table the sequences that feed its columns.
pub(super) fn owned_sequences(target: &Target, table: &TargetTable) -> Result<Vec<String>, Failure> {
    let name = &table.schema.name;
    let mut statements = Vec::new();
    for sequence in &target.support.sequences {
        if let Some((owner, column)) = &sequence.owner
            && owner == name
            && owner_column(target, sequence).is_some_and(|def| def.identity.is_none())
        {
            let (sequence, table) = (quote_table(&sequence.name)?, quote_table(name)?);
            statements.push(format!("ALTER SEQUENCE {sequence} OWNED BY {table}.{}", quote_ident(column)?));
        }
    }
    Ok(statements)
}

/// How a column is made.
pub(super) fn column(def: &ColumnDef) -> Result<String, Failure> {
    let mut sql = format!("{} {}", quote_ident(&def.column.name)?, def.column.type_.name);
    if let Some(collation) = &def.collation {
        sql.push_str(&format!(" COLLATE {}", quoted_path(collation)?));
    }
    if let Some(expression) = &def.generated {
        sql.push_str(&format!(" GENERATED ALWAYS AS ({expression}) STORED"));
    } else if let Some(identity) = def.identity {
        let word = match identity {
            IdentityColumn::Always => "ALWAYS",
            IdentityColumn::ByDefault => "BY DEFAULT",
        };
        sql.push_str(&format!(" GENERATED {word} AS IDENTITY"));
    } else if let Some(default) = &def.default {
        sql.push_str(&format!(" DEFAULT {default}"));
    }
    if !def.column.nullable {
        sql.push_str(" NOT NULL");
    }
    Ok(sql)
}

/// A name that may be qualified and may be quoted already.
fn quoted_path(name: &str) -> Result<String, Failure> {
    if name.contains('"') || name.contains('.') {
        Ok(name.to_owned())
    } else {
        Ok(quote_ident(name)?.as_str().to_owned())
    }
}

fn checks(table: &TargetTable) -> Result<Vec<String>, Failure> {
    let sql = |check: &CheckDef| Ok(format!("CONSTRAINT {} CHECK ({})", quote_ident(&check.name)?, check.expression));
    table.def.checks.iter().map(sql).collect()
}

/// A table, or a leaf of a tree whose parent is there: a leaf's columns come from the parent.
pub(super) fn table(table: &TargetTable, parent_is_there: bool) -> Result<String, Failure> {
    let quoted = quote_table(&table.schema.name)?;
    match &table.def.kind {
        RelationKind::Partition { parent, bound } if parent_is_there => {
            let checks = checks(table)?;
            // What is the leaf's own stands between the parent and the bound.
            let own = if checks.is_empty() { String::new() } else { format!("({}) ", checks.join(", ")) };
            Ok(format!("CREATE TABLE {quoted} PARTITION OF {} {own}{bound}", quote_table(parent)?))
        }
        kind => {
            let mut parts = table.def.columns.iter().map(column).collect::<Result<Vec<_>, Failure>>()?;
            parts.extend(checks(table)?);
            let tail = match kind {
                RelationKind::Partitioned { strategy } => format!(" PARTITION BY {strategy}"),
                _ => String::new(),
            };
            Ok(format!("CREATE TABLE {quoted} (\n  {}\n){tail}", parts.join(",\n  ")))
        }
    }
}

/// The columns that are ours in somebody else's table.
pub(super) fn shadow_columns(table: &TargetTable) -> impl Iterator<Item = (&str, &str, Option<&ColumnDef>)> {
    let ours: &[usize] = match &table.mode {
        WriteMode::Columns { columns } => columns,
        _ => &[],
    };
    ours.iter()
        .filter_map(|index| table.schema.columns.get(*index))
        .map(|column| (&*column.name, &*column.type_.name, table.def.column(&column.name)))
}

/// A column beside those that are there.
pub(super) fn add_column(
    table: &TableName,
    column: &str,
    type_: &str,
    def: Option<&ColumnDef>,
) -> Result<String, Failure> {
    let words = match def.and_then(|def| def.generated.as_ref()) {
        Some(expression) => format!(" GENERATED ALWAYS AS ({expression}) STORED"),
        None => String::new(),
    };
    let (table, column) = (quote_table(table)?, quote_ident(column)?);
    Ok(format!("ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {column} {type_}{words}"))
}

/// What makes the rows of a table findable by their key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RowKey<'t> {
    /// The table's own primary key.
    Primary(&'t KeyDef),
    /// A unique constraint on exactly the key's columns.
    Unique(&'t KeyDef),
    /// A unique index that we add, for the source finds its rows by these columns.
    Index(Vec<String>),
    /// Nothing: rows are found by all columns, or not at all.
    None,
}

pub(super) fn row_key(table: &TargetTable) -> RowKey<'_> {
    if let Some(key) = &table.def.primary_key {
        return RowKey::Primary(key);
    }
    let schema = &table.schema;
    let columns: Vec<String> = schema
        .key_columns()
        .into_iter()
        .filter_map(|index| schema.columns.get(index))
        .map(|column| column.name.to_string())
        .collect();
    if columns.is_empty() {
        return RowKey::None;
    }
    match table.def.uniques.iter().find(|key| sorted(&key.columns) == sorted(&columns)) {
        Some(key) => RowKey::Unique(key),
        None => RowKey::Index(columns),
    }
}

pub(super) fn sorted(columns: &[String]) -> Vec<String> {
    let mut columns = columns.to_vec();
    columns.sort_unstable();
    columns
}

/// `ALTER TABLE … ADD CONSTRAINT …`; the name is left to the server where another relation has it already.
pub(super) fn constraint(table: &TableName, key: &KeyDef, kind: &str, name_is_free: bool) -> Result<String, Failure> {
    let named = if name_is_free { format!("CONSTRAINT {} ", quote_ident(&key.name)?) } else { String::new() };
    let nulls = if key.nulls_not_distinct { " NULLS NOT DISTINCT" } else { "" };
    let deferrable = if key.deferrable { " DEFERRABLE" } else { "" };
    let (table, columns) = (quote_table(table)?, list(&key.columns)?);
    Ok(format!("ALTER TABLE {table} ADD {named}{kind}{nulls} ({columns}){deferrable}"))
}

pub(super) fn key_index(table: &TableName, columns: &[String]) -> Result<String, Failure> {
    Ok(format!("CREATE UNIQUE INDEX ON {} ({})", quote_table(table)?, list(columns)?))
}

/// A secondary index; the name is left to the server where another relation has it already.
pub(super) fn index(table: &TableName, index: &IndexDef, name_is_free: bool) -> Result<String, Failure> {
    let unique = if index.unique { "UNIQUE " } else { "" };
    let named = if name_is_free { format!("{} ", quote_ident(&index.name)?) } else { String::new() };
    Ok(format!("CREATE {unique}INDEX {named}ON {} {}", quote_table(table)?, index.definition))
}

pub(super) fn analyze(table: &TableName) -> Result<String, Failure> {
    Ok(format!("ANALYZE {}", quote_table(table)?))
}

pub(super) fn has_rows(table: &TableName) -> Result<String, Failure> {
    Ok(format!("SELECT EXISTS (SELECT FROM {})", quote_table(table)?))
}

/// A foreign key: added unchecked, then checked against the rows without keeping writers out.
pub(super) struct ForeignKeySql {
    pub(super) add: String,
    /// `None` where it is checked as it is added: before version 18 a partitioned table knows nothing else.
    pub(super) validate: Option<String>,
}

pub(super) fn foreign_key(table: &TargetTable, foreign: &ForeignKeyDef) -> Result<ForeignKeySql, Failure> {
    let (quoted, name) = (quote_table(&table.schema.name)?, quote_ident(&foreign.name)?);
    let add = format!(
        "ALTER TABLE {quoted} ADD CONSTRAINT {name} FOREIGN KEY ({}) REFERENCES {} ({}) {}",
        list(&foreign.columns)?,
        quote_table(&foreign.references)?,
        list(&foreign.referenced_columns)?,
        foreign.suffix
    );
    let add = add.trim_end().trim_end_matches("NOT VALID").trim_end().to_owned();
    Ok(match table.def.kind {
        RelationKind::Partitioned { .. } => ForeignKeySql { add, validate: None },
        _ => ForeignKeySql {
            add: format!("{add} NOT VALID"),
            validate: Some(format!("ALTER TABLE {quoted} VALIDATE CONSTRAINT {name}")),
        },
    })
}

/// Carries a sequence's value over, past whatever the table holds and with a margin; never backwards, for somebody may
/// have drawn from it already. `None` where there is nothing to carry.
pub(crate) fn sequence_value(target: &Target, sequence: &SequenceDef) -> Result<Option<String>, Failure> {
    let (furthest, outer, beyond) =
        if sequence.increment < 0 { ("min", "LEAST", "<") } else { ("max", "GREATEST", ">") };
    let last = sequence.last_value.map_or_else(|| "NULL".to_owned(), |last| last.to_string());
    let (name, reached) = match &sequence.owner {
        None if sequence.last_value.is_none() => return Ok(None),
        None => (quote_literal(quote_table(&sequence.name)?.as_str()), last),
        Some((table, column)) => {
            let Some(def) = owner_column(target, sequence) else { return Ok(None) };
            if !matches!(def.column.type_.logical, Logical::Int16 | Logical::Int32 | Logical::Int64) {
                return Ok(None);
            }
            let quoted = quote_table(table)?;
            let name = match def.identity {
                None => quote_literal(quote_table(&sequence.name)?.as_str()),
                Some(_) => format!(
                    "pg_catalog.pg_get_serial_sequence({}, {})",
                    quote_literal(quoted.as_str()),
                    quote_literal(column)
                ),
            };
            let held =
                format!("(SELECT pg_catalog.{furthest}({}) FROM {quoted})::pg_catalog.int8", quote_ident(column)?);
            (name, format!("{outer}({held}, {last})"))
        }
    };
    let margin = SEQUENCE_MARGIN.saturating_mul(sequence.increment);
    Ok(Some(format!(
        "SELECT pg_catalog.setval(s.seqrelid, n.next) FROM pg_catalog.pg_sequence s,\n  \
         (SELECT ({reached})::pg_catalog.numeric AS reached) r,\n  \
         LATERAL (SELECT LEAST(GREATEST(r.reached + ({margin}), s.seqmin), s.seqmax)::pg_catalog.int8 AS next) n,\n  \
         LATERAL (SELECT pg_catalog.pg_sequence_last_value(s.seqrelid) AS last) l\n  \
         WHERE s.seqrelid = {name}::pg_catalog.regclass AND r.reached IS NOT NULL AND (l.last IS NULL OR n.next {beyond} l.last)"
    )))
}
