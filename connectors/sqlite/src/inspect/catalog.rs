//! The catalog of a file, and what preflight has to say of it.

use super::{
    ddl,
    shape::{self, TableShape},
};
use crate::{
    client::{failure, journal_mode, quoted},
    source::install::obstacle,
};
use crossfade_connector::{Failure, Refusal};
use crossfade_event::{
    Identity, SchemaVersion, TableId, TableName,
    catalog::{
        Catalog, CheckDef, ColumnDef, Dialect, ForeignKeyDef, IndexDef, KeyDef, RelationKind, SequenceDef, TableDef,
    },
};
use rusqlite::{Connection, OptionalExtension};

/// Reads the tables that match.
pub(super) fn read(connection: &Connection, patterns: &[String]) -> Result<Catalog, Failure> {
    let doing = "reading the schema";
    let names = shape::names(connection).map_err(|error| failure(doing, error))?;
    every_pattern_means_something(patterns, &names)?;
    let mut tables = Vec::new();
    let mut sequences = Vec::new();
    for (name, view) in names.iter().filter(|(name, _)| shape::matches(patterns, name)) {
        let read = if *view { Ok(Some(view_def(name))) } else { table(connection, name, &mut sequences) };
        tables.extend(read.map_err(|error| failure(format!("reading the schema of {name}"), error))?);
    }
    tables.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Catalog { dialect: Dialect::Sqlite, tables, types: Vec::new(), sequences, extensions: Vec::new() })
}

fn every_pattern_means_something(patterns: &[String], names: &[(String, bool)]) -> Result<(), Failure> {
    for pattern in patterns.iter().filter(|pattern| !pattern.starts_with('!')) {
        let means =
            names.iter().any(|(name, _)| shape::glob(pattern, &format!("main.{name}")) || shape::glob(pattern, name));
        if means {
            continue;
        }
        let bare = pattern.strip_prefix("main.").unwrap_or(pattern);
        let nearest = names.iter().map(|(name, _)| name).min_by_key(|name| distance(bare, name));
        let advice = match nearest {
            Some(nearest) => format!("the nearest table is main.{nearest}"),
            None => "the file has no tables".to_owned(),
        };
        return Err(Failure::misconfigured("reading `tables`", format!("`{pattern}` matches no table"), advice));
    }
    Ok(())
}

/// How many letters must change to make one word the other.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, letter) in one.chars().enumerate() {
        let mut before = index;
        let mut left = index + 1;
        let mut next = vec![left];
        for (above, target) in row.iter().skip(1).zip(&other) {
            left = (above + 1).min(left + 1).min(before + usize::from(letter != *target));
            before = *above;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

fn view_def(name: &str) -> TableDef {
    TableDef {
        kind: RelationKind::View,
        obstacle: Some(format!(
            "{name} is a view and has no rows of its own: leave it out with \"!main.{name}\" in `tables`"
        )),
        ..TableDef::plain(TableName::new("main", name), Identity::InsertOnly, Vec::new(), None)
    }
}

fn table(connection: &Connection, name: &str, sequences: &mut Vec<SequenceDef>) -> rusqlite::Result<Option<TableDef>> {
    let Some(shape) = TableShape::read(connection, name)? else { return Ok(None) };
    let schema = shape.schema(TableId(0), SchemaVersion(1), None);
    let text = ddl::table(&shape.sql);
    let name = TableName::new("main", shape.name.as_str());
    let sequence = if text.autoincrement { shape.rowid_column().map(|column| column.name.clone()) } else { None };
    let sequence_name = |column: &str| TableName::new("main", format!("{}.{column}", shape.name));
    if let Some(column) = &sequence {
        let last: Option<i64> = connection
            .query_row("SELECT seq FROM sqlite_sequence WHERE name = ?1", [&shape.name], |row| row.get(0))
            .optional()?;
        sequences.push(SequenceDef {
            name: sequence_name(column),
            options: String::new(),
            last_value: last,
            increment: 1,
            owner: Some((name.clone(), column.clone())),
        });
    }
    let columns = shape
        .columns
        .iter()
        .map(|column| {
            let carried = schema.columns.iter().find(|carried| *carried.name == column.name);
            let generated = text.generated.iter().find(|(name, _, _)| *name == column.name);
            ColumnDef {
                column: carried.cloned().unwrap_or_else(|| crossfade_event::Column {
                    name: column.name.as_str().into(),
                    type_: crossfade_event::ColumnType {
                        name: column.travels_as().into(),
                        native_id: 0,
                        logical: crossfade_event::Logical::Dynamic,
                        format: crossfade_event::Format::Tagged,
                    },
                    key: None,
                    nullable: !column.not_null,
                    native_id: 0,
                    default: None,
                }),
                default: column.default.clone(),
                identity: None,
                generated: column
                    .generated
                    .then(|| generated.map(|(_, text, _)| ddl::in_double_quotes(text)).unwrap_or_default()),
                collation: text.collations.iter().find(|(name, _)| *name == column.name).map(|(_, name)| name.clone()),
                sequence: sequence.as_ref().filter(|name| **name == column.name).map(|name| sequence_name(name)),
            }
        })
        .collect();
    let primary = shape.primary_key();
    Ok(Some(TableDef {
        columns,
        identity: schema.identity,
        primary_key: (!primary.is_empty()).then(|| KeyDef {
            name: format!("{}_pkey", shape.name),
            columns: primary.iter().map(|name| (*name).to_owned()).collect(),
            deferrable: false,
            nulls_not_distinct: false,
        }),
        uniques: uniques(&shape),
        checks: checks(&shape, &text),
        foreign_keys: foreign_keys(connection, &shape)?,
        indexes: indexes(&shape),
        rows_estimate: estimate(connection, &shape)?,
        // Counting a table's own pages means reading them all.
        bytes: 0,
        native_id: 0,
        obstacle: obstacle(connection, &shape)?.map(|(problem, remedy)| format!("{problem}: {remedy}")),
        kind: RelationKind::Table,
        name,
    }))
}

fn uniques(shape: &TableShape) -> Vec<KeyDef> {
    shape
        .indexes
        .iter()
        .filter(|index| index.origin == "u" && index.is_plain())
        .map(|index| {
            let columns: Vec<String> = index.parts.iter().filter_map(|part| part.column.clone()).collect();
            KeyDef {
                name: format!("{}_{}_key", shape.name, columns.join("_")),
                columns,
                deferrable: false,
                nulls_not_distinct: false,
            }
        })
        .collect()
}

fn checks(shape: &TableShape, text: &ddl::TableText) -> Vec<CheckDef> {
    text.checks
        .iter()
        .enumerate()
        .map(|(index, (name, expression))| CheckDef {
            name: name.clone().unwrap_or_else(|| format!("{}_check{}", shape.name, index + 1)),
            expression: ddl::in_double_quotes(expression),
        })
        .collect()
}

fn indexes(shape: &TableShape) -> Vec<IndexDef> {
    shape
        .indexes
        .iter()
        .filter(|index| index.origin == "c")
        .map(|index| IndexDef {
            name: index.name.clone(),
            unique: index.unique,
            definition: ddl::in_double_quotes(&ddl::index(index.sql.as_deref().unwrap_or_default()).tail),
            columns: index.parts.iter().filter_map(|part| part.column.clone()).collect(),
            plain: index.is_plain() && !index.partial,
        })
        .collect()
}

fn foreign_keys(connection: &Connection, shape: &TableShape) -> rusqlite::Result<Vec<ForeignKeyDef>> {
    let mut statement = connection.prepare_cached(
        "SELECT id, \"table\", \"from\", \"to\", on_update, on_delete FROM pragma_foreign_key_list(?1) ORDER BY id, seq",
    )?;
    let mut rows = statement.query([&shape.name])?;
    let mut found: Vec<(i64, ForeignKeyDef)> = Vec::new();
    while let Some(row) = rows.next()? {
        let (id, parent, from): (i64, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let to: Option<String> = row.get(3)?;
        let (update, delete): (String, String) = (row.get(4)?, row.get(5)?);
        if found.last().is_none_or(|(last, _)| *last != id) {
            let action = |word: &str, action: &str| {
                if action == "NO ACTION" { String::new() } else { format!("ON {word} {action}") }
            };
            let suffix = [action("UPDATE", &update), action("DELETE", &delete)].join(" ").trim().to_owned();
            found.push((
                id,
                ForeignKeyDef {
                    name: String::new(),
                    columns: Vec::new(),
                    references: TableName::new("main", parent.as_str()),
                    referenced_columns: Vec::new(),
                    suffix,
                },
            ));
        }
        if let Some((_, key)) = found.last_mut() {
            // Without a column named, the parent's primary key is meant.
            let to = match to {
                Some(to) => Some(to),
                None => TableShape::read(connection, &parent)?
                    .and_then(|parent| parent.primary_key().get(key.columns.len()).map(|name| (*name).to_owned())),
            };
            key.columns.push(from);
            key.referenced_columns.extend(to);
        }
    }
    Ok(found
        .into_iter()
        .map(|(_, key)| ForeignKeyDef { name: format!("{}_{}_fkey", shape.name, key.columns.join("_")), ..key })
        .collect())
}

/// Files up to this size are counted: it takes milliseconds. Larger ones are not read for an estimate.
const COUNTED_BYTES: u64 = 64 << 20;
/// So many rows of a larger table are counted before guessing begins.
const COUNTED_ROWS: u64 = 100_000;

/// The number itself in a small file; else what `ANALYZE` left, or else the span of rowids, or a guess by the size.
fn estimate(connection: &Connection, shape: &TableShape) -> rusqlite::Result<u64> {
    if shape.virtual_ {
        return Ok(0);
    }
    let table = quoted(&shape.name);
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map(|number| number as u64);
    let bytes = file_bytes(connection)?;
    if bytes <= COUNTED_BYTES {
        return number(&format!("SELECT count(*) FROM {table}"));
    }
    if let Some(rows) = analyzed(connection, shape)? {
        return Ok(rows);
    }
    let counted = number(&format!("SELECT count(*) FROM (SELECT 1 FROM {table} LIMIT {COUNTED_ROWS})"))?;
    if counted < COUNTED_ROWS {
        return Ok(counted);
    }
    // A row takes some bytes: whatever the rowids say, there are no more rows than that.
    let most = (bytes / 16).max(counted);
    let Some(rowid) = shape.rowid_name() else { return Ok(most / 4) };
    let sql = format!("SELECT max({0}) - min({0}) + 1.0 FROM {table}", quoted(&rowid));
    let span: Option<f64> = connection.query_row(&sql, [], |row| row.get(0))?;
    Ok((span.unwrap_or(0.0) as u64).clamp(counted, most))
}

/// How many rows `ANALYZE` found.
fn analyzed(connection: &Connection, shape: &TableShape) -> rusqlite::Result<Option<u64>> {
    if !crate::client::exists(connection, "table", "sqlite_stat1")? {
        return Ok(None);
    }
    // Of a partial index it counts that index's rows only: the largest is the table's.
    let mut statement = connection.prepare("SELECT stat FROM sqlite_stat1 WHERE tbl = ?1 AND stat IS NOT NULL")?;
    let stats = statement.query_map([&shape.name], |row| row.get::<_, String>(0))?;
    let first_number = |stat: &String| stat.split(' ').next().and_then(|word| word.parse().ok());
    Ok(stats.collect::<rusqlite::Result<Vec<_>>>()?.iter().filter_map(first_number).max())
}

/// An upper bound for any table.
fn file_bytes(connection: &Connection) -> rusqlite::Result<u64> {
    connection.query_row("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size", [], |row| {
        row.get::<_, i64>(0).map(|bytes| bytes as u64)
    })
}

/// What stands in the way of capturing, and what is worth knowing.
pub(super) fn preflight_source(connection: &Connection, patterns: &[String]) -> Result<Vec<Refusal>, Failure> {
    let catalog = read(connection, patterns)?;
    let doing = "checking the source";
    let mut found: Vec<Refusal> = catalog
        .tables
        .iter()
        .filter_map(|table| {
            let obstacle = table.obstacle.as_ref()?;
            let (problem, remedy) = obstacle.split_once(": ").unwrap_or((obstacle, ""));
            Some(Refusal {
                object: table.name.to_string(),
                problem: problem.to_owned(),
                remedy: remedy.to_owned(),
                fatal: true,
            })
        })
        .collect();
    let keyless = catalog.tables.iter().filter(|table| table.obstacle.is_none() && table.identity == Identity::FullRow);
    found.extend(keyless.map(|table| Refusal {
        object: table.name.to_string(),
        problem: "it has no key: it is copied in one long read, and its rows are found by all their columns".to_owned(),
        remedy: format!("give {} a primary key", table.name),
        fatal: false,
    }));
    if connection.is_readonly("main").map_err(|error| failure(doing, error))? {
        found.push(Refusal {
            object: "the file".to_owned(),
            problem: "it cannot be written to, and the triggers that record changes must be put there".to_owned(),
            remedy: "give this user the right to write the file and its folder".to_owned(),
            fatal: true,
        });
    }
    let journal = journal_mode(connection).map_err(|error| failure(doing, error))?;
    if journal != "wal" {
        found.push(Refusal {
            object: "the file".to_owned(),
            problem: format!("its journal mode is {journal}: while a page of rows is copied, writers wait"),
            remedy: "PRAGMA journal_mode = WAL".to_owned(),
            fatal: false,
        });
    }
    let encoding: String =
        connection.query_row("PRAGMA encoding", [], |row| row.get(0)).map_err(|error| failure(doing, error))?;
    if encoding != "UTF-8" {
        found.push(Refusal {
            object: "the file".to_owned(),
            problem: format!(
                "its text is stored as {encoding}: text that is not valid there cannot be carried as it is"
            ),
            remedy: "none is needed where all text is valid".to_owned(),
            fatal: false,
        });
    }
    Ok(found)
}

/// What stands in the way of writing, and what is worth knowing.
pub(super) fn preflight_sink(connection: &Connection) -> Result<Vec<Refusal>, Failure> {
    let doing = "checking the target";
    let mut found = Vec::new();
    if connection.is_readonly("main").map_err(|error| failure(doing, error))? {
        found.push(Refusal {
            object: "the file".to_owned(),
            problem: "it cannot be written to".to_owned(),
            remedy: "give this user the right to write the file and its folder".to_owned(),
            fatal: true,
        });
    }
    let journal = journal_mode(connection).map_err(|error| failure(doing, error))?;
    if journal != "wal" {
        found.push(Refusal {
            object: "the file".to_owned(),
            problem: format!("its journal mode is {journal}, and an existing file's mode is left as it is: readers and our writes wait for each other"),
            remedy: "PRAGMA journal_mode = WAL".to_owned(),
            fatal: false,
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_file_is_counted_and_not_guessed() {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch(
                "CREATE TABLE sparse (id INTEGER PRIMARY KEY, x); INSERT INTO sparse VALUES (1, 'a'), (900000000, 'b');
                 CREATE TABLE keyed (a TEXT, b TEXT, PRIMARY KEY (a, b)) WITHOUT ROWID;
                 INSERT INTO keyed VALUES ('a', 'b'), ('a', 'c'), ('b', 'c'); CREATE TABLE empty (x);
                 CREATE INDEX few ON sparse (x) WHERE x = 'a'; ANALYZE; INSERT INTO sparse VALUES (7, 'c')",
            )
            .unwrap();
        let catalog = read(&connection, &["main.*".to_owned()]).unwrap();
        let rows: Vec<(&str, u64)> =
            catalog.tables.iter().map(|table| (&*table.name.name, table.rows_estimate)).collect();
        assert_eq!(rows, [("empty", 0), ("keyed", 3), ("sparse", 3)]);
        let sparse = TableShape::read(&connection, "sparse").unwrap().unwrap();
        assert_eq!(analyzed(&connection, &sparse).unwrap(), Some(2), "the partial index counts one row only");
    }
}
